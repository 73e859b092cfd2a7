"""DES over HTTP: one request, one verdict.

The verdict on a request follows from two facts, in this order: the parsed response, and whether
bytes may have left. The class of an aiohttp exception only words the message, and tells an
unreachable server from a wrong configuration. No start is ever sent twice here.
"""

import math
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from http import HTTPStatus
from ssl import SSLContext
from typing import Final, Self

from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from deslaunch import errors
from deslaunch.des import http, quick, wire
from deslaunch.des.http import Exchange, Route
from deslaunch.des.tokens import Token, TokenKeeper, TokenSource
from deslaunch.model import DEFAULT_TARGET, Job, RunStatus, Sent, Start, StartedRun, is_guid

LATE: Final = 5.0
"""Seconds that a start may be late, in addition to the connect timeout."""

_LIMIT: Final = 1024 * 1024
_LIMIT_OF_JOBS: Final = 16 * _LIMIT
"""Bytes of a response that are read: a response to QueryJobs is larger than others."""

_NO_HEADERS: Final = CIMultiDictProxy[str](CIMultiDict())

_VERDICTS: Final[Mapping[int, type[errors.DesError] | None]] = {
    **dict.fromkeys((301, 302, 307, 308), errors.Redirected),  # 302 to a start: see _verdict
    401: errors.Unauthorized,
    **dict.fromkeys((425, 429), errors.Throttled),
    **dict.fromkeys((408, 504, 524), None),  # a server or gateway timed out: the run may exist
}
_VERDICTS_BY_HUNDRED: Final = {4: errors.Rejected, 5: errors.ServerError}

_TEXTS: Final[Mapping[type[errors.DesError], str]] = {
    errors.Unauthorized: "DES refused the token with",
    errors.Redirected: "DES responded with the redirect",
    errors.Throttled: "DES asked to wait with",
}
_HINTS: Final[Mapping[type[errors.DesError], str]] = {
    errors.NotSent: "check the base URL and the network; nothing was started",
    errors.Misconfigured: "check the base URL, and that the CA of its certificate is trusted",
    errors.Redirected: "set the base URL to the address of DES itself",
    errors.OutcomeUnknown: "look in DES whether the run exists before you start it again",
}
_HINTS_OF_START: Final[Mapping[type[errors.DesError], str]] = {
    errors.Throttled: "wait retry_after seconds and send it again; nothing was started",
    errors.ServerError: "look in DES whether the run exists; sending it again may start a second",
    errors.Rejected: "fix what the response names; DES refuses the same request again",
    errors.Unauthorized: "get a new token and send it again; nothing was started",
}


