"""What follows an attempt that did not start a run: again, later, or never.

Pure: numbers in, a decision out. The engine sleeps. Only the wait generator of ``backoff`` is
used: its decorators would sleep while a row keeps its slot, and shrink a Retry-After.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, Protocol

import backoff

from deslaunch.errors import OutcomeUnknown, Rejected, ServerError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deslaunch.errors import DesError

_LONGEST: Final = 2.0**62  # without any cap the doubling would outgrow a float
_GATEWAY_GAVE_UP: Final = frozenset({504, 524})


class Jitter(Protocol):
    """The part of :class:`random.Random` that waits need."""

    def uniform(self, a: float, b: float) -> float:
        """Return a number between ``a`` and ``b``."""
        ...


class Retry5xx(Enum):
    """Which 5XX answers are sent again.

    ``ALL`` takes 504 and 524 like any other; ``DEFAULT`` holds those two as unknown, since a
    gateway that gave up waiting says nothing of DES; ``NONE`` holds every 5XX as unknown.
    """

    ALL = "all"
    DEFAULT = "default"
    NONE = "none"


class Decision(Enum):
    """What becomes of a row whose attempt came back without a run."""

    RETRY = "retry"
    FAILED = "failed"
    REJECTED = "rejected"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The rules of one session.

    Attributes:
        max_attempts: 5XX answers that a row may get in this session, at least 1; the last one
            makes it failed.
        max_wait: cap of a computed wait, seconds, above 0.
        retry_5xx: which 5XX are sent again.
    """

    max_attempts: int = 5
    max_wait: float = 60.0
    retry_5xx: Retry5xx = Retry5xx.DEFAULT

    def decide(self, error: DesError, *, answers: int, auto: bool) -> Decision:
        """Decide on a row after an answer, or after the loss of one.

        Args:
            error: ServerError, OutcomeUnknown or Rejected; all else is the target's matter.
            answers: 5XX answers that the row got in this session, this one included.
            auto: the row uses an auto value: each run moves the feed on, so that a 5XX, after
                which the run may exist, is never followed by another start.
        """
        if isinstance(error, Rejected):
            return Decision.REJECTED

        if auto or not self._may_retry(error):
            return Decision.UNKNOWN

        return Decision.RETRY if answers < self.max_attempts else Decision.FAILED

    def _may_retry(self, error: DesError) -> bool:
        if error.status in _GATEWAY_GAVE_UP:
            answered = isinstance(error, ServerError | OutcomeUnknown)
            return answered and self.retry_5xx is Retry5xx.ALL

        return isinstance(error, ServerError) and self.retry_5xx is not Retry5xx.NONE


def waits(max_wait: float, rng: Jitter) -> Iterator[float]:
    """Yield the waits before a row's, or a target's, next tries, in seconds.

    Full jitter: the n-th wait lies evenly between 0 and the smaller of ``2 ** (n - 1)`` and
    ``max_wait``, so that rows that failed together do not come back together.
    """
    for ceiling in _ceilings(max_wait):
        yield rng.uniform(0.0, ceiling)


def target_waits(max_wait: float, rng: Jitter) -> Iterator[float]:
    """Yield the lengths of a target's pauses where DES named none, in seconds.

    Half of each is certain: a pause of no length would be none.
    """
    for ceiling in _ceilings(max_wait):
        yield ceiling / 2 + rng.uniform(0.0, ceiling / 2)


def _ceilings(max_wait: float) -> Iterator[float]:
    ceilings = backoff.expo(base=2, factor=1, max_value=min(max_wait, _LONGEST))
    next(ceilings)  # backoff's generators first yield None
    yield from ceilings
