"""The ledger: one append-only file per batch, and the truth about it.

Writing is group commit: whatever waits is written with one write and one sync, in a thread of
the ledger's own, in the order in which it was appended. Reading tells three things apart: a
readable record; an unreadable *tail* with no good line after it (torn by a kill, zero-filled by
a power cut), which is set aside before anything is appended; and a bad line in the *middle*,
which is damage and stops everything.

After ``append``'s future is done, the record is on disk. After a crash, the records of any
prefix of what was appended are.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import os
import shlex
import shutil
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import anyio

from deslaunch import durable, records
from deslaunch.errors import (
    LedgerDamaged,
    LedgerError,
    LedgerExists,
    LedgerForeign,
    LedgerLocked,
    LedgerWriteFailed,
)
from deslaunch.readback import Readback
from deslaunch.replay import Replay, check
from deslaunch.states import KeyStates

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import TracebackType
    from typing import BinaryIO, Self

    from deslaunch.records import Record
    from deslaunch.states import Fetch

    Opened = tuple[durable.AppendFile, Replay, Readback]
    Waiting = tuple[Record, bytes, asyncio.Future[None]]

_NEW_BATCH: Final = "start a new batch with another --ledger"
_STEADY_READS: Final = 5
_INNER_RECORDS: Final = 64
_CHUNK: Final = 1 << 20


def utc_now() -> str:
    """Return the time as the ledger writes it: RFC 3339, milliseconds, Z."""
    seconds, milliseconds = divmod(time.time_ns() // 1_000_000, 1000)
    return f"{_second(seconds)}.{milliseconds:03}Z"


@lru_cache(maxsize=1)  # many records are written in one second
def _second(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}"


@dataclass(slots=True)
class Tail:
    """How a ledger ends.

    Attributes:
        offset: where the unreadable tail begins, in bytes; the file's size if there is none.
        torn: there is an unreadable tail.
        open_line: the last record is whole but lacks its newline.
    """

    offset: int = 0
    torn: bool = False
    open_line: bool = False


def read_records(stream: BinaryIO, tail: Tail) -> Iterator[tuple[int, Record]]:
    """Yield each record with the offset of its line, and describe the end in ``tail``.

    Raises:
        LedgerDamaged: a line can't be read, and a later record can.
    """
    damage = ""

    for offset, line in _lines(stream):
        whole = line.endswith(b"\n")

        try:
            record = records.decode(line if whole else line + b"\n")
        except records.BadRecord as exc:
            damage = damage or str(exc)
            tail.torn = True

            if _hides_record(line):
                raise _damaged(tail.offset, f"{damage}, and readable records follow") from exc

            continue

        if tail.torn:
            raise _damaged(tail.offset, f"{damage}, and readable records follow")

        yield offset, record
        tail.offset = offset + len(line)
        tail.open_line = not whole


def _hides_record(line: bytes) -> bool:
    """Tell whether a bad line ends with a good record: the newline between them is what broke."""
    at = len(line)

    for _ in range(_INNER_RECORDS):
        at = line.rfind(records.START, 0, at)

        if at <= 0:
            return False

        with contextlib.suppress(records.BadRecord):
            records.decode(line[at:])
            return True

    return False


def _lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are there now, not those that a launcher adds meanwhile.

    A line that is half written when the end is reached would else be read in two parts, and
    look like damage. A line that is too long for a record comes in pieces.
    """
    rest = b""
    size = stream.seek(0, os.SEEK_END)
    offset = stream.seek(0)

    while block := stream.read(min(_CHUNK, min(records.LINE_LIMIT, size - offset) - len(rest))):
        block = rest + block
        end = len(block) if len(block) == records.LINE_LIMIT else 0
        end = block.rfind(b"\n") + 1 or end
        rest = block[end:]

        for line in io.BytesIO(block[:end]):
            yield offset, line
            offset += len(line)

    if rest:
        yield offset, rest


def _damaged(offset: int, why: str) -> LedgerDamaged:
    return LedgerDamaged(
        f"the ledger is damaged at byte {offset}: {why}",
        offset=offset,
        hint="restore the file from a copy; nothing was sent",
    )


