"""What became of every row, and the files that it is written to."""

from __future__ import annotations

import asyncio
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
from batches import STARTED as STARTED_ATTEMPT
from batches import Said, checked_row, write_batch
from hypothesis import given
from hypothesis import strategies as st

from deslaunch.errors import ConfigurationError, LedgerDamaged
from deslaunch.ledger.ledger import open_ledger, take_ledger
from deslaunch.ledger.reading import ResultRow
from deslaunch.manifest.files import Manifest
from deslaunch.model import AUTO, JobRunParameterValue, Row
from deslaunch.report.results import (
    COLUMNS,
    FILES,
    PAGE_MARK,
    Choice,
    check_output,
    csv_header,
    csv_results,
    json_results,
    open_output,
    split_results,
    write_results,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from deslaunch.model import Format

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
        output.write_bytes(csv_header())

        with pytest.raises(TypeError), open_output(output) as stream:
            stream.write("new\n")  # type: ignore[call-overload]

        assert output.read_bytes() == csv_header()
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
        output.write_bytes(csv_header())

        def sync(_: int) -> None:
            raise OSError(code, os.strerror(code))

        if is_written:
            self.write(output, sync=sync)
        else:
            with pytest.raises(ConfigurationError, match=f"written: {os.strerror(code)}"):
                self.write(output, sync=sync)

        assert output.read_bytes() == (b"new\n" if is_written else csv_header())
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

        assert "permissions" in caught.value.hint


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

        with pytest.raises(ConfigurationError, match="never replaced"):
            check_output(output, ledger=str(ledger), force=True)

    @pytest.mark.parametrize("link", [os.link, os.symlink])
    def test_never_a_link_to_ledger_or_manifest(
        self, ledger: Path, manifest: Path, link: Callable[[Path, Path], None]
    ) -> None:
        for path in (ledger, manifest):
            output = path.with_name(f"other-{path.name}")
            link(path, output)

            with pytest.raises(ConfigurationError, match="never replaced"):
                check_output(output, ledger=str(ledger), manifest=str(manifest), force=True)

    def test_the_ledger_s_locks_are_left(self, ledger: Path) -> None:
        """To open and close it would drop the locks that SQLite holds on it in this process."""
        connection = sqlite3.connect(ledger)
        connection.execute("BEGIN IMMEDIATE")

        with pytest.raises(ConfigurationError):
            check_output(ledger, ledger=str(ledger))

        other = "import sqlite3, sys; sqlite3.connect(sys.argv[1], 0).execute('BEGIN IMMEDIATE')"
        ended = subprocess.run(
            [sys.executable, "-c", other, ledger], check=False, capture_output=True
        )
        connection.close()
        assert b"database is locked" in ended.stderr

    def test_never_another_batch_s_ledger(self, ledger: Path) -> None:
        with pytest.raises(ConfigurationError, match="a SQLite database"):
            check_output(ledger, ledger="other.ledger.db", force=True)

    def test_never_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="a folder"):
            check_output(tmp_path, force=True)

    def test_another_file_only_where_that_is_said(self, manifest: Path) -> None:
        refused = r"not written by deslaunch[^-]*-o, or[^-]*--force"

        with pytest.raises(ConfigurationError, match=refused):
            check_output(manifest)

        check_output(manifest, force=True)

    @pytest.mark.parametrize(
        "first",
        [
            pytest.param(csv_header(), id="results"),
            pytest.param(json_results([STARTED]), id="results in JSONL"),
            pytest.param(
                json_results([PENDING._replace(key="")], with_manifest=True),
                id="a row without a key",
            ),
            pytest.param(csv_header(["key", "target", "jobId", "A"]), id="with manifest"),
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
        assert csv_header() == (
            b"key,row,target,jobId,jobName,state,jobRunId,attempts,status,error,"
            b"possibleDuplicate,sentUtc,answeredUtc,finished,success,statusText,finishedUtc,"
            b"outputFiles\r\n"
        )

    def test_csv(self) -> None:
        assert csv_results(None, [STARTED]).decode() == (
            f"store-1,1,default,{JOB},Export,started,{RUN},2,200,,true,"
            '2026-11-24T01:02:03.004Z,2026-11-24T01:02:03.005Z,true,false,"no rows, again",'
            '2026-11-24T01:12:00Z,"[{""name"":""a.csv""}]"\r\n'
        )
        assert csv_results(None, [PENDING]).decode() == (
            f"store-2,2,default,{JOB},Export,pending,,0,,,false,,,,,,,\r\n"
        )

    def test_json(self) -> None:
        assert json.loads(json_results([STARTED])) == {
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
        assert b'"possibleDuplicate":true' in json_results([STARTED])
        pending = json.loads(json_results([PENDING]))
        assert list(pending) == list(COLUMNS)
        assert (pending["finished"], pending["possibleDuplicate"]) == (None, False)

    @pytest.mark.parametrize(
        ("cell", "text"),
        [
            ("plain", "plain"),
            ("a,b", '"a,b"'),
            ('a"b', '"a""b"'),
            ("a\nb", '"a\nb"'),
            ("a\rb", '"a\rb"'),
            ("", ""),
        ],
    )
    def test_a_cell_is_quoted_where_it_must_be(self, cell: str, text: str) -> None:
        row = PENDING._replace(error=cell, status_text="é")

        assert csv_results(None, [row]).decode().endswith(f",pending,,0,,{text},false,,,,,é,,\r\n")

    @given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=3, max_size=3))
    def test_any_text_is_read_back(self, texts: list[str]) -> None:
        key, error, said = texts
        row = STARTED._replace(key=key, error=error, status_text=said)

        ((*cells,),) = csv.reader(io.StringIO(csv_results(None, [row]).decode(), newline=""))

        assert (cells[0], cells[9], cells[15]) == (key, error, said)
        assert len(cells) == len(COLUMNS)
        assert json.loads(json_results([row]))["error"] == error


def files_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def batch() -> list[Said]:
    """A batch with a row of each state that it can be left in, and a run of each kind."""
    ended = "2026-11-24T01:02:10.000Z"
    typed = {"A": JobRunParameterValue(2, "7"), "B": None, "C": AUTO, "D": "", "E": '\\N,"'}
    return [
        Said("started", attempts=STARTED_ATTEMPT, run=(True, True, None, ended)),
        Said("run-failed", attempts=STARTED_ATTEMPT, run=(True, False, "no rows", ended)),
        Said("rejected", typed, (("rejected", 400, "no, no"),), notes={"shop": "17"}),
        Said("unknown", attempts=(("unknown", None, "reset"),)),
        Said("failed", attempts=(("retry", 500, "busy"), ("failed", 502, "down"))),
        Said("invalid", problem="DBGenFrom: an integer, got many"),
        Said("pending"),
    ]


COLUMNS_AS_WRITTEN = (
    *("deslaunch.shop", "key", "A", "parameters.B", "C", "D", "E", "jobId", "DBGenFrom"),
)


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("batch") / "night.ledger.db"
    manifest = str(place.with_name("night.csv"))
    Path(manifest).write_text("key\n")
    asyncio.run(write_batch(place, batch(), manifest=manifest, columns=COLUMNS_AS_WRITTEN))
    return place


class TestBatch:
    """Results out of a ledger."""

    async def write(self, night: Path, output: Any, **options: Any) -> int:
        async with await open_ledger(str(night)) as ledger:
            return await write_results(ledger, output, **options)

    async def test_every_row_comes_once_in_manifest_order(
        self, night: Path, tmp_path: Path
    ) -> None:
        count = await self.write(night, tmp_path / "out.csv")
        found = read_csv(tmp_path / "out.csv")

        assert count == len(found) == 7
        assert [row["row"] for row in found] == [str(n) for n in range(1, 8)]
        assert [row["state"] for row in found] == [
            *("started", "started", "rejected", "unknown", "failed", "invalid", "pending")
        ]
        assert {row["jobName"] for row in found} == {"POS usage"}
        assert found[1]["statusText"] == "no rows"
        assert found[2]["error"] == "no, no"
        assert (found[4]["attempts"], found[4]["status"]) == ("2", "502")
        assert found[5]["error"] == "DBGenFrom: an integer, got many"

    async def test_jsonl_says_the_same(self, night: Path, tmp_path: Path) -> None:
        stream = io.BytesIO()

        await self.write(night, stream, form="jsonl")

        found = [json.loads(line) for line in stream.getvalue().splitlines()]
        assert [row["key"] for row in found] == [said.key for said in batch()]
        assert (found[0]["finished"], found[0]["success"]) == (True, True)
        assert found[0]["outputFiles"] == [{"name": "out.csv"}]
        assert (found[6]["jobRunId"], found[6]["finished"]) == (None, None)

    @pytest.mark.parametrize(
        ("choice", "keys"),
        [
            pytest.param(Choice(["rejected"]), ["rejected"], id="a state"),
            pytest.param(Choice(["pending", "rejected"]), ["rejected", "pending"], id="states"),
            pytest.param(Choice(run="failed"), ["run-failed"], id="failed runs"),
            pytest.param(Choice(keys=["pending", "started"]), ["started", "pending"], id="keys"),
            pytest.param(Choice(keys=["none"]), [], id="a key of no row"),
            pytest.param(Choice(["inFlight"]), [], id="in flight"),
            pytest.param(Choice(["started"], "succeeded", ["started"]), ["started"], id="all"),
        ],
    )
    async def test_rows_can_be_chosen(self, night: Path, choice: Choice, keys: list[str]) -> None:
        stream = io.BytesIO()

        assert await self.write(night, stream, choice=choice) == len(keys)
        assert [line.split(b",")[0].decode() for line in stream.getvalue().splitlines()[1:]] == keys

    async def test_beside_the_row_in_the_manifest_s_columns(
        self, night: Path, tmp_path: Path
    ) -> None:
        output = tmp_path / "fix.csv"

        await self.write(night, output, choice=Choice(["rejected"]), with_manifest=True)

        (row,) = read_csv(output)
        assert list(row)[:10] == ["target", *COLUMNS_AS_WRITTEN]
        assert list(row)[10:] == [f"deslaunch.{name}" for name in COLUMNS]
        assert (row["deslaunch.shop"], row["key"], row["target"]) == ("17", "rejected", "default")
        assert (row["A"], row["parameters.B"], row["C"], row["D"]) == ("7", "\\N", "\\A", "\\E")
        assert (row["E"], row["jobId"]) == ('\\\\N,"', JOB)
        assert row["deslaunch.state"] == "rejected"

    async def test_rows_of_jsonl_have_a_column_for_all_that_they_say(self, tmp_path: Path) -> None:
        place = tmp_path / "night.ledger.db"
        rows = [Said("1", {"A": "1"}), Said("2", {"B": "2", "key": "3"}, notes={"shop": "17"})]
        await write_batch(place, rows, manifest="night.jsonl", columns=None)

        await self.write(place, tmp_path / "all.csv", with_manifest=True)

        first, second = read_csv(tmp_path / "all.csv")
        assert list(first)[:7] == [
            *("key", "target", "jobId", "A", "B", "parameters.key", "deslaunch.shop")
        ]
        assert (first["A"], first["B"]) == ("1", "")
        assert (second["B"], second["parameters.key"], second["deslaunch.shop"]) == ("2", "3", "17")

    async def test_a_corrected_row_may_say_what_the_header_does_not_name(
        self, tmp_path: Path
    ) -> None:
        place = tmp_path / "night.ledger.db"
        await write_batch(place, [Said("1"), Said("2")])

        async with await take_ledger(str(place)) as ledger:
            corrected: Any = checked_row(1, Said("2", {"DBGenTo": "9"}))
            await ledger.correct([corrected], file="fix.csv", add=False, dry_run=False)

        await self.write(place, tmp_path / "all.csv", with_manifest=True)

        rows = read_csv(tmp_path / "all.csv")
        assert [(row["DBGenFrom"], row["DBGenTo"]) for row in rows] == [("1", ""), ("", "9")]

    @pytest.mark.parametrize("name", ["back.csv", "back.jsonl"])
    async def test_beside_the_row_it_is_a_manifest_again(
        self, night: Path, tmp_path: Path, name: str
    ) -> None:
        form: Format = "csv" if name.endswith("csv") else "jsonl"

        await self.write(night, tmp_path / name, form=form, with_manifest=True)

        manifest = Manifest(tmp_path / name, is_batch_output_allowed=True)
        found = [row for rows in await asyncio.to_thread(list, manifest.chunks()) for row in rows]
        assert [row.key for row in found] == [said.key for said in batch()]
        assert {type(row) for row in found} == {Row}
        assert isinstance(found[2], Row)
        assert found[2].parameters == {"A": "7", "B": None, "C": AUTO, "D": "", "E": '\\N,"'}
        assert found[2].types == ((2, None, None, None, None) if form == "jsonl" else ())
        assert found[2].notes == {"shop": "17"}

    async def test_a_new_batch_is_not_made_of_results(self, night: Path, tmp_path: Path) -> None:
        await self.write(night, tmp_path / "again.csv", with_manifest=True)

        manifest = Manifest(tmp_path / "again.csv")
        found = [row for rows in await asyncio.to_thread(list, manifest.chunks()) for row in rows]
        assert not any(isinstance(row, Row) for row in found)

    async def test_each_state_has_its_file(self, night: Path, tmp_path: Path) -> None:
        folder = tmp_path / "split" / "here"

        async with await open_ledger(str(night)) as ledger:
            counts = await split_results(ledger, folder)
            again = await split_results(ledger, folder)

        assert counts == again
        assert set(counts) == set(FILES) == {path.stem for path in folder.iterdir()}
        found = {path.stem: [row["key"] for row in read_csv(path)] for path in folder.iterdir()}
        assert found == {
            "pending": ["pending"],
            "started": ["started", "run-failed"],
            "failed": ["failed"],
            "rejected": ["rejected"],
            "unknown": ["unknown"],
            "invalid": ["invalid"],
            "withdrawn": [],
            "run-failed": ["run-failed"],
        }
        assert {name: len(keys) for name, keys in found.items()} == counts

    async def test_a_split_replaces_no_other_file(self, night: Path, tmp_path: Path) -> None:
        (tmp_path / "rejected.csv").write_text("key,jobId\n")

        async with await open_ledger(str(night)) as ledger:
            with pytest.raises(ConfigurationError, match=r"rejected\.csv: this file exists"):
                await split_results(ledger, tmp_path)

        assert files_in(tmp_path) == ["rejected.csv"]

    async def test_results_replace_neither_ledger_nor_manifest(self, night: Path) -> None:
        for output in (night, night.with_name("night.csv")):
            before = output.read_bytes()

            with pytest.raises(ConfigurationError, match="never replaced"):
                await self.write(night, output, force=True)

            assert output.read_bytes() == before

    async def test_what_fails_half_way_leaves_the_old_file(
        self, night: Path, tmp_path: Path
    ) -> None:
        output = tmp_path / "out.csv"
        output.write_bytes(csv_header())

        async with await open_ledger(str(night)) as ledger:
            ledger.results = broken_results  # type: ignore[method-assign]

            with pytest.raises(LedgerDamaged):
                await write_results(ledger, output)

        assert output.read_bytes() == csv_header()
        assert files_in(tmp_path) == ["out.csv"]

    async def test_a_row_in_flight_is_called_so(self) -> None:
        stream = io.BytesIO()
        ledger: Any = Sending()

        count = await write_results(ledger, stream, choice=Choice(["inFlight"]))

        assert count == stream.getvalue().count(b",inFlight,") == 2
        assert ledger.asked == ["sending"]


async def broken_results(**_: Any) -> AsyncIterator[list[ResultRow]]:
    yield [PENDING]
    raise LedgerDamaged("page 7")


class Sending:
    """A ledger of two rows that are being sent, a row a portion."""

    asked: list[str] | None = None

    async def results(
        self, *, states: list[str] | None, **_: Any
    ) -> AsyncIterator[list[ResultRow]]:
        self.asked = states
        yield [PENDING._replace(state="sending")]
        yield [STARTED._replace(state="sending")]
