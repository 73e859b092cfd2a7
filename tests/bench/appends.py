"""The ledger alone: producers that do what slots do, without a service.

python -m bench.appends LEDGER ROWS PRODUCERS
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from deslaunch import records
from deslaunch.ledger import Ledger
from deslaunch.model import StartRequest

from .ground import JOB_ID, body, rows

if TYPE_CHECKING:
    from collections.abc import Iterator

_RUN = "01234567-0000-4000-8000-0123456789ab"


def requests(count: int) -> Iterator[StartRequest]:
    """Yield starts of one body, since to make bodies is not the ledger's work."""
    (row,) = rows(1)
    said = body(row).encode()

    for number in range(1, count + 1):
        yield StartRequest(
            key=f"store-{number:07}",
            row=number,
            line=number,
            target="default",
            job_id=JOB_ID,
            digest=f"{number:032x}",
            body=said,
            auto=False,
        )


async def produce(ledger: Ledger, waiting: Iterator[StartRequest]) -> None:
    """Await each ``sending`` and queue each outcome, as a slot does."""
    for request in waiting:
        await ledger.append(records.sending(request, 1, with_body=True))
        ledger.append(records.started(request.key, 1, job_run_id=_RUN))


async def main(path: Path, count: int, producers: int) -> None:
    header = records.batch(
        batch_id="bench",
        manifest=None,
        format=None,
        job_id=None,
        target=None,
        allow=(),
        skip_invalid=False,
        version="bench",
    )

    async with await Ledger.create(path) as ledger:
        await ledger.append(header)
        waiting = requests(count)
        await asyncio.gather(*(produce(ledger, waiting) for _ in range(producers)))


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
