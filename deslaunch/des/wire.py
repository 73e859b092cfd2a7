"""DES's JSON and headers, encoded and decoded: the one home of every assumed spelling.

Documented by the vendor: ``startjob`` and ``queryrunstatus`` (paths, responses), the shape of
``StartJobBody`` and ``JobRunParameterValue``, the type numbers 2, 3 and 4, and the word
``required``. Marked ASSUMED below: what no public page says. A wrong guess about QueryJobs is
bypassed with a schema file, which is read by the same tolerant reader.
"""

import base64
import codecs
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from email.utils import parsedate_to_datetime
from itertools import accumulate
from typing import Any, Final

import orjson

from deslaunch.errors import SchemaError
from deslaunch.model import (
    AUTO,
    GUID,
    Auto,
    Job,
    JobParameter,
    JobRunParameterValue,
    RunStatus,
    StartedRun,
    is_guid,
)

Value = str | int | Decimal | datetime | JobRunParameterValue | Auto | None
"""What ``DesClient.start_job`` takes as a parameter's value; ``bool`` is an ``int``."""

START_JOB: Final = "api/v1/startjob"
QUERY_RUN_STATUS: Final = "api/v1/queryrunstatus"
QUERY_JOBS: Final = "api/v1/queryjobs"  # ASSUMED: path and method
QUERY_JOBS_BODY: Final = b"{}"  # ASSUMED

AUTH_URL: Final = "https://auth.powerepos.cloud"
"""The public auth server."""

GRANT: Final = "authorisation/token"
SCOPE: Final = "des offline_access"

STRING: Final = 1  # ASSUMED: the vendor's example shows 2, 3 and 4 only
INTEGER: Final = 2
DECIMAL: Final = 3
DATETIME: Final = 4

TYPE_NAMES: Final[Mapping[int, str]] = {
    STRING: "string",
    INTEGER: "integer",
    DECIMAL: "decimal",
    DATETIME: "datetime",
}

# ASSUMED: QueryJobs may name a type instead of numbering it.
_TYPE_NUMBERS: Final = {name: number for number, name in TYPE_NAMES.items()} | {
    "int": INTEGER,
    "long": INTEGER,
    "date": DATETIME,
}

_AUTO: Final = ("supportsautovalue", "supportsauto", "allowautovalue", "autovalue")

KEPT: Final = 4096
"""Characters of a response that are kept."""

FILES_LIMIT: Final = 65_536
"""Bytes of a run's output files' metadata that are kept, as JSON."""

_RETRY_AFTER_LIMIT: Final = 1e9  # seconds: 31 years, and no infinity from 400 digits

_BOM: Final = b"\xef\xbb\xbf"
_BINARY: Final = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_NUMBER: Final = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?)\s*", re.ASCII)
_PAGE: Final = re.compile(r"\s*<.*?<title>([^<]*)", re.IGNORECASE | re.DOTALL)
_JOB_RUN_ID: Final = re.compile(rb'"jobRunId"\s*:\s*"(%s)"' % GUID.encode(), re.IGNORECASE)


def type_name(number: int | None) -> str:
    """Return what a JobRunParameterType is called; DES takes none for a string."""
    return "string" if number is None else TYPE_NAMES.get(number, f"type {number}")


def parameter_value(type_number: int | None, value: str | Auto | None) -> dict[str, Any]:
    """Return the JobRunParameterValue of one value.

    Args:
        type_number: JobRunParameterType, or None to leave it to DES (a string).
        value: the text, None for null, or ``AUTO``.
    """
    declared = {} if type_number is None else {"type": type_number}

    if value is AUTO:
        return {**declared, "valueStringEncoded": None, "useAutoValue": True}

    return {**declared, "valueStringEncoded": value}


def encode_value(name: str, value: Value) -> dict[str, Any]:
    """Return the JobRunParameterValue of a Python value.

    Raises:
        TypeError: it is a float, or of another type that has no encoding.
        ValueError: it is a Decimal that is no finite number.
    """
    match value:
        case None | Auto() | str():
            return parameter_value(None, value)
        case JobRunParameterValue(number, text):
            return parameter_value(number, text)
        case bool():
            return parameter_value(None, str(value).lower())
        case int():
            return parameter_value(INTEGER, f"{value:d}")
        case Decimal() if value.is_finite():
            return parameter_value(DECIMAL, f"{value:f}")
        case Decimal():
            raise ValueError(f"{name}: {value} is no finite number")
        case datetime():
            text = re.sub(r"\+00:00$", "Z", value.isoformat())
            return parameter_value(DATETIME, text)
        case _:
            raise TypeError(f"{name}: a value can't be of type {type(value).__name__}")


