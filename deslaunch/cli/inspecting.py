"""The commands for one batch that need no DES.

``status``, ``results``, ``log`` and ``report`` read a ledger. ``resolve``, ``withdraw`` and
``control`` write to it, also while a launcher is at work.
"""

import asyncio
import io
from collections.abc import Iterable, Sequence
from contextlib import suppress
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final

import click

from deslaunch import errors
from deslaunch.cli import options, render
from deslaunch.cli.batches import list_batches
from deslaunch.cli.options import Given
from deslaunch.events import Control, Summary, WatchSummary
from deslaunch.ledger.place import is_shared, parse_place
from deslaunch.model import RowState, count, place_word, printed, utc
from deslaunch.settings import OPTIONS

if TYPE_CHECKING:
    from deslaunch.ledger.changes import Finding, Verdict
    from deslaunch.ledger.ledger import Ledger

SHOWN_ROWS: Final = 20
_EXIT_PENDING: Final = 5
_FOLLOW_EVERY: Final = 1.0  # seconds
_OVERLAP_MS: Final = 10_000
"""A turn commits entries of earlier times: ``--follow`` reads so far back, and skips repeats."""

_RUNS: Final = ["failed", "succeeded", "unfinished"]
_STATES: Final = [*(str(state) for state in RowState if state is not RowState.SENDING), "inFlight"]


async def _open(given: Given) -> "Ledger":
    """Open the ledger for reading; a launcher may be at work."""
    from deslaunch.ledger.ledger import open_ledger  # noqa: PLC0415

    return await open_ledger(given["ledger"])


@options.command(
    "status",
    options.LEDGER,
    options.flag("--unknown", "Write the unknown rows as a CSV file for resolve --from."),
    options.file("--output -o", "With --unknown: a CSV file. Default: stdout."),
    options.FORCE,
    *options.OUTPUT,
)
async def status(given: Given) -> int:
    """Show the state of the batch of LEDGER, and what to do next.

    It shows why the batch stopped, its unknown rows, and the next commands. For a database (a URL
    without #NAME) it lists the batches.

    Examples:
        deslaunch status night.ledger.db
        deslaunch status night.ledger.db --unknown -o findings.csv
    """
    if given["output"] is not None and not given["unknown"]:
        raise click.UsageError("-o needs --unknown")

    if is_shared(given["ledger"]) and not parse_place(given["ledger"]).batch:
        await list_batches(given)
        return 0

    async with await _open(given) as ledger:
        is_copy = await _warn_of_copy(given, ledger)

        if given["unknown"]:
            await _write_unknown(given, ledger)
        elif given["as_json"]:
            given.printer.json(_as_status((await _runs_of(ledger, given)).batch))
        else:
            await _print_status(given, ledger, is_copy=is_copy)

    return 0


async def _warn_of_copy(given: Given, ledger: "Ledger") -> bool:
    """Warn, and return True, if a ledger is an older copy, which ``resume`` refuses."""
    from deslaunch.launch.witness import find_copy  # noqa: PLC0415  # not needed for --help
    from deslaunch.ledger.history import History  # noqa: PLC0415

    if reasons := await find_copy(ledger, History.of_user(lambda _: None)):
        given.printer.warn("; ".join(reasons))

    return reasons is not None


def _as_status(summary: Summary) -> dict[str, object]:
    """Return a summary for ``--json``; its exit code is 5 if rows are left, whatever the cause."""
    left = summary.counts.pending or summary.counts.in_flight
    return summary.as_dict() | ({"exitCode": _EXIT_PENDING} if left else {})


async def _runs_of(ledger: "Ledger", given: Given) -> WatchSummary:
    """Return the counts of a batch and its runs, with the ledger as it was typed."""
    runs = await ledger.watch_summary()
    return runs._replace(batch=runs.batch._replace(ledger=given["ledger"]))


async def _print_status(given: Given, ledger: "Ledger", *, is_copy: bool) -> None:
    printer, runs = given.printer, await _runs_of(ledger, given)
    summary, launchers = runs.batch, await ledger.launchers()
    commands = [] if is_copy else _commands(ledger, runs)
    watched = render.watch_lines(runs) if runs.unfinished < runs.runs else ()
    printer.data(*render.summary_lines(summary), *watched)

    if launchers:
        printer.data(*map(render.launcher_line, launchers))
        commands = []

        if (control := await ledger.control()) != Control():
            printer.data(f"set by deslaunch control: {control}")

        if control.is_paused:
            commands = [("end the pause", printed("control", place_word(summary.ledger), "go"))]
    elif summary.counts.pending or summary.counts.unknown:
        printer.data(*render.stop_lines(summary, await ledger.sessions()))

    for row in (await anext(ledger.unknown_rows(), []))[:SHOWN_ROWS]:
        printer.data(*render.unknown_lines(row))

    if (rest := summary.counts.unknown - SHOWN_ROWS) > 0:
        printer.data(f"… and {count(rest, 'unknown row')} more")

    printer.insist(*render.command_lines(commands))


