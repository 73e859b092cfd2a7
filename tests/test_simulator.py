"""The simulator: what it serves, what it refuses, and the log that judges all other tests."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import orjson
import pytest
import trustme
from anyio.from_thread import start_blocking_portal
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rawdes import (
    AUTO,
    DATE,
    GRANT,
    JOBS,
    NOW,
    PASSWORD,
    START,
    STATUS,
    ask,
    connect,
    encode,
    grant,
    integer,
    log_of,
    raw,
    start_body,
)

from deslaunch.manifest.rows import Groups
from deslaunch.manifest.schema import Schema
from deslaunch.model import CheckedRow, Job, JobParameter, Row
from deslaunch.simulator import (
    CSV_SALES_EXPORT,
    DEFAULT_JOBS,
    OTHER_JOB,
    POS_USAGE_EXPORT,
    Simulator,
    SimulatorError,
    load_json,
)
from deslaunch.simulator.faults import HEAD_LIMIT, Refused, Request, read_request
from deslaunch.simulator.service import is_text_of

SAMPLES = Path(__file__).parent.parent / "samples"

# The log.


async def test_a_line_tells_which_row_it_was(tmp_path: Path) -> None:
    log = tmp_path / "runs.jsonl"
    log.write_bytes(b'{"jobRunId":"of an earlier simulator"}\n')
    body = orjson.dumps(start_body(parameters={"DBGenFrom": integer("-0")}, more="é"))

    async with Simulator(log=log, clock=lambda: 0.25) as simulator:
        await ask(simulator, START, start_body(OTHER_JOB))
        _, started = await ask(simulator, START, body)

    assert log_of(log)[1:] == [
        {
            "jobRunId": started["jobRunId"],
            "jobId": POS_USAGE_EXPORT,
            "parameters": {"DBGenFrom": integer("-0")},
            "request": 2,
            "utc": "1970-01-01T00:00:00.250Z",
            "body": body.decode(),
        }
    ]


async def test_a_run_is_in_the_log_before_its_response(tmp_path: Path) -> None:
    log = tmp_path / "runs.jsonl"
    script = {"faults": [{"fault": "hold"}]}

    async with Simulator(log=log, script=script) as simulator, connect(simulator) as client:
        await client.send(encode(close=False))
        await simulator.until(lambda: len(simulator.runs) == 1)
        logged = [record["jobRunId"] for record in log_of(log)]
        simulator.release()
        _, _, body = await client.response()

    assert logged == [orjson.loads(body)["jobRunId"]]


async def test_a_short_write_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:7]))

    async with Simulator(log=tmp_path / "runs.jsonl") as simulator:
        await ask(simulator)

    assert len(log_of(tmp_path / "runs.jsonl")) == 1


async def test_the_log_is_for_its_owner(tmp_path: Path) -> None:
    async with Simulator(log=tmp_path / "runs.jsonl"):
        pass

    assert (tmp_path / "runs.jsonl").stat().st_mode & 0o777 == 0o600


async def test_many_clients_at_once_are_all_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "runs.jsonl"
    told: list[str] = []

    async def start_some(simulator: Simulator) -> None:
        async with connect(simulator) as client:
            for _ in range(5):
                await client.send(encode(close=False))
                told.append(orjson.loads((await client.response())[2])["jobRunId"])

    async with Simulator(log=log) as simulator, anyio.create_task_group() as tasks:
        for _ in range(256):
            tasks.start_soon(start_some, simulator)

    assert len(set(told)) == 256 * 5
    assert sorted(told) == sorted(record["jobRunId"] for record in log_of(log))
    assert {run.job_run_id for run in simulator.runs} == set(told)


async def test_a_run_that_cannot_be_logged_gets_no_response(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    simulator = Simulator(log=pipe)
    responses: list[bytes] = []

    with suppress(BlockingIOError):
        while True:
            os.write(writer, b"." * 512)

    async def start() -> None:
        async with simulator:
            responses.extend([await raw(simulator, encode()) for _ in range(3)])

    with pytest.raises(BlockingIOError):
        await start()

    os.close(reader)
    os.close(writer)
    assert (responses, simulator.runs, simulator.in_flight) == ([b""] * 3, [], 0)


# The endpoints and the tokens.


async def test_a_start_makes_a_run() -> None:
    async with Simulator(clock=lambda: NOW) as simulator:
        response = await raw(simulator, encode())

    (run,) = simulator.runs
    body = f'{{"jobId":"{run.job_id}","jobRunId":"{run.job_run_id}"}}'
    head = f"HTTP/1.1 200 OK\r\n{DATE}Content-Type: application/json\r\nContent-Length: 98\r\n\r\n"
    assert response.decode() == head + body
    assert (run.job_id, run.parameters, run.request, run.body) == (
        POS_USAGE_EXPORT,
        {"DBGenFrom": integer("1")},
        1,
        orjson.dumps(start_body()),
    )


async def test_a_connection_serves_many_requests() -> None:
    async with Simulator() as simulator, connect(simulator) as client:
        for _ in range(3):
            await client.send(encode(close=False))
            status, _, _ = await client.response()
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
        told, body = await ask(simulator, path, method=method)

    assert (told, list(body), simulator.runs) == (status, ["message"], [])


async def test_query_jobs_hides_what_des_hides() -> None:
    async with Simulator() as simulator:
        status, response = await ask(simulator, JOBS, {})

    assert status == 200
    assert [sorted(job) for job in response["jobs"]] == [["jobId", "jobRunParameters", "name"]] * 2
    assert response["jobs"][0]["jobRunParameters"] == DEFAULT_JOBS["jobs"][0]["jobRunParameters"]


async def test_run_status_follows_the_clock() -> None:
    now = 1_000_000.5

    async with Simulator(script={"finishAfter": 10}, clock=lambda: now) as simulator:
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
        response = await raw(simulator, request)

    assert response.startswith(b"HTTP/1.1 401 Unauthorized\r\n")
    assert simulator.runs == []


async def test_tokens_are_revoked() -> None:
    async with Simulator(tokens=("one", "two")) as simulator:
        _, granted = await grant(simulator, PASSWORD)
        tokens = ("one", "two", granted["access_token"])
        before = [(await ask(simulator, token=token))[0] for token in tokens]
        simulator.revoke("one")
        simulator.revoke(granted["access_token"])
        after = [(await ask(simulator, token=token))[0] for token in tokens]

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
        told = [(await ask(simulator, token=token))[0] for token in ["one"] * 3 + ["two"] * 3]

    assert told == statuses


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
        status, response = await grant(simulator, PASSWORD)
        started, _ = await ask(simulator, token=response["access_token"])

    assert (status, started) == (200, 200)
    assert {key: response[key] for key in ("token_type", "expires_in", "svc", "org_id")} == {
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
    ("login", "response"),
    [
        pytest.param({"client_secret": "x"}, (401, {"error": "invalid_client"}), id="client"),
        pytest.param({"password": "x"}, (400, {"error": "invalid_grant"}), id="password"),
        pytest.param({"org_id": "x"}, (400, {"error": "invalid_grant"}), id="organisation"),
    ],
)
async def test_a_wrong_login_is_refused(login: dict[str, str], response: Any) -> None:
    async with Simulator(login=login) as simulator:
        assert await grant(simulator, PASSWORD) == response
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


# What a start takes.


def one(value: Any, kind: int | None = 2, **declared: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a jobs file with the one parameter P, and a start that gives it ``value``."""
    parameter = {"name": "P", "type": kind, **declared}
    job = {"jobId": CSV_SALES_EXPORT, "jobRunParameters": [parameter]}
    return {"jobs": [job]}, start_body(CSV_SALES_EXPORT, {"P": value})


