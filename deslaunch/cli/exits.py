"""Exit codes: what ``--help`` says of them, and which one an error gets."""

from __future__ import annotations

import shlex
import signal
from typing import TYPE_CHECKING, Any, Final

from deslaunch.cli.given import console_of
from deslaunch.errors import (
    CredentialsRefused,
    DesError,
    DeslaunchError,
    Interrupted,
    LedgerError,
    ManifestChanged,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

EXIT_CODES: Final = """\b
Exit codes:
  0  every row is started
  1  a bug in deslaunch
  2  usage, configuration, an invalid manifest, or the answer was no: nothing was sent
  3  finished, some rows failed, were rejected or invalid
  4  finished, some rows are unknown
  5  stopped before the end; resume goes on
  6  credentials refused; the remaining rows are pending
  7  the ledger exists, is locked, damaged, foreign, or can't be written
  129, 130, 143  interrupted; drained; resume goes on"""

LAUNCH_EXIT_CODES: Final = f"""{EXIT_CODES}

\b
Exit codes with --watch:
  0  every row is started, and every run finished with success
  3  runs failed, or rows failed, were rejected or invalid
  4  rows are unknown, or DES refuses to tell of runs
  5  stopped, with runs that have not finished or rows that are pending"""

WATCH_EXIT_CODES: Final = """\b
Exit codes:
  0  every row is started, and every run finished with success
  1  a bug in deslaunch
  2  usage or configuration: nothing was asked
  3  runs failed, or rows failed, were rejected or invalid
  4  rows are unknown, or DES refuses to tell of runs
  5  stopped, with runs that have not finished or rows that are pending
  6  credentials refused; runs have not finished
  7  the ledger is locked, damaged, foreign, or can't be written
  129, 130, 143  interrupted; watch goes on"""

# The first class that an error is an instance of gives the exit code.
_EXIT_CODES: Final[tuple[tuple[type[DeslaunchError], int], ...]] = (
    (LedgerError, 7),
    (CredentialsRefused, 6),
    (DesError, 5),
    (ManifestChanged, 5),
    (DeslaunchError, 2),
)

EXIT_BUG: Final = 1
EXIT_DECLINED: Final = 2
EXIT_STOPPED: Final = 5


def refuse(error: DeslaunchError, argv: Sequence[str], given: Mapping[str, Any]) -> int:
    """Print an error that ended a command before anything was sent; return the exit code."""
    console = console_of(given)
    console.error(error, exit_code_of(error))

    if isinstance(error, DesError | CredentialsRefused | Interrupted):
        console.insist(f"nothing was sent; go on with: deslaunch {shlex.join(argv)}")

    return exit_code_of(error)


def exit_code_of(error: DeslaunchError) -> int:
    """Return the exit code that an error gives a command."""
    if isinstance(error, Interrupted):
        return 128 + (error.signum or signal.SIGINT)

    return next(code for kind, code in _EXIT_CODES if isinstance(error, kind))
