"""A command of the command line: its help page, and how it ends."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import click

from deslaunch import manual
from deslaunch.cli.exits import EXIT_CODES, refuse
from deslaunch.errors import DeslaunchError

if TYPE_CHECKING:
    from collections.abc import Callable


class Command(click.Command):
    """A command whose examples and exit codes keep their lines in ``--help``."""

    def __init__(
        self, *args: Any, examples: str = "", exit_codes: str = EXIT_CODES, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.epilog = "\n\n".join(manual.sections(self.name or "", examples, exit_codes))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; end it as a pipe's writer ends where nobody reads any more."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
        except DeslaunchError as exc:
            return refuse(exc, ctx.obj or [], ctx.params)


def command(
    name: str, examples: str, exit_codes: str = EXIT_CODES
) -> Callable[[Callable[..., int]], click.Command]:
    """Return a decorator that makes a function a command; what it returns is the exit code.

    Args:
        name: the command's; its page in the manual has the same.
        examples: command lines, indented by two blanks.
        exit_codes: for a command whose page in the manual has none.
    """
    return click.command(name, cls=Command, examples=examples, exit_codes=exit_codes)
