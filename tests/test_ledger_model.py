"""Whatever happens to it, a ledger says what a plain list of attempts says.

Hypothesis draws what happens to a batch, from what can happen to it as it stands; after each step
the batch is compared with a model. Two habits of Hypothesis make such stories dull, and are kept
out: in each run it leaves out half of a machine's rules, so this one has a single rule; and after
ten runs it mostly varies earlier ones, so there are several tests of a few runs.

HYPOTHESIS_PROFILE=torture makes a hundred times as many (with -o session_timeout=0).
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

import pytest
from hypothesis import HealthCheck, note, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)
from ledger_model import FIXED, Attempt, ModelRow
from ledgers import NOW, Hands, ask, checked, crash, invalid, make, outcome, read, run_id, session
from postgres import wait_until

from deslaunch.errors import ConfigurationError, LedgerLocked, LedgerMissing, ManifestError
from deslaunch.events import Control, Counts
from deslaunch.ledger import postgres
from deslaunch.ledger.changes import Finding, derive_states
from deslaunch.ledger.ledger import Ledger, NewBatch, begin_import, open_ledger, take_ledger
from deslaunch.ledger.place import is_shared
from deslaunch.ledger.reading import Consents, run_in
from deslaunch.model import RunStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path
    from random import Random

    from postgres import Server

    from deslaunch.model import Outcome, Start

    Sent = tuple[Start, Attempt]
    """What a launcher sent, and the model's attempt of it."""

KEYS: Final = ("a", "b", "auto", "wrong", "c")
ADDED: Final = ("d", "e")
RESULTS: Final = ("started", "rejected", "failed", "unknown", "retry", "throttled", "unsent")
VERDICTS: Final = ("started", "notStarted", "unknown")
STEPS: Final = 40
IS_LONG: Final = os.environ.get("HYPOTHESIS_PROFILE") == "torture"
SHRINKING: Final = 600
"""Seconds in which Hypothesis has found a short story that fails; it takes five minutes at most."""

AGAIN: Final = {"retry", "throttled", "unsent"}


@dataclass(eq=False)
class Launcher:
    """A launcher at work.

    Attributes:
        zero: what it takes the wall clock to be at second 0 of the other one, ms.
        in_flight: what it awaits.
        in_doubt: what has ended, and may turn out otherwise.
        has_lock: the database knows that it lives.
        is_lost: another has taken it for dead; its next turn begins under a new number.
    """

    ledger: Ledger
    zero: int
    in_flight: list[Sent] = field(default_factory=list)
    in_doubt: list[Sent] = field(default_factory=list)
    has_lock: bool = True
    is_lost: bool = False


def often(batch: Batch) -> st.SearchStrategy[str]:
    """Draw what happens, from a list that has each thing as often as it is to happen."""
    return st.sampled_from([name for name, times in batch.weights.items() for _ in range(times)])


