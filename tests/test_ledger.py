"""A turn is one durable transaction, and a row's state follows from its attempts."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from dataclasses import asdict
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, cast

import pytest
from ledgers import (
    JOB,
    Hands,
    ask,
    begin,
    checked,
    crash,
    invalid,
    make,
    make_faulty,
    never_mind,
    outcome,
    read,
    run_id,
    send,
    session,
    states,
)

from deslaunch.errors import LedgerDamaged, LedgerWriteFailed, ManifestError
from deslaunch.events import Stop, StopReason
from deslaunch.ledger import ledger as ledger_module
from deslaunch.ledger import reading, sqlite
from deslaunch.ledger.ledger import NewBatch, begin_import, take_ledger
from deslaunch.ledger.reading import Consents, run_in
from deslaunch.model import Job, JobParameter, RowState, RunStatus
from deslaunch.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from deslaunch.ledger.ledger import Ledger
    from deslaunch.model import CheckedRow, InvalidRow


@pytest.fixture
def place(batch_place: str) -> str:
    return batch_place


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A ledger's place, where a test opens it as what it is: an SQLite file."""
    return tmp_path / "night.ledger.db"


@pytest.fixture
def hands() -> Hands:
    return Hands()


@pytest.fixture
async def ledger(place: str, hands: Hands) -> AsyncIterator[Ledger]:
    """Four rows, and a session that has begun."""
    async with await make(place, 4, hands) as made:
        await made.begin_session(session())
        yield made


class TestTurn:
    async def test_what_it_gives_is_on_disk(self, ledger: Ledger, place: str) -> None:
        starts = (await ledger.exchange([], {"default": 2})).starts

        assert ask(place, "SELECT row, number, result FROM attempt ORDER BY row") == [
            (1, 1, None),
            (2, 1, None),
        ]

        await ledger.exchange([outcome(starts[0], "started")], {})
        assert ask(place, "SELECT row, result FROM attempt ORDER BY row") == [
            (1, "started"),
            (2, None),
        ]

    async def test_rows_are_claimed_in_order_and_no_more_than_asked_for(
        self, ledger: Ledger, hands: Hands
    ) -> None:
        turns = [await ledger.exchange([], {"default": 3}) for _ in range(3)]

        assert [[start.row for start in turn.starts] for turn in turns] == [[1, 2, 3], [4], []]
        assert [turn.due for turn in turns] == [
            {"default": 0.0},
            {"default": None},
            {"default": None},
        ]
        assert turns[0].starts[0] == (1, 1, "k1", "default", JOB, checked(1).body, False, 0, 100.0)
        assert (await ledger.exchange([], {"default": 0})).due == {"default": None}

    async def test_a_start_says_whether_it_moves_a_feed_on(self, place: str) -> None:
        async with await make(place, [checked(1, auto=True), checked(2)]) as ledger:
            await ledger.begin_session(session())
            starts = (await ledger.exchange([], {"default": 2})).starts

        assert [start.auto for start in starts] == [True, False]

    async def test_how_far_rows_were_claimed_is_noted_now_and_then(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ledger_module, "POSITION_EVERY", 3)
        noted = []

        async with await make(file, 4) as ledger:
            await ledger.begin_session(session())

            for count in (1, 1, 1, 9):
                await ledger.exchange([], {"default": count})
                noted += ask(str(file), "SELECT position FROM target")

        assert noted == [(0,), (0,), (3,), (4,)]

    async def test_targets_are_claimed_apart(self, place: str) -> None:
        rows = [checked(n, target="acme" if n % 3 else "bistro") for n in range(1, 10)]

        async with await make(place, rows) as ledger:
            await ledger.begin_session(session("acme", "bistro"))
            turn = await ledger.exchange([], {"bistro": 2, "acme": 3, "other": 5})
            more = await ledger.exchange([], {"bistro": 2, "acme": 0})

        assert [start.row for start in turn.starts] == [3, 6, 1, 2, 4]
        assert turn.due == {"bistro": 0.0, "acme": 0.0, "other": None}
        assert ([start.row for start in more.starts], more.due) == (
            [9],
            {"bistro": None, "acme": 0.0},
        )

    async def test_a_row_that_waits_is_claimed_when_its_time_has_come(
        self, ledger: Ledger, hands: Hands
    ) -> None:
        [start] = (await ledger.exchange([], {"default": 1})).starts
        later = await ledger.exchange([outcome(start, "retry", not_before=2.5)], {"default": 1})
        rest = await ledger.exchange([], {"default": 9})
        assert [start.row for start in (*later.starts, *rest.starts)] == [2, 3, 4]
        assert rest.due == {"default": 2.5}

        hands.move(2.5)
        [again] = (await ledger.exchange([], {"default": 9})).starts
        assert (again.row, again.attempt, again.retries) == (1, 2, 1)
        rest = await ledger.exchange([outcome(again, "retry", not_before=0.25)], {})
        assert rest.due == {"default": 0.25}

    async def test_due_rows_come_before_fresh_ones(self, ledger: Ledger) -> None:
        await send(ledger, "started", "throttled", "unsent")
        turn = await ledger.exchange([], {"default": 3})
        assert [(start.row, start.attempt) for start in turn.starts] == [(2, 2), (3, 2), (4, 1)]

    async def test_an_outcome_says_what_the_ledger_knows(self, ledger: Ledger) -> None:
        [start] = (await ledger.exchange([], {"default": 1})).starts
        turn = await ledger.exchange([outcome(start, "retry")], {"default": 1})
        assert (turn.outcomes[0].state, turn.outcomes[0].attempts) == (RowState.PENDING, 1)

        [told] = (await ledger.exchange([outcome(turn.starts[0], "started")], {})).outcomes
        assert (told.state, told.attempts, told.possible_duplicate) == (RowState.STARTED, 2, True)

    async def test_no_text_of_a_response_can_stop_it(self, ledger: Ledger) -> None:
        await send(ledger, "started", error="\udcff\0é" + "x" * 9_000, job_run_id="\ud800")
        [row] = await read(ledger, states=["started"])
        assert (row.job_run_id, row.error[:10], len(row.error)) == (
            *("\\ud800", "\\udcff\\0éx"),
            4_102,
        )


