"""Every exception of the simulator.

::

    SimulatorError              a file can't be used; the caller tells who wrote it
    ├── FaultScriptError
    └── JobsFileError
    BadRequest                  a client sent no HTTP; its connection is answered 400 and closed
    Refused                     the service says no to one request; its client is told

The last two never leave the simulator's block.
"""

from __future__ import annotations


class SimulatorError(Exception):
    """A file of the simulator can't be used.

    Attributes:
        where: the value's place, like ``faults[2].share``.
        expected: what may stand there.
        got: what stands there.
    """

    def __init__(self, where: str, *, expected: str, got: object) -> None:
        super().__init__(f"{where}: expected {expected}, got {shorten(got)}")
        self.where = where
        self.expected = expected
        self.got = got


class FaultScriptError(SimulatorError):
    """The fault script is malformed."""


class JobsFileError(SimulatorError):
    """The jobs file is malformed."""


class Refused(Exception):
    """The service says no to one request.

    Attributes:
        status: 400, 401 or 405.
        body: the JSON to answer.
    """

    def __init__(self, status: int, message: str, *, key: str = "message") -> None:
        super().__init__(message)
        self.status = status
        self.body = {key: message}


class BadRequest(Exception):
    """The bytes on a connection are no HTTP/1.1 request. Nothing after them can be read."""


def shorten(value: object) -> str:
    """Return the value as Python writes it, cut where it is too long for a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"  # noqa: PLR2004  # a line of a terminal
