"""The simulator's endpoints and tokens."""

from __future__ import annotations

from typing import Any

import pytest
from rawdes import (
    GRANT,
    JOBS,
    JSON_HEAD,
    PASSWORD,
    START,
    STATUS,
    ask,
    connect,
    encode,
    grant,
    integer,
    raw,
    start_body,
)

from deslaunch.simulator import DEFAULT_JOBS, OTHER_JOB, POS_USAGE_EXPORT, Simulator


async def test_a_start_is_answered_with_its_run() -> None:
    async with Simulator() as simulator:
        answer = await raw(simulator, encode())

    (run,) = simulator.runs
    body = b'{"jobId":"%b","jobRunId":"%b"}' % (run.job_id.encode(), run.job_run_id.encode())
    assert answer == JSON_HEAD % len(body) + body
    assert (run.job_id, run.parameters, run.request) == (
        POS_USAGE_EXPORT,
        {"DBGenFrom": integer("1")},
        1,
    )


async def test_a_connection_serves_many_requests() -> None:
    async with Simulator() as simulator, connect(simulator) as client:
        for _ in range(3):
            await client.send(encode(close=False))
            status, _, _ = await client.answer()
            assert status == 200

        assert (simulator.requests, simulator.count("connection")) == (3, 1)
        assert len({run.job_run_id for run in simulator.runs}) == 3


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        pytest.param("/", "POST", 404, id="root"),
        pytest.param("/api/v1/getrunfiles", "POST", 404, id="unknown-endpoint"),
        pytest.param(START, "GET", 405, id="start-by-get"),
        pytest.param(JOBS, "GET", 405, id="jobs-by-get"),
    ],
)
async def test_other_paths_and_methods_are_refused(path: str, method: str, status: int) -> None:
    async with Simulator() as simulator:
        answered, body = await ask(simulator, path, method=method)

    assert (answered, list(body), simulator.runs) == (status, ["message"], [])


async def test_query_jobs_hides_what_des_hides() -> None:
    async with Simulator() as simulator:
        status, answer = await ask(simulator, JOBS, {})

    assert status == 200
    assert [sorted(job) for job in answer["jobs"]] == [["jobId", "jobRunParameters", "name"]] * 2
    assert answer["jobs"][0]["jobRunParameters"] == DEFAULT_JOBS["jobs"][0]["jobRunParameters"]


async def test_run_status_follows_the_clock() -> None:
    now = 1_000_000.5

    async with Simulator(finish_after=10, clock=lambda: now) as simulator:
        _, started = await ask(simulator)
        query = {"jobRunId": started["jobRunId"].upper()}
        _, running = await ask(simulator, STATUS, query)
        now += 10
        _, finished = await ask(simulator, STATUS, query)

    assert running == {
        "jobId": POS_USAGE_EXPORT,
        "jobRunId": started["jobRunId"],
        "finished": False,
        "success": False,
        "status": None,
        "triggeringAuthServerUserId": "1",
        "triggeringAuthServerUserName": "simulator",
        "createdUtc": "1970-01-12T13:46:40.500Z",
        "finishedUtc": None,
        "outputFiles": [],
    }
    assert finished == running | {
        "finished": True,
        "success": True,
        "finishedUtc": "1970-01-12T13:46:50.500Z",
        "outputFiles": [{"fileName": f"{started['jobRunId']}.csv"}],
    }


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({"jobRunId": OTHER_JOB}, id="unknown-run"),
        pytest.param({"jobRunId": 7}, id="no-text"),
        pytest.param({}, id="no-id"),
        pytest.param([], id="no-object"),
        pytest.param(b"{", id="no-json"),
    ],
)
async def test_run_status_refuses(body: Any) -> None:
    async with Simulator() as simulator:
        status, _ = await ask(simulator, STATUS, body)

    assert status == 400


@pytest.mark.parametrize("path", [START, JOBS, STATUS])
@pytest.mark.parametrize(
    "authorization",
    [
        pytest.param(b"", id="none"),
        pytest.param(b"Authorization: Bearer other\r\n", id="unknown"),
        pytest.param(b"Authorization: Bearer \r\n", id="empty"),
        pytest.param(b"Authorization: Basic t\r\n", id="basic"),
        pytest.param(b"Authorization: t\r\n", id="bare"),
    ],
)
async def test_without_a_good_token_nothing_is_served(path: str, authorization: bytes) -> None:
    request = encode(path, token=None).replace(b"Connection", authorization + b"Connection")

    async with Simulator() as simulator:
        answer = await raw(simulator, request)

    assert answer.startswith(b"HTTP/1.1 401 Unauthorized\r\n")
    assert simulator.runs == []


async def test_tokens_are_issued_and_revoked() -> None:
    async with Simulator(tokens=("one", "two")) as simulator:
        token = simulator.issue_token()
        before = [(await ask(simulator, token=name))[0] for name in ("one", "two", token)]
        simulator.revoke("one")
        simulator.revoke(token)
        after = [(await ask(simulator, token=name))[0] for name in ("one", "two", token)]

    assert (before, after) == ([200, 200, 200], [401, 200, 401])


