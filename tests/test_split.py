"""Results with what their rows say: files that are manifests again, and files that must not be."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import shlex
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stage import (
    JOB,
    Place,
    counts,
    invalid_row,
    refused_row,
    row,
    rows,
    runs_of,
    service,
)

from deslaunch import cli, launcher, records
from deslaunch.console import next_commands
from deslaunch.errors import InvalidManifest, ManifestError
from deslaunch.keys import row_digest
from deslaunch.ledger import snapshot
from deslaunch.model import AUTO, Row, RunState, RunStatus, TypedValue
from deslaunch.readers import CsvReader
from deslaunch.results import COLUMNS, Choice, Results, run_state_of
from deslaunch.rows import RowDefaults
from deslaunch.split import (
    FILES,
    RUN_FAILED,
    csv_line,
    header_line,
    parameter_names,
    split_results,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from stage import Said

    from deslaunch.config import LaunchOptions
    from deslaunch.model import ParameterValue, Summary
    from deslaunch.results import Result
    from deslaunch.rows import Item

UNLIKE = "\\N"

names = st.one_of(
    st.sampled_from(["key", "target", "jobId", "parameters.x", "deslaunch.state", "DBGenFrom"]),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1),
)
texts = st.one_of(
    st.sampled_from(["", "\\", "\\N", "\\A", "\\\\E", '"', "a,b", "a\r\nb", "\n", " ", "\ufeff"]),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
)
values = st.one_of(
    st.none(),
    st.just(AUTO),
    texts,
    st.builds(TypedValue, st.integers(1, 4), st.one_of(st.none(), st.just(AUTO), texts)),
)
keys = st.one_of(
    st.none(),
    st.text("abc-_.,\"' 17äß", min_size=1, max_size=8),
)
said = st.lists(st.tuples(keys, st.dictionaries(names, values, max_size=4)), max_size=4)


def result_of(row: Row, state: str = "failed") -> Result:
    found: Result = dict.fromkeys(COLUMNS)
    return found | {"row": row.number, "target": row.target, "jobId": row.job_id, "state": state}


def read_back(rows: Iterable[Row], state: str = "failed") -> list[Item]:
    """Return what the reader of CSV makes of rows that were written with their results."""
    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in row.parameters))
    text = header_line(names) + b"".join(csv_line(result_of(r, state), r, names) for r in rows)
    lines = io.BytesIO(text).readlines()
    return list(CsvReader("failed.csv", RowDefaults(None, None)).items([lines]))


def untyped(value: ParameterValue) -> ParameterValue:
    return value.value if isinstance(value, TypedValue) else value


@given(said=said)
def test_rows_are_read_back_as_they_were(
    said: list[tuple[str | None, dict[str, ParameterValue]]],
) -> None:
    written = [Row(n, n, key, "acme", JOB, values) for n, (key, values) in enumerate(said, 1)]

    found = read_back(written)

    assert [row.key for row in found if isinstance(row, Row)] == [key for key, _ in said]
    assert [row for row in found if not isinstance(row, Row)] == []

    for before, after in zip(written, found, strict=True):
        assert isinstance(after, Row)
        assert (after.target, after.job_id) == ("acme", JOB)
        assert after.parameters == {
            name: untyped(value) for name, value in before.parameters.items()
        }
        assert row_digest(after) == row_digest(before)


@pytest.mark.parametrize("state", ["started", "unknown", "inFlight"])
@pytest.mark.parametrize("text", ["plain", '"quoted'])
def test_rows_that_have_or_may_have_a_run_are_refused(state: str, text: str) -> None:
    (found,) = read_back([Row(1, 1, "k", "acme", JOB, {"A": text})], state)

    assert not isinstance(found, Row)
    (problem,) = found
    assert (problem.line, problem.column, problem.got) == (2, "deslaunch.state", state)
    assert "deslaunch resume" in problem.message
    assert "deslaunch resolve" in problem.message
    assert ("deslaunch.was" in problem.message) == (state == "started")  # its run may have failed


@pytest.mark.parametrize("state", ["failed", "rejected", "invalid", "pending", ""])
def test_rows_that_have_no_run_are_not(state: str) -> None:
    (found,) = read_back([Row(1, 1, "k", "acme", JOB, {"A": "1"})], state)

    assert isinstance(found, Row)


def test_a_key_that_csv_can_not_say(place: Place) -> None:
    with pytest.raises(ManifestError, match=r"row 3 has the key '\\\\N'"):
        csv_line({**result_of(Row(3, 3, None, "t", JOB, {}))}, Row(3, 3, UNLIKE, "t", JOB, {}), [])


# A batch with rows in every state.


def mixed() -> list[Said]:
    typed = {"type": 2, "valueStringEncoded": "7"}
    return [
        *rows(2),
        refused_row(3),
        invalid_row(4),
        {"no": "row"},
        row(6),
        {"jobId": JOB, "parameters": {"DBGenFrom": typed, "DBGenTo": None}},
    ]


SCRIPT = {
    "faults": [
        {"fault": "close-after-start", "match": {"text": '"6"'}, "on": "startjob"},
        {"fault": "status", "status": 500, "match": {"text": '"7"'}, "on": "startjob"},
    ]
}


def launch(place: Place, manifest: Path, script: Said | None = None, **options: Any) -> Summary:
    async def work() -> Summary:
        async with service(place, script) as (simulator, des):
            chosen: LaunchOptions = {"concurrency": 1, "max_wait": 0.01, **options}  # type: ignore[typeddict-item]
            summary = await launcher.launch(manifest, des, cache=place.cache, **chosen)
            place.folder.joinpath("seen").write_text(str(sorted(runs_of(simulator))))
            return summary

    return asyncio.run(work())


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(), newline="")))


def split(place: Place, *more: str) -> Path:
    folder = place.folder / "split" / "here"
    assert cli.main(["results", str(place.ledger), "--split", str(folder), *more]) == 0
    return folder


@pytest.fixture
def at_rest(place: Place) -> Place:
    place.write(mixed())
    launch(place, place.manifest, SCRIPT, skip_invalid=True, max_attempts=1)
    return place


def test_each_state_has_its_file(at_rest: Place, capsys: pytest.CaptureFixture[str]) -> None:
    folder = split(at_rest)

    names = [*FILES, RUN_FAILED]
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{one}.csv" for one in names)
    found = {
        path.stem: [one["deslaunch.row"] for one in rows_of(path)] for path in folder.iterdir()
    }
    assert found == {
        "started": ["1", "2"],
        "rejected": ["3"],
        "invalid": ["4", "5"],
        "unknown": ["6"],
        "failed": ["7"],
        "pending": [],
        "run-failed": [],
    }
    (rejected,) = rows_of(folder / "rejected.csv")
    assert (rejected["key"], rejected["deslaunch.key"], rejected["jobId"]) == ("r3", "r3", JOB)
    assert (rejected["DBGenFrom"], rejected["deslaunch.status"]) == ("3", "400")
    assert f"{folder / 'failed.csv'}: 1 row" in capsys.readouterr().err


def test_the_files_of_rows_without_a_run_start_them(at_rest: Place) -> None:
    """Under the very key that they had, so that both ledgers name the same row."""
    folder = split(at_rest)

    summary = launch(at_rest, folder / "failed.csv")

    assert counts(summary) == {"started": 1}
    assert at_rest.folder.joinpath("seen").read_text() == "[7]"
    (key,) = snapshot(folder / "failed.ledger.jsonl").replay.states
    (failed,) = rows_of(folder / "failed.csv")
    assert failed["key"] == ""
    assert failed["deslaunch.key"] == key
    assert failed["DBGenTo"] == "\\N"


@pytest.mark.parametrize("name", ["started", "unknown"])
def test_the_files_of_rows_with_a_run_start_nothing(at_rest: Place, name: str) -> None:
    folder = split(at_rest)

    with pytest.raises(InvalidManifest, match="nothing was sent") as refused:
        launch(at_rest, folder / f"{name}.csv")

    assert {problem.column for problem in refused.value.problems} == {"deslaunch.state"}


def test_an_invalid_row_is_invalid_again_until_it_is_mended(at_rest: Place) -> None:
    folder = split(at_rest)
    path = folder / "invalid.csv"

    with pytest.raises(InvalidManifest) as refused:
        launch(at_rest, path)

    assert [problem.line for problem in refused.value.problems] == [2, 3]
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1].replace("many", "4")]))
    assert counts(launch(at_rest, path)) == {"started": 1}


def test_a_split_that_fails_leaves_the_old_files(at_rest: Place) -> None:
    folder = split(at_rest)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    found = Results(snapshot(at_rest.ledger))

    def broken() -> Iterable[tuple[Result, Row | None]]:
        yield next(found.with_rows())
        raise OSError(28, "No space left on device")

    with pytest.raises(ManifestError, match="No space left"):
        split_results(broken(), parameter_names([found]), folder)

    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_row_in_flight_may_have_a_run(tmp_path: Path) -> None:
    written = split_results(
        [(result_of(Row(1, 1, None, "t", JOB, {}), "inFlight"), None)], [], tmp_path
    )

    assert {state for state, count in written.items() if count} == {"unknown"}
    (found,) = rows_of(tmp_path / "unknown.csv")
    assert found["deslaunch.state"] == "inFlight"


def test_rows_without_their_manifest_can_not_be_split(
    at_rest: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = at_rest.folder / "moved.jsonl"
    at_rest.manifest.rename(moved)
    folder = at_rest.folder / "split"

    assert cli.main(["results", str(at_rest.ledger), "--split", str(folder)]) == 2
    assert "--manifest" in capsys.readouterr().err
    assert not folder.exists()
    split(at_rest, "--manifest", str(moved))


# Rows whose run failed.


def ended(place: Place, *keys: str, failed: str) -> None:
    """Record the end of some rows' runs; one of them failed."""
    runs = place.started()

    with place.ledger.open("ab") as stream:
        for key in keys:
            told = RunStatus("", runs[key], finished=True, success=key != failed, status="no sales")
            stream.write(records.encode(records.run_status(key, told), "2026-11-24T04:00:00.000Z"))


