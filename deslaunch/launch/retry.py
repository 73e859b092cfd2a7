"""What a failed attempt means, and how long to wait before the next one.

Pure: an error and a few numbers in, an :class:`~deslaunch.model.Outcome` or seconds out. Only the
wait generator of ``backoff`` is used: its decorators would sleep while a row keeps its slot, and
shorten a Retry-After.
"""

from http import HTTPStatus
from itertools import islice
from random import Random
from typing import Final

import backoff

from deslaunch import errors
from deslaunch.errors import CredentialsRefused, DesError
from deslaunch.model import END_STATES, Outcome, Result, RowState, Sent, Start
from deslaunch.settings import Settings

ERROR_LIMIT: Final = 4096
"""Characters of an error that the ledger keeps."""

GATEWAY_GAVE_UP: Final = frozenset({504, 524})
"""Statuses of a gateway that timed out: DES may have started the run."""

_MOST_DOUBLINGS: Final = 62  # 2 to a higher power would overflow a float


def verdict(error: DesError | CredentialsRefused, start: Start, settings: Settings) -> Result:
    """Return the result of a failed attempt, by the verdict table; the first match applies.

    Args:
        error: raised by the client.
        start: the attempt.
        settings: ``max_attempts``, ``retry_5xx`` and ``give_up_after``.
    """
    match error:
        case errors.NotSent() | CredentialsRefused():
            return Result.UNSENT
        case errors.Throttled() | errors.Unauthorized() | errors.Redirected():
            return Result.THROTTLED
        case errors.Rejected():
            return Result.REJECTED
        case errors.ServerError() | errors.OutcomeUnknown() if (
            _may_repeat(error, settings) and not start.auto
        ):
            # An auto row is never repeated: each run moves the feed on.
            again = start.retries + 1 < settings.max_attempts
            is_soon = (error.retry_after or 0.0) <= settings.give_up_after
            return Result.RETRY if again and is_soon else Result.FAILED
        case _:
            return Result.UNKNOWN


def _may_repeat(error: DesError, settings: Settings) -> bool:
    """Return True if DES's contract, or ``--retry-5xx``, allows a retry after this response."""
    if error.status in GATEWAY_GAVE_UP:
        return settings.retry_5xx == "all"

    return isinstance(error, errors.ServerError) and settings.retry_5xx != "none"


def ended(
    start: Start,
    result: Result,
    error: BaseException | str = "",
    not_before: float = 0.0,
    job_run_id: str | None = None,
) -> Outcome:
    """Return the outcome of an attempt.

    Args:
        start: the attempt.
        result: its verdict.
        error: why it started no run.
        not_before: seconds until the row may be sent again; ignored for a final result.
        job_run_id: of the run that it started.
    """
    text = str(error)
    status: int | None = HTTPStatus.OK if result is Result.STARTED else None  # of a run

    if isinstance(error, DesError) and result is not Result.UNSENT:
        status, job_run_id = error.status, error.job_run_id

        # The response is kept: a person may find the run by it.
        if result is Result.UNKNOWN and error.response and error.response not in text:
            text = f"{text}\n{error.response}"

    state = END_STATES.get(result)
    again = not_before if state is None else None
    state = state or RowState.PENDING
    known = (state, job_run_id, status, text[:ERROR_LIMIT], again)
    return Outcome(*start[:5], result, *known, start.attempt)


def broken_off(start: Start, sent: Sent, why: str = "") -> Outcome:
    """Return the outcome of an attempt that ended without a verdict: unknown if it was sent."""
    text = "given up before a response came" if sent else "held back before it was sent"
    return ended(start, Result.UNKNOWN if sent else Result.UNSENT, why or text)


def wait_after(failures: int, max_wait: float, rng: Random, asked: float | None = None) -> float:
    """Return the seconds to wait before the next attempt.

    Between half and all of 1 s, doubled for each failure, at most ``max_wait``; never shorter than
    ``asked``. The jitter spreads requests that failed together.

    Args:
        failures: 5XX responses of the row with this one, or earlier pauses of the target; at
            least 0.
        max_wait: limit of the computed wait, seconds, above 0.
        rng: the source of jitter.
        asked: seconds of Retry-After, or None.
    """
    number = 1 + min(failures, _MOST_DOUBLINGS)  # backoff's generators first yield None
    ceiling = float(next(islice(backoff.expo(2, 1.0, max_wait), number, None)))
    return max(asked or 0.0, rng.uniform(ceiling / 2, ceiling))
