"""Reading a ledger: for status, results, log, report and watch.

All is read in portions, never with an open cursor: one that stays open keeps SQLite's WAL from
being used again. A row in flight is ``sending`` while its launcher lives, ``unknown`` after that.
"""

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial, wraps
from typing import Any, Concatenate, Final, Literal, NamedTuple, ParamSpec, Self, TypeVar

import orjson

from deslaunch.events import (
    Control,
    Counts,
    Plan,
    PlannedJob,
    Stop,
    StopReason,
    Summary,
    WatchSummary,
)
from deslaunch.ledger.store import Launcher, Store, as_json, storable
from deslaunch.model import Job, JobParameter, RowState, Start
from deslaunch.settings import Settings

PORTION: Final = 512
"""Rows that are read at a time."""

_READY: Final = frozenset({RowState.PENDING, RowState.FAILED})
"""States of rows that any session sends."""

P = ParamSpec("P")
T = TypeVar("T")


class Clock(NamedTuple):
    """The two clocks of a session; its own time is ``wall`` at its begin, and ``elapsed`` since.

    Attributes:
        wall: seconds since 1970, UTC; None for the database's own, or else the machine's.
        elapsed: seconds of a clock that counts suspension; the clock of ``Start.meant``.
    """

    wall: Callable[[], float] | None = None
    elapsed: Callable[[], float] = partial(
        time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    )


class TargetInfo(NamedTuple):
    """Where a target's rows were last sent; None where none were.

    Attributes:
        base_url: of the last session.
        org_id: the organisation that its token source names, where one is named.
    """

    base_url: str | None
    org_id: str | None


class KnownJob(NamedTuple):
    """A job as its rows were checked.

    Attributes:
        target: the target's name.
        job: with the JobRunParameters that the rows were checked with.
        is_checked: False where its target could not be asked: its rows are unchecked.
        from_des: the parameters came from DES; False for a schema file.
    """

    target: str
    job: Job
    is_checked: bool
    from_des: bool


class BatchInfo(NamedTuple):
    """A batch's properties, as its ledger keeps them.

    Attributes:
        name: of the batch: its file's name without ``.ledger.db``, or what follows ``#``.
        manifest: as it was named at the import.
        digest: SHA-256 of its uncompressed bytes, hex; ``""`` for rows of a program.
        columns: header of a CSV manifest as it was written; None for JSONL.
        rows: rows that the import brought.
        options: as in :class:`NewBatch`, with what later command lines gave.
        imported_ms: ms since 1970, UTC.
        uid: of the batch, the same in each copy of its ledger.
    """

    name: str
    manifest: str
    digest: str
    columns: tuple[str, ...] | None
    rows: int
    options: dict[str, Any]
    imported_ms: int
    uid: str


class SessionInfo(NamedTuple):
    """One session, as the ledger keeps it.

    Attributes:
        number: from 1.
        host: where it ran.
        pid: its process.
        began_ms: ms since 1970.
        ended_ms: None where it did not come to its end.
        exit_code: None where it did not come to its end.
        stops: why it ended early: dicts with reason, message, target, resumeAfter.
        options: as given.
        targets: base URL by target.
    """

    number: int
    host: str
    pid: int
    began_ms: int
    ended_ms: int | None
    exit_code: int | None
    stops: list[dict[str, Any]]
    options: dict[str, Any]
    targets: dict[str, str]

    @property
    def launcher(self) -> Launcher:
        """The process whose session it is, or was."""
        return Launcher(self.pid, self.host, self.began_ms)


class ResultRow(NamedTuple):
    """One row of the view ``results``; flags are 0, 1 or None, times RFC 3339 in UTC.

    Attributes:
        says: what the row says (JSON), where rows were asked for; else None.
    """

    batch: str
    key: str
    row: int
    target: str
    job_id: str
    job_name: str
    state: str
    job_run_id: str | None
    attempts: int
    status: int | None
    error: str
    possible_duplicate: int
    sent_utc: str | None
    answered_utc: str | None
    finished: int | None
    success: int | None
    status_text: str | None
    finished_utc: str | None
    output_files: str | None
    says: str | None = None