STATES: Final = [
    pytest.param(["started"], ("started", 1, 0), id="started"),
    pytest.param(["failed"], ("failed", 1, 0), id="failed"),
    pytest.param(["retry", "failed"], ("failed", 2, 0), id="failed after a retry"),
    pytest.param(["retry"], ("pending", 1, 0), id="retry"),
    pytest.param(["throttled"], ("pending", 1, 0), id="throttled"),
    pytest.param(["unsent"], ("pending", 0, 0), id="unsent"),
    pytest.param(["retry", "started"], ("started", 2, 1), id="started after a 5XX"),
    pytest.param(["failed", "started"], ("started", 2, 1), id="started after it had failed"),
    pytest.param(["unsent", "throttled", "started"], ("started", 2, 0), id="started in the end"),
    pytest.param(["rejected", "throttled"], ("rejected", 2, 0), id="throttled after a refusal"),
    pytest.param(["rejected", "unsent"], ("rejected", 1, 0), id="unsent after a refusal"),
    pytest.param(["rejected", "retry", "failed"], ("failed", 3, 0), id="failed after a refusal"),
    pytest.param(["rejected", "started"], ("started", 2, 0), id="started after a refusal"),
    pytest.param(["unknown", "rejected"], ("unknown", 2, 0), id="doubt outlasts a refusal"),
    pytest.param(["unknown", "failed"], ("unknown", 2, 0), id="doubt outlasts a failure"),
    pytest.param(["unknown", "throttled"], ("unknown", 2, 0), id="doubt outlasts a pause"),
    pytest.param(["unknown", "started"], ("started", 2, 1), id="started after doubt"),
]


@pytest.mark.parametrize(("results", "expected"), STATES)
async def test_a_state_follows_from_the_attempts(
    results: list[str], expected: tuple[str, int, int], place: str
) -> None:
    await (await make(place, 1)).aclose()

    for result in results:  # each in a session of its own, with every consent
        async with await begin(place, retry_rejected=True, retry_unknown=True) as ledger:
            [told] = await send(ledger, result)
            assert told.state.value == (await read(ledger))[0].state

    async with await take_ledger(place) as ledger:
        [row] = await read(ledger)
        assert (row.state, row.attempts, row.possible_duplicate) == expected


CONSENTS: Final = [
    pytest.param({}, ["failed", "pending"], id="none"),
    pytest.param({"retry_rejected": True}, ["failed", "pending", "rejected"], id="rejected"),
    pytest.param({"retry_unknown": True}, ["failed", "pending", "unknown"], id="unknown"),
]


