"""The ledger: the state of every row, and which rows may be sent next.

A batch is imported once (:func:`begin_import`); from then on the ledger is the batch. A session
writes outcomes and claims rows by one call, :meth:`Ledger.exchange`, which is one durable
transaction. The rules are SQL, in ``queries.sql``: ``derive`` is the one place where a row's state
follows from its attempts.
"""

import asyncio
import hashlib
import json
import os
import secrets
import socket
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from http import HTTPStatus
from typing import Any, Final, NamedTuple, TypeVar

from deslaunch import model
from deslaunch.errors import ConfigurationError, LedgerDamaged, needs_extra
from deslaunch.events import Control, Stop
from deslaunch.ledger import changes
from deslaunch.ledger.place import is_shared, refuse_mistyped
from deslaunch.ledger.reading import (
    Clock,
    Consents,
    Reader,
    TargetInfo,
    in_thread,
    in_transaction,
    run_in,
)
from deslaunch.ledger.sqlite import SqliteStore
from deslaunch.ledger.store import Store, TryAgain, as_json, storable
from deslaunch.model import CheckedRow, InvalidRow, Job, Outcome, Result, RowState, RunStatus, Start
from deslaunch.settings import Settings

R = TypeVar("R")
T = TypeVar("T", bound=Reader)


_SYSTEM: Final = Clock()
POSITION_EVERY: Final = 1024
"""Rows after which it is noted how far a target's rows were claimed, for the next session."""

LOOK_AGAIN: Final = 0.05
"""Seconds after which a launcher that has nothing to send looks at what others leave behind; it
waits half as long again each time, up to a second."""

_UNSENT: Final = "not sent: its turn came too late, or its intent may not be on disk"


class NewBatch(NamedTuple):
    """What is known of a batch before its first row is read.

    Attributes:
        manifest: as it was named: a path, ``"-"`` for stdin, ``"<rows>"``.
        options: what its command line gave of the options that are kept, and of those that
            say how its rows were read; JSON values.
    """

    manifest: str
    options: Mapping[str, Any]


class JobLane(NamedTuple):
    """The rows of one job of a target; they are claimed separately, since the job has a limit."""

    target: str
    job_id: str


Lane = str | JobLane
"""What rows are claimed from: a job that has a limit, or a target with all its other jobs."""


class NewSession(NamedTuple):
    """A launcher that is about to begin.

    Attributes:
        targets: where each target's rows go, by name.
        settings: its options, all of them for the record; of use here are the consents
            ``retry_…``, and ``give_up_after``: seconds that a turn waits for SQLite's write lock.
        kept: options to keep for later sessions, merged into the batch's.
        timeout: seconds of one attempt in all; an unknown row's window ends after it.
        limited: jobIds, in lower case, whose rows are claimed by themselves.
    """

    targets: Mapping[str, TargetInfo]
    settings: Settings = Settings()
    kept: Mapping[str, Any] = {}
    timeout: float = 60.0
    limited: Collection[str] = ()


class Exchange(NamedTuple):
    """The result of one turn; all of it is on disk.

    Attributes:
        outcomes: those that were handed over, in their order, with state, attempts and
            possible_duplicate as the ledger knows them. A jobRunId that another row has turned
            its outcome to unknown.
        starts: rows to send, whose intents are durable.
        due: for each lane of the claims and outcomes: seconds until its next row may be
            claimed (0: now), or None: nothing is left for this session.
    """

    outcomes: list[Outcome]
    starts: list[Start]
    due: dict[Lane, float | None]


