"""One open batch: launch it, add rows of a program, watch its runs, read its counts.

A cancelled launch is ended by draining it: rows in flight are waited for, and recorded; cancelled
again, it gives them up as unknown.
"""

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import anyio
from anyio.to_thread import run_sync
from platformdirs import user_state_path

from deslaunch import errors
from deslaunch.des.client import DesClient
from deslaunch.events import Counts, Event, Noted, Plan, RowEnded, Stop, StopReason, Summary
from deslaunch.launch.importing import UNREAD_PER_SLOT, Feed, Source, recheck
from deslaunch.launch.schemas import OnEvent, Schemas
from deslaunch.launch.session import Session
from deslaunch.launch.watch import Watch
from deslaunch.launch.witness import Noting
from deslaunch.ledger.changes import Finding, write_unrecorded
from deslaunch.ledger.history import History
from deslaunch.ledger.ledger import Ledger, NewSession
from deslaunch.ledger.place import user_folder
from deslaunch.ledger.reading import ResultRow, TargetInfo
from deslaunch.manifest.files import Manifest
from deslaunch.model import Outcome, RowState, count, place_word, printed
from deslaunch.settings import Deadline, JobLimit, Settings

Confirm = Callable[[Plan], Awaitable[bool] | bool]
"""Asked before a session begins; False leaves it at that."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What a batch is opened with: its options, as it needs them.

    Attributes:
        settings: of the session.
        clients: by target.
        schemas: what rows are checked with.
        emit: called with each event.
        confirm: asked with the plan, or None.
        kept: what the ledger is to keep of the options, beside what it keeps.
        history: of this machine's batches.
        limits: of single jobs, by their jobIds in lower case.
        deadlines: see :meth:`Settings.deadlines`; counted from here, not from the agreement.
        joins: other launchers may be at work on the batch.
    """

    settings: Settings
    clients: Mapping[str, DesClient]
    schemas: Schemas
    emit: OnEvent
    confirm: Confirm | None
    kept: Mapping[str, Any]
    history: History
    limits: Mapping[str, JobLimit]
    deadlines: tuple[Deadline, ...]
    joins: bool = False


