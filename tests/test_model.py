"""The values that travel: what a batch deserves as its exit code, and what is shown."""

from __future__ import annotations

from typing import Any

import pytest

from deslaunch.model import (
    GOT_LIMIT,
    Evidence,
    RowProblem,
    RowState,
    Stop,
    StopReason,
    Summary,
    WatchSummary,
    shown,
)

INTERRUPTED = Stop(StopReason.INTERRUPTED, "interrupted", signal=2)
TERMINATED = Stop(StopReason.INTERRUPTED, "terminated", signal=15)
CANCELLED = Stop(StopReason.INTERRUPTED, "cancelled")


def stop(reason: StopReason) -> Stop:
    return Stop(reason, "why", "default")


def summary(**counts: Any) -> Summary:
    nothing = dict.fromkeys(
        (
            "rows",
            "started",
            "failed",
            "rejected",
            "unknown",
            "invalid",
            "pending",
            "in_flight",
            "possible_duplicates",
            "attempts",
        ),
        0,
    )
    return Summary(**{**nothing, "seconds": 0.0, "ledger": "night.ledger.jsonl", **counts})


@pytest.mark.parametrize(
    ("counts", "stops", "code"),
    [
        pytest.param({}, [], 0, id="no-rows"),
        pytest.param({"started": 9}, [], 0, id="all-started"),
        pytest.param({"started": 9, "possible_duplicates": 2}, [], 0, id="duplicates-are-told"),
        pytest.param({"failed": 1}, [], 3, id="failed"),
        pytest.param({"rejected": 1}, [], 3, id="rejected"),
        pytest.param({"invalid": 1}, [], 3, id="invalid"),
        pytest.param({"unknown": 1}, [], 4, id="unknown"),
        pytest.param({"unknown": 1, "failed": 1}, [], 4, id="unknown-over-failed"),
        pytest.param({"pending": 1}, [], 5, id="pending"),
        pytest.param({"in_flight": 1}, [], 5, id="in-flight"),
        pytest.param({"pending": 1, "unknown": 1}, [], 5, id="pending-over-unknown"),
        *(
            pytest.param({"pending": 1}, [stop(reason)], 5, id=reason.value)
            for reason in (
                StopReason.UNREACHABLE,
                StopReason.FIRST_CONTACT,
                StopReason.THROTTLED,
                StopReason.CONFIGURATION,
                StopReason.TOO_MANY_ERRORS,
                StopReason.MANIFEST_CHANGED,
            )
        ),
        pytest.param({}, [stop(StopReason.MANIFEST_CHANGED)], 5, id="changed-at-its-end"),
        pytest.param({"pending": 1}, [stop(StopReason.CREDENTIALS)], 6, id="credentials"),
        pytest.param({}, [stop(StopReason.CREDENTIALS)], 0, id="credentials-and-nothing-left"),
        pytest.param(
            {"unknown": 1}, [stop(StopReason.FIRST_CONTACT)], 4, id="first-contact-and-nothing-left"
        ),
        pytest.param({"failed": 1}, [stop(StopReason.THROTTLED)], 3, id="stop-and-nothing-left"),
        pytest.param(
            {"pending": 1},
            [stop(StopReason.UNREACHABLE), stop(StopReason.CREDENTIALS)],
            6,
            id="credentials-over-stops",
        ),
        pytest.param(
            {"pending": 1}, [INTERRUPTED, stop(StopReason.CREDENTIALS)], 6, id="6-over-130"
        ),
        pytest.param({"pending": 1}, [INTERRUPTED, stop(StopReason.THROTTLED)], 5, id="5-over-130"),
        pytest.param({}, [stop(StopReason.LEDGER)], 7, id="ledger"),
        pytest.param(
            {"pending": 1},
            [stop(StopReason.CREDENTIALS), stop(StopReason.LEDGER), INTERRUPTED],
            7,
            id="ledger-over-all",
        ),
        pytest.param({"pending": 1}, [INTERRUPTED], 130, id="interrupted"),
        pytest.param({"pending": 1}, [TERMINATED], 143, id="terminated"),
        pytest.param({"pending": 1, "unknown": 1}, [TERMINATED], 143, id="143-over-4"),
        pytest.param({"pending": 1}, [CANCELLED, TERMINATED], 143, id="cancelled-then-terminated"),
        pytest.param({"pending": 1}, [CANCELLED], 130, id="cancelled-without-a-signal"),
        pytest.param({"unknown": 1}, [INTERRUPTED], 4, id="interrupted-and-nothing-left"),
        pytest.param({"started": 1}, [CANCELLED], 0, id="cancelled-and-nothing-left"),
    ],
)
def test_what_a_batch_deserves(counts: dict[str, int], stops: list[Stop], code: int) -> None:
    assert summary(**counts, stops=tuple(stops)).exit_code == code


