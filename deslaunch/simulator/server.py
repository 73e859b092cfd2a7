"""The simulator: a service behind faults, on a listening socket."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final, Self

import anyio

from deslaunch.simulator.connection import Connection
from deslaunch.simulator.endpoints import CONNECTION, ENDPOINTS, START_JOB
from deslaunch.simulator.errors import Refused
from deslaunch.simulator.faults import Fault, spoil
from deslaunch.simulator.http import Answer, Delivery, End, Request
from deslaunch.simulator.jobs import DEFAULT_JOBS
from deslaunch.simulator.runs import Run, RunLog
from deslaunch.simulator.script import read_script
from deslaunch.simulator.service import Des
from deslaunch.simulator.tokens import Tokens

if TYPE_CHECKING:
    import os
    import ssl as tls
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

_BACKLOG: Final = 1024
_STEPS_OF_ACCEPT: Final = 5  # turns of the loop until an accepted client has its connection
_NOTHING: Final = Answer(200, b"{}")
"""The answer of a request that was not served."""


class Simulator:
    """A DES that listens while its ``async with`` block runs.

    ::

        async with Simulator(script={"faults": [{"fault": "reset", "at": [3]}]}) as simulator:
            ...  # POST to simulator.base_url
            assert len(simulator.runs) == 2

    Attributes:
        requests: start requests seen, refused and spoiled ones too.
        in_flight: start requests that were read and whose answer is not made yet.
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
        FaultScriptError: the script is malformed.
        JobsFileError: the jobs are malformed.
        OSError: on entering, the address is not free or the log can't be opened; on leaving,
            a run could not be logged (its client got FIN and no answer).
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
        self._script = read_script({} if script is None else script)
        self._tokens = Tokens(tokens, self._script, seconds=token_seconds, clock=clock)
        self._log = RunLog(log)
        self._des = Des(
            jobs,
            self._tokens,
            self._log,
            login=login or {},
            finish_after=self._script.finish_after if finish_after is None else finish_after,
            clock=clock,
        )
        self._host = host
        self._port = port
        self._ssl = ssl
        self._sleep = sleep
        self._clock = clock
        self._numbers = dict.fromkeys([*ENDPOINTS.values(), CONNECTION], 0)
        self._released = asyncio.Event()
        self._waiting: list[tuple[Callable[[], bool], asyncio.Event]] = []
        self._connections: set[Connection] = set()
        self._failures: list[BaseException] = []
        self._server: asyncio.Server | None = None
        self._block: AbstractAsyncContextManager[None] | None = None

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

    def issue_token(self) -> str:
        """Return a new access token."""
        return self._tokens.issue()

    def revoke(self, token: str) -> None:
        """Answer 401 to this access token from now on."""
        self._tokens.revoke(token)

    def release(self) -> None:
        """Let go every answer that a ``hold`` fault holds back, now and later."""
        self._released.set()

    async def until(self, reached: Callable[[], bool]) -> None:
        """Wait until a condition on this simulator holds.

        Args:
            reached: looked at now, after each start request is read, after each run is
                logged, and after each answer is made.
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
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self), self._host, self._port, ssl=self._ssl, backlog=_BACKLOG
        )
        self._port = self._server.sockets[0].getsockname()[1]
        self._des.svc = self.base_url

    async def refuse(self) -> None:
        """Stop listening and drop every client: connections are refused until :meth:`listen`."""
        server, self._server = self._server, None

        if server is None:
            return

        server.close()
        await self._drop_clients()

    async def __aenter__(self) -> Self:
        self._block = self._listening()
        await self._block.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._block is not None
        await self._block.__aexit__(exc_type, exc, traceback)

    @asynccontextmanager
    async def _listening(self) -> AsyncIterator[None]:
        await self._log.open()

        try:
            await self.listen()
            yield
        finally:
            with anyio.CancelScope(shield=True):
                await self.refuse()
                await self._log.close()

        if self._failures:
            raise self._failures[0]

    async def _drop_clients(self) -> None:
        for _ in range(_STEPS_OF_ACCEPT):
            await asyncio.sleep(0)

        # A write goes on in its thread when its task is cancelled: never close the file under it.
        await self._log.settle()
        clients = list(self._connections)

        for client in clients:
            client.abort()

        await asyncio.gather(*(client.task for client in clients), return_exceptions=True)

        for client in clients:
            await client.lost.wait()

    # What a connection asks for.

    def connected(self, connection: Connection) -> None:
        """Take note of a client."""
        self._connections.add(connection)

    def disconnected(self, connection: Connection, task: asyncio.Task[None]) -> None:
        """Forget a client whose task has ended, but not why it failed."""
        self._connections.discard(connection)
        failure = None if task.cancelled() else task.exception()

        if failure is not None:
            self._failures.append(failure)

    def welcome(self) -> End:
        """Return what becomes of a new connection before a byte of it is read."""
        fault = self._script.pick(CONNECTION, self._next_number(CONNECTION))
        return End.KEEP if fault is None else spoil(fault, _NOTHING, self._clock()).end

    async def respond(self, request: Request) -> Delivery:
        """Serve one request, with the fault that the script has for it."""
        endpoint = ENDPOINTS.get(request.path)

        if endpoint is None:
            return Delivery(Answer.json(404, {"message": f"no {request.path}"}).encode())

        if endpoint != START_JOB:
            return await self._respond(endpoint, request)

        with self._start_in_flight():
            return await self._respond(endpoint, request)

    @contextmanager
    def _start_in_flight(self) -> Iterator[None]:
        self.requests += 1
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        self._look()

        try:
            yield
        finally:
            self.in_flight -= 1
            self._look()

    async def _respond(self, endpoint: str, request: Request) -> Delivery:
        number = self._next_number(endpoint)
        fault = self._script.pick(endpoint, number, request.body)
        answer = _NOTHING

        if fault is None or fault.start:
            try:
                answer = await self._des.serve(endpoint, request, number, fault)
            except Refused as refused:
                return Delivery(Answer.json(refused.status, refused.body).encode())

        self._look()
        await self._hold_back(fault)
        return Delivery(answer.encode()) if fault is None else spoil(fault, answer, self._clock())

    async def _hold_back(self, fault: Fault | None) -> None:
        seconds = self._script.latency + (fault.seconds if fault is not None else 0)

        if seconds > 0:
            await self._sleep(seconds)

        if fault is not None and fault.kind == "hold":
            await self._released.wait()

    def _next_number(self, endpoint: str) -> int:
        self._numbers[endpoint] += 1
        return self._numbers[endpoint]

    def _look(self) -> None:
        for reached, event in self._waiting:
            if reached():
                event.set()


async def serve(simulator: Simulator, ready: Callable[[str], None], stop: asyncio.Event) -> None:
    """Run a simulator until it is told to stop.

    Args:
        simulator: not yet started.
        ready: called once with the base URL, when it listens.
        stop: ends it; requests under way get no answer.

    Raises:
        OSError: the address is not free, or the log can't be opened or written.
    """
    async with simulator:
        ready(simulator.base_url)
        await stop.wait()
