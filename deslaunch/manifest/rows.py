r"""One row: its validation without a schema, its digest, and its stored form.

Pure. Turns a JSONL object, the cells of a CSV record, or a program's row into a ``Row``, or into an
``InvalidRow`` with every problem. Numbers are never rounded: none passes through a float.
"""

import re
import reprlib
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from difflib import get_close_matches
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final, NamedTuple

import orjson

from deslaunch.des import wire
from deslaunch.errors import ConfigurationError
from deslaunch.events import ProblemGroup
from deslaunch.model import (
    AUTO,
    DEFAULT_TARGET,
    GOT_LIMIT,
    InvalidRow,
    JobRunParameterValue,
    ParameterValue,
    Problem,
    Row,
    is_guid,
    printable,
    quote,
)

RESERVED: Final = ("key", "target", "jobId")
"""Columns that are not parameters."""

NOTES: Final = "deslaunch"
"""JSONL member with a row's notes; followed by a point, the prefix of a CSV column of notes."""

RESULT_COLUMNS: Final = (
    *("key", "row", "target", "jobId", "jobName", "state", "jobRunId", "attempts", "status"),
    *("error", "possibleDuplicate", "sentUtc", "answeredUtc"),
    *("finished", "success", "statusText", "finishedUtc", "outputFiles"),
)
"""The columns of ``results``."""

RESULT_NAMES: Final = frozenset(map(str.lower, RESULT_COLUMNS))
"""Names of notes, in lower case, that only ``results --with-manifest`` writes."""

REPEAT_MARK: Final = "~"
"""Separates a repeated digest from its count; not allowed in the keys of a manifest."""

MAX_NAME: Final[Mapping[str, int]] = {"key": 256, "target": 128}
"""Characters."""

NO_TEXT: Final = re.compile("[\0\ud800-\udfff]")
UNCLEAN: Final = (
    "text without NUL or lone surrogate",
    "the text contains a NUL or a lone surrogate; remove it",
)
"""Arguments of ``Unfit`` for a text that JSON in UTF-8 can't represent."""

UNREAD: Final = '{"jobId":"?"}'
"""Stored for a row that could not be read; invalid until it is corrected."""

_OBJECTS: Final = (dict, Mapping)  # dict first: isinstance() of an ABC is slow
_MAX_DIGITS: Final = 1000  # a Decimal of a few bytes can stand for gigabytes of zeros
_ROW_NAMES: Final = (*RESERVED, "parameters", NOTES)
_VALUE_NAMES: Final = frozenset({"type", "valueStringEncoded", "useAutoValue"})
_is_plain_name: Final = re.compile(  # printable ASCII without a quote, a backslash, and ~
    r"[!#-\[\]-}](?:[ !#-\[\]-}]{0,126}[!#-\[\]-}])?"
).fullmatch
_FORMS: Final = '{"auto": true} or {"type", "valueStringEncoded", "useAutoValue"}'
_INVISIBLE: Final = re.compile(  # invisible, although isprintable() is true
    "[\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\ufe00-\ufe0f\U000e0100-\U000e01ef]"
)
_REPR: Final = reprlib.Repr()  # limits depth and length
_REPR.maxother = _REPR.maxstring = GOT_LIMIT


class Fault(NamedTuple):
    """A problem without its place: the last four fields of a ``Problem``."""

    column: str
    expected: str
    got: object
    message: str


class Unfit(Exception):
    """A value is invalid.

    Args:
        expected: what would be valid.
        message: one sentence: what is wrong, and what to do.
    """

    def fault(self, column: str, got: object) -> Fault:
        """Return the fault of this value in a column."""
        expected, message = self.args
        return Fault(column, expected, got, message)


