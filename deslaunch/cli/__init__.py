"""The command line: argv → settings → launcher, and exceptions → exit codes.

A command's module is imported when the command is asked for, and what is heavy when it runs, so
that ``--help`` answers at once.

========== ====================================================================
module     role
========== ====================================================================
group      the commands by name, and the page that lists them
preparing  ``check``, ``jobs``, ``template``, ``targets``
launching  ``run`` and ``resume``
watching   ``watch``, and what ``run --watch`` does after the launch
ledgers    ``status``, ``results``, ``report``
resolving  ``resolve``
simulating ``simulate``
completion ``completion``
command    what every command is: a help page with sections, errors to exit codes
options    the options that commands share
clients    file, environment and options → clients
stdin      a manifest from stdin, kept where it can be read twice
loop       the event loop, and the signals that interrupt it
exits      exit codes, and what is said of a command that sent nothing
given      options → the library's keyword arguments, and the console
========== ====================================================================
"""

from __future__ import annotations

import signal
import sys
import traceback
from typing import TYPE_CHECKING

import click

from deslaunch.cli.exits import EXIT_BUG, refuse
from deslaunch.cli.group import command_line
from deslaunch.errors import DeslaunchError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["command_line", "main", "run"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: the arguments; default: the process's own.
    """
    if sys.platform == "win32":
        click.echo("error: deslaunch runs on Linux and macOS only", err=True)
        return 2

    words = list(sys.argv[1:] if argv is None else argv)

    try:
        return int(
            command_line.main(words, prog_name="deslaunch", standalone_mode=False, obj=words) or 0
        )
    except click.ClickException as exc:
        exc.show()
        return exc.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 128 + signal.SIGINT
    except DeslaunchError as exc:
        return refuse(exc, words, {})
    except Exception:  # noqa: BLE001  # the last stop of a bug
        traceback.print_exc()
        click.echo("error: this is a bug in deslaunch; please report it", err=True)
        return EXIT_BUG


def run() -> None:
    """Run one command and end the process: the entry point."""
    sys.exit(main())
