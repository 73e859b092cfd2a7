"""Lines of text to rows: JSON Lines, and CSV with its columns and escapes.

Pure. A reader numbers the rows, remembers the line where each begins, and gives an item for
every one; where it can't go on it says so in one more item, and tells that it ended early.
"""

from __future__ import annotations

import csv
import json
import re
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

import orjson

from deslaunch.model import AUTO, Row
from deslaunch.rows import (
    TEXT,
    UNCLEAN,
    Fault,
    Number,
    Unfit,
    identity,
    no_job,
    plain_row,
    problems,
    row_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from deslaunch.model import ParameterValue, RowProblem
    from deslaunch.rows import Item, RowDefaults

MAX_LINE: Final = 1 << 20
"""Bytes of a JSONL line, or of a CSV record with all its lines, newlines included."""

MAX_HEADER_FAULTS: Final = 1_000
"""Problems of a CSV's header that are told; a line of commas alone would have a million."""

_LONG: Final = 19  # characters; an integer below has less than 64 bits
_BACKSLASH: Final = ord("\\")
_QUOTE: Final = ord('"')
_PREFIX: Final = "parameters."
_IGNORED: Final = "deslaunch."
_RESERVED: Final = ("key", "target", "jobId")
_ESCAPES: Final[Mapping[str, ParameterValue]] = {"\\N": None, "\\A": AUTO, "\\E": ""}

_SEPARATORS: Final = re.compile("[;\t|]")
_CELL: Final = r'(?:"[^"]*(?:""[^"]*)*"|[^",]*)'
_RECORD: Final = re.compile(rf"{_CELL}(?:,{_CELL})*\r?\n?")

_OLD_MAC: Final = Fault(
    "", "lines that end in \\n or \\r\\n", "\\r", "lines end in a bare \\r; save the file with \\n"
)
_LOOSE_QUOTE: Final = Fault(
    "",
    "RFC 4180 quoting",
    '"',
    "a quote stands inside a cell that is not quoted; quote the whole cell and double it",
)
_NO_HEADER: Final = Fault(
    "", "a header line", "", "the CSV has no header line; write the names of its columns first"
)


class Unreadable(Exception):
    """The file can't be read any further.

    Attributes:
        faults: why not.
    """

    def __init__(self, *faults: Fault) -> None:
        super().__init__(*faults)
        self.faults = faults


class RowReader:
    """Reads the rows of one pass.

    Args:
        file: what problems name as their file.
        defaults: for what a row leaves out.

    Attributes:
        number: data rows so far.
        line: physical line where the present row begins.
        whole: nothing kept the reading from the last line.
    """

    def __init__(self, file: str, defaults: RowDefaults) -> None:
        self._file = file
        self._defaults = defaults
        self.number = 0
        self.line = 0
        self.whole = True

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._file}: row {self.number}, line {self.line}>"

    def items(self, lines: Iterator[bytes]) -> Iterator[Item]:
        """Yield an item for every row, and one for what ended the reading early.

        Args:
            lines: physical lines with their newlines. One over ``MAX_LINE`` may have been cut,
                but not to less than a byte more. May raise ``Unreadable``.
        """
        try:
            yield from self._rows(lines)
        except Unreadable as exc:
            self.whole = False
            yield self._problems(exc.faults)

    def _rows(self, lines: Iterator[bytes]) -> Iterator[Item]:
        raise NotImplementedError

    def _problems(self, faults: Iterable[Fault]) -> tuple[RowProblem, ...]:
        return problems(faults, file=self._file, line=max(self.line, 1), number=self.number)


class JsonlReader(RowReader):
    """One JSON object a line."""

    def __init__(self, file: str, defaults: RowDefaults) -> None:
        super().__init__(file, defaults)
        self._json = _ExactJson()

    def _rows(self, lines: Iterator[bytes]) -> Iterator[Item]:
        for line in lines:
            self.line += 1
            row = self._fast(line)

            if row is None and line.isspace():
                continue

            self.number += 1
            yield row or self._exact(line)

    def _fast(self, line: bytes) -> Row | None:
        """Return the line's row where orjson provably loses nothing of it, else None.

        orjson rounds long integers and decimals to floats, and keeps the last of duplicate keys.
        A row holds no float anywhere. Without a backslash in the line, every string stands
        between two quotes, so that as many quotes out as in means that no key was dropped; and
        no string holds a NUL or a lone surrogate, since those can only be written as escapes.
        """
        if line.find(_BACKSLASH) >= 0 or len(line) > MAX_LINE:
            return None

        try:
            value = orjson.loads(line)
            complete = orjson.dumps(value).count(_QUOTE) == line.count(_QUOTE)
        except (orjson.JSONDecodeError, orjson.JSONEncodeError):  # the latter: nested too deep
            return None

        if not complete or type(value) is not dict:
            return None

        return plain_row(value, self.number + 1, self.line, self._defaults)

    def _exact(self, line: bytes) -> Item:
        """Return the row of a line, or all that is wrong with it."""
        if len(line) > MAX_LINE:
            return self._problems([_too_long("line")])

        try:
            value, faults = self._json.decode(line.decode().rstrip())
        except UnicodeDecodeError as exc:
            return self._problems([_undecodable(line, exc, self.line)])
        except Unfit as exc:
            return self._problems([Fault("", exc.expected, _text(line), exc.message)])

        row = row_of(value, self.number, self.line, self._defaults, faults)
        return row or self._problems(faults)


