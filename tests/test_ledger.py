"""The ledger: what is on disk when, what a reader finds after every kind of damage."""

# ruff: noqa: ASYNC240  # a test looks at its small files itself

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import io
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from datetime import UTC as ZULU
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from deslaunch import durable, ledger, records
from deslaunch.errors import (
    LedgerDamaged,
    LedgerError,
    LedgerExists,
    LedgerForeign,
    LedgerLocked,
    LedgerWriteFailed,
)
from deslaunch.ledger import Ledger
from deslaunch.model import RowState, StartRequest
from deslaunch.readback import Readback
from deslaunch.replay import Replay

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from deslaunch.records import Record

UTC = "2026-11-01T02:03:04.567Z"
MANIFEST = {"path": "m", "sha256": "a", "rows": 9}
BODY = {"JobId": "j", "Parameters": []}


def clock() -> str:
    return UTC


class CountingDisk:
    """The system's disk, counting; it can fail, write short, or hold a sync back."""

    def __init__(self, *, fail_write: int = 0, fail_sync: int = 0, chunk: int | None = None):
        self.fail_write = fail_write
        self.fail_sync = fail_sync
        self.chunk = chunk
        self.writes: list[bytes] = []
        self.syncs = 0
        self.syncing = threading.Event()
        self.go = threading.Event()
        self.go.set()

    def write(self, fd: int, data: bytes | memoryview) -> int:
        self.writes.append(bytes(data))

        if len(self.writes) == self.fail_write:
            raise OSError(errno.ENOSPC, "No space left on device")

        return os.write(fd, data if self.chunk is None else data[: self.chunk])

    def sync(self, fd: int) -> None:
        self.syncs += 1
        self.syncing.set()
        assert self.go.wait(20)

        if self.syncs == self.fail_sync:
            raise OSError(errno.EIO, "Input/output error")

        os.fsync(fd)


class Unsynced(CountingDisk):
    """A disk for tests that open a file at each of its bytes."""

    def sync(self, fd: int) -> None:
        self.syncs += 1


def header(**changes: Any) -> Record:
    built = records.batch(
        batch_id="b",
        manifest=MANIFEST,
        format="csv",
        job_id=None,
        target=None,
        allow=[],
        skip_invalid=False,
        version="0",
    )
    return {**built, **changes}


def session(pid: int = 4711, host: str = "h") -> Record:
    return records.session(pid=pid, host=host, manifest=MANIFEST, targets={}, options={})


def sending(key: str, attempt: int = 1, *, with_body: bool = True) -> Record:
    body = b'{"JobId":"j","Parameters":[]}'
    request = StartRequest(key, 1, 2, "default", "j", "d", body, auto=False)
    return records.sending(request, attempt, with_body=with_body)


def started(key: str, attempt: int = 1) -> Record:
    return records.started(key, attempt, job_run_id=f"run-{key}")


def lines_of(*history: Record) -> list[bytes]:
    return [records.encode(record, UTC) for record in history]


