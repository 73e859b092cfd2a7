"""When a target may be sent to: first contact, pauses, probes, pace, and the reasons to stop.

Pure: times are passed in (seconds of a clock that only goes forward), decisions are returned, and
the session acts on them. Each target has one :class:`Throttle` and one :class:`Health`, shared by
all its rows; :class:`Lanes` shares the free slots between targets and jobs.

A target begins *alone*: one start in flight until DES has responded to it. After a pause it is
probed by a query, which starts nothing, and is alone again until a start gets a response. So a
service that is down, or comes back, never gets many requests at once.
"""

import math
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from typing import Final

from deslaunch import errors
from deslaunch.errors import CredentialsRefused, DesError
from deslaunch.events import Stop, StopReason, TargetPaused
from deslaunch.ledger.ledger import JobLane, Lane
from deslaunch.model import Outcome, Result, Start
from deslaunch.settings import ErrorLimit, JobLimit

TRIES_TO_REACH: Final = 3
"""Failed tries after which a target stops that was never reached."""

MISPLACED: Final = frozenset({403, 404, 405, 407, 415, 421, 426})
"""Statuses that stop a target as its first response: probably not a DES, or not its token."""

FORBIDDEN_IN_A_ROW: Final = 5
"""403 responses in a row, for more than one job, that stop a target."""

IN_A_ROW: Final = {Result.UNKNOWN: 5, Result.FAILED: 25}
"""Rows of this result, with none started in between, that stop a target."""

LONGEST_CREDIT: Final = 0.05
"""Seconds of the rate that may be caught up at once, if the loop was late."""


class Gate(Enum):
    """Whether a target's rows may start."""

    ALONE = "alone"
    OPEN = "open"
    PAUSED = "paused"
    STOPPED = "stopped"


