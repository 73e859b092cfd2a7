"""The event loop of a command, and the signals that interrupt it."""

from __future__ import annotations

import asyncio
import gc
import signal
from typing import TYPE_CHECKING, Any, Final

from deslaunch.errors import Interrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from deslaunch.session import Interrupt

_COLLECT_AFTER: Final = 50_000
"""Objects that are made, more than go, before a search for cycles: a launch makes few of them."""


def interruptible(work: Callable[[Interrupt], Coroutine[Any, Any, int]]) -> int:
    """Run a command's work, with SIGINT, SIGTERM and SIGHUP as its interrupts.

    The first signal drains a launch, the second gives up what is in flight. Before anything
    can have been sent, the first one ends the command.
    """
    from deslaunch.session import Interrupt  # noqa: PLC0415  # aiohttp is slow to import

    interrupt = Interrupt()
    signals: list[int] = []

    async def main() -> int:
        task = asyncio.current_task()
        assert task is not None

        def on_signal(number: int) -> None:
            signals.append(number)

            if interrupt.attached:
                interrupt(number)
            else:
                task.cancel()

        for number in _interrupts():
            asyncio.get_running_loop().add_signal_handler(number, on_signal, number)

        return await work(interrupt)

    try:
        return in_loop(main())
    except asyncio.CancelledError:
        raise Interrupted("interrupted", signum=signals[0]) from None


def _interrupts() -> list[signal.Signals]:
    """Return the signals that end a command; a hang-up does not where nohup had it ignored."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([] if ignored else [signal.SIGHUP])]


def in_loop(work: Coroutine[Any, Any, int]) -> int:
    """Run a command's work to its end, in the fastest event loop that there is."""
    gc.freeze()  # what was imported stays: no collection needs to look at it again
    gc.set_threshold(_COLLECT_AFTER)

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(work)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415  # other Pythons do without it
    except ImportError:
        return None

    return uvloop.new_event_loop
