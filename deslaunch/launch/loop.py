"""What a session and a watch stand on.

A clock that is passed in, workers that share a queue, and what both loops do alike.
"""

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

SHORTEST_SLEEP = 0.001  # uvloop's timers know milliseconds; a shorter one would spin
LONGEST_SLEEP = 3600.0  # no timer rings at infinity

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
    """What a session and a watch do alike: throttle targets, tell events, end after an error.

    Attributes:
        ledger: the batch's.
        clients: by target.
        settings: slots, rate, waits and limits.
        emit: called with each event, after what it tells of is on disk.
        clock: time; it need not be the ledger's.
        rng: the source of jitter.
        stops: why targets, or all of it, ended early, in the order of happening.
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
        """Give up what is in flight: rows of which a byte may have left become unknown."""
        self.drain()
        self._workers.cancel_busy()

    def _slots_of(self, name: str, slots: int) -> int:
        """Return how many of so many slots a target may have."""
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
        """Return once there is news; at ``until``, or after an hour, at the latest."""
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
        """Tell what follows for a target; its end is told once."""
        if isinstance(decided, TargetPaused):
            self._announce(decided)
        elif decided is not None and all(known.target != decided.target for known in self.stops):
            self._note_stop(decided)

    def _note_stop(self, stop: Stop) -> None:
        self.stops.append(stop)
        self._announce(TargetStopped(stop))

    def _announce(self, event: Event) -> None:
        """Tell of something that a session notes in the ledger."""
        self._tell(event)

    def _tell(self, event: Event) -> None:
        """Call the listener; its error ends the loop, not the record that it missed."""
        try:
            self.emit(event)
        except Exception as exc:  # noqa: BLE001  # a listener may raise anything
            self._fail(exc)

    def _fail(self, exc: Exception) -> None:
        self._error = self._error or exc
        self.drain()


def fit_slots(slots: int) -> tuple[int, str]:
    """Let this process open as many files as so many slots need.

    Returns:
        The slots that fit, at least 1, and a sentence where they are fewer, else ``""``.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = slots + SPARE + _OTHER_FILES

    if soft == resource.RLIM_INFINITY or soft >= needed:
        return slots, ""

    most = needed if hard == resource.RLIM_INFINITY else min(hard, needed)

    with suppress(ValueError, OSError):  # a system may know another limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft = most

    fitting = max(1, min(slots, soft - count_spare() - _OTHER_FILES))
    told = f"{count(fitting, 'slot')}: this process may open {soft} files (ulimit -n)"
    return fitting, told if fitting < slots else ""


class Workers:
    """Tasks that do one work after the other: a task for each would cost a third more."""

    def __init__(self) -> None:
        self._queue: deque[tuple[Coroutine[Any, Any, None], Sent]] = deque()
        self._idle: deque[asyncio.Future[None]] = deque()
        self._busy: dict[asyncio.Task[Any], Sent] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def busy(self) -> int:
        """Works that are being done."""
        return len(self._busy)

    def put(self, work: Coroutine[Any, Any, None], sent: Sent) -> None:
        """Let a worker do this: an idle one, else a new one. It must not raise.

        Args:
            work: sends one request.
            sent: whether a byte of it may have left.
        """
        self._queue.append((work, sent))

        while self._idle:
            waiter = self._idle.popleft()

            if not waiter.done():
                waiter.set_result(None)
                return

        self.help(self._serve())

    def help(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something beside the workers that ends with them."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def cancel_busy(self, *, unsent_only: bool = False) -> int:
        """Cancel what is being done, but the work that calls; each decides what that means for it.

        Args:
            unsent_only: only that of which no byte has left.

        Returns:
            The works that go on.
        """
        works = [(t, sent) for t, sent in self._busy.items() if t is not asyncio.current_task()]
        cancelled = [task for task, sent in works if not (unsent_only and sent)]

        for task in cancelled:
            task.cancel()

        return len(works) - len(cancelled)

    async def aclose(self) -> None:
        """End all tasks, and return once they have ended."""
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
    """Return kind, target and text of an event that the ledger keeps."""
    match event:
        case TargetPaused(target, cause, seconds):
            return "pause", target, f"{seconds:.3f} s: {cause}"
        case TargetStopped(stop) if stop.reason is not StopReason.LEDGER:  # it can't be written to
            return "stop", stop.target, f"{stop.reason}: {stop.message}"
        case TokenRenewed(target):
            return "token", target, "a new token is in use"
        case Noted(text):
            return "repeatedRun", None, text
        case _:
            return None
