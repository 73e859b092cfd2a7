"""What is about many batches: those of this machine, and those of a database and its schema."""

import asyncio
from typing import TYPE_CHECKING, Any, Final

import click

from deslaunch import errors
from deslaunch.cli import options, render
from deslaunch.cli.options import Given
from deslaunch.ledger.place import is_shared, parse_place, usable_place
from deslaunch.model import utc

if TYPE_CHECKING:
    from types import ModuleType

    from deslaunch.ledger.history import History, Noted

_NOTHING: Final = 3


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


@options.command("history", *options.OUTPUT)
async def history(given: Given) -> int:
    """List the batches of this machine, the latest last.

    They are told as they stood when last noted. Every launch keeps the list, in your state folder
    of deslaunch.

    Examples:
        deslaunch history
        deslaunch history --json | jq -r '.batches[] | select(.exitCode == 5) | .ledger'
    """
    found = await asyncio.to_thread(_history(given).batches)

    if given["as_json"]:
        given.printer.json({"batches": [_as_dict(one) for one in found]})
        return 0

    if not found:
        given.printer.say("there are no batches")
        return 0

    rows: list[tuple[str, ...]] = [("last begun", "exit code", "started", "pending", "ledger")]

    for one in found:
        code = "at work, or killed" if one.ended_ms is None else str(one.exit_code)
        numbers = (
            f"{one.counts[name]:,}" if one.counts else "-" for name in ("started", "pending")
        )
        given_up = " (given up)" if one.is_given_up else ""
        rows.append((utc(one.began_ms), code, *numbers, f"{one.place}{given_up}"))

    given.printer.data(*render.columns(rows))
    return 0


def _history(given: Given) -> "History":
    from deslaunch.ledger.history import History  # noqa: PLC0415  # not needed for --help

    return History.of_user(given.printer.warn)


def _as_dict(noted: "Noted") -> dict[str, Any]:
    return {
        "ledger": noted.place,
        "manifest": noted.manifest,
        "sha256": noted.digest,
        "sessions": noted.session,
        "attempts": noted.attempts,
        "beganUtc": utc(noted.began_ms),
        "endedUtc": None if noted.ended_ms is None else utc(noted.ended_ms),
        "exitCode": None if noted.ended_ms is None else noted.exit_code,
        "givenUp": noted.is_given_up,
        "counts": noted.counts or None,
    }


@options.command("find", click.Argument(["text"], metavar="TEXT"), *options.OUTPUT)
async def find(given: Given) -> int:
    """Find the rows and runs of TEXT in all batches of this machine.

    TEXT is a key, a jobRunId or a parameter's value, the whole of it. Ledgers that are gone, or
    can't be read, are passed over and told.
    Exits with 3 where nothing is found.

    Examples:
        deslaunch find store-17
        deslaunch find 1f0c9d1e-0d9c-4b7e-9d39-6f6f0c1b7a42 --json
    """
    from deslaunch.ledger.ledger import open_ledger  # noqa: PLC0415  # not needed for --help
    from deslaunch.report.results import as_result  # noqa: PLC0415

    printer, gone, number = given.printer, [], 0

    for noted in reversed(await asyncio.to_thread(_history(given).batches)):
        try:
            async with await open_ledger(usable_place(noted.place)) as ledger:
                rows = await ledger.find(given["text"])
        except errors.DeslaunchError:
            gone.append(noted.place)
            continue

        for row in rows:
            number += 1

            if given["as_json"]:
                printer.json({"ledger": noted.place, **as_result(row)})
            else:
                printer.data(render.found_line(noted.place, row))

    if gone:
        printer.warn(f"not looked into, since they can't be read: {', '.join(gone)}")

    if not number:
        printer.say(f"no batch of this machine knows {given['text']!r}")

    return 0 if number else _NOTHING


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
