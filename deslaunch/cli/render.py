"""Turn values and events into the lines that commands print.

Text from elsewhere (names, keys, responses) is escaped by the printer, not here. Rows without a run
are grouped by cause: the first row of each cause gets a line, the others are counted.
"""

import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from deslaunch import events
from deslaunch.cli.terminal import Printer
from deslaunch.ledger.place import name_of
from deslaunch.model import (
    DEFAULT_TARGET,
    Causes,
    Job,
    Outcome,
    Problem,
    RowState,
    add_cause,
    count,
    parameters_text,
    place_word,
    printed,
    utc,
)
from deslaunch.report import charts

if TYPE_CHECKING:
    from deslaunch.ledger.reading import LogEntry, ResultRow, SessionInfo, UnknownRow
    from deslaunch.ledger.store import Launcher

SHOWN_PROBLEMS: Final = 100
MOST_UNGROUPED: Final = 20
"""Up to this many problems are listed one by one, more are grouped."""

SHOWN: Final = 10
"""Jobs, or causes, that are listed; the others are counted."""

RATE_WINDOW: Final = 30
"""Seconds, and pulses, over which the rate is measured."""

REPORT_EVERY: Final = 10.0
"""Seconds between two progress lines if stderr is no terminal."""

REDRAW_EVERY: Final = 0.2
"""Seconds between two updates of the progress block on a terminal."""


# The state of a batch, a session and a watch.


_STATES: Final = "started failed rejected unknown invalid withdrawn pending in_flight"
_RUNS: Final = "succeeded failed untold unfinished"
_WORDS: Final = {"in_flight": "in flight", "sending": "in flight", "unfinished": "not finished"}


def _counts_text(counted: events.Counts | events.WatchSummary, names: str) -> str:
    """Return the counts above 0, each with its name, in one line."""
    numbers = ((getattr(counted, name), _WORDS.get(name, name)) for name in names.split())
    return ", ".join(f"{number:,} {word}" for number, word in numbers if number)


def summary_lines(summary: events.Summary) -> Iterator[str]:
    """Yield the counts of a batch, and of its targets if there are several."""
    counts = summary.counts

    if _is_unread(summary):
        yield "the ledger can't be read: the state of the batch is not known"
        return

    states = _counts_text(counts, _STATES) or "no rows"
    yield f"{count(counts.rows, 'row')}: {states}; {count(counts.attempts, 'attempt')}"

    if len(summary.targets) > 1:
        for name, own in summary.targets.items():
            yield f"  target {name}: {_counts_text(own, _STATES) or 'no rows'}"

    yield from warning_lines(summary)


def _is_unread(summary: events.Summary) -> bool:
    """Return True if the counts could not be read from the ledger."""
    reasons = {stop.reason for stop in summary.stops}
    return events.StopReason.LEDGER in reasons and not summary.counts.rows


def warning_lines(summary: events.Summary) -> Iterator[str]:
    """Yield what is printed even with ``--quiet``."""
    if unknown := summary.counts.unknown:
        yield f"{unknown:,} unknown: each may have started a run, and none is sent again"

    if left := summary.left_to_repeat:
        yield f"{count(left, 'failed run')} not repeated yet"

    if duplicates := summary.counts.possible_duplicates:
        why = "started, and another attempt may have started a run too"
        yield f"{count(duplicates, 'possible duplicate')}: {why}"


def unrecorded_lines(summary: events.Summary) -> Iterator[str]:
    """Yield a line for each run that is perhaps not recorded in the ledger."""
    if summary.unrecorded:
        yield "DES started these runs, and the ledger may not have them (key, jobRunId):"

    for key, job_run_id in summary.unrecorded:
        yield f"{key}\t{job_run_id}"


def watch_lines(summary: events.WatchSummary) -> Iterator[str]:
    """Yield the counts of the runs of a batch, and the most frequent failures."""
    yield f"{count(summary.runs, 'run')}: {_counts_text(summary, _RUNS) or 'nothing to watch'}"

    for text, runs, key in summary.failures:
        reason = one_line(text) or "DES gave no reason"
        yield f"  {count(runs, 'run')} failed: {reason} (key {key})"

    if summary.untold:
        yield f"{summary.untold:,} untold: DES refuses to tell of them; the next watch asks again"


