"""The frozen values that travel from manifest to ledger.

``Row``, ``StartRequest`` and ``Outcome`` are named tuples: one of each is made for every row, and
a frozen dataclass costs three times as much to make.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import Enum, StrEnum
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_TARGET: Final = "default"
GOT_LIMIT: Final = 120
KEPT_PROBLEMS: Final = 1_000
"""Problems of a manifest that are kept, and that ``check --json`` lists."""


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is one."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


_SIGINT: Final = 2  # what an interrupt without a signal, a cancellation, counts as

Format = Literal["jsonl", "csv"]
"""The form of a manifest, and of results."""


class Auto(Enum):
    """The auto value: DES works the parameter out from the job's earlier runs."""

    AUTO = "auto"


AUTO: Final = Auto.AUTO


class TypedValue(NamedTuple):
    """A JobRunParameterValue that the row spelled out itself.

    Attributes:
        type: JobRunParameterType, or None for DES's default, a string.
        value: the text, None for null, or ``AUTO``.
    """

    type: int | None
    value: str | Auto | None


ParameterValue = str | Auto | TypedValue | None
"""What a row says of one parameter: a text, null, the auto value, or a typed value."""


class Row(NamedTuple):
    """One data row of a manifest, as it was read; nothing was checked against a schema.

    Attributes:
        number: data rows counted from 1.
        line: physical line where the row begins, from 1; for rows that come from no file, the
            row's number.
        key: the manifest's own key, or None.
        target: the target's name.
        job_id: GUID, lower case.
        parameters: name to what the row says of it.
    """

    number: int
    line: int
    key: str | None
    target: str
    job_id: str
    parameters: Mapping[str, ParameterValue]


@dataclass(frozen=True, slots=True)
class RowProblem:
    """One reason why a row can't be started.

    Attributes:
        file: the manifest as it was named, or ``"<rows>"`` for an iterable.
        line: physical line, from 1.
        row: data row, from 1; 0 where the problem precedes all rows.
        column: column or parameter, or ``""`` where the whole row is meant.
        expected: what would have been right.
        got: what came, cut to 120 characters.
        message: one sentence that says what is wrong and what to do.
    """

    file: str
    line: int
    row: int
    column: str
    expected: str
    got: str
    message: str

    def __str__(self) -> str:
        column = f", column {self.column}" if self.column else ""
        return f"{self.file}:{self.line}{column}: {self.message}"

    @property
    def said(self) -> tuple[str, str]:
        """What makes the problems of several rows the same: column and message."""
        return self.column, self.message

    def as_dict(self) -> dict[str, str | int]:
        """Return the problem in the form of ``check --json``."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ProblemGroup:
    """A problem that several rows have in the same column, told once.

    Attributes:
        first: the problem of the first such row.
        rows: how many rows have it.
    """

    first: RowProblem
    rows: int = 1

    @property
    def said(self) -> tuple[str, str]:
        """What the rows' problems share: column and message."""
        return self.first.said

    def __str__(self) -> str:
        if self.rows == 1:
            return str(self.first)

        column = f", column {self.first.column}" if self.first.column else ""
        where = f"{self.first.file}:{self.first.line}{column}"
        return f"{where} ({self.rows:,} rows): {self.first.message}"


def shown(value: object) -> str:
    """Return ``value`` as a problem's ``got``: its text, cut to a sane length."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= GOT_LIMIT else f"{text[: GOT_LIMIT - 1]}…"


class StartRequest(NamedTuple):
    """One validated start, ready to be sent.

    Attributes:
        key: unique in the batch.
        row: data row, from 1.
        line: physical line, from 1.
        target: the target's name.
        job_id: GUID, lower case.
        digest: digest of what the row says, 32 hex digits.
        body: the StartJobBody, JSON, UTF-8.
        auto: whether any parameter uses the auto value.
    """

    key: str
    row: int
    line: int
    target: str
    job_id: str
    digest: str
    body: bytes
    auto: bool


class StartedRun(NamedTuple):
    """DES's answer to a start: the run exists.

    Attributes:
        job_id: GUID of the job, lower case.
        job_run_id: GUID of the run, as DES spelled it: the only handle for later queries.
    """

    job_id: str
    job_run_id: str


@dataclass(frozen=True, slots=True)
class Grant:
    """The auth server's answer to a grant; its repr shows no token.

    Attributes:
        access_token: the bearer token.
        refresh_token: buys the next one, once; or None.
        expires_in: seconds that the access token is good for, above 0, or None.
        svc: base URL of the organisation's DES, or None.
        org_id: the organisation, or None.
    """

    access_token: str = field(repr=False)
    refresh_token: str | None = field(default=None, repr=False)
    expires_in: float | None = None
    svc: str | None = None
    org_id: str | None = None


class Evidence:
    """What one attempt is known to have done; told by the client, asked after a cancellation.

    Attributes:
        sent: a byte of the request may have left this machine.
    """

    __slots__ = ("sent",)

    def __init__(self) -> None:
        self.sent = False

    def __repr__(self) -> str:
        return f"<Evidence sent={self.sent}>"


class RowState(StrEnum):
    """What the ledger says of a row."""

    PENDING = "pending"
    STARTED = "started"
    FAILED = "failed"
    REJECTED = "rejected"
    UNKNOWN = "unknown"
    INVALID = "invalid"
    IN_FLIGHT = "inFlight"
    """Sent by a launcher that holds the ledger right now; no state of a batch at rest."""


class RunState(StrEnum):
    """What is known of the run of a started row."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    UNTOLD = "untold"
    """DES refused to tell of it when it was last asked."""
    UNFINISHED = "unfinished"
    """It has not finished, or nobody watched it."""


