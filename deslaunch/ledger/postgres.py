"""Batches in a PostgreSQL database; several launchers may send one batch.

What may be relied on: a row is taken by the very transaction that writes its intent, so no two
launchers take the same; and that transaction ends with a look whether its session was found dead,
so nothing is sent by one that others gave up. Liveness is an advisory lock, held by the one
connection that a launcher's turns use and looked up, never tried, by others. It only decides how
soon a dead launcher's rows become unknown: a wrong guess costs a session's number, no row.

A lost connection is no failure. Nothing new is sent meanwhile; with a new one a launcher ends its
own old backend, takes its lock again, and writes what came in again. A server that lost commits is
recognised by its timeline or identity, or by a turn that it was told and does not know.
"""

import random
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from threading import Event
from typing import Any, Final, Self

import psycopg

from deslaunch import errors
from deslaunch.ledger import postgres_server as server
from deslaunch.ledger.place import parse_batch
from deslaunch.ledger.store import TELL_AFTER, Launcher, Store, TryAgain, as_json, load_statements
from deslaunch.model import printed

BELIEVE_AFTER: Final = 15.0
"""Seconds after which a launcher without its lock is taken for dead, beside others at work."""

FREE_AFTER: Final = 0.5
"""Seconds in which the lock of a process that was killed is free."""

LONGEST_WAIT: Final = 2.0
"""Seconds between two tries to have a connection again, at most."""

LONGEST_SILENCE: Final = 75.0
"""Seconds of a transaction in which the server may say nothing: more than a statement takes."""

LONGEST_READ: Final = 600.0
"""The same between transactions, where all rows are read."""

# A launcher that is stopped in the middle of a transaction keeps rows from others for so long.
_BEGIN: Final = (
    "BEGIN; SET LOCAL statement_timeout = 60000; SET LOCAL lock_timeout = 10000; "
    "SET LOCAL idle_in_transaction_session_timeout = 30000"
)

# A person may be asked before the end of an import, and a manifest may come slowly.
_BEGIN_IMPORT: Final = (
    "BEGIN; SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0; "
    "SET LOCAL idle_in_transaction_session_timeout = 0; SET CONSTRAINTS row_key DEFERRED"
)

# Two transactions met, or one was kept waiting: nothing of it holds, and it may be run again.
_MET: Final = (
    psycopg.errors.DeadlockDetected,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.QueryCanceled,
    psycopg.errors.SerializationFailure,
    psycopg.errors.UniqueViolation,
)

_READ_ONLY: Final = psycopg.errors.ReadOnlySqlTransaction


