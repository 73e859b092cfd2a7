"""Ledgers of a million rows, written after the documented format and not by deslaunch's code.

python -m bench.made MANIFEST LEDGER BASE_URL ROWS ENDED

The first ENDED of the manifest's ROWS rows are started; of the others the ledger says nothing,
as after a kill between two rows.
"""

from __future__ import annotations

import hashlib
import sys
from binascii import crc32
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from .ground import body, rows

if TYPE_CHECKING:
    from collections.abc import Iterator

_UTC = "2026-01-31T01:02:03.456Z"
_SLOTS = 64  # rows that are in flight at the same time


def line(**record: Any) -> bytes:
    """Return a record as a line of a ledger."""
    head = orjson.dumps(record)[:-1]
    return head + b',"crc":"%08x"}\n' % crc32(head)


def digest(row: dict[str, Any]) -> str:
    """Return the digest of what a row says."""
    said = [[name, str(value)] for name, value in sorted(row["parameters"].items())]
    return hashlib.sha256(orjson.dumps(["default", row["jobId"], said])).hexdigest()[:32]


def header(manifest: dict[str, Any]) -> bytes:
    return line(
        record="batch",
        ledger="deslaunch/1",
        batchId="0a8a9c3e-7d0c-4f0e-8f0e-0123456789ab",
        createdUtc=_UTC,
        manifest=manifest,
        format="jsonl",
        jobId=None,
        target=None,
        shard=None,
        allow=[],
        skipInvalid=False,
        version="bench",
    )


def session(manifest: dict[str, Any], base_url: str) -> bytes:
    return line(
        record="session",
        utc=_UTC,
        pid=1,
        host="bench",
        manifest=manifest,
        targets={"default": {"baseUrl": base_url, "orgId": None}},
        options={},
    )


def sending(number: int, row: dict[str, Any]) -> bytes:
    return line(
        record="sending",
        key=row["key"],
        row=number,
        line=number,
        jobId=row["jobId"],
        attempt=1,
        digest=digest(row),
        body=orjson.Fragment(body(row)),
        utc=_UTC,
    )


def started(number: int, row: dict[str, Any]) -> bytes:
    run = f"6a08c1d2-0000-4000-8000-{number:012x}"
    return line(record="started", key=row["key"], attempt=1, jobRunId=run, utc=_UTC)


def lines(manifest: Path, base_url: str, count: int, ended: int) -> Iterator[bytes]:
    """Yield a ledger's lines; a row's outcome stands a slot's length behind its sending."""
    with manifest.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()

    said = {"path": str(manifest), "sha256": sha256, "rows": count}
    yield header(said)
    yield session(said, base_url)
    in_flight: list[bytes] = []

    for number, row in enumerate(rows(ended), 1):
        yield sending(number, row)
        in_flight.append(started(number, row))

        if len(in_flight) == _SLOTS:
            yield from in_flight
            in_flight.clear()

    yield from in_flight


def main(manifest: str, ledger: str, base_url: str, count: str, ended: str) -> None:
    with Path(ledger).open("wb") as file:
        file.writelines(lines(Path(manifest), base_url, int(count), int(ended)))


if __name__ == "__main__":
    main(*sys.argv[1:])
