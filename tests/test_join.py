"""Several launchers send one batch, each a process: judged by what the simulator was sent."""

from __future__ import annotations

import json
import signal
import socket
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
import pytest
from commands import Ended, call
from ledgers import ask
from postgres import wait_until
from stage import QUICK, TOKEN, Workplace, ended, fault, rejected_row, row, workplace

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from blockbuster import BlockBuster
    from judge import Judge

ROWS = 5_000
SLOTS = 4
ALL = 1 + SLOTS
"""Rows that one launcher has sent, all but the first of which are in flight."""

BUSY = {"latency": 0.03, "faults": [{"fault": "status", "status": 503, "share": 0.05}]}
"""It bounds what one launcher sends in a second, so that a late one has its share too."""


@pytest.fixture(autouse=True)
def blocking_calls(no_blocking_calls: BlockBuster) -> None:
    """Leave it to the library's tests whether its loop waits: a command does one thing."""
    no_blocking_calls.deactivate()


class Night(NamedTuple):
    """A batch in a database, a simulator, and launchers that are started on it."""

    place: Workplace
    ledger: str

    def join(self, *options: str) -> subprocess.Popen[str]:
        """Start a launcher, as on every machine that sends this manifest."""
        words = ("--ledger", self.ledger, "--resume", "--join", "--json", *QUICK)
        return self.place.start("run", "night.jsonl", *words, *options)

    def call(self, *argv: object) -> Ended:
        """Run a command in this process."""
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.place.folder)

            for name, value in {**self.place.environment, "DES_TOKEN": TOKEN}.items():
                patch.setenv(name, value)

            return call(*argv)

    @property
    def judge(self) -> Judge:
        return self.place.judge(self.ledger)

    def wait_for_sessions(self, number: int) -> None:
        def are_there() -> bool:
            with suppress(psycopg.ProgrammingError):  # the batch is not there yet
                return ask(self.ledger, "SELECT count(*) FROM session") == [(number,)]

            return False

        wait_until(are_there)

    def release(self) -> None:
        self.place.portal.call(self.place.simulator.use, None)
        self.place.portal.call(self.place.simulator.release)


@pytest.fixture
def night(tmp_path: Path, database: str) -> Iterator[Night]:
    """A batch of which DES holds back all starts but the first: what is sent stays in flight."""
    with workplace(tmp_path, fault("hold", **{"from": 2})) as place:
        yield Night(place, f"{database}#night")


@pytest.fixture
def busy(tmp_path: Path, database: str) -> Iterator[Night]:
    with workplace(tmp_path, BUSY) as place:
        yield Night(place, f"{database}#night")


def summaries(*launchers: subprocess.Popen[str]) -> tuple[list[int], list[dict[str, Any]]]:
    """Return the exit codes of launchers, and what they print."""
    done = [ended(launcher) for launcher in launchers]
    told = [json.loads(one.stdout) if one.stdout else {"stderr": one.stderr} for one in done]
    return [one.returncode for one in done], told


def read_until(launcher: subprocess.Popen[str], text: str) -> None:
    assert launcher.stderr is not None
    seen = ""

    while text not in seen:
        line = launcher.stderr.readline()
        assert line, f"it ended without {text!r}: {seen}"
        seen += line


# At most once, and each its share.


def test_three_that_begin_at_once_start_every_row_once(busy: Night) -> None:
    busy.place.manifest(ROWS)
    codes, told = summaries(*(busy.join() for _ in range(3)))
    shares = [one["startedNow"] for one in told]

    busy.judge.assert_promises(most_unknown=0)
    assert busy.judge.counts == {"started": ROWS}
    assert codes == [0, 0, 0]
    assert sum(shares) == ROWS
    assert min(shares) >= ROWS // 3 // 5, shares


def test_one_imports_while_others_wait_and_another_one_where_it_dies(
    night: Night, database: str
) -> None:
    night.place.manifest(400)
    night.place.simulator.use(None)
    assert night.call("upgrade", database).code == 0

    with ExitStack() as held:
        mine = held.enter_context(psycopg.connect(database))
        mine.execute("LOCK TABLE deslaunch.contents IN ACCESS EXCLUSIVE MODE")
        importing = night.join()
        waits = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'contents'::regclass"
        wait_until(lambda: ask(night.ledger, waits) != [])
        others = [night.join(), night.join()]

        for other in others:
            read_until(other, "another process is importing it; waiting until it ends")

        seen = night.call("status", night.ledger)
        importing.kill()
        ended(importing)

    codes, told = summaries(*others)

    assert (seen.code, "there is no such batch" in seen.err) == (7, True)
    assert codes == [0, 0]
    assert sum(one["startedNow"] for one in told) == 400
    night.judge.assert_promises(most_unknown=0)
    assert night.judge.counts == {"started": 400}


# One that dies.


def test_what_one_had_in_flight_that_was_killed_is_unknown_and_all_else_is_started(
    night: Night,
) -> None:
    night.place.manifest(50)
    slots = ("--concurrency", str(SLOTS))
    victim = night.join(*slots)
    assert night.place.wait_for_runs(victim, ALL)
    other = night.join(*slots)
    assert night.place.wait_for_runs(other, ALL + 1)
    victim.kill()
    ended(victim)
    night.release()
    codes, _ = summaries(night.join(*slots), other)  # whoever begins finds it dead at once

    assert codes == [4, 4]
    night.judge.assert_promises(most_unknown=SLOTS)
    assert night.judge.counts == {"started": 50 - SLOTS, "unknown": SLOTS}


