"""A job's JobRunParameters, compiled once: ``Row`` in, the body to send or ``Problem``s out.

Rules that come from DES: a required parameter must be sent, if only as null; null and the auto
value are allowed where the template says so; a value's type is the template's. What the texts
of a type look like is documented for none but datetime ("ISO 8601"); the forms accepted here
are those that every reader of the type agrees on:

========  ================================================================================
integer   ``-?[0-9]+`` within 64 bits, signed
decimal   ``-?[0-9]+(.[0-9]+)?``: any number of digits, never through a float
datetime  ``2026-01-31``, or ``2026-01-31T06:16:47`` with an optional fraction of 1 to 9 digits
          and an optional zone, ``Z`` or ``±hh:mm`` (up to 14:00); the day must exist. Without
          a zone it passes with a warning; a date alone needs none
string    any text that UTF-8 can carry
other     not checked; one warning per parameter
========  ================================================================================

Texts are sent as they came, to the digit. Pure: no I/O, no clock.
"""

from __future__ import annotations

import re
from datetime import date
from difflib import get_close_matches
from functools import lru_cache
from hashlib import sha256
from operator import ne
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from deslaunch.des import wire
from deslaunch.manifest.rows import NOTES, RESERVED, Fault, RowRules, odd_character, show
from deslaunch.model import AUTO, JobRunParameterValue

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from deslaunch.manifest.rows import Warnings
    from deslaunch.model import Job, JobParameter, ParameterValue, Problem, Row

_LISTED: Final = 8  # names of parameters or jobs that one message lists
_QUOTED: Final = 40
_GUID_SLIPS: Final = 3
_INT64_MAX: Final = 2**63 - 1
_INT64_DIGITS: Final = 19

_INTEGER: Final = re.compile(r"-?[0-9]+")
_DECIMAL: Final = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
_DATETIME: Final = re.compile(
    r"(?P<year>[0-9]{4})-(?P<month>[0-9]{2})-(?P<day>[0-9]{2})"
    r"(?P<time>T(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})(?:\.[0-9]{1,9})?"
    r"(?P<zone>Z|[+-](?P<hours>[0-9]{2})(?P<minutes>:[0-9]{2})?)?)?"
)

_NAIVE: Final = "a datetime without a zone means what DES takes it for; add Z or an offset"


class Body(NamedTuple):
    """What is sent for a row.

    Attributes:
        body: the StartJobBody, JSON, UTF-8.
        auto: a parameter uses the auto value.
    """

    body: bytes
    auto: bool


def body_digest(body: bytes) -> bytes:
    """Return the 16 bytes that a body is held against before it is sent."""
    return sha256(body).digest()[:16]


def _advice_on_integer(text: str) -> str:
    if _INTEGER.fullmatch(text) is None:
        return _advice_on_sign(text, _INTEGER) or "write digits only, such as 1200"

    if len(text) < _INT64_DIGITS:
        return ""

    # Zeros first: int() refuses a text of more than 4,300 digits.
    digits = text.lstrip("-").lstrip("0") or "0"

    if len(digits) <= _INT64_DIGITS and int(digits) <= _INT64_MAX + text.startswith("-"):
        return ""

    return f"it must lie between {-_INT64_MAX - 1} and {_INT64_MAX}"


def _advice_on_decimal(text: str) -> str:
    if _DECIMAL.fullmatch(text) is not None:
        return ""

    return (
        _advice_on_sign(text, _DECIMAL)
        or "write digits with a point, such as 12.50, no exponent and no thousands separators"
    )


def _advice_on_sign(text: str, form: re.Pattern[str]) -> str:
    is_signed = text.startswith("+") and form.fullmatch(text[1:])
    return "write it without the +, which DES refuses" if is_signed else ""


def _advice_on_datetime(text: str) -> str:
    match = _DATETIME.fullmatch(text)

    if match is None:
        return "write 2026-01-31 or 2026-01-31T06:16:47Z"

    try:
        date(int(match["year"]), int(match["month"]), int(match["day"]))
    except ValueError:
        return "there is no such day in the calendar"

    return _advice_on_time(match) if match["time"] else ""


def _advice_on_time(match: re.Match[str]) -> str:
    hour, minute, second = match["hour"], match["minute"], match["second"]

    if hour == "24":
        return "hours go to 23: write 24:00 as 00:00 of the next day"

    if second == "60":
        return "seconds go to 59: a leap second can't be sent"

    if hour > "23" or minute > "59" or second > "59":
        return "there is no such time: hours go to 23, minutes and seconds to 59"

    if match["hours"] is None:
        return ""

    if match["minutes"] is None:
        return f"write the offset with its minutes, such as {match['zone']}:00"

    if match["minutes"] > ":59" or match["hours"] + match["minutes"] > "14:00":
        return "the offset must lie between -14:00 and +14:00"

    return ""


