"""Tells which of many hashes came twice, in 16 bytes each or a little more.

Pure. A set of a million Python integers takes six times as much memory. Equal hashes are a
suspicion only: whoever asks compares what was hashed.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

_LEAST: Final = 1 << 10
_LARGE: Final = 1 << 20


class Sieve:
    """A set of hashes in an open-addressing table that is at most three quarters full.

    Args:
        room: hashes that are expected; for more of them the table grows, which costs twice its
            memory for a moment.
        bits: 64, or 32 for half the memory and more false suspicions.

    Attributes:
        suspects: the hashes that came more than once, as unsigned numbers.
    """

    __slots__ = ("_bits", "_free", "_mask", "_slots", "_type", "suspects")

    def __init__(self, room: int = 0, *, bits: Literal[32, 64] = 64) -> None:
        self.suspects: set[int] = set()
        self._bits = (1 << bits) - 1
        self._type = "Q" if bits == 64 else "I"  # noqa: PLR2004
        self._resize(max(_LEAST, 1 << (room * 4 // 3).bit_length()))

    def __len__(self) -> int:
        return len(self._slots) * 3 // 4 - self._free

    def __repr__(self) -> str:
        return f"<Sieve of {len(self)} hashes, {len(self.suspects)} suspects>"

    def add(self, hash: int) -> bool:  # noqa: A002  # it is what Python's hash() returns
        """Add a hash; tell whether it was there already.

        Args:
            hash: its lowest bits count, so that it may be negative; 0 counts as 1.
        """
        hash = hash & self._bits or 1  # noqa: A001  # 0 marks a free slot
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
        slots, mask, bits = self._slots, self._mask, self._bits

        for hash in hashes:  # noqa: A001  # what Python's hash() returned
            hash = hash & bits or 1  # noqa: A001, PLW2901  # 0 marks a free slot
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
        self._slots = array(self._type, [0]) * size
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
