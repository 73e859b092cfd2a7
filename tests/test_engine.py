"""The engine, judged by the server's list of starts and by the journal's records."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import anyio
import pytest
from fakes import FakeDes, FakeJournal, FakeSource, VirtualClock, header, request
from hypothesis import given, settings
from hypothesis import strategies as st

from deslaunch.engine import WAITING_PER_SLOT, Engine, EngineSettings, Start, SystemClock
from deslaunch.errors import ManifestChanged, ManifestConflict, OutcomeUnknown, Rejected
from deslaunch.health import ErrorLimit
from deslaunch.model import (
    DEFAULT_TARGET,
    Draining,
    Pulse,
    RetryPlanned,
    RowState,
    Stop,
    Stopped,
    StopReason,
    TargetPaused,
    TokenRenewed,
)
from deslaunch.replay import Replay
from deslaunch.retry import Retry5xx, RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from deslaunch.model import Event, StartRequest
    from deslaunch.records import Record
    from deslaunch.retry import Jitter

FINAL: Final = frozenset({"started", "failed", "rejected", "unknown"})
INTERRUPTED: Final = Stop(StopReason.INTERRUPTED, "interrupted", signal=2)


class MostJitter:
    """Draws the longest wait: rows wait 1, 2, 4, … seconds, and so do targets."""

    def uniform(self, a: float, b: float) -> float:
        return b


def start(said: str | Start | Exception) -> Start | Exception:
    """Return the start of a key; ``acme/1`` goes to the target ``acme``."""
    if not isinstance(said, str):
        return said

    target = said.partition("/")[0] if "/" in said else DEFAULT_TARGET
    return Start(request(said, target))


class Bench:
    """An engine among fakes."""

    def __init__(
        self,
        rows: Iterable[str | Start | Exception],
        *,
        slots: int = 2,
        chunk: int = 1,
        endless: bool = False,
        journal: FakeJournal | None = None,
        script: dict[str, list[Any]] | None = None,
        targets: Iterable[str] = (DEFAULT_TARGET,),
        rng: Jitter | None = None,
        early: float = 0.0,
        **tuning: Any,
    ) -> None:
        self.clock = VirtualClock(early=early)
        self.journal = journal or FakeJournal()
        self.des = FakeDes(self.clock, self.journal, script=script or {})
        self.source = FakeSource(map(start, rows), chunk=chunk, endless=endless)
        self.slots = slots
        self.events: list[Event] = []
        self.ended: list[str] = []
        self.on_event: Callable[[Event], None] = lambda _: None
        self.on_end: Callable[[StartRequest], None] = lambda _: None
        self.engine = Engine(
            self.source,
            {target: self.des.starter(target) for target in targets},
            self.journal,
            EngineSettings(slots=slots, **tuning),
            ended=self._row_ended,
            emit=self._emit,
            clock=self.clock,
            rng=rng or MostJitter(),
        )
        self.work: asyncio.Task[None] | None = None

    def _row_ended(self, ended: StartRequest, record: Record) -> None:
        assert record["key"] == ended.key
        assert FINAL & set(self.journal.kinds(ended.key)), "told before it was durable"
        self.ended.append(ended.key)
        self.on_end(ended)

    def _emit(self, event: Event) -> None:
        self.events.append(event)
        self.on_event(event)

    async def begin(self) -> None:
        """Run until all that is left waits for time, the server or the disk."""
        self.work = asyncio.create_task(self.engine.run())
        await self.journal.settle()

    async def answer(self, key: str, verdict: str = "started") -> None:
        self.des.answer(key, verdict)
        await self.journal.settle()

    async def finish(self) -> None:
        """Let time pass until the engine has ended, and hold its records against the server."""
        if self.work is None:
            await self.begin()

        assert self.work is not None
        await self.journal.settle()

        while not self.work.done():
            due = self.clock.next_due()
            assert due is not None, f"a deadlock: {self.engine!r} {self.journal.trail()}"
            await self.clock.advance(due - self.clock.now())
            await self.journal.settle()

        self.check()
        await self.work

    def check(self) -> None:
        """Hold what is durable against what arrived."""
        assert all(sent.durable for sent in self.des.sent)
        assert self.journal.most_open() <= self.slots
        assert self.ended == [r["key"] for r in self.journal.records if r["record"] in FINAL]
        sendings = Counter(r["key"] for r in self.journal.queued if r["record"] == "sending")
        assert all(number <= sendings[key] for key, number in Counter(self.des.keys()).items())
        assert none_sent_after_an_end(self.journal.queued)

    def state(self, key: str) -> RowState:
        state = self.journal.replay.get(key)
        return RowState.PENDING if state is None else state.state

    def states(self, *keys: str) -> list[RowState]:
        return [self.state(key) for key in keys]

    def started(self) -> set[str]:
        states = self.journal.replay.states.items()
        return {key for key, state in states if state.state is RowState.STARTED}

    def told(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def stops(self) -> list[tuple[StopReason, str | None]]:
        assert [event.stop for event in self.told(Stopped)] == self.engine.stops
        return [(stop.reason, stop.target) for stop in self.engine.stops]

    def times(self, key: str | None = None) -> list[float]:
        return [sent.at for sent in self.des.sent if key in {None, sent.key}]


def none_sent_after_an_end(said: Iterable[dict[str, Any]]) -> bool:
    ended: set[str] = set()

    for record in said:
        if record["record"] == "sending" and record["key"] in ended:
            return False

        if record["record"] in FINAL:
            ended.add(record["key"])

    return True


def keys(prefix: str, number: int) -> list[str]:
    return [f"{prefix}{n}" for n in range(1, number + 1)]


# The promise: durable, then sent; recorded, then told.


async def test_nothing_to_do_ends_at_once() -> None:
    bench = Bench([])
    await bench.finish()

    assert (bench.events, bench.engine.stops, bench.journal.records) == ([], [], [])


async def test_nothing_is_sent_before_its_intent_is_durable() -> None:
    bench = Bench(["a"])
    bench.journal.held = True
    await bench.begin()
    waiting = [record["record"] for record in bench.journal.queued], bench.des.keys()
    bench.journal.release()
    await bench.finish()

    assert waiting == (["sending"], [])
    assert [(sent.key, sent.durable) for sent in bench.des.sent] == [("a", True)]


async def test_an_outcome_is_queued_ahead_of_its_workers_next_intent() -> None:
    bench = Bench(["a", "b"], slots=1)
    bench.des.held = True
    await bench.begin()
    bench.journal.held = True
    await bench.answer("a")
    queued = [f"{record['record']} {record['key']}" for record in bench.journal.queued]

    assert queued == ["sending a", "started a", "sending b"]
    assert (bench.des.keys(), bench.ended) == (["a"], [])

    bench.journal.release()
    await bench.journal.settle()
    await bench.answer("b")
    await bench.finish()


async def test_a_row_costs_a_few_looks_for_work_however_many_slots_are_idle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = 0
    take = Engine._take

    def counted(engine: Engine) -> Start | None:
        nonlocal looks
        looks += 1
        return take(engine)

    monkeypatch.setattr(Engine, "_take", counted)
    rows = [f"row {number}" for number in range(20)]
    bench = Bench(rows, slots=64)
    bench.des.held = True
    await bench.begin()

    for row in rows:
        await bench.answer(row)

    await bench.finish()

    assert bench.started() == set(rows)
    assert looks <= 2 * 64 + 4 * len(rows)  # at the begin and at the end each slot looks


async def test_a_row_is_told_once_its_end_is_durable_and_in_that_order() -> None:
    bench = Bench(["a", "b", "c"], slots=3)
    bench.des.held = True
    await bench.begin()
    await bench.answer("a")
    bench.journal.held = True
    await bench.answer("c")
    await bench.answer("b", "400")
    early = list(bench.ended)
    bench.journal.release()
    await bench.finish()

    assert (early, bench.ended) == (["a"], ["a", "c", "b"])


async def test_the_session_ends_once_the_last_outcome_is_durable() -> None:
    bench = Bench(["a"])
    bench.des.held = True
    await bench.begin()
    bench.journal.held = True
    await bench.answer("a")
    assert bench.work is not None
    ended_early = bench.work.done()
    bench.journal.release()
    await bench.finish()

    assert (ended_early, bench.ended) == (False, ["a"])


async def test_the_body_stands_on_the_first_attempt_only() -> None:
    bench = Bench(["a"], script={"a": ["503"]})
    await bench.finish()
    bodies = ["body" in record for record in bench.journal.records if "digest" in record]

    assert bodies == [True, False]


async def test_a_row_that_an_earlier_session_sent_goes_on_counting() -> None:
    known = Start(request("a"), attempt=4, with_body=False)
    bench = Bench([known])
    await bench.finish()

    assert bench.journal.trail() == ["sending a 4", "started a 4"]
    assert "body" not in bench.journal.records[0]


@given(
    slots=st.integers(1, 6),
    rows=st.integers(0, 25),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=25, deadline=None)
def test_no_more_than_the_slots_are_ever_open(slots: int, rows: int, seed: int) -> None:
    async def scenario() -> None:
        rng = random.Random(seed)
        journal = FakeJournal(lag=lambda: rng.randrange(4))
        bench = Bench(keys("r", rows), slots=slots, chunk=rng.randrange(1, 9), journal=journal)
        bench.des.latency = rng.random
        await bench.finish()

        assert bench.started() == set(keys("r", rows))
        assert bench.journal.most_open() <= slots
        assert bench.journal.most_open() == min(slots, max(1, rows - 1), rows)

    anyio.run(scenario)


# Retries.


async def test_a_row_that_waits_gives_its_slot_to_another() -> None:
    bench = Bench(["first", "a", "b"], slots=1, script={"a": ["503"]})
    await bench.finish()

    assert bench.des.keys() == ["first", "a", "b", "a"]
    assert bench.times("a") == [0.0, 1.0]


async def test_the_last_row_is_sent_again_although_no_other_slot_is_awake() -> None:
    bench = Bench(["a"], slots=1, script={"a": ["503", "503"]})
    await bench.finish()

    assert bench.started() == {"a"}
    assert bench.stops() == []


async def test_a_slot_survives_its_rows_retry() -> None:
    bench = Bench(keys("r", 9), slots=3, script={key: ["503"] for key in keys("r", 9)})
    bench.des.latency = lambda: 0.25
    await bench.finish()

    assert bench.journal.most_open() == 3


async def test_server_errors_use_up_the_attempts() -> None:
    bench = Bench(["a"], script={"a": ["500"] * 9}, retry=RetryPolicy(max_attempts=4))
    await bench.finish()

    assert bench.times() == [0.0, 1.0, 3.0, 7.0]
    assert bench.state("a") is RowState.FAILED
    assert bench.journal.kinds() == [*(["sending", "answered"] * 3), "sending", "failed"]
    assert bench.journal.records[-1]["attempt"] == 4
    assert bench.journal.records[-1]["error"] == "oops"
    assert [event.wait for event in bench.told(RetryPlanned)] == [1.0, 2.0, 4.0]


async def test_attempts_of_earlier_sessions_do_not_count() -> None:
    before = Start(request("a"), attempt=6)
    bench = Bench([before], script={"a": ["500"] * 9}, retry=RetryPolicy(max_attempts=2))
    await bench.finish()

    assert bench.journal.trail()[0::2] == ["sending a 6", "sending a 7"]


async def test_a_later_success_is_a_possible_duplicate() -> None:
    bench = Bench(["a"], script={"a": ["500"]})
    await bench.finish()

    assert bench.journal.replay.outcome("a").possible_duplicate


@pytest.mark.parametrize(
    ("policy", "verdict", "state"),
    [
        pytest.param(Retry5xx.DEFAULT, "500", RowState.STARTED, id="default-500"),
        pytest.param(Retry5xx.DEFAULT, "504", RowState.UNKNOWN, id="default-504"),
        pytest.param(Retry5xx.ALL, "504", RowState.STARTED, id="all-504"),
        pytest.param(Retry5xx.NONE, "500", RowState.UNKNOWN, id="none-500"),
        pytest.param(Retry5xx.NONE, "503", RowState.UNKNOWN, id="none-503"),
        pytest.param(Retry5xx.ALL, "lost", RowState.UNKNOWN, id="all-lost"),
        pytest.param(Retry5xx.ALL, "400", RowState.REJECTED, id="all-400"),
    ],
)
async def test_what_is_sent_again(policy: Retry5xx, verdict: str, state: RowState) -> None:
    rows = ["first", "a", "last"]
    bench = Bench(rows, script={"a": [verdict]}, retry=RetryPolicy(retry_5xx=policy))
    await bench.finish()

    assert bench.states(*rows) == [RowState.STARTED, state, RowState.STARTED]
    assert bench.des.keys().count("a") == (2 if state is RowState.STARTED else 1)


@pytest.mark.parametrize(
    ("verdict", "state"),
    [
        pytest.param("500", RowState.UNKNOWN, id="server-error"),
        pytest.param("lost", RowState.UNKNOWN, id="lost"),
        pytest.param("429", RowState.STARTED, id="throttled"),
        pytest.param("unsent", RowState.STARTED, id="unsent"),
        pytest.param("400", RowState.REJECTED, id="rejected"),
    ],
)
async def test_an_auto_value_row_is_never_sent_after_a_doubt(verdict: str, state: RowState) -> None:
    auto = Start(request("a", auto=True))
    bench = Bench(["first", auto], script={"a": [verdict]})
    await bench.finish()

    assert bench.state("a") is state


# Back-pressure.


async def test_reading_stops_behind_rows_that_wait_and_goes_on_after_them() -> None:
    rows = ["first", *keys("r", 40)]
    bench = Bench(rows, slots=2, script={key: ["503"] for key in keys("r", 40)})
    await bench.begin()
    waiting = WAITING_PER_SLOT * bench.slots

    assert len(bench.told(RetryPlanned)) == waiting
    assert bench.source.given <= 1 + waiting + bench.slots

    await bench.finish()

    assert bench.source.given == 41
    assert bench.started() == set(rows)


async def test_reading_stops_behind_a_paused_target_and_goes_on_after_it() -> None:
    rows = keys("r", 40)
    bench = Bench(rows, slots=2, script={"r1": ["429 for 30"]})
    await bench.begin()

    assert bench.source.given <= WAITING_PER_SLOT * bench.slots + bench.slots

    await bench.finish()

    assert bench.started() == set(rows)


async def test_a_slow_server_holds_back_reading() -> None:
    bench = Bench(keys("r", 100), slots=2)
    bench.des.held = True
    await bench.begin()

    assert bench.source.given <= WAITING_PER_SLOT * bench.slots + bench.slots

    bench.des.held = False
    await bench.answer("r1")
    await bench.finish()

    assert bench.source.given == 100


async def test_rows_of_a_stopped_target_do_not_hold_up_the_reading() -> None:
    rows = ["acme/1", *keys("acme/x", 30), "a", "b"]
    bench = Bench(rows, chunk=8, targets=["acme", "default"], script={"acme/1": ["redirect"]})
    await bench.finish()

    assert bench.stops() == [(StopReason.CONFIGURATION, "acme")]
    assert bench.started() == {"a", "b"}


async def test_rows_behind_a_paused_target_are_read_meanwhile() -> None:
    rows = ["acme/1", *keys("acme/x", 5), "a", "b"]
    bench = Bench(rows, chunk=6, targets=["acme", "default"], script={"acme/1": ["429 for 30"]})
    await bench.begin()

    assert bench.started() == {"a", "b"}

    await bench.finish()

    assert bench.started() == set(rows)


# Tokens.


async def expired(rows: list[str]) -> Bench:
    """Return a bench whose first row was started, and whose token has expired since."""
    bench = Bench(["first", *rows], slots=3)
    bench.des.held = True
    await bench.begin()
    await bench.answer("first")
    bench.des.held = False
    bench.des.refuses.add(1)
    bench.des.renewal = asyncio.Event()
    return bench


async def renewed(bench: Bench) -> None:
    assert bench.des.renewal is not None
    bench.des.renewal.set()
    await bench.journal.settle()


async def test_one_renewal_serves_all_rows_and_each_is_sent_once_more() -> None:
    bench = await expired(["a", "b", "c", "d"])
    await bench.answer("a")
    await bench.answer("b")
    await bench.answer("c")
    meanwhile = bench.des.keys(), bench.des.renewals["default"]
    await renewed(bench)
    await bench.finish()

    assert meanwhile == (["first", "a", "b", "c"], 1)
    assert bench.des.renewals["default"] == 1
    assert bench.told(TokenRenewed) == [TokenRenewed("default")]
    assert Counter(bench.des.keys()) == {"first": 1, "a": 2, "b": 2, "c": 2, "d": 1}
    assert {sent.token for sent in bench.des.sent[4:]} == {2}
    assert [line for line in bench.journal.trail() if " a " in line] == [
        "sending a 1",
        "answered a 1",
        "sending a 2",
        "started a 2",
    ]
    assert bench.started() == {"first", "a", "b", "c", "d"}


async def test_a_401_for_an_old_token_costs_no_second_renewal() -> None:
    bench = await expired(["a", "b"])
    await bench.answer("a")
    await renewed(bench)
    await bench.answer("b")
    await bench.finish()

    assert bench.des.renewals["default"] == 1
    assert bench.told(TokenRenewed) == [TokenRenewed("default")]
    assert bench.started() == {"first", "a", "b"}


async def test_a_row_that_waited_for_the_disk_is_held_during_a_renewal() -> None:
    bench = await expired(["a", "b", "c", "d"])
    bench.des.refuses.clear()
    bench.journal.held = True
    await bench.answer("b")
    bench.des.refuses.add(1)
    await bench.answer("a")
    bench.journal.release()
    await bench.journal.settle()
    meanwhile = bench.des.keys()
    await renewed(bench)
    await bench.answer("c")
    await bench.finish()

    assert meanwhile == ["first", "a", "b", "c"]
    assert bench.journal.trail().index("unsent d 1") < bench.journal.trail().index("sending d 2")
    assert {sent.token for sent in bench.des.sent if sent.key == "d"} == {2}
    assert bench.started() == {"first", "a", "b", "c", "d"}


async def test_a_new_token_that_is_refused_too_stops_the_target() -> None:
    bench = Bench(["first", "a", "b", "c"], slots=1, script={"a": ["401", "401"]})
    await bench.finish()

    assert bench.stops() == [(StopReason.CREDENTIALS, "default")]
    assert bench.des.keys() == ["first", "a", "a"]
    assert bench.states("a", "b", "c") == [RowState.PENDING] * 3
    assert bench.journal.kinds("a") == ["sending", "answered"] * 2


async def test_no_newer_token_stops_the_target() -> None:
    bench = Bench(["a", "b"], script={"a": ["401"]})
    bench.des.no_newer.add("default")
    await bench.finish()

    assert bench.stops() == [(StopReason.CREDENTIALS, "default")]
    assert bench.des.keys() == ["a"]
    assert bench.states("a", "b") == [RowState.PENDING] * 2


async def test_no_token_stops_the_target() -> None:
    bench = Bench(["a", "b"], script={"a": ["no token"]})
    await bench.finish()

    assert bench.stops() == [(StopReason.CREDENTIALS, "default")]
    assert bench.des.keys() == []
    assert bench.journal.trail() == ["sending a 1", "unsent a 1"]


async def test_a_renewal_keeps_no_slot_from_other_targets() -> None:
    rows = ["acme/1", "a", "b"]
    bench = Bench(rows, slots=1, targets=["acme", "default"], script={"acme/1": ["401"]})
    bench.des.renewal = asyncio.Event()
    await bench.begin()

    assert bench.started() == {"a", "b"}

    bench.des.renewal.set()
    await bench.finish()

    assert bench.started() == set(rows)


async def test_a_drain_does_not_wait_for_a_renewal() -> None:
    bench = Bench(["a"], script={"a": ["401"]})
    bench.des.renewal = asyncio.Event()
    await bench.begin()
    bench.engine.drain(INTERRUPTED)
    await bench.finish()

    assert bench.journal.trail() == ["sending a 1", "answered a 1"]


# Pauses.


@pytest.mark.parametrize(
    ("verdict", "answer", "pause"),
    [
        pytest.param("429 for 30", "answered", 31.0, id="retry-after"),
        pytest.param("429", "answered", 1.0, id="throttled"),
        pytest.param("unsent", "unsent", 1.0, id="unsent"),
    ],
)
async def test_what_pauses_a_target_uses_no_attempt(
    verdict: str, answer: str, pause: float
) -> None:
    bench = Bench(["a"], script={"a": [verdict]}, retry=RetryPolicy(max_attempts=1))
    await bench.finish()

    assert bench.journal.trail() == ["sending a 1", f"{answer} a 1", "sending a 2", "started a 2"]
    assert [event.seconds for event in bench.told(TargetPaused)] == [pause]
    assert bench.times()[-1] == pause
    assert not bench.journal.replay.outcome("a").possible_duplicate


async def test_no_row_of_a_paused_target_is_sent_before_the_pause_ends() -> None:
    bench = Bench(["first", *keys("r", 12)], slots=4, script={"r1": ["429 for 30"]})
    bench.des.latency = lambda: 0.5
    await bench.finish()
    within = [at for at in bench.times() if 1.0 < at < 32.0]

    assert within == []
    assert bench.started() == {"first", *keys("r", 12)}


async def test_a_pause_is_prolonged_and_never_shortened() -> None:
    bench = Bench(["first", "a", "b", "c"], slots=3)
    bench.des.held = True
    await bench.begin()
    await bench.answer("first")
    await bench.answer("a", "429 for 30")
    await bench.answer("b", "429 for 90")
    await bench.answer("c", "429")
    bench.des.held = False
    await bench.finish()

    assert bench.times()[4:][0] == 90.0


async def test_after_a_pause_one_row_probes_alone() -> None:
    bench = Bench(["first", *keys("r", 6)], slots=3, script={"r1": ["429", "429"]})
    await bench.begin()
    bench.des.held = True
    await bench.clock.advance(1.0)
    probing = sorted(bench.des.waiting)
    await bench.clock.advance(5.0)

    assert len(probing) == 1
    assert sorted(bench.des.waiting) == probing

    bench.des.held = False
    await bench.answer(*probing)
    await bench.finish()

    assert bench.started() == {"first", *keys("r", 6)}


async def test_a_row_that_waited_for_the_disk_is_not_sent_into_a_pause() -> None:
    bench = Bench(["first", "a", "b", "c"], slots=2)
    bench.des.held = True
    await bench.begin()
    await bench.answer("first")
    bench.journal.held = True
    await bench.answer("b")
    await bench.answer("a", "429 for 30")
    bench.journal.release()
    bench.des.held = False
    await bench.finish()

    assert [line for line in bench.journal.trail() if " c " in line] == [
        "sending c 1",
        "unsent c 1",
        "sending c 2",
        "started c 2",
    ]
    assert bench.times("c") == [31.0]


async def test_a_target_that_pauses_too_long_is_given_up() -> None:
    bench = Bench(["a", "b"], script={"a": ["429 for 5000"]}, give_up_after=900.0)
    await bench.finish()

    assert bench.stops() == [(StopReason.THROTTLED, "default")]
    assert bench.engine.stops[0].resume_after == 5_001.0
    assert bench.des.keys() == ["a"]
    assert bench.states("a", "b") == [RowState.PENDING] * 2


async def test_a_target_that_stays_paused_is_given_up() -> None:
    bench = Bench(["a", "b"], slots=1, script={"a": ["429"] * 99}, give_up_after=100.0)
    await bench.finish()

    assert bench.stops() == [(StopReason.THROTTLED, "default")]
    assert bench.clock.now() <= 100.0


async def test_a_target_that_was_never_reached_is_given_up_after_three_tries() -> None:
    bench = Bench(["a", "b"], script={"a": ["unsent"] * 9, "b": ["unsent"] * 9})
    await bench.finish()

    assert bench.stops() == [(StopReason.UNREACHABLE, "default")]
    assert bench.journal.kinds().count("sending") == 3
    assert bench.journal.kinds("a") == ["sending", "unsent"] * 3
    assert bench.des.keys() == []


@pytest.mark.parametrize(
    "verdict",
    [pytest.param("redirect", id="redirect"), pytest.param("bad url", id="misconfigured")],
)
async def test_a_wrong_configuration_stops_the_target(verdict: str) -> None:
    bench = Bench(["a", "b"], script={"a": [verdict]})
    await bench.finish()

    assert bench.stops() == [(StopReason.CONFIGURATION, "default")]
    assert bench.journal.kinds().count("sending") == 1
    assert bench.states("a", "b") == [RowState.PENDING] * 2


async def test_starts_keep_to_the_rate() -> None:
    bench = Bench(keys("r", 6), slots=4, rate=2.0)
    await bench.finish()

    assert bench.times() == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]


async def test_a_row_that_waited_for_its_turn_is_not_sent_into_a_pause() -> None:
    bench = Bench(["first", "a", "b", "c"], slots=3, rate=1.0, script={"a": ["429 for 30"]})
    await bench.finish()

    assert bench.times() == [0.0, 1.0, 32.0, 33.0, 34.0]
    assert bench.journal.kinds("c") == ["sending", "started"]


# First contact.


async def test_a_target_gets_one_start_alone() -> None:
    bench = Bench(["a", "b", "c"], slots=3)
    bench.des.held = True
    await bench.begin()
    alone = bench.des.keys()
    await bench.answer("a")
    after = bench.des.keys()
    bench.des.held = False
    await bench.answer("b")
    await bench.answer("c")
    await bench.finish()

    assert (alone, after) == (["a"], ["a", "b", "c"])


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(["400"], id="rejected"),
        pytest.param(["500"] * 5, id="failed"),
        pytest.param(["503", "started"], id="started-in-the-end"),
        pytest.param(["429", "401", "503", "unsent", "started"], id="one-of-each"),
    ],
)
async def test_others_follow_once_the_first_row_has_ended(script: list[str]) -> None:
    tries = len([verdict for verdict in script if verdict != "unsent"])
    bench = Bench(["a", "b", "c"], slots=3, script={"a": list(script)})
    await bench.finish()

    assert bench.des.keys()[:tries] == ["a"] * tries
    assert bench.states("b", "c") == [RowState.STARTED] * 2


async def test_a_first_start_without_an_answer_stops_the_target() -> None:
    bench = Bench(["a", "b"], script={"a": ["lost"]})
    await bench.finish()

    assert bench.stops() == [(StopReason.FIRST_CONTACT, "default")]
    assert bench.states("a", "b") == [RowState.UNKNOWN, RowState.PENDING]
    assert bench.des.keys() == ["a"]


async def test_a_later_start_without_an_answer_stops_nothing() -> None:
    bench = Bench(["a", "b", "c"], script={"b": ["lost"]})
    await bench.finish()

    assert bench.stops() == []
    assert bench.started() == {"a", "c"}


# Targets fail apart.


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [
        pytest.param("redirect", StopReason.CONFIGURATION, id="configuration"),
        pytest.param("lost", StopReason.FIRST_CONTACT, id="first-contact"),
        pytest.param("no token", StopReason.CREDENTIALS, id="credentials"),
        pytest.param("429 for 5000", StopReason.THROTTLED, id="throttled"),
    ],
)
async def test_one_target_stops_and_the_other_goes_on_to_the_end(
    verdict: str, reason: StopReason
) -> None:
    rows = [key for pair in zip(keys("acme/", 20), keys("r", 20), strict=True) for key in pair]
    targets = ["acme", "default"]
    bench = Bench(rows, chunk=7, targets=targets, script={"acme/1": [verdict]})
    await bench.finish()

    assert bench.stops() == [(reason, "acme")]
    assert bench.started() == set(keys("r", 20))
    assert {sent.key for sent in bench.des.sent if sent.target == "acme"} <= {"acme/1"}


async def test_one_target_pauses_and_the_other_goes_on() -> None:
    rows = ["acme/1", "acme/2", *keys("r", 20)]
    targets = ["acme", "default"]
    bench = Bench(rows, slots=2, targets=targets, script={"acme/1": ["429 for 30"]})
    await bench.begin()

    assert bench.started() == set(keys("r", 20))

    await bench.finish()

    assert bench.started() == set(rows)


async def test_a_target_that_is_stopped_from_outside_leaves_the_other_alone() -> None:
    rows = ["acme/1", "a", "acme/2", "b"]
    bench = Bench(rows, targets=["acme", "default"])
    bench.des.held = True
    await bench.begin()
    bench.engine.stop("acme", StopReason.CREDENTIALS, "no token for it")
    bench.des.held = False
    await bench.answer("acme/1")
    await bench.answer("a")
    await bench.finish()

    assert bench.stops() == [(StopReason.CREDENTIALS, "acme")]
    assert bench.engine.stops[0].message == "no token for it"
    assert bench.started() == {"acme/1", "a", "b"}


async def test_a_target_may_have_fewer_slots_than_the_others() -> None:
    rows = [*keys("acme/", 3), *keys("r", 3)]
    targets = ["acme", "default"]
    bench = Bench(rows, slots=4, chunk=6, targets=targets, slots_of={"acme": 1, "default": 9})
    bench.des.held = True
    await bench.begin()
    await bench.answer("acme/1")
    await bench.answer("r1")
    in_flight = set(bench.des.keys()) - {"acme/1", "r1"}
    bench.des.held = False

    for key in ("acme/2", "r2", "r3"):
        await bench.answer(key)

    await bench.finish()

    assert in_flight == {"acme/2", "r2", "r3"}
    assert bench.started() == set(rows)


async def test_when_the_last_target_stops_the_session_ends() -> None:
    script = {"acme/1": ["redirect"], "a": ["no token"]}
    bench = Bench(["acme/1", "a", *keys("r", 99)], targets=["acme", "default"], script=script)
    await bench.finish()

    assert bench.stops() == [
        (StopReason.CONFIGURATION, "acme"),
        (StopReason.CREDENTIALS, "default"),
    ]
    assert bench.source.given < 99


async def test_a_target_that_stopped_has_no_retries_to_wait_for() -> None:
    script = {"acme/b": ["503"], "acme/c": ["redirect"]}
    rows = ["acme/a", "acme/b", "acme/c", "r"]
    bench = Bench(rows, slots=1, targets=["acme", "default"], script=script)
    await bench.begin()

    assert bench.work is not None
    assert bench.work.done()
    assert bench.state("acme/b") is RowState.PENDING

    await bench.finish()


async def test_a_server_error_after_the_stop_plans_no_retry() -> None:
    bench = Bench(["first", "a", "b"], slots=2)
    bench.des.held = True
    await bench.begin()
    await bench.answer("first")
    await bench.answer("a", "redirect")
    await bench.answer("b", "503")
    await bench.finish()

    assert bench.told(RetryPlanned) == []
    assert bench.states("a", "b") == [RowState.PENDING] * 2


# Ends.


async def test_a_drain_awaits_what_is_in_flight_and_sends_nothing_new() -> None:
    bench = Bench(["first", "a", "b", "c"], slots=2)
    bench.des.held = True
    await bench.begin()
    await bench.answer("first")
    bench.engine.drain(INTERRUPTED)
    await bench.answer("a")
    await bench.answer("b", "503")
    await bench.finish()

    assert bench.des.keys() == ["first", "a", "b"]
    assert bench.states("a", "b", "c") == ["started", "pending", "pending"]
    assert bench.stops() == [(StopReason.INTERRUPTED, None)]
    assert bench.told(Draining) == [Draining(2, 60.0)]


async def test_a_drain_sends_no_waiting_row_again() -> None:
    bench = Bench(["a", "b"], slots=1, script={"a": ["503"]})
    await bench.begin()
    bench.engine.drain(INTERRUPTED)
    await bench.finish()

    assert bench.des.keys() == ["a"]
    assert bench.clock.now() == 0.0


async def test_a_drain_ends_a_pause_at_once() -> None:
    bench = Bench(["a", "b"], script={"a": ["429 for 30"]})
    await bench.begin()
    bench.engine.drain(INTERRUPTED)
    await bench.finish()

    assert (bench.des.keys(), bench.clock.now()) == (["a"], 0.0)


async def test_a_drain_does_not_wait_for_turns() -> None:
    bench = Bench(keys("r", 9), slots=4, rate=0.01)
    await bench.begin()
    bench.engine.drain(INTERRUPTED)
    await bench.finish()

    assert bench.told(Draining) == [Draining(0, 60.0)]
    assert (bench.des.keys(), bench.clock.now()) == (["r1"], 0.0)


async def test_a_drain_sends_nothing_whose_intent_still_waits_for_the_disk() -> None:
    bench = Bench(["a"])
    bench.journal.held = True
    await bench.begin()
    bench.engine.drain(INTERRUPTED)
    bench.journal.release()
    await bench.finish()

    assert bench.des.keys() == []
    assert bench.journal.trail() == ["sending a 1", "unsent a 1"]
    assert bench.journal.records[-1]["error"] == "held back before it was sent"
    assert bench.state("a") is RowState.PENDING


async def test_a_drain_before_the_run_reads_nothing() -> None:
    bench = Bench(["a"])
    bench.engine.drain(INTERRUPTED)
    await bench.finish()

    assert (bench.source.given, bench.journal.records) == (0, [])


async def test_a_drain_ends_a_source_that_never_does() -> None:
    bench = Bench(["a"], endless=True)
    await bench.begin()
    bench.engine.drain(INTERRUPTED)
    await bench.finish()

    assert bench.started() == {"a"}


async def test_a_second_drain_only_notes_its_reason() -> None:
    bench = Bench(["a"], endless=True)
    await bench.begin()
    bench.engine.drain()
    bench.engine.drain(INTERRUPTED)
    await bench.finish()

    assert len(bench.told(Draining)) == 1
    assert bench.stops() == [(StopReason.INTERRUPTED, None)]


async def test_rows_in_flight_are_given_up_after_the_drain_timeout() -> None:
    bench = Bench(["a"], drain_timeout=7.0)
    bench.des.held = True
    await bench.begin()
    bench.engine.drain(INTERRUPTED)
    await bench.clock.advance(6.9)
    waiting = bench.state("a"), bench.journal.kinds("a")
    await bench.finish()

    assert waiting == (RowState.UNKNOWN, ["sending"])
    assert bench.clock.now() == 7.0
    assert bench.journal.kinds("a") == ["sending", "unknown"]
    assert bench.ended == ["a"]


async def test_giving_up_leaves_no_doubt_where_no_byte_left() -> None:
    bench = Bench(["first", "a", "b"], slots=2)
    bench.des.held = True
    await bench.begin()
    bench.journal.held = True
    await bench.answer("first")
    bench.engine.abandon()
    await bench.journal.settle()
    bench.journal.release()
    await bench.finish()

    assert bench.journal.trail() == [
        "sending first 1",
        "started first 1",
        "sending a 1",
        "sending b 1",
        "unsent a 1",
        "unsent b 1",
    ]
    assert bench.des.keys() == ["first"]


# Cancellation, at each point where a worker can wait.


async def waits_for_work() -> Bench:
    bench = Bench([], endless=True)
    await bench.begin()
    return bench


async def waits_for_its_turn() -> Bench:
    bench = Bench(["a", "b"], slots=1, rate=0.01)
    await bench.begin()
    return bench


async def waits_for_the_disk() -> Bench:
    bench = Bench(["a"])
    bench.journal.held = True
    await bench.begin()
    return bench


async def waits_for_the_server() -> Bench:
    bench = Bench(["a"])
    bench.des.held = True
    await bench.begin()
    return bench


async def waits_for_a_token() -> Bench:
    bench = Bench(["a"], script={"a": ["401"]})
    bench.des.renewal = asyncio.Event()
    await bench.begin()
    return bench


async def waits_for_a_retry() -> Bench:
    bench = Bench(["a"], script={"a": ["503"]})
    await bench.begin()
    return bench


async def waits_for_the_end_of_a_pause() -> Bench:
    bench = Bench(["a"], script={"a": ["429"]})
    await bench.begin()
    return bench


@pytest.mark.parametrize(
    ("scene", "trail"),
    [
        pytest.param(waits_for_work, [], id="work"),
        pytest.param(waits_for_its_turn, ["sending a 1", "started a 1"], id="turn"),
        pytest.param(waits_for_the_disk, ["sending a 1", "unsent a 1"], id="disk"),
        pytest.param(waits_for_the_server, ["sending a 1", "unknown a 1"], id="server"),
        pytest.param(waits_for_a_token, ["sending a 1", "answered a 1"], id="token"),
        pytest.param(waits_for_a_retry, ["sending a 1", "answered a 1"], id="retry"),
        pytest.param(waits_for_the_end_of_a_pause, ["sending a 1", "answered a 1"], id="pause"),
    ],
)
async def test_giving_up_at_each_wait(scene: Callable[[], Any], trail: list[str]) -> None:
    bench = await scene()
    bench.engine.abandon()
    bench.engine.abandon()
    await bench.journal.settle()
    bench.journal.release()
    await bench.finish()

    assert bench.journal.trail() == trail
    assert bench.clock.now() == 0.0


# Faults of others.


@pytest.mark.parametrize("fail_at", [pytest.param(n, id=f"append-{n}") for n in range(1, 12)])
async def test_a_journal_that_fails_ends_the_sending(fail_at: int) -> None:
    journal = FakeJournal(fail_at=fail_at)
    bench = Bench(keys("r", 9), slots=2, journal=journal)
    bench.des.latency = lambda: 1.0
    await bench.finish()
    recorded = {r["key"]: r["jobRunId"] for r in journal.records if r["record"] == "started"}
    runs = {key: run for key, (run,) in bench.des.runs.items()}

    assert bench.stops() == [(StopReason.LEDGER, None)]
    assert recorded | dict(bench.engine.unrecorded) == runs
    assert not recorded.keys() & dict(bench.engine.unrecorded)
    assert all(sent.durable for sent in bench.des.sent)
    assert bench.ended == list(recorded)


async def test_rows_in_flight_are_awaited_when_the_journal_fails() -> None:
    journal = FakeJournal(fail_at=5)
    bench = Bench(["first", "a", "b", "c"], slots=2, journal=journal)
    bench.des.held = True
    await bench.begin()
    await bench.answer("first")
    await bench.answer("a")
    failed = bench.stops()
    await bench.answer("b")
    await bench.finish()

    assert failed == [(StopReason.LEDGER, None)]
    assert bench.engine.unrecorded == [("a", "run 1 of a"), ("b", "run 1 of b")]
    assert bench.des.keys() == ["first", "a", "b"]


async def test_a_run_named_by_a_doubtful_answer_is_told_where_it_can_not_be_recorded() -> None:
    lost = OutcomeUnknown("another job's answer", job_run_id="doubtful")
    bench = Bench(["a"], journal=FakeJournal(fail_at=2), script={"a": [lost]})
    await bench.finish()

    assert bench.engine.unrecorded == [("a", "doubtful")]


class PickyJournal(FakeJournal):
    """Refuses records of started runs at once, as one that is too long would be."""

    def append(self, record: Record) -> asyncio.Future[None]:
        if record["record"] == "started":
            raise ValueError("too long")

        return super().append(record)


async def test_a_run_whose_record_is_refused_is_told() -> None:
    bench = Bench(["a", "b"], journal=PickyJournal())

    with pytest.raises(ValueError, match="too long"):
        await bench.finish()

    assert bench.engine.unrecorded == [("a", "run 1 of a")]
    assert bench.des.keys() == ["a"]


class ListenerError(Exception):
    pass


async def test_a_listener_that_raises_ends_the_session_and_loses_no_row() -> None:
    bench = Bench(["first", "a", "b", "c"], slots=2)
    bench.des.held = True

    def complain(ended: StartRequest) -> None:
        if ended.key != "first":
            raise ListenerError(ended.key)

    bench.on_end = complain
    await bench.begin()
    await bench.answer("first")
    await bench.answer("a")
    await bench.answer("b", "400")

    with pytest.raises(ListenerError, match="a"):
        await bench.finish()

    assert bench.states("first", "a", "b", "c") == ["started", "started", "rejected", "pending"]
    assert bench.des.keys() == ["first", "a", "b"]


@pytest.mark.parametrize(
    ("kind", "script"),
    [
        pytest.param(RetryPlanned, ["503"], id="retry"),
        pytest.param(TargetPaused, ["429"], id="pause"),
        pytest.param(TokenRenewed, ["401"], id="token"),
        pytest.param(Stopped, ["redirect"], id="stop"),
    ],
)
async def test_a_listener_may_raise_at_any_event(kind: type, script: list[str]) -> None:
    def complain(event: Event) -> None:
        if isinstance(event, kind):
            raise ListenerError

    bench = Bench(["first", "a", "b"], slots=1, script={"a": script})
    bench.on_event = complain

    with pytest.raises(ListenerError):
        await bench.finish()

    assert bench.states("first", "a", "b") == ["started", "pending", "pending"]


async def test_a_source_that_raises_ends_the_session_and_loses_no_row() -> None:
    bench = Bench([*keys("r", 14), LookupError("rows are gone"), "late"], slots=2)
    bench.des.latency = lambda: 1.0

    with pytest.raises(LookupError, match="rows are gone"):
        await bench.finish()

    assert bench.source.given == 14
    assert bench.started() == set(bench.des.keys())
    assert 0 < len(bench.started()) < 14


async def test_a_manifest_that_changed_is_a_stop() -> None:
    bench = Bench(["a", ManifestChanged("it changed")])
    await bench.finish()

    assert bench.stops() == [(StopReason.MANIFEST_CHANGED, None)]


async def test_a_conflicting_row_is_an_error() -> None:
    bench = Bench(["a", ManifestConflict("it was sent", changed=["b"])])

    with pytest.raises(ManifestConflict):
        await bench.finish()


@pytest.mark.parametrize(
    ("verdict", "kind"),
    [
        pytest.param("bug", "unsent", id="not-sent"),
        pytest.param(RuntimeError("a bug"), "unknown", id="sent"),
    ],
)
async def test_a_fault_of_the_starter_loses_no_row(verdict: str | Exception, kind: str) -> None:
    bench = Bench(["first", "a", "b", "c"], slots=2, script={"a": [verdict]})
    bench.des.latency = lambda: 1.0

    with pytest.raises(RuntimeError, match="a bug"):
        await bench.finish()

    assert bench.journal.kinds("a") == ["sending", kind]
    assert bench.started() == {sent.key for sent in bench.des.sent} - {"a"}
    assert bench.states("first", "c") == ["started", "pending"]


async def test_a_fault_of_the_renewal_ends_the_session() -> None:
    bench = Bench(["a", "b"], script={"a": ["401"]})
    bench.des.renewal_fault = RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        await bench.finish()

    assert bench.states("a", "b") == ["pending", "pending"]


# All of it at once.


def scripts() -> st.SearchStrategy[list[str]]:
    usual = ["started", "500", "504", "429", "unsent", "401", "lost", "400"]
    rare = ["429 for 30", "429 for 5000", "redirect", "no token"]
    return st.lists(st.sampled_from([*usual, *usual, *usual, *rare]), max_size=6)


@st.composite
def batches(draw: st.DrawFn) -> dict[str, list[str]]:
    targets = draw(st.sampled_from([["default"], ["default", "acme"], ["default", "acme", "b"]]))
    rows = draw(st.integers(0, 30))
    places = draw(st.lists(st.sampled_from(targets), min_size=rows, max_size=rows))
    return {
        f"r{n}" if place == "default" else f"{place}/{n}": draw(scripts())
        for n, place in enumerate(places)
    }


@given(
    script=batches(),
    slots=st.integers(1, 6),
    chunk=st.integers(1, 12),
    seed=st.integers(0, 2**16),
    rate=st.sampled_from([None, None, 3.0]),
    ends_at=st.sampled_from([None, None, 0.0, 2.5, 9.0]),
    abandons=st.booleans(),
    fail_at=st.sampled_from([None, None, None, 1, 2, 7, 20]),
)
@settings(max_examples=200, deadline=None)
def test_whatever_happens(
    script: dict[str, list[str]],
    slots: int,
    chunk: int,
    seed: int,
    rate: float | None,
    ends_at: float | None,
    abandons: bool,
    fail_at: int | None,
) -> None:
    async def scenario() -> None:
        rng = random.Random(seed)
        bench = Bench(
            list(script),
            slots=slots,
            chunk=chunk,
            journal=FakeJournal(fail_at=fail_at, lag=lambda: rng.randrange(4)),
            script={key: list(verdicts) for key, verdicts in script.items()},
            targets=["default", "acme", "b"],
            rng=rng,
            rate=rate,
            give_up_after=200.0,
        )
        bench.des.latency = lambda: rng.choice([0.0, 0.1, 1.0, 3.0])

        if ends_at is not None:
            await bench.begin()
            await bench.clock.advance(ends_at)
            bench.engine.drain(INTERRUPTED)

            if abandons:
                bench.engine.abandon()

        await bench.finish()
        check_end(bench, list(script))

    anyio.run(scenario)


def check_end(bench: Bench, rows: list[str]) -> None:
    replay = Replay()
    replay.apply(header())

    for record in bench.journal.records:
        replay.apply(record)

    runs = {key: key_runs[0] for key, key_runs in bench.des.runs.items()}
    recorded = {key: state.job_run_id for key, state in replay.states.items() if state.job_run_id}
    pending = [key for key in rows if bench.state(key) is RowState.PENDING]
    stopped = {stop.target for stop in bench.engine.stops}

    assert recorded | dict(bench.engine.unrecorded) == runs
    assert all(len(key_runs) == 1 for key_runs in bench.des.runs.values())
    assert all(None in stopped or target_of(key) in stopped for key in pending)
    assert [event.stop for event in bench.told(Stopped)] == bench.engine.stops
    assert list(attempts(bench.journal.records)) == []

    if bench.journal.fail_at is None:
        assert bench.journal.records == bench.journal.queued
        assert not any(state._open for state in replay.states.values())
        assert sorted(bench.ended) == sorted(set(rows) - set(pending))
    elif len(bench.journal.queued) >= bench.journal.fail_at:
        assert StopReason.LEDGER in {stop.reason for stop in bench.engine.stops}


def target_of(key: str) -> str:
    return key.partition("/")[0] if "/" in key else DEFAULT_TARGET


def attempts(said: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield the keys whose attempts do not number on by one."""
    last: Counter[str] = Counter()

    for record in said:
        if record["record"] == "sending":
            if record["attempt"] != last[record["key"]] + 1:
                yield record["key"]

            last[record["key"]] = record["attempt"]