def _commands(ledger: "Ledger", runs: WatchSummary) -> list[tuple[str, str]]:
    """Return what to do next, with the options that the ledger keeps."""
    repeated = options.kept_words(ledger.batch.options)
    watched = render.watch_commands(runs, repeated) if runs.unfinished < runs.runs else ()
    return [*watched, *render.next_commands(runs.batch, repeated, is_listed=True)]


async def _write_unknown(given: Given, ledger: "Ledger") -> None:
    from deslaunch.ledger.changes import write_unknown  # noqa: PLC0415  # not needed for --help
    from deslaunch.report.results import open_beside  # noqa: PLC0415

    rows, text = [row async for portion in ledger.unknown_rows() for row in portion], io.StringIO()
    write_unknown(text, rows)
    content, printer, output = text.getvalue().encode(), given.printer, given["output"]

    if output is None:
        with printer.binary() as stream:
            stream.write(content)
    else:
        async with open_beside(ledger, output, force=given["force"], replaces_own=False) as stream:
            stream.write(content)

        printer.say(f"{count(len(rows), 'unknown row')}: {output}")

        if rows:
            printer.say('fill in the column "as": started, with its jobRunId, or not-started')


@options.command(
    "results",
    options.LEDGER,
    *options.WRITTEN,
    options.value(
        "--state states",
        "Only rows in this state; repeatable.",
        multiple=True,
        type=click.Choice(_STATES),
    ),
    options.value("--run", "Only rows whose run has this result.", type=click.Choice(_RUNS)),
    options.value("--key keys", "Only this row; repeatable.", multiple=True, metavar="KEY"),
    options.flag(
        "--with-manifest", "Write the manifest's columns, and results as deslaunch.* columns."
    ),
    options.file("--split", "Write DIR/failed.csv, DIR/rejected.csv …", metavar="DIR"),
    *options.VOLUME,
)
async def results(given: Given) -> int:
    """Write the outcome of every row, in manifest order.

    To correct rows, edit a file written with --with-manifest or --split and pass it to deslaunch
    resume LEDGER --corrections FILE; run refuses such a file.

    Examples:
        deslaunch results night.ledger.db -o night.results.csv
        deslaunch results night.ledger.db --state rejected --with-manifest -o fix.csv
    """
    from deslaunch.report import results as writing  # noqa: PLC0415  # not needed for --help

    if given["split"] is not None and (given["output"] or given["format"]):
        raise click.UsageError("--split takes no --output and no --format: it writes CSV files")

    printer, output, folder = given.printer, given["output"], given["split"]
    choice = writing.Choice(given["states"] or None, given["run"], given["keys"] or None)
    more: dict[str, Any] = {"choice": choice, "force": given["force"]}

    async with await _open(given) as ledger:
        if folder is not None:
            for name, rows in (await writing.split_results(ledger, folder, **more)).items():
                printer.say(f"{folder / name}.csv: {count(rows, 'row')}")

            return 0

        more["form"] = options.form_of(output, given["format"])
        more["with_manifest"] = given["with_manifest"]

        if output is not None:
            written = await writing.write_results(ledger, output, **more)
            printer.say(f"{count(written, 'row')}: {output}")
            return 0

        with printer.binary() as stream:
            written = await writing.write_results(ledger, stream, **more)

    if not written:
        printer.say("no row of the batch matches")

    return 0


@options.command(
    "log",
    options.LEDGER,
    options.flag("--follow", "Print new entries as they come, until a signal."),
    options.value("--key", "Only this row.", metavar="KEY"),
    *options.VOLUME,
)
async def log(given: Given) -> int:
    """Print every attempt and event of LEDGER as JSON lines.

    Examples:
        deslaunch log night.ledger.db --key store-17
        deslaunch log night.ledger.db --follow | jq -c 'select(.kind != "attempt")'
    """
    after, recent, follows = -1, dict[str, int](), given["follow"]

    try:
        while True:
            async with await _open(given) as ledger:
                async for entries in ledger.log(key=given["key"], after_ms=after):
                    for entry in entries:
                        if str(entry) not in recent:
                            recent[str(entry)] = entry.ms
                            given.printer.json(render.log_line(entry))

                    after = max(after, entries[-1].ms - _OVERLAP_MS)
                    recent = {line: ms for line, ms in recent.items() if ms > after}

            if not follows:
                if after < 0:
                    given.printer.say("no entry of the log matches")

                return 0

            # Closed between two looks: a reader keeps a launcher from leaving one file behind.
            await asyncio.sleep(_FOLLOW_EVERY)
    except asyncio.CancelledError:
        if not follows:
            raise

        return 128 + given.interrupts.signum  # the normal end: no message