class Number(str):
    """A JSON number as it was written; an int or a float might change it."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class RowRules:
    """Defaults and permissions for reading rows.

    Attributes:
        file: name of the file in problems, printable.
        job_id: GUID for rows without a jobId, stored in lower case, or None.
        target: for rows without a target.
        is_batch_output_allowed: the rows are corrections: columns of results are ignored, and a
            key may contain ``~``.

    Raises:
        ConfigurationError: ``job_id`` is not a GUID, or ``target`` not a valid name.
    """

    file: str = "<rows>"
    job_id: str | None = None
    target: str = DEFAULT_TARGET
    is_batch_output_allowed: bool = False

    def __post_init__(self) -> None:
        try:
            job_id = self.job_id and _read_name("jobId", self.job_id, self)
            _read_name("target", self.target, self)
        except Unfit as exc:
            raise ConfigurationError(
                f"--job-id or --target: {exc.args[-1]}",
                hint="list the jobs with deslaunch jobs, the targets with deslaunch targets",
            ) from exc

        object.__setattr__(self, "job_id", job_id)

    def invalid(self, faults: Iterable[Fault], number: int, line: int) -> InvalidRow:
        """Return an invalid row, or file, of which only the faults are known."""
        problems = problems_of(faults, self.file, number, line)
        return InvalidRow(number, line, None, self.target, "", problems)


def problems_of(faults: Iterable[Fault], file: str, number: int, line: int) -> tuple[Problem, ...]:
    """Return the faults of a row as problems, in which every value is printable."""
    return tuple(
        Problem(file, line, number, show(column), expected, show(got), printable(message))
        for column, expected, got, message in faults
    )


class Groups:
    """Problems or warnings, grouped by column and message.

    Args:
        file: name of the manifest, for warnings.
        limit: largest number of groups, or None for no limit; later groups are dropped.
    """

    def __init__(self, file: str, limit: int | None = None) -> None:
        self.file = file
        self._limit = limit
        self._groups: dict[tuple[str, str], ProblemGroup] = {}

    def __iter__(self) -> Iterator[ProblemGroup]:
        return iter(self._groups.values())

    def add(self, problem: Problem) -> None:
        """Count a problem; the first one represents its group."""
        first, known = self._groups.get(problem.group_key, (problem, 0))

        if known or len(self._groups) != self._limit:
            self._groups[problem.group_key] = ProblemGroup(first, known + 1)

    def warn(self, column: str, message: str, line: int) -> None:
        """Count a warning."""
        self.add(Problem(self.file, line, 0, show(column), "", "", message))


def row_from_object(
    value: object,
    number: int,
    rules: RowRules,
    line: int = 0,
    *,
    read: Callable[[object], object] | None = None,
    faults: Iterable[Fault] = (),
) -> Row | InvalidRow:
    """Return the row of an object in JSONL form, or an invalid row with every problem.

    Args:
        value: a mapping with ``key``, ``target``, ``jobId``, ``parameters`` and ``deslaunch``
            (notes), each optional; or a ``Row``. Besides JSON's types, a parameter may be a
            Decimal (finite), a datetime, a ``JobRunParameterValue`` or ``AUTO``; never a float.
        number: data row, from 1.
        rules: defaults and permissions.
        line: physical line, from 1; 0 for a row of a program.
        read: converts a parameter's value, or raises ``Unfit``; default: :func:`read_value`.
        faults: faults that the caller found.
    """
    line = line or number

    if isinstance(value, Row):
        value = _object_of(value)

    if not isinstance(value, _OBJECTS):
        message = 'a row is one object on one line, such as {"jobId": "…", "parameters": {…}}'
        return rules.invalid([Fault("", "one object", value, message)], number, line)

    faults = [*faults, *(_unknown_member(name) for name in value if name not in _ROW_NAMES)]
    notes = _read_notes(value.get(NOTES, {}), rules, faults)
    values = _read_values(value.get("parameters", {}), "parameters", read or read_value, faults)
    key, target, job_id = _read_members(value, values, rules, faults)
    parameters, types = _split(values)
    row = Row(number, line, key, target or rules.target, job_id or "", parameters, notes, types)

    if not faults:
        return row

    # The stored form must be invalid when it is read again, so it contains what is invalid.
    says = UNREAD

    if value.keys() <= {*_ROW_NAMES} and {"key", "target"}.isdisjoint(f.column for f in faults):
        says = dump_row(row._replace(job_id=job_id or show(value.get("jobId", "")) or "?"))

    return InvalidRow(*row[:5], problems_of(faults, rules.file, number, line), says)


def plain_row(
    members: Mapping[str, str],
    parameters: Mapping[str, str],
    number: int,
    rules: RowRules,
    line: int,
    types: tuple[int, ...] = (),
) -> Row | None:
    """Return the row of plain texts; None if its key, target or jobId needs the full check.

    Args:
        members: key, target and jobId, each optional.
        parameters: texts without a NUL or a lone surrogate.
        number: data row, from 1.
        rules: defaults.
        line: physical line, from 1.
        types: the declared type of every parameter, or empty for none.
    """
    key, target = members.get("key"), members.get("target")
    job_id = lower_guid(members["jobId"]) if "jobId" in members else rules.job_id
    is_key_plain = key is None or _is_plain_name(key)

    if job_id is None or not is_key_plain or not (target is None or _is_plain_name(target)):
        return None

    return Row(number, line, key, target or rules.target, job_id, parameters, {}, types)


def _unknown_member(name: object) -> Fault:
    folded = {known.lower(): known for known in _ROW_NAMES}
    near = get_close_matches(str(name)[:16].strip().lower(), folded, n=1, cutoff=0.7)
    advice = f"did you mean {folded[near[0]]}?" if near else 'put parameters into "parameters"'
    return Fault(
        str(name), ", ".join(_ROW_NAMES), name, f"a row has no member of this name; {advice}"
    )


def _read_members(
    value: Mapping[str, object], parameters: Iterable[str], rules: RowRules, faults: list[Fault]
) -> Iterable[str | None]:
    """Return the row's key, target and jobId, None for one that is missing or invalid."""
    members: dict[str, str | None] = {"key": None, "target": rules.target, "jobId": rules.job_id}

    for name in RESERVED:
        if name in value:
            try:
                members[name] = _read_name(name, value[name], rules)
            except Unfit as exc:
                faults.append(exc.fault(name, value[name]))
                members[name] = None

    if members["jobId"] is None and "jobId" not in value:
        near = next((name for name in parameters if meant_member(name) == "jobId"), None)
        advice = "" if near is None else f"; should the column {show(near)} be jobId?"
        message = f"the row has no jobId; add it, or pass --job-id{advice}"
        faults.append(Fault("jobId", "a GUID", "", message))

    return members.values()


