"""DES's JSON and headers, encoded and decoded, with every assumed spelling.

The vendor documents ``startjob`` and ``queryrunstatus`` (paths, responses), the shapes of
``StartJobBody`` and ``JobRunParameterValue``, the type numbers 2, 3 and 4, and the word
``required``. Everything marked ASSUMED below is on no public page. If an assumption about QueryJobs
is wrong, a schema file replaces the query; the same tolerant decoder reads it.
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
"""A parameter's value for ``DesClient.start_job``; ``bool`` is an ``int``."""

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
"""Bytes of the metadata of a run's output files that are kept, as JSON."""

_RETRY_AFTER_LIMIT: Final = 1e9  # seconds: 31 years; 400 digits would be infinity

_BOM: Final = b"\xef\xbb\xbf"
_BINARY: Final = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_NUMBER: Final = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?)\s*", re.ASCII)
_PAGE: Final = re.compile(r"\s*<.*?<title>([^<]*)", re.IGNORECASE | re.DOTALL)
_JOB_RUN_ID: Final = re.compile(rb'"jobRunId"\s*:\s*"(%s)"' % GUID.encode(), re.IGNORECASE)


def type_name(number: int | None) -> str:
    """Return the name of a JobRunParameterType; None is a string, as in DES."""
    return "string" if number is None else TYPE_NAMES.get(number, f"type {number}")


def parameter_value(type_number: int | None, value: str | Auto | None) -> dict[str, Any]:
    """Return the JobRunParameterValue of one value.

    Args:
        type_number: JobRunParameterType, or None to leave it out (DES: a string).
        value: the text, None for null, or ``AUTO``.
    """
    declared = {} if type_number is None else {"type": type_number}

    if value is AUTO:
        return {**declared, "valueStringEncoded": None, "useAutoValue": True}

    return {**declared, "valueStringEncoded": value}


