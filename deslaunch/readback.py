"""Reads single records of a ledger back, when what they say is asked for.

The records of one row, and of rows that follow each other in a manifest, lie close together in
their ledger: so a few blocks of the file, and the last records, are kept.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Final

from deslaunch import records
from deslaunch.errors import LedgerDamaged, LedgerError

if TYPE_CHECKING:
    from pathlib import Path

    from deslaunch.records import Record

_BLOCK: Final = 1 << 15
_BLOCKS: Final = 16
_WRITTEN: Final = 1 << 10
_READ: Final = 8


class Readback:
    """A ledger's records by their offsets, through a descriptor of its own.

    The descriptor is closed with the last reference to the object.

    Args:
        path: the ledger, for what errors say.
        fd: an open descriptor of it, that is copied.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self._path = path
        self._fd = os.dup(fd)
        self._blocks: dict[int, bytes] = {}
        self._read: dict[int, Record] = {}
        self._written: dict[int, Record] = {}
        self._older: dict[int, Record] = {}
        weakref.finalize(self, os.close, self._fd)

    def __repr__(self) -> str:
        return f"<Readback of {str(self._path)!r}>"

    def __call__(self, offset: int) -> Record:
        """Return the record that begins at an offset; don't change it.

        Raises:
            LedgerDamaged: there is no readable record any more.
            LedgerError: the file can't be read.
        """
        found = self._read.get(offset) or self._written.get(offset) or self._older.get(offset)

        if found is None:
            if len(self._read) >= _READ:
                self._read.clear()

            found = self._read[offset] = self._record(offset)

        return found

    def keep(self, offset: int, record: Record) -> None:
        """Hold a record that was just written, for a while."""
        self._written[offset] = record

        if len(self._written) >= _WRITTEN:
            self._written, self._older = {}, self._written

    def _record(self, offset: int) -> Record:
        try:
            return records.decode(self._line(offset))
        except records.BadRecord:
            self._blocks.clear()  # the file may have grown, or its torn tail may be gone

        try:
            return records.decode(self._line(offset))
        except records.BadRecord as exc:
            raise LedgerDamaged(
                f"{self._path}: the ledger is damaged at byte {offset}, where a record was read "
                f"before: {exc}",
                offset=offset,
                hint="restore the file from a copy",
            ) from exc

    def _line(self, offset: int) -> bytes:
        """Return a line with its newline, also where the file ends without one."""
        number, at = divmod(offset, _BLOCK)
        block = self._block(number)
        end = block.find(b"\n", at) + 1

        if end:
            return block[at:end]

        parts = [block[at:]]

        while not end and len(block) == _BLOCK:
            number += 1
            block = self._block(number)
            end = block.find(b"\n") + 1
            parts.append(block[: end or None])

        return b"".join(parts) if end else b"".join([*parts, b"\n"])

    def _block(self, number: int) -> bytes:
        block = self._blocks.get(number)

        if block is None:
            if len(self._blocks) >= _BLOCKS:
                del self._blocks[next(iter(self._blocks))]

            block = self._blocks[number] = self._pread(number * _BLOCK)

        return block

    def _pread(self, offset: int) -> bytes:
        try:
            return os.pread(self._fd, _BLOCK, offset)
        except OSError as exc:
            raise LedgerError(
                f"{self._path}: can't be read: {exc.strerror or exc}",
                hint="check the file and its disk",
            ) from exc
