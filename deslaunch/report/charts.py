"""Numbers → what the page's template draws: places in percent, paths, labels. Pure.

Times are milliseconds since 1970, durations are milliseconds. A path lies in a box of 1,000 by
100 that is stretched over its lane, so that a page of any width shows it, and no text is
stretched with it. A mark is a pair: where, in percent, and what stands there.
"""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import accumulate, pairwise
from typing import Any, Final

from deslaunch.events import Counts

BUCKETS: Final = 300
"""Bars of a timeline at most."""

_COUNTED: Final = ("started", "again", "failed", "rejected", "unknown")
SERIES: Final = {name: name.capitalize() for name in _COUNTED} | {"again": "To be sent again"}
"""What is counted over time, and its label; ``again``: another attempt follows or may follow."""

_SECOND, _MINUTE, _HOUR, _DAY = 1_000, 60_000, 3_600_000, 86_400_000
_WIDTHS: Final = (
    *(100, 200, 1_000, 2_000, 10_000, 30_000, 60_000, 120_000, 600_000, 1_800_000),
    *(n * _HOUR for n in (1, 3, 6, 12, 24)),
)
_UNITS: Final = (
    *((_DAY, "d", _HOUR, "h"), (_HOUR, "h", _MINUTE, "min")),
    (_MINUTE, "min", _SECOND, "s"),
)

_TICK_DISTANCE: Final = 19.0  # percent; a label is that wide in a window of 400 pixels
_LAST_TICK: Final = 94.0