def replay_of(stream: BinaryIO, fetch: Fetch | None = None) -> tuple[Replay, Tail]:
    """Replay a ledger from its start. A replay without a header means: no batch was begun.

    Args:
        stream: the ledger.
        fetch: reads a record back, so that the replay need not hold it; None holds all.

    Raises:
        LedgerDamaged: a line in the middle can't be read, or a record says nothing usable.
        LedgerForeign: the file is no ledger of this version.
    """
    replay, tail = Replay(KeyStates(fetch)), Tail()

    for offset, record in read_records(stream, tail):
        try:
            replay.apply(record, offset)
        except (KeyError, TypeError, ValueError) as exc:
            raise _damaged(offset, f"a record of kind {record['record']!r}: {exc}") from exc

    if not replay.header and tail.torn and not _is_cut_header(stream):
        raise LedgerForeign(
            "the file is no deslaunch ledger",
            hint="name a ledger (is this its manifest?); a new batch needs a new --ledger",
        )

    return replay, tail


def _is_cut_header(stream: BinaryIO) -> bool:
    """Tell whether all of a file can be a header that was cut short, or filled up with zeros.

    What a kill leaves holds no newline, and what a power cut leaves is zeros to the end. Any
    other file is somebody's, a ledger of another version perhaps, and must not be cut.
    """
    stream.seek(0)
    start = stream.read(len(records.HEADER_START))
    text = start.rstrip(b"\0")
    in_zeros = len(text) < len(start)

    if not records.HEADER_START.startswith(text):
        return False

    while chunk := stream.read(_CHUNK):
        text = chunk.rstrip(b"\0")

        if (in_zeros and text) or b"\n" in text or b"\0" in text:
            return False

        in_zeros = in_zeros or len(text) < len(chunk)

    return True


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A ledger as it stood when it was read, without its lock.

    Attributes:
        path: the ledger.
        replay: its rows.
        live: a launcher holds it.
        torn: its tail could not be read.
    """

    path: Path
    replay: Replay
    live: bool
    torn: bool


def snapshot(path: Path) -> Snapshot:
    """Read a ledger without changing or locking it.

    Raises:
        LedgerDamaged: a line in the middle can't be read.
        LedgerForeign: the file is no ledger of this version, or holds no whole header.
        LedgerError: the file can't be read.
    """
    found = peek(path)

    if found is None:
        raise _unborn(path) if path.exists() else _missing(path)

    return found


def peek(path: Path) -> Snapshot | None:
    """Read a ledger without changing or locking it, if a batch was begun in it.

    Returns:
        None where there is no file, or one without a whole header: nothing can have been sent.

    Raises:
        LedgerDamaged: a line in the middle can't be read.
        LedgerForeign: the file is no ledger of this version.
        LedgerError: the file can't be read.
    """
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise _unusable(path, exc) from exc

    with stream, _explained(path):
        held = durable.is_held(path)
        replay, tail = steady_replay_of(stream, Readback(path, stream.fileno()))
        held = durable.is_held(path) or held  # a launcher may come or go during the reading

    if not replay.header:
        return None

    live = _looks_alive(replay) if held is None else held
    return Snapshot(path, replay, live, tail.torn)


def _unborn(path: Path) -> LedgerForeign:
    return LedgerForeign(
        f"{path}: the ledger holds no whole header: no batch was begun",
        hint="start the batch with 'deslaunch run'",
    )


def _missing(path: Path) -> LedgerError:
    return LedgerError(f"{path}: there is no such ledger", hint="check the path")


def _closed(path: Path) -> LedgerWriteFailed:
    return LedgerWriteFailed(f"{path}: the ledger is closed", hint="open it anew to go on")


def _unusable(path: Path, exc: OSError) -> LedgerError:
    reason = exc.strerror or str(exc)
    return LedgerError(f"{path}: can't be used: {reason}", hint=_way_out(path, exc.errno))


def _way_out(path: Path, number: int | None) -> str:
    elsewhere = "or name a ledger in another folder"

    match number:
        case errno.ENOENT | errno.ENOTDIR:
            return f"make the folder {path.parent}, {elsewhere}"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return f"get leave to write it and its folder {path.parent}, {elsewhere}"
        case _:
            return "check the file and its folder"


def steady_replay_of(stream: BinaryIO, fetch: Fetch | None = None) -> tuple[Replay, Tail]:
    """Replay a ledger that a launcher may be changing: bad news counts if the file stood still.

    A torn tail that is cut off and written over while it is read would else look like damage.

    Args:
        stream: the ledger.
        fetch: reads a record back, so that the replay need not hold it; None holds all.

    Raises:
        LedgerDamaged: a line in the middle can't be read.
        LedgerForeign: the file is no ledger of this version.
    """
    for _ in range(_STEADY_READS):
        before = _shape(stream)

        try:
            return replay_of(stream, fetch)
        except (LedgerDamaged, LedgerForeign):
            if _shape(stream) == before:
                raise

    return replay_of(stream, fetch)


def _shape(stream: BinaryIO) -> tuple[int, int]:
    found = os.fstat(stream.fileno())
    return found.st_size, found.st_mtime_ns


def check_place(path: Path) -> None:
    """Look whether a ledger could be made, before a person is asked whether it is to be.

    Raises:
        LedgerError: it surely can't; where it is not raised, making it may fail all the same.
    """
    try:
        durable.check_place(path)
    except OSError as exc:
        raise _unusable(path, exc) from exc


def records_of(path: Path) -> Iterator[Record]:
    """Yield a ledger's records from its start to where it ends now.

    Raises:
        LedgerDamaged: a line in the middle can't be read.
        LedgerError: the file can't be read.
    """
    with _explained(path), path.open("rb") as stream:
        for _, record in read_records(stream, Tail()):
            yield record


def _looks_alive(replay: Replay) -> bool:
    """Guess from the last session, where the system does not list its locks."""
    session = replay.session

    if session is None or replay.ended or session["host"] != socket.gethostname():
        return False

    return durable.is_alive(session["pid"])


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Say which file an error is about."""
    try:
        yield
    except FileNotFoundError as exc:
        raise _missing(path) from exc
    except OSError as exc:
        raise _unusable(path, exc) from exc
    except LedgerError as exc:
        if not str(exc).startswith(str(path)):
            exc.args = (f"{path}: {exc}",)

        raise