class Batch(RuleBasedStateMachine):
    """A ledger and a model of it, and what happens to both.

    Attributes:
        luck: draws what is left open.
        age: how many times launchers began that no others were at work beside.
    """

    weights: ClassVar = {
        "take_turns": 7,
        "let_time_pass": 3,
        "go_on_in_the_next_session": 4,
        "have_another_launcher": 1,
        "add": 1,
        "correct": 2,
        "resolve": 4,
        "withdraw": 2,
        "watch": 3,
        "control": 1,
    }
    """How often each thing happens."""

    luck: Random

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place
        self.is_shared = is_shared(place)
        self.hands = Hands()
        self.loop = asyncio.new_event_loop()
        self.launchers: list[Launcher] = []
        self.killed: list[Launcher] = []  # that nobody has found dead yet
        self.reader: Ledger | None = None
        self.rows = {key: ModelRow.of(key, number) for number, key in enumerate(KEYS, 1)}
        self.age = self.runs = 0
        self.told = Control()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    @rule(name=st.runner().flatmap(often))
    def step(self, name: str) -> None:
        getattr(self, name)()
        self.run(self.compare())

    def teardown(self) -> None:
        self.leave()

        for one in self.launchers:
            self.run(one.ledger.aclose())

        self.loop.close()

    def chance(self, percent: int) -> bool:
        return self.luck.randrange(100) < percent

    # The batch.

    @initialize(luck=st.randoms(use_true_random=False))
    def import_it(self, luck: Random) -> None:
        """Of an import that is killed nothing stays, and the next one is none the worse for it."""
        self.luck = luck
        rows = [form(row) for row in self.rows.values()]

        if self.chance(50):
            batch = self.run(begin_import(self.place, NewBatch("night.csv", {})))
            self.run(batch.add(rows))
            self.kill(batch)

            with pytest.raises(LedgerMissing):
                self.run(open_ledger(self.place))

        self.begin(self.run(make(self.place, rows, self.hands)), Consents())
        self.run(self.compare())

    def add(self) -> None:
        """Take a program's row; one that the batch has is skipped."""
        key = self.luck.choice(KEYS + ADDED)
        row = self.rows.get(key) or ModelRow.of(key, len(self.rows) + 1)

        if row.is_valid:  # of an invalid one it is not known what it says
            added = self.run(self.luck.choice(self.launchers).ledger.add([form(row)]))
            assert (added.numbers, added.same) == ([row.number], int(key in self.rows))
            self.rows[key] = row

    def correct(self) -> None:
        key, adds = self.pick(lambda row: row.state not in FIXED), self.chance(50)
        row = self.rows.get(key) or ModelRow.of(key, len(self.rows) + 1)
        says = row.says + self.luck.randrange(2)
        fixed = form(row, says)
        note(f"correct {key}: {says}")
        at = self.luck.choice(self.launchers)
        done = self.run(at.ledger.correct([fixed], file="fix.csv", add=adds))
        told = (done.replaced, done.added, done.same, len(done.problems))

        if key not in self.rows:
            assert told == (0, 1, 0, 0 if adds else 1)

            if adds:
                row.says, self.rows[key] = says, row
        elif row.is_valid and says == row.says:
            assert told == (0, 0, 1, 0)
        elif row.state in FIXED:
            assert told == (1, 0, 0, 1)
        else:
            assert told == (1, 0, 0, 0)
            row.correct(says)
            row.derive(self.age)

    def pick(self, may_be: Callable[[ModelRow], bool]) -> str:
        """Return the key of a row to which something can be done, or now and then of any."""
        keys = [row.key for row in self.rows.values() if may_be(row)]
        keys = keys if keys and self.chance(80) else [*KEYS, *ADDED]
        size = len(keys)
        return keys[min(self.luck.randrange(size), self.luck.randrange(size))]  # long stories

    # Turns.

    def take_turns(self) -> None:
        for _ in range(self.luck.randrange(1, 4)):
            self.turn(self.luck.choice(self.launchers))

    def turn(self, at: Launcher) -> None:
        """Some of what was sent ends, some of what has ended otherwise; others are claimed."""
        self.renew(at)
        wait, count = self.luck.choice((0, 0, 30)), self.luck.randrange(4)
        ended = [(sent, self.luck.choice(RESULTS)) for sent in at.in_flight if self.chance(70)]

        if self.chance(30):
            ended += [(sent, self.luck.choice(RESULTS)) for sent in at.in_doubt]
            at.in_doubt = []

        for sent, result in ended:
            at.in_flight = [other for other in at.in_flight if other is not sent]
            at.in_doubt += [sent] * (result in {"rejected", "unknown"})

        note(f"turn: {[(start.key, result) for (start, _), result in ended]}, {count} more")
        came = [self.end(at, *sent, result, wait) for sent, result in ended]
        turn = self.run(at.ledger.exchange(came, {"default": count}))

        for told in turn.outcomes:
            row = self.rows[told.key]
            assert (told.state, told.attempts) == (row.state, row.left)
            assert told.possible_duplicate == row.is_duplicate

        starts, due = turn.starts, turn.due["default"]

        if self.is_shared and len(starts) < count and due is not None and due < 0.1:
            # Rows that another launcher added are seen by the turn after that.
            more = self.run(at.ledger.exchange([], {"default": count - len(starts)}))
            starts, due = starts + more.starts, more.due["default"]

        self.claim(at, starts, count)

        if len(starts) < count:
            self.check_due(at, due)

    def end(self, at: Launcher, start: Start, attempt: Attempt, result: str, wait: int) -> Outcome:
        more: dict[str, Any] = {}

        if result == "started":
            self.runs += 1
            more["job_run_id"] = run_id(self.runs)
        elif result in AGAIN:
            more["not_before"] = float(wait)

        waits = 1000 * wait if result in AGAIN else None
        attempt.end(result, more.get("job_run_id"), self.now(at), waits)
        self.rows[start.key].derive(self.age)
        return outcome(start, result, **more)

    def claim(self, at: Launcher, starts: list[Start], count: int) -> None:
        now = self.now(at)
        due = {row.key for row in self.rows.values() if row.due is not None and row.due <= now}
        assert len(starts) == min(count, len(due))
        assert {start.key for start in starts} <= due

        for start in starts:
            row = self.rows[start.key]
            assert start.retries == row.retries(self.age)
            row.attempts.append(Attempt(len(row.attempts) + 1, self.age))
            assert (start.attempt, start.body) == (len(row.attempts), form(row).body)
            row.derive(self.age)
            at.in_flight.append((start, row.attempts[-1]))

    def check_due(self, at: Launcher, due: float | None) -> None:
        """When is there more to claim, as far as is known?"""
        others = [one for one in self.launchers + self.killed if one is not at and not one.is_lost]
        waits = [row.due for row in self.rows.values() if row.due is not None]
        expected = (min(waits) - self.now(at)) / 1000 if waits else None

        if self.is_shared and any(one.in_flight for one in others):
            assert due is not None
            assert due <= 1
        else:
            assert due == expected

    def zero(self) -> int:
        return round(1000 * (NOW + self.hands.stepped))

    def now(self, at: Launcher) -> int:
        return at.zero + round(1000 * self.hands.seconds)

    def let_time_pass(self) -> None:
        """Or set the clock back: the next session must not wait for what was its time then."""
        if self.chance(50):
            self.hands.move(self.luck.choice((20, 40)))
        else:
            self.hands.step(self.luck.choice((-60, -100_000)))

    # Launchers.

    def begin(self, ledger: Ledger, consents: Consents) -> None:
        wanted: dict[str, Any] = {f"retry_{name}": on for name, on in consents._asdict().items()}
        self.run(ledger.begin_session(session(**wanted)))
        at = Launcher(ledger, self.zero())
        self.find_dead()
        is_alone = all(one.is_lost for one in self.launchers)
        self.launchers.append(at)

        if is_alone:
            self.age += 1
            self.told = Control()

            for row in self.rows.values():
                row.begin(consents, self.now(at))

    def find_dead(self) -> None:
        """What launchers without a lock had in flight is unknown."""
        for one in [*self.killed, *self.launchers]:
            if one in self.killed or not one.has_lock:
                one.is_lost = True
                self.lose(one)

        self.killed = []

    def lose(self, one: Launcher) -> None:
        for start, attempt in one.in_flight:
            if attempt.result is None:
                attempt.end("unknown")
                self.rows[start.key].derive(self.age)

    def renew(self, at: Launcher) -> None:
        """One that was taken for dead goes on under a new number."""
        if at.is_lost:
            others = [one for one in self.launchers + self.killed if one is not at]
            self.age += all(one.is_lost for one in others)
            at.is_lost, at.has_lock = False, True

    def kill(self, ledger: Any) -> None:
        """The server, too, has noticed it when this returns."""
        connection = ledger._store._connection
        pid = connection.info.backend_pid if self.is_shared else 0
        self.run(crash(ledger))

        if pid:
            look = f"SELECT 1 FROM pg_stat_activity WHERE pid = {pid}"
            wait_until(lambda: not ask(self.place, look))

    def go_on_in_the_next_session(self) -> None:
        """All end or are killed; it may be an older copy that the next one goes on with."""
        self.leave()

        for one in self.launchers:
            if self.chance(50):
                self.kill(one.ledger)
            else:
                self.run(one.ledger.end_session(0, []))
                self.run(one.ledger.aclose())

        for one in self.launchers + self.killed:
            self.lose(one)

        self.launchers, self.killed = [], []

        with pytest.raises(ConfigurationError, match="no launcher"):
            self.run(self.aside().tell_launchers({"is_paused": True}))

        ledger = self.run(take_ledger(self.place, clock=self.hands.clock))

        if self.chance(20):
            note("an older copy")
            self.run(ledger.accept_copy())

            for row in self.rows.values():
                row.is_copied |= row.state not in {"started", "unknown"} or row.has_failed_run

        consents = Consents(*(self.chance(50) for _ in Consents()))
        note(f"the next session: {consents}")
        plan = self.run(ledger.plan(consents))
        assert plan.ready == sum(row.may_be_sent(consents) for row in self.rows.values())
        self.begin(ledger, consents)

    def have_another_launcher(self) -> None:
        """A file has one; several must say that they join each other."""
        joins = self.chance(80)

        if not self.is_shared or not joins:
            with pytest.raises(ConfigurationError if joins else LedgerLocked):
                self.run(take_ledger(self.place, joins=joins))
        elif len(self.launchers) == 1:
            note("another launcher")
            ledger = self.run(take_ledger(self.place, joins=True, clock=self.hands.clock))
            self.begin(ledger, Consents())

    # What a person does beside them.

    def aside(self) -> Ledger:
        """Return a reader's ledger."""
        if self.reader is None:
            self.reader = self.run(open_ledger(self.place, clock=self.hands.clock))

        return cast("Ledger", self.reader)

    def leave(self) -> None:
        """Read it no more: a launcher that ends would wait for that."""
        if self.reader is not None:
            self.run(self.reader.aclose())
            self.reader = None

    def control(self) -> None:
        told = self.luck.choice(({"is_paused": True}, {"is_stopped": True}, {"concurrency": 3}))
        self.told = self.told._replace(**told)
        assert self.run(self.aside().tell_launchers(told)) == self.told

    def resolve(self) -> None:
        verdict: Any = self.luck.choice(VERDICTS)
        key = self.pick(lambda row: row.may_be_resolved(verdict))
        self.runs += 1
        run = run_id(self.runs) if verdict == "started" else None
        row = self.rows.get(key)
        work = self.aside().resolve([Finding(key, verdict, run)], early=True)

        if row is None or not row.may_be_resolved(verdict):
            with pytest.raises(ManifestError):
                self.run(work)

            return

        note(f"resolve {key}: {verdict}")
        changed = row.resolve(verdict, run)
        done = self.run(work)
        assert (done.changed, done.same) == (int(changed), int(not changed))

        if changed:
            row.derive(self.age)

            if row.state == verdict == "unknown":
                row.due = None  # it waits for a consent

    def withdraw(self) -> None:
        undo = self.chance(50)
        key = self.pick(lambda row: row.state not in FIXED and row.is_withdrawn == undo)
        row = self.rows.get(key)
        work = self.aside().withdraw([key], undo=undo)

        if row is None or row.state in FIXED or (undo and row.state != "withdrawn"):
            with pytest.raises(ManifestError):
                self.run(work)

            return

        note(f"{'give back' if undo else 'withdraw'} {key}")
        done = self.run(work)
        changed = undo or row.state != "withdrawn"
        assert (done.changed, done.same) == (int(changed), int(not changed))

        if changed:
            row.is_withdrawn = not undo
            row.derive(self.age)

    def watch(self) -> None:
        """Runs of which nobody has told end."""
        ended = []

        for row in self.rows.values():
            shown = row.shown

            if row.state == "started" and shown is not None and shown.run_failed is None:
                shown.run_failed = self.chance(70)
                is_fine = not shown.run_failed
                run = RunStatus("", str(shown.run), finished=True, success=is_fine, status="done")
                ended.append((row.number, shown.number, run))

        note(f"watch: {[(row, run.success) for row, _, run in ended]}")
        self.run(self.luck.choice(self.launchers).ledger.record_runs(ended))

    # What it says.

    async def compare(self) -> None:
        ledger, rows = self.launchers[-1].ledger, self.rows.values()
        told = {
            row.key: (row.state, row.attempts, bool(row.possible_duplicate), row.job_run_id)
            for row in await read(ledger)
        }
        assert told == {row.key: (row.state, row.left, row.is_duplicate, row.run) for row in rows}

        states = [row.state for row in rows]
        expected = {name: states.count(name) for name in Counts._fields}
        expected["in_flight"] = states.count("sending")
        expected["possible_duplicates"] = sum(row.is_duplicate for row in rows)
        expected["attempts"] = sum(row.left for row in rows)
        assert (await ledger.summary()).counts._asdict() == expected

        consents = Consents(rejected=True, unknown=True, failed_runs=True)
        sendable = [row.key for row in rows if row.may_be_sent(consents)]
        assert (await ledger.plan(consents)).ready == len(sendable)
        assert await keys_of(ledger, consents) == sendable
        assert await ledger.control() == self.told
        await self.derive_anew()

    async def derive_anew(self) -> None:
        """What is kept of a row's state is what follows from its attempts, and what is not too."""
        ledger = self.launchers[-1].ledger
        store = cast("Any", ledger)._store

        def look() -> tuple[list[Any], list[Any]]:
            results = store._connection.execute("SELECT * FROM results ORDER BY batch, row")
            return results.fetchall(), store.fetch("counts", {"open": "sending"})

        def look_and_derive() -> None:
            before = look()

            with store.transaction(is_kept=False):
                derive_states(store, range(1, len(self.rows) + 1))
                assert look() == before

        await run_in(ledger.thread, look_and_derive)


