"""Runs followed to their end, against the simulator, whose own log is the judge."""

from __future__ import annotations

import asyncio
import json
import random
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from fakes import FakeAsker, FakeJournal, VirtualClock, settle
from stage import TOKEN, Place, fault, refused_row, rows, service

import deslaunch
from deslaunch import watching
from deslaunch.client import DesClient
from deslaunch.errors import (
    ConfigurationError,
    CredentialsRefused,
    LedgerError,
    LedgerLocked,
    LedgerWriteFailed,
    Unfinished,
)
from deslaunch.ledger import Ledger, snapshot
from deslaunch.model import RunEnded, StopReason, TargetPaused
from deslaunch.patience import Patience
from deslaunch.poller import REFUSED_AT_FIRST, Poller, PollerSettings, WatchedRun
from deslaunch.results import Results, encode_results, runs_of, summary_of
from deslaunch.session import Interrupt
from deslaunch.simulator import Simulator
from deslaunch.watch_settings import WatchSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deslaunch.ledger import Snapshot
    from deslaunch.model import Event, RunStatus, WatchSummary

SOON: Any = {"interval": 0.01, "max_interval": 0.01, "max_wait": 0.01, "concurrency": 4}


def ends(place: Place) -> dict[str, bool]:
    """Return the keys whose run's end is on disk, and whether it was a success."""
    return {
        record["key"]: record["success"]
        for record in place.records("runStatus")
        if record["finished"]
    }


def results_of(place: Place) -> list[dict[str, Any]]:
    return list(Results(snapshot(place.ledger)))


def encoded(found: Snapshot) -> tuple[list[dict[str, Any]], list[str]]:
    """Return results as the objects of JSONL, and as the lines of CSV."""
    lines = [json.loads(line) for line in encode_results(Results(found), "jsonl")]
    return lines, b"".join(encode_results(Results(found), "csv")).decode().splitlines()


async def statuses_of(place: Place, des: DesClient, **options: Any) -> list[RunStatus]:
    return [status async for status in deslaunch.watch(place.ledger, des, **(SOON | options))]


def counts(summary: WatchSummary) -> dict[str, int]:
    said = summary.as_dict()
    names = ("succeeded", "failed", "untold", "unfinished")
    found = {name: int(str(said[name])) for name in names}
    assert sum(found.values()) == summary.runs
    return {name: count for name, count in found.items() if count}


def queries(of: Simulator) -> int:
    """Return how many questions about runs came."""
    return of.count("queryrunstatus")


async def test_every_run_is_followed_to_its_end(place: Place) -> None:
    place.write(rows(20))

    rare = {"fault": "fail-run", "at": [2], "error": "the store is closed"}
    common = {"fault": "fail-run", "at": [3, 7], "error": "no sales found"}

    async with service(place, {"faults": [rare, common]}) as (simulator, des):
        await place.launch(des)
        summary = await watching.follow(place.ledger, des, **SOON)

    failing = {run.job_run_id for run in simulator.runs if run.failure}
    failed = {key for key, success in ends(place).items() if not success}
    started = place.started()
    assert counts(summary) == {"succeeded": 17, "failed": 3}
    assert {started[key] for key in failed} == failing
    assert set(ends(place)) == set(started)
    assert [(text, runs) for text, runs, _ in summary.failures] == [
        ("no sales found", 2),
        ("the store is closed", 1),
    ]
    assert {key for _, _, key in summary.failures} < failed
    assert summary.exit_code == 3
    assert place.is_free()


async def test_a_run_that_goes_on_is_asked_about_again(place: Place) -> None:
    place.write(rows(5))
    now = 1000.0

    async with (
        Simulator(log=place.log, tokens=[TOKEN], finish_after=60, clock=lambda: now) as simulator,
        DesClient(simulator.base_url, token=TOKEN) as des,
    ):
        await place.launch(des)
        work = asyncio.create_task(watching.follow(place.ledger, des, **SOON))
        await simulator.until(lambda: queries(simulator) >= 15)
        assert ends(place) == {}
        now = 1060.0
        summary = await work

    assert (counts(summary), summary.exit_code) == ({"succeeded": 5}, 0)
    assert place.records("runStatus")[0]["finishedUtc"] == "1970-01-01T00:17:40.000Z"


