"""``deslaunch`` and ``python -m deslaunch``: the process."""

from __future__ import annotations

import os
import signal
import sys
import threading


def run() -> None:
    """Run one command and end the process with its exit code.

    Signals are taken before all that takes time, the imports above all: a process that is the
    first of a container would lose one that comes sooner. Standard streams that are closed lead
    to nowhere from here on: else the next file that is opened, a ledger perhaps, would get the
    number of one.
    """
    if sys.platform == "win32":
        sys.stderr.write("error: deslaunch runs on Linux and macOS only\n")
        sys.exit(2)

    try:
        take_signals()

        for number, name in enumerate(("stdin", "stdout", "stderr")):
            try:
                os.fstat(number)
            except OSError:
                os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one

            if getattr(sys, name) is None:
                setattr(sys, name, open(os.devnull, "r+", encoding="utf-8"))  # noqa: SIM115, PTH123

        # The ledger's thread waits this long for the interpreter at each statement while the loop
        # is busy. The default, 5 ms, costs a launch with instant responses a tenth of its speed.
        sys.setswitchinterval(0.0005)

        from deslaunch.cli.main import main  # noqa: PLC0415  # after the signals

        code = main()
    except KeyboardInterrupt as exc:
        code = 128 + int(exc.args[0])

    from deslaunch.cli.terminal import end_streams  # noqa: PLC0415

    end_streams()

    if threading.active_count() > 1:
        # A thread that waits for a name server, or for stdin, would hold the process up. All that
        # must be on disk is there: it was committed before it was told.
        os._exit(code)

    sys.exit(code)


def take_signals() -> None:
    """Let a signal end what goes on, until an event loop takes it; an ignored one stays ignored.

    It comes as a KeyboardInterrupt with the signal's number.
    """

    def on_signal(number: int, _: object) -> None:
        raise KeyboardInterrupt(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, on_signal)


if __name__ == "__main__":
    run()
