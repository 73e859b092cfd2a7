"""A connection to PostgreSQL itself, and the schema ``deslaunch`` of a database.

What would lose a commit without a word is refused: a pooler, a server that does not sync.
"""

import os
import re
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import psycopg
from psycopg.conninfo import conninfo_to_dict

from deslaunch import errors
from deslaunch.ledger.store import load_statements
from deslaunch.model import printed

SCHEMA_VERSION: Final = 1

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
    "search_path": "deslaunch",
    "TimeZone": "UTC",
    "synchronous_commit": "on",
    "jit": "off",
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",  # a batch is a part of its tables, and new ones have no statistics
    "tcp_keepalives_idle": 5,
    "tcp_keepalives_interval": 3,
    "tcp_keepalives_count": 3,
    "tcp_user_timeout": 15_000,
    "client_connection_check_interval": 2_000,
}
_OPTIONS: Final = " ".join(f"-c {name}={value}" for name, value in _SETTINGS.items())

_CAUSES: Final = (
    (r"could not translate host name", "check the host's name in the URL"),
    (r"Connection refused|No such file", "check host and port in the URL, and that it is running"),
    (
        r"password|authentication failed|pg_hba",
        "set PGPASSWORD, or write the password to ~/.pgpass; it never stands on a command line",
    ),
    (r"database .* does not exist", "create it: createdb NAME, or check its name in the URL"),
    (r"timeout|timed out", "check host and port in the URL, and what filters packets on the way"),
)

_IS_THERE: Final = "SELECT to_regclass('deslaunch.version') IS NOT NULL"


class Server(NamedTuple):
    """What tells one server, and its history, from another.

    Attributes:
        identifier: of its data.
        timeline: of its log; another one after a failover. ``""`` of a standby.
    """

    identifier: str
    timeline: str


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


def connect(url: str, place: str) -> psycopg.Connection[Any]:
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
            f"{place}: is no URL that libpq takes",
            hint="write postgresql://user@host:port/database#NAME, and % in a password as %25",
        )

    known["options"] = f"{known.get('options') or ''} {_OPTIONS}".strip()
    parameters: dict[str, Any] = {**_KEEPALIVE, **known, "application_name": APPLICATION}

    try:
        connection = psycopg.connect(**parameters, autocommit=True, client_encoding="utf8")
        [(pid,)] = connection.execute("SELECT pg_backend_pid()").fetchall()
    except psycopg.Error as exc:
        hints = (hint for pattern, hint in _CAUSES if re.search(pattern, str(exc)))
        raise errors.LedgerError(
            f"{place}: {first_line(exc)}", hint=next(hints, "check the URL, and the server's log")
        ) from exc

    if pid != connection.info.backend_pid:
        connection.close()
        raise errors.LedgerError(
            f"{place}: a pooler stands between deslaunch and PostgreSQL; locks and settings of a "
            "session are lost there",
            hint="name host and port of PostgreSQL itself",
        )

    return connection


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
    """Refuse to write where that can't be, or would not last.

    Raises:
        LedgerError: a standby, a session that only reads, or a server that does not sync.
    """
    [(is_standby, is_read_only, fsync)] = connection.execute(
        "SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on', "
        "current_setting('fsync')"
    ).fetchall()

    if is_standby:
        raise errors.LedgerError(
            f"{place}: the server is a standby, which only reads",
            hint="name the primary; of several hosts: ?target_session_attrs=read-write",
        )

    if is_read_only:
        raise errors.LedgerError(
            f"{place}: this session may only read (default_transaction_read_only)",
            hint="let the role, or the database, write",
        )

    if fsync != "on":
        raise errors.LedgerError(
            f"{place}: the server has fsync = off: a crash would lose what was recorded",
            hint="set fsync = on in postgresql.conf, and reload it",
        )


# The schema.


def has_schema(connection: psycopg.Connection[Any], place: str) -> bool:
    """Return True if the schema is there, in the version that is known.

    Raises:
        LedgerForeign: it is older, or newer.
        LedgerError: the role may not read it.
    """
    try:
        if connection.execute(_IS_THERE).fetchall() == [(False,)]:  # refused without USAGE
            return False

        [(version,)] = connection.execute("SELECT number FROM deslaunch.version").fetchall()
    except psycopg.Error as exc:
        raise errors.LedgerError(f"{place}: {first_line(exc)}", hint=f"grants: {HELP}") from exc

    if version == SCHEMA_VERSION:
        return True

    what = f"{place}: the schema deslaunch has version {version}, this deslaunch knows "
    newer = "use the version of deslaunch that made it, or a newer one"
    older = f"bring it up to date: {printed('upgrade', place)}"
    raise errors.LedgerForeign(
        f"{what}{SCHEMA_VERSION}", hint=older if version < SCHEMA_VERSION else newer
    )


def make_schema(connection: psycopg.Connection[Any], place: str) -> None:
    """Make the schema where it is missing; two at once are no error.

    Raises:
        LedgerError: the role may not.
        LedgerForeign: there is another version.
    """
    if has_schema(connection, place):
        return

    try:
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", SCHEMA_LOCK)

            if connection.execute(_IS_THERE).fetchall() == [(False,)]:
                connection.execute(schema_sql().encode())
    except psycopg.Error as exc:
        raise errors.LedgerError(
            f"{place}: the schema deslaunch can't be made: {first_line(exc)}",
            hint=f"let a role make it that may: {printed('upgrade', '--sql')} | psql DATABASE; "
            f"grants: {HELP}",
        ) from exc


def upgrade(url: str, place: str) -> str:
    """Make the schema, or bring it up to date; return what was done.

    Raises:
        LedgerError: the role may not.
        LedgerForeign: it is newer, or of a version that there is no way from.
    """
    with connect(url, place) as connection:
        refuse_unsafe(connection, place)

        if has_schema(connection, place):
            return f"the schema deslaunch has version {SCHEMA_VERSION}: nothing to do"

        make_schema(connection, place)
        return f"the schema deslaunch was made, version {SCHEMA_VERSION}"


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
            raise errors.LedgerMissing(f"{place}: the database has no batches")

        query = load_statements("postgres_queries.sql")["batches"].replace("?", "%s")
        return [BatchListed._make(row) for row in connection.execute(query, (LOCKS,)).fetchall()]


def first_line(error: Exception) -> str:
    """Return an error's first line: the others repeat a statement, or point into it."""
    return next(iter(str(error).splitlines()), type(error).__name__)