class PostgresStore(Store):
    """A batch in a database, by one connection.

    Args:
        place: as it was written.
    """

    is_shared = True
    statements = load_statements("queries.sql") | load_statements("postgres_queries.sql")

    def __init__(self, place: str) -> None:
        self._url, name, shown = parse_batch(place)
        super().__init__(shown, name)
        self._batch: int | None = None
        self._number = 0  # of the session, whose lock is held; it begins later
        self._earlier: list[int] = []  # numbers that were given up, of which outcomes still come
        self._turns = self._counted = -1  # known to be durable, -1: no session; with this one
        self._silent: dict[int, float] = {}  # sessions without a lock, and since when
        self._failing_since: float | None = None
        self._is_told = False
        self._is_last_try = False  # it is connected once more, though waiting was given up
        self._is_hurried, self._is_given_up = Event(), False
        self._is_in_transaction = False
        self._is_writer = False  # it waits for a connection where that is lost
        self._server = self._connect()
        self._backend = self._connection.info.backend_pid  # of the connection that has the lock

    # Opening.

    @classmethod
    def create(cls, place: str) -> Self:
        """Begin a batch: its lock is held, its rows are seen once :meth:`publish` returned.

        Raises:
            LedgerExists: the database has a batch of this name.
            LedgerLocked: another process is importing it.
        """
        store = cls(place)

        with _closed_if_it_fails(store):
            server.refuse_unsafe(store._connection, store.place)
            server.make_schema(store._connection, store.place)
            store._begin_import()
            return store

    @classmethod
    def take(cls, place: str, *, joins: bool, launches: bool) -> Self:
        """Open a batch for writing; as a launcher with a session's number and its lock."""
        store = cls.read(place)

        with _closed_if_it_fails(store):
            server.refuse_unsafe(store._connection, store.place)
            store._is_writer = True

            if launches:
                store._take_turns(joins=joins)
                server.has_schema(store._connection, store.place)  # no upgrade comes any more

            return store

    @classmethod
    def read(cls, place: str) -> Self:
        """Open a batch for reading, and for findings, at any time."""
        store = cls(place)

        with _closed_if_it_fails(store):
            store._find_batch()
            return store

    def publish(self) -> None:
        """Commit the import; nobody sees the batch before that, and its launcher is this."""
        [(self._batch,)] = self._ask("SELECT this_batch()")
        self._take_number()
        self._execute("COMMIT")
        self._is_in_transaction, self._is_writer = False, True

    def _begin_import(self) -> None:
        [(is_mine,)] = self._ask(
            "SELECT pg_try_advisory_lock(%s, hashtext(%s))", server.IMPORT_LOCK, self.batch_name
        )

        server.has_schema(self._connection, self.place)  # no upgrade comes any more

        if self._look_up():
            again = printed("resume", self.place)
            raise errors.LedgerExists(
                f"{self.place}: there is a batch of this name already",
                hint=f"resume it: {again}, or pass resume=True",
            )

        if not is_mine:
            raise errors.LedgerLocked(
                f"{self.place}: another process is importing it", hint="wait until it ends"
            )

        self._execute(_BEGIN_IMPORT)
        self._is_in_transaction = True

    def _find_batch(self) -> None:
        found = server.has_schema(self._connection, self.place) and self._look_up()

        if not found:
            known = printed("status", self.place.partition("#")[0] or "#")
            raise errors.LedgerMissing(
                f"{self.place}: there is no such batch", hint=f"the database has: {known}"
            )

        [(self._batch,)] = found
        self._choose_batch()

    def _look_up(self) -> list[Any]:
        return self._ask("SELECT id FROM batches WHERE name = %s", self.batch_name)

    def _choose_batch(self) -> None:
        self._ask("SELECT set_config('deslaunch.batch', %s, false)", str(self._batch))

    def _take_turns(self, *, joins: bool) -> None:
        """Become a launcher; refuse if others are at work and this one does not join."""
        latest = time.monotonic() + FREE_AFTER

        while not self.is_launcher:
            try:
                with self.transaction():
                    # Somebody may be correcting many rows, or have removed it.
                    if not self.run("lock_batch"):
                        self._find_batch()
                    elif joins or not (others := self.launchers()):
                        self._take_number()
                    elif time.monotonic() > latest:
                        told = ", ".join(map(str, others))
                        raise errors.LedgerLocked(
                            f"{self.place}: another launcher is at work on it: {told}",
                            hint="join it with --join, or wait until it ends; see its "
                            f"progress: {printed('status', self.place)}; or stop it: "
                            f"{printed('control', self.place, 'stop')}",
                        )
            except TryAgain as exc:
                self.is_launcher = False
                self.recover(exc)

            if not self.is_launcher:
                time.sleep(FREE_AFTER / 10)

    def _take_number(self) -> None:
        """Take a number that no session had, and its lock."""
        [(self._number,)] = self._ask("SELECT nextval('session_id')")
        self._ask("SELECT pg_advisory_lock(%s, %s)", self._lock_class, self._number)
        self.is_launcher = True

    @property
    def _lock_class(self) -> int:
        assert self._batch is not None
        return server.LOCKS + self._batch

    # Statements.

    def fetch(self, query: str, parameters: Any = ()) -> list[Any]:
        """Return all rows of a named query; outside of a transaction also after a reconnection."""
        while True:
            try:
                cursor = self._run(query, parameters)
                return cursor.fetchall() if cursor.description else []
            except TryAgain as exc:
                if self._is_in_transaction or not self._is_writer:
                    raise

                self.recover(exc)

    def starts(self, query: str, parameters: Any) -> list[Any]:
        """Return the rows to send that a named query gives, as one JSON value."""
        return [
            (*known[:4], bytes.fromhex(known[4]), bytes.fromhex(known[5]), *known[6:])
            for known in self.load(query, parameters)
        ]

    def run(self, query: str, parameters: Any = ()) -> int:
        """Run a named query; return how many rows it changed, or the number that it gives."""
        cursor = self._run(query, parameters)
        found = cursor.fetchone() if cursor.description else None
        return found[0] if found and isinstance(found[0], int) else cursor.rowcount

    def many(self, query: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run a named query once for each row of parameters; a COPY takes them all at once."""
        [statement] = _prepared(query)

        with self._translated():
            if statement.startswith("COPY"):
                with self._connection.cursor().copy(statement) as copy:
                    for row in rows:
                        copy.write_row(row)
            else:
                self._connection.cursor().executemany(statement, list(map(_numbered, rows)))

    def _run(self, query: str, parameters: Any) -> psycopg.Cursor[Any]:
        *first, last = _prepared(query)
        given = parameters if isinstance(parameters, dict) else _numbered(parameters)

        for statement in first:
            self._execute(statement, given)

        return self._execute(last, given)

    def _ask(self, statement: str, *parameters: Any) -> list[Any]:
        return self._execute(statement, parameters).fetchall()

    def _execute(self, statement: str, parameters: Any = None) -> psycopg.Cursor[Any]:
        with self._translated():
            return self._connection.execute(statement, parameters or None)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Raise psycopg's errors as errors of the ledger."""
        try:
            yield
        except _MET as exc:
            raise TryAgain(f"{self.place}: {server.first_line(exc)}", hint=server.HELP) from exc
        except psycopg.Error as exc:
            if self._connection.closed:
                hint = "try again once the server can be reached"
                raise TryAgain(f"{self.place}: {server.first_line(exc)}", hint=hint) from exc

            hint = server.NO_STANDBY if isinstance(exc, _READ_ONLY) else server.HELP
            raise errors.LedgerError(f"{self.place}: {server.first_line(exc)}", hint=hint) from exc

    @contextmanager
    def writing(self) -> Iterator[Store]:
        """Give the store itself, where the database may be written."""
        server.refuse_unsafe(self._connection, self.place)
        yield self

    @contextmanager
    def transaction(self, *, is_kept: bool = True) -> Iterator[None]:
        """Begin, and commit at the end of the block; see :class:`Store`."""
        self._is_in_transaction = True

        try:
            self._execute(_BEGIN)
            yield
            self._execute("COMMIT" if is_kept else "ROLLBACK")
        except BaseException as exc:
            self._counted = self._turns

            with suppress(psycopg.Error):
                self._connection.execute("ROLLBACK")

            if type(exc) is errors.LedgerError:
                raise errors.LedgerWriteFailed(str(exc), hint=exc.hint) from exc

            raise
        finally:
            self._is_in_transaction = False

        self._turns = self._counted
        self._failing_since = None
        self._is_told = self._is_last_try = False

    # A launcher among others.

    def end_turn(self, in_flight: int) -> None:
        """Note the turn; if this session was found dead, take a new number."""
        found = self.fetch("end_turn", (self._number, in_flight))

        if not found:
            raise TryAgain(f"{self.place}: session {self._number} was found dead by another")

        self._notice_lost_commits(found[0][0] - 1)
        self._counted = found[0][0]

    def owners(self, told: Sequence[tuple[str, int]]) -> dict[str, tuple[int, str]]:
        """Return whose runs are told now of another row, whichever launcher was told first."""
        return {run: (row, key) for run, row, key in self.fetch("rows_of_runs", (as_json(told),))}

    def begin_session(self, told: Sequence[Any]) -> None:
        """Write the session under the number whose lock is held."""
        self.run("begin_session", (*told, self._number))
        self.session, self._counted = self._number, 0

    def own_sessions(self) -> Sequence[int]:
        """Return the number of the session, and those that were given up."""
        return [self.session, *self._earlier]

    def is_alone(self) -> bool:
        """Return True if no other session is at work, in a transaction that lost the dead ones."""
        return not self.fetch("silent_sessions", (as_json([self._number]),))

    def lose_sessions(self, now: int, *, at_once: bool) -> Sequence[int]:
        """Note which sessions are dead; see :class:`Store`."""
        living = [number for (number,) in self.fetch("living_sessions")]
        silent = [number for (number,) in self.fetch("silent_sessions", (as_json(living),))]
        seen, self._silent = self._silent, {}

        for number in silent:
            self._silent[number] = seen.get(number, time.monotonic())

        latest = time.monotonic() - (0.0 if at_once else BELIEVE_AFTER)
        dead = [number for number, since in self._silent.items() if since <= latest]
        return [number for (number,) in self.fetch("lose_sessions", (as_json(dead), now))]

    def launchers(self) -> list[Launcher]:
        """Return who else is at work, by their locks."""
        return [Launcher._make(known) for known in self.fetch("launchers", (self._number,))]

    # The connection.

    def recover(self, error: TryAgain) -> None:
        """Get a connection, the lock and a live session again; wait for them if necessary."""
        self._failing_since = self._failing_since or time.monotonic()
        tries, was_closed = 0, self._connection.closed

        if self._is_given_up:
            raise errors.LedgerWriteFailed(str(error), hint=error.hint) from error

        while True:
            waited = time.monotonic() - self._failing_since
            self._tell_wait(waited, error)
            longest = min(LONGEST_WAIT, 0.05 * 2**tries)
            self._is_hurried.wait(random.uniform(0.5, 1.0) * longest)  # noqa: S311  # not all at once
            tries += 1

            try:
                if self._connection.closed:
                    server_now = self._connect()

                    with _closed_if_it_fails(self._connection):
                        self._take_up(server_now)

                self._renew_if_lost()
            except (errors.LedgerDamaged, errors.LedgerForeign) as exc:
                raise errors.LedgerWriteFailed(str(exc), hint=exc.hint) from exc
            except errors.LedgerError as exc:
                error = TryAgain(str(exc), hint=exc.hint)
            else:
                if waited < self.give_up_after:
                    return

                if was_closed and not self._is_last_try:
                    self._is_last_try = True
                    return

            if waited >= self.give_up_after:
                self._is_last_try = False
                self.give_up_after = 0.0  # what still comes in is tried once, each time
                self._is_given_up = self._is_hurried.is_set()
                raise errors.LedgerWriteFailed(str(error), hint=error.hint) from error

    def give_up(self, *, at_once: bool) -> None:
        """Stop waiting for the database; may be called from any thread."""
        super().give_up(at_once=at_once)

        if at_once:
            self._is_hurried.set()

    def _tell_wait(self, seconds: float, why: object) -> None:
        if seconds >= TELL_AFTER and not self._is_told:
            self.on_wait(f"the ledger can't be written, nothing is sent meanwhile: {why}")
            self._is_told = True

    def _end_if_silent(self, seconds: float) -> None:
        """End a connection on which the server has been silent for too long; not an import's."""
        if not self._is_writer:
            return

        why = f"{self.place}: the server has not responded for {seconds:.0f} s"
        self._tell_wait(seconds, why)

        # A plan or a count of millions of rows is one statement, and takes its time.
        is_short = self._is_in_transaction or not self.give_up_after
        longest = min(LONGEST_SILENCE, self.give_up_after) if is_short else LONGEST_READ

        if seconds >= max(TELL_AFTER, longest):
            self._failing_since = self._failing_since or time.monotonic() - seconds
            self._connection.close()
            raise TryAgain(why, hint="look at the server, and at what is between")

    def _connect(self) -> server.Server:
        """Connect; return which server it is."""
        self._connection = server.connect(self._url, self.place)
        self._connection.on_silence = self._end_if_silent

        with _closed_if_it_fails(self._connection), self._translated():
            return server.identify(self._connection)

    def _take_up(self, server_now: server.Server) -> None:
        """Restore a lost connection's state on a new one."""
        self._silent.clear()  # after a restart all look dead until they are connected again

        if server_now != self._server:
            raise self._lost_commits("it is another server, or was restored or failed over")

        if self._batch is not None:
            self._choose_batch()

        if not self.is_launcher:
            return

        # Where a cable was pulled the old backend has the lock, and may still commit.
        self._ask(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid = %s AND application_name = %s AND pid <> pg_backend_pid()",
            self._backend,
            server.APPLICATION,
        )
        [(is_mine,)] = self._ask(
            "SELECT pg_try_advisory_lock(%s, %s)", self._lock_class, self._number
        )

        if not is_mine:
            raise TryAgain(f"{self.place}: the lock of session {self._number} is still held")

        self._backend = self._connection.info.backend_pid

        if not server.has_schema(self._connection, self.place):  # an upgrade may have come
            raise self._lost_commits("it has no schema deslaunch")

    def _renew_if_lost(self) -> None:
        """Go on under a new number where this session was found dead; notice lost commits."""
        if not self.session:
            return

        found = self._run("session_turns", (self.session,)).fetchall()
        self._notice_lost_commits(found[0][0] if found else -1)

        if not found or not found[0][1]:  # a session that was about to begin is not there yet
            return

        old, held = self.session, self._number
        self._take_number()
        self.run("renew_session", (self._number, round(1000 * self.wall()), old))
        self.session, self._turns, self._counted = self._number, 0, 0
        self._earlier.append(old)
        self._ask("SELECT pg_advisory_unlock(%s, %s)", self._lock_class, held)

    def _notice_lost_commits(self, turns: int) -> None:
        if turns < self._turns:
            raise self._lost_commits(f"it knows {turns} turns of this session, not {self._turns}")

    def _lost_commits(self, why: str) -> errors.LedgerDamaged:
        self._connection.close()
        return errors.LedgerDamaged(
            f"{self.place}: the server lost commits: {why}; runs that were started may be missing",
            hint="use the server that has them, or record the missing runs with deslaunch "
            "resolve, then resume",
        )

    def wall(self) -> float:
        """Return the server's time, seconds since 1970."""
        [(now,)] = self._ask("SELECT extract(epoch FROM clock_timestamp())::float8")
        return float(now)

    def close(self) -> str:
        """Close the connection: its locks are freed, and uncommitted changes are rolled back."""
        self.give_up_after = 0.0  # a silent server is not waited for

        # The server frees them too, but only some ms later.
        with suppress(psycopg.Error, TryAgain):
            if self.is_launcher:
                self._connection.execute("SELECT pg_advisory_unlock_all()")

        self._connection.close()
        return ""


@contextmanager
def _closed_if_it_fails(opened: Store | psycopg.Connection[Any]) -> Iterator[None]:
    """Close a store or connection if the block fails."""
    try:
        yield
    except BaseException:
        opened.close()
        raise


@cache
def _prepared(query: str) -> list[str]:
    """Return the parts of a named statement as psycopg takes them."""
    parts = PostgresStore.statements[query].split(";\n")
    return [_translate(part) for part in parts if part.strip()]


def _translate(statement: str) -> str:
    """Write ``?`` and ``?1`` as ``%(1)s``, and ``:name`` as ``%(name)s``: as psycopg does."""
    count = 0

    def write(match: re.Match[str]) -> str:
        nonlocal count

        if match["text"]:
            return match["text"]

        if match["number"] is None:
            return f"%({match['name']})s"

        count += 1
        return f"%({match['number'] or count})s"

    # An index finds the numbers of an array one by one; texts may be in no index.
    numbers, texts = (
        r"= ANY (ARRAY(SELECT numbers(\1)))",
        r"SELECT json_array_elements_text(\1::json)",
    )
    statement = re.sub(r"IN \(SELECT value FROM json_each\((.+?)\)\)", numbers, statement)
    statement = re.sub(r"SELECT atom FROM json_each\((.+?)\)", texts, statement)
    pattern = r"(?P<text>'[^']*')|\?(?P<number>\d*)|(?<!:):(?P<name>[a-z_]+)"
    return re.sub(pattern, write, statement.replace("%", "%%").strip().rstrip(";"))


def _numbered(parameters: Sequence[Any]) -> dict[str, Any]:
    return {str(number): value for number, value in enumerate(parameters, 1)}
