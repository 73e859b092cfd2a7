"""A batch that goes on: what is sent again, checked again, corrected, and refused."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import shutil
from io import BytesIO
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from openings import AUTO, TOKEN, Place, counts, once, rows, runs_of, service
from stage import POS_USAGE, fault, invalid_row, rejected_row, row

from deslaunch.des.client import DesClient
from deslaunch.errors import (
    ConfigurationError,
    CredentialsRefused,
    Declined,
    InvalidManifest,
    LedgerForeign,
    LedgerMissing,
    ManifestError,
    ServerError,
)
from deslaunch.events import Event, Noted, Planned, StopReason
from deslaunch.launch import batch as batches
from deslaunch.launch.batch import preview, settings_of
from deslaunch.manifest.files import Manifest
from deslaunch.model import RowState
from deslaunch.settings import Settings
from deslaunch.simulator import CSV_SALES_EXPORT, DEFAULT_JOBS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from deslaunch.events import Plan


@pytest.fixture
def place(tmp_path: Path, batch_place: str) -> Place:
    return Place(tmp_path, batch_place)


# What a session leaves is sent by the next.


@pytest.mark.parametrize(
    ("script", "states"),
    [
        pytest.param(fault("status", status=307), {"pending": 6}, id="redirect"),
        pytest.param(fault("status", 2, status=500), {"started": 5, "failed": 1}, id="5xx"),
        pytest.param(
            {"faults": [{"fault": "status", "status": 429, "retryAfter": 5000, "from": 3}]},
            {"started": 2, "pending": 4},
            id="throttled",
        ),
    ],
)  # fmt: skip
async def test_what_was_left_is_started_once_and_without_the_manifest(
    place: Place, script: dict[str, Any], states: dict[str, int]
) -> None:
    place.write(rows(6))

    async with service(place, script) as (simulator, des):
        first = await place.launch(des, concurrency=1, max_attempts=1, allow_partial=True)
        place.manifest.unlink()
        simulator.use(None)
        second = await place.go_on(des)

    assert counts(first) == states
    assert counts(second) == {"started": 6}
    assert runs_of(simulator) == once(range(1, 7))


async def test_a_finished_batch_sends_nothing_and_says_so(place: Place) -> None:
    place.write(rows(3))

    async with service(place) as (simulator, des):
        await place.launch(des)
        async with place.resume(des) as opened:
            assert opened.plan is not None
            plan = opened.plan
            summary = await opened.run()

    assert (plan.send, plan.resumes, plan.rows) == (0, True, 3)
    assert (summary.started_now, summary.exit_code, simulator.requests) == (0, 0, 3)


async def test_launch_with_resume_begins_and_then_goes_on(place: Place) -> None:
    place.write(rows(6))

    async with service(place) as (simulator, des):
        first = await place.launch(des, resume=True, limit=2, allow_partial=True)
        second = await place.launch(des, resume=True)
        third = await place.launch(des, resume=True)

    assert [s.started_now for s in (first, second, third)] == [2, 4, 0]
    assert runs_of(simulator) == once(range(1, 7))


async def test_another_manifests_ledger_is_foreign(place: Place) -> None:
    place.write(rows(2))

    async with service(place) as (simulator, des):
        await place.launch(des)
        place.write(rows(3))

        with pytest.raises(LedgerForeign) as foreign:
            await place.launch(des, resume=True)

    assert "--corrections" in foreign.value.hint
    assert simulator.requests == 2


@pytest.mark.parametrize("damage", ["cut", "spoiled"])
async def test_a_manifest_that_was_damaged_is_told_and_not_needed(
    place: Place, damage: str
) -> None:
    zipped = place.folder / "night.jsonl.gz"
    place.write(rows(40))
    whole = gzip.compress(place.manifest.read_bytes())
    zipped.write_bytes(whole)
    again = whole[:-9] if damage == "cut" else whole[:40] + b"\xff" * 40 + whole[80:]
    options: Any = {"ledger": place.ledger}

    async with service(place) as (_, des):
        await batches.launch(zipped, des, **options)
        zipped.write_bytes(again)

        with pytest.raises(ManifestError, match=r"night\.jsonl\.gz can't be read to its end"):
            await batches.launch(zipped, des, resume=True, **options)

        stream = Manifest(BytesIO(again), format="jsonl")

        with pytest.raises(LedgerForeign):
            await batches.launch(stream, des, resume=True, **options)

        assert (await place.go_on(des)).counts.started == 40  # the ledger is the batch


async def test_rows_of_a_program_do_not_go_on_with_a_manifest(place: Place) -> None:
    place.write(rows(2))

    async with service(place) as (_, des):
        await place.launch(des)

        with pytest.raises(LedgerForeign, match="other rows than <rows>"):
            await place.launch(des, rows(2), resume=True)


async def test_other_options_for_the_rows_are_refused(place: Place) -> None:
    place.write([{"key": "a", "parameters": {"DBGenFrom": 1}}])

    async with service(place) as (_, des):
        await place.launch(des, job_id=POS_USAGE)

        with pytest.raises(ConfigurationError, match="--job-id"):
            await place.launch(des, job_id=CSV_SALES_EXPORT, resume=True)


async def test_an_unknown_row_is_sent_only_with_consent_or_a_finding(place: Place) -> None:
    place.write([*rows(4), {**AUTO, "key": "auto"}])
    lost = fault("reset-after-start", 2, 3, 5)

    async with service(place, lost) as (simulator, des):
        first = await place.launch(des, concurrency=1)
        plain = await place.go_on(des)

        async with place.resume(des) as opened:
            await opened.resolve("row-2", job_run_id=simulator.runs[1].job_run_id, note="seen")
            await opened.resolve("row-3", not_started=True)

        resolved = await place.go_on(des)
        consented = await place.go_on(des, retry_unknown=True)

    assert counts(first) == counts(plain) == {"started": 2, "unknown": 3}
    assert counts(resolved) == {"started": 4, "unknown": 1}
    assert counts(consented) == {"started": 4, "unknown": 1}  # the auto-value row is left
    assert len(simulator.runs) == 6


async def test_a_rejected_row_is_sent_again_where_that_is_asked_for(place: Place) -> None:
    place.write([row(1), rejected_row(2)])

    async with service(place) as (simulator, des):
        await place.launch(des)
        plain = await place.go_on(des)
        settings = Settings(retry_rejected=True)
        ahead = [s async for s in preview(None, ledger=place.ledger, settings=settings)]
        asked = await place.go_on(des, retry_rejected=True)

    assert [(start.key, start.attempt) for start in ahead] == [("row-2", 2)]
    assert (plain.counts.attempts, asked.counts.attempts, simulator.requests) == (2, 3, 3)


async def test_a_killed_launchers_rows_in_flight_are_unknown(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.write(rows(3))
    copy = place.folder / "copy"
    copy.mkdir()

    async with service(place, fault("hold", 2)) as (simulator, des):
        work = asyncio.create_task(place.launch(des, concurrency=1))
        await simulator.until(lambda: simulator.in_flight == 1 and simulator.requests == 2)

        for path in place.folder.glob("night.ledger.db*"):
            shutil.copy(path, copy)  # what a kill at this moment leaves

        simulator.release()
        await work
        killed = Place(copy)
        summary = await killed.go_on(des, accept_copy=True)

    assert counts(summary) == {"started": 2, "unknown": 1}


# Options and origins.


async def test_the_ledger_keeps_the_options_that_are_kept(place: Place) -> None:
    place.write(rows(4))

    async with service(place) as (_, des):
        await place.launch(des, concurrency=3, max_attempts=7, limit=1, allow_partial=True)

        async with batches.resume_batch(place.ledger, des) as opened:
            assert opened.ledger is not None
            kept = settings_of(opened.ledger)
            await opened.run()

    assert (kept.concurrency, kept.max_attempts, kept.limit) == (3, 7, None)


async def test_another_origin_is_refused_unless_it_is_allowed(place: Place) -> None:
    place.write(rows(4))
    other = Place(place.folder / "other")
    other.folder.mkdir()

    async with service(place) as (_, des), service(other) as (second, moved):
        await place.launch(des, limit=2, allow_partial=True)

        with pytest.raises(ConfigurationError, match="was at") as refused:
            await place.go_on(moved)

        summary = await place.go_on(moved, allow_new_origin=True)

    assert "--base-url" in refused.value.hint
    assert (counts(summary), len(second.runs)) == ({"started": 4}, 2)


async def test_a_target_that_is_not_configured_is_refused(place: Place) -> None:
    place.write([row(1), row(2, target="acme")])

    async with service(place) as (_, des):
        clients = {"default": des, "acme": des}
        await place.launch(clients, limit=1, allow_partial=True)

        with pytest.raises(ConfigurationError, match="acme"):
            await place.go_on({"default": des})


async def test_a_refused_token_stops_a_resume_and_raises(place: Place) -> None:
    place.write(rows(4))

    async with service(place) as (simulator, des):
        await place.launch(des, limit=2, allow_partial=True)
        simulator.revoke(TOKEN)

        with pytest.raises(CredentialsRefused):
            async with place.resume(des) as opened:
                await opened.run()

        summary = await place.go_on(des)

    assert [stop.reason for stop in summary.stops] == [StopReason.CREDENTIALS]
    assert (summary.exit_code, len(simulator.runs)) == (6, 2)


async def test_no_ledger_is_told_as_such(place: Place) -> None:
    async with DesClient("http://127.0.0.1:9", token=TOKEN) as dead:
        with pytest.raises(LedgerMissing):
            await place.go_on(dead)


async def test_a_manifest_that_changed_is_told_and_not_read(place: Place) -> None:
    place.write(rows(3))
    events: list[Event] = []

    async with service(place) as (simulator, des):
        await place.launch(des, limit=1, allow_partial=True)
        place.write(rows(9))
        summary = await place.go_on(des, on_event=events.append)

    notes = [event.message for event in events if isinstance(event, Noted)]
    assert any("--corrections" in note for note in notes)
    assert (counts(summary), len(simulator.runs)) == ({"started": 3}, 3)


# Jobs that changed.


async def test_rows_that_were_never_sent_are_checked_again_where_their_job_changed(
    place: Place,
) -> None:
    place.write(rows(6))
    narrower = json.loads(json.dumps(DEFAULT_JOBS))
    narrower["jobs"][0]["jobRunParameters"].pop(0)
    other = Place(place.folder / "other")
    other.folder.mkdir()
    events: list[Event] = []

    async with service(place) as (_, des), service(other, jobs=narrower) as (second, changed):
        await place.launch(des, limit=2, allow_partial=True)
        summary = await place.go_on(changed, allow_new_origin=True, on_event=events.append)

    assert counts(summary) == {"started": 2, "invalid": 4}
    assert second.runs == []
    assert any("invalid" in event.message for event in events if isinstance(event, Noted))


@pytest.mark.parametrize(
    ("script", "asked", "warnings"),
    [
        pytest.param(None, 2, 0, id="des-knows-better"),
        pytest.param(fault("status", 2, on="queryjobs", status=500), 2, 1, id="des-can-not-say"),
    ],
)
async def test_a_resumed_row_is_not_called_invalid_by_a_cached_job(
    place: Place, script: dict[str, Any] | None, asked: int, warnings: int
) -> None:
    """Another machine's cache, say: it may be older than what the rows were checked with."""
    place.write(rows(4))
    events: list[Event] = []

    async with service(place, script) as (simulator, des):
        await place.launch(des, limit=1, allow_partial=True)
        forget_parameters(place)
        summary = await place.go_on(des, on_event=events.append)

    told = [
        event for event in events if isinstance(event, Noted) and "as they were" in event.message
    ]
    assert (counts(summary), runs_of(simulator)) == ({"started": 4}, once(range(1, 5)))
    assert (simulator.count("queryjobs"), len(told)) == (asked, warnings)


