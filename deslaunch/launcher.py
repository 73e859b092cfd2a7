"""The parts put together: check, launch, resume, open a batch, resolve.

The way of a row: manifest → intake → ledger (``sending``) → client → ledger (outcome) → event.
Everything here prints nothing, installs no signal handler, and ends a cancelled launch by
draining it: rows in flight are waited for, and recorded.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shlex
from collections import Counter, deque
from collections.abc import AsyncIterable, Iterable, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Unpack
from urllib.parse import urlsplit

import anyio

from deslaunch import durable, records
from deslaunch.catalog import Catalog
from deslaunch.client import DesClient
from deslaunch.config import LaunchOptions, Settings
from deslaunch.errors import (
    ConfigurationError,
    CredentialsRefused,
    DeslaunchError,
    InvalidManifest,
    LedgerError,
    LedgerExists,
    LedgerForeign,
    LedgerLocked,
    ManifestChanged,
)
from deslaunch.ledger import Ledger, locked, peek
from deslaunch.manifest import Manifest, ManifestOptions
from deslaunch.model import DEFAULT_TARGET, Noted, RowEnded, RowState, counted
from deslaunch.reconcile import Reconciliation
from deslaunch.schema_cache import SchemaCache, default_directory, read_schema_file
from deslaunch.session import Interrupt, Session, header, held, keep, session_record
from deslaunch.sources import ROWS, ManifestSource, RowsSource
from deslaunch.validation import make_intake, validate
from deslaunch.wire import is_guid

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from typing import BinaryIO

    from deslaunch.findings import Finding
    from deslaunch.intake import InvalidRow
    from deslaunch.ledger import Snapshot
    from deslaunch.manifest import Fingerprint
    from deslaunch.model import Event, Outcome, Row, RowProblem, StartRequest, Summary
    from deslaunch.validation import Validation

StrPath = str | os.PathLike[str]
Clients = DesClient | Mapping[str, DesClient]

OUTCOMES_PER_SLOT: Final = 4
"""Outcomes a slot that an open batch holds for a slow consumer before reading stops."""


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What :func:`check` found.

    Attributes:
        rows: data rows.
        valid: rows that could be started.
        invalid: rows that could not.
        problems: the first 1,000 problems in manifest order.
        problem_count: how many problems there are in all.
        notes: how old cached JobRunParameters are, one sentence for each target.
        warnings: what may be a mistake, one sentence each.
        unconfirmed: why a fresher schema could not be had, where a cached one found rows
            invalid; else None.
    """

    rows: int
    valid: int
    invalid: int
    problems: tuple[RowProblem, ...]
    problem_count: int
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    unconfirmed: Exception | None = None

    @property
    def exit_code(self) -> int:
        """0 valid, 2 invalid; 5 or 6 where only an old schema says so: DES must be asked."""
        if self.unconfirmed is not None:
            return 6 if isinstance(self.unconfirmed, CredentialsRefused) else 5

        return 2 if self.problem_count else 0

    def as_dict(self) -> dict[str, Any]:
        """Return the report in the documented form of ``check --json``."""
        return {
            "rows": self.rows,
            "valid": self.valid,
            "invalid": self.invalid,
            "problems": [problem.as_dict() for problem in self.problems],
            "warnings": list(self.warnings),
            "exitCode": self.exit_code,
        }