def _integer(text: str) -> int | Number:
    return int(text) if len(text) < _LONG else Number(text)


class _ExactJson:
    """Decodes JSON without losing a digit or a duplicate key."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._object,
            parse_float=Number,
            parse_int=_integer,
            parse_constant=float,  # NaN and Infinity, refused where every float is
        )

    def decode(self, text: str) -> tuple[object, list[Fault]]:
        """Return the value, and a fault for each name that an object gives twice.

        Raises:
            Unfit: no JSON, or nested too deep.
        """
        self._faults = []

        try:
            return self._decoder.decode(text), self._faults
        except json.JSONDecodeError as exc:
            message = f"this is no JSON: {exc.msg} (character {exc.pos + 1}); mend the line"
            raise Unfit("one JSON object", message) from exc
        except RecursionError as exc:
            raise Unfit("one JSON object", "this is nested too deep; mend the line") from exc

    def _object(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        members: dict[str, object] = {}

        for name, value in pairs:
            if name in members:
                message = "the name is given twice in one object; leave one of them out"
                self._faults.append(Fault(name, "each name once", value, message))

            members[name] = value

        return members


class _Columns(NamedTuple):
    """What the cells of a CSV row mean.

    Attributes:
        width: cells of a row.
        reserved: index and name of ``key``, ``target`` and ``jobId``, where they are columns.
        parameters: index and name of each parameter.
        no_job: the fault of a row that names no job.
    """

    width: int
    reserved: tuple[tuple[int, str], ...]
    parameters: tuple[tuple[int, str], ...]
    no_job: Fault


class CsvReader(RowReader):
    """A header line, then RFC 4180 records."""

    def __init__(self, file: str, defaults: RowDefaults) -> None:
        super().__init__(file, defaults)
        self._columns: _Columns | None = None
        self._size = 0
        self._damage: Fault | None = None
        self._quoted: list[str] = []
        self._escapes = False
        self._ended = False

    def _rows(self, lines: Iterator[bytes]) -> Iterator[Item]:
        records = self._records(lines)
        columns = self._columns = self._header(records)

        for cells in records:
            if len(cells) == 1 < columns.width and not cells[0].strip():
                continue  # a line of blanks

            self.number += 1
            yield self._item(cells, columns)

    def _records(self, lines: Iterator[bytes]) -> Iterator[list[str]]:
        """Yield the records that are not blank, with ``line``, ``_damage`` and ``_escapes`` set.

        Raises:
            Unreadable: where the record ends can't be told.
        """
        self.line = 1
        reader = csv.reader(self._texts(lines), strict=True)

        try:
            for cells in reader:
                if self._quoted:
                    self._check_quotes()

                if cells:
                    yield cells

                self.line = reader.line_num + 1
                self._size = 0
                self._damage = None
                self._escapes = False
        except csv.Error as exc:
            raise self._broken(_bad_csv(str(exc), ended=self._ended)) from exc

    def _texts(self, lines: Iterator[bytes]) -> Iterator[str]:
        """Yield lines as text; what is wrong with one of them is its record's damage."""
        for number, line in enumerate(lines, 1):
            self._size += len(line)

            if self._size > MAX_LINE:
                raise self._broken(_OLD_MAC if b"\r" in line[:-2] else _too_long("record"))

            try:
                text = line.decode()
            except UnicodeDecodeError as exc:
                text = _text(line)
                self._damage = self._damage or _undecodable(line, exc, number)

            if "\0" in text:
                self._damage = self._damage or Fault("", TEXT, text, UNCLEAN)

            if "\\" in text:
                self._escapes = True

            if self._quoted or '"' in text:
                self._quoted.append(text)

            yield text

        self._ended = True

    def _check_quotes(self) -> None:
        """Damage a record with a quote in a bare cell, which csv would take as it stands."""
        if not _RECORD.fullmatch("".join(self._quoted)):
            self._damage = self._damage or _LOOSE_QUOTE

        self._quoted.clear()

    def _broken(self, fault: Fault) -> Unreadable:
        self.number += self._columns is not None  # the broken record is a row, or the header
        return Unreadable(fault)

    def _header(self, records: Iterator[list[str]]) -> _Columns:
        names = next(records, None)

        if names is None:
            raise Unreadable(_NO_HEADER)

        found = [self._damage] if self._damage else _header_faults(names)
        faults = list(islice(found, MAX_HEADER_FAULTS))

        if faults:
            raise Unreadable(*faults)

        return _columns(names)

    def _item(self, cells: list[str], columns: _Columns) -> Item:
        if self._damage:
            return self._problems([self._damage])

        if len(cells) != columns.width:
            return self._problems([_ragged(len(cells), columns.width)])

        said = _filled(cells, columns.reserved)
        texts = _filled(cells, columns.parameters)
        faults = _reserved_faults(said) if self._escapes else []
        key, target, job_id = identity(said, self._defaults, faults, columns.no_job)
        parameters = _unescaped_all(texts, faults) if self._escapes else texts

        if faults:
            return self._problems(faults)

        return Row(self.number, self.line, key, target, job_id, parameters)


