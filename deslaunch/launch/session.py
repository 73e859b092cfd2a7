"""The engine: rows through slots into the journal.

It knows neither HTTP nor files. It owns three protocols (:class:`Source` gives starts,
:class:`Starter` sends one, :class:`Journal` keeps records) and asks the pure modules what to do:
:mod:`~deslaunch.retry` about a row, :mod:`~deslaunch.throttle` about a target.

A slot is a worker. For each start it awaits the durable ``sending`` record, sends, and queues
the outcome, which the journal writes ahead of the worker's next ``sending``: so a kill leaves
at most *slots* rows in doubt. A row that must wait (a retry, a pause, a new token) gives its
slot back; once four rows a slot wait or are on their way, nothing new is read.

An ended row is reported only once its outcome is durable, in the order in which outcomes
became durable.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from deslaunch import records
from deslaunch.errors import (
    CredentialsRefused,
    DesError,
    LedgerWriteFailed,
    ManifestConflict,
    ManifestError,
    NotSent,
    Redirected,
    Throttled,
    Unauthorized,
)
from deslaunch.health import ErrorLimit, Health
from deslaunch.model import (
    Draining,
    Evidence,
    Pulse,
    RetryPlanned,
    RowState,
    Stop,
    Stopped,
    StopReason,
    TargetPaused,
    TokenRenewed,
)
from deslaunch.retry import Decision, RetryPolicy, target_waits, waits
from deslaunch.throttle import Gate, Pacer, Pause, Throttle

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence

    from deslaunch.model import Event, StartedRun, StartRequest
    from deslaunch.records import Record
    from deslaunch.retry import Jitter

_SHORTEST_SLEEP: Final = 0.001  # uvloop's timers know milliseconds; a shorter one would spin

WAITING_PER_SLOT: Final = 4
"""Rows a slot that may wait for a retry or a pause before reading stops."""


class Starter(Protocol):
    """Sends starts to one target. One call is one attempt; it never retries."""

    async def start(self, request: StartRequest, evidence: Evidence) -> StartedRun:
        """Send one start.

        Args:
            request: what to send.
            evidence: told when the first byte is about to leave.

        Raises:
            DesError: what became of it instead.
            CredentialsRefused: there is no token; no byte left.
        """
        ...

    async def probe(self) -> None:
        """Return if DES answers a request that starts nothing.

        Raises:
            DesError: it does not.
        """
        ...

    async def renew(self, refused: Unauthorized) -> None:
        """Replace the refused token, once for all rows that wait for it.

        Raises:
            CredentialsRefused: no newer token could be had.
            NotSent: one may be had later.
        """
        ...


class Journal(Protocol):
    """Keeps records in the order in which they are appended."""

    def append(self, record: Record) -> asyncio.Future[None]:
        """Queue a record; the future is done once it is durable.

        The future carries :class:`~deslaunch.errors.LedgerWriteFailed` where that failed.
        """
        ...


class Source(Protocol):
    """Gives the starts of a batch."""

    async def read(self) -> Sequence[Start]:
        """Return the next starts, in order; nothing at the end.

        Raises:
            ManifestError: the rows that were validated are not there any more.
        """
        ...


class Clock(Protocol):
    """Time, passed in."""

    def now(self) -> float:
        """Return seconds of a clock that only goes forward."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after ``seconds``."""
        ...


class SystemClock:
    """The running event loop's time."""

    def now(self) -> float:
        """Return the event loop's time, seconds."""
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        """Return after ``seconds``."""
        await asyncio.sleep(seconds)


