"""Peaks of resident memory, and the seconds, of one large batch's commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .ground import Ground
from .process import measure
from .rivals import DESLAUNCH

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .figures import Figures
    from .race import Tell
    from .server import Server

STOPPED: Final = 5  # the exit code of a run that --limit ended
_LAUNCHING: Final = ("--concurrency", "64", "--quiet")


def peaks(server: Server, folder: Path, rows: int, figures: Figures, tell: Tell) -> None:
    """Measure check, run, resume and results of a batch with so many rows."""
    ground = Ground(folder, rows, server.url)

    for kind, command in _commands(ground):
        used = measure([command], ground.environment, accepted=frozenset({0, STOPPED}))
        figures.add(f"{kind} of {rows:,} rows: peak", "MB", used.peak / 1e6)
        figures.add(f"{kind} of {rows:,} rows", "s", used.seconds, cpu=used.cpu / rows * 1e6)
        tell(f"{kind}, {rows:,} rows: {used.peak / 1e6:.0f} MB in {used.seconds:.1f} s")


def _commands(ground: Ground) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each kind with its command; each works on what the one before it left."""
    ledger = str(ground.new_ledger())
    yield "check JSONL", (*DESLAUNCH, "check", str(ground.jsonl))
    yield "check CSV", (*DESLAUNCH, "check", str(ground.csv))
    limit = ("--limit", str(ground.rows // 2))
    run = (*DESLAUNCH, "run", str(ground.jsonl), "--ledger", ledger)
    yield "run, half of the starts", (*run, *limit, *_LAUNCHING)
    yield "resume", (*DESLAUNCH, "resume", ledger, *_LAUNCHING)
    yield "status", (*DESLAUNCH, "status", ledger)
    table = str(ground.folder / "results.csv")
    yield "results", (*DESLAUNCH, "results", ledger, "-o", table)
