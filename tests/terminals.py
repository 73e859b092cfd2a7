"""A command at a terminal of its own, typed at and read from by a test."""

from __future__ import annotations

import fcntl
import os
import re
import select
import struct
import subprocess
import termios
import time
from typing import TYPE_CHECKING, Final, Self

from commands import DESLAUNCH

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

CTRL_C: Final = "\x03"
CTRL_D: Final = "\x04"
CONTROL: Final = re.compile(r"\x1b\[[\d;?]*[A-Za-z]")
PATIENCE: Final = 60.0  # seconds


class Terminal:
    """A pseudo-terminal with a command in its foreground.

    Args:
        arguments: of deslaunch.
        folder: where it runs.
        environment: all of its variables.
        stdin: ``"none"``: it reads from nowhere instead of from the terminal.
        size: lines and columns.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        *,
        stdin: str = "terminal",
        size: tuple[int, int] = (30, 100),
    ) -> None:
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))

        def take_terminal() -> None:
            os.login_tty(os.dup(slave))

            if stdin == "none":
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)

        self._process = subprocess.Popen(
            [DESLAUNCH, *arguments],
            cwd=folder,
            env=dict(environment),
            preexec_fn=take_terminal,  # noqa: PLW1509  # it calls the system alone
        )
        os.close(slave)
        self.chunks: list[tuple[float, bytes]] = []
        self._began = time.monotonic()
        self._seen = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()

        self._process.wait()
        self._close()

    def hang_up(self) -> int:
        """Close the terminal's window, and return the exit code."""
        self._close()
        return self._process.wait(PATIENCE)

    @property
    def said(self) -> str:
        """What was printed so far."""
        return b"".join(chunk for _, chunk in self.chunks).decode(errors="replace")

    @property
    def text(self) -> str:
        """What was printed so far, without colours and other control sequences."""
        return CONTROL.sub("", self.said)

    @property
    def code(self) -> int:
        """The exit code, once the command has ended."""
        while self._read():
            pass

        return self._process.wait(PATIENCE)

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._master, text.encode())

    def expect(self, text: str) -> None:
        """Return once a text was printed that was not asked for before."""
        while (found := self.said.find(text, self._seen)) < 0:
            assert self._read(), f"{text!r} does not come after {self.said!r}"

        self._seen = found + len(text)

    def _close(self) -> None:
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

    def _read(self) -> bool:
        """Read what comes next; False at the end."""
        ready, _, _ = select.select([self._master], [], [], PATIENCE)
        assert ready, f"nothing comes after {self.said!r}"

        try:
            chunk = os.read(self._master, 65_536)
        except OSError:  # EIO: no process holds the terminal any more
            return False

        self.chunks.append((time.monotonic() - self._began, chunk))
        return bool(chunk)
