"""The runs of a batch: each is one row's, and what DES says of it is kept."""

from __future__ import annotations

import json
from array import array
from typing import TYPE_CHECKING, Any

from deslaunch.ledger.reading import storable
from deslaunch.model import Result, RowState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deslaunch.ledger.reading import Store
    from deslaunch.model import Outcome, RunStatus


class KnownRuns:
    """The jobRunIds that rows have, so that one that comes again is noticed.

    They are read when the first one comes, and kept as 64-bit hashes, 8 bytes a slot of a table
    that is at most half full: a set of texts takes ten times that, and an index in the database
    would write a page for every row. Only where a hash is met again is the database asked.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._slots = array("q")
        self._room = 0
        self._owners: dict[str, tuple[int, str]] = {}  # row and key, of the turn that is going on

    def refuse_repeated(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Turn outcomes unknown whose jobRunId another row has: a run can't be two rows'."""
        return [
            outcome
            if outcome.job_run_id is None
            or (owner := self._take(outcome.job_run_id.lower(), outcome)) is None
            else outcome._replace(
                result=Result.UNKNOWN,
                state=RowState.UNKNOWN,
                not_before=None,
                error=f"jobRunId {outcome.job_run_id} is that of row {owner[0]} ({owner[1]}) "
                f"{outcome.error}".rstrip(),
            )
            for outcome in outcomes
        ]

    def settle(self) -> None:
        """Note that the outcomes are on disk; until then they may come once more."""
        self._owners.clear()

        if self._room < 0:
            self._slots = array("q")  # to be read anew, with room for the rows that came since

    def _take(self, run: str, outcome: Outcome) -> tuple[int, str] | None:
        """Take an id; return the other row that has it."""
        if not self._slots:
            self._load()

        if self._add(run):
            self._owners[run] = outcome.row, outcome.key
            return None

        owner = self._owners.get(run)

        if owner is None:
            found = self._store.fetch("row_of_run", (run, outcome.row))
            owner = found[0] if found else None

        return None if owner is None or owner[0] == outcome.row else owner

    def _load(self) -> None:
        [(rows,)] = self._store.fetch("last_row")
        self._slots = array("q", bytes(8 << (2 * rows + 4096).bit_length()))
        self._room = len(self._slots) // 2
        after = (0, 0)

        while found := self._store.fetch("run_ids", after):
            for _row, _number, run in found:
                self._add(run.lower())

            after = found[-1][:2]

    def _add(self, run: str) -> bool:
        """Return True if it, and all others of its hash, were not there."""
        slots = self._slots
        wanted = hash(run) or 1
        mask = len(slots) - 1
        at = wanted & mask

        while found := slots[at]:
            if found == wanted:
                return False

            at = (at + 1) & mask

        slots[at] = wanted
        self._room -= 1
        return True


def run_fields(row: int, attempt: int, told: RunStatus | str, now: int) -> tuple[Any, ...]:
    """Return what is written of a run; a text: why DES does not tell of it."""
    if isinstance(told, str):
        return (row, attempt, now, storable(told), *(None,) * 6)

    said = told.status and storable(told.status)
    times = (told.created_utc, told.finished_utc)
    files = json.dumps(told.output_files)
    return (row, attempt, now, None, told.finished, told.success, said, *times, files)
