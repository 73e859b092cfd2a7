"""An intent is durable before its POST, an outcome before it is told, and no row runs twice."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from fakes import settle
from hypothesis import given, settings
from hypothesis import strategies as st
from ledgers import ask
from openings import TOKEN, Place, rows, service
from sessions import INTERRUPTED, Bench, final, keys

from deslaunch.des.client import DesClient
from deslaunch.errors import LedgerDamaged, LedgerWriteFailed, OutcomeUnknown
from deslaunch.events import Noted, Stop, StopReason
from deslaunch.model import DEFAULT_TARGET, RowState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from deslaunch.model import Sent, Start, StartedRun


async def test_nothing_to_do_ends_at_once() -> None:
    bench = Bench([])
    await bench.finish()

    assert (bench.events, bench.session.stops, bench.ledger.turns) == ([], [], [])


async def test_nothing_is_sent_before_its_intent_is_durable() -> None:
    bench = Bench(["a"])
    bench.ledger.held = True
    await bench.begin()
    waiting = bench.ledger.calls, bench.des.keys()
    bench.ledger.release()
    await bench.finish()

    assert waiting == (1, [])
    assert [(sent.key, sent.durable) for sent in bench.des.sent] == [("a", True)]


async def test_other_programs_see_an_intent_before_its_start_leaves(
    tmp_path: Path, batch_place: str
) -> None:
    seen = []

    class Looks(DesClient):
        async def start(self, start: Start, sent: Sent | None = None) -> StartedRun:
            select = f"SELECT result FROM attempt WHERE row = {start.row}"
            seen.append(await asyncio.to_thread(ask, batch_place, select))
            return await super().start(start, sent)

    place = Place(tmp_path, batch_place)

    async with service(place) as (simulator, _), Looks(simulator.base_url, token=TOKEN) as des:
        await place.launch(des, rows(12), concurrency=3)

    assert seen == [[(None,)]] * 12


async def test_an_outcome_goes_with_the_next_intent_of_its_slot() -> None:
    bench = Bench(["a", "b"], slots=1)
    await bench.finish()

    assert bench.trail() == ["claim(a)", "started(a) claim(b)", "started(b)"]


async def test_responses_come_in_while_a_turn_commits() -> None:
    bench = Bench(["first", *keys("r", 3)], slots=3)
    bench.des.held = True
    await bench.begin()
    await bench.answer("first")
    bench.ledger.held = True
    await bench.answer("r1")
    await bench.answer("r2", "400")
    await bench.answer("r3")
    bench.ledger.release()
    await bench.finish()

    assert bench.trail()[-2:] == ["started(r1)", "rejected(r2) started(r3)"]


async def test_a_row_is_told_once_its_end_is_durable_and_in_that_order() -> None:
    bench = Bench(["a", "b", "c"], slots=3)
    bench.des.held = True
    await bench.begin()
    await bench.answer("a")
    bench.ledger.held = True
    await bench.answer("c")
    await bench.answer("b", "400")
    early = list(bench.ended())
    bench.ledger.release()
    await bench.finish()

    assert (early, bench.ended()) == (["a"], ["a", "c", "b"])


async def test_the_session_ends_once_the_last_outcome_is_durable() -> None:
    bench = Bench(["a"])
    bench.des.held = True
    await bench.begin()
    bench.ledger.held = True
    await bench.answer("a")
    assert bench.work is not None
    ended_early = bench.work.done()
    bench.ledger.release()
    await bench.finish()

    assert (ended_early, bench.ended()) == (False, ["a"])


@given(slots=st.integers(1, 6), rows=st.integers(0, 25), seed=st.integers(0, 2**16))
@settings(max_examples=25, deadline=None)
def test_no_more_than_the_slots_are_ever_open(slots: int, rows: int, seed: int) -> None:
    async def scenario() -> None:
        rng = random.Random(seed)
        bench = Bench(keys("r", rows), slots=slots)
        bench.ledger.lag = lambda: rng.randrange(4)
        bench.des.latency = rng.random
        await bench.finish()

        assert bench.started() == set(keys("r", rows))
        assert bench.ledger.most_open == min(slots, max(1, rows - 1), rows)

    anyio.run(scenario)


# A ledger that fails.


async def test_a_commit_in_doubt_sends_nothing_and_its_outcomes_are_offered_again() -> None:
    bench = Bench(["first", "a", "b", "c"], slots=2)
    bench.ledger.fails = lambda number: number == 3
    bench.des.held = True
    await bench.begin()
    await bench.answer("first")
    await bench.answer("a")
    failed = bench.stops(), bench.ended()
    await bench.answer("b")
    await bench.finish()

    assert failed == ([(StopReason.LEDGER, None)], ["first"])
    assert bench.ended() == ["first", "a", "b"]
    assert bench.des.keys() == ["first", "a", "b"]
    assert bench.session.unrecorded == []


async def test_a_response_that_comes_while_a_turn_fails_is_offered_with_the_others() -> None:
    bench = Bench(["first", "a", "b"], slots=2)
    bench.ledger.fails = lambda number: number == 3
    bench.des.held = True
    await bench.begin()
    await bench.answer("first")
    bench.ledger.held = True
    await bench.answer("a")
    await bench.answer("b")
    bench.ledger.release()
    await bench.finish()

    assert bench.ended() == ["first", "a", "b"]


async def test_outcomes_are_offered_for_a_minute_and_then_told_as_unrecorded() -> None:
    doubtful = OutcomeUnknown("another job's", job_run_id="doubtful")
    bench = Bench(["first", "a", "b", "c"], slots=2, script={"b": [doubtful]})
    bench.ledger.fails = lambda number: number >= 3
    bench.des.latency = lambda: 5.0
    await bench.finish()

    assert bench.session.unrecorded == [("a", "run 1 of a"), ("b", "doubtful")]
    assert bench.ended() == ["first"]
    assert bench.clock.now() - bench.des.began == pytest.approx(70.0, abs=0.1)
    assert bench.session.stops == [Stop(StopReason.LEDGER, "the disk is full")]
    assert 60 <= bench.ledger.calls <= 66, "once a second"
    assert bench.des.keys() == ["first", "a", "b"]


@pytest.mark.parametrize(
    ("is_second_signal", "seconds"),
    [pytest.param(True, 2.0, id="second-signal"), pytest.param(False, 66.0, id="drain-timeout")],
)
async def test_a_second_signal_ends_the_wait_for_a_ledger_that_fails(
    is_second_signal: bool, seconds: float
) -> None:
    bench = Bench(["first", "a", "b"], slots=2, drain_timeout=7.0)
    bench.des.held = True
    await bench.begin()
    await bench.answer("first")
    bench.ledger.fails = lambda _: True
    await bench.answer("a")
    await bench.clock.advance(1.0)

    if is_second_signal:
        bench.session.abandon()

    await bench.finish()

    assert bench.session.unrecorded == [("a", "run 1 of a")]
    assert bench.ledger.given_up == [is_second_signal]
    assert bench.clock.now() - bench.des.began == pytest.approx(seconds, abs=0.1)


async def test_a_ledger_that_is_damaged_is_not_tried_again() -> None:
    bench = Bench(["first", "a"])
    bench.des.latency = lambda: 1.0

    def lose_commits(number: int) -> bool:
        if number > 2:
            raise LedgerWriteFailed("commits are lost") from LedgerDamaged("another timeline")

        return False

    bench.ledger.fails = lose_commits
    await bench.finish()

    assert bench.session.stops == [Stop(StopReason.LEDGER, "commits are lost")]
    assert bench.session.unrecorded == [("a", "run 1 of a")]
    assert bench.clock.now() - bench.des.began < 3.0


async def test_dead_launchers_are_looked_for_every_ten_seconds_also_after_a_failed_look() -> None:
    bench = Bench(keys("r", 4), slots=1)
    bench.des.latency = lambda: 8.0
    bench.ledger.is_shared = True
    await bench.finish()

    assert [at - bench.des.began for at in bench.ledger.looks] == [10.0, 20.0, 30.0]
    assert bench.started() == set(keys("r", 4))


async def test_a_bug_of_the_ledger_loses_no_run_and_is_raised() -> None:
    bench = Bench(["a"])

    def break_down(number: int) -> bool:
        if number > 1:
            raise ValueError("a bug")

        return False

    bench.ledger.fails = break_down

    with pytest.raises(ValueError, match="a bug"):
        await bench.finish()

    assert bench.session.unrecorded == [("a", "run 1 of a")]


async def test_a_ledger_that_is_not_in_its_place_ends_the_sending() -> None:
    bench = Bench(keys("r", 99), slots=2)
    bench.des.latency = lambda: 0.4
    await bench.begin()
    await bench.clock.advance(0.9)
    bench.ledger.in_place = False
    await bench.finish()

    message = "the ledger's file was removed or replaced during the launch"
    assert bench.session.stops == [Stop(StopReason.LEDGER, message)]
    assert bench.started() == set(bench.des.keys())
    assert len(bench.des.keys()) < 9


async def test_a_wait_for_the_lock_is_told() -> None:
    bench = Bench(["a"])
    bench.on_event = lambda event: None
    await bench.begin()
    assert bench.ledger.on_wait is not None
    bench.ledger.on_wait("the ledger has been locked for 5 s")
    await bench.finish()

    [noted] = bench.told(Noted)
    assert noted.is_warning
    assert "5 s" in noted.message


# One run is one row's.


async def test_a_jobrunid_that_another_row_has_makes_the_later_row_unknown() -> None:
    bench = Bench(["first", "a", "b"], slots=1)
    bench.des.run_ids = {"a": "same", "b": "same"}
    await bench.finish()

    assert bench.states("a", "b") == [RowState.STARTED, RowState.UNKNOWN]
    text = "row 'b': DES returned jobRunId same, which another row has already; the row is unknown"
    assert bench.told(Noted) == [Noted(text, is_warning=True)]
    assert bench.des.reuse_stopped == {DEFAULT_TARGET: text}


# Faults of clients, at each point where a row can be lost.


@pytest.mark.parametrize(
    ("verdict", "result"),
    [
        pytest.param("bug", "unsent", id="not-sent"),
        pytest.param(RuntimeError("a bug"), "unknown", id="sent"),
    ],
)
async def test_a_fault_of_the_client_loses_no_row(verdict: str | Exception, result: str) -> None:
    bench = Bench(["first", "a", "b", "c"], slots=2, script={"a": [verdict]})
    bench.des.latency = lambda: 1.0

    with pytest.raises(RuntimeError, match="a bug"):
        await bench.finish()

    assert bench.ledger.results("a") == [result]
    assert bench.ledger.last("a").error == "failed with RuntimeError: a bug"
    assert bench.started() == {sent.key for sent in bench.des.sent} - {"a"}
    assert bench.states("first", "c") == [RowState.STARTED, RowState.PENDING]


async def waits_for_work() -> Bench:
    bench = Bench([])
    bench.session.feed(goes_on=True)
    await bench.begin()
    return bench


async def waits_for_its_turn() -> Bench:
    bench = Bench(["a", "b"], slots=1, rate=0.01)
    await bench.begin()
    return bench


async def waits_for_the_disk() -> Bench:
    bench = Bench(["a"])
    bench.ledger.held = True
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
    ("scene", "results"),
    [
        pytest.param(waits_for_work, None, id="work"),
        pytest.param(waits_for_its_turn, ["started"], id="turn"),
        pytest.param(waits_for_the_disk, ["unsent"], id="disk"),
        pytest.param(waits_for_the_server, ["unknown"], id="server"),
        pytest.param(waits_for_a_token, ["throttled"], id="token"),
        pytest.param(waits_for_a_retry, ["retry"], id="retry"),
        pytest.param(waits_for_the_end_of_a_pause, ["throttled"], id="pause"),
    ],
)
async def test_giving_up_at_each_wait(
    scene: Callable[[], Awaitable[Bench]], results: list[str] | None
) -> None:
    bench = await scene()
    bench.session.abandon()
    bench.session.abandon()
    await settle()
    bench.ledger.release()
    await bench.finish()

    assert results is None or bench.ledger.results("a") == results
    assert bench.clock.now() == bench.des.began


# All of it at once.


def scripts() -> st.SearchStrategy[list[str]]:
    usual = ["started", "500", "504", "429", "unsent", "401", "lost", "400", "late"]
    rare = ["429 for 30", "429 for 5000", "redirect", "no token", "403"]
    return st.lists(st.sampled_from([*usual, *usual, *usual, *rare]), max_size=6)


@st.composite
def batches(draw: st.DrawFn) -> dict[str, list[Any]]:
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
    seed=st.integers(0, 2**16),
    rate=st.sampled_from([None, None, 3.0]),
    limit=st.sampled_from([None, None, None, 1, 5]),
    ends_at=st.sampled_from([None, None, 0.0, 2.5, 9.0]),
    abandons=st.booleans(),
    fails=st.sampled_from([(), (), (1,), (2, 5), range(3, 999)]),
)
@settings(max_examples=150, deadline=None)
def test_whatever_happens(
    script: dict[str, list[Any]],
    slots: int,
    seed: int,
    rate: float | None,
    limit: int | None,
    ends_at: float | None,
    abandons: bool,
    fails: Any,
) -> None:
    async def scenario() -> None:
        rng = random.Random(seed)
        bench = Bench(
            list(script),
            slots=slots,
            script={key: list(verdicts) for key, verdicts in script.items()},
            targets=["default", "acme", "b"],
            rng=rng,
            rate=rate,
            limit=limit,
            give_up_after=200.0,
        )
        bench.ledger.lag = lambda: rng.randrange(4)
        bench.ledger.fails = lambda number: number in fails
        bench.des.latency = lambda: rng.choice([0.0, 0.1, 1.0, 3.0])

        if ends_at is not None:
            await bench.begin()
            await bench.clock.advance(ends_at)
            bench.session.drain(INTERRUPTED)

            if abandons:
                bench.session.abandon()

        await bench.finish()
        check_end(bench, list(script))

    anyio.run(scenario)


def check_end(bench: Bench, rows: list[str]) -> None:
    runs = {key: key_runs[0] for key, key_runs in bench.des.runs.items()}
    recorded = {key: bench.ledger.last(key).job_run_id for key in bench.started()}
    pending = [key for key in rows if bench.state(key) is RowState.PENDING]
    stopped = {stop.target for stop in bench.session.stops}
    ended = [key for key in rows if final(bench.ledger.results(key)[-1:])]

    assert recorded | dict(bench.session.unrecorded) == runs
    assert all(None in stopped or target_of(key) in stopped for key in pending)

    if not bench.session.unrecorded and not bench.ledger.open():
        assert set(ended) <= set(bench.ended())


def target_of(key: str) -> str:
    return key.partition("/")[0] if "/" in key else DEFAULT_TARGET


async def test_a_session_tells_how_it_stands() -> None:
    bench = Bench(["first", "a"], slots=1)
    bench.des.held = True
    await bench.begin()
    during = repr(bench.session)
    bench.session.drain()
    after = repr(bench.session)
    await bench.answer("first")

    with contextlib.suppress(KeyError):
        await bench.finish()

    assert during == "<Session at work: 1 in flight>"
    assert after == "<Session draining: 1 in flight>"