class Import(Reader):
    """A batch that is being imported; nobody sees it before :meth:`publish`."""

    @in_thread
    def add(self, rows: Sequence[CheckedRow | InvalidRow]) -> None:
        """Take the next rows, in manifest order."""
        changes.write_rows(self._store, rows)

    @in_thread
    def add_jobs(self, target: str, jobs: Iterable[Job], *, from_des: bool) -> None:
        """Take the jobs that a target's rows were checked with, and only those."""
        changes.write_jobs(self._store, target, jobs, from_des=from_des)

    async def publish(self, *, digest: str = "", columns: Sequence[str] | None = None) -> "Ledger":
        """Make it a ledger, whole or not at all; return it as the launcher's, its lock held.

        Where this is cancelled the ledger may be there, and :meth:`aclose` frees its lock.

        Raises:
            LedgerExists: its name was taken meanwhile.
        """
        ledger = await run_in(self.thread, self._publish, digest, columns)
        self._is_open = False  # the ledger has its store now
        return ledger

    def _publish(self, digest: str, columns: Sequence[str] | None) -> "Ledger":
        for statement in ("drop_repeated_keys", "index_keys", "index_due"):
            self._store.run(statement)

        self._store.run("complete_batch", (digest, columns and json.dumps(columns)))
        self._store.publish()
        return Ledger(self._store, self.thread, self._clock)