@pytest.mark.parametrize(("consents", "claimed"), CONSENTS)
async def test_a_session_claims_what_it_may(
    consents: dict[str, Any], claimed: list[str], place: str
) -> None:
    keys = ("started", "failed", "pending", "rejected", "unknown", "auto")
    rows = [checked(n, key, auto=key == "auto") for n, key in enumerate(keys, 1)]

    async with await make(place, rows) as ledger:
        await ledger.begin_session(session())
        await send(ledger, "started", "failed", "throttled", "rejected", "unknown", "unknown")
        plan = await ledger.plan(Consents.of(Settings(**consents)))
        assert plan.ready == len(claimed)
        assert [job[:2] for job in plan.jobs] == [("default", JOB)] * bool(claimed)

    async with await begin(place, **consents) as ledger:
        before = await states(ledger)
        turn = await ledger.exchange([], {"default": 9})
        assert (sorted(s.key for s in turn.starts), turn.due) == (claimed, {"default": None})
        assert before == {key: "unknown" if key == "auto" else key for key in keys}

        # What came back of it in this session is not claimed again by the same consent.
        results = ["failed" if s.key in {"failed", "pending"} else s.key for s in turn.starts]
        ended = [outcome(s, result) for s, result in zip(turn.starts, results, strict=True)]
        last = await ledger.exchange(ended, {"default": 9})
        assert (last.starts, last.due) == ([], {"default": None})


class TestSessions:
    async def test_what_a_killed_launcher_had_in_flight_is_unknown(
        self, ledger: Ledger, place: str
    ) -> None:
        starts = (await ledger.exchange([], {"default": 3})).starts
        await ledger.exchange([outcome(starts[0], "started")], {})
        assert (await states(ledger))["k2"] == "sending"
        await crash(ledger)

        async with await take_ledger(place) as resumed:
            assert (await states(resumed))["k2"] == "unknown"
            assert (await resumed.plan()).states[RowState.UNKNOWN] == 2
            assert await resumed.begin_session(session()) == {"default": 0.0}
            assert list((await states(resumed)).values()) == [
                "started",
                "unknown",
                "unknown",
                "pending",
            ]
            assert (await read(resumed))[1].error

    async def test_retries_count_from_the_session_in_which_a_row_became_sendable(
        self, place: str
    ) -> None:
        await (await make(place, 1)).aclose()

        for _ in range(2):
            async with await begin(place) as ledger:
                seen = []

                for result in ("retry", "retry", "failed"):
                    [start] = (await ledger.exchange([], {"default": 1})).starts
                    seen.append(start.retries)
                    await ledger.exchange([outcome(start, result)], {})

                assert seen == [0, 1, 2]

    async def test_a_wait_goes_on_in_the_next_session(self, place: str, hands: Hands) -> None:
        async with await make(place, 2, hands) as ledger:
            await ledger.begin_session(session())
            [start] = (await ledger.exchange([], {"default": 1})).starts
            await ledger.exchange([outcome(start, "retry", not_before=60.0)], {})
            [start] = (await ledger.exchange([], {"default": 1})).starts
            await ledger.exchange([outcome(start, "retry", not_before=10.0)], {})

        hands.move(20)

        async with await begin(place, hands) as ledger:
            turn = await ledger.exchange([], {"default": 9})
            assert ([start.row for start in turn.starts], turn.due) == ([2], {"default": 40.0})

    @pytest.mark.parametrize("step", [-30, -3600, -1e8])
    async def test_a_wait_is_not_prolonged_by_a_clock_that_is_set_back(
        self, place: str, hands: Hands, step: float
    ) -> None:
        async with await make(place, 1, hands) as ledger:
            await ledger.begin_session(session())
            [start] = (await ledger.exchange([], {"default": 1})).starts
            await ledger.exchange([outcome(start, "retry", not_before=60.0)], {})

        hands.step(step)

        async with await begin(place, hands) as ledger:
            assert (await ledger.exchange([], {"default": 1})).due == {"default": 60.0}

        hands.move(20)

        async with await begin(place, hands) as ledger:
            assert (await ledger.exchange([], {"default": 1})).due == {"default": 40.0}

    async def test_a_row_that_nobody_asked_to_wait_does_not_wait_for_a_clock_that_went_back(
        self, place: str, hands: Hands
    ) -> None:
        await (await make(place, 1, hands)).aclose()

        async with await begin(place, hands) as ledger:
            await send(ledger, "failed")

        async with await begin(place, hands):  # it may be sent now, and is not
            hands.step(-3600)

        async with await begin(place, hands) as ledger:
            assert len((await ledger.exchange([], {"default": 1})).starts) == 1

    async def test_what_is_known_of_it_is_kept(self, place: str) -> None:
        async with await make(place) as ledger:
            await ledger.begin_session(session(kept={"rate": 2.0}, limit=5))
            await ledger.set_clocks({"default": 1.5})
            await ledger.end_session(5, [Stop(StopReason.LIMIT, "enough", resume_after=2.5)])

        async with await take_ledger(place) as ledger:
            [known] = await ledger.sessions()
            stop = {"reason": "limit", "message": "enough", "target": None, "resumeAfter": 2.5}
            assert (known.exit_code, known.stops) == (5, [stop])
            assert known.options == asdict(Settings(limit=5))
            assert known.ended_ms is not None
            assert known.targets == {"default": "https://default.example"}
            assert ledger.batch[:4] == ("night", "night.csv", "ab", None)
            assert ledger.batch.options == {"timeout": 7, "rate": 2.0}
            assert ledger.batch.imported_ms == 1_795_000_100_000
            assert await ledger.targets() == {"default": ("https://default.example", None)}


