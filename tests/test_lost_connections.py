"""Promise: what befalls the database during a launch costs waiting, never a row.

Nothing is sent meanwhile; responses that come in are recorded afterwards; then it goes on. Where
that can't be, it stops, and the jobRunIds that could not be recorded are told.
"""

from __future__ import annotations

import asyncio
import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Final, cast

import pytest
from judge import Judge
from postgres import wait_until
from proxy import Proxy
from stage import TOKEN, ended, fault, row

import deslaunch
from deslaunch import DesClient, EnvToken
from deslaunch.errors import LedgerWriteFailed
from deslaunch.launch import session
from deslaunch.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from postgres import Mode, Server
    from stage import Workplace

pytestmark = pytest.mark.slow

SLOTS: Final = 16
BEFORE: Final = 40
"""The starts that are responded to at once, where the next are held back."""
TOLD: Final = "nothing is sent meanwhile"


class Launch:
    """A launch of a batch in a database, as a process."""

    def __init__(self, place: Workplace, database: str, rows: int, *options: str) -> None:
        place.manifest(rows)
        self.rows = rows
        self.ledger = f"{database}#night"
        self.place = place
        named = ("--ledger", self.ledger, "--concurrency", str(SLOTS))
        self.process = place.start("run", "night.jsonl", *named, "--json", *options)
        self.told = ""

    @classmethod
    def with_all_slots_in_flight(cls, place: Workplace, database: str) -> Launch:
        """Return a launch whose every slot waits for a response: it has no start left to send."""
        place.simulator.use(fault("hold", *range(BEFORE + 1, BEFORE + SLOTS + 1)))
        launch = cls(place, database, 300)
        launch.reach(BEFORE + SLOTS)
        return launch

    def assert_nothing_is_sent(self) -> None:
        """The slots are free again, and yet it waits for the database."""
        self.place.portal.call(self.place.simulator.release)
        self.hear(TOLD)
        self.place.at_rest()
        assert len(self.place.simulator.runs) == BEFORE + SLOTS

    def reach(self, runs: int) -> None:
        """Return once so many runs were started."""
        assert self.place.wait_for_runs(self.process, runs), ended(self.process)

    def hear(self, text: str) -> None:
        """Return once it has said this."""
        assert self.process.stderr is not None

        while text not in self.told:
            line = self.process.stderr.readline()
            assert line, self.told
            self.told += line

    def end(self) -> dict[str, Any]:
        """Return its summary."""
        done = ended(self.process)
        self.told += done.stderr
        assert "Traceback" not in self.told, self.told
        assert done.stdout, self.told
        summary: dict[str, Any] = json.loads(done.stdout)
        assert summary["exitCode"] == done.returncode
        return summary

    def judge(self) -> Judge:
        return Judge(self.ledger, self.place.log, environment=self.place.environment)

    def assert_complete(self) -> None:
        """It went on to its end, and every row was started, once."""
        summary = self.end()
        told = {name: summary[name] for name in ("exitCode", "started", "startedNow", "unrecorded")}
        assert told == {
            "exitCode": 0,
            "started": self.rows,
            "startedNow": self.rows,
            "unrecorded": [],
        }, self.told
        self.judge().assert_promises(most_unknown=0)

    def assert_stopped(self) -> None:
        """It sent nothing more, and recorded what had been in flight."""
        summary = self.end()
        assert (summary["exitCode"], summary["unrecorded"]) == (7, []), self.told
        assert summary["pending"] == self.rows - summary["started"] > 0
        self.judge().assert_promises(most_unknown=0)
        assert f"send the remaining rows: deslaunch resume '{self.ledger}'" in self.told

    def assert_told(self, summary: dict[str, Any]) -> None:
        """The runs that could not be recorded stand on stderr and in a file."""
        runs = {run["key"]: run["jobRunId"] for run in summary["unrecorded"]}
        path = self.place.folder / "state" / "unrecorded.csv"

        if runs:
            with path.open() as file:
                found = [(one["key"], one["as"], one["jobRunId"]) for one in csv.DictReader(file)]

            assert found == [(key, "started", run) for key, run in runs.items()]

        lines = self.told.splitlines()
        assert all(f"{key}\t{run}" in lines for key, run in runs.items())

    @property
    def next_command(self) -> str:
        [command] = [
            line for line in self.told.splitlines() if line.startswith("send the remaining rows: ")
        ]
        return command.removeprefix("send the remaining rows: ")


