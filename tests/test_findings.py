"""The rule of findings, without a database: which may be recorded, and what each changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest
from ledgers import run_id

from deslaunch.ledger.changes import Effect, Finding, KnownAttempt, weigh_finding

if TYPE_CHECKING:
    from deslaunch.ledger.changes import Verdict

RUN: Final = run_id(9).replace("0000-4000", "000A-4000")
OTHER: Final = run_id(8)


def attempt(number: int, result: str | None, **known: Any) -> KnownAttempt:
    fields = {"finding": None, "found_run": None, "job_run_id": None, "repeated": None}
    return KnownAttempt(7, number, result, **{**fields, "until_ms": 10 * number, **known})


def weigh(verdict: Verdict, state: str, *attempts: KnownAttempt, **known: Any) -> Effect:
    run = known.pop("run", RUN) if verdict == "started" else None
    return weigh_finding(Finding("k", verdict, run), state, attempts, **known)


NOT_STARTED: Final = {"finding": "notStarted"}
STARTED: Final = {"finding": "started", "found_run": RUN.lower()}

REFUSED: Final = [
    pytest.param("notStarted", "sending", [attempt(1, None)], {}, "is in flight", id="in flight"),
    pytest.param(
        "started", "started", [attempt(1, "started", job_run_id=OTHER)], {}, "DES said so", id="DES"
    ),
    pytest.param(
        "started", "unknown", [attempt(1, "unknown")], {"run": "x"}, "a GUID", id="no GUID"
    ),
    pytest.param("notStarted", "pending", [], {}, "is pending: only", id="never sent"),
    pytest.param("unknown", "rejected", [attempt(1, "rejected")], {}, "is rejected", id="rejected"),
    pytest.param(
        "unknown",
        "pending",
        [attempt(1, "unknown", **NOT_STARTED), attempt(2, "throttled")],
        {"earlier": [(7, 1, "notStarted")]},
        "is pending: only",
        id="sent again since",
    ),
    pytest.param(
        "unknown",
        "started",
        [attempt(1, "retry"), attempt(2, "started", job_run_id=OTHER)],
        {"is_duplicate": True},
        "is started: only",
        id="a possible duplicate, but for notStarted",
    ),
    pytest.param(
        "started",
        "unknown",
        [attempt(1, "unknown")],
        {"owner": "b"},
        f"jobRunId {RUN} is that of row 'b'",
        id="another row's",
    ),
]


@pytest.mark.parametrize(("verdict", "state", "attempts", "known", "problem"), REFUSED)
def test_it_is_refused(
    verdict: Verdict, state: str, attempts: list[KnownAttempt], known: dict[str, Any], problem: str
) -> None:
    effect = weigh(verdict, state, *attempts, **known)
    assert problem in effect.problem
    assert effect.findings == ()


TAKEN: Final = [
    pytest.param(
        "started", "unknown", [attempt(1, "unknown")], {}, {1: ("started", RUN)}, id="a run"
    ),
    pytest.param(
        "started",
        "failed",
        [attempt(1, "retry"), attempt(2, "failed"), attempt(3, "unsent")],
        {},
        {1: (None, None), 2: ("started", RUN)},
        id="of the last one in doubt",
    ),
    pytest.param(
        "notStarted",
        "unknown",
        [attempt(1, "failed"), attempt(2, None), attempt(3, "throttled")],
        {},
        {1: ("notStarted", None), 2: ("notStarted", None)},
        id="none: of all in doubt",
    ),
    pytest.param(
        "notStarted",
        "started",
        [attempt(1, "retry"), attempt(2, "started", job_run_id=OTHER)],
        {"is_duplicate": True},
        {1: ("notStarted", None)},
        id="no duplicate",
    ),
    pytest.param(
        "unknown",
        "pending",
        [attempt(1, "unknown", **NOT_STARTED), attempt(2, "unsent")],
        {"earlier": [(7, 1, "notStarted")]},
        {1: (None, None)},
        id="taken back, nothing left since",
    ),
    pytest.param(
        "started",
        "unknown",
        [attempt(1, "unknown", **NOT_STARTED), attempt(2, "unknown")],
        {"earlier": [(7, 1, "notStarted"), (7, 1, "unknown"), (7, 1, "notStarted")]},
        {2: ("started", RUN)},
        id="what was found before it was sent again stays",
    ),
    pytest.param(
        "notStarted",
        "started",
        [attempt(1, "unknown", **STARTED)],
        {"earlier": [(7, 1, "started")]},
        {1: ("notStarted", None)},
        id="instead of a run",
    ),
    pytest.param(
        "notStarted",
        "unknown",
        [attempt(1, "retry"), attempt(2, "unknown", **STARTED, repeated=1), attempt(3, "unknown")],
        {"earlier": [(7, 2, "started")]},
        {1: ("notStarted", None), 3: ("notStarted", None)},
        id="an earlier one of which nothing was found",
    ),
    pytest.param(
        "started",
        "unknown",
        [attempt(1, "started", job_run_id=OTHER, repeated=1), attempt(2, "unknown")],
        {},
        {2: ("started", RUN)},
        id="beside a run that failed and is repeated",
    ),
]


@pytest.mark.parametrize(("verdict", "state", "attempts", "known", "expected"), TAKEN)
def test_it_changes_attempts(
    verdict: Verdict,
    state: str,
    attempts: list[KnownAttempt],
    known: dict[str, Any],
    expected: dict[int, tuple[str | None, str | None]],
) -> None:
    effect = weigh(verdict, state, *attempts, **known)
    assert (effect.problem, effect.is_same) == ("", False)
    assert [row for *_, row, _ in effect.findings] == [7] * len(expected)
    assert {number: (found, run) for found, run, _, number in effect.findings} == expected


SAME: Final = [
    pytest.param("unknown", "unknown", [attempt(1, "unknown")], {}, id="still unknown"),
    pytest.param("unknown", "failed", [attempt(1, "failed")], {}, id="still failed"),
    pytest.param(
        "started", "started", [attempt(1, "started", job_run_id=RUN)], {}, id="recorded after all"
    ),
    pytest.param(
        "started",
        "started",
        [attempt(1, "unknown", **STARTED)],
        {"earlier": [(7, 1, "started")]},
        id="the same run",
    ),
    pytest.param(
        "notStarted",
        "pending",
        [attempt(1, "retry", **NOT_STARTED), attempt(2, "unknown", **NOT_STARTED)],
        {"earlier": [(7, 2, "notStarted")]},
        id="of all attempts",
    ),
]


@pytest.mark.parametrize(("verdict", "state", "attempts", "known"), SAME)
def test_it_is_known_already(
    verdict: Verdict, state: str, attempts: list[KnownAttempt], known: dict[str, Any]
) -> None:
    effect = weigh(verdict, state, *attempts, **known)
    assert (effect.problem, effect.is_same) == ("", True)


def test_the_window_is_over_with_the_last_attempt_in_doubt() -> None:
    attempts = (attempt(1, "retry", until_ms=90), attempt(2, "unknown"), attempt(3, "throttled"))
    assert weigh("notStarted", "unknown", *attempts).until_ms == 90
