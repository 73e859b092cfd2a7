"""Tables of what was measured, for the terminal and for the README."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from .figures import Figures
from .goals import GOALS, YARDSTICK, YARDSTICK_THEN
from .memory import KINDS, SIZES
from .rivals import SLOTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

BEGIN: Final = "<!-- make bench: begin -->"
END: Final = "<!-- make bench: end -->"

_RIVALS: Final = (
    ("deslaunch", "deslaunch in full"),
    ("bare", "bare tuned aiohttp + uvloop loop"),
    ("naive", "naive aiohttp loop"),
    ("curl", "one `curl --parallel`"),
    ("parallel", "GNU parallel + curl"),
    ("shards", "two shards of deslaunch side by side"),
)
_VARIANTS: Final = (
    ("deslaunch", "-20ms", "deslaunch, 20 ms latency"),
    ("bare", "-20ms", "bare loop, 20 ms latency"),
    ("deslaunch", "-disk", "deslaunch, each sync 10 ms longer"),
)
_NOTHING: Final = "-"


def goals_table(figures: Figures) -> str:
    """Return goals and ratios as a Markdown table."""
    head = ("what", "goal", "measured", "met")
    return _table(head, [goal.cells(figures) for goal in GOALS])


def rates_table(figures: Figures) -> str:
    """Return starts a second by contender and slots."""
    head = ("starts a second", *(f"{slots} slots" for slots in SLOTS))
    lines = [(name, "", label) for name, label in _RIVALS]
    return _table(head, [_rates(figures, *line) for line in (*lines, *_VARIANTS)])


def memory_table(figures: Figures) -> str:
    """Return peaks of resident memory by command and rows."""
    head = ("peak memory", *(f"{size:,} rows" for size in SIZES))
    return _table(
        head,
        [
            (f"`{kind}`", *(_cell(figures.find(f"peak-{kind}-{size}"), " MB") for size in SIZES))
            for kind in KINDS
        ],
    )


def text(figures: Figures) -> str:
    """Return all tables for a terminal."""
    missing = [f"{name}: not available: {reason}" for name, reason in figures.missing.items()]
    tables = (goals_table(figures), rates_table(figures), memory_table(figures))
    return "\n\n".join((*tables, "\n".join((_ledger(figures), *missing))))


def section(told: Mapping[str, Any]) -> str:
    """Return the README's part that is made from ``bench.json``, without its marks."""
    figures = Figures.read(told["figures"], told["missing"])
    machine = told["machine"]
    where = (
        f"Measured on {told['utc'][:10]}: {machine['cpus']} cores of {machine['cpu']}, "
        f"CPython {machine['python']}, aiohttp {machine['aiohttp']}, uvloop {machine['uvloop']}; "
        f"{told['rows']:,} rows, the median of {told['rounds']} rounds."
    )
    tables = (goals_table(figures), rates_table(figures), memory_table(figures))
    return "\n\n".join((where, _yardstick(figures), *tables, _ledger(figures)))


def _yardstick(figures: Figures) -> str:
    return (
        f"The goals were set where the bare loop starts {YARDSTICK_THEN:,} a second at 64 slots; "
        f"here it starts {_cell(figures.find(YARDSTICK))}."
    )


def with_section(page: str, told: Mapping[str, Any]) -> str:
    """Return a page with its measured part replaced.

    Raises:
        ValueError: the page has no marks for it.
    """
    before, begin, rest = page.partition(f"{BEGIN}\n")
    _, end, after = rest.partition(f"{END}\n")

    if not (begin and end):
        raise ValueError(f"the page has no lines {BEGIN!r} and {END!r}")

    return f"{before}{begin}\n{section(told)}\n\n{end}{after}"


def _ledger(figures: Figures) -> str:
    return f"The ledger alone, fed by 64 producers: {_cell(figures.find('ledger'), ' rows/s')}."


def _rates(figures: Figures, name: str, suffix: str, label: str) -> tuple[str, ...]:
    return (label, *(_cell(figures.find(f"{name}-{slots}{suffix}")) for slots in SLOTS))


def _cell(value: float | None, unit: str = "") -> str:
    return _NOTHING if value is None else f"{value:,.0f}{unit}"


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table whose columns are also straight in a terminal."""
    cells = [head, *lines]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    rule = ["-" * width for width in widths]
    return "\n".join(_line(line, widths) for line in (cells[0], rule, *cells[1:]))


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(_padded(cells, widths)) + " |"


def _padded(cells: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    return (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
