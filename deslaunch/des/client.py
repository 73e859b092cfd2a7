"""DES over HTTP: one request, one verdict.

What became of a request is decided from two pieces of evidence, in this order: a reply that
was parsed, and whether bytes may have left. They may from the moment the request is handed to
aiohttp, except while its connector is seen to look for a connection: so a version of aiohttp
that hides its connector from us makes outcomes unknown, and never makes a start seem unsent. An
exception's class only words the message, and tells an unreachable server from a misconfigured
one. Nothing here sends a start twice.
"""

from __future__ import annotations

import base64
import contextlib
import math
import ssl as ssl_module
from datetime import UTC, datetime
from decimal import Decimal
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import aiohttp
from aiohttp.http import HttpProcessingError
from multidict import CIMultiDict
from yarl import URL

from deslaunch import wire
from deslaunch._version import VERSION
from deslaunch.deadlines import Deadlines
from deslaunch.errors import (
    ConfigurationError,
    CredentialsRefused,
    DesError,
    Misconfigured,
    NotSent,
    OutcomeUnknown,
    QueryFailed,
    Redirected,
    Rejected,
    SchemaError,
    ServerError,
    Throttled,
    Unauthorized,
)
from deslaunch.model import Auto, Evidence, TypedValue
from deslaunch.tokens import OrganisationTokens, StaticToken, TokenKeeper
from deslaunch.transport import EVIDENCE, Connector, Route
from deslaunch.urls import parsed, safe_url

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from deslaunch.model import Job, RunStatus, StartedRun, StartRequest
    from deslaunch.tokens import Token, TokenSource

Value = str | int | Decimal | datetime | TypedValue | Auto | None
"""What :meth:`DesClient.start_job` takes as a parameter's value; ``bool`` is an ``int``."""

KEEPALIVE: Final = 2.0
"""Seconds that an idle connection is kept: shorter than any server's own limit, because a
start on a connection that the server closed meanwhile ends unknown."""

_MIB: Final = 1024 * 1024


class _Call(NamedTuple):
    """One of DES's operations.

    Attributes:
        path: below the base URL.
        lost: what it means that a request was sent and no usable answer came.
        limit: bytes of an answer that are read.
    """

    path: str
    lost: type[OutcomeUnknown | QueryFailed]
    limit: int = _MIB


_START: Final = _Call(wire.START_JOB, OutcomeUnknown)
_QUERY_JOBS: Final = _Call(wire.QUERY_JOBS, QueryFailed, 16 * _MIB)
_QUERY_RUN_STATUS: Final = _Call(wire.QUERY_RUN_STATUS, QueryFailed)

_VERDICTS: Final[Mapping[int, type[DesError] | None]] = {
    301: Redirected,
    302: Redirected,
    307: Redirected,
    308: Redirected,
    408: None,  # the server, or a gateway at 504 and 524, gave up waiting: nobody knows for what
    425: Throttled,
    429: Throttled,
    504: None,
    524: None,
}
_VERDICTS_BY_HUNDRED: Final[Mapping[int, type[DesError]]] = {4: Rejected, 5: ServerError}

_TEXTS: Final[Mapping[type[DesError], str]] = {
    Redirected: "DES answered with the redirect",
    Throttled: "DES asked to wait with",
}
_HINTS: Final[Mapping[type[DesError], str]] = {
    NotSent: "check the base URL and the way to it; nothing was started",
    Misconfigured: "check the base URL, and which CA signed the certificate there",
    Redirected: "set the base URL to where DES itself answers",
    OutcomeUnknown: "look in DES whether the run exists before you start it again",
}
_HINTS_OF_START: Final[Mapping[type[DesError], str]] = {
    Throttled: "nothing was started: wait as long as retry_after says, then send it again",
    ServerError: "it may be sent again, but a run may exist already: a success may be the second",
    Rejected: "mend what DES names, in the request or in the job: it will refuse the same again",
}


