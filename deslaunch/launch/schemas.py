"""The jobs that rows are checked with: from a schema file, the cache, or QueryJobs.

A cached response saves a request at the start of a launch. Before a row is called invalid, or a job
unknown, DES is asked again.

A cache file is JSON of the kind ``deslaunch-schema/1``, mode 0600, with the jobs in QueryJobs'
own form. It holds no token. It is never trusted beyond its age: what can't be read, is of
another kind, or was kept for another target or base URL counts as absent.
"""

import asyncio
import os
import random
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Final

import orjson
from anyio.from_thread import run as run_in_loop
from anyio.to_thread import run_sync
from platformdirs import user_cache_path

from deslaunch import errors
from deslaunch.des import wire
from deslaunch.des.client import DesClient
from deslaunch.events import Event, Noted
from deslaunch.launch.retry import wait_after
from deslaunch.ledger.ledger import Import, Ledger
from deslaunch.ledger.place import user_folder
from deslaunch.manifest.check import Check
from deslaunch.manifest.schema import Schema, compile_jobs
from deslaunch.model import DEFAULT_TARGET, Job, count, utc
from deslaunch.settings import Settings

Clients = DesClient | Mapping[str, DesClient]
OnEvent = Callable[[Event], object]
StrPath = str | os.PathLike[str]

KIND: Final = "deslaunch-schema/1"

_UNHAD: Final = (errors.DesError, errors.CredentialsRefused, errors.SchemaError)
"""What is raised where a target's jobs can't be had."""

_BUSY: Final = frozenset({425, 429, 503})
"""Statuses after which DES, or the auth server, is asked again."""


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
            hint="check the path that --schema names",
        ) from exc

    return wire.decode_jobs(body, source=f"the schema file {path}")


