"""A connection to PostgreSQL itself, and the schema ``deslaunch`` of a database.

Whatever could lose a commit silently is refused: a pooler, a server that does not sync.
"""

import logging
import os
import re
import socket
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar, cast

import psycopg
from psycopg.conninfo import conninfo_to_dict

from deslaunch import errors
from deslaunch.ledger.place import VARIABLE
from deslaunch.ledger.store import load_statements
from deslaunch.model import as_word, printed

T = TypeVar("T")

# Of a connection that is lost it tells on stderr, unless its user listens to it.
logging.getLogger("psycopg").addHandler(logging.NullHandler())

SCHEMA_VERSION: Final = 1

UPGRADES: Final[dict[int, str]] = {}
"""The SQL that makes the next version of each earlier one."""

LOCKS: Final = 1_145_372_672
"""First key of the advisory locks of a batch's launchers, less the batch's id: ``DE`` << 16."""

SCHEMA_LOCK: Final = (LOCKS - 1, 0)
IMPORT_LOCK: Final = LOCKS - 2
"""First key of the lock of an import; the second comes from the batch's name."""

APPLICATION: Final = f"deslaunch {os.getpid()}@{socket.gethostname()}"[:63]
"""How a connection of this process is called in ``pg_stat_activity``."""

HELP: Final = f"see: {printed('help', 'postgres')}"

