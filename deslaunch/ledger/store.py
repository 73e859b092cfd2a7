"""The interface of a ledger to its database.

A store runs named statements: those of ``queries.sql``, unless a database has its own form of one.
"""

import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple, Self

import orjson

from deslaunch import errors
from deslaunch.model import as_word, utc

TELL_AFTER: Final = 5.0
"""Seconds after which a wait for the database is told."""

TEXT_LIMIT: Final = 4096
"""Characters that are kept of what DES or a person said."""


class Launcher(NamedTuple):
    """Who is at work on a batch.

    Attributes:
        pid: process; 0 where neither its lock nor the ledger tells.
        host: ``""`` where the ledger does not tell.
        since_ms: ms since 1970, or None.
        in_flight: its rows in flight; None where the ledger does not keep that by launcher.
        is_sending: its session has begun.
    """

    pid: int
    host: str
    since_ms: int | None
    in_flight: int | None = None
    is_sending: bool = True

    def __str__(self) -> str:
        since = "" if self.since_ms is None else f" since {utc(self.since_ms)}"
        return f"process {self.pid or '?'} on {self.host or '?'}{since}"


class TryAgain(errors.LedgerWriteFailed):
    """The transaction must be run again from its begin, after :meth:`Store.recover`."""


class Store(ABC):
    """One connection to the database of a batch; made and used in one thread.

    Attributes:
        is_shared: several launchers may be at work on the batch.
        place: where the batch is, as it is printed: without symbolic links, or a password.
        batch_name: how the batch is called.
        warning: about where it lies, or ``""``; a launcher's only.
        is_launcher: it holds the lock that a launcher needs.
        session: number of the session that is at work, 0 before it begins.
        give_up_after: seconds that a transaction waits for the database.
        on_wait: called with a sentence, once a wait, after ``TELL_AFTER``.
    """

    is_shared: ClassVar[bool] = False
    statements: ClassVar[dict[str, str]]

    place: str
    batch_name: str
    warning: str = ""
    is_launcher: bool = False
    session: int = 0
    give_up_after: float = 30.0

    def __init__(self, place: str, batch_name: str) -> None:
        self.place = place
        self.batch_name = batch_name
        self.on_wait: Callable[[str], object] = lambda _text: None

    @classmethod
    @abstractmethod
    def create(cls, place: str) -> Self:
        """Begin a new batch, in a transaction that :meth:`publish` ends."""

    @classmethod
    @abstractmethod
    def take(cls, place: str, *, joins: bool, launches: bool) -> Self:
        """Open a batch for writing, until :meth:`close`.

        Args:
            place: of the batch.
            joins: beside other launchers.
            launches: to send rows; else it only records what becomes of runs.
        """

    @classmethod
    @abstractmethod
    def read(cls, place: str) -> Self:
        """Open a batch for reading, at any time."""

    @abstractmethod
    def publish(self) -> None:
        """Make a new batch durable, whole, and go on as its launcher."""

    # Statements.

    @abstractmethod
    def fetch(self, query: str, parameters: Any = ()) -> list[Any]:
        """Return all rows of a named query."""

    def starts(self, query: str, parameters: Any) -> list[Any]:
        """Return the rows to send that a named query gives.

        Returns:
            Tuples of number, attempt, key, jobId, body, digest, whether it is an auto row, and
            retries.
        """
        return self.fetch(query, parameters)

    @abstractmethod
    def run(self, query: str, parameters: Any = ()) -> int:
        """Run a named query; return how many rows it changed."""

    @abstractmethod
    def many(self, query: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run a named query once for each row of parameters."""

    def load(self, query: str, parameters: Any = ()) -> Any:
        """Return the JSON value that a named query gives."""
        [(text,)] = self.fetch(query, parameters)
        return orjson.loads(text)

    @abstractmethod
    def transaction(self, *, is_kept: bool = True) -> AbstractContextManager[None]:
        """Begin, and commit at the end of the block; what raises rolls back.

        Where it is not kept, it is rolled back too: the block was a look at what would be.

        Raises:
            TryAgain: it may or may not be durable; recover, and run all of it again.
            LedgerWriteFailed: it may or may not be durable.
        """

    def recover(self, error: TryAgain) -> None:
        """Prepare the store for the next transaction, after one that ended with ``error``.

        Raises:
            LedgerWriteFailed: transactions have been failing for ``give_up_after`` seconds.
        """
        raise NotImplementedError

    def give_up(self, *, at_once: bool) -> None:  # noqa: ARG002
        """Stop waiting for the database; may be called from any thread.

        Args:
            at_once: try to reach it once more at most; else once for each transaction.
        """
        self.give_up_after = 0.0

    @abstractmethod
    def writing(self) -> AbstractContextManager["Store"]:
        """Give a store that may write, also beside launchers."""

    def end_turn(self, in_flight: int) -> None:
        """Note, in a turn's transaction, how many rows are in flight once it is durable."""
        raise NotImplementedError

    @abstractmethod
    def owners(self, told: Sequence[tuple[str, int]]) -> dict[str, tuple[int, str]]:
        """Return the rows that have these jobRunIds already: by jobRunId, the row and its key.

        Args:
            told: jobRunIds in lower case, each with the row that it is told of.
        """

    # Sessions.

    def is_alone(self) -> bool:
        """Return True if no other launcher's session is at work."""
        return True

    @abstractmethod
    def begin_session(self, told: Sequence[Any]) -> None:
        """Write a new session, described by ``told``, and set ``session``."""

    def own_sessions(self) -> Sequence[int]:
        """Return the numbers under which this launcher wrote intents."""
        return [self.session]

    def lose_sessions(self, now: int, *, at_once: bool) -> Sequence[int]:  # noqa: ARG002
        """Note, in a transaction, which sessions are dead whose end was not noted; return them.

        Args:
            now: ms since 1970.
            at_once: believe it when first seen; else when seen again some time later.
        """
        return []

    @abstractmethod
    def launchers(self) -> list[Launcher]:
        """Return who else is at work."""

    def open_state(self) -> str:
        """Return what a row is whose attempt is open."""
        # What this launcher's predecessors had in flight is not, before its session begins.
        return "sending" if self.session or self.launchers() else "unknown"

    # The database itself.

    def wall(self) -> float:
        """Return the database's own time, seconds since 1970; where it has none, this machine's."""
        return time.time()

    @staticmethod
    def path_value(path: str) -> str | bytes:
        """Return a path, which may be no UTF-8, as the database keeps it."""
        return os.fsencode(path)

    def is_in_place(self) -> bool:
        """Return True if the place still names the database that was opened."""
        return True

    def export(self, path: str) -> None:  # noqa: ARG002  # a file's path
        """Copy the batch as it is now to a new file, which tells that it is a copy."""
        url = as_word(self.place.partition("#")[0] or "URL")
        raise errors.ConfigurationError(
            f"{self.place}: export copies a ledger that is a file, and this one is in PostgreSQL",
            hint=f"all batches of its database: pg_dump --schema=deslaunch {url} > batches.sql",
        )

    def rescue(self) -> str:
        """Copy the batch to another place; return that."""
        raise errors.LedgerError(
            f"{self.place}: this ledger can't be copied", hint="use the tools of its database"
        )

    @abstractmethod
    def close(self) -> str:
        """Close; return ``""``, or a sentence about what stays."""


def load_statements(name: str) -> dict[str, str]:
    """Return the statements of a file of this package by their names, without comments."""
    text = re.sub("(?m)--(?! name: ).*", "", (Path(__file__).parent / name).read_text("utf-8"))
    named = re.split(r"(?m)^-- name: (\w+)\n", text)
    return dict(zip(named[1::2], named[2::2], strict=True))


def as_json(value: Any) -> str:
    """Return JSON for a statement; texts must come from ``storable``."""
    return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()


def storable(text: str, limit: int | None = TEXT_LIMIT) -> str:
    """Return a text that a database accepts: no lone surrogates or NULs, cut to ``limit``."""
    text = text[:limit].replace("\0", "\\0")
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
