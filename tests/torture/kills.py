"""Killed at random, at every write and sync, and during an import."""

from __future__ import annotations

from itertools import count, product
from typing import TYPE_CHECKING, Any, Final

from stage import Workplace, workplace

from .tally import Tally, kill, next_command, shown, side_by_side, strace

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence
    from pathlib import Path

KILLED: Final = {-9, 137}
ROWS: Final = 12
SLOTS: Final = 4
MANY_SLOTS: Final = 16
MOST_CALLS: Final = 2_000

WRITES: Final = ("pwrite64",)
SYNCS: Final = ("fdatasync", "fsync")
NAMES: Final = ("/^link", "/^unlink", "/^f?truncate")
HISTORY: Final = ("state", "state/history.db", "state/history.db-journal")

POINTS: Final[dict[str, tuple[str, Sequence[str]]]] = {
    **{calls: (calls, ()) for calls in (*WRITES, *SYNCS, *NAMES)},
    # The history has a thread of its own, whose n-th call comes after the ledger's.
    **{f"{calls} of history": (calls, HISTORY) for calls in ("pwrite64", "fdatasync", "/^unlink")},
}
"""What a launcher is killed at: system calls, and whose files they must be of."""

LEAST: Final = {
    "pwrite64": 5 * 12,
    "fdatasync": 12,
    "pwrite64 of history": 20,
    "fdatasync of history": 8,
}
"""So many of them must have been there to kill at, for a dozen rows."""

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


def at_random(folder: Path, *, fast: bool, rng: random.Random) -> Tally:
    """Kill at random moments, again and again; each kill leaves at most *slots* in doubt."""
    wanted, rows = (2, 1_000) if fast else (30, 2_000)
    tally = Tally(f"random kills, batches of {rows:,} rows")

    def one(number: int) -> None:
        with workplace(folder / f"{number}", LONG | {"seed": number}) as place:
            place.manifest(rows)
            kills = 0

            with tally.case(f"batch {number}"):
                while tally.kills < wanted and _kill_once(place, rng):
                    tally.kills += 1
                    kills += 1

                tally.conclude(place, most_unknown=MANY_SLOTS * kills, rows=rows)

    for number in count(1, 2):
        side_by_side(one, [(number,), (number + 1,)])

        if tally.kills >= wanted or tally.broken:
            return tally

    return tally


def _kill_once(place: Workplace, rng: random.Random) -> bool:
    """Let a session work for a while, and kill it; return False if it ended before."""
    before = place.judge().unknown if place.ledger.exists() else set()
    process = place.start(*next_command(place, "--concurrency", str(MANY_SLOTS)))
    aim = len(place.simulator.runs) + rng.randrange(400)
    was_alive = place.wait_for_runs(process, aim)
    done = kill(process)

    if not was_alive:
        assert done.returncode in {0, 3, 4, 5}, shown(done)
        return False

    place.at_rest()
    judge = place.judge()
    judge.assert_none_twice()
    judge.assert_none_lost()
    assert before <= judge.unknown, f"a doubt went away: {before - judge.unknown}"
    assert len(judge.unknown - before) <= MANY_SLOTS, f"one kill left {judge.unknown - before}"
    return True


def at_every_call(folder: Path, *, fast: bool, rng: random.Random) -> Tally:
    """Kill at the n-th write, sync and naming of a short batch, for every n."""
    tally = Tally("kill at every write and sync")
    survived: set[str] = set()
    most: dict[str, int] = {}

    def one(n: int, point: str) -> None:
        if point in survived:
            return

        name = f"{point.strip('/^?')}-{n}"
        calls, files = POINTS[point]

        with workplace(folder / name, SHORT) as place, tally.case(name):
            place.manifest(ROWS)
            options = ("--concurrency", str(SLOTS))
            paths = [place.folder / file for file in files]
            wrap = strace(calls, "signal=KILL", str(n), paths)
            done = place.run(*next_command(place, *options), wrap=wrap)

            if done.returncode in KILLED:
                tally.kills += 1
                most[point] = max(most.get(point, 0), n)
            else:
                survived.add(point)
                assert done.returncode in {0, 3}, shown(done)

            if not place.ledger.exists():
                assert not place.simulator.requests, "something was sent without a ledger"

            tally.conclude(place, most_unknown=SLOTS, rows=ROWS)

    cases = [(n, point) for n in range(1, MOST_CALLS) for point in POINTS]

    if fast:
        cases = [(rng.randrange(1, 150), "pwrite64") for _ in range(2)]
        cases += [(1, "fsync"), (rng.randrange(1, 12), "fdatasync"), (1, "/^link"), (1, "/^unlink")]
        cases += [(rng.randrange(1, 20), "pwrite64 of history")]

    side_by_side(one, cases)

    for point in () if fast else POINTS:
        with tally.case(point):
            assert point in survived, "no launch came to its end"
            assert most.get(point, 0) >= LEAST.get(point, 1), f"killed only up to {most}"

    with tally.case("the attack"):
        assert tally.kills >= len(cases) // 2 or not fast, f"only {tally.kills} kills"

    tally.notes.append(f"killed up to the n-th: {most}")
    return tally


def during_import(folder: Path, *, fast: bool, rng: random.Random) -> Tally:
    """Kill at any moment of an import: there is no ledger, or a whole one."""
    rows, moments = (2_000, 2) if fast else (5_000, 15)
    tally = Tally(f"kill during an import of {rows:,} rows")

    def one(number: int, calls: str, n: int) -> None:
        with workplace(folder / f"{number}") as place, tally.case(f"{calls} {n}"):
            place.manifest(rows)
            wrap = strace(calls, "signal=KILL", str(n))
            done = place.run(*next_command(place, "--limit", "1"), wrap=wrap)
            assert done.returncode in KILLED | {5}, shown(done)
            tally.kills += done.returncode in KILLED

            if place.ledger.exists():
                assert place.json("status", str(place.ledger))["rows"] == rows, "it is not whole"
            else:
                assert not place.simulator.requests, "something was sent without a ledger"

            done = place.run(*next_command(place, "--limit", "1", "--json"))
            assert done.returncode == 5, shown(done)
            judge = place.judge()
            tally.count(place, judge)
            judge.assert_promises(most_unknown=1)
            assert len(judge.lines) == rows

    cases = [("pwrite64", rng.randrange(1, rows // 12)) for _ in range(moments)]

    if not fast:
        cases += product((*SYNCS, *NAMES), range(1, 6))

    side_by_side(one, [(number, *case) for number, case in enumerate(cases)])

    with tally.case("the attack"):
        assert tally.kills >= len(cases) // 3, f"only {tally.kills} of {len(cases)} were killed"

    return tally
