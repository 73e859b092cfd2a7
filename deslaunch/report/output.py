"""Output files: what may be replaced, and how a file is replaced as a whole.

A file is written under a temporary name beside its place, synced, and renamed. So after a crash,
or an error, the old file or the new one is there, never a mixture. An error in syncing the folder
is no failure: a share may not be able to, and these files can be made again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from anyio import CancelScope, to_thread

from deslaunch.errors import ConfigurationError
from deslaunch.model import printable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from deslaunch.ledger.reading import Reader

PAGE_MARK: Final = b"<!DOCTYPE html><!-- deslaunch report -->"
"""How the first line of a report begins."""

_BESIDE_LEDGER: Final = ("", "-wal", "-shm", "-journal", ".lock", ".new")
_SQLITE: Final = b"SQLite format 3\0"
_FIRST_LINE_LIMIT: Final = 1 << 20
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_NO_SYNC: Final = frozenset({errno.EINVAL, errno.ENOTSUP, errno.ENOSYS})


def check_output(
    output: Path, *, ledger: str | None = None, manifest: str | None = None, force: bool = False
) -> None:
    """Refuse an output file that would replace what it must not.

    Args:
        output: the file; a symbolic link stands for what it leads to.
        ledger: this batch's, never replaced; nor is any other ledger.
        manifest: this batch's, never replaced; ``"-"`` and names of no file are no matter.
        force: another file may be replaced, whatever it is.

    Raises:
        ConfigurationError: it is a ledger (or belongs to one), this batch's manifest, or a
            folder; or it exists, ``force`` is not set, and neither is it empty nor does its
            first line show that deslaunch wrote it as results or as a report.
    """
    if why := _why_not(output, ledger, manifest, is_forced=force):
        raise ConfigurationError(
            f"{printable(str(output))}: {why}", hint="name another file with -o"
        )


def _why_not(output: Path, ledger: str | None, manifest: str | None, *, is_forced: bool) -> str:
    # By inode and name only: to open and close a ledger that this process has open would drop
    # the locks that SQLite holds on it.
    beside = [] if ledger is None else [f"{ledger}{suffix}" for suffix in _BESIDE_LEDGER]

    if any(_is_same(output, file) for file in beside):
        return "this file belongs to the batch's ledger, and no output replaces a ledger"

    if manifest is not None and _is_same(output, manifest):
        return "this is the batch's manifest, and no output replaces it"

    if output.is_dir():
        return "this is a folder"

    if not output.is_file():
        return ""

    try:
        with output.open("rb") as stream:
            first = stream.readline(_FIRST_LINE_LIMIT)
    except OSError as exc:
        return f"can't be read: {exc.strerror or exc}"

    if first.startswith(_SQLITE):
        return "this is a SQLite database, and no output replaces a ledger"

    if first and not is_forced and not is_own(first):
        return "this file exists, and neither results nor a report wrote it (--force replaces it)"

    return ""


def _is_same(output: Path, file: str) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return output.resolve() == Path(file).resolve() or output.samefile(file)

    return False


def is_own(first_line: bytes) -> bool:
    """Return True if a file's first line shows that it is results or a report."""
    line = first_line.rstrip(b"\r\n")

    if line.startswith(b"{"):
        return line.startswith(b'{"key":') and b'"possibleDuplicate":' in line

    is_csv = line.startswith(b"key,row,target,jobId,jobName,")
    is_csv_with_manifest = b"deslaunch.key," in line and line.endswith(b",deslaunch.outputFiles")
    return is_csv or is_csv_with_manifest or line.startswith(PAGE_MARK)


@contextlib.asynccontextmanager
async def open_beside(ledger: Reader, output: Path, *, force: bool) -> AsyncIterator[BinaryIO]:
    """Write a batch's output file as :func:`open_output` does, without blocking the event loop."""
    opening = open_output(output, ledger=ledger.place, manifest=ledger.batch.manifest, force=force)
    stream = await to_thread.run_sync(opening.__enter__)

    try:
        yield stream
    except BaseException as exc:
        with CancelScope(shield=True):
            await to_thread.run_sync(opening.__exit__, type(exc), exc, exc.__traceback__)

        raise

    await to_thread.run_sync(opening.__exit__, None, None, None)


@contextlib.contextmanager
def open_output(
    output: Path,
    *,
    ledger: str | None = None,
    manifest: str | None = None,
    force: bool = False,
    sync: Callable[[int], None] = os.fsync,
) -> Iterator[BinaryIO]:
    """Write a file that takes its place as a whole when the block ends.

    An existing file keeps its mode; a new one has what the umask leaves of 0666. A device or a
    pipe is written to as it is. After the block the file is on disk; after a crash, or an error
    in the block, the old file is there unchanged.

    Args:
        output: the file.
        ledger: see :func:`check_output`.
        manifest: likewise.
        force: likewise.
        sync: brings a descriptor's file to disk.

    Raises:
        ConfigurationError: the file must not be replaced (:func:`check_output`), or can't be
            written: no permission, no folder, a full disk.
    """
    check_output(output, ledger=ledger, manifest=manifest, force=force)

    try:
        if output.exists() and not output.is_file():
            with output.open("wb") as stream:
                yield stream
        else:
            with _replacing(output.resolve(), sync) as stream:
                yield stream
    except BrokenPipeError:
        raise
    except OSError as exc:
        raise _unwritable(output, exc) from exc


@contextlib.contextmanager
def _replacing(place: Path, sync: Callable[[int], None]) -> Iterator[BinaryIO]:
    # The whole name and more might be longer than the file system takes.
    new = place.with_name(f".{place.name[:32]}.{secrets.token_hex(4)}.new")
    fd = os.open(new, _NEW_FILE, 0o666)

    try:
        with os.fdopen(fd, "wb", buffering=1 << 20) as stream:
            with contextlib.suppress(FileNotFoundError):
                os.fchmod(fd, stat.S_IMODE(place.stat().st_mode))

            yield stream
            stream.flush()
            _sync(fd, sync)

        new.replace(place)
    except BaseException:
        new.unlink(missing_ok=True)
        raise

    with contextlib.suppress(OSError):
        folder = os.open(place.parent, os.O_RDONLY | os.O_DIRECTORY)

        try:
            sync(folder)
        finally:
            os.close(folder)


def _sync(fd: int, sync: Callable[[int], None]) -> None:
    try:
        sync(fd)
    except OSError as exc:
        if exc.errno not in _NO_SYNC:
            raise


def _unwritable(output: Path, exc: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"{printable(str(output))}: can't be written: {exc.strerror or exc}",
        hint="you need write permission for the file and its folder; or name another file with -o",
    )
