"""``status``, ``results``, ``log``, ``resolve`` and ``report``: what a ledger says."""

from __future__ import annotations

import asyncio
import io
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import click

from deslaunch.cli import options, render
from deslaunch.cli.terminal import run_work
from deslaunch.errors import ConfigurationError, Declined
from deslaunch.model import RowState, count

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence
    from typing import BinaryIO

    from deslaunch.cli.options import Given
    from deslaunch.cli.terminal import Interrupts, Printer
    from deslaunch.events import Summary, WatchSummary
    from deslaunch.ledger.findings import Finding, Verdict
    from deslaunch.ledger.ledger import Ledger
    from deslaunch.ledger.reading import LogEntry

SHOWN_ROWS: Final = 20
_EXIT_PENDING: Final = 5
_FOLLOW_EVERY: Final = 1.0  # seconds
_OVERLAP_MS: Final = 10_000
"""A turn is committed after what it tells of happened: so much is read again, and told once."""

_RUNS: Final = ["failed", "succeeded", "unfinished"]
_STATES: Final = [*(str(state) for state in RowState if state is not RowState.SENDING), "inFlight"]


def _with_ledger(given: Given, work: Callable[[Ledger], Coroutine[Any, Any, int]]) -> int:
    """Read a ledger; it may be at work."""
    from deslaunch.ledger.ledger import open_ledger  # noqa: PLC0415

    async def read(_: Interrupts) -> int:
        async with await open_ledger(given["ledger"]) as ledger:
            return await work(ledger)

    return run_work(read)


@contextmanager
def _stream(given: Given, ledger: Ledger, printer: Printer) -> Iterator[BinaryIO]:
    """Give the file of ``-o``, which takes its place as a whole, or stdout."""
    from deslaunch.report.output import open_output  # noqa: PLC0415  # not needed for --help

    if given["output"] is None:
        with printer.binary() as stream:
            yield stream
    else:
        manifest, force = ledger.batch.manifest, bool(given["force"])

        with open_output(
            given["output"], ledger=ledger.place, manifest=manifest, force=force
        ) as stream:
            yield stream


@options.command(
    "status",
    options.LEDGER,
    options.flag("--unknown", "Write the unknown rows as a file to fill in, for resolve --from."),
    options.file("--output -o", "With --unknown: a CSV file. Default: stdout."),
    options.FORCE,
    options.OUTPUT,
)
def status(given: Given) -> int:
    """Say how the batch of LEDGER stands, why it stopped, and list its unknown rows.

    Examples:
        deslaunch status night.ledger.db --json
        deslaunch status night.ledger.db --unknown -o findings.csv
    """
    if given["output"] is not None and not given["unknown"]:
        raise click.UsageError("-o goes with --unknown")

    printer = given.printer

    async def work(ledger: Ledger) -> int:
        if given["unknown"]:
            return await _write_unknown(given, ledger, printer)

        runs = await _runs_of(ledger, given)

        if given["as_json"]:
            printer.json(_as_status(runs.batch))
        else:
            await _print_status(ledger, runs, printer)

        return 0

    return _with_ledger(given, work)


def _as_status(summary: Summary) -> dict[str, object]:
    """Return a summary whose exit code is 5 where rows are pending, whatever stopped them."""
    left = summary.counts.pending or summary.counts.in_flight
    return summary.as_dict() | ({"exitCode": _EXIT_PENDING} if left else {})


async def _runs_of(ledger: Ledger, given: Given) -> WatchSummary:
    """Return how a batch and its runs stand; the ledger is called as it was on the command line."""
    from deslaunch.launch import batch  # noqa: PLC0415  # not needed for --help

    runs = await batch.watch_summary_of(ledger)
    return replace(runs, batch=replace(runs.batch, ledger=given["ledger"]))


async def _print_status(ledger: Ledger, runs: WatchSummary, printer: Printer) -> None:
    summary = runs.batch

    for line in (*render.summary_lines(summary), *render.watched_lines(runs)):
        printer.data(line)

    launcher = await ledger.launcher()

    if launcher is not None:
        since = "" if launcher.since_ms is None else f" since {render.utc(launcher.since_ms)}"
        printer.data(f"at work: process {launcher.pid} on {launcher.host}{since}")
    elif summary.counts.pending:
        for stop in summary.stops:
            printer.data(render.stop_line(stop))

    await _print_unknown(ledger, summary.counts.unknown, printer)

    for line in render.command_lines(_commands(ledger, runs, is_at_work=launcher is not None)):
        printer.insist(line)


def _commands(ledger: Ledger, runs: WatchSummary, *, is_at_work: bool) -> render.Commands:
    """Return what to do next, as the ledger knows how it was begun."""
    repeated = options.kept_words(ledger.batch.options)

    if is_at_work:
        return []

    commands = render.watch_commands(runs, repeated) if render.is_watched(runs) else []
    return commands + render.next_commands(runs.batch, repeated, is_listed=True)