async def check(
    manifest: StrPath,
    des: Clients | None = None,
    *,
    schema: StrPath | None = None,
    cache: StrPath | None = None,
    interrupt: Interrupt | None = None,
    shown_as: str | None = None,
    **options: Unpack[LaunchOptions],
) -> CheckReport:
    """Check every row of a manifest; send nothing.

    Args:
        manifest: a JSONL or CSV file, gzipped or not.
        des: the client, or one for each target; None where ``schema`` is given.
        schema: a file of jobs in QueryJobs' form; then DES is not asked.
        cache: directory of the schema cache; default: the user's.
        interrupt: ends the check from outside.
        shown_as: how problems name the file; default: the path as given.
        **options: see :class:`~deslaunch.config.Settings`.

    Raises:
        ConfigurationError: an option is wrong, or there is neither ``des`` nor ``schema``.
        ManifestError: the file can't be read.
        DesError: DES could not be asked, and no cached answer serves.
        CredentialsRefused: no token that DES accepts, and no cached answer serves.
        SchemaError: DES's answer, or the schema file, can't be read.
        Interrupted: ``interrupt`` was called.
    """
    settings = Settings(**options)
    clients = _by_target(des, settings) if des else {}

    if not clients and schema is None:
        raise ConfigurationError(
            "there is neither a DES to ask nor a schema file",
            hint="set DES_BASE_URL and DES_TOKEN, or pass --schema FILE",
        )

    catalog = await _catalog(clients, settings, schema, cache, offline=True)
    file = Manifest(Path(manifest), _manifest_options(settings), name=shown_as)
    poll = (interrupt or Interrupt()).poll
    found = await validate(file, catalog, settings, poll=poll)
    return CheckReport(
        rows=found.rows,
        valid=found.valid,
        invalid=found.invalid,
        problems=tuple(found.problems),
        problem_count=found.problem_count,
        notes=tuple(catalog.notes()),
        warnings=_warnings(catalog, found),
        unconfirmed=found.unconfirmed,
    )


async def launch(
    manifest: StrPath,
    des: Clients,
    *,
    ledger: StrPath | None = None,
    resume: bool = False,
    schema: StrPath | None = None,
    cache: StrPath | None = None,
    on_event: Callable[[Event], None] | None = None,
    interrupt: Interrupt | None = None,
    **options: Unpack[LaunchOptions],
) -> Summary:
    """Start a run for every row of a manifest, and record each in a new ledger.

    All rows are checked before the first is sent. Cancelled, it drains: rows in flight are
    waited for and recorded; cancelled again, it gives them up as unknown.

    Args:
        manifest: a JSONL or CSV file, gzipped or not. It must not change meanwhile.
        des: the client, or one for each target.
        ledger: the batch's ledger; default: ``<manifest stem>.ledger.jsonl`` beside the
            manifest.
        resume: where the ledger exists and this very manifest was begun in it, go on.
        schema: a file of jobs in QueryJobs' form; then DES is not asked for them.
        cache: directory of the schema cache; default: the user's.
        on_event: called with each event, in the event loop; an error of its ends the launch.
        interrupt: ends the launch from outside.
        **options: see :class:`~deslaunch.config.Settings`.

    Returns:
        The counts of the whole batch, and why it ended early if it did.

    Raises:
        InvalidManifest: rows did not validate and ``skip_invalid`` is not set.
        LedgerExists: the ledger exists, and ``resume`` is not set.
        LedgerForeign: ``resume``, and the ledger is another manifest's.
        LedgerError: the ledger can't be made, written or locked.
        ConfigurationError: an option is wrong.
        ManifestError: the manifest can't be read.
        DesError: DES could not be asked for the jobs.
        CredentialsRefused: no token that DES accepts; nothing was sent.
        SchemaError: DES's answer, or the schema file, can't be read.
        Interrupted: ``interrupt`` was called before anything was sent.
    """
    path = Path(manifest)
    ledger_path = Path(ledger) if ledger is not None else default_ledger(path)
    task = _Task(des, schema, cache, on_event, interrupt or Interrupt(), options)
    found = await asyncio.to_thread(peek, ledger_path)

    if found is not None and (resume or found.live):
        await asyncio.to_thread(_check_same, found, path)
        return await _resume(ledger_path, path, task)

    if found is not None:
        raise await asyncio.to_thread(_exists, found, path)

    return await _begin(ledger_path, path, task)


async def resume(
    ledger: StrPath,
    des: Clients,
    *,
    manifest: StrPath | None = None,
    schema: StrPath | None = None,
    cache: StrPath | None = None,
    on_event: Callable[[Event], None] | None = None,
    interrupt: Interrupt | None = None,
    **options: Unpack[LaunchOptions],
) -> Summary:
    """Go on with a batch: send what its ledger says is pending or failed, never what is unknown.

    Args:
        ledger: the batch's ledger.
        des: the client, or one for each target.
        manifest: where the manifest is now; default: where it was.
        schema: as for :func:`launch`.
        cache: as for :func:`launch`.
        on_event: as for :func:`launch`.
        interrupt: as for :func:`launch`.
        **options: as for :func:`launch`; format, job_id, target and the allowances come from
            the ledger, and one that differs is an error.

    Returns:
        The counts of the whole batch, and why it ended early if it did.

    Raises:
        ManifestConflict: rows that were sent say something else now, or are gone while others
            are new.
        DeslaunchError: as for :func:`launch`.
    """
    path = Path(manifest) if manifest is not None else None
    task = _Task(des, schema, cache, on_event, interrupt or Interrupt(), options)
    return await _resume(Path(ledger), path, task)


