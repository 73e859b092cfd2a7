"""A job's JobRunParameters, compiled once: ``Row`` in, ``StartRequest`` or ``RowProblem``s out.

Two paths lead to the same bytes. The *plain* path has one pattern for each set of parameters
that rows come with: it matches a row's texts where all are valid and free of anything that JSON
escapes, and puts them into a template; whatever it does not know it declines. The *careful*
path, which takes what was declined, knows every rule, names every problem and encodes through
:mod:`deslaunch.wire`. A test holds the one's bytes against the other's.

Rules that come from DES: a required parameter must be sent, if only as null; null and the auto
value are allowed where the template says so; a value's type is the template's. What the texts
of a type look like is documented for none but datetime ("ISO 8601"); the forms accepted here
are those that every reader of the type agrees on:

========  ================================================================================
integer   ``[+-]?[0-9]+`` within 64 bits, signed
decimal   ``[+-]?[0-9]+(.[0-9]+)?``: any number of digits, never through a float
datetime  ``2026-01-31``, or ``2026-01-31T06:16:47`` with an optional fraction of 1 to 9 digits
          and an optional zone, ``Z`` or ``±hh:mm`` (up to 23:59); the day must exist. Without
          a zone it passes with a warning; a date alone needs none
string    any text that UTF-8 can carry
other     not checked; one warning per parameter
========  ================================================================================

Texts are sent as they came, to the digit. Pure: no I/O, no clock.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from difflib import get_close_matches
from enum import StrEnum
from functools import lru_cache
from operator import ne
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from deslaunch import wire
from deslaunch.keys import SEPARATOR
from deslaunch.model import AUTO, RowProblem, StartRequest, TypedValue, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from deslaunch.model import Job, JobParameter, ParameterValue, Row

LISTED: Final = 8
"""Names of parameters or jobs that one message lists."""

_INTEGER: Final = re.compile(r"[+-]?[0-9]+")
_DECIMAL: Final = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?")
_ZONE: Final = r"(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_TIME: Final = r"T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?"
_DATETIME: Final = re.compile(
    rf"(?P<year>[0-9]{{4}})-(?P<month>[0-9]{{2}})-(?P<day>[0-9]{{2}})"
    rf"(?P<time>{_TIME}(?P<zone>{_ZONE})?)?"
)

# What the plain path takes: a subset of what is valid, decided by the pattern alone.
_PLAIN_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,18}")
_DAY: Final = (
    r"(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])"
    r"|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31)"
)
_PLAIN_DATETIME: Final = re.compile(rf"[12][0-9]{{3}}-{_DAY}(?:{_TIME}{_ZONE})?")
_PLAIN_STRING: Final = re.compile(r'[^"\\\x00-\x1f\ud800-\udfff]*')

_SHAPES: Final = 256  # rows of any further shape are looked at carefully

_INT64_MAX: Final = 2**63 - 1
_INT64_DIGITS: Final = 19
_GUID_SLIPS: Final = 3
_QUOTED: Final = 40


class WarningKind(StrEnum):
    """Why a value that is sent may not mean what its author meant."""

    NAIVE = "naive"
    UNCHECKED = "unchecked"


@dataclass(frozen=True, slots=True)
class SchemaWarning:
    """One doubt about one parameter, for all rows that it was seen in.

    Attributes:
        job_id: GUID, lower case.
        parameter: the parameter's name.
        kind: what the doubt is.
        message: one sentence that says what is doubtful and what to do.
        count: values seen, at least 1.
        file: the manifest of the first value.
        line: physical line of the first value, from 1.
    """

    job_id: str
    parameter: str
    kind: WarningKind
    message: str
    count: int
    file: str
    line: int

    def __str__(self) -> str:
        values = "1 value" if self.count == 1 else f"{self.count:,} values, the first"
        return f"{self.parameter}: {self.message} ({values} in {self.file}:{self.line})"


class _Kind(NamedTuple):
    """What is known of one JobRunParameterType.

    Attributes:
        noun: what a value of it is called, with its article.
        plain: full matches are valid, need no warning and stand in JSON as they are.
        advice: what to do about a text, or ``""`` for a valid one.
    """

    noun: str
    plain: re.Pattern[str]
    advice: Callable[[str], str]


class _Fault(NamedTuple):
    """What is wrong with one parameter of one row."""

    expected: str
    got: str
    message: str


def _advice_on_integer(text: str) -> str:
    if _INTEGER.fullmatch(text) is None:
        return "write digits only, such as 1200"

    # Zeros first: int() refuses a text of more than 4,300 digits.
    digits = text.lstrip("+-").lstrip("0") or "0"
    limit = _INT64_MAX + text.startswith("-")

    if len(digits) <= _INT64_DIGITS and int(digits) <= limit:
        return ""

    return f"it must lie between {-_INT64_MAX - 1} and {_INT64_MAX}"


def _advice_on_decimal(text: str) -> str:
    if _DECIMAL.fullmatch(text) is not None:
        return ""

    return "write digits with a point, such as 12.50, no exponent and no thousands separators"


def _advice_on_datetime(text: str) -> str:
    match = _DATETIME.fullmatch(text)

    if match is None:
        return "write 2026-01-31 or 2026-01-31T06:16:47Z"

    try:
        date(int(match["year"]), int(match["month"]), int(match["day"]))
    except ValueError:
        return "there is no such day in the calendar"

    return ""


def _advice_on_string(text: str) -> str:
    return "" if _encodable(text) == text else "half of a surrogate pair can't be sent"


_KINDS: Final[Mapping[int | None, _Kind]] = {
    wire.STRING: _Kind("a text", _PLAIN_STRING, _advice_on_string),
    wire.INTEGER: _Kind("an integer", _PLAIN_INTEGER, _advice_on_integer),
    wire.DECIMAL: _Kind("a decimal", _DECIMAL, _advice_on_decimal),
    wire.DATETIME: _Kind("a datetime", _PLAIN_DATETIME, _advice_on_datetime),
}


class _Shape(NamedTuple):
    """The plain path for rows with certain parameters in a certain order.

    Attributes:
        pattern: matches their texts, joined by the separator, with a group for each.
        template: the body, with ``%s`` for each text.
        types: their JobRunParameterTypes.
    """

    pattern: re.Pattern[str]
    template: str
    types: tuple[int | None, ...]

    def body(self, values: Collection[ParameterValue]) -> bytes | None:
        """Return the body; None where a value needs care."""
        try:
            texts = SEPARATOR.join(values)  # type: ignore[arg-type]  # a wrong one is caught
        except TypeError:
            return self._body_of_typed(values)

        match = self.pattern.fullmatch(texts)
        return None if match is None else (self.template % match.groups()).encode()

    def _body_of_typed(self, values: Collection[ParameterValue]) -> bytes | None:
        """Return the body of typed values, where each has the schema's type or none."""
        texts = [
            value.value if isinstance(value, TypedValue) and value.type in (None, number) else value
            for value, number in zip(values, self.types, strict=True)
        ]
        return self.body(texts) if all(isinstance(text, str) for text in texts) else None


