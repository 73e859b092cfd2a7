"""The jobs of a batch's targets: from a schema file, the cache, or QueryJobs.

A cached response saves a request at the start of a launch. It never condemns a row: before a row
is called invalid, or a job unknown, :meth:`Catalog.renew` asks DES anew.

A cache file is JSON of the kind ``deslaunch-schema/1``, mode 0600, with the jobs in QueryJobs'
own form. It holds no token. It is never trusted beyond its age: what can't be read, is of
another kind, or was kept for another target or base URL counts as absent.
"""

from __future__ import annotations

import asyncio
import os
import re
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final

import orjson
from platformdirs import user_cache_path

from deslaunch import errors
from deslaunch.des import wire
from deslaunch.model import DEFAULT_TARGET, count

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from deslaunch.des.client import DesClient
    from deslaunch.model import Job

KIND: Final = "deslaunch-schema/1"

_UNHAD: Final = (errors.DesError, errors.CredentialsRefused, errors.SchemaError)
"""What is raised where a target's jobs can't be had."""

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9-]+")


@dataclass(frozen=True, slots=True)
class SchemaCache:
    """The cache files of one directory.

    Attributes:
        directory: made with mode 0700 by the first :meth:`store`; None for nowhere.
    """

    directory: Path | None

    @classmethod
    def of_user(cls) -> SchemaCache:
        """Return the user's cache: DESLAUNCH_CACHE_DIR, or the system's place for caches.

        Where the user has no home, there is none: that is told when something is to be kept.
        """
        if named := os.environ.get("DESLAUNCH_CACHE_DIR"):
            return cls(Path(named))

        with suppress(RuntimeError, KeyError):  # platformdirs asks for a home that is not there
            path = user_cache_path("deslaunch")
            return cls(path if path.is_absolute() else None)

        return cls(None)

    def load(self, target: str, home: str) -> tuple[list[Job], datetime] | None:
        """Return the jobs that were stored for a target at a base URL, and when DES listed them.

        Returns:
            None where there is nothing, or nothing that can be read; never an exception.
        """
        try:
            body = self._path(target, home).read_bytes() if self.directory else b""
            kept = orjson.loads(body)
            jobs = wire.decode_jobs(body, source="the cache")
            said = (kept["cache"], kept["target"], kept["baseUrl"])
            fetched = datetime.fromisoformat(kept["fetchedUtc"])
        except (OSError, errors.SchemaError, LookupError, TypeError, ValueError):
            return None

        is_ours = said == (KIND, target, home) and fetched.tzinfo is not None
        return (jobs, fetched) if is_ours else None

    def store(self, target: str, home: str, jobs: Iterable[Job], fetched: datetime) -> str | None:
        """Keep a target's jobs, in place of what was kept before.

        After return the file is the new one; after a crash, and while it is written, it may be
        one that counts as absent.

        Args:
            target: the target's name.
            home: base URL where the jobs came from.
            jobs: what QueryJobs responded.
            fetched: when it responded, with a time zone.

        Returns:
            None, or why nothing could be kept: a warning, since a launch does not need it.
        """
        if self.directory is None:
            return "this user has no home: JobRunParameters are not cached"

        utc = fetched.astimezone(UTC).isoformat(timespec="milliseconds")
        kept = {
            "cache": KIND,
            "target": target,
            "baseUrl": home,
            "fetchedUtc": utc.replace("+00:00", "Z"),
            "jobs": wire.encode_jobs(jobs),
        }
        path = self._path(target, home)

        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.touch(mode=0o600)
            path.write_bytes(orjson.dumps(kept, option=orjson.OPT_INDENT_2))
        except OSError as exc:
            return f"the schema of target {target} could not be kept in {path}: {exc.strerror}"

        return None

    def _path(self, target: str, home: str) -> Path:
        """Return where a target's jobs are kept: readable, and distinct for distinct pairs."""
        assert self.directory is not None
        name = _UNSAFE.sub("_", target)[:40]
        digest = sha256(f"{home}\n{target}".encode()).hexdigest()[:12]
        return self.directory / f"{name}-{digest}.json"


def read_schema_file(path: Path) -> list[Job]:
    """Read the jobs of a ``--schema`` file, which has the form of a QueryJobs response.

    Args:
        path: JSON in UTF-8, with or without BOM; a cache file will do.

    Raises:
        SchemaError: the file can't be opened or understood.
    """
    try:
        body = path.read_bytes()
    except OSError as exc:
        raise errors.SchemaError(
            f"the schema file {path} can't be read: {exc.strerror}",
            hint="see whether --schema names the right file",
        ) from exc

    return wire.decode_jobs(body, source=f"the schema file {path}")


