"""Clocks that are wrong, and that are set right in mid-launch, by days."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from postgres import Server, missing
from stage import TOKEN, workplace

from .kills import LONG, MANY_SLOTS
from .shared import SCRIPT, Crowd
from .tally import Tally, kill, next_command, side_by_side

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from stage import Workplace

ROWS: Final = 500
HOUR: Final = 3_600
LEAST: Final = 60
"""Seconds; less than any jump."""

JUMPS: Final = (-400 * 24 * HOUR, -48 * HOUR, -HOUR, -90, 90, HOUR, 48 * HOUR, 400 * 24 * HOUR)

# Python reads the clock in two ways; monotonic ones go on as they are.
SITE: Final = """
import datetime, os, time

real, real_ns = time.time, time.time_ns

def ahead():
    try:
        with open(os.environ["CLOCK_FILE"]) as file:
            return int(file.read() or 0)
    except (KeyError, OSError, ValueError):
        return 0

class Wrong(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime_.fromtimestamp(time.time(), tz)

datetime_ = datetime.datetime
datetime.datetime = Wrong
time.time = lambda: real() + ahead()
time.time_ns = lambda: real_ns() + ahead() * 1_000_000_000
"""

PAUSES: Final[list[dict[str, Any]]] = [
    {"fault": "status", "status": 429, "retryAfterDate": 1, "at": [60, 200]},
    {"fault": "status", "status": 503, "retryAfter": 1, "at": [130]},
]
ALONE: Final[dict[str, Any]] = LONG | {"faults": [*PAUSES, *LONG["faults"]]}
SHARED: Final[dict[str, Any]] = SCRIPT | {"faults": [*PAUSES, *SCRIPT["faults"]]}


def wrong(folder: Path, *, fast: bool, rng: random.Random) -> Tally:
    """Set the clock in mid-launch and between sessions, kill, and go on; then on PostgreSQL."""
    tally = Tally("clocks that jump, and that differ")
    rows = 200 if fast else ROWS

    def one(number: int, jumps: list[tuple[int, int]]) -> None:
        with (
            workplace(folder / f"{number}", ALONE | {"seed": number}) as place,
            tally.case(f"batch {number}: {jumps}"),
        ):
            place.manifest(rows)
            place.environment.update(_surroundings(place, "clock"))
            process = place.start(*next_command(place, "--concurrency", str(MANY_SLOTS)))

            for moment, ahead in jumps:
                assert place.wait_for_runs(process, moment), "the launch did not go on"
                _set(place, "clock", ahead)

            kill(process)
            tally.kills += 1
            place.at_rest()
            _set(place, "clock", rng.choice(JUMPS))
            tally.conclude(place, most_unknown=MANY_SLOTS, rows=rows)
            assert _farthest(place) > LEAST, "no clock was wrong"

    cases = []

    for number in range(1 if fast else 6):
        moments = sorted(rng.sample(range(1, rows * 3 // 4), 4))
        jumps = [(moment, rng.choice(JUMPS)) for moment in moments]
        cases.append((number, [(0, JUMPS[number % len(JUMPS)]), *jumps]))

    side_by_side(one, cases)

    if reason := missing():
        tally.notes.append(f"not done with PostgreSQL: {reason}")
    elif not fast:
        _on_postgres(folder, tally, rng)

    return tally


def _on_postgres(folder: Path, tally: Tally, rng: random.Random) -> None:
    """Launchers whose clocks differ by hours share a batch; some are killed."""
    server = Server()

    try:
        for number in range(2):
            with (
                workplace(folder / f"shared {number}", SHARED | {"seed": number}) as place,
                tally.case(f"shared {number}"),
            ):
                place.manifest(2 * ROWS)
                crowd = Skewed(place, server, rng)
                crowd.work(["kill", "terminate"], 2 * ROWS)
                tally.kills += crowd.done["kill"]
                crowd.conclude(tally, 2 * ROWS)
    finally:
        server.close()


class Skewed(Crowd):
    """Launchers whose clocks differ."""

    _numbers = count()

    def surroundings(self) -> dict[str, str]:
        name = f"clock-{next(self._numbers)}"
        found = _surroundings(self._place, name)
        _set(self._place, name, self._rng.choice(JUMPS))
        return self._place.environment | found | {"DES_TOKEN": TOKEN}


def _farthest(place: Workplace) -> float:
    """Return how far from now a start was sent at most, in seconds, by the ledger."""
    now = datetime.now(UTC)
    times = [line["sentUtc"] for line in place.judge().lines if line["sentUtc"]]
    return max(abs((datetime.fromisoformat(sent) - now).total_seconds()) for sent in times)


def _surroundings(place: Workplace, name: str) -> dict[str, str]:
    site = place.folder / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(SITE)
    path = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path, "CLOCK_FILE": str(place.folder / name)}


def _set(place: Workplace, name: str, ahead: int) -> None:
    """Set a clock, so many seconds ahead of the true one."""
    made = place.folder / f"{name}.new"
    made.write_text(str(ahead))
    made.rename(place.folder / name)
