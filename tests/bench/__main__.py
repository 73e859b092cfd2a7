"""Measure deslaunch beside what else sends many requests, and print the ratios.

It needs no network but loopback, and ends what it started. A quiet machine gives steady figures.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from . import report
from .alone import appends, checks, replays
from .chart import svg
from .figures import Figures
from .goals import GOALS
from .ground import BenchFailed
from .memory import peaks
from .race import INSTANT, LATENCY, SLOW_DISK, Course, race
from .server import missing, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Part = Callable[[], None]

HERE: Final = Path(__file__).parent
README: Final = HERE.parent.parent / "README.md"
_DISK: Final = Path("/var/tmp")  # where /tmp is memory, nothing would be synced
_APPENDS: Final = 10
"""Times the rows that a contender starts: so many the ledger alone gets."""

PARTS: Final = ("instant", "latency", "disk", "ledger", "check", "replay", "memory")


def main(argv: Sequence[str] | None = None) -> int:
    given = _arguments(argv)
    figures = Figures()

    if reason := missing():
        print(reason, file=sys.stderr)
        return 2

    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, _end)

    with _scratch(given.keep) as folder, serving(folder / "server") as server:
        course = Course(server, folder, given.rows, given.rounds, _tell)
        alone = (folder, given.rows_memory, given.rounds, figures, _tell)
        parts: dict[str, Part] = {
            "instant": partial(race, INSTANT, course, figures),
            "latency": partial(race, LATENCY, course, figures),
            "disk": partial(race, SLOW_DISK, course, figures),
            "ledger": partial(appends, folder, _APPENDS * given.rows, given.rounds, figures, _tell),
            "check": partial(checks, *alone),
            "replay": partial(replays, *alone),
            "memory": partial(peaks, server, folder, given.rows_memory, figures, _tell),
        }

        try:
            for name in given.only or PARTS:
                _do(name, parts[name])
        except BenchFailed as exc:
            print(exc, file=sys.stderr)
            return 1

    print(f"\n{report.text(figures)}")
    told = _told(figures, given.rows, given.rounds)

    if given.json:
        _write_json(given.json, told)

    if given.chart:
        given.chart.write_text(svg(figures), encoding="utf-8")

    if given.publish:
        _publish(told, figures)

    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--only", action="append", choices=PARTS, metavar="NAME", default=[])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=30_000, help="that each contender starts")
    parser.add_argument(
        "--rows-memory", type=int, default=1_000_000, help="of the largest batch, and of check"
    )
    parser.add_argument("--quick", action="store_true", help="rough figures in a minute")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures here")
    parser.add_argument("--chart", type=Path, metavar="PATH", help="draw the chart here")
    parser.add_argument(
        "--publish", action="store_true", help="put figures and chart where the README has them"
    )
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave all files here")
    given = parser.parse_args(argv)

    if given.quick:
        given.rounds, given.rows, given.rows_memory = 1, 3_000, 30_000

    return given


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


def _do(name: str, part: Part) -> None:
    began = time.monotonic()
    print(f"{name}:", flush=True)
    part()
    print(f"{name} took {time.monotonic() - began:.0f} s", flush=True)


def _told(figures: Figures, rows: int, rounds: int) -> dict[str, Any]:
    """Return all that is known of a measuring, as JSON has it."""
    return {
        "utc": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "machine": _machine(),
        "rows": rows,
        "rounds": rounds,
        "figures": figures.as_dict(),
        "missing": figures.missing,
        "goals": [goal.as_dict(figures) for goal in GOALS],
    }


def _machine() -> dict[str, Any]:
    parts = {name: version(name) for name in ("deslaunch", "aiohttp", "uvloop", "orjson")}
    return {"cpus": os.cpu_count(), "cpu": _cpu(), "python": platform.python_version()} | parts


def _cpu() -> str:
    """Return the processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()

    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _write_json(path: Path, told: dict[str, Any]) -> None:
    path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def _publish(told: dict[str, Any], figures: Figures) -> None:
    _write_json(HERE / "bench.json", told)
    (HERE / "bench.svg").write_text(svg(figures), encoding="utf-8")
    page = README.read_text(encoding="utf-8")
    README.write_text(report.with_section(page, told), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
