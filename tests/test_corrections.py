"""Corrected rows go into the same batch by their keys: all of them, or none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest
from ledgers import JOB, begin, checked, crash, invalid, make, outcome, read, send, session, states

from deslaunch.ledger.ledger import take_ledger
from deslaunch.model import RowState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from deslaunch.ledger.changes import Corrections
    from deslaunch.ledger.ledger import Ledger
    from deslaunch.model import CheckedRow, InvalidRow

KEYS: Final = ("started", "unknown", "sending", "failed", "rejected", "pending", "invalid", "fresh")
FREE: Final = ("failed", "rejected", "pending", "invalid", "fresh")
"""Rows that have no run and none in doubt."""


@pytest.fixture
def place(batch_place: str) -> str:
    return batch_place


@pytest.fixture
async def ledger(place: str) -> AsyncIterator[Ledger]:
    """One row of each state; its launcher has just begun."""
    rows: list[CheckedRow | InvalidRow] = [
        invalid(n, key) if key == "invalid" else checked(n, key) for n, key in enumerate(KEYS, 1)
    ]
    made = await make(place, rows)
    await made.begin_session(session())
    starts = (await made.exchange([], {"default": 6})).starts
    results = [(s, "throttled" if s.key == "pending" else s.key) for s in starts]
    await made.exchange([outcome(s, result) for s, result in results if result != "sending"], {})
    await crash(made)

    async with await take_ledger(place) as resumed:
        yield resumed


async def correct(ledger: Ledger, *rows: CheckedRow, **how: Any) -> Corrections:
    return await ledger.correct(rows, **{"file": "fix.csv", "add": False, "dry_run": False, **how})


@pytest.mark.parametrize("key", FREE)
async def test_a_row_without_a_run_is_replaced(key: str, ledger: Ledger) -> None:
    row = checked(1, key, says="fixed", job="other")
    assert (await correct(ledger, row))[:4] == (1, 0, 0, ())
    [told] = await read(ledger, keys=[key], with_rows=True)
    assert (told.state, told.says, told.job_id, told.error) == ("pending", row.says, "other", "")

    await ledger.begin_session(session())
    starts = (await ledger.exchange([], {"default": 9})).starts
    [start] = [start for start in starts if start.key == key]
    assert (start.body, start.job_id, start.retries) == (row.body, "other", 0)
    assert start.attempt == (1 if key in {"invalid", "fresh"} else 2)


@pytest.mark.parametrize("key", ["started", "unknown", "sending"])
async def test_where_one_row_has_a_run_or_may_have_nothing_is_applied(
    key: str, ledger: Ledger
) -> None:
    before = await read(ledger, with_rows=True)
    fixed = checked(2, "rejected", says="fixed")
    replaced, added, same, problems, _ = await correct(ledger, fixed, checked(3, key, says="fixed"))
    [problem] = problems
    state = "unknown" if key == "sending" else key
    assert (replaced, added, same) == (2, 0, 0)
    assert (problem.file, problem.line, problem.row, problem.column) == ("fix.csv", 4, 3, "key")
    assert f"is {key}" in problem.message or f"is {state}" in problem.message
    assert await read(ledger, with_rows=True) == before


async def test_rows_that_say_the_same_stay_as_they_are(ledger: Ledger) -> None:
    before = await states(ledger)
    rows = [checked(n, key) for n, key in enumerate(KEYS, 1) if key != "invalid"]
    assert (await correct(ledger, *rows))[:4] == (0, 0, 7, ())
    assert await states(ledger) == before


async def test_an_invalid_row_may_be_right_as_it_is(ledger: Ledger) -> None:
    assert (await correct(ledger, checked(7, "invalid"))).replaced == 1
    assert (await states(ledger))["invalid"] == "pending"


async def test_a_dry_run_changes_nothing(ledger: Ledger) -> None:
    before = await read(ledger, with_rows=True)
    rows = (checked(1, "rejected", says="fixed"), checked(2, "new"), checked(1, "started"))
    looked = await correct(ledger, *rows, add=True, dry_run=True)
    assert looked[:4] == (1, 1, 1, ())
    assert await read(ledger, with_rows=True) == before
    assert await correct(ledger, *rows, add=True) == looked
    assert looked.plan == await ledger.plan()


class TestAddedRows:
    async def test_a_key_that_the_batch_does_not_know_is_an_error(self, ledger: Ledger) -> None:
        done = await correct(ledger, checked(1, "rejected", says="fixed"), checked(2, "new"))
        assert [problem.row for problem in done.problems] == [2]
        assert "--add-rows" in done.problems[0].message
        assert (await states(ledger))["rejected"] == "rejected"

    async def test_it_is_a_row_of_the_batch_where_that_is_asked_for(self, ledger: Ledger) -> None:
        new = checked(1, "new", target="acme")
        assert (await correct(ledger, checked(8, "fresh"), new, add=True))[:4] == (0, 1, 1, ())
        [row] = await read(ledger, keys=["new"])
        assert (row.row, row.state, row.target) == (9, "pending", "acme")

        await ledger.begin_session(session("default", "acme"))
        assert [s.row for s in (await ledger.exchange([], {"acme": 5})).starts] == [9]

    async def test_it_needs_a_key_of_its_own(self, ledger: Ledger) -> None:
        done = await correct(ledger, checked(1, "digest", own=False), add=True)
        assert "explicit key" in done.problems[0].message
        assert (await correct(ledger, checked(8, "fresh", own=False), add=True)).same == 1


class TestAfterwards:
    async def test_a_row_in_flight_is_not_claimed_again(self, ledger: Ledger) -> None:
        """Never sent, or sent in an earlier form: what made it due must not outlive its claim."""
        await correct(ledger, checked(7, "invalid"), checked(1, "rejected", says="fixed"))
        await ledger.begin_session(session())
        starts = (await ledger.exchange([], {"default": 9})).starts
        assert {"invalid", "rejected"} <= {start.key for start in starts}

        again = await ledger.exchange([], {"default": 9})
        assert (again.starts, again.due) == ([], {"default": None})

        ended = (await ledger.exchange([outcome(s, "started") for s in starts], {})).outcomes
        assert {told.state for told in ended} == {"started"}
        assert {row.attempts for row in await read(ledger, keys=["invalid"])} == {1}

    async def test_only_what_the_new_form_was_told_counts(self, ledger: Ledger, place: str) -> None:
        await correct(ledger, checked(1, "rejected", says="fixed"))
        await ledger.begin_session(session())
        counts, _ = await ledger.counts()
        assert (counts.rejected, counts.attempts) == (0, 6)

        starts = (await ledger.exchange([], {"default": 9})).starts
        [start] = [start for start in starts if start.key == "rejected"]
        rest = [outcome(s, "unsent") for s in starts if s is not start]
        await ledger.exchange([*rest, outcome(start, "throttled")], {})
        [row] = await read(ledger, keys=["rejected"])
        assert (row.state, row.attempts, row.status) == ("pending", 2, 503)

    async def test_a_5xx_to_the_earlier_form_may_have_started_a_run(self, ledger: Ledger) -> None:
        await correct(ledger, checked(4, "failed", says="fixed"))
        await ledger.begin_session(session())
        starts = (await ledger.exchange([], {"default": 9})).starts
        told = (await ledger.exchange([outcome(s, "started") for s in starts], {})).outcomes
        assert {o.key: o.possible_duplicate for o in told}["failed"]
        assert not {o.key: o.possible_duplicate for o in told}["fresh"]

    async def test_it_may_go_to_another_target(self, ledger: Ledger) -> None:
        await correct(ledger, checked(4, "failed", target="acme"))
        await ledger.begin_session(session("default", "acme"))
        assert [s.key for s in (await ledger.exchange([], {"acme": 9})).starts] == ["failed"]

    async def test_the_log_keeps_what_it_said(self, ledger: Ledger) -> None:
        await correct(ledger, checked(5, "rejected", says="fixed"), checked(1, "new"), add=True)
        entries = [e async for portion in ledger.log() for e in portion if e.kind == "correction"]
        assert [(e.key, e.details["file"], e.details["said"]) for e in entries] == [
            ("rejected", "fix.csv", {"says": 5}),
            ("new", "fix.csv", None),
        ]

    async def test_a_row_can_be_corrected_again(self, place: str) -> None:
        await (await make(place, 1)).aclose()

        for turn in range(3):
            async with await begin(place) as ledger:
                if turn:
                    await correct(ledger, checked(1, "k1", says=f"form {turn}"))

                assert [told.state for told in await send(ledger, "rejected")] == ["rejected"]

        async with await take_ledger(place) as ledger:
            assert [(r.state, r.attempts, r.job_id) for r in await read(ledger)] == [
                ("rejected", 3, JOB)
            ]
            assert (await ledger.plan()).states[RowState.REJECTED] == 1
