"""All attacks, one table; exit code 1 where a promise did not hold."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from . import disks, fuzz, hell, hostile, kills, outage, signals
from .tally import SHOWN, Tally, table

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence
    from typing import Protocol

    class Attack(Protocol):
        """One attack; it works below ``folder`` and takes its luck from ``rng``."""

        def __call__(self, folder: Path, *, fast: bool, rng: random.Random) -> Awaitable[Tally]: ...


ATTACKS: Final[dict[str, Attack]] = {
    "calls": kills.at_every_call,
    "torn": kills.inside_writes,
    "order": kills.order_of_calls,
    "kills": kills.at_random,
    "shards": kills.of_shards,
    "disks": disks.failing,
    "damage": disks.damaged,
    "hell": hell.launch,
    "signals": signals.interrupts,
    "ends": signals.lost_ends,
    "outage": outage.outages,
    "servers": hostile.servers,
    "manifests": fuzz.manifests,
    "giants": fuzz.giants,
}


async def attack(name: str, folder: Path, *, fast: bool, seed: int) -> Tally:
    """Run one attack."""
    began = time.monotonic()
    tally = await ATTACKS[name](folder / name, fast=fast, rng=random.Random(f"{seed} {name}"))
    tally.seconds = time.monotonic() - began
    return tally


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="torture", description=__doc__)
    parser.add_argument("--only", action="append", choices=ATTACKS, metavar="NAME", default=[])
    parser.add_argument("--fast", action="store_true", help="a small version of each")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the result here too")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave all files here")
    given = parser.parse_args(argv)
    tallies = []
    print(f"seed {given.seed}", flush=True)

    with tempfile.TemporaryDirectory(prefix="torture-") as scratch:
        for name in given.only or ATTACKS:
            folder = given.keep or Path(scratch)
            tally = asyncio.run(attack(name, folder, fast=given.fast, seed=given.seed))
            tallies.append(tally)
            _tell(name, tally)

            if given.json:
                _write(given.json, tallies)

    print(table(tallies))

    return int(any(tally.broken for tally in tallies))


def _write(path: Path, tallies: Sequence[Tally]) -> None:
    path.write_text(json.dumps([tally.as_dict() for tally in tallies], indent=1) + "\n")


def _tell(name: str, tally: Tally) -> None:
    print(f"{name}: {tally.verdict} in {tally.seconds:.0f} s", flush=True)

    for note in tally.notes:
        print(f"  {note}")

    for sentence in tally.broken[:SHOWN]:
        print(f"  BROKEN {sentence}")

    if len(tally.broken) > SHOWN:
        print(f"  … and {len(tally.broken) - SHOWN} more")


if __name__ == "__main__":
    sys.exit(main())