class Start:
    """One row on its way.

    Attributes:
        request: what to send.
        attempt: number of the next attempt, from 1, all sessions counted.
        with_body: the next ``sending`` record carries the body.
        answers: 5XX answers in this session.
        renewed: it was refused with 401 once in this session.
        waits: the waits before its next tries, seconds; made when first needed.
    """

    __slots__ = ("answers", "attempt", "renewed", "request", "waits", "with_body")

    def __init__(self, request: StartRequest, *, attempt: int = 1, with_body: bool = True) -> None:
        self.request = request
        self.attempt = attempt
        self.with_body = with_body
        self.answers = 0
        self.renewed = False
        self.waits: Iterator[float] | None = None

    def __repr__(self) -> str:
        return f"<Start {self.request.key!r} attempt {self.attempt}>"


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What tunes one session.

    Attributes:
        slots: starts in flight at most, at least 1.
        slots_of: the same of single targets, where they get fewer.
        rate: starts a second at most, above 0; None for no limit.
        retry: the rules for 5XX answers.
        give_up_after: seconds that a target may stay paused, above 0.
        drain_timeout: seconds that rows in flight get after :meth:`Engine.drain`.
        error_limit: rows of a target that may end without a run.
    """

    slots: int = 16
    slots_of: Mapping[str, int] = field(default_factory=dict)
    rate: float | None = None
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    give_up_after: float = 900.0
    drain_timeout: float = 60.0
    error_limit: ErrorLimit = field(default_factory=ErrorLimit)


class Engine:
    """One session of a batch.

    Args:
        source: where the starts come from.
        starters: by target.
        journal: where records go.
        settings: slots, waits and limits.
        ended: called with a start and its final record, once that is durable.
        emit: called with each event but the rows' ends.
        clock: time; the event loop's by default.
        rng: the source of jitter.

    Attributes:
        stops: why targets, or the session, ended early, in the order of happening.
        unrecorded: (key, jobRunId) of runs whose record could not be written.
    """

    def __init__(
        self,
        source: Source,
        starters: Mapping[str, Starter],
        journal: Journal,
        settings: EngineSettings,
        *,
        ended: Callable[[StartRequest, Record], None],
        emit: Callable[[Event], None],
        clock: Clock,
        rng: Jitter,
    ) -> None:
        self.stops: list[Stop] = []
        self.unrecorded: list[tuple[str, str]] = []
        self._source = source
        self._starters = starters
        self._journal = journal
        self._settings = settings
        self._ended = ended
        self._emit = emit
        self._clock = clock
        self._rng = rng
        self._pacer = Pacer(settings.rate)
        self._throttles = {target: self._throttle(target) for target in starters}
        self._health = {target: Health(target, settings.error_limit) for target in starters}
        self._fresh: deque[Start] = deque()
        self._ready: dict[str, deque[Start]] = {target: deque() for target in starters}
        self._parked = 0
        self._asleep: set[Start] = set()
        self._in_flight = 0
        self._awaited = 0
        self._sitting_out: set[str] = set()
        self._pacing: set[asyncio.Task[Any]] = set()
        self._generations = dict.fromkeys(starters, 0)
        self._exhausted = False
        self._draining = False
        self._idle: deque[asyncio.Future[None]] = deque()
        self._room = asyncio.Event()
        self._settling: set[asyncio.Future[None]] = set()
        self._error: Exception | None = None
        self._group: asyncio.TaskGroup | None = None
        self._helpers: set[asyncio.Task[None]] = set()
        self._workers: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        state = "draining" if self._draining else "at work"
        waiting = self._parked + len(self._asleep)
        return f"<Engine {state}: {self._in_flight} in flight, {waiting} waiting>"

    # What the launcher calls.

    def pulse(self) -> Pulse:
        """Return how the session is getting on."""
        slots = sum(throttle.open_slots for throttle in self._throttles.values())
        return Pulse(
            in_flight=self._awaited,
            waiting=self._parked + len(self._asleep),
            slots=min(slots, self._settings.slots),
        )

    async def run(self) -> None:
        """Send all starts of the source; return when the last outcome is durable.

        Returns early after :meth:`drain`, :meth:`abandon`, or when every target stopped:
        ``stops`` says why, and what was not sent is pending. Don't cancel it; drain it.

        Raises:
            Exception: whatever the source, a callback or a faulty starter raised, once all rows
                in flight have ended and are recorded.
        """
        async with asyncio.TaskGroup() as group:
            self._group = group
            self._help(self._read())
            self._workers = [group.create_task(self._work()) for _ in range(self._settings.slots)]
            await asyncio.wait(self._workers)
            self._cancel_helpers()

        while self._settling:
            await asyncio.wait(self._settling)

        if self._error is not None:
            raise self._error

    def stop(self, target: str, reason: StopReason, message: str) -> None:
        """End one target; its rows stay pending, the other targets go on."""
        self._stop(self._throttles[target].stop(reason, message))

    def drain(self, stop: Stop | None = None) -> None:
        """Send nothing new; rows in flight get ``drain_timeout`` seconds for their answers."""
        if stop is not None:
            self._note(stop)

        if self._draining:
            return

        self._draining = True
        self._cancel_helpers()

        for worker in self._pacing:
            worker.cancel()

        self._tell(Draining(self._awaited, self._settings.drain_timeout))
        self._wake()

        if self._group is not None and self._in_flight:
            self._help(self._abandon_later())

    def abandon(self) -> None:
        """Give up the rows in flight: those of which a byte left become unknown."""
        self.drain()

        for worker in self._workers:
            worker.cancel()

    # Reading.

    async def _read(self) -> None:
        try:
            while not self._draining and (starts := await self._source.read()):
                self._fresh.extend(starts)
                self._wake()
                await self._until_room()
        except asyncio.CancelledError as exc:
            if _is_cancelled():
                raise

            self._fail(_as_error(exc))  # the caller's rows raised it: that is no end of them
        except ManifestConflict as exc:
            self._fail(exc)
        except ManifestError as exc:
            self.drain(Stop(StopReason.MANIFEST_CHANGED, str(exc)))
        except Exception as exc:  # noqa: BLE001  # the caller's rows may raise anything
            self._fail(exc)
        finally:
            self._exhausted = True
            self._wake()

    async def _until_room(self) -> None:
        while not self._has_room():
            self._room.clear()
            await self._room.wait()

    def _has_room(self) -> bool:
        return len(self._fresh) < self._settings.slots and not self._is_full()

    def _is_full(self) -> bool:
        under_way = self._parked + len(self._asleep) + self._in_flight
        return under_way >= WAITING_PER_SLOT * self._settings.slots

    # Slots.

    async def _work(self) -> None:
        while (start := await self._next()) is not None:
            throttle = self._throttles[start.request.target]

            try:
                if not self._pacer.paces or await self._paced(throttle):
                    await self._attempt(start, throttle)
                else:
                    self._park(start, first=True)
            except Exception as exc:  # noqa: BLE001  # the rows of other slots must not be lost
                self._fail(exc)
            finally:
                self._in_flight -= 1
                throttle.end()

    async def _next(self) -> Start | None:
        """Return the next start that may be sent, or None when there will be none."""
        while not self._draining:
            start = self._take()

            if start is not None:
                if self._idle and (self._fresh or self._parked):
                    self._wake()

                return start

            if self._is_over():
                break

            await self._change()

        self._wake()
        return None

    def _is_over(self) -> bool:
        waiting = self._fresh or self._parked or self._asleep or self._in_flight
        return self._exhausted and not waiting

    def _take(self) -> Start | None:
        start = (self._take_parked() if self._parked else None) or self._take_fresh()
        self._tell_of_room()  # rows may have been parked or dropped: nothing else would tell
        return start

    def _take_fresh(self) -> Start | None:
        while self._fresh and not self._is_full():
            start = self._fresh.popleft()

            if self._throttles[start.request.target].admits(start.request.key):
                return self._begun(start)

            self._park(start)

        return None

    def _take_parked(self) -> Start | None:
        for target, queue in self._ready.items():
            if queue and self._throttles[target].admits(queue[0].request.key):
                self._parked -= 1
                return self._begun(queue.popleft())

        return None

    def _begun(self, start: Start) -> Start:
        self._in_flight += 1
        self._throttles[start.request.target].begin(start.request.key)
        return start

    def _park(self, start: Start, *, first: bool = False) -> None:
        """Let a row wait for its target; a stopped target's rows are left pending."""
        if self._throttles[start.request.target].stopped:
            return

        queue = self._ready[start.request.target]
        self._parked += 1

        if first:
            queue.appendleft(start)
        else:
            queue.append(start)

    # One attempt.

    async def _attempt(self, start: Start, throttle: Throttle) -> None:
        request = start.request
        evidence = Evidence()

        try:
            run = await self._send(start, throttle, evidence)
        except LedgerWriteFailed as exc:
            self._ledger_failed(exc)
        except asyncio.CancelledError:
            self._given_up(start, evidence, "given up before an answer")
            raise
        except CredentialsRefused as exc:
            self._keep(records.unsent(request.key, start.attempt, error=str(exc)))
            self._stop(throttle.stop(StopReason.CREDENTIALS, str(exc)))
        except Unauthorized as exc:
            self._unauthorized(start, throttle, exc)
        except (NotSent, Throttled, Redirected) as exc:
            self._held_back(start, throttle, exc)
        except DesError as exc:
            self._refused(start, throttle, exc)
        except Exception as exc:  # noqa: BLE001  # a fault of the starter must not lose its row
            self._given_up(start, evidence, f"the starter failed with {type(exc).__name__}")
            self._fail(exc)
        else:
            if run is not None:
                throttle.started()
                run_id = run.job_run_id
                self._end(start, records.started(request.key, start.attempt, job_run_id=run_id))

    async def _send(
        self, start: Start, throttle: Throttle, evidence: Evidence
    ) -> StartedRun | None:
        """Send a start once its intent is durable.

        Returns:
            None where it was not sent: meanwhile its target was told to wait, or the session
            to end.
        """
        request = start.request
        alone = throttle.gate is Gate.ALONE
        await self._journal.append(
            records.sending(request, start.attempt, with_body=start.with_body)
        )
        start.with_body = False

        if self._draining or not throttle.lets_go(alone=alone):
            self._given_up(start, evidence, "held back before it was sent")
            self._again(start)
            return None

        self._awaited += 1

        try:
            return await self._starters[request.target].start(request, evidence)
        finally:
            self._awaited -= 1

    async def _paced(self, throttle: Throttle) -> bool:
        """Wait for the start's turn; tell whether it may be sent then."""
        seconds = self._pacer.wait(self._clock.now())

        if not seconds:
            return True

        alone = throttle.gate is Gate.ALONE
        worker = asyncio.current_task()
        assert worker is not None
        self._pacing.add(worker)

        try:
            await self._clock.sleep(seconds)
        finally:
            self._pacing.discard(worker)

        return not self._draining and throttle.lets_go(alone=alone)

    def _given_up(self, start: Start, evidence: Evidence, cause: str) -> None:
        """Record a start without an answer: in doubt as soon as one byte may have left."""
        if evidence.sent:
            self._end(start, records.unknown(start.request.key, start.attempt, cause=cause))
        else:
            self._keep(records.unsent(start.request.key, start.attempt, error=cause))

    def _unauthorized(self, start: Start, throttle: Throttle, refused: Unauthorized) -> None:
        """Hold the target back for a new token; where that one was refused, the target stops."""
        self._keep_answer(start, refused)
        throttle.answered(final=False)

        if start.renewed:
            message = "DES refused the new token as well"
            self._stop(throttle.stop(StopReason.CREDENTIALS, message))
        elif not self._draining and not throttle.stopped:
            start.renewed = True
            start.attempt += 1
            self._asleep.add(start)
            throttle.hold()
            self._help(self._renew(start, throttle, refused))

    async def _renew(self, start: Start, throttle: Throttle, refused: Unauthorized) -> None:
        """Let the row be sent once more with a new token; without one the target stops."""
        try:
            await self._starters[throttle.target].renew(refused)
        except CredentialsRefused as exc:
            self._stop(throttle.stop(StopReason.CREDENTIALS, str(exc)))
        except NotSent:
            pass  # the row's next try meets it again, and pauses the target
        except Exception as exc:  # noqa: BLE001  # a fault of the starter ends the session
            self._fail(exc)
        else:
            self._renewed(throttle.target, refused.generation)
        finally:
            throttle.release()

        self._return(start)

    def _renewed(self, target: str, generation: int) -> None:
        """Tell of a new token once, however many rows waited for it."""
        if generation > self._generations[target]:
            self._generations[target] = generation
            self._tell(TokenRenewed(target))

    def _held_back(self, start: Start, throttle: Throttle, error: DesError) -> None:
        """Keep the row pending, and pause or stop its target."""
        if isinstance(error, NotSent):
            self._keep(records.unsent(start.request.key, start.attempt, error=str(error)))
        else:
            self._keep_answer(start, error)

        self._wait_or_stop(throttle, throttle.held_back(error, self._clock.now()))
        self._again(start)

    def _refused(self, start: Start, throttle: Throttle, error: DesError) -> None:
        start.answers += 1
        decision = self._settings.retry.decide(
            error, answers=start.answers, auto=start.request.auto
        )

        if decision is Decision.UNKNOWN:
            self._doubt(start, throttle, error)
            return

        throttle.answered(final=decision is not Decision.RETRY)

        if decision is Decision.RETRY:
            self._retry(start, throttle, error)
        else:
            build = records.rejected if decision is Decision.REJECTED else records.failed
            self._end(
                start,
                build(
                    start.request.key,
                    start.attempt,
                    status=error.status,
                    error=error.answer or str(error),
                ),
            )

    def _doubt(self, start: Start, throttle: Throttle, error: DesError) -> None:
        self._end(
            start,
            records.unknown(
                start.request.key,
                start.attempt,
                cause=str(error),
                status=error.status,
                job_run_id=error.job_run_id,
                answer=error.answer,
            ),
        )

        stop = throttle.lost(str(error))

        if stop is not None:
            self._stop(stop)

    def _retry(self, start: Start, throttle: Throttle, error: DesError) -> None:
        self._keep_answer(start, error)

        if self._draining or throttle.stopped:
            return

        if start.waits is None:
            start.waits = waits(self._settings.retry.max_wait, self._rng)

        wait = next(start.waits)
        start.attempt += 1
        self._asleep.add(start)
        self._help(self._return_after(start, wait))
        self._tell(RetryPlanned(start.request.key, start.request.target, error.status, wait))

    def _again(self, start: Start) -> None:
        start.attempt += 1
        self._park(start, first=True)

    # Waiting.

    async def _return_after(self, start: Start, seconds: float) -> None:
        await self._clock.sleep(seconds)
        self._return(start)

    def _return(self, start: Start) -> None:
        """Let a row ask for a slot again, unless its target stopped meanwhile."""
        if start in self._asleep:
            self._asleep.remove(start)
            self._park(start, first=True)

        self._wake()

    def _pause(self, throttle: Throttle, pause: Pause) -> None:
        self._keep(records.pause(throttle.target, cause=pause.cause, seconds=pause.seconds))
        self._tell(TargetPaused(throttle.target, pause.cause, pause.seconds))

        if not self._draining and throttle.target not in self._sitting_out:
            self._sitting_out.add(throttle.target)
            self._help(self._sit_out(throttle))

    async def _sit_out(self, throttle: Throttle) -> None:
        """Wait until a pause is over and a probe is answered, however often it is prolonged."""
        try:
            while (rest := throttle.rest(self._clock.now())) is not None:
                if rest:  # a timer may ring a little early, and a pause may grow meanwhile
                    await self._clock.sleep(max(rest, _SHORTEST_SLEEP))
                else:
                    await self._probe(throttle)
        except Exception as exc:  # noqa: BLE001  # a fault of the starter must not lose rows
            self._fail(exc)
        finally:
            self._sitting_out.discard(throttle.target)

        self._wake()

    async def _probe(self, throttle: Throttle) -> None:
        try:
            await self._starters[throttle.target].probe()
        except DesError as exc:
            self._wait_or_stop(throttle, throttle.still_down(exc, self._clock.now()))
        else:
            throttle.reopen(self._clock.now())

    def _wait_or_stop(self, throttle: Throttle, decided: Pause | Stop | None) -> None:
        if isinstance(decided, Stop):
            self._stop(decided)
        elif decided is not None:
            self._pause(throttle, decided)

    async def _abandon_later(self) -> None:
        await self._clock.sleep(self._settings.drain_timeout)
        self.abandon()

    def _help(self, work: Coroutine[None, None, None]) -> None:
        """Run something beside the workers that ends with them."""
        assert self._group is not None
        task = self._group.create_task(work)
        self._helpers.add(task)
        task.add_done_callback(self._helpers.discard)

    def _cancel_helpers(self) -> None:
        for task in self._helpers:
            task.cancel()

    async def _change(self) -> None:
        news: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._idle.append(news)
        await news

    def _wake(self) -> None:
        """Let one idle worker look again; it wakes the next where that may find something too.

        To wake all would cost each row as many looks as there are slots.
        """
        while self._idle:
            news = self._idle.popleft()

            if not news.done():  # its worker may have been cancelled
                news.set_result(None)
                break

        self._tell_of_room()

    def _tell_of_room(self) -> None:
        if not self._room.is_set() and self._has_room():
            self._room.set()

    # Records.

    def _end(self, start: Start, record: Record) -> None:
        """Queue a final outcome; the row has ended once it is durable."""
        self._keep(record, partial(self._is_durable, start.request, record))

    def _is_durable(self, request: StartRequest, record: Record) -> None:
        """Report an ended row, and stop its target if it is one bad row too many."""
        self._ended(request, record)
        stop = self._health[request.target].ended(
            RowState(record["record"]), job_id=request.job_id, status=record.get("status")
        )

        if stop is not None and not self._draining:
            self._stop(self._throttles[request.target].stop(stop.reason, stop.message))

    def _keep_answer(self, start: Start, error: DesError) -> None:
        self._keep(
            records.answered(
                start.request.key,
                start.attempt,
                status=error.status,
                error=error.answer or str(error),
            )
        )

    def _keep(self, record: Record, then: Callable[[], None] | None = None) -> None:
        try:
            future = self._journal.append(record)
        except Exception as exc:  # noqa: BLE001  # a run that can't be recorded must be told
            self._lose(record)
            self._fail(exc)
            return

        self._settling.add(future)
        future.add_done_callback(partial(self._settled, record, then))

    def _settled(
        self, record: Record, then: Callable[[], None] | None, future: asyncio.Future[None]
    ) -> None:
        self._settling.discard(future)
        error = future.exception()

        if error is None:
            self._call(then)
        else:
            self._lose(record)
            self._ledger_failed(error)

    def _lose(self, record: Record) -> None:
        """Keep the run of a record that is not on disk, for a person to write down."""
        if record.get("jobRunId"):
            self.unrecorded.append((record["key"], record["jobRunId"]))

    def _ledger_failed(self, error: BaseException) -> None:
        if not any(stop.reason is StopReason.LEDGER for stop in self.stops):
            self.drain(Stop(StopReason.LEDGER, str(error)))

    # Ends.

    def _stop(self, stop: Stop) -> None:
        """End one target; its rows stay pending, the other targets go on."""
        assert stop.target is not None

        if any(known.target == stop.target for known in self.stops):
            return

        self._note(stop)
        queue = self._ready[stop.target]
        self._parked -= len(queue)
        queue.clear()
        self._asleep = {start for start in self._asleep if start.request.target != stop.target}

        if all(throttle.stopped for throttle in self._throttles.values()):
            self.drain()

        self._wake()

    def _note(self, stop: Stop) -> None:
        self.stops.append(stop)
        self._tell(Stopped(stop))

    def _tell(self, event: Event) -> None:
        self._call(partial(self._emit, event))

    def _call(self, callback: Callable[[], None] | None) -> None:
        """Call a listener; its error ends the session, not the record that it missed."""
        if callback is None:
            return

        try:
            callback()
        except Exception as exc:  # noqa: BLE001  # a listener may raise anything
            self._fail(exc)

    def _fail(self, exc: Exception) -> None:
        self._error = self._error or exc

        if not self._draining:
            self.drain()

    def _throttle(self, target: str) -> Throttle:
        most = self._settings.slots
        return Throttle(
            target,
            slots=min(most, self._settings.slots_of.get(target, most)),
            waits=partial(target_waits, self._settings.retry.max_wait, self._rng),
            give_up_after=self._settings.give_up_after,
        )


def _is_cancelled() -> bool:
    """Tell whether this task was cancelled, and not only what it awaited."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _as_error(exc: asyncio.CancelledError) -> Exception:
    error = RuntimeError("the rows broke off with a cancellation of their own")
    error.__cause__ = exc
    return error