def left_lines(summary: events.WatchSummary) -> Iterator[str]:
    """Yield that rows are pending, and runs failed too: the exit code shows only one."""
    if (left := summary.batch.counts.pending) and not summary.is_trial:
        failed = f", and {count(summary.failed, 'run')} failed" if summary.failed else ""
        yield f"{count(left, 'row')} not sent yet (pending){failed}"


def one_line(text: str, limit: int = 200) -> str:
    """Return a text with its white space collapsed, cut to ``limit`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def stop_line(stop: events.Stop) -> str:
    """Return why a target or the session stopped."""
    whose = f"target {stop.target} stopped" if stop.target else "stopped"
    after = "" if stop.resume_after is None else f"; resume after {stop.resume_after:,.0f} s"
    return f"{whose}: {stop.message}{after}"


def stop_lines(summary: events.Summary, sessions: "Sequence[SessionInfo]") -> Iterator[str]:
    """Yield why the last session left rows, where no launcher is at work."""
    for who in (one.launcher for one in sessions[-1:] if one.ended_ms is None):
        yield f"stopped: {who} recorded no end: it was killed, or its machine or disk failed"

    if summary.counts.pending:
        yield from map(stop_line, summary.stops)


def launcher_line(launcher: "Launcher") -> str:
    """Return who is at work on a batch."""
    open_rows = "" if launcher.in_flight is None else f", {launcher.in_flight:,} in flight"
    return f"at work: {launcher}{open_rows}"


def duration(seconds: float) -> str:
    """Return a duration of at least 1 s: ``45 s``, ``3 h 5 min``."""
    return charts.duration(1_000 * max(1, round(seconds)))


def local_time(seconds: float) -> str:
    """Return seconds since 1970 as local time: ``06:00 tomorrow, 2026-11-30``."""
    then, now = datetime.fromtimestamp(seconds), datetime.now()  # noqa: DTZ005, DTZ006  # local
    day = {0: " today", 1: " tomorrow"}.get((then.date() - now.date()).days, "")
    return f"{then:%H:%M}{day}, {then:%Y-%m-%d}"


# What to do next.


Commands = Iterator[tuple[str, str]]
"""Reasons, each with a command that works as it is printed."""


def next_commands(
    summary: events.Summary, repeated: Sequence[str] = (), *, is_listed: bool = False
) -> Commands:
    """Yield what to do next about the rows of a batch; nothing if all are started.

    Args:
        summary: of the batch.
        repeated: words that ``resume`` must be given again.
        is_listed: the unknown rows have just been listed.
    """
    counts, ledger = summary.counts, place_word(summary.ledger)
    stem = name_of(summary.ledger)
    resume = printed("resume", ledger, *repeated)

    if counts.pending or _is_unread(summary):
        refused = any(stop.reason is events.StopReason.CREDENTIALS for stop in summary.stops)
        yield f"send the remaining rows{' with a new token' if refused else ''}", resume
    elif counts.failed:
        yield "try the failed rows again", resume

    if summary.left_to_repeat:
        yield "repeat the other failed runs", f"{resume} --retry-failed-runs"

    if counts.unknown:
        findings = place_word(f"{stem}.findings.csv")

        if not is_listed:
            yield "see the unknown rows", printed("status", ledger)

        listed = printed("status", ledger, "--unknown", "-o", findings)
        yield "list them, look each one up in DES and fill in", listed
        yield "then record it", printed("resolve", ledger, "--from", findings)

    if counts.possible_duplicates:
        results = printed("results", ledger, "--format", "jsonl")
        marked = f"""{results} | grep '"possibleDuplicate":true'"""
        yield "see which rows may have run twice", marked

    for state in ("rejected", "invalid"):
        if getattr(counts, state):
            fixes = place_word(f"{stem}.{state}.csv")
            results = printed("results", ledger, "--state", state, "--with-manifest", "-o", fixes)
            corrections = printed("resume", ledger, "--corrections", fixes, *repeated)
            yield f"see the {state} rows, and fix them there", results
            yield "then send them", corrections


def watch_command(ledger: str, repeated: Sequence[str]) -> str:
    """Return the command that watches a batch; ``watch`` takes no ``--schema``."""
    at = repeated.index("--schema") if "--schema" in repeated else len(repeated)
    return printed("watch", place_word(ledger), *repeated[:at], *repeated[at + 2 :])


def watch_commands(summary: events.WatchSummary, repeated: Sequence[str] = ()) -> Commands:
    """Yield what to do next about the runs of a batch."""
    ledger = place_word(summary.batch.ledger)

    if summary.unfinished or summary.untold:
        yield "watch the other runs", watch_command(summary.batch.ledger, repeated)

    if summary.failed:
        yield "see the failed runs", printed("results", ledger, "--run", "failed")
        again = (ledger, "--retry-failed-runs", *repeated)
        yield "start another run for each of them", printed("resume", *again)


def command_lines(commands: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield a line for each command, with its reason."""
    for why, command in commands:
        yield f"{why}: {command}"


