"""What a launch is about to do: told, asked about, cut short, or only shown."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest
from stage import (
    HELD,
    JOB,
    Place,
    counts,
    invalid_row,
    once,
    quick,
    refused_row,
    row,
    rows,
    runs_of,
    service,
)

from deslaunch import launcher, session
from deslaunch.errors import (
    ConfigurationError,
    Declined,
    LedgerExists,
    LedgerForeign,
    ManifestConflict,
)
from deslaunch.model import Plan, Planned, PlannedJob, Pulse, RowState, StopReason

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from deslaunch.model import Event, StartRequest

# The plan, the question, and the limit.


async def test_the_plan_is_told_before_anything_is_sent(place: Place) -> None:
    place.write([*rows(3), invalid_row(4)])
    seen: list[tuple[Plan, int]] = []

    async with service(place) as (simulator, des):

        def on_event(event: Event) -> None:
            if isinstance(event, Planned):
                seen.append((event.plan, len(simulator.runs)))

        await place.launch(des, on_event=on_event, skip_invalid=True, rate=1000.0)

    ((plan, runs),) = seen
    assert runs == 0
    assert plan == Plan(
        manifest=str(place.manifest),
        ledger=str(place.ledger),
        resumes=False,
        rows=4,
        invalid=1,
        ready=3,
        jobs=(PlannedJob("default", JOB, "POS usage", 3),),
        states={},
        slots=4,
        rate=1000.0,
    )
    assert plan.seconds == pytest.approx(0.003)


async def test_a_resume_plans_what_is_left_by_state(place: Place) -> None:
    place.write([*rows(4), refused_row(5)])
    plans: list[Plan] = []

    async with service(place) as (_, des):
        await place.launch(des, limit=2)

        def confirm(plan: Plan) -> bool:
            plans.append(plan)
            return True

        await place.resume(des, confirm=confirm)
        await place.resume(des, confirm=confirm)
        await place.resume(des, confirm=confirm, retry_rejected=True)

    assert [(plan.ready, plan.states) for plan in plans] == [
        (3, {RowState.STARTED: 2, RowState.PENDING: 3}),
        (1, {RowState.STARTED: 4, RowState.REJECTED: 1}),
    ]
    assert plans[0].resumes


async def test_the_plan_of_a_shard_names_it(place: Place) -> None:
    place.write(rows(20))
    plans: list[Plan] = []

    async with service(place) as (_, des):

        def confirm(plan: Plan) -> bool:
            plans.append(plan)
            return True

        await place.launch(des, shard="2/3", limit=1, confirm=confirm)
        await place.launch(des, shard="2/3", resume=True, confirm=confirm)

    assert [(plan.shard, plan.rows) for plan in plans] == [("2/3", 20), ("2/3", 20)]


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_no_leaves_no_ledger_behind(place: Place, is_async: bool) -> None:
    place.write(rows(3))

    async def later(plan: Plan) -> bool:
        await asyncio.sleep(0)
        return plan.send != 3

    async with service(place) as (simulator, des):
        with pytest.raises(Declined, match="nothing was sent"):
            await place.launch(des, confirm=later if is_async else lambda plan: plan.send != 3)

    assert (simulator.runs, place.ledger.exists()) == ([], False)


async def test_a_no_leaves_the_ledger_of_a_resume_as_it_is(place: Place) -> None:
    place.write(rows(3))

    async with service(place) as (simulator, des):
        await place.launch(des, limit=1)
        before = place.ledger.read_bytes()

        with pytest.raises(Declined):
            await place.resume(des, confirm=lambda _: False)

    assert place.ledger.read_bytes() == before
    assert (runs_of(simulator), place.is_free()) == (once([1]), True)


async def test_nobody_is_asked_where_there_is_nothing_to_send(place: Place) -> None:
    place.write(rows(2))

    async with service(place) as (_, des):
        await place.launch(des)
        summary = await place.resume(des, confirm=lambda _: False)

    assert counts(summary) == {"started": 2}


@pytest.mark.parametrize("limit", [1, 3, 9])
async def test_a_limit_starts_the_first_rows_alone(place: Place, limit: int) -> None:
    place.write(rows(10))

    async with service(place) as (simulator, des):
        summary = await place.launch(des, limit=limit)

        assert counts(summary) == {"started": limit, "pending": 10 - limit}
        assert summary.exit_code == 5
        assert [(stop.reason, stop.message) for stop in summary.stops] == [
            (StopReason.LIMIT, f"the limit of {limit} row{'s' if limit > 1 else ''} is reached")
        ]

        summary = await place.resume(des)

    assert (counts(summary), summary.stops) == ({"started": 10}, ())
    assert runs_of(simulator) == once(range(1, 11))


@pytest.mark.parametrize("limit", [10, 11])
async def test_a_limit_that_leaves_nothing_is_no_stop(place: Place, limit: int) -> None:
    place.write(rows(10))

    async with service(place) as (_, des):
        summary = await place.launch(des, limit=limit)

    assert (counts(summary), summary.stops, summary.exit_code) == ({"started": 10}, (), 0)


async def test_a_limit_counts_rows_and_no_attempts(place: Place) -> None:
    place.write(rows(5))
    script = {"faults": [{"fault": "status", "status": 500, "at": [1, 2, 3]}]}

    async with service(place, script) as (simulator, des):
        summary = await place.launch(des, limit=2)

    assert counts(summary) == {"started": 2, "pending": 3}
    assert runs_of(simulator) == once([1, 2])


# How it gets on.


async def test_a_pulse_tells_how_a_launch_gets_on(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "PULSE_EVERY", 0.001)
    place.write(rows(9))
    pulses: list[Pulse] = []
    is_full = asyncio.Event()

    def on_event(event: Event) -> None:
        if isinstance(event, Pulse):
            pulses.append(event)

            if event.in_flight == 4:
                is_full.set()

    async with service(place, HELD) as (simulator, des):
        launching = asyncio.create_task(place.launch(des, on_event=on_event))
        await is_full.wait()
        simulator.release()
        await launching

    assert Pulse(in_flight=4, waiting=4, slots=4) in pulses


async def test_an_error_of_a_listener_of_pulses_ends_the_launch(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "PULSE_EVERY", 0.001)
    place.write(rows(9))

    told = asyncio.Event()

    def on_event(event: Event) -> None:
        if isinstance(event, Pulse):
            told.set()
            raise ZeroDivisionError

    async with service(place, HELD) as (simulator, des):
        launching = asyncio.create_task(place.launch(des, on_event=on_event))
        await told.wait()
        simulator.release()

        with pytest.raises(ZeroDivisionError):
            await launching

    assert place.agrees(simulator)


# What would be sent.


async def listed(starts: AsyncIterator[StartRequest]) -> list[StartRequest]:
    return [start async for start in starts]


async def test_a_preview_gives_the_very_bodies_and_sends_nothing(place: Place) -> None:
    place.write([*rows(3), invalid_row(4)])
    options = quick({"skip_invalid": True})
    schema = place.schema
    before = sorted(place.folder.iterdir())

    seen = await listed(
        launcher.preview(place.manifest, schema=schema, cache=place.cache, **options)
    )

    assert sorted(place.folder.iterdir()) == before

    async with service(place) as (simulator, des):
        await place.launch(des, skip_invalid=True)

    assert [(start.key, start.row, start.line) for start in seen] == [
        ("r1", 1, 1),
        ("r2", 2, 2),
        ("r3", 3, 3),
    ]
    sent = {record["key"]: record["body"] for record in place.records("sending")}
    assert {start.key: json.loads(start.body) for start in seen} == sent
    assert runs_of(simulator) == once([1, 2, 3])


async def test_a_preview_of_a_resume_gives_what_is_left(place: Place) -> None:
    place.write(rows(300))

    async with service(place) as (simulator, des):
        await place.launch(des, limit=10)
        before = place.ledger.read_bytes()
        options = quick({})

        left = await listed(launcher.preview_resume(place.ledger, des, cache=place.cache))
        same = await listed(
            launcher.preview(place.manifest, des, resume=True, cache=place.cache, **options)
        )
        few = await listed(launcher.preview_resume(place.ledger, des, cache=place.cache, limit=5))

    assert [start.row for start in left] == list(range(11, 301))
    assert (same, few) == (left, left[:5])
    assert place.ledger.read_bytes() == before
    assert runs_of(simulator) == once(range(1, 11))


async def test_a_preview_refuses_what_a_launch_refuses(place: Place) -> None:
    place.write(rows(3))

    async with service(place) as (_, des):
        await place.launch(des)

        with pytest.raises(LedgerExists):
            await listed(launcher.preview(place.manifest, des, cache=place.cache))

        place.write([row(1, parameters={"DBGenFrom": 99}), *rows(3)[1:]])

        with pytest.raises(LedgerForeign):
            await listed(launcher.preview(place.manifest, des, resume=True, cache=place.cache))

        with pytest.raises(ManifestConflict):
            await listed(launcher.preview_resume(place.ledger, des, cache=place.cache))

    with pytest.raises(ConfigurationError, match="neither a DES to ask nor a schema file"):
        await listed(launcher.preview_resume(place.ledger))