@dataclass(frozen=True, slots=True)
class _Task:
    """What a launch or a resume was called with; ``disk`` is what its ledger writes to."""

    des: Clients
    schema: StrPath | None
    cache: StrPath | None
    on_event: Callable[[Event], None] | None
    interrupt: Interrupt
    options: LaunchOptions
    disk: durable.Disk = durable.SYSTEM_DISK


async def _begin(ledger_path: Path, path: Path, task: _Task) -> Summary:
    settings = Settings(**task.options)
    clients = _by_target(task.des, settings)
    file = Manifest(path, _manifest_options(settings))
    catalog = await _catalog(clients, settings, task.schema, task.cache)
    valid = await _validated(file, catalog, settings, task.interrupt)

    async with held(Ledger.create(ledger_path, disk=task.disk)) as journal:
        manifest_said = await asyncio.to_thread(_said_of, path, valid.fingerprint)
        keep(journal, header(settings, manifest_said, file.format))
        keep(journal, session_record(settings, manifest_said, clients))
        _tell(catalog, valid, task.on_event)
        session = Session(journal, clients, settings, task.on_event, task.interrupt)
        return await session.run(_second_reading(file, valid, catalog, settings, session))


async def _resume(ledger_path: Path, manifest: Path | None, task: _Task) -> Summary:
    async with held(Ledger.open(ledger_path, disk=task.disk)) as journal:
        replay = journal.replay
        settings = _settings_of(replay.header, task.options)
        clients = _by_target(task.des, settings)
        _check_origins(replay.session, clients, settings)
        path = manifest or _recorded_manifest(journal)
        file = Manifest(path, _manifest_options(settings))
        catalog = await _catalog(clients, settings, task.schema, task.cache)
        known = replay.manifest
        same = await asyncio.to_thread(_is_same, known, path)
        reconciliations: list[Reconciliation] = []

        def observe() -> Callable[[StartRequest | InvalidRow], None]:
            reconciliations.append(Reconciliation(replay, same_manifest=same))
            return reconciliations[-1].see

        valid = await _validated(file, catalog, settings, task.interrupt, observe)

        if same and known is not None and valid.fingerprint.sha256 != known["sha256"]:
            raise ManifestChanged(
                f"{path} changed while it was validated", hint="resume once it is at rest"
            )

        manifest_said = await asyncio.to_thread(_said_of, path, valid.fingerprint)
        reconciliation = reconciliations[-1]
        reconciliation.check(accept_new_rows=settings.accept_new_rows)

        # Ahead of the session's record: a kill between them must not make the manifest look
        # as if it had been held against the ledger.
        for key, in_manifest in list(reconciliation.memberships()):
            keep(journal, records.membership(key, in_manifest=in_manifest))

        keep(journal, session_record(settings, manifest_said, clients))
        _tell(catalog, valid, task.on_event)
        session = Session(journal, clients, settings, task.on_event, task.interrupt)
        return await session.run(_second_reading(file, valid, catalog, settings, session))


class Batch:
    """A batch whose rows come from the caller: an asynchronous iterator of outcomes.

    Made by :func:`open_batch`. Every row that was read gives one outcome, in the order in which
    outcomes became durable; rows that an earlier session ended give theirs again.

    Attributes:
        summary: the counts of the whole batch, once the block was left; else None.
    """

    def __init__(self, limit: int) -> None:
        self.summary: Summary | None = None
        self._limit = limit
        self._outcomes: deque[Outcome] = deque()
        self._news = asyncio.Event()
        self._taken = asyncio.Event()
        self._work: asyncio.Task[Summary] | None = None

    def __repr__(self) -> str:
        return f"<Batch {len(self._outcomes)} outcomes waiting>"

    def __aiter__(self) -> Batch:
        return self

    async def __anext__(self) -> Outcome:
        assert self._work is not None

        while not self._outcomes:
            if self._work.done():
                self._work.result()
                raise StopAsyncIteration

            self._news.clear()
            await self._news.wait()

        self._taken.set()
        return self._outcomes.popleft()

    def _begin(self, work: asyncio.Task[Summary]) -> None:
        self._work = work
        work.add_done_callback(lambda _: self._news.set())

    def _put(self, event: Event) -> None:
        if isinstance(event, RowEnded):
            self._outcomes.append(event.outcome)
            self._news.set()

    async def _room(self) -> None:
        """Return once a slow consumer has taken enough of its outcomes."""
        while len(self._outcomes) >= self._limit:
            self._taken.clear()
            await self._taken.wait()