def test_a_run_that_failed_is_started_again_only_by_who_knows_it(at_rest: Place) -> None:
    """It may have delivered a part of its data: the file is refused until its column is renamed."""
    ended(at_rest, "r1", "r2", failed="r2")
    path = split(at_rest) / "run-failed.csv"
    (found,) = rows_of(path)
    assert (found["key"], found["deslaunch.statusText"]) == ("r2", "no sales")
    assert [one["key"] for one in rows_of(path.with_name("started.csv"))] == ["r1", "r2"]

    with pytest.raises(InvalidManifest) as refused:
        launch(at_rest, path)

    (problem,) = refused.value.problems
    assert problem.message.endswith("rename the column to deslaunch.was")
    path.write_text(path.read_text().replace(",deslaunch.state,", ",deslaunch.was,", 1))
    assert counts(launch(at_rest, path)) == {"started": 1}
    assert at_rest.folder.joinpath("seen").read_text() == "[2]"


@pytest.mark.parametrize(
    ("runs", "found"),
    [
        (["failed"], ["r2"]),
        (["succeeded"], ["r1"]),
        (["unfinished"], []),
        (["failed", "succeeded"], ["r1", "r2"]),
    ],
)
def test_results_of_rows_with_such_runs(
    at_rest: Place, runs: list[str], found: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    ended(at_rest, "r1", "r2", failed="r2")
    options = [word for run in runs for word in ("--run", run)]

    assert cli.main(["results", str(at_rest.ledger), "--format", "jsonl", *options]) == 0

    assert [json.loads(line)["key"] for line in capsys.readouterr().out.splitlines()] == found


@pytest.mark.parametrize(
    ("said", "known"),
    [
        ({"finished": None, "success": None}, RunState.UNFINISHED),
        ({"finished": False, "success": None}, RunState.UNTOLD),
        ({"finished": True, "success": False}, RunState.FAILED),
        ({"finished": True, "success": True}, RunState.SUCCEEDED),
    ],
)
def test_what_is_known_of_a_run(said: Result, known: RunState) -> None:
    found = result_of(Row(1, 1, "k", "t", JOB, {}), "started") | said

    assert run_state_of(found) is known
    assert run_state_of(found | {"state": "unknown"}) is None
    assert not Choice(states=["unknown"], runs=[known]).takes(found)
    assert Choice(states=["started"], runs=[known]).takes(found)


# In one file.


def test_results_of_some_states(at_rest: Place, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["results", str(at_rest.ledger), "--state", "rejected", "--state", "unknown"]

    assert cli.main([*command, "--format", "jsonl"]) == 0

    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["row"], one["state"]) for one in found] == [(3, "rejected"), (6, "unknown")]
    assert list(found[0]) == list(COLUMNS)