@pytest.mark.parametrize("seed", range(3))
def test_a_connection_that_the_server_ends(
    seed: int, place: Workplace, database: str, postgres: Server
) -> None:
    place.simulator.use({"latency": 0.005})
    launch = Launch(place, database, 400)
    chance = random.Random(seed)

    for share in (0.1, 0.3, 0.5, 0.7):
        launch.reach(round(400 * share) + chance.randrange(40))
        assert postgres.kill_backends("deslaunch") == 1

    launch.assert_complete()


@pytest.mark.parametrize(
    "mode", [pytest.param("fast", id="fast"), pytest.param("immediate", id="crash")]
)
def test_a_server_that_restarts(
    mode: Mode, place: Workplace, database: str, postgres: Server
) -> None:
    place.simulator.use({"latency": 0.005})
    launch = Launch(place, database, 400)

    for runs in (100, 250):
        launch.reach(runs)
        postgres.restart(mode)

    launch.assert_complete()


def test_a_server_that_is_away_for_a_while(
    place: Workplace, database: str, postgres: Server
) -> None:
    launch = Launch.with_all_slots_in_flight(place, database)
    postgres.stop("immediate")
    launch.assert_nothing_is_sent()
    postgres.start()
    launch.assert_complete()


class TestSilence:
    """Packets are dropped on the way, or the server is frozen: nothing is closed."""

    def test_that_ends(self, place: Workplace, database: str, postgres: Server) -> None:
        with Proxy(postgres.port) as proxy:
            launch = Launch.with_all_slots_in_flight(place, through(proxy, database))
            proxy.frozen = True
            launch.assert_nothing_is_sent()
            assert "the server has not responded for 5 s" in launch.told
            proxy.frozen = False
            launch.assert_complete()

    def test_after_which_the_old_connection_would_still_commit(
        self, place: Workplace, database: str, postgres: Server
    ) -> None:
        place.simulator.use({"latency": 0.005})

        with Proxy(postgres.port) as proxy:
            launch = Launch(place, through(proxy, database), 300, "--give-up-after", "20")
            launch.reach(100)
            proxy.frozen = True
            launch.hear(TOLD)
            postgres.kill_backends("deslaunch")
            proxy.cut()
            proxy.frozen = False
            launch.assert_complete()

    def test_that_lasts_longer_than_it_is_waited_for(
        self, place: Workplace, database: str, postgres: Server
    ) -> None:
        place.simulator.use(fault("hold", *range(90, 100)))

        with Proxy(postgres.port) as proxy:
            launch = Launch(place, through(proxy, database), 300, "--give-up-after", "1")
            launch.reach(100)
            proxy.frozen = True
            place.portal.call(place.simulator.release)
            launch.hear("stopped: ")
            proxy.frozen = False
            launch.assert_stopped()

    def test_that_is_ended_by_a_second_signal(
        self, place: Workplace, database: str, postgres: Server
    ) -> None:
        with Proxy(postgres.port) as proxy:
            launch = Launch(place, through(proxy, database), 300)
            launch.reach(100)
            proxy.frozen = True
            launch.hear(TOLD)
            launch.process.send_signal(signal.SIGINT)
            launch.hear("a second signal ends the wait")
            launch.process.send_signal(signal.SIGINT)
            summary = launch.end()

        # It is tried once more to connect, for 5 s, and not once for each thing to be recorded.
        assert (summary["exitCode"], summary["seconds"] < 20) == (7, True)
        launch.assert_told(summary)


OWN_NETWORK: Final = "OWN_NETWORK"
FIREWALL: Final = "inet deslaunch drops"


