"""The base of the two loops, Session and Watch: clock, throttles, events, worker tasks."""

import asyncio
import random
import resource
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from deslaunch.des.client import DesClient
from deslaunch.des.quick import SPARE, count_spare
from deslaunch.events import (
    Event,
    Noted,
    Stop,
    StopReason,
    TargetPaused,
    TargetStopped,
    TokenRenewed,
)
from deslaunch.launch.retry import wait_after
from deslaunch.launch.target import Pacer, Throttle
from deslaunch.ledger.ledger import Ledger
from deslaunch.model import Sent, count
from deslaunch.settings import Settings

SHORTEST_SLEEP = 0.001  # uvloop's timers count milliseconds; a shorter one would spin
LONGEST_SLEEP = 3600.0  # timers take no infinity

_OTHER_FILES = 48  # beside sockets: the ledger, its log, the history, modules imported late


class Clock:
    """The running event loop's time; tests pass another."""

    def now(self) -> float:
        """Return seconds of a clock that only goes forward."""
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        """Return after ``seconds``."""
        await asyncio.sleep(seconds)

    def call_later(self, seconds: float, callback: Callable[[], object]) -> asyncio.TimerHandle:
        """Call back after ``seconds``, unless the handle is cancelled."""
        return asyncio.get_running_loop().call_later(seconds, callback)


@dataclass(eq=False, repr=False)
class Loop:
    """The base of Session and Watch: throttles targets, emits events, ends after an error.

    Attributes:
        ledger: of the batch.
        clients: by target.
        settings: slots, rate, waits and limits.
        emit: called with each event, in the event loop, once what it reports is on disk.
        clock: need not be the ledger's.
        rng: the source of jitter.
        stops: why targets, or the whole loop, ended early; in order of time.
    """

    ledger: Ledger
    clients: Mapping[str, DesClient]
    settings: Settings
    _: KW_ONLY
    emit: Callable[[Event], object]
    clock: Clock = field(default_factory=Clock)
    rng: random.Random = field(default_factory=random.Random)

    def __post_init__(self) -> None:
        self.stops: list[Stop] = []
        self._pacer = Pacer(self.settings.rate)
        self._workers = Workers()
        self._news = asyncio.Event()
        self._is_draining = False
        self._error: Exception | None = None

    def __repr__(self) -> str:
        state = "draining" if self._is_draining else "at work"
        return f"<{type(self).__name__} {state}: {self._workers.busy} in flight>"

    def drain(self, stop: Stop | None = None) -> None:
        """Begin nothing new."""
        raise NotImplementedError

    def abandon(self) -> None:
        """Give up the rows in flight; those of which a byte may have left become unknown."""
        self.drain()
        self._workers.cancel_busy()

    def _slots_of(self, name: str, slots: int) -> int:
        """Return how many of ``slots`` a target may use."""
        return min(slots, self.clients[name].concurrency or slots)

    def _throttle(self, name: str) -> Throttle:
        settings = self.settings
        return Throttle(
            name,
            slots=self._slots_of(name, settings.concurrency),
            wait=lambda pauses: wait_after(pauses, settings.max_wait, self.rng),
            give_up_after=settings.give_up_after,
        )

    async def _wait_for_news(self, until: float) -> None:
        """Return once ``_news`` is set, at ``until``, or after an hour."""
        seconds = min(max(until - self.clock.now(), SHORTEST_SLEEP), LONGEST_SLEEP)
        alarm = self.clock.call_later(seconds, self._news.set)

        try:
            await self._news.wait()
        finally:
            alarm.cancel()

    async def _after(self, seconds: float, act: Callable[[], None]) -> None:
        await self.clock.sleep(seconds)
        act()

    async def _every(self, seconds: float, act: Callable[[], Awaitable[None]]) -> None:
        while True:
            await self.clock.sleep(seconds)
            await act()

    def _act(self, decided: TargetPaused | Stop | None) -> None:
        """Report a target's pause or stop; its stop once."""
        if isinstance(decided, TargetPaused):
            self._announce(decided)
        elif decided is not None and all(known.target != decided.target for known in self.stops):
            self._note_stop(decided)

    def _note_stop(self, stop: Stop) -> None:
        self.stops.append(stop)
        self._announce(TargetStopped(stop))

    def _announce(self, event: Event) -> None:
        """Emit an event; a session notes it in the ledger first."""
        self._emit(event)

    def _emit(self, event: Event) -> None:
        """Call the listener. If it raises, the loop drains; outcomes are still recorded."""
        try:
            self.emit(event)
        except Exception as exc:  # noqa: BLE001  # a listener may raise anything
            self._fail(exc)

    def _fail(self, exc: Exception) -> None:
        self._error = self._error or exc
        self.drain()


