"""Batches whose rows come from a program, against the simulator, whose own log is the judge."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

import anyio
import pytest
from stage import (
    HELD,
    JOB,
    RUNNERS,
    TOKEN,
    Place,
    counts,
    fault,
    generation,
    invalid_row,
    lenient_jobs,
    once,
    quick,
    refused_row,
    row,
    rows,
    runs_of,
    service,
    store,
)

from deslaunch import batch as batches
from deslaunch.errors import (
    ConfigurationError,
    LedgerExists,
    LedgerForeign,
    LedgerLocked,
    ManifestConflict,
    NotSent,
)
from deslaunch.ledger import peek
from deslaunch.model import AUTO, Row, RowEnded, RowState, StopReason, TypedValue
from deslaunch.simulator import CSV_SALES_EXPORT, DEFAULT_JOBS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from stage import Runner, Said

    from deslaunch.batch import Batch
    from deslaunch.client import DesClient
    from deslaunch.model import Event, Outcome
    from deslaunch.simulator import Simulator
    from deslaunch.terms import Clients


HOLDS_ALL: Final = fault("hold")


class Feed:
    """Rows from a generator that counts how many were pulled, and tells when it was closed."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.pulled = 0
        self.closed = False

    def __iter__(self) -> Iterator[Said]:
        for number in range(1, self.count + 1):
            self.pulled += 1
            yield row(number)

    async def later(self) -> AsyncIterator[Said]:
        try:
            for said in self:
                await asyncio.sleep(0)
                yield said
        finally:
            self.closed = True


def open_batch(
    place: Place, said: Any, des: Clients, **options: Any
) -> AbstractAsyncContextManager[Batch]:
    return batches.open_batch(
        said, des, ledger=place.ledger, cache=place.cache, **quick({}), **options
    )


async def collected(batch: Batch) -> list[Outcome]:
    return [outcome async for outcome in batch]


async def run(place: Place, said: Any, des: Clients, **options: Any) -> tuple[Batch, list[Outcome]]:
    """Run a batch to its end."""
    async with open_batch(place, said, des, **options) as batch:
        outcomes = await collected(batch)

    return batch, outcomes


def counted(batch: Batch) -> dict[str, int]:
    assert batch.summary is not None
    return counts(batch.summary)


def states(outcomes: list[Outcome]) -> dict[str | None, str]:
    return {outcome.key: str(outcome.state) for outcome in outcomes}


# Where rows come from.


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: rows(20), id="list"),
        pytest.param(lambda: iter(Feed(20)), id="generator"),
        pytest.param(lambda: Feed(20).later(), id="async generator"),
        pytest.param(lambda: Feed(20), id="iterable"),
    ],
)
async def test_every_row_is_started_once_and_gives_one_outcome(
    place: Place, make: Callable[[], Any]
) -> None:
    async with service(place) as (simulator, des), open_batch(place, make(), des) as batch:
        assert not batch.summary
        outcomes = await collected(batch)

    assert runs_of(simulator) == once(range(1, 21))
    assert {outcome.key: outcome.job_run_id for outcome in outcomes} == place.started()
    assert len(outcomes) == 20
    assert place.agrees(simulator)
    assert counted(batch) == {"started": 20}
    assert batch.summary is not None
    assert batch.summary.exit_code == 0
    assert place.records("batch")[0]["manifest"] is None
    assert place.records()[-1]["record"] == "end"
    assert place.is_free()


async def test_no_rows(place: Place) -> None:
    async with service(place) as (simulator, des):
        batch, outcomes = await run(place, [], des)

    assert (outcomes, counted(batch), simulator.requests) == ([], {}, 0)


async def test_what_is_no_rows_leaves_no_ledger(place: Place) -> None:
    async with service(place) as (_, des):
        with pytest.raises(TypeError, match="iterable, got int"):
            await run(place, 42, des)

    assert not place.ledger.exists()


