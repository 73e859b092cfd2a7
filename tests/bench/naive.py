"""The loop that one writes first: a task for each row, and a semaphore.

python -m bench.naive URL MANIFEST SLOTS
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import aiohttp

from .ground import TYPES


async def start(
    session: aiohttp.ClientSession, url: str, row: dict[str, Any], slots: asyncio.Semaphore
) -> str:
    values = {
        name: {"type": TYPES[name], "valueStringEncoded": str(value)}
        for name, value in row["parameters"].items()
    }

    async with slots, session.post(url, json={"jobId": row["jobId"], "parameters": values}) as got:
        run: str = (await got.json())["jobRunId"]
        return run


async def main(url: str, rows: list[dict[str, Any]], count: int) -> None:
    slots = asyncio.Semaphore(count)
    headers = {"Authorization": f"Bearer {os.environ['DES_TOKEN']}"}

    async with aiohttp.ClientSession(headers=headers) as session:
        runs = await asyncio.gather(*(start(session, url, row, slots) for row in rows))

    assert len(set(runs)) == len(rows)


if __name__ == "__main__":
    manifest = [json.loads(line) for line in Path(sys.argv[2]).read_text().splitlines()]
    asyncio.run(main(sys.argv[1], manifest, int(sys.argv[3])))
