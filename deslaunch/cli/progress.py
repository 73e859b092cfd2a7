"""What the events of a session add up to, and when that is told.

Errors are grouped by their cause: the first row of each gets a line, the others are counted. On a
terminal a block of a few lines is redrawn in its place; elsewhere a line comes every ten seconds.
"""

from __future__ import annotations

import re
import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from deslaunch.cli.render import (
    SHOWN_CAUSES,
    duration,
    one_line,
    plan_lines,
    stop_line,
)
from deslaunch.events import (
    Draining,
    Noted,
    Planned,
    Pulse,
    RetryPlanned,
    RowEnded,
    RunEnded,
    TargetPaused,
    TargetStopped,
    TokenRenewed,
)
from deslaunch.model import RowState, count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from deslaunch.cli.terminal import Printer
    from deslaunch.events import Event, Plan
    from deslaunch.model import Outcome, RunStatus

MAX_CAUSES: Final = 100
"""Causes that are told apart; what comes after them is counted together."""

RATE_WINDOW: Final = 30.0
"""Seconds over which the rate is taken: what it was an hour ago says nothing of the rest."""

REPORT_EVERY: Final = 10.0
"""Seconds between two lines of progress where nobody sees a terminal."""

REDRAW_EVERY: Final = 0.2
"""Seconds between two pictures of the block on a terminal."""

_SHORTEST_SPAN: Final = 0.5  # seconds: what the first rows did says little
_CAUSE_TEXT: Final = 160
_STYLES: Final = {"started": "green", "succeeded": "green", "unknown": "bold yellow"}
_PASSING: Final = frozenset({"dim", "yellow"})
"""Styles of what holds only while it goes on: the pace, and why it waits."""

_ROWS_OWN: Final = re.compile(
    r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9]+(?:[.:TZ+-][0-9]+)*", re.IGNORECASE
)


@dataclass(slots=True)
class Cause:
    """Why rows have no run: one kind of error.

    Attributes:
        state: what the rows are now.
        error: what was said of the first row, cut, on one line.
        example: the first row, in words; ``""`` where none stands for the others.
        rows: how many rows met it.
    """

    state: RowState
    error: str
    example: str
    rows: int = 1

    def __str__(self) -> str:
        example = f" (first: {self.example})" if self.example else ""
        return f"{self.state}: {self.error}{example}"


class Causes:
    """Groups errors that differ only in numbers and GUIDs, which are the rows' own."""

    def __init__(self) -> None:
        self._found: dict[tuple[object, ...], Cause] = {}

    def add(self, outcome: Outcome) -> Cause | None:
        """Take in a row that ended; return its cause where that is a new one."""
        if outcome.state is RowState.STARTED:
            return None

        text = outcome.problems[0].message if outcome.problems else outcome.error
        status = f"HTTP {outcome.status}: " if outcome.status and "HTTP" not in text else ""
        text = one_line(f"{status}{text}", _CAUSE_TEXT)
        kind: tuple[object, ...] = (
            outcome.state,
            outcome.target,
            outcome.status,
            _ROWS_OWN.sub("#", text),
        )

        if kind not in self._found and len(self._found) >= MAX_CAUSES:
            kind, text = (outcome.state,), "for other reasons"

        if (known := self._found.get(kind)) is not None:
            known.rows += 1
            return None

        line = f", line {outcome.problems[0].line:,}" if outcome.problems else ""
        key = f", key {outcome.key}" if outcome.key else ""
        example = "" if len(kind) == 1 else f"row {outcome.row:,}{line}{key}"
        cause = self._found[kind] = Cause(outcome.state, text, example)
        return cause

    def lines(self) -> Iterator[str]:
        """Yield why rows have no run, the most frequent cause first, a line each."""
        found = sorted(self._found.values(), key=lambda cause: -cause.rows)

        for cause in found[:SHOWN_CAUSES]:
            yield f"{count(cause.rows, 'row')} {cause}"

        if rest := found[SHOWN_CAUSES:]:
            rows = count(sum(cause.rows for cause in rest), "row")
            yield f"{rows} for {len(rest):,} other causes: see results"


