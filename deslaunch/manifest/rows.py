r"""One row: what it may say, its digest, and the text that the ledger keeps of it.

Pure. An object of the JSONL form, the cells of a CSV record, or a row of a program give a ``Row``,
or an ``InvalidRow`` with everything that keeps it from being one. What a row says is never
rounded: no number of it passes through a float.
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
"""The columns that are no parameters."""

NOTES: Final = "deslaunch"
"""The member of a JSONL row that holds its notes; with a point, how a column of notes begins."""

RESULT_COLUMNS: Final = (
    *("key", "row", "target", "jobId", "jobName", "state", "jobRunId", "attempts", "status"),
    *("error", "possibleDuplicate", "sentUtc", "answeredUtc"),
    *("finished", "success", "statusText", "finishedUtc", "outputFiles"),
)
"""What ``results`` tells of a row."""

RESULT_NAMES: Final = frozenset(map(str.lower, RESULT_COLUMNS))
"""Notes, in lower case, that ``results --with-manifest`` writes: they tell of another batch."""

REPEAT_MARK: Final = "~"
"""Stands between a repeated digest and its count; no explicit key of a new row holds it."""

MAX_NAME: Final[Mapping[str, int]] = {"key": 256, "target": 128}
"""Characters."""

NO_TEXT: Final = re.compile("[\0\ud800-\udfff]")
UNCLEAN: Final = (
    "text without NUL or lone surrogate",
    "the text holds a NUL or a lone surrogate; remove it",
)
"""What JSON in UTF-8 can't carry safely: what a text must be, and what is said of another."""

UNREAD: Final = '{"jobId":"?"}'
"""What is kept of a row that could not be read: refused until somebody fills it in."""

_OBJECTS: Final = (dict, Mapping)  # dict first: what an ABC is asked takes long
_MAX_DIGITS: Final = 1000  # a Decimal of a few bytes can stand for gigabytes of zeros
_ROW_NAMES: Final = (*RESERVED, "parameters", NOTES)
_VALUE_NAMES: Final = frozenset({"type", "valueStringEncoded", "useAutoValue"})
_is_plain_name: Final = re.compile(  # printable ASCII without a quote, a backslash, and ~
    r"[!#-\[\]-}](?:[ !#-\[\]-}]{0,126}[!#-\[\]-}])?"
).fullmatch
_FORMS: Final = '{"auto": true} or {"type", "valueStringEncoded", "useAutoValue"}'
_INVISIBLE: Final = re.compile(  # what isprintable() lets pass, and no eye sees
    "[\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\ufe00-\ufe0f\U000e0100-\U000e01ef]"
)
_REPR: Final = reprlib.Repr()  # bounded in depth and in length, whatever a row nests
_REPR.maxother = _REPR.maxstring = GOT_LIMIT


class Fault(NamedTuple):
    """A problem before it knows its row: the last four fields of a ``Problem``."""

    column: str
    expected: str
    got: object
    message: str


class Unfit(Exception):
    """A value can't be what it stands for.

    Its arguments are what would have been right, and one sentence that says what is wrong and
    what to do.
    """

    def fault(self, column: str, got: object) -> Fault:
        """Return the fault of the column that holds the value."""
        expected, message = self.args
        return Fault(column, expected, got, message)


class Number(str):
    """A JSON number as it was written, since neither int nor float is sure to hold it."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class RowRules:
    """How rows are read.

    Attributes:
        file: what problems name as their file, printable.
        job_id: GUID for rows that name no job, kept in lower case, or None.
        target: for rows that name none.
        is_batch_output_allowed: the rows are corrections: what results wrote beside them is
            passed over, and a key may hold ``~``.

    Raises:
        ConfigurationError: ``job_id`` is no GUID, or ``target`` no target's name.
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
                hint="deslaunch jobs lists the jobs' GUIDs, deslaunch targets the targets",
            ) from exc

        object.__setattr__(self, "job_id", job_id)

    def invalid(self, faults: Iterable[Fault], number: int, line: int) -> InvalidRow:
        """Return the row, or the file, of which nothing else is known than what is wrong."""
        problems = problems_of(faults, self.file, number, line)
        return InvalidRow(number, line, None, self.target, "", problems)


def problems_of(faults: Iterable[Fault], file: str, number: int, line: int) -> tuple[Problem, ...]:
    """Return faults as problems of a row."""
    return tuple(
        Problem(file, line, number, show(column), expected, show(got), printable(message))
        for column, expected, got, message in faults
    )


