"""A row that a person takes back is not sent, and stands as before once that is undone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from judge import read_log, row_of
from ledgers import Hands, ask, checked, crash, invalid, make, outcome, read, send, session, states

from deslaunch.errors import LedgerError, ManifestError
from deslaunch.ledger.ledger import open_ledger, take_ledger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from stage import Workplace

    from deslaunch.ledger.ledger import Ledger

BEFORE = {
    "failed": "failed",
    "rejected": "rejected",
    "unknown": "unknown",
    "started": "started",
    "wrong": "invalid",
    "first": "pending",
    "second": "pending",
}


@pytest.fixture
def hands() -> Hands:
    return Hands()


@pytest.fixture
async def ledger(batch_place: str, hands: Hands) -> AsyncIterator[Ledger]:
    """One row of each kind, and two that were never sent."""
    keys = ("failed", "rejected", "unknown", "started")
    rows = [checked(n, key) for n, key in enumerate(keys, 1)]
    rows += [invalid(5, "wrong"), checked(6, "first"), checked(7, "second")]  # type: ignore[list-item]

    async with await make(batch_place, rows, hands) as made:
        await made.begin_session(session())
        await send(made, *keys)
        yield made


async def test_rows_without_a_run_are_taken_back(ledger: Ledger) -> None:
    taken = ("failed", "rejected", "wrong", "first")
    done = await ledger.withdraw(taken)

    assert (done.changed, done.same) == (4, 0)
    assert await states(ledger) == BEFORE | dict.fromkeys(taken, "withdrawn")
    counts, _ = await ledger.counts()
    assert (counts.withdrawn, counts.rows) == (4, 7)

    starts = (await ledger.exchange([], {"default": 9})).starts
    assert [start.key for start in starts] == ["second"]


@pytest.mark.parametrize("keys", [("failed", "rejected", "wrong", "first"), None])
async def test_undone_they_stand_as_before(ledger: Ledger, keys: tuple[str, ...] | None) -> None:
    await ledger.withdraw(("failed", "rejected", "wrong", "first"))
    done = await ledger.withdraw(keys, undo=True)

    assert (done.changed, done.same) == (4, 0)
    assert await states(ledger) == BEFORE
    starts = (await ledger.exchange([], {"default": 9})).starts
    assert sorted(start.key for start in starts) == ["first", "second"]


async def test_what_stands_so_already_is_told(ledger: Ledger) -> None:
    await ledger.withdraw(["first"])
    done = await ledger.withdraw(["first", "second", "second"])

    assert (done.changed, done.same) == (1, 1)


async def test_all_that_are_pending_are_taken_back(ledger: Ledger) -> None:
    done = await ledger.withdraw(None)

    assert done.changed == 2
    assert await states(ledger) == BEFORE | dict.fromkeys(("first", "second"), "withdrawn")
    assert (await ledger.exchange([], {"default": 9})).due == {"default": None}


@pytest.mark.parametrize(
    ("key", "undo", "why"),
    [
        ("nobody", False, "'nobody' is no key of the batch"),
        ("started", False, "'started' is started"),
        ("unknown", False, "'unknown' is unknown: resolve it first"),
        ("second", True, "'second' is pending, not withdrawn"),
    ],
)
async def test_all_are_taken_back_or_none(ledger: Ledger, key: str, undo: bool, why: str) -> None:
    if undo:
        await ledger.withdraw(["first"])

    before = await states(ledger)

    with pytest.raises(ManifestError, match=f"no row was changed: {why}"):
        await ledger.withdraw(["first", key], undo=undo)

    assert await states(ledger) == before


async def test_a_row_in_flight_is_refused(ledger: Ledger) -> None:
    [start] = (await ledger.exchange([], {"default": 1})).starts

    with pytest.raises(ManifestError, match="'first' is in flight: wait for its response"):
        await ledger.withdraw(["first"])

    await ledger.exchange([outcome(start, "started")], {})
    assert (await states(ledger))["first"] == "started"


async def test_another_process_may_take_back_beside_a_launcher(
    ledger: Ledger, batch_place: str, hands: Hands
) -> None:
    async with await open_ledger(batch_place, clock=hands.clock) as other:
        await other.withdraw(["first"])

    starts = (await ledger.exchange([], {"default": 9})).starts
    log = [entry async for portion in ledger.log() for entry in portion]
    assert [start.key for start in starts] == ["second"]
    assert [entry.ms for entry in log if entry.kind == "event"] == [1_795_000_100_000]


async def test_what_fails_in_the_middle_beside_a_launcher_changes_no_row(
    ledger: Ledger, batch_place: str
) -> None:
    ask(batch_place, "ALTER TABLE event RENAME COLUMN text TO words")

    async with await open_ledger(batch_place) as other:
        with pytest.raises(LedgerError, match="text"):  # its note, once the rows are written
            await other.withdraw(None)

    assert await states(ledger) == BEFORE


async def test_a_withdrawn_row_stays_so_in_the_next_session(
    ledger: Ledger, batch_place: str, hands: Hands
) -> None:
    await ledger.withdraw(["first", "failed"])
    await crash(ledger)

    async with await take_ledger(batch_place, clock=hands.clock) as again:
        await again.begin_session(session(retry_rejected=True))
        starts = (await again.exchange([], {"default": 9})).starts
        assert sorted(start.key for start in starts) == ["rejected", "second"]


async def test_a_row_that_was_never_checked_is_checked_although_it_was_taken_back(
    tmp_path: Path, hands: Hands
) -> None:
    rows = [checked(n)._replace(body=b"", digest=b"") for n in (1, 2)]

    async with await make(tmp_path / "new.ledger.db", rows, hands) as made:
        await made.withdraw(["k1"])
        await made.begin_session(session())
        unsent = await made.query("unsent_rows", (0, "default", checked(1).row.job_id, 9))
        assert [number for number, *_ in unsent] == [1, 2]
        await made.recheck([checked(1), checked(2)])
        await made.withdraw(["k1"], undo=True)
        assert [one.state for one in await send(made, "started", "started")] == ["started"] * 2


async def test_a_row_that_was_taken_back_stays_so_when_it_turns_out_to_be_invalid(
    ledger: Ledger,
) -> None:
    await ledger.withdraw(["first"])
    await ledger.recheck([invalid(6, "first")])
    assert (await states(ledger))["first"] == "withdrawn"

    await ledger.withdraw(["first"], undo=True)
    assert (await states(ledger))["first"] == "invalid"


async def test_a_correction_makes_it_pending_again(ledger: Ledger) -> None:
    await ledger.withdraw(["first"])
    done = await ledger.correct([checked(1, "first", says="new")], file="fix.csv")

    assert (done.replaced, (await states(ledger))["first"]) == (1, "pending")
    assert [row.attempts for row in await read(ledger, keys=["first"])] == [0]


def test_the_command_takes_back_and_gives_back(place: Workplace) -> None:
    place.manifest(4)
    assert place.run("run", "night.jsonl", "--limit", "1", "--yes").returncode == 5
    done = place.run("withdraw", "night.ledger.db", "row-2", "row-3")
    assert "withdrawn: 2 rows" in done.stderr

    refused = place.run("withdraw", "night.ledger.db", "row-1")
    assert (refused.returncode, "'row-1' is started" in refused.stderr) == (2, True)
    assert "expected at least one KEY" in place.run("withdraw", "night.ledger.db").stderr
    place.run("withdraw", "night.ledger.db", "--all-pending")
    nothing = place.run("resume", "night.ledger.db", "--yes")
    assert (nothing.returncode, "nothing to start" in nothing.stderr) == (0, True)
    assert place.run("withdraw", "night.ledger.db", "row-3", "--undo").returncode == 0
    assert place.run("resume", "night.ledger.db", "--yes").returncode == 0

    assert place.json("status", "night.ledger.db")["withdrawn"] == 2
    assert [row_of(run) for run in read_log(place.log)] == [1, 3]
