"""One launcher at work on one ledger: what it records first, its engine, its end."""

from __future__ import annotations

import asyncio
import os
import random
import shlex
import socket
import time
import uuid
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol

import anyio

from deslaunch import records
from deslaunch._version import VERSION
from deslaunch.engine import Engine, EngineSettings, SystemClock
from deslaunch.errors import (
    CredentialsRefused,
    DesError,
    Interrupted,
    LedgerWriteFailed,
    Misconfigured,
    Rejected,
)
from deslaunch.model import Outcome, RowEnded, RowState, Stop, Stopped, StopReason, counted
from deslaunch.retry import Retry5xx, RetryPolicy
from deslaunch.sources import Limited, Sifter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Mapping

    from deslaunch.client import DesClient
    from deslaunch.config import Settings
    from deslaunch.errors import DeslaunchError
    from deslaunch.ledger import Ledger
    from deslaunch.model import Event, StartRequest, Summary
    from deslaunch.records import Record
    from deslaunch.sources import Doubts, ManifestSource, RowsSource


PULSE_EVERY: Final = 1.0
"""Seconds between two events that say how a session is getting on."""


class Endable(Protocol):
    """What an interrupt ends: an engine, or a poller."""

    def drain(self, stop: Stop | None = None) -> None:
        """Begin nothing new."""
        ...

    def abandon(self) -> None:
        """Give up what is in flight."""
        ...


class Interrupt:
    """Ends a launch or a watch from outside.

    The first call drains it, the second gives up what is left.
    """

    def __init__(self) -> None:
        self._engine: Endable | None = None
        self._calls = 0
        self._signal = 0

    def __call__(self, signum: int = 0) -> None:
        """End the launch.

        Args:
            signum: the signal's number, for the exit code; 0 for none.
        """
        self._calls += 1
        self._signal = self._signal or signum

        if self._engine is None:
            return

        if self._calls == 1:
            self._engine.drain(self._stop())
        else:
            self._engine.abandon()

    @property
    def attached(self) -> bool:
        """A launch is so far that starts may have been sent."""
        return self._engine is not None

    def poll(self) -> None:
        """Raise if the end came before anything was sent.

        Raises:
            Interrupted: it did.
        """
        if self._calls:
            raise Interrupted("interrupted", signum=self._signal)

    def attach(self, engine: Endable) -> None:
        """Let later calls reach the engine, and an earlier one too."""
        self._engine = engine

        if self._calls:
            engine.drain(self._stop())

    def _stop(self) -> Stop:
        return Stop(StopReason.INTERRUPTED, "interrupted", signal=self._signal)


@asynccontextmanager
async def held(opening: Coroutine[Any, Any, Ledger]) -> AsyncIterator[Ledger]:
    """Hold a ledger for the time of a block; what is queued at its end is written."""
    journal = await opening

    try:
        yield journal
    finally:
        with anyio.CancelScope(shield=True):
            await journal.aclose()


def keep(journal: Ledger, record: Record) -> None:
    """Queue a record that the next one awaited will carry to disk; its failure fails that too."""
    journal.append(record).add_done_callback(lambda future: future.exception())


def header(settings: Settings, manifest: Mapping[str, Any] | None, format: str | None) -> Record:  # noqa: A002
    """Return the record with which a batch begins.

    Args:
        settings: the batch's allowances and defaults.
        manifest: path, sha256 and rows; None for rows that come from a program.
        format: the manifest's.
    """
    return records.batch(
        batch_id=str(uuid.uuid4()),
        manifest=manifest,
        format=format,
        job_id=settings.job_id,
        target=settings.target,
        shard=settings.shard,
        allow=settings.allow,
        skip_invalid=settings.skip_invalid,
        version=VERSION,
    )


