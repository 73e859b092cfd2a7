"""Each line of the verdict table and of the fault table, against raw sockets.

A test judges what was raised, whether the client says that bytes had left, and, as the
independent witness, how many requests the server saw.
"""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import logging
import socket
import ssl
import struct
import traceback
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import aiohttp
import pytest
import trustme

from deslaunch import transport
from deslaunch.client import DesClient
from deslaunch.errors import (
    ConfigurationError,
    CredentialsRefused,
    DesError,
    Misconfigured,
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
from deslaunch.model import AUTO, DEFAULT_TARGET, Evidence, StartedRun, StartRequest, TypedValue
from deslaunch.simulator import Simulator
from deslaunch.tokens import Token

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from deslaunch.client import Value

TOKEN: Final = "seCret+t0ken/of=the~organisation"
PASSWORD: Final = "pr0xy-pass"
JOB: Final = "43f87799-62c6-4001-92f9-6b3df816a6d6"
OTHER_JOB: Final = "00000000-62c6-4001-92f9-6b3df816a6d6"
RUN: Final = "9b6ae0f5-1c1e-4c0d-9c8f-3f4f6f2f0001"
NOW: Final = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
STARTED: Final = json.dumps({"jobId": JOB, "jobRunId": RUN}).encode()


class Step(Enum):
    FIN = "close the connection"
    RST = "reset the connection"
    STALL = "read and say nothing more"
    CONTINUE = "say 100 Continue for ever"
    MANGLE = "once the client read what came, send a bad chunk; aiohttp waits for another"
    TRICKLE = "send a header, byte by byte, for ever"
    LATER = "wait until the test says so"


@dataclass(frozen=True)
class Tunnel:
    port: int


Script: TypeAlias = "Sequence[bytes | Step | Tunnel]"


def answer(status: int, body: bytes = b"", *headers: str, length: int | None = None) -> bytes:
    lines = [
        f"HTTP/1.1 {status} Reason",
        f"Content-Length: {len(body) if length is None else length}",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def chunked(*parts: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(parts)


OK: Final = answer(200, STARTED)


@dataclass
class Peer:
    """A raw server: answers each request with the next script; the last one repeats.

    Attributes:
        scripts: what to do after each request, or after a connection's first bytes where
            ``handshake`` is set.
        heads: head of each request that came.
        bodies: body of each request that came whole.
    """

    scripts: list[Script]
    handshake: bool = False
    read_body: bool = True
    port: int = 0
    heads: list[bytes] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    connections: int = 0
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    said: asyncio.Event = field(default_factory=asyncio.Event)
    later: asyncio.Event = field(default_factory=asyncio.Event)
    _released: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _writers: list[asyncio.StreamWriter] = field(default_factory=list)

    @asynccontextmanager
    async def listening(self, context: ssl.SSLContext | None = None) -> AsyncIterator[Peer]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=context, backlog=512)
        self.port = server.sockets[0].getsockname()[1]

        try:
            yield self
        finally:
            self._released.set()
            server.close()

            for writer in self._writers:
                writer.transport.abort()

            await asyncio.gather(*self._tasks)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.append(writer)
        self.connections += 1

        with suppress(OSError, asyncio.IncompleteReadError):
            await self._serve(reader, writer)

        writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await self._request(reader):
            self.arrived.set()
            script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]

            for step in script:
                await self._play(step, reader, writer)

    async def _request(self, reader: asyncio.StreamReader) -> bool:
        if self.handshake:
            return bool(await reader.read(65_536))

        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)

        if self.read_body:
            self.bodies.append(await reader.readexactly(_length(head)))

        return True

    async def _play(
        self,
        step: bytes | Step | Tunnel,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        match step:
            case bytes():
                writer.write(step)
                await writer.drain()
                self.said.set()
            case Step.FIN:
                writer.close()
                await writer.wait_closed()
                raise ConnectionAbortedError
            case Step.RST:
                raw = writer.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                raise ConnectionResetError
            case Step.STALL:
                await self._released.wait()
                raise ConnectionAbortedError
            case Step.LATER:
                await self.later.wait()
            case Step.MANGLE:
                await self._mangle(writer)
            case Step.CONTINUE:
                await self._repeat(b"HTTP/1.1 100 Continue\r\n\r\n", writer)
            case Step.TRICKLE:
                writer.write(b"HTTP/1.1 200 OK\r\nX: ")
                await self._repeat(b"x", writer)
            case Tunnel(port):
                await _tunnel(port, reader, writer)

    async def _mangle(self, writer: asyncio.StreamWriter) -> None:
        for _ in range(50):
            await asyncio.sleep(0)

        writer.write(b"zz\r\n")
        await writer.drain()

    async def _repeat(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        while not self._released.is_set():
            writer.write(data)
            await writer.drain()
            await asyncio.sleep(0.01)


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")

        if name.lower() == b"content-length":
            return int(value)

    return 0


async def _tunnel(port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)

    try:
        await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
    finally:
        far_writer.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()

    writer.transport.abort()


class Tokens:
    """A source that gives one text after another."""

    def __init__(self, *texts: str) -> None:
        self.texts = list(texts)
        self.fetched = 0

    async def fetch(self) -> Token:
        text = self.texts[min(self.fetched, len(self.texts) - 1)]
        self.fetched += 1
        return Token(text)


def request_of(body: bytes = b'{"jobId":"x"}') -> StartRequest:
    return StartRequest("k", 1, 1, DEFAULT_TARGET, JOB, "d" * 32, body, auto=False)


def client_of(
    peer: Peer, *, scheme: str = "http", host: str = "127.0.0.1", **options: Any
) -> DesClient:
    options.setdefault("token", TOKEN)
    return DesClient(f"{scheme}://{host}:{peer.port}", now=lambda: NOW, **options)


def patience(script: Script) -> float:
    """Return a timeout in seconds that is short only where the script makes the client wait."""
    waits = {Step.STALL, Step.CONTINUE, Step.TRICKLE, Step.MANGLE}
    return 0.4 if waits.intersection(script) else 30


async def refused(client: DesClient, body: bytes = b"{}") -> tuple[DesError, bool]:
    """Start once; return what was raised, and whether bytes had left."""
    evidence = Evidence()

    with pytest.raises(DesError) as caught:
        await client.start(request_of(body), evidence)

    assert_no_secret(caught.value)
    return caught.value, evidence.sent


def assert_no_secret(error: BaseException) -> None:
    told = "".join(traceback.format_exception(error))
    told += f"{error!r} {error.args!r} {vars(error)!r}"
    assert TOKEN not in told
    assert PASSWORD not in told


@pytest.fixture(
    params=[
        pytest.param((False, True), id="asyncio"),
        pytest.param((True, True), id="uvloop"),
        pytest.param((False, False), id="asyncio, aiohttp's own way"),
    ]
)
def anyio_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run on both loops, and by aiohttp's own post where its parts are not as they are known."""
    use_uvloop, quick = request.param
    monkeypatch.setattr(transport, "IS_KNOWN", quick)
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


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


# -- what an answer means ---------------------------------------------------------------------


async def test_a_start_sends_the_body_as_it_is_with_the_bearer_token() -> None:
    async with Peer([[OK]]).listening() as peer, client_of(peer) as client:
        evidence = Evidence()
        run = await client.start(request_of(b'{"a" : 1}'), evidence)

    head = peer.heads[0].decode()
    assert (run, evidence.sent, peer.bodies) == (StartedRun(JOB, RUN), True, [b'{"a" : 1}'])
    assert head.startswith("POST /api/v1/startjob HTTP/1.1\r\n")
    assert f"\r\nAuthorization: Bearer {TOKEN}\r\n" in head
    assert "\r\nContent-Type: application/json\r\n" in head
    assert "\r\nAccept-Encoding: identity\r\n" in head
    assert "\r\nUser-Agent: deslaunch/" in head
    assert head.lower().count("content-type:") == 1


async def test_over_tls_many_starts_share_one_connection(
    server_tls: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    async with (
        Peer([[OK]]).listening(server_tls) as peer,
        client_of(peer, scheme="https", ssl=trusting) as client,
    ):
        runs = [await client.start(request_of()) for _ in range(3)]

    assert (runs, len(peer.heads), peer.connections) == ([StartedRun(JOB, RUN)] * 3, 3, 1)


VERDICTS: Final = [
    pytest.param(answer(204), OutcomeUnknown, 204, id="204"),
    pytest.param(answer(201, STARTED), OutcomeUnknown, 201, id="201 even with a run"),
    pytest.param(answer(202, STARTED), OutcomeUnknown, 202, id="202 even with a run"),
    pytest.param(answer(200), OutcomeUnknown, 200, id="200 empty"),
    pytest.param(answer(200, b"<html>"), OutcomeUnknown, 200, id="200 no JSON"),
    pytest.param(answer(200, b"[]"), OutcomeUnknown, 200, id="200 no object"),
    pytest.param(answer(200, b"\xff\xfe"), OutcomeUnknown, 200, id="200 no UTF-8"),
    pytest.param(
        answer(200, b'{"jobId":"%s"}' % JOB.encode()), OutcomeUnknown, 200, id="200 no id"
    ),
    pytest.param(
        answer(200, STARTED.replace(RUN.encode(), b"17")), OutcomeUnknown, 200, id="200 odd id"
    ),
    pytest.param(answer(301), Redirected, 301, id="301"),
    pytest.param(answer(302, b"", "Location: /x"), Redirected, 302, id="302"),
    pytest.param(answer(307, b"", "Location: http://[bad"), Redirected, 307, id="307 bad target"),
    pytest.param(answer(308), Redirected, 308, id="308"),
    pytest.param(answer(300), OutcomeUnknown, 300, id="300"),
    pytest.param(answer(303, b"", "Location: /x"), OutcomeUnknown, 303, id="303"),
    pytest.param(answer(304), OutcomeUnknown, 304, id="304"),
    pytest.param(answer(400, b"{}"), Rejected, 400, id="400"),
    pytest.param(answer(401, b"{}"), Unauthorized, 401, id="401"),
    pytest.param(answer(403, b"{}"), Rejected, 403, id="403"),
    pytest.param(answer(404, b"<html>"), Rejected, 404, id="404"),
    pytest.param(answer(407), Rejected, 407, id="407"),
    pytest.param(answer(408), OutcomeUnknown, 408, id="408"),
    pytest.param(answer(409), Rejected, 409, id="409"),
    pytest.param(answer(413), Rejected, 413, id="413"),
    pytest.param(answer(425), Throttled, 425, id="425"),
    pytest.param(answer(429), Throttled, 429, id="429"),
    pytest.param(answer(499), Rejected, 499, id="499"),
    pytest.param(answer(500, b"{}"), ServerError, 500, id="500"),
    pytest.param(answer(502, b"<html>"), ServerError, 502, id="502"),
    pytest.param(answer(503), ServerError, 503, id="503 bare"),
    pytest.param(answer(503, b"", "Retry-After: 5"), Throttled, 503, id="503 with Retry-After"),
    pytest.param(answer(503, b"", "retry-after: soon"), Throttled, 503, id="503 unreadable"),
    pytest.param(answer(500, b"", "Retry-After: 5"), ServerError, 500, id="500 with Retry-After"),
    pytest.param(answer(504), OutcomeUnknown, 504, id="504"),
    pytest.param(answer(504, b"", "Retry-After: 5"), OutcomeUnknown, 504, id="504 Retry-After"),
    pytest.param(answer(520), ServerError, 520, id="520"),
    pytest.param(answer(524), OutcomeUnknown, 524, id="524"),
    pytest.param(answer(599), ServerError, 599, id="599"),
    pytest.param(answer(600), OutcomeUnknown, 600, id="600"),
    pytest.param(answer(999), OutcomeUnknown, 999, id="999"),
]


@pytest.mark.parametrize(("reply", "kind", "status"), VERDICTS)
async def test_the_verdict_on_a_reply(reply: bytes, kind: type[DesError], status: int) -> None:
    async with Peer([[reply]]).listening() as peer, client_of(peer) as client:
        error, sent = await refused(client)

    assert (type(error), error.status, sent, len(peer.heads)) == (kind, status, True, 1)
    assert str(status) in str(error)
    assert error.hint or kind is Unauthorized


async def test_101_is_unknown() -> None:
    upgrade = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"

    async with Peer([[upgrade, Step.FIN]]).listening() as peer, client_of(peer) as client:
        error, sent = await refused(client)

    assert (type(error), sent, len(peer.heads)) == (OutcomeUnknown, True, 1)


async def test_another_jobs_run_is_unknown_and_its_id_is_kept() -> None:
    body = json.dumps({"jobId": OTHER_JOB, "jobRunId": RUN}).encode()

    async with Peer([[answer(200, body)]]).listening() as peer, client_of(peer) as client:
        error, _ = await refused(client)

    assert (type(error), error.job_run_id, error.answer) == (OutcomeUnknown, RUN, body.decode())


async def test_the_job_id_is_compared_without_regard_to_case() -> None:
    body = json.dumps({"jobId": JOB.upper(), "jobRunId": RUN}).encode()

    async with Peer([[answer(200, body)]]).listening() as peer, client_of(peer) as client:
        assert await client.start(request_of()) == StartedRun(JOB, RUN)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        pytest.param("Retry-After: 30", 30.0, id="seconds"),
        pytest.param("Retry-After: Sat, 31 Jan 2026 12:01:30 GMT", 90.0, id="date"),
        pytest.param("Retry-After: Sat, 31 Jan 2026 11:00:00 GMT", 0.0, id="past date"),
        pytest.param("Retry-After: soon", None, id="unreadable"),
        pytest.param("Retry-After: -5", None, id="negative"),
        pytest.param(f"Retry-After: {'9' * 400}", 1e9, id="endless"),
        pytest.param(
            "Retry-After: Wed, 21 Oct 2015 07:28:00 +99999999999999999", None, id="absurd zone"
        ),
        pytest.param("X: y", None, id="absent"),
    ],
)
async def test_retry_after(header: str, seconds: float | None) -> None:
    async with Peer([[answer(429, b"", header)]]).listening() as peer, client_of(peer) as client:
        error, _ = await refused(client)

    assert (type(error), error.retry_after) == (Throttled, seconds)


@pytest.mark.parametrize(
    ("script", "kind", "status"),
    [
        pytest.param([answer(400, b"no", length=9), Step.FIN], Rejected, 400, id="400 cut"),
        pytest.param([answer(400, b"no", length=9), Step.STALL], Rejected, 400, id="400 stalled"),
        pytest.param([answer(401, b"no", length=9), Step.RST], Unauthorized, 401, id="401 reset"),
        pytest.param([answer(500, b"no", length=9), Step.FIN], ServerError, 500, id="500 cut"),
        pytest.param([answer(503, b"no", "Retry-After: 1", length=9), Step.RST], Throttled, 503,
                     id="503 reset"),
        pytest.param([answer(307, b"no", length=9), Step.STALL], Redirected, 307, id="307 stalled"),
        pytest.param([answer(400, b"no" * 2**20)], Rejected, 400, id="400 over 1 MiB"),
    ],
)  # fmt: skip
async def test_a_verdict_stands_on_the_status_where_the_body_fails(
    script: Script, kind: type[DesError], status: int
) -> None:
    async with (
        Peer([script]).listening() as peer,
        client_of(peer, timeout=patience(script)) as client,
    ):
        error, sent = await refused(client)

    assert (type(error), error.status, sent, len(peer.heads)) == (kind, status, True, 1)
    assert error.answer.startswith("no")


@pytest.mark.parametrize(
    "script",
    [
        pytest.param([answer(200, STARTED, length=999), Step.FIN], id="cut"),
        pytest.param([answer(200, STARTED, length=999), Step.RST], id="reset"),
        pytest.param([answer(200, STARTED, length=999), Step.STALL], id="stalled"),
        pytest.param([chunked(), Step.MANGLE, Step.FIN], id="bad chunk"),
        pytest.param(
            [chunked(b"%x\r\n" % len(STARTED), STARTED, b"\r\n"), Step.FIN], id="chunks cut"
        ),
        pytest.param([answer(200, STARTED + b" " * 2**20)], id="over 1 MiB"),
        pytest.param([answer(200, gzip.compress(STARTED), "Content-Encoding: gzip")],
                     id="gzip though identity was asked for"),
    ],
)  # fmt: skip
async def test_a_200_whose_body_fails_is_unknown(script: Script) -> None:
    async with (
        Peer([script]).listening() as peer,
        client_of(peer, timeout=patience(script)) as client,
    ):
        error, sent = await refused(client)

    assert (type(error), error.status, sent, len(peer.heads)) == (OutcomeUnknown, 200, True, 1)


async def test_what_came_of_a_cut_200_is_kept_with_its_run_id() -> None:
    script: Script = [answer(200, STARTED[:-1], length=999), Step.FIN]

    async with Peer([script]).listening() as peer, client_of(peer) as client:
        error, _ = await refused(client)

    assert (error.answer, error.job_run_id) == (STARTED[:-1].decode(), RUN)


async def test_a_body_that_ends_with_the_connection_is_whole() -> None:
    reply = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + STARTED

    async with Peer([[reply, Step.FIN]]).listening() as peer, client_of(peer) as client:
        assert await client.start(request_of()) == StartedRun(JOB, RUN)


async def test_a_redirect_is_not_followed_and_its_target_sees_nothing() -> None:
    async with Peer([[OK]]).listening() as other:
        location = f"Location: http://user:{PASSWORD}@127.0.0.1:{other.port}/x?t={TOKEN}"

        async with (
            Peer([[answer(307, b"", location)]]).listening() as peer,
            client_of(peer) as client,
        ):
            error, _ = await refused(client)

    assert (type(error), len(peer.heads), other.connections) == (Redirected, 1, 0)
    assert f"http://127.0.0.1:{other.port}" in str(error)


async def test_an_unread_answer_does_not_poison_the_next_request() -> None:
    scripts: list[Script] = [[answer(400, b"x" * 2**21)], [OK]]

    async with Peer(scripts).listening() as peer, client_of(peer) as client:
        error, _ = await refused(client)
        run = await client.start(request_of())

    assert (type(error), run.job_run_id, peer.connections) == (Rejected, RUN, 2)


# -- what happens after the request was sent --------------------------------------------------

LONG_HEADER: Final = b"X: " + b"y" * 9_000 + b"\r\n"
MANY_HEADERS: Final = b"".join(b"X-%d: y\r\n" % n for n in range(200))

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
        client_of(peer, timeout=patience(script)) as client,
    ):
        error, sent = await refused(client)

    assert (type(error), error.status, sent, len(peer.heads)) == (OutcomeUnknown, None, True, 1)


