"""How a request goes over aiohttp's connections: the quick way, and aiohttp's own.

The connector tells when a request may leave: the one piece of evidence on which a lost answer is
judged.

A small body to DES itself goes the quick way: a connection from the session's pool, one write,
one answer by aiohttp's parser, and the connection back into the pool. What the session would
prepare for redirects, cookies, middlewares and traces, a start has none of; a route knows its
headers ahead. That takes half the time. The parts that it calls are no documented API: where the
version at hand does not have them as they are known here, for a large body and behind a proxy,
everything goes through ``ClientSession.post``.
"""

from __future__ import annotations

import asyncio
import inspect
from contextvars import ContextVar
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import aiohttp
from aiohttp import hdrs
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.helpers import TimerNoop

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aiohttp.http import RawResponseMessage
    from aiohttp.streams import StreamReader
    from aiohttp.tracing import Trace
    from multidict import CIMultiDict
    from yarl import URL

    from deslaunch.deadlines import Limit
    from deslaunch.model import Evidence

EVIDENCE: Final[ContextVar[Evidence]] = ContextVar("evidence")
"""What the current task's request is known to have done."""

SMALL: Final = 16_384
"""Bytes of a body that is written at once: it fits beside the headers into any write buffer."""


class Connector(aiohttp.TCPConnector):
    """Tells when it begins to look for a connection, and when it has one to send on."""

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> Connection:
        """Return a connection; until then no byte of the request has left."""
        evidence = EVIDENCE.get()
        evidence.sent = False
        connection = await super().connect(req, traces, timeout)

        while connection.protocol is not None and len(connection.protocol):
            connection.close()  # an answer to nothing waits there: it would be taken for the next
            connection = await super().connect(req, traces, timeout)

        evidence.sent = True
        return connection


class Answer(NamedTuple):
    """An answer whose status line and headers were read.

    Attributes:
        status: HTTP status.
        headers: case-insensitive.
        body: what came of the body.
        flaw: why that is not all of it, or None.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    flaw: Exception | None


class BodyTooLong(Exception):
    """The body is longer than what is read of one."""


class Route:
    """Where requests go that differ in their bodies alone.

    Args:
        session: made with this module's :class:`Connector`.
        url: http or https, without user and password.
        headers: in addition to the session's; none holds a line break.
        proxy: http or https, or None.
        proxy_headers: for the proxy that makes a tunnel.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: URL,
        headers: CIMultiDict[str],
        *,
        proxy: URL | None = None,
        proxy_headers: Mapping[str, str] | None = None,
    ) -> None:
        self._session = session
        self._url = url
        self._headers = headers
        self._proxy = proxy
        self._proxy_headers = proxy_headers
        self._head = b""
        self._request: aiohttp.ClientRequest | None = None  # what a connection is asked for by

        if IS_KNOWN and proxy is None:
            loop = asyncio.get_running_loop()
            self._head = _head(url, {**session.headers, **headers})
            self._request = aiohttp.ClientRequest(hdrs.METH_POST, url, loop=loop, session=session)

    def __repr__(self) -> str:
        return f"<Route to {self._url}>"

    async def post(self, body: bytes, *, limit: Limit, most: int) -> Answer:
        """Send a body once and return the answer; no redirect is followed.

        Args:
            body: what to send.
            limit: the time that all of it gets.
            most: bytes of the answer's body that are read.

        Raises:
            TimeoutError: the limit ran out before the answer's headers were there.
            aiohttp.ClientError: as ``ClientSession.post`` raises it.
            aiohttp.http.HttpProcessingError: what came back is no HTTP.
        """
        if self._request is not None and len(body) <= SMALL and not self._session.closed:
            return await self._post_quickly(self._request, body, limit, most)

        return await self._post_aiohttps_way(body, limit, most)

    async def _post_quickly(
        self, request: aiohttp.ClientRequest, body: bytes, limit: Limit, most: int
    ) -> Answer:
        with limit:
            connection = await self._connected(request)
            whole = False

        try:
            with limit:
                message, content = await self._answered(connection, body)

            read, flaw = await _read(content, limit, most)
            whole = flaw is None
        finally:
            if whole:
                connection.release()
            else:
                connection.close()

        return Answer(message.code, message.headers, read, flaw)

    async def _connected(self, request: aiohttp.ClientRequest) -> Connection:
        connector, timeout = self._session.connector, self._session.timeout
        assert connector is not None

        try:
            return await connector.connect(request, [], timeout)
        except TimeoutError as exc:
            raise aiohttp.ConnectionTimeoutError(f"no connection to {self._url} in time") from exc

    async def _answered(
        self, connection: Connection, body: bytes
    ) -> tuple[RawResponseMessage, StreamReader]:
        protocol = connection.protocol
        assert protocol is not None
        protocol.set_response_params(timer=_NO_TIMER, **_AS_ITS_SESSION_READS)

        if protocol.transport is None or protocol.transport.is_closing():
            raise aiohttp.ClientConnectionResetError("the connection is closing")

        protocol.transport.write(b"%b%d\r\n\r\n%b" % (self._head, len(body), body))
        message, content = await protocol.read()

        while _is_interim(message.code):
            message, content = await protocol.read()

        return message, content

    async def _post_aiohttps_way(self, body: bytes, limit: Limit, most: int) -> Answer:
        with limit:
            response = await self._session.post(
                self._url,
                data=body,
                headers=self._headers,
                allow_redirects=False,
                proxy=self._proxy,
                proxy_headers=self._proxy_headers,
            )

        try:
            read, flaw = await _read(response.content, limit, most)
        finally:
            # Also after the whole answer: where it came before the upload ended, aiohttp would
            # keep the connection and wait for it for ever. One that is done is in the pool by now.
            if response.connection is not None:
                response.close()

        return Answer(response.status, response.headers, read, flaw)


