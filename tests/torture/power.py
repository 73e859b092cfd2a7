"""The power goes: what was written and not synced is lost, in part or as a whole.

A launcher is stopped at its n-th sync, and its files are copied; it goes on to the next sync, and
is killed. What the server saw until then, the copy must know: no more than that is sure to be on a
disk. Of what was written since, a power cut leaves any sector or none.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Final

from commands import call
from postgres import wait_until
from stage import ended, workplace

from .kills import ROWS, SHORT, SLOTS
from .tally import Tally, kill, next_command, shown, side_by_side

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from stage import Workplace

SECTOR: Final = 512
FRAME: Final = 24 + 4096
WAL_HEAD: Final = 32
SYNCS: Final = "/^f(data)?sync$"
VARIANTS: Final = ("dropped", "history kept", "sectors")
MOST_SYNCS: Final = 200


def between_syncs(folder: Path, *, fast: bool, rng: random.Random) -> Tally:
    """Cut the power between any two syncs: what the server saw is known, and goes on."""
    tally = Tally("power cut between any two syncs")
    ends = dict.fromkeys(VARIANTS, MOST_SYNCS)

    def one(n: int, variant: str) -> None:
        if n >= ends[variant]:
            return

        name = f"{variant} {n}"

        with workplace(folder / name, SHORT) as place, tally.case(name):
            place.manifest(ROWS)

            if not _launch_until(place, n):
                ends[variant] = n
                return

            tally.kills += 1
            place.at_rest()
            _come_back(place, variant, random.Random(n))

            if place.ledger.exists():
                judge = place.judge()
                judge.assert_whole()
                judge.assert_none_lost()
            else:
                assert not place.simulator.requests, "something was sent without a ledger"

            tally.conclude(place, most_unknown=SLOTS, rows=ROWS)

    drawn = [(rng.randrange(8, 25), variant) for variant in VARIANTS]
    every = [(n, VARIANTS[0]) for n in range(1, MOST_SYNCS)]
    every += [(n, VARIANTS[1 + n % 2]) for n in range(1, MOST_SYNCS, 3)]
    side_by_side(one, drawn if fast else every)

    with tally.case("the attack"):
        assert tally.kills >= (3 if fast else 40), f"only {tally.kills} cuts"

    return tally


def _launch_until(place: Workplace, n: int) -> bool:
    """Copy the files at the n-th sync, and kill at the next; return False if it ended before."""
    trace = place.folder / "trace"
    calls = ("-e", f"trace={SYNCS}", "-e", f"inject={SYNCS}:signal=STOP")
    wrap = ("strace", "-f", "-qq", "-o", str(trace), *calls)
    process = place.start(*next_command(place, "--concurrency", str(SLOTS)), wrap=wrap)
    seen = 0

    for number in range(1, n + 2):
        if not (launcher := _stopped(process, trace, seen)):
            done = ended(process)
            assert done.returncode in {0, 3}, shown(done)
            return False

        if number == n:
            _copy(place.folder, place.folder / "then")

        if number <= n:
            seen = trace.stat().st_size
            os.kill(launcher, signal.SIGCONT)

    _copy(place.folder, place.folder / "now")
    place.end()
    return True


def _stopped(process: subprocess.Popen[str], trace: Path, seen: int) -> int:
    """Return the launcher's number once all its threads have stopped, 0 if it has ended."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

    def is_stopped() -> bool:
        if process.poll() is not None:
            return True

        if not (found := children.read_text().split()) or not trace.exists():
            return False

        threads = [*Path(f"/proc/{found[0]}/task").glob("*")]
        said = trace.read_text()[seen:].count("--- stopped by SIGSTOP")
        return 0 < len(threads) <= said

    wait_until(is_stopped)
    return int(children.read_text().split()[0]) if process.poll() is None else 0


