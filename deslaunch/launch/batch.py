"""Open a batch: import a manifest, resume a ledger, or preview what would be sent.

Nothing here prints or installs a signal handler. A batch that can't be opened leaves no files, and
nothing is sent before a batch is launched.
"""

import asyncio
import inspect
import os
import sys
import time
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Collection,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, TypedDict, Unpack

import anyio
from anyio.to_thread import run_sync

from deslaunch import errors
from deslaunch.des.http import boottime
from deslaunch.events import Noted, Plan, Planned, Summary
from deslaunch.launch import importing
from deslaunch.launch.importing import ROWS, Rows, Source, open_manifest
from deslaunch.launch.launcher import Batch, Confirm, Setup, resume_command
from deslaunch.launch.loop import fit_slots
from deslaunch.launch.schemas import Clients, OnEvent, StrPath, open_schemas
from deslaunch.launch.witness import check_copy, find_others, refuse, tell_before, tell_given_up
from deslaunch.ledger.history import History
from deslaunch.ledger.ledger import Import, Ledger, NewBatch, begin_import, open_ledger, take_ledger
from deslaunch.ledger.place import is_shared
from deslaunch.ledger.reading import Consents
from deslaunch.manifest.files import Manifest
from deslaunch.model import CheckedRow, Start, count, printable
from deslaunch.settings import OPTIONS, JobLimit, Settings

SHOWN_KEYS: Final = 10
"""Keys that a warning names."""

LONGEST_LOOK: Final = 2.0
"""Maximum seconds between two checks whether another process has imported the batch."""


class Options(TypedDict, total=False):
    """Options of a batch, all of them optional.

    Attributes:
        settings: options of the session; default: ``Settings()``, or for ``resume_batch`` and
            ``watch_batch`` those that the ledger keeps.
        schema: a file of jobs in QueryJobs' form; then DES is not queried for them.
        on_event: called with each event, in the event loop; if it raises, the launch drains.
        confirm: called with the plan before a ledger is made, corrected or resumed; returns True,
            or an awaitable of True, to begin.
        options_kept: JSON values for the ledger to keep; default: the settings that are kept.
        job_limits: limits of single jobs, by jobId.
        join: send rows together with other launchers; PostgreSQL only. If another process is
            importing the batch, wait until it ends.
    """

    settings: Settings | None
    schema: StrPath | None
    on_event: OnEvent | None
    confirm: Confirm | None
    options_kept: Mapping[str, Any] | None
    job_limits: Mapping[str, JobLimit] | None
    join: bool


@asynccontextmanager
async def open_batch(
    rows: StrPath | Manifest | Rows,
    des: Clients,
    *,
    ledger: StrPath | None = None,
    resume: bool = False,
    **options: Unpack[Options],
) -> AsyncIterator[Batch]:
    """Open a batch: import a manifest, or take rows from an iterable; nothing is sent yet.

    A manifest is checked whole before its ledger is made; a crash during the import leaves no
    ledger. An iterable's rows are added while the batch runs; an invalid one gives an outcome
    ``invalid``. Leaving the block, or cancelling it, drains; rows that were not sent stay pending.

    Args:
        rows: a manifest's path, a :class:`Manifest`, or an iterable or asynchronous iterable of
            dicts in the JSONL form or ``Row``s.
        des: the client, or one for each target.
        ledger: the ledger's path, or postgresql://…#batch; default: a file beside the manifest.
        resume: resume the ledger if it exists. The manifest must be the same; an iterable's rows
            are matched by key, and those that the batch has are skipped.
        **options: see :class:`Options`.

    Raises:
        InvalidManifest: rows did not validate, and ``skip_invalid`` is not set.
        ManifestError: the manifest can't be read.
        LedgerExists: the ledger exists, and ``resume`` is not set.
        LedgerForeign: ``resume``, and the ledger is another manifest's.
        LedgerLocked: another launcher is at work on it.
        LedgerOutdated: ``resume``, and the ledger is an older copy.
        UnfinishedBatch: an earlier batch of the same rows is unfinished.
        LedgerError: the ledger can't be created or opened.
        ConfigurationError: an option is wrong, or ``ledger`` is missing; ``join``, and the ledger
            is a file.
        DesError: the jobs could not be read from DES for any target that rows name; likewise
            CredentialsRefused, SchemaError.
        Declined: ``confirm`` returned False.
    """
    setup = await _set_up(des, **options)
    source = _open_source(rows, setup.settings)
    place = os.fspath(_ledger_of(source) if ledger is None else ledger)

    async with AsyncExitStack() as stack:
        batch = await _begin(stack, source, place, setup, resume=resume)
        yield await stack.enter_async_context(aclosing(batch))


