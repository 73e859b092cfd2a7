"""Standard streams that are closed, full, or that nobody reads, and a terminal that hangs up."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from commands import Terminal
from stage import workplace

from .tally import Tally, next_command, shown, side_by_side

if TYPE_CHECKING:
    import random
    from pathlib import Path

ROWS: Final = 150
SIGHUP: Final = 129
ENDED: Final = {0, 3}
SCRIPT: Final[dict[str, Any]] = {
    "latency": 0.01,
    "faults": [{"fault": "status", "status": 503, "share": 0.05}],
}
STREAMS: Final = (
    '"$@" >&-',
    '"$@" 2>&-',
    '"$@" <&- >&- 2>&-',
    '"$@" --json >/dev/full',
    '"$@" 2>/dev/full',
    '"$@" --verbose >/dev/full 2>&1',
    '"$@" --json | true',
    '"$@" --verbose 2>&1 | head -1',
    '"$@" --verbose 2>&1 | { sleep 0.1; head -c 100; }',
)
"""A shell's lines, with a command in place of ``"$@"``."""


def lost(folder: Path, *, fast: bool, rng: random.Random) -> Tally:
    """Take the streams away: the launch goes on, and each outcome is recorded."""
    tally = Tally("streams closed, full, unread; hang-ups")

    def one(number: int, line: str) -> None:
        with workplace(folder / f"{number}", SCRIPT) as place, tally.case(line):
            place.manifest(ROWS)
            done = place.run(*next_command(place), wrap=("sh", "-c", line, "sh"))
            assert done.returncode in ENDED, shown(done)
            assert "Traceback" not in done.stderr + done.stdout, shown(done)
            place.at_rest()
            judge = place.judge()
            assert not judge.status["pending"], "the launch did not go on"

            for look in ("status", "results", "log", "report"):
                done = place.run(look, str(place.ledger), wrap=("sh", "-c", line, "sh"))
                assert "Traceback" not in done.stderr + done.stdout, f"{look}: {shown(done)}"

            tally.conclude(place, most_unknown=0, rows=ROWS)

    def hang_up(number: int, moment: int) -> None:
        with workplace(folder / f"{number}", SCRIPT) as place, tally.case(f"hang-up at {moment}"):
            place.manifest(ROWS)

            with Terminal(place, *next_command(place, "--yes")) as terminal:
                while len(place.simulator.runs) < moment:
                    time.sleep(0.005)

                assert terminal.hang_up() in ENDED | {SIGHUP}

            tally.conclude(place, most_unknown=0, rows=ROWS)

    lines = list(enumerate(STREAMS))
    side_by_side(one, rng.sample(lines, 1) if fast else lines)
    moments = [(100 + n, rng.randrange(1, ROWS)) for n in range(1 if fast else 6)]
    side_by_side(hang_up, moments)
    return tally
