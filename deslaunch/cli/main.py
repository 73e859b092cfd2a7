"""Run the command that argv names, print its error, and return its exit code.

Exit codes:
  0  done; launch: every row is started or withdrawn; watch: every run succeeded
  1  a bug in deslaunch
  2  usage, configuration or an invalid manifest: nothing was sent
  3  finished; some rows failed, were rejected or are invalid; watch: some runs failed
  4  finished; some rows are unknown; watch: DES refused some queries
  5  no usable response, or stopped before the end: resume (or watch) continues
  6  credentials refused; the remaining rows are pending
  7  the ledger exists already, is missing, damaged or foreign, or can't be written
  8  another launcher is at work on the ledger
  129, 130, 143  interrupted and drained: resume continues
"""

import signal
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any, Final, cast

import click

from deslaunch import __version__, errors
from deslaunch.cli.terminal import Printer, signal_of
from deslaunch.model import printed

_COMMANDS: Final = {
    "launching": "check run resume start watch",
    "inspecting": "status results log resolve withdraw control report",
    "batches": "history find export upgrade",
    "preparing": "jobs targets template simulate help",
}
HOMES: Final = {name: home for home, names in _COMMANDS.items() for name in names.split()}
"""Command name to the module of this package that defines it."""


class _Group(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # the reader of stdout has ended
            return 128 + signal.SIGPIPE

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        if cmd_name not in HOMES:
            near = get_close_matches(cmd_name, HOMES, n=1)
            advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(HOMES)}"
            raise click.UsageError(f"there is no command {cmd_name!r}; {advice}", ctx)

        home = import_module(f"{__package__}.{HOMES[cmd_name]}")  # only now: imports are slow
        return cast("click.Command", getattr(home, cmd_name))

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's protocol
        return list(HOMES)


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: deslaunch help exit-codes",
)
@click.version_option(__version__, prog_name="deslaunch")
def command_line() -> None:
    """Start thousands of DES job runs from one manifest, and record the outcome of every row.

    Set the base URL in DES_BASE_URL and the token in DES_TOKEN, DES_TOKEN_FILE or
    DES_TOKEN_COMMAND, never on the command line. Or set a login in DES_ORG_ID, DES_CLIENT_ID,
    DES_CLIENT_SECRET, DES_USERNAME and DES_PASSWORD: the auth server then gives tokens and the base
    URL. For several organisations see deslaunch help targets; for all topics, deslaunch help.
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: the arguments; default: the process's own.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    printer = Printer()

    try:
        return int(command_line.main(words, prog_name="deslaunch", standalone_mode=False) or 0)
    except click.ClickException as exc:
        context: click.Context | None = getattr(exc, "ctx", None)
        command = f" {context.info_name}" if context and context.parent else ""
        lines = (f"error: {exc.format_message()}", f"  see: deslaunch{command} --help")
        # Without a command click's message is the help.
        printer.insist(*lines if words else [exc.format_message()])
        return 2
    except errors.DeslaunchError as exc:
        return refuse(exc, printer, words)
    except click.Abort as exc:  # click's word for a KeyboardInterrupt
        return 128 + signal_of(exc.__cause__)
    except Exception:  # noqa: BLE001  # a bug, or a damaged ledger
        from deslaunch.ledger.sqlite import find_damage  # noqa: PLC0415  # rarely needed

        if damage := find_damage(words):
            return refuse(damage, printer, words)

        what = "error: this is a bug in deslaunch; please report it with the lines above"
        printer.insist(traceback.format_exc().rstrip(), what)
        return 1


def refuse(error: errors.DeslaunchError, printer: Printer, words: Sequence[str]) -> int:
    """Print an error that ended a command, and its hint; return the exit code."""
    from deslaunch.cli import render  # noqa: PLC0415  # not needed for --help

    if isinstance(error, errors.InvalidManifest):
        printer.insist(*render.problem_lines(error.problems, error.groups, error.count))

    printer.insist(str(error) if isinstance(error, errors.Declined) else f"error: {error}")

    if error.hint:
        printer.insist(f"  {error.hint}")

    if isinstance(error, (errors.DesError, errors.CredentialsRefused, errors.Interrupted)):
        again = printed(words[0], *words[1:])
        printer.insist(f"nothing was sent; run it again: {again}")

    if isinstance(error, errors.Interrupted):
        return 128 + (error.signum or signal.SIGINT)

    return error.exit_code
