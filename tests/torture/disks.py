"""Full and failing disks, and a ledger that is deleted under a launch."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from judge import Judge, read_log
from stage import QUICK, ended, workplace

from .kills import LONG, MANY_SLOTS, ROWS, SHORT, SLOTS
from .tally import Tally, next_command, shown, side_by_side, strace

if TYPE_CHECKING:
    import random

    from stage import Workplace

FAULTS: Final = (
    ("pwrite64", "ENOSPC"),
    ("pwrite64", "EIO"),
    ("fdatasync", "EIO"),
    ("fsync", "EIO"),
)

# The disk goes with the process: what is on it is kept.
SMALL_DISK: Final = """
size=$1
shift
mount -t tmpfs -o "size=$size" none disk || exit 99
"$@"
code=$?
cp -a disk/. kept/
exit "$code"
"""


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

            _assert_told(place, done)
            tally.conclude(place, most_unknown=SLOTS, rows=ROWS)

    cases = [(n, *fault) for n in range(1, 200, 10) for fault in FAULTS[:2]]
    cases += [(n, *fault) for n in range(1, 40, 3) for fault in FAULTS[2:]]

    if fast:
        cases = [(rng.randrange(20, 120), "pwrite64", "ENOSPC"), (3, "fdatasync", "EIO")]

    side_by_side(one, cases)

    with tally.case("the attack"):
        assert len(refused) >= len(cases) // 4, f"{len(refused)} launches met an error"

    tally.notes.append(f"{len(refused)} of {len(cases)} launches ended with exit 7")
    return tally


def _assert_told(place: Workplace, done: subprocess.CompletedProcess[str]) -> None:
    """Each run is in the ledger, or its jobRunId was printed."""
    if not place.ledger.exists():
        assert not place.simulator.requests, "something was sent without a ledger"
        return

    recorded = set(place.judge().runs.values())
    ids = {run["jobRunId"] for run in read_log(place.log)}
    silent = {run for run in ids - recorded if run not in done.stderr}
    assert not silent, f"neither recorded nor told: {silent}; {shown(done)}"


def full(folder: Path, *, fast: bool, rng: random.Random) -> Tally:
    """Launch on a disk that is too small, or that another program fills up."""
    tally = Tally("a disk that is full, of any size")
    ends: Counter[int] = Counter()
    rows = 300

    if reason := _no_small_disk():
        tally.notes.append(f"not done: {reason}")
        return tally

    def one(name: str, size: int, moment: int, fate: str) -> None:
        with workplace(folder / name, LONG) as place, tally.case(name):
            place.manifest(rows)

            for made in ("disk", "kept"):
                (place.folder / made).mkdir()

            command = ("run", "night.jsonl", "--ledger", "disk/night.ledger.db", *QUICK)
            wrap = ("unshare", "-rm", "sh", "-c", SMALL_DISK, "sh", f"{size}k")
            process = place.start(*command, "--concurrency", str(MANY_SLOTS), wrap=wrap)

            if fate and place.wait_for_runs(process, moment):
                _fill(process, place.folder / "disk" / "filler", fate)

            done = ended(process)
            ends[done.returncode] += 1
            assert done.returncode in ({0, 3, 4, 7} if fate else {7}), shown(done)
            assert "Traceback" not in done.stderr, shown(done)
            place.at_rest()

            for path in (place.folder / "kept").glob("night.ledger.db*"):
                path.rename(place.folder / path.name)

            _assert_told(place, done)
            tally.conclude(place, most_unknown=MANY_SLOTS, rows=rows)

    # The ledger takes 176 KiB, the shared memory of its readers 32, and then comes its log.
    small = [(f"{size} KiB", size, 0, "") for size in (*range(180, 240, 8), 260, 300, 340)]
    moments = [(rng.randrange(1, rows // 3), ("stays", "freed")[n % 2]) for n in range(8)]
    filled = [(f"filled {n}", 20_000, *moment) for n, moment in enumerate(moments)]
    cases = [filled[1]] if fast else [*filled, *small]
    side_by_side(one, cases, width=12)  # most of them wait for room

    with tally.case("the attack"):  # some are done before their disk is full
        assert fast or ends[7] > len(small), f"how they ended: {ends}"

    return tally


def _no_small_disk() -> str:
    """Return why no file system can be mounted for one process alone, or ``""``."""
    if not (unshare := shutil.which("unshare")):
        return "there is no unshare"

    mount = ("mount", "-t", "tmpfs", "none", "/mnt")
    tried = subprocess.run([unshare, "-rm", *mount], capture_output=True, text=True, check=False)
    return tried.stderr.strip()


def _fill(process: subprocess.Popen[str], path: Path, fate: str) -> None:
    """Fill the disk of a process; where it is to be freed, once the launcher had to wait."""
    filler = Path(f"/proc/{process.pid}/root{path}")

    with suppress(OSError), filler.open("wb") as file:
        while True:
            file.write(bytes(65_536))

    if fate == "freed":
        with suppress(subprocess.TimeoutExpired):
            process.wait(1)

        with suppress(FileNotFoundError):
            filler.unlink()


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

    side_by_side(one, [(number,) for number in range(1 if fast else 4)])
    return tally
