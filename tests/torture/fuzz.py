"""Manifests that are made to break their readers: a million rows of them, and some giants."""

from __future__ import annotations

import asyncio
import gzip
import json
import multiprocessing
import random
import signal
import tempfile
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deslaunch import wire
from deslaunch.intake import Intake, InvalidRow
from deslaunch.manifest import Manifest, ManifestOptions
from deslaunch.model import Row, RowProblem, StartRequest
from deslaunch.schema import Schemas
from deslaunch.simulator import CSV_SALES_EXPORT, DEFAULT_JOBS, POS_USAGE_EXPORT

from .arena import Arena, side_by_side
from .tally import Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WORKERS: Final = 2
ROWS_OF_A_FILE: Final = 24
LONGEST: Final = 5
"""Seconds that a file may take."""

MOST_MEMORY: Final = 150 << 20
LONGEST_GIANT: Final = 60.0
_GIGABYTE: Final = 1 << 30

_JOBS: Final = (POS_USAGE_EXPORT, CSV_SALES_EXPORT, POS_USAGE_EXPORT.upper(), "no-guid", "")
_NAMES: Final = (
    "DBGenFrom",
    "DBGenTo",
    "TradingDate",
    "dbgenfrom",
    "parameters.key",
    "deslaunch.note",
    "key",
    "target",
    "",
    "\u2028",
    "ключ",
)
_VALUES: Final[tuple[Any, ...]] = (
    1200,
    -1,
    0,
    2**63,
    10**30,
    1.5,
    1e308,
    True,
    None,
    "",
    "2026-01-31",
    "2026-01-31T00:00:00Z",
    "9999-12-31T23:59:60Z",
    "\\N",
    "\\A",
    "\\E",
    "\\\\x",
    "\\q",
    "a,b",
    'a"b',
    "line\nbreak",
    "\x00",
    "é\U0001f600",
    "x" * 300,
    {"auto": True},
    {"auto": 1},
    {"type": 2, "valueStringEncoded": "5"},
    {"type": "2", "valueStringEncoded": 5},
    {"useAutoValue": True},
    {"useAutoValue": True, "valueStringEncoded": "x"},
    {},
    [],
    [[[[]]]],
)
_PIECES: Final = (
    *(b'"', b'""', b",", b"\n", b"\r\n", b"\r", b"\\", b"\\u0000", b"\\ud800", b"\\N", b"\\A"),
    *(b"\0", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"{", b"}", b"[", b"]", b":"),
    *(b"NaN", b"Infinity", b"-0", b"1e999", b"1" * 400, b"0.1", b"null", b"true", b" ", b"\t"),
    *(b"\xe2\x80\xa8", b"\x1f\x8b", b"PK\x03\x04", b'{"a":1,"a":2}', b"[" * 2000),
)


def manifest_bytes(rng: random.Random, form: str) -> bytes:
    """Return a file of rows: mostly sound, then spoiled."""
    lines = _jsonl(rng) if form == "jsonl" else _csv(rng)
    content = b"".join(lines)

    for _ in range(rng.choice((0, 0, 1, 1, 2, 3, 8))):
        content = _spoiled(rng, content)

    return gzip.compress(content, 1) if rng.random() < 0.02 else content


def _jsonl(rng: random.Random) -> Iterator[bytes]:
    for number in range(ROWS_OF_A_FILE):
        row: dict[str, Any] = {"jobId": POS_USAGE_EXPORT, "parameters": {"DBGenFrom": number}}

        if rng.random() < 0.3:
            row["jobId"] = rng.choice(_JOBS)

        if rng.random() < 0.4:
            row["key"] = rng.choice((f"row-{number}", "row-1", "~", "", "x" * 300, 5, None))

        for _ in range(rng.choice((0, 0, 1, 3))):
            row["parameters"][rng.choice(_NAMES)] = rng.choice(_VALUES)

        if rng.random() < 0.05:
            row[rng.choice(_NAMES)] = rng.choice(_VALUES)

        yield json.dumps(row, ensure_ascii=rng.random() < 0.5).encode() + b"\n"


