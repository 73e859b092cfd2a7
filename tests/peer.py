"""A raw DES on a socket that does what its script says, down to the byte, and what asks it."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import traceback
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import pytest

from deslaunch.des.client import DesClient
from deslaunch.des.tokens import Token
from deslaunch.errors import DesError
from deslaunch.model import DEFAULT_TARGET, Sent, Start

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Sequence

TOKEN: Final = "seCret+t0ken/of=the~organisation"
PASSWORD: Final = "pr0xy-pass"
JOB: Final = "43f87799-62c6-4001-92f9-6b3df816a6d6"
OTHER_JOB: Final = "00000000-62c6-4001-92f9-6b3df816a6d6"
RUN: Final = "9b6ae0f5-1c1e-4c0d-9c8f-3f4f6f2f0001"
NOW: Final = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
STARTED: Final = json.dumps({"jobId": JOB, "jobRunId": RUN}).encode()


WAYS: Final = [
    pytest.param((False, True), id="asyncio"),
    pytest.param((True, True), id="uvloop"),
    pytest.param((False, False), id="asyncio, aiohttp's own way"),
]
"""(uvloop, the quick way is known) of tests that hold for all of them."""


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


def response(status: int, body: bytes = b"", *headers: str, length: int | None = None) -> bytes:
    lines = [
        f"HTTP/1.1 {status} Reason",
        f"Content-Length: {len(body) if length is None else length}",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def chunked(*parts: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(parts)


OK: Final = response(200, STARTED)


@dataclass
class Peer:
    """A raw server: responds to each request with the next script; the last one repeats.

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
    _server: asyncio.Server | None = None
    _released: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def accept_no_more(self) -> None:
        assert self._server is not None
        self._server.close()
        await asyncio.sleep(0)

    @asynccontextmanager
    async def listening(self, context: ssl.SSLContext | None = None) -> AsyncIterator[Peer]:
        self._server = server = await asyncio.start_server(
            self._accept, "127.0.0.1", 0, ssl=context, backlog=512
        )
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
    while (data := await reader.read(65_536)) and not writer.is_closing():
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


def start_of(body: bytes = b'{"jobId":"x"}', *, meant: float = 0.0) -> Start:
    return Start(1, 1, "k", DEFAULT_TARGET, JOB, body, meant=meant)


def client_of(peer: Peer, *, scheme: str = "http", **options: Any) -> DesClient:
    options.setdefault("token", TOKEN)
    return DesClient(f"{scheme}://127.0.0.1:{peer.port}", now=lambda: NOW, **options)


def seconds_for(script: Script) -> float:
    """Return a timeout in seconds that is short only where the script makes the client wait."""
    waits = {Step.STALL, Step.CONTINUE, Step.TRICKLE, Step.MANGLE}
    return 0.2 if waits.intersection(script) else 30


async def refused(client: DesClient, body: bytes = b"{}") -> tuple[DesError, bool]:
    """Start once; return what was raised, and whether bytes had left."""
    sent = Sent()

    with pytest.raises(DesError) as caught:
        await client.start(start_of(body), sent)

    assert_no_secret(caught.value)
    return caught.value, bool(sent)


def assert_no_secret(error: BaseException) -> None:
    told = "".join(traceback.format_exception(error))
    told += f"{error!r} {error.args!r} {vars(error)!r}"
    assert TOKEN not in told
    assert PASSWORD not in told


def unused_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port
