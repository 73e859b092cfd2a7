"""Several launchers send one batch in PostgreSQL, while they and its server are attacked."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections import Counter
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from postgres import Server, missing, wait_until
from proxy import Proxy
from stage import QUICK, TOKEN, Workplace, ended, workplace

from .kills import KILLED, ROWS, SHORT
from .kills import SLOTS as FEW_SLOTS
from .tally import SESSIONS, Tally, shown, side_by_side, strace

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

LAUNCHERS: Final = 3
SLOTS: Final = 16
SCRIPT: Final[dict[str, Any]] = {
    "latency": 0.03,
    "faults": [
        {"fault": "status", "status": 503, "share": 0.05},
        {"fault": "latency", "seconds": 0.1, "share": 0.2},
    ],
}

FAULTS: Final = {
    "kill": 9,
    "interrupt": 4,
    "terminate": 9,
    "cut": 6,
    "fast": 4,
    "immediate": 4,
    "stop": 4,
}
"""How often each is drawn. One that is stopped has lost its connection when it goes on."""

ENDS: Final = {0, 4}
MOST_REQUESTS: Final = 160
"""A launch of a dozen rows sends so many to the server, two thirds of them before a start."""


def launchers(folder: Path, *, fast: bool, rng: random.Random) -> Tally:
    """Faults at random moments: none twice, none lost, *slots* unknown for each kill."""
    wanted, rows = (3, 500) if fast else (24, 3_000)
    tally = Tally(f"shared by {LAUNCHERS}, batches of {rows:,} rows")
    done: Counter[str] = Counter()

    if reason := missing():
        tally.notes.append(f"not done: {reason}")
        return tally

    def one(number: int, faults: list[str]) -> None:
        server = Server()

        try:
            with (
                workplace(folder / f"{number}", SCRIPT | {"seed": number}) as place,
                Proxy(server.port) as proxy,
                tally.case(f"batch {number}: {', '.join(faults)}"),
            ):
                crowd = Crowd(place, server, rng, proxy)
                place.manifest(rows)
                crowd.work(faults, rows)
                done.update(crowd.done)
                tally.kills += crowd.done["kill"]
                crowd.conclude(tally, rows)
        finally:
            server.close()

    for number in count(1, 2):
        if fast:
            one(number, ["terminate", "immediate", "interrupt", "cut", "kill"])
        else:
            draw = [rng.choices([*FAULTS], [*FAULTS.values()], k=6) for _ in range(2)]
            side_by_side(one, [(number, draw[0]), (number + 1, draw[1])])

        is_enough = sum(done[fault] for fault in FAULTS) >= wanted

        if (is_enough and (fast or done.keys() >= FAULTS.keys())) or tally.broken:
            break

    with tally.case("the attack"):
        assert done["found dead"] or not done["stop"], "none that was stopped was found dead"

    tally.notes.append(", ".join(f"{number} {fault}" for fault, number in done.items()))
    return tally


def statements(folder: Path, *, fast: bool, rng: random.Random) -> Tally:
    """Kill a launcher before each request to the server, and before it reads each response."""
    tally = Tally("kill at every request to PostgreSQL")

    if reason := missing():
        tally.notes.append(f"not done: {reason}")
        return tally

    def one(number: int, call: str, n: int) -> None:
        with (
            workplace(folder / f"{number}", SHORT | {"seed": number}) as place,
            tally.case(f"{call} {n}"),
        ):
            place.manifest(ROWS)
            place.environment.update(server.environment)
            ledger = f"{server.new_database()}#night"
            words = ("night.jsonl", "--ledger", ledger, "--resume", *QUICK, "--yes", "--quiet")
            command = ("run", *words, "--concurrency", str(FEW_SLOTS))
            done = place.run(*command, wrap=strace(call, "signal=KILL", str(n)))
            is_killed = done.returncode in KILLED
            tally.kills += is_killed

            while done.returncode not in {3, 4}:  # a row is rejected
                assert done.returncode == 5 or is_killed, shown(done)
                done, is_killed = place.run(*command), False

            place.at_rest()
            judge = place.judge(ledger)
            tally.count(place, judge)
            judge.assert_promises(most_unknown=FEW_SLOTS)
            assert len(judge.lines) == ROWS

    server = Server()

    try:
        moments = (115, 130) if fast else range(rng.randrange(1, 9), MOST_REQUESTS, 8)
        cases = [(call, n) for n in moments for call in ("sendto", "recvfrom")]
        side_by_side(one, [(number, *case) for number, case in enumerate(cases)])
    finally:
        server.close()

    with tally.case("the attack"):
        assert tally.kills >= len(cases) // 2, f"only {tally.kills} of {len(cases)} were killed"

    return tally


def full(folder: Path, *, fast: bool, rng: random.Random) -> Tally:
    """Fill the disk of the server for a while: each run is recorded, or its jobRunId is printed."""
    tally = Tally("a full disk at the server")
    rows = 300
    done: Counter[str] = Counter()

    if reason := missing() or ("" if os.geteuid() == 0 else "only root may mount a small disk"):
        tally.notes.append(f"not done: {reason}")
        return tally

    for number in range(1 if fast else 2):
        with _small_server() as server:
            for again in range(1 if fast else 2):
                name = f"{number}.{again}"

                with (
                    workplace(folder / name, SCRIPT | {"seed": number}) as place,
                    tally.case(name),
                ):
                    place.manifest(rows)
                    crowd = Crowd(place, server, rng)
                    crowd.fill(server.folder / "filler", rng.randrange(1, rows // 2))
                    done.update(crowd.done)
                    crowd.conclude(tally, rows, most_unknown=LAUNCHERS * SLOTS)

    tally.notes.append(", ".join(f"{number} {end}" for end, number in sorted(done.items())))
    return tally


@contextmanager
def _small_server() -> Iterator[Server]:
    """Run a server on a disk of its own, of 128 MiB."""
    place = Path(tempfile.mkdtemp(prefix="deslaunch-disk-"))
    mount = ("mount", "-t", "tmpfs", "-o", "size=128m", "none", str(place))
    subprocess.run(mount, check=True)

    try:
        server = Server(place / "server")
        yield server
        server.close()
    finally:
        subprocess.run(("umount", "--lazy", str(place)), check=True)
        place.rmdir()


class Crowd:
    """The launchers of one batch, and who was killed, stopped or replaced of them.

    Attributes:
        done: faults by kind.
    """

    def __init__(
        self, place: Workplace, server: Server, rng: random.Random, proxy: Proxy | None = None
    ) -> None:
        self.done: Counter[str] = Counter()
        self._place = place
        self._server = server
        self._rng = rng
        self._proxy = proxy
        self._url = server.new_database()

        if proxy is not None:
            self._url = self._url.replace(f":{server.port}/", f":{proxy.port}/")

        self._ledger = f"{self._url}#night"
        self._stopped: list[subprocess.Popen[str]] = []
        self._launchers: list[subprocess.Popen[str]] = []
        place.environment.update(server.environment)

    def work(self, faults: list[str], rows: int) -> None:
        """Let launchers work, and faults happen, until all of them have ended."""
        for _ in range(LAUNCHERS):
            self._begin()

        wait_until(lambda: self._sessions() == LAUNCHERS)
        first, last = len(self._place.simulator.runs), rows * 4 // 5
        moments = sorted(self._rng.randrange(min(first, last - 1), last) for _ in faults)

        for moment, fault in zip(moments, faults, strict=True):
            if self._wait_for(moment) and self._happens(fault):
                self.done[fault] += 1

        self._go_on()

        for launcher in self._launchers:
            ending = ended(launcher)
            is_opened = ending.returncode != 7 or self._has_session(launcher)
            assert ending.returncode in ENDS or not is_opened, shown(ending)
            self.done["not opened"] += not is_opened

    def fill(self, filler: Path, moment: int) -> None:
        """Let launchers work while the server's disk becomes full, and has room again."""
        for _ in range(LAUNCHERS):
            self._begin()

        self._wait_for(moment)

        with suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(bytes(65_536))

        with suppress(subprocess.TimeoutExpired):
            self._launchers[0].wait(self._rng.uniform(0.5, 4))

        filler.unlink()
        told = ""

        for launcher in self._launchers:
            ending = ended(launcher)
            assert ending.returncode in ENDS | {7}, shown(ending)
            assert "Traceback" not in ending.stderr, shown(ending)
            self.done[f"exit {ending.returncode}"] += 1
            told += ending.stderr

        self._server.start()  # one that could not write its log has ended
        self._place.at_rest()
        judge = self._place.judge(self._ledger)
        ids = {run.job_run_id for run in self._place.simulator.runs}
        silent = {run for run in ids - set(judge.runs.values()) if run not in told}
        assert not silent, f"neither recorded nor told: {silent}"

    def conclude(self, tally: Tally, rows: int, most_unknown: int | None = None) -> None:
        """Bring the batch to its end, and judge it."""
        for _ in range(SESSIONS):
            command = ("resume", self._ledger, "--join", "--quiet", *QUICK)
            ending = self._place.run(*command)
            assert ending.returncode in ENDS | {5}, shown(ending)

            if ending.returncode != 5:
                break

        self._place.at_rest()
        judge = self._place.judge(self._ledger)
        tally.count(self._place, judge)
        kills = SLOTS * self.done["kill"]
        judge.assert_promises(most_unknown=kills if most_unknown is None else most_unknown)
        started = rows - len(judge.unknown)
        assert judge.counts.get("started") == started, f"{judge.counts} of {rows:,} rows"

    def surroundings(self) -> dict[str, str]:
        """Return the environment of the next launcher."""
        return self._place.environment | {"DES_TOKEN": TOKEN}

    def _begin(self) -> None:
        words = ("--ledger", self._ledger, "--resume", "--join", *QUICK)
        command = ("run", "night.jsonl", *words, "--concurrency", str(SLOTS))
        self._launchers.append(self._place.start(*command, env=self.surroundings()))

    def _wait_for(self, moment: int) -> bool:
        """Return True once so many runs were started, False where nobody is at work."""
        while len(self._place.simulator.runs) < moment:
            alive = self._alive()

            if not alive:
                return False

            self._place.wait_for_runs(alive[0], min(moment, len(self._place.simulator.runs) + 1))

        return bool(self._alive())

    def _alive(self) -> list[subprocess.Popen[str]]:
        return [one for one in self._launchers if one.poll() is None and one not in self._stopped]

    def _happens(self, fault: str) -> bool:
        victim = self._rng.choice(self._alive())

        if fault in {"kill", "interrupt"}:
            sign = signal.SIGKILL if fault == "kill" else signal.SIGTERM
            victim.send_signal(sign)
            ending = ended(victim)
            assert ending.returncode in {*ENDS, -9, 128 + signal.SIGTERM}, shown(ending)
            self._launchers.remove(victim)
            self._begin()
        elif fault == "terminate":
            return self._terminate(victim)
        elif fault == "cut" and self._proxy is not None:
            self._proxy.cut()
        elif fault == "stop":
            if len(self._alive()) < 2 or not self._has_session(victim):
                return False

            victim.send_signal(signal.SIGSTOP)
            self._stopped.append(victim)
            self._terminate(victim)
        else:
            self._server.restart("immediate" if fault == "immediate" else "fast")

        return True

    def _go_on(self) -> None:
        """Let those that are stopped go on once they were found dead, or nobody looks any more."""
        for victim in self._stopped:
            while self._has_session(victim, "lost_ms IS NULL") and (alive := self._alive()):
                with suppress(subprocess.TimeoutExpired):
                    alive[0].wait(0.2)

            self.done["found dead"] += not self._has_session(victim, "lost_ms IS NULL")
            victim.send_signal(signal.SIGCONT)

    def _terminate(self, victim: subprocess.Popen[str]) -> bool:
        query = (
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            " WHERE starts_with(application_name, %s)"
        )
        return self._server.sql(query, f"deslaunch {victim.pid}@") != []

    def _sessions(self) -> int:
        table = "deslaunch.sessions"

        if self._server.sql(f"SELECT to_regclass('{table}')", database=self._url) == [(None,)]:
            return 0

        [(number,)] = self._server.sql(f"SELECT count(*) FROM {table}", database=self._url)
        return int(number)

    def _has_session(self, launcher: subprocess.Popen[str], more: str = "true") -> bool:
        query = f"SELECT 1 FROM deslaunch.sessions WHERE pid = %s AND {more}"
        return self._server.sql(query, launcher.pid, database=self._url) != []
