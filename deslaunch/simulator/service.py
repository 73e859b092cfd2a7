"""The service without its sockets and without faults: jobs, tokens, runs and endpoints."""

from __future__ import annotations

import math
import os
import re
import secrets
import uuid
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import parse_qs

import orjson

from deslaunch.simulator import faults
from deslaunch.simulator.faults import GUID, TEXT, TRUTH, Rule
from deslaunch.simulator.http import Request, Response, shorten

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from deslaunch.simulator.faults import Fault, Script

    Clock = Callable[[], float]

POS_USAGE_EXPORT: Final = "43f87799-62c6-4001-92f9-6b3df816a6d6"
CSV_SALES_EXPORT: Final = "8d0c3c7e-5b0f-4d5e-9a51-0f6a2f1c9e04"

_INTEGER: Final = 2
_DECIMAL: Final = 3
_DATETIME: Final = 4

_PASSWORD_FIELDS: Final = ("client_id", "client_secret", "org_id", "username", "password")


class Refused(Exception):
    """The service says no to one request.

    Attributes:
        response: 400, 401 or 405, with the reason as JSON.
    """

    def __init__(self, status: int, message: str, *, key: str = "message") -> None:
        super().__init__(message)
        self.response = Response(status, orjson.dumps({key: message}))


# The jobs.


DEFAULT_JOBS: Final[Mapping[str, Any]] = faults.load_json(Path(__file__).with_name("jobs.json"))
"""Two real templates as jobs. ``exclusive`` and ``template`` are private to the simulator."""

_JOB_RULES: Final[Mapping[str, Rule]] = {
    "jobId": GUID,
    "name": TEXT,
    "jobRunParameters": Rule("a list of parameters", lambda v: isinstance(v, list)),
    "exclusive": Rule("a list of lists of names", faults.is_list_of(faults.is_list_of(TEXT.holds))),
}
_PARAMETER_RULES: Final[Mapping[str, Rule]] = {
    "name": TEXT,
    "type": Rule("a type number or null", lambda v: v is None or faults.is_whole(v)),
    "required": TRUTH,
    "nullable": TRUTH,
    "supportsAutoValue": TRUTH,
}


class Job(NamedTuple):
    """One job as a start sees it.

    Attributes:
        job_id: GUID, lower case.
        parameters: name to what the jobs file says of it.
        exclusive: groups of names; one start may use one of them.
    """

    job_id: str
    parameters: Mapping[str, Mapping[str, Any]]
    exclusive: tuple[frozenset[str], ...]


def read_jobs(jobs: Any) -> dict[str, Job]:
    """Return what a jobs file's JSON says, by jobId in lower case.

    It is a QueryJobs response with two more keys: ``exclusive`` lists groups of parameter names; a
    start that uses more than one group is refused. ``template`` is for the reader.

    Raises:
        SimulatorError: it is malformed.
    """
    rules = {"jobs": Rule("a list of jobs", lambda v: isinstance(v, list))}
    top = faults.check_object(jobs, "", rules, "jobs", is_closed=False)
    read = [_read_job(job, f"jobs[{i}]") for i, job in enumerate(top["jobs"])]
    return {job.job_id: job for job in read}


def _read_job(job: Any, where: str) -> Job:
    needed = "jobId", "jobRunParameters"
    checked = faults.check_object(job, where, _JOB_RULES, *needed, is_closed=False)
    parameters: dict[str, dict[str, Any]] = {}

    for i, item in enumerate(checked["jobRunParameters"]):
        inside = f"{where}.jobRunParameters[{i}]"
        declared = faults.check_object(item, inside, _PARAMETER_RULES, "name", is_closed=False)
        parameters[declared["name"]] = declared

    exclusive = tuple(map(frozenset, checked.get("exclusive", [])))
    return Job(checked["jobId"].lower(), parameters, exclusive)


