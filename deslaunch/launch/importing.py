"""Rows on their way into a ledger: read, checked, and taken; and checked again where jobs change.

Reading and checking block, so they run in worker threads, some hundred rows at a time.
"""

from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final
from urllib.parse import urlsplit

from anyio.from_thread import run as run_in_loop
from anyio.to_thread import run_sync

from deslaunch import errors
from deslaunch.des.catalog import Catalog, SchemaCache, read_schema_file
from deslaunch.des.client import DesClient
from deslaunch.manifest.check import Check
from deslaunch.manifest.files import Manifest
from deslaunch.manifest.rows import load_row
from deslaunch.manifest.schema import compile_jobs
from deslaunch.model import CheckedRow, InvalidRow, count

if TYPE_CHECKING:
    from deslaunch.ledger.ledger import Import, Ledger
    from deslaunch.manifest.schema import Schema
    from deslaunch.model import Job
    from deslaunch.settings import Settings

Clients = DesClient | Mapping[str, DesClient]
StrPath = str | os.PathLike[str]

PORTION: Final = 512
ROWS: Final = "<rows>"
"""What problems name as the file of rows that come from no file."""

_AS_CHECKED: Final = "the rows as they were imported"


class Schemas:
    """The compiled jobs of the targets that rows name, as :class:`Check` wants them: live.

    Args:
        catalog: where the jobs come from.
        from_des: they are DES's own, and no schema file's.

    Attributes:
        by_target: by target, its schemas by jobId.
        unchecked: targets whose jobs can't be had, while others' can.
        unconfirmed: why a fresher schema could not be had where a cached one found rows invalid.
    """

    def __init__(self, catalog: Catalog, *, from_des: bool) -> None:
        self.catalog = catalog
        self.from_des = from_des
        self.by_target: dict[str, Mapping[str, Schema]] = {}
        self.unchecked: set[str] = set()
        self.unconfirmed: errors.DeslaunchError | None = None

    async def load(self, targets: Iterable[str]) -> set[str]:
        """Load the jobs of targets that rows name; known ones cost nothing.

        Returns:
            The targets that are new.

        Raises:
            DesError: DES could not be asked for any target's.
            CredentialsRefused: the same, for want of a token that DES accepts.
            SchemaError: the same, as its response can't be read.
        """
        wanted = {t for t in targets if t in self.catalog.targets} - self.by_target.keys()
        wanted -= self.unchecked

        if wanted:
            await self.catalog.load(sorted(wanted))

        for target in wanted:
            if target in self.catalog.left_out:
                self.unchecked.add(target)
            else:
                self._compile(target)

        return wanted & self.by_target.keys()

    def jobs(self, target: str) -> list[Job]:
        """Return a target's jobs."""
        return [schema.job for schema in self.by_target[target].values()]

    async def renew(self, target: str) -> Mapping[str, Schema] | None:
        """Ask DES for a target's jobs, where the known ones are from the cache.

        Returns:
            The newer schemas; None where there are none, or where they can't be had.
        """
        if not self.catalog.is_cached(target):
            return None

        try:
            await self.catalog.renew(target)
        except (errors.DesError, errors.CredentialsRefused, errors.SchemaError) as exc:
            self.unconfirmed = exc
            return None

        return self._compile(target)

    async def fetch(self, target: str) -> None:
        """Ask DES for a target's jobs, wherever the known ones came from.

        Raises:
            DesError: DES could not be asked.
            CredentialsRefused: no token that DES accepts.
            SchemaError: DES's response can't be read.
        """
        await self.catalog.renew(target)
        self._compile(target)
        self.unchecked.discard(target)

    async def checks(self, settings: Settings, file: str, **more: Any) -> Check:
        """Return a check of one batch's rows by these schemas; it is to be closed."""
        known: dict[str, Any] = {
            "targets": self.catalog.targets,
            "unchecked": self.unchecked,
            "allow_duplicates": settings.allow_duplicates,
            "allow_repeated_auto": settings.allow_repeated_auto,
            "renew": lambda target: run_in_loop(self.renew, target),
        }
        return await run_sync(lambda: Check(self.by_target, file=file, **(known | more)))

    def _compile(self, target: str) -> Mapping[str, Schema]:
        self.by_target[target] = compile_jobs(self.catalog.jobs[target].values())
        return self.by_target[target]


