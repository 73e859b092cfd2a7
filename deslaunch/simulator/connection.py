"""One client's connection: requests in their order, and each ending to the packet."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Final, Protocol, cast

from deslaunch.simulator.errors import BadRequest
from deslaunch.simulator.http import Answer, Delivery, End, Request, RequestParser

_NO_LINGER: Final = struct.pack("ii", 1, 0)


class Host(Protocol):
    """What a connection asks of the simulator."""

    def connected(self, connection: Connection) -> None:
        """Take note of a client."""

    def disconnected(self, connection: Connection, task: asyncio.Task[None]) -> None:
        """Forget a client whose task has ended, but not why it failed."""

    def welcome(self) -> End:
        """Return what becomes of a new connection before a byte of it is read."""

    async def respond(self, request: Request) -> Delivery:
        """Serve one request, with the fault that the script has for it."""


class Connection(asyncio.Protocol):
    """One client: its requests are served one after the other, by one task."""

    task: asyncio.Task[None]
    _transport: asyncio.Transport

    def __init__(self, host: Host) -> None:
        self.lost = asyncio.Event()
        self._host = host
        self._parser = RequestParser()
        self._news = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Serve the client until either side ends it."""
        self._transport = cast("asyncio.Transport", transport)
        self.task = asyncio.get_running_loop().create_task(self._run())
        self.task.add_done_callback(lambda task: self._host.disconnected(self, task))
        self._host.connected(self)

    def data_received(self, data: bytes) -> None:
        """Take what the client sent."""
        self._parser.feed(data)
        self._news.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # the protocol's
        """Let go all that waits for the client."""
        self.lost.set()
        self._news.set()

    def abort(self) -> None:
        """End the task and drop the connection, with whatever was not sent yet."""
        self.task.cancel()
        self._transport.abort()

    async def _run(self) -> None:
        try:
            await self._serve(self._transport)
        finally:
            self._transport.close()
            await self.lost.wait()

    async def _serve(self, transport: asyncio.Transport) -> None:
        end = self._host.welcome()

        while end is End.KEEP:
            end = await self._serve_next(transport)

        if end is End.RESET:
            _reset(transport)
        elif end is End.HANG:
            await self.lost.wait()

    async def _serve_next(self, transport: asyncio.Transport) -> End:
        try:
            request = await self._next_request()
        except BadRequest as exc:
            transport.write(Answer.json(400, {"message": str(exc)}).encode())
            return End.CLOSE

        if request is None:
            return End.CLOSE

        delivery = await self._host.respond(request)

        if not transport.is_closing():
            transport.write(delivery.data)

        return End.CLOSE if request.closing and delivery.end is End.KEEP else delivery.end

    async def _next_request(self) -> Request | None:
        while (request := self._parser.next_request()) is None and not self.lost.is_set():
            self._news.clear()
            await self._news.wait()

        return request


def _reset(transport: asyncio.Transport) -> None:
    """Close with RST: a socket that may not linger throws its connection away."""
    sock = transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    transport.abort()
