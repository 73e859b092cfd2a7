"""The service without its sockets and without faults: jobs, tokens, runs and endpoints."""

import math
import os
import re
import secrets
import uuid
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs

import orjson

from deslaunch.simulator import faults
from deslaunch.simulator.faults import (
    GUID,
    TEXT,
    Fault,
    Refused,
    Request,
    Response,
    Rule,
    Script,
    is_list_of,
    is_whole,
    shorten,
)

POS_USAGE_EXPORT: Final = "43f87799-62c6-4001-92f9-6b3df816a6d6"
CSV_SALES_EXPORT: Final = "8d0c3c7e-5b0f-4d5e-9a51-0f6a2f1c9e04"

_PASSWORD_FIELDS: Final = ("client_id", "client_secret", "org_id", "username", "password")

Json = dict[str, Any]
Job = Mapping[str, Any]
"""One job of a jobs file, checked."""


# The jobs.


DEFAULT_JOBS: Final[Mapping[str, Any]] = faults.load_json(Path(__file__).with_name("jobs.json"))
"""Two real templates as jobs. ``exclusive`` and ``template`` are private to the simulator."""

_HIDDEN: Final = frozenset({"exclusive", "template"})


def _is_parameter(value: Any) -> bool:
    is_named = isinstance(value, dict) and isinstance(value.get("name"), str)
    return is_named and (value.get("type") is None or is_whole(value["type"]))


_FILE_RULES: Final = {"jobs": Rule("a list of jobs", lambda v: isinstance(v, list))}
_JOB_RULES: Final[Mapping[str, Rule]] = {
    "jobId": GUID,
    "jobRunParameters": Rule(
        "a list of parameters, each with its name and type number", is_list_of(_is_parameter)
    ),
    "exclusive": Rule("a list of lists of names", is_list_of(is_list_of(TEXT.holds))),
}


def read_jobs(jobs: Any) -> dict[str, Job]:
    """Return what a jobs file's JSON says, by jobId in lower case.

    It is a QueryJobs response with two more keys: ``exclusive`` lists groups of parameter names; a
    start that uses more than one group is refused. ``template`` is for the reader.

    Raises:
        SimulatorError: it is malformed.
    """
    found = {}
    faults.check_object(jobs, "", _FILE_RULES, "jobs", is_closed=False)

    for i, job in enumerate(jobs["jobs"]):
        needed = "jobId", "jobRunParameters"
        faults.check_object(job, f"jobs[{i}]", _JOB_RULES, *needed, is_closed=False)
        found[job["jobId"].lower()] = job

    return found


# The rules of a start.


def check_parameters(job: Job, parameters: Mapping[str, Any]) -> None:
    """Check the parameters of one start.

    Raises:
        Refused: 400, the job's template does not take them.
    """
    declared = {parameter["name"]: parameter for parameter in job["jobRunParameters"]}

    for name in parameters.keys() - declared.keys():
        raise Refused(400, f"unknown parameter {name!r}")

    for name, rules in declared.items():
        if name in parameters:
            problem = _problem_of(rules, parameters[name])
        else:
            problem = "is required" if rules.get("required") else ""

        if problem:
            raise Refused(400, f"parameter {name!r} {problem}")

    used = {
        name
        for name, value in parameters.items()
        if value and (value.get("valueStringEncoded") is not None or value.get("useAutoValue"))
    }
    groups = [", ".join(sorted(used.intersection(group))) for group in job.get("exclusive", [])]

    if sum(map(bool, groups)) > 1:
        raise Refused(400, f"either {' or '.join(filter(None, groups))}")