def test_results_of_rows_that_may_have_run_twice(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.write(rows(3))
    script = {"faults": [{"fault": "status", "status": 500, "at": [2], "on": "startjob"}]}
    summary = launch(place, place.manifest, script)
    command = ["results", str(place.ledger), "--possible-duplicates", "--format", "jsonl"]

    assert f"see which may have run twice: deslaunch {shlex.join(command[:3])}" in next_commands(
        summary
    )
    assert cli.main(command) == 0

    (found,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (found["key"], found["attempts"], found["possibleDuplicate"]) == ("r2", 2, True)
    assert not list(next_commands(replace(summary, possible_duplicates=0)))


def test_results_beside_the_manifests_own_columns(
    at_rest: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["results", str(at_rest.ledger), "--with-manifest"]

    assert cli.main(command) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out, newline="")))
    assert cli.main([*command, "--format", "jsonl"]) == 0
    objects = [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    own = [f"deslaunch.{column}" for column in COLUMNS]
    assert list(table[0]) == [
        *("key", "target", "jobId", "DBGenFrom", "TradingDate", "DBGenTo"),
        *own,
    ]
    assert [one["deslaunch.row"] for one in table] == [str(number) for number in range(1, 8)]
    assert table[2]["TradingDate"] == "2026-01-31T00:00:00Z"
    assert objects[6]["parameters"] == {
        "DBGenFrom": {"type": 2, "valueStringEncoded": "7"},
        "DBGenTo": None,
    }
    assert [one["deslaunch.state"] for one in objects] == [one["deslaunch.state"] for one in table]


@pytest.mark.parametrize(
    "option",
    [
        pytest.param(["-o", "x.csv"], id="output"),
        pytest.param(["--format", "csv"], id="format"),
        pytest.param(["--state", "failed"], id="state"),
        pytest.param(["--run", "failed"], id="run"),
        pytest.param(["--possible-duplicates"], id="possible duplicates"),
        pytest.param(["--with-manifest"], id="with manifest"),
    ],
)
def test_a_split_stands_alone(
    tmp_path: Path, option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["results", "night", "--split", str(tmp_path / "split"), *option]) == 2
    assert "--split stands alone" in capsys.readouterr().err
