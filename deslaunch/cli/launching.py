"""``check``, ``run``, ``resume`` and ``watch``: what speaks to DES about a batch."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import click

from deslaunch.cli import options, render
from deslaunch.cli.progress import Progress
from deslaunch.cli.targets import clients_of
from deslaunch.cli.terminal import run_work
from deslaunch.errors import LedgerExists, LedgerMissing
from deslaunch.events import Noted
from deslaunch.model import count

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from deslaunch.cli.options import Given
    from deslaunch.cli.terminal import Interrupts, Printer
    from deslaunch.des.client import DesClient
    from deslaunch.events import Event, Plan, Summary, WatchSummary
    from deslaunch.launch.batch import Batch
    from deslaunch.settings import Settings

_STOPPED: Final = 5
_WATCHED_AFTER: Final = frozenset({0, 3, 4, _STOPPED})  # not after a signal, for one

_MANIFEST: Final = options.argument("manifest", metavar="MANIFEST")
_DES: Final = (*options.CONNECTION, *options.SCHEMA)


@options.command(
    "check",
    _MANIFEST,
    options.ROWS,
    _DES,
    options.OUTPUT,
)
def check(given: Given) -> int:
    """Check every row of MANIFEST, and send nothing. "-" reads stdin.

    Examples:
        deslaunch check night.csv
        deslaunch check night.csv --schema jobs.json --json
    """
    from deslaunch.launch import batch  # noqa: PLC0415  # aiohttp is slow to import

    settings, printer = given.settings(), given.printer
    clients = None if given["schema"] is not None else clients_of(given, settings)

    async def work(_: Interrupts) -> int:
        async with AsyncExitStack() as stack:
            await _open(stack, clients)
            report = await batch.check(
                given["manifest"], clients, settings=settings, schema=given["schema"]
            )

        for note in report.notes:
            printer.say(note)

        for warning in report.warnings:
            printer.warn(warning)

        if given["as_json"]:
            printer.json(report.as_dict())
        else:
            for line in render.problem_lines(report.problems, report.groups, report.count):
                printer.insist(line)

            rows = count(report.rows, "row")
            printer.say(f"{rows}: {report.valid:,} valid, {report.invalid:,} invalid")

        if report.unconfirmed is not None:
            printer.warn(str(report.unconfirmed))

        return int(report.exit_code)

    return run_work(work)


@options.command(
    "run",
    _MANIFEST,
    options.value(
        "--ledger",
        "Default: MANIFEST's name without its suffix + .ledger.db, beside it.",
        metavar="LEDGER",
        envvar="DESLAUNCH_LEDGER",
        show_envvar=True,
    ),
    options.flag("--resume", "Go on where this very manifest was begun: for cron and containers."),
    options.ROWS,
    options.tuning("skip_invalid"),
    _DES,
    options.LAUNCH,
    options.OUTPUT,
    exit_codes=options.LAUNCH_EXIT_CODES,
)
def run(given: Given) -> int:
    """Start a run for every row of MANIFEST. "-" reads stdin; --ledger is then required.

    It says what it is about to do and, on a terminal, asks before anything is sent.

    Examples:
        deslaunch run night.csv
        deslaunch run night.csv --watch
        deslaunch run night.csv --ledger /var/lib/exports/night.ledger.db --concurrency 64
        deslaunch run night.csv --dry-run --schema jobs.json | head -n 1
        deslaunch run night.csv --limit 10
        deslaunch run night.csv --yes --resume --quiet
        generate | deslaunch run - --format jsonl --ledger night.ledger.db
    """
    from deslaunch.launch import batch  # noqa: PLC0415  # aiohttp is slow to import

    source, ledger = given["manifest"], given["ledger"]

    if source == "-" and (ledger is None or given["format"] is None):
        raise click.UsageError("a manifest from stdin needs --ledger LEDGER and --format")

    ledger = ledger or batch.default_ledger(source)
    kept = _kept_of(ledger) if given["resume"] else {}
    settings = given.settings(kept)
    more: dict[str, Any] = {"ledger": ledger, "resume": given["resume"]}

    def open_batch(clients: Any, **rest: Any) -> AbstractAsyncContextManager[Batch]:
        return batch.open_batch(source, clients, options_kept=given.kept(kept), **more, **rest)

    try:
        if given["dry_run"]:
            return _preview(given, settings, kept, None if kept else source, ledger)

        return _launch(given, settings, kept, ledger, open_batch)
    except LedgerExists as exc:
        again = options.printed("resume", options.place_word(ledger), *given.repeated())
        exc.hint = f"go on with that batch: {again}; a new batch needs another --ledger"
        raise


@options.command(
    "resume",
    options.LEDGER,
    options.value("--corrections", "Take the rows of FILE into it, by key.", metavar="FILE"),
    options.flag("--add-rows", "FILE may hold rows that the batch lacks, with keys of their own."),
    options.tuning("format", "delimiter", "job_id", "target"),
    _DES,
    options.LAUNCH,
    options.OUTPUT,
    exit_codes=options.LAUNCH_EXIT_CODES,
)
def resume(given: Given) -> int:
    """Go on with the batch of LEDGER: what is pending or failed, never what is unknown.

    It needs the ledger and DES, no manifest and no options: what earlier command lines gave is
    kept in the ledger. It says what it is about to do and, on a terminal, asks before anything
    is sent.

    Examples:
        deslaunch resume night.ledger.db
        deslaunch resume night.ledger.db --corrections fix.csv
        deslaunch resume night.ledger.db --retry-rejected --yes
    """
    from deslaunch.launch import batch  # noqa: PLC0415  # aiohttp is slow to import

    if given["add_rows"] and given["corrections"] is None:
        raise click.UsageError("--add-rows goes with --corrections FILE")

    ledger = given["ledger"]
    kept = _kept_of(ledger, must_exist=True)
    settings = given.settings(kept)

    def open_batch(clients: Any, **rest: Any) -> AbstractAsyncContextManager[Batch]:
        return batch.resume_batch(
            ledger,
            clients,
            corrections=given["corrections"],
            add_rows=given["add_rows"],
            options_kept=given.kept(kept),
            **rest,
        )

    if given["dry_run"]:
        return _preview(given, settings, kept, None, ledger)

    return _launch(given, settings, kept, ledger, open_batch)


@options.command(
    "watch",
    options.LEDGER,
    options.CONNECTION,
    options.tuning("concurrency", "rate", "max_wait", "give_up_after", "drain_timeout"),
    options.WATCH,
    options.OUTPUT,
    exit_codes=options.WATCH_EXIT_CODES,
)
def watch(given: Given) -> int:
    """Follow the runs that the batch of LEDGER started to their end, and record how they ended.

    Ended early, it goes on where it was: a run whose end is recorded is not asked about again.

    Examples:
        deslaunch watch night.ledger.db
        deslaunch watch night.ledger.db --interval 60 --watch-timeout 14400
    """
    from deslaunch.launch import batch  # noqa: PLC0415  # aiohttp is slow to import

    kept, printer = _kept_of(given["ledger"], must_exist=True), given.printer
    settings = given.settings(kept)
    clients = clients_of(given, settings, kept, needs_token=True)

    async def work(interrupts: Interrupts) -> int:
        async with AsyncExitStack() as stack:
            await _open(stack, clients)

            async with batch.watch_batch(given["ledger"], clients, settings=settings) as opened:
                interrupts.batch = opened
                summary = await _watch(opened, given["ledger"], given)

        if given["as_json"]:
            printer.outcome_json(summary.as_dict())

        return summary.exit_code

    return run_work(work)


def _kept_of(ledger: str, *, must_exist: bool = False) -> dict[str, Any]:
    """Return what the ledger keeps of earlier command lines; nothing where there is none yet."""
    from deslaunch.ledger.ledger import open_ledger  # noqa: PLC0415

    kept: dict[str, Any] = {}

    async def work(_: Interrupts) -> int:
        try:
            async with await open_ledger(ledger) as opened:
                kept.update(opened.batch.options)
        except LedgerMissing:
            if must_exist:
                raise

        return 0

    run_work(work)
    return kept


async def _open(stack: AsyncExitStack, clients: DesClient | dict[str, DesClient] | None) -> None:
    """Open one client, or each of several, until the stack is left."""
    several = [*clients.values()] if isinstance(clients, dict) else [clients]

    for client in several:
        if client is not None:
            await stack.enter_async_context(client)


def _preview(
    given: Given,
    settings: Settings,
    kept: Mapping[str, Any],
    manifest: str | None,
    ledger: str,
) -> int:
    """Print what would be sent, a line each: of a manifest, or else of a ledger.

    Where a schema is given, and for a ledger, DES is not needed.
    """
    from deslaunch.launch import batch  # noqa: PLC0415  # aiohttp is slow to import

    printer, schema = given.printer, given["schema"]
    needs_des = manifest is not None and schema is None
    clients = clients_of(given, settings, kept, needs_token=True) if needs_des else None
    more: dict[str, Any] = {"ledger": ledger, "settings": settings, "schema": schema}

    def tell(event: Event) -> None:
        if isinstance(event, Noted):  # the plan is the JSON lines
            (printer.warn if event.is_warning else printer.say)(event.message)

    async def work(_: Interrupts) -> int:
        async with AsyncExitStack() as stack:
            await _open(stack, clients)
            starts = batch.preview(manifest, clients, on_event=tell, **more)

            async for start in starts:
                told = {"key": start.key, "row": start.row, "target": start.target}
                body = json.loads(start.body)
                printer.json({**told, "jobId": start.job_id, "body": body})

        printer.say("nothing was sent: this is a dry run")
        return 0

    return run_work(work)


def _launch(
    given: Given,
    settings: Settings,
    kept: Mapping[str, Any],
    ledger: str,
    open_batch: Callable[..., AbstractAsyncContextManager[Batch]],
) -> int:
    """Launch, and tell the plan, what goes on, the summary and the next commands."""
    printer = given.printer
    clients = clients_of(given, settings, kept, needs_token=True)
    asks = not given["yes"] and printer.can_ask()

    async def confirm(plan: Plan) -> bool:
        return not (asks and plan.send) or await printer.ask(render.question_of(plan))

    async def work(interrupts: Interrupts) -> int:
        async with AsyncExitStack() as stack:
            await _open(stack, clients)
            progress = stack.enter_context(Progress(printer))
            opened = await stack.enter_async_context(
                open_batch(
                    clients,
                    settings=settings,
                    schema=given["schema"],
                    on_event=progress,
                    confirm=confirm,
                )
            )
            interrupts.batch = opened
            _tell_of_nothing(opened.plan, ledger, printer)
            summary = replace(await opened.run(allow_partial=True), ledger=ledger)
            progress.close()
            watches = given["watch"] and opened.ledger and summary.exit_code in _WATCHED_AFTER
            _tell_end(summary, progress, given, printer, goes_on=bool(watches))
            watched = await _watch(opened, ledger, given) if watches else None

        if given["as_json"]:
            printer.outcome_json((summary if watched is None else watched).as_dict())

        return _exit_code(summary, watched)

    return run_work(work)


def _tell_of_nothing(plan: Plan | None, ledger: str, printer: Printer) -> None:
    """Say, even to the quiet, that a night starts nothing: it looks like a full one else."""
    if plan is not None and not plan.rows:
        printer.insist(f"nothing to start: {plan.manifest} holds no rows; no ledger was made")
    elif plan is not None and not plan.send:
        printer.insist(render.nothing_line(ledger))


def _exit_code(summary: Summary, watched: WatchSummary | None) -> int:
    """Return the exit code of a launch and of the watch that followed it."""
    if watched is None:
        return summary.exit_code

    stopped = summary.exit_code == _STOPPED and watched.exit_code < _STOPPED
    return _STOPPED if stopped else watched.exit_code


def _tell_end(
    summary: Summary, progress: Progress, given: Given, printer: Printer, *, goes_on: bool
) -> None:
    """Tell how a session ended: why rows have no run, the counts, and what to do next."""
    for line in progress.tally.causes.lines():
        printer.say(line)

    for line in (render.warning_lines if printer.quiet else render.summary_lines)(summary):
        printer.insist(line)

    for line in render.unrecorded_lines(summary):
        printer.insist(line)

    if not goes_on:
        for line in render.command_lines(render.next_commands(summary, given.repeated())):
            printer.insist(line)


async def _watch(opened: Batch, ledger: str, given: Given) -> WatchSummary:
    """Follow a batch's runs, tell how they get on, how they ended, and what to do next."""
    assert opened.ledger is not None
    printer = given.printer
    runs = await opened.ledger.run_counts()

    with Progress(printer, "run", runs.unfinished + runs.untold) as progress:
        summary = await opened.watch(progress).run(allow_partial=True)

    summary = replace(summary, batch=replace(summary.batch, ledger=ledger))

    for line in render.watch_lines(summary):
        printer.say(line)

    commands = render.watch_commands(summary, given.repeated())

    for line in render.command_lines(
        [*commands, *render.next_commands(summary.batch, given.repeated())]
    ):
        printer.insist(line)

    return summary
