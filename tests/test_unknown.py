"""What a person found out about a row counts, as long as nothing else is known of it."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any, Final

import pytest
from ledgers import Hands, begin, checked, crash, make, outcome, read, run_id, send, session, states

from deslaunch.errors import ManifestError
from deslaunch.ledger.changes import Finding, read_findings, write_unknown, write_unrecorded
from deslaunch.ledger.ledger import open_ledger, take_ledger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from deslaunch.ledger.changes import Verdict
    from deslaunch.ledger.ledger import Ledger

RUN: Final = run_id(9)


@pytest.fixture
def place(batch_place: str) -> str:
    return batch_place


@pytest.fixture
def hands() -> Hands:
    return Hands()


@pytest.fixture
async def ledger(place: str, hands: Hands) -> AsyncIterator[Ledger]:
    """One row of each kind, and a window that is over."""
    keys = ("unknown", "failed", "rejected", "started", "spare", "pending")
    rows = [checked(n, key) for n, key in enumerate(keys, 1)]

    async with await make(place, rows, hands) as made:
        await made.begin_session(session())
        await send(made, "unknown", "failed", "rejected", "started", "retry")
        await send(made, "started")
        hands.move(60)
        yield made


def found(key: str, verdict: Verdict, run: str | None = None) -> Finding:
    return Finding(key, verdict, run or (RUN if verdict == "started" else None))


TAKEN: Final = [
    pytest.param("unknown", "started", ("started", 0), id="unknown: started"),
    pytest.param("unknown", "notStarted", ("pending", 0), id="unknown: not started"),
    pytest.param("unknown", "unknown", ("unknown", 0), id="unknown: still"),
    pytest.param("failed", "started", ("started", 0), id="failed: started"),
    pytest.param("failed", "notStarted", ("pending", 0), id="failed: not started"),
    pytest.param("failed", "unknown", ("failed", 0), id="failed: nothing known"),
    pytest.param("spare", "notStarted", ("started", 0), id="possible duplicate: is none"),
]


async def test_a_run_that_was_recorded_after_all_is_known_already(ledger: Ledger) -> None:
    [row] = await read(ledger, keys=["started"])
    findings = [found("started", "started", row.job_run_id), found("unknown", "started")]

    done = await ledger.resolve(findings)

    assert (done.changed, done.same) == (1, 1)
    assert await read(ledger, keys=["started"]) == [row]


async def test_another_run_than_was_recorded_is_refused(ledger: Ledger) -> None:
    with pytest.raises(ManifestError, match="'started' is started: DES said so itself"):
        await ledger.resolve([found("started", "started")])


@pytest.mark.parametrize(("key", "verdict", "expected"), TAKEN)
async def test_a_finding_counts(
    key: str, verdict: Verdict, expected: tuple[str, int], ledger: Ledger
) -> None:
    done = await ledger.resolve([found(key, verdict)])
    [row] = await read(ledger, keys=[key])
    assert (row.state, row.possible_duplicate) == expected
    assert (done.changed, done.same) == ((0, 1) if verdict == "unknown" else (1, 0))

    if verdict == "started":
        assert row.job_run_id == RUN

    again = await ledger.resolve([found(key, verdict)])
    assert (again.changed, again.same) == (0, 1)


@pytest.mark.parametrize(("key", "verdict"), [("unknown", "notStarted"), ("failed", "notStarted")])
async def test_a_row_that_was_not_started_is_sent(
    key: str, verdict: Verdict, ledger: Ledger
) -> None:
    await ledger.resolve([found(key, verdict)])
    starts = (await ledger.exchange([], {"default": 9})).starts
    assert [(start.key, start.retries) for start in starts] == [(key, 0), ("pending", 0)]

    [told] = (await ledger.exchange([outcome(starts[0], "started")], {})).outcomes
    assert (told.state, told.possible_duplicate) == ("started", False)


REFUSED: Final = [
    pytest.param([found("none", "unknown")], "'none' is no key", id="an unknown key"),
    pytest.param([found("pending", "notStarted")], "is pending", id="pending"),
    pytest.param([found("rejected", "started")], "is rejected", id="rejected"),
    pytest.param([found("started", "notStarted")], "is started", id="started"),
    pytest.param([found("spare", "started")], "DES said so", id="started, and another may be"),
    pytest.param([found("failed", "started", "x")], "GUID", id="no GUID"),
    pytest.param([found("failed", "started", run_id(401))], "of row 'started'", id="another's run"),
    pytest.param([found("failed", "unknown")] * 2, "comes twice", id="a key twice"),
    pytest.param(
        [found("failed", "started"), found("unknown", "started")], "'failed'", id="one run"
    ),
]


@pytest.mark.parametrize(("findings", "message"), REFUSED)
async def test_all_findings_are_taken_or_none(
    findings: list[Finding], message: str, ledger: Ledger
) -> None:
    before = await states(ledger)

    with pytest.raises(ManifestError, match=message):
        await ledger.resolve([found("unknown", "notStarted"), *findings][-2:])

    with pytest.raises(ManifestError, match=message):
        await ledger.resolve([*findings, found("unknown", "notStarted")][:2])

    assert await states(ledger) == before


class TestChanges:
    async def test_a_finding_can_be_changed_until_the_row_is_sent_again(
        self, ledger: Ledger
    ) -> None:
        seen = []

        for verdict in ("started", "notStarted", "unknown", "notStarted"):
            await ledger.resolve([found("unknown", verdict)])
            seen.append((await states(ledger))["unknown"])

        assert seen == ["started", "pending", "unknown", "pending"]
        [start, *_] = (await ledger.exchange([], {"default": 1})).starts
        await ledger.exchange([outcome(start, "unsent")], {})
        await ledger.resolve([found("unknown", "unknown")])
        assert (await states(ledger))["unknown"] == "unknown"

        await ledger.resolve([found("unknown", "notStarted")])
        [start, *_] = (await ledger.exchange([], {"default": 1})).starts

        with pytest.raises(ManifestError, match="in flight"):
            await ledger.resolve([found("unknown", "unknown")])

        await ledger.exchange([outcome(start, "rejected")], {})

        with pytest.raises(ManifestError, match="is rejected"):
            await ledger.resolve([found("unknown", "unknown")])

    async def test_what_came_outranks_a_finding(self, place: str) -> None:
        async with await make(place, 1) as ledger:
            await ledger.begin_session(session())
            [start] = (await ledger.exchange([], {"default": 1})).starts
            await ledger.exchange([outcome(start, "unknown", error="given up")], {})
            await ledger.resolve([found("k1", "notStarted")], early=True)
            [told] = (await ledger.exchange([outcome(start, "started")], {})).outcomes
            assert told.state == "started"
            assert [row.job_run_id for row in await read(ledger)] == [run_id(101)]

    async def test_each_time_that_a_row_is_in_doubt_it_can_be_resolved(
        self, ledger: Ledger
    ) -> None:
        for verdict in ("notStarted", "notStarted", "started"):
            done = await ledger.resolve([found("unknown", verdict)], early=True)
            assert (done.changed, done.same) == (1, 0)

            if verdict == "notStarted":
                [start, *_] = (await ledger.exchange([], {"default": 1})).starts
                await ledger.exchange([outcome(start, "unknown")], {})

        [row] = await read(ledger, keys=["unknown"])
        assert (row.state, row.job_run_id, row.possible_duplicate) == ("started", RUN, 0)

    async def test_what_was_found_before_it_was_sent_again_stays(self, ledger: Ledger) -> None:
        await ledger.resolve([found("unknown", "notStarted")])
        [start, *_] = (await ledger.exchange([], {"default": 1})).starts
        await ledger.exchange([outcome(start, "unknown")], {})

        done = await ledger.resolve([found("unknown", "unknown")])
        assert (done.changed, done.same) == (0, 1)
        await ledger.resolve([found("unknown", "started")])
        await ledger.resolve([found("unknown", "unknown")])
        await ledger.resolve([found("unknown", "started")])

        [row] = await read(ledger, keys=["unknown"])
        assert (row.state, row.possible_duplicate) == ("started", 0)

    async def test_it_gives_no_consent(self, place: str, hands: Hands) -> None:
        await (await make(place, 1, hands)).aclose()

        for result in ("unknown", "throttled"):
            async with await begin(place, hands, retry_unknown=True) as ledger:
                await send(ledger, result)

        async with await begin(place, hands) as ledger:
            await ledger.resolve([found("k1", "notStarted")], early=True)
            await ledger.resolve([found("k1", "unknown")])
            turn = await ledger.exchange([], {"default": 1})
            assert (turn.starts, turn.due) == ([], {"default": None})

    async def test_one_that_is_taken_back_holds_back_a_row_that_waits(
        self, place: str, hands: Hands
    ) -> None:
        async with await make(place, [checked(1, "a")], hands) as ledger:
            await ledger.begin_session(session())
            await send(ledger, "unknown")
            await ledger.resolve([found("a", "notStarted")], early=True)
            await send(ledger, "unsent")  # it waits to be sent again
            await ledger.resolve([found("a", "unknown")], early=True)

            turn = await ledger.exchange([], {"default": 1})
            assert (turn.starts, turn.due) == ([], {"default": None})

    async def test_an_outcome_ends_its_attempt_once(self, ledger: Ledger, place: str) -> None:
        [start] = (await ledger.exchange([], {"default": 1})).starts
        await ledger.exchange([outcome(start, "started")], {})
        [told] = (await ledger.exchange([outcome(start, "rejected")], {})).outcomes
        assert told.state == "started"

    async def test_in_flight_of_a_launcher_that_is_gone_is_unknown(
        self, ledger: Ledger, place: str, hands: Hands
    ) -> None:
        await ledger.exchange([], {"default": 1})
        await crash(ledger)
        hands.move(60)

        async with await open_ledger(place, clock=hands.clock) as reader:
            assert (await states(reader))["pending"] == "unknown"
            await reader.resolve([found("pending", "started")])
            assert (await states(reader))["pending"] == "started"

        async with await begin(place) as resumed:
            assert (await states(resumed))["pending"] == "started"


class TestWindow:
    async def test_that_nothing_was_started_is_not_taken_early(
        self, place: str, hands: Hands
    ) -> None:
        async with await make(place, 2, hands) as ledger:
            await ledger.begin_session(session(timeout=30))
            await send(ledger, "unknown", "unknown")
            findings = [found("k1", "notStarted"), found("k2", "started")]
            hands.move(29.9)
            done = await ledger.resolve(findings)
            assert (done.changed, [key for key, _ in done.early]) == (0, ["k1"])
            assert set((await states(ledger)).values()) == {"unknown"}

            hands.move(0.1)
            assert (await ledger.resolve(findings)).changed == 2

    async def test_it_is_by_the_clock_of_des(self, place: str, hands: Hands) -> None:
        rows = [checked(n, target=target) for n, target in enumerate(("default", "acme"), 1)]

        async with await make(place, rows, hands) as ledger:
            await ledger.begin_session(session("default", "acme", timeout=30))
            await ledger.set_clocks({"acme": -2.5})
            starts = (await ledger.exchange([], {"default": 1, "acme": 1})).starts
            await ledger.exchange([outcome(start, "unknown") for start in starts], {})
            [rows_unknown] = [portion async for portion in ledger.unknown_rows()]

        windows = [
            (row.from_ms - 1_795_000_100_000, row.until_ms - row.from_ms) for row in rows_unknown
        ]
        assert windows == [(0, 30_000), (-2_500, 30_000)]

    async def test_each_attempt_is_by_the_clock_of_its_own_session(
        self, place: str, hands: Hands
    ) -> None:
        await (await make(place, 1, hands)).aclose()

        for ahead in (10.0, -20.0):
            async with await begin(place, hands, retry_unknown=True) as ledger:
                await ledger.set_clocks({"default": ahead})
                await send(ledger, "unknown")

            hands.move(100)

        async with await take_ledger(place) as ledger:
            [[row]] = [portion async for portion in ledger.unknown_rows()]
            assert (row.from_ms, row.until_ms) == (1_795_000_110_000, 1_795_000_240_000)

    async def test_it_spans_all_attempts_in_doubt(self, place: str, hands: Hands) -> None:
        await (await make(place, 1, hands)).aclose()

        for _ in range(2):
            async with await begin(place, hands, retry_unknown=True) as ledger:
                await send(ledger, "unknown", error=f"at {hands.seconds}")

            hands.move(100)

        async with await take_ledger(place) as ledger:
            [[row]] = [portion async for portion in ledger.unknown_rows()]
            assert (row.until_ms - row.from_ms, row.error) == (160_000, "at 200.0")


class TestFiles:
    async def test_the_file_of_unknown_rows_can_be_filled_in(
        self, ledger: Ledger, tmp_path: Path
    ) -> None:
        text = io.StringIO()
        write_unknown(text, [row async for portion in ledger.unknown_rows() for row in portion])
        [line] = csv.DictReader(io.StringIO(text.getvalue()))
        assert line["key"] == "unknown"
        assert (line["createdAfterUtc"], line["createdBeforeUtc"]) == (
            "2026-11-18T11:08:20.000Z",
            "2026-11-18T11:09:20.000Z",
        )

        path = tmp_path / "findings.csv"
        path.write_text(text.getvalue())
        assert read_findings(path) == []

        path.write_text(text.getvalue().replace("unknown,,,", "unknown,not-started,,looked", 1))
        assert read_findings(path) == [Finding("unknown", "notStarted", None, "looked")]
        assert (await ledger.resolve(read_findings(path))).changed == 1

    def test_what_could_not_be_recorded_can_be_taken(self, tmp_path: Path) -> None:
        path = tmp_path / "unrecorded.csv"

        with path.open("w") as stream:
            write_unrecorded(stream, [('a,"b"', RUN)])

        note = "not recorded by its launcher"
        assert read_findings(path) == [Finding('a,"b"', "started", RUN, note)]

    def test_findings_are_read_in_any_case_with_a_note_for_all(self, tmp_path: Path) -> None:
        path = tmp_path / "findings.csv"
        path.write_text(
            f"\ufeffkey,as,jobRunId,note\na,NotStarted,,\n\nb,started,{RUN},mine\nc,UNKNOWN\n"
        )
        assert read_findings(path, note="ours") == [
            Finding("a", "notStarted", None, "ours"),
            Finding("b", "started", RUN, "mine"),
            Finding("c", "unknown", None, "ours"),
        ]

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            pytest.param(
                "f.csv", "name,as\na,unknown\n", "1: expected a column 'key'", id="no key"
            ),
            pytest.param(
                "f.csv", "key;as\na;unknown\n", "1: expected a column 'key'", id="semicolon"
            ),
            pytest.param("f.csv", "key,as\na,perhaps\n", ":2: expected as=", id="no verdict"),
            pytest.param("f.csv", "key,as\na,started\n", ":2: expected as=", id="no run"),
            pytest.param(
                "f.csv", f"key,as,jobRunId\na,unknown,{RUN}\n", ":2: exp", id="a run too many"
            ),
            pytest.param(
                "f.csv", f"key,as,jobRunId\na,,{RUN}\n", ":2: expected as=", id="a run alone"
            ),
            pytest.param(
                "f.csv", "key,as,why\na,unknown,x\n", "unknown column 'why'", id="a column"
            ),
            pytest.param("f.csv", 'key,as\n"a', "not a file of findings", id="a quote"),
            pytest.param("f.csv", "key,as\n,unknown\n", ":2: a finding needs a key", id="no name"),
            pytest.param("f.csv", "key,as\na,,,x\n", "column 'beyond the", id="a cell too many"),
            pytest.param("none.csv", None, "can't be read", id="no file"),
        ],
    )
    def test_a_file_is_taken_whole_or_not_at_all(
        self, name: str, text: Any, message: str, tmp_path: Path
    ) -> None:
        path = tmp_path / name

        if text is not None:
            path.write_text(text)

        with pytest.raises(ManifestError, match=message):
            read_findings(path)