class DesClient:
    """A client for the DES of one organisation; use it with ``async with``.

    Each method sends its request once and raises a :class:`~deslaunch.errors.DesError` that says
    whether it is safe to send it again. Only the queries repeat a request, once, with a renewed
    token after a 401. No redirect is followed.

    A client belongs to one event loop. Any number of its methods may run at the same time. It makes
    its own connections, because a verdict depends on how they are set up.

    Args:
        base_url: ``https://…``, including a path if DES has one. ``http://`` only for loopback
            addresses. None to use the base URL that each token names (``svc``, see
            :class:`~deslaunch.OAuthToken`); it changes when a new token names another.
        token: the token, or a source of tokens.
        timeout: seconds for one request from connecting to the end of its response, more than 0.
        connect_timeout: seconds for DNS, TCP and TLS together, more than 0.
        allow_http: also allow ``http://`` for other hosts. Anyone on the network can then read
            the token.
        ssl: TLS settings, for example with a private CA; None for the system's CAs.
        proxy: ``http://[user:password@]host:port``, or a function that returns it for a base URL.
            The proxy variables of the environment are ignored.
        concurrency: the most starts of a launch in flight to this DES, at least 1; None for no
            limit of its own. Direct calls are not limited.
        now: returns the time, with a time zone. For tests.
        boottime: the clock of ``Start.meant``, in seconds; it counts suspension. For tests.

    Attributes:
        concurrency: as passed.
        timeout: as passed.
        connect_timeout: as passed.
        base_url: the base URL in use, without a trailing slash; None until a token has named it.
        home: identifies this DES even if its base URL changes: the ``base_url`` that was passed,
            or else ``organisation ID``.
        org_id: the organisation of the token source, or None if it names none.
        on_note: called in the event loop with one sentence about unreliable connections.

    Raises:
        ConfigurationError: an argument is out of range, or a URL can't be used. The message shows
            no password.
        CredentialsRefused: ``token`` is a string that can't be a token.
    """

    def __init__(
        self,
        base_url: str | None,
        *,
        token: TokenSource | str,
        timeout: float = 60,
        connect_timeout: float = 10,
        allow_http: bool = False,
        ssl: SSLContext | None = None,
        proxy: str | Callable[[str], str | None] | None = None,
        concurrency: int | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        boottime: Callable[[], float] = http.boottime,
    ) -> None:
        source = Token(token) if isinstance(token, str) else token
        self.org_id: str | None = getattr(source, "org_id", None)
        self.concurrency = concurrency
        self.timeout = timeout
        self.connect_timeout = connect_timeout
        self.on_note: Callable[[str], None] = lambda _: None
        self._ssl = ssl
        self._now = now
        self._boottime = boottime
        self._tokens = TokenKeeper(source)
        self._allow_http = allow_http
        self._proxy_for = proxy if callable(proxy) else lambda _: proxy
        self._proxy = http.split_proxy(None if callable(proxy) else proxy)
        self._uses_svc = base_url is None
        self.base_url: str | None = None
        self.home = f"organisation {self.org_id}"
        self._routes: dict[str, Route] = {}
        self._authorized = 0  # generation of the token in these routes
        self._reuses = True
        self._last_date: tuple[str | None, datetime] = None, now()  # header, when received
        self._was_reached = False
        self._sender: quick.QuickSender | http.PlainSender | None = None

        for name, value in (("timeout", timeout), ("connect_timeout", connect_timeout)):
            if not (math.isfinite(value) and value > 0):
                raise errors.ConfigurationError(
                    f"{name}: expected more than 0 seconds, got {value}",
                    hint="pass a number of seconds, for example 60",
                )

        if base_url is not None:
            self.home = self._use(base_url)
        elif self.org_id is None:
            raise errors.ConfigurationError(
                "there is no base URL, and the token source names none",
                hint="pass the base URL, or use an OAuthToken, whose tokens name it",
            )

    def __repr__(self) -> str:
        state = "closed" if self._sender is None else "open"
        return f"<DesClient {self.base_url or self.home} {state}>"

    @property
    def clock_offset(self) -> float | None:
        """Seconds that DES's clock is ahead of ours, by the last Date header; None without one.

        The header has whole seconds, so the offset is exact to a second.
        """
        header, received = self._last_date
        date = wire.http_date(header)
        return None if date is None else (date - received).total_seconds()

    async def locate(self) -> str:
        """Return the base URL, after fetching a token if only a token can name it.

        Raises:
            CredentialsRefused: the token source has no token.
            NotSent: the token source could not be reached; ``Misconfigured`` if the token names
                no usable base URL.
        """
        if self._uses_svc:
            self._authorize(*await self._tokens.current())

        return self.base_url or ""

    async def __aenter__(self) -> Self:
        if self._sender is not None:
            raise RuntimeError("this DesClient is open already")

        self._deadlines = http.Deadlines(self.timeout)
        sender = quick.QuickSender if quick.IS_KNOWN else http.PlainSender
        self._sender = sender(self._ssl, self.connect_timeout, self._distrust)

        if not self._reuses:
            self._sender.stop_reusing()

        return self

    async def __aexit__(self, *exc_info: object) -> None:
        sender, self._sender = self._sender, None

        if sender is not None:
            await sender.aclose()

    async def start(self, start: Start, sent: Sent | None = None) -> StartedRun:
        """Send one start, once.

        If it is cancelled, ``sent`` says whether the run may exist.

        Args:
            start: what to send; its body is sent unchanged. It leaves within the connect timeout
                and 5 s after ``start.meant``, or not at all; 0 for no limit.
            sent: is set before the first byte may leave.

        Raises:
            NotSent: no byte left; ``TooLate`` if the time for it was over, ``Misconfigured`` if
                trying again is no use.
            Throttled: DES asked to wait. Nothing was started.
            ServerError: DES responded 5XX. The run may exist.
            Rejected: DES refused the request; ``Unauthorized`` after 401, ``Redirected`` after
                a redirect. Nothing was started.
            OutcomeUnknown: it was sent, and there was no usable response. The run may exist.
            CredentialsRefused: the token source has no token. Nothing was sent.
        """
        latest = start.meant + self.connect_timeout + LATE if start.meant else math.inf
        exchange = await self._post(
            wire.START_JOB, start.body, Sent() if sent is None else sent, latest
        )
        run = wire.decode_started(exchange.body)

        if run is None or run.job_id != start.job_id:
            why = "is no StartJobResponse" if run is None else "names another job"
            raise self._error(
                errors.OutcomeUnknown, exchange, f"DES responded 200, but its body {why}"
            )

        return run

    def stop_reusing(self, reason: str) -> None:
        """Use each connection for one request only from now on; the first call is reported."""
        if self._reuses:
            self._reuses = False
            self.on_note(f"{reason}: connections to {self.home} are no longer reused")

        if self._sender is not None:
            self._sender.stop_reusing()

    async def renew(self, refused: errors.Unauthorized) -> None:
        """Replace the token that DES refused; concurrent calls share one renewal.

        Raises:
            CredentialsRefused: the token source has no newer token.
            NotSent: the token source could not be reached; the next request tries it again.
        """
        await self._tokens.renew(refused.generation)

    def forget_refusal(self) -> None:
        """Fetch a token before the next request, if DES refused the last one and none was newer.

        Each launch, watch and check begins with it.
        """
        self._tokens.forget_refusal()

    async def start_job(self, job_id: str, parameters: Mapping[str, wire.Value]) -> StartedRun:
        """Start one run of a job: one attempt, no ledger, no retry.

        Args:
            job_id: GUID of the job.
            parameters: values by parameter name. ``None`` is null, ``AUTO`` the auto value, and a
                ``JobRunParameterValue`` is sent as it is. Pass a Decimal instead of a float,
                which has lost digits already.

        Returns:
            The run that DES has started.

        Raises:
            TypeError: a value is a float, or of another type that has no encoding.
            ValueError: ``job_id`` is no GUID, or a Decimal is not finite.
            NotSent: no byte left. Safe to send again.
            Throttled: DES asked to wait ``retry_after`` seconds. Safe to send again after them.
            ServerError: DES responded 5XX. The run may exist.
            Rejected: DES refused the request. Nothing was started.
            OutcomeUnknown: it was sent, and there was no usable response. The run may exist.
            CredentialsRefused: the token source has no token. Nothing was sent.
        """
        if not is_guid(job_id):
            raise ValueError(f"job_id: expected a GUID, got {job_id!r}")

        encoded = {name: wire.encode_value(name, value) for name, value in parameters.items()}
        job_id = job_id.lower()
        body = wire.start_job_body(job_id, encoded)
        return await self.start(Start(1, 1, "", DEFAULT_TARGET, job_id, body))

    async def query_jobs(self) -> list[Job]:
        """Return the organisation's jobs with their parameters (QueryJobs).

        After a 401 the token is renewed and the request repeated, once.

        Raises:
            SchemaError: the response can't be read.
            QueryFailed: there was no usable response.
            NotSent: no byte left.
            Throttled: DES asked to wait.
            ServerError: DES responded 5XX.
            Rejected: DES refused the request.
            CredentialsRefused: the token source has no token that DES accepts.
        """
        response = await self._query(wire.QUERY_JOBS, wire.QUERY_JOBS_BODY)

        try:
            return wire.decode_jobs(response.body, source="DES's response to QueryJobs")
        except errors.SchemaError as exc:  # it quotes the response
            raise errors.SchemaError(self._tokens.scrub(str(exc)), hint=exc.hint) from exc.__cause__

    async def probe(self) -> None:
        """Return if DES responds to QueryJobs at all, so that starts may be sent again.

        An error response or a refused token counts too: QueryJobs may fail where starts work.

        Raises:
            NotSent: no byte left.
            Throttled: DES asks to wait.
        """
        with suppress(
            errors.Rejected, errors.ServerError, errors.QueryFailed, errors.CredentialsRefused
        ):
            await self._post(wire.QUERY_JOBS, wire.QUERY_JOBS_BODY, Sent())

    async def query_run_status(self, job_run_id: str) -> RunStatus:
        """Return the status of one run (QueryJobRunStatus).

        After a 401 the token is renewed and the request repeated, once.

        Raises:
            QueryFailed: there was no usable response, or it is about another run.
            NotSent: no byte left.
            Throttled: DES asked to wait.
            ServerError: DES responded 5XX.
            Rejected: DES refused the request.
            CredentialsRefused: the token source has no token that DES accepts.
        """
        response = await self._query(wire.QUERY_RUN_STATUS, wire.run_status_body(job_run_id))
        status = wire.decode_run_status(self._scrubbed(response.body))

        if status is None or status.job_run_id.lower() != job_run_id.lower():
            raise self._error(
                errors.QueryFailed,
                response,
                f"DES responded 200 without the status of {job_run_id}",
            )

        return status

    async def _query(self, path: str, body: bytes) -> Exchange:
        """Send a query; after a 401 once more, with a renewed token."""
        try:
            return await self._post(path, body, Sent())
        except errors.Unauthorized as exc:
            await self.renew(exc)

        try:
            return await self._post(path, body, Sent())
        except errors.Unauthorized as exc:
            raise errors.CredentialsRefused(
                "DES refused the token and the renewed one",
                hint="check that the token is for this organisation and base URL",
            ) from exc

    async def _post(self, path: str, body: bytes, sent: Sent, latest: float = math.inf) -> Exchange:
        """Send one request, and return it if its response is complete and has status 200."""
        if self._sender is None:
            raise RuntimeError("this DesClient is not open: use it inside 'async with'")

        token, generation = self._tokens.in_use or await self._tokens.current()

        if self._authorized != generation:
            self._authorize(token, generation)

        limit = _LIMIT_OF_JOBS if path == wire.QUERY_JOBS else _LIMIT
        exchange = Exchange(body, sent, limit, latest, self._boottime)

        try:
            with self._deadlines:
                await self._sender.post(self._routes[path], exchange)
        except errors.NotSent:
            raise
        except Exception as exc:  # noqa: BLE001  # an unforeseen one leaves a start unknown, too
            if not exchange.status:
                raise self._failure(path, exchange, exc) from self._cause(exc)

            exchange.error = exc

        self._was_reached = True
        headers = exchange.headers

        if (date := headers.get("Date")) and date != self._last_date[0]:
            self._last_date = date, self._now()

        if "Content-Encoding" in headers:
            exchange.body = http.unpacked(exchange)

        if exchange.status != HTTPStatus.OK or exchange.error is not None:
            raise self._verdict(path, exchange, generation) from self._cause(exchange.error)

        return exchange

    def _authorize(self, token: Token, generation: int) -> None:
        """Put a token into the headers of all requests, and use its ``svc`` if no URL was passed.

        Raises:
            Misconfigured: the token names no usable base URL.
        """
        if self._uses_svc:
            try:
                self._use(token.svc or "")
            except errors.ConfigurationError as exc:
                why = f"names an unusable base URL: {exc}" if token.svc else "names no base URL"
                raise errors.Misconfigured(
                    f"the token of organisation {self.org_id} {why}",
                    hint="set the base URL yourself, or ask the operator of the auth server",
                ) from exc

        assert self.base_url is not None
        authorization = f"Bearer {token.text}"
        headers = {"Content-Type": "application/json", "Authorization": authorization}
        self._routes = {
            path: http.Route(URL(self.base_url) / path, headers, *self._proxy)
            for path in (wire.START_JOB, wire.QUERY_JOBS, wire.QUERY_RUN_STATUS)
        }
        self._authorized = generation

    def _use(self, base_url: str) -> str:
        self.base_url = str(http.safe_url(base_url, allow_http=self._allow_http)).rstrip("/")
        self._proxy = http.split_proxy(self._proxy_for(self.base_url))
        return self.base_url

    def _distrust(self, reason: str, received: bytes) -> None:
        """Stop reusing connections, and report the reason with the run that DES named."""
        runs = wire.job_run_ids_in(received)
        text = f"it names the run {' and '.join(runs)}" if runs else self._kept(received)[:200]
        detail = f" ({' '.join(text.split())})" if text else ""
        self.stop_reusing(f"{reason}{detail}")

    def _failure(self, path: str, exchange: Exchange, exc: Exception) -> errors.DesError:
        """Return the verdict on a request without a response."""
        unsent, text = http.failure_of(exc, exchange.sent)
        # If DES was reached before, only one of its nodes may have a bad certificate.
        unsent = errors.NotSent if self._was_reached else unsent
        kind = _unknown(path) if exchange.sent else unsent
        url = self.base_url
        where = f"the request was sent to {url}, but" if exchange.sent else f"{url}:"
        exchange.headers, exchange.body = _NO_HEADERS, exchange.received
        return self._error(kind, exchange, f"{where} {text}")

    def _cause(self, exc: Exception | None) -> Exception | None:
        """Return ``exc`` for chaining, or None if it quotes a token."""
        if (exc := http.cause_of(exc)) is None:
            return None

        text = "".join(traceback.format_exception(exc, limit=0))
        return exc if self._tokens.scrub(text) == text else None

    def _verdict(self, path: str, response: Exchange, generation: int) -> errors.DesError:
        """Return the verdict on any response but a complete one with status 200."""
        status, unknown = response.status, _unknown(path)

        if isinstance(response.error, http.ExtraResponse):
            return self._error(unknown, response, f"DES responded {status}, and then again")

        kind = _VERDICTS.get(status, _VERDICTS_BY_HUNDRED.get(status // 100)) or unknown
        here = there = self._routes[path].url
        origin = None

        with suppress(KeyError, ValueError):  # there is no Location, or it is no URL
            there = here.join(URL(response.headers["Location"]))
            origin = there.origin()

        if status == HTTPStatus.SERVICE_UNAVAILABLE and "Retry-After" in response.headers:
            kind = errors.Throttled
        elif status == HTTPStatus.FOUND and path == wire.START_JOB:
            # Only the same path on another host is a move: other servers respond 302 when done.
            is_moved = origin not in {None, here.origin()} and there.path_qs == here.path_qs
            kind = errors.Redirected if is_moved else unknown

        text = f"{_TEXTS.get(kind, 'DES responded')} {status}"

        if kind is errors.Redirected and origin is not None:
            text += f" to {origin}"  # without the path, which may hold secrets
        elif kind is unknown and response.error is not None:
            text += ", but its response is incomplete"

        error = self._error(kind, response, text)

        if isinstance(error, errors.Unauthorized):
            error.generation = generation

        if path == wire.START_JOB:
            error.advise(_HINTS_OF_START.get(kind, ""))

        return error

    def _error(self, kind: type[errors.DesError], response: Exchange, text: str) -> errors.DesError:
        kept, headers = self._kept(response.body), response.headers
        detail = wire.error_text(kept) if response.status else ""
        now = wire.http_date(headers.get("Date")) or self._now()
        return kind(
            self._tokens.scrub(text) + (f": {detail}" if detail else ""),
            hint=_HINTS.get(kind, ""),
            status=response.status or None,
            response=kept,
            retry_after=wire.retry_after(headers.getall("Retry-After", ()), now=now),
            job_run_id=next(iter(wire.job_run_ids_in(response.body)), None),
        )

    def _kept(self, body: bytes) -> str:
        """Return what to keep of a response; scrubbed first, so that no part of a token stays."""
        return wire.text_of(self._scrubbed(body[:_LIMIT]))[: wire.KEPT]

    def _scrubbed(self, body: bytes) -> bytes:
        """Return a response without tokens; Latin-1 decodes any bytes without loss."""
        return self._tokens.scrub(body.decode("latin-1")).encode("latin-1")


def _unknown(path: str) -> type[errors.OutcomeUnknown | errors.QueryFailed]:
    """Return the verdict on a request that was sent and got no usable response."""
    return errors.OutcomeUnknown if path == wire.START_JOB else errors.QueryFailed
