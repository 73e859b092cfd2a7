"""A manifest's bytes: read once, unzipped, told from what is plainly no manifest.

Memory stays flat: one block, one line, one chunk of rows.
"""

import csv
import os
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path, PurePath
from typing import BinaryIO, Final

from deslaunch.errors import ConfigurationError, ManifestError
from deslaunch.manifest.readers import MAX_RECORD, CsvReader, JsonlReader, Unreadable
from deslaunch.manifest.rows import RESERVED, Fault, RowRules, show
from deslaunch.model import (
    DEFAULT_TARGET,
    GUID,
    Format,
    InvalidRow,
    Row,
    place_word,
    printable,
    printed,
)

_DATA: Final = re.compile(  # a number or a time, an escape, a GUID
    r"[-+]?[0-9][0-9.:/-]*(?:[T ][0-9:.]+Z?)?|\\[NAE]"
    rf"|{GUID}"
)
CHUNK: Final = 512
"""Rows that are given out together, at most."""

BLOCK_SIZE: Final = 1 << 16
"""Bytes that are read, or unzipped, at a time, at most."""

_SUFFIXES: Final[Mapping[str, Format]] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}
_SAVE_AS_CSV: Final = 'save it as "CSV UTF-8", with commas between the columns'

_BOM: Final = b"\xef\xbb\xbf"
_GZIP: Final = b"\x1f\x8b"
_FOREIGN: Final[Mapping[str, str]] = {  # how a file begins that is plainly something else
    r"SQLite format 3\0": "a SQLite database; to resume a batch, use deslaunch resume",
    r"PK\x03\x04|\xd0\xcf\x11\xe0": f"an Excel workbook or a zip file; {_SAVE_AS_CSV}",
    r"\xff\xfe|\xfe\xff|.?\0": "probably UTF-16; convert it: iconv -f UTF-16 -t UTF-8 OLD > NEW",
    r"(?s)[^\r\n]*\r[^\n]+\Z": "text whose lines end in \\r alone; save it with \\n line ends",
}
_HEAD: Final = 1 << 16  # bytes of a file's beginning that tell it
_RESULTS: Final = frozenset({"state", "jobRunId", "attempts"})
_RESULTS_ALONE: Final = "results without their rows; write them with results --with-manifest"
_HEADER: Final = "name the columns in the first line: key, target, jobId and the parameters"
_NO_OBJECTS: Final = r"(?![{\[]|.*\n\s*\{)"  # neither the first line nor the second begins one
_NO_JSONL: Final[Mapping[str, str]] = {
    r'\{(?=.*"state":)(?=.*"jobRunId":)(?=.*"attempts":)(?!.*"deslaunch":)': _RESULTS_ALONE,
    r"\[(?!.*\]\s*\n)": "a JSON array; write one element per line: jq -c '.[]' OLD > NEW.jsonl",
    r"\{.*\}\s*,\s*\n": "JSON whose lines end in a comma; remove it: sed 's/,$//' OLD > NEW",
    r"\{(?:.*[{\[,])?\s*\n": "JSON over several lines; write one per line: jq -c . OLD > NEW.jsonl",
    rf"{_NO_OBJECTS}.*[,;\t|]": "probably CSV; pass --format csv, or rename the file to .csv",
    rf"{_NO_OBJECTS}.": "not JSONL; write one object per line, or pass --format csv for CSV",
}


