"""A manifest on disk, read lazily: each data row gives a ``Row``, or its ``RowProblem``s.

A manifest is read twice, once to validate all of it and once to send it. The first pass keeps a
digest of every block of the file; the second compares each block before any row of it is given
out. So what is sent is, byte for byte, what was validated, however long the sending takes.

Memory stays flat: one block, one line, one row.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b, file_digest, sha256
from io import BytesIO
from itertools import chain
from typing import TYPE_CHECKING, Final

from deslaunch.errors import ConfigurationError, ManifestChanged, ManifestError
from deslaunch.readers import MAX_LINE, CsvReader, JsonlReader, Unreadable
from deslaunch.rows import Fault, RowDefaults

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path
    from typing import BinaryIO

    from deslaunch.model import Format
    from deslaunch.readers import RowReader
    from deslaunch.rows import Item

BLOCK_SIZE: Final = 1 << 18
"""Bytes of the file that are read, and compared, at a time."""

_DIGEST_SIZE: Final = 16
_SUFFIXES: Final[Mapping[str, Format]] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}

_BOM: Final = b"\xef\xbb\xbf"
_GZIP: Final = b"\x1f\x8b"
_UTF16: Final = (b"\xff\xfe", b"\xfe\xff")
_OFFICE: Final = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
_OFFICE_SUFFIXES: Final = (".xlsx", ".xlsm", ".xls", ".ods")
_LEDGER: Final = b'{"record":"batch","ledger":'
_SAVE_AS_CSV: Final = 'save it as "CSV UTF-8", with commas between the columns'


@dataclass(frozen=True, slots=True)
class ManifestOptions(RowDefaults):
    """How a manifest is to be read: its format, and the defaults of its rows.

    Attributes:
        format: ``"jsonl"``, ``"csv"``, or None to tell by the file's name.
    """

    format: Format | None = None


def detect_format(path: Path, chosen: Format | None) -> Format:
    """Return the manifest's format: the chosen one, else what its name says.

    Raises:
        ConfigurationError: none was chosen, and the name ends in none of ``.jsonl``,
            ``.ndjson``, ``.csv``, each also with ``.gz``.
    """
    name = path.name.lower().removesuffix(".gz")
    told = next((_SUFFIXES[suffix] for suffix in _SUFFIXES if name.endswith(suffix)), None)
    found = chosen or told

    if found is None and name.endswith(_OFFICE_SUFFIXES):
        raise ConfigurationError(
            f"{path}: a manifest is a CSV or JSONL file, and this is a spreadsheet by its name",
            hint=_SAVE_AS_CSV,
        )

    if found is None:
        raise ConfigurationError(
            f"{path}: the name does not tell the format",
            hint="pass --format jsonl or --format csv",
        )

    return found


Stamp = tuple[int, int, int, int]
"""Device, inode, size in bytes and time of the last change in nanoseconds, of a file."""


def sha256_of(path: Path) -> str | None:
    """Return the hex SHA-256 of a file as it lies on disk; None where it can't be read."""
    try:
        with path.open("rb") as stream:
            return file_digest(stream, "sha256").hexdigest()
    except OSError:
        return None


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What the first pass saw.

    Attributes:
        sha256: hex SHA-256 of the file as it lies on disk.
        rows: data rows, those that did not validate among them.
        whole: the rows are all there are; False where a problem of the file as a whole (a bad
            header, an open quote, damaged gzip) ended the reading early.
        blocks: digest of each block of the file, in order.
        stamp: what tells cheaply that the file was not touched since.
    """

    sha256: str
    rows: int
    whole: bool
    blocks: tuple[bytes, ...]
    stamp: Stamp


class Manifest:
    """One file of rows.

    A pass gives exactly one item for every data row, in order. A problem of the file as a whole
    comes as one more item, with the number of the row that was reached (0 before all rows), and
    is the last. Neither pass raises for what the file holds.

    Args:
        path: the file.
        options: its format and its defaults.
        name: how problems name the file; default: the path as given.
        block_size: bytes that are read at a time, at least 1.

    Raises:
        ConfigurationError: the format is neither chosen nor told by the name.
    """

    def __init__(
        self,
        path: Path,
        options: ManifestOptions,
        *,
        name: str | None = None,
        block_size: int = BLOCK_SIZE,
    ) -> None:
        self.path = path
        self._name = str(path) if name is None else name
        self.format = detect_format(path, options.format)
        self._options = options
        self._block_size = block_size
        self._fingerprint: Fingerprint | None = None

    def __repr__(self) -> str:
        return f"<Manifest {self.path} {self.format}>"

    @property
    def name(self) -> str:
        """How problems name the file."""
        return self._name

    @property
    def fingerprint(self) -> Fingerprint:
        """What the first pass saw.

        Raises:
            RuntimeError: no first pass came to its end.
        """
        if self._fingerprint is None:
            raise RuntimeError("the first pass has not come to its end")

        return self._fingerprint

    def first_pass(self) -> Iterator[Item]:
        """Yield every row, and take the file's fingerprint.

        Raises:
            ManifestError: the file can't be opened or read, or is no regular file.
        """
        recorder = _Recorder()
        rows = self._reader()
        self._fingerprint = None
        stamp = self._stamp()
        yield from self._items(rows, recorder)
        self._fingerprint = Fingerprint(
            sha256=recorder.sha256.hexdigest(),
            rows=rows.number,
            whole=rows.whole,
            blocks=tuple(recorder.blocks),
            stamp=stamp,
        )

    def second_pass(self, fingerprint: Fingerprint) -> Iterator[Item]:
        """Yield the rows that the first pass yielded, and no other.

        Args:
            fingerprint: of a first pass with the same block size.

        Raises:
            ManifestChanged: the file is not what the first pass read, or another file lies in
                its place. No row of a block that changed was yielded.
            ManifestError: the file can't be opened or read.
        """
        yield from self._items(self._reader(), _Verifier(self, fingerprint))

    def check_in_place(self, fingerprint: Fingerprint, stamp: Stamp) -> Stamp:
        """Hold the file that lies at the path now against what the first pass read.

        Args:
            fingerprint: of the first pass.
            stamp: of the file when it was last known to be the same.

        Returns:
            The file's stamp now; one that was only touched is the same.

        Raises:
            ManifestChanged: it is another file, or changed.
            ManifestError: it can't be read.
        """
        now = self._stamp()

        if now != stamp:
            for _ in self._blocks(_BlockVerifier(self._name, fingerprint.blocks)):
                pass

        return now

    def _stamp(self) -> Stamp:
        try:
            found = self.path.stat()
        except OSError as exc:
            raise self._unreadable(exc) from exc

        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    def _reader(self) -> RowReader:
        reader = CsvReader if self.format == "csv" else JsonlReader
        return reader(self._name, self._options)

    def _items(self, rows: RowReader, witness: _Witness) -> Iterator[Item]:
        blocks = self._blocks(witness)
        yield from rows.items(_lines(_content(blocks)))

        for _ in blocks:  # wherever the rows ended, the witness sees the whole file
            pass

    def _blocks(self, witness: _Witness) -> Iterator[bytes]:
        """Yield the file's blocks, each after the witness saw it."""
        try:
            with self._opened() as file:
                for block in iter(partial(file.read, self._block_size), b""):
                    witness.saw(block)
                    yield block
        except OSError as exc:
            raise self._unreadable(exc) from exc

        witness.saw_end()

    def _unreadable(self, exc: OSError) -> ManifestError:
        return ManifestError(
            f"{self.path} can't be read: {exc.strerror or exc}",
            hint="check the path; a resume takes --manifest PATH where it was moved",
        )

    def _opened(self) -> BinaryIO:
        if self.path.exists() and not (self.path.is_file() or self.path.is_dir()):
            raise ManifestError(
                f"{self.path} is no regular file, and a manifest is read twice",
                hint="write the rows to a file, or pass - to read them from stdin",
            )

        return self.path.open("rb")


