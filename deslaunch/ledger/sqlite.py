"""One batch in one SQLite file.

What may be relied on: a ledger that has its name is whole, and what a transaction committed stays,
whatever ends the process or the power. A commit that raised is in doubt. Nothing in this process
opens the file but SQLite: closing any other descriptor of it would drop SQLite's locks. One
connection writes and checkpoints, all others read: before 3.51.3 two that checkpoint at the same
moment can corrupt the file.
"""

from __future__ import annotations

import os
import re
import socket
import sqlite3
import time
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import quote

from deslaunch.errors import (
    LedgerDamaged,
    LedgerError,
    LedgerExists,
    LedgerForeign,
    LedgerLocked,
    LedgerMissing,
    LedgerWriteFailed,
)
from deslaunch.ledger.place import (
    as_word,
    check_file_system,
    find_holder,
    free_lock,
    make_private,
    sync,
    take_lock,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

APPLICATION_ID: Final = 0x4445534C  # "DESL"
SCHEMA_VERSION: Final = 1
OLDEST_SQLITE: Final = (3, 34, 0)

READERS_WAIT: Final = 5.0
"""Seconds that a clean end waits for readers."""

TELL_AFTER: Final = 5.0
"""Seconds after which a wait for the write lock is told."""

_FOLDER: Final = Path(__file__).parent
_QUERIES: Final[dict[str, str]] = dict(
    re.findall(
        r"^-- name: (\w+)\n(.+?);$",
        (_FOLDER / "queries.sql").read_text("utf-8"),
        re.MULTILINE | re.DOTALL,
    )
)
_WRITER: Final = (
    "PRAGMA synchronous=FULL",
    "PRAGMA fullfsync=1",  # macOS: fsync alone stops at the drive's cache
    "PRAGMA checkpoint_fullfsync=1",
    "PRAGMA journal_size_limit=67108864",
)
_GUEST: Final = (
    "PRAGMA synchronous=EXTRA",  # without a WAL, FULL does not sync the removal of the journal
    "PRAGMA fullfsync=1",
    "PRAGMA wal_autocheckpoint=0",  # only the launcher checkpoints
)
_WRITABLE: Final = "You need write permission for the ledger and its folder, and room on its disk"


class SqliteStore:
    """One connection to a ledger's file; made and used in one thread.

    Attributes:
        place: path of the ledger, without symbolic links.
        warning: about the file system that it lies on, or ``""``; a launcher's only.
        is_launcher: it holds the lock.
        give_up_after: seconds that a transaction waits for the write lock.
        on_wait: called with the seconds waited, once a wait, after ``TELL_AFTER``.
    """

    def __init__(
        self,
        place: str,
        connection: sqlite3.Connection,
        *,
        is_launcher: bool = False,
        warning: str = "",
    ) -> None:
        self.place = place
        self.warning = warning
        self.give_up_after = 30.0
        self.on_wait: Callable[[float], None] | None = None
        self._connection = connection
        self.is_launcher = is_launcher
        self._file = _identify(place)

    @classmethod
    def create(cls, place: str) -> Self:
        """Take the lock and begin ``<place>.new``, in a transaction that :meth:`publish` ends."""
        place = os.path.realpath(place)
        _refuse_names_in_use(place)
        warning = check_file_system(place)

        with _locked(place):
            _refuse_names_in_use(place)
            new = f"{place}.new"

            for leftover in (new, f"{new}-journal"):
                Path(leftover).unlink(missing_ok=True)

            make_private(new)
            store = cls(place, _connect(new, "rw"), is_launcher=True, warning=warning)
            # One sync of the whole file, before it gets its name, is enough.
            store._set("PRAGMA synchronous=OFF", "BEGIN IMMEDIATE")
            store._set(f"PRAGMA application_id={APPLICATION_ID}")
            store._set(f"PRAGMA user_version={SCHEMA_VERSION}")
            tables = re.sub("--.*", "", (_FOLDER / "schema.sql").read_text("utf-8"))
            # Not executescript, which commits first.
            store._set(*(statement for statement in tables.split(";") if statement.strip()))
            return store

    @classmethod
    def take(cls, place: str) -> Self:
        """Take the lock and open the ledger for writing, until :meth:`close`."""
        place = os.path.realpath(place)
        _require(place)
        warning = check_file_system(place)

        with _locked(place):
            new = Path(f"{place}.new")

            if new.exists() and new.samefile(place):  # killed when it had just got its name
                new.unlink()

            return cls(place, _open_writer(place), is_launcher=True, warning=warning)

    @classmethod
    def read(cls, place: str) -> Self:
        """Open the ledger for reading, at any time."""
        place = os.path.realpath(place)
        _require(place)

        try:
            return cls(place, _open(place, "ro"))
        except LedgerError as exc:
            if type(exc) is not LedgerError:
                raise

            # A killed resolve left a journal, which only who may write can roll back.
            with closing(_connect(place, "rw")) as connection:
                connection.execute("SELECT count(*) FROM batch")

            return cls(place, _open(place, "ro"))

    def publish(self) -> None:
        """Commit and sync ``<place>.new``, give it its name, and open it under that.

        After a crash at any moment there is no ledger, or a whole one.

        Raises:
            LedgerExists: its name was taken meanwhile.
        """
        self._set("COMMIT")
        self._connection.close()
        new = Path(f"{self.place}.new")

        with _translated(self.place):
            sync(new)
            _refuse_names_in_use(self.place)
            os.link(new, self.place)  # unlike a rename it fails where the name is taken
            new.unlink()
            sync(new.parent)

        self._connection = _open_writer(self.place)
        self._file = _identify(self.place)

    def discard(self) -> None:
        """Remove ``<place>.new``, and free the lock."""
        self._connection.close()

        for leftover in (f"{self.place}.new", f"{self.place}.new-journal"):
            Path(leftover).unlink(missing_ok=True)

        free_lock(self.place)

    def fetch(self, query: str, parameters: Any = ()) -> list[Any]:
        """Return all rows of a named query."""
        return self._execute(_QUERIES[query], parameters).fetchall()

    def run(self, query: str, parameters: Any = ()) -> int:
        """Run a named query; return how many rows it changed."""
        return self._execute(_QUERIES[query], parameters).rowcount

    def many(self, query: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run a named query once for each row of parameters."""
        with _translated(self.place):
            self._connection.executemany(_QUERIES[query], rows)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Begin, and commit at the end of the block; what raises rolls back.

        Being kept from the write lock (a ``resolve`` beside a launcher) is no failure: it waits.

        Raises:
            LedgerWriteFailed: it may or may not be durable; or the write lock was never free.
        """
        self._begin()

        try:
            yield
            self._set("COMMIT")
        except BaseException as exc:
            with suppress(sqlite3.Error):  # after some errors SQLite has rolled back by itself
                self._connection.execute("ROLLBACK")

            if type(exc) is LedgerError:
                raise LedgerWriteFailed(str(exc), hint=exc.hint) from exc

            raise

    def _begin(self) -> None:
        began, is_told = time.monotonic(), False

        while True:
            try:
                self._set("BEGIN IMMEDIATE")
            except LedgerError as exc:
                waited = time.monotonic() - began

                if not _is_busy(exc) or waited >= self.give_up_after:
                    raise LedgerWriteFailed(str(exc), hint=exc.hint) from exc

                if waited >= TELL_AFTER and not is_told and self.on_wait is not None:
                    self.on_wait(waited)
                    is_told = True
            else:
                return

    @contextmanager
    def writing(self) -> Iterator[SqliteStore]:
        """Give a store that may write, also beside a launcher."""
        if self.is_launcher:
            yield self
            return

        with closing(_connect(self.place, "rw", *_GUEST, busy=1.0)) as connection:
            yield SqliteStore(self.place, connection)

    def holder(self) -> int | None:
        """Return the pid of who holds the lock (0: can't be told), or None."""
        return find_holder(self.place)

    def is_in_place(self) -> bool:
        """Return True if the path still names the file that was opened."""
        return self._file is not None and self._file == _identify(self.place)

    def rescue(self) -> str:
        """Copy what there is to ``<ledger>.rescued``, or ``.rescued.2`` …; return its path."""
        path, number = f"{self.place}.rescued", 2

        while Path(path).exists():
            path, number = f"{self.place}.rescued.{number}", number + 1

        with _translated(path):
            make_private(path)

            with closing(_connect(path, "rw")) as copy:
                self._connection.backup(copy)
                copy.execute("PRAGMA journal_mode=DELETE")

        return path

    def close(self) -> str:
        """Close; a launcher's file becomes the whole batch again, and its lock is freed.

        Returns:
            ``""``, or a sentence where a ``-wal`` that belongs to the batch stays.
        """
        try:
            if self.is_launcher and self.is_in_place():
                self._leave_wal()

            self._connection.close()
        finally:
            if self.is_launcher:
                free_lock(self.place)

        if not self.is_launcher or not Path(f"{self.place}-wal").exists():
            return ""

        return f"{self.place}-wal belongs to the batch, since a reader is still at work: keep it"

    def _leave_wal(self) -> None:
        """Wait for readers until all is in the one file."""
        deadline = time.monotonic() + READERS_WAIT
        self._set("PRAGMA busy_timeout=50")

        while time.monotonic() < deadline:
            with suppress(sqlite3.Error):
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

                if self._connection.execute("PRAGMA journal_mode=DELETE").fetchone()[0] == "delete":
                    return

    def _set(self, *statements: str) -> None:
        for statement in statements:
            self._execute(statement)

    def _execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        with _translated(self.place):
            return self._connection.execute(sql, parameters)


def _open_writer(place: str) -> sqlite3.Connection:
    with ExitStack() as stack, _translated(place):
        # A wait for the write lock is looked at once a second.
        connection = stack.enter_context(closing(_open(place, "rw", *_WRITER, busy=1.0)))

        if connection.execute("PRAGMA journal_mode=WAL").fetchone()[0] != "wal":
            raise LedgerError(f"{place}: SQLite can't use a WAL here", hint="use a local disk")

        stack.pop_all()
        return connection


def _open(place: str, mode: str, *pragmas: str, busy: float = 5.0) -> sqlite3.Connection:
    """Connect to what is a ledger of the version that is known."""
    with ExitStack() as stack, _translated(place):
        connection = stack.enter_context(closing(_connect(place, mode, *pragmas, busy=busy)))
        [(application,)] = connection.execute("PRAGMA application_id")
        [(version,)] = connection.execute("PRAGMA user_version")

        if application != APPLICATION_ID:
            raise _is_foreign(place)

        if version != SCHEMA_VERSION:
            raise LedgerForeign(
                f"{place}: has schema version {version}, this deslaunch knows {SCHEMA_VERSION}",
                hint="use the version of deslaunch that made it, or a newer one",
            )

        stack.pop_all()
        return connection


def _connect(path: str, mode: str, *pragmas: str, busy: float = 5.0) -> sqlite3.Connection:
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        raise LedgerError(
            f"SQLite {sqlite3.sqlite_version} is too old: expected 3.34 or newer",
            hint="use a newer Python",
        )

    with _translated(path):
        uri = f"file:{quote(os.fsencode(path))}?mode={mode}"
        connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=busy)

        for pragma in ("PRAGMA mmap_size=0", *pragmas):  # a full disk: an error, not a SIGBUS
            connection.execute(pragma)

        return connection


@contextmanager
def _locked(place: str) -> Iterator[None]:
    """Take the lock; free it again if the block fails."""
    if not take_lock(place):
        raise LedgerLocked(
            f"{place}: another launcher is at work on it{_describe_launcher(place)}",
            hint="wait until it ends",
        )

    try:
        with _translated(place):
            yield
    except BaseException:
        free_lock(place)
        raise


def _describe_launcher(place: str) -> str:
    """Say who holds the lock: the ledger knows more than the lock, which a container may hide."""
    pid, host, since = find_holder(place), socket.gethostname(), ""

    with suppress(LedgerError, sqlite3.Error), closing(_open(place, "ro")) as connection:
        for _number, its_host, its_pid, began_ms, ended_ms in connection.execute(
            _QUERIES["last_session"]
        ):
            if ended_ms is None and pid in {0, its_pid}:
                began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began_ms / 1000))
                host, pid, since = its_host, its_pid, f", since {began}"

    return f": process {pid or '?'} on {host}{since}"


