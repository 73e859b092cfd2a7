"""A local DES on real sockets, with scripted faults.

::

    async with Simulator(script={"faults": [{"fault": "reset", "at": [3]}]}) as simulator:
        ...  # POST to simulator.base_url
        assert len(simulator.runs) == 2

    with start_blocking_portal() as portal:  # of anyio: in a thread of its own
        with portal.wrap_async_context_manager(Simulator(log="runs.jsonl")) as simulator:
            ...  # run a command against simulator.base_url

Its log says which runs a client has really made. It imports no other module of deslaunch, so that
no mistake can be on both sides: paths, rules for parameters and tokens, and the HTTP parser are
written a second time, from the description of the service. It writes HTTP/1.1 byte by byte, as no
HTTP framework can send half a status line.

======= ========================================================================
module  role
======= ========================================================================
service the four endpoints without sockets and faults: jobs, tokens, the log of runs
faults  HTTP; which request gets which fault, and how it changes a response
======= ========================================================================

:class:`Simulator`, in this module, listens and passes each request through both.

The log
-------

A run is appended to a JSONL file before its response is made and before any latency, so the run of
a client that times out is in it too. A complete request is served even if its client hangs up. The
log is not synced: it survives a killed process, but not a power failure. A line has ``jobRunId``,
``jobId``, ``parameters``, ``request`` (number of the start request, from 1), ``utc`` and ``body``
(of the request, as it was sent).

Fault scripts
-------------

JSON; every key is optional::

    {"seed": 7, "latency": 0.02,
     "tokens": {"expireAfter": 700, "which": "first"},
     "faults": [{"fault": "status", "status": 503, "share": 0.05},
                {"fault": "close-after-start", "at": [17, 40]}]}

================== ============================================================
key                meaning
================== ============================================================
seed               a whole number that changes every ``share``; default 0
latency            seconds by which every response is delayed; default 0
finishAfter        seconds from the start of a run to its end; default 0
tokens.expireAfter number of starts after which a token gets 401
tokens.which       ``first`` (default): only the first token; ``all``: every one
faults             a request gets the first whose selectors all match
================== ============================================================

The requests of each endpoint are numbered from 1, in the order in which they are read. Nothing
depends on time: ``share`` is a hash of the seed, the position of the fault in the list, and the
number of the request.

============ ==================================================================
selector     matches
============ ==================================================================
on           ``startjob`` (default), ``queryjobs``, ``queryrunstatus``,
             ``token``; ``connection``: a new client, before a byte is read
             (close, reset and hang only)
at           these request numbers, a list
every        every n-th request
share        this share of the requests, 0 to 1
from, to     this range of request numbers, both inclusive
match        requests whose body contains this text
============ ==================================================================

Kinds that make no run:

============ ==================================================================
fault        what the client gets
============ ==================================================================
status       the ``status``, with ``retryAfter`` (seconds or any text),
             ``retryAfterDate`` (seconds from now, sent as a date), ``body``,
             ``headers`` (name to text, or to a list for several headers)
close        FIN
reset        RST
hang         nothing, on an open connection
============ ==================================================================

Kinds that serve the request and log its run, and then change the response:

==================== ==========================================================
fault                what the client gets
==================== ==========================================================
close-after-start    FIN
reset-after-start    RST
hang-after-start     nothing, on an open connection
close-after-response a good response, then FIN
second-response      a good response, and ``after`` seconds (default 0.02) later
                     another one, whose jobRunId belongs to no run
cut-head             ``bytes`` of the head (default half, never all), then FIN
cut-body             the head, ``bytes`` of the body, then FIN
stall-body           the same, on a connection that stays open
garbage              bytes that are not HTTP, then FIN
raw                  ``body``, one byte for each character (U+0000 to U+00FF), with
                     ``{jobId}`` and ``{jobRunId}`` filled in
not-json             200 and an HTML page, or ``body``
leave-out            200 without these ``keys`` (default: without its jobRunId)
other-job            200 with another jobId
other-run            200 with the jobRunId of the first run of all
huge-body            a valid response of ``bytes`` bytes (default 2 MiB)
gzip                 a valid response, compressed: ``encoding`` is ``gzip`` (default),
                     ``deflate``, or ``none`` for gzip without the header;
                     ``bytes``: its size when decompressed
bom                  U+FEFF before the JSON
headers              a good response with more ``headers``
latency              a good response, after ``seconds`` more
hold                 a good response, after :meth:`Simulator.release`
fail-run             a good response; the run then fails, with ``error`` as its
                     status
==================== ==========================================================

Keys of every fault:

======= =======================================================================
key     meaning
======= =======================================================================
start   true: the request is served and its run made; false: it is not
seconds by which the response is delayed further
after   seconds between the response and what follows it; the connection serves
        nothing in between
then    what follows: ``keep`` (the next request), ``close``, ``reset`` or
        ``hang``
======= =======================================================================

A request that is refused with 400 or 401 gets that response, whatever kind would serve it.
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
    """A local DES, which listens inside its ``async with`` block.

    Args:
        jobs: JSON of a jobs file.
        script: JSON of a fault script, see the module's docstring; None for no faults.
        log: path of the JSONL file to which runs are appended (created with mode 0600), or None.
        tokens: access tokens that are valid from the start; the first is first in the script's
            sense.
        login: form fields that a password grant must contain with these values, such as
            ``{"username": "night", "password": "…"}``; other fields may have any value.
        token_seconds: seconds for which a token of the token endpoint is valid, more than 0.
        host: address to listen on.
        port: 0 for any free one.
        ssl: server-side TLS context, or None for plain HTTP.
        sleep: waits that many seconds.
        clock: returns the Unix time of this DES, in seconds.

    Attributes:
        runs: all runs in the log, in its order.
        in_flight: start requests that were read and have no response yet.
        peak: the highest value of ``in_flight`` so far.

    Raises:
        SimulatorError: the script or the jobs are malformed.
        OSError: on entering, the address is in use or the log can't be opened; on leaving, a run
            could not be logged (its client got FIN and no response).
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
        """Scheme, host and port, without a trailing slash; the port is known inside the block."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'http' if self._ssl is None else 'https'}://{host}:{self._port}"

    @property
    def requests(self) -> int:
        """Number of start requests that were read, whatever response they got."""
        return self.count("startjob")

    def count(self, endpoint: str) -> int:
        """Return how many requests an endpoint has read, or how many clients (``connection``)."""
        return self._numbers[endpoint]

    def use(self, script: Mapping[str, Any] | None) -> None:
        """Use another fault script from now on, or none.

        The numbers of requests continue. ``tokens`` and ``finishAfter`` of the first script stay.

        Raises:
            SimulatorError: the script is malformed.
        """
        self._script = faults.read_script({} if script is None else script)

    def revoke(self, token: str) -> None:
        """Respond 401 to this access token from now on."""
        self._auth.revoke(token)

    def release(self) -> None:
        """Send all responses that a ``hold`` fault has held back, and hold no more.

        Like :meth:`use` and the attributes, it may be used from any thread.
        """
        self._loop.call_soon_threadsafe(self._released.set)

    async def until(self, reached: Callable[[], bool]) -> None:
        """Wait until a condition is true.

        Args:
            reached: called at once, and whenever a request was read, a run was logged, or a
                response was made.
        """
        event = asyncio.Event()
        self._waiting[event] = reached

        try:
            self._notify()
            await event.wait()
        finally:
            del self._waiting[event]

    async def listen(self) -> None:
        """Listen again on the same port, after :meth:`refuse`.

        Raises:
            OSError: the address is in use.
        """
        self._loop = asyncio.get_running_loop()
        self._server = await asyncio.start_server(
            self._welcome, self._host, self._port, ssl=self._ssl, backlog=1024
        )
        self._port = self._server.sockets[0].getsockname()[1]
        self._auth.svc = self.base_url

    async def refuse(self) -> None:
        """Stop listening and disconnect all clients; :meth:`listen` undoes it."""
        if self._server is not None:
            self._server.close()

        for _ in range(5):  # iterations of the loop after which an accepted client has its task
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

    # One client: its requests are served in order.

    def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve_client(reader, writer))
        self._clients[task] = writer
        task.add_done_callback(self._drop)

    def _drop(self, task: asyncio.Task[None]) -> None:
        with suppress(AttributeError):  # Python 3.11.2 can't abort TLS that was closed twice
            self._clients.pop(task).transport.abort()

        if not task.cancelled() and (failure := task.exception()) is not None:
            self._failures.append(failure)

    async def _serve_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Serve complete requests, even of a client that has hung up."""
        self._numbers["connection"] += 1
        fault = faults.pick(self._script, "connection", self._numbers["connection"])
        end = faults.KINDS[fault["fault"]].end

        with suppress(OSError):  # while reading: the client is gone
            try:
                while end == "keep" and (request := await faults.read_request(reader)):
                    end = await self._respond(request, writer)
            except faults.Refused as refused:
                _send(writer, faults.encode(refused.status, refused.body, self._clock()))

            if end == "reset":
                # Closing a socket with a linger time of 0 sends RST.
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()

            while end == "hang" and await reader.read(1 << 16):
                pass

            writer.close()
            await writer.wait_closed()

    async def _respond(self, request: faults.Request, writer: asyncio.StreamWriter) -> faults.End:
        """Send the response to a request, and return what follows on the connection."""
        endpoint = faults.ENDPOINTS.get(request.path, "")
        is_start = endpoint == "startjob"
        self._numbers[endpoint] += 1
        self.in_flight += is_start
        self.peak = max(self.peak, self.in_flight)
        self._notify()

        try:
            delivery = await self._serve(request, endpoint, self._numbers[endpoint])
        finally:
            self.in_flight -= is_start
            self._notify()

        _send(writer, delivery.data)

        if delivery.after or delivery.more:
            await self._sleep(delivery.after)
            _send(writer, delivery.more)

        return "close" if request.is_last and delivery.end == "keep" else delivery.end

    async def _serve(self, request: faults.Request, endpoint: str, number: int) -> faults.Delivery:
        """Serve a request; its run is in the log before any wait."""
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

        self._notify()
        seconds: float = self._script.get("latency", 0) + fault.get("seconds", 0)

        if seconds > 0:
            await self._sleep(seconds)

        if fault["fault"] == "hold":
            await self._released.wait()

        return faults.spoil(fault, answer, self._clock())

    def _notify(self) -> None:
        for event, reached in self._waiting.items():
            if reached():
                event.set()


def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    if not writer.is_closing():
        writer.write(data)
