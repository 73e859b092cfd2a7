"""What a file holds after every kind of failure, and who holds its lock."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from commands import unprivileged

from deslaunch import durable

HOLDER = """
import sys
from pathlib import Path
from deslaunch.durable import AppendFile

with AppendFile(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


class FaultyDisk:
    """A disk that writes short, fails at the n-th write or sync, or takes nothing."""

    def __init__(
        self,
        *,
        chunk: int | None = None,
        fail_write: int = 0,
        fail_sync: int = 0,
        code: int = errno.EIO,
    ) -> None:
        self.chunk = chunk
        self.fail_write = fail_write
        self.fail_sync = fail_sync
        self.code = code
        self.writes = 0
        self.syncs = 0

    def write(self, fd: int, data: bytes | memoryview) -> int:
        self.writes += 1

        if self.writes == self.fail_write:
            raise OSError(self.code, os.strerror(self.code))

        return os.write(fd, data if self.chunk is None else data[: self.chunk])

    def sync(self, fd: int) -> None:
        self.syncs += 1

        if self.syncs == self.fail_sync:
            raise OSError(self.code, os.strerror(self.code))

        os.fsync(fd)


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def holder(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("chunk", [1, 3, 7, None])
def test_short_writes_lose_nothing(tmp_path: Path, chunk: int | None) -> None:
    disk = FaultyDisk(chunk=chunk)

    with durable.AppendFile(tmp_path / "f", create=True, disk=disk) as file:
        file.append(b"first\n")
        file.append(b"second\n")

    assert (tmp_path / "f").read_bytes() == b"first\nsecond\n"
    assert (file.size, disk.syncs) == (13, 2)


def test_a_disk_that_takes_nothing_is_an_error_and_no_endless_loop(tmp_path: Path) -> None:
    file = durable.AppendFile(tmp_path / "f", create=True, disk=FaultyDisk(chunk=0))

    with file, pytest.raises(OSError, match="no more bytes"):
        file.append(b"x")


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize(
    ("fault", "kept"),
    [
        pytest.param({"fail_write": 1}, b"", id="first-write"),
        pytest.param({"fail_write": 2}, b"one\n", id="second-write"),
        pytest.param({"fail_sync": 1}, b"one\n", id="first-sync"),
        pytest.param({"fail_sync": 2}, b"one\ntwo\n", id="second-sync"),
        pytest.param({"fail_write": 3, "chunk": 3}, b"one\n", id="third-short-write"),
    ],
)
def test_a_failure_is_final(tmp_path: Path, fault: dict[str, int], kept: bytes, code: int) -> None:
    disk = FaultyDisk(code=code, **fault)
    file = durable.AppendFile(tmp_path / "f", create=True, disk=disk)

    with pytest.raises(OSError, match=os.strerror(code)) as first:  # noqa: PT012  # at either
        for line in (b"one\n", b"two\n"):
            file.append(line)

    calls = disk.writes, disk.syncs

    with pytest.raises(OSError, match=os.strerror(code)) as later:
        file.append(b"three\n")

    assert (first.value.errno, later.value.errno) == (code, code)
    assert (disk.writes, disk.syncs) == calls, "a failed disk must not be asked again"
    assert (tmp_path / "f").read_bytes() == kept
    assert "failed" in repr(file)
    file.close()


def test_a_failed_cut_is_final_as_well(tmp_path: Path) -> None:
    disk = FaultyDisk(fail_sync=2)

    with durable.AppendFile(tmp_path / "f", create=True, disk=disk) as file:
        file.append(b"one\ntw")

        with pytest.raises(OSError, match="Input/output"):
            file.cut(4)

        with pytest.raises(OSError, match="Input/output"):
            file.append(b"two\n")

    assert disk.writes == 1


def test_a_cut_is_synced_and_appending_goes_on_behind_it(tmp_path: Path) -> None:
    disk = FaultyDisk()

    with durable.AppendFile(tmp_path / "f", create=True, disk=disk) as file:
        file.append(b"one\ntw")
        file.cut(4)
        assert (disk.syncs, file.size) == (2, 4)
        file.append(b"two\n")

    assert (tmp_path / "f").read_bytes() == b"one\ntwo\n"


def test_create_makes_a_private_file_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)

    try:
        durable.AppendFile(tmp_path / "f", create=True).close()
    finally:
        os.umask(before)

    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o600


def test_create_refuses_an_existing_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"mine")

    with pytest.raises(FileExistsError):
        durable.AppendFile(tmp_path / "f", create=True)

    assert (tmp_path / "f").read_bytes() == b"mine"


@pytest.mark.skipif(sys.platform != "linux", reason="counts open descriptors in /proc")
@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/null")])
def test_only_regular_files_are_appended_to(tmp_path: Path, make: object) -> None:
    assert callable(make)
    make(tmp_path / "f")
    before = len(names(Path("/proc/self/fd")))

    with pytest.raises(OSError, match=r"regular|directory"):
        durable.AppendFile(tmp_path / "f")

    assert len(names(Path("/proc/self/fd"))) == before


