"""Batches from a program: opened, launched, iterated, cancelled; what is raised, and when."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from openings import AUTO, HOLDS, RUNNERS, TOKEN, Place, counts, once, rows, runs_of, service
from stage import POS_USAGE, fault, invalid_row, rejected_row, row

import deslaunch
from deslaunch.des.client import DesClient
from deslaunch.des.tokens import EnvToken
from deslaunch.errors import (
    ConfigurationError,
    CredentialsRefused,
    Declined,
    DesError,
    Interrupted,
    InvalidManifest,
    LedgerError,
    LedgerExists,
    LedgerForeign,
    LedgerLocked,
    LedgerWriteFailed,
    ManifestError,
    NotSent,
    Stopped,
)
from deslaunch.events import Draining, Event, Planned, RowEnded, StopReason, TargetStopped
from deslaunch.launch import batch as batches
from deslaunch.launch import launcher, session
from deslaunch.launch.batch import default_ledger, preview
from deslaunch.launch.importing import check
from deslaunch.launch.launcher import resume_command
from deslaunch.launch.schemas import Schemas
from deslaunch.ledger import history, ledger
from deslaunch.ledger.ledger import Ledger, open_ledger
from deslaunch.model import AUTO as AUTO_VALUE
from deslaunch.model import JobRunParameterValue, Outcome, Row, RowState, as_word
from deslaunch.settings import Settings
from deslaunch.simulator import Simulator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

    from deslaunch.events import Plan
    from deslaunch.launch.launcher import Batch


@pytest.fixture
def place(tmp_path: Path, batch_place: str) -> Place:
    return Place(tmp_path, batch_place)


async def collected(opened: Batch) -> list[Outcome]:
    return [outcome async for outcome in opened]


def states(outcomes: list[Outcome]) -> dict[str, str]:
    return {outcome.key: str(outcome.state) for outcome in outcomes}


# The names.


def test_every_name_is_there_and_none_loads_http_before_it_is_used() -> None:
    assert 25 <= len(deslaunch.__all__) <= 36
    assert all(getattr(deslaunch, name) is not None for name in deslaunch.__all__)
    assert set(deslaunch.__all__) <= set(dir(deslaunch))
    assert deslaunch.errors.Stopped is deslaunch.Stopped

    with pytest.raises(AttributeError, match="no attribute 'resurrect'"):
        _ = deslaunch.resurrect


# Launching.


async def test_every_row_is_started_exactly_once_through_many_faults(place: Place) -> None:
    place.write(rows(600))
    script = {
        "seed": 7,
        "faults": [
            {"fault": "status", "status": 503, "share": 0.05},
            {"fault": "status", "status": 500, "share": 0.02},
        ],
    }

    async with service(place, script) as (simulator, des):
        summary = await place.launch(des, concurrency=32, max_wait=0.02, max_attempts=10)

    assert counts(summary) == {"started": 600}
    assert runs_of(simulator) == once(range(1, 601))
    told = {line.key: line.job_run_id for line in (await place.lines()).values()}
    assert sorted(filter(None, told.values())) == sorted(run.job_run_id for run in simulator.runs)
    assert summary.counts.attempts == simulator.requests > 600
    assert summary.counts.possible_duplicates > 0
    assert (summary.exit_code, summary.started_now) == (0, 600)
    assert simulator.peak <= 32


async def test_the_ledger_lies_beside_the_manifest(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.write(rows(3))

    async with service(place) as (_, des):
        summary = await deslaunch.launch(place.manifest, des)

    assert summary.ledger == place.ledger
    assert place.file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("name", "ledger"),
    [
        pytest.param("night.csv", "night.ledger.db", id="csv"),
        pytest.param("a/night.jsonl.gz", "a/night.ledger.db", id="gzipped"),
        pytest.param("/x/a.b.csv.gz", "/x/a.b.ledger.db", id="dots"),
    ],
)
def test_default_ledger(name: str, ledger: str) -> None:
    assert default_ledger(name) == ledger


@pytest.mark.parametrize(
    ("ledger", "options", "command"),
    [
        pytest.param("n.ledger.db", {}, "deslaunch resume n.ledger.db", id="plain"),
        pytest.param("a b.db", {}, "deslaunch resume 'a b.db'", id="quoted"),
        pytest.param("-x.db", {}, "deslaunch resume ./-x.db", id="dash"),
        pytest.param(
            "n.db", {"repeat": ["--config", "/t.toml"]}, "deslaunch resume n.db --config /t.toml",
            id="config",
        ),
    ],
)  # fmt: skip
def test_resume_command(ledger: str, options: dict[str, Any], command: str) -> None:
    assert resume_command(ledger, options) == command


async def test_a_manifest_of_no_rows_makes_no_ledger(place: Place) -> None:
    place.write([])

    async with service(place) as (simulator, des), place.open(des) as opened:
        assert opened.plan is not None
        assert (opened.plan.rows, opened.ledger) == (0, None)
        summary = await opened.run()
        assert [row async for row in opened.results()] == []

    assert (summary.counts.rows, summary.exit_code, simulator.requests) == (0, 0, 0)
    assert not place.has_ledger()


async def test_an_invalid_manifest_is_refused_with_all_its_problems(place: Place) -> None:
    place.write([row(1), invalid_row(2), row(3, jobId="no-guid")])

    async with service(place) as (simulator, des):
        with pytest.raises(InvalidManifest, match="2 of 3 rows") as refused:
            await place.launch(des)

    assert [(p.row, p.column) for p in refused.value.problems] == [(2, "DBGenFrom"), (3, "jobId")]
    assert (refused.value.count, simulator.requests) == (2, 0)
    assert not [path for path in place.folder.glob("*.ledger.db*") if path.suffix != ".lock"]


async def test_skip_invalid_launches_the_others_and_records_the_invalid(place: Place) -> None:
    place.write([row(1), invalid_row(2), row(3), row(3)])

    async with service(place) as (simulator, des):
        summary = await place.launch(des, skip_invalid=True)

    assert counts(summary) == {"started": 2, "invalid": 2}
    assert (summary.exit_code, runs_of(simulator)) == (3, once([1, 3]))


async def test_a_file_that_can_not_be_read_to_its_end_is_refused_whatever_is_skipped(
    place: Place,
) -> None:
    place.manifest.write_text(json.dumps(rows(3)))

    async with service(place) as (simulator, des):
        with pytest.raises(InvalidManifest, match="can't be read"):
            await place.launch(des, skip_invalid=True)

    assert simulator.requests == 0


async def test_a_manifest_that_is_not_there(place: Place) -> None:
    async with service(place) as (_, des):
        with pytest.raises(ManifestError, match=r"night\.jsonl"):
            await place.launch(des)

    assert not place.has_ledger()


async def spoil_cache(des: DesClient) -> None:
    """Cache the jobs of a client as if they had no parameters."""
    cache = Path(os.environ["DESLAUNCH_CACHE_DIR"])
    await Schemas({"default": des}, cache).load(["default"])
    _spoil()


def _spoil() -> None:
    [path] = Path(os.environ["DESLAUNCH_CACHE_DIR"]).glob("*.json")
    stored = json.loads(path.read_text())

    for job in stored["jobs"]:
        job["jobRunParameters"] = []

    path.write_text(json.dumps(stored))


async def test_no_row_is_called_invalid_on_a_cached_schema(place: Place) -> None:
    place.write(rows(2))

    async with service(place) as (simulator, des):
        await spoil_cache(des)
        summary = await batches.launch(place.manifest, des)

    assert counts(summary) == {"started": 2}
    assert simulator.count("queryjobs") == 2


async def test_a_cached_schema_that_can_not_be_confirmed_condemns_no_row_either(
    place: Place,
) -> None:
    place.write(rows(2))
    broken = fault("status", 2, 3, 4, 5, on="queryjobs", status=500)

    async with service(place, broken) as (simulator, des):
        await spoil_cache(des)
        report = await check(place.manifest, des)

        with pytest.raises(DesError):
            await batches.launch(place.manifest, des)

    assert (report.exit_code, report.count, simulator.requests) == (5, 2, 0)
    assert not place.has_ledger()


async def test_a_cached_schema_saves_the_query_and_a_schema_file_all_of_them(place: Place) -> None:
    place.write(rows(1))
    jobs = place.folder / "jobs.json"
    jobs.write_text(json.dumps(deslaunch.simulator.DEFAULT_JOBS))

    async with service(place) as (simulator, des):
        await check(place.manifest, des)
        await place.launch(des)
        await check(place.manifest, des, schema=jobs)
        once_asked = simulator.count("queryjobs")

    assert once_asked == 1


async def test_auto_rows_of_one_job_are_refused_unless_that_is_allowed(place: Place) -> None:
    place.write([AUTO, {**AUTO, "key": "other"}])

    async with service(place) as (simulator, des):
        with pytest.raises(InvalidManifest):
            await place.launch(des)

        summary = await place.launch(des, allow_repeated_auto=True)

    assert (counts(summary), len(simulator.runs)) == ({"started": 2}, 2)


@pytest.mark.parametrize("joins", [False, True])
async def test_a_second_launch_sends_nothing_and_names_the_resume_command(
    place: Place, joins: bool
) -> None:
    place.write(rows(2))

    async with service(place) as (simulator, des):
        await place.launch(des)

        with anyio.fail_after(10), pytest.raises(LedgerExists) as refused:
            await place.launch(des, join=joins)

    assert f"deslaunch resume {as_word(place.ledger)}" in refused.value.hint
    assert "resume=True" in refused.value.hint
    assert simulator.requests == 2


async def test_a_ledger_at_work_is_locked(place: Place) -> None:
    place.write(rows(2))

    async with service(place) as (_, des), place.open(des):
        with pytest.raises(LedgerLocked):
            await place.go_on(des)


async def test_a_plan_is_told_and_asked_about_before_anything_is_made(place: Place) -> None:
    place.write(rows(5))
    asked: list[Plan] = []

    async def decline(plan: Plan) -> bool:
        asked.append(plan)
        return False

    async with service(place) as (simulator, des):
        events: list[Event] = []

        with pytest.raises(Declined):
            await place.launch(des, confirm=decline, on_event=events.append)

    [plan] = asked
    assert events == [Planned(plan)]
    assert (plan.rows, plan.ready, plan.resumes) == (5, 5, False)
    assert [(job.name, job.rows) for job in plan.jobs] == [("POS usage", 5)]
    assert (place.has_ledger(), simulator.requests) == (False, 0)


async def test_check_reports_and_preview_gives_the_very_bodies(place: Place) -> None:
    place.write(rows(5))

    async with service(place) as (simulator, des):
        report = await check(place.manifest, des)
        settings = Settings(limit=2)
        starts = [s async for s in preview(place.manifest, des, settings=settings)]
        await place.launch(des)
        left = [start async for start in preview(None, ledger=place.ledger)]
        sent = [run.body for run in simulator.runs]

    assert (report.rows, report.valid, report.exit_code) == (5, 5, 0)
    assert [(start.row, start.key) for start in starts] == [(1, "row-1"), (2, "row-2")]
    assert starts[0].body in sent
    assert left == []


async def test_the_check_of_an_invalid_manifest(place: Place) -> None:
    place.write([row(1), invalid_row(2), invalid_row(3)])

    async with service(place) as (simulator, des):
        report = await check(place.manifest, des)

    assert (report.rows, report.valid, report.invalid, report.exit_code) == (3, 1, 2, 2)
    assert [group.rows for group in report.groups] == [2]
    assert report.as_dict()["invalid"] == 2
    assert simulator.requests == 0

    with pytest.raises(ConfigurationError, match="no schema file"):
        await check(place.manifest)


# What a launch that did not finish raises.


async def test_a_stop_raises_with_the_summary_and_the_way_on(place: Place) -> None:
    place.write(rows(5))

    async with service(place, fault("status", status=307)) as (_, des):
        with pytest.raises(Stopped) as stopped:
            await place.launch(des)

    assert stopped.value.summary is not None
    assert counts(stopped.value.summary) == {"pending": 5}
    assert [stop.reason for stop in stopped.value.stops] == [StopReason.CONFIGURATION]
    assert f"deslaunch resume {as_word(place.ledger)}" in stopped.value.hint


@pytest.mark.parametrize("is_warm", [pytest.param(False, id="cold"), pytest.param(True, id="warm")])
async def test_a_refused_token_raises_whatever_the_cache_holds(place: Place, is_warm: bool) -> None:
    place.write(rows(3))

    async with service(place) as (simulator, des):
        if is_warm:
            await check(place.manifest, des)

        simulator.revoke(TOKEN)

        with pytest.raises(CredentialsRefused):
            await place.launch(des)

    assert simulator.runs == []


async def test_a_launch_after_a_refused_token_asks_for_the_new_one(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DES_TOKEN", TOKEN)
    place.write(rows(3))

    async with (
        Simulator(log=place.folder / "log.jsonl", tokens=[TOKEN, "new"]) as simulator,
        DesClient(simulator.base_url, token=EnvToken()) as des,
    ):
        await check(place.manifest, des)
        simulator.revoke(TOKEN)

        with pytest.raises(CredentialsRefused):
            await place.launch(des)

        refused = simulator.count("startjob")
        monkeypatch.setenv("DES_TOKEN", "new")
        summary = await place.launch(des, resume=True)

    assert counts(summary) == {"started": 3}
    assert (refused, simulator.count("startjob")) == (1, 4)


async def test_allow_partial_returns_the_summary(place: Place) -> None:
    place.write(rows(5))

    async with service(place) as (_, des):
        summary = await place.launch(des, limit=2, allow_partial=True)

    assert counts(summary) == {"started": 2, "pending": 3}
    assert (summary.exit_code, summary.stops[0].reason) == (5, StopReason.LIMIT)


async def test_rows_that_ended_badly_raise_nothing(place: Place) -> None:
    place.write([row(1), rejected_row(2), row(3)])

    async with service(place, fault("reset-after-start", 3)) as (_, des):
        summary = await place.launch(des, concurrency=1)  # the third is the third row's

    assert counts(summary) == {"started": 1, "rejected": 1, "unknown": 1}
    assert summary.exit_code == 4


class FailingLedger:
    """Makes a ledger's turns fail from the n-th on, as a full disk would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, first: int) -> None:
        turn = Ledger.exchange
        self.turns = 0

        async def exchange(ledger: Ledger, *turned: Any) -> Any:
            self.turns += 1

            if self.turns >= first:
                raise LedgerWriteFailed("the disk is full")

            return await turn(ledger, *turned)

        monkeypatch.setattr(Ledger, "exchange", exchange)