async def test_a_resume_without_a_ledger_begins(place: Place) -> None:
    async with service(place) as (simulator, des):
        batch, _ = await run(place, rows(3), des, resume=True)

    assert counted(batch) == {"started": 3}
    assert place.agrees(simulator)


async def test_rows_may_be_row_objects(place: Place) -> None:
    said = [
        Row(0, 0, "a", "default", JOB.upper(), {"DBGenFrom": "1"}),
        Row(0, 0, None, "default", JOB, {"DBGenFrom": TypedValue(2, "2")}),
        Row(0, 0, "c", "default", JOB, {"DBGenFrom": AUTO}),
        Row(0, 0, "d~2", "default", JOB, {"DBGenFrom": "4"}),
        Row(0, 0, "e", "default", JOB, {"DBGenFrom": None, "TradingDate": "2026-01-31T00:00:00Z"}),
    ]

    async with service(place) as (simulator, des):
        batch, outcomes = await run(place, said, des)

    assert counted(batch) == {"started": 4, "invalid": 1}
    assert {outcome.row: outcome.state for outcome in outcomes if outcome.problems} == {
        4: RowState.INVALID
    }
    sent = [run.parameters["DBGenFrom"] for run in simulator.runs]
    assert {"type": 2, "valueStringEncoded": "2"} in sent
    assert Counter(one.get("useAutoValue", False) for one in sent) == {False: 3, True: 1}


async def test_values_reach_des_to_the_digit(place: Place) -> None:
    job = {
        "jobId": CSV_SALES_EXPORT,
        "jobRunParameters": [
            {"name": name, "type": number, "nullable": True}
            for name, number in {"Text": 1, "Count": 2, "Amount": 3, "Day": 4}.items()
        ],
    }
    said = {
        "key": "a",
        "jobId": CSV_SALES_EXPORT,
        "parameters": {
            "Text": "true",
            "Count": 2**62,
            "Amount": Decimal("1.50"),
            "Day": datetime(2026, 1, 31, 12, tzinfo=UTC),
        },
    }

    async with service(place, jobs={"jobs": [job]}) as (simulator, des):
        await run(place, [said], des)

    [started] = simulator.runs
    assert {name: value["valueStringEncoded"] for name, value in started.parameters.items()} == {
        "Text": "true",
        "Count": str(2**62),
        "Amount": "1.50",
        "Day": "2026-01-31T12:00:00Z",
    }


async def test_rows_that_can_not_be_started_give_outcomes(place: Place) -> None:
    said: list[Any] = [
        row(1),
        invalid_row(2),
        row(3, parameters={"DBGenFrom": 3.0}),
        row(1),
        "no row at all",
        {"jobId": JOB, "parameters": {"DBGenFrom": {"auto": True}}},
        {"jobId": JOB, "key": "again", "parameters": {"DBGenFrom": {"auto": True}}},
        row(8, target="nowhere"),
        row(9),
    ]

    async with service(place) as (simulator, des):
        batch, outcomes = await run(place, said, des)

    invalid = {outcome.row: outcome for outcome in outcomes if outcome.state is RowState.INVALID}
    assert sorted(invalid) == [2, 3, 4, 5, 7, 8]
    assert all(outcome.problems and outcome.error for outcome in invalid.values())
    assert "float" in invalid[3].error
    assert "line 1:" in invalid[4].error
    assert "race" in invalid[7].error
    assert {problem.file for outcome in invalid.values() for problem in outcome.problems} == {
        "<rows>"
    }
    assert counted(batch) == {"started": 3, "invalid": 6}
    assert len(simulator.runs) == 3
    assert len(place.records("invalid")) == 6