# What can be seen.


async def test_an_engine_tells_how_it_stands() -> None:
    bench = Bench(["first", "a", "b"], slots=1, script={"a": ["503"]})
    before = repr(bench.engine)
    bench.des.held = True
    await bench.begin()
    during = repr(bench.engine)
    bench.engine.drain()
    after = repr(bench.engine)
    await bench.answer("first")
    await bench.finish()

    assert before == "<Engine at work: 0 in flight, 0 waiting>"
    assert during == "<Engine at work: 1 in flight, 0 waiting>"
    assert after == "<Engine draining: 1 in flight, 0 waiting>"
    assert repr(Start(request("a"), attempt=3)) == "<Start 'a' attempt 3>"


async def test_the_systems_clock_is_the_loops() -> None:
    clock = SystemClock()
    before = clock.now()
    await clock.sleep(0.0)

    assert before <= clock.now() <= asyncio.get_running_loop().time()


# Probes, and bad ends in a row.


async def test_a_paused_target_is_probed_before_any_row_is_sent() -> None:
    bench = Bench(["a", "b", "c"], slots=3, script={"b": ["429"]}, retry=RetryPolicy(max_wait=8.0))
    bench.des.probe_script = {DEFAULT_TARGET: ["unsent", "500"]}
    await bench.finish()

    probes = [at for _, at in bench.des.probes]
    assert len(probes) == 3
    assert max(bench.times("b")) >= probes[-1] > probes[0]
    assert not [at for at in bench.times() if probes[0] <= at < probes[-1]]
    assert bench.started() == {"a", "b", "c"}
    assert len(bench.told(TargetPaused)) == 3


