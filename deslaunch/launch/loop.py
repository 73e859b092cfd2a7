"""What a session and a watch stand on: a clock that is passed in, workers that share a queue."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

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