async def test_rejected_and_unknown_rows_give_outcomes(place: Place) -> None:
    async with service(place, fault("close-after-start", 3)) as (simulator, des):
        batch, outcomes = await run(
            place, [row(1), refused_row(2), row(3), row(4)], {"default": des}
        )

    assert states(outcomes)["r2"] == "rejected"
    assert Counter(states(outcomes).values()) == {"started": 2, "rejected": 1, "unknown": 1}
    assert counted(batch) == {"started": 2, "rejected": 1, "unknown": 1}
    assert batch.summary is not None
    assert batch.summary.exit_code == 4
    assert set(runs_of(simulator)) == {1, 3, 4}


async def test_defaults_and_allowances_hold_for_rows_of_a_program(place: Place) -> None:
    said = {"parameters": {"DBGenFrom": 5}}

    async with service(place) as (simulator, des):
        _, outcomes = await run(
            place, [said, said], des, job_id=JOB, target="acme", allow_duplicates=True
        )

    assert [outcome.target for outcome in outcomes] == ["acme", "acme"]
    assert runs_of(simulator) == Counter({5: 2})


async def test_a_cached_schema_condemns_no_row(place: Place) -> None:
    async with service(place) as (simulator, des):
        await run(place, [row(1)], des)
        other = Place(place.folder / "other")
        other.folder.mkdir()
        _, outcomes = await _with_cache_of(place, other, [row(2), invalid_row(3)], des)

    assert Counter(states(outcomes).values()) == {"started": 1, "invalid": 1}
    assert simulator.count("queryjobs") == 2


async def _with_cache_of(
    place: Place, other: Place, said: list[Said], des: DesClient
) -> tuple[Batch, list[Outcome]]:
    async with batches.open_batch(
        said, des, ledger=other.ledger, cache=place.cache, **quick({})
    ) as batch:
        outcomes = await collected(batch)

    return batch, outcomes


async def test_a_first_400_fetches_the_schema_and_later_rows_are_held_against_it(
    place: Place,
) -> None:
    async with service(place) as (simulator, des):
        await store(place, simulator, lenient_jobs())
        batch, outcomes = await run(place, [row(1), *map(invalid_row, range(2, 101))], des)

    assert simulator.count("queryjobs") == 1
    assert len(outcomes) == 100
    assert counted(batch) == {
        "started": 1,
        "rejected": simulator.requests - 1,
        "invalid": 100 - simulator.requests,
    }
    assert simulator.requests < 50


async def test_a_service_that_can_not_be_asked_ends_the_batch(place: Place) -> None:
    async with service(place) as (simulator, des):
        await simulator.refuse()

        with pytest.raises(NotSent):
            await run(place, rows(3), des)

    assert place.is_free()
    assert place.records("sending") == []


async def test_two_targets(place: Place) -> None:
    other = Place(place.folder / "other")
    other.folder.mkdir()
    said = [row(number, target="a" if number % 2 else "b") for number in range(1, 11)]

    async with service(place) as (one, a), service(other) as (two, b):
        batch, outcomes = await run(place, said, {"a": a, "b": b})

    assert runs_of(one) == once(range(1, 11, 2))
    assert runs_of(two) == once(range(2, 11, 2))
    assert {outcome.key: outcome.job_run_id for outcome in outcomes} == {
        f"r{generation(run.parameters)}": run.job_run_id for run in [*one.runs, *two.runs]
    }
    assert counted(batch) == {"started": 10}


# A consumer that is slow.


@pytest.mark.parametrize("later", [pytest.param(False, id="sync"), pytest.param(True, id="async")])
async def test_a_slow_consumer_holds_back_the_reading_and_not_the_ledger(
    place: Place, later: bool
) -> None:
    feed = Feed(500)
    slots: Final = 4

    async with (
        service(place) as (simulator, des),
        open_batch(place, feed.later() if later else feed, des) as batch,
    ):
        while repr(batch) != f"<Batch {feed.pulled} outcomes waiting>" or feed.pulled < 4 * slots:
            assert feed.pulled <= (4 + 3) * slots + 1
            await asyncio.to_thread(int)

        assert feed.pulled == len(simulator.runs) == len(place.records("started"))
        outcomes = await collected(batch)

    assert len(outcomes) == 500
    assert runs_of(simulator) == once(range(1, 501))


