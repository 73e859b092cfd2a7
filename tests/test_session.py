"""How a session ends, shares its slots, renews tokens, and tells what happens."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import cycle

import pytest
from fakes import FakeRow, settle
from sessions import INTERRUPTED, Bench, keys

from deslaunch.errors import (
    CredentialsRefused,
    DeslaunchError,
    Misconfigured,
    NotSent,
    Rejected,
    SchemaError,
    ServerError,
)
from deslaunch.events import (
    Draining,
    Event,
    Noted,
    Pulse,
    RetryPlanned,
    RowEnded,
    Stop,
    StopReason,
    TargetPaused,
    TargetStopped,
    TokenRenewed,
)
from deslaunch.launch.loop import Clock
from deslaunch.model import DEFAULT_TARGET, RowState

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


async def test_one_renewal_serves_all_rows_and_each_is_sent_once_more() -> None:
    bench = await expired(["a", "b", "c", "d"])
    await bench.answer("a")
    await bench.answer("b")
    await bench.answer("c")
    meanwhile = bench.des.keys(), bench.des.renewals["default"]
    assert bench.des.renewal is not None
    bench.des.renewal.set()
    await bench.finish()

    assert meanwhile == (["first", "a", "b", "c"], 1)
    assert bench.des.renewals["default"] == 1
    assert bench.told(TokenRenewed) == [TokenRenewed("default")]
    assert ("token", "default") in bench.ledger.notes
    assert Counter(bench.des.keys()) == {"first": 1, "a": 2, "b": 2, "c": 2, "d": 1}
    assert {sent.token for sent in bench.des.sent[4:]} == {2}
    assert bench.ledger.results("a") == ["throttled", "started"]
    assert bench.ledger.attempts[2][0].status == 401  # type: ignore[union-attr]


async def test_a_401_for_an_old_token_costs_no_second_renewal() -> None:
    bench = await expired(["a", "b"])
    assert bench.des.renewal is not None
    await bench.answer("a")
    bench.des.renewal.set()
    await bench.clock.advance(0)
    await bench.answer("b")
    await bench.finish()

    assert bench.des.renewals["default"] == 1
    assert bench.told(TokenRenewed) == [TokenRenewed("default")]
    assert bench.started() == {"first", "a", "b"}


async def test_a_row_that_was_claimed_meanwhile_is_held_during_a_renewal() -> None:
    bench = await expired(["a", "b", "c", "d"])
    assert bench.des.renewal is not None
    bench.des.refuses.clear()
    bench.ledger.held = True
    await bench.answer("b")
    bench.des.refuses.add(1)
    await bench.answer("a")
    bench.ledger.release()
    await bench.clock.advance(0)
    meanwhile = bench.des.keys()
    bench.des.renewal.set()
    await bench.clock.advance(0)
    await bench.answer("c")
    await bench.finish()

    assert meanwhile == ["first", "a", "b", "c"]
    assert bench.ledger.results("d") == ["unsent", "started"]
    assert {sent.token for sent in bench.des.sent if sent.key == "d"} == {2}


async def test_a_new_token_that_is_refused_too_stops_the_target() -> None:
    bench = Bench(["first", "a", "b", "c"], slots=1)
    bench.des.held = True
    await bench.begin()
    await bench.answer("first")
    bench.des.held = False
    bench.des.refuses |= {1, 2, 3}
    await bench.answer("a")
    await bench.finish()

    assert bench.stops() == [(StopReason.CREDENTIALS, "default")]
    assert bench.session.stops[0].message == "DES refused the new token as well"
    assert bench.des.keys() == ["first", "a", "a"]
    assert bench.states("a", "b", "c") == [RowState.PENDING] * 3
    assert bench.ledger.results("a") == ["throttled", "throttled"]


async def test_a_token_that_expires_twice_stops_nothing() -> None:
    bench = Bench(["first", "a", "b"], slots=1, script={"a": ["401", "503", "401"]})
    await bench.finish()

    assert bench.stops() == []
    assert bench.started() == {"first", "a", "b"}
    assert bench.ledger.results("a") == ["throttled", "retry", "throttled", "started"]


async def test_no_newer_token_stops_the_target() -> None:
    bench = Bench(["a", "b"], script={"a": ["401"]})
    bench.des.no_newer.add("default")
    await bench.finish()

    assert bench.stops() == [(StopReason.CREDENTIALS, "default")]
    assert bench.session.stops[0].message == "there is no newer token"
    assert bench.des.keys() == ["a"]
    assert bench.states("a", "b") == [RowState.PENDING] * 2


async def test_no_token_stops_the_target() -> None:
    bench = Bench(["a", "b"], script={"a": ["no token"]})
    await bench.finish()

    assert bench.stops() == [(StopReason.CREDENTIALS, "default")]
    assert bench.session.stops[0].message == "there is no token"
    assert bench.des.keys() == []
    assert bench.ledger.results("a") == ["unsent"]


async def test_a_renewal_keeps_no_slot_from_other_targets() -> None:
    rows = ["acme/1", "a", "b"]
    bench = Bench(rows, slots=1, targets=["acme", "default"], script={"acme/1": ["401"]})
    bench.des.renewal = asyncio.Event()
    await bench.begin()

    assert bench.started() == {"a", "b"}

    bench.des.renewal.set()
    await bench.finish()

    assert bench.started() == set(rows)


async def test_a_fault_of_the_renewal_ends_the_session() -> None:
    bench = Bench(["a", "b"], script={"a": ["401"]})
    bench.des.renewal_fault = RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        await bench.finish()

    assert bench.states("a", "b") == [RowState.PENDING] * 2


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
    bench = Bench(rows, targets=["acme", "default"], script={"acme/1": [verdict]})
    await bench.finish()

    assert bench.stops() == [(reason, "acme")]
    assert bench.started() == set(keys("r", 20))
    assert {sent.key for sent in bench.des.sent if sent.target == "acme"} <= {"acme/1"}


async def test_one_target_pauses_and_the_other_goes_on() -> None:
    rows = ["acme/1", "acme/2", *keys("r", 20)]
    bench = Bench(rows, targets=["acme", "default"], script={"acme/1": ["429 for 30"]})
    await bench.begin()

    assert bench.started() == set(keys("r", 20))

    await bench.finish()

    assert bench.started() == set(rows)


async def test_a_target_that_is_stopped_from_outside_leaves_the_other_alone() -> None:
    rows = ["acme/1", "a", "acme/2", "b"]
    bench = Bench(rows, targets=["acme", "default"])
    bench.des.held = True
    await bench.begin()
    bench.session.stop_unchecked("acme", CredentialsRefused("no token for it"))
    bench.des.held = False
    await bench.answer("acme/1")
    await bench.answer("a")
    await bench.finish()

    assert bench.stops() == [(StopReason.CREDENTIALS, "acme")]
    assert bench.started() == {"acme/1", "a", "b"}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        pytest.param(CredentialsRefused("no token"), StopReason.CREDENTIALS, id="no-token"),
        pytest.param(Misconfigured("bad URL"), StopReason.CONFIGURATION, id="bad-url"),
        pytest.param(Rejected("404", status=404), StopReason.CONFIGURATION, id="rejected"),
        pytest.param(SchemaError("no list of jobs"), StopReason.CONFIGURATION, id="no-jobs"),
        pytest.param(NotSent("refused"), StopReason.UNREACHABLE, id="not-reached"),
        pytest.param(ServerError("500", status=500), StopReason.UNREACHABLE, id="500"),
    ],
)
async def test_a_target_whose_jobs_could_not_be_had_stops_and_says_why(
    error: DeslaunchError, reason: StopReason
) -> None:
    bench = Bench(["acme/1", "a"], targets=["acme", "default"])
    bench.session.stop_unchecked("acme", error)
    await bench.finish()

    assert bench.session.stops == [Stop(reason, str(error), "acme")]
    assert bench.des.keys() == ["a"]


async def test_a_target_may_have_fewer_slots_than_the_others() -> None:
    rows = [*keys("acme/", 3), *keys("r", 3)]
    slots_of = {"acme": 1, "default": 9}
    bench = Bench(rows, slots=4, targets=["acme", "default"], slots_of=slots_of)
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


async def test_targets_share_the_slots() -> None:
    bench = Bench(["acme/1", "a"], slots=1, targets=["acme", "default"])
    bench.des.held = True
    await bench.begin()
    in_flight = bench.des.keys()
    bench.des.held = False
    await bench.answer("acme/1")
    await bench.finish()

    assert in_flight == ["acme/1"]
    assert bench.started() == {"acme/1", "a"}


async def test_targets_take_turns_for_the_slots() -> None:
    rows = [*keys("acme/", 20), *keys("r", 20)]
    bench = Bench(rows, slots=1, targets=["acme", "default"])
    await bench.finish()
    first = [sent.target for sent in bench.des.sent[:10]]

    assert Counter(first) == {"acme": 5, "default": 5}


async def test_when_the_last_target_stops_the_session_ends() -> None:
    script = {"acme/1": ["redirect"], "a": ["no token"]}
    bench = Bench(["acme/1", "a", *keys("r", 99)], targets=["acme", "default"], script=script)
    await bench.finish()

    assert bench.stops() == [
        (StopReason.CONFIGURATION, "acme"),
        (StopReason.CREDENTIALS, "default"),
    ]


async def test_a_target_that_stopped_has_no_retries_to_wait_for() -> None:
    script = {"acme/b": ["503"], "acme/c": ["redirect"]}
    rows = ["acme/a", "acme/b", "acme/c", "r"]
    bench = Bench(rows, slots=1, targets=["acme", "default"], script=script)
    await bench.begin()

    assert bench.work is not None
    assert bench.work.done()
    assert bench.state("acme/b") is RowState.PENDING

    await bench.finish()


# Ends.


async def test_a_drain_awaits_what_is_in_flight_and_sends_nothing_new() -> None:
    bench = Bench(["first", "a", "b", "c"], slots=2)
    bench.des.held = True
    await bench.begin()
    await bench.answer("first")
    bench.session.drain(INTERRUPTED)
    await bench.answer("a")
    await bench.answer("b", "503")
    await bench.finish()

    assert bench.des.keys() == ["first", "a", "b"]
    assert bench.states("a", "b", "c") == ["started", "pending", "pending"]
    assert bench.stops() == [(StopReason.INTERRUPTED, None)]
    assert bench.told(Draining) == [Draining(2, 60.0)]
    assert bench.told(RetryPlanned) == []


@pytest.mark.parametrize("verdict", ["503", "429 for 30", "401"])
async def test_a_drain_waits_for_nothing_but_what_is_in_flight(verdict: str) -> None:
    bench = Bench(["a", "b"], slots=1, script={"a": [verdict]})
    bench.des.renewal = asyncio.Event()
    await bench.begin()
    bench.session.drain(INTERRUPTED)
    await bench.finish()

    assert (bench.des.keys(), bench.clock.now()) == (["a"], bench.des.began)


async def test_a_row_that_is_refused_during_a_drain_fetches_no_new_token() -> None:
    bench = Bench(["first", "a", "b"], slots=2)
    bench.des.held = True
    await bench.begin()
    await bench.answer("first")
    bench.session.drain(INTERRUPTED)
    await bench.answer("a", "401")
    await bench.answer("b")
    await bench.finish()

    assert (bench.ledger.results("a"), bench.des.renewals.total()) == (["throttled"], 0)


async def test_a_drain_hands_back_what_was_not_sent() -> None:
    bench = Bench(["first", "a", "b"], script={"b": ["connecting"]})
    bench.des.held = True
    await bench.begin()
    await bench.answer("first")
    bench.session.drain(INTERRUPTED)
    await settle()
    results = bench.ledger.results("b")
    await bench.answer("a")
    await bench.finish()

    assert (results, bench.states("a", "b")) == (["unsent"], ["started", "pending"])
    assert bench.told(Draining) == [Draining(1, 60.0)]
    assert bench.ledger.last("b").error == "held back before it was sent"


async def test_a_stop_for_want_of_a_token_hands_back_what_was_not_sent() -> None:
    bench = Bench(["first", "a", "b"], script={"a": ["no token"], "b": ["connecting"]})
    await bench.finish()

    assert bench.stops() == [(StopReason.CREDENTIALS, DEFAULT_TARGET)]
    assert bench.states("first", "a", "b") == ["started", "pending", "pending"]
    assert bench.ledger.last("a").error == "there is no token"


async def test_a_start_that_stops_the_launch_is_not_waited_for() -> None:
    bench = Bench(["a", "b"], script={"a": ["lost"]})
    await bench.finish()

    assert bench.stops() == [(StopReason.FIRST_CONTACT, DEFAULT_TARGET)]
    assert bench.told(Draining) == [Draining(0, 60.0)]


async def test_a_drain_before_the_run_sends_nothing() -> None:
    bench = Bench(["a"])
    bench.session.drain(INTERRUPTED)
    await bench.finish()

    assert (bench.des.keys(), bench.ledger.turns) == ([], [])
    assert bench.told(Noted) == []


async def test_a_second_drain_only_notes_its_reason() -> None:
    bench = Bench([])
    bench.session.feed(goes_on=True)
    await bench.begin()
    bench.session.drain()
    bench.session.drain(INTERRUPTED)
    await bench.finish()

    assert len(bench.told(Draining)) == 1
    assert bench.stops() == [(StopReason.INTERRUPTED, None)]


async def test_rows_in_flight_are_given_up_after_the_drain_timeout() -> None:
    bench = Bench(["a"], drain_timeout=7.0)
    bench.des.held = True
    await bench.begin()
    bench.session.drain(INTERRUPTED)
    await bench.clock.advance(6.9)
    waiting = bench.ledger.results("a")
    await bench.finish()

    assert (waiting, bench.ledger.results("a")) == (["open"], ["unknown"])
    assert bench.clock.now() - bench.des.began == 7.0
    assert bench.ledger.last("a").error == "given up before a response came"


@pytest.mark.parametrize(
    ("is_over", "stop", "told"),
    [
        pytest.param(False, INTERRUPTED, True, id="it-waits"),
        pytest.param(True, INTERRUPTED, False, id="the-wait-is-over"),
        pytest.param(False, None, False, id="nobody-interrupts"),
    ],
)
async def test_who_interrupts_a_wait_for_the_ledger_is_told_how_to_end_it(
    is_over: bool, stop: Stop | None, told: bool
) -> None:
    bench = Bench(["a", "b"], slots=1)
    bench.des.held = True
    await bench.begin()
    assert bench.ledger.on_wait is not None
    bench.ledger.held = True
    bench.ledger.on_wait("the ledger has been locked for 5 s")
    await bench.answer("a")

    if is_over:
        bench.ledger.release()
        await settle()

    bench.session.drain(stop)
    bench.ledger.release()
    bench.des.held = False
    await bench.finish()

    text = (
        "outcomes are recorded as soon as the ledger can be written; a second signal ends the wait"
    )
    assert [event.message for event in bench.told(Noted)][1:] == [text] * told


async def test_the_pulse_tells_the_time_that_is_left_of_a_drain() -> None:
    bench = Bench(["a"], drain_timeout=2.5)
    bench.des.held = True
    await bench.begin()
    await bench.clock.advance(1.0)
    bench.session.drain(INTERRUPTED)
    await bench.clock.advance(2.0)
    await bench.answer("a")
    await bench.finish()

    assert bench.told(Pulse) == [Pulse(1, 1, None), Pulse(1, 1, 1.5), Pulse(1, 1, 0.5)]


async def test_a_limit_ends_the_session_and_leaves_the_rest() -> None:
    bench = Bench(keys("r", 9), slots=4, limit=3)
    await bench.finish()

    assert bench.des.keys() == keys("r", 3)
    assert bench.stops() == [(StopReason.LIMIT, None)]
    assert bench.session.stops[0].message == "the limit of 3 rows is reached"


async def test_a_row_that_is_retried_stays_within_the_limit() -> None:
    script = {"r1": ["503"], "r2": ["429", "unsent"], "r3": ["503", "503"]}
    bench = Bench(keys("r", 9), slots=4, limit=3, script=script)
    await bench.finish()

    assert set(bench.des.keys()) == bench.started() == set(keys("r", 3))


async def test_a_row_within_the_limit_is_sent_at_once_with_a_new_token() -> None:
    bench = Bench(["a", "b"], limit=1, script={"a": ["401"]})
    await bench.finish()

    assert bench.times() == pytest.approx([0.0, 0.0], abs=0.01)
    assert bench.des.keys() == ["a", "a"]


async def test_a_limit_that_leaves_nothing_is_no_stop() -> None:
    bench = Bench(keys("r", 3), limit=3)
    await bench.finish()

    assert (bench.stops(), bench.session.started_now) == ([], 3)


async def test_nothing_is_claimed_while_a_consumer_is_behind() -> None:
    bench = Bench(keys("r", 20), slots=2)
    bench.session.is_held_back = lambda: len(bench.ended()) >= 2
    await bench.begin()
    behind = len(bench.des.keys())
    bench.session.is_held_back = lambda: False
    bench.session.wake()
    await bench.finish()

    assert 2 <= behind <= 2 + 2 * 2  # what was in flight by then, and what its turn claimed
    assert bench.started() == set(keys("r", 20))


async def test_rows_may_be_added_while_it_runs() -> None:
    bench = Bench(["a"])
    bench.session.feed(goes_on=True)
    await bench.begin()
    early = bench.work is not None and bench.work.done()
    bench.ledger.rows[2] = FakeRow(2, "b")
    bench.ledger._due[2] = -1.0
    bench.session.feed(goes_on=True, targets=[DEFAULT_TARGET])
    await bench.clock.advance(0)
    added = bench.started()
    bench.session.feed(goes_on=False)
    await bench.finish()

    assert (early, added) == (False, {"a", "b"})


async def handed_over(seconds: float) -> list[int]:
    """Return how many outcomes each turn had of nine responses, so far one after the other."""
    bench = Bench(["first", *keys("r", 8)], slots=9)
    bench.des.held = True
    await bench.begin()
    await bench.answer("first")

    for key in keys("r", 8):
        bench.clock.time += seconds
        bench.des.answer(key)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    await bench.finish()
    return [len(outcomes) for outcomes, _, _ in bench.ledger.turns if outcomes]


async def test_responses_that_come_at_once_share_a_turn() -> None:
    assert await handed_over(0.0) == [1, 8]


async def test_no_slot_waits_for_the_responses_of_others() -> None:
    turns = await handed_over(0.001)

    assert sum(turns) == 9
    assert len(turns) > 2


# Listeners.


class ListenerError(Exception):
    pass


async def test_one_sync_of_a_slow_disk_serves_all_slots() -> None:
    bench = Bench(keys("r", 13), slots=4)
    bench.ledger.sync = 0.1
    times = cycle([0.0, 0.002, 0.004, 0.006])
    bench.des.latency = lambda: next(times)
    await bench.finish()

    taken = [len(starts) for _, _, starts in bench.ledger.turns]
    assert taken == [1, 4, 4, 4, 0], "the first contact alone, then all that are free"


@pytest.mark.parametrize(("late", "turns"), [(0.04, [1, 2]), (0.06, [1, 1, 1])])
async def test_a_turn_waits_for_a_response_half_as_long_as_a_slow_disk_takes(
    late: float, turns: list[int]
) -> None:
    bench = Bench(["first", "a", "b"], slots=2)
    bench.ledger.sync = 0.1
    seconds = iter([0.0, 0.01, 0.01 + late])
    bench.des.latency = lambda: next(seconds)
    await bench.finish()

    assert [len(outcomes) for outcomes, _, _ in bench.ledger.turns if outcomes] == turns


async def test_a_listener_that_raises_ends_the_session_and_loses_no_row() -> None:
    bench = Bench(["first", "a", "b", "c"], slots=2)
    bench.des.held = True

    def complain(event: Event) -> None:
        if isinstance(event, RowEnded) and event.outcome.key != "first":
            raise ListenerError(event.outcome.key)

    bench.on_event = complain
    await bench.begin()
    await bench.answer("first")
    await bench.answer("a")
    await bench.answer("b", "400")

    with pytest.raises(ListenerError, match="a"):
        await bench.finish()

    assert bench.states("first", "a", "b", "c") == ["started", "started", "rejected", "pending"]


@pytest.mark.parametrize(
    ("kind", "script"),
    [
        pytest.param(RetryPlanned, ["503"], id="retry"),
        pytest.param(TargetPaused, ["429"], id="pause"),
        pytest.param(TokenRenewed, ["401"], id="token"),
        pytest.param(TargetStopped, ["redirect"], id="stop"),
    ],
)
async def test_a_listener_may_raise_at_any_event(kind: type, script: list[str]) -> None:
    def complain(event: Event) -> None:
        if isinstance(event, kind):
            raise ListenerError

    bench = Bench(["first", "a", "b"], slots=1, script={"a": [*script]})
    bench.on_event = complain

    with pytest.raises(ListenerError):
        await bench.finish()

    assert bench.states("first", "a", "b") == ["started", "pending", "pending"]


async def test_the_clocks_of_des_are_noted_once_they_are_known() -> None:
    bench = Bench(["a"])
    bench.des.latency = lambda: 3.5
    bench.clients[DEFAULT_TARGET].clock_offset = 12.0
    await bench.begin()
    await bench.clock.advance(1.5)
    known = dict(bench.ledger.clocks)
    bench.clients[DEFAULT_TARGET].clock_offset = 13.0
    await bench.clock.advance(1.0)
    same = dict(bench.ledger.clocks)
    bench.clients[DEFAULT_TARGET].clock_offset = 14.0
    await bench.finish()

    assert (known, same) == ({DEFAULT_TARGET: 12.0}, {DEFAULT_TARGET: 12.0})
    assert bench.ledger.clocks == {DEFAULT_TARGET: 14.0}


async def test_an_event_that_cannot_be_noted_is_told_and_stops_nothing() -> None:
    bench = Bench(["first", "a"], script={"a": ["429"]})
    bench.clients[DEFAULT_TARGET].clock_offset = 12.0
    bench.ledger.refuses_notes = True
    await bench.finish()

    assert len(bench.told(TargetPaused)) == 1
    assert (bench.started(), bench.stops()) == ({"first", "a"}, [])


async def test_the_systems_clock_is_the_loops() -> None:
    clock, rang = Clock(), asyncio.Event()
    before = clock.now()
    clock.call_later(0.0, rang.set)
    await clock.sleep(0.0)
    await rang.wait()

    assert before <= clock.now() <= asyncio.get_running_loop().time()
