"""The chart of starts a second, as SVG that can be read on light and on dark pages."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .figures import Figures

_WIDTH: Final = 760
_PAD: Final = 24
_TOP: Final = 74  # below title and subtitle
_ROW: Final = 38
_BAR: Final = 22
_LABELS: Final = 268  # where the bars begin
_VALUES: Final = 84  # room for a figure behind the longest bar

_ROOT: Final = (
    'xmlns="http://www.w3.org/2000/svg" role="img" '
    'font-family="-apple-system, Segoe UI, Helvetica, Arial, sans-serif"'
)
_STYLE: Final = """\
  .page { fill: #ffffff; stroke: #d1d9e0; }
  .title { fill: #1f2328; font-weight: 600; font-size: 17px; }
  .label, .value { fill: #1f2328; font-size: 14px; }
  .note { fill: #59636e; font-size: 13px; }
  .ours { fill: #0969da; }
  .theirs { fill: #afb8c1; }
  .axis { stroke: #d1d9e0; }
  .strong { font-weight: 600; }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117; stroke: #3d444d; }
    .title, .label, .value { fill: #f0f6fc; }
    .note { fill: #9198a1; }
    .ours { fill: #4493f8; }
    .theirs { fill: #515c67; }
    .axis { stroke: #3d444d; }
  }"""


class Bar(NamedTuple):
    """One line of the chart.

    Attributes:
        label: what it is.
        value: how long it is.
        ours: it is deslaunch.
    """

    label: str
    value: float
    ours: bool


_BARS: Final = (
    ("GNU parallel + curl, 64", "parallel-64", False),
    ("naive aiohttp loop, 64", "naive-64", False),
    ("deslaunch, 64", "deslaunch-64", True),
    ("bare tuned aiohttp + uvloop, 64", "bare-64", False),
    ("deslaunch, two shards of 256", "shards-256", True),
    ("one curl --parallel, 64", "curl-64", False),
)


def bars(figures: Figures) -> list[Bar]:
    """Return the bars of what was measured, the shortest first."""
    found = ((label, figures.find(name), ours) for label, name, ours in _BARS)
    known = [Bar(label, value, ours) for label, value, ours in found if value is not None]
    return sorted(known, key=lambda bar: bar.value)


def svg(figures: Figures) -> str:
    """Return the chart."""
    drawn = bars(figures)
    height = _TOP + _ROW * len(drawn) + _PAD // 2
    longest = max((bar.value for bar in drawn), default=1.0)
    said = "; ".join(f"{bar.label}: {bar.value:,.0f}" for bar in drawn)
    lines = (
        f'<svg {_ROOT} viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}">',
        f"<title>Starts a second: {escape(said)}</title>",
        f"<style>\n{_STYLE}\n</style>",
        f'<rect class="page" x="0.5" y="0.5" width="{_WIDTH - 1}" height="{height - 1}" rx="8"/>',
        _text(_PAD, 34, "title", "Starts a second, and how many at once"),
        _text(
            _PAD, 55, "note", "whole processes; only deslaunch checks the rows and keeps a ledger"
        ),
        *_axis(height),
        *_drawn(drawn, longest),
        "</svg>",
    )
    return "\n".join(lines) + "\n"


def _axis(height: int) -> Sequence[str]:
    bottom = height - _PAD // 2
    return [f'<line class="axis" x1="{_LABELS}.5" y1="{_TOP - 4}" x2="{_LABELS}.5" y2="{bottom}"/>']


def _drawn(drawn: Sequence[Bar], longest: float) -> list[str]:
    return [part for index, bar in enumerate(drawn) for part in _row(index, bar, longest)]


def _row(index: int, bar: Bar, longest: float) -> tuple[str, str, str]:
    top = _TOP + _ROW * index + (_ROW - _BAR) // 2
    line = top + 16
    width = max(2.0, bar.value / longest * (_WIDTH - _LABELS - _VALUES))
    kind = "ours" if bar.ours else "theirs"
    place = f'x="{_LABELS + 1}" y="{top}"'
    weight = " strong" if bar.ours else ""
    return (
        _text(_LABELS - 12, line, f"label{weight}", bar.label, anchor="end"),
        f'<rect class="{kind}" {place} width="{width:.1f}" height="{_BAR}" rx="3"/>',
        _text(_LABELS + width + 10, line, f"value{weight}", f"{bar.value:,.0f}"),
    )


def _text(x: float, y: float, kind: str, text: str, *, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'
