"""Time limits of many requests at once, all equally long, on one timer.

A timer for each request costs a tenth of the time that aiohttp needs for it. Since all limits
are equally long, they run out in the order in which they began, and one timer, set for the
oldest, serves them all.

A limit that has run out is enforced a moment later. An event loop that stood still, because its
machine was asleep or its disk slow, finds timers and answers waiting at the same time: the
answers are read first, so that none is lost to a limit that only the standstill exceeded.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import TracebackType

GRACE: Final = 0.05
"""Seconds between the end of a limit and its being enforced."""


class Deadlines:
    """Gives out limits of the same length.

    Args:
        seconds: the length, above 0.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._running: dict[Limit, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Deadlines of {self._seconds:g} s: {len(self._running)} running>"

    def begin(self) -> Limit:
        """Return a limit that runs from now on, for the current task.

        Raises:
            RuntimeError: this is no task.
        """
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)

        if task is None:
            raise RuntimeError("only a task can be given a time limit")

        limit = Limit(task)
        due = self._running[limit] = loop.time() + self._seconds

        if self._timer is None:
            self._timer = loop.call_at(due, self._ring, due)

        return limit

    def end(self, limit: Limit) -> None:
        """Let a limit run no more."""
        self._running.pop(limit, None)

    def close(self) -> None:
        """Let no limit run any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self, due: float) -> None:
        loop = asyncio.get_running_loop()
        now = max(due, loop.time())  # a timer may ring a little early
        self._timer = loop.call_later(GRACE, self._enforce, now)

    def _enforce(self, now: float) -> None:
        """End what was overdue when the timer rang, and set it for the next."""
        self._timer = None

        for limit, due in list(self._running.items()):
            if due > now:
                self._timer = asyncio.get_running_loop().call_at(due, self._ring, due)
                break

            del self._running[limit]
            limit.run_out()


class Limit:
    """One limit: a context manager, to be entered once or several times one after the other.

    When it runs out, the block that is entered then raises ``TimeoutError``.

    Attributes:
        expired: it has run out.
    """

    __slots__ = ("_cancelling", "_task", "expired")

    def __init__(self, task: asyncio.Task[object]) -> None:
        self.expired = False
        self._task = task
        self._cancelling = task.cancelling()

    def __repr__(self) -> str:
        return f"<Limit {'expired' if self.expired else 'running'}>"

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Tell the limit's own cancellation from another's.

        Raises:
            TimeoutError: the limit ran out, and nobody else cancelled the task.
        """
        if not self.expired:
            return

        mine = self._task.uncancel() <= self._cancelling

        if mine and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def run_out(self) -> None:
        """End the block in which the task is."""
        self.expired = True
        self._task.cancel()
