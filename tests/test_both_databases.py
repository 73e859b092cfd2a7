"""Whatever is read of a batch, both databases say the same."""

from __future__ import annotations

import asyncio
import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pytest
from batches import BEGAN, STARTED, Said, write_batch
from ledgers import ask

from deslaunch.cli.render import log_line
from deslaunch.errors import ManifestError
from deslaunch.ledger.changes import Finding
from deslaunch.ledger.ledger import open_ledger
from deslaunch.ledger.reading import Clock, Consents
from deslaunch.model import utc
from deslaunch.report.page import write_report
from deslaunch.report.results import Choice, write_results

if TYPE_CHECKING:
    from pathlib import Path

    from postgres import Server

    from deslaunch.ledger.ledger import Ledger

ENDED: Final = "2026-11-24T01:02:10.000Z"
ROWS: Final = (
    Said("started", {"A": "Ł\\N,\"'%s", "B": None}, STARTED, run=(True, True, None, ENDED)),
    Said("run failed", attempts=STARTED, run=(True, False, "no rows\n%", ENDED)),
    Said("run goes on", attempts=STARTED, run=(False, False, "Pending", None)),
    Said("rejected", attempts=(("rejected", 400, "no: \\u0000 \x00 ☃"),), notes={"shop": "17"}),
    Said("unknown", attempts=(("unknown", None, "reset"),)),
    Said("resolved", attempts=(("unknown", None, "reset"),)),
    Said("failed", attempts=(("retry", 500, "busy"), ("failed", 502, "down"))),
    Said("in the end", attempts=(("retry", 500, "busy"), ("throttled", 429, ""), *STARTED)),
    Said("unsent", attempts=(("unsent", None, "refused"), *STARTED), target="acme"),
    Said("invalid", problem="DBGenFrom: an integer, got many"),
    Said("pending"),
)


COLUMNS: Final = ("key", "A", "B", "DBGenFrom", "deslaunch.shop")


@dataclass(frozen=True)
class Both:
    """One batch in each database."""

    file: str
    shared: str

    async def read(self, what: Any) -> tuple[Any, Any]:
        """Return what a coroutine function reads of each."""
        found = []

        for place in (self.file, self.shared):
            async with await open_ledger(place) as ledger:
                found.append(await what(ledger))

        return found[0], found[1]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, postgres: Server) -> Both:
    folder = tmp_path_factory.mktemp("both")
    made = Both(str(folder / "night.ledger.db"), f"{postgres.new_database()}#night")

    clock = Clock(wall=lambda: BEGAN + 3600, elapsed=lambda: 0.0)

    async def write() -> None:
        for place in (made.file, made.shared):
            await write_batch(
                place,
                ROWS,
                columns=("key", "A", "B", "DBGenFrom", "deslaunch.shop"),
                pauses=["HTTP 503, 8 s"],
            )

            async with await open_ledger(place, clock=clock) as ledger:
                finding = Finding("resolved", "notStarted", note="looked at 8:40")
                await ledger.resolve([finding], early=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGPASSWORD", postgres.environment["PGPASSWORD"])
        asyncio.run(write())

    return made


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize("with_manifest", [False, True])
@pytest.mark.parametrize(
    "choice",
    [
        Choice(),
        *(Choice([state]) for state in ("started", "rejected", "unknown", "pending", "failed")),
        Choice(["failed", "invalid", "rejected"]),
        *(Choice(run=run) for run in ("failed", "succeeded", "unfinished")),
        Choice(keys=["unsent", "rejected", "none"]),
    ],
)
async def test_results(both: Both, form: Any, choice: Choice, *, with_manifest: bool) -> None:
    async def write(ledger: Ledger) -> str:
        stream = io.BytesIO()
        options: Any = {"form": form, "choice": choice, "with_manifest": with_manifest}
        await write_results(ledger, stream, **options)
        return stream.getvalue().decode()

    of_file, of_shared = await both.read(write)
    assert of_file == of_shared
    assert of_file.count("\n") >= 1


async def test_the_page(both: Both, tmp_path: Path) -> None:
    async def write(ledger: Ledger) -> str:
        await write_report(ledger, tmp_path / "page.html", force=True)
        text = (tmp_path / "page.html").read_text("utf-8")
        return text.replace(f"&#39;{ledger.place}&#39;", "X").replace(ledger.place, "X")

    of_file, of_shared = await both.read(write)
    assert of_file == of_shared
    assert "no rows" in of_file


async def test_the_log(both: Both) -> None:
    async def read(ledger: Ledger) -> list[Any]:
        found = [log_line(one) async for portion in ledger.log() for one in portion]
        return [one for one in found if one["kind"] != "resolution"]  # of this moment

    of_file, of_shared = await both.read(read)
    assert json.loads(json.dumps(of_file)) == json.loads(json.dumps(of_shared))
    assert {"attempt", "began", "ended", "event"} == {one["kind"] for one in of_file}


async def test_how_it_stands(both: Both) -> None:
    async def read(ledger: Ledger) -> list[Any]:
        unknown = [one async for portion in ledger.unknown_rows() for one in portion]
        sendable = ledger.sendable(Consents(unknown=True))
        starts = [one async for portion in sendable for one in portion]
        summary = await ledger.watch_summary()
        plan = await ledger.plan(Consents(rejected=True, unknown=True))
        told = (summary._replace(batch=summary.batch._replace(ledger="")), plan._replace(ledger=""))
        return [unknown, starts, *told, await ledger.jobs(), await ledger.targets()]

    of_file, of_shared = await both.read(read)
    assert of_file == of_shared
    assert [row.key for row in of_file[0]] == ["unknown"]


def test_the_view_of_users(both: Both) -> None:
    columns = "batch, key, row, target, job_id, job_name, state, job_run_id, attempts, status"
    more = "error, finished, success, status_text, output_files"
    query = f"SELECT {columns}, {more}, possible_duplicate FROM results ORDER BY row"
    assert ask(both.file, query) == ask(both.shared, query)

    query = "SELECT sent_utc, answered_utc, finished_utc FROM results ORDER BY row"
    times, found = ask(both.shared, query), ask(both.file, query)
    assert [tuple(at and utc(round(at.timestamp() * 1000)) for at in row) for row in times] == found
    assert times[0][0].timestamp() > BEGAN


@pytest.mark.parametrize("key", ["\udcff", "a\0b", "k" * 5000])
async def test_a_key_that_no_row_can_have_is_no_key_of_the_batch(both: Both, key: str) -> None:
    async def look(ledger: Ledger) -> Any:
        with pytest.raises(ManifestError, match="is no key of the batch"):
            await ledger.resolve([Finding(key, "started", "\udcff")])

        return [portion async for portion in ledger.results(keys=[key])]

    assert await both.read(look) == ([], [])
