"""aiohttp's connector and request, as a start needs them.

The connector tells when a request may leave: the one piece of evidence on which a lost answer is
judged. The request writes a small body at once, where aiohttp would start a task to write it and
wrap it before; that is a fifth of the time that a start takes. Whatever is not small and plain
goes aiohttp's own way.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

import aiohttp
from aiohttp import hdrs
from aiohttp.http import StreamWriter
from multidict import CIMultiDict

if TYPE_CHECKING:
    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace

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