async def _begin(
    stack: AsyncExitStack, source: Source, place: str, setup: Setup, *, resume: bool
) -> Batch:
    """Resume a batch, if that is wanted and it exists; else import it."""
    is_told, wait = False, 0.1

    while True:
        try:
            if resume and (taken := await _take_if_begun(stack, place, setup)):
                await _check_same(taken, source, setup.settings)
                return await _go_on(taken, setup, rows=source)

            return await _import(stack, source, place, setup)
        except errors.LedgerExists:  # another launcher has just imported it
            if not (setup.joins and resume):
                raise
        except errors.LedgerError as exc:
            # One that waits for an import waits for a server that is away as well.
            is_away = is_told and type(exc) is errors.LedgerError

            if not (setup.joins and (is_away or isinstance(exc, errors.LedgerLocked))):
                raise

            if not is_told:
                setup.emit(Noted(f"{exc}; waiting until it ends"))
                is_told = True

            await asyncio.sleep(wait)
            wait = min(1.5 * wait, LONGEST_LOOK)


async def _take_if_begun(stack: AsyncExitStack, place: str, setup: Setup) -> Ledger | None:
    if not is_shared(place) and not await run_sync(os.path.lexists, place):
        return None

    opening = take_ledger(place, joins=setup.joins)

    try:
        return await stack.enter_async_context(_held(opening, setup.emit))
    except errors.LedgerMissing:
        if is_shared(place):
            return None

        raise


@asynccontextmanager
async def resume_batch(
    ledger: StrPath,
    des: Clients,
    *,
    corrections: StrPath | Manifest | None = None,
    add_rows: bool = False,
    **options: Unpack[Options],
) -> AsyncIterator[Batch]:
    """Open an existing batch to resume it; nothing is sent yet.

    Args:
        ledger: the batch's ledger: a path, or postgresql://…#batch.
        des: the client, or one for each target.
        corrections: a manifest of corrected rows, matched by key, and applied after ``confirm``:
            all or none.
        add_rows: add rows of ``corrections`` whose keys the batch does not have.
        **options: see :class:`Options`.

    Raises:
        LedgerMissing: there is no such ledger.
        InvalidManifest: the corrections are invalid, or don't fit the batch.
        DeslaunchError: as for :func:`open_batch`.
    """
    opening = take_ledger(os.fspath(ledger), joins=options.get("join", False))

    async with _held(opening, options.get("on_event")) as taken:
        setup = await _set_up(des, taken, **options)
        file = None

        if corrections is not None:
            file = open_manifest(corrections, setup.settings, is_batch_output_allowed=True)

        async with aclosing(await _go_on(taken, setup, file, add=add_rows)) as batch:
            yield batch


@asynccontextmanager
async def watch_batch(
    ledger: StrPath, des: Clients, **options: Unpack[Options]
) -> AsyncIterator[Batch]:
    """Open a batch to watch its runs; nothing is started.

    Args:
        ledger: the batch's ledger: a file is locked; in PostgreSQL launchers may be at work.
        des: the client, or one for each target.
        **options: see :class:`Options`.

    Raises:
        LedgerError: the ledger can't be opened.
        ConfigurationError: a target is not the DES or organisation that started the runs.
    """
    opening = take_ledger(os.fspath(ledger), launches=False)

    async with _held(opening, options.get("on_event")) as taken:
        options.setdefault("settings", replace(settings_of(taken), rate=None))  # that of starts
        setup = await _set_up(des, taken, **options)
        used = set(await taken.targets())
        await importing.check_origins(taken, setup.clients, setup.settings, used)

        async with aclosing(Batch(setup, taken, None)) as batch:
            yield batch


async def launch(
    rows: StrPath | Manifest | Rows,
    des: Clients,
    *,
    ledger: StrPath | None = None,
    resume: bool = False,
    allow_partial: bool = False,
    **options: Unpack[Options],
) -> Summary:
    """Start a run for every row, and record each in a ledger.

    Args:
        rows: as for :func:`open_batch`.
        des: the client, or one for each target.
        ledger: as for :func:`open_batch`.
        resume: as for :func:`open_batch`.
        allow_partial: return the summary even if the launch did not finish.
        **options: see :class:`Options`.

    Returns:
        The counts of the whole batch.

    Raises:
        Stopped: rows are left; ``CredentialsRefused``, ``LedgerWriteFailed`` and ``Interrupted``
            are subclasses.
        DeslaunchError: as for :func:`open_batch`.
    """
    async with open_batch(rows, des, ledger=ledger, resume=resume, **options) as batch:
        return await batch.run(allow_partial=allow_partial)


