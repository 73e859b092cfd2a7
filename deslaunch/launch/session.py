"""One launcher at work: rows are claimed, sent, and given back with what became of them.

One loop. A turn of it hands over the outcomes that came in and takes the rows that may be sent
next, by ``await ledger.exchange(outcomes, claims)``: one durable transaction, which returns only
what it committed. So by construction an intent is on disk before the first byte of its POST
leaves, an outcome before anybody is told, and a kill leaves at most *slots* rows in doubt,
because a turn never claims more than the free slots. While one turn commits, responses come in
for the next.

:mod:`~deslaunch.launch.retry` says what a response means, :mod:`~deslaunch.launch.target` when a
target may be sent to; the ledger keeps the rows that wait, so that none holds a slot or memory.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from contextlib import suppress
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Final

from deslaunch import events
from deslaunch.errors import CredentialsRefused, DesError, LedgerError, NotSent, Unauthorized
from deslaunch.launch.loop import SHORTEST_SLEEP, Loop, Workers, wait_for_news
from deslaunch.launch.retry import ended, retry_wait, verdict
from deslaunch.launch.target import Health, Pacer, Pause, Throttle
from deslaunch.model import Outcome, Result, RowState, Sent, count

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from deslaunch.des.client import DesClient
    from deslaunch.events import Event
    from deslaunch.launch.loop import Clock
    from deslaunch.launch.retry import Jitter
    from deslaunch.ledger.ledger import Ledger
    from deslaunch.model import Start
    from deslaunch.settings import Settings

RECORD_FOR: Final = 60.0
"""Seconds that outcomes are offered to a ledger that fails, once none is awaited any more."""

PULSE_EVERY: Final = 1.0
"""Seconds between two events that say how a session is getting on."""

_ROUNDING: Final = 0.002  # the ledger's times are whole milliseconds


class _Target:
    """What a session knows of one target.

    Attributes:
        due: when its next row may be claimed, by the session's clock; infinity: there is none.
        refused: rows whose last attempt met a refused token.
        is_resting: a pause is being sat out.
        generation: of the newest token that a renewal was told for.
    """

    __slots__ = ("client", "due", "generation", "health", "is_resting", "refused", "throttle")

    def __init__(self, client: DesClient, throttle: Throttle, health: Health) -> None:
        self.client = client
        self.throttle = throttle
        self.health = health
        self.due = math.inf
        self.refused: set[int] = set()
        self.is_resting = False
        self.generation = 0


class Session(Loop):
    """One session of a batch.

    Args:
        ledger: a session of it has begun.
        due: seconds until each target's first row may be claimed; None: it has none.
        clients: by target.
        settings: slots, waits and limits.
        emit: called with each event, after what it tells of is on disk.
        clock: time; it need not be the ledger's.
        rng: the source of jitter.

    Attributes:
        stops: why targets, or the session, ended early, in the order of happening.
        unrecorded: (key, jobRunId) of runs whose outcome could not be written.
        started_now: rows that were started.
        is_held_back: returns True while nothing is to be claimed; :meth:`wake` when that ends.
    """

    def __init__(
        self,
        ledger: Ledger,
        due: Mapping[str, float | None],
        clients: Mapping[str, DesClient],
        settings: Settings,
        *,
        emit: Callable[[Event], object],
        clock: Clock,
        rng: Jitter,
    ) -> None:
        super().__init__(settings, emit, clock, rng)
        self.unrecorded: list[tuple[str, str]] = []
        self.started_now = 0
        self.is_held_back: Callable[[], bool] = lambda: False
        self._ledger = ledger
        self._pacer = Pacer(settings.rate)
        self._targets = {name: self._target(name, client) for name, client in clients.items()}
        self._rotation = deque(self._targets)
        self._outcomes: list[Outcome] = []  # of rows that came back since the last turn began
        self._open = 0  # rows whose intent is on disk and whose outcome is not
        self._workers: Workers[tuple[Start, int]] = Workers(self._send)
        self._announcements: list[tuple[Event, str, str | None, str]] = []
        self._is_feeding = False
        self._is_draining = False
        self._drain_ends: float | None = None
        self._ended = 0
        self._again: list[float] = []  # when rows that wait for a retry are due; with a limit
        self._failing_since: float | None = None
        self._clocks: dict[str, float] = {}
        self._set_due(due)

    def __repr__(self) -> str:
        state = "draining" if self._is_draining else "at work"
        return f"<Session {state}: {self._workers.busy} in flight>"

    def _target(self, name: str, client: DesClient) -> _Target:
        health = Health(self._settings.error_limit)
        return _Target(client, self._throttle(name, client), health)

    # What the batch calls.

    def pulse(self) -> events.Pulse:
        """Return how the session is getting on."""
        slots = sum(target.throttle.open_slots for target in self._targets.values())
        left = None if self._drain_ends is None else self._drain_ends - self._clock.now()
        return events.Pulse(
            in_flight=self._workers.busy,
            slots=min(slots, self._settings.concurrency),
            drain=None if left is None else max(0.0, left),
        )

    async def run(self) -> None:
        """Send all rows that may be sent; return when the last outcome is durable.

        Returns early after :meth:`drain`, :meth:`abandon`, or when every target stopped:
        ``stops`` says why, and what was not sent is pending. Don't cancel it; drain it.

        Raises:
            Exception: whatever a listener or a faulty client raised, once all rows in flight have
                ended and are recorded.
        """
        self._ledger.on_wait = self._tell_wait
        self._workers.help(self._beat())

        try:
            while not self._is_over():
                self._news.clear()
                now = self._clock.now()
                claims = self._claims(now)

                if self._announcements:
                    await self._announce()
                elif claims or self._outcomes:
                    await self._turn(claims)
                else:
                    await wait_for_news(self._news, self._clock, self._next_time(now))
        finally:
            await self._workers.aclose()

        if self._error is not None:
            raise self._error

    def drain(self, stop: events.Stop | None = None) -> None:
        """Send nothing new; rows in flight get ``drain_seconds`` for their responses."""
        if stop is not None:
            self._note_stop(stop)

        if self._is_draining:
            return

        seconds = self._settings.drain_seconds
        self._is_draining = True
        self._drain_ends = self._clock.now() + seconds
        self._plan(events.Draining(self._workers.busy, seconds), "", None, "")
        self._workers.help(self._abandon_after(seconds))
        self._news.set()

    def abandon(self) -> None:
        """Give up the rows in flight: those of which a byte may have left become unknown."""
        self.drain()
        self._workers.cancel_busy()

    def stop(self, target: str, reason: events.StopReason, message: str) -> None:
        """End one target; its rows stay pending, the other targets go on."""
        self._stop(self._targets[target].throttle.stop(reason, message))

    def feed(self, *, goes_on: bool, targets: Collection[str] = ()) -> None:
        """Tell that a program adds rows while the session is at work.

        Args:
            goes_on: more may come, so that the session does not end.
            targets: those that have new rows.
        """
        self._is_feeding = goes_on

        for name in targets:
            self._targets[name].due = -math.inf

        self._news.set()

    def wake(self) -> None:
        """Look again whether rows may be claimed."""
        self._news.set()

    async def note_clocks(self) -> None:
        """Write by how much each target's clock is ahead, where that is new."""
        clients = {name: target.client for name, target in self._targets.items()}
        offsets = {n: c.clock_offset for n, c in clients.items() if c.clock_offset is not None}
        known = self._clocks

        if any(name not in known or abs(new - known[name]) > 1 for name, new in offsets.items()):
            self._clocks = offsets

            with suppress(LedgerError):  # a turn will fail too, and end the launch
                await self._ledger.set_clocks(offsets)

    # The loop.

    def _is_over(self) -> bool:
        if self._open or self._announcements:
            return False

        if self._is_draining:
            return True

        targets = self._targets.values()
        is_left = any(t.due < math.inf and not t.throttle.is_stopped for t in targets)

        if self._settings.limit is not None and self._ended >= self._settings.limit:
            if is_left or self._is_feeding:
                text = f"the limit of {count(self._settings.limit, 'row')} is reached"
                self._is_draining = True
                self._note_stop(events.Stop(events.StopReason.LIMIT, text))
                return False

            return True

        return not is_left and not self._is_feeding

    def _left(self, now: float) -> float:
        """Return how many rows ``--limit`` still lets begin."""
        if self._settings.limit is None:
            return math.inf

        while self._again and self._again[0] <= now:
            heappop(self._again)

        return self._settings.limit - self._ended - self._open - len(self._again)

    def _claims(self, now: float) -> dict[str, int]:
        """Return how many rows may be claimed now, by target; the targets take turns."""
        if self._is_draining or self.is_held_back():
            return {}

        # A row whose outcome goes into this very turn gives its slot back.
        slots = self._settings.concurrency - self._open + len(self._outcomes)
        free = int(min(slots, self._pacer.allowed(now), self._left(now)))
        claims = {}

        for name in self._rotation:
            target = self._targets[name]
            wanted = min(free, target.throttle.room(now)) if target.due <= now else 0

            if wanted > 0:
                claims[name] = wanted
                free -= wanted

        if claims:
            self._rotation.rotate(-1)

        return claims

    def _next_time(self, now: float) -> float | None:
        """Return when time alone lets a row be claimed; None where only news can."""
        times = [
            time
            for target in self._targets.values()
            if target.throttle.open_slots > target.throttle.in_flight
            and (time := max(target.due, target.throttle.opens_at(now), self._pacer.opens_at(now)))
            > now
        ]
        times += [time for time in self._again[:1] if time > now]
        return min(times, default=math.inf) if times and min(times) < math.inf else None

    async def _turn(self, claims: Mapping[str, int]) -> None:
        """Record what came in, and send what the ledger lets have."""
        outcomes, self._outcomes = self._outcomes, []
        epochs = {name: self._targets[name].throttle.epoch for name in claims}

        try:
            exchange = await self._ledger.exchange(outcomes, claims)
        except Exception as exc:  # noqa: BLE001  # whatever it is, the outcomes must not be lost
            self._outcomes[:0] = outcomes
            await self._offer_again(exc)
            return

        self._open += len(exchange.starts) - len(outcomes)
        self._pacer.take(len(exchange.starts))
        now = self._clock.now()

        self._set_due(exchange.due)

        for sent, settled in zip(outcomes, exchange.outcomes, strict=True):
            self._settle(sent, settled, now)

        for start in exchange.starts:
            self._targets[start.target].throttle.in_flight += 1
            self._workers.put((start, epochs[start.target]))

    def _set_due(self, due: Mapping[str, float | None]) -> None:
        now = self._clock.now()

        for name in due.keys() & self._targets.keys():
            seconds = due[name]
            self._targets[name].due = math.inf if seconds is None else now + seconds

    def _settle(self, sent: Outcome, settled: Outcome, now: float) -> None:
        """Tell of an outcome that is durable, and draw the conclusions for its target."""
        target = self._targets[settled.target]
        result = settled.result or Result.UNKNOWN

        if not result.is_final:
            self._expect(target, settled, now)
            return

        self._ended += 1
        self.started_now += result is Result.STARTED

        if sent.result is Result.STARTED and result is Result.UNKNOWN:
            self._note_repeated_run(target, settled)

        self._tell(events.RowEnded(settled))
        why = target.health.ended(settled, result)

        if why is not None and not target.throttle.is_stopped and not self._is_draining:
            reason, message = why
            is_refused = reason is events.StopReason.CONFIGURATION
            status = target.health.forbidden[-1].status if is_refused else None

            if is_refused:  # the rows whose refusals stop it are pending again
                self._outcomes += map(_take_back, target.health.forbidden)
                self._open += len(target.health.forbidden)

            self._stop(target.throttle.stop(reason, message, status=status))

    def _expect(self, target: _Target, outcome: Outcome, now: float) -> None:
        """Take in that a row is to be sent again."""
        seconds = outcome.not_before or 0.0
        target.throttle.expect(now + seconds + _ROUNDING)

        if self._settings.limit is not None:
            heappush(self._again, now + seconds + _ROUNDING)

        if (
            outcome.result is Result.RETRY
            and not self._is_draining
            and not target.throttle.is_stopped
        ):
            self._tell(events.RetryPlanned(outcome, seconds))

    def _note_repeated_run(self, target: _Target, outcome: Outcome) -> None:
        text = (
            f"DES gave row {outcome.key!r} the jobRunId {outcome.job_run_id}, which another row "
            "has already: the row is unknown"
        )
        target.client.stop_reusing(text)
        self._plan(events.Noted(text, is_warning=True), "repeatedRun", outcome.target, text)

    # The ledger's failures.

    async def _offer_again(self, error: Exception) -> None:
        """Wait before a turn that failed is tried again; once that is of no use, drop it."""
        now = self._clock.now()

        if not isinstance(error, LedgerError):
            self._error = self._error or error

        if not any(stop.reason is events.StopReason.LEDGER for stop in self.stops):
            self.drain(events.Stop(events.StopReason.LEDGER, str(error)))

        if self._failing_since is None or self._workers.busy:
            self._failing_since = now

        if now - self._failing_since >= RECORD_FOR:
            self.unrecorded += [(o.key, o.job_run_id) for o in self._outcomes if o.job_run_id]
            self._outcomes.clear()
            self._open = 0
        else:
            await self._announce()
            await self._clock.sleep(1.0)

    # One attempt.

    async def _send(self, claimed: tuple[Start, int]) -> None:
        """Send a row whose intent is on disk, unless its target was told to wait meanwhile."""
        start, epoch = claimed
        target = self._targets[start.target]

        if self._is_draining or target.throttle.epoch != epoch:
            outcome = ended(start, Result.UNSENT, "held back before it was sent")
        else:
            outcome = await self._attempt(start, target)

        target.throttle.in_flight -= 1
        self._outcomes.append(outcome)
        self._news.set()

    async def _attempt(self, start: Start, target: _Target) -> Outcome:
        """Send a row once, and return what became of it, whatever happens."""
        sent = Sent()

        try:
            try:
                run = await target.client.start(start, sent)
            except (DesError, CredentialsRefused) as exc:
                return self._judge(target, start, exc)
        except asyncio.CancelledError:
            return ended(start, _doubt(sent), "given up before a response came")
        except Exception as exc:  # noqa: BLE001  # a bug must not lose its row
            self._fail(exc)
            return ended(start, _doubt(sent), f"failed with {type(exc).__name__}: {exc}")

        target.throttle.started()
        target.refused.discard(start.row)
        return Outcome(
            start.row,
            start.attempt,
            start.key,
            start.target,
            start.job_id,
            Result.STARTED,
            RowState.STARTED,
            run.job_run_id,
            attempts=start.attempt,
        )

    def _judge(
        self, target: _Target, start: Start, error: DesError | CredentialsRefused
    ) -> Outcome:
        """Return the outcome of an attempt without a run, and let its target know."""
        if isinstance(error, Unauthorized):
            return self._refuse_token(target, start, error)

        settings = self._settings
        result = verdict(error, start, settings)
        result, decided = target.throttle.take(error, result, self._clock.now())
        target.refused.discard(start.row)
        self._act(target, decided)
        asked = error.retry_after if isinstance(error, DesError) else None
        wait = 0.0

        if result is Result.RETRY:
            wait = retry_wait(start.retries, asked, settings.max_wait, self._rng)

        return ended(start, result, error, wait)

    def _refuse_token(self, target: _Target, start: Start, error: Unauthorized) -> Outcome:
        """Hold the target for a new token; where that one was refused too, it stops."""
        throttle = target.throttle
        throttle.responded(final=False)

        if start.row in target.refused:
            message = "DES refused the new token as well"
            self._stop(throttle.stop(events.StopReason.CREDENTIALS, message))
        elif not self._is_draining and not throttle.is_stopped:
            target.refused.add(start.row)
            throttle.hold()
            self._workers.help(self._renew(target, error))

        return ended(start, Result.THROTTLED, error)

    async def _renew(self, target: _Target, refused: Unauthorized) -> None:
        """Let rows be sent with a new token; without one the target stops."""
        try:
            await target.client.renew(refused)
        except CredentialsRefused as exc:
            self._stop(target.throttle.stop(events.StopReason.CREDENTIALS, str(exc)))
        except NotSent:
            pass  # the next row meets it again, and pauses the target
        except Exception as exc:  # noqa: BLE001  # a fault of the client ends the session
            self._fail(exc)
        else:
            if refused.generation > target.generation:  # told once, however many rows waited
                target.generation = refused.generation
                name = target.throttle.target
                self._plan(events.TokenRenewed(name), "token", name, "a new token is in use")
        finally:
            target.throttle.release()
            self._news.set()

    # Waiting.

    def _act(self, target: _Target, decided: Pause | events.Stop | None) -> None:
        if isinstance(decided, events.Stop):
            self._stop(decided)
        elif decided is not None:
            name = target.throttle.target
            event = events.TargetPaused(name, decided.cause, decided.seconds)
            self._plan(event, "pause", name, f"{decided.seconds:.3f} s: {decided.cause}")

            if not self._is_draining and not target.is_resting:
                target.is_resting = True
                self._workers.help(self._rest(target))

    async def _rest(self, target: _Target) -> None:
        """Wait until a pause is over and a probe got a response, however often it is prolonged."""
        throttle = target.throttle

        try:
            while (rest := throttle.rest(self._clock.now())) is not None:
                if rest:  # a timer may ring a little early, and a pause may grow meanwhile
                    await self._clock.sleep(max(rest, SHORTEST_SLEEP))
                    continue

                try:
                    await target.client.probe()
                except DesError as exc:
                    self._act(target, throttle.still_down(exc, self._clock.now()))
                else:
                    throttle.reopen(self._clock.now())
        except Exception as exc:  # noqa: BLE001  # a fault of the client ends the session
            self._fail(exc)
        finally:
            target.is_resting = False
            self._news.set()

    async def _beat(self) -> None:
        """Once a second, tell how it goes, and look whether the ledger is still in its place."""
        while True:
            await self._clock.sleep(PULSE_EVERY)
            self._tell(self.pulse())
            await self.note_clocks()

            if not self._is_draining and not await self._ledger.is_in_place():
                message = "the ledger's file was removed or replaced while it was in use"
                self.drain(events.Stop(events.StopReason.LEDGER, message))

    def _tell_wait(self, seconds: float) -> None:
        message = (
            f"the ledger has been locked by another program for {seconds:.0f} s; nothing is sent "
            "meanwhile"
        )
        self._tell(events.Noted(message, is_warning=True))

    async def _abandon_after(self, seconds: float) -> None:
        await self._clock.sleep(seconds)
        self.abandon()

    # Ends, and what is told.

    def _stop(self, stop: events.Stop) -> None:
        """End one target; its rows stay pending, the other targets go on."""
        if any(known.target == stop.target for known in self.stops):
            return

        self._note_stop(stop)

        if all(target.throttle.is_stopped for target in self._targets.values()):
            self.drain()

        self._news.set()

    def _note_stop(self, stop: events.Stop) -> None:
        self.stops.append(stop)
        kind = "stop" if stop.reason is not events.StopReason.LEDGER else ""  # it can't be noted
        self._plan(events.TargetStopped(stop), kind, stop.target, f"{stop.reason}: {stop.message}")

    def _plan(self, event: Event, kind: str, target: str | None, text: str) -> None:
        """Tell of something once it is in the ledger; without a kind it is only told."""
        self._announcements.append((event, kind, target, text))
        self._news.set()

    async def _announce(self) -> None:
        announcements, self._announcements = self._announcements, []

        for event, kind, target, text in announcements:
            if kind:
                with suppress(LedgerError):  # a turn will fail too, and end the launch
                    await self._ledger.note(kind, target, text)

            self._tell(event)


def _doubt(sent: Sent) -> Result:
    return Result.UNKNOWN if sent else Result.UNSENT


def _take_back(outcome: Outcome) -> Outcome:
    """Return a refusal as one of its target, so that its row is what it was before."""
    return outcome._replace(result=Result.THROTTLED, state=RowState.PENDING, not_before=0.0)