class SharedBatch(Batch):
    """The same of a batch in PostgreSQL, where one may be lost beside another."""

    weights = Batch.weights | {"have_another_launcher": 4, "lose_one": 4}

    def lose_one(self) -> None:
        """One is killed, or lost its connection and is stopped before it has another."""
        if len(self.launchers) < 2:
            return

        one, other = self.luck.sample(self.launchers, 2)

        if not other.has_lock:
            return  # nobody would seem to be at work

        if self.chance(50):
            note("one is killed")
            self.kill(one.ledger)
            self.launchers.remove(one)
            self.killed += [] if one.is_lost else [one]
        else:
            note("one is taken for dead")
            store = cast("Any", one.ledger)._store
            self.run(run_in(one.ledger.thread, store._ask, "SELECT pg_advisory_unlock_all()"))
            one.has_lock = False

        if self.chance(70):
            self.renew(other)
            self.run(other.ledger.lose_dead())
            other.zero = self.zero()  # it has looked at the server's clock
            self.find_dead()


def form(row: ModelRow, says: int | None = None) -> Any:
    """Return what the batch has of a row; or a valid one that says something."""
    if not row.is_valid and says is None:
        return invalid(row.number, row.key)

    text = f"{row.key} {row.says if says is None else says}"
    return checked(row.number, row.key, auto=row.is_auto, says=text)