async def preview(
    rows: StrPath | Manifest | None,
    des: Clients | None = None,
    *,
    ledger: StrPath | None = None,
    **options: Unpack[Options],
) -> AsyncIterator[Start]:
    """Yield the starts that a launch would send, in order; send nothing, and leave no files.

    Args:
        rows: the manifest of a new batch, which is imported into a temporary folder; None for
            the rows of a ledger.
        des: the client, or one for each target; needed for a new batch without ``schema``.
        ledger: of the batch that would be resumed.
        **options: see :class:`Options`.

    Yields:
        Each start, with its exact body.

    Raises:
        DeslaunchError: as for :func:`open_batch`.
    """
    settings = options.get("settings") or Settings()
    place, left = os.fspath(ledger or ""), settings.limit
    folder = None if rows is None else await run_sync(_make_temporary_folder)

    try:
        if rows is not None and folder is not None:
            place = f"{folder.name}/preview.ledger.db"

            options["settings"] = replace(settings, again=True)  # nothing is sent of it

            async with open_batch(rows, des or {}, ledger=place, **options) as batch:
                if batch.ledger is None:
                    return

        async with await open_ledger(place) as opened:
            async for portion in opened.sendable(Consents.of(settings)):
                for start in portion[:left]:
                    yield start

                if left is not None and (left := left - len(portion)) <= 0:
                    break
    finally:
        with anyio.CancelScope(shield=True):
            if folder is not None:
                await run_sync(folder.cleanup)


def _make_temporary_folder() -> TemporaryDirectory[str]:
    try:
        return TemporaryDirectory()
    except OSError as exc:
        raise errors.ConfigurationError(
            f"a preview needs a temporary folder: {exc.strerror}",
            hint="free space in the temporary folder, or set TMPDIR to another folder",
        ) from exc


def default_ledger(manifest: StrPath) -> str:
    """Return the default ledger of a manifest: ``night.csv.gz`` → ``night.ledger.db``."""
    path = Path(os.fspath(manifest))
    return str(path.parent / f"{Path(path.name.removesuffix('.gz')).stem}.ledger.db")


def settings_of(ledger: Ledger) -> Settings:
    """Return the settings that a ledger keeps; all else is default."""
    kept = {name: v for name, v in ledger.batch.options.items() if name in OPTIONS}
    return Settings(**kept)


async def _set_up(
    des: Clients | None,
    ledger: Ledger | None = None,
    /,
    *,
    settings: Settings | None = None,
    schema: StrPath | None = None,
    on_event: OnEvent | None = None,
    confirm: Confirm | None = None,
    options_kept: Mapping[str, Any] | None = None,
    job_limits: Mapping[str, JobLimit] | None = None,
    join: bool = False,
) -> Setup:
    """Return what a batch is opened with; nothing is sent to DES yet.

    Settings that are not given are those that the ledger keeps.

    Raises:
        SchemaError: the schema file can't be read.
        ConfigurationError: there is neither a client nor a schema file.
    """
    settings = settings or (settings_of(ledger) if ledger else Settings())
    deadlines = settings.deadlines(time.time, boottime)
    emit = on_event or (lambda _: None)
    schemas = await open_schemas(des, settings, schema, emit)

    if options_kept is None:
        options_kept = {} if ledger else settings.kept()

    loop = asyncio.get_running_loop()

    def warn(text: str) -> None:  # in a thread
        loop.call_soon_threadsafe(emit, Noted(text, is_warning=True))

    history = await run_sync(History.of_user, warn)
    limits = {job.lower(): limit for job, limit in (job_limits or {}).items()}
    slots, lack = fit_slots(settings.concurrency)

    if lack:
        settings = replace(settings, concurrency=slots)
        emit(Noted(lack, is_warning=True))

    told = (schemas, emit, confirm, options_kept, history, limits, deadlines, join)
    return Setup(settings, schemas.clients, *told)


