"""How the runs of a batch ended, most of it left in the ledger and read back when asked for.

Pure: how a record is read back is passed in. A run takes 8 bytes once the first one was watched,
and nothing before.
"""

from __future__ import annotations

from array import array
from collections import Counter
from enum import IntEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from deslaunch.records import Record
    from deslaunch.states import Fetch

_BITS: Final = 2
_STEP: Final = 1 << 10


class Ending(IntEnum):
    """What a ``runStatus`` record says of its run.

    ``UNTOLD``: DES refused to tell of it when it was last asked. It will be asked again.
    """

    NONE = 0
    UNTOLD = 1
    SUCCEEDED = 2
    FAILED = 3


def ending_of(record: Record) -> Ending:
    """Return what a ``runStatus`` record says; what it leaves out counts as not so."""
    if record.get("finished") is not True:
        return Ending.UNTOLD

    return Ending.SUCCEEDED if record.get("success") is True else Ending.FAILED


class Endings:
    """The last ``runStatus`` of each key, by the key's number.

    Args:
        fetch: reads a record back; None where every record is held.
    """

    def __init__(self, fetch: Fetch | None = None) -> None:
        self._fetch = fetch
        self._places = array("q")  # offset and ending in one number; 0 for none
        self._held: dict[int, Record] = {}

    def __repr__(self) -> str:
        return f"<Endings of {sum(self.counts().values())} runs>"

    def put(self, number: int, offset: int, record: Record) -> None:
        """Take in a record.

        Args:
            number: of the record's key.
            offset: where it stands in the ledger; -1 where it can't be read back.
            record: a ``runStatus``.
        """
        self._held.pop(number, None)

        if self._fetch is None or offset < 0:
            self._held[number] = record
            offset = 0

        while number >= len(self._places):
            self._places.frombytes(bytes(8 * _STEP))

        self._places[number] = offset << _BITS | ending_of(record)

    def of(self, number: int) -> Ending:
        """Return how a key's run ended."""
        place = self._places[number] if number < len(self._places) else 0
        return Ending(place & ((1 << _BITS) - 1))

    def record(self, number: int) -> Record | None:
        """Return the record that says so, or None; don't change it."""
        if self.of(number) is Ending.NONE:
            return None

        if number in self._held:
            return self._held[number]

        assert self._fetch is not None
        return self._fetch(self._places[number] >> _BITS)

    def counts(self) -> Counter[Ending]:
        """Return how many runs ended in each way."""
        codes = Counter(place & ((1 << _BITS) - 1) for place in self._places)
        return Counter({ending: codes[ending] for ending in Ending if ending and codes[ending]})
