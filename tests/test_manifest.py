"""Any file gives rows or problems, and what is validated is what is sent."""

from __future__ import annotations

import csv
import gzip
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from deslaunch import manifest
from deslaunch.errors import ConfigurationError, ManifestChanged, ManifestError
from deslaunch.manifest import Manifest, ManifestOptions, detect_format
from deslaunch.model import GOT_LIMIT, Row, RowProblem
from deslaunch.readers import MAX_LINE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from deslaunch.model import Format
    from deslaunch.rows import Item

JOB = "43f87799-62c6-4001-92f9-6b3df816a6d6"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples of a property; each example overwrites its file."""
    return tmp_path_factory.mktemp("manifests")


def manifest_of(
    folder: Path, format_: Format, content: bytes | str, *, block_size: int = 64, **defaults: str
) -> Manifest:
    path = folder / f"night.{format_}"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return Manifest(path, ManifestOptions(**defaults), block_size=block_size)  # type: ignore[arg-type]


def items_of(folder: Path, format_: Format, content: bytes | str, **defaults: str) -> list[Item]:
    return list(manifest_of(folder, format_, content, block_size=4096, **defaults).first_pass())


def problems_of(
    folder: Path, format_: Format, content: bytes | str, **defaults: str
) -> list[RowProblem]:
    items = items_of(folder, format_, content, **defaults)
    return [problem for item in items if not isinstance(item, Row) for problem in item]


def only_row(items: list[Item]) -> Row:
    (item,) = items
    assert isinstance(item, Row), item
    return item


def only_problem(file: Manifest) -> RowProblem:
    (item,) = file.first_pass()
    assert not isinstance(item, Row), item
    (problem,) = item
    return problem


# What kind of file it is


@pytest.mark.parametrize("format_", ["jsonl", "csv"])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(b"PK\x03\x04\x14\x00", "Excel", id="xlsx"),
        pytest.param(b"\xd0\xcf\x11\xe0\xa1", "Excel", id="xls"),
        pytest.param("jobId,a\n".encode("utf-16"), "UTF-16", id="utf-16"),
        pytest.param("jobId,a\n".encode("utf-16-be"), "UTF-16", id="utf-16 without a mark"),
        pytest.param(b'{"record":"batch","ledger":"deslaunch/1"}\n', "resume", id="ledger"),
        pytest.param(gzip.compress(b"PK\x03\x04"), "Excel", id="zipped twice"),
    ],
)
@pytest.mark.parametrize("block_size", [1, 4096])
def test_another_kind_of_file_is_named(
    tmp_path: Path, format_: Format, content: bytes, says: str, block_size: int
) -> None:
    file = manifest_of(tmp_path, format_, content, block_size=block_size)

    problem = only_problem(file)

    assert (problem.row, problem.line) == (0, 1)
    assert says in problem.message


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize(
    ("format_", "content"), [("csv", f"jobId\n{JOB}\n"), ("jsonl", f'{{"jobId": "{JOB}"}}')]
)
def test_bom_and_gzip_are_taken_off(
    tmp_path: Path, format_: Format, content: str, mark: bytes, pack: Callable[[bytes], bytes]
) -> None:
    """gzip is told by its first bytes: the name says nothing of it here."""
    row = only_row(items_of(tmp_path, format_, pack(mark + content.encode())))

    assert (row.job_id, row.parameters) == (JOB, {})


@pytest.mark.parametrize(
    ("format_", "content"),
    [
        pytest.param("csv", "jobId,a\n", id="csv with a header only"),
        pytest.param("jsonl", "", id="jsonl"),
        pytest.param("jsonl", "\n \n", id="blank jsonl"),
    ],
)
def test_no_rows_are_no_problem(tmp_path: Path, format_: Format, content: str) -> None:
    file = manifest_of(tmp_path, format_, content)

    assert list(file.first_pass()) == []
    assert (file.fingerprint.rows, file.fingerprint.whole) == (0, True)


# Limits


def test_an_overlong_jsonl_line_is_a_problem_of_its_row_alone(tmp_path: Path) -> None:
    long = f'{{"parameters": {{"a": "{"x" * (3 * MAX_LINE)}"}}}}'
    items = items_of(tmp_path, "jsonl", f"{{}}\n{long}\n{{}}\n", job_id=JOB)

    assert [isinstance(item, Row) for item in items] == [True, False, True]
    assert not isinstance(items[1], Row)
    assert [(p.row, p.line) for p in items[1]] == [(2, 2)]
    assert "1,048,576 bytes" in items[1][0].message


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        pytest.param(",".join("x" * 100_000 for _ in range(11)), "1,048,576", id="a line"),
        pytest.param('"' + "x\n" * 100 + "x" * 200_000 + '"', "field limit", id="one cell"),
        pytest.param(
            ",".join('"' + "x" * 90_000 + '\n"' for _ in range(12)), "1,048,576", id="many lines"
        ),
    ],
)
def test_an_overlong_csv_record_ends_the_reading(tmp_path: Path, cell: str, says: str) -> None:
    limit = csv.field_size_limit()
    row, problems = items_of(tmp_path, "csv", f"jobId,a\n{JOB},1\n{JOB},{cell}\n{JOB},3\n")

    assert isinstance(row, Row)
    assert not isinstance(problems, Row)
    assert [(p.row, p.line) for p in problems] == [(2, 3)]
    assert says in problems[0].message
    assert csv.field_size_limit() == limit


def test_a_long_old_mac_file_is_still_named(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, "csv", "jobId,a\r" + "x,y\r" * MAX_LINE)

    assert "bare \\r" in problem.message


def test_memory_stays_flat(tmp_path: Path) -> None:
    """The lines that are held never exceed a line and a block, however long a line grows."""

    def content() -> Iterator[bytes]:
        for _ in range(40):
            yield b"x" * (MAX_LINE // 4)

    assert [len(line) for lines in manifest._lines(content()) for line in lines] == [MAX_LINE + 1]


def test_a_gzip_bomb_is_unpacked_piece_by_piece() -> None:
    bomb = gzip.compress(bytes(20 * manifest.BLOCK_SIZE))
    sizes = [len(piece) for piece in manifest._unzipped(iter([bomb]))]

    assert (max(sizes), sum(sizes)) == (manifest.BLOCK_SIZE, 20 * manifest.BLOCK_SIZE)


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
    ],
)
def test_format(name: str, chosen: Format | None, expected: Format) -> None:
    assert detect_format(Path(name), chosen) == expected


@pytest.mark.parametrize("name", ["rows", "rows.txt", "rows.gz", "rows.json", "csv"])
def test_unknown_format(name: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Manifest(Path(name), ManifestOptions())

    assert "--format" in caught.value.hint


@pytest.mark.parametrize("format_", ["jsonl", "csv"])
def test_problems_and_changes_name_the_file_as_they_are_told_to(
    tmp_path: Path, format_: Format
) -> None:
    path = manifest_of(tmp_path, format_, "[]\n").path
    options = ManifestOptions()
    given, told = Manifest(path, options), Manifest(path, options, name="<stdin>")

    assert (given.name, told.name) == (str(path), "<stdin>")

    for file in (given, told):
        for item in file.first_pass():
            assert not isinstance(item, Row)
            assert {problem.file for problem in item} == {file.name}

    path.write_bytes(b"{}\n")

    with pytest.raises(ManifestChanged, match=r"^<stdin> changed"):
        list(told.second_pass(told.fingerprint))


def test_a_missing_file_is_a_manifest_error(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="No such file"):
        list(Manifest(tmp_path / "no.csv", ManifestOptions()).first_pass())


def test_a_folder_is_a_manifest_error(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()

    with pytest.raises(ManifestError, match="can't be read"):
        list(Manifest(tmp_path / "folder.csv", ManifestOptions()).first_pass())


def test_a_pipe_is_refused_before_it_is_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")

    with pytest.raises(ManifestError, match="read twice"):
        list(Manifest(tmp_path / "pipe.csv", ManifestOptions()).first_pass())


def test_fingerprint_needs_a_complete_first_pass(tmp_path: Path) -> None:
    file = manifest_of(tmp_path, "jsonl", "{}\n{}\n")
    next(file.first_pass())

    with pytest.raises(RuntimeError):
        _ = file.fingerprint


def test_fingerprint_is_of_the_raw_file(tmp_path: Path) -> None:
    content = gzip.compress(f'{{"jobId": "{JOB}"}}\n{{}}\n'.encode())
    file = manifest_of(tmp_path, "jsonl", content)
    items = list(file.first_pass())

    assert (file.fingerprint.sha256, file.fingerprint.rows, len(items)) == (
        *(hashlib.sha256(content).hexdigest(), 2, 2),
    )


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        pytest.param(lambda packed: packed[:-9], "too early", id="cut off"),
        pytest.param(lambda packed: packed[:5], "too early", id="cut off in its header"),
        pytest.param(lambda packed: packed[:-8] + bytes(8), "incorrect", id="bad checksum"),
        pytest.param(lambda packed: packed + b"junk", "incorrect header", id="junk behind"),
    ],
)
@pytest.mark.parametrize("block_size", [1, 4096])
def test_damaged_gzip(
    tmp_path: Path, damage: Callable[[bytes], bytes], says: str, block_size: int
) -> None:
    """A line that the damage cuts off is never taken for a row."""
    packed = gzip.compress(b'{"key": "a"}\n{"key": "b"}\n{"key": "c"}')
    file = manifest_of(tmp_path, "jsonl", damage(packed), block_size=block_size, job_id=JOB)
    *rows, problems = file.first_pass()

    assert not isinstance(problems, Row)
    assert [row.key for row in rows if isinstance(row, Row)] == ["a", "b", "c"][: len(rows)]
    assert "c" not in {row.key for row in rows if isinstance(row, Row)}
    assert (problems[0].row, says in problems[0].message) == (len(rows), True)
    assert file.fingerprint.whole is False


def test_gzip_members_and_their_padding(tmp_path: Path) -> None:
    packed = gzip.compress(b"{}\n{") + gzip.compress(b"}\n") + bytes(700)

    for block_size in (1, 7, 4096):
        file = manifest_of(tmp_path, "jsonl", packed, block_size=block_size, job_id=JOB)
        assert [isinstance(item, Row) for item in file.first_pass()] == [True, True]


# The second pass


def lines_of(count: int) -> bytes:
    return b"".join(b'{"key":"%05d"}\n' % number for number in range(count))  # 16 bytes each


def change_byte(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("format_", ["jsonl", "csv"])
def test_second_pass_yields_the_same(
    tmp_path: Path, format_: Format, pack: Callable[[bytes], bytes]
) -> None:
    content = b'key\nc\n"\nx' if format_ == "csv" else b"{}\n[]\n\n{"
    file = manifest_of(tmp_path, format_, pack(content), block_size=5, job_id=JOB)

    first = list(file.first_pass())
    assert list(file.second_pass(file.fingerprint)) == first


@pytest.mark.parametrize("at", [0, 17, 63, 64, 100, 127, 128, 159])
def test_no_row_of_a_changed_block_is_yielded(tmp_path: Path, at: int) -> None:
    """Blocks of 64 bytes hold four rows of 16 bytes each."""
    content = lines_of(10)
    file = manifest_of(tmp_path, "jsonl", content, job_id=JOB)
    expected = list(file.first_pass())[: at // 64 * 4]
    sending = file.second_pass(file.fingerprint)
    seen = [next(sending)] if expected else []
    file.path.write_bytes(change_byte(content, at))

    with pytest.raises(ManifestChanged, match="changed after it was validated"):
        take(sending, seen)

    assert seen == expected[: len(seen)]


def take(items: Iterator[Item], into: list[Item]) -> None:
    """Put items into a list one by one, so that those before an error are kept."""
    for item in items:
        into.append(item)  # noqa: PERF402  # extend would drop them


@pytest.mark.parametrize("format_", ["jsonl", "csv"])
@pytest.mark.parametrize("length", [0, 1, 64, 65, 100, 128, 129, 159])
def test_a_shorter_file_has_changed(tmp_path: Path, format_: Format, length: int) -> None:
    """A block that became shorter gives no row, though its first lines are the same."""
    content = b"key\n" + b"k\n" * 78 if format_ == "csv" else lines_of(10)
    file = manifest_of(tmp_path, format_, content, job_id=JOB)
    first = list(file.first_pass())
    file.path.write_bytes(content[:length])

    seen: list[Item] = []
    with pytest.raises(ManifestChanged):
        take(file.second_pass(file.fingerprint), seen)

    assert seen == first[: len(seen)]
    assert len(seen) <= content[: length // 64 * 64].count(b"\n")


@pytest.mark.parametrize("rows", [4, 5, 8])
@pytest.mark.parametrize("more", [b"\n", b"x", lines_of(9)])
def test_a_longer_file_has_changed(tmp_path: Path, rows: int, more: bytes) -> None:
    content = lines_of(rows)[:-1]
    file = manifest_of(tmp_path, "jsonl", content, job_id=JOB)
    list(file.first_pass())
    file.path.write_bytes(content + more)

    seen: list[Item] = []
    with pytest.raises(ManifestChanged):
        take(file.second_pass(file.fingerprint), seen)

    assert seen == []


@pytest.mark.parametrize("start", [b'key\nk\n"', b"key;a\n"], ids=["open quote", "bad header"])
def test_a_change_behind_the_last_row_that_could_be_read_is_seen(
    tmp_path: Path, start: bytes
) -> None:
    content = start + b"x\n" * 100
    file = manifest_of(tmp_path, "csv", content, job_id=JOB)
    list(file.first_pass())
    digest = file.fingerprint.sha256
    file.path.write_bytes(content + b"y")

    assert digest == hashlib.sha256(content).hexdigest()
    with pytest.raises(ManifestChanged):
        list(file.second_pass(file.fingerprint))


def test_a_file_that_grows_while_it_is_sent_has_changed(tmp_path: Path) -> None:
    content = lines_of(8)
    file = manifest_of(tmp_path, "jsonl", content, job_id=JOB)
    first = list(file.first_pass())
    sending = file.second_pass(file.fingerprint)
    seen = [next(sending)]

    with file.path.open("ab") as handle:
        handle.write(b'{"key":"late"}\n')

    with pytest.raises(ManifestChanged):
        take(sending, seen)

    assert seen == first[: len(seen)]


# Properties


fragments = st.lists(
    st.one_of(
        st.binary(max_size=20),
        st.sampled_from(
            [
                *(b"\n", b"\r\n", b"\r", b'"', b",", b"\\N", b"jobId", b"key", b"{", b"}", b":"),
                *(b'{"key":"a"}\n', b"jobId,a\n", JOB.encode(), b"\xef\xbb\xbf", b"\0", b"\xff"),
                *(b'{"key":"a","parameters":{"a":1.5,"a":[]}}\n', b"a,b\n", b"\x1f\x8b"),
            ]
        ),
    ),
    max_size=12,
).map(b"".join)


def check_items(file: Manifest) -> list[Item]:
    """Read a file twice; hold it to what every manifest must keep."""
    items = list(file.first_pass())
    fingerprint = file.fingerprint
    numbers = [item.number if isinstance(item, Row) else item[0].row for item in items]

    assert all(
        isinstance(item, Row) or (item and len({p.row for p in item}) == 1) for item in items
    )
    assert numbers[: fingerprint.rows] == list(range(1, fingerprint.rows + 1)) or numbers == [0]
    assert len(items) - fingerprint.rows in {0, int(not fingerprint.whole)}
    assert list(file.second_pass(fingerprint)) == items
    return items


@given(content=fragments, format_=st.sampled_from(["jsonl", "csv"]), packed=st.booleans())
def test_any_bytes_give_rows_or_problems(
    folder: Path, content: bytes, format_: Format, packed: bool
) -> None:
    raw = gzip.compress(content) if packed else content
    items = check_items(manifest_of(folder, format_, raw, job_id=JOB))

    for item in items:
        for problem in () if isinstance(item, Row) else item:
            assert (len(problem.got) <= GOT_LIMIT, len(problem.column) <= GOT_LIMIT) == (True, True)
            assert problem.line >= 1
            orjson.dumps(problem.as_dict())


@given(data=st.data(), format_=st.sampled_from(["jsonl", "csv"]))
def test_any_damage_to_gzip_gives_rows_or_problems(
    folder: Path, data: st.DataObject, format_: Format
) -> None:
    packed = gzip.compress(lines_of(20) if format_ == "jsonl" else b"key,a\n" + b"k,1\n" * 20)
    at = data.draw(st.integers(0, len(packed) - 1))
    damaged = packed[:at] + data.draw(st.binary(max_size=3)) + packed[at + 1 :]

    check_items(manifest_of(folder, format_, damaged, job_id=JOB, block_size=16))


@given(
    content=fragments,
    format_=st.sampled_from(["jsonl", "csv"]),
    block_size=st.integers(1, 40),
    packed=st.booleans(),
)
def test_blocks_may_end_anywhere(
    folder: Path, content: bytes, format_: Format, block_size: int, packed: bool
) -> None:
    raw = gzip.compress(content) if packed else content
    whole = list(manifest_of(folder, format_, raw, job_id=JOB, block_size=4096).first_pass())
    pieces = list(manifest_of(folder, format_, raw, job_id=JOB, block_size=block_size).first_pass())

    assert pieces == whole


@given(
    before=st.binary(min_size=1, max_size=300),
    after=st.binary(max_size=300),
    block_size=st.integers(1, 64),
)
def test_any_other_content_is_a_change(
    folder: Path, before: bytes, after: bytes, block_size: int
) -> None:
    assume(before != after)
    file = manifest_of(folder, "jsonl", before, block_size=block_size)
    list(file.first_pass())
    file.path.write_bytes(after)

    with pytest.raises(ManifestChanged):
        list(file.second_pass(file.fingerprint))


def test_another_file_in_its_place_is_a_change(tmp_path: Path) -> None:
    """An editor writes a new file: the open one still reads as it was validated."""
    file, text = a_validated_file(tmp_path, block_size=64)
    sending = file.second_pass(file.fingerprint)
    seen = [next(sending)]
    other = tmp_path / "other.jsonl"
    other.write_text(text.replace('"k9"', '"x9"'))
    other.replace(file.path)

    with pytest.raises(ManifestChanged):
        take(sending, seen)

    assert 1 <= len(seen) < 10


def test_a_file_that_was_only_touched_is_the_same(tmp_path: Path) -> None:
    file, text = a_validated_file(tmp_path, block_size=64)
    copy = tmp_path / "copy.jsonl"
    copy.write_text(text)
    copy.replace(file.path)

    assert len(list(file.second_pass(file.fingerprint))) == 10


def test_a_file_that_is_gone_ends_the_sending(tmp_path: Path) -> None:
    file, _ = a_validated_file(tmp_path, block_size=64)
    sending = file.second_pass(file.fingerprint)
    next(sending)
    file.path.unlink()

    with pytest.raises(ManifestError, match="No such file"):
        list(sending)


def a_validated_file(folder: Path, *, block_size: int) -> tuple[Manifest, str]:
    path = folder / "night.jsonl"
    text = "".join(f'{{"key": "k{number}", "jobId": "{JOB}"}}\n' for number in range(10))
    path.write_text(text)
    file = Manifest(path, ManifestOptions(), block_size=block_size)
    list(file.first_pass())
    return file, text
