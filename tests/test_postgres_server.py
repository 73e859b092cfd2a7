"""Promise: tests of PostgreSQL leave no server behind, and are not left out in silence."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from postgres import wait_until

if TYPE_CHECKING:
    from postgres import Server

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parent

KILLED = """
import os, signal
from postgres import Server
server = Server()
print(server.port, server.folder, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""

TEST = """
import pytest

@pytest.mark.parametrize("number", range(3))
def test_needs_a_database(database, number):
    pass
"""

NOTHING_INSTALLED = "import postgres; postgres.programs = lambda: None"


def test_a_killed_test_process_leaves_no_server_and_no_folder(postgres: Server) -> None:
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    command = [sys.executable, "-c", KILLED]
    process = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    assert process.stdout, process.stderr
    port, folder = process.stdout.split()
    wait_until(lambda: not Path(folder).exists())

    with socket.socket() as client, pytest.raises(ConnectionRefusedError):
        client.connect(("127.0.0.1", int(port)))


@pytest.mark.parametrize(
    ("required", "code", "line"),
    [
        pytest.param(
            False,
            0,
            "PostgreSQL is not installed: 3 tests of the shared ledger were SKIPPED; "
            "install Debian's package postgresql",
            id="at a developer's",
        ),
        pytest.param(
            True,
            1,
            "Failed: PostgreSQL is not installed; install Debian's package postgresql",
            id="in CI",
        ),
    ],
)
def test_where_there_is_no_postgresql_it_is_said(
    tmp_path: Path, required: bool, code: int, line: str
) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    (tmp_path / "test_of_postgresql.py").write_text(TEST)
    (tmp_path / "nothing_installed.py").write_text(NOTHING_INSTALLED)
    shutil.copy(TESTS / "conftest.py", tmp_path)

    environment = {**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{tmp_path}"}
    environment.pop("REQUIRE_POSTGRESQL", None)

    if required:
        environment["REQUIRE_POSTGRESQL"] = "1"

    command = [sys.executable, "-m", "pytest", "-p", "nothing_installed", "--numprocesses", "1"]
    process = subprocess.run(
        command, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    told = [each.removeprefix("E").strip() for each in process.stdout.splitlines()]
    assert (process.returncode, line in told) == (code, True), process.stdout