@pytest.mark.parametrize(
    "script",
    [
        pytest.param([Step.FIN], id="FIN"),
        pytest.param([Step.RST], id="RST"),
        pytest.param([Step.STALL], id="no answer in time"),
        pytest.param([b"garbage\r\n\r\n", Step.FIN], id="garbage"),
    ],
)
async def test_a_fault_after_sending_over_tls_is_unknown(
    script: Script, server_tls: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    async with (
        Peer([script]).listening(server_tls) as peer,
        client_of(peer, scheme="https", ssl=trusting, timeout=patience(script)) as client,
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

    async with peer.listening(), client_of(peer, timeout=patience(script)) as client:
        error, sent = await refused(client, LONG_BODY)

    assert (type(error), error.status, sent, len(peer.heads)) == (OutcomeUnknown, None, True, 1)


@at_any_length
async def test_an_answer_before_the_upload_ended_stands() -> None:
    peer = Peer([[answer(413, b"too long"), Step.STALL]], read_body=False)

    async with asyncio.timeout(20), peer.listening(), client_of(peer) as client:
        error, sent = await refused(client, LONG_BODY)

    assert (type(error), error.status, sent, len(peer.heads)) == (Rejected, 413, True, 1)


async def test_a_stale_connection_is_unknown_and_nothing_is_sent_again() -> None:
    scripts: list[Script] = [[OK], [Step.FIN], [OK]]

    async with Peer(scripts).listening() as peer, client_of(peer) as client:
        await client.start(request_of())
        error, sent = await refused(client)

    assert (type(error), sent, len(peer.heads), peer.connections) == (OutcomeUnknown, True, 2, 1)


async def test_a_client_certificate_that_is_missing_looks_unknown_under_tls_1_3(
    authority: trustme.CA, trusting: ssl.SSLContext
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)

    async with (
        Peer([[OK]]).listening(context) as peer,
        client_of(peer, scheme="https", ssl=trusting, timeout=30) as client,
    ):
        error, sent = await refused(client)

    assert (type(error), sent, len(peer.heads)) == (OutcomeUnknown, True, 0)


# -- what happens before anything is sent -----------------------------------------------------


def unused_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


@pytest.mark.parametrize(
    ("base_url", "kind"),
    [
        pytest.param(f"http://127.0.0.1:{unused_port()}", NotSent, id="refused"),
        pytest.param(f"https://127.0.0.1:{unused_port()}", NotSent, id="refused, TLS"),
        pytest.param("https://no-such-host.invalid", NotSent, id="DNS"),
        pytest.param("https://127.1", Misconfigured, id="no canonical IPv4 address"),
    ],
)
async def test_an_address_that_can_not_be_connected_to(base_url: str, kind: type) -> None:
    async with DesClient(base_url, token=TOKEN) as client:
        error, sent = await refused(client)

    assert (type(error), error.status, sent) == (kind, None, False)
    assert base_url in str(error)


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        pytest.param([Step.FIN], NotSent, id="FIN in the handshake"),
        pytest.param([Step.RST], NotSent, id="RST in the handshake"),
        pytest.param([b"\x15\x03\x03\x00\x02\x01\x00"], NotSent, id="close_notify"),
        pytest.param([Step.STALL], NotSent, id="stalled handshake"),
        pytest.param([answer(400)], Misconfigured, id="plain HTTP"),
        pytest.param([b"\x15\x03\x03\x00\x02\x02\x28"], Misconfigured, id="handshake alert"),
        pytest.param([b"\x15\x03\x03\x00\x02\x02\x46"], Misconfigured, id="version alert"),
    ],
)
async def test_a_fault_in_the_tls_handshake(script: Script, kind: type[DesError]) -> None:
    peer = Peer([script], handshake=True)

    async with (
        peer.listening(),
        client_of(peer, scheme="https", connect_timeout=patience(script)) as client,
    ):
        error, sent = await refused(client)

    assert (type(error), error.status, sent) == (kind, None, False)


