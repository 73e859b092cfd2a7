"""What a service sees that is down for half a minute, and comes back."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from deslaunch.simulator import Answer, Delivery, Simulator

from .arena import LIMIT, TOKEN, Arena, ended, made_folder
from .kills import runs_or_end
from .tally import Tally

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from deslaunch.simulator import Request

SLOTS: Final = 64
ROWS: Final = 6000
_START: Final = "/api/v1/startjob"
_WAYS: Final = ("refused", "503", "503 with Retry-After")


class Failing(Simulator):
    """A service that can go down: it counts the starts that come meanwhile, second by second.

    Attributes:
        down: the headers of its 503 answers, or None while it is up.
        leaving: it says with every answer that the connection ends.
        seen: starts by second of the outage.
    """

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.down: tuple[tuple[str, str], ...] | None = None
        self.leaving = False
        self.seen: Counter[int] = Counter()
        self.began = 0.0

    async def respond(self, request: Request) -> Delivery:
        """Serve a request, or refuse it while down."""
        if self.down is not None and request.path == _START:
            self.seen[int(time.monotonic() - self.began)] += 1
            return Delivery(Answer(503, b"{}", self.down).encode())

        answer = await super().respond(request)

        if not self.leaving:
            return answer

        return Delivery(answer.data.replace(b"\r\n", b"\r\nConnection: close\r\n", 1), answer.end)

    def leave(self) -> None:
        """Take no new connection, and end each that is there with its next answer."""
        assert self._server is not None
        self._server.close()
        self.leaving = True

    def go_down(self, *headers: tuple[str, str]) -> None:
        self.began = time.monotonic()
        self.down = headers


async def outages(folder: Path, *, fast: bool, rng: random.Random) -> Tally:
    """Take the service away in three ways, from a launch with 64 slots."""
    seconds = 2.0 if fast else 30.0
    tally = Tally(f"outage of {seconds:.0f} s, {SLOTS} slots")

    async with asyncio.TaskGroup() as group:
        for way in _WAYS:
            group.create_task(
                _outage(tally, folder / way, way, seconds, ROWS // 10 if fast else ROWS)
            )

    return tally


async def _outage(tally: Tally, folder: Path, way: str, seconds: float, rows: int) -> None:
    log = made_folder(folder) / "runs.jsonl"
    script = {"latency": 0.05}

    async with Failing(script=script, log=log, tokens=[TOKEN]) as simulator:
        place = Arena(folder, simulator.base_url, simulator)
        place.write_rows(rows)
        waits = ("--max-wait", "5", "--concurrency", str(SLOTS), "--max-errors", "100%")
        process = await place.start("run", str(place.manifest), *waits)
        await runs_or_end(place, process, rows // 4)
        rate = await _take_away(simulator, way, seconds)
        done = await asyncio.wait_for(ended(process), LIMIT)
        seen = simulator.seen
        total, later = sum(seen.values()), sum(n for second, n in seen.items() if second)
        peak = max((n for second, n in seen.items() if second), default=0)
        tally.note(
            f"{way}: {total} starts seen in {seconds:.0f} s, {seen[0]} in the first second, "
            f"{later} after it, at most {peak} a second (before: {rate:,.0f} a second); "
            f"exit {done.code}"
        )
        tally.cases += 1
        tally.expect(done.code in {0, 3, 4, 5}, f"{way}: {done}")
        _expect_calm(tally, way, seen)
        most = SLOTS if way == "refused" else 0
        await place.conclude(tally, way, "--concurrency", str(SLOTS), most_unknown=most)
        tally.starts += total


async def _take_away(simulator: Failing, way: str, seconds: float) -> float:
    """Be down for some seconds; return the starts a second before."""
    before, began = len(simulator.runs), time.monotonic()
    await asyncio.sleep(min(1, seconds / 10))
    rate = (len(simulator.runs) - before) / (time.monotonic() - began)

    if way == "refused":
        simulator.leave()
        await simulator.until(lambda: not simulator.in_flight)
        simulator.began = time.monotonic()
        await simulator.refuse()
        await asyncio.sleep(seconds)
        simulator.leaving = False
        await simulator.listen()
        return rate

    simulator.go_down(*([("Retry-After", "2")] if way.endswith("After") else []))
    await asyncio.sleep(seconds)
    simulator.down = None
    return rate


def _expect_calm(tally: Tally, way: str, seen: Counter[int]) -> None:
    """A pause lets one row probe at a time; a bare 503 is a row's own, and its rows are bounded."""
    waiting, attempts = 4 * SLOTS, 5
    most, most_a_second = (waiting * attempts, 2 * waiting) if way == "503" else (2 * SLOTS, 2)
    total = sum(seen.values())
    later = {second: count for second, count in sorted(seen.items()) if second}
    tally.expect(total <= most, f"{way}: {total} starts, and more than {most} make a storm")
    tally.expect(max(later.values(), default=0) <= most_a_second, f"{way}: a storm: {later}")
