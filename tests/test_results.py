"""What became of every row, and the files that it is written to."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deslaunch.errors import ConfigurationError
from deslaunch.ledger.ledger import ResultRow
from deslaunch.report import results
from deslaunch.report.output import PAGE_MARK, check_output, open_output
from deslaunch.report.results import COLUMNS, CSV_HEADER, csv_line, json_line

if TYPE_CHECKING:
    from collections.abc import Callable

JOB = "43f87799-62c6-4001-92f9-6b3df816a6d6"
RUN = "0d8ab4f4-6f4f-4f8e-9f4e-9a3a8d6c1f00"
STARTED = ResultRow(
    *("night", "store-1", 1, "default", JOB, "Export", "started", RUN, 2, 200, "", 1),
    *("2026-11-24T01:02:03.004Z", "2026-11-24T01:02:03.005Z", 1, 0, "no rows, again"),
    *("2026-11-24T01:12:00Z", '[{"name":"a.csv"}]'),
)
PENDING = ResultRow(
    *("night", "store-2", 2, "default", JOB, "Export", "pending", None, 0, None, "", 0),
    *(None, None, None, None, None, None, None),
)


class TestOutput:
    @pytest.fixture
    def output(self, tmp_path: Path) -> Path:
        return tmp_path / "out.csv"

    def write(self, output: Path, **options: Any) -> None:
        with open_output(output, **options) as stream:
            stream.write(b"new\n")

    def test_a_file_takes_its_place_as_a_whole(self, output: Path) -> None:
        with open_output(output) as stream:
            stream.write(b"ne")
            stream.flush()

            assert not output.exists()

            stream.write(b"w\n")

        assert output.read_bytes() == b"new\n"
        assert list(output.parent.iterdir()) == [output]

    def test_after_an_error_the_old_file_is_there(self, output: Path) -> None:
        output.write_bytes(CSV_HEADER)

        with pytest.raises(KeyError), open_output(output) as stream:
            stream.write(b"new\n")
            raise KeyError

        assert output.read_bytes() == CSV_HEADER
        assert list(output.parent.iterdir()) == [output]

    @pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
    def test_a_new_file_follows_the_umask(self, output: Path, umask: int) -> None:
        before = os.umask(umask)

        try:
            self.write(output)
        finally:
            os.umask(before)

        assert output.stat().st_mode & 0o777 == 0o666 & ~umask

    def test_an_existing_file_keeps_its_mode(self, output: Path) -> None:
        output.touch()
        output.chmod(0o640)

        self.write(output)

        assert output.stat().st_mode & 0o777 == 0o640

    def test_a_symbolic_link_stays_one(self, output: Path) -> None:
        output.symlink_to("there.csv")

        self.write(output)

        assert output.is_symlink()
        assert output.with_name("there.csv").read_bytes() == b"new\n"

    def test_a_name_may_be_as_long_as_the_file_system_takes(self, output: Path) -> None:
        self.write(output.with_name(f"{'n' * 251}.csv"))

    def test_a_pipe_is_written_to_as_it_is(self, tmp_path: Path) -> None:
        reading, writing = os.pipe()

        self.write(Path(f"/dev/fd/{writing}"))

        os.close(writing)
        assert os.read(reading, 100) == b"new\n"
        os.close(reading)

    @pytest.mark.parametrize(
        ("code", "is_written"),
        [
            pytest.param(errno.EINVAL, True, id="a file system that can't sync"),
            pytest.param(errno.EIO, False, id="a disk that fails"),
            pytest.param(errno.ENOSPC, False, id="a full disk"),
        ],
    )
    def test_a_sync_that_fails(self, output: Path, code: int, is_written: bool) -> None:
        output.write_bytes(CSV_HEADER)

        def sync(_: int) -> None:
            raise OSError(code, os.strerror(code))

        if is_written:
            self.write(output, sync=sync)
        else:
            with pytest.raises(ConfigurationError, match=f"written: {os.strerror(code)}"):
                self.write(output, sync=sync)

        assert output.read_bytes() == (b"new\n" if is_written else CSV_HEADER)
        assert list(output.parent.iterdir()) == [output]

    def test_a_folder_that_can_not_be_synced_is_no_failure(self, output: Path) -> None:
        def sync(fd: int) -> None:
            if os.path.isdir(f"/proc/self/fd/{fd}"):  # noqa: PTH112
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        self.write(output, sync=sync)

        assert output.read_bytes() == b"new\n"

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="can't be written: No such file") as caught:
            self.write(tmp_path / "none" / "out.csv")

        assert "write permission" in caught.value.hint


class TestReplaced:
    """What an output may replace."""

    @pytest.fixture
    def ledger(self, tmp_path: Path) -> Path:
        path = tmp_path / "night.ledger.db"

        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE batch (id)")

        connection.close()
        return path

    @pytest.fixture
    def manifest(self, tmp_path: Path) -> Path:
        path = tmp_path / "night.csv"
        path.write_text("key,jobId\n")
        return path

    @pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal", ".lock", ".new"])
    def test_never_what_belongs_to_the_ledger(self, ledger: Path, suffix: str) -> None:
        output = ledger.with_name(f"{ledger.name}{suffix}")

        with pytest.raises(ConfigurationError, match="no output replaces a ledger"):
            check_output(output, ledger=str(ledger), force=True)

    @pytest.mark.parametrize("link", [os.link, os.symlink])
    def test_never_a_link_to_ledger_or_manifest(
        self, ledger: Path, manifest: Path, link: Callable[[Path, Path], None]
    ) -> None:
        for path in (ledger, manifest):
            output = path.with_name(f"other-{path.name}")
            link(path, output)

            with pytest.raises(ConfigurationError, match="no output replaces"):
                check_output(output, ledger=str(ledger), manifest=str(manifest), force=True)

    def test_the_ledger_s_locks_are_left(self, ledger: Path) -> None:
        """To open and close it would drop the locks that SQLite holds on it in this process."""
        connection = sqlite3.connect(ledger)
        connection.execute("BEGIN IMMEDIATE")

        with pytest.raises(ConfigurationError):
            check_output(ledger, ledger=str(ledger))

        other = "import sqlite3, sys; sqlite3.connect(sys.argv[1], 0).execute('BEGIN IMMEDIATE')"
        ended = subprocess.run([sys.executable, "-c", other, ledger], capture_output=True)
        connection.close()
        assert b"database is locked" in ended.stderr

    def test_never_another_batch_s_ledger(self, ledger: Path) -> None:
        with pytest.raises(ConfigurationError, match="a SQLite database"):
            check_output(ledger, ledger="other.ledger.db", force=True)

    def test_never_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="a folder"):
            check_output(tmp_path, force=True)

    def test_another_file_only_where_that_is_said(self, manifest: Path) -> None:
        with pytest.raises(ConfigurationError, match="this file exists") as caught:
            check_output(manifest)

        assert "--force" in caught.value.hint
        check_output(manifest, force=True)

    @pytest.mark.parametrize(
        "first",
        [
            pytest.param(CSV_HEADER, id="results"),
            pytest.param(json_line(STARTED), id="results in JSONL"),
            pytest.param(
                results.header_with_manifest(["key", "target", "jobId", "A"]), id="with manifest"
            ),
            pytest.param(PAGE_MARK + b"\n<html>", id="a report"),
            pytest.param(b"", id="nothing"),
        ],
    )
    def test_what_deslaunch_wrote_is_replaced(self, tmp_path: Path, first: bytes) -> None:
        output = tmp_path / "out"
        output.write_bytes(first)

        check_output(output)

    @pytest.mark.parametrize(
        "first",
        [
            pytest.param(b"key,target,jobId,A\n", id="a manifest"),
            pytest.param(b'{"key":"a","jobId":"b"}\n', id="a manifest in JSONL"),
            pytest.param(b"key,as,jobRunId,note\n", id="findings"),
            pytest.param(b"<!DOCTYPE html>\n", id="a page"),
            pytest.param(b"\n", id="an empty line"),
            pytest.param(bytes(99), id="zeros"),
        ],
    )
    def test_nothing_else_is(self, tmp_path: Path, first: bytes) -> None:
        output = tmp_path / "out"
        output.write_bytes(first)

        with pytest.raises(ConfigurationError, match="this file exists"):
            check_output(output)

    def test_a_name_is_told_so_that_a_terminal_does_nothing(self, tmp_path: Path) -> None:
        output = tmp_path / "a\x1b[31mb"
        output.write_bytes(b"other")

        with pytest.raises(ConfigurationError, match=r"a\\x1b\[31mb"):
            check_output(output)


class TestLines:
    def test_the_columns_are_those_of_the_contract(self) -> None:
        assert CSV_HEADER == (
            b"key,row,target,jobId,jobName,state,jobRunId,attempts,status,error,"
            b"possibleDuplicate,sentUtc,answeredUtc,finished,success,statusText,finishedUtc,"
            b"outputFiles\r\n"
        )

    def test_csv(self) -> None:
        assert csv_line(STARTED).decode() == (
            f"store-1,1,default,{JOB},Export,started,{RUN},2,200,,true,"
            '2026-11-24T01:02:03.004Z,2026-11-24T01:02:03.005Z,true,false,"no rows, again",'
            '2026-11-24T01:12:00Z,"[{""name"":""a.csv""}]"\r\n'
        )
        assert csv_line(PENDING).decode() == (
            f"store-2,2,default,{JOB},Export,pending,,0,,,false,,,,,,,\r\n"
        )

    def test_json(self) -> None:
        assert json.loads(json_line(STARTED)) == {
            "key": "store-1",
            "row": 1,
            "target": "default",
            "jobId": JOB,
            "jobName": "Export",
            "state": "started",
            "jobRunId": RUN,
            "attempts": 2,
            "status": 200,
            "error": "",
            "possibleDuplicate": True,
            "sentUtc": "2026-11-24T01:02:03.004Z",
            "answeredUtc": "2026-11-24T01:02:03.005Z",
            "finished": True,
            "success": False,
            "statusText": "no rows, again",
            "finishedUtc": "2026-11-24T01:12:00Z",
            "outputFiles": [{"name": "a.csv"}],
        }
        pending = json.loads(json_line(PENDING))
        assert list(pending) == list(COLUMNS)
        assert (pending["finished"], pending["possibleDuplicate"]) == (None, False)

    @given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=3, max_size=3))
    def test_any_text_is_read_back(self, texts: list[str]) -> None:
        key, error, said = texts
        row = STARTED._replace(key=key, error=error, status_text=said)

        ((*cells,),) = csv.reader(io.StringIO(csv_line(row).decode(), newline=""))

        assert (cells[0], cells[9], cells[15]) == (key, error, said)
        assert len(cells) == len(COLUMNS)
        assert json.loads(json_line(row))["error"] == error
