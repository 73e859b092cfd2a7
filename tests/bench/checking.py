"""What is done before anything is sent: reading and checking rows, and starting up."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from .ground import Ground
from .process import measure
from .rivals import DESLAUNCH

if TYPE_CHECKING:
    from pathlib import Path

    from .figures import Figures
    from .race import Tell
    from .server import Server

FORMS: Final = ("typed JSONL", "plain JSONL", "CSV")
_READ: Final = (sys.executable, "-m", "bench.reading")
_IMPORTS: Final = (sys.executable, "-c", "import aiohttp, uvloop")
_SMALL: Final = 5  # times that what takes a moment is measured in a round


def check(
    server: Server, folder: Path, rows: int, rounds: int, figures: Figures, tell: Tell
) -> None:
    """Measure ``check`` of each form beside the least that reads it, rows a second."""
    ground = Ground(folder, rows, server.url)
    paths = dict(zip(FORMS, (ground.typed, ground.jsonl, ground.csv), strict=True))
    measure([(*DESLAUNCH, "check", str(Ground(folder, 10, server.url).jsonl))], ground.environment)

    for _ in range(rounds):
        for form, path in paths.items():
            for name, command in (("check", (*DESLAUNCH, "check")), ("reading", _READ)):
                used = measure([(*command, str(path))], ground.environment)
                rate, cpu = rows / used.seconds, used.cpu / rows * 1e6
                figures.add(f"{name}, {form}", "rows/s", rate, cpu=cpu)
                tell(f"{name}, {form}: {rate:,.0f} rows/s")


def start_up(server: Server, folder: Path, rounds: int, figures: Figures, tell: Tell) -> None:
    """Measure what is only begun and ended, seconds of whole processes."""
    ground = Ground(folder, 1, server.url)
    run = (*DESLAUNCH, "run", str(ground.jsonl), "--quiet", "--ledger")
    measure([(*run, str(ground.new_ledger()))], ground.environment)

    for _ in range(rounds * _SMALL):
        for name, command in (
            ("deslaunch --version", (*DESLAUNCH, "--version")),
            ("a launch of one row", (*run, str(ground.new_ledger()))),
            ("import aiohttp, uvloop", _IMPORTS),
        ):
            figures.add(name, "s", measure([command], ground.environment).seconds)

    tell("done")
