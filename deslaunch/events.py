"""The events of a session, and its summary.

Every event is an immutable value. A listener is called in the event loop, after the outcome that
the event reports is on disk; it must return quickly. If it raises, the launch drains.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from deslaunch.model import Outcome, Problem, RowState, RunStatus, count


class StopReason(StrEnum):
    """Why a session, or one of its targets, ended early."""

    UNREACHABLE = "unreachable"
    FIRST_CONTACT = "firstContact"
    THROTTLED = "throttled"
    CONFIGURATION = "configuration"
    CREDENTIALS = "credentials"
    TOO_MANY_ERRORS = "tooManyErrors"
    INTERRUPTED = "interrupted"
    LEDGER = "ledger"
    LIMIT = "limit"
    CONTROL = "control"
    OUT_OF_TIME = "outOfTime"


class Stop(NamedTuple):
    """The early end of a target, or of the session.

    Attributes:
        reason: one of :class:`StopReason`.
        message: what happened, one sentence.
        target: the target's name, or None for the whole session.
        signal: the signal's number if the reason is an interrupt, else 0.
        resume_after: seconds until a resume makes sense, or None.
    """

    reason: StopReason
    message: str
    target: str | None = None
    signal: int = 0
    resume_after: float | None = None


class Control(NamedTuple):
    """The settings of ``deslaunch control``; they hold until the last launcher at work ends.

    Attributes:
        is_paused: launchers send nothing new.
        is_stopped: launchers drain, and end.
        concurrency: slots of each launcher, 1 to 1,024, or None: its own setting.
        rate: maximum starts a second of each launcher, above 0, or None: its own setting.
    """

    is_paused: bool = False
    is_stopped: bool = False
    concurrency: int | None = None
    rate: float | None = None

    def __str__(self) -> str:
        said = {
            "paused": self.is_paused,
            "stopped": self.is_stopped,
            count(self.concurrency or 0, "slot"): self.concurrency,
            f"at most {count(self.rate or 0, 'start')} a second": self.rate,
        }
        return ", ".join(text for text, holds in said.items() if holds)


class ProblemGroup(NamedTuple):
    """A problem that several rows have in the same column.

    Attributes:
        first: the problem of the first such row.
        rows: number of rows that have it.
    """

    first: Problem
    rows: int = 1

    def __str__(self) -> str:
        if self.rows == 1:
            return str(self.first)

        column = f", column {self.first.column}" if self.first.column else ""
        where = f"{self.first.file}:{self.first.line}{column}"
        return f"{where} ({self.rows:,} rows): {self.first.message}"


class PlannedJob(NamedTuple):
    """Rows of one job that a session is about to start.

    Attributes:
        target: the target's name.
        job_id: GUID, lower case.
        name: the job's name, or ``""`` if it is not known.
        rows: number of rows.
    """

    target: str
    job_id: str
    name: str
    rows: int


class Plan(NamedTuple):
    """What a session is about to do; emitted before anything is sent.

    Attributes:
        manifest: where the rows came from: a path, ``"-"`` for stdin, ``"<rows>"``.
        ledger: the ledger's place; that of a new batch is made after ``confirm``.
        rows: rows of the batch.
        ready: rows that could be started now.
        jobs: the ready rows by target and job, the most rows first.
        states: rows of the batch by state.
        resumes: the batch exists already.
        concurrency: slots: maximum number of starts in flight.
        rate: maximum starts a second, or None for no limit.
        limit: maximum number of rows that the session starts, or None for no limit.
        corrections: (rows replaced, rows added) by a file of corrections, or None without one.
        warnings: what to know before it begins.
        before: when these rows were last started, and how that ended; ``""``: never.
        stops_at: when the session stops sending, seconds since 1970, or None.
    """

    manifest: str
    ledger: str
    rows: int = 0
    ready: int = 0
    jobs: tuple[PlannedJob, ...] = ()
    states: Mapping[RowState, int] = {}
    resumes: bool = False
    concurrency: int = 1
    rate: float | None = None
    limit: int | None = None
    corrections: tuple[int, int] | None = None
    warnings: tuple[str, ...] = ()
    before: str = ""
    stops_at: float | None = None

    @property
    def send(self) -> int:
        """Maximum number of rows that the session starts."""
        return self.ready if self.limit is None else min(self.ready, self.limit)

    @property
    def seconds(self) -> float | None:
        """Seconds that the starts take at least; None without a rate."""
        return None if self.rate is None else self.send / self.rate


class Planned(NamedTuple):
    """A session is about to begin; nothing was sent yet."""

    plan: Plan


class RowEnded(NamedTuple):
    """A row reached a state that this session will not change; or an invalid row was read."""

    outcome: Outcome


class RetryPlanned(NamedTuple):
    """A row got a 5XX; it released its slot and will be sent again.

    Attributes:
        outcome: of the attempt that failed.
        seconds: minimum time until it is sent again.
    """

    outcome: Outcome
    seconds: float


class TargetPaused(NamedTuple):
    """All rows of a target wait.

    Attributes:
        target: the target's name.
        cause: the response of DES, or the network error.
        seconds: duration of the pause.
    """

    target: str
    cause: str
    seconds: float


class TokenRenewed(NamedTuple):
    """A refused token was replaced by a new one."""

    target: str


class Noted(NamedTuple):
    """A message for a person.

    Attributes:
        message: one sentence.
        is_warning: it is a warning.
    """

    message: str
    is_warning: bool = False


class Draining(NamedTuple):
    """No new row is sent; responses in flight are awaited.

    Attributes:
        in_flight: rows without a response.
        seconds: maximum duration of the drain.
    """

    in_flight: int
    seconds: float


class TargetStopped(NamedTuple):
    """A target, or the session, ended early."""

    stop: Stop


class RunEnded(NamedTuple):
    """A watched run has ended, or DES refuses to give its status; it is on disk.

    Attributes:
        status: with the row's key; ``finished`` is false if DES refuses.
    """

    status: RunStatus


class Pulse(NamedTuple):
    """Progress of a session, once a second.

    Attributes:
        in_flight: rows without a response.
        slots: current maximum of starts in flight: lowered after a pause, 0 during one.
        drain: seconds that are left of a drain, or None.
        is_paused: paused by ``deslaunch control``.
    """

    in_flight: int
    slots: int
    drain: float | None = None
    is_paused: bool = False


Ended = RowEnded | RunEnded | TargetStopped
Event = Planned | RetryPlanned | TargetPaused | TokenRenewed | Noted | Pulse | Draining | Ended
"""An event of a launch or a watch."""


class Counts(NamedTuple):
    """Rows of the ledger by state.

    Attributes:
        rows: the sum of the eight states.
        started: DES responded with a jobRunId.
        failed: 5XX to the last attempt.
        rejected: DES refused it.
        unknown: sent, and no usable response.
        invalid: did not pass the check.
        withdrawn: withdrawn by the user.
        pending: to be sent; certainly not started.
        in_flight: sent, without a response yet; 0 if no launcher is at work.
        possible_duplicates: started rows that another attempt may have started too.
        attempts: POSTs that left, in all sessions.
    """

    started: int = 0
    failed: int = 0
    rejected: int = 0
    unknown: int = 0
    invalid: int = 0
    withdrawn: int = 0
    pending: int = 0
    in_flight: int = 0
    possible_duplicates: int = 0
    attempts: int = 0

    @property
    def rows(self) -> int:
        """All rows: the sum of the eight states."""
        return sum(self[:8])

    def as_dict(self) -> dict[str, int]:
        """Return the counts in the documented form of ``--json``."""
        said = {"in_flight": "inFlight", "possible_duplicates": "possibleDuplicates"}
        counts = {said.get(name, name): number for name, number in self._asdict().items()}
        return {"rows": self.rows, **counts}


class Summary(NamedTuple):
    """The counts of a whole batch, of all sessions.

    Attributes:
        counts: of all rows.
        targets: of each target's rows.
        started_now: rows that this session started.
        seconds: duration of the last session.
        ledger: the ledger's place.
        stops: why the session ended early, if it did.
        unrecorded: (key, jobRunId) that could not be written to the ledger.
        left_to_repeat: rows whose failed run this session should have repeated, and did not.
    """

    counts: Counts
    ledger: str
    targets: Mapping[str, Counts] = {}
    started_now: int = 0
    seconds: float = 0.0
    stops: tuple[Stop, ...] = ()
    unrecorded: tuple[tuple[str, str], ...] = ()
    left_to_repeat: int = 0

    @property
    def left(self) -> int:
        """Rows that are still to be sent, or have no response yet."""
        return self.counts.pending + self.counts.in_flight + self.left_to_repeat

    @property
    def exit_code(self) -> int:
        """The exit code of the batch. The first match applies.

        7 (ledger), then, only where rows are left: 6 (credentials), 5 (stopped), 129, 130 or
        143 (interrupted), 5 (pending for any other reason); then 4 (unknown rows), 3 (rows
        failed, were rejected or are invalid), 0.
        """
        rows = self.counts
        bad = rows.failed + rows.rejected + rows.invalid
        code = _exit_code(self.stops, self.left, rows.unknown, bad)
        return 7 if self.unrecorded else code

    def as_dict(self) -> dict[str, object]:
        """Return the summary in the documented form of ``--json``."""
        stops = {
            stop.target: {"reason": str(stop.reason), "message": stop.message}
            for stop in self.stops
        }
        return {
            **self.counts.as_dict(),
            "startedNow": self.started_now,
            "unrecorded": [{"key": key, "jobRunId": run} for key, run in self.unrecorded],
            "seconds": round(self.seconds, 3),
            "ledger": self.ledger,
            "targets": {
                name: {**counts.as_dict(), "stop": stops.get(name)}
                for name, counts in self.targets.items()
            },
            "exitCode": self.exit_code,
        }


def _exit_code(stops: tuple[Stop, ...], left: int, unknown: int, bad: int) -> int:
    """Return the exit code for so many rows (or runs) left, unknown and bad."""
    reasons = {stop.reason for stop in stops}

    if StopReason.LEDGER in reasons:
        return 7

    if left and StopReason.CREDENTIALS in reasons:
        return 6

    if left and reasons == {StopReason.INTERRUPTED}:
        # A cancellation, an interrupt without a signal, counts as SIGINT.
        return 128 + next((stop.signal for stop in stops if stop.signal), 2)

    return next((code for code, rows in ((5, left), (4, unknown), (3, bad)) if rows), 0)


class WatchSummary(NamedTuple):
    """The counts of a whole batch's runs.

    Attributes:
        succeeded: finished with success.
        failed: finished without success.
        untold: DES refused the last query of their status.
        unfinished: not finished when last queried, or not queried yet.
        batch: the counts of the rows.
        failures: the five most frequent statuses of failed runs: text, number of runs, and the
            key of one of them.
        seconds: duration of this watch.
        stops: why it ended early, if it did.
        is_trial: it follows a launch with a limit: pending rows don't change the exit code.
    """

    succeeded: int
    failed: int
    untold: int
    unfinished: int
    batch: Summary
    failures: tuple[tuple[str, int, str], ...] = ()
    seconds: float = 0.0
    stops: tuple[Stop, ...] = ()
    is_trial: bool = False

    @property
    def runs(self) -> int:
        """Rows that have a run."""
        return self.succeeded + self.failed + self.untold + self.unfinished

    @property
    def exit_code(self) -> int:
        """The exit code of the runs and the batch. The first match applies.

        7 (ledger); then, only where runs have not finished or rows are pending: 6 (credentials),
        129, 130 or 143 (interrupted), 5; then 4 (rows are unknown, or DES refused queries), 3
        (runs failed, or rows have none), 0: every run finished with success.
        """
        rows = self.batch.counts
        left = self.unfinished + (0 if self.is_trial else rows.pending + rows.in_flight)
        bad = self.failed + rows.failed + rows.rejected + rows.invalid + bool(self.batch.unrecorded)
        return _exit_code(self.stops, left, self.untold + rows.unknown, bad)

    def as_dict(self) -> dict[str, object]:
        """Return the summary in the documented form of ``watch --json``."""
        return {
            "runs": self.runs,
            **{name: getattr(self, name) for name in self._fields[:4]},
            "failures": [{"status": text, "runs": n, "key": key} for text, n, key in self.failures],
            "seconds": round(self.seconds, 3),
            "ledger": self.batch.ledger,
            "batch": self.batch.as_dict(),
            "exitCode": self.exit_code,
        }