def _open_source(rows: Any, settings: Settings) -> Source:
    if isinstance(rows, str | os.PathLike | Manifest):
        return open_manifest(rows, settings)

    if not isinstance(rows, Iterable | AsyncIterable):
        raise TypeError(f"rows must be a path or iterable, not {type(rows).__name__}")

    return rows


def _ledger_of(source: Source) -> str:
    if not isinstance(source, Manifest) or source.path is None:
        raise errors.ConfigurationError(
            "rows that are not from a file need a ledger",
            hint="pass --ledger FILE, or ledger=PATH",
        )

    return default_ledger(source.path)


async def _agree(setup: Setup, plan: Plan, warnings: Iterable[str]) -> Plan:
    """Emit the plan, and call ``confirm``.

    Raises:
        Declined: it returned False.
    """
    pace = {name: getattr(setup.settings, name) for name in ("concurrency", "rate", "limit")}
    left = min((deadline.left() for deadline in setup.deadlines), default=None)
    stops_at = None if left is None else time.time() + left
    plan = plan._replace(**pace, stops_at=stops_at, warnings=tuple(filter(None, warnings)))
    setup.emit(Planned(plan))

    if setup.confirm is not None:
        agreed = setup.confirm(plan)

        if not (await agreed if inspect.isawaitable(agreed) else agreed):
            raise errors.Declined("nothing was sent")

    return plan


@asynccontextmanager
async def _held(opening: Awaitable[Ledger], on_event: OnEvent | None) -> AsyncIterator[Ledger]:
    """Open a ledger for a block, and close it at its end."""
    ledger = await opening

    try:
        yield ledger
    finally:
        with anyio.CancelScope(shield=True):
            message = await ledger.aclose()

        if message and on_event is not None:
            on_event(Noted(message, is_warning=True))


async def _import(stack: AsyncExitStack, source: Source, place: str, setup: Setup) -> Batch:
    """Make a batch of a manifest, or of rows that a program will add."""
    name, new = ROWS, NewBatch(ROWS, setup.kept)
    known: dict[str, Any] = {}

    if isinstance(source, Manifest):
        name = source.name
        path = name if source.path is None else str(source.path.absolute())
        new = NewBatch(path, {**setup.kept, "rows": _row_options(setup.settings)})

    async with await begin_import(place, new) as made:
        warnings = [made.warning]

        if isinstance(source, Manifest):
            warnings += await importing.import_manifest(source, setup.schemas, made)
            known = {"digest": source.digest, "columns": source.columns}

        for note in setup.schemas.notes.values():
            setup.emit(Noted(note))

        allowed, told = await _look_for_others(setup, made, known.get("digest", ""), name)
        warnings += told
        before = await run_sync(tell_before, setup.history, known.get("digest", ""), made.place)
        plan = (await made.plan())._replace(manifest=name, ledger=place, before=before)
        plan = await _agree(setup, plan, warnings)

        if isinstance(source, Manifest) and not plan.rows:
            return Batch(setup, None, plan)

        ledger = await stack.enter_async_context(_held(made.publish(**known), setup.emit))
        return Batch(setup, ledger, plan, source, allowed=allowed)


async def _look_for_others(
    setup: Setup, batch: Import | Ledger, digest: str, name: str
) -> tuple[Collection[str], tuple[str, ...]]:
    """Return the uids of other batches of the same rows that are allowed, and warnings.

    Raises:
        UnfinishedBatch: another one is unfinished, and ``again`` is not set.
    """
    others = await find_others(setup.history, digest, batch)
    allowed = {one.uid for one in others if setup.settings.again or not one.is_unfinished}
    refuse([one for one in others if one.uid not in allowed], name)
    return allowed, tuple(tell_given_up(one) for one in others if one.is_unfinished)


def _row_options(settings: Settings) -> dict[str, Any]:
    """Return the options that decide which rows a manifest has."""
    names = ("job_id", "target", "allow_duplicates", "allow_repeated_auto", "skip_invalid")
    return {name: getattr(settings, name) for name in names}


