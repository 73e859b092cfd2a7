"""HTTP as a start needs it: whether a byte may have left, time limits, and URLs fit for secrets.

A request goes one of two ways: the quick one (``quick``), or :class:`PlainWay`, which needs
nothing of aiohttp but what it documents and is there where ``quick`` does not know the aiohttp at
hand. Both note in an :class:`Exchange` when the first byte may leave; nothing here sends twice.

All time limits of a client are equally long, so they run out in the order in which they began,
and one timer, set for the oldest, serves them all: a timer for each request would cost a tenth
of the time that aiohttp needs for it.
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
"""Seconds between the end of a limit and its being enforced."""

LINE: Final = 65_536
"""Bytes of one header that are read."""

HEADERS: Final = 500
"""Headers of a response that are read."""

UNPACKED: Final = 1024 * 1024
"""Bytes that a compressed response is unpacked to, at most."""


_BOOTTIME: Final = time.CLOCK_MONOTONIC if sys.platform == "darwin" else time.CLOCK_BOOTTIME

boottime: Final[Callable[[], float]] = partial(time.clock_gettime, _BOOTTIME)
"""Seconds of a clock that never goes back and counts suspension.

On macOS ``CLOCK_MONOTONIC`` does; on Linux only ``CLOCK_BOOTTIME``.
"""


# -- URLs -------------------------------------------------------------------------------------


def safe_url(text: str, what: str = "base URL", *, allow_http: bool = False) -> URL:
    """Return a URL that is fit to send a secret to.

    Args:
        text: ``https://…``; ``http://`` only for loopback addresses.
        what: what the URL is, for messages.
        allow_http: also allow ``http://`` for other hosts.

    Raises:
        ConfigurationError: it is not; the message shows no password and no query.
    """
    text = text.strip()
    url = _parse(text)

    if "@" in text:  # whatever it parses to: a password may hold a slash
        why = "holds a user name or password"
        hint = "remove what stands before the '@': DES takes nothing but a token"
    elif "?" in text or "#" in text:
        why, hint = "holds a query or fragment", "cut it off at the '?' or '#'"
    elif url is None:
        why, hint = f"{text!r} can't be used", "write https:// and the host's name"
    elif url.scheme == "http" and not (allow_http or is_loopback(url.host or "")):
        why = f"{text!r} would send the token in the clear"
        hint = (
            f"write {str(url.with_scheme('https')).rstrip('/')}; "
            "or, where nobody can listen on the way, allow http with --allow-http"
        )
    else:
        return url

    raise ConfigurationError(f"the {what} {why}", hint=hint)


def is_loopback(host: str) -> bool:
    """Return True if a host is this machine's own, by its address or as ``localhost``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _parse(text: str) -> URL | None:
    """Return an http or https URL with a host, or None. No error: its text may quote a password."""
    try:
        url = URL(text)
    except ValueError:
        return None

    return url if url.scheme in {"http", "https"} and url.host else None


def split_proxy(text: str | None) -> tuple[URL | None, dict[str, str] | None]:
    """Return a proxy's URL without credentials, and the header that carries them.

    aiohttp would take both in the URL, and quote it in its errors.

    Raises:
        ConfigurationError: it can't be used; the message shows nothing of it.
    """
    if text is None:
        return None, None

    url = _parse(text)

    if url is None:
        raise ConfigurationError(
            "the proxy's URL can't be used", hint="write http://host:port or http://user:password@…"
        )

    if url.user is None:
        return url, None

    pair = base64.b64encode(f"{url.user}:{url.password or ''}".encode()).decode()
    return url.with_user(None), {"Proxy-Authorization": f"Basic {pair}"}


def proxy_of(url: str) -> str | None:
    """Return the proxy that HTTPS_PROXY, HTTP_PROXY and NO_PROXY name for a URL, or None.

    None for this machine's own addresses: what is sent to them in the clear must not leave it.
    """
    parts = URL(url)
    proxies = getproxies_environment()
    host = parts.host or ""
    is_direct = is_loopback(host) or _needs_no_proxy(host, parts.port, proxies.get("no", ""))
    return None if is_direct else proxies.get(parts.scheme)