@dataclass(eq=False, repr=False)
class Schemas:
    """The compiled jobs of the targets that rows name, as :class:`Check` wants them: live.

    Of several targets, one whose jobs can't be had is left out.

    Attributes:
        clients: by target.
        cache: folder of the cache files, made with mode 0700 by the first; None for nowhere.
        file: jobs that stand for every target's; then DES is never asked.
        settings: how old a cached response may be, how long a busy DES is asked again, and what
            rows may be.
        is_offline: an older one serves where DES can't be asked; for a check, never for a launch.
        now: the time, with a time zone.
        tell: called with a sentence about such a wait.
        sleep: waits.
        by_target: what was loaded so far: by target, its schemas by jobId.
        notes: by target, how old its jobs are, one sentence; of those from the cache alone.
        left_out: targets whose jobs can't be had, and why.
        warnings: what a person should know of how they were loaded, one sentence each.
        unconfirmed: why a fresher schema could not be had where a cached one found rows invalid.
    """

    clients: Mapping[str, DesClient]
    cache: Path | None
    file: Sequence[Job] | None = None
    settings: Settings = field(default_factory=Settings)
    is_offline: bool = False
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    tell: Callable[[str], object] = lambda _: None
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    def __post_init__(self) -> None:
        self.by_target: dict[str, Mapping[str, Schema]] = {}
        self.notes: dict[str, str] = {}
        self.left_out: dict[str, errors.DeslaunchError] = {}
        self.warnings: list[str] = []
        self.unconfirmed: errors.DeslaunchError | None = None
        self._targets = set(self.clients) or {self.settings.target}

    async def load(self, targets: Iterable[str]) -> set[str]:
        """Load the jobs of targets that rows name; known ones cost nothing.

        Returns:
            The targets that are new.

        Raises:
            DesError: DES could not be asked for the only target's, and no cached response may
                stand in.
            CredentialsRefused: the same, for want of a token that DES accepts.
            SchemaError: the same, as its response can't be read.
        """
        known = self.by_target.keys() | self.left_out.keys()
        new = self._targets.intersection(targets) - known

        for target in sorted(new):
            try:
                await self.require(target)
            except _UNHAD as exc:
                if len(self.clients) == 1:
                    raise

                self.left_out[target] = exc
                self.warnings.append(
                    f"the rows of target {target} are unchecked, since its jobs could not be "
                    f"fetched: {exc}"
                )

        return new - self.left_out.keys()

    async def require(self, target: str) -> None:
        """Load one target's jobs, also where they could not be had before.

        Raises:
            DesError: as for :meth:`load`; likewise CredentialsRefused, SchemaError.
        """
        if target in self.by_target:
            return

        if self.file is not None:
            self._use(target, self.file)
            return

        kept = await run_sync(self._kept, target)

        if kept is None:
            await self.fetch(target)
            return

        jobs, age = kept
        old = _in_words(age)

        if not timedelta(0) <= age <= timedelta(hours=self.settings.schema_max_age):
            try:
                await self.fetch(target, waits=not self.is_offline)
            except _UNHAD as exc:
                if not self.is_offline:
                    exc.advise(f"its cached JobRunParameters, {old} old, are too old to launch by")
                    raise

                self.warnings.append(
                    f"the JobRunParameters of target {target} are {old} old, "
                    f"and could not be fetched anew: {exc}"
                )
            else:
                return

        self._use(target, jobs)
        said = f"rows are checked with JobRunParameters fetched {old} ago"
        self.notes[target] = f"target {target}: {said}"

    async def fetch(self, target: str, *, waits: bool = True) -> Mapping[str, Schema]:
        """Ask DES for a target's jobs, wherever the known ones came from.

        Args:
            target: whose jobs.
            waits: ask again while DES or the auth server is busy, for ``give_up_after`` seconds.

        Raises:
            DesError: DES could not be asked.
            CredentialsRefused: no token that DES accepts.
            SchemaError: DES's response can't be read.
        """
        client = self.clients[target]

        try:
            jobs = await (self._ask(client) if waits else client.query_jobs())
        except _UNHAD as exc:
            if isinstance(exc, errors.Rejected | errors.QueryFailed):  # QueryJobs may be wrong
                exc.advise(
                    f"is {client.home} the base URL of a DES? It is the svc of the response that "
                    "the token came with; or leave DES out of it and pass the jobs with "
                    "--schema FILE"
                )

            if target != DEFAULT_TARGET:
                exc.locate(f"target {target}")

            raise

        self._use(target, jobs)

        try:
            await run_sync(self._keep, target, jobs)
        except OSError as exc:  # a launch does not need it
            warning = f"JobRunParameters are not cached: {exc}"

            if warning not in self.warnings:  # likewise for other targets
                self.warnings.append(warning)

        return self.by_target[target]

    async def _ask(self, client: DesClient) -> list[Job]:
        """Return a target's jobs; where it is busy, ask again as after a pause of a launch."""
        settings, rng, waited, pauses = self.settings, random.Random(), 0.0, 0  # noqa: S311  # jitter

        while True:
            try:
                return list(await client.query_jobs())
            except errors.DesError as exc:
                wait = wait_after(pauses, settings.max_wait, rng, exc.retry_after)
                waited, pauses = waited + wait, pauses + 1

                if exc.status not in _BUSY or waited > settings.give_up_after:
                    raise

                self.tell(f"{exc}: asked for the jobs again in {wait:.1f} s")
                await self.sleep(wait)

    async def confirm(self, target: str) -> Mapping[str, Schema] | None:
        """Ask DES for a target's jobs, where the known ones are from the cache.

        Returns:
            The newer schemas; None where there are none, or where they can't be had.
        """
        if target not in self.notes:
            return None

        try:
            return await self.fetch(target)
        except _UNHAD as exc:
            self.unconfirmed = exc
            self.warnings.append(
                "rows are invalid by cached JobRunParameters, and those could not be fetched anew: "
                f"{exc}"
            )
            return None

    async def add_to(self, batch: Import | Ledger, target: str, job_id: str = "") -> None:
        """Give a batch the jobs, or one job, that a target's rows were checked with."""
        known = self.by_target[target].items()
        jobs = [schema.job for name, schema in known if job_id in {"", name}]
        await batch.add_jobs(target, jobs, from_des=self.file is None)

    async def checks(self, file: str, ledger: Ledger | None = None) -> Check:
        """Return a check by these schemas, of rows for a new batch or a ledger's; to be closed."""
        known_auto = {} if ledger is None else await ledger.auto_rows()
        return await run_sync(
            lambda: Check(
                self.by_target,
                file=file,
                targets=self._targets,
                unchecked=self.left_out,
                allow_duplicates=self.settings.allow_duplicates,
                allow_repeated_auto=self.settings.allow_repeated_auto,
                known_auto=known_auto,
                renew=lambda target: run_in_loop(self.confirm, target),
            )
        )

    def _use(self, target: str, jobs: Iterable[Job]) -> None:
        self.by_target[target] = compile_jobs(jobs)
        self.left_out.pop(target, None)
        self.notes.pop(target, None)

    def _kept(self, target: str) -> tuple[list[Job], timedelta] | None:
        """Return a target's cached jobs and their age; None where nothing can be read."""
        path, home = self._path(target), self.clients[target].home

        try:
            body = path.read_bytes() if path else b""
            kept = orjson.loads(body)
            age = self.now() - datetime.fromisoformat(kept["fetchedUtc"])
            is_ours = (kept["cache"], kept["target"], kept["baseUrl"]) == (KIND, target, home)
            jobs = wire.decode_jobs(body, source="the cache")
        except (OSError, errors.SchemaError, LookupError, TypeError, ValueError):
            return None

        return (jobs, age) if is_ours else None

    def _keep(self, target: str, jobs: Iterable[Job]) -> None:
        """Keep a target's jobs, in place of what was kept before.

        After return the file is the new one; after a crash, and while it is written, it may be
        one that counts as absent.

        Raises:
            OSError: it can't be written, or this user has no home.
        """
        path = self._path(target)
        kept = {
            "cache": KIND,
            "target": target,
            "baseUrl": self.clients[target].home,
            "fetchedUtc": utc(int(self.now().timestamp() * 1000)),
            "jobs": wire.encode_jobs(jobs),
        }

        if path is None:
            raise FileNotFoundError("this user has no home")

        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_bytes(orjson.dumps(kept, option=orjson.OPT_INDENT_2))

    def _path(self, target: str) -> Path | None:
        """Return where a target's jobs are kept: readable, and distinct for distinct pairs."""
        name = re.sub(r"[^A-Za-z0-9-]+", "_", target)[:40]
        digest = sha256(f"{self.clients[target].home}\n{target}".encode()).hexdigest()[:12]
        return self.cache and self.cache / f"{name}-{digest}.json"