@pytest.mark.parametrize(
    ("which", "statuses"),
    [
        pytest.param({}, [200, 200, 401, 200, 200, 200], id="first-by-default"),
        pytest.param({"which": "first"}, [200, 200, 401, 200, 200, 200], id="first"),
        pytest.param({"which": "all"}, [200, 200, 401, 200, 200, 401], id="all"),
    ],
)
async def test_a_token_expires_after_its_starts(which: dict[str, str], statuses: list[int]) -> None:
    script = {"tokens": {"expireAfter": 2, **which}}

    async with Simulator(tokens=("one", "two"), script=script) as simulator:
        answered = [(await ask(simulator, token=token))[0] for token in ["one"] * 3 + ["two"] * 3]

    assert answered == statuses


async def test_a_refused_start_does_not_use_the_token_up() -> None:
    script = {
        "tokens": {"expireAfter": 1},
        "faults": [{"fault": "status", "status": 503, "at": [1]}],
    }

    async with Simulator(script=script) as simulator:
        bodies = [start_body(), start_body(parameters={}), start_body(), start_body()]
        statuses = [(await ask(simulator, START, body))[0] for body in bodies]
        jobs, _ = await ask(simulator, JOBS, {})

    assert (statuses, jobs) == ([503, 400, 200, 401], 401)


async def test_a_password_buys_a_token() -> None:
    async with Simulator(tokens=()) as simulator:
        status, answer = await grant(simulator, PASSWORD)
        started, _ = await ask(simulator, token=answer["access_token"])

    assert (status, started) == (200, 200)
    assert {key: answer[key] for key in ("token_type", "expires_in", "svc", "org_id")} == {
        "token_type": "Bearer",
        "expires_in": 28800,
        "svc": simulator.base_url,
        "org_id": "BISTRO",
    }


async def test_a_refresh_token_is_good_once() -> None:
    async with Simulator(tokens=()) as simulator:
        _, first = await grant(simulator, PASSWORD)
        form = {"grant_type": "refresh_token", "refresh_token": first["refresh_token"]}
        _, second = await grant(simulator, form)
        spent = await grant(simulator, form)
        third, _ = await grant(simulator, form | {"refresh_token": second["refresh_token"]})

    assert second["org_id"] == "BISTRO"
    assert second["access_token"] != first["access_token"]
    assert spent == (400, {"error": "invalid_grant"})
    assert third == 200


@pytest.mark.parametrize(
    ("form", "error"),
    [
        pytest.param({}, "unsupported_grant_type", id="no-grant"),
        pytest.param({"grant_type": "implicit"}, "unsupported_grant_type", id="other-grant"),
        pytest.param(PASSWORD | {"password": ""}, "invalid_request", id="no-password"),
        pytest.param(PASSWORD | {"org_id": ""}, "invalid_request", id="no-organisation"),
        pytest.param(PASSWORD | {"scope": "des"}, "invalid_scope", id="no-offline-access"),
        pytest.param({"grant_type": "refresh_token"}, "invalid_grant", id="no-refresh-token"),
    ],
)
async def test_a_bad_grant_is_refused(form: dict[str, str], error: str) -> None:
    async with Simulator() as simulator:
        assert await grant(simulator, form) == (400, {"error": error})


@pytest.mark.parametrize(
    ("login", "answer"),
    [
        pytest.param({"client_secret": "x"}, (401, {"error": "invalid_client"}), id="client"),
        pytest.param({"password": "x"}, (400, {"error": "invalid_grant"}), id="password"),
        pytest.param({"org_id": "x"}, (400, {"error": "invalid_grant"}), id="organisation"),
    ],
)
async def test_a_wrong_login_is_refused(login: dict[str, str], answer: Any) -> None:
    async with Simulator(login=login) as simulator:
        assert await grant(simulator, PASSWORD) == answer
        assert (await grant(simulator, PASSWORD | login))[0] == 200


async def test_a_refresh_token_is_good_for_its_client_only() -> None:
    async with Simulator(login={"client_id": "c"}) as simulator:
        _, first = await grant(simulator, PASSWORD)
        form = {"grant_type": "refresh_token", "refresh_token": first["refresh_token"]}
        other = await grant(simulator, form | {"client_id": "d"})
        own = await grant(simulator, form | {"client_id": "c"})

    assert (other, own[0]) == ((401, {"error": "invalid_client"}), 200)


async def test_a_granted_token_expires_and_a_given_one_does_not() -> None:
    now = 0.0

    async with Simulator(token_seconds=60, clock=lambda: now) as simulator:
        _, granted = await grant(simulator, PASSWORD)
        tokens = (granted["access_token"], "t")
        now = 59.9
        statuses = [(await ask(simulator, token=token))[0] for token in tokens]
        now = 60.0
        statuses += [(await ask(simulator, token=token))[0] for token in tokens]

    assert (granted["expires_in"], statuses) == (60, [200, 200, 401, 200])


async def test_a_grant_must_be_form_encoded() -> None:
    async with Simulator() as simulator:
        status, _ = await ask(simulator, GRANT, PASSWORD, token=None)

    assert status == 400
