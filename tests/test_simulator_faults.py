"""The simulator's faults: which request meets which, what each sends, and what a script is told."""

from __future__ import annotations

import asyncio
import gzip
import re
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import orjson
import pytest
from rawdes import (
    DATE,
    GRANT,
    JOBS,
    NOW,
    PASSWORD,
    STATUS,
    Naps,
    ask,
    connect,
    encode,
    grant,
    integer,
    log_of,
    raw,
    start_body,
)

from deslaunch import simulator as package
from deslaunch.simulator import (
    CSV_SALES_EXPORT,
    OTHER_JOB,
    POS_USAGE_EXPORT,
    Simulator,
    SimulatorError,
    load_json,
)
from deslaunch.simulator.faults import GOOD as NO_FAULT
from deslaunch.simulator.faults import KINDS, pick, read_script

if TYPE_CHECKING:
    from collections.abc import Callable

SAMPLES = Path(__file__).parent.parent / "samples"


def response(line: str, body: bytes, more: str = "", kind: str = "application/json") -> bytes:
    headers = f"{DATE}Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n{more}"
    return f"HTTP/1.1 {line}\r\n{headers}\r\n".encode() + body


RUN = "12345678-9012-4345-8789-012345678901"
"""Stands for the jobRunId of the first run."""

BODY = f'{{"jobId":"{POS_USAGE_EXPORT}","jobRunId":"{RUN}"}}'.encode()
GOOD = response("200 OK", BODY)
HEAD = GOOD[: -len(BODY)]
NO_ID = f'{{"jobId":"{POS_USAGE_EXPORT}"}}'.encode()
OTHER = BODY.replace(POS_USAGE_EXPORT.encode(), OTHER_JOB.encode())
PAGE = b"<html><body>Welcome</body></html>"
GARBAGE = b"SMTP 220 not this service\r\n\r\n"
UNAVAILABLE = "503 Service Unavailable"
SCRIPTED = b'{"message":"scripted 503"}'

# Content-Length and chunked at once, in the very bytes.
BOTH = "HTTP/1.1 200 OK\r\nContent-Length: 98\r\nTransfer-Encoding: chunked\r\n\r\n62\r\n"
BOTH += '{"jobId":"{jobId}","jobRunId":"{jobRunId}"}\r\n0\r\n\r\n\xff'

