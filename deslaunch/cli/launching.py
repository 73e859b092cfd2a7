"""``run`` and ``resume``: a batch is launched, or gone on with."""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from deslaunch.cli import options
from deslaunch.cli.clients import clients_of, opened
from deslaunch.cli.command import command
from deslaunch.cli.exits import EXIT_STOPPED, LAUNCH_EXIT_CODES, exit_code_of
from deslaunch.cli.given import OF_LAUNCH, cache_folder, chosen, console_of, repeated
from deslaunch.cli.loop import interruptible
from deslaunch.cli.stdin import on_disk
from deslaunch.cli.watching import follow_runs
from deslaunch.errors import Declined, LedgerWriteFailed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Mapping

    from deslaunch.console import Console
    from deslaunch.launcher import Confirm
    from deslaunch.model import Event, Plan, StartRequest, Summary
    from deslaunch.session import Interrupt
    from deslaunch.terms import Clients

_WATCHED_AFTER: Final = frozenset({0, 3, 4, EXIT_STOPPED})  # not after an interrupt, for one

_options_of_launch = options.together(
    options.rows,
    options.shard,
    options.skip_invalid,
    options.connection,
    options.schema,
    options.launching,
    options.resuming,
    options.watch_too,
    options.output,
)


@command(
    "run",
    examples=(
        "  deslaunch run night.csv\n"
        "  deslaunch run night.csv --watch\n"
        "  deslaunch run night.csv --ledger /var/lib/exports/night.jsonl --concurrency 64\n"
        "  deslaunch run night.csv --shard 2/4\n"
        "  deslaunch run night.csv --dry-run --schema jobs.json | head -n 1\n"
        "  deslaunch run night.csv --limit 10\n"
        "  deslaunch run night.csv --yes --log-format json 2>> night.log\n"
        "  generate | deslaunch run - --format jsonl --ledger night.ledger.jsonl"
    ),
    exit_codes=LAUNCH_EXIT_CODES,
)
@click.argument("manifest", type=click.Path())
@click.option(
    "--ledger",
    type=options.FILE,
    help="Default: MANIFEST's stem + .ledger.jsonl, beside it; of a shard, + .I-of-N.ledger.jsonl.",
)
@click.option("--resume", is_flag=True, help="Go on where this very manifest was begun.")
@_options_of_launch
def run(manifest: str, ledger: Path | None, **given: Any) -> int:
    """Start a run for every row of MANIFEST. "-" reads stdin; --ledger is then required.

    It says what it is about to do and, on a terminal, asks before anything is sent.
    """
    from deslaunch import launcher  # noqa: PLC0415  # aiohttp is slow to import

    if manifest == "-" and (ledger is None or given["format"] is None):
        raise click.UsageError("a manifest from stdin needs --ledger PATH and --format")

    async def launch(
        clients: Clients, interrupt: Interrupt, progress: Callable[[Event], None]
    ) -> Summary:
        return await launcher.launch(
            path,
            clients,
            ledger=ledger,
            resume=given["resume"],
            confirm=_confirm(given),
            **_of_session(given, interrupt, progress),
        )

    def preview(
        clients: Clients | None, interrupt: Interrupt, progress: Callable[[Event], None]
    ) -> AsyncIterator[StartRequest]:
        return launcher.preview(
            path,
            clients,
            ledger=ledger,
            resume=given["resume"],
            **_of_session(given, interrupt, progress),
        )

    if given["dry_run"]:
        with on_disk(manifest, given["format"]) as path:
            return _preview(given, preview)

    if manifest == "-":
        assert ledger is not None
        from deslaunch.kept_rows import kept_rows  # noqa: PLC0415  # not needed for --help

        with kept_rows(sys.stdin.buffer, ledger, resume=given["resume"]) as path:
            return _launch(given, launch)

    path = Path(manifest)
    return _launch(given, launch)