def _filled(cells: list[str], columns: Iterable[tuple[int, str]]) -> dict[str, str]:
    """Return the cells that are not empty, by the names of their columns."""
    said = {}

    for index, name in columns:  # a comprehension takes almost twice as long before Python 3.12
        if cell := cells[index]:
            said[name] = cell

    return said


def _reserved_faults(said: Mapping[str, str]) -> list[Fault]:
    """Return a fault for each reserved cell that tries to be an escape."""
    return [
        Fault(
            name,
            "no leading backslash",
            cell,
            f"{name} takes no escape; write it plainly, or leave the cell empty",
        )
        for name, cell in said.items()
        if cell[0] == "\\" and name != "jobId"  # which no GUID begins with anyway
    ]


def _unescaped_all(said: Mapping[str, str], faults: list[Fault]) -> dict[str, ParameterValue]:
    """Return what cells stand for; note those that stand for nothing."""
    parameters: dict[str, ParameterValue] = {}

    for name, cell in said.items():
        try:
            parameters[name] = _unescaped(cell) if cell[0] == "\\" else cell
        except Unfit as exc:
            faults.append(Fault(name, exc.expected, cell, exc.message))

    return parameters


def _unescaped(cell: str) -> ParameterValue:
    """Return what a cell with a leading backslash stands for.

    Raises:
        Unfit: no such escape.
    """
    if cell in _ESCAPES:
        return _ESCAPES[cell]

    if cell.startswith("\\\\"):
        return cell[1:]

    raise Unfit(
        "\\N, \\A, \\E or \\\\",
        "a leading backslash begins \\N (null), \\A (auto value), \\E (empty string) or \\\\ "
        "(a backslash); double it where it is meant as such",
    )


def _header_faults(names: list[str]) -> Iterator[Fault]:
    """Yield what is wrong with a CSV's column names."""
    if len(names) == 1 and (found := _SEPARATORS.search(names[0])):
        message = f"the columns look separated by {found[0]!r}; separate them by commas"
        yield Fault("", "commas", names[0], message)

    seen = set()

    for index, name in enumerate(names, 1):
        kind = _column(name)

        if kind is None:
            continue

        if not kind.name:
            message = f"column {index} has no name; name it, or leave it out in every line"
            yield Fault("", "a column name", name, message)
        elif kind in seen:
            message = "the column is there twice; leave one of them out"
            yield Fault(name, "each column once", name, message)

        seen.add(kind)


class _Column(NamedTuple):
    """A column's meaning: a reserved name, or a parameter's."""

    name: str
    is_parameter: bool


def _column(name: str) -> _Column | None:
    """Return the meaning of a column's name, None where the column is to be ignored."""
    if name.startswith(_IGNORED):
        return None

    if name in _RESERVED:
        return _Column(name, is_parameter=False)

    return _Column(name.removeprefix(_PREFIX), is_parameter=True)


def _columns(names: list[str]) -> _Columns:
    kinds = [(index, kind) for index, name in enumerate(names) if (kind := _column(name))]
    parameters = tuple((index, kind.name) for index, kind in kinds if kind.is_parameter)
    return _Columns(
        width=len(names),
        reserved=tuple((index, kind.name) for index, kind in kinds if not kind.is_parameter),
        parameters=parameters,
        no_job=no_job(_near_job_id(name for _, name in parameters)),
    )


def _near_job_id(names: Iterable[str]) -> str | None:
    """Return the first name that is jobId but for case and separators."""
    return next((name for name in names if re.sub(r"[-_ ]", "", name).lower() == "jobid"), None)


def _too_long(what: str) -> Fault:
    message = f"the {what} is longer than {MAX_LINE:,} bytes; is a line break or a quote missing?"
    return Fault("", f"at most {MAX_LINE:,} bytes", f"over {MAX_LINE:,} bytes", message)


def _undecodable(line: bytes, exc: UnicodeDecodeError, number: int) -> Fault:
    message = f"byte {exc.start + 1} of line {number} is not UTF-8; save the file as UTF-8"
    return Fault("", "UTF-8", _text(line), message)


def _ragged(cells: int, width: int) -> Fault:
    message = (
        f"the row has {cells:,} cells and the header {width:,}; quote a cell that holds a comma, "
        "and leave no cell out"
    )
    return Fault("", f"{width:,} cells", f"{cells:,} cells", message)


def _bad_csv(why: str, *, ended: bool) -> Fault:
    """Return the fault of a record whose end can't be told."""
    if ended:
        message = "a quote opened in this row is never closed; close it"
        return Fault("", "a closing quote", "the end of the file", message)

    if why.startswith("new-line"):
        return _OLD_MAC

    message = f"the CSV can't be read from this row on ({why}); mend its quotes"
    return Fault("", "RFC 4180 quoting", why, message)


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace").rstrip("\r\n")
