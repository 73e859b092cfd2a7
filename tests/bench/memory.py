"""Peaks of resident memory for growing batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .alone import made_ledger
from .ground import Ground
from .process import measure
from .rivals import DESLAUNCH

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .figures import Figures
    from .race import Tell
    from .server import Server

SIZES: Final = (10_000, 100_000, 1_000_000)
KINDS: Final = ("check", "run", "resume", "results")
_LAUNCHING: Final = ("--concurrency", "64", "--quiet")
_PENDING: Final = 10  # one row of so many is left for a resume


def peaks(server: Server, folder: Path, most: int, figures: Figures, tell: Tell) -> None:
    """Measure each kind of command with batches of up to ``most`` rows."""
    for size in (*(size for size in SIZES if size < most), most):
        ground = Ground(folder, size, server.url)

        for kind, command in _commands(ground):
            used = measure([command], ground.environment)
            figures.add(f"peak-{kind}-{size}", "MB", used.peak / 1e6)
            tell(f"{kind}, {size:,} rows: {used.peak / 1e6:.0f} MB in {used.seconds:.1f} s")


def _commands(ground: Ground) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each kind with its command; each works on what the one before it left."""
    manifest = str(ground.jsonl)
    ledger = str(ground.new_ledger())
    yield "check", (*DESLAUNCH, "check", manifest)
    yield "run", (*DESLAUNCH, "run", manifest, "--ledger", ledger, *_LAUNCHING)
    cut = str(made_ledger(ground, ended=ground.rows - ground.rows // _PENDING))
    yield "resume", (*DESLAUNCH, "resume", cut, *_LAUNCHING)
    table = str(ground.folder / "results.csv")
    yield "results", (*DESLAUNCH, "results", ledger, "-o", table)
