"""A long launch: a million rows, a share of 503, and a kill a minute.

The judge is nginx's own log: a line for each start, with the number that its row asked for.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from bench.ground import JOB_ID
from bench.server import missing, serving
from stage import DESLAUNCH, clean_environment

from .tally import Tally, kill

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path

ROWS: Final = 1_000_000
SLOTS: Final = 64
KILL_EVERY: Final = 60.0
LOOK_EVERY: Final = 0.5
MOST_MEMORY: Final = 100.0
"""MB that a launcher may have resident; it must not grow from session to session."""

MOST_LOG: Final = 64.0
"""MB that SQLite's write-ahead log may have; the ledger itself grows with the attempts."""


def launch(folder: Path, *, fast: bool, rng: random.Random) -> Tally:
    """Launch, kill and resume until nothing is pending, and judge it."""
    rows, kill_every = (10_000, 2.0) if fast else (ROWS, KILL_EVERY)
    tally = Tally(f"{rows:,} rows, 1 % 503, a kill each {kill_every:.0f} s")

    if reason := missing():
        tally.notes.append(f"not done: {reason}")
        return tally

    folder.mkdir(parents=True)
    manifest, ledger = folder / "night.csv", folder / "night.ledger.db"

    with manifest.open("w", encoding="utf-8") as file:
        file.write("key,jobId,DBGenFrom\n")
        file.writelines(f"row-{number},{JOB_ID},{number}\n" for number in range(1, rows + 1))

    with serving(folder / "nginx") as server, tally.case("the launch"):
        known = {"DES_BASE_URL": f"{server.url}/soak", "DES_TOKEN": "t"}
        environment = clean_environment(folder) | known
        words = ["run", str(manifest)]

        while True:
            options = ("--concurrency", str(SLOTS), "--max-wait", "1", "--yes", "--quiet")
            process = subprocess.Popen(
                [DESLAUNCH, *words, *options],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            memory, log = _follow(process, ledger, kill_every)
            tally.notes.append(
                f"session {tally.kills + 1}: {memory:.0f} MB resident, log {log:.0f}"
            )
            assert memory <= MOST_MEMORY, f"{memory:.0f} MB resident"
            assert log <= MOST_LOG, f"the -wal has {log:.0f} MB"

            if process.poll() is not None:
                break

            kill(process)
            tally.kills += 1
            words = ["resume", str(ledger)]

        assert process.returncode in {0, 4}, process.stderr and process.stderr.read()[-500:]

    _judge(tally, folder / "nginx" / "starts.log", _results(ledger, environment), rows)
    return tally


def _follow(process: subprocess.Popen[str], ledger: Path, seconds: float) -> tuple[float, float]:
    """Return the most memory and the longest write-ahead log (MB) until the end, or a time."""
    memory = log = 0.0
    wal = ledger.with_name(f"{ledger.name}-wal")
    until = time.monotonic() + seconds

    while time.monotonic() < until and process.poll() is None:
        memory = max(memory, _resident(process.pid))
        log = max(log, wal.stat().st_size / 1e6 if wal.exists() else 0.0)
        time.sleep(LOOK_EVERY)

    return memory, log


def _resident(pid: int) -> float:
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:  # noqa: PTH123  # no file of ours
            return int(file.read().split()[1]) * 4096 / 1e6
    except (OSError, IndexError):  # it has just ended
        return 0.0


def _results(ledger: Path, environment: dict[str, str]) -> Iterator[dict[str, object]]:
    command = [sys.executable, "-m", "deslaunch", "results", str(ledger), "--format", "jsonl"]

    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield from map(json.loads, process.stdout)


def _judge(tally: Tally, log: Path, results: Iterator[dict[str, object]], rows: int) -> None:
    """Hold the ledger against the server's log, where a 503 started nothing."""
    with log.open(encoding="ascii") as file:
        lines = [line.split() for line in file]

    made = Counter(int(number) for status, number in lines if status != "503")
    states = {int(str(row["key"])[4:]): row["state"] for row in results}
    twice = [row for row, runs in made.items() if runs > 1]
    lost = [row for row in made if states.get(row) not in {"started", "unknown"}]
    invented = [row for row, state in states.items() if state == "started" and not made[row]]
    tally.cases, tally.starts, tally.twice, tally.lost = 1, len(lines), len(twice), len(lost)
    tally.unknown = sum(state == "unknown" for state in states.values())

    with tally.case("the judge"):
        assert not twice, f"started twice: {twice[:9]}"
        assert not lost, f"lost: {lost[:9]}"
        assert not invented, f"never started: {invented[:9]}"
        assert len(states) == rows, f"{len(states):,} rows in the results"
        assert set(states.values()) <= {"started", "unknown"}, Counter(states.values())
        assert tally.unknown <= SLOTS * tally.kills, f"{tally.unknown} unknown"
