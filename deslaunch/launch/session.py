"""The loop of a launch: claim rows, send them, record their outcomes.

Each turn of the loop is one durable transaction, ``await ledger.exchange(outcomes, claims)``: it
writes the outcomes that came in, claims rows for the free slots, and returns only what it
committed. So an intent is on disk before the first byte of its POST leaves, an outcome is on disk
before its event, and a kill leaves at most *slots* rows in doubt. While one turn commits,
responses come in for the next.

:mod:`~deslaunch.launch.retry` decides what a response means, :mod:`~deslaunch.launch.target` when
a target may be sent to. Rows that wait for a retry are in the ledger: they hold no slot.
"""

import asyncio
import math
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from http import HTTPStatus
from typing import Final

from deslaunch import errors, events
from deslaunch.des.client import DesClient
from deslaunch.events import Control, Event, Stop, StopReason, TargetPaused
from deslaunch.launch.loop import SHORTEST_SLEEP, Loop, fit_slots, note_of
from deslaunch.launch.retry import broken_off, ended, verdict, wait_after
from deslaunch.launch.target import Health, Lanes, Pacer, Throttle
from deslaunch.ledger.ledger import Lane
from deslaunch.model import END_STATES, Outcome, Result, RowState, Sent, Start, count
from deslaunch.settings import Deadline, JobLimit

RECORD_FOR: Final = 60.0
"""Seconds for which outcomes are retried at a failed ledger, once no row is in flight."""

PULSE_EVERY: Final = 1.0
"""Seconds between two events that report progress."""

LOOK_EVERY: Final = 1.0
"""Seconds between two looks at ``deslaunch control``, and at the ledger's file."""

LOSE_DEAD_EVERY: Final = 10.0
"""Seconds between two looks at whether other launchers of a shared batch are alive."""

QUIET_PASSES: Final = 4
"""Passes of the event loop without a new outcome, after which a turn begins."""

LONGEST_GATHERING: Final = 3
"""Longest time to gather outcomes for a turn, in durations of the turn before."""

TIME_OF_A_ROW: Final = 50e-6
"""About the seconds that the loop needs to send a row and to take its response."""

_ROUNDING: Final = 0.002  # the ledger's times are whole milliseconds


@dataclass(slots=True)
class _Target:
    """The state of one target in a session.

    Attributes:
        refused: rows whose last attempt was refused with 401.
        is_resting: a task waits for the end of its pause.
        generation: of the newest token whose renewal was reported.
    """

    client: DesClient
    throttle: Throttle
    health: Health
    refused: set[int] = field(default_factory=set)
    is_resting: bool = False
    generation: int = 0


