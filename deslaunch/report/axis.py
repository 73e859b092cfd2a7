"""A time axis from which long idle stretches are cut out, in percent of its width. Pure."""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from deslaunch.report.text import time_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

CUTS: Final = 5
CUT_WIDTH: Final = 2.5
"""Percent of the width that a cut takes."""

_LEAST_CUT: Final = 30_000
_IDLE_SHARE: Final = 0.15
_TICKS: Final = 5
_TICK_DISTANCE: Final = 19.0
_LAST_TICK: Final = 94.0
_DAY: Final = 86_400_000
_MINUTE: Final = 60_000
_SECOND: Final = 1_000
_STEPS: Final = (
    *(100, 200, 500, 1_000, 2_000, 5_000, 10_000, 15_000, 30_000),
    *(60_000, 120_000, 300_000, 600_000, 900_000, 1_800_000),
    *(3_600_000, 7_200_000, 10_800_000, 21_600_000, 43_200_000, _DAY),
)

Stretch = tuple[int, int]


class Tick(NamedTuple):
    """A mark on the axis: where, in percent, and what stands there."""

    at: float
    text: str


class Piece(NamedTuple):
    """An uncut part of the axis: its time in milliseconds, its place in percent."""

    begin: int
    end: int
    left: float
    width: float


class Axis:
    """Where a time lies on a line whose length is 100.

    Args:
        busy: stretches of time in which something happened, at least one.

    Attributes:
        pieces: the uncut parts, in order.
    """

    def __init__(self, busy: Iterable[Stretch]) -> None:
        kept = _cut(_merged(busy))
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

    @property
    def cuts(self) -> list[Stretch]:
        """What was cut out."""
        return [(before.end, after.begin) for before, after in pairwise(self.pieces)]

    def at(self, ms: int) -> float:
        """Return the place of a time, 0 to 100."""
        index = bisect_right(self.pieces, ms, key=lambda piece: piece.begin) - 1
        piece = self.pieces[max(0, index)]
        into = min(max(ms, piece.begin), piece.end) - piece.begin
        return piece.left + piece.width * into / (piece.end - piece.begin)

    def ticks(self) -> list[Tick]:
        """Return at most five marks or so, none too close to another, at round times."""
        time = sum(piece.end - piece.begin for piece in self.pieces)
        step = next((step for step in _STEPS if time / step <= _TICKS), _days(time))
        found: list[Tick] = []

        for ms in self._round_times(step):
            at = self.at(ms)

            if at <= _LAST_TICK and (not found or at - found[-1].at >= _TICK_DISTANCE):
                found.append(Tick(at, _tick_text(ms, step)))

        return found

    def _round_times(self, step: int) -> Iterator[int]:
        for piece in self.pieces:
            first = -(-piece.begin // step) * step
            times = range(first, piece.end, step)
            yield from times or (piece.begin,)


def _days(time: int) -> int:
    return -(-time // _TICKS // _DAY) * _DAY


def _tick_text(ms: int, step: int) -> str:
    form = "%d %b" if step >= _DAY else "%H:%M" if step >= _MINUTE else "%H:%M:%S"
    tenths = f".{ms // 100 % 10}" if step < _SECOND else ""
    return f"{time_of(ms):{form}}{tenths}"


def _merged(stretches: Iterable[Stretch]) -> list[Stretch]:
    found: list[Stretch] = []

    for begin, end in sorted(stretches):
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((begin, end))

    return found


def _cut(busy: list[Stretch]) -> list[Stretch]:
    """Return the stretches that are left when the longest idle ones are cut out."""
    gaps = sorted(((after[0] - end, end) for (_, end), after in pairwise(busy)), reverse=True)
    left = busy[-1][1] - busy[0][0]
    cuts: set[int] = set()

    for gap, begin in gaps[:CUTS]:
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