async def test_a_target_whose_probes_fail_is_given_up() -> None:
    bench = Bench(["a", "b"], slots=1, script={"b": ["429"]}, give_up_after=20.0)
    bench.des.probe_script = {DEFAULT_TARGET: ["unsent"] * 50}
    await bench.finish()

    assert bench.stops() == [(StopReason.UNREACHABLE, DEFAULT_TARGET)]
    assert bench.states("a", "b") == [RowState.STARTED, RowState.PENDING]
    assert bench.des.keys() == ["a", "b"]


async def test_a_fault_of_a_probe_ends_the_session() -> None:
    bench = Bench(["a", "b"], script={"b": ["429"]})
    bench.des.probe_script = {DEFAULT_TARGET: ["bug"]}

    with pytest.raises(RuntimeError, match="a bug"):
        await bench.finish()

    assert bench.states("a", "b") == [RowState.STARTED, RowState.PENDING]


@pytest.mark.parametrize(
    ("verdict", "ended"),
    [
        pytest.param("lost", 5, id="unknown"),
        pytest.param("500", 25, id="failed"),
    ],
)
async def test_bad_ends_in_a_row_stop_the_target(verdict: str, ended: int) -> None:
    rows = keys("r", 40)
    script: dict[str, list[Any]] = {key: [verdict] for key in rows[1:]}
    bench = Bench(rows, slots=1, script=script, retry=RetryPolicy(max_attempts=1))
    await bench.finish()

    assert bench.stops() == [(StopReason.TOO_MANY_ERRORS, DEFAULT_TARGET)]
    assert len(bench.ended) == 1 + ended
    assert bench.des.keys() == rows[: 1 + ended]


