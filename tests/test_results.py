from __future__ import annotations

import csv
import fcntl
import io
import json
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest

from deslaunch import records
from deslaunch.keys import row_digest
from deslaunch.ledger import snapshot
from deslaunch.model import Row, RowProblem, StartRequest
from deslaunch.results import (
    COLUMNS,
    Results,
    encode_results,
    summary_of,
    unknown_rows,
    write_lines,
)

if TYPE_CHECKING:
    from pathlib import Path

    from deslaunch.ledger import Snapshot

JOB = "43f87799-62c6-4001-92f9-6b3df816a6d6"
RUN = "0d8ab4f4-6f4f-4f8e-9f4e-9a3a8d6c1f00"
UTC = "2026-11-24T01:02:03.{:03}Z"
CUT = "no answer was recorded before the launcher ended"
BODY = b'{"jobId":"%b","parameters":{"A":{"type":2,"valueStringEncoded":"1"}}}' % JOB.encode()


def request_of(key: str, row: int) -> StartRequest:
    said = Row(row, row, key, "default", JOB, {"A": str(row)})
    return StartRequest(key, row, row, "default", JOB, row_digest(said), BODY, auto=False)


class Folder:
    """A manifest and a ledger about it, written record by record."""

    def __init__(self, path: Path, lines: list[str], allow: tuple[str, ...] = ()) -> None:
        self.manifest = path / "night.jsonl"
        self.manifest.write_text("".join(f"{line}\n" for line in lines))
        self.ledger = path / "night.ledger.jsonl"
        self._count = 0
        said = {
            "path": str(self.manifest),
            "sha256": sha256(self.manifest.read_bytes()).hexdigest(),
            "rows": len(lines),
        }
        self.write(
            records.batch(
                batch_id="b",
                manifest=said,
                format="jsonl",
                job_id=None,
                target=None,
                allow=allow,
                skip_invalid=True,
                version="0",
            )
        )
        self.write(
            records.session(pid=1, host="h", manifest=said, targets={}, options={"timeout": 60})
        )

    def write(self, *written: records.Record) -> None:
        with self.ledger.open("ab") as stream:
            for record in written:
                stream.write(records.encode(record, UTC.format(self._count)))
                self._count += 1

    @property
    def found(self) -> Snapshot:
        return snapshot(self.ledger)


def line_of(number: int, **more: Any) -> str:
    return json.dumps({"key": f"k{number}", "jobId": JOB, "parameters": {"A": number}} | more)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    made = Folder(tmp_path, [line_of(1), line_of(2), "[]", line_of(4), line_of(2), line_of(6)])
    problem = RowProblem("night.jsonl", 3, 3, "", "an object", "[]", "no object")
    repeat = RowProblem("night.jsonl", 5, 5, "key", "another", "k2", "key taken")
    made.write(
        records.invalid(None, 3, 3, [problem]),
        records.invalid(None, 5, 5, [repeat]),
        records.sending(request_of("k4", 4), 1, with_body=True),
        records.sending(request_of("k1", 1), 1, with_body=True),
        records.answered("k1", 1, status=503, error="busy"),
        records.sending(request_of("k1", 1), 2, with_body=False),
        records.started("k1", 2, job_run_id=RUN),
        records.sending(request_of("k2", 2), 1, with_body=True),
        records.rejected("k2", 1, status=400, error="no"),
    )
    return made


def test_every_row_comes_once_in_manifest_order(folder: Folder) -> None:
    results = list(Results(folder.found))

    assert [(r["row"], r["key"], r["state"]) for r in results] == [
        (1, "k1", "started"),
        (2, "k2", "rejected"),
        (3, None, "invalid"),
        (4, "k4", "unknown"),
        (5, None, "invalid"),
        (6, "k6", "pending"),
    ]
    assert results[0] == {
        "key": "k1",
        "row": 1,
        "target": "default",
        "jobId": JOB,
        "state": "started",
        "jobRunId": RUN,
        "attempts": 2,
        "status": None,
        "error": "",
        "possibleDuplicate": True,
        "sentUtc": UTC.format(7),
        "answeredUtc": UTC.format(8),
        "finished": None,
        "success": None,
        "statusText": None,
        "finishedUtc": None,
        "outputFiles": None,
    }
    assert [r["error"] for r in results[1:5]] == ["no", "no object", CUT, "key taken"]


def test_an_attempt_that_was_cut_is_not_explained_by_the_one_before(folder: Folder) -> None:
    folder.write(
        records.sending(request_of("k6", 6), 1, with_body=True),
        records.answered("k6", 1, status=503, error="busy"),
        records.sending(request_of("k6", 6), 2, with_body=False),
    )

    told = [list(Results(folder.found))[-1]]

    with folder.ledger.open("rb") as held:  # as a launcher does that is at work
        fcntl.flock(held, fcntl.LOCK_EX)
        told += [list(Results(folder.found))[-1]]

    columns = ("state", "attempts", "status", "error", "sentUtc", "answeredUtc")
    assert [tuple(one[column] for column in columns) for one in told] == [
        ("unknown", 2, None, CUT, UTC.format(13), None),
        ("inFlight", 2, None, "", UTC.format(13), None),
    ]


def test_rows_that_left_the_manifest_come_last_if_they_were_sent(folder: Folder) -> None:
    folder.write(
        records.sending(request_of("gone", 9), 1, with_body=True),
        records.started("gone", 1, job_run_id=RUN),
        records.membership("gone", in_manifest=False),
        records.sending(request_of("left", 8), 1, with_body=True),
        records.rejected("left", 1, status=400, error="no"),
        records.membership("left", in_manifest=False),
    )

    assert [r["key"] for r in Results(folder.found)][-2:] == ["k6", "gone"]


