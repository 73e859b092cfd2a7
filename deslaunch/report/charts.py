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
_TICKS: Final = (
    *(100, 200, 500, 1_000, 2_000, 5_000, 10_000, 15_000, 30_000),
    *(n * _MINUTE for n in (1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720, 1_440)),
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

_CUTS: Final = 5
CUT_WIDTH: Final = 2.5
"""Percent of the width that a stretch of idle time takes which is cut out."""

_LEAST_CUT: Final = 30_000
_IDLE_SHARE: Final = 0.15
_TICK_COUNT: Final = 5
_TICK_DISTANCE: Final = 19.0  # percent; a label is that wide in a window of 400 pixels
_LAST_TICK: Final = 94.0

Stretch = tuple[int, int]
"""Begin and end of something, in milliseconds since 1970."""


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


class Piece(NamedTuple):
    """An uncut part of the time axis, and its place in percent."""

    begin: int
    end: int
    left: float
    width: float


class Axis:
    """Where a time lies on a line whose length is 100, the longest idle times cut out.

    Args:
        busy: stretches in which something happened, at least one.

    Attributes:
        pieces: the uncut parts, in order.
    """

    def __init__(self, busy: Iterable[Stretch]) -> None:
        kept = _without_idle_times(_merge(busy))
        time = sum(end - begin for begin, end in kept)
        scale = (100 - CUT_WIDTH * (len(kept) - 1)) / time
        self.pieces: list[Piece] = []
        left = 0.0

        for begin, end in kept:
            width = (end - begin) * scale
            self.pieces.append(Piece(begin, end, left, width))
            left += width + CUT_WIDTH

    def __repr__(self) -> str:
        return f"<Axis of {self.pieces}>"

    def at(self, ms: int) -> float:
        """Return the place of a time, 0 to 100."""
        index = bisect_right(self.pieces, ms, key=lambda piece: piece.begin) - 1
        piece = self.pieces[max(0, index)]
        into = min(max(ms, piece.begin), piece.end) - piece.begin
        return piece.left + piece.width * into / (piece.end - piece.begin)

    def cuts(self) -> tuple[Tick, ...]:
        """Return the middle of each cut, and how much time it takes out."""
        return tuple(
            Tick(self.at(before.end) + CUT_WIDTH / 2, duration(after.begin - before.end))
            for before, after in pairwise(self.pieces)
        )

    def ticks(self) -> tuple[Tick, ...]:
        """Return about five marks at round times, none too close to another."""
        time = sum(piece.end - piece.begin for piece in self.pieces)
        least = time / _TICK_COUNT
        step = next((one for one in _TICKS if one >= least), math.ceil(least / _DAY) * _DAY)
        form = "%d %b" if step >= _DAY else "%H:%M" if step >= _MINUTE else "%H:%M:%S"
        found: list[Tick] = []

        for piece in self.pieces:
            first = -(-piece.begin // step) * step

            for ms in range(first, piece.end, step) or (piece.begin,):
                at = self.at(ms)

                if at <= _LAST_TICK and (not found or at - found[-1].at >= _TICK_DISTANCE):
                    tenths = f".{ms // 100 % 10}" if step < _SECOND else ""
                    found.append(Tick(at, f"{time_of(ms):{form}}{tenths}"))

        return tuple(found)

    def days(self) -> str:
        """Return the date of the first and of the last event, or the only one."""
        first, last = time_of(self.pieces[0].begin), time_of(self.pieces[-1].end - 1)
        days = dict.fromkeys(f"{time.day} {time:%B %Y}" for time in (first, last))
        return " to ".join(days)


def _merge(stretches: Iterable[Stretch]) -> list[Stretch]:
    found: list[Stretch] = []

    for begin, end in sorted(stretches):
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((begin, end))

    return found


def _without_idle_times(busy: list[Stretch]) -> list[Stretch]:
    gaps = sorted(((after[0] - end, end) for (_, end), after in pairwise(busy)), reverse=True)
    left = busy[-1][1] - busy[0][0]
    cuts: set[int] = set()

    for gap, begin in gaps[:_CUTS]:
        if gap >= max(_LEAST_CUT, left * _IDLE_SHARE):
            cuts.add(begin)
            left -= gap

    kept: list[Stretch] = []

    for begin, end in busy:
        if kept and kept[-1][1] not in cuts:
            kept[-1] = (kept[-1][0], end)
        else:
            kept.append((begin, end))

    return kept


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


def time_chart(
    events: Iterable[tuple[int, str, int]], width: int, sessions: Sequence[Stretch]
) -> TimeChart | None:
    """Return the timeline of a batch, or None where nothing happened.

    Args:
        events: begin of a bar, a series, and how many events of it lie in the bar.
        width: of a bar.
        sessions: when a launcher was at work.
    """
    bars: dict[int, Counter[str]] = {}

    for begin, series, number in events:
        bars.setdefault(begin, Counter())[series] += number

    if not bars:
        return None

    axis = Axis((begin, begin + width) for begin in bars)
    totals: Counter[str] = Counter()

    for counts in bars.values():
        totals.update(counts)

    shown = ["started", *(name for name in SERIES if totals[name] and name != "started")]
    lanes = [_lane(bars, width, axis, name, totals[name]) for name in shown]
    note = "once" if len(sessions) == 1 else counted(len(sessions), "time")
    blocks = "".join(_box(axis.at(begin), axis.at(end), 1) for begin, end in sessions)
    return TimeChart(
        bar=duration(width),
        lanes=(*lanes, Lane("launches", "Launched", note, blocks)),
        axis=axis,
        columns=tuple(SERIES[name] for name in shown),
        rows=tuple(
            (f"{time_of(begin):%Y-%m-%d %H:%M:%S}", tuple(bars[begin][name] for name in shown))
            for begin in sorted(bars)
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

    path = "".join(
        _box(axis.at(begin), axis.at(begin + width), counts[name] / top, gap=0.08)
        for begin, counts in sorted(bars.items())
        if counts[name]
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


def _box(left: float, right: float, share: float, *, gap: float = 0.0) -> str:
    """Return the path of a box from the bottom; wide and high enough to be seen."""
    width = max(2.0, (right - left) * 10 * (1 - gap))
    height = max(3.0, share * 100)
    return f"M{left * 10:.1f} 100h{width:.1f}v-{height:.1f}h-{width:.1f}z"


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