Take = Callable[[list[CheckedRow | InvalidRow]], Awaitable[None]]


async def read_rows(manifest: Manifest, check: Check, schemas: Schemas, take: Take) -> None:
    """Read a manifest to its end, check its rows, and hand them on.

    Raises:
        ManifestError: it can't be opened or read.
        DesError: DES could not be asked for the jobs; likewise CredentialsRefused, SchemaError.
    """
    chunks = manifest.portions()

    # A pipe may stay silent: whoever cancels does not wait for it.
    while chunk := await run_sync(next, chunks, None, abandon_on_cancel=True):
        await schemas.load({row.target for row in chunk})
        await take(await run_sync(check.take, chunk))


async def import_manifest(
    manifest: Manifest, check: Check, schemas: Schemas, made: Import, settings: Settings
) -> None:
    """Take a whole manifest into a new batch.

    Raises:
        InvalidManifest: it can't be read to its end, or rows are invalid and may not be skipped.
        ManifestError: it can't be opened.
        DesError: DES could not be asked for the jobs; likewise CredentialsRefused, SchemaError.
    """
    await read_rows(manifest, check, schemas, made.add)
    repeats = check.finish()

    while portion := await run_sync(lambda: list(islice(repeats, PORTION))):
        names = {repeat.number: repeat.key for repeat in portion if repeat.key is not None}
        wrong = [
            InvalidRow(repeat.number, repeat.line, None, "", "", (repeat.problem,))
            for repeat in portion
            if repeat.problem is not None
        ]
        await made.rename(names)
        await made.invalidate(wrong)

    raise_if_invalid(manifest, check, schemas, is_skipping=settings.skip_invalid)

    for target in schemas.by_target:
        await made.add_jobs(target, schemas.jobs(target), from_des=schemas.from_des)


def raise_if_invalid(
    manifest: Manifest, check: Check, schemas: Schemas, *, is_skipping: bool
) -> None:
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

    if check.count and not is_skipping:
        raise check.error(
            f"{manifest.name}: {check.invalid:,} of {count(check.rows, 'row')} can't be started; "
            "nothing was sent",
            "fix the rows, or pass --skip-invalid to launch the others",
        )