def encode_value(name: str, value: Value) -> dict[str, Any]:
    """Return the JobRunParameterValue of a Python value.

    Raises:
        TypeError: the value is a float, or of another type that has no encoding.
        ValueError: the value is a Decimal that is not finite.
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
            raise ValueError(f"{name}: expected a finite number, got {value}")
        case datetime():
            text = re.sub(r"\+00:00$", "Z", value.isoformat())
            return parameter_value(DATETIME, text)
        case _:
            raise TypeError(
                f"{name}: expected str, int, Decimal, datetime, bool, None, AUTO or "
                f"JobRunParameterValue, got {type(value).__name__}"
            )


def start_job_body(job_id: str, parameters: Mapping[str, Any]) -> bytes:
    """Return a StartJobBody with encoded parameter values, as JSON in UTF-8."""
    return orjson.dumps({"jobId": job_id, "parameters": parameters})


def run_status_body(job_run_id: str) -> bytes:
    """Return the body of a request to queryrunstatus. ASSUMED."""
    return orjson.dumps({"jobRunId": job_run_id})


def decode_grant(body: bytes) -> dict[str, str]:
    """Decode any response of the auth server to a grant.

    Returns:
        Its keys with a string that is not empty: ``access_token``, ``refresh_token``, ``svc``
        (base URL of the DES that accepts the token), ``org_id``, and ``error`` (show only a known
        code).
    """
    return {name: v for name, v in _fields_of(body).items() if isinstance(v, str) and v}


def decode_started(body: bytes) -> StartedRun | None:
    """Decode a StartJobResponse.

    Returns:
        The run, with its jobId in lower case; None if the body is no JSON object with a string as
        ``jobId`` and a GUID as ``jobRunId``.
    """
    response = _fields_of(body)
    job_id, job_run_id = response.get("jobId"), response.get("jobRunId")

    if isinstance(job_id, str) and is_guid(job_run_id):
        return StartedRun(job_id.lower(), job_run_id)

    return None


def job_run_ids_in(body: bytes) -> list[str]:
    """Return the jobRunIds in an unusable response, even if it is incomplete JSON."""
    return [job_run_id.decode() for job_run_id in _JOB_RUN_ID.findall(body)]


def decode_run_status(body: bytes) -> RunStatus | None:
    """Decode a QueryJobRunStatusResponse; None if it lacks ``jobRunId`` or ``finished``."""
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
    """Return the metadata of the first files, up to the limit, that can be encoded."""
    sizes = [len(_json(file)) for file in files]
    totals = zip(files, sizes, accumulate(sizes), strict=True)
    return tuple(file for file, size, total in totals if size and total <= FILES_LIMIT)


def decode_jobs(body: bytes, *, source: str) -> list[Job]:
    """Decode the jobs of a QueryJobs response, or of a schema file in the same form.

    The case of keys does not matter, unknown keys are ignored, and the parameters may be a list,
    or an object keyed by name.

    Args:
        body: JSON, UTF-8.
        source: name of the bytes in messages.

    Raises:
        SchemaError: the bytes have another shape; the message shows the first 200.
    """
    try:
        response = orjson.loads(body.removeprefix(_BOM))
    except orjson.JSONDecodeError as exc:
        raise _unreadable(source, f"JSON ({exc})", body) from exc

    jobs = response if isinstance(response, list) else _first(response, "jobs", "items", "results")

    if not isinstance(jobs, list):
        raise _unreadable(source, 'a list under "jobs"', body)

    return [_decode_job(job, source) for job in jobs]


# ASSUMED: all spellings below but "required"; their case does not matter.


def _decode_job(job: Any, source: str) -> Job:
    job_id = _first(job, "jobid", "id")

    if not is_guid(job_id):
        raise _unreadable(source, "a job with a GUID as jobId", _json(job))

    name = _text_or_none(_first(job, "name", "jobname")) or ""
    declared = _first(job, "jobrunparameters", "parameters")
    return Job(str(job_id).lower(), name, tuple(_decode_parameters(declared, source)))


def _decode_parameters(declared: Any, source: str) -> Iterator[JobParameter]:
    if isinstance(declared, dict):
        declared = [{"name": name, **_object(spec)} for name, spec in declared.items()]

    if not isinstance(declared, list | None):
        raise _unreadable(source, "parameters as a list or an object", _json(declared))

    for spec in declared or ():
        name = _first(spec, "name", "parametername")

        if not isinstance(name, str) or not name:
            raise _unreadable(source, "a parameter with a name", _json(spec))

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
    """Return jobs in the form of a QueryJobs response, which :func:`decode_jobs` reads."""
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

    The longest counts, and fractions are rounded up, so that no wait is shortened.

    Args:
        headers: values of all Retry-After headers: seconds, or an HTTP date.
        now: the time to subtract from a date, with a time zone.
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
    """Return an HTTP date with a time zone; None if unreadable."""
    with suppress(ValueError, OverflowError):
        date = parsedate_to_datetime(header or "")
        return date if date.tzinfo is not None else date.replace(tzinfo=UTC)

    return None


def text_of(body: bytes) -> str:
    """Return all of a response as text; binary bytes as ``base64:…``.

    Text is UTF-8, without an incomplete character at the end. Anything else without control
    characters is decoded as Latin-1, which loses no byte.
    """
    with suppress(UnicodeDecodeError):
        return codecs.getincrementaldecoder("utf-8")().decode(body)

    if _BINARY.search(body) is None:
        return body.decode("latin-1")

    return f"base64:{base64.b64encode(body).decode()}"


def error_text(body: str) -> str:
    """Return the message of an ErrorResponse, whose fields are not documented, as one line."""
    response = _fields_of(body.encode("utf-8", "replace"))
    message = _first(response, "message", "error", "detail", "title")
    page = _PAGE.match(body)
    title = " ".join(page[1].split()) if page else ""
    text = f"a web page, {title!r}" if title else body
    return " ".join((message if isinstance(message, str) else text).split())[:500]


def _first(response: Any, *spellings: str) -> Any:
    """Return the value of the first of these keys in an object, in any case of letters."""
    folded = {str(key).lower(): value for key, value in _object(response).items()}
    return next((folded[spelling] for spelling in spellings if spelling in folded), None)


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _fields_of(body: bytes) -> dict[str, Any]:
    """Return a JSON object; an empty one if the bytes are none."""
    try:
        return _object(orjson.loads(body.removeprefix(_BOM)))
    except orjson.JSONDecodeError:
        return {}


def _text_or_none(value: Any) -> str | None:
    return value[:KEPT] if isinstance(value, str) else None


def _json(part: Any) -> bytes:
    """Return a part of a response as JSON, or ``b""``: orjson decodes deeper than it encodes."""
    try:
        return orjson.dumps(part)
    except orjson.JSONEncodeError:
        return b""


def _unreadable(source: str, expected: str, body: bytes) -> SchemaError:
    return SchemaError(
        f"{source} can't be read: expected {expected}, got {text_of(body[:200])!r}",
        hint='write the parameters to a file {"jobs": [...]} and pass it with --schema FILE',
    )
