"""The one place that writes files, and what may be relied on afterwards.

Recipe: ``O_APPEND``; write in a loop, since a write may be short; ``fdatasync`` once per group;
``fsync`` the directory once after a file was made in it; replace whole files through a synced
temporary file in the same directory. A failed write or sync is final and never retried: after
a failed ``fsync`` the kernel may have dropped the pages and call the next one a success.

A file that is moved, removed or replaced while it is appended to counts as a failed write: what
went into it can't be found under its name any more.

Not promised: anything on a disk that lies about its write cache, and locks on network file
systems that do not carry ``flock``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import BinaryIO, Self

PRIVATE: Final = 0o600


class Disk(Protocol):
    """The two calls that can fail when it matters; a test passes in a faulty one."""

    def write(self, fd: int, data: bytes | memoryview) -> int:
        """Write some of ``data`` and return how many bytes."""
        ...

    def sync(self, fd: int) -> None:
        """Return when all that was written to ``fd`` is on disk."""
        ...


class SystemDisk:
    """The operating system's disk."""

    def write(self, fd: int, data: bytes | memoryview) -> int:
        """Write some of ``data`` and return how many bytes."""
        return os.write(fd, data)

    def sync(self, fd: int) -> None:
        """Return when all that was written to ``fd`` is on disk."""
        if sys.platform == "darwin":
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)  # fsync alone stops at the drive's cache
        else:
            os.fdatasync(fd)


SYSTEM_DISK: Final = SystemDisk()


class AppendFile:
    """A file that only grows, held by this process alone.

    Args:
        path: the file.
        create: make a new file, mode 0600; else open the one that is there.
        disk: the calls that write and sync.

    Raises:
        FileExistsError: ``create``, and the file is there.
        BlockingIOError: another process holds the file's lock.
        OSError: the file can't be opened, made or locked, or is no regular file.

    Attributes:
        path: the file, as it was named.
        size: its size in bytes, as far as this object knows.
        disk: the calls that write and sync.
    """

    def __init__(self, path: Path, *, create: bool = False, disk: Disk = SYSTEM_DISK) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC
        self.path = path
        self._place = path.absolute()  # the program may change its folder
        self.disk = disk
        self._owner = os.getpid()
        self._failure: OSError | None = None
        self._fd = os.open(path, flags | (os.O_CREAT | os.O_EXCL if create else 0), PRIVATE)

        try:
            self.size = _regular_size(self._fd, path)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._check_place()

            if create:
                sync_directory(path.parent)
        except BaseException:
            os.close(self._fd)
            raise

    def __repr__(self) -> str:
        state = "failed" if self._failure else "closed" if self._fd < 0 else "open"
        return f"<AppendFile {str(self.path)!r} {state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def append(self, data: bytes) -> None:
        """Append ``data``.

        After return it is on disk, in the file that bears this name. After a crash, or an error,
        any prefix of it may be.

        Raises:
            OSError: a write or sync failed, or the file was moved or replaced, now or earlier;
                nothing is written any more.
        """
        with self._failing_for_good():
            write_all(self._fd, data, disk=self.disk)
            self.disk.sync(self._fd)
            self._check_place()

        self.size += len(data)

    def cut(self, size: int) -> None:
        """Cut the file to ``size`` bytes; after return the cut is on disk.

        Raises:
            OSError: the cut or its sync failed, or a write did earlier; nothing is written any
                more.
        """
        with self._failing_for_good():
            os.ftruncate(self._fd, size)
            self.disk.sync(self._fd)

        self.size = size

    @contextlib.contextmanager
    def _failing_for_good(self) -> Iterator[None]:
        if self._failure is not None:
            raise self._failure

        try:
            yield
        except OSError as exc:
            self._failure = exc
            raise

    def _check_place(self) -> None:
        """Refuse to go on in a file that its name no longer leads to."""
        try:
            there = self._place.stat()
        except FileNotFoundError:
            there = None

        if there is None or not os.path.samestat(os.fstat(self._fd), there):
            raise _replaced(self.path)

    @contextlib.contextmanager
    def reading(self) -> Iterator[BinaryIO]:
        """Read the file from its start, through a descriptor of its own.

        Raises:
            OSError: it can't be opened, or another file bears its name now.
        """
        with self._place.open("rb") as stream:
            if not os.path.samestat(os.fstat(stream.fileno()), os.fstat(self._fd)):
                raise _replaced(self.path)

            yield stream

    def close(self) -> None:
        """Close the file and give up its lock. Closing twice does nothing."""
        if self._fd < 0:
            return

        fd, self._fd = self._fd, -1

        try:
            if os.getpid() == self._owner:  # a forked child shares the lock, and keeps it alive
                fcntl.flock(fd, fcntl.LOCK_UN)
        finally:
            os.close(fd)