async def test_invalid_rows_are_held_back_as_well(place: Place) -> None:
    pulled = 0

    def feed() -> Iterator[Said]:
        nonlocal pulled

        for number in range(1, 5001):
            pulled = number
            yield invalid_row(number)

    async with service(place) as (_, des):
        async with open_batch(place, feed(), des) as batch:
            await anext(batch)
            assert pulled < 1000

        assert batch.summary is not None
        assert batch.summary.invalid == pulled


# Ends before the end.


async def test_leaving_the_block_drains_and_leaves_the_rest_pending(place: Place) -> None:
    feed = Feed(100)

    async with (
        service(place, HELD) as (simulator, des),
        open_batch(place, feed.later(), des) as batch,
    ):
        first = await anext(batch)
        await simulator.until(lambda: simulator.in_flight == 4)
        simulator.release()

    assert (first.key, first.state) == ("r1", RowState.STARTED)
    assert len(simulator.runs) < 100
    assert feed.closed
    assert place.agrees(simulator)
    assert place.is_free()
    assert batch.summary is not None
    assert batch.summary.started == len(simulator.runs)
    assert [stop.reason for stop in batch.summary.stops] == [StopReason.INTERRUPTED]
    left = await collected(batch)
    assert {outcome.key for outcome in [first, *left]} == place.started().keys()


async def test_rows_that_were_left_are_started_by_the_next_batch(place: Place) -> None:
    async with service(place, HELD) as (simulator, des):
        async with open_batch(place, rows(20), des) as batch:
            await anext(batch)
            simulator.release()

        _, outcomes = await run(place, rows(20), des, resume=True)

    assert states(outcomes) == {f"r{number}": "started" for number in range(1, 21)}
    assert runs_of(simulator) == once(range(1, 21))
    assert {outcome.key: outcome.job_run_id for outcome in outcomes} == place.started()


async def test_an_error_in_the_block_drains_and_is_raised(place: Place) -> None:
    async def use(des: DesClient) -> None:
        async with open_batch(place, rows(20), des) as batch:
            await anext(batch)
            raise ZeroDivisionError

    async with service(place) as (simulator, des):
        with pytest.raises(ZeroDivisionError):
            await use(des)

    assert place.agrees(simulator)
    assert place.is_free()
    assert place.records()[-1]["record"] == "end"


@pytest.mark.parametrize("run_loop", RUNNERS)
def test_a_cancellation_in_the_block_drains(tmp_path: Path, run_loop: Runner) -> None:
    place = Place(tmp_path)

    async def use(des: DesClient) -> None:
        async with open_batch(place, rows(20), des) as batch:
            await collected(batch)

    async def main() -> None:
        async with service(place, HELD) as (simulator, des):
            using = asyncio.create_task(use(des))
            await simulator.until(lambda: simulator.in_flight == 4)
            using.cancel()
            await asyncio.sleep(0)
            simulator.release()

            with pytest.raises(asyncio.CancelledError):
                await using

            assert runs_of(simulator) == once(range(1, 6))
            assert place.agrees(simulator)
            assert place.is_free()

    run_loop(main)


@pytest.mark.parametrize("run_loop", RUNNERS)
def test_a_cancelled_scope_in_the_block_drains(tmp_path: Path, run_loop: Runner) -> None:
    place = Place(tmp_path)

    async def main() -> None:
        async with service(place, HELD) as (simulator, des):
            with anyio.CancelScope() as scope:
                async with open_batch(place, rows(20), des) as batch:
                    await anext(batch)
                    await simulator.until(lambda: simulator.in_flight == 4)
                    simulator.release()
                    scope.cancel()
                    await collected(batch)

            assert scope.cancelled_caught
            assert place.agrees(simulator)
            assert place.is_free()
            assert batch.summary is not None
            assert batch.summary.started == len(simulator.runs)

    run_loop(main)