def _public_jobs(jobs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the jobs file as QueryJobs shows it."""
    hidden = ("exclusive", "template")
    public = [{k: v for k, v in job.items() if k not in hidden} for job in jobs["jobs"]]
    return {"jobs": public}


# The rules of a start.


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
        elif declared.get("required", False):
            raise Refused(400, f"parameter {name!r} is required")

    used = {name for name, value in parameters.items() if _is_used(value)}
    groups = [group & used for group in job.exclusive if group & used]

    if len(groups) > 1:
        raise Refused(400, f"either {' or '.join(', '.join(sorted(g)) for g in groups)}")


def _is_used(value: Any) -> bool:
    return value is not None and (
        value.get("valueStringEncoded") is not None or value.get("useAutoValue") is True
    )


def _check_value(name: str, declared: Mapping[str, Any], value: Any) -> None:
    given = {} if value is None else value

    if not isinstance(given, dict):
        raise Refused(400, f"parameter {name!r} is neither an object nor null")

    declared_type, sent_type = declared.get("type"), given.get("type")
    text, auto = given.get("valueStringEncoded"), given.get("useAutoValue")

    if sent_type is not None and not faults.is_whole(sent_type):
        raise Refused(400, f"parameter {name!r} has no type number")

    if None not in (sent_type, declared_type) and sent_type != declared_type:
        raise Refused(400, f"parameter {name!r} is of type {declared_type}, not {sent_type}")

    if not isinstance(text, str | None) or not isinstance(auto, bool | None):
        raise Refused(400, f"parameter {name!r} is no JobRunParameterValue")

    if auto and not declared.get("supportsAutoValue", False):
        raise Refused(400, f"parameter {name!r} has no auto value")

    if auto and text is not None:
        raise Refused(400, f"parameter {name!r} has both a value and the auto value")

    if text is None and not auto and not declared.get("nullable", False):
        raise Refused(400, f"parameter {name!r} can't be null")

    if text is not None and not is_text_of(declared_type, text):
        raise Refused(400, f"parameter {name!r} is not of type {declared_type}: {shorten(text)}")


_INTEGER_TEXT: Final = re.compile(r"(-?)0*([0-9]{1,19})")
_DECIMAL_TEXT: Final = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
_DATETIME_TEXT: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"(?:T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?"
    r"(?:Z|[+-](?:(?:0[0-9]|1[0-3]):[0-5][0-9]|14:00))?)?"
)


def is_text_of(type_number: int | None, text: str) -> bool:
    """Return True if a parameter of this type takes the text; an unknown type takes any."""
    if type_number == _INTEGER:
        match = _INTEGER_TEXT.fullmatch(text)
        return match is not None and -(1 << 63) <= int(match[1] + match[2]) < 1 << 63

    if type_number == _DECIMAL:
        return _DECIMAL_TEXT.fullmatch(text) is not None

    return type_number != _DATETIME or _is_datetime(text)


def _is_datetime(text: str) -> bool:
    if _DATETIME_TEXT.fullmatch(text) is None:
        return False

    try:
        date.fromisoformat(text[:10])
    except ValueError:
        return False

    return True


# Tokens.


class Tokens:
    """Access tokens, each with the number of starts left to it.

    Args:
        good: tokens that are good from the start, and don't expire by time.
        script: after how many starts a token expires.
        seconds: for which an issued token is good.
        clock: Unix time in seconds.
    """

    def __init__(self, good: Iterable[str], script: Script, seconds: float, clock: Clock) -> None:
        self.seconds = seconds
        self._clock = clock
        self._script = script
        self._left: dict[str, float] = {}
        self._ends: dict[str, float] = {}

        for token in good:
            self._add(token, math.inf)

    def _add(self, token: str, end: float) -> str:
        expires = self._script.expires_all or not self._ends  # no more: the first token only
        self._left[token] = self._script.expire_after if expires else math.inf
        self._ends[token] = end
        return token

    def issue(self) -> str:
        """Return a new access token."""
        return self._add(secrets.token_urlsafe(24), self._clock() + self.seconds)

    def revoke(self, token: str) -> None:
        """Accept a token no more."""
        self._left.pop(token, None)

    def check_bearer(self, request: Request) -> str:
        """Return the token of a request.

        Raises:
            Refused: 401, it is missing, unknown, revoked or expired.
        """
        scheme, _, token = request.headers.get("authorization", "").partition(" ")

        if (
            scheme.lower() != "bearer"
            or self._left.get(token, 0) <= 0
            or self._clock() >= self._ends[token]
        ):
            raise Refused(401, "the token is missing or invalid")

        return token

    def spend(self, token: str) -> None:
        """Count one start against an access token."""
        self._left[token] -= 1


# The runs.


class Run(NamedTuple):
    """One run that was made.

    Attributes:
        job_run_id: GUID, unique.
        job_id: GUID, lower case.
        body: of the start, as it was sent.
        request: number of the start request, from 1.
        created: Unix time, seconds.
        failure: status text of a run that will fail, or None.
    """

    job_run_id: str
    job_id: str
    body: bytes
    request: int
    created: float
    failure: str | None = None

    @property
    def parameters(self) -> Mapping[str, Any]:
        """As they were sent."""
        return _parameters_of(orjson.loads(self.body))

    def line(self) -> bytes:
        """Return the log's line, with its newline."""
        record = {
            "jobRunId": self.job_run_id,
            "jobId": self.job_id,
            "parameters": self.parameters,
            "request": self.request,
            "utc": _utc(self.created),
            "body": self.body.decode(),
        }
        return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)


