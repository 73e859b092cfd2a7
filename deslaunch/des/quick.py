"""The quick way over aiohttp's connections; everything works without it.

A connection from aiohttp's connector, one write, one response by aiohttp's parser. What a session
would prepare for redirects, cookies, middlewares and traces, a start has none of, and a route
knows its headers ahead: that takes half the time. The parts that are called are no documented
API. Where the aiohttp at hand does not have them as they are known here, ``IS_KNOWN`` is false.

Connections are kept here, not in aiohttp's pool, so that what happens to them between two requests
is seen. A server may close one a few milliseconds after a good response, or send it a second
response: either would cost the next start its own. So a kept connection rests before it is used
again, while there are not too many that rest; both faults show themselves meanwhile.
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
from weakref import WeakKeyDictionary, WeakSet

import aiohttp

from deslaunch.des.http import HEADERS, LINE, Exchange, Route, Unasked, connector

if TYPE_CHECKING:  # another aiohttp may have none
    from aiohttp.connector import Connection

KEEPALIVE: Final = 2.0
"""Seconds that an idle connection is kept: shorter than any server's own limit, because a
start on a connection that the server closed meanwhile ends unknown."""

REST: Final = 0.05
"""Seconds for which a connection is left alone after a response."""

SPARE: Final = 256
"""Idle connections that all clients of an event loop keep together, at most, and no more than a
quarter of the files that this process may open. At the limit the oldest is used without a rest."""

KEPT: Final = 65_536
"""Bytes of what came back that are kept for a fault."""

KNOWN_HEADS: Final = 64
"""Heads of whole responses that are kept with what aiohttp's parser made of them: the same bytes
before a body of the same length mean the same, and many responses of a second differ in their
bodies alone. A start costs a sixth less then."""

_END: Final = b"\r\n\r\n"
_ANNOUNCING: Final = {*range(100, 200)} - {101}  # responses that come before the one that counts
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
    "aiohttp.connector:Connection.close": "self",
    "aiohttp.client_proto:ResponseHandler.set_response_params": f"self {' '.join(_READS)}",
    "aiohttp.client_proto:ResponseHandler.read": "self",
    "aiohttp.client_proto:ResponseHandler.__len__": "self",
    "aiohttp.client_proto:ResponseHandler.data_received": "self data",
    "aiohttp.client_proto:ResponseHandler.feed_data": "self data",
}
"""The parts of aiohttp that are called here, with the names of the parameters they are given."""


def is_known(parts: Mapping[str, str] = PARTS) -> bool:
    """Return True if aiohttp's parts are there and take what the quick way gives them."""
    try:
        for part, names in parts.items():
            inspect.signature(pkgutil.resolve_name(part)).bind(**dict.fromkeys(names.split()))
    except (ImportError, AttributeError, TypeError):
        return False

    return True


IS_KNOWN: Final = is_known()


_WAYS: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, WeakSet["QuickWay"]]] = (
    WeakKeyDictionary()
)
"""Of each event loop, as many targets share the files that their process may open."""


def count_spare() -> int:
    """Return how many connections may be idle, by the files that this process may open now."""
    return min(SPARE, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)


class _Link(asyncio.Protocol):
    """A connection; it stands before aiohttp's protocol and sees what comes before that does.

    That one need not know when writing pauses, as it writes nothing, nor of an EOF before the
    connection is lost.

    Args:
        heads: of whole responses by their length, shared by all connections of a client.

    Attributes:
        origin: what it leads to.
        rests_until: when it may be used again, by the loop's clock; 0 while it was not kept.
        expires: when it may not be used any more.
    """

    def __init__(
        self,
        connection: "Connection",
        origin: str,
        heads: dict[tuple[bytes, int], Any],
        on_doubt: Callable[[str, bytes], None],
    ) -> None:
        handler, transport = connection.protocol, connection.transport

        if handler is None or transport is None or transport.is_closing():
            connection.close()
            raise aiohttp.ClientConnectionResetError("the connection is closing")

        self.origin = origin
        self.rests_until = self.expires = 0.0
        self._heads = heads
        self._on_doubt = on_doubt
        self._exchange: Exchange | None = None
        self._connection = connection
        self._handler, self._transport = handler, transport
        self._feed = handler.data_received
        handler.set_response_params(**_READS)  # once: its parser reads one after the other
        transport.set_protocol(self)

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange

        if exchange is None:
            self.expires = 0.0

            if not data.startswith(_TIMED_OUT):  # which is only how some servers close
                self._on_doubt("a response came that nobody asked for", data)

            return

        if not exchange.came:
            head, _, body = data.partition(_END)
            message = self._heads.get((head, len(body)))

            if message is not None:
                exchange.came, exchange.body = data, body
                self._handler.feed_data((message, aiohttp.EMPTY_PAYLOAD))
                return

        if len(exchange.came) < KEPT:
            exchange.came += data

        self._feed(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.expires = 0.0
        self._handler.connection_lost(exc)

    async def ask(self, head: bytes, exchange: Exchange) -> None:
        """Send a request and take in its response."""
        handler = self._handler
        self._exchange = exchange
        exchange.leave()
        request = exchange.request
        self._transport.write(b"%b%d\r\n\r\n%b" % (head, len(request), request))

        try:
            message, content = await handler.read()

            while message.code in _ANNOUNCING:
                message, content = await handler.read()
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError):
            if self.rests_until:  # it was kept
                why = "a kept connection was lost as a request was sent on it"
                self._on_doubt(why, exchange.came)

            raise

        exchange.status, exchange.headers = message.code, message.headers

        if content is not aiohttp.EMPTY_PAYLOAD:  # else there is no body, or it was taken already
            await self._read_body(exchange, message, content)

        if len(handler):
            exchange.body = exchange.came
            why = "two responses came to one request"
            self._on_doubt(why, exchange.came)
            raise Unasked(why)

        self._exchange = None

    async def _read_body(
        self, exchange: Exchange, message: Any, content: aiohttp.StreamReader
    ) -> None:
        head, _, body = exchange.came.partition(_END)

        # Most come in one piece: then this is the body, and aiohttp's stream need not be asked.
        if not content.is_eof() or message.headers.get("Content-Length") != str(len(body)):
            await exchange.read(content)
            return

        exchange.body = body

        if not self._handler.should_close:
            if len(self._heads) >= KNOWN_HEADS:
                self._heads.clear()

            self._heads[head, len(body)] = message

    def is_clean(self) -> bool:
        """Return True if nothing of a request and its response is left on the way."""
        is_over = self._exchange is None and not self._handler.should_close
        return is_over and not self._transport.get_write_buffer_size()

    def is_usable(self, now: float) -> bool:
        """Return True if a request may go over it."""
        return now < self.expires and not self._transport.is_closing()

    def close(self) -> None:
        """Close the connection, also where an upload has not ended."""
        if self._transport.get_write_buffer_size():
            self._transport.abort()

        self._connection.close()


