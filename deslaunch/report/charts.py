"""Figures → what the template draws: places in percent, paths, labels. Pure.

A path lies in a box of 1,000 by 100 that is stretched over its lane, so that a page of any
width shows it, and no text is stretched with it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from deslaunch.model import counted
from deslaunch.report.axis import Axis, Tick
from deslaunch.report.text import duration, percent, time_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from deslaunch.figures import Durations, Figures, Span, Timeline

STATES: Final = {
    "started": "started",
    "failed": "failed",
    "rejected": "rejected",
    "unknown": "unknown",
    "invalid": "invalid",
    "pending": "pending",
    "in_flight": "in flight",
}
"""The states in the order in which they are shown, and what a person calls them."""

_NAMES: Final = {
    "again": "To be sent again",
    "failed": "Failed",
    "rejected": "Rejected",
    "unknown": "Unknown",
}
_PERCENTILES: Final = (
    (0.5, "half of them within"),
    (0.9, "90 of 100 within"),
    (0.95, "95 of 100 within"),
    (0.99, "99 of 100 within"),
)
_SECOND, _MINUTE, _HOUR, _DAY = 1_000, 60_000, 3_600_000, 86_400_000
_EDGES: Final = (
    *(0, 1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700),
    *(n * _SECOND for n in (1, 1.5, 2, 3, 5, 7, 10, 15, 20, 30, 45)),
    *(n * _MINUTE for n in (1, 1.5, 2, 3, 5, 7, 10, 15, 20, 30, 45)),
    *(n * _HOUR for n in (1, 1.5, 2, 3, 5, 7, 10, 15)),
    *(n * _DAY for n in (1, 2, 3, 5, 10, 20, 50, 100, 1_000, 10_000, 100_000)),
)
"""Where the bars of a spread begin, in milliseconds."""

_RATES: Final = ((1_000, "a second"), (60_000, "a minute"), (3_600_000, "an hour"))
_NICE: Final = (0.2, 0.5, 1, 2, 5)
_LINES: Final = 3
_GAP: Final = 0.08


@dataclass(frozen=True, slots=True)
class Lane:
    """One line of the timeline.

    Attributes:
        name: what it shows, also the name of its colour.
        label: for a person.
        note: the figures in words.
        path: bars or blocks, or ``""``.
        grid: height in percent, and text, of each line to read the height by.
    """

    name: str
    label: str
    note: str
    path: str
    grid: tuple[Tick, ...] = ()


@dataclass(frozen=True, slots=True)
class TimeChart:
    """What happened when.

    Attributes:
        bar: width of a bar in words.
        lanes: from top to bottom.
        ticks: of the axis.
        cuts: place, in percent, of each stretch that is cut out, and its length in words.
        days: the date of the first and of the last event, or only one.
        rows: the same in figures: time, and one count for each of ``columns``.
        columns: labels of the counts.
    """

    bar: str
    lanes: tuple[Lane, ...]
    ticks: tuple[Tick, ...]
    cuts: tuple[Tick, ...]
    days: str
    rows: tuple[tuple[str, tuple[int, ...]], ...]
    columns: tuple[str, ...]


def time_chart(figures: Figures) -> TimeChart | None:
    """Return the timeline of a batch, or None where nothing was sent."""
    timeline = figures.timeline

    if not timeline.buckets:
        return None

    axis = Axis(_busy(figures))
    columns = ("started", *(name for name in _NAMES if timeline.total(name)))
    lanes = [_started(timeline, axis), *(_events(timeline, axis, name) for name in columns[1:])]

    if figures.pauses.kept:
        note = _spans_note("pause", figures.pauses.kept, figures.pauses.left_out)
        lanes.append(Lane("pauses", "Pauses", note, _blocks(figures.pauses.kept, axis)))

    count = len(figures.launches.kept) + figures.launches.left_out
    note = "once" if count == 1 else counted(count, "time")
    lanes.append(Lane("launches", "Launched", note, _blocks(figures.launches.kept, axis)))

    return TimeChart(
        bar=duration(timeline.width),
        lanes=tuple(lanes),
        ticks=tuple(axis.ticks()),
        cuts=tuple(Tick(axis.at(begin) + 1.25, duration(end - begin)) for begin, end in axis.cuts),
        days=_days(axis),
        rows=tuple(_rows(timeline, columns)),
        columns=tuple({"started": "Started", **_NAMES}[name] for name in columns),
    )


def _busy(figures: Figures) -> Iterator[tuple[int, int]]:
    width = figures.timeline.width
    yield from ((begin, begin + width) for begin, _ in figures.timeline.counts())
    last = max(figures.timeline.buckets) * width + width

    for pause in figures.pauses.kept:
        if pause.begin < min(pause.end, last):
            yield pause.begin, min(pause.end, last)


def _days(axis: Axis) -> str:
    first, last = time_of(axis.pieces[0].begin), time_of(axis.pieces[-1].end - 1)
    days = dict.fromkeys(f"{time:%-d %B %Y}" for time in (first, last))
    return " to ".join(days)


def _rows(timeline: Timeline, columns: tuple[str, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    for begin, counts in timeline.counts():
        text = time_of(begin).isoformat(sep=" ", timespec="milliseconds")[:-6]
        yield text, tuple(counts[name] for name in columns)


def _started(timeline: Timeline, axis: Axis) -> Lane:
    peak = max(counts["started"] for _, counts in timeline.counts())
    per, unit = _rate(peak, timeline.width)
    top, grid = _grid(peak * per / timeline.width)
    note = counted(timeline.total("started"), "start")
    note += f", at most {_number(peak * per / timeline.width)} {unit}" if peak > 1 else ""
    path = _bars(timeline, axis, "started", top * timeline.width / per)
    return Lane("started", f"Starts {unit}", note, path, grid)


def _rate(peak: int, width: int) -> tuple[int, str]:
    """Return the time over which to tell a rate, so that it is no fraction."""
    return next((rate for rate in _RATES if peak * rate[0] / width >= 1), _RATES[-1])


def _grid(peak: float) -> tuple[float, tuple[Tick, ...]]:
    """Return the height of a lane whose highest bar is ``peak``, and its lines."""
    if not peak:
        return 1, ()

    size = 10 ** math.floor(math.log10(peak))
    step = next(size * nice for nice in _NICE if peak <= size * nice * _LINES)
    count = math.ceil(peak / step)
    top = count * step
    marks = range(1, count + 1)
    return top, tuple(Tick(100 - 100 * mark / count, _number(mark * step)) for mark in marks)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"  # noqa: PLR2004


def _events(timeline: Timeline, axis: Axis, name: str) -> Lane:
    peak = max(counts[name] for _, counts in timeline.counts())
    total = timeline.total(name)
    note = (
        f"{total:,}, at most {peak:,} in {duration(timeline.width)}" if peak > 1 else f"{total:,}"
    )
    return Lane(name, _NAMES[name], note, _bars(timeline, axis, name, peak))


def _spans_note(noun: str, spans: list[Span], left_out: int) -> str:
    longest = max(span.end - span.begin for span in spans)
    more = f"; {left_out:,} more are not drawn" if left_out else ""
    return f"{counted(len(spans), noun)}, the longest {duration(longest)}{more}"


def _bars(timeline: Timeline, axis: Axis, name: str, top: float) -> str:
    return "".join(
        _box(axis.at(begin), axis.at(begin + timeline.width), counts[name] / top, gap=_GAP)
        for begin, counts in timeline.counts()
        if counts[name]
    )


def _blocks(spans: Iterable[Span], axis: Axis) -> str:
    return "".join(_box(axis.at(span.begin), axis.at(span.end), 1) for span in spans)


def _box(left: float, right: float, share: float, *, gap: float = 0.0) -> str:
    """Return the path of a box from the bottom; wide and high enough to be seen."""
    width = max(2.0, (right - left) * 10 * (1 - gap))
    height = max(3.0, share * 100)
    return f"M{left * 10:.1f} 100h{width:.1f}v-{height:.1f}h-{width:.1f}z"


@dataclass(frozen=True, slots=True)
class Share:
    """A part of the bar of all rows: the state, its rows, and its place in percent."""

    state: str
    label: str
    count: int
    share: str
    left: float
    width: float


def shares(totals: Mapping[str, int]) -> tuple[Share, ...]:
    """Return how all rows are spread over the states; a state without rows is left out."""
    present = {state: totals[state] for state in STATES if totals[state]}
    least = 0.6 * len(present)  # percent kept for what would else be too thin to be seen
    found: list[Share] = []
    left = 0.0

    for state, count in present.items():
        width = 0.6 + (100 - least) * count / totals["rows"]
        share = percent(count, totals["rows"])
        found.append(Share(state, STATES[state], count, share, left, width))
        left += width

    return tuple(found)


@dataclass(frozen=True, slots=True)
class Spread:
    """How durations are spread.

    Attributes:
        count: how many there are.
        percentiles: words, and the duration in words.
        bars: from, to, count, share in words, and length in percent of the longest bar.
    """

    count: int
    percentiles: tuple[tuple[str, str], ...]
    bars: tuple[tuple[str, str, int, str, float], ...]


def spread(durations: Durations) -> Spread | None:
    """Return how durations are spread, or None where there is none."""
    if not durations.count:
        return None

    percentiles = [(words, duration(durations.percentile(share))) for share, words in _PERCENTILES]
    return Spread(
        durations.count,
        (*percentiles, ("the slowest", duration(durations.longest))),
        tuple(_spread_bars(durations)),
    )


def _spread_bars(durations: Durations) -> Iterator[tuple[str, str, int, str, float]]:
    counts: Counter[int] = Counter()

    for ms, count in durations.values():
        counts[bisect_right(_EDGES, ms) - 1] += count

    most = max(counts.values())

    for number in range(min(counts), max(counts) + 1):
        count = counts[number]
        share = percent(count, durations.count)
        begin, end = (duration(ms) for ms in _EDGES[number : number + 2])
        yield begin, end, count, share, 100 * count / most