def meant_member(name: str) -> str | None:
    """Return the reserved column whose name differs only in case, blanks, ``-`` and ``_``."""
    folded = re.sub(r"[-_\s]", "", name).lower()
    return next((member for member in RESERVED if member.lower() == folded), None)


def _read_name(member: str, value: object, rules: RowRules) -> str:
    """Return a key or a target unchanged, or a jobId in lower case.

    Raises:
        Unfit: it is not a string, is empty, too long, has blanks at its ends or invisible
            characters; a key contains ``~``; a jobId is not a GUID.
    """
    if member == "jobId":
        return _read_job_id(value)

    what, limit = f"a {member}", MAX_NAME[member]

    if not isinstance(value, str) or not value or isinstance(value, Number):
        raise Unfit("a string", f"{what} must be a non-empty string; fix it, or leave it out")

    if len(value) > limit:
        raise Unfit(
            f"at most {limit} characters", f"{what} has at most {limit} characters; shorten it"
        )

    if odd := next((c for c in value if not c.isprintable() or _INVISIBLE.match(c)), None):
        message = f"{what} contains the invisible {name_character(odd)}; remove it"
        raise Unfit("visible characters", message)

    if value[0] == " " or value[-1] == " ":
        message = f"{what} begins or ends with a blank ({name_character(' ')}); remove it"
        raise Unfit("no blank at either end", message)

    if member == "key" and REPEAT_MARK in value and not rules.is_batch_output_allowed:
        message = f"{REPEAT_MARK} is reserved for repeated rows; remove it from the key"
        raise Unfit(f"a key without {REPEAT_MARK}", message)

    return str.__str__(value)


def _read_job_id(value: object) -> str:
    text = value if isinstance(value, str) else ""

    if job_id := lower_guid(text):
        return job_id

    advice = odd_character(text) or "copy it from the output of deslaunch jobs"
    raise Unfit(
        "a GUID", f"jobId must be a GUID (8-4-4-4-12 hex digits), not {show(value)!r}; {advice}"
    )


@lru_cache(maxsize=1024)  # a manifest has many rows and few jobs
def lower_guid(text: str) -> str | None:
    """Return a GUID in lower case, or None for any other text."""
    return text.lower() if is_guid(text) else None


def odd_character(text: str) -> str:
    """Return advice about the first character that is not ASCII, or ``""``.

    For numbers, times and GUIDs, where such a character looks like the right one.
    """
    odd = next((c for c in text.strip() if not " " <= c < "\x7f"), None)
    return "" if odd is None else f"it contains {name_character(odd)}; retype that character"