async def read_corrections(manifest: Manifest, check: Check, schemas: Schemas) -> list[CheckedRow]:
    """Return the rows of a file of corrections, all of them valid.

    Raises:
        InvalidManifest: rows are invalid, or the file can't be read to its end.
        ManifestError: it can't be opened.
    """
    rows: list[CheckedRow] = []

    async def take(checked: list[CheckedRow | InvalidRow]) -> None:
        rows.extend(row for row in checked if isinstance(row, CheckedRow))

    await read_rows(manifest, check, schemas, take)
    await run_sync(list, check.finish())
    raise_if_invalid(manifest, check, schemas, is_skipping=False)
    return rows


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
    """
    invalid = 0

    for known in await ledger.jobs():
        schema = schemas.by_target.get(known.target, {}).get(known.job.job_id)
        same = schema is not None and schema.job.parameters == known.job.parameters

        if known.target != target or (known.is_checked and (same or not known.from_des)):
            continue

        after = 0

        while portion := await ledger.recheck_portion(target, known.job.job_id, after):
            rows = await run_sync(check_again, schemas.by_target, portion)
            await ledger.recheck(rows)
            invalid += sum(isinstance(row, InvalidRow) for row in rows)
            after = portion[-1][0]

        if schema is not None:
            await ledger.add_jobs(target, [schema.job], from_des=schemas.from_des)

    return invalid


def check_again(
    schemas: Mapping[str, Mapping[str, Schema]], stored: Sequence[tuple[int, int, str, str]]
) -> list[CheckedRow | InvalidRow]:
    """Check rows as a ledger holds them; each keeps the key that it has there.

    Args:
        schemas: by target and jobId.
        stored: number, line, key and what the row says.
    """
    checking = Check(schemas, file=_AS_CHECKED, allow_duplicates=True, allow_repeated_auto=True)

    with checking as check:
        rows = [load_row(says, number, line, _AS_CHECKED) for number, line, _, says in stored]
        taken = check.take(rows)

    return [row._replace(key=key) for row, (_, _, key, _) in zip(taken, stored, strict=True)]


# What a manifest is checked with, and checks that launch nothing.


def by_target(des: Clients | None, settings: Settings) -> dict[str, DesClient]:
    """Return the clients by target; one alone is that of the rows that name no target.

    Raises:
        ConfigurationError: a mapping without any.
    """
    if des is None:
        return {}

    if isinstance(des, DesClient):
        return {settings.target: des}

    return dict(des)


async def make_schemas(
    clients: Mapping[str, DesClient],
    settings: Settings,
    schema: StrPath | None,
    cache: StrPath | None,
    *,
    offline: bool = False,
) -> Schemas:
    """Return the schemas of a session; nothing is asked for yet.

    Args:
        clients: by target.
        settings: how old a cached response may be.
        schema: a file of jobs that stand for every target's, or None.
        cache: directory of the schema cache; None for the user's.
        offline: an old response serves where DES can't be asked.

    Raises:
        SchemaError: the schema file can't be read.
        ConfigurationError: there is neither a client nor a schema file.
    """
    if not clients and schema is None:
        raise errors.ConfigurationError(
            "there is neither a DES to ask nor a schema file",
            hint="set DES_BASE_URL and DES_TOKEN, or pass --schema FILE",
        )

    jobs = None if schema is None else await run_sync(read_schema_file, Path(schema))
    catalog = Catalog(
        clients,
        targets=() if clients else [settings.target],
        cache=SchemaCache.of_user() if cache is None else SchemaCache(Path(cache)),
        schema_file=jobs,
        max_age=timedelta(hours=settings.schema_max_age),
        offline=offline,
        apart=len(clients) > 1,
    )
    return Schemas(catalog, from_des=schema is None)


def open_manifest(
    source: StrPath | BinaryIO | Manifest,
    settings: Settings,
    *,
    is_batch_output_allowed: bool = False,
) -> Manifest:
    """Return a manifest that is read as the settings say, unless it is one already."""
    if isinstance(source, Manifest):
        return source

    return Manifest(
        source,
        format=settings.format,
        delimiter=settings.delimiter,
        job_id=settings.job_id,
        target=settings.target,
        is_batch_output_allowed=is_batch_output_allowed,
    )


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, uncompressed, as a manifest has it; hex.

    Raises:
        OSError: it can't be read.
        EOFError: it is a gzip file that was cut off.
    """
    digest = hashlib.sha256()

    with path.open("rb") as raw:
        is_gzip = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)

        with gzip.open(raw) if is_gzip else raw as file:
            while block := file.read(1 << 20):
                digest.update(block)

    return digest.hexdigest()


def warnings_of(manifest: Manifest | None, check: Check, schemas: Schemas) -> tuple[str, ...]:
    """Return what a person should know before rows are launched, one sentence each."""
    found = [] if manifest is None else [str(warning) for warning in manifest.warnings]
    found += [str(warning) for warning in check.warnings]
    found += schemas.catalog.warnings
    found += [
        f"the rows of target {target} are unchecked, since its jobs could not be fetched: {error}"
        for target, error in schemas.catalog.left_out.items()
    ]

    if schemas.unconfirmed is not None:
        found.append(
            "rows are invalid by cached JobRunParameters, and those could not be fetched anew: "
            f"{schemas.unconfirmed}"
        )

    return tuple(found)


async def check_origins(
    ledger: Ledger, clients: Mapping[str, DesClient], settings: Settings, used: Collection[str]
) -> None:
    """Refuse to send the rest of a batch to another DES than before, unless that is wanted.

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
    for name, known in (await ledger.targets()).items():
        client = clients.get(name)

        if name not in used:
            continue

        if client is None:
            raise errors.ConfigurationError(
                f"rows of the batch go to the target {name}, which is not configured",
                hint=f"configure it; there is: {', '.join(clients)}",
            )

        if client.org_id is not None and known.org_id is not None:
            if client.org_id != known.org_id:
                raise errors.ConfigurationError(
                    f"target {name} was organisation {known.org_id} in the last session, and is "
                    f"{client.org_id} now",
                    hint="give the target its organisation back, or begin a new batch",
                )
        elif known.base_url is not None and not settings.allow_new_origin:
            now = await client.locate()

            if _origin(now) != _origin(known.base_url):
                raise errors.ConfigurationError(
                    f"target {name} was at {known.base_url} in the last session, and is at {now} "
                    "now: its jobs may not be the same",
                    hint=f"if it moved, pass --base-url {now}",
                )


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.lower()