def _needs_no_proxy(host: str, port: int | None, rules: str) -> bool:
    """Return True if one of the rules of NO_PROXY fits.

    A rule is ``*``, a name (which stands for what is below it too, with ``*.`` or ``.`` before
    it or not), an address, a network (CIDR), each with ``:port`` or not, ``[v6]:port``.
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
    """A time limit for blocks of tasks, ``with deadlines:``, the same for all, one a task.

    The block raises ``TimeoutError`` once it has run out, a moment later than it did. A loop that
    stood still, because its machine was asleep or its disk slow, finds timers and responses
    waiting at the same time: the responses are read first, so that none is lost to a limit that
    only the standstill exceeded.

    Args:
        seconds: the length, above 0.
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
            self._timer = self._loop.call_at(due, self._ring, due)

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        """Tell the limit's own cancellation from another's.

        Raises:
            TimeoutError: the limit ran out, and nobody else cancelled the task.
        """
        task = asyncio.current_task(self._loop)
        assert task is not None

        if self._running.pop(task, None) is None:
            is_ours = task.uncancel() <= self._ended.pop(task)

            if is_ours and kind is asyncio.CancelledError:
                raise TimeoutError from error

    def _ring(self, due: float) -> None:
        now = max(due, self._loop.time())  # a timer may ring a little early
        self._timer = self._loop.call_later(GRACE, self._enforce, now)

    def _enforce(self, now: float) -> None:
        """End what was overdue when the timer rang, and set it for the next."""
        self._timer = None

        for task, (due, cancelling) in list(self._running.items()):
            if due > now:
                self._timer = self._loop.call_at(due, self._ring, due)
                break

            del self._running[task]
            self._ended[task] = cancelling
            task.cancel()


# -- Names ------------------------------------------------------------------------------------


