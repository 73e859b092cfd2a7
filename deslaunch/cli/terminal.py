"""A command's streams, questions, signals, and the progress block on a terminal.

Data goes to stdout, all else to stderr. A stream that is closed, full or in another encoding never
ends a launch: text that can't be written to stderr is lost, text that can't be encoded is escaped.
"""

import contextlib
import io
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TextIO, TypeVar

from deslaunch.errors import ConfigurationError, Interrupted
from deslaunch.model import printable

if TYPE_CHECKING:
    import asyncio

    from rich.progress import Progress

    from deslaunch.launch.launcher import Batch

T = TypeVar("T")

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SURROGATE: Final = re.compile("[\ud800-\udfff]")

_COLLECT_AFTER: Final = 50_000
"""Objects that are made, more than go, before a search for cycles: a launch makes few of them."""


@dataclass
class Printer:
    """Writes to the two streams of a command: the only one who does.

    Args:
        quiet: say only what must not be missed.
        verbose: say what became of every row.
        out: for data.
        err: for all else.
        source: where a person's replies come from.
    """

    quiet: bool = False
    verbose: bool = False
    out: TextIO = field(default_factory=lambda: sys.stdout)
    err: TextIO = field(default_factory=lambda: sys.stderr)
    source: TextIO = field(default_factory=lambda: sys.stdin)
    _block: "Progress | None" = None

    def __post_init__(self) -> None:
        for stream in (self.out, self.err):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")

    @property
    def has_block(self) -> bool:
        """Progress is shown as a block that is redrawn in place."""
        can_redraw = os.environ.get("TERM") not in {"dumb", "unknown"}
        return _is_terminal(self.err) and can_redraw and not (self.quiet or self.verbose)

    def data(self, *texts: str) -> None:
        """Print lines on stdout.

        Raises:
            BrokenPipeError: nobody reads it any more.
            ConfigurationError: it can't be written.
        """
        with self.binary():
            _write(self.out, "".join(f"{_escaped(text)}\n" for text in texts))

    def page(self, markdown: str) -> None:
        """Print a page on stdout, laid out on a terminal; it raises what :meth:`data` does."""
        if not _is_terminal(self.out):
            self.data(markdown.rstrip("\n"))
            return

        from rich.console import Console  # noqa: PLC0415  # only a terminal needs rich
        from rich.markdown import Markdown  # noqa: PLC0415

        with self.binary():
            Console(file=self.out).print(Markdown(markdown, "ansi_dark"), width=100)  # at most

    def json(self, value: Mapping[str, Any]) -> None:
        """Print one JSON object on stdout; it raises what :meth:`data` does."""
        with self.binary():
            _write(self.out, f"{encode_json(value, encoding=self.out.encoding)}\n")

    def outcome_json(self, value: Mapping[str, Any]) -> None:
        """Print one JSON object about what is on disk already; a failure is only a warning."""
        try:
            self.json(value)
        except (BrokenPipeError, ConfigurationError) as exc:
            self.warn(f"the JSON object was not printed: {exc}")

    @contextlib.contextmanager
    def binary(self) -> Iterator[BinaryIO]:
        """Yield stdout for bytes; after an error it is muted, so that a flush can't fail again.

        Raises:
            BrokenPipeError: nobody reads it any more.
            ConfigurationError: it can't be written.
        """
        try:
            self.out.flush()
            yield getattr(self.out, "buffer", None)  # type: ignore[misc]  # a test may pass a text in
            self.out.flush()
        except OSError as exc:
            _mute(self.out)

            if isinstance(exc, BrokenPipeError):
                raise

            raise ConfigurationError(
                f"stdout can't be written: {exc.strerror}", hint="free some space, or use -o"
            ) from exc

    def say(self, *texts: str) -> None:
        """Print on stderr, except with ``--quiet``."""
        if not self.quiet:
            self.insist(*texts)

    def detail(self, text: str) -> None:
        """Print on stderr with ``--verbose``."""
        if self.verbose:
            self.insist(text)

    def insist(self, *texts: str) -> None:
        """Print on stderr, also with ``--quiet``; errors of the stream are ignored."""
        for text in map(_escaped, texts):
            if self._block is None:
                self._draw(_write, self.err, f"{text}\n")
            else:
                self._draw(self._block.console.out, text, highlight=False)

    def warn(self, *texts: str) -> None:
        """Print warnings on stderr, also with ``--quiet``."""
        self.insist(*(f"warning: {text}" for text in texts))

    def show(self, text: str, done: int, whole: int | None) -> None:
        """Redraw the block at the bottom of the terminal; other lines are printed above it.

        Args:
            text: stands beside a bar, a line under the other.
            done: how much of ``whole`` is done.
            whole: None where that is not known.
        """
        from rich.console import Console  # noqa: PLC0415  # only a terminal needs rich
        from rich.progress import BarColumn, Progress, TaskID, TextColumn  # noqa: PLC0415
        from rich.table import Column  # noqa: PLC0415

        if self._block is None:
            bar = BarColumn(36, complete_style="cyan")
            words = TextColumn("{task.description}", markup=False, table_column=Column())
            own: dict[str, Any] = {"auto_refresh": False, "transient": True}
            self._block = Progress(bar, words, console=Console(file=self.err), **own)
            self._block.add_task("")
            self._draw(self._block.start)

        shown = {"description": _escaped(text), "completed": done, "total": whole}
        self._draw(self._block.update, TaskID(0), **shown, refresh=True)

    def end_block(self) -> None:
        """Remove the block, if there is one."""
        if self._block is not None:
            self._draw(self._block.stop)
            self._block = None

    def _draw(self, change: Callable[..., None], *arguments: Any, **more: Any) -> None:
        try:
            change(*arguments, **more)
        except (OSError, ValueError):  # ValueError: it was closed
            _mute(self.err)

    def can_ask(self, *, has_rows: bool = False) -> bool:
        """Return True if a person sees a question and can reply to it.

        Args:
            has_rows: stdin is the manifest; who sees stderr replies at that terminal.

        Raises:
            ConfigurationError: there is a terminal, and it belongs to another process group, or
                can't be read.
        """
        if has_rows and _is_terminal(self.err):
            self.source = _reopen(self.err)

        if not (_is_terminal(self.err) and _is_terminal(self.source)):
            return False

        with contextlib.suppress(OSError):  # it is not this session's terminal
            if os.tcgetpgrp(self.source.fileno()) != os.getpgrp():
                raise ConfigurationError(
                    "deslaunch can't ask in the background; nothing was sent",
                    hint="pass --yes, or run it in the foreground (timeout: timeout --foreground)",
                )

        return True

    async def ask(self, question: str) -> bool:
        """Ask a person; anything but ``y`` and ``yes`` means no, and so does the end of input.

        It waits in the event loop, not in a thread, so that a signal ends it.
        """
        import asyncio  # noqa: PLC0415  # not needed for --help

        self._draw(_write, self.err, f"{_escaped(question)} [y/N] ")
        fd, loop, typed = self.source.fileno(), asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(fd, typed.set)

        try:
            await typed.wait()
            return os.read(fd, 1024).strip().lower() in {b"y", b"yes"}
        except OSError:  # the terminal has gone
            return False
        finally:
            loop.remove_reader(fd)


