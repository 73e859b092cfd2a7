"""``--on-end``: run the user's command at the end of a launch or a watch."""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from deslaunch.cli.targets import config_of
from deslaunch.cli.terminal import encode_json
from deslaunch.errors import ConfigurationError, DeslaunchError
from deslaunch.ledger.place import noted_place

if TYPE_CHECKING:
    from deslaunch.cli.options import Given

_CAPITAL: Final = re.compile("(?=[A-Z])")

MOST_SECONDS: Final = 60.0
"""Seconds that the command may take; then it is killed, with all that it started."""


@contextlib.asynccontextmanager
async def telling_end(given: "Given") -> AsyncIterator[dict[str, Any]]:
    """Run the user's command once, however the block ends.

    Args:
        given: of the command at work.

    Yields:
        A dict to put in what ``--json`` prints; an error's text and exit code come by themselves.

    Raises:
        ConfigurationError: before the block: a command that was typed can't be run.
    """
    import asyncio  # noqa: PLC0415  # not needed for --help

    told: dict[str, Any] = {}

    if given["on_end"] is not None:
        await asyncio.to_thread(command_of, given)

    try:
        yield told
    except BaseException as exc:
        code = exc.exit_code if isinstance(exc, DeslaunchError) else 1
        code = 128 + given.interrupts.signum if given.interrupts.signum else code
        told |= {"exitCode": code, "error": str(exc) or type(exc).__name__}
        raise
    finally:
        given.interrupts.batch = None  # a signal ends what follows
        words: Sequence[str] = ()

        with contextlib.suppress(DeslaunchError):  # which was told already
            words = await asyncio.to_thread(command_of, given)

        if words and told and (why := await run_command(words, told)):
            given.printer.warn(f"--on-end {shlex.join(words)}: {why}")


def command_of(given: "Given") -> Sequence[str]:
    """Return the words of the user's command: from the command line, or the configuration file.

    Raises:
        ConfigurationError: it can't be split, there is no such program, or the file is wrong.
    """
    typed = given["on_end"]
    words = config_of(given).on_end if typed is None else _split(typed)

    if words and shutil.which(words[0]) is None:
        name = "on_end" if typed is None else "--on-end"
        raise ConfigurationError(
            f"{name}: {words[0]} is not found or not executable; nothing was sent",
            hint="check its name, or write its path; a script needs chmod +x",
        )

    return words


def _split(text: str) -> list[str]:
    with contextlib.suppress(ValueError):  # an open quote
        if words := shlex.split(text):
            return words

    raise ConfigurationError(
        f"--on-end takes a program and its arguments, got {text!r}",
        hint="no shell runs it: put pipes into a script, and pass the script",
    )


def _stderr() -> int:
    with contextlib.suppress(AttributeError, OSError, ValueError):  # it may be closed
        return sys.stderr.fileno()

    return subprocess.DEVNULL


async def run_command(words: Sequence[str], told: Mapping[str, Any]) -> str:
    """Run a command with the summary on its standard input; return what went wrong, or ``""``."""
    import asyncio  # noqa: PLC0415  # not needed for --help

    counts = told.get("batch", told)  # of a watch
    given = {**counts, **{name: told[name] for name in ("exitCode", "seconds") if name in told}}
    # "#night" would take the place of the database that it needs.
    given |= {"ledger": noted_place(counts["ledger"])} if "ledger" in counts else {}
    variables = {
        f"DESLAUNCH_{_CAPITAL.sub('_', name).upper()}": str(value)
        for name, value in given.items()
        if isinstance(value, int | float | str)
    }

    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.PIPE,
            stdout=_stderr(),  # what is on stdout is ours
            env={**os.environ, **variables},
            start_new_session=True,
        )
    except (OSError, ValueError) as exc:
        return f"can't be run: {getattr(exc, 'strerror', None) or exc}"

    try:
        async with asyncio.timeout(MOST_SECONDS):
            with contextlib.suppress(RuntimeError):  # of uvloop: it has ended, and read nothing
                await process.communicate(encode_json(told).encode() + b"\n")

            await process.wait()
    except TimeoutError:
        return f"was killed: it took over {MOST_SECONDS:.0f} s"
    except asyncio.CancelledError:  # a signal: the launch has ended, and its exit code stands
        return "was killed, as you wished"
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

            await process.wait()

    return f"ended with exit code {process.returncode}" if process.returncode else ""