async def test_a_second_watch_asks_only_about_what_is_left(place: Place) -> None:
    place.write(rows(6))

    async with service(place, fault("status", on="queryrunstatus", status=500, at=[4])) as (
        simulator,
        des,
    ):
        await place.launch(des)
        first = await watching.follow(
            place.ledger, des, **(SOON | {"concurrency": 1, "give_up_after": 0.0001})
        )
        asked = queries(simulator)
        second = await watching.follow(place.ledger, des, **SOON)
        third = await watching.follow(place.ledger, des, **SOON)

    assert (counts(first), first.exit_code) == ({"succeeded": 3, "unfinished": 3}, 5)
    assert [stop.reason for stop in first.stops] == [StopReason.THROTTLED]
    assert (asked, queries(simulator)) == (4, 4 + 3)
    assert counts(second) == counts(third) == {"succeeded": 6}
    assert len(place.records("runStatus")) == 6
    assert len(place.records("watch")) == 2


async def test_5xx_pauses_the_target_and_the_watch_goes_on(place: Place) -> None:
    place.write(rows(8))
    script = fault("status", on="queryrunstatus", status=503, **{"from": 3, "to": 5})
    events: list[Event] = []

    async with service(place, script) as (_, des):
        await place.launch(des)
        summary = await watching.follow(place.ledger, des, on_event=events.append, **SOON)

    assert counts(summary) == {"succeeded": 8}
    assert any(isinstance(event, TargetPaused) for event in events)
    assert sum(isinstance(event, RunEnded) for event in events) == 8
    assert place.records("pause")


class Renewing:
    """A token source that counts, and has one newer token."""

    def __init__(self) -> None:
        self.fetched = 0

    async def fetch(self) -> str:
        self.fetched += 1
        return "old" if self.fetched == 1 else TOKEN


async def test_a_refused_token_is_renewed_once_for_all(place: Place) -> None:
    place.write(rows(12))

    async with service(place) as (simulator, des):
        await place.launch(des)
        source = Renewing()

        async with DesClient(simulator.base_url, token=source) as other:
            summary = await watching.follow(place.ledger, other, **SOON)

    assert (counts(summary), source.fetched) == ({"succeeded": 12}, 2)


async def test_without_a_token_that_is_accepted_the_watch_stops(place: Place) -> None:
    place.write(rows(12))

    async with service(place) as (simulator, des):
        await place.launch(des)

        async with DesClient(simulator.base_url, token="no") as other:
            summary = await watching.follow(place.ledger, other, **SOON)

    assert (counts(summary), summary.exit_code) == ({"unfinished": 12}, 6)


async def test_runs_that_des_does_not_know_are_told_and_asked_about_again(place: Place) -> None:
    place.write(rows(3))

    async with service(place) as (_, des):
        await place.launch(des)
        await settle()

    async with service(place) as (simulator, des):  # one that has forgotten all runs
        summary = await watching.follow(place.ledger, des, **SOON, allow_new_origin=True)
        await watching.follow(place.ledger, des, **SOON, allow_new_origin=True)

    assert (counts(summary), summary.exit_code) == ({"untold": 3}, 4)
    assert queries(simulator) == 6
    (said, *_) = place.records("runStatus")
    assert (said["finished"], said["success"]) == (False, False)
    assert "no run" in said["status"]
    told = await asyncio.to_thread(results_of, place)
    assert [(one["finished"], one["success"]) for one in told] == [(False, None)] * 3
    assert "no run" in told[0]["statusText"]


async def test_rows_without_a_run_count_in_the_exit_code(place: Place) -> None:
    place.write([*rows(2), refused_row(3)])

    async with service(place) as (_, des):
        await place.launch(des)
        summary = await watching.follow(place.ledger, des, **SOON)

    assert (counts(summary), summary.batch.rejected, summary.exit_code) == ({"succeeded": 2}, 1, 3)


async def test_a_batch_that_is_at_work_is_not_watched(place: Place) -> None:
    place.write(rows(2))

    async with service(place) as (_, des):
        await place.launch(des)

        async with await Ledger.open(place.ledger):
            with pytest.raises(LedgerLocked, match="is held by"):
                await watching.follow(place.ledger, des, **SOON)


async def test_a_launcher_is_told_who_watches(place: Place) -> None:
    place.write(rows(3))

    async with service(place, {"finishAfter": 1000}) as (simulator, des):
        await place.launch(des)
        work = asyncio.create_task(watching.follow(place.ledger, des, **SOON))
        await simulator.until(lambda: queries(simulator) >= 3)

        with pytest.raises(LedgerLocked, match=r"process \d+ on .*, at work since"):
            await place.resume(des)

        assert (await asyncio.to_thread(snapshot, place.ledger)).live
        work.cancel()

        with pytest.raises(asyncio.CancelledError):
            await work

    assert place.is_free()


