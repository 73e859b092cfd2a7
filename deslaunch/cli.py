"""The command line: argv → settings → launcher, and exceptions → exit codes.

Everything heavy is imported by the command that needs it, so that ``--help`` answers at once.
"""

from __future__ import annotations

import asyncio
import gc
import os
import shlex
import shutil
import signal
import sys
import tempfile
import traceback
from contextlib import AsyncExitStack, contextmanager
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

import click
from click.core import ParameterSource

from deslaunch import manual
from deslaunch._version import VERSION
from deslaunch.errors import (
    ConfigurationError,
    CredentialsRefused,
    Declined,
    DesError,
    DeslaunchError,
    Interrupted,
    LedgerError,
    LedgerWriteFailed,
    ManifestChanged,
)
from deslaunch.model import DEFAULT_TARGET, RowState, counted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence

    from deslaunch.client import DesClient
    from deslaunch.config import LaunchOptions, TargetSettings
    from deslaunch.console import Console, WatchProgress
    from deslaunch.launcher import CheckReport, Confirm
    from deslaunch.ledger import Snapshot
    from deslaunch.model import Event, Format, Job, Plan, StartRequest, Summary
    from deslaunch.results import Results
    from deslaunch.session import Interrupt
    from deslaunch.targets import Connection
    from deslaunch.terms import Clients
    from deslaunch.watch_settings import WatchOptions

EXIT_CODES: Final = """\b
Exit codes:
  0  every row is started
  1  a bug in deslaunch
  2  usage, configuration, an invalid manifest, or the answer was no: nothing was sent
  3  finished, some rows failed, were rejected or invalid
  4  finished, some rows are unknown
  5  stopped before the end; resume goes on
  6  credentials refused; the remaining rows are pending
  7  the ledger exists, is locked, damaged, foreign, or can't be written
  129, 130, 143  interrupted; drained; resume goes on"""

WATCH_EXIT_CODES: Final = """\b
Exit codes:
  0  every row is started, and every run finished with success
  1  a bug in deslaunch
  2  usage or configuration: nothing was asked
  3  runs failed, or rows failed, were rejected or invalid
  4  rows are unknown, or DES refuses to tell of runs
  5  stopped, with runs that have not finished or rows that are pending
  6  credentials refused; runs have not finished
  7  the ledger is locked, damaged, foreign, or can't be written
  129, 130, 143  interrupted; watch goes on"""

# The first class that an error is an instance of gives the exit code.
_EXIT_CODES: Final[tuple[tuple[type[DeslaunchError], int], ...]] = (
    (LedgerError, 7),
    (CredentialsRefused, 6),
    (DesError, 5),
    (ManifestChanged, 5),
    (DeslaunchError, 2),
)

_EXIT_BUG: Final = 1

_COLLECT_AFTER: Final = 50_000
"""Objects that are made, more than go, before a search for cycles: a launch makes few of them."""


