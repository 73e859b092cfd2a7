"""The fastest loop that aiohttp and uvloop allow: no check, no ledger, no second try.

python -m bench.bare URL MANIFEST SLOTS
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import orjson
import uvloop

from .ground import TYPES

if TYPE_CHECKING:
    from collections.abc import Iterator


def bodies(manifest: Path) -> Iterator[bytes]:
    """Yield what to send, a row at a time."""
    with manifest.open("rb") as lines:
        for line in lines:
            row = orjson.loads(line)
            values = {
                name: {"type": TYPES[name], "valueStringEncoded": str(value)}
                for name, value in row["parameters"].items()
            }
            yield orjson.dumps({"jobId": row["jobId"], "parameters": values})


async def send(session: aiohttp.ClientSession, url: str, waiting: Iterator[bytes]) -> None:
    """Send one body after the other."""
    for body in waiting:
        async with session.post(url, data=body) as answer:
            run = orjson.loads(await answer.read())

        assert answer.status == 200
        assert run["jobRunId"]


async def main(url: str, manifest: Path, slots: int) -> None:
    headers = {
        "Authorization": f"Bearer {os.environ['DES_TOKEN']}",
        "Content-Type": "application/json",
    }
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)

    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=slots),
        timeout=aiohttp.ClientTimeout(total=60, connect=10),  # those of deslaunch
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=headers,
    ) as session:
        waiting = bodies(manifest)
        await asyncio.gather(*(send(session, url, waiting) for _ in range(slots)))


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