class Ledger(Reader):
    """One batch, as a launcher (:func:`take_ledger`) or a reader (:func:`open_ledger`) has it.

    Attributes:
        on_wait: called in the event loop with a sentence about why a turn has been waiting for
            the database, once a wait, after 5 s.
        is_shared: other launchers may be at work on the batch.
    """

    def __init__(self, store: Store, thread: ThreadPoolExecutor, clock: Clock) -> None:
        super().__init__(store, thread, clock)
        self.on_wait: Callable[[str], None] = lambda _text: None
        self.is_shared = store.is_shared
        self._time_zero = _wall(store, clock) - clock.elapsed()
        self._places: Mapping[str, TargetInfo] = {}
        self._handed_back: list[Outcome] = []  # of starts that will not be sent
        self._in_flight: set[tuple[int, int]] = set()  # row and attempt; of a shared batch
        self._look_again = LOOK_AGAIN
        self._limits: Collection[str] = ()
        self._look_at_rows()

    def _look_at_rows(self) -> None:
        targets = self._store.fetch("targets")
        self._targets = {name: number for number, name, *_ in targets}
        self._limited = {
            JobLane(target, job): number
            for number, target, job, *_ in self._store.fetch("jobs")
            if job in self._limits
        }
        places = {name: place for _, name, _, _, place in targets}
        self._positions: dict[Lane, int] = {**places}
        self._positions |= {lane: places[lane.target] for lane in self._limited}
        [(self._last_row,)] = self._store.fetch("last_row")

    def _lane_of(self, target: str, job_id: str) -> Lane:
        lane = JobLane(target, job_id)
        return lane if lane in self._limited else target

    def _chosen(self, lane: Lane) -> tuple[int | None, str]:
        """Return a lane's job, or None, and else the jobs that are left out."""
        if isinstance(lane, JobLane):
            return self._limited[lane], "[]"

        return None, as_json([job for other, job in self._limited.items() if other.target == lane])

    def _now(self) -> int:
        return round(1000 * (self._time_zero + self._clock.elapsed()))

    def _durably(
        self, work: Callable[[], R], *, is_kept: bool = True, store: Store | None = None
    ) -> R:
        """Run ``work`` in one transaction, and again if the connection was lost."""
        store = store or self._store

        while True:
            try:
                with store.transaction(is_kept=is_kept):
                    return work()
            except TryAgain as exc:
                store.recover(exc)

    # A session

    @in_transaction
    def begin_session(self, session: NewSession) -> Mapping[Lane, float | None]:
        """Begin a session: what dead launchers had in flight becomes unknown, other rows due.

        Beside others at work it takes over what is due as it stands.

        Returns:
            As ``due`` of :class:`Exchange`, of every lane.

        Raises:
            ConfigurationError: it is to retry rows that are rejected or unknown, which others at
                work were not told to.
            LedgerWriteFailed: it could not be written.
        """
        store, settings = self._store, session.settings
        store.give_up_after = settings.give_up_after
        store.run("lock_batch")
        self._time_zero = _wall(self._store, self._clock) - self._clock.elapsed()
        now = self._now()
        self._lose_attempts(store.lose_sessions(now, at_once=True))
        is_alone = store.is_alone()
        consents = Consents.of(settings)

        if any(consents) and not is_alone:
            raise ConfigurationError(
                f"{self.place}: other launchers are at work on it; nothing was sent",
                hint="resume with --retry-rejected, --retry-unknown or --retry-failed-runs once "
                "they have ended",
            )

        places = {name: target.base_url for name, target in session.targets.items()}
        told = (json.dumps(asdict(settings)), json.dumps(places), round(1000 * session.timeout))
        store.begin_session((socket.gethostname(), os.getpid(), now, *told))

        if is_alone:
            store.run("make_due", (now, *consents[:2]))

            if consents.failed_runs:
                found = store.fetch("failed_runs")
                rows = as_json([row for row, _job, is_left, _key in found if not is_left])
                store.run("repeat_attempts", (rows,))
                store.run("make_repeats_due", (rows, now))

            store.run("set_control", ("{}",))

        kept = {**self.batch.options, **session.kept}
        kept.pop("exported", None)  # a copy that is launched is the batch
        store.run("set_options", (json.dumps(kept),))
        store.many("set_target", [(name, *t) for name, t in session.targets.items()])
        self._places, self._limits = session.targets, session.limited
        self.batch = self.batch._replace(options=kept)
        self._look_at_rows()
        return {lane: self._next_due(lane, self._positions, now) for lane in self._positions}

    @in_transaction
    def accept_copy(self) -> None:
        """Accept an older copy: runs of the rows that are pending now are possible duplicates."""
        self._store.run("mark_copied")

    @in_transaction
    def lose_dead(self) -> None:
        """Make unknown what launchers that died since had in flight, while others are at work.

        It is believed when it has been seen for a while: after a restart of the database all
        launchers look dead until they have their connections again.
        """
        self._time_zero = _wall(self._store, self._clock) - self._clock.elapsed()
        self._lose_attempts(self._store.lose_sessions(self._now(), at_once=False))
        self._store.end_turn(len(self._in_flight))

    def _lose_attempts(self, dead: Sequence[int]) -> None:
        """Make the open attempts of dead sessions unknown; in a file, all open attempts."""
        if self.is_shared and not dead:
            return

        rows = [row for (row,) in self._store.fetch("sending_rows", {"dead": as_json(dead)})]

        if rows:
            self._store.run("lose_attempts", (as_json(rows),))
            changes.derive_states(self._store, rows)

    async def exchange(self, outcomes: Sequence[Outcome], claims: Mapping[Any, int]) -> Exchange:
        """Write outcomes and claim rows, in one durable transaction.

        Where this is cancelled, what it took is handed back.

        Args:
            outcomes: of attempts whose starts an earlier exchange gave.
            claims: how many rows to take at most, by :data:`Lane`.

        Raises:
            LedgerWriteFailed: it is in doubt whether this turn is durable. Hand the outcomes
                over again; nothing of its claims is sent, and the next turn that succeeds ends
                their attempts as unsent.
            LedgerDamaged: a row's body does not fit its digest. As above; the same claims will
                meet it again.
        """
        self._tell_waits()
        return await run_in(self.thread, self._turn, outcomes, claims, drop=self._hand_back)

    def _hand_back(self, turn: Exchange) -> None:
        unsent = (Result.UNSENT, RowState.PENDING)
        self._handed_back += [
            Outcome(*start[:5], *unsent, error=_UNSENT, not_before=0.0) for start in turn.starts
        ]

    def _turn(self, outcomes: Sequence[Outcome], claims: Mapping[Lane, int]) -> Exchange:
        while True:
            try:
                return self._try_turn(outcomes, claims)
            except TryAgain as exc:
                self._store.recover(exc)

    def _try_turn(self, outcomes: Sequence[Outcome], claims: Mapping[Lane, int]) -> Exchange:
        # Several turns that failed may have handed the same start back; an outcome comes once.
        handed_back = list({(o.row, o.attempt): o for o in self._handed_back}.values())
        self._handed_back = []
        turn = Exchange([], [], {})
        positions, in_flight = dict(self._positions), self._in_flight

        try:
            with self._store.transaction():
                unsent = self._on_disk(handed_back)
                came = [*unsent, *changes.refuse_repeated(self._store, outcomes)]
                meant, now = self._clock.elapsed(), self._now()
                turn.outcomes.extend(self._settle(came, now)[len(unsent) :])

                for lane, count in claims.items():
                    turn.starts.extend(self._claim(lane, count, positions, meant, now))

                met = {(outcome.target, outcome.job_id) for outcome in outcomes}

                for lane in {*claims, *(self._lane_of(*one) for one in met)}:
                    turn.due[lane] = self._next_due(lane, positions, now)

                if self.is_shared:
                    in_flight = self._in_flight.difference((o.row, o.attempt) for o in came)
                    in_flight.update((start.row, start.attempt) for start in turn.starts)

                    if turn.starts:
                        self._look_again = LOOK_AGAIN

                    self._store.end_turn(len(in_flight))
        except BaseException:
            self._handed_back = handed_back
            self._hand_back(turn)
            raise

        self._positions, self._in_flight = positions, in_flight
        return turn

    def _on_disk(self, handed_back: list[Outcome]) -> list[Outcome]:
        """Return those whose intents were committed; a row of another is due as it was."""
        if not (self.is_shared and handed_back):
            return handed_back

        told = as_json([(o.row, o.attempt) for o in handed_back])
        known = set(self._store.fetch("known_attempts", (told,)))
        return [o for o in handed_back if (o.row, o.attempt) in known]

    def _settle(self, outcomes: Sequence[Outcome], now: int) -> list[Outcome]:
        """Write outcomes; return them as they apply to their rows."""
        if not outcomes:
            return []

        started: dict[int, str] = {}  # jobRunId by row, of the first attempts
        others: list[tuple[Any, ...]] = []

        for o in outcomes:
            is_first = o.attempt == 1 and o.result is Result.STARTED

            if is_first and o.job_run_id and (o.status, o.error) == (HTTPStatus.OK, ""):
                started[o.row] = storable(o.job_run_id)
            else:
                again = None if o.not_before is None else now + round(1000 * o.not_before)
                said = (o.status, o.job_run_id and storable(o.job_run_id), storable(o.error))
                others.append((o.row, o.attempt, o.result, *said, again))

        told = {"outcomes": as_json(others), "started": as_json(started), "now": now}
        told |= {"session": self._store.session, "own": as_json(self._store.own_sessions())}
        self._store.run("end_attempts", told)

        if not changes.derive_states(self._store, [row for row, *_ in others], started):
            return list(outcomes)

        rows = as_json([o.row for o in outcomes])
        states = {row: known for row, *known in self._store.load("states", (rows,))}
        settled = []

        for o in outcomes:
            word, attempts, is_duplicate = states.get(o.row, (o.state, o.attempts, False))
            known = {"attempts": attempts, "possible_duplicate": bool(is_duplicate)}
            settled.append(o._replace(state=RowState(word), **known))

        return settled

    def _claim(
        self, lane: Lane, count: int, positions: dict[Lane, int], meant: float, now: int
    ) -> list[Start]:
        """Claim rows that are due, then fresh ones in manifest order; write their intents."""
        if lane not in positions:
            return []

        target = lane if isinstance(lane, str) else lane.target
        number, chosen = self._targets[target], self._chosen(lane)
        due = self._store.starts("due_starts", (number, now, count, *chosen))
        found, room = due[:], count - len(due)

        if room and positions[lane] < self._last_row:
            before = positions[lane]
            fresh = self._store.starts("fresh_starts", (number, before, room, *chosen))
            position = positions[lane] = fresh[-1][0] if len(fresh) == room else self._last_row
            found += fresh

            if position // POSITION_EVERY != before // POSITION_EVERY or len(fresh) < room:
                others = (positions[other] for other in self._limited if other.target == target)
                self._store.run("set_position", (min([positions[target], *others]), number))

        starts = []

        for row, attempt, key, job_id, body, digest, auto, retries in found:
            # One that was never checked has none.
            if not body or hashlib.sha256(body).digest()[:16] != digest:
                resume = model.printed("resume", model.place_word(self.place))
                raise LedgerDamaged(
                    f"{self.place}: row {row} ({key}): its request body is not the one that was "
                    "checked",
                    hint=f"correct it: {resume} --corrections FILE",
                )

            said = (row, attempt, key, target, job_id, body, bool(auto), retries, meant)
            starts.append(Start(*said))

        if starts:
            told = {"starts": as_json({start.row: start.attempt for start in starts}), "now": now}
            self._store.run("add_intents", told | {"session": self._store.session})

        if due:  # their states say that they are due: no longer
            changes.derive_states(self._store, [row for row, *_ in due])

        return starts

    def _next_due(self, lane: Lane, positions: dict[Lane, int], now: int) -> float | None:
        if lane not in positions:
            return None

        if positions[lane] < self._last_row:
            return 0.0

        number, others = self._targets[lane if isinstance(lane, str) else lane.target], 0

        if not self.is_shared:
            [(due,)] = self._store.fetch("next_due", (number, *self._chosen(lane)))
        elif self._finds_fresh(lane, number, positions):
            return LOOK_AGAIN
        else:  # one statement: between two, a row in flight could become one that waits, unseen
            told = (number, *self._chosen(lane), self._store.session)
            [(due, others)] = self._store.fetch("next_due_beside_others", told)

        seconds = None if due is None else max(0.0, (due - now) / 1000)

        if not others:
            return seconds

        self._look_again = min(1.0, 1.5 * self._look_again)
        return self._look_again if seconds is None else min(self._look_again, seconds)

    def _finds_fresh(self, lane: Lane, number: int, positions: dict[Lane, int]) -> bool:
        """Look for a row of a claim that is not durable yet, or never will be, or that is new."""
        [(row,)] = self._store.fetch("first_fresh", (number, *self._chosen(lane)))

        if row is None:
            return False

        if row > self._last_row:  # another launcher added it
            [(self._last_row,)] = self._store.fetch("last_row")

        positions[lane] = row - 1
        return True

    @in_transaction
    def note(self, kind: str, target: str | None, text: str) -> None:
        """Write an event."""
        event = (self._store.session or None, self._now(), kind, target, storable(text))
        self._store.run("add_event", event)

    @in_transaction
    def set_clocks(self, offsets: Mapping[str, float]) -> None:
        """Note by how many seconds each target's DES clock is ahead of ours."""
        self._store.run("set_clocks", (json.dumps(offsets), self._store.session))

    @in_thread
    def end_session(self, exit_code: int, stops: Sequence[Stop]) -> None:
        """Note how the session ended."""
        names = ("reason", "message", "target", "resumeAfter")
        told = [dict(zip(names, (*s[:3], s.resume_after), strict=True)) for s in stops]

        if self._handed_back:
            self._turn((), {})

        def end() -> None:
            # What could not be recorded: of a session that has ended nobody else looks at it.
            if self._in_flight:
                self._lose_attempts(self._store.own_sessions())

            ended = (self._now(), exit_code, json.dumps(told), self._store.session)
            self._store.run("end_session", ended)

        self._durably(end)
        self._store.session = 0

    def wait_up_to(self, seconds: float) -> None:
        """Set how long to wait for the database, seconds; a session has a setting of its own."""
        self._store.give_up_after = seconds
        self._tell_waits()

    def _tell_waits(self) -> None:
        loop = asyncio.get_running_loop()
        self._store.on_wait = lambda text: loop.call_soon_threadsafe(self.on_wait, text)

    def give_up(self, *, at_once: bool) -> None:
        """Stop waiting for the database in a turn; as :meth:`Store.give_up`."""
        self._store.give_up(at_once=at_once)

    async def is_in_place(self) -> bool:
        """Return True if the path still names the file that was opened."""
        # Not in the ledger's thread: that may be waiting for the write lock.
        return await asyncio.to_thread(self._store.is_in_place)

    @in_thread
    def rescue(self) -> str:
        """Copy what there is to ``<ledger>.rescued`` (or ``.rescued.2`` …); return its path."""
        return self._store.rescue()

    # Rows

    @in_transaction
    def add(self, rows: Sequence[CheckedRow | InvalidRow]) -> changes.Added:
        """Add rows of a program; the ledger numbers them. Rows of a known key are skipped.

        Raises:
            ManifestError: a row says something else than the batch's row of its key; none of
                ``rows`` was added.
        """
        self._store.run("lock_batch")
        added = changes.add_rows(self._store, rows)
        self._store.many("set_target", [(name, *t) for name, t in self._places.items()])
        self._look_at_rows()
        return added

    @in_transaction
    def add_jobs(self, target: str, jobs: Iterable[Job], *, from_des: bool) -> None:
        """Take the JobRunParameters that rows are checked with from now on."""
        changes.write_jobs(self._store, target, jobs, from_des=from_des)
        self._look_at_rows()

    @in_thread
    def correct(
        self,
        rows: Sequence[CheckedRow],
        *,
        file: str,
        add: bool = False,
        dry_run: bool = False,
        consents: Consents = Consents(),  # noqa: B008  # it can't be changed
    ) -> changes.Corrections:
        """Replace rows by their keys, all or none, in one transaction.

        A row that has no run and none in doubt is replaced, and pending. One that says what the
        batch has stays as it is.

        Args:
            rows: checked as a manifest of their own, so that no key comes twice.
            file: as it was named, for the problems.
            add: rows of other keys become rows of the batch; each needs a key of its own.
            dry_run: look only: all is rolled back.
            consents: as for :meth:`plan`, of which the result holds what it will return.
        """

        def take() -> changes.Corrections:
            self._store.run("lock_batch")
            done = changes.correct_rows(self._store, rows, file, self._now(), add=add)
            return done._replace(plan=self._plan(consents))

        done = self._durably(take, is_kept=not dry_run)
        self._look_at_rows()
        return done

    @in_transaction
    def recheck(self, rows: Sequence[CheckedRow | InvalidRow]) -> None:
        """Write rows that were checked again: new bodies, or problems.

        Rows that were sent since they were read stay as they are.
        """
        changes.recheck_rows(self._store, rows)

    @in_thread
    def resolve(self, found: Sequence[changes.Finding], *, early: bool = False) -> changes.Resolved:
        """Record findings, all or none; a launcher may be at work.

        Args:
            found: at most one for each row.
            early: also take that a row was not started before the window is over in which its
                run may still appear.

        Raises:
            ManifestError: a key is not known, or comes twice; its row can't be resolved
                (pending, in flight, sent again …); or another row has the jobRunId.
        """
        return self._beside(lambda store, now: changes.resolve(store, found, now, early=early))

    @in_thread
    def tell_launchers(self, told: Mapping[str, Any]) -> Control:
        """Change settings of the launchers at work; they read them once a second.

        Args:
            told: fields of :class:`~deslaunch.events.Control`.

        Returns:
            All that holds now.

        Raises:
            ConfigurationError: no launcher is sending rows.
        """
        return self._beside(lambda store, now: changes.tell_launchers(store, told, now))

    @in_thread
    def withdraw(self, keys: Sequence[str] | None, *, undo: bool = False) -> changes.Withdrawn:
        """Withdraw rows without a run and without a doubt, all or none; launchers may be at work.

        They are never sent, unless a correction replaces them.

        Args:
            keys: the rows' keys; None for all that are pending (or, with ``undo``, withdrawn).
            undo: give rows that were withdrawn the state that they had.

        Raises:
            ManifestError: a key is not known, or its row can't be taken back (started, unknown,
                in flight), or was not.
        """
        return self._beside(lambda store, now: changes.withdraw(store, keys, now, undo=undo))

    def _beside(self, work: Callable[[Store, int], R]) -> R:
        """Run ``work`` in one transaction; launchers may be at work."""
        with self._store.writing() as store:

            def take() -> R:
                store.run("lock_batch")  # no launcher begins, and takes for unknown what is open
                return work(store, self._now())

            return self._durably(take, store=store)

    @in_transaction
    def record_runs(self, runs: Sequence[tuple[int, int, RunStatus | str]]) -> None:
        """Write (row, attempt, status) of runs; a text instead of a status is DES's refusal."""
        told: list[tuple[Any, ...]] = []

        for row, attempt, said in runs:
            if isinstance(said, str):
                fields: tuple[Any, ...] = (storable(said), *[None] * 6)
            else:
                text = said.status and storable(said.status)
                ended = (said.created_utc, said.finished_utc, json.dumps(said.output_files))
                fields = (None, said.finished, said.success, text, *ended)

            told.append((row, attempt, self._now(), *fields))

        self._store.many("record_run", told)