async def _read(content: StreamReader, limit: Limit, most: int) -> tuple[bytes, Exception | None]:
    """Return what came of a body, and why that is not all of it.

    The verdict of most statuses stands without the body, so a fault is returned, not raised.
    """
    body = bytearray()

    try:
        with limit:
            while not content.at_eof():
                body += await content.readany()

                if len(body) > most:
                    fault = BodyTooLong(f"the answer is over {most} bytes long")
                    return bytes(body[:most]), fault
    except Exception as exc:  # noqa: BLE001  # whatever it is, the status was read
        return bytes(body), exc

    return bytes(body), None


def _head(url: URL, headers: Mapping[str, str]) -> bytes:
    """Return the first bytes of every request, up to the number of the body's bytes."""
    lines = [
        f"{hdrs.METH_POST} {url.raw_path_qs} HTTP/1.1",
        f"{hdrs.HOST}: {url.host_port_subcomponent}",
        *(f"{name}: {value}" for name, value in headers.items()),
        f"{hdrs.CONTENT_LENGTH}: ",
    ]
    return "\r\n".join(lines).encode()


def _is_interim(status: int) -> bool:
    """Tell whether another answer follows: 1XX but Switching Protocols, that is."""
    return status // 100 == 1 and status != HTTPStatus.SWITCHING_PROTOCOLS


_NO_TIMER: Final = TimerNoop()
_AS_ITS_SESSION_READS: Final[Mapping[str, Any]] = {
    "skip_payload": False,
    "read_until_eof": True,
    "auto_decompress": False,
    "read_timeout": None,
    "read_bufsize": 1 << 16,
    "timeout_ceil_threshold": 5,
    "max_line_size": 8190,
    "max_field_size": 8190,
    "max_headers": 128,
}
_KNOWN: Final[Mapping[Callable[..., object], str]] = {
    aiohttp.ClientRequest.__init__: (
        "self method url params headers skip_auto_headers data cookies auth version compress "
        "chunked expect100 loop response_class proxy proxy_auth timer session ssl proxy_headers "
        "traces trust_env server_hostname"
    ),
    aiohttp.TCPConnector.connect: "self req traces timeout",
    Connection.release: "self",
    Connection.close: "self",
    ResponseHandler.set_response_params: "self timer " + " ".join(_AS_ITS_SESSION_READS),
    ResponseHandler.read: "self",
    ResponseHandler.__len__: "self",
}
"""The parts that the quick way calls, and the names of their parameters as it knows them."""


def is_known(parts: Mapping[Callable[..., object], str] = _KNOWN) -> bool:
    """Tell whether aiohttp's parts take what the quick way gives them."""
    return all(
        set(inspect.signature(part).parameters) == set(names.split())
        for part, names in parts.items()
    )


IS_KNOWN: Final = is_known()
