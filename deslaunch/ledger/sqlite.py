"""One batch in one SQLite file; its lock, and the file systems that are refused.

What may be relied on: a ledger that has its name is whole, and what a transaction committed stays,
whatever ends the process or the power. A commit that raised is in doubt. Nothing in this process
opens the file but SQLite: closing any other descriptor of it would drop SQLite's locks. One
connection writes and checkpoints, all others read: before 3.51.3 two that checkpoint at the same
moment can corrupt the file.

A launcher holds one fcntl lock on ``<ledger>.lock``, which is never removed. It is free as soon as
its process ends, however that comes about. A process loses it when it closes *any* descriptor of
that file, so all descriptors of lock files are opened and closed here, one at a time.
"""

import fcntl
import os
import re
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote

from deslaunch import errors
from deslaunch.ledger.known_runs import KnownRuns
from deslaunch.ledger.store import TELL_AFTER, Launcher, Store, as_json, load_statements, storable
from deslaunch.model import as_word, place_word, printed

APPLICATION_ID: Final = 0x4445534C  # "DESL"
SCHEMA_VERSION: Final = 1

READERS_WAIT: Final = 5.0
"""Seconds that a clean end waits for readers."""

_SQL: Final = (Path(__file__).parent / "schema.sql").read_text("utf-8")
_SCHEMA: Final = re.sub("--.*", "", _SQL).split(";")

_NEW: Final = (
    "PRAGMA cache_size=-500",  # KiB; more makes nothing faster
    "PRAGMA synchronous=OFF",  # one sync of the whole file, before it gets its name, is enough
    "BEGIN IMMEDIATE",
    f"PRAGMA application_id={APPLICATION_ID}",
    f"PRAGMA user_version={SCHEMA_VERSION}",
    *_SCHEMA,
)
_SYNCED: Final = "PRAGMA fullfsync=1"  # macOS: fsync alone stops at the drive's cache
_WAL: Final = "PRAGMA journal_mode=WAL"
_MARK_EXPORTED: Final = (
    "UPDATE batch SET options = json_set(options, '$.exported', strftime('%s', 'now') * 1000)"
)
_CHECK: Final = "PRAGMA quick_check(1)"  # 0.4 s for a million rows
_WRITER: Final = (
    "PRAGMA synchronous=FULL",
    _SYNCED,
    "PRAGMA checkpoint_fullfsync=1",
    "PRAGMA journal_size_limit=67108864",
    _WAL,  # waits for readers
    "PRAGMA busy_timeout=1000",  # ms: a wait for the write lock is looked at once a second
)
_GUEST: Final = (
    "PRAGMA synchronous=EXTRA",  # without a WAL, FULL does not sync the removal of the journal
    _SYNCED,
    "PRAGMA wal_autocheckpoint=0",  # only the launcher checkpoints
)
_VALUES: Final = re.compile(r"(?<=VALUES )\([?, ]+\)")
_ROWS_AT_ONCE: Final = 512  # SQLite takes 32,766 values
_BUSY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_WHICH: Final = "pass the file that run wrote: for night.csv it is night.ledger.db"
_IN_USE: Final = "another program reads or writes it: end that program, or wait until it has ended"
_WRITABLE: Final = "check write permission for the ledger and its folder, and free disk space"

_UNFIT: Final = re.compile(
    r"nfs4?|cifs|smbfs|smb3|afpfs|webdav|9p|virtiofs|ceph|glusterfs|lustre|gpfs|afs|vboxsf|prl_fs|drvfs"
    r"|macfuse|osxfuse|fuse(\..+)?"
)

_HELD: Final[dict[str, int]] = {}
"""Descriptor by path, of the locks that this process holds."""

_ONE_AT_A_TIME: Final = threading.Lock()

os.register_at_fork(after_in_child=_HELD.clear)  # the locks stay with the parent

# struct flock: type, whence, start, length, pid, and room; macOS has the first two last.
_FLOCK, _TYPE, _PID = ("qqihh8x", 3, 2) if sys.platform == "darwin" else ("hhqqi8x", 0, 4)