def fit_slots(slots: int) -> tuple[int, str]:
    """Raise this process's limit of open files (RLIMIT_NOFILE) to what the slots need.

    Returns:
        The slots that the limit allows, at least 1; and a warning if they are fewer, else ``""``.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = slots + SPARE + _OTHER_FILES

    if soft == resource.RLIM_INFINITY or soft >= needed:
        return slots, ""

    most = needed if hard == resource.RLIM_INFINITY else min(hard, needed)

    with suppress(ValueError, OSError):  # the system may have another limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft = most

    fitting = max(1, min(slots, soft - count_spare() - _OTHER_FILES))
    warning = f"{count(fitting, 'slot')}: this process may open {soft} files (ulimit -n)"
    return fitting, warning if fitting < slots else ""


class Workers:
    """Tasks that are used again: one new task for each request would cost a third more."""

    def __init__(self) -> None:
        self._queue: deque[tuple[Coroutine[Any, Any, None], Sent]] = deque()
        self._idle: deque[asyncio.Future[None]] = deque()
        self._busy: dict[asyncio.Task[Any], Sent] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def busy(self) -> int:
        """Requests in flight."""
        return len(self._busy)

    def put(self, work: Coroutine[Any, Any, None], sent: Sent) -> None:
        """Run a request in an idle worker, else in a new one.

        Args:
            work: sends one request; must not raise.
            sent: becomes true when a byte of it may have left.
        """
        self._queue.append((work, sent))

        while self._idle:
            waiter = self._idle.popleft()

            if not waiter.done():
                waiter.set_result(None)
                return

        self.help(self._serve())

    def help(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a background task until :meth:`aclose`."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def cancel_busy(self, *, unsent_only: bool = False) -> int:
        """Cancel the requests in flight, but not the one that calls this.

        Args:
            unsent_only: only requests of which no byte has left.

        Returns:
            How many requests remain.
        """
        works = [(t, sent) for t, sent in self._busy.items() if t is not asyncio.current_task()]
        cancelled = [task for task, sent in works if not (unsent_only and sent)]

        for task in cancelled:
            task.cancel()

        return len(works) - len(cancelled)

    async def aclose(self) -> None:
        """Cancel all tasks, and wait for them."""
        tasks = list(self._tasks)

        for task in tasks:
            task.cancel()

        await asyncio.gather(*tasks, return_exceptions=True)

        while self._queue:
            self._queue.pop()[0].close()

    async def _serve(self) -> None:
        task = asyncio.current_task()
        assert task is not None

        while True:
            while not self._queue:
                waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._idle.append(waiter)
                await waiter

            work, self._busy[task] = self._queue.popleft()

            try:
                await work
            finally:
                del self._busy[task]


def note_of(event: Event) -> tuple[str, str | None, str] | None:
    """Return (kind, target, text) of an event that the ledger keeps; None for others."""
    match event:
        case TargetPaused(target, cause, seconds):
            return "pause", target, f"{seconds:.3f} s: {cause}"
        case TargetStopped(stop) if stop.reason is not StopReason.LEDGER:  # which can't be written
            return "stop", stop.target, f"{stop.reason}: {stop.message}"
        case TokenRenewed(target):
            return "token", target, "a new token is in use"
        case Noted(text):
            return "repeatedRun", None, text
        case _:
            return None