@dataclass(frozen=True, slots=True)
class JobParameter:
    """One of a job's JobRunParameters, as QueryJobs declares it.

    Attributes:
        name: the parameter's name; DES compares it exactly.
        type: JobRunParameterType, or None where DES declared none.
        required: a value, even null, must be sent.
        nullable: null is allowed.
        supports_auto: the auto value is allowed.
        description: the template's own words, or ``""``.
    """

    name: str
    type: int | None
    required: bool = False
    nullable: bool = False
    supports_auto: bool = False
    description: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """A job of one organisation, and the parameters that its runs take.

    Attributes:
        job_id: GUID, lower case.
        name: the job's name, or ``""``.
        parameters: in the order in which DES lists them.
    """

    job_id: str
    name: str
    parameters: tuple[JobParameter, ...]


@dataclass(frozen=True, slots=True)
class RunStatus:
    """QueryJobRunStatusResponse: how one run is getting on.

    Attributes:
        job_id: GUID, or ``""`` where DES named none.
        job_run_id: GUID of the run.
        finished: the run has ended.
        success: it ended well; means nothing unless ``finished``.
        status: DES's text, the error of a failed run, up to 4,096 characters, or None.
        created_utc: ISO 8601, or None.
        finished_utc: ISO 8601, or None.
        output_files: the files' metadata as DES gave it.
        key: the row's key, where a batch is watched; else None.
    """

    job_id: str
    job_run_id: str
    finished: bool
    success: bool
    status: str | None = None
    created_utc: str | None = None
    finished_utc: str | None = None
    output_files: tuple[object, ...] = ()
    key: str | None = None


class Outcome(NamedTuple):
    """What became of one row in this session, on disk by the time it is seen.

    Attributes:
        key: the row's key, or None for an invalid row that has none.
        row: data row, from 1.
        target: the target's name.
        job_id: GUID of the job, or None where the row named none that could be read.
        state: what the ledger says of the row now.
        job_run_id: the run's GUID where ``state`` is ``started``.
        attempts: starts sent for the row, in all sessions.
        status: HTTP status of the last answer, or None.
        error: what was wrong, or ``""``.
        possible_duplicate: started, and an earlier attempt may have started a run too.
        problems: why an invalid row is invalid.
    """

    key: str | None
    row: int
    target: str
    job_id: str | None
    state: RowState
    job_run_id: str | None = None
    attempts: int = 0
    status: int | None = None
    error: str = ""
    possible_duplicate: bool = False
    problems: tuple[RowProblem, ...] = ()


class StopReason(StrEnum):
    """Why a session, or a target of it, ended before its rows did."""

    UNREACHABLE = "unreachable"
    FIRST_CONTACT = "firstContact"
    THROTTLED = "throttled"
    CONFIGURATION = "configuration"
    CREDENTIALS = "credentials"
    TOO_MANY_ERRORS = "tooManyErrors"
    MANIFEST_CHANGED = "manifestChanged"
    INTERRUPTED = "interrupted"
    LEDGER = "ledger"
    OUT_OF_TIME = "outOfTime"
    LIMIT = "limit"


@dataclass(frozen=True, slots=True)
class PlannedJob:
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