def duration(ms: float) -> str:
    """Return a duration in at most two units: ``23 ms``, ``1.2 s``, ``4 min 7 s``."""
    ms = round(ms, -2) if round(ms) >= _SECOND else round(ms)  # first: 59,960 ms are 1 min

    for unit, name, part, part_name in _UNITS:
        if ms >= unit:
            whole, rest = int(ms // unit), int(ms % unit // part)
            return f"{whole:,} {name} {rest} {part_name}" if rest else f"{whole:,} {name}"

    return f"{ms} ms" if ms < _SECOND else f"{ms / _SECOND:g} s"


def percent(part: float, whole: float) -> str:
    """Return a share; what is there is never shown as nothing, nor what lacks as all."""
    share = 100 * part / whole

    if 0 < share < 0.1:  # noqa: PLR2004  # a tenth is the last digit that is shown
        return "<0.1 %"

    if part < whole and share > 99.9:  # noqa: PLR2004  # likewise
        return ">99.9 %"

    return f"{share:.1f} %".replace(".0 %", " %")


def time_of(ms: int) -> datetime:
    """Return a time to the second, in UTC."""
    return datetime.fromtimestamp(ms // 1000, UTC)


def bucket_width(busy_minutes: int, span: int) -> int:
    """Return how wide the bars of a timeline are, so that about 300 of them hold everything.

    Args:
        busy_minutes: minutes of the clock in which something happened.
        span: from the first to the last event.
    """
    least = min(busy_minutes * _MINUTE, span + 1) / BUCKETS
    return next((width for width in _WIDTHS if width >= least), math.ceil(least / _DAY) * _DAY)


def time_axis(begins: Sequence[int], width: int) -> dict[str, Any]:
    """Return where bars lie on a line whose length is 100; long idle time is cut out.

    Args:
        begins: of the bars in which something happened, in order, at least one.
        width: of a bar.

    Returns:
        ``places`` of the bars' begins, and the percent that one ``bar`` takes; ``cuts``: a mark in
        the middle of each stretch that is cut out, with its length, and the percent that each
        ``cut`` takes; ``ticks``: the times of some bars, none too close to another; ``days``: the
        dates of the first and the last one.
    """
    longest, cut = max(30, len(begins) // 3), max(1.0, len(begins) / 40)
    places, cuts, end = [], [], 0.0  # in bars

    for before, begin in pairwise([begins[0] - width, *begins]):
        idle: float = (begin - before) // width - 1

        if idle > longest:
            cuts.append((end + cut / 2, duration(idle * width)))
            idle = cut

        places.append(end + idle)
        end = places[-1] + 1

    bar = 100 / end
    dates = [f"{time.day} {time:%B %Y}" for time in (time_of(begins[0]), time_of(begins[-1]))]
    found = {begin: place * bar for begin, place in zip(begins, places, strict=True)}
    return {
        "places": found,
        "bar": bar,
        "cuts": [(at * bar, text) for at, text in cuts],
        "cut": cut * bar,
        "ticks": _ticks(found, width),
        "days": " to ".join(dict.fromkeys(dates)),
    }


def _ticks(places: Mapping[int, float], width: int) -> list[tuple[float, str]]:
    form = "%d %b" if width >= _DAY else "%H:%M" if width >= _MINUTE else "%H:%M:%S"
    found: list[tuple[float, str]] = []

    for begin, at in places.items():
        if at <= _LAST_TICK and (not found or at - found[-1][0] >= _TICK_DISTANCE):
            tenths = f".{begin // 100 % 10}" if width < _SECOND else ""
            found.append((at, f"{time_of(begin):{form}}{tenths}"))

    return found


def time_chart(events: Iterable[tuple[int, str, int]], width: int) -> dict[str, Any] | None:
    """Return the timeline of a batch, or None where nothing happened.

    Args:
        events: begin of a bar, a series, and how many events of it lie in the bar.
        width: of a bar.

    Returns:
        what :func:`time_axis` returns, the ``width`` in words, and ``lanes`` from top to bottom.
    """
    bars: dict[int, Counter[str]] = {}

    for begin, series, number in sorted(events):
        bars.setdefault(begin, Counter())[series] += number

    if not bars:
        return None

    axis = time_axis(list(bars), width)
    lanes = (_lane(bars, width, axis, name) for name in SERIES)
    shown = [lane for lane in lanes if lane["path"] or lane["name"] == "started"]
    return {**axis, "width": duration(width), "lanes": shown}


def _lane(
    bars: Mapping[int, Counter[str]], width: int, axis: Mapping[str, Any], name: str
) -> dict[str, Any]:
    """Return one line of the timeline: label, numbers in words, and bars, the highest of 100."""
    numbers = {begin: counts[name] for begin, counts in bars.items() if counts[name]}
    peak = max(numbers.values(), default=0)
    note = f"{sum(numbers.values()):,}"

    if peak > 1:
        note += f", at most {peak:,} in {duration(width)}"

    # Each is wide and high enough to be seen.
    bar = max(2.0, axis["bar"] * 10 * 0.92)
    path = "".join(
        f"M{axis['places'][begin] * 10:.1f} 100h{bar:.1f}v-{height:.1f}h-{bar:.1f}z"
        for begin, number in numbers.items()
        if (height := max(3.0, 100 * number / peak))
    )
    return {"name": name, "label": SERIES[name], "note": note, "path": path}


def shares(counts: Counts) -> list[dict[str, Any]]:
    """Return each state's part of the bar of all rows, and its place in percent.

    They come as ``Counts`` lists them. A state without rows is left out; what would be too thin
    to be seen is not that thin.
    """
    states = counts._replace(possible_duplicates=0, attempts=0)._asdict()  # these are no states
    present = {state: rows for state, rows in states.items() if rows}
    thin, left = 0.6, 0.0
    found = []

    for state, rows in present.items():
        width = thin + (100 - thin * len(present)) * rows / counts.rows
        label, share = state.replace("_", " "), percent(rows, counts.rows)
        part = {"state": state, "label": label, "rows": rows, "share": share}
        found.append({**part, "left": left, "width": width})
        left += width

    return found


def spread(durations: Iterable[tuple[int, int]]) -> dict[str, Any] | None:
    """Return how durations are spread, or None where there is none.

    Args:
        durations: a duration, at least 0, and how many have it; each duration once.

    Returns:
        their ``total``, and ``percentiles``: the duration in words, by words.
    """
    numbers = sorted(durations)

    if not numbers:
        return None

    ends = list(accumulate(number for _, number in numbers))
    percentiles = {
        f"{share} of 100 within": duration(numbers[bisect_left(ends, share * ends[-1] / 100)][0])
        for share in (50, 90, 95, 99, 100)
    }
    return {"total": ends[-1], "percentiles": percentiles}