# The plan.


def plan_lines(plan: events.Plan) -> Iterator[str]:
    """Yield what a session is about to start, how fast, and the state of its batch."""
    part = "" if plan.ready == plan.rows else f"{plan.ready:,} of "
    manifest = "stdin" if plan.manifest == "-" else plan.manifest
    yield f"{manifest}: {part}{count(plan.rows, 'row')} to start"

    for job in plan.jobs[:SHOWN]:
        target = "" if job.target == DEFAULT_TARGET else f"target {job.target}, "
        yield f"  {count(job.rows, 'row')}: {target}{_job_text(job.name, job.job_id)}"

    if rest := plan.jobs[SHOWN:]:
        rows = count(sum(job.rows for job in rest), "row")
        yield f"  … and {rows} of {count(len(rest), 'job')} more"

    if plan.corrections is not None:
        replaced, added = plan.corrections
        yield f"corrections: {count(replaced, 'row')} replaced, {added:,} added"

    if plan.resumes:
        states = ((number, _WORDS.get(state, state)) for state, number in plan.states.items())
        yield f"so far: {', '.join(f'{number:,} {word}' for number, word in states if number)}"
    elif invalid := plan.states.get(RowState.INVALID):
        yield f"skipped: {count(invalid, 'invalid row')}"

    if plan.before:
        yield plan.before

    if plan.send < plan.ready:
        yield f"limit: the first {plan.send:,}; the others stay pending"

    if plan.send:
        yield from _pace_lines(plan)
        yield f"ledger: {plan.ledger}"


def _pace_lines(plan: events.Plan) -> Iterator[str]:
    pace = "; duration unknown until the first responses"

    if plan.seconds:
        pace = f", {plan.rate:,.15g} a second: {duration(plan.seconds)} or longer"

    yield f"pace: up to {count(plan.concurrency, 'concurrent start')}{pace}"

    if plan.stops_at is not None:
        yield f"stops at {local_time(plan.stops_at)}; rows not sent by then stay pending"


def found_line(place: str, row: "ResultRow", text: str) -> str:
    """Return a row that ``find`` found: its state, its run and its ledger."""
    known = f"{row.key} {row.job_run_id} {row.says}".lower()
    is_earlier = json.dumps(text, ensure_ascii=False)[1:-1].lower() not in known
    run = "" if row.job_run_id is None else f", run {row.job_run_id}"
    ends = {None: "", 0: ", not finished", 1: ", succeeded" if row.success else ", failed"}
    sent = "" if row.sent_utc is None else f", sent {row.sent_utc}"
    job = _job_text(row.job_name, row.job_id)
    before = f" (an earlier run of it: {text})" if is_earlier else ""
    return f"{row.key}: {row.state}{run}{ends[row.finished]}{sent}{before}, {job}; {place}"


def _job_text(name: str, job_id: str) -> str:
    """Return a job's name with its GUID."""
    return f"{name} ({job_id})" if name else job_id


# Problems of a manifest.


def problem_lines(
    problems: Sequence[Problem], groups: Sequence[events.ProblemGroup], problem_count: int
) -> Iterator[str]:
    """Yield the problems of a manifest; if there are many, one line for all equal problems.

    Args:
        problems: the first ones, in manifest order.
        groups: the first different ones, each with the number of its rows.
        problem_count: number of all problems, equal ones included.
    """
    each = [events.ProblemGroup(problem) for problem in problems]
    selected = (each if problem_count <= MOST_UNGROUPED else groups)[:SHOWN_PROBLEMS]
    rest = problem_count - sum(group.rows for group in selected)
    yield from map(str, selected)

    if rest > 0:
        yield f"… and {count(rest, 'problem')} more"

    if problem_count > len(selected):
        listed = min(problem_count, 1_000)  # check keeps no more
        yield f"see the first {listed:,} problems one by one: deslaunch check with --json"


