"""Run deslaunch under strace once it is imported: under strace that would take three seconds.

    python traced.py STRACE … -- DESLAUNCH …

It ends as deslaunch ends; with 137 where that is killed.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Final

from deslaunch import __main__ as program

USED: Final = ("cli.launching", "launch.batch", "ledger.sqlite", "ledger.postgres")
SET_PTRACER: Final = 0x59616D61
ANYBODY: Final = -1


def main() -> None:
    at = sys.argv.index("--")
    strace, command = sys.argv[1:at], sys.argv[at + 1 :]

    for name in USED:
        import_module(f"deslaunch.{name}")

    if not (launcher := os.fork()):
        # Some systems let a process be traced by those only that it was started by.
        ctypes.CDLL(None).prctl(SET_PTRACER, ANYBODY, 0, 0, 0)

        while "TracerPid:\t0\n" in Path("/proc/self/status").read_text("ascii"):
            time.sleep(0.001)

        sys.argv = command
        program.run()

    with subprocess.Popen([*strace, "-p", str(launcher)]):
        _, status = os.waitpid(launcher, 0)

    code = os.waitstatus_to_exitcode(status)
    sys.exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