@asynccontextmanager
async def open_batch(
    rows: Iterable[Mapping[str, Any] | Row] | AsyncIterable[Mapping[str, Any] | Row],
    des: Clients,
    *,
    ledger: StrPath,
    resume: bool = False,
    schema: StrPath | None = None,
    cache: StrPath | None = None,
    on_event: Callable[[Event], None] | None = None,
    **options: Unpack[LaunchOptions],
) -> AsyncIterator[Batch]:
    """Start a run for every row that the caller hands over.

    Rows are checked as they are read; an invalid one gives an outcome ``invalid``. A consumer
    that is slow holds back the reading of rows, never the ledger. Leaving the block, or being
    cancelled in it, drains; rows that were not read stay pending.

    Args:
        rows: any iterable or asynchronous iterable of dicts of the JSONL form, or ``Row``s.
        des: the client, or one for each target.
        ledger: the batch's ledger.
        resume: go on with a ledger that exists; rows are matched by key.
        schema: a file of jobs in QueryJobs' form; then DES is not asked for them.
        cache: directory of the schema cache; default: the user's.
        on_event: called with each event, in the event loop.
        **options: see :class:`~deslaunch.config.Settings`.

    Yields:
        The batch, an asynchronous iterator of outcomes.

    Raises:
        LedgerExists: the ledger exists, and ``resume`` is not set.
        LedgerForeign: the ledger is a manifest's.
        LedgerError: the ledger can't be made, written or locked.
        ConfigurationError: an option is wrong.
        ManifestConflict: a row that was sent says something else now.
        DesError: DES could not be asked for the jobs of a target that a row names.
        TypeError: ``rows`` can't be iterated over; nothing was made.
    """
    if not isinstance(rows, Iterable | AsyncIterable):
        raise TypeError(f"rows must be iterable, got {type(rows).__name__}")

    path = Path(ledger)
    exists = await asyncio.to_thread(peek, path) is not None

    if exists and not resume:
        raise LedgerExists(f"{path}: the ledger exists", hint="pass resume=True to go on")

    async with held(Ledger.open(path) if exists else Ledger.create(path)) as journal:
        if exists and journal.replay.manifest is not None:
            raise LedgerForeign(
                f"{path}: the batch's rows come from a manifest, not from a program",
                hint="go on with resume()",
            )

        settings = _settings_of(journal.replay.header, options) if exists else Settings(**options)
        clients = _by_target(des, settings)
        _check_origins(journal.replay.session, clients, settings)
        catalog = await _catalog(clients, settings, schema, cache)

        if not exists:
            keep(journal, header(settings, None, None))

        keep(journal, session_record(settings, None, clients))
        batch = Batch(OUTCOMES_PER_SLOT * settings.concurrency)
        interrupt = Interrupt()
        session = Session(journal, clients, settings, _both(batch._put, on_event), interrupt)
        source = RowsSource(
            rows,
            make_intake(catalog, settings, file=ROWS),
            catalog,
            session.sifter(report_known=True),
            _manifest_options(settings),
            batch._room,
        )
        work = asyncio.create_task(session.run(source))
        batch._begin(work)

        try:
            yield batch
        finally:
            batch.summary = await _finished(work, interrupt)


def _both(
    first: Callable[[Event], None], second: Callable[[Event], None] | None
) -> Callable[[Event], None]:
    def emit(event: Event) -> None:
        first(event)

        if second is not None:
            second(event)

    return emit