class Batch:
    """One batch: its plan, its launch, the watch of its runs, its results.

    Made by ``open_batch``, ``resume_batch`` and ``watch_batch``. As an asynchronous iterator it
    launches, and gives each outcome once it is on disk.

    Attributes:
        plan: what a launch is about to do; None where the batch is opened to be watched.
        ledger: None where there is nothing to start.
    """

    def __init__(
        self,
        setup: Setup,
        ledger: Ledger | None,
        plan: Plan | None,
        rows: Source | None = None,
        *,
        allowed: Collection[str] | None = None,
    ) -> None:
        self.plan = plan
        self._allowed = allowed  # uids of earlier batches of the rows of a new one
        self.ledger = ledger
        self._setup = setup
        self._rows = None if isinstance(rows, Manifest) else rows  # a manifest's are imported
        self._emit = setup.emit
        self._endable: Session | Watch | None = None
        self._interrupted: Stop | None = None
        self._work: asyncio.Task[Summary] | None = None
        self._feed: Feed | None = None
        self._unread: asyncio.Queue[Outcome | None] = asyncio.Queue()  # where somebody iterates

    def __repr__(self) -> str:
        return f"<Batch {self.ledger.place if self.ledger is not None else 'of no rows'}>"

    # Ends.

    async def aclose(self) -> None:
        """Drain, and wait for the end; cancelled again, give up the rows in flight."""
        cancelled: asyncio.CancelledError | None = None

        if self._work is None:
            return

        if not self._work.done():
            self.drain()

        with anyio.CancelScope(shield=True):
            while not self._work.done():
                try:
                    await asyncio.wait([self._work])
                except asyncio.CancelledError as exc:
                    self.abandon()
                    cancelled = exc

        self._work.exception()  # it is seen, not logged

        if cancelled is not None:
            raise cancelled

    def drain(self, signum: int = 0) -> None:
        """Send nothing new; rows in flight are waited for. Ends a watch at once.

        Args:
            signum: the signal's number, for the exit code; 0 for none.
        """
        stop = Stop(StopReason.INTERRUPTED, "interrupted", signal=signum)
        self._interrupted = self._interrupted or stop

        if self._endable is not None:
            self._endable.drain(stop)

    def abandon(self) -> None:
        """Give up what is in flight: rows of which a byte may have left become unknown."""
        if self._endable is not None:
            self._endable.abandon()

    def _attach(self, endable: Session | Watch) -> None:
        """Let later calls of :meth:`drain` reach what is at work, and an earlier one too."""
        self._endable = endable

        if self._interrupted is not None:
            endable.drain(self._interrupted)

    # Launching.

    async def run(self, on_event: OnEvent | None = None, *, allow_partial: bool = False) -> Summary:
        """Launch: send all rows that may be sent.

        Cancelled, it drains; cancelled again, it gives up what is in flight.

        Args:
            on_event: called with each event, beside the batch's own listener.
            allow_partial: return the summary also where the launch did not finish.

        Raises:
            Stopped: rows are left; ``CredentialsRefused``, ``LedgerWriteFailed`` and
                ``Interrupted`` are kinds of it.
            Exception: whatever a listener, or the caller's rows, raised, once all rows in flight
                have ended and are recorded.
        """
        work = self._begin(on_event)

        try:
            summary = await asyncio.shield(work)
        except asyncio.CancelledError:
            await self.aclose()
            raise

        if not allow_partial:
            self._raise_if_unfinished(summary)

        return summary

    async def __aiter__(self) -> AsyncIterator[Outcome]:
        """Launch, and yield each outcome; a slow consumer holds back claiming, not recording.

        Raises:
            Stopped: as :meth:`run`, after the last outcome.
        """

        def keep(event: Event) -> None:
            if isinstance(event, RowEnded):
                self._unread.put_nowait(event.outcome)

        work = self._begin(keep)
        work.add_done_callback(lambda _: self._unread.put_nowait(None))

        while (outcome := await self._unread.get()) is not None:
            yield outcome

            if self._unread.empty() and isinstance(self._endable, Session):
                self._endable.wake()

                if self._feed is not None:
                    self._feed.wake()

        self._raise_if_unfinished(work.result())

    def _raise_if_unfinished(self, summary: Summary) -> None:
        """Raise an error if the launch left rows behind."""
        kinds = {5: errors.Stopped, 6: errors.CredentialsRefused, 7: errors.LedgerWriteFailed}
        code, left = summary.exit_code, summary.left

        if self.ledger is None or code in {0, 3, 4}:
            return

        why = "; ".join(stop.message for stop in summary.stops)
        why = why or "they are left from an earlier session"
        message = f"{count(left, 'row')} left: {why}" if left else why
        hint = f"resume it: {resume_command(summary.ledger, self.ledger.batch.options)}"

        if code in kinds:
            raise kinds[code](message, summary=summary, hint=hint)

        signum = next((stop.signal for stop in summary.stops if stop.signal), 0)
        raise errors.Interrupted(message, signum=signum, summary=summary, hint=hint)

    def _begin(self, on_event: OnEvent | None) -> asyncio.Task[Summary]:
        if self._work is not None:
            raise RuntimeError("this batch was launched already: open it again")

        self._emit = _both(on_event, self._setup.emit)
        self._work = asyncio.create_task(self._launch())
        return self._work

    async def _launch(self) -> Summary:
        if self.ledger is None:
            return await self.summary()

        began = time.monotonic()
        setup, most = self._setup, UNREAD_PER_SLOT * self._setup.settings.concurrency
        due = await self.ledger.begin_session(await self._new_session())
        given = (self.ledger, setup.clients, setup.settings, due, setup.limits, setup.deadlines)
        session = Session(*given, emit=self._emit)
        noting = Noting(setup.history, self.ledger)
        session.is_held_back = lambda: self._unread.qsize() >= most
        self._attach(session)
        feeding: asyncio.Task[None] | None = None
        following = asyncio.create_task(noting.follow(lambda: session.claimed))

        for client in setup.clients.values():
            client.on_note = self._warn

        try:
            await noting.begin(self._allowed)
            await self._check_again(session)

            if self._rows is not None:
                self._feed = Feed(session, setup.schemas)
                feeding = asyncio.create_task(self._feed.run(self._rows))

            await session.run()
        finally:
            beside = [task for task in (feeding, following) if task is not None]

            for task in beside:
                task.cancel()

            await asyncio.wait(beside)
            summary = await self._end(session, time.monotonic() - began)
            await noting.end(summary)

        if feeding is not None and not feeding.cancelled():
            feeding.result()

        return summary

    async def _new_session(self) -> NewSession:
        setup = self._setup

        for client in setup.clients.values():
            with suppress(errors.CredentialsRefused, errors.NotSent):  # it stops when it is sent to
                await client.locate()

        targets = {name: TargetInfo(c.base_url, c.org_id) for name, c in setup.clients.items()}
        timeout = max(client.timeout for client in setup.clients.values())
        return NewSession(targets, setup.settings, setup.kept, timeout, setup.limits.keys())

    async def _check_again(self, session: Session) -> None:
        """Check the rows that were never sent against the current jobs, target by target."""
        assert self.plan is not None
        schemas = self._setup.schemas
        unchecked = {job.target for job in await session.ledger.jobs() if not job.is_checked}

        for target in sorted({job.target for job in self.plan.jobs}):
            try:
                await schemas.require(target)

                if invalid := await recheck(session.ledger, schemas, target):
                    rows = count(invalid, "row")
                    self._warn(f"{rows} of target {target} do not fit its jobs any more: invalid")
            except (errors.CredentialsRefused, errors.DesError, errors.SchemaError) as exc:
                if target in unchecked or isinstance(exc, errors.CredentialsRefused):
                    session.stop_unchecked(target, exc)
                else:
                    self._warn(f"the rows of target {target} are sent as they were checked: {exc}")

    async def _end(self, session: Session, seconds: float) -> Summary:
        """Record the session's end, and return the batch's counts."""
        stops, unrecorded = tuple(session.stops), tuple(session.unrecorded)
        ledger, place = session.ledger, session.ledger.place
        path = await run_sync(_write_unrecorded, unrecorded) if unrecorded else ""
        summary = Summary(Counts(), place, {}, session.started_now, seconds, stops, unrecorded)

        try:
            await session.note_clocks()
            counts, targets = await ledger.counts()
            summary = summary._replace(counts=counts, targets=targets)

            if self._setup.settings.retry_failed_runs:
                [(left,)] = await ledger.query("left_to_repeat")
                summary = summary._replace(left_to_repeat=left)

            await ledger.end_session(summary.exit_code, stops)
        except errors.LedgerError as exc:
            if not any(stop.reason is StopReason.LEDGER for stop in stops):
                summary = summary._replace(stops=(*stops, Stop(StopReason.LEDGER, str(exc))))

        if not await ledger.is_in_place():
            with suppress(errors.LedgerError):
                place = await ledger.rescue()  # what has the old name now may be an older copy
                self._warn(f"what the ledger held is in {place}")

        if unrecorded:
            self._warn(
                f"{count(len(unrecorded), 'run')} could not be recorded; they stand in {path}, "
                f"for: {printed('resolve', place_word(place), '--from', path)}"
            )

        return summary._replace(ledger=place)

    def _warn(self, text: str) -> None:
        with suppress(Exception):  # what it is about goes on all the same
            self._emit(Noted(text, is_warning=True))

    # Afterwards.

    def watch(self, on_event: OnEvent | None = None) -> Watch:
        """Follow the runs to their end: an asynchronous iterator of how each ended.

        Args:
            on_event: called with each event, beside the batch's own listener.

        Raises:
            LedgerMissing: there is no ledger, since there was nothing to start.
        """
        if self.ledger is None:
            raise errors.LedgerMissing(
                "there are no runs: the batch has no rows", hint="launch a manifest that has rows"
            )

        setup, settings = self._setup, self._setup.settings
        settings = settings if self.plan is None else replace(settings, rate=None)  # of starts
        watch = Watch(self.ledger, setup.clients, settings, emit=_both(on_event, setup.emit))
        self._attach(watch)
        return watch

    async def resolve(
        self, key: str, *, job_run_id: str | None = None, not_started: bool = False, note: str = ""
    ) -> None:
        """Record a finding about an unknown row; without either argument, take it back.

        Args:
            key: the row's key.
            job_run_id: the run that it started.
            not_started: it started none.
            note: kept with the finding.

        Raises:
            ManifestError: the row is not known, or can't be resolved.
        """
        assert self.ledger is not None
        verdict: Literal["notStarted", "unknown"] = "notStarted" if not_started else "unknown"
        finding = Finding(key, "started" if job_run_id else verdict, job_run_id, note)
        await self.ledger.resolve([finding], early=True)

    async def results(
        self,
        *,
        state: RowState | None = None,
        run: Literal["failed", "succeeded", "unfinished"] | None = None,
    ) -> AsyncIterator[ResultRow]:
        """Yield the rows as they stand, in manifest order.

        Args:
            state: only rows in this state.
            run: only rows with such a run.
        """
        if self.ledger is not None:
            states = None if state is None else [state]

            async for portion in self.ledger.results(states=states, run=run):
                for row in portion:
                    yield row

    async def summary(self) -> Summary:
        """Return the counts of the whole batch."""
        if self.ledger is None:
            return Summary(Counts(), ledger=self.plan.ledger if self.plan else "")

        return await self.ledger.summary()


def resume_command(ledger: str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> str:
    """Return the command that resumes a batch; it works as printed.

    Args:
        ledger: the ledger's path.
        options: what the ledger keeps; ``repeat`` are words that belong to every command.
    """
    return printed("resume", place_word(os.fspath(ledger)), *(options or {}).get("repeat", ()))


def _both(first: OnEvent | None, second: OnEvent) -> OnEvent:
    return second if first is None else lambda event: (first(event), second(event))


def _write_unrecorded(runs: Sequence[tuple[str, str]]) -> Path | str:
    """Write unrecorded runs to a file in the user's state folder, or else the temporary one."""
    folders = [user_folder("DESLAUNCH_STATE_DIR", user_state_path)]

    with suppress(FileNotFoundError):  # there is none that can be written
        folders.append(Path(tempfile.gettempdir()))

    for folder, number in product(filter(None, folders), range(1, 1000)):
        path = folder / f"unrecorded{f'-{number}' if number > 1 else ''}.csv"

        with suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.touch(mode=0o600, exist_ok=False)

            with path.open("w", encoding="utf-8", newline="") as file:
                write_unrecorded(file, runs)

            return path

    return "no file, since none can be written"