async def test_a_second_cancellation_gives_up_what_is_in_flight(place: Place) -> None:
    async def use(des: DesClient) -> None:
        async with open_batch(place, rows(20), des) as batch:
            await collected(batch)

    async with service(place, HELD) as (simulator, des):
        using = asyncio.create_task(use(des))
        await simulator.until(lambda: simulator.in_flight == 4)
        using.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        using.cancel()

        with pytest.raises(asyncio.CancelledError):
            await using

    assert place.records()[-1]["unknown"] == 4
    assert place.is_free()


async def test_a_cancellation_while_a_left_block_drains_is_not_swallowed(place: Place) -> None:
    leaving = asyncio.Event()

    async def use(simulator: Simulator, des: DesClient) -> str:
        async with open_batch(place, rows(20), des):
            await simulator.until(lambda: simulator.in_flight == 4)
            leaving.set()

        return "went on as if nothing had been"

    async with service(place, HELD) as (simulator, des):
        using = asyncio.create_task(use(simulator, des))
        await leaving.wait()
        await asyncio.sleep(0)
        using.cancel()

        with pytest.raises(asyncio.CancelledError):
            await using

    assert place.records()[-1]["unknown"] == 4
    assert place.is_free()


# Errors of the caller's.


async def test_a_source_that_raises_ends_the_batch_and_nothing_is_lost(place: Place) -> None:
    def feed() -> Iterator[Said]:
        yield from rows(5)
        raise ZeroDivisionError

    async with service(place) as (simulator, des):
        outcomes: list[Outcome] = []

        async def use() -> None:
            async with open_batch(place, feed(), des) as batch:
                async for outcome in batch:
                    outcomes.append(outcome)  # noqa: PERF401  # what came before the error counts

        with pytest.raises(ZeroDivisionError):
            await use()

    assert {outcome.key: outcome.job_run_id for outcome in outcomes} == place.started()
    assert place.agrees(simulator)
    assert place.records()[-1]["record"] == "end"
    assert place.is_free()


async def test_a_source_that_raises_when_it_is_closed_loses_no_end(place: Place) -> None:
    async def feed() -> AsyncIterator[Said]:
        try:
            for said in rows(50):
                yield said
        finally:
            raise ZeroDivisionError

    async def use(des: DesClient) -> None:
        async with open_batch(place, feed(), des) as batch:
            await anext(batch)

    async with service(place) as (simulator, des):
        with pytest.raises(ZeroDivisionError):
            await use(des)

    assert place.agrees(simulator)
    assert place.records()[-1]["record"] == "end"
    assert place.is_free()


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(rows(9), id="a started row"),
        pytest.param([invalid_row(1)], id="an invalid row"),
    ],
)
async def test_a_listeners_error_ends_the_batch(place: Place, said: list[Said]) -> None:
    def listen(event: Event) -> None:
        raise ZeroDivisionError

    async with service(place) as (simulator, des):
        with pytest.raises(ZeroDivisionError):
            await run(place, said, des, on_event=listen)

    assert place.agrees(simulator) if simulator.runs else place.records("invalid")
    assert place.records()[-1]["record"] == "end"
    assert place.is_free()


async def test_a_listener_hears_what_the_consumer_gets(place: Place) -> None:
    heard: list[Event] = []

    async with service(place) as (_, des):
        _, outcomes = await run(place, [*rows(5), invalid_row(6)], des, on_event=heard.append)

    assert [event.outcome for event in heard if isinstance(event, RowEnded)] == outcomes


# A ledger that is there already.


async def test_an_existing_ledger_is_refused_unless_the_batch_goes_on(place: Place) -> None:
    async with service(place) as (simulator, des):
        await run(place, rows(3), des)

        with pytest.raises(LedgerExists):
            await run(place, rows(3), des)

    assert simulator.requests == 3


