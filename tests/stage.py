"""What tests of whole launches stand on: a folder, a simulator, and deslaunch as a process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from anyio.from_thread import start_blocking_portal
from judge import Judge

from deslaunch.simulator import Simulator

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from anyio.from_thread import BlockingPortal

DESLAUNCH: Final = str(Path(sys.executable).with_name("deslaunch"))
POS_USAGE: Final = "43f87799-62c6-4001-92f9-6b3df816a6d6"
TOKEN: Final = "s3cret/tok+en=="
OTHER_TOKEN: Final = "0ther/s3cret+tok=="
LIMIT: Final = 100.0
"""Seconds that one command may take; far more than any needs."""

QUICK: Final = ("--max-wait", "0.05")
"""Options with which nobody feels a retry."""

Script = dict[str, Any]

# A shell starts what stands in its background with SIGINT ignored, nohup with SIGHUP, and what is
# started from here would leave it so.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def row(number: int, **more: Any) -> dict[str, Any]:
    """Return a valid row; its key and its first generation tell it from all others."""
    return {
        "key": f"row-{number}",
        "jobId": POS_USAGE,
        "parameters": {"DBGenFrom": number},
        **more,
    }


def rejected_row(number: int) -> dict[str, Any]:
    """Return a row that the schema allows and that DES refuses: both kinds of filter."""
    parameters = {"DBGenFrom": number, "TradingDate": "2026-01-31T00:00:00Z"}
    return row(number, parameters=parameters)


def invalid_row(number: int) -> dict[str, Any]:
    return row(number, parameters={"DBGenFrom": "many"})


def fault(kind: str, *at: int, **more: Any) -> Script:
    """Return a script with one fault; ``at`` are the numbers of start requests."""
    return {"faults": [{"fault": kind, **({"at": list(at)} if at else {}), **more}]}


def clean_environment(folder: Path) -> dict[str, str]:
    """Return this process's environment without what leads to a DES or moves our files."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DES_", "DESLAUNCH_"))
    }
    return kept | {
        "DESLAUNCH_CACHE_DIR": str(folder / "cache"),
        "DESLAUNCH_STATE_DIR": str(folder / "state"),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "NO_COLOR": "1",
    }


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
    """A folder, a simulator at work beside it, and the environment that leads there.

    Attributes:
        folder: the working folder of every command.
        simulator: runs in a thread of its own; its attributes may be read at any time.
        environment: of every command; DES_TOKEN comes on top.
    """

    folder: Path
    simulator: Simulator
    environment: dict[str, str]
    portal: BlockingPortal
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def ledger(self) -> Path:
        """The ledger of ``night.jsonl``."""
        return self.folder / "night.ledger.db"

    @property
    def log(self) -> Path:
        """The simulator's log."""
        return self.folder / "runs.jsonl"

    def write(self, rows: Iterable[Mapping[str, Any]], name: str = "night.jsonl") -> Path:
        """Write a manifest."""
        path = self.folder / name
        path.write_text("".join(f"{json.dumps(one)}\n" for one in rows))
        return path

    def manifest(self, count: int, name: str = "night.jsonl", *, first: int = 1) -> Path:
        """Write a manifest of distinct rows; row n asks for DBGenFrom n."""
        return self.write((row(n) for n in range(first, first + count)), name)

    def start(
        self,
        *arguments: str,
        token: str | None = TOKEN,
        wrap: Iterable[str] = (),
        **more: Any,
    ) -> subprocess.Popen[str]:
        """Start a command; it is ended with the workplace.

        Args:
            arguments: the command line behind ``deslaunch``.
            token: None for no DES_TOKEN.
            wrap: what stands before it: strace and its options.
            more: of :class:`subprocess.Popen`.
        """
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
        process = subprocess.Popen(
            [*wrap, DESLAUNCH, *arguments],
            **{
                "cwd": self.folder,
                "env": self.environment | ({"DES_TOKEN": token} if token else {}),
                "text": True,
                "stderr": subprocess.PIPE,
                "start_new_session": True,
                **streams,
                **more,
            },
        )
        self.processes.append(process)
        return process

    def run(
        self,
        *arguments: str,
        token: str | None = TOKEN,
        stdin: str | None = None,
        wrap: Iterable[str] = (),
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        streams = {} if stdin is None else {"stdin": subprocess.PIPE}
        process = self.start(*arguments, token=token, wrap=wrap, **streams)
        return ended(process, stdin)

    def shell(self, line: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
        """Run a line that was printed for a person to type, deslaunch being found."""
        path = f"{Path(DESLAUNCH).parent}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            ["sh", "-c", line],
            cwd=self.folder,
            env=self.environment | {"DES_TOKEN": token, "PATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )

    def json(self, *arguments: str) -> Any:
        """Return what a command prints with --json."""
        return json.loads(self.run(*arguments, "--json").stdout)

    def wait_for_runs(self, process: subprocess.Popen[str], count: int) -> bool:
        """Return True once the simulator started ``count`` runs, False if the process ended."""
        latest = time.monotonic() + LIMIT

        while (started := len(self.simulator.runs)) < count:
            assert time.monotonic() < latest, f"{started} runs of {count}, and no end"

            with suppress(subprocess.TimeoutExpired):
                process.wait(0.005)
                return False

        return process.poll() is None

    def at_rest(self) -> None:
        """Return once the simulator serves no start any more."""
        simulator = self.simulator
        self.portal.call(simulator.until, lambda: not simulator.in_flight)

    def judge(self, ledger: Path | str | None = None) -> Judge:
        """Return what the batch says of itself, and what its server did."""
        return Judge(ledger or self.ledger, self.log, environment=self.environment)

    def end(self) -> None:
        """End what a failed test left running."""
        for process in self.processes:
            if process.poll() is None:
                _kill(process)
                process.communicate(timeout=10)


def ended(
    process: subprocess.Popen[str], stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Wait for a command's end; one that hangs is killed, and fails the test."""
    try:
        out, err = process.communicate(stdin, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        _kill(process)
        out, err = process.communicate()
        raise AssertionError(f"{process.args!r} hung: {err}") from None

    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def _kill(process: subprocess.Popen[str]) -> None:
    """Kill a command with its children: what strace runs is one."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def workplace(
    folder: Path,
    script: Mapping[str, Any] | None = None,
    tokens: Iterable[str] = (TOKEN,),
    **more: Any,
) -> Iterator[Workplace]:
    """Run a simulator in a thread of its own, and give a place to work with it.

    Args:
        folder: for the files; made where it is missing.
        script: of faults.
        tokens: that the simulator takes.
        more: of :class:`deslaunch.simulator.Simulator`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = Simulator(script=script, log=folder / "runs.jsonl", tokens=[*tokens], **more)

    with start_blocking_portal() as portal, portal.wrap_async_context_manager(made) as simulator:
        environment = clean_environment(folder) | {"DES_BASE_URL": simulator.base_url}
        place = Workplace(folder, simulator, environment, portal)

        try:
            yield place
        finally:
            place.end()