def text(value: Any, **more: Any) -> dict[str, Any]:
    return {"valueStringEncoded": value, **more}


GOOD_VALUES = [
    pytest.param(*one(text("-9223372036854775808")), id="least-integer"),
    pytest.param(*one(text("9223372036854775807", type=2)), id="greatest-integer"),
    pytest.param(*one(text("1", type=None)), id="type-null"),
    pytest.param(*one(text("1", useAutoValue=False)), id="auto-false"),
    pytest.param(*one(text("1", useAutoValue=None)), id="auto-null"),
    pytest.param(*one(text("-0")), id="minus-zero"),
    pytest.param(*one(text("0" * 30 + "7")), id="integer-with-zeros"),
    pytest.param(*one(text("-1.50"), 3), id="decimal"),
    pytest.param(*one(text("-0"), 3), id="decimal-minus-zero"),
    pytest.param(*one(text("12345678901234567890123"), 3), id="long-decimal"),
    pytest.param(*one(text("2021-10-19T06:16:47Z"), 4), id="datetime"),
    pytest.param(*one(text("2021-10-19"), 4), id="date"),
    pytest.param(*one(text("2021-10-19T06:16:47"), 4), id="naive-datetime"),
    pytest.param(*one(text("2021-10-19T06:16:47.123456789-13:59"), 4), id="datetime-with-offset"),
    pytest.param(*one(text("2021-10-19T06:16:47+14:00"), 4), id="greatest-offset"),
    pytest.param(*one(text(""), 1), id="empty-string"),
    pytest.param(*one(text("anything"), 5), id="unknown-type-number"),
    pytest.param(*one(text("anything"), None), id="no-declared-type"),
    pytest.param(*one(text("anything", type=9), None), id="type-not-declared"),
    pytest.param(*one(None, nullable=True), id="null"),
    pytest.param(*one(text(None), nullable=True), id="null-text"),
    pytest.param(*one({}, nullable=True), id="empty-value"),
    pytest.param(*one(AUTO, supportsAutoValue=True), id="auto"),
    pytest.param(*one({"useAutoValue": True}, supportsAutoValue=True), id="auto-without-text"),
]


