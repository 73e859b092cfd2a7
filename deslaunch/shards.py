"""The shards of a manifest: which of its rows one launcher of several starts.

Pure. Every shard reads and validates the whole manifest, so that a bad one stops them all; it
starts, records and counts its own rows alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from deslaunch.errors import ConfigurationError
from deslaunch.keys import row_digest, shard_of
from deslaunch.model import Row

if TYPE_CHECKING:
    from collections.abc import Iterable

    from deslaunch.rows import Item

MAX_SHARDS: Final = 99_999

_SHARD: Final = re.compile("([1-9][0-9]{0,4})/([1-9][0-9]{0,4})")


@dataclass(frozen=True, slots=True)
class Shard:
    """One of several shards.

    Attributes:
        index: which one, 1 to ``count``.
        count: how many there are, 1 to 99,999.
    """

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the shard that is written as ``I/N``.

        Raises:
            ConfigurationError: it is none.
        """
        found = _SHARD.fullmatch(text)
        shard = cls(*map(int, found.groups())) if found else None

        if shard is None or shard.index > shard.count:
            raise ConfigurationError(
                f"--shard takes I/N, I from 1 to N and N up to {MAX_SHARDS:,}, got {text!r}",
                hint="the second of four shards is 2/4",
            )

        return shard

    def holds(self, key: str | None, number: int) -> bool:
        """Tell whether a row is this shard's; see :func:`index_of`."""
        return index_of(key, number, self.count) == self.index


def index_of(key: str | None, number: int, count: int) -> int:
    """Return which shard a row belongs to, 1 to ``count``.

    Args:
        key: the row's key; None for an invalid row that has none of its own. Such a row goes by
            its number, modulo the count, plus 1.
        number: data row, from 1.
        count: how many shards there are.
    """
    return number % count + 1 if key is None else shard_of(key, count)


class Share:
    """The rows of one reading of a manifest that are a shard's, in a byte a row.

    Rows are taken in order, each once.

    Attributes:
        shard: whose they are.
    """

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self._own = bytearray()

    def __repr__(self) -> str:
        return f"<Share {self.shard}: {len(self)} of {len(self._own)} rows>"

    def __len__(self) -> int:
        return self._own.count(1)

    def __contains__(self, number: int) -> bool:
        return self._own[number - 1] == 1

    def take(self, key: str | None, number: int) -> bool:
        """Take the next row; tell whether it is the shard's."""
        own = self.shard.holds(key, number)
        self._own.append(own)
        return own

    def take_all(self, items: Iterable[Item]) -> None:
        """Take the next rows, of which none shares its key with another."""
        for item in items:
            if isinstance(item, Row):
                self.take(item.key or row_digest(item), item.number)
            else:
                self.take(None, item[0].row)
