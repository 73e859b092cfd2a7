"""Killed at every write and sync of the ledger, by power cuts, and at random."""

from __future__ import annotations

import asyncio
import itertools
import re
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from .arena import KILLED, LIMIT, QUICK, Arena, arena, ended, side_by_side
from .tally import Tally
from .witness import unknown_in

if TYPE_CHECKING:
    import random
    from asyncio.subprocess import Process

SLOTS: Final = 4
ROWS: Final = 12
MOST_CALLS: Final = 200
VICTIM: Final = str(Path(__file__).with_name("victim.py"))

SHORT: Final[dict[str, Any]] = {
    "latency": 0.002,
    "faults": [
        {"fault": "status", "status": 503, "at": [3, 7]},
        {"fault": "status", "status": 400, "at": [5]},
    ],
}
LONG: Final[dict[str, Any]] = {
    "latency": 0.005,
    "faults": [
        {"fault": "status", "status": 503, "share": 0.02},
        {"fault": "status", "status": 400, "share": 0.01},
        {"fault": "latency", "seconds": 0.015, "share": 0.4},
    ],
}


def strace(arena: Arena, call: str, deed: str, n: int) -> tuple[str, ...]:
    """Return what does a deed at the n-th call that goes to the ledger."""
    return (
        *("strace", "-f", "-qq", "-o", "/dev/null", "-P", str(arena.ledger)),
        *("-e", f"trace={call}", "-e", f"inject={call}:{deed}:when={n}"),
    )