EXACT = [
    pytest.param(
        {"fault": "status", "status": 503},
        response(UNAVAILABLE, SCRIPTED),
        0,
        id="status",
    ),
    pytest.param(
        {"fault": "status", "status": 503, "retryAfter": 2},
        response(UNAVAILABLE, SCRIPTED, "Retry-After: 2\r\n"),
        0,
        id="retry-after-seconds",
    ),
    pytest.param(
        {"fault": "status", "status": 429, "retryAfter": "soon"},
        response("429 Too Many Requests", b'{"message":"scripted 429"}', "Retry-After: soon\r\n"),
        0,
        id="retry-after-text",
    ),
    pytest.param(
        {"fault": "status", "status": 503, "retryAfterDate": 30, "body": "x"},
        response(UNAVAILABLE, b"x", "Retry-After: Thu, 01 Jan 1970 00:01:30 GMT\r\n"),
        0,
        id="retry-after-date",
    ),
    pytest.param(
        {"fault": "status", "status": 524, "body": ""},
        response("524 Unknown", b""),
        0,
        id="status-without-a-name",
    ),
    pytest.param(
        {"fault": "status", "status": 204}, response("204 No Content", b""), 0, id="no-content"
    ),
    pytest.param(
        {"fault": "status", "status": 500, "start": True},
        response("500 Internal Server Error", b'{"message":"scripted 500"}'),
        1,
        id="5xx-that-starts",
    ),
    pytest.param(
        {"fault": "status", "status": 202},
        response("202 Accepted", b'{"message":"scripted 202"}'),
        0,
        id="another-2xx",
    ),
    pytest.param(
        {"fault": "status", "status": 202, "start": True},
        response("202 Accepted", BODY),
        1,
        id="another-2xx-that-starts",
    ),
    pytest.param(
        {"fault": "status", "from": 1, "to": 1, "status": 503, "retryAfter": 1},
        response(UNAVAILABLE, SCRIPTED, "Retry-After: 1\r\n"),
        0,
        id="status-for-a-while",
    ),
    pytest.param({"fault": "close", "from": 1, "to": 1}, b"", 0, id="close-for-a-while"),
    pytest.param(
        {"fault": "status", "status": 308, "body": "", "headers": {"Location": "/login"}},
        response("308 Permanent Redirect", b"", "Location: /login\r\n"),
        0,
        id="redirect",
    ),
    pytest.param({"fault": "close"}, b"", 0, id="close"),
    pytest.param({"fault": "close-after-start"}, b"", 1, id="close-after-start"),
    pytest.param({"fault": "close-after-response"}, GOOD, 1, id="close-after-response"),
    pytest.param({"fault": "cut-head"}, HEAD[: len(HEAD) // 2], 1, id="cut-head"),
    pytest.param({"fault": "cut-head", "bytes": 4}, b"HTTP", 1, id="cut-status-line"),
    pytest.param({"fault": "cut-head", "bytes": 999}, HEAD[:-1], 1, id="cut-head-end"),
    pytest.param({"fault": "cut-body"}, HEAD + BODY[: len(BODY) // 2], 1, id="cut-body"),
    pytest.param({"fault": "cut-body", "bytes": 0}, HEAD, 1, id="no-body"),
    pytest.param({"fault": "cut-body", "bytes": 999}, HEAD + BODY[:-1], 1, id="cut-body-end"),
    pytest.param({"fault": "garbage"}, GARBAGE, 1, id="garbage"),
    pytest.param(
        {"fault": "garbage", "start": False},
        GARBAGE,
        0,
        id="garbage-without-a-run",
    ),
    pytest.param(
        {"fault": "not-json"}, response("200 OK", PAGE, kind="text/html"), 1, id="not-json"
    ),
    pytest.param(
        {"fault": "not-json", "body": "OK"},
        response("200 OK", b"OK", kind="text/html"),
        1,
        id="not-json-text",
    ),
    pytest.param({"fault": "leave-out"}, response("200 OK", NO_ID), 1, id="no-id"),
    pytest.param({"fault": "other-job"}, response("200 OK", OTHER), 1, id="other-job"),
    pytest.param(
        {"fault": "status", "status": 429, "headers": {"Retry-After": ["3.5", "4, 4"]}},
        response(
            "429 Too Many Requests",
            b'{"message":"scripted 429"}',
            "Retry-After: 3.5\r\nRetry-After: 4, 4\r\n",
        ),
        0,
        id="retry-after-twice",
    ),
    pytest.param(
        {"fault": "status", "status": 503, "headers": {"Via": ["1.1 a", "1.1 b"]}, "body": "x"},
        response(UNAVAILABLE, b"x", "Via: 1.1 a\r\nVia: 1.1 b\r\n"),
        0,
        id="status-with-headers",
    ),
    pytest.param(
        {
            "fault": "status",
            "status": 302,
            "start": True,
            "body": "",
            "headers": {"Location": "/login"},
        },
        response("302 Found", b"", "Location: /login\r\n"),
        1,
        id="redirect-that-starts",
    ),
    pytest.param({"fault": "bom"}, response("200 OK", b"\xef\xbb\xbf" + BODY), 1, id="bom"),
    pytest.param(
        {"fault": "headers", "headers": {"Keep-Alive": "timeout=5"}},
        response("200 OK", BODY, "Keep-Alive: timeout=5\r\n"),
        1,
        id="more-headers",
    ),
    pytest.param(
        {"fault": "headers", "headers": {"X-Long": "x" * 9000}},
        response("200 OK", BODY, f"X-Long: {'x' * 9000}\r\n"),
        1,
        id="long-header",
    ),
    pytest.param(
        {"fault": "leave-out", "keys": ["jobId", "jobRunId"]},
        response("200 OK", b"{}"),
        1,
        id="leave-out",
    ),
    pytest.param(
        {"fault": "raw", "body": BOTH, "then": "close"},
        BOTH.replace("{jobId}", POS_USAGE_EXPORT).replace("{jobRunId}", RUN).encode("latin-1"),
        1,
        id="raw",
    ),
    pytest.param({"fault": "raw", "body": "", "start": False}, b"", 0, id="raw-nothing"),
    pytest.param({"fault": "close", "start": True}, b"", 1, id="close-that-starts"),
    pytest.param(
        {"fault": "bom", "then": "close"},
        response("200 OK", b"\xef\xbb\xbf" + BODY),
        1,
        id="bom-and-close",
    ),
    pytest.param({"fault": "latency", "seconds": 0}, GOOD, 1, id="no-latency"),
    pytest.param({"fault": "fail-run"}, GOOD, 1, id="fail-run"),
]


@pytest.mark.parametrize(("fault", "expected", "runs"), EXACT)
async def test_a_fault_is_exact(
    fault: dict[str, Any], expected: bytes, runs: int, tmp_path: Path
) -> None:
    log = tmp_path / "runs.jsonl"

    async with Simulator(script={"faults": [fault]}, log=log, clock=lambda: NOW) as simulator:
        got = await raw(simulator, encode(close=expected != b"" and "then" not in fault))

    ids = [record["jobRunId"] for record in log_of(log)]
    assert len(ids) == len(simulator.runs) == runs
    assert got == expected.replace(RUN.encode(), "".join(ids).encode())


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
        pytest.param({"fault": "hang"}, 0, b"", id="hang"),
        pytest.param({"fault": "hang-after-start"}, 1, b"", id="hang-after-start"),
        pytest.param({"fault": "stall-body"}, 1, HEAD + BODY[: len(BODY) // 2], id="stall-body"),
        pytest.param({"fault": "raw", "body": "", "then": "hang"}, 1, b"", id="raw-nothing"),
    ],
)
async def test_a_silent_connection_stays_open_until_the_end(
    fault: dict[str, Any], runs: int, sent: bytes
) -> None:
    faulty = Simulator(script={"faults": [fault]}, clock=lambda: NOW)

    async with faulty as simulator, connect(simulator) as client:
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

    bodies = [got.partition(b"\r\n\r\n")[2] for got in (small, huge)]
    assert [len(body) for body in bodies] == [5000, 2 * 1024 * 1024]
    assert [orjson.loads(body)["jobRunId"] for body in bodies] == [
        run.job_run_id for run in simulator.runs
    ]


@pytest.mark.parametrize(
    ("more", "unpack", "header"),
    [
        pytest.param({}, gzip.decompress, "gzip", id="gzip"),
        pytest.param({"encoding": "deflate"}, zlib.decompress, "deflate", id="deflate"),
        pytest.param({"encoding": "none"}, gzip.decompress, None, id="no-header"),
    ],
)
@pytest.mark.parametrize("size", [pytest.param(0, id="short"), pytest.param(5000, id="padded")])
async def test_a_packed_response_is_good_when_it_is_unpacked(
    more: dict[str, Any], unpack: Callable[[bytes], bytes], header: str | None, size: int
) -> None:
    script = {"faults": [{"fault": "gzip", "bytes": size, **more}]}

    async with Simulator(script=script) as simulator, connect(simulator) as client:
        await client.send(encode())
        _, headers, packed = await client.response()

    body = unpack(packed)
    assert headers.get("content-encoding") == header
    assert len(body) == max(size, 98)
    assert orjson.loads(body)["jobRunId"] == simulator.runs[0].job_run_id


async def test_a_connection_is_closed_behind_a_response_that_did_not_say_so() -> None:
    asleep, awake = asyncio.Event(), asyncio.Event()
    naps: list[float] = []

    async def nap(seconds: float) -> None:
        naps.append(seconds)
        asleep.set()
        await awake.wait()

    script = {"faults": [{"fault": "close-after-response", "after": 0.005}]}

    async with Simulator(script=script, sleep=nap) as simulator, connect(simulator) as client:
        await client.send(encode(close=False))
        status, headers, _ = await client.response()
        await asleep.wait()
        await client.send(encode(close=False))
        await ask(simulator, JOBS, {})
        awake.set()
        rest = await client.reader.read()

    assert (status, headers.get("connection"), rest, naps) == (200, None, b"", [0.005])
    assert simulator.requests == 1  # what came meanwhile was never served


async def test_a_second_response_comes_that_nobody_asked_for() -> None:
    naps = Naps()
    script = {"faults": [{"fault": "second-response", "at": [1]}]}

    async with Simulator(script=script, sleep=naps) as simulator, connect(simulator) as client:
        ids = []
        await client.send(encode(close=False))
        await client.send(encode(close=False))

        for _ in range(3):
            _, _, body = await client.response()
            ids.append(orjson.loads(body)["jobRunId"])

    assert naps.seconds == [0.02]
    assert [ids[0], ids[2]] == [run.job_run_id for run in simulator.runs]
    assert len({*ids}) == 3


async def test_a_run_is_told_to_another_row(tmp_path: Path) -> None:
    log = tmp_path / "runs.jsonl"

    async with Simulator(script={"faults": [{"fault": "other-run"}]}, log=log) as simulator:
        told = [(await ask(simulator))[1]["jobRunId"] for _ in range(3)]

    made = [record["jobRunId"] for record in log_of(log)]
    assert told == [made[0]] * 3
    assert len({*made}) == 3


async def test_the_clock_of_des_may_be_ahead() -> None:
    async with Simulator(clock=lambda: NOW - 60) as simulator:
        got = await raw(simulator, encode())

    assert b"\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n" in got
    assert simulator.runs[0].created == 0


async def test_a_token_comes_without_what_is_left_out() -> None:
    script = {"faults": [{"fault": "leave-out", "on": "token", "keys": ["refresh_token"]}]}

    async with Simulator(script=script) as simulator:
        _, granted = await grant(simulator, PASSWORD)

    assert "access_token" in granted
    assert "refresh_token" not in granted


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


async def test_a_held_response_waits_for_its_release() -> None:
    script = {"faults": [{"fault": "hold", "at": [1]}]}

    async with Simulator(script=script) as simulator, connect(simulator) as client:
        await client.send(encode())
        await simulator.until(lambda: len(simulator.runs) == 1)
        other, _ = await ask(simulator)
        held = (simulator.in_flight, simulator.peak)
        simulator.release()
        status, _, _ = await client.response()
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


async def test_a_client_that_has_said_all_gets_a_late_response() -> None:
    script = {"faults": [{"fault": "hold"}]}

    async with Simulator(script=script) as simulator, connect(simulator) as client:
        await client.send(encode())
        client.writer.write_eof()
        await simulator.until(lambda: len(simulator.runs) == 1)
        simulator.release()
        status, _, _ = await client.response()

    assert status == 200


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
        got = await raw(simulator, request_bytes)

    head, _, body = got.partition(b"\r\n\r\n")
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


# Scripts.


def numbers(
    fault: dict[str, Any], *, seed: int = 0, most: int = 10, body: bytes = b""
) -> list[int]:
    script = read_script({"seed": seed, "faults": [{"fault": "close", **fault}]})
    return [n for n in range(1, most + 1) if pick(script, "startjob", n, body) is not NO_FAULT]


SENT = orjson.dumps(start_body(parameters={"DBGenFrom": integer("1234")}))


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        pytest.param({}, [*range(1, 11)], id="every-request"),
        pytest.param({"at": [2, 9, 400]}, [2, 9], id="at"),
        pytest.param({"every": 4}, [4, 8], id="every"),
        pytest.param({"from": 8}, [8, 9, 10], id="from"),
        pytest.param({"to": 2}, [1, 2], id="to"),
        pytest.param({"from": 3, "to": 4}, [3, 4], id="from-to"),
        pytest.param({"from": 3, "to": 3}, [3], id="from-to-one"),
        pytest.param({"from": 5, "every": 2}, [6, 8, 10], id="selectors-all-hold"),
        pytest.param({"share": 0}, [], id="no-share"),
        pytest.param({"share": 1}, [*range(1, 11)], id="whole-share"),
        pytest.param({"on": "token"}, [], id="other-endpoint"),
        pytest.param({"match": POS_USAGE_EXPORT, "to": 1}, [1], id="job"),
        pytest.param({"match": CSV_SALES_EXPORT}, [], id="other-job"),
        pytest.param({"match": '"1234"', "to": 1}, [1], id="text"),
        pytest.param({"match": '"123"'}, [], id="other-text"),
    ],
)
def test_selectors(fault: dict[str, Any], expected: list[int]) -> None:
    assert numbers(fault, body=SENT) == expected


def test_a_share_depends_on_nothing_but_seed_place_and_number() -> None:
    assert numbers({"share": 0.3}, seed=7, most=13) == [2, 3, 4, 5, 10, 12]


@pytest.mark.parametrize("share", [0.02, 0.05, 0.5])
def test_a_share_is_about_as_large_as_asked(share: float) -> None:
    assert len(numbers({"share": share}, most=20_000)) == pytest.approx(20_000 * share, rel=0.1)


def test_shares_of_other_seeds_and_places_are_others() -> None:
    fault = {"fault": "close", "share": 0.5}
    script = read_script({"faults": [fault | {"on": "token"}, fault]})
    second = [n for n in range(1, 101) if pick(script, "startjob", n) is not NO_FAULT]

    assert len({tuple(second), *(tuple(numbers(fault, seed=s, most=100)) for s in range(3))}) == 4


def test_the_first_fault_that_matches_wins() -> None:
    faults = [
        {"fault": "close", "at": [2]},
        {"fault": "reset", "every": 2},
        {"fault": "hang", "on": "token"},
    ]
    script = read_script({"faults": faults})
    picked = [pick(script, "startjob", n) for n in range(1, 5)]

    assert picked == [NO_FAULT, faults[0], NO_FAULT, faults[1]]


BAD_SCRIPTS = [
    pytest.param([], "", "an object", id="list"),
    pytest.param(
        {"fault": []},
        "fault",
        "one of faults, finishAfter, latency, seed, tokens",
        id="misspelt",
    ),
    pytest.param({"seed": 1.5}, "seed", "a whole number", id="seed"),
    pytest.param({"latency": -1}, "latency", "a number of seconds from 0", id="latency"),
    pytest.param({"latency": True}, "latency", "a number of seconds from 0", id="latency-true"),
    pytest.param({"tokens": {}}, "tokens.expireAfter", "a whole number from 1", id="tokens"),
    pytest.param(
        {"tokens": {"expireAfter": 1, "which": "last"}},
        "tokens.which",
        "one of all, first",
        id="which",
    ),
    pytest.param({"faults": {}}, "faults", "a list of objects", id="faults"),
    pytest.param({"faults": [{}]}, "faults[0].fault", "one of bom, close, ", id="no-kind"),
    pytest.param(
        {"faults": [{"fault": "clsoe"}]}, "faults[0].fault", "one of bom, close, ", id="kind"
    ),
    pytest.param(
        {"faults": [{"fault": []}]}, "faults[0].fault", "one of bom, close, ", id="kind-list"
    ),
    pytest.param(
        {"faults": [{"fault": "close"}, {"fault": "status"}]},
        "faults[1].status",
        "a status from 200 to 599",
        id="status-left-out",
    ),
    pytest.param(
        {"faults": [{"fault": "status", "status": 99}]},
        "faults[0].status",
        "a status from 200 to 599",
        id="status-99",
    ),
    pytest.param(
        {"faults": [{"fault": "close", "share": 5}]},
        "faults[0].share",
        "a number from 0 to 1",
        id="share",
    ),
    pytest.param(
        {"faults": [{"fault": "close", "at": 5}]},
        "faults[0].at",
        "a list of whole numbers from 1",
        id="at-number",
    ),
    pytest.param(
        {"faults": [{"fault": "close", "at": []}]},
        "faults[0].at",
        "a list of whole numbers from 1, not empty",
        id="at-nothing",
    ),
    pytest.param(
        {"faults": [{"fault": "close", "at": [0]}]},
        "faults[0].at",
        "a list of whole numbers from 1",
        id="at-0",
    ),
    pytest.param(
        {"faults": [{"fault": "close", "every": 0}]},
        "faults[0].every",
        "a whole number from 1",
        id="every-0",
    ),
    pytest.param(
        {"faults": [{"fault": "close", "status": 503}]},
        "faults[0].status",
        "one of after, at, every, fault, from, match, on, seconds, share, start, then, to",
        id="other-kinds-key",
    ),
    pytest.param(
        {"faults": [{"fault": "raw", "body": "\u20ac"}]},
        "faults[0].body",
        "characters up to U+00FF",
        id="raw-beyond-a-byte",
    ),
    pytest.param(
        {"faults": [{"fault": "status", "status": 503, "retryAfter": []}]},
        "faults[0].retryAfter",
        "a number of seconds or an ASCII text",
        id="retry-after-nothing",
    ),
    pytest.param(
        {"faults": [{"fault": "status", "status": 503, "headers": {"A": "b\r\nC: d"}}]},
        "faults[0].headers",
        "an object of ASCII texts",
        id="header-of-two-lines",
    ),
    pytest.param(
        {"faults": [{"fault": "gzip", "encoding": "br"}]},
        "faults[0].encoding",
        "one of deflate, gzip, none",
        id="encoding",
    ),
    pytest.param(
        {"faults": [{"fault": "close", "match": 7}]}, "faults[0].match", "a string", id="match"
    ),
    pytest.param(
        {"faults": [{"fault": "garbage", "on": "connection"}]},
        "faults[0].fault",
        "one of close, hang, reset on a connection",
        id="connection-kind",
    ),
    pytest.param(
        {"faults": [{"fault": "close", "from": 9, "to": 8}]},
        "faults[0].to",
        "a number from 9, the fault's from",
        id="from-after-to",
    ),
    pytest.param(
        {"faults": [{"fault": "headers"}]},
        "faults[0].headers",
        "an object of ASCII texts",
        id="headers-left-out",
    ),
    pytest.param(
        {"faults": [{"fault": "status", "status": 503, "retryAfterDate": 1e15}]},
        "faults[0].retryAfterDate",
        "seconds from -1e9 to 1e9",
        id="a date that no calendar has",
    ),
    pytest.param(
        {"faults": [{"fault": "close", "on": "start"}]},
        "faults[0].on",
        "one of connection, queryjobs, ",
        id="on",
    ),
]


@pytest.mark.parametrize(("script", "where", "expected"), BAD_SCRIPTS)
def test_a_bad_script_says_where(script: Any, where: str, expected: str) -> None:
    with pytest.raises(SimulatorError) as caught:
        Simulator(script=script)

    assert caught.value.where == where
    assert f"expected {expected}" in str(caught.value)


def test_a_file_that_is_no_json_says_so(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text('{\n"seed": }')

    with pytest.raises(SimulatorError, match=r"bad\.json, line 2: expected JSON"):
        load_json(path)


def test_a_long_value_is_shortened_in_an_error() -> None:
    with pytest.raises(SimulatorError) as caught:
        read_script({"seed": "x" * 1000})

    assert len(str(caught.value)) < 200


def test_the_sample_script_is_the_demo() -> None:
    script = read_script(load_json(SAMPLES / "faults.json"))
    counts = {503: 0, 500: 0}

    for number in range(1, 2001):
        fault = pick(script, "startjob", number)

        if fault is not NO_FAULT:
            counts[fault["status"]] += 1

    assert script["latency"] == 0.02
    assert counts[503] == pytest.approx(100, rel=0.25)
    assert counts[500] == pytest.approx(40, rel=0.4)


def test_the_docstring_lists_every_kind_and_every_key() -> None:
    described = package.__doc__ or ""
    listed = set(re.findall(r"^([a-z-]+) +\S", described, re.MULTILINE))
    keys = {key for kind in KINDS.values() for key in (*kind.needs, *kind.takes)}

    assert set(KINDS) <= listed
    assert {key for key in keys if key not in described} == set()