class Throttle:
    """Whether one target may be sent to, and with how many starts in flight.

    Args:
        target: its name.
        slots: starts in flight at most, at least 1. Each pause halves them; each successful start
            gives a part of one back.
        wait: returns the seconds of a pause without Retry-After, by the number of pauses in a row.
        give_up_after: seconds that the target may stay paused, above 0.

    Attributes:
        epoch: grows with each pause, hold and stop; rows claimed in an earlier epoch must not be
            sent.
        in_flight: rows that were claimed and have no outcome yet.
        stop_status: HTTP status that stopped the target, or None.
    """

    def __init__(
        self, target: str, *, slots: int, wait: Callable[[int], float], give_up_after: float
    ) -> None:
        self.target = target
        self.gate = Gate.ALONE
        self.epoch = 0
        self.in_flight = 0
        self.stop_status: int | None = None
        self._most = slots
        self._slots = float(slots)
        self._wait = wait
        self._give_up_after = give_up_after
        self._holds = 0
        self._reached = False
        self._introduced = False
        self._contact_due = -math.inf
        self._paused_since = -math.inf
        self._reopens = -math.inf
        self._pauses = 0

    def __repr__(self) -> str:
        return f"<Throttle {self.target!r} {self.gate.value}, {self.in_flight} of {self.slots}>"

    @property
    def slots(self) -> int:
        """Starts that may be in flight while it is open, at least 1."""
        return int(self._slots)

    @property
    def open_slots(self) -> int:
        """Slots for rows now: 1 for a first contact, 0 in a pause or after a stop."""
        if self._holds or self.gate in {Gate.PAUSED, Gate.STOPPED}:
            return 0

        return 1 if self.gate is Gate.ALONE else self.slots

    @property
    def is_stopped(self) -> bool:
        """The target has stopped for this session."""
        return self.gate is Gate.STOPPED

    def room(self, now: float) -> int:
        """Return how many more rows may be claimed now."""
        if self.gate is Gate.ALONE and now < self._contact_due:
            return 0  # the first row is retried before any other is sent

        return max(0, self.open_slots - self.in_flight)

    def opens_at(self, now: float) -> float:
        """Return when the first contact may be retried; else ``now``."""
        return max(now, self._contact_due) if self.gate is Gate.ALONE else now

    def hold(self) -> None:
        """Claim nothing until :meth:`release` was called as often; for a token renewal."""
        self._holds += 1
        self.epoch += 1

    def release(self) -> None:
        """End one :meth:`hold`."""
        self._holds = max(0, self._holds - 1)

    def resize(self, slots: int) -> None:
        """Set the number of slots; if a pause has reduced them, they grow as after a pause."""
        is_spared = self._slots < self._most
        self._most = slots
        self._slots = min(self._slots, slots) if is_spared else float(slots)

    def started(self) -> None:
        """Note that DES started a run."""
        if self._slots < self._most:
            self._slots = min(self._most, self._slots + 1 / self._slots)

        self.responded()

    def responded(self, *, final: bool = True) -> None:
        """Note a response of DES about a row.

        Args:
            final: the row has ended: started, rejected or failed. This ends the first contact;
                otherwise the other rows wait until that row is retried, see :meth:`expect`.
        """
        self._reached = True

        if final:
            self._introduced = True
        elif not self._introduced:
            self._contact_due = math.inf

        if self.gate is Gate.ALONE and self._introduced:
            self.gate = Gate.OPEN

        if self._pauses and self.gate in {Gate.OPEN, Gate.ALONE}:
            self._pauses = 0

    def expect(self, due: float) -> None:
        """Retry the row of a first contact from ``due`` on; no other row is sent before it."""
        if not self._introduced:
            self._contact_due = due

    def take(
        self, error: DesError | CredentialsRefused, result: Result, now: float
    ) -> tuple[Result, TargetPaused | Stop | None]:
        """Note an attempt that started no run, except one whose token was refused.

        Args:
            error: why.
            result: its verdict.
            now: the time, seconds.

        Returns:
            The result for the row: throttled where a rejection has stopped its target; and the
            target's pause or stop, if any.
        """
        if isinstance(error, CredentialsRefused):
            return result, self.stop(StopReason.CREDENTIALS, str(error))

        is_first = not self._introduced and not self.is_stopped
        decided: TargetPaused | Stop | None = None

        match result:
            case Result.UNSENT | Result.THROTTLED:
                if not isinstance(error, errors.TooLate):  # not the target's fault
                    decided = self.held_back(error, now)
            case Result.UNKNOWN if is_first:
                text = f"the first start got no usable response: {error}"
                decided = self.stop(StopReason.FIRST_CONTACT, text)
            case Result.REJECTED if is_first and error.status in MISPLACED:
                text = f"{error}; check the base URL and the token"
                reason = StopReason.CONFIGURATION
                decided = self.stop(
                    reason, f"the first response was {error.status}: {text}", status=error.status
                )
            case Result.REJECTED | Result.RETRY | Result.FAILED:
                self.responded(final=result is not Result.RETRY)

        if result is Result.REJECTED and self.stop_status and self.stop_status == error.status:
            result = Result.THROTTLED

        return result, decided

    def held_back(
        self, error: DesError, now: float, *, is_probe: bool = False
    ) -> TargetPaused | Stop | None:
        """Note a request that was not sent, was throttled, or got no response from DES.

        Args:
            error: why.
            now: the time, seconds.
            is_probe: it was the query at the end of a pause.

        Returns:
            The pause that begins or is prolonged, or the target's stop; None if the current pause
            is long enough.
        """
        if self.is_stopped or (is_probe and self.gate is not Gate.PAUSED):
            return None

        if isinstance(error, errors.Throttled):
            self._reached = True

        # If DES was reached before, one node of the auth server may have a bad certificate.
        is_misconfigured = isinstance(error, errors.Misconfigured) and not self._reached

        if is_misconfigured or isinstance(error, errors.Redirected):
            return self.stop(StopReason.CONFIGURATION, str(error))

        asked = error.retry_after

        if self.gate is Gate.PAUSED and not is_probe:  # prolonged only by a later Retry-After
            if asked is None or now + asked <= self._reopens:
                return None

            return self._pause(error, asked, now)

        if not is_probe:
            self._slots = max(1.0, self._slots / 2)

        if not self._pauses:
            self._paused_since = now

        seconds = self._wait(self._pauses)
        self._pauses += 1

        if asked is not None:  # never shortened; the jitter spreads the targets
            seconds = asked + min(1.0, seconds)

        return self._pause(error, seconds, now)

    def rest(self, now: float) -> float | None:
        """Return the seconds until the pause ends, 0 once it is over; None for no pause."""
        return max(0.0, self._reopens - now) if self.gate is Gate.PAUSED else None

    def reopen(self, now: float) -> None:
        """End a pause that is over: one start at a time, until DES responds to one."""
        if self.rest(now) == 0.0:
            self.gate = Gate.ALONE

    def stop(
        self,
        reason: StopReason,
        message: str,
        *,
        status: int | None = None,
        resume_after: float | None = None,
    ) -> Stop:
        """Stop the target for this session."""
        self.gate = Gate.STOPPED
        self.epoch += 1
        self.stop_status = self.stop_status or status
        return Stop(reason, message, self.target, resume_after=resume_after)

    def _pause(self, error: DesError, seconds: float, now: float) -> TargetPaused | Stop:
        """Pause for ``seconds``, never shorter than the current pause; or stop the target."""
        is_unsent = isinstance(error, errors.NotSent)

        if is_unsent and not self._reached and self._pauses >= TRIES_TO_REACH:
            text = f"could not be reached in {self._pauses} tries: {error}"
            return self.stop(StopReason.UNREACHABLE, text)

        if now + seconds - self._paused_since > self._give_up_after:
            reason = StopReason.UNREACHABLE if is_unsent else StopReason.THROTTLED
            text = f"would stay paused for more than {self._give_up_after:g} s: {error}"
            return self.stop(reason, text, resume_after=seconds)

        self._reopens = max(now + seconds, self._reopens)  # a pause is never shortened
        self.gate = Gate.PAUSED
        self.epoch += 1
        return TargetPaused(self.target, str(error), self._reopens - now)


