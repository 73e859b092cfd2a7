"""What a session stands on, without a network, a disk or a second that passes."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

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
    TooLate,
    Unauthorized,
)
from deslaunch.events import Control
from deslaunch.launch.loop import Clock
from deslaunch.ledger.ledger import Exchange, Lane
from deslaunch.model import DEFAULT_TARGET, Outcome, Result, RowState, RunStatus, Start, StartedRun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from deslaunch.model import Sent as SentMark

JOB: Final = "11111111-1111-4111-8111-111111111111"
_CALM: Final = 5


async def settle(is_calm: Callable[[], bool] = lambda: True) -> None:
    """Return once every other task waits for something that has not happened.

    anyio's ``wait_all_tasks_blocked`` sleeps a tenth of a second where one does not yet; here
    that would be most of a test's time.

    Args:
        is_calm: returns False while a thread is at work that tasks wait for.
    """
    calm = 0

    while calm < _CALM:
        await asyncio.sleep(0)
        blocked = all(map(_is_blocked, asyncio.all_tasks())) and is_calm()
        calm = calm + 1 if blocked else 0


def _is_blocked(task: asyncio.Task[Any]) -> bool:
    if task is asyncio.current_task():
        return True

    waiter = getattr(task, "_fut_waiter", None)
    return waiter is not None and not waiter.done()


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class _Alarm:
    """What :meth:`VirtualClock.call_later` gives back."""

    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        self.callback = None


class VirtualClock(Clock):
    """Time that passes when a test says so.

    Args:
        early: seconds by which timers ring before their time.
        is_calm: returns False while a thread is at work that tasks wait for.
    """

    def __init__(self, *, early: float = 0.0, is_calm: Callable[[], bool] = lambda: True) -> None:
        self.time = 1_000.0
        self.jump = 0.0  # of the wall clock
        self.early = early
        self.is_calm = is_calm
        self._numbers = count()
        self._alarms: list[tuple[float, int, _Alarm]] = []

    def now(self) -> float:
        return self.time

    def wall(self) -> float:
        return self.time + self.jump

    async def sleep(self, seconds: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        alarm = self.call_later(seconds, partial(_wake, future))

        try:
            await future
        finally:
            alarm.cancel()

    def call_later(self, seconds: float, callback: Callable[[], object]) -> asyncio.TimerHandle:
        alarm = _Alarm(callback)
        due = self.time + max(0.0, seconds - self.early)
        heappush(self._alarms, (due, next(self._numbers), alarm))
        return cast("asyncio.TimerHandle", alarm)

    def next_due(self) -> float | None:
        """Return when the next alarm rings, or None where there is none."""
        while self._alarms and self._alarms[0][2].callback is None:
            heappop(self._alarms)

        return self._alarms[0][0] if self._alarms else None

    async def advance(self, seconds: float) -> None:
        """Let time pass, and all that wakes meanwhile do its work at its own time."""
        end = self.time + seconds
        await settle(self.is_calm)

        while (due := self.next_due()) is not None and due <= end:
            self.time = max(self.time, due)
            callback = heappop(self._alarms)[2].callback
            assert callback is not None
            callback()
            await settle(self.is_calm)

        self.time = end


class FakeRow(NamedTuple):
    """A row that was imported.

    Attributes:
        number: from 1, in manifest order.
        key: unique.
        target: where it goes.
        job_id: its job.
        auto: it uses an auto value.
    """

    number: int
    key: str
    target: str = DEFAULT_TARGET
    job_id: str = JOB
    auto: bool = False


def fake_rows(keys: Iterable[str | FakeRow]) -> list[FakeRow]:
    """Return the rows of some keys; ``acme/1`` goes to the target ``acme``."""
    return [
        said._replace(number=number)
        if isinstance(said, FakeRow)
        else FakeRow(number, said, said.partition("/")[0] if "/" in said else DEFAULT_TARGET)
        for number, said in enumerate(keys, 1)
    ]


class MemoryLedger:
    """A batch in memory, by the rules of DESIGN; it can be held, and it can fail.

    Attributes:
        turns: what each exchange that committed was given and gave, in order.
        attempts: by row, the results of its attempts; None while one is open.
        notes: kind and target of each event.
        held: exchanges wait until :meth:`release`.
        sync: seconds that an exchange takes.
        fails: numbers of exchanges, from 1, that raise.
        in_place: what :meth:`is_in_place` returns.
        refuses_notes: events and clocks can't be written, and controls can't be read.
        told: what a person told the launchers at work.
        given_up: ``at_once`` of each :meth:`give_up`.
        looks: times of the looks at whether other launchers are alive; each of them fails.
    """

    def __init__(self, rows: Sequence[FakeRow], clock: VirtualClock) -> None:
        self.rows = {row.number: row for row in rows}
        self.turns: list[tuple[list[Outcome], dict[str, int], list[Start]]] = []
        self.attempts: dict[int, list[Outcome | None]] = defaultdict(list)
        self.notes: list[tuple[str, str | None]] = []
        self.clocks: dict[str, float] = {}
        self.held = False
        self.sync = 0.0
        self.lag: Callable[[], int] = lambda: 0
        self.fails: Callable[[int], bool] = lambda number: False
        self.in_place = True
        self.refuses_notes = False
        self.calls = 0
        self.most_open = 0
        self.on_wait: Callable[[str], None] | None = None
        self.told = Control()
        self.given_up: list[bool] = []
        self.looks: list[float] = []
        self.is_shared = False
        self._clock = clock
        self._due: dict[int, float] = {row.number: -1.0 for row in rows}
        self._retries: Counter[int] = Counter()
        self._lost: list[tuple[int, int]] = []
        self._released = asyncio.Event()

    def give_up(self, *, at_once: bool) -> None:
        """It waits for nothing."""
        self.given_up.append(at_once)

    async def lose_dead(self) -> None:
        self.looks.append(self._clock.now())
        raise LedgerWriteFailed("the database is away")

    async def control(self) -> Control:
        self._refuse_notes()
        return self.told

    def release(self) -> None:
        self.held = False
        self._released.set()

    def due(self) -> dict[Lane, float | None]:
        """Return the seconds until each target's next row may be claimed."""
        found: dict[Lane, float | None] = {row.target: None for row in self.rows.values()}

        for number, due in self._due.items():
            seconds = max(0.0, due - self._clock.now())
            known = found[self.rows[number].target]
            found[self.rows[number].target] = seconds if known is None else min(known, seconds)

        return found

    async def exchange(self, outcomes: Sequence[Outcome], claims: Mapping[str, int]) -> Exchange:
        self.calls += 1
        number = self.calls

        while self.held:
            self._released.clear()
            await self._released.wait()

        for _ in range(self.lag()):
            await asyncio.sleep(0)

        if self.sync:
            await self._clock.sleep(self.sync)

        if self.fails(number):
            raise LedgerWriteFailed("the disk is full")

        settled = [self._settle(outcome) for outcome in outcomes]
        starts = [start for target, most in claims.items() for start in self._claim(target, most)]
        self.turns.append((list(outcomes), dict(claims), starts))
        self.most_open = max(self.most_open, len(self.open()))
        return Exchange(settled, starts, self.due())

    def _settle(self, outcome: Outcome) -> Outcome:
        attempts = self.attempts[outcome.row]
        known = attempts[outcome.attempt - 1]
        takes_back = outcome.result is Result.THROTTLED and known is not None
        assert known is None or known.result is Result.UNKNOWN or takes_back, "settled twice"
        attempts[outcome.attempt - 1] = outcome
        self._due.pop(outcome.row, None)

        if outcome.result is Result.STARTED and self.runs()[outcome.job_run_id or ""] > 1:
            outcome = outcome._replace(result=Result.UNKNOWN, state=RowState.UNKNOWN)
            attempts[outcome.attempt - 1] = outcome

        if outcome.not_before is not None:
            self._due[outcome.row] = self._clock.now() + outcome.not_before

        self._retries[outcome.row] += outcome.result is Result.RETRY
        return outcome._replace(state=self.state(outcome.row), attempts=len(attempts))

    def _claim(self, target: str, most: int) -> list[Start]:
        now = self._clock.now()
        ready = sorted(
            (due, number)
            for number, due in self._due.items()
            if due <= now and self.rows[number].target == target
        )
        fresh = [number for due, number in ready if due < 0]
        numbers = [number for due, number in ready if due >= 0] + fresh
        return [self._start(self.rows[number]) for number in numbers[:most]]

    def _start(self, row: FakeRow) -> Start:
        del self._due[row.number]
        self.attempts[row.number].append(None)
        attempt, retries = len(self.attempts[row.number]), self._retries[row.number]
        return Start(row.number, attempt, row.key, row.target, row.job_id, b"{}", row.auto, retries)

    async def note(self, kind: str, target: str | None, text: str) -> None:
        self._refuse_notes()
        self.notes.append((kind, target))

    async def set_clocks(self, offsets: Mapping[str, float]) -> None:
        self._refuse_notes()
        self.clocks.update(offsets)

    def _refuse_notes(self) -> None:
        if self.refuses_notes:
            raise LedgerWriteFailed("the disk is full")

    async def is_in_place(self) -> bool:
        return self.in_place

    # What tests look at.

    def open(self) -> set[int]:
        """Return the rows whose intent is on disk and whose outcome is not."""
        return {number for number, attempts in self.attempts.items() if None in attempts}

    def runs(self) -> Counter[str]:
        """Return how often each jobRunId is a started row's."""
        ended = (outcome for attempts in self.attempts.values() for outcome in attempts if outcome)
        return Counter(o.job_run_id or "" for o in ended if o.result is Result.STARTED)

    def results(self, key: str) -> list[str]:
        """Return how the attempts of a row ended, ``open`` for one that did not."""
        [number] = [row.number for row in self.rows.values() if row.key == key]
        return [str(o.result) if o else "open" for o in self.attempts[number]]

    def last(self, key: str) -> Outcome:
        """Return how the last attempt of a row ended."""
        [number] = [row.number for row in self.rows.values() if row.key == key]
        outcome = self.attempts[number][-1]
        assert outcome is not None
        return outcome

    def state(self, number: int) -> RowState:
        """Return what the attempts of a row make of it."""
        attempts = self.attempts[number]
        results = [outcome.result if outcome else None for outcome in attempts]

        for result, state in (
            (Result.STARTED, RowState.STARTED),
            (None, RowState.SENDING),
            (Result.UNKNOWN, RowState.UNKNOWN),
        ):
            if result in results:
                return state

        for result in reversed(results):
            if result is Result.REJECTED:
                return RowState.REJECTED

            if result is Result.FAILED:
                return RowState.FAILED

        return RowState.PENDING


