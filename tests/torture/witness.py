"""A second reading of the ledger, and the judgement over ledger and server's log.

Written from the design alone; nothing of the package's own reading is used, so that both can't
be wrong together.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from deslaunch.simulator import Run

    from .tally import Tally

STATES: Final = ("pending", "started", "failed", "rejected", "unknown", "invalid")
_FINAL: Final = ("rejected", "failed", "invalid")


@dataclass
class Story:
    """What a ledger tells of one key."""

    open: set[int] = field(default_factory=set)
    doubts: set[int] = field(default_factory=set)
    runs: list[str] = field(default_factory=list)
    final: str | None = None
    server_errors: int = 0
    sent: int = 0
    sent_in_doubt: bool = False

    @property
    def state(self) -> str:
        if self.runs:
            return "started"

        return "unknown" if self.open or self.doubts else self.final or "pending"

    @property
    def marked(self) -> bool:
        """A second run of the row is no silent one."""
        return bool(self.server_errors or self.doubts or self.open)

    def take(self, record: dict[str, Any]) -> None:
        kind, attempt = record["record"], record.get("attempt", 0)

        if kind == "sending":
            self.sent_in_doubt = self.sent_in_doubt or bool(self.runs or self.open or self.doubts)
            self.open.add(attempt)
            self.sent += 1
            self.final = None
            return

        self.open.discard(attempt)

        if kind == "started":
            self.runs.append(record["jobRunId"])
        elif kind == "unknown":
            self.doubts.add(attempt)
        elif kind == "unsent":
            self.sent -= 1
        elif kind in _FINAL:
            self.final = kind

        if kind in {"answered", "failed"} and (record.get("status") or 0) >= 500:
            self.server_errors += 1


def read(path: Path) -> dict[str, Story]:
    """Return the story of every key; what can't be read is passed over."""
    stories: dict[str, Story] = {}

    if not path.exists():
        return stories

    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue

        if isinstance(record, dict) and isinstance(record.get("key"), str):
            stories.setdefault(record["key"], Story()).take(record)

    return stories


def duplicates_in(path: Path) -> int:
    """Return how many started rows may have a second run."""
    return sum(bool(story.runs) and story.marked for story in read(path).values())


def unknown_in(path: Path) -> set[str]:
    return {key for key, story in read(path).items() if story.state == "unknown"}


def key_of(run: Run) -> str:
    """Return the key of the row that a run belongs to."""
    return f"row-{run.parameters['DBGenFrom']['valueStringEncoded']}"


def read_all(tally: Tally, ledgers: Iterable[Path], case: str) -> dict[str, Story]:
    """Return the stories of a batch's ledger, or of its shards': no key stands in two of them."""
    stories: dict[str, Story] = {}

    for ledger in ledgers:
        told = read(ledger)
        tally.expect(not told.keys() & stories.keys(), f"{case}: keys of two shards")
        stories |= told

    return stories


def judge(
    tally: Tally,
    ledgers: Iterable[Path],
    runs: Iterable[Run],
    *,
    case: str,
    keys: Iterable[str],
    most_unknown: int | None,
) -> Counter[str]:
    """Hold a batch's ledger against what its server did.

    Args:
        tally: gets what did not hold.
        ledgers: of a batch at rest: its own, or those of all its shards.
        runs: the server's own log.
        case: how to name the case.
        keys: of all rows.
        most_unknown: rows that may be unknown; None for any number.

    Returns:
        The rows by state.
    """
    stories = read_all(tally, ledgers, case)
    runs = list(runs)
    times = Counter(key_of(run) for run in runs)
    known = {run.job_run_id for run in runs}

    twice = [
        key for key, count in times.items() if count > 1 and not stories.get(key, Story()).marked
    ]
    lost = [run.job_run_id for run in runs if not _accounted(run, stories)]
    invented = {run for story in stories.values() for run in story.runs} - known
    again = [key for key, story in stories.items() if story.sent_in_doubt]
    states = Counter(stories.get(key, Story()).state for key in keys)

    tally.twice += len(twice)
    tally.lost += len(lost)
    tally.unknown += states["unknown"]
    tally.expect(not twice, f"{case}: started twice: {twice[:5]}")
    tally.expect(not lost, f"{case}: runs that the ledger does not account for: {lost[:5]}")
    tally.expect(not invented, f"{case}: runs that the server never started: {invented}")
    tally.expect(not again, f"{case}: sent again while in doubt or started: {again[:5]}")
    tally.expect(not set(stories) - set(keys), f"{case}: keys that are in no manifest")

    if most_unknown is not None:
        count = states["unknown"]
        tally.expect(count <= most_unknown, f"{case}: {count} unknown, {most_unknown} allowed")

    return states


def _accounted(run: Run, stories: dict[str, Story]) -> bool:
    story = stories.get(key_of(run), Story())
    return run.job_run_id in story.runs or story.state == "unknown" or story.marked
