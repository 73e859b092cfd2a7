"""No start leaves before its intent is synced, read from the system calls."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from stage import workplace

from .kills import ROWS, SHORT
from .tally import Tally, next_command, shown

if TYPE_CHECKING:
    import random
    from pathlib import Path

SENT: Final = re.compile(r"(?:write|writev|sendto|sendmsg)\(.*POST /api/v1/startjob")
SYNCED: Final = re.compile(r"fdatasync\(.*= 0$|fdatasync resumed.*= 0$")


def of_calls(folder: Path, *, fast: bool, rng: random.Random) -> Tally:
    """With one slot, a sync lies between any two starts, and one before the first."""
    tally = Tally("sync before each start, by strace")

    for number in range(1 if fast else 3):
        with workplace(folder / f"{number}", SHORT) as place, tally.case(f"batch {number}"):
            place.manifest(ROWS)
            trace = place.folder / "trace"
            calls = "trace=write,writev,sendto,sendmsg,fdatasync"
            wrap = ("strace", "-f", "-qq", "-s", "300", "-o", str(trace), "-e", calls)
            done = place.run(*next_command(place, "--concurrency", "1"), wrap=wrap)
            assert done.returncode in {0, 3}, shown(done)
            _check(trace.read_text(errors="replace"), place.simulator.requests)
            tally.conclude(place, most_unknown=0, rows=ROWS)

    return tally


def _check(trace: str, requests: int) -> None:
    starts, is_synced = 0, False

    for line in trace.splitlines():
        if SYNCED.search(line):
            is_synced = True
        elif SENT.search(line):
            starts += 1
            assert is_synced, f"start {starts} left before a sync"
            is_synced = False

    assert starts == requests, f"{starts} starts in the trace, the server saw {requests}"
