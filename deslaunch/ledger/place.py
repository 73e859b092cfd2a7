"""Where a ledger lies: its lock, and whether its file system is fit for it.

The lock is one fcntl lock on ``<ledger>.lock``, which is never removed. It is free as soon as its
process ends, however that comes about. A process loses it when it closes *any* descriptor of that
file, so all descriptors of lock files are opened and closed here, one at a time.
"""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Final

from deslaunch.errors import LedgerError

_HELD: Final[dict[str, int]] = {}
"""Descriptor by path, of the locks that this process holds."""

_ONE_AT_A_TIME: Final = threading.Lock()

os.register_at_fork(after_in_child=_HELD.clear)  # the locks stay with the parent

# struct flock: type, whence, start, length, pid; macOS has the first two last.
_FLOCK, _TYPE, _PID = ("qqihh", 3, 2) if sys.platform == "darwin" else ("hhqqi", 0, 4)


def take_lock(place: str) -> bool:
    """Take the lock of the ledger at ``place``, until the process ends or :func:`free_lock`.

    Returns:
        False where another launcher, of this process or another, holds it.

    Raises:
        LedgerError: the lock file can't be written.
    """
    path = f"{place}.lock"

    with _ONE_AT_A_TIME:
        if path in _HELD:
            return False

        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise _cannot_write(path, exc) from exc

        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(descriptor)

            if isinstance(exc, (BlockingIOError, PermissionError)):
                return False

            raise _cannot_write(path, exc) from exc

        _HELD[path] = descriptor
        return True


def free_lock(place: str) -> None:
    """Free the lock; does nothing where this process does not hold it."""
    with _ONE_AT_A_TIME:
        descriptor = _HELD.pop(f"{place}.lock", None)

        if descriptor is not None:
            os.close(descriptor)


def find_holder(place: str) -> int | None:
    """Return the pid of who holds the lock, 0 where it can't be told, None where nobody does.

    It is looked up, never tried: a try would make a launcher fail that starts meanwhile.
    """
    path = f"{place}.lock"

    with _ONE_AT_A_TIME:
        if path in _HELD:
            return os.getpid()

        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None

        try:
            asked = bytearray(struct.calcsize(_FLOCK) + 8)
            fields = [0] * 5
            fields[_TYPE] = fcntl.F_WRLCK
            struct.pack_into(_FLOCK, asked, 0, *fields)
            told = struct.unpack_from(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, bytes(asked)))
        finally:
            os.close(descriptor)

    return None if told[_TYPE] == fcntl.F_UNLCK else max(0, told[_PID])


def _cannot_write(path: str, exc: OSError) -> LedgerError:
    return LedgerError(
        f"{path}: can't be written: {exc.strerror or exc}",
        hint="You need write permission for the ledger and its folder",
    )


_UNFIT: Final = re.compile(
    r"nfs4?|cifs|smbfs|smb3|afpfs|webdav|9p|virtiofs|ceph|glusterfs|lustre|gpfs|afs|vboxsf|prl_fs|drvfs"
    r"|macfuse|osxfuse|fuse(\..+)?"
)
_FLEETING: Final = {
    "overlay": "the container",
    "tmpfs": "the next restart",
    "ramfs": "the next restart",
}


def check_file_system(place: str, mounts: str | None = None) -> str:
    """Return a warning about the file system that ``place`` lies on, or ``""``.

    Args:
        place: path of the ledger.
        mounts: what the system lists; asked for where it is None.

    Raises:
        LedgerError: SQLite's WAL does not work there, often without an error.
    """
    folder = os.path.realpath(Path(place).parent)
    kind = _find_type(folder, _list_mounts() if mounts is None else mounts)

    if _UNFIT.fullmatch(kind):
        raise LedgerError(
            f"{place}: lies on {kind}, where a database loses data without an error",
            hint="put the ledger on a local disk with --ledger",
        )

    if kind in _FLEETING:
        return f"{place}: lies on {kind}: the ledger is lost with {_FLEETING[kind]}"

    return ""


def _list_mounts() -> str:
    try:
        if sys.platform == "darwin":
            run = subprocess.run(
                ["/sbin/mount"], capture_output=True, timeout=5, check=False
            )  # fixed
            return os.fsdecode(run.stdout)

        return Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape")
    except (OSError, subprocess.SubprocessError):
        return ""  # a system that doesn't tell


def _find_type(folder: str, mounts: str) -> str:
    """Return the type of the mount with the longest path above ``folder``; of two, the later."""
    found = ("", "")

    for line in mounts.splitlines():
        if match := re.match(r"\S+ \S+ \S+ \S+ (\S+) .*? - (\S+) ", line):  # mountinfo
            path, kind = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), match[1]), match[2]
        elif match := re.match(r".+? on (/.*) \((\w+)[,)]", line):  # macOS
            path, kind = match[1], match[2]
        else:
            continue

        if f"{folder}/".startswith(path.rstrip("/") + "/") and len(path) >= len(found[0]):
            found = (path, kind)

    return found[1]


def as_word(place: str) -> str:
    """Return a path as one word of a shell command that deslaunch takes for a path."""
    return shlex.quote(f"./{place}" if place.startswith("-") else place)


def make_private(path: str) -> None:
    """Make a new, empty file that only its owner may read.

    Raises:
        FileExistsError: there is something at ``path``.
    """
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


def sync(path: Path) -> None:
    """Return when the file, or the names in the folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)

    try:
        if sys.platform == "darwin":
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
        else:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
