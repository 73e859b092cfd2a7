"""What a session and a watch stand on.

A clock that is passed in, workers that share a queue, and what both loops do alike.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from deslaunch.launch.retry import pause_wait
from deslaunch.launch.target import Throttle

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from deslaunch.des.client import DesClient
    from deslaunch.events import Event, Stop
    from deslaunch.launch.retry import Jitter
    from deslaunch.settings import Settings

Item = TypeVar("Item")

SHORTEST_SLEEP = 0.001  # uvloop's timers know milliseconds; a shorter one would spin


class Clock(Protocol):
    """Time, passed in."""

    def now(self) -> float:
        """Return seconds of a clock that only goes forward."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after ``seconds``."""
        ...

    def call_later(self, seconds: float, callback: Callable[[], object]) -> asyncio.TimerHandle:
        """Call back after ``seconds``, unless the handle is cancelled."""
        ...


class SystemClock:
    """The running event loop's time."""

    def now(self) -> float:
        """Return the event loop's time, seconds."""
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        """Return after ``seconds``."""
        await asyncio.sleep(seconds)

    def call_later(self, seconds: float, callback: Callable[[], object]) -> asyncio.TimerHandle:
        """Call back after ``seconds``, unless the handle is cancelled."""
        return asyncio.get_running_loop().call_later(seconds, callback)


async def wait_for_news(news: asyncio.Event, clock: Clock, until: float | None) -> None:
    """Return once ``news`` is set, which happens at ``until`` at the latest."""
    if until is None:
        await news.wait()
        return

    alarm = clock.call_later(max(until - clock.now(), SHORTEST_SLEEP), news.set)

    try:
        await news.wait()
    finally:
        alarm.cancel()


class Loop:
    """What a session and a watch do alike: throttle targets, tell events, end after an error.

    Attributes:
        stops: why targets, or all of it, ended early, in the order of happening.
    """

    def __init__(
        self, settings: Settings, emit: Callable[[Event], object], clock: Clock, rng: Jitter
    ) -> None:
        self.stops: list[Stop] = []
        self._settings = settings
        self._emit = emit
        self._clock = clock
        self._rng = rng
        self._news = asyncio.Event()
        self._error: Exception | None = None

    def drain(self, stop: Stop | None = None) -> None:
        """Begin nothing new."""
        raise NotImplementedError

    def _throttle(self, name: str, client: DesClient) -> Throttle:
        settings = self._settings
        return Throttle(
            name,
            slots=min(settings.concurrency, client.concurrency or settings.concurrency),
            wait=lambda pauses: pause_wait(pauses, settings.max_wait, self._rng),
            give_up_after=settings.give_up_after,
        )

    def _tell(self, event: Event) -> None:
        """Call the listener; its error ends the loop, not the record that it missed."""
        try:
            self._emit(event)
        except Exception as exc:  # noqa: BLE001  # a listener may raise anything
            self._fail(exc)

    def _fail(self, exc: Exception) -> None:
        self._error = self._error or exc
        self.drain()


class Workers(Generic[Item]):
    """Tasks that work on one item after the other: a task for each would cost a third more.

    Args:
        work: awaited with each item; it must not raise, but for a cancellation.
    """

    def __init__(self, work: Callable[[Item], Awaitable[None]]) -> None:
        self._work = work
        self._queue: deque[Item] = deque()
        self._idle: deque[asyncio.Future[None]] = deque()
        self._busy: set[asyncio.Task[Any]] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def busy(self) -> int:
        """Items that are worked on."""
        return len(self._busy)

    def put(self, item: Item) -> None:
        """Let a worker take up an item: an idle one, else a new one."""
        self._queue.append(item)

        while self._idle:
            waiter = self._idle.popleft()

            if not waiter.done():
                waiter.set_result(None)
                return

        self.help(self._serve())

    def help(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something beside the workers that ends with them."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def cancel_busy(self) -> None:
        """Cancel what is worked on; each worker decides what that means for its item."""
        for task in list(self._busy):
            task.cancel()

    async def aclose(self) -> None:
        """End all tasks, and return once they have ended."""
        tasks = list(self._tasks)

        for task in tasks:
            task.cancel()

        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self) -> None:
        task = asyncio.current_task()
        assert task is not None

        while True:
            while not self._queue:
                waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._idle.append(waiter)
                await waiter

            item = self._queue.popleft()
            self._busy.add(task)

            try:
                await self._work(item)
            finally:
                self._busy.discard(task)