def name_character(character: str) -> str:
    """Return a character's code point and name, such as ``U+2212 MINUS SIGN``."""
    name = unicodedata.name(character, "") or ("control character" if character < " " else "")
    return f"U+{ord(character):04X} {name}".rstrip()


def _read_values(
    members: object, member: str, read: Callable[[object], Any], faults: list[Fault]
) -> dict[str, Any]:
    """Return the converted values of ``parameters`` or of the notes; add their faults."""
    if not isinstance(members, _OBJECTS):
        message = f'{member} must be an object, {{"name": value}}; fix it, or leave it out'
        faults.append(Fault(member, "an object", members, message))
        return {member: _unread(members)}

    values: dict[str, Any] = {}

    for name, value in members.items():
        try:
            values[str.__str__(name)] = _read_named(name, value, read)
        except Unfit as exc:
            column = f"{NOTES}.{name}" if member == NOTES else str(name)
            faults.append(exc.fault(column, value))
            kept = str(name).encode("utf-8", "backslashreplace").decode()
            values[kept] = _unread(value)

    return values


def _read_named(name: object, value: object, read: Callable[[object], Any]) -> object:
    if not isinstance(name, str) or not name:
        raise Unfit("a name", "a name must be a non-empty string; fix it")

    text = read(value)

    if NO_TEXT.search(f"{name}{text.value if isinstance(text, JobRunParameterValue) else text}"):
        raise Unfit(*UNCLEAN)

    return text


def _split(values: Mapping[str, Any]) -> tuple[dict[str, ParameterValue], tuple[int | None, ...]]:
    """Return values without their declared types, and the types."""
    pairs = [v if isinstance(v, JobRunParameterValue) else (None, v) for v in values.values()]
    types = tuple(number for number, _ in pairs)
    plain = {name: text for name, (_, text) in zip(values, pairs, strict=True)}
    return plain, types if {*types} - {None} else ()


def _unread(value: object) -> dict[str, str]:
    """Return the stored form of an invalid value, which is invalid again when it is read."""
    return {"invalid": printable(value) if isinstance(value, str) else show(value)}


def _read_notes(notes: object, rules: RowRules, faults: list[Fault]) -> Mapping[str, str]:
    """Return the notes; columns of results are ignored in corrections, and else a fault."""
    if isinstance(notes, _OBJECTS):
        results = [name for name in notes if str(name).lower() in RESULT_NAMES]
        notes = {n: v for n, v in notes.items() if n not in results and v not in (None, "")}

        if results and not rules.is_batch_output_allowed:
            faults.append(fault_of_results(f"{NOTES}.{results[0]}"))

    return _read_values(notes, NOTES, _read_note, faults) if notes else {}


def _read_note(value: object) -> str:
    text = read_value(value)

    if not isinstance(text, str):
        raise Unfit("a string", "a note must be a string; quote it")

    return text


def fault_of_results(name: str) -> Fault:
    """Return the fault of a column of results: its rows must not start in a second batch."""
    message = (
        f"{show(name)} comes from 'deslaunch results --with-manifest', so these rows are in a "
        "batch already; to correct them, use deslaunch resume LEDGER --corrections FILE"
    )
    return Fault(name, "a manifest", name, message)


def read_value(value: Any) -> ParameterValue | JobRunParameterValue:
    """Return the text, null or auto value of a JSON value or a program's value.

    Raises:
        Unfit: it has none of the documented forms, or contradicts itself.
    """
    if isinstance(value, str):
        return str.__str__(value)

    if isinstance(value, JobRunParameterValue):
        value = wire.parameter_value(*value)

    if isinstance(value, _OBJECTS):
        return _value_of_object(value)

    if isinstance(value, float | Decimal) and not Decimal(value).is_finite():
        raise Unfit("a number", "NaN and Infinity can't be sent; write a number or null")

    if isinstance(value, float):
        raise Unfit("Decimal, int or str", "a float is not exact; pass an int, a Decimal or a str")

    if isinstance(value, Decimal):
        _, digits, exponent = value.as_tuple()

        if len(digits) + abs(int(exponent)) > _MAX_DIGITS:
            message = f"the number has over {_MAX_DIGITS:,} digits; pass it as a str"
            raise Unfit(f"at most {_MAX_DIGITS:,} digits", message)

    try:
        text: str | None = wire.encode_value("", value)["valueStringEncoded"]
    except ValueError as exc:  # more digits than Python writes
        raise Unfit("a number", "the number is too long; pass it as a str") from exc
    except TypeError as exc:
        message = "this can't be a parameter's value; write a string, number, bool or null"
        raise Unfit("a string, number, true, false, null or an object", message) from exc

    return AUTO if value is AUTO else text