@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(lambda path: path.unlink(), id="removed"),
        pytest.param(lambda path: path.rename(path.with_name("g")), id="moved"),
        pytest.param(
            lambda path: (
                path.with_name("g").write_bytes(b"new"),
                path.with_name("g").replace(path),
            ),
            id="replaced",
        ),
    ],
)
def test_a_file_lost_under_our_hands_is_a_failed_write(tmp_path: Path, loss: object) -> None:
    assert callable(loss)

    with durable.AppendFile(tmp_path / "f", create=True) as file:
        file.append(b"one\n")
        loss(tmp_path / "f")

        for _ in range(2):
            with pytest.raises(OSError, match="moved, removed or replaced") as caught:
                file.append(b"two\n")

            assert caught.value.errno == errno.ESTALE

        with pytest.raises(OSError, match=r"moved|No such file"), file.reading():
            pass


def test_another_folder_is_no_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deeper").mkdir()
    monkeypatch.chdir(tmp_path)

    with durable.AppendFile(Path("f"), create=True) as file:
        monkeypatch.chdir(tmp_path / "deeper")
        file.append(b"one\n")

        with file.reading() as stream:
            assert stream.read() == b"one\n"


def test_reading_neither_moves_the_end_nor_gives_up_the_lock(tmp_path: Path) -> None:
    with durable.AppendFile(tmp_path / "f", create=True) as file:
        file.append(b"one\n")

        with file.reading() as stream:
            assert stream.read(2) == b"on"
            file.append(b"two\n")
            assert stream.read() == b"e\ntwo\n"

        with pytest.raises(BlockingIOError):
            durable.AppendFile(tmp_path / "f")


def test_the_lock_holds_between_processes(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"")

    with holder(path) as process:
        with pytest.raises(BlockingIOError):
            durable.AppendFile(path)

        process.kill()

    durable.AppendFile(path).close()  # a killed holder leaves nothing behind


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists its locks")
def test_is_held_sees_another_process_and_its_end(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"")
    seen = [durable.is_held(path)]

    with holder(path) as process:
        seen.append(durable.is_held(path))
        process.communicate("")

    seen.append(durable.is_held(path))
    assert seen == [False, True, False]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists its locks")
def test_is_held_takes_no_other_file_for_this_one(tmp_path: Path) -> None:
    (tmp_path / "g").write_bytes(b"")

    with durable.AppendFile(tmp_path / "f", create=True):
        assert (durable.is_held(tmp_path / "f"), durable.is_held(tmp_path / "g")) == (True, False)

    with pytest.raises(FileNotFoundError):
        durable.is_held(tmp_path / "none")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    file = durable.AppendFile(tmp_path / "f", create=True)
    wait, go = os.pipe()
    child = os.fork()

    if not child:
        os.close(go)
        os.read(wait, 1)
        os._exit(0)

    try:
        file.close()
        durable.AppendFile(tmp_path / "f").close()
    finally:
        os.close(go)
        os.close(wait)
        os.waitpid(child, 0)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_does_not_give_up_the_lock(tmp_path: Path) -> None:
    with durable.AppendFile(tmp_path / "f", create=True) as file:
        child = os.fork()

        if not child:
            file.close()
            os._exit(0)

        os.waitpid(child, 0)

        with pytest.raises(BlockingIOError):
            durable.AppendFile(tmp_path / "f")


def test_an_executed_command_inherits_nothing(tmp_path: Path) -> None:
    script = "import os, sys; print(os.fstat(int(sys.argv[1])))"

    with durable.AppendFile(tmp_path / "f", create=True) as file:
        command = [sys.executable, "-c", script, str(file._fd)]  # what leaks
        done = subprocess.run(command, close_fds=False, capture_output=True, text=True, check=False)

    assert "Bad file descriptor" in done.stderr


def test_closing_twice_does_nothing(tmp_path: Path) -> None:
    file = durable.AppendFile(tmp_path / "f", create=True)
    file.close()
    other = durable.AppendFile(tmp_path / "f")
    file.close()

    with pytest.raises(BlockingIOError):
        durable.AppendFile(tmp_path / "f")

    with pytest.raises(OSError, match="Bad file descriptor"):
        file.append(b"x")

    other.close()
    assert (tmp_path / "f").read_bytes() == b""


class PowerCut(BaseException):
    """The end of everything inside the block."""


@pytest.mark.parametrize("old", [None, b"old"])
@pytest.mark.parametrize("written", [0, 3, 100_000])
def test_a_crash_while_replacing_leaves_the_old_file(
    tmp_path: Path, old: bytes | None, written: int
) -> None:
    path = tmp_path / "f"

    if old is not None:
        path.write_bytes(old)

    with pytest.raises(PowerCut), durable.replacing(path) as stream:  # noqa: PT012  # the block
        stream.write(b"n" * written)
        raise PowerCut

    assert (path.read_bytes() if path.exists() else None) == old
    assert [name.name for name in tmp_path.iterdir()] == ([] if old is None else ["f"])


