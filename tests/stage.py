"""What the tests of whole launches stand on: one place on disk, one simulator, one judge."""

from __future__ import annotations

import asyncio
import fcntl
import json
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Unpack

import anyio
import pytest

from deslaunch import launcher
from deslaunch.client import DesClient
from deslaunch.schema_cache import SchemaCache
from deslaunch.simulator import DEFAULT_JOBS, POS_USAGE_EXPORT, Simulator
from deslaunch.wire import decode_jobs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping
    from pathlib import Path

    from deslaunch.config import LaunchOptions
    from deslaunch.launcher import Confirm
    from deslaunch.model import Event, Job, Summary
    from deslaunch.session import Interrupt
    from deslaunch.terms import Clients

JOB: Final = POS_USAGE_EXPORT
TOKEN: Final = "tOken-of-one-organisation/0123456789"
STATES: Final = ("started", "failed", "rejected", "unknown", "invalid", "pending")

Said = dict[str, Any]
Runner = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]


def by_asyncio(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


def by_anyio(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    anyio.run(main)


RUNNERS: Final = [
    pytest.param(by_asyncio, id="asyncio.run"),
    pytest.param(by_anyio, id="anyio.run"),
]
"""What runs a caller's loop: a cancellation means something else to each."""


def row(number: int, **more: Any) -> Said:
    """Return a valid row that its first generation, and its key, tell from all others."""
    return {"key": f"r{number}", "jobId": JOB, "parameters": {"DBGenFrom": number}, **more}


def rows(count: int) -> list[Said]:
    return [row(number) for number in range(1, count + 1)]


def refused_row(number: int) -> Said:
    """Return a row that the schema allows and that DES refuses: both kinds of filter."""
    parameters = {"DBGenFrom": number, "TradingDate": "2026-01-31T00:00:00Z"}
    return row(number, parameters=parameters)


def invalid_row(number: int) -> Said:
    return row(number, parameters={"DBGenFrom": "many"})


def fault(kind: str, *at: int, **more: Any) -> Said:
    """Return a script with one fault; ``at`` are the numbers of start requests."""
    return {"faults": [{"fault": kind, **({"at": list(at)} if at else {}), **more}]}


HELD: Final = fault("hold", **{"from": 2})
"""All starts but the first are answered when the test says so."""


def lenient_jobs() -> list[Job]:
    """Return the service's jobs without a parameter's type: any text would do."""
    said = json.loads(json.dumps(DEFAULT_JOBS))
    said["jobs"][0]["jobRunParameters"][0]["type"] = None
    return decode_jobs(json.dumps(said).encode(), source="a test")


def counts(summary: Summary) -> dict[str, int]:
    """Return the states that are not empty; their sum is always the number of rows."""
    found = {name: int(getattr(summary, name)) for name in STATES}
    assert sum(found.values()) == summary.rows
    assert summary.in_flight == 0
    return {name: number for name, number in found.items() if number}


def generation(parameters: Mapping[str, Any]) -> str:
    text: str = parameters["DBGenFrom"]["valueStringEncoded"]
    return text


def runs_of(simulator: Simulator) -> Counter[int]:
    """Return how many runs each row has, by the simulator."""
    return Counter(int(generation(run.parameters)) for run in simulator.runs)


def once(numbers: Iterable[int]) -> Counter[int]:
    return Counter(dict.fromkeys(numbers, 1))


@dataclass(frozen=True)
class Place:
    """One batch's files."""

    folder: Path

    @property
    def manifest(self) -> Path:
        return self.folder / "night.jsonl"

    @property
    def ledger(self) -> Path:
        return self.folder / "night.ledger.jsonl"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def log(self) -> Path:
        return self.folder / "log.jsonl"

    @property
    def schema(self) -> Path:
        path = self.folder / "jobs.json"
        path.write_text(json.dumps(DEFAULT_JOBS))
        return path

    def write(self, said: Iterable[Said]) -> None:
        self.manifest.write_text("".join(json.dumps(one) + "\n" for one in said))

    def records(self, *kinds: str) -> list[Said]:
        """Return the ledger's records of some kinds, as they lie on disk."""
        found = [json.loads(line) for line in self.ledger.read_text().splitlines()]
        return [record for record in found if not kinds or record["record"] in kinds]

    def logged(self) -> list[Said]:
        """Return what the simulator's log file says."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def started(self) -> dict[str, str]:
        """Return the jobRunIds that the ledger holds, by key."""
        return {record["key"]: record["jobRunId"] for record in self.records("started")}

    def agrees(self, simulator: Simulator) -> bool:
        """Tell whether ledger, log file and simulator name the same runs for the same rows."""
        logged = {f"r{generation(one['parameters'])}": one["jobRunId"] for one in self.logged()}
        memory = {run.job_run_id for run in simulator.runs}
        return self.started() == logged and memory == set(logged.values())

    def is_free(self) -> bool:
        """Tell whether nobody holds the ledger."""
        with self.ledger.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False

        return True

    async def launch(
        self,
        des: Clients,
        *,
        resume: bool = False,
        schema: Path | None = None,
        on_event: Callable[[Event], None] | None = None,
        confirm: Confirm | None = None,
        interrupt: Interrupt | None = None,
        **options: Unpack[LaunchOptions],
    ) -> Summary:
        return await launcher.launch(
            self.manifest,
            des,
            resume=resume,
            schema=schema,
            cache=self.cache,
            on_event=on_event,
            confirm=confirm,
            interrupt=interrupt,
            **quick(options),
        )

    async def resume(
        self,
        des: Clients,
        *,
        manifest: Path | None = None,
        on_event: Callable[[Event], None] | None = None,
        confirm: Confirm | None = None,
        interrupt: Interrupt | None = None,
        **options: Unpack[LaunchOptions],
    ) -> Summary:
        return await launcher.resume(
            self.ledger,
            des,
            manifest=manifest,
            cache=self.cache,
            on_event=on_event,
            confirm=confirm,
            interrupt=interrupt,
            **quick(options),
        )


async def store(place: Place, simulator: Simulator, jobs: list[Job], *, hours: float = 0.0) -> None:
    """Keep jobs as if they had been asked for so many hours ago."""
    fetched = datetime.now(UTC) - timedelta(hours=hours)
    keep = SchemaCache(place.cache).store
    assert await asyncio.to_thread(keep, "default", simulator.base_url, jobs, fetched) is None


def quick(options: LaunchOptions) -> LaunchOptions:
    """Return the options of a test: few slots, waits that nobody feels."""
    return {"concurrency": 4, "max_wait": 0.01, **options}


@asynccontextmanager
async def service(
    place: Place,
    script: Mapping[str, Any] | None = None,
    *,
    jobs: Mapping[str, Any] = DEFAULT_JOBS,
    token: str = TOKEN,
    timeout: float = 30,
) -> AsyncIterator[tuple[Simulator, DesClient]]:
    """Run a simulator, and a client of it."""
    async with (
        Simulator(jobs=jobs, script=script, log=place.log, tokens=[TOKEN]) as simulator,
        DesClient(simulator.base_url, token=token, timeout=timeout) as des,
    ):
        yield simulator, des


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)