def _value_of_object(value: Mapping[str, object]) -> ParameterValue | JobRunParameterValue:
    if not _VALUE_NAMES.issuperset(value):
        if value.keys() == {"auto"} and value["auto"] is True:
            return AUTO

        raise Unfit(_FORMS, f"an object as a value must be {_FORMS}")

    number, text = value.get("type"), value.get("valueStringEncoded")
    auto = value.get("useAutoValue", False)

    if not (number is None or type(number) is int):
        why = "type must be an integer or null"
    elif not (auto or "valueStringEncoded" in value):
        why = "valueStringEncoded is missing; add it, or null"
    elif not (text is None or isinstance(text, str)) or isinstance(text, Number):
        why = "valueStringEncoded must be a string or null, whatever the type; quote it"
    elif not isinstance(auto, bool):
        why = "useAutoValue must be true or false"
    elif auto and text is not None:
        why = "valueStringEncoded must be null beside useAutoValue; remove one of them"
    else:
        return JobRunParameterValue(number, AUTO if auto else text)

    raise Unfit(_FORMS, why)


def dump_row(row: Row) -> str:
    """Return a row as one line of JSONL, without loss."""
    return orjson.dumps(_object_of(row)).decode()


def _object_of(row: Row) -> dict[str, Any]:
    parameters: Mapping[str, object] = row.parameters

    if row.types or AUTO in parameters.values():
        types = row.types or (None,) * len(parameters)
        parameters = {
            name: value
            if number is None and value is not AUTO
            else wire.parameter_value(number, value)
            for number, (name, value) in zip(types, row.parameters.items(), strict=True)
        }

    value: dict[str, Any] = {} if row.key is None else {"key": row.key}
    value |= {"target": row.target, "jobId": row.job_id, "parameters": parameters}
    return value | {NOTES: row.notes} if row.notes else value


def load_row(says: str, number: int, line: int, file: str) -> Row | InvalidRow:
    """Return the row that :func:`dump_row` wrote; an invalid one is invalid again.

    Args:
        says: its text in the ledger.
        number: data row, from 1.
        line: physical line, from 1.
        file: name of the file in problems.
    """
    rules = RowRules(file, is_batch_output_allowed=True)
    return row_from_object(orjson.loads(says), number, rules, line)


def row_digest(row: Row) -> str:
    r"""Return the digest of a row, 32 lower-case hex digits: the key of a row without one.

    The recipe is a contract: others recompute it to find a row in a ledger.

    1. Take the array ``[target, jobId, parameters]``: ``jobId`` in lower case, ``parameters`` an
       array of ``[name, value]`` sorted by name, by code point. A value is its text as a string,
       ``null``, or ``true`` for the auto value. Key, notes and declared types are left out;
       nothing is added from a schema.
    2. Write it as JSON in UTF-8 without white space. Only ``"``, ``\`` and the characters below
       U+0020 are escaped: ``\b \t \n \f \r``, the others as ``\u00`` and two lower-case hex
       digits.
    3. Take the SHA-256, of it the first 128 bits, as 32 lower-case hex digits.

    In Python, ``text = json.dumps(array, ensure_ascii=False, separators=(",", ":"))``, then
    ``hashlib.sha256(text.encode()).hexdigest()[:32]``.

    Raises:
        TypeError: a text holds a lone surrogate; no row of a manifest does.
    """
    texts = sorted((name, True if text is AUTO else text) for name, text in row.parameters.items())
    return sha256(orjson.dumps([row.target, row.job_id.lower(), texts])).hexdigest()[:32]


def show(value: object) -> str:
    """Return a value for display: cut to 120 characters, on one line, printable."""
    if value is None or isinstance(value, bool):
        return orjson.dumps(value).decode()

    try:
        text = value if isinstance(value, str | Decimal) else _REPR.repr(value)
    except ValueError:  # an integer with more digits than Python writes
        text = type(value).__name__

    return printable(quote(str(text)))
