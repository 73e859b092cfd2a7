"""Read rows, check them, and write them to a ledger; check them again if their jobs change.

Reading and checking block, so they run in worker threads, some hundred rows at a time.
"""

import asyncio
import gzip
import hashlib
import zlib
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final
from urllib.parse import urlsplit

from anyio.to_thread import run_sync

from deslaunch import errors
from deslaunch.des.client import DesClient
from deslaunch.events import Event, ProblemGroup, RowEnded
from deslaunch.launch.schemas import Clients, OnEvent, Schemas, StrPath, open_schemas
from deslaunch.launch.session import Session
from deslaunch.ledger.ledger import Import, Ledger
from deslaunch.ledger.reading import PORTION, KnownJob
from deslaunch.manifest.check import Check
from deslaunch.manifest.files import Manifest
from deslaunch.manifest.rows import RowRules, load_row, row_from_object
from deslaunch.manifest.schema import Schema
from deslaunch.model import CheckedRow, InvalidRow, Outcome, Problem, Row, RowState, count
from deslaunch.settings import Settings

Rows = Iterable[Mapping[str, Any] | Row] | AsyncIterable[Mapping[str, Any] | Row]
Source = Manifest | Rows

ROWS: Final = "<rows>"
"""What problems name as the file of rows that come from no file."""

UNREAD_PER_SLOT: Final = 4
"""Outcomes, or added rows, a slot that may wait before a batch takes no more."""

ROWS_AT_ONCE: Final = 64
"""Rows of a program that are added together, at most."""

_AS_CHECKED: Final = "the rows as they were imported"