async def _finished(work: asyncio.Task[Summary], interrupt: Interrupt) -> Summary:
    """Drain a batch that is left, and wait for its end; cancelled again, give up what is left."""
    if not work.done():
        interrupt()

    cancelled: asyncio.CancelledError | None = None

    with anyio.CancelScope(shield=True):
        while not work.done():
            try:
                await asyncio.wait([work])
            except asyncio.CancelledError as exc:
                interrupt()
                cancelled = exc

    summary = work.result()

    if cancelled is not None:
        raise cancelled

    return summary


async def resolve(ledger: StrPath, findings: Iterable[Finding]) -> Summary:
    """Record what a person found out about rows that are unknown or failed.

    Args:
        ledger: the batch's ledger.
        findings: one for each row.

    Returns:
        The counts of the whole batch.

    Raises:
        ConfigurationError: a key is not in the ledger or neither unknown nor failed, or
            named twice, or a jobRunId is no GUID; then nothing was recorded.
        LedgerError: the ledger can't be used.
    """
    found = list(findings)
    [(key, times)] = Counter(finding.key for finding in found).most_common(1) or [("", 0)]

    if times > 1:
        raise ConfigurationError(f"the row with key {key!r} is named twice")

    async with held(Ledger.open(Path(ledger))) as journal:
        for finding in found:
            _check_finding(journal, finding)

        _check_runs(journal, found)
        await asyncio.gather(
            *(
                journal.append(
                    records.resolved(finding.key, job_run_id=finding.job_run_id, note=finding.note)
                )
                for finding in found
                if not _is_known(journal, finding)
            )
        )
        return journal.replay.summary(ledger=str(ledger), seconds=0.0)


def _check_finding(journal: Ledger, finding: Finding) -> None:
    state = journal.replay.get(finding.key)

    if state is None:
        raise ConfigurationError(
            f"{journal.path} has no row with key {finding.key!r}",
            hint=f"the keys of unknown rows: deslaunch status {_quoted(journal.path)}",
        )

    if state.state not in {RowState.UNKNOWN, RowState.FAILED} and not _is_known(journal, finding):
        raise ConfigurationError(
            f"the row with key {finding.key!r} is {state.state}; only unknown and failed rows "
            "are resolved"
        )

    if finding.job_run_id is not None and not is_guid(finding.job_run_id):
        raise ConfigurationError(
            f"a jobRunId is a GUID, got {finding.job_run_id!r} for key {finding.key!r}"
        )


def _check_runs(journal: Ledger, findings: Iterable[Finding]) -> None:
    """Refuse a run that would stand at two rows: one of them would never be started."""
    states = journal.replay.states.items()
    owners = {state.job_run_id.lower(): key for key, state in states if state.job_run_id}

    for finding in findings:
        run = (finding.job_run_id or "").lower()
        owner = owners.setdefault(run, finding.key) if run else finding.key

        if owner != finding.key:
            raise ConfigurationError(
                f"the run {finding.job_run_id} is that of the row with key {owner!r}; it can't be "
                f"that of {finding.key!r} as well"
            )


def _is_known(journal: Ledger, finding: Finding) -> bool:
    """Tell whether the ledger says already what was found, so that it may be told again."""
    state = journal.replay.get(finding.key)

    if state is None:
        return False

    if finding.job_run_id is None:
        return state.state is RowState.PENDING

    return finding.job_run_id == state.job_run_id


def default_ledger(manifest: Path) -> Path:
    """Return where a manifest's ledger is by default: beside it, ``<stem>.ledger.jsonl``."""
    name = manifest.name.removesuffix(".gz")
    stem = Path(name).stem
    return manifest.with_name(f"{stem}.ledger.jsonl")


@contextmanager
def kept_rows(stream: BinaryIO, ledger: Path, *, resume: bool = False) -> Iterator[Path]:
    """Keep the rows of a stream beside their ledger, so that a resume can read them again.

    In the block they are on disk, in ``<ledger>.manifest``, mode 0600, and no other launcher
    can put others in their place.

    Args:
        stream: the rows.
        ledger: the batch's ledger.
        resume: where a batch was begun in the ledger, the rows must be the ones that it keeps.

    Raises:
        LedgerExists: a batch was begun in the ledger, and ``resume`` is not set.
        LedgerForeign: ``resume``, and the rows are not the ledger's.
        LedgerLocked: another launcher is about to begin this batch.
        LedgerError: the rows can't be written.
    """
    path = kept_manifest(ledger)
    found = peek(ledger)

    if found is not None:
        yield _kept_already(stream, path, found, resume=resume)
        return

    with _kept_anew(stream, path):
        yield path


