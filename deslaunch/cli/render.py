"""The one printer: what a person or a script reads. Data on stdout, all else on stderr."""

from __future__ import annotations

import asyncio
import errno
import os
import shlex
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Self, TextIO

import orjson

from deslaunch import logs, wire
from deslaunch.errors import InvalidManifest, LedgerWriteFailed, ManifestConflict
from deslaunch.model import (
    DEFAULT_TARGET,
    KEPT_PROBLEMS,
    Draining,
    Noted,
    Planned,
    ProblemGroup,
    Pulse,
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
from deslaunch.progress import Tally, duration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from deslaunch.errors import DeslaunchError
    from deslaunch.model import (
        Event,
        Job,
        JobParameter,
        Outcome,
        Plan,
        PlannedJob,
        RowProblem,
        RunStatus,
        StartRequest,
        Stop,
        Summary,
        WatchSummary,
    )
    from deslaunch.progress import Cause, Causes
    from deslaunch.results import UnknownRow
    from deslaunch.screen import Block, Line
    from deslaunch.shared_keys import SharedKeys
    from deslaunch.targets import TargetReport

SHOWN_PROBLEMS: Final = 100
TOLD_EACH: Final = 5
"""Rows with the same problem up to which it is told of each."""

SHOWN_KEYS: Final = 20
SHOWN_TEXT: Final = 200
SHOWN_JOBS: Final = 10
SHOWN_CAUSES: Final = 10
REPORT_EVERY: Final = 10.0
"""Seconds between two lines of progress where nobody sees a terminal."""

REDRAW_EVERY: Final = 0.2
"""Seconds between two pictures of the block on a terminal."""

_SHOWN: Final = (
    RowState.STARTED,
    RowState.FAILED,
    RowState.REJECTED,
    RowState.UNKNOWN,
    RowState.INVALID,
)


class Console:
    """Writes to the two streams of a command.

    Args:
        out: for data.
        err: for all else.
        quiet: say only what must not be missed.
        verbose: say what became of every row.
        log: write one JSON object a line on ``err`` instead of sentences.
        source: where answers come from.
        now: the time, for the log.
    """

    def __init__(
        self,
        *,
        out: TextIO | None = None,
        err: TextIO | None = None,
        quiet: bool = False,
        verbose: bool = False,
        log: bool = False,
        source: TextIO | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._out = out or sys.stdout
        self._err = err or sys.stderr
        self._source = source or sys.stdin
        self._now = now
        self._above: Callable[[str], None] | None = None
        self.quiet = quiet
        self.verbose = verbose
        self.log = log

    @property
    def is_terminal(self) -> bool:
        """A person sees what goes to stderr."""
        return self._err.isatty()

    @property
    def has_block(self) -> bool:
        """A launch is to be shown as a block that is drawn anew in its place."""
        can_redraw = os.environ.get("TERM") not in {"dumb", "unknown"}
        return self.is_terminal and can_redraw and not (self.quiet or self.verbose or self.log)

    @property
    def can_ask(self) -> bool:
        """A person sees a question, and can answer it."""
        return self._err.isatty() and self._source.isatty()

    async def ask(self, question: str) -> bool:
        """Ask a person; anything but ``y`` and ``yes`` means no, and so does the end of input.

        It waits in the event loop, not in a thread, so that an interrupt ends it.
        """
        self._err.write(f"{question} [y/N] ")
        self._err.flush()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bytes] = loop.create_future()
        fd = self._source.fileno()
        loop.add_reader(fd, _read_answer, fd, answer)

        try:
            return (await answer).strip().lower() in {b"y", b"yes"}
        finally:
            loop.remove_reader(fd)

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
        if self.log:
            self.entry({"event": "message", "message": text})
        else:
            self._tell(text)

    def warn(self, text: str) -> None:
        """Print a warning."""
        if self.log:
            self.entry({"event": "warning", "message": text})
        else:
            self._tell(f"warning: {text}")

    def entry(self, entry: Mapping[str, Any]) -> None:
        """Write an object of the log, with the time at its front."""
        utc = self._now().astimezone(UTC).isoformat(timespec="milliseconds")
        line = orjson.dumps({"utc": utc.replace("+00:00", "Z"), **entry})
        self._tell(line.decode())

    def _tell(self, text: str) -> None:
        if self._above is not None:
            self.draw(self._above, text)
            return

        try:
            _print(text, self._err)
        except BrokenPipeError:
            _mute(self._err)

    def error(self, error: DeslaunchError, exit_code: int = 0) -> None:
        """Print an error, what it lists, and what to do next.

        Args:
            error: what ended the command.
            exit_code: the one that the command ends with, for the log.
        """
        if self.log:
            self.entry(logs.error(error, exit_code))
            return

        if isinstance(error, InvalidManifest):
            self.problems(error.problems, error.groups, error.count)

        self.insist(f"error: {error}")

        if isinstance(error, ManifestConflict):
            self._keys("changed", error.changed)
            self._keys("gone", error.gone)
            self._keys("new", error.new)

        if isinstance(error, LedgerWriteFailed):
            self._unrecorded(error.unrecorded)

        if error.hint:
            self.insist(f"  {error.hint}")

    def problems(
        self, problems: Sequence[RowProblem], groups: Sequence[ProblemGroup], count: int
    ) -> None:
        """Print the problems of a manifest, those that many rows have once.

        Args:
            problems: the first ones, in manifest order.
            groups: the first ones that differ, each with the number of its rows.
            count: how many problems there are in all, each row's counted by itself.
        """
        told = told_of(problems, groups)[:SHOWN_PROBLEMS]
        rest = count - sum(group.rows for group in told)

        for group in told:
            self.insist(str(group))

        if rest:
            self.insist(f"… and {counted(rest, 'problem')} more")

        if count > len(told):
            self.insist(f"{_all_problems(count)} one by one: deslaunch check with --json")

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

    def block(self) -> Block:
        """Begin a block at the terminal's end; what is told from now on stands above it."""
        from deslaunch.screen import Block  # noqa: PLC0415  # only a terminal needs it

        block = Block(self._err)
        self.draw(block.begin)
        self._above = block.above
        return block

    def draw(self, change: Callable[..., None], *arguments: Any) -> None:
        """Change what the terminal shows; where it has gone, nobody is there to miss it."""
        try:
            change(*arguments)
        except OSError as exc:
            if exc.errno != errno.EIO:
                raise

            _mute(self._err)

    def end_block(self) -> None:
        """Print at the terminal's end again."""
        self._above = None

    def start(self, request: StartRequest) -> None:
        """Print a start that would be sent, with the very bytes of its body."""
        said = {
            "key": request.key,
            "row": request.row,
            "line": request.line,
            "target": request.target,
            "jobId": request.job_id,
            "body": orjson.Fragment(request.body),
        }
        self.data_bytes([orjson.dumps(said, option=orjson.OPT_APPEND_NEWLINE)])

    def plan(self, plan: Plan) -> None:
        """Print what a session is about to do."""
        for line in plan_lines(plan):
            self.say(line)

    def finish(
        self,
        summary: Summary,
        causes: Causes,
        repeat: Sequence[str] = (),
        *,
        goes_on: bool = False,
    ) -> None:
        """Print how a session ended: the counts, why rows have no run, and what to do next.

        Args:
            summary: of the batch.
            causes: why rows that ended in this session have no run.
            repeat: options that a resume must be given again.
            goes_on: the command has more to do, and will say then what to do next.
        """
        if self.log:
            commands = [] if goes_on else list(next_commands(summary, repeat))
            self.entry(logs.summary(summary, causes, commands))
            return

        for line in cause_lines(causes):
            self.say(line)

        self.summary(summary)

        if not goes_on:
            self.next_command(summary, repeat)

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

        self.next_of_runs(summary)
        self.next_command(summary.batch, repeat)

    def next_of_runs(self, summary: WatchSummary) -> None:
        """Print the exact command that lists the runs that failed; see :func:`run_commands`."""
        for line in run_commands(summary):
            self.insist(line)

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
        """Print jobs, each with the parameters that its runs take: as tables on a terminal."""
        if self._out.isatty():
            from deslaunch.screen import print_jobs  # noqa: PLC0415  # only a terminal needs it

            print_jobs(jobs, self._out)
            return

        for job in jobs:
            self.data(f"{job.job_id}  {job.name}")

            for line in _columns([parameter_cells(parameter) for parameter in job.parameters]):
                self.data(f"  {line}")

    def targets(self, reports: Sequence[TargetReport]) -> None:
        """Print a table of targets, and what is wrong with each that does not work."""
        for line in _columns([_TARGET_COLUMNS, *(_target_cells(report) for report in reports)]):
            self.data(line)

        for report in reports:
            if report.error is not None:
                self.insist(f"error: target {report.target}: {report.error}")

            if report.error is not None and report.error.hint:
                self.insist(f"  {report.error.hint}")


_MOVES: Final = (RowEnded, Pulse, TargetPaused, RetryPlanned)
"""Events after which a launch stands otherwise than before."""

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


def told_of(problems: Sequence[RowProblem], groups: Sequence[ProblemGroup]) -> list[ProblemGroup]:
    """Return what is told of a manifest's problems, by line.

    A problem that a few rows have is told of each: a person mends them one by one.
    """
    many = {group.said: group for group in groups if group.rows > TOLD_EACH}
    listed = {problem.said for problem in problems}
    each = [ProblemGroup(problem) for problem in problems if problem.said not in many]
    late = [group for group in groups if group.said not in many and group.said not in listed]
    return sorted([*each, *many.values(), *late], key=lambda group: group.first.line)


def _all_problems(count: int) -> str:
    """Return which of all problems ``check --json`` lists."""
    if count <= KEPT_PROBLEMS:
        return f"all {count:,} problems"

    return f"the first {KEPT_PROBLEMS:,} of {count:,} problems"


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


def parameter_cells(parameter: JobParameter) -> tuple[str, ...]:
    """Return a parameter's declaration: name, type, what it must or may be, description."""
    traits = {
        "null": parameter.nullable,
        "auto": parameter.supports_auto,
    }
    need = "required" if parameter.required else "optional"
    takes = " ".join([need, *(name for name, holds in traits.items() if holds)])
    return parameter.name, wire.type_name(parameter.type), takes, parameter.description


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


def shared_key_lines(shared: SharedKeys) -> Iterator[str]:
    """Yield the keys that were started in more than one ledger, a line each."""
    if not shared.count:
        return

    keys = "key is" if shared.count == 1 else "keys are"
    yield f"{shared.count:,} {keys} started in more than one of these ledgers:"

    for found in shared.kept[:SHOWN_KEYS]:
        row = "the same row" if found.same_row else "rows that differ"
        runs = ", ".join(f"{run} in {ledger}" for ledger, run in found.runs)
        yield f"  key {found.key}, {row}: {runs}"

    if shared.count > SHOWN_KEYS:
        yield f"  … and {shared.count - SHOWN_KEYS:,} more: see status with --json"


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
        why = _one_line(text) or "DES gave no reason"
        yield f"  {counted(runs, 'run')} failed: {why} (key {key})"

    if summary.untold:
        yield f"{summary.untold:,} untold: DES refuses to tell of them; the next watch asks again"


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_TEXT else f"{line[: SHOWN_TEXT - 1]}…"


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

    if summary.possible_duplicates:
        yield f"see which may have run twice: deslaunch results {ledger} --possible-duplicates"

    if summary.rejected or summary.invalid:
        yield f"see what is wrong with each row: deslaunch results {ledger}"

    if summary.rejected:
        yield f"send what DES refused again, once DES is mended: {resume} --retry-rejected"


def run_commands(summary: WatchSummary) -> Iterator[str]:
    """Yield the command that lists the runs that failed, if any did."""
    if summary.failed:
        ledger = shlex.quote(summary.batch.ledger)
        yield f"see which runs failed, and why: deslaunch results {ledger} --run failed"


def plan_lines(plan: Plan) -> Iterator[str]:
    """Yield what a session is about to do, a line at a time."""
    whole = f"{plan.ready:,} of {counted(plan.rows, 'row')}"
    rows = counted(plan.ready, "row") if plan.ready == plan.rows else whole
    shard = f", shard {plan.shard.replace('/', ' of ')}" if plan.shard else ""
    yield f"{plan.manifest}{shard}: {rows} to start"

    for job in plan.jobs[:SHOWN_JOBS]:
        yield f"  {_planned_text(job)}"

    if len(plan.jobs) > SHOWN_JOBS:
        rest = plan.jobs[SHOWN_JOBS:]
        rows = counted(sum(job.rows for job in rest), "row")
        yield f"  … and {rows} of {counted(len(rest), 'job')} more"

    if plan.states:
        so_far = ", ".join(f"{rows:,} {state}" for state, rows in plan.states.items())
        yield f"so far: {so_far}"

    if plan.invalid:
        yield f"left out: {counted(plan.invalid, 'invalid row')}"

    if plan.send < plan.ready:
        yield f"now: the first {plan.send:,}; the others stay pending"

    if plan.send:
        yield f"how fast: {_pace(plan)}"
        yield f"ledger: {plan.ledger}"


def _planned_text(job: PlannedJob) -> str:
    target = "" if job.target == DEFAULT_TARGET else f"target {job.target}, "
    name = f"{job.name} ({job.job_id})" if job.name else job.job_id
    return f"{counted(job.rows, 'row')}: {target}{name}"


def _pace(plan: Plan) -> str:
    """Return how many starts there are at a time, and how long that takes as far as is known."""
    slots = f"{counted(plan.slots, 'start')} at a time at most"

    if plan.seconds is None:
        return f"{slots}; how long it takes, DES's first answers will tell"

    return f"{slots}, {plan.rate:g} a second: {duration(plan.seconds)} or longer"


def question_of(plan: Plan) -> str:
    """Return what a person is asked before anything is sent."""
    return f"Start {counted(plan.send, 'run')}?"


def cause_lines(causes: Causes) -> Iterator[str]:
    """Yield why rows have no run, the most frequent cause first, a line each."""
    found = list(causes)

    for cause in found[:SHOWN_CAUSES]:
        yield str(cause)

    if len(found) > SHOWN_CAUSES:
        rows = sum(cause.rows for cause in found[SHOWN_CAUSES:])
        yield f"{counted(rows, 'row')} for {len(found) - SHOWN_CAUSES:,} other causes: see results"


class Progress:
    """Tells what a launch does while it does it.

    On a terminal a block of a few lines that is drawn anew in its place; elsewhere a line every
    ten seconds; in a log one JSON object for each event. Errors are grouped by their cause: the
    first row of each gets a line, the others are counted.

    Args:
        console: where to tell it.
        clock: seconds of a clock that only goes forward.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._reported = clock()
        self._tally = Tally(self._reported)
        self._block: Block | None = None

    @property
    def is_idle(self) -> bool:
        """No row has ended yet, and none was sent again."""
        return not self._tally.counts and not self._tally.retries

    @property
    def causes(self) -> Causes:
        """Why rows that ended in this session have no run."""
        return self._tally.causes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._block is not None:
            self._console.draw(self._block.close, self._tally)
            self._console.end_block()

    def __call__(self, event: Event) -> None:
        """Take in an event."""
        now = self._clock()
        cause = self._tally.take(event, now)

        if self._console.log:
            self._log(event, cause)
        else:
            self._say(event, cause)

        if isinstance(event, _MOVES):
            self._report(now)

    def _log(self, event: Event, cause: Cause | None) -> None:
        entry = logs.entry_of(event, verbose=self._console.verbose)

        if entry is not None and (isinstance(event, Stopped) or not self._console.quiet):
            self._console.entry(entry)

        if cause is not None and not self._console.quiet:
            self._console.entry(logs.cause(cause))

    def _say(self, event: Event, cause: Cause | None) -> None:
        match event:
            case RowEnded(outcome) if self._console.verbose:
                self._row(outcome)
            case RowEnded() if cause is not None:
                self._console.say(f"{cause.state}: {cause.error}{cause.example}")
            case RetryPlanned() if self._console.verbose:
                self._console.insist(
                    f"row {event.key}: HTTP {event.status}, again in {event.wait:.1f} s"
                )
            case TargetPaused(target, why, seconds):
                self._console.say(f"target {target}: all rows wait {seconds:.1f} s: {why}")
            case Noted(message, is_warning):
                (self._console.warn if is_warning else self._console.say)(message)
            case Planned(plan):
                self._console.plan(plan)
            case TokenRenewed(target):
                self._console.say(f"target {target}: the token was renewed")
            case Draining(in_flight, timeout) if in_flight:
                rows = counted(in_flight, "row")
                self._console.say(f"waiting for the answers of {rows}, {timeout:g} s at most;")
                self._console.say("  a second interrupt gives them up as unknown")
            case Stopped(stop):
                self._console.insist(stop_text(stop))

    def _row(self, outcome: Outcome) -> None:
        result = outcome.job_run_id or outcome.error
        self._console.insist(f"row {outcome.row} key {outcome.key}: {outcome.state} {result}")

    def _report(self, now: float) -> None:
        every = REDRAW_EVERY if self._console.has_block else REPORT_EVERY

        if now - self._reported < every:
            return

        self._reported = now

        if self._console.has_block:
            self._draw(now)
        elif self._console.log and not self._console.quiet:
            self._console.entry(logs.progress(self._tally, now))
        elif not self._console.log:
            self._console.say(progress_text(self._tally, now))

    def _draw(self, now: float) -> None:
        if self._block is None:
            self._block = self._console.block()

        self._console.draw(self._block.show, self._tally, now)


def progress_text(tally: Tally, now: float) -> str:
    """Return how a session is getting on, in one line."""
    states = [f"{tally.counts[state]:,} {state}" for state in _SHOWN if tally.counts[state]]
    said = f" ({', '.join(states)})" if states else ""
    whole = None if tally.left is None else tally.ended + tally.left
    rows = counted(tally.ended, "row") if whole is None else f"{tally.ended:,} of {whole:,} rows"
    left = tally.seconds_left(now)
    text = f"{rows} ended{said}, {tally.retries:,} sent again, {tally.rate(now):,.0f} rows/s"
    return f"{text}, about {duration(left)} left" if left else text


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
        self._status: Line | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal and not (self._console.quiet or self._console.verbose):
            from deslaunch.screen import Line  # noqa: PLC0415  # only a terminal needs rich

            self._status = Line(sys.stderr)

        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.close()

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
            self._status.show(text)
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


def _read_answer(fd: int, answer: asyncio.Future[bytes]) -> None:
    """Take a line from a terminal; nothing where it has gone."""
    if not answer.done():
        try:
            answer.set_result(os.read(fd, 1024))
        except OSError:
            answer.set_result(b"")
