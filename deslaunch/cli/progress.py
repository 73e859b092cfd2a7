"""What a launch has done so far, counted from its events: for a terminal, a log and a summary.

Pure: times are passed in, seconds of any clock that only goes forward.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from deslaunch.model import (
    Plan,
    Planned,
    Pulse,
    RetryPlanned,
    RowEnded,
    RowState,
    TargetPaused,
    counted,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deslaunch.model import Event, Outcome

MAX_CAUSES: Final = 100
"""Causes that are told apart; what comes after them is counted together."""

RATE_WINDOW: Final = 30.0
"""Seconds over which the rate is taken: what it was an hour ago says nothing of the rest."""

_WITHOUT_RUN: Final = (RowState.FAILED, RowState.REJECTED, RowState.UNKNOWN, RowState.INVALID)
_ROWS_OWN: Final = re.compile(
    r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9]+(?:[.:TZ+-][0-9]+)*", re.IGNORECASE
)
_SHOWN_TEXT: Final = 160
_SHORTEST_SPAN: Final = 0.5  # seconds: what the first rows did says little


@dataclass(slots=True)
class Cause:
    """Why rows have no run: one kind of error, with the first row that met it.

    Attributes:
        state: what the rows are now.
        target: the rows' target.
        status: the HTTP status, or None.
        error: what was said of the first row, cut to 160 characters, on one line.
        key: the first row's key, or None where it has none.
        row: the first row's number, from 1; 0 for causes that are counted together.
        line: the first row's line, or None where it is not known.
        rows: how many rows met it.
    """

    state: RowState
    target: str
    status: int | None
    error: str
    key: str | None
    row: int
    line: int | None
    rows: int = 1

    def __str__(self) -> str:
        return f"{counted(self.rows, 'row')} {self.state}: {self.error}{self.example}"

    @property
    def example(self) -> str:
        """The first row, in brackets behind a space; ``""`` where none stands for the others."""
        if not self.row:
            return ""

        key = "" if self.key is None else f", key {self.key}"
        line = "" if self.line is None else f", line {self.line:,}"
        return f" (first: row {self.row:,}{line}{key})"


class Causes:
    """Groups errors that differ only in numbers and GUIDs, which are the rows' own."""

    def __init__(self) -> None:
        self._found: dict[tuple[object, ...], Cause] = {}

    def __repr__(self) -> str:
        return f"<Causes {len(self._found)}>"

    def __iter__(self) -> Iterator[Cause]:
        return iter(sorted(self._found.values(), key=lambda cause: -cause.rows))

    def add(self, outcome: Outcome) -> Cause | None:
        """Take in a row that ended; return its cause where that is a new one."""
        if outcome.state not in _WITHOUT_RUN:
            return None

        text = _told(outcome)
        kind: tuple[object, ...] = (
            outcome.state,
            outcome.target,
            outcome.status,
            _ROWS_OWN.sub("#", text),
        )

        cause = _cause(outcome, text)

        if kind not in self._found and len(self._found) >= MAX_CAUSES:
            kind, cause = (outcome.state, outcome.target), _rest(outcome)

        known = self._found.setdefault(kind, cause)

        if known is cause:
            return cause

        known.rows += 1
        return None


def _told(outcome: Outcome) -> str:
    text = outcome.problems[0].message if outcome.problems else outcome.error
    words = " ".join(text.split())
    status = f"HTTP {outcome.status}: " if outcome.status and "HTTP" not in words else ""
    whole = f"{status}{words}"
    return whole if len(whole) <= _SHOWN_TEXT else f"{whole[: _SHOWN_TEXT - 1]}…"


def _rest(outcome: Outcome) -> Cause:
    return Cause(outcome.state, outcome.target, None, "for other reasons", None, 0, None)


def _cause(outcome: Outcome, text: str) -> Cause:
    line = outcome.problems[0].line if outcome.problems else None
    return Cause(
        outcome.state, outcome.target, outcome.status, text, outcome.key, outcome.row, line
    )


class Tally:
    """Counts what a launch does.

    Args:
        now: when it began.

    Attributes:
        plan: what the launch is about to do, or None where that was not told.
        counts: rows that ended in this session, by state.
        retries: how often rows were sent again, or will be.
        pulse: how it is getting on, or None before the first second is over.
        causes: why rows have no run.
    """

    def __init__(self, now: float) -> None:
        self.plan: Plan | None = None
        self.counts: Counter[RowState] = Counter()
        self.retries = 0
        self.pulse: Pulse | None = None
        self.causes = Causes()
        self._began = now
        self._is_planned = False  # and nothing was done yet: a person may think about the plan
        self._marks: deque[tuple[float, int]] = deque([(now, 0)])
        self._pauses: dict[str, tuple[float, str]] = {}

    def __repr__(self) -> str:
        return f"<Tally {dict(self.counts)}>"

    @property
    def ended(self) -> int:
        """Rows that ended in this session."""
        return self.counts.total()

    @property
    def left(self) -> int | None:
        """Rows that are still to end, or None where nobody knows."""
        if self.plan is None:
            return None

        return max(0, self.plan.send - self.ended + self.counts[RowState.INVALID])

    def take(self, event: Event, now: float) -> Cause | None:
        """Take in an event; return the cause where it tells of a row without a run, by a new one.

        Args:
            event: any.
            now: the time.
        """
        if self._is_planned and isinstance(event, RowEnded | Pulse | RetryPlanned | TargetPaused):
            self._is_planned = False
            self._marks = deque([(now, self.ended)])

        match event:
            case RowEnded(outcome):
                self.counts[outcome.state] += 1
                return self.causes.add(outcome)
            case RetryPlanned():
                self.retries += 1
            case TargetPaused(target, cause, seconds):
                self._pauses[target] = (now + seconds, cause)
            case Planned(plan):
                self.plan = plan
                self._is_planned = True
            case Pulse():
                self.pulse = event
                self._mark(now)

        return None

    def rate(self, now: float) -> float:
        """Return how many rows end a second, over the last 30 seconds; 0 before that is known."""
        since, before = self._marks[0]
        span = now - since
        return (self.ended - before) / span if span >= _SHORTEST_SPAN else 0.0

    def seconds_left(self, now: float) -> float | None:
        """Return about how long the rest takes, seconds; None where nothing tells."""
        rate = self.rate(now)
        pause = max((seconds for _, seconds, _ in self.pauses(now)), default=0.0)
        return None if self.left is None or not rate else pause + self.left / rate

    def pauses(self, now: float) -> Iterator[tuple[str, float, str]]:
        """Yield the targets that wait, how many seconds more, and why."""
        for target, (until, cause) in self._pauses.items():
            if until > now:
                yield target, until - now, cause

    def _mark(self, now: float) -> None:
        self._marks.append((now, self.ended))

        while len(self._marks) > 1 and now - self._marks[1][0] >= RATE_WINDOW:
            self._marks.popleft()


def duration(seconds: float) -> str:
    """Return a time as a person says it: ``45 s``, ``12 min``, ``3 h 5 min``."""
    whole = max(1, round(seconds))

    if whole < 120:  # noqa: PLR2004  # up to two minutes, seconds say more
        return f"{whole} s"

    minutes = round(whole / 60)
    hours, rest = divmod(minutes, 60)

    if not hours:
        return f"{minutes} min"

    return f"{hours:,} h {rest} min" if rest else f"{hours:,} h"