async def test_one_target_is_stopped_by_its_errors_and_the_other_goes_on() -> None:
    rows = [f"{target}/{number}" for number in range(1, 11) for target in ("acme", "bistro")]
    script: dict[str, list[Any]] = {f"acme/{number}": ["lost"] for number in range(2, 11)}
    bench = Bench(rows, slots=2, script=script, targets=["acme", "bistro"])
    await bench.finish()

    assert bench.stops() == [(StopReason.TOO_MANY_ERRORS, "acme")]
    assert bench.started() == {"acme/1", *keys("bistro/", 10)}


async def test_too_many_errors_stop_a_target_by_the_limit() -> None:
    rows = keys("r", 10)
    script: dict[str, list[Any]] = {key: ["400"] for key in rows[1::2]}
    bench = Bench(rows, slots=1, script=script, error_limit=ErrorLimit.parse("2"))
    await bench.finish()

    [stop] = bench.engine.stops
    assert (stop.reason, stop.target) == (StopReason.TOO_MANY_ERRORS, DEFAULT_TARGET)
    assert stop.message == "3 of 6 rows ended without a run, and --max-errors is 2"
    assert bench.des.keys() == rows[:6]


async def test_a_timer_that_rings_early_does_not_lose_the_end_of_a_pause() -> None:
    """uvloop's clock and timers know milliseconds only, and may ring before their time."""
    bench = Bench(["a", "b", "c"], slots=1, script={"b": ["429", "429 for 30"]}, early=0.0004)
    await bench.finish()

    assert bench.started() == {"a", "b", "c"}
    assert len(bench.des.probes) == 2


