"""Commands in this process, or at a terminal: their exit codes, and what they print."""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
import select
import struct
import subprocess
import termios
from contextlib import redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from stage import DESLAUNCH, LIMIT, TOKEN

from deslaunch.cli.main import main

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stage import Workplace

CONTROL: Final = re.compile(r"\x1b\[[\d;?]*[A-Za-z]")


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What was printed, as one JSON value."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """What was printed, as a JSON value a line."""
        return [json.loads(line) for line in self.out.splitlines()]


def call(*argv: object) -> Ended:
    """Run a command to its end; its streams are those of a pipe."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="") for _ in range(2))

    with redirect_stdout(out), redirect_stderr(err):
        code = main([str(word) for word in argv])

    return Ended(code, _content(out), _content(err))


def _content(stream: io.TextIOWrapper) -> str:
    stream.flush()
    stream.seek(0)
    return stream.read()


class Terminal:
    """A pseudo-terminal with a command in its foreground, typed at and read from by a test.

    Args:
        place: where it runs.
        argv: the command line behind ``deslaunch``.
        wrap: what stands before it.
    """

    def __init__(self, place: Workplace, *argv: str, wrap: Sequence[str] = ()) -> None:
        self._keyboard, screen = os.openpty()
        fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        self._process = subprocess.Popen(
            [*wrap, DESLAUNCH, *argv],
            cwd=place.folder,
            env={**place.environment, "DES_TOKEN": TOKEN, "TERM": "xterm-256color"},
            preexec_fn=lambda: os.login_tty(os.dup(screen)),  # noqa: PLW1509  # system calls alone
        )
        os.close(screen)
        self._shown = b""
        self._seen = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()

        self._process.wait()
        self._close()

    @property
    def text(self) -> str:
        """What was shown so far, without colours and other control sequences."""
        return CONTROL.sub("", self._shown.decode(errors="replace"))

    @property
    def code(self) -> int:
        """The exit code, once the command has ended."""
        while self._read():
            pass

        return self._process.wait(LIMIT)

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._keyboard, text.encode())

    def expect(self, text: str) -> None:
        """Return once a text is shown that was not asked for before."""
        while (found := self.text.find(text, self._seen)) < 0:
            assert self._read(), f"{text!r} does not come after {self.text!r}"

        self._seen = found + len(text)

    def hang_up(self) -> int:
        """Close the terminal's window, and return the exit code."""
        self._close()
        return self._process.wait(LIMIT)

    def _close(self) -> None:
        if self._keyboard >= 0:
            os.close(self._keyboard)
            self._keyboard = -1

    def _read(self) -> bool:
        """Read what comes next; False at the end."""
        ready, _, _ = select.select([self._keyboard], [], [], LIMIT)
        assert ready, f"nothing comes after {self.text!r}"

        try:
            chunk = os.read(self._keyboard, 65_536)
        except OSError:  # EIO: no process holds the terminal any more
            return False

        self._shown += chunk
        return bool(chunk)
