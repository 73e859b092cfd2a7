"""What a response means, how long a row waits, and what it does meanwhile."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from fakes import VERDICTS, FakeRow
from hypothesis import given
from hypothesis import strategies as st
from sessions import Bench, MostJitter, keys

from deslaunch.errors import (
    CredentialsRefused,
    DesError,
    OutcomeUnknown,
    Rejected,
    ServerError,
    Unauthorized,
)
from deslaunch.events import RetryPlanned
from deslaunch.launch.retry import ERROR_LIMIT, ended, verdict, wait_after
from deslaunch.model import Outcome, Result, RowState, Start
from deslaunch.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping

START = Start(7, 2, "k", "acme", "job", b"{}")


def named(name: str) -> Any:
    return VERDICTS[name]()


# The verdict table.


@pytest.mark.parametrize(
    ("error", "tuning", "result"),
    [
        pytest.param(named("unsent"), {}, Result.UNSENT, id="not-sent"),
        pytest.param(named("late"), {}, Result.UNSENT, id="too-late"),
        pytest.param(named("bad url"), {}, Result.UNSENT, id="misconfigured"),
        pytest.param(CredentialsRefused("none"), {}, Result.UNSENT, id="no-token"),
        pytest.param(named("429"), {}, Result.THROTTLED, id="429"),
        pytest.param(Unauthorized("401"), {}, Result.THROTTLED, id="401"),
        pytest.param(named("redirect"), {}, Result.THROTTLED, id="307"),
        pytest.param(named("400"), {}, Result.REJECTED, id="400"),
        pytest.param(named("503"), {}, Result.RETRY, id="503"),
        pytest.param(named("502 for 9"), {}, Result.RETRY, id="502-with-a-wait"),
        pytest.param(
            ServerError("500", status=500, retry_after=900.0), {}, Result.RETRY, id="longest-wait"
        ),
        pytest.param(
            ServerError("500", status=500, retry_after=901.0), {}, Result.FAILED, id="wait-too-long"
        ),
        pytest.param(named("504"), {}, Result.UNKNOWN, id="504"),
        pytest.param(OutcomeUnknown("524", status=524), {}, Result.UNKNOWN, id="524"),
        pytest.param(OutcomeUnknown("408", status=408), {}, Result.UNKNOWN, id="408"),
        pytest.param(named("lost"), {}, Result.UNKNOWN, id="lost"),
        pytest.param(named("504"), {"retry_5xx": "all"}, Result.RETRY, id="all-504"),
        pytest.param(named("lost"), {"retry_5xx": "all"}, Result.UNKNOWN, id="all-lost"),
        pytest.param(named("400"), {"retry_5xx": "all"}, Result.REJECTED, id="all-400"),
        pytest.param(named("500"), {"retry_5xx": "none"}, Result.UNKNOWN, id="none-500"),
        pytest.param(named("503"), {"retry_5xx": "none"}, Result.UNKNOWN, id="none-503"),
    ],
)
def test_what_an_error_makes_of_an_attempt(
    error: DesError, tuning: Mapping[str, Any], result: Result
) -> None:
    assert verdict(error, START, Settings(**tuning)) is result


@pytest.mark.parametrize(
    ("name", "result"),
    [
        pytest.param("500", Result.UNKNOWN, id="500"),
        pytest.param("lost", Result.UNKNOWN, id="lost"),
        pytest.param("429", Result.THROTTLED, id="429"),
        pytest.param("unsent", Result.UNSENT, id="unsent"),
        pytest.param("400", Result.REJECTED, id="400"),
    ],
)
def test_an_auto_value_row_is_never_sent_after_a_doubt(name: str, result: Result) -> None:
    auto = START._replace(auto=True)
    assert verdict(named(name), auto, Settings(retry_5xx="all")) is result


@pytest.mark.parametrize("most", [1, 2, 5])
def test_the_last_attempt_fails(most: int) -> None:
    settings = Settings(max_attempts=most)
    found = [verdict(named("500"), START._replace(retries=n), settings) for n in range(most)]
    assert found == [*[Result.RETRY] * (most - 1), Result.FAILED]


def test_the_outcome_of_a_start_names_its_run() -> None:
    found = ended(START, Result.STARTED, job_run_id="run")
    assert found == Outcome(
        7, 2, "k", "acme", "job", Result.STARTED, RowState.STARTED, "run", 200, attempts=2
    )


def test_an_outcome_says_what_came() -> None:
    lost = OutcomeUnknown("not its job", status=200, response="<html>", job_run_id="run")
    unknown = ended(START, Result.UNKNOWN, lost)
    rejected = ended(START, Result.REJECTED, Rejected("400: bad", status=400, response="{}"))

    assert (unknown.row, unknown.attempt, unknown.key, unknown.target) == (7, 2, "k", "acme")
    assert (unknown.error, unknown.status, unknown.job_run_id) == (
        "not its job\n<html>",
        200,
        "run",
    )
    assert (unknown.state, unknown.not_before) == (RowState.UNKNOWN, None)
    assert (rejected.error, rejected.status, rejected.not_before) == ("400: bad", 400, None)


def test_a_row_that_may_be_sent_again_is_pending_with_a_time() -> None:
    again = ended(START, Result.RETRY, named("500"), 2.5)
    unsent = ended(START, Result.UNSENT, "held back")

    assert (again.state, again.not_before, again.status) == (RowState.PENDING, 2.5, 500)
    assert (unsent.state, unsent.not_before, unsent.error) == (RowState.PENDING, 0.0, "held back")
    assert unsent.status is None


def test_an_outcomes_error_is_cut() -> None:
    long = OutcomeUnknown("x", response="y" * 5_000)
    assert len(ended(START, Result.UNKNOWN, long).error) == ERROR_LIMIT


# Waits.


@given(
    failures=st.integers(0, 10_000),
    asked=st.none() | st.floats(0, 10_000),
    max_wait=st.floats(0.01, 1e12),
    seed=st.integers(0, 2**16),
)
def test_a_wait_lies_between_half_and_all_and_is_never_shorter_than_asked(
    failures: int, asked: float | None, max_wait: float, seed: int
) -> None:
    ceiling = min(max_wait, 2.0 ** min(failures, 62))
    wait = wait_after(failures, max_wait, random.Random(seed), asked)

    assert wait >= max(ceiling / 2, asked or 0.0)
    assert wait <= max(ceiling, asked or 0.0)


def test_waits_double_up_to_their_cap() -> None:
    most = MostJitter()

    assert [wait_after(n, 20.0, most) for n in range(6)] == [1.0, 2.0, 4.0, 8.0, 16.0, 20.0]


def test_rows_that_failed_together_do_not_come_back_together() -> None:
    rng = random.Random(7)
    assert len({wait_after(1, 60.0, rng) for _ in range(100)}) == 100


# Rows that wait, in a session.


async def test_a_row_that_waits_gives_its_slot_to_another() -> None:
    bench = Bench(["first", "a", "b"], slots=1, script={"a": ["503"]})
    await bench.finish()

    assert bench.des.keys() == ["first", "a", "b", "a"]
    assert bench.times("a") == pytest.approx([0.0, 2.0], abs=0.01)


async def test_server_errors_use_up_the_attempts() -> None:
    bench = Bench(["a"], script={"a": ["500"] * 9}, max_attempts=4)
    await bench.finish()

    assert bench.times() == pytest.approx([0.0, 2.0, 6.0, 14.0], abs=0.01)
    assert bench.ledger.results("a") == ["retry", "retry", "retry", "failed"]
    planned = [(event.outcome.key, event.seconds) for event in bench.told(RetryPlanned)]
    assert planned == [("a", 2.0), ("a", 4.0), ("a", 8.0)]
    assert bench.ledger.last("a").error == "DES responded 500: oops"
    assert bench.ended() == ["a"]


async def test_a_longer_wait_that_des_asks_for_is_kept() -> None:
    bench = Bench(["first", "a"], script={"a": ["502 for 9"]})
    await bench.finish()

    assert bench.times("a") == pytest.approx([0.0, 9.0], abs=0.01)


async def test_no_wait_is_longer_than_was_asked_for() -> None:
    bench = Bench(["first", "a"], script={"a": ["503"] * 4}, max_wait=3.0)
    await bench.finish()

    assert bench.times("a") == pytest.approx([0.0, 2.0, 5.0, 8.0, 11.0], abs=0.05)


async def test_many_rows_that_wait_hold_no_slot() -> None:
    rows = keys("r", 40)
    bench = Bench(["first", *rows], slots=2, script={key: ["503"] for key in rows})
    await bench.begin()

    assert len(bench.told(RetryPlanned)) == 40

    await bench.finish()
    assert bench.started() == {"first", *rows}


async def test_a_throttle_uses_no_attempt() -> None:
    bench = Bench(["a"], script={"a": ["429", "unsent", "429"]}, max_attempts=1)
    await bench.finish()

    assert bench.ledger.results("a") == ["throttled", "unsent", "throttled", "started"]
    assert (bench.session.claimed, bench.session.started_now) == (4, 1)


async def test_a_row_of_an_auto_value_is_unknown_after_a_5xx() -> None:
    bench = Bench(["first", FakeRow(0, "a", auto=True)], script={"a": ["500"]})
    await bench.finish()

    assert bench.state("a") is RowState.UNKNOWN
    assert bench.des.keys() == ["first", "a"]


@pytest.mark.parametrize("rows", [["first", "a", "b"], ["a", "b"]], ids=["later", "first"])
async def test_a_row_whose_turn_came_too_late_is_sent_again_and_pauses_nothing(
    rows: list[str],
) -> None:
    bench = Bench(rows, slots=1, script={"a": ["late"]})
    await bench.finish()

    assert bench.ledger.results("a") == ["unsent", "started"]
    assert (bench.clock.now() - bench.des.began < 0.01, bench.ledger.notes) == (True, [])
