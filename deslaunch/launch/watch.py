"""The runs of a batch, followed to their end: DES is asked about each until it has finished.

A run waits in a heap of due times, not in a task of its own. Each wait is longer than the one
before by half, so that the end of a run is noticed after about a third of the time that it took.
A response that no run is to blame for (a 5XX, no connection, no usable response) pauses its
target. What is told is in the ledger by then; what was not finished when the watch ended is asked
about by the next one, and nothing else is.
"""

import asyncio
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from typing import Final, NamedTuple

import anyio

from deslaunch import errors, events
from deslaunch.des.client import DesClient
from deslaunch.events import Stop, StopReason, TargetPaused
from deslaunch.launch.loop import Loop
from deslaunch.launch.retry import Jitter
from deslaunch.launch.target import Throttle
from deslaunch.ledger.reading import RunToAsk
from deslaunch.model import RunStatus, count
from deslaunch.settings import Settings

REFUSED_AT_FIRST: Final = 5
"""Refusals, before any good response, that stop a target: it is another DES than it was."""

GROWTH: Final = 1.5
_MOST_GROWTHS: Final = 1_000  # GROWTH to this power is still a float


def poll_wait(asked: int, settings: Settings, rng: Jitter) -> float:
    """Return the seconds until a run is asked about again.

    A tenth is left to chance, so that runs that were started together are not asked about
    together for ever.

    Args:
        asked: how often it was asked about, at least 1.
        settings: ``interval`` and ``max_interval``.
        rng: the source of jitter.
    """
    grown: float = settings.interval * GROWTH ** min(asked - 1, _MOST_GROWTHS)
    ceiling = min(grown, max(settings.interval, settings.max_interval))
    return rng.uniform(0.9 * ceiling, ceiling)


_NOT_ENDED: Final = (False, False)  # finished, success


class _Waiting(NamedTuple):
    """A run that is to be asked about: when, its row, how often it was, and itself."""

    due: float
    row: int
    asked: int
    run: RunToAsk


@dataclass(slots=True)
class _Target:
    """One target's runs, and whether it may be asked."""

    client: DesClient
    throttle: Throttle
    due: list[_Waiting] = field(default_factory=list)
    has_told: bool = False
    refusals: int = 0