async def keys_of(ledger: Ledger, consents: Consents) -> list[str]:
    return [start.key async for portion in ledger.sendable(consents) for start in portion]


def check(machine: type[Batch], place: str, begin: int, runs: int) -> None:
    """Let Hypothesis draw some runs, the same each time."""
    numbers = count()
    make: Any = seed(begin)(lambda: machine(f"{place}{next(numbers)}"))
    wanted = settings(
        database=None,
        deadline=None,
        max_examples=runs,
        report_multiple_bugs=False,
        stateful_step_count=STEPS,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(make, settings=wanted)


@pytest.mark.timeout(SHRINKING)
@pytest.mark.parametrize("begin", range(400) if IS_LONG else [0, 1, 5, 7])
def test_a_ledger_and_its_model_say_the_same(tmp_path: Path, begin: int) -> None:
    check(Batch, str(tmp_path / "night.ledger.db"), begin, 9)


@pytest.fixture(scope="module")
def shared_database(postgres: Server) -> str:
    return postgres.new_database()


@pytest.mark.timeout(SHRINKING)
@pytest.mark.parametrize("begin", range(100) if IS_LONG else [4])
def test_a_shared_ledger_and_its_model_say_the_same(
    shared_database: str, monkeypatch: pytest.MonkeyPatch, begin: int
) -> None:
    monkeypatch.setattr(postgres, "BELIEVE_AFTER", 0.0)
    monkeypatch.setattr(postgres, "FREE_AFTER", 0.01)
    check(SharedBatch, f"{shared_database}#night-{begin}-", begin, 5)
