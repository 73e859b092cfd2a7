"""Numbers → what the page's template draws: places in percent, paths, labels. Pure.

Times are milliseconds since 1970, durations are milliseconds. A path lies in a box of 1,000 by
100 that is stretched over its lane, so that a page of any width shows it, and no text is
stretched with it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from deslaunch.model import count as counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from deslaunch.events import Counts

BUCKETS: Final = 300
"""Bars of a timeline at most."""

STATES: Final = {
    "started": "started",
    "failed": "failed",
    "rejected": "rejected",
    "unknown": "unknown",
    "invalid": "invalid",
    "withdrawn": "withdrawn",
    "pending": "pending",
    "in_flight": "in flight",
}
"""The states in the order in which they are shown, and what a person calls them."""

SERIES: Final = {
    "started": "Started",
    "again": "To be sent again",
    "failed": "Failed",
    "rejected": "Rejected",
    "unknown": "Unknown",
}
"""What is counted over time; ``again`` are attempts that another one follows or may follow."""

_SECOND, _MINUTE, _HOUR, _DAY = 1_000, 60_000, 3_600_000, 86_400_000
_WIDTHS: Final = (
    *(100, 200, 1_000, 2_000, 10_000, 30_000, 60_000, 120_000, 600_000, 1_800_000),
    *(n * _HOUR for n in (1, 3, 6, 12, 24)),
)
_EDGES: Final = (
    *(0, 1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700),
    *(n * unit for unit in (_SECOND, _MINUTE) for n in (1, 1.5, 2, 3, 5, 7, 10, 15, 20, 30, 45)),
    *(n * _HOUR for n in (1, 1.5, 2, 3, 5, 7, 10, 15)),
    *(n * _DAY for n in (1, 2, 3, 5, 10, 20, 50, 100, 1_000, 10_000, 100_000)),
)
_PERCENTILES: Final = (
    *((0.5, "half of them within"), (0.9, "90 of 100 within")),
    *((0.95, "95 of 100 within"), (0.99, "99 of 100 within"), (1, "the slowest")),
)
_RATES: Final = ((_SECOND, "a second"), (_MINUTE, "a minute"), (_HOUR, "an hour"))
_UNITS: Final = (
    *((_DAY, "d", _HOUR, "h"), (_HOUR, "h", _MINUTE, "min")),
    (_MINUTE, "min", _SECOND, "s"),
)

_TICK_DISTANCE: Final = 19.0  # percent; a label is that wide in a window of 400 pixels
_LAST_TICK: Final = 94.0


def duration(ms: float) -> str:
    """Return a duration in at most two units: ``23 ms``, ``1.2 s``, ``4 min 7 s``."""
    if ms < _SECOND:
        return f"{ms:.0f} ms"

    if ms < _MINUTE:
        return f"{ms / _SECOND:.1f} s" if ms % _SECOND else f"{ms / _SECOND:.0f} s"

    unit, name, part, part_name = next(found for found in _UNITS if ms >= found[0])
    whole, rest = int(ms // unit), int(ms % unit // part)
    return f"{whole:,} {name} {rest} {part_name}" if rest else f"{whole:,} {name}"


def percent(part: float, whole: float) -> str:
    """Return a share; what is there is never shown as nothing, nor what lacks as all."""
    if not part:
        return "0 %"

    share = 100 * part / whole

    if share < 0.1:  # noqa: PLR2004  # a tenth is the last digit that is shown
        return "<0.1 %"

    if part < whole and share > 99.9:  # noqa: PLR2004  # likewise
        return ">99.9 %"

    return f"{share:.1f} %".replace(".0 %", " %")


def time_of(ms: int) -> datetime:
    """Return a time, in UTC."""
    return datetime.fromtimestamp(ms // 1000, UTC).replace(microsecond=ms % 1000 * 1000)


def bucket_width(busy_minutes: int, span: int) -> int:
    """Return how wide the bars of a timeline are, so that about 300 of them hold everything.

    Args:
        busy_minutes: minutes of the clock in which something happened.
        span: from the first to the last event.
    """
    busy = min(busy_minutes * _MINUTE, span + 1)
    least = busy / BUCKETS
    return next((width for width in _WIDTHS if width >= least), math.ceil(least / _DAY) * _DAY)


class Tick(NamedTuple):
    """A mark: where, in percent, and what stands there."""

    at: float
    text: str


class Axis:
    """Where the bars of a timeline lie on a line whose length is 100; long idle time is cut out.

    Args:
        begins: of the bars in which something happened, in order, at least one.
        width: of a bar.

    Attributes:
        bar: percent that a bar takes.
        cuts: the middle of each stretch that is cut out, and its length in words.
        cut: percent that each of them takes.
    """

    def __init__(self, begins: Sequence[int], width: int) -> None:
        longest, cut = max(30, len(begins) // 3), max(1.0, len(begins) / 40)
        self._begins, self._width = begins, width
        places: list[float] = [0]
        cuts = []

        for before, begin in pairwise(begins):
            end = places[-1] + 1
            idle = (begin - before) // width - 1

            if idle > longest:
                cuts.append((end + cut / 2, duration(idle * width)))

            places.append(end + (cut if idle > longest else idle))

        self.bar = 100 / (places[-1] + 1)
        self.cut = cut * self.bar
        self.cuts = [Tick(at * self.bar, text) for at, text in cuts]
        self._places = {b: at * self.bar for b, at in zip(begins, places, strict=True)}

    def at(self, begin: int) -> float:
        """Return the place of a bar, 0 to 100."""
        return self._places[begin]

    @property
    def ticks(self) -> list[Tick]:
        """The times of some bars, none too close to another."""
        form = "%d %b" if self._width >= _DAY else "%H:%M" if self._width >= _MINUTE else "%H:%M:%S"
        found: list[Tick] = []

        for begin, at in self._places.items():
            if at <= _LAST_TICK and (not found or at - found[-1].at >= _TICK_DISTANCE):
                tenths = f".{begin // 100 % 10}" if self._width < _SECOND else ""
                found.append(Tick(at, f"{time_of(begin):{form}}{tenths}"))

        return found

    @property
    def days(self) -> str:
        """The date of the first and of the last bar, or the only one."""
        ends = (time_of(self._begins[0]), time_of(self._begins[-1]))
        return " to ".join(dict.fromkeys(f"{time.day} {time:%B %Y}" for time in ends))


class Lane(NamedTuple):
    """One line of the timeline.

    Attributes:
        name: what it shows, also the name of its colour.
        label: for a person.
        note: the numbers in words.
        path: bars or blocks.
        grid: height in percent, and text, of each line to read the height by.
    """

    name: str
    label: str
    note: str
    path: str
    grid: tuple[Tick, ...] = ()


class TimeChart(NamedTuple):
    """What happened when.

    Attributes:
        bar: width of a bar in words.
        lanes: from top to bottom.
        axis: the time axis that they share.
        columns: labels of the series.
        rows: the same in numbers: time, and one count for each column.
    """

    bar: str
    lanes: tuple[Lane, ...]
    axis: Axis
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[int, ...]], ...]


def time_chart(events: Iterable[tuple[int, str, int]], width: int) -> TimeChart | None:
    """Return the timeline of a batch, or None where nothing happened.

    Args:
        events: begin of a bar, a series, and how many events of it lie in the bar.
        width: of a bar.
    """
    bars: dict[int, Counter[str]] = {}
    totals: Counter[str] = Counter()

    for begin, series, number in sorted(events):
        bars.setdefault(begin, Counter())[series] += number
        totals[series] += number

    if not bars:
        return None

    axis = Axis(list(bars), width)
    shown = ["started", *(name for name in SERIES if totals[name] and name != "started")]
    return TimeChart(
        bar=duration(width),
        lanes=tuple(_lane(bars, width, axis, name, totals[name]) for name in shown),
        axis=axis,
        columns=tuple(SERIES[name] for name in shown),
        rows=tuple(
            (f"{time_of(begin):%Y-%m-%d %H:%M:%S}", tuple(counts[name] for name in shown))
            for begin, counts in bars.items()
        ),
    )


def _lane(bars: Mapping[int, Counter[str]], width: int, axis: Axis, name: str, total: int) -> Lane:
    peak = max(counts[name] for counts in bars.values())
    top = float(peak or 1)
    grid: tuple[Tick, ...] = ()
    label, note = SERIES[name], f"{total:,}"

    if name == "started":
        # The rate is told over a time in which it is no fraction.
        per, unit = next((rate for rate in _RATES if peak * rate[0] >= width), _RATES[-1])
        height, grid = _grid(peak * per / width)
        top = height * width / per
        label, note = f"Starts {unit}", counted(total, "start")
        note += f", at most {_number(peak * per / width)} {unit}" if peak > 1 else ""
    elif peak > 1:
        note += f", at most {peak:,} in {duration(width)}"

    # Each is wide and high enough to be seen.
    bar = max(2.0, axis.bar * 10 * 0.92)
    path = "".join(
        f"M{axis.at(begin) * 10:.1f} 100h{bar:.1f}v-{max(3.0, height):.1f}h-{bar:.1f}z"
        for begin, counts in bars.items()
        if (height := 100 * counts[name] / top)
    )
    return Lane(name, label, note, path, grid)


def _grid(peak: float) -> tuple[float, tuple[Tick, ...]]:
    """Return the height of a lane whose highest bar is ``peak``, and up to three lines."""
    if not peak:
        return 1, ()

    size = 10 ** math.floor(math.log10(peak))
    step = next(size * nice for nice in (0.2, 0.5, 1, 2, 5) if peak <= size * nice * 3)
    lines = math.ceil(peak / step)
    marks = range(1, lines + 1)
    return lines * step, tuple(Tick(100 - 100 * n / lines, _number(n * step)) for n in marks)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"  # noqa: PLR2004


class Share(NamedTuple):
    """A state's part of the bar of all rows, and its place in percent."""

    state: str
    label: str
    rows: int
    share: str
    left: float
    width: float


