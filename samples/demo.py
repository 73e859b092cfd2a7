"""Launch 2,000 rows on a local DES that fails on purpose, kill the launch, resume, and prove it.

Runs the installed ``deslaunch`` command, the one beside this Python, in a temporary folder.
Nothing leaves this machine. Ends with 0 if every step ended as expected and the proof holds,
else with 1. Takes about ten seconds.

    python samples/demo.py
"""

from __future__ import annotations

import csv
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

SAMPLES = Path(__file__).absolute().parent
DESLAUNCH = Path(sys.executable).with_name("deslaunch")
LIMIT = 60.0
"""Seconds that one command may take."""

KILL_AFTER = 1000
"""Runs in the DES's log when the launch is killed."""

SHOWN_RESULTS = 4
SHOWN_KEYS = 5

Start = tuple[str, tuple[tuple[str, str | None], ...]]
"""What tells one row's run from another's: jobId, and each parameter's name with its text."""


class DemoFailed(Exception):
    """A step did not end as expected, or the proof does not hold."""


class Run(NamedTuple):
    """One run in the DES's log."""

    job_run_id: str
    start: Start


class Proof(NamedTuple):
    """What the DES's log says of the rows of the manifest.

    Attributes:
        runs: runs in the log.
        distinct: rows of the manifest that have a run.
        twice: keys of rows with more than one run.
        missing: keys of rows without a run.
        foreign: jobRunIds of runs that no row asked for.
        wrong: keys of rows whose result names another jobRunId than the log.
    """

    runs: int
    distinct: int
    twice: list[str]
    missing: list[str]
    foreign: list[str]
    wrong: list[str]

    @property
    def holds(self) -> bool:
        """Every row has exactly one run, and its result names that run."""
        return not (self.twice or self.missing or self.foreign or self.wrong)


def prove(rows: Mapping[str, Start], runs: Iterable[Run], results: Mapping[str, str]) -> Proof:
    """Hold the manifest and the results against the DES's log.

    Args:
        rows: key to start, of the manifest; no two starts are the same.
        runs: the log.
        results: key to jobRunId, of ``deslaunch results``.
    """
    runs = list(runs)
    keys = {start: key for key, start in rows.items()}
    counts = Counter(keys[run.start] for run in runs if run.start in keys)
    logged = {keys[run.start]: run.job_run_id for run in runs if run.start in keys}
    return Proof(
        runs=len(runs),
        distinct=len(counts),
        twice=[key for key, count in counts.items() if count > 1],
        missing=[key for key in rows if key not in counts],
        foreign=[run.job_run_id for run in runs if run.start not in keys],
        wrong=[key for key in {**rows, **results} if results.get(key) != logged.get(key)],
    )


def read_rows(manifest: Path) -> dict[str, Start]:
    r"""Read a CSV manifest: key to start. An empty cell is left out, ``\N`` is null."""
    rows = {}

    for cells in _read_csv(manifest):
        key, job_id = cells.pop("key"), cells.pop("jobId")
        given = {name: None if cell == r"\N" else cell for name, cell in cells.items() if cell}
        rows[key] = (job_id, tuple(sorted(given.items())))

    return rows


def read_log(log: Path) -> list[Run]:
    """Read the DES's log, one run a line."""
    runs = []

    for line in log.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        texts = {
            name: None if value is None else value["valueStringEncoded"]
            for name, value in record["parameters"].items()
        }
        runs.append(Run(record["jobRunId"], (record["jobId"], tuple(sorted(texts.items())))))

    return runs


def read_results(results: Path) -> dict[str, str]:
    """Read the results as CSV: key to jobRunId."""
    return {row["key"]: row["jobRunId"] for row in _read_csv(results)}


def fill_in(findings: Path, rows: Mapping[str, Start], runs: Iterable[Run]) -> tuple[int, int]:
    """Do what a person does: look each unknown row up in DES, and note what is found.

    Returns:
        How many rows had started a run, and how many had not.
    """
    made = {run.start: run.job_run_id for run in runs}
    lines = _read_csv(findings)

    for line in lines:
        line["jobRunId"] = made.get(rows[line["key"]], "")
        line["as"] = "started" if line["jobRunId"] else "not-started"

    with findings.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(lines[0]) if lines else ["key"])
        writer.writeheader()
        writer.writerows(lines)

    started = sum(line["as"] == "started" for line in lines)
    return started, len(lines) - started


def _read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