class Groups:
    """Problems or warnings, told once for all rows that have the same in the same column.

    Args:
        file: the manifest as it was named, for warnings.
        limit: how many different ones are kept at most.
    """

    def __init__(self, file: str, limit: int | None = None) -> None:
        self.file = file
        self._limit = limit
        self._found: dict[tuple[str, str], ProblemGroup] = {}

    def __iter__(self) -> Iterator[ProblemGroup]:
        return iter(self._found.values())

    def add(self, problem: Problem) -> None:
        """Count a problem; the first of its group stays."""
        first, known = self._found.get(problem.group_key, (problem, 0))

        if known or len(self._found) != self._limit:
            self._found[problem.group_key] = ProblemGroup(first, known + 1)

    def warn(self, column: str, message: str, line: int) -> None:
        """Count what may be a mistake and is no error."""
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
    """Return the row of one object of the JSONL form, or all that is wrong with it.

    Args:
        value: a mapping with ``key``, ``target``, ``jobId``, ``parameters`` and ``deslaunch``
            (notes), each optional; or a ``Row``. Besides what JSON has, a parameter may be a
            Decimal (finite), a datetime, a ``JobRunParameterValue`` or ``AUTO``; never a float.
        number: data row, from 1.
        rules: defaults, and what is allowed.
        line: physical line, from 1; 0 for a row of a program.
        read: returns what a parameter's value stands for, or raises ``Unfit``; default:
            :func:`read_value`.
        faults: what is known to be wrong already.
    """
    line = line or number

    if isinstance(value, Row):
        value = _object_of(value)

    if not isinstance(value, _OBJECTS):
        message = 'a row is one object in one line: {"jobId": "…", "parameters": {…}}'
        return rules.invalid([Fault("", "one object", value, message)], number, line)

    found = [*faults, *(_unknown_member(name) for name in value if name not in _ROW_NAMES)]
    notes = _read_notes(value.get(NOTES, {}), rules, found)
    values = _read_values(value.get("parameters", {}), "parameters", read or read_value, found)
    key, target, job_id = _read_members(value, values, rules, found)
    parameters, types = _split(values)
    row = Row(number, line, key, target or rules.target, job_id or "", parameters, notes, types)

    if not found:
        return row

    # What is kept must be invalid when it is read again, and so holds whatever is at fault.
    says = UNREAD

    if value.keys() <= {*_ROW_NAMES} and {"key", "target"}.isdisjoint(f.column for f in found):
        says = dump_row(row._replace(job_id=job_id or show(value.get("jobId", "")) or "?"))

    return InvalidRow(*row[:5], problems_of(found, rules.file, number, line), says)


def plain_row(
    said: Mapping[str, str],
    parameters: Mapping[str, str],
    number: int,
    rules: RowRules,
    line: int,
    types: tuple[int, ...] = (),
) -> Row | None:
    """Return the row of values that need no second look; None where its names do.

    Args:
        said: key, target and jobId, each optional.
        parameters: texts without a NUL or a lone surrogate.
        number: data row, from 1.
        rules: defaults.
        line: physical line, from 1.
        types: what the row declares of all parameters, or of none.
    """
    key, target = said.get("key"), said.get("target")
    job_id = lower_guid(said["jobId"]) if "jobId" in said else rules.job_id
    is_key_plain = key is None or _is_plain_name(key)

    if job_id is None or not is_key_plain or not (target is None or _is_plain_name(target)):
        return None

    return Row(number, line, key, target or rules.target, job_id, parameters, {}, types)


def _unknown_member(name: object) -> Fault:
    folded = {known.lower(): known for known in _ROW_NAMES}
    near = get_close_matches(str(name)[:16].strip().lower(), folded, n=1, cutoff=0.7)
    advice = f"did you mean {folded[near[0]]}?" if near else 'parameters belong into "parameters"'
    return Fault(str(name), ", ".join(_ROW_NAMES), name, f"a row has no such member; {advice}")


def _read_members(
    said: Mapping[str, object], parameters: Iterable[str], rules: RowRules, faults: list[Fault]
) -> Iterable[str | None]:
    """Return the row's key, target and jobId; None for one that can't be read."""
    members: dict[str, str | None] = {"key": None, "target": rules.target, "jobId": rules.job_id}

    for name in RESERVED:
        if name in said:
            try:
                members[name] = _read_name(name, said[name], rules)
            except Unfit as exc:
                faults.append(exc.fault(name, said[name]))
                members[name] = None

    if members["jobId"] is None and "jobId" not in said:
        near = next((name for name in parameters if meant_member(name) == "jobId"), None)
        advice = "" if near is None else f"; did you mean jobId by the column {show(near)}?"
        message = f"the row names no job; add jobId or pass --job-id{advice}"
        faults.append(Fault("jobId", "a GUID", "", message))

    return members.values()


def meant_member(name: str) -> str | None:
    """Return the reserved column that is called so but for case, blanks, ``-`` and ``_``."""
    folded = re.sub(r"[-_\s]", "", name).lower()
    return next((member for member in RESERVED if member.lower() == folded), None)


