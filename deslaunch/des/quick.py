"""A faster sender over aiohttp's connections; everything works without it.

It takes a connection from aiohttp's connector, writes the request at once, and reads the response
with aiohttp's parser. It skips redirects, cookies, middlewares and traces, which a start does not
need, and so takes half the time of a session. The parts of aiohttp that it calls are not
documented: if the installed version differs in them, ``IS_KNOWN`` is false.

It keeps connections itself, instead of in aiohttp's pool, to see what happens to them between two
requests. A server may close one a few milliseconds after a response, or send a second response;
either would make the next start unknown. So a connection rests before it is reused, unless too
many do, and both faults show in the meantime.
"""

import asyncio
import inspect
import pkgutil
import re
import resource
from collections import deque
from collections.abc import Callable, Mapping
from ssl import SSLContext
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

import aiohttp

from deslaunch.des.http import HEADERS, LINE, Exchange, ExtraResponse, Route, connector

if TYPE_CHECKING:  # the installed aiohttp may have none
    from aiohttp.connector import Connection

KEEPALIVE: Final = 2.0
"""Seconds for which an idle connection is kept. Shorter than the limit of any server, because a
start on a connection that the server is closing becomes unknown."""

REST: Final = 0.05
"""Seconds for which a connection is not used after a response."""

SPARE: Final = 256
"""The most idle connections of all clients of an event loop together, but at most a quarter of the
files that this process may open. At the limit the oldest is used without a rest."""

KEPT: Final = 65_536
"""Bytes of a response that are kept for error messages."""

KNOWN_HEADS: Final = 64
"""Heads of complete responses that are kept together with their parsed form. Many responses within
a second differ only in their bodies: the same head before a body of the same length is not parsed
again, which saves a sixth of a start's time."""

_END: Final = b"\r\n\r\n"
_INTERIM: Final = {*range(100, 200)} - {101}  # responses that precede the final one
_SECONDS: Final = re.compile(r"timeout\s*=\s*([0-9]{1,9})", re.IGNORECASE)
_TIMED_OUT: Final = (b"HTTP/1.1 408 ", b"HTTP/1.0 408 ")
_READS: Final[Mapping[str, Any]] = {
    "read_until_eof": True,
    "auto_decompress": False,
    "max_line_size": LINE,
    "max_field_size": LINE,
    "max_headers": HEADERS,
}

PARTS: Final[Mapping[str, str]] = {
    "aiohttp:ClientRequest.__init__": "self method url loop proxy proxy_headers",
    "aiohttp:TCPConnector.connect": "self req traces timeout",
    "aiohttp:EMPTY_PAYLOAD.is_eof": "",
    "aiohttp.connector:Connection.close": "self",
    "aiohttp.connector:Connection.protocol.fget": "self",
    "aiohttp.connector:Connection.transport.fget": "self",
    "aiohttp.client_proto:ResponseHandler.set_response_params": f"self {' '.join(_READS)}",
    "aiohttp.client_proto:ResponseHandler.read": "self",
    "aiohttp.client_proto:ResponseHandler.__len__": "self",
    "aiohttp.client_proto:ResponseHandler.data_received": "self data",
    "aiohttp.client_proto:ResponseHandler.feed_data": "self data",
    "aiohttp.client_proto:ResponseHandler.should_close.fget": "self",
}
"""Parts of aiohttp that are used here, with the parameters that are passed."""


def is_known(parts: Mapping[str, str] = PARTS) -> bool:
    """Return True if the parts of aiohttp exist and accept these parameters."""
    try:
        for part, names in parts.items():
            inspect.signature(pkgutil.resolve_name(part)).bind(**dict.fromkeys(names.split()))
    except (ImportError, AttributeError, TypeError):
        return False

    return True


IS_KNOWN: Final = is_known()


_SENDERS: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, list["QuickSender"]]] = (
    WeakKeyDictionary()
)
"""The open senders of each event loop: they share the limit of idle connections."""


def count_spare() -> int:
    """Return the limit of idle connections, by the files that this process may open now."""
    return min(SPARE, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)


