"""One or more processes side by side: how long they took, and what they used."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .ground import BenchFailed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from resource import struct_rusage
    from typing import BinaryIO

LIMIT: Final = 1800.0
"""Seconds after which a process hangs."""

_KILOBYTE: Final = 1024


@dataclass(frozen=True)
class Used:
    """What processes used, from the first one's start to the last one's end.

    Attributes:
        seconds: wall clock.
        cpu: seconds of processor time, all processes together.
        peak: bytes of resident memory of the largest. Not less than the bench's own: the system
            counts what a child shared with its parent before it became another program.
    """

    seconds: float
    cpu: float
    peak: int


def measure(
    commands: Sequence[Sequence[str]],
    environment: Mapping[str, str],
    *,
    accepted: frozenset[int] = frozenset({0}),
) -> Used:
    """Run commands at the same time, each to its end.

    Raises:
        BenchFailed: one of them ended with another code than ``accepted``, or hung.
    """
    with tempfile.TemporaryFile() as said:
        began = time.perf_counter()
        children = [_started(command, environment, said) for command in commands]
        alarm = threading.Timer(LIMIT, _kill, [children])
        alarm.start()

        try:
            usages = [_ended(child) for child in children]
        finally:
            alarm.cancel()
            _kill(children)

        seconds = time.perf_counter() - began

        for child in children:
            if child.returncode not in accepted:
                raise BenchFailed(f"{_shown(child)} ended with {child.returncode}: {_tail(said)}")

    return Used(
        seconds,
        sum(usage.ru_utime + usage.ru_stime for usage in usages),
        max(usage.ru_maxrss * _KILOBYTE for usage in usages),
    )


def _started(
    command: Sequence[str], environment: Mapping[str, str], said: BinaryIO
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=said,
        process_group=0,
    )


def _ended(child: subprocess.Popen[bytes]) -> struct_rusage:
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return usage


def _kill(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Kill those that have not ended, with all that they started."""
    for child in children:
        if child.returncode is None:
            os.killpg(child.pid, signal.SIGKILL)


def _shown(child: subprocess.Popen[bytes]) -> str:
    return " ".join(map(str, child.args)) if isinstance(child.args, list | tuple) else "a command"


def _tail(said: BinaryIO) -> str:
    said.seek(0)
    return said.read().decode("utf-8", "replace").strip()[-500:] or "no word"