def _read_name(member: str, value: object, rules: RowRules) -> str:
    """Return a name that is what an eye sees of it, never trimmed, or a jobId in lower case.

    Raises:
        Unfit: no string, empty, over the member's limit, with blanks at its ends or invisible
            characters in it; a key with the mark of repeated ones; a jobId that is no GUID.
    """
    if member == "jobId":
        return _read_job_id(value)

    what, limit = f"a {member}", MAX_NAME[member]

    if not isinstance(value, str) or not value or isinstance(value, Number):
        raise Unfit("a string", f"{what} is a string that is not empty; fix it or leave it out")

    if len(value) > limit:
        raise Unfit(f"at most {limit} characters", f"{what} has at most {limit} characters")

    if odd := next((c for c in value if not c.isprintable() or _INVISIBLE.match(c)), None):
        message = f"{what} holds {name_character(odd)}, which can't be seen; remove it"
        raise Unfit("visible characters", message)

    if value[0] == " " or value[-1] == " ":
        message = f"{what} begins or ends with a blank ({name_character(' ')}); remove it"
        raise Unfit("no blank at either end", message)

    if member == "key" and REPEAT_MARK in value and not rules.is_batch_output_allowed:
        message = f"{REPEAT_MARK} is kept for repeated rows; write the key without it"
        raise Unfit(f"a key without {REPEAT_MARK}", message)

    return str.__str__(value)


def _read_job_id(value: object) -> str:
    text = value if isinstance(value, str) else ""

    if job_id := lower_guid(text):
        return job_id

    advice = odd_character(text) or "copy it from the output of deslaunch jobs"
    raise Unfit("a GUID", f"jobId is a GUID, 8-4-4-4-12 hex digits, not {show(value)!r}: {advice}")


@lru_cache(maxsize=1024)  # a manifest has many rows and few jobs
def lower_guid(text: str) -> str | None:
    """Return a GUID in lower case; None for any other text."""
    return text.lower() if is_guid(text) else None


def odd_character(text: str) -> str:
    """Return what to do about the first character that only looks right, or ``""``.

    Meant for texts that consist of ASCII characters: numbers, times, GUIDs.
    """
    odd = next((c for c in text.strip() if not " " <= c < "\x7f"), None)
    return "" if odd is None else f"it holds {name_character(odd)}; type that character anew"


def name_character(character: str) -> str:
    """Return a character's number and name, such as ``U+2212 MINUS SIGN``."""
    name = unicodedata.name(character, "") or ("control character" if character < " " else "")
    return f"U+{ord(character):04X} {name}".rstrip()


def _read_values(
    said: object, member: str, read: Callable[[object], Any], faults: list[Fault]
) -> dict[str, Any]:
    """Return what the values of a member stand for, and what is kept of those that are none."""
    if not isinstance(said, _OBJECTS):
        message = f'{member} is an object: {{"name": value}}; fix it or leave it out'
        faults.append(Fault(member, "an object", said, message))
        return {member: _unread(said)}

    values: dict[str, Any] = {}

    for name, value in said.items():
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
        raise Unfit("a name", "a name is a string that is not empty")

    found = read(value)

    if NO_TEXT.search(f"{name}{found.value if isinstance(found, JobRunParameterValue) else found}"):
        raise Unfit(*UNCLEAN)

    return found


def _split(values: Mapping[str, Any]) -> tuple[dict[str, ParameterValue], tuple[int | None, ...]]:
    """Return values without the types that a row declares for them, and those."""
    pairs = [v if isinstance(v, JobRunParameterValue) else (None, v) for v in values.values()]
    types = tuple(number for number, _ in pairs)
    plain = {name: text for name, (_, text) in zip(values, pairs, strict=True)}
    return plain, types if {*types} - {None} else ()


def _unread(value: object) -> dict[str, str]:
    """Return what is kept of a value that could not be read, which no reader takes."""
    return {"invalid": printable(value) if isinstance(value, str) else show(value)}


def _read_notes(said: object, rules: RowRules, faults: list[Fault]) -> Mapping[str, str]:
    """Return the notes; what results wrote is passed over in corrections, and else refused."""
    if isinstance(said, _OBJECTS):
        results = [name for name in said if str(name).lower() in RESULT_NAMES]
        said = {n: v for n, v in said.items() if n not in results and v not in (None, "")}

        if results and not rules.is_batch_output_allowed:
            faults.append(fault_of_results(f"{NOTES}.{results[0]}"))

    return _read_values(said, NOTES, _read_note, faults) if said else {}


def _read_note(value: object) -> str:
    text = read_value(value)

    if not isinstance(text, str):
        raise Unfit("a text", "a note is a text; quote it")

    return text


