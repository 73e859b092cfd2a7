"""A job's JobRunParameters, compiled once: ``Row`` in, ``CheckedRow`` or ``Problem``s out.

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

Rows of one job that name the same parameters in the same order are of one *form*. It is compiled
from the first that was found valid: only the texts differ from row to row, so one pattern holds
them all, and body and row are written by a template. A row that is not surely valid by its form
is checked parameter by parameter, which alone knows every rule and names every problem; both ways
give the same to the byte.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import date
from difflib import get_close_matches
from functools import lru_cache
from hashlib import sha256
from operator import ne
from typing import Any, Final, NamedTuple

from deslaunch.des import wire
from deslaunch.manifest import rows
from deslaunch.model import AUTO, Auto, CheckedRow, Job, JobParameter, Problem, Row

_LISTED: Final = 8  # names of parameters or jobs that one message lists
_QUOTED: Final = 40
_GUID_SLIPS: Final = 3
_MOST_FORMS: Final = 1_000  # a file may have a form for every row
_MARK: Final = "\ufdd0"  # stands for a text in a template: a character that is none
_INT64_MAX: Final = 2**63 - 1
_INT64_DIGITS: Final = 19

_DECIMAL: Final = r"-?[0-9]+(?:\.[0-9]+)?"
_DATETIME: Final = re.compile(
    "[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"(?:T([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.[0-9]{1,9})?"
    "(Z|[+-]([0-9]{2})(:[0-9]{2})?)?)?"
)
_PLAIN_DATETIME: Final = (  # with a zone or without a time, and no day that some years lack
    "(?!0000)[0-9]{4}-"
    "(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])"
    "|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31)"
    r"(?:T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?"
    "(?:Z|[+-](?:(?:0[0-9]|1[0-3]):[0-5][0-9]|14:00)))?"
)
_NAIVE: Final = "the datetime has no time zone, so DES chooses one; add Z or an offset"


def body_digest(body: bytes) -> bytes:
    """Return the 16 bytes that a body is held against before it is sent."""
    return sha256(body).digest()[:16]


def take(row: Row, body: bytes, says: str, *, auto: bool) -> CheckedRow:
    """Return a row that can be started by a body; without a key of its own it gets its digest."""
    key = rows.row_digest(row) if row.key is None else row.key
    return CheckedRow(row, key, body, body_digest(body), auto, says)


def _judge_integer(text: str) -> str:
    if not re.fullmatch("-?[0-9]+", text):
        return "write digits only, such as 1200"

    # Zeros first: int() refuses a text of more than 4,300 digits.
    digits = text.lstrip("-").lstrip("0") or "0"

    if len(digits) <= _INT64_DIGITS and int(digits) <= _INT64_MAX + text.startswith("-"):
        return ""

    return f"it must be between {-_INT64_MAX - 1} and {_INT64_MAX}"


def _judge_decimal(text: str) -> str:
    if re.fullmatch(_DECIMAL, text):
        return ""

    return "write digits with a point, such as 12.50, without exponent or thousands separators"


def _judge_datetime(text: str) -> str:
    match = _DATETIME.fullmatch(text)

    if match is None:
        return "write 2026-01-31 or 2026-01-31T06:16:47Z"

    try:
        date.fromisoformat(text[:10])
    except ValueError:
        return "this day does not exist"

    hour, minute, second, zone, hours, minutes = match.groups("")
    is_no_time = hour > "23" or minute > "59" or second > "59"
    findings = {
        "hours go to 23: write 24:00 as 00:00 of the next day": hour == "24",
        "seconds go to 59: a leap second can't be sent": second == "60",
        "this time does not exist: hours go to 23, minutes and seconds to 59": is_no_time,
        f"write the offset with its minutes, such as {zone}:00": hours and not minutes,
        "the offset must be between -14:00 and +14:00": minutes > ":59"
        or hours + minutes > "14:00",
    }
    return next((advice for advice, is_so in findings.items() if is_so), "")


class Kind(NamedTuple):
    """What is known of one JobRunParameterType.

    Attributes:
        noun: what its texts are called.
        example: one of them.
        judge: returns what to do about a text that can't be sent, or ``""``.
        plain: a pattern of texts that can be sent, need no warning, and no escape in JSON.
    """

    noun: str
    example: str
    judge: Callable[[str], str]
    plain: str = ""


KINDS: Final[Mapping[int | None, Kind]] = {
    wire.STRING: Kind("a string", "text", lambda _: "", r'[^\0-\x1f"\\\ud800-\udfff]*'),
    wire.INTEGER: Kind("an integer", "1", _judge_integer, "-?[0-9]{1,18}"),
    wire.DECIMAL: Kind("a decimal", "1.50", _judge_decimal, _DECIMAL),
    wire.DATETIME: Kind("a datetime", "2026-01-31T00:00:00Z", _judge_datetime, _PLAIN_DATETIME),
}
UNKNOWN_KIND: Final = Kind("a string", "text", lambda _: "")


class _Form(NamedTuple):
    match: Callable[[str], object]  # of the texts, with NULs between
    body: str  # with a %s for each text
    says: str  # with one for the key too


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
        self._forms: dict[tuple[object, ...], _Form | None] = {}
        self._parameters = {parameter.name: parameter for parameter in job.parameters}
        # A wrong column comes with every row; the search for near names must not.
        self._fault_of_name = lru_cache(maxsize=256)(self._explain_name)

    def check(self, row: Row, warnings: rows.Groups) -> CheckedRow | tuple[Problem, ...]:
        """Return a row with what is sent for it, or every reason against it.

        Args:
            row: a row of this job; its parameters are sent in its own order.
            warnings: gets what may be a mistake; it knows the manifest's name.

        Returns:
            The row with its body, or at least one problem; a parameter has at most one.
        """
        _, _, key, target, _, parameters, notes, types = row
        texts: Any = tuple(parameters.values())
        told = texts if key is None else (key, *texts)

        try:
            text = "\0".join(told)
        except TypeError:  # null, or the auto value
            return self._check_each(row, warnings)

        if notes:
            return self._check_each(row, warnings)

        # What the rows of a form share: the types are kept, and sent where the job declares none.
        shape = (target, key is None, tuple(parameters), types)
        form = self._forms.get(shape)

        if form is not None and form.match(text):
            return take(row, (form.body % texts).encode(), form.says % told, auto=False)

        checked = self._check_each(row, warnings)
        is_new = shape not in self._forms and len(self._forms) < _MOST_FORMS

        if is_new and isinstance(checked, CheckedRow):
            self._forms[shape] = self._compile(row)

        return checked

    def _check_each(self, row: Row, warnings: rows.Groups) -> CheckedRow | tuple[Problem, ...]:
        """Check a row parameter by parameter."""
        said = row.parameters
        faults = [
            _refuse(parameter, "nothing", "is required and missing")
            for parameter in self.job.parameters
            if parameter.required and parameter.name not in said
        ]
        values: dict[str, Any] = {}
        auto = False
        types = row.types or (None,) * len(said)

        for (name, text), declared in zip(said.items(), types, strict=True):
            parameter = self._parameters.get(name)

            if parameter is None:
                faults.append(self._fault_of_name(name))
                continue

            if fault := _fault_of_value(parameter, declared, text):
                faults.append(fault)
                continue

            number = declared if parameter.type is None else parameter.type
            values[name] = wire.parameter_value(number, text)
            auto = auto or text is AUTO

            if isinstance(text, str) and (doubt := _doubt(parameter.type, text)):
                warnings.warn(name, doubt, row.line)

        if faults:
            return rows.problems_of(faults, warnings.file, row.number, row.line)

        body = wire.start_job_body(self.job.job_id, values)
        return take(row, body, rows.dump_row(row), auto=auto)

    def _compile(self, row: Row) -> _Form | None:
        """Return the form of a valid row; None where more than texts may differ from row to row."""
        numbers = {name: self._parameters[name].type for name in row.parameters}

        # Each text of an unknown type is warned of.
        if not set(numbers.values()) <= KINDS.keys() or _MARK in row.target + "".join(numbers):
            return None

        values = {name: wire.parameter_value(number, _MARK) for name, number in numbers.items()}
        body = wire.start_job_body(self.job.job_id, values).decode()
        marked = row._replace(key=row.key and _MARK, parameters=dict.fromkeys(numbers, _MARK))
        says = rows.dump_row(marked)
        body, says = (text.replace("%", "%%").replace(_MARK, "%s") for text in (body, says))
        types = (*[wire.STRING] * (row.key is not None), *numbers.values())  # a key is a text
        pattern = re.compile("\0".join(KINDS[number].plain for number in types))
        return _Form(pattern.fullmatch, body, says)

    def _explain_name(self, name: str) -> rows.Fault:
        """Return the fault of a name that is no parameter's."""
        others = [
            _label(job)
            for job in self._neighbours
            if any(name == other.name for other in job.parameters)
        ]
        known = tuple(self._parameters)
        folded = {other.strip().casefold(): other for other in known}
        near = get_close_matches(name.strip().casefold(), folded, n=1)
        note = f"to keep it as a note, name the column {_quoted(f'{rows.NOTES}.{name}')}"

        if meant := rows.meant_member(name):
            advice = f"did you mean {meant}? Write the column name exactly like that"
        elif others:
            advice = f"{_listed(others)} has it; check the row's jobId or --job-id"
        elif near:
            advice = f"did you mean {folded[near[0]]}?"
        elif known:
            advice = f"its parameters are {_listed(known)}; {note}"
        else:
            advice = f"it has none; {note}"

        expected = f"one of {_listed(known)}" if known else "no parameters"
        message = f"job {_label(self.job)} has no parameter {_quoted(name)}: {advice}"
        return rows.Fault(name, expected, name, message)


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
    jobs = targets[row.target]
    labels = [f"{job_id} ({schema.job.name})" for job_id, schema in jobs.items()]
    near = next((job for job in jobs if sum(map(ne, job, row.job_id)) <= _GUID_SLIPS), None)
    other = next((name for name, jobs in targets.items() if row.job_id in jobs), None)

    if near is not None:
        advice = f"did you mean {near}?"
    elif other is not None:
        advice = f"target {other} has it; name that target in the row"
    elif not labels:
        advice = "it has no jobs; check that its token is for the right organisation"
    else:
        advice = f"its jobs are {_listed(labels)}"

    expected = f"a job of target {row.target}: {_listed(labels)}"
    message = f"target {row.target} has no job {row.job_id}: {advice}"
    fault = rows.Fault("jobId", expected, row.job_id, message)
    return rows.problems_of([fault], file, row.number, row.line)


