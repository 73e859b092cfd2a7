"""QueryJobs answers on disk: one file per target and base URL, and the reader of schema files.

A cache file is JSON of the kind ``deslaunch-schema/1``, mode 0600, with the jobs in QueryJobs'
own form. It holds no token. It is never trusted beyond its age: what can't be read, is of
another kind, or was kept for another target or base URL counts as absent.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

import orjson
from platformdirs import user_cache_path

from deslaunch import durable, wire
from deslaunch.errors import SchemaError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from deslaunch.model import Job

KIND: Final = "deslaunch-schema/1"

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9-]+")
_BOM: Final = b"\xef\xbb\xbf"


def default_directory() -> Path:
    """Return the user's cache directory of deslaunch; it need not exist."""
    return user_cache_path("deslaunch")


@dataclass(frozen=True, slots=True)
class CachedJobs:
    """What QueryJobs answered once.

    Attributes:
        jobs: in the order in which DES listed them.
        fetched: when the answer came, with a time zone.
    """

    jobs: tuple[Job, ...]
    fetched: datetime

    def age(self, now: datetime) -> timedelta:
        """Return how old the answer is at ``now``; negative where the clock was set back."""
        return now - self.fetched

    def is_fresh(self, now: datetime, max_age: timedelta) -> bool:
        """Tell whether the answer is at most ``max_age`` old; one from the future is not."""
        return timedelta(0) <= self.age(now) <= max_age


@dataclass(frozen=True, slots=True)
class SchemaCache:
    """The cache files of one directory.

    Attributes:
        directory: made with mode 0700 by the first :meth:`store`; an existing one is left as
            it is.
    """

    directory: Path

    def path(self, target: str, base_url: str) -> Path:
        """Return where a target's jobs are kept: readable, and distinct for distinct pairs."""
        name = _UNSAFE.sub("_", target)[:40]
        digest = sha256(f"{base_url}\n{target}".encode()).hexdigest()[:12]
        return self.directory / f"{name}-{digest}.json"

    def load(self, target: str, base_url: str) -> CachedJobs | None:
        """Return what was stored for a target at a base URL.

        Returns:
            None where there is nothing, or nothing that can be read; never an exception.
        """
        try:
            body = self.path(target, base_url).read_bytes()
        except OSError:
            return None

        return _decode(body, target, base_url)

    def store(
        self, target: str, base_url: str, jobs: Iterable[Job], fetched: datetime
    ) -> str | None:
        """Keep a target's jobs, in place of what was kept before.

        After return the new file is on disk whole; after a crash it is the old or the new one.

        Args:
            target: the target's name.
            base_url: where the jobs came from.
            jobs: what QueryJobs answered.
            fetched: when it answered, with a time zone.

        Returns:
            None, or why nothing could be kept: a warning, since a launch does not need it.
        """
        path = self.path(target, base_url)

        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            durable.write_atomically(path, _encode(target, base_url, jobs, fetched))
        except OSError as exc:
            return f"the schema of target {target} could not be kept in {path}: {exc.strerror}"

        return None


def read_schema_file(path: Path) -> list[Job]:
    """Read the jobs of a ``--schema`` file, which has the form of a QueryJobs answer.

    Args:
        path: JSON in UTF-8, with or without BOM.

    Raises:
        SchemaError: the file can't be opened or understood.
    """
    try:
        body = path.read_bytes()
    except OSError as exc:
        raise SchemaError(
            f"the schema file {path} can't be read: {exc.strerror}",
            hint="see whether --schema names the right file",
        ) from exc

    return wire.decode_jobs(body.removeprefix(_BOM), source=f"the schema file {path}")


def _encode(target: str, base_url: str, jobs: Iterable[Job], fetched: datetime) -> bytes:
    utc = fetched.astimezone(UTC).isoformat(timespec="milliseconds")
    return orjson.dumps(
        {
            "cache": KIND,
            "target": target,
            "baseUrl": base_url,
            "fetchedUtc": utc.replace("+00:00", "Z"),
            "jobs": wire.encode_jobs(list(jobs)),
        },
        option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE,
    )


def _decode(body: bytes, target: str, base_url: str) -> CachedJobs | None:
    try:
        kept = orjson.loads(body)
        jobs = wire.decode_jobs(body, source="the cache")
    except (orjson.JSONDecodeError, SchemaError):
        return None

    fetched = _fetched(kept, target, base_url)
    return None if fetched is None else CachedJobs(tuple(jobs), fetched)


def _fetched(kept: Any, target: str, base_url: str) -> datetime | None:
    """Return when a cache file was filled; None where it is not this target's."""
    if not isinstance(kept, dict) or kept.get("cache") != KIND:
        return None

    if (kept.get("target"), kept.get("baseUrl")) != (target, base_url):
        return None

    try:
        fetched = datetime.fromisoformat(kept["fetchedUtc"])
    except (KeyError, TypeError, ValueError):
        return None

    return fetched if fetched.tzinfo is not None else None