class Ledger:
    """A ledger held by this process: append, and ask what is recorded.

    Made by :meth:`create` or :meth:`open`; use it as an asynchronous context manager.

    Attributes:
        path: the file.
        replay: what the durable records say, this session's included.
    """

    def __init__(
        self,
        file: durable.AppendFile,
        replay: Replay,
        readback: Readback,
        *,
        clock: Callable[[], str] = utc_now,
    ) -> None:
        self.path = file.path
        self.replay = replay
        self._file = file
        self._readback = readback
        self._clock = clock
        self._queue: list[Waiting] = []
        self._committing: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._failure: LedgerWriteFailed | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="deslaunch-ledger")

    def __repr__(self) -> str:
        state = "failed" if self._failure else "closed" if self._closing else "open"
        return f"<Ledger {str(self.path)!r} {state}, {len(self._queue)} waiting>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    @classmethod
    async def create(
        cls,
        path: Path,
        *,
        disk: durable.Disk = durable.SYSTEM_DISK,
        clock: Callable[[], str] = utc_now,
    ) -> Ledger:
        """Make and lock a new ledger, still without a header.

        A file that was left without a whole header counts as absent and is taken over.

        Raises:
            LedgerExists: a batch was begun in it.
            LedgerLocked: another launcher holds it.
            LedgerForeign: the file is there and is no ledger.
            LedgerError: it can't be made.
        """
        return cls(*await _opened(_create, path, disk), clock=clock)

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        disk: durable.Disk = durable.SYSTEM_DISK,
        clock: Callable[[], str] = utc_now,
    ) -> Ledger:
        """Lock a ledger, set an unreadable tail aside, and replay it.

        Raises:
            LedgerLocked: another launcher holds it.
            LedgerDamaged: a line in the middle can't be read.
            LedgerForeign: it is no ledger, a newer one's, or holds a kind that must be known.
            LedgerError: it is not there or can't be opened.
        """
        return cls(*await _opened(_open, path, disk), clock=clock)

    def append(self, record: Record) -> asyncio.Future[None]:
        """Queue a record behind all that were appended before.

        Returns:
            A future that is done once the record is on disk and part of ``replay``; it carries
            :class:`LedgerWriteFailed` where that failed, or where the ledger was closed.

        Raises:
            ValueError: the record lacks a field, or is too long; nothing is written of it.
            TypeError: the record holds a value that is none of JSON's; nothing is written of it.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        if self._failure is not None or self._closing is not None:
            _fail(future, self._failure or _closed(self.path))
            return future

        line = records.encode(record, self._clock())
        check(record)
        self._queue.append((record, line, future))

        if self._committing is None:
            self._committing = asyncio.create_task(self._commit_all())

        return future

    async def aclose(self) -> None:
        """Wait for what is queued, close the file and give up its lock.

        A cancellation is held back until that is done. Closing twice does nothing.
        """
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())

        cancelled: asyncio.CancelledError | None = None

        with anyio.CancelScope(shield=True):
            while not self._closing.done():
                try:
                    await asyncio.shield(self._closing)
                except asyncio.CancelledError as exc:
                    cancelled = exc

        if cancelled is not None:
            raise cancelled

    async def _close(self) -> None:
        if self._committing is not None:
            await asyncio.wait({self._committing})

        try:  # in the ledger's own thread: behind any write that is still going on
            await asyncio.get_running_loop().run_in_executor(self._thread, self._file.close)
        finally:
            self._thread.shutdown(wait=False)

    async def _commit_all(self) -> None:
        group: list[Waiting] = []

        try:
            while self._queue:
                group, self._queue = self._queue, []
                await self._commit(group)
        except BaseException as exc:  # whatever it is, nobody may wait for ever
            self._fail(exc, group)

            if not isinstance(exc, Exception):
                raise
        finally:
            self._committing = None

    async def _commit(self, group: list[Waiting]) -> None:
        lines = b"".join([line for _, line, _ in group])
        offset = self._file.size
        await asyncio.get_running_loop().run_in_executor(self._thread, self._file.append, lines)

        for record, line, _ in group:
            self._readback.keep(offset, record)  # its row's outcome is asked for in a moment
            self.replay.take(record, offset)
            offset += len(line)

        for _, _, future in group:
            if not future.done():  # its waiter may have been cancelled
                future.set_result(None)

    def _fail(self, exc: BaseException, group: list[Waiting]) -> None:
        """Fail all that waits, now and later: a failed write is never retried."""
        reason = (exc.strerror if isinstance(exc, OSError) else None) or str(exc) or repr(exc)
        self._failure = LedgerWriteFailed(
            f"{self.path}: the ledger can't be written: {reason}",
            hint="make room or mend the disk, then: deslaunch resume "
            f"{shlex.quote(str(self.path))}",
        )
        self._failure.__cause__ = exc
        waiting = [*group, *self._queue]
        self._queue.clear()

        for _, _, future in waiting:
            if not future.done():
                _fail(future, self._failure)


def _fail(future: asyncio.Future[None], failure: LedgerWriteFailed) -> None:
    """Fail a future, and spare asyncio's complaint where nobody waits for it."""
    future.set_exception(failure)
    future.exception()


