"""``resolve``: what a person found out about rows is recorded."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from deslaunch.cli import options
from deslaunch.cli.command import command
from deslaunch.cli.given import console_of

if TYPE_CHECKING:
    from pathlib import Path


@command(
    "resolve",
    examples=(
        "  deslaunch resolve night.ledger.jsonl KEY --not-started --note 'not in DES, 8:40'\n"
        "  deslaunch resolve night.ledger.jsonl KEY --started JOBRUNID\n"
        "  deslaunch resolve night.ledger.jsonl --from findings.csv"
    ),
)
@click.argument("ledger", type=options.FILE)
@click.argument("keys", metavar="[KEY]...", nargs=-1)
@click.option("--started", metavar="JOBRUNID", help="The row started this run.")
@click.option("--not-started", is_flag=True, help="The rows started nothing.")
@click.option("--from", "file", type=options.FILE, help="CSV or JSONL: key, as, jobRunId, note.")
@click.option("--note", default="", help="Kept with each finding.")
@options.output
def resolve(
    ledger: Path,
    keys: tuple[str, ...],
    started: str | None,
    not_started: bool,  # noqa: FBT001  # click passes a flag's value by name
    file: Path | None,
    note: str,
    **given: Any,
) -> int:
    """Record what a person found out about unknown or failed rows of LEDGER."""
    from deslaunch import findings, resolution  # noqa: PLC0415  # aiohttp is slow to import

    _check_resolve(keys, started, file, not_started=not_started)
    console = console_of(given)
    found = (
        [findings.Finding(key, started, note) for key in keys]
        if file is None
        else findings.read_findings(file, note=note)
    )
    summary = asyncio.run(resolution.resolve(ledger, found))
    console.summary(summary)

    if given["as_json"]:
        console.json(summary.as_dict())

    console.next_command(summary)
    return 0


def _check_resolve(
    keys: tuple[str, ...], started: str | None, file: Path | None, *, not_started: bool
) -> None:
    if file is not None and (keys or started or not_started):
        raise click.UsageError("--from stands alone: the file names keys and findings")

    if file is None and (not keys or (started is not None) is not_started is False):
        raise click.UsageError("name at least one KEY, and --started JOBRUNID or --not-started")

    if started is not None and len(keys) > 1:
        raise click.UsageError("--started takes one KEY: two rows never share a run")
