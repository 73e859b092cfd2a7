"""The judge sees what it is there to see."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from judge import STATES, Judge

if TYPE_CHECKING:
    from pathlib import Path

ONE, TWO, OTHER = "run-1", "run-2", "run-3"


def line(row: int, state: str, run: str | None = None, *, marked: bool = False) -> dict[str, Any]:
    return {
        "row": row,
        "state": state,
        "jobRunId": run,
        "attempts": 1,
        "possibleDuplicate": marked,
    }


def judge_of(folder: Path, lines: list[dict[str, Any]], *runs: tuple[int, str]) -> Judge:
    """Return a judge of results that are given, and of a server that made some runs."""
    log = folder / "runs.jsonl"
    log.write_text(
        "".join(
            json.dumps(
                {"jobRunId": run, "parameters": {"DBGenFrom": {"valueStringEncoded": str(row)}}}
            )
            + "\n"
            for row, run in runs
        )
        + '{"jobRunId": "half wri'
    )
    judge = Judge("night.ledger.db", log)
    judge.lines = lines
    states = [one["state"] for one in lines]
    judge.status = {state: states.count(state) for state in STATES} | {"rows": len(lines)}
    return judge


def test_it_agrees_with_a_batch_that_went_well(tmp_path: Path) -> None:
    lines = [line(1, "started", ONE), line(2, "unknown"), line(3, "rejected")]

    judge_of(tmp_path, lines, (1, ONE), (2, TWO)).assert_promises(most_unknown=1)


@pytest.mark.parametrize(
    ("lines", "runs", "reason"),
    [
        pytest.param(
            [line(1, "started", ONE)], [(1, ONE), (1, TWO)], "started twice", id="a-second-run"
        ),
        pytest.param(
            [line(1, "unknown")], [(1, ONE), (1, TWO)], "started twice", id="twice-though-in-doubt"
        ),
        pytest.param([line(1, "pending")], [(1, ONE)], "no result tells", id="a-lost-run"),
        pytest.param([line(1, "rejected")], [(1, ONE)], "no result tells", id="a-denied-run"),
        pytest.param(
            [line(1, "started", OTHER)], [(1, ONE)], "no result tells", id="another-run's-id"
        ),
        pytest.param([line(1, "started", ONE)], [], "never started", id="an-invented-run"),
        pytest.param([line(1, "unknown")], [], "1 rows are unknown", id="too-many-in-doubt"),
        pytest.param([line(2, "pending")], [], "missing", id="a-missing-row"),
        pytest.param([line(1, "sending")], [], "sending", id="a-state-of-the-tables"),
    ],
)
def test_it_sees(
    lines: list[dict[str, Any]], runs: list[tuple[int, str]], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(AssertionError, match=reason):
        judge_of(tmp_path, lines, *runs).assert_promises(most_unknown=0)


def test_a_second_run_is_excused_where_it_is_told(tmp_path: Path) -> None:
    runs = [(1, ONE), (1, TWO)]

    judge_of(tmp_path, [line(1, "started", ONE, marked=True)], *runs).assert_none_twice(
        unless_marked=True
    )

    with pytest.raises(AssertionError, match="started twice"):
        judge_of(tmp_path, [line(1, "started", ONE)], *runs).assert_none_twice(unless_marked=True)


def test_it_sees_counts_that_differ(tmp_path: Path) -> None:
    judge = judge_of(tmp_path, [line(1, "pending")])
    judge.status["started"] = 1

    with pytest.raises(AssertionError, match="status says"):
        judge.assert_whole()