def start_job_body(job_id: str, parameters: Mapping[str, Any]) -> bytes:
    """Return the StartJobBody of encoded parameter values, as JSON in UTF-8."""
    return orjson.dumps({"jobId": job_id, "parameters": parameters})


def run_status_body(job_run_id: str) -> bytes:
    """Return the body that queryrunstatus takes. ASSUMED."""
    return orjson.dumps({"jobRunId": job_run_id})


def decode_grant(body: bytes) -> dict[str, str]:
    """Read the auth server's response to a grant, whatever it is.

    Returns:
        The texts in it that are not empty: ``access_token``, ``refresh_token`` (which buys the
        next one), ``svc`` (base URL of the DES that takes it), ``org_id``, and ``error`` (only a
        known code is fit to be shown).
    """
    return {name: v for name, v in _fields_of(body).items() if isinstance(v, str) and v}


def decode_started(body: bytes) -> StartedRun | None:
    """Read a StartJobResponse.

    Returns:
        The run, its jobId a text in lower case, to be compared; None where the body is no JSON
        object with it and with a GUID as ``jobRunId``.
    """
    response = _fields_of(body)
    job_id, job_run_id = response.get("jobId"), response.get("jobRunId")

    if isinstance(job_id, str) and is_guid(job_run_id):
        return StartedRun(job_id.lower(), job_run_id)

    return None


def job_run_ids_in(body: bytes) -> list[str]:
    """Return the jobRunIds in a response that is unusable, even no whole JSON."""
    return [found.decode() for found in _JOB_RUN_ID.findall(body)]


def decode_run_status(body: bytes) -> RunStatus | None:
    """Read a QueryJobRunStatusResponse; None where it lacks ``jobRunId`` or ``finished``."""
    response = _fields_of(body)

    if not (isinstance(response.get("finished"), bool) and is_guid(response.get("jobRunId"))):
        return None

    files = response.get("outputFiles")
    return RunStatus(
        job_id=(_text_or_none(response.get("jobId")) or "").lower(),
        job_run_id=response["jobRunId"],
        finished=response["finished"],
        success=response.get("success") is True,
        status=_text_or_none(response.get("status")),
        created_utc=_text_or_none(response.get("createdUtc")),
        finished_utc=_text_or_none(response.get("finishedUtc")),
        output_files=_kept_files(files) if isinstance(files, list) else (),
    )


def _kept_files(files: list[object]) -> tuple[object, ...]:
    """Return the first files' metadata, as far as it can be written, and not beyond the limit."""
    sizes = [len(_json(file)) for file in files]
    totals = zip(files, sizes, accumulate(sizes), strict=True)
    return tuple(file for file, size, total in totals if size and total <= FILES_LIMIT)


def decode_jobs(body: bytes, *, source: str) -> list[Job]:
    """Read the jobs of a QueryJobs response, or of a schema file in the same form.

    Keys are compared without regard to case, unknown keys are ignored, and the parameters may
    be a list or an object keyed by name.

    Args:
        body: JSON, UTF-8.
        source: what the bytes are, for the error's text.

    Raises:
        SchemaError: the shape can't be read; the message shows what came.
    """
    try:
        response = orjson.loads(body.removeprefix(_BOM))
    except orjson.JSONDecodeError as exc:
        raise _unreadable(source, f"no JSON ({exc})", body) from exc

    jobs = response if isinstance(response, list) else _first(response, "jobs", "items", "results")

    if not isinstance(jobs, list):
        raise _unreadable(source, 'no list under "jobs"', body)

    return [_decode_job(job, source) for job in jobs]


# ASSUMED: all spellings below but "required", compared without regard to case.


def _decode_job(job: Any, source: str) -> Job:
    job_id = _first(job, "jobid", "id")

    if not is_guid(job_id):
        raise _unreadable(source, "a job without a GUID as jobId", _json(job))

    name = _text_or_none(_first(job, "name", "jobname")) or ""
    declared = _first(job, "jobrunparameters", "parameters")
    return Job(str(job_id).lower(), name, tuple(_decode_parameters(declared, source)))


