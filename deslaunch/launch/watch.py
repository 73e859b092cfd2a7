"""The poller: asks about runs until they end, and keeps how they did.

It knows neither HTTP nor files, like the engine: an :class:`Asker` is asked about one run, a
:class:`~deslaunch.engine.Journal` keeps the records. :mod:`~deslaunch.patience` says when a run is
asked about next, :mod:`~deslaunch.throttle` when a target may be asked at all.

A slot is a worker. Runs wait in a heap of due times, not in tasks of their own. An answer that no
run is to blame for (a 5XX, no connection, no usable answer) pauses its target; what ends a run is
durable before it is counted or handed on. A slow listener keeps its slots from asking on.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field, replace
from functools import partial
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from deslaunch import records
from deslaunch.errors import (
    CredentialsRefused,
    DesError,
    NotSent,
    Redirected,
    Rejected,
    Throttled,
)
from deslaunch.model import RunStatus, Stop, Stopped, StopReason, TargetPaused
from deslaunch.patience import Patience
from deslaunch.retry import target_waits
from deslaunch.throttle import Pacer, Throttle

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping

    from deslaunch.engine import Clock, Journal
    from deslaunch.model import Event
    from deslaunch.records import Record
    from deslaunch.retry import Jitter
    from deslaunch.throttle import Pause

REFUSED_AT_FIRST: Final = 5
"""Refusals, before any good answer, that stop a target: it is asked in the wrong way."""

_SHORTEST_SLEEP: Final = 0.001  # uvloop's timers know milliseconds; a shorter one would spin


class Asker(Protocol):
    """Asks one target about runs. One call asks once, and once more with a renewed token."""

    async def query_run_status(self, job_run_id: str) -> RunStatus:
        """Return how one run is getting on.

        Raises:
            DesError: why there is no usable answer.
            CredentialsRefused: there is no token that is accepted.
        """
        ...


class WatchedRun(NamedTuple):
    """A run that has not ended, as far as is known.

    Attributes:
        key: the row's key.
        target: the target's name.
        job_run_id: the run.
    """

    key: str
    target: str
    job_run_id: str


_Waiting = tuple[float, int, int, WatchedRun]
"""When a run is due, its number, how often it was asked about, and itself."""


@dataclass(frozen=True, slots=True)
class PollerSettings:
    """What tunes one watch.

    Attributes:
        slots: questions in flight at most, at least 1.
        slots_of: the same for single targets that take fewer.
        rate: questions a second at most, above 0; None for no limit.
        patience: when a run is asked about next.
        max_wait: cap of a target's computed pause, seconds, above 0.
        give_up_after: seconds that a target may stay paused, above 0.
        timeout: seconds after which the watch ends, above 0; None for no limit.
    """

    slots: int = 16
    slots_of: Mapping[str, int] = field(default_factory=dict)
    rate: float | None = None
    patience: Patience = field(default_factory=Patience)
    max_wait: float = 60.0
    give_up_after: float = 900.0
    timeout: float | None = None


class _Target:
    """One target's runs, and whether it may be asked."""

    def __init__(self, asker: Asker, throttle: Throttle) -> None:
        self.asker = asker
        self.throttle = throttle
        self.due: list[_Waiting] = []
        self.has_told = False
        self.refusals = 0

    def next_at(self, now: float) -> float | None:
        """Return when its next run can be asked about; None if that is not a matter of time."""
        if self.throttle.stopped or not self.due:
            return None

        due = max(self.due[0][0], now + (self.throttle.rest(now) or 0.0))
        return due if due > now else None

    def take(self, now: float) -> _Waiting | None:
        """Return the run that is to be asked about now, if there is one."""
        self.throttle.reopen(now)

        if not self.due or self.due[0][0] > now or not self.throttle.admits(self.due[0][3].key):
            return None

        waiting = heappop(self.due)
        self.throttle.begin(waiting[3].key)
        return waiting


