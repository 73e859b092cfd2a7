"""What became of the mutants of a module."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from .bench import KILLED, SURVIVED, TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .mutant import Mutant

_HEAD: Final = ("module", "mutants", "killed", "timeout", "survived", "dead")


@dataclass
class Tally:
    """One line of the table.

    Attributes:
        module: its name in the package.
        mutants: that it has.
        killed: mutants that made a test fail.
        timeouts: mutants that made the tests run on and on; they count as dead.
        survivors: mutants that no test minds.
        seconds: how long it took.
    """

    module: str
    mutants: int
    killed: int = 0
    timeouts: int = 0
    survivors: list[Mutant] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def tried(self) -> int:
        return self.killed + self.timeouts + len(self.survivors)

    @property
    def dead(self) -> float:
        """Share of the mutants tried that did not survive, 0 to 1."""
        return (self.killed + self.timeouts) / self.tried if self.tried else 1.0

    def add(self, mutant: Mutant, verdict: str) -> None:
        """Note what became of a mutant."""
        self.killed += verdict == KILLED
        self.timeouts += verdict == TIMEOUT
        self.survivors += [mutant] * (verdict == SURVIVED)

    def as_dict(self) -> dict[str, Any]:
        return {
            "module": self.module,
            "mutants": self.mutants,
            "tried": self.tried,
            "killed": self.killed,
            "timeouts": self.timeouts,
            "survived": len(self.survivors),
            "survivors": [
                {"line": mutant.line, "where": mutant.where, "was": mutant.was}
                | {"becomes": mutant.becomes}
                for mutant in self.survivors
            ],
            "seconds": round(self.seconds, 1),
        }

    def cells(self) -> tuple[str, ...]:
        counts = (self.mutants, self.killed, self.timeouts, len(self.survivors))
        return (self.module, *(f"{count:,}" for count in counts), f"{self.dead:.1%}")


def table(tallies: Sequence[Tally]) -> str:
    """Return the table as text, a Markdown table at once."""
    lines = [_HEAD, *(tally.cells() for tally in tallies)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD))]
    rule = tuple("-" * width for width in widths)
    return "\n".join(_line(line, widths) for line in (lines[0], rule, *lines[1:]))


def _line(cells: Iterable[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(cell.ljust(w) for cell, w in zip(cells, widths, strict=True)) + " |"