# Tables.


def columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table; each column is as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()


def job_lines(jobs: Iterable[Job]) -> Iterator[str]:
    """Yield jobs with their parameters: name, type, traits, description."""
    from deslaunch.des.wire import type_name  # noqa: PLC0415  # not needed for --help

    for job in jobs:
        yield f"{job.job_id}  {job.name}"
        cells = []

        for one in job.parameters:
            traits = "required" if one.required else "optional"
            traits += f"{' null' * one.nullable}{' auto' * one.supports_auto}"
            cells.append((one.name, type_name(one.type), traits, one.description))

        yield from (f"  {line}" for line in columns(cells))


def unknown_lines(row: "UnknownRow") -> Iterator[str]:
    """Yield what is needed to look up an unknown row in DES's web interface."""
    target = f" target {row.target}" if row.target != DEFAULT_TARGET else ""
    yield f"unknown: key {row.key} row {row.row:,}{target}"
    yield f"  job {_job_text(row.job_name, row.job_id)}"
    yield f"  parameters {parameters_text(json.loads(row.says).get('parameters', {}))}"
    yield f"  look for a run created from {utc(row.from_ms)} to {utc(row.until_ms)}"
    yield f"  because {one_line(row.error) or 'its launcher ended before a response came'}"

    if row.job_run_id:
        yield f"  a response named the jobRunId {row.job_run_id}"


def log_line(entry: "LogEntry") -> dict[str, Any]:
    """Return an entry of ``log`` as documented; names in ``Ms`` become times in ``Utc``."""
    line = {"utc": utc(entry.ms), "kind": entry.kind, "session": entry.session}
    line |= {"key": entry.key, "target": entry.target}

    for name, value in entry.details.items():
        if name.endswith("Ms"):
            line[f"{name[:-2]}Utc"] = None if value is None else utc(value)
        else:
            line[name] = value

    return line


# Progress.


def count_cause(causes: Causes, row: Outcome) -> str | None:
    """Count the cause of a row without a run; return its text if the cause is new."""
    if row.state is RowState.STARTED:
        return None

    status = f"HTTP {row.status}: " if row.status and "HTTP" not in row.error else ""
    place = f"row {row.row:,}, key {row.key}"
    cause = add_cause(causes, row.state.value, one_line(f"{status}{row.error}", 160), place)
    return _cause_text(cause) if cause["count"] == 1 else None


def _cause_text(cause: Mapping[str, Any]) -> str:
    return f"{cause['kind']}: {cause['text']} (first: {cause['examples'][0]})"


def cause_lines(causes: Causes) -> Iterator[str]:
    """Yield a line for each cause of rows without a run, the most frequent first."""
    ordered = sorted(causes.values(), key=lambda cause: -cause["count"])

    for cause in ordered[:SHOWN]:
        yield f"{count(cause['count'], 'row')} {_cause_text(cause)}"

    if rest := ordered[SHOWN:]:
        rows = sum(cause["count"] for cause in rest)
        yield f"{count(rows, 'row')} for {len(rest):,} other causes: see results"