async def test_a_pause_that_grows_during_its_probe_is_not_cut_short() -> None:
    bench = Bench(["a", "b", "c"], slots=3, script={"b": ["429"]})
    bench.des.held = True
    await bench.begin()
    await bench.answer("a")
    await bench.answer("b", "429")
    await bench.clock.advance(0.5)
    await bench.answer("c", "429 for 90")
    bench.des.held = False
    await bench.finish()

    assert min(at for at in bench.times() if at > 0.5) >= 90.5
    assert bench.started() == {"a", "b", "c"}


async def test_rows_that_break_off_with_a_cancellation_are_no_end_of_them() -> None:
    cancelled = asyncio.CancelledError()
    bench = Bench(["a"])
    bench.source.breaks_off = cancelled

    with pytest.raises(RuntimeError) as caught:
        await bench.finish()

    assert str(caught.value) == "the rows broke off with a cancellation of their own"
    assert caught.value.__cause__ is cancelled
    assert bench.state("a") in {RowState.PENDING, RowState.STARTED}


# What mutation testing asked for.


class BrokenJitter:
    """Fails where a wait is drawn."""

    def uniform(self, a: float, b: float) -> float:
        raise RuntimeError("no dice")


class LateSource:
    """Has nothing, but says so late."""

    def __init__(self) -> None:
        self.over = asyncio.Event()

    async def read(self) -> list[Start]:
        await self.over.wait()
        return []


