"""The samples: made as they say, wrong where they say, and run as a reader would run them."""

from __future__ import annotations

import ast
import http.server
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import pytest
from judge import read_log
from stage import DESLAUNCH, TOKEN

import deslaunch
from deslaunch.manifest.files import Manifest
from deslaunch.manifest.rows import row_digest
from deslaunch.model import Row
from deslaunch.simulator import DEFAULT_JOBS

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from postgres import Server
    from stage import Workplace

PAGE: Final = (Path(deslaunch.__file__).parent / "help/postgres.md").read_text("utf-8")
SAMPLES: Final = Path(__file__).parent.parent / "samples"
ROWS: Final = 2000


def load(name: str) -> ModuleType:
    """Import a sample as a module."""
    spec = importlib.util.spec_from_file_location(name, SAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["night.csv", "night.jsonl"])
def test_the_night_is_what_its_script_makes(name: str, tmp_path: Path) -> None:
    load("make_night").main(tmp_path)

    assert (SAMPLES / name).read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize("name", ["night.csv", "night.jsonl"])
def test_the_night_is_valid(name: str, place: Workplace) -> None:
    report = place.json("check", str(SAMPLES / name))

    assert (report["valid"], report["problems"], report["warnings"]) == (ROWS, [], [])


def test_both_forms_of_the_night_say_the_same_and_no_two_rows_do() -> None:
    csv_rows, jsonl_rows = rows_of("night.csv"), rows_of("night.jsonl")

    assert csv_rows == jsonl_rows
    assert len(csv_rows) == len(set(csv_rows.values())) == ROWS  # the demo's proof rests on it


def rows_of(name: str) -> dict[str, str]:
    """Return the digest of what each row says, by its key."""
    rows = [row for chunk in Manifest(SAMPLES / name).chunks() for row in chunk]
    return {str(row.key): row_digest(row) for row in rows if isinstance(row, Row)}


def test_the_jobs_of_the_samples_are_the_simulators_own() -> None:
    assert json.loads((SAMPLES / "jobs.json").read_text()) == DEFAULT_JOBS


# Each line of the bad manifests names its own fault in its note or key; these are their columns.

BAD_CSV: Final = [
    *[(3, "jobId"), (4, "jobId"), (5, "jobId"), (6, "target"), (7, "DBGenFrom")],
    *[(8, "DBGenFrm"), (9, "DBGenFrom"), (10, "DBGenTo"), (11, "DBGenFrom"), (12, "DBGenTo")],
    *[(13, "DBGenFrom"), (14, "DBGenFrom"), (15, "TradingDate"), (16, "TradingDate")],
    *[(17, "TradingDate"), (18, "DBGenFrom"), (19, "DBGenFrom")],
    *[(20, "DBGenFrom"), (20, "DBGenTo"), (21, "key"), (22, "key"), (23, "key"), (24, "key")],
    *[(26, ""), (28, ""), (29, ""), (30, ""), (31, "")],
]
BAD_JSONL: Final = [
    *[(2, "jobId"), (3, "jobId"), (4, "jobId"), (5, "target"), (6, "DBGenFrom"), (7, "DBGenT")],
    *[(8, "DBGenFrom"), (9, "DBGenTo"), (10, "DBGenFrom"), (11, "DBGenFrom"), (12, "DBGenFrom")],
    *[(13, "DBGenFrom"), (14, "DBGenFrom"), (15, "TradingDate"), (16, "TradingDate")],
    *[(17, "TradingDate"), *((line, "DBGenFrom") for line in range(18, 26))],
    *[(26, "parameters"), (27, "DBGenFrom"), (27, "DBGenTo"), (28, "key"), (29, "key")],
    *[(30, "key"), (32, ""), (34, ""), (35, "jobID"), (35, "jobId"), (36, ""), (37, "")],
]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param("bad.csv", BAD_CSV, id="csv"),
        pytest.param("bad.jsonl", BAD_JSONL, id="jsonl"),
    ],
)
def test_check_names_every_problem_by_file_line_and_column(
    name: str, expected: list[tuple[int, str]], place: Workplace
) -> None:
    path = SAMPLES / name
    report = place.json("check", str(path))
    problems: list[dict[str, Any]] = report["problems"]

    assert report["exitCode"] == 2
    assert {problem["file"] for problem in problems} == {str(path)}
    assert [(problem["line"], problem["column"]) for problem in problems] == expected
    assert read_log(place.log) == []