def _csv(rng: random.Random) -> Iterator[bytes]:
    names = ["key", "jobId", *rng.sample(_NAMES, rng.randrange(1, 4))]
    yield (",".join(names) + rng.choice(("\n", "\r\n"))).encode()

    for number in range(ROWS_OF_A_FILE):
        cells = [f"row-{number}", rng.choice(_JOBS), *(_cell(rng) for _ in names[2:])]

        if rng.random() < 0.05:
            cells.append("more")

        yield (",".join(cells) + "\n").encode()


def _cell(rng: random.Random) -> str:
    value = rng.choice(_VALUES)
    text = value if isinstance(value, str) else json.dumps(value)
    return '"' + text.replace('"', '""') + '"' if rng.random() < 0.7 else text


def _spoiled(rng: random.Random, content: bytes) -> bytes:
    at = rng.randrange(len(content) + 1)
    kind = rng.randrange(5)

    if kind == 0 and at < len(content):
        return content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]

    if kind == 1:
        return content[:at] + rng.choice(_PIECES) + content[at:]

    if kind == 2:
        return content[:at] + content[at + rng.randrange(1, 40) :]

    if kind == 3:
        return content[:at] + rng.randbytes(rng.randrange(1, 30)) + content[at:]

    return content[at:] + content[:at]


def work(seed: str, files: int) -> tuple[int, int, list[str]]:
    """Read and check so many files; return the items, the sound ones, and what broke."""
    rng = random.Random(seed)
    broken: list[str] = []
    items = sound = 0
    signal.signal(signal.SIGALRM, _too_long)
    jobs = wire.decode_jobs(json.dumps(DEFAULT_JOBS).encode(), source="the jobs")

    with tempfile.TemporaryDirectory(dir=_fastest()) as folder:
        for number in range(files):
            form = rng.choice(("jsonl", "csv"))
            content = manifest_bytes(rng, form)
            path = Path(folder, f"m.{form}")
            path.write_bytes(content)
            signal.setitimer(signal.ITIMER_REAL, LONGEST)

            try:
                found = _read(path, jobs)
            except Exception:  # noqa: BLE001  # whatever it is, it is what was looked for
                broken.append(f"{seed} file {number}: {content[:80]!r}: {traceback.format_exc()}")
                continue
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)

            items += found[0]
            sound += found[1]

    return items, sound, broken


def _too_long(*_: object) -> None:
    raise TimeoutError(f"over {LONGEST} seconds")


def _fastest() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _read(path: Path, jobs: list[Any]) -> tuple[int, int]:
    """Read a file as a launch does, twice, and check what comes of every row."""
    schemas = Schemas()
    schemas.put("default", jobs)
    manifest = Manifest(path, ManifestOptions())
    first = list(manifest.first_pass())
    fingerprint = manifest.fingerprint
    assert list(manifest.second_pass(fingerprint)) == first
    assert sum(isinstance(item, Row) for item in first) <= fingerprint.rows <= len(first)
    intake = Intake(
        schemas,
        file=str(path),
        targets={"default"},
        allow_duplicates=False,
        allow_repeated_auto=False,
    )
    sound = 0

    for item in first:
        taken = intake.take(item)

        if isinstance(taken, StartRequest):
            sound += 1
            assert json.loads(taken.body)["jobId"] == taken.job_id
        else:
            _check_problems(taken)

    return len(first), sound


def _check_problems(taken: InvalidRow) -> None:
    assert taken.problems

    for problem in taken.problems:
        assert isinstance(problem, RowProblem)
        json.dumps(problem.as_dict(), ensure_ascii=False).encode()
        assert str(problem).isprintable()


async def manifests(folder: Path, *, fast: bool, rng: random.Random) -> Tally:
    """Read a million spoiled rows, and the giants."""
    wanted = 15_000 if fast else 1_000_000
    tally = Tally("hostile manifests, rows")
    seed = rng.randrange(1 << 30)
    slice_ = 200
    loop = asyncio.get_running_loop()
    context = multiprocessing.get_context("spawn")
    items = sound = number = 0

    with ProcessPoolExecutor(WORKERS, mp_context=context) as pool:
        while items < wanted:
            slices = [f"{seed}-{number + n}" for n in range(WORKERS * 4)]
            number += len(slices)
            tasks = [loop.run_in_executor(pool, work, one, slice_) for one in slices]

            for found in await asyncio.gather(*tasks):
                items += found[0]
                sound += found[1]
                tally.broken += found[2]

    tally.cases = items
    tally.note(f"seed {seed}: {number * slice_:,} files, {items:,} rows, {sound:,} of them sound")
    return tally