@pytest.mark.parametrize(("jobs", "body"), GOOD_VALUES)
async def test_a_good_value_starts(jobs: dict[str, Any], body: dict[str, Any]) -> None:
    async with Simulator(jobs=jobs) as simulator:
        response = await ask(simulator, START, body)

    assert (response[0], len(simulator.runs)) == (200, 1), response


BAD_VALUES = [
    pytest.param(*one(text("1.0")), "not of type 2", id="integer-with-point"),
    pytest.param(*one(text("9223372036854775808")), "not of type 2", id="integer-over-64-bits"),
    pytest.param(*one(text("-9223372036854775809")), "not of type 2", id="integer-under-64-bits"),
    pytest.param(*one(text("+5")), "not of type 2", id="integer-with-plus"),
    pytest.param(*one(text("+1.5"), 3), "not of type 3", id="decimal-with-plus"),
    pytest.param(*one(text("")), "not of type 2", id="empty-integer"),
    pytest.param(*one(text(" 1")), "not of type 2", id="integer-with-blank"),
    pytest.param(*one(text("1_0")), "not of type 2", id="integer-with-underscore"),
    pytest.param(*one(text("\u0661")), "not of type 2", id="integer-in-other-digits"),
    pytest.param(*one(text("1e3"), 3), "not of type 3", id="decimal-with-exponent"),
    pytest.param(*one(text("1,5"), 3), "not of type 3", id="decimal-with-comma"),
    pytest.param(*one(text(".5"), 3), "not of type 3", id="decimal-without-digit"),
    pytest.param(*one(text("31.01.2021"), 4), "not of type 4", id="no-iso-date"),
    pytest.param(*one(text("2021-02-30"), 4), "not of type 4", id="no-such-day"),
    pytest.param(*one(text("2021-10-19 06:16:47"), 4), "not of type 4", id="datetime-with-blank"),
    pytest.param(*one(text("2021-10-19T06:16"), 4), "not of type 4", id="no-seconds"),
    pytest.param(*one(text("2021-10-19T24:00:00Z"), 4), "not of type 4", id="hour-24"),
    pytest.param(*one(text("2021-10-19T06:16:60Z"), 4), "not of type 4", id="leap-second"),
    pytest.param(*one(text("2021-10-19T06:16:47+00"), 4), "not of type 4", id="short-offset"),
    pytest.param(*one(text("2021-10-19T06:16:47+14:01"), 4), "not of type 4", id="offset-14:01"),
    pytest.param(*one(text("2021-10-19T06:16:47-23:59"), 4), "not of type 4", id="offset-23:59"),
    pytest.param(*one(text("1", type=3)), "is of type 2, not 3", id="other-type"),
    pytest.param(*one(text("1", type="2")), "has no type number", id="type-as-text"),
    pytest.param(*one(text("1", type=True)), "has no type number", id="type-as-truth"),
    pytest.param(*one(text(1)), "no JobRunParameterValue", id="value-as-number"),
    pytest.param(*one(text(None, useAutoValue="yes")), "no JobRunParameterValue", id="auto-text"),
    pytest.param(*one("1"), "neither an object nor null", id="bare-value"),
    pytest.param(*one(None), "can't be null", id="null"),
    pytest.param(*one(text(None)), "can't be null", id="null-text"),
    pytest.param(*one(AUTO), "has no auto value", id="auto-not-supported"),
    pytest.param(
        *one(AUTO | {"valueStringEncoded": "1"}, supportsAutoValue=True),
        "both a value and the auto value",
        id="auto-with-value",
    ),
]