@contextmanager
def _kept_anew(stream: BinaryIO, path: Path) -> Iterator[None]:
    """Write the rows into a file that stays locked for the time of the block."""
    try:
        kept = durable.AppendFile(path, create=not path.exists())
    except (BlockingIOError, FileExistsError) as exc:
        raise LedgerLocked(
            f"{path}: another launcher is about to begin this batch", hint="name another --ledger"
        ) from exc
    except OSError as exc:
        raise _unkept(path, exc) from exc

    with kept:
        try:
            kept.cut(0)

            while block := stream.read(1 << 20):
                kept.append(block)
        except OSError as exc:
            raise _unkept(path, exc) from exc

        yield


def _unkept(path: Path, exc: OSError) -> LedgerError:
    return LedgerError(f"{path}: can't be written: {exc.strerror or exc}")


def _kept_already(stream: BinaryIO, path: Path, found: Snapshot, *, resume: bool) -> Path:
    if not resume:
        raise LedgerExists(
            f"{found.path}: the ledger exists",
            hint=f"go on with: deslaunch resume {_quoted(found.path)}; or name another --ledger",
        )

    digest = hashlib.sha256()

    while block := stream.read(1 << 16):
        digest.update(block)

    said = found.replay.manifest

    if said is None or said["sha256"] != digest.hexdigest():
        raise _foreign(found.path, Path("-"))

    return path


def kept_manifest(ledger: Path) -> Path:
    """Return where the rows of a manifest that came from stdin are kept."""
    return ledger.with_name(f"{ledger.name}.manifest")


# What a batch and a session begin with.


def _said_of(path: Path, fingerprint: Fingerprint) -> dict[str, Any]:
    return {
        "path": os.path.abspath(path),  # noqa: PTH100  # no link is resolved: it may move on
        "sha256": fingerprint.sha256,
        "rows": fingerprint.rows,
    }


def _by_target(des: Clients, settings: Settings) -> dict[str, DesClient]:
    if isinstance(des, Mapping) and not des:
        raise ConfigurationError("there is no target", hint="give at least one client")

    if isinstance(des, Mapping):
        return dict(des)

    return {settings.target or DEFAULT_TARGET: des}


def _manifest_options(settings: Settings) -> ManifestOptions:
    return ManifestOptions(format=settings.format, job_id=settings.job_id, target=settings.target)


async def _catalog(
    clients: Mapping[str, DesClient],
    settings: Settings,
    schema: StrPath | None,
    cache: StrPath | None,
    *,
    offline: bool = False,
) -> Catalog:
    jobs = None if schema is None else await asyncio.to_thread(read_schema_file, Path(schema))
    return Catalog(
        clients,
        targets=() if clients else [settings.target or DEFAULT_TARGET],
        cache=SchemaCache(Path(cache) if cache is not None else default_directory()),
        schema_file=jobs,
        max_age=timedelta(hours=settings.schema_max_age),
        offline=offline,
    )


async def _validated(
    file: Manifest,
    catalog: Catalog,
    settings: Settings,
    interrupt: Interrupt,
    observe: Callable[[], Callable[[StartRequest | InvalidRow], None]] | None = None,
) -> Validation:
    """Validate a manifest that is to be launched.

    Raises:
        InvalidManifest: it may not be.
    """
    found = await validate(file, catalog, settings, observe=observe, poll=interrupt.poll)

    if found.unconfirmed is not None:
        raise found.unconfirmed

    if not found.whole:
        raise InvalidManifest(
            f"{file.path}: the file can't be read to its end; nothing was sent",
            problems=found.problems,
            count=found.problem_count,
            hint="mend the file; --skip-invalid does not pass over this",
        )

    if found.problem_count and not settings.skip_invalid:
        raise InvalidManifest(
            f"{file.path}: {found.invalid:,} of {counted(found.rows, 'row')} can't be started; "
            "nothing was sent",
            problems=found.problems,
            count=found.problem_count,
            hint="mend the rows, or pass --skip-invalid to launch the others",
        )

    return found


