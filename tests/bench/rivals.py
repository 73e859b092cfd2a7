"""All contenders, each as the commands that it is.

A contender is measured as whole processes, from the start of its interpreter to its end. The
files that curl and GNU parallel read are written ahead, so that only deslaunch and the Python
loops pay for reading a manifest.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Final

from .ground import TOKEN

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .ground import Ground

    Commands = Sequence[Sequence[str]]

DESLAUNCH: Final = (sys.executable, "-m", "deslaunch")
SLOTS: Final = (16, 64, 256)
SYNC: Final = 0.01
"""Seconds that a sync of the slow disk takes."""

_HEADERS: Final = (f"Authorization: Bearer {TOKEN}", "Content-Type: application/json")
_FEW: Final = 1000  # rows for what starts a process for each


@dataclass(frozen=True)
class Contender:
    """One way to send all starts of a manifest.

    Attributes:
        name: of its figure.
        label: for people.
        commands: what to run side by side; called ahead of the measuring.
        missing: why it can't run here; "" if it can.
        most: rows that it gets at most.
    """

    name: str
    label: str
    commands: Callable[[Ground], Commands]
    missing: Callable[[], str] = lambda: ""
    most: int | None = None

    def rows(self, ground: Ground) -> int:
        """Return how many rows it starts."""
        return ground.rows if self.most is None else min(self.most, ground.rows)


def deslaunch(slots: int, latency: int = 0) -> Contender:
    """Return deslaunch in full: manifest from disk, validated, with its durable ledger.

    Args:
        slots: starts at a time.
        latency: milliseconds that the service takes for a start.
    """

    def commands(ground: Ground) -> Commands:
        return [_run(ground, slots, base_url=_base_url(ground, latency))]

    return Contender(f"deslaunch-{slots}{_suffix(latency)}", "deslaunch", commands)


def bare(slots: int, latency: int = 0) -> Contender:
    """Return the tuned loop of aiohttp and uvloop."""

    def commands(ground: Ground) -> Commands:
        return [_loop("bench.bare", ground, slots, latency)]

    return Contender(f"bare-{slots}{_suffix(latency)}", "bare tuned aiohttp + uvloop", commands)


def naive(slots: int) -> Contender:
    """Return the loop of aiohttp that one writes first."""
    return Contender(
        f"naive-{slots}",
        "naive aiohttp loop",
        lambda ground: [_loop("bench.naive", ground, slots)],
    )


def curl(slots: int) -> Contender:
    """Return one curl with all starts in its config file."""

    def commands(ground: Ground) -> Commands:
        path = ground.folder / f"curl-{ground.rows}.conf"

        if not path.exists():
            with path.open("w", encoding="utf-8") as file:
                between = ""

                for body in ground.bodies():
                    file.write(between + _transfer(_url(ground), body))
                    between = "next\n"

        parallel = ("--parallel", "--parallel-max", str(slots))
        return [("curl", "--silent", "--fail", *parallel, "--config", str(path))]

    return Contender(f"curl-{slots}", "one curl --parallel", commands, lambda: _tool("curl"))


def gnu_parallel(slots: int) -> Contender:
    """Return GNU parallel that starts a curl for each row."""

    def commands(ground: Ground) -> Commands:
        path = ground.folder / "bodies.txt"
        bodies = islice(ground.bodies(), _FEW)
        path.write_text("".join(f"{body}\n" for body in bodies), encoding="utf-8")
        send = ["curl", "-s", "-f", "-o", "/dev/null"]

        for header in _HEADERS:
            send += ["-H", f"'{header}'"]

        return [("parallel", f"-j{slots}", "-a", str(path), *send, "-d", "{}", _url(ground))]

    return Contender(
        f"parallel-{slots}",
        "GNU parallel + curl",
        commands,
        lambda: _tool("parallel") or _tool("curl"),
        most=_FEW,
    )


def on_this_disk(slots: int) -> Contender:
    """Return deslaunch as it is, to be run beside itself on a slow disk."""
    return replace(deslaunch(slots), name=f"deslaunch-{slots}-this-disk")


def on_slow_disk(slots: int) -> Contender:
    """Return deslaunch with a disk whose every sync takes 10 ms longer."""

    def commands(ground: Ground) -> Commands:
        delay = f"inject=fdatasync:delay_exit={SYNC * 1e6:.0f}"
        trace = ("strace", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null")
        return [(*trace, "-e", "trace=fdatasync", "-e", delay, *_run(ground, slots))]

    return Contender(
        f"deslaunch-{slots}-disk", "deslaunch, slow disk", commands, lambda: _tool("strace")
    )


def _run(ground: Ground, slots: int, *, base_url: str | None = None) -> tuple[str, ...]:
    files = (str(ground.jsonl), "--ledger", str(ground.new_ledger()))
    where = ("--base-url", base_url or ground.base_url)
    return (*DESLAUNCH, "run", *files, *where, "--concurrency", str(slots), "--quiet")


def _loop(module: str, ground: Ground, slots: int, latency: int = 0) -> tuple[str, ...]:
    url = _url(ground, latency)
    return (sys.executable, "-m", module, url, str(ground.jsonl), str(slots))


def _base_url(ground: Ground, latency: int = 0) -> str:
    return f"{ground.base_url}/slow/{latency}" if latency else ground.base_url


def _url(ground: Ground, latency: int = 0) -> str:
    return f"{_base_url(ground, latency)}/api/v1/startjob"


def _suffix(latency: int) -> str:
    return f"-{latency}ms" if latency else ""


def _transfer(url: str, body: str) -> str:
    """Return one transfer of a curl config file."""
    quoted = body.replace("\\", "\\\\").replace('"', '\\"')
    headers = "".join(f'header = "{header}"\n' for header in _HEADERS)
    return f'url = "{url}"\n{headers}data = "{quoted}"\noutput = "/dev/null"\n'


def _tool(name: str) -> str:
    return "" if shutil.which(name) else f"{name} is not installed"