class Watch(Loop[tuple[_Target, _Waiting]]):
    """One watch of a batch's runs; an asynchronous iterator of how each ended.

    Nothing else writes to its ledger, and each run's target has a client.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._targets = {
            name: _Target(client, self._throttle(name)) for name, client in self.clients.items()
        }
        self._after_row: int | None = 0  # the last row that was read; None: there are no more
        self._unasked = 0  # runs of targets that go on, which were not asked about yet
        self._told: list[tuple[RunToAsk, RunStatus | str]] = []
        self._unread: asyncio.Queue[RunStatus | None] | None = None  # where somebody iterates

    # What the batch calls.

    async def run(self, *, allow_partial: bool = False) -> events.WatchSummary:
        """Ask about all runs until they have ended, or until ``stops`` says why not.

        Cancelled, it ends at once: to ask again costs nothing.

        Args:
            allow_partial: return the summary also where runs had not finished.

        Raises:
            Unfinished: runs had not finished when the watch ended.
            LedgerWriteFailed: a status could not be recorded.
            Exception: whatever a listener or a faulty client raised.
        """
        began = self.clock.now()

        if (seconds := self.settings.watch_timeout) is not None:
            stop = Stop(StopReason.OUT_OF_TIME, f"watched for {seconds:g} s")
            self._workers.help(self._after(seconds, partial(self.drain, stop)))

        try:
            await self._read_on()

            while not self._is_over():
                now = self.clock.now()

                while not self._is_draining and (taken := self._take(now)) is not None:
                    self._workers.put(taken)

                await self._wait_for_news(self._next_time(now))
                self._news.clear()  # before what came is taken: what comes meanwhile is news again
                await self._record()
                await self._read_on()
        finally:
            await self._workers.aclose()

        if self._error is not None:
            raise self._error

        seconds = self.clock.now() - began
        summary = await self.ledger.watch_summary(stops=self.stops, seconds=seconds)

        if summary.stops and summary.unfinished and not allow_partial:
            why = "; ".join(stop.message for stop in summary.stops)
            raise errors.Unfinished(
                f"{count(summary.unfinished, 'run')} had not finished when the watch ended: {why}",
                runs=summary,
                summary=summary.batch,
                hint="watch the ledger again: only what is left is asked about",
            )

        return summary

    async def __aiter__(self) -> AsyncIterator[RunStatus]:
        """Watch, and yield how each run ended; a slow consumer holds back asking.

        Raises:
            Unfinished: as :meth:`run`.
        """
        unread = self._unread = asyncio.Queue()
        work = asyncio.create_task(self.run())
        work.add_done_callback(lambda _: unread.put_nowait(None))

        try:
            while (status := await unread.get()) is not None:
                yield status
                self._news.set()

            work.result()
        finally:
            self.drain()

            with anyio.CancelScope(shield=True):
                await asyncio.wait([work])

    def drain(self, stop: Stop | None = None) -> None:
        """End the watch. Questions in flight are given up: to ask again costs nothing."""
        if stop is not None:
            self._note_stop(stop)

        self._is_draining = True
        self.abandon()
        self._news.set()

    def abandon(self) -> None:
        """Give up what is in flight."""
        self._workers.cancel_busy()

    # The loop.

    def _is_over(self) -> bool:
        targets = self._targets.values()

        if self._told or any(target.throttle.in_flight for target in targets):
            return False

        is_left = any(target.due for target in targets)
        return self._is_draining or (self._after_row is None and not is_left)

    async def _read_on(self) -> None:
        """Read runs that were not asked about yet, so that the slots have enough to do."""
        while self._after_row is not None and self._unasked < self.settings.concurrency:
            runs = await self.ledger.runs_to_ask(self._after_row)
            self._after_row = runs[-1].row if runs else None

            for run in runs:
                self._put(self._targets[run.target], _Waiting(-math.inf, run.row, 0, run))

    def _put(self, target: _Target, waiting: _Waiting) -> None:
        """Let a run be asked about, unless its target has stopped."""
        if not target.throttle.is_stopped:
            heappush(target.due, waiting)
            self._unasked += not waiting.asked

    def _take(self, now: float) -> tuple[_Target, _Waiting] | None:
        """Return the run that is to be asked about now; the targets take turns."""
        unread = 0 if self._unread is None else self._unread.qsize()
        busy = self._workers.busy + len(self._told) + unread

        if busy >= self.settings.concurrency or self._pacer.allowed(now) < 1:
            return None

        for _ in range(len(self._rotation)):
            self._rotation.rotate(-1)
            target = self._targets[self._rotation[0]]
            target.throttle.reopen(now)  # the question is the probe

            if target.due and target.due[0].due <= now and target.throttle.room(now) > 0:
                target.throttle.in_flight += 1
                self._pacer.take(1)
                waiting = heappop(target.due)
                self._unasked -= not waiting.asked
                return target, waiting

        return None

    def _next_time(self, now: float) -> float:
        """Return when time alone lets a run be asked about; infinity where only news can."""
        times = []

        for target in self._targets.values():
            if target.due:
                opens = now + (target.throttle.rest(now) or 0.0)
                times.append(max(target.due[0].due, opens, self._pacer.opens_at(now)))

        return min((time for time in times if time > now), default=math.inf)

    async def _record(self) -> None:
        """Write what was told, then tell it on."""
        told, self._told = self._told, []

        if told:
            await self.ledger.record_runs([(run.row, run.attempt, said) for run, said in told])

        for run, said in told:
            status = (
                said._replace(key=run.key)
                if isinstance(said, RunStatus)
                else RunStatus(run.job_id, run.job_run_id, *_NOT_ENDED, said, key=run.key)
            )
            self._tell(events.RunEnded(status))

            if self._unread is not None:
                self._unread.put_nowait(status)

    # One question.

    async def _work_on(self, item: tuple[_Target, _Waiting]) -> None:
        target, waiting = item
        throttle, run = target.throttle, waiting.run

        try:
            status = await target.client.query_run_status(run.job_run_id)
        except errors.CredentialsRefused as exc:
            self._act(throttle.stop(StopReason.CREDENTIALS, str(exc)))
        except (errors.NotSent, errors.Throttled, errors.Redirected) as exc:
            self._put(target, waiting)
            self._act(throttle.held_back(exc, self.clock.now()))
        except errors.Rejected as exc:
            self._refuse(target, run, exc)
        except errors.DesError as exc:  # no run is to blame for it
            self._put(target, self._asked(waiting))
            self._act(throttle.held_back(exc, self.clock.now()))
        except asyncio.CancelledError:
            pass  # the next watch asks about it
        except Exception as exc:  # noqa: BLE001  # it ends the watch, once all slots ended
            self._fail(exc)
        else:
            target.has_told = True
            throttle.started()

            if status.finished:
                self._told.append((run, status))
            else:
                self._put(target, self._asked(waiting))
        finally:
            throttle.in_flight -= 1
            self._news.set()

    def _refuse(self, target: _Target, run: RunToAsk, error: errors.Rejected) -> None:
        """Ask about a run no more in this watch; stop a target that tells of none."""
        target.throttle.responded()
        target.refusals += 1
        self._told.append((run, str(error)))

        if target.refusals >= REFUSED_AT_FIRST and not target.has_told:
            message = (
                f"DES refused to tell of its first {target.refusals} runs "
                f"(is it the one that started them?): {error}"
            )
            self._act(target.throttle.stop(StopReason.CONFIGURATION, message))

    def _asked(self, waiting: _Waiting) -> _Waiting:
        """Return a run that was asked about once more, and when it is to be again."""
        asked = waiting.asked + 1
        due = self.clock.now() + poll_wait(asked, self.settings, self.rng)
        return waiting._replace(due=due, asked=asked)

    def _act(self, decided: TargetPaused | Stop | None) -> None:
        super()._act(decided)

        if isinstance(decided, Stop):
            due = self._targets[decided.target or ""].due
            self._unasked -= sum(not waiting.asked for waiting in due)
            due.clear()
