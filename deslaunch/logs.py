"""What a launch tells a machine: each event as one JSON object.

Pure; the one who writes an object puts the time at its front. Fields are added, never renamed;
a reader ignores events and fields that it does not know. No event carries a token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deslaunch.model import (
    Draining,
    Noted,
    Planned,
    RetryPlanned,
    RowEnded,
    Stopped,
    TargetPaused,
    TokenRenewed,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from deslaunch.errors import DeslaunchError
    from deslaunch.model import Event, Outcome, Plan, Stop, Summary
    from deslaunch.progress import Cause, Tally

Entry = dict[str, Any]
"""One JSON object: ``event`` names its kind."""


def entry_of(event: Event, *, verbose: bool = False) -> Entry | None:
    """Return what an event is in the log; None for one that is not told by itself.

    Args:
        event: any. A pulse is told with the counts, by :func:`progress`.
        verbose: tell of single rows too.
    """
    match event:
        case RowEnded(outcome) if verbose:
            return _row(outcome)
        case RetryPlanned(key, target, status, wait) if verbose:
            wait = round(wait, 3)
            return {"event": "retry", "key": key, "target": target, "status": status, "wait": wait}
        case TargetPaused(target, cause, seconds):
            said = {"event": "pause", "target": target, "cause": cause}
            return {**said, "seconds": round(seconds, 3)}
        case TokenRenewed(target):
            return {"event": "tokenRenewed", "target": target}
        case Noted(message, is_warning):
            return {"event": "warning" if is_warning else "note", "message": message}
        case Planned(plan):
            return _plan(plan)
        case Draining(in_flight, timeout):
            return {"event": "draining", "inFlight": in_flight, "timeout": timeout}
        case Stopped(stop):
            return _stop(stop)

    return None


def progress(tally: Tally, now: float) -> Entry:
    """Return the counts of a session that goes on.

    Args:
        tally: the counts.
        now: the time, by the tally's clock.
    """
    pulse, left = tally.pulse, tally.seconds_left(now)
    return {
        "event": "progress",
        "ended": tally.ended,
        "left": tally.left,
        "states": {str(state): rows for state, rows in sorted(tally.counts.items())},
        "retries": tally.retries,
        "inFlight": pulse.in_flight if pulse else 0,
        "waiting": pulse.waiting if pulse else 0,
        "slots": pulse.slots if pulse else 0,
        "rate": round(tally.rate(now), 1),
        "secondsLeft": None if left is None else round(left),
        "pauses": [
            {"target": target, "seconds": round(seconds, 1), "cause": cause}
            for target, seconds, cause in tally.pauses(now)
        ],
    }


def cause(found: Cause) -> Entry:
    """Return the first row that met an error."""
    return {"event": "cause", **_cause(found)}


def summary(found: Summary, causes: Iterable[Cause], commands: Sequence[str]) -> Entry:
    """Return how the whole batch stands at a session's end.

    Args:
        found: the counts of all sessions.
        causes: why rows that ended in this session have no run.
        commands: what to do next, a sentence and a command each.
    """
    kept = [{**_cause(one), "rows": one.rows} for one in causes]
    return {"event": "summary", **found.as_dict(), "causes": kept, "next": list(commands)}


def error(found: DeslaunchError, exit_code: int) -> Entry:
    """Return what ended a command."""
    said = {"event": "error", "kind": type(found).__name__, "message": str(found)}
    return {**said, "hint": found.hint, "exitCode": exit_code}


def _row(outcome: Outcome) -> Entry:
    return {
        "event": "row",
        "key": outcome.key,
        "row": outcome.row,
        "target": outcome.target,
        "jobId": outcome.job_id,
        "state": outcome.state,
        "jobRunId": outcome.job_run_id,
        "attempts": outcome.attempts,
        "status": outcome.status,
        "error": outcome.error,
        "possibleDuplicate": outcome.possible_duplicate,
    }


def _plan(plan: Plan) -> Entry:
    return {
        "event": "plan",
        "manifest": plan.manifest,
        "ledger": plan.ledger,
        "resumes": plan.resumes,
        "rows": plan.rows,
        "invalid": plan.invalid,
        "ready": plan.ready,
        "send": plan.send,
        "jobs": [
            {"target": job.target, "jobId": job.job_id, "name": job.name, "rows": job.rows}
            for job in plan.jobs
        ],
        "states": {str(state): rows for state, rows in plan.states.items()},
        "slots": plan.slots,
        "rate": plan.rate,
        "limit": plan.limit,
        "shard": plan.shard,
        "seconds": plan.seconds,
    }


def _stop(stop: Stop) -> Entry:
    return {
        "event": "stop",
        "reason": stop.reason,
        "message": stop.message,
        "target": stop.target,
        "resumeAfter": stop.resume_after,
    }


def _cause(found: Cause) -> Entry:
    return {
        "state": found.state,
        "target": found.target,
        "status": found.status,
        "error": found.error,
        "key": found.key,
        "row": found.row,
        "line": found.line,
    }