async def test_rows_of_a_target_that_can_not_be_asked_any_more_are_sent_as_they_were_checked(
    place: Place,
) -> None:
    place.write([row(n, target="west" if n % 2 else "default") for n in range(1, 7)])
    other = Place(place.folder / "west")
    other.folder.mkdir()
    events: list[Event] = []

    async with (
        service(place) as (_, des),
        service(other, fault("status", 2, on="queryjobs", status=500)) as (_, west),
    ):
        clients = {"default": des, "west": west}
        await place.launch(clients, limit=2, allow_partial=True)
        shutil.rmtree(place.cache)
        summary = await place.go_on(clients, on_event=events.append)

    told = [event.message for event in events if isinstance(event, Noted)]
    assert counts(summary) == {"started": 6}
    assert [text for text in told if "target west are sent as they were checked" in text]


@pytest.mark.parametrize("order", [(1, 2, 3), (2, 1, 3)], ids=["last", "first"])
async def test_rows_of_a_program_wait_until_their_target_can_be_asked(
    place: Place, order: tuple[int, ...]
) -> None:
    said = [row(number, target="acme" if number == 2 else "default") for number in order]
    other = Place(place.folder / "acme")
    other.folder.mkdir()

    async def one_by_one() -> AsyncIterator[dict[str, Any]]:
        for one in said:
            yield one

    async with (
        service(place) as (_, des),
        service(other, fault("status", 1, on="queryjobs", status=500)) as (_, acme),
    ):
        clients = {"default": des, "acme": acme}
        first = await place.launch(clients, one_by_one(), allow_partial=True)
        second = await place.go_on(clients)

    assert counts(first) == {"started": 2, "pending": 1}
    assert [(stop.target, stop.reason) for stop in first.stops] == [
        ("acme", StopReason.UNREACHABLE)
    ]
    assert counts(second) == {"started": 3}


