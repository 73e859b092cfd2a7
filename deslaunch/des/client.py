"""DES over HTTP: one request, one verdict.

What became of a request is decided from two pieces of evidence, in this order: a response that
was parsed, and whether bytes may have left. An exception's class only words the message, and tells
an unreachable server from a misconfigured one. Nothing here sends a start twice.
"""

from __future__ import annotations

import contextlib
import math
from datetime import UTC, datetime
from decimal import Decimal
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import aiohttp
from aiohttp.http import HttpProcessingError
from yarl import URL

from deslaunch import __version__
from deslaunch.des import http, quick, wire
from deslaunch.des.tokens import OrganisationTokens, StaticToken, TokenKeeper
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
from deslaunch.model import Auto, JobRunParameterValue, Sent

if TYPE_CHECKING:
    import ssl as ssl_module
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from multidict import CIMultiDictProxy

    from deslaunch.des.http import Response, Route
    from deslaunch.des.tokens import Token, TokenSource
    from deslaunch.model import Job, RunStatus, Start, StartedRun

Value = str | int | Decimal | datetime | JobRunParameterValue | Auto | None
"""What :meth:`DesClient.start_job` takes as a parameter's value; ``bool`` is an ``int``."""

LATE: Final = 5.0
"""Seconds beyond the connect timeout within which a start must leave after it was meant."""

_MIB: Final = 1024 * 1024

_HEADERS: Final = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",  # a small gzip can unpack to more than memory holds
    "Content-Type": "application/json",
    "User-Agent": f"deslaunch/{__version__}",
}


class _Call(NamedTuple):
    """One of DES's operations.

    Attributes:
        path: below the base URL.
        lost: what it means that a request was sent and no usable response came.
        limit: bytes of a response that are read.
    """

    path: str
    lost: type[OutcomeUnknown | QueryFailed]
    limit: int = _MIB


_START: Final = _Call(wire.START_JOB, OutcomeUnknown)
_QUERY_JOBS: Final = _Call(wire.QUERY_JOBS, QueryFailed, 16 * _MIB)
_QUERY_RUN_STATUS: Final = _Call(wire.QUERY_RUN_STATUS, QueryFailed)

_VERDICTS: Final[Mapping[int, type[DesError] | None]] = {
    301: Redirected,
    302: Redirected,  # but a start's: see _kind
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
    Redirected: "DES responded with the redirect",
    Throttled: "DES asked to wait with",
}
_HINTS: Final[Mapping[type[DesError], str]] = {
    NotSent: "check the base URL and the way to it; nothing was started",
    Misconfigured: "check the base URL, and which CA signed the certificate there",
    Redirected: "set the base URL to where DES itself responds",
    OutcomeUnknown: "look in DES whether the run exists before you start it again",
}
_HINTS_OF_START: Final[Mapping[type[DesError], str]] = {
    Throttled: "nothing was started: wait as long as retry_after says, then send it again",
    ServerError: "it may be sent again, but a run may exist already: a success may be the second",
    Rejected: "fix what DES names, in the request or in the job: it will refuse the same again",
}
_LOST: Final = (
    (TimeoutError, "no whole response came in time"),
    ((aiohttp.ClientResponseError, HttpProcessingError), "what came back is no HTTP"),
    (Exception, "the connection broke off before a response came"),
)