@dataclass(frozen=True, slots=True)
class Plan:
    """What a session is about to do, told before anything is sent.

    Attributes:
        manifest: path of the manifest.
        ledger: path of the ledger; a new batch's is made once the plan is agreed to.
        resumes: it goes on with a batch.
        rows: data rows of the manifest.
        invalid: rows of the manifest that can't be started.
        ready: rows that could be started now.
        jobs: the ready rows by target and job, the most rows first.
        states: rows by what the ledger says of them; empty for a new batch.
        slots: starts in flight at most.
        rate: starts a second at most, or None for no limit.
        limit: rows that the session starts at most, or None for no limit.
        shard: ``"I/N"`` where the batch is the I-th of N shards of the manifest, else None.
    """

    manifest: str
    ledger: str
    resumes: bool
    rows: int
    invalid: int
    ready: int
    jobs: tuple[PlannedJob, ...]
    states: Mapping[RowState, int]
    slots: int
    rate: float | None = None
    limit: int | None = None
    shard: str | None = None

    @property
    def send(self) -> int:
        """Rows that the session starts."""
        return self.ready if self.limit is None else min(self.ready, self.limit)

    @property
    def seconds(self) -> float | None:
        """Seconds that the starts take at least; None where only DES's answers will tell."""
        return None if self.rate is None else self.send / self.rate


@dataclass(frozen=True, slots=True)
class Stop:
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


