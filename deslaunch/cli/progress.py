"""What the events of a session add up to, and when that is told.

Errors are grouped by their cause: the first row of each gets a line, the others are counted. On a
terminal a block of a few lines is redrawn in its place; elsewhere a line comes every ten seconds.
"""

from __future__ import annotations

import re
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Final

from deslaunch import events
from deslaunch.cli import render
from deslaunch.model import RowState, count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from deslaunch.cli.terminal import Printer
    from deslaunch.events import Event
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


_MOVING: Final = (
    *(events.RowEnded, events.RunEnded, events.RetryPlanned),
    *(events.Pulse, events.TargetPaused),
)
"""Events after which progress looks another."""


class Causes:
    """Groups errors that differ only in numbers and GUIDs, which are the rows' own."""

    def __init__(self) -> None:
        self._texts: dict[tuple[object, ...], str] = {}
        self._rows: Counter[tuple[object, ...]] = Counter()

    def add(self, outcome: Outcome) -> str | None:
        """Take in a row that ended; return its cause, in words, where that is a new one."""
        if outcome.state is RowState.STARTED:
            return None

        text = outcome.problems[0].message if outcome.problems else outcome.error
        status = f"HTTP {outcome.status}: " if outcome.status and "HTTP" not in text else ""
        text = render.one_line(f"{status}{text}", _CAUSE_TEXT)
        line = f", line {outcome.problems[0].line:,}" if outcome.problems else ""
        key = f", key {outcome.key}" if outcome.key else ""
        told = f"{outcome.state}: {text} (first: row {outcome.row:,}{line}{key})"
        kind: tuple[object, ...] = (outcome.state, outcome.target, outcome.status)
        kind = (*kind, _ROWS_OWN.sub("#", text))

        if kind not in self._texts and len(self._texts) >= MAX_CAUSES:
            kind, told = (outcome.state,), f"{outcome.state}: for other reasons"

        self._rows[kind] += 1
        is_new = self._texts.setdefault(kind, told) is told
        return told if is_new else None

    def lines(self) -> Iterator[str]:
        """Yield why rows have no run, the most frequent cause first, a line each."""
        found = self._rows.most_common()

        for kind, rows in found[: render.SHOWN_CAUSES]:
            yield f"{count(rows, 'row')} {self._texts[kind]}"

        if rest := found[render.SHOWN_CAUSES :]:
            rows = sum(rows for _, rows in rest)
            yield f"{count(rows, 'row')} for {len(rest):,} other causes: see results"


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
        self.pulse: events.Pulse | None = None
        self.causes = Causes()
        self.noun = noun
        self.whole = whole
        self._marks: deque[tuple[float, int]] = deque([(now, 0)])
        self._pauses: dict[str, tuple[float, str]] = {}

    @property
    def ended(self) -> int:
        """Rows, or runs, that ended in this session."""
        return self.counts.total()

    def take(self, event: Event, now: float) -> str | None:
        """Take in an event; return the cause of a row without a run, where that is a new one."""
        match event:
            case events.RowEnded(outcome):
                self.counts[str(outcome.state)] += 1
                return self.causes.add(outcome)
            case events.RunEnded(status):
                self.counts[how_it_ended(status)] += 1
            case events.RetryPlanned():
                self.retries += 1
            case events.TargetPaused(target, cause, seconds):
                self._pauses[target] = (now + seconds, cause)
            case events.Planned(plan):
                self.whole = plan.send
                self._marks = deque([(now, 0)])
            case events.Pulse():
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

        if self.whole is None or not rate:
            return None

        left = max(0, self.whole - self.ended + self.counts[RowState.INVALID])
        return left / rate + max((seconds for _, seconds, _ in self.pauses(now)), default=0.0)

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
            pace.append(f"{render.duration(pulse.drain)} left for those in flight")
        elif left := self.seconds_left(now):
            pace.append(f"about {render.duration(left)} left")

        lines.append((", ".join(pace), "dim"))

        for target, seconds, cause in self.pauses(now):
            wait = f"all {self.noun}s wait {render.duration(seconds)} more"
            lines.append((f"target {target}: {wait}: {cause}", "yellow"))

        return lines


def how_it_ended(status: RunStatus) -> str:
    """Return what became of a run that is asked about no more."""
    if not status.finished:
        return "untold"

    return "succeeded" if status.success else "failed"


class Progress:
    """Tells what a launch, or a watch, does while it does it. Close it at the end.

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
        self._tell(event, self.tally.take(event, now))

        if now - self._reported >= self._every and isinstance(event, _MOVING):
            self._report(now)

    def _tell(self, event: Event, cause: str | None) -> None:
        printer = self._printer

        match event:
            case events.RowEnded() | events.RunEnded() | events.RetryPlanned():
                if printer.verbose:
                    printer.insist(_line_of(event))
                elif cause is not None:
                    printer.say(cause)
            case events.TargetPaused(target, why, seconds):
                printer.say(f"target {target}: all {self.tally.noun}s wait {seconds:.1f} s: {why}")
            case events.Noted(message, is_warning):
                (printer.warn if is_warning else printer.say)(message)
            case events.Planned(plan):
                printer.say(*render.plan_lines(plan))
                printer.warn(*plan.warnings)
            case events.TokenRenewed(target):
                printer.say(f"target {target}: the token was renewed")
            case events.Draining(in_flight, seconds) if in_flight:
                starts = count(in_flight, "start")
                printer.say(f"waiting up to {seconds:g} s for the responses to {starts};")
                printer.say("  a second signal gives them up as unknown")
            case events.TargetStopped(stop):
                printer.insist(render.stop_line(stop))

    def _report(self, now: float) -> None:
        self._reported = now

        if self._every == REDRAW_EVERY:
            self._has_block = True
            self._printer.show(self.tally.lines(now), self.tally.ended, self.tally.whole)
        else:
            self._printer.say(", ".join(text for text, _ in self.tally.lines(now)))


def _line_of(event: events.RowEnded | events.RunEnded | events.RetryPlanned) -> str:
    match event:
        case events.RowEnded(row):
            what = row.job_run_id or render.one_line(row.error)
            return f"row {row.row:,} key {row.key}: {row.state} {what}"
        case events.RetryPlanned(row, seconds):
            return f"row {row.row:,} key {row.key}: HTTP {row.status}, again in {seconds:.1f} s"
        case events.RunEnded(run):
            text = f": {render.one_line(run.status)}" if run.status else ""
            return f"key {run.key}: run {run.job_run_id} {how_it_ended(run)}{text}"
