"""The poller with fakes: no network, no disk, and time that passes when a test says so."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from fakes import FakeAsker, FakeJournal, Verdict, VirtualClock, settle

from deslaunch.errors import LedgerWriteFailed, NotSent, Throttled
from deslaunch.model import Stop, Stopped, StopReason, TargetPaused
from deslaunch.patience import Patience
from deslaunch.poller import Poller, PollerSettings, WatchedRun

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deslaunch.model import Event, RunStatus


@dataclass
class Watch:
    """A poller, all that it stands on, and what came of it."""

    runs: list[WatchedRun]
    settings: PollerSettings
    journal: FakeJournal = field(default_factory=FakeJournal)
    clock: VirtualClock = field(default_factory=VirtualClock)
    askers: dict[str, FakeAsker] = field(default_factory=dict)
    ended: list[RunStatus] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    durable: list[bool] = field(default_factory=list)
    room: asyncio.Event = field(default_factory=asyncio.Event)
    fault: Exception | None = None

    def __post_init__(self) -> None:
        self.room.set()
        self.askers = {run.target: FakeAsker(self.clock) for run in self.runs}
        self.poller = Poller(
            self.runs,
            self.askers,
            self.journal,
            self.settings,
            ended=self._ended,
            emit=self._emit,
            clock=self.clock,
            rng=random.Random(1),
        )
        self.work: asyncio.Task[None] | None = None

    async def _ended(self, status: RunStatus) -> None:
        await self.room.wait()
        self.durable.append("runStatus" in self.journal.kinds(status.key))
        self.ended.append(status)

    def _emit(self, event: Event) -> None:
        if self.fault is not None:
            raise self.fault

        self.events.append(event)

    @property
    def asker(self) -> FakeAsker:
        return self.askers["default"]

    @property
    def keys(self) -> list[str | None]:
        return [status.key for status in self.ended]

    @property
    def reasons(self) -> list[StopReason]:
        return [stop.reason for stop in self.poller.stops]

    @property
    def is_over(self) -> bool:
        assert self.work is not None
        return self.work.done()

    def begin(self) -> None:
        self.work = asyncio.create_task(self.poller.run())

    async def run_for(self, seconds: float) -> None:
        if self.work is None:
            self.begin()

        await self.journal.settle()
        end = self.clock.time + seconds

        while (due := self.clock.next_due()) is not None and due <= end:
            await self.clock.advance(due - self.clock.time)
            await self.journal.settle()

        await self.clock.advance(end - self.clock.time)

    async def done(self) -> None:
        """Return once the poller has ended by itself."""
        await self.run_for(100_000)
        assert self.work is not None
        assert self.work.done()
        await self.work


def run_of(key: str, target: str = "default") -> WatchedRun:
    return WatchedRun(key, target, f"run of {key}")


def watch(*keys: str, **settings: Any) -> Watch:
    return Watch([run_of(key) for key in keys], PollerSettings(**settings))


def script(found: Watch, **verdicts: Sequence[Verdict]) -> Watch:
    for key, said in verdicts.items():
        found.asker.script[f"run of {key}"] = list(said)

    return found


async def test_every_run_is_asked_about_until_it_ends() -> None:
    found = script(watch("a", "b"), a=["running", "running"], b=["failed"])

    await found.done()

    assert [(one.key, one.finished, one.success, one.status) for one in found.ended] == [
        ("b", True, False, "no sales found"),
        ("a", True, True, None),
    ]
    assert len(found.asker.times("run of a")) == 3
    assert len(found.asker.times("run of b")) == 1
    assert (found.poller.stops, found.poller.asked) == ([], 4)


async def test_what_ended_is_on_disk_before_it_is_told() -> None:
    found = watch("a")
    found.journal.held = True
    found.begin()
    await settle()

    assert (found.ended, found.journal.kinds()) == ([], [])

    found.journal.release()
    await found.done()

    assert found.durable == [True]
    (record,) = found.journal.records
    assert (record["key"], record["jobRunId"], record["success"]) == ("a", "run of a", True)
    assert record["optional"] is True


async def test_the_waits_grow() -> None:
    found = watch("a", patience=Patience(10, 30))
    script(found, a=["running"] * 5)

    await found.done()

    times = found.asker.times("run of a")
    waits = [after - before for before, after in pairwise(times)]
    assert [
        ceiling * 0.9 <= wait <= ceiling
        for wait, ceiling in zip(waits, [10, 15, 22.5, 30, 30], strict=True)
    ] == [True] * 5


async def test_no_more_is_asked_at_once_than_there_are_slots() -> None:
    found = watch(*map(str, range(40)), slots=4)
    found.asker.latency = 1.0

    await found.done()

    assert (found.asker.most, len(found.ended)) == (4, 40)
    assert found.clock.time >= 10


async def test_the_first_question_goes_alone() -> None:
    found = watch("a", "b", "c", slots=4)
    found.asker.held = True
    found.begin()
    await settle()

    assert list(found.asker.waiting) == ["run of a"]

    found.asker.held = False
    found.asker.answer("run of a")
    await found.done()
    assert len(found.ended) == 3


async def test_questions_keep_the_rate() -> None:
    found = watch(*"abcde", slots=4, rate=2.0)

    await found.done()

    times = [at for _, at in found.asker.asked]
    assert times == pytest.approx([0, 0.5, 1.0, 1.5, 2.0])


@pytest.mark.parametrize("verdict", ["503", "429", "nonsense", "unsent"])
async def test_no_answer_pauses_the_target(verdict: str) -> None:
    found = script(watch("a", "b", slots=2), b=[verdict])

    await found.run_for(0)

    assert [type(event) for event in found.events] == [TargetPaused]
    assert "pause" in found.journal.kinds()
    await found.done()
    assert sorted(map(str, found.keys)) == ["a", "b"]


async def test_a_pause_holds_every_run_of_its_target_and_no_other() -> None:
    found = Watch([run_of("a"), run_of("b"), run_of("c", "acme")], PollerSettings(slots=1))
    script(found, a=[Throttled("DES answered 429", status=429, retry_after=30.0)])

    await found.run_for(29)

    assert found.keys == ["c"]
    assert found.asker.asked == [("run of a", 0.0)]
    await found.done()
    assert sorted(map(str, found.keys)) == ["a", "b", "c"]


async def test_a_target_does_not_keep_the_slots_from_another() -> None:
    found = Watch(
        [*(run_of(f"a{n}") for n in range(10)), run_of("b", "acme")], PollerSettings(slots=1)
    )

    await found.done()

    assert found.keys.index("b") <= 2


async def test_a_run_that_never_gets_an_answer_does_not_hold_the_others_up() -> None:
    found = script(watch("a", "b", "c", slots=1), b=["500"] * 3)

    await found.done()

    assert found.keys == ["a", "c", "b"]
    assert found.poller.stops == []


async def test_a_target_that_stays_away_is_given_up() -> None:
    found = watch("a", "b", slots=1, give_up_after=100.0)
    script(found, a=["500"] * 1000, b=["500"] * 1000)

    await found.done()

    assert (found.keys, found.reasons) == ([], [StopReason.THROTTLED])
    assert found.clock.time > 0


async def test_a_target_that_was_never_reached_is_given_up_after_three_tries() -> None:
    found = script(watch("a"), a=["unsent"] * 9)

    await found.done()

    assert (len(found.asker.asked), found.reasons) == (3, [StopReason.UNREACHABLE])


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [
        pytest.param("no token", StopReason.CREDENTIALS, id="no-token"),
        pytest.param("redirect", StopReason.CONFIGURATION, id="redirect"),
        pytest.param("bad url", StopReason.CONFIGURATION, id="bad-url"),
    ],
)
async def test_a_target_stops_and_the_others_go_on(verdict: str, reason: StopReason) -> None:
    found = Watch([run_of("a"), run_of("b"), run_of("c", "acme")], PollerSettings(slots=1))
    script(found, a=[verdict] * 9, b=[verdict] * 9)

    await found.done()

    assert (found.keys, found.reasons) == (["c"], [reason])
    assert [event.stop.target for event in found.events if isinstance(event, Stopped)] == [
        "default"
    ]


async def test_a_run_that_is_refused_is_told_and_asked_about_no_more() -> None:
    found = script(watch("a", "b"), b=["404"])

    await found.done()

    refused = next(status for status in found.ended if status.key == "b")
    assert (refused.finished, refused.success, refused.status) == (False, False, "no such run")
    assert found.asker.times("run of b") == [0.0]
    assert found.poller.stops == []
    assert [r["finished"] for r in found.journal.records if r["key"] == "b"] == [False]


async def test_a_target_that_refuses_from_the_start_is_asked_five_times() -> None:
    keys = [str(number) for number in range(30)]
    found = script(watch(*keys, slots=1), **{key: ["404"] for key in keys})

    await found.done()

    assert (len(found.asker.asked), found.reasons) == (5, [StopReason.CONFIGURATION])
    assert found.poller.stops[0].message == (
        "DES refused to tell of its first 5 runs (is it the one that started them?): "
        "DES answered 404"
    )


async def test_refusals_after_a_good_answer_stop_nothing() -> None:
    keys = [str(number) for number in range(30)]
    found = script(watch("good", *keys, slots=1), **{key: ["404"] for key in keys})

    await found.done()

    assert (len(found.asker.asked), found.poller.stops) == (31, [])


async def test_a_slow_listener_holds_back_asking() -> None:
    found = watch(*map(str, range(20)), slots=2)
    found.room.clear()

    await found.run_for(1000)

    assert len(found.asker.asked) == 2
    found.room.set()
    await found.done()
    assert len(found.ended) == 20


async def test_a_drain_gives_up_what_is_in_flight() -> None:
    found = watch(*"abcdef", slots=3)
    found.asker.held = True
    found.begin()
    await settle()
    found.poller.drain(Stop(StopReason.INTERRUPTED, "interrupted", signal=2))

    await found.done()

    assert (found.ended, found.reasons) == ([], [StopReason.INTERRUPTED])
    assert repr(found.poller).startswith("<Poller ending")


async def test_a_drain_before_the_begin_asks_nothing() -> None:
    found = watch("a")
    found.poller.drain(Stop(StopReason.INTERRUPTED, "interrupted"))

    await found.done()

    assert found.asker.asked == []


async def test_a_drain_while_all_wait_ends_at_once() -> None:
    found = script(watch("a"), a=["running"] * 9)
    await found.run_for(1)
    found.poller.drain()

    await found.done()

    assert found.clock.next_due() is None or found.ended == []


async def test_the_watch_ends_when_its_time_is_over() -> None:
    found = script(watch("a", "b", timeout=60.0), a=["running"] * 1000)

    await found.run_for(59)
    assert not found.is_over
    await found.run_for(1)

    assert (found.is_over, found.keys, found.reasons) == (True, ["b"], [StopReason.OUT_OF_TIME])


async def test_a_disk_that_fails_ends_the_watch() -> None:
    found = watch("a", "b", slots=1)
    found.journal.fail_at = 1

    with pytest.raises(LedgerWriteFailed):
        await found.done()

    assert (found.ended, len(found.asker.asked)) == ([], 1)


async def test_a_fault_of_an_asker_ends_the_watch() -> None:
    found = script(watch("a", "b", slots=1), a=["bug"])

    with pytest.raises(RuntimeError, match="a bug"):
        await found.done()

    assert len(found.asker.asked) == 1


async def test_a_fault_of_a_listener_ends_the_watch() -> None:
    found = script(watch("a", "b", slots=1), a=["503"])
    found.fault = ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await found.done()


async def test_a_cancellation_ends_the_watch() -> None:
    found = watch("a", "b")
    found.asker.held = True
    found.begin()
    await settle()
    assert found.work is not None
    found.work.cancel()

    with pytest.raises(asyncio.CancelledError):
        await found.work


async def test_timers_that_ring_early_do_no_harm() -> None:
    found = Watch([run_of("a")], PollerSettings(), clock=VirtualClock(early=0.0005))
    script(found, a=["running", "503", "running"])

    await found.done()

    assert found.keys == ["a"]


async def test_nothing_to_watch_is_over_at_once() -> None:
    found = Watch([], PollerSettings())

    await found.done()

    assert found.poller.stops == []


async def test_a_longer_wait_told_in_flight_lengthens_the_pause() -> None:
    found = watch("a", "b", "c", slots=3)
    found.asker.script["run of b"] = [NotSent("refused")]
    found.asker.script["run of c"] = [Throttled("wait", status=429, retry_after=50.0)]
    await found.run_for(0)

    await found.run_for(49)
    assert found.keys == ["a"]
    await found.done()
    assert sorted(map(str, found.keys)) == ["a", "b", "c"]


async def test_many_runs_are_no_tasks() -> None:
    found = watch(*map(str, range(5000)), slots=4)
    script(found, **{str(number): ["running"] for number in range(5000)})
    before = len(asyncio.all_tasks())
    found.begin()
    await found.run_for(1)

    assert len(asyncio.all_tasks()) - before <= 4 + 2
    await found.done()
    assert len(found.ended) == 5000


async def test_a_target_stops_once_however_many_questions_are_in_flight() -> None:
    found = watch("good", "a", "b", "c", slots=4)
    script(found, a=["no token"], b=["no token"], c=["no token"])
    found.asker.latency = 1.0

    await found.done()

    assert (found.asker.most, found.reasons) == (3, [StopReason.CREDENTIALS])


async def test_a_target_may_take_fewer_questions_at_once() -> None:
    runs = [run_of(f"{target}{n}", target) for n in range(20) for target in ("acme", "bistro")]
    found = Watch(runs, PollerSettings(slots=8, slots_of={"acme": 2, "bistro": 99}))

    for asker in found.askers.values():
        asker.latency = 1.0

    await found.done()

    assert found.askers["acme"].most == 2
    assert 2 < found.askers["bistro"].most <= 8


async def test_an_alarm_that_would_ring_too_late_gives_way() -> None:
    found = watch("a", "b", slots=3, patience=Patience(100, 100))
    script(found, a=["running"] * 3, b=["429", "running"])
    before = len(asyncio.all_tasks())

    await found.run_for(1)

    assert len(asyncio.all_tasks()) - before <= 1 + 3 + 1
    await found.done()
    assert sorted(map(str, found.keys)) == ["a", "b"]