class _Kind(NamedTuple):
    """What is known of one JobRunParameterType: its noun, and what to do about a text."""

    noun: str
    advice: Callable[[str], str] | None = None


_KINDS: Final[Mapping[int | None, _Kind]] = {
    wire.STRING: _Kind("a text"),
    wire.INTEGER: _Kind("an integer", _advice_on_integer),
    wire.DECIMAL: _Kind("a decimal", _advice_on_decimal),
    wire.DATETIME: _Kind("a datetime", _advice_on_datetime),
}
_UNKNOWN_KIND: Final = _Kind("a text")


class Schema:
    """The rules of one job, ready to be applied to many rows.

    Args:
        job: the job.
        neighbours: jobs of the same target: a parameter of theirs may tell of a wrong jobId.

    Attributes:
        job: what was compiled; compare it to see whether DES's response has changed.
    """

    def __init__(self, job: Job, neighbours: Collection[Job] = ()) -> None:
        self.job = job
        self._neighbours = neighbours
        self._parameters = {parameter.name: parameter for parameter in job.parameters}
        self._required = tuple(parameter.name for parameter in job.parameters if parameter.required)
        self._doubtful = {
            parameter.name: parameter
            for parameter in job.parameters
            if parameter.type not in _KINDS or parameter.type == wire.DATETIME
        }

    def __repr__(self) -> str:
        return f"<Schema {self.job.job_id} {self.job.name!r} {list(self._parameters)}>"

    def check(
        self, row: Row, file: str, warnings: Warnings | None = None
    ) -> Body | tuple[Problem, ...]:
        """Return what is sent for a row, or every reason against it.

        Args:
            row: a row of this job; its parameters are sent in its own order.
            file: the manifest as it was named, for problems.
            warnings: gets what may be a mistake.

        Returns:
            The body, or at least one problem; a parameter has at most one.
        """
        said = row.parameters
        faults = [_missing(self._parameters[name]) for name in self._required if name not in said]
        values: dict[str, Any] = {}
        auto = False

        for name, value in said.items():
            parameter = self._parameters.get(name)

            if parameter is None:
                faults.append(self._fault_of_name(name))
                continue

            fault = _fault_of_value(parameter, value)

            if fault is not None:
                faults.append(fault)
                continue

            declared, text = value if isinstance(value, JobRunParameterValue) else (None, value)
            number = declared if parameter.type is None else parameter.type
            values[name] = wire.parameter_value(number, text)
            auto = auto or text is AUTO

            if warnings is not None and name in self._doubtful:
                _warn(parameter, text, row.line, warnings)

        if faults:
            return RowRules(file).problems(faults, row.number, row.line)

        return Body(wire.start_job_body(self.job.job_id, values), auto)

    def _fault_of_name(self, name: str) -> Fault:
        others = tuple(
            _label(job)
            for job in self._neighbours
            if any(name == other.name for other in job.parameters)
        )
        return _fault_of_name(name, tuple(self._parameters), _label(self.job), others)


def compile_jobs(jobs: Iterable[Job]) -> dict[str, Schema]:
    """Return the schemas of one target's jobs, by jobId in lower case."""
    neighbours = tuple(jobs)
    return {job.job_id.lower(): Schema(job, neighbours) for job in neighbours}


def unknown_job(
    row: Row, targets: Mapping[str, Mapping[str, Schema]], file: str
) -> tuple[Problem, ...]:
    """Return the problem of a row whose job its target does not have.

    Args:
        row: the row.
        targets: the jobs of all targets that were asked.
        file: the manifest as it was named.
    """
    jobs = targets.get(row.target, {})
    labels = [f"{job_id} ({schema.job.name})" for job_id, schema in jobs.items()]
    near = next((job for job in jobs if sum(map(ne, job, row.job_id)) <= _GUID_SLIPS), None)
    other = next((name for name, jobs in targets.items() if row.job_id in jobs), None)

    if near is not None:
        advice = f"did you mean {near}?"
    elif other is not None:
        advice = f"target {other} has it; name that target in the row"
    elif not labels:
        advice = "it has no jobs at all; is its token one of the right organisation?"
    else:
        advice = f"its jobs are {_listed(labels)}"

    expected = f"a job of target {row.target}: {_listed(labels)}"
    message = f"target {row.target} has no job {row.job_id}: {advice}"
    fault = Fault("jobId", expected, row.job_id, message)
    return RowRules(file).problems([fault], row.number, row.line)


