"""Promise: a database's password stands in nothing that deslaunch prints, keeps or raises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import pytest
from commands import Ended, call
from ledgers import make
from postgres import PASSWORD
from stage import TOKEN

import deslaunch
from deslaunch.ledger.ledger import open_ledger
from deslaunch.ledger.place import parse_place

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from blockbuster import BlockBuster
    from postgres import Server
    from stage import Workplace

pytestmark = pytest.mark.slow

ENCODED: Final = quote(PASSWORD, safe="")
WRONG: Final = "kn0wn-to-nobody"

MALFORMED: Final = [
    pytest.param(f"postgresql://u:{WRONG}@x@127.0.0.1:1/d#night", id="an at sign"),
    pytest.param(f"postgresql://u:x/{WRONG}@127.0.0.1:1/d#night", id="a slash"),
    pytest.param(f"postgresql://u:1/{WRONG}@127.0.0.1:1/d#night", id="a slash after digits"),
    pytest.param(f"postgresql://u:x#{WRONG}@127.0.0.1:1/d#night", id="a hash sign"),
    pytest.param(f"postgresql://u:1#{WRONG}@127.0.0.1:1/d#night", id="a hash sign after digits"),
    pytest.param(f"postgresql://u:{WRONG}%zz@127.0.0.1:1/d#night", id="a percent sign"),
    pytest.param(f"postgresql://u:{WRONG}@127.0.0.1:port/d#night", id="no port"),
    pytest.param(f"postgresql://u:{WRONG}@127.0.0.1:1/d?x#night", id="half a parameter"),
    pytest.param(f"postgresql://u:{WRONG}@127.0.0.1:1/d?xyz=1#night", id="another parameter"),
    pytest.param(f"postgresql://u:{WRONG}@127.0.0.1:1/d#ni ght", id="no name"),
    pytest.param(f"postgresql:/u:{WRONG}@127.0.0.1:1/d#night", id="one slash"),
    pytest.param(f"postgres//u:{WRONG}@127.0.0.1:1/d#night", id="no colon"),
    pytest.param(f"POSTGRESQL://u:{WRONG}@127.0.0.1:1/d#night", id="capitals"),
    pytest.param(f"postgresql+psycopg://u:{WRONG}@127.0.0.1:1/d#night", id="of SQLAlchemy"),
    pytest.param(f"jdbc:postgresql://127.0.0.1:1/d?password={WRONG}#night", id="of JDBC"),
    pytest.param(f"host=127.0.0.1 port=1 password={WRONG}#night", id="no URL"),
    pytest.param(f"u:{WRONG}@127.0.0.1:1/d#night", id="no scheme"),
]

WELL_FORMED: Final = [
    pytest.param(f"postgresql://u:{WRONG}@127.0.0.1:1/d#night", id="before the host"),
    pytest.param(f"postgresql://:{WRONG}@127.0.0.1:1/d#night", id="without a user"),
    pytest.param(f"postgresql://u:a:{WRONG}@127.0.0.1:1/d#night", id="with a colon"),
    pytest.param(f"postgresql://u:x?{WRONG}@127.0.0.1:1/d#night", id="with a question mark"),
    pytest.param(f"postgresql://u@127.0.0.1:1/d?password={WRONG}#night", id="as a parameter"),
    pytest.param(f"postgresql://u@127.0.0.1:1/d?pass%77ord={WRONG}#night", id="encoded"),
    pytest.param(f"postgresql://127.0.0.1:1,[::1]:1/d?x=1&password={WRONG}#night", id="two hosts"),
    pytest.param(f"postgresql://u@127.0.0.1:1/d?sslpassword={WRONG}#night", id="of a key file"),
]

COMMANDS: Final = [
    *("status", "status --json", "log", "results", "report", "upgrade", "status #", "resume #x"),
    *("run night.csv", "run night.csv --resume", "resume", "watch"),
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_blocking_calls: BlockBuster) -> None:
    no_blocking_calls.deactivate()  # a command does one thing, and imports what it needs for it
    (tmp_path / "night.csv").write_text(
        "key,jobId,DBGenFrom\na,43f87799-62c6-4001-92f9-6b3df816a6d6,1\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DES_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("DES_TOKEN", TOKEN)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize("place", [*MALFORMED, *WELL_FORMED])
def test_no_password_of_the_variable_is_printed(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DESLAUNCH_LEDGER", place)

    for line in ("status", "upgrade", "status #night"):
        ended = call(*line.split())

        assert ended.code in {2, 7}
        assert WRONG not in ended.out + ended.err
        assert ended.err.startswith("error: ")


@pytest.mark.parametrize("place", [MALFORMED[1], WELL_FORMED[0]])
@pytest.mark.parametrize("line", COMMANDS)
def test_no_command_prints_it(line: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DESLAUNCH_LEDGER", place)

    ended = call(*line.split())

    assert (ended.code in {2, 7}, WRONG in ended.out + ended.err) == (True, False), ended.err


@pytest.mark.parametrize("place", [*MALFORMED, *WELL_FORMED])
def test_a_password_that_is_typed_is_refused_and_not_repeated(place: str) -> None:
    for command in ("status", "upgrade", "run night.csv --ledger"):
        ended = call(*command.split(), place)

        assert (ended.code, WRONG in ended.out + ended.err) == (2, False), ended.err


def test_where_a_password_is_to_go_is_told() -> None:
    ended = call("status", f"postgresql://u:{WRONG}@127.0.0.1:1/d#night")

    assert ended == Ended(
        2,
        "",
        "error: Invalid value for 'LEDGER': a password does not belong on a command line: set "
        "PGPASSWORD or DESLAUNCH_LEDGER, or write it to ~/.pgpass\n"
        "  see: deslaunch status --help\n",
    )


def test_how_a_password_is_to_be_written_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DESLAUNCH_LEDGER", f"postgresql://u:x/{WRONG}@127.0.0.1:1/d#night")

    assert call("status") == Ended(
        2,
        "",
        "error: the ledger (LEDGER or DESLAUNCH_LEDGER) is neither a path nor a URL that libpq "
        "accepts: expected postgresql://user@host:port/database#NAME\n"
        "  in a name or password write @ : / ? # % as %40 %3A %2F %3F %23 %25; write a path with "
        "these characters as ./PATH\n",
    )


@pytest.mark.parametrize("place", [*MALFORMED, *WELL_FORMED])
async def test_no_error_of_the_library_repeats_one(place: str) -> None:
    with pytest.raises(deslaunch.errors.DeslaunchError) as caught:
        await open_ledger(place)

    assert not [e for e in chain(caught.value) if WRONG in f"{e!r} {getattr(e, '__notes__', '')}"]


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        pytest.param("postgresql://u:p@h/d#n", "postgresql://u@h/d#n", id="password"),
        pytest.param("postgres://:p@h#n", "postgres://@h#n", id="no user"),
        pytest.param("postgresql://h:1/d?x=a@b#n", "postgresql://h:1/d?x=a@b#n", id="no password"),
        pytest.param("postgresql://u@h?password=p#n", "postgresql://u@h#n", id="parameter"),
        pytest.param("postgresql:///d?a=1&password=p&b=2#", "postgresql:///d?a=1&b=2#", id="among"),
        pytest.param("postgresql://u@[::1]:1,h:2/d#n", "postgresql://u@[::1]:1,h:2/d#n", id="two"),
    ],
)
def test_a_place_is_shown_without_its_password(place: str, shown: str) -> None:
    assert parse_place(place).shown == shown


@pytest.mark.parametrize(
    "is_parameter", [pytest.param(False, id="user"), pytest.param(True, id="parameter")]
)
def test_a_launch_never_shows_the_password_that_it_uses(
    is_parameter: bool, database: str, postgres: Server, place: Workplace
) -> None:
    name = database.rpartition("/")[2]
    url = f"postgresql://launcher@127.0.0.1:{postgres.port}/{name}?password={ENCODED}"

    if not is_parameter:
        url = f"postgresql://launcher:{ENCODED}@127.0.0.1:{postgres.port}/{name}"

    place.manifest(3)
    place.environment["DESLAUNCH_LEDGER"] = f"{url}#night"
    del place.environment["PGPASSWORD"]
    lines = [
        "run night.jsonl --json --verbose --limit 2",
        "run night.jsonl",
        "status",
        "resume --verbose",
        "status --json",
        "log",
        "results --with-manifest",
        "report -o page.html",
    ]

    told = [place.run(*line.split()) for line in lines]

    assert [one.returncode for one in told] == [5, 7, 0, 0, 0, 0, 0, 0], told
    printed = "".join(one.stdout + one.stderr for one in told)
    kept = (place.folder / "page.html").read_text() + str(everything_in(postgres, database))
    assert not [secret for secret in (PASSWORD, ENCODED) if secret in printed + kept]


async def test_a_ledger_of_the_library_shows_none(database: str) -> None:
    url = database.replace("launcher@", f"launcher:{ENCODED}@")

    async with await make(f"{url}#night", 1) as ledger:
        shown = f"{ledger!r} {ledger.place} {ledger.batch!r} {await ledger.summary()!r}"

    assert ledger.place == f"{database}#night"
    assert not [secret for secret in (PASSWORD, ENCODED) if secret in shown]


def everything_in(postgres: Server, database: str) -> list[Any]:
    tables = postgres.sql(
        "SELECT table_name FROM information_schema.tables "
        "WHERE table_schema = 'deslaunch' AND table_type = 'BASE TABLE'",
        database=database,
    )
    assert len(tables) > 5
    return [
        postgres.sql(f"SELECT t::text FROM deslaunch.{table} t", database=database)
        for (table,) in tables
    ]