def session_record(
    settings: Settings, manifest: Mapping[str, Any] | None, clients: Mapping[str, DesClient]
) -> Record:
    """Return the record with which a session begins.

    Args:
        settings: what this session is told.
        manifest: path, sha256 and rows as it was read now, or None.
        clients: by target.
    """
    return records.session(
        pid=os.getpid(),
        host=socket.gethostname(),
        manifest=manifest,
        targets={
            name: {"baseUrl": client.base_url, "orgId": client.org_id}
            for name, client in clients.items()
        },
        options={"timeout": _longest_timeout(clients), **settings.tuning()},
    )


class Session:
    """One launcher at work on one ledger.

    Args:
        ledger: open, with the session's record queued.
        clients: by target.
        settings: what this session is told.
        on_event: called with each event, or None.
        interrupt: ends the session from outside.
        left_out: targets that have no part in it, and why: their rows stay pending.
    """

    def __init__(
        self,
        ledger: Ledger,
        clients: Mapping[str, DesClient],
        settings: Settings,
        on_event: Callable[[Event], None] | None,
        interrupt: Interrupt,
        left_out: Mapping[str, DeslaunchError] = MappingProxyType({}),
    ) -> None:
        self._ledger = ledger
        self._clients = clients
        self._settings = settings
        self._emit = on_event or (lambda _: None)
        self._interrupt = interrupt
        self._left_out = left_out
        self._engine: Engine | None = None
        self._error: Exception | None = None

    async def run(self, source: ManifestSource | RowsSource) -> Summary:
        """Send the source's starts, and record the end of the session.

        Raises:
            LedgerWriteFailed: a record could not be written; it names the unrecorded runs.
            Exception: whatever the caller's rows or listener raised, once the end is recorded.
        """
        began = time.monotonic()
        limit = self._settings.limit
        limited = None if limit is None else Limited(source, limit, self._left_out)
        engine = Engine(
            limited or source,
            self._clients,
            self._ledger,
            self._engine_settings(),
            ended=partial(self._ended, source.doubts),
            emit=self._emit,
            clock=SystemClock(),
            rng=random.Random(),  # noqa: S311  # jitter is no secret
        )
        self._engine = engine
        self._interrupt.attach(engine)

        for target, error in self._left_out.items():  # before it reads: their rows have no body
            engine.stop(target, _reason(error), str(error))

        beat = asyncio.create_task(self._beat(engine))

        try:
            await drained_if_cancelled(engine)
        finally:
            beat.cancel()

            with anyio.CancelScope(shield=True):
                try:
                    await source.aclose()
                finally:
                    await self._end(engine, time.monotonic() - began)

        if self._error is not None:
            raise self._error

        if limited is not None and limited.reached:
            self._stop_at_limit(engine)

        return self._summary(engine, time.monotonic() - began)

    async def _beat(self, engine: Engine) -> None:
        """Tell once a second how the session is getting on."""
        while True:
            await asyncio.sleep(PULSE_EVERY)
            self._tell(engine.pulse())

    def _stop_at_limit(self, engine: Engine) -> None:
        """Say that the session ended on purpose, unless it left nothing to do."""
        if self._summary(engine, 0).pending:
            rows = counted(self._settings.limit or 0, "row")
            engine.stops.append(Stop(StopReason.LIMIT, f"the limit of {rows} is reached"))
            self._emit(Stopped(engine.stops[-1]))

    async def _end(self, engine: Engine, seconds: float) -> None:
        """Record the counts with which the session ends.

        Raises:
            LedgerWriteFailed: this, or an earlier record, could not be written.
        """
        counts = self._summary(engine, seconds).as_dict()
        kept = {name: int(counts[name]) for name in _COUNTS}

        try:
            await self._ledger.append(records.end(kept))
        except LedgerWriteFailed as exc:
            raise LedgerWriteFailed(
                str(exc),
                hint=f"{exc.hint}; tell the ledger of the runs above, if any: deslaunch resolve "
                f"{shlex.quote(str(self._ledger.path))} KEY --started JOBRUNID",
                unrecorded=engine.unrecorded,
                summary=self._summary(engine, seconds),
            ) from exc.__cause__

    def _summary(self, engine: Engine, seconds: float) -> Summary:
        return self._ledger.replay.summary(
            ledger=str(self._ledger.path),
            seconds=seconds,
            stops=engine.stops,
            unrecorded=engine.unrecorded,
        )

    def sifter(self, *, report_known: bool = False) -> Sifter:
        """Return what holds rows against this session's ledger."""
        return Sifter(
            self._ledger,
            self._settings,
            ended=self._passed_over,
            report_known=report_known,
        )

    def _passed_over(self, outcome: Outcome) -> None:
        """Report a row that did not go through the engine."""
        self._tell(RowEnded(outcome))

    def _tell(self, event: Event) -> None:
        """Tell the listener; an error of its ends the session."""
        try:
            self._emit(event)
        except Exception as exc:  # noqa: BLE001  # a listener may raise anything
            self._error = self._error or exc
            assert self._engine is not None
            self._engine.drain()

    def _ended(self, doubts: Doubts, request: StartRequest, record: Record) -> None:
        outcome = _started_at_once(request, record) or self._ledger.replay.outcome(request.key)

        if outcome.state is RowState.REJECTED and outcome.status == HTTPStatus.BAD_REQUEST:
            doubts.note(request.target, request.job_id)

        self._emit(RowEnded(outcome))

    def _engine_settings(self) -> EngineSettings:
        settings = self._settings
        return EngineSettings(
            slots=settings.concurrency,
            slots_of=slots_of(self._clients),
            rate=settings.rate,
            retry=RetryPolicy(
                max_attempts=settings.max_attempts,
                max_wait=settings.max_wait,
                retry_5xx=Retry5xx(settings.retry_5xx or "default"),
            ),
            give_up_after=settings.give_up_after,
            error_limit=settings.error_limit,
            drain_timeout=settings.drain_timeout or _longest_timeout(self._clients),
        )


