"""Columns of numbers, one entry a key, and an index that finds a key's entries by its hash.

Pure. An entry takes 28 bytes, and the index 6 to 12 more. An object with a dictionary's slot
takes ten times as much.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_LEAST: Final = 1 << 10
_MOST_RESERVED: Final = 1 << 21
_STEP: Final = 1 << 10
_BITS: Final = (1 << 64) - 1


class Columns:
    """Entries, numbered from 0 in the order in which they were added.

    Two entries may have the same hash: whoever finds both must tell them apart.

    Args:
        least: slots of the index at first, a power of two, at least 2; it grows.

    Attributes:
        sent: for each entry, and for some to come, an offset in a file.
        lag: how far behind ``sent`` a second offset is, below 2**32.
        meta: a word of 32 bits; 0 until another is set.
        runs: a word of 32 bits.
    """

    __slots__ = ("_hashes", "_index", "_mask", "_most", "lag", "meta", "runs", "sent")

    def __init__(self, *, least: int = _LEAST) -> None:
        self._hashes = array("Q")
        self.sent = array("Q")
        self.lag = array("I")
        self.meta = array("I")
        self.runs = array("I")
        self._resize(least)

    def __len__(self) -> int:
        return len(self._hashes)

    def __repr__(self) -> str:
        return f"<Columns of {len(self)} entries>"

    @property
    def hashes(self) -> Sequence[int]:
        """The hash of each entry, 0 to 2^64 - 1; don't change it."""
        return self._hashes

    def reserve(self, entries: int) -> None:
        """Make the index large enough for so many entries, within reason, while it is empty."""
        size = min(1 << (entries * 3 // 2).bit_length(), _MOST_RESERVED)

        if not self._hashes and size > len(self._index):
            self._resize(size)

    def claim(self, hash: int) -> int:  # noqa: A002  # it is what Python's hash() returns
        """Add an entry with a hash that no other has.

        Args:
            hash: its lowest 64 bits count, so that it may be negative.

        Returns:
            The entry's number; -1, and nothing is added, where another has this hash.
        """
        index, hashes, mask = self._index, self._hashes, self._mask
        hash &= _BITS  # noqa: A001
        at = hash & mask

        while after := index[at]:
            if hashes[after - 1] == hash:
                return -1

            at = (at + 1) & mask

        index[at] = len(hashes) + 1  # 0 marks a free slot
        return self._append(hash)

    def add(self, hash: int) -> int:  # noqa: A002
        """Add an entry, whatever hashes the others have; return its number."""
        self._enter(len(self._hashes), hash & _BITS)
        return self._append(hash & _BITS)

    def _append(self, hash: int) -> int:  # noqa: A002
        number = len(self._hashes)
        self._hashes.append(hash)

        if number == len(self.meta):
            self._lengthen()

        if number == self._most:
            self._resize(2 * len(self._index))

        return number

    def _lengthen(self) -> None:
        self.sent.frombytes(bytes(8 * _STEP))

        for column in (self.lag, self.meta, self.runs):
            column.frombytes(bytes(4 * _STEP))

    def find(self, hash: int) -> tuple[int, ...]:  # noqa: A002
        """Return the numbers of the entries with this hash."""
        index, mask = self._index, self._mask
        hash &= _BITS  # noqa: A001
        at = hash & mask
        found: tuple[int, ...] = ()

        while after := index[at]:
            if self._hashes[after - 1] == hash:
                found = (*found, after - 1)

            at = (at + 1) & mask

        return found

    def _enter(self, number: int, hash: int) -> None:  # noqa: A002
        index, mask = self._index, self._mask
        at = hash & mask

        while index[at]:
            at = (at + 1) & mask

        index[at] = number + 1

    def _resize(self, size: int) -> None:
        self._index = array("I")  # the old one is given up before the new one is made
        self._index = array("I", bytes(4)) * size
        self._mask = size - 1
        self._most = size * 2 // 3

        for number, known in enumerate(self._hashes):
            self._enter(number, known)