def _decode_parameters(declared: Any, source: str) -> Iterator[JobParameter]:
    if isinstance(declared, dict):
        declared = [{"name": name, **_object(spec)} for name, spec in declared.items()]

    if not isinstance(declared, list | None):
        raise _unreadable(source, "parameters neither list nor object", _json(declared))

    for spec in declared or ():
        name = _first(spec, "name", "parametername")

        if not isinstance(name, str) or not name:
            raise _unreadable(source, "a parameter without a name", _json(spec))

        kind = _first(spec, "type", "datatype", "jobrunparametertype")
        yield JobParameter(
            name=name,
            type=kind if type(kind) is int else _TYPE_NUMBERS.get(str(kind).lower()),
            required=_first(spec, "required", "isrequired") is True,
            nullable=_first(spec, "nullable", "supportsnull", "isnullable", "allownull") is True,
            supports_auto=_first(spec, *_AUTO) is True,
            description=_text_or_none(_first(spec, "description")) or "",
        )


def encode_jobs(jobs: Iterable[Job]) -> list[dict[str, Any]]:
    """Return jobs in QueryJobs' own form, so that what is cached can be read back."""
    names = "name", "type", "required", "nullable", "supportsAutoValue", "description"
    return [
        {
            "jobId": job.job_id,
            "name": job.name,
            "jobRunParameters": [dict(zip(names, p, strict=True)) for p in job.parameters],
        }
        for job in jobs
    ]


def retry_after(headers: Sequence[str], *, now: datetime) -> float | None:
    """Return the whole seconds that Retry-After headers ask for, at least 0; None if unreadable.

    The longest of all that is asked for counts, and a fraction is rounded up: a wait is never
    shortened.

    Args:
        headers: the texts of all Retry-After headers: seconds, or an HTTP date.
        now: the time, with a time zone, from which a date is counted.
    """
    waits: list[float] = []

    for header in headers:
        numbers = [_NUMBER.fullmatch(part) for part in header.split(",")]

        if any(numbers):
            waits += [float(number[1]) for number in numbers if number]
        elif (date := http_date(header)) is not None:
            waits.append((date - now).total_seconds())

    return float(math.ceil(min(max(0.0, *waits), _RETRY_AFTER_LIMIT))) if waits else None


def http_date(header: str | None) -> datetime | None:
    """Return the time that an HTTP date names, with a time zone; None if unreadable."""
    with suppress(ValueError, OverflowError):
        date = parsedate_to_datetime(header or "")
        return date if date.tzinfo is not None else date.replace(tzinfo=UTC)

    return None


def text_of(body: bytes) -> str:
    """Return the text of a response, whole; bytes that are no text as ``base64:…``.

    Text is UTF-8, but for a character that was cut off at the end, or else a page in an 8-bit
    character set, read as Latin-1, which loses no byte.
    """
    with suppress(UnicodeDecodeError):
        return codecs.getincrementaldecoder("utf-8")().decode(body)

    if _BINARY.search(body) is None:
        return body.decode("latin-1")

    return f"base64:{base64.b64encode(body).decode()}"


def error_text(body: str) -> str:
    """Return one readable line of an ErrorResponse, whose fields are not documented."""
    response = _fields_of(body.encode("utf-8", "replace"))
    message = _first(response, "message", "error", "detail", "title")
    page = _PAGE.match(body)
    title = " ".join(page[1].split()) if page else ""
    said = f"a web page, {title!r}" if title else body
    return " ".join((message if isinstance(message, str) else said).split())[:500]


def _first(response: Any, *spellings: str) -> Any:
    """Return the value of the first spelling that an object has, whatever its case."""
    folded = {str(key).lower(): value for key, value in _object(response).items()}
    return next((folded[spelling] for spelling in spellings if spelling in folded), None)


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _fields_of(body: bytes) -> dict[str, Any]:
    """Return the keys of a JSON object; none where the bytes are no such thing."""
    try:
        return _object(orjson.loads(body.removeprefix(_BOM)))
    except orjson.JSONDecodeError:
        return {}


def _text_or_none(value: Any) -> str | None:
    return value[:KEPT] if isinstance(value, str) else None


def _json(part: Any) -> bytes:
    """Return a part of a response as JSON, or nothing: orjson reads deeper than it writes."""
    try:
        return orjson.dumps(part)
    except orjson.JSONEncodeError:
        return b""


def _unreadable(source: str, why: str, body: bytes) -> SchemaError:
    return SchemaError(
        f"{source} can't be read: {why}; it begins: {text_of(body[:200])!r}",
        hint='write the parameters to a file {"jobs": [...]} and pass it with --schema FILE',
    )