class TestFailedCommits:
    @pytest.mark.parametrize("fault", ["before", "after"])
    async def test_nothing_of_a_turn_in_doubt_is_lost_or_sent(
        self, fault: str, ledger: Ledger
    ) -> None:
        starts = (await ledger.exchange([], {"default": 2})).starts
        came = [outcome(starts[0], "started"), outcome(starts[1], "unknown")]
        make_faulty(ledger).faults = [fault, fault]

        for _ in range(2):
            with pytest.raises(LedgerWriteFailed):
                await ledger.exchange(came, {"default": 1})

        turn = await ledger.exchange(came, {})
        assert [told.state.value for told in turn.outcomes] == ["started", "unknown"]
        assert list((await states(ledger)).values()) == ["started", "unknown", "pending", "pending"]

        turn = await ledger.exchange([], {"default": 9})
        assert [start.row for start in turn.starts] == [3, 4]
        assert {start.retries for start in turn.starts} == {0}

    async def test_rows_of_a_turn_in_doubt_can_be_claimed_at_once(self, ledger: Ledger) -> None:
        make_faulty(ledger).faults = ["after"]

        with pytest.raises(LedgerWriteFailed):
            await ledger.exchange([], {"default": 2})

        starts = (await ledger.exchange([], {"default": 2})).starts
        assert [(start.row, start.attempt) for start in starts] == [(1, 2), (2, 2)]
        assert [row.attempts for row in await read(ledger)] == [1, 1, 0, 0]

    async def test_rows_of_a_turn_in_doubt_come_back_though_the_next_one_fails_too(
        self, ledger: Ledger
    ) -> None:
        make_faulty(ledger).faults = ["after", "before"]

        for _ in range(2):
            with pytest.raises(LedgerWriteFailed):
                await ledger.exchange([], {"default": 2})

        await ledger.exchange([], {})
        assert set((await states(ledger)).values()) == {"pending"}

    async def test_a_row_that_is_sent_again_by_consent_comes_back_too(self, place: str) -> None:
        async with await make(place, 1) as ledger:
            await ledger.begin_session(session())
            await send(ledger, "rejected")

        async with await begin(place, retry_rejected=True) as ledger:
            make_faulty(ledger).faults = ["after"]

            with pytest.raises(LedgerWriteFailed):
                await ledger.exchange([], {"default": 1})

            [start] = (await ledger.exchange([], {"default": 1})).starts
            log = [entry async for portion in ledger.log(key="k1") for entry in portion]

        assert (start.attempt, [entry.details["result"] for entry in log]) == (
            *(3, ["rejected", "unsent", None]),
        )
        assert log[1].details["error"].startswith("not sent: ")

    async def test_a_full_disk_costs_nothing(self, file: Path) -> None:
        ledger = await make(file)
        await ledger.begin_session(session())
        starts = (await ledger.exchange([], {"default": 2})).starts
        long = [outcome(start, "rejected", error="x" * 4_000) for start in starts]
        connection = cast("Any", ledger)._store._connection

        def limit(pages: int) -> Any:
            return connection.execute(f"PRAGMA max_page_count={pages}").fetchone()

        await run_in(ledger.thread, limit, 1)  # as small as it is now

        with pytest.raises(LedgerWriteFailed, match="full"):
            await ledger.exchange(long, {})

        await run_in(ledger.thread, limit, 10_000)
        turn = await ledger.exchange(long, {"default": 2})
        assert [told.state for told in turn.outcomes] == ["rejected", "rejected"]
        assert [start.row for start in turn.starts] == [3, 4]
        await ledger.aclose()

    async def test_a_cancelled_turn_hands_its_rows_back(self, ledger: Ledger) -> None:
        await never_mind(asyncio.create_task(ledger.exchange([], {"default": 2})))
        starts = (await ledger.exchange([], {"default": 1})).starts
        assert [(start.row, start.attempt) for start in starts] == [(1, 2)]

        await never_mind(asyncio.create_task(ledger.exchange([outcome(starts[0], "unsent")], {})))
        await ledger.end_session(130, [])
        assert set((await states(ledger)).values()) == {"pending"}

    async def test_a_body_that_does_not_fit_its_digest_is_not_sent(
        self, ledger: Ledger, place: str
    ) -> None:
        [start] = (await ledger.exchange([], {"default": 1})).starts

        other = "SELECT body FROM content WHERE row = 4"
        ask(place, f"UPDATE content SET body = ({other}) WHERE row = 3")

        with pytest.raises(
            LedgerDamaged, match=r"row 3 \(k3\).*not the one that was checked"
        ) as told:
            await ledger.exchange([outcome(start, "started")], {"default": 2})

        assert told.value.hint.startswith("correct it: deslaunch resume ")
        assert told.value.hint.endswith(" --corrections FILE")
        assert "night" in told.value.hint

        turn = await ledger.exchange([outcome(start, "started")], {"default": 1})
        assert [start.row for start in turn.starts] == [2]
        assert list((await states(ledger)).values()) == ["started", "sending", "pending", "pending"]

    async def test_a_row_without_a_body_is_not_sent(self, place: str) -> None:
        unchecked = checked(1)._replace(body=b"", digest=checked(1).digest)

        async with await make(place, [unchecked]) as ledger:
            await ledger.begin_session(session())

            with pytest.raises(LedgerDamaged):
                await ledger.exchange([], {"default": 1})

    @pytest.mark.parametrize("launches", [True, False])
    async def test_being_kept_from_the_write_lock_is_no_failure(
        self, launches: bool, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sqlite, "TELL_AFTER", 0.0)
        await (await make(file, 1)).aclose()

        async with await take_ledger(str(file), launches=launches) as ledger:
            if launches:
                await ledger.begin_session(session())
            else:
                ledger.wait_up_to(60.0)

            other = sqlite3.connect(file, isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            told: list[str] = []

            def free(text: str) -> None:
                told.append(text)
                other.close()

            ledger.on_wait = free
            await (ledger.exchange([], {}) if launches else ledger.record_runs([]))

        [text] = told
        assert text.startswith("the ledger has been locked by another program for ")

    async def test_a_write_lock_that_is_never_free_is_one(self, file: Path, hands: Hands) -> None:
        async with await make(file, 1, hands) as ledger:
            await ledger.begin_session(session(give_up_after=0.5))

            with closing(sqlite3.connect(file, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")

                with pytest.raises(LedgerWriteFailed, match="locked"):
                    await ledger.exchange([], {"default": 1})

            assert len((await ledger.exchange([], {"default": 1})).starts) == 1


class TestRepeatedRuns:
    @pytest.mark.parametrize("turns", ["one", "two", "two sessions"])
    async def test_a_run_is_one_rows(self, turns: str, ledger: Ledger, place: str) -> None:
        first, second = (await ledger.exchange([], {"default": 2})).starts
        run = f"{run_id(7)[:-1]}a"
        came = outcome(first, "started", job_run_id=run)
        repeated = outcome(second, "started", job_run_id=run.upper(), error="unasked")

        if turns == "one":
            [_, told] = (await ledger.exchange([came, repeated], {})).outcomes
        elif turns == "two":
            await ledger.exchange([came], {})
            [told] = (await ledger.exchange([repeated], {})).outcomes
        else:
            await ledger.exchange([came, outcome(second, "throttled")], {})
            await ledger.aclose()
            ledger = await begin(place)
            [again] = (await ledger.exchange([], {"default": 1})).starts
            repeated = repeated._replace(attempt=again.attempt)
            [told] = (await ledger.exchange([repeated], {})).outcomes

        assert (told.state, told.result) == ("unknown", "unknown")
        assert told.error == f"jobRunId {run.upper()} is that of row 1 (k1) unasked"
        assert list((await states(ledger)).values())[:2] == ["started", "unknown"]
        assert [row.job_run_id for row in await read(ledger)][:2] == [run, None]
        await ledger.aclose()

    async def test_a_row_may_be_told_of_its_own_run_again(self, ledger: Ledger) -> None:
        [start] = (await ledger.exchange([], {"default": 1})).starts
        came = outcome(start, "started")
        make_faulty(ledger).faults = ["after"]

        with pytest.raises(LedgerWriteFailed):
            await ledger.exchange([came], {})

        [told] = (await ledger.exchange([came], {})).outcomes
        assert told.state == "started"

    async def test_thousands_of_runs_are_told_apart(self, place: str) -> None:
        async with await make(place, 1) as ledger:
            await ledger.begin_session(session())
            told = await send(ledger, "started")
            await ledger.add([checked(number) for number in range(2, 9_502)])

            for _ in range(9):
                told += await send(ledger, *["started"] * 1_000)

            assert {o.state for o in told} == {"started"}
            told = await send(ledger, "started", "started", job_run_id=run_id(101))
            assert {o.state for o in told} == {"unknown"}

    async def test_a_row_may_have_many_runs(self, file: Path) -> None:
        ledger = await make(file)
        await ledger.begin_session(session())
        known = (f"(4, {n}, 1, 0, 'unknown', '{run_id(10_000 + n)}')" for n in range(1, 5_001))
        columns = "row, number, session, sent_ms, result, job_run_id"
        ask(str(file), f"INSERT INTO attempt ({columns}) VALUES {', '.join(known)}")

        [told] = await send(ledger, "started")
        [repeated] = await send(ledger, "started", job_run_id=run_id(15_000))
        assert (told.state, repeated.state) == ("started", "unknown")
        await ledger.aclose()


class TestRowsOfAProgram:
    async def test_they_are_numbered_on_and_known_ones_skipped(self, ledger: Ledger) -> None:
        added = await ledger.add([checked(1, "new"), checked(2), checked(1, "new"), invalid(3)])
        assert (added.numbers, added.same) == ([5, 2, 5, 6], 2)

        again = await ledger.add([checked(9, "more", target="acme"), invalid(7, "odd")])
        same = await ledger.add([invalid(1, "odd")])
        assert (again.numbers, same) == ([7, 8], ([8], 1))

        turn = await ledger.exchange([], {"default": 9, "acme": 9})
        assert [start.row for start in turn.starts] == [1, 2, 3, 4, 5, 7]
        assert (await ledger.counts())[1]["acme"].in_flight == 1

    async def test_one_that_says_something_else_is_refused_with_all_others(
        self, ledger: Ledger
    ) -> None:
        with pytest.raises(ManifestError, match=r"'k2'.*row 2"):
            await ledger.add([checked(7, "new"), checked(2, says="another")])

        assert len(await read(ledger)) == 4

    async def test_rows_without_a_body_are_told_apart(self, ledger: Ledger) -> None:
        first, another = (
            checked(5, "new", says=says)._replace(body=b"", digest=sha256(b"").digest()[:16])
            for says in ("this", "that")
        )
        assert (await ledger.add([first])).numbers == [5]
        assert await ledger.add([first]) == ([5], 1)

        with pytest.raises(ManifestError, match=r"'new'.*row 5"):
            await ledger.add([another])

        assert (await ledger.correct([another], file="fix.csv")).replaced == 1

    async def test_a_target_that_comes_later_has_its_place(self, place: str) -> None:
        async with await make(place, 1) as ledger:
            await ledger.begin_session(session("default", "acme"))
            await ledger.add([checked(2, target="acme")])
            assert (await ledger.targets())["acme"].base_url == "https://acme.example"

    async def test_a_batch_may_begin_without_rows(self, place: str) -> None:
        batch = await begin_import(place, NewBatch("<rows>", {}))

        async with await batch.publish() as ledger:
            await ledger.begin_session(session())
            await ledger.add([checked(1)])
            assert [s.row for s in (await ledger.exchange([], {"default": 9})).starts] == [1]

        async with await take_ledger(place) as ledger:
            assert ledger.batch[:3] == ("night", "<rows>", "")


class TestImport:
    async def test_rows_are_taken_as_they_were_checked(self, place: str) -> None:
        rows: list[CheckedRow | InvalidRow] = [
            checked(1),
            checked(2, "k1~2"),
            invalid(3, "k3", "is given twice"),
            invalid(4, "k3"),
            invalid(5),
            invalid(6),
        ]

        async with await begin_import(place, NewBatch("night.csv", {})) as batch:
            await batch.add(rows)
            plan = await batch.plan()
            assert plan.jobs == (("default", JOB, "", 2),)
            assert {s: n for s, n in plan.states.items() if n} == {"pending": 2, "invalid": 4}
            ledger = await batch.publish()

        async with ledger:
            rows_read = await read(ledger)
            assert [row.key for row in rows_read] == ["k1", "k1~2", "k3", "", "", ""]
            assert [row.state for row in rows_read] == ["pending"] * 2 + ["invalid"] * 4
            assert rows_read[2].error == "Count: is given twice"

    async def test_jobs_are_kept_as_rows_were_checked(self, place: str) -> None:
        job = Job(JOB, "Nightly sales", (JobParameter("DBGenFrom", 2, required=True),))

        async with await begin_import(place, NewBatch("night\udcff.csv", {})) as batch:
            await batch.add_jobs("default", [job], from_des=True)
            await batch.add([checked(1), checked(2, job="other")])
            ledger = await batch.publish(columns=["key", "Count"])

        async with ledger:
            known = await ledger.jobs()
            assert known[0] == ("default", job, True, True)
            assert (known[1].job.job_id, known[1].is_checked) == ("other", False)
            assert (await ledger.plan()).jobs == (
                ("default", JOB, "Nightly sales", 1),
                ("default", "other", "", 1),
            )
            assert ledger.batch.manifest == "night\udcff.csv"
            assert ledger.batch.columns == ("key", "Count")

    async def test_rows_that_were_never_sent_are_checked_again(self, ledger: Ledger) -> None:
        await send(ledger, "throttled", "unsent")
        portion = await ledger.query("unsent_rows", (0, "default", JOB, 2))
        assert portion == [(2, 3, "k2", '{"says": 2}'), (3, 4, "k3", '{"says": 3}')]
        assert [row[0] for row in await ledger.query("unsent_rows", (3, "default", JOB, 9))] == [4]

        await ledger.recheck([checked(1, says="x"), invalid(2), checked(3, says="new"), invalid(4)])
        assert list((await states(ledger)).values()) == ["pending", "invalid", "pending", "invalid"]
        bodies = {s.row: s.body for s in (await ledger.exchange([], {"default": 9})).starts}
        assert bodies == {1: checked(1).body, 3: checked(3, says="new").body}


class TestReading:
    @pytest.fixture(autouse=True)
    def small_portions(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(reading, "PORTION", 2)

    async def test_results_can_be_chosen(self, ledger: Ledger) -> None:
        await send(ledger, "started", "started", "started", "rejected")
        told = [
            RunStatus("", "", finished, good)
            for finished, good in ((True, True), (True, False), (False, False))
        ]
        await ledger.record_runs([(n, 1, run) for n, run in enumerate(told, 1)])
        wanted: list[dict[str, Any]] = [
            {},
            {"states": ["started"]},
            {"states": [RowState.PENDING]},
            {"states": ["rejected", "pending"]},
            {"run": "succeeded"},
            {"run": "failed"},
            {"run": "unfinished"},
            {"keys": ["k4", "none", "k1", "k2"]},
            {"keys": ["k4", "k1", "k2"], "states": ["rejected"]},
        ]
        chosen = [[row.row for row in await read(ledger, **some)] for some in wanted]
        assert chosen == [[1, 2, 3, 4], [1, 2, 3], [], [4], [1], [2], [3], [1, 2, 4], [4]]
        assert [row.says for row in await read(ledger, with_rows=True, keys=["k3"])] == [
            '{"says": 3}'
        ]
        assert (await read(ledger))[0].says is None

    async def test_a_row_tells_of_the_attempt_that_counts(
        self, ledger: Ledger, hands: Hands
    ) -> None:
        [start] = (await ledger.exchange([], {"default": 1})).starts
        hands.move(0.25)
        await ledger.exchange([outcome(start, "rejected", status=400, error="no")], {})
        row = (await read(ledger))[0]
        assert (row.status, row.error) == (400, "no")
        assert (row.sent_utc, row.answered_utc) == (
            "2026-11-18T11:08:20.000Z",
            "2026-11-18T11:08:20.250Z",
        )

    async def test_the_log_tells_everything_in_order_of_time(
        self, ledger: Ledger, hands: Hands
    ) -> None:
        first, second, _third = (await ledger.exchange([], {"default": 3})).starts
        hands.move(1)
        await ledger.exchange([outcome(second, "rejected", error="no")], {})
        hands.move(1)
        await ledger.note("pause", "default", "503")
        hands.move(1)
        await ledger.exchange([outcome(first, "started")], {})
        hands.move(1)
        await ledger.end_session(0, [])
        entries = [entry async for portion in ledger.log() for entry in portion]
        told = [(entry.kind, entry.key) for entry in entries]
        assert told == [
            ("began", None),
            ("attempt", "k3"),
            ("attempt", "k2"),
            ("event", None),
            ("attempt", "k1"),
            ("ended", None),
        ]
        assert entries[2].details["error"] == "no"
        assert entries[3].details == {"event": "pause", "target": "default", "text": "503"}

        later = [e.kind async for portion in ledger.log(after_ms=entries[2].ms) for e in portion]
        of_row = [e.kind async for portion in ledger.log(key="k1") for e in portion]
        of_none = [e async for portion in ledger.log(key="none") for e in portion]
        assert (later, of_row, of_none) == (["event", "attempt", "ended"], ["attempt"], [])

    async def test_counts_are_of_all_rows_and_of_each_target(self, place: str) -> None:
        rows: list[CheckedRow | InvalidRow] = [
            *(checked(n, target="acme" if n > 3 else "default") for n in range(1, 6)),
            invalid(6),
        ]

        async with await make(place, rows) as ledger:
            await ledger.begin_session(session("default", "acme"))
            await send(ledger, "retry", "unknown", "failed")
            await send(ledger, "started")
            await ledger.exchange([], {"acme": 1})
            counts, targets = await ledger.counts()

        assert (counts.rows, counts.started, counts.possible_duplicates, counts.attempts) == (
            6,
            1,
            1,
            5,
        )
        assert (counts.unknown, counts.failed, counts.invalid) == (1, 1, 1)
        assert (targets["acme"].in_flight, targets["acme"].pending, targets["acme"].rows) == (
            1,
            1,
            2,
        )
        assert targets["default"].rows == 4


class TestRuns:
    async def test_those_that_have_not_finished_are_asked_about(self, ledger: Ledger) -> None:
        await send(ledger, "started", "started", "rejected", "started")
        asked = await ledger.runs_to_ask(0, 2)
        assert [(run.row, run.attempt, run.job_run_id) for run in asked] == [
            (1, 1, run_id(101)),
            (2, 1, run_id(201)),
        ]

        ended = RunStatus(
            "", run_id(101), True, False, "no\udcff", None, "2026-11-18T10:00:00Z", (1,)
        )
        await ledger.record_runs([(1, 1, ended), (2, 1, "403: not yours")])
        assert [run.row for run in await ledger.runs_to_ask(0)] == [2, 4]
        runs = await ledger.watch_summary()
        assert (runs[:4], runs.failures) == ((0, 1, 1, 1), (("no\\udcff", 1, "k1"),))
        row = (await read(ledger))[0]
        assert (row.finished, row.success, row.status_text) == (1, 0, "no\\udcff")
        assert (row.finished_utc, row.output_files) == ("2026-11-18T10:00:00Z", "[1]")

    async def test_the_commonest_failures_come_first(self, ledger: Ledger) -> None:
        await send(ledger, *["started"] * 4)
        texts = ["rare", "often", "often", None]
        await ledger.record_runs(
            [(n, 1, RunStatus("", "", True, text is None, text)) for n, text in enumerate(texts, 1)]
        )
        counts = await ledger.watch_summary()
        assert (counts.succeeded, counts.failed) == (1, 3)
        assert counts.failures == (("often", 2, "k2"), ("rare", 1, "k1"))
