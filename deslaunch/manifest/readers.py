r"""Lines of bytes to rows, and rows to lines again: JSON Lines, and CSV with its cells and escapes.

Pure. A reader numbers the rows, remembers the line where each begins, and gives an item for
every one; where it can't go on it raises ``Unreadable``, of which ``Manifest`` makes one more item.

The cells of CSV: an empty cell is left out; ``\N`` is null, ``\A`` the auto value, ``\E`` the
empty string; ``\\…`` begins with a backslash; any other leading backslash is an error. A key and
a target know only ``\\…``; notes know no escapes.
"""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any, Final

import orjson

from deslaunch.des import wire
from deslaunch.errors import ManifestError
from deslaunch.manifest import rows
from deslaunch.model import AUTO, InvalidRow, ParameterValue, Row

Item = Row | InvalidRow


MAX_RECORD: Final = 1 << 20
"""Bytes of a JSONL line, or of a CSV record with all its lines, newlines included."""

PREFIX: Final = "parameters."
"""Begins the column of a parameter whose own name would be read as another column's."""

NOTE_PREFIX: Final = f"{rows.NOTES}."
"""Begins a column of notes, in any case of letters."""

_RESULT_NOTES: Final = frozenset(f"{NOTE_PREFIX}{name}" for name in rows.RESULT_NAMES)
_TYPED: Final = {dict}
_BARE: Final = {str}
_INTEGERS: Final = {int}
_TYPES: Final = frozenset(wire.TYPE_NAMES)
_RESERVED: Final = frozenset(rows.RESERVED)
_type_and_text = itemgetter("type", "valueStringEncoded")
_LONG: Final = 10  # digits of an integer that is kept as it was written; so is -0
_OVERLONG: Final = "over MAX_RECORD"
_MAX_HEADER_FAULTS: Final = 100  # a line of commas alone would have a million
_ESCAPES: Final[Mapping[str, ParameterValue]] = {"\\N": None, "\\A": AUTO, "\\E": ""}
_CELLS: Final = {value: cell for cell, value in _ESCAPES.items()}

_UNC: Final = re.compile(r"\\\\[^\\]+\\[^\\]")
_TWO_BACKSLASHES: Final = (
    r"a cell that begins with \\ is sent with one backslash; "
    r"for \\server\share write \\\server\share"
)
_NO_ESCAPE: Final = (
    "only \\N (null), \\A (auto value), \\E (empty string) and \\\\ (a backslash) may begin with a "
    "backslash; double it to send a backslash"
)
_MISQUOTED: Final[Mapping[str, str]] = {  # how a cell begins that holds quotes and has none
    '="[^"]*"': "a cell is a spreadsheet formula; write its text only, without =",
    r'\s+"': "there is a blank before an opening quote; remove it",
}
_SWALLOWED: Final = (
    "a cell contains line breaks, and lines that look like rows; check for a missing or an extra "
    "quote"
)


class Unreadable(Exception):
    """The file can't be read any further; its arguments are the faults that keep it from that."""


class RowReader:
    """Reads the rows of a file once.

    ``read(blocks)`` yields an item for every row. The blocks are physical lines with their
    newlines, some at a time; one over ``MAX_RECORD`` may have been cut, but not to less than a
    byte more. ``Unreadable`` is raised where the reading ends early, by itself or by the blocks.

    Args:
        rules: defaults, and what is allowed.

    Attributes:
        warnings: what may be a mistake.
        number: data rows so far.
        line: physical line where the present row begins.
        columns: the names in a CSV's header, as they were written.
    """

    columns: tuple[str, ...] | None = None

    def __init__(self, rules: rows.RowRules) -> None:
        self._rules = rules
        self.warnings = rows.Groups(rules.file)
        self.number = 0
        self.line = 1

    def invalid(self, *faults: rows.Fault) -> InvalidRow:
        """Return the present row, or the file, of which nothing else is known."""
        return self._rules.invalid(faults, self.number, self.line)


