"""``resolve``: what a person found out about rows is recorded."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from deslaunch.cli import options
from deslaunch.cli.command import command
from deslaunch.cli.exits import EXIT_DECLINED
from deslaunch.cli.given import console_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from deslaunch.console import Console
    from deslaunch.findings import Finding
    from deslaunch.results import UnknownRow

_SHOWN: Final = 20
"""Keys that are told one by one."""


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
@options.together(options.yes, options.output)
def resolve(
    ledger: Path,
    keys: tuple[str, ...],
    started: str | None,
    not_started: bool,  # noqa: FBT001  # click passes a flag's value by name
    file: Path | None,
    note: str,
    **given: Any,
) -> int:
    """Record what a person found out about unknown or failed rows of LEDGER.

    Where DES may list a row's run later than now, it says until when and, on a terminal, asks
    before it is recorded that the row started nothing.
    """
    from deslaunch import findings, resolution  # noqa: PLC0415  # aiohttp is slow to import

    _check_resolve(keys, started, file, not_started=not_started)
    console = console_of(given)
    found = (
        [findings.Finding(key, started, note) for key in keys]
        if file is None
        else findings.read_findings(file, note=note)
    )

    async def work() -> int:
        early = await resolution.premature(ledger, found, datetime.now(UTC))

        if early and not await _is_meant(console, early, yes=given["yes"]):
            console.insist("nothing was recorded")
            return EXIT_DECLINED

        summary = await resolution.resolve(ledger, found)
        _confirm(console, found)
        console.summary(summary)

        if given["as_json"]:
            console.json(summary.as_dict())

        console.next_command(summary)
        return 0

    return asyncio.run(work())


async def _is_meant(console: Console, early: Sequence[UnknownRow], *, yes: bool) -> bool:
    """Warn of what nobody can be sure of yet, and ask whether to go on if a person is there."""
    keys = [row.key for row in early]
    more = " …" if len(keys) > _SHOWN else ""
    console.warn(
        f"it is too early to say that nothing was started for {', '.join(keys[:_SHOWN])}{more}: "
        f"DES may list a run until {max(row.to_utc for row in early)}, or later, if a gateway held "
        "it back; if it does, resume starts a second one"
    )
    asks = console.can_ask and not yes
    return not asks or await console.ask("Record all the same that nothing was started?")


def _confirm(console: Console, found: Sequence[Finding]) -> None:
    for finding in found[:_SHOWN]:
        what = "started nothing" if finding.job_run_id is None else f"started {finding.job_run_id}"
        console.say(f"recorded: key {finding.key} {what}")

    if len(found) > _SHOWN:
        console.say(f"recorded: {len(found) - _SHOWN:,} more")


def _check_resolve(
    keys: tuple[str, ...], started: str | None, file: Path | None, *, not_started: bool
) -> None:
    if file is not None and (keys or started or not_started):
        raise click.UsageError("--from stands alone: the file names keys and findings")

    if file is None and (not keys or (started is not None) is not_started is False):
        raise click.UsageError("name at least one KEY, and --started JOBRUNID or --not-started")

    if started is not None and len(keys) > 1:
        raise click.UsageError("--started takes one KEY: two rows never share a run")