def _fault_of_value(
    parameter: JobParameter, declared: int | None, text: str | Auto | None
) -> rows.Fault | None:
    if declared is not None and parameter.type is not None and parameter.type != declared:
        expected, got = _type_label(parameter.type), _type_label(declared)
        message = (
            f"{parameter.name} declares {got}, but the job takes {expected}; leave the type out"
        )
        return rows.Fault(parameter.name, expected, got, message)

    if not isinstance(text, str):
        is_right = parameter.nullable if text is None else parameter.supports_auto
        got = "null" if text is None else "auto value"
        return (
            None
            if is_right
            else _refuse(parameter, got, f"can't be {'null' if text is None else 'the auto value'}")
        )

    kind = KINDS.get(parameter.type, UNKNOWN_KIND)

    if not (advice := kind.judge(text)):
        return None

    if not kind.judge(text.strip()):  # spaces come with spreadsheets
        advice = "remove the white space around it"
    elif text.startswith("+") and not kind.judge(text[1:]):
        advice = "write it without the +, which DES refuses"
    elif odd := rows.odd_character(text):
        advice = odd

    message = f"{parameter.name} must be {kind.noun}, not {_quoted(text)}; {advice}"
    return rows.Fault(parameter.name, _expected(parameter), text or '""', message)


def _refuse(parameter: JobParameter, got: str, why: str) -> rows.Fault:
    expected = _expected(parameter)
    leave_out = "" if parameter.required else ", or leave it out"
    message = f"{parameter.name} {why}; set it to {expected}{leave_out}"
    return rows.Fault(parameter.name, expected, got, message)


def _doubt(number: int | None, text: str) -> str:
    """Return what to warn of: a text that may not mean what it seems to, or ``""``."""
    if number == wire.DATETIME and "T" in text and text[-1] != "Z" and text[-6] not in "+-":
        return _NAIVE

    if number in KINDS:
        return ""

    what = "the job declares no type" if number is None else f"type {number} is unknown"
    return f"{what}; values are sent unchecked"


def _expected(parameter: JobParameter) -> str:
    *forms, last = (
        KINDS.get(parameter.type, UNKNOWN_KIND).noun,
        *["null"] * parameter.nullable,
        *["the auto value"] * parameter.supports_auto,
    )
    return f"{', '.join(forms)} or {last}" if forms else last


def _type_label(number: int) -> str:
    name = wire.TYPE_NAMES.get(number)
    return f"type {number} ({name})" if name else f"type {number}"


def _label(job: Job) -> str:
    return _quoted(job.name) if job.name else job.job_id


def _listed(names: Iterable[str]) -> str:
    names = [rows.show(name) for name in names]
    more = f" and {len(names) - _LISTED:,} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _quoted(text: str) -> str:
    return repr(text if len(text) <= _QUOTED else f"{text[: _QUOTED - 1]}…")
