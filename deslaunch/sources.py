"""Where the engine's starts come from: a validated manifest, or the caller's rows.

Both take rows in through the same intake, and hold them against the ledger in the same way: a
row is sent, or it is recorded invalid, or the ledger knows it already.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from deslaunch import records
from deslaunch.engine import Start
from deslaunch.errors import CredentialsRefused, DesError, ManifestConflict, SchemaError
from deslaunch.intake import Intake, InvalidRow
from deslaunch.model import Outcome, Row, RowState
from deslaunch.reconcile import should_send
from deslaunch.rows import row_from_object
from deslaunch.validation import number_of, read_chunk, targets_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence

    from deslaunch.catalog import Catalog
    from deslaunch.config import Settings
    from deslaunch.ledger import Ledger
    from deslaunch.model import StartRequest
    from deslaunch.rows import Item, RowDefaults
    from deslaunch.shards import Shard, Share
    from deslaunch.states import KeyState

ROWS: Final = "<rows>"
"""What problems name as the file of rows that come from no file."""

RECORDED_PROBLEMS: Final = 100
"""Problems of one row that its record keeps."""

MOST_SETTLING: Final = 128
"""Records of invalid rows that may wait for the disk; then reading waits too."""

_CHUNK: Final = 128
"""Rows that are prepared in one visit to a worker thread."""


class Sifter:
    """Holds rows against the ledger.

    Args:
        ledger: what was recorded so far.
        settings: what this session consents to.
        ended: called with the outcome of each row that is not sent.
        report_known: also report rows that earlier sessions ended.
    """

    def __init__(
        self,
        ledger: Ledger,
        settings: Settings,
        *,
        ended: Callable[[Outcome], None],
        report_known: bool,
    ) -> None:
        self._ledger = ledger
        self._ended = ended
        self._report_known = report_known
        self._settling: set[asyncio.Future[None]] = set()
        self._should_send = partial(
            should_send,
            retry_rejected=settings.retry_rejected,
            retry_unknown=settings.retry_unknown,
        )

    def state(self, key: str) -> KeyState | None:
        """Return what the ledger says of a key, or None where it says nothing."""
        return self._ledger.replay.get(key)

    def sift(self, taken: Iterable[StartRequest | InvalidRow]) -> list[Start]:
        """Return the starts that are to be sent, and deal with all other rows."""
        starts = []

        for row in taken:
            if isinstance(row, InvalidRow):
                self._reject(row)
                continue

            state = self._ledger.replay.get(row.key)

            if not self._should_send(state, row):
                self._pass_over(row.key)
            elif state is None:
                starts.append(Start(row))
            else:
                known = state.digest == row.digest  # then a record holds this very body
                starts.append(Start(row, attempt=state.attempts + 1, with_body=not known))

        return starts

    async def settled(self) -> None:
        """Return once few enough records of invalid rows wait for the disk."""
        while len(self._settling) >= MOST_SETTLING:
            await asyncio.wait(self._settling, return_when=asyncio.FIRST_COMPLETED)

    def _pass_over(self, key: str) -> None:
        if self._report_known:
            self._ended(self._ledger.replay.outcome(key))

    def _reject(self, row: InvalidRow) -> None:
        """Record a row that can't be sent, unless the ledger says so already."""
        if self._is_known(row):
            self._report(row)
            return

        problems = row.problems[:RECORDED_PROBLEMS]
        record = records.invalid(row.key, row.number, row.line, problems)
        future = self._ledger.append(record)
        self._settling.add(future)
        future.add_done_callback(partial(self._rejected, row))

    def _report(self, row: InvalidRow) -> None:
        """Report an invalid row that the ledger knows: as invalid, or as the run that it was."""
        state = None if row.key is None else self._ledger.replay.get(row.key)

        if row.key is not None and state is not None and state.was_sent:
            self._pass_over(row.key)
        elif self._report_known:
            self._ended(outcome_of_invalid(row))

    def _is_known(self, row: InvalidRow) -> bool:
        replay = self._ledger.replay

        if row.key is None:
            return row.number in replay.unkeyed_invalid

        state = replay.get(row.key)
        return state is not None and (state.final is RowState.INVALID or state.was_sent)

    def _rejected(self, row: InvalidRow, future: asyncio.Future[None]) -> None:
        self._settling.discard(future)

        if future.exception() is None:
            self._ended(outcome_of_invalid(row))


