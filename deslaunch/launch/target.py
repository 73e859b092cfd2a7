"""When a target may be sent to: first contact, pauses, probes, and the reasons to stop.

Pure: times are passed in (seconds of any clock that only goes forward), decisions come out,
and the engine acts on them. One :class:`Throttle` per target is shared by all its rows.

A target begins *alone*: one start, until the service has shown what it is. After a pause it is
probed by a query, which starts nothing, and then alone again: one start at a time, and the rest
follow once one is answered. So neither a dead service nor one that comes back is met by a storm.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from deslaunch.errors import Misconfigured, NotSent, Redirected, Throttled
from deslaunch.model import Stop, StopReason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from deslaunch.errors import DesError

TRIES_TO_REACH: Final = 3
"""Tries after which a target that never answered is given up."""


class Gate(Enum):
    """Whether a target's rows may start."""

    ALONE = "alone"
    OPEN = "open"
    PAUSED = "paused"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Pause:
    """All rows of a target wait.

    Attributes:
        seconds: from now.
        cause: what DES or the network said.
    """

    seconds: float
    cause: str


class Throttle:
    """The state of one target.

    Args:
        target: its name.
        slots: starts in flight at most, at least 1. Each pause halves them; each start that
            succeeds gives a part of one back.
        waits: makes the lengths of the pauses in a row for which DES names none, seconds.
        give_up_after: seconds that it may stay paused, above 0.
    """

    def __init__(
        self,
        target: str,
        *,
        slots: int,
        waits: Callable[[], Iterator[float]],
        give_up_after: float,
    ) -> None:
        self.target = target
        self.gate = Gate.ALONE
        self._most = slots
        self._slots = float(slots)
        self._new_waits = waits
        self._give_up_after = give_up_after
        self._waits = waits()
        self._in_flight = 0
        self._holds = 0
        self._reached = False
        self._introduced = False
        self._contact: str | None = None
        self._paused_since: float | None = None
        self._reopens = 0.0
        self._pauses = 0

    def __repr__(self) -> str:
        return (
            f"<Throttle {self.target!r} {self.gate.value} "
            f"in flight {self._in_flight} of {self.slots}>"
        )

    @property
    def slots(self) -> int:
        """Starts that may be in flight now, at least 1."""
        return int(self._slots)

    @property
    def open_slots(self) -> int:
        """Slots that rows may take now: 1 for a first contact, 0 during a pause or after a stop."""
        if self._holds or self.gate in {Gate.PAUSED, Gate.STOPPED}:
            return 0

        return 1 if self.gate is Gate.ALONE else self.slots

    @property
    def stopped(self) -> bool:
        """The target has ended for this session."""
        return self.gate is Gate.STOPPED

    def admits(self, key: str) -> bool:
        """Tell whether the row ``key`` may start now."""
        if self._holds:
            return False

        if self.gate is Gate.OPEN:
            return self._in_flight < self.slots

        return self.gate is Gate.ALONE and not self._in_flight and self._contact in {None, key}

    def lets_go(self, *, alone: bool) -> bool:
        """Tell whether a row that was admitted, and not sent yet, may still be sent.

        Args:
            alone: it was admitted as the target's only row.
        """
        if self._holds:
            return False

        return self.gate is Gate.OPEN or (alone and self.gate is Gate.ALONE)

    def begin(self, key: str) -> None:
        """Note that the row ``key`` is on its way."""
        self._in_flight += 1

        if self.gate is Gate.ALONE:
            self._contact = key

    def end(self) -> None:
        """Note that a row is on its way no more, whatever became of it."""
        self._in_flight = max(0, self._in_flight - 1)

    def hold(self) -> None:
        """Admit nothing until :meth:`release` was called as often: a token is renewed."""
        self._holds += 1

    def release(self) -> None:
        """End one :meth:`hold`."""
        self._holds = max(0, self._holds - 1)

    def started(self) -> None:
        """Take in a run that DES started."""
        if self._slots < self._most:
            self._slots = min(self._most, self._slots + 1 / self._slots)

        self.answered(final=True)

    def answered(self, *, final: bool) -> None:
        """Take in an answer of the service.

        Args:
            final: the row will not be sent again: started, rejected or failed. Only then do
                the others follow a first contact.
        """
        self._reached = True
        self._introduced = self._introduced or final

        if self.gate is Gate.ALONE and self._introduced:
            self.gate = Gate.OPEN

        if self._pauses and self.gate in {Gate.OPEN, Gate.ALONE}:
            self._paused_since = None
            self._pauses = 0
            self._waits = self._new_waits()

    def lost(self, cause: str) -> Stop | None:
        """Take in a start whose outcome is unknown; as a first contact it stops the target."""
        self._contact = None

        if self._introduced or self.gate is Gate.STOPPED:
            return None

        return self.stop(StopReason.FIRST_CONTACT, f"the first start got no usable answer: {cause}")

    def held_back(self, error: DesError, now: float) -> Pause | Stop | None:
        """Take in a start that never left or was told to wait, or an answer not from DES.

        Returns:
            The pause that begins, or the end of the target; None where the pause that goes on
            covers it.
        """
        self._contact = None

        if self.gate is Gate.STOPPED:
            return None

        if isinstance(error, Throttled):
            self._reached = True

        if isinstance(error, Misconfigured | Redirected):
            return self.stop(StopReason.CONFIGURATION, str(error))

        if self.gate is Gate.PAUSED:
            return self._prolong(error, now)

        self._slots = max(1.0, self._slots / 2)
        return self._go_on_pausing(error, now)

    def rest(self, now: float) -> float | None:
        """Return the seconds until the pause ends, 0 once it is over; None for no pause."""
        return max(0.0, self._reopens - now) if self.gate is Gate.PAUSED else None

    def reopen(self, now: float) -> None:
        """End a pause that is over: one row at a time may be sent, until DES answers one."""
        if self.rest(now) == 0.0:
            self.gate = Gate.ALONE

    def still_down(self, error: DesError, now: float) -> Pause | Stop | None:
        """Take in a probe that failed: the pause goes on.

        Returns:
            The next part of the pause, or the end of the target.
        """
        if self.gate is not Gate.PAUSED:
            return None

        if isinstance(error, Misconfigured):
            return self.stop(StopReason.CONFIGURATION, str(error))

        return self._go_on_pausing(error, now)

    def stop(self, reason: StopReason, message: str, *, resume_after: float | None = None) -> Stop:
        """End the target for this session."""
        self.gate = Gate.STOPPED
        return Stop(reason, message, self.target, resume_after=resume_after)

    def _go_on_pausing(self, error: DesError, now: float) -> Pause | Stop:
        self._pauses += 1
        seconds = self._seconds(error)

        if self._paused_since is None:
            self._paused_since = now

        stop = self._given_up(error, seconds, now)

        if stop is not None:
            return stop

        reopens = now + seconds

        if self.gate is Gate.PAUSED:  # a row in flight may have been told to wait for longer
            reopens = max(reopens, self._reopens)

        self.gate = Gate.PAUSED
        self._reopens = reopens
        return Pause(reopens - now, str(error))

    def _prolong(self, error: DesError, now: float) -> Pause | Stop | None:
        """Lengthen a pause where a row in flight was told to wait longer."""
        seconds = error.retry_after

        if seconds is None or now + seconds <= self._reopens:
            return None

        self._reopens = now + seconds
        return self._given_up(error, seconds, now) or Pause(seconds, str(error))

    def _seconds(self, error: DesError) -> float:
        """Return the pause's length: what was asked for, never shortened, or the next wait."""
        jittered = next(self._waits)

        if error.retry_after is not None:
            return error.retry_after + min(1.0, jittered)

        return jittered

    def _given_up(self, error: DesError, seconds: float, now: float) -> Stop | None:
        assert self._paused_since is not None

        if isinstance(error, NotSent) and not self._reached and self._pauses >= TRIES_TO_REACH:
            return self.stop(
                StopReason.UNREACHABLE,
                f"could not be reached in {self._pauses} tries: {error}",
            )

        if now + seconds - self._paused_since <= self._give_up_after:
            return None

        reason = StopReason.UNREACHABLE if isinstance(error, NotSent) else StopReason.THROTTLED
        return self.stop(
            reason,
            f"would stay paused for more than {self._give_up_after:g} s: {error}",
            resume_after=seconds,
        )


class Pacer:
    """Starts a second, at most.

    Args:
        rate: starts a second, above 0; None for no limit.
    """

    def __init__(self, rate: float | None) -> None:
        self._interval = 0.0 if rate is None else 1.0 / rate
        self._next = float("-inf")

    @property
    def paces(self) -> bool:
        """There is a limit."""
        return self._interval > 0

    def wait(self, now: float) -> float:
        """Take the next start's turn and return the seconds until it comes."""
        if not self._interval:
            return 0.0

        turn = max(now, self._next)
        self._next = turn + self._interval
        return turn - now
