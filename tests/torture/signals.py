"""Interrupts: what is in flight is waited for, and nothing is in doubt."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Final

from stage import ended, workplace

from .kills import LONG, MANY_SLOTS
from .tally import Tally, next_command, shown, side_by_side

if TYPE_CHECKING:
    import random
    from pathlib import Path

ROWS: Final = 600
SLOW: Final = {"faults": [{"fault": "hang-after-start", "from": 100}]}


def interrupts(folder: Path, *, fast: bool, rng: random.Random) -> Tally:
    """A signal drains; a second one ends it, and may leave *slots* in doubt."""
    tally = Tally("SIGINT, SIGTERM, SIGHUP")
    interrupted: list[int] = []

    def one(number: int, sign: signal.Signals) -> None:
        with workplace(folder / f"{number}", LONG) as place, tally.case(f"{sign.name} {number}"):
            place.manifest(ROWS)
            process = place.start(*next_command(place, "--concurrency", str(MANY_SLOTS)))
            place.wait_for_runs(process, rng.randrange(1, ROWS))
            process.send_signal(sign)
            done = ended(process)
            assert done.returncode in {128 + sign, 0, 3}, shown(done)
            interrupted.extend([number] * (done.returncode == 128 + sign))
            tally.conclude(place, most_unknown=0, rows=ROWS)

    def twice(number: int, sign: signal.Signals) -> None:
        with workplace(folder / f"{number}", SLOW) as place, tally.case(f"{sign.name} twice"):
            place.manifest(ROWS)
            process = place.start(*next_command(place, "--concurrency", str(MANY_SLOTS)))
            place.wait_for_runs(process, 100 + MANY_SLOTS - 1)
            process.send_signal(sign)

            # The first one drains, which can't end: what hangs goes on hanging.
            while "a second signal" not in (
                line := process.stderr.readline() if process.stderr else ""
            ):
                assert line, "no word of a second signal"

            process.send_signal(sign)
            done = ended(process)
            assert done.returncode == 128 + sign, shown(done)
            place.simulator.use(None)
            tally.conclude(place, most_unknown=MANY_SLOTS, rows=ROWS)

    signs = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    cases = 1 if fast else 12
    side_by_side(one, [(n, signs[n % 3]) for n in range(cases)])

    with tally.case("the attack"):
        assert len(interrupted) > cases // 2, f"only {len(interrupted)} were interrupted"

    side_by_side(twice, [(n, signs[n % 3]) for n in range(100, 101 if fast else 106)])
    return tally
