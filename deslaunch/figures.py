"""What a ledger's records add up to over time: one pass, in memory that does not grow with it.

Pure. Times are milliseconds since 1970, durations are milliseconds. Counts over time lie in
buckets of equal width, and only buckets in which something happened are kept; where they become
too many, all are made wider. Durations lie in a histogram whose buckets are 1 ms wide below
100 ms and 2 % wide above, so that a percentile is exact below 100 ms and at most 1 % off above.
Causes are grouped by their text without its numbers and ids, with a few examples each.

What does grow is what is kept of runs that were watched: a few words for each.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from deslaunch.model import DEFAULT_TARGET

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from deslaunch.records import Record

WIDTHS: Final = (
    *(100, 200, 1_000, 2_000, 10_000, 30_000, 60_000, 120_000, 600_000, 1_800_000),
    *(3_600_000, 10_800_000, 21_600_000, 43_200_000, 86_400_000),
)
"""Widths of a bucket in milliseconds; each is a multiple of the one before."""

BUCKETS: Final = 300
SPANS: Final = 300
CAUSES: Final = 200
EXAMPLES: Final = 3
CAUSE_LIMIT: Final = 300
"""Characters that are kept of a text."""

OTHER: Final = "other causes"

_SERIES_OF: Final = {
    "started": "started",
    "answered": "again",
    "unsent": "again",
    "failed": "failed",
    "rejected": "rejected",
    "unknown": "unknown",
}
"""What is counted over time; ``again`` are attempts that left their row pending."""

_ANSWERS: Final = frozenset({"started", "answered", "rejected", "failed"})
_EXACT: Final = 100
_GROWTH: Final = 1.02
_VARYING: Final = re.compile(
    r"[0-9a-fA-F]{8}(?:-?[0-9a-fA-F]{4}){3}-?[0-9a-fA-F]{12}|(?<!HTTP )(?<![0-9])[0-9]+"
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)


def ms_of(utc: str) -> int:
    """Return the milliseconds since 1970 of a time in RFC 3339; one without a zone is UTC.

    Raises:
        ValueError: it is no such time.
    """
    time = datetime.fromisoformat(utc)
    time = time if time.tzinfo else time.replace(tzinfo=UTC)
    return (time - _EPOCH) // _MILLISECOND


class Timeline:
    """Counts of each series over time, in at most 300 buckets.

    Attributes:
        width: of each bucket, in milliseconds; the narrowest of ``WIDTHS`` for which the
            buckets are few enough, or some days.
        buckets: counts by number of the bucket; bucket n begins at n times the width.
    """

    def __init__(self) -> None:
        self.width = WIDTHS[0]
        self.buckets: dict[int, Counter[str]] = {}

    def __repr__(self) -> str:
        return f"<Timeline of {len(self.buckets)} buckets of {self.width} ms>"

    def add(self, ms: int, series: str) -> None:
        """Count one event."""
        number = ms // self.width
        bucket = self.buckets.get(number)

        if bucket is None:
            bucket = self.buckets[number] = Counter()

        bucket[series] += 1

        while len(self.buckets) > BUCKETS:
            self._widen()

    def _widen(self) -> None:
        old, narrow = self.buckets, self.width
        self.width = next((width for width in WIDTHS if width > narrow), narrow * 2)
        self.buckets = {}

        for number, counts in old.items():
            self.buckets.setdefault(number * narrow // self.width, Counter()).update(counts)

    def total(self, series: str) -> int:
        """Return how many events of a series there were."""
        return sum(counts[series] for counts in self.buckets.values())

    def counts(self) -> Iterator[tuple[int, Counter[str]]]:
        """Yield begin and counts of each bucket in which something happened, in order."""
        for number in sorted(self.buckets):
            yield number * self.width, self.buckets[number]


class Durations:
    """Durations, and how they are spread.

    Attributes:
        count: how many there are.
        longest: in milliseconds; 0 where there is none.
    """

    def __init__(self) -> None:
        self.count = 0
        self.longest = 0
        self._buckets: Counter[int] = Counter()

    def __repr__(self) -> str:
        return f"<Durations {self.count}, at most {self.longest} ms>"

    def add(self, ms: int) -> None:
        """Count a duration; one below 0, by a clock that was set back, counts as 0."""
        ms = max(0, ms)
        self.count += 1
        self.longest = max(self.longest, ms)
        exact = ms < _EXACT
        self._buckets[ms if exact else _EXACT + int(math.log(ms / _EXACT, _GROWTH))] += 1

    def percentile(self, share: float) -> float:
        """Return the least duration that ``share`` of all do not exceed, in milliseconds.

        Exact below 100 ms, and where it is the longest; at most 1 % off else.

        Args:
            share: above 0, up to 1.
        """
        left = math.ceil(share * self.count)

        if left == self.count:
            return self.longest

        for ms, count in self.values():
            left -= count

            if left <= 0:
                return ms

        raise AssertionError("a share above 1")

    def values(self) -> Iterator[tuple[float, int]]:
        """Yield durations and how many have them, in order."""
        for number, count in sorted(self._buckets.items()):
            above = number - _EXACT
            yield (number if above < 0 else _EXACT * _GROWTH ** (above + 0.5)), count


@dataclass(slots=True)
class Cause:
    """One thing that went wrong, and how often.

    Attributes:
        kind: what it led to, or whom it held up.
        text: what was said the first time, at most 300 characters.
        count: how often it happened.
        seconds: that it took in all.
        examples: keys of the first rows that it happened to.
    """

    kind: str
    text: str
    count: int = 0
    seconds: float = 0.0
    examples: list[str] = field(default_factory=list)


class Causes:
    """What went wrong, grouped: at most 200 groups, and one more for all else."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, str], Cause] = {}

    def __len__(self) -> int:
        return len(self._groups)

    def add(self, kind: str, text: str, key: str | None = None, seconds: float = 0.0) -> None:
        """Count one case of ``text``, which happened to the row ``key``."""
        cut = text[:CAUSE_LIMIT]
        name = (kind, _VARYING.sub("#", cut))

        if name not in self._groups and len(self._groups) >= CAUSES:
            cut, name = OTHER, (kind, OTHER)

        cause = self._groups.setdefault(name, Cause(kind, cut))
        cause.count += 1
        cause.seconds += seconds

        if key is not None and len(cause.examples) < EXAMPLES:
            cause.examples.append(key)

    def worst(self) -> list[Cause]:
        """Return the groups, the most frequent first."""
        return sorted(self._groups.values(), key=lambda cause: -cause.count)