def _problem_of(declared: Mapping[str, Any], value: Any) -> str:
    """Return why a parameter does not take a value, or ``""``."""
    given = {} if value is None else value

    if not isinstance(given, dict):
        return "is neither an object nor null"

    kind, sent = declared.get("type"), given.get("type")
    text, auto = given.get("valueStringEncoded"), given.get("useAutoValue")
    is_value = isinstance(text, str | None) and isinstance(auto, bool | None)
    rules = {
        "has no type number": sent is None or is_whole(sent),
        f"is of type {kind}, not {sent}": None in (sent, kind) or sent == kind,
        "is no JobRunParameterValue": is_value,
        "has no auto value": not auto or declared.get("supportsAutoValue"),
        "has both a value and the auto value": not auto or text is None,
        "can't be null": text is not None or auto or declared.get("nullable"),
        f"is not of type {kind}: {shorten(text)}": not isinstance(text, str)
        or is_text_of(kind, text),
    }
    return next((problem for problem, holds in rules.items() if not holds), "")


_INTEGER, _DECIMAL, _DATETIME = 2, 3, 4
_TEXTS: Final = {
    _INTEGER: re.compile(r"(-?)0*([0-9]{1,19})"),
    _DECIMAL: re.compile(r"-?[0-9]+(?:\.[0-9]+)?"),
    _DATETIME: re.compile(
        r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
        r"(?:T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?"
        r"(?:Z|[+-](?:(?:0[0-9]|1[0-3]):[0-5][0-9]|14:00))?)?"
    ),
}


def is_text_of(type_number: int | None, text: str) -> bool:
    """Return True if a parameter of this type takes the text; an unknown type takes any."""
    if type_number not in _TEXTS:
        return True

    match = _TEXTS[type_number].fullmatch(text)

    if match is not None and type_number == _INTEGER:
        return -(1 << 63) <= int(match[1] + match[2]) < 1 << 63

    if match is not None and type_number == _DATETIME:
        try:
            date.fromisoformat(text[:10])
        except ValueError:
            return False

    return match is not None


# Tokens.