async def test_the_systems_clock_does_not_return_early() -> None:
    sleeping = asyncio.create_task(SystemClock().sleep(3600.0))
    await anyio.wait_all_tasks_blocked()
    asleep = not sleeping.done()
    sleeping.cancel()

    assert asleep


async def test_a_source_that_ends_late_ends_the_session() -> None:
    bench = Bench([])
    source = LateSource()
    bench.engine._source = source
    await bench.begin()
    source.over.set()
    await bench.finish()

    assert bench.stops() == []


async def test_an_engine_counts_all_that_waits() -> None:
    bench = Bench(["first", "a", "b"], slots=1, script={"a": ["503"], "b": ["429 for 30"]})
    await bench.begin()
    assert repr(bench.engine) == "<Engine at work: 0 in flight, 2 waiting>"
    await bench.finish()


async def test_a_pulse_counts_what_is_in_flight_and_what_waits() -> None:
    rows = ["first", "a", "b"]
    bench = Bench(rows, slots=1, script={"a": ["503"], "b": ["429 for 30"]})
    bench.des.held = True
    await bench.begin()
    pulses = [bench.engine.pulse()]
    bench.des.held = False
    await bench.answer("first")
    pulses.append(bench.engine.pulse())
    await bench.finish()

    assert pulses == [Pulse(1, 0, 1), Pulse(0, 2, 0)]


