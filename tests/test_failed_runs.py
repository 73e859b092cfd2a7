"""A run that failed is repeated only where a person wants it, and never silently doubled."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from judge import read_log, row_of
from ledgers import Hands, begin, checked, crash, make, outcome, read, run_id, send, session
from stage import fault, workplace

from deslaunch.ledger.changes import Finding
from deslaunch.ledger.ledger import take_ledger
from deslaunch.ledger.reading import Consents
from deslaunch.model import RunStatus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from deslaunch.ledger.ledger import Ledger
    from deslaunch.model import Outcome, Start

RUNS = Consents(failed_runs=True)


@pytest.fixture
def hands() -> Hands:
    return Hands()


def told(number: int, *, success: bool, finished: bool = True) -> RunStatus:
    return RunStatus("", run_id(number), finished, success, "no such shop")


@pytest.fixture
async def ended(batch_place: str, hands: Hands) -> str:
    """A batch whose session has ended: runs that failed, succeeded and go on."""
    keys = ("failed", "fine", "going", "auto", "double")
    rows = [checked(n, key, auto=key == "auto") for n, key in enumerate(keys, 1)]

    async with await make(batch_place, rows, hands) as made:
        await made.begin_session(session())
        await send(made, "started", "started", "started", "started", "retry")
        await send(made, "started")
        runs = [(1, 1, told(101, success=False)), (2, 1, told(201, success=True))]
        runs += [(3, 1, told(301, success=False, finished=False)), (4, 1, told(401, success=False))]
        await made.record_runs([*runs, (5, 2, told(502, success=False))])
        await made.end_session(0, [])

    return batch_place


@pytest.fixture
async def ledger(ended: str, hands: Hands) -> AsyncIterator[Ledger]:
    """The next session, which is to repeat runs that failed."""
    async with await begin(ended, hands, retry_failed_runs=True) as made:
        yield made


async def claim(ledger: Ledger) -> Start:
    [start] = (await ledger.exchange([], {"default": 9})).starts
    return start


async def end(ledger: Ledger, start: Start, result: str) -> Outcome:
    return (await ledger.exchange([outcome(start, result)], {"default": 0})).outcomes[0]


async def row(ledger: Ledger, key: str = "failed") -> tuple[str, str | None, int, int]:
    [found] = await read(ledger, keys=[key])
    return found.state, found.job_run_id, found.attempts, found.possible_duplicate


async def test_without_consent_nothing_is_repeated(ended: str, hands: Hands) -> None:
    async with await begin(ended, hands) as ledger:
        assert (await ledger.exchange([], {"default": 9})).due == {"default": None}


async def test_the_run_that_failed_is_repeated_and_no_other(ledger: Ledger) -> None:
    assert (await ledger.plan(RUNS)).ready == 1
    [[sendable]] = [portion async for portion in ledger.sendable(RUNS)]
    assert (sendable.key, sendable.attempt) == ("failed", 2)

    start = await claim(ledger)
    assert (start.key, start.attempt) == ("failed", 2)
    assert (await row(ledger))[0] == "sending"

    told = await end(ledger, start, "started")
    assert (told.state, told.possible_duplicate) == ("started", False)
    assert await row(ledger) == ("started", run_id(102), 2, 0)
    assert (await ledger.plan(RUNS)).ready == 0, "the new run has not failed"


@pytest.mark.parametrize("results", [("rejected",), ("failed",), ("retry", "retry", "failed")])
async def test_one_that_fails_changes_nothing_but_the_attempts(
    ledger: Ledger, results: tuple[str, ...], ended: str, hands: Hands
) -> None:
    for result in results:
        await end(ledger, await claim(ledger), result)

    last = 1 + len(results)
    assert await row(ledger) == ("started", run_id(101), last, 0)
    assert (await ledger.exchange([], {"default": 9})).starts == []
    await crash(ledger)

    async with await begin(ended, hands) as again:
        assert (await again.exchange([], {"default": 9})).starts == []

    async with await begin(ended, hands, retry_failed_runs=True) as again:
        assert (await claim(again)).attempt == last + 1


async def test_one_in_doubt_makes_it_unknown(ledger: Ledger) -> None:
    await end(ledger, await claim(ledger), "unknown")

    assert (await row(ledger))[:1] == ("unknown",)


@pytest.mark.parametrize("number", [102, 999])
async def test_what_a_person_found_of_one_in_doubt_counts(ledger: Ledger, number: int) -> None:
    await end(ledger, await claim(ledger), "unknown")
    await ledger.resolve([Finding("failed", "started", run_id(number))], early=True)

    assert (await row(ledger))[:2] == ("started", run_id(number))


async def test_a_run_that_a_person_found_stays_when_its_repetition_did_not_start(
    batch_place: str, hands: Hands
) -> None:
    async with await make(batch_place, 1, hands) as made:
        await made.begin_session(session())
        await send(made, "failed")
        await made.resolve([Finding("k1", "started", run_id(101))], early=True)
        await made.record_runs([(1, 1, told(101, success=False))])
        await made.end_session(0, [])

    async with await begin(batch_place, hands, retry_failed_runs=True) as ledger:
        await end(ledger, await claim(ledger), "unknown")
        await ledger.resolve([Finding("k1", "notStarted")], early=True)
        assert await row(ledger, "k1") == ("started", run_id(101), 2, 0)


async def test_in_an_older_copy_nothing_is_repeated_and_all_is_marked(
    ended: str, hands: Hands
) -> None:
    async with await take_ledger(ended, clock=hands.clock) as copied:
        await copied.accept_copy()
        await copied.begin_session(session(retry_failed_runs=True))
        assert (await copied.exchange([], {"default": 9})).starts == []
        assert (await row(copied))[3] == 1


async def test_in_an_older_copy_a_rejected_row_may_have_been_sent_too(
    batch_place: str, hands: Hands
) -> None:
    async with await make(batch_place, 2, hands) as made:
        await made.begin_session(session())
        await send(made, "rejected")
        await made.end_session(0, [])

    async with await take_ledger(batch_place, clock=hands.clock) as copied:
        await copied.accept_copy()
        await copied.begin_session(session(retry_rejected=True))
        await send(copied, "started", "started")
        assert [one.possible_duplicate for one in await read(copied)] == [1, 1]


async def test_a_kill_in_flight_leaves_it_unknown(ledger: Ledger, ended: str, hands: Hands) -> None:
    await claim(ledger)
    await crash(ledger)

    async with await begin(ended, hands) as again:
        assert (await row(again))[0] == "unknown"


@pytest.mark.parametrize("result", ["retry", "throttled", "unsent"])
async def test_one_that_is_to_be_sent_again_is(ledger: Ledger, result: str) -> None:
    await end(ledger, await claim(ledger), result)
    assert (await row(ledger))[:2] == ("started", run_id(101))

    start = await claim(ledger)
    assert start.attempt == 3
    await end(ledger, start, "started")
    assert (await row(ledger))[:2] == ("started", run_id(103))


async def test_a_wait_ends_with_its_session(ledger: Ledger, ended: str, hands: Hands) -> None:
    await end(ledger, await claim(ledger), "throttled")
    await crash(ledger)

    async with await begin(ended, hands) as again:
        assert (await again.exchange([], {"default": 9})).starts == []


async def test_a_5xx_before_the_new_run_is_a_possible_duplicate(ledger: Ledger) -> None:
    await end(ledger, await claim(ledger), "retry")
    await end(ledger, await claim(ledger), "started")

    assert await row(ledger) == ("started", run_id(103), 3, 1)


def test_the_command_repeats_what_the_watch_has_told(tmp_path: Path) -> None:
    script = {"finishAfter": 0.05, **fault("fail-run", 2, error="no such shop")}

    with workplace(tmp_path, script) as place:
        place.manifest(3)
        quick = ("--yes", "--watch", "--interval", "0.05")
        assert place.run("run", "night.jsonl", *quick).returncode == 3
        assert place.json("status", "night.ledger.db")["started"] == 3
        failed = read_log(place.log)[1]["jobRunId"]
        assert f"run {failed}, failed, sent" in place.run("find", failed).stdout

        done = place.run("resume", "night.ledger.db", "--retry-failed-runs", *quick)
        assert done.returncode == 0
        assert len(place.simulator.runs) == 4
        row, new = f"row-{row_of(read_log(place.log)[1])}", read_log(place.log)[3]["jobRunId"]
        found = place.run("find", failed).stdout
        assert found.startswith(f"{row}: started, run {new}, succeeded, sent ")
        assert f"(an earlier run of it: {failed})" in found
        assert "earlier" not in place.run("find", row).stdout + place.run("find", new).stdout
        again = place.run("resume", "night.ledger.db", "--retry-failed-runs", *quick)
        assert (again.returncode, len(place.simulator.runs)) == (0, 4)


def test_repeats_that_a_launch_leaves_are_told_and_stand_in_its_exit_code(tmp_path: Path) -> None:
    with workplace(tmp_path, {"finishAfter": 0.05, **fault("fail-run", 1, 2, 3)}) as place:
        place.manifest(3)
        assert place.run("run", "night.jsonl", "--watch", "--interval", "0.05").returncode == 3
        some = place.run("resume", "night.ledger.db", "--retry-failed-runs", "--limit", "1")

        assert (some.returncode, len(place.simulator.runs)) == (5, 4)
        assert "2 failed runs not repeated yet" in some.stderr
        command = "deslaunch resume night.ledger.db --retry-failed-runs"
        assert some.stderr.endswith(f"repeat the other failed runs: {command}\n")
        assert place.json("status", "night.ledger.db")["exitCode"] == 0, "each row is started"
        assert place.run("resume", "night.ledger.db", "--retry-failed-runs").returncode == 0
        assert len(place.simulator.runs) == 6


def test_a_watch_is_not_held_to_the_rate_of_the_launch(tmp_path: Path) -> None:
    with workplace(tmp_path, {"finishAfter": 0.05}) as place:
        place.manifest(3)
        assert place.run("run", "night.jsonl", "--yes").returncode == 0
        assert place.run("resume", "night.ledger.db", "--rate", "0.01").returncode == 0
        watch = ("watch", "night.ledger.db", "--interval", "0.05")

        assert place.run(*watch, "--watch-timeout", "20").returncode == 0
        assert place.run(*watch, "--rate", "0.01").returncode == 0, "all have ended"


def test_a_watch_tells_of_runs_that_failed_and_of_rows_that_are_pending(tmp_path: Path) -> None:
    with workplace(tmp_path, {"finishAfter": 0.05, **fault("fail-run", 1)}) as place:
        place.manifest(3)
        place.run("run", "night.jsonl", "--limit", "2", "--yes")
        done = place.run("watch", "night.ledger.db", "--interval", "0.05", "--quiet")

        assert done.returncode == 5
        assert done.stderr.startswith("1 row not sent yet (pending), and 1 run failed\n")