def _started_at_once(request: StartRequest, record: Record) -> Outcome | None:
    """Return the outcome of a row whose first attempt ever started its run, else None.

    It is what the ledger says, without the time to look there: nothing can have come before.
    """
    if record["record"] != "started" or record["attempt"] != 1:
        return None

    return Outcome(
        request.key,
        request.row,
        request.target,
        request.job_id,
        RowState.STARTED,
        record["jobRunId"],
        attempts=1,
    )


def slots_of(clients: Mapping[str, DesClient]) -> dict[str, int]:
    """Return how many requests the targets that name a number may have in flight."""
    return {
        name: client.concurrency
        for name, client in clients.items()
        if client.concurrency is not None
    }


def _reason(error: DeslaunchError) -> StopReason:
    """Return why a target stops whose jobs could not be had."""
    if isinstance(error, CredentialsRefused):
        return StopReason.CREDENTIALS

    later = isinstance(error, DesError) and not isinstance(error, Misconfigured | Rejected)
    return StopReason.UNREACHABLE if later else StopReason.CONFIGURATION


def _longest_timeout(clients: Mapping[str, DesClient]) -> float:
    return max(client.timeout for client in clients.values())


_COUNTS: Final = (
    "started",
    "failed",
    "rejected",
    "unknown",
    "invalid",
    "pending",
    "possibleDuplicates",
)


async def drained_if_cancelled(engine: Engine) -> None:
    """Run the engine; a cancellation drains it, a second one gives up what is in flight."""
    work = asyncio.ensure_future(engine.run())

    try:
        await asyncio.shield(work)
    except asyncio.CancelledError:
        engine.drain(Stop(StopReason.INTERRUPTED, "cancelled"))

        with anyio.CancelScope(shield=True):
            while not work.done():
                try:
                    await asyncio.wait([work])
                except asyncio.CancelledError:
                    engine.abandon()

        work.exception()  # the cancellation goes on; an error of the work is seen, not logged
        raise
