"""The jobs of a batch's targets: from a schema file, the cache, or QueryJobs.

A cached answer saves a request at the start of a launch. It never condemns a row: before a row
is called invalid, or a job unknown, :meth:`Catalog.refresh` asks DES anew.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, Protocol

from deslaunch.errors import (
    CredentialsRefused,
    DesError,
    DeslaunchError,
    QueryFailed,
    Rejected,
    SchemaError,
)
from deslaunch.model import DEFAULT_TARGET, counted
from deslaunch.schema import Schemas

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from deslaunch.model import Job
    from deslaunch.schema_cache import CachedJobs, SchemaCache


_TWO_HOURS: Final = 120  # minutes


class JobQuery(Protocol):
    """The part of a client that the catalog needs."""

    @property
    def home(self) -> str:
        """What stays the same of the target: its base URL, or its organisation."""
        ...

    async def query_jobs(self) -> list[Job]:
        """Return the organisation's jobs.

        Raises:
            DesError: no answer, or none that can be used.
            CredentialsRefused: no token that DES accepts.
            SchemaError: an answer that can't be read.
        """
        ...


class Catalog:
    """Gives the schemas of those targets that rows name.

    Args:
        clients: by target.
        targets: what rows may name, where there is no client; default: the clients' targets.
        cache: where answers are kept, or None for nowhere.
        schema_file: jobs that stand for every target's; then DES is never asked.
        max_age: how old a cached answer may be.
        offline: an older one serves where DES can't be asked; for a check, never for a launch.
        apart: a target whose jobs can't be had is left out, unless all are.
        now: the time, with a time zone.

    Attributes:
        targets: what rows may name.
        schemas: what was loaded so far.
        loaded: the targets whose jobs were asked for.
        left_out: those of them whose jobs can't be had, and why.
        warnings: what a person should know of how it was loaded.
    """

    def __init__(
        self,
        clients: Mapping[str, JobQuery],
        *,
        targets: Iterable[str] = (),
        cache: SchemaCache | None = None,
        schema_file: Sequence[Job] | None = None,
        max_age: timedelta = timedelta(hours=24),
        offline: bool = False,
        apart: bool = False,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.schemas = Schemas()
        self.loaded: set[str] = set()
        self.left_out: dict[str, DeslaunchError] = {}
        self.warnings: list[str] = []
        self.targets = frozenset(clients) | frozenset(targets)
        self._clients = clients
        self._cache = cache
        self._schema_file = schema_file
        self._max_age = max_age
        self._offline = offline
        self._apart = apart
        self._now = now
        self._cached: dict[str, CachedJobs] = {}

    def __repr__(self) -> str:
        return f"<Catalog loaded={sorted(self.loaded)} cached={sorted(self._cached)}>"

    def needs(self, target: str) -> bool:
        """Tell whether a target that rows may name was not loaded yet."""
        return target in self.targets - self.loaded

    async def load(self, targets: Iterable[str]) -> None:
        """Load the jobs of targets that rows name; known ones cost nothing.

        Raises:
            DesError: DES could not be asked, and no cached answer may stand in.
            CredentialsRefused: no token that DES accepts.
            SchemaError: DES's answer can't be read.
        """
        for target in filter(self.needs, targets):
            if self._schema_file is not None:
                self.schemas.put(target, self._schema_file)
            elif not await self._load_cached(target):
                await self._fetch_or_leave_out(target)

            self.loaded.add(target)

    def check(self) -> None:
        """Return if there are jobs of any target that rows name, or rows name none.

        Raises:
            DesError: DES could not be asked.
            CredentialsRefused: no token that DES accepts.
            SchemaError: DES's answer can't be read.
        """
        if self.left_out and self.left_out.keys() == self.loaded:
            target, error = next(iter(self.left_out.items()))

            with _named(target):
                raise error

    async def refresh(self) -> bool:
        """Ask DES for all jobs that came from the cache.

        Returns:
            Whether any job is not what the cache said; False where nothing was cached.

        Raises:
            DesError: DES could not be asked.
            CredentialsRefused: no token that DES accepts.
            SchemaError: DES's answer can't be read.
        """
        changed: frozenset[str] = frozenset()

        for target in list(self._cached):
            with _named(target):
                changed |= await self._fetch(target)

        return bool(changed)

    async def renew(self, target: str) -> bool:
        """Ask DES for one target's jobs anew, wherever the known ones came from.

        Returns:
            Whether any job is not what was known; False where a schema file stands for DES.

        Raises:
            DesError: DES could not be asked.
            CredentialsRefused: no token that DES accepts.
            SchemaError: DES's answer can't be read.
        """
        return self._schema_file is None and bool(await self._fetch(target))

    def notes(self) -> Iterator[str]:
        """Yield how old the cached answers are that were used, one sentence each."""
        for target, cached in self._cached.items():
            age = self._said_age(cached)
            yield f"the JobRunParameters of target {target} were fetched {age} ago"

    async def _load_cached(self, target: str) -> bool:
        cached = await self._from_cache(target)

        if cached is None or not cached.is_fresh(self._now(), self._max_age):
            return False

        self._use(target, cached)
        return True

    async def _fetch_or_leave_out(self, target: str) -> None:
        try:
            with nullcontext() if self._apart else _named(target):
                await self._fetch_or_make_do(target)
        except (DesError, CredentialsRefused, SchemaError) as exc:
            if not self._apart:
                raise

            self.left_out[target] = exc

    async def _fetch_or_make_do(self, target: str) -> None:
        try:
            await self._fetch(target)
        except (DesError, CredentialsRefused, SchemaError) as exc:
            cached = await self._from_cache(target)

            if cached is None:
                raise

            if not self._offline:
                exc.add(
                    f"the JobRunParameters kept of it are {self._said_age(cached)} old, "
                    "too old for a launch"
                )
                raise

            self._use(target, cached)
            self.warnings.append(
                f"the JobRunParameters of target {target} are {self._said_age(cached)} "
                f"old, and could not be fetched anew: {exc}"
            )

    def _said_age(self, cached: CachedJobs) -> str:
        return _said_age(cached.age(self._now()))

    async def _from_cache(self, target: str) -> CachedJobs | None:
        if self._cache is None:
            return None

        return await asyncio.to_thread(self._cache.load, target, self._clients[target].home)

    def _use(self, target: str, cached: CachedJobs) -> None:
        self._cached[target] = cached
        self.schemas.put(target, cached.jobs)

    async def _fetch(self, target: str) -> frozenset[str]:
        client = self._clients[target]
        jobs = await _query(client)
        self._cached.pop(target, None)

        if self._cache is not None:
            store = self._cache.store
            warning = await asyncio.to_thread(store, target, client.home, jobs, self._now())
            self.warnings += [warning] if warning else []

        return self.schemas.put(target, jobs)


@contextmanager
def _named(target: str) -> Iterator[None]:
    """Say in an error which target it is of, where there may be others."""
    try:
        yield
    except DeslaunchError as exc:
        if target != DEFAULT_TARGET:
            exc.locate(f"target {target}")

        raise


def _said_age(age: timedelta) -> str:
    """Return an age as a person says it: minutes below two hours, else hours."""
    minutes = max(0, round(age / timedelta(minutes=1)))
    whole_hours = round(age / timedelta(hours=1))
    return counted(minutes, "minute") if minutes < _TWO_HOURS else counted(whole_hours, "hour")


async def _query(client: JobQuery) -> list[Job]:
    """Ask DES for its jobs; where QueryJobs itself may be wrong, say that there is a way out."""
    try:
        return await client.query_jobs()
    except (Rejected, QueryFailed) as exc:
        exc.advise(
            f"is {client.home} the base URL of a DES? It is the svc of the answer that the token "
            "came with; or leave DES out of it and pass the jobs with --schema FILE"
        )
        raise