class Manifest:
    """Rows that are read once: of a file, a pipe, standard input or an open stream.

    A reading gives exactly one item for every data row, in order. A problem of the file as a
    whole comes as one more item, with the number of the row that was reached (0 before all
    rows), and is the last. Nothing is raised for what the file holds.

    Args:
        source: a path, ``"-"`` for standard input, or a binary stream, which is not closed.
        format: or None to tell by the name; a stream and ``"-"`` need it.
        delimiter: of CSV: ``,``, ``;``, ``|`` or a tab.
        job_id: GUID for rows that name no job.
        target: for rows that name none.
        is_batch_output_allowed: the rows are corrections of a batch (see ``RowRules``).
        name: how problems name the file; default: as ``source`` does.

    Attributes:
        name: how problems name the file, printable.
        path: of the file, or None.
        format: of the rows.
        warnings: what may be a mistake, so far.
        is_whole: nothing kept the reading from the last row.
        digest: hex SHA-256 of the uncompressed bytes; ``""`` before they were read to their end.

    Raises:
        ConfigurationError: the format is neither chosen nor told by the name, or a default of
            the rows can't be one.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | BinaryIO,
        *,
        format: Format | None = None,  # noqa: A002  # the option's name
        delimiter: str = ",",
        job_id: str | None = None,
        target: str = DEFAULT_TARGET,
        is_batch_output_allowed: bool = False,
        name: str | None = None,
    ) -> None:
        place = os.fspath(source) if isinstance(source, str | os.PathLike) else None
        self.path = None if place in (None, "-") else Path(place)
        self.name = printable(name or place or "<stream>")
        self.format: Format = detect_format(self.name, format)
        self._stream = None if isinstance(source, str | os.PathLike) else source
        self._delimiter = delimiter
        self.is_whole = True
        self.digest = ""
        rules = RowRules(self.name, job_id, target, is_batch_output_allowed)
        self._reader = CsvReader(rules, delimiter) if self.format == "csv" else JsonlReader(rules)
        self.warnings = self._reader.warnings
        self._items = self._read()

    @property
    def rows(self) -> int:
        """Data rows that were read."""
        return self._reader.number

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The names in a CSV's header as they were written; None for JSONL."""
        return self._reader.columns

    def chunks(self) -> Iterator[list[Row | InvalidRow]]:
        """Yield the rows, up to 512 at a time. They are read once, and it blocks.

        Raises:
            ManifestError: the file can't be opened or read.
        """
        while chunk := list(islice(self._items, CHUNK)):
            yield chunk

    def _read(self) -> Iterator[Row | InvalidRow]:
        try:
            with self._open() as stream:
                yield from self._reader.read(_lines(self._content(stream)))
        except Unreadable as exc:
            self.is_whole = False
            yield self._reader.invalid(*exc.args)
        except OSError as exc:
            raise ManifestError(
                f"{self.name} can't be read: {exc.strerror or exc}",
                hint="check the path and your read permission",
            ) from exc

    def _open(self) -> AbstractContextManager[BinaryIO]:
        if self.path is not None:
            return self.path.open("rb")

        if self._stream is None and sys.stdin is None:
            raise OSError("standard input is closed")

        return nullcontext(self._stream or sys.stdin.buffer)

    def _content(self, stream: BinaryIO) -> Iterator[bytes]:
        """Yield the manifest's own bytes: unzipped, without a byte order mark.

        Raises:
            Unreadable: damaged gzip, or a file that is plainly no manifest of its form.
        """
        read = getattr(stream, "read1", stream.read)
        head, blocks = _peek(iter(partial(read, BLOCK_SIZE), b""), len(_GZIP))
        head, blocks = _peek(_unzip(blocks) if head.startswith(_GZIP) else blocks, _HEAD)

        if fault := self._find_fault(head.removeprefix(_BOM)):
            raise Unreadable(fault)

        digest = sha256()

        for number, block in enumerate(blocks):
            digest.update(block)
            yield block if number else block.removeprefix(_BOM)

        self.digest = digest.hexdigest()

    def _find_fault(self, head: bytes) -> Fault | None:
        """Return what is wrong with the file as a whole, by its beginning."""
        text = head.decode("utf-8", "replace").strip()
        found = _tell(_FOREIGN, head.decode("latin-1"))
        found = found or (
            self._look_at_csv(text) if self.format == "csv" else _tell(_NO_JSONL, text)
        )
        form = f"a {self.format.upper()} manifest"
        return Fault("", form, text, f"this is {found}") if found else None

    def _look_at_csv(self, text: str) -> str:
        delimiter = self._delimiter

        try:
            records = filter(any, csv.reader(text.splitlines()[:32], delimiter=delimiter))
            names, *following = islice(records, 3)
        except (csv.Error, ValueError):  # its reader tells
            return ""

        line = text.splitlines()[0]
        other = next((other for other in ",;\t|" if other != delimiter and other in line), "")
        odd = _no_column(names, following)

        if line[0] in "{[":
            return "probably JSON; pass --format jsonl, or rename the file to .jsonl"

        if other and len(names) == 1 and line[0] != "#":
            word = "tab" if other == "\t" else other
            return f"CSV with {other!r} between its columns; pass --delimiter {word!r}"

        if _RESULTS.issubset(names):
            return _RESULTS_ALONE

        return "" if odd is None else f"CSV without a header line (found {show(odd)!r}); {_HEADER}"