async def test_an_interrupt_ends_it_and_the_next_watch_goes_on(place: Place) -> None:
    place.write(rows(10))
    interrupt = Interrupt()
    seen: list[Event] = []

    def listen(event: Event) -> None:
        seen.append(event)

        if len(seen) == 3:
            interrupt(15)

    async with service(place) as (_, des):
        await place.launch(des)
        summary = await watching.follow(
            place.ledger, des, interrupt=interrupt, on_event=listen, **(SOON | {"concurrency": 1})
        )
        done = await watching.follow(place.ledger, des, **SOON)

    assert (counts(summary), summary.exit_code) == ({"succeeded": 3, "unfinished": 7}, 143)
    assert counts(done) == {"succeeded": 10}
    assert sorted(ends(place)) == sorted(place.started())
    assert len(place.records("runStatus")) == 10


async def test_a_ledger_that_was_never_begun_is_refused(place: Place) -> None:
    async with service(place) as (_, des):
        with pytest.raises(LedgerError, match="no such ledger"):
            await watching.follow(place.ledger, des)


async def test_a_target_without_a_client_is_named(place: Place) -> None:
    place.write(rows(1))

    async with service(place) as (_, des):
        await place.launch({"acme": des}, target="acme")

        with pytest.raises(ConfigurationError, match="the target acme, which is not configured"):
            await watching.follow(place.ledger, {"bistro": des})

        summary = await watching.follow(place.ledger, des, **SOON)

    assert counts(summary) == {"succeeded": 1}


async def test_another_des_than_the_one_that_started_the_runs_is_refused(place: Place) -> None:
    place.write(rows(1))

    async with service(place) as (_, des):
        await place.launch(des)

    async with service(place) as (simulator, des):
        with pytest.raises(ConfigurationError, match="in the last session"):
            await watching.follow(place.ledger, des, **SOON)

    assert queries(simulator) == 0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param({"interval": 0}, "--interval takes seconds", id="interval"),
        pytest.param({"concurrency": 0}, "--concurrency takes a number", id="concurrency"),
        pytest.param({"watch_timeout": -1}, "--watch-timeout takes seconds", id="timeout"),
        pytest.param({"rate": 0}, "--rate takes questions", id="rate"),
    ],
)
async def test_an_option_out_of_its_range_is_refused(
    options: Mapping[str, Any], expected: str, place: Place
) -> None:
    async with service(place) as (_, des):
        with pytest.raises(ConfigurationError, match=expected):
            await watching.follow(place.ledger, des, **options)


# The iterator.


async def test_the_library_yields_each_end(place: Place) -> None:
    place.write(rows(9))
    found: dict[str | None, RunStatus] = {}

    async with service(place, fault("fail-run", 2)) as (_, des):
        await place.launch(des)

        async for status in deslaunch.watch(place.ledger, des, **SOON):
            assert status.key in ends(place)
            found[status.key] = status

    assert {key: status.job_run_id for key, status in found.items()} == place.started()
    assert sum(status.success for status in found.values()) == 8
    assert place.is_free()


async def test_a_slow_consumer_holds_back_asking(place: Place) -> None:
    place.write(rows(40))

    async with service(place) as (simulator, des):
        await place.launch(des)
        statuses = deslaunch.watch(place.ledger, des, **(SOON | {"concurrency": 2}))

        async with aclosing(statuses):  # type: ignore[type-var]
            await anext(statuses)
            await anyio.sleep(0.1)
            assert queries(simulator) <= 4

        assert place.is_free()

    assert len(ends(place)) <= 4


async def test_a_loop_that_is_left_gives_the_ledger_back(place: Place) -> None:
    place.write(rows(10))

    async with service(place) as (_, des):
        await place.launch(des)
        statuses = deslaunch.watch(place.ledger, des, **SOON)

        async with aclosing(statuses):  # type: ignore[type-var]
            async for status in statuses:
                assert status.finished
                break

        assert place.is_free()
        left = await statuses_of(place, des)

    assert 0 < len(left) < 10
    assert len(ends(place)) == len(place.records("runStatus")) == 10


async def test_a_cancelled_consumer_gives_the_ledger_back(place: Place) -> None:
    place.write(rows(3))

    async def consume(des: DesClient) -> None:
        async for _ in deslaunch.watch(place.ledger, des, **SOON):
            pass

    async with service(place, {"finishAfter": 1000}) as (simulator, des):
        await place.launch(des)
        work = asyncio.create_task(consume(des))
        await simulator.until(lambda: queries(simulator) >= 3)
        work.cancel()

        with pytest.raises(asyncio.CancelledError):
            await work

        assert place.is_free()


