"""The ledger: what became of every row, and which rows may be sent next.

A batch is imported once (:func:`begin_import`); from then on the ledger is the batch. A session
hands over what came in and takes what may be sent by one call, :meth:`Ledger.exchange`, which is
one durable transaction. Everything that touches the database runs in the ledger's own thread.
The rules are SQL, in ``queries.sql``: how a row's state follows from its attempts stands there,
once, under ``derive``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from deslaunch.events import Counts
    from deslaunch.ledger.findings import Finding
    from deslaunch.model import Job, Outcome, Problem, Row, RowState, RunStatus, Start

PORTION = 512
"""Rows that are read at a time; no cursor stays open between two portions."""


class CheckedRow(Protocol):
    """A row that may be sent (``manifest.check.CheckedRow``)."""

    @property
    def row(self) -> Row: ...
    @property
    def key(self) -> str: ...
    @property
    def has_own_key(self) -> bool: ...
    @property
    def body(self) -> bytes: ...
    @property
    def digest(self) -> bytes: ...
    @property
    def auto(self) -> bool: ...
    @property
    def says(self) -> str: ...


class InvalidRow(Protocol):
    """A row that did not validate (``manifest.check.InvalidRow``)."""

    @property
    def number(self) -> int: ...
    @property
    def line(self) -> int: ...
    @property
    def key(self) -> str | None: ...
    @property
    def target(self) -> str: ...
    @property
    def job_id(self) -> str: ...
    @property
    def problems(self) -> tuple[Problem, ...]: ...
    @property
    def says(self) -> str: ...


class NewBatch(NamedTuple):
    """What is known of a batch before its first row is read.

    Attributes:
        manifest: as it was named: a path, ``"-"`` for stdin, ``"<rows>"``.
        options: what its command line gave of the options that are kept, and of those that
            say how its rows were read; JSON values.
        is_whole: no rows are added later; False for rows of a program.
    """

    manifest: str
    options: Mapping[str, Any]
    is_whole: bool = True


class BatchInfo(NamedTuple):
    """What the ledger says of its batch.

    Attributes:
        name: of the batch: its file's name without ``.ledger.db``.
        manifest: as it was named at the import.
        digest: SHA-256 of its uncompressed bytes, hex; ``""`` for rows of a program.
        columns: header of a CSV manifest as it was written; None for JSONL.
        rows: rows that the import brought.
        options: as in :class:`NewBatch`, with what later command lines gave.
        imported_ms: ms since 1970, UTC.
        is_whole: no more rows are to be added by a program.
    """

    name: str
    manifest: str
    digest: str
    columns: tuple[str, ...] | None
    rows: int
    options: dict[str, Any]
    imported_ms: int
    is_whole: bool


class TargetInfo(NamedTuple):
    """Where a target's rows were last sent; None where none were.

    Attributes:
        base_url: of the last session.
        org_id: the organisation that its token source names, where one is named.
    """

    base_url: str | None
    org_id: str | None


class KnownJob(NamedTuple):
    """A job as its rows were checked.

    Attributes:
        target: the target's name.
        job: with the JobRunParameters that the rows were checked with.
        is_checked: False where its target could not be asked: its rows are unchecked.
        from_des: the parameters came from DES; False for a schema file.
    """

    target: str
    job: Job
    is_checked: bool
    from_des: bool


class NewSession(NamedTuple):
    """A launcher that is about to begin.

    Attributes:
        targets: where each target's rows go, by name.
        options: all of its options, JSON values; for the record.
        kept: options to keep for later sessions, merged into the batch's.
        retry_rejected: consent to send rejected rows again, unchanged.
        retry_unknown: consent to send unknown rows again; an auto-value row is left.
        timeout: seconds of one attempt in all; an unknown row's window ends after it.
        give_up_after: seconds that a turn waits for SQLite's write lock.
    """

    targets: Mapping[str, TargetInfo]
    options: Mapping[str, Any] = {}
    kept: Mapping[str, Any] = {}
    retry_rejected: bool = False
    retry_unknown: bool = False
    timeout: float = 60.0
    give_up_after: float = 900.0


class SessionStart(NamedTuple):
    """How the batch stands when a session begins.

    Attributes:
        number: of the session, from 1.
        lost: rows that an ended launcher had in flight: unknown now.
        due: as in :class:`Exchange`, of every target.
    """

    number: int
    lost: int
    due: Mapping[str, float | None]


class Exchange(NamedTuple):
    """What one turn gave; all of it is on disk.

    Attributes:
        outcomes: those that were handed over, in their order, with state, attempts and
            possible_duplicate as the ledger knows them. A jobRunId that another row has turned
            its outcome to unknown.
        starts: rows to send, whose intents are durable.
        due: for each target of the claims and outcomes: seconds until its next row may be
            claimed (0: now), or None: nothing is left for this session.
    """

    outcomes: list[Outcome]
    starts: list[Start]
    due: dict[str, float | None]


class Plan(NamedTuple):
    """How a batch stands, by job.

    Attributes:
        states: rows by state.
        ready: rows that a session with these consents may send, by (target, jobId).
        names: the jobs' names by (target, jobId); ``""`` where that is not known.
    """

    states: dict[RowState, int]
    ready: dict[tuple[str, str], int]
    names: dict[tuple[str, str], str]


class Added(NamedTuple):
    """What became of rows that a program added.

    Attributes:
        numbers: the number in the batch of each row, in the order given.
        same: how many the batch had already, saying the same: they were skipped.
    """

    numbers: list[int]
    same: int


class Corrections(NamedTuple):
    """What a file of corrections does; nothing where there are problems.

    Attributes:
        replaced: rows that say something else now and are pending.
        added: rows that the batch did not have.
        same: rows that say what the batch has; they stay as they are.
        problems: why nothing was applied.
    """

    replaced: int
    added: int
    same: int
    problems: tuple[Problem, ...]


class Resolved(NamedTuple):
    """What findings did.

    Attributes:
        changed: rows with a new finding.
        same: rows of which the ledger had this finding.
        early: (key, ms since 1970 when its window is over) of rows that are said not to have
            started before that; nothing was applied where there are any, unless ``early``.
    """

    changed: int
    same: int
    early: tuple[tuple[str, int], ...]


class Launcher(NamedTuple):
    """Who holds the batch's lock.

    Attributes:
        pid: process; 0 where neither the lock nor the ledger tells.
        host: ``""`` where the ledger does not tell.
        since_ms: ms since 1970, or None.
    """

    pid: int
    host: str
    since_ms: int | None


class SessionInfo(NamedTuple):
    """One session, as the ledger keeps it.

    Attributes:
        number: from 1.
        host: where it ran.
        pid: its process.
        began_ms: ms since 1970.
        ended_ms: None where it did not come to its end.
        exit_code: None where it did not come to its end.
        stops: why it ended early: dicts with reason, message, target, resumeAfter.
        options: as given.
        targets: base URL by target.
    """

    number: int
    host: str
    pid: int
    began_ms: int
    ended_ms: int | None
    exit_code: int | None
    stops: list[dict[str, Any]]
    options: dict[str, Any]
    targets: dict[str, str]


class ResultRow(NamedTuple):
    """One row of the view ``results``; flags are 0, 1 or None, times RFC 3339 in UTC.

    Attributes:
        says: what the row says (JSON), where rows were asked for; else None.
    """

    batch: str
    key: str
    row: int
    target: str
    job_id: str
    job_name: str
    state: str
    job_run_id: str | None
    attempts: int
    status: int | None
    error: str
    possible_duplicate: int
    sent_utc: str | None
    answered_utc: str | None
    finished: int | None
    success: int | None
    status_text: str | None
    finished_utc: str | None
    output_files: str | None
    says: str | None = None


class UnknownRow(NamedTuple):
    """A row whose outcome is unknown, and where to look for its run.

    Attributes:
        says: what the row says, JSON.
        error: what came instead of a usable response.
        job_run_id: one that came and can't be relied on, or None.
        from_ms: its run was created after this, by DES's clock, ms since 1970.
        until_ms: and before this.
    """

    row: int
    key: str
    target: str
    job_id: str
    job_name: str
    says: str
    error: str
    job_run_id: str | None
    from_ms: int
    until_ms: int


class RunToAsk(NamedTuple):
    """A run that has not ended as far as is known."""

    row: int
    attempt: int
    key: str
    target: str
    job_id: str
    job_run_id: str


class RunCounts(NamedTuple):
    """How the runs of a batch stand; as in ``events.WatchSummary``."""

    succeeded: int
    failed: int
    untold: int
    unfinished: int
    failures: tuple[tuple[str, int, str], ...]


class LogEntry(NamedTuple):
    """One attempt or event.

    Attributes:
        ms: when it ended or happened, ms since 1970; of an open attempt, when it was meant.
        kind: ``attempt``, ``session``, ``resolution``, ``correction`` or an event's kind.
        session: number, or None.
        key: of the row, or None.
        target: or None.
        details: what else there is, by its name in JSON.
    """

    ms: int
    kind: str
    session: int | None
    key: str | None
    target: str | None
    details: dict[str, Any]


class Store(Protocol):
    """What the ledger needs of a database; all of it runs in the ledger's thread."""

    place: str

    def transaction(self) -> AbstractContextManager[None]:
        """Begin, and commit at the end of the block; what raises rolls back.

        Raises:
            LedgerWriteFailed: it may or may not be durable.
        """
        ...

    def fetch(self, query: str, parameters: Any = ()) -> list[Any]:
        """Return all rows of a named query."""
        ...

    def run(self, query: str, parameters: Any = ()) -> int:
        """Run a named query; return how many rows it changed."""
        ...

    def many(self, query: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run a named query once for each row of parameters."""
        ...


class Import:
    """A batch on its way into its ledger; nobody sees it before :meth:`publish`."""

    async def add(self, rows: Sequence[CheckedRow | InvalidRow]) -> None:
        """Take the next rows, in manifest order."""
        raise NotImplementedError

    async def add_jobs(self, target: str, jobs: Iterable[Job], *, from_des: bool) -> None:
        """Take the jobs that a target's rows were checked with."""
        raise NotImplementedError

    async def rename(self, keys: Mapping[int, str]) -> None:
        """Give rows the keys of exact repeats (``…~2``), by number."""
        raise NotImplementedError

    async def invalidate(self, rows: Sequence[InvalidRow]) -> None:
        """Turn rows that were taken into invalid ones: a key given twice, a repeated auto row."""
        raise NotImplementedError

    async def plan(self) -> Plan:
        """Return how the batch would stand."""
        raise NotImplementedError

    async def publish(self, *, digest: str = "", columns: Sequence[str] | None = None) -> Ledger:
        """Make it a ledger, whole or not at all; return the launcher's ledger, lock held.

        Raises:
            LedgerExists: another took its name meanwhile.
        """
        raise NotImplementedError

    async def discard(self) -> None:
        """Leave nothing of it; free the lock. Does nothing once it was published."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.discard()


class Ledger:
    """One batch, as a launcher (:func:`take_ledger`) or a reader (:func:`open_ledger`) has it.

    Attributes:
        place: path of the file.
        batch: what is known of the batch.
        on_wait: called in the event loop with the seconds that a turn has been kept from the
            write lock, once a wait, after 5 s.
    """

    place: str
    batch: BatchInfo
    on_wait: Callable[[float], None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> str:
        """Close; a launcher's ledger becomes one file again, and its lock is freed.

        Waits up to 5 s for readers.

        Returns:
            ``""``, or a sentence where a ``-wal`` that belongs to the batch stays beside it.
        """
        raise NotImplementedError

    # A session

    async def begin_session(self, session: NewSession) -> SessionStart:
        """Begin: what an ended launcher had in flight is unknown, what is due is due.

        Raises:
            LedgerWriteFailed: it could not be written.
        """
        raise NotImplementedError

    async def exchange(self, outcomes: Sequence[Outcome], claims: Mapping[str, int]) -> Exchange:
        """Write what came in, and take what may be sent: one durable transaction.

        Args:
            outcomes: of attempts whose starts an earlier exchange gave.
            claims: how many rows to take at most, by target.

        Raises:
            LedgerWriteFailed: it is in doubt whether this turn is durable. Hand the outcomes
                over again; nothing of its claims is sent, and the ledger ends them as unsent in
                the next turn that succeeds.
            LedgerDamaged: a row's body does not fit its digest. As above; the same claims will
                meet it again.
        """
        raise NotImplementedError

    async def note(self, kind: str, target: str | None, text: str) -> None:
        """Write an event."""
        raise NotImplementedError

    async def set_clocks(self, offsets: Mapping[str, float]) -> None:
        """Note by how many seconds each target's DES clock is ahead of ours."""
        raise NotImplementedError

    async def end_session(self, exit_code: int, stops: Sequence[Any]) -> None:
        """Note how the session ended; stops are ``events.Stop``."""
        raise NotImplementedError

    def is_in_place(self) -> bool:
        """Return True if the path still names the file that was opened. Doesn't block."""
        raise NotImplementedError

    async def rescue(self) -> str:
        """Copy what there is to ``<ledger>.rescued`` (or ``.rescued.2`` …); return its path."""
        raise NotImplementedError

    # Rows

    async def add(self, rows: Sequence[CheckedRow | InvalidRow]) -> Added:
        """Add rows of a program; the ledger numbers them. Rows of a known key are skipped.

        Raises:
            ManifestError: a row says something else than the batch's row of its key; none of
                ``rows`` was added.
        """
        raise NotImplementedError

    async def add_jobs(self, target: str, jobs: Iterable[Job], *, from_des: bool) -> None:
        """Take the JobRunParameters that rows are checked with from now on."""
        raise NotImplementedError

    async def set_whole(self) -> None:
        """Note that the program has given its last row."""
        raise NotImplementedError

    async def correct(
        self, rows: Sequence[CheckedRow], *, file: str, add: bool, dry_run: bool
    ) -> Corrections:
        """Take corrected rows by their keys, all or none, in one transaction."""
        raise NotImplementedError

    async def resolve(self, findings: Sequence[Finding], *, early: bool = False) -> Resolved:
        """Take what a person found out, all or none; also beside a launcher at work.

        Raises:
            ManifestError: a key is not known, or its row can't be resolved: started, pending,
                in flight …; or another row has the jobRunId.
        """
        raise NotImplementedError

    async def recheck_portion(
        self, target: str, job_id: str, after: int = 0, limit: int = PORTION
    ) -> list[tuple[int, int, str, str]]:
        """Return (number, line, key, says) of the job's rows beyond ``after`` that were never sent."""
        raise NotImplementedError

    async def recheck(self, rows: Sequence[CheckedRow | InvalidRow]) -> None:
        """Take rows that were checked again: new bodies, or invalid; a row that was sent is left."""
        raise NotImplementedError

    # Reading

    async def counts(self) -> tuple[Counts, dict[str, Counts]]:
        """Return the rows by state, in all and by target."""
        raise NotImplementedError

    async def plan(self, *, retry_rejected: bool = False, retry_unknown: bool = False) -> Plan:
        """Return what a session with these consents would send, by job."""
        raise NotImplementedError

    async def targets(self) -> dict[str, TargetInfo]:
        """Return the batch's targets in the order in which they were met."""
        raise NotImplementedError

    async def jobs(self) -> list[KnownJob]:
        """Return the batch's jobs."""
        raise NotImplementedError

    async def sessions(self) -> list[SessionInfo]:
        """Return all sessions, the oldest first."""
        raise NotImplementedError

    async def launcher(self) -> Launcher | None:
        """Return who is at work, or None. Looks the lock up, never takes it."""
        raise NotImplementedError

    def results(
        self,
        *,
        state: RowState | str | None = None,
        run: Literal["failed", "succeeded", "unfinished"] | None = None,
        keys: Sequence[str] | None = None,
        with_rows: bool = False,
    ) -> AsyncIterator[list[ResultRow]]:
        """Yield rows in manifest order, in portions.

        A row in flight is ``sending`` while its launcher lives, and ``unknown`` after that.
        """
        raise NotImplementedError

    def unknown_rows(self) -> AsyncIterator[list[UnknownRow]]:
        """Yield the unknown rows in manifest order, in portions."""
        raise NotImplementedError

    def log(self, *, key: str | None = None, after_ms: int = -1) -> AsyncIterator[list[LogEntry]]:
        """Yield every attempt and event beyond ``after_ms`` in time order, in portions."""
        raise NotImplementedError

    # Runs

    async def runs_to_ask(self, after: int, limit: int = PORTION) -> list[RunToAsk]:
        """Return the started rows beyond ``after`` whose runs have not finished as far as known."""
        raise NotImplementedError

    async def record_runs(self, runs: Sequence[tuple[int, int, RunStatus | str]]) -> None:
        """Write (row, attempt, status): how runs are getting on; a text: DES refuses to tell."""
        raise NotImplementedError

    async def run_counts(self) -> RunCounts:
        """Return how the runs of the batch stand."""
        raise NotImplementedError


async def begin_import(place: str, batch: NewBatch) -> Import:
    """Begin a new batch: its lock is held, its rows go to ``<place>.new``.

    Raises:
        LedgerExists: there is a ledger, or the end of an earlier one (``-wal``, ``-journal``).
        LedgerLocked: another process is importing it.
        LedgerError: its folder's file system is not fit, or can't be written.
    """
    raise NotImplementedError


async def take_ledger(place: str) -> Ledger:
    """Open a batch as its launcher: the lock is held, writing is possible.

    Raises:
        LedgerMissing: there is none.
        LedgerLocked: another launcher is at work.
        LedgerForeign: it is no ledger, or of a newer version.
        LedgerDamaged: it can't be read.
    """
    raise NotImplementedError


async def open_ledger(place: str) -> Ledger:
    """Open a batch as a reader, at any time; only :meth:`Ledger.resolve` writes.

    Raises:
        LedgerMissing: there is none.
        LedgerForeign: it is no ledger, or of a newer version.
        LedgerDamaged: it can't be read.
    """
    raise NotImplementedError