def _tell(looks: Mapping[str, str], text: str) -> str:
    """Return what a file is that begins so; the first match applies."""
    return next((what for begin, what in looks.items() if re.match(begin, text)), "")


def detect_format(name: str, chosen: Format | None) -> Format:
    """Return the manifest's format: the chosen one, else what its name says.

    Raises:
        ConfigurationError: none was chosen, and the name ends in none of ``.jsonl``,
            ``.ndjson``, ``.csv``, each also with ``.gz``.
    """
    found = chosen or _SUFFIXES.get(PurePath(name.lower().removesuffix(".gz")).suffix)

    if found is None:
        why, hint = "the name does not show the format", "pass --format jsonl or --format csv"
        hint += f"; if it is a spreadsheet, {_SAVE_AS_CSV}"

        if name.lower().endswith(".db"):
            why = "expected a CSV or JSONL file, got what seems to be a ledger"
            hint = f"resume its batch: {printed('resume', place_word(name))}"

        raise ConfigurationError(f"{name}: {why}", hint=hint)

    return found


def _peek(blocks: Iterator[bytes], size: int) -> tuple[bytes, Iterator[bytes]]:
    """Return the first ``size`` bytes or more, where there are as many, and all blocks again.

    What ends the blocks early is raised behind them, not here.
    """
    head = b""

    try:
        while len(head) < size and (block := next(blocks, None)) is not None:
            head += block
    except Unreadable as exc:
        blocks = _fail(exc)

    return head, chain((head,), blocks)


def _fail(exc: Unreadable) -> Iterator[bytes]:
    yield b""
    raise exc


def _unzip(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the content of gzip members, one after the other, a block's size at most at once."""
    member = None
    why = ""

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
        member, why = None, str(exc)

    if member or why:
        why = why or "it is cut off"
        message = (
            f"the gzip file is damaged here ({why}) and can't be read further; create it again"
        )
        raise Unreadable(Fault("", "gzip", why, message))


def _lines(content: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Yield physical lines with their newline, those of a block at a time.

    The end of a line over ``MAX_RECORD`` is dropped; such a line is still longer than that.
    """
    rest = b""

    for block in content:
        *lines, rest = (rest + block).split(b"\n")
        yield [line + b"\n" for line in lines]
        rest = rest[: MAX_RECORD + 1]

    if rest:
        yield [rest]


def _no_column(names: list[str], following: list[list[str]]) -> str | None:
    """Return what in a first line names no column, or None."""
    if set(RESERVED) & set(names):
        return None

    beyond = [cells[len(names) :] for cells in following]
    is_title = len(beyond) > 1 and len({*map(len, beyond)}) == 1 and any(map(any, beyond))
    is_title |= not any(names[1:]) and any(any(cells[1:]) for cells in following)  # padded
    title = names[0] if is_title or names[0].startswith("#") else None
    return next((name for name in names if _DATA.fullmatch(name)), title)
