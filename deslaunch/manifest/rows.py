"""What one row may say: its identity, its values, and what is wrong with it.

Pure. An object of the JSONL form, or the cells of a CSV record, give a ``Row`` or the
``RowProblem``s that keep it from being one. What a row says is never rounded: no number of it
passes through a float.
"""

from __future__ import annotations

import difflib
import math
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from functools import lru_cache, singledispatch
from types import NoneType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from deslaunch.errors import ConfigurationError
from deslaunch.keys import REPEAT_MARK
from deslaunch.model import (
    AUTO,
    DEFAULT_TARGET,
    GOT_LIMIT,
    Auto,
    Row,
    RowProblem,
    TypedValue,
    shown,
)
from deslaunch.wire import is_guid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from deslaunch.model import ParameterValue

Item = Row | tuple[RowProblem, ...]
"""What one data row gives: itself, or at least one reason why it can't be started."""

MAX_KEY: Final = 256
MAX_TARGET: Final = 128
"""Characters."""

_MAX_DIGITS: Final = 1000  # a Decimal of a few bytes can stand for gigabytes of zeros
_ZERO: Final = timedelta(0)
_ROW_KEYS: Final = frozenset({"key", "target", "jobId", "parameters"})
_VALUE_KEYS: Final = frozenset({"type", "valueStringEncoded", "useAutoValue"})

_REPR: Final = reprlib.Repr()  # bounded in depth and in length, whatever a row nests
_REPR.maxother = _REPR.maxstring = GOT_LIMIT

_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_NO_TEXT: Final = re.compile("[\x00\ud800-\udfff]")

TEXT: Final = "text without NUL or lone surrogate"
UNCLEAN: Final = "the text holds a NUL or a lone surrogate; remove it"
"""What is expected of every text, and what is said of one that is not so."""

_FINITE: Final = "a finite number"
_NOT_FINITE: Final = "NaN and Infinity are no values; write a number or null"
_VALUE: Final = "a string, number, true, false, null or an object"
_VALUE_FORMS: Final = '{"auto": true} or {"type", "valueStringEncoded", "useAutoValue"}'


@dataclass(frozen=True, slots=True)
class RowDefaults:
    """What rows mean that leave something out.

    Attributes:
        job_id: GUID for rows that name no job, kept in lower case, or None.
        target: target for rows that name none, or None for ``"default"``.

    Raises:
        ConfigurationError: ``job_id`` is no GUID, or ``target`` no target's name.
    """

    job_id: str | None = None
    target: str | None = None

    def __post_init__(self) -> None:
        try:
            job_id = self.job_id if self.job_id is None else _job_id(self.job_id)
            target = self.target if self.target is None else _target(self.target)
        except Unfit as exc:
            raise ConfigurationError(
                f"--job-id or --target: {exc.message}",
                hint="'deslaunch jobs' shows the jobs' GUIDs, 'deslaunch targets' the targets",
            ) from exc

        object.__setattr__(self, "job_id", job_id)
        object.__setattr__(self, "target", target)


class Fault(NamedTuple):
    """A problem before it knows its row: the last four fields of a ``RowProblem``."""

    column: str
    expected: str
    got: object
    message: str


class Unfit(Exception):
    """A value can't be what it stands for.

    Attributes:
        expected: what would have been right.
        message: one sentence that says what is wrong and what to do.
    """

    def __init__(self, expected: str, message: str) -> None:
        super().__init__(message)
        self.expected = expected
        self.message = message


def problems(
    faults: Iterable[Fault], *, file: str, line: int, number: int
) -> tuple[RowProblem, ...]:
    """Return the faults as problems of one row.

    Args:
        faults: what is wrong with it.
        file: what the problems name as their file.
        line: physical line, from 1.
        number: data row, from 1; 0 where the faults precede all rows.
    """
    return tuple(
        RowProblem(
            file,
            line,
            number,
            _shown(fault.column),
            fault.expected,
            _shown(fault.got),
            fault.message,
        )
        for fault in faults
    )


