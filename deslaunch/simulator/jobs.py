"""The jobs file, and what a job's template takes. Pure but for :func:`load_jobs`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from deslaunch.simulator import files
from deslaunch.simulator.errors import JobsFileError, Refused
from deslaunch.simulator.files import Rule, Shape, is_a, is_list_of

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

POS_USAGE_EXPORT: Final = "43f87799-62c6-4001-92f9-6b3df816a6d6"
CSV_SALES_EXPORT: Final = "8d0c3c7e-5b0f-4d5e-9a51-0f6a2f1c9e04"

_STRING: Final = 1
_INTEGER: Final = 2
_DECIMAL: Final = 3
_DATETIME: Final = 4


def _declare(
    name: str,
    type_number: int,
    description: str,
    *,
    required: bool = False,
    nullable: bool = False,
    auto: bool = False,
) -> dict[str, Any]:
    return {
        "name": name,
        "type": type_number,
        "required": required,
        "nullable": nullable,
        "supportsAutoValue": auto,
        "description": description,
    }


DEFAULT_JOBS: Final[Mapping[str, Any]] = {
    "jobs": [
        {
            "jobId": POS_USAGE_EXPORT,
            "name": "POS usage",
            "template": "POSUsageExport",
            "jobRunParameters": [
                _declare(
                    "DBGenFrom",
                    _INTEGER,
                    "First database generation, inclusive; null with TradingDate",
                    required=True,
                    nullable=True,
                    auto=True,
                ),
                _declare("DBGenTo", _INTEGER, "Last database generation", nullable=True),
                _declare("TradingDate", _DATETIME, "Instead of a range", nullable=True),
            ],
            "exclusive": [["DBGenFrom", "DBGenTo"], ["TradingDate"]],
        },
        {
            "jobId": CSV_SALES_EXPORT,
            "name": "CSV sales",
            "template": "CsvSalesExport",
            "jobRunParameters": [
                _declare("DBGenFrom", _INTEGER, "First database generation, inclusive"),
                _declare("DBGenTo", _INTEGER, "Last database generation, inclusive"),
                _declare("TradingDateFrom", _DATETIME, "First trading date, inclusive"),
                _declare("TradingDateTo", _DATETIME, "Last trading date, inclusive"),
            ],
            "exclusive": [["DBGenFrom", "DBGenTo"], ["TradingDateFrom", "TradingDateTo"]],
        },
    ]
}
"""Two real templates as jobs. ``exclusive`` and ``template`` are private to the simulator."""

_PRIVATE_JOB_KEYS: Final = frozenset({"exclusive", "template"})

_INTEGER_TEXT: Final = re.compile(r"-?[0-9]{1,19}")
_DECIMAL_TEXT: Final = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
_DATETIME_TEXT: Final = re.compile(r"[0-9TWZ:.,+-]+")


@dataclass(frozen=True, slots=True)
class _Parameter:
    type: int | None
    required: bool
    nullable: bool
    auto: bool


@dataclass(frozen=True, slots=True)
class Job:
    """One job as a start sees it.

    Attributes:
        job_id: GUID, lower case.
        parameters: by name.
        exclusive: groups of names; one start may use one of them.
    """

    job_id: str
    parameters: Mapping[str, _Parameter]
    exclusive: tuple[frozenset[str], ...]


_JOBS_SHAPE: Final = Shape(
    JobsFileError,
    {"jobs": Rule("a list of jobs", is_a(list))},
    required={"jobs"},
    closed=False,
)
_JOB_SHAPE: Final = Shape(
    JobsFileError,
    {
        "jobId": files.GUID_TEXT,
        "name": files.TEXT,
        "jobRunParameters": Rule("a list of parameters", is_a(list)),
        "exclusive": Rule("a list of lists of names", is_list_of(is_list_of(is_a(str)))),
    },
    required={"jobId", "jobRunParameters"},
    closed=False,
)
_PARAMETER_SHAPE: Final = Shape(
    JobsFileError,
    {
        "name": files.TEXT,
        "type": Rule("a type number or null", lambda v: v is None or files.WHOLE.holds(v)),
        "required": files.TRUTH,
        "nullable": files.TRUTH,
        "supportsAutoValue": files.TRUTH,
    },
    required={"name"},
    closed=False,
)


def load_jobs(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read and check a jobs file: a QueryJobs answer, and two keys that QueryJobs leaves out.

    ``exclusive`` lists groups of parameter names; a start that uses more than one group is
    refused. ``template`` is for the reader.

    Raises:
        JobsFileError: it is malformed; says where, what was expected and what stands there.
        OSError: it can't be read.
    """
    jobs: dict[str, Any] = files.load(path, JobsFileError)
    read_jobs(jobs)
    return jobs


