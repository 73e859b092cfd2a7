"""The batches of this machine: a list, and a check for older copies and second batches.

One small SQLite file in the user's state folder. It is written after the ledger: a session
is noted once it is in its ledger, before its first intent; the number of attempts about once a
second and at the end. So a ledger with fewer attempts than noted here is an older copy.

Nothing depends on it. If it can't be found, made, read or written within a second, there is one
warning, and this process goes on without a history.
"""

import json
import os
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from platformdirs import user_state_path

from deslaunch.ledger.place import user_folder
from deslaunch.model import printable

WAIT: Final = 1.0
"""Seconds that history is waited for."""

_VERSION: Final = 1
_SCHEMA: Final = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS batch (
  uid TEXT PRIMARY KEY,
  place TEXT NOT NULL,                  -- where it was last sent from
  manifest TEXT NOT NULL,
  digest TEXT NOT NULL,                 -- of the manifest; '' for rows of a program
  session INTEGER NOT NULL,             -- number of the last one
  attempts INTEGER NOT NULL,
  began_ms INTEGER NOT NULL,            -- the last session
  ended_ms INTEGER,                     -- NULL: at work, or killed
  exit_code INTEGER,
  counts TEXT NOT NULL DEFAULT '{{}}',  -- JSON, as --json has them
  given_up INTEGER NOT NULL DEFAULT 0   -- a second batch of its rows was wanted
);
PRAGMA user_version = {_VERSION};
COMMIT;
"""


_LIKE: Final = """
SELECT * FROM batch WHERE (digest = ? AND digest <> '' OR place = ?) AND uid <> ? ORDER BY began_ms
"""


class Noted(NamedTuple):
    """A batch as history knows it.

    Attributes:
        uid: of the batch, the same in each copy of its ledger.
        place: where its ledger was when it was last sent from.
        manifest: as it was named.
        digest: SHA-256 of the manifest, hex; ``""`` for rows of a program.
        session: number of its last session.
        attempts: POSTs that were made or meant, at least.
        began_ms: when the last session began, ms since 1970.
        ended_ms: when it ended; None: it is at work, or was killed.
        exit_code: of the last session that ended.
        counts: rows by state, as they were last noted.
        is_given_up: a second batch of its rows was wanted.
    """

    uid: str
    place: str
    manifest: str
    digest: str
    session: int
    attempts: int
    began_ms: int
    ended_ms: int | None = None
    exit_code: int | None = None
    counts: Mapping[str, Any] = {}
    is_given_up: bool = False

    @property
    def has_rows_left(self) -> bool:
        """Rows are left, as far as is known, and it was not given up."""
        left = self.counts.get("pending", 0) + self.counts.get("inFlight", 0)
        # Without counts it is at work, or was killed, or could not be read at its end.
        return not self.is_given_up and (not self.counts or left > 0)

    @property
    def is_unfinished(self) -> bool:
        """It has rows left, and something of it was sent, or is about to be."""
        return self.has_rows_left and (not self.counts or self.counts.get("attempts", 0) > 0)


class History:
    """What this machine's batches did. Its methods block; it may be used from several threads.

    Args:
        folder: of the user's state; None where there is none.
        warn: called with a sentence, once, where there is no history.
    """

    @classmethod
    def of_user(cls, warn: Callable[[str], object]) -> Self:
        """Return the history in the user's state folder."""
        return cls(user_folder("DESLAUNCH_STATE_DIR", user_state_path), warn)

    def __init__(self, folder: Path | None, warn: Callable[[str], object]) -> None:
        self._file = None if folder is None else folder / "history.db"
        self._warn = warn
        self._is_useless = False

        if folder is None:
            self._give_up("the user has no home")

    def find(self, uid: str) -> Noted | None:
        """Return what is known of a batch."""
        return next(iter(self._ask("SELECT * FROM batch WHERE uid = ?", (uid,))), None)

    def batches(self) -> list[Noted]:
        """Return all batches, the latest last."""
        return self._ask("SELECT * FROM batch ORDER BY began_ms", ())

    def like(self, digest: str, place: str, *, but: str = "") -> list[Noted]:
        """Return the batches of the same bytes, or at the same place, the latest last.

        Args:
            digest: of a manifest; ``""`` is like no other.
            place: of a ledger.
            but: uid of the batch that is not meant.
        """
        return self._ask(_LIKE, (digest, _stored(place), but))

    def begin(self, batch: Noted, allowed: Collection[str] | None) -> list[Noted]:
        """Note a session that has begun, unless it is the first of a second batch of the same rows.

        Look and note are one transaction, so that of two that begin at once one is told.

        Args:
            batch: as it is now.
            allowed: uids of unfinished batches that may be beside it; they are given up. None:
                it is no new batch, and all may be.

        Returns:
            The other unfinished batches of the same bytes, or at the same place: where there are
            any, nothing was noted.
        """

        def work(connection: sqlite3.Connection) -> list[Noted]:
            known = connection.execute("SELECT 1 FROM batch WHERE uid = ?", (batch.uid,)).fetchone()
            others = connection.execute(_LIKE, (batch.digest, _stored(batch.place), batch.uid))
            found = [one for one in map(_noted, others) if one.is_unfinished]

            if allowed is None or known is not None:
                found = []
            elif refused := [one for one in found if one.uid not in allowed]:
                return refused

            given_up = [(one.uid,) for one in found]
            connection.executemany("UPDATE batch SET given_up = 1 WHERE uid = ?", given_up)

            connection.execute(
                "INSERT OR REPLACE INTO batch"
                " (uid, place, manifest, digest, session, attempts, began_ms)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                [_stored(value) for value in batch[:7]],
            )
            return []

        refused: list[Noted] = self._do(work, default=[], makes=True)
        return refused

    def note(
        self,
        uid: str,
        at: str,
        *,
        attempts: int = 0,
        counts: Mapping[str, Any] | None = None,
        ended_ms: int | None = None,
        exit_code: int | None = None,
        place: str | None = None,
    ) -> None:
        """Note a batch's progress or state, if its ledger is where it was last sent from.

        Of a batch that is not known, and of a copy at another place, nothing is noted.
        """
        told = None if counts is None else json.dumps(counts)
        statement = (
            "UPDATE batch SET attempts = max(attempts, ?), counts = coalesce(?, counts),"
            " ended_ms = coalesce(?, ended_ms), exit_code = coalesce(?, exit_code),"
            " place = coalesce(?, place) WHERE uid = ? AND place = ?"
        )
        said = (attempts, told, ended_ms, exit_code, _stored(place), uid, _stored(at))
        self._do(lambda c: c.execute(statement, said))

    def _ask(self, query: str, parameters: Sequence[Any]) -> list[Noted]:
        found: list[Noted] = self._do(
            lambda c: list(map(_noted, c.execute(query, parameters))), default=[]
        )
        return found

    def _do(
        self, work: Callable[[sqlite3.Connection], Any], default: Any = None, *, makes: bool = False
    ) -> Any:
        """Run ``work`` in one transaction; return the default if there is no history."""
        if self._is_useless or self._file is None:
            return default

        try:
            if not (makes or self._file.exists()):
                return default

            with self._open(self._file) as connection:
                return work(connection)
        except (OSError, sqlite3.Error, ValueError) as exc:
            self._give_up(getattr(exc, "strerror", None) or str(exc))
            return default

    @contextmanager
    def _open(self, file: Path) -> Iterator[sqlite3.Connection]:
        if not file.exists():  # 0600 before SQLite opens it
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600))

        with closing(sqlite3.connect(file, isolation_level=None, timeout=WAIT)) as connection:
            [(version,)] = connection.execute("PRAGMA user_version")

            if version > _VERSION:
                raise ValueError("a newer deslaunch made it")

            if not version:
                connection.executescript(_SCHEMA)

            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")

    def _give_up(self, why: str) -> None:
        self._is_useless = True
        self._warn(
            f"there is no history ({why}): older copies and second batches are not noticed"
            + ("" if self._file is None else f"; it is kept in {printable(str(self._file))}")
        )


def _stored(value: Any) -> Any:
    """Return a value as SQLite takes it: a path that may not be UTF-8 as its bytes."""
    is_plain = not isinstance(value, str) or value.isprintable()  # a lone surrogate is not
    return value if is_plain else os.fsencode(value)


def _noted(row: Sequence[Any]) -> Noted:
    *said, counts, given_up = (os.fsdecode(v) if isinstance(v, bytes) else v for v in row)
    return Noted._make((*said, json.loads(counts), bool(given_up)))
