"""A month of all stores: made, tried, stopped, paused, repaired, looked up and reported."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import pytest
from judge import read_log
from stage import workplace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from stage import Workplace

JOB: Final = "7d4c2b1a-0000-4000-8000-5a1e5da11100"
STORES: Final = 20
DAYS: Final = 31
ROWS: Final = STORES * DAYS
JOBS: Final = {
    "jobs": [
        {
            "jobId": JOB,
            "name": "Sales of a store",
            "jobRunParameters": [
                {"name": "Store", "type": 1, "required": True},
                {"name": "TradingDate", "type": 4, "required": True},
            ],
        }
    ]
}
SCRIPT: Final = {
    "latency": 0.01,
    "finishAfter": 0.02,
    "faults": [{"fault": "fail-run", "at": [4, 40, 400], "error": "the store is closed"}],
}
QUICK: Final = ("--interval", "0.05", "--yes")


@pytest.fixture
def month(tmp_path: Path) -> Iterator[Workplace]:
    with workplace(tmp_path, SCRIPT, jobs=JOBS) as made:
        (made.folder / "stores.txt").write_text("".join(f"store-{n:02}\n" for n in range(1, 21)))
        yield made


def sent(place: Workplace) -> Counter[tuple[str, str]]:
    """Return how often each store's day was started, by the server's log."""
    said = (run["parameters"] for run in read_log(place.log))
    pairs = ((one["Store"], one["TradingDate"]) for one in said)
    return Counter((a["valueStringEncoded"], b["valueStringEncoded"]) for a, b in pairs)


def told(place: Workplace, *words: str) -> Any:
    return json.loads(place.run(*words, "--json").stdout)


def test_a_month_of_all_stores(month: Workplace) -> None:
    place = month

    # All combinations, piped into a launch that tries two of them to their end.
    each = "--each Store=@stores.txt --each TradingDate=2026-10-01..2026-10-31"
    tried = place.shell(
        f"deslaunch template {JOB} {each} --format jsonl | deslaunch run - --format jsonl"
        f" --ledger month.ledger.db --limit 2 --watch {' '.join(QUICK)}"
    )
    assert tried.returncode == 0, tried.stderr
    assert "2 succeeded" in tried.stderr
    assert len(sent(place)) == 2

    # The time of the window is over before the month is.
    window = place.run("resume", "month.ledger.db", "--stop-after", "1s", "--rate", "100", "--yes")
    assert window.returncode == 5
    assert "--stop-after 1s was reached" in window.stderr
    [batch] = told(place, "history")["batches"]
    assert batch["exitCode"] == 5
    assert 2 < batch["counts"]["started"] < ROWS
    assert batch["counts"]["started"] == len(sent(place))

    # The next evening goes on, is paused by hand, and comes to its end.
    evening = place.start("resume", "month.ledger.db", "--rate", "40", "--yes")
    assert place.wait_for_runs(evening, len(sent(place)) + 10)
    assert place.run("control", "month.ledger.db", "pause").returncode == 0
    assert "paused" in place.run("status", "month.ledger.db").stdout
    assert place.run("control", "month.ledger.db", "go", "rate=1000").returncode == 0
    _, err = evening.communicate(timeout=60)
    assert evening.returncode == 0, err
    assert set(sent(place).values()) == {1}
    assert len(sent(place)) == ROWS

    # Three runs fail, and are repeated.
    assert place.run("watch", "month.ledger.db", *QUICK[:2]).returncode == 3
    failed = place.run("results", "month.ledger.db", "--run", "failed", "--format", "jsonl")
    assert len(failed.stdout.splitlines()) == 3
    again = ("resume", "month.ledger.db", "--retry-failed-runs", "--watch", *QUICK)
    assert place.run(*again).returncode == 0
    assert Counter(sent(place).values()) == {1: ROWS - 3, 2: 3}

    # Which run exported store 17 on the 5th? And all of it on a page.
    found = place.run("find", "store-17_2026-10-05")
    [run] = [
        one["jobRunId"]
        for one in read_log(place.log)
        if one["parameters"]["Store"]["valueStringEncoded"] == "store-17"
        and one["parameters"]["TradingDate"]["valueStringEncoded"] == "2026-10-05"
    ]
    assert f"store-17_2026-10-05: started, run {run}, succeeded" in found.stdout
    assert len(place.run("find", "store-17", "--json").stdout.splitlines()) == DAYS
    assert place.run("report", "month.ledger.db", "-o", "month.html").returncode == 0
    assert not place.judge(place.folder / "month.ledger.db").status["possibleDuplicates"]


def test_a_trial_that_fails_goes_no_further(tmp_path: Path) -> None:
    script = {**SCRIPT, "faults": [{"fault": "fail-run", "at": [2], "error": "closed"}]}

    with workplace(tmp_path, script) as place:
        place.manifest(4)
        trial = ("run", "night.jsonl", "--limit", "2", "--watch", *QUICK)
        assert place.run(*trial).returncode == 3
        assert len(place.simulator.runs) == 2
        assert place.run("watch", "night.ledger.db", *QUICK[:2]).returncode == 5, "rows are left"
