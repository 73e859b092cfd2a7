"""Promise: where a batch in PostgreSQL can't be used, that is told, with what to do; none is sent.

One line says what is wrong and where, the next one what to do. The exit code is 7; 2 where the
place is written in a wrong way, 8 where others are at work.
"""

from __future__ import annotations

import asyncio
import shlex
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import psycopg
import pytest
from commands import Ended, call
from ledgers import checked, make
from postgres import LAUNCHER, PASSWORD, SUPERUSER, wait_until
from proxy import Proxy, hide_process
from stage import TOKEN, ended

from deslaunch import ledger
from deslaunch.ledger import postgres_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from blockbuster import BlockBuster
    from postgres import Server
    from stage import Workplace

pytestmark = pytest.mark.slow

READERS: Final = ["status", "results", "log", "report -o page.html"]
WRITERS: Final = ["resume", "watch", "resolve row-1 --not-started"]
CHECK_SERVER: Final = "check host and port in the URL, and that the server is running"
WHICH_PASSWORD: Final = (
    "set PGPASSWORD, or write the password to ~/.pgpass; never on a command line"
)
NO_POOLER: Final = "use host and port of PostgreSQL itself, not of a pooler"
MADE: Final = "the schema deslaunch was made, version 1"
KNOWN: Final = "the schema deslaunch has version 1: nothing to do"
GRANTS: Final = "grants: see: deslaunch help postgres"


@pytest.fixture(autouse=True)
def folder(
    place: Workplace, monkeypatch: pytest.MonkeyPatch, no_blocking_calls: BlockBuster
) -> Iterator[Workplace]:
    """A manifest of one row, in the folder in which commands run; nothing of it is sent."""
    no_blocking_calls.deactivate()  # a command does one thing, and imports what it needs for it
    place.manifest(1)
    monkeypatch.chdir(place.folder)
    monkeypatch.setenv("DES_BASE_URL", place.simulator.base_url)
    monkeypatch.setenv("DES_TOKEN", TOKEN)
    yield place
    assert not place.simulator.runs


@pytest.fixture
def batch(database: str, place: Workplace) -> str:
    """A batch of which nothing was sent."""

    async def make_it() -> None:
        await (await make(f"{database}#night", [checked(1, "row-1")])).aclose()

    asyncio.run(make_it())
    return f"{database}#night"


def told(place: str, what: str, hint: str, code: int = 7) -> Ended:
    return Ended(code, "", f"error: {place}: {what}\n  {hint}\n")


def tell(line: str, place: str) -> Ended:
    """Run a command about a batch."""
    command, *rest = shlex.split(line)
    return call(command, place, *rest)


def run(place: str) -> Ended:
    return call("run", "night.jsonl", "--ledger", place)