class Health:
    """Whether a target must stop because too many rows end without a run.

    It counts rows in the order in which their outcomes became durable.

    Args:
        limit: rows that may end without a run.

    Attributes:
        forbidden: the last 403 outcomes in a row, at most five.
    """

    def __init__(self, limit: ErrorLimit) -> None:
        self.forbidden: deque[Outcome] = deque(maxlen=FORBIDDEN_IN_A_ROW)
        self._limit = limit
        self._ended = 0
        self._errors = 0
        self._in_a_row: Counter[Result] = Counter()

    def __repr__(self) -> str:
        return f"<Health: {self._errors} of {self._ended} rows ended without a run>"

    def ended(self, outcome: Outcome, result: Result) -> tuple[StopReason, str] | None:
        """Count a row that ended.

        Args:
            outcome: as it is on disk.
            result: started, failed, rejected or unknown.

        Returns:
            Why the target must stop; None if it need not.
        """
        self._ended += 1
        is_forbidden = outcome.status == HTTPStatus.FORBIDDEN

        if not is_forbidden:
            self.forbidden.clear()

        if result is Result.STARTED:
            self._in_a_row.clear()
            return None

        self._errors += 1
        self._in_a_row[result] += 1
        limit = IN_A_ROW.get(result, math.inf)

        if is_forbidden:
            self.forbidden.append(outcome)
            is_over_jobs = len({row.job_id for row in self.forbidden}) > 1

            if len(self.forbidden) == FORBIDDEN_IN_A_ROW and is_over_jobs:
                text = f"the last {FORBIDDEN_IN_A_ROW} rows, of several jobs, got 403 (forbidden)"
                return StopReason.CONFIGURATION, text

        if self._in_a_row[result] >= limit:
            text = f"{limit} rows became {result}, with none started in between"
            return StopReason.TOO_MANY_ERRORS, text

        if self._limit.is_passed(self._errors, self._ended):
            share = f"{self._errors:,} of {self._ended:,} rows ended without a run"
            return StopReason.TOO_MANY_ERRORS, f"{share}; --max-errors is {self._limit}"

        return None


class Pacer:
    """Limits the starts a second.

    Args:
        rate: starts a second, above 0; None for no limit.
    """

    def __init__(self, rate: float | None) -> None:
        self._interval = 0.0 if rate is None else 1.0 / rate
        self._next = -math.inf

    def allowed(self, now: float) -> float:
        """Return how many may start now; infinity where there is no limit."""
        if not self._interval:
            return math.inf

        # A loop that was a little late catches up; one that was idle does not.
        if now - self._next > LONGEST_CREDIT:
            self._next = now

        return max(0, math.floor((now - self._next) / self._interval + 1e-6) + 1)

    def take(self, starts: int) -> None:
        """Count starts."""
        self._next += starts * self._interval

    def opens_at(self, now: float) -> float:
        """Return when the next start is allowed, at least ``now``."""
        return max(now, self._next)


