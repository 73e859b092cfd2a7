"""Lines of text to rows: JSON Lines, and CSV with its columns and escapes.

Pure. A reader numbers the rows, remembers the line where each begins, and gives an item for
every one; where it can't go on it says so in one more item, and tells that it ended early.

Lines are read some hundred at a time. Where all of them are plain, they are decoded together, in
a third of the time; where one is not, they are read again with care, one by one.
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
    plain_identity,
    plain_row,
    problems,
    row_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from deslaunch.model import ParameterValue, RowProblem
    from deslaunch.rows import Item, RowDefaults

MAX_LINE: Final = 1 << 20
"""Bytes of a JSONL line, or of a CSV record with all its lines, newlines included."""

MAX_HEADER_FAULTS: Final = 1_000
"""Problems of a CSV's header that are told; a line of commas alone would have a million."""

_SLICE: Final = 256
"""Lines that are decoded together."""

_FIELD: Final = 1 << 17
"""Bytes from which on a CSV line is left to the csv module, which refuses so long a field."""

_LONG: Final = 19  # characters; an integer below has less than 64 bits

PREFIX: Final = "parameters."
"""Begins the column of a parameter whose own name would be read as another column's."""

IGNORED: Final = "deslaunch."
"""Begins the name of a column that is no part of the row."""

RESERVED: Final = ("key", "target", "jobId")
"""The columns that are no parameters."""

_STATE: Final = f"{IGNORED}state"
_SENT: Final = frozenset({"started", "unknown", "inFlight"})
_ESCAPES: Final[Mapping[str, ParameterValue]] = {"\\N": None, "\\A": AUTO, "\\E": ""}

_SEPARATORS: Final = re.compile("[;\t|]")
_CSV_CARE: Final = re.compile(rb'["\\\0\r]')
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

    def items(self, blocks: Iterable[list[bytes]]) -> Iterator[Item]:
        """Yield an item for every row, and one for what ended the reading early.

        Args:
            blocks: physical lines with their newlines, some at a time. One over ``MAX_LINE``
                may have been cut, but not to less than a byte more. May raise ``Unreadable``.
        """
        try:
            yield from self._rows(_slices(blocks))
        except Unreadable as exc:
            self.whole = False
            yield self._problems(exc.faults)

    def _rows(self, slices: Iterator[list[bytes]]) -> Iterator[Item]:
        raise NotImplementedError

    def _problems(self, faults: Iterable[Fault]) -> tuple[RowProblem, ...]:
        return problems(faults, file=self._file, line=max(self.line, 1), number=self.number)