class DesClient:
    """One organisation's DES, as an async context manager.

    It makes its own connections, since its verdicts rest on how they are set up.

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
        now: the time, with a time zone.
        boottime: the clock of ``Start.meant``: seconds that count suspension.

    Attributes:
        concurrency: as it was passed.
        timeout: as it was passed.
        connect_timeout: as it was passed.
        org_id: the organisation, where the token source knows it, or None.
        on_note: told what a person should know of the connections, one sentence; called in the
            event loop.

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
        boottime: Callable[[], float] = http.boottime,
    ) -> None:
        source = StaticToken(token) if isinstance(token, str) else token
        self.org_id = source.org_id if isinstance(source, OrganisationTokens) else None
        self.concurrency = concurrency
        self.timeout = _seconds("timeout", timeout)
        self.connect_timeout = _seconds("connect_timeout", connect_timeout)
        self.on_note: Callable[[str], None] = lambda _: None
        self._deadlines = http.Deadlines(timeout)
        self._ssl = ssl
        self._now = now
        self._boottime = boottime
        self._tokens = TokenKeeper(source)
        self._allow_http = allow_http
        self._choose_proxy = proxy if callable(proxy) else lambda _: proxy
        self._proxy = http.split_proxy(None if callable(proxy) else proxy)
        self._follows = base_url is None
        self._base: URL | None = None
        self._routes: dict[str, Route] = {}
        self._authorized = 0  # the generation of these routes' token
        self._reuses = True
        self._dated: tuple[str, datetime] | None = None
        self._way: quick.QuickWay | http.PlainWay | None = None

        if base_url is not None:
            self._go_to(base_url)
        elif self.org_id is None:
            raise ConfigurationError(
                "there is no base URL, and the tokens tell none",
                hint="pass the base URL; only OAuthToken finds it by itself",
            )

    def __repr__(self) -> str:
        state = "closed" if self._way is None else "open"
        return f"<DesClient {self.base_url or self.home} {state}>"

    @property
    def base_url(self) -> str | None:
        """The base URL, without a trailing slash; None while no token has told it."""
        return None if self._base is None else str(self._base).rstrip("/")

    @property
    def home(self) -> str:
        """What stays the same of this DES: its base URL, or the organisation that may move."""
        return f"organisation {self.org_id}" if self._follows else self.base_url or ""

    @property
    def clock_offset(self) -> float | None:
        """Seconds that DES's clock is ahead of ours, by the last Date header; None without one.

        A Date has whole seconds, so the offset is true to a second.
        """
        date, now = self._dated or (None, self._now())
        said = wire.http_date(date)
        return None if said is None else (said - now).total_seconds()

    async def locate(self) -> str:
        """Return the base URL; where none is known yet, a token is fetched that tells it.

        Raises:
            CredentialsRefused: there is no token.
            NotSent: there may be one later; ``Misconfigured`` where it tells no usable base URL.
        """
        if self._follows:
            self._authorize(*await self._tokens.current())

        return self.base_url or ""

    async def __aenter__(self) -> Self:
        if self._way is not None:
            raise RuntimeError("this DesClient is open already")

        if quick.IS_KNOWN:
            self._way = quick.QuickWay(
                ssl=self._ssl, connect_timeout=self.connect_timeout, on_doubt=self._doubt
            )
        else:
            self._way = http.PlainWay(ssl=self._ssl, connect_timeout=self.connect_timeout)

        if not self._reuses:
            self._way.stop_reusing()

        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        way, self._way = self._way, None

        if way is not None:
            await way.aclose()

        self._deadlines.close()

    async def start(self, start: Start, sent: Sent | None = None) -> StartedRun:
        """Send one start, once.

        Cancelled, it raises ``CancelledError`` as ever; ``sent`` then tells whether the run may
        exist.

        Args:
            start: what to start; its body is sent as it is. It leaves within the connect timeout
                and 5 s after ``start.meant``, or not at all; 0 sets no limit.
            sent: where to note that bytes may have left.

        Raises:
            NotSent: no byte left; ``TooLate`` where its time was over, ``Misconfigured`` where
                trying again is of no use.
            Throttled: DES asked to wait.
            ServerError: DES responded 5XX.
            Rejected: DES said no; ``Unauthorized`` and ``Redirected`` are kinds of it.
            OutcomeUnknown: it was sent, and no usable response came.
            CredentialsRefused: there is no token; nothing was sent.
        """
        latest = start.meant + self.connect_timeout + LATE if start.meant else math.inf
        return await self._start(start.job_id, start.body, Sent() if sent is None else sent, latest)

    def stop_reusing(self, reason: str) -> None:
        """Let each connection serve one request only from now on, and tell why, once."""
        if self._reuses:
            self._reuses = False
            self.on_note(f"{reason}: the connections to {self.home} are not reused any more")

        if self._way is not None:
            self._way.stop_reusing()

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
                ``JobRunParameterValue`` is sent as it is. A float has lost digits before it comes
                here and is refused: pass a Decimal.

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
        return await self._start(job_id, wire.start_job_body(job_id, encoded), Sent(), math.inf)

    async def query_jobs(self) -> list[Job]:
        """Return the organisation's jobs, with the parameters that each declares.

        A refused token is renewed once; nothing else is asked twice.

        Raises:
            SchemaError: DES's response can't be read.
            QueryFailed: no usable response came.
            NotSent: no byte left.
            Throttled: DES asked to wait.
            ServerError: DES responded 5XX.
            Rejected: DES said no.
            CredentialsRefused: there is no token that DES accepts.
        """
        response = await self._query(_QUERY_JOBS, wire.QUERY_JOBS_BODY)

        try:
            return wire.decode_jobs(response.body, source="DES's response to QueryJobs")
        except SchemaError as exc:
            raise SchemaError(self._tokens.scrub(str(exc)), hint=exc.hint) from exc.__cause__

    async def probe(self) -> None:
        """Return if DES responds to QueryJobs in any way that shows that it is there.

        Whether it responds well does not matter, nor whether the token is good: a start will
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
            QueryFailed: no usable response came.
            NotSent: no byte left.
            Throttled: DES asked to wait.
            ServerError: DES responded 5XX.
            Rejected: DES said no.
            CredentialsRefused: there is no token that DES accepts.
        """
        response = await self._query(_QUERY_RUN_STATUS, wire.run_status_body(job_run_id))
        status = wire.decode_run_status(self._scrubbed(response.body))

        if status is None or status.job_run_id.lower() != job_run_id.lower():
            raise self._error(QueryFailed, response, "DES's response is not this run's status")

        return status

    async def _start(self, job_id: str, body: bytes, sent: Sent, latest: float) -> StartedRun:
        response, generation = await self._exchange(_START, body, sent, latest)

        if response.status != HTTPStatus.OK or response.flaw is not None:
            raise self._verdict(_START, response, generation) from self._cause(response.flaw)

        run = wire.decode_started(response.body)

        if run is None or run.job_id != job_id:
            why = "is no StartJobResponse" if run is None else "names another job"
            raise self._error(OutcomeUnknown, response, f"DES responded 200, and its body {why}")

        return run

    async def _query(self, call: _Call, body: bytes) -> Response:
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

    async def _ask(self, call: _Call, body: bytes) -> Response:
        response, generation = await self._exchange(call, body, Sent(), math.inf)

        if response.status != HTTPStatus.OK or response.flaw is not None:
            raise self._verdict(call, response, generation) from self._cause(response.flaw)

        return response

    async def _exchange(
        self, call: _Call, body: bytes, sent: Sent, latest: float
    ) -> tuple[Response, int]:
        """Send one request; return its response and the number of the token that was sent."""
        if self._way is None:
            raise RuntimeError("this DesClient is not open; use it inside 'async with'")

        token, generation = await self._tokens.current()
        route = self._route(call, token, generation)
        limit = self._deadlines.begin()
        sending = http.Sending(body, sent, limit, call.limit, latest, self._boottime)

        try:
            response = await self._way.post(route, sending)
        except NotSent:
            raise
        except Exception as exc:  # noqa: BLE001  # an unforeseen one leaves a start unknown, too
            raise self._translated(call, exc, sending) from self._cause(exc)
        finally:
            self._deadlines.end(limit)

        if "Date" in response.headers:
            self._dated = response.headers["Date"], self._now()

        if "Content-Encoding" in response.headers:
            body = http.unpacked(response.body, response.headers["Content-Encoding"])
            response = response._replace(body=body)

        return response, generation

    def _route(self, call: _Call, token: Token, generation: int) -> Route:
        """Return the way of a call, made once for each token, which may lead elsewhere."""
        if self._authorized != generation:
            self._authorize(token, generation)

        route = self._routes.get(call.path)

        if route is None:
            assert self._base is not None
            headers = _HEADERS | {"Authorization": f"Bearer {token.text}"}
            route = http.route_to(self._base / call.path, headers, *self._proxy)
            self._routes[call.path] = route

        return route

    def _authorize(self, token: Token, generation: int) -> None:
        """Go where a token is good, unless the base URL was given.

        Raises:
            Misconfigured: the token tells no base URL that is fit to be sent to.
        """
        if self._follows and token.svc is None:
            raise Misconfigured(
                f"the token of organisation {self.org_id} tells no base URL",
                hint="set the target's base URL",
            )

        if self._follows:
            try:
                self._go_to(token.svc or "")
            except ConfigurationError as exc:
                raise Misconfigured(
                    f"the token of organisation {self.org_id} tells where DES is, and {exc}",
                    hint="ask who runs the auth server, or set the target's base URL",
                ) from exc

        self._routes.clear()
        self._authorized = generation

    def _go_to(self, base_url: str) -> None:
        self._base = http.safe_url(base_url, allow_http=self._allow_http)
        self._proxy = http.split_proxy(self._choose_proxy(self.base_url or ""))

    def _doubt(self, why: str, came: bytes) -> None:
        """Take note of a connection that can't be relied on."""
        runs = wire.job_run_ids_in(came)
        text = f"it names the run {' and '.join(runs)}" if runs else self._kept(came)[:200]
        said = f" ({' '.join(text.split())})" if text else ""
        self.stop_reusing(f"{why}{said}")

    def _translated(self, call: _Call, exc: Exception, sending: http.Sending) -> DesError:
        """Return what a failed exchange means."""
        if sending.sent:
            text = next(text for kind, text in _LOST if isinstance(exc, kind))
            return call.lost(
                f"the request was sent to {self.base_url}, and {text}",
                hint=_HINTS.get(call.lost, ""),
                response=self._kept(sending.came),
                job_run_id=_first_run(sending.came),
            )

        fault = http.fault_of(exc)
        text = f"{self.base_url}: {fault.text}{http.detail_of(exc)}"
        return fault.verdict(text, hint=_HINTS[fault.verdict])

    def _cause(self, exc: BaseException | None) -> BaseException | None:
        """Return ``exc`` to be chained, or None where its text quotes a token."""
        link = exc

        while link is not None:
            if self._tokens.scrub(str(link)) != str(link):
                return None

            link = link.__cause__ or link.__context__

        return exc

    def _verdict(self, call: _Call, response: Response, generation: int) -> DesError:
        """Return what a response means that is no whole one with status 200."""
        if isinstance(response.flaw, http.Unasked):
            return self._error(call.lost, response, f"after {response.status} DES responded again")

        if response.status == HTTPStatus.UNAUTHORIZED:
            kept = self._kept(response.body)
            text = _sentence("DES refused the token (401)", kept)
            return Unauthorized(text, generation=generation, response=kept)

        kind = self._kind(call, response) or call.lost
        text = f"{_TEXTS.get(kind, 'DES responded')} {response.status}"

        if kind is Redirected and (origin := _origin_of(response)):
            text += f" to {origin}"

        if kind is call.lost and response.flaw is not None:
            text += ", and the rest of its response was cut off"

        error = self._error(kind, response, text)

        if call is _START:
            error.advise(_HINTS_OF_START.get(kind, ""))

        return error

    def _kind(self, call: _Call, response: Response) -> type[DesError] | None:
        """Return the verdict on a status, or None where it leaves the outcome unknown."""
        status, headers = response.status, response.headers

        if status == HTTPStatus.SERVICE_UNAVAILABLE and "Retry-After" in headers:
            return Throttled

        if status == HTTPStatus.FOUND and call is _START and not self._is_elsewhere(call, headers):
            return None  # the common way to show a page after the work was done

        return _VERDICTS.get(status, _VERDICTS_BY_HUNDRED.get(status // 100))

    def _is_elsewhere(self, call: _Call, headers: CIMultiDictProxy[str]) -> bool:
        """Return True if a redirect leads to the same path on another scheme or host."""
        assert self._base is not None
        url = self._base / call.path

        try:
            there = url.join(URL(headers.get("Location", "")))
        except ValueError:
            return False

        return there.path_qs == url.path_qs and there.origin() != url.origin()

    def _error(self, kind: type[DesError], response: Response, text: str) -> DesError:
        kept = self._kept(response.body)
        return kind(
            _sentence(self._tokens.scrub(text), kept),
            hint=_HINTS.get(kind, ""),
            status=response.status,
            response=kept,
            retry_after=wire.retry_after(
                response.headers.getall("Retry-After", ()),
                now=wire.http_date(response.headers.get("Date")) or self._now(),
            ),
            job_run_id=_first_run(response.body),
        )

    def _kept(self, body: bytes) -> str:
        """Return what is kept of a response; scrubbed first, so that no half token stays."""
        return wire.text_of(self._scrubbed(body[:_MIB]))[: wire.KEPT]

    def _scrubbed(self, body: bytes) -> bytes:
        """Return a response without tokens; Latin-1 makes a text of any bytes, and back."""
        return self._tokens.scrub(body.decode("latin-1")).encode("latin-1")


def _first_run(body: bytes) -> str | None:
    return next(iter(wire.job_run_ids_in(body)), None)


def _sentence(text: str, response: str) -> str:
    said = wire.error_text(response)
    return f"{text}: {said}" if said else text


def _origin_of(response: Response) -> str:
    """Return where a redirect leads: the origin alone, as the rest may hold secrets."""
    try:
        return str(URL(response.headers.get("Location", "")).origin())
    except ValueError:
        return ""


def _encoded(name: str, value: Value) -> dict[str, Any]:
    """Return the JobRunParameterValue of a Python value."""
    match value:
        case None | Auto() | str():
            return wire.parameter_value(None, value)
        case JobRunParameterValue(number, text):
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