@options.command(
    "resolve",
    options.LEDGER,
    click.Argument(["keys"], metavar="[KEY]...", nargs=-1),
    options.value("--started", "The row started this run.", metavar="JOBRUNID"),
    options.flag("--not-started", "The unknown attempts started no run; resume may send the row."),
    options.flag("--unknown", "Remove an earlier finding."),
    options.file("--from findings", "The file that status --unknown wrote, filled in."),
    options.value("--note", "Text to store with each finding.", default=""),
    options.flag("--early", "Accept --not-started although DES may still list a run."),
    options.YES,
    *options.OUTPUT,
)
async def resolve(given: Given) -> int:
    """Record what you found out about unknown rows of LEDGER.

    Failed rows are accepted too. All findings are recorded, or none. A finding can be changed until
    its row is sent again. For a started row, --not-started records that its other attempts started
    no run, and it is no longer a possible duplicate. As long as DES may still list a run,
    --not-started asks for confirmation on a terminal, and needs --early elsewhere.

    Examples:
        deslaunch resolve night.ledger.db KEY --not-started --note 'not in DES, 8:40'
        deslaunch resolve night.ledger.db KEY --started JOBRUNID
    """
    printer, findings = given.printer, await asyncio.to_thread(_read_findings, given)

    async with await _open(given) as ledger:
        resolved = await ledger.resolve(findings, early=given["early"])

        if resolved.early:
            await _confirm_early(resolved.early, given)
            resolved = await ledger.resolve(findings, early=True)

        summary = (await ledger.summary())._replace(ledger=given["ledger"])

        same = f", {resolved.same:,} unchanged" if resolved.same else ""
        printer.say(f"recorded: {count(resolved.changed, 'finding')}{same}")
        await _print_change(given, ledger, summary)

    return 0


async def _print_change(given: Given, ledger: "Ledger", summary: Summary) -> None:
    """Note a changed batch in the history, and print its counts and the next commands."""
    from deslaunch.launch.witness import note_change  # noqa: PLC0415  # not needed for --help
    from deslaunch.ledger.history import History  # noqa: PLC0415

    code = int(str(_as_status(summary)["exitCode"]))
    await note_change(History.of_user(given.printer.warn), ledger, summary, code)
    is_refused = await _warn_of_copy(given, ledger) or await ledger.launchers()

    if given["as_json"]:
        given.printer.outcome_json(_as_status(summary))
    else:
        kept = options.kept_words(ledger.batch.options)
        commands = [] if is_refused else render.next_commands(summary, kept)
        given.printer.say(*render.summary_lines(summary), *render.command_lines(commands))


def _read_findings(given: Given) -> Sequence["Finding"]:
    from deslaunch.ledger.changes import Finding, read_findings  # noqa: PLC0415  # not for --help

    keys, started = given["keys"], given["started"]
    chosen: list[Verdict] = [] if started is None else ["started"]
    chosen += ["notStarted"] if given["not_started"] else []
    chosen += ["unknown"] if given["unknown"] else []

    if given["findings"] is not None:
        if keys or chosen:
            raise click.UsageError(
                "--from takes no KEY, --started, --not-started or --unknown: the file has them"
            )

        if not (findings := read_findings(given["findings"], note=given["note"])):
            raise errors.ManifestError(
                f'{given["findings"]}: the column "as" is empty in every row',
                hint="write started (and the jobRunId), not-started or unknown into it",
            )

        return findings

    if not keys or len(chosen) != 1:
        raise click.UsageError(
            "expected at least one KEY, and one of --started JOBRUNID, --not-started, --unknown"
        )

    if started is not None and len(keys) > 1:
        raise click.UsageError("--started takes one KEY: a run belongs to one row")

    return [Finding(key, chosen[0], started, given["note"]) for key in keys]


async def _confirm_early(early: Sequence[tuple[str, int]], given: Given) -> None:
    """Ask whether to record ``--not-started`` while DES may still list a run.

    Raises:
        ConfigurationError: nobody can be asked.
        Declined: the reply was no.
    """
    keys = ", ".join(key for key, _ in early[:SHOWN_ROWS])
    more = " …" if len(early) > SHOWN_ROWS else ""
    until = utc(max(ms for _, ms in early))
    why = f"too early to record that no run was started for {keys}{more}: DES may still list a run "
    why += f"until {until}, and resume would start a second one"

    printer = given.printer

    if given["yes"] or not printer.can_ask():
        raise errors.ConfigurationError(why, hint="wait until then, or pass --early")

    printer.warn(why)

    if not await printer.ask("Record it anyway?"):
        raise errors.Declined("nothing was recorded")