class JobSchema:
    """The rules of one job, ready to be applied to many rows.

    Attributes:
        job: what was compiled; compare it to see whether DES's answer has changed.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self._parameters = {parameter.name: parameter for parameter in job.parameters}
        self._names = tuple(self._parameters)
        self._shapes: dict[tuple[str, ...], _Shape | None] = {}
        self._warnings: dict[tuple[str, WarningKind], SchemaWarning] = {}
        self._neighbours: Collection[JobSchema] = ()
        self._others: dict[str, tuple[str, ...]] = {}

    def __repr__(self) -> str:
        return f"<JobSchema {self.job.job_id} {self.job.name!r} parameters={list(self._names)}>"

    @property
    def warnings(self) -> tuple[SchemaWarning, ...]:
        """The doubts about all rows seen so far, one per parameter and kind."""
        return tuple(self._warnings.values())

    def meet(self, neighbours: Collection[JobSchema]) -> None:
        """Take the jobs of the same target: a parameter of theirs may tell of a wrong jobId."""
        self._neighbours = neighbours
        self._others.clear()

    def forget_warnings(self) -> None:
        """Count warnings from nothing again: a manifest that is read twice is warned of once."""
        self._warnings.clear()

    def request(
        self, row: Row, *, key: str, digest: str, file: str
    ) -> StartRequest | tuple[RowProblem, ...]:
        """Return the start that a row asks for, or every reason against it.

        Args:
            row: a row of this job; its parameters are sent in its own order.
            key: the row's key, unique in the batch.
            digest: digest of what the row says, 32 hex digits.
            file: the manifest as it was named, for problems and warnings.

        Returns:
            The request, or at least one problem; a parameter has at most one.
        """
        body = self._plain_body(row.parameters)

        if body is None:
            return self._careful_request(row, key, digest, file)

        job_id, auto = self.job.job_id, False
        return StartRequest(key, row.number, row.line, row.target, job_id, digest, body, auto)

    def plain_texts(self, parameters: Mapping[str, ParameterValue]) -> str | None:
        """Return the values, joined by :data:`~deslaunch.keys.SEPARATOR`, where they are fit.

        Returns:
            None where they are not all plain valid texts: a careful look is due.
        """
        shape = self._shape(parameters)

        if shape is None:
            return None

        try:
            texts = SEPARATOR.join(parameters.values())  # type: ignore[arg-type]  # that raises
        except TypeError:
            return None

        return texts if shape.pattern.fullmatch(texts) else None

    def _plain_body(self, parameters: Mapping[str, ParameterValue]) -> bytes | None:
        """Return the body where all values are plain valid texts; None to look carefully."""
        shape = self._shape(parameters)
        return None if shape is None else shape.body(parameters.values())

    def _shape(self, parameters: Mapping[str, ParameterValue]) -> _Shape | None:
        names = tuple(parameters)

        try:
            return self._shapes[names]
        except KeyError:
            return self._new_shape(names)

    def _new_shape(self, names: tuple[str, ...]) -> _Shape | None:
        if len(self._shapes) >= _SHAPES:
            return None

        shape = self._shapes[names] = self._compiled(names)
        return shape

    def _compiled(self, names: tuple[str, ...]) -> _Shape | None:
        """Return the plain path for rows with these parameters; None where there is none."""
        required = {name for name, parameter in self._parameters.items() if parameter.required}
        types = tuple(self._parameters[name].type for name in names if name in self._parameters)
        kinds = [_KINDS[number] for number in types if number in _KINDS]

        if len(kinds) < len(names) or not required.issubset(names):
            return None

        pattern = re.compile(SEPARATOR.join(f"({kind.plain.pattern})" for kind in kinds))
        return _Shape(pattern, _template(self.job.job_id, names, types), types)

    def _careful_request(
        self, row: Row, key: str, digest: str, file: str
    ) -> StartRequest | tuple[RowProblem, ...]:
        values: dict[str, Any] = {}
        problems = list(self._missing(row, file))
        auto = False

        for name, value in row.parameters.items():
            fault = self._fault(name, value)

            if fault is not None:
                problems.append(_problem(row, file, name, fault))
                continue

            parameter, typed = self._parameters[name], _typed(value)
            self._warn(parameter, typed.value, row, file)
            sent_type = typed.type if parameter.type is None else parameter.type
            values[name] = wire.parameter_value(sent_type, typed.value)
            auto = auto or typed.value is AUTO

        if problems:
            return tuple(problems)

        body = wire.start_job_body(self.job.job_id, values)
        return StartRequest(
            key, row.number, row.line, row.target, self.job.job_id, digest, body, auto
        )

    def _missing(self, row: Row, file: str) -> Iterator[RowProblem]:
        for name, parameter in self._parameters.items():
            if parameter.required and name not in row.parameters:
                expected = _expected(parameter)
                message = f"{name} is required and missing: give it {expected}"
                yield _problem(row, file, name, _Fault(expected, "nothing", message))

    def _others_with(self, name: str) -> tuple[str, ...]:
        """Return the labels of the target's other jobs that have this parameter."""
        if name not in self._others:
            jobs = (other.job for other in self._neighbours if name in other._names)
            self._others[name] = tuple(_label(job) for job in jobs)

        return self._others[name]

    def _fault(self, name: str, value: ParameterValue) -> _Fault | None:
        parameter = self._parameters.get(name)

        if parameter is None:
            return _fault_of_name(name, self._names, _label(self.job), self._others_with(name))

        return _fault_of_value(parameter, _typed(value))

    def _warn(self, parameter: JobParameter, value: object, row: Row, file: str) -> None:
        kind = _doubt(parameter, value)

        if kind is None:
            return

        known = self._warnings.get((parameter.name, kind))
        self._warnings[parameter.name, kind] = SchemaWarning(
            job_id=self.job.job_id,
            parameter=parameter.name,
            kind=kind,
            message=_doubtful(parameter, kind),
            count=known.count + 1 if known else 1,
            file=known.file if known else file,
            line=known.line if known else row.line,
        )


