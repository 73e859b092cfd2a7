"""One batch in PostgreSQL, sent by several launchers, beside one that is a file.

The server runs on this machine too, and so does the service: with two cores the launchers share
what those leave.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from postgres import Server as Postgres
from postgres import missing

from .ground import Ground
from .process import measure
from .rivals import DESLAUNCH

if TYPE_CHECKING:
    from pathlib import Path

    from .figures import Figures
    from .race import Tell
    from .server import Server

LAUNCHERS: Final = (1, 2, 4)
SLOTS: Final = (64, 256)
STOPPED: Final = 5  # the exit code of a run that --limit ended


def share(
    server: Server, folder: Path, rows: int, rounds: int, figures: Figures, tell: Tell
) -> None:
    """Measure launchers on one batch: rows a second, of whole processes from import to end."""
    if reason := missing():
        figures.missing["shared"] = reason
        tell(f"shared: not available: {reason}")
        return

    ground = Ground(folder, rows, server.url)
    postgres = Postgres()

    try:
        _import(ground, postgres, figures, tell)

        for _ in range(rounds):
            for slots in SLOTS:
                for launchers in (0, *LAUNCHERS):
                    _send(ground, postgres, launchers, slots, figures, tell)
    finally:
        postgres.close()


def _send(
    ground: Ground,
    postgres: Postgres,
    launchers: int,
    slots: int,
    figures: Figures,
    tell: Tell,
) -> None:
    place = f"{postgres.new_database()}#night" if launchers else str(ground.new_ledger())
    joins = ("--resume", "--join") if launchers else ()
    command = (*_run(ground, place), "--concurrency", str(slots), *joins)
    used = measure([command] * (launchers or 1), ground.environment | postgres.environment)
    name = f"PostgreSQL, {launchers} launchers" if launchers else "file"
    name += f", {slots} slots"
    figures.add(name, "rows/s", ground.rows / used.seconds, cpu=used.cpu / ground.rows * 1e6)
    tell(f"{name}: {ground.rows / used.seconds:,.0f} rows/s")


def _import(ground: Ground, postgres: Postgres, figures: Figures, tell: Tell) -> None:
    """Measure a check and import by themselves, and what the tables take when all is sent."""
    url = postgres.new_database()
    accepted = frozenset({0, STOPPED})
    environment = ground.environment | postgres.environment
    command = (*_run(ground, f"{url}#night"), "--limit", "1")
    seconds = measure([command], environment, accepted=accepted).seconds
    figures.add("PostgreSQL, import", "rows/s", ground.rows / seconds)
    resume = (*DESLAUNCH, "resume", f"{url}#night", "--quiet", "--yes", "--concurrency", "64")
    measure([resume], environment)

    sizes = "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relkind = 'r' AND "
    sizes += "relnamespace = 'deslaunch'::regnamespace"
    before = int(postgres.sql(sizes, database=url)[0][0])
    postgres.sql("VACUUM FULL", database=url)
    after = int(postgres.sql(sizes, database=url)[0][0])
    figures.add("PostgreSQL, tables after all is sent", "bytes a row", before / ground.rows)
    figures.add("PostgreSQL, of that without bloat", "bytes a row", after / ground.rows)
    tell(f"import: {ground.rows / seconds:,.0f} rows/s; tables: {before:,} bytes, {after:,} packed")


def _run(ground: Ground, place: str) -> tuple[str, ...]:
    files = (str(ground.jsonl), "--ledger", place, "--base-url", ground.base_url)
    return (*DESLAUNCH, "run", *files, "--quiet", "--yes")