class _Connection(asyncio.Protocol):
    """A connection: a protocol in front of aiohttp's, which sees every byte first.

    It need not pass on that writing is paused, or that an EOF was received: aiohttp's protocol
    writes nothing here, and learns when the connection is lost.

    Args:
        connection: a new one of aiohttp's connector.
        origin: scheme, host and port of its server.
        heads: the known heads, shared by all connections of a sender.
        on_unreliable: called with the reason not to reuse connections, and the bytes received.

    Attributes:
        origin: scheme, host and port of its server.
        rests_until: when it may be used again, by the loop's clock; 0 before the first request.
        expires: when it must no longer be used.
    """

    def __init__(
        self,
        connection: "Connection",
        origin: str,
        heads: dict[tuple[bytes, int], Any],
        on_unreliable: Callable[[str, bytes], None],
    ) -> None:
        handler, transport = connection.protocol, connection.transport

        if handler is None or transport is None or transport.is_closing():
            connection.close()
            raise aiohttp.ClientConnectionResetError("the connection is closing")

        self.origin = origin
        self.rests_until = self.expires = 0.0
        self._heads = heads
        self._on_unreliable = on_unreliable
        self._exchange: Exchange | None = None
        self._last = b""  # what was received last
        self._connection = connection
        self._handler, self._transport = handler, transport
        self._feed = handler.data_received
        handler.set_response_params(**_READS)  # once: its parser reads one after the other
        transport.set_protocol(self)

    def data_received(self, data: bytes) -> None:
        exchange, self._last = self._exchange, data

        if exchange is None:
            self.expires = 0.0

            if not data.startswith(_TIMED_OUT):  # some servers send a 408 when they close
                self._on_unreliable("a response was received without a request", data)

            return

        if not exchange.received:
            head, _, body = data.partition(_END)
            message = self._heads.get((head, len(body)))

            if message is not None:
                exchange.received, exchange.body = data, body
                self._handler.feed_data((message, aiohttp.EMPTY_PAYLOAD))
                return

        if len(exchange.received) < KEPT:
            exchange.received += data

        self._feed(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.expires = 0.0
        self._handler.connection_lost(exc)

    async def send(self, head: bytes, exchange: Exchange) -> None:
        """Send a request and read its response."""
        handler = self._handler
        self._exchange = exchange
        exchange.before_send()
        request = exchange.request
        self._transport.write(b"%b%d\r\n\r\n%b" % (head, len(request), request))

        try:
            message, content = await handler.read()

            while message.code in _INTERIM:
                message, content = await handler.read()
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError):
            if self.rests_until:  # it was kept
                reason = "a kept connection was lost while a request was sent"
                self._on_unreliable(reason, exchange.received)

            raise

        exchange.status, exchange.headers = message.code, message.headers

        # Otherwise there is no body, or data_received() has set it.
        if content is not aiohttp.EMPTY_PAYLOAD:
            await self._read_body(exchange, message, content)

        if len(handler) or not self._is_at_end(message, exchange.body):
            exchange.body = exchange.received
            self._on_unreliable("a request got two responses", exchange.received)
            raise ExtraResponse

        self._exchange = None

    async def _read_body(
        self, exchange: Exchange, message: Any, content: aiohttp.StreamReader
    ) -> None:
        head, _, body = exchange.received.partition(_END)

        # Most arrive in one piece: then this is the body, and aiohttp's stream need not be read.
        if not content.is_eof() or message.headers.get("Content-Length") != str(len(body)):
            await exchange.read(content)
            return

        exchange.body = body

        if not self._handler.should_close:
            if len(self._heads) >= KNOWN_HEADS:
                self._heads.clear()

            self._heads[head, len(body)] = message

    def _is_at_end(self, message: Any, body: bytes) -> bool:
        """Return True if nothing but line breaks follows the response in what was received last.

        The parser says nothing of the beginning of another response: it waits for the rest.
        """
        end, last = body.rstrip(b"\r\n"), self._last.rstrip(b"\r\n")

        if message.chunked or not body:
            end, last = _END, self._last

        return last.endswith(end) or end.endswith(last)

    def is_clean(self) -> bool:
        """Return True if the request and its response are complete."""
        is_over = self._exchange is None and not self._handler.should_close
        return is_over and not self._transport.get_write_buffer_size()

    def is_usable(self, now: float) -> bool:
        """Return True if a request may be sent over it."""
        return now < self.expires and not self._transport.is_closing()

    def close(self) -> None:
        """Close the connection, even during an upload."""
        if self._transport.get_write_buffer_size():
            self._transport.abort()

        self._connection.close()


