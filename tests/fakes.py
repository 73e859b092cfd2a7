"""What the engine owns protocols for, without a network, a disk or a second that passes."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from deslaunch import records
from deslaunch.errors import (
    CredentialsRefused,
    LedgerWriteFailed,
    Misconfigured,
    NotSent,
    OutcomeUnknown,
    QueryFailed,
    Redirected,
    Rejected,
    ServerError,
    Throttled,
    Unauthorized,
)
from deslaunch.model import DEFAULT_TARGET, RunStatus, StartedRun, StartRequest
from deslaunch.replay import Replay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from deslaunch.engine import Start
    from deslaunch.model import Evidence
    from deslaunch.records import Record

JOB: Final = "11111111-1111-4111-8111-111111111111"
UTC: Final = "2026-01-31T06:16:47.000Z"
_CALM: Final = 5
_OPEN: Final = ["sending"]


def header() -> Record:
    """Return a header with its time."""
    record = records.batch(
        batch_id="b",
        manifest=None,
        format=None,
        job_id=None,
        target=None,
        allow=(),
        skip_invalid=False,
        version="0",
    )
    return {**record, "createdUtc": UTC}


def request(
    key: str, target: str = DEFAULT_TARGET, *, row: int = 1, auto: bool = False
) -> StartRequest:
    """Return a start whose digest and body follow from its key."""
    return StartRequest(
        key=key,
        row=row,
        line=row + 1,
        target=target,
        job_id=JOB,
        digest=f"digest of {key}",
        body=f'{{"said":"{key}"}}'.encode(),
        auto=auto,
    )


async def settle() -> None:
    """Return once every other task waits for something that has not happened.

    anyio's ``wait_all_tasks_blocked`` sleeps a tenth of a second where one does not yet; here
    that would be most of a test's time.
    """
    calm = 0

    while calm < _CALM:
        await asyncio.sleep(0)
        calm = calm + 1 if all(map(_is_blocked, asyncio.all_tasks())) else 0


def _is_blocked(task: asyncio.Task[Any]) -> bool:
    if task is asyncio.current_task():
        return True

    waiter = getattr(task, "_fut_waiter", None)
    return waiter is not None and not waiter.done()


class VirtualClock:
    """Time that passes when a test says so."""

    def __init__(self, *, early: float = 0.0) -> None:
        self.time = 0.0
        self.early = early  # seconds by which timers ring before their time
        self._numbers = count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        seconds = max(0.0, seconds - self.early)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heappush(self._sleepers, (self.time + seconds, next(self._numbers), future))
        await future

    def next_due(self) -> float | None:
        """Return when the next sleeper wakes, or None where nobody sleeps."""
        while self._sleepers and self._sleepers[0][2].done():
            heappop(self._sleepers)

        return self._sleepers[0][0] if self._sleepers else None

    async def advance(self, seconds: float) -> None:
        """Let time pass, and all that wakes meanwhile do its work at its own time."""
        end = self.time + seconds
        await settle()

        while (due := self.next_due()) is not None and due <= end:
            self.time = max(self.time, due)
            heappop(self._sleepers)[2].set_result(None)
            await settle()

        self.time = end


class FakeJournal:
    """Keeps records in memory; durable when it says so, failing from the n-th on if told.

    Attributes:
        records: what is durable, in order.
        queued: what was appended, in order, durable or not.
        replay: what the durable records say.
        held: nothing becomes durable until :meth:`release`.
        fail_at: number of the first append, from 1, that fails, like all after it.
    """

    def __init__(self, *, fail_at: int | None = None, lag: Callable[[], int] = lambda: 0) -> None:
        self.records: list[Record] = []
        self.queued: list[Record] = []
        self.replay = Replay()
        self.replay.apply(header())
        self.held = False
        self.fail_at = fail_at
        self._lag = lag
        self._waiting: list[tuple[Record, asyncio.Future[None], bool]] = []
        self._committing = False

    def append(self, record: Record) -> asyncio.Future[None]:
        records.encode(record, UTC)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.queued.append(record)
        fails = self.fail_at is not None and len(self.queued) >= self.fail_at
        self._waiting.append((record, future, fails))
        self._commit_soon()
        return future

    def release(self) -> None:
        self.held = False
        self._commit_soon()

    def _commit_soon(self) -> None:
        if self._waiting and not self.held and not self._committing:
            self._committing = True
            asyncio.get_running_loop().call_soon(self._commit, self._lag())

    def _commit(self, lag: int) -> None:
        if lag:
            asyncio.get_running_loop().call_soon(self._commit, lag - 1)
            return

        self._committing = False
        group, self._waiting = self._waiting, []

        for record, _, fails in group:
            if not fails:
                self.replay.apply(record)
                self.records.append(record)

        for _, future, fails in group:
            if not future.done():
                _resolve(future, fails=fails)

    async def settle(self) -> None:
        """Return once all tasks wait, and nothing that is not held back waits for the disk."""
        await settle()

        while self._committing:
            await settle()

        await settle()  # what just became durable calls back only now

    def kinds(self, key: str | None = None) -> list[str]:
        """Return the kinds of the durable records, of one key or of all."""
        return [said["record"] for said in self.records if key in {None, said.get("key")}]

    def trail(self) -> list[str]:
        """Return the durable records as ``kind key attempt``."""
        return [f"{r['record']} {r['key']} {r['attempt']}" for r in self.records if "attempt" in r]

    def most_open(self) -> int:
        """Return how many sendings were open at most at any record."""
        opened: set[str] = set()
        most = 0

        for record in filter(lambda record: "attempt" in record, self.queued):
            if record["record"] == "sending":
                opened.add(record["key"])
            else:
                opened.discard(record["key"])

            most = max(most, len(opened))

        return most


def _resolve(future: asyncio.Future[None], *, fails: bool) -> None:
    if fails:
        future.set_exception(LedgerWriteFailed("the disk is full"))
        future.exception()
    else:
        future.set_result(None)


class FakeSource:
    """Gives starts in chunks, and remembers how far it was read.

    Args:
        starts: one after the other; an exception among them is raised in its turn.
        chunk: starts a reading at most.
        endless: after the last start it waits for ever.
    """

    def __init__(
        self, starts: Iterable[Start | Exception], *, chunk: int = 1, endless: bool = False
    ) -> None:
        self.given = 0
        self.breaks_off: BaseException | None = None
        self._starts = iter(starts)
        self._chunk = chunk
        self._endless = endless

    async def read(self) -> Sequence[Start]:
        chunk: list[Start] = []

        for start in self._starts:
            if isinstance(start, Exception):
                raise start

            self.given += 1
            chunk.append(start)

            if len(chunk) == self._chunk:
                return chunk

        if not chunk and self.breaks_off is not None:
            raise self.breaks_off

        if not chunk and self._endless:
            await asyncio.get_running_loop().create_future()

        return chunk


@dataclass(frozen=True, slots=True)
class Sent:
    """One start as the server saw it.

    Attributes:
        key: the row's.
        target: where it arrived.
        at: when.
        token: number of the token.
        durable: its ``sending`` was on disk when its first byte arrived.
    """

    key: str
    target: str
    at: float
    token: int
    durable: bool


Verdict = str | Exception
"""A name of :data:`VERDICTS`, ``"started"``, or what is raised after sending."""

VERDICTS: Final[dict[str, Callable[[], Exception]]] = {
    "500": lambda: ServerError("DES answered 500", status=500, answer="oops"),
    "503": lambda: ServerError("DES answered 503", status=503),
    "504": lambda: ServerError("DES answered 504", status=504),
    "429": lambda: Throttled("DES answered 429", status=429),
    "429 for 30": lambda: Throttled("DES answered 429", status=429, retry_after=30.0),
    "429 for 90": lambda: Throttled("DES answered 429", status=429, retry_after=90.0),
    "429 for 5000": lambda: Throttled("DES answered 429", status=429, retry_after=5_000.0),
    "400": lambda: Rejected("DES answered 400", status=400, answer="bad"),
    "nonsense": lambda: QueryFailed("DES's answer is not this run's status", status=200),
    "404": lambda: Rejected("DES answered 404", status=404, answer="no such run"),
    "lost": lambda: OutcomeUnknown("no answer"),
    "redirect": lambda: Redirected("DES answered 302", status=302),
    "unsent": lambda: NotSent("refused"),
    "bad url": lambda: Misconfigured("bad URL"),
    "bug": lambda: RuntimeError("a bug"),
    "no token": lambda: CredentialsRefused("there is no token"),
}


def _error(verdict: Verdict) -> Exception:
    return verdict if isinstance(verdict, Exception) else VERDICTS[verdict]()


_BEFORE_SENDING: Final = frozenset({"unsent", "bad url", "no token", "bug"})


@dataclass(slots=True)
class FakeDes:
    """All targets' server: answers by script, and is the witness of what arrived.

    Attributes:
        clock: stamps arrivals.
        journal: asked whether a start's intent is durable.
        script: by key, the verdicts of its attempts; after the last, ``"started"``.
        sent: the starts that arrived, in order.
        runs: by key, the jobRunIds that were given out.
        held: starts wait until :meth:`answer`.
        refuses: numbers of tokens that are answered with 401.
        renewals: by target, how often a token was fetched.
        no_newer: targets whose source has no newer token.
        renewal: what a renewal waits for, or None.
        renewal_fault: what a renewal raises, or None.
        latency: gives the seconds from a start or a probe to its answer, or None for at once.
        waiting: by key, the starts that wait for :meth:`answer`.
        probes: target and time of each probe, in order.
        probe_script: by target, the verdicts of its probes; after the last, an answer.
    """

    clock: VirtualClock
    journal: FakeJournal
    script: dict[str, list[Verdict]] = field(default_factory=dict)
    sent: list[Sent] = field(default_factory=list)
    runs: dict[str, list[str]] = field(default_factory=dict)
    held: bool = False
    refuses: set[int] = field(default_factory=set)
    renewals: Counter[str] = field(default_factory=Counter)
    no_newer: set[str] = field(default_factory=set)
    renewal: asyncio.Event | None = None
    renewal_fault: Exception | None = None
    latency: Callable[[], float] | None = None
    waiting: dict[str, asyncio.Future[Verdict]] = field(default_factory=dict)
    probes: list[tuple[str, float]] = field(default_factory=list)
    probe_script: dict[str, list[Verdict]] = field(default_factory=dict)

    def keys(self) -> list[str]:
        """Return the keys of all starts that arrived, in order."""
        return [sent.key for sent in self.sent]

    def answer(self, key: str, verdict: Verdict = "started") -> None:
        """End the wait of a start that was held."""
        self.waiting.pop(key).set_result(verdict)

    def starter(self, target: str) -> FakeStarter:
        return FakeStarter(self, target)


class FakeStarter:
    """One target's way to a :class:`FakeDes`."""

    def __init__(self, des: FakeDes, target: str) -> None:
        self.token = 1
        self._des = des
        self._target = target
        self._lock = asyncio.Lock()

    async def start(self, request: StartRequest, evidence: Evidence) -> StartedRun:
        des, key, token = self._des, request.key, self.token
        script = des.script.get(key)
        verdict = script.pop(0) if script else "started"

        if verdict in _BEFORE_SENDING:
            await asyncio.sleep(0)
            raise _error(verdict)

        evidence.sent = True
        des.sent.append(
            Sent(key, self._target, des.clock.now(), token, des.journal.kinds(key)[-1:] == _OPEN)
        )

        if des.held:
            des.waiting[key] = asyncio.get_running_loop().create_future()
            verdict = await des.waiting[key]
        elif des.latency is not None:
            await des.clock.sleep(des.latency())

        if token in des.refuses or verdict == "401":
            raise Unauthorized("DES answered 401", generation=token)

        return self._answered(key, verdict)

    async def probe(self) -> None:
        des = self._des
        des.probes.append((self._target, des.clock.now()))

        if des.latency is not None:
            await des.clock.sleep(des.latency())

        script = des.probe_script.get(self._target)
        verdict = script.pop(0) if script else "started"

        if verdict != "started":
            raise _error(verdict)

    def _answered(self, key: str, verdict: Verdict) -> StartedRun:
        if verdict != "started":
            raise _error(verdict)

        runs = self._des.runs.setdefault(key, [])
        runs.append(f"run {len(runs) + 1} of {key}")
        return StartedRun(JOB, runs[-1])

    async def renew(self, refused: Unauthorized) -> None:
        async with self._lock:
            if self.token != refused.generation:
                return

            self._des.renewals[self._target] += 1

            if self._des.renewal is not None:
                await self._des.renewal.wait()

            if self._des.renewal_fault is not None:
                raise self._des.renewal_fault

            if self._target in self._des.no_newer:
                raise CredentialsRefused("there is no newer token")

            self.token += 1