class _Reply(NamedTuple):
    """An answer whose status line and headers were read.

    Attributes:
        status: HTTP status.
        headers: case-insensitive.
        body: what came of the body.
        flaw: why that is not all of it, or None.
        generation: number of the token that was sent.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    flaw: Exception | None
    generation: int


class _Fault(NamedTuple):
    """One line of the table that translates what aiohttp raises before anything is sent.

    Attributes:
        kind: the exception's class, or that of the operating system's error within.
        verdict: what to raise.
        text: what happened.
    """

    kind: type[Exception] | tuple[type[Exception], ...]
    verdict: type[NotSent]
    text: str


_UNSENT: Final = (
    _Fault(
        (ssl_module.SSLEOFError, ssl_module.SSLZeroReturnError),
        NotSent,
        "the connection broke off during the TLS handshake",
    ),
    _Fault(
        (aiohttp.ClientConnectorCertificateError, aiohttp.ServerFingerprintMismatch),
        Misconfigured,
        "the server's certificate is not trusted",
    ),
    _Fault(
        aiohttp.ClientConnectorSSLError,
        Misconfigured,
        "the server and this client agree on no TLS connection",
    ),
    _Fault(
        (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError),
        Misconfigured,
        "the URL can't be used",
    ),
    _Fault(aiohttp.ClientConnectorDNSError, NotSent, "the host's name can't be looked up"),
    _Fault(aiohttp.ClientProxyConnectionError, NotSent, "the proxy can't be connected to"),
    _Fault(aiohttp.ClientHttpProxyError, NotSent, "the proxy refused to connect"),
    _Fault(TimeoutError, NotSent, "no connection was made in time"),
    _Fault(aiohttp.ClientConnectorError, NotSent, "no connection can be made"),
    _Fault(Exception, NotSent, "nothing was sent"),
)

_BEFORE_CONNECTING: Final = (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError)
"""What aiohttp raises of a request before it asks its connector."""

_SENT: Final = (
    (TimeoutError, "no whole answer came in time"),
    ((aiohttp.ClientResponseError, HttpProcessingError), "what came back is no HTTP"),
    (Exception, "the connection broke off before an answer came"),
)


class DesClient:
    """One organisation's DES, as an async context manager.

    It makes its own HTTP session, since its verdicts rest on how that is set up.

    Args:
        base_url: ``https://…``, with a path where DES lives below one. ``http://`` only for
            loopback addresses. None where each token tells it: requests then go where the token
            in use says, and move when it does.
        token: where tokens come from, or the token itself.
        timeout: seconds for one request in all, more than 0.
        connect_timeout: seconds to resolve, connect and shake hands, more than 0.
        allow_http: also allow ``http://`` for other hosts, where anyone on the way can read
            the token.
        ssl: TLS settings, a private CA's for example; default: the system's CAs.
        proxy: ``http://[user:password@]host:port``, or a function that gives it for a base URL.
            The environment's proxies are not used.
        concurrency: starts in flight at most, at least 1; None for as many as a launch has.
        now: the time, with a time zone, from which a Retry-After date is counted where the
            answer has no Date of its own.

    Raises:
        ConfigurationError: an argument is out of its range; the message shows no password.
        CredentialsRefused: ``token`` is a text that can't be a token.
    """

    def __init__(
        self,
        base_url: str | None,
        *,
        token: TokenSource | str,
        timeout: float = 60,
        connect_timeout: float = 10,
        allow_http: bool = False,
        ssl: ssl_module.SSLContext | None = None,
        proxy: str | Callable[[str], str | None] | None = None,
        concurrency: int | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        source = StaticToken(token) if isinstance(token, str) else token
        self.org_id = source.org_id if isinstance(source, OrganisationTokens) else None
        self.concurrency = concurrency
        self._timeout = _seconds("timeout", timeout)
        self._connect_timeout = _seconds("connect_timeout", connect_timeout)
        self._deadlines = Deadlines(self._timeout)
        self._ssl = ssl
        self._now = now
        self._tokens = TokenKeeper(source)
        self._allow_http = allow_http
        self._choose_proxy = proxy if callable(proxy) else lambda _: proxy
        self._proxy, self._proxy_headers = split_proxy(None if callable(proxy) else proxy)
        self._follows = base_url is None
        self._base: URL | None = None
        self._routes: dict[str, Route] = {}
        self._authorized = 0  # the generation of these routes' token
        self._session: aiohttp.ClientSession | None = None

        if base_url is not None:
            self._go_to(base_url)
        elif self.org_id is None:
            raise ConfigurationError(
                "there is no base URL, and the tokens tell none",
                hint="pass the base URL; only OAuthToken finds it by itself",
            )

    def __repr__(self) -> str:
        state = "closed" if self._session is None else "open"
        return f"<DesClient {self.base_url or self.home} {state}>"

    @property
    def base_url(self) -> str | None:
        """The base URL, without a trailing slash; None while no token has told it."""
        return None if self._base is None else str(self._base).rstrip("/")

    @property
    def home(self) -> str:
        """What stays the same of this DES: its base URL, or the organisation that may move."""
        return f"organisation {self.org_id}" if self._follows else self.base_url or ""

    async def locate(self) -> str:
        """Return the base URL; where none is known yet, a token is fetched that tells it.

        Raises:
            CredentialsRefused: there is no token.
            NotSent: there may be one later; ``Misconfigured`` where it tells no usable base URL.
        """
        if self._follows:
            self._authorize(*await self._tokens.current())

        return self.base_url or ""

    @property
    def timeout(self) -> float:
        """Seconds that one request gets in all."""
        return self._timeout

    async def __aenter__(self) -> Self:
        if self._session is not None:
            raise RuntimeError("this DesClient is open already")

        self._session = aiohttp.ClientSession(
            connector=Connector(limit=0, keepalive_timeout=KEEPALIVE, ssl=self._ssl or True),
            headers=self._fixed_headers(),
            timeout=aiohttp.ClientTimeout(total=None, connect=self._connect_timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        session, self._session = self._session, None

        if session is not None:
            await session.close()

        self._routes.clear()
        self._deadlines.close()

    async def start(self, request: StartRequest, evidence: Evidence | None = None) -> StartedRun:
        """Send one start, once.

        Cancelled, it raises ``CancelledError`` as ever; ``evidence`` then tells whether the
        run may exist.

        Args:
            request: what to start; its body is sent as it is.
            evidence: where to note that bytes may have left.

        Raises:
            NotSent: no byte left; ``Misconfigured`` where trying again is of no use.
            Throttled: DES asked to wait.
            ServerError: DES answered 5XX.
            Rejected: DES said no; ``Unauthorized`` and ``Redirected`` are kinds of it.
            OutcomeUnknown: it was sent, and no usable answer came.
            CredentialsRefused: there is no token; nothing was sent.
        """
        return await self._start(request.job_id, request.body, evidence or Evidence())

    async def renew(self, refused: Unauthorized) -> None:
        """Replace the token that DES refused; all who ask at the same time share one renewal.

        Raises:
            CredentialsRefused: there is no newer token.
            NotSent: the token's source could not be reached; the next request asks it again.
        """
        await self._tokens.renew(refused.generation)

    async def start_job(self, job_id: str, parameters: Mapping[str, Value]) -> StartedRun:
        """Start one run of a job: one attempt, no ledger, no retry.

        Args:
            job_id: GUID of the job.
            parameters: name to value; ``None`` is null, ``AUTO`` the auto value, and a
                ``TypedValue`` is sent as it is. A float has lost digits before it comes here
                and is refused: pass a Decimal.

        Raises:
            TypeError: a value is a float, or of another type that has no encoding.
            ValueError: ``job_id`` is no GUID, or a Decimal is no finite number.
            DesError: as for :meth:`start`; after ``OutcomeUnknown`` and ``ServerError`` the
                run may exist.
            CredentialsRefused: there is no token; nothing was sent.
        """
        if not wire.is_guid(job_id):
            raise ValueError(f"a job id is a GUID, not {job_id!r}")

        encoded = {name: _encoded(name, value) for name, value in parameters.items()}
        job_id = job_id.lower()
        return await self._start(job_id, wire.start_job_body(job_id, encoded), Evidence())

    async def query_jobs(self) -> list[Job]:
        """Return the organisation's jobs, with the parameters that each declares.

        A refused token is renewed once; nothing else is asked twice.

        Raises:
            SchemaError: DES's answer can't be read.
            QueryFailed: no usable answer came.
            NotSent: no byte left.
            Throttled: DES asked to wait.
            ServerError: DES answered 5XX.
            Rejected: DES said no.
            CredentialsRefused: there is no token that DES accepts.
        """
        reply = await self._query(_QUERY_JOBS, wire.QUERY_JOBS_BODY)

        try:
            return wire.decode_jobs(reply.body, source="DES's answer to QueryJobs")
        except SchemaError as exc:
            raise SchemaError(self._tokens.scrub(str(exc)), hint=exc.hint) from exc.__cause__

    async def probe(self) -> None:
        """Return if DES answers QueryJobs in any way that shows that it is there.

        Whether it answers well does not matter, nor whether the token is good: a start will
        tell, and QueryJobs may be the one thing of DES that does not work.

        Raises:
            NotSent: no byte left.
            Throttled: DES asks to wait.
        """
        with contextlib.suppress(Rejected, ServerError, QueryFailed, CredentialsRefused):
            await self._ask(_QUERY_JOBS, wire.QUERY_JOBS_BODY)

    async def query_run_status(self, job_run_id: str) -> RunStatus:
        """Return how one run is getting on.

        A refused token is renewed once; nothing else is asked twice.

        Raises:
            QueryFailed: no usable answer came.
            NotSent: no byte left.
            Throttled: DES asked to wait.
            ServerError: DES answered 5XX.
            Rejected: DES said no.
            CredentialsRefused: there is no token that DES accepts.
        """
        reply = await self._query(_QUERY_RUN_STATUS, wire.run_status_body(job_run_id))
        body = self._tokens.scrub(reply.body.decode("utf-8", "replace"))
        status = wire.decode_run_status(body.encode())

        if status is None or status.job_run_id.lower() != job_run_id.lower():
            raise self._error(QueryFailed, reply, "DES's answer is not this run's status")

        return status

    async def _start(self, job_id: str, body: bytes, evidence: Evidence) -> StartedRun:
        reply = await self._exchange(_START, body, evidence)

        if reply.status != HTTPStatus.OK or reply.flaw is not None:
            raise self._verdict(_START, reply) from self._cause(reply.flaw)

        run = wire.decode_started(reply.body)

        if run is None or run.job_id != job_id:
            why = "is no StartJobResponse" if run is None else "names another job"
            raise self._error(OutcomeUnknown, reply, f"DES answered 200, and its answer {why}")

        return run

    async def _query(self, call: _Call, body: bytes) -> _Reply:
        try:
            return await self._ask(call, body)
        except Unauthorized as exc:
            refused = exc

        await self.renew(refused)

        try:
            return await self._ask(call, body)
        except Unauthorized as exc:
            raise CredentialsRefused(
                "DES refused the token, and then the renewed one",
                hint="check that the token is for this organisation and base URL",
            ) from exc

    async def _ask(self, call: _Call, body: bytes) -> _Reply:
        reply = await self._exchange(call, body, Evidence())

        if reply.status != HTTPStatus.OK or reply.flaw is not None:
            raise self._verdict(call, reply) from self._cause(reply.flaw)

        return reply

    async def _exchange(self, call: _Call, body: bytes, evidence: Evidence) -> _Reply:
        """Send one request and return the reply, once its status and headers were read."""
        session = self._opened()
        token, generation = await self._tokens.current()
        self._authorize(token, generation)
        route = self._route(session, call, token)
        limit = self._deadlines.begin()
        EVIDENCE.set(evidence)
        evidence.sent = True  # as far as is known from here on

        try:
            answer = await route.post(body, limit=limit, most=call.limit)
        except Exception as exc:  # noqa: BLE001  # an unforeseen one leaves a start unknown, too
            sent = evidence.sent = evidence.sent and not isinstance(exc, _BEFORE_CONNECTING)
            raise self._translated(call, exc, sent=sent) from self._cause(exc)
        finally:
            self._deadlines.end(limit)

        return _Reply(*answer, generation)

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("this DesClient is not open; use it inside 'async with'")

        return self._session

    def _authorize(self, token: Token, generation: int) -> None:
        """Let a new token, which may lead elsewhere, make new routes."""
        if self._authorized != generation:
            self._follow(token)
            self._routes.clear()
            self._authorized = generation

    def _route(self, session: aiohttp.ClientSession, call: _Call, token: Token) -> Route:
        """Return the way of a call, made once for each token."""
        route = self._routes.get(call.path)

        if route is None:
            route = self._routes[call.path] = self._new_route(session, call, token)

        return route

    def _new_route(self, session: aiohttp.ClientSession, call: _Call, token: Token) -> Route:
        assert self._base is not None
        headers = CIMultiDict(Authorization=f"Bearer {token.text}")

        if self._proxy_headers is not None and self._base.scheme == "http":
            headers.update(self._proxy_headers)

        return Route(
            session,
            self._base / call.path,
            headers,
            proxy=self._proxy,
            proxy_headers=self._proxy_headers,
        )

    def _follow(self, token: Token) -> None:
        """Go where a token is good, unless the base URL was given.

        Raises:
            Misconfigured: the token tells no base URL that is fit to be sent to.
        """
        if not self._follows:
            return

        if token.svc is None:
            raise Misconfigured(
                f"the token of organisation {self.org_id} tells no base URL",
                hint="set the target's base URL",
            )

        try:
            self._go_to(token.svc)
        except ConfigurationError as exc:
            raise Misconfigured(
                f"the token of organisation {self.org_id} tells where DES is, and {exc}",
                hint="ask who runs the auth server, or set the target's base URL",
            ) from exc

    def _go_to(self, base_url: str) -> None:
        self._base = safe_url(base_url, allow_http=self._allow_http)
        self._proxy, self._proxy_headers = split_proxy(self._choose_proxy(self.base_url or ""))

    def _fixed_headers(self) -> dict[str, str]:
        return {
            "Accept": "application/json",
            "Accept-Encoding": "identity",  # a small gzip can unpack to more than memory holds
            "Content-Type": "application/json",
            "User-Agent": f"deslaunch/{VERSION}",
        }

    def _translated(self, call: _Call, exc: Exception, *, sent: bool) -> DesError:
        """Return what a failed exchange means."""
        if sent:
            text = next(text for kind, text in _SENT if isinstance(exc, kind))
            text = f"the request was sent to {self.base_url}, and {text}"
            return call.lost(text, hint=_HINTS.get(call.lost, ""))

        fault = fault_of(exc)
        text = f"{self.base_url}: {fault.text}{detail_of(exc)}"
        return fault.verdict(text, hint=_HINTS[fault.verdict])

    def _cause(self, exc: BaseException | None) -> BaseException | None:
        """Return ``exc`` to be chained, or None where its text quotes a token."""
        link = exc

        while link is not None:
            if self._tokens.scrub(str(link)) != str(link):
                return None

            link = link.__cause__ or link.__context__

        return exc

    def _verdict(self, call: _Call, reply: _Reply) -> DesError:
        """Return what a reply means that is no whole answer with status 200."""
        if reply.status == HTTPStatus.UNAUTHORIZED:
            return self._unauthorized(reply)

        kind = _kind(reply) or call.lost
        text = f"{_TEXTS.get(kind, 'DES answered')} {reply.status}"

        if kind is Redirected:
            text += _where(reply)

        if kind is call.lost and reply.flaw is not None:
            text += ", and its answer was cut off"

        error = self._error(kind, reply, text)

        if call is _START:
            error.advise(_HINTS_OF_START.get(kind, ""))

        return error

    def _unauthorized(self, reply: _Reply) -> Unauthorized:
        answer = self._kept(reply)
        text = _sentence("DES refused the token (401)", answer)
        return Unauthorized(text, generation=reply.generation, answer=answer)

    def _error(self, kind: type[DesError], reply: _Reply, text: str) -> DesError:
        answer = self._kept(reply)
        return kind(
            _sentence(self._tokens.scrub(text), answer),
            hint=_HINTS.get(kind, ""),
            status=reply.status,
            answer=answer,
            retry_after=wire.retry_after(
                reply.headers.get("Retry-After"),
                now=wire.http_date(reply.headers.get("Date")) or self._now(),
            ),
            job_run_id=wire.job_run_id_in(reply.body),
        )

    def _kept(self, reply: _Reply) -> str:
        """Return what is kept of an answer; scrubbed first, so that no half token stays."""
        text = reply.body[:_MIB].decode("utf-8", "replace")
        return self._tokens.scrub(text)[: wire.ANSWER_LIMIT]


def fault_of(exc: Exception) -> _Fault:
    """Return what it means that aiohttp raised ``exc`` before anything was sent."""
    within = getattr(exc, "os_error", None)
    return next(f for f in _UNSENT if isinstance(exc, f.kind) or isinstance(within, f.kind))


def detail_of(exc: Exception) -> str:
    """Return what the system, or the proxy, said of a connection that was not made."""
    if isinstance(exc, aiohttp.ClientHttpProxyError):
        return f" ({exc.message})"

    within = getattr(exc, "os_error", None)
    return f" ({str(within) or type(within).__name__})" if within is not None else ""


def _sentence(text: str, answer: str) -> str:
    said = wire.error_text(answer)
    return f"{text}: {said}" if said else text


def _where(reply: _Reply) -> str:
    """Return where a redirect leads: the origin alone, as the rest may hold secrets."""
    try:
        return f" to {URL(reply.headers.get('Location', '')).origin()}"
    except ValueError:
        return ""


def _kind(reply: _Reply) -> type[DesError] | None:
    """Return the verdict on a reply's status, or None where it leaves the outcome unknown."""
    if reply.status == HTTPStatus.SERVICE_UNAVAILABLE and "Retry-After" in reply.headers:
        return Throttled

    return _VERDICTS.get(reply.status, _VERDICTS_BY_HUNDRED.get(reply.status // 100))


def _encoded(name: str, value: Value) -> dict[str, Any]:
    """Return the JobRunParameterValue of a Python value."""
    match value:
        case None | Auto() | str():
            return wire.parameter_value(None, value)
        case TypedValue(number, text):
            return wire.parameter_value(number, text)
        case bool():
            return wire.parameter_value(None, "true" if value else "false")
        case int():
            return wire.parameter_value(wire.INTEGER, f"{value:d}")
        case Decimal() if value.is_finite():
            return wire.parameter_value(wire.DECIMAL, f"{value:f}")
        case Decimal():
            raise ValueError(f"{name}: {value} is no finite number")
        case datetime():
            return wire.parameter_value(wire.DATETIME, _iso(value))
        case _:
            raise TypeError(f"{name}: a value can't be of type {type(value).__name__}")


def _iso(value: datetime) -> str:
    text = value.isoformat()
    return f"{text[:-6]}Z" if text.endswith("+00:00") else text


def _seconds(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ConfigurationError(
            f"{name} must be more than 0 seconds, not {value}", hint="write 60, for example"
        )

    return value


def split_proxy(text: str | None) -> tuple[URL | None, dict[str, str] | None]:
    """Return a proxy's URL without credentials, and the header that carries them.

    aiohttp would take both in the URL, and quote it in its errors.

    Raises:
        ConfigurationError: it can't be used; the message shows nothing of it.
    """
    if text is None:
        return None, None

    url = parsed(text)

    if url is None or url.scheme not in {"http", "https"} or not url.host:
        raise ConfigurationError(
            "the proxy's URL can't be used", hint="write http://host:port or http://user:password@…"
        )

    if url.user is None:
        return url, None

    pair = f"{url.user}:{url.password or ''}".encode()
    header = f"Basic {base64.b64encode(pair).decode()}"
    return url.with_user(None), {"Proxy-Authorization": header}
