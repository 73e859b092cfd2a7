"""Everything at once, at random: a bad service, kills, signals, disk errors, and people at work."""

from __future__ import annotations

import random
import signal
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from stage import ended, rejected_row, row, workplace

from .kills import KILLED, MANY_SLOTS
from .tally import Tally, kill, next_command, shown, side_by_side, strace

if TYPE_CHECKING:
    from pathlib import Path

    from stage import Workplace

REJECTED: Final = 40
"""Each so many-th row is one that DES refuses until it is corrected."""

LOCKED: Final = 8
SIGNALLED: Final = {129, 130, 143}
ENDED: Final = {0, 3, 4, 5}

SHARES: Final[dict[str, float]] = {
    "reset": 0.01,
    "close": 0.01,
    "hang": 0.002,
    "reset-after-start": 0.006,
    "close-after-start": 0.006,
    "hang-after-start": 0.002,
    "cut-head": 0.006,
    "cut-body": 0.006,
    "stall-body": 0.002,
    "close-after-response": 0.01,
    "second-response": 0.002,
    "garbage": 0.006,
    "not-json": 0.006,
    "leave-out": 0.006,
    "other-job": 0.006,
    "huge-body": 0.003,
    "gzip": 0.01,
    "bom": 0.01,
}
STATUSES: Final[list[dict[str, Any]]] = [
    {"status": 503, "share": 0.04},
    {"status": 500, "share": 0.02},
    {"status": 504, "share": 0.003},
    {"status": 400, "share": 0.01},
    {"status": 429, "retryAfter": 1, "share": 0.002},
    {"status": 503, "retryAfter": 1, "share": 0.002},
    {"status": 503, "retryAfterDate": 1, "share": 0.002},
]
SCRIPT: Final[dict[str, Any]] = {
    "latency": 0.005,
    "faults": [
        *({"fault": "status", **one} for one in STATUSES),
        *({"fault": kind, "share": share} for kind, share in SHARES.items()),
        {"fault": "close", "on": "connection", "share": 0.02},
        {"fault": "latency", "seconds": 0.1, "share": 0.1},
    ],
}
DEEDS: Final = ("kill", "interrupt", "kill", "terminate", "kill", "let it end")
"""How the sessions of a batch end."""

WORDS: Final = (("pause", "go"), ("stop",), ("concurrency=3",), ("rate=200",))
DISK: Final = (("pwrite64", "ENOSPC"), ("pwrite64", "EIO"), ("fdatasync", "EIO"))


def everything(folder: Path, *, fast: bool, rng: random.Random) -> Tally:
    """All that can go wrong goes wrong in one batch; it comes to its end, and all is told."""
    tally = Tally("everything at once, at random")
    done: Counter[str] = Counter()
    rows = 150 if fast else 400

    def one(number: int, seed: int) -> None:
        with (
            workplace(folder / f"{number}", SCRIPT | {"seed": seed % 10_000}) as place,
            tally.case(f"batch {number}"),
        ):
            numbers = range(1, rows + 1)
            place.write(row(n) if n % REJECTED else rejected_row(n) for n in numbers)
            luck = random.Random(seed)
            hell = Hell(place, luck)

            for deed in DEEDS[:2] if fast else luck.sample(DEEDS, len(DEEDS)):
                hell.session(deed)
                hell.correct()
                hell.resolve()

            tally.kills += hell.done["kill"]
            done.update(hell.done)
            tally.conclude(place, most_unknown=rows, rows=rows)

    side_by_side(one, [(n, rng.randrange(1 << 32)) for n in range(1 if fast else 5)])
    tally.notes.append(", ".join(f"{number} {deed}" for deed, number in sorted(done.items())))
    return tally


class Hell:
    """One batch, and what is done to it.

    Attributes:
        done: deeds by kind.
    """

    def __init__(self, place: Workplace, rng: random.Random) -> None:
        self.done: Counter[str] = Counter()
        self._place = place
        self._rng = rng
        self._corrected: set[int] = set()

    def session(self, deed: str) -> None:
        """Let a launcher work, with a disk that may fail, until it ends or is ended."""
        options = ("--concurrency", str(MANY_SLOTS), "--timeout", "1", "--max-errors", "100%")
        calls, error = self._rng.choice(DISK)
        fails = self._rng.random() < 0.3
        wrap = strace(calls, f"error={error}", str(self._rng.randrange(60, 200))) if fails else ()
        process = self._place.start(*next_command(self._place, *options), wrap=wrap)
        self.done["failing disk"] += fails

        for _ in range(self._rng.randrange(4)):
            aim = len(self._place.simulator.runs) + self._rng.randrange(1, 40)

            if not self._place.wait_for_runs(process, aim):
                break

            self._meddle()

        self.done[deed] += 1

        if deed == "kill":
            done = kill(process)
        else:
            runs = len(self._place.simulator.runs)
            takes_signals = not fails and self._place.wait_for_runs(process, runs + 1)  # no strace

            if deed != "let it end" and takes_signals:
                process.send_signal(signal.SIGINT if deed == "interrupt" else signal.SIGTERM)

            done = ended(process)

        assert done.returncode in ENDED | KILLED | SIGNALLED | {7}, shown(done)
        assert "Traceback" not in done.stderr, shown(done)
        self._place.at_rest()

    def correct(self) -> None:
        """Correct the rows that DES refuses for what they say."""
        refused = self._rows("rejected")
        wanted = [n for n in refused if n % REJECTED == 0 and n not in self._corrected]

        if not wanted:
            return

        self._place.write((row(n) for n in wanted), "fix.jsonl")
        command = next_command(self._place, "--corrections", "fix.jsonl", "--limit", "1")
        done = self._place.run(*command, "--timeout", "1")
        assert done.returncode in ENDED, shown(done)
        self._corrected.update(wanted)
        self.done["correction"] += len(wanted)

    def resolve(self) -> None:
        """Find out about some rows that are unknown, in the service, and record it."""
        judge = self._place.judge() if self._place.ledger.exists() else None
        unknown = sorted(judge.unknown) if judge else []

        for number in self._rng.sample(unknown, min(2, len(unknown))):
            runs = judge.starts_by_row.get(number) if judge else None
            finding = ("--started", runs[0]) if runs else ("--not-started", "--early", "--yes")
            done = self._place.run("resolve", str(self._place.ledger), f"row-{number}", *finding)
            assert done.returncode == 0, shown(done)
            self.done["finding"] += 1

    def _rows(self, state: str) -> list[int]:
        if not self._place.ledger.exists():
            return []

        return [n for n, found in self._place.judge().states.items() if found == state]

    def _meddle(self) -> None:
        """Do what a person may do beside a launcher."""
        ledger = str(self._place.ledger)
        deed = self._rng.choice(("control", "second launcher", "withdraw", "look"))
        self.done[deed] += 1

        match deed:
            case "control":
                # Exit 2: the launcher has ended meanwhile.
                for word in self._rng.choice(WORDS):
                    done = self._place.run("control", ledger, word)
                    assert done.returncode in {0, 2}, shown(done)
            case "second launcher":
                done = self._place.run("resume", ledger, "--limit", "1", "--timeout", "1")
                assert done.returncode in ENDED | {LOCKED}, shown(done)
            case "withdraw":
                # Exit 2: it has been sent.
                number = self._rng.choice(self._rows("pending") or [1])
                done = self._place.run("withdraw", ledger, f"row-{number}")
                assert done.returncode in {0, 2}, shown(done)
            case _:
                judge = self._place.judge()
                assert len(judge.lines) == judge.status["rows"]