class Schemas:
    """The jobs of all targets."""

    def __init__(self) -> None:
        self._targets: dict[str, dict[str, JobSchema]] = {}
        self._unknown: dict[tuple[str, str], _Fault] = {}

    def __repr__(self) -> str:
        counts = {target: len(jobs) for target, jobs in self._targets.items()}
        return f"<Schemas jobs={counts}>"

    def put(self, target: str, jobs: Iterable[Job]) -> frozenset[str]:
        """Take a target's jobs in place of those it had.

        Jobs that are the same as before keep their warnings.

        Returns:
            The jobIds, lower case, of jobs that are new, gone, or declare something else now.
        """
        old = self._targets.get(target, {})
        new = {job.job_id: _kept_or_compiled(old.get(job.job_id), job) for job in jobs}
        self._targets[target] = new
        self._unknown.clear()

        for schema in new.values():
            schema.meet(new.values())

        return frozenset(job for job in old | new if old.get(job) is not new.get(job))

    def find(self, target: str, job_id: str) -> JobSchema | None:
        """Return a job's schema, or None where the target has no such job.

        Args:
            target: the target's name.
            job_id: GUID, lower case.
        """
        jobs = self._targets.get(target)
        return None if jobs is None else jobs.get(job_id)

    def unknown_job(self, row: Row, *, file: str) -> RowProblem:
        """Return the problem of a row whose job its target does not have."""
        place = (row.target, row.job_id)

        if place not in self._unknown:
            self._unknown[place] = self._fault_of_job(row.target, row.job_id)

        return _problem(row, file, "jobId", self._unknown[place])

    @property
    def warnings(self) -> tuple[SchemaWarning, ...]:
        """The warnings of all jobs of all targets."""
        return tuple(warning for schema in self._all() for warning in schema.warnings)

    def forget_warnings(self) -> None:
        """Count the warnings of all jobs from nothing again."""
        for schema in self._all():
            schema.forget_warnings()

    def _all(self) -> Iterator[JobSchema]:
        for jobs in self._targets.values():
            yield from jobs.values()

    def _fault_of_job(self, target: str, job_id: str) -> _Fault:
        jobs = self._targets.get(target, {})
        labels = [f"{job_id} ({schema.job.name})" for job_id, schema in jobs.items()]
        expected = f"a job of target {target}: {_listed(labels)}"
        advice = self._advice_on_job(target, job_id, labels)
        return _Fault(expected, job_id, f"target {target} has no job {job_id}: {advice}")

    def _advice_on_job(self, target: str, job_id: str, labels: list[str]) -> str:
        for near in self._targets.get(target, {}):
            if _slips(near, job_id) <= _GUID_SLIPS:
                return f"did you mean {near}?"

        for other, jobs in self._targets.items():
            if job_id in jobs:
                return f"target {other} has it; name that target in the row"

        if not labels:
            return "it has no jobs at all; see whether its token is for the right organisation"

        return f"its jobs are {_listed(labels)}"


