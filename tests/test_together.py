"""Several ledgers put together: shards of one manifest, and what is none."""

from __future__ import annotations

import asyncio
import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from stage import (
    Place,
    counts,
    fault,
    invalid_row,
    refused_row,
    row,
    rows,
    service,
)

from deslaunch import cli, launcher
from deslaunch.errors import ConfigurationError, LedgerForeign
from deslaunch.keys import shard_of
from deslaunch.ledger import snapshot
from deslaunch.results import Results
from deslaunch.shards import Shard
from deslaunch.together import groups_of, summary_together

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from stage import Said

    from deslaunch.config import LaunchOptions
    from deslaunch.ledger import Snapshot


def ledger_of(place: Place, shard: str) -> Path:
    return launcher.default_ledger(place.manifest, Shard.parse(shard))


def launch(place: Place, *chosen: LaunchOptions, script: Said | None = None) -> None:
    """Launch a manifest with each of some options."""

    async def work() -> None:
        async with service(place, script) as (_, des):
            for options in chosen:
                await place.launch(des, **options)

    asyncio.run(work())


def resume(place: Place, *ledgers: Path) -> None:
    async def work() -> None:
        async with service(place) as (_, des):
            for ledger in ledgers:
                await launcher.resume(ledger, des, cache=place.cache, allow_new_origin=True)

    asyncio.run(work())


def launch_shards(
    place: Place, *shards: str, script: Said | None = None, skip_invalid: bool = False
) -> list[Snapshot]:
    """Launch some shards of a manifest, and return their ledgers."""
    options: list[LaunchOptions] = [
        {"shard": shard, "skip_invalid": skip_invalid} for shard in shards
    ]
    launch(place, *options, script=script)
    return [snapshot(ledger_of(place, shard)) for shard in shards]


def told(found: Iterable[dict[str, Any]]) -> list[tuple[int, str | None, str]]:
    return [(result["row"], result["key"], result["state"]) for result in found]


def test_results_of_all_shards_come_once_in_manifest_order(place: Place) -> None:
    place.write([*rows(10), invalid_row(11), {"no": "row"}, row(13)])

    found = launch_shards(place, "3/3", "1/3", "2/3", skip_invalid=True)

    (group,) = groups_of(found)
    assert group.warning == ""
    assert told(Results(*group.ledgers)) == [
        *((number, f"r{number}", "started") for number in range(1, 11)),
        (11, "r11", "invalid"),
        (12, None, "invalid"),
        (13, "r13", "started"),
    ]
    summary = summary_together([group])
    assert counts(summary) == {"started": 11, "invalid": 2}
    assert (summary.exit_code, summary.attempts) == (3, 11)


def test_rows_of_missing_shards_are_pending(place: Place) -> None:
    place.write([*rows(20), {"no": "row"}])

    found = launch_shards(place, "1/4", "4/4", skip_invalid=True)

    (group,) = groups_of(found)
    assert group.warning == "2 of 4 shards are here: 2/4, 3/4 are missing"
    started = [number for number in range(1, 21) if shard_of(f"r{number}", 4) in {1, 4}]
    expected = [
        (number, f"r{number}", "started" if number in started else "pending")
        for number in range(1, 21)
    ]
    assert told(Results(*group.ledgers)) == [*expected, (21, None, "pending")]
    summary = summary_together([group])
    assert counts(summary) == {"started": len(started), "pending": 21 - len(started)}
    assert summary.exit_code == 5


def test_one_shard_alone_tells_of_its_own_rows(place: Place) -> None:
    place.write([*rows(12), {"no": "row"}, {"no": "row"}])

    found = launch_shards(place, "2/2", skip_invalid=True)

    (group,) = groups_of(found)
    assert group.warning == ""
    own = [(n, f"r{n}", "started") for n in range(1, 13) if shard_of(f"r{n}", 2) == 2]
    assert told(Results(*group.ledgers)) == [*own, (13, None, "invalid")]
    assert summary_together([group]).rows == len(own) + 1


def test_results_without_the_manifest_are_those_of_all_ledgers(place: Place) -> None:
    place.write(rows(12))
    found = launch_shards(place, "1/2", "2/2")
    place.manifest.unlink()

    results = Results(*found)

    assert "is not there" in results.warning
    assert sorted(told(results)) == [(n, f"r{n}", "started") for n in range(1, 13)]


def test_started_rows_that_left_the_manifest_come_last(place: Place) -> None:
    place.write(rows(12))
    launch_shards(place, "1/2", "2/2")
    place.write(rows(12)[6:])

    ledgers = [ledger_of(place, shard) for shard in ("1/2", "2/2")]
    resume(place, *ledgers)

    found = [snapshot(ledger) for ledger in ledgers]
    results = told(Results(*found))
    assert [key for _, key, _ in results[:6]] == [f"r{n}" for n in range(7, 13)]
    assert {key for _, key, _ in results[6:]} == {f"r{n}" for n in range(1, 7)}
    assert summary_together(groups_of(found)).started == 12


def test_the_highest_claim_is_that_of_all(place: Place) -> None:
    place.write([*rows(6), refused_row(7)])

    found = launch_shards(place, "1/2", "2/2", script=fault("close-after-start", 5))

    summary = summary_together(groups_of(found))
    assert counts(summary) == {"started": 5, "rejected": 1, "unknown": 1}
    assert summary.exit_code == 4