class Span(NamedTuple):
    """A stretch of time in milliseconds since 1970, and what it was."""

    begin: int
    end: int
    label: str


class Spans:
    """Stretches of time: the first 300; a stretch that touches its forerunner lengthens it.

    Attributes:
        kept: in the order in which they were added.
        left_out: how many came after the first 300.
    """

    def __init__(self) -> None:
        self.kept: list[Span] = []
        self.left_out = 0

    def __repr__(self) -> str:
        return f"<Spans {len(self.kept)}, {self.left_out} left out>"

    def add(self, begin: int, end: int, label: str) -> None:
        """Keep a stretch."""
        last = self.kept[-1] if self.kept else None

        if last is not None and last.label == label and last.begin <= begin <= last.end:
            self.kept[-1] = last._replace(end=max(last.end, end))
        elif len(self.kept) < SPANS:
            self.kept.append(Span(begin, end, label))
        else:
            self.left_out += 1


class RunEnd(NamedTuple):
    """What was last seen of a run that was watched.

    Attributes:
        finished: it has ended.
        success: it ended well; of no meaning before it has ended.
        status: what DES said of it, at most 300 characters.
        ms: from its creation to its end, or None.
    """

    finished: bool
    success: bool
    status: str
    ms: int | None

    @property
    def word(self) -> str:
        """What became of the run, in a word or two."""
        return "not finished" if not self.finished else "succeeded" if self.success else "failed"