@dataclass(eq=False, repr=False)
class Session(Loop):
    """One session of a batch, from ``Ledger.begin_session`` on.

    Attributes:
        due: seconds until each lane's first row may be claimed; None: it has no rows.
        limits: of single jobs, by jobId.
        deadlines: when to stop sending.
        unrecorded: (key, jobRunId) of runs whose outcome could not be written.
        started_now: rows started in this session.
        claimed: intents written in this session.
        is_held_back: returns True while no row may be claimed; call :meth:`wake` when that ends.
    """

    due: Mapping[Lane, float | None]
    limits: Mapping[str, JobLimit] = field(default_factory=dict)
    deadlines: tuple[Deadline, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.unrecorded: list[tuple[str, str]] = []
        self.started_now = 0
        self.claimed = 0
        self.is_held_back: Callable[[], bool] = lambda: False
        self._targets = {
            name: _Target(client, self._throttle(name), Health(self.settings.error_limit))
            for name, client in self.clients.items()
        }
        throttles = {name: target.throttle for name, target in self._targets.items()}
        self._lanes = Lanes(throttles, self.limits)
        self._outcomes: list[Outcome] = []  # for the next turn
        self._turn_took = 0.0
        self._open = 0  # rows with an intent on disk and no outcome
        self._announcements: list[Event] = []  # events to note in the ledger, then to emit
        self._is_feeding = False
        self._drain_ends: float | None = None
        self._ended = 0
        self._again: list[float] = []  # due times of retries; kept only with --limit
        self._failing_since: float | None = None
        self._is_kept_waiting = False  # by the ledger; that was reported
        self._is_abandoned = False
        self._clocks: dict[str, float] = {}
        self._control = Control()
        self._slots = self.settings.concurrency
        self._lanes.set_due(self.due, self.clock.now())

    # Called by the batch.

    async def run(self) -> None:
        """Send all rows that may be sent; return when the last outcome is durable.

        Returns early after :meth:`drain`, :meth:`abandon`, or when every target stopped: see
        ``stops``; the rows that were not sent are pending. To end it, call drain, not cancel.

        Raises:
            Exception: raised by a listener or a faulty client, once all rows in flight have ended
                and are recorded.
        """
        self.ledger.on_wait = self._report_wait
        self._workers.help(self._every(PULSE_EVERY, self._pulse))
        self._workers.help(self._every(LOOK_EVERY, self._follow_control))
        self._workers.help(self._every(LOOK_EVERY, self._check_place))

        if self.ledger.is_shared:
            self._workers.help(self._every(LOSE_DEAD_EVERY, self._lose_dead))

        try:
            self._check_deadlines()  # a person may have confirmed the plan late
            await self._follow_control()

            while not self._is_over():
                await self._gather()
                self._news.clear()
                now = self.clock.now()
                claims = self._claims(now)

                if self._announcements:
                    await self._emit_announced()
                elif claims or self._outcomes:
                    await self._turn(claims)
                else:
                    await self._wait_for_news(self._next_time(now))
        finally:
            await self._workers.aclose()

        if self._error is not None:
            raise self._error

    def drain(self, stop: Stop | None = None) -> None:
        """Send nothing new; wait ``drain_seconds`` for responses, then abandon.

        Rows that still wait for a token, a name or a connection are pending again.
        """
        if stop is not None:
            self._note_stop(stop)

        if self._is_draining:
            return

        if self._is_kept_waiting and stop is not None and stop.signal:  # announcements wait, too
            text = "outcomes are recorded as soon as the ledger can be written"
            self._emit(events.Noted(f"{text}; a second signal ends the wait"))

        seconds = self.settings.drain_seconds
        self._is_draining = True
        self._drain_ends = self.clock.now() + seconds
        left = self._workers.cancel_busy(unsent_only=True)
        self._announce(events.Draining(left, seconds))
        self._workers.help(self._after(seconds, partial(self.abandon, at_once=False)))

    def abandon(self, *, at_once: bool = True) -> None:
        """Give up the rows in flight, and the wait for a ledger that can't be written.

        Args:
            at_once: don't retry for a minute to record the outcomes that came in.
        """
        self._is_abandoned = at_once
        super().abandon()
        self.ledger.give_up(at_once=at_once)

    def stop_unchecked(self, target: str, error: errors.DeslaunchError) -> None:
        """Stop a target whose jobs could not be fetched; its unchecked rows stay pending."""
        match error:
            case errors.CredentialsRefused():
                reason = StopReason.CREDENTIALS
            case errors.Misconfigured() | errors.Rejected() | errors.SchemaError():
                reason = StopReason.CONFIGURATION
            case _:
                reason = StopReason.UNREACHABLE

        self._act(self._targets[target].throttle.stop(reason, str(error)))

    def feed(self, *, goes_on: bool, targets: Collection[str] = ()) -> None:
        """Note that a program adds rows while the session runs.

        Args:
            goes_on: more may come, so that the session does not end.
            targets: targets with new rows.
        """
        self._is_feeding = goes_on

        for name in targets:
            self._lanes.add_rows(name, self.clock.now())

        self._news.set()

    def is_idle(self) -> bool:
        """Return True if no row is in flight, or left to claim, as far as the ledger told."""
        return not self._open and not self._lanes.has_rows()

    def wake(self) -> None:
        """Check again whether rows may be claimed."""
        self._news.set()

    async def note_clocks(self) -> None:
        """Write each target's clock offset to the ledger, if one changed by more than 1 s."""
        offsets = {name: s for name, c in self.clients.items() if (s := c.clock_offset) is not None}

        if any(abs(s - self._clocks.get(name, math.inf)) > 1 for name, s in offsets.items()):
            self._clocks = offsets

            with suppress(errors.LedgerError):  # the next turn fails, too
                await self.ledger.set_clocks(offsets)

    # The loop.

    def _is_over(self) -> bool:
        if self._open or self._announcements:
            return False

        if self._is_draining:
            return True

        if not self._lanes.has_rows() and not self._is_feeding:
            return True

        if (limit := self.settings.limit) is not None and self._ended >= limit:
            self._is_draining = True
            text = f"the limit of {count(limit, 'row')} is reached"
            self._note_stop(Stop(StopReason.LIMIT, text))

        return False

    async def _gather(self) -> None:
        """Wait for outcomes that are about to come in: one turn instead of several.

        If responses are instant, one turn gets the outcomes of all slots: a sync serves more rows,
        and the loop and the ledger's thread do not interrupt each other, which would cost a launch
        a sixth of its processor time. If responses are slow, no slot waits for the others. If the
        disk is slower than the loop needs for all slots, wait for all: otherwise many rows would
        wait for the sync of a turn of few.
        """
        quiet, now = 0, self.clock.now
        began, took = now(), self._turn_took
        patience = took / 2 if self._open * TIME_OF_A_ROW < took / 2 else 0.0

        while len(self._outcomes) < self._open and now() <= began + LONGEST_GATHERING * took:
            before = len(self._outcomes)

            if quiet < QUIET_PASSES:
                await asyncio.sleep(0)
            elif before and now() + SHORTEST_SLEEP < began + patience:
                await self.clock.sleep(SHORTEST_SLEEP)
            else:
                break

            quiet = quiet + 1 if len(self._outcomes) == before else 0

    def _claims(self, now: float) -> dict[Lane, int]:
        """Return how many rows may be claimed now, by lane."""
        if self._is_draining or self._control.is_paused or self.is_held_back():
            return {}

        # The rows whose outcomes this turn writes give their slots back.
        slots = max(0, self._slots - self._open + len(self._outcomes))
        free = min(slots, self._pacer.allowed(now))

        if (limit := self.settings.limit) is not None:
            while self._again and self._again[0] <= now:
                heappop(self._again)

            free = min(free, limit - self._ended - self._open - len(self._again))

        return self._lanes.claims(free, now)

    def _next_time(self, now: float) -> float:
        """Return when the next row may be claimed without news; infinity: only after news."""
        lanes = self._lanes.next_time(now, self._pacer.opens_at(now))
        return min([lanes, *(time for time in self._again[:1] if time > now)])

    async def _turn(self, claims: Mapping[Lane, int]) -> None:
        """Record the outcomes that came in, claim rows, and send them."""
        outcomes, self._outcomes = self._outcomes, []
        epochs = {name: target.throttle.epoch for name, target in self._targets.items()}
        began = self.clock.now()

        try:
            exchange = await self.ledger.exchange(outcomes, claims)
        except Exception as exc:  # noqa: BLE001  # the outcomes must not be lost
            self._outcomes[:0] = outcomes
            await self._survive(exc)
            return

        self._is_kept_waiting = False
        self._open += len(exchange.starts) - len(outcomes)
        self.claimed += len(exchange.starts)
        self._pacer.take(len(exchange.starts))
        now = self.clock.now()
        self._turn_took = now - began

        self._lanes.set_due(exchange.due, now)

        for sent, settled in zip(outcomes, exchange.outcomes, strict=True):
            self._settle(sent, settled, now)

        for start in exchange.starts:
            self._lanes.take(start)
            mark = Sent()
            self._workers.put(self._attempt(start, epochs[start.target], mark), mark)

    def _settle(self, sent: Outcome, settled: Outcome, now: float) -> None:
        """Report an outcome that is durable; stop its target if its health demands it."""
        target = self._targets[settled.target]
        result = settled.result or Result.UNKNOWN

        if result not in END_STATES:
            self._plan_retry(target, settled, now)
            return

        self._ended += 1
        self.started_now += result is Result.STARTED

        if sent.result is Result.STARTED and result is Result.UNKNOWN:
            text = (
                f"row {settled.key!r}: DES returned jobRunId {settled.job_run_id}, which another "
                "row has already; the row is unknown"
            )
            target.client.stop_reusing(text)
            self._announce(events.Noted(text, is_warning=True))

        self._emit(events.RowEnded(settled))
        why = target.health.ended(settled, result)

        if why is None or target.throttle.is_stopped or self._is_draining:
            return

        reason, message = why
        status: int | None = None

        if reason is StopReason.CONFIGURATION:  # the rows that were refused are pending again
            self._outcomes += [
                refused._replace(result=Result.THROTTLED, state=RowState.PENDING, not_before=0.0)
                for refused in target.health.forbidden
            ]
            self._open += len(target.health.forbidden)
            status = HTTPStatus.FORBIDDEN

        self._act(target.throttle.stop(reason, message, status=status))

    def _plan_retry(self, target: _Target, outcome: Outcome, now: float) -> None:
        """Note when a row may be sent again."""
        seconds = outcome.not_before or 0.0
        target.throttle.expect(now + seconds + _ROUNDING)

        if self.settings.limit is not None:
            heappush(self._again, now + seconds + _ROUNDING)

        goes_on = not (self._is_draining or target.throttle.is_stopped)

        if outcome.result is Result.RETRY and goes_on:
            self._emit(events.RetryPlanned(outcome, seconds))

    # Failures of the ledger.

    async def _survive(self, error: Exception) -> None:
        """Drain, and wait 1 s before the failed turn is retried; give it up after a minute."""
        now = self.clock.now()

        if not isinstance(error, errors.LedgerError):
            self._error = self._error or error

        if not any(stop.reason is StopReason.LEDGER for stop in self.stops):
            self.drain(Stop(StopReason.LEDGER, str(error)))

        if self._failing_since is None or self._workers.busy:
            self._failing_since = now

        # A database that lost commits must not be written to: a person has to decide.
        is_over = isinstance(error.__cause__, errors.LedgerDamaged | errors.LedgerForeign)
        is_over |= self._is_abandoned or now - self._failing_since >= RECORD_FOR

        if is_over and not self._workers.busy:
            self.unrecorded += [(o.key, o.job_run_id) for o in self._outcomes if o.job_run_id]
            self._outcomes.clear()
            self._open = 0
        else:
            await self._emit_announced()
            await self.clock.sleep(1.0)

    # One attempt.

    async def _attempt(self, start: Start, epoch: int, sent: Sent) -> None:
        """Send a row whose intent is on disk, unless its target was paused or stopped meanwhile."""
        target = self._targets[start.target]

        try:
            if self._is_draining or target.throttle.epoch != epoch:
                outcome = broken_off(start, sent)
            else:
                try:
                    run = await target.client.start(start, sent)
                except (errors.DesError, errors.CredentialsRefused) as exc:
                    outcome = self._judge(target, start, exc)
                else:
                    target.throttle.started()
                    target.refused.discard(start.row)
                    outcome = ended(start, Result.STARTED, job_run_id=run.job_run_id)
        except asyncio.CancelledError:
            outcome = broken_off(start, sent)
        except Exception as exc:  # noqa: BLE001  # a bug must not lose the row
            self._fail(exc)
            outcome = broken_off(start, sent, f"failed with {type(exc).__name__}: {exc}")

        self._lanes.give_back(start)
        self._outcomes.append(outcome)
        self._news.set()

    def _judge(
        self, target: _Target, start: Start, error: errors.DesError | errors.CredentialsRefused
    ) -> Outcome:
        """Return the outcome of an attempt that started no run; update its target's throttle."""
        if isinstance(error, errors.Unauthorized):
            return self._refuse_token(target, start, error)

        result = verdict(error, start, self.settings)
        result, decided = target.throttle.take(error, result, self.clock.now())
        target.refused.discard(start.row)
        self._act(decided)
        wait = 0.0

        if result is Result.RETRY and isinstance(error, errors.DesError):
            failures, most = start.retries + 1, self.settings.max_wait
            wait = wait_after(failures, most, self.rng, error.retry_after)

        return ended(start, result, error, wait)

    def _refuse_token(self, target: _Target, start: Start, error: errors.Unauthorized) -> Outcome:
        """Hold the target until the token is renewed; stop it if the new one was refused, too."""
        throttle = target.throttle
        throttle.responded(final=False)

        if start.row in target.refused:
            message = "DES refused the new token as well"
            self._act(throttle.stop(StopReason.CREDENTIALS, message))
        elif not self._is_draining and not throttle.is_stopped:
            target.refused.add(start.row)
            throttle.hold()
            self._workers.help(self._renew(target, error))

        return ended(start, Result.THROTTLED, error)

    async def _renew(self, target: _Target, refused: errors.Unauthorized) -> None:
        """Renew a target's token; stop the target if that is refused."""
        try:
            await target.client.renew(refused)
        except errors.CredentialsRefused as exc:
            self._act(target.throttle.stop(StopReason.CREDENTIALS, str(exc)))
        except errors.NotSent:
            pass  # the next row fails likewise, and pauses the target
        except Exception as exc:  # noqa: BLE001  # a fault of the client ends the session
            self._fail(exc)
        else:
            if refused.generation > target.generation:  # reported once, however many rows waited
                target.generation = refused.generation
                self._announce(events.TokenRenewed(target.throttle.target))
        finally:
            target.throttle.release()
            self._news.set()

    # Pauses.

    def _act(self, decided: TargetPaused | Stop | None) -> None:
        super()._act(decided)

        if isinstance(decided, TargetPaused):
            target = self._targets[decided.target]

            if not self._is_draining and not target.is_resting:
                target.is_resting = True
                self._workers.help(self._rest(target))
        elif decided and all(t.throttle.is_stopped for t in self._targets.values()):
            self.drain()

    async def _rest(self, target: _Target) -> None:
        """Wait until a pause is over, however often prolonged, and a probe gets a response."""
        throttle = target.throttle

        try:
            while (rest := throttle.rest(self.clock.now())) is not None:
                if rest:  # a timer may fire early, and the pause may grow meanwhile
                    await self.clock.sleep(max(rest, SHORTEST_SLEEP))
                    continue

                try:
                    await target.client.probe()
                except errors.DesError as exc:
                    self._act(throttle.held_back(exc, self.clock.now(), is_probe=True))
                else:
                    throttle.reopen(self.clock.now())
        except Exception as exc:  # noqa: BLE001  # a fault of the client ends the session
            self._fail(exc)
        finally:
            target.is_resting = False
            self._news.set()

    async def _pulse(self) -> None:
        """Report progress, and check the deadlines; never waits for the ledger."""
        slots = sum(target.throttle.open_slots for target in self._targets.values())
        ends, is_paused = self._drain_ends, self._control.is_paused
        left = None if ends is None else max(0.0, ends - self.clock.now())
        most = 0 if is_paused else min(slots, self._slots)
        self._emit(events.Pulse(self._workers.busy, most, left, is_paused))
        self._check_deadlines()

    def _check_deadlines(self) -> None:
        passed = [deadline.option for deadline in self.deadlines if deadline.left() <= 0]

        if passed and not self._is_draining:
            self.drain(Stop(StopReason.OUT_OF_TIME, f"{passed[0]} was reached"))

    async def _check_place(self) -> None:
        """Drain if the ledger's file was removed or replaced."""
        if not self._is_draining and not await self.ledger.is_in_place():
            message = "the ledger's file was removed or replaced during the launch"
            self.drain(Stop(StopReason.LEDGER, message))

        await self.note_clocks()

    async def _follow_control(self) -> None:
        """Apply what ``deslaunch control`` asks for, if it changed."""
        with suppress(errors.LedgerError):  # the next turn fails, too
            control = await self.ledger.control()

            if control != self._control:
                self._apply(control)

    def _apply(self, control: Control) -> None:
        before, self._control = self._control, control
        self._slots, lack = fit_slots(control.concurrency or self.settings.concurrency)

        if lack:
            self._emit(events.Noted(lack, is_warning=True))

        if control.rate != before.rate:
            self._pacer = Pacer(control.rate or self.settings.rate)

        for name, target in self._targets.items():
            target.throttle.resize(self._slots_of(name, self._slots))

        if control.is_stopped and not self._is_draining:
            self.drain(Stop(StopReason.CONTROL, "deslaunch control stop was run"))
        else:
            self._emit(events.Noted(f"deslaunch control: {str(control) or 'go on'}"))

        self._news.set()

    async def _lose_dead(self) -> None:
        """Set rows that dead launchers of the batch had in flight to unknown."""
        with suppress(errors.LedgerError):  # the next turn fails, too
            await self.ledger.lose_dead()

    def _report_wait(self, text: str) -> None:
        self._is_kept_waiting = True
        self._emit(events.Noted(text, is_warning=True))

    # Events.

    def _announce(self, event: Event) -> None:
        """Emit an event once it is noted in the ledger."""
        self._announcements.append(event)
        self._news.set()

    async def _emit_announced(self) -> None:
        announcements, self._announcements = self._announcements, []

        for event in announcements:
            if note := note_of(event):
                with suppress(errors.LedgerError):  # the next turn fails, too
                    await self.ledger.note(*note)

            self._emit(event)
