"""Check, replay and the ledger, each without a server."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from .ground import Ground
from .process import measure
from .rivals import DESLAUNCH

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .figures import Figures
    from .process import Used
    from .race import Tell

NOWHERE: Final = "http://127.0.0.1:9"
"""A base URL for what sends nothing."""

_PRODUCERS: Final = 64


def checks(folder: Path, rows: int, rounds: int, figures: Figures, tell: Tell) -> None:
    """Measure ``deslaunch check``, JSONL and CSV in turn."""
    ground = Ground(folder, rows, NOWHERE)
    files = {"check-jsonl": ground.jsonl, "check-csv": ground.csv}

    for _ in range(rounds):
        for name, path in files.items():
            command = (*DESLAUNCH, "check", str(path), "--schema", str(ground.schema))
            _rate(name, ground, command, figures, tell)


def appends(folder: Path, rows: int, rounds: int, figures: Figures, tell: Tell) -> None:
    """Measure the ledger alone: two records a row, from as many producers as slots."""
    ground = Ground(folder, rows, NOWHERE)

    for _ in range(rounds):
        ledger = str(ground.new_ledger("appends"))
        command = (sys.executable, "-m", "bench.appends", ledger, str(rows), str(_PRODUCERS))
        _rate("ledger", ground, command, figures, tell)


def replays(folder: Path, rows: int, rounds: int, figures: Figures, tell: Tell) -> None:
    """Measure ``deslaunch status`` of a ledger with two records a row."""
    ground = Ground(folder, rows, NOWHERE)
    ledger = made_ledger(ground, ended=rows)

    for _ in range(rounds):
        command = (*DESLAUNCH, "status", str(ledger), "--json")
        used = measure([command], ground.environment)
        figures.add(f"replay-{rows}", "s", used.seconds, cpu=_cpu(used, rows))
        tell(f"replay of {rows:,} rows: {used.seconds:.2f} s")


def made_ledger(ground: Ground, *, ended: int) -> Path:
    """Write the ledger of a batch in which so many rows have ended."""
    ledger = ground.new_ledger("made")
    arguments = (ground.jsonl, ledger, ground.base_url, ground.rows, ended)
    measure([(sys.executable, "-m", "bench.made", *map(str, arguments))], ground.environment)
    return ledger


def _rate(name: str, ground: Ground, command: Sequence[str], figures: Figures, tell: Tell) -> None:
    used = measure([command], ground.environment)
    rate = ground.rows / used.seconds
    figures.add(name, "rows/s", rate, cpu=_cpu(used, ground.rows))
    tell(f"{name}: {rate:,.0f} rows/s")


def _cpu(used: Used, rows: int) -> float:
    return used.cpu / rows * 1e6
