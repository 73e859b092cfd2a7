"""The runs of a batch followed to their end: when they are asked about, and what is told."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import pytest
from fakes import FakeAsker, VirtualClock, settle
from hypothesis import given
from hypothesis import strategies as st
from openings import TOKEN, Place, rows, service
from sessions import INTERRUPTED, LIMIT, MostJitter
from stage import fault, rejected_row, row

from deslaunch.des.client import DesClient
from deslaunch.errors import (
    ConfigurationError,
    LedgerLocked,
    LedgerMissing,
    LedgerWriteFailed,
    Unfinished,
)
from deslaunch.events import (
    Counts,
    RunEnded,
    StopReason,
    Summary,
    TargetPaused,
    TargetStopped,
    WatchSummary,
)
from deslaunch.launch.batch import watch_batch
from deslaunch.launch.watch import Watch
from deslaunch.ledger.ledger import open_ledger
from deslaunch.ledger.reading import RunToAsk
from deslaunch.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from deslaunch.events import Event, Stop
    from deslaunch.model import RunStatus

PORTION = 8


class RunsLedger:
    """The runs of a batch, in memory.

    Attributes:
        place: nowhere.
        recorded: jobRunId and what was told, in order.
        fails: recording raises.
    """

    place = "memory"

    def __init__(self, runs: Iterable[str]) -> None:
        self.runs = [
            RunToAsk(
                n, 1, f"key {run}", run.partition("/")[0] if "/" in run else "default", "j", run
            )
            for n, run in enumerate(runs, 1)
        ]
        self.recorded: list[tuple[str, RunStatus | str]] = []
        self.fails = False

    def wait_up_to(self, seconds: float) -> None:
        """It waits for nothing."""

    def give_up(self, *, at_once: bool) -> None:
        """It waits for nothing."""

    async def runs_to_ask(self, after: int) -> list[RunToAsk]:
        return [run for run in self.runs if run.row > after][:PORTION]

    async def record_runs(self, told: Sequence[tuple[int, int, RunStatus | str]]) -> None:
        if self.fails:
            raise LedgerWriteFailed("the disk is full")

        self.recorded += [(self.runs[number - 1].job_run_id, said) for number, _, said in told]

    async def watch_summary(self, *, stops: Sequence[Stop], seconds: float) -> WatchSummary:
        batch = Summary(Counts(), self.place)
        return WatchSummary(0, 0, 0, 0, batch, (), seconds, tuple(stops))


class Bench:
    """A watch among fakes."""

    def __init__(
        self,
        runs: Iterable[str],
        *,
        script: dict[str, list[Any]] | None = None,
        targets: Iterable[str] = ("default",),
        early: float = 0.0,
        **tuning: Any,
    ) -> None:
        self.clock = VirtualClock(early=early)
        self.ledger = RunsLedger(runs)
        self.askers = {name: FakeAsker(self.clock, script=script or {}) for name in targets}
        self.events: list[Event] = []
        self.watch = Watch(
            cast("Any", self.ledger),
            cast("Any", self.askers),
            Settings(**{"concurrency": 4, **tuning}),
            emit=self.events.append,
            clock=self.clock,
            rng=MostJitter(),
        )
        self.work: asyncio.Task[WatchSummary] | None = None

    @property
    def asker(self) -> FakeAsker:
        return self.askers["default"]

    async def begin(self) -> None:
        self.work = asyncio.create_task(self.watch.run(allow_partial=True))
        await settle()

    async def finish(self) -> None:
        """Let time pass until the watch has ended."""
        if self.work is None:
            await self.begin()

        assert self.work is not None
        await settle()
        began = self.clock.now()

        while not self.work.done():
            due = self.clock.next_due()
            assert due is not None, f"a deadlock: {self.watch!r}"
            assert due < began + LIMIT, f"a deadlock: {self.watch!r}"
            await self.clock.advance(due - self.clock.now())

        await self.work

    def told(self) -> dict[str, RunStatus]:
        """Return how runs ended, by jobRunId, and that each was recorded before it was told."""
        found = [event.status for event in self.events if isinstance(event, RunEnded)]
        assert [run for run, _ in self.ledger.recorded] == [one.job_run_id for one in found]
        return {status.job_run_id: status for status in found}

    def stops(self) -> list[tuple[StopReason, str | None]]:
        return [(stop.reason, stop.target) for stop in self.watch.stops]

    def times(self, run: str) -> list[float]:
        return [at - 1_000.0 for at in self.asker.times(run)]


@given(
    asked=st.integers(1, 9), low=st.floats(0.1, 99), high=st.floats(0.1, 999), seed=st.integers()
)
def test_waits_grow_up_to_their_cap(asked: int, low: float, high: float, seed: int) -> None:
    async def watch() -> list[float]:
        script = {"a": ["running"] * asked}
        bench = Bench(["a"], script=script, interval=low, max_interval=high)
        bench.watch.rng = random.Random(seed)
        await bench.finish()
        return bench.times("a")

    times = asyncio.run(watch())
    ceilings = [min(low * 1.5**n, max(low, high)) for n in range(asked)]
    assert len(times) == asked + 1

    for ceiling, (before, after) in zip(ceilings, pairwise(times), strict=True):
        assert 0.9 * ceiling - 0.01 <= after - before <= ceiling + 0.01


async def test_every_run_is_asked_about_until_it_ends() -> None:
    script = {"a": ["running", "running"], "b": ["failed"]}
    bench = Bench(["a", "b", "c"], script=script, interval=10.0)
    await bench.finish()
    told = bench.told()

    assert bench.times("a") == [0.0, 10.0, 25.0]
    assert (told["a"].success, told["b"].success, told["b"].status) == (
        True,
        False,
        "no sales found",
    )
    assert told["c"].key == "key c"
    assert bench.stops() == []


async def test_no_more_is_asked_at_once_than_there_are_slots_and_the_first_goes_alone() -> None:
    bench = Bench([f"r{n}" for n in range(40)], concurrency=3)
    bench.asker.held = True
    await bench.begin()
    alone = len(bench.asker.asked)
    bench.asker.held = False
    bench.asker.answer("r0")
    bench.asker.latency = 1.0
    await bench.finish()

    assert alone == 1
    assert bench.asker.most == 3
    assert len(bench.told()) == 40


async def test_targets_share_the_slots() -> None:
    runs = [f"{target}/{n}" for n in range(20) for target in ("acme", "bistro")]
    bench = Bench(runs, targets=["acme", "bistro"], concurrency=3)

    for asker in bench.askers.values():
        asker.latency = 1.0

    await bench.finish()
    moments = Counter(at for asker in bench.askers.values() for _, at in asker.asked)
    assert len(bench.told()) == 40
    assert max(moments.values()) == 3


async def test_questions_keep_the_rate() -> None:
    bench = Bench([f"r{n}" for n in range(5)], rate=2.0)
    await bench.finish()
    assert [at - 1_000.0 for _, at in bench.asker.asked] == pytest.approx([0.0, 0.5, 1.0, 1.5, 2.0])


@pytest.mark.parametrize("verdict", ["500", "429", "unsent", "nonsense"])
async def test_no_usable_response_pauses_the_target(verdict: str) -> None:
    bench = Bench(["a", "b", "c"], script={"b": [verdict]}, concurrency=1)
    await bench.finish()
    paused = [event.seconds for event in bench.events if isinstance(event, TargetPaused)]

    assert paused == [1.0]
    assert set(bench.told()) == {"a", "b", "c"}
    assert min(bench.times("c")) >= 1.0


async def test_a_pause_holds_every_run_of_its_target_and_no_other() -> None:
    bench = Bench(
        ["acme/1", "acme/2", "a"], targets=["acme", "default"], script={"acme/1": ["429 for 30"]}
    )
    await bench.begin()
    early = set(bench.told())
    await bench.finish()

    assert (early, set(bench.told())) == ({"a"}, {"a", "acme/1", "acme/2"})


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [
        pytest.param("no token", StopReason.CREDENTIALS, id="credentials"),
        pytest.param("redirect", StopReason.CONFIGURATION, id="redirect"),
        pytest.param("429 for 5000", StopReason.THROTTLED, id="throttled"),
    ],
)
async def test_a_target_stops_and_the_others_go_on(verdict: str, reason: StopReason) -> None:
    runs = [f"acme/{n}" for n in range(20)] + [f"r{n}" for n in range(20)]
    bench = Bench(runs, targets=["acme", "default"], script={"acme/0": [verdict]})
    await bench.finish()

    assert bench.stops() == [(reason, "acme")]
    assert set(bench.told()) == {f"r{n}" for n in range(20)}
    assert [e.stop for e in bench.events if isinstance(e, TargetStopped)] == bench.watch.stops


async def test_a_target_that_stays_away_is_given_up() -> None:
    bench = Bench(["a"], script={"a": ["unsent"] * 99})
    await bench.finish()
    assert bench.stops() == [(StopReason.UNREACHABLE, "default")]
    assert len(bench.asker.asked) == 3


async def test_a_run_that_is_refused_is_told_and_asked_about_no_more() -> None:
    bench = Bench(["a", "b"], script={"b": ["404"]})
    await bench.finish()
    refused = bench.told()["b"]

    assert (refused.finished, refused.status) == (False, "DES responded 404")
    assert dict(bench.ledger.recorded)["b"] == "DES responded 404"
    assert bench.stops() == []


async def test_runs_that_are_refused_keep_no_other_from_being_watched() -> None:
    """DES may have forgotten the oldest, which come first in every watch."""
    runs = [f"r{n}" for n in range(20)]
    bench = Bench(runs, script={run: ["404"] for run in runs[:9]}, concurrency=1)
    await bench.finish()

    assert [status.finished for status in bench.told().values()] == [False] * 9 + [True] * 11
    assert (bench.stops(), len(bench.asker.asked)) == ([], 20)


async def test_a_drain_gives_up_what_is_in_flight() -> None:
    bench = Bench(["a", "b"])
    bench.asker.held = True
    await bench.begin()
    bench.watch.drain(INTERRUPTED)
    await bench.finish()

    assert bench.stops() == [(StopReason.INTERRUPTED, None)]
    assert bench.told() == {}


async def test_a_drain_before_the_begin_asks_nothing() -> None:
    bench = Bench(["a"])
    bench.watch.drain(INTERRUPTED)
    await bench.finish()
    assert bench.asker.asked == []


async def test_the_watch_ends_when_its_time_is_over() -> None:
    bench = Bench(["a"], script={"a": ["running"] * 99}, watch_timeout=60.0)
    await bench.finish()

    assert bench.stops() == [(StopReason.OUT_OF_TIME, None)]
    assert bench.clock.now() == 1_060.0


async def test_a_disk_that_fails_ends_the_watch() -> None:
    bench = Bench(["a", "b"])
    bench.ledger.fails = True

    with pytest.raises(LedgerWriteFailed):
        await bench.finish()


@pytest.mark.parametrize("is_listener", [True, False])
async def test_a_fault_ends_the_watch(is_listener: bool) -> None:
    bench = Bench(["a", "b"], script={} if is_listener else {"b": ["bug"]})

    if is_listener:

        def complain(_: Event) -> None:
            raise RuntimeError("a bug")

        bench.watch.emit = complain

    with pytest.raises(RuntimeError, match="a bug"):
        await bench.finish()


async def test_timers_that_ring_early_do_no_harm() -> None:
    bench = Bench(["a", "b"], script={"a": ["running", "429", "running"]}, early=0.0004)
    await bench.finish()
    assert set(bench.told()) == {"a", "b"}


async def test_many_runs_are_no_tasks_and_are_read_in_portions() -> None:
    runs = [f"r{n}" for n in range(500)]
    bench = Bench(runs, script={run: ["running"] for run in runs}, concurrency=4)
    bench.asker.latency = 0.01
    await bench.begin()
    await bench.clock.advance(0.5)
    tasks = len(asyncio.all_tasks())
    await bench.finish()

    assert tasks <= 4 + 3
    assert len(bench.told()) == 500


async def test_a_slow_consumer_holds_back_asking() -> None:
    bench = Bench([f"r{n}" for n in range(50)], concurrency=2)
    ended = aiter(bench.watch)
    first = await anext(ended)
    await settle()
    behind = len(bench.asker.asked)
    rest = [status async for status in ended]

    assert first.job_run_id == "r0"
    assert behind <= 4
    assert len(rest) == 49


# Against the simulator, and the ledger.


@pytest.fixture
def place(tmp_path: Path, batch_place: str) -> Place:
    return Place(tmp_path, batch_place)


def quick(**tuning: Any) -> Settings:
    return Settings(**{"interval": 0.02, "max_interval": 0.05, "max_wait": 0.05, **tuning})


async def watched(place: Place, des: Any, **tuning: Any) -> WatchSummary:
    async with watch_batch(place.ledger, des, settings=quick(**tuning)) as opened:
        return await opened.watch().run(allow_partial=True)


async def test_every_run_is_followed_to_its_end_and_recorded(place: Place) -> None:
    place.write(rows(8))
    script = {"finishAfter": 0.1, **fault("fail-run", 3, error="no sales found")}

    async with service(place, script) as (_, des):
        await place.launch(des)
        summary = await watched(place, des)

    lines = await place.lines()
    assert (summary.succeeded, summary.failed, summary.unfinished) == (7, 1, 0)
    assert (summary.exit_code, summary.runs) == (3, 8)
    assert [text for text, _, _ in summary.failures] == ["no sales found"]
    assert [line.success for line in lines.values()].count(1) == 7
    assert all(line.finished for line in lines.values())


async def test_a_second_watch_asks_only_about_what_is_left(place: Place) -> None:
    place.write(rows(4))

    async with service(place) as (simulator, des):
        await place.launch(des)
        await watched(place, des)
        asked = simulator.count("queryrunstatus")
        again = await watched(place, des)
        same = simulator.count("queryrunstatus")

    assert (asked, same, again.succeeded, again.exit_code) == (4, 4, 4, 0)


async def test_a_batch_yields_each_end_after_its_launch(place: Place) -> None:
    place.write([row(1), rejected_row(2), row(3)])

    async with service(place) as (_, des), place.open(des, interval=0.02) as opened:
        await opened.run()
        ended = [status async for status in opened.watch()]

    assert sorted(str(status.key) for status in ended) == ["row-1", "row-3"]
    assert all(status.finished for status in ended)


async def test_the_rate_of_a_launch_limits_starts_alone(place: Place) -> None:
    place.write(rows(1))

    async with service(place) as (_, des):
        async with place.open(des, rate=50.0) as opened:
            await opened.run()
            after_launch = opened.watch().settings.rate

        async with watch_batch(place.ledger, des, settings=quick(rate=40.0)) as opened:
            alone = opened.watch().settings.rate

    assert (after_launch, alone) == (None, 40.0)


async def test_a_watch_that_ended_early_says_so(place: Place) -> None:
    place.write(rows(3))

    async with service(place, {"finishAfter": 60}) as (simulator, des):
        await place.launch(des)
        settings = quick(watch_timeout=0.2)

        async with watch_batch(place.ledger, des, settings=settings) as opened:
            with pytest.raises(Unfinished, match="3 runs had not finished") as early:
                _ = [status async for status in opened.watch()]

        interrupted: WatchSummary | None = None

        async with watch_batch(place.ledger, des, settings=quick()) as opened:
            watch = opened.watch()
            asked = simulator.count("queryrunstatus")
            work = asyncio.create_task(watch.run(allow_partial=True))
            await simulator.until(lambda: simulator.count("queryrunstatus") > asked)
            opened.drain(15)
            interrupted = await work

    assert early.value.runs.unfinished == 3
    assert (early.value.runs.exit_code, interrupted.exit_code) == (5, 143)


async def test_a_watch_holds_a_file_and_readers_see_it(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.write(rows(2))

    async with service(place) as (_, des):
        await place.launch(des)

        async with await open_ledger(place.ledger) as reader:
            before = await reader.watch_summary()

        async with watch_batch(place.ledger, des) as opened:
            with pytest.raises(LedgerLocked):
                await place.go_on(des)

            await opened.watch().run()

        async with await open_ledger(place.ledger) as reader:
            after = await reader.watch_summary()

    assert (before.unfinished, after.unfinished, after.succeeded) == (2, 0, 2)


async def test_another_des_and_no_ledger_are_refused(place: Place) -> None:
    place.write(rows(2))

    async with service(place) as (_, des), DesClient("http://127.0.0.1:9", token=TOKEN) as other:
        with pytest.raises(LedgerMissing):
            await watched(place, des)

        await place.launch(des)

        with pytest.raises(ConfigurationError, match="was at"):
            await watched(place, other)
