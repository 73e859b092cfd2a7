"""What an attack did, and what did not hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_HEAD: Final = ("attack", "cases", "starts", "twice", "lost", "unknown", "verdict")
SHOWN: Final = 10


@dataclass
class Tally:
    """One line of the table.

    Attributes:
        attack: its name.
        cases: batches, files or inputs that were tried.
        starts: start requests that the servers saw.
        twice: rows that were started twice and not marked as possible duplicates.
        lost: runs of the server that the ledger can't account for.
        unknown: rows that ended unknown.
        broken: every promise that did not hold, a sentence each.
        notes: figures that the table has no column for.
        seconds: how long it took.
    """

    attack: str
    cases: int = 0
    starts: int = 0
    twice: int = 0
    lost: int = 0
    unknown: int = 0
    broken: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        return "BROKEN" if self.broken else "held"

    def expect(self, holds: object, what: str) -> None:
        """Note what did not hold."""
        if not holds:
            self.broken.append(what)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def as_dict(self) -> dict[str, Any]:
        return {
            "attack": self.attack,
            "cases": self.cases,
            "starts": self.starts,
            "rowsTwice": self.twice,
            "runsLost": self.lost,
            "unknown": self.unknown,
            "verdict": self.verdict,
            "broken": self.broken,
            "notes": self.notes,
            "seconds": round(self.seconds, 1),
        }

    def cells(self) -> tuple[str, ...]:
        counts = (self.cases, self.starts, self.twice, self.lost, self.unknown)
        return (self.attack, *(f"{count:,}" for count in counts), self.verdict)


def table(tallies: Sequence[Tally]) -> str:
    """Return the table as text, a Markdown table at once."""
    lines = [_HEAD, *(tally.cells() for tally in tallies)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD))]
    rule = tuple("-" * width for width in widths)
    return "\n".join(_line(line, widths) for line in (lines[0], rule, *lines[1:]))


def _line(cells: Iterable[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(cell.ljust(w) for cell, w in zip(cells, widths, strict=True)) + " |"
