"""One batch under attack: its files, its service, and the processes that work on it."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import re
import sys
from asyncio.subprocess import DEVNULL, PIPE
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deslaunch.ledger import peek, snapshot
from deslaunch.results import summary_of
from deslaunch.simulator import DEFAULT_JOBS, POS_USAGE_EXPORT, Simulator

from .witness import duplicates_in, judge

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections import Counter
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping

    from .tally import Tally

TOKEN: Final = "tOken-of-one-organisation/0123456789"
COMMAND: Final = (sys.executable, "-m", "deslaunch")
_PEAK: Final = re.compile(r"VmHWM:\s+(\d+) kB")
LIMIT: Final = 60.0
"""Seconds after which a command hangs."""

WIDTH: Final = 3
"""Cases at the same time."""

QUICK: Final = ("--max-wait", "0.05")
KILLED: Final = {-9, 137}


@dataclass(frozen=True)
class Done:
    """A command that ended."""

    code: int
    out: str
    err: str
    peak: int = 0
    """Peak of resident memory in bytes, where it was watched."""

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found

    def __str__(self) -> str:
        return f"exit {self.code}: {self.err[-300:]!r}"


class Arena:
    """A folder, the service that its batch goes to, and the environment that leads there."""

    def __init__(self, folder: Path, base_url: str, simulator: Simulator | None = None) -> None:
        self.folder = folder
        self.manifest = folder / "night.jsonl"
        self.ledger = folder / "night.ledger.jsonl"
        self.ledgers = [self.ledger]
        self.keys: list[str] = []
        self._shard: tuple[str, ...] = ()
        self._simulator = simulator
        self.environment = _clean() | {
            "DES_BASE_URL": base_url,
            "DES_TOKEN": TOKEN,
            "DESLAUNCH_CACHE_DIR": str(folder / "cache"),
            "NO_COLOR": "1",
        }

    @property
    def simulator(self) -> Simulator:
        assert self._simulator is not None
        return self._simulator

    @property
    def schema(self) -> Path:
        path = self.folder / "jobs.json"
        path.write_text(json.dumps(DEFAULT_JOBS))
        return path

    def write_rows(self, count: int) -> None:
        """Write a manifest of distinct rows; row n asks for DBGenFrom n."""
        rows = (
            {"key": f"row-{n}", "jobId": POS_USAGE_EXPORT, "parameters": {"DBGenFrom": n}}
            for n in range(1, count + 1)
        )
        self.manifest.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        self.keys = [f"row-{n}" for n in range(1, count + 1)]

    def shards(self, count: int) -> list[Arena]:
        """Return the batch as each of its shards sees it."""
        parts = [copy.copy(self) for _ in range(count)]

        for index, part in enumerate(parts, 1):
            part.ledger = self.folder / f"night.{index}-of-{count}.ledger.jsonl"
            part._shard = ("--shard", f"{index}/{count}")

        self.ledgers = [part.ledger for part in parts]
        return parts

    @property
    def is_begun(self) -> bool:
        """A batch was begun in the ledger."""
        return peek(self.ledger) is not None

    def going_on(self, *options: str) -> tuple[str, ...]:
        """Return the command that begins the batch, or goes on with it."""
        if self.is_begun:
            return ("resume", str(self.ledger), *options)

        return ("run", str(self.manifest), *self._shard, *options)

    async def start(
        self,
        *arguments: str,
        wrap: Iterable[str] = (),
        stdin: int = DEVNULL,
        stdout: int = PIPE,
        stderr: int = PIPE,
        command: Iterable[str] = COMMAND,
    ) -> Process:
        """Start a command."""
        return await asyncio.create_subprocess_exec(
            *wrap,
            *command,
            *arguments,
            cwd=self.folder,
            env=self.environment,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
        )

    async def run(
        self, *arguments: str, wrap: Iterable[str] = (), command: Iterable[str] = COMMAND
    ) -> Done:
        """Run a command to its end."""
        return await ended(await self.start(*arguments, wrap=wrap, command=command))

    async def finish(
        self, tally: Tally, case: str, *options: str, sessions: int = 40
    ) -> dict[str, Any]:
        """Go on with the batch until nothing is pending, and return the last summary."""
        said = ""

        for _ in range(sessions):
            done = await self.run(*self.going_on(*QUICK, *options, "--json"))
            said = str(done)

            if not done.out:
                break

            if not done.json["pending"]:
                told = done.json | {"seconds": 0}
                replayed = summary_of(snapshot(self.ledger)).as_dict() | {"seconds": 0}
                tally.expect(told == replayed, f"{case}: resume says {told}, status {replayed}")
                return told

        tally.expect(holds=False, what=f"{case}: the batch never came to its end: {said}")
        return {}

    def judge(self, tally: Tally, case: str, *, most_unknown: int | None) -> Counter[str]:
        """Hold the ledger against the simulator."""
        tally.starts += self.simulator.requests
        return judge(
            tally,
            self.ledgers,
            self.simulator.runs,
            case=case,
            keys=self.keys,
            most_unknown=most_unknown,
        )

    async def conclude(
        self, tally: Tally, case: str, *options: str, most_unknown: int | None
    ) -> Counter[str]:
        """Bring the batch to its end, and judge it."""
        told = await self.finish(tally, case, *options)
        await self.at_rest()
        states = self.judge(tally, case, most_unknown=most_unknown)
        found = {name: told.get(name, 0) for name in states}
        tally.expect(found == dict(states), f"{case}: told {found}, the witness reads {states}")
        tally.expect(sum(states.values()) == len(self.keys), f"{case}: rows are missing")
        tally.expect(not states["pending"], f"{case}: {states['pending']} rows still pending")
        told_twice, twice = told.get("possibleDuplicates"), duplicates_in(self.ledger)
        tally.expect(told_twice == twice, f"{case}: {told_twice} duplicates told, {twice} read")
        return states

    async def at_rest(self) -> None:
        """Return when the simulator serves no start any more."""
        await asyncio.wait_for(self.simulator.until(lambda: not self.simulator.in_flight), LIMIT)


@asynccontextmanager
async def arena(
    folder: Path, rows: int, script: Mapping[str, Any] | None = None, *, tokens: Iterable[str] = ()
) -> AsyncIterator[Arena]:
    """Run a simulator beside a new batch of ``rows`` rows."""
    log = made_folder(folder) / "runs.jsonl"

    async with Simulator(script=script, log=log, tokens=[*tokens] or [TOKEN]) as simulator:
        made = Arena(folder, simulator.base_url, simulator)
        made.write_rows(rows)
        yield made


def made_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


async def ended(process: Process) -> Done:
    """Wait for a command's end, and remember the most memory that it had."""
    peaks = [0]
    watching = asyncio.create_task(_watch(process.pid, peaks))
    hung = ""

    try:
        out, err = await asyncio.wait_for(process.communicate(), LIMIT)
    except TimeoutError:
        process.kill()
        out, err = await process.communicate()
        hung = "HUNG"
    finally:
        watching.cancel()

    assert process.returncode is not None
    return Done(process.returncode, _text(out), _text(err) + hung, peaks[-1])


async def _watch(pid: int, peaks: list[int]) -> None:
    while True:
        peaks += _peaks_of(pid)
        await asyncio.sleep(0.05)


def _peaks_of(pid: int) -> list[int]:
    """Return the most memory that a process had, while it is there to be asked."""
    with suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text()
        return [int(kilobytes) * 1024 for kilobytes in _PEAK.findall(status)]

    return []


def _text(data: bytes | None) -> str:
    return (data or b"").decode("utf-8", "replace")


async def side_by_side(
    works: Iterable[Callable[[], Coroutine[Any, Any, None]]], width: int = WIDTH
) -> None:
    """Do works, some at the same time, in the order in which they come."""
    waiting = iter(works)

    async def go_on() -> None:
        for work in waiting:
            await work()

    async with asyncio.TaskGroup() as group:
        for _ in range(width):
            group.create_task(go_on())


def _clean() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DES_", "DESLAUNCH_"))
    }