async def test_an_added_row_of_a_known_job_is_checked_before_it_is_sent(place: Place) -> None:
    said = [row(1), row(2, target="acme"), row(3, target="acme")]
    other = Place(place.folder / "acme")
    other.folder.mkdir()

    async with (
        service(place) as (_, des),
        service(other, fault("status", 2, on="queryjobs", status=500)) as (_, acme),
    ):
        clients = {"default": des, "acme": acme}
        await place.launch(clients, said[:2])
        shutil.rmtree(place.cache)
        second = await place.launch(clients, said[2:], resume=True, allow_partial=True)
        third = await place.go_on(clients)

    assert (counts(second), counts(third)) == ({"started": 2, "pending": 1}, {"started": 3})


async def test_corrections_that_can_not_be_checked_are_not_taken(place: Place) -> None:
    place.write([row(1), rejected_row(2) | {"target": "acme"}])
    other = Place(place.folder / "acme")
    other.folder.mkdir()
    fixes = place.folder / "fixes.jsonl"
    fixes.write_text(
        "".join(f"{json.dumps(row(n, target=t))}\n" for n, t in [(1, "default"), (2, "acme")])
    )

    async with (
        service(place) as (_, des),
        service(other, fault("status", 2, on="queryjobs", status=500)) as (_, acme),
    ):
        clients = {"default": des, "acme": acme}
        await place.launch(clients)
        shutil.rmtree(place.cache)

        with pytest.raises(ServerError, match="target acme"):
            await place.go_on(clients, corrections=fixes)

        left = await place.states()
        summary = await place.go_on(clients, corrections=fixes)

    assert left == {"row-1": "started", "row-2": "rejected"}
    assert counts(summary) == {"started": 2}


