"""Launches of whole manifests against the simulator, whose own log is the judge."""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, Unpack
from uuid import UUID

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

from deslaunch import launcher, resolution
from deslaunch.client import DesClient
from deslaunch.errors import (
    ConfigurationError,
    CredentialsRefused,
    DesError,
    Interrupted,
    InvalidManifest,
    LedgerError,
    LedgerExists,
    LedgerForeign,
    LedgerLocked,
    LedgerWriteFailed,
    ManifestChanged,
    ManifestConflict,
    ManifestError,
    NotSent,
)
from deslaunch.findings import Finding
from deslaunch.kept_rows import kept_manifest, kept_rows
from deslaunch.ledger import peek, snapshot
from deslaunch.model import (
    Draining,
    Planned,
    RetryPlanned,
    RowEnded,
    RowState,
    Stopped,
    StopReason,
    TargetPaused,
    TokenRenewed,
)
from deslaunch.results import unknown_rows
from deslaunch.session import Interrupt
from deslaunch.simulator import DEFAULT_JOBS, Simulator
from deslaunch.wire import decode_jobs

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from stage import Runner, Said

    from deslaunch.config import LaunchOptions
    from deslaunch.model import Event, Job, Summary
    from deslaunch.simulator import Simulator


AUTO_ROW: Final[Said] = {"jobId": JOB, "parameters": {"DBGenFrom": {"auto": True}}}
FIRST_TOKEN_FOR_THREE: Final[Said] = {"tokens": {"expireAfter": 3, "which": "first"}}


async def states_of(place: Place) -> dict[str, str]:
    """Return each key's state as a reader without the lock sees it."""
    found = await asyncio.to_thread(peek, place.ledger)
    assert found is not None
    return {key: str(state.state) for key, state in found.replay.states.items()}


def sendings_of(place: Place, key: str) -> list[tuple[int, bool]]:
    """Return the number of each of a row's attempts, and whether its record has the body."""
    found = (record for record in place.records("sending") if record["key"] == key)
    return [(record["attempt"], "body" in record) for record in found]


def reasons(summary: Summary) -> list[StopReason]:
    return [stop.reason for stop in summary.stops]


# Many rows, many faults.


@pytest.mark.slow
async def test_every_one_of_two_thousand_rows_is_started_exactly_once(place: Place) -> None:
    place.write(rows(2000))
    script = {
        "seed": 7,
        "latency": 0.02,
        "faults": [
            {"fault": "status", "status": 503, "share": 0.05},
            {"fault": "status", "status": 500, "share": 0.02},
        ],
    }

    async with service(place, script) as (simulator, des):
        summary = await place.launch(des, concurrency=64, max_wait=0.05, max_attempts=10)

    assert counts(summary) == {"started": 2000}
    assert runs_of(simulator) == once(range(1, 2001))
    assert place.agrees(simulator)
    assert summary.attempts == simulator.requests > 2000
    assert summary.possible_duplicates > 0
    assert summary.exit_code == 0
    assert simulator.peak <= 64


async def test_the_default_ledger_lies_beside_the_manifest_and_is_private(place: Place) -> None:
    place.write(rows(3))

    async with service(place) as (simulator, des):
        summary = await place.launch(des)

    assert summary.ledger == str(place.ledger)
    assert place.ledger.stat().st_mode & 0o777 == 0o600
    assert place.agrees(simulator)
    assert [record["record"] for record in place.records()][:2] == ["batch", "session"]
    assert place.records()[-1]["record"] == "end"
    assert place.is_free()


@pytest.mark.parametrize(
    ("name", "ledger"),
    [
        pytest.param("night.csv", "night.ledger.jsonl", id="csv"),
        pytest.param("night.jsonl.gz", "night.ledger.jsonl", id="gzipped"),
        pytest.param("a.b.csv.gz", "a.b.ledger.jsonl", id="dots"),
    ],
)
def test_default_ledger(tmp_path: Path, name: str, ledger: str) -> None:
    assert launcher.default_ledger(tmp_path / name) == tmp_path / ledger


async def test_a_manifest_of_no_rows_is_a_batch_of_no_rows(place: Place) -> None:
    place.write([])

    async with service(place) as (simulator, des):
        summary = await place.launch(des)

    assert (summary.rows, summary.exit_code, simulator.requests) == (0, 0, 0)
    assert place.records()[-1]["record"] == "end"


# Rows that don't validate.


async def test_an_invalid_manifest_is_refused_with_all_its_problems(place: Place) -> None:
    place.write([row(1), invalid_row(2), row(3, jobId="no-guid"), {"parameters": {"x": 1}, "y": 2}])

    async with service(place) as (simulator, des):
        with pytest.raises(InvalidManifest, match="3 of 4 rows") as refused:
            await place.launch(des)

    assert [(problem.row, problem.column) for problem in refused.value.problems] == [
        (2, "DBGenFrom"),
        (3, "jobId"),
        (4, "y"),
        (4, "jobId"),
    ]
    assert refused.value.count == 4
    assert simulator.requests == 0
    assert not place.ledger.exists()


async def test_skip_invalid_launches_the_others_and_records_the_invalid(place: Place) -> None:
    place.write([row(1), invalid_row(2), row(3), row(3)])

    async with service(place) as (simulator, des):
        summary = await place.launch(des, skip_invalid=True)

    assert counts(summary) == {"started": 2, "invalid": 2}
    assert summary.exit_code == 3
    assert runs_of(simulator) == once([1, 3])
    assert [(record["key"], record["row"]) for record in place.records("invalid")] == [
        ("r2", 2),
        (None, 4),
    ]


async def test_a_resume_does_not_record_invalid_rows_twice_and_sends_mended_ones(
    place: Place,
) -> None:
    place.write([row(1), invalid_row(2), row(3), row(3)])

    async with service(place) as (simulator, des):
        await place.launch(des, skip_invalid=True)
        again = await place.resume(des)
        recorded = len(place.records("invalid"))
        place.write([row(1), row(2), row(3)])
        mended = await place.resume(des)

    assert counts(again) == {"started": 2, "invalid": 2}
    assert recorded == 2
    assert counts(mended) == {"started": 3}
    assert runs_of(simulator) == once([1, 2, 3])


@pytest.mark.parametrize(
    "text",
    [
        pytest.param('key,jobId,DBGenFrom\na,{job},1\nb,{job},"2\n', id="open quote"),
        pytest.param("", id="no header"),
        pytest.param("key,key\n1,2\n", id="column named twice"),
    ],
)
async def test_a_file_that_can_not_be_read_to_its_end_is_refused_whatever_is_skipped(
    place: Place, text: str
) -> None:
    manifest = place.folder / "night.csv"
    manifest.write_text(text.format(job=JOB))

    async with service(place) as (simulator, des):
        with pytest.raises(InvalidManifest, match=r"can't be read( to its end)?;"):
            await launcher.launch(manifest, des, cache=place.cache, skip_invalid=True)

    assert simulator.requests == 0
    assert not place.ledger.exists()


async def test_a_manifest_that_is_not_there(place: Place) -> None:
    async with service(place) as (simulator, des):
        with pytest.raises(ManifestError, match="can't be read"):
            await place.launch(des)

    assert simulator.requests == 0
    assert not place.ledger.exists()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        pytest.param([row(1), row(1)], "'r1' is that of line 1", id="key given twice"),
        pytest.param([AUTO_ROW, AUTO_ROW], "says the same as line 1", id="same row"),
        pytest.param([AUTO_ROW, {**AUTO_ROW, "key": "b"}], "race", id="auto values race"),
        pytest.param([row(1, target="nowhere")], "no target 'nowhere'", id="unknown target"),
        pytest.param([row(1, jobId="0" * 8 + JOB[8:])], "has no job", id="unknown job"),
    ],
)
async def test_rows_that_may_not_go_together_are_refused(
    place: Place, said: list[Said], message: str
) -> None:
    place.write(said)

    async with service(place) as (simulator, des):
        with pytest.raises(InvalidManifest) as refused:
            await place.launch(des)

    assert message in refused.value.problems[0].message
    assert simulator.requests == 0