def test_the_library_sample_starts_every_row_once_however_often_it_runs(
    place: Workplace,
) -> None:
    said = [
        subprocess.run(
            [sys.executable, SAMPLES / "library.py"],
            cwd=place.folder,
            env=place.environment | {"DES_TOKEN": TOKEN},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        for _ in range(2)
    ]
    assert [done.returncode for done in said] == [0, 0], said[0].stderr + said[1].stderr
    lines = said[0].stdout.splitlines()
    logged = {run["jobRunId"] for run in read_log(place.log)}

    assert lines[0] == f"night: {ROWS} of {ROWS} started"
    assert sorted(line.split()[0] for line in lines[1:]) == [f"day-{day}:" for day in range(1, 8)]
    assert {line.split()[-1] for line in lines[1:]} < logged
    assert len(read_log(place.log)) == len(logged) == ROWS + 7
    assert said[1].stdout.splitlines()[0] == lines[0]


@pytest.mark.slow
def test_the_demo_runs_anywhere_and_proves_what_it_says(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, SAMPLES / "demo.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout
    assert "(exit code 137: SIGKILL" in ended.stdout
    assert "unknown rows: findings.csv" in ended.stdout
    assert "    2,000 runs are in the log\n" in ended.stdout
    assert "    0 rows started twice\n" in ended.stdout
    assert "    0 rows missing\n" in ended.stdout
    assert [path for path in tmp_path.iterdir() if path.name != ".user"] == []


@pytest.mark.slow
def test_three_launchers_of_one_batch_survive_a_kill(postgres: Server) -> None:
    # The server of the sample is another user's, who can't look into pytest's folders.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        ended = subprocess.run(
            [SAMPLES / "postgres.sh"],
            env={
                **os.environ,
                "PATH": f"{Path(DESLAUNCH).parent}{os.pathsep}{os.environ['PATH']}",
                "TMPDIR": folder,
            },
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

        assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout
        assert ended.stdout.count("\nat work: process ") == 3
        assert "    0 rows started twice\n" in ended.stdout
        assert "    0 results name a run that the log does not have\n" in ended.stdout
        assert list(Path(folder).iterdir()) == []


def test_the_mapped_tasks_run_the_command_that_the_page_shows() -> None:
    dag = ast.parse((SAMPLES / "airflow_dag.py").read_text("utf-8"))
    [command] = [
        ast.literal_eval(node.value)
        for node in dag.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "COMMAND"
    ]

    assert command.replace("/srv/exports/{{ ds }}", "night").replace("-{{ ds }}", "") in PAGE


# How a machine starts deslaunch every night.


def command_of_cron() -> str:
    """Return the crontab's command as cron hands it to the shell."""
    *_, line = (SAMPLES / "crontab").read_text("utf-8").splitlines()
    command = line.split(maxsplit=5)[5]
    assert re.search(r"(?<!\\)%", command) is None, "cron takes % for a line break"
    return command.replace(r"\%", "%").replace("/srv/exports", ".")


def unit(name: str) -> dict[str, list[str]]:
    """Return the settings of a unit for systemd."""
    text = (SAMPLES / "systemd" / name).read_text("utf-8").replace("\\\n", " ")
    found: dict[str, list[str]] = {}

    for key, value in re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE):
        found.setdefault(key, []).append(value)

    return found


def command_of_systemd() -> str:
    [command] = unit("deslaunch.service")["ExecStart"]
    _shell, _option, script = shlex.split(command.replace("%%", "%"))
    return f". ./des.env; {script.replace('/opt/deslaunch', '.venv')}"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the samples are for Linux")
@pytest.mark.parametrize(
    ("command_of", "night"),
    [
        pytest.param(command_of_cron, "now", id="crontab"),
        pytest.param(command_of_systemd, "12 hours ago", id="systemd"),
    ],
)
def test_what_is_run_every_night_starts_each_row_once(
    command_of: Callable[[], str], night: str, place: Workplace
) -> None:
    date = subprocess.check_output(["date", "-d", night, "+%F"], text=True, timeout=10).strip()
    rows = (SAMPLES / "night.csv").read_text("utf-8").splitlines(keepends=True)[:4]
    (place.folder / f"{date}.csv").write_text("".join(rows))
    (place.folder / ".venv/bin").mkdir(parents=True)
    (place.folder / ".venv/bin/deslaunch").symlink_to(DESLAUNCH)
    variables = {n: v for n, v in place.environment.items() if n.startswith(("DES", "XDG"))}
    lines = [f"export {name}='{value}'\n" for name, value in variables.items()]
    (place.folder / "des.env").write_text(f"{''.join(lines)}export DES_TOKEN='{TOKEN}'\n")

    done = [
        subprocess.run(
            ["/bin/sh", "-c", command_of()],
            cwd=place.folder,
            env={"HOME": str(place.folder), "PATH": os.defpath},  # cron's
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        for _ in range(2)
    ]
    assert [each.returncode for each in done] == [0, 0], done
    assert "nothing to start" in done[1].stderr
    assert len(read_log(place.log)) == 3


def test_systemd_tries_again_what_may_pass_and_lets_a_launch_drain() -> None:
    [command], [codes], [stop] = (
        unit("deslaunch.service")[name]
        for name in ("ExecStart", "RestartPreventExitStatus", "TimeoutStopSec")
    )
    drain = re.search(r"--drain-timeout (\d+)", command)

    assert set(map(int, codes.split())) == {1, 2, 3, 4, 6, 8}
    assert drain is not None
    assert int(stop) > int(drain[1])


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd")
def test_systemd_takes_its_units() -> None:
    units = [str(SAMPLES / "systemd" / f"deslaunch.{kind}") for kind in ("service", "timer")]
    said = subprocess.run(
        ["systemd-analyze", "verify", *units],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (said.returncode, "deslaunch" in said.stderr) == (0, False), said.stderr


def test_the_image_has_what_a_container_needs() -> None:
    text = (SAMPLES / "Dockerfile").read_text("utf-8")
    steps = re.findall(r"^([A-Z]+) (.*)$", text, re.MULTILINE)
    [user], [entry] = (
        [rest for word, rest in steps if word == name] for name in ("USER", "ENTRYPOINT")
    )
    bases = {rest.split()[0] for word, rest in steps if word == "FROM"}
    copied = [rest.split()[:-1] for word, rest in steps if word == "COPY" and "--from" not in rest]

    assert user == "65532:65532"
    assert json.loads(entry) == ["deslaunch"]  # no shell in between, which would keep signals
    assert bases == {"python:3.12-slim"}
    assert all((SAMPLES.parent / name).exists() for names in copied for name in names)


# The demo's proof must be able to fail.


def start(number: int) -> tuple[str, tuple[tuple[str, str | None], ...]]:
    return "job", (("DBGenFrom", str(number)),)


ONCE: Final = [("run-1", start(1)), ("run-2", start(2))]


@pytest.mark.parametrize(
    ("runs", "results", "found"),
    [
        pytest.param(ONCE, {"a": "run-1", "b": "run-2"}, (2, 2, [], [], [], []), id="holds"),
        pytest.param(
            [*ONCE, ("run-3", start(2))],
            {"a": "run-1", "b": "run-3"},
            (3, 2, ["b"], [], [], []),
            id="twice",
        ),
        pytest.param(ONCE[:1], {"a": "run-1", "b": ""}, (1, 1, [], ["b"], [], ["b"]), id="missing"),
        pytest.param(
            [*ONCE, ("run-3", start(3))],
            {"a": "run-1", "b": "run-2"},
            (3, 2, [], [], ["run-3"], []),
            id="foreign",
        ),
        pytest.param(
            ONCE, {"a": "run-2", "b": "run-1"}, (2, 2, [], [], [], ["a", "b"]), id="swapped"
        ),
        pytest.param(ONCE, {"a": "run-1"}, (2, 2, [], [], [], ["b"]), id="no-result"),
    ],
)
def test_the_proof_sees_what_is_wrong(
    runs: list[tuple[str, Any]],
    results: dict[str, str],
    found: tuple[int, int, list[str], list[str], list[str], list[str]],
) -> None:
    demo = load("demo")
    rows = {"a": start(1), "b": start(2)}
    proof = demo.prove(rows, [demo.Run(*run) for run in runs], results)

    assert (proof, proof.holds) == (found, found[2:] == ([], [], [], []))


def test_the_demo_fails_where_a_step_ends_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo = load("demo")

    with pytest.raises(demo.DemoFailed, match="exit code 7, and 0 was expected"):
        demo.Terminal(tmp_path).run("status", "none.ledger.db", expect=0)

    assert "$ deslaunch status none.ledger.db\n" in capsys.readouterr().out


def test_the_demo_finds_the_command_that_these_tests_run() -> None:
    assert str(load("demo").DESLAUNCH) == DESLAUNCH


def test_a_person_finds_in_des_what_there_is(tmp_path: Path) -> None:
    demo = load("demo")
    findings = tmp_path / "findings.csv"
    findings.write_text("key,as,jobRunId,note\na,,,\nb,,,\n")
    found = demo.fill_in(findings, {"a": start(1), "b": start(2)}, [demo.Run(*ONCE[0])])

    assert found == (1, 1)
    assert findings.read_text().split() == [
        *("key,as,jobRunId,note", "a,started,run-1,", "b,not-started,,")
    ]


class Hook(http.server.BaseHTTPRequestHandler):
    """A webhook that keeps what is posted to it."""

    posted: ClassVar[list[Any]] = []

    def do_POST(self) -> None:
        self.posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_a_webhook_is_told_how_a_launch_ended(place: Workplace) -> None:
    server = http.server.HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    place.environment["WEBHOOK_URL"] = f"http://127.0.0.1:{server.server_port}/"
    place.manifest(3)
    hook = str(SAMPLES / "on_end_webhook.sh")

    place.run("run", "night.jsonl", "--yes", "--on-end", hook)
    place.run("run", "night.jsonl", "--yes", "--ledger", r'a "\b".db', "--on-end", hook)
    place.run("run", "none.jsonl", "--yes", "--on-end", hook)
    server.shutdown()
    server.server_close()

    assert [posted["text"] for posted in Hook.posted] == [
        "deslaunch: exit code 0, 3 of 3 rows started, 0 unknown (night.ledger.db)",
        r'deslaunch: exit code 0, 3 of 3 rows started, 0 unknown (a "\b".db)',
        "deslaunch: exit code 2",
    ]


def test_prometheus_is_told_how_a_launch_ended(place: Workplace) -> None:
    place.manifest(3)
    sample = f"{sys.executable} {SAMPLES / 'on_end_prometheus.py'} night.prom"
    place.run("run", "night.jsonl", "--limit", "2", "--yes", "--on-end", sample)

    lines = (place.folder / "night.prom").read_text().splitlines()
    assert lines[0] == "deslaunch_exit_code 5"
    assert lines[1].startswith("deslaunch_ended_seconds 1")
    assert 'deslaunch_rows{state="started"} 2' in lines
    assert 'deslaunch_rows{state="pending"} 1' in lines