@dataclass(eq=False, repr=False)
class Catalog:
    """Gives the jobs of those targets that rows name; it compiles nothing.

    Attributes:
        clients: by target.
        targets: what rows may name; where there is no client, they must be passed.
        cache: where responses are kept, or None for nowhere.
        schema_file: jobs that stand for every target's; then DES is never asked.
        max_age: how old a cached response may be.
        offline: an older one serves where DES can't be asked; for a check, never for a launch.
        apart: a target whose jobs can't be had is left out, unless all are.
        now: the time, with a time zone.
        jobs: what was loaded so far: by target, its jobs by jobId.
        left_out: targets whose jobs can't be had, and why.
        warnings: what a person should know of how it was loaded.
    """

    clients: Mapping[str, DesClient]
    _: KW_ONLY
    targets: Collection[str] = ()
    cache: SchemaCache | None = None
    schema_file: Sequence[Job] | None = None
    max_age: timedelta = timedelta(hours=24)
    offline: bool = False
    apart: bool = False
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    def __post_init__(self) -> None:
        self.targets = frozenset(self.clients) | frozenset(self.targets)
        self.jobs: dict[str, dict[str, Job]] = {}
        self.left_out: dict[str, errors.DeslaunchError] = {}
        self.warnings: list[str] = []
        self._cached: dict[str, datetime] = {}

    def __repr__(self) -> str:
        return f"<Catalog loaded={sorted(self.jobs)} cached={sorted(self._cached)}>"

    def is_cached(self, target: str) -> bool:
        """Return True if a target's jobs are from the cache: DES may know better by now."""
        return target in self._cached

    async def load(self, targets: Iterable[str]) -> None:
        """Load the jobs of targets that rows name; known ones cost nothing.

        Raises:
            DesError: DES could not be asked, and no cached response may stand in.
            CredentialsRefused: no token that DES accepts.
            SchemaError: DES's response can't be read.
        """
        for target in targets:
            if target not in self.targets or target in self.jobs or target in self.left_out:
                continue

            try:
                await self._load(target)
            except _UNHAD as exc:
                if not self.apart:
                    raise

                self.left_out[target] = exc

        if self.left_out and not self.jobs:
            raise next(iter(self.left_out.values()))

    async def renew(self, target: str) -> bool:
        """Ask DES for one target's jobs anew, wherever the known ones came from.

        Returns:
            Whether any job is not what was known; False where a schema file stands for DES.

        Raises:
            DesError: DES could not be asked.
            CredentialsRefused: no token that DES accepts.
            SchemaError: DES's response can't be read.
        """
        if self.schema_file is not None:
            return False

        known = self.jobs.get(target)
        await self._fetch(target)
        return self.jobs[target] != known

    def notes(self) -> Iterator[str]:
        """Yield how old the cached responses are that were used, one sentence each."""
        for target, fetched in self._cached.items():
            age = _age(self.now() - fetched)
            yield f"target {target}: rows are checked with JobRunParameters fetched {age} ago"

    async def _load(self, target: str) -> None:
        if self.schema_file is not None:
            self._use(target, self.schema_file)
            return

        cached = None

        if self.cache is not None:
            home = self.clients[target].home
            cached = await asyncio.to_thread(self.cache.load, target, home)

        jobs, fetched = cached or ([], datetime.min.replace(tzinfo=UTC))
        age = self.now() - fetched

        if timedelta(0) <= age <= self.max_age:
            self._use(target, jobs, fetched)
            return

        try:
            await self._fetch(target)
        except _UNHAD as exc:
            if cached is None:
                raise

            if not self.offline:
                old = f"its cached JobRunParameters, {_age(age)} old, are too old to launch by"
                exc.advise(old)
                raise

            self._use(target, jobs, fetched)
            self.warnings.append(
                f"the JobRunParameters of target {target} are {_age(age)} old, "
                f"and could not be fetched anew: {exc}"
            )

    async def _fetch(self, target: str) -> None:
        """Ask DES; where QueryJobs itself may be wrong, say that there is a way out."""
        client = self.clients[target]

        try:
            jobs = await client.query_jobs()
        except _UNHAD as exc:
            if isinstance(exc, errors.Rejected | errors.QueryFailed):
                exc.advise(
                    f"is {client.home} the base URL of a DES? It is the svc of the response that "
                    "the token came with; or leave DES out of it and pass the jobs with "
                    "--schema FILE"
                )

            if target != DEFAULT_TARGET:
                exc.locate(f"target {target}")

            raise

        self._use(target, jobs)
        self.left_out.pop(target, None)

        if self.cache is not None:
            store = self.cache.store
            warning = await asyncio.to_thread(store, target, client.home, jobs, self.now())

            if warning is not None and warning not in self.warnings:
                self.warnings.append(warning)

    def _use(self, target: str, jobs: Iterable[Job], fetched: datetime | None = None) -> None:
        self.jobs[target] = {job.job_id: job for job in jobs}
        self._cached.pop(target, None)

        if fetched is not None:
            self._cached[target] = fetched


def _age(age: timedelta) -> str:
    """Return an age as a person says it: minutes below two hours, else hours."""
    minutes = round(age / timedelta(minutes=1))

    if minutes < 1:
        return "less than a minute"

    is_short = minutes < 120  # noqa: PLR2004  # two hours
    return count(minutes, "minute") if is_short else count(round(age / timedelta(hours=1)), "hour")
