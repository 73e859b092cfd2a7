"""DES over HTTP: one request, one verdict.

What became of a request is decided from two pieces of evidence, in this order: a response that
was parsed, and whether bytes may have left. An exception's class only words the message, and tells
an unreachable server from a misconfigured one. Nothing here sends a start twice.
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
"""Seconds beyond the connect timeout within which a start must leave after it was meant."""

_MOST: Final = 1024 * 1024
_MOST_JOBS: Final = 16 * _MOST
"""Bytes of a response that are read, of QueryJobs' more than of others."""

_NO_HEADERS: Final = CIMultiDictProxy[str](CIMultiDict())

_VERDICTS: Final[Mapping[int, type[errors.DesError] | None]] = {
    **dict.fromkeys((301, 302, 307, 308), errors.Redirected),  # 302 but a start's: see _verdict
    401: errors.Unauthorized,
    **dict.fromkeys((425, 429), errors.Throttled),
    **dict.fromkeys((408, 504, 524), None),  # a server or gateway gave up waiting, who knows why
}
_VERDICTS_BY_HUNDRED: Final = {4: errors.Rejected, 5: errors.ServerError}

_TEXTS: Final[Mapping[type[errors.DesError], str]] = {
    errors.Unauthorized: "DES refused the token with",
    errors.Redirected: "DES responded with the redirect",
    errors.Throttled: "DES asked to wait with",
}
_HINTS: Final[Mapping[type[errors.DesError], str]] = {
    errors.NotSent: "check the base URL and the way to it; nothing was started",
    errors.Misconfigured: "check the base URL, and which CA signed the certificate there",
    errors.Redirected: "set the base URL to where DES itself responds",
    errors.OutcomeUnknown: "look in DES whether the run exists before you start it again",
}
_HINTS_OF_START: Final[Mapping[type[errors.DesError], str]] = {
    errors.Throttled: "nothing was started: wait as long as retry_after says, then send it again",
    errors.ServerError: "it may be sent again, but the run may exist: a success may be the second",
    errors.Rejected: "fix what DES names, in the request or the job: it will refuse the same again",
    errors.Unauthorized: "nothing was started: get a new token, then send it again",
}


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
        base_url: where DES is, without a trailing slash; None while no token has told it.
        home: what stays the same of this DES: its base URL, or the organisation that may move.
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
        self._follows = base_url is None
        self.base_url: str | None = None
        self.home = f"organisation {self.org_id}"
        self._routes: dict[str, Route] = {}
        self._authorized = 0  # the generation of these routes' token
        self._reuses = True
        self._dated: tuple[str | None, datetime] = None, now()
        self._was_reached = False
        self._way: quick.QuickWay | http.PlainWay | None = None

        for name, value in (("timeout", timeout), ("connect_timeout", connect_timeout)):
            if not (math.isfinite(value) and value > 0):
                raise errors.ConfigurationError(
                    f"{name} must be more than 0 seconds, not {value}", hint="write 60, for example"
                )

        if base_url is not None:
            self.home = self._go_to(base_url)
        elif self.org_id is None:
            raise errors.ConfigurationError(
                "there is no base URL, and the tokens tell none",
                hint="pass the base URL; only OAuthToken finds it by itself",
            )

    def __repr__(self) -> str:
        state = "closed" if self._way is None else "open"
        return f"<DesClient {self.base_url or self.home} {state}>"

    @property
    def clock_offset(self) -> float | None:
        """Seconds that DES's clock is ahead of ours, by the last Date header; None without one.

        A Date has whole seconds, so the offset is true to a second.
        """
        date, seen = self._dated
        said = wire.http_date(date)
        return None if said is None else (said - seen).total_seconds()

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

        self._deadlines = http.Deadlines(self.timeout)
        make = quick.QuickWay if quick.IS_KNOWN else http.PlainWay
        self._way = make(self._ssl, self.connect_timeout, self._doubt)

        if not self._reuses:
            self._way.stop_reusing()

        return self

    async def __aexit__(self, *exc_info: object) -> None:
        way, self._way = self._way, None

        if way is not None:
            await way.aclose()

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
        exchange = await self._ask(
            wire.START_JOB, start.body, Sent() if sent is None else sent, latest
        )
        run = wire.decode_started(exchange.body)

        if run is None or run.job_id != start.job_id:
            why = "is no StartJobResponse" if run is None else "names another job"
            raise self._error(
                errors.OutcomeUnknown, exchange, f"DES responded 200, and its body {why}"
            )

        return run

    def stop_reusing(self, reason: str) -> None:
        """Let each connection serve one request only from now on, and tell why, once."""
        if self._reuses:
            self._reuses = False
            self.on_note(f"{reason}: the connections to {self.home} are not reused any more")

        if self._way is not None:
            self._way.stop_reusing()

    async def renew(self, refused: errors.Unauthorized) -> None:
        """Replace the token that DES refused; all who ask at the same time share one renewal.

        Raises:
            CredentialsRefused: there is no newer token.
            NotSent: the token's source could not be reached; the next request asks it again.
        """
        await self._tokens.renew(refused.generation)

    async def start_job(self, job_id: str, parameters: Mapping[str, wire.Value]) -> StartedRun:
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
        if not is_guid(job_id):
            raise ValueError(f"a job id is a GUID, not {job_id!r}")

        encoded = {name: wire.encode_value(name, value) for name, value in parameters.items()}
        job_id = job_id.lower()
        body = wire.start_job_body(job_id, encoded)
        return await self.start(Start(1, 1, "", DEFAULT_TARGET, job_id, body))

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
        response = await self._query(wire.QUERY_JOBS, wire.QUERY_JOBS_BODY)

        try:
            return wire.decode_jobs(response.body, source="DES's response to QueryJobs")
        except errors.SchemaError as exc:  # it quotes what came
            raise errors.SchemaError(self._tokens.scrub(str(exc)), hint=exc.hint) from exc.__cause__

    async def probe(self) -> None:
        """Return if DES responds to QueryJobs in any way that shows that it is there.

        Whether it responds well does not matter, nor whether the token is good: a start will
        tell, and QueryJobs may be the one thing of DES that does not work.

        Raises:
            NotSent: no byte left.
            Throttled: DES asks to wait.
        """
        with suppress(
            errors.Rejected, errors.ServerError, errors.QueryFailed, errors.CredentialsRefused
        ):
            await self._ask(wire.QUERY_JOBS, wire.QUERY_JOBS_BODY, Sent())

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
        response = await self._query(wire.QUERY_RUN_STATUS, wire.run_status_body(job_run_id))
        status = wire.decode_run_status(self._scrubbed(response.body))

        if status is None or status.job_run_id.lower() != job_run_id.lower():
            raise self._error(
                errors.QueryFailed, response, "DES's response is not this run's status"
            )

        return status

    async def _query(self, path: str, body: bytes) -> Exchange:
        """Ask DES, and once more where it refused the token and there is a newer one."""
        try:
            return await self._ask(path, body, Sent())
        except errors.Unauthorized as exc:
            await self.renew(exc)

        try:
            return await self._ask(path, body, Sent())
        except errors.Unauthorized as exc:
            raise errors.CredentialsRefused(
                "DES refused the token, and then the renewed one",
                hint="check that the token is for this organisation and base URL",
            ) from exc

    async def _ask(self, path: str, body: bytes, sent: Sent, latest: float = math.inf) -> Exchange:
        """Send one request; return it where the response is whole and its status 200."""
        if self._way is None:
            raise RuntimeError("this DesClient is not open; use it inside 'async with'")

        token, generation = self._tokens.in_use or await self._tokens.current()

        if self._authorized != generation:
            self._authorize(token, generation)

        most = _MOST_JOBS if path == wire.QUERY_JOBS else _MOST
        exchange = Exchange(body, sent, most, latest, self._boottime)

        try:
            with self._deadlines:
                await self._way.post(self._routes[path], exchange)
        except errors.NotSent:
            raise
        except Exception as exc:  # noqa: BLE001  # an unforeseen one leaves a start unknown, too
            if not exchange.status:
                raise self._fault(path, exchange, exc) from self._cause(exc)

            exchange.flaw = exc

        self._was_reached = True
        headers = exchange.headers

        if (date := headers.get("Date")) and date != self._dated[0]:
            self._dated = date, self._now()

        if "Content-Encoding" in headers:
            exchange.body = http.unpacked(exchange.body, headers["Content-Encoding"])

        if exchange.status != HTTPStatus.OK or exchange.flaw is not None:
            raise self._verdict(path, exchange, generation) from self._cause(exchange.flaw)

        return exchange

    def _authorize(self, token: Token, generation: int) -> None:
        """Make the ways of all calls for a token, and go where it is good, unless that was given.

        Raises:
            Misconfigured: the token tells no base URL that is fit to be sent to.
        """
        if self._follows:
            try:
                self._go_to(token.svc or "")
            except errors.ConfigurationError as exc:
                why = f"tells where DES is, and {exc}" if token.svc else "tells no base URL"
                raise errors.Misconfigured(
                    f"the token of organisation {self.org_id} {why}",
                    hint="ask who runs the auth server, or set the target's base URL",
                ) from exc

        assert self.base_url is not None
        authorization = f"Bearer {token.text}"
        headers = {"Content-Type": "application/json", "Authorization": authorization}
        self._routes = {
            path: http.Route(URL(self.base_url) / path, headers, *self._proxy)
            for path in (wire.START_JOB, wire.QUERY_JOBS, wire.QUERY_RUN_STATUS)
        }
        self._authorized = generation

    def _go_to(self, base_url: str) -> str:
        self.base_url = str(http.safe_url(base_url, allow_http=self._allow_http)).rstrip("/")
        self._proxy = http.split_proxy(self._proxy_for(self.base_url))
        return self.base_url

    def _doubt(self, why: str, came: bytes) -> None:
        """Take note of a connection that can't be relied on."""
        runs = wire.job_run_ids_in(came)
        text = f"it names the run {' and '.join(runs)}" if runs else self._kept(came)[:200]
        said = f" ({' '.join(text.split())})" if text else ""
        self.stop_reusing(f"{why}{said}")

    def _fault(self, path: str, exchange: Exchange, exc: Exception) -> errors.DesError:
        """Return what it means that no response could be read."""
        unsent, text = http.fault_of(exc, exchange.sent)
        # Where DES was reached before, one node of it may have a bad certificate.
        unsent = errors.NotSent if self._was_reached else unsent
        kind = _lost(path) if exchange.sent else unsent
        url = self.base_url
        where = f"the request was sent to {url}, and" if exchange.sent else f"{url}:"
        exchange.headers, exchange.body = _NO_HEADERS, exchange.came
        return self._error(kind, exchange, f"{where} {text}")

    def _cause(self, exc: Exception | None) -> Exception | None:
        """Return ``exc`` to be chained, or None where what it tells quotes a token."""
        if exc is None:
            return None

        told = "".join(traceback.format_exception(exc, limit=0))
        return exc if self._tokens.scrub(told) == told else None

    def _verdict(self, path: str, response: Exchange, generation: int) -> errors.DesError:
        """Return what a response means that is no whole one with status 200."""
        status, lost = response.status, _lost(path)

        if isinstance(response.flaw, http.Unasked):
            return self._error(lost, response, f"after {status} DES responded again")

        kind = _VERDICTS.get(status, _VERDICTS_BY_HUNDRED.get(status // 100)) or lost
        here = there = self._routes[path].url
        origin = None

        with suppress(KeyError, ValueError):  # there is no Location, or it is no place
            there = here.join(URL(response.headers["Location"]))
            origin = there.origin()

        if status == HTTPStatus.SERVICE_UNAVAILABLE and "Retry-After" in response.headers:
            kind = errors.Throttled
        elif status == HTTPStatus.FOUND and path == wire.START_JOB:
            # But to the same path elsewhere, it is how to show a page after the work was done.
            is_moved = origin not in {None, here.origin()} and there.path_qs == here.path_qs
            kind = errors.Redirected if is_moved else lost

        text = f"{_TEXTS.get(kind, 'DES responded')} {status}"

        if kind is errors.Redirected and origin is not None:
            text += f" to {origin}"  # alone, as the rest may hold secrets
        elif kind is lost and response.flaw is not None:
            text += ", and the rest of its response was cut off"

        error = self._error(kind, response, text)

        if isinstance(error, errors.Unauthorized):
            error.generation = generation

        if path == wire.START_JOB:
            error.advise(_HINTS_OF_START.get(kind, ""))

        return error

    def _error(self, kind: type[errors.DesError], response: Exchange, text: str) -> errors.DesError:
        kept, headers = self._kept(response.body), response.headers
        said = wire.error_text(kept) if response.status else ""
        now = wire.http_date(headers.get("Date")) or self._now()
        return kind(
            self._tokens.scrub(text) + (f": {said}" if said else ""),
            hint=_HINTS.get(kind, ""),
            status=response.status or None,
            response=kept,
            retry_after=wire.retry_after(headers.getall("Retry-After", ()), now=now),
            job_run_id=next(iter(wire.job_run_ids_in(response.body)), None),
        )

    def _kept(self, body: bytes) -> str:
        """Return what is kept of a response; scrubbed first, so that no half token stays."""
        return wire.text_of(self._scrubbed(body[:_MOST]))[: wire.KEPT]

    def _scrubbed(self, body: bytes) -> bytes:
        """Return a response without tokens; Latin-1 makes a text of any bytes, and back."""
        return self._tokens.scrub(body.decode("latin-1")).encode("latin-1")


def _lost(path: str) -> type[errors.OutcomeUnknown | errors.QueryFailed]:
    """Return what it means that a request was sent and no usable response came."""
    return errors.OutcomeUnknown if path == wire.START_JOB else errors.QueryFailed
