"""Full, failing and read-only disks, and ledgers that were damaged."""

from __future__ import annotations

import itertools
import shutil
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from .arena import QUICK, TOKEN, Arena, Done, arena, side_by_side
from .kills import MOST_CALLS, ROWS, SHORT, SLOTS, strace
from .tally import Tally
from .witness import key_of, read

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator
    from pathlib import Path

_SECOND: Final = "tOken-two"
_REFUSED: Final = 7
_EVERY_BYTE_COUNTS: Final[dict[str, Any]] = {
    "tokens": {"expireAfter": 7},
    "faults": [
        {"fault": "status", "status": 503, "at": [3]},
        {"fault": "status", "status": 400, "at": [5]},
    ],
}


async def failing(folder: Path, *, fast: bool, rng: random.Random) -> Tally:
    """ENOSPC at the n-th write, EIO at the n-th sync, for every n; then resume."""
    tally = Tally("full and failing disks")
    survived: set[str] = set()

    async def one(call: str, error: str, n: int) -> None:
        if call in survived:
            return

        async with arena(folder / f"{call}-{n}", ROWS, SHORT) as place:
            wrap = strace(place, call, f"error={error}", n)
            done = await _run(place, wrap)

            if done.code != _REFUSED:
                survived.add(call)

            await _recorded_or_told(tally, place, done, f"{error} at {call} {n}")

    kinds = (("write", "ENOSPC"), ("fdatasync", "EIO"))
    numbers = range(1, MOST_CALLS, 14 if fast else 1)
    await side_by_side(partial(one, call, error, n) for n in numbers for call, error in kinds)
    tally.expect(len(survived) == len(kinds), f"some never survived: only {survived}")

    async def limited(kilobytes: int) -> None:
        async with arena(folder / f"limit-{kilobytes}", 40, SHORT) as place:
            script = f'ulimit -f {kilobytes}; exec "$@"'
            done = await _run(place, ("bash", "-c", script, "bash"))
            tally.expect(done.code == _REFUSED, f"a limit of {kilobytes} kB: {done}")
            await _recorded_or_told(tally, place, done, f"a limit of {kilobytes} kB")

    await side_by_side(partial(limited, n) for n in ((4,) if fast else (1, 2, 3, 4, 6, 8, 11)))

    for error in ("EROFS", "EACCES"):
        async with arena(folder / error, ROWS, SHORT) as place:
            done = await _run(place, strace(place, "openat", f"error={error}", 1))
            tally.expect(done.code == _REFUSED, f"{error}: {done}")
            tally.expect(not place.simulator.requests, f"{error}: something was sent")
            await _recorded_or_told(tally, place, done, error)

    return tally


async def _run(place: Arena, wrap: tuple[str, ...]) -> Done:
    options = ("--concurrency", str(SLOTS), *QUICK)
    return await place.run("run", str(place.manifest), *options, wrap=wrap)


async def _recorded_or_told(tally: Tally, place: Arena, done: Done, case: str) -> None:
    """Check that each run is in the ledger or on stderr, resume, and judge."""
    recorded = {run for story in read(place.ledger).values() for run in story.runs}
    silent = [
        run.job_run_id
        for run in place.simulator.runs
        if run.job_run_id not in recorded and f"{key_of(run)}\t{run.job_run_id}" not in done.err
    ]
    tally.expect(done.code in {0, 3, _REFUSED}, f"{case}: {done}")
    tally.expect("Traceback" not in done.err, f"{case}: {done}")
    tally.expect(not silent, f"{case}: neither recorded nor told: {silent}")
    tally.cases += 1
    await place.conclude(tally, case, most_unknown=SLOTS)


async def damaged(folder: Path, *, fast: bool, rng: random.Random) -> Tally:
    """Flip bits, cut, fill with zeros, put together; then resume."""
    tally = Tally("damaged ledgers")

    async with arena(folder / "base", ROWS, _EVERY_BYTE_COUNTS, tokens=[TOKEN, _SECOND]) as base:
        done = await base.run("run", str(base.manifest), "--concurrency", "1", *QUICK)
        tally.expect(done.code == 6, f"the ledger to damage: {done}")
        whole = base.ledger.read_bytes()
        started = {key_of(run) for run in base.simulator.runs}
        tally.starts += base.simulator.requests
        base.environment["DES_TOKEN"] = _SECOND

        async def one(name: str, content: bytes) -> None:
            # A flipped bit is seen wherever it is; a cut, or zeros, can look like a crash.
            safe = started if "flipped" in name else _sent_before(content, whole) & started
            code = await _resume_damaged(tally, folder, base, (name, content), safe)
            seen = code == _REFUSED or content.startswith(whole[: whole.rindex(b"\n", 0, -1)])
            tally.expect("flipped" not in name or seen, f"{name}: not seen, exit {code}")

        works = list(_damages(whole, rng, fast=fast))
        await side_by_side(partial(one, name, content) for name, content in works)

    return tally


def _damages(whole: bytes, rng: random.Random, *, fast: bool) -> Iterator[tuple[str, bytes]]:
    """Yield ledgers that were damaged, each with what was done to it."""
    places = 3 if fast else 40

    for at in rng.sample(range(len(whole)), places):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << rng.randrange(8)
        yield f"a bit flipped at {at}", bytes(flipped)

    for at in rng.sample(range(len(whole)), places):
        yield f"cut at {at}", whole[:at]

    for size in (1, 2, 511, 4096, 100_000)[: 1 if fast else 5]:
        yield f"{size} zeros behind", whole + bytes(size)
        yield f"{size} zeros over the end", whole[: max(0, len(whole) - size)] + bytes(size)

    yield "two ledgers in one", whole + whole
    yield "a newer version", whole.replace(b"deslaunch/1", b"deslaunch/2")


def _sent_before(content: bytes, whole: bytes) -> set[str]:
    """Return the keys of which every start is recorded in a line that was left as it was."""
    kept = set(content.split(b"\n"))
    sending = [line for line in whole.split(b"\n") if line.startswith(b'{"record":"sending"')]
    return {_key(line) for line in sending} - {_key(line) for line in sending if line not in kept}


def _key(line: bytes) -> str:
    return line.partition(b'"key":"')[2].partition(b'"')[0].decode()


_numbers: Final = itertools.count()


async def _resume_damaged(
    tally: Tally, folder: Path, base: Arena, damage: tuple[str, bytes], safe: set[str]
) -> int:
    """Resume a damaged copy against a service of its own; what was started stays unsent."""
    name, content = damage

    async with arena(folder / f"{next(_numbers)}", 0) as place:
        shutil.copy(base.manifest, place.manifest)
        place.ledger.write_bytes(content)
        command = ("resume", str(place.ledger), "--manifest", str(place.manifest))
        done = await place.run(*command, "--base-url", place.environment["DES_BASE_URL"])
        sent = {key_of(run) for run in place.simulator.runs}
        tally.cases += 1
        tally.starts += place.simulator.requests
        tally.twice += len(sent & safe)
        tally.expect(not sent & safe, f"{name}: sent again: {sent & safe}")
        tally.expect("Traceback" not in done.err, f"{name}: {done}")
        tally.expect(done.code in {0, 3, 4, _REFUSED}, f"{name}: {done}")

        if done.code == _REFUSED:
            tally.expect(not place.simulator.requests, f"{name}: refused, and sent")
            tally.expect(place.ledger.read_bytes() == content, f"{name}: refused, and changed")
            clear = ("at byte", "no whole header", "no deslaunch ledger", "of version")
            tally.expect(any(word in done.err for word in clear), f"{name}: {done}")

        return done.code