class Sent(NamedTuple):
    """One start as the server saw it.

    Attributes:
        key: the row's.
        target: where it arrived.
        at: when, seconds since the test began.
        token: number of the token.
        durable: its intent was on disk when its first byte arrived.
    """

    key: str
    target: str
    at: float
    token: int
    durable: bool


Verdict = str | Exception
"""A name of :data:`VERDICTS`, ``"started"``, or what is raised after sending."""

VERDICTS: Final[dict[str, Callable[[], Exception]]] = {
    "500": lambda: ServerError("DES responded 500: oops", status=500, response="oops"),
    "502 for 9": lambda: ServerError("DES responded 502", status=502, retry_after=9.0),
    "503": lambda: ServerError("DES responded 503", status=503),
    "504": lambda: OutcomeUnknown("DES responded 504", status=504),
    "429": lambda: Throttled("DES responded 429", status=429),
    "429 for 30": lambda: Throttled("DES responded 429", status=429, retry_after=30.0),
    "429 for 90": lambda: Throttled("DES responded 429", status=429, retry_after=90.0),
    "429 for 5000": lambda: Throttled("DES responded 429", status=429, retry_after=5_000.0),
    "400": lambda: Rejected("DES responded 400: bad", status=400, response="bad"),
    "403": lambda: Rejected("DES responded 403", status=403),
    "404": lambda: Rejected("DES responded 404", status=404, response="no such run"),
    "nonsense": lambda: QueryFailed("DES's response is not this run's status", status=200),
    "lost": lambda: OutcomeUnknown("no response"),
    "redirect": lambda: Redirected("DES responded 307", status=307),
    "unsent": lambda: NotSent("refused"),
    "late": lambda: TooLate("too late to be sent"),
    "bad url": lambda: Misconfigured("bad URL"),
    "bug": lambda: RuntimeError("a bug"),
    "no token": lambda: CredentialsRefused("there is no token"),
}