# Giants.


def _sparse_line(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b'{"jobId": "')
        file.truncate(_GIGABYTE)


def _full_line(path: Path) -> None:
    with path.open("wb") as file:
        for _ in range(_GIGABYTE >> 20):
            file.write(b"x" * (1 << 20))


def _open_quote(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b'key,jobId\n"')

        for _ in range(1 << 20):
            file.write(b"a\n" * 64)


def _zeros_in_gzip(path: Path) -> None:
    with gzip.open(path, "wb", 1) as file:
        file.write(b"key,jobId\n")

        for _ in range(_GIGABYTE >> 22):
            file.write(bytes(1 << 22))


def _lines_in_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress(b"\n" * (8 << 20), 1))


def _text(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


GIANTS: Final[dict[str, tuple[str, Callable[[Path], None], int]]] = {
    "a line of 1 GB, all zeros": ("m.jsonl", _sparse_line, 2),
    "a line of 1 GB": ("m.jsonl", _full_line, 2),
    "a header of 1 GB": ("m.csv", _full_line, 2),
    "a quote that is never closed": ("m.csv", _open_quote, 2),
    "1 GB of zeros in gzip": ("m.csv.gz", _zeros_in_gzip, 2),
    "8 million line ends in gzip": ("m.jsonl.gz", _lines_in_gzip, 0),
    "a million columns": ("m.csv", _text(b"key" + b"," * 1_000_000 + b"\n1\n"), 2),
    "180,000 columns": (
        "m.csv",
        _text(",".join(f"{n:x}" for n in range(180_000)).encode() + b"\n" + b"," * 179_999),
        2,
    ),
    "a million members": (
        "m.jsonl",
        _text(b"{" + b",".join(b'"%x":1' % n for n in range(90_000)) + b"}\n"),
        2,
    ),
    "nested 100,000 deep": ("m.jsonl", _text(b"[" * 100_000 + b"]" * 100_000 + b"\n"), 2),
    "objects nested deep": ("m.jsonl", _text(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), 2),
    "a parameter nested deep": (
        "m.jsonl",
        _text(b'{"parameters":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}\n"),
        2,
    ),
    "lone surrogates": ("m.jsonl", _text(b'{"key":"\\ud800","parameters":{"\\udfff":1}}\n'), 2),
    "raw surrogates": ("m.csv", _text(b"key,jobId\n\xed\xa0\x80,x\n"), 2),
    "NULs": ("m.csv", _text(b"key,jobId\n\0\0\0,\0\n"), 2),
    "a number of a million digits": (
        "m.jsonl",
        _text(b'{"parameters":{"DBGenFrom":' + b"9" * 1_000_000 + b"}}\n"),
        2,
    ),
}


async def giants(folder: Path, *, fast: bool, rng: random.Random) -> Tally:
    """Check files that are huge in one way or another: time and memory stay small."""
    tally = Tally("hostile manifests, giants")
    peaks: dict[str, int] = {}

    async def one(name: str, file: str, write: Callable[[Path], None], code: int) -> None:
        home = folder / name
        home.mkdir(parents=True)
        place = Arena(home, "http://127.0.0.1:9")
        path = home / file
        await asyncio.to_thread(write, path)
        began = time.monotonic()
        done = await place.run("check", str(path), "--schema", str(place.schema))
        seconds = time.monotonic() - began
        path.unlink()
        peaks[name] = done.peak
        tally.cases += 1
        tally.expect(done.code == code, f"{name}: {done}")
        tally.expect("Traceback" not in done.err, f"{name}: {done}")
        tally.expect(len(done.err) < 100_000, f"{name}: {len(done.err):,} characters were said")
        tally.expect(done.peak < MOST_MEMORY, f"{name}: {done.peak >> 20} MB")
        tally.expect(seconds < LONGEST_GIANT, f"{name}: {seconds:.0f} s")

    names = [name for name in GIANTS if "1 GB" not in name][::3] if fast else GIANTS
    chosen = [(name, *GIANTS[name]) for name in names]
    await side_by_side((partial(one, *giant) for giant in chosen), 2)
    name = max(peaks, key=lambda found: peaks[found])
    tally.note(f"most memory: {peaks[name] >> 20} MB, by {name}")
    return tally
