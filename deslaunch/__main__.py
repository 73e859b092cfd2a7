"""``deslaunch`` and ``python -m deslaunch``: the process."""

from __future__ import annotations

import os
import sys
import threading


def run() -> None:
    """Run one command and end the process with its exit code.

    Standard streams that are closed lead to nowhere from here on: else the next file that is
    opened, a ledger perhaps, would get the number of one. Signals are taken before the heavy
    imports: a process that is the first of a container would lose one that comes sooner.
    """
    if sys.platform == "win32":
        sys.stderr.write("error: deslaunch runs on Linux and macOS only\n")
        sys.exit(2)

    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one

    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r+", encoding="utf-8"))  # noqa: SIM115, PTH123

    # The ledger's thread waits this long for the interpreter at each statement while the loop is
    # busy. The default, 5 ms, costs a launch with instant responses a tenth of its speed.
    sys.setswitchinterval(0.0005)

    from deslaunch.cli.terminal import end_streams, signal_of, take_signals  # noqa: PLC0415

    try:
        take_signals()
        from deslaunch.cli.main import main  # noqa: PLC0415  # after the signals

        code = main()
    except KeyboardInterrupt as exc:
        code = 128 + signal_of(exc)

    end_streams()

    if threading.active_count() > 1:
        # A thread that waits for a name server, or for stdin, would hold the process up. All that
        # must be on disk is there: it was committed before it was told.
        os._exit(code)

    sys.exit(code)


if __name__ == "__main__":
    run()