def _reopen(terminal: TextIO) -> TextIO:
    """Open a terminal for reading."""
    try:  # by its own name: macOS can't wait for /dev/tty
        return os.fdopen(os.open(os.ttyname(terminal.fileno()), os.O_RDONLY | os.O_NOCTTY))
    except OSError as exc:
        message = "deslaunch can't ask while stdin is the manifest; nothing was sent"
        raise ConfigurationError(message, hint="pass --yes") from exc


def _is_terminal(stream: TextIO) -> bool:
    return not stream.closed and stream.isatty()


def _write(stream: TextIO, text: str) -> None:
    stream.write(text)
    stream.flush()


def _mute(stream: TextIO) -> None:
    """Redirect a stream to /dev/null: flushing it at the end of the process would fail."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def end_streams() -> None:
    """Flush the streams; an error here does not change the exit code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            _mute(stream)


def _escaped(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


def encode_json(value: Any, *, encoding: str | None = "utf-8") -> str:
    r"""Return a value as JSON in one line, in ASCII for streams that are not UTF-8.

    File names that are no UTF-8 come with backslash escapes, ``night\xff.csv``: as JSON's own
    escapes they would be surrogates, which many readers refuse.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    text = _SURROGATE.sub(lambda found: json.dumps(printable(found[0]))[1:-1], text)
    is_utf8 = (encoding or "utf-8").lower().replace("-", "").replace("_", "") == "utf8"
    # No character outside a string is beyond ASCII.
    return text if is_utf8 else "".join(c if c.isascii() else json.dumps(c)[1:-1] for c in text)


def signal_of(interrupt: BaseException | None) -> int:
    """Return the number of the signal that caused a KeyboardInterrupt."""
    return int(*interrupt.args) if interrupt and interrupt.args else signal.SIGINT


def heeded_signals() -> list[signal.Signals]:
    """Return the signals that end a command: those that its parent did not have ignored."""
    return [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


@dataclass
class Interrupts:
    """What signals do: the first drains a batch at work, the second abandons what is in flight.

    Before there is a batch, each ends the command.

    Attributes:
        signum: the first signal that came, or 0.
        batch: what is at work, as soon as there is something.
        task: the command.
    """

    signum: int = 0
    batch: "Batch | None" = None
    task: "asyncio.Task[Any] | None" = None

    def __call__(self, signum: int) -> None:
        """Handle a signal."""
        if self.batch is None:
            assert self.task is not None
            self.task.cancel()
        elif self.signum:
            self.batch.abandon()
        else:
            self.batch.drain(signum)

        self.signum = self.signum or signum


def run_work(work: Coroutine[Any, Any, T], interrupts: Interrupts) -> T:
    """Run a command's work to its end, in the fastest event loop that there is.

    Threads that still wait for a name server or for stdin are left behind: asyncio's own runner
    would wait for them.

    Raises:
        Interrupted: a signal came while nothing was at work.
    """
    import asyncio  # noqa: PLC0415  # not needed for --help
    import gc  # noqa: PLC0415

    try:
        import uvloop  # noqa: PLC0415
    except ImportError:  # other Pythons do without it
        loop = asyncio.new_event_loop()
    else:
        loop = uvloop.new_event_loop()

    gc.freeze()  # what was imported stays: no collection needs to look at it again
    gc.set_threshold(_COLLECT_AFTER)
    asyncio.set_event_loop(loop)
    interrupts.task = task = loop.create_task(work)

    with contextlib.suppress(ValueError, RuntimeError):  # this is not the main thread
        for number in heeded_signals():
            loop.add_signal_handler(number, interrupts, number)

    try:
        return loop.run_until_complete(task)
    except asyncio.CancelledError:
        if not interrupts.signum:
            raise

        raise Interrupted("interrupted", signum=interrupts.signum) from None
    finally:
        left = asyncio.all_tasks(loop)

        for other in left:
            other.cancel()

        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        asyncio.set_event_loop(None)
        loop.close()
