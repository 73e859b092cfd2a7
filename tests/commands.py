"""Commands run in this process: their exit codes, and what they print."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from typing import Any, NamedTuple

from deslaunch.cli.main import main


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