async def test_a_target_that_can_not_be_asked_may_come_first_in_a_manifest(place: Place) -> None:
    """A portion of rows that all are that target's does not mean that all targets fail."""
    place.write([row(n, target="acme" if n <= 2_000 else "default") for n in range(1, 2_003)])
    other = Place(place.folder / "acme")
    other.folder.mkdir()
    down = fault("status", 1, 2, on="queryjobs", status=500)

    async with service(place) as (_, des), service(other, down) as (_, acme):
        first = await place.launch({"default": des, "acme": acme}, allow_partial=True)

    assert counts(first) == {"started": 2, "pending": 2_000}


async def test_where_no_target_can_be_asked_the_first_error_is_raised(place: Place) -> None:
    place.write([row(1, target="acme"), row(2)])
    other = Place(place.folder / "acme")
    other.folder.mkdir()
    down = fault("status", 1, on="queryjobs", status=500)

    async with service(place, down) as (_, des), service(other, down) as (_, acme):
        with pytest.raises(ServerError, match="target acme: DES responded 500"):
            await place.launch({"default": des, "acme": acme})

    assert not place.has_ledger()


async def test_rows_that_were_never_checked_wait_until_their_target_can_be_asked(
    place: Place,
) -> None:
    place.write([row(1), invalid_row(2) | {"target": "acme"}, row(3, target="acme")])
    other = Place(place.folder / "acme")
    other.folder.mkdir()
    down = fault("status", 1, 2, 3, on="queryjobs", status=500)

    async with service(place) as (_, des), service(other, down) as (_, acme):
        clients = {"default": des, "acme": acme}
        first = await place.launch(clients, allow_partial=True)
        second = await place.go_on(clients)
        third = await place.go_on(clients)

    assert counts(first) == counts(second) == {"started": 1, "pending": 2}
    assert [(stop.target, stop.reason) for stop in second.stops] == [
        ("acme", StopReason.UNREACHABLE)
    ]
    assert counts(third) == {"started": 2, "invalid": 1}