class SqliteStore(Store):
    """A batch in a file."""

    statements = load_statements("queries.sql")

    def __init__(
        self,
        place: str,
        connection: sqlite3.Connection,
        *,
        is_launcher: bool = False,
        warning: str = "",
    ) -> None:
        super().__init__(place, storable(Path(place).stem.removesuffix(".ledger")))
        self.warning = warning
        self.is_launcher = is_launcher
        self._connection = connection
        self._file = _identify(place)
        self._runs = KnownRuns(lambda: self.fetch("known_runs")[0][0], self._read_runs)

    @classmethod
    def create(cls, place: str) -> Self:
        """Take the lock and begin ``<place>.new``, in a transaction that :meth:`publish` ends."""
        place = os.path.realpath(place)
        _refuse_names_in_use(place)

        with _locked(place) as warning:
            _refuse_names_in_use(place)
            _remove_new(place)
            new = f"{place}.new"
            _make_private(new)
            connection = _connect(new, "rw", *_NEW, is_new=True)
            return cls(place, connection, is_launcher=True, warning=warning)

    @classmethod
    def take(cls, place: str, *, joins: bool, launches: bool) -> Self:  # noqa: ARG003
        """Take the lock and open the ledger for writing, until :meth:`close`."""
        if joins:
            raise errors.ConfigurationError(
                f"{place}: --join needs a ledger in PostgreSQL; a file takes one launcher",
                hint="for several launchers name a batch in PostgreSQL: postgresql://…#NAME",
            )

        place = _require(place)

        with _locked(place) as warning:
            _remove_new(place)  # of an import that was killed when it had just got its name
            # Where a page is lost, rows could seem never to have been sent.
            connection = _connect(place, "rw", _CHECK, *_WRITER)
            return cls(place, connection, is_launcher=True, warning=warning)

    @classmethod
    def read(cls, place: str) -> Self:
        """Open the ledger for reading, at any time."""
        place = _require(place)

        if Path(f"{place}-journal").exists():
            # A killed resolve left it, and only who may write can roll back.
            _connect(place, "rw").close()

        return cls(place, _connect(place, "ro"))

    def publish(self) -> None:
        """Commit and sync ``<place>.new``, give it its name, and open it under that.

        After a crash at any moment there is no ledger, or a whole one.

        Raises:
            LedgerExists: its name was taken meanwhile.
        """
        self._execute("COMMIT")
        self._connection.close()
        new = f"{self.place}.new"

        with _translated(self.place):
            _refuse_names_in_use(self.place)
            _name(new, self.place)
            _remove_new(self.place)

        self._connection = _connect(self.place, "rw", *_WRITER)
        self._file = _identify(self.place)

    def fetch(self, query: str, parameters: Any = ()) -> list[Any]:
        """Return all rows of a named query."""
        with _translated(self.place):
            return self._connection.execute(self.statements[query], parameters).fetchall()

    def run(self, query: str, parameters: Any = ()) -> int:
        """Run a named query; return how many rows it changed."""
        return self._execute(self.statements[query], parameters).rowcount

    def many(self, query: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run a named query once for each row of parameters; rows to insert share a statement."""
        statement = self.statements[query]

        with _translated(self.place):
            if (values := _VALUES.search(statement)) is None:
                self._connection.executemany(statement, rows)
                return

            left = iter(rows)

            while some := list(islice(left, _ROWS_AT_ONCE)):
                text = statement.replace(values[0], ", ".join([values[0]] * len(some)))
                self._connection.execute(text, [*chain.from_iterable(some)])

    @contextmanager
    def transaction(self, *, is_kept: bool = True) -> Iterator[None]:
        """Begin, and commit at the end of the block; what raises rolls back.

        Where it is not kept, it is rolled back too: the block was a look at what would be.

        Being kept from a lock (by a ``resolve`` beside a launcher, by a reader) is no failure: it
        waits.

        Raises:
            LedgerWriteFailed: it may or may not be durable; or the write lock was never free.
        """
        try:
            self._retry_while_busy("BEGIN IMMEDIATE")
            yield
            self._retry_while_busy("COMMIT" if is_kept else "ROLLBACK")
        except BaseException as exc:
            with suppress(sqlite3.Error):  # after some errors SQLite has rolled back by itself
                self._connection.execute("ROLLBACK")

            if type(exc) is errors.LedgerError:
                raise errors.LedgerWriteFailed(str(exc), hint=exc.hint) from exc

            raise

    def _retry_while_busy(self, statement: str) -> None:
        """Run a BEGIN, or a COMMIT, for which readers must have ended where there is no WAL."""
        began, is_told = time.monotonic(), False

        while True:
            try:
                self._execute(statement)
            except errors.LedgerError as exc:
                waited = time.monotonic() - began

                if _code_of(exc.__cause__) not in _BUSY or waited >= self.give_up_after:
                    raise

                if waited >= TELL_AFTER and not is_told:
                    why = f"the ledger has been locked by another program for {waited:.0f} s"
                    self.on_wait(f"{why}; nothing is sent meanwhile")
                    is_told = True
            else:
                return

    @contextmanager
    def writing(self) -> Iterator[Store]:
        """Give a store that may write, also beside a launcher."""
        if self.is_launcher:
            yield self
            return

        with closing(_connect(self.place, "rw", *_GUEST)) as connection:
            yield SqliteStore(self.place, connection)

    def owners(self, told: Sequence[tuple[str, int]]) -> dict[str, tuple[int, str]]:
        """Return the rows that have these jobRunIds already; kept in memory, without an index."""
        met = self._runs.meet([run for run, _ in told])
        asked = [(run, row) for run, row in told if run in met]
        found = self.fetch("rows_of_runs", (as_json(asked),)) if asked else []
        return {run: (row, key) for run, row, key in found}

    def _read_runs(self) -> Iterator[str]:
        after = (0, 0)

        while found := self.fetch("run_ids", after):
            yield from (run.lower() for _row, _number, run in found)
            after = found[-1][:2]

    def begin_session(self, told: Sequence[Any]) -> None:
        """Write a new session, and set ``session``."""
        self.run("begin_session", told)
        [(self.session,)] = self.fetch("last_session")

    def launchers(self) -> list[Launcher]:
        """Return the lock's holder, if it is another process."""
        pid = None if self.is_launcher else find_holder(self.place)

        if pid is None:
            return []

        known = self.fetch("session_at_work", (pid,))
        return [Launcher(*known[0]) if known else Launcher(pid, "", None, is_sending=False)]

    @staticmethod
    def path_value(path: str) -> str | bytes:
        """Return a path as text, or where it is no UTF-8 as bytes."""
        data = os.fsencode(path)
        return path if data == path.encode("utf-8", "replace") else data

    def is_in_place(self) -> bool:
        """Return True if the path still names the file that was opened."""
        return self._file is not None and self._file == _identify(self.place)

    def rescue(self) -> str:
        """Copy what there is to ``<ledger>.rescued``, or ``.rescued.2`` …; return its path."""
        path, number = f"{self.place}.rescued", 2

        while Path(path).exists():
            path, number = f"{self.place}.rescued.{number}", number + 1

        self._copy_to(path)
        return path

    def export(self, path: str) -> None:
        """Copy the batch as it is now to a new file, which tells that it is a copy."""
        self._copy_to(path, _MARK_EXPORTED)

    def _copy_to(self, path: str, *changes: str) -> None:
        """Copy the batch as it is now to a new file, and change it there: whole, or not at all."""
        path = os.path.realpath(path)
        names = [path, *(f"{path}{suffix}" for suffix in ("-wal", "-journal"))]

        if taken := next(filter(os.path.lexists, names), None):
            message = f"{taken}: exists already; export replaces no file"
            raise errors.ConfigurationError(message, hint="name another file")

        new = f"{path}.{os.urandom(4).hex()}.new"

        with _translated(path), ExitStack() as stack:
            _make_private(new)
            stack.callback(os.unlink, new)
            self._connection.execute("VACUUM INTO ?", (f"file:{quote(os.fsencode(new))}",))

            with closing(_connect(new, "rw", _SYNCED, *changes)):
                _name(new, path)

    def close(self) -> str:
        """Close; a launcher's file becomes the whole batch again, and its lock is freed.

        Of what was not published nothing stays.

        Returns:
            ``""``, or a sentence where a ``-wal`` that belongs to the batch stays.
        """
        if not self.is_launcher:
            self._connection.close()
            return ""

        is_in_place = self.is_in_place()

        try:
            if is_in_place:
                self._leave_wal()
            elif self._file is not None:  # it may have been moved: it is whole under any name
                self._execute("PRAGMA wal_checkpoint(TRUNCATE)")

            self._connection.close()

            if self._file is None:
                _remove_new(self.place)
        finally:
            free_lock(self.place)

        if not (is_in_place and Path(f"{self.place}-wal").exists()):
            return ""

        return f"{self.place}-wal belongs to the batch, since a reader is still at work: keep it"

    def _leave_wal(self) -> None:
        """Wait for readers until all is in the one file."""
        deadline = time.monotonic() + READERS_WAIT
        self._execute("PRAGMA busy_timeout=50")

        while time.monotonic() < deadline:
            with suppress(sqlite3.Error):
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

                if self._connection.execute("PRAGMA journal_mode=DELETE").fetchone()[0] == "delete":
                    return

    def _execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        with _translated(self.place):
            return self._connection.execute(sql, parameters)


def _connect(path: str, mode: str, *statements: str, is_new: bool = False) -> sqlite3.Connection:
    """Connect to a new file, or to a ledger of the known version."""
    if sqlite3.sqlite_version_info < (3, 34, 0):
        raise errors.LedgerError(
            f"SQLite {sqlite3.sqlite_version} is too old: expected 3.34 or newer",
            hint="use a newer Python",
        )

    uri = f"file:{quote(os.fsencode(path))}?mode={mode}"

    with ExitStack() as stack, _translated(path):
        if mode == "rw" and not is_new:
            _refuse_other_names(path)

        connection = sqlite3.connect(uri, uri=True, isolation_level=None)
        stack.callback(connection.close)
        connection.execute("PRAGMA mmap_size=0")  # a full disk: an error, not a SIGBUS

        if not is_new:
            _check_version(path, connection)

        for statement in statements:
            result = connection.execute(statement).fetchone()

            if statement == _WAL and result != ("wal",):
                raise errors.LedgerError(
                    f"{path}: SQLite can't use a write-ahead log here", hint="use a local disk"
                )

            if statement == _CHECK and result != ("ok",):
                raise _is_damaged(path, result[0].rpartition("\n")[2])

        stack.pop_all()
        return connection


def find_damage(paths: Iterable[str]) -> errors.LedgerDamaged | None:
    """Return what is wrong with the first of these files that is a damaged ledger."""
    for path in filter(os.path.isfile, paths):
        try:
            _connect(path, "ro", _CHECK).close()
        except errors.LedgerError as exc:
            if isinstance(exc, errors.LedgerDamaged):  # else it is none of ours
                return exc

    return None


def _check_version(place: str, connection: sqlite3.Connection) -> None:
    [(application,)] = connection.execute("PRAGMA application_id")
    [(version,)] = connection.execute("PRAGMA user_version")

    if application != APPLICATION_ID:
        raise _is_foreign(place)

    if version != SCHEMA_VERSION:
        raise errors.LedgerForeign(
            f"{place}: has schema version {version}, this deslaunch supports {SCHEMA_VERSION}",
            hint="use the version of deslaunch that made it, or a newer one",
        )


@contextmanager
def _translated(place: str) -> Iterator[None]:
    """Raise errors of SQLite and the system as errors of the ledger at ``place``."""
    try:
        yield
    except sqlite3.Error as exc:
        raise _error_of(place, exc) from exc
    except UnicodeDecodeError as exc:
        raise _is_damaged(place, "SQLite's message is not in UTF-8") from exc
    except FileExistsError as exc:
        raise _exists(place) from exc
    except OSError as exc:
        raise errors.LedgerError(f"{place}: {exc.strerror or exc}", hint=_WRITABLE) from exc


def _error_of(place: str, exc: sqlite3.Error) -> errors.LedgerError:
    if _code_of(exc) == sqlite3.SQLITE_NOTADB:
        return _is_foreign(place)

    is_no_text = not _code_of(exc) and "decode" in str(exc)  # it is Python that says so

    if _code_of(exc) == sqlite3.SQLITE_CORRUPT or is_no_text:
        return _is_damaged(place, str(exc))

    hint = _IN_USE if _code_of(exc) in _BUSY else _WRITABLE
    return errors.LedgerError(f"{place}: {exc}", hint=hint)


def _is_damaged(place: str, why: str) -> errors.LedgerDamaged:
    look = f"sqlite3 {as_word(place_word(place))} 'PRAGMA integrity_check'"
    message = f"{place}: the database is damaged: {why}"
    return errors.LedgerDamaged(message, hint=f"look at it with: {look}")


def _code_of(exc: BaseException | None) -> int:
    return int(getattr(exc, "sqlite_errorcode", 0)) & 0xFF  # without its extension


def _is_foreign(place: str) -> errors.LedgerForeign:
    return errors.LedgerForeign(f"{place}: is not a ledger of deslaunch", hint=_WHICH)


def _exists(place: str) -> errors.LedgerExists:
    hint = f"resume it: {printed('resume', place_word(place))}, or pass resume=True"
    return errors.LedgerExists(f"{place}: there is a ledger already", hint=hint)


def _refuse_names_in_use(place: str) -> None:
    if os.path.lexists(place):
        raise _exists(place)

    for name in (f"{place}-wal", f"{place}-journal"):
        if os.path.lexists(name):
            raise errors.LedgerForeign(
                f"{name}: belongs to an earlier batch whose ledger is gone",
                hint="move it to where its ledger is now, or name another ledger with --ledger",
            )


def _require(place: str) -> str:
    """Return the path of an existing ledger, without symbolic links."""
    if not os.path.exists(place := os.path.realpath(place)):  # noqa: PTH110
        raise errors.LedgerMissing(
            f"{place}: there is no ledger",
            hint="see the ledgers of this machine: deslaunch history",
        )

    return place


def _refuse_other_names(place: str) -> None:
    """Refuse a file that has other names: a lock and a ``-wal`` go by one."""
    known = 1 + (_identify(f"{place}.new") == _identify(place))  # of an import, at its very end

    # Never by a descriptor, see above.
    if os.stat(place).st_nlink > known or _find_mount(place)[0] == place:  # noqa: PTH116
        raise errors.LedgerError(
            f"{place}: the file has another name, under which another launcher may be at work",
            hint="use the name that it was made with, and remove any other hard link (a copy is "
            "made with deslaunch export); in a container mount its folder, not the file",
        )


def _remove_new(place: str) -> None:
    for leftover in (f"{place}.new", f"{place}.new-journal"):
        Path(leftover).unlink(missing_ok=True)


def _identify(path: str) -> tuple[int, int] | None:
    with suppress(OSError):
        found = os.stat(path)  # noqa: PTH116  # once a second, and never by a descriptor
        return found.st_dev, found.st_ino

    return None


def _make_private(path: str) -> None:
    """Make a new, empty file that only its owner may read."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


def _name(new: str, place: str) -> None:
    """Give a new file its name, once all of it is on disk."""
    _sync(new)
    os.link(new, place)  # unlike a rename it fails where the name is taken
    _sync(Path(place).parent)


def _sync(path: str | Path) -> None:
    """Sync a file, or a folder's names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)

    try:
        if sys.platform == "darwin":
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
        else:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


# The lock


@contextmanager
def _locked(place: str) -> Iterator[str]:
    """Take the lock; free it again if the block fails. Gives a warning, or ``""``."""
    warning = check_file_system(place)

    if not _take_lock(place):
        raise errors.LedgerLocked(
            f"{place}: another launcher is at work on it: {_find_launcher(place)}",
            hint=f"wait until it ends; see its progress: {printed('status', place_word(place))}; "
            f"or stop it: {printed('control', place_word(place), 'stop')}",
        )

    with ExitStack() as stack, _translated(place):
        stack.callback(free_lock, place)
        yield warning
        stack.pop_all()


def _find_launcher(place: str) -> Launcher:
    """Return who holds the lock, as far as the ledger knows; a container may hide the pid."""
    found = [Launcher(find_holder(place) or 0, socket.gethostname(), None)]

    with suppress(errors.LedgerError), closing(_connect(place, "ro")) as connection:
        found += [one for one in SqliteStore(place, connection).launchers() if one.host]

    return found[-1]


def _take_lock(place: str) -> bool:
    """Take the lock, until the process ends or :func:`free_lock`; return False if it is held."""
    with _ONE_AT_A_TIME, _translated(path := f"{place}.lock"), ExitStack() as stack:
        if path in _HELD:
            return False

        # Empty: whoever may read a ledger must be able to see whether a launcher is at work.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        stack.callback(os.close, descriptor)

        with suppress(BlockingIOError, PermissionError):
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _HELD[path] = descriptor
            stack.pop_all()

        return path in _HELD


def free_lock(place: str) -> None:
    """Free the lock; does nothing where this process does not hold it."""
    with _ONE_AT_A_TIME:
        if (descriptor := _HELD.pop(f"{place}.lock", None)) is not None:
            os.close(descriptor)


def find_holder(place: str) -> int | None:
    """Return the pid of the lock's holder; 0 if it is not known, None if nobody holds it.

    It is looked up, never tried: a try would make a launcher fail that starts meanwhile.
    """
    path = f"{place}.lock"

    with _ONE_AT_A_TIME, suppress(FileNotFoundError, PermissionError):
        if path in _HELD:
            return os.getpid()

        with Path(path).open("rb") as file:
            asked = struct.pack(_FLOCK, *(fcntl.F_WRLCK if n == _TYPE else 0 for n in range(5)))
            told = struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, asked))

        return None if told[_TYPE] == fcntl.F_UNLCK else max(0, told[_PID])

    return None