def _error(verdict: Verdict) -> Exception:
    return verdict if isinstance(verdict, Exception) else VERDICTS[verdict]()


_BEFORE_SENDING: Final = frozenset({"unsent", "late", "bad url", "no token", "bug"})


@dataclass(slots=True)
class FakeDes:
    """All targets' server: responds by script, and is the witness of what arrived.

    Attributes:
        clock: stamps arrivals.
        is_durable: asked whether a row's intent is on disk.
        script: by key, the verdicts of its attempts; after the last, ``"started"``.
        sent: the starts that arrived, in order.
        runs: by key, the jobRunIds that were given out.
        run_ids: by key, the jobRunId that is given out instead of a new one.
        held: starts wait until :meth:`answer`.
        refuses: numbers of tokens that get 401.
        renewals: by target, how often a token was fetched.
        no_newer: targets whose source has no newer token.
        renewal: what a renewal waits for, or None.
        renewal_fault: what a renewal raises, or None.
        latency: gives the seconds from a start or a probe to its response, or None for at once.
        waiting: by key, the starts that wait for :meth:`answer`.
        probes: target and time of each probe, in order.
        probe_script: by target, the verdicts of its probes; after the last, a response.
        reuse_stopped: why connections are not reused any more, by target.
    """

    clock: VirtualClock
    is_durable: Callable[[int], bool]
    script: dict[str, list[Verdict]] = field(default_factory=dict)
    sent: list[Sent] = field(default_factory=list)
    runs: dict[str, list[str]] = field(default_factory=dict)
    run_ids: dict[str, str] = field(default_factory=dict)
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
    reuse_stopped: dict[str, str] = field(default_factory=dict)
    began: float = -1.0

    def __post_init__(self) -> None:
        self.began = self.clock.now()

    def now(self) -> float:
        """Return the seconds since the test began."""
        return round(self.clock.now() - self.began, 6)

    def keys(self) -> list[str]:
        """Return the keys of all starts that arrived, in order."""
        return [sent.key for sent in self.sent]

    def answer(self, key: str, verdict: Verdict = "started") -> None:
        """End the wait of a start that was held."""
        self.waiting.pop(key).set_result(verdict)

    def client(self, target: str) -> FakeClient:
        return FakeClient(self, target)