def test_a_summary_has_the_documented_form() -> None:
    said = summary(
        rows=9, started=5, unknown=4, attempts=11, possible_duplicates=2, seconds=1.23456
    )

    assert said.as_dict() == {
        "rows": 9,
        "started": 5,
        "failed": 0,
        "rejected": 0,
        "unknown": 4,
        "invalid": 0,
        "pending": 0,
        "inFlight": 0,
        "possibleDuplicates": 2,
        "attempts": 11,
        "seconds": 1.235,
        "ledger": "night.ledger.jsonl",
        "exitCode": 4,
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [
        pytest.param("abc", "abc", id="text"),
        pytest.param("", "", id="empty"),
        pytest.param(12, "12", id="number"),
        pytest.param(None, "None", id="none"),
        pytest.param("x" * GOT_LIMIT, "x" * GOT_LIMIT, id="as-long-as-may-be"),
        pytest.param("x" * (GOT_LIMIT + 1), "x" * (GOT_LIMIT - 1) + "…", id="too-long"),
    ],
)
def test_what_came_is_shown_at_a_sane_length(value: object, text: str) -> None:
    assert shown(value) == text


@pytest.mark.parametrize(
    ("column", "text"),
    [
        pytest.param("DBGenFrom", "night.csv:18, column DBGenFrom: why", id="column"),
        pytest.param("", "night.csv:18: why", id="whole-row"),
    ],
)
def test_a_problem_reads_as_its_place_and_its_sentence(column: str, text: str) -> None:
    problem = RowProblem("night.csv", 18, 17, column, "an integer", "x", "why")

    assert str(problem) == text
    assert problem.as_dict() == {
        "file": "night.csv",
        "line": 18,
        "row": 17,
        "column": column,
        "expected": "an integer",
        "got": "x",
        "message": "why",
    }


def test_evidence_begins_unsent() -> None:
    evidence = Evidence()
    before = repr(evidence)
    evidence.sent = True

    assert (before, repr(evidence)) == ("<Evidence sent=False>", "<Evidence sent=True>")


def test_states_are_the_words_of_the_ledger() -> None:
    assert [str(state) for state in RowState] == [
        "pending",
        "started",
        "failed",
        "rejected",
        "unknown",
        "invalid",
        "inFlight",
    ]


@pytest.mark.parametrize(
    ("runs", "rows", "stops", "code"),
    [
        pytest.param({"succeeded": 2}, {}, [], 0, id="success"),
        pytest.param({"failed": 1, "succeeded": 1}, {}, [], 3, id="failed"),
        pytest.param({"succeeded": 1}, {"rejected": 1}, [], 3, id="rejected-row"),
        pytest.param({"succeeded": 1}, {"invalid": 1}, [], 3, id="invalid-row"),
        pytest.param({"failed": 1}, {"unknown": 1}, [], 4, id="unknown-row-over-failed-run"),
        pytest.param({"untold": 1, "failed": 1}, {}, [], 4, id="untold"),
        pytest.param({"untold": 1}, {"pending": 1}, [], 5, id="pending-row-over-untold"),
        pytest.param({"unfinished": 1, "untold": 1}, {}, [], 5, id="unfinished-over-untold"),
        pytest.param({"unfinished": 1}, {}, [stop(StopReason.OUT_OF_TIME)], 5, id="out-of-time"),
        pytest.param({"unfinished": 1}, {}, [INTERRUPTED], 130, id="interrupted"),
        pytest.param({"unfinished": 1}, {}, [TERMINATED], 143, id="terminated"),
        pytest.param({"succeeded": 1}, {}, [TERMINATED], 0, id="terminated-and-nothing-left"),
        pytest.param(
            {"unfinished": 1}, {}, [stop(StopReason.THROTTLED), TERMINATED], 5, id="5-over-143"
        ),
        pytest.param(
            {"unfinished": 1}, {}, [TERMINATED, stop(StopReason.CREDENTIALS)], 6, id="credentials"
        ),
        pytest.param({"failed": 1}, {}, [stop(StopReason.CREDENTIALS)], 3, id="nothing-left"),
        pytest.param({"succeeded": 1}, {}, [stop(StopReason.LEDGER)], 7, id="ledger"),
    ],
)
def test_what_a_watch_deserves(
    runs: dict[str, int], rows: dict[str, int], stops: list[Stop], code: int
) -> None:
    counts: dict[str, Any] = dict.fromkeys(("succeeded", "failed", "untold", "unfinished"), 0)
    found = WatchSummary(
        sum(runs.values()), **(counts | runs), batch=summary(**rows), stops=tuple(stops)
    )

    assert found.exit_code == code
    assert found.as_dict()["exitCode"] == code