class _Recorder:
    """Takes the digests of a first pass."""

    def __init__(self) -> None:
        self.sha256 = sha256()
        self.blocks: list[bytes] = []

    def saw(self, block: bytes) -> None:
        self.sha256.update(block)
        self.blocks.append(_block_digest(block))

    def saw_end(self) -> None:
        pass


class _BlockVerifier:
    """Holds the blocks of a file against the digests of a first pass."""

    def __init__(self, name: str, blocks: tuple[bytes, ...]) -> None:
        self._name = name
        self._blocks = blocks
        self._seen = 0

    def saw(self, block: bytes) -> None:
        if self._seen == len(self._blocks) or self._blocks[self._seen] != _block_digest(block):
            raise self._changed()

        self._seen += 1

    def saw_end(self) -> None:
        if self._seen < len(self._blocks):
            raise self._changed()

    def _changed(self) -> ManifestChanged:
        return ManifestChanged(
            f"{self._name} changed after it was validated",
            hint="rows that were read so far are unchanged; validate the new file and resume",
        )


class _Verifier(_BlockVerifier):
    """Holds a second pass against the first, and the file at the path as well."""

    def __init__(self, manifest: Manifest, fingerprint: Fingerprint) -> None:
        super().__init__(manifest.name, fingerprint.blocks)
        self._manifest = manifest
        self._fingerprint = fingerprint
        self._stamp = fingerprint.stamp

    def saw(self, block: bytes) -> None:
        super().saw(block)
        self._check_in_place()

    def saw_end(self) -> None:
        super().saw_end()
        self._check_in_place()

    def _check_in_place(self) -> None:
        self._stamp = self._manifest.check_in_place(self._fingerprint, self._stamp)


