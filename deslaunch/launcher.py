"""The parts put together: check, launch, resume, open a batch, resolve.

The way of a row: manifest → intake → ledger (``sending``) → client → ledger (outcome) → event.
Everything here prints nothing, installs no signal handler, and ends a cancelled launch by
draining it: rows in flight are waited for, and recorded.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import shlex
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from deslaunch import durable, records
from deslaunch.config import LaunchOptions, Settings
from deslaunch.errors import (
    ConfigurationError,
    CredentialsRefused,
    Declined,
    DeslaunchError,
    InvalidManifest,
    LedgerExists,
    ManifestChanged,
)
from deslaunch.ledger import Ledger, check_place, foreign, locked, peek, snapshot
from deslaunch.manifest import Manifest, sha256_of
from deslaunch.model import Noted, Plan, Planned, StartRequest, counted
from deslaunch.plan import Census, is_sent, make_plan
from deslaunch.reconcile import Reconciliation
from deslaunch.replay import Replay
from deslaunch.session import Interrupt, Session, header, held, keep, session_record
from deslaunch.shards import Shard
from deslaunch.siblings import check_siblings
from deslaunch.sources import ManifestSource
from deslaunch.terms import (
    by_target,
    check_origins,
    in_use,
    load_catalog,
    manifest_options,
    settings_of,
)
from deslaunch.validation import CHUNK, make_intake, validate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from deslaunch.catalog import Catalog
    from deslaunch.client import DesClient
    from deslaunch.intake import InvalidRow
    from deslaunch.ledger import Snapshot
    from deslaunch.model import Event, ProblemGroup, RowProblem, Summary
    from deslaunch.terms import Clients, StrPath
    from deslaunch.validation import Validation


Confirm = Callable[[Plan], Awaitable[bool] | bool]
"""Asked before anything is sent; False leaves it at that."""


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What :func:`check` found.

    Attributes:
        rows: data rows.
        valid: rows that could be started.
        invalid: rows that could not.
        problems: the first 1,000 problems in manifest order.
        problem_count: how many problems there are in all.
        groups: the first 1,000 different problems, each with the number of its rows.
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
    groups: tuple[ProblemGroup, ...]
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
    clients = by_target(des, settings) if des else {}

    _check_jobs_are_known(clients, schema)
    catalog = await load_catalog(clients, settings, schema, cache, offline=True)
    file = Manifest(Path(manifest), manifest_options(settings), name=shown_as)
    poll = (interrupt or Interrupt()).poll
    found = await validate(file, catalog, settings, poll=poll)
    return CheckReport(
        rows=found.rows,
        valid=found.valid,
        invalid=found.invalid,
        problems=tuple(found.problems),
        problem_count=found.problem_count,
        groups=tuple(found.groups),
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
    confirm: Confirm | None = None,
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
            manifest, for a shard ``<manifest stem>.I-of-N.ledger.jsonl``.
        resume: where the ledger exists and this very manifest was begun in it, go on.
        schema: a file of jobs in QueryJobs' form; then DES is not asked for them.
        cache: directory of the schema cache; default: the user's.
        on_event: called with each event, in the event loop; an error of its ends the launch.
        confirm: asked with the plan before anything is sent, where there is something to send;
            default: nobody is asked.
        interrupt: ends the launch from outside.
        **options: see :class:`~deslaunch.config.Settings`.

    Returns:
        The counts of the whole batch, and why it ended early if it did.

    Raises:
        InvalidManifest: rows did not validate and ``skip_invalid`` is not set.
        LedgerExists: the ledger exists, and ``resume`` is not set; or ``ledger`` is not given, and
            the manifest was begun in another ledger beside it, other than as a shard of the same
            count.
        LedgerForeign: ``resume``, and the ledger is another manifest's.
        LedgerError: the ledger can't be made, written or locked.
        ConfigurationError: an option is wrong.
        ManifestError: the manifest can't be read.
        DesError: DES could not be asked for the jobs of any target that rows name. Where others
            can be asked, that target stops, and its rows are pending.
        CredentialsRefused: the same, for want of a token that DES accepts.
        SchemaError: the same, as DES's answer can't be read; or the schema file can't be.
        Interrupted: ``interrupt`` was called before anything was sent.
    """
    path = Path(manifest)
    task = _Task(des, schema, cache, on_event, interrupt or Interrupt(), options, confirm=confirm)
    ledger_path, found = await asyncio.to_thread(_begun, path, ledger, options, resume=resume)
    return await (_begin if found is None else _resume)(ledger_path, path, task)


