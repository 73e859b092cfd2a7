"""What only a terminal shows: a block that changes in place, and tables.

The only module that needs rich, so that nothing else waits for its import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from deslaunch import wire
from deslaunch.model import RowState, counted
from deslaunch.progress import duration

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import TextIO

    from rich.console import RenderableType

    from deslaunch.model import Job
    from deslaunch.progress import Tally

_STYLES: Final = {
    RowState.STARTED: "green",
    RowState.FAILED: "red",
    RowState.REJECTED: "red",
    RowState.UNKNOWN: "bold yellow",
    RowState.INVALID: "red",
}


class Block:
    """A few lines at the terminal's end that are drawn anew while a launch goes on.

    Args:
        stream: the terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        console = Console(file=stream, highlight=False)
        self._live = Live(
            console=console,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def begin(self) -> None:
        """Take the lines at the terminal's end."""
        self._live.start()

    def above(self, text: str) -> None:
        """Print a line that stays, above the block."""
        self._live.console.print(Text(text), soft_wrap=True)

    def show(self, tally: Tally, now: float) -> None:
        """Draw the block anew."""
        self._live.update(block_of(tally, now), refresh=True)

    def close(self, tally: Tally) -> None:
        """Leave what was done as it stands, and nothing that only held while it was done."""
        self._live.update(Group(_bar(tally), _counts(tally)), refresh=True)
        self._live.stop()


class Line:
    """One line at the terminal's end that changes in place, beside a spinner.

    Args:
        stream: the terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        self._status = Console(file=stream, highlight=False).status("starting")
        self._status.start()

    def show(self, text: str) -> None:
        """Let the line say something else."""
        self._status.update(text)

    def close(self) -> None:
        """Take the line away."""
        self._status.stop()


def block_of(tally: Tally, now: float) -> RenderableType:
    """Return the block: a bar, the counts, what goes on, and why it waits.

    Args:
        tally: what was done so far.
        now: the time, by the tally's clock.
    """
    return Group(_bar(tally), _counts(tally), _now(tally, now), *_waits(tally, now))


def _bar(tally: Tally) -> RenderableType:
    if tally.left is None:
        return Text(f"{counted(tally.ended, 'row')} ended", style="bold")

    done = tally.ended - tally.counts[RowState.INVALID]
    whole = done + tally.left
    share = done / whole if whole else 1.0
    line = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=max(whole, 1), completed=done, width=36, complete_style="cyan")
    line.add_row(bar, Text(f"{done:,} of {counted(whole, 'row')}", style="bold"), f"{share:.0%}")
    return line


def _counts(tally: Tally) -> Text:
    parts = [
        Text(f"{tally.counts[state]:,} {state}", style=style)
        for state, style in _STYLES.items()
        if tally.counts[state] or state is RowState.STARTED
    ]

    if tally.retries:
        parts.append(Text(f"{tally.retries:,} sent again"))

    return Text("   ").join(parts)


def _now(tally: Tally, now: float) -> Text:
    pulse = tally.pulse
    words = []

    if pulse is not None:
        words.append(f"{pulse.in_flight:,} in flight, {counted(pulse.slots, 'slot')} now")

    if pulse is not None and pulse.waiting:
        words.append(f"{pulse.waiting:,} waiting")

    words.append(f"{tally.rate(now):,.0f} rows/s")
    left = tally.seconds_left(now)

    if left:
        words.append(f"about {duration(left)} left")

    return Text(" · ".join(words), style="dim")


def _waits(tally: Tally, now: float) -> Iterator[Text]:
    for target, seconds, cause in tally.pauses(now):
        text = f"target {target}: all rows wait {duration(seconds)} more: {cause}"
        yield Text(text, style="yellow", no_wrap=True, overflow="ellipsis")


def print_jobs(jobs: Iterable[Job], stream: TextIO) -> None:
    """Print a table for each job: its parameters and what each takes."""
    console = Console(file=stream, highlight=False)

    for job in jobs:
        title = Text.assemble((job.job_id, "bold cyan"), "  ", (job.name, "bold"))
        console.print(title, soft_wrap=True)
        console.print(_parameters(job))


def _parameters(job: Job) -> RenderableType:
    if not job.parameters:
        return Text("  takes no parameters\n", style="dim")

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)

    table.add_column("  parameter", overflow="fold")  # a name is needed to its last letter

    for heading in ("type", "required", "null", "auto"):
        table.add_column(heading, no_wrap=True)

    table.add_column("description")

    for parameter in job.parameters:
        table.add_row(
            Text(f"  {parameter.name}"),
            wire.type_name(parameter.type),
            *(
                "yes" if holds else "-"
                for holds in (parameter.required, parameter.nullable, parameter.supports_auto)
            ),
            Text(parameter.description),
        )

    return Group(table, Text(""))