@dataclass(frozen=True, slots=True)
class Number:
    """A JSON number as it was written, since neither int nor float is sure to hold it."""

    text: str

    def __str__(self) -> str:
        return self.text


def row_from_object(
    value: object, *, number: int, line: int, file: str, defaults: RowDefaults
) -> Item:
    """Return the row of one object of the JSONL form.

    Args:
        value: a mapping with ``key``, ``target``, ``jobId`` and ``parameters``, each optional.
            Besides what JSON has, a parameter may be a Decimal (finite), a datetime, a
            ``TypedValue`` or ``AUTO``; never a float.
        number: data row, from 1.
        line: physical line, from 1; the row's number where there is no file.
        file: what problems name as their file.
        defaults: for what the object leaves out.

    Returns:
        The row, or everything that is wrong with it.
    """
    faults: list[Fault] = []
    row = row_of(value, number, line, defaults, faults)
    return row or problems(faults, file=file, line=line, number=number)


def row_of(
    value: object, number: int, line: int, defaults: RowDefaults, faults: list[Fault]
) -> Row | None:
    """Return the row of an object, or None where there are faults.

    Args:
        value: as for :func:`row_from_object`; its numbers may be :class:`Number`.
        number: data row, from 1.
        line: physical line, from 1.
        defaults: for what the object leaves out.
        faults: what is known to be wrong already; gets what else is.
    """
    if not isinstance(value, (dict, Mapping)):
        message = 'a row is one object in one line: {"jobId": "…", "parameters": {…}}'
        faults.append(Fault("", "one object", value, message))
        return None

    if not value.keys() <= _ROW_KEYS:
        faults.extend(_unknown_name(name) for name in value if name not in _ROW_KEYS)

    key, target, job_id = identity(value, defaults, faults)
    parameters = _parameters(value.get("parameters", {}), faults)
    return None if faults else Row(number, line, key, target, job_id, parameters)


def plain_row(value: object, number: int, line: int, defaults: RowDefaults) -> Row | None:
    """Return what :func:`row_of` returns, in less time, for an object whose texts are clean.

    Args:
        value: decoded JSON: plain values, and no NUL or lone surrogate in any text. Its
            parameters become the row's own.
        number: data row, from 1.
        line: physical line, from 1.
        defaults: for what the object leaves out.

    Returns:
        The row, or None where anything is wrong with it.
    """
    if type(value) is not dict or not value.keys() <= _ROW_KEYS:
        return None

    parameters = value.get("parameters", {})

    if type(parameters) is not dict or "" in parameters:
        return None

    try:
        for name, said in parameters.items():
            if type(said) is not str:
                parameters[name] = _PLAIN.get(type(said), _value)(said)

        return Row(number, line, *plain_identity(value, defaults), parameters)
    except Unfit:
        return None


def plain_identity(
    said: Mapping[str, object], defaults: RowDefaults
) -> tuple[str | None, str, str]:
    """Return key, target and jobId, as :func:`identity` does.

    Raises:
        Unfit: one of them is wrong, or no job is named; nothing says which.
    """
    key = _key(said["key"]) if "key" in said else None
    target = _target(said["target"]) if "target" in said else defaults.target
    job_id = _job_id(said["jobId"]) if "jobId" in said else defaults.job_id

    if job_id is None:
        raise Unfit("a GUID", "the row names no job")

    return key, target or DEFAULT_TARGET, job_id


def no_job(near: str | None = None) -> Fault:
    """Return the fault of a row that names no job.

    Args:
        near: a column that may have been meant to name it.
    """
    advice = f"; did you mean jobId by the column {_shown(near)}?" if near else ""
    return Fault("jobId", "a GUID", "", f"the row names no job; add jobId or pass --job-id{advice}")


_NO_JOB: Final = no_job()