class QuickSender:
    """Sends requests over kept connections, with the promises of ``PlainSender``.

    Args:
        ssl: TLS settings, or None for the system's.
        connect_timeout: seconds to resolve, connect and shake hands.
        on_unreliable: called with the reason not to reuse connections, and the bytes received.
    """

    def __init__(
        self,
        ssl: SSLContext | None,
        connect_timeout: float,
        on_unreliable: Callable[[str, bytes], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._connector = connector(ssl)
        self._timeout = aiohttp.ClientTimeout(total=None, connect=connect_timeout)
        self._spare = count_spare()
        self._rests = True
        self._on_unreliable = on_unreliable
        self._reuses = True
        self._idle: deque[_Connection] = deque()
        self._heads: dict[tuple[bytes, int], Any] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._senders = _SENDERS.setdefault(self._loop, [])
        self._senders.append(self)

    def __repr__(self) -> str:
        state = "reusing" if self._reuses else "not reusing"
        return f"<QuickSender: {len(self._idle)} idle, {state}>"

    async def post(self, route: Route, exchange: Exchange) -> None:
        """Send a request once and read its response; no redirect is followed.

        Raises:
            TooLate: no byte left.
            aiohttp.ClientError: as ``ClientSession.post`` raises it.
            aiohttp.http.HttpProcessingError: the response is not HTTP.
            ExtraResponse: there was more than one response.
            Exception: if ``exchange.status`` is set, the body is incomplete.
        """
        connection = self._take(route.origin, rested=self._rests) or await self._connect(route)

        try:
            await connection.send(route.head, exchange)
        finally:
            if self._reuses and connection.is_clean():
                self._keep(connection, exchange.headers.get("Keep-Alive"))
            else:
                connection.close()

    def stop_reusing(self) -> None:
        """Use each connection for one request only from now on."""
        self._reuses = False

        while self._idle:
            self._idle.popleft().close()

    async def aclose(self) -> None:
        """Close all connections."""
        self.stop_reusing()

        if self in self._senders:
            self._senders.remove(self)

        if self._sweeper is not None:
            self._sweeper.cancel()

        await self._connector.close()

    def _take(self, origin: str, *, rested: bool) -> _Connection | None:
        """Return a kept connection that may be used, or None if a new one must be made."""
        now = self._loop.time()

        while self._idle:
            is_resting = rested and now < self._idle[0].rests_until

            if is_resting and len(self._idle) < self._spare // len(self._senders):
                return None

            connection = self._idle.popleft()

            if connection.origin == origin and connection.is_usable(now):
                return connection

            connection.close()

        return None

    async def _connect(self, route: Route) -> _Connection:
        request = aiohttp.ClientRequest(
            "POST", route.url, loop=self._loop, proxy=route.proxy, proxy_headers=route.proxy_headers
        )

        try:
            made = await self._connector.connect(request, [], self._timeout)
        except OSError:
            if (kept := self._take(route.origin, rested=False)) is not None:
                self._rests = False  # the server, or this process, can't open more
                return kept

            raise

        return _Connection(made, route.origin, self._heads, self._on_unreliable)

    def _keep(self, connection: _Connection, header: str | None) -> None:
        """Keep a connection for the next request, for half of its server's limit at most."""
        now = self._loop.time()
        seconds = KEEPALIVE

        if header and (found := _SECONDS.search(header)):
            seconds = min(seconds, int(found[1]) / 2)

        connection.rests_until, connection.expires = now + REST, now + seconds
        self._idle.append(connection)

        if self._sweeper is None:
            self._sweeper = self._loop.call_later(KEEPALIVE, self._sweep)

    def _sweep(self) -> None:
        """Close the connections that were idle for too long."""
        self._sweeper = None
        now = self._loop.time()

        while self._idle and not self._idle[0].is_usable(now):
            self._idle.popleft().close()

        if self._idle:
            self._sweeper = self._loop.call_later(KEEPALIVE, self._sweep)