def nft(*words: str) -> None:
    subprocess.run(["nft", *" ".join(words).split()], check=True)


def test_packets_that_are_dropped(request: pytest.FixtureRequest) -> None:
    """It runs itself once more, in a network of its own, where it may drop what it likes."""
    if OWN_NETWORK in os.environ:
        fixtures = ("place", "database", "postgres")
        drop_packets(*(request.getfixturevalue(name) for name in fixtures))
        return

    missing = [name for name in ("unshare", "ip", "nft") if shutil.which(name) is None]

    probe = ["unshare", "--net", "nft", "add", "table", "inet", "probe"]

    if missing or os.geteuid() or subprocess.run(probe, check=False).returncode:
        pytest.skip(f"a network of its own needs root's rights, and {', '.join(missing) or 'nft'}")

    inner = f"ip link set lo up && exec {sys.executable} -m pytest -q '{request.node.nodeid}'"
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", inner],
        cwd=request.config.rootpath,
        env={**os.environ, OWN_NETWORK: "1"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def drop_packets(place: Workplace, database: str, postgres: Server) -> None:
    nft("add table", FIREWALL.rpartition(" ")[0])
    nft("add chain", FIREWALL, "{ type filter hook input priority 0 ; }")
    launch = Launch.with_all_slots_in_flight(place, database)

    for end in ("sport", "dport"):
        nft("add rule", FIREWALL, "tcp", end, str(postgres.port), "drop")

    launch.assert_nothing_is_sent()
    nft("flush chain", FIREWALL)
    launch.assert_complete()


class TestWait:
    """What ends a wait for the database, and what becomes of the rows that were in flight."""

    @pytest.fixture
    def waiting(self, place: Workplace, database: str, postgres: Server) -> Launch:
        """A launch whose server is down, with responses that came in since."""
        place.simulator.use(fault("hold", 40, 41, 42))
        launch = Launch(place, database, 100, "--give-up-after", "60")
        launch.reach(60)
        postgres.stop("immediate")
        place.portal.call(place.simulator.release)
        launch.hear(TOLD)
        return launch

    def test_is_over_and_the_server_comes_back_within_a_minute(
        self, place: Workplace, database: str, postgres: Server
    ) -> None:
        place.simulator.use(fault("hold", 40, 41, 42))
        launch = Launch(place, database, 100, "--give-up-after", "1")
        launch.reach(60)
        postgres.stop("immediate")
        place.portal.call(place.simulator.release)
        launch.hear("stopped: ")
        postgres.start()
        launch.assert_stopped()

    def test_is_ended_by_a_signal_once_the_server_is_back(
        self, waiting: Launch, postgres: Server
    ) -> None:
        waiting.process.send_signal(signal.SIGTERM)
        waiting.hear("a second signal ends the wait")
        postgres.start()

        summary = waiting.end()
        told = (summary["exitCode"], summary["unknown"], summary["unrecorded"])
        assert told == (143, 0, [])
        waiting.judge().assert_promises(most_unknown=0)

    def test_is_ended_by_a_second_signal_at_once(
        self, waiting: Launch, place: Workplace, postgres: Server
    ) -> None:
        waiting.process.send_signal(signal.SIGINT)
        waiting.hear("a second signal ends the wait")
        waiting.process.send_signal(signal.SIGINT)
        summary = waiting.end()

        assert summary["exitCode"] == 7
        waiting.assert_told(summary)
        postgres.start()
        judge = waiting.judge()
        unrecorded = {run["jobRunId"] for run in summary["unrecorded"]}
        started = {run for runs in judge.starts_by_row.values() for run in runs}
        assert started - set(judge.runs.values()) <= unrecorded  # of a commit in doubt
        judge.assert_promises(most_unknown=SLOTS)

        [line] = [line for line in waiting.told.splitlines() if "could not be recorded" in line]
        resolved = place.shell(line.partition(", for: ")[2])
        assert resolved.returncode == 0, resolved
        assert place.shell(waiting.next_command).returncode in {0, 4}
        judge = waiting.judge()
        assert unrecorded <= set(judge.runs.values())
        judge.assert_promises(most_unknown=SLOTS)  # intents whose commit was in doubt


async def test_what_cannot_be_recorded_for_a_minute_is_told(
    place: Workplace, database: str, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "RECORD_FOR", 0.1)
    monkeypatch.setenv("DES_TOKEN", TOKEN)
    place.simulator.use(fault("hold", 10))
    manifest, settings = place.manifest(10), Settings(give_up_after=0.1)
    url = place.simulator.base_url

    async with DesClient(url, token=EnvToken()) as des:
        opening = deslaunch.open_batch(manifest, des, ledger=f"{database}#night", settings=settings)

        async with opening as batch:
            work = asyncio.create_task(batch.run())
            await asyncio.to_thread(
                place.portal.call, place.simulator.until, lambda: len(place.simulator.runs) == 10
            )
            await asyncio.to_thread(postgres.stop, "immediate")
            place.simulator.release()

            with pytest.raises(LedgerWriteFailed) as failed:
                await work

    await asyncio.to_thread(postgres.start)
    judge = Judge(f"{database}#night", place.log, environment=place.environment)
    told = dict(failed.value.unrecorded)
    assert told["row-10"] == judge.starts_by_row[10][0]
    assert {f"row-{row}" for row in judge.unknown} == set(told)
    judge.assert_promises(most_unknown=10)


def test_a_connection_that_ends_during_an_import(
    place: Workplace, database: str, postgres: Server
) -> None:
    """No batch is made, nothing is sent, and the same command does it all."""
    lines = [json.dumps(row(number)) for number in range(1, 2001)]
    command = ("run", "-", "--format", "jsonl", "--ledger", f"{database}#night")
    process = place.start(*command, stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write("\n".join(lines[:1500]))
    process.stdin.flush()
    query = "SELECT 1 FROM pg_stat_activity WHERE state = 'idle in transaction'"
    wait_until(lambda: postgres.sql(query) != [])
    postgres.kill_backends("deslaunch")

    done = ended(process, "\n".join(lines[1500:]))

    # What the server says last may be lost, since rows are on their way to it.
    [error, hint] = done.stderr.splitlines()
    assert error.startswith(f"error: {database}#night: "), done.stderr
    assert re.search("terminating connection|closed the connection", error), done.stderr
    assert hint == "  try again once the server can be reached"
    assert (done.returncode, len(place.simulator.runs)) == (7, 0)
    assert place.json("status", database) == {"batches": []}
    assert place.run(*command, stdin="\n".join(lines)).returncode == 0
    assert Judge(f"{database}#night", place.log, environment=place.environment).counts == {
        "started": 2000
    }


def test_a_server_that_restarts_during_a_watch(
    place: Workplace, database: str, postgres: Server
) -> None:
    cast("Any", place.simulator)._des.finish_after = 2.0
    launch = Launch(place, database, 20, "--watch", "--interval", "1")
    launch.hear("20 started; 20 attempts")
    postgres.restart("immediate")

    summary = launch.end()
    assert (summary["exitCode"], summary["succeeded"]) == (0, 20), launch.told
    assert {line["success"] for line in launch.judge().lines} == {True}


@pytest.mark.parametrize("seconds", ["1", "900"])
def test_a_watch_waits_as_long_as_it_is_told_to(
    seconds: str, place: Workplace, database: str, postgres: Server
) -> None:
    service = cast("Any", place.simulator)._des
    service.finish_after = 3600.0
    launch = Launch(place, database, 20)
    launch.assert_complete()
    options = ("--interval", "1", "--give-up-after", seconds)
    launch.process = place.start("watch", launch.ledger, *options)
    asked = "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%u.finished IS NOT TRUE%'"
    wait_until(lambda: postgres.sql(f"{asked} AND pid <> pg_backend_pid()") != [])
    postgres.stop("immediate")
    service.finish_after = 0.0
    began = time.monotonic()

    if seconds == "900":
        launch.hear("the ledger can't be written")
        launch.process.send_signal(signal.SIGINT)

    done = ended(launch.process)
    assert (done.returncode, time.monotonic() - began < 20) == (7, True), done


def test_the_driver_says_nothing_by_itself(database: str) -> None:
    code = (
        "import sys; from contextlib import suppress; import psycopg\n"
        "from deslaunch.ledger.postgres_server import connect\n"
        "with suppress(psycopg.Error), (it := connect(sys.argv[1], '')).pipeline():\n"
        "    it.execute('SELECT pg_terminate_backend(pg_backend_pid())').fetchall()\n"
    )
    words = [sys.executable, "-c", code, database]
    done = subprocess.run(words, capture_output=True, text=True, check=True)

    assert (done.stdout, done.stderr) == ("", "")


class Disk:
    """A small disk of the server's own, where the attempts of a database lie."""

    def __init__(self, postgres: Server, kilobytes: int) -> None:
        self.folder = postgres.folder / "disk"
        self.folder.mkdir()
        owner = postgres.folder.stat()
        self._mount = ["mount", "-t", "tmpfs", "none", str(self.folder)]
        self.resize(kilobytes, f"uid={owner.st_uid},gid={owner.st_gid},mode=700")
        self._mount.append("-oremount")

    def resize(self, kilobytes: int, options: str = "rw") -> None:
        command = [*self._mount, f"-osize={kilobytes}k,{options}"]
        subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def disk(postgres: Server) -> Iterator[Disk]:
    """It is full after some hundred attempts."""
    try:
        made = Disk(postgres, 256)
    except (OSError, subprocess.CalledProcessError) as exc:
        (postgres.folder / "disk").rmdir()
        pytest.skip(f"a disk can't be mounted here: {exc}")

    postgres.sql(f"CREATE TABLESPACE small LOCATION '{made.folder}'")
    yield made
    postgres.start()
    postgres.sql("DROP TABLESPACE small")
    subprocess.run(["umount", made.folder], check=True)
    made.folder.rmdir()


def test_a_disk_that_is_full(disk: Disk, place: Workplace, database: str, postgres: Server) -> None:
    assert place.run("upgrade", database).returncode == 0
    postgres.sql("ALTER TABLE deslaunch.attempts SET TABLESPACE small", database=database)
    launch = Launch(place, database, 1500)
    launch.hear("stopped: ")

    assert "No space left on device" in launch.told
    disk.resize(10_000)
    launch.assert_stopped()
    assert place.shell(launch.next_command).returncode == 0
    judge = launch.judge()
    judge.assert_promises(most_unknown=0)
    assert judge.counts == {"started": 1500}


class TestLostCommits:
    """The server is an older one than it was: nothing is sent any more."""

    def test_of_a_server_that_was_restored(
        self, place: Workplace, database: str, postgres: Server
    ) -> None:
        place.simulator.use({"latency": 0.005})
        launch = Launch(place, database, 300)
        launch.reach(50)
        postgres.base_backup("before")
        launch.reach(150)
        postgres.restore("before")
        self.stops(launch, "the server lost commits: it knows ")

    def test_of_a_server_that_failed_over(
        self, place: Workplace, database: str, postgres: Server
    ) -> None:
        place.simulator.use({"latency": 0.005})
        launch = Launch(place, database, 300)
        launch.reach(100)
        postgres.stop("immediate")
        postgres.stand_by()
        postgres.promote()
        self.stops(launch, "the server lost commits: it is another server, or was restored")

    def stops(self, launch: Launch, why: str) -> None:
        runs = len(launch.place.simulator.runs)
        summary = launch.end()

        assert (summary["exitCode"], summary["seconds"] < 30) == (7, True)
        assert why in launch.told
        launch.assert_told(summary)
        assert len(launch.place.simulator.runs) == runs < 300
        launch.judge().assert_none_twice()


def through(proxy: Proxy, database: str) -> str:
    return f"postgresql://launcher@127.0.0.1:{proxy.port}/{database.rpartition('/')[2]}"