def shares(counts: Counts) -> list[Share]:
    """Return how all rows are spread over the states; a state without rows is left out."""
    present = {state: getattr(counts, state) for state in STATES if getattr(counts, state)}
    thin = 0.6  # percent kept for what would else be too thin to be seen
    found: list[Share] = []
    left = 0.0

    for state, rows in present.items():
        width = thin + (100 - thin * len(present)) * rows / counts.rows
        found.append(Share(state, STATES[state], rows, percent(rows, counts.rows), left, width))
        left += width

    return found


class Spread(NamedTuple):
    """How durations are spread.

    Attributes:
        total: how many there are.
        percentiles: words, and the duration in words.
        bars: from, to, count, share in words, and length in percent of the longest bar.
    """

    total: int
    percentiles: list[tuple[str, str]]
    bars: list[tuple[str, str, int, str, float]]


def spread(durations: Iterable[tuple[int, int]]) -> Spread | None:
    """Return how durations are spread, or None where there is none.

    Args:
        durations: a duration, at least 0, and how many have it; each duration once.
    """
    numbers = sorted(durations)
    total = sum(number for _, number in numbers)

    if not total:
        return None

    within = [
        (words, duration(_percentile(numbers, share * total))) for share, words in _PERCENTILES
    ]
    return Spread(total, within, list(_spread_bars(numbers, total)))


def _percentile(numbers: Sequence[tuple[int, int]], place: float) -> int:
    passed = 0

    for ms, number in numbers:
        passed += number

        if passed >= place:
            return ms

    return numbers[-1][0]


def _spread_bars(
    numbers: Iterable[tuple[int, int]], total: int
) -> Iterator[tuple[str, str, int, str, float]]:
    counts: Counter[int] = Counter()

    for ms, number in numbers:
        counts[bisect_right(_EDGES, ms) - 1] += number

    most = max(counts.values())

    for edge in range(min(counts), max(counts) + 1):
        begin, end = (duration(ms) for ms in _EDGES[edge : edge + 2])
        yield begin, end, counts[edge], percent(counts[edge], total), 100 * counts[edge] / most