async def test_duplicates_are_refused_and_where_allowed_get_keys_of_their_own(place: Place) -> None:
    said = {"jobId": JOB, "parameters": {"DBGenFrom": 5}}
    place.write([said, said, said])

    async with service(place) as (simulator, des):
        with pytest.raises(InvalidManifest, match="2 of 3 rows"):
            await place.launch(des)

        summary = await place.launch(des, allow_duplicates=True)
        again = await place.resume(des)

    digest, *repeats = place.started()
    assert repeats == [f"{digest}~2", f"{digest}~3"]
    assert runs_of(simulator) == Counter({5: 3})
    assert set(place.started().values()) == {run.job_run_id for run in simulator.runs}
    assert counts(summary) == counts(again) == {"started": 3}


async def test_auto_rows_of_one_job_are_started_where_that_is_allowed(place: Place) -> None:
    place.write([AUTO_ROW, {**AUTO_ROW, "key": "b"}])

    async with service(place) as (simulator, des):
        summary = await place.launch(des, allow_repeated_auto=True)

    assert counts(summary) == {"started": 2}
    assert len(simulator.runs) == 2


# The schema.


def jobs_with(*, required: bool = True) -> list[Job]:
    """Return the service's jobs, the first with a parameter more or less than it has."""
    said = json.loads(json.dumps(DEFAULT_JOBS))

    if required:
        said["jobs"][0]["jobRunParameters"].append({"name": "Shop", "required": True})

    return decode_jobs(json.dumps(said).encode(), source="a test")


async def test_a_fresh_cached_schema_saves_the_query(place: Place) -> None:
    place.write(rows(2))

    async with service(place) as (simulator, des):
        await launcher.check(place.manifest, des, cache=place.cache)
        assert simulator.count("queryjobs") == 1
        summary = await place.launch(des)

    assert simulator.count("queryjobs") == 1
    assert counts(summary) == {"started": 2}


async def test_no_row_is_called_invalid_on_a_cached_schema(place: Place) -> None:
    place.write(rows(2))

    async with service(place) as (simulator, des):
        await store(place, simulator, jobs_with(required=True))
        summary = await place.launch(des)

    assert counts(summary) == {"started": 2}
    assert simulator.count("queryjobs") == 1


async def test_a_resume_sees_each_row_once_although_it_reads_the_manifest_again(
    place: Place,
) -> None:
    place.write(rows(2))

    async with service(place) as (simulator, des):
        await place.launch(des)
        await store(place, simulator, jobs_with(required=True))
        place.write(rows(3))
        summary = await place.resume(des)

    assert counts(summary) == {"started": 3}
    assert runs_of(simulator) == once([1, 2, 3])


async def test_a_stale_cache_serves_a_check_offline_and_never_a_launch(place: Place) -> None:
    place.write(rows(2))

    async with service(place) as (simulator, des):
        await store(place, simulator, jobs_with(required=False), hours=30)
        await simulator.refuse()
        report = await launcher.check(place.manifest, des, cache=place.cache)

        with pytest.raises(NotSent):
            await place.launch(des)

    assert (report.exit_code, report.rows, report.valid) == (0, 2, 2)
    assert "30 hours old" in report.warnings[0]
    assert not place.ledger.exists()


async def test_a_check_that_an_old_schema_fails_says_that_des_must_be_asked(place: Place) -> None:
    place.write(rows(2))

    async with service(place) as (simulator, des):
        await store(place, simulator, jobs_with(required=True))
        await simulator.refuse()
        report = await launcher.check(place.manifest, des, cache=place.cache)

        with pytest.raises(NotSent):
            await place.launch(des, skip_invalid=True)

    assert (report.exit_code, report.invalid) == (5, 2)
    assert "could not be fetched anew" in report.warnings[-1]
    assert not place.ledger.exists()


async def test_a_refused_token_at_a_check_is_told_from_an_invalid_manifest(place: Place) -> None:
    place.write(rows(1))

    async with service(place, token="another-token") as (simulator, des):
        await store(place, simulator, jobs_with(required=True))
        report = await launcher.check(place.manifest, des, cache=place.cache)

        with pytest.raises(CredentialsRefused):
            await place.launch(des)

    assert report.exit_code == 6


async def test_a_first_400_fetches_the_schema_and_later_rows_are_held_against_it(
    place: Place,
) -> None:
    place.write([row(1), *map(invalid_row, range(2, 401))])

    async with service(place) as (simulator, des):
        await store(place, simulator, lenient_jobs())
        summary = await place.launch(des)

    assert simulator.count("queryjobs") == 1
    assert counts(summary) == {
        "started": 1,
        "rejected": simulator.requests - 1,
        "invalid": 400 - simulator.requests,
    }
    assert summary.invalid >= 100
    assert summary.exit_code == 3


async def test_a_400_after_which_des_can_not_be_asked_changes_nothing(place: Place) -> None:
    place.write([row(1), *map(refused_row, range(2, 401))])
    script = fault("status", on="queryjobs", status=500, **{"from": 1})

    async with service(place, script) as (simulator, des):
        await store(place, simulator, jobs_with(required=False))
        summary = await place.launch(des, max_errors="100%")

    assert simulator.count("queryjobs") == 1
    assert counts(summary) == {"started": 1, "rejected": 399}


async def test_with_a_schema_file_nothing_is_fetched(place: Place) -> None:
    place.write(rows(2))

    async with service(place) as (simulator, des):
        summary = await place.launch(des, schema=place.schema)

    assert counts(summary) == {"started": 2}
    assert simulator.count("queryjobs") == 0
    assert not place.cache.exists()


async def test_check_reports_every_problem_and_sends_nothing(place: Place) -> None:
    place.write([row(1), invalid_row(2)])
    report = await launcher.check(place.manifest, schema=place.schema)

    assert (report.exit_code, report.rows, report.valid, report.invalid) == (2, 2, 1, 1)
    said = report.as_dict()
    assert list(said) == ["rows", "valid", "invalid", "problems", "warnings", "exitCode"]
    assert said["problems"][0]["column"] == "DBGenFrom"


async def test_check_needs_somebody_to_ask(place: Place) -> None:
    place.write(rows(1))

    with pytest.raises(ConfigurationError, match="neither"):
        await launcher.check(place.manifest)


async def test_a_launch_needs_a_target(place: Place) -> None:
    place.write(rows(1))

    with pytest.raises(ConfigurationError, match="no target"):
        await place.launch({})

    assert not place.ledger.exists()


# A ledger that is there already.


async def test_a_second_launch_sends_nothing_and_names_the_resume_command(place: Place) -> None:
    place.write(rows(2))

    async with service(place) as (simulator, des):
        await place.launch(des)
        before = place.ledger.read_bytes()

        with pytest.raises(LedgerExists) as refused:
            await place.launch(des)

    assert f"deslaunch resume {place.ledger}" in refused.value.hint
    assert simulator.requests == 2
    assert place.ledger.read_bytes() == before


@pytest.mark.parametrize("resume", [pytest.param(False, id="run"), pytest.param(True, id="resume")])
async def test_another_manifests_ledger_is_foreign(place: Place, resume: bool) -> None:
    place.write(rows(2))

    async with service(place) as (simulator, des):
        await place.launch(des)
        place.write(rows(3))

        with pytest.raises(LedgerForeign, match="another manifest"):
            await place.launch(des, resume=resume)

    assert simulator.requests == 2