@pytest.mark.parametrize("change", ["missing", "other bytes"])
def test_without_the_manifest_the_ledgers_rows_and_a_warning(folder: Folder, change: str) -> None:
    if change == "missing":
        folder.manifest.unlink()
    else:
        folder.manifest.write_text(line_of(7))

    results = Results(folder.found)

    assert "rows that were never sent are missing" in results.warning
    assert [r["key"] for r in results] == ["k4", "k1", "k2", None, None]


def test_a_manifest_that_was_moved_is_named(folder: Folder) -> None:
    moved = folder.manifest.rename(folder.manifest.with_name("moved.jsonl"))

    assert Results(folder.found).warning
    results = Results(folder.found, manifest=moved)
    assert (results.warning, len(list(results))) == ("", 6)


def test_allowed_repeats_have_keys_of_their_own(tmp_path: Path) -> None:
    line = json.dumps({"jobId": JOB, "parameters": {"A": 1}})
    folder = Folder(tmp_path, [line, line], allow=("duplicates",))

    first, second = Results(folder.found)

    assert second["key"] == f"{first['key']}~2"


def test_jsonl_and_csv_say_the_same(folder: Folder) -> None:
    results = list(Results(folder.found))

    jsonl = [json.loads(line) for line in encode_results(results, "jsonl")]
    text = b"".join(encode_results(results, "csv")).decode()
    rows = list(csv.DictReader(io.StringIO(text)))

    assert jsonl == results
    assert tuple(rows[0]) == COLUMNS
    assert rows[0]["possibleDuplicate"] == "true"
    assert [row["jobRunId"] for row in rows] == [r["jobRunId"] or "" for r in results]


def test_no_rows_still_have_a_header() -> None:
    assert b"".join(encode_results([], "csv")).decode() == f"{','.join(COLUMNS)}\r\n"
    assert list(encode_results([], "jsonl")) == []


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_text("old")

    with pytest.raises(ZeroDivisionError):
        write_lines(encode_results((1 / 0 for _ in range(1)), "csv"), path)  # type: ignore[misc]

    assert [entry.name for entry in tmp_path.iterdir()] == ["out.csv"]
    assert path.read_text() == "old"


def test_unknown_rows_tell_what_to_look_for(folder: Folder) -> None:
    folder.write(
        records.sending(request_of("k6", 6), 1, with_body=True),
        records.unknown("k6", 1, cause="no answer in time"),
    )

    first, second = (row.as_dict() for row in unknown_rows(folder.found))

    assert first == {
        "key": "k4",
        "row": 4,
        "target": "default",
        "jobId": JOB,
        "parameters": {"A": {"type": 2, "valueStringEncoded": "1"}},
        "fromUtc": "2026-11-24T00:57:03.004Z",
        "toUtc": "2026-11-24T01:08:03.004Z",
        "cause": CUT,
        "jobRunId": None,
    }
    assert (second["fromUtc"], second["toUtc"], second["cause"]) == (
        "2026-11-24T00:57:03.011Z",
        "2026-11-24T01:08:03.011Z",
        "no answer in time",
    )


def test_a_loss_that_was_noticed_late_moves_the_end_of_the_window(folder: Folder) -> None:
    """A session with a short time for an attempt can still wait long, before a second signal."""
    folder.write(records.sending(request_of("k6", 6), 1, with_body=True))
    late = records.encode(records.unknown("k6", 1, cause="given up"), "2026-11-24T02:00:00.000Z")
    folder.ledger.write_bytes(folder.ledger.read_bytes() + late)

    row = list(unknown_rows(folder.found))[-1]

    assert (row.from_utc, row.to_utc) == ("2026-11-24T00:57:03.011Z", "2026-11-24T02:05:00.000Z")


def test_a_doubt_is_looked_up_where_it_arose(folder: Folder) -> None:
    """A later attempt that was refused does not move the window of the first one."""
    folder.write(
        records.sending(request_of("k6", 6), 1, with_body=True),
        records.unknown("k6", 1, cause="other job", status=200, job_run_id=RUN),
        records.sending(request_of("k6", 6), 2, with_body=False),
        records.rejected("k6", 2, status=400, error="no"),
    )

    row = list(unknown_rows(folder.found))[-1]

    assert (row.key, row.from_utc, row.cause, row.job_run_id) == (
        "k6",
        "2026-11-24T00:57:03.011Z",
        "other job",
        RUN,
    )


def test_the_summary_is_that_of_the_whole_ledger(folder: Folder) -> None:
    summary = summary_of(folder.found)

    assert summary.as_dict() == {
        "rows": 6,
        "started": 1,
        "failed": 0,
        "rejected": 1,
        "unknown": 1,
        "invalid": 2,
        "pending": 1,
        "inFlight": 0,
        "possibleDuplicates": 1,
        "attempts": 4,
        "seconds": 0.009,
        "ledger": str(folder.ledger),
        "exitCode": 5,
    }


def test_rows_without_a_key_that_were_not_come_to_yet_are_pending(tmp_path: Path) -> None:
    folder = Folder(tmp_path, [line_of(1), "[]", line_of(1)])

    assert [(r["row"], r["key"], r["state"]) for r in Results(folder.found)] == [
        (1, "k1", "pending"),
        (2, None, "pending"),
        (3, None, "pending"),
    ]
    assert summary_of(folder.found).pending == 3