@pytest.mark.parametrize(("jobs", "body", "message"), BAD_VALUES)
async def test_a_bad_value_is_refused(
    jobs: dict[str, Any], body: dict[str, Any], message: str
) -> None:
    async with Simulator(jobs=jobs) as simulator:
        status, response = await ask(simulator, START, body)

    assert (status, simulator.runs, simulator.requests) == (400, [], 1)
    assert message in response["message"]


DIGITS = st.from_regex(r"[+-]?0{0,3}[0-9]{0,20}(\.[0-9]{0,3})?(e3)?", fullmatch=True)
TIMES = st.from_regex(
    r"20[0-9]{2}-[01][0-9]-[0-3][0-9]"
    r"([T ][0-2][0-9](:[0-6][0-9](:[0-6][0-9](\.[0-9]{1,10})?)?)?"
    r"(Z|[+-][0-2][0-9](:?[0-6][0-9])?)?)?",
    fullmatch=True,
)


@given(st.sampled_from([2, 3, 4]), st.text("0123456789+-.:TZ", max_size=6) | DIGITS | TIMES)
@example(2, "-0")
@example(2, "+5")
@example(2, "-9223372036854775808")
@example(2, "9223372036854775808")
@example(4, "2026-01-31T06:16:47+14:00")
@example(4, "2026-01-31T06:16:47-14:01")
@example(4, "2026-01-31T24:00:00Z")
@settings(max_examples=300, deadline=None)
def test_the_simulator_takes_what_check_takes(kind: int, text: str) -> None:
    parameter = JobParameter(name="P", type=kind)
    schema = Schema(Job(job_id=CSV_SALES_EXPORT, name="x", parameters=(parameter,)))
    checked = schema.check(
        Row(1, 1, None, "default", CSV_SALES_EXPORT, {"P": text}), Groups("m.csv")
    )

    assert is_text_of(kind, text) == isinstance(checked, CheckedRow)


DAY = {"type": 4, "valueStringEncoded": "2026-01-31"}

BAD_BODIES = [
    pytest.param(b"{", "expected JSON", id="no-json"),
    pytest.param(b"", "expected JSON", id="empty"),
    pytest.param([], "expected a JSON object", id="list"),
    pytest.param({}, "jobId: expected a GUID, got", id="no-job"),
    pytest.param(start_body("POSUsageExport"), "jobId: expected a GUID, got", id="job-by-name"),
    pytest.param(start_body(7), "jobId: expected a GUID, got", id="job-by-number"),
    pytest.param(start_body(OTHER_JOB), "there is no job", id="unknown-job"),
    pytest.param(
        start_body(parameters=[]),
        "parameters: expected a JSON object, got []",
        id="list-of-parameters",
    ),
    pytest.param(start_body(parameters={}), "'DBGenFrom' is required", id="required-left-out"),
    pytest.param({"jobId": POS_USAGE_EXPORT}, "'DBGenFrom' is required", id="parameters-left-out"),
    pytest.param(
        start_body(parameters={"DBGenFrom": integer("1"), "dbGenTo": None}),
        "unknown parameter 'dbGenTo'",
        id="unknown-parameter",
    ),
    pytest.param(
        start_body(parameters={"DBGenFrom": integer("1"), "TradingDate": DAY}),
        "either DBGenFrom or TradingDate",
        id="range-and-date",
    ),
    pytest.param(
        start_body(parameters={"DBGenFrom": AUTO, "TradingDate": DAY}),
        "either DBGenFrom or TradingDate",
        id="auto-and-date",
    ),
    pytest.param(
        start_body(CSV_SALES_EXPORT, {"DBGenTo": integer("1"), "TradingDateFrom": DAY}),
        "either DBGenTo or TradingDateFrom",
        id="half-a-range-and-half-a-period",
    ),
]


