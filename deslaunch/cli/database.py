"""What is about a database of batches, not about one batch: its list, and its schema."""

import asyncio
from typing import TYPE_CHECKING

import click

from deslaunch import errors
from deslaunch.cli import options, render
from deslaunch.cli.options import Given
from deslaunch.ledger.place import is_shared, parse_place
from deslaunch.model import utc

if TYPE_CHECKING:
    from types import ModuleType


async def list_batches(given: Given) -> None:
    """Print the batches of a database, the newest first."""
    place = parse_place(given["ledger"])
    found = await asyncio.to_thread(_server().list_batches, place.url, place.database)
    printer = given.printer

    if given["as_json"]:
        names = ("batch", "rows", "importedUtc", "launchers", "lastExitCode")
        told = [(*one[:2], utc(one.imported_ms), *one[3:]) for one in found]
        printer.json({"batches": [dict(zip(names, one, strict=True)) for one in told]})
        return

    if not found:
        printer.say("there are no batches")
        return

    rows: list[tuple[str, ...]] = [("batch", "rows", "imported", "at work", "last exit code")]

    for one in found:
        code = "-" if one.exit_code is None else str(one.exit_code)
        at_work = str(one.launchers or "-")
        rows.append((one.name, f"{one.rows:,}", utc(one.imported_ms), at_work, code))

    printer.data(*render.columns(rows))


@options.command(
    "upgrade",
    click.Argument(["ledger"], required=False, **options.PLACE),
    options.flag("--sql", "Print the SQL that makes the schema; do nothing."),
    *options.VOLUME,
)
async def upgrade(given: Given) -> int:
    """Make the schema of LEDGER's database, or bring it up to date.

    LEDGER is a libpq URL, with or without #NAME. A ledger that is a file is of one version.

    Examples:
        deslaunch upgrade postgresql://admin@host/exports
        deslaunch upgrade --sql | psql exports
    """
    place = given["ledger"] or "#"

    if given["sql"]:
        given.printer.data("BEGIN;", await asyncio.to_thread(_server().schema_sql), "COMMIT;")
        return 0

    if not is_shared(place):
        from deslaunch.ledger.ledger import open_ledger  # noqa: PLC0415  # not needed for --help

        async with await open_ledger(place):  # refuses another version
            given.printer.say(f"{place}: is of this version: nothing to do")
            return 0

    found = parse_place(place)
    done = await asyncio.to_thread(_server().upgrade, found.url, found.database)
    given.printer.say(f"{found.database}: {done}")
    return 0


def _server() -> "ModuleType":
    """Return the module that speaks to PostgreSQL."""
    with errors.needs_extra("postgres", "a ledger in PostgreSQL"):
        from deslaunch.ledger import postgres_server  # noqa: PLC0415

    return postgres_server
