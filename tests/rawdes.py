"""A raw client of the simulator: bytes out, bytes in, and what a start looks like."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

import orjson

from deslaunch.simulator import POS_USAGE_EXPORT, Simulator

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path


START = "/api/v1/startjob"
STATUS = "/api/v1/queryrunstatus"
JOBS = "/api/v1/queryjobs"
GRANT = "/authorisation/token"
NOW = 60.0
"""The clock of tests that look at every byte."""

DATE = "Date: Thu, 01 Jan 1970 00:01:00 GMT\r\n"
PASSWORD = {
    "grant_type": "password",
    "client_id": "c",
    "client_secret": "s",
    "org_id": "BISTRO",
    "username": "u",
    "password": "p",
    "scope": "des offline_access",
}


AUTO = {"valueStringEncoded": None, "useAutoValue": True}


def integer(text: str | None) -> dict[str, Any]:
    return {"type": 2, "valueStringEncoded": text}


def start_body(
    job_id: Any = POS_USAGE_EXPORT, parameters: Any = None, **more: Any
) -> dict[str, Any]:
    given = {"DBGenFrom": integer("1")} if parameters is None else parameters
    return {"jobId": job_id, "parameters": given, **more}


def encode(
    path: str = START,
    body: Any = None,
    *,
    token: str | None = "t",
    method: str = "POST",
    close: bool = True,
    content_type: str = "application/json",
) -> bytes:
    """Return the bytes of a request; without ``close`` the connection stays open."""
    data = body if isinstance(body, bytes) else orjson.dumps(start_body() if body is None else body)
    head = f"{method} {path} HTTP/1.1\r\nHost: des\r\nContent-Length: {len(data)}\r\n"
    head += f"Content-Type: {content_type}\r\n"
    head += "" if token is None else f"Authorization: Bearer {token}\r\n"
    head += "Connection: close\r\n" if close else ""
    return f"{head}\r\n".encode() + data


class Client:
    """One raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def response(self) -> tuple[int, dict[str, str], bytes]:
        """Read one whole response and leave the connection open."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        body = await self.reader.readexactly(int(headers["content-length"]))
        return int(head[0].split(" ")[1]), headers, body


@asynccontextmanager
async def connect(
    simulator: Simulator, *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Client]:
    url = urlsplit(simulator.base_url)
    reader, writer = await asyncio.open_connection(url.hostname, url.port, ssl=tls)

    try:
        yield Client(reader, writer)
    finally:
        writer.close()

        with suppress(OSError):
            await writer.wait_closed()


async def raw(simulator: Simulator, data: bytes) -> bytes:
    """Send bytes and return all that comes until FIN."""
    async with connect(simulator) as client:
        await client.send(data)
        return await client.reader.read()


async def ask(simulator: Simulator, *args: Any, **options: Any) -> tuple[int, Any]:
    """Send one request; return the status and the decoded body."""
    response = await raw(simulator, encode(*args, **options))
    head, _, body = response.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), orjson.loads(body)


async def grant(simulator: Simulator, form: Mapping[str, str]) -> tuple[int, Any]:
    content_type = "application/x-www-form-urlencoded"
    data = urlencode(form).encode()
    return await ask(simulator, GRANT, data, token=None, content_type=content_type)


def log_of(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


class Naps:
    """A sleep that takes no time and says how long it was asked for."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