@contextmanager
def _translated(place: str) -> Iterator[None]:
    """Raise what SQLite and the system raise as errors of the ledger at ``place``."""
    try:
        yield
    except sqlite3.Error as exc:
        code = getattr(exc, "sqlite_errorcode", 0) & 0xFF

        if code == sqlite3.SQLITE_NOTADB:
            raise _is_foreign(place) from exc

        if code == sqlite3.SQLITE_CORRUPT:
            raise LedgerDamaged(
                f"{place}: the database is damaged: {exc}",
                hint=f"look at it with: sqlite3 {as_word(place)} 'PRAGMA integrity_check'",
            ) from exc

        raise LedgerError(f"{place}: {exc}", hint=_WRITABLE) from exc
    except FileExistsError as exc:
        raise _exists(place) from exc
    except OSError as exc:
        raise LedgerError(f"{place}: {exc.strerror or exc}", hint=_WRITABLE) from exc


def _is_busy(exc: LedgerError) -> bool:
    code = getattr(exc.__cause__, "sqlite_errorcode", 0) & 0xFF
    return code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def _is_foreign(place: str) -> LedgerForeign:
    return LedgerForeign(f"{place}: is no ledger of deslaunch", hint="name the right file")


def _exists(place: str) -> LedgerExists:
    return LedgerExists(
        f"{place}: there is a ledger already",
        hint=f"go on with it: deslaunch resume {as_word(place)}",
    )


def _refuse_names_in_use(place: str) -> None:
    if os.path.lexists(place):
        raise _exists(place)

    for name in (f"{place}-wal", f"{place}-journal"):
        if os.path.lexists(name):
            raise LedgerExists(
                f"{name}: holds the end of an earlier batch, whose ledger is gone",
                hint="move it to where its ledger is now, or name another ledger with --ledger",
            )


def _require(place: str) -> None:
    if not Path(place).exists():
        raise LedgerMissing(f"{place}: there is no ledger", hint="check its path")


def _identify(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116  # once a second, and never by a descriptor
    except OSError:
        return None

    return found.st_dev, found.st_ino
