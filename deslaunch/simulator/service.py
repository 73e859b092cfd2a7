"""The service without its sockets and without faults: requests in, answers out."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs

import orjson

from deslaunch.simulator.endpoints import QUERY_JOBS, QUERY_RUN_STATUS, TOKEN
from deslaunch.simulator.errors import Refused, shorten
from deslaunch.simulator.files import is_guid
from deslaunch.simulator.http import Answer, Request
from deslaunch.simulator.jobs import Job, check_parameters, public_jobs, read_jobs
from deslaunch.simulator.runs import Run, RunLog, utc

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from deslaunch.simulator.faults import Fault
    from deslaunch.simulator.tokens import Tokens

_PASSWORD_FIELDS: Final = ("client_id", "client_secret", "org_id", "username", "password")


class Des:
    """The four endpoints.

    Args:
        jobs: a jobs file's JSON.
        tokens: who may call.
        log: where runs are kept.
        login: what a password grant must say; what it does not name may be anything.
        finish_after: seconds from a run's start to its end.
        clock: Unix time in seconds.

    Attributes:
        svc: base URL that a token's answer names; set once the simulator listens.
    """

    def __init__(
        self,
        jobs: Mapping[str, Any],
        tokens: Tokens,
        log: RunLog,
        *,
        login: Mapping[str, str],
        finish_after: float,
        clock: Callable[[], float],
    ) -> None:
        self.svc = ""
        self._login = login
        self._jobs = read_jobs(jobs)
        self._jobs_answer = Answer.json(200, public_jobs(jobs))
        self._tokens = tokens
        self._log = log
        self._finish_after = finish_after
        self._clock = clock

    async def serve(
        self, endpoint: str, request: Request, number: int, fault: Fault | None
    ) -> Answer:
        """Return the answer that no fault has spoiled yet.

        Raises:
            Refused: the request breaks a rule.
            OSError: the log can't be written.
        """
        if request.method != "POST":
            raise Refused(405, "only POST")

        if endpoint == TOKEN:
            return self._grant(request)

        token = self._tokens.bearer(request)

        if endpoint == QUERY_JOBS:
            return self._jobs_answer

        if endpoint == QUERY_RUN_STATUS:
            return self._run_status(request)

        failure = fault.error if fault is not None and fault.kind == "fail-run" else None
        return await self._start(request, token, number, failure)

    async def _start(
        self, request: Request, token: str, number: int, failure: str | None
    ) -> Answer:
        body = _object_of(request)
        job = self._job_of(body)
        parameters = _parameters_of(body)
        check_parameters(job, parameters)
        self._tokens.spend(token)
        run = Run(str(uuid.uuid4()), job.job_id, parameters, number, self._clock(), failure)
        await self._log.append(run)
        return Answer.json(200, {"jobId": run.job_id, "jobRunId": run.job_run_id})

    def _job_of(self, body: Mapping[str, Any]) -> Job:
        job_id = body.get("jobId")

        if not is_guid(job_id):
            raise Refused(400, "jobId is no GUID")

        job = self._jobs.get(str(job_id).lower())

        if job is None:
            raise Refused(400, f"no job {job_id}")

        return job

    def _run_status(self, request: Request) -> Answer:
        job_run_id = _object_of(request).get("jobRunId")
        run = self._log.find(job_run_id)

        if run is None:
            raise Refused(400, f"no run {shorten(job_run_id)}")

        return Answer.json(200, self._describe(run))

    def _describe(self, run: Run) -> dict[str, Any]:
        finished = self._clock() >= run.created + self._finish_after
        success = finished and run.failure is None
        return {
            "jobId": run.job_id,
            "jobRunId": run.job_run_id,
            "finished": finished,
            "success": success,
            "status": run.failure if finished else None,
            "triggeringAuthServerUserId": "1",
            "triggeringAuthServerUserName": "simulator",
            "createdUtc": utc(run.created),
            "finishedUtc": utc(run.created + self._finish_after) if finished else None,
            "outputFiles": [{"fileName": f"{run.job_run_id}.csv"}] if success else [],
        }

    def _grant(self, request: Request) -> Answer:
        form = {name: values[-1] for name, values in _form_of(request).items()}
        grant = form.get("grant_type")

        if grant == "password":
            return self._grant_password(form)

        if grant == "refresh_token":
            return self._grant_refresh(form)

        raise _oauth_error("unsupported_grant_type")

    def _grant_password(self, form: Mapping[str, str]) -> Answer:
        if not all(form.get(name) for name in _PASSWORD_FIELDS):
            raise _oauth_error("invalid_request")

        if not {"des", "offline_access"} <= set(form.get("scope", "").split()):
            raise _oauth_error("invalid_scope")

        self._check_login(form)
        return self._token_answer(form["org_id"])

    def _check_login(self, form: Mapping[str, str]) -> None:
        wrong = {name for name, value in self._login.items() if form.get(name, value) != value}

        if wrong & {"client_id", "client_secret"}:
            raise Refused(401, "invalid_client", key="error")

        if wrong:
            raise _oauth_error("invalid_grant")

    def _grant_refresh(self, form: Mapping[str, str]) -> Answer:
        self._check_login(form)
        org_id = self._tokens.spend_refresh(form.get("refresh_token", ""))

        if org_id is None:
            raise _oauth_error("invalid_grant")

        return self._token_answer(org_id)

    def _token_answer(self, org_id: str) -> Answer:
        granted = {
            "token_type": "Bearer",
            "access_token": self._tokens.issue(),
            "expires_in": self._tokens.seconds,
            "refresh_token": self._tokens.issue_refresh(org_id),
            "svc": self.svc,
            "org_id": org_id,
        }
        return Answer.json(200, granted)


def _oauth_error(code: str) -> Refused:
    return Refused(400, code, key="error")


def _form_of(request: Request) -> dict[str, list[str]]:
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()

    if content_type != "application/x-www-form-urlencoded":
        raise Refused(400, "the body is not form-encoded")

    return parse_qs(request.body.decode("latin-1"))


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

    if parameters is None:
        return {}

    if not isinstance(parameters, dict):
        raise Refused(400, "parameters is no JSON object")

    return parameters