class Figures:
    """What the records of one or more ledgers add up to.

    Attributes:
        timeline: attempts over time, by what became of them.
        answers: durations from an attempt's record to that of its answer.
        again: why rows were left to be sent again.
        pauses: when a target's rows waited; the label is the target.
        paused: why they waited, for how long; the kind is the target.
        launches: when a launcher was at work.
        run_times: durations of runs that were watched to their end.
        runs: how many of the watched runs ended how.
        run_failures: what DES said of runs that failed.
    """

    def __init__(self) -> None:
        self.timeline = Timeline()
        self.answers = Durations()
        self.again = Causes()
        self.pauses = Spans()
        self.paused = Causes()
        self.launches = Spans()
        self.run_times = Durations()
        self.runs: Counter[str] = Counter()
        self.run_failures = Causes()

    def read(self, records: Iterable[Record]) -> dict[str, RunEnd]:
        """Take in a ledger's records, and return what became of its watched runs, by key."""
        reading = _Reading(self)

        for record in records:
            reading.take(record)

        reading.end_launch()

        for key, run in reading.runs.items():
            self._count_run(key, run)

        return reading.runs

    def _count_run(self, key: str, run: RunEnd) -> None:
        self.runs[run.word] += 1

        if run.ms is not None:
            self.run_times.add(run.ms)

        if run.finished and not run.success:
            self.run_failures.add("run failed", run.status or "DES gave no reason", key)


class _Reading:
    """The pass over one ledger: what must be remembered from one record to the next."""

    def __init__(self, figures: Figures) -> None:
        self.runs: dict[str, RunEnd] = {}
        self._figures = figures
        self._sent: dict[tuple[str, int], int] = {}
        self._pauses: list[Span] = []
        self._launch = ""
        self._began = self._last = 0

    def take(self, record: Record) -> None:
        """Take in the next record."""
        kind = record["record"]

        if kind == "batch" or "utc" not in record:
            return

        now = ms_of(record["utc"])

        if kind == "session":
            self.end_launch()
            self._begin_launch(record, now)

        self._last = max(self._last, now)

        if kind == "sending":
            self._sent[record["key"], record["attempt"]] = now
        elif kind in _SERIES_OF:
            self._take_outcome(kind, record, now)
        elif kind == "pause":
            self._take_pause(record, now)
        elif kind == "runStatus":
            self.runs[record["key"]] = run_end(record)
        elif kind == "end":
            self.end_launch()

    def _take_outcome(self, kind: str, record: Record, now: int) -> None:
        figures, key = self._figures, record["key"]
        series = _SERIES_OF[kind]
        figures.timeline.add(now, series)
        sent = self._sent.pop((key, record["attempt"]), None)

        if sent is not None and kind in _ANSWERS:
            figures.answers.add(now - sent)

        if series == "again":
            figures.again.add(again_kind(record), record.get("error") or "no reason given", key)

    def _take_pause(self, record: Record, now: int) -> None:
        target, seconds = record.get("target", DEFAULT_TARGET), float(record.get("seconds", 0))
        self._figures.paused.add(target, record.get("cause") or "no reason given", None, seconds)
        self._pauses.append(Span(now, now + round(seconds * 1000), target))

        if len(self._pauses) > SPANS:
            self._settle_pauses(None)

    def _settle_pauses(self, until: int | None) -> None:
        """Keep the pauses; none outlasts the launcher that made it."""
        for begin, end, label in self._pauses:
            self._figures.pauses.add(begin, end if until is None else min(end, until), label)

        self._pauses.clear()

    def _begin_launch(self, record: Record, now: int) -> None:
        self._launch = f"process {record.get('pid')} on {record.get('host')}"
        self._began = self._last = now
        self._sent.clear()  # no answer comes to what an earlier launcher sent

    def end_launch(self) -> None:
        """Take it that the launcher ended with the last record."""
        self._settle_pauses(self._last)

        if self._launch:
            self._figures.launches.add(self._began, self._last, self._launch)
            self._launch = ""


def again_kind(record: Record) -> str:
    """Return what left a row to be sent again, in a word or two."""
    status = record.get("status")
    return "not sent" if status is None else f"HTTP {status}"


def run_end(record: Record) -> RunEnd:
    """Return what a ``runStatus`` record says; what it leaves out counts as not known."""
    finished = record.get("finished") is True
    return RunEnd(
        finished=finished,
        success=record.get("success") is True,
        status=str(record.get("status") or "")[:CAUSE_LIMIT],
        ms=_between(record.get("createdUtc"), record.get("finishedUtc")) if finished else None,
    )


def _between(began: Any, ended: Any) -> int | None:
    """Return the time between two of DES's times, or None where one can't be read."""
    try:
        return max(0, ms_of(ended) - ms_of(began))
    except (TypeError, ValueError):
        return None