SHORT = lines_of(
    header(),
    session(),
    sending("k1"),
    started("k1"),
    sending("k2"),
    records.unsent("k2", 1, error="e"),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "n.ledger.jsonl"


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Give up root's right to write everywhere, in this process, for a while."""
    if os.geteuid():
        yield
        return

    os.seteuid(65534)

    try:
        yield
    finally:
        os.seteuid(0)


def seen(replay: Replay) -> dict[str, tuple[RowState, int, str | None]]:
    return {
        key: (state.state, state.attempts, state.job_run_id) for key, state in replay.states.items()
    }


def folder_of(path: Path) -> dict[str, tuple[bytes, int]]:
    return {
        found.name: (found.read_bytes(), found.stat().st_mtime_ns)
        for found in path.parent.iterdir()
    }


def read(data: bytes) -> tuple[Replay, ledger.Tail]:
    return ledger.replay_of(io.BytesIO(data))


async def held(path: Path) -> bool | None:
    return await asyncio.to_thread(durable.is_held, path)


async def look(path: Path) -> ledger.Snapshot:
    return await asyncio.to_thread(ledger.snapshot, path)


async def reopened(path: Path) -> Replay:
    async with await Ledger.open(path, clock=clock) as found:
        return found.replay


# Writing.


async def test_create_append_open(path: Path) -> None:
    disk = CountingDisk()

    async with await Ledger.create(path, disk=disk, clock=clock) as made:
        await made.append(header())
        await made.append(session())
        await made.append(sending("k1"))
        await made.append(started("k1"))
        found = seen(made.replay)
        assert "open, 0 waiting" in repr(made)

    assert path.read_bytes() == b"".join(SHORT[:4])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert found == {"k1": (RowState.STARTED, 1, "run-k1")}
    again = await reopened(path)
    assert (seen(again), again.header["batchId"]) == (found, "b")


async def test_many_producers_one_file_in_the_order_of_their_appends(path: Path) -> None:
    disk = CountingDisk(chunk=1000)
    order: list[str] = []

    async with await Ledger.create(path, disk=disk, clock=clock) as made:
        await made.append(header())

        async def produce(name: int) -> None:
            for number in range(20):
                key = f"{name}-{number}"
                order.append(key)
                waiting = made.append(sending(key, with_body=False))
                await waiting
                assert made.replay.states[key].state is RowState.UNKNOWN
                order.append(key)
                made.append(started(key))  # queued, not awaited

        await asyncio.gather(*(produce(name) for name in range(32)))

    keys = [records.decode(line)["key"] for line in path.read_bytes().splitlines(keepends=True)[1:]]
    assert keys == order
    assert disk.syncs < 200, "so many records must share their syncs"
    assert set(seen(await reopened(path)).values()) == {
        (RowState.STARTED, 1, f"run-{key}") for key in set(order)
    }


async def test_a_group_is_one_write_and_one_sync(path: Path) -> None:
    disk = CountingDisk()

    async with await Ledger.create(path, disk=disk, clock=clock) as made:
        await made.append(header())
        disk.go.clear()
        disk.syncing.clear()
        first = made.append(session())
        await asyncio.to_thread(disk.syncing.wait, 20)
        rest = [made.append(sending(f"k{number}")) for number in range(50)]
        counted = len(disk.writes), disk.syncs
        disk.go.set()
        await asyncio.gather(first, *rest)
        assert (counted, len(disk.writes), disk.syncs) == ((2, 2), 3, 3)
        assert disk.writes[2].count(b"\n") == 50


async def test_a_future_is_done_only_after_the_sync(path: Path) -> None:
    disk = CountingDisk()

    async with await Ledger.create(path, disk=disk, clock=clock) as made:
        await made.append(header())
        disk.go.clear()
        disk.syncing.clear()
        waiting = made.append(sending("k1"))
        await asyncio.to_thread(disk.syncing.wait, 20)
        await anyio.wait_all_tasks_blocked()
        assert path.read_bytes().endswith(SHORT[2]), "written"
        assert (waiting.done(), made.replay.get("k1")) == (False, None), "but not on disk"
        told: list[object] = []
        waiting.add_done_callback(lambda _: told.append(made.replay.states["k1"].state))
        disk.go.set()
        await waiting
        await asyncio.sleep(0)
        assert told == [RowState.UNKNOWN]


async def test_aclose_waits_for_all_that_was_queued(path: Path) -> None:
    disk = CountingDisk()
    made = await Ledger.create(path, disk=disk, clock=clock)
    await made.append(header())
    disk.go.clear()
    disk.syncing.clear()
    waiting = [made.append(session())]
    await asyncio.to_thread(disk.syncing.wait, 20)
    waiting.append(made.append(sending("k1")))  # behind the group that is being written
    closing = asyncio.create_task(made.aclose())
    await anyio.wait_all_tasks_blocked()
    assert not closing.done()
    late = made.append(started("k1"))
    disk.go.set()
    await closing
    await asyncio.gather(*waiting)

    with pytest.raises(LedgerWriteFailed, match="closed"):
        await late

    assert path.read_bytes() == b"".join(SHORT[:3])
    await made.aclose()
    assert "closed" in repr(made)
    (await Ledger.open(path))._file.close()  # the lock was given up


@pytest.mark.parametrize("scoped", [True, False])
async def test_a_cancelled_aclose_still_writes_and_gives_up_the_lock(
    path: Path, scoped: bool
) -> None:
    disk = CountingDisk()
    made = await Ledger.create(path, disk=disk, clock=clock)
    await made.append(header())
    disk.go.clear()
    disk.syncing.clear()
    waiting = made.append(session())

    async def close() -> None:
        if not scoped:
            await made.aclose()

        with anyio.CancelScope() as scope:
            scope.cancel()
            await made.aclose()

    closing = asyncio.create_task(close())
    await asyncio.to_thread(disk.syncing.wait, 20)

    if not scoped:
        closing.cancel()

    await anyio.wait_all_tasks_blocked()
    assert not closing.done()
    disk.go.set()

    with contextlib.suppress(asyncio.CancelledError):
        await closing

    assert closing.cancelled() is not scoped
    await waiting
    assert (await reopened(path)).session is not None


async def test_a_cancelled_waiter_loses_no_record(path: Path) -> None:
    disk = CountingDisk()

    async with await Ledger.create(path, disk=disk, clock=clock) as made:
        await made.append(header())
        disk.go.clear()

        async def wait(record: Record) -> None:
            await made.append(record)

        tasks = [asyncio.create_task(wait(sending(f"k{n}"))) for n in range(4)]
        await anyio.wait_all_tasks_blocked()

        for task in tasks[:3]:
            task.cancel()

        disk.go.set()
        await tasks[3]
        await made.append(started("k0"))

    assert list(seen(await reopened(path))) == ["k0", "k1", "k2", "k3"]


async def test_a_cancelled_committer_leaves_nobody_waiting(path: Path) -> None:
    disk = CountingDisk()

    async with await Ledger.create(path, disk=disk, clock=clock) as made:
        await made.append(header())
        disk.go.clear()
        disk.syncing.clear()
        first = made.append(session())
        await asyncio.to_thread(disk.syncing.wait, 20)
        second = made.append(sending("k1"))
        committing = made._committing
        assert committing is not None  # what the loop's end would cancel
        committing.cancel()

        for waiting in (first, second, made.append(sending("k2"))):
            with pytest.raises(LedgerWriteFailed):
                await waiting

        assert committing.cancelled(), "the cancellation goes on"
        disk.go.set()

    assert path.read_bytes() == b"".join(SHORT[:2])


async def test_a_cancelled_open_gives_up_the_lock(path: Path) -> None:
    path.write_bytes(b"".join(SHORT)[:-1])  # opening ends the last line: a write and a sync
    disk = CountingDisk()
    disk.go.clear()
    opening = asyncio.create_task(Ledger.open(path, disk=disk))
    await asyncio.to_thread(disk.syncing.wait, 20)
    opening.cancel()
    await asyncio.wait({opening})
    assert opening.cancelled()
    disk.go.set()

    with anyio.fail_after(10):
        while await held(path):  # noqa: ASYNC110  # the lock belongs to a thread
            await asyncio.sleep(0)

    await reopened(path)


async def test_an_open_that_fails_behind_its_cancelled_caller_is_no_complaint(path: Path) -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: complaints.append(told))
    path.write_bytes(b"".join(SHORT)[:-1])
    disk = CountingDisk(fail_sync=1)
    disk.go.clear()
    before = asyncio.all_tasks()
    opening = asyncio.create_task(Ledger.open(path, disk=disk))
    await asyncio.to_thread(disk.syncing.wait, 20)
    at_work = asyncio.all_tasks() - before
    opening.cancel()
    await asyncio.wait({opening})
    disk.go.set()
    await asyncio.wait(at_work)
    await asyncio.sleep(0)
    gc.collect()

    assert (opening.cancelled(), len(at_work), complaints) == (True, 2, [])
    assert not await held(path)


@pytest.mark.parametrize(
    ("fault", "kept"),
    [
        pytest.param({"fail_write": 2}, 1, id="write"),
        pytest.param({"fail_sync": 2}, 2, id="sync"),
        pytest.param({"fail_write": 7, "chunk": 200}, None, id="in-the-middle-of-a-record"),
    ],
)
async def test_a_failed_write_ends_it_for_all(
    path: Path, fault: dict[str, int], kept: int | None
) -> None:
    complaints: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    disk = CountingDisk(**fault)

    async with await Ledger.create(path, disk=disk, clock=clock) as made:
        await made.append(header())
        disk.go.clear()
        group = [made.append(session()), *(made.append(sending(f"k{n}")) for n in range(9))]
        await anyio.wait_all_tasks_blocked()
        queued = [made.append(started("k1")), made.append(started("k2"))]
        disk.go.set()
        assert await asyncio.wait(group) == (set(group), set())
        calls = len(disk.writes), disk.syncs
        later = made.append(sending("k9"))

        for waiting in (*group, *queued, later):
            with pytest.raises(LedgerWriteFailed, match=r"No space|Input/output"):
                await waiting

            assert isinstance(getattr(waiting.exception(), "__cause__", None), OSError)

        made.append(started("k3"))  # nobody waits for it
        assert (len(disk.writes), disk.syncs) == calls
        assert seen(made.replay) == {}
        assert "failed, 0 waiting" in repr(made)

        del group, queued, later, waiting
    gc.collect()
    assert complaints == []

    if kept is not None:
        assert path.read_bytes().startswith(b"".join(SHORT[:kept]))

    read(path.read_bytes())


async def test_a_failure_that_is_no_os_error_leaves_nobody_waiting(path: Path) -> None:
    class Broken(CountingDisk):
        def sync(self, fd: int) -> None:
            super().sync(fd)

            if self.syncs > 1:
                raise RuntimeError("a bug")

    async with await Ledger.create(path, disk=Broken(), clock=clock) as made:
        await made.append(header())

        for record in (session(), sending("k1")):
            with anyio.fail_after(10), pytest.raises(LedgerWriteFailed, match="a bug"):
                await made.append(record)