async def _print_unknown(ledger: Ledger, unknown: int, printer: Printer) -> None:
    """Print the first unknown rows with what is needed to look them up."""
    shown = 0

    async for rows in ledger.unknown_rows():
        for row in rows[: SHOWN_ROWS - shown]:
            shown += 1

            for line in render.unknown_lines(row):
                printer.data(line)

        if shown >= SHOWN_ROWS:
            break

    if unknown > shown:
        printer.data(f"… and {count(unknown - shown, 'unknown row')} more")


async def _write_unknown(given: Given, ledger: Ledger, printer: Printer) -> int:
    from deslaunch.ledger.findings import write_unknown  # noqa: PLC0415  # not needed for --help

    rows = [row async for portion in ledger.unknown_rows() for row in portion]

    with _stream(given, ledger, printer) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
        write_unknown(text, rows)
        text.detach()  # which flushes, and leaves the stream open

    if given["output"] is not None:
        printer.say(f"{count(len(rows), 'unknown row')}: {given['output']}; fill in the column as")

    return 0


@options.command(
    "results",
    options.LEDGER,
    options.file("--output -o", "Default: stdout."),
    options.FORMAT,
    options.value("--state", "Only rows in this state.", type=click.Choice(_STATES)),
    options.value("--run", "Only rows with such a run.", type=click.Choice(_RUNS)),
    options.value("--key keys", "Only this row; repeatable.", multiple=True, metavar="KEY"),
    options.flag("--with-manifest", "Also what each row says; ours: deslaunch.*"),
    options.file("--split", "Write DIR/failed.csv and so on instead.", metavar="DIR"),
    options.FORCE,
    options.VOLUME,
)
def results(given: Given) -> int:
    """Write what became of every row, in manifest order.

    What --with-manifest and --split write is no new batch: run refuses it. Fix rows there, and
    take them into this batch: deslaunch resume LEDGER --corrections options.FILE.

    Examples:
        deslaunch results night.ledger.db -o night.results.csv
        deslaunch results night.ledger.db --format jsonl | jq -r .jobRunId
        deslaunch results night.ledger.db --state rejected --with-manifest -o fix.csv
        deslaunch results night.ledger.db --run failed
        deslaunch results night.ledger.db --split night.results
    """
    from deslaunch.report.results import (  # noqa: PLC0415  # not needed for --help
        Choice,
        split_results,
        write_results,
    )

    if given["split"] is not None and (given["output"] or given["format"]):
        raise click.UsageError("--split names its files itself, all of them CSV")

    printer, output, force = given.printer, given["output"], given["force"]
    choice = Choice(given["state"], given["run"], given["keys"] or None)
    form = options.form_of(output, given["format"])

    async def work(ledger: Ledger) -> int:
        if given["split"] is not None:
            written = await split_results(ledger, given["split"], choice=choice, force=force)

            for name, rows in written.items():
                printer.say(f"{given['split'] / name}.csv: {count(rows, 'row')}")

            return 0

        with_manifest = given["with_manifest"]

        if output is None:
            with printer.binary() as stream:
                await write_results(
                    ledger, stream, form=form, choice=choice, with_manifest=with_manifest
                )
        else:
            rows = await write_results(
                ledger, output, form=form, choice=choice, with_manifest=with_manifest, force=force
            )
            printer.say(f"{count(rows, 'row')}: {output}")

        return 0

    return _with_ledger(given, work)


@options.command(
    "log",
    options.LEDGER,
    options.flag("--follow", "Go on while the ledger grows, until a signal."),
    options.value("--key", "Only this row's.", metavar="KEY"),
    options.VOLUME,
)
def log(given: Given) -> int:
    """Print every attempt and event of the batch of LEDGER, a JSON object a line, in time order.

    Examples:
        deslaunch log night.ledger.db --key store-17
        deslaunch log night.ledger.db --follow | jq -c 'select(.kind != "attempt")'
    """
    printer = given.printer

    async def work(ledger: Ledger) -> int:
        after, recent = -1, dict[str, int]()

        while True:
            async for entries in ledger.log(key=given["key"], after_ms=after):
                for entry in entries:
                    line = str(entry)

                    if line not in recent:
                        recent[line] = entry.ms
                        printer.json(_log_line(entry))

                after = max(after, entries[-1].ms - _OVERLAP_MS)
                recent = {line: ms for line, ms in recent.items() if ms > after}

            if not given["follow"]:
                return 0

            await asyncio.sleep(_FOLLOW_EVERY)

    return _with_ledger(given, work)


def _log_line(entry: LogEntry) -> dict[str, Any]:
    return {
        "utc": render.utc(entry.ms),
        "kind": entry.kind,
        "session": entry.session,
        "key": entry.key,
        "target": entry.target,
        **{_name_of(name): _utc_of(name, value) for name, value in entry.details.items()},
    }


def _name_of(name: str) -> str:
    return f"{name.removesuffix('Ms')}Utc" if name.endswith("Ms") else name