def _second_reading(
    file: Manifest, valid: Validation, catalog: Catalog, settings: Settings, session: Session
) -> ManifestSource:
    intake = make_intake(catalog, settings, file=file.name)
    items = file.second_pass(valid.fingerprint)
    return ManifestSource(items, intake, catalog, session.sifter())


def _tell(catalog: Catalog, valid: Validation, emit: Callable[[Event], None] | None) -> None:
    """Tell a listener what ``check`` would have said of a manifest that is launched now."""
    if emit is None:
        return

    for note in catalog.notes():
        emit(Noted(note, is_warning=False))

    for warning in _warnings(catalog, valid):
        emit(Noted(warning, is_warning=True))


def _warnings(catalog: Catalog, found: Validation) -> tuple[str, ...]:
    doubts = [str(warning) for warning in catalog.schemas.warnings]

    if found.unconfirmed is not None:
        doubts.append(
            "the rows are invalid by cached JobRunParameters, and those could not be fetched "
            f"anew: {found.unconfirmed}"
        )

    return (*catalog.warnings, *doubts)


# What a resume compares.


def _settings_of(header: Mapping[str, Any], options: LaunchOptions) -> Settings:
    """Return the settings of a session whose batch was begun with others.

    Raises:
        ConfigurationError: an option differs from what the batch was begun with.
    """
    begun: dict[str, Any] = {
        "format": header["format"],
        "job_id": header["jobId"],
        "target": header["target"],
        "skip_invalid": header["skipInvalid"],
        "allow_duplicates": "duplicates" in header["allow"],
        "allow_repeated_auto": "repeatedAuto" in header["allow"],
    }

    for name, known in begun.items():
        asked: Any = options.get(name, known)

        if name == "job_id" and asked is not None:
            asked = asked.lower()

        if asked is not None and asked != known:
            option = f"--{name.replace('_', '-')}"
            raise ConfigurationError(
                f"{option} is {asked!r}, and the batch was begun with {known!r}",
                hint=f"leave {option} out: a resume takes it from the ledger",
            )

    return replace(Settings(**options), **begun)


def _check_origins(
    session: Mapping[str, Any] | None, clients: Mapping[str, DesClient], settings: Settings
) -> None:
    if session is None or settings.allow_new_origin:
        return

    for name, client in clients.items():
        known = session["targets"].get(name, {}).get("baseUrl")

        if known is not None and _origin(known) != _origin(client.base_url):
            raise ConfigurationError(
                f"target {name} was at {known} in the last session, and is at "
                f"{client.base_url} now: its jobs may not be the same",
                hint=f"if it moved, pass --base-url {client.base_url}",
            )


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.lower()


def _recorded_manifest(journal: Ledger) -> Path:
    said = journal.replay.manifest

    if said is None:
        raise ConfigurationError(
            f"{journal.path}: the batch's rows came from a program, not from a manifest",
            hint="resume it from the program, with open_batch(..., resume=True)",
        )

    return Path(said["path"])


def _is_same(said: Mapping[str, Any] | None, path: Path) -> bool:
    """Tell whether a manifest is, to the byte, the one that a session read."""
    if said is None:
        return False

    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            return bool(digest == said["sha256"])
    except OSError:
        return False


def _check_same(found: Snapshot, manifest: Path) -> None:
    """Refuse to go on, unless this very manifest was begun in the ledger."""
    if found.live:
        raise locked(found.path, found.replay)

    if not _is_same(found.replay.manifest, manifest):
        raise _foreign(found.path, manifest)


def _exists(found: Snapshot, manifest: Path) -> DeslaunchError:
    if not _is_same(found.replay.manifest, manifest):
        return _foreign(found.path, manifest)

    return LedgerExists(
        f"{found.path}: this manifest was begun already; nothing was sent",
        hint=f"go on with: deslaunch resume {_quoted(found.path)}; a new batch of the same rows "
        "needs a new --ledger",
    )


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _foreign(ledger: Path, manifest: Path) -> LedgerForeign:
    return LedgerForeign(
        f"{ledger}: the ledger belongs to another manifest than {manifest} as it is now; "
        "nothing was sent",
        hint="a new batch needs a new --ledger; a manifest that was changed on purpose goes on "
        f"with: deslaunch resume {_quoted(ledger)} --manifest {_quoted(manifest)}",
    )
