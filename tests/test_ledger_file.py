"""A ledger that has its name is whole, has one launcher, and outlives it."""

# ruff: noqa: ASYNC221, ASYNC222, ASYNC240  # nothing else goes on in the loops of these tests

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from ledgers import begin, checked, make, never_mind, read, run_id, send, session, states

from deslaunch.errors import (
    LedgerDamaged,
    LedgerError,
    LedgerExists,
    LedgerForeign,
    LedgerLocked,
    LedgerMissing,
    ManifestError,
)
from deslaunch.ledger import sqlite
from deslaunch.ledger.changes import Finding
from deslaunch.ledger.ledger import NewBatch, begin_import, open_ledger, take_ledger
from deslaunch.ledger.sqlite import check_file_system, find_holder

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from deslaunch.ledger.ledger import Ledger

TESTS: Final = str(Path(__file__).parent)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "night.ledger.db"


def names(place: Path) -> list[str]:
    """Return what lies beside the ledger, by its ending."""
    found = (path.name.removeprefix(place.name) for path in place.parent.glob(f"{place.name}*"))
    return sorted(name for name in found if name != ".lock")


def program(place: Path, body: str) -> list[str]:
    """Return the command of a process that runs ``body`` with a ledger at ``place``."""
    lines = textwrap.indent(textwrap.dedent(body), "    ")
    code = f"""
import asyncio, os, signal, sys
sys.path.insert(0, {TESTS!r})
from ledgers import *
from deslaunch.ledger.ledger import open_ledger
from pathlib import Path
place = Path({str(place)!r})
async def main():
{lines}
asyncio.run(main())
"""
    return [sys.executable, "-c", code]