@pytest.mark.parametrize(("body", "message"), BAD_BODIES)
async def test_a_bad_body_is_refused(body: Any, message: str) -> None:
    async with Simulator() as simulator:
        status, response = await ask(simulator, START, body)

    assert (status, simulator.runs) == (400, [])
    assert message in response["message"]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(start_body(POS_USAGE_EXPORT.upper()), id="job-in-capitals"),
        pytest.param(start_body(parameters={"DBGenFrom": AUTO}), id="auto"),
        pytest.param(
            start_body(parameters={"DBGenFrom": None, "TradingDate": DAY}), id="null-and-date"
        ),
        pytest.param(
            start_body(
                parameters={"DBGenFrom": integer("1"), "TradingDate": integer(None) | {"type": 4}}
            ),
            id="range-and-null-date",
        ),
        pytest.param(start_body(CSV_SALES_EXPORT, {}), id="nothing-required"),
        pytest.param({"jobId": CSV_SALES_EXPORT, "parameters": None}, id="parameters-null"),
        pytest.param(
            start_body(CSV_SALES_EXPORT, {"DBGenFrom": integer("1"), "DBGenTo": integer("2")}),
            id="range",
        ),
        pytest.param(start_body(comment="ignored"), id="unknown-key"),
    ],
)
async def test_a_good_body_starts(body: Any) -> None:
    async with Simulator() as simulator:
        status, _ = await ask(simulator, START, body)

    assert (status, len(simulator.runs)) == (200, 1)


@pytest.mark.parametrize(
    ("jobs", "where"),
    [
        pytest.param([], "", id="list"),
        pytest.param({}, "jobs", id="no-jobs"),
        pytest.param({"jobs": [7]}, "jobs[0]", id="no-object"),
        pytest.param({"jobs": [{"jobId": "x", "jobRunParameters": []}]}, "jobs[0].jobId", id="id"),
        pytest.param({"jobs": [{"jobId": OTHER_JOB}]}, "jobs[0].jobRunParameters", id="no-list"),
        pytest.param(
            {"jobs": [{"jobId": OTHER_JOB, "jobRunParameters": [{"name": "P", "type": "x"}]}]},
            "jobs[0].jobRunParameters",
            id="type",
        ),
        pytest.param(
            {"jobs": [{"jobId": OTHER_JOB, "jobRunParameters": [], "exclusive": ["P"]}]},
            "jobs[0].exclusive",
            id="exclusive",
        ),
    ],
)
def test_a_bad_jobs_file_says_where(jobs: Any, where: str) -> None:
    with pytest.raises(SimulatorError) as caught:
        Simulator(jobs=jobs)

    assert caught.value.where == where


def test_a_jobs_file_that_is_no_json_says_where(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text('{\n"jobs": }')

    with pytest.raises(SimulatorError, match=r"bad\.json, line 2: expected JSON"):
        load_json(path)


def test_the_samples_are_what_the_defaults_are() -> None:
    assert load_json(SAMPLES / "jobs.json") == DEFAULT_JOBS


# HTTP: however the bytes are split, the same requests come out.

STREAM = encode(close=False) + b"GET /e?q=1 HTTP/1.0\r\nX:  y \r\n\r\n" + encode(body=b"")


async def read_pieces(pieces: list[bytes]) -> tuple[list[Request], str | None]:
    reader = asyncio.StreamReader(limit=HEAD_LIMIT)
    requests = []

    async def read() -> str | None:
        try:
            while (request := await read_request(reader)) is not None:
                requests.append(request)
        except Refused as refused:
            return str(refused)

        return None

    reading = asyncio.create_task(read())

    for piece in pieces:
        reader.feed_data(piece)
        await asyncio.sleep(0)  # each piece is read before the next one is there

    reader.feed_eof()
    return requests, await reading


def parse(pieces: list[bytes]) -> tuple[list[Request], str | None]:
    return asyncio.run(read_pieces(pieces))


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(places)]


