"""The plan of a session: which rows it is about to start, counted while they are validated.

Pure.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from deslaunch.model import Plan, PlannedJob, RowState, StartRequest
from deslaunch.reconcile import should_send

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from deslaunch.catalog import Catalog
    from deslaunch.config import Settings
    from deslaunch.intake import InvalidRow
    from deslaunch.replay import Replay
    from deslaunch.validation import Validation

Jobs = Counter[tuple[str, str]]
"""Rows by target and jobId."""


class Census:
    """Counts the rows that a resume sends.

    Args:
        replay: the ledger.
        settings: what the session consents to.

    Attributes:
        jobs: the rows by target and jobId.
    """

    def __init__(self, replay: Replay, settings: Settings) -> None:
        self.jobs: Jobs = Counter()
        self._replay = replay
        self._settings = settings

    def see(self, taken: StartRequest | InvalidRow) -> None:
        """Take in the next row."""
        if isinstance(taken, StartRequest) and is_sent(self._replay, self._settings, taken):
            self.jobs[taken.target, taken.job_id] += 1


def is_sent(replay: Replay, settings: Settings, request: StartRequest) -> bool:
    """Tell whether a session sends a valid row."""
    return should_send(
        replay.get(request.key),
        request,
        retry_rejected=settings.retry_rejected,
        retry_unknown=settings.retry_unknown,
    )


def make_plan(
    manifest: str,
    ledger: str,
    valid: Validation,
    jobs: Mapping[tuple[str, str], int],
    catalog: Catalog,
    settings: Settings,
    replay: Replay | None = None,
) -> Plan:
    """Return what a session is about to do.

    Args:
        manifest: what was validated.
        ledger: where it is recorded.
        valid: what the validation found.
        jobs: rows that could be started, by target and jobId.
        catalog: knows the jobs' names, and the targets that have no part in the session.
        settings: slots, rate, limit and shard.
        replay: the ledger of a batch that goes on; None for a new one.
    """
    planned = sorted(_planned(jobs, catalog), key=lambda job: (-job.rows, job.target, job.job_id))
    return Plan(
        manifest=manifest,
        ledger=ledger,
        resumes=replay is not None,
        rows=valid.rows,
        invalid=valid.invalid,
        ready=sum(job.rows for job in planned),
        jobs=tuple(planned),
        states={} if replay is None else states_of(replay, ledger),
        slots=settings.concurrency,
        rate=settings.rate,
        limit=settings.limit,
        shard=settings.shard,
    )


def _planned(jobs: Mapping[tuple[str, str], int], catalog: Catalog) -> Iterator[PlannedJob]:
    for (target, job_id), rows in jobs.items():
        schema = catalog.schemas.find(target, job_id)

        if rows and target not in catalog.left_out:
            yield PlannedJob(target, job_id, schema.job.name if schema else "", rows)


def states_of(replay: Replay, ledger: str) -> dict[RowState, int]:
    """Return how many rows are in each state, but for states that no row is in."""
    summary = replay.summary(ledger=ledger, seconds=0)
    counts = {
        RowState.STARTED: summary.started,
        RowState.FAILED: summary.failed,
        RowState.REJECTED: summary.rejected,
        RowState.UNKNOWN: summary.unknown,
        RowState.INVALID: summary.invalid,
        RowState.PENDING: summary.pending,
    }
    return {state: rows for state, rows in counts.items() if rows}