async def at_every_call(folder: Path, *, fast: bool, rng: random.Random) -> Tally:
    """Kill at the n-th write, and at the n-th sync, for every n."""
    tally = Tally("kill at every write and sync")
    survived: set[tuple[str, int]] = set()
    reached: dict[tuple[str, int], int] = {}

    async def one(call: str, slots: int, n: int) -> None:
        if (call, slots) in survived:
            return

        case = f"kill at {call} {n} with {slots} slots"

        async with arena(folder / f"{call}-{slots}-{n}", ROWS, SHORT) as place:
            wrap = strace(place, call, "signal=KILL", n)
            options = ("--concurrency", str(slots), *QUICK)
            done = await place.run("run", str(place.manifest), *options, wrap=wrap)

            if done.code in KILLED:
                reached[call, slots] = max(reached.get((call, slots), 0), n)
            else:
                survived.add((call, slots))

            tally.cases += 1
            await place.conclude(tally, case, most_unknown=slots)

    step, widths = (6, (SLOTS,)) if fast else (1, (1, SLOTS))
    kinds = [(call, slots) for call in ("write", "fdatasync") for slots in widths]
    numbers = range(1, MOST_CALLS, step)
    await side_by_side(partial(one, call, slots, n) for n in numbers for call, slots in kinds)

    for (call, slots), n in sorted(reached.items()):
        tally.note(f"with {slots} slots killed at each {call} up to the {n}th")
        tally.expect(n >= ROWS // step, f"only {n} times {call} with {slots} slots")

    tally.expect(len(survived) == len(reached) == len(kinds), f"{survived} survived of {reached}")
    return tally


async def inside_writes(folder: Path, *, fast: bool, rng: random.Random) -> Tally:
    """Kill with a part of the n-th write in the file, and cut the power at the n-th sync."""
    tally = Tally("torn writes and power cuts")
    survived: set[tuple[str, float]] = set()

    async def one(mode: str, share: float, n: int) -> None:
        if (mode, share) in survived:
            return

        case = f"{mode} {n} with {share:.0%} written"

        async with arena(folder / f"{mode}-{n}-{share}", ROWS, SHORT) as place:
            what = (mode, str(n), str(share), str(place.manifest), str(place.ledger))
            done = await place.run(*what, command=(sys.executable, VICTIM))

            if done.code not in KILLED:
                survived.add((mode, share))
                tally.expect(done.code in {0, 3, 4}, f"{case}: {done}")

            tally.cases += 1
            await place.conclude(tally, case, most_unknown=SLOTS)

    shares = (0.5,) if fast else (0.01, 0.5, 0.99)
    modes = (("torn", shares), ("power", shares if fast else (0.0, *shares)))
    kinds = [(mode, share) for mode, chosen in modes for share in chosen]
    numbers = range(1, MOST_CALLS, 16 if fast else 1)
    await side_by_side(partial(one, mode, share, n) for n in numbers for mode, share in kinds)
    tally.expect(len(survived) == len(kinds), f"some never survived: only {survived}")
    return tally


async def order_of_calls(folder: Path, *, fast: bool, rng: random.Random) -> Tally:
    """Read from the system calls that no start leaves before its record is synced."""
    tally = Tally("sync before send, by strace")

    for case in range(1 if fast else 5):
        async with arena(folder / f"{case}", ROWS, SHORT) as place:
            trace = place.folder / "trace"
            calls = "trace=write,writev,sendto,sendmsg,fdatasync"
            wrap = ("strace", "-f", "-qq", "-y", "-s", "100000", "-o", str(trace), "-e", calls)
            options = ("--concurrency", str(SLOTS), *QUICK)
            done = await place.run("run", str(place.manifest), *options, wrap=wrap)
            tally.expect(done.code in {0, 3}, f"traced run: {done}")
            starts = _check_order(tally, trace.read_text(errors="replace"), place)
            tally.expect(starts == place.simulator.requests, f"{starts} starts in the trace")
            tally.cases += 1
            await place.conclude(tally, "traced run", most_unknown=0)

    return tally


_SENDING: Final = re.compile(r'\\"sending\\",\\"key\\":\\"row-(\d+)\\",.*?\\"attempt\\":(\d+)')
_BODY: Final = re.compile(r'\\"DBGenFrom\\":\{[^}]*\\"valueStringEncoded\\":\\"(\d+)\\"')


def _check_order(tally: Tally, trace: str, place: Arena) -> int:
    written: list[tuple[str, str]] = []
    durable: set[tuple[str, str]] = set()
    attempts: dict[str, int] = {}
    starts = 0

    for line in trace.splitlines():
        if "fdatasync" in line and line.endswith("= 0"):
            durable.update(written)
            written.clear()
        elif str(place.ledger) in line:
            written += _SENDING.findall(line)
        else:
            for row in _BODY.findall(line):
                starts += 1
                attempts[row] = attempts.get(row, 0) + 1
                sent = (row, str(attempts[row]))
                tally.expect(sent in durable, f"row {row} was sent before its record was synced")

    return starts


async def at_random(folder: Path, *, fast: bool, rng: random.Random) -> Tally:
    """Kill at random moments, again and again."""
    wanted, rows = (3, 800) if fast else (200, 2000)
    tally = Tally(f"random kills, {rows:,}-row batches")
    done = 0

    async def one(number: int) -> None:
        nonlocal done
        case = f"batch {number}"

        async with arena(folder / f"{number}", rows, LONG | {"seed": number}) as place:
            mine = 0

            while done < wanted and await _kill_once(tally, place, case, rng):
                await place.at_rest()
                mine += 1
                done += 1

            tally.cases += 1
            await place.conclude(tally, case, "--concurrency", "16", most_unknown=16 * mine)

    numbers = itertools.count(1)

    while done < wanted:
        await side_by_side([partial(one, next(numbers)) for _ in range(2)], 2)

    tally.note(f"{done} kills")
    return tally


async def of_shards(folder: Path, *, fast: bool, rng: random.Random) -> Tally:
    """Kill two shards that work side by side at random moments, again and again."""
    tally = Tally("random kills of two shards side by side")
    wanted, rows = (3, 800) if fast else (100, 2000)
    done = 0

    async def one(number: int) -> None:
        nonlocal done
        case = f"batch {number}"

        async with arena(folder / f"{number}", rows, LONG | {"seed": number}) as place:
            shards = place.shards(2)
            kills = await asyncio.gather(*(_killed(tally, part, case, rng) for part in shards))
            done += sum(kills)
            tally.cases += 1

            for part in shards:
                await part.finish(tally, case, "--concurrency", "16")

            await place.at_rest()
            states = place.judge(tally, case, most_unknown=16 * sum(kills))
            tally.expect(not states["pending"], f"{case}: {states['pending']} rows still pending")

    for number in itertools.count(1):
        if done >= wanted:
            break

        await one(number)

    tally.note(f"{done} kills")
    return tally


async def _killed(tally: Tally, part: Arena, case: str, rng: random.Random) -> int:
    """Let a shard work, and kill it, until it comes to its end; return the number of kills."""
    kills = 0

    while await _kill_once(tally, part, case, rng):
        kills += 1

    return kills


async def _kill_once(tally: Tally, place: Arena, case: str, rng: random.Random) -> bool:
    """Let a session work for a while, and kill it; tell whether there was anything to kill."""
    before = unknown_in(place.ledger)
    process = await place.start(*place.going_on("--concurrency", "16", *QUICK))

    if rng.random() < 0.1:
        await asyncio.sleep(rng.uniform(0.1, 0.6))  # while it starts, reads and checks
    else:
        aim = len(place.simulator.runs) + rng.randrange(1, 400)
        await runs_or_end(place, process, aim)

    if process.returncode is not None:
        await ended(process)
        return False

    process.kill()
    await ended(process)
    doubtful = unknown_in(place.ledger)
    tally.expect(before <= doubtful, f"{case}: a doubt went away: {before - doubtful}")
    tally.expect(len(doubtful - before) <= 16, f"{case}: one kill left {doubtful - before}")
    return True


async def runs_or_end(place: Arena, process: Process, aim: int) -> None:
    """Return once the server has so many runs, or the process has ended."""
    reached = asyncio.create_task(place.simulator.until(lambda: len(place.simulator.runs) >= aim))
    over = asyncio.create_task(process.wait())
    await asyncio.wait({reached, over}, timeout=LIMIT, return_when=asyncio.FIRST_COMPLETED)
    reached.cancel()
    over.cancel()
