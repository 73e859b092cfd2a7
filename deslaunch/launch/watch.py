"""The loop of a watch: query the status of each run until it has finished.

Runs wait in a heap of due times, without a task each. Each wait is half as long again as the one
before, so that a run's end is noticed late by at most about half of its duration. A 5XX, a lost
connection or an unusable response pauses the target. A status is in the ledger before its event.
The next watch asks only about runs that have not finished.
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
from deslaunch.model import RunStatus, Sent, count, place_word, printed

GROWTH: Final = 1.5
"""Ratio of each wait for a run to the one before."""


class _Waiting(NamedTuple):
    """A run to ask about: when it is due, the seconds waited before (0 at first), the run."""

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
    """One watch of a batch's runs; iterate over it for the status of each run that ended.

    Each run's target must have a client.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._rotation = deque(self.clients)
        self._targets = {
            name: _Target(client, self._throttle(name)) for name, client in self.clients.items()
        }
        self._after_row: int | None = 0  # the last row read; None: all were read
        self._to_record: list[tuple[RunToAsk, RunStatus]] = []  # finished, or refused by DES
        self._unread: asyncio.Queue[RunStatus | None] | None = None  # where somebody iterates

    # Called by the batch.

    async def run(self, *, allow_partial: bool = False) -> events.WatchSummary:
        """Ask about all runs until they have finished, or the watch stops early: see ``stops``.

        Cancelled, it ends at once: a query may be repeated.

        Args:
            allow_partial: return the summary even if runs have not finished.

        Raises:
            Unfinished: runs had not finished when the watch ended.
            LedgerWriteFailed: a status could not be recorded.
            Exception: raised by a listener or a faulty client.
        """
        began = self.clock.now()
        self.ledger.on_wait = lambda text: self._emit(events.Noted(text, is_warning=True))
        self.ledger.wait_up_to(self.settings.give_up_after)

        if (seconds := self.settings.watch_timeout) is not None:
            stop = Stop(StopReason.OUT_OF_TIME, f"--watch-timeout {seconds:g} was reached")
            self._workers.help(self._after(seconds, partial(self.drain, stop)))

        try:
            await self._read_on()

            while not self._is_over():
                now = self.clock.now()

                while self._ask_next(now):
                    await self._read_on()

                await self._wait_for_news(self._next_time(now))
                self._news.clear()  # first, so that a response during the record is news again
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
                hint=f"watch again: {printed('watch', place_word(self.ledger.place))}",
            )

        return summary

    async def __aiter__(self) -> AsyncIterator[RunStatus]:
        """Watch, and yield the status of each run that ended; a slow consumer slows the queries.

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
        """End the watch, and give up the queries in flight: they may be repeated."""
        if stop is not None:
            self._note_stop(stop)
            self.ledger.give_up(at_once=True)

        self._is_draining = True
        self._workers.cancel_busy()
        self._news.set()

    # The loop.

    def _busy(self) -> int:
        """Return how many runs are being asked about, or have an unrecorded status."""
        return len(self._to_record) + sum(one.throttle.in_flight for one in self._targets.values())

    def _waiting(self) -> list[_Target]:
        """Return the targets that have runs to ask about, and have not stopped."""
        targets = self._targets.values()
        return [one for one in targets if one.due and not one.throttle.is_stopped]

    def _is_over(self) -> bool:
        is_read = self._after_row is None
        return not self._busy() and (self._is_draining or (is_read and not self._waiting()))

    async def _read_on(self) -> None:
        """Read more runs, once each of those read was asked about."""
        while self._after_row is not None and all(one.due[0].wait for one in self._waiting()):
            runs = await self.ledger.runs_to_ask(self._after_row)
            self._after_row = runs[-1].row if runs else None

            for run in runs:
                target = self._targets[run.target]

                if not target.throttle.is_stopped:
                    heappush(target.due, _Waiting(-math.inf, 0.0, run))

    def _ask_next(self, now: float) -> bool:
        """Ask about a run that is due, and return True; the targets take turns."""
        busy = self._busy() + (self._unread.qsize() if self._unread else 0)
        has_room = busy < self.settings.concurrency and self._pacer.allowed(now) >= 1

        if self._is_draining or not has_room:
            return False

        for _ in range(len(self._rotation)):
            self._rotation.rotate(-1)
            target = self._targets[self._rotation[0]]
            target.throttle.reopen(now)  # the query is the probe

            if target.due and target.due[0].due <= now and target.throttle.room(now) > 0:
                target.throttle.in_flight += 1
                self._pacer.take(1)
                self._workers.put(self._ask(target, heappop(target.due)), Sent())
                return True

        return False

    def _next_time(self, now: float) -> float:
        """Return when a run is due next; infinity: only news can tell."""
        opens = self._pacer.opens_at(now)
        times = [
            max(one.due[0].due, now + (one.throttle.rest(now) or 0.0), opens)
            for one in self._waiting()
        ]
        return min((time for time in times if time > now), default=math.inf)

    async def _record(self) -> None:
        """Record the runs that ended, then report them."""
        ended, self._to_record = self._to_record, []

        if ended:
            await self.ledger.record_runs(
                [(run.row, run.attempt, s if s.finished else s.status or "") for run, s in ended]
            )

        for _, status in ended:
            self._emit(events.RunEnded(status))

            if self._unread is not None:
                self._unread.put_nowait(status)

    # One query.

    async def _ask(self, target: _Target, waiting: _Waiting) -> None:
        throttle, run = target.throttle, waiting.run

        try:
            status = await target.client.query_run_status(run.job_run_id)
        except errors.CredentialsRefused as exc:
            self._act(throttle.stop(StopReason.CREDENTIALS, str(exc)))
        except (errors.NotSent, errors.Throttled, errors.Redirected) as exc:
            heappush(target.due, waiting)
            self._act(throttle.held_back(exc, self.clock.now()))
        except errors.Rejected as exc:  # this watch does not ask again
            throttle.responded()
            refused = RunStatus(run.job_id, run.job_run_id, finished=False, success=False)
            self._to_record.append((run, refused._replace(status=str(exc), key=run.key)))
        except errors.DesError as exc:  # not the run's fault
            self._ask_later(target, waiting)
            self._act(throttle.held_back(exc, self.clock.now()))
        except asyncio.CancelledError:
            pass  # the next watch asks about it
        except Exception as exc:  # noqa: BLE001  # a faulty client ends the watch
            self._fail(exc)
        else:
            throttle.started()

            if status.finished:
                self._to_record.append((run, status._replace(key=run.key)))
            else:
                self._ask_later(target, waiting)
        finally:
            throttle.in_flight -= 1
            self._news.set()

    def _ask_later(self, target: _Target, waiting: _Waiting) -> None:
        """Ask about a run again, after a longer wait than before."""
        longer = min(GROWTH * waiting.wait, self.settings.max_interval)
        wait = max(self.settings.interval, longer)
        # Without jitter, runs started together would always be asked about together.
        due = self.clock.now() + self.rng.uniform(0.9 * wait, wait)
        heappush(target.due, waiting._replace(due=due, wait=wait))
