"""A batch whose rows come from the caller, one after the other."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Unpack

import anyio

from deslaunch.config import LaunchOptions, Settings
from deslaunch.errors import LedgerExists, LedgerForeign
from deslaunch.ledger import Ledger, peek
from deslaunch.model import RowEnded
from deslaunch.session import Interrupt, Session, header, held, keep, session_record
from deslaunch.sources import ROWS, RowsSource
from deslaunch.terms import by_target, check_origins, load_catalog, manifest_options, settings_of
from deslaunch.validation import make_intake

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from deslaunch.model import Event, Outcome, Row, Summary
    from deslaunch.terms import Clients, StrPath

OUTCOMES_PER_SLOT: Final = 4
"""Outcomes a slot that an open batch holds for a slow consumer before reading stops."""


class Batch:
    """A batch whose rows come from the caller: an asynchronous iterator of outcomes.

    Made by :func:`open_batch`. Every row that was read gives one outcome, in the order in which
    outcomes became durable; rows that an earlier session ended give theirs again.

    Attributes:
        summary: the counts of the whole batch, once the block was left; else None.
    """

    def __init__(self, limit: int) -> None:
        self.summary: Summary | None = None
        self._limit = limit
        self._outcomes: deque[Outcome] = deque()
        self._news = asyncio.Event()
        self._taken = asyncio.Event()
        self._work: asyncio.Task[Summary] | None = None

    def __repr__(self) -> str:
        return f"<Batch {len(self._outcomes)} outcomes waiting>"

    def __aiter__(self) -> Batch:
        return self

    async def __anext__(self) -> Outcome:
        assert self._work is not None

        while not self._outcomes:
            if self._work.done():
                self._work.result()
                raise StopAsyncIteration

            self._news.clear()
            await self._news.wait()

        self._taken.set()
        return self._outcomes.popleft()

    def _begin(self, work: asyncio.Task[Summary]) -> None:
        self._work = work
        work.add_done_callback(lambda _: self._news.set())

    def _put(self, event: Event) -> None:
        if isinstance(event, RowEnded):
            self._outcomes.append(event.outcome)
            self._news.set()

    async def _room(self) -> None:
        """Return once a slow consumer has taken enough of its outcomes."""
        while len(self._outcomes) >= self._limit:
            self._taken.clear()
            await self._taken.wait()


@asynccontextmanager
async def open_batch(
    rows: Iterable[Mapping[str, Any] | Row] | AsyncIterable[Mapping[str, Any] | Row],
    des: Clients,
    *,
    ledger: StrPath,
    resume: bool = False,
    schema: StrPath | None = None,
    cache: StrPath | None = None,
    on_event: Callable[[Event], None] | None = None,
    **options: Unpack[LaunchOptions],
) -> AsyncIterator[Batch]:
    """Start a run for every row that the caller hands over.

    Rows are checked as they are read; an invalid one gives an outcome ``invalid``. A consumer
    that is slow holds back the reading of rows, never the ledger. Leaving the block, or being
    cancelled in it, drains; rows that were not read stay pending.

    Args:
        rows: any iterable or asynchronous iterable of dicts of the JSONL form, or ``Row``s.
        des: the client, or one for each target.
        ledger: the batch's ledger.
        resume: go on with a ledger that exists; rows are matched by key.
        schema: a file of jobs in QueryJobs' form; then DES is not asked for them.
        cache: directory of the schema cache; default: the user's.
        on_event: called with each event, in the event loop.
        **options: see :class:`~deslaunch.config.Settings`.

    Yields:
        The batch, an asynchronous iterator of outcomes.

    Raises:
        LedgerExists: the ledger exists, and ``resume`` is not set.
        LedgerForeign: the ledger is a manifest's.
        LedgerError: the ledger can't be made, written or locked.
        ConfigurationError: an option is wrong.
        ManifestConflict: a row that was sent says something else now.
        DesError: DES could not be asked for the jobs of a target that a row names.
        TypeError: ``rows`` can't be iterated over; nothing was made.
    """
    if not isinstance(rows, Iterable | AsyncIterable):
        raise TypeError(f"rows must be iterable, got {type(rows).__name__}")

    path = Path(ledger)
    exists = await asyncio.to_thread(peek, path) is not None

    if exists and not resume:
        raise LedgerExists(f"{path}: the ledger exists", hint="pass resume=True to go on")

    async with held(Ledger.open(path) if exists else Ledger.create(path)) as journal:
        if exists and journal.replay.manifest is not None:
            raise LedgerForeign(
                f"{path}: the batch's rows come from a manifest, not from a program",
                hint="go on with resume()",
            )

        settings = settings_of(journal.replay.header, options) if exists else Settings(**options)
        clients = by_target(des, settings)
        await check_origins(journal.replay.session, clients, settings)
        catalog = await load_catalog(clients, settings, schema, cache)

        if not exists:
            keep(journal, header(settings, None, None))

        keep(journal, session_record(settings, None, clients))
        batch = Batch(OUTCOMES_PER_SLOT * settings.concurrency)
        interrupt = Interrupt()
        session = Session(journal, clients, settings, _both(batch._put, on_event), interrupt)
        source = RowsSource(
            rows,
            make_intake(catalog, settings, file=ROWS),
            catalog,
            session.sifter(report_known=True),
            manifest_options(settings),
            batch._room,
            settings.of_shard,
        )
        work = asyncio.create_task(session.run(source))
        batch._begin(work)

        try:
            yield batch
        finally:
            batch.summary = await _finished(work, interrupt)


def _both(
    first: Callable[[Event], None], second: Callable[[Event], None] | None
) -> Callable[[Event], None]:
    def emit(event: Event) -> None:
        first(event)

        if second is not None:
            second(event)

    return emit


async def _finished(work: asyncio.Task[Summary], interrupt: Interrupt) -> Summary:
    """Drain a batch that is left, and wait for its end; cancelled again, give up what is left."""
    if not work.done():
        interrupt()

    cancelled: asyncio.CancelledError | None = None

    with anyio.CancelScope(shield=True):
        while not work.done():
            try:
                await asyncio.wait([work])
            except asyncio.CancelledError as exc:
                interrupt()
                cancelled = exc

    summary = work.result()

    if cancelled is not None:
        raise cancelled

    return summary
