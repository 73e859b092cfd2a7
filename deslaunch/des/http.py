"""HTTP for starts: whether a byte may have left, time limits, and URLs fit for secrets.

A request is sent by :class:`~deslaunch.des.quick.QuickSender`, or by :class:`PlainSender`, which
needs only the documented API of aiohttp and serves where ``quick`` does not know the installed
version. Both note in an :class:`Exchange` when the first byte may leave. Nothing is sent twice.
"""

import asyncio
import base64
import ipaddress
import math
import socket
import sys
import threading
import time
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from ssl import SSLContext, SSLEOFError, SSLZeroReturnError
from types import SimpleNamespace
from typing import Final, TypeAlias
from urllib.request import getproxies_environment

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.http import HttpProcessingError
from multidict import CIMultiDictProxy
from yarl import URL

from deslaunch import __version__
from deslaunch.errors import ConfigurationError, Misconfigured, NotSent, TooLate
from deslaunch.model import Sent

GRACE: Final = 0.05
"""Seconds between the end of a time limit and the cancellation of its task."""

LINE: Final = 65_536
"""Bytes of one header that are read."""

HEADERS: Final = 500
"""Headers of a response that are read."""

_BOOTTIME: Final = time.CLOCK_MONOTONIC if sys.platform == "darwin" else time.CLOCK_BOOTTIME

boottime: Final[Callable[[], float]] = partial(time.clock_gettime, _BOOTTIME)
"""Return seconds of a monotonic clock that counts suspension.

``CLOCK_MONOTONIC`` does on macOS; on Linux only ``CLOCK_BOOTTIME`` does.
"""


# -- URLs -------------------------------------------------------------------------------------


def safe_url(text: str, what: str = "base URL", *, allow_http: bool = False) -> URL:
    """Return a URL that is fit to send a secret to.

    Args:
        text: ``https://…``; ``http://`` only for loopback addresses.
        what: the name of the URL in messages.
        allow_http: also allow ``http://`` for other hosts.

    Raises:
        ConfigurationError: the URL is not fit; the message shows no password and no query.
    """
    text = text.strip()
    url = _parse(text)

    if "@" in text:  # whatever it parses to: a password may hold a slash
        why = "contains a user name or password"
        hint = "remove everything up to the '@': DES accepts only a token"
    elif "?" in text or "#" in text:
        why, hint = "contains a query or fragment", "remove the '?' or '#' and everything after it"
    elif url is None:
        why, hint = f"can't be used: expected https://HOST, got {text!r}", "write https://HOST"
    elif url.scheme == "http" and not (allow_http or is_loopback(url.host or "")):
        why = f"{text!r} would send the token unencrypted"
        hint = (
            f"use {str(url.with_scheme('https')).rstrip('/')}; "
            "on a network that you trust, pass --allow-http"
        )
    else:
        return url

    raise ConfigurationError(f"the {what} {why}", hint=hint)