def _kept_or_compiled(schema: JobSchema | None, job: Job) -> JobSchema:
    return schema if schema is not None and schema.job == job else JobSchema(job)


def _template(job_id: str, names: Iterable[str], types: Iterable[int | None]) -> str:
    """Return a body with ``%s`` for each text: encoded by wire, so that no spelling differs."""
    encoded = {
        name: wire.parameter_value(number, SEPARATOR)
        for name, number in zip(names, types, strict=True)
    }
    body = wire.start_job_body(job_id, encoded).decode().replace("%", "%%")
    return body.replace(r':"\u0000"', ':"%s"')  # a name's own quotes are escaped


def _typed(value: ParameterValue) -> TypedValue:
    return value if isinstance(value, TypedValue) else TypedValue(None, value)


def _fault_of_value(parameter: JobParameter, typed: TypedValue) -> _Fault | None:
    if typed.type is not None and parameter.type not in (None, typed.type):
        return _fault_of_type(parameter, typed.type)

    if typed.value is None:
        return None if parameter.nullable else _not_supported(parameter, "null")

    if typed.value is AUTO:
        return None if parameter.supports_auto else _not_supported(parameter, "auto value")

    return _fault_of_text(parameter, typed.value)


def _fault_of_type(parameter: JobParameter, declared: int) -> _Fault:
    expected, got = _type_label(parameter.type), _type_label(declared)
    message = f"{parameter.name} says {got} and the job takes {expected}: leave the type out"
    return _Fault(expected, got, message)