async def test_launch_with_resume_begins_and_then_goes_on(place: Place) -> None:
    place.write(rows(6))

    async with service(place, FIRST_TOKEN_FOR_THREE) as (simulator, des):
        first = await place.launch(des, resume=True)

        async with DesClient(simulator.base_url, token=simulator.issue_token()) as renewed:
            second = await place.launch(renewed, resume=True)

    assert counts(first) == {"started": 3, "pending": 3}
    assert counts(second) == {"started": 6}
    assert runs_of(simulator) == once(range(1, 7))


@pytest.mark.parametrize(
    "left",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b'{"record":"batch","ledger":"deslaunch/1","batchId":"4', id="half a header"),
    ],
)
async def test_a_ledger_that_was_killed_at_its_birth_counts_as_absent(
    place: Place, left: bytes
) -> None:
    place.write(rows(2))
    place.ledger.write_bytes(left)

    async with service(place) as (simulator, des):
        summary = await place.launch(des)

    assert counts(summary) == {"started": 2}
    assert place.agrees(simulator)


LAUNCHER: Final = """
import asyncio, sys
from deslaunch.client import DesClient
from deslaunch.launcher import launch

async def main(url, token, manifest, schema):
    async with DesClient(url, token=token) as des:
        await launch(manifest, des, schema=schema)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_ledger_that_another_process_holds_is_locked_and_the_holder_named(
    place: Place,
) -> None:
    place.write(rows(2))

    async with service(place, fault("hold", 1)) as (simulator, des):
        arguments = [simulator.base_url, TOKEN, str(place.manifest), str(place.schema)]
        other = await asyncio.create_subprocess_exec(sys.executable, "-c", LAUNCHER, *arguments)
        await simulator.until(lambda: simulator.requests == 1)

        for attempt in (place.launch(des), place.launch(des, resume=True), place.resume(des)):
            with pytest.raises(LedgerLocked, match=f"process {other.pid} on "):
                await attempt

        with pytest.raises(LedgerLocked):
            await resolution.resolve(place.ledger, [Finding("r1", None)])

        simulator.release()
        assert await other.wait() == 0

    assert runs_of(simulator) == once([1, 2])
    assert place.agrees(simulator)


# A resume after each kind of stop.


@dataclass(frozen=True)
class Halt:
    """One way to stop: the script, what the first session leaves, and why it says it ended."""

    script: Said
    left: dict[str, int]
    reason: StopReason
    exit_code: int = 5


HALTS: Final = [
    pytest.param(
        Halt(FIRST_TOKEN_FOR_THREE, {"started": 3, "pending": 5}, StopReason.CREDENTIALS, 6),
        id="token expires",
    ),
    pytest.param(
        Halt(
            fault("status", 4, status=503, retryAfter=3600),
            {"started": 3, "pending": 5},
            StopReason.THROTTLED,
        ),
        id="outage",
    ),
    pytest.param(
        Halt(
            fault("status", 4, status=429, retryAfterDate=7200),
            {"started": 3, "pending": 5},
            StopReason.THROTTLED,
        ),
        id="told to wait for hours",
    ),
    pytest.param(
        Halt(
            fault("redirect", 4, status=307), {"started": 3, "pending": 5}, StopReason.CONFIGURATION
        ),
        id="redirect",
    ),
    pytest.param(
        Halt(fault("redirect", 1), {"pending": 8}, StopReason.CONFIGURATION),
        id="redirect at first contact",
    ),
]


@pytest.mark.parametrize("halt", HALTS)
async def test_what_a_stop_left_pending_is_started_once_by_a_resume(
    place: Place, halt: Halt
) -> None:
    place.write(rows(8))

    async with service(place, halt.script) as (simulator, des):
        stopped = await place.launch(des, concurrency=1)

        assert counts(stopped) == halt.left
        assert reasons(stopped) == [halt.reason]
        assert stopped.exit_code == halt.exit_code

        async with DesClient(simulator.base_url, token=simulator.issue_token()) as renewed:
            resumed = await place.resume(renewed)

    assert counts(resumed) == {"started": 8}
    assert runs_of(simulator) == once(range(1, 9))
    assert place.agrees(simulator)


async def test_a_token_that_its_source_renews_stops_nothing(place: Place) -> None:
    place.write(rows(8))
    heard: list[Event] = []

    class Source:
        def __init__(self, simulator: Simulator) -> None:
            self.simulator = simulator
            self.fetched = 0

        async def fetch(self) -> str:
            self.fetched += 1
            return TOKEN if self.fetched == 1 else self.simulator.issue_token()

    async with (
        service(place, FIRST_TOKEN_FOR_THREE) as (simulator, _),
        DesClient(simulator.base_url, token=Source(simulator)) as des,
    ):
        summary = await place.launch(des, on_event=heard.append)

    assert counts(summary) == {"started": 8}
    assert runs_of(simulator) == once(range(1, 9))
    assert any(isinstance(event, TokenRenewed) for event in heard)


async def test_an_outcome_that_is_told_is_what_the_ledger_says(place: Place) -> None:
    """Also that of a row which started at once, for which the ledger is not asked."""
    place.write([*rows(20), {"key": "bad", "parameters": {"DBGenFrom": "x"}}])
    heard: list[Event] = []
    faults = [
        {"fault": "status", "status": 503, "at": [3, 9]},
        {"fault": "status", "status": 400, "at": [5]},
        {"fault": "close-after-start", "at": [7]},
    ]

    async with service(place, {"faults": faults}) as (_, des):
        await place.launch(des, on_event=heard.append, skip_invalid=True, max_wait=0.01)

    found = await asyncio.to_thread(peek, place.ledger)
    assert found is not None
    told = [event.outcome for event in heard if isinstance(event, RowEnded)]
    read = [found.replay.outcome(one.key) for one in told if one.key is not None]
    states = Counter(one.state for one in told)
    assert states == {"started": 18, "rejected": 1, "unknown": 1, "invalid": 1}
    assert [one for one in told if one.state != "invalid"] == [
        one for one in read if one.state != "invalid"
    ]


async def test_a_service_that_is_not_there_is_tried_three_times(place: Place) -> None:
    place.write(rows(8))

    async with service(place) as (simulator, des):
        await simulator.refuse()
        stopped = await place.launch(des, schema=place.schema)
        kinds = Counter(record["record"] for record in place.records())
        await simulator.listen()
        resumed = await place.resume(des)

    assert counts(stopped) == {"pending": 8}
    assert reasons(stopped) == [StopReason.UNREACHABLE]
    assert kinds == {"batch": 1, "session": 1, "sending": 1, "unsent": 1, "pause": 2, "end": 1}
    assert counts(resumed) == {"started": 8}
    assert runs_of(simulator) == once(range(1, 9))


async def test_an_unknown_first_contact_stops_and_is_not_sent_again(place: Place) -> None:
    place.write(rows(4))

    async with service(place, fault("close-after-start", 1)) as (simulator, des):
        stopped = await place.launch(des)
        assert simulator.requests == 1
        resumed = await place.resume(des)

    assert counts(stopped) == {"unknown": 1, "pending": 3}
    assert (reasons(stopped), stopped.exit_code) == ([StopReason.FIRST_CONTACT], 5)
    assert (counts(resumed), resumed.exit_code) == ({"started": 3, "unknown": 1}, 4)
    assert runs_of(simulator) == once(range(1, 5))


# What a resume sends again, and what it does not.


async def test_an_unknown_row_is_sent_again_only_when_a_person_says_so(place: Place) -> None:
    place.write(rows(4))

    async with service(place, fault("close-after-start", 2)) as (simulator, des):
        first = await place.launch(des, concurrency=1)
        plain = await place.resume(des)
        sent = simulator.requests
        asked = await place.resume(des, retry_unknown=True)

    assert counts(first) == counts(plain) == {"started": 3, "unknown": 1}
    assert sent == 4
    assert (counts(asked), asked.possible_duplicates) == ({"started": 4}, 1)
    assert sendings_of(place, "r2") == [(1, True), (2, False)]
    assert runs_of(simulator) == once([1, 3, 4]) + Counter({2: 2})


async def test_a_row_resolved_as_not_started_is_sent_again_without_a_mark(place: Place) -> None:
    place.write(rows(3))

    async with service(place, fault("close", 2)) as (simulator, des):
        await place.launch(des, concurrency=1)
        resolved = await resolution.resolve(place.ledger, [Finding("r2", None, "looked")])
        resumed = await place.resume(des)

    assert counts(resolved) == {"started": 2, "pending": 1}
    assert (counts(resumed), resumed.possible_duplicates) == ({"started": 3}, 0)
    assert runs_of(simulator) == once([1, 2, 3])
    assert place.records("resolved")[0]["note"] == "looked"


async def test_a_row_resolved_as_started_is_done(place: Place) -> None:
    place.write(rows(3))

    async with service(place, fault("close-after-start", 2)) as (simulator, des):
        await place.launch(des, concurrency=1)
        lost = next(run for run in simulator.runs if run.request == 2)
        resolved = await resolution.resolve(place.ledger, [Finding("r2", lost.job_run_id)])
        resumed = await place.resume(des, retry_unknown=True)

    assert counts(resolved) == counts(resumed) == {"started": 3}
    assert resumed.exit_code == 0
    assert runs_of(simulator) == once([1, 2, 3])


@pytest.mark.parametrize(
    ("findings", "message"),
    [
        pytest.param(
            [Finding("r2", None), Finding("r9", None)], "no row with key 'r9'", id="no such key"
        ),
        pytest.param([Finding("r2", None), Finding("r1", None)], "'r1' is started", id="started"),
        pytest.param([Finding("r2", None), Finding("r2", None)], "twice", id="twice"),
        pytest.param([Finding("r2", "the second")], "a jobRunId is a GUID", id="no GUID"),
        pytest.param([Finding("r2", "run of r1")], "is that of the row with key 'r1'", id="r1's"),
    ],
)
async def test_a_finding_that_can_not_be_is_refused_with_all_others(
    place: Place, findings: list[Finding], message: str
) -> None:
    place.write(rows(3))

    async with service(place, fault("close-after-start", 2)) as (simulator, des):
        await place.launch(des, concurrency=1)
        [first, *_] = (run.job_run_id.upper() for run in simulator.runs)
        findings = [
            finding._replace(job_run_id=first) if finding.job_run_id == "run of r1" else finding
            for finding in findings
        ]

        with pytest.raises(ConfigurationError, match=message):
            await resolution.resolve(place.ledger, findings)

    assert place.records("resolved") == []
    assert place.is_free()


async def test_to_say_that_nothing_was_started_may_be_premature(place: Place) -> None:
    place.write(rows(4))

    async with service(place, fault("close-after-start", 2, 3)) as (_, des):
        await place.launch(des, concurrency=1)

    [row, _] = await asyncio.to_thread(lambda: list(unknown_rows(snapshot(place.ledger))))
    end = datetime.fromisoformat(row.to_utc)
    findings = [
        Finding("r1", None),
        Finding("r2", None),
        Finding("r3", str(UUID(int=3))),
        Finding("r9", None),
    ]
    moments = [end - timedelta(seconds=1), end]
    found = [await resolution.premature(place.ledger, findings, now) for now in moments]

    assert [[row.key for row in rows] for rows in found] == [["r2"], []]


async def test_findings_may_be_told_again(place: Place) -> None:
    """After an interruption a person passes the same file once more."""
    place.write(rows(3))

    async with service(place, fault("close-after-start", 2)) as (simulator, des):
        await place.launch(des, concurrency=1)
        found = [Finding("r2", None), Finding("r1", simulator.runs[0].job_run_id)]
        await resolution.resolve(place.ledger, found)
        await resolution.resolve(place.ledger, found)

    assert len(place.records("resolved")) == 1


async def test_an_auto_row_in_doubt_is_freed_by_a_finding_alone(place: Place) -> None:
    place.write([row(1), {**AUTO_ROW, "key": "auto"}])

    async with service(place, fault("status", 2, status=500)) as (simulator, des):
        first = await place.launch(des, concurrency=1)
        asked = await place.resume(des, retry_unknown=True)
        sent = simulator.requests
        await resolution.resolve(place.ledger, [Finding("auto", None)])
        freed = await place.resume(des)

    assert counts(first) == counts(asked) == {"started": 1, "unknown": 1}
    assert sent == 2
    assert counts(freed) == {"started": 2}
    assert len(simulator.runs) == 2


async def test_a_rejected_row_is_sent_again_when_it_changed_or_was_asked_for(place: Place) -> None:
    place.write([row(1), refused_row(2)])

    async with service(place) as (simulator, des):
        first = await place.launch(des, concurrency=1)
        plain = await place.resume(des)
        assert simulator.requests == 2
        asked = await place.resume(des, retry_rejected=True)
        assert simulator.requests == 3
        place.write(rows(2))
        changed = await place.resume(des)

    assert counts(first) == counts(plain) == counts(asked) == {"started": 1, "rejected": 1}
    assert first.exit_code == 3
    assert (counts(changed), changed.possible_duplicates) == ({"started": 2}, 0)
    assert sendings_of(place, "r2") == [(1, True), (2, False), (3, True)]
    assert runs_of(simulator) == once([1, 2])


async def test_a_failed_row_is_sent_again_and_marked(place: Place) -> None:
    place.write(rows(2))

    async with service(place, fault("status", 2, 3, status=500)) as (simulator, des):
        first = await place.launch(des, concurrency=1, max_attempts=2)
        resumed = await place.resume(des)

    assert (counts(first), first.exit_code) == ({"started": 1, "failed": 1}, 3)
    assert (counts(resumed), resumed.possible_duplicates) == ({"started": 2}, 1)
    assert runs_of(simulator) == once([1, 2])


async def test_a_row_that_was_started_after_a_500_is_marked(place: Place) -> None:
    place.write(rows(3))

    async with service(place, fault("status", 2, status=500, start=True)) as (simulator, des):
        summary = await place.launch(des)

    assert (counts(summary), summary.possible_duplicates) == ({"started": 3}, 1)
    assert sum(runs_of(simulator).values()) == 4


# Manifests that changed.


async def test_a_started_row_that_says_something_else_is_a_conflict(place: Place) -> None:
    place.write(rows(3))

    async with service(place) as (simulator, des):
        await place.launch(des)
        place.write([row(1), row(2, parameters={"DBGenFrom": 77}), row(3)])

        with pytest.raises(ManifestConflict, match="said something else") as refused:
            await place.resume(des, accept_new_rows=True)

    assert refused.value.changed == ("r2",)
    assert simulator.requests == 3
    assert place.is_free()


async def test_a_manifest_that_changes_while_a_resume_validates_it(place: Place) -> None:
    text = wide(range(1, 801))
    place.manifest.write_text(text)

    class Source:
        async def fetch(self) -> str:
            edited = text.replace('"DBGenFrom": 700', '"DBGenFrom": 999')
            await asyncio.to_thread(place.manifest.write_text, edited)
            return TOKEN

    async with (
        service(place, fault("redirect", 1)) as (simulator, des),
        DesClient(simulator.base_url, token=Source()) as late,
    ):
        await place.launch(des)

        with pytest.raises(ManifestChanged, match="while it was validated"):
            await place.resume(late, schema_max_age=0)

    assert simulator.requests == 1
    assert place.is_free()


async def test_new_rows_are_a_conflict_while_started_ones_are_gone(place: Place) -> None:
    place.write(rows(3))

    async with service(place) as (simulator, des):
        await place.launch(des)
        place.write([row(1), row(3), row(4)])

        with pytest.raises(ManifestConflict) as refused:
            await place.resume(des)

        assert (refused.value.gone, refused.value.new) == (("r2",), ("r4",))
        assert simulator.requests == 3
        accepted = await place.resume(des, accept_new_rows=True)
        plain = await place.resume(des)

    assert counts(accepted) == counts(plain) == {"started": 4}
    assert runs_of(simulator) == once([1, 2, 3, 4])


async def test_new_rows_alone_are_started(place: Place) -> None:
    place.write(rows(3))

    async with service(place) as (simulator, des):
        await place.launch(des)
        place.write(rows(5))
        summary = await place.resume(des)

    assert counts(summary) == {"started": 5}
    assert runs_of(simulator) == once(range(1, 6))


MIXED: Final[Said] = {
    "faults": [
        {"fault": "status", "status": 500, "match": {"text": '"valueStringEncoded":"3"'}},
        {"fault": "close-after-start", "match": {"text": '"valueStringEncoded":"4"'}},
    ]
}
MIXED_ROWS: Final = [row(1), refused_row(2), row(3), row(4), invalid_row(5)]


async def test_superseded_rows_leave_the_counts_and_unknown_ones_never(place: Place) -> None:
    place.write(MIXED_ROWS)

    async with service(place, MIXED) as (simulator, des):
        first = await place.launch(des, skip_invalid=True, max_attempts=1)
        place.write([row(1)])
        shrunk = await place.resume(des)
        place.write(MIXED_ROWS)
        whole = await place.resume(des, max_attempts=1)
        place.write([row(1)])
        shrunk_again = await place.resume(des)

    everything = {"started": 1, "rejected": 1, "failed": 1, "unknown": 1, "invalid": 1}
    assert counts(first) == counts(whole) == everything
    assert counts(shrunk) == counts(shrunk_again) == {"started": 1, "unknown": 1}
    assert (first.exit_code, shrunk.exit_code) == (4, 4)
    assert runs_of(simulator) == once([1, 4])


async def test_a_kill_before_the_session_record_loses_no_membership(place: Place) -> None:
    place.write(MIXED_ROWS)

    async with service(place, MIXED) as (_, des):
        await place.launch(des, skip_invalid=True, max_attempts=1)
        before = place.ledger.read_bytes()
        place.write([row(1)])
        expected = counts(await place.resume(des))
        after = place.ledger.read_bytes()
        ends = [at + 1 for at, byte in enumerate(after) if byte == ord("\n") and at >= len(before)]
        assert len(ends) >= 5

        for end in ends:
            place.ledger.write_bytes(after[:end])
            assert counts(await place.resume(des)) == expected


# Options and origins.


@pytest.mark.parametrize(
    ("options", "named"),
    [
        pytest.param({"skip_invalid": True}, "--skip-invalid", id="skip invalid"),
        pytest.param({"allow_duplicates": True}, "--allow-duplicates", id="duplicates"),
        pytest.param({"allow_repeated_auto": True}, "--allow-repeated-auto", id="repeated auto"),
        pytest.param({"format": "csv"}, "--format", id="format"),
        pytest.param({"job_id": JOB}, "--job-id", id="job"),
        pytest.param({"target": "elsewhere"}, "--target", id="target"),
        pytest.param({"shard": "1/2"}, "--shard", id="shard"),
    ],
)
async def test_an_option_that_belongs_to_the_batch_may_not_differ(
    place: Place, options: LaunchOptions, named: str
) -> None:
    place.write(rows(2))

    async with service(place) as (simulator, des):
        await place.launch(des)

        with pytest.raises(ConfigurationError, match=named):
            await place.resume(des, **options)

    assert simulator.requests == 2
    assert place.is_free()


async def test_a_resume_takes_the_batchs_options_from_the_ledger(place: Place) -> None:
    said = {"parameters": {"DBGenFrom": 5}}
    place.write([said, said, {"parameters": {}}])
    options: LaunchOptions = {
        "concurrency": 1,
        "job_id": JOB,
        "target": "acme",
        "allow_duplicates": True,
        "skip_invalid": True,
    }

    async with service(place, fault("redirect", 2)) as (simulator, des):
        first = await place.launch(des, **options)
        second = await place.resume(des)
        third = await place.resume({"acme": des}, **options)

    assert counts(first) == {"started": 1, "invalid": 1, "pending": 1}
    assert counts(second) == counts(third) == {"started": 2, "invalid": 1}
    assert runs_of(simulator) == Counter({5: 2})
    assert place.records("sending")[0]["target"] == "acme"


async def test_another_origin_is_refused_unless_it_is_allowed(place: Place) -> None:
    place.write(rows(3))

    async with service(place, fault("redirect", 2)) as (_, des):
        await place.launch(des, concurrency=1)

    place.log.unlink()

    async with service(place) as (simulator, des):
        with pytest.raises(ConfigurationError, match="in the last session") as refused:
            await place.resume(des)

        assert f"--base-url {simulator.base_url}" in refused.value.hint
        assert simulator.requests == 0
        moved = await place.resume(des, allow_new_origin=True)
        again = await place.resume(des)

    assert counts(moved) == counts(again) == {"started": 3}
    assert runs_of(simulator) == once([2, 3])


async def test_a_manifest_that_moved_is_resumed_where_it_is_now(place: Place) -> None:
    place.write(rows(3))
    moved = place.folder / "moved.jsonl"

    async with service(place, fault("redirect", 2)) as (simulator, des):
        await place.launch(des, concurrency=1)
        place.manifest.rename(moved)

        with pytest.raises(ManifestError, match="can't be read"):
            await place.resume(des)

        await place.resume(des, manifest=moved)
        summary = await place.resume(des)

    assert counts(summary) == {"started": 3}
    assert runs_of(simulator) == once([1, 2, 3])


async def test_a_resume_without_a_ledger(place: Place) -> None:
    async with service(place) as (_, des):
        with pytest.raises(LedgerError, match="no such ledger"):
            await place.resume(des)

    assert not place.ledger.exists()


# A manifest that changes under the launch.


def wide(numbers: range) -> str:
    """Return rows of 1,024 bytes: 256 of them fill a block of the manifest."""
    lines = (json.dumps(row(number)) for number in numbers)
    return "".join(f"{line:<1023}\n" for line in lines)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda text: text.replace('"DBGenFrom": 700', '"DBGenFrom": 999'), id="edit"),
        pytest.param(lambda text: text[: -100 * 1024], id="cut"),
        pytest.param(lambda text: text + wide(range(801, 810)), id="grown"),
    ],
)
async def test_nothing_of_a_block_that_changed_is_sent(
    place: Place, change: Callable[[str], str]
) -> None:
    text = wide(range(1, 801))
    place.manifest.write_text(text)

    async with service(place, fault("hold", 1)) as (simulator, des):
        launching = asyncio.create_task(place.launch(des, concurrency=32))
        await simulator.until(lambda: simulator.in_flight == 1)
        place.manifest.write_text(change(text))
        simulator.release()
        summary = await launching

    started = runs_of(simulator)
    assert set(started.values()) == {1}
    assert set(started) <= set(range(1, 801 if change(text) > text else 513))
    assert reasons(summary) == [StopReason.MANIFEST_CHANGED]
    assert summary.exit_code == 5
    assert summary.started == len(started) == 800 - summary.pending
    assert place.agrees(simulator)


# Answers that are none.


LOST: Final = [
    pytest.param("close", "broke off", False, id="closed before the start"),
    pytest.param("close-after-start", "broke off", True, id="closed after the start"),
    pytest.param("reset", "broke off", False, id="reset"),
    pytest.param("reset-after-start", "broke off", True, id="reset after the start"),
    pytest.param("hang", "in time", False, id="never an answer"),
    pytest.param("hang-after-start", "in time", True, id="never an answer after the start"),
    pytest.param("stall-body", "StartJobResponse|cut off|200", True, id="body stalls"),
    pytest.param("cut-head", "broke off|no HTTP", True, id="cut head"),
    pytest.param("cut-body", "200", True, id="cut body"),
    pytest.param("garbage", "no HTTP|broke off", True, id="garbage"),
    pytest.param("not-json", "no StartJobResponse", True, id="not JSON"),
    pytest.param("no-id", "no StartJobResponse", True, id="no id"),
    pytest.param("other-job", "names another job", True, id="other job"),
    pytest.param("huge-body", "200", True, id="huge body"),
]


@pytest.mark.parametrize(("kind", "cause", "served"), LOST)
async def test_a_start_without_a_usable_answer_is_unknown_and_not_sent_again(
    place: Place, kind: str, cause: str, served: bool
) -> None:
    place.write(rows(3))

    async with service(place, fault(kind, 2), timeout=0.5) as (simulator, des):
        summary = await place.launch(des, concurrency=1)
        again = await place.resume(des)

    assert counts(summary) == counts(again) == {"started": 2, "unknown": 1}
    assert (summary.exit_code, again.exit_code) == (4, 4)
    assert simulator.requests == 3
    assert runs_of(simulator) == once([1, 2, 3] if served else [1, 3])
    [record] = place.records("unknown")
    assert record["key"] == "r2"
    assert any(text in record["cause"] for text in cause.split("|"))
    assert await states_of(place) == {"r1": "started", "r2": "unknown", "r3": "started"}


@pytest.mark.parametrize(
    ("status", "retry_5xx", "expected"),
    [
        pytest.param(504, None, {"started": 2, "unknown": 1}, id="504"),
        pytest.param(504, "all", {"started": 3}, id="504 retried"),
        pytest.param(500, "none", {"started": 2, "unknown": 1}, id="500 held"),
        pytest.param(408, "all", {"started": 2, "unknown": 1}, id="408"),
        pytest.param(404, None, {"started": 2, "rejected": 1}, id="404"),
    ],
)
async def test_statuses_by_option(
    place: Place, status: int, retry_5xx: Literal["all", "none"] | None, expected: dict[str, int]
) -> None:
    place.write(rows(3))

    async with service(place, fault("status", 2, status=status)) as (_, des):
        summary = await place.launch(des, concurrency=1, retry_5xx=retry_5xx)

    assert counts(summary) == expected


# A ledger that can't be written.


class FailingDisk:
    """A disk whose n-th write, or sync, fails; it remembers what is safely on it."""

    def __init__(self, call: str = "write", number: int = -1) -> None:
        self.left = {"write": -1, "sync": -1, call: number}
        self.data = b""
        self.durable = 0

    def write(self, fd: int, data: bytes | memoryview) -> int:
        self._count("write")
        self.data += data
        return os.write(fd, data)

    def sync(self, fd: int) -> None:
        self._count("sync")
        os.fdatasync(fd)
        self.durable = len(self.data)

    def _count(self, call: str) -> None:
        self.left[call] -= 1

        if self.left[call] == 0:
            raise OSError(28, "No space left on device")


def begin(
    place: Place,
    des: DesClient,
    disk: FailingDisk,
    *,
    on_event: Callable[[Event], None] | None = None,
    **options: Unpack[LaunchOptions],
) -> Coroutine[Any, Any, Summary]:
    """Launch onto a disk of the test's own."""
    task = launcher._Task(des, None, place.cache, on_event, Interrupt(), quick(options), disk=disk)
    return launcher._begin(place.ledger, place.manifest, task)


