"""When a target's answers are so bad that going on would only do harm.

Pure. One :class:`Health` per target takes in the rows that ended, in the order in which their
outcomes became durable, so that a batch that is replayed stops where it stopped.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Self

from deslaunch.errors import ConfigurationError
from deslaunch.model import RowState, Stop, StopReason

ROWS_FOR_A_SHARE: Final = 200
"""Rows that must have ended before a share of errors means anything."""

UNKNOWN_IN_A_ROW: Final = 5
FAILED_IN_A_ROW: Final = 25
"""Rows, with none started between them, that stop a target."""

_IN_A_ROW: Final = {RowState.UNKNOWN: UNKNOWN_IN_A_ROW, RowState.FAILED: FAILED_IN_A_ROW}

_FOR_EXAMPLE: Final = "write 50 for so many rows, or 5% for such a share of them"

FORBIDDEN_IN_A_ROW: Final = 5
"""403 answers in a row, over more than one job, that stop a target."""


@dataclass(frozen=True, slots=True)
class ErrorLimit:
    """How many rows of a target may end without a run before it stops.

    Attributes:
        count: rows, at least 0; None for no fixed number.
        share: of the rows that ended, 0 to 1, once 200 have; None for no share.
    """

    count: int | None = None
    share: float | None = 0.5

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the limit that ``N`` or ``N%`` means.

        Raises:
            ConfigurationError: it is neither, or the share is over 100 %.
        """
        digits = text.removesuffix("%")

        if not (digits.isascii() and digits.isdigit()):
            raise ConfigurationError(f"--max-errors takes N or N%, got {text!r}", hint=_FOR_EXAMPLE)

        if digits == text:
            return cls(count=int(digits), share=None)

        if int(digits) > 100:  # noqa: PLR2004  # per cent
            raise ConfigurationError(
                f"--max-errors takes at most 100%, got {text!r}", hint=_FOR_EXAMPLE
            )

        return cls(share=int(digits) / 100)

    def __str__(self) -> str:
        return f"{self.count:,}" if self.share is None else f"{self.share:.0%}"

    def is_passed(self, errors: int, ended: int) -> bool:
        """Tell whether ``errors`` of ``ended`` rows are too many."""
        if self.count is not None:
            return errors > self.count

        return self.share is not None and ended >= ROWS_FOR_A_SHARE and errors > self.share * ended


class Health:
    """The recent past of one target.

    Args:
        target: its name.
        limit: how many rows may end without a run.
    """

    def __init__(self, target: str, limit: ErrorLimit) -> None:
        self._target = target
        self._limit = limit
        self._ended = 0
        self._errors = 0
        self._in_a_row: Counter[RowState] = Counter()
        self._forbidden: list[str] = []

    def __repr__(self) -> str:
        return f"<Health of {self._target!r}: {self._errors} of {self._ended} rows without a run>"

    def ended(self, state: RowState, *, job_id: str, status: int | None) -> Stop | None:
        """Take in a row that ended.

        Args:
            state: started, failed, rejected or unknown.
            job_id: the row's job.
            status: HTTP status of the answer, or None.

        Returns:
            The end of the target, where this row is one too many.
        """
        self._ended += 1

        if state is RowState.STARTED:
            self._in_a_row.clear()
            self._forbidden.clear()
            return None

        self._errors += 1
        return self._refused(job_id, status) or self._broken(state) or self._too_many()

    def _refused(self, job_id: str, status: int | None) -> Stop | None:
        if status != HTTPStatus.FORBIDDEN:
            self._forbidden.clear()
            return None

        self._forbidden.append(job_id)

        if self._ended == 1:
            return self._stop(
                StopReason.CONFIGURATION,
                "its first answer was 403 (forbidden): is the token for this organisation?",
            )

        if len(self._forbidden) >= FORBIDDEN_IN_A_ROW and len(set(self._forbidden)) > 1:
            rows = len(self._forbidden)
            message = f"{rows} rows in a row were answered 403 (forbidden), over several jobs"
            return self._stop(StopReason.CONFIGURATION, message)

        return None

    def _broken(self, state: RowState) -> Stop | None:
        if state not in _IN_A_ROW:
            return None

        self._in_a_row[state] += 1
        limit = _IN_A_ROW[state]

        if self._in_a_row[state] < limit:
            return None

        message = f"{limit} rows became {state} with none started between them"
        return self._stop(StopReason.TOO_MANY_ERRORS, message)

    def _too_many(self) -> Stop | None:
        if not self._limit.is_passed(self._errors, self._ended):
            return None

        message = (
            f"{self._errors:,} of {self._ended:,} rows ended without a run, and --max-errors "
            f"is {self._limit}"
        )
        return self._stop(StopReason.TOO_MANY_ERRORS, message)

    def _stop(self, reason: StopReason, message: str) -> Stop:
        return Stop(reason, message, self._target)
