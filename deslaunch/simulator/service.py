"""The service without sockets and faults: jobs, tokens, runs, and the four endpoints."""

import math
import os
import re
import secrets
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl

import orjson

from deslaunch.simulator import faults
from deslaunch.simulator.faults import Entry, Json, Refused, Request, is_whole, shorten

POS_USAGE_EXPORT: Final = "43f87799-62c6-4001-92f9-6b3df816a6d6"
CSV_SALES_EXPORT: Final = "8d0c3c7e-5b0f-4d5e-9a51-0f6a2f1c9e04"

DEFAULT_JOBS: Final[Mapping[str, Any]] = faults.load_json(Path(__file__).with_name("jobs.json"))
"""Two real templates as jobs. Only the simulator has the keys ``exclusive`` and ``template``."""

Job = Mapping[str, Any]
"""One job of a jobs file, checked."""


def read_jobs(jobs: Any) -> dict[str, Job]:
    """Check the JSON of a jobs file, and return its jobs by jobId in lower case.

    A jobs file is a QueryJobs response. A job may have two more keys: ``exclusive``, a list of
    groups of parameter names (a start may use only one of the groups), and ``template``, a comment.

    Raises:
        SimulatorError: the file is malformed.
    """
    faults.check_object(jobs, "", ["jobs"], (), is_closed=False)

    for i, job in enumerate(jobs["jobs"]):
        needed = ["jobId", "jobRunParameters"]
        faults.check_object(job, f"jobs[{i}]", needed, ["exclusive"], is_closed=False)

    return {job["jobId"].lower(): job for job in jobs["jobs"]}


# The rules of a start.


def check_parameters(job: Job, parameters: Mapping[str, Any]) -> None:
    """Check the parameters of one start.

    Raises:
        Refused: 400, the job does not accept them.
    """
    declared = {parameter["name"]: parameter for parameter in job["jobRunParameters"]}

    for name in parameters.keys() - declared.keys():
        raise Refused(400, f"unknown parameter {name!r}")

    for name, rules in declared.items():
        problem = _problem_of(rules, parameters[name]) if name in parameters else ""

        if problem or (rules.get("required") and name not in parameters):
            raise Refused(400, f"parameter {name!r} {problem or 'is required'}")

    used = {
        name
        for name, value in parameters.items()
        if value and (value.get("valueStringEncoded") is not None or value.get("useAutoValue"))
    }
    groups = [", ".join(sorted(used.intersection(group))) for group in job.get("exclusive", [])]

    if sum(map(bool, groups)) > 1:
        raise Refused(400, f"expected either {' or '.join(filter(None, groups))}, got both")


def _problem_of(declared: Mapping[str, Any], value: Any) -> str:
    """Return what is wrong with a parameter's value, or ``""``."""
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
    """Return True if a parameter of this type accepts the text; an unknown type accepts any."""
    if type_number not in _TEXTS:
        return True

    match = _TEXTS[type_number].fullmatch(text)

    if match is None or type_number == _DECIMAL:
        return match is not None

    if type_number == _INTEGER:
        return -(1 << 63) <= int(match[1] + match[2]) < 1 << 63

    with suppress(ValueError):
        return bool(date.fromisoformat(text[:10]))

    return False


# Tokens.


@dataclass(repr=False)
class AuthServer:
    """Issues and checks access tokens; each may be limited to a number of starts.

    Attributes:
        limit: ``tokens`` of the script: after how many starts a token expires, and which ones do.
        seconds: for which an issued token is valid.
        login: form fields that a password grant must contain, with their values.
        clock: returns the Unix time in seconds.
        svc: base URL in the response to a grant; set when the simulator listens.
    """

    limit: Mapping[str, Any]
    seconds: float
    login: Mapping[str, str]
    clock: Callable[[], float]
    svc: str = ""
    _left: dict[str, float] = field(default_factory=dict)
    _ends: dict[str, float] = field(default_factory=dict)
    _organisations: dict[str, str] = field(default_factory=dict)  # by refresh token, valid once

    def add(self, token: str, end: float = math.inf) -> None:
        """Accept a token until a Unix time."""
        is_limited = self.limit.get("which") == "all" or not self._ends  # else only the first
        self._left[token] = self.limit.get("expireAfter", math.inf) if is_limited else math.inf
        self._ends[token] = end

    def revoke(self, token: str) -> None:
        """Refuse a token from now on."""
        self._left.pop(token, None)

    def check(self, request: Request) -> str:
        """Return the token of a request.

        Raises:
            Refused: 401, the token is missing, unknown, revoked or expired.
        """
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        is_good = self._left.get(token, 0) > 0 and self.clock() < self._ends[token]

        if scheme.lower() != "bearer" or not is_good:
            raise Refused(401, "the token is missing or invalid")

        return token

    def spend(self, token: str) -> None:
        """Count one start against an access token."""
        self._left[token] -= 1

    def grant(self, request: Request) -> Json:
        """Return a new access token and a new refresh token.

        Raises:
            Refused: 400 or 401, with an error code of RFC 6749.
        """
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()

        if content_type != "application/x-www-form-urlencoded":
            raise Refused(400, "the body: expected application/x-www-form-urlencoded")

        form = dict(parse_qsl(request.body.decode("latin-1")))
        kind, spent = form.get("grant_type"), form.get("refresh_token", "")
        is_login = kind == "password"
        needed = {"client_id", "client_secret", "org_id", "username", "password"}
        scope = {*form.get("scope", "").split()}
        org_id = form.get("org_id") if is_login else self._organisations.get(spent)
        wrong = {name for name, value in self.login.items() if form.get(name, value) != value}
        rules = {
            "unsupported_grant_type": is_login or kind == "refresh_token",
            "invalid_request": needed <= form.keys() or not is_login,
            "invalid_scope": {"des", "offline_access"} <= scope or not is_login,
            "invalid_client": not wrong & {"client_id", "client_secret"},
            "invalid_grant": org_id and not wrong,
        }

        for error, holds in rules.items():
            if not holds:
                raise Refused(401 if error == "invalid_client" else 400, error, key="error")

        self._organisations.pop(spent, None)
        token, refresh_token = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
        self.add(token, self.clock() + self.seconds)
        self._organisations[refresh_token] = str(org_id)
        return {
            "token_type": "Bearer",
            "access_token": token,
            "expires_in": self.seconds,
            "refresh_token": refresh_token,
            "svc": self.svc,
            "org_id": org_id,
        }