def test_where_it_was_the_last_one_the_next_session_makes_them_unknown(night: Night) -> None:
    night.place.manifest(10)
    victim = night.join("--concurrency", str(SLOTS))
    assert night.place.wait_for_runs(victim, 1 + SLOTS)
    victim.kill()
    ended(victim)
    night.release()
    dead = night.call("status", night.ledger, "--json").json
    codes, told = summaries(night.join())

    assert (dead["unknown"], dead["inFlight"], dead["exitCode"]) == (SLOTS, 0, 5)
    assert (codes, told[0]["startedNow"]) == ([4], 9 - SLOTS)
    night.judge.assert_promises(most_unknown=SLOTS)
    assert len(night.judge.unknown) == SLOTS


# One that finds nothing to take.


def test_one_that_finds_nothing_to_take_ends_by_the_whole_batch(night: Night) -> None:
    night.place.manifest(ALL)
    first = night.join()
    assert night.place.wait_for_runs(first, ALL)
    second = night.join()
    night.wait_for_sessions(2)
    looks = "SELECT turns FROM session ORDER BY id DESC LIMIT 1"
    wait_until(lambda: ask(night.ledger, looks) >= [(2,)])
    night.release()
    codes, told = summaries(first, second)

    assert codes == [0, 0]
    assert [one["startedNow"] for one in told] == [ALL, 0]
    assert [one["started"] for one in told] == [ALL, ALL]


def test_it_takes_what_another_leaves_that_was_interrupted(night: Night) -> None:
    night.place.simulator.use(fault("status", status=503, seconds=2.0, **{"from": 2}))
    night.place.manifest(ALL)
    first = night.join()
    wait_until(lambda: night.place.simulator.requests == ALL)
    second = night.join()
    night.wait_for_sessions(2)
    night.place.portal.call(night.place.simulator.use, None)
    first.send_signal(signal.SIGTERM)
    codes, told = summaries(first, second)

    assert codes == [143, 0]
    assert [one["startedNow"] for one in told] == [1, SLOTS]
    night.judge.assert_promises(most_unknown=0)


# What is refused.


def test_what_is_refused_beside_a_launcher_sends_nothing(night: Night) -> None:
    night.place.manifest(ALL)
    first = night.join()
    assert night.place.wait_for_runs(first, ALL)
    alone = night.call("resume", night.ledger, "--yes")
    consent = night.call("resume", night.ledger, "--join", "--retry-unknown", "--yes")
    who = f"another launcher is at work on it: process {first.pid} on {socket.gethostname()} since"

    assert (alone.code, who in alone.err, "--join" in alone.err) == (8, True, True)
    assert (consent.code, "other launchers are at work" in consent.err) == (2, True)
    assert night.place.simulator.requests == ALL

    night.release()
    assert summaries(first)[0] == [0]
    night.judge.assert_promises(most_unknown=0)


@pytest.mark.parametrize("command", ["run", "resume"])
def test_several_on_a_file_are_refused_and_postgresql_is_named(command: str, night: Night) -> None:
    night.place.manifest(1)
    night.release()
    assert night.call("run", "night.jsonl", "--yes").code == 0
    words = ("night.jsonl", "--resume") if command == "run" else ("night.ledger.db",)
    done = night.call(command, *words, "--join")

    assert (done.code, "PostgreSQL" in done.err) == (2, True)
    assert night.place.simulator.requests == 1


# Beside launchers at work.


def value_of(number: int) -> str:
    """Return what the body of a row has, and no other row's."""
    return json.dumps({"valueStringEncoded": str(number)}, separators=(",", ":"))[1:-1]


def test_all_other_commands_work_beside_launchers(night: Night) -> None:
    script = {
        "faults": [
            {"fault": "latency", "seconds": 0, "match": value_of(1)},
            {"fault": "close-after-start", "match": value_of(2)},
            {"fault": "hold"},
        ]
    }
    night.place.simulator.use(script)
    rows = [row(number) for number in range(1, 11)]
    rows[2] = rejected_row(3)
    night.place.write(rows)
    first = night.join("--concurrency", str(SLOTS))
    assert night.place.wait_for_runs(first, 2 + SLOTS)
    in_flight = "SELECT open FROM session"
    wait_until(lambda: ask(night.ledger, in_flight) == [(SLOTS,)])

    status = night.call("status", night.ledger)
    lines = night.call("results", night.ledger, "--format", "jsonl").lines
    log = night.call("log", night.ledger).lines
    report = night.call("report", night.ledger, "-o", "night.html")
    watched = night.call("watch", night.ledger, "--json")
    [run] = night.judge.starts_by_row[2]
    resolved = night.call("resolve", night.ledger, "row-2", "--started", run)
    busy_row = night.call("resolve", night.ledger, "row-4", "--not-started", "--early")
    who = f"at work: process {first.pid} on {socket.gethostname()} since "

    assert who in status.out
    assert f", {SLOTS} in flight" in status.out
    assert [line["state"] for line in lines] == [
        *("started", "unknown", "rejected"),
        *["inFlight"] * SLOTS,
        *["pending"] * 3,
    ]
    assert len([entry for entry in log if "attempt" in entry]) == 3 + SLOTS
    assert (report.code, (night.place.folder / "night.html").exists()) == (0, True)
    assert (watched.code, watched.json["runs"]) == (5, 1), watched
    assert (resolved.code, busy_row.code) == (0, 2), busy_row.err

    night.place.write([row(3)], "fix.jsonl")
    fix = ("resume", night.ledger, "--join", "--corrections", "fix.jsonl", "--yes", "--json")
    second = night.place.start(*fix)
    night.wait_for_sessions(2)
    night.release()
    codes, told = summaries(first, second)

    assert codes == [0, 0]
    assert told[0]["startedNow"] + told[1]["startedNow"] == 9
    night.judge.assert_promises(most_unknown=0)
    assert night.judge.counts == {"started": 10}