def _missing(parameter: JobParameter) -> Fault:
    expected = _expected(parameter)
    message = f"{parameter.name} is required and missing: give it {expected}"
    return Fault(parameter.name, expected, "nothing", message)


def _fault_of_value(parameter: JobParameter, value: ParameterValue) -> Fault | None:
    if isinstance(value, JobRunParameterValue):
        if value.type is not None and parameter.type not in (None, value.type):
            return _fault_of_type(parameter, value.type)

        value = value.value

    if value is None:
        return None if parameter.nullable else _not_supported(parameter, "null")

    if value is AUTO:
        return None if parameter.supports_auto else _not_supported(parameter, "auto value")

    noun, advise = _KINDS.get(parameter.type, _UNKNOWN_KIND)

    if advise is None or not (advice := advise(value)):
        return None

    if not advise(value.strip()):  # spaces come with spreadsheets
        advice = "remove the white space around it"
    elif odd := odd_character(value):
        advice = odd

    message = f"{parameter.name} takes {noun}, not {_quoted(value)}: {advice}"
    return Fault(parameter.name, _expected(parameter), value or '""', message)


def _fault_of_type(parameter: JobParameter, declared: int) -> Fault:
    expected, got = _type_label(parameter.type), _type_label(declared)
    message = f"{parameter.name} says {got} and the job takes {expected}: leave the type out"
    return Fault(parameter.name, expected, got, message)


def _not_supported(parameter: JobParameter, what: str) -> Fault:
    expected = _expected(parameter)
    leave_out = "" if parameter.required else ", or leave it out"
    message = f"{parameter.name} takes no {what}: give it {expected}{leave_out}"
    return Fault(parameter.name, expected, what, message)


@lru_cache(maxsize=256)  # a wrong column comes with every row; the search for near names must not
def _fault_of_name(name: str, known: tuple[str, ...], job: str, others: tuple[str, ...]) -> Fault:
    reserved = {re.sub("[-_ ]", "", member).lower(): member for member in RESERVED}
    meant = reserved.get(re.sub(r"[-_\s]", "", name).lower())
    near = _near(name, known)
    note = f"a column of notes is named {_quoted(f'{NOTES}.{name}')}, or left out"

    if meant is not None:
        advice = f"did you mean {meant}? Write that column's name exactly so"
    elif others:
        advice = f"{_listed(others)} has it; is the row's jobId (or --job-id) the right one?"
    elif near is not None:
        advice = f"did you mean {near}?"
    elif known:
        advice = f"its parameters are {_listed(known)}; {note}"
    else:
        advice = f"it takes none; {note}"

    expected = f"one of {_listed(known)}" if known else "no parameters"
    return Fault(name, expected, name, f"job {job} has no parameter {_quoted(name)}: {advice}")


def _near(name: str, known: tuple[str, ...]) -> str | None:
    """Return the known name that was probably meant: the same but for case, or similar."""
    folded = {candidate.strip().casefold(): candidate for candidate in known}
    matches = get_close_matches(name.strip().casefold(), folded, n=1, cutoff=0.6)
    return folded[matches[0]] if matches else None


def _warn(parameter: JobParameter, text: object, line: int, warnings: Warnings) -> None:
    if not isinstance(text, str):
        return

    if parameter.type == wire.DATETIME:
        if "T" in text and text[-1] != "Z" and text[-6] not in "+-":
            warnings.add(parameter.name, _NAIVE, line)
    elif parameter.type is None:
        message = "the job declares no type; values are sent unchecked"
        warnings.add(parameter.name, message, line)
    else:
        message = f"type {parameter.type} is not known; values are sent unchecked"
        warnings.add(parameter.name, message, line)


def _expected(parameter: JobParameter) -> str:
    *forms, last = (
        _KINDS.get(parameter.type, _UNKNOWN_KIND).noun,
        *["null"] * parameter.nullable,
        *["the auto value"] * parameter.supports_auto,
    )
    return f"{', '.join(forms)} or {last}" if forms else last


def _type_label(number: int | None) -> str:
    name = None if number is None else wire.TYPE_NAMES.get(number)
    return f"type {number} ({name})" if name else f"type {number}"


def _label(job: Job) -> str:
    return _quoted(job.name) if job.name else job.job_id


def _listed(names: Iterable[str]) -> str:
    names = [show(name) for name in names]
    more = f" and {len(names) - _LISTED:,} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _quoted(text: str) -> str:
    return repr(text if len(text) <= _QUOTED else f"{text[: _QUOTED - 1]}…")