def at_work(place: Path, body: str) -> subprocess.Popen[str]:
    """Start such a process; return when it has printed a line."""
    process = subprocess.Popen(
        program(place, f"{textwrap.dedent(body)}\nprint('ready', flush=True)\nsys.stdin.read()"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


class TestNames:
    async def test_an_import_is_not_seen_before_it_is_published(self, place: Path) -> None:
        async with await begin_import(str(place), NewBatch("night.csv", {})) as batch:
            await batch.add([checked(1)])
            assert names(place) == [".new", ".new-journal"]
            ledger = await batch.publish()

        assert names(place) == ["", "-shm", "-wal"]
        assert await ledger.aclose() == ""
        assert names(place) == [""]

    async def test_one_that_is_not_published_leaves_nothing(self, place: Path) -> None:
        async with await begin_import(str(place), NewBatch("night.csv", {})) as batch:
            await batch.add([checked(1)])

        assert names(place) == []
        await (await make(place)).aclose()

    async def test_only_its_owner_may_read_it(self, place: Path) -> None:
        async with await make(place) as ledger:
            await ledger.begin_session(session())
            modes = {
                name: stat.S_IMODE(Path(f"{place}{name}").stat().st_mode) for name in names(place)
            }
            assert modes == {"": 0o600, "-shm": 0o600, "-wal": 0o600}

    async def test_everybody_may_see_its_launcher(self, place: Path) -> None:
        umask = os.umask(0o022)

        try:
            await (await make(place)).aclose()
        finally:
            os.umask(umask)

        assert stat.S_IMODE(Path(f"{place}.lock").stat().st_mode) == 0o644

    async def test_a_left_over_import_is_made_anew(self, place: Path) -> None:
        for ending in (".new", ".new-journal"):
            Path(f"{place}{ending}").write_text("half")

        async with await make(place, 2) as ledger:
            assert len(await read(ledger)) == 2

    @pytest.mark.parametrize("ending", ["", "-wal", "-journal"])
    async def test_a_name_in_use_is_refused(self, ending: str, place: Path) -> None:
        Path(f"{place}{ending}").write_text("of an earlier batch")

        with pytest.raises(LedgerForeign if ending else LedgerExists):
            await make(place)

        assert names(place) == [ending]
        assert Path(f"{place}{ending}").read_text() == "of an earlier batch"

    async def test_a_name_that_is_taken_meanwhile_is_refused(self, place: Path) -> None:
        async with await begin_import(str(place), NewBatch("night.csv", {})) as batch:
            await batch.add([checked(1)])
            place.write_text("another")

            with pytest.raises(LedgerExists):
                await batch.publish()

        assert (names(place), place.read_text()) == ([""], "another")

    async def test_a_folder_that_is_not_there_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(LedgerError, match="No such file"):
            await make(tmp_path / "none" / "night.ledger.db")

    async def test_a_link_leads_to_the_same_batch(self, place: Path) -> None:
        link = place.with_name("link.db")
        link.symlink_to(place)

        async with await make(place):
            with pytest.raises(LedgerLocked):
                await take_ledger(str(link))

        async with await open_ledger(str(link)) as ledger:
            assert ledger.place == str(place)


CRASHES: Final = [
    pytest.param("fsync", 1, False, id="before the file is synced"),
    pytest.param("link", 1, False, id="before it is named"),
    pytest.param("unlink", 4, True, id="before the other name is removed"),
    pytest.param("fsync", 2, True, id="before the folder is synced"),
    pytest.param("fdatasync", 1, True, id="before it is opened"),
]


@pytest.mark.parametrize(("call", "number", "is_there"), CRASHES)
async def test_a_killed_import_leaves_no_ledger_or_a_whole_one(
    call: str, number: int, is_there: bool, place: Path
) -> None:
    names_of_call = (
        f"{call},linkat" if call == "link" else f"{call},unlinkat" if call == "unlink" else call
    )
    inject = ["-e", f"inject={names_of_call}:signal=KILL:when={number}"]
    strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={names_of_call}", *inject]
    killed = subprocess.run([*strace, *program(place, "await make(place, 50)")], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert place.exists() == is_there

    async with await (take_ledger(str(place)) if is_there else make(place, 50)) as ledger:
        assert len(await read(ledger)) == 50

    assert names(place) == [""]


class TestKills:
    async def test_what_was_acknowledged_is_there_after_a_kill(self, place: Path) -> None:
        launcher = at_work(
            place,
            """
            ledger = await make(place, 9)
            await ledger.begin_session(session())
            await send(ledger, "started", "retry", "rejected")
            await ledger.exchange([], {"default": 3})
            """,
        )
        async with await open_ledger(str(place)) as ledger:
            assert list((await states(ledger)).values()) == [
                *("started", "sending", "rejected", "sending", "sending"),
                *["pending"] * 4,
            ]

        kill(launcher)

        async with await open_ledger(str(place)) as ledger:
            assert (await states(ledger))["k2"] == "unknown"
            assert (await ledger.counts())[0].unknown == 3
            [unknown] = [portion async for portion in ledger.unknown_rows()]
            assert [row.key for row in unknown] == ["k2", "k4", "k5"]

        async with await take_ledger(str(place)) as ledger:
            await ledger.begin_session(session())
            assert [known.number for known in await ledger.sessions()] == [1, 2]
            assert (await ledger.counts())[0].unknown == 3
            assert [s.row for s in (await ledger.exchange([], {"default": 9})).starts] == [
                6,
                7,
                8,
                9,
            ]

    async def test_a_killed_resolve_is_rolled_back_for_readers(self, place: Path) -> None:
        async with await make(place, 3) as ledger:
            await ledger.begin_session(session())
            await send(ledger, "unknown")

        body = f"""
        import sqlite3
        from deslaunch.ledger.changes import Finding
        ledger = await open_ledger(str(place))
        await ledger.resolve([Finding("k1", "started", {run_id(1)!r})])
        """
        # The journal's header is written and synced before the file itself is written.
        inject = ["-e", "inject=unlink:signal=KILL:when=1"]
        strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=unlink", *inject]
        assert subprocess.run([*strace, *program(place, body)], check=False).returncode == -9
        assert names(place) == ["", "-journal"]

        async with await open_ledger(str(place)) as ledger:
            assert (await states(ledger))["k1"] == "unknown"


class TestOneLauncher:
    async def test_a_second_one_is_told_who_is_at_work(self, place: Path) -> None:
        first = at_work(place, "ledger = await make(place)\nawait ledger.begin_session(session())")

        with pytest.raises(LedgerLocked, match=rf"process {first.pid} on .* since 2026-11-18T"):
            await take_ledger(str(place))

        async with await open_ledger(str(place)) as reader:
            [known] = await reader.launchers()
            assert (known.pid, known.since_ms) == (first.pid, 1_795_000_100_000)

        kill(first)

        async with await take_ledger(str(place)) as ledger:
            assert await ledger.launchers() == []

    async def test_an_import_is_one_too(self, place: Path) -> None:
        first = at_work(place, "await begin_import(str(place), NewBatch('night.csv', {}))")

        with pytest.raises(LedgerLocked, match=f"process {first.pid} on"):
            await make(place)

        kill(first)
        await (await make(place)).aclose()

    async def test_nothing_that_this_process_does_loses_its_lock(self, place: Path) -> None:
        ledger = await make(place)

        with pytest.raises(LedgerLocked):
            await take_ledger(str(place))

        async with await open_ledger(str(place)) as reader:
            [known] = await reader.launchers()
            assert known.pid == os.getpid()

        if (child := os.fork()) == 0:
            os._exit(0 if find_holder(str(place)) == os.getppid() else 1)

        assert os.waitpid(child, 0)[1] == 0

        second = subprocess.run(
            program(place, "await begin(place)"), capture_output=True, check=False
        )
        assert b"LedgerLocked" in second.stderr
        await ledger.aclose()
        await (await begin(place)).aclose()

    async def test_who_is_not_there_holds_nothing(self, place: Path) -> None:
        assert find_holder(str(place)) is None
        await (await make(place)).aclose()
        assert find_holder(str(place)) is None


class TestEnd:
    async def test_a_reader_that_stays_is_told_of(
        self, place: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sqlite, "READERS_WAIT", 0.1)
        ledger = await make(place)
        await ledger.begin_session(session())
        await send(ledger, "started")

        with closing(sqlite3.connect(f"file:{place}?mode=ro", uri=True)) as reader:
            cursor = reader.execute("SELECT * FROM row")
            cursor.fetchone()
            message = await ledger.aclose()

        assert message.startswith(f"{place}-wal belongs to the batch")
        assert await ledger.aclose() == ""

        async with await begin(place) as ledger:
            assert (await states(ledger))["k1"] == "started"

    async def test_readers_are_waited_for(self, place: Path) -> None:
        ledger = await make(place)
        await ledger.begin_session(session())

        async with await open_ledger(str(place)) as reader:
            assert len(await read(reader)) == 4
            ending = asyncio.create_task(ledger.aclose())
            await asyncio.sleep(0)

        assert await ending == ""
        assert names(place) == [""]


class TestPlace:
    async def test_a_file_that_is_replaced_is_noticed_and_rescued(self, place: Path) -> None:
        ledger = await make(place)
        await ledger.begin_session(session())
        await send(ledger, "started", "unknown")
        assert await ledger.is_in_place()

        moved = place.rename(place.with_name("moved.db"))
        assert not await ledger.is_in_place()
        place.write_bytes(b"another")
        assert not await ledger.is_in_place()

        Path(f"{place}.rescued").write_text("of an earlier one")
        rescued = await ledger.rescue()
        assert (await ledger.aclose(), Path(f"{place}-wal").stat().st_size) == ("", 0)
        assert (rescued, place.read_bytes()) == (f"{place}.rescued.2", b"another")
        assert stat.S_IMODE(Path(rescued).stat().st_mode) == 0o600

        for whole in (rescued, str(moved)):
            async with await open_ledger(whole) as copy:
                found = list((await states(copy)).values())
                assert found == ["started", "unknown", "pending", "pending"]

        assert not Path(f"{rescued}-wal").exists()

    async def test_a_folder_that_is_gone_is_told(self, place: Path) -> None:
        folder = place.parent / "folder"
        folder.mkdir()
        ledger = await make(folder / "night.db")

        for path in folder.iterdir():
            path.unlink()

        folder.rmdir()
        assert not await ledger.is_in_place()

        with pytest.raises(LedgerError, match="rescued"):
            await ledger.rescue()

        await ledger.aclose()


def _foreign(path: Path) -> None:
    path.write_text("key,target\n" * 1_000)


def _other_application(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE places (id)")


def _newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA application_id={sqlite.APPLICATION_ID}")
        connection.execute("PRAGMA user_version=99")


REFUSED: Final = [
    pytest.param(_foreign, "is not a ledger", id="a manifest"),
    pytest.param(_other_application, "is not a ledger", id="another application's"),
    pytest.param(Path.touch, "is not a ledger", id="an empty file"),
    pytest.param(_newer, "schema version 99, this deslaunch supports 1", id="a newer version's"),
]


class TestWhatIsRefused:
    @pytest.mark.parametrize(("spoil", "message"), REFUSED)
    async def test_a_file_that_is_no_ledger(
        self, spoil: Callable[[Path], None], message: str, place: Path
    ) -> None:
        spoil(place)
        before = place.read_bytes()

        for open_it in (take_ledger, open_ledger):
            with pytest.raises(LedgerForeign, match=message):
                await open_it(str(place))

        assert place.read_bytes() == before

    async def test_a_place_without_one(self, place: Path) -> None:
        for open_it in (take_ledger, open_ledger):
            with pytest.raises(LedgerMissing):
                await open_it(str(place))

        assert list(place.parent.glob("night*")) == []

    async def test_a_damaged_one(self, place: Path) -> None:
        await (await make(place, 500)).aclose()
        held = bytearray(place.read_bytes())
        held[4096:] = b"\x55" * (len(held) - 4096)
        place.write_bytes(held)

        for open_it in (take_ledger, open_ledger):
            with pytest.raises(LedgerDamaged, match="damaged"):
                await open_it(str(place))

        assert find_holder(str(place)) is None

    async def test_one_with_a_lost_page_is_not_sent_from(self, place: Path) -> None:
        await (await make(place, 500)).aclose()

        with closing(sqlite3.connect(place)) as connection:
            find = "SELECT rootpage FROM sqlite_master WHERE name = 'resolution'"
            [(page,)] = connection.execute(find)

        held = bytearray(place.read_bytes())
        held[(page - 1) * 4096 : page * 4096] = bytes(4096)
        place.write_bytes(held)

        with pytest.raises(LedgerDamaged, match="damaged"):
            await take_ledger(str(place))

        assert find_holder(str(place)) is None

    @pytest.mark.parametrize(
        "spoiled",
        [
            pytest.param({b"default": b"d\xff\xfeault"}, id="a value"),
            # SQLite's message has the name.
            pytest.param(
                {b"indexrow_key": b"indexrow\x91key", b"CREATE U": b"CREATEXU"}, id="a name"
            ),
        ],
    )
    async def test_one_whose_text_is_none(
        self, spoiled: Mapping[bytes, bytes], place: Path
    ) -> None:
        await (await make(place)).aclose()
        held = place.read_bytes()

        for word, other in spoiled.items():
            assert word in held
            held = held.replace(word, other)

        place.write_bytes(held)

        with pytest.raises(LedgerDamaged, match="UTF-8"):
            await open_ledger(str(place))

    async def test_an_sqlite_that_is_too_old(
        self, place: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 33, 0))

        with pytest.raises(LedgerError, match="too old"):
            await make(place)

    def test_no_statement_needs_a_newer_one_than_it_says(self) -> None:
        folder = Path(sqlite.__file__).parent
        text = "\n".join((folder / name).read_text() for name in ("schema.sql", "queries.sql"))
        newer = ("RETURNING", "STRICT", "->>", "DROP COLUMN", "MATERIALIZED", "unixepoch(")
        assert [word for word in newer if word in text] == []


def mount(point: str, kind: str) -> str:
    return f"36 35 98:0 / {point} rw,noatime shared:1 - {kind} /dev/x rw"


ROOT: Final = mount("/", "ext4")
MOUNTS: Final = [
    pytest.param(ROOT, "", id="a disk"),
    pytest.param(f"{ROOT}\n{mount('/data', 'nfs4')}", "nfs4", id="NFS"),
    pytest.param(f"{ROOT}\n{mount('/data/in', 'fuse.sshfs')}", "fuse.sshfs", id="FUSE"),
    pytest.param(
        f"{ROOT}\n{mount('/data', '9p')}\n{mount('/data/in', 'xfs')}", "", id="a disk in 9p"
    ),
    pytest.param(
        f"{ROOT}\n{mount('/data', 'ext4')}\n{mount('/data', 'cifs')}", "cifs", id="covered"
    ),
    pytest.param(f"{ROOT}\n{mount('/dat', 'nfs')}", "", id="another folder's"),
    pytest.param(f"{ROOT}\n{mount('/data', 'fuseblk')}", "", id="fuseblk"),
    pytest.param(f"{ROOT}\n{mount('/data', 'tmpfs')}", "~next restart", id="tmpfs"),
    pytest.param(mount("/", "overlay"), "~container", id="overlay"),
    pytest.param("/dev/d1 on / (apfs, local)\n//x on /data (smbfs, nodev)", "smbfs", id="macOS"),
    pytest.param("", "", id="not told"),
]


@pytest.mark.parametrize(("mounts", "told"), MOUNTS)
def test_file_systems_are_known_by_their_types(mounts: str, told: str) -> None:
    if told and not told.startswith("~"):
        with pytest.raises(LedgerError, match=f"is on {told}"):
            check_file_system("/data/in/night.ledger.db", mounts)
    else:
        warning = check_file_system("/data/in/night.ledger.db", mounts)
        assert told.removeprefix("~") in warning
        assert bool(warning) == bool(told)


def test_a_mount_point_with_a_blank_is_read() -> None:
    with pytest.raises(LedgerError, match="nfs"):
        check_file_system("/my data/night.db", ROOT + "\n" + mount(r"/my\040data", "nfs"))


@pytest.mark.parametrize("is_mounted", [False, True], ids=["hard link", "mount"])
async def test_a_file_with_another_name_is_not_written(
    place: Path, is_mounted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    await (await make(place, 1)).aclose()
    other = place.with_name("my other.db")
    os.link(place, other)

    if is_mounted:
        place.unlink()
        mounts = ROOT + "\n" + mount(str(other).replace(" ", r"\040"), "ext4")
        monkeypatch.setattr(sqlite, "_list_mounts", lambda: mounts)

    with pytest.raises(LedgerError, match="another name"):
        await take_ledger(str(other))

    async with await open_ledger(str(other)) as reader:
        assert len(await read(reader)) == 1

        with pytest.raises(LedgerError, match="another name"):
            await reader.withdraw(None)

    place.unlink(missing_ok=True)
    other.rename(place)

    async with await take_ledger(str(place)) as ledger:
        assert await states(ledger) == {"k1": "pending"}


async def test_the_name_of_an_import_that_was_killed_at_its_end_is_none(place: Path) -> None:
    await (await make(place, 1)).aclose()
    os.link(place, f"{place}.new")

    async with await open_ledger(str(place)) as reader:
        assert (await reader.withdraw(None)).changed == 1


@pytest.mark.parametrize("launches", [True, False])
async def test_a_reader_keeps_nobody_from_writing(place: Path, launches: bool) -> None:
    await (await make(place, 1)).aclose()

    async def write() -> None:
        async with await (take_ledger if launches else open_ledger)(str(place)) as ledger:
            await ledger.withdraw(None)

    with closing(sqlite3.connect(place, isolation_level=None)) as other:
        other.execute("BEGIN").execute("SELECT count(*) FROM row").fetchone()
        task = asyncio.create_task(write())
        done, _ = await asyncio.wait({task}, timeout=1.5)

    await task
    assert done == set()


async def test_whoever_is_kept_out_is_told_by_what(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await (await make(place, 1)).aclose()
    monkeypatch.setattr(sqlite, "_WRITER", ("PRAGMA busy_timeout=0", *sqlite._WRITER))

    with closing(sqlite3.connect(place, isolation_level=None)) as other:
        other.execute("BEGIN").execute("SELECT count(*) FROM row").fetchone()

        with pytest.raises(LedgerError, match="locked") as told:
            await take_ledger(str(place))

    assert told.value.hint.startswith("another program reads or writes it")


async def test_a_finding_is_taken_beside_a_launcher(place: Path) -> None:
    launcher = at_work(
        place,
        """
        ledger = await make(place, 9)
        await ledger.begin_session(session())
        await send(ledger, "unknown")
        await ledger.exchange([], {"default": 1})
        """,
    )

    async with await open_ledger(str(place)) as reader:
        done = await reader.resolve([Finding("k1", "started", run_id(1))])
        assert (done.changed, (await states(reader))["k1"]) == (1, "started")

        with pytest.raises(ManifestError, match="'k2' is in flight"):
            await reader.resolve([Finding("k2", "unknown")])

    assert names(place) == ["", "-shm", "-wal"]
    kill(launcher)


class TestCancelled:
    async def test_an_opening_that_is_cancelled_frees_the_lock(self, place: Path) -> None:
        await (await make(place)).aclose()
        await never_mind(asyncio.create_task(take_ledger(str(place))))
        await (await retry(lambda: take_ledger(str(place)))).aclose()

    async def test_so_does_an_import(self, place: Path) -> None:
        await never_mind(asyncio.create_task(begin_import(str(place), NewBatch("night.csv", {}))))
        await (await retry(lambda: make(place))).aclose()

    async def test_a_batch_whose_publishing_is_cancelled_is_whole(self, place: Path) -> None:
        async with await begin_import(str(place), NewBatch("night.csv", {})) as batch:
            await batch.add([checked(1)])
            await never_mind(asyncio.create_task(batch.publish()))

        async with await retry(lambda: take_ledger(str(place))) as ledger:
            assert len(await read(ledger)) == 1

    async def test_one_that_fails_then_frees_the_lock(self, place: Path) -> None:
        async with await begin_import(str(place), NewBatch("night.csv", {})) as batch:
            await batch.add([checked(1)])
            place.write_text("another")
            await never_mind(asyncio.create_task(batch.publish()))

        assert (names(place), find_holder(str(place))) == ([""], None)


async def retry(work: Callable[[], Awaitable[Ledger]]) -> Ledger:
    """Try until what was cancelled has come to its end in its thread."""
    while True:
        try:
            return await work()
        except (LedgerLocked, LedgerMissing):
            await asyncio.sleep(0)