class Tally:
    """Counts what a launch, or a watch, does. Pure: times are passed in.

    Args:
        now: when it began, seconds of a clock that only goes forward.
        noun: what ends: ``"row"`` or ``"run"``.
        whole: how many are to end, or None where nobody knows yet.

    Attributes:
        counts: what ended in this session, by how.
        retries: how often rows were sent again, or will be.
        pulse: how it is getting on, or None before the first second is over.
        causes: why rows have no run.
    """

    def __init__(self, now: float, noun: str = "row", whole: int | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self.retries = 0
        self.pulse: Pulse | None = None
        self.causes = Causes()
        self.noun = noun
        self.whole = whole
        self._marks: deque[tuple[float, int]] = deque([(now, 0)])
        self._pauses: dict[str, tuple[float, str]] = {}

    @property
    def ended(self) -> int:
        """Rows, or runs, that ended in this session."""
        return self.counts.total()

    def take(self, event: Event, now: float) -> Cause | None:
        """Take in an event; return the cause of a row without a run, where that is a new one."""
        match event:
            case RowEnded(outcome):
                self.counts[str(outcome.state)] += 1
                return self.causes.add(outcome)
            case RunEnded(status):
                self.counts[how_it_ended(status)] += 1
            case RetryPlanned():
                self.retries += 1
            case TargetPaused(target, cause, seconds):
                self._pauses[target] = (now + seconds, cause)
            case Planned(plan):
                self.whole = plan.send
                self._marks = deque([(now, 0)])
            case Pulse():
                self.pulse = event
                self._marks.append((now, self.ended))

                while len(self._marks) > 1 and now - self._marks[1][0] >= RATE_WINDOW:
                    self._marks.popleft()

        return None

    def rate(self, now: float) -> float:
        """Return how many end a second, over the last 30 seconds; 0 before that is known."""
        since, before = self._marks[0]
        span = now - since
        return (self.ended - before) / span if span >= _SHORTEST_SPAN else 0.0

    def seconds_left(self, now: float) -> float | None:
        """Return about how long the rest takes, seconds; None where nothing tells."""
        rate = self.rate(now)
        pause = max((seconds for _, seconds, _ in self.pauses(now)), default=0.0)
        return None if self.whole is None or not rate else pause + self._left(self.whole) / rate

    def _left(self, whole: int) -> int:
        return max(0, whole - self.ended + self.counts[RowState.INVALID])

    def pauses(self, now: float) -> Iterator[tuple[str, float, str]]:
        """Yield the targets that wait, how many seconds more, and why."""
        for target, (until, cause) in self._pauses.items():
            if until > now:
                yield target, until - now, cause

    def lines(self, now: float) -> list[tuple[str, str]]:
        """Return how far it is, the counts, the pace and the waits, each with its style."""
        of = "" if self.whole is None else f" of {self.whole:,}"
        share = f", {self.ended / self.whole:.0%}" if self.whole else ""
        noun = self.noun if (self.whole or self.ended) == 1 else f"{self.noun}s"
        lines = [(f"{self.ended:,}{of} {noun} ended{share}", "bold")]
        lines += [(f"{n:,} {how}", _STYLES.get(how, "red")) for how, n in self.counts.items()]

        if self.retries:
            lines.append((f"{self.retries:,} sent again", ""))

        pace = [f"{self.rate(now):,.0f} {self.noun}s/s"]

        if (pulse := self.pulse) is not None:
            pace.insert(0, f"{pulse.in_flight:,} in flight, {count(pulse.slots, 'slot')} now")

        if pulse is not None and pulse.drain is not None:
            pace.append(f"{duration(pulse.drain)} left for those in flight")
        elif left := self.seconds_left(now):
            pace.append(f"about {duration(left)} left")

        lines.append((", ".join(pace), "dim"))

        for target, seconds, cause in self.pauses(now):
            text = f"target {target}: all {self.noun}s wait {duration(seconds)} more: {cause}"
            lines.append((text, "yellow"))

        return lines


def how_it_ended(status: RunStatus) -> str:
    """Return what became of a run that is asked about no more."""
    if not status.finished:
        return "untold"

    return "succeeded" if status.success else "failed"


class Progress:
    """Tells what a launch, or a watch, does while it does it. Use it as a context manager.

    Args:
        printer: where to tell it.
        noun: what ends: ``"row"`` or ``"run"``.
        whole: how many are to end, or None where nobody knows yet.
        clock: seconds of a clock that only goes forward.
    """

    def __init__(
        self,
        printer: Printer,
        noun: str = "row",
        whole: int | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._printer = printer
        self._clock = clock
        self._reported = clock()
        self._every = REDRAW_EVERY if printer.has_block else REPORT_EVERY
        self._has_block = False
        self.tally = Tally(self._reported, noun, whole)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the block as it stands at the end; without one there is nothing to leave."""
        if self._has_block:
            self._has_block = False
            tally = self.tally
            lasting = [line for line in tally.lines(self._clock()) if line[1] not in _PASSING]
            self._printer.show(lasting, tally.ended, tally.whole)
            self._printer.end_block()

    def __call__(self, event: Event) -> None:
        """Take in an event, and tell what is to be told."""
        now = self._clock()
        cause = self.tally.take(event, now)

        if isinstance(event, (RowEnded, RunEnded, RetryPlanned)):
            self._tell_end(event, cause)
        else:
            self._tell(event)

        if isinstance(event, (RowEnded, RunEnded, Pulse, TargetPaused, RetryPlanned)):
            self._report(now)

    def _tell_end(self, event: RowEnded | RunEnded | RetryPlanned, cause: Cause | None) -> None:
        if self._printer.verbose:
            self._printer.insist(_line_of(event))
        elif cause is not None:
            self._printer.say(str(cause))

    def _tell(self, event: Event) -> None:
        printer = self._printer

        match event:
            case TargetPaused(target, why, seconds):
                printer.say(f"target {target}: all {self.tally.noun}s wait {seconds:.1f} s: {why}")
            case Noted(message, is_warning):
                (printer.warn if is_warning else printer.say)(message)
            case Planned(plan):
                self._tell_plan(plan)
            case TokenRenewed(target):
                printer.say(f"target {target}: the token was renewed")
            case Draining(in_flight, seconds) if in_flight:
                starts = count(in_flight, "start")
                printer.say(f"waiting up to {seconds:g} s for the responses to {starts};")
                printer.say("  a second signal gives them up as unknown")
            case TargetStopped(stop):
                printer.insist(stop_line(stop))

    def _tell_plan(self, plan: Plan) -> None:
        for line in plan_lines(plan):
            self._printer.say(line)

        for warning in plan.warnings:
            self._printer.warn(warning)

    def _report(self, now: float) -> None:
        if now - self._reported < self._every:
            return

        self._reported = now

        if self._every == REDRAW_EVERY:
            self._has_block = True
            self._printer.show(self.tally.lines(now), self.tally.ended, self.tally.whole)
        else:
            self._printer.say(", ".join(text for text, _ in self.tally.lines(now)))


def _line_of(event: RowEnded | RunEnded | RetryPlanned) -> str:
    match event:
        case RowEnded(row):
            what = row.job_run_id or one_line(row.error)
            return f"row {row.row:,} key {row.key}: {row.state} {what}"
        case RetryPlanned(row, seconds):
            again = f"again in {seconds:.1f} s"
            return f"row {row.row:,} key {row.key}: HTTP {row.status}, {again}"
        case RunEnded(run):
            text = f": {one_line(run.status)}" if run.status else ""
            return f"key {run.key}: run {run.job_run_id} {how_it_ended(run)}{text}"
