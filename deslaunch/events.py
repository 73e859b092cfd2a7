"""The events of a session, and its summary.

Every event is an immutable value. A listener is called in the event loop, after the outcome that
the event reports is on disk; it must return quickly. A listener that raises drains the launch.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from deslaunch.model import Outcome, Problem, RowState, RunStatus


class StopReason(StrEnum):
    """Why a session, or a target of it, ended before its rows did."""

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
    """The end of a target (or of the session) before its rows ended.

    Attributes:
        reason: the kind of end.
        message: what happened, one sentence.
        target: whose end it is, or None for the whole session.
        signal: the signal's number where the reason is an interrupt, else 0.
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
        is_paused: nothing new is sent.
        is_stopped: they drain, and end.
        concurrency: slots of each launcher, 1 to 1,024, or None: its own setting.
        rate: starts a second of each launcher at most, above 0, or None: its own setting.
    """

    is_paused: bool = False
    is_stopped: bool = False
    concurrency: int | None = None
    rate: float | None = None

    def __str__(self) -> str:
        said = {
            "paused": self.is_paused,
            "stopped": self.is_stopped,
            f"{self.concurrency} slots": self.concurrency,
            f"at most {self.rate:g} starts a second" if self.rate else "": self.rate,
        }
        return ", ".join(text for text, holds in said.items() if holds)


class ProblemGroup(NamedTuple):
    """A problem that several rows have in the same column.

    Attributes:
        first: the problem of the first such row.
        rows: how many rows have it.
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
        name: the job's name, or ``""`` where that is not known.
        rows: how many.
    """

    target: str
    job_id: str
    name: str
    rows: int


class Plan(NamedTuple):
    """What a session is about to do; emitted before anything is sent.

    Attributes:
        manifest: where the rows came from: a path, ``"-"`` for stdin, ``"<rows>"``.
        ledger: the ledger's place; a new batch's is made once the plan is agreed to.
        rows: rows of the batch.
        ready: rows that could be started now.
        jobs: the ready rows by target and job, the most rows first.
        states: rows of the batch by state.
        resumes: it goes on with a batch.
        concurrency: slots: starts in flight at most.
        rate: starts a second at most, or None for no limit.
        limit: rows that the session starts at most, or None for no limit.
        corrections: (rows replaced, rows added) by a file of corrections, or None without one.
        warnings: what a person should know before it begins.
        before: when these rows were last started, and how that ended; ``""``: never.
        stops_at: when nothing new is sent any more, seconds since 1970, or None.
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
        """Rows that the session starts at most."""
        return self.ready if self.limit is None else min(self.ready, self.limit)

    @property
    def seconds(self) -> float | None:
        """Seconds that the starts take at least; None where only DES's responses will tell."""
        return None if self.rate is None else self.send / self.rate


class Planned(NamedTuple):
    """A session is about to begin; nothing was sent yet."""

    plan: Plan


class RowEnded(NamedTuple):
    """A row reached a state that this session will not change; or an invalid row was met."""

    outcome: Outcome


class RetryPlanned(NamedTuple):
    """A row got a 5XX; it gave up its slot and will be sent again.

    Attributes:
        outcome: of the attempt that failed.
        seconds: until it is sent again, at the earliest.
    """

    outcome: Outcome
    seconds: float


class TargetPaused(NamedTuple):
    """All rows of a target wait.

    Attributes:
        target: the target's name.
        cause: what DES or the network said.
        seconds: how long.
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
        is_warning: it may be a mistake, or costs something.
    """

    message: str
    is_warning: bool = False


class Draining(NamedTuple):
    """No new row is sent; those in flight are waited for.

    Attributes:
        in_flight: rows whose response is awaited.
        seconds: that they get at most.
    """

    in_flight: int
    seconds: float


class TargetStopped(NamedTuple):
    """A target, or the session, ended early."""

    stop: Stop


class RunEnded(NamedTuple):
    """A watched run has ended, or DES refuses to tell of it; it is on disk.

    Attributes:
        status: with the row's key; ``finished`` is false where DES refuses.
    """

    status: RunStatus


class Pulse(NamedTuple):
    """Progress of a session, once a second.

    Attributes:
        in_flight: rows whose response is awaited.
        slots: starts that may be in flight now; fewer while DES is spared, 0 while all wait.
        drain: seconds that are left of a drain, or None.
        is_paused: a person told it to send nothing new.
    """

    in_flight: int
    slots: int
    drain: float | None = None
    is_paused: bool = False


Ended = RowEnded | RunEnded | TargetStopped
Event = Planned | RetryPlanned | TargetPaused | TokenRenewed | Noted | Pulse | Draining | Ended
"""What a launch, or a watch, tells while it goes on."""


class Counts(NamedTuple):
    """Rows by state, as the ledger has them.

    Attributes:
        rows: the sum of the eight states.
        started: DES responded with a jobRunId.
        failed: 5XX to the last attempt.
        rejected: DES said no.
        unknown: sent, and no usable response.
        invalid: did not validate.
        withdrawn: taken back by a person.
        pending: nothing in doubt, nothing final.
        in_flight: sent by a launcher at work; 0 in a batch at rest.
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
    """The whole batch, as its ledger stands: the counts of all sessions.

    Attributes:
        counts: of all rows.
        targets: of each target's rows.
        started_now: rows that this session started.
        seconds: duration of the last session.
        ledger: the ledger's place.
        stops: why the session ended early, if it did.
        unrecorded: (key, jobRunId) that could not be written to the ledger.
        left_to_repeat: rows whose failed run this session was to repeat, and did not.
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
        """Rows that are still to be sent, or whose response is awaited."""
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
    """The runs of a whole batch, as its ledger stands.

    Attributes:
        succeeded: finished with success.
        failed: finished without.
        untold: DES refused to tell of them, when they were last asked about.
        unfinished: not finished, as far as is known.
        batch: how the rows stand.
        failures: what DES said of runs that failed, the commonest first, the first five: the
            text, how many runs, and the key of one of them.
        seconds: duration of this watch.
        stops: why it ended early, if it did.
        is_trial: a launch that was limited was followed to its end: rows that are left count for
            nothing.
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
        129, 130 or 143 (interrupted), 5; then 4 (rows are unknown, or DES does not tell of
        runs), 3 (runs failed, or rows have none), 0: every run finished with success.
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