def test_parser_reads_every_kind_of_body() -> None:
    requests, error = parse([STREAM])

    assert error is None
    assert [(r.method, r.path, r.body, r.is_last) for r in requests] == [
        ("POST", START, orjson.dumps(start_body()), False),
        ("GET", "/e", b"", True),
        ("POST", START, b"", True),
    ]
    assert requests[1].headers == {"x": "y"}


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_parser_does_not_care_where_the_bytes_are_split(cuts: list[int]) -> None:
    assert parse(split(STREAM, cuts)) == parse([STREAM])


def test_parser_takes_single_bytes() -> None:
    assert parse([bytes([byte]) for byte in STREAM]) == parse([STREAM])


BAD = [
    pytest.param(
        b"nonsense\r\n\r\n", "expected an HTTP/1.1 request line, got", id="no-request-line"
    ),
    pytest.param(
        b"POST / HTTP/2\r\n\r\n", "expected an HTTP/1.1 request line, got", id="other-version"
    ),
    pytest.param(b"POST / HTTP/1.1\r\nnoColon\r\n\r\n", "expected a header, got", id="no-colon"),
    pytest.param(b"POST / HTTP/1.1\r\n A: b\r\n\r\n", "expected a header, got", id="folded-header"),
    pytest.param(
        b"POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\nx",
        "expected a Content-Length, got",
        id="signed-length",
    ),
    pytest.param(
        b"POST / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", "the body is over", id="long-body"
    ),
    pytest.param(
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        "expected a body with Content-Length, got",
        id="chunks",
    ),
    pytest.param(b"POST / HTTP/1.1\r\nA: " + b"x" * 70_000, "the head is over", id="endless-head"),
    pytest.param(
        b"POST / HTTP/1.1\r\nA: " + b"x" * 70_000 + b"\r\n\r\n", "the head is over", id="long-head"
    ),
]


@pytest.mark.parametrize(("data", "error"), BAD)
def test_parser_refuses(data: bytes, error: str) -> None:
    _, whole = parse([encode(), data])
    _, pieces = parse(split(encode() + data, list(range(0, len(data), 13))))

    assert whole is not None
    assert whole.startswith(error)
    assert pieces == whole


def test_parser_takes_a_head_of_exactly_64_kib() -> None:
    line = b"GET / HTTP/1.1\r\nA: "
    data = line + b"x" * (65536 - len(line)) + b"\r\n\r\n"

    for cut in range(5):
        requests, error = parse([data[: len(data) - cut], data[len(data) - cut :]])
        assert (len(requests), error) == (1, None)

    assert parse([data.replace(b"x", b"xx", 1)]) == ([], "the head is over 65536 bytes long")


async def test_bad_bytes_get_400_and_the_connection_is_closed() -> None:
    async with Simulator() as simulator:
        response = await raw(simulator, b"nonsense\r\n\r\n" + encode())

    assert response.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert simulator.requests == 0


async def test_pipelined_requests_get_their_responses_in_order() -> None:
    first = encode(body=start_body(parameters={"DBGenFrom": integer("1")}), close=False)
    second = encode(body=start_body(parameters={"DBGenFrom": integer("2")}))

    async with Simulator() as simulator:
        responses = await raw(simulator, first + second)

    ids = [run.job_run_id.encode() for run in simulator.runs]
    assert len(ids) == 2
    assert 0 < responses.index(ids[0]) < responses.index(ids[1])


# Its lifetime.


async def test_leaving_drops_clients_at_every_stage(tmp_path: Path) -> None:
    faults = [{"fault": "hold", "at": [1]}, {"fault": "hang", "at": [2]}]
    log = tmp_path / "runs.jsonl"

    async with (
        Simulator(script={"faults": faults}, log=log) as simulator,
        connect(simulator),
        connect(simulator) as half,
        connect(simulator) as held,
        connect(simulator) as silent,
    ):
        await half.send(encode()[:20])
        await held.send(encode())
        await simulator.until(lambda: len(simulator.runs) == 1)
        await silent.send(encode())
        await simulator.until(lambda: simulator.requests == 2)
        await simulator.refuse()
        assert [await client.reader.read() for client in (half, held, silent)] == [b""] * 3

    assert simulator.in_flight == 0