class _Command(click.Command):
    """A command whose examples and exit codes keep their lines in ``--help``."""

    def __init__(
        self, *args: Any, examples: str = "", exit_codes: str = EXIT_CODES, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.epilog = "\n\n".join(manual.sections(self.name or "", examples, exit_codes))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; end it as a pipe's writer ends where nobody reads any more."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
        except DeslaunchError as exc:
            return _refused(exc, ctx.obj or [], ctx.params)


def _options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return one decorator for several options, shown in the order in which they are given."""

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)

        return command

    return add


_FILE: Final = click.Path(path_type=Path)
_FORMAT: Final = click.Choice(["jsonl", "csv"])

_STATES: Final = tuple(map(str, RowState))

_ledgers = click.argument("ledgers", metavar="LEDGER...", type=_FILE, nargs=-1, required=True)


def _tuning(name: str, **kwargs: Any) -> Callable[[Any], Any]:
    """Return an option that has an environment variable, ``DESLAUNCH_`` and its name."""
    variable = f"DESLAUNCH_{name.removeprefix('--').replace('-', '_').upper()}"
    return click.option(name, envvar=variable, show_envvar=True, **kwargs)


_volume = _options(
    click.option("--quiet", is_flag=True, help="Say only what must not be missed."),
    click.option("--verbose", is_flag=True, help="Say what becomes of every row."),
)

_output = _options(
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout."),
    _volume,
)


def _load_env_file(_: click.Context, __: click.Parameter, path: Path | None) -> Path | None:
    """Set the variables of a file that are not set; before any option looks for its own."""
    if path is not None:
        from deslaunch.env_file import read_env_file  # noqa: PLC0415  # not needed for --help

        for name, value in read_env_file(path).items():
            os.environ.setdefault(name, value)

    return path


_connection = _options(
    _tuning(
        "--config",
        type=_FILE,
        help="TOML file of targets. Default: config.toml in your "
        "configuration folder of deslaunch.",
    ),
    click.option(
        "--env-file",
        type=_FILE,
        is_eager=True,
        callback=_load_env_file,
        help="Set the variables in this file (NAME=value) that are not set already.",
    ),
    click.option(
        "--base-url", metavar="URL", help="DES's base URL. Default: the variable DES_BASE_URL."
    ),
    click.option("--allow-http", is_flag=True, help="Allow http:// for hosts but loopback."),
    _tuning(
        "--timeout",
        type=float,
        default=60.0,
        show_default=True,
        metavar="SECONDS",
        help="For one attempt in all.",
    ),
    _tuning(
        "--connect-timeout",
        type=float,
        default=10.0,
        show_default=True,
        metavar="SECONDS",
        help="To connect.",
    ),
)

_schema = _options(
    click.option("--schema", type=_FILE, help="Jobs in QueryJobs' form; DES is not asked."),
    _tuning(
        "--schema-max-age",
        type=float,
        default=24.0,
        show_default=True,
        metavar="HOURS",
        help="Ask DES for older JobRunParameters.",
    ),
)

_rows = _options(
    click.option("--format", type=_FORMAT, help="Where the manifest's name does not tell."),
    click.option("--job-id", metavar="GUID", help="For rows that name no job."),
    click.option("--target", metavar="NAME", help="For rows that name no target."),
    click.option("--allow-duplicates", is_flag=True, default=None, help="Start equal rows, each."),
    click.option(
        "--allow-repeated-auto",
        is_flag=True,
        default=None,
        help="Start several auto-value rows of one job.",
    ),
)

_skip_invalid = click.option(
    "--skip-invalid", is_flag=True, default=None, help="Launch the valid rows all the same."
)

_shard = click.option(
    "--shard", metavar="I/N", help="Start the I-th of N shares of the rows, by their keys."
)

_max_wait = _tuning(
    "--max-wait",
    type=float,
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Cap of a computed wait.",
)

_give_up_after = _tuning(
    "--give-up-after",
    type=float,
    default=900.0,
    show_default=True,
    metavar="SECONDS",
    help="Stop a target that stays paused for so long.",
)

_launching = _options(
    _tuning(
        "--concurrency",
        type=int,
        default=16,
        show_default=True,
        metavar="N",
        help="Slots: starts in flight.",
    ),
    _tuning("--rate", type=float, metavar="R", help="Starts a second at most."),
    _tuning(
        "--max-attempts",
        type=int,
        default=5,
        show_default=True,
        metavar="N",
        help="5XX answers that make a row failed.",
    ),
    _max_wait,
    _give_up_after,
    _tuning(
        "--drain-timeout",
        type=float,
        metavar="SECONDS",
        help="For rows in flight after an interrupt. Default: --timeout.",
    ),
    _tuning(
        "--max-errors",
        default="50%",
        show_default=True,
        metavar="N|N%",
        help="Rows without a run that stop a target; a share once 200 rows have ended.",
    ),
    click.option(
        "--retry-5xx",
        type=click.Choice(["all", "none"]),
        help="Send 504 and 524 again like any 5XX, or none at all.",
    ),
    click.option(
        "--limit", type=int, metavar="N", help="Start N rows at most; the others stay pending."
    ),
    click.option(
        "--dry-run", is_flag=True, help="Print what would be sent, a JSON line each; send nothing."
    ),
    click.option("--yes", is_flag=True, help="Never ask."),
    _tuning(
        "--log-format",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        help="On stderr: sentences, or one JSON object a line.",
    ),
)

_watching = _options(
    _tuning(
        "--interval",
        type=float,
        default=5.0,
        show_default=True,
        metavar="SECONDS",
        help="Ask about a run again after so long, then after half as long again, and so on.",
    ),
    _tuning(
        "--max-interval",
        type=float,
        default=300.0,
        show_default=True,
        metavar="SECONDS",
        help="Between two questions about a run at most.",
    ),
    _tuning(
        "--watch-timeout",
        type=float,
        metavar="SECONDS",
        help="End the watch after so long. Default: with the last run.",
    ),
)

_watch_too = _options(
    click.option("--watch", is_flag=True, help="Then follow the runs to their end."), _watching
)

_resuming = _options(
    click.option("--retry-rejected", is_flag=True, help="Send what DES refused, unchanged."),
    click.option(
        "--retry-unknown", is_flag=True, help="Send what may have started: it may run twice."
    ),
    click.option(
        "--accept-new-rows", is_flag=True, help="New rows are no changed forms of lost ones."
    ),
)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EXIT_CODES,
)
@click.version_option(VERSION, prog_name="deslaunch")
def command_line() -> None:
    """Start thousands of DES job runs from one manifest, and know what became of every row.

    The base URL comes from DES_BASE_URL; the token from DES_TOKEN, DES_TOKEN_FILE or
    DES_TOKEN_COMMAND, never from the command line. With DES_ORG_ID, DES_CLIENT_ID,
    DES_CLIENT_SECRET, DES_USERNAME and DES_PASSWORD set instead, the auth server gives tokens
    and tells the base URL. For many organisations, name targets in a file: see --config.
    """


def _command(
    name: str, examples: str, exit_codes: str = EXIT_CODES
) -> Callable[[Callable[..., int]], click.Command]:
    return command_line.command(name, cls=_Command, examples=examples, exit_codes=exit_codes)


@_command(
    "check",
    examples="  deslaunch check night.csv\n  deslaunch check night.csv --schema jobs.json --json",
)
@click.argument("manifest", type=click.Path())
@_options(_rows, _connection, _schema, _output)
def check(manifest: str, **given: Any) -> int:
    """Check every row of MANIFEST, and send nothing. "-" reads stdin."""
    from deslaunch import launcher  # noqa: PLC0415  # aiohttp is slow to import

    console = _console(given)
    clients = _clients(given) if given["schema"] is None else None

    async def work(interrupt: Interrupt) -> int:
        async with AsyncExitStack() as stack:
            report = await launcher.check(
                path,
                await _opened(stack, clients) if clients is not None else None,
                schema=given["schema"],
                cache=_cache(),
                interrupt=interrupt,
                shown_as="<stdin>" if manifest == "-" else None,
                **_chosen(given, _OF_CHECK),
            )

        _print_report(console, report, as_json=given["as_json"])
        return report.exit_code

    with _on_disk(manifest, given["format"]) as path:
        return _run(work)


def _print_report(console: Console, report: CheckReport, *, as_json: bool) -> None:
    for note in report.notes:
        console.say(note)

    for warning in report.warnings:
        console.warn(warning)

    if as_json:
        console.json(report.as_dict())
        return

    console.problems(report.problems, report.problem_count)
    rows = counted(report.rows, "row")
    console.say(f"{rows}: {report.valid:,} valid, {report.invalid:,} invalid")


@_command(
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
)
@click.argument("manifest", type=click.Path())
@click.option(
    "--ledger",
    type=_FILE,
    help="Default: MANIFEST's stem + .ledger.jsonl, beside it; of a shard, + .I-of-N.ledger.jsonl.",
)
@click.option("--resume", is_flag=True, help="Go on where this very manifest was begun.")
@_options(
    _rows,
    _shard,
    _skip_invalid,
    _connection,
    _schema,
    _launching,
    _resuming,
    _watch_too,
    _output,
)
def run_manifest(manifest: str, ledger: Path | None, **given: Any) -> int:
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
        with _on_disk(manifest, given["format"]) as path:
            return _preview(given, preview)

    if manifest == "-":
        assert ledger is not None
        from deslaunch.kept_rows import kept_rows  # noqa: PLC0415  # not needed for --help

        with kept_rows(sys.stdin.buffer, ledger, resume=given["resume"]) as path:
            return _launch(given, launch)

    path = Path(manifest)
    return _launch(given, launch)


@_command(
    "resume",
    examples=(
        "  deslaunch resume night.ledger.jsonl\n"
        "  deslaunch resume night.ledger.jsonl --yes\n"
        "  deslaunch resume night.ledger.jsonl --manifest moved/night.csv"
    ),
)
@click.argument("ledger", type=_FILE)
@click.option("--manifest", type=_FILE, help="Where the manifest is now, if it was moved.")
@_options(
    _rows,
    _shard,
    _skip_invalid,
    _connection,
    _schema,
    _launching,
    _resuming,
    _watch_too,
    _output,
)
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
        "cache": _cache(),
        "on_event": progress,
        "interrupt": interrupt,
        **_chosen(given, _OF_LAUNCH),
    }


def _confirm(given: Mapping[str, Any]) -> Confirm | None:
    """Return what asks a person whether to begin; None where nobody is to be asked."""
    from deslaunch.console import question_of  # noqa: PLC0415  # not needed for --help

    console = _console(given)

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

    console = _console(given)
    clients = _clients(given, needs_token=True) if given["schema"] is None else None

    async def work(interrupt: Interrupt) -> int:
        async with AsyncExitStack() as stack:
            if clients is not None:
                await _opened(stack, clients)

            async for request in preview(clients, interrupt, Progress(console)):
                console.start(request)

        console.say("nothing was sent: this is a dry run")
        return 0

    return _run(work)


def _launch(
    given: Mapping[str, Any],
    launch: Callable[[Clients, Interrupt, Callable[[Event], None]], Coroutine[Any, Any, Summary]],
) -> int:
    """Launch, and tell the plan, what goes on, the summary and the next command."""
    from deslaunch.console import Progress  # noqa: PLC0415  # not needed for --help

    console = _console(given)
    clients = _clients(given, needs_token=True)

    async def work(interrupt: Interrupt) -> int:
        async with AsyncExitStack() as stack:
            await _opened(stack, clients)

            with Progress(console) as progress:
                try:
                    summary = await launch(clients, interrupt, progress)
                except Declined as exc:
                    console.insist(str(exc))
                    return _exit_code(exc)
                except LedgerWriteFailed as exc:
                    return _failed_ledger(console, exc, as_json=given["as_json"])

            _tell_of_launch(console, given, summary, is_idle=progress.is_idle)
            watches = given["watch"] and summary.exit_code in _WATCHED_AFTER
            console.finish(summary, progress.causes, _repeated(given), goes_on=watches)

            if watches:
                watched = await _follow(console, given, clients, interrupt, Path(summary.ledger))
                stopped = summary.exit_code == _EXIT_STOPPED and watched < _EXIT_STOPPED
                return _EXIT_STOPPED if stopped else watched

        if given["as_json"]:
            console.json(summary.as_dict())

        return summary.exit_code

    return _run(work)


def _tell_of_launch(
    console: Console, given: Mapping[str, Any], summary: Summary, *, is_idle: bool
) -> None:
    if is_idle and not summary.stops:
        console.say("nothing was left to send; a new batch needs a new --ledger")

    if given["retry_unknown"] and summary.unknown:
        console.say("--retry-unknown leaves auto-value rows: each run of one moves the feed on")


_EXIT_STOPPED: Final = 5
_WATCHED_AFTER: Final = frozenset({0, 3, 4, _EXIT_STOPPED})  # not after an interrupt, for one


@_command(
    "watch",
    examples=(
        "  deslaunch watch night.ledger.jsonl\n"
        "  deslaunch watch night.ledger.jsonl --interval 60 --watch-timeout 14400\n"
        "  deslaunch run night.csv --watch"
    ),
    exit_codes=WATCH_EXIT_CODES,
)
@click.argument("ledger", type=_FILE)
@_options(
    _connection,
    _tuning(
        "--concurrency",
        type=int,
        default=16,
        show_default=True,
        metavar="N",
        help="Slots: questions in flight.",
    ),
    _tuning("--rate", type=float, metavar="R", help="Questions a second at most."),
    _watching,
    _max_wait,
    _give_up_after,
    _output,
)
def watch(ledger: Path, **given: Any) -> int:
    """Follow the runs that the batch of LEDGER started to their end, and record how they ended.

    Ended early, it goes on where it was: a run whose end is recorded is not asked about again.
    """
    console = _console(given)
    clients = _clients(given, needs_token=True)

    async def work(interrupt: Interrupt) -> int:
        async with AsyncExitStack() as stack:
            await _opened(stack, clients)
            return await _follow(console, given, clients, interrupt, ledger)

    return _run(work)


async def _follow(
    console: Console,
    given: Mapping[str, Any],
    clients: Clients,
    interrupt: Interrupt,
    ledger: Path,
) -> int:
    """Watch with a progress line, print how the runs stand and the next commands."""
    from deslaunch.console import WatchProgress  # noqa: PLC0415  # not needed for --help
    from deslaunch.watching import follow  # noqa: PLC0415  # aiohttp is slow to import

    with WatchProgress(console) as progress:
        ticking = asyncio.create_task(_tick(progress))

        try:
            summary = await follow(
                ledger, clients, on_event=progress, interrupt=interrupt, **_watch_options(given)
            )
        finally:
            ticking.cancel()

    console.watch_summary(summary)

    if given["as_json"]:
        console.json(summary.as_dict())

    console.next_of_watch(summary, _repeated(given))
    return summary.exit_code


async def _tick(progress: WatchProgress) -> None:
    """Let the progress tell how it stands, although nothing happens."""
    while True:
        await asyncio.sleep(_TICK)
        progress.tick()


_TICK: Final = 1.0


def _failed_ledger(console: Console, error: LedgerWriteFailed, *, as_json: bool) -> int:
    """Print what is known of a batch whose ledger can't be written any more."""
    if error.summary is not None:
        console.summary(error.summary)

    if error.summary is not None and as_json:
        console.json(error.summary.as_dict())

    console.error(error, _exit_code(error))
    return _exit_code(error)


@_command(
    "status",
    examples=(
        "  deslaunch status night.ledger.jsonl --json\n  deslaunch status night.*-of-4.ledger.jsonl"
    ),
)
@_ledgers
@_output
def status(ledgers: tuple[Path, ...], **given: Any) -> int:
    """Say how the batch of each LEDGER stands, and list its unknown rows.

    Several LEDGERs, the shards of a manifest for example, are put together.
    """
    from deslaunch.console import summary_lines  # noqa: PLC0415  # not needed for --help
    from deslaunch.ledger import snapshot  # noqa: PLC0415
    from deslaunch.results import summary_of  # noqa: PLC0415
    from deslaunch.together import groups_of, summary_together  # noqa: PLC0415

    console = _console(given)
    found = [snapshot(path) for path in ledgers]
    groups = groups_of(found)

    for group in filter(lambda group: group.warning, groups):
        console.warn(group.warning)

    if given["as_json"]:
        summary = summary_of(found[0]) if len(found) == 1 else summary_together(groups)
        console.json(summary.as_dict())
        return 0

    for ledger in found:
        _print_status(console, ledger, named=len(found) > 1)

    if len(found) > 1:
        console.data(f"{len(found):,} ledgers together")

        for line in summary_lines(summary_together(groups)):
            console.data(line)

    return 0


def _print_status(console: Console, found: Snapshot, *, named: bool) -> None:
    from deslaunch.console import summary_lines, watch_lines  # noqa: PLC0415  # not for --help
    from deslaunch.results import runs_of, summary_of, unknown_rows  # noqa: PLC0415

    summary = summary_of(found)

    if named:
        console.data(summary.ledger)

    for line in summary_lines(summary):
        console.data(line)

    if found.replay.watch is not None:
        for line in watch_lines(runs_of(found.replay, summary)):
            console.data(line)

    console.unknown_rows(unknown_rows(found))

    if not found.live:
        console.next_command(summary, is_status=True)


@_command(
    "results",
    examples=(
        "  deslaunch results night.ledger.jsonl -o night.results.csv\n"
        "  deslaunch results night.ledger.jsonl --format jsonl | jq -r .jobRunId\n"
        "  deslaunch results night.*-of-4.ledger.jsonl -o night.results.csv\n"
        "  deslaunch results night.ledger.jsonl --state rejected --state failed --with-manifest\n"
        "  deslaunch results night.ledger.jsonl --split night.results"
    ),
)
@_ledgers
@click.option("-o", "--output", type=_FILE, help="Default: stdout.")
@click.option(
    "--state", "states", multiple=True, type=click.Choice(_STATES), help="Only rows in this state."
)
@click.option("--with-manifest", is_flag=True, help="Also what each row says; ours: deslaunch.*")
@click.option("--split", type=_FILE, metavar="DIR", help="Write DIR/failed.csv and so on instead.")
@click.option("--format", type=_FORMAT, help="Default: by the output's name, else csv.")
@click.option("--manifest", type=_FILE, help="Where the manifest is now, if it was moved.")
@_volume
def results(
    ledgers: tuple[Path, ...],
    output: Path | None,
    format: Literal["jsonl", "csv"] | None,  # noqa: A002  # the option's name
    manifest: Path | None,
    split: Path | None,
    **given: Any,
) -> int:
    """Write what became of every row, in manifest order.

    Several LEDGERs that are shards of one manifest are put together: each row comes once. Other
    LEDGERs come one after the other.

    --split writes started.csv, failed.csv, rejected.csv, invalid.csv, pending.csv and
    unknown.csv. They hold the rows with their keys, so that four of them are manifests of a new
    batch, as they are or mended; run refuses the rows of started.csv and unknown.csv.
    """
    from deslaunch.ledger import snapshot  # noqa: PLC0415  # not needed for --help
    from deslaunch.results import Results, write_lines  # noqa: PLC0415
    from deslaunch.together import groups_of  # noqa: PLC0415

    if split is not None and (output or format or given["states"] or given["with_manifest"]):
        raise click.UsageError("--split stands alone: each state has a CSV file of its own")

    console = _console(given)
    groups = groups_of([snapshot(path) for path in ledgers])
    found = [Results(*group.ledgers, manifest=manifest) for group in groups]
    form = format or ("jsonl" if output and output.suffix in {".jsonl", ".ndjson"} else "csv")

    if manifest is not None and len(found) > 1:
        raise click.UsageError("--manifest is that of one batch, and the ledgers are of several")

    for warning in [*(group.warning for group in groups), *(one.warning for one in found)]:
        if warning:
            console.warn(warning)

    if split is not None:
        _split(console, found, split)
        return 0

    lines = _result_lines(found, form, given["states"], with_manifest=given["with_manifest"])

    if output is None:
        console.data_bytes(lines)
    else:
        write_lines(lines, output)
        console.say(f"the results are in {output}")

    return 0


def _result_lines(
    found: Sequence[Results], form: Format, states: Sequence[str], *, with_manifest: bool
) -> Iterator[bytes]:
    from deslaunch.results import encode_results  # noqa: PLC0415  # not needed for --help
    from deslaunch.split import encode_with_manifest, parameter_names  # noqa: PLC0415

    told = (
        (result, row)
        for results in found
        for result, row in results.with_rows()
        if not states or result["state"] in states
    )

    if with_manifest:
        return encode_with_manifest(told, parameter_names(found), form)

    return encode_results((result for result, _ in told), form)


def _split(console: Console, found: Sequence[Results], folder: Path) -> None:
    from deslaunch.split import parameter_names, split_results  # noqa: PLC0415

    told = chain.from_iterable(results.with_rows() for results in found)

    for state, rows in split_results(told, parameter_names(found), folder).items():
        console.say(f"{folder / state}.csv: {counted(rows, 'row')}")


@_command(
    "report",
    examples=(
        "  deslaunch report night.ledger.jsonl -o report.html\n"
        "  deslaunch report shard-*.ledger.jsonl -o night.report.html"
    ),
)
@_ledgers
@click.option("-o", "--output", type=_FILE, required=True, help="The page, an .html file.")
@click.option("--manifest", type=_FILE, help="Where the manifest is now, if it was moved.")
@_volume
def report(ledgers: tuple[Path, ...], output: Path, manifest: Path | None, **given: Any) -> int:
    """Write a page for a browser: counts, times, causes, what to do, and every row.

    One file that loads nothing from anywhere; several LEDGERs are put together. Needs Jinja2,
    which the extra "report" brings.
    """
    try:
        from deslaunch.report import write_report  # noqa: PLC0415  # an extra brings what it needs
    except ModuleNotFoundError as exc:
        if exc.name not in {"jinja2", "markupsafe"}:
            raise

        raise ConfigurationError(
            "a report needs Jinja2, which is not there",
            hint="install it with: pip install 'deslaunch[report]'",
        ) from exc

    write_report(ledgers, output, manifest=manifest)
    _console(given).say(f"the report is in {output}")
    return 0


@_command(
    "resolve",
    examples=(
        "  deslaunch resolve night.ledger.jsonl KEY --not-started --note 'not in DES, 8:40'\n"
        "  deslaunch resolve night.ledger.jsonl KEY --started JOBRUNID\n"
        "  deslaunch resolve night.ledger.jsonl --from findings.csv"
    ),
)
@click.argument("ledger", type=_FILE)
@click.argument("keys", metavar="[KEY]...", nargs=-1)
@click.option("--started", metavar="JOBRUNID", help="The row started this run.")
@click.option("--not-started", is_flag=True, help="The rows started nothing.")
@click.option("--from", "file", type=_FILE, help="CSV or JSONL: key, as, jobRunId, note.")
@click.option("--note", default="", help="Kept with each finding.")
@_output
def resolve(
    ledger: Path,
    keys: tuple[str, ...],
    started: str | None,
    not_started: bool,  # noqa: FBT001  # click passes a flag's value by name
    file: Path | None,
    note: str,
    **given: Any,
) -> int:
    """Record what a person found out about unknown or failed rows of LEDGER."""
    from deslaunch import findings, resolution  # noqa: PLC0415  # aiohttp is slow to import

    _check_resolve(keys, started, file, not_started=not_started)
    console = _console(given)
    found = (
        [findings.Finding(key, started, note) for key in keys]
        if file is None
        else findings.read_findings(file, note=note)
    )
    summary = asyncio.run(resolution.resolve(ledger, found))
    console.summary(summary)

    if given["as_json"]:
        console.json(summary.as_dict())

    console.next_command(summary)
    return 0


def _check_resolve(
    keys: tuple[str, ...], started: str | None, file: Path | None, *, not_started: bool
) -> None:
    if file is not None and (keys or started or not_started):
        raise click.UsageError("--from stands alone: the file names keys and findings")

    if file is None and (not keys or (started is not None) is not_started is False):
        raise click.UsageError("name at least one KEY, and --started JOBRUNID or --not-started")

    if started is not None and len(keys) > 1:
        raise click.UsageError("--started takes one KEY: two rows never share a run")


@_command("jobs", examples="  deslaunch jobs\n  deslaunch jobs --target acme --json > jobs.json")
@click.option("--target", metavar="NAME", help="Whose jobs, where there are several targets.")
@_options(_connection, _output)
def jobs(**given: Any) -> int:
    """List the organisation's jobs and their JobRunParameters.

    What --json prints is what --schema reads.
    """
    from deslaunch import wire  # noqa: PLC0415  # not needed for --help

    console = _console(given)
    client = _only(_clients(given, needs_token=True), given["target"])

    async def work(_: Interrupt) -> int:
        async with client:
            found = await client.query_jobs()

        if given["as_json"]:
            console.json({"jobs": wire.encode_jobs(found)})
        else:
            console.jobs(found)

        return 0

    return _run(work)


@_command(
    "template",
    examples=(
        "  deslaunch template 43f87799-62c6-4001-92f9-6b3df816a6d6 -o night.csv\n"
        "  deslaunch template 43f87799-62c6-4001-92f9-6b3df816a6d6 --format jsonl"
    ),
)
@click.argument("job_id", metavar="JOBID")
@click.option("--format", type=_FORMAT, help="Default: by the output's name, else csv.")
@click.option("-o", "--output", type=_FILE, help="A new file. Default: stdout.")
@click.option("--target", metavar="NAME", help="Whose job, where there are several targets.")
@click.option("--schema", type=_FILE, help="Jobs in QueryJobs' form; DES is not asked.")
@_options(_connection, _volume)
def template(
    job_id: str,
    format: Literal["jsonl", "csv"] | None,  # noqa: A002  # the option's name
    output: Path | None,
    **given: Any,
) -> int:
    """Write a manifest to begin with: one example row for the job JOBID.

    What each parameter takes is told on stderr. The row passes the check as it is; give it
    values of your own before you launch it.
    """
    from deslaunch import template as templates  # noqa: PLC0415  # not needed for --help

    console = _console(given)
    form = format or ("jsonl" if output and output.suffix in {".jsonl", ".ndjson"} else "csv")
    job = _job(_jobs_of(given), job_id)
    text = templates.manifest_of(job, form, given["target"] or DEFAULT_TARGET)

    if output is None:
        console.data(text.removesuffix("\n"))
    else:
        _write_new(output, text)

    for line in templates.explanation(job, form):
        console.say(line)

    if output is not None:
        console.say(f"the manifest is in {output}; check it with: deslaunch check {output}")

    return 0


def _jobs_of(given: Mapping[str, Any]) -> list[Job]:
    """Return the jobs of the schema file, where one is given, or else those that DES names."""
    if given["schema"] is not None:
        from deslaunch.schema_cache import read_schema_file  # noqa: PLC0415  # not for --help

        return read_schema_file(given["schema"])

    client = _only(_clients(given, needs_token=True), given["target"])
    found: list[Job] = []

    async def work(_: Interrupt) -> int:
        async with client:
            found.extend(await client.query_jobs())

        return 0

    _run(work)
    return found


def _job(jobs: Sequence[Job], job_id: str) -> Job:
    for job in jobs:
        if job.job_id == job_id.lower():
            return job

    known = [f"{job.job_id} ({job.name})" for job in jobs]
    near = get_close_matches(job_id.lower(), [job.job_id for job in jobs], n=1)
    meant = f": did you mean {near[0]}?" if near else ""
    raise ConfigurationError(
        f"there is no job {job_id}{meant}",
        hint=f"there are {', '.join(known[:5]) or 'none'}; deslaunch jobs lists all of them",
    )


def _write_new(path: Path, text: str) -> None:
    """Write a file that is not there yet: what a person wrote is never written over.

    Raises:
        ConfigurationError: it is there, or can't be written.
    """
    from deslaunch import durable  # noqa: PLC0415  # not needed for --help

    if path.exists():
        raise ConfigurationError(f"{path} exists", hint="name a new file with -o")

    try:
        durable.write_atomically(path, text.encode())
    except OSError as exc:
        raise ConfigurationError(
            f"{path} can't be written: {exc.strerror}", hint="name another file with -o"
        ) from exc


def _only(clients: Clients, name: str | None) -> DesClient:
    """Return the client that is asked for; the only one, or the default, where none is named."""
    named = _named(clients, name)
    chosen = next(iter(named)) if name is None and len(named) == 1 else name or DEFAULT_TARGET

    if chosen not in named:
        raise ConfigurationError(
            f"there is no target {chosen}", hint=f"pass --target and one of {', '.join(named)}"
        )

    return named[chosen]


@_command("targets", examples="  deslaunch targets\n  deslaunch targets --config acme.toml --json")
@_options(_connection, _output)
def targets(**given: Any) -> int:
    """Ask each target for a token and for its jobs, and say which of them work.

    It exits with 0 where all work, with 6 where a login or a token is refused, else with 5 where
    there is no usable answer, else with 2.
    """
    from deslaunch.targets import check_targets  # noqa: PLC0415  # aiohttp is slow to import

    console = _console(given)
    clients = _clients(given, needs_token=True)

    async def work(_: Interrupt) -> int:
        async with AsyncExitStack() as stack:
            reports = await check_targets(_named(await _opened(stack, clients)))

        code = max(report.exit_code for report in reports)

        if given["as_json"]:
            console.json({"targets": [report.as_dict() for report in reports], "exitCode": code})
        else:
            console.targets(reports)

        return code

    return _run(work)


@_command(
    "simulate",
    examples=(
        "  deslaunch simulate --port 8080 --log runs.jsonl\n"
        "  DESLAUNCH_SIMULATE_TOKENS='one two' deslaunch simulate --faults faults.json\n"
        "  DES_ORG_ID=BISTRO DES_PASSWORD=secret deslaunch simulate --oauth --token-seconds 60"
    ),
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Default: a free one.")
@click.option("--jobs", "jobs_file", type=_FILE, help="Default: two real templates.")
@click.option("--faults", type=_FILE, help="A fault script.")
@click.option("--log", type=_FILE, help="Every run is appended here before it is answered.")
@click.option("--oauth", is_flag=True, help="Accept only tokens of its own token endpoint.")
@click.option(
    "--token-seconds",
    type=click.FloatRange(0, min_open=True),
    default=28_800,
    show_default=True,
    metavar="SECONDS",
    help="How long a token of the token endpoint is good.",
)
def simulate(
    host: str,
    port: int,
    jobs_file: Path | None,
    faults: Path | None,
    log: Path | None,
    oauth: bool,  # noqa: FBT001  # click passes a flag's value by name
    token_seconds: float,
) -> int:
    """Run a local DES that starts nothing, and print its base URL.

    It accepts the tokens that DESLAUNCH_SIMULATE_TOKENS lists (default: simulated). It is an
    auth server too, which takes any login; but where DES_ORG_ID, DES_CLIENT_ID,
    DES_CLIENT_SECRET, DES_USERNAME or DES_PASSWORD is set for it, only that one.
    """
    from deslaunch import simulator  # noqa: PLC0415  # not needed for --help

    console = _console({})
    tokens = os.environ.get("DESLAUNCH_SIMULATE_TOKENS", "" if oauth else "simulated").split()
    fields = ("org_id", "client_id", "client_secret", "username", "password")
    login = {name: os.environ.get(f"DES_{name.upper()}", "") for name in fields}

    async def work() -> int:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)

        made = simulator.Simulator(
            jobs=simulator.load_jobs(jobs_file) if jobs_file else simulator.DEFAULT_JOBS,
            script=simulator.load_script(faults) if faults else None,
            log=log,
            tokens=tokens,
            login={name: value for name, value in login.items() if value},
            token_seconds=token_seconds,
            host=host,
            port=port,
        )
        await simulator.serve(made, console.data, stop)
        return 0

    try:
        return _in_loop(work())
    except (simulator.SimulatorError, OSError) as exc:
        raise ConfigurationError(
            f"the simulator can't start: {exc}", hint="see: deslaunch simulate --help"
        ) from exc


@_command(
    "completion",
    examples=(
        "  deslaunch completion bash > ~/.local/share/bash-completion/completions/deslaunch\n"
        "  deslaunch completion zsh > ~/.zfunc/_deslaunch    # with ~/.zfunc in fpath\n"
        "  deslaunch completion fish > ~/.config/fish/completions/deslaunch.fish"
    ),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> int:
    """Print the script with which SHELL completes commands, options, choices and files.

    Write it where the shell looks for such scripts, as below, and open a new shell. It asks
    deslaunch itself, so it need not be made anew after an update; bash must be 4.4 or newer.
    """
    from click.shell_completion import get_completion_class  # noqa: PLC0415  # not for --help

    kind = get_completion_class(shell)
    assert kind is not None
    made = kind(command_line, {}, "deslaunch", "_DESLAUNCH_COMPLETE")
    _console({}).data(made.source().strip())
    return 0


# What the commands share.

_OF_CHECK: Final = (
    "format",
    "job_id",
    "target",
    "allow_duplicates",
    "allow_repeated_auto",
    "schema_max_age",
)
_OF_WATCH: Final = (
    "concurrency",
    "rate",
    "interval",
    "max_interval",
    "watch_timeout",
    "max_wait",
    "give_up_after",
)
_OF_LAUNCH: Final = (
    *_OF_CHECK,
    "shard",
    "skip_invalid",
    "concurrency",
    "rate",
    "limit",
    "max_attempts",
    "max_wait",
    "give_up_after",
    "drain_timeout",
    "max_errors",
    "retry_5xx",
    "retry_rejected",
    "retry_unknown",
    "accept_new_rows",
)


def _watch_options(given: Mapping[str, Any]) -> WatchOptions:
    chosen: Any = {name: given[name] for name in _OF_WATCH if given[name] is not None}
    return cast("WatchOptions", chosen | {"allow_new_origin": given["base_url"] is not None})


def _chosen(given: Mapping[str, Any], names: Sequence[str]) -> LaunchOptions:
    """Return the options that are the library's; what was not given is left out."""
    chosen: Any = {name: given[name] for name in names if given[name] is not None}

    if given["base_url"] is not None:
        chosen["allow_new_origin"] = True  # the user names where the batch goes on

    return cast("LaunchOptions", chosen)


def _repeated(given: Mapping[str, Any]) -> list[str]:
    """Return the options that a resume must be given again: the ledger does not keep them."""
    words = []

    for name in ("config", "env_file", "base_url", "schema"):
        if given.get(name) is not None:
            words += [f"--{name.replace('_', '-')}", str(given[name])]

    flags = ("--allow-http" if given["allow_http"] else "", "--watch" if given.get("watch") else "")
    return [*words, *filter(None, flags)]


def _console(given: Mapping[str, Any]) -> Console:
    from deslaunch.console import Console  # noqa: PLC0415  # not needed for --help

    return Console(
        quiet=given.get("quiet", False),
        verbose=given.get("verbose", False),
        log=given.get("log_format") == "json",
    )


def _cache() -> str | None:
    return os.environ.get("DESLAUNCH_CACHE_DIR") or None


def _clients(given: Mapping[str, Any], *, needs_token: bool = False) -> Clients:
    """Return the clients that file, environment and options describe, not yet open.

    Where there is no file, the one client is that of the rows that name no target, however
    ``--target`` calls it.

    Raises:
        ConfigurationError: no base URL, two token sources, or none where one is needed.
    """
    from deslaunch.config import merged_targets, target_from_environment  # noqa: PLC0415
    from deslaunch.targets import client_of  # noqa: PLC0415  # aiohttp is slow to import

    of_file = _config_of(given)
    base_url = given["base_url"]
    connection = _connection_of(given)

    if of_file:
        merged = merged_targets(of_file, os.environ, base_url=base_url, target=given.get("target"))
        return {name: client_of(target, connection) for name, target in merged.items()}

    found = target_from_environment(os.environ, base_url=base_url)
    client = client_of(found, connection)

    if needs_token and not found.credentials:
        raise ConfigurationError(
            "there is no token, and so nothing was sent",
            hint="set DES_TOKEN, DES_TOKEN_FILE or DES_TOKEN_COMMAND, or DES_ORG_ID and the rest "
            "of a login; or name targets in a file (--config)",
        )

    return client


def _config_of(given: Mapping[str, Any]) -> dict[str, TargetSettings]:
    """Return the targets of the file that is named, or else of the user's, if there is one."""
    from deslaunch.config_file import default_config, read_config  # noqa: PLC0415  # not for --help

    path = given["config"] or default_config()
    exists = os.path.exists(path)  # noqa: PTH110  # Path's raises where a home is not ours
    return read_config(path) if given["config"] is not None or exists else {}


def _connection_of(given: Mapping[str, Any]) -> Connection:
    """Return how to connect; a time-out that nobody gave leaves a target's own alone."""
    from deslaunch.targets import Connection  # noqa: PLC0415  # aiohttp is slow to import

    return Connection(
        timeout=_unless_default("timeout", given),
        connect_timeout=_unless_default("connect_timeout", given),
        allow_http=given["allow_http"],
        proxy=_proxy,
    )


def _unless_default(name: str, given: Mapping[str, Any]) -> Any:
    source = click.get_current_context().get_parameter_source(name)
    return None if source is ParameterSource.DEFAULT else given[name]


def _named(clients: Clients, name: str | None = None) -> Mapping[str, DesClient]:
    """Return clients by target; the one that has no name takes the one that it is given."""
    from deslaunch.client import DesClient  # noqa: PLC0415  # aiohttp is slow to import

    return {name or DEFAULT_TARGET: clients} if isinstance(clients, DesClient) else clients


async def _opened(stack: AsyncExitStack, clients: Clients) -> Clients:
    """Open one client, or each of several, until the stack is left."""
    for client in _named(clients).values():
        await stack.enter_async_context(client)

    return clients


def _proxy(base_url: str) -> str | None:
    """Return the proxy that HTTPS_PROXY, HTTP_PROXY and NO_PROXY name for a URL, or None.

    None for this machine's own addresses: what is sent to them in the clear must not leave it.
    """
    from deslaunch.urls import is_loopback  # noqa: PLC0415  # not needed for --help

    parts = urlsplit(base_url)
    host = parts.hostname or ""
    proxies = getproxies_environment()
    direct = is_loopback(host) or proxy_bypass(host, proxies)
    return None if direct else proxies.get(parts.scheme)


@contextmanager
def _on_disk(manifest: str, form: str | None) -> Iterator[Path]:
    """Give the manifest's path; one from stdin is kept for the time of a check.

    Stdin is read before there is an event loop: there, no signal could end the reading.
    """
    if manifest != "-":
        yield Path(manifest)
        return

    if form is None:
        raise click.UsageError("a manifest from stdin needs --format")

    with tempfile.TemporaryDirectory(prefix="deslaunch-") as folder:
        path = Path(folder, f"stdin.{form}")

        with path.open("wb") as kept:
            shutil.copyfileobj(sys.stdin.buffer, kept)

        yield path


def _run(work: Callable[[Interrupt], Coroutine[Any, Any, int]]) -> int:
    """Run a command's work, with SIGINT, SIGTERM and SIGHUP as its interrupts.

    The first signal drains a launch, the second gives up what is in flight. Before anything
    can have been sent, the first one ends the command.
    """
    from deslaunch.session import Interrupt  # noqa: PLC0415  # aiohttp is slow to import

    interrupt = Interrupt()
    signals: list[int] = []

    async def main() -> int:
        task = asyncio.current_task()
        assert task is not None

        def on_signal(number: int) -> None:
            signals.append(number)

            if interrupt.attached:
                interrupt(number)
            else:
                task.cancel()

        for number in _interrupts():
            asyncio.get_running_loop().add_signal_handler(number, on_signal, number)

        return await work(interrupt)

    try:
        return _in_loop(main())
    except asyncio.CancelledError:
        raise Interrupted("interrupted", signum=signals[0]) from None


def _interrupts() -> list[signal.Signals]:
    """Return the signals that end a command; a hang-up does not where nohup had it ignored."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([] if ignored else [signal.SIGHUP])]


def _in_loop(work: Coroutine[Any, Any, int]) -> int:
    gc.freeze()  # what was imported stays: no collection needs to look at it again
    gc.set_threshold(_COLLECT_AFTER)

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(work)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415  # other Pythons do without it
    except ImportError:
        return None

    return uvloop.new_event_loop


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: the arguments; default: the process's own.
    """
    if sys.platform == "win32":
        click.echo("error: deslaunch runs on Linux and macOS only", err=True)
        return 2

    words = list(sys.argv[1:] if argv is None else argv)

    try:
        return int(
            command_line.main(words, prog_name="deslaunch", standalone_mode=False, obj=words) or 0
        )
    except click.ClickException as exc:
        exc.show()
        return exc.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 128 + signal.SIGINT
    except DeslaunchError as exc:
        return _refused(exc, words, {})
    except Exception:  # noqa: BLE001  # the last stop of a bug
        traceback.print_exc()
        click.echo("error: this is a bug in deslaunch; please report it", err=True)
        return _EXIT_BUG


def _refused(error: DeslaunchError, argv: Sequence[str], given: Mapping[str, Any]) -> int:
    """Print an error that ended a command before anything was sent; return the exit code."""
    console = _console(given)
    console.error(error, _exit_code(error))

    if isinstance(error, DesError | CredentialsRefused | Interrupted):
        console.insist(f"nothing was sent; go on with: deslaunch {shlex.join(argv)}")

    return _exit_code(error)


def _exit_code(error: DeslaunchError) -> int:
    if isinstance(error, Interrupted):
        return 128 + (error.signum or signal.SIGINT)

    return next(code for kind, code in _EXIT_CODES if isinstance(error, kind))


def run() -> None:
    """Run one command and end the process: the entry point."""
    sys.exit(main())