def outcome_of_invalid(row: InvalidRow) -> Outcome:
    """Return the outcome of a row that was not sent."""
    said = row.row
    return Outcome(
        key=row.key,
        row=row.number,
        target=said.target if said else "",
        job_id=said.job_id if said else None,
        state=RowState.INVALID,
        error="; ".join(problem.message for problem in row.problems),
        problems=row.problems,
    )


class Doubts:
    """Fetches a job's schema once more after DES refused a row that it had called valid.

    Rows that are read later are then checked against what DES says now.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._jobs: set[tuple[str, str]] = set()
        self._targets: set[str] = set()

    def note(self, target: str, job_id: str) -> None:
        """Take in a 400; only a job's first one counts."""
        if (target, job_id) not in self._jobs:
            self._jobs.add((target, job_id))
            self._targets.add(target)

    async def clear(self) -> None:
        """Ask DES, if there is a doubt; where it can't be asked the known schema stands."""
        while self._targets:
            with contextlib.suppress(DesError, CredentialsRefused, SchemaError):
                await self._catalog.renew(self._targets.pop())


class ManifestSource:
    """The second pass over a manifest.

    Args:
        items: the second pass.
        intake: a new one, with the allowances of the first pass.
        catalog: the jobs; fetched anew when DES refuses what they allow.
        sifter: holds the rows against the ledger.
        share: the rows that are this launcher's; None for all.
    """

    def __init__(
        self,
        items: Iterator[Item],
        intake: Intake,
        catalog: Catalog,
        sifter: Sifter,
        share: Share | None = None,
    ) -> None:
        self.doubts = Doubts(catalog)
        self._items = items
        self._intake = intake
        self._sifter = sifter
        self._share = share
        self._reading: asyncio.Future[list[StartRequest | InvalidRow]] | None = None

    async def read(self) -> Sequence[Start]:
        """Return the next starts; nothing at the end.

        Raises:
            ManifestChanged: the file is not the one that was validated.
        """
        while True:
            await self.doubts.clear()
            self._reading = asyncio.ensure_future(asyncio.to_thread(self._take))
            taken = await asyncio.shield(self._reading)

            if not taken:
                return ()

            starts = self._sifter.sift(taken)

            if starts:
                return starts

            await self._sifter.settled()

    async def aclose(self) -> None:
        """Wait for a reading that was cancelled: its thread still uses the file."""
        if self._reading is not None:
            await asyncio.wait([self._reading])
            self._reading.exception()  # nobody asks for its rows any more

    def _take(self) -> list[StartRequest | InvalidRow]:
        """Return the next rows that are this launcher's; none at the end."""
        while chunk := read_chunk(self._items, _CHUNK):
            taken = [self._intake.take(item) for item in self._own(chunk)]

            if taken:
                return taken

        return []

    def _own(self, chunk: Sequence[Item]) -> Iterator[Item]:
        """Yield the rows that are this launcher's; pass the others by, in order."""
        share = self._share

        for item in chunk:
            number = item.number if isinstance(item, Row) else item[0].row

            if share is None or number in share:
                yield item
            else:
                self._intake.pass_by(item)


class Limited:
    """The first starts of a source.

    Args:
        source: where they come from.
        limit: how many are given at most, at least 1.
        left_out: targets that have no part in the session: their starts are not given.

    Attributes:
        doubts: the source's own.
        reached: more was asked for than the limit allows; the source may have ended all the same.
    """

    def __init__(
        self,
        source: ManifestSource | RowsSource,
        limit: int,
        left_out: Collection[str] = (),
    ) -> None:
        self.doubts = source.doubts
        self.reached = False
        self._source = source
        self._left = limit
        self._left_out = left_out

    async def read(self) -> Sequence[Start]:
        """Return the next starts; nothing at the end, or once the limit is reached."""
        while self._left:
            read = await self._source.read()
            starts = [start for start in read if start.request.target not in self._left_out]

            if starts or not read:
                given = starts[: self._left]
                self._left -= len(given)
                return given

        self.reached = True
        return ()

    async def aclose(self) -> None:
        """Close the source."""
        await self._source.aclose()