def is_loopback(host: str) -> bool:
    """Return True if a host is a loopback address or ``localhost``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _parse(text: str) -> URL | None:
    """Return an http or https URL with a host, or None: an exception might quote a password."""
    try:
        url = URL(text)
    except ValueError:
        return None

    return url if url.scheme in {"http", "https"} and url.host else None


def split_proxy(text: str | None) -> tuple[URL | None, dict[str, str] | None]:
    """Return a proxy's URL without credentials, and the header that carries them.

    aiohttp accepts credentials in the URL, but quotes it in its errors.

    Raises:
        ConfigurationError: the URL can't be used; the message does not show it.
    """
    if text is None:
        return None, None

    url = _parse(text)

    if url is None:
        raise ConfigurationError(
            "the proxy's URL can't be used: expected http://HOST:PORT",
            hint="write http://HOST:PORT or http://USER:PASSWORD@HOST:PORT",
        )

    if url.user is None:
        return url, None

    pair = base64.b64encode(f"{url.user}:{url.password or ''}".encode()).decode()
    return url.with_user(None), {"Proxy-Authorization": f"Basic {pair}"}


def proxy_of(url: str) -> str | None:
    """Return the proxy for a URL by HTTPS_PROXY, HTTP_PROXY and NO_PROXY, or None.

    Loopback addresses never have one: their requests, without TLS, must not leave the machine.
    """
    parts = URL(url)
    proxies = getproxies_environment()
    host = parts.host or ""
    is_direct = is_loopback(host) or _matches_no_proxy(host, parts.port, proxies.get("no", ""))
    return None if is_direct else proxies.get(parts.scheme)


def _matches_no_proxy(host: str, port: int | None, rules: str) -> bool:
    """Return True if a rule of NO_PROXY matches.

    A rule is ``*``, a domain (which includes its subdomains, with or without ``*.`` or ``.`` in
    front), an address, or a network (CIDR), each with an optional ``:port``; ``[v6]:port``.
    """
    for rule in rules.lower().replace(",", " ").split():
        name, _, wanted = rule.partition(":") if rule.count(":") == 1 else (rule, "", "")

        if rule.startswith("["):
            name, _, wanted = rule[1:].partition("]")

        if wanted and wanted.removeprefix(":") != str(port):
            continue

        try:
            if ipaddress.ip_address(host) in ipaddress.ip_network(name, strict=False):
                return True
        except ValueError:  # the rule, or the host, is a name
            name = name.removeprefix("*").removeprefix(".")

            if not name or host.lower() == name or host.lower().endswith(f".{name}"):
                return True

    return False


# -- Time limits ------------------------------------------------------------------------------


class Deadlines:
    """One time limit for many tasks: ``with deadlines:``, at most one block a task.

    A block raises ``TimeoutError`` when its time is over, after :data:`GRACE`. If the machine
    was suspended or its disk slow, timers and responses are due at the same time: the grace lets
    the responses be read first, so that none is lost only because this process stood still.

    All limits are equally long, so they end in the order in which they began, and one timer, set
    for the oldest, serves them all. A timer for each request takes a tenth of aiohttp's own time.

    Args:
        seconds: the length, more than 0.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()  # which costs a system call before Python 3.12
        self._running: dict[asyncio.Task[object], tuple[float, int]] = {}
        self._ended: dict[asyncio.Task[object], int] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        task = asyncio.current_task(self._loop)
        assert task is not None
        due = self._loop.time() + self._seconds
        self._running[task] = due, task.cancelling()

        if self._timer is None:
            self._timer = self._loop.call_at(due, self._on_timer, due)

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        """Turn this limit's cancellation into a TimeoutError.

        Raises:
            TimeoutError: the time is over, and nobody else cancelled the task.
        """
        task = asyncio.current_task(self._loop)
        assert task is not None

        if self._running.pop(task, None) is None:
            is_ours = task.uncancel() <= self._ended.pop(task)

            if is_ours and kind is asyncio.CancelledError:
                raise TimeoutError from error

    def _on_timer(self, due: float) -> None:
        now = max(due, self._loop.time())  # a timer may fire a little early
        self._timer = self._loop.call_later(GRACE, self._enforce, now)

    def _enforce(self, now: float) -> None:
        """Cancel the tasks that were due when the timer fired, and set it for the next one."""
        self._timer = None

        for task, (due, cancelling) in list(self._running.items()):
            if due > now:
                self._timer = self._loop.call_at(due, self._on_timer, due)
                break

            del self._running[task]
            self._ended[task] = cancelling
            task.cancel()


# -- Names ------------------------------------------------------------------------------------