async def _check_same(ledger: Ledger, source: Source, settings: Settings) -> None:
    """Refuse to resume, unless the batch was begun with this manifest, or by a program.

    Raises:
        LedgerForeign: the manifest is another one.
        ConfigurationError: options that decide which rows it has differ.
        ManifestError: the manifest can't be read to its end.
    """
    name, digest = ROWS, ""
    command = resume_command(ledger.place, ledger.batch.options)

    if isinstance(source, Manifest):
        name, digest = source.name, await run_sync(importing.digest_of, source)

    if digest != ledger.batch.digest:
        raise errors.LedgerForeign(
            f"{ledger.place}: was made from other rows than {name} has now; nothing was sent",
            hint=f"resume the batch as it was imported: {command}; for changed rows add "
            "--corrections FILE; for a new batch pass another --ledger",
        )

    now = _row_options(settings)
    begun = ledger.batch.options.get("rows", now)

    if differing := [f"--{n.replace('_', '-')}" for n in now if begun.get(n) != now[n]]:
        raise errors.ConfigurationError(
            f"the batch began with other values of {', '.join(differing)}; nothing was sent",
            hint=f"resume it: {command}",
        )


async def _go_on(
    ledger: Ledger,
    setup: Setup,
    corrections: Manifest | None = None,
    *,
    add: bool = False,
    rows: Source | None = None,
) -> Batch:
    """Return an existing batch, after ``confirm`` and with the corrections applied.

    Raises:
        InvalidManifest: the corrections don't fit the batch; nothing was applied.
    """
    consents = Consents.of(setup.settings)
    checked: list[CheckedRow] = []
    copied = await check_copy(ledger, setup.history, accepts=setup.settings.accept_copy)
    warnings = [ledger.warning, copied]
    allowed: Collection[str] | None = None

    if not (await ledger.query("last_known"))[0][1]:  # nothing was sent: as good as new
        name = printable(ledger.batch.manifest)
        allowed, told = await _look_for_others(setup, ledger, ledger.batch.digest, name)
        warnings += told

    async def correct(file: Manifest, *, dry_run: bool) -> Plan:
        done = await ledger.correct(
            checked, file=file.name, add=add, dry_run=dry_run, consents=consents
        )

        if done.problems:
            raise errors.InvalidManifest(
                f"{file.name}: the corrections don't fit the batch; nothing was changed or sent",
                problems=done.problems,
                count=len(done.problems),
                hint="fix the lines above, and pass the file again",
            )

        return done.plan._replace(corrections=(done.replaced, done.added))

    # If rows are given, _check_same has compared them.
    telling = _tell_if_changed(ledger, setup) if rows is None else asyncio.sleep(0)

    if corrections is None:  # a large file takes a while to hash, and its rows to count
        _, plan = await asyncio.gather(telling, ledger.plan(consents))
    else:
        await telling
        checked, told = await importing.read_corrections(corrections, setup.schemas, ledger)
        warnings += told
        plan = await correct(corrections, dry_run=True)

    if consents.failed_runs:
        runs = await ledger.query("failed_runs")
        left = [key for _row, _job, is_left, key in runs if is_left]
        warnings += [_left_out(left)] if left else []
        failed = len(runs) - len(left)
        known = "gets another run" if failed == 1 else "get another run each"
        setup.emit(Noted(f"{count(failed, 'row')} whose run failed (as of the last watch) {known}"))

    used = {job.target for job in plan.jobs}
    await importing.check_origins(ledger, setup.clients, setup.settings, used)
    plan = await _agree(setup, plan._replace(resumes=True), warnings)

    if copied:
        await ledger.accept_copy()

    if corrections is not None:
        await correct(corrections, dry_run=False)

    return Batch(setup, ledger, plan, rows, allowed=allowed)


def _left_out(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - SHOWN_KEYS:,} more" if len(keys) > SHOWN_KEYS else ""
    return (
        f"{count(len(keys), 'row')} whose run failed are left out, since they use an auto value or "
        f"are possible duplicates: {', '.join(keys[:SHOWN_KEYS])}{more}"
    )


async def _tell_if_changed(ledger: Ledger, setup: Setup) -> None:
    """Emit a note if the manifest's file has changed since the import; it is not read again."""
    known = ledger.batch.digest
    manifest = Manifest(ledger.batch.manifest, format="csv")  # to be hashed, in whatever form

    # Opening a pipe again would wait for ever: nobody writes to it a second time.
    if not known or not manifest.path or not await run_sync(manifest.path.is_file):
        return

    with suppress(errors.ManifestError):
        if await run_sync(importing.digest_of, manifest) != known:
            setup.emit(
                Noted(
                    f"{printable(ledger.batch.manifest)} has changed since it was imported; "
                    "resume takes changed rows only with --corrections FILE"
                )
            )


# An import of this module makes its package an attribute of ``deslaunch``, where users mean the
# function of the same name.
setattr(sys.modules["deslaunch"], "launch", launch)  # noqa: B010  # a module's type has no such name