@pytest.mark.parametrize("turns", range(12))
async def test_leaving_drops_a_client_at_every_turn_of_its_request(turns: int) -> None:
    loop = asyncio.get_running_loop()

    with socket.socket() as client:
        client.setblocking(False)

        async with Simulator(script={"latency": 60}) as simulator:
            url = urlsplit(simulator.base_url)
            await loop.sock_connect(client, (url.hostname, url.port))
            await loop.sock_sendall(client, encode())

            for _ in range(turns):
                await asyncio.sleep(0)

        with suppress(ConnectionResetError):
            assert await loop.sock_recv(client, 1) == b""

    assert simulator.in_flight == 0


@pytest.mark.parametrize("turns", range(8))
async def test_leaving_counts_down_what_comes_while_it_leaves(turns: int) -> None:
    async with Simulator(script={"latency": 60}) as simulator, connect(simulator) as client:
        await client.send(encode(START, {}, close=False))
        await client.response()
        leaving = asyncio.create_task(simulator.refuse())

        for _ in range(turns):
            await asyncio.sleep(0)

        client.writer.write(encode())
        await leaving

    assert simulator.in_flight == 0


async def test_a_failing_test_is_seen_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        async with Simulator():
            _ = 1 / 0


async def test_it_refuses_and_listens_again_on_the_same_port() -> None:
    async with Simulator() as simulator:
        url = simulator.base_url
        await simulator.refuse()
        await simulator.refuse()

        with pytest.raises(ConnectionRefusedError):
            await raw(simulator, encode())

        await simulator.listen()
        status, _ = await ask(simulator)

    assert (status, simulator.base_url) == (200, url)


async def test_a_port_that_is_taken_is_an_error(tmp_path: Path) -> None:
    async with Simulator() as simulator:
        port = urlsplit(simulator.base_url).port
        assert port is not None

        before = os.listdir("/dev/fd")  # noqa: PTH208

        with pytest.raises(OSError, match="address already in use"):
            async with Simulator(port=port, log=tmp_path / "log"):
                pytest.fail("two can't listen on one port")

        assert os.listdir("/dev/fd") == before  # noqa: PTH208  # the log is closed again


async def test_another_script_can_be_followed_at_any_time() -> None:
    statuses = []

    async with Simulator(tokens=["t"]) as simulator:
        for script in (None, {"faults": [{"fault": "status", "status": 503, "at": [2]}]}, None):
            simulator.use(script)
            statuses.append((await ask(simulator))[0])

    assert statuses == [200, 503, 200]


async def test_until_gives_up_its_place_when_cancelled() -> None:
    async with Simulator() as simulator:
        with anyio.move_on_after(0):
            await simulator.until(lambda: simulator.requests == 1)

        await ask(simulator)
        await simulator.until(lambda: simulator.requests == 1)


async def test_repr_tells_the_state() -> None:
    async with Simulator() as simulator:
        await ask(simulator, START, start_body(OTHER_JOB))
        await ask(simulator)
        shown = repr(simulator)

    assert shown.startswith(f"<Simulator {simulator.base_url}: 2 start requests, 1 runs, ")


async def test_it_speaks_tls() -> None:
    authority = trustme.CA()
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server_side)
    client_side = ssl.create_default_context()
    authority.configure_trust(client_side)

    async with (
        Simulator(ssl=server_side) as simulator,
        connect(simulator, tls=client_side) as client,
    ):
        await client.send(encode(close=False))
        status, _, _ = await client.response()

    assert (status, simulator.base_url.split(":")[0]) == (200, "https")


def test_it_runs_in_a_thread_of_its_own() -> None:
    script = {"faults": [{"fault": "hold"}]}

    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(Simulator(script=script)) as simulator,
    ):
        url = urlsplit(simulator.base_url)

        with socket.create_connection((url.hostname, url.port or 0), timeout=60) as client:
            client.sendall(encode())
            simulator.release()
            response = b"".join(iter(lambda: client.recv(65536), b""))

    assert response.startswith(b"HTTP/1.1 200 OK\r\n")
    assert len(simulator.runs) == simulator.requests == 1
