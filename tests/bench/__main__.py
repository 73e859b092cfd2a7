"""Measure deslaunch beside what else sends many requests.

It needs no network but loopback, and ends what it started. A quiet machine gives steady figures.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from .checking import FORMS, check, start_up
from .figures import Figures
from .ground import BenchFailed
from .memory import peaks
from .race import INSTANT, LATENCIES, SLOW_DISK, Course, race, race_with_latency
from .rivals import SLOTS
from .server import missing, serving
from .shared import share

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

PARTS: Final = ("instant", "latency", "disk", "check", "start-up", "memory", "shared")
RATIOS: Final = (
    *((f"deslaunch-{slots}", f"bare-{slots}") for slots in SLOTS),
    ("deslaunch-64", "naive-64"),
    ("deslaunch-64", "parallel-64"),
    ("deslaunch-64", "curl-64"),
    *(
        (f"deslaunch-64-{ms}ms", f"{than}-64-{ms}ms")
        for ms in LATENCIES
        for than in ("bare", "ideal")
    ),
    *((f"deslaunch-{slots}-disk", f"deslaunch-{slots}-this-disk") for slots in (64, 256)),
    *((f"check, {form}", f"reading, {form}") for form in FORMS),
    ("a launch of one row", "import aiohttp, uvloop"),
    ("PostgreSQL, 1 launchers, 64 slots", "file, 64 slots"),
    ("PostgreSQL, 2 launchers, 256 slots", "PostgreSQL, 1 launchers, 256 slots"),
)
CHART: Final = {
    "curl-64": "one curl, parallel",
    "deslaunch-64": "deslaunch run",
    "bare-64": "tuned aiohttp loop",
    "naive-64": "plain aiohttp loop",
    "parallel-64": "GNU parallel + curl",
}
"""Starts a second of what sends 64 at a time, as the README shows them."""

_DISK: Final = Path("/var/tmp")  # where /tmp is memory, nothing would be synced


def main(argv: Sequence[str] | None = None) -> int:
    chosen = _arguments(argv)
    figures = Figures()

    if reason := missing():
        print(reason, file=sys.stderr)
        return 2

    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, _end)

    with _scratch(chosen.keep) as folder, serving(folder / "server") as server:
        course = Course(server, folder, chosen.rows, chosen.rounds, _tell)
        parts: dict[str, Callable[[], None]] = {
            "instant": partial(race, INSTANT, course, figures),
            "latency": partial(race_with_latency, course, figures),
            "disk": partial(race, SLOW_DISK, course, figures),
            "check": partial(
                check, server, folder, chosen.rows_check, chosen.rounds, figures, _tell
            ),
            "start-up": partial(start_up, server, folder, chosen.rounds, figures, _tell),
            "memory": partial(peaks, server, folder, chosen.rows_memory, figures, _tell),
            "shared": partial(share, server, folder, chosen.rows, chosen.rounds, figures, _tell),
        }

        try:
            for name in chosen.only or PARTS:
                _do(name, parts[name])
        except BenchFailed as exc:
            print(exc, file=sys.stderr)
            return 1

    print(f"\n{figures.table()}\n")

    for over, under in RATIOS:
        if ratio := figures.ratio(over, under):
            cpu = figures.cpu_ratio(over, under)
            print(f"{over} ÷ {under}: {ratio:.2f}{f', CPU time {cpu:.2f}' if cpu else ''}")

    if chart := figures.chart(CHART):
        print(f"\n{chart}")

    if chosen.json:
        chosen.json.write_text(json.dumps(figures.as_dict(), indent=1) + "\n", encoding="utf-8")

    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--only", action="append", choices=PARTS, metavar="NAME", default=[])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=30_000, help="that each contender starts")
    parser.add_argument("--rows-check", type=int, default=200_000, help="that are only checked")
    parser.add_argument("--rows-memory", type=int, default=1_000_000, help="of the large batch")
    parser.add_argument("--quick", action="store_true", help="rough figures in a minute")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures here")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave all files here")
    chosen = parser.parse_args(argv)

    if chosen.quick:
        chosen.rounds, chosen.rows, chosen.rows_check, chosen.rows_memory = 1, 3_000, 9_000, 30_000

    return chosen


@contextmanager
def _scratch(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True)
        yield keep.absolute()
        return

    with tempfile.TemporaryDirectory(prefix="bench-", dir=_DISK) as made:
        yield Path(made)


def _end(signum: int, _: object) -> NoReturn:
    """End like a command that is interrupted, so that what was started ends too."""
    sys.exit(128 + signum)


def _tell(line: str) -> None:
    print(f"  {line}", flush=True)


def _do(name: str, part: Callable[[], None]) -> None:
    began = time.monotonic()
    print(f"{name}:", flush=True)
    part()
    print(f"{name} took {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
