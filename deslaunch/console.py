"""The one printer: what a person or a script reads. Data on stdout, all else on stderr."""

from __future__ import annotations

import errno
import os
import shlex
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, Self, TextIO

import orjson

from deslaunch import wire
from deslaunch.errors import InvalidManifest, LedgerWriteFailed, ManifestConflict
from deslaunch.model import (
    Draining,
    Noted,
    RetryPlanned,
    RowEnded,
    RowState,
    RunEnded,
    Stopped,
    StopReason,
    TargetPaused,
    TokenRenewed,
    counted,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from rich.status import Status

    from deslaunch.errors import DeslaunchError
    from deslaunch.model import (
        Event,
        Job,
        JobParameter,
        Outcome,
        RowProblem,
        RunStatus,
        Stop,
        Summary,
        WatchSummary,
    )
    from deslaunch.results import UnknownRow
    from deslaunch.targets import TargetReport

SHOWN_PROBLEMS: Final = 100
SHOWN_KEYS: Final = 20
SHOWN_TEXT: Final = 200
REPORT_EVERY: Final = 10.0
"""Seconds between two lines of progress where nobody sees a terminal."""

_NAMES: Final = {
    RowState.STARTED: "started",
    RowState.FAILED: "failed",
    RowState.REJECTED: "rejected",
    RowState.UNKNOWN: "unknown",
    RowState.INVALID: "invalid",
}


class Console:
    """Writes to the two streams of a command.

    Args:
        out: for data.
        err: for all else.
        quiet: say only what must not be missed.
        verbose: say what became of every row.
    """

    def __init__(
        self,
        *,
        out: TextIO | None = None,
        err: TextIO | None = None,
        quiet: bool = False,
        verbose: bool = False,
    ) -> None:
        self._out = out or sys.stdout
        self._err = err or sys.stderr
        self.quiet = quiet
        self.verbose = verbose

    @property
    def is_terminal(self) -> bool:
        """A person sees what goes to stderr."""
        return self._err.isatty()

    def data(self, text: str) -> None:
        """Print a line of data."""
        _print(text, self._out)

    def data_bytes(self, lines: Iterable[bytes]) -> None:
        """Print lines of data that are encoded already."""
        self._out.flush()
        self._out.buffer.writelines(lines)
        self._out.buffer.flush()

    def json(self, value: Mapping[str, Any]) -> None:
        """Print one JSON object."""
        self.data(orjson.dumps(value).decode())

    def say(self, text: str) -> None:
        """Tell what a person wants to know, unless told to be quiet."""
        if not self.quiet:
            self.insist(text)

    def insist(self, text: str) -> None:
        """Tell what must not be missed; a launch goes on although nobody listens any more."""
        try:
            _print(text, self._err)
        except BrokenPipeError:
            _mute(self._err)

    def warn(self, text: str) -> None:
        """Print a warning."""
        self.insist(f"warning: {text}")

    def error(self, error: DeslaunchError) -> None:
        """Print an error, what it lists, and what to do next."""
        if isinstance(error, InvalidManifest):
            self.problems(error.problems, error.count)

        self.insist(f"error: {error}")

        if isinstance(error, ManifestConflict):
            self._keys("changed", error.changed)
            self._keys("gone", error.gone)
            self._keys("new", error.new)

        if isinstance(error, LedgerWriteFailed):
            self._unrecorded(error.unrecorded)

        if error.hint:
            self.insist(f"  {error.hint}")

    def problems(self, problems: Sequence[RowProblem], count: int) -> None:
        """Print the problems of a manifest, a line each."""
        for problem in problems[:SHOWN_PROBLEMS]:
            self.insist(str(problem))

        if count > SHOWN_PROBLEMS:
            self.insist(f"… and {counted(count - SHOWN_PROBLEMS, 'problem')} more")

    def _keys(self, what: str, keys: Sequence[str]) -> None:
        for key in keys[:SHOWN_KEYS]:
            self.insist(f"  {what}: {key}")

        if len(keys) > SHOWN_KEYS:
            self.insist(f"  {what}: … and {len(keys) - SHOWN_KEYS:,} more")

    def _unrecorded(self, unrecorded: Sequence[tuple[str, str]]) -> None:
        if unrecorded:
            self.insist("DES started these runs, and the ledger may not have them (key, jobRunId):")

        for key, job_run_id in unrecorded:
            self.insist(f"{key}\t{job_run_id}")

    def summary(self, summary: Summary) -> None:
        """Print the counts of a batch."""
        for line in summary_lines(summary):
            self.say(line)

        if self.quiet:
            for line in _warnings_of(summary):
                self.insist(line)

    def next_command(
        self, summary: Summary, repeat: Sequence[str] = (), *, is_status: bool = False
    ) -> None:
        """Print the exact commands to go on with; see :func:`next_commands`."""
        for line in next_commands(summary, repeat, is_status=is_status):
            self.insist(line)

    def watch_summary(self, summary: WatchSummary) -> None:
        """Print how the runs of a batch stand."""
        for line in watch_lines(summary):
            self.say(line)

    def next_of_watch(self, summary: WatchSummary, repeat: Sequence[str] = ()) -> None:
        """Print the exact commands to go on with, for the runs and for the rows."""
        if summary.unfinished or summary.untold:
            words = shlex.join(["deslaunch", "watch", summary.batch.ledger, *repeat])
            self.insist(f"go on watching: {words.removesuffix(' --watch')}")

        if summary.failed:
            self.insist(f"see how each run ended: deslaunch results {_ledger_of(summary)}")

        self.next_command(summary.batch, repeat)

    def unknown_rows(self, rows: Iterable[UnknownRow]) -> None:
        """Print what a person needs to look unknown rows up in the DES web interface."""
        for row in rows:
            target = f" target {row.target}" if row.target != "default" else ""
            self.data(f"unknown: key {row.key} row {row.row}{target}")
            self.data(f"  job {row.job_id}")
            self.data(f"  parameters {parameters_text(row.parameters)}")
            self.data(f"  look for a run created from {row.from_utc} to {row.to_utc},")
            self.data("  or later, if a gateway held it back")
            self.data(f"  because {row.cause}")

            if row.job_run_id:
                self.data(f"  an answer named the jobRunId {row.job_run_id}")

    def jobs(self, jobs: Iterable[Job]) -> None:
        """Print jobs, each with the parameters that its runs take."""
        for job in jobs:
            self.data(f"{job.job_id}  {job.name}")

            for parameter in job.parameters:
                self.data(f"  {parameter_text(parameter)}")

    def targets(self, reports: Sequence[TargetReport]) -> None:
        """Print a table of targets, and what is wrong with each that does not work."""
        for line in _columns([_TARGET_COLUMNS, *(_target_cells(report) for report in reports)]):
            self.data(line)

        for report in reports:
            if report.error is not None:
                self.insist(f"error: target {report.target}: {report.error}")

            if report.error is not None and report.error.hint:
                self.insist(f"  {report.error.hint}")


_TARGET_COLUMNS: Final = ("target", "base URL", "organisation", "token", "jobs")


def _target_cells(report: TargetReport) -> tuple[str, ...]:
    token = {True: "ok", False: "no", None: "-"}[report.token]
    jobs = "-" if report.jobs is None else f"{report.jobs:,}"
    return report.target, report.base_url or "-", report.org_id or "-", token, jobs


def _columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield rows as lines, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()


def _print(text: str, stream: TextIO) -> None:
    """Print a line; where the terminal has gone, nobody is there to miss it."""
    try:
        print(text, file=stream, flush=True)
    except OSError as exc:
        if exc.errno != errno.EIO:
            raise

        _mute(stream)


def _mute(stream: TextIO) -> None:
    """Send a stream nowhere: what it still holds would else fail when the process ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def parameters_text(parameters: Mapping[str, Any]) -> str:
    """Return parameters as they were sent, in one line."""
    return ", ".join(f"{name}={_value_text(value)}" for name, value in parameters.items()) or "-"


def _value_text(value: Any) -> str:
    if not isinstance(value, dict):
        return "null" if value is None else str(value)

    if value.get("useAutoValue"):
        return "auto"

    text = value.get("valueStringEncoded")
    return "null" if text is None else str(text)


def parameter_text(parameter: JobParameter) -> str:
    """Return a parameter's declaration in one line."""
    number = parameter.type
    kind = "string" if number is None else wire.TYPE_NAMES.get(number, f"type {number}")
    traits = {
        "required": parameter.required,
        "null allowed": parameter.nullable,
        "auto value allowed": parameter.supports_auto,
    }
    words = ", ".join([kind, *(name for name, holds in traits.items() if holds)])
    return f"{parameter.name}: {words}" + (
        f" ({parameter.description})" if parameter.description else ""
    )


def summary_lines(summary: Summary) -> Iterator[str]:
    """Yield a batch's summary, a line at a time."""
    counts = {
        "started": summary.started,
        "failed": summary.failed,
        "rejected": summary.rejected,
        "unknown": summary.unknown,
        "invalid": summary.invalid,
        "pending": summary.pending,
        "in flight": summary.in_flight,
    }
    said = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
    rows, attempts = counted(summary.rows, "row"), counted(summary.attempts, "attempt")
    yield f"{rows}: {said or 'nothing to do'}; {attempts}"
    yield from _warnings_of(summary)


def _warnings_of(summary: Summary) -> Iterator[str]:
    """Yield what must be said even where quiet was asked for."""
    if summary.unknown:
        yield f"{summary.unknown:,} unknown: each may have started a run, and none is sent again"

    if summary.possible_duplicates:
        yield (
            f"{counted(summary.possible_duplicates, 'possible duplicate')}: started, and an "
            "earlier attempt was answered 5XX or not at all"
        )

    if summary.shared_runs:
        keys = [key for _, found in summary.shared_runs for key in found]
        more = " …" if len(keys) > SHOWN_KEYS else ""
        runs = len(summary.shared_runs)
        stand = "jobRunId stands" if runs == 1 else "jobRunIds stand"
        yield f"{runs:,} {stand} at more than one row: {', '.join(keys[:SHOWN_KEYS])}{more}"


def watch_lines(summary: WatchSummary) -> Iterator[str]:
    """Yield how the runs of a batch stand, a line at a time."""
    counts = {
        "succeeded": summary.succeeded,
        "failed": summary.failed,
        "untold": summary.untold,
        "not finished": summary.unfinished,
    }
    said = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
    yield f"{counted(summary.runs, 'run')}: {said or 'nothing to watch'}"

    for text, runs, key in summary.failures:
        yield f"  {runs:,} failed: {_one_line(text) or 'DES gave no reason'} (key {key})"

    if summary.untold:
        yield f"{summary.untold:,} untold: DES refuses to tell of them; the next watch asks again"


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_TEXT else f"{line[: SHOWN_TEXT - 1]}…"


def _ledger_of(summary: WatchSummary) -> str:
    return shlex.quote(summary.batch.ledger)


def stop_text(stop: Stop) -> str:
    """Return why a target, or the session, ended early, in one line."""
    whose = f"target {stop.target} stopped" if stop.target else "stopped"
    after = "" if stop.resume_after is None else f"; resume after {stop.resume_after:,.0f} s"
    return f"{whose}: {stop.message}{after}"


def next_commands(
    summary: Summary, repeat: Sequence[str] = (), *, is_status: bool = False
) -> Iterator[str]:
    """Yield the commands with which a batch goes on, a line each; none where all is done.

    Args:
        summary: of the batch.
        repeat: options that a resume must be given again.
        is_status: the unknown rows have just been listed.
    """
    ledger = shlex.quote(summary.ledger)
    resume = f"deslaunch resume {ledger}{''.join(f' {shlex.quote(word)}' for word in repeat)}"
    credentials = any(stop.reason is StopReason.CREDENTIALS for stop in summary.stops)

    if summary.pending:
        token = " with a new token" if credentials else ""
        yield f"go on{token}: {resume}"
    elif summary.failed:
        yield f"try the failed rows again: {resume}"

    if summary.unknown and not is_status:
        yield f"look the unknown rows up: deslaunch status {ledger}"

    if summary.unknown:
        yield f"tell what each one did: deslaunch resolve {ledger} KEY --started JOBRUNID"
        yield f"or that it did nothing: deslaunch resolve {ledger} KEY --not-started"

    if summary.rejected or summary.invalid:
        yield f"see what is wrong with each row: deslaunch results {ledger}"

    if summary.rejected:
        yield f"send what DES refused again, once DES is mended: {resume} --retry-rejected"


class Progress:
    """Tells what a launch does while it does it.

    On a terminal one line that changes; elsewhere a line every ten seconds. Pauses, stops and
    renewed tokens get a line of their own.

    Args:
        console: where to tell it.
        clock: seconds of a clock that only goes forward.
    """

    def __init__(self, console: Console, clock: Any = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._counts: Counter[RowState] = Counter()
        self._retries = 0
        self._began = self._reported = clock()
        self._status: Status | None = None

    @property
    def is_idle(self) -> bool:
        """No row has ended yet, and none was sent again."""
        return not self._counts and not self._retries

    def __enter__(self) -> Self:
        if self._console.is_terminal and not (self._console.quiet or self._console.verbose):
            self._status = _live_status()
            self._status.start()

        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def __call__(self, event: Event) -> None:
        """Take in an event."""
        match event:
            case RowEnded(outcome):
                self._counts[outcome.state] += 1
                self._row(outcome)
                self._report()
            case RetryPlanned():
                self._retries += 1
                self._detail(f"row {event.key}: HTTP {event.status}, again in {event.wait:.1f} s")
            case TargetPaused(target, cause, seconds):
                self._console.say(f"target {target}: all rows wait {seconds:.1f} s: {cause}")
            case Noted(message, is_warning):
                (self._console.warn if is_warning else self._console.say)(message)
            case TokenRenewed(target):
                self._console.say(f"target {target}: the token was renewed")
            case Draining(in_flight, timeout) if in_flight:
                rows = counted(in_flight, "row")
                self._console.say(f"waiting for the answers of {rows}, {timeout:g} s at most;")
                self._console.say("  a second interrupt gives them up as unknown")
            case Stopped(stop):
                self._console.insist(stop_text(stop))

    def _row(self, outcome: Outcome) -> None:
        if self._console.verbose:
            result = outcome.job_run_id or outcome.error
            self._detail(f"row {outcome.row} key {outcome.key}: {outcome.state} {result}")

    def _detail(self, text: str) -> None:
        if self._console.verbose:
            self._console.insist(text)

    def _report(self) -> None:
        now = self._clock()
        due = now - self._reported >= (0.1 if self._status is not None else REPORT_EVERY)

        if not due:
            return

        self._reported = now
        text = self._text(now)

        if self._status is not None:
            self._status.update(text)
        else:
            self._console.say(text)

    def _text(self, now: float) -> str:
        ended = sum(self._counts.values())
        rate = ended / max(now - self._began, 0.001)
        said = ", ".join(
            f"{self._counts[state]:,} {name}"
            for state, name in _NAMES.items()
            if self._counts[state]
        )
        rows = counted(ended, "row")
        return f"{rows} ended ({said}), {self._retries:,} sent again, {rate:,.0f} rows/s"


class WatchProgress:
    """Tells what a watch does while it does it, as :class:`Progress` does of a launch.

    Args:
        console: where to tell it.
        clock: seconds of a clock that only goes forward.
    """

    def __init__(self, console: Console, clock: Any = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._counts: Counter[str] = Counter()
        self._began = self._reported = clock()
        self._status: Status | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal and not (self._console.quiet or self._console.verbose):
            self._status = _live_status()
            self._status.start()

        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def __call__(self, event: Event) -> None:
        """Take in an event."""
        match event:
            case RunEnded(status):
                self._counts[_how_it_ended(status)] += 1
                self._run(status)
                self.tick()
            case TargetPaused(target, cause, seconds):
                self._console.say(f"target {target}: all runs wait {seconds:.1f} s: {cause}")
            case Stopped(stop):
                self._console.insist(stop_text(stop))

    def tick(self) -> None:
        """Tell how the watch stands, if that was not told a moment ago."""
        now = self._clock()

        if now - self._reported < (0.1 if self._status is not None else REPORT_EVERY):
            return

        self._reported = now
        text = self._text(now)

        if self._status is not None:
            self._status.update(text)
        else:
            self._console.say(text)

    def _run(self, status: RunStatus) -> None:
        if self._console.verbose:
            text = f": {_one_line(status.status)}" if status.status else ""
            how = _how_it_ended(status)
            self._console.insist(f"key {status.key}: run {status.job_run_id} {how}{text}")

    def _text(self, now: float) -> str:
        said = ", ".join(f"{count:,} {how}" for how, count in sorted(self._counts.items()))
        runs = counted(sum(self._counts.values()), "run")
        return f"{runs} ended{f' ({said})' if said else ''}, watched for {now - self._began:,.0f} s"


def _how_it_ended(status: RunStatus) -> str:
    if not status.finished:
        return "untold"

    return "succeeded" if status.success else "failed"


def _live_status() -> Status:
    from rich.console import Console as RichConsole  # noqa: PLC0415  # only a terminal needs it

    return RichConsole(stderr=True).status("starting")
