"""A ledger among tests: rows to put in, outcomes to hand over, clocks and disks to go wrong."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Final, cast

import psycopg

from deslaunch.errors import LedgerWriteFailed
from deslaunch.ledger.ledger import Ledger, NewBatch, NewSession, begin_import, take_ledger
from deslaunch.ledger.place import is_shared
from deslaunch.ledger.reading import Clock, TargetInfo, run_in
from deslaunch.ledger.sqlite import free_lock
from deslaunch.model import CheckedRow, InvalidRow, Outcome, Problem, Result, Row, RowState
from deslaunch.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from deslaunch.ledger.reading import ResultRow
    from deslaunch.model import Start

JOB: Final = "43f87799-62c6-4001-92f9-6b3df816a6d6"
NOW: Final = 1_795_000_000.0


class Hands:
    """A clock that a test moves, and a wall clock beside it that a test may set."""

    def __init__(self) -> None:
        self.seconds = 100.0
        self.stepped = 0.0
        wall = lambda: NOW + self.stepped + self.seconds  # noqa: E731
        self.clock = Clock(wall=wall, elapsed=lambda: self.seconds)

    def move(self, seconds: float) -> None:
        self.seconds += seconds

    def step(self, seconds: float) -> None:
        """Set the wall clock forward, or back."""
        self.stepped += seconds


def run_id(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


def checked(number: int, key: str | None = None, **more: Any) -> CheckedRow:
    """Return a row; ``says`` is what makes its body another one."""
    said = {"target": "default", "job": JOB, "says": number, "auto": False, "own": True, **more}
    key = key or f"k{number}"
    own = key if said["own"] else None
    row = Row(number, number + 1, own, said["target"], said["job"], {})
    body = json.dumps([said["job"], said["says"]]).encode()
    digest = hashlib.sha256(body).digest()[:16]
    text = json.dumps({"says": said["says"]})
    return CheckedRow(row, key, body, digest, said["auto"], text)


def invalid(number: int, key: str | None = None, message: str = "is no number") -> InvalidRow:
    problem = Problem("night.csv", number + 1, number, "Count", "a number", "x", message)
    return InvalidRow(number, number + 1, key, "default", JOB, (problem,), '{"says":"x"}')


async def make(
    place: Path | str, rows: Sequence[CheckedRow | InvalidRow] | int = 4, hands: Hands | None = None
) -> Ledger:
    """Import rows; return the launcher's ledger."""
    rows = [checked(number) for number in range(1, rows + 1)] if isinstance(rows, int) else rows
    clock = (hands or Hands()).clock
    batch = await begin_import(str(place), NewBatch("night.csv", {"timeout": 7}), clock=clock)
    await batch.add(rows)
    return await batch.publish(digest="ab")


def session(
    *targets: str, kept: Mapping[str, Any] | None = None, timeout: float = 60.0, **options: Any
) -> NewSession:
    places = {name: TargetInfo(f"https://{name}.example", None) for name in targets or ("default",)}
    return NewSession(places, Settings(**options), kept or {}, timeout)


async def begin(place: Path | str, hands: Hands | None = None, **consents: Any) -> Ledger:
    """Open a batch and begin a session of it."""
    ledger = await take_ledger(str(place), clock=(hands or Hands()).clock)
    await ledger.begin_session(session(**consents))
    return ledger


def outcome(start: Start, result: str, **more: Any) -> Outcome:
    known: dict[str, Any] = {}

    if result == "started":
        known = {"job_run_id": run_id(100 * start.row + start.attempt), "status": 200}
    elif result in {"retry", "throttled", "unsent"}:
        known = {"not_before": 0.0, "status": None if result == "unsent" else 503}

    said = (start.row, start.attempt, start.key, start.target, start.job_id)
    state = RowState.STARTED if result == "started" else RowState.PENDING
    return Outcome(*said, Result(result), state, **{**known, "attempts": start.attempt, **more})


async def send(ledger: Ledger, *results: str, **more: Any) -> list[Outcome]:
    """Claim as many rows as there are results, and hand these over."""
    starts = (await ledger.exchange([], {"default": len(results)})).starts
    outcomes = [outcome(s, result, **more) for s, result in zip(starts, results, strict=True)]
    return (await ledger.exchange(outcomes, {})).outcomes


async def read(ledger: Ledger, **wanted: Any) -> list[ResultRow]:
    return [row async for portion in ledger.results(**wanted) for row in portion]


async def states(ledger: Ledger) -> dict[str, str]:
    return {row.key: row.state for row in await read(ledger)}


def ask(place: str, sql: str) -> list[Any]:
    """Let another program run a statement on a batch; the tables have the same names in each."""
    if not is_shared(place):
        with closing(sqlite3.connect(place)) as connection, connection:
            return connection.execute(sql).fetchall()

    url, _, name = place.partition("#")

    with psycopg.connect(url, options="-c search_path=deslaunch") as database:
        chosen = "SELECT set_config('deslaunch.batch', id::text, false) FROM batches"
        database.execute(f"{chosen} WHERE name = %s", (name,))
        cursor = database.execute(sql)
        return cursor.fetchall() if cursor.description else []


async def crash(ledger: Ledger) -> None:
    """End a launcher as a kill does: nothing is checkpointed, and its lock is free."""
    store = cast("Any", ledger)._store
    cast("Any", ledger)._is_open = False

    def drop() -> None:
        store.is_launcher = False
        store._connection.close()

    await run_in(ledger.thread, drop)
    ledger.thread.shutdown()
    free_lock(ledger.place)


class FaultyStore:
    """A store whose next commits fail, before or after they are durable.

    Attributes:
        faults: ``before``, ``after`` or ``""`` for each transaction to come.
    """

    def __init__(self, store: Any) -> None:
        self.faults: list[str] = []
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    @contextmanager
    def transaction(self, *, is_kept: bool = True) -> Iterator[None]:
        fault = self.faults.pop(0) if self.faults else ""

        with self._store.transaction(is_kept=is_kept):
            yield

            if fault == "before":
                raise LedgerWriteFailed("the disk is full")

        if fault == "after":
            raise LedgerWriteFailed("the disk did not say")


def make_faulty(ledger: Ledger) -> FaultyStore:
    faulty = FaultyStore(cast("Any", ledger)._store)
    cast("Any", ledger)._store = faulty
    return faulty


async def never_mind(task: asyncio.Task[Any]) -> None:
    """Let a task begin, and cancel it."""
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
