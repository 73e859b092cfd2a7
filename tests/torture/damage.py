"""A ledger's bytes are spoiled, or a file that is no ledger is given for one."""

from __future__ import annotations

import json
import random
import sqlite3
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING, Final

from judge import JudgeError, read_log, row_of
from stage import QUICK, workplace

from .kills import ROWS, SHORT
from .tally import Tally, next_command, shown, side_by_side

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from stage import Workplace

PAGE: Final = 4096
LIMIT: Final = 6
REFUSED: Final = 7
CLEAN: Final = {0, 2, 3, 4, 5, REFUSED}

SMALL: Final = {"firefox.db", "other.db"}
OURS: Final = ("PRAGMA application_id=0x4445534C",)
LOOKS: Final = (("status",), ("results", "--format", "jsonl"), ("log",))
CHANGES: Final = (
    ("withdraw", "row-12"),
    ("resolve", "row-1", "--not-started", "--early", "--yes"),
    ("resume", "--quiet", "--accept-copy", *QUICK),
)


def spoiled(folder: Path, *, fast: bool, rng: random.Random) -> Tally:
    """Flip, zero, cut and overwrite bytes: it is refused, or goes on, and none is sent twice."""
    tally = Tally("a ledger whose bytes are spoiled")
    ends: Counter[int] = Counter()

    def one(number: int, kind: str, seed: int) -> None:
        with workplace(folder / f"{number}", SHORT) as place, tally.case(f"{kind} {number}"):
            place.manifest(ROWS)
            done = place.run(*next_command(place, "--limit", str(LIMIT)))
            assert done.returncode == 5, shown(done)
            data = place.ledger.read_bytes()
            place.ledger.write_bytes(_spoil(data, kind, random.Random(seed)))

            for command in (*LOOKS, *CHANGES):
                done = place.run(command[0], str(place.ledger), *command[1:])
                ends[done.returncode] += 1
                assert "Traceback" not in done.stderr, f"{command}: {shown(done)}"
                assert done.returncode in CLEAN, f"{command}: {shown(done)}"

            place.at_rest()
            tally.cases += 1
            tally.starts += place.simulator.requests
            twice = _silently_twice(place)
            tally.twice += len(twice)
            assert not twice, f"started twice: {twice}"

    kinds = ("flip", "zeroed page", "cut", "overwritten", "flip in a page's head", "swapped pages")
    cases = [(n, kinds[n % len(kinds)], rng.randrange(1 << 32)) for n in range(48)]
    side_by_side(one, cases[1:3] if fast else cases)
    tally.notes.append(", ".join(f"exit {code}: {number}" for code, number in sorted(ends.items())))
    return tally


def _spoil(data: bytes, kind: str, rng: random.Random) -> bytes:
    pages = len(data) // PAGE
    page = rng.randrange(pages) * PAGE
    spot = rng.randrange(len(data))
    out = bytearray(data)

    match kind:
        case "flip":
            out[spot] ^= 1 << rng.randrange(8)
        case "flip in a page's head":
            out[page + rng.randrange(12)] ^= 1 << rng.randrange(8)
        case "zeroed page":
            out[page : page + PAGE] = bytes(PAGE)
        case "cut":
            del out[spot:]
        case "overwritten":
            out[spot : spot + 64] = rng.randbytes(64)[: len(out) - spot]
        case _:
            other = rng.randrange(pages) * PAGE
            out[page : page + PAGE], out[other : other + PAGE] = (
                data[other : other + PAGE],
                data[page : page + PAGE],
            )

    return bytes(out)


def _silently_twice(place: Workplace) -> dict[int, int]:
    """Return the rows with several runs of which nobody is told, by the server's log."""
    runs = Counter(row_of(run) for run in read_log(place.log))

    if max(runs.values(), default=0) < 2:
        return {}

    try:
        marked = place.judge().marked
    except (JudgeError, ValueError):
        marked = set()

    return {row: number for row, number in runs.items() if number > 1 and row not in marked}


def foreign(folder: Path, *, fast: bool, rng: random.Random) -> Tally:
    """Give other files for ledgers: each command refuses them, and leaves them as they are."""
    tally = Tally("files that are no ledgers")

    with workplace(folder) as place:
        place.manifest(ROWS)
        names = _write_foreign(place)
        tries: Sequence[tuple[str, ...]] = (*LOOKS, *CHANGES, ("report", "-o", "page.html"))

        def one(name: str) -> None:
            path = place.folder / name
            before = _look_of(path)

            for command in (*tries, ("run",)):
                words = (command[0], name, *command[1:])
                start = ("run", "night.jsonl", "--ledger", name)

                with tally.case(f"{' '.join(command)} on {name}"):
                    done = place.run(*(start if command == ("run",) else words))
                    assert "Traceback" not in done.stderr, shown(done)
                    assert done.returncode == REFUSED, shown(done)
                    assert _look_of(path) == before, "it was changed, or something made beside it"
                    tally.cases += 1

        side_by_side(one, [(name,) for name in names if not fast or name in SMALL])
        tally.starts = place.simulator.requests

        with tally.case("the server"):
            assert not tally.starts, "something was sent"

    return tally


def _look_of(path: Path) -> tuple[bytes, set[str]]:
    """Return a file's bytes, and the names of what lies beside it.

    A lock may be there, and what a reader of a database with a -wal leaves behind, empty.
    """
    data = path.read_bytes() if path.is_file() else b""
    beside = {found.name for found in path.parent.glob(f"{path.name}?*") if found.stat().st_size}
    return data, beside - {f"{path.name}-shm"}


def _write_foreign(place: Workplace) -> list[str]:
    """Write files of many kinds; return their names."""
    folder = place.folder
    line = {"v": 1, "type": "batch", "rows": 12, "manifest": "night.jsonl"}
    texts = {
        "firefox.db": b"",
        "old.ledger.db": b"".join(json.dumps(line | {"n": n}).encode() + b"\n" for n in range(9)),
        "empty.db": b"",
        "text.db": b"key,jobId\na,b\n" * 100,
        "zeros.db": bytes(3 * PAGE),
        "head.db": b"SQLite format 3\0",
        "header.db": b"SQLite format 3\0" + bytes(PAGE - 16),
        "noise.db": random.Random(1).randbytes(3 * PAGE),
        "manifest.db": (folder / "night.jsonl").read_bytes(),
    }

    for name, data in texts.items():
        (folder / name).write_bytes(data)

    _write_database(folder / "firefox.db", "PRAGMA user_version=75", "PRAGMA journal_mode=WAL")
    _write_database(folder / "other.db", "PRAGMA application_id=252006673")
    _write_database(folder / "newer.db", *OURS, "PRAGMA user_version=99")
    _write_database(folder / "hollow.db", *OURS, "PRAGMA user_version=1")
    (folder / "folder.db").mkdir()
    (folder / "loop.db").symlink_to("loop.db")
    return [*texts, "other.db", "newer.db", "hollow.db", "folder.db", "loop.db"]


def _write_database(path: Path, *pragmas: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        for pragma in pragmas:
            connection.execute(pragma)

        connection.execute("CREATE TABLE moz_places (id INTEGER PRIMARY KEY, url TEXT)")
        connection.execute("INSERT INTO moz_places (url) VALUES ('https://www.example')")