def forget_parameters(place: Place) -> None:
    """Make the cached jobs take no parameter."""
    [path] = place.cache.glob("*.json")
    stored = json.loads(path.read_text())
    stored["jobs"] = [{**job, "jobRunParameters": []} for job in stored["jobs"]]
    path.write_text(json.dumps(stored))


async def test_a_schema_file_is_not_held_against_des(place: Place) -> None:
    place.write(rows(4))
    jobs = place.folder / "jobs.json"
    jobs.write_text(json.dumps(DEFAULT_JOBS))

    async with service(place) as (simulator, des):
        await place.launch(des, schema=jobs, limit=1, allow_partial=True)
        await place.go_on(des, schema=jobs)

    assert simulator.count("queryjobs") == 0


# Corrections.


async def test_corrected_rows_are_taken_by_key_into_the_same_batch(place: Place) -> None:
    place.write([row(1), rejected_row(2), row(3), invalid_row(4)])
    fix = place.folder / "fix.jsonl"
    fix.write_text("".join(f"{json.dumps(one)}\n" for one in (row(2), row(3), row(4))))
    plans: list[Plan] = []

    def note(event: Event) -> None:
        if isinstance(event, Planned):
            plans.append(event.plan)

    async with service(place) as (simulator, des):
        first = await place.launch(des, skip_invalid=True)
        second = await place.go_on(des, corrections=fix, on_event=note)

    assert counts(first) == {"started": 2, "rejected": 1, "invalid": 1}
    assert counts(second) == {"started": 4}
    assert plans[0].corrections == (2, 0)
    assert runs_of(simulator) == once(range(1, 5))


