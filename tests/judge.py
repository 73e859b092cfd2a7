"""The judge of a batch: what its commands print, held against its server's own log.

Nothing here opens a ledger. What deslaunch says comes from ``results`` and ``status``, what
happened from the log of the simulator, which shares no code with what it judges. So both can't
be wrong together, and no test depends on how a ledger is kept.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter, defaultdict
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

STATES: Final = (
    *("started", "failed", "rejected", "unknown", "invalid", "withdrawn", "pending", "inFlight"),
)
_LIMIT: Final = 60.0


class JudgeError(Exception):
    """A command that should tell how a batch stands failed."""


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the runs in a simulator's log; a last line that is half written is left out."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    whole, _, _ = text.rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


def row_of(run: Mapping[str, Any]) -> int:
    """Return the number of the row that a run belongs to: row n asks for DBGenFrom n."""
    return int(run["parameters"]["DBGenFrom"]["valueStringEncoded"])


class Judge:
    """One batch at one moment; what is asked for is read once.

    Args:
        ledger: as it stands on a command line.
        log: the simulator's.
        environment: of the commands; None for this process's own.
    """

    def __init__(
        self, ledger: Path | str, log: Path, *, environment: Mapping[str, str] | None = None
    ) -> None:
        self._ledger = str(ledger)
        self._log = log
        self._environment = environment

    @cached_property
    def lines(self) -> list[dict[str, Any]]:
        """The lines of ``results --format jsonl``, in manifest order."""
        said = self._ask("results", self._ledger, "--format", "jsonl")
        return [json.loads(line) for line in said.splitlines()]

    @cached_property
    def status(self) -> dict[str, Any]:
        """The object of ``status --json``."""
        found: dict[str, Any] = json.loads(self._ask("status", self._ledger, "--json"))
        return found

    @property
    def states(self) -> dict[int, str]:
        """State by row number."""
        return {line["row"]: line["state"] for line in self.lines}

    @property
    def counts(self) -> dict[str, int]:
        """Rows by state, without the states that no row has."""
        return dict(Counter(self.states.values()))

    @property
    def runs(self) -> dict[int, str]:
        """The jobRunId of each started row, by row number."""
        return {line["row"]: line["jobRunId"] for line in self.lines if line["state"] == "started"}

    @property
    def attempts(self) -> dict[int, int]:
        """POSTs that left, by row number."""
        return {line["row"]: line["attempts"] for line in self.lines}

    @property
    def unknown(self) -> set[int]:
        return {row for row, state in self.states.items() if state == "unknown"}

    @property
    def marked(self) -> set[int]:
        """Rows whose second run would be no silent one."""
        return {line["row"] for line in self.lines if line["possibleDuplicate"]} | self.unknown

    @cached_property
    def starts_by_row(self) -> dict[int, list[str]]:
        """The jobRunIds that the server started for each row, by row number."""
        found = defaultdict(list)

        for run in read_log(self._log):
            found[row_of(run)].append(run["jobRunId"])

        return dict(found)

    def twice(self, *, unless_marked: bool = False) -> dict[int, list[str]]:
        """Return the rows with a second run; ``unless_marked``: of which nobody is told."""
        excused = self.marked if unless_marked else set()
        found = {row: ids for row, ids in self.starts_by_row.items() if len(ids) > 1}
        return {row: ids for row, ids in found.items() if row not in excused}

    @property
    def lost(self) -> dict[int, list[str]]:
        """Rows whose runs no result tells of, though none of them is told as unknown."""
        return {
            row: ids
            for row, ids in self.starts_by_row.items()
            if self.runs.get(row) not in ids and row not in self.unknown
        }

    def assert_whole(self) -> None:
        """Each row stands in the results once, and the status counts the same."""
        numbers = [line["row"] for line in self.lines]
        assert numbers == list(range(1, len(numbers) + 1)), "rows are missing or out of order"
        assert set(self.states.values()) <= set(STATES), self.counts
        counted = {state: self.status[state] for state in STATES if self.status[state]}
        assert counted == self.counts, f"status says {counted}, results {self.counts}"
        assert self.status["rows"] == len(self.lines)

    def assert_none_twice(self, *, unless_marked: bool = False) -> None:
        """No row has a second run; ``unless_marked``: none that nobody is told of."""
        twice = self.twice(unless_marked=unless_marked)
        assert not twice, f"started twice: {twice}"

    def assert_none_lost(self) -> None:
        """Every run of the server is accounted for, and no other run is told."""
        invented = {
            row: run for row, run in self.runs.items() if run not in self.starts_by_row.get(row, ())
        }
        assert not self.lost, f"runs that no result tells of: {self.lost}, {self.counts}"
        assert not invented, f"runs that the server never started: {invented}"

    def assert_promises(self, *, most_unknown: int, unless_marked: bool = False) -> None:
        """None twice, none lost, at most so many unknown."""
        self.assert_whole()
        self.assert_none_twice(unless_marked=unless_marked)
        self.assert_none_lost()
        assert len(self.unknown) <= most_unknown, f"{len(self.unknown)} rows are unknown"

    def _ask(self, *arguments: str) -> str:
        """Return what a command prints.

        Raises:
            JudgeError: it failed.
        """
        done = subprocess.run(
            [sys.executable, "-m", "deslaunch", *arguments],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_LIMIT,
            check=False,
        )

        if done.returncode:
            raise JudgeError(f"{arguments[0]} ended with {done.returncode}: {done.stderr[-500:]}")

        return done.stdout