@pytest.mark.parametrize(
    ("password", "url", "what", "hint"),
    [
        pytest.param(
            PASSWORD,
            "postgresql://launcher@nowhere.invalid/exports",
            "failed to resolve host 'nowhere.invalid': [Errno -2] Name or service not known",
            "check the host's name in the URL",
            id="no such host",
        ),
        pytest.param(
            PASSWORD,
            "postgresql://launcher@now..here/exports",
            "encoding with 'idna' codec failed (UnicodeError: label empty or too long)",
            "check the host's name in the URL",
            id="a host that can't be",
        ),
        pytest.param(
            PASSWORD,
            "postgresql://launcher@127.0.0.1:1/exports",
            'connection to server at "127.0.0.1", port 1 failed: Connection refused',
            CHECK_SERVER,
            id="refused",
        ),
        pytest.param(
            PASSWORD,
            "postgresql:///exports?host=/nowhere",
            'connection is bad: connection to server on socket "/nowhere/.s.PGSQL.5432" failed: '
            "No such file or directory",
            CHECK_SERVER,
            id="no socket",
        ),
        pytest.param(
            "wr0ng",
            "postgresql://launcher@127.0.0.1:{port}/postgres",
            'connection to server at "127.0.0.1", port {port} failed: FATAL:  password '
            'authentication failed for user "launcher"',
            WHICH_PASSWORD,
            id="wrong password",
        ),
        pytest.param(
            None,
            "postgresql://launcher@127.0.0.1:{port}/postgres",
            'connection to server at "127.0.0.1", port {port} failed: fe_sendauth: no password '
            "supplied",
            WHICH_PASSWORD,
            id="no password",
        ),
        pytest.param(
            PASSWORD,
            "postgresql://launcher@127.0.0.1:{port}/ex%20ports",
            'connection to server at "127.0.0.1", port {port} failed: FATAL:  database "ex ports" '
            "does not exist",
            "check its name in the URL, or create it: createdb -h 127.0.0.1 -p {port} 'ex ports'",
            id="no such database",
        ),
    ],
)
def test_what_cannot_be_reached(
    password: str | None,
    url: str,
    what: str,
    hint: str,
    postgres: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, what, hint = (text.format(port=postgres.port) for text in (url, what, hint))
    monkeypatch.delenv("PGPASSWORD")

    if password is not None:
        monkeypatch.setenv("PGPASSWORD", password)

    shown = told(f"{url}#night", what, hint)
    assert run(f"{url}#night") == shown
    assert [tell(line, f"{url}#night") for line in (*READERS, *WRITERS)] == [shown] * 7
    assert [call(command, url) for command in ("status", "upgrade")] == [told(url, what, hint)] * 2


@pytest.mark.parametrize(
    ("given", "what", "hint"),
    [
        pytest.param(
            "#night",
            "#night: names a batch without a database: DESLAUNCH_LEDGER is not set to a URL",
            "set DESLAUNCH_LEDGER to postgresql://user@host/database, or write URL#night",
            id="no database",
        ),
        pytest.param(
            "postgresql://u@h/d",
            "postgresql://u@h/d: names a database without a batch",
            "add #NAME; see its batches: deslaunch status postgresql://u@h/d",
            id="no batch",
        ),
        pytest.param(
            "postgresql://u@h/d#ni ght",
            "'ni ght' is not a batch name: expected 1 to 100 letters, digits, '.', '_' or '-'",
            "write it after the URL: postgresql://user@host/database#night; # in a password as %23",
            id="no name",
        ),
        pytest.param(
            f"postgresql://u@h/d#{'n' * 101}",
            f"'{'n' * 101}' is not a batch name: expected 1 to 100 letters, digits, '.', '_' or "
            "'-'",
            "write it after the URL: postgresql://user@host/database#night; # in a password as %23",
            id="too long a name",
        ),
        pytest.param(
            "postgresql://u@h/d?foo=1#night",
            "postgresql://u@h/d?foo=1#night: is not a URL that libpq accepts",
            "write postgresql://user@host:port/database#NAME, and % in a password as %25",
            id="no such parameter",
        ),
    ],
)
def test_a_place_that_is_none(given: str, what: str, hint: str) -> None:
    shown = Ended(2, "", f"error: {what}\n  {hint}\n")

    assert run(given) == shown
    assert [tell(line, given) for line in ("results", "resume", "watch")] == [shown] * 3


class TestDatabase:
    def test_without_a_batch(self, database: str) -> None:
        missing = told(
            f"{database}#night",
            "there is no such batch",
            f"the database has: deslaunch status {database}",
        )
        none = told(
            database,
            "the database has no batches",
            "make one: deslaunch run MANIFEST --ledger URL#NAME",
        )

        assert [tell(line, f"{database}#night") for line in (*READERS, *WRITERS)] == [missing] * 7
        assert call("status", database) == none
        assert call("upgrade", database).code == 0
        assert call("status", database) == Ended(0, "", "there are no batches\n")
        assert tell("resume", f"{database}#night") == missing

    def test_in_which_the_role_may_make_no_schema(self, postgres: Server) -> None:
        what = "the schema deslaunch can't be made: permission denied for database postgres"
        made = f"psql -h 127.0.0.1 -p {postgres.port} -d postgres"
        hint = f"let a role make it that may: deslaunch upgrade --sql | {made}; {GRANTS}"

        assert run(f"{postgres.url}#night") == told(f"{postgres.url}#night", what, hint)
        assert call("upgrade", postgres.url) == told(postgres.url, what, hint)

    def test_whose_schema_another_role_made_as_it_is_told(
        self, database: str, postgres: Server, place: Workplace
    ) -> None:
        postgres.sql(f"ALTER DATABASE {database.rpartition('/')[2]} OWNER TO {SUPERUSER}")
        hint = run(f"{database}#night").err.splitlines()[1]
        command = hint.partition(": ")[2].partition("; ")[0]
        place.environment["PGUSER"] = SUPERUSER

        done = place.shell(command)

        assert done.returncode == 0, done
        assert run(f"{database}#night") == told(
            f"{database}#night", "permission denied for schema deslaunch", GRANTS
        )

    def test_with_an_empty_schema_that_the_role_owns(self, database: str, postgres: Server) -> None:
        postgres.sql(f"ALTER DATABASE {database.rpartition('/')[2]} OWNER TO {SUPERUSER}")
        postgres.sql(f"CREATE SCHEMA deslaunch AUTHORIZATION {LAUNCHER}", database=database)

        assert call("upgrade", database) == Ended(0, "", f"{database}: {MADE}\n")

    def test_in_which_the_role_may_do_nothing(self, database: str, postgres: Server) -> None:
        assert call("upgrade", database).code == 0
        denied = "REVOKE ALL ON {} FROM launcher"
        statements = [
            ("TABLE deslaunch.batches", "permission denied for table batches", GRANTS[8:]),
            ("TABLE deslaunch.version", "permission denied for table version", GRANTS),
            ("SCHEMA deslaunch", "permission denied for schema deslaunch", GRANTS),
        ]
        postgres.sql(f"ALTER SCHEMA deslaunch OWNER TO {SUPERUSER}", database=database)

        for name, what, hint in statements:
            if "TABLE" in name:
                postgres.sql(f"ALTER {name} OWNER TO {SUPERUSER}", database=database)
                postgres.sql(f"GRANT USAGE ON SCHEMA deslaunch TO {LAUNCHER}", database=database)

            postgres.sql(denied.format(name), database=database)
            shown = told(f"{database}#night", what, hint)

            assert [run(f"{database}#night"), tell("resume", f"{database}#night")] == [shown] * 2
            assert call("status", database) == told(database, what, hint)

    @pytest.mark.parametrize(
        ("version", "hint"),
        [
            pytest.param(0, "bring it up to date: deslaunch upgrade '{place}'", id="older"),
            pytest.param(
                99, "use the version of deslaunch that made it, or a newer one", id="newer"
            ),
        ],
    )
    def test_with_a_schema_of_another_version(
        self,
        version: int,
        hint: str,
        database: str,
        postgres: Server,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        assert call("upgrade", database).code == 0
        postgres.sql("UPDATE deslaunch.version SET number = %s", version, database=database)
        what = f"the schema deslaunch has version {version}, this deslaunch supports 1"
        monkeypatch.setenv("DESLAUNCH_LEDGER", database)

        for place in (f"{database}#night", "#night"):
            shown = told(place, what, hint.format(place=place))

            assert run(place) == shown
            assert [tell(line, place) for line in (*READERS, *WRITERS)] == [shown] * 7

        assert call("status") == told("DESLAUNCH_LEDGER", what, hint.format(place="#"))


def answer_once(reply: bytes) -> int:
    """Let a port say this to the next client that has said something; return the port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listener, listener.accept()[0] as client:
            client.recv(8)  # the wish for TLS
            client.sendall(b"N")
            client.recv(4096)
            client.sendall(reply)

    threading.Thread(target=serve, daemon=True).start()
    return int(listener.getsockname()[1])


def refuses_options(text: str, hint: str) -> None:
    """Meet a server that says this of a connection's options; see what is told."""
    what = f"SFATAL\0C08P01\0M{text}\0\0".encode()
    port = answer_once(b"E" + (len(what) + 4).to_bytes(4, "big") + what)
    place = f"postgresql://launcher@127.0.0.1:{port}/exports#night"
    failed = f'connection to server at "127.0.0.1", port {port} failed: FATAL:  {text}'

    assert run(place) == told(place, failed, hint)


class TestPooler:
    WHAT: Final = (
        "a connection pooler is between deslaunch and PostgreSQL, and session locks don't work "
        "through it"
    )

    def test_is_refused(self, database: str, postgres: Server) -> None:
        name = database.rpartition("/")[2]

        with Proxy(postgres.port, hide_process) as pooler:
            url = f"postgresql://launcher@127.0.0.1:{pooler.port}/{name}"
            shown = told(f"{url}#night", self.WHAT, NO_POOLER)

            assert [run(f"{url}#night"), tell("resume", f"{url}#night")] == [shown] * 2
            assert call("status", url) == told(url, self.WHAT, NO_POOLER)
            assert call("upgrade", url) == told(url, self.WHAT, NO_POOLER)

    def test_that_takes_no_options_is_known(self) -> None:
        refuses_options("unsupported startup parameter: options", NO_POOLER)


class TestServer:
    """One on which nothing is written, or where it would not last."""

    def test_that_does_not_sync(self, batch: str, postgres: Server) -> None:
        postgres.set(fsync="off")
        what = "the server has fsync = off: a crash would lose what was recorded"
        hint = "set fsync = on in postgresql.conf, and reload it"

        self.refuses_to_write(batch, what, hint)

    def test_whose_role_may_only_read(self, batch: str, postgres: Server) -> None:
        postgres.set(default_transaction_read_only="on")
        what = "this session may only read (default_transaction_read_only)"
        hint = (
            "let the role, or the database, write: ALTER ROLE … SET "
            "default_transaction_read_only = off"
        )

        self.refuses_to_write(batch, what, hint)

    def test_that_is_a_standby(self, batch: str, postgres: Server) -> None:
        postgres.stand_by()
        what = "the server is a standby, which only reads"
        hint = "use the primary; with several hosts add ?target_session_attrs=read-write"

        self.refuses_to_write(batch, what, hint)

    def test_that_is_too_old(self) -> None:
        setting = 'unrecognized configuration parameter "client_connection_check_interval"'

        refuses_options(setting, "use PostgreSQL 14 or newer")

    @pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
    def test_whose_database_cannot_hold_every_text(
        self, encoding: str, database: str, postgres: Server
    ) -> None:
        name = database.rpartition("/")[2]
        postgres.sql(f"DROP DATABASE {name}")
        postgres.sql(
            f"CREATE DATABASE {name} OWNER {LAUNCHER} ENCODING '{encoding}' TEMPLATE template0"
        )
        shown = (
            f"the database's encoding is {encoding}, which can't hold every text",
            "make another: createdb --encoding=UTF8 --template=template0 NAME",
        )

        assert run(f"{database}#night") == told(f"{database}#night", *shown)
        assert call("upgrade", database) == told(database, *shown)

    def test_whose_settings_for_the_role_are_others(
        self, batch: str, postgres: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        postgres.set(default_transaction_isolation="serializable", synchronous_commit="off")
        monkeypatch.setenv("PGOPTIONS", "-c work_mem=5MB -c search_path=public")
        url = batch.replace("#", "?client_encoding=latin1#")
        names = ["transaction_isolation", "work_mem", "search_path", "client_encoding"]
        names += ["synchronous_commit"]

        with postgres_server.connect(url.partition("#")[0], url) as connection:
            found = [connection.execute(f"SHOW {name}".encode()).fetchone() for name in names]

        assert tell("status", url).code == 0
        assert found == [("read committed",), ("5MB",), ("deslaunch",), ("UTF8",), ("on",)]

    def refuses_to_write(self, batch: str, what: str, hint: str) -> None:
        database = batch.partition("#")[0]
        shown = told(batch, what, hint)

        assert [run(batch), run(f"{database}#other")] == [
            shown,
            told(f"{database}#other", what, hint),
        ]
        assert [tell(line, batch) for line in WRITERS] == [shown] * 3
        assert call("upgrade", database) == told(database, what, hint)
        assert [tell(line, batch).code for line in ("status", "results")] == [0, 0]
        assert call("status", database).code == 0


class TestUpgrade:
    def test_makes_the_schema_once(self, database: str) -> None:
        assert [call("upgrade", database) for _ in range(2)] == [
            Ended(0, "", f"{database}: {MADE}\n"),
            Ended(0, "", f"{database}: {KNOWN}\n"),
        ]

    def test_by_several_at_once_is_no_error(self, database: str, place: Workplace) -> None:
        upgrades = [place.start("upgrade", database) for _ in range(4)]
        made = {(0, f"{database}: {text}\n") for text in (MADE, KNOWN)}

        assert {(one.returncode, one.stderr) for one in map(ended, upgrades)} <= made
        assert call("status", database) == Ended(0, "", "there are no batches\n")

    def test_from_a_version_without_a_way_is_refused(self, database: str, postgres: Server) -> None:
        assert call("upgrade", database).code == 0
        postgres.sql("UPDATE deslaunch.version SET number = 0", database=database)

        assert call("upgrade", database) == told(
            database,
            "the schema deslaunch has version 0, this deslaunch supports 1",
            "there is no way from it to that: use the version of deslaunch that made it",
        )

    async def test_waits_for_launchers(
        self, database: str, postgres: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        launcher = await make(f"{database}#night", 1)
        monkeypatch.setattr(postgres_server, "SCHEMA_VERSION", 3)
        changes = {1: "CREATE TABLE deslaunch.a ()", 2: "DROP TABLE deslaunch.a"}
        monkeypatch.setattr(postgres_server, "UPGRADES", changes)

        refused = await asyncio.to_thread(call, "upgrade", database)
        await launcher.aclose()
        done = [await asyncio.to_thread(call, "upgrade", database) for _ in range(2)]

        assert refused == told(
            database,
            f"launchers are at work: {postgres_server.APPLICATION}",
            "end them, or wait until they have ended",
            code=8,
        )
        assert done == [
            Ended(0, "", f"{database}: the schema deslaunch was brought from version 1 to 3\n"),
            Ended(0, "", f"{database}: the schema deslaunch has version 3: nothing to do\n"),
        ]
        assert postgres.sql("SELECT number FROM deslaunch.version", database=database) == [(3,)]

    def test_is_noticed_by_a_launcher_that_begins_meanwhile(
        self, batch: str, postgres: Server
    ) -> None:
        url = f"{postgres.superuser_url.rpartition('/')[0]}/{batch.partition('#')[0][-13:]}"

        def is_held_up() -> bool:
            return postgres.sql("SELECT 1 FROM pg_locks WHERE NOT granted") != []

        with ThreadPoolExecutor(1) as pool, psycopg.connect(url) as upgrade:
            upgrade.execute("SELECT 1 FROM deslaunch.batches FOR UPDATE")
            launcher = pool.submit(tell, "resume", batch)
            wait_until(is_held_up)
            upgrade.execute("UPDATE deslaunch.version SET number = 2")
            upgrade.commit()

            assert launcher.result() == told(
                batch,
                "the schema deslaunch has version 2, this deslaunch supports 1",
                "use the version of deslaunch that made it, or a newer one",
            )


class TestExtra:
    def test_that_is_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "psycopg", None)

        for name in ("postgres", "postgres_server"):
            monkeypatch.delitem(sys.modules, f"deslaunch.ledger.{name}", raising=False)
            monkeypatch.delattr(ledger, name, raising=False)

        shown = Ended(
            2,
            "",
            "error: a ledger in PostgreSQL needs psycopg, which is not installed\n"
            "  install it with: pip install 'deslaunch[postgres]'\n",
        )
        url = "postgresql://u@h/d"

        assert run(f"{url}#night") == shown
        assert [tell(line, f"{url}#night") for line in (*READERS, *WRITERS)] == [shown] * 7
        assert [call("status", url), call("upgrade", url)] == [shown] * 2