async def test_a_tcp_connection_that_is_not_accepted_in_time() -> None:
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)

        for taken in (first, second):
            taken.setblocking(False)
            taken.connect_ex(listener.getsockname())

        peer = Peer([], port=listener.getsockname()[1])

        async with client_of(peer, connect_timeout=0.1) as client:
            error, sent = await refused(client)

    assert (type(error), error.status, sent) == (NotSent, None, False)


async def test_a_total_timeout_while_connecting_is_unsent_by_the_hook_alone() -> None:
    peer = Peer([[Step.STALL]], handshake=True)

    async with peer.listening(), client_of(peer, scheme="https", timeout=0.1) as client:
        error, sent = await refused(client)

    assert (type(error), sent, type(error.__cause__)) == (NotSent, False, TimeoutError)


async def test_a_certificate_of_an_unknown_authority(server_tls: ssl.SSLContext) -> None:
    async with (
        Peer([[OK]]).listening(server_tls) as peer,
        client_of(peer, scheme="https") as client,
    ):
        error, sent = await refused(client)

    assert (type(error), sent, len(peer.heads)) == (Misconfigured, False, 0)
    assert "certificate" in str(error)


async def test_a_certificate_of_another_host(
    authority: trustme.CA, trusting: ssl.SSLContext
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("des.example").configure_cert(context)

    async with (
        Peer([[OK]]).listening(context) as peer,
        client_of(peer, scheme="https", ssl=trusting) as client,
    ):
        error, sent = await refused(client)

    assert (type(error), sent, len(peer.heads)) == (Misconfigured, False, 0)


async def test_a_fingerprint_that_does_not_match(server_tls: ssl.SSLContext) -> None:
    pinned: Any = aiohttp.Fingerprint(b"\0" * 32)

    async with (
        Peer([[OK]]).listening(server_tls) as peer,
        client_of(peer, scheme="https", ssl=pinned) as client,
    ):
        error, sent = await refused(client)

    assert (type(error), sent, len(peer.heads)) == (Misconfigured, False, 0)


async def test_the_pool_has_no_limit() -> None:
    peer = Peer([[Step.STALL]])

    async with peer.listening(), client_of(peer, timeout=1.5) as client:
        outcomes = await asyncio.gather(*(refused(client) for _ in range(150)))

    assert {(type(error), sent) for error, sent in outcomes} == {(OutcomeUnknown, True)}


# -- proxies ----------------------------------------------------------------------------------


def proxy_of(port: int) -> str:
    return f"http://agent:{PASSWORD}@127.0.0.1:{port}"


async def test_a_proxy_tunnels_and_sees_no_token(
    server_tls: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    async with Peer([[OK]]).listening(server_tls) as peer:
        proxy = Peer([[answer(200), Tunnel(peer.port)]])

        async with (
            proxy.listening(),
            client_of(peer, scheme="https", ssl=trusting, proxy=proxy_of(proxy.port)) as client,
        ):
            run = await client.start(request_of())

    connect = proxy.heads[0]
    assert (run.job_run_id, len(peer.heads), len(proxy.heads)) == (RUN, 1, 1)
    assert connect.startswith(b"CONNECT 127.0.0.1:")
    assert b"Proxy-Authorization: Basic YWdlbnQ6cHIweHktcGFzcw==" in connect
    assert TOKEN.encode() not in connect
    assert b"Proxy-Authorization" not in peer.heads[0]


async def test_plain_http_through_a_proxy_authenticates_to_it() -> None:
    async with (
        Peer([[OK]]).listening() as proxy,
        DesClient(
            "http://des.example", token=TOKEN, allow_http=True, proxy=proxy_of(proxy.port)
        ) as client,
    ):
        run = await client.start(request_of())

    assert run.job_run_id == RUN
    assert proxy.heads[0].startswith(b"POST http://des.example/api/v1/startjob HTTP/1.1")
    assert b"Proxy-Authorization: Basic YWdlbnQ6cHIweHktcGFzcw==" in proxy.heads[0]


@pytest.mark.parametrize(
    "script",
    [
        pytest.param([answer(407)], id="407"),
        pytest.param([answer(502, b"<html>")], id="502"),
        pytest.param([answer(302, b"", "Location: http://x/")], id="302"),
        pytest.param([b"garbage\r\n\r\n", Step.FIN], id="garbage"),
        pytest.param([Step.FIN], id="FIN"),
        pytest.param([Step.RST], id="RST"),
        pytest.param([Step.STALL], id="stalled"),
        pytest.param([answer(200), Step.FIN], id="200, then FIN in the handshake"),
        pytest.param([answer(200), Step.STALL], id="200, then a stalled handshake"),
    ],
)
async def test_a_proxy_that_makes_no_tunnel_sent_nothing(script: Script) -> None:
    async with (
        Peer([script]).listening() as proxy,
        DesClient(
            "https://des.example",
            token=TOKEN,
            proxy=proxy_of(proxy.port),
            connect_timeout=patience(script),
        ) as client,
    ):
        error, sent = await refused(client)

    assert (type(error), error.status, sent, len(proxy.heads)) == (NotSent, None, False, 1)


async def test_what_a_proxy_says_is_told() -> None:
    async with (
        Peer([[b"HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\n\r\n"]]).listening() as proxy,
        DesClient("https://des.example", token=TOKEN, proxy=proxy_of(proxy.port)) as client,
    ):
        error, _ = await refused(client)

    assert str(error) == "https://des.example: the proxy refused to connect (Who are you)"


async def test_a_proxy_that_refuses_connections_sent_nothing() -> None:
    async with DesClient(
        "https://des.example", token=TOKEN, proxy=proxy_of(unused_port())
    ) as client:
        error, sent = await refused(client)

    assert (type(error), error.status, sent) == (NotSent, None, False)


async def test_a_bad_certificate_behind_a_proxy_is_misconfigured(
    server_tls: ssl.SSLContext,
) -> None:
    async with Peer([[OK]]).listening(server_tls) as peer:
        proxy = Peer([[answer(200), Tunnel(peer.port)]])

        async with (
            proxy.listening(),
            client_of(peer, scheme="https", proxy=proxy_of(proxy.port)) as client,
        ):
            error, sent = await refused(client)

    assert (type(error), sent, len(peer.heads)) == (Misconfigured, False, 0)


async def test_the_environments_proxy_and_netrc_are_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{unused_port()}")

    async with Peer([[OK]]).listening() as peer, client_of(peer) as client:
        assert await client.start(request_of()) == StartedRun(JOB, RUN)


# -- cancellation -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "handshake", "script", "sent"),
    [
        pytest.param("https", True, [Step.STALL], False, id="while connecting"),
        pytest.param("http", False, [Step.STALL], True, id="while waiting for the answer"),
    ],
)
async def test_a_cancelled_start_tells_whether_bytes_had_left(
    scheme: str, handshake: bool, script: Script, sent: bool
) -> None:
    peer, evidence = Peer([script], handshake=handshake), Evidence()

    async with peer.listening(), client_of(peer, scheme=scheme) as client:
        task = asyncio.create_task(client.start(request_of(), evidence))
        await peer.arrived.wait()
        task.cancel()

        with pytest.raises(asyncio.CancelledError):
            await task

    assert (evidence.sent, len(peer.heads)) == (sent, int(sent))


async def test_a_start_cancelled_in_the_answers_body_closes_its_connection() -> None:
    scripts: list[Script] = [[answer(200, STARTED, length=999), Step.STALL], [OK]]
    peer, evidence = Peer(scripts), Evidence()

    async with peer.listening(), client_of(peer) as client:
        task = asyncio.create_task(client.start(request_of(), evidence))
        await peer.arrived.wait()

        await peer.said.wait()
        await asyncio.sleep(0)
        task.cancel()

        with pytest.raises(asyncio.CancelledError):
            await task

        assert await client.start(request_of()) == StartedRun(JOB, RUN)

    assert (evidence.sent, peer.connections) == (True, 2)


async def test_a_start_cancelled_at_every_turn_of_the_loop_is_never_said_to_be_unsent() -> None:
    """Cancel after n turns for every n until a start goes through: the server is the witness."""
    turns = 0

    while True:
        peer, evidence = Peer([[OK]]), Evidence()

        async with peer.listening(), client_of(peer) as client:
            task = asyncio.create_task(client.start(request_of(), evidence))

            for _ in range(turns):
                await asyncio.sleep(0)

            task.cancel()
            done = (await asyncio.gather(task, return_exceptions=True))[0]

            for _ in range(20):
                await asyncio.sleep(0)

        assert evidence.sent or not peer.heads
        turns += 1

        if isinstance(done, StartedRun):
            return

        assert isinstance(done, asyncio.CancelledError)


# -- tokens -----------------------------------------------------------------------------------


async def test_a_refused_token_is_renewed_once_for_all_who_were_refused() -> None:
    source = Tokens("old-token", "new-token")
    scripts: list[Script] = [[answer(401)], [answer(401)], [OK]]

    async with Peer(scripts).listening() as peer, client_of(peer, token=source) as client:
        errors = [(await refused(client))[0] for _ in range(2)]
        assert [isinstance(error, Unauthorized) and error.generation for error in errors] == [1, 1]

        async with asyncio.TaskGroup() as group:
            for error in errors:
                assert isinstance(error, Unauthorized)
                group.create_task(client.renew(error))

        await client.start(request_of())

    sent = [line for head in peer.heads for line in head.split(b"\r\n") if b"Bearer" in line]
    assert source.fetched == 2
    assert sent == [
        b"Authorization: Bearer " + t for t in (b"old-token", b"old-token", b"new-token")
    ]


async def test_no_newer_token_is_credentials_refused() -> None:
    async with Peer([[answer(401)]]).listening() as peer, client_of(peer) as client:
        error, _ = await refused(client)
        assert isinstance(error, Unauthorized)

        with pytest.raises(CredentialsRefused) as caught:
            await client.renew(error)

    assert_no_secret(caught.value)


async def test_a_token_with_a_line_break_is_refused_before_anything_is_sent() -> None:
    class Broken:
        async def fetch(self) -> str:
            return f"{TOKEN}\r\nX: y"

    evidence = Evidence()

    async with Peer([[OK]]).listening() as peer, client_of(peer, token=Broken()) as client:
        with pytest.raises(CredentialsRefused) as caught:
            await client.start(request_of(), evidence)

    assert (evidence.sent, peer.connections) == (False, 0)
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

    async with Peer([[answer(status, body)]]).listening() as peer, client_of(peer) as client:
        error, _ = await refused(client)

    assert spelling not in str(error)
    assert error.answer == '{"message": "token [token] is bad"}'


async def test_an_answer_is_scrubbed_before_it_is_cut() -> None:
    body = b"x" * 4_080 + TOKEN.encode() + b"y" * 20_000

    async with Peer([[answer(500, body)]]).listening() as peer, client_of(peer) as client:
        error, _ = await refused(client)

    assert (len(error.answer), error.answer[4_080:]) == (4_096, "[token]" + "y" * 9)


async def test_a_token_that_the_answers_end_cut_off_is_scrubbed() -> None:
    script: Script = [answer(500, f"you sent {TOKEN[:20]}".encode(), length=999), Step.FIN]

    async with Peer([script]).listening() as peer, client_of(peer) as client:
        error, _ = await refused(client)

    assert error.answer == "you sent [token]"


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
        "typed": TypedValue(9, "x"),
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
    async with Peer([[answer(401)]]).listening() as peer, client_of(peer) as client:
        with pytest.raises(Unauthorized):
            await client.start_job(JOB, {})

    assert len(peer.heads) == 1


JOBS: Final = json.dumps(
    {"jobs": [{"jobId": JOB, "name": "Nightly", "jobRunParameters": [{"name": "From", "type": 2}]}]}
).encode()
STATUS: Final = json.dumps({"jobId": JOB, "jobRunId": RUN, "finished": True, "success": True})


async def test_query_jobs() -> None:
    async with Peer([[answer(200, JOBS)]]).listening() as peer, client_of(peer) as client:
        (job,) = await client.query_jobs()

    assert (job.job_id, job.name, job.parameters[0].name) == (JOB, "Nightly", "From")
    assert peer.heads[0].startswith(b"POST /api/v1/queryjobs ")
    assert peer.bodies == [b"{}"]


async def test_query_jobs_reads_more_than_a_start_does() -> None:
    padded = JOBS + b" " * 2**21

    async with Peer([[answer(200, padded)]]).listening() as peer, client_of(peer) as client:
        assert len(await client.query_jobs()) == 1


async def test_query_run_status() -> None:
    reply = answer(200, STATUS.encode())

    async with Peer([[reply]]).listening() as peer, client_of(peer) as client:
        status = await client.query_run_status(RUN.upper())

    assert (status.job_run_id, status.finished, status.success) == (RUN, True, True)
    assert peer.heads[0].startswith(b"POST /api/v1/queryrunstatus ")


async def test_a_runs_status_holds_no_token() -> None:
    said = {"status": f"bad {TOKEN}", "outputFiles": [{"url": f"https://d/?token={TOKEN}"}]}
    body = json.dumps(json.loads(STATUS) | said).encode()

    async with Peer([[answer(200, body)]]).listening() as peer, client_of(peer) as client:
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
    async with Peer([[answer(200, body)]]).listening() as peer, client_of(peer) as client:
        with pytest.raises(QueryFailed) as caught:
            await client.query_run_status(RUN)

    assert (caught.value.status, caught.value.answer) == (200, body.decode())


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        pytest.param([Step.FIN], QueryFailed, id="FIN"),
        pytest.param([Step.STALL], QueryFailed, id="no answer in time"),
        pytest.param([b"garbage\r\n\r\n", Step.FIN], QueryFailed, id="garbage"),
        pytest.param([answer(200, JOBS, length=9999), Step.FIN], QueryFailed, id="cut"),
        pytest.param([answer(204)], QueryFailed, id="204"),
        pytest.param([answer(304)], QueryFailed, id="304"),
        pytest.param([answer(408)], QueryFailed, id="408"),
        pytest.param([answer(504)], QueryFailed, id="504"),
        pytest.param([answer(302)], Redirected, id="302"),
        pytest.param([answer(403)], Rejected, id="403"),
        pytest.param([answer(404)], Rejected, id="404"),
        pytest.param([answer(429)], Throttled, id="429"),
        pytest.param([answer(500)], ServerError, id="500"),
        pytest.param([answer(200, b"<html>")], SchemaError, id="no JSON"),
        pytest.param([answer(200, b"{}")], SchemaError, id="no jobs"),
        pytest.param([answer(200, TOKEN.encode())], SchemaError, id="the token echoed"),
    ],
)
async def test_a_query_that_fails_is_asked_once(script: Script, kind: type[Exception]) -> None:
    async with (
        Peer([script]).listening() as peer,
        client_of(peer, timeout=patience(script)) as client,
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
    scripts: list[Script] = [[answer(401)], [answer(200, JOBS)]]

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

    async with Peer([[answer(401)]]).listening() as peer, client_of(peer, token=source) as client:
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
        await client.start(request_of())

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
    client, evidence = DesClient("https://des.example", token=TOKEN), Evidence()

    with pytest.raises(RuntimeError, match="not open"):
        await client.start(request_of(), evidence)

    async with client:
        assert repr(client) == "<DesClient https://des.example open>"

        with pytest.raises(RuntimeError, match="open already"):
            await client.__aenter__()

    with pytest.raises(RuntimeError, match="not open"):
        await client.query_jobs()

    assert (repr(client), evidence.sent) == ("<DesClient https://des.example closed>", False)


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
                assert await client.start(request_of()) == StartedRun(JOB, RUN)


@pytest.mark.parametrize(
    ("script", "error"),
    [
        pytest.param({}, None, id="an answer"),
        pytest.param({"fault": "status", "status": 404}, None, id="QueryJobs is elsewhere"),
        pytest.param({"fault": "status", "status": 401}, None, id="the token has expired"),
        pytest.param({"fault": "status", "status": 500}, None, id="QueryJobs does not work"),
        pytest.param(
            {"fault": "status", "status": 429, "retryAfter": 9}, Throttled, id="still throttled"
        ),
        pytest.param({"fault": "close"}, None, id="QueryJobs breaks off"),
    ],
)
async def test_a_probe_asks_whether_des_is_there(
    script: dict[str, Any], error: type[DesError] | None
) -> None:
    faults = [{"on": "queryjobs", **script}] if script else []

    async with (
        Simulator(script={"faults": faults}) as simulator,
        DesClient(simulator.base_url, token="t") as des,
    ):
        if error is None:
            await des.probe()
        else:
            with pytest.raises(error):
                await des.probe()

        assert (simulator.count("queryjobs"), simulator.requests) == (1, 0)


async def test_a_date_to_wait_for_is_counted_by_the_clock_that_named_it() -> None:
    """Our clock may be minutes ahead; a wait is never shortened for that."""
    dates = "Date: Tue, 24 Nov 2026 10:00:00 GMT\r\nRetry-After: Tue, 24 Nov 2026 10:02:00 GMT"
    answer = f"HTTP/1.1 429 Too Many\r\n{dates}\r\nContent-Length: 0\r\n\r\n".encode()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    ahead = datetime(2026, 11, 24, 10, 5, tzinfo=UTC)

    async with server, DesClient(f"http://127.0.0.1:{port}", token="t", now=lambda: ahead) as des:
        with pytest.raises(Throttled) as caught:
            await des.start_job(JOB, {})

    assert caught.value.retry_after == 120.0