def _not_supported(parameter: JobParameter, what: str) -> _Fault:
    expected = _expected(parameter)
    leave_out = "" if parameter.required else ", or leave it out"
    message = f"{parameter.name} takes no {what}: give it {expected}{leave_out}"
    return _Fault(expected, what, message)


def _fault_of_text(parameter: JobParameter, text: str) -> _Fault | None:
    kind = _KINDS.get(parameter.type)
    advice = _advice_on_string(text) or (kind.advice(text) if kind is not None else "")

    if not advice:
        return None

    # Spaces come with spreadsheets, and no form but a string's allows them.
    if kind is not None and not kind.advice(text.strip()):
        advice = "remove the white space around it"

    message = f"{parameter.name} takes {_noun(parameter)}, not {_quoted(text)}: {advice}"
    return _Fault(_expected(parameter), shown(text) or '""', message)


# A wrong column name comes with every row; the search for near misses must not.
@lru_cache(maxsize=256)
def _fault_of_name(name: str, known: tuple[str, ...], job: str, others: tuple[str, ...]) -> _Fault:
    expected = f"one of {_listed(known)}" if known else "no parameters"
    near = _near(name, known)

    if others:
        advice = f"{_listed(others)} has it; is the row's jobId (or --job-id) the right one?"
    elif near is not None:
        advice = f"did you mean {near}?"
    elif known:
        advice = f"its parameters are {_listed(known)}; {_as_note(name)}"
    else:
        advice = f"it takes none; {_as_note(name)}"

    return _Fault(expected, shown(name), f"job {job} has no parameter {_quoted(name)}: {advice}")


def _as_note(name: str) -> str:
    """Return what to do with a column that was meant for people, not for DES."""
    return f"a CSV's column of notes is named {_quoted(f'deslaunch.{name}')}, or left out"


def _near(name: str, known: tuple[str, ...]) -> str | None:
    """Return the known name that was probably meant: the same but for case, or similar."""
    folded = {candidate.strip().casefold(): candidate for candidate in known}
    matches = get_close_matches(name.strip().casefold(), folded, n=1, cutoff=0.6)
    return folded[matches[0]] if matches else None


def _doubt(parameter: JobParameter, value: object) -> WarningKind | None:
    if not isinstance(value, str):
        return None

    if parameter.type not in _KINDS:
        return WarningKind.UNCHECKED

    if parameter.type != wire.DATETIME:
        return None

    match = _DATETIME.fullmatch(value)
    naive = match is not None and match["time"] is not None and match["zone"] is None
    return WarningKind.NAIVE if naive else None


def _doubtful(parameter: JobParameter, kind: WarningKind) -> str:
    if kind is WarningKind.NAIVE:
        return "a datetime without a zone means what DES takes it for; add Z or an offset"

    if parameter.type is None:
        return "the job declares no type; values are sent unchecked"

    return f"type {parameter.type} is not known; values are sent unchecked"


def _noun(parameter: JobParameter) -> str:
    kind = _KINDS.get(parameter.type)
    return "a text" if kind is None else kind.noun


def _expected(parameter: JobParameter) -> str:
    *forms, last = (
        _noun(parameter),
        *["null"] * parameter.nullable,
        *["the auto value"] * parameter.supports_auto,
    )
    return f"{', '.join(forms)} or {last}" if forms else last


def _type_label(number: int | None) -> str:
    name = wire.TYPE_NAMES.get(number) if number is not None else None
    return f"type {number} ({name})" if name else f"type {number}"


def _label(job: Job) -> str:
    return _quoted(job.name) if job.name else job.job_id


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _slips(one: str, other: str) -> int:
    """Return at how many places two GUIDs differ."""
    return sum(map(ne, one, other))


def _quoted(text: str) -> str:
    return repr(text if len(text) <= _QUOTED else f"{text[: _QUOTED - 1]}…")


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _one_line(text: str) -> str:
    """Return text fit for any terminal and any encoder: it may hold whatever a row holds."""
    return text if text.isprintable() else repr(text)[1:-1]


def _problem(row: Row, file: str, column: str, fault: _Fault) -> RowProblem:
    return RowProblem(
        file=file,
        line=row.line,
        row=row.number,
        column=_one_line(column),
        expected=fault.expected,
        got=_one_line(fault.got),
        message=fault.message,
    )