class QuickWay:
    """Sends requests over connections that it keeps. It promises what ``PlainWay`` does.

    Args:
        ssl: TLS settings, or None for the system's.
        connect_timeout: seconds to resolve, connect and shake hands.
        on_doubt: told why connections should not be reused any more, and what came.
    """

    def __init__(
        self,
        ssl: SSLContext | None,
        connect_timeout: float,
        on_doubt: Callable[[str, bytes], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._connector = connector(ssl)
        self._timeout = aiohttp.ClientTimeout(total=None, connect=connect_timeout)
        self._spare = count_spare()
        self._rests = True
        self._on_doubt = on_doubt
        self._reuses = True
        self._idle: deque[_Link] = deque()
        self._heads: dict[tuple[bytes, int], Any] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._ways = _WAYS.setdefault(self._loop, WeakSet())
        self._ways.add(self)

    def __repr__(self) -> str:
        state = "reusing" if self._reuses else "not reusing"
        return f"<QuickWay: {len(self._idle)} idle, {state}>"

    async def post(self, route: Route, exchange: Exchange) -> None:
        """Send a request once and take in its response; no redirect is followed.

        Raises:
            TooLate: no byte left.
            aiohttp.ClientError: as ``ClientSession.post`` raises it.
            aiohttp.http.HttpProcessingError: what came back is no HTTP.
            Unasked: more than one response came.
            Exception: where ``exchange.status`` is known, the body is not whole.
        """
        link = self._take(route.origin, rested=self._rests) or await self._connect(route)

        try:
            await link.ask(route.head, exchange)
        finally:
            if self._reuses and link.is_clean():
                self._keep(link, exchange.headers.get("Keep-Alive"))
            else:
                link.close()

    def stop_reusing(self) -> None:
        """Let each connection serve one request only, from now on."""
        self._reuses = False

        while self._idle:
            self._idle.popleft().close()

    async def aclose(self) -> None:
        """Close all connections."""
        self.stop_reusing()

        if self._sweeper is not None:
            self._sweeper.cancel()

        await self._connector.close()

    def _count_idle(self) -> int:
        return sum(len(way._idle) for way in self._ways)

    def _take(self, origin: str, *, rested: bool) -> _Link | None:
        """Return a kept connection that is usable, or None where a new one is to be made."""
        now = self._loop.time()

        while self._idle:
            is_resting = rested and now < self._idle[0].rests_until

            if is_resting and self._count_idle() < self._spare:
                return None

            link = self._idle.popleft()

            if link.origin == origin and link.is_usable(now):
                return link

            link.close()

        return None

    async def _connect(self, route: Route) -> _Link:
        request = aiohttp.ClientRequest(
            "POST",
            route.url,
            loop=self._loop,
            proxy=route.proxy,
            proxy_headers=route.proxy_headers,
        )

        try:
            connection = await self._connector.connect(request, [], self._timeout)
        except OSError:
            if (link := self._take(route.origin, rested=False)) is not None:
                self._rests = False  # the server, or this process, has no room for more
                return link

            raise

        return _Link(connection, route.origin, self._heads, self._on_doubt)

    def _keep(self, link: _Link, header: str | None) -> None:
        """Keep a connection for the next request; its server may have said how long it waits."""
        now = self._loop.time()
        seconds = KEEPALIVE

        if header and (found := _SECONDS.search(header)):
            seconds = min(seconds, int(found[1]) / 2)

        link.rests_until, link.expires = now + REST, now + seconds
        self._idle.append(link)

        if self._count_idle() > self._spare:
            max(self._ways, key=lambda way: len(way._idle))._idle.popleft().close()

        if self._sweeper is None:
            self._sweeper = self._loop.call_later(KEEPALIVE, self._sweep)

    def _sweep(self) -> None:
        """Close what was idle for too long."""
        self._sweeper = None
        now = self._loop.time()

        while self._idle and not self._idle[0].is_usable(now):
            self._idle.popleft().close()

        if self._idle:
            self._sweeper = self._loop.call_later(KEEPALIVE, self._sweep)