async def test_a_pulse_never_tells_of_more_slots_than_there_are() -> None:
    bench = Bench(["acme/1", "a"], slots=3, targets=["acme", "default"])
    before = bench.engine.pulse()
    await bench.finish()

    assert (before, bench.engine.pulse()) == (Pulse(0, 0, 2), Pulse(0, 0, 3))


async def test_a_wait_that_cannot_be_drawn_ends_the_session() -> None:
    bench = Bench(["a"], script={"a": ["503"]}, rng=BrokenJitter())

    with pytest.raises(RuntimeError, match="no dice"):
        await bench.finish()

    assert bench.journal.trail() == ["sending a 1", "answered a 1"]


async def test_a_drain_after_the_end_does_nothing() -> None:
    bench = Bench(["a"])
    await bench.finish()
    bench.engine.drain()

    assert bench.told(Draining) == [Draining(0, 60.0)]


async def test_giving_up_is_a_drain_too() -> None:
    bench = Bench(["a", "b"], slots=1)
    bench.des.held = True
    await bench.begin()
    bench.engine.abandon()
    await bench.finish()

    assert bench.told(Draining) == [Draining(1, 60.0)]
    assert bench.journal.records[-1]["cause"] == "given up before an answer"
    assert bench.states("a", "b") == [RowState.UNKNOWN, RowState.PENDING]


@pytest.mark.parametrize("late", [False, True], ids=["paused-before", "paused-after"])
async def test_a_drain_sends_no_probe(late: bool) -> None:
    bench = Bench(["first", "a", "b"], slots=2)
    bench.des.held = True
    await bench.begin()
    await bench.answer("first")

    if late:
        bench.engine.drain(INTERRUPTED)
        await bench.answer("a", "429 for 30")
    else:
        await bench.answer("a", "429 for 30")
        bench.engine.drain(INTERRUPTED)

    await bench.journal.settle()
    await bench.clock.advance(50.0)
    await bench.answer("b")
    await bench.finish()

    assert (bench.des.probes, bench.states("a", "b")) == ([], [RowState.PENDING, RowState.STARTED])


async def test_a_drain_awaits_a_row_that_had_waited_for_its_turn() -> None:
    bench = Bench(["a", "b"], slots=1, rate=1.0)
    await bench.begin()
    bench.des.held = True
    await bench.clock.advance(1.0)
    await bench.journal.settle()
    bench.engine.drain(INTERRUPTED)
    await bench.journal.settle()
    await bench.answer("b")
    await bench.finish()

    assert bench.started() == {"a", "b"}


async def test_a_refused_token_is_a_contact() -> None:
    bench = Bench(["a"], script={"a": ["401", "unsent", "unsent", "unsent"]})
    await bench.finish()

    assert (bench.stops(), bench.started()) == ([], {"a"})


async def test_a_first_403_stops_the_target() -> None:
    refused = Rejected("DES answered 403", status=403)
    bench = Bench(["a", "b"], slots=1, script={"a": [refused]})
    await bench.finish()

    assert bench.stops() == [(StopReason.CONFIGURATION, DEFAULT_TARGET)]
    assert bench.states("a", "b") == [RowState.REJECTED, RowState.PENDING]


async def test_a_retry_is_recorded_and_told_whole() -> None:
    bench = Bench(["a"], script={"a": ["500", "503"]})
    await bench.finish()
    answered = [record for record in bench.journal.records if record["record"] == "answered"]

    assert [(record["status"], record["error"]) for record in answered] == [
        (500, "oops"),
        (503, "DES answered 503"),
    ]
    assert bench.told(RetryPlanned) == [
        RetryPlanned("a", DEFAULT_TARGET, 500, 1.0),
        RetryPlanned("a", DEFAULT_TARGET, 503, 2.0),
    ]


async def test_a_pause_is_recorded_and_told_whole() -> None:
    bench = Bench(["a"], script={"a": ["unsent"]})
    await bench.finish()
    unsent, pause = bench.journal.records[1:3]

    assert (unsent["record"], unsent["error"]) == ("unsent", "refused")
    assert (pause["target"], pause["cause"], pause["seconds"]) == (DEFAULT_TARGET, "refused", 1.0)
    assert bench.told(TargetPaused) == [TargetPaused(DEFAULT_TARGET, "refused", 1.0)]


