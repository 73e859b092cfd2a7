"""Full and failing disks, and a ledger that is deleted under a launch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from judge import Judge, read_log
from stage import ended, workplace

from .kills import LONG, ROWS, SHORT, SLOTS
from .tally import Tally, next_command, shown, side_by_side, strace

if TYPE_CHECKING:
    import random
    from pathlib import Path

FAULTS: Final = (
    ("pwrite64", "ENOSPC"),
    ("pwrite64", "EIO"),
    ("fdatasync", "EIO"),
    ("fsync", "EIO"),
)


def failing(folder: Path, *, fast: bool, rng: random.Random) -> Tally:
    """An error at the n-th write or sync: each run is recorded, or its id is told."""
    tally = Tally("full and failing disks")
    refused: list[str] = []

    def one(n: int, calls: str, error: str) -> None:
        name = f"{calls}-{error}-{n}"

        with workplace(folder / name, SHORT) as place, tally.case(name):
            place.manifest(ROWS)
            options = ("--concurrency", str(SLOTS), "--timeout", "2")
            wrap = strace(calls, f"error={error}", str(n))
            done = place.run(*next_command(place, *options), wrap=wrap)
            assert done.returncode in {0, 3, 4, 7}, shown(done)
            assert "Traceback" not in done.stderr, shown(done)
            refused.extend([name] * (done.returncode == 7))
            place.at_rest()

            if not place.ledger.exists():
                assert not place.simulator.requests, "something was sent without a ledger"
            else:
                recorded = set(place.judge().runs.values())
                ids = {run["jobRunId"] for run in read_log(place.log)}
                silent = {run for run in ids - recorded if run not in done.stderr}
                assert not silent, f"neither recorded nor told: {silent}; {shown(done)}"

            tally.conclude(place, most_unknown=SLOTS, rows=ROWS)

    cases = [(n, *fault) for n in range(1, 200, 5) for fault in FAULTS[:2]]
    cases += [(n, *fault) for n in range(1, 40) for fault in FAULTS[2:]]

    if fast:
        cases = [(rng.randrange(20, 120), "pwrite64", "ENOSPC"), (3, "fdatasync", "EIO")]

    side_by_side(one, cases)
    tally.notes.append(f"{len(refused)} of {len(cases)} launches ended with exit 7")
    return tally


def deleted(folder: Path, *, fast: bool, rng: random.Random) -> Tally:
    """Delete the ledger under a launch: what it knew is rescued, and goes on."""
    tally = Tally("a ledger that is deleted")
    rows = 2_000

    def one(number: int) -> None:
        with workplace(folder / f"{number}", LONG) as place, tally.case(f"batch {number}"):
            place.manifest(rows)
            process = place.start(*next_command(place, "--concurrency", "16"))
            place.wait_for_runs(process, rng.randrange(1, 300))
            found = [
                place.ledger.with_name(place.ledger.name + end) for end in ("", "-wal", "-shm")
            ]

            for path in found if number % 2 else found[:1]:
                path.unlink(missing_ok=True)

            done = ended(process)
            rescued = place.ledger.with_name(f"{place.ledger.name}.rescued")
            assert done.returncode == 7, shown(done)
            assert rescued.exists(), shown(done)
            assert rescued.name in done.stderr, shown(done)
            place.at_rest()
            judge = Judge(rescued, place.log, environment=place.environment)
            judge.assert_promises(most_unknown=0)
            assert len(judge.lines) == rows

            for path in found:
                path.unlink(missing_ok=True)

            rescued.rename(place.ledger)
            tally.conclude(place, most_unknown=0, rows=rows)

    side_by_side(one, [(number,) for number in range(1 if fast else 12)])
    return tally