async def test_a_resumed_batch_gives_earlier_outcomes_again(place: Place) -> None:
    said = [row(1), refused_row(2), row(3), invalid_row(4), row(1), row(6)]

    async with service(place, fault("close-after-start", 3)) as (simulator, des):
        first, before = await run(place, said[:5], des)
        sent = simulator.requests
        second, after = await run(place, said, des, resume=True)

    assert counted(first) == {"started": 1, "rejected": 1, "unknown": 1, "invalid": 2}
    assert counted(second) == {"started": 2, "rejected": 1, "unknown": 1, "invalid": 2}
    assert len(after) == len(said)
    assert states(after) == {**states(before), "r6": "started"}
    assert simulator.requests == sent + 1
    assert runs_of(simulator) == once([1, 3, 6])


async def test_a_started_row_that_is_invalid_now_stays_started(place: Place) -> None:
    said = {"jobs": [{**DEFAULT_JOBS["jobs"][0], "jobRunParameters": []}]}
    schema = place.folder / "less.json"
    schema.write_text(json.dumps(said))

    async with service(place) as (simulator, des):
        await run(place, rows(2), des)
        batch, outcomes = await run(place, rows(3), des, resume=True, schema=schema)

    assert states(outcomes) == {"r1": "started", "r2": "started", "r3": "invalid"}
    assert counted(batch) == {"started": 2, "invalid": 1}
    assert simulator.requests == 2


async def test_a_started_row_that_says_something_else_is_a_conflict(place: Place) -> None:
    async with service(place) as (simulator, des):
        await run(place, rows(3), des)

        with pytest.raises(ManifestConflict) as refused:
            await run(place, [row(2, parameters={"DBGenFrom": 77})], des, resume=True)

    assert refused.value.changed == ("r2",)
    assert simulator.requests == 3
    assert place.is_free()


async def test_rows_in_another_order_are_matched_by_key(place: Place) -> None:
    async with service(place) as (simulator, des):
        await run(place, rows(3), des)
        _, outcomes = await run(place, [row(5), row(3), row(1)], des, resume=True)

    assert states(outcomes) == {"r5": "started", "r3": "started", "r1": "started"}
    assert runs_of(simulator) == once([1, 2, 3, 5])


async def test_a_manifests_ledger_is_not_gone_on_with_from_a_program(place: Place) -> None:
    place.write(rows(3))

    async with service(place) as (_, des):
        await place.launch(des)

        with pytest.raises(LedgerForeign):
            await run(place, rows(3), des, resume=True)


async def test_a_programs_ledger_is_not_gone_on_with_from_a_manifest(place: Place) -> None:
    place.write(rows(3))

    async with service(place) as (_, des):
        await run(place, rows(3), des)

        with pytest.raises(LedgerForeign):
            await place.launch(des, resume=True)

        with pytest.raises(ConfigurationError, match="from a program"):
            await place.resume(des)


async def test_a_ledger_at_work_is_locked(place: Place) -> None:
    async with service(place, HOLDS_ALL) as (simulator, des), open_batch(place, rows(3), des):
        await simulator.until(lambda: simulator.in_flight == 1)
        found = await asyncio.to_thread(peek, place.ledger)
        assert found is not None
        assert found.live

        with pytest.raises(LedgerLocked):
            await run(place, rows(3), des, resume=True)

        simulator.release()

    assert place.agrees(simulator)


# What can be seen.


async def test_repr_and_secrets(place: Place) -> None:
    async with service(place) as (simulator, des), open_batch(place, rows(3), des) as batch:
        await simulator.until(lambda: len(simulator.runs) == 1)
        seen = repr(batch)
        outcomes = await collected(batch)

    assert "outcomes waiting" in seen
    assert TOKEN not in repr([batch, batch.summary, outcomes])
    assert TOKEN.encode() not in place.ledger.read_bytes()