async def read_rows(
    manifest: Manifest, check: Check, schemas: Schemas
) -> AsyncIterator[list[CheckedRow | InvalidRow]]:
    """Read a manifest to its end, and yield its rows, checked.

    Raises:
        ManifestError: it can't be opened or read.
        DesError: DES could not be asked for any target's jobs; likewise CredentialsRefused,
            SchemaError.
    """
    chunks = manifest.chunks()

    # A pipe may stay silent: whoever cancels does not wait for it.
    while chunk := await run_sync(next, chunks, None, abandon_on_cancel=True):
        await schemas.load({row.target for row in chunk})
        yield await run_sync(check.take, chunk)

    if schemas.left_out and not schemas.by_target:
        raise next(iter(schemas.left_out.values()))


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What :func:`check` found.

    Attributes:
        rows: data rows.
        invalid: rows that could not be started.
        problems: the first 1,000 problems in manifest order.
        count: how many problems there are in all.
        groups: the first 1,000 different problems, each with the number of its rows.
        notes: how old cached JobRunParameters are, one sentence for each target.
        warnings: what may be a mistake, one sentence each.
        unconfirmed: why a fresher schema could not be had, where a cached one found rows
            invalid; else None.
    """

    rows: int
    invalid: int
    problems: tuple[Problem, ...]
    count: int
    groups: tuple[ProblemGroup, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    unconfirmed: Exception | None = None

    @property
    def valid(self) -> int:
        """Rows that could be started."""
        return self.rows - self.invalid

    @property
    def exit_code(self) -> int:
        """0 valid, 2 invalid; 5 or 6 where only an old schema says so: DES must be asked."""
        if self.unconfirmed is not None:
            return 6 if isinstance(self.unconfirmed, errors.CredentialsRefused) else 5

        return 2 if self.count else 0

    def as_dict(self) -> dict[str, Any]:
        """Return the report in the documented form of ``check --json``."""
        return {
            "rows": self.rows,
            "valid": self.valid,
            "invalid": self.invalid,
            "problems": [problem._asdict() for problem in self.problems],
            "warnings": list(self.warnings),
            "exitCode": self.exit_code,
        }


async def check(
    manifest: StrPath | Manifest,
    des: Clients | None = None,
    *,
    settings: Settings | None = None,
    schema: StrPath | None = None,
    on_event: OnEvent = lambda _: None,
) -> CheckReport:
    """Check every row of a manifest; send nothing.

    Args:
        manifest: a path, a stream, or a manifest with options of its own.
        des: the client, or one for each target; None if ``schema`` is given.
        settings: the options of the manifest, and the age limit of cached jobs.
        schema: a file of jobs in QueryJobs' form; then DES is not asked for them.
        on_event: called with a note about each wait for a busy DES.

    Raises:
        ConfigurationError: there is neither ``des`` nor ``schema``.
        ManifestError: the file can't be opened.
        DesError: DES could not be asked, and no cached response serves.
        CredentialsRefused: no token that DES accepts, and no cached response serves.
        SchemaError: DES's response, or the schema file, can't be read.
    """
    schemas = await open_schemas(des, settings or Settings(), schema, on_event)
    schemas.is_offline = True
    file = open_manifest(manifest, schemas.settings)

    with await schemas.checks(file.name) as found:
        async for _ in read_rows(file, found, schemas):
            pass

    return CheckReport(
        found.rows,
        found.invalid,
        tuple(found.problems),
        found.count,
        tuple(found.groups),
        notes=tuple(schemas.notes.values()),
        warnings=warnings_of(file, found, schemas),
        unconfirmed=schemas.unconfirmed,
    )


async def import_manifest(manifest: Manifest, schemas: Schemas, made: Import) -> tuple[str, ...]:
    """Import a whole manifest into a new batch.

    Returns:
        What a person should know before the rows are launched, one sentence each.

    Raises:
        InvalidManifest: it can't be read to its end, or rows are invalid and may not be skipped.
        ManifestError: it can't be opened.
        DesError: DES could not be asked for the jobs; likewise CredentialsRefused, SchemaError.
    """
    with await schemas.checks(manifest.name) as check:
        async for rows in read_rows(manifest, check, schemas):
            await made.add(rows)

    _raise_if_invalid(manifest, check, schemas, skip=schemas.settings.skip_invalid)

    for target in schemas.by_target:
        await schemas.add_to(made, target)

    return warnings_of(manifest, check, schemas)


def _raise_if_invalid(manifest: Manifest, check: Check, schemas: Schemas, *, skip: bool) -> None:
    """Refuse a manifest that is not to be launched.

    Raises:
        InvalidManifest: it can't be read to its end, or rows are invalid and not skipped.
        DesError: rows are invalid by cached jobs, and DES could not be asked; likewise
            CredentialsRefused, SchemaError.
    """
    if not manifest.is_whole:
        end = " to its end" if check.rows else ""
        raise check.error(
            f"{manifest.name}: the file can't be read{end}; nothing was sent",
            "do what the line above says; --skip-invalid does not pass over it",
        )

    if schemas.unconfirmed is not None:
        raise schemas.unconfirmed

    if check.count and not skip:
        raise check.error(
            f"{manifest.name}: {check.invalid:,} of {count(check.rows, 'row')} can't be started; "
            "nothing was sent",
            "fix the rows, or pass --skip-invalid to launch the others",
        )


async def read_corrections(
    manifest: Manifest, schemas: Schemas, ledger: Ledger
) -> tuple[list[CheckedRow], tuple[str, ...]]:
    """Return the rows of a file of corrections, all of them valid, and what may be a mistake.

    Raises:
        InvalidManifest: rows are invalid, or the file can't be read to its end.
        ManifestError: it can't be opened.
        DesError: DES could not be asked for the jobs of a target that it names; likewise
            CredentialsRefused, SchemaError.
    """
    rows: list[CheckedRow] = []

    with await schemas.checks(manifest.name, ledger) as check:
        async for portion in read_rows(manifest, check, schemas):
            rows += [row for row in portion if isinstance(row, CheckedRow)]

    if schemas.left_out:  # a correction is taken whole and checked, or not at all
        raise next(iter(schemas.left_out.values()))

    _raise_if_invalid(manifest, check, schemas, skip=False)
    return rows, warnings_of(manifest, check, schemas)


async def recheck(ledger: Ledger, schemas: Schemas, target: str) -> int:
    """Check rows that were never sent again, where their job's parameters changed since.

    A job that was read from a schema file is left alone; one that could not be asked for at the
    import is checked for the first time. Rows that fail become invalid.

    Args:
        ledger: the batch.
        schemas: of DES's jobs as they are now.
        target: whose rows; its schemas are loaded.

    Returns:
        How many rows became invalid.

    Raises:
        DesError: the schemas are cached, and DES could not be asked; likewise CredentialsRefused,
            SchemaError.
    """
    invalid = 0

    def is_settled(known: KnownJob) -> bool:
        schema = schemas.by_target[target].get(known.job.job_id)
        same = schema is not None and schema.job.parameters == known.job.parameters
        return known.is_checked and (same or not known.from_des)

    jobs = [known for known in await ledger.jobs() if known.target == target]

    if target in schemas.notes and not all(map(is_settled, jobs)):
        await schemas.fetch(target)  # what is cached makes no row invalid

    for job_id in [known.job.job_id for known in jobs if not is_settled(known)]:
        after = 0

        while portion := await ledger.query("unsent_rows", (after, target, job_id, PORTION)):
            rows = await run_sync(_check_again, schemas.by_target, portion)
            await ledger.recheck(rows)
            invalid += sum(isinstance(row, InvalidRow) for row in rows)
            after = portion[-1][0]

        if job_id in schemas.by_target[target]:
            await schemas.add_to(ledger, target, job_id)

    return invalid


def _check_again(
    schemas: Mapping[str, Mapping[str, Schema]], stored: list[tuple[int, int, str, str]]
) -> list[CheckedRow | InvalidRow]:
    """Check rows as a ledger holds them (number, line, key, what it says); each keeps its key."""
    checking = Check(schemas, file=_AS_CHECKED, allow_duplicates=True, allow_repeated_auto=True)

    with checking as check:
        rows = [load_row(says, number, line, _AS_CHECKED) for number, line, _, says in stored]
        taken = check.take(rows)

    return [row._replace(key=key) for row, (_, _, key, _) in zip(taken, stored, strict=True)]


class Feed:
    """Adds the rows of a program to a batch at work, as far as there is room for them.

    Args:
        session: the batch's; what it tells is heard, and passed on.
        schemas: what the rows are checked with.
    """

    def __init__(self, session: Session, schemas: Schemas) -> None:
        session.feed(goes_on=True)
        self.session, self.schemas = session, schemas
        self._emit, session.emit = session.emit, self._hear
        self._waiting: dict[int, str] = {}  # by number, the targets of rows that have not ended
        self._news = asyncio.Event()

    def wake(self) -> None:
        """Check again how many rows may be added."""
        self._news.set()

    def _hear(self, event: Event) -> None:
        if isinstance(event, RowEnded):
            self._waiting.pop(event.outcome.row, None)

        self._news.set()
        self._emit(event)

    async def run(self, rows: Rows) -> None:
        """Add all rows; where they raise, the session drains.

        Raises:
            Exception: whatever the rows raised.
            DesError: DES could not be asked for the jobs; likewise CredentialsRefused, SchemaError.
        """
        settings, ledger = self.session.settings, self.session.ledger
        rules = RowRules(job_id=settings.job_id, target=settings.target)
        source = aiter(rows) if isinstance(rows, AsyncIterable) else iter(rows)
        number = 1

        try:
            with await self.schemas.checks(ROWS, ledger) as check:
                while said := await _next_rows(source, await self._room()):
                    read = [row_from_object(one, n, rules) for n, one in enumerate(said, number)]
                    number += len(read)

                    for target in await self.schemas.load({row.target for row in read}):
                        await self.schemas.add_to(ledger, target)

                    for target, why in self.schemas.left_out.items():
                        self.session.stop_unchecked(target, why)

                    await self._add(await run_sync(check.take, read))
        except BaseException:
            self.session.drain()
            raise
        finally:
            self.session.feed(goes_on=False)

    async def _room(self) -> int:
        """Return how many more rows may be added, once there are any."""
        while True:
            if stopped := {stop.target for stop in self.session.stops}:  # their rows will not end
                self._waiting = {n: t for n, t in self._waiting.items() if t not in stopped}

            if self.session.is_idle():  # what waits was withdrawn, or is another launcher's
                self._waiting.clear()

            room = UNREAD_PER_SLOT * self.session.settings.concurrency - len(self._waiting)

            if room > 0 and not self.session.is_held_back():
                return min(room, ROWS_AT_ONCE)

            self._news.clear()
            await self._news.wait()

    async def _add(self, checked: list[CheckedRow | InvalidRow]) -> None:
        if self.schemas.unconfirmed is not None:
            raise self.schemas.unconfirmed

        added = await self.session.ledger.add(checked)
        last = max(added.numbers) - (len(checked) - added.same)  # that the batch had before

        for row, number in zip(checked, added.numbers, strict=True):
            if isinstance(row, InvalidRow):
                text = "; ".join(problem.message for problem in row.problems)
                known = (number, 0, row.key or "", row.target, row.job_id)
                outcome = Outcome(*known, None, RowState.INVALID, error=text, problems=row.problems)
                self._emit(RowEnded(outcome))
            elif number > last:
                self._waiting[number] = row.row.target

        # Also of those that the batch had: the reply to the commit that added them may be lost.
        targets = {row.row.target for row in checked if isinstance(row, CheckedRow)}
        self.session.feed(goes_on=True, targets=targets)


async def _next_rows(source: Any, most: int) -> list[Any]:
    """Return the next rows of a program; none at the end."""
    if not isinstance(source, AsyncIterator):
        return list(islice(source, most))

    try:
        return [await anext(source)]
    except StopAsyncIteration:
        return []


# What a manifest is checked with.


def open_manifest(
    source: StrPath | Manifest, settings: Settings, *, is_batch_output_allowed: bool = False
) -> Manifest:
    """Return a manifest that is read as the settings say, unless it is one already."""
    if isinstance(source, Manifest):
        return source

    form = {name: getattr(settings, name) for name in ("format", "delimiter", "job_id", "target")}
    return Manifest(source, **form, is_batch_output_allowed=is_batch_output_allowed)


def digest_of(manifest: Manifest) -> str:
    """Return the SHA-256 of a manifest's bytes, uncompressed; hex, or ``""`` for a damaged stream.

    Raises:
        ManifestError: it can't be read.
    """
    if manifest.path is None or not manifest.path.is_file():  # stdin or a pipe
        deque(manifest.chunks(), 0)
        return manifest.digest

    try:
        with manifest.path.open("rb") as raw:
            is_gzip = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)

            with gzip.open(raw) if is_gzip else raw as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, EOFError, zlib.error) as exc:
        raise errors.ManifestError(
            f"{manifest.name} can't be read to its end: {exc}",
            hint="check the file and your read permission",
        ) from exc


def warnings_of(manifest: Manifest, check: Check, schemas: Schemas) -> tuple[str, ...]:
    """Return what a person should know before rows are launched, one sentence each."""
    return tuple(map(str, (*manifest.warnings, *check.warnings, *schemas.warnings)))


async def check_origins(
    ledger: Ledger, clients: Mapping[str, DesClient], settings: Settings, used: set[str]
) -> None:
    """Refuse to send the rest of a batch to another DES than before, unless that is allowed.

    An organisation may move: there, ``svc`` is where its token says.

    Args:
        ledger: the batch.
        clients: by target.
        settings: whether another origin is wanted.
        used: the targets that matter.

    Raises:
        ConfigurationError: a target is not configured, or is another's than in the last session.
        CredentialsRefused: a target's origin can't be found out, as there is no token; likewise
            NotSent.
    """
    targets = await ledger.targets()

    for name in sorted(used & targets.keys()):
        known, client = targets[name], clients.get(name)

        if client is None:
            raise errors.ConfigurationError(
                f"rows of the batch go to the target {name}, which is not configured",
                hint=f"configure it; the configured targets are: {', '.join(clients)}",
            )

        if client.org_id is not None and known.org_id is not None:
            if client.org_id != known.org_id:
                raise errors.ConfigurationError(
                    f"target {name} was organisation {known.org_id} in the last session, and is "
                    f"{client.org_id} now",
                    hint="set the target back to its organisation, or begin a new batch",
                )
        elif known.base_url is not None and not settings.allow_new_origin:
            now = await client.locate()

            if urlsplit(now.lower())[:2] != urlsplit(known.base_url.lower())[:2]:  # the origins
                raise errors.ConfigurationError(
                    f"target {name} was at {known.base_url} in the last session, and is at {now} "
                    "now: its jobs may not be the same",
                    hint=f"if it moved, pass --base-url {now}",
                )