class JsonlReader(RowReader):
    """One JSON object a line."""

    def __init__(self, file: str, defaults: RowDefaults) -> None:
        super().__init__(file, defaults)
        self._json = _ExactJson()

    def _rows(self, slices: Iterator[list[bytes]]) -> Iterator[Item]:
        for lines in slices:
            yield from self._all_plain(lines) or self._one_by_one(lines)

    def _all_plain(self, lines: list[bytes]) -> list[Row] | None:
        """Return the rows of lines that orjson provably decodes without a loss, else None.

        orjson rounds long integers and decimals to floats, and keeps the last of duplicate keys.
        A row holds no float anywhere. Without a backslash in the lines, every string stands
        between two quotes, so that as many quotes out as in means that no key was dropped; and
        no string holds a NUL or a lone surrogate, since those can only be written as escapes.

        The zero between two lines can't be taken for a part of either: no object has a member
        without a name, and no plain row holds an array.
        """
        text = b"[%b]" % b",0,".join(lines)

        if b"\\" in text or max(map(len, lines)) > MAX_LINE:
            return None

        try:
            values = orjson.loads(text)
            complete = orjson.dumps(values).count(b'"') == text.count(b'"')
        except (orjson.JSONDecodeError, orjson.JSONEncodeError):  # the latter: nested too deep
            return None

        if not complete or len(values) != 2 * len(lines) - 1:
            return None

        return self._numbered(values[::2])

    def _numbered(self, values: list[object]) -> list[Row] | None:
        number, line, defaults = self.number, self.line, self._defaults
        rows = []

        for value in values:
            number += 1
            line += 1
            row = plain_row(value, number, line, defaults)

            if row is None:
                return None

            rows.append(row)

        self.number, self.line = number, line
        return rows

    def _one_by_one(self, lines: list[bytes]) -> Iterator[Item]:
        for line in lines:
            self.line += 1

            if line.isspace():
                continue

            self.number += 1
            yield self._exact(line)

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
        states: index of each column that tells what became of the row in another batch.
        no_job: the fault of a row that names no job.
    """

    width: int
    reserved: tuple[tuple[int, str], ...]
    parameters: tuple[tuple[int, str], ...]
    states: tuple[int, ...]
    no_job: Fault


class CsvReader(RowReader):
    """A header line, then RFC 4180 records."""

    def __init__(self, file: str, defaults: RowDefaults) -> None:
        super().__init__(file, defaults)
        self._columns: _Columns | None = None
        self._lines: list[bytes] = []
        self._at = 0
        self._read = 0
        self._size = 0
        self._damage: Fault | None = None
        self._quoted: list[str] = []
        self._escapes = False
        self._ended = False

    def _rows(self, slices: Iterator[list[bytes]]) -> Iterator[Item]:
        columns = self._columns = self._header(slices)

        while self._has_lines(slices):
            rows = self._all_plain(columns)

            if rows is not None:
                yield from rows
                continue

            for cells in self._records(slices):
                if len(cells) == 1 < columns.width and not cells[0].strip():
                    continue  # a line of blanks

                self.number += 1
                yield self._item(cells, columns)

    def _has_lines(self, slices: Iterator[list[bytes]]) -> bool:
        """Tell whether there are more lines; go on to the next slice for them."""
        if self._at == len(self._lines):
            self._lines, self._at = next(slices, []), 0

        return self._at < len(self._lines)

    def _all_plain(self, columns: _Columns) -> list[Row] | None:
        """Return the rows of the slice's remaining lines, if not one needs care, else None."""
        lines = self._lines[self._at :]
        text = b"".join(lines).replace(b"\r\n", b"\n")

        if _CSV_CARE.search(text) or max(map(len, lines)) >= _FIELD:
            return None

        try:
            records = text.decode().removesuffix("\n").split("\n")
        except UnicodeDecodeError:
            return None

        rows = self._numbered(records, columns)

        if rows is not None:
            self._at = len(self._lines)
            self._read += len(rows)
            self.number += len(rows)

        return rows

    def _numbered(self, records: list[str], columns: _Columns) -> list[Row] | None:
        number, line, rows = self.number, self._read, []
        told = bool(columns.states)

        for record in records:
            cells = record.split(",")
            number += 1
            line += 1

            if len(cells) != columns.width or not record or (told and _was_sent(cells, columns)):
                return None

            try:
                said = plain_identity(_filled(cells, columns.reserved), self._defaults)
            except Unfit:
                return None

            rows.append(Row(number, line, *said, _filled(cells, columns.parameters)))

        return rows

    def _records(self, slices: Iterator[list[bytes]]) -> Iterator[list[str]]:
        """Yield the records that are not blank, with ``line``, ``_damage`` and ``_escapes`` set.

        Ends where a slice ends together with a record.

        Raises:
            Unreadable: where the record ends can't be told.
        """
        reader = csv.reader(self._texts(slices), strict=True)
        self._begin_record()

        try:
            for cells in reader:
                if self._quoted:
                    self._check_quotes()

                if cells:
                    yield cells

                if self._at == len(self._lines):
                    return

                self._begin_record()
        except csv.Error as exc:
            raise self._broken(_bad_csv(str(exc), ended=self._ended)) from exc

    def _begin_record(self) -> None:
        self.line = self._read + 1
        self._size = 0
        self._damage = None
        self._escapes = False

    def _texts(self, slices: Iterator[list[bytes]]) -> Iterator[str]:
        """Yield lines as text; what is wrong with one of them is its record's damage."""
        while self._has_lines(slices):
            line = self._lines[self._at]
            self._at += 1
            self._read += 1
            yield self._text_of(line)

        self._ended = True

    def _text_of(self, line: bytes) -> str:
        self._size += len(line)

        if self._size > MAX_LINE:
            raise self._broken(_OLD_MAC if b"\r" in line[:-2] else _too_long("record"))

        try:
            text = line.decode()
        except UnicodeDecodeError as exc:
            text = _text(line)
            self._damage = self._damage or _undecodable(line, exc, self._read)

        if "\0" in text:
            self._damage = self._damage or Fault("", TEXT, text, UNCLEAN)

        if "\\" in text:
            self._escapes = True

        if self._quoted or '"' in text:
            self._quoted.append(text)

        return text

    def _check_quotes(self) -> None:
        """Damage a record with a quote in a bare cell, which csv would take as it stands."""
        if not _RECORD.fullmatch("".join(self._quoted)):
            self._damage = self._damage or _LOOSE_QUOTE

        self._quoted.clear()

    def _broken(self, fault: Fault) -> Unreadable:
        self.number += self._columns is not None  # the broken record is a row, or the header
        return Unreadable(fault)

    def _header(self, slices: Iterator[list[bytes]]) -> _Columns:
        names = self._first_record(slices)
        found = [self._damage] if self._damage else _header_faults(names)
        faults = list(islice(found, MAX_HEADER_FAULTS))

        if faults:
            raise Unreadable(*faults)

        return _columns(names)

    def _first_record(self, slices: Iterator[list[bytes]]) -> list[str]:
        while self._has_lines(slices):
            for cells in self._records(slices):
                return cells

        raise Unreadable(_NO_HEADER)

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

        if _was_sent(cells, columns):
            faults.append(_sent_already(cells, columns))

        if faults:
            return self._problems(faults)

        return Row(self.number, self.line, key, target, job_id, parameters)


