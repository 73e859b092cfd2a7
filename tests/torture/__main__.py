"""All attacks, one table; exit code 1 where a promise did not hold."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from . import (
    breaks,
    clocks,
    copies,
    damage,
    disks,
    hell,
    hostile,
    kills,
    order,
    outage,
    power,
    shared,
    signals,
    soak,
    streams,
)
from .tally import Tally, table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    class Attack(Protocol):
        """One attack; it works below ``folder`` and takes its luck from ``rng``."""

        def __call__(self, folder: Path, *, fast: bool, rng: random.Random) -> Tally: ...


ATTACKS: Final[dict[str, Attack]] = {
    "kills": kills.at_random,
    "calls": kills.at_every_call,
    "import": kills.during_import,
    "order": order.of_calls,
    "power": power.between_syncs,
    "wal": power.in_the_wal,
    "disks": disks.failing,
    "full": disks.full,
    "deleted": disks.deleted,
    "copies": copies.restored,
    "damage": damage.spoiled,
    "foreign": damage.foreign,
    "clocks": clocks.wrong,
    "outage": outage.away,
    "hell": hell.everything,
    "servers": hostile.servers,
    "manifests": hostile.manifests,
    "streams": streams.lost,
    "signals": signals.interrupts,
    "statements": shared.statements,
    "shared": shared.launchers,
    "server": shared.full,
}
WAITS: Final = {"full"}
"""Attacks that wait most of the time: they are made beside the others."""

LONG: Final[dict[str, Attack]] = {"soak": soak.launch}
"""Attacks that are run only where they are named."""

SHOWN: Final = 10


def attack(name: str, folder: Path, *, fast: bool, seed: int) -> Tally:
    """Run one attack."""
    began = time.monotonic()
    tally = (ATTACKS | LONG)[name](folder / name, fast=fast, rng=random.Random(f"{seed} {name}"))
    tally.seconds = time.monotonic() - began
    tally.attack = f"{name}: {tally.attack}"
    return tally


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="torture", description=__doc__)
    parser.add_argument(
        "--only", action="append", choices=ATTACKS | LONG, metavar="NAME", default=[]
    )
    parser.add_argument("--fast", action="store_true", help="a small version of each")
    parser.add_argument("--breaks", action="store_true", help="do tests notice broken builds?")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave all files here")
    chosen = parser.parse_args(argv)
    tallies = []
    print(f"seed {chosen.seed}", flush=True)

    with tempfile.TemporaryDirectory(prefix="torture-") as scratch, ThreadPoolExecutor() as beside:
        if chosen.breaks:
            tried = []

            for name, noticed in breaks.attempts(Path(scratch)):
                tried.append(noticed)
                print(f"| {name} | {noticed or 'NOT NOTICED'} |", flush=True)

            return int(not all(tried))

        names = chosen.only or [*ATTACKS]
        work = partial(
            attack, folder=chosen.keep or Path(scratch), fast=chosen.fast, seed=chosen.seed
        )
        waiting = {name: beside.submit(work, name) for name in names if name in WAITS}

        for name in names:
            tally = waiting[name].result() if name in waiting else work(name)
            tallies.append(tally)
            print(f"{name}: {tally.cells[-1]} in {tally.seconds:.0f} s", flush=True)

            for note in tally.notes:
                print(f"  {note}", flush=True)

            for sentence in tally.broken[:SHOWN]:
                print(f"  BROKEN {sentence}", flush=True)

    print(table(tallies))
    return int(any(tally.broken for tally in tallies))


if __name__ == "__main__":
    sys.exit(main())