async def open_schemas(
    des: Clients | None, settings: Settings, file: StrPath | None, on_event: OnEvent
) -> Schemas:
    """Return the schemas of a batch or a check; DES is asked for nothing yet.

    Args:
        des: the client, or one for each target; None if there is a file.
        settings: see :class:`Schemas`.
        file: a file of jobs in QueryJobs' form, for all targets.
        on_event: called with a note about each wait for a busy DES.

    Raises:
        ConfigurationError: there is neither a client nor a file.
        SchemaError: the file can't be read.
    """
    clients = {settings.target: des} if isinstance(des, DesClient) else dict(des or {})

    for client in clients.values():
        client.forget_refusal()

    if not clients and file is None:
        raise errors.ConfigurationError(
            "the jobs can't be read: there is no base URL of DES and no schema file",
            hint="set DES_BASE_URL and DES_TOKEN, or pass --schema FILE",
        )

    jobs = None if file is None else await run_sync(read_schema_file, Path(file))
    cache = user_folder("DESLAUNCH_CACHE_DIR", user_cache_path)
    return Schemas(clients, cache, jobs, settings, tell=lambda text: on_event(Noted(text)))


def _in_words(age: timedelta) -> str:
    """Return an age as a person says it: minutes below two hours, else hours."""
    minutes = round(age / timedelta(minutes=1))

    if minutes < 1:
        return "less than a minute"

    is_short = minutes < 120  # noqa: PLR2004  # two hours
    return count(minutes, "minute") if is_short else count(round(age / timedelta(hours=1)), "hour")