class Consents(NamedTuple):
    """Which rows a session may send beside those that are pending or failed.

    Attributes:
        rejected: those that DES rejected.
        unknown: those whose outcome is unknown, but for auto-value rows.
        failed_runs: those whose run failed, but for auto-value rows and possible duplicates.
    """

    rejected: bool = False
    unknown: bool = False
    failed_runs: bool = False

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return what the options of a session allow."""
        return cls(settings.retry_rejected, settings.retry_unknown, settings.retry_failed_runs)


class UnknownRow(NamedTuple):
    """A row whose outcome is unknown, and where to look for its run.

    Attributes:
        says: what the row says, JSON.
        error: what came instead of a usable response.
        job_run_id: one that came and can't be relied on, or None.
        from_ms: its run was created after this, by DES's clock, ms since 1970.
        until_ms: and before this.
    """

    row: int
    key: str
    target: str
    job_id: str
    job_name: str
    says: str
    error: str
    job_run_id: str | None
    from_ms: int
    until_ms: int


class RunToAsk(NamedTuple):
    """A run whose end is not recorded."""

    row: int
    attempt: int
    key: str
    target: str
    job_id: str
    job_run_id: str


class LogEntry(NamedTuple):
    """One attempt or event.

    Attributes:
        ms: when it ended or happened, ms since 1970; of an open attempt, when it was meant.
        kind: ``attempt``, ``event``, ``resolution``, ``correction``; of a session ``began`` or
            ``ended``.
        session: number, or None.
        key: of the row, or None.
        target: or None.
        details: what else there is, by its name in JSON.
    """

    ms: int
    kind: str
    session: int | None
    key: str | None
    target: str | None
    details: dict[str, Any]


def in_thread(
    method: Callable[Concatenate[Any, P], T],
) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    """Run a method in the ledger's thread, ``self.thread``; callers await it.

    One that was cancelled runs to its end all the same.
    """

    @wraps(method)
    async def run(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await run_in(self.thread, partial(method, self, *args, **kwargs))

    return run


def in_transaction(
    method: Callable[Concatenate[Any, P], T],
) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    """Run a method in the ledger's thread, in one transaction; callers await it.

    Where the connection to the database is lost it is run again, once there is a new one.
    """

    @wraps(method)
    async def run(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await run_in(self.thread, self._durably, partial(method, self, *args, **kwargs))

    return run


async def run_in(
    thread: ThreadPoolExecutor,
    function: Callable[..., T],
    *args: Any,
    drop: Callable[[T], object] | None = None,
) -> T:
    """Run a function in the ledger's thread; where this is cancelled, ``drop`` its result there."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def end() -> None:
        if not done.done():
            done.set_result(None)

    def tell(_: object) -> None:
        with suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(end)

    work = thread.submit(function, *args)
    work.add_done_callback(tell)

    try:
        await done  # its cancellation does not reach the work
    except asyncio.CancelledError:
        if drop is not None:
            thread.submit(lambda: drop(work.result()))

        raise

    return work.result()