# The file system


def check_file_system(place: str, mounts: str | None = None) -> str:
    """Return a warning about the file system that ``place`` lies on, or ``""``.

    Args:
        place: path of the ledger.
        mounts: what the system lists; asked for where it is None.

    Raises:
        LedgerError: SQLite's WAL does not work there, often without an error.
    """
    _, kind = _find_mount(os.path.realpath(Path(place).parent), mounts)

    if _UNFIT.fullmatch(kind):
        raise errors.LedgerError(
            f"{place}: is on {kind}, where SQLite can lose data without an error",
            hint="put the ledger on a local disk with --ledger",
        )

    if kind in {"overlay", "tmpfs", "ramfs"}:
        end = "the container" if kind == "overlay" else "the next restart"
        return f"{place}: is on {kind}: the ledger is lost with {end}"

    return ""


def _list_mounts() -> str:
    with suppress(OSError, subprocess.SubprocessError):  # a system that doesn't tell
        if sys.platform == "darwin":
            return os.fsdecode(subprocess.check_output(["/sbin/mount"], timeout=5))

        return Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape")

    return ""


def _find_mount(path: str, mounts: str | None = None) -> tuple[str, str]:
    """Return path and type of the mount with the longest path to ``path``; of two, the later."""
    found = ("", "")

    for line in (_list_mounts() if mounts is None else mounts).splitlines():
        if match := re.match(r"\S+ \S+ \S+ \S+ (\S+) .*? - (\S+) ", line):  # mountinfo
            point, kind = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), match[1]), match[2]
        elif match := re.match(r".+? on (/.*) \((\w+)[,)]", line):  # macOS
            point, kind = match[1], match[2]
        else:
            continue

        if f"{path}/".startswith(point.rstrip("/") + "/") and len(point) >= len(found[0]):
            found = (point, kind)

    return found
