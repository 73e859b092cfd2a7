"""Keys that were started in more than one of some ledgers, found in 40 bytes a started key.

Pure. A batch starts a key once, and no batch knows of another: only here is seen that a row was
started by two. Keys are compared where their 64-bit hashes are equal, never by these alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from deslaunch.columns import Columns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deslaunch.states import KeyState, KeyStates

KEPT_KEYS: Final = 1_000
"""Shared keys that are told of; the others are counted."""


class SharedKey(NamedTuple):
    """A key that was started in more than one ledger.

    Attributes:
        key: the key.
        same_row: the row said the same each time: the same run was started anew.
        runs: name of the ledger and jobRunId of each run, in the order of the ledgers.
    """

    key: str
    same_row: bool
    runs: tuple[tuple[str, str], ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the key in the documented form of ``status --json``."""
        runs = [{"ledger": ledger, "jobRunId": run} for ledger, run in self.runs]
        return {"key": self.key, "sameRow": self.same_row, "runs": runs}


@dataclass(frozen=True, slots=True)
class SharedKeys:
    """What some ledgers have in common.

    Attributes:
        count: keys that were started in more than one.
        kept: the first 1,000 of them.
    """

    count: int
    kept: tuple[SharedKey, ...]


def shared_keys(ledgers: Sequence[tuple[str, KeyStates]], *, keep: int = KEPT_KEYS) -> SharedKeys:
    """Return the keys that were started in more than one of some ledgers.

    Args:
        ledgers: each with its name; all hash their keys alike.
        keep: shared keys to tell of at most.
    """
    union = _Union(ledgers, keep)

    for index, (_, states) in enumerate(ledgers):
        for number, hash_ in states.started():
            union.take(hash_, _Place(index, number))

    return SharedKeys(union.count, tuple(union.kept()))


class _Place(NamedTuple):
    """Where a key stands: which ledger, and its number there."""

    ledger: int
    number: int


class _Union:
    """The started keys of all ledgers, each once.

    Attributes:
        count: keys that came more than once.
    """

    def __init__(self, ledgers: Sequence[tuple[str, KeyStates]], keep: int) -> None:
        self.count = 0
        self._ledgers = ledgers
        self._keep = keep
        self._columns = Columns()  # meta and runs: the place; lag: 1 where the key came again
        self._objects = [{s.number: s for s in states.objects()} for _, states in ledgers]
        self._kept: dict[int, list[_Place]] = {}

    def take(self, hash: int, place: _Place) -> None:  # noqa: A002  # it is what hash() returned
        """Take in a started key; those of one ledger come in a row."""
        columns = self._columns
        entry = columns.claim(hash)

        if entry < 0:
            key = self._state(place).key
            same = (one for one in columns.find(hash) if self._state(self._place(one)).key == key)
            known = next(same, None)

            if known is not None:
                self._share(known, place)
                return

            entry = columns.add(hash)

        columns.meta[entry], columns.runs[entry] = place

    def _share(self, entry: int, place: _Place) -> None:
        self.count += not self._columns.lag[entry]
        self._columns.lag[entry] = 1

        if entry in self._kept or len(self._kept) < self._keep:
            self._kept.setdefault(entry, [self._place(entry)]).append(place)

    def kept(self) -> list[SharedKey]:
        """Return the first keys that came more than once."""
        return [self._told(places) for places in self._kept.values()]

    def _told(self, places: Sequence[_Place]) -> SharedKey:
        states = [self._state(place) for place in places]
        names = (self._ledgers[place.ledger][0] for place in places)
        runs = (str(state.job_run_id) for state in states)
        same_row = len({state.digest for state in states}) == 1
        return SharedKey(states[0].key, same_row, tuple(zip(names, runs, strict=True)))

    def _place(self, entry: int) -> _Place:
        return _Place(self._columns.meta[entry], self._columns.runs[entry])

    def _state(self, place: _Place) -> KeyState:
        held = self._objects[place.ledger].get(place.number)
        return held or self._ledgers[place.ledger][1].packed(place.number)