def fault_of_results(name: str) -> Fault:
    """Return the fault of a column that results write: no row is in two batches by accident."""
    message = (
        f"{show(name)} is what 'deslaunch results --with-manifest' writes, so these rows are "
        "in a batch already: go on with it by deslaunch resume LEDGER --corrections FILE"
    )
    return Fault(name, "a manifest", name, message)


def read_value(value: Any) -> ParameterValue | JobRunParameterValue:
    """Return what a row's value stands for.

    Raises:
        Unfit: it is none of the documented forms, or contradicts itself.
    """
    if isinstance(value, str):
        return str.__str__(value)

    if isinstance(value, JobRunParameterValue):
        value = wire.parameter_value(*value)

    if isinstance(value, _OBJECTS):
        return _value_of_object(value)

    if isinstance(value, float | Decimal) and not Decimal(value).is_finite():
        raise Unfit("a number", "NaN and Infinity are no values; write a number or null")

    if isinstance(value, float):
        raise Unfit("Decimal, int or str", "a float is not exact; pass a Decimal or a str")

    if isinstance(value, Decimal):
        _, digits, exponent = value.as_tuple()

        if len(digits) + abs(int(exponent)) > _MAX_DIGITS:
            message = f"the number has over {_MAX_DIGITS:,} digits when written out"
            raise Unfit("a number", message)

    try:
        text: str | None = wire.encode_value("", value)["valueStringEncoded"]
    except ValueError as exc:  # more digits than Python writes
        raise Unfit("a number", "the number is too long; pass it as a str") from exc
    except TypeError as exc:
        message = "this is no parameter value; write a string, number, bool or null"
        raise Unfit("a string, number, true, false, null or an object", message) from exc

    return AUTO if value is AUTO else text


def _value_of_object(value: Mapping[str, object]) -> ParameterValue | JobRunParameterValue:
    if not _VALUE_NAMES.issuperset(value):
        if value.keys() == {"auto"} and value["auto"] is True:
            return AUTO

        raise Unfit(_FORMS, f"an object as a value is {_FORMS}")

    number, text = value.get("type"), value.get("valueStringEncoded")
    auto = value.get("useAutoValue", False)

    if not (number is None or type(number) is int):
        why = "type is an integer or null"
    elif not (auto or "valueStringEncoded" in value):
        why = "valueStringEncoded is missing; write it, or null"
    elif not (text is None or isinstance(text, str)) or isinstance(text, Number):
        why = "valueStringEncoded is a string, whatever the type, or null; quote it"
    elif not isinstance(auto, bool):
        why = "useAutoValue is true or false"
    elif auto and text is not None:
        why = "with useAutoValue valueStringEncoded must be null; leave one of them out"
    else:
        return JobRunParameterValue(number, AUTO if auto else text)

    raise Unfit(_FORMS, why)


def dump_row(row: Row) -> str:
    """Return what a row says as one JSONL row, in which nothing is lost."""
    return orjson.dumps(_object_of(row)).decode()


def _object_of(row: Row) -> dict[str, Any]:
    """Return what a row says in the form of JSONL."""
    parameters: Mapping[str, object] = row.parameters

    if row.types or AUTO in parameters.values():
        types = row.types or (None,) * len(parameters)
        parameters = {
            name: value
            if number is None and value is not AUTO
            else wire.parameter_value(number, value)
            for number, (name, value) in zip(types, row.parameters.items(), strict=True)
        }

    said: dict[str, Any] = {} if row.key is None else {"key": row.key}
    said |= {"target": row.target, "jobId": row.job_id, "parameters": parameters}
    return said | {NOTES: row.notes} if row.notes else said


def load_row(says: str, number: int, line: int, file: str) -> Row | InvalidRow:
    """Return the row that :func:`dump_row` wrote; an invalid one is invalid again.

    Args:
        says: as the ledger keeps it.
        number: data row, from 1.
        line: physical line, from 1.
        file: what problems name as their file.
    """
    rules = RowRules(file, is_batch_output_allowed=True)
    return row_from_object(orjson.loads(says), number, rules, line)


def row_digest(row: Row) -> str:
    r"""Return the digest of what a row says, 32 lower-case hex digits: its key where it has none.

    The recipe is a contract: others recompute it to find a row in a ledger.

    1. Take the array ``[target, jobId, parameters]``: ``jobId`` in lower case, ``parameters`` an
       array of ``[name, value]`` sorted by name, by code point. A value is its text as a string,
       ``null``, or ``true`` for the auto value. Key, notes and a declared type are left out, and
       so is all that a schema adds.
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
    """Return a value for a person: cut, on one line, and fit for any terminal and any encoder."""
    if value is None or isinstance(value, bool):
        return orjson.dumps(value).decode()

    try:
        text = value if isinstance(value, str | Decimal) else _REPR.repr(value)
    except ValueError:  # an integer with more digits than Python writes
        text = type(value).__name__

    return printable(quote(str(text)))
