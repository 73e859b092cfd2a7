"""A local DES on real sockets, with scripted faults: the judge of every end-to-end test.

::

    async with Simulator(script={"faults": [{"fault": "reset", "at": [3]}]}) as simulator:
        ...  # POST to simulator.base_url
        assert len(simulator.runs) == 2

    with start_blocking_portal() as portal:  # of anyio: in a thread of its own
        with portal.wrap_async_context_manager(Simulator(log="runs.jsonl")) as simulator:
            ...  # run a command against simulator.base_url

It imports no other module of deslaunch, so that both sides can't be wrong together: paths,
parameter rules, token rules and the HTTP parser are written a second time, from the service's
description alone. It speaks HTTP/1.1 by hand, because a fault such as half a status line is
exact to the byte, and no HTTP framework can send one.

======= ========================================================================
module  role
======= ========================================================================
service the four endpoints without sockets and faults: jobs, tokens, the log of runs
faults  HTTP by hand; which request meets which fault, and what it makes of a response
======= ========================================================================

Here is :class:`Simulator`, which leads each request through all of them.

The log
-------

Every run is appended to a JSONL file before its response is made, and before any latency: a
client that gives up has made a run all the same. A request that was read whole is served even
if its client hangs up. The log is not synced: it survives a killed process, not a power cut.
A line says ``jobRunId``, ``jobId``, ``parameters``, ``request`` (the number of the start request,
from 1), ``utc`` and ``body`` (the request's, as it was sent).

Fault scripts
-------------

JSON; every key may be left out::

    {"seed": 7, "latency": 0.02,
     "tokens": {"expireAfter": 700, "which": "first"},
     "faults": [{"fault": "status", "status": 503, "share": 0.05},
                {"fault": "close-after-start", "at": [17, 40]}]}

================== ============================================================
key                meaning
================== ============================================================
seed               a whole number that moves every ``share``; default 0
latency            seconds that every response waits; default 0
finishAfter        seconds from a run's start to its end; default 0
tokens.expireAfter started runs that a token is good for; then it gets 401
tokens.which       ``first`` (default): only the first token; ``all``: every one
faults             the first whose selectors all hold is applied, and no other
================== ============================================================

Requests are numbered from 1 in the order in which they are read, each endpoint on its own.
Nothing depends on time or interleaving: ``share`` is a hash of the seed, the fault's place in
the list and the request's number.

============ ==================================================================
selector     holds for
============ ==================================================================
on           ``startjob`` (default), ``queryjobs``, ``queryrunstatus``,
             ``token``; ``connection``: a new client, before a byte is read
             (close, reset and hang only)
at           these request numbers, a list
every        every n-th request
share        this share of the requests, 0 to 1
from, to     this range of request numbers, both inclusive
match        requests whose body has these characters in it
============ ==================================================================

Kinds that make no run:

============ ==================================================================
fault        what the client gets
============ ==================================================================
status       the ``status``, with ``retryAfter`` (seconds or any text),
             ``retryAfterDate`` (seconds from now, sent as a date), ``body``,
             ``headers`` (name to text, or to a list: a header each)
close        FIN
reset        RST
hang         nothing, on an open connection
============ ==================================================================

Kinds that serve the request, log its run, and then spoil the response:

==================== ==========================================================
fault                what the client gets
==================== ==========================================================
close-after-start    FIN
reset-after-start    RST
hang-after-start     nothing, on an open connection
close-after-response a good response, and FIN
second-response      a good response, and ``after`` seconds (default 0.02) later
                     another one, whose jobRunId no run has
cut-head             ``bytes`` of the head (default half, never all), then FIN
cut-body             the head, ``bytes`` of the body, then FIN
stall-body           the same, on a connection that stays open
garbage              no HTTP, then FIN
raw                  ``body``, a byte a character (U+0000 to U+00FF), with
                     ``{jobId}`` and ``{jobRunId}`` filled in
not-json             200 and an HTML page, or ``body``
leave-out            200 without these ``keys`` (default: without its jobRunId)
other-job            200 with another jobId
other-run            200 with the jobRunId of the first run that was ever made
huge-body            a valid response, ``bytes`` long (default 2 MiB)
gzip                 a valid response, packed: ``encoding`` is ``gzip`` (default),
                     ``deflate``, or ``none`` for gzip that no header names;
                     ``bytes`` long when it is unpacked
bom                  U+FEFF before the JSON
headers              a good response with more ``headers``
latency              a good response, after ``seconds`` more
hold                 a good response, after :meth:`Simulator.release`
fail-run             a good response; the run's status becomes failed, with
                     ``error``
==================== ==========================================================

Keys of every fault:

======= =======================================================================
key     meaning
======= =======================================================================
start   true: the request is served, and its run made, first; false: it is not
seconds by which the response is delayed further
after   seconds between the response and what follows it; the connection serves
        nothing meanwhile
then    what follows: ``keep`` (the next request), ``close``, ``reset`` or
        ``hang``
======= =======================================================================

A request that is refused with 400 or 401 gets its refusal, whatever a serving kind would do.
"""