async def _opened(
    make: Callable[[Path, durable.Disk], Opened], path: Path, disk: durable.Disk
) -> Opened:
    """Open in a thread; where the caller is cancelled meanwhile, give the lock up again."""
    opening = asyncio.create_task(asyncio.to_thread(make, path, disk))

    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_give_up)
        raise


def _give_up(opening: asyncio.Task[Opened]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result()[0].close()


def _create(path: Path, disk: durable.Disk) -> Opened:
    try:
        file = durable.AppendFile(path, create=True, disk=disk)
    except (FileExistsError, BlockingIOError):
        pass  # it is there, or another launcher made it a moment ago
    except OSError as exc:
        raise _unusable(path, exc) from exc
    else:
        return _empty(file)

    return _open_checked(path, disk, _check_absent)


def _empty(file: durable.AppendFile) -> Opened:
    try:
        with _explained(file.path), file.reading() as stream:
            readback = Readback(file.path, stream.fileno())
    except BaseException:
        file.close()
        raise

    return file, Replay(KeyStates(readback)), readback


def _open(path: Path, disk: durable.Disk) -> Opened:
    return _open_checked(path, disk, _check_known)


def _check_absent(path: Path, replay: Replay) -> None:
    if replay.header:
        raise LedgerExists(f"{path}: the ledger exists", hint=_NEW_BATCH)


def _check_known(path: Path, replay: Replay) -> None:
    if not replay.header:
        raise _unborn(path)

    if replay.unreadable:
        kinds = ", ".join(sorted(replay.unreadable))
        raise LedgerForeign(
            f"{path}: records of a kind that this version does not know: {kinds}",
            hint="resume with the version of deslaunch that wrote them",
        )


def _open_checked(
    path: Path, disk: durable.Disk, check_replay: Callable[[Path, Replay], None]
) -> Opened:
    """Lock and replay a file and heal its tail; a file that is refused is left as it is."""
    with _explained(path):
        try:
            file = durable.AppendFile(path, disk=disk)
        except BlockingIOError as exc:
            raise _locked(path) from exc

        try:
            with file.reading() as stream:
                readback = Readback(path, stream.fileno())
                replay, tail = replay_of(stream, readback)

            check_replay(path, replay)
            _heal(file, tail)

            if not replay.header:  # whoever made the file may not have come to this
                durable.sync_directory(path.parent)
        except BaseException:
            file.close()
            raise

        return file, replay, readback


def _heal(file: durable.AppendFile, tail: Tail) -> None:
    """Set an unreadable tail aside, or end the last line, so that a record can follow."""
    if tail.torn:
        _set_aside(file, tail.offset)
        file.cut(tail.offset)

    if tail.open_line:
        file.append(b"\n")


def _set_aside(file: durable.AppendFile, offset: int) -> None:
    """Copy a tail behind those that were set aside before: one may name a run."""
    torn = file.path.with_name(f"{file.path.name}.torn")

    with file.reading() as tail, durable.replacing(torn, disk=file.disk) as copy:
        with contextlib.suppress(FileNotFoundError), torn.open("rb") as before:
            shutil.copyfileobj(before, copy)

        tail.seek(offset)
        shutil.copyfileobj(tail, copy)


def _locked(path: Path) -> LedgerLocked:
    replay = Replay()

    with contextlib.suppress(LedgerError), path.open("rb") as stream:
        replay, _ = steady_replay_of(stream)

    return locked(path, replay)


def locked(path: Path, replay: Replay) -> LedgerLocked:
    """Return the error that says who holds a ledger, as far as its last session tells."""
    session = replay.watch or (None if replay.ended else replay.session)
    holder = "another process" if session is None else _holder(session)
    return LedgerLocked(
        f"{path}: the ledger is held by {holder}",
        hint=f"wait until it has ended; how far it is: deslaunch status {shlex.quote(str(path))}",
    )


def _holder(session: Record) -> str:
    return f"process {session['pid']} on {session['host']}, at work since {session['utc']}"


def foreign(ledger: Path, manifest: Path) -> LedgerForeign:
    """Return the error for a ledger that was begun with another manifest."""
    return LedgerForeign(
        f"{ledger}: the ledger belongs to another manifest than {manifest} as it is now; "
        "nothing was sent",
        hint="a new batch needs a new --ledger; a manifest that was changed on purpose goes on "
        f"with: deslaunch resume {shlex.quote(str(ledger))} "
        f"--manifest {shlex.quote(str(manifest))}",
    )