def _regular_size(fd: int, path: Path) -> int:
    found = os.fstat(fd)

    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))

    return found.st_size


def _replaced(path: Path) -> OSError:
    return OSError(errno.ESTALE, "moved, removed or replaced while it was in use", str(path))


def write_all(fd: int, data: bytes, *, disk: Disk = SYSTEM_DISK) -> None:
    """Write all of ``data``, however short the single writes are. Nothing is synced.

    Raises:
        OSError: a write failed; any prefix of ``data`` may have been written.
    """
    rest = memoryview(data)

    while rest:
        written = disk.write(fd, rest)

        if written <= 0:
            raise OSError(errno.EIO, "the disk takes no more bytes and names no error")

        rest = rest[written:]


def write_atomically(
    path: Path, data: bytes, mode: int = PRIVATE, *, disk: Disk = SYSTEM_DISK
) -> None:
    """Replace the file at ``path`` by ``data``.

    After return the new file is on disk. After a crash, or an error, the old file or the new
    one is there, never a mixture.

    Raises:
        OSError: the folder can't be written, the disk is full, or ``path`` is no regular file.
    """
    with replacing(path, mode, disk=disk) as stream:
        stream.write(data)


@contextlib.contextmanager
def replacing(path: Path, mode: int = PRIVATE, *, disk: Disk = SYSTEM_DISK) -> Iterator[BinaryIO]:
    """Write a new file for ``path`` piece by piece, and put it in place at the end.

    Where ``path`` is a symbolic link, the file that it leads to is replaced.

    After the block the new file is on disk. After a crash, or an error in the block, the old
    file is there unchanged.

    Raises:
        OSError: the folder can't be written, the disk is full, or ``path`` is no regular file.
    """
    path = path.resolve()

    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file", str(path))

    prefix = f".{path.name[:32]}."  # the whole name and more might be too long a name
    fd, name = tempfile.mkstemp(prefix=prefix, suffix=".new", dir=path.parent)
    new = Path(name)

    try:
        with os.fdopen(fd, "wb") as stream:
            os.fchmod(fd, mode)
            yield stream
            stream.flush()
            disk.sync(fd)

        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise

    sync_directory(path.parent)


def check_place(path: Path) -> None:
    """Look whether a file could be made, or opened to be written to; make nothing.

    Raises:
        OSError: it surely can't. No error is no promise: the disk may be full by then.
    """
    os.stat(f"{path.parent}/")  # noqa: PTH116  # a Path drops the slash, which asks for a folder
    place, mode = (path, os.W_OK) if path.exists() else (path.parent, os.W_OK | os.X_OK)

    if not os.access(place, mode):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable.

    Raises:
        OSError: the directory can't be opened or synced.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)

    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def is_held(path: Path) -> bool | None:
    """Tell whether a process holds the file's lock, without touching the lock.

    Returns:
        None where the system does not say (only Linux lists its locks, and only those of
        processes that this one could see in a process list).

    Raises:
        OSError: the file can't be opened.
    """
    place = _place_of_locks(path)

    try:
        locks = Path("/proc/locks").read_text(encoding="utf-8")
    except OSError:
        return None

    return any("FLOCK" in line and place in line.split() for line in locks.splitlines())


def _place_of_locks(path: Path) -> str:
    """Return device and inode of a file as ``/proc/locks`` spells them.

    The device is the file system's own. On btrfs and overlayfs ``stat`` tells another one, so
    that it is taken from the mount, where the system lists its mounts.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    try:
        found = os.fstat(fd)
        device, inode = (os.major(found.st_dev), os.minor(found.st_dev)), str(found.st_ino)

        with contextlib.suppress(OSError):
            opened = _fields(Path(f"/proc/self/fdinfo/{fd}"))
            inode = opened.get("ino", inode)
            device = _mounted_devices().get(opened.get("mnt_id", ""), device)
    finally:
        os.close(fd)

    return f"{device[0]:02x}:{device[1]:02x}:{inode}"


def _fields(path: Path) -> dict[str, str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return {name: text.strip() for name, _, text in (line.partition(":") for line in lines)}


def _mounted_devices() -> dict[str, tuple[int, int]]:
    """Return each mount's (major, minor) by its number."""
    devices = {}

    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        number, _, device = line.split()[:3]
        major, minor = device.split(b":")
        devices[number.decode()] = int(major), int(minor)

    return devices


def is_alive(pid: int) -> bool:
    """Tell whether a process of this machine exists."""
    if pid <= 0:
        return False  # for kill these are groups of processes

    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True

    return True