async def resume(
    ledger: StrPath,
    des: Clients,
    *,
    manifest: StrPath | None = None,
    schema: StrPath | None = None,
    cache: StrPath | None = None,
    on_event: Callable[[Event], None] | None = None,
    confirm: Confirm | None = None,
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
        confirm: as for :func:`launch`.
        interrupt: as for :func:`launch`.
        **options: as for :func:`launch`; format, job_id, target, shard and the allowances come
            from the ledger, and one that differs is an error.

    Returns:
        The counts of the whole batch, and why it ended early if it did.

    Raises:
        ManifestConflict: rows that were sent say something else now, or are gone while others
            are new.
        DeslaunchError: as for :func:`launch`.
    """
    path = Path(manifest) if manifest is not None else None
    task = _Task(des, schema, cache, on_event, interrupt or Interrupt(), options, confirm=confirm)
    return await _resume(Path(ledger), path, task)


async def preview(
    manifest: StrPath,
    des: Clients | None = None,
    *,
    ledger: StrPath | None = None,
    resume: bool = False,
    schema: StrPath | None = None,
    cache: StrPath | None = None,
    on_event: Callable[[Event], None] | None = None,
    interrupt: Interrupt | None = None,
    **options: Unpack[LaunchOptions],
) -> AsyncIterator[StartRequest]:
    """Give the starts that :func:`launch` would send, in order; send and write nothing.

    Args:
        manifest: as for :func:`launch`.
        des: the client, or one for each target; None where ``schema`` is given.
        ledger: as for :func:`launch`; it is only looked at.
        resume: as for :func:`launch`.
        schema: as for :func:`launch`.
        cache: as for :func:`launch`.
        on_event: told of what may be a mistake, and of the plan.
        interrupt: ends it from outside before the first start is given.
        **options: as for :func:`launch`.

    Yields:
        Each start, with the very bytes of its body.

    Raises:
        DeslaunchError: as for :func:`launch`.
    """
    path = Path(manifest)
    task = _Task(des or {}, schema, cache, on_event, interrupt or Interrupt(), options)
    ledger_path, found = await asyncio.to_thread(_begun, path, ledger, options, resume=resume)
    replay = None if found is None else found.replay

    async for request in _previewed(path, ledger_path, replay, task):
        yield request


async def preview_resume(
    ledger: StrPath,
    des: Clients | None = None,
    *,
    manifest: StrPath | None = None,
    schema: StrPath | None = None,
    cache: StrPath | None = None,
    on_event: Callable[[Event], None] | None = None,
    interrupt: Interrupt | None = None,
    **options: Unpack[LaunchOptions],
) -> AsyncIterator[StartRequest]:
    """Give the starts that :func:`resume` would send, in order; send and write nothing.

    Args:
        ledger: as for :func:`resume`; it is only looked at.
        des: as for :func:`preview`.
        manifest: as for :func:`resume`.
        schema: as for :func:`resume`.
        cache: as for :func:`resume`.
        on_event: as for :func:`preview`.
        interrupt: as for :func:`preview`.
        **options: as for :func:`resume`.

    Yields:
        Each start, with the very bytes of its body.

    Raises:
        DeslaunchError: as for :func:`resume`.
    """
    task = _Task(des or {}, schema, cache, on_event, interrupt or Interrupt(), options)
    found = await asyncio.to_thread(snapshot, Path(ledger))

    if found.live:
        raise locked(found.path, found.replay)

    path = Path(manifest) if manifest is not None else _recorded_manifest(found)

    async for request in _previewed(path, found.path, found.replay, task):
        yield request


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
    confirm: Confirm | None = None

    async def agree(self, plan: Plan) -> None:
        """Tell the plan, and ask whether to begin if there is something to begin with.

        Raises:
            Declined: the answer is no.
        """
        if self.on_event is not None:
            self.on_event(Planned(plan))

        if self.confirm is None or not plan.send:
            return

        answer = self.confirm(plan)

        if not (await answer if inspect.isawaitable(answer) else answer):
            raise Declined("nothing was sent")


async def _begin(ledger_path: Path, path: Path, task: _Task) -> Summary:
    await asyncio.to_thread(check_place, ledger_path)
    settings = Settings(**task.options)
    clients = by_target(task.des, settings)
    file = Manifest(path, manifest_options(settings))
    catalog = await load_catalog(clients, settings, task.schema, task.cache, apart=True)
    valid = await _validated(file, catalog, settings, task.interrupt)
    named = await in_use(clients, catalog)
    _tell(catalog, valid, task.on_event)
    await task.agree(make_plan(str(path), str(ledger_path), valid, valid.jobs, catalog, settings))

    async with held(Ledger.create(ledger_path, disk=task.disk)) as journal:
        manifest_said = await asyncio.to_thread(_said_of, path, valid)
        keep(journal, header(settings, manifest_said, file.format))
        keep(journal, session_record(settings, manifest_said, named))
        session = _session(journal, clients, catalog, settings, task)
        return await session.run(_second_reading(file, valid, catalog, settings, session))


async def _resume(ledger_path: Path, manifest: Path | None, task: _Task) -> Summary:
    async with held(Ledger.open(ledger_path, disk=task.disk)) as journal:
        replay = journal.replay
        settings = settings_of(replay.header, task.options)
        clients = by_target(task.des, settings)
        await check_origins(replay.session, clients, settings)
        path = manifest or _recorded_manifest(journal)
        file = Manifest(path, manifest_options(settings))
        catalog = await load_catalog(clients, settings, task.schema, task.cache, apart=True)
        known = replay.manifest
        same = await asyncio.to_thread(_is_same, known, path)
        comparison = _Comparison(replay, settings, same_manifest=same)
        valid = await _validated(file, catalog, settings, task.interrupt, comparison.begin)

        if same and known is not None and valid.fingerprint.sha256 != known["sha256"]:
            raise ManifestChanged(
                f"{path} changed while it was validated", hint="resume once it is at rest"
            )

        manifest_said = await asyncio.to_thread(_said_of, path, valid)
        reconciliation, jobs = comparison.reconciliation, comparison.census.jobs
        reconciliation.check(accept_new_rows=settings.accept_new_rows)

        named = await in_use(clients, catalog)
        _tell(catalog, valid, task.on_event)
        await task.agree(
            make_plan(str(path), str(journal.path), valid, jobs, catalog, settings, replay)
        )

        # Ahead of the session's record: a kill between them must not make the manifest look
        # as if it had been held against the ledger.
        for key, in_manifest in list(reconciliation.memberships()):
            keep(journal, records.membership(key, in_manifest=in_manifest))

        # Awaited: of another manifest it forgets the invalid rows without a key, and rows that
        # are read before it did would look as if they were recorded.
        await journal.append(session_record(settings, manifest_said, named))
        session = _session(journal, clients, catalog, settings, task)
        return await session.run(_second_reading(file, valid, catalog, settings, session))


class _Comparison:
    """Holds a manifest against the ledger of its batch, while it is validated."""

    def __init__(self, replay: Replay, settings: Settings, *, same_manifest: bool) -> None:
        self._replay = replay
        self._settings = settings
        self._same = same_manifest
        self.begin()

    def begin(self) -> Callable[[StartRequest | InvalidRow], None]:
        """Return what is to see all rows of the next reading."""
        self.reconciliation = Reconciliation(self._replay, same_manifest=self._same)
        self.census = Census(self._replay, self._settings)
        return self._see

    def _see(self, taken: StartRequest | InvalidRow) -> None:
        self.reconciliation.see(taken)
        self.census.see(taken)


async def _previewed(
    path: Path, ledger_path: Path, replay: Replay | None, task: _Task
) -> AsyncIterator[StartRequest]:
    settings = (
        Settings(**task.options) if replay is None else settings_of(replay.header, task.options)
    )
    file = Manifest(path, manifest_options(settings))
    clients = by_target(task.des, settings) if task.des else {}
    _check_jobs_are_known(clients, task.schema)
    catalog = await load_catalog(clients, settings, task.schema, task.cache, apart=True)
    ledger = replay or Replay()
    same = await asyncio.to_thread(_is_same, ledger.manifest, path)
    comparison = _Comparison(ledger, settings, same_manifest=same)
    valid = await _validated(file, catalog, settings, task.interrupt, comparison.begin)

    if replay is not None:
        comparison.reconciliation.check(accept_new_rows=settings.accept_new_rows)

    _tell(catalog, valid, task.on_event)
    jobs = comparison.census.jobs
    plan = make_plan(str(path), str(ledger_path), valid, jobs, catalog, settings, replay)
    await task.agree(plan)
    intake = make_intake(catalog, settings, file=file.name, suspects=valid.suspects)
    items = map(intake.take, file.second_pass(valid.fingerprint))
    starts = (one for one in items if isinstance(one, StartRequest))
    wanted = (
        start
        for start in starts
        if (valid.share is None or start.row in valid.share)
        and start.target not in catalog.left_out
        and is_sent(ledger, settings, start)
    )
    sent = islice(wanted, plan.send)

    while chunk := await asyncio.to_thread(lambda: list(islice(sent, CHUNK))):
        for request in chunk:
            yield request


def default_ledger(manifest: Path, shard: Shard | None = None) -> Path:
    """Return where a manifest's ledger is by default: beside it, ``<stem>.ledger.jsonl``.

    Args:
        manifest: its path.
        shard: the ledger of the second of four shards is ``<stem>.2-of-4.ledger.jsonl``.
    """
    part = "" if shard is None else f".{shard.index}-of-{shard.count}"
    return manifest.with_name(f"{ledger_stem(manifest)}{part}.ledger.jsonl")


def ledger_stem(manifest: Path) -> str:
    """Return what the names of a manifest's ledgers begin with by default."""
    return Path(manifest.name.removesuffix(".gz")).stem


def _begun(
    manifest: Path, ledger: StrPath | None, options: LaunchOptions, *, resume: bool
) -> tuple[Path, Snapshot | None]:
    """Return where a batch's ledger is, and what was begun there; None if nothing was.

    Raises:
        LedgerExists: a batch was begun, and is not to be gone on with; or the manifest was, in
            another ledger beside it.
        LedgerForeign: what was begun is another manifest's.
        LedgerLocked: a launcher is at work on it.
    """
    path = Path(ledger) if ledger is not None else default_ledger(manifest, _shard_of(options))
    found = peek(path)

    if found is None and ledger is None:
        check_siblings(manifest, ledger_stem(manifest), _shard_of(options))
    elif found is not None and (resume or found.live):
        _check_same(found, manifest)
    elif found is not None:
        raise _exists(found, manifest)

    return path, found


def _shard_of(options: LaunchOptions) -> Shard | None:
    shard = options.get("shard")
    return None if shard is None else Shard.parse(shard)


# What a batch and a session begin with.


def _check_jobs_are_known(clients: Mapping[str, DesClient], schema: StrPath | None) -> None:
    if not clients and schema is None:
        raise ConfigurationError(
            "there is neither a DES to ask nor a schema file",
            hint="set DES_BASE_URL and DES_TOKEN, or pass --schema FILE",
        )


def _said_of(path: Path, valid: Validation) -> dict[str, Any]:
    said = {
        "path": os.path.abspath(path),  # noqa: PTH100  # no link is resolved: it may move on
        "sha256": valid.fingerprint.sha256,
        "rows": valid.fingerprint.rows,
    }
    return said if valid.share is None else {**said, "shardRows": len(valid.share)}


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
        DeslaunchError: no target's jobs could be had, or not anew.
    """
    found = await validate(
        file,
        catalog,
        settings,
        observe=observe,
        poll=interrupt.poll,
        count_jobs=observe is None,
    )
    catalog.check()

    if found.unconfirmed is not None:
        raise found.unconfirmed

    if not found.whole:
        end = " to its end" if found.rows else ""
        raise InvalidManifest(
            f"{file.path}: the file can't be read{end}; nothing was sent",
            problems=found.problems,
            count=found.problem_count,
            groups=found.groups,
            hint="do what the line above says; --skip-invalid does not pass over it",
        )

    if found.problem_count and not settings.skip_invalid:
        raise InvalidManifest(
            f"{file.path}: {found.invalid:,} of {counted(found.rows, 'row')} can't be started; "
            "nothing was sent",
            problems=found.problems,
            count=found.problem_count,
            groups=found.groups,
            hint="mend the rows, or pass --skip-invalid to launch the others",
        )

    return found


def _session(
    journal: Ledger,
    clients: Mapping[str, DesClient],
    catalog: Catalog,
    settings: Settings,
    task: _Task,
) -> Session:
    return Session(
        journal, clients, settings, task.on_event, task.interrupt, left_out=catalog.left_out
    )


def _second_reading(
    file: Manifest, valid: Validation, catalog: Catalog, settings: Settings, session: Session
) -> ManifestSource:
    intake = make_intake(catalog, settings, file=file.name, suspects=valid.suspects)
    items = file.second_pass(valid.fingerprint)
    return ManifestSource(items, intake, catalog, session.sifter(), valid.share)


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


def _recorded_manifest(journal: Ledger | Snapshot) -> Path:
    said = journal.replay.manifest

    if said is None:
        raise ConfigurationError(
            f"{journal.path}: the batch's rows came from a program, not from a manifest",
            hint="resume it from the program, with open_batch(..., resume=True)",
        )

    return Path(said["path"])


def _is_same(said: Mapping[str, Any] | None, path: Path) -> bool:
    """Tell whether a manifest is, to the byte, the one that a session read."""
    return said is not None and sha256_of(path) == said["sha256"]


def _check_same(found: Snapshot, manifest: Path) -> None:
    """Refuse to go on, unless this very manifest was begun in the ledger."""
    if found.live:
        raise locked(found.path, found.replay)

    if not _is_same(found.replay.manifest, manifest):
        raise foreign(found.path, manifest)


def _exists(found: Snapshot, manifest: Path) -> DeslaunchError:
    if not _is_same(found.replay.manifest, manifest):
        return foreign(found.path, manifest)

    return LedgerExists(
        f"{found.path}: this manifest was begun already; nothing was sent",
        hint=f"go on with: deslaunch resume {shlex.quote(str(found.path))}; a new batch of the "
        "same rows needs a new --ledger",
    )