def read_jobs(jobs: Any) -> dict[str, Job]:
    """Return what a jobs file's JSON says, by jobId in lower case.

    Raises:
        JobsFileError: it is malformed.
    """
    listed = _JOBS_SHAPE.check(jobs, "")["jobs"]
    read = [_read_job(job, f"jobs[{i}]") for i, job in enumerate(listed)]
    return {job.job_id: job for job in read}


def _read_job(job: Any, where: str) -> Job:
    checked = _JOB_SHAPE.check(job, where)
    declared = [
        _PARAMETER_SHAPE.check(parameter, f"{where}.jobRunParameters[{i}]")
        for i, parameter in enumerate(checked["jobRunParameters"])
    ]
    return Job(
        job_id=checked["jobId"].lower(),
        parameters={parameter["name"]: _read_parameter(parameter) for parameter in declared},
        exclusive=tuple(map(frozenset, checked.get("exclusive", []))),
    )


def _read_parameter(declared: Mapping[str, Any]) -> _Parameter:
    return _Parameter(
        type=declared.get("type"),
        required=declared.get("required", False),
        nullable=declared.get("nullable", False),
        auto=declared.get("supportsAutoValue", False),
    )


def public_jobs(jobs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the jobs file as QueryJobs shows it."""
    public = [
        {key: value for key, value in job.items() if key not in _PRIVATE_JOB_KEYS}
        for job in jobs["jobs"]
    ]
    return {"jobs": public}


# --------------------------------------------------------------------------- rules of a start


def check_parameters(job: Job, parameters: Mapping[str, Any]) -> None:
    """Check the parameters of one start.

    Raises:
        Refused: 400, the job's template does not take them.
    """
    for name in parameters.keys() - job.parameters.keys():
        raise Refused(400, f"unknown parameter {name!r}")

    for name, declared in job.parameters.items():
        if name in parameters:
            _check_value(name, declared, parameters[name])
        elif declared.required:
            raise Refused(400, f"parameter {name!r} is required")

    _check_exclusive(job, parameters)


def _check_value(name: str, declared: _Parameter, value: Any) -> None:
    given = {} if value is None else value

    if not isinstance(given, dict):
        raise Refused(400, f"parameter {name!r} is neither an object nor null")

    _check_type(name, declared, given.get("type"))
    text, auto = given.get("valueStringEncoded"), given.get("useAutoValue")

    if not isinstance(text, str | None) or not isinstance(auto, bool | None):
        raise Refused(400, f"parameter {name!r} is no JobRunParameterValue")

    if auto:
        _check_auto(name, declared, text)
    elif text is None:
        _check_null(name, declared)
    else:
        _check_text(name, declared, text)


def _check_type(name: str, declared: _Parameter, sent: Any) -> None:
    if sent is not None and not files.WHOLE.holds(sent):
        raise Refused(400, f"parameter {name!r} has no type number")

    if None not in (sent, declared.type) and sent != declared.type:
        raise Refused(400, f"parameter {name!r} is of type {declared.type}, not {sent}")


def _check_auto(name: str, declared: _Parameter, text: str | None) -> None:
    if not declared.auto:
        raise Refused(400, f"parameter {name!r} has no auto value")

    if text is not None:
        raise Refused(400, f"parameter {name!r} has both a value and the auto value")


def _check_null(name: str, declared: _Parameter) -> None:
    if not declared.nullable:
        raise Refused(400, f"parameter {name!r} can't be null")


def _check_text(name: str, declared: _Parameter, text: str) -> None:
    parses = _TEXT_RULES.get(declared.type or _STRING)

    if parses is not None and not parses(text):
        raise Refused(400, f"parameter {name!r} is not of type {declared.type}: {text!r}")


def _is_integer_text(text: str) -> bool:
    return _INTEGER_TEXT.fullmatch(text) is not None and -(1 << 63) <= int(text) < 1 << 63


def _is_decimal_text(text: str) -> bool:
    return _DECIMAL_TEXT.fullmatch(text) is not None


def _is_datetime_text(text: str) -> bool:
    if _DATETIME_TEXT.fullmatch(text) is None:
        return False

    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False

    return True


_TEXT_RULES: Final[Mapping[int, Callable[[str], bool]]] = {
    _INTEGER: _is_integer_text,
    _DECIMAL: _is_decimal_text,
    _DATETIME: _is_datetime_text,
}


def _check_exclusive(job: Job, parameters: Mapping[str, Any]) -> None:
    used = {name for name, value in parameters.items() if _is_used(value)}
    groups = [group & used for group in job.exclusive if group & used]

    if len(groups) > 1:
        raise Refused(400, f"either {' or '.join(', '.join(sorted(g)) for g in groups)}")


def _is_used(value: Any) -> bool:
    return value is not None and (
        value.get("valueStringEncoded") is not None or value.get("useAutoValue") is True
    )