class RowsSource:
    """The rows of a caller, one after the other.

    Args:
        rows: dicts of the JSONL form, or ``Row``s.
        intake: gives keys and checks rows.
        catalog: the jobs; a cached one is fetched anew before a row is called invalid.
        sifter: holds the rows against the ledger.
        defaults: for rows that name no job or target.
        room: returns once the consumer of the outcomes has room for more.
        shard: which rows are this launcher's; None for all.
    """

    def __init__(
        self,
        rows: Iterable[Mapping[str, Any] | Row] | AsyncIterable[Mapping[str, Any] | Row],
        intake: Intake,
        catalog: Catalog,
        sifter: Sifter,
        defaults: RowDefaults,
        room: Callable[[], Awaitable[None]],
        shard: Shard | None = None,
    ) -> None:
        self.doubts = Doubts(catalog)
        self._rows = aiter(rows) if isinstance(rows, AsyncIterable) else iter(rows)
        self._intake = intake
        self._catalog = catalog
        self._sifter = sifter
        self._defaults = defaults
        self._room = room
        self._shard = shard
        self._numbers = count(1)

    async def read(self) -> Sequence[Start]:
        """Return the next start; nothing at the end.

        Raises:
            ManifestConflict: a row was sent in an earlier session and says something else now.
            DesError: DES could not be asked for a target's jobs.
            CredentialsRefused: no token that DES accepts.
            SchemaError: DES's answer can't be read.
        """
        while True:
            await self._room()
            await self.doubts.clear()

            try:
                row = await self._next()
            except StopAsyncIteration:
                return ()

            taken = await self._take(row)

            if not self._is_own(taken):
                continue

            starts = self._sifter.sift([taken])

            if starts:
                return starts

            await self._sifter.settled()

    async def aclose(self) -> None:
        """End the caller's iterator."""
        close = getattr(self._rows, "aclose", None)

        if close is not None:
            await close()

    async def _next(self) -> Mapping[str, Any] | Row:
        if isinstance(self._rows, AsyncIterator):
            return await anext(self._rows)

        for row in self._rows:
            return row

        raise StopAsyncIteration

    async def _take(self, said: Mapping[str, Any] | Row) -> StartRequest | InvalidRow:
        item = self._item(said)
        await self._catalog.load(targets_of([item]))
        taken = self._intake.take(item)

        if isinstance(taken, InvalidRow) and taken.by_schema and await self._catalog.refresh():
            taken = self._intake.again(taken)

        self._check_unchanged(taken)
        return taken

    def _is_own(self, taken: StartRequest | InvalidRow) -> bool:
        return self._shard is None or self._shard.holds(taken.key, number_of(taken))

    def _item(self, said: Mapping[str, Any] | Row) -> Item:
        number = next(self._numbers)
        value = _object_of(said) if isinstance(said, Row) else said
        return row_from_object(
            value, number=number, line=number, file=ROWS, defaults=self._defaults
        )

    def _check_unchanged(self, taken: StartRequest | InvalidRow) -> None:
        if isinstance(taken, InvalidRow):
            return

        state = self._sifter.state(taken.key)

        if state is not None and state.was_sent and state.digest != taken.digest:
            raise ManifestConflict(
                f"row {taken.row} with key {taken.key!r} was sent and says something else now",
                changed=[taken.key],
                hint="give the changed row a key of its own, or restore what it said",
            )


def _object_of(row: Row) -> dict[str, Any]:
    """Return a caller's own row in the JSONL form, so that it is checked like any other."""
    said = {"target": row.target, "jobId": row.job_id, "parameters": row.parameters}
    return said if row.key is None else {"key": row.key, **said}