def told(job_run_id: str, *, finished: bool = True, error: str | None = None) -> RunStatus:
    """Return what DES says of a run."""
    return RunStatus(JOB, job_run_id, finished, finished and error is None, error)


@dataclass(slots=True)
class FakeAsker:
    """One target's answers about runs, by script, and the witness of what was asked.

    Attributes:
        clock: stamps questions.
        script: by jobRunId, the answers to its questions: ``"running"``, ``"failed"``, or a name
            of :data:`VERDICTS`; after the last, ``"succeeded"``.
        asked: jobRunId and time of each question, in order.
        held: questions wait until :meth:`answer`.
        waiting: by jobRunId, the questions that wait for it.
        latency: seconds from a question to its answer.
        most: questions that were in flight at most.
    """

    clock: VirtualClock
    script: dict[str, list[Verdict]] = field(default_factory=dict)
    asked: list[tuple[str, float]] = field(default_factory=list)
    held: bool = False
    waiting: dict[str, asyncio.Future[None]] = field(default_factory=dict)
    latency: float = 0.0
    most: int = 0
    _in_flight: int = 0

    def answer(self, job_run_id: str) -> None:
        """End the wait of a question that was held."""
        self.waiting.pop(job_run_id).set_result(None)

    def times(self, job_run_id: str) -> list[float]:
        """Return when a run was asked about."""
        return [at for run, at in self.asked if run == job_run_id]

    async def query_run_status(self, job_run_id: str) -> RunStatus:
        self.asked.append((job_run_id, self.clock.now()))
        self._in_flight += 1
        self.most = max(self.most, self._in_flight)

        try:
            await self._wait(job_run_id)
        finally:
            self._in_flight -= 1

        script = self.script.get(job_run_id)
        return _status(job_run_id, script.pop(0) if script else "succeeded")

    async def _wait(self, job_run_id: str) -> None:
        if self.held:
            self.waiting[job_run_id] = asyncio.get_running_loop().create_future()
            await self.waiting[job_run_id]
        elif self.latency:
            await self.clock.sleep(self.latency)
        else:
            await asyncio.sleep(0)


def _status(job_run_id: str, verdict: Verdict) -> RunStatus:
    match verdict:
        case "running":
            return told(job_run_id, finished=False)
        case "succeeded":
            return told(job_run_id)
        case "failed":
            return told(job_run_id, error="no sales found")
        case _:
            raise _error(verdict)