@command(
    "resume",
    examples=(
        "  deslaunch resume night.ledger.jsonl\n"
        "  deslaunch resume night.ledger.jsonl --yes\n"
        "  deslaunch resume night.ledger.jsonl --manifest moved/night.csv"
    ),
    exit_codes=LAUNCH_EXIT_CODES,
)
@click.argument("ledger", type=options.FILE)
@click.option("--manifest", type=options.FILE, help="Where the manifest is now, if it was moved.")
@_options_of_launch
def resume(ledger: Path, manifest: Path | None, **given: Any) -> int:
    """Go on with the batch of LEDGER: what is pending or failed, never what is unknown.

    It says what it is about to do and, on a terminal, asks before anything is sent.
    """
    from deslaunch import launcher  # noqa: PLC0415  # aiohttp is slow to import

    async def launch(
        clients: Clients, interrupt: Interrupt, progress: Callable[[Event], None]
    ) -> Summary:
        return await launcher.resume(
            ledger,
            clients,
            manifest=manifest,
            confirm=_confirm(given),
            **_of_session(given, interrupt, progress),
        )

    def preview(
        clients: Clients | None, interrupt: Interrupt, progress: Callable[[Event], None]
    ) -> AsyncIterator[StartRequest]:
        return launcher.preview_resume(
            ledger,
            clients,
            manifest=manifest,
            **_of_session(given, interrupt, progress),
        )

    return _preview(given, preview) if given["dry_run"] else _launch(given, launch)


def _of_session(
    given: Mapping[str, Any], interrupt: Interrupt, progress: Callable[[Event], None]
) -> dict[str, Any]:
    """Return what a launch, a resume and their previews are all called with."""
    return {
        "schema": given["schema"],
        "cache": cache_folder(),
        "on_event": progress,
        "interrupt": interrupt,
        **chosen(given, OF_LAUNCH),
    }


def _confirm(given: Mapping[str, Any]) -> Confirm | None:
    """Return what asks a person whether to begin; None where nobody is to be asked."""
    from deslaunch.console import question_of  # noqa: PLC0415  # not needed for --help

    console = console_of(given)

    async def confirm(plan: Plan) -> bool:
        return await console.ask(question_of(plan))

    return None if given["yes"] or not console.can_ask else confirm


def _preview(
    given: Mapping[str, Any],
    preview: Callable[
        [Clients | None, Interrupt, Callable[[Event], None]], AsyncIterator[StartRequest]
    ],
) -> int:
    """Print what would be sent, a line each; where a schema is given, DES is not needed."""
    from deslaunch.console import Progress  # noqa: PLC0415  # not needed for --help

    console = console_of(given)
    clients = clients_of(given, needs_token=True) if given["schema"] is None else None

    async def work(interrupt: Interrupt) -> int:
        async with AsyncExitStack() as stack:
            if clients is not None:
                await opened(stack, clients)

            async for request in preview(clients, interrupt, Progress(console)):
                console.start(request)

        console.say("nothing was sent: this is a dry run")
        return 0

    return interruptible(work)


def _launch(
    given: Mapping[str, Any],
    launch: Callable[[Clients, Interrupt, Callable[[Event], None]], Coroutine[Any, Any, Summary]],
) -> int:
    """Launch, and tell the plan, what goes on, the summary and the next command."""
    from deslaunch.console import Progress  # noqa: PLC0415  # not needed for --help

    console = console_of(given)
    clients = clients_of(given, needs_token=True)

    async def work(interrupt: Interrupt) -> int:
        async with AsyncExitStack() as stack:
            await opened(stack, clients)

            with Progress(console) as progress:
                try:
                    summary = await launch(clients, interrupt, progress)
                except Declined as exc:
                    console.insist(str(exc))
                    return exit_code_of(exc)
                except LedgerWriteFailed as exc:
                    return _failed_ledger(console, exc, as_json=given["as_json"])

            _tell_of_launch(console, given, summary, is_idle=progress.is_idle)
            watches = given["watch"] and summary.exit_code in _WATCHED_AFTER
            console.finish(summary, progress.causes, repeated(given), goes_on=watches)

            if watches:
                watched = await follow_runs(
                    console, given, clients, interrupt, Path(summary.ledger)
                )
                stopped = summary.exit_code == EXIT_STOPPED and watched < EXIT_STOPPED
                return EXIT_STOPPED if stopped else watched

        if given["as_json"]:
            console.json(summary.as_dict())

        return summary.exit_code

    return interruptible(work)


def _tell_of_launch(
    console: Console, given: Mapping[str, Any], summary: Summary, *, is_idle: bool
) -> None:
    if is_idle and not summary.stops:
        console.say("nothing was left to send; a new batch needs a new --ledger")

    if given["retry_unknown"] and summary.unknown:
        console.say("--retry-unknown leaves auto-value rows: each run of one moves the feed on")


def _failed_ledger(console: Console, error: LedgerWriteFailed, *, as_json: bool) -> int:
    """Print what is known of a batch whose ledger can't be written any more."""
    if error.summary is not None:
        console.summary(error.summary)

    if error.summary is not None and as_json:
        console.json(error.summary.as_dict())

    console.error(error, exit_code_of(error))
    return exit_code_of(error)
