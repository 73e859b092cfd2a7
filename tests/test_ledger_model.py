"""Whatever happens to it, a ledger says what a plain list of attempts says."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from ledgers import Hands, checked, crash, invalid, make, outcome, read, run_id, session

from deslaunch.errors import ManifestError
from deslaunch.ledger.changes import Finding, derive_states
from deslaunch.ledger.ledger import Ledger, take_ledger
from deslaunch.ledger.reading import Consents, run_in
from deslaunch.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from postgres import Server

KEYS: Final = ("a", "b", "c", "auto")
RESULTS: Final = (
    "started",
    "rejected",
    "failed",
    "unknown",
    "retry",
    "throttled",
    "unsent",
    "lost",
)
"""What becomes of an attempt; ``lost``: no outcome comes before the launcher ends."""

INTERESTING: Final = st.sampled_from(RESULTS)


@dataclass
class Model:
    """A row, as a list of what became of its attempts.

    Attributes:
        attempts: result and finding of each.
        corrected: attempts that sent an earlier form.
        resolved: attempts that there were at the last finding.
        due: this session may send it.
        says: what it says.
    """

    key: str
    attempts: list[list[Any]] = field(default_factory=list)
    corrected: int = 0
    resolved: int | None = None
    due: bool = True
    says: int = 0

    @property
    def state(self) -> str:
        if any(result == "started" or found == "started" for result, found in self.attempts):
            return "started"

        if any(result == "lost" for result, _ in self.attempts):
            return "sending"

        if any(result == "unknown" and found is None for result, found in self.attempts):
            return "unknown"

        for result, found in reversed(self.attempts[self.corrected :]):
            if found == "notStarted":
                return "pending"

            if result in {"rejected", "failed"}:
                return str(result)

        return "pending"

    @property
    def left(self) -> int:
        return sum(result != "unsent" for result, _ in self.attempts)

    @property
    def is_duplicate(self) -> bool:
        runs = sum(
            result in {"started", "failed", "retry", "unknown"} and found != "notStarted"
            for result, found in self.attempts
        )
        return self.state == "started" and runs > 1

    def may_be_due(self, consents: dict[str, bool]) -> bool:
        by_consent = {
            "rejected": consents["retry_rejected"],
            "unknown": consents["retry_unknown"] and self.key != "auto",
        }
        return self.state in {"pending", "failed"} or by_consent.get(self.state, False)

    def may_be_resolved(self, verdict: str) -> bool:
        last = max((n for n, (r, _) in enumerate(self.attempts, 1) if r != "unsent"), default=0)

        if self.state == "sending" or (
            verdict == "started" and any(result == "started" for result, _ in self.attempts)
        ):
            return False

        return (
            self.state in {"unknown", "failed"}
            or (self.resolved is not None and 0 < last <= self.resolved)
            or (self.is_duplicate and verdict == "notStarted")
        )

    def resolve(self, verdict: str) -> None:
        doubtful = [
            n for n, (r, _) in enumerate(self.attempts) if r in {"unknown", "failed", "retry"}
        ]

        for attempt in self.attempts:
            attempt[1] = None

        if verdict == "notStarted":
            for n in doubtful:
                self.attempts[n][1] = verdict
        elif verdict == "started":
            self.attempts[max(doubtful)][1] = verdict

        self.resolved = len(self.attempts)


class LedgerMachine(RuleBasedStateMachine):
    """A ledger and a model of it, and what may happen to both."""

    database = ""
    """URL of a database; without one, ledgers are files."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        name = Path(self.folder.name)
        self.place = f"{self.database}#{name.name}" if self.database else f"{name}/night.ledger.db"
        self.hands = Hands()
        self.runner = asyncio.Runner()
        self.rows = {key: Model(key) for key in KEYS}
        self.runs = 0
        rows: list[Any] = [
            *(checked(n, key, auto=key == "auto") for n, key in enumerate(KEYS, 1)),
            invalid(len(KEYS) + 1),
        ]
        self.ledger: Ledger = self.run(make(self.place, rows, self.hands))
        self.run(self.ledger.begin_session(session()))

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    @rule(results=st.lists(INTERESTING, min_size=1, max_size=4))
    def turn(self, results: list[str]) -> None:
        """Rows are claimed, sent, and end; the last ones of them are those that are lost."""
        starts = self.run(self.ledger.exchange([], {"default": len(results)})).starts
        due = [row for row in self.rows.values() if row.due and row.state != "sending"]
        assert len(starts) == min(len(results), len(due))
        assert {start.key for start in starts} <= {row.key for row in due}
        came = []

        for start, result in zip(starts, results, strict=False):
            row = self.rows[start.key]
            row.attempts.append([result, None])
            assert (start.attempt, start.body) == (len(row.attempts), self.form(row).body)
            # What is not final may be sent again at once; else this session is done with it.
            row.due = result in {"retry", "throttled", "unsent"} and row.state != "started"

            if result != "lost":
                self.runs += 1
                run = {"job_run_id": run_id(self.runs)} if result == "started" else {}
                came.append(outcome(start, result, **run))

        for told in self.run(self.ledger.exchange(came, {})).outcomes:
            row = self.rows[told.key]
            assert (told.state, told.attempts) == (row.state, row.left)
            assert told.possible_duplicate == row.is_duplicate

    @rule(key=st.sampled_from(KEYS), verdict=st.sampled_from(("started", "notStarted", "unknown")))
    def resolve(self, key: str, verdict: Any) -> None:
        self.runs += 1
        finding = Finding(key, verdict, run_id(self.runs) if verdict == "started" else None)
        row = self.rows[key]

        if not row.may_be_resolved(verdict):
            with pytest.raises(ManifestError):
                self.run(self.ledger.resolve([finding], early=True))

            return

        before = row.state, [found for _, found in row.attempts]
        done = self.run(self.ledger.resolve([finding], early=True))

        if done.changed:
            row.resolve(verdict)
            row.due = row.state == "pending" or (row.due and before[0] == row.state != "started")

    @rule(key=st.sampled_from(KEYS))
    def correct(self, key: str) -> None:
        row = self.rows[key]
        row.says += 1
        done = self.run(
            self.ledger.correct([self.form(row)], file="fix.csv", add=False, dry_run=False)
        )

        if row.state in {"started", "unknown", "sending"}:
            assert len(done.problems) == 1
            row.says -= 1
        else:
            assert done.replaced == 1
            row.corrected, row.due = len(row.attempts), True

    @rule(is_killed=st.booleans(), rejected=st.booleans(), unknown=st.booleans())
    def next_session(self, *, is_killed: bool, rejected: bool, unknown: bool) -> None:
        self.run(crash(self.ledger) if is_killed else self.ledger.aclose())
        self.ledger = self.run(take_ledger(self.place, clock=self.hands.clock))
        consents: dict[str, Any] = {"retry_rejected": rejected, "retry_unknown": unknown}

        for row in self.rows.values():
            for attempt in row.attempts:
                attempt[0] = "unknown" if attempt[0] == "lost" else attempt[0]

            row.due = row.may_be_due(consents)

        plan = self.run(self.ledger.plan(Consents.of(Settings(**consents))))
        assert plan.ready == sum(row.due for row in self.rows.values())
        self.run(self.ledger.begin_session(session(**consents)))

    def form(self, row: Model) -> Any:
        number = KEYS.index(row.key) + 1
        says = number if not row.says else f"{row.key} {row.says}"
        return checked(number, row.key, auto=row.key == "auto", says=says)

    @invariant()
    def both_say_the_same(self) -> None:
        if not hasattr(self, "ledger"):
            return

        told = {row.key: row for row in self.run(read(self.ledger))}
        for key, row in self.rows.items():
            assert (told[key].state, told[key].attempts) == (row.state, row.left)
            assert bool(told[key].possible_duplicate) == row.is_duplicate
            assert (told[key].job_run_id is not None) == (row.state == "started")

    @invariant()
    def derived_anew_it_says_the_same(self) -> None:
        """What is kept of a row's state is what follows from its attempts, and what is not too."""
        if not hasattr(self, "ledger"):
            return

        store = cast("Any", self.ledger)._store

        def look() -> tuple[list[Any], list[Any]]:
            results = store._connection.execute("SELECT * FROM results ORDER BY batch, row")
            return results.fetchall(), store.fetch("counts", {"open": "sending"})

        def look_and_derive() -> None:
            before = look()

            with store.transaction(is_kept=False):
                derive_states(store, range(1, len(KEYS) + 2))
                assert look() == before

        self.run(run_in(self.ledger.thread, look_and_derive))

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            self.run(self.ledger.aclose())
            self.runner.close()
            self.folder.cleanup()


class SharedLedgerMachine(LedgerMachine):
    """The same of a batch in PostgreSQL."""


@pytest.fixture(scope="class")
def shared_database(postgres: Server) -> None:
    """One database for all batches of a machine."""
    SharedLedgerMachine.database = postgres.new_database()


TestLedgerMachine = LedgerMachine.TestCase
TestSharedLedgerMachine = pytest.mark.usefixtures("shared_database")(SharedLedgerMachine.TestCase)
TestLedgerMachine.settings = TestSharedLedgerMachine.settings = settings(
    max_examples=12,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