class Resolver(AbstractResolver):
    """Looks each name up in a thread of its own, for which nobody waits at the end.

    A lookup takes half a minute where no name server responds, and nothing can end it.
    ``asyncio.run``, the interpreter and uvloop wait at their end for the threads that they have.
    """

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return a host's addresses.

        Raises:
            OSError: it has none, or no name server responded.
        """
        found = Future[list[ResolveResult]]()
        found.set_running_or_notify_cancel()  # from here on nobody can cancel it
        threading.Thread(target=_look_up, args=(found, host, port, family), daemon=True).start()
        return await asyncio.wrap_future(found)

    async def close(self) -> None:
        """Do nothing: a lookup ends by itself."""


def _look_up(found: Future[list[ResolveResult]], host: str, port: int, family: int) -> None:
    flags, numeric = socket.AI_ADDRCONFIG, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
    known = ResolveResult(hostname=host, host="", port=port, family=0, proto=0, flags=0)

    try:
        infos = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=flags)
        # Only getnameinfo tells the zone of an address that is good on one link alone.
        results = [
            known | {"host": socket.getnameinfo(at, numeric)[0], "family": kind, "proto": proto}
            for kind, _, proto, _, at in infos
        ]
        found.set_result(results)
    except Exception as exc:  # noqa: BLE001  # whatever it is, somebody waits for it
        found.set_exception(exc)


def connector(ssl: SSLContext | None) -> aiohttp.TCPConnector:
    """Return a maker of connections that keeps none, as many as are asked for."""
    return aiohttp.TCPConnector(limit=0, force_close=True, ssl=ssl or True, resolver=Resolver())


# -- One request and its response -------------------------------------------------------------


_HEADERS: Final = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",  # a small gzip can unpack to more than memory holds
    "User-Agent": f"deslaunch/{__version__}",
}


@dataclass(slots=True)
class Route:
    """Where requests go that differ in their bodies alone.

    Attributes:
        url: http or https, without user and password.
        headers: all but Host and Content-Length; those that are always the same need not be
            passed, and none holds a line break.
        proxy: http or https, without credentials, or None.
        proxy_headers: for the proxy that makes a tunnel, or None.
        head: the first bytes of every request, up to the number of the body's bytes.
        origin: what a connection belongs to.
    """

    url: URL
    headers: Mapping[str, str]
    proxy: URL | None = None
    proxy_headers: Mapping[str, str] | None = None
    head: bytes = field(init=False)
    origin: str = field(init=False)

    def __post_init__(self) -> None:
        relayed = self.proxy is not None and self.url.scheme == "http"  # told in the request itself
        told = (self.proxy_headers or {}) if relayed else {}
        self.headers = {**_HEADERS, **self.headers, **told}
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
    """One request on its way, what is known of it, and what came back.

    Attributes:
        request: the body that is sent.
        sent: whether a byte may have left.
        most: bytes of the response's body that are read.
        latest: when the first byte may leave at the latest, by ``clock``.
        clock: seconds of a clock that counts suspension.
        status: of the response; 0 while its headers were not read.
        headers: the response's, case-insensitive; set together with ``status``.
        body: what came of the response's body, as it came.
        flaw: why that is not all of it, or can't be relied on; else None.
        came: the first bytes that came back, head and all, as far as they are known.
        has_left: a byte may have left over some connection.
    """

    request: bytes
    sent: Sent
    most: int
    latest: float = math.inf
    clock: Callable[[], float] = boottime
    status: int = 0
    headers: CIMultiDictProxy[str] = field(init=False)
    body: bytes = b""
    flaw: Exception | None = None
    came: bytes = b""
    has_left: bool = False

    def connect(self) -> None:
        """Note that a connection is looked for, and that no byte has left.

        Raises:
            RuntimeError: one had left before: it must not be sent a second time.
        """
        if self.has_left:
            raise RuntimeError("this request was sent already")

        self.sent.clear()

    def leave(self) -> None:
        """Note that the next call lets the first byte leave.

        Raises:
            TooLate: it may not any more.
        """
        if self.clock() > self.latest:
            self.sent.clear()
            raise TooLate(
                "it could not be sent soon enough after its intent was recorded",
                hint="nothing was started: it may be sent again",
            )

        self.has_left = True
        self.sent.set()

    async def read(self, content: aiohttp.StreamReader) -> None:
        """Read the response's body; what came of it stays where that fails.

        Raises:
            aiohttp.ClientPayloadError: it is cut short, or what is more than ``most`` was cut off.
        """
        self.body = content.read_nowait()

        while not content.at_eof() and len(self.body) <= self.most:
            self.body += await content.readany()

        if len(self.body) > self.most:
            self.body = self.body[: self.most]
            raise aiohttp.ClientPayloadError(f"the response is over {self.most} bytes long")


class Unasked(Exception):
    """More came than the one response that was asked for."""


class PlainWay:
    """Sends by ``ClientSession.post``, each request over a connection of its own.

    A kept connection can't be looked at from outside of aiohttp: a response that nobody asked for
    would be taken for the next one's. What is not seen to be unsent counts as sent.

    Args:
        ssl: TLS settings, or None for the system's.
        connect_timeout: seconds to resolve, connect and shake hands.
    """

    def __init__(self, ssl: SSLContext | None, connect_timeout: float, _: object = None) -> None:
        trace = aiohttp.TraceConfig()
        trace.on_connection_create_start.append(_calling(Exchange.connect))
        trace.on_connection_create_end.append(_calling(lambda exchange: exchange.sent.set()))
        trace.on_request_headers_sent.append(_calling(Exchange.leave))
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
        """Send a request once and take in its response; no redirect is followed.

        Raises:
            TooLate: no byte left.
            aiohttp.ClientError: as ``ClientSession.post`` raises it.
            Exception: where ``exchange.status`` is known, the body is not whole.
        """
        exchange.sent.set()  # as far as is known from here on

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
            exchange.came = exc.message.encode()
            raise

        exchange.status, exchange.headers = response.status, response.headers

        try:
            await exchange.read(response.content)
        finally:
            response.close()  # where it came before the upload ended, aiohttp would wait for ever

    def stop_reusing(self) -> None:
        """Do nothing: no connection is reused."""

    async def aclose(self) -> None:
        """Close all connections."""
        await self._session.close()


def _calling(note: Callable[[Exchange], None]) -> Callable[..., Awaitable[None]]:
    """Return a trace hook that calls ``note`` with the exchange that is traced."""

    async def hook(_: object, context: SimpleNamespace, __: object) -> None:
        note(context.trace_request_ctx)

    return hook


def unpacked(body: bytes, encoding: str) -> bytes:
    """Return a body without its Content-Encoding; as it is where that can't be undone.

    We ask for none, as a small gzip can unpack to more than memory holds; some send it all the
    same. What is cut off is unpacked as far as it goes, at most to 1 MiB.
    """
    windows = {"gzip": (31,), "x-gzip": (31,), "deflate": (15, -15)}

    for window in windows.get(encoding.strip().lower(), ()):
        try:
            return zlib.decompressobj(window).decompress(body, UNPACKED)
        except zlib.error:
            continue

    return body


# -- What aiohttp raises before anything is sent ----------------------------------------------

_Kinds: TypeAlias = type[Exception] | tuple[type[Exception], ...]
_CUT_OFF: Final = SSLEOFError, SSLZeroReturnError
_UNTRUSTED: Final = aiohttp.ClientConnectorCertificateError, aiohttp.ServerFingerprintMismatch
_BAD_URL: Final = aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError

_FAULTS: Final[Sequence[tuple[_Kinds, type[NotSent], str]]] = (
    (_CUT_OFF, NotSent, "the connection broke off during the TLS handshake"),
    (_UNTRUSTED, Misconfigured, "the server's certificate is not trusted"),
    (aiohttp.ClientConnectorSSLError, Misconfigured, "server and client agree on no TLS"),
    (_BAD_URL, Misconfigured, "the URL can't be used"),
    (aiohttp.ClientConnectorDNSError, NotSent, "the host's name can't be looked up"),
    (aiohttp.ClientProxyConnectionError, NotSent, "the proxy can't be connected to"),
    (aiohttp.ClientHttpProxyError, NotSent, "the proxy refused to connect"),
    (TimeoutError, NotSent, "no connection was made in time"),
    (aiohttp.ClientConnectorError, NotSent, "no connection can be made"),
    (Exception, NotSent, "nothing was sent"),
)
"""The first that applies, to an exception or to the system's error within it."""

_LOST: Final[Sequence[tuple[_Kinds, type[NotSent], str]]] = (
    (TimeoutError, NotSent, "no whole response came in time"),
    ((aiohttp.ClientResponseError, HttpProcessingError), NotSent, "what came back is no HTTP"),
    (Exception, NotSent, "the connection broke off before a response came"),
)


def fault_of(exc: Exception, sent: Sent) -> tuple[type[NotSent], str]:
    """Return what it means that no response came.

    Args:
        exc: what aiohttp raised.
        sent: whether a byte may have left.

    Returns:
        What to raise where none had left, and what happened, in words, with what the system or
        the proxy said of it.
    """
    faults, within = _LOST if sent else _FAULTS, getattr(exc, "os_error", None)
    verdict, text = next(
        (v, t) for k, v, t in faults if isinstance(exc, k) or isinstance(within, k)
    )
    why = exc.strerror if isinstance(exc, OSError) else None

    if isinstance(exc, aiohttp.ClientHttpProxyError):
        why = exc.message
    elif within is not None:
        why = str(within) or type(within).__name__

    return verdict, text + (f" ({why})" if why else "")
