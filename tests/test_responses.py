"""What a response means: the verdict table and what is kept, line by line, against raw sockets.

A test judges what was raised, whether the client says that bytes had left, and, as the
independent witness, how many requests the server saw. All of it holds on both loops, and without
the quick way.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import gzip
import json
import logging
import zlib
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

import pytest
from multidict import CIMultiDict, CIMultiDictProxy
from peer import (
    JOB,
    OK,
    OTHER_JOB,
    PASSWORD,
    RUN,
    STARTED,
    TOKEN,
    WAYS,
    Peer,
    Step,
    Tokens,
    assert_no_secret,
    chunked,
    client_of,
    refused,
    response,
    seconds_for,
    start_of,
    unused_port,
)

from deslaunch.des import http, quick
from deslaunch.des.client import DesClient
from deslaunch.errors import (
    ConfigurationError,
    CredentialsRefused,
    DesError,
    NotSent,
    OutcomeUnknown,
    QueryFailed,
    Redirected,
    Rejected,
    SchemaError,
    ServerError,
    Throttled,
    Unauthorized,
)
from deslaunch.model import AUTO, JobRunParameterValue, Sent, StartedRun

if TYPE_CHECKING:
    from collections.abc import Iterator

    from peer import Script

    from deslaunch.des.wire import Value


@pytest.fixture(params=WAYS)
def anyio_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    use_uvloop, is_known = request.param
    monkeypatch.setattr(quick, "IS_KNOWN", is_known)
    return ("asyncio", {"use_uvloop": use_uvloop})


@pytest.fixture(autouse=True, scope="module")
def cheap_collections() -> Iterator[None]:
    """Let each test's collection look at what that test left; the last one looks at all."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
    gc.collect()


