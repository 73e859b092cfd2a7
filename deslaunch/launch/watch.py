"""The runs of a batch, followed to their end: DES is asked about each until it has finished.

A run waits in a heap of due times, not in a task of its own. Each wait is longer than the one
before by half, so that the end of a run is noticed after about a third of the time that it took.
A response that no run is to blame for (a 5XX, no connection, no usable response) pauses its
target. What is told is in the ledger by then; what was not finished when the watch ended is asked
about by the next one, and nothing else is.
"""

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from typing import Final, NamedTuple

import anyio

from deslaunch import errors, events
from deslaunch.des.client import DesClient
from deslaunch.events import Stop, StopReason
from deslaunch.launch.loop import Loop
from deslaunch.launch.target import Throttle
from deslaunch.ledger.reading import RunToAsk
from deslaunch.model import RunStatus, Sent, count

GROWTH: Final = 1.5
"""How much longer each wait for a run is than the one before."""


class _Waiting(NamedTuple):
    """A run that is to be asked about: when, after which wait (0 at first), and itself."""

    due: float
    wait: float
    run: RunToAsk


@dataclass(slots=True)
class _Target:
    """One target's runs, and whether it may be asked."""

    client: DesClient
    throttle: Throttle
    due: list[_Waiting] = field(default_factory=list)


class Watch(Loop):
    """One watch of a batch's runs; an asynchronous iterator of how each ended.

    Nothing else writes to its ledger, and each run's target has a client.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._rotation = deque(self.clients)
        self._targets = {
            name: _Target(client, self._throttle(name)) for name, client in self.clients.items()
        }
        self._after_row: int | None = 0  # the last row that was read; None: there are no more
        self._told: list[tuple[RunToAsk, RunStatus]] = []  # to be recorded: ended, or refused
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
        self.ledger.on_wait = lambda text: self._emit(events.Noted(text, is_warning=True))
        self.ledger.wait_up_to(self.settings.give_up_after)

        if (seconds := self.settings.watch_timeout) is not None:
            stop = Stop(StopReason.OUT_OF_TIME, f"watched for {seconds:g} s")
            self._workers.help(self._after(seconds, partial(self.drain, stop)))

        try:
            await self._read_on()

            while not self._is_over():
                now = self.clock.now()

                while self._take(now):
                    await self._read_on()

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
            self.ledger.give_up(at_once=True)

        self._is_draining = True
        self._workers.cancel_busy()
        self._news.set()

    # The loop.

    def _busy(self) -> int:
        """Return how many runs are asked about, or have ended and are not recorded."""
        return len(self._told) + sum(one.throttle.in_flight for one in self._targets.values())

    def _waiting(self) -> list[_Target]:
        """Return the targets that go on and have runs to ask about."""
        targets = self._targets.values()
        return [one for one in targets if one.due and not one.throttle.is_stopped]

    def _is_over(self) -> bool:
        is_read = self._after_row is None
        return not self._busy() and (self._is_draining or (is_read and not self._waiting()))

    async def _read_on(self) -> None:
        """Read runs, unless there are some that were not asked about yet: those come first."""
        while self._after_row is not None and all(one.due[0].wait for one in self._waiting()):
            runs = await self.ledger.runs_to_ask(self._after_row)
            self._after_row = runs[-1].row if runs else None

            for run in runs:
                target = self._targets[run.target]

                if not target.throttle.is_stopped:
                    heappush(target.due, _Waiting(-math.inf, 0.0, run))

    def _take(self, now: float) -> bool:
        """Ask about a run whose time has come, and return True; the targets take turns."""
        busy = self._busy() + (self._unread.qsize() if self._unread else 0)
        has_room = busy < self.settings.concurrency and self._pacer.allowed(now) >= 1

        if self._is_draining or not has_room:
            return False

        for _ in range(len(self._rotation)):
            self._rotation.rotate(-1)
            target = self._targets[self._rotation[0]]
            target.throttle.reopen(now)  # the question is the probe

            if target.due and target.due[0].due <= now and target.throttle.room(now) > 0:
                target.throttle.in_flight += 1
                self._pacer.take(1)
                self._workers.put(self._work_on(target, heappop(target.due)), Sent())
                return True

        return False

    def _next_time(self, now: float) -> float:
        """Return when time alone lets a run be asked about; infinity where only news can."""
        opens = self._pacer.opens_at(now)
        times = [
            max(one.due[0].due, now + (one.throttle.rest(now) or 0.0), opens)
            for one in self._waiting()
        ]
        return min((time for time in times if time > now), default=math.inf)

    async def _record(self) -> None:
        """Write what was told, then tell it on."""
        told, self._told = self._told, []

        if told:
            await self.ledger.record_runs(
                [(run.row, run.attempt, s if s.finished else s.status or "") for run, s in told]
            )

        for _, status in told:
            self._emit(events.RunEnded(status))

            if self._unread is not None:
                self._unread.put_nowait(status)

    # One question.

    async def _work_on(self, target: _Target, waiting: _Waiting) -> None:
        throttle, run = target.throttle, waiting.run

        try:
            status = await target.client.query_run_status(run.job_run_id)
        except errors.CredentialsRefused as exc:
            self._act(throttle.stop(StopReason.CREDENTIALS, str(exc)))
        except (errors.NotSent, errors.Throttled, errors.Redirected) as exc:
            heappush(target.due, waiting)
            self._act(throttle.held_back(exc, self.clock.now()))
        except errors.Rejected as exc:  # this watch asks about it no more
            throttle.responded()
            refused = RunStatus(run.job_id, run.job_run_id, finished=False, success=False)
            self._told.append((run, refused._replace(status=str(exc), key=run.key)))
        except errors.DesError as exc:  # no run is to blame for it
            self._ask_later(target, waiting)
            self._act(throttle.held_back(exc, self.clock.now()))
        except asyncio.CancelledError:
            pass  # the next watch asks about it
        except Exception as exc:  # noqa: BLE001  # it ends the watch, once all slots ended
            self._fail(exc)
        else:
            throttle.started()

            if status.finished:
                self._told.append((run, status._replace(key=run.key)))
            else:
                self._ask_later(target, waiting)
        finally:
            throttle.in_flight -= 1
            self._news.set()

    def _ask_later(self, target: _Target, waiting: _Waiting) -> None:
        """Let a run be asked about again, after a longer wait than before."""
        longer = min(GROWTH * waiting.wait, self.settings.max_interval)
        wait = max(self.settings.interval, longer)
        # Runs that were started together would be asked about together for ever.
        due = self.clock.now() + self.rng.uniform(0.9 * wait, wait)
        heappush(target.due, waiting._replace(due=due, wait=wait))
