"""The simulator's log: no run is answered before it is on disk."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import anyio
import orjson
import pytest
from rawdes import AUTO, JOBS, START, FullPipe, ask, connect, encode, log_of, raw, start_body

from deslaunch.simulator import OTHER_JOB, POS_USAGE_EXPORT, Simulator


async def test_a_line_tells_which_row_it_was(tmp_path: Path) -> None:
    log = tmp_path / "runs.jsonl"
    log.write_bytes(b'{"jobRunId":"of an earlier simulator"}\n')

    async with Simulator(log=log, clock=lambda: 0.25) as simulator:
        await ask(simulator, START, start_body(OTHER_JOB))
        _, started = await ask(simulator, START, start_body(parameters={"DBGenFrom": AUTO}))

    assert log_of(log)[1:] == [
        {
            "jobRunId": started["jobRunId"],
            "jobId": POS_USAGE_EXPORT,
            "parameters": {"DBGenFrom": AUTO},
            "request": 2,
            "utc": "1970-01-01T00:00:00.250Z",
        }
    ]


async def test_a_short_write_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:7]))

    async with Simulator(log=tmp_path / "runs.jsonl") as simulator:
        await ask(simulator)

    assert len(log_of(tmp_path / "runs.jsonl")) == 1


async def test_the_log_is_for_its_owner(tmp_path: Path) -> None:
    async with Simulator(log=tmp_path / "runs.jsonl"):
        pass

    assert (tmp_path / "runs.jsonl").stat().st_mode & 0o777 == 0o600


async def test_no_run_is_answered_before_it_is_in_the_log(tmp_path: Path) -> None:
    pipe = FullPipe(tmp_path / "pipe")

    async with (
        Simulator(log=pipe.path) as simulator,
        connect(simulator) as first,
        connect(simulator) as second,
    ):
        reads = [asyncio.create_task(client.answer()) for client in (first, second)]
        await first.send(encode())
        await simulator.until(lambda: simulator.requests == 1)
        await second.send(encode())
        await simulator.until(lambda: simulator.requests == 2)

        for _ in range(3):
            await ask(simulator, JOBS, {})

        before = ([read.done() for read in reads], len(simulator.runs))
        pipe.drain()
        answers = [await read for read in reads]

    logged = pipe.logged()
    assert before == ([False, False], 0)
    assert [orjson.loads(body)["jobRunId"] for _, _, body in answers] == logged


async def test_many_clients_at_once_are_all_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "runs.jsonl"
    answered: list[str] = []

    async def start_some(simulator: Simulator) -> None:
        async with connect(simulator) as client:
            for _ in range(5):
                await client.send(encode(close=False))
                answered.append(orjson.loads((await client.answer())[2])["jobRunId"])

    async with Simulator(log=log) as simulator, anyio.create_task_group() as tasks:
        for _ in range(256):
            tasks.start_soon(start_some, simulator)

    assert len(set(answered)) == 256 * 5
    assert sorted(answered) == sorted(record["jobRunId"] for record in log_of(log))
    assert {run.job_run_id for run in simulator.runs} == set(answered)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
async def test_runs_that_cannot_be_logged_are_not_answered() -> None:
    answers: list[bytes] = []
    simulator = Simulator(log="/dev/full")

    async def start() -> None:
        answers.append(await raw(simulator, encode()))

    async def start_many() -> None:
        async with simulator, anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(start)

    with pytest.raises(OSError, match="No space left"):
        await start_many()

    assert (answers, simulator.runs) == ([b""] * 20, [])
