"""An auth server that responds as it is told, down to the byte, and remembers what it was asked."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ACCESS: Final = "acc3ss/tok+en=of~a.grant"
REFRESH: Final = "refr3sh/tok+en=of~a.grant"
LOGIN: Final = {
    "org_id": "BISTRO",
    "client_id": "night",
    "client_secret": "cl1ent-s3cret&=é",
    "username": "u5er@bistro",
    "password": "p4ss w0rd+%",
}
SECRETS: Final = (ACCESS, REFRESH, LOGIN["client_secret"], LOGIN["username"], LOGIN["password"])


def http(status: int, body: bytes, *headers: str, length: int | None = None) -> bytes:
    head = [f"HTTP/1.1 {status} Reason", *headers]
    head.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*head, "", ""]).encode() + body


def granted(number: int = 1, **more: Any) -> bytes:
    """Return the answer to a grant; its tokens carry the number."""
    said = {
        "token_type": "Bearer",
        "access_token": f"{ACCESS}{number}",
        "refresh_token": f"{REFRESH}{number}",
        "expires_in": 28800,
        "svc": "https://des.example",
        "org_id": LOGIN["org_id"],
    }
    return http(200, json.dumps(said | more).encode())


def refused(status: int, **said: str) -> bytes:
    return http(status, json.dumps(said).encode())


@dataclass
class AuthServer:
    """Answers each request with the next of ``answers``; the last one repeats.

    Attributes:
        answers: whole answers; an empty one is none: the connection stays open, and silent.
        asked: the form of each request.
        arrived: set once a request came.
        gate: requests are answered while it is set.
    """

    answers: list[bytes]
    url: str = ""
    asked: list[dict[str, str]] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    _over: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def grants(self) -> list[str]:
        """The kinds of grant that were asked for."""
        return [form["grant_type"] for form in self.asked]

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[AuthServer]:
        self.gate.set()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

        try:
            yield self
        finally:
            self._over.set()
            server.close()
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            assert head.startswith("post /authorisation/token http/1.1\r\n")
            assert "\r\ncontent-type: application/x-www-form-urlencoded\r\n" in head
            length = int(head.split("content-length: ")[1].split("\r\n")[0])
            self.asked.append(dict(parse_qsl((await reader.readexactly(length)).decode())))
            self.arrived.set()
            await self.gate.wait()
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            writer.write(answer)
            await writer.drain()

            if not answer:
                await self._over.wait()

        writer.close()


@asynccontextmanager
async def auth_server(*answers: bytes) -> AsyncIterator[AuthServer]:
    async with AuthServer(list(answers)).listening() as server:
        yield server