@pytest.mark.parametrize("has_home", [True, False], ids=["home", "no-home"])
async def test_runs_that_can_not_be_recorded_are_named_and_written_beside(
    place: Place, monkeypatch: pytest.MonkeyPatch, *, has_home: bool
) -> None:
    monkeypatch.setattr(session, "RECORD_FOR", 0.5)
    folder = Path(os.environ["DESLAUNCH_STATE_DIR"])

    if not has_home:  # an older platformdirs takes "~" for a folder then
        folder = place.folder / "temporary"
        monkeypatch.delenv("DESLAUNCH_STATE_DIR")
        monkeypatch.setattr(tempfile, "tempdir", str(folder))

        for module in (launcher, history):
            monkeypatch.setattr(module, "user_state_path", lambda name: Path(f"~/state/{name}"))

        monkeypatch.chdir(place.folder)

    place.write(rows(5))

    async with service(place) as (simulator, des):
        FailingLedger(monkeypatch, 2)

        with pytest.raises(LedgerWriteFailed) as failed:
            await place.launch(des)

    [(key, run)] = failed.value.unrecorded
    [path] = folder.glob("unrecorded*.csv")
    assert (key, run) == ("row-1", simulator.runs[0].job_run_id)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text().splitlines()[1].startswith(f"row-1,started,{run}")
    assert failed.value.summary is not None
    assert failed.value.summary.exit_code == 7