class Terminal:
    """Runs deslaunch in one folder as a person would, and shows what a person would see."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # What this machine is set up for must not reach the demo, and the demo not a real DES.
        self._environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("DES_", "DESLAUNCH_"))
        }
        self._environment["DESLAUNCH_CACHE_DIR"] = str(folder / "cache")
        self._environment["DESLAUNCH_STATE_DIR"] = str(folder / "state")

    def export(self, **variables: str) -> None:
        """Set environment variables for what follows."""
        self._environment |= variables
        words = (f"{name}={shlex.quote(value)}" for name, value in variables.items())
        print(f"$ export {' '.join(words)}", flush=True)

    def run(self, *arguments: str, expect: int) -> None:
        """Run deslaunch to its end, and show its command line and its output.

        Raises:
            DemoFailed: the exit code is another than the expected one.
        """
        with self._start(arguments, stderr=subprocess.STDOUT) as process:
            output, _ = process.communicate(timeout=LIMIT)

        print(f"{output}(exit code {process.returncode})", flush=True)

        if process.returncode != expect:
            raise DemoFailed(
                f"'deslaunch {arguments[0]}' ended with exit code {process.returncode}, "
                f"and {expect} was expected"
            )

    def kill(self, *arguments: str, log: Path, runs: int) -> None:
        """Run deslaunch, and kill it once there are so many runs in the DES's log.

        Raises:
            DemoFailed: it ended before that.
        """
        with self._start(arguments, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and log.read_bytes().count(b"\n") < runs:
                time.sleep(0.01)

            process.kill()
            process.communicate(timeout=LIMIT)

        if process.returncode != -signal.SIGKILL:
            raise DemoFailed(f"the launch ended by itself, with exit code {process.returncode}")

        print("Killed\n(exit code 137: SIGKILL, which no program can catch)", flush=True)

    @contextmanager
    def running(self, *arguments: str) -> Iterator[str]:
        """Run deslaunch beside the block; yield its first line, and end it after the block."""
        with self._start(arguments) as process:
            try:
                assert process.stdout is not None
                line = process.stdout.readline().strip()

                if not line:
                    raise DemoFailed(f"'deslaunch {arguments[0]}' did not start")

                print(line, flush=True)
                yield line
            finally:
                process.terminate()
                process.communicate(timeout=LIMIT)

    @contextmanager
    def _start(
        self, arguments: tuple[str, ...], stderr: int | None = None
    ) -> Iterator[subprocess.Popen[str]]:
        print(f"$ {shlex.join(['deslaunch', *arguments])}", flush=True)
        process = subprocess.Popen(
            [DESLAUNCH, *arguments],
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            encoding="utf-8",
        )

        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()


def say(sentence: str) -> None:
    """Tell what is about to be shown, and why."""
    print(f"\n# {sentence}", flush=True)


def demonstrate(folder: Path) -> None:
    """Show one batch from its check to its proof.

    Raises:
        DemoFailed: see there.
    """
    terminal, log = Terminal(folder), folder / "log.jsonl"

    for name in ("night.csv", "faults.json", "jobs.json"):
        shutil.copyfile(SAMPLES / name, folder / name)

    say("A local DES stands in for the real one. It gives 503 or 500 to 7 % of all starts.")
    simulate = ("simulate", "--jobs", "jobs.json", "--faults", "faults.json", "--log", log.name)

    with terminal.running(*simulate) as base_url:
        terminal.export(DES_BASE_URL=base_url, DES_TOKEN="simulated")  # noqa: S106
        launch(terminal, folder, log)

    say("The proof, from the log of the DES itself, not from what deslaunch says of itself:")
    rows, results = read_rows(folder / "night.csv"), read_results(folder / "results.csv")
    proof = prove(rows, read_log(log), results)
    show(proof)

    if not proof.holds:
        raise DemoFailed("the proof does not hold: see the lines that begin with 'NOT'")


def launch(terminal: Terminal, folder: Path, log: Path) -> None:
    """Check, run, be killed, find out what became of the rows in flight, resume, write results."""
    findings, results = folder / "findings.csv", folder / "results.csv"

    say("All 2,000 rows are checked against what the jobs declare; nothing is started yet.")
    terminal.run("check", "night.csv", expect=0)

    say(f"The rows are launched, and the launch is killed after about {KILL_AFTER:,} runs.")
    options = ("--concurrency", "64", "--max-wait", "1", "--max-attempts", "8", "--yes")
    terminal.kill("run", "night.csv", *options, log=log, runs=KILL_AFTER)

    say("The ledger beside the manifest knows how every row stands. What was in flight is unknown:")
    print("# it may have started a run, so deslaunch does not send it again by itself.")
    terminal.run("status", "night.ledger.db", "--unknown", "-o", findings.name, expect=0)

    say("A person looks the unknown rows up in DES, and writes down what is there.")
    started, missed = fill_in(findings, read_rows(folder / "night.csv"), read_log(log))
    print(f"({started} of them had started a run, {missed} had not: now noted in {findings.name})")
    terminal.run("resolve", "night.ledger.db", "--from", findings.name, "--early", expect=0)

    say("The batch goes on where it was cut short, and sends only what is left.")
    terminal.run("resume", "night.ledger.db", "--yes", expect=0)
    print(
        "(A possible duplicate is a row whose first response was a 503 or 500 and that was sent\n"
        "again: a 5XX does not promise that nothing was started. The proof below will tell.)"
    )

    say(f"The results name the run of every row; here are the first {SHOWN_RESULTS}.")
    terminal.run("results", "night.ledger.db", "-o", results.name, expect=0)
    print(f"$ head -n {SHOWN_RESULTS + 1} {results.name}")
    print("\n".join(results.read_text(encoding="utf-8").splitlines()[: SHOWN_RESULTS + 1]))


def show(proof: Proof) -> None:
    """Print a proof, a line for each claim."""
    print(f"    {proof.runs:,} runs are in the log")
    print(f"    {proof.distinct:,} different rows of night.csv have a run")
    _claim("rows started twice", proof.twice)
    _claim("rows missing", proof.missing)
    _claim("runs that no row asked for", proof.foreign)
    _claim("rows whose jobRunId in the results is not the one in the log", proof.wrong)


def _claim(what: str, keys: list[str]) -> None:
    examples = f", such as {', '.join(keys[:SHOWN_KEYS])}" if keys else ""
    print(f"{'NOT ' if keys else '    '}{len(keys):,} {what}{examples}")


def main() -> int:
    """Run the demo, and return its exit code."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # ends the simulator

    if not DESLAUNCH.exists():
        print(f"there is no {DESLAUNCH}: install deslaunch for this Python", file=sys.stderr)
        return 1

    began = time.monotonic()

    try:
        with tempfile.TemporaryDirectory(prefix="deslaunch-demo-") as folder:
            demonstrate(Path(folder))
    except (DemoFailed, subprocess.TimeoutExpired) as exc:
        print(f"\nThe demo FAILED: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT

    print(
        f"\nThe demo ended well after {time.monotonic() - began:.0f} s: every row was started "
        "exactly once."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
