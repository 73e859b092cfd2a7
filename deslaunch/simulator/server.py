"""The simulator: a service behind faults, on a listening socket."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, cast

import anyio

from deslaunch.simulator import faults
from deslaunch.simulator.faults import CONNECTION, ENDPOINTS, NOTHING, START_JOB, Fault, spoil
from deslaunch.simulator.http import BadRequest, Delivery, End, Request, RequestParser, Response
from deslaunch.simulator.service import DEFAULT_JOBS, Des, Refused, Run, RunLog, Tokens

if TYPE_CHECKING:
    import os
    import ssl as tls
    from collections.abc import Awaitable, Callable, Iterable, Mapping

_BACKLOG: Final = 1024
_STEPS_OF_ACCEPT: Final = 5  # turns of the loop until an accepted client has its connection
_NO_LINGER: Final = struct.pack("ii", 1, 0)


class _Turn(NamedTuple):
    """One request that was read, and what it gets: ``seconds`` later, as ``fault`` spoils it."""

    response: Response
    fault: Fault | None = None
    seconds: float = 0.0
    is_start: bool = False


class Simulator:
    """A DES that listens while its ``async with`` block runs.

    ::

        async with Simulator(script={"faults": [{"fault": "reset", "at": [3]}]}) as simulator:
            ...  # POST to simulator.base_url
            assert len(simulator.runs) == 2

    Attributes:
        requests: start requests read, refused and spoiled ones too.
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
        finish_after: seconds from a run's start to its end, as queryrunstatus tells it; default:
            the script's.
        sleep: waits so many seconds.
        clock: Unix time in seconds.

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
        finish_after: float | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.requests = 0
        self.in_flight = 0
        self.peak = 0
        self._sleep = sleep
        self._clock = clock
        self.use(script)
        self._tokens = Tokens(tokens, self._script, token_seconds, self._now)
        self._log = RunLog(log)
        self._des = Des(jobs, self._tokens, self._log, login or {}, self._now)
        self._des.finish_after = self._script.finish_after if finish_after is None else finish_after
        self._host = host
        self._port = port
        self._ssl = ssl
        self._numbers = dict.fromkeys([*ENDPOINTS.values(), CONNECTION], 0)
        self._released = asyncio.Event()
        self._waiting: list[tuple[Callable[[], bool], asyncio.Event]] = []
        self._connections: set[_Connection] = set()
        self._failures: list[BaseException] = []
        self._server: asyncio.Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def __repr__(self) -> str:
        return (
            f"<Simulator {self.base_url}: {self.requests} start requests, "
            f"{len(self.runs)} runs, {len(self._connections)} connections>"
        )

    @property
    def base_url(self) -> str:
        """Scheme, host and port, without a slash at the end; the port is known once it listens."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'http' if self._ssl is None else 'https'}://{host}:{self._port}"

    @property
    def runs(self) -> list[Run]:
        """Every run that is in the log, in its order."""
        return self._log.runs

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

    def issue_token(self) -> str:
        """Return a new access token."""
        return self._tokens.issue()

    def revoke(self, token: str) -> None:
        """Answer 401 to this access token from now on."""
        self._tokens.revoke(token)

    def release(self) -> None:
        """Let go every response that a ``hold`` fault holds back, now and later.

        It may be called from any thread, as may ``use``, and the attributes be read.
        """
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._released.set)

    async def until(self, reached: Callable[[], bool]) -> None:
        """Wait until a condition on this simulator holds.

        Args:
            reached: looked at now, after each start request is read, after each run is
                logged, and after each response is made.
        """
        if reached():
            return

        waiting = (reached, asyncio.Event())
        self._waiting.append(waiting)

        try:
            await waiting[1].wait()
        finally:
            self._waiting.remove(waiting)

    async def listen(self) -> None:
        """Listen again on the same port, after :meth:`refuse`.

        Raises:
            OSError: the address is not free.
        """
        self._loop = asyncio.get_running_loop()
        self._server = await self._loop.create_server(
            lambda: _Connection(self), self._host, self._port, ssl=self._ssl, backlog=_BACKLOG
        )
        self._port = self._server.sockets[0].getsockname()[1]
        self._des.svc = self.base_url

    async def refuse(self) -> None:
        """Stop listening and drop every client: connections are refused until :meth:`listen`."""
        server, self._server = self._server, None

        if server is None:
            return

        server.close()

        for _ in range(_STEPS_OF_ACCEPT):
            await asyncio.sleep(0)

        clients = list(self._connections)
        tasks = [task for client in clients if (task := client.abort()) is not None]
        await asyncio.gather(*tasks, return_exceptions=True)

        for client in clients:
            await client.lost.wait()

        self.in_flight = 0  # a task that was cancelled before its first step has not counted down

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

    # What a connection asks for.

    def _welcome(self, connection: _Connection) -> End:
        """Return what becomes of a new client before a byte of it is read."""
        self._connections.add(connection)
        fault = self._script.pick(CONNECTION, self._next_number(CONNECTION))
        return End.KEEP if fault is None else spoil(fault, NOTHING, self._now()).end

    def _take(self, request: Request) -> _Turn:
        """Serve one request; the run that it makes is in the log when this returns."""
        endpoint = ENDPOINTS.get(request.path)

        if endpoint is None:
            return _Turn(Refused(404, f"no {request.path}").response)

        is_start = endpoint == START_JOB

        if is_start:
            self.requests += 1
            self.in_flight += 1
            self.peak = max(self.peak, self.in_flight)
            self._look()

        number = self._next_number(endpoint)
        fault = self._script.pick(endpoint, number, request.body)
        response = NOTHING

        if fault is None or fault.is_served:
            try:
                response = self._des.serve(endpoint, request, number, fault)
            except Refused as refused:
                return _Turn(refused.response, is_start=is_start)
            except OSError as exc:
                self._failures.append(exc)
                return _Turn(NOTHING, _NO_RESPONSE, is_start=is_start)

        self._look()
        seconds = self._script.latency + (fault.entry.get("seconds", 0) if fault is not None else 0)
        return _Turn(response, fault, seconds, is_start)

    async def _hold_back(self, turn: _Turn) -> None:
        if turn.seconds > 0:
            await self._sleep(turn.seconds)

        if turn.fault is not None and turn.fault.kind == "hold":
            await self._released.wait()

    def _finish(self, turn: _Turn) -> Delivery:
        if turn.is_start:
            self.in_flight -= 1
            self._look()

        if turn.fault is None:
            return Delivery(turn.response.encode(self._now()))

        return spoil(turn.fault, turn.response, self._now())

    def _lose(self, connection: _Connection, failure: BaseException | None) -> None:
        self._connections.discard(connection)

        if failure is not None:
            self._failures.append(failure)

    def _now(self) -> float:
        return self._clock() + self._script.clock_ahead

    def _next_number(self, endpoint: str) -> int:
        self._numbers[endpoint] += 1
        return self._numbers[endpoint]

    def _look(self) -> None:
        for reached, event in self._waiting:
            if reached():
                event.set()


_NO_RESPONSE: Final = Fault("close", 0, {})
"""What a start gets whose run could not be logged."""


class _Connection(asyncio.Protocol):
    """One client: its requests are served one after the other."""

    _transport: asyncio.Transport

    def __init__(self, simulator: Simulator) -> None:
        self.lost = asyncio.Event()
        self._simulator = simulator
        self._parser = RequestParser()
        self._task: asyncio.Task[None] | None = None
        self._is_busy = False  # for ever, once the connection serves no more

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._is_busy = True
        self._end(self._simulator._welcome(self))

    def data_received(self, data: bytes) -> None:
        self._parser.feed(data)
        self._serve()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # the protocol's
        self.lost.set()

        if self._task is None:
            self._simulator._lose(self, None)

    def abort(self) -> asyncio.Task[None] | None:
        """Drop the connection, with whatever was not sent yet; return its task, cancelled."""
        self._transport.abort()

        if self._task is not None:
            self._task.cancel()

        return self._task

    def _serve(self) -> None:
        """Serve what was read whole, also of a client that has hung up."""
        while not self._is_busy:
            try:
                request = self._parser.next_request()
            except BadRequest as exc:
                self._is_busy = True
                self._transport.write(Refused(400, str(exc)).response.encode(time.time()))
                self._end(End.CLOSE)
                return

            if request is None:
                return

            self._is_busy = True
            turn = self._simulator._take(request)

            if turn.fault is None and turn.seconds == 0:
                self._write(self._simulator._finish(turn).data)
                self._end(End.CLOSE if request.is_last else End.KEEP)
            else:
                loop = asyncio.get_running_loop()
                self._task = loop.create_task(self._deliver(turn, is_last=request.is_last))
                self._task.add_done_callback(self._done)

    async def _deliver(self, turn: _Turn, *, is_last: bool) -> None:
        """Send a response that is late or spoiled."""
        try:
            await self._simulator._hold_back(turn)
        finally:
            delivery = self._simulator._finish(turn)

        self._write(delivery.data)

        if delivery.after or delivery.more:
            await self._simulator._sleep(delivery.after)
            self._write(delivery.more)

        self._end(End.CLOSE if is_last and delivery.end is End.KEEP else delivery.end)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._task = None
        failure = None if task.cancelled() else task.exception()

        if failure is not None or self.lost.is_set():
            self._transport.abort()
            self._simulator._lose(self, failure)

        if failure is None and not task.cancelled():
            self._serve()

    def _write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    def _end(self, end: End) -> None:
        if end is End.KEEP:
            self._is_busy = False
        elif end is End.CLOSE:
            self._transport.close()
        elif end is End.RESET:
            # A socket that may not linger throws its connection away: RST.
            sock = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            self._transport.abort()


async def serve(simulator: Simulator, ready: Callable[[str], None], stop: asyncio.Event) -> None:
    """Run a simulator until it is told to stop.

    Args:
        simulator: not yet started.
        ready: called once with the base URL, when it listens.
        stop: ends it; requests under way get no response.

    Raises:
        OSError: the address is not free, or the log can't be opened or written.
    """
    async with simulator:
        ready(simulator.base_url)
        await stop.wait()
