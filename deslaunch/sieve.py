"""Tells which of many hashes came twice, in 16 bytes each or a little more.

Pure. A set of a million Python integers takes eight times as much memory. Equal hashes are a
suspicion only: whoever asks compares what was hashed.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_LEAST: Final = 1 << 10
_LARGE: Final = 1 << 20
_BITS: Final = (1 << 64) - 1


class Sieve:
    """A set of 64-bit hashes in an open-addressing table that is at most three quarters full.

    Args:
        room: hashes that are expected; for more of them the table grows, which costs twice its
            memory for a moment.

    Attributes:
        suspects: the hashes that came more than once, as unsigned numbers.
    """

    __slots__ = ("_free", "_mask", "_slots", "suspects")

    def __init__(self, room: int = 0) -> None:
        self.suspects: set[int] = set()
        self._resize(max(_LEAST, 1 << (room * 4 // 3).bit_length()))

    def __len__(self) -> int:
        return len(self._slots) * 3 // 4 - self._free

    def __repr__(self) -> str:
        return f"<Sieve of {len(self)} hashes, {len(self.suspects)} suspects>"

    def add(self, hash: int) -> bool:  # noqa: A002  # it is what Python's hash() returns
        """Add a hash; tell whether it was there already.

        Args:
            hash: its lowest 64 bits count, so that it may be negative; 0 counts as 1.
        """
        hash = hash & _BITS or 1  # noqa: A001  # 0 marks a free slot
        slots, mask = self._slots, self._mask
        at = hash & mask

        while found := slots[at]:
            if found == hash:
                self.suspects.add(hash)
                return True

            at = (at + 1) & mask

        slots[at] = hash
        self._free -= 1

        if not self._free:
            self._grow()

        return False

    def add_all(self, hashes: Iterable[int]) -> None:
        """Add many hashes in less time; each as :meth:`add` takes it."""
        slots, mask = self._slots, self._mask

        for hash in hashes:  # noqa: A001  # what Python's hash() returned
            hash = hash & _BITS or 1  # noqa: A001, PLW2901  # 0 marks a free slot
            at = hash & mask

            while (found := slots[at]) and found != hash:
                at = (at + 1) & mask

            if found:
                self.suspects.add(hash)
                continue

            slots[at] = hash
            self._free -= 1

            if not self._free:
                self._grow()
                slots, mask = self._slots, self._mask

    def _resize(self, size: int) -> None:
        self._slots = array("Q", bytes(8)) * size
        self._mask = size - 1
        self._free = size * 3 // 4

    def _grow(self) -> None:
        old = self._slots
        self._resize((2 if len(old) >= _LARGE else 4) * len(old))
        slots, mask = self._slots, self._mask

        for found in filter(None, old):
            at = found & mask

            while slots[at]:
                at = (at + 1) & mask

            slots[at] = found

        self._free -= len(old) * 3 // 4
