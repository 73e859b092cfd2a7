"""``watch``: the runs of a batch are followed to their end."""

from __future__ import annotations

import asyncio
import shlex
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final

import click

from deslaunch.cli import options
from deslaunch.cli.clients import clients_of, opened
from deslaunch.cli.command import command
from deslaunch.cli.exits import WATCH_EXIT_CODES
from deslaunch.cli.given import console_of, repeated, watch_options
from deslaunch.cli.loop import interruptible
from deslaunch.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from deslaunch.console import Console, WatchProgress
    from deslaunch.session import Interrupt
    from deslaunch.terms import Clients

_TICK: Final = 1.0
"""Seconds from one look at the progress to the next, where nothing happens."""


@command(
    "watch",
    examples=(
        "  deslaunch watch night.ledger.jsonl\n"
        "  deslaunch watch night.ledger.jsonl --interval 60 --watch-timeout 14400\n"
        "  deslaunch run night.csv --watch"
    ),
    exit_codes=WATCH_EXIT_CODES,
)
@click.argument("ledgers", metavar="LEDGER", type=options.FILE, nargs=-1, required=True)
@options.together(
    options.connection,
    options.tuning(
        "--concurrency",
        type=int,
        default=16,
        show_default=True,
        metavar="N",
        help="Slots: questions in flight.",
    ),
    options.tuning("--rate", type=float, metavar="R", help="Questions a second at most."),
    options.watching,
    options.max_wait,
    options.give_up_after,
    options.output,
)
def watch(ledgers: tuple[Path, ...], **given: Any) -> int:
    """Follow the runs that the batch of LEDGER started to their end, and record how they ended.

    Ended early, it goes on where it was: a run whose end is recorded is not asked about again.
    """
    ledger = _only_one(ledgers, given)
    console = console_of(given)
    clients = clients_of(given, needs_token=True)

    async def work(interrupt: Interrupt) -> int:
        async with AsyncExitStack() as stack:
            await opened(stack, clients)
            return await follow_runs(console, given, clients, interrupt, ledger)

    return interruptible(work)


def _only_one(ledgers: tuple[Path, ...], given: Mapping[str, Any]) -> Path:
    """Return the ledger that is to be watched; a glob may have named more of them."""
    if len(ledgers) > 1:
        each = shlex.join(map(str, ledgers))
        again = "".join(f" {shlex.quote(word)}" for word in repeated(given))
        raise ConfigurationError(
            f"watch follows one ledger, got {len(ledgers):,}; DES was not asked",
            hint=f'one after the other: for ledger in {each}; do deslaunch watch "$ledger"{again}; '
            "done",
        )

    return ledgers[0]


async def follow_runs(
    console: Console,
    given: Mapping[str, Any],
    clients: Clients,
    interrupt: Interrupt,
    ledger: Path,
) -> int:
    """Watch with a progress line, print how the runs stand and the next commands."""
    from deslaunch.console import WatchProgress  # noqa: PLC0415  # not needed for --help
    from deslaunch.watching import follow  # noqa: PLC0415  # aiohttp is slow to import

    with WatchProgress(console) as progress:
        ticking = asyncio.create_task(_tick(progress))

        try:
            summary = await follow(
                ledger, clients, on_event=progress, interrupt=interrupt, **watch_options(given)
            )
        finally:
            ticking.cancel()

    console.watch_summary(summary)

    if given["as_json"]:
        console.json(summary.as_dict())

    console.next_of_watch(summary, repeated(given))
    return summary.exit_code


async def _tick(progress: WatchProgress) -> None:
    """Let the progress tell how it stands, although nothing happens."""
    while True:
        await asyncio.sleep(_TICK)
        progress.tick()
