from __future__ import annotations

from typing import Any

import pytest

from deslaunch.model import (
    Outcome,
    Plan,
    Planned,
    Pulse,
    RetryPlanned,
    RowEnded,
    RowProblem,
    RowState,
    TargetPaused,
)
from deslaunch.progress import MAX_CAUSES, Causes, Tally, duration


def outcome(state: RowState = RowState.REJECTED, row: int = 1, **more: Any) -> Outcome:
    return Outcome(f"k{row}", row, "default", None, state, **more)


def a_plan(ready: int) -> Plan:
    return Plan("m", "l", False, ready, 0, ready, (), {}, 16)


def test_errors_that_differ_in_numbers_and_ids_are_one_cause() -> None:
    causes = Causes()
    ids = ("3283fa96-5ec2-4aa9-928b-d1cd07aa0763", "43F87799-62c6-4001-92f9-6b3df816a6d6")

    told = [
        causes.add(outcome(row=n, status=400, error=f"run {ids[n]} of generation {n}\n at 6:1{n}"))
        for n in range(2)
    ]

    assert [cause is not None for cause in told] == [True, False]
    assert [str(cause) for cause in causes] == [
        (
            "2 rows rejected: HTTP 400: run 3283fa96-5ec2-4aa9-928b-d1cd07aa0763 of generation 0 "
            "at 6:10"
        )
    ]


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"state": RowState.FAILED}, id="state"),
        pytest.param({"status": 404}, id="status"),
        pytest.param({"error": "another"}, id="words"),
    ],
)
def test_what_differs_otherwise_is_another_cause(other: dict[str, Any]) -> None:
    causes = Causes()
    said: dict[str, Any] = {"state": RowState.REJECTED, "status": 400, "error": "no"}

    causes.add(outcome(**said))
    causes.add(outcome(**(said | other)))

    assert [cause.rows for cause in causes] == [1, 1]


def test_started_rows_have_no_cause() -> None:
    causes = Causes()

    assert causes.add(outcome(RowState.STARTED)) is None
    assert list(causes) == []


def test_a_cause_names_its_first_row_and_line() -> None:
    problem = RowProblem("m", 8, 7, "x", "an integer", "y", "no integer")
    causes = Causes()

    causes.add(outcome(RowState.INVALID, 7, problems=(problem,)))
    causes.add(outcome(RowState.INVALID, 9, problems=(problem,)))
    causes.add(Outcome(None, 9, "", None, RowState.INVALID, error="e" * 500))

    first, second = causes
    assert str(first) == "2 rows invalid: no integer (first: row 7, line 8, key k7)"
    assert second.example == " (first: row 9)"
    assert len(second.error) == 160


def test_more_causes_than_are_told_apart_are_counted_together() -> None:
    causes = Causes()

    for number in range(MAX_CAUSES + 50):
        causes.add(outcome(error="x" * (number % 150) + chr(0x4E00 + number)))

    most, *rest = causes
    assert (str(most), len(rest)) == ("50 rows rejected: for other reasons", MAX_CAUSES)


def test_the_rate_is_that_of_the_last_half_minute() -> None:
    tally = Tally(0.0)
    tally.take(Planned(a_plan(10_000)), 100.0)

    for second in range(101, 161):
        for _ in range(1 if second <= 130 else 10):
            tally.take(RowEnded(outcome(RowState.STARTED)), float(second))

        tally.take(Pulse(1, 0, 16), float(second))

    assert tally.rate(160.0) == pytest.approx(10.0)
    assert tally.left == 9_670
    assert tally.seconds_left(160.0) == pytest.approx(967.0)

    tally.take(TargetPaused("acme", "HTTP 503", 8.0), 160.0)
    assert tally.seconds_left(160.0) == pytest.approx(975.0)


def test_the_time_that_a_person_thought_about_the_plan_does_not_count() -> None:
    tally = Tally(0.0)
    tally.take(Planned(a_plan(10)), 0.0)
    tally.take(Pulse(0, 0, 1), 500.0)
    tally.take(RowEnded(outcome(RowState.STARTED)), 500.5)
    tally.take(Pulse(0, 0, 1), 501.0)

    assert tally.rate(501.0) == pytest.approx(1.0)


def test_what_is_left_is_not_known_without_a_plan() -> None:
    tally = Tally(0.0)

    assert (tally.left, tally.seconds_left(1.0)) == (None, None)


def test_invalid_rows_are_no_part_of_what_is_left() -> None:
    tally = Tally(0.0)
    tally.take(Planned(a_plan(2)), 0.0)
    tally.take(RowEnded(outcome(RowState.INVALID)), 0.0)
    tally.take(RowEnded(outcome(RowState.STARTED)), 0.0)

    assert (tally.ended, tally.left) == (2, 1)


def test_a_pause_is_told_until_it_is_over() -> None:
    tally = Tally(0.0)
    tally.take(TargetPaused("acme", "HTTP 503", 8.0), 1.0)
    tally.take(RetryPlanned("k", "acme", 500, 1.0), 1.0)

    assert list(tally.pauses(3.0)) == [("acme", 6.0, "HTTP 503")]
    assert list(tally.pauses(9.0)) == []
    assert tally.retries == 1


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        pytest.param(0.2, "1 s", id="none"),
        pytest.param(119.4, "119 s", id="seconds"),
        pytest.param(120, "2 min", id="minutes"),
        pytest.param(3_600, "1 h", id="an hour"),
        pytest.param(11_100, "3 h 5 min", id="hours"),
    ],
)
def test_a_duration_is_said_as_a_person_does(seconds: float, said: str) -> None:
    assert duration(seconds) == said