def test_batches_that_are_no_shards_stand_beside_them(place: Place, tmp_path: Path) -> None:
    other = Place(tmp_path / "other")
    other.folder.mkdir()
    other.write(rows(3))
    place.write(rows(10))
    shards = launch_shards(place, "1/2", "2/2")
    launch(other, {})

    whole = snapshot(other.ledger)
    groups = groups_of([shards[0], whole, shards[1]])
    assert [group.ledgers for group in groups] == [(whole,), tuple(shards)]
    assert counts(summary_together(groups)) == {"started": 13}


# What can't be put together.


def test_a_batch_that_is_named_twice(place: Place) -> None:
    place.write(rows(4))
    (found,) = launch_shards(place, "1/2")
    copy = place.folder / "copy"
    shutil.copy(found.path, copy)

    with pytest.raises(ConfigurationError, match="copy are the same batch"):
        groups_of([found, snapshot(copy)])


def other_manifest(place: Place) -> LaunchOptions:
    place.write(rows(5))
    return {"shard": "2/2"}


def other_count(place: Place) -> LaunchOptions:
    ledger_of(place, "1/2").rename(place.folder / "of another machine")
    return {"shard": "2/3"}


def other_allowance(_: Place) -> LaunchOptions:
    return {"shard": "2/2", "allow_duplicates": True}


def other_job(place: Place) -> LaunchOptions:
    return {"shard": "2/2", "job_id": rows(1)[0]["jobId"]}


def same_shard(place: Place) -> LaunchOptions:
    ledger_of(place, "1/2").rename(place.folder / "first")
    return {"shard": "1/2"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(other_manifest, r"manifest \(SHA-256\) differs", id="manifest"),
        pytest.param(other_count, "number of shards differs, 2 and 3", id="count"),
        pytest.param(other_allowance, "allowances differs", id="allowance"),
        pytest.param(other_job, "--job-id differs", id="job"),
        pytest.param(same_shard, "both shard 1/2: its rows may have been started twice", id="same"),
    ],
)
def test_shards_that_do_not_belong_together(
    place: Place, change: Callable[[Place], LaunchOptions], message: str
) -> None:
    place.write(rows(4))
    (first,) = launch_shards(place, "1/2")
    options = change(place)
    launch(place, options)
    second = snapshot(ledger_of(place, str(options["shard"])))

    with pytest.raises(LedgerForeign, match=message):
        groups_of([first, second])


# On the command line.


def test_status_of_several_ledgers(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.write([*rows(9), refused_row(10)])
    launch_shards(place, "1/3", "2/3")
    ledgers = [str(ledger_of(place, shard)) for shard in ("1/3", "2/3")]

    assert cli.main(["status", *ledgers, "--json"]) == 0
    told = capsys.readouterr()
    assert cli.main(["status", *ledgers]) == 0
    shown = capsys.readouterr()

    here = sum(shard_of(f"r{number}", 3) < 3 for number in range(1, 11))
    summary = json.loads(told.out)
    assert told.err == "warning: 2 of 3 shards are here: 3/3 is missing\n"
    assert (summary["rows"], summary["pending"], summary["exitCode"]) == (10, 10 - here, 5)
    assert summary["ledger"] == " ".join(ledgers)
    lines = shown.out.splitlines()
    assert [line for line in lines if line in ledgers] == ledgers
    assert lines[-2] == "2 ledgers together"
    assert lines[-1].startswith("10 rows: ")


def test_a_key_that_two_ledgers_started(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No batch knows of the other: only who looks at both can see it."""
    other = Place(tmp_path / "other")
    other.folder.mkdir()
    place.write(rows(3))
    other.write([row(2), row(3, parameters={"DBGenFrom": 33}), row(4)])
    launch(place, {})
    launch(other, {})
    ledgers = [str(one.ledger) for one in (place, other)]

    assert cli.main(["status", *ledgers, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert cli.main(["status", *ledgers]) == 0
    lines = capsys.readouterr().out.splitlines()

    runs = {key: [one.started()[key] for one in (place, other)] for key in ("r2", "r3")}
    assert (summary["started"], summary["sharedKeyCount"]) == (6, 2)
    assert summary["sharedKeys"] == [
        {
            "key": key,
            "sameRow": key == "r2",
            "runs": [
                {"ledger": ledger, "jobRunId": run}
                for ledger, run in zip(ledgers, runs[key], strict=True)
            ],
        }
        for key in runs
    ]
    told = {
        key: ", ".join(f"{run} in {ledger}" for ledger, run in zip(ledgers, found, strict=True))
        for key, found in runs.items()
    }
    assert lines[-3:] == [
        "2 keys are started in more than one of these ledgers:",
        f"  key r2, the same row: {told['r2']}",
        f"  key r3, rows that differ: {told['r3']}",
    ]


def test_results_of_several_ledgers(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.write(rows(9))
    launch_shards(place, "1/2", "2/2")
    moved = place.folder / "moved.jsonl"
    place.manifest.rename(moved)
    ledgers = [str(ledger_of(place, shard)) for shard in ("1/2", "2/2")]
    command = ["results", *ledgers, "--format", "jsonl", "--manifest", str(moved)]

    assert cli.main(command) == 0

    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["key"] for line in lines] == [f"r{n}" for n in range(1, 10)]


def test_a_manifest_is_that_of_one_batch(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.write(rows(3))
    launch(place, {})
    whole = place.ledger.rename(place.folder / "of another machine")
    launch(place, {"shard": "1/1"})
    ledgers = [str(whole), str(ledger_of(place, "1/1"))]

    code = cli.main(["results", *ledgers, "--manifest", "x.csv"])

    assert code == 2
    assert "--manifest is that of one batch" in capsys.readouterr().err