class Reader:
    """One batch, read from its ledger, in a thread of its own.

    Attributes:
        place: path of the ledger's file, or postgresql://…#batch.
        warning: about the file system that it lies on, or ``""``.
        thread: the ledger's.
        batch: what is known of the batch.
    """

    def __init__(self, store: Store, thread: ThreadPoolExecutor, clock: Clock) -> None:
        """Read what is known of the batch; runs in the ledger's thread."""
        self.place = store.place
        self.warning = store.warning
        self.thread = thread
        self._store = store
        self._clock = clock
        self._is_open = True
        [(name, manifest, digest, columns, rows, options, ms, uid)] = store.fetch("batch")
        said = (digest, columns and tuple(json.loads(columns)), rows, json.loads(options), ms, uid)
        self.batch = BatchInfo(name, os.fsdecode(manifest), *said)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> str:
        """Close; a launcher's ledger becomes one file again, and its lock is freed.

        Waits up to 5 s for readers. Nothing stays of an import that was not published. Does
        nothing the second time.

        Returns:
            ``""``, or a sentence where a ``-wal`` that belongs to the batch stays beside it.
        """
        if not self._is_open:
            return ""

        self._is_open = False

        try:
            return await run_in(self.thread, self._store.close)
        finally:
            self.thread.shutdown(wait=False)

    async def _portions(
        self, query: str, make: Callable[..., T], **wanted: Any
    ) -> AsyncIterator[list[T]]:
        """Yield all rows of a query whose first column goes on from ``:after``."""
        wanted |= {"after": 0, "limit": PORTION}

        while found := await self.query(query, wanted):
            yield [make(*row) for row in found]
            wanted["after"] = found[-1][0]

    @in_thread
    def query(self, name: str, parameters: Any = ()) -> list[Any]:
        """Return all rows of a query of ``queries.sql``.

        Beside parameters that go by their names it gets ``open``: what a row is whose attempt is.
        """
        if isinstance(parameters, dict):
            parameters = {**parameters, "open": self._store.open_state()}

        return self._store.fetch(name, parameters)

    @in_thread
    def export(self, path: str) -> None:
        """Copy the batch as it is now to a new file, also beside a launcher.

        The copy tells that it is one until it is launched: option ``exported``, Unix time in ms.
        After an error, or a crash, there is no such file.

        Raises:
            ConfigurationError: the file is there already, or the batch is in PostgreSQL.
            LedgerError: it can't be written.
        """
        self._store.export(path)

    async def counts(self) -> tuple[Counts, dict[str, Counts]]:
        """Return the rows by state: in all, and by target."""
        targets = dict.fromkeys(await self.targets(), Counts())
        targets |= {target: Counts(*n) for target, *n in await self.query("counts", {})}
        return Counts(*map(sum, zip(*targets.values(), strict=True))), targets

    @in_thread
    def plan(self, consents: Consents = Consents()) -> Plan:  # noqa: B008  # it can't be changed
        """Return what a session with these consents would send, by job."""
        return self._plan(consents)

    def _plan(self, consents: Consents) -> Plan:
        fetch = self._store.fetch
        jobs = {number: (target, job, name) for number, target, job, name, *_ in fetch("jobs")}
        states = dict.fromkeys(RowState, 0)
        ready: Counter[tuple[str, str, str]] = Counter()

        for number, auto, state, rows in fetch("rows_by_state", {"open": self._store.open_state()}):
            states[RowState(state)] += rows
            is_left = auto and state == RowState.UNKNOWN

            if state in _READY or (getattr(consents, state, False) and not is_left):
                ready[jobs[number]] += rows

        for _row, number, is_left, _key in fetch("failed_runs") if consents.failed_runs else ():
            ready[jobs[number]] += not is_left

        planned = tuple(PlannedJob(*job, rows) for job, rows in ready.most_common())
        in_all = (sum(states.values()), sum(ready.values()))
        return Plan(self.batch.manifest, self.place, *in_all, planned, states)

    async def targets(self) -> dict[str, TargetInfo]:
        """Return the batch's targets in the order in which they were met."""
        found = await self.query("targets")
        return {name: TargetInfo(*where) for _id, name, *where, _position in found}

    async def jobs(self) -> list[KnownJob]:
        """Return the batch's jobs."""
        known = []

        for _id, target, job_id, name, text, from_des in await self.query("jobs"):
            parameters = tuple(JobParameter(**p) for p in json.loads(text or "[]"))
            job = Job(job_id, name, parameters)
            known.append(KnownJob(target, job, text is not None, bool(from_des)))

        return known

    async def auto_rows(self) -> dict[tuple[str, str], str]:
        """Return the key of each job's auto row, by target and jobId; of several, the first."""
        return {(target, job_id): key for target, job_id, key in await self.query("auto_rows")}

    async def sessions(self) -> list[SessionInfo]:
        """Return all sessions, the oldest first."""
        return [
            SessionInfo._make([*row, *map(json.loads, (stops, options, targets))])
            for *row, stops, options, targets in await self.query("sessions")
        ]

    @in_thread
    def launchers(self) -> list[Launcher]:
        """Return who else is at work. Locks are looked up, never tried."""
        return self._store.launchers()

    async def results(
        self,
        *,
        states: Collection[str] | None = None,
        run: Literal["failed", "succeeded", "unfinished"] | None = None,
        keys: Sequence[str] | None = None,
        with_rows: bool = False,
    ) -> AsyncIterator[list[ResultRow]]:
        """Yield rows in manifest order, in portions.

        Args:
            states: only rows in one of them.
            run: only started rows whose run stands so, as far as is known.
            keys: only these rows; keys that the batch does not know are passed over.
            with_rows: with what the rows say.
        """
        wanted = {"states": states and as_json(list(states)), "run": run, "with_rows": with_rows}
        [(last,)] = await self.query("last_row")
        numbers = range(1, last + 1) if keys is None else await self._find(keys)

        for begin in range(0, len(numbers), PORTION):
            portion = as_json(list(numbers[begin : begin + PORTION]))

            if rows := await self.query("results", {**wanted, "rows": portion}):
                yield [ResultRow._make(row) for row in rows]

    async def find(self, text: str) -> list[ResultRow]:
        """Return the first 100 rows that have a text as key, jobRunId or a parameter's value."""
        said = {"text": storable(text, None), "inner": orjson.dumps(text).decode()[1:-1]}
        rows = [number for (number,) in await self.query("find_rows", said)]
        wanted = {"states": None, "run": None, "with_rows": True, "rows": as_json(rows)}
        return [ResultRow._make(row) for row in await self.query("results", wanted)]

    async def control(self) -> Control:
        """Return the settings of ``deslaunch control``."""
        [(told,)] = await self.query("control")
        return Control(**json.loads(told))

    def sendable(self, consents: Consents) -> AsyncIterator[list[Start]]:
        """Yield what a session with these consents would send, in manifest order, in portions.

        Rows of a target whose jobs are still unknown are left out: they have no body yet.
        """
        return self._portions("sendable", Start, **consents._asdict())

    async def _find(self, keys: Sequence[str]) -> Sequence[int]:
        known = [storable(key, None) for key in keys]  # a command line may say anything
        found = await self.query("rows_by_number", (as_json(known),))
        return [number for (number,) in found]

    def unknown_rows(self) -> AsyncIterator[list[UnknownRow]]:
        """Yield the unknown rows in manifest order, in portions, and where to look for them."""
        return self._portions("unknown_rows", UnknownRow)

    async def log(
        self, *, key: str | None = None, after_ms: int = -1
    ) -> AsyncIterator[list[LogEntry]]:
        """Yield every attempt and event beyond ``after_ms`` in time order, in portions.

        An attempt stands where it ended; an open one where it was meant. One log at a time.
        """
        for number in [None] if key is None else await self._find([key]):
            # Sorted into a temporary table, which is this connection's own.
            await self.query("drop_log")
            await self.query("make_log", {"after": after_ms, "row": number})

            async for portion in self._portions("log", lambda *row: row):
                yield [LogEntry._make([*row, json.loads(told)]) for _id, *row, told in portion]

    async def runs_to_ask(self, after: int, limit: int = PORTION) -> list[RunToAsk]:
        """Return the started rows beyond ``after`` whose runs have not finished as far as known."""
        return list(map(RunToAsk._make, await self.query("runs_to_ask", (after, limit))))

    async def summary(self) -> Summary:
        """Return the counts of the batch, and why its last session ended."""
        counts, targets = await self.counts()
        summary = Summary(counts, self.place, targets)

        for last in (await self.sessions())[-1:]:
            seconds = 0.0 if last.ended_ms is None else (last.ended_ms - last.began_ms) / 1000
            stops = tuple(
                Stop(StopReason(s["reason"]), s["message"], s["target"], 0, s["resumeAfter"])
                for s in last.stops
            )
            summary = summary._replace(seconds=seconds, stops=stops)

        return summary

    async def watch_summary(
        self, *, stops: Sequence[Stop] = (), seconds: float = 0.0
    ) -> WatchSummary:
        """Return the counts of the batch's runs.

        Args:
            stops: why a watch ended early, if one did.
            seconds: how long it took.
        """
        [counts] = await self.query("count_runs")
        told = (tuple(await self.query("run_failures")), seconds, tuple(stops))
        return WatchSummary._make([*counts, await self.summary(), *told, False])