def _was_sent(cells: list[str], columns: _Columns) -> bool:
    """Tell whether a row is one of a file of results that has, or may have, a run."""
    return any(cells[index] in _SENT for index in columns.states)


def _sent_already(cells: list[str], columns: _Columns) -> Fault:
    state = next(cells[index] for index in columns.states if cells[index] in _SENT)
    message = (
        f"by {_STATE} the row was sent in another batch, and is {state} there; go on with that "
        "batch by deslaunch resume, tell what an unknown row did by deslaunch resolve"
    )

    if state == "started":
        message += f"; to start a run that failed once more, rename the column to {IGNORED}was"

    return Fault(_STATE, "failed, rejected, invalid or pending", state, message)


def _slices(blocks: Iterable[list[bytes]]) -> Iterator[list[bytes]]:
    """Yield the lines of blocks, at most ``_SLICE`` at a time and never none."""
    for lines in blocks:
        for at in range(0, len(lines), _SLICE):
            yield lines[at : at + _SLICE]


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


def separator_advice(names: Sequence[str]) -> str:
    """Return what to do where a CSV's header has other separators than commas, or ``""``."""
    found = _SEPARATORS.search(names[0]) if len(names) == 1 else None

    if found is None:
        return ""

    return (
        f"the columns look separated by {found[0]!r}; separate them by commas: a spreadsheet "
        "asks for the field delimiter when it saves, or takes it from the system's region"
    )


def _header_faults(names: list[str]) -> Iterator[Fault]:
    """Yield what is wrong with a CSV's column names."""
    if message := separator_advice(names):
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
    if name.startswith(IGNORED):
        return None

    if name in RESERVED:
        return _Column(name, is_parameter=False)

    return _Column(name.removeprefix(PREFIX), is_parameter=True)


def column_of(parameter: str) -> str:
    """Return the name of the column that holds a parameter, whatever the parameter is called."""
    taken = parameter in RESERVED or parameter.startswith((PREFIX, IGNORED))
    return f"{PREFIX}{parameter}" if taken else parameter


def _columns(names: list[str]) -> _Columns:
    kinds = [(index, kind) for index, name in enumerate(names) if (kind := _column(name))]
    parameters = tuple((index, kind.name) for index, kind in kinds if kind.is_parameter)
    return _Columns(
        width=len(names),
        reserved=tuple((index, kind.name) for index, kind in kinds if not kind.is_parameter),
        parameters=parameters,
        states=tuple(index for index, name in enumerate(names) if name == _STATE),
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