@dataclass
class Progress:
    """Listener that counts the events of a launch or a watch and prints progress.

    Args:
        printer: prints it.
        noun: what is counted: ``"row"`` or ``"run"``.
        whole: how many are to end; None: not known yet.
        clock: monotonic, seconds.

    Attributes:
        counts: rows or runs that ended in this session, by state.
        causes: of rows without a run.
        is_over: the launch has ended; later events are not printed.
    """

    printer: Printer
    noun: str = "row"
    whole: int | None = None
    clock: Callable[[], float] = time.monotonic
    counts: Counter[str] = field(default_factory=Counter)
    causes: Causes = field(default_factory=dict)
    is_over: bool = False
    _retries: int = 0
    _pulse: events.Pulse | None = None
    _pauses: dict[str, tuple[float, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._reported = self.clock()
        self._marks = deque([(self._reported, 0)], RATE_WINDOW + 1)
        self._has_block = self.printer.has_block

    def __call__(self, event: events.Event) -> None:
        """Count an event, and print it or the progress if that is due."""
        if self.is_over:
            return

        now, wait = self.clock(), REDRAW_EVERY if self._has_block else REPORT_EVERY

        if isinstance(event, events.Pulse):
            self._pulse = event
            self._marks.append((now, self.counts.total()))
        else:
            self._take(event, now)

        if now - self._reported >= wait:
            self._reported = now

            if self._has_block:
                self.printer.show("\n".join(self.lines(now)), self.counts.total(), self.whole)
            else:
                self.printer.say(", ".join(self.lines(now)))

    def _take(self, event: events.Event, now: float) -> None:
        printer = self.printer

        match event:
            case events.RowEnded(row):
                self._take_row(row)
            case events.RunEnded(run):
                how = "succeeded" if run.success else "failed" if run.finished else "untold"
                self.counts[how] += 1
                text = f": {one_line(run.status)}" if run.status else ""
                printer.detail(f"key {run.key}: run {run.job_run_id} {how}{text}")
            case events.RetryPlanned(row, seconds):
                self._retries += 1
                what = f"HTTP {row.status}, retry in {seconds:.1f} s"
                printer.detail(f"row {row.row:,} key {row.key}: {what}")
            case events.TargetPaused(target, why, seconds):
                self._pauses[target] = (now + seconds, why)
                printer.say(f"target {target}: all {self.noun}s wait {seconds:.1f} s: {why}")
            case events.Noted(message, is_warning):
                (printer.warn if is_warning else printer.say)(message)
            case events.Planned(plan):
                self.whole = plan.send
                self._marks = deque([(now, 0)], RATE_WINDOW + 1)
                printer.say(*plan_lines(plan))
                printer.warn(*plan.warnings)
            case events.TokenRenewed(target):
                printer.say(f"target {target}: the token was renewed")
            case events.Draining(in_flight, seconds) if in_flight:
                starts = count(in_flight, "start")
                printer.say(f"waiting up to {seconds:g} s for the responses to {starts};")
                printer.say("  a second signal ends the wait and leaves them unknown")
            case events.TargetStopped(stop):
                printer.insist(stop_line(stop))

    def _take_row(self, row: Outcome) -> None:
        """Count a row; print it with ``--verbose``, else its cause if that is new."""
        self.counts[str(row.state)] += 1
        cause = count_cause(self.causes, row)

        if self.printer.verbose:
            what = f"{row.state} {row.job_run_id or one_line(row.error)}"
            self.printer.detail(f"row {row.row:,} key {row.key}: {what}")
        elif cause is not None:
            self.printer.say(cause)

    @property
    def rate(self) -> float:
        """Rows or runs that end per second, over the last 30 seconds; 0: not known yet."""
        (since, before), (until, total) = self._marks[0], self._marks[-1]
        return (total - before) / (until - since) if until > since else 0.0

    def seconds_left(self, now: float) -> float | None:
        """Return an estimate of the seconds left; None: not known."""
        if self.whole is None or not self.rate:
            return None

        longest = max([0.0, *(until - now for until, _ in self._pauses.values())])
        return max(0, self.whole - self.counts.total()) / self.rate + longest

    def lines(self, now: float) -> Iterator[str]:
        """Yield the share that ended, the counts, the pace and the pauses."""
        ended, whole, pulse = self.counts.total(), self.whole, self._pulse
        of = "" if whole is None else f" of {whole:,}"
        share = f", {ended / whole:.0%}" if whole else ""
        yield f"{ended:,}{of} {self.noun}{'s' * ((whole or ended) != 1)} ended{share}"

        counts = [*self.counts.items(), ("retried", self._retries)]

        if counted := ", ".join(f"{number:,} {how}" for how, number in counts if number):
            yield counted

        form = ".2g" if self.rate < 10 else ",.0f"  # noqa: PLR2004  # two digits at least
        pace = [f"{self.rate:{form}} {self.noun}s/s"]

        if pulse is not None:
            slots = f"{count(pulse.slots, 'slot')} now"
            slots = "paused by deslaunch control" if pulse.is_paused else slots
            pace.insert(0, f"{pulse.in_flight:,} in flight, {slots}")

        if pulse is not None and pulse.drain is not None:
            pace.append(f"{duration(pulse.drain)} left for those in flight")
        elif not (pulse and pulse.is_paused) and (left := self.seconds_left(now)):
            pace.append(f"about {duration(left)} left")

        yield ", ".join(pace)

        for target, (until, cause) in self._pauses.items():
            if until > now:
                wait = f"all {self.noun}s wait {duration(until - now)} more"
                yield f"target {target}: {wait}: {cause}"