def _utc_of(name: str, value: Any) -> Any:
    return render.utc(value) if name.endswith("Ms") and value is not None else value


@options.command(
    "resolve",
    options.LEDGER,
    options.argument("keys", metavar="[KEY]...", nargs=-1),
    options.value("--started", "The row started this run.", metavar="JOBRUNID"),
    options.flag("--not-started", "The rows started nothing: resume may send them."),
    options.flag("--unknown", "Take an earlier finding back."),
    options.file("--from findings", "What status --unknown wrote, filled in; CSV or JSONL."),
    options.value("--note", "Kept with each finding.", default=""),
    options.flag("--early", "Take --not-started although DES may list a run later than now."),
    options.YES,
    options.OUTPUT,
)
def resolve(given: Given) -> int:
    """Record what a person found out about unknown or failed rows of LEDGER, all or nothing.

    A finding can be changed as long as its row was not sent again. Before DES surely lists a
    row's run, --not-started asks on a terminal, and needs --early elsewhere.

    Examples:
        deslaunch resolve night.ledger.db KEY --not-started --note 'not in DES, 8:40'
        deslaunch resolve night.ledger.db KEY --started JOBRUNID
        deslaunch resolve night.ledger.db --from findings.csv
    """
    printer, found = given.printer, _findings_of(given)

    async def work(ledger: Ledger) -> int:
        resolved = await ledger.resolve(found, early=given["early"])

        if resolved.early:
            await _check_early(resolved.early, given, printer)
            resolved = await ledger.resolve(found, early=True)

        summary = (await _runs_of(ledger, given)).batch
        same = f", {resolved.same:,} known already" if resolved.same else ""
        printer.say(f"recorded: {count(resolved.changed, 'finding')}{same}")

        if given["as_json"]:
            printer.outcome_json(_as_status(summary))
            return 0

        repeated = options.kept_words(ledger.batch.options)

        for line in (
            *render.summary_lines(summary),
            *render.command_lines(render.next_commands(summary, repeated)),
        ):
            printer.say(line)

        return 0

    return _with_ledger(given, work)


def _findings_of(given: Given) -> Sequence[Finding]:
    from deslaunch.ledger.findings import Finding, read_findings  # noqa: PLC0415  # not for --help

    keys, started = given["keys"], given["started"]
    verdicts = [started is not None, given["not_started"], given["unknown"]]

    if given["findings"] is not None:
        if keys or any(verdicts):
            raise click.UsageError("--from stands alone: the file names keys and findings")

        return read_findings(given["findings"], note=given["note"])

    if not keys or sum(verdicts) != 1:
        raise click.UsageError(
            "name at least one KEY, and --started JOBRUNID, --not-started or --unknown"
        )

    if started is not None and len(keys) > 1:
        raise click.UsageError("--started takes one KEY: two rows never share a run")

    verdict: Verdict = "notStarted" if given["not_started"] else "unknown"

    if started is not None:
        verdict = "started"

    return [Finding(key, verdict, started, given["note"]) for key in keys]


async def _check_early(early: Sequence[tuple[str, int]], given: Given, printer: Printer) -> None:
    """Ask whether to record all the same what nobody can be sure of yet.

    Raises:
        ConfigurationError: nobody can be asked.
        Declined: the reply was no.
    """
    keys = ", ".join(key for key, _ in early[:SHOWN_ROWS])
    more = " …" if len(early) > SHOWN_ROWS else ""
    until = render.utc(max(ms for _, ms in early))
    told = (
        f"it is too early to say that nothing was started for {keys}{more}: DES may list a run "
        f"until {until}; if it does, resume starts a second one"
    )

    if given["yes"] or not printer.can_ask():
        raise ConfigurationError(told, hint="wait until then, or pass --early")

    printer.warn(told)

    if not await printer.ask("Record all the same that nothing was started?"):
        raise Declined("nothing was recorded")


@options.command(
    "report",
    options.LEDGER,
    options.file("--output -o", "The page, an .html file.", required=True),
    options.FORCE,
    options.VOLUME,
)
def report(given: Given) -> int:
    """Write a page for a browser: counts, times, causes, what to do, and every row.

    One file that loads nothing from anywhere. Needs Jinja2, which the extra "report" brings.

    Examples:
        deslaunch report night.ledger.db -o night.report.html
    """
    try:
        from deslaunch.report.page import write_report  # noqa: PLC0415  # an extra brings it
    except ModuleNotFoundError as exc:
        if exc.name not in {"jinja2", "markupsafe"}:
            raise

        raise ConfigurationError(
            "a report needs Jinja2, which is not there",
            hint="install it with: pip install 'deslaunch[report]'",
        ) from exc

    printer, output = given.printer, given["output"]

    async def work(ledger: Ledger) -> int:
        commands = _commands(ledger, await _runs_of(ledger, given), is_at_work=False)
        await write_report(ledger, output, commands=commands, force=given["force"])
        printer.say(f"the report is in {output}")
        return 0

    return _with_ledger(given, work)