class Tokens:
    """Access tokens, each with the number of starts left to it.

    Args:
        good: tokens that are good from the start, and don't expire by time.
        script: after how many starts a token expires.
        seconds: for which an issued token is good.
        clock: Unix time in seconds.
    """

    def __init__(
        self, good: Iterable[str], script: Script, seconds: float, clock: Callable[[], float]
    ) -> None:
        self.seconds = seconds
        self._clock = clock
        self._script = script
        self._left: dict[str, float] = {}
        self._ends: dict[str, float] = {}

        for token in good:
            self._add(token, math.inf)

    def _add(self, token: str, end: float) -> str:
        limit = self._script.settings.get("tokens", {})
        is_limited = limit.get("which") == "all" or not self._ends  # else the first token only
        self._left[token] = limit.get("expireAfter", math.inf) if is_limited else math.inf
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
        is_good = self._left.get(token, 0) > 0 and self._clock() < self._ends[token]

        if scheme.lower() != "bearer" or not is_good:
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
        parameters: dict[str, Any] = orjson.loads(self.body).get("parameters") or {}
        return parameters

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
        return self._by_id.get(str(job_run_id).lower())

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
        finish_after: seconds from a run's start to its end.

    Attributes:
        svc: base URL that a token's response names; set once the simulator listens.

    Raises:
        SimulatorError: the jobs file is malformed.
    """

    svc = ""

    def __init__(
        self,
        jobs: Mapping[str, Any],
        tokens: Tokens,
        log: RunLog,
        login: Mapping[str, str],
        clock: Callable[[], float],
        finish_after: float,
    ) -> None:
        self._jobs = read_jobs(jobs)
        self._public_jobs = [
            {key: value for key, value in job.items() if key not in _HIDDEN} for job in jobs["jobs"]
        ]
        self._tokens = tokens
        self._organisations: dict[str, str] = {}  # of refresh tokens, each good once
        self._log = log
        self._login = login
        self._clock = clock
        self._finish_after = finish_after

    def serve(self, endpoint: str, request: Request, number: int, fault: Fault | None) -> Response:
        """Return the response that no fault has spoiled yet.

        Args:
            endpoint: its name, ``""`` for a path that is none.
            request: to it.
            number: of the request at this endpoint, from 1.
            fault: what will spoil the response.

        Raises:
            Refused: the request breaks a rule.
            OSError: the log can't be written.
        """
        if not endpoint:
            raise Refused(404, f"no {request.path}")

        if request.method != "POST":
            raise Refused(405, "only POST")

        if endpoint == "token":
            return _respond(self._grant(request))

        token = self._tokens.check_bearer(request)

        if endpoint == "queryjobs":
            return _respond({"jobs": self._public_jobs})

        if endpoint == "queryrunstatus":
            return _respond(self._run_status(_object_of(request)))

        return _respond(self._start(request, token, number, fault))

    def _start(self, request: Request, token: str, number: int, fault: Fault | None) -> Json:
        body = _object_of(request)
        job_id = body.get("jobId")

        if not GUID.holds(job_id):
            raise Refused(400, "jobId is no GUID")

        job_id = str(job_id).lower()

        if job_id not in self._jobs:
            raise Refused(400, f"no job {job_id}")

        parameters = body.get("parameters")

        if not isinstance(parameters, dict | None):
            raise Refused(400, "parameters is no JSON object")

        check_parameters(self._jobs[job_id], parameters or {})
        self._tokens.spend(token)
        says = {} if fault is None else fault.entry
        kind = says.get("fault")
        failure = says.get("error", "the export failed") if kind == "fail-run" else None
        run = Run(str(uuid.uuid4()), job_id, request.body, number, self._clock(), failure)
        self._log.append(run)
        told = self._log.runs[0] if kind == "other-run" else run
        return {"jobId": job_id, "jobRunId": told.job_run_id}

    def _run_status(self, body: Json) -> Json:
        run = self._log.find(body.get("jobRunId"))

        if run is None:
            raise Refused(400, f"no run {shorten(body.get('jobRunId'))}")

        end = run.created + self._finish_after
        is_finished = self._clock() >= end
        is_good = is_finished and run.failure is None
        return {
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

    def _grant(self, request: Request) -> Json:
        form = _form_of(request)
        is_password = form.get("grant_type") == "password"

        if not is_password and form.get("grant_type") != "refresh_token":
            raise _oauth_error("unsupported_grant_type")

        if is_password and not all(map(form.get, _PASSWORD_FIELDS)):
            raise _oauth_error("invalid_request")

        if is_password and not {"des", "offline_access"} <= {*form.get("scope", "").split()}:
            raise _oauth_error("invalid_scope")

        wrong = {name for name, value in self._login.items() if form.get(name, value) != value}

        if wrong & {"client_id", "client_secret"}:
            raise Refused(401, "invalid_client", key="error")

        if wrong:
            raise _oauth_error("invalid_grant")

        spent = form.get("refresh_token", "")
        org_id = form["org_id"] if is_password else self._organisations.pop(spent, "")

        if not org_id:
            raise _oauth_error("invalid_grant")

        refresh_token = secrets.token_urlsafe(24)
        self._organisations[refresh_token] = org_id
        return {
            "token_type": "Bearer",
            "access_token": self._tokens.issue(),
            "expires_in": self._tokens.seconds,
            "refresh_token": refresh_token,
            "svc": self.svc,
            "org_id": org_id,
        }


def _respond(value: object) -> Response:
    return Response(200, orjson.dumps(value))


def _oauth_error(code: str) -> Refused:
    return Refused(400, code, key="error")


def _form_of(request: Request) -> dict[str, str]:
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()

    if content_type != "application/x-www-form-urlencoded":
        raise Refused(400, "the body is not form-encoded")

    return {name: values[-1] for name, values in parse_qs(request.body.decode("latin-1")).items()}


def _object_of(request: Request) -> Json:
    try:
        body = orjson.loads(request.body)
    except orjson.JSONDecodeError as exc:
        raise Refused(400, f"the body is no JSON: {exc.msg}") from exc

    if not isinstance(body, dict):
        raise Refused(400, "the body is no JSON object")

    return body
