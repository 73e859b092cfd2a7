"""Contenders in turn, round by round, so that what else the machine does meets all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .ground import BenchFailed, Ground
from .process import measure
from .rivals import SLOTS, bare, curl, deslaunch, gnu_parallel, naive, on_slow_disk, on_this_disk

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from .figures import Figures
    from .rivals import Contender
    from .server import Server

    Tell = Callable[[str], None]

INSTANT: Final = (
    *map(deslaunch, SLOTS),
    *map(bare, SLOTS),
    naive(64),
    curl(64),
    gnu_parallel(64),
)
LATENCIES: Final = (20, 100)
"""Milliseconds that the service takes for a start, where it takes long."""

LATENCY: Final = tuple(made(64, ms) for ms in LATENCIES for made in (deslaunch, bare))
SLOW_DISK: Final = tuple(
    made(slots) for slots in (64, 256) for made in (on_this_disk, on_slow_disk)
)
_WARM: Final = 300  # rows that each contender starts once before it is measured


@dataclass(frozen=True)
class Course:
    """What a race is run on.

    Attributes:
        server: the service, at work.
        folder: for the files of the contenders.
        rows: that each starts.
        rounds: how often.
        tell: takes a line for people.
    """

    server: Server
    folder: Path
    rows: int
    rounds: int
    tell: Tell


def race(contenders: Sequence[Contender], course: Course, figures: Figures) -> None:
    """Let contenders run in turn, every second round in reverse order.

    Each runs once with a few rows ahead: modules are compiled then, and schemas fetched.

    Raises:
        BenchFailed: one of them did not start as many runs as it has rows.
    """
    able = []

    for contender in contenders:
        if reason := contender.missing():
            figures.missing[contender.name] = reason
            course.tell(f"{contender.name}: not available: {reason}")
        else:
            able.append(contender)

    warm = Ground(course.folder, min(_WARM, course.rows), course.server.url)
    full = Ground(course.folder, course.rows, course.server.url)

    for contender in able:
        _rate(contender, warm, course.server)

    for number in range(course.rounds):
        for contender in able[:: -1 if number % 2 else 1]:
            rate, cpu = _rate(contender, full, course.server)
            figures.add(contender.name, "rows/s", rate, cpu=cpu)
            course.tell(f"round {number + 1}: {contender.name}: {rate:,.0f} rows/s, {cpu:.0f} µs")


def race_with_latency(course: Course, figures: Figures) -> None:
    """Let contenders wait for slow responses, beside what their slots allow at most."""
    race(LATENCY, course, figures)

    for ms in LATENCIES:
        figures.add(f"ideal-64-{ms}ms", "rows/s", 64_000 / ms)


def _rate(contender: Contender, ground: Ground, server: Server) -> tuple[float, float]:
    """Run a contender once; return rows a second, and microseconds of CPU time a row."""
    commands = contender.commands(ground)
    rows = contender.rows(ground)
    before = server.starts()
    used = measure(commands, ground.environment)
    started = server.starts() - before

    if started != rows:
        raise BenchFailed(f"{contender.name} started {started} runs for {rows} rows")

    return rows / used.seconds, used.cpu / rows * 1e6