@pytest.mark.parametrize(
    ("record", "error"),
    [
        pytest.param({"record": "started", "key": "k1", "attempt": 1}, ValueError, id="no-run"),
        pytest.param(records.end({"a": object()}), TypeError, id="no-json"),  # type: ignore[dict-item]
        pytest.param(records.unsent("k", 1, error="x" * (1 << 24)), ValueError, id="too-long"),
    ],
)
async def test_what_could_not_be_read_back_is_not_written(
    path: Path, record: Record, error: type[Exception]
) -> None:
    async with await Ledger.create(path, clock=clock) as made:
        await made.append(header())

        with pytest.raises(error):
            made.append(record)

        await made.append(session())

    assert path.read_bytes() == b"".join(SHORT[:2])


@pytest.mark.parametrize("how", ["removed", "moved", "replaced"])
async def test_a_ledger_that_is_taken_away_stops_the_launch(path: Path, how: str) -> None:
    async with await Ledger.create(path, clock=clock) as made:
        await made.append(header())

        if how == "moved":
            path.rename(path.with_name("other"))
        else:
            path.unlink()

        if how == "replaced":
            path.write_bytes(b"".join(SHORT))

        with pytest.raises(LedgerWriteFailed, match="moved, removed or replaced"):
            await made.append(session())

    assert (path.read_bytes() if path.exists() else None) == (
        b"".join(SHORT) if how == "replaced" else None
    )


# Opening, refusing.


async def test_create_refuses_a_begun_batch_and_changes_nothing(path: Path) -> None:
    path.write_bytes(b"".join(SHORT) + b'{"record":"sen')
    before = folder_of(path)

    with pytest.raises(LedgerExists, match="exists"):
        await Ledger.create(path)

    assert folder_of(path) == before
    assert not await held(path)


async def test_open_refuses_what_is_not_there(path: Path) -> None:
    with pytest.raises(LedgerError, match="no such ledger"):
        await Ledger.open(path)

    with pytest.raises(LedgerError, match="can't be used"):
        await Ledger.create(path / "deeper")

    with pytest.raises(LedgerError, match="no such ledger"):
        await asyncio.to_thread(ledger.snapshot, path)

    assert list(path.parent.iterdir()) == []


def newer_line() -> bytes:
    head = b'{"record":"batch","ledger":"deslaunch/2","batchId":"b"'
    return records._sealed(head)  # a line of a version that is to come


NO_LEDGERS = {
    "text": b"Dear all,\nhere is the list.\n",
    "text-without-newline": b"x",
    "newline": b"\n",
    "csv": b"jobId,a\n1,2\n",
    "binary": bytes(range(256)) * 40,
    "begins-with-zeros": b"\0" * 4096 + b"an image of a disk" + b"\0" * 4096,
    "mp4": b"\0\0\0\x18ftypmp42" + b"\0" * 100,
    "other-jsonl": b'{"a":1}\n{"b":2}\n',
    "own-jsonl-without-checksums": b'{"record":"batch","ledger":"deslaunch/1"}\n{"record":"end"}\n',
    "newer-with-other-checksums": (
        b'{"record":"batch","ledger":"deslaunch/2","sum":"0"}\n{"record":"x","sum":"1"}\n'
    ),
    "newer-with-other-checksums-one-line": b'{"record":"batch","ledger":"deslaunch/2","s":"0"}\n',
    "newer": newer_line(),
    "newer-with-a-torn-tail": newer_line() + b'{"rec',
    "begins-like-a-header": b'{"record":"X',
    "header-with-a-hole": SHORT[0][:40] + b"\0" * 40 + SHORT[0][80:-1],
    "header-with-a-hole-up-to-its-version": SHORT[0][:10].ljust(28, b"\0") + SHORT[0][28:-1],
    "header-with-a-hole-and-one-byte": SHORT[0][:90] + b"\0" * 40 + b"X",
    "header-with-a-hole-of-whole-chunks": SHORT[0][:90].ljust(28 + (3 << 20), b"\0") + b"X",
    "headless": b"".join(SHORT[1:]),
}


@pytest.mark.parametrize("data", NO_LEDGERS.values(), ids=list(NO_LEDGERS))
@pytest.mark.parametrize(
    "use", [Ledger.open, Ledger.create, look], ids=["open", "create", "status"]
)
async def test_a_file_that_is_no_ledger_is_never_changed(
    path: Path, data: bytes, use: Callable[[Path], Awaitable[object]]
) -> None:
    path.write_bytes(data)
    before = folder_of(path)

    with pytest.raises((LedgerForeign, LedgerDamaged), match=r"n\.ledger\.jsonl: "):
        await use(path)

    assert folder_of(path) == before
    assert not await held(path)


NEWBORN = {
    "empty": b"",
    "all-zeros": b"\0" * 9000,
    "one-byte": SHORT[0][:1],
    "cut-before-the-version": SHORT[0][:20],
    "cut-later": SHORT[0][:90],
    "cut-before-the-version-and-filled-up": SHORT[0][:20] + b"\0" * 4000,
    "cut-and-filled-up": SHORT[0][:90] + b"\0" * 4000,
    "cut-behind-some-chunks": lines_of(header(allow=["x" * (3 << 20)]))[0][:-9],
    "only-the-newline-and-a-brace-are-missing": SHORT[0][:-2],
}