# Rows of a program.


class Feed:
    """Rows from a generator that counts how many were pulled, and tells when it was closed."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.pulled = 0
        self.closed = False

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number in range(1, self.count + 1):
            self.pulled += 1
            yield row(number)

    async def later(self) -> AsyncIterator[dict[str, Any]]:
        try:
            for said in self:
                await asyncio.sleep(0)
                yield said
        finally:
            self.closed = True


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: rows(20), id="list"),
        pytest.param(lambda: iter(Feed(20)), id="generator"),
        pytest.param(lambda: Feed(20).later(), id="async generator"),
        pytest.param(lambda: Feed(20), id="iterable"),
    ],
)
async def test_every_row_of_a_program_gives_one_outcome(
    place: Place, make: Callable[[], Any]
) -> None:
    async with service(place) as (simulator, des), place.open(des, make()) as opened:
        outcomes = await collected(opened)
        summary = await opened.summary()

    assert runs_of(simulator) == once(range(1, 21))
    assert {outcome.job_run_id for outcome in outcomes} == {r.job_run_id for r in simulator.runs}
    assert (len(outcomes), counts(summary)) == (20, {"started": 20})


async def test_values_reach_des_to_the_digit(place: Place) -> None:
    values: dict[str, Any] = {"DBGenFrom": 3, "DBGenTo": JobRunParameterValue(2, "4")}
    said = [
        Row(0, 0, "typed", "default", POS_USAGE, {"DBGenFrom": "7", "DBGenTo": None}),
        {"key": "auto", "jobId": POS_USAGE, "parameters": {"DBGenFrom": {"auto": True}}},
    ]

    async with service(place) as (simulator, des):
        await place.launch(des, said)
        await des.start_job(POS_USAGE, values)
        sent = [dict(run.parameters) for run in simulator.runs]

    assert sent[0]["DBGenFrom"]["valueStringEncoded"] == "7"
    assert sent[1]["DBGenFrom"].get("autoValue") or "auto" in json.dumps(sent[1]).lower()
    assert sent[2]["DBGenTo"]["valueStringEncoded"] == "4"
    assert AUTO_VALUE is deslaunch.AUTO
    assert isinstance(Decimal(1), Decimal)
    assert datetime.now(UTC).tzinfo is UTC


async def test_invalid_rows_of_a_program_give_outcomes(place: Place) -> None:
    said = [row(1), invalid_row(2), {"nonsense": 1}, row(1), row(5)]

    async with service(place) as (_, des), place.open(des, said) as opened:
        outcomes = await collected(opened)
        summary = await opened.summary()

    invalid = [outcome for outcome in outcomes if outcome.state is RowState.INVALID]
    assert len(invalid) == 3
    assert all(outcome.problems and outcome.error for outcome in invalid)
    assert counts(summary) == {"started": 2, "invalid": 3}


async def test_a_resumed_launch_names_a_command_with_the_words_that_the_ledger_keeps(
    place: Place,
) -> None:
    place.write(rows(3))
    kept = {"repeat": ["--config", "/t.toml"]}

    async with service(place) as (_, des):
        await place.launch(des, limit=1, options_kept=kept, allow_partial=True)

        with pytest.raises(Stopped) as raised:
            async with place.resume(des, limit=1) as opened:
                await opened.run()

    ledger = as_word(place.ledger)
    assert raised.value.hint == f"resume it: deslaunch resume {ledger} --config /t.toml"


async def test_an_option_that_is_none_is_refused(place: Place) -> None:
    place.write(rows(1))
    wrong: Any = {"concurency": 4}

    async with service(place) as (simulator, des):
        with pytest.raises(TypeError, match="'concurency'"):
            await deslaunch.launch(place.manifest, des, **wrong)

        with pytest.raises(TypeError, match="'concurency'"):
            await check(place.manifest, des, **wrong)

        assert not place.has_ledger()
        await place.launch(des)

        with pytest.raises(TypeError, match="'concurency'"):
            async with deslaunch.resume_batch(place.ledger, des, **wrong):
                pass

    assert len(simulator.runs) == 1


async def test_what_is_no_rows_leaves_no_ledger(place: Place) -> None:
    async with service(place) as (_, des):
        with pytest.raises(TypeError, match="iterable"):
            await place.launch(des, 7)

        with pytest.raises(ConfigurationError, match="need a ledger"):
            await deslaunch.launch(rows(1), des)

    assert not place.has_ledger()


async def test_a_slow_consumer_holds_back_the_rows_and_not_the_ledger(place: Place) -> None:
    feed = Feed(500)

    async with service(place) as (simulator, des), place.open(des, feed, concurrency=2) as opened:
        outcomes = aiter(opened)
        await anext(outcomes)
        await anyio.sleep(0.3)
        behind = feed.pulled, len(simulator.runs)
        rest = [outcome async for outcome in outcomes]

    assert max(behind) <= 32
    assert (len(rest), feed.pulled) == (499, 500)


async def test_rows_that_a_batch_has_take_no_room_from_others(place: Place) -> None:
    taken: list[int] = []

    def interleaved() -> Iterator[dict[str, Any]]:
        for number in range(1, 61):
            taken.append(number)
            yield row(number)

    async with service(place) as (simulator, des):
        await place.launch(des, [row(number) for number in range(1, 61, 2)])
        simulator.use(HOLDS)

        async with place.open(des, interleaved(), resume=True, concurrency=2) as opened:
            work = asyncio.create_task(opened.run())
            await simulator.until(lambda: simulator.in_flight == 1)
            await anyio.sleep(0.3)
            ahead = len(taken)
            simulator.release()
            await work

    assert runs_of(simulator) == once(range(1, 61))
    assert ahead == 16  # of which 8 are new: 4 a slot


async def test_rows_are_sent_that_were_added_by_a_commit_without_a_reply(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Ledger.add

    async def add_again(self: Ledger, rows: Any) -> Any:
        await add(self, rows)
        return await add(self, rows)

    monkeypatch.setattr(Ledger, "add", add_again)

    async with service(place) as (simulator, des):
        summary = await place.launch(des, rows(20))

    assert (runs_of(simulator), counts(summary)) == (once(range(1, 21)), {"started": 20})


async def test_rows_of_a_stopped_target_do_not_hold_up_the_others(place: Place) -> None:
    said = [row(n, target="acme" if n <= 60 else "default") for n in range(1, 70)]

    async with (
        service(place) as (simulator, des),
        DesClient("http://127.0.0.1:9", token=TOKEN) as dead,
    ):
        jobs = place.folder / "jobs.json"
        jobs.write_text(json.dumps(deslaunch.simulator.DEFAULT_JOBS))
        clients = {"default": des, "acme": dead}
        more = {"schema": jobs, "concurrency": 2, "allow_partial": True}

        with anyio.fail_after(30):
            summary = await place.launch(clients, said, **more)

    assert runs_of(simulator) == once(range(61, 70))
    assert [(stop.reason, stop.target) for stop in summary.stops] == [
        (StopReason.UNREACHABLE, "acme")
    ]


async def test_rows_that_were_withdrawn_do_not_hold_up_the_others(place: Place) -> None:
    withdrawn = 0

    async with (
        service(place, fault("status", 1, status=503, seconds=1.0)) as (simulator, des),
        place.open(des, rows(12), concurrency=1) as opened,
        await open_ledger(place.ledger) as other,
    ):
        work = asyncio.create_task(opened.run())

        while withdrawn < 4:  # all that the batch takes before one has ended
            withdrawn += (await other.withdraw(None)).changed

        with anyio.fail_after(30):
            summary = await work

    assert runs_of(simulator) == once(range(5, 13))
    assert counts(summary) == {"started": 8, "withdrawn": 4}


@pytest.mark.parametrize("is_async", [True, False])
async def test_a_source_that_raises_ends_the_batch_and_nothing_is_lost(
    place: Place, is_async: bool
) -> None:
    def broken() -> Iterator[dict[str, Any]]:
        yield from rows(5)
        raise LookupError("rows are gone")

    async def later() -> AsyncIterator[dict[str, Any]]:
        for said in broken():
            yield said

    async with service(place) as (simulator, des):
        with pytest.raises(LookupError, match="rows are gone"):
            await place.launch(des, later() if is_async else broken())

    started = [line for line in (await place.lines()).values() if line.state == "started"]
    assert len(started) == len(simulator.runs)


async def test_a_service_that_can_not_be_asked_ends_a_programs_batch(place: Place) -> None:
    async with DesClient("http://127.0.0.1:9", token=TOKEN) as dead:
        with pytest.raises(DesError):
            await place.launch(dead, rows(3))


async def test_rows_of_a_known_key_are_skipped_and_other_words_refused(place: Place) -> None:
    async with service(place) as (simulator, des):
        await place.launch(des, rows(5))

        with pytest.raises(LedgerExists, match="there is a"):
            await place.launch(des, rows(5))

        summary = await place.launch(des, rows(8), resume=True)

        with pytest.raises(ManifestError):
            await place.launch(des, [row(9, key="row-1")], resume=True)

    assert runs_of(simulator) == once(range(1, 9))
    assert (counts(summary), summary.started_now) == ({"started": 8}, 3)


async def test_a_programs_second_auto_row_of_a_job_is_invalid_in_a_later_session_too(
    place: Place,
) -> None:
    async with service(place) as (simulator, des):
        await place.launch(des, [{**AUTO, "key": "feed"}])
        summary = await place.launch(des, [{**AUTO, "key": "another"}], resume=True)

    assert (counts(summary), len(simulator.runs)) == ({"started": 1, "invalid": 1}, 1)


async def test_a_manifests_ledger_and_a_programs_are_not_mixed(place: Place) -> None:
    place.write(rows(2))

    async with service(place) as (_, des):
        await place.launch(des)

        with pytest.raises(LedgerForeign):
            await place.launch(des, rows(2), resume=True)


# Ends from outside.


async def test_leaving_the_block_drains_and_leaves_the_rest_pending(place: Place) -> None:
    place.write(rows(40))

    async with service(place) as (simulator, des):
        async with place.open(des, concurrency=2) as opened:
            async for _ in opened:
                break

        async with await open_ledger(place.ledger) as ledger:
            summary = await ledger.summary()

    assert 0 < summary.counts.started < 40
    assert summary.counts.started == len(simulator.runs)
    assert summary.counts.unknown == 0


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_cancelled_launch_drains_and_leaves_the_rest_pending(tmp_path: Path, runner: str) -> None:
    place = Place(tmp_path)
    place.write(rows(40))
    events: list[Event] = []

    async def scenario() -> None:
        async with service(place, fault("latency", seconds=0.1)) as (simulator, des):
            work = asyncio.create_task(place.launch(des, concurrency=2, on_event=events.append))
            await simulator.until(lambda: len(simulator.runs) >= 3)
            work.cancel()

            with pytest.raises(asyncio.CancelledError):
                await work

            found = await place.states()
            started = [key for key, state in found.items() if state == "started"]
            assert len(started) == len(simulator.runs) < 40
            assert set(found.values()) == {"started", "pending"}
            assert counts(await place.go_on(des)) == {"started": 40}

    run(runner, scenario)
    assert any(isinstance(event, Draining) for event in events)


def run(runner: str, scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    if runner == "asyncio":
        asyncio.run(scenario())
    else:
        anyio.run(scenario, backend="asyncio")


async def test_a_cancelled_scope_drains(place: Place) -> None:
    place.write(rows(40))

    async with service(place, fault("latency", seconds=0.1)) as (simulator, des):
        async with anyio.create_task_group() as group:

            async def work() -> None:
                await place.launch(des, concurrency=2)

            group.start_soon(work)
            await simulator.until(lambda: len(simulator.runs) >= 3)
            group.cancel_scope.cancel()

        found = await place.states()

    assert set(found.values()) == {"started", "pending"}


async def test_a_second_cancellation_gives_up_what_is_in_flight(place: Place) -> None:
    place.write(rows(5))

    async with service(place, HOLDS) as (simulator, des):
        work = asyncio.create_task(place.launch(des))
        await simulator.until(lambda: simulator.in_flight == 1)
        work.cancel()
        await anyio.sleep(0.05)
        work.cancel()

        with pytest.raises(asyncio.CancelledError):
            await work

    assert sorted((await place.states()).values()) == ["pending"] * 4 + ["unknown"]


@pytest.mark.parametrize(("signum", "exit_code"), [(1, 129), (2, 130), (15, 143)])
async def test_a_signal_drains(place: Place, signum: int, exit_code: int) -> None:
    place.write(rows(40))

    async with (
        service(place, fault("latency", seconds=0.1)) as (simulator, des),
        place.open(des, concurrency=2) as opened,
    ):
        work = asyncio.create_task(opened.run())
        await simulator.until(lambda: len(simulator.runs) >= 3)
        opened.drain(signum)

        with pytest.raises(Interrupted) as interrupted:
            await work

    assert interrupted.value.signum == signum
    assert interrupted.value.summary is not None
    assert interrupted.value.summary.exit_code == exit_code


async def test_a_signal_before_the_launch_sends_nothing(place: Place) -> None:
    place.write(rows(4))

    async with service(place) as (simulator, des), place.open(des) as opened:
        opened.drain(2)
        summary = await opened.run(allow_partial=True)

    assert (counts(summary), summary.exit_code, simulator.requests) == ({"pending": 4}, 130, 0)


async def test_a_cancelled_import_leaves_nothing(place: Place) -> None:
    place.write(rows(4))

    async with service(place, fault("hold", on="queryjobs")) as (_, des):
        work = asyncio.create_task(place.launch(des))
        await anyio.sleep(0.2)
        work.cancel()

        with suppress(asyncio.CancelledError):
            await work

    assert not [path.name for path in place.folder.glob("*.db*") if path.suffix != ".lock"]


async def test_who_iterates_gets_the_outcome_that_a_listener_failed_on(place: Place) -> None:
    place.write(rows(20))
    got: list[str] = []

    def complain(event: Event) -> None:
        if isinstance(event, RowEnded):
            raise RuntimeError("a bug")  # noqa: TRY004  # it is about no type

    async def iterate(opened: Batch) -> None:
        async for outcome in opened:
            got.append(outcome.key)  # noqa: PERF401  # what came before the error counts

    async with (
        service(place) as (_, des),
        place.open(des, concurrency=2, on_event=complain) as opened,
    ):
        with pytest.raises(RuntimeError, match="a bug"):
            await iterate(opened)

    started = [key for key, state in (await place.states()).items() if state == "started"]
    assert 0 < len(got) < 20
    assert sorted(got) == sorted(started)


async def test_a_listeners_error_ends_the_launch_and_nothing_is_lost(place: Place) -> None:
    place.write(rows(20))

    def complain(event: Event) -> None:
        if isinstance(event, RowEnded):
            raise RuntimeError("no more")  # noqa: TRY004  # it is about no type

    async with service(place) as (simulator, des):
        with pytest.raises(RuntimeError, match="no more"):
            await place.launch(des, on_event=complain)

    started = [line for line in (await place.lines()).values() if line.state == "started"]
    assert len(started) == len(simulator.runs) < 20


async def test_an_outcome_is_on_disk_when_its_event_comes(place: Place) -> None:
    place.write(rows(10))
    found: list[str] = []

    async with service(place) as (_, des), place.open(des) as opened:
        async for outcome in opened:
            state = (await place.states())[outcome.key]
            found.append(state)

    assert found == ["started"] * 10


async def test_a_ledger_that_is_deleted_is_rescued(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.write(rows(60))
    events: list[Event] = []

    async with (
        service(place, fault("latency", seconds=0.15)) as (simulator, des),
        place.open(des, concurrency=2, on_event=events.append) as opened,
    ):
        work = asyncio.create_task(opened.run())
        await simulator.until(lambda: len(simulator.runs) >= 2)
        place.file.unlink()

        with pytest.raises(LedgerWriteFailed) as raised:
            await work

    rescued = place.folder / "night.ledger.db.rescued"
    assert raised.value.summary is not None
    assert raised.value.summary.ledger == str(rescued)
    assert f"deslaunch resume {rescued}" in raised.value.hint
    place.file.unlink(missing_ok=True)
    rescued.rename(place.file)
    started = [line for line in (await place.lines()).values() if line.state == "started"]
    assert len(started) == len(simulator.runs)

    async with await open_ledger(place.ledger) as ledger:
        assert [session.exit_code for session in await ledger.sessions()] == [7]


async def test_targets_fail_apart(place: Place) -> None:
    place.write([row(n, target="acme" if n % 2 else "default") for n in range(1, 21)])

    async with service(place) as (simulator, des):
        other = Place(place.folder / "acme")
        other.folder.mkdir()

        async with service(other, fault("status", status=307)) as (_, acme):
            summary = await place.launch({"default": des, "acme": acme}, allow_partial=True)

    assert counts(summary) == {"started": 10, "pending": 10}
    assert summary.targets["acme"].pending == 10
    assert [stop.target for stop in summary.stops] == ["acme"]
    assert runs_of(simulator) == once(range(2, 21, 2))


async def test_a_target_whose_jobs_can_not_be_had_is_checked_before_its_first_start(
    place: Place,
) -> None:
    place.write([row(1), invalid_row(2) | {"target": "acme"}, row(3, target="acme")])

    async with service(place) as (_, des):
        other = Place(place.folder / "acme")
        other.folder.mkdir()

        async with service(other, fault("status", 1, on="queryjobs", status=500)) as (second, acme):
            plans: list[Plan] = []

            def note(event: Event) -> None:
                if isinstance(event, Planned):
                    plans.append(event.plan)

            summary = await place.launch({"default": des, "acme": acme}, on_event=note)

    assert counts(summary) == {"started": 2, "invalid": 1}
    assert any("acme" in warning for warning in plans[0].warnings)
    assert runs_of(second) == once([3])


async def test_the_token_is_nowhere(place: Place) -> None:
    place.write(rows(3))

    script = fault("status", 2, status=400, body=TOKEN)

    async with service(place, script) as (_, des), place.open(des) as opened:
        await opened.run()
        said = repr(opened) + repr([line async for line in opened.results()])

    found = [
        path for path in place.folder.rglob("*") if path.is_file() and path.name != "log.jsonl"
    ]
    assert TOKEN not in said
    assert not [path for path in found if TOKEN.encode() in path.read_bytes()]


async def test_a_batch_is_launched_once(place: Place) -> None:
    place.write(rows(2))

    async with service(place) as (_, des), place.open(des) as opened:
        await opened.run()

        with pytest.raises(RuntimeError, match="launched already"):
            await opened.run()


async def test_not_sent_is_a_des_error_and_a_stop_is_told(place: Place) -> None:
    place.write(rows(2))
    events: list[Event] = []
    jobs = place.folder / "jobs.json"
    jobs.write_text(json.dumps(deslaunch.simulator.DEFAULT_JOBS))

    async with DesClient("http://127.0.0.1:9", token=TOKEN) as dead:
        summary = await place.launch(dead, schema=jobs, on_event=events.append, allow_partial=True)

    assert issubclass(NotSent, DesError)
    assert [event.stop for event in events if isinstance(event, TargetStopped)] == [*summary.stops]
    assert summary.stops[0].reason is StopReason.UNREACHABLE


async def test_a_started_row_shows_the_status_of_its_response(place: Place) -> None:
    place.write([row(1), rejected_row(2)])

    async with service(place) as (_, des):
        await place.launch(des)

    assert [line.status for line in (await place.lines()).values()] == [200, 400]


# Beside other launchers.


async def test_one_that_waits_for_an_import_waits_for_its_server_too(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(tmp_path, f"{database}#night")
    place.write(rows(2))
    begin_import = ledger.begin_import
    met = [LedgerLocked("another imports it"), LedgerError("the server is starting up")]

    async def begin(*given: Any, **more: Any) -> Any:
        if met:
            raise met.pop(0)

        return await begin_import(*given, **more)

    monkeypatch.setattr(batches, "begin_import", begin)

    async with service(place) as (simulator, des):
        summary = await place.launch(des, resume=True, join=True)
        assert (counts(summary), runs_of(simulator)) == ({"started": 2}, once([1, 2]))

        met.append(LedgerError("there is no such host"))

        with pytest.raises(LedgerError, match="no such host"):
            await Place(tmp_path, f"{database}#other").launch(des, rows(1), resume=True, join=True)