def test_a_failed_sync_while_replacing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")

    with pytest.raises(OSError, match="No space"):
        durable.write_atomically(path, b"new", disk=FaultyDisk(fail_sync=1, code=errno.ENOSPC))

    assert (path.read_bytes(), names(tmp_path)) == (b"old", ["f"])


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_replaced_file_is_whole_and_has_its_mode(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"older and longer")
    path.chmod(0o666)
    durable.write_atomically(path, b"new", mode)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"new", mode)
    assert names(tmp_path) == ["f"]


def test_readers_see_the_old_file_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    disk = FaultyDisk()

    with durable.replacing(path, disk=disk) as stream:
        stream.write(b"new")
        stream.flush()
        assert (path.read_bytes(), disk.syncs) == (b"old", 0)

    assert (path.read_bytes(), disk.syncs) == (b"new", 1)


def test_a_link_stays_a_link_to_the_new_file(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "deeper" / "f")
    durable.write_atomically(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "deeper" / "f").read_bytes() == b"new"


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir])
def test_what_is_no_file_is_not_replaced(tmp_path: Path, make: object) -> None:
    assert callable(make)
    path = tmp_path / "f"
    make(path)
    kind = stat.S_IFMT(path.stat().st_mode)

    with pytest.raises(OSError, match="not a regular file"):
        durable.write_atomically(path, b"new")

    assert stat.S_IFMT(path.stat().st_mode) == kind
    assert names(tmp_path) == ["f"]


def test_a_device_is_not_replaced() -> None:
    with pytest.raises(OSError, match="not a regular file"):
        durable.write_atomically(Path(os.devnull), b"new")


def test_the_longest_name_can_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    durable.write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_missing_folder_is_an_os_error(tmp_path: Path) -> None:
    for write in (
        lambda path: durable.AppendFile(path, create=True),
        lambda path: durable.write_atomically(path, b"new"),
        lambda path: durable.sync_directory(path.parent),
    ):
        with pytest.raises(FileNotFoundError):
            write(tmp_path / "none" / "f")


@pytest.mark.skipif(sys.platform != "linux", reason="looks descriptors up in /proc")
@pytest.mark.parametrize("name", ["new", "there"])
def test_a_place_that_can_be_written_is_none_to_complain_of(tmp_path: Path, name: str) -> None:
    (tmp_path / "there").touch()

    durable.check_place(tmp_path / name)

    assert names(tmp_path) == ["there"]


@pytest.mark.parametrize(
    ("name", "number"),
    [
        pytest.param("gone/new", errno.ENOENT, id="no folder"),
        pytest.param("there/new", errno.ENOTDIR, id="no folder but a file"),
        pytest.param("locked/new", errno.EACCES, id="a folder of others"),
        pytest.param("read", errno.EACCES, id="a file of others"),
    ],
)
def test_a_place_that_can_not_be_written_is_seen(tmp_path: Path, name: str, number: int) -> None:
    (tmp_path / "there").touch()
    (tmp_path / "read").touch(0o400)
    (tmp_path / "locked").mkdir(0o500)
    code = (
        "import sys, pathlib; from deslaunch import durable\n"
        "try: durable.check_place(pathlib.Path(sys.argv[1]))\n"
        "except OSError as exc: sys.exit(exc.errno)\n"
    )
    command = [*unprivileged(), sys.executable, "-c", code, str(tmp_path / name)]

    assert subprocess.run(command, check=False).returncode == number


def test_the_folder_is_synced_after_a_file_was_made_in_it(tmp_path: Path) -> None:
    # The folder's sync is no disk's call: a child watches its own.
    script = """
import os, sys
from pathlib import Path
from deslaunch import durable

calls = []
real = os.fsync
os.fsync = lambda fd: (calls.append(os.path.isdir(f"/proc/self/fd/{fd}")), real(fd))[1]
durable.AppendFile(Path(sys.argv[1]) / "f", create=True).close()
durable.write_atomically(Path(sys.argv[1]) / "g", b"new")
print(calls)
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[True, True]\n"


@pytest.mark.parametrize(
    ("pid", "alive"),
    [
        pytest.param(os.getpid(), True, id="this-process"),
        pytest.param(1, True, id="somebody-elses"),
        pytest.param(0, False, id="our-own-group"),
        pytest.param(-1, False, id="everybody"),
        pytest.param(1 << 40, False, id="no-pid-at-all"),
    ],
)
def test_is_alive(pid: int, alive: bool) -> None:
    assert durable.is_alive(pid) is alive


def test_is_alive_sees_an_end() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert durable.is_alive(process.pid)

    assert not durable.is_alive(process.pid)


def test_temporary_files_never_leave_the_folder(tmp_path: Path) -> None:
    with durable.replacing(tmp_path / "f"):
        (name,) = names(tmp_path)
        assert (name.startswith(".f."), name.endswith(".new")) == (True, True)

    assert tempfile.gettempdir() != str(tmp_path)