async def test_a_watch_that_ended_early_says_so_in_the_end(place: Place) -> None:
    place.write(rows(3))

    async with service(place, {"finishAfter": 1000}) as (_, des):
        await place.launch(des)

        with pytest.raises(Unfinished, match="3 runs had not finished") as caught:
            await statuses_of(place, des, watch_timeout=0.1)

    assert caught.value.summary.unfinished == 3
    assert caught.value.hint


async def test_a_stop_that_leaves_no_run_unfinished_is_none(place: Place) -> None:
    place.write(rows(REFUSED_AT_FIRST))

    async with service(place) as (_, des):
        await place.launch(des)

    async with service(place) as (_, des):
        found = await statuses_of(place, des, allow_new_origin=True)

    assert [status.finished for status in found] == [False] * REFUSED_AT_FIRST


async def test_a_disk_that_fails_names_the_command_to_go_on_with() -> None:
    clock, journal = VirtualClock(), FakeJournal(fail_at=1)

    async def ended(_: RunStatus) -> None:
        raise AssertionError("nothing was recorded")

    poller = Poller(
        [WatchedRun("k", "default", "run")],
        {"default": FakeAsker(clock)},
        journal,
        PollerSettings(),
        ended=ended,
        emit=lambda _: None,
        clock=clock,
        rng=random.Random(1),
    )

    with pytest.raises(LedgerWriteFailed, match="the disk is full") as caught:
        await watching._run(poller, Path("the night.jsonl"))

    assert caught.value.hint.endswith("then: deslaunch watch 'the night.jsonl'")


def test_every_option_reaches_the_poller() -> None:
    settings = WatchSettings(
        concurrency=8,
        rate=3.0,
        interval=2.0,
        max_interval=7.0,
        watch_timeout=60.0,
        max_wait=5.0,
        give_up_after=9.0,
    )
    narrow = DesClient("https://acme.example", token="t", concurrency=2)
    wide = DesClient("https://bistro.example", token="t")

    assert watching._poller_settings(settings, {"acme": narrow, "bistro": wide}) == PollerSettings(
        slots=8,
        slots_of={"acme": 2},
        rate=3.0,
        patience=Patience(2.0, 7.0),
        max_wait=5.0,
        give_up_after=9.0,
        timeout=60.0,
    )


async def test_an_error_of_the_watch_reaches_its_consumer(place: Place) -> None:
    async with service(place) as (_, des):
        with pytest.raises(LedgerError, match="no such ledger"):
            await statuses_of(place, des)


# What is told of it afterwards.


async def test_the_results_tell_how_each_run_ended(place: Place) -> None:
    place.write([*rows(2), refused_row(3)])

    async with service(place, fault("fail-run", 2, error="no sales found")) as (_, des):
        await place.launch(des, concurrency=1)
        before = await asyncio.to_thread(results_of, place)
        await watching.follow(place.ledger, des, **SOON)

    found = await asyncio.to_thread(snapshot, place.ledger)
    lines, (head, one, *_) = await asyncio.to_thread(encoded, found)
    names = ("finished", "success", "statusText", "outputFiles")
    run = place.started()[lines[0]["key"]]
    assert [result["finished"] for result in before] == [None, None, None]
    assert [[line[name] for name in names] for line in lines] == [
        [True, True, None, [{"fileName": f"{run}.csv"}]],
        [True, False, "no sales found", []],
        [None, None, None, None],
    ]
    assert lines[0]["finishedUtc"].endswith("Z")
    assert head.endswith(",answeredUtc,finished,success,statusText,finishedUtc,outputFiles")
    assert f',true,true,,{lines[0]["finishedUtc"]},"[{{""fileName""' in one
    assert counts(runs_of(found.replay, summary_of(found))) == {"succeeded": 1, "failed": 1}


async def test_a_resume_after_a_watch_goes_on_as_before(place: Place) -> None:
    place.write(rows(4))

    async with service(place) as (simulator, des):
        await place.launch(des)
        await watching.follow(place.ledger, des, **SOON)
        place.write(rows(6))
        summary = await place.resume(des)
        status = await statuses_of(place, des)

    assert (summary.started, len(simulator.runs), len(status)) == (6, 6, 2)


async def test_credentials_that_fail_are_an_error_of_no_run(place: Place) -> None:
    class Broken:
        async def fetch(self) -> str:
            raise CredentialsRefused("the vault is closed")

    place.write(rows(2))

    async with service(place) as (simulator, des):
        await place.launch(des)

        async with DesClient(simulator.base_url, token=Broken()) as other:
            summary = await watching.follow(place.ledger, other, **SOON)

    assert [stop.message for stop in summary.stops] == ["the vault is closed"]
    assert place.records("runStatus") == []