class Poller:
    """One watch of a batch's runs.

    Args:
        runs: those that have not ended, in the order in which they are first asked about.
        askers: by target; each run's must be there.
        journal: where records go.
        settings: slots, waits and limits.
        ended: awaited with each run's last status once it is durable.
        emit: called with each pause and stop.
        clock: time.
        rng: the source of jitter.

    Attributes:
        stops: why targets, or the watch, ended early, in the order of happening.
        asked: questions that were answered.
    """

    def __init__(
        self,
        runs: Iterable[WatchedRun],
        askers: Mapping[str, Asker],
        journal: Journal,
        settings: PollerSettings,
        *,
        ended: Callable[[RunStatus], Awaitable[None]],
        emit: Callable[[Event], None],
        clock: Clock,
        rng: Jitter,
    ) -> None:
        self.stops: list[Stop] = []
        self.asked = 0
        self._journal = journal
        self._settings = settings
        self._ended = ended
        self._emit = emit
        self._clock = clock
        self._rng = rng
        self._pacer = Pacer(settings.rate)
        self._targets = {
            name: _Target(asker, self._throttle(name)) for name, asker in askers.items()
        }
        self._turns = deque(self._targets.values())
        self._in_flight = 0
        self._draining = False
        self._idle: deque[asyncio.Future[None]] = deque()
        self._alarm: asyncio.Task[None] | None = None
        self._rings = 0.0
        self._error: Exception | None = None
        self._group: asyncio.TaskGroup | None = None
        self._helpers: set[asyncio.Task[None]] = set()
        self._workers: list[asyncio.Task[None]] = []

        for number, run in enumerate(runs):
            self._targets[run.target].due.append((float("-inf"), number, 0, run))

    def __repr__(self) -> str:
        state = "ending" if self._draining else "at work"
        waiting = sum(len(target.due) for target in self._turns)
        return f"<Poller {state}: {self._in_flight} in flight, {waiting} waiting>"

    async def run(self) -> None:
        """Ask about all runs until they have ended, or until ``stops`` says why not.

        Raises:
            LedgerWriteFailed: a status could not be recorded.
            Exception: whatever a callback or a faulty asker raised.
        """
        async with asyncio.TaskGroup() as group:
            self._group = group
            self._workers = [group.create_task(self._work()) for _ in range(self._settings.slots)]

            if self._settings.timeout is not None:
                self._help(self._end_after(self._settings.timeout))

            await asyncio.wait(self._workers)

            for task in self._helpers:
                task.cancel()

        if self._error is not None:
            raise self._error

    def drain(self, stop: Stop | None = None) -> None:
        """End the watch. Questions in flight are given up: to ask again costs nothing."""
        if stop is not None:
            self._note(stop)

        self._draining = True
        self.abandon()

    def abandon(self) -> None:
        """Give up all that is under way."""
        for worker in self._workers:
            worker.cancel()

    # Slots.

    async def _work(self) -> None:
        while (found := await self._next()) is not None:
            target, waiting = found

            try:
                await self._pace()
                await self._ask(target, waiting)
            except Exception as exc:  # noqa: BLE001  # it ends the watch, once all slots ended
                self._fail(exc)
            finally:
                self._in_flight -= 1
                target.throttle.end()
                self._wake()

    async def _pace(self) -> None:
        seconds = self._pacer.wait(self._clock.now())

        if seconds:
            await self._clock.sleep(seconds)

    async def _next(self) -> tuple[_Target, _Waiting] | None:
        """Return the next run to be asked about, or None when there will be none."""
        while not self._draining:
            now = self._clock.now()
            found = self._take(now)

            if found is not None:
                self._in_flight += 1
                self._wake()  # the next one may be due as well
                return found

            if self._is_over():
                break

            self._set_alarm(now)
            await self._change()

        self._wake()
        return None

    def _take(self, now: float) -> tuple[_Target, _Waiting] | None:
        for _ in range(len(self._turns)):
            target = self._turns[0]
            self._turns.rotate(-1)  # so that no target keeps the slots from another
            waiting = target.take(now)

            if waiting is not None:
                return target, waiting

        return None

    def _is_over(self) -> bool:
        waits = any(target.due and not target.throttle.stopped for target in self._turns)
        return not waits and not self._in_flight

    # One question.

    async def _ask(self, target: _Target, waiting: _Waiting) -> None:
        run = waiting[3]

        try:
            status = await target.asker.query_run_status(run.job_run_id)
        except CredentialsRefused as exc:
            self._stop(target.throttle.stop(StopReason.CREDENTIALS, str(exc)))
        except (NotSent, Throttled, Redirected) as exc:
            heappush(target.due, waiting)
            self._held_back(target, exc)
        except Rejected as exc:
            await self._refused(target, run, exc)
        except DesError as exc:
            self._later(target, waiting)
            self._held_back(target, exc)
        else:
            await self._told(target, waiting, replace(status, key=run.key))

    async def _told(self, target: _Target, waiting: _Waiting, status: RunStatus) -> None:
        target.has_told = True
        target.throttle.started()
        self.asked += 1
        self._wake()  # the first answer lets the others follow

        if status.finished:
            await self._end(status)
        else:
            self._later(target, waiting)

    async def _refused(self, target: _Target, run: WatchedRun, error: Rejected) -> None:
        """Ask about a run no more in this watch; stop a target that answers nothing else."""
        target.throttle.answered(final=True)
        target.refusals += 1
        self.asked += 1
        self._wake()
        said = error.answer or str(error)
        await self._end(
            RunStatus("", run.job_run_id, finished=False, success=False, status=said, key=run.key)
        )

        if target.refusals >= REFUSED_AT_FIRST and not target.has_told:
            message = (
                f"DES refused to tell of its first {target.refusals} runs "
                f"(is it the one that started them?): {error}"
            )
            self._stop(target.throttle.stop(StopReason.CONFIGURATION, message))

    async def _end(self, status: RunStatus) -> None:
        assert status.key is not None
        await self._journal.append(records.run_status(status.key, status))
        await self._ended(status)

    def _later(self, target: _Target, waiting: _Waiting) -> None:
        """Let a run be asked about again, later than the last time."""
        _, number, asked, run = waiting
        wait = self._settings.patience.wait(asked + 1, self._rng)
        heappush(target.due, (self._clock.now() + wait, number, asked + 1, run))

    # Waiting.

    def _held_back(self, target: _Target, error: DesError) -> None:
        decided = target.throttle.held_back(error, self._clock.now())

        if isinstance(decided, Stop):
            self._stop(decided)
        elif decided is not None:
            self._pause(target, decided)

    def _pause(self, target: _Target, pause: Pause) -> None:
        name = target.throttle.target
        self._keep(records.pause(name, cause=pause.cause, seconds=pause.seconds))
        self._tell(TargetPaused(name, pause.cause, pause.seconds))

    def _set_alarm(self, now: float) -> None:
        """Wake the workers when the next run is due, or the next pause over."""
        times = [time for target in self._turns if (time := target.next_at(now)) is not None]

        if not times or (self._alarm is not None and self._rings <= min(times)):
            return

        if self._alarm is not None:
            self._alarm.cancel()

        self._rings = min(times)
        self._alarm = self._help(self._ring(max(self._rings - now, _SHORTEST_SLEEP)))

    async def _ring(self, seconds: float) -> None:
        await self._clock.sleep(seconds)
        self._alarm = None
        self._wake()

    async def _end_after(self, seconds: float) -> None:
        await self._clock.sleep(seconds)
        self.drain(Stop(StopReason.OUT_OF_TIME, f"watched for {seconds:g} s"))

    def _help(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Run something beside the workers that ends with them."""
        assert self._group is not None
        task = self._group.create_task(work)
        self._helpers.add(task)
        task.add_done_callback(self._helpers.discard)
        return task

    async def _change(self) -> None:
        news: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._idle.append(news)
        await news

    def _wake(self) -> None:
        """Let one idle worker look again; it wakes the next where that may find something too."""
        while self._idle:
            news = self._idle.popleft()

            if not news.done():  # its worker may have been cancelled
                news.set_result(None)
                break

    # Records and ends.

    def _keep(self, record: Record) -> None:
        """Queue a record; its failure fails the next one that is awaited."""
        self._journal.append(record).add_done_callback(lambda future: future.exception())

    def _stop(self, stop: Stop) -> None:
        """End one target; the others go on."""
        if not any(known.target == stop.target for known in self.stops):
            self._note(stop)

    def _note(self, stop: Stop) -> None:
        self.stops.append(stop)
        self._tell(Stopped(stop))

    def _tell(self, event: Event) -> None:
        try:
            self._emit(event)
        except Exception as exc:  # noqa: BLE001  # a listener may raise anything
            self._fail(exc)

    def _fail(self, exc: Exception) -> None:
        self._error = self._error or exc
        self.drain()

    def _throttle(self, target: str) -> Throttle:
        most = self._settings.slots
        return Throttle(
            target,
            slots=min(most, self._settings.slots_of.get(target, most)),
            waits=partial(target_waits, self._settings.max_wait, self._rng),
            give_up_after=self._settings.give_up_after,
        )