@pytest.mark.parametrize("data", NEWBORN.values(), ids=list(NEWBORN))
async def test_a_header_cut_short_counts_as_absent(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    before = folder_of(path)

    with pytest.raises(LedgerForeign, match="no batch was begun"):
        await Ledger.open(path)

    assert await asyncio.to_thread(ledger.peek, path) is None
    assert folder_of(path) == before

    async with await Ledger.create(path, clock=clock) as made:
        assert made.replay.header == {}
        await made.append(header())

    assert path.read_bytes() == SHORT[0]
    torn = path.with_name(f"{path.name}.torn")
    assert (torn.read_bytes() if torn.exists() else b"") == data


async def test_a_header_without_its_newline_is_a_header(path: Path) -> None:
    path.write_bytes(SHORT[0][:-1])

    with pytest.raises(LedgerExists):
        await Ledger.create(path)

    assert (await reopened(path)).header["batchId"] == "b"
    assert path.read_bytes() == SHORT[0]


async def test_two_headers_are_damage(path: Path) -> None:
    path.write_bytes(b"".join(SHORT + SHORT))
    before = folder_of(path)

    for use in (Ledger.open, Ledger.create):
        with pytest.raises(LedgerDamaged, match="second header") as caught:
            await use(path)

        assert caught.value.offset == len(b"".join(SHORT))

    assert folder_of(path) == before


async def test_an_unknown_kind_refuses_to_resume_but_can_be_looked_at(path: Path) -> None:
    line = records.encode({"record": "telepathy"}, UTC)
    path.write_bytes(b"".join(SHORT) + line + b"torn")
    before = folder_of(path)

    with pytest.raises(LedgerForeign, match="telepathy"):
        await Ledger.open(path)

    found = await asyncio.to_thread(ledger.snapshot, path)
    assert (found.torn, found.live, list(found.replay.states)) == (True, False, ["k1", "k2"])
    assert folder_of(path) == before


@pytest.mark.parametrize("at", [1, 3, 5])
async def test_a_record_that_lacks_a_field_is_damage(path: Path, at: int) -> None:
    bad = records.encode({"record": "started", "key": "k1", "attempt": 1}, UTC)
    path.write_bytes(b"".join([*SHORT[:at], bad, *SHORT[at:]]))
    before = folder_of(path)

    with pytest.raises(LedgerDamaged, match="jobRunId") as caught:
        await Ledger.open(path)

    assert caught.value.offset == len(b"".join(SHORT[:at]))
    assert folder_of(path) == before


# Torn and flipped.


def test_cut_at_every_byte(path: Path) -> None:
    whole = b"".join(SHORT)
    ends = [len(b"".join(SHORT[:n])) for n in range(len(SHORT) + 1)]
    torn_path = path.with_name(f"{path.name}.torn")

    for size in range(ends[1], len(whole)):
        path.write_bytes(whole[:size])
        torn_path.unlink(missing_ok=True)
        good = max(n for n, end in enumerate(ends) if end <= size)
        lacks_newline = size + 1 in ends
        good += lacks_newline
        expected = seen(read(b"".join(SHORT[:good]))[0])
        file, replay, _ = ledger._open(path, Unsynced())
        file.append(SHORT[1])
        file.close()
        assert seen(replay) == expected
        assert path.read_bytes() == b"".join(SHORT[:good]) + SHORT[1]
        cut = b"" if lacks_newline else whole[ends[good] : size]
        assert (torn_path.read_bytes() if torn_path.exists() else b"") == cut
        assert seen(read(path.read_bytes())[0]) == expected


async def test_a_torn_tail_is_healed_and_written_on(path: Path) -> None:
    path.write_bytes(b"".join(SHORT[:5])[:-9])

    async with await Ledger.open(path, clock=clock) as found:
        assert seen(found.replay) == {"k1": (RowState.STARTED, 1, "run-k1")}
        await found.append(sending("k2"))

    assert path.read_bytes() == b"".join(SHORT[:5])
    torn = path.with_name(f"{path.name}.torn")
    assert torn.read_bytes() == SHORT[4][:-9]
    assert stat.S_IMODE(torn.stat().st_mode) == 0o600


@pytest.mark.parametrize("fault", [{"fail_sync": 1}, {"fail_sync": 2}], ids=["copy", "cut"])
async def test_a_tail_is_cut_only_once_its_copy_is_on_disk(
    path: Path, fault: dict[str, int]
) -> None:
    data = b"".join(SHORT) + b"torn"
    path.write_bytes(data)

    with pytest.raises(LedgerError, match="Input/output"):
        await Ledger.open(path, disk=CountingDisk(**fault))

    torn = path.with_name(f"{path.name}.torn")
    assert (path.read_bytes() == data) is not torn.exists()
    assert not await held(path)
    await reopened(path)
    assert path.read_bytes() == b"".join(SHORT)
    assert torn.read_bytes() == b"torn"


@pytest.mark.parametrize("zeros", [1, 17, 511, 4096, 70_000])
@pytest.mark.parametrize("rest", [0, 5], ids=["after-a-line", "in-a-line"])
async def test_a_tail_filled_up_with_zeros(path: Path, zeros: int, rest: int) -> None:
    tail = SHORT[5][:rest] + b"\0" * zeros
    path.write_bytes(b"".join(SHORT[:5]) + tail)
    replay = await reopened(path)
    assert replay.states["k2"].state is RowState.UNKNOWN
    assert path.read_bytes() == b"".join(SHORT[:5])
    assert path.with_name(f"{path.name}.torn").read_bytes() == tail


@pytest.mark.parametrize("end", [b"", b"\n"])
async def test_good_records_behind_zeros_are_damage(path: Path, end: bytes) -> None:
    path.write_bytes(b"".join(SHORT[:4]) + b"\0" * 4096 + end + SHORT[4])
    before = folder_of(path)

    with pytest.raises(LedgerDamaged) as caught:
        await Ledger.open(path)

    assert caught.value.offset == len(b"".join(SHORT[:4]))
    assert folder_of(path) == before


@pytest.mark.parametrize("flip", [0x01, 0x20, 0x80, 0xFF])
def test_a_changed_byte_is_never_a_silently_different_replay(flip: int) -> None:
    whole = b"".join(SHORT)
    starts = [len(b"".join(SHORT[:n])) for n in range(len(SHORT))]
    shorter = seen(read(b"".join(SHORT[:-1]))[0])

    for position in range(len(whole)):
        spoilt = bytearray(whole)
        spoilt[position] ^= flip
        line = max(start for start in starts if start <= position)

        if position == len(whole) - 1 or line == starts[-1]:
            replay, tail = read(bytes(spoilt))
            assert (tail.torn, tail.offset, seen(replay)) == (True, line, shorter)
        else:
            with pytest.raises(LedgerDamaged) as caught:
                read(bytes(spoilt))

            assert caught.value.offset == line


@pytest.mark.parametrize("size", range(2, 40, 7))
def test_lines_lost_from_the_middle_are_damage_where_bytes_are_missing(size: int) -> None:
    whole = b"".join(SHORT)

    for position in range(0, len(whole) - len(SHORT[-1]) - size, 3):
        spoilt = whole[:position] + whole[position + size :]

        with pytest.raises((LedgerDamaged, LedgerForeign)):
            read(spoilt)


@pytest.mark.parametrize("begun", [True, False], ids=["after-records", "in-the-header"])
async def test_a_huge_zero_tail_takes_little_memory(path: Path, begun: bool) -> None:
    path.write_bytes(b"".join(SHORT) if begun else SHORT[0][:90])
    os.truncate(path, 100 << 20)
    tracemalloc.start()

    try:
        found = await asyncio.to_thread(ledger.peek, path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    told = None if found is None else (found.torn, list(found.replay.states))
    assert told == ((True, ["k1", "k2"]) if begun else None)
    assert peak < 4 * records.LINE_LIMIT


def test_good_records_behind_more_zeros_than_a_line_holds_are_damage() -> None:
    zeros = b"\0" * (records.LINE_LIMIT + 100)

    with pytest.raises(LedgerDamaged) as caught:
        read(b"".join(SHORT[:4]) + zeros + b"\n" + SHORT[4])

    assert caught.value.offset == len(b"".join(SHORT[:4]))


async def test_the_longest_line_is_read_back(path: Path) -> None:
    room = records.LINE_LIMIT - len(records.encode(records.unsent("k", 1, error=""), UTC))

    async with await Ledger.create(path, clock=clock) as made:
        await made.append(header())
        await made.append(records.unsent("k", 1, error="x" * room))
        await made.append(session())

    assert (await reopened(path)).session is not None


def test_a_hidden_record_is_searched_for_in_bounded_time() -> None:
    line = records.START * 1_000_000 + b"\n"
    replay, tail = read(b"".join(SHORT) + line)
    assert (tail.torn, len(replay.states)) == (True, 2)


# Locks.

HOLD = """
import asyncio, os, socket, sys
from datetime import UTC as ZULU
from datetime import datetime, timedelta
from pathlib import Path
from deslaunch import records
from deslaunch.ledger import Ledger

async def main():
    async with await Ledger.open(Path(sys.argv[1])) as held:
        if sys.argv[2] == "session":
            manifest = {"path": "m", "sha256": "a", "rows": 9}
            await held.append(records.session(
                pid=os.getpid(), host=socket.gethostname(), manifest=manifest,
                targets={}, options={}))
        print("held", flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


@contextlib.contextmanager
def holding(path: Path, how: str) -> Iterator[int]:
    command = [sys.executable, "-c", HOLD, str(path), how]

    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"

        try:
            yield process.pid
        finally:
            process.kill()


def test_a_held_ledger_names_its_holder_and_can_be_looked_at(path: Path) -> None:
    path.write_bytes(b"".join(SHORT[:5]))

    with holding(path, "session") as pid:
        found = [ledger.snapshot(path).live]

        for use in (Ledger.open, Ledger.create):
            with pytest.raises(LedgerLocked) as caught:
                asyncio.run(use(path))

            assert f"process {pid} on {socket.gethostname()}" in str(caught.value)

    found.append(ledger.snapshot(path).live)
    assert found == [True, False]


def test_a_holder_that_has_not_said_who_it_is(path: Path) -> None:
    path.write_bytes(b"".join(SHORT) + lines_of(records.end({}))[0])

    with holding(path, "silently"), pytest.raises(LedgerLocked, match="another process"):
        asyncio.run(Ledger.open(path))


def test_a_locked_ledger_is_locked_whatever_it_holds(path: Path) -> None:
    path.write_bytes(b"no ledger\n")

    with durable.AppendFile(path), pytest.raises(LedgerLocked, match="another process"):
        asyncio.run(Ledger.open(path))


async def test_one_process_cannot_open_it_twice(path: Path) -> None:
    async with await Ledger.create(path, clock=clock) as made:
        await made.append(header())

        for use in (Ledger.open, Ledger.create):
            with pytest.raises(LedgerLocked):
                await use(path)

        await made.append(session())


async def test_a_linked_ledger_is_the_same_ledger(path: Path) -> None:
    real = path.with_name("real")
    real.write_bytes(b"".join(SHORT[:5]) + b"torn")
    path.symlink_to(real)

    async with await Ledger.open(path, clock=clock) as found:
        with pytest.raises(LedgerLocked):
            await Ledger.open(real)

        await found.append(records.unsent("k2", 1, error="e"))

    assert path.is_symlink()
    assert real.read_bytes() == b"".join(SHORT)


async def test_devices_are_refused(path: Path) -> None:
    path.symlink_to(os.devnull)

    for use in (Ledger.open, Ledger.create):
        with pytest.raises(LedgerError, match="regular"):
            await use(path)


# Looking without touching.


async def test_a_snapshot_takes_no_lock_and_changes_nothing(path: Path) -> None:
    path.write_bytes(b"".join(SHORT)[:-5])
    before = folder_of(path)

    async with contextlib.AsyncExitStack() as stack:
        found = await asyncio.to_thread(ledger.snapshot, path)
        held = await stack.enter_async_context(await Ledger.open(path))
        assert (found.torn, found.live) == (True, False)
        assert before == before | {path.name: (b"".join(SHORT)[:-5], before[path.name][1])}
        again = await asyncio.to_thread(ledger.snapshot, path)
        assert (again.torn, again.live) == (False, True)
        await held.append(session())


async def test_a_snapshot_between_two_bytes_of_an_append_sees_no_damage(path: Path) -> None:
    path.write_bytes(b"".join(SHORT))
    found: list[tuple[bool, int]] = []

    class Watched(CountingDisk):
        def write(self, fd: int, data: bytes | memoryview) -> int:
            shot = ledger.snapshot(path)
            found.append((shot.live, len(shot.replay.states)))
            return super().write(fd, data)

    async with await Ledger.open(path, disk=Watched(chunk=1), clock=clock) as held:
        await asyncio.gather(held.append(sending("k3")), held.append(started("k3")))

    assert len(found) > 200
    assert set(found) == {(True, 2), (True, 3)}


def test_lines_that_come_during_the_reading_are_left_for_the_next(path: Path) -> None:
    path.write_bytes(b"".join(SHORT)[:-5])
    tail = ledger.Tail()

    with path.open("rb", buffering=0) as raw, path.open("ab") as writer:
        reading = ledger.read_records(raw, tail)
        kinds = [next(reading)[1]["record"]]
        writer.write(SHORT[5][-5:] + SHORT[2])
        writer.flush()
        kinds += [record["record"] for _, record in reading]

    assert kinds == ["batch", "session", "sending", "started", "sending"]
    assert tail.torn


def test_half_a_line_that_comes_during_the_reading_is_no_torn_tail(path: Path) -> None:
    path.write_bytes(b"".join(SHORT[:3]))
    tail = ledger.Tail()

    with path.open("rb", buffering=0) as raw, path.open("ab") as writer:
        reading = ledger.read_records(raw, tail)
        next(reading)
        writer.write(SHORT[3][:40])
        writer.flush()
        list(reading)

    assert tail == ledger.Tail(offset=len(b"".join(SHORT[:3])))


class Visited(type(Path())):  # type: ignore[misc]  # a concrete path's class is known at run time
    """A path whose file is found changed by its first reader: ``visit`` is called then."""

    visit: Callable[[], object]

    def open(self, *_: Any, **__: Any) -> io.FileIO:
        path = self

        class Stream(io.FileIO):
            visited = False

            def read(self, size: int | None = -1, /) -> bytes:
                if not self.visited:
                    self.visited = True
                    path.visit()

                return super().read(size) or b""

        return Stream(self)


@pytest.mark.parametrize("comes", [True, False], ids=["comes", "goes"])
def test_a_launcher_that_comes_or_goes_during_the_reading_is_alive(path: Path, comes: bool) -> None:
    path.write_bytes(b"".join(SHORT))
    looked_at = Visited(path)

    with contextlib.ExitStack() as stack:

        def come() -> None:
            stack.enter_context(durable.AppendFile(path))

        if not comes:
            come()

        looked_at.visit = come if comes else stack.close
        assert ledger.snapshot(looked_at).live

    assert not ledger.snapshot(path).live


@pytest.mark.parametrize("host", [socket.gethostname(), "elsewhere"])
def test_where_locks_are_not_listed_the_last_session_tells_who_is_alive(
    path: Path, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(b"".join(lines_of(header(), session(os.getpid(), host))))
    monkeypatch.setattr(durable, "is_held", lambda _: None)

    assert ledger.snapshot(path).live is (host != "elsewhere")


def test_damage_to_a_file_that_stands_still_is_told_at_once(path: Path) -> None:
    class Counted(io.FileIO):
        begun = 0

        def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
            self.begun += (offset, whence) == (0, os.SEEK_SET)
            return super().seek(offset, whence)

    path.write_bytes(b"".join(SHORT[:3]) + b"x\n" + SHORT[3])

    with Counted(path) as stream:
        with pytest.raises(LedgerDamaged):
            ledger.steady_replay_of(stream)

        assert stream.begun == 1


def test_a_tail_that_is_healed_during_the_reading_is_no_damage(path: Path) -> None:
    head, tail = b"".join(SHORT[:5]), b"x" * 5000

    class Healed(io.FileIO):
        healed = False

        def read(self, size: int | None = -1, /) -> bytes:
            if self.healed:
                return super().read(size) or b""

            self.healed = True
            first = super().read(len(head) + 100) or b""
            path.write_bytes(head + SHORT[5] * 60)
            return first

    path.write_bytes(head + tail)

    with Healed(path) as stream:
        replay, found = ledger.steady_replay_of(stream)
        assert (len(replay.states), found.torn, stream.healed) == (2, False, True)


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that an unprivileged user can reach; pytest's own are private."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def test_a_folder_that_can_only_be_read(public_folder: Path) -> None:
    path = public_folder / "n.ledger.jsonl"
    path.write_bytes(b"".join(SHORT) + b"torn")
    path.chmod(0o666)
    public_folder.chmod(0o555)
    before = folder_of(path)

    with unprivileged():
        assert ledger.snapshot(path).torn

        with pytest.raises(LedgerError, match="can't be used: Permission denied"):
            asyncio.run(Ledger.open(path))  # the tail could not be set aside

        with pytest.raises(LedgerError, match="can't be used: Permission denied"):
            asyncio.run(Ledger.create(path.with_name("other")))

        assert not durable.is_held(path)

    public_folder.chmod(0o755)
    assert folder_of(path) == before


def test_a_ledger_that_can_only_be_read(public_folder: Path) -> None:
    path = public_folder / "n.ledger.jsonl"
    path.write_bytes(b"".join(SHORT))
    path.chmod(0o444)
    public_folder.chmod(0o555)

    with unprivileged():
        assert len(ledger.snapshot(path).replay.states) == 2

        with pytest.raises(LedgerError, match="can't be used: Permission denied"):
            asyncio.run(Ledger.open(path))

    public_folder.chmod(0o755)


def test_the_records_of_a_ledger_are_read_without_its_lock(path: Path) -> None:
    path.write_bytes(b"".join(SHORT[:3])[:-1])

    kinds = [record["record"] for record in ledger.records_of(path)]

    assert kinds == ["batch", "session", "sending"]


def test_records_that_can_not_be_read_say_of_which_ledger(path: Path) -> None:
    with pytest.raises(LedgerError) as caught:
        list(ledger.records_of(path))

    assert str(caught.value) == f"{path}: there is no such ledger"
    path.write_bytes(SHORT[0] + b"x\n" + SHORT[1])

    with pytest.raises(LedgerDamaged) as damaged:
        list(ledger.records_of(path))

    assert str(damaged.value).startswith(f"{path}: the ledger is damaged at byte {len(SHORT[0])}: ")


KILLED = """
import asyncio, os, sys
from datetime import UTC as ZULU
from datetime import datetime, timedelta
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_ledger import header, started
from deslaunch.ledger import Ledger

async def main():
    async with await Ledger.create(Path(sys.argv[1])) as made:
        await made.append(header())
        number = 0

        while True:
            number += 1
            waiting = [made.append(started(f"{number}-{n}")) for n in range(50)]
            await asyncio.gather(*waiting)
            os.write(1, b"%d\\n" % number)

asyncio.run(main())
"""


@pytest.mark.parametrize("groups", [1, 20])
def test_what_was_told_before_a_kill_is_there_after_it(path: Path, groups: int) -> None:
    command = [sys.executable, "-c", KILLED, str(path), str(Path(__file__).parent)]

    with subprocess.Popen(command, stdout=-1) as process:
        assert process.stdout is not None
        told = [int(process.stdout.readline()) for _ in range(groups)]
        process.kill()
        told += [int(line) for line in process.stdout.read().split(b"\n")[:-1] if line]

    kept = ledger.snapshot(path).replay.states
    assert {f"{number}-{n}" for number in told for n in range(50)} <= set(kept)
    assert told == list(range(1, len(told) + 1))


async def test_a_second_torn_tail_is_kept_behind_the_first(path: Path) -> None:
    """Either may hold the only trace of a run."""
    for tail in (b'{"first', b'{"second'):
        path.write_bytes((path.read_bytes() if path.exists() else b"".join(SHORT)) + tail)
        await reopened_for_writing(path)

    assert path.with_name(f"{path.name}.torn").read_bytes() == b'{"first{"second'
    assert path.read_bytes() == b"".join(SHORT)


async def reopened_for_writing(path: Path) -> None:
    async with await Ledger.open(path, clock=clock):
        pass


# What mutation testing asked for.


def test_a_good_record_behind_a_torn_one_in_the_same_line_is_damage() -> None:
    torn = b"\0" * 16 + SHORT[3][:40]

    with pytest.raises(LedgerDamaged) as caught:
        read(b"".join(SHORT[:3]) + torn + SHORT[4])

    assert caught.value.offset == len(b"".join(SHORT[:3]))


def test_a_hidden_record_may_hold_what_begins_like_another() -> None:
    options = {"nested": {"record": "x"}}
    hidden = records.session(pid=1, host="h", manifest=MANIFEST, targets={}, options=options)

    with pytest.raises(LedgerDamaged) as caught:
        read(b"".join(SHORT[:3]) + SHORT[3][:40] + lines_of(hidden)[0])

    assert caught.value.offset == len(b"".join(SHORT[:3]))


@pytest.mark.parametrize(
    ("good", "bad", "rest", "reason"),
    [
        pytest.param(2, b"x\n", SHORT[2], "the line does not end with its checksum", id="before"),
        pytest.param(2, b"x", SHORT[2], "the checksum does not match", id="around"),
        pytest.param(
            2,
            SHORT[2].replace(b"k1", b"k9") + b"x\n",
            SHORT[3],
            "the checksum does not match",
            id="the-first-reason-counts",
        ),
    ],
)
def test_damage_says_where_and_why(good: int, bad: bytes, rest: bytes, reason: str) -> None:
    before = b"".join(SHORT[:good])

    with pytest.raises(LedgerDamaged) as caught:
        read(before + bad + rest)

    assert (str(caught.value), caught.value.hint) == (
        f"the ledger is damaged at byte {len(before)}: {reason}, and readable records follow",
        "restore the file from a copy; nothing was sent",
    )


def test_a_file_that_is_none_says_what_to_do() -> None:
    with pytest.raises(LedgerForeign) as caught:
        read(b"jobId,a\n1,2\n")

    assert (str(caught.value), caught.value.hint) == (
        "the file is no deslaunch ledger",
        "name a ledger (is this its manifest?); a new batch needs a new --ledger",
    )


def test_the_time_is_utc_wherever_the_machine_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as changed:
        changed.setenv("TZ", "XXX-11")
        time.tzset()
        said = ledger.utc_now()
        now = datetime.now(ZULU)

    time.tzset()
    told = datetime.fromisoformat(said)
    assert (len(said), said[-1], abs(now - told) < timedelta(minutes=1)) == (24, "Z", True)


REFUSALS: dict[str, tuple[bytes | None, str, str]] = {
    "absent": (None, "{path}: there is no such ledger", "check the path"),
    "empty": (
        b"",
        "{path}: the ledger holds no whole header: no batch was begun",
        "start the batch with 'deslaunch run'",
    ),
    "unknown-kinds": (
        SHORT[0] + b"".join(lines_of({"record": "yoga"}, {"record": "aura"})),
        "{path}: records of a kind that this version does not know: aura, yoga",
        "resume with the version of deslaunch that wrote them",
    ),
    "foreign": (
        b"csv\n",
        "{path}: the file is no deslaunch ledger",
        "name a ledger (is this its manifest?); a new batch needs a new --ledger",
    ),
}


@pytest.mark.parametrize(
    ("data", "message", "hint"), [pytest.param(*case, id=name) for name, case in REFUSALS.items()]
)
async def test_what_is_not_opened_says_why_and_what_to_do(
    path: Path, data: bytes | None, message: str, hint: str
) -> None:
    if data is not None:
        path.write_bytes(data)

    with pytest.raises(LedgerError) as caught:
        await Ledger.open(path)

    assert (str(caught.value), caught.value.hint) == (message.format(path=path), hint)


async def test_what_exists_is_not_created_again_and_says_what_to_do(path: Path) -> None:
    path.write_bytes(b"".join(SHORT))

    with pytest.raises(LedgerExists) as caught:
        await Ledger.create(path)

    assert (str(caught.value), caught.value.hint) == (
        f"{path}: the ledger exists",
        "start a new batch with another --ledger",
    )


async def test_what_cannot_be_used_says_why(path: Path) -> None:
    path.write_bytes(b"")

    for use in (Ledger.open, Ledger.create, look):
        with pytest.raises(LedgerError) as caught:
            await use(path / "deeper")

        assert (str(caught.value), caught.value.hint) == (
            f"{path / 'deeper'}: can't be used: Not a directory",
            f"make the folder {path}, or name a ledger in another folder",
        )


async def test_an_error_of_the_system_without_a_number_is_told_as_it_is(path: Path) -> None:
    class Odd(CountingDisk):
        def sync(self, fd: int) -> None:
            raise OSError("odd")

    path.write_bytes(b"".join(SHORT)[:-1])

    with pytest.raises(LedgerError) as caught:
        await Ledger.open(path, disk=Odd())

    assert str(caught.value) == f"{path}: can't be used: odd"


def test_a_new_file_that_is_taken_away_at_once_is_closed(path: Path) -> None:
    file = durable.AppendFile(path, create=True)
    path.unlink()

    with pytest.raises(LedgerError) as caught:
        ledger._empty(file)

    assert (str(caught.value), repr(file)) == (
        f"{path}: there is no such ledger",
        f"<AppendFile {str(path)!r} closed>",
    )


@pytest.mark.parametrize(
    ("history", "holder"),
    [
        pytest.param(SHORT[:1], "another process", id="no-session"),
        pytest.param(SHORT, f"process 4711 on h, at work since {UTC}", id="a-session"),
        pytest.param([*SHORT, *lines_of(records.end({}))], "another process", id="an-ended-one"),
    ],
)
def test_a_held_ledger_says_who_holds_it(path: Path, history: list[bytes], holder: str) -> None:
    path = path.with_name("a night.jsonl")
    path.write_bytes(b"".join(history))

    with durable.AppendFile(path), pytest.raises(LedgerLocked) as caught:
        asyncio.run(Ledger.open(path))

    assert (str(caught.value), caught.value.hint) == (
        f"{path}: the ledger is held by {holder}",
        f"wait until it has ended; how far it is: deslaunch status '{path}'",
    )


def test_a_ledger_of_another_manifest_says_how_to_go_on() -> None:
    error = ledger.foreign(Path("a night.jsonl"), Path("a list.csv"))

    assert (str(error), error.hint) == (
        (
            "a night.jsonl: the ledger belongs to another manifest than a list.csv as it is now; "
            "nothing was sent"
        ),
        (
            "a new batch needs a new --ledger; a manifest that was changed on purpose goes on "
            "with: deslaunch resume 'a night.jsonl' --manifest 'a list.csv'"
        ),
    )


async def test_a_failed_write_says_what_to_mend(path: Path) -> None:
    path = path.with_name("a night.jsonl")

    async with await Ledger.create(path, disk=CountingDisk(fail_write=1), clock=clock) as made:
        with pytest.raises(LedgerWriteFailed) as caught:
            await made.append(header())

        assert repr(made) == f"<Ledger {str(path)!r} failed, 0 waiting>"

    assert (str(caught.value), caught.value.hint) == (
        f"{path}: the ledger can't be written: No space left on device",
        f"make room or mend the disk, then: deslaunch resume '{path}'",
    )


@pytest.mark.parametrize(
    ("history", "alive"),
    [
        pytest.param([], False, id="no-session"),
        pytest.param([session(os.getpid(), socket.gethostname())], True, id="at-work"),
        pytest.param([session(os.getpid(), "elsewhere")], False, id="on-another-machine"),
        pytest.param(
            [session(os.getpid(), socket.gethostname()), records.end({})], False, id="ended"
        ),
    ],
)
def test_who_is_alive_is_guessed_from_the_last_session(history: list[Record], alive: bool) -> None:
    replay, _ = read(b"".join(lines_of(header(), *history)))

    assert ledger._looks_alive(replay) is alive


async def test_a_closed_ledger_says_so(path: Path) -> None:
    made = await Ledger.create(path, clock=clock)
    await made.append(header())
    await made.aclose()

    assert repr(made) == f"<Ledger {str(path)!r} closed, 0 waiting>"

    with pytest.raises(LedgerWriteFailed) as caught:
        await made.append(session())

    assert str(caught.value) == f"{path}: the ledger is closed"


async def test_a_snapshot_names_its_file_or_what_is_wrong_with_it(path: Path) -> None:
    with pytest.raises(LedgerError, match="there is no such ledger") as caught:
        await look(path)

    assert str(caught.value) == f"{path}: there is no such ledger"
    path.write_bytes(b"")

    with pytest.raises(LedgerForeign) as caught:
        await look(path)

    assert str(caught.value).startswith(f"{path}: the ledger holds no whole header")
    path.write_bytes(b"".join(SHORT))
    found = await look(path)
    assert (found.path, found.live, found.torn) == (path, False, False)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        pytest.param(OSError("odd"), "odd", id="no-number"),
        pytest.param(OSError(), "OSError()", id="no-text"),
        pytest.param(RuntimeError(), "RuntimeError()", id="no-os-error"),
    ],
)
async def test_a_failure_without_words_has_a_reason(
    path: Path, fault: Exception, reason: str
) -> None:
    class Broken(CountingDisk):
        def sync(self, fd: int) -> None:
            raise fault

    async with await Ledger.create(path, disk=Broken(), clock=clock) as made:
        with pytest.raises(LedgerWriteFailed) as caught:
            await made.append(header())

    assert str(caught.value) == f"{path}: the ledger can't be written: {reason}"


async def test_a_file_is_closed_behind_the_last_write_in_the_same_thread(path: Path) -> None:
    told: list[tuple[str, str]] = []

    class Watched(durable.AppendFile):
        def close(self) -> None:
            told.append(("close", threading.current_thread().name))
            super().close()

    class Slow(CountingDisk):
        def sync(self, fd: int) -> None:
            super().sync(fd)
            told.append(("sync", threading.current_thread().name))

    disk = Slow()
    file = await asyncio.to_thread(Watched, path, create=True, disk=disk)
    fd = await asyncio.to_thread(os.open, path, os.O_RDONLY)
    made = Ledger(file, Replay(), Readback(path, fd), clock=clock)
    os.close(fd)
    disk.go.clear()
    made.append(header())
    await asyncio.to_thread(disk.syncing.wait, 20)
    assert made._committing is not None
    made._committing.cancel()  # so that closing does not wait for the write
    closing = asyncio.create_task(made.aclose())
    assert (await asyncio.wait({closing}, timeout=0.2))[0] == set()
    disk.go.set()
    await closing

    assert told == [("sync", "deslaunch-ledger_0"), ("close", "deslaunch-ledger_0")]


async def test_a_closed_ledger_leaves_no_thread(path: Path) -> None:
    before = set(threading.enumerate())
    made = await Ledger.create(path, clock=clock)
    await made.append(header())
    found = set(threading.enumerate()) - before
    own = [thread for thread in found if thread.name.startswith("deslaunch-ledger")]
    await made.aclose()

    for thread in own:
        await asyncio.to_thread(thread.join, 10)

    assert [thread.is_alive() for thread in own] == [False]


@pytest.mark.parametrize("data", [b"", SHORT[0]], ids=["no-header", "a-header"])
def test_the_folder_of_a_file_without_a_header_is_synced(public_folder: Path, data: bytes) -> None:
    """Whoever made it may have been killed before; to sync a folder it must be readable."""
    path = public_folder / "n.ledger.jsonl"
    path.write_bytes(data)
    path.chmod(0o666)
    public_folder.chmod(0o311)
    use = Ledger.open if data else Ledger.create

    with unprivileged():
        if data:
            asyncio.run(use(path))._file.close()
        else:
            with pytest.raises(LedgerError, match="can't be used: Permission denied"):
                asyncio.run(use(path))

    public_folder.chmod(0o755)
    assert not durable.is_held(path)


@pytest.mark.parametrize(("changes", "ends_well"), [(1, True), (5, True), (6, False)])
def test_a_ledger_that_changes_while_it_is_read_is_read_again(
    path: Path, changes: int, ends_well: bool
) -> None:
    bad = b"".join(SHORT[:3]) + b"x\n" + SHORT[3]

    class Restless(io.FileIO):
        """Damaged and changed each time it is read, for a while."""

        left = changes

        def read(self, size: int | None = -1, /) -> bytes:
            found = super().read(size) or b""

            if found and self.left:
                self.left -= 1
                path.write_bytes((bad if self.left else b"".join(SHORT)) + b"y" * self.left)

            return found

    path.write_bytes(bad)

    with Restless(path) as stream:
        if ends_well:
            replay, _ = ledger.steady_replay_of(stream, Readback(path, stream.fileno()))
            assert seen(replay) == seen(read(b"".join(SHORT))[0])
            assert list(replay.states.objects()) == []
        else:
            with pytest.raises(LedgerDamaged):
                ledger.steady_replay_of(stream)


async def test_a_retried_row_is_found_again_in_the_live_ledger(path: Path) -> None:
    """What was packed is read back from the file that is still written."""
    async with await Ledger.create(path, clock=clock) as made:
        await made.append(header())

        for number in range(3000):
            key = f"k{number}"
            made.append(sending(key))
            made.append(records.answered(key, 1, status=503, error="busy"))

        await made.append(session())
        await made.append(sending("k7", 2, with_body=False))
        await made.append(started("k7", 2))
        found = made.replay.outcome("k7")
        assert (found.attempts, found.job_run_id, found.possible_duplicate) == (2, "run-k7", True)
        kept = seen(made.replay)

    assert len(kept) == 3000
    assert seen(await reopened(path)) == kept


async def test_an_outcome_that_was_just_recorded_is_not_read_from_the_disk(path: Path) -> None:
    async with await Ledger.create(path, clock=clock) as made:
        await asyncio.gather(made.append(header()), made.append(sending("k1")))
        await made.append(started("k1"))
        path.write_bytes(b"x")

        assert list(made.replay.states.objects()) == []
        assert made.replay.outcome("k1").job_run_id == "run-k1"


async def replay_once_created(path: Path) -> Replay:
    """Return the replay of a new ledger that has written more than it holds."""
    async with await Ledger.create(path, clock=clock) as made:
        for record in (header(), sending("k1"), started("k1")):
            made.append(record)

        await asyncio.gather(*(made.append(records.end({})) for _ in range(2048)))
        return made.replay


async def replay_of_snapshot(path: Path) -> Replay:
    path.write_bytes(b"".join(SHORT))
    return (await look(path)).replay


async def replay_once_opened(path: Path) -> Replay:
    path.write_bytes(b"".join(SHORT))
    return await reopened(path)


@pytest.mark.parametrize("use", [replay_once_created, replay_once_opened, replay_of_snapshot])
async def test_keys_at_rest_are_left_in_the_file_and_missed_where_it_is_spoilt(
    path: Path, use: Callable[[Path], Awaitable[Replay]]
) -> None:
    replay = await use(path)
    assert list(replay.states.objects()) == []
    path.write_bytes(b"x" * path.stat().st_size)

    with pytest.raises(LedgerDamaged, match="where a record was read before") as caught:
        replay.outcome("k1")

    assert str(caught.value).startswith(f"{path}: the ledger is damaged at byte ")
