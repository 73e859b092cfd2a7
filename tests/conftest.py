"""What every test stands on: asyncio only, a loop that must not block, and no real DES."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from blockbuster import BlockBuster, BlockBusterFunction
from postgres import PASSWORD, REMEDIES, Server, missing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from stage import Workplace


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Workplace]:
    """A folder with a simulator at work beside it; see stage.py."""
    from stage import workplace  # noqa: PLC0415  # tests of one part load no simulator

    with workplace(tmp_path) as made:
        yield made


@pytest.fixture(params=["sqlite", "postgres"])
def batch_place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a batch is to be, in each database: what is promised holds in both."""
    if request.param == "sqlite":
        return str(tmp_path / "night.ledger.db")

    return f"{request.getfixturevalue('database')}#night"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A PostgreSQL, started by the first test of a process that needs one; see postgres.py."""
    reason = missing()

    if reason and "REQUIRE_POSTGRESQL" in os.environ:
        pytest.fail(f"{reason}; {REMEDIES[reason]}")
    elif reason:
        pytest.skip(reason)

    server = Server()
    yield server
    server.close()


@pytest.fixture
def database(postgres: Server) -> Iterator[str]:
    """The URL of an empty database; PGPASSWORD is set in every test, so it needs no more.

    In the end the server is put in order again, whatever the test did to it.
    """
    yield postgres.new_database()
    postgres.reset()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say aloud that the shared ledger was not tested: nobody reads a list of skipped tests."""
    skipped = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])]

    for reason, remedy in REMEDIES.items():
        count = sum(reason in said for said in skipped)

        if count:
            line = f"{reason}: {count} tests of the shared ledger were SKIPPED; {remedy}"
            terminalreporter.write_line(line, red=True, bold=True)


@pytest.fixture(autouse=True)
def no_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep what this machine is set up for away from the tests, and the tests from it."""
    for name in os.environ:
        if name.startswith(("DES_", "DESLAUNCH_", "PG")):
            monkeypatch.delenv(name)

    monkeypatch.setenv("DESLAUNCH_CACHE_DIR", str(tmp_path / ".user" / "cache"))
    monkeypatch.setenv("DESLAUNCH_STATE_DIR", str(tmp_path / ".user" / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / ".user" / "config"))
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / ".user" / "pgpass"))
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / ".user" / "pg_service.conf"))
    monkeypatch.setenv("PGPASSWORD", PASSWORD)


def _with_syncs(blockbuster: BlockBuster) -> BlockBuster:
    """Add the calls that blockbuster does not know, and that cost a disk's time."""
    for name in ("fsync", "fdatasync"):
        if hasattr(os, name):
            blockbuster.functions[f"os.{name}"] = BlockBusterFunction(None, f"os.{name}")

    return blockbuster


@pytest.fixture(autouse=True)
def no_blocking_calls() -> Iterator[BlockBuster]:
    """Fail a test whose event loop waits for a disk, a process or a name server."""
    blockbuster = _with_syncs(BlockBuster("deslaunch"))
    blockbuster.activate()
    yield blockbuster
    blockbuster.deactivate()
