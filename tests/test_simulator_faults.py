"""What each fault sends, to the byte, and what it starts."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import orjson
import pytest
from rawdes import (
    GRANT,
    JOBS,
    JSON_HEAD,
    PASSWORD,
    STATUS,
    Naps,
    ask,
    connect,
    encode,
    grant,
    log_of,
    raw,
    start_body,
)

from deslaunch.simulator import OTHER_JOB, POS_USAGE_EXPORT, Simulator

if TYPE_CHECKING:
    from pathlib import Path


def answer_bytes(status_line: str, headers: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status_line}\r\n{headers}".encode() + b"\r\n" + body


def json_answer(status_line: str, body: bytes, more: str = "") -> bytes:
    headers = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n{more}"
    return answer_bytes(status_line, headers, body)


RUN_BODY = b'{"jobId":"%b","jobRunId":"RUN"}' % POS_USAGE_EXPORT.encode()
RUN_BODY_LENGTH = len(RUN_BODY) - 3 + 36
RUN_HEAD = JSON_HEAD % RUN_BODY_LENGTH
NO_ID = b'{"jobId":"%b"}' % POS_USAGE_EXPORT.encode()
OTHER = b'{"jobId":"%b","jobRunId":"RUN"}' % OTHER_JOB.encode()
PAGE = b"<html><body>Welcome</body></html>"


def html(body: bytes) -> bytes:
    return answer_bytes(
        "200 OK", f"Content-Type: text/html\r\nContent-Length: {len(body)}\r\n", body
    )


def redirect(line: str, location: str) -> bytes:
    headers = f"Content-Type: application/json\r\nContent-Length: 0\r\nLocation: {location}\r\n"
    return answer_bytes(line, headers, b"")


UNAVAILABLE = "503 Service Unavailable"

EXACT = [
    pytest.param(
        {"fault": "status", "status": 503},
        json_answer(UNAVAILABLE, b'{"message":"scripted 503"}'),
        0,
        id="status",
    ),
    pytest.param(
        {"fault": "status", "status": 503, "retryAfter": 2},
        json_answer(UNAVAILABLE, b'{"message":"scripted 503"}', "Retry-After: 2\r\n"),
        0,
        id="retry-after-seconds",
    ),
    pytest.param(
        {"fault": "status", "status": 429, "retryAfter": "soon"},
        json_answer(
            "429 Too Many Requests", b'{"message":"scripted 429"}', "Retry-After: soon\r\n"
        ),
        0,
        id="retry-after-text",
    ),
    pytest.param(
        {"fault": "status", "status": 503, "retryAfterDate": 30, "body": "x"},
        json_answer(UNAVAILABLE, b"x", "Retry-After: Thu, 01 Jan 1970 00:01:30 GMT\r\n"),
        0,
        id="retry-after-date",
    ),
    pytest.param(
        {"fault": "status", "status": 524, "body": ""},
        json_answer("524 Unknown", b""),
        0,
        id="status-without-a-name",
    ),
    pytest.param(
        {"fault": "status", "status": 204}, json_answer("204 No Content", b""), 0, id="no-content"
    ),
    pytest.param(
        {"fault": "status", "status": 500, "start": True},
        json_answer("500 Internal Server Error", b'{"message":"scripted 500"}'),
        1,
        id="5xx-that-starts",
    ),
    pytest.param(
        {"fault": "status", "status": 202, "start": True},
        RUN_HEAD.replace(b"200 OK", b"202 Accepted") + RUN_BODY,
        1,
        id="another-2xx-that-starts",
    ),
    pytest.param(
        {"fault": "outage", "from": 1, "to": 1, "status": 503, "retryAfter": 1},
        json_answer(UNAVAILABLE, b'{"message":"scripted 503"}', "Retry-After: 1\r\n"),
        0,
        id="outage-with-status",
    ),
    pytest.param({"fault": "outage", "from": 1, "to": 1}, b"", 0, id="outage-by-close"),
    pytest.param(
        {"fault": "redirect"},
        redirect("302 Found", "http://127.0.0.1:9/elsewhere"),
        0,
        id="redirect",
    ),
    pytest.param(
        {"fault": "redirect", "status": 308, "location": "/login"},
        redirect("308 Permanent Redirect", "/login"),
        0,
        id="redirect-308",
    ),
    pytest.param({"fault": "close"}, b"", 0, id="close"),
    pytest.param({"fault": "close-after-start"}, b"", 1, id="close-after-start"),
    pytest.param({"fault": "close-after-answer"}, RUN_HEAD + RUN_BODY, 1, id="close-after-answer"),
    pytest.param({"fault": "cut-head"}, RUN_HEAD[: len(RUN_HEAD) // 2], 1, id="cut-head"),
    pytest.param({"fault": "cut-head", "bytes": 4}, b"HTTP", 1, id="cut-status-line"),
    pytest.param({"fault": "cut-head", "bytes": 999}, RUN_HEAD[:-1], 1, id="cut-head-end"),
    pytest.param(
        {"fault": "cut-body"}, RUN_HEAD + RUN_BODY[: RUN_BODY_LENGTH // 2], 1, id="cut-body"
    ),
    pytest.param({"fault": "cut-body", "bytes": 0}, RUN_HEAD, 1, id="no-body"),
    pytest.param(
        {"fault": "cut-body", "bytes": 999}, RUN_HEAD + RUN_BODY[:-1], 1, id="cut-body-end"
    ),
    pytest.param({"fault": "garbage"}, b"SMTP 220 not this service\r\n\r\n", 1, id="garbage"),
    pytest.param(
        {"fault": "garbage", "start": False},
        b"SMTP 220 not this service\r\n\r\n",
        0,
        id="garbage-without-a-run",
    ),
    pytest.param({"fault": "not-json"}, html(PAGE), 1, id="not-json"),
    pytest.param({"fault": "not-json", "body": "OK"}, html(b"OK"), 1, id="not-json-text"),
    pytest.param({"fault": "no-id"}, JSON_HEAD % len(NO_ID) + NO_ID, 1, id="no-id"),
    pytest.param({"fault": "other-job"}, RUN_HEAD + OTHER, 1, id="other-job"),
    pytest.param({"fault": "latency", "seconds": 0}, RUN_HEAD + RUN_BODY, 1, id="no-latency"),
    pytest.param({"fault": "fail-run"}, RUN_HEAD + RUN_BODY, 1, id="fail-run"),
]


@pytest.mark.parametrize(("fault", "expected", "runs"), EXACT)
async def test_a_fault_is_exact(
    fault: dict[str, Any], expected: bytes, runs: int, tmp_path: Path
) -> None:
    log = tmp_path / "runs.jsonl"

    async with Simulator(script={"faults": [fault]}, log=log, clock=lambda: 60.0) as simulator:
        answer = await raw(simulator, encode(close=False) if expected == b"" else encode())

    ids = [record["jobRunId"] for record in log_of(log)]
    run_id = ids[0].encode() if ids else b""
    assert len(ids) == len(simulator.runs) == runs
    assert answer == expected.replace(b"RUN", run_id)


@pytest.mark.parametrize(
    ("fault", "runs"),
    [pytest.param("reset", 0, id="reset"), pytest.param("reset-after-start", 1, id="after-start")],
)
async def test_a_reset_is_a_reset(fault: str, runs: int) -> None:
    async with Simulator(script={"faults": [{"fault": fault}]}) as simulator:
        with pytest.raises(ConnectionResetError):
            await raw(simulator, encode())

        assert len(simulator.runs) == runs


@pytest.mark.parametrize(
    ("fault", "runs", "sent"),
    [
        pytest.param("hang", 0, b"", id="hang"),
        pytest.param("hang-after-start", 1, b"", id="hang-after-start"),
        pytest.param("stall-body", 1, RUN_HEAD + RUN_BODY[: RUN_BODY_LENGTH // 2], id="stall-body"),
    ],
)
async def test_a_silent_connection_stays_open_until_the_end(
    fault: str, runs: int, sent: bytes
) -> None:
    script = {"faults": [{"fault": fault}]}

    async with Simulator(script=script) as simulator, connect(simulator) as client:
        await client.send(encode(close=False))
        await simulator.until(lambda: simulator.requests == 1 and simulator.in_flight == 0)
        await ask(simulator, JOBS, {})

        assert not client.reader.at_eof()
        assert len(simulator.runs) == runs

        await simulator.refuse()
        assert await client.reader.read() == sent


async def test_a_huge_body_is_valid_and_as_long_as_asked() -> None:
    faults = [{"fault": "huge-body", "bytes": 5000, "at": [1]}, {"fault": "huge-body"}]

    async with Simulator(script={"faults": faults}) as simulator:
        small = await raw(simulator, encode())
        huge = await raw(simulator, encode())

    bodies = [answer.partition(b"\r\n\r\n")[2] for answer in (small, huge)]
    assert [len(body) for body in bodies] == [5000, 2 * 1024 * 1024]
    assert [orjson.loads(body)["jobRunId"] for body in bodies] == [
        run.job_run_id for run in simulator.runs
    ]


async def test_latency_adds_up_after_the_run_is_started() -> None:
    naps = Naps()
    faults = [
        {"fault": "latency", "seconds": 2, "at": [2]},
        {"fault": "close", "seconds": 3, "at": [3]},
    ]

    async with Simulator(script={"latency": 0.5, "faults": faults}, sleep=naps) as simulator:
        for _ in range(3):
            await raw(simulator, encode())

        await ask(simulator, JOBS, {})

    assert naps.seconds == [0.5, 2.5, 3.5, 0.5]


async def test_a_held_answer_waits_for_its_release() -> None:
    script = {"faults": [{"fault": "hold", "at": [1]}]}

    async with Simulator(script=script) as simulator, connect(simulator) as client:
        await client.send(encode())
        await simulator.until(lambda: len(simulator.runs) == 1)
        other, _ = await ask(simulator)
        held = (simulator.in_flight, simulator.peak)
        simulator.release()
        status, _, _ = await client.answer()
        await ask(simulator)

    assert (other, status, held) == (200, 200, (1, 2))
    assert (simulator.in_flight, simulator.peak) == (0, 2)


async def test_a_client_that_hangs_up_has_started_a_run_all_the_same() -> None:
    asleep, awake = asyncio.Event(), asyncio.Event()

    async def nap(seconds: float) -> None:
        asleep.set()
        await awake.wait()

    script = {"faults": [{"fault": "status", "status": 500, "seconds": 9, "at": [1]}]}

    async with Simulator(script=script, sleep=nap) as simulator:
        async with connect(simulator) as client:
            await client.send(encode(close=False) + encode(close=False))
            await asleep.wait()

        awake.set()
        await simulator.until(lambda: len(simulator.runs) == 1)


async def test_a_failed_run_says_why() -> None:
    fault = {"fault": "fail-run", "error": "no sales found"}

    async with Simulator(script={"faults": [fault]}) as simulator:
        _, started = await ask(simulator)
        _, status = await ask(simulator, STATUS, {"jobRunId": started["jobRunId"]})

    assert [status[key] for key in ("finished", "success", "status", "outputFiles")] == [
        True,
        False,
        "no sales found",
        [],
    ]


@pytest.mark.parametrize(
    ("request_bytes", "line"),
    [
        pytest.param(encode(token="x"), b"HTTP/1.1 401 ", id="token"),
        pytest.param(encode(body=start_body(OTHER_JOB)), b"HTTP/1.1 400 ", id="body"),
    ],
)
async def test_a_refusal_is_not_spoiled(request_bytes: bytes, line: bytes) -> None:
    async with Simulator(script={"faults": [{"fault": "cut-body"}]}) as simulator:
        answer = await raw(simulator, request_bytes)

    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(line)
    assert list(orjson.loads(body)) == ["message"]


@pytest.mark.parametrize(
    ("on", "path", "body"),
    [
        pytest.param("queryjobs", JOBS, {}, id="queryjobs"),
        pytest.param("queryrunstatus", STATUS, {"jobRunId": OTHER_JOB}, id="queryrunstatus"),
        pytest.param("token", GRANT, b"", id="token"),
    ],
)
async def test_other_endpoints_have_faults_and_numbers_of_their_own(
    on: str, path: str, body: Any
) -> None:
    fault = {"fault": "status", "status": 503, "on": on, "at": [2]}

    async with Simulator(script={"faults": [fault]}) as simulator:
        starts = [(await ask(simulator))[0] for _ in range(3)]
        statuses = [(await ask(simulator, path, body))[0] for _ in range(3)]

    assert starts == [200, 200, 200]
    assert (statuses[0] == statuses[2] != 503, statuses[1]) == (True, 503)
    assert (simulator.count(on), simulator.requests) == (3, 3)


async def test_a_spoiled_grant_has_spent_its_refresh_token() -> None:
    script = {"faults": [{"fault": "close-after-start", "on": "token", "at": [2]}]}

    async with Simulator(script=script) as simulator:
        _, first = await grant(simulator, PASSWORD)
        form = {"grant_type": "refresh_token", "refresh_token": first["refresh_token"]}
        request = encode(
            GRANT, urlencode(form).encode(), content_type="application/x-www-form-urlencoded"
        )
        lost = await raw(simulator, request)
        again = await grant(simulator, form)

    assert (lost, again) == (b"", (400, {"error": "invalid_grant"}))


async def test_a_connection_is_closed_before_a_byte_is_read() -> None:
    script = {"faults": [{"fault": "close", "on": "connection", "at": [1]}]}

    async with Simulator(script=script) as simulator:
        async with connect(simulator) as client:
            assert await client.reader.read() == b""

        status, _ = await ask(simulator)

    assert (status, simulator.requests, simulator.count("connection")) == (200, 1, 2)


async def test_a_connection_is_reset_before_a_byte_is_read() -> None:
    script = {"faults": [{"fault": "reset", "on": "connection"}]}

    async with Simulator(script=script) as simulator, connect(simulator) as client:
        with pytest.raises(ConnectionResetError):
            await client.reader.read()


async def test_a_connection_that_is_never_read() -> None:
    script = {"faults": [{"fault": "hang", "on": "connection", "at": [1]}]}

    async with Simulator(script=script) as simulator, connect(simulator) as client:
        await client.send(encode())
        await ask(simulator)
        assert simulator.requests == 1
        await simulator.refuse()
        assert await client.reader.read() == b""
