"""What an attack did, and what did not hold."""

from __future__ import annotations

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from judge import JudgeError
from stage import QUICK, Workplace, ended

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from judge import Judge

HEAD: Final = ("attack", "cases", "kills", "starts", "twice", "lost", "unknown", "verdict")
WIDTH: Final = 3
"""Batches at the same time: while one waits, the others keep two cores at work."""

SESSIONS: Final = 40
TRACED: Final = Path(__file__).with_name("traced.py")


@dataclass
class Tally:
    """One line of the table.

    Attributes:
        attack: what is done, a few words.
        cases: batches that were judged.
        kills: processes that were killed.
        starts: start requests that the servers saw.
        twice: rows with a second run, of which nobody is told.
        lost: rows with a run, of which nobody is told.
        unknown: rows that ended unknown.
        broken: what did not hold, a sentence each.
        notes: what the table has no column for.
        seconds: how long it took.
    """

    attack: str
    cases: int = 0
    kills: int = 0
    starts: int = 0
    twice: int = 0
    lost: int = 0
    unknown: int = 0
    broken: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @contextmanager
    def case(self, name: str) -> Iterator[None]:
        """Note what a block finds broken, and go on."""
        try:
            yield
        except (AssertionError, JudgeError) as exc:
            self.broken.append(f"{name}: {exc}")

    @property
    def cells(self) -> tuple[str, ...]:
        found = (self.twice, self.lost, self.unknown)
        counts = (self.cases, self.kills, self.starts, *found)
        verdict = f"BROKEN ({len(self.broken)})" if self.broken else "held"
        return (self.attack, *(f"{count:,}" for count in counts), verdict)

    def count(self, place: Workplace, judge: Judge) -> None:
        """Add what came of a batch."""
        self.cases += 1
        self.starts += place.simulator.requests
        self.twice += len(judge.twice(unless_marked=True))
        self.lost += len(judge.lost)
        self.unknown += len(judge.unknown)

    def conclude(
        self, place: Workplace, *, most_unknown: int, rows: int, unless_marked: bool = False
    ) -> None:
        """Bring a batch to its end, and judge it.

        Raises:
            AssertionError: a promise did not hold.
        """
        finish(place)
        place.at_rest()
        judge = place.judge()
        self.count(place, judge)
        judge.assert_promises(most_unknown=most_unknown, unless_marked=unless_marked)
        assert len(judge.lines) == rows, f"{len(judge.lines)} rows of {rows}"
        assert not judge.status["pending"], f"{judge.status['pending']} rows are pending"


def next_command(place: Workplace, *options: str) -> tuple[str, ...]:
    """Return the command that begins the batch, or goes on with it."""
    if place.ledger.exists():
        return ("resume", str(place.ledger), *QUICK, *options)

    return ("run", "night.jsonl", *QUICK, *options)


def finish(place: Workplace) -> None:
    """Go on with the batch until nothing is pending."""
    for _ in range(SESSIONS):
        done = place.run(*next_command(place, "--quiet"))
        assert done.returncode in {0, 3, 4, 5}, shown(done)

        if done.returncode != 5:
            return

    raise AssertionError("the batch does not come to its end")


def shown(done: subprocess.CompletedProcess[str]) -> str:
    return f"exit {done.returncode}: {done.stderr[-500:]}"


def strace(calls: str, deed: str, when: str, paths: Iterable[Path] = ()) -> tuple[str, ...]:
    """Return what does a deed at the n-th of some system calls: ``signal=KILL``, ``error=EIO``.

    Each thread's calls are counted by themselves.

    Args:
        calls: their names, or a regular expression.
        deed: as strace's ``inject`` takes it.
        when: a number.
        paths: only calls that name one of these files count.
    """
    # Of a stop by the kernel's filter an error comes through, and no signal.
    is_signal = deed.startswith("signal")
    begin = (
        (sys.executable, "-P", str(TRACED), "strace") if is_signal else ("strace", "--seccomp-bpf")
    )
    return (
        *(*begin, "-f", "-qq", "-o", "/dev/null", "-e", f"trace={calls}"),
        *("-e", f"inject={calls}:{deed}:when={when}"),
        *(word for path in paths for word in ("-P", str(path))),
        *(("--",) if is_signal else ()),
    )


def kill(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what strace runs is its child

    return ended(process)


def side_by_side(
    work: Callable[..., None], cases: Iterable[Sequence[Any]], width: int = WIDTH
) -> None:
    """Do the same with many cases, some at the same time, in the order in which they come."""
    with ThreadPoolExecutor(width) as pool:
        for _ in pool.map(lambda case: work(*case), cases):
            pass


def table(tallies: Sequence[Tally]) -> str:
    """Return the table as text, a Markdown table at once."""
    lines = [HEAD, *(tally.cells for tally in tallies)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    rule = tuple("-" * width for width in widths)
    return "\n".join(_line(line, widths) for line in (lines[0], rule, *lines[1:]))


def _line(cells: Iterable[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(cell.ljust(w) for cell, w in zip(cells, widths, strict=True)) + " |"