def identity(
    said: Mapping[str, object],
    defaults: RowDefaults,
    faults: list[Fault],
    without_job: Fault = _NO_JOB,
) -> tuple[str | None, str, str]:
    """Return key, target and jobId.

    Args:
        said: what the row says of them, and maybe more.
        defaults: for what it leaves out.
        faults: gets what is wrong; then what is returned means nothing.
        without_job: the fault of a row that names no job.
    """
    key = _field(said, "key", _key, faults) if "key" in said else None
    target = _field(said, "target", _target, faults) if "target" in said else defaults.target
    job_id = _field(said, "jobId", _job_id, faults) if "jobId" in said else defaults.job_id

    if job_id is None:
        faults.append(without_job)

    return key, target or DEFAULT_TARGET, job_id or ""


def _field(
    said: Mapping[str, object], name: str, read: Callable[[object], str], faults: list[Fault]
) -> str:
    try:
        return read(said[name])
    except Unfit as exc:
        faults.append(Fault(name, exc.expected, said[name], exc.message))
        return ""


def _key(value: object) -> str:
    key = _name(value, "a key", MAX_KEY)

    if REPEAT_MARK in key:
        message = f"{REPEAT_MARK} is kept for repeated rows; write the key without it"
        raise Unfit(f"a key without {REPEAT_MARK}", message)

    return key


def _target(value: object) -> str:
    return _name(value, "a target", MAX_TARGET)


def _name(value: object, what: str, limit: int) -> str:
    """Return a name that can stand in any message.

    Raises:
        Unfit: no string, empty, over ``limit`` characters, or with control characters.
    """
    if not isinstance(value, str) or not value:
        raise Unfit("a string", f"{what} is a string that is not empty; mend it or leave it out")

    if len(value) > limit:
        raise Unfit(f"at most {limit} characters", f"{what} has at most {limit} characters")

    if not value.isprintable() and _CONTROL.search(value):
        raise Unfit("no control characters", f"{what} holds no control characters; remove them")

    return str.__str__(value)


@lru_cache(maxsize=1024)  # a manifest has many rows and few jobs
def _lower_guid(text: str) -> str | None:
    return text.lower() if is_guid(text) else None


def _job_id(value: object) -> str:
    job_id = _lower_guid(value) if isinstance(value, str) else None

    if job_id is None:
        got = _shown(value)
        message = f"jobId is a GUID, 8-4-4-4-12 hex digits, not {got!r}; copy it from DES"
        raise Unfit("a GUID", message)

    return job_id


def _parameters(said: object, faults: list[Fault]) -> dict[str, ParameterValue]:
    """Return the parameters of an object; note those that are unfit."""
    values: dict[str, ParameterValue] = {}

    if not isinstance(said, (dict, Mapping)):
        message = 'parameters is an object: {"name": value}; mend it or leave it out'
        faults.append(Fault("parameters", "an object", said, message))
        return values

    for name, value in said.items():
        try:
            values[_parameter_name(name)] = _value(value)
        except Unfit as exc:
            faults.append(Fault(str(name), exc.expected, value, exc.message))

    return values