def _copy(source: Path, to: Path) -> None:
    """Copy what is on a disk: the ledger's files, and the user's state."""
    (to / "state").mkdir(parents=True, exist_ok=True)

    for path in source.glob("night.ledger.db*"):
        if not path.name.endswith(("-shm", ".lock")):
            shutil.copyfile(path, to / path.name)

    if (source / "state").exists():
        shutil.copytree(source / "state", to / "state", dirs_exist_ok=True)


def _come_back(place: Workplace, variant: str, rng: random.Random) -> None:
    """Leave on the disk what a power cut leaves there."""
    then, now = place.folder / "then", place.folder / "now"

    for path in place.folder.glob("night.ledger.db*"):
        path.unlink()

    shutil.rmtree(place.folder / "state", ignore_errors=True)
    shutil.copytree((now if variant == "history kept" else then) / "state", place.folder / "state")
    names = {path.name for found in (then, now) for path in found.glob("night.ledger.db*")}

    for name in names:
        old, new = (_read(found / name) for found in (then, now))
        data = _mixed(old, new, rng) if variant == "sectors" else old

        if data is not None:
            (place.folder / name).write_bytes(data)


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _mixed(old: bytes | None, new: bytes | None, rng: random.Random) -> bytes | None:
    """Return a file of which each sector is as it was, or as it was to be."""
    if old is None or new is None:  # its name was not synced
        return rng.choice((old, new))

    size = len(rng.choice((old, new)))
    padded = [data[:size].ljust(size, b"\0") for data in (old, new)]
    return b"".join(rng.choice(padded)[at : at + SECTOR] for at in range(0, size, SECTOR))


def in_the_wal(folder: Path, *, fast: bool, rng: random.Random) -> Tally:
    """Cut a killed launcher's -wal at every frame, at every byte of the last, and spoil its end."""
    tally = Tally("a -wal cut at every byte of its end")

    with workplace(folder, SHORT) as place, tally.case("the launch"):
        place.manifest(ROWS)
        process = place.start(*next_command(place, "--concurrency", str(SLOTS)))
        place.wait_for_runs(process, ROWS - 2)
        kill(process)
        tally.kills += 1
        place.at_rest()
        data, wal = place.ledger.read_bytes(), Path(f"{place.ledger}-wal").read_bytes()
        whole, before = place.judge().states, 0
        last = len(wal) - FRAME
        sent = set(place.judge().starts_by_row)
        frames = range(WAL_HEAD, len(wal) + 1, FRAME)
        within = rng.sample(range(last, len(wal)), 40) if fast else range(last, len(wal))
        tries = [(cut, end) for cut in frames for end in _ends(len(wal) - cut, rng)]
        copy = folder / "cut" / place.ledger.name
        copy.parent.mkdir()

        for cut, end in sorted([*tries, *((cut, b"") for cut in within)]):
            with tally.case(f"cut at {cut} of {len(wal)}, then {end[:4]!r}"):
                copy.write_bytes(data)
                Path(f"{copy}-wal").write_bytes(wal[:cut] + end)
                states = _states(copy)
                tally.cases += 1
                known = {row for row, state in states.items() if state != "pending"}
                assert len(states) == ROWS
                assert before <= len(known), "a longer -wal knows less"
                before = len(known)

                if cut == len(wal):
                    assert states == whole
                    assert sent <= known, f"sent, and pending: {sent - known}"

        tally.conclude(place, most_unknown=SLOTS, rows=ROWS)

    return tally


def _ends(size: int, rng: random.Random) -> Iterator[bytes]:
    """Give what a disk may show where nothing was written."""
    yield b""

    if size:
        yield bytes(size)
        yield rng.randbytes(size)


def _states(ledger: Path) -> dict[int, str]:
    """Return the state of each row, read in this process: there are thousands to read."""
    done = call("results", ledger, "--format", "jsonl")
    assert done.code == 0, done
    return {line["row"]: line["state"] for line in done.lines}
