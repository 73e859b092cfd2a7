"""Interrupts at random moments, terminals that close, and pipes that nobody reads."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from .arena import QUICK, Arena, Done, arena, ended, side_by_side
from .kills import runs_or_end
from .tally import Tally

if TYPE_CHECKING:
    import random
    from asyncio.subprocess import Process
    from pathlib import Path

ROWS: Final = 300
SLOTS: Final = 16
SCRIPT: Final[dict[str, Any]] = {
    "latency": 0.02,
    "faults": [
        {"fault": "status", "status": 503, "share": 0.03},
        {"fault": "latency", "seconds": 0.05, "share": 0.2},
    ],
}
HANGING: Final[dict[str, Any]] = {
    "latency": 0.02,
    "faults": [{"fault": "hang-after-start", "share": 0.1, "from": 5, "to": 150}],
}
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


async def interrupts(folder: Path, *, fast: bool, rng: random.Random) -> Tally:
    """Signal at random moments, sometimes twice, sometimes with answers that never come."""
    tally = Tally("interrupts at random, 300-row batches")

    async def one(number: int) -> None:
        sign = SIGNALS[number % 3]
        hanging, twice = number % 4 == 3, rng.random() < 0.5
        case = f"{sign.name} {number}{' hanging' * hanging}{' twice' * twice}"

        async with arena(folder / f"{number}", ROWS, HANGING if hanging else SCRIPT) as place:
            options = ("--concurrency", str(SLOTS), "--drain-timeout", "0.3" if hanging else "20")
            process = await place.start("run", str(place.manifest), *options, *QUICK)
            await _wait(place, process, rng)
            _send(process, sign)

            if twice:
                await asyncio.sleep(rng.uniform(0, 0.05))
                _send(process, sign)

            done = await ended(process)
            tally.expect(done.code in _codes(sign), f"{case}: {done}")
            tally.expect("Traceback" not in done.err or not place.is_begun, f"{case}: {done}")
            tally.cases += 1
            doubts = SLOTS if hanging or twice else 0
            # A batch that hangs goes on hanging where it is resumed: by the timeout, at last.
            options = ("--timeout", "0.5", "--concurrency", str(SLOTS))
            most = None if hanging else doubts
            await place.conclude(tally, case, *(options if hanging else ()), most_unknown=most)

    await side_by_side(partial(one, number) for number in range(4 if fast else 90))
    return tally


async def _wait(place: Arena, process: Process, rng: random.Random) -> None:
    if rng.random() < 0.1:
        await asyncio.sleep(rng.uniform(0.05, 0.6))  # while it starts, reads and checks
    else:
        await runs_or_end(place, process, rng.randrange(1, ROWS))


def _send(process: Process, sign: int) -> None:
    if process.returncode is None:
        process.send_signal(sign)


def _codes(sign: int) -> set[int]:
    """Return the exit codes of a run that was interrupted: early, on its way, or too late."""
    return {-sign, 128 + sign, 0, 3, 4, 5}


async def lost_ends(folder: Path, *, fast: bool, rng: random.Random) -> Tally:
    """Close the terminal, or the pipes, of a launch at work."""
    tally = Tally("closed terminals and pipes")
    ways = (_closed_terminal, _closed_verbose_terminal, _closed_stderr, _closed_both)

    async def one(number: int) -> None:
        way = ways[number % len(ways)]
        case = f"{way.__name__.strip('_')} {number}"

        async with arena(folder / f"{number}", ROWS, SCRIPT) as place:
            done = await way(place, rng.randrange(1, ROWS))
            allowed = {0, 3, 129 if "terminal" in case else 141}
            tally.expect(done.code in allowed, f"{case}: {done}")
            tally.cases += 1
            await place.conclude(tally, case, most_unknown=0)

    await side_by_side(partial(one, number) for number in range(4 if fast else 32))
    return tally


async def _closed_terminal(place: Arena, aim: int, *options: str) -> Done:
    """The session's terminal goes: SIGHUP, and what is written comes back as EIO."""
    leader, terminal = pty.openpty()
    process = await place.start(
        *("run", str(place.manifest), "--yes", *options, *QUICK),
        wrap=("setsid", "--ctty", "env", "TERM=xterm"),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    await runs_or_end(place, process, aim)
    os.close(leader)
    return await ended(process)


async def _closed_verbose_terminal(place: Arena, aim: int) -> Done:
    return await _closed_terminal(place, aim, "--verbose")


async def _closed_stderr(place: Arena, aim: int) -> Done:
    read, write = os.pipe()
    process = await place.start(
        "run", str(place.manifest), "--verbose", "--json", *QUICK, stderr=write
    )
    os.close(write)
    await runs_or_end(place, process, aim)
    os.close(read)
    return await ended(process)


async def _closed_both(place: Arena, aim: int) -> Done:
    read, write = os.pipe()
    command = ("run", str(place.manifest), "--verbose", "--json", *QUICK)
    process = await place.start(*command, stdout=write, stderr=write)
    os.close(write)
    await runs_or_end(place, process, aim)
    os.close(read)
    return await ended(process)
