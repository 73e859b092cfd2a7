"""The log of runs, on disk before any client hears of them."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import anyio
import orjson

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Run:
    """One started run.

    Attributes:
        job_run_id: GUID, unique.
        job_id: GUID, lower case.
        parameters: as they were sent.
        request: number of the start request, from 1.
        created: Unix time, seconds.
        failure: status text of a run that will fail, or None.
    """

    job_run_id: str
    job_id: str
    parameters: Mapping[str, Any]
    request: int
    created: float
    failure: str | None = None

    def line(self) -> bytes:
        """Return the log's line, with its newline."""
        record = {
            "jobRunId": self.job_run_id,
            "jobId": self.job_id,
            "parameters": self.parameters,
            "request": self.request,
            "utc": utc(self.created),
        }
        return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)


def utc(seconds: float) -> str:
    """Return a Unix time as RFC 3339 writes it, in milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


@dataclass(slots=True)
class _Group:
    """Runs that are written together, by the task that brought the first of them."""

    runs: list[Run] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    written: bool = False


class RunLog:
    """Runs, first in the file and then in memory, in the same order.

    Group commit: while one write is under way, all that comes waits for the next. After a kill
    the file holds every run that was answered, and perhaps some that were not.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self.runs: list[Run] = []
        self._by_id: dict[str, Run] = {}
        self._path = path
        self._file = -1
        self._gathering = _Group()
        self._writing = asyncio.Lock()

    def find(self, job_run_id: object) -> Run | None:
        """Return the run with this id, in either case, or None."""
        return self._by_id.get(job_run_id.lower()) if isinstance(job_run_id, str) else None

    async def open(self) -> None:
        """Open the file for appending, with mode 0600 where it is new.

        Raises:
            OSError: it can't be opened.
        """
        if self._path is not None:
            self._file = await anyio.to_thread.run_sync(_open_log, self._path)

    async def settle(self) -> None:
        """Return when no write is under way: the next one can't begin before the caller waits."""
        async with self._writing:
            return

    async def close(self) -> None:
        """Close the file; no write may be under way."""
        if self._file >= 0:
            await anyio.to_thread.run_sync(os.close, self._file)
            self._file = -1

    async def append(self, run: Run) -> None:
        """Return when the run is in the file and in memory.

        Raises:
            OSError: it could not be written.
        """
        group = self._gathering
        group.runs.append(run)

        if len(group.runs) == 1:
            await self._lead(group)
        else:
            await group.ended.wait()

        if not group.written:
            raise OSError("the simulator's log can't be written")

    async def _lead(self, group: _Group) -> None:
        try:
            async with self._writing:
                self._gathering = _Group()
                await self._write(b"".join(run.line() for run in group.runs))
                self._keep(group.runs)

            group.written = True
        finally:
            group.ended.set()

    async def _write(self, lines: bytes) -> None:
        if self._file >= 0:
            await anyio.to_thread.run_sync(_write_all, self._file, lines)

    def _keep(self, runs: list[Run]) -> None:
        self.runs += runs
        self._by_id |= {run.job_run_id: run for run in runs}


def _open_log(path: str | os.PathLike[str]) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)

    while view:
        view = view[os.write(file, view) :]
