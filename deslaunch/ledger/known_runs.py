"""The jobRunIds of a batch in little memory, so that one that comes again is noticed."""

from array import array
from collections.abc import Callable, Iterable, Sequence


class KnownRuns:
    """The jobRunIds that rows have, in lower case.

    They are read when the first one comes, and kept as half of a hash, 4 bytes, whose place in a
    table that is at most three quarters full comes from the whole: a set of texts takes twenty
    times that, and an index in a file would write a page for every row. Only where a hash is met
    again must the database be asked.

    Args:
        count: returns how many there may be.
        read: yields those that there are.
    """

    def __init__(self, count: Callable[[], int], read: Callable[[], Iterable[str]]) -> None:
        self._count = count
        self._read = read
        self._slots = array("I")
        self._room = 0

    def meet(self, runs: Sequence[str]) -> set[str]:
        """Add runs; return those that may have been there before."""
        if self._room < len(runs):
            self._load(len(runs))

        return {run for run in runs if not self._add(run)}

    def _load(self, more: int) -> None:
        """Read them again, with room for one for each row, and for ``more``."""
        self._slots = array("I", [0]) * ((self._count() + more) * 4 // 3 + 4096)
        self._room = len(self._slots) * 3 // 4

        for run in self._read():
            self._add(run)

    def _add(self, run: str) -> bool:
        """Return True if it, and all others of its hash, were not there."""
        slots, whole = self._slots, hash(run)
        wanted, at = whole >> 32 & 0xFFFF_FFFF or 1, whole % len(slots)

        while found := slots[at]:
            if found == wanted:
                return False

            at = (at + 1) % len(slots)

        slots[at] = wanted
        self._room -= 1
        return True