@pytest.fixture(autouse=True)
def nothing_left_open(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Surface ResourceWarnings in the test that caused them, and read what was logged."""
    caplog.set_level(logging.DEBUG)
    yield
    gc.collect()
    gc.freeze()
    assert TOKEN not in caplog.text
    assert "never retrieved" not in caplog.text
    assert "Unclosed" not in caplog.text


# -- the verdict table ------------------------------------------------------------------------


async def test_a_start_sends_the_body_as_it_is_with_the_bearer_token() -> None:
    async with Peer([[OK]]).listening() as peer, client_of(peer) as client:
        sent = Sent()
        run = await client.start(start_of(b'{"a" : 1}'), sent)

    head = peer.heads[0].decode()
    assert (run, bool(sent), peer.bodies) == (StartedRun(JOB, RUN), True, [b'{"a" : 1}'])
    assert head.startswith("POST /api/v1/startjob HTTP/1.1\r\n")
    assert f"\r\nAuthorization: Bearer {TOKEN}\r\n" in head
    assert "\r\nContent-Type: application/json\r\n" in head
    assert "\r\nAccept-Encoding: identity\r\n" in head
    assert "\r\nUser-Agent: deslaunch/" in head
    assert head.lower().count("content-type:") == 1


VERDICTS: Final = [
    pytest.param(response(204), OutcomeUnknown, 204, id="204"),
    pytest.param(response(201, STARTED), OutcomeUnknown, 201, id="201 even with a run"),
    pytest.param(response(202, STARTED), OutcomeUnknown, 202, id="202 even with a run"),
    pytest.param(response(200), OutcomeUnknown, 200, id="200 empty"),
    pytest.param(response(200, b"<html>"), OutcomeUnknown, 200, id="200 no JSON"),
    pytest.param(response(200, b"[]"), OutcomeUnknown, 200, id="200 no object"),
    pytest.param(response(200, b"\xff\xfe"), OutcomeUnknown, 200, id="200 no UTF-8"),
    pytest.param(
        response(200, b'{"jobId":"%s"}' % JOB.encode()), OutcomeUnknown, 200, id="200 no id"
    ),
    pytest.param(
        response(200, STARTED.replace(RUN.encode(), b"17")), OutcomeUnknown, 200, id="200 odd id"
    ),
    pytest.param(response(301), Redirected, 301, id="301"),
    pytest.param(response(302), OutcomeUnknown, 302, id="302"),
    pytest.param(response(302, b"", "Location: /x"), OutcomeUnknown, 302, id="302 to a page"),
    pytest.param(
        response(302, b"", "Location: /api/v1/startjob"), OutcomeUnknown, 302, id="302 to itself"
    ),
    pytest.param(
        response(302, b"", "Location: https://des.example/login"),
        OutcomeUnknown,
        302,
        id="302 to another path elsewhere",
    ),
    pytest.param(
        response(302, b"", "Location: https://des.example/api/v1/startjob"),
        Redirected,
        302,
        id="302 to the same path elsewhere",
    ),
    pytest.param(response(302, b"", "Location: http://[bad"), OutcomeUnknown, 302, id="302 bad"),
    pytest.param(response(307, b"", "Location: http://[bad"), Redirected, 307, id="307 bad target"),
    pytest.param(response(308), Redirected, 308, id="308"),
    pytest.param(response(300), OutcomeUnknown, 300, id="300"),
    pytest.param(response(303, b"", "Location: /x"), OutcomeUnknown, 303, id="303"),
    pytest.param(response(304), OutcomeUnknown, 304, id="304"),
    pytest.param(response(400, b"{}"), Rejected, 400, id="400"),
    pytest.param(response(401, b"{}"), Unauthorized, 401, id="401"),
    pytest.param(response(403, b"{}"), Rejected, 403, id="403"),
    pytest.param(response(404, b"<html>"), Rejected, 404, id="404"),
    pytest.param(response(407), Rejected, 407, id="407"),
    pytest.param(response(408), OutcomeUnknown, 408, id="408"),
    pytest.param(response(409), Rejected, 409, id="409"),
    pytest.param(response(413), Rejected, 413, id="413"),
    pytest.param(response(425), Throttled, 425, id="425"),
    pytest.param(response(429), Throttled, 429, id="429"),
    pytest.param(response(499), Rejected, 499, id="499"),
    pytest.param(response(500, b"{}"), ServerError, 500, id="500"),
    pytest.param(response(502, b"<html>"), ServerError, 502, id="502"),
    pytest.param(response(503), ServerError, 503, id="503 bare"),
    pytest.param(response(503, b"", "Retry-After: 5"), Throttled, 503, id="503 with Retry-After"),
    pytest.param(response(503, b"", "retry-after: soon"), Throttled, 503, id="503 unreadable"),
    pytest.param(response(500, b"", "Retry-After: 5"), ServerError, 500, id="500 with Retry-After"),
    pytest.param(response(504), OutcomeUnknown, 504, id="504"),
    pytest.param(response(504, b"", "Retry-After: 5"), OutcomeUnknown, 504, id="504 Retry-After"),
    pytest.param(response(520), ServerError, 520, id="520"),
    pytest.param(response(524), OutcomeUnknown, 524, id="524"),
    pytest.param(response(599), ServerError, 599, id="599"),
    pytest.param(response(600), OutcomeUnknown, 600, id="600"),
    pytest.param(response(999), OutcomeUnknown, 999, id="999"),
    pytest.param(OK.replace(b"200", b"099"), OutcomeUnknown, 99, id="099"),
]


@pytest.mark.parametrize(("reply", "kind", "status"), VERDICTS)
async def test_the_verdict_on_a_reply(reply: bytes, kind: type[DesError], status: int) -> None:
    async with Peer([[reply]]).listening() as peer, client_of(peer) as client:
        error, sent = await refused(client)

    assert (type(error), error.status, sent, len(peer.heads)) == (kind, status, True, 1)
    assert str(status) in str(error)
    assert error.hint


async def test_101_is_unknown() -> None:
    upgrade = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"

    async with Peer([[upgrade, Step.FIN]]).listening() as peer, client_of(peer) as client:
        error, sent = await refused(client)

    assert (type(error), sent, len(peer.heads)) == (OutcomeUnknown, True, 1)


async def test_another_jobs_run_is_unknown_and_its_id_is_kept() -> None:
    body = json.dumps({"jobId": OTHER_JOB, "jobRunId": RUN}).encode()

    async with Peer([[response(200, body)]]).listening() as peer, client_of(peer) as client:
        error, _ = await refused(client)

    assert (type(error), error.job_run_id, error.response) == (OutcomeUnknown, RUN, body.decode())


async def test_the_job_id_is_compared_without_regard_to_case() -> None:
    body = json.dumps({"jobId": JOB.upper(), "jobRunId": RUN}).encode()

    async with Peer([[response(200, body)]]).listening() as peer, client_of(peer) as client:
        assert await client.start(start_of()) == StartedRun(JOB, RUN)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        pytest.param("Retry-After: 30", 30.0, id="seconds"),
        pytest.param("Retry-After: Sat, 31 Jan 2026 12:01:30 GMT", 90.0, id="date"),
        pytest.param("Retry-After: Sat, 31 Jan 2026 11:00:00 GMT", 0.0, id="past date"),
        pytest.param("Retry-After: soon", None, id="unreadable"),
        pytest.param("Retry-After: 3.5", 4.0, id="a fraction"),
        pytest.param("Retry-After: 4, 9, 4", 9.0, id="a list"),
        pytest.param("Retry-After: 4\r\nRetry-After: 7", 7.0, id="two headers"),
        pytest.param(
            "Retry-After: 4\r\nRetry-After: Sat, 31 Jan 2026 12:01:30 GMT",
            90.0,
            id="number and date",
        ),
        pytest.param("Retry-After: -5", None, id="negative"),
        pytest.param(f"Retry-After: {'9' * 400}", 1e9, id="endless"),
        pytest.param(
            "Retry-After: Wed, 21 Oct 2015 07:28:00 +99999999999999999", None, id="absurd zone"
        ),
        pytest.param("X: y", None, id="absent"),
    ],
)
async def test_retry_after(header: str, seconds: float | None) -> None:
    async with Peer([[response(429, b"", header)]]).listening() as peer, client_of(peer) as client:
        error, _ = await refused(client)

    assert (type(error), error.retry_after) == (Throttled, seconds)


@pytest.mark.parametrize(
    ("script", "kind", "status"),
    [
        pytest.param([response(400, b"no", length=9), Step.FIN], Rejected, 400, id="400 cut"),
        pytest.param([response(400, b"no", length=9), Step.STALL], Rejected, 400, id="400 stalled"),
        pytest.param([response(401, b"no", length=9), Step.RST], Unauthorized, 401, id="401 reset"),
        pytest.param([response(500, b"no", length=9), Step.FIN], ServerError, 500, id="500 cut"),
        pytest.param([response(503, b"no", "Retry-After: 1", length=9), Step.RST], Throttled, 503,
                     id="503 reset"),
        pytest.param([response(307, b"no", length=9), Step.STALL], Redirected, 307, id="307 stall"),
        pytest.param([response(400, b"no" * 2**20)], Rejected, 400, id="400 over 1 MiB"),
    ],
)  # fmt: skip
async def test_a_verdict_stands_on_the_status_where_the_body_fails(
    script: Script, kind: type[DesError], status: int
) -> None:
    async with (
        Peer([script]).listening() as peer,
        client_of(peer, timeout=seconds_for(script)) as client,
    ):
        error, sent = await refused(client)

    assert (type(error), error.status, sent, len(peer.heads)) == (kind, status, True, 1)
    assert error.response.startswith("no")


@pytest.mark.parametrize(
    "script",
    [
        pytest.param([response(200, STARTED, length=999), Step.FIN], id="cut"),
        pytest.param([response(200, STARTED, length=999), Step.RST], id="reset"),
        pytest.param([response(200, STARTED, length=999), Step.STALL], id="stalled"),
        pytest.param([chunked(), Step.MANGLE, Step.FIN], id="bad chunk"),
        pytest.param(
            [chunked(b"%x\r\n" % len(STARTED), STARTED, b"\r\n"), Step.FIN], id="chunks cut"
        ),
        pytest.param([response(200, STARTED + b" " * 2**20)], id="over 1 MiB"),
    ],
)  # fmt: skip
async def test_a_200_whose_body_fails_is_unknown(script: Script) -> None:
    async with (
        Peer([script]).listening() as peer,
        client_of(peer, timeout=seconds_for(script)) as client,
    ):
        error, sent = await refused(client)

    assert (type(error), error.status, sent, len(peer.heads)) == (OutcomeUnknown, 200, True, 1)


async def test_what_came_of_a_cut_200_is_kept_with_its_run_id() -> None:
    script: Script = [response(200, STARTED[:-1], length=999), Step.FIN]

    async with Peer([script]).listening() as peer, client_of(peer) as client:
        error, _ = await refused(client)

    assert (error.response, error.job_run_id) == (STARTED[:-1].decode(), RUN)


CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


@pytest.mark.parametrize(
    "script",
    [
        pytest.param([CONTINUE + OK], id="after a 100"),
        pytest.param([CONTINUE, OK], id="after a 100 of its own"),
        pytest.param([b"\r\n\r\n" + OK], id="after empty lines"),
        pytest.param([OK[:-9], OK[-9:]], id="in two pieces"),
        pytest.param([OK[: -len(STARTED)], STARTED], id="head and body"),
        pytest.param(
            [chunked(b"%x\r\n" % len(STARTED), STARTED, b"\r\n0\r\n\r\n")], id="in one chunk"
        ),
        pytest.param(
            [response(200, b"\r\n\r\n" + STARTED + b"\r\n\r\n")], id="with empty lines in it"
        ),
    ],
)
async def test_a_run_is_read_in_whatever_pieces_it_comes(script: Script) -> None:
    async with Peer([script]).listening() as peer, client_of(peer) as client:
        assert await client.start(start_of()) == StartedRun(JOB, RUN)

    assert len(peer.heads) == 1


async def test_a_body_that_ends_with_the_connection_is_whole() -> None:
    reply = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + STARTED

    async with Peer([[reply, Step.FIN]]).listening() as peer, client_of(peer) as client:
        assert await client.start(start_of()) == StartedRun(JOB, RUN)


async def test_a_redirect_is_not_followed_and_its_target_sees_nothing() -> None:
    async with Peer([[OK]]).listening() as other:
        location = f"Location: http://user:{PASSWORD}@127.0.0.1:{other.port}/x?t={TOKEN}"

        async with (
            Peer([[response(307, b"", location)]]).listening() as peer,
            client_of(peer) as client,
        ):
            error, _ = await refused(client)

    assert (type(error), len(peer.heads), other.connections) == (Redirected, 1, 0)
    assert f"http://127.0.0.1:{other.port}" in str(error)


async def test_an_unread_answer_does_not_poison_the_next_request() -> None:
    scripts: list[Script] = [[response(400, b"x" * 2**21)], [OK]]

    async with Peer(scripts).listening() as peer, client_of(peer) as client:
        error, _ = await refused(client)
        run = await client.start(start_of())

    assert (type(error), run.job_run_id, peer.connections) == (Rejected, RUN, 2)


# -- what is kept -----------------------------------------------------------------------------

TOLD: Final = STARTED.decode()
LONG_HEADER: Final = b"X: " + b"y" * 70_000 + b"\r\n"
MANY_HEADERS: Final = b"".join(b"X-%d: y\r\n" % n for n in range(600))


PACKED_TWICE: Final = gzip.compress(STARTED[:30]) + gzip.compress(STARTED[30:])


@pytest.mark.parametrize(
    ("packed", "encoding"),
    [
        pytest.param(gzip.compress(STARTED), "gzip", id="gzip"),
        pytest.param(gzip.compress(STARTED), "X-GZip", id="x-gzip"),
        pytest.param(PACKED_TWICE, "gzip", id="gzip, two members"),
        pytest.param(PACKED_TWICE + b"junk", "gzip", id="gzip and something else"),
        pytest.param(zlib.compress(STARTED), "deflate", id="deflate"),
        pytest.param(zlib.compress(STARTED)[2:-4], "deflate", id="deflate without its frame"),
        pytest.param(b"\xef\xbb\xbf" + STARTED, "identity", id="a BOM"),
    ],
)
async def test_a_run_is_read_however_it_is_packed(packed: bytes, encoding: str) -> None:
    good = response(200, packed, f"Content-Encoding: {encoding}")

    async with Peer([[good]]).listening() as peer, client_of(peer) as client:
        assert await client.start(start_of()) == StartedRun(JOB, RUN)


async def test_a_bomb_is_unpacked_to_a_mebibyte() -> None:
    bomb = gzip.compress(STARTED + b" " * 2**26)

    async with (
        Peer([[response(200, bomb, "Content-Encoding: gzip")]]).listening() as peer,
        client_of(peer) as client,
    ):
        run = await client.start(start_of())

    assert run == StartedRun(JOB, RUN)
    assert len(unpacked(bomb)) == 2**20


def test_many_small_members_take_no_time() -> None:
    assert len(unpacked(gzip.compress(b"x") * 40_000)) == 100


def unpacked(body: bytes) -> bytes:
    headers = CIMultiDictProxy(CIMultiDict({"Content-Encoding": "gzip"}))
    received = http.Exchange(b"", Sent(), 2**20, body=body)
    received.headers = headers
    return http.unpacked(received)


BINARY: Final = b"\x1f\x8b\xff\x00" + TOKEN.encode() + b"\x00\xfe"


@pytest.mark.parametrize(
    ("body", "headers", "kept"),
    [
        pytest.param(
            BINARY,
            ("Content-Encoding: gzip",),
            "base64:" + base64.b64encode(b"\x1f\x8b\xff\x00[token]\x00\xfe").decode(),
            id="not gzip",
        ),
        pytest.param(gzip.compress(STARTED)[:60], ("Content-Encoding: gzip",), TOLD[:20], id="cut"),
        pytest.param("é".encode("latin-1") + b" ", (), "é", id="Latin-1"),
        pytest.param("aé".encode()[:-1], (), "a", id="cut within a character"),
    ],
)
async def test_no_byte_is_lost_of_what_is_no_text(
    body: bytes, headers: tuple[str, ...], kept: str
) -> None:
    async with (
        Peer([[response(200, body, *headers)]]).listening() as peer,
        client_of(peer) as client,
    ):
        error, sent = await refused(client)

    assert (type(error), error.response[: len(kept)], sent) == (OutcomeUnknown, kept, True)


@pytest.mark.parametrize(
    "header",
    [
        pytest.param("X: " + "y" * 60_000, id="long"),
        pytest.param("\r\n".join(f"X-{number}: y" for number in range(450)), id="many"),
    ],
)
async def test_large_headers_cost_no_run(header: str) -> None:
    async with (
        Peer([[response(200, STARTED, header)]]).listening() as peer,
        client_of(peer) as client,
    ):
        assert await client.start(start_of()) == StartedRun(JOB, RUN)


NO_CONTENT: Final = b"HTTP/1.1 204 No Content\r\n\r\n" + STARTED
BOTH: Final = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n%b" % (
    len(STARTED),
    STARTED,
)


@pytest.mark.parametrize(
    "odd",
    [
        pytest.param(NO_CONTENT, id="204 with a body"),
        pytest.param(BOTH, id="Content-Length and chunked"),
        pytest.param(b"HTTP/1.1 200 OK\r\n" + LONG_HEADER + b"\r\n" + STARTED, id="long header"),
        pytest.param(f"Bearer {TOKEN}\r\n\r\n".encode() + STARTED, id="no HTTP"),
    ],
)
async def test_what_came_is_kept_where_it_is_no_http(odd: bytes) -> None:
    async with Peer([[odd, Step.FIN]]).listening() as peer, client_of(peer) as client:
        error, sent = await refused(client)

    assert (type(error), sent, len(peer.heads)) == (OutcomeUnknown, True, 1)
    assert TOKEN not in repr(error.__cause__)

    if quick.IS_KNOWN:
        assert error.job_run_id == RUN
        assert error.response.startswith(("HTTP/1.1 20", "Bearer [token]"))


# -- what happens after the request was sent --------------------------------------------------

SENT_FAULTS: Final = [
    pytest.param([Step.FIN], id="FIN"),
    pytest.param([Step.RST], id="RST"),
    pytest.param([Step.STALL], id="no answer in time"),
    pytest.param([b"HTTP/1.1 200 O", Step.FIN], id="half a status line, FIN"),
    pytest.param([b"HTTP/1.1 200 OK\r\nContent-Le", Step.FIN], id="half a header, FIN"),
    pytest.param([b"HTTP/1.1 200 OK\r\nContent-Le", Step.RST], id="half a header, RST"),
    pytest.param([b"HTTP/1.1 200 OK\r\nContent-Le", Step.STALL], id="half a header, stalled"),
    pytest.param([b"SSH-2.0-OpenSSH_9.6\r\n\r\n", Step.FIN], id="garbage status line"),
    pytest.param([b"HTTP/1.1 abc OK\r\n\r\n", Step.FIN], id="status no number"),
    pytest.param([b"\x15\x03\x01\x00\x02\x02\x46", Step.FIN], id="binary garbage"),
    pytest.param([b"HTTP/1.1 200 OK\r\n" + LONG_HEADER + b"\r\n", Step.FIN], id="long header"),
    pytest.param([b"HTTP/1.1 200 OK\r\n" + MANY_HEADERS + b"\r\n", Step.FIN], id="many headers"),
    pytest.param([b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", Step.FIN], id="header without colon"),
    pytest.param([f"Bearer {TOKEN}\r\n\r\n".encode(), Step.FIN], id="the token echoed as garbage"),
    pytest.param([chunked(b"zz\r\n"), Step.FIN], id="bad chunk with the head"),
    pytest.param([Step.CONTINUE], id="endless 100 Continue"),
    pytest.param([Step.TRICKLE], id="trickling bytes"),
]


@pytest.mark.parametrize("script", SENT_FAULTS)
async def test_a_fault_after_sending_is_unknown(script: Script) -> None:
    async with (
        Peer([script]).listening() as peer,
        client_of(peer, timeout=seconds_for(script)) as client,
    ):
        error, sent = await refused(client)

    assert (type(error), error.status, sent, len(peer.heads)) == (OutcomeUnknown, None, True, 1)


LONG_BODY: Final = b" " * 30_000_000
at_any_length = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")


@at_any_length
@pytest.mark.parametrize(
    "script",
    [
        pytest.param([Step.STALL], id="stalled upload"),
        pytest.param([Step.RST], id="reset while uploading"),
        pytest.param([Step.FIN], id="closed while uploading"),
    ],
)
async def test_a_fault_while_uploading_is_unknown(script: Script) -> None:
    peer = Peer([script], read_body=False)

    async with peer.listening(), client_of(peer, timeout=seconds_for(script)) as client:
        error, sent = await refused(client, LONG_BODY)

    assert (type(error), error.status, sent, len(peer.heads)) == (OutcomeUnknown, None, True, 1)


@at_any_length
async def test_an_answer_before_the_upload_ended_stands() -> None:
    peer = Peer([[response(413, b"too long"), Step.STALL]], read_body=False)

    async with asyncio.timeout(20), peer.listening(), client_of(peer) as client:
        error, sent = await refused(client, LONG_BODY)

    assert (type(error), error.status, sent, len(peer.heads)) == (Rejected, 413, True, 1)


# -- tokens -----------------------------------------------------------------------------------


async def test_a_refused_token_is_renewed_once_for_all_who_were_refused() -> None:
    source = Tokens("old-token", "new-token")
    scripts: list[Script] = [[response(401)], [response(401)], [OK]]

    async with Peer(scripts).listening() as peer, client_of(peer, token=source) as client:
        errors = [(await refused(client))[0] for _ in range(2)]
        assert [isinstance(error, Unauthorized) and error.generation for error in errors] == [1, 1]

        async with asyncio.TaskGroup() as group:
            for error in errors:
                assert isinstance(error, Unauthorized)
                group.create_task(client.renew(error))

        await client.start(start_of())

    sent = [line for head in peer.heads for line in head.split(b"\r\n") if b"Bearer" in line]
    assert source.fetched == 2
    assert sent == [
        b"Authorization: Bearer " + t for t in (b"old-token", b"old-token", b"new-token")
    ]


async def test_no_newer_token_is_credentials_refused() -> None:
    async with Peer([[response(401)]]).listening() as peer, client_of(peer) as client:
        error, _ = await refused(client)
        assert isinstance(error, Unauthorized)

        with pytest.raises(CredentialsRefused) as caught:
            await client.renew(error)

    assert_no_secret(caught.value)


async def test_a_token_with_a_line_break_is_refused_before_anything_is_sent() -> None:
    class Broken:
        async def fetch(self) -> str:
            return f"{TOKEN}\r\nX: y"

    sent = Sent()

    async with Peer([[OK]]).listening() as peer, client_of(peer, token=Broken()) as client:
        with pytest.raises(CredentialsRefused) as caught:
            await client.start(start_of(), sent)

    assert (bool(sent), peer.connections) == (False, 0)
    assert_no_secret(caught.value)


@pytest.mark.parametrize(
    "spelling",
    [
        pytest.param(TOKEN, id="as it is"),
        pytest.param(TOKEN.replace("/", r"\/"), id="slash escaped"),
        pytest.param(TOKEN.replace("+", r"\u002B"), id="plus escaped"),
        pytest.param(TOKEN.replace("+", r"\u002b").replace("=", r"\u003d"), id="lower case"),
        pytest.param(TOKEN.replace("+", "%2B").replace("/", "%2f"), id="percent-encoded"),
    ],
)
@pytest.mark.parametrize("status", [200, 400, 401, 429, 500])
async def test_an_answer_that_quotes_the_token_is_scrubbed(status: int, spelling: str) -> None:
    body = json.dumps({"message": "?"}).replace("?", f"token {spelling} is bad").encode()

    async with Peer([[response(status, body)]]).listening() as peer, client_of(peer) as client:
        error, _ = await refused(client)

    assert spelling not in str(error)
    assert error.response == '{"message": "token [token] is bad"}'


async def test_an_answer_is_scrubbed_before_it_is_cut() -> None:
    body = b"x" * 4_080 + TOKEN.encode() + b"y" * 20_000

    async with Peer([[response(500, body)]]).listening() as peer, client_of(peer) as client:
        error, _ = await refused(client)

    assert (len(error.response), error.response[4_080:]) == (4_096, "[token]" + "y" * 9)


async def test_a_token_that_the_answers_end_cut_off_is_scrubbed() -> None:
    script: Script = [response(500, f"you sent {TOKEN[:20]}".encode(), length=999), Step.FIN]

    async with Peer([script]).listening() as peer, client_of(peer) as client:
        error, _ = await refused(client)

    assert error.response == "you sent [token]"


# -- the library's calls ----------------------------------------------------------------------


async def test_start_job_encodes_python_values() -> None:
    parameters: dict[str, Value] = {
        "text": "a",
        "empty": "",
        "yes": True,
        "no": False,
        "number": 2**70,
        "amount": Decimal("1E+3"),
        "price": Decimal("1.50"),
        "zulu": datetime(2021, 10, 19, 6, 16, 47, tzinfo=UTC),
        "local": datetime(2021, 10, 19, 6, 16, 47, tzinfo=timezone(timedelta(hours=2))),
        "naive": datetime(2021, 10, 19, 6, 16, 47, 500),  # noqa: DTZ001  # it is passed on
        "null": None,
        "auto": AUTO,
        "typed": JobRunParameterValue(9, "x"),
    }

    async with Peer([[OK]]).listening() as peer, client_of(peer) as client:
        run = await client.start_job(JOB.upper(), parameters)

    assert run == StartedRun(JOB, RUN)
    assert json.loads(peer.bodies[0]) == {
        "jobId": JOB,
        "parameters": {
            "text": {"valueStringEncoded": "a"},
            "empty": {"valueStringEncoded": ""},
            "yes": {"valueStringEncoded": "true"},
            "no": {"valueStringEncoded": "false"},
            "number": {"type": 2, "valueStringEncoded": str(2**70)},
            "amount": {"type": 3, "valueStringEncoded": "1000"},
            "price": {"type": 3, "valueStringEncoded": "1.50"},
            "zulu": {"type": 4, "valueStringEncoded": "2021-10-19T06:16:47Z"},
            "local": {"type": 4, "valueStringEncoded": "2021-10-19T06:16:47+02:00"},
            "naive": {"type": 4, "valueStringEncoded": "2021-10-19T06:16:47.000500"},
            "null": {"valueStringEncoded": None},
            "auto": {"valueStringEncoded": None, "useAutoValue": True},
            "typed": {"type": 9, "valueStringEncoded": "x"},
        },
    }


@pytest.mark.parametrize(
    ("job_id", "value", "kind"),
    [
        pytest.param(JOB, 1.5, TypeError, id="float"),
        pytest.param(JOB, b"x", TypeError, id="bytes"),
        pytest.param(JOB, ["x"], TypeError, id="list"),
        pytest.param(JOB, "\ud800", TypeError, id="lone surrogate"),
        pytest.param(JOB, Decimal("NaN"), ValueError, id="NaN"),
        pytest.param(JOB, Decimal("-Infinity"), ValueError, id="infinity"),
        pytest.param("nightly", "x", ValueError, id="job id no GUID"),
    ],
)
async def test_start_job_refuses_what_it_can_not_encode(
    job_id: str, value: Any, kind: type[Exception]
) -> None:
    async with Peer([[OK]]).listening() as peer, client_of(peer) as client:
        with pytest.raises(kind):
            await client.start_job(job_id, {"p": value})

    assert peer.connections == 0


async def test_start_job_makes_one_attempt() -> None:
    async with Peer([[response(401)]]).listening() as peer, client_of(peer) as client:
        with pytest.raises(Unauthorized):
            await client.start_job(JOB, {})

    assert len(peer.heads) == 1


JOBS: Final = json.dumps(
    {"jobs": [{"jobId": JOB, "name": "Nightly", "jobRunParameters": [{"name": "From", "type": 2}]}]}
).encode()
STATUS: Final = json.dumps({"jobId": JOB, "jobRunId": RUN, "finished": True, "success": True})


async def test_query_jobs() -> None:
    async with Peer([[response(200, JOBS)]]).listening() as peer, client_of(peer) as client:
        (job,) = await client.query_jobs()

    assert (job.job_id, job.name, job.parameters[0].name) == (JOB, "Nightly", "From")
    assert peer.heads[0].startswith(b"POST /api/v1/queryjobs ")
    assert peer.bodies == [b"{}"]


async def test_a_token_that_is_a_part_of_a_word_spoils_no_jobs() -> None:
    async with (
        Peer([[response(200, JOBS)]]).listening() as peer,
        client_of(peer, token="t") as client,
    ):
        (job,) = await client.query_jobs()

    assert job.parameters[0].type == 2


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
async def test_query_jobs_reads_more_than_a_start_does(encoding: str) -> None:
    padded = b" " * 2**21 + JOBS
    body = gzip.compress(padded) if encoding == "gzip" else padded
    good = response(200, body, f"Content-Encoding: {encoding}")

    async with Peer([[good]]).listening() as peer, client_of(peer) as client:
        assert len(await client.query_jobs()) == 1


async def test_query_run_status() -> None:
    reply = response(200, STATUS.encode())

    async with Peer([[reply]]).listening() as peer, client_of(peer) as client:
        status = await client.query_run_status(RUN.upper())

    assert (status.job_run_id, status.finished, status.success) == (RUN, True, True)
    assert peer.heads[0].startswith(b"POST /api/v1/queryrunstatus ")


async def test_a_runs_status_holds_no_token() -> None:
    said = {"status": f"bad {TOKEN}", "outputFiles": [{"url": f"https://d/?token={TOKEN}"}]}
    body = json.dumps(json.loads(STATUS) | said).encode()

    async with Peer([[response(200, body)]]).listening() as peer, client_of(peer) as client:
        status = await client.query_run_status(RUN)

    assert status.status == "bad [token]"
    assert status.output_files == ({"url": "https://d/?token=[token]"},)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"{}", id="no status"),
        pytest.param(STATUS.replace(RUN, OTHER_JOB).encode(), id="another run's"),
    ],
)
async def test_an_unreadable_run_status_is_query_failed(body: bytes) -> None:
    async with Peer([[response(200, body)]]).listening() as peer, client_of(peer) as client:
        with pytest.raises(QueryFailed) as caught:
            await client.query_run_status(RUN)

    assert (caught.value.status, caught.value.response) == (200, body.decode())


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        pytest.param([Step.FIN], QueryFailed, id="FIN"),
        pytest.param([Step.STALL], QueryFailed, id="no answer in time"),
        pytest.param([b"garbage\r\n\r\n", Step.FIN], QueryFailed, id="garbage"),
        pytest.param([response(200, JOBS, length=9999), Step.FIN], QueryFailed, id="cut"),
        pytest.param([response(204)], QueryFailed, id="204"),
        pytest.param([response(304)], QueryFailed, id="304"),
        pytest.param([response(408)], QueryFailed, id="408"),
        pytest.param([response(504)], QueryFailed, id="504"),
        pytest.param([response(302)], Redirected, id="302"),
        pytest.param([response(403)], Rejected, id="403"),
        pytest.param([response(404)], Rejected, id="404"),
        pytest.param([response(429)], Throttled, id="429"),
        pytest.param([response(500)], ServerError, id="500"),
        pytest.param([response(200, b"<html>")], SchemaError, id="no JSON"),
        pytest.param([response(200, b"{}")], SchemaError, id="no jobs"),
        pytest.param([response(200, TOKEN.encode())], SchemaError, id="the token echoed"),
    ],
)
async def test_a_query_that_fails_is_asked_once(script: Script, kind: type[Exception]) -> None:
    async with (
        Peer([script]).listening() as peer,
        client_of(peer, timeout=seconds_for(script)) as client,
    ):
        with pytest.raises(kind) as caught:
            await client.query_jobs()

    assert (type(caught.value), len(peer.heads)) == (kind, 1)
    assert_no_secret(caught.value)


async def test_a_query_that_can_not_be_sent_is_not_sent() -> None:
    async with DesClient(f"http://127.0.0.1:{unused_port()}", token=TOKEN) as client:
        with pytest.raises(NotSent):
            await client.query_run_status(RUN)


async def test_a_query_renews_a_refused_token_and_asks_again() -> None:
    scripts: list[Script] = [[response(401)], [response(200, JOBS)]]

    async with (
        Peer(scripts).listening() as peer,
        client_of(peer, token=Tokens("old", "new")) as client,
    ):
        assert len(await client.query_jobs()) == 1

    assert [b"Bearer old" in head for head in peer.heads] == [True, False]


@pytest.mark.parametrize(
    ("texts", "asked"),
    [
        pytest.param(["old"], 1, id="no newer token"),
        pytest.param(["old", "new"], 2, id="the newer token is refused too"),
    ],
)
async def test_a_query_whose_tokens_are_refused(texts: list[str], asked: int) -> None:
    source = Tokens(*texts)

    async with Peer([[response(401)]]).listening() as peer, client_of(peer, token=source) as client:
        with pytest.raises(CredentialsRefused):
            await client.query_jobs()

    assert len(peer.heads) == asked


# -- the client itself ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "base_url",
    [
        pytest.param("http://des.example", id="http"),
        pytest.param("http://128.0.0.1", id="http to another address"),
        pytest.param("http://localhost.example", id="http to a lookalike"),
        pytest.param("http://[::2]", id="http to another IPv6 address"),
        pytest.param(f"https://user:{PASSWORD}@des.example", id="password"),
        pytest.param(f"http://user:{PASSWORD}@127.0.0.1", id="password, loopback"),
        pytest.param(f"https://user:12/{PASSWORD}@des.example", id="password with a slash"),
        pytest.param(f"https://{PASSWORD}@des.example", id="user"),
        pytest.param(f"https://user:{PASSWORD}@des.example:port", id="password and a bad port"),
        pytest.param(f"https://des.example?token={PASSWORD}", id="query"),
        pytest.param(f"https://des.example#{PASSWORD}", id="fragment"),
        pytest.param("https://des.example:99999", id="bad port"),
        pytest.param("ftp://des.example", id="scheme"),
        pytest.param("des.example", id="no scheme"),
        pytest.param("https://", id="no host"),
        pytest.param("https:///des", id="no host but a path"),
        pytest.param("https://[::1", id="open bracket"),
        pytest.param("", id="empty"),
    ],
)
def test_a_base_url_that_is_refused(base_url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        DesClient(base_url, token=TOKEN)

    assert caught.value.hint
    assert_no_secret(caught.value)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        pytest.param("https://des.example", "https://des.example", id="plain"),
        pytest.param("https://des.example/", "https://des.example", id="trailing slash"),
        pytest.param("https://h/a/b/", "https://h/a/b", id="path"),
        pytest.param(" https://des.example\n", "https://des.example", id="blanks around"),
        pytest.param("http://localhost:80", "http://localhost", id="localhost"),
        pytest.param("http://127.9.9.9:1", "http://127.9.9.9:1", id="127.0.0.0/8"),
        pytest.param("http://[::1]:1", "http://[::1]:1", id="::1"),
    ],
)
def test_a_base_url_that_is_taken(given: str, kept: str) -> None:
    client = DesClient(given, token=TOKEN)
    assert (client.base_url, repr(client)) == (kept, f"<DesClient {kept} closed>")


async def test_a_path_before_the_api_is_kept() -> None:
    async with (
        Peer([[OK]]).listening() as peer,
        DesClient(f"http://127.0.0.1:{peer.port}/des/", token=TOKEN) as client,
    ):
        await client.start(start_of())

    assert peer.heads[0].startswith(b"POST /des/api/v1/startjob ")


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"timeout": 0}, id="timeout 0 would mean none"),
        pytest.param({"timeout": -1}, id="timeout negative"),
        pytest.param({"timeout": float("nan")}, id="timeout NaN"),
        pytest.param({"connect_timeout": float("inf")}, id="connect timeout infinite"),
        pytest.param({"proxy": f"socks5://u:{PASSWORD}@h"}, id="proxy scheme"),
        pytest.param({"proxy": f"u:{PASSWORD}@h:port"}, id="proxy port"),
    ],
)
def test_an_option_that_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        DesClient("https://des.example", token=TOKEN, **options)

    assert_no_secret(caught.value)


def test_a_text_that_is_no_token_is_refused() -> None:
    with pytest.raises(CredentialsRefused) as caught:
        DesClient("https://des.example", token=f"Bearer {TOKEN}")

    assert_no_secret(caught.value)


async def test_a_client_that_is_not_open_says_so() -> None:
    client, sent = DesClient("https://des.example", token=TOKEN), Sent()

    with pytest.raises(RuntimeError, match="not open"):
        await client.start(start_of(), sent)

    async with client:
        assert repr(client) == "<DesClient https://des.example open>"

        with pytest.raises(RuntimeError, match="open already"):
            await client.__aenter__()

    with pytest.raises(RuntimeError, match="not open"):
        await client.query_jobs()

    assert (repr(client), bool(sent)) == ("<DesClient https://des.example closed>", False)


async def test_a_client_that_is_closed_under_a_start_leaves_it_unknown() -> None:
    peer = Peer([[Step.STALL]])

    async with peer.listening(), client_of(peer) as client:
        task = asyncio.create_task(refused(client))
        await peer.arrived.wait()
        await client.__aexit__(None, None, None)
        error, sent = await task

    assert (type(error), sent) == (OutcomeUnknown, True)


async def test_a_client_may_be_opened_again() -> None:
    async with Peer([[OK]]).listening() as peer:
        client = client_of(peer)

        for _ in range(2):
            async with client:
                assert await client.start(start_of()) == StartedRun(JOB, RUN)


@pytest.mark.parametrize(
    ("script", "error"),
    [
        pytest.param([response(200, b'{"jobs":[]}')], None, id="a response"),
        pytest.param([response(404)], None, id="QueryJobs is elsewhere"),
        pytest.param([response(401)], None, id="the token has expired"),
        pytest.param([response(500)], None, id="QueryJobs does not work"),
        pytest.param([Step.FIN], None, id="QueryJobs breaks off"),
        pytest.param([response(429, b"", "Retry-After: 9")], Throttled, id="still throttled"),
    ],
)
async def test_a_probe_asks_whether_des_is_there(
    script: Script, error: type[DesError] | None
) -> None:
    async with Peer([script]).listening() as peer, client_of(peer) as client:
        if error is None:
            await client.probe()
        else:
            with pytest.raises(error):
                await client.probe()

    assert [head.split()[1] for head in peer.heads] == [b"/api/v1/queryjobs"]


DATED: Final = "Date: Sat, 31 Jan 2026 11:59:00 GMT"


async def test_a_date_to_wait_for_is_counted_by_the_clock_that_named_it() -> None:
    """Our clock may be minutes ahead; a wait is never shortened for that."""
    throttled = response(429, b"", DATED, "Retry-After: Sat, 31 Jan 2026 12:01:00 GMT")

    async with Peer([[throttled]]).listening() as peer, client_of(peer) as client:
        error, _ = await refused(client)

    assert error.retry_after == 120.0


async def test_the_offset_of_des_s_clock_is_that_of_its_last_date() -> None:
    scripts: list[Script] = [
        [response(400, b"", "Date: Sat, 31 Jan 2026 11:00:00 GMT")],
        [response(200, STARTED, DATED)],
        [OK],
    ]

    async with Peer(scripts).listening() as peer, client_of(peer) as client:
        before = client.clock_offset
        await refused(client)
        first = client.clock_offset
        await client.start(start_of())
        await client.start(start_of())

    assert (before, first, client.clock_offset) == (None, -3600.0, -60.0)
