"""The deslaunch command as a process, and a simulator beside it: what the tests of the
command line share."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from anyio.from_thread import start_blocking_portal

from deslaunch.simulator import Simulator

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DESLAUNCH = str(Path(sys.executable).with_name("deslaunch"))
POS_USAGE = "43f87799-62c6-4001-92f9-6b3df816a6d6"
TOKEN = "s3cret/tok+en=="
OTHER_TOKEN = "0ther/s3cret+tok=="


def unprivileged() -> list[str]:
    """Return what to put before a command so that file modes hold for root too."""
    if os.geteuid():
        return []

    setpriv = shutil.which("setpriv")

    if setpriv is None:
        pytest.skip("root may write everywhere, and there is no setpriv")

    return [setpriv, "--bounding-set=-dac_override,-dac_read_search"]


@dataclass(frozen=True)
class Workplace:
    """A folder, a simulator at work in it, and the environment that leads to it."""

    folder: Path
    environment: dict[str, str]
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *arguments: str, token: str | None = TOKEN) -> subprocess.Popen[str]:
        """Start a command."""
        environment = self.environment | ({"DES_TOKEN": token} if token else {})
        process = subprocess.Popen(
            [DESLAUNCH, *arguments],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def run(
        self, *arguments: str, token: str | None = TOKEN, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        environment = self.environment | ({"DES_TOKEN": token} if token else {})
        return subprocess.run(
            [DESLAUNCH, *arguments],
            cwd=self.folder,
            env=environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    def shell(self, line: str) -> subprocess.CompletedProcess[str]:
        """Run a line that was printed for a person to type, deslaunch being found."""
        path = f"{Path(DESLAUNCH).parent}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            ["sh", "-c", line],
            cwd=self.folder,
            env=self.environment | {"DES_TOKEN": TOKEN, "PATH": path},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    def json(self, *arguments: str) -> Any:
        """Return what a command prints with --json."""
        return json.loads(self.run(*arguments, "--json").stdout)

    def end(self) -> None:
        """End what a failed test left running."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.communicate(timeout=10)

    def manifest(self, count: int, name: str = "night.jsonl", *, first: int = 1) -> Path:
        """Write a manifest of distinct rows; row n asks for DBGenFrom n."""
        path = self.folder / name
        rows = (
            {"key": f"row-{n}", "jobId": POS_USAGE, "parameters": {"DBGenFrom": n}}
            for n in range(first, first + count)
        )
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return path

    @property
    def log(self) -> list[dict[str, Any]]:
        """The runs that the simulator started: the judge."""
        path = self.folder / "runs.jsonl"
        text = path.read_text() if path.exists() else ""
        whole, _, _ = text.rpartition("\n")  # the last line may be half written
        return [json.loads(line) for line in whole.splitlines()]

    @property
    def logged_rows(self) -> list[int]:
        """The rows that were started, in the log's order; a row stands for each of its runs."""
        return [int(run["parameters"]["DBGenFrom"]["valueStringEncoded"]) for run in self.log]


@contextmanager
def workplace(
    folder: Path, script: Mapping[str, Any] | None = None, tokens: str = TOKEN
) -> Iterator[Workplace]:
    """Run a simulator in a thread of its own, and give a place to work with it."""
    made = Simulator(script=script, log=folder / "runs.jsonl", tokens=tokens.split())

    with start_blocking_portal() as portal, portal.wrap_async_context_manager(made) as simulator:
        place = Workplace(folder, _clean_environment(folder) | {"DES_BASE_URL": simulator.base_url})

        try:
            yield place
        finally:
            place.end()


def _clean_environment(folder: Path) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DES_", "DESLAUNCH_"))
    }
    return kept | {
        "DESLAUNCH_CACHE_DIR": str(folder / "cache"),
        "NO_COLOR": "1",
        "XDG_CONFIG_HOME": str(folder / "config"),
    }
