"""What was measured, by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

WIDTH: Final = 40
"""Characters of the longest bar of a chart."""


@dataclass
class Figure:
    """One thing that was measured, once a round.

    Attributes:
        unit: ``rows/s``, ``s`` or ``MB``.
        values: one for each round.
        cpu: microseconds of processor time for each row, one for each round.
    """

    unit: str
    values: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def value(self) -> float:
        """The median of the rounds."""
        return median(self.values)

    def as_dict(self) -> dict[str, Any]:
        digits = 0 if self.unit == "rows/s" else 2
        return {
            "unit": self.unit,
            "values": [round(value, digits) for value in self.values],
            "cpuMicrosecondsPerRow": [round(value, 1) for value in self.cpu],
        }


class Figures:
    """All that was measured.

    Attributes:
        missing: name to why it could not be measured.
    """

    def __init__(self) -> None:
        self.missing: dict[str, str] = {}
        self._figures: dict[str, Figure] = {}

    def add(self, name: str, unit: str, value: float, *, cpu: float | None = None) -> None:
        """Add one round's value."""
        figure = self._figures.setdefault(name, Figure(unit))
        figure.values.append(value)

        if cpu is not None:
            figure.cpu.append(cpu)

    def find(self, name: str) -> float | None:
        """Return the median of a figure; None where it was not measured."""
        figure = self._figures.get(name)
        return None if figure is None else figure.value

    def ratio(self, over: str, under: str) -> float | None:
        """Return one median over another; None where one was not measured."""
        above, below = self.find(over), self.find(under)
        return above / below if above is not None and below else None

    def cpu_ratio(self, over: str, under: str) -> float | None:
        """Return one median of processor time over another; None where one was not measured."""
        above, below = self._figures.get(over), self._figures.get(under)
        return median(above.cpu) / median(below.cpu) if above and below and below.cpu else None

    def table(self) -> str:
        """Return all medians as a Markdown table."""
        lines = ["| what | median | CPU µs a row |", "|---|---|---|"]

        for name, figure in self._figures.items():
            cpu = f"{median(figure.cpu):.0f}" if figure.cpu else ""
            value = f"{figure.value:,.{0 if figure.value >= 10 else 2}f} {figure.unit}"
            lines.append(f"| {name} | {value} | {cpu} |")

        return "\n".join(lines)

    def chart(self, names: Mapping[str, str]) -> str:
        """Return medians as bars of text, the longest first; what was not measured is left out.

        Args:
            names: what each is called, by its name here.
        """
        found = {text: self.find(name) or 0.0 for name, text in names.items()}
        most = max(found.values(), default=0.0)
        wide = max(map(len, names.values()), default=0)
        bars = (
            f"{text:{wide}}  {'█' * round(WIDTH * value / most) or '▏'} {value:,.0f}"
            for text, value in sorted(found.items(), key=lambda one: -one[1])
            if value
        )
        return "\n".join(bars)

    def as_dict(self) -> dict[str, Any]:
        return {name: figure.as_dict() for name, figure in self._figures.items()}