class Resolver(AbstractResolver):
    """Resolves each name in a daemon thread.

    A lookup can take half a minute if no name server responds, and can't be cancelled.
    ``asyncio.run`` and the interpreter would wait for a thread of the default executor.
    """

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return a host's addresses.

        Raises:
            OSError: the host has none, or no name server responded.
        """
        addresses = Future[list[ResolveResult]]()
        addresses.set_running_or_notify_cancel()  # a cancelled future would refuse its result
        threading.Thread(target=_look_up, args=(addresses, host, port, family), daemon=True).start()
        return await asyncio.wrap_future(addresses)

    async def close(self) -> None:
        """Do nothing: a lookup ends on its own."""


def _look_up(addresses: Future[list[ResolveResult]], host: str, port: int, family: int) -> None:
    flags, numeric = socket.AI_ADDRCONFIG, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
    known = ResolveResult(hostname=host, host="", port=port, family=0, proto=0, flags=0)

    try:
        infos = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=flags)
        # Only getnameinfo returns the zone of a link-local address.
        results = [
            known | {"host": socket.getnameinfo(at, numeric)[0], "family": kind, "proto": proto}
            for kind, _, proto, _, at in infos
        ]
        addresses.set_result(results)
    except Exception as exc:  # noqa: BLE001  # resolve() waits for it
        addresses.set_exception(exc)


def connector(ssl: SSLContext | None) -> aiohttp.TCPConnector:
    """Return a connector without a pool and without a limit of connections."""
    return aiohttp.TCPConnector(limit=0, force_close=True, ssl=ssl or True, resolver=Resolver())


# -- One request and its response -------------------------------------------------------------


_HEADERS: Final = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",  # a small gzip may unpack to more than the memory
    "User-Agent": f"deslaunch/{__version__}",
}


@dataclass(slots=True)
class Route:
    """The part of a request that is the same for each of its endpoint: all but the body.

    Attributes:
        url: http or https, without user and password.
        headers: without Host and Content-Length; those of every request are added. None holds a
            line break.
        proxy: http or https, without credentials, or None.
        proxy_headers: for the CONNECT request of a tunnel, or None.
        head: the bytes of every request up to the value of Content-Length.
        origin: scheme, host and port, by which connections are reused.
    """

    url: URL
    headers: Mapping[str, str]
    proxy: URL | None = None
    proxy_headers: Mapping[str, str] | None = None
    head: bytes = field(init=False)
    origin: str = field(init=False)

    def __post_init__(self) -> None:
        relayed = self.proxy is not None and self.url.scheme == "http"  # there is no tunnel
        credentials = (self.proxy_headers or {}) if relayed else {}
        self.headers = {**_HEADERS, **self.headers, **credentials}
        lines = [
            f"POST {self.url if relayed else self.url.raw_path_qs} HTTP/1.1",
            f"Host: {self.url.host_port_subcomponent}",
            *(f"{name}: {value}" for name, value in self.headers.items()),
            "Content-Length: ",
        ]
        self.head = "\r\n".join(lines).encode()
        self.origin = str(self.url.origin())


@dataclass(slots=True)
class Exchange:
    """One request and its response.

    Attributes:
        request: the body that is sent.
        sent: whether a byte may have left.
        limit: bytes of the response's body that are read.
        latest: when the first byte may leave at the latest, by ``clock``.
        clock: seconds of a clock that counts suspension.
        status: of the response; 0 until its headers are read.
        headers: of the response, case-insensitive; set together with ``status``.
        body: of the response, as far as it was received.
        error: why ``body`` is incomplete or unreliable, or None.
        received: the first bytes of the response including its head, as far as they are known.
        was_sent: a byte may have left over some connection.
    """

    request: bytes
    sent: Sent
    limit: int
    latest: float = math.inf
    clock: Callable[[], float] = boottime
    status: int = 0
    headers: CIMultiDictProxy[str] = field(init=False)
    body: bytes = b""
    error: Exception | None = None
    received: bytes = b""
    was_sent: bool = False

    def before_connect(self) -> None:
        """Record that no byte has left, as a connection is about to be made.

        Raises:
            RuntimeError: the request was sent already. It must not be sent a second time.
        """
        if self.was_sent:
            raise RuntimeError("this request was sent already")

        self.sent.clear()

    def before_send(self) -> None:
        """Record that bytes may have left, as the first is about to leave.

        Raises:
            TooLate: ``latest`` is over.
        """
        if self.clock() > self.latest:
            self.sent.clear()
            raise TooLate(
                "the request was not sent: too much time had passed since it was recorded",
                hint="send it again; nothing was started",
            )

        self.was_sent = True
        self.sent.set()

    async def read(self, content: aiohttp.StreamReader) -> None:
        """Read the response's body; if that fails, ``body`` holds what was received.

        Raises:
            aiohttp.ClientPayloadError: it is incomplete, or longer than ``limit`` and cut off.
        """
        self.body = content.read_nowait()

        while not content.at_eof() and len(self.body) <= self.limit:
            self.body += await content.readany()

        if len(self.body) > self.limit:
            self.body = self.body[: self.limit]
            raise aiohttp.ClientPayloadError(f"the response is over {self.limit} bytes long")


class ExtraResponse(Exception):
    """A second response was received for one request."""


class PlainSender:
    """Sends by ``ClientSession.post``, each request over a connection of its own.

    It keeps no connection, because it can't see whether an extra response was received on it
    between two requests. A request counts as sent unless aiohttp reports that it was not.

    Args:
        ssl: TLS settings, or None for the system's.
        connect_timeout: seconds to resolve, connect and shake hands.
    """

    def __init__(self, ssl: SSLContext | None, connect_timeout: float, _: object = None) -> None:
        trace = aiohttp.TraceConfig()
        trace.on_connection_create_start.append(_calling(Exchange.before_connect))
        trace.on_connection_create_end.append(_calling(lambda exchange: exchange.sent.set()))
        trace.on_request_headers_sent.append(_calling(Exchange.before_send))
        self._session = aiohttp.ClientSession(
            connector=connector(ssl),
            timeout=aiohttp.ClientTimeout(total=None, connect=connect_timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trace_configs=[trace],
            max_field_size=LINE,
            max_headers=HEADERS,
        )

    async def post(self, route: Route, exchange: Exchange) -> None:
        """Send a request once and read its response; no redirect is followed.

        Raises:
            TooLate: no byte left.
            aiohttp.ClientError: as ``ClientSession.post`` raises it.
            Exception: if ``exchange.status`` is set, the body is incomplete.
        """
        exchange.sent.set()  # until aiohttp reports that no byte has left

        try:
            response = await self._session.post(
                route.url,
                data=exchange.request,
                headers=route.headers,
                allow_redirects=False,
                proxy=route.proxy,
                proxy_headers=route.proxy_headers,
                trace_request_ctx=exchange,
            )
        except aiohttp.ClientResponseError as exc:
            exchange.received = exc.message.encode()
            raise

        exchange.status, exchange.headers = response.status, response.headers

        try:
            await exchange.read(response.content)
        finally:
            response.close()  # aiohttp waits without end for an upload that the server ignores

    def stop_reusing(self) -> None:
        """Do nothing: no connection is reused."""

    async def aclose(self) -> None:
        """Close all connections."""
        await self._session.close()


def _calling(note: Callable[[Exchange], None]) -> Callable[..., Awaitable[None]]:
    """Return a trace hook that calls ``note`` with its exchange."""

    async def hook(_: object, context: SimpleNamespace, __: object) -> None:
        note(context.trace_request_ctx)

    return hook


def unpacked(response: Exchange) -> bytes:
    """Return the body, decompressed unless that fails or the encoding is unknown.

    Every request asks for no encoding, but some gateways compress all the same. An incomplete body
    is decompressed as far as possible, and none beyond the response's limit.
    """
    windows = {"gzip": (31,), "x-gzip": (31,), "deflate": (15, -15)}
    encoding = response.headers.get("Content-Encoding", "").strip().lower()

    for window in windows.get(encoding, ()):
        found, rest = b"", response.body

        try:
            for _ in range(100):  # gzip may have several members; more would only take time
                if rest and len(found) < response.limit:
                    member = zlib.decompressobj(window)
                    found += member.decompress(rest, response.limit - len(found))
                    rest = member.unused_data
        except zlib.error:
            if not found:
                continue

        return found

    return response.body


# -- Exceptions of aiohttp, as verdicts and texts ----------------------------------------------

_Kinds: TypeAlias = type[Exception] | tuple[type[Exception], ...]
_CUT_OFF: Final = SSLEOFError, SSLZeroReturnError
_UNTRUSTED: Final = aiohttp.ClientConnectorCertificateError, aiohttp.ServerFingerprintMismatch
_BAD_URL: Final = aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError

_UNSENT: Final[Sequence[tuple[_Kinds, type[NotSent], str]]] = (
    (_CUT_OFF, NotSent, "the server closed the connection during the TLS handshake"),
    (_UNTRUSTED, Misconfigured, "the server's certificate is not trusted"),
    (aiohttp.ClientConnectorSSLError, Misconfigured, "the TLS handshake failed"),
    (_BAD_URL, Misconfigured, "the URL is invalid"),
    (aiohttp.ClientConnectorDNSError, NotSent, "the host name can't be resolved"),
    (aiohttp.ClientProxyConnectionError, NotSent, "can't connect to the proxy"),
    (aiohttp.ClientHttpProxyError, NotSent, "the proxy refused to connect"),
    (TimeoutError, NotSent, "connecting timed out"),
    (aiohttp.ClientConnectorError, NotSent, "can't connect"),
    (Exception, NotSent, "nothing was sent"),
)
"""The first that matches an exception, or the system's error within it, applies."""

