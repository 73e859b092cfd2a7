"""The simulator's lifetime: what it drops, waits for and gives back."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import anyio
import pytest
import trustme
from rawdes import START, FullPipe, ask, connect, encode, raw, start_body

from deslaunch.simulator import OTHER_JOB, Run, Simulator, serve

if TYPE_CHECKING:
    from pathlib import Path


async def test_leaving_drops_clients_at_every_stage(tmp_path: Path) -> None:
    faults = [{"fault": "hold", "at": [1]}, {"fault": "hang", "at": [2]}]
    log = tmp_path / "runs.jsonl"

    async with (
        Simulator(script={"faults": faults}, log=log) as simulator,
        connect(simulator),
        connect(simulator) as half,
        connect(simulator) as held,
        connect(simulator) as silent,
    ):
        await half.send(encode()[:20])
        await held.send(encode())
        await simulator.until(lambda: len(simulator.runs) == 1)
        await silent.send(encode())
        await simulator.until(lambda: simulator.requests == 2)
        await simulator.refuse()
        assert [await client.reader.read() for client in (half, held, silent)] == [b""] * 3

    assert simulator.in_flight == 0


@pytest.mark.parametrize("turns", range(7))
async def test_leaving_drops_a_client_at_every_turn_of_its_accept(turns: int) -> None:
    loop = asyncio.get_running_loop()

    with socket.socket() as client:
        client.setblocking(False)

        async with Simulator() as simulator:
            url = urlsplit(simulator.base_url)
            await loop.sock_connect(client, (url.hostname, url.port))

            for _ in range(turns):
                await asyncio.sleep(0)

        with suppress(ConnectionResetError):
            assert await loop.sock_recv(client, 1) == b""


async def test_leaving_waits_for_the_write_under_way(tmp_path: Path) -> None:
    pipe = FullPipe(tmp_path / "pipe")
    leaving, left = asyncio.Event(), asyncio.Event()

    async def leave() -> None:
        async with Simulator(log=pipe.path) as simulator, connect(simulator) as client:
            await client.send(encode())
            await simulator.until(lambda: simulator.requests == 1)
            leaving.set()
            await simulator.refuse()
            runs.extend(simulator.runs)

        left.set()

    runs: list[Run] = []

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(leave)
        await leaving.wait()
        await anyio.wait_all_tasks_blocked()
        before = left.is_set()
        pipe.drain()

    logged = pipe.logged()
    assert not before
    assert [run.job_run_id for run in runs] == logged
    assert len(logged) == 1


async def test_a_failing_test_is_seen_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        async with Simulator():
            _ = 1 / 0


async def test_it_refuses_and_listens_again_on_the_same_port() -> None:
    async with Simulator() as simulator:
        url = simulator.base_url
        await simulator.refuse()
        await simulator.refuse()

        with pytest.raises(ConnectionRefusedError):
            await raw(simulator, encode())

        await simulator.listen()
        status, _ = await ask(simulator)

    assert (status, simulator.base_url) == (200, url)


async def test_a_port_that_is_taken_is_an_error(tmp_path: Path) -> None:
    async with Simulator() as simulator:
        port = urlsplit(simulator.base_url).port
        assert port is not None

        with pytest.raises(OSError, match="address already in use"):
            async with Simulator(port=port, log=tmp_path / "log"):
                pytest.fail("two can't listen on one port")


async def test_until_gives_up_its_place_when_cancelled() -> None:
    async with Simulator() as simulator:
        with anyio.move_on_after(0):
            await simulator.until(lambda: simulator.requests == 1)

        await ask(simulator)
        await simulator.until(lambda: simulator.requests == 1)


async def test_repr_tells_the_state() -> None:
    async with Simulator() as simulator:
        await ask(simulator, START, start_body(OTHER_JOB))
        await ask(simulator)
        shown = repr(simulator)

    assert shown.startswith(f"<Simulator {simulator.base_url}: 2 start requests, 1 runs, ")


async def test_it_speaks_tls() -> None:
    authority = trustme.CA()
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server_side)
    client_side = ssl.create_default_context()
    authority.configure_trust(client_side)

    async with (
        Simulator(ssl=server_side) as simulator,
        connect(simulator, tls=client_side) as client,
    ):
        await client.send(encode(close=False))
        status, _, _ = await client.answer()

    assert (status, simulator.base_url.split(":")[0]) == (200, "https")


async def test_serve_runs_until_it_is_told_to_stop() -> None:
    stop = asyncio.Event()
    urls: list[str] = []

    def ready(url: str) -> None:
        urls.append(url)
        stop.set()

    simulator = Simulator()
    await serve(simulator, ready, stop)

    assert urls == [simulator.base_url]

    with pytest.raises(ConnectionRefusedError):
        await raw(simulator, encode())