def keys_in(data: bytes) -> list[str]:
    """Return the keys whose final outcome is in a ledger's bytes, in its order."""
    found = (json.loads(line) for line in data.splitlines())
    return [one["key"] for one in found if one["record"] in {"started", "rejected", "invalid"}]


def started_in(data: bytes) -> set[str]:
    found = (json.loads(line) for line in data.splitlines())
    return {record["jobRunId"] for record in found if record["record"] == "started"}


class SlowDisk(FailingDisk):
    """A disk that takes longer than the reading of a few rows."""

    def write(self, fd: int, data: bytes | memoryview) -> int:
        time.sleep(0.05)  # in the ledger's thread
        return super().write(fd, data)


async def test_a_slow_disk_loses_no_invalid_row_of_another_manifest(place: Place) -> None:
    place.write([row(1), {"no": "row"}])

    async with service(place) as (_, des):
        await place.launch(des, skip_invalid=True)
        place.write([row(1), {"still": "none"}])
        task = launcher._Task(des, None, place.cache, None, Interrupt(), quick({}), SlowDisk())
        summary = await launcher._resume(place.ledger, None, task)

    assert counts(summary) == {"started": 1, "invalid": 1}


@pytest.mark.parametrize("number", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("call", ["write", "sync"])
async def test_runs_that_could_not_be_recorded_are_named(
    place: Place, call: str, number: int
) -> None:
    place.write(rows(30))
    disk = FailingDisk(call, number)

    async with service(place) as (simulator, des):
        with pytest.raises(LedgerWriteFailed, match="No space left") as failed:
            await begin(place, des, disk, concurrency=3)

        logged = {
            run.job_run_id: f"r{run.parameters['DBGenFrom']['valueStringEncoded']}"
            for run in simulator.runs
        }
        lost = logged.keys() - started_in(place.ledger.read_bytes()[: disk.durable])
        assert dict(failed.value.unrecorded) == {logged[run]: run for run in lost}
        assert place.is_free()

        if number > 1:
            place.ledger.write_bytes(place.ledger.read_bytes()[: disk.durable])
            sent = len(simulator.runs)
            resumed = await place.resume(des)
            assert resumed.started + resumed.unknown == resumed.rows == 30
            assert resumed.unknown >= len(lost)
            assert len(simulator.runs) == sent + 30 - resumed.unknown - (sent - len(lost))

    assert set(runs_of(simulator).values()) <= {1}


async def test_a_disk_that_fails_at_the_very_end_is_told(place: Place) -> None:
    place.write([])

    async with service(place) as (_, des):
        with pytest.raises(LedgerWriteFailed) as failed:
            await begin(place, des, FailingDisk("sync", 1))

    assert failed.value.unrecorded == ()


# Cancellation.


@pytest.mark.parametrize("run", RUNNERS)
def test_a_cancelled_task_drains_and_leaves_the_rest_pending(tmp_path: Path, run: Runner) -> None:
    place = Place(tmp_path)
    place.write(rows(20))

    async def main() -> None:
        async with service(place, HELD) as (simulator, des):
            launching = asyncio.create_task(place.launch(des))
            await simulator.until(lambda: simulator.in_flight == 4)
            launching.cancel()
            await asyncio.sleep(0)
            simulator.release()

            with pytest.raises(asyncio.CancelledError):
                await launching

            assert runs_of(simulator) == once(range(1, 6))
            assert place.agrees(simulator)
            assert place.is_free()
            assert place.records()[-1]["pending"] == 15
            resumed = await place.resume(des)
            assert counts(resumed) == {"started": 20}
            assert runs_of(simulator) == once(range(1, 21))

    run(main)


@pytest.mark.parametrize("run", RUNNERS)
def test_a_cancelled_scope_drains_and_leaves_the_rest_pending(tmp_path: Path, run: Runner) -> None:
    place = Place(tmp_path)
    place.write(rows(20))

    async def main() -> None:
        async with service(place, HELD) as (simulator, des):
            async with anyio.create_task_group() as group:
                group.start_soon(place.launch, des)
                await simulator.until(lambda: simulator.in_flight == 4)
                group.cancel_scope.cancel()
                simulator.release()

            assert runs_of(simulator) == once(range(1, 6))
            assert place.agrees(simulator)
            assert place.is_free()
            assert place.records()[-1]["pending"] == 15

    run(main)


@pytest.mark.parametrize("run", RUNNERS)
def test_a_second_cancellation_gives_up_what_is_in_flight(tmp_path: Path, run: Runner) -> None:
    place = Place(tmp_path)
    place.write(rows(20))

    async def main() -> None:
        async with service(place, HELD) as (simulator, des):
            launching = asyncio.create_task(place.launch(des))
            await simulator.until(lambda: simulator.in_flight == 4)
            launching.cancel()
            await asyncio.sleep(0)
            launching.cancel()

            with pytest.raises(asyncio.CancelledError):
                await launching

            assert place.is_free()
            assert place.records()[-1]["unknown"] == 4
            assert len(place.records("unknown")) == 4
            sent = simulator.requests
            simulator.release()
            resumed = await place.resume(des)
            assert counts(resumed) == {"started": 16, "unknown": 4}
            assert simulator.requests == sent + 15
            assert runs_of(simulator) == once(range(1, 21))

    run(main)


async def test_a_drain_ends_after_its_time(place: Place) -> None:
    place.write(rows(5))

    async with service(place, HELD) as (simulator, des):
        launching = asyncio.create_task(place.launch(des, drain_timeout=0.1, concurrency=2))
        await simulator.until(lambda: simulator.in_flight == 2)
        launching.cancel()

        with pytest.raises(asyncio.CancelledError):
            await launching

    assert place.records()[-1]["unknown"] == 2
    assert place.records()[-1]["pending"] == 2


async def test_a_cancellation_during_the_validation_leaves_nothing(place: Place) -> None:
    place.write(rows(5))

    asked = asyncio.Event()

    class Source:
        async def fetch(self) -> str:
            asked.set()
            await asyncio.Event().wait()
            return TOKEN

    async with DesClient("http://127.0.0.1:1", token=Source()) as des:
        launching = asyncio.create_task(place.launch(des))
        await asked.wait()
        launching.cancel()

        with pytest.raises(asyncio.CancelledError):
            await launching

    assert not place.ledger.exists()


class CancellingDisk(FailingDisk):
    """A disk whose n-th write cancels the launch."""

    def __init__(self, number: int) -> None:
        super().__init__("write", number)
        self.cancel: Callable[[], object] = int

    def _count(self, call: str) -> None:
        self.left[call] -= 1

        if call == "write" and self.left[call] == 0:
            self.cancel()


@pytest.mark.parametrize("twice", [pytest.param(False, id="once"), pytest.param(True, id="twice")])
@pytest.mark.parametrize("number", range(1, 10))
async def test_a_cancellation_at_any_write_leaves_a_ledger_that_can_be_resumed(
    place: Place, number: int, twice: bool
) -> None:
    place.write(rows(12))
    disk = CancellingDisk(number)
    loop = asyncio.get_running_loop()

    async with service(place) as (simulator, des):
        launching = asyncio.create_task(begin(place, des, disk, concurrency=2))

        def cancel() -> None:
            launching.cancel()

            if twice:
                loop.call_soon(launching.cancel)

        disk.cancel = lambda: loop.call_soon_threadsafe(cancel)

        with pytest.raises(asyncio.CancelledError):
            await launching

        assert place.is_free()
        assert place.records()[-1]["record"] == "end"
        doubtful = place.records()[-1]["unknown"]
        resumed = await place.resume(des)

    assert doubtful <= (2 if twice else 0)
    assert resumed.started == 12 - doubtful
    assert set(runs_of(simulator).values()) == {1}


@pytest.mark.parametrize("steps", range(0, 80, 5))
async def test_a_cancellation_before_the_first_start_leaves_nothing_in_the_way(
    place: Place, steps: int
) -> None:
    place.write(rows(3))

    async with service(place) as (simulator, des):
        launching = asyncio.create_task(place.launch(des, schema=place.schema))

        for _ in range(steps):
            await asyncio.sleep(0)

        launching.cancel()

        with pytest.raises(asyncio.CancelledError):
            await launching

        summary = await place.launch(des, resume=True)

    assert counts(summary) == {"started": 3}
    assert runs_of(simulator) == once([1, 2, 3])


# Interrupts.


async def test_an_interrupt_before_anything_was_sent_ends_a_launch(place: Place) -> None:
    place.write(rows(3))
    interrupt = Interrupt()
    interrupt(15)
    interrupt(2)

    async with service(place) as (simulator, des):
        with pytest.raises(Interrupted) as ended:
            await place.launch(des, interrupt=interrupt)

    assert ended.value.signum == 15
    assert simulator.requests == 0
    assert not place.ledger.exists()


async def test_an_interrupt_before_anything_was_sent_ends_a_resume(place: Place) -> None:
    place.write(rows(3))
    interrupt = Interrupt()
    interrupt(2)

    async with service(place, fault("redirect", 1)) as (simulator, des):
        await place.launch(des)
        before = place.ledger.read_bytes()

        with pytest.raises(Interrupted):
            await place.resume(des, interrupt=interrupt)

    assert simulator.requests == 1
    assert place.ledger.read_bytes() == before
    assert place.is_free()


async def test_an_interrupt_ends_a_check(place: Place) -> None:
    place.write(rows(3))
    interrupt = Interrupt()
    interrupt()

    with pytest.raises(Interrupted):
        await launcher.check(place.manifest, schema=place.schema, interrupt=interrupt)


async def test_an_interrupt_in_the_last_rows_of_the_validation_sends_nothing(place: Place) -> None:
    place.write(rows(3))
    interrupt = Interrupt()

    class Source:
        async def fetch(self) -> str:
            interrupt(2)  # the first rows are read, and wait for their schema
            return TOKEN

    async with (
        service(place) as (simulator, _),
        DesClient(simulator.base_url, token=Source()) as des,
    ):
        with pytest.raises(Interrupted):
            await place.launch(des, interrupt=interrupt)

    assert simulator.requests == 0
    assert not place.ledger.exists()


@pytest.mark.parametrize(
    ("signum", "exit_code"),
    [
        pytest.param(2, 130, id="SIGINT"),
        pytest.param(15, 143, id="SIGTERM"),
        pytest.param(0, 130, id="no signal"),
    ],
)
async def test_an_interrupt_drains(place: Place, signum: int, exit_code: int) -> None:
    place.write(rows(20))
    interrupt = Interrupt()

    async with service(place, HELD) as (simulator, des):
        launching = asyncio.create_task(place.launch(des, interrupt=interrupt))
        await simulator.until(lambda: simulator.in_flight == 4)
        interrupt(signum)
        simulator.release()
        summary = await launching

    assert counts(summary) == {"started": 5, "pending": 15}
    assert [(stop.reason, stop.signal) for stop in summary.stops] == [
        (StopReason.INTERRUPTED, signum)
    ]
    assert summary.exit_code == exit_code
    assert runs_of(simulator) == once(range(1, 6))
    assert place.agrees(simulator)


async def test_an_interrupt_that_leaves_nothing_pending_is_none(place: Place) -> None:
    place.write(rows(5))
    interrupt = Interrupt()

    async with service(place, HELD) as (simulator, des):
        launching = asyncio.create_task(place.launch(des, interrupt=interrupt))
        await simulator.until(lambda: simulator.in_flight == 4)
        interrupt(2)
        simulator.release()
        summary = await launching

    assert (counts(summary), summary.exit_code) == ({"started": 5}, 0)


async def test_a_second_interrupt_gives_up_what_is_in_flight(place: Place) -> None:
    place.write(rows(20))
    interrupt = Interrupt()

    async with service(place, HELD) as (simulator, des):
        launching = asyncio.create_task(place.launch(des, interrupt=interrupt))
        await simulator.until(lambda: simulator.in_flight == 4)
        interrupt(15)
        interrupt(2)
        summary = await launching

    assert counts(summary) == {"started": 1, "unknown": 4, "pending": 15}
    assert summary.exit_code == 143


# Events.


async def test_events_tell_what_happens_in_order(place: Place) -> None:
    place.write(rows(4))
    heard: list[Event] = []
    script = {
        "faults": [
            {"fault": "status", "status": 500, "at": [2]},
            {"fault": "status", "status": 429, "at": [3]},
            {"fault": "redirect", "at": [6]},
        ]
    }

    async with service(place, script) as (_, des):
        summary = await place.launch(des, on_event=heard.append, concurrency=1)

    kinds = [type(event) for event in heard]
    ended = [event.outcome for event in heard if isinstance(event, RowEnded)]
    assert kinds[:2] == [Planned, RowEnded]
    assert kinds.index(RetryPlanned) < kinds.index(TargetPaused) < kinds.index(Stopped)
    assert kinds[-2:] == [Stopped, Draining]
    assert [outcome.state for outcome in ended] == [RowState.STARTED] * summary.started
    assert {outcome.key: outcome.job_run_id for outcome in ended} == place.started()
    assert heard[-2] == Stopped(summary.stops[0])


async def test_an_outcome_is_on_disk_when_its_event_comes(place: Place) -> None:
    place.write([*rows(6), refused_row(7), invalid_row(8)])
    disk = FailingDisk()
    heard: list[str | None] = []

    def listen(event: Event) -> None:
        if isinstance(event, RowEnded):
            heard.append(event.outcome.key)
            assert keys_in(disk.data[: disk.durable])[: len(heard)] == heard

    async with service(place) as (_, des):
        await begin(place, des, disk, on_event=listen, skip_invalid=True)

    assert set(heard) == {f"r{number}" for number in range(1, 9)}


@pytest.mark.parametrize(
    ("said", "state"),
    [
        pytest.param(rows(20), RowState.STARTED, id="a started row"),
        pytest.param([invalid_row(1), *rows(20)[1:]], RowState.INVALID, id="an invalid row"),
        pytest.param([*rows(3), invalid_row(4)], RowState.INVALID, id="invalid at the end"),
    ],
)
async def test_a_listeners_error_ends_the_launch_and_nothing_is_lost(
    place: Place, said: list[Said], state: RowState
) -> None:
    place.write(said)

    def listen(event: Event) -> None:
        if isinstance(event, RowEnded) and event.outcome.state is state:
            raise ZeroDivisionError

    async with service(place) as (simulator, des):
        with pytest.raises(ZeroDivisionError):
            await place.launch(des, on_event=listen, skip_invalid=True)

        assert place.agrees(simulator)
        assert place.is_free()
        assert place.records()[-1]["record"] == "end"
        assert simulator.requests <= 4 + 1
        resumed = await place.resume(des)

    assert resumed.started == len(said) - resumed.invalid
    assert resumed.pending == 0
    assert set(runs_of(simulator).values()) == {1}


# Two targets.


async def test_targets_fail_apart(place: Place, tmp_path: Path) -> None:
    other = Place(tmp_path / "other")
    other.folder.mkdir()
    place.write([row(n, target="a" if n % 2 else "b") for n in range(1, 9)])

    async with service(place) as (one, a), service(other, fault("redirect", 2)) as (two, b):
        stopped = await place.launch({"a": a, "b": b})
        assert runs_of(one) == once([1, 3, 5, 7])
        assert stopped.pending == 4 - len(two.runs) > 0
        resumed = await place.resume({"a": a, "b": b})

    assert [stop.target for stop in stopped.stops] == ["b"]
    assert counts(resumed) == {"started": 8}
    assert runs_of(one) == once([1, 3, 5, 7])
    assert runs_of(two) == once([2, 4, 6, 8])


# Secrets.


async def test_the_token_is_nowhere(place: Place) -> None:
    place.write(rows(4))
    script = {
        "faults": [
            {"fault": "status", "status": 400, "body": f"no {TOKEN}", "at": [2]},
            {"fault": "not-json", "body": f"<p>{TOKEN}</p>", "at": [3]},
            {"fault": "status", "status": 401, "body": f"bad {TOKEN}", "at": [4]},
        ]
    }
    heard: list[Event] = []

    async with service(place, script) as (_, des):
        summary = await place.launch(des, on_event=heard.append, concurrency=1)

        with pytest.raises(LedgerExists) as refused:
            await place.launch(des)

    assert counts(summary) == {"started": 1, "rejected": 1, "unknown": 1, "pending": 1}
    told = [summary, heard, refused.value, refused.value.hint, des]
    assert TOKEN not in repr(told)
    files = [path for path in place.folder.rglob("*") if path.is_file() and path != place.log]
    assert {path.suffix for path in files} == {".json", ".jsonl"}
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []


async def test_the_token_is_in_no_error_of_a_query(place: Place) -> None:
    place.write(rows(1))

    async with service(place, fault("status", status=400, on="queryjobs", body=f"no {TOKEN}")) as (
        _,
        des,
    ):
        with pytest.raises(DesError) as refused:
            await place.launch(des)

    assert TOKEN not in f"{refused.value!r} {refused.value.answer} {refused.value.__cause__!r}"


# Rows of a stream.


def test_rows_of_a_stream_are_kept_beside_their_ledger(place: Place) -> None:
    place.manifest.write_bytes(b"x" * 100_000)

    with place.manifest.open("rb") as stream, kept_rows(stream, place.ledger) as kept:
        assert kept == kept_manifest(place.ledger)
        assert kept.read_bytes() == b"x" * 100_000
        assert kept.stat().st_mode & 0o777 == 0o600


def test_rows_that_are_kept_are_not_replaced_by_another_launchers(place: Place) -> None:
    """Between its validation and its first record a batch has no ledger that tells of it."""
    place.write(rows(2))
    others = io.BytesIO(b"others")

    with place.manifest.open("rb") as stream, kept_rows(stream, place.ledger) as kept:
        with pytest.raises(LedgerLocked), kept_rows(others, place.ledger):
            raise AssertionError

        assert kept.read_bytes() == place.manifest.read_bytes()

    with kept_rows(others, place.ledger) as kept:
        assert kept.read_bytes() == b"others"


async def test_the_kept_rows_of_a_batch_are_not_replaced(place: Place) -> None:
    place.write(rows(1))

    async with service(place) as (_, des):
        await place.launch(des)

    assert await asyncio.to_thread(_keep, place, resume=False) is LedgerExists
    assert await asyncio.to_thread(_keep, place, resume=True) is None


def _keep(place: Place, *, resume: bool) -> type[LedgerError] | None:
    try:
        with (
            place.manifest.open("rb") as stream,
            kept_rows(stream, place.ledger, resume=resume) as kept,
        ):
            assert not kept.exists()
    except LedgerError as exc:
        return type(exc)

    return None


def test_rows_that_can_not_be_kept(place: Place) -> None:
    place.write(rows(1))

    ledger = place.folder / "nowhere" / "ledger.jsonl"

    with (
        place.manifest.open("rb") as stream,
        pytest.raises(LedgerError) as failed,
        kept_rows(stream, ledger),
    ):
        raise AssertionError

    assert type(failed.value) is LedgerError
