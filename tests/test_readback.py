"""Single records, read back by their offsets, also from a file that changes."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest

from deslaunch import records
from deslaunch.errors import LedgerDamaged, LedgerError
from deslaunch.readback import Readback

if TYPE_CHECKING:
    from pathlib import Path

    from deslaunch.records import Record

UTC = "2026-11-01T02:03:04.567Z"


def line(number: int, size: int) -> bytes:
    return records.encode(records.unsent(f"k{number}", 1, error="x" * size), UTC)


def readback_of(path: Path) -> Readback:
    with path.open("rb") as stream:
        return Readback(path, stream.fileno())


def key(record: Record) -> object:
    return record["key"]


@pytest.mark.parametrize("order", ["in-order", "backwards", "at-random"])
def test_every_record_is_read_back_wherever_blocks_end(tmp_path: Path, order: str) -> None:
    """Lines of one byte to three blocks; more of them than are held."""
    rng = random.Random(1)
    sizes = [rng.choice([0, 10, 300, 40_000, 100_000]) for _ in range(60)] + [100] * 3000
    path = tmp_path / "l"
    path.write_bytes(b"".join(line(number, size) for number, size in enumerate(sizes)))
    offsets = [0]

    for number, size in enumerate(sizes[:-1]):
        offsets.append(offsets[-1] + len(line(number, size)))

    numbers = list(range(len(sizes)))

    if order == "at-random":
        rng.shuffle(numbers)

    readback = readback_of(path)

    for number in reversed(numbers) if order == "backwards" else numbers:
        assert key(readback(offsets[number])) == f"k{number}"


def test_a_last_record_without_its_newline(tmp_path: Path) -> None:
    path = tmp_path / "l"
    path.write_bytes(line(1, 9)[:-1])

    assert key(readback_of(path)(0)) == "k1"


def test_a_tail_that_was_mended_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "l"
    path.write_bytes(line(1, 9) + line(2, 9)[:-5] + b"\0" * 99)
    readback = readback_of(path)
    assert key(readback(0)) == "k1"

    with path.open("r+b") as stream:
        stream.write(line(1, 9) + line(3, 9) + line(4, 9))
        stream.truncate()

    assert key(readback(len(line(1, 9)))) == "k3"


def test_what_was_just_written_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "l"
    path.write_bytes(b"")
    readback = readback_of(path)
    offset, kept = 0, {}

    for number in range(5000):
        kept[offset] = records.unsent(f"k{number}", 1, error="")
        readback.keep(offset, kept[offset])
        offset += 100

    for offset in list(kept)[-1000:]:
        assert readback(offset) is kept[offset]

    with pytest.raises(LedgerDamaged):
        readback(0)  # only so many are held


def test_a_record_that_is_gone_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "l"
    path.write_bytes(line(1, 9))
    readback = readback_of(path)
    path.write_bytes(b"x" * 99)

    with pytest.raises(LedgerDamaged) as caught:
        readback(0)

    assert (str(caught.value), caught.value.offset, caught.value.hint) == (
        (
            f"{path}: the ledger is damaged at byte 0, where a record was read before: the line "
            "does not end with its checksum"
        ),
        0,
        "restore the file from a copy",
    )


def test_a_file_that_can_not_be_read_says_so(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "l", os.O_WRONLY | os.O_CREAT)
    readback = Readback(tmp_path / "l", fd)
    os.close(fd)

    with pytest.raises(LedgerError, match="can't be read: Bad file descriptor"):
        readback(0)


def test_its_descriptor_is_closed_with_the_last_reference(tmp_path: Path) -> None:
    path = tmp_path / "l"
    path.write_bytes(line(1, 9))
    readback = readback_of(path)
    fd = readback._fd
    assert os.fstat(fd).st_size == len(line(1, 9))
    assert repr(readback) == f"<Readback of {str(path)!r}>"

    del readback

    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