@options.command(
    "withdraw",
    options.LEDGER,
    click.Argument(["keys"], metavar="[KEY]...", nargs=-1),
    options.flag("--all-pending", "All pending rows; with --undo, all withdrawn rows."),
    options.flag("--undo", "Restore the earlier state of withdrawn rows."),
    *options.OUTPUT,
)
async def withdraw(given: Given) -> int:
    """Withdraw rows of LEDGER: they are not sent.

    Rows that have a run or may have one are refused: then no row is withdrawn. A launcher may be at
    work.

    Examples:
        deslaunch withdraw night.ledger.db store-17 store-18
        deslaunch withdraw night.ledger.db --all-pending
    """
    keys, undo = given["keys"], given["undo"]

    if bool(keys) == given["all_pending"]:
        raise click.UsageError("expected at least one KEY, or --all-pending")

    async with await _open(given) as ledger:
        done = await ledger.withdraw(None if given["all_pending"] else keys, undo=undo)
        summary = (await ledger.summary())._replace(ledger=given["ledger"])

        same = f", {done.same:,} already" if done.same else ""
        word = "no longer withdrawn" if undo else "withdrawn"
        given.printer.say(f"{word}: {count(done.changed, 'row')}{same}")
        await _print_change(given, ledger, summary)

    return 0


@options.command(
    "control",
    options.LEDGER,
    click.Argument(["words"], metavar="WORD...", nargs=-1, required=True),
    *options.VOLUME,
)
async def control(given: Given) -> int:
    """Pause, stop or slow down the launchers at work on LEDGER.

    WORD is pause (send nothing new), go (end the pause), stop (drain and end with exit 5),
    concurrency=N or rate=R. Launchers apply it within about a second, and so do launchers that
    join later. It ends with the last launcher. Exits with 2 if no launcher is at work.

    Examples:
        deslaunch control night.ledger.db pause
        deslaunch control night.ledger.db concurrency=4 rate=2.5
    """
    pairs = [pair for word in given["words"] for pair in _parse_control(word)]
    changes = dict(pairs)

    if len(changes) < len(pairs):
        why = f"expected each setting once (pause and go are one), got {' '.join(given['words'])}"
        raise click.UsageError(why)

    async with await _open(given) as ledger:
        now = await ledger.tell_launchers(changes)

    given.printer.say(f"set: {str(now) or 'go'}")
    return 0


_CONTROLS: Final[dict[str, dict[str, Any]]] = {
    "pause": {"is_paused": True},
    "go": {"is_paused": False},
    "stop": {"is_stopped": True},
}


def _parse_control(word: str) -> Iterable[tuple[str, Any]]:
    """Return the fields of Control that a word sets.

    Raises:
        UsageError: the word is unknown, or its number is out of range.
    """
    if word in _CONTROLS:
        return _CONTROLS[word].items()

    name, _, text = word.partition("=")

    if name not in {"concurrency", "rate"}:
        near = get_close_matches(name, [*_CONTROLS, "concurrency", "rate"], n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        why = f"expected pause, go, stop, concurrency=N or rate=R, got {word!r}{meant}"
        raise click.UsageError(why)

    option = OPTIONS[name]

    with suppress(ValueError):
        if option.fits(number := option.kind(text)):
            return {name: number}.items()

    raise click.UsageError(f"{name} takes {option.range}, got {text!r}")


@options.command(
    "report",
    options.LEDGER,
    options.file("--output -o", "The HTML file to write.", required=True),
    options.FORCE,
    *options.VOLUME,
)
async def report(given: Given) -> int:
    """Write an HTML page: causes, times and every row.

    The file loads nothing else. It needs Jinja2: pip install 'deslaunch[report]'.

    Examples:
        deslaunch report night.ledger.db -o night.report.html
    """
    with errors.needs_extra("report", "a report"):
        from deslaunch.report.page import write_report  # noqa: PLC0415

    async with await _open(given) as ledger:
        is_refused = await _warn_of_copy(given, ledger) or await ledger.launchers()
        commands = [] if is_refused else _commands(ledger, await _runs_of(ledger, given))
        await write_report(ledger, given["output"], commands=commands, force=given["force"])

    given.printer.say(f"the report is in {given['output']}")
    return 0