@dataclass(frozen=True, slots=True)
class RowEnded:
    """A row reached a state that this session will not change."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class RetryPlanned:
    """A row got a 5XX; it gave up its slot and will be sent again.

    Attributes:
        key: the row's key.
        target: the target's name.
        status: the HTTP status.
        wait: seconds until it is sent again.
    """

    key: str
    target: str
    status: int | None
    wait: float


@dataclass(frozen=True, slots=True)
class TargetPaused:
    """All rows of a target wait.

    Attributes:
        target: the target's name.
        cause: what DES or the network said.
        seconds: how long.
    """

    target: str
    cause: str
    seconds: float


@dataclass(frozen=True, slots=True)
class TokenRenewed:
    """A refused token was replaced by a new one."""

    target: str


@dataclass(frozen=True, slots=True)
class Noted:
    """Something that a person may want to know before anything is sent.

    Attributes:
        message: one sentence.
        is_warning: it may be a mistake.
    """

    message: str
    is_warning: bool


@dataclass(frozen=True, slots=True)
class Draining:
    """No new row is sent; those in flight are waited for.

    Attributes:
        in_flight: rows whose answer is awaited.
        timeout: seconds that they get at most.
    """

    in_flight: int
    timeout: float


@dataclass(frozen=True, slots=True)
class Stopped:
    """A target, or the session, ended early."""

    stop: Stop


@dataclass(frozen=True, slots=True)
class RunEnded:
    """A watched run has ended, or DES refuses to tell of it; it is on disk.

    Attributes:
        status: with the row's key; ``finished`` is false where DES refuses.
    """

    status: RunStatus


@dataclass(frozen=True, slots=True)
class Planned:
    """A session is about to begin; nothing was sent yet."""

    plan: Plan


@dataclass(frozen=True, slots=True)
class Pulse:
    """How a session is getting on; told once a second.

    Attributes:
        in_flight: rows whose answer is awaited.
        waiting: rows that were read and wait: for a slot, for their target, or to be sent again.
        slots: starts that may be in flight now; fewer while DES is spared, 0 while all wait.
    """

    in_flight: int
    waiting: int
    slots: int


Event = (
    RowEnded
    | RetryPlanned
    | TargetPaused
    | TokenRenewed
    | Noted
    | Planned
    | Pulse
    | Draining
    | Stopped
    | RunEnded
)
"""What a launch, or a watch, tells while it goes on."""


@dataclass(frozen=True, slots=True)
class Summary:
    """The whole batch, as its ledger stands: the counts of all sessions.

    Attributes:
        rows: rows of the batch; the sum of the states below.
        started: DES answered with a jobRunId.
        failed: 5XX to the last attempt.
        rejected: DES said no.
        unknown: sent, and no usable answer.
        invalid: did not validate.
        pending: nothing in doubt, nothing final.
        in_flight: sent by a launcher at work; 0 in a batch at rest.
        possible_duplicates: started rows that an earlier attempt may have started too.
        attempts: starts sent in all sessions.
        seconds: duration of the last session.
        ledger: path of the ledger.
        stops: why the session ended early, if it did.
        unrecorded: (key, jobRunId) that could not be written to the ledger.
        shared_runs: each jobRunId that stands at more than one row, with the rows' keys.
    """

    rows: int
    started: int
    failed: int
    rejected: int
    unknown: int
    invalid: int
    pending: int
    in_flight: int
    possible_duplicates: int
    attempts: int
    seconds: float
    ledger: str
    stops: tuple[Stop, ...] = field(default=())
    unrecorded: tuple[tuple[str, str], ...] = field(default=())
    shared_runs: tuple[tuple[str, tuple[str, ...]], ...] = field(default=())

    @property
    def exit_code(self) -> int:
        """The exit code that the batch deserves, 0 to 143; the highest claim wins.

        7 (ledger), 6 (credentials), 5 (stopped), 130 or 143 (interrupted, rows pending),
        5 (rows pending for any other reason), 4 (unknown rows), 3 (rows failed, rejected or
        invalid), 0.
        """
        reasons = {stop.reason for stop in self.stops}

        if StopReason.LEDGER in reasons:
            return 7

        if self.pending or self.in_flight:
            return self._exit_code_of_pending(reasons)

        if StopReason.MANIFEST_CHANGED in reasons:
            return 5

        if self.unknown:
            return 4

        return 3 if self.failed or self.rejected or self.invalid else 0

    def _exit_code_of_pending(self, reasons: set[StopReason]) -> int:
        if StopReason.CREDENTIALS in reasons:
            return 6

        if not reasons or reasons - {StopReason.INTERRUPTED}:
            return 5

        return 128 + next((stop.signal for stop in self.stops if stop.signal), _SIGINT)

    def as_dict(self) -> dict[str, int | float | str]:
        """Return the summary in the documented form of ``--json``."""
        return {
            "rows": self.rows,
            "started": self.started,
            "failed": self.failed,
            "rejected": self.rejected,
            "unknown": self.unknown,
            "invalid": self.invalid,
            "pending": self.pending,
            "inFlight": self.in_flight,
            "possibleDuplicates": self.possible_duplicates,
            "attempts": self.attempts,
            "seconds": round(self.seconds, 3),
            "ledger": self.ledger,
            "exitCode": self.exit_code,
        }


@dataclass(frozen=True, slots=True)
class WatchSummary:
    """The runs of a whole batch, as its ledger stands.

    Attributes:
        runs: rows that have a run; the sum of the four below.
        succeeded: finished with success.
        failed: finished without.
        untold: DES refused to tell of them, when they were last asked about.
        unfinished: not finished, as far as is known.
        batch: how the rows stand.
        failures: what DES said of runs that failed, the commonest first, the first five: the
            text, how many runs, and the key of one of them.
        seconds: duration of this watch.
        stops: why it ended early, if it did.
    """

    runs: int
    succeeded: int
    failed: int
    untold: int
    unfinished: int
    batch: Summary
    failures: tuple[tuple[str, int, str], ...] = field(default=())
    seconds: float = 0.0
    stops: tuple[Stop, ...] = field(default=())

    @property
    def exit_code(self) -> int:
        """The exit code that the runs and the batch deserve, 0 to 143; the highest claim wins.

        7 (ledger), 6 (credentials), 130 or 143 (interrupted), 5 (runs have not finished, or rows
        are pending), 4 (rows are unknown, or DES does not tell of runs), 3 (runs failed, or rows
        have none), 0: every row is started, and every run finished with success.
        """
        reasons = {stop.reason for stop in self.stops}

        if StopReason.LEDGER in reasons:
            return 7

        if self.unfinished or self.batch.pending or self.batch.in_flight:
            return self._exit_code_of_unfinished(reasons)

        if self.untold or self.batch.unknown:
            return 4

        return 3 if self.failed or self.batch.exit_code else 0

    def _exit_code_of_unfinished(self, reasons: set[StopReason]) -> int:
        if StopReason.CREDENTIALS in reasons:
            return 6

        if reasons != {StopReason.INTERRUPTED}:
            return 5

        return 128 + next((stop.signal for stop in self.stops if stop.signal), _SIGINT)

    def as_dict(self) -> dict[str, object]:
        """Return the summary in the documented form of ``watch --json``."""
        return {
            "runs": self.runs,
            "succeeded": self.succeeded,
            "failed": self.failed,
            "untold": self.untold,
            "unfinished": self.unfinished,
            "failures": [
                {"status": text, "runs": runs, "key": key} for text, runs, key in self.failures
            ],
            "seconds": round(self.seconds, 3),
            "ledger": self.batch.ledger,
            "batch": self.batch.as_dict(),
            "exitCode": self.exit_code,
        }