_Witness = _Recorder | _BlockVerifier


def _block_digest(block: bytes) -> bytes:
    return blake2b(block, digest_size=_DIGEST_SIZE).digest()


def _content(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the manifest's own bytes: unzipped, without a byte order mark.

    Raises:
        Unreadable: damaged gzip, or a file that is plainly something else.
    """
    head, content = _peeked(blocks, len(_GZIP))

    if head.startswith(_GZIP):
        content = _unzipped(content)

    head, content = _peeked(content, len(_LEDGER))
    _refuse_foreign(head)
    first = next(content, b"")
    yield first.removeprefix(_BOM)
    yield from content


def _peeked(blocks: Iterator[bytes], size: int) -> tuple[bytes, Iterator[bytes]]:
    """Return the first block, grown to ``size`` bytes where there are as many, and them all."""
    head = b""

    for block in blocks:
        head += block

        if len(head) >= size:
            break

    return head, chain((head,), blocks)


def _unzipped(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the content of gzip members, one after the other, a block's size at most at once."""
    member = None

    try:
        for block in blocks:
            rest = block

            while rest := rest if member else rest.lstrip(b"\0"):  # members may be padded
                member = member or zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
                yield member.decompress(rest, BLOCK_SIZE)
                rest, member = (
                    (member.unused_data, None) if member.eof else (member.unconsumed_tail, member)
                )
    except zlib.error as exc:
        raise _bad_gzip(str(exc)) from exc

    if member:
        raise _bad_gzip("it ends too early")


def _bad_gzip(why: str) -> Unreadable:
    message = f"the gzip file is damaged ({why}); make it anew, no row behind here was read"
    return Unreadable(Fault("", "gzip", why, message))


def _refuse_foreign(head: bytes) -> None:
    if head.startswith(_OFFICE):
        message = f"this looks like an Excel workbook or a zip file; {_SAVE_AS_CSV}"
        raise Unreadable(Fault("", "UTF-8 text", head[:4], message))

    if head.startswith(_UTF16) or b"\0" in head[:2]:
        message = (
            "this looks like UTF-16, and a manifest is UTF-8: save it anew, or convert it "
            "with: iconv -f UTF-16 -t UTF-8 OLD > NEW"
        )
        raise Unreadable(Fault("", "UTF-8 text", head[:4], message))

    if head.startswith(_LEDGER):
        message = (
            "this is a batch's ledger, not its manifest: 'deslaunch resume' goes on with the "
            "batch, 'deslaunch status' says how it stands"
        )
        raise Unreadable(Fault("", "a manifest", head, message))


def _lines(content: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Yield physical lines with their newline, those of a block at a time.

    The end of a line over ``MAX_LINE`` is dropped; such a line is still longer than that.
    """
    rest = b""

    for block in content:
        lines = BytesIO(rest + block).readlines()
        rest = lines.pop() if lines and not lines[-1].endswith(b"\n") else b""

        if lines:
            yield lines

        rest = rest[: MAX_LINE + 1]

    if rest:
        yield [rest]
