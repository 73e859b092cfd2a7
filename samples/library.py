"""Launch a file, then rows that a program makes, from Python.

The variables ``DES_BASE_URL`` and ``DES_TOKEN`` say where DES is. Both ledgers are written to
the current folder; run it a second time and it goes on with them, and starts nothing twice.

    python samples/library.py
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import deslaunch

if TYPE_CHECKING:
    from collections.abc import Iterator

NIGHT = Path(__file__).with_name("night.jsonl")
CSV_SALES_EXPORT = "8d0c3c7e-5b0f-4d5e-9a51-0f6a2f1c9e04"
WEEK = 7


def week_of_sales() -> Iterator[dict[str, Any]]:
    """Yield a row for each day of a week; rows are taken as slots become free."""
    for day in range(1, WEEK + 1):
        filters = {
            "TradingDateFrom": f"2026-02-{day:02}T00:00:00Z",
            "TradingDateTo": f"2026-02-{day:02}T23:59:59Z",
        }
        yield {"key": f"day-{day}", "jobId": CSV_SALES_EXPORT, "parameters": filters}


async def main() -> None:
    """Launch both batches, and print what became of them."""
    base_url = os.environ["DES_BASE_URL"]

    async with deslaunch.DesClient(base_url, token=deslaunch.EnvToken()) as des:
        summary = await deslaunch.launch(
            NIGHT,
            des,
            ledger="library-night.ledger.db",
            resume=True,
            settings=deslaunch.Settings(concurrency=64),
        )
        print(f"night: {summary.counts.started} of {summary.counts.rows} started")

        async with deslaunch.open_batch(
            week_of_sales(), des, ledger="library-week.ledger.db", resume=True
        ) as batch:
            async for outcome in batch:
                print(f"{outcome.key}: {outcome.state} {outcome.job_run_id}")


if __name__ == "__main__":
    asyncio.run(main())