async def begin_import(place: str, batch: NewBatch, *, clock: Clock = _SYSTEM) -> Import:
    """Begin a new batch; nobody else sees it before it is published, and then whole.

    Raises:
        LedgerExists: there is a ledger.
        LedgerForeign: the end of an earlier one is there (``-wal``, ``-journal``).
        LedgerLocked: another process is importing it.
        LedgerError: its folder's file system is not fit, or can't be written; or the database
            can't be used.
    """

    def make(store: Store, thread: ThreadPoolExecutor) -> Import:
        names = (store.batch_name, store.path_value(batch.manifest))
        known = (secrets.token_hex(16), *names, json.dumps(batch.options))
        store.run("add_batch", (*known, round(1000 * _wall(store, clock))))
        return Import(store, thread, clock)

    return await _open(lambda: _store_of(place).create(place), make)


async def take_ledger(
    place: str, *, joins: bool = False, launches: bool = True, clock: Clock = _SYSTEM
) -> Ledger:
    """Open a batch for writing; as a launcher its lock is held.

    Args:
        place: where the batch is.
        joins: other launchers may be at work; PostgreSQL only.
        launches: it will send rows. To record what becomes of runs takes no lock in PostgreSQL.
        clock: its time.

    Raises:
        LedgerMissing: there is none.
        LedgerLocked: another launcher is at work.
        LedgerForeign: it is no ledger, or of another version.
        LedgerDamaged: it can't be read.
        ConfigurationError: several launchers can't be at work on a file.
    """

    def take() -> Store:
        return _store_of(place).take(place, joins=joins, launches=launches)

    return await _open(take, partial(Ledger, clock=clock))


