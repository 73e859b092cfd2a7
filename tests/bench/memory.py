"""Peaks of resident memory, and the seconds, of the commands of one large batch."""

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
    """Measure check, import, run, resume and results of a batch with so many rows."""
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
    whole = (*DESLAUNCH, "run", str(ground.jsonl), "--ledger", ledger, *_LAUNCHING)
    yield "import and one start", (*whole, "--limit", "1")
    resume = (*DESLAUNCH, "resume", ledger, *_LAUNCHING)
    yield "resume, nine tenths of the starts", (*resume, "--limit", str(ground.rows * 9 // 10))
    yield "resume and one start", (*resume, "--limit", "1")
    yield "resume", resume
    yield "status", (*DESLAUNCH, "status", ledger)
    table = str(ground.folder / "results.csv")
    yield "results", (*DESLAUNCH, "results", ledger, "-o", table)
    again = str(ground.new_ledger("again"))
    yield "run", (*DESLAUNCH, "run", str(ground.jsonl), "--ledger", again, *_LAUNCHING)
