"""aiohttp's connector, request and exchange, as a start needs them.

The connector tells when a request may leave: the one piece of evidence on which a lost answer is
judged.

A small body is posted the short way: it is written at once, where aiohttp would wrap it and start
a task to write it, and nothing is prepared for redirects, cookies, middlewares and traces, which
a start has none of. That saves four tenths of the time that aiohttp takes. The short way calls
the same parts of aiohttp in the same order as its session does. They are no documented API: where
the version at hand does not have them as they are known here, and for a large body, everything
goes through ``ClientSession.post``.
"""

from __future__ import annotations

import asyncio
import inspect
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

import aiohttp
from aiohttp import hdrs
from aiohttp.client_proto import ResponseHandler
from aiohttp.helpers import TimerNoop
from aiohttp.http import StreamWriter
from multidict import CIMultiDict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace
    from yarl import URL

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
        evidence.sent = True
        return connection


class Request(aiohttp.ClientRequest):
    """A POST of bytes whose headers are all given by the session and the call."""

    _small: bytes | None = None

    def update_headers(self, headers: Any) -> None:
        """Take the headers over: the session made them for this request alone."""
        if not isinstance(headers, CIMultiDict):
            super().update_headers(headers)
            return

        host = self.url.host_port_subcomponent
        assert host is not None
        headers[hdrs.HOST] = host
        self.headers = headers

    def update_body_from_data(self, body: Any, _stacklevel: int = 3) -> None:
        """Keep a small body as it is, unwrapped."""
        if type(body) is not bytes or len(body) > SMALL:
            super().update_body_from_data(body, _stacklevel)
            return

        self._small = body
        self.headers[hdrs.CONTENT_LENGTH] = str(len(body))

    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        """Send the request; a small body goes out together with the headers, in one write."""
        protocol = conn.protocol
        assert protocol is not None

        if self._small is None:
            return await super().send(conn)

        path = str(self.url) if self.proxy and not self.is_ssl() else self.url.raw_path_qs
        writer = StreamWriter(protocol, self.loop)
        await writer.write_headers(f"{self.method} {path} HTTP/1.1", self.headers)
        await writer.write_eof(self._small)
        response = self.response_class(
            self.method,
            self.original_url,
            writer=None,
            continue100=None,
            timer=self._timer,
            request_info=self.request_info,
            traces=self._traces,
            loop=self.loop,
            session=self._session,
            stream_writer=writer,
        )
        self.response = response  # type: ignore[assignment]  # aiohttp declares None
        return response


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
    aiohttp.TCPConnector.connect: "self req traces timeout",
    ResponseHandler.set_response_params: "self timer " + " ".join(_AS_ITS_SESSION_READS),
    aiohttp.ClientRequest.send: "self conn",
    aiohttp.ClientResponse.__init__: (
        "self method url writer continue100 timer request_info traces loop session stream_writer"
    ),
    aiohttp.ClientResponse.start: "self connection",
    StreamWriter.write_headers: "self status_line headers",
    StreamWriter.write_eof: "self chunk",
}
"""The parts that the short way calls, and the names of their parameters as it knows them."""


def is_known(parts: Mapping[Callable[..., object], str] = _KNOWN) -> bool:
    """Tell whether aiohttp's parts take what the short way gives them."""
    return all(
        set(inspect.signature(part).parameters) == set(names.split())
        for part, names in parts.items()
    )


IS_SHORT_WAY_OPEN: Final = is_known()


async def post(
    session: aiohttp.ClientSession,
    url: URL,
    body: bytes,
    *,
    headers: CIMultiDict[str],
    proxy: URL | None = None,
    proxy_headers: Mapping[str, str] | None = None,
) -> aiohttp.ClientResponse:
    """Post bytes and return the response, its body still unread; no redirect is followed.

    Args:
        session: made with this module's :class:`Connector` and :class:`Request`.
        url: http or https, without user and password.
        body: what to send.
        headers: in addition to the session's, and in place of those with the same name.
        proxy: http or https, or None.
        proxy_headers: for the proxy that makes a tunnel.

    Raises:
        aiohttp.ClientError: as ``ClientSession.post`` raises it.
    """
    if not IS_SHORT_WAY_OPEN or len(body) > SMALL or session.closed:
        return await session.post(
            url,
            data=body,
            headers=headers,
            allow_redirects=False,
            proxy=proxy,
            proxy_headers=proxy_headers,
        )

    all_headers = session.headers.copy()
    all_headers.update(headers)
    request = Request(
        hdrs.METH_POST,
        url,
        headers=all_headers,
        data=body,
        loop=asyncio.get_running_loop(),
        proxy=proxy,
        proxy_headers=proxy_headers,
        timer=_NO_TIMER,
        session=session,
    )
    return await _exchange(request, await _connected(session, request))


async def _connected(session: aiohttp.ClientSession, request: Request) -> Connection:
    assert session.connector is not None

    try:
        return await session.connector.connect(request, [], session.timeout)
    except TimeoutError as exc:
        raise aiohttp.ConnectionTimeoutError(f"Connection timeout to host {request.url}") from exc


async def _exchange(request: Request, connection: Connection) -> aiohttp.ClientResponse:
    try:
        assert connection.protocol is not None
        connection.protocol.set_response_params(timer=_NO_TIMER, **_AS_ITS_SESSION_READS)
        response = await request.send(connection)

        try:
            return await response.start(connection)
        except BaseException:
            response.close()
            raise
    except BaseException:
        connection.close()
        raise