async def open_ledger(place: str, *, clock: Clock = _SYSTEM) -> Ledger:
    """Open a batch as a reader, at any time; only :meth:`Ledger.resolve` writes.

    Raises:
        LedgerMissing: there is none.
        LedgerForeign: it is no ledger, or of another version.
        LedgerDamaged: it can't be read.
    """
    return await _open(lambda: _store_of(place).read(place), partial(Ledger, clock=clock))


def _wall(store: Store, clock: Clock) -> float:
    return store.wall() if clock.wall is None else clock.wall()


def _store_of(place: str) -> type[Store]:
    """Return the store class for a place; that of PostgreSQL needs an extra."""
    refuse_mistyped(place)

    if not is_shared(place):
        return SqliteStore

    with needs_extra("postgres", "a ledger in PostgreSQL"):
        from deslaunch.ledger.postgres import PostgresStore  # noqa: PLC0415

    return PostgresStore


async def _open(
    open_store: Callable[[], Store],
    make: Callable[[Store, ThreadPoolExecutor], T],
) -> T:
    """Open a store in a thread of its own, and make the object that uses it there."""
    thread = ThreadPoolExecutor(1, "ledger")

    def begin() -> T:
        store = open_store()

        try:
            return make(store, thread)
        except BaseException:
            store.close()
            raise

    try:
        return await run_in(thread, begin, drop=lambda made: made._store.close())
    except BaseException:
        thread.shutdown(wait=False)
        raise
