"""One timer for many limits, on a loop whose time a test sets."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, TypeVar

import pytest

from deslaunch.deadlines import GRACE, Deadlines

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from deslaunch.deadlines import Limit

T = TypeVar("T")
SECONDS: Final = 10.0


class SetLoop(asyncio.SelectorEventLoop):
    """A loop whose time stands still until it is set forward."""

    now = 0.0

    def time(self) -> float:
        return self.now

    async def pass_(self, seconds: float) -> None:
        """Let time jump, and then whatever is due happen."""
        self.now += seconds

        for _ in range(6):
            await asyncio.sleep(0)


def run(test: Callable[[SetLoop], Coroutine[None, None, T]]) -> T:
    loop = SetLoop()

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(test(loop))


async def limited(deadlines: Deadlines, answer: asyncio.Future[str]) -> str:
    limit = deadlines.begin()

    try:
        with limit:
            return await answer
    finally:
        deadlines.end(limit)


def test_a_block_that_lasts_too_long_raises_a_timeout() -> None:
    async def test(loop: SetLoop) -> tuple[bool, bool, int]:
        deadlines = Deadlines(SECONDS)
        task = asyncio.create_task(limited(deadlines, loop.create_future()))
        await loop.pass_(0)
        await loop.pass_(SECONDS)
        before = task.done()
        await loop.pass_(GRACE)
        assert isinstance(task.exception(), TimeoutError)
        return before, task.done(), task.cancelling()

    assert run(test) == (False, True, 0)


def test_limits_run_out_in_the_order_in_which_they_began() -> None:
    async def test(loop: SetLoop) -> list[list[bool]]:
        deadlines = Deadlines(SECONDS)
        tasks = []

        for _ in range(3):
            tasks.append(asyncio.create_task(limited(deadlines, loop.create_future())))
            await loop.pass_(1)

        found = []

        for second in range(3):
            await loop.pass_(SECONDS + 1 + second - loop.now)
            await loop.pass_(GRACE)
            found.append([task.done() for task in tasks])

        await asyncio.gather(*tasks, return_exceptions=True)
        return found

    assert run(test) == [[True, False, False], [True, True, False], [True, True, True]]


def test_an_answer_that_waited_while_the_loop_stood_still_is_taken() -> None:
    async def test(loop: SetLoop) -> str:
        deadlines = Deadlines(SECONDS)
        answer: asyncio.Future[str] = loop.create_future()
        task = asyncio.create_task(limited(deadlines, answer))
        await loop.pass_(0)
        await loop.pass_(100 * SECONDS)  # the timer rang, and only now the socket is read
        answer.set_result("a run")
        await loop.pass_(GRACE)
        return await task

    assert run(test) == "a run"


def test_a_limit_that_was_ended_does_nothing_more() -> None:
    async def test(loop: SetLoop) -> tuple[bool, str]:
        deadlines = Deadlines(SECONDS)
        limit = deadlines.begin()
        deadlines.end(limit)
        deadlines.end(limit)
        await loop.pass_(2 * SECONDS)
        await loop.pass_(GRACE)
        return limit.expired, repr(deadlines)

    assert run(test) == (False, "<Deadlines of 10 s: 0 running>")


def test_the_timer_serves_limits_that_begin_after_a_silence() -> None:
    async def test(loop: SetLoop) -> bool:
        deadlines = Deadlines(SECONDS)
        deadlines.end(deadlines.begin())
        await loop.pass_(2 * SECONDS)
        await loop.pass_(GRACE)
        task = asyncio.create_task(limited(deadlines, loop.create_future()))
        await loop.pass_(0)
        await loop.pass_(SECONDS)
        await loop.pass_(GRACE)
        return isinstance(task.exception(), TimeoutError)

    assert run(test)


def test_a_cancellation_by_somebody_else_stays_one() -> None:
    async def test(loop: SetLoop) -> bool:
        task = asyncio.create_task(limited(Deadlines(SECONDS), loop.create_future()))
        await loop.pass_(0)
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    assert run(test)


def test_a_cancellation_by_somebody_else_at_the_same_time_stays_one() -> None:
    async def test(loop: SetLoop) -> bool:
        task = asyncio.create_task(limited(Deadlines(SECONDS), loop.create_future()))
        await loop.pass_(0)
        await loop.pass_(SECONDS)
        loop.now += GRACE
        loop.call_soon(task.cancel)
        await asyncio.wait([task])
        return task.cancelled()

    assert run(test)


def test_a_limit_may_be_entered_twice_and_holds_for_both_together() -> None:
    async def test(loop: SetLoop) -> list[str]:
        deadlines = Deadlines(SECONDS)
        said: list[str] = []
        first: asyncio.Future[str] = loop.create_future()

        async def twice(limit: Limit) -> None:
            with limit:
                said.append(await first)

            with limit:
                await loop.create_future()

        async def work() -> None:
            await twice(deadlines.begin())

        task = asyncio.create_task(work())
        await loop.pass_(0)
        await loop.pass_(SECONDS - 1)
        first.set_result("headers")
        await loop.pass_(1)
        await loop.pass_(GRACE)
        said.append(type(task.exception()).__name__)
        return said

    assert run(test) == ["headers", "TimeoutError"]


def test_after_close_no_timer_is_left() -> None:
    async def test(loop: SetLoop) -> bool:
        deadlines = Deadlines(SECONDS)
        limit = deadlines.begin()
        deadlines.close()
        deadlines.close()
        await loop.pass_(2 * SECONDS)
        await loop.pass_(GRACE)
        return limit.expired

    assert not run(test)


def test_only_a_task_is_given_a_limit() -> None:
    async def test(loop: SetLoop) -> list[object]:
        found: list[object] = []

        def begin() -> None:
            try:
                found.append(Deadlines(SECONDS).begin())
            except RuntimeError as exc:
                found.append(str(exc))

        loop.call_soon(begin)
        await loop.pass_(0)
        return found

    assert run(test) == ["only a task can be given a time limit"]


@pytest.mark.parametrize(
    ("expired", "told"), [(False, "<Limit running>"), (True, "<Limit expired>")]
)
def test_a_limit_tells_its_state(expired: bool, told: str) -> None:
    async def test(_: SetLoop) -> str:
        limit = Deadlines(SECONDS).begin()
        limit.expired = expired
        return repr(limit)

    assert run(test) == told