@dataclass(slots=True)
class _Lane:
    """Rows of one target, or of one job of it that has limits of its own.

    Attributes:
        throttle: of its target.
        slots: starts in flight at most; infinity: as many as the target has.
        pacer: starts a second.
        due: when its next row may be claimed; infinity: it has none.
        in_flight: rows that were claimed and have not come back.
    """

    throttle: Throttle
    slots: float
    pacer: Pacer
    due: float = math.inf
    in_flight: int = 0


class Lanes:
    """How many rows may be claimed now, by target and job, which take turns.

    Args:
        throttles: by target.
        limits: of single jobs, by their jobIds.
    """

    def __init__(self, throttles: Mapping[str, Throttle], limits: Mapping[str, JobLimit]) -> None:
        self._throttles = throttles
        self._limits = limits
        self._lanes: dict[Lane, _Lane] = {}  # the first one's turn is next

    def set_due(self, due: Mapping[Lane, float | None], now: float) -> None:
        """Note in how many seconds each lane's next row may be claimed; None: it has none."""
        for name, seconds in due.items():
            if isinstance(name, str):
                target, limit = name, JobLimit()
            else:
                target, limit = name.target, self._limits[name.job_id]

            if target not in self._throttles:
                continue

            if name not in self._lanes:
                slots = limit.concurrency or math.inf
                self._lanes[name] = _Lane(self._throttles[target], slots, Pacer(limit.rate))

            self._lanes[name].due = math.inf if seconds is None else now + seconds

    def add_rows(self, target: str, now: float) -> None:
        """Note that a target has new rows; of which jobs is not known."""
        self.set_due({target: 0.0} | {JobLane(target, job): 0.0 for job in self._limits}, now)

    def has_rows(self) -> bool:
        """Return True if rows are left of a target that has not stopped."""
        lanes = self._lanes.values()
        return any(lane.due < math.inf and not lane.throttle.is_stopped for lane in lanes)

    def claims(self, free: float, now: float) -> dict[Lane, int]:
        """Return how many rows to claim, by lane.

        Args:
            free: rows at most.
            now: the time, seconds.
        """
        claims: dict[Lane, int] = {}
        rooms = {target: throttle.room(now) for target, throttle in self._throttles.items()}

        for name, lane in self._lanes.items():
            target, open_slots = lane.throttle.target, lane.slots - lane.in_flight
            wanted = int(min(free, rooms[target], open_slots, lane.pacer.allowed(now)))

            if lane.due <= now and wanted > 0:
                claims[name] = wanted
                free -= wanted
                rooms[target] -= wanted

        if claims:
            first = next(iter(self._lanes))
            self._lanes[first] = self._lanes.pop(first)

        return claims

    def next_time(self, now: float, opens: float) -> float:
        """Return when time alone lets a row be claimed; infinity where it does not.

        Args:
            now: the time, seconds.
            opens: when the rate of the whole launch allows a start.
        """
        times = [
            max(lane.due, opens, lane.pacer.opens_at(now), lane.throttle.opens_at(now))
            for lane in self._lanes.values()
            if lane.throttle.open_slots > lane.throttle.in_flight and lane.in_flight < lane.slots
        ]
        return min((time for time in times if time > now), default=math.inf)

    def take(self, start: Start) -> None:
        """Note that a row was claimed."""
        lane = self._lane_of(start)
        lane.in_flight += 1
        lane.pacer.take(1)
        lane.throttle.in_flight += 1

    def give_back(self, start: Start) -> None:
        """Note that a claimed row has come back."""
        lane = self._lane_of(start)
        lane.in_flight -= 1
        lane.throttle.in_flight -= 1

    def _lane_of(self, start: Start) -> _Lane:
        name = JobLane(start.target, start.job_id)
        return self._lanes[name if name in self._lanes else start.target]