def _parameter_name(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise Unfit("a name", "a parameter's name is a string that is not empty")

    return _clean(value)


def _clean(text: str) -> str:
    """Return ``text`` as a plain str.

    Raises:
        Unfit: it holds a NUL or a lone surrogate, which no JSON in UTF-8 can carry safely.
    """
    if _NO_TEXT.search(text):
        raise Unfit(TEXT, UNCLEAN)

    return str.__str__(text)


@singledispatch
def _value(value: object) -> ParameterValue:  # noqa: ARG001  # its type is all that is looked at
    """Return what a row's value stands for.

    Raises:
        Unfit: it is none of the documented forms, or contradicts itself.
    """
    raise Unfit(_VALUE, "this is no parameter value; write a string, number, bool or null")


@_value.register(NoneType)
@_value.register(Auto)
def _as_it_is(value: Auto | None) -> ParameterValue:
    return value


_value.register(str)(_clean)


@_value.register(bool)
def _of_bool(value: bool) -> ParameterValue:  # noqa: FBT001  # the value itself
    return "true" if value else "false"


@_value.register(int)
def _of_int(value: int) -> ParameterValue:
    try:
        return int.__repr__(value)
    except ValueError as exc:  # more digits than Python writes
        raise Unfit("a number", "the number is too long; pass it as a str") from exc


@_value.register(Number)
def _of_number(value: Number) -> ParameterValue:
    return value.text


@_value.register(float)
def _of_float(value: float) -> ParameterValue:
    if not math.isfinite(value):
        raise Unfit(_FINITE, _NOT_FINITE)

    raise Unfit("Decimal, int or str", "a float is not exact; pass a Decimal, an int or a str")


@_value.register(Decimal)
def _of_decimal(value: Decimal) -> ParameterValue:
    if not value.is_finite():
        raise Unfit(_FINITE, _NOT_FINITE)

    _, digits, exponent = value.as_tuple()

    if len(digits) + abs(int(exponent)) > _MAX_DIGITS:
        raise Unfit("a number", f"the number has over {_MAX_DIGITS:,} digits when written out")

    return format(value, "f")


@_value.register(datetime)
def _of_datetime(value: datetime) -> ParameterValue:
    text = value.isoformat()
    return f"{text.removesuffix('+00:00')}Z" if value.utcoffset() == _ZERO else text


@_value.register(TypedValue)
def _of_typed_value(value: TypedValue) -> ParameterValue:
    auto = isinstance(value.value, Auto)
    return _typed(value.type, None if auto else value.value, auto=auto)


@_value.register(Mapping)
def _of_object(value: Mapping[str, object]) -> ParameterValue:
    if value.keys() == {"auto"} and value["auto"] is True:
        return AUTO

    if not value.keys() <= _VALUE_KEYS:
        raise Unfit(_VALUE_FORMS, f"an object as a value is {_VALUE_FORMS}")

    auto = value.get("useAutoValue", False)

    if not (auto or "valueStringEncoded" in value):
        raise Unfit("valueStringEncoded", "valueStringEncoded is missing; write it, or null")

    return _typed(value.get("type"), value.get("valueStringEncoded"), auto=auto)


def _typed(type_number: object, text: object, *, auto: object) -> TypedValue:
    """Return a JobRunParameterValue.

    Raises:
        Unfit: a member has another type, or the auto value comes with a text.
    """
    if not (type_number is None or type(type_number) is int):
        raise Unfit("type: integer or null", "type is an integer or null")

    if not isinstance(text, str | None):
        message = "valueStringEncoded is a string, whatever the type, or null; quote it"
        raise Unfit("valueStringEncoded: string or null", message)

    if not isinstance(auto, bool):
        raise Unfit("useAutoValue: true or false", "useAutoValue is true or false")

    if auto and text is not None:
        message = "with useAutoValue valueStringEncoded must be null; leave one of them out"
        raise Unfit("useAutoValue or valueStringEncoded", message)

    return TypedValue(type_number, AUTO if auto else text if text is None else _clean(text))


_PLAIN: Final[Mapping[type, Callable[[Any], ParameterValue]]] = {
    int: str,
    bool: {True: "true", False: "false"}.get,
    NoneType: {None: None}.get,
}
"""What ``_value`` makes of plain JSON, without its checks."""


def _unknown_name(name: object) -> Fault:
    near = _near_key(name) if isinstance(name, str) else None
    advice = f"did you mean {near}?" if near else 'parameters belong into "parameters"'
    return Fault(str(name), ", ".join(sorted(_ROW_KEYS)), name, f"a row has no such key; {advice}")


def _near_key(name: str) -> str | None:
    spellings = {key.lower(): key for key in sorted(_ROW_KEYS)}
    near = difflib.get_close_matches(name[:16].lower(), spellings, n=1, cutoff=0.7)
    return spellings[near[0]] if near else None


def _shown(value: object) -> str:
    """Return ``value`` cut, on one line, and fit for any terminal and any encoder."""
    if isinstance(value, bool | None):
        return {True: "true", False: "false", None: "null"}[value]

    cut = shown(value if isinstance(value, str) else _represented(value))
    return cut if cut.isprintable() else shown(repr(cut)[1:-1])


def _represented(value: object) -> str:
    try:
        return str(value) if isinstance(value, Number | Decimal) else _REPR.repr(value)
    except ValueError:  # an integer with more digits than Python writes
        return type(value).__name__