class FakeClient:
    """One target's way to a :class:`FakeDes`."""

    concurrency: int | None = None
    clock_offset: float | None = None
    on_note: Callable[[str], None]

    def __init__(self, des: FakeDes, target: str) -> None:
        self.token = 1
        self._des = des
        self._target = target
        self._lock = asyncio.Lock()

    async def start(self, start: Start, sent: SentMark) -> StartedRun:
        des, key, token = self._des, start.key, self.token
        script = des.script.get(key)
        verdict = script.pop(0) if script else "started"

        if verdict == "connecting":  # and it never will be
            await asyncio.Event().wait()

        if verdict in _BEFORE_SENDING:
            await asyncio.sleep(0)
            raise _error(verdict)

        sent.set()
        des.sent.append(Sent(key, self._target, des.now(), token, des.is_durable(start.row)))

        if des.held:
            des.waiting[key] = asyncio.get_running_loop().create_future()
            verdict = await des.waiting[key]
        elif des.latency is not None:
            await des.clock.sleep(des.latency())

        if token in des.refuses or verdict == "401":
            refused = Unauthorized("DES responded 401", status=401)
            refused.generation = token
            raise refused

        if verdict != "started":
            raise _error(verdict)

        runs = des.runs.setdefault(key, [])
        runs.append(des.run_ids.get(key, f"run {len(runs) + 1} of {key}"))
        return StartedRun(start.job_id, runs[-1])

    async def probe(self) -> None:
        des = self._des
        des.probes.append((self._target, des.now()))

        if des.latency is not None:
            await des.clock.sleep(des.latency())

        script = des.probe_script.get(self._target)
        verdict = script.pop(0) if script else "started"

        if verdict != "started":
            raise _error(verdict)

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

    def stop_reusing(self, reason: str) -> None:
        self._des.reuse_stopped[self._target] = reason


def told(job_run_id: str, *, finished: bool = True, error: str | None = None) -> RunStatus:
    """Return what DES says of a run."""
    return RunStatus(JOB, job_run_id, finished, finished and error is None, error)


@dataclass(slots=True)
class FakeAsker:
    """One target's responses about runs, by script, and the witness of what was asked.

    Attributes:
        clock: stamps questions.
        script: by jobRunId, the responses to its questions: ``"running"``, ``"failed"``, or a
            name of :data:`VERDICTS`; after the last, ``"succeeded"``.
        asked: jobRunId and time of each question, in order.
        held: questions wait until :meth:`answer`.
        waiting: by jobRunId, the questions that wait for it.
        latency: seconds from a question to its response.
        most: questions that were in flight at most.
    """

    clock: VirtualClock
    script: dict[str, list[Verdict]] = field(default_factory=dict)
    asked: list[tuple[str, float]] = field(default_factory=list)
    held: bool = False
    waiting: dict[str, asyncio.Future[None]] = field(default_factory=dict)
    latency: float = 0.0
    most: int = 0
    concurrency: int | None = None
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