# The runs.


class Run(NamedTuple):
    """One run.

    Attributes:
        job_run_id: GUID, unique.
        job_id: GUID, lower case.
        body: of the start, as it was sent.
        request: number of the start request, from 1.
        created: Unix time, seconds.
        failure: status text of a run that fails, or None.
    """

    job_run_id: str
    job_id: str
    body: bytes
    request: int
    created: float
    failure: str | None = None

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The parameters as they were sent."""
        parameters: dict[str, Any] = orjson.loads(self.body).get("parameters") or {}
        return parameters


def _utc(seconds: float) -> str:
    """Return a Unix time in RFC 3339, with milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


@dataclass(repr=False)
class RunLog:
    """All runs, written to the file and then kept in memory, in the same order.

    After a kill the file holds every run that a client has got a response for, and perhaps more.
    It is not synced: a power failure may lose lines.
    """

    path: str | os.PathLike[str] | None
    runs: list[Run] = field(default_factory=list)
    by_id: dict[str, Run] = field(default_factory=dict)
    _file: int = -1

    def open(self) -> None:
        """Open the file for appending; a new one gets mode 0600.

        Raises:
            OSError: the file can't be opened.
        """
        if self.path is not None:
            # O_NONBLOCK: writing to a full pipe fails at once instead of blocking the loop.
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
            self._file = os.open(self.path, flags, 0o600)

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def append(self, run: Run) -> None:
        """Write a run to the file, then keep it in memory.

        Raises:
            OSError: the run could not be written; it is not in memory.
        """
        if self._file >= 0:
            record = {
                "jobRunId": run.job_run_id,
                "jobId": run.job_id,
                "parameters": run.parameters,
                "request": run.request,
                "utc": _utc(run.created),
                "body": run.body.decode(),
            }
            line = memoryview(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))

            while line:
                line = line[os.write(self._file, line) :]

        self.runs.append(run)
        self.by_id[run.job_run_id] = run


# The endpoints.


@dataclass(repr=False)
class Des:
    """The four endpoints.

    Attributes:
        jobs: by jobId in lower case.
        auth: checks the tokens.
        log: keeps the runs.
        clock: returns the Unix time in seconds.
        finish_after: seconds from the start of a run to its end.
    """

    jobs: Mapping[str, Job]
    auth: AuthServer
    log: RunLog
    clock: Callable[[], float]
    finish_after: float

    def serve(self, endpoint: str, request: Request, number: int, entry: Entry) -> Json:
        """Return the answer to a request, without its fault.

        Args:
            endpoint: its name, ``""`` for an unknown path.
            request: the request.
            number: of the request at this endpoint, from 1.
            entry: its fault; two kinds change what is served.

        Raises:
            Refused: the request breaks a rule.
            OSError: the run could not be logged.
        """
        if not endpoint:
            raise Refused(404, f"there is no {request.path}")

        if request.method != "POST":
            raise Refused(405, f"expected POST, got {shorten(request.method)}")

        if endpoint == "token":
            return self.auth.grant(request)

        token = self.auth.check(request)

        if endpoint == "queryjobs":
            private = {"exclusive", "template"}
            jobs = self.jobs.values()
            return {"jobs": [{k: v for k, v in job.items() if k not in private} for job in jobs]}

        try:
            body = orjson.loads(request.body)
        except orjson.JSONDecodeError as exc:
            raise Refused(400, f"the body: expected JSON, got {exc.msg}") from exc

        if not isinstance(body, dict):
            raise Refused(400, "the body: expected a JSON object")

        if endpoint == "queryrunstatus":
            return self._run_status(body)

        run = self._start(body, request.body, number, entry)
        self.auth.spend(token)
        self.log.append(run)
        named = self.log.runs[0] if entry["fault"] == "other-run" else run
        return {"jobId": run.job_id, "jobRunId": named.job_run_id}

    def _start(self, body: Json, sent: bytes, number: int, entry: Entry) -> Run:
        job_id, parameters = body.get("jobId"), body.get("parameters")

        if not faults.is_guid(job_id):
            raise Refused(400, f"jobId: expected a GUID, got {shorten(job_id)}")

        job_id = str(job_id).lower()

        if job_id not in self.jobs:
            raise Refused(400, f"there is no job {job_id}")

        if not isinstance(parameters, dict | None):
            raise Refused(400, f"parameters: expected a JSON object, got {shorten(parameters)}")

        check_parameters(self.jobs[job_id], parameters or {})
        is_failing = entry["fault"] == "fail-run"
        failure = entry.get("error", "the export failed") if is_failing else None
        return Run(str(uuid.uuid4()), job_id, sent, number, self.clock(), failure)

    def _run_status(self, body: Json) -> Json:
        run = self.log.by_id.get(str(body.get("jobRunId")).lower())

        if run is None:
            raise Refused(400, f"there is no run {shorten(body.get('jobRunId'))}")

        end = run.created + self.finish_after
        is_finished = self.clock() >= end
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
