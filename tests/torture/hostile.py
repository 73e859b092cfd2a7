"""Servers that answer to do harm: what the client makes of it, in which time and memory."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from deslaunch.simulator import OTHER_JOB, POS_USAGE_EXPORT

from .arena import QUICK, TOKEN, Arena, side_by_side
from .tally import Tally
from .witness import read

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
    from pathlib import Path

    Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]

MOST_MEMORY: Final = 200 << 20
GIGABYTE: Final = 1 << 30
TIMEOUT: Final = 2.0
START_UP: Final = 12.0
"""Seconds that a command may take beside its timeout, on a busy machine."""

_RUN: Final = "11111111-2222-4333-8444-555555555555"
_CHUNK: Final = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


async def _endless_chunks(writer: asyncio.StreamWriter) -> None:
    writer.write(_HEAD + b"Transfer-Encoding: chunked\r\n\r\n")

    for _ in range(GIGABYTE // 0x10000):
        writer.write(_CHUNK)
        await writer.drain()


async def _gigabyte(writer: asyncio.StreamWriter) -> None:
    writer.write(_HEAD + f"Content-Length: {GIGABYTE}\r\n\r\n".encode())

    for _ in range(GIGABYTE // 0x10000):
        writer.write(b"x" * 0x10000)
        await writer.drain()


async def _endless_headers(writer: asyncio.StreamWriter) -> None:
    writer.write(_HEAD)

    while True:
        writer.write(b"X-More: and more\r\n" * 1000)
        await writer.drain()


async def _endless_header(writer: asyncio.StreamWriter) -> None:
    writer.write(_HEAD + b"X-Long: ")

    while True:
        writer.write(b"x" * 0x10000)
        await writer.drain()


async def _endless_1xx(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"HTTP/1.1 102 Processing\r\n\r\n" * 100)
        await writer.drain()
        await asyncio.sleep(0.001)


async def _gzip_bomb(writer: asyncio.StreamWriter) -> None:
    bomb = gzip.compress(bytes(300 << 20), 1)
    head = _HEAD + b"Content-Encoding: gzip\r\n"
    writer.write(head + f"Content-Length: {len(bomb)}\r\n\r\n".encode() + bomb)
    await writer.drain()


async def _byte_a_second(writer: asyncio.StreamWriter) -> None:
    writer.write(_HEAD + b"Content-Length: 200\r\n\r\n")

    while True:
        writer.write(b"{")
        await writer.drain()
        await asyncio.sleep(1)


async def _nested(writer: asyncio.StreamWriter) -> None:
    await _body(writer, b"[" * 500_000 + b"]" * 500_000)


async def _other_job(writer: asyncio.StreamWriter) -> None:
    await _body(writer, _started(OTHER_JOB))


async def _same_run(writer: asyncio.StreamWriter) -> None:
    await _body(writer, _started(POS_USAGE_EXPORT))


def _started(job_id: str) -> bytes:
    return json.dumps({"jobId": job_id, "jobRunId": _RUN}).encode()


async def _body(writer: asyncio.StreamWriter, body: bytes) -> None:
    writer.write(_HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
    await writer.drain()


@dataclass
class Foe:
    """A listening server, and what came to it."""

    base_url: str = ""
    requests: int = 0
    received: bytes = b""


@asynccontextmanager
async def foe(answer: Answer) -> AsyncIterator[Foe]:
    """Answer every request on loopback in one way."""
    made = Foe()
    at_work: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        at_work.add(task)

        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
                made.received += head + await reader.readexactly(length)
                made.requests += 1
                await answer(writer)

        at_work.discard(task)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    made.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    try:
        yield made
    finally:
        server.close()

        for task in at_work:
            task.cancel()


ANSWERS: Final[Mapping[str, tuple[Answer, str]]] = {
    "a body of 1 GB": (_gigabyte, "unknown"),
    "a body of 1 GB in chunks": (_endless_chunks, "unknown"),
    "endless headers": (_endless_headers, "unknown"),
    "one endless header": (_endless_header, "unknown"),
    "endless 1xx": (_endless_1xx, "unknown"),
    "a gzip bomb": (_gzip_bomb, "unknown"),
    "one byte a second": (_byte_a_second, "unknown"),
    "a million brackets": (_nested, "unknown"),
    "another job's id": (_other_job, "unknown"),
    "one run for all": (_same_run, "started"),
}


async def servers(folder: Path, *, fast: bool, rng: random.Random) -> Tally:
    """Let each of them answer the first start, and then QueryJobs."""
    tally = Tally("hostile servers")
    peaks: dict[str, int] = {}

    async def start(name: str, answer: Answer, state: str) -> None:
        async with foe(answer) as server:
            place = _place(folder / f"start {name}", server)
            options = ("--schema", str(place.schema), "--timeout", str(TIMEOUT), *QUICK)
            began = time.monotonic()
            done = await place.run("run", str(place.manifest), *options)
            seconds = time.monotonic() - began
            states = {story.state for story in read(place.ledger).values()}
            expected = ({"started"}, 3) if state == "started" else ({"unknown"}, 1)
            peaks[name] = done.peak
            tally.cases += 1
            tally.starts += server.requests
            tally.unknown += state == "unknown"
            tally.expect((states, server.requests) == expected, f"{name}: {states}: {done}")
            tally.expect(done.code == (0 if state == "started" else 5), f"{name}: {done}")
            tally.expect(done.peak < MOST_MEMORY, f"{name}: {done.peak >> 20} MB")
            tally.expect(seconds < TIMEOUT + START_UP, f"{name}: {seconds:.0f} s")
            tally.expect("Traceback" not in done.err, f"{name}: {done}")

            if state == "started":
                told = await place.run("status", str(place.ledger))
                flag = "jobRunId"
                tally.expect(flag in done.err, f"{name}: the run's summary says nothing: {done}")
                tally.expect(flag in told.out + told.err, f"{name}: status says nothing: {told}")

    async def query(name: str, answer: Answer) -> None:
        async with foe(answer) as server:
            place = _place(folder / f"query {name}", server)
            began = time.monotonic()
            done = await place.run("run", str(place.manifest), "--timeout", str(TIMEOUT))
            seconds = time.monotonic() - began
            tally.cases += 1
            peaks[name] = max(peaks.get(name, 0), done.peak)
            tally.expect(done.code in {2, 5}, f"QueryJobs, {name}: {done}")
            tally.expect(not place.is_begun, f"QueryJobs, {name}: a batch was begun")
            tally.expect(b"startjob" not in server.received, f"QueryJobs, {name}: sent")
            tally.expect(done.peak < MOST_MEMORY, f"QueryJobs, {name}: {done.peak >> 20} MB")
            tally.expect(seconds < TIMEOUT + START_UP, f"QueryJobs, {name}: {seconds:.0f} s")
            tally.expect("Traceback" not in done.err, f"QueryJobs, {name}: {done}")

    chosen = {name: ANSWERS[name] for name in list(ANSWERS)[:: 3 if fast else 1]}
    works = [partial(start, name, answer, state) for name, (answer, state) in chosen.items()]
    works += [partial(query, name, answer) for name, (answer, _) in chosen.items() if not fast]
    await side_by_side(works, 2)
    await _redirects(tally, folder, (302, 307) if fast else (301, 302, 307, 308))
    name = max(peaks, key=lambda found: peaks[found])
    tally.note(f"most memory: {peaks[name] >> 20} MB, by {name}")
    return tally


def _place(folder: Path, server: Foe) -> Arena:
    folder.mkdir(parents=True)
    place = Arena(folder, server.base_url)
    place.write_rows(3)
    return place


async def _redirects(tally: Tally, folder: Path, statuses: tuple[int, ...]) -> None:
    async with foe(_same_run) as elsewhere:
        for status in statuses:
            head = f"HTTP/1.1 {status} Go\r\nLocation: {elsewhere.base_url}/api/v1/startjob\r\n"

            async def answer(writer: asyncio.StreamWriter, head: str = head) -> None:
                writer.write(f"{head}Content-Length: 0\r\n\r\n".encode())
                await writer.drain()

            async with foe(answer) as server:
                place = _place(folder / f"redirect {status}", server)
                options = ("--schema", str(place.schema))
                done = await place.run("run", str(place.manifest), *options)
                states = {story.state for story in read(place.ledger).values()}
                tally.cases += 1
                tally.starts += server.requests
                tally.expect((done.code, states) == (5, {"pending"}), f"{status}: {done}")

        tally.expect(not elsewhere.requests, "a redirect was followed")
        tally.expect(TOKEN.encode() not in elsewhere.received, "a redirect got the token")