def _utc(seconds: float) -> str:
    """Return a Unix time as RFC 3339 writes it, in milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


class RunLog:
    """Runs, first in the file and then in memory, in the same order.

    After a kill the file holds every run that was told to a client, and perhaps some that were
    not. It is not synced: a power cut may lose lines.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self.runs: list[Run] = []
        self._by_id: dict[str, Run] = {}
        self._path = path
        self._file = -1

    def find(self, job_run_id: object) -> Run | None:
        """Return the run with this id, in either case of letters, or None."""
        return self._by_id.get(job_run_id.lower()) if isinstance(job_run_id, str) else None

    def open(self) -> None:
        """Open the file for appending, with mode 0600 where it is new.

        Raises:
            OSError: it can't be opened.
        """
        if self._path is not None:
            # A pipe that nobody empties fails at once (O_NONBLOCK): the loop is never held up.
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
            self._file = os.open(self._path, flags, 0o600)

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def append(self, run: Run) -> None:
        """Put a run into the file and into memory.

        Raises:
            OSError: it could not be written; the run is not in memory.
        """
        if self._file >= 0:
            line = memoryview(run.line())

            while line:
                line = line[os.write(self._file, line) :]

        self.runs.append(run)
        self._by_id[run.job_run_id] = run


# The endpoints.