@pytest.mark.parametrize(
    ("said", "options", "error"),
    [
        pytest.param([row(9, key="row-1")], {}, InvalidManifest, id="a-started-row"),
        pytest.param([row(9)], {}, InvalidManifest, id="a-new-key"),
        pytest.param([invalid_row(2)], {}, InvalidManifest, id="an-invalid-row"),
        pytest.param(
            [{"jobId": POS_USAGE, "parameters": {"DBGenFrom": 9}}],
            {"add_rows": True},
            ManifestError,
            id="a-row-without-a-key",
        ),
    ],
)
async def test_corrections_that_do_not_fit_change_nothing(
    place: Place, said: list[Any], options: dict[str, Any], error: type[Exception]
) -> None:
    place.write([row(1), rejected_row(2)])
    fix = place.folder / "fix.jsonl"
    fix.write_text("".join(f"{json.dumps(one)}\n" for one in [row(2), *said]))

    async with service(place) as (simulator, des):
        await place.launch(des)

        with pytest.raises(error):
            await place.go_on(des, corrections=fix, **options)

    assert (await place.states())["row-2"] == RowState.REJECTED
    assert simulator.requests == 2


async def test_rows_are_added_where_that_is_asked_for(place: Place) -> None:
    place.write(rows(2))
    fix = place.folder / "fix.jsonl"
    fix.write_text(json.dumps(row(3)))

    async with service(place) as (simulator, des):
        await place.launch(des)
        summary = await place.go_on(des, corrections=fix, add_rows=True)

    assert (counts(summary), runs_of(simulator)) == ({"started": 3}, once([1, 2, 3]))


async def test_a_batch_that_has_an_auto_row_of_a_job_gets_no_second_one(place: Place) -> None:
    place.write([row(1), {**AUTO, "key": "feed"}])
    fix = place.folder / "fix.jsonl"
    fix.write_text(json.dumps({**AUTO, "key": "another"}))

    async with service(place) as (simulator, des):
        await place.launch(des, limit=1, allow_partial=True)

        with pytest.raises(InvalidManifest) as refused:
            await place.go_on(des, corrections=fix, add_rows=True)

        fix.write_text(json.dumps({**AUTO, "key": "feed"}))  # itself it may be
        summary = await place.go_on(des, corrections=fix)

    assert "the row feed of the batch also uses an auto value" in refused.value.problems[0].message
    assert (counts(summary), len(simulator.runs)) == ({"started": 2}, 2)


async def test_corrections_that_are_declined_change_nothing(place: Place) -> None:
    place.write([row(1), rejected_row(2)])
    fix = place.folder / "fix.jsonl"
    fix.write_text(json.dumps(row(2)))
    plans: list[Plan] = []

    def decline(plan: Plan) -> bool:
        plans.append(plan)
        return False

    async with service(place) as (simulator, des):
        await place.launch(des)

        with pytest.raises(Declined):
            await place.go_on(des, corrections=fix, confirm=decline)

    # What is asked about is what would be sent, though nothing is changed yet.
    assert [(plan.send, plan.corrections) for plan in plans] == [(1, (1, 0))]
    assert (await place.states())["row-2"] == RowState.REJECTED
    assert simulator.requests == 2


async def test_a_manifest_that_is_a_pipe_is_not_opened_again(place: Place) -> None:
    place.write(rows(4))

    async with service(place) as (simulator, des):
        await place.launch(des, limit=1, allow_partial=True)
        place.manifest.unlink()
        os.mkfifo(place.manifest)

        with anyio.fail_after(10):
            await place.go_on(des)

    assert runs_of(simulator) == once([1, 2, 3, 4])


async def test_a_ledger_that_may_be_lost_with_its_host_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(tmp_path)
    place.write(rows(2))
    monkeypatch.setattr("deslaunch.ledger.sqlite.check_file_system", lambda _: "lost with it")
    plans: list[Plan] = []

    def note(event: Event) -> None:
        if isinstance(event, Planned):
            plans.append(event.plan)

    async with service(place) as (_, des):
        await place.launch(des, limit=1, allow_partial=True, on_event=note)
        await place.go_on(des, on_event=note)

    assert [plan.warnings for plan in plans] == [("lost with it",), ("lost with it",)]