# A cable that was pulled is noticed within 15 s, at both ends. Set with the connection: what SET
# says is gone with it.
_KEEPALIVE: Final = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
_SETTINGS: Final = {
    "client_connection_check_interval": 2_000,  # first: PostgreSQL 13 does not know it
    "search_path": "deslaunch",
    "default_transaction_isolation": r"read\ committed",  # each statement sees what is committed
    "TimeZone": "UTC",
    "synchronous_commit": "on",
    "jit": "off",
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",  # a batch is a part of its tables, and new ones have no statistics
    "tcp_keepalives_idle": 5,
    "tcp_keepalives_interval": 3,
    "tcp_keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
_OPTIONS: Final = " ".join(f"-c {name}={value}" for name, value in _SETTINGS.items())

_OTHER_DESLAUNCH: Final = "use the version of deslaunch that made it"
NO_STANDBY: Final = "use the primary; with several hosts add ?target_session_attrs=read-write"
_NO_POOLER: Final = "use host and port of PostgreSQL itself, not of a pooler"

_CAUSES: Final = (
    (r"startup parameter|bouncer", _NO_POOLER),
    (r"unrecognized .*client_connection_check", "use PostgreSQL 14 or newer"),
    (r"resolve host|translate host name|label", "check the host's name in the URL"),
    (r"refused|No such file", "check host and port in the URL, and that the server is running"),
    (r"pg_hba", "allow this machine, role and database in the server's pg_hba.conf"),
    (
        r"password|authentication failed",
        "set PGPASSWORD, or write the password to ~/.pgpass; never on a command line",
    ),
    (r"database .* does not exist", "check its name in the URL, or create it: {createdb}"),
    (r"timeout|timed out", "check host and port in the URL, and the firewalls between"),
    (r"connection slots|too many clients", "end some launchers, or raise max_connections"),
)
_CHECK_ALL: Final = "check the URL, and the server's log"

# Not by to_regclass: after a wait for a lock it says what its cache remembers.
_IS_THERE: Final = (
    "SELECT EXISTS (SELECT 1 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
    "WHERE n.nspname = 'deslaunch' AND c.relname = 'version')"
)


class Server(NamedTuple):
    """The identity of a server and of its history.

    Attributes:
        identifier: of its data.
        timeline: of its log; another one after a failover. ``""`` of a standby.
    """

    identifier: str
    timeline: str


class Connection(psycopg.Connection[Any]):
    """A connection that measures how long the server has been silent.

    Where packets are dropped on the way, or the server is frozen, the system's own limits may never
    end a wait.

    Attributes:
        on_silence: called about ten times a second of a wait, with its seconds; it may raise.
    """

    on_silence: Callable[[float], object] = staticmethod(lambda _seconds: None)

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **kwargs: Any) -> T:
        """Wait for the server, as psycopg does."""
        return super().wait(self._watch(gen), *args, **kwargs)

    def _watch(self, gen: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        since, ready = time.monotonic(), None

        while True:
            try:
                wanted = gen.send(ready)
            except StopIteration as done:
                return cast("T", done.value)

            ready = yield wanted

            if ready:
                since = time.monotonic()
            else:
                self.on_silence(time.monotonic() - since)


class BatchListed(NamedTuple):
    """A batch of a database.

    Attributes:
        name: without ``#``.
        rows: that it has.
        imported_ms: ms since 1970.
        launchers: how many are at work on it.
        exit_code: of the session that ended last; None where none has.
    """

    name: str
    rows: int
    imported_ms: int
    launchers: int
    exit_code: int | None


def connect(url: str, place: str) -> Connection:
    """Connect, and refuse what is no connection to PostgreSQL itself.

    Args:
        url: for libpq; it may hold a password.
        place: how errors call it.

    Raises:
        ConfigurationError: the URL is none that libpq takes.
        LedgerError: there is no connection, or a pooler is in between.
    """
    known: dict[str, Any] | None = None

    with suppress(psycopg.ProgrammingError):  # its text may hold a password, so it goes
        known = conninfo_to_dict(url)

    if known is None:
        raise errors.ConfigurationError(
            f"{place}: is not a URL that libpq accepts",
            hint="write postgresql://user@host:port/database#NAME, and % in a password as %25",
        )

    wanted = known.get("options") or os.environ.get("PGOPTIONS", "")
    own = {"options": f"{wanted} {_OPTIONS}".strip(), "application_name": APPLICATION}
    parameters: dict[str, Any] = {**_KEEPALIVE, **known, **own, "client_encoding": "utf8"}

    try:
        with ExitStack() as stack:
            connection = Connection.connect(**parameters, autocommit=True)
            stack.callback(connection.close)
            [(pid,)] = connection.execute("SELECT pg_backend_pid()").fetchall()
            stack.pop_all()
    except (psycopg.Error, UnicodeError) as exc:  # UnicodeError: a host's name that is none
        hint = next((hint for pattern, hint in _CAUSES if re.search(pattern, str(exc))), _CHECK_ALL)
        hint = hint.format(createdb=_client_command("createdb", known, known.get("dbname")))
        raise errors.LedgerError(f"{place}: {first_line(exc)}", hint=hint) from exc

    if pid != connection.info.backend_pid:
        connection.close()
        raise errors.LedgerError(
            f"{place}: a connection pooler is between deslaunch and PostgreSQL, and session locks "
            "don't work through it",
            hint=_NO_POOLER,
        )

    return connection


def _client_command(program: str, known: Mapping[str, Any], *words: Any) -> str:
    """Return a command line of a PostgreSQL client program for a server."""
    options = (("-h", known.get("host")), ("-p", known.get("port")))
    given = [word for option in options if option[1] for word in option]
    return " ".join(as_word(word) for word in (program, *given, *words) if word)


@contextmanager
def told_of(place: str, what: str = "", hint: str = HELP) -> Iterator[None]:
    """Raise psycopg's errors as errors of the ledger.

    Raises:
        LedgerError: there was one.
    """
    try:
        yield
    except psycopg.Error as exc:
        raise errors.LedgerError(f"{place}: {what}{first_line(exc)}", hint=hint) from exc


def identify(connection: psycopg.Connection[Any]) -> Server:
    """Return which server it is, and which of its histories."""
    [(identifier, is_standby)] = connection.execute(
        "SELECT system_identifier::text, pg_is_in_recovery() FROM pg_control_system()"
    ).fetchall()

    if is_standby:
        return Server(identifier, "")

    timeline = "SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)"
    return Server(identifier, connection.execute(timeline).fetchall()[0][0])


def refuse_unsafe(connection: psycopg.Connection[Any], place: str) -> None:
    """Refuse a server that can't be written, or would not keep what is written.

    Raises:
        LedgerError: a standby, a session that only reads, a server that does not sync, or a
            database that can't hold every text.
    """
    query = (
        "SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on', "
        "current_setting('fsync'), current_setting('server_encoding')"
    )

    with told_of(place):
        [(is_standby, is_read_only, fsync, encoding)] = connection.execute(query).fetchall()

    writes = "ALTER ROLE … SET default_transaction_read_only = off"
    reasons = (
        (is_standby, "the server is a standby, which only reads", NO_STANDBY),
        (
            is_read_only,
            "this session may only read (default_transaction_read_only)",
            f"let the role, or the database, write: {writes}",
        ),
        (
            fsync != "on",
            "the server has fsync = off: a crash would lose what was recorded",
            "set fsync = on in postgresql.conf, and reload it",
        ),
        (
            encoding != "UTF8",
            f"the database's encoding is {encoding}, which can't hold every text",
            "make another: createdb --encoding=UTF8 --template=template0 NAME",
        ),
    )

    for is_so, what, hint in reasons:
        if is_so:
            raise errors.LedgerError(f"{place}: {what}", hint=hint)


# The schema.


def has_schema(connection: psycopg.Connection[Any], place: str) -> bool:
    """Return True if the schema is there, in the version that is known.

    Raises:
        LedgerForeign: it is older, or newer.
        LedgerError: the role may not read it.
    """
    version = _version_of(connection, place)

    if version is not None and version < SCHEMA_VERSION:
        command = printed("upgrade", "#" if place == VARIABLE else place)
        raise _of_another_version(place, version, f"bring it up to date: {command}")

    return version is not None


def _version_of(connection: psycopg.Connection[Any], place: str) -> int | None:
    """Return the schema's version, at most the one that is known; None: there is no schema."""
    with told_of(place, hint=f"grants: {HELP}"):
        if connection.execute(_IS_THERE).fetchall() == [(False,)]:
            return None

        [(version,)] = connection.execute("SELECT number FROM deslaunch.version").fetchall()

    if version > SCHEMA_VERSION:
        raise _of_another_version(place, version, f"{_OTHER_DESLAUNCH}, or a newer one")

    return int(version)


def _of_another_version(place: str, version: int, hint: str) -> errors.LedgerForeign:
    told = f"{place}: the schema deslaunch has version {version}, this deslaunch supports"
    return errors.LedgerForeign(f"{told} {SCHEMA_VERSION}", hint=hint)


def make_schema(connection: psycopg.Connection[Any], place: str) -> None:
    """Make the schema where it is missing; two at once are no error.

    Raises:
        LedgerError: the role may not.
        LedgerForeign: there is another version.
    """
    if has_schema(connection, place):
        return

    info = connection.info
    psql = _client_command("psql", {"host": info.host, "port": info.port}, "-d", info.dbname)
    hint = f"let a role make it that may: {printed('upgrade', '--sql')} | {psql}; grants: {HELP}"

    with told_of(place, "the schema deslaunch can't be made: ", hint), connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", SCHEMA_LOCK)

        if connection.execute(_IS_THERE).fetchall() == [(False,)]:
            connection.execute(schema_sql().encode())


def upgrade(url: str, place: str) -> str:
    """Make the schema, or bring it up to date; return what was done.

    It is one transaction, which no launcher that begins can overlook: each looks at the version
    once it has its lock.

    Raises:
        LedgerError: the role may not.
        LedgerForeign: it is newer, or of a version that there is no way from.
        LedgerLocked: launchers are at work, or an import is.
    """
    with connect(url, place) as connection:
        refuse_unsafe(connection, place)
        version = _version_of(connection, place)

        if version is None:
            make_schema(connection, place)
            return f"the schema deslaunch was made, version {SCHEMA_VERSION}"

        if version == SCHEMA_VERSION:
            return f"the schema deslaunch has version {version}: nothing to do"

        what = "the schema deslaunch can't be brought up to date: "

        with told_of(place, what, f"grants: {HELP}"), connection.transaction():
            connection.execute("LOCK TABLE deslaunch.version IN ACCESS EXCLUSIVE MODE")
            version = _version_of(connection, place) or version  # another may have done it
            query = load_statements("postgres_queries.sql")["at_work"]

            if found := connection.execute(query.encode()).fetchall():
                told = f"{place}: launchers are at work: {', '.join(name for (name,) in found)}"
                raise errors.LedgerLocked(told, hint="end them, or wait until they have ended")

            for older in range(version, SCHEMA_VERSION):
                if older not in UPGRADES:
                    hint = f"there is no way from it to that: {_OTHER_DESLAUNCH}"
                    raise _of_another_version(place, older, hint)

                connection.execute(UPGRADES[older].encode())

            connection.execute("UPDATE deslaunch.version SET number = %s", (SCHEMA_VERSION,))

        return f"the schema deslaunch was brought from version {version} to {SCHEMA_VERSION}"


def schema_sql() -> str:
    """Return the SQL that makes the schema, in one transaction of whoever runs it."""
    return (Path(__file__).parent / "postgres_schema.sql").read_text("utf-8")


def list_batches(url: str, place: str) -> list[BatchListed]:
    """Return the batches of a database, the newest first.

    Raises:
        LedgerError: it can't be read.
        LedgerMissing: it has no schema ``deslaunch``.
    """
    with connect(url, place) as connection:
        if not has_schema(connection, place):
            raise errors.LedgerMissing(
                f"{place}: the database has no batches",
                hint="make one: deslaunch run MANIFEST --ledger URL#NAME",
            )

        query = load_statements("postgres_queries.sql")["batches"]

        with told_of(place):
            found = connection.execute(query.encode()).fetchall()
            return [BatchListed._make(row) for row in found]


def first_line(error: Exception) -> str:
    """Return an error's first line: the others repeat a statement, or point into it."""
    line = next(iter(str(error).splitlines()), type(error).__name__)
    return line.removeprefix("connection failed: ")
