"""The rows of a manifest that came from stdin, kept beside their ledger.

A manifest is read twice, and a resume reads it again; a stream can be read once.
"""

from __future__ import annotations

import hashlib
import shlex
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from deslaunch import durable
from deslaunch.errors import LedgerError, LedgerExists, LedgerLocked
from deslaunch.ledger import foreign, peek

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from deslaunch.ledger import Snapshot


@contextmanager
def kept_rows(stream: BinaryIO, ledger: Path, *, resume: bool = False) -> Iterator[Path]:
    """Keep the rows of a stream beside their ledger, so that a resume can read them again.

    In the block they are on disk, in ``<ledger>.manifest``, mode 0600, and no other launcher
    can put others in their place.

    Args:
        stream: the rows.
        ledger: the batch's ledger.
        resume: where a batch was begun in the ledger, the rows must be the ones that it keeps.

    Raises:
        LedgerExists: a batch was begun in the ledger, and ``resume`` is not set.
        LedgerForeign: ``resume``, and the rows are not the ledger's.
        LedgerLocked: another launcher is about to begin this batch.
        LedgerError: the rows can't be written.
    """
    path = kept_manifest(ledger)
    found = peek(ledger)

    if found is not None:
        yield _kept_already(stream, path, found, resume=resume)
        return

    with _kept_anew(stream, path):
        yield path


@contextmanager
def _kept_anew(stream: BinaryIO, path: Path) -> Iterator[None]:
    """Write the rows into a file that stays locked for the time of the block."""
    try:
        kept = durable.AppendFile(path, create=not path.exists())
    except (BlockingIOError, FileExistsError) as exc:
        raise LedgerLocked(
            f"{path}: another launcher is about to begin this batch", hint="name another --ledger"
        ) from exc
    except OSError as exc:
        raise _unkept(path, exc) from exc

    with kept:
        try:
            kept.cut(0)

            while block := stream.read(1 << 20):
                kept.append(block)
        except OSError as exc:
            raise _unkept(path, exc) from exc

        yield


def _unkept(path: Path, exc: OSError) -> LedgerError:
    return LedgerError(
        f"{path}: can't be written: {exc.strerror or exc}",
        hint="the rows from stdin are kept beside the ledger: name one in another folder",
    )


def _kept_already(stream: BinaryIO, path: Path, found: Snapshot, *, resume: bool) -> Path:
    if not resume:
        raise LedgerExists(
            f"{found.path}: the ledger exists",
            hint=f"go on with: deslaunch resume {shlex.quote(str(found.path))}; or name another "
            "--ledger",
        )

    digest = hashlib.sha256()

    while block := stream.read(1 << 16):
        digest.update(block)

    said = found.replay.manifest

    if said is None or said["sha256"] != digest.hexdigest():
        raise foreign(found.path, Path("-"))

    return path


def kept_manifest(ledger: Path) -> Path:
    """Return where the rows of a manifest that came from stdin are kept."""
    return ledger.with_name(f"{ledger.name}.manifest")
