"""Any file gives rows or problems; one in the wrong form is told once, as what it is."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from manifests import FILE, JOB, items_of, only_problem, only_row, open_manifest, problems_of

from deslaunch.errors import ConfigurationError, ManifestError
from deslaunch.manifest import files
from deslaunch.manifest.files import CHUNK, Manifest, detect_format
from deslaunch.manifest.readers import MAX_RECORD
from deslaunch.model import InvalidRow, Row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from deslaunch.model import Format

GOOD = f'{{"jobId": "{JOB}", "parameters": {{"Text": "x"}}}}'
EMBEDDED = f'{{"jobId": "{JOB}", "parameters": {{"Text": "[{{\\"shop\\":1}},{{\\"shop\\":2}}]"}}}}'


class Trickle(io.RawIOBase):
    """A stream that gives a few bytes at a time, as a pipe may."""

    def __init__(self, content: bytes, size: int) -> None:
        self._rest = content
        self._size = size

    def read(self, size: int = -1) -> bytes:
        piece, self._rest = self._rest[: self._size], self._rest[self._size :]
        return piece


def trickled(form: Format, content: bytes, size: int, **options: str) -> Manifest:
    return Manifest(Trickle(content, size), format=form, name=FILE, **options)  # type: ignore[arg-type]


def all_of(manifest: Manifest) -> list[Row | InvalidRow]:
    return [item for chunk in manifest.chunks() for item in chunk]


# What kind of file it is


@pytest.mark.parametrize("form", ["jsonl", "csv"])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(b"PK\x03\x04\x14\x00", "Excel", id="xlsx"),
        pytest.param(b"\xd0\xcf\x11\xe0\xa1", "Excel", id="xls"),
        pytest.param("jobId,a\n".encode("utf-16"), "UTF-16", id="utf-16"),
        pytest.param("jobId,a\n".encode("utf-16-be"), "UTF-16", id="utf-16 without a mark"),
        pytest.param(b"SQLite format 3\0" + bytes(84), "resume", id="a ledger"),
        pytest.param(gzip.compress(b"PK\x03\x04"), "Excel", id="zipped twice"),
    ],
)
@pytest.mark.parametrize("size", [1, 4096])
def test_another_kind_of_file_is_named(form: Format, content: bytes, says: str, size: int) -> None:
    manifest = trickled(form, content, size)
    (item,) = all_of(manifest)

    assert isinstance(item, InvalidRow)
    assert (item.number, item.line, manifest.is_whole) == (0, 1, False)
    assert says in item.problems[0].message


@pytest.mark.parametrize(
    ("form", "content", "says"),
    [
        pytest.param("jsonl", f"[{GOOD},{GOOD}]", "jq -c '.[]'", id="an array in one line"),
        pytest.param("jsonl", f"[\n{GOOD},\n{GOOD}\n]\n", "jq -c '.[]'", id="an array"),
        pytest.param("jsonl", json.dumps([json.loads(GOOD)], indent=2), "'.[]'", id="pretty array"),
        pytest.param("jsonl", json.dumps(json.loads(GOOD), indent=2), "jq -c .", id="pretty"),
        pytest.param("jsonl", GOOD.replace(", ", ",\n"), "jq -c .", id="an object in two lines"),
        pytest.param("jsonl", f"{GOOD},\n{GOOD},\n{GOOD}\n", "lines end in a comma", id="commas"),
        pytest.param("jsonl", f"key,jobId\nk,{JOB}\nl,{JOB}\n", "--format csv", id="CSV"),
        pytest.param("jsonl", f"key\tjobId\nk\t{JOB}\n", "--format csv", id="tabs"),
        pytest.param("jsonl", "hello\nworld\n", "not JSONL", id="a text"),
        pytest.param(
            "jsonl",
            '{"key":"a","row":1,"state":"failed","jobRunId":null,"attempts":1}\n' * 2,
            "--with-manifest",
            id="results as JSONL",
        ),
        pytest.param("csv", f"{GOOD}\n{GOOD}\n", "--format jsonl", id="JSONL"),
        pytest.param("csv", f"[{GOOD}]\n", "--format jsonl", id="an array as CSV"),
        pytest.param("csv", "key;jobId;a\nk;x;1\n", "--delimiter ';'", id="semicolons"),
        pytest.param("csv", "key\tjobId\na\tb\n", "--delimiter 'tab'", id="tabs as CSV"),
        pytest.param(
            "csv", f"# exported\nkey,jobId\nk,{JOB}\n", "without a header", id="M10: comment"
        ),
        pytest.param(
            "csv", f"Report of May\nkey,jobId\nk,{JOB}\n", "without a header", id="M10: title"
        ),
        pytest.param(
            "csv", f"Report, May\nkey,jobId,a\nk,{JOB},1\n", "without a header", id="M10: comma"
        ),
        pytest.param(
            "csv", f"Report,,\nkey,jobId,a\nk,{JOB},1\n", "without a header", id="M10: padded"
        ),
        pytest.param(
            "csv", f"k,{JOB},1\nl,{JOB},2\n", "without a header", id="M10: data by a GUID"
        ),
        pytest.param(
            "csv", "k,2026-01-31,x\nl,2026-02-01,y\n", "without a header", id="M10: by a date"
        ),
        pytest.param("csv", "k,\\N\nl,\\N\n", "without a header", id="M10: data by an escape"),
        pytest.param(
            "csv",
            "key,row,state,jobRunId,attempts\na,1,failed,,1\n",
            "--with-manifest",
            id="results",
        ),
    ],
)
def test_a_file_in_the_wrong_form_is_told_once(form: Format, content: str, says: str) -> None:
    manifest = open_manifest(form, content, job_id=JOB)  # M8, M10
    (item,) = all_of(manifest)

    assert isinstance(item, InvalidRow)
    (problem,) = item.problems
    assert (problem.line, manifest.is_whole) == (1, False)
    assert says in problem.message


@pytest.mark.parametrize(
    ("form", "content", "rows"),
    [
        pytest.param("jsonl", f"nonsense, this\n{GOOD}\n", [False, True], id="first line only"),
        pytest.param("jsonl", f"[1]\n{GOOD}\n", [False, True], id="first line an array"),
        pytest.param("jsonl", f'{{"key": \n{GOOD}\n', [False, True], id="first line cut"),
        pytest.param("jsonl", EMBEDDED, [True], id="JSON with a comma in a text"),
        pytest.param("jsonl", f"{EMBEDDED}\n{EMBEDDED}", [True, True], id="two such rows"),
        pytest.param("jsonl", f"{GOOD}, {GOOD}", [False], id="two objects in one line"),
        pytest.param("csv", "a\n1\n2\n", [True, True], id="one column"),
        pytest.param("csv", "a,b\n1,2,3\n1,2\n", [False, True], id="one ragged row"),
        pytest.param("csv", "a,b\n1,2,3\n", [False], id="only a ragged row"),
        pytest.param("csv", "a,b\n1,2,\n3,4,\n", [False, False], id="only delimiters at the ends"),
        pytest.param("csv", "a,b,c\n1,2\n3,4\n", [False, False], id="only short rows"),
        pytest.param("csv", "key,a\n1\n1\n", [False, False], id="ragged below a good header"),
        pytest.param("csv", "parameters.2026,b\n1,2\n", [True], id="a parameter called as data"),
    ],
)
def test_a_file_in_the_right_form_is_told_of_row_by_row(
    form: Format, content: str, rows: list[bool]
) -> None:
    manifest = open_manifest(form, content, job_id=JOB)

    assert [isinstance(item, Row) for item in all_of(manifest)] == rows
    assert manifest.is_whole


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize(("form", "content"), [("csv", f"jobId\n{JOB}\n"), ("jsonl", GOOD)])
def test_a_byte_order_mark_and_gzip_are_taken_off(
    form: Format, content: str, mark: bytes, pack: Callable[[bytes], bytes]
) -> None:
    raw = mark + content.encode()
    manifest = open_manifest(form, pack(raw))

    assert only_row(all_of(manifest)).job_id == JOB
    assert manifest.digest == hashlib.sha256(raw).hexdigest()


@pytest.mark.parametrize(
    ("form", "content"),
    [
        pytest.param("csv", "jobId,a\n", id="csv with a header only"),
        pytest.param("jsonl", "", id="jsonl"),
        pytest.param("jsonl", "\n \n", id="blank jsonl"),
        pytest.param("jsonl", gzip.compress(b""), id="nothing, zipped"),
    ],
)
def test_no_rows_are_no_problem(form: Format, content: str) -> None:
    manifest = open_manifest(form, content)

    assert list(manifest.chunks()) == []
    assert (manifest.rows, manifest.is_whole) == (0, True)


# The header of CSV


@pytest.mark.parametrize(
    ("header", "column", "says"),
    [
        pytest.param("jobId,a,a", "a", "twice", id="parameter twice"),
        pytest.param("jobId,a,parameters.a", "parameters.a", "twice", id="twice by its long name"),
        pytest.param("jobId,jobId", "jobId", "twice", id="jobId twice"),
        pytest.param("jobId,deslaunch.n,Deslaunch.n", "Deslaunch.n", "twice", id="note twice"),
        pytest.param("jobId,,a", "", "column 2 has no name", id="unnamed"),
        pytest.param("jobId,parameters.", "", "column 2 has no name", id="nothing but the prefix"),
        pytest.param('jobId,a"b', "", "quote the whole cell", id="bare quote"),
        pytest.param("jobId,a\0", "", "NUL", id="nul"),
        pytest.param('jobId,"a', "", "never closed", id="open quote"),
        pytest.param('jobId,"a"b', "", "quote the whole cell", id="text after a quote"),
        pytest.param("jobId,a\r1,2\r", "", "\\r alone", id="old Mac"),
        pytest.param("", "", "no header line", id="empty file"),
        pytest.param("\n\r\n", "", "no header line", id="blank lines only"),
    ],
)
def test_a_bad_header_is_a_problem_of_the_file(header: str, column: str, says: str) -> None:
    manifest = open_manifest("csv", header)
    (item,) = all_of(manifest)

    assert isinstance(item, InvalidRow)
    (problem,) = item.problems
    assert (problem.row, problem.column) == (0, column)
    assert says in problem.message
    assert (manifest.rows, manifest.is_whole) == (0, False)


def test_every_problem_of_a_header_is_told_but_for_a_million() -> None:
    assert [p.column for p in problems_of("csv", "a,,a,key,key\n")] == ["", "a", "key"]
    assert len(problems_of("csv", "key" + "," * 5_000 + "\n")) < 1_000


def test_the_header_is_kept_as_it_was_written() -> None:
    manifest = open_manifest("csv", 'Count,"key",deslaunch.Owner\n')

    assert all_of(manifest) == []
    assert manifest.columns == ("Count", "key", "deslaunch.Owner")
    assert open_manifest("jsonl", "").columns is None


# Where the reading ends early


def test_an_open_quote_ends_the_reading_at_its_row() -> None:
    manifest = open_manifest("csv", f'jobId,a\n{JOB},1\n\n{JOB},"2\n{JOB},3\n')
    row, invalid = all_of(manifest)

    assert isinstance(row, Row)
    assert isinstance(invalid, InvalidRow)
    assert [(p.row, p.line) for p in invalid.problems] == [(2, 4)]
    assert "never closed" in invalid.problems[0].message
    assert (manifest.rows, manifest.is_whole) == (2, False)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        pytest.param(lambda packed: packed[:-9], "cut off", id="cut off"),
        pytest.param(lambda packed: packed[:5], "cut off", id="cut off in its header"),
        pytest.param(lambda packed: packed[:-8] + bytes(8), "incorrect", id="bad checksum"),
        pytest.param(lambda packed: packed + b"junk", "incorrect header", id="junk behind"),
    ],
)
@pytest.mark.parametrize("size", [1, 4096])
def test_damaged_gzip_is_told_and_half_a_line_is_no_row(
    damage: Callable[[bytes], bytes], says: str, size: int
) -> None:
    packed = gzip.compress(b'{"key": "a"}\n{"key": "b"}\n{"key": "c"}')
    manifest = trickled("jsonl", damage(packed), size, job_id=JOB)
    *rows, last = all_of(manifest)

    assert isinstance(last, InvalidRow)
    assert [row.key for row in rows] == ["a", "b"][: len(rows)]
    assert (last.number, says in last.problems[0].message) == (len(rows), True)
    assert manifest.is_whole is False

    assert manifest.digest == ""


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_cut_gzip_is_told_where_the_data_ends(form: Format) -> None:  # M5
    lines = [f'{{"jobId":"{JOB}","key":"{os.urandom(40).hex()}"}}\n' for _ in range(3000)]

    if form == "csv":
        lines = ["key,jobId\n", *(f"{os.urandom(40).hex()},{JOB}\n" for _ in range(3000))]

    packed = gzip.compress("".join(lines).encode())
    *rows, last = items_of(form, packed[: len(packed) // 2])

    assert len(rows) > 1000
    assert all(isinstance(row, Row) for row in rows)
    assert last.line - rows[-1].line == 1
    assert last.number == len(rows)


def test_gzip_members_may_be_padded() -> None:
    packed = gzip.compress(b"{}\n{") + gzip.compress(b"}\n") + bytes(700)

    for size in (1, 7, 4096):
        items = all_of(trickled("jsonl", packed, size, job_id=JOB))
        assert [isinstance(item, Row) for item in items] == [True, True]


# Limits


def test_an_overlong_line_is_a_problem_of_its_row_alone() -> None:
    long = f'{{"parameters": {{"a": "{"x" * (3 * MAX_RECORD)}"}}}}'
    items = items_of("jsonl", f"{{}}\n{long}\n{{}}\n", job_id=JOB)

    assert [isinstance(item, Row) for item in items] == [True, False, True]
    assert "1,048,576 bytes" in only_problem("jsonl", f"{{}}\n{long}", job_id=JOB).message


@pytest.mark.parametrize(
    "cell",
    [
        pytest.param("x" * MAX_RECORD, id="one cell"),
        pytest.param('"' + "x" * 99 + '\n"' * 1 + "x" * MAX_RECORD, id="a second line"),
        pytest.param('"' + ("x" * 90_000 + "\n") * 12 + '"', id="many lines"),
    ],
)
def test_an_overlong_record_ends_the_reading(cell: str) -> None:
    row, last = items_of("csv", f"jobId,a\n{JOB},1\n{JOB},{cell}\n{JOB},3\n")

    assert isinstance(row, Row)
    assert isinstance(last, InvalidRow)
    assert (last.number, last.line) == (2, 3)
    assert "1,048,576 bytes" in last.problems[0].message


def test_a_long_old_mac_file_is_still_named() -> None:
    assert "\\r alone" in only_problem("csv", "jobId,a\r" + "x,y\r" * MAX_RECORD).message


def test_a_carriage_return_inside_a_line_is_named() -> None:
    assert "(\\r) in the middle" in only_problem("csv", "jobId,a\nx,1\r,2\n").message


def test_no_more_than_a_line_and_a_block_is_held() -> None:
    def content() -> Iterator[bytes]:
        for _ in range(40):
            yield b"x" * (MAX_RECORD // 4)

    assert [len(line) for lines in files._lines(content()) for line in lines] == [MAX_RECORD + 1]


def test_a_gzip_bomb_is_unpacked_piece_by_piece() -> None:
    bomb = gzip.compress(bytes(20 * files.BLOCK_SIZE))
    sizes = [len(piece) for piece in files._unzip(iter([bomb]))]

    assert (max(sizes), sum(sizes)) == (files.BLOCK_SIZE, 20 * files.BLOCK_SIZE)


def test_rows_come_in_chunks() -> None:
    chunks = list(open_manifest("jsonl", "{}\n" * (CHUNK + 1), job_id=JOB).chunks())

    assert [len(chunk) for chunk in chunks] == [CHUNK, 1]


# The file itself


@pytest.mark.parametrize(
    ("name", "chosen", "expected"),
    [
        pytest.param("a.jsonl", None, "jsonl", id="jsonl"),
        pytest.param("a.NDJSON", None, "jsonl", id="ndjson"),
        pytest.param("a.csv", None, "csv", id="csv"),
        pytest.param("a.csv.gz", None, "csv", id="csv.gz"),
        pytest.param("a.jsonl.GZ", None, "jsonl", id="jsonl.gz"),
        pytest.param("a.csv", "jsonl", "jsonl", id="the choice wins"),
        pytest.param("rows", "csv", "csv", id="no suffix"),
        pytest.param("-", "csv", "csv", id="standard input"),
    ],
)
def test_the_form_is_chosen_or_told_by_the_name(
    name: str, chosen: Format | None, expected: Format
) -> None:
    assert detect_format(name, chosen) == expected


@pytest.mark.parametrize("name", ["rows", "rows.txt", "rows.gz", "rows.json", "csv", "-"])
def test_a_form_that_is_not_told_must_be_chosen(name: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Manifest(name)

    assert "--format" in caught.value.hint


def test_a_spreadsheet_is_told_by_its_name() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Manifest("night.xlsx")

    assert "CSV" in caught.value.hint


def test_a_ledger_is_told_by_its_name() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Manifest("night.ledger.db")

    assert "deslaunch resume" in caught.value.hint


def test_a_name_of_any_bytes_stands_in_problems_and_in_json(tmp_path: Path) -> None:  # M3, M17
    path = os.fsdecode(os.fsencode(tmp_path) + b"/night\xff\x1b.csv")

    try:
        with open(path, "w") as file:  # noqa: PTH123  # a Path would do the same
            file.write("jobId\nx\n")
    except OSError:
        pytest.skip("this file system takes UTF-8 only")

    manifest = Manifest(path)
    (item,) = all_of(manifest)

    assert isinstance(item, InvalidRow)
    assert manifest.name.endswith("night\\xff\\x1b.csv")
    assert item.problems[0].file == manifest.name
    json.dumps(item.problems[0]._asdict(), ensure_ascii=False).encode()


def test_a_header_cannot_speak_to_a_terminal() -> None:  # M17
    problem = only_problem("csv", "jobId,\x1b[31ma,\x1b[31ma\n")

    assert problem.column == "\\x1b[31ma"
    assert str(problem).isprintable()


def test_what_cannot_be_read_is_a_manifest_error(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()

    for name in ("folder.csv", "no.csv"):
        with pytest.raises(ManifestError, match="can't be read"):
            all_of(Manifest(tmp_path / name))


def test_standard_input_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(GOOD.encode())))
    manifest = Manifest("-", format="jsonl")

    assert only_row(all_of(manifest)).job_id == JOB
    assert (manifest.name, manifest.path) == ("-", None)


def test_a_closed_standard_input_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)

    with pytest.raises(ManifestError, match="standard input is closed"):
        all_of(Manifest("-", format="csv"))


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "pipe.jsonl"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=(GOOD,))
    writer.start()
    items = all_of(Manifest(path))
    writer.join()

    assert only_row(items).job_id == JOB


# Warnings


def warnings_of(form: Format, content: str) -> list[str]:
    manifest = open_manifest(form, content, job_id=JOB)
    all_of(manifest)
    return [str(warning) for warning in manifest.warnings]


def test_a_share_that_loses_a_backslash_is_warned_of_once() -> None:  # M12
    table = "key,Text\na,\\\\srv\\share\nb,\\\\\\srv\\share\nc,\\\\N\nd,\\\\srv\\x\n"
    (warning,) = warnings_of("csv", table)

    assert warning.startswith(f"{FILE}:2, column Text (2 rows): ")
    first, *_ = items_of("csv", table, job_id=JOB)
    assert isinstance(first, Row)
    assert first.parameters == {"Text": "\\srv\\share"}


@pytest.mark.parametrize(
    ("cell", "count"),
    [
        pytest.param('"x\nb,1,2\nc,1,2\n"', 1, id="M16: rows in a cell"),
        pytest.param('"x\ny, z\n"', 0, id="a text of lines"),
        pytest.param('"x,y,z"', 0, id="no line breaks"),
    ],
)
def test_a_cell_that_swallows_rows_is_warned_of(cell: str, count: int) -> None:
    warnings = warnings_of("csv", f"key,a,b\nk,{cell},1\nl,2,3\n")

    assert len(warnings) == count


# Properties


@given(st.sampled_from(["jsonl", "csv"]), st.binary(max_size=300), st.integers(1, 300))
def test_any_bytes_give_rows_or_problems(form: Format, content: bytes, size: int) -> None:
    manifest = trickled(form, content, size, job_id=JOB)
    items = all_of(manifest)
    whole = items if manifest.is_whole else items[:-1]

    assert [item.number for item in whole] == [*range(1, len(whole) + 1)]

    for item in items:
        if isinstance(item, InvalidRow):
            json.dumps([problem._asdict() for problem in item.problems], ensure_ascii=False)


cells = st.sampled_from([JOB, "1", "x y", "", " ", "é", '"q"', '"a,b"', '"a\nb"', "\\N", "\\q"])


@given(
    st.lists(st.lists(cells, min_size=1, max_size=3), max_size=6),
    st.sampled_from(["", "\n", "\r\n\n", '"', "\r"]),
    st.integers(1, 40),
)
def test_blocks_may_end_anywhere(rows: list[list[str]], end: str, size: int) -> None:
    content = ("\n".join(["key,a,b", *map(",".join, rows)]) + end).encode()
    whole = open_manifest("csv", content, job_id=JOB)
    pieces = trickled("csv", content, size, job_id=JOB)

    assert all_of(pieces) == all_of(whole)
    assert (pieces.rows, pieces.is_whole) == (whole.rows, whole.is_whole)


@given(st.integers(0, 400), st.integers(0, 255))
def test_any_damage_to_gzip_gives_rows_or_problems(at: int, byte: int) -> None:
    packed = bytearray(gzip.compress(b"".join(b'{"key":"%d"}\n' % n for n in range(60)), mtime=0))
    packed[at % len(packed)] = byte

    for item in items_of("jsonl", bytes(packed), job_id=JOB):
        assert isinstance(item, Row) or item.problems