import asyncio
import os
import socket
import ssl as tls
import struct
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, Self

import anyio

from deslaunch.simulator import faults, service
from deslaunch.simulator.faults import OTHER_JOB, SimulatorError, load_json
from deslaunch.simulator.service import CSV_SALES_EXPORT, DEFAULT_JOBS, POS_USAGE_EXPORT, Run

__all__ = ["CSV_SALES_EXPORT", "DEFAULT_JOBS", "OTHER_JOB", "POS_USAGE_EXPORT", "Run"]
__all__ += ["Simulator", "SimulatorError", "load_json"]


class Simulator:
    """A DES that listens while its ``async with`` block runs.

    ::

        async with Simulator(script={"faults": [{"fault": "reset", "at": [3]}]}) as simulator:
            ...  # POST to simulator.base_url
            assert len(simulator.runs) == 2

    Attributes:
        runs: every run that is in the log, in its order.
        in_flight: start requests that were read and whose response is not made yet.
        peak: the most that ``in_flight`` ever was.

    Args:
        jobs: a jobs file's JSON.
        script: a fault script's JSON, as the package's docstring tells; None for no faults.
        log: path of the JSONL file to which runs are appended (mode 0600), or None.
        tokens: access tokens that are good from the start, the first one first.
        login: form fields that a password grant must hold with these values, such as
            ``{"username": "night", "password": "…"}``; others may hold anything.
        token_seconds: for which a token of the token endpoint is good, more than 0.
        host: address to listen on.
        port: 0 for any free one.
        ssl: server-side TLS context, or None for plain HTTP.
        sleep: waits so many seconds.
        clock: Unix time in seconds, as DES has it.

    Raises:
        SimulatorError: the script is malformed, or the jobs are.
        OSError: on entering, the address is not free or the log can't be opened; on leaving,
            a run could not be logged (its client got FIN and no response).
    """

    def __init__(
        self,
        *,
        jobs: Mapping[str, Any] = DEFAULT_JOBS,
        script: Mapping[str, Any] | None = None,
        log: str | os.PathLike[str] | None = None,
        tokens: Iterable[str] = ("t",),
        login: Mapping[str, str] | None = None,
        token_seconds: float = 28_800,
        host: str = "127.0.0.1",
        port: int = 0,
        ssl: tls.SSLContext | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.in_flight = self.peak = 0
        self._sleep, self._clock = sleep, clock
        self.use(script)
        self._log = service.RunLog(log)
        self.runs = self._log.runs
        limit = self._script.get("tokens", {})
        self._auth = service.AuthServer(limit, token_seconds, login or {}, clock)

        for token in tokens:
            self._auth.add(token)

        finish_after = self._script.get("finishAfter", 0)
        known = service.read_jobs(jobs)
        self._des = service.Des(known, self._auth, self._log, clock, finish_after)
        self._host, self._port, self._ssl = host, port, ssl
        self._numbers: Counter[str] = Counter()
        self._released = asyncio.Event()
        self._waiting: dict[asyncio.Event, Callable[[], bool]] = {}
        self._clients: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._failures: list[BaseException] = []
        self._server: asyncio.Server | None = None

    def __repr__(self) -> str:
        return (
            f"<Simulator {self.base_url}: {self.requests} start requests, "
            f"{len(self.runs)} runs, {len(self._clients)} connections>"
        )

    @property
    def base_url(self) -> str:
        """Scheme, host and port, without a slash at the end; the port is known once it listens."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'http' if self._ssl is None else 'https'}://{host}:{self._port}"

    @property
    def requests(self) -> int:
        """Start requests read, refused and spoiled ones too."""
        return self.count("startjob")

    def count(self, endpoint: str) -> int:
        """Return how many requests an endpoint has seen, or how many clients ``connection``."""
        return self._numbers[endpoint]

    def use(self, script: Mapping[str, Any] | None) -> None:
        """Follow another fault script from now on, or none.

        Requests are numbered on. Tokens, and when runs finish, stay as the first script said.

        Raises:
            SimulatorError: it is malformed.
        """
        self._script = faults.read_script({} if script is None else script)

    def revoke(self, token: str) -> None:
        """Answer 401 to this access token from now on."""
        self._auth.revoke(token)

    def release(self) -> None:
        """Let go every response that a ``hold`` fault holds back, now and later.

        It may be called from any thread, as may ``use``, and the attributes be read.
        """
        self._loop.call_soon_threadsafe(self._released.set)

    async def until(self, reached: Callable[[], bool]) -> None:
        """Wait until a condition on this simulator holds.

        Args:
            reached: looked at now, after each request is read, after each run is logged, and
                after each response is made.
        """
        event = asyncio.Event()
        self._waiting[event] = reached

        try:
            self._look()
            await event.wait()
        finally:
            del self._waiting[event]

    async def listen(self) -> None:
        """Listen again on the same port, after :meth:`refuse`.

        Raises:
            OSError: the address is not free.
        """
        self._loop = asyncio.get_running_loop()
        self._server = await asyncio.start_server(
            self._welcome, self._host, self._port, ssl=self._ssl, backlog=1024
        )
        self._port = self._server.sockets[0].getsockname()[1]
        self._auth.svc = self.base_url

    async def refuse(self) -> None:
        """Stop listening and drop every client: connections are refused until :meth:`listen`."""
        if self._server is not None:
            self._server.close()

        for _ in range(5):  # turns of the loop until an accepted client has its connection
            await asyncio.sleep(0)

        clients = dict(self._clients)

        for task in clients:
            task.cancel()

        closed = [writer.wait_closed() for writer in clients.values()]
        await asyncio.gather(*clients, *closed, return_exceptions=True)

    async def __aenter__(self) -> Self:
        self._log.open()

        try:
            await self.listen()
        except BaseException:
            self._log.close()
            raise

        return self

    async def __aexit__(self, *exc_info: object) -> None:
        with anyio.CancelScope(shield=True):
            await self.refuse()

        self._log.close()

        if self._failures:
            raise self._failures[0]

    # One client: its requests are served one after the other.

    def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve_client(reader, writer))
        self._clients[task] = writer
        task.add_done_callback(self._drop)

    def _drop(self, task: asyncio.Task[None]) -> None:
        self._clients.pop(task).transport.abort()

        if not task.cancelled() and (failure := task.exception()) is not None:
            self._failures.append(failure)

    async def _serve_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Serve what was read whole, also of a client that has hung up."""
        self._numbers["connection"] += 1
        fault = faults.pick(self._script, "connection", self._numbers["connection"])
        end = faults.KINDS[fault["fault"]].end

        with suppress(OSError):  # of reading: the client is gone
            try:
                while end == "keep" and (request := await faults.read_request(reader)):
                    end = await self._respond(request, writer)
            except faults.Refused as refused:
                _send(writer, faults.encode(refused.status, refused.body, self._clock()))

            if end == "reset":
                # A socket that may not linger throws its connection away: RST.
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()

            while end == "hang" and await reader.read(1 << 16):
                pass

            writer.close()
            await writer.wait_closed()

    async def _respond(self, request: faults.Request, writer: asyncio.StreamWriter) -> faults.End:
        """Send what a request gets, and return what becomes of the connection."""
        endpoint = faults.ENDPOINTS.get(request.path, "")
        is_start = endpoint == "startjob"
        self._numbers[endpoint] += 1
        self.in_flight += is_start
        self.peak = max(self.peak, self.in_flight)
        self._look()

        try:
            delivery = await self._serve(request, endpoint, self._numbers[endpoint])
        finally:
            self.in_flight -= is_start
            self._look()

        _send(writer, delivery.data)

        if delivery.after or delivery.more:
            await self._sleep(delivery.after)
            _send(writer, delivery.more)

        return "close" if request.is_last and delivery.end == "keep" else delivery.end

    async def _serve(self, request: faults.Request, endpoint: str, number: int) -> faults.Delivery:
        """Serve a request; the run that it makes is in the log before anything is waited for."""
        fault = faults.pick(self._script, endpoint, number, request.body)
        answer: faults.Json = {}  # of a request that is not served

        try:
            if fault.get("start", faults.KINDS[fault["fault"]].is_served):
                answer = self._des.serve(endpoint, request, number, fault)
        except faults.Refused as refused:
            return faults.Delivery(faults.encode(refused.status, refused.body, self._clock()))
        except OSError as exc:
            self._failures.append(exc)
            return faults.Delivery(b"", "close")

        self._look()
        seconds: float = self._script.get("latency", 0) + fault.get("seconds", 0)

        if seconds > 0:
            await self._sleep(seconds)

        if fault["fault"] == "hold":
            await self._released.wait()

        return faults.spoil(fault, answer, self._clock())

    def _look(self) -> None:
        for event, reached in self._waiting.items():
            if reached():
                event.set()


def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    if not writer.is_closing():
        writer.write(data)