class Des:
    """The four endpoints.

    Args:
        jobs: a jobs file's JSON.
        tokens: who may call.
        log: where runs are kept.
        login: what a password grant must say; what it does not name may be anything.
        clock: Unix time in seconds.

    Attributes:
        svc: base URL that a token's response names; set once the simulator listens.
        finish_after: seconds from a run's start to its end.
    """

    svc = ""
    finish_after = 0.0

    def __init__(
        self,
        jobs: Mapping[str, Any],
        tokens: Tokens,
        log: RunLog,
        login: Mapping[str, str],
        clock: Clock,
    ) -> None:
        self._jobs = read_jobs(jobs)
        self._jobs_response = _respond(_public_jobs(jobs))
        self._tokens = tokens
        self._organisations: dict[str, str] = {}  # of refresh tokens, each good once
        self._log = log
        self._login = login
        self._clock = clock

    def serve(self, endpoint: str, request: Request, number: int, fault: Fault | None) -> Response:
        """Return the response that no fault has spoiled yet.

        Raises:
            Refused: the request breaks a rule.
            OSError: the log can't be written.
        """
        if request.method != "POST":
            raise Refused(405, "only POST")

        if endpoint == faults.TOKEN:
            return self._grant(request)

        token = self._tokens.check_bearer(request)

        if endpoint == faults.QUERY_JOBS:
            return self._jobs_response

        if endpoint == faults.QUERY_RUN_STATUS:
            return self._run_status(request)

        return self._start(request, token, number, fault)

    def _start(self, request: Request, token: str, number: int, fault: Fault | None) -> Response:
        body = _object_of(request)
        job = self._job_of(body)
        check_parameters(job, _parameters_of(body))
        self._tokens.spend(token)
        kind, failure = None if fault is None else fault.kind, None

        if fault is not None and kind == "fail-run":
            failure = fault.entry.get("error", "the export failed")

        run = Run(str(uuid.uuid4()), job.job_id, request.body, number, self._clock(), failure)
        self._log.append(run)
        told = self._log.runs[0] if kind == "other-run" else run
        return _respond({"jobId": run.job_id, "jobRunId": told.job_run_id})

    def _job_of(self, body: Mapping[str, Any]) -> Job:
        job_id = body.get("jobId")

        if not GUID.holds(job_id):
            raise Refused(400, "jobId is no GUID")

        job = self._jobs.get(str(job_id).lower())

        if job is None:
            raise Refused(400, f"no job {job_id}")

        return job

    def _run_status(self, request: Request) -> Response:
        job_run_id = _object_of(request).get("jobRunId")
        run = self._log.find(job_run_id)

        if run is None:
            raise Refused(400, f"no run {shorten(job_run_id)}")

        end = run.created + self.finish_after
        is_finished = self._clock() >= end
        is_good = is_finished and run.failure is None
        status = {
            "jobId": run.job_id,
            "jobRunId": run.job_run_id,
            "finished": is_finished,
            "success": is_good,
            "status": run.failure if is_finished else None,
            "triggeringAuthServerUserId": "1",
            "triggeringAuthServerUserName": "simulator",
            "createdUtc": _utc(run.created),
            "finishedUtc": _utc(end) if is_finished else None,
            "outputFiles": [{"fileName": f"{run.job_run_id}.csv"}] if is_good else [],
        }
        return _respond(status)

    def _grant(self, request: Request) -> Response:
        form = _form_of(request)
        grant = form.get("grant_type")

        if grant == "password":
            self._check_password(form)
            org_id = form["org_id"]
        elif grant == "refresh_token":
            self._check_login(form)
            org_id = self._organisations.pop(form.get("refresh_token", ""), "")
        else:
            raise _oauth_error("unsupported_grant_type")

        if not org_id:
            raise _oauth_error("invalid_grant")

        refresh_token = secrets.token_urlsafe(24)
        self._organisations[refresh_token] = org_id
        granted = {
            "token_type": "Bearer",
            "access_token": self._tokens.issue(),
            "expires_in": self._tokens.seconds,
            "refresh_token": refresh_token,
            "svc": self.svc,
            "org_id": org_id,
        }
        return _respond(granted)

    def _check_password(self, form: Mapping[str, str]) -> None:
        if not all(form.get(name) for name in _PASSWORD_FIELDS):
            raise _oauth_error("invalid_request")

        if not {"des", "offline_access"} <= set(form.get("scope", "").split()):
            raise _oauth_error("invalid_scope")

        self._check_login(form)

    def _check_login(self, form: Mapping[str, str]) -> None:
        wrong = {name for name, value in self._login.items() if form.get(name, value) != value}

        if wrong & {"client_id", "client_secret"}:
            raise Refused(401, "invalid_client", key="error")

        if wrong:
            raise _oauth_error("invalid_grant")


def _respond(value: object) -> Response:
    return Response(200, orjson.dumps(value))


def _oauth_error(code: str) -> Refused:
    return Refused(400, code, key="error")


def _form_of(request: Request) -> dict[str, str]:
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()

    if content_type != "application/x-www-form-urlencoded":
        raise Refused(400, "the body is not form-encoded")

    return {name: values[-1] for name, values in parse_qs(request.body.decode("latin-1")).items()}


def _object_of(request: Request) -> dict[str, Any]:
    try:
        body = orjson.loads(request.body)
    except orjson.JSONDecodeError as exc:
        raise Refused(400, f"the body is no JSON: {exc.msg}") from exc

    if not isinstance(body, dict):
        raise Refused(400, "the body is no JSON object")

    return body


def _parameters_of(body: Mapping[str, Any]) -> dict[str, Any]:
    parameters = body.get("parameters")

    if not isinstance(parameters, dict | None):
        raise Refused(400, "parameters is no JSON object")

    return parameters or {}