class JsonlReader(RowReader):
    """One JSON object a line. Numbers keep their digits; a name given twice is an error."""

    def __init__(self, rules: rows.RowRules) -> None:
        super().__init__(rules)
        self._repeated: list[rows.Fault] = []
        self._pairs: list[tuple[str, object]] = []  # of the object that was read last
        self._decode = json.JSONDecoder(
            object_pairs_hook=self._object,
            parse_float=rows.Number,
            parse_int=lambda n: int(n) if len(n) < _LONG and n[0] != "-" else rows.Number(n),
            parse_constant=float,  # NaN and Infinity, refused where every float is
        ).decode

    def _object(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        members, self._pairs = dict(pairs), pairs

        if len(members) < len(pairs):
            counts = Counter(name for name, _ in pairs)
            message = "the object has this name twice; remove one of them"
            self._repeated += [
                rows.Fault(name, "each name once", members[name], message)
                for name, times in counts.items()
                if times > 1
            ]

        return members

    def read(self, blocks: Iterator[list[bytes]]) -> Iterator[Item]:
        """Yield an item for every line that is not blank."""
        for line in chain.from_iterable(blocks):
            if not line.isspace():
                self.number += 1
                yield self._row(line)

            self.line += 1

    def _row(self, line: bytes) -> Item:
        if len(line) > MAX_RECORD:
            return self.invalid(_too_long("line"))

        if plain := self._read_plain(line):
            return plain

        self._repeated.clear()

        try:
            value = self._decode(line.decode().rstrip())
        except UnicodeDecodeError as exc:
            text = line.decode("utf-8", "replace")
            return self.invalid(_undecodable(text, exc.start, self.line))
        except (json.JSONDecodeError, RecursionError) as exc:
            at = f"{exc.msg} (character {exc.pos + 1})" if isinstance(exc, ValueError) else ""
            why = f"not JSON: {at}" if at else "nested too deeply"
            message = f"this is {why}; fix the line"
            return self.invalid(rows.Fault("", "one JSON object", line.decode().strip(), message))

        where = (self.number, self._rules, self.line)
        row = rows.row_from_object(value, *where, faults=self._repeated)

        if not isinstance(row, InvalidRow) or not self._repeated:
            return row

        is_key_known = [name for name, _ in self._pairs].count("key") < 2  # noqa: PLR2004
        return row._replace(key=row.key if is_key_known else None, says=rows.UNREAD)

    def _read_plain(self, line: bytes) -> Row | None:
        """Return the row of a line of which orjson is sure to lose nothing, or None.

        orjson keeps the last of two members of one name. But no name is given twice where a line
        has just the quotes that its object's names and texts need: a dropped one would have two
        more. And it makes floats of long integers, which are not plain, and 0 of -0, which is
        looked for.
        """
        types: tuple[int, ...] = ()

        try:
            said = orjson.loads(line)
            parameters = said.pop("parameters")
            kinds = set(map(type, parameters.values()))
            strings = 1 + 2 * (len(said) + len(parameters))

            if kinds == _TYPED:
                strings += 2 * len(parameters)
                types, texts = zip(*map(_type_and_text, parameters.values()))  # noqa: B905  # pairs
                parameters = dict(zip(parameters, texts))  # noqa: B905  # one for each
                kinds = set(map(type, texts))

                if set(map(type, types)) != _INTEGERS or not _TYPES.issuperset(types):
                    return None
            elif int in kinds and not (0 in parameters.values() and b"-0" in line):
                strings -= list(map(type, parameters.values())).count(int)
                parameters = {name: str(value) for name, value in parameters.items()}
                kinds.remove(int)

            if not kinds <= _BARE or line.count(b'"') != 2 * strings or b"\\" in line:
                return None

            if "" in parameters or not said.keys() <= _RESERVED or None in said.values():
                return None

            where = (self.number, self._rules, self.line)
            return rows.plain_row(said, parameters, *where, types)
        except (AttributeError, KeyError, TypeError, ValueError):  # not of this form at all
            return None


class CsvReader(RowReader):
    """A header line, then RFC 4180 records."""

    def __init__(self, rules: rows.RowRules, delimiter: str) -> None:
        super().__init__(rules)
        self._delimiter = delimiter
        self._record: list[str] = []  # the lines of the present record
        self._cells: dict[str, dict[str, int]] = {"reserved": {}, "parameter": {}, "note": {}}
        self._begin = f"(?:^|{re.escape(delimiter)})"  # of a cell
        cell = rf'(?:"[^"]*(?:""[^"]*)*"|[^"{re.escape(delimiter)}]*)'
        self._quoting = re.compile(rf"{cell}(?:{re.escape(delimiter)}{cell})*\r?\n?")
        csv.field_size_limit(max(MAX_RECORD, csv.field_size_limit()))

    def read(self, blocks: Iterator[list[bytes]]) -> Iterator[Item]:
        """Yield an item for every record below the header that is not blank."""
        texts = self._texts(chain.from_iterable(blocks))

        try:
            for cells in csv.reader(texts, strict=True, delimiter=self._delimiter):
                first = self._record[0].rstrip("\r\n")
                is_plain = len(self._record) == 1 and '"' not in first and first.isprintable()
                fault = None if is_plain else self._find_damage()

                if fault is None and not any(cells if len(cells) > 1 else map(str.strip, cells)):
                    pass  # a line of nothing but delimiters is blank
                elif self.columns is None:
                    self._read_header(cells, fault)
                else:
                    self.number += 1
                    yield self.invalid(fault) if fault else self._row(cells)

                self.line += len(self._record)
                self._record.clear()
        except csv.Error as exc:
            self.number += self.columns is not None  # the broken record is a row, or the header
            raise Unreadable(self._fault_of_csv(str(exc))) from exc

        if self.columns is None:
            message = "the CSV has no header line; name the columns in the first line"
            raise Unreadable(rows.Fault("", "a header line", "", message))

    def _texts(self, lines: Iterator[bytes]) -> Iterator[str]:
        """Yield lines as text; a byte that is no UTF-8 becomes a lone surrogate."""
        size = 0

        for line in lines:
            size = len(line) + (size if self._record else 0)
            self._record.append(line.decode("utf-8", "surrogateescape"))

            if size > MAX_RECORD:
                raise csv.Error(_OVERLONG)

            yield self._record[-1].replace("\0", "\ufffd")  # csv refuses it before Python 3.11.4

    def _find_damage(self) -> rows.Fault | None:
        """Return what is wrong with the record, that csv would take as it stands."""
        text = "".join(self._record)

        if found := rows.NO_TEXT.search(text):
            if found[0] == "\0":
                return rows.Unfit(*rows.UNCLEAN).fault("", text)

            *before, last = text[: found.start()].split("\n")
            byte, line = len(last.encode()), self._record[len(before)]
            return _undecodable(line, byte, self.line + len(before))

        if '"' not in text or self._quoting.fullmatch(text):
            return None

        other = "a cell without quotes contains a quote; quote the whole cell and double the quote"
        messages = (m for begin, m in _MISQUOTED.items() if re.search(self._begin + begin, text))
        return rows.Fault("", "RFC 4180 quoting", text, next(messages, other))

    def _fault_of_csv(self, why: str) -> rows.Fault:
        if why == _OVERLONG:
            return _too_long("record")

        if why == "unexpected end of data":
            message = "a quote opened in this row is never closed; close it"
            return rows.Fault("", "a closing quote", "the end of the file", message)

        if "new-line" in why:
            message = "the line has a carriage return (\\r) in the middle; remove it"
            return rows.Fault("", "lines that end in \\n or \\r\\n", "\\r", message)

        message = f"the CSV can't be read further than this row ({why}); fix its quotes"
        return self._find_damage() or rows.Fault("", "RFC 4180", why, message)

    def _read_header(self, names: list[str], fault: rows.Fault | None) -> None:
        if fault:
            raise Unreadable(fault)

        faults = []

        for index, column in enumerate(names):
            kind, name = _kind_and_name(column)

            if column.lower() in _RESULT_NOTES and not self._rules.is_batch_output_allowed:
                raise Unreadable(rows.fault_of_results(column))

            if not name:
                message = f"column {index + 1} has no name; name it, or remove it from every line"
                faults.append(rows.Fault("", "a column name", column, message))
            elif self._cells[kind].setdefault(name, index) != index:
                message = "the header has this column twice; remove one of them"
                faults.append(rows.Fault(column, "each column once", column, message))

        if faults:
            raise Unreadable(*faults[:_MAX_HEADER_FAULTS])

        self.columns = tuple(names)

    def _row(self, cells: list[str]) -> Item:
        columns = self.columns or ()
        width = len(columns)

        if len(cells) != width:
            message = (
                f"the row has {len(cells):,} cells and the header has {width:,}; quote cells that "
                "contain the delimiter, and write every delimiter"
            )
            return self.invalid(
                rows.Fault("", f"{width:,} cells", f"{len(cells):,} cells", message)
            )

        if cells[0] == columns[0] and tuple(cells) == columns:
            message = "the row repeats the header; remove it"
            return self.invalid(rows.Fault("", "a row", cells[0], message))

        said, parameters, notes = (
            {name: cell for name, index in kind.items() if (cell := cells[index])} if kind else {}
            for kind in self._cells.values()
        )

        if not notes and len(self._record) == 1 and "\\" not in self._record[0]:
            plain = rows.plain_row(said, parameters, self.number, self._rules, self.line)

            if plain is not None:
                return plain

        lines = [line for cell in cells if "\n" in cell for line in cell.splitlines()[:100]]

        if width > 1 and any(line.count(self._delimiter) == width - 1 for line in lines):
            self.warnings.warn("", _SWALLOWED, self.line)

        for name, cell in parameters.items():
            if _UNC.match(cell):
                self.warnings.warn(name, _TWO_BACKSLASHES, self.line)

        faults = _unescape(said)
        value = {**said, "parameters": parameters, rows.NOTES: notes}
        where = (self.number, self._rules, self.line)
        return rows.row_from_object(value, *where, read=read_cell, faults=faults)


def _unescape(said: dict[str, str]) -> list[rows.Fault]:
    """Unescape the key and the target; return what is wrong with them."""
    faults = []

    for name in ("key", "target"):
        cell = said.get(name, "")

        if cell.startswith("\\\\"):
            said[name] = cell[1:]
        elif cell.startswith("\\"):
            del said[name]
            message = f"{name} has no escapes; leave the cell empty, or double the backslash"
            faults.append(rows.Fault(name, "no leading backslash", cell, message))

    return faults


def read_cell(cell: Any) -> ParameterValue:
    """Return what a cell of a parameter means.

    Raises:
        Unfit: it begins with a backslash, and is no escape.
    """
    if cell in _ESCAPES:
        return _ESCAPES[cell]

    if cell.startswith("\\") and not cell.startswith("\\\\"):
        raise rows.Unfit("\\N, \\A, \\E or \\\\", _NO_ESCAPE)

    return str(cell.removeprefix("\\"))


def _kind_and_name(column: str) -> tuple[str, str]:
    """Return what a column holds, a note, a parameter or a reserved member, and its own name."""
    if column.lower().startswith(NOTE_PREFIX):
        return "note", column[len(NOTE_PREFIX) :]

    return "reserved" if column in rows.RESERVED else "parameter", column.removeprefix(PREFIX)


def _too_long(what: str) -> rows.Fault:
    message = (
        f"the {what} is longer than {MAX_RECORD:,} bytes; check for a missing line break or quote"
    )
    return rows.Fault("", f"at most {MAX_RECORD:,} bytes", f"over {MAX_RECORD:,} bytes", message)


def _undecodable(line: str, byte: int, number: int) -> rows.Fault:
    message = f"byte {byte + 1} of line {number} is not UTF-8; save the file as UTF-8"
    return rows.Fault("", "UTF-8", line.rstrip("\r\n"), message)


def column_of(parameter: str) -> str:
    """Return the name of the column that holds a parameter, whatever the parameter is called."""
    is_free = _kind_and_name(parameter) == ("parameter", parameter)
    return parameter if is_free else f"{PREFIX}{parameter}"


def columns_of(says: str) -> list[str]:
    """Return the columns beside the reserved ones that a row needs: parameters, then notes."""
    said = orjson.loads(says)
    parameters = [column_of(name) for name in said.get("parameters", ())]
    return parameters + [f"{NOTE_PREFIX}{name}" for name in said.get(rows.NOTES, ())]


def header_of(written: Iterable[str], needed: Iterable[str]) -> list[str]:
    """Return the columns of rows that are written again.

    Args:
        written: the manifest's own header; what results write is left out.
        needed: more columns, as :func:`columns_of` gives them.
    """
    own = [column for column in written if column.lower() not in _RESULT_NOTES]
    columns: dict[tuple[str, str], str] = {}

    for column in (*(name for name in rows.RESERVED if name not in own), *own, *needed):
        columns.setdefault(_kind_and_name(column), column)

    return list(columns.values())


def csv_cells(says: str, columns: Sequence[str], key: str | None) -> list[str]:
    """Return the cells of a row, which the reader takes for the same row.

    A declared type is left out: the job's schema tells it.

    Args:
        says: what the row says, as the ledger keeps it.
        columns: the header, in any order; for columns of results there are empty cells.
        key: the row's key in the batch, or None for none.

    Raises:
        ManifestError: the row says more than the columns hold.
    """
    said = orjson.loads(says) | {"key": key or ""}
    parameters, notes = said.get("parameters", {}), said.get(rows.NOTES, {})
    cells = {("reserved", name): _escape(said.get(name, "")) for name in rows.RESERVED}
    cells |= {("parameter", name): _cell(value) for name, value in parameters.items()}
    cells |= {("note", n): v["invalid"] if isinstance(v, dict) else v for n, v in notes.items()}
    row = [cells.pop(_kind_and_name(column), "") for column in columns]
    left = [name for (_, name), cell in cells.items() if cell]

    if left:
        raise ManifestError(
            f"row {rows.show(key or '')!r} has {rows.show(left[0])!r}, but there is no such column",
            hint="write JSONL: add --format jsonl",
        )

    return row


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        if "invalid" in value:
            text = str(value["invalid"])
            return text if text.startswith("\\") else f"\\?{text}"  # which no reader takes

        value = AUTO if "auto" in value or "useAutoValue" in value else value["valueStringEncoded"]

    return _CELLS[value] if value in _CELLS else _escape(str(value))


def _escape(text: str) -> str:
    return f"\\{text}" if text.startswith("\\") else text


def csv_lines(rows: Iterable[Iterable[object]], delimiter: str = ",") -> bytes:
    """Return lines of CSV, each with its newline."""
    lines = io.StringIO()
    csv.writer(lines, delimiter=delimiter).writerows(rows)
    return lines.getvalue().encode()


def json_object(says: str, key: str | None) -> dict[str, Any]:
    """Return a row as the object of a line of JSONL, which the reader takes for the same row.

    Args:
        says: what the row says, as the ledger keeps it.
        key: the row's key in the batch, or None for none.
    """
    said: dict[str, Any] = {} if key is None else {"key": key}
    return said | {name: value for name, value in orjson.loads(says).items() if name != "key"}
