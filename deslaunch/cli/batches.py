"""Commands for several batches: those of this machine, and those of a database."""

import asyncio
import os
from collections.abc import Collection
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

_COUNTED: Final = (("started",), ("failed", "rejected", "invalid"), ("unknown",), ("pending",))
_TITLES: Final = (
    *("last begun", "exit code", "started", "not started", "unknown", "pending", "ledger"),
)


async def list_batches(given: Given) -> None:
    """Print the batches of a database, the newest first."""
    place = parse_place(given["ledger"])
    found = await asyncio.to_thread(_server().list_batches, place.url, place.database)
    printer = given.printer

    if given["as_json"]:
        names = ("batch", "rows", "importedUtc", "launchers", "lastExitCode")
        told = [(*one[:2], utc(one.imported_ms), *one[3:]) for one in found]
        printer.json({"batches": [dict(zip(names, one, strict=True)) for one in told]})
    elif found:
        rows = [("batch", "rows", "imported", "at work", "last exit code")]

        for one in found:
            code = "-" if one.exit_code is None else str(one.exit_code)
            at_work = str(one.launchers or "-")
            rows.append((one.name, f"{one.rows:,}", utc(one.imported_ms), at_work, code))

        printer.data(*render.columns(rows))
    else:
        printer.say("there are no batches")


@options.command(
    "history",
    click.Argument(["text"], metavar="[TEXT]", required=False),
    options.flag("--unfinished", "Only batches with rows left that were not given up."),
    *options.OUTPUT,
)
async def history(given: Given) -> int:
    """List the batches of this machine, the latest last.

    TEXT selects batches by a part of the ledger's or manifest's path. Every launch adds its batch
    to the list, in deslaunch's state folder, with the counts at its end. "not started": rows that
    failed, were rejected or are invalid. "given up": --again began another batch of its rows.

    Examples:
        deslaunch history night --unfinished
        deslaunch history --json | jq -r '.batches[] | select(.exitCode == 5) | .ledger'
    """
    text, known = given["text"] or "", await asyncio.to_thread(_history(given).batches)
    found = [one for one in known if text in one.place or text in one.manifest]
    found = [one for one in found if one.has_rows_left or not given["unfinished"]]
    gone = await asyncio.to_thread(lambda: [one.place for one in found if _is_gone(one.place)])

    if given["as_json"]:
        batches = [{**_as_dict(one), "gone": one.place in gone} for one in found]
        given.printer.json({"batches": batches})
    elif found:
        given.printer.data(*render.columns([_TITLES, *(_cells(one, gone) for one in found)]))
    else:
        given.printer.say(f"there are no {'such ' if known else ''}batches")

    return 0


def _is_gone(place: str) -> bool:
    return not is_shared(place) and not os.path.exists(place)  # noqa: PTH110  # it may be no UTF-8


def _cells(noted: "Noted", gone: Collection[str]) -> tuple[str, ...]:
    """Return a batch as a line of the list, its columns as in ``_TITLES``."""
    counts = noted.counts
    numbers = [sum(counts.get(name, 0) for name in names) for names in _COUNTED]
    cells = [f"{number:,}" if counts else "-" for number in numbers]
    code = "at work, or killed" if noted.ended_ms is None else str(noted.exit_code)
    marks = " (given up)" * noted.is_given_up + " (gone)" * (noted.place in gone)
    return utc(noted.began_ms), code, *cells, f"{noted.place}{marks}"


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
    """Find rows by TEXT in all batches of this machine.

    TEXT is a whole key, jobRunId or parameter value. A warning names each ledger that is gone,
    can't be read, or is an older copy. Exits with 3 if no row is found.

    Examples:
        deslaunch find store-17
        deslaunch find 1f0c9d1e-0d9c-4b7e-9d39-6f6f0c1b7a42 --json
    """
    from deslaunch.launch.witness import find_copy  # noqa: PLC0415  # not needed for --help
    from deslaunch.ledger.ledger import open_ledger  # noqa: PLC0415
    from deslaunch.report.results import as_result  # noqa: PLC0415

    printer, text, known, number = given.printer, given["text"], _history(given), 0
    passed: dict[str, list[str]] = {"is gone": [], "can't be read": []}

    if not text:
        raise click.UsageError("TEXT is empty: name a key, a jobRunId or a value")

    for noted in reversed(await asyncio.to_thread(known.batches)):
        try:
            async with await open_ledger(usable_place(noted.place)) as ledger:
                if ledger.batch.uid != noted.uid:  # a later batch has the name of one that is gone
                    raise errors.LedgerMissing(noted.place)

                rows, copied = await ledger.find(text), await find_copy(ledger, known)
        except errors.DeslaunchError as exc:
            is_gone = isinstance(exc, errors.LedgerMissing)
            passed["is gone" if is_gone else "can't be read"].append(noted.place)
            continue

        if copied:
            printer.warn("; ".join(copied))

        for row in rows:
            number += 1

            if given["as_json"]:
                printer.json({"ledger": noted.place, **as_result(row)})
            else:
                printer.data(render.found_line(noted.place, row, text))

    printer.warn(*(f"{place} {why}" for why, places in passed.items() for place in places))

    if not number:
        printer.say(f"no batch of this machine has a row with {text!r}")

    return 0 if number else _NOTHING


@options.command(
    "export", options.LEDGER, click.Argument(["file"], metavar="FILE"), *options.VOLUME
)
async def export(given: Given) -> int:
    """Copy the batch of LEDGER, as it is now, to the new FILE.

    A launcher may be at work; its rows in flight are unknown in the copy. FILE is written whole or
    not at all, readable only by you, and must not exist. For PostgreSQL use pg_dump.

    Examples:
        deslaunch export night.ledger.db /backup/night.ledger.db
    """
    from deslaunch.ledger.ledger import open_ledger  # noqa: PLC0415  # not needed for --help

    file = given["file"]

    async with await open_ledger(given["ledger"]) as ledger:
        await ledger.export(file)
        told = f"{file}: a copy of {ledger.place}; if that is lost, resume this with --accept-copy"
        given.printer.say(told)

    return 0


@options.command(
    "upgrade",
    click.Argument(["ledger"], required=False, **options.PLACE),
    options.flag("--sql", "Print the SQL that makes the schema, and change nothing."),
    *options.VOLUME,
)
async def upgrade(given: Given) -> int:
    """Make or upgrade the schema of LEDGER's database.

    LEDGER is a libpq URL, with or without #NAME. A ledger that is a file needs no upgrade.

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
