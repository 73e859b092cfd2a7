"""What tests of the library stand on: a folder, a simulator in the loop, and a quick launch."""

from __future__ import annotations

import json
import os
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psycopg
import pytest
from ledgers import ask
from stage import POS_USAGE, fault, row

from deslaunch.des.client import DesClient
from deslaunch.launch import batch
from deslaunch.ledger.ledger import open_ledger
from deslaunch.ledger.place import is_shared
from deslaunch.settings import Settings
from deslaunch.simulator import Simulator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping
    from contextlib import AbstractAsyncContextManager

    from deslaunch.events import Summary
    from deslaunch.launch.launcher import Batch
    from deslaunch.ledger.reading import ResultRow

TOKEN: Final = "s3cret/tok+en=="
HOLDS: Final = fault("hold")
AUTO: Final = {"jobId": POS_USAGE, "parameters": {"DBGenFrom": {"auto": True}}}

RUNNERS: Final = [pytest.param("asyncio", id="asyncio"), pytest.param("anyio", id="anyio")]


@dataclass(frozen=True)
class Place:
    """One batch's files, and where its ledger is: a file of them, unless another is named."""

    folder: Path
    named: str = ""

    @property
    def manifest(self) -> Path:
        return self.folder / "night.jsonl"

    @property
    def file(self) -> Path:
        return self.folder / "night.ledger.db"

    @property
    def ledger(self) -> str:
        return self.named or str(self.file)

    def has_ledger(self) -> bool:
        if not is_shared(self.ledger):
            return Path(self.ledger).exists()

        try:
            return bool(ask(self.ledger, "SELECT 1 FROM batch"))
        except psycopg.ProgrammingError:  # there is no schema yet, or no such batch
            return False

    @property
    def cache(self) -> Path:
        return Path(os.environ["DESLAUNCH_CACHE_DIR"])

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self.manifest.write_text("".join(f"{json.dumps(one)}\n" for one in rows))

    async def launch(self, des: Any, rows: Any = None, **options: Any) -> Summary:
        """Launch the manifest, or rows of a program, with waits that nobody feels."""
        source = self.manifest if rows is None else rows
        ledger = self.ledger
        more, settings = split(options)
        return await batch.launch(source, des, ledger=ledger, settings=settings, **more)

    def open(
        self, des: Any, rows: Any = None, **options: Any
    ) -> AbstractAsyncContextManager[Batch]:
        source = self.manifest if rows is None else rows
        more, settings = split(options)
        return batch.open_batch(source, des, ledger=self.ledger, settings=settings, **more)

    def resume(self, des: Any, **options: Any) -> AbstractAsyncContextManager[Batch]:
        more, settings = split(options)
        return batch.resume_batch(self.ledger, des, settings=settings, **more)

    async def go_on(self, des: Any, **options: Any) -> Summary:
        """Resume the batch, and launch what is left."""
        async with self.resume(des, **options) as opened:
            return await opened.run(allow_partial=True)

    async def lines(self) -> dict[str, ResultRow]:
        """Return the results by key, as a reader sees them."""
        async with await open_ledger(self.ledger) as ledger:
            return {line.key: line async for part in ledger.results() for line in part}

    async def states(self) -> dict[str, str]:
        return {key: str(line.state) for key, line in (await self.lines()).items()}

    async def log(self) -> list[tuple[str, str | None]]:
        """Return kind and key of all that the ledger logged."""
        async with await open_ledger(self.ledger) as ledger:
            return [(entry.kind, entry.key) async for part in ledger.log() for entry in part]


def split(options: dict[str, Any]) -> tuple[dict[str, Any], Settings]:
    """Return what is no setting, and the settings with waits that nobody feels."""
    names = Settings.__dataclass_fields__
    more = {name: value for name, value in options.items() if name not in names}
    tuned = {name: value for name, value in options.items() if name in names}
    return more, Settings(**{"max_wait": 0.05, **tuned})


@asynccontextmanager
async def service(
    place: Place, script: Mapping[str, Any] | None = None, **more: Any
) -> AsyncIterator[tuple[Simulator, DesClient]]:
    """Run a simulator in this loop, with a client of it."""
    timeout = more.pop("timeout", 20)
    made = Simulator(script=script, log=place.folder / "log.jsonl", tokens=[TOKEN], **more)

    async with (
        made as simulator,
        DesClient(simulator.base_url, token=TOKEN, timeout=timeout) as des,
    ):
        yield simulator, des


def rows(count: int, *, first: int = 1) -> list[dict[str, Any]]:
    return [row(number) for number in range(first, first + count)]


def runs_of(simulator: Simulator) -> Counter[int]:
    """Return how many runs each row has, by the simulator."""
    values = (run.parameters["DBGenFrom"]["valueStringEncoded"] for run in simulator.runs)
    return Counter(map(int, values))


def once(numbers: Iterable[int]) -> Counter[int]:
    return Counter(dict.fromkeys(numbers, 1))


def counts(summary: Summary) -> dict[str, int]:
    """Return the rows by state, without the states that no row has."""
    told = summary.counts.as_dict()
    left_out = {"rows", "attempts", "possibleDuplicates"}
    return {name: n for name, n in told.items() if n and name not in left_out}