async def test_an_outcome_that_is_not_written_ends_the_session() -> None:
    bench = Bench(["a"], journal=FakeJournal(fail_at=2))
    await bench.finish()

    [stop] = bench.engine.stops
    assert (stop.reason, stop.message) == (StopReason.LEDGER, "the disk is full")
    assert bench.engine.unrecorded == [("a", "run 1 of a")]


@pytest.mark.parametrize(
    ("rows", "script", "reason", "message"),
    [
        pytest.param(
            [ManifestChanged("it was changed")],
            [],
            StopReason.MANIFEST_CHANGED,
            "it was changed",
            id="manifest",
        ),
        pytest.param(
            ["a"], ["no token"], StopReason.CREDENTIALS, "there is no token", id="no-token"
        ),
        pytest.param(
            ["a"],
            ["401", "401"],
            StopReason.CREDENTIALS,
            "DES refused the new token as well",
            id="new-token-refused",
        ),
        pytest.param(
            ["a"],
            ["lost"],
            StopReason.FIRST_CONTACT,
            "the first start got no usable answer: no answer",
            id="lost",
        ),
        pytest.param(["a"], ["bad url"], StopReason.CONFIGURATION, "bad URL", id="bad-url"),
    ],
)
async def test_a_stop_says_why(
    rows: list[str | Exception], script: list[str], reason: StopReason, message: str
) -> None:
    bench = Bench(rows, script={"a": list(script)})
    await bench.finish()

    assert [(stop.reason, stop.message) for stop in bench.engine.stops] == [(reason, message)]


async def test_a_token_that_is_not_renewed_says_why() -> None:
    bench = Bench(["a"], script={"a": ["401"]})
    bench.des.no_newer = {DEFAULT_TARGET}
    await bench.finish()

    [stop] = bench.engine.stops
    assert (stop.reason, stop.message) == (StopReason.CREDENTIALS, "there is no newer token")


async def test_a_row_without_a_token_is_recorded_as_unsent() -> None:
    bench = Bench(["a"], script={"a": ["no token"]})
    await bench.finish()
    last = bench.journal.records[-1]

    assert (last["record"], last["error"]) == ("unsent", "there is no token")


async def test_403_over_several_jobs_stops_the_target() -> None:
    refused = Rejected("DES answered 403", status=403)
    rows = [Start(request(key)._replace(job_id=f"job {key}")) for key in keys("r", 7)]
    bench = Bench(rows, slots=1, script={key: [refused] for key in keys("r", 7)[1:]})
    await bench.finish()

    assert bench.stops() == [(StopReason.CONFIGURATION, DEFAULT_TARGET)]
    assert bench.des.keys() == keys("r", 6)


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        pytest.param("400", ("rejected", 400, "bad", None), id="rejected"),
        pytest.param(
            Rejected("DES answered 404", status=404),
            ("rejected", 404, "DES answered 404", None),
            id="rejected-without-an-answer",
        ),
        pytest.param(
            OutcomeUnknown("DES answered 504", status=504),
            ("unknown", 504, None, "DES answered 504"),
            id="unknown",
        ),
        pytest.param(
            "bug", ("unsent", None, "the starter failed with RuntimeError", None), id="bug"
        ),
    ],
)
async def test_an_end_is_recorded_whole(
    verdict: str | Exception, expected: tuple[str, int | None, str | None, str | None]
) -> None:
    bench = Bench(["first", "a"], slots=1, script={"a": [verdict]})

    with contextlib.suppress(RuntimeError):
        await bench.finish()

    last = bench.journal.records[-1]
    found = (last["record"], last.get("status"), last.get("error"), last.get("cause"))
    assert found == expected


@pytest.mark.parametrize("verdict", ["401", "503"])
async def test_a_drain_neither_renews_nor_plans(verdict: str) -> None:
    bench = Bench(["first", "a", "b"], slots=2)
    bench.des.held = True
    await bench.begin()
    await bench.answer("first")
    bench.engine.drain(INTERRUPTED)
    await bench.answer("a", verdict)
    await bench.answer("b")
    await bench.finish()

    assert (bench.des.renewals.total(), bench.told(RetryPlanned)) == (0, [])
    assert bench.states("a", "b") == [RowState.PENDING, RowState.STARTED]


async def test_what_des_said_to_an_unknown_start_is_recorded() -> None:
    odd = OutcomeUnknown("DES answered 200 without a run", status=200, answer="<html>")
    bench = Bench(["first", "a"], slots=1, script={"a": [odd]})
    await bench.finish()

    assert bench.journal.records[-1]["answer"] == "<html>"


def test_what_an_engine_does_where_nothing_is_said() -> None:
    assert EngineSettings() == EngineSettings(
        slots=16,
        rate=None,
        retry=RetryPolicy(),
        give_up_after=900.0,
        drain_timeout=60.0,
        error_limit=ErrorLimit(),
    )
    assert WAITING_PER_SLOT == 4


async def test_giving_up_before_the_run_reads_nothing() -> None:
    bench = Bench(["a"])
    bench.engine.abandon()
    await bench.finish()

    assert (bench.source.given, bench.journal.records) == (0, [])


async def test_no_more_is_read_ahead_than_the_slots_will_need() -> None:
    bench = Bench(keys("r", 40), slots=3)
    bench.des.held = True
    await bench.begin()
    await bench.answer("r1")
    in_flight, given = len(bench.des.waiting), bench.source.given
    bench.des.held = False

    for key in list(bench.des.waiting):
        await bench.answer(key)

    await bench.finish()

    assert in_flight == 3
    assert given <= (WAITING_PER_SLOT + 1) * 3


async def test_a_row_that_waited_for_its_turn_comes_back_ahead_of_later_ones() -> None:
    rows = ["first", "a", "b", "c", "d"]
    bench = Bench(rows, slots=2, rate=1.0, script={"a": ["429 for 30"]})
    await bench.finish()

    assert bench.des.keys() == ["first", "a", "b", "a", "c", "d"]


async def test_a_first_contact_that_is_retried_waits_for_its_turn() -> None:
    bench = Bench(["a"], script={"a": ["503"]}, rate=0.1)
    await bench.begin()
    await bench.clock.advance(10.0)

    assert bench.times() == [0.0, 10.0]

    await bench.finish()


async def test_an_intent_that_is_not_written_ends_the_session() -> None:
    bench = Bench(["a"], journal=FakeJournal(fail_at=1))
    await bench.finish()

    [stop] = bench.engine.stops
    assert (stop.reason, stop.message) == (StopReason.LEDGER, "the disk is full")
    assert (bench.engine.unrecorded, bench.des.keys()) == ([], [])


async def test_a_pause_that_is_prolonged_is_probed_once() -> None:
    bench = Bench(["first", "a", "b"], slots=2)
    bench.des.held = True
    await bench.begin()
    await bench.answer("first")
    await bench.answer("a", "429 for 30")
    await bench.answer("b", "429 for 90")
    bench.des.held = False
    bench.des.latency = lambda: 0.5
    await bench.finish()

    assert bench.des.probes == [(DEFAULT_TARGET, 90.0)]


async def test_a_retry_that_was_made_leaves_nothing_behind() -> None:
    bench = Bench(keys("r", 9), slots=3, script={key: ["503"] for key in keys("r", 9)})
    await bench.begin()
    await bench.clock.advance(2.0)

    assert len(bench.told(RetryPlanned)) == 9
    assert not bench.engine._helpers

    await bench.finish()


async def test_a_stop_that_comes_with_the_disk_ends_what_waits_for_nothing_else() -> None:
    rows = ["acme/0", "acme/1", "acme/2"]
    limit = ErrorLimit.parse("0")
    bench = Bench(rows, slots=2, targets=["acme", "default"], error_limit=limit)
    bench.des.held = True
    await bench.begin()
    await bench.answer("acme/0")
    await bench.answer("acme/2", "503")
    bench.journal.held = True
    await bench.answer("acme/1", "400")
    bench.journal.release()
    await bench.finish()

    assert bench.stops() == [(StopReason.TOO_MANY_ERRORS, "acme")]
    assert (bench.states("acme/2"), bench.clock.now()) == ([RowState.PENDING], 0.0)