_NO_RESPONSE: Final[Sequence[tuple[_Kinds, type[NotSent], str]]] = (
    (TimeoutError, NotSent, "the response timed out"),
    ((aiohttp.ClientResponseError, HttpProcessingError), NotSent, "the response is not HTTP"),
    (Exception, NotSent, "the connection was lost before a response"),
)


def cause_of(exc: Exception | None) -> Exception | None:
    """Return an exception for chaining, or None for one that holds headers, and so secrets."""
    return None if isinstance(exc, aiohttp.ClientResponseError) else exc


def failure_of(exc: Exception, sent: Sent) -> tuple[type[NotSent], str]:
    """Return the verdict on a request without a response, and a text.

    Args:
        exc: what aiohttp raised.
        sent: whether a byte may have left.

    Returns:
        The exception to raise if no byte had left, and the reason in words, with the message of
        the system or the proxy.
    """
    rules, within = _NO_RESPONSE if sent else _UNSENT, getattr(exc, "os_error", None)
    verdict, text = next((v, t) for k, v, t in rules if isinstance(exc, k) or isinstance(within, k))
    why = exc.strerror if isinstance(exc, OSError) else None

    if isinstance(exc, aiohttp.ClientHttpProxyError):
        why = exc.message
    elif within is not None:
        why = str(within) or type(within).__name__

    return verdict, text + (f" ({why})" if why else "")
