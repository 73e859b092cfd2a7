"""The bench's own logic: what it divides, prints, draws and writes. Nothing is measured here."""

from __future__ import annotations

import json
import sys
import urllib.request
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import orjson
import pytest
from bench import made, report, server
from bench.bare import bodies
from bench.chart import bars, svg
from bench.figures import Figures
from bench.goals import GOALS, Goal
from bench.ground import JOB_ID, JOBS, BenchFailed, Ground, body, rows
from bench.process import measure
from bench.race import INSTANT, LATENCY, SLOW_DISK
from bench.rivals import Contender, curl, gnu_parallel, shards

from deslaunch.intake import Intake
from deslaunch.ledger import records_of, snapshot
from deslaunch.manifest import Manifest, ManifestOptions
from deslaunch.model import Row, RowState, StartRequest
from deslaunch.results import summary_of
from deslaunch.schema import Schemas
from deslaunch.wire import decode_jobs

NOWHERE = "http://127.0.0.1:9"
CONTENDERS = [*INSTANT, *LATENCY, *SLOW_DISK]
RATIO = Goal("what", "a", "b", 0.5)
PEAK = Goal("what", "peak", "", 80, at_most=True, unit="MB")


def figures(**values: float) -> Figures:
    made_of = Figures()

    for name, value in values.items():
        made_of.add(name, "rows/s", value)

    return made_of


def told(**values: float) -> dict[str, Any]:
    """Return what a measuring is written as."""
    return {
        "utc": "2026-01-31T01:02:03Z",
        "machine": {
            "cpus": 2,
            "cpu": "a processor",
            "python": "3.11.7",
            "aiohttp": "3.14.5",
            "uvloop": "0.23.0",
        },
        "rows": 30_000,
        "rounds": 3,
        "figures": figures(**values).as_dict(),
        "missing": {},
    }


def all_figures() -> Figures:
    """Return figures for all contenders, so that every bar is drawn."""
    return figures(**{contender.name: 1000.0 for contender in CONTENDERS})


def requests_of(manifest: Path) -> list[StartRequest]:
    """Return the starts that deslaunch makes of a manifest."""
    schemas = Schemas()
    schemas.put("default", decode_jobs(JOBS.encode(), source="bench"))
    intake = Intake(
        schemas,
        file=manifest.name,
        targets={"default"},
        allow_duplicates=False,
        allow_repeated_auto=False,
    )
    taken = [
        intake.take(item)
        for item in Manifest(manifest, ManifestOptions()).first_pass()
        if isinstance(item, Row)
    ]
    return [request for request in taken if isinstance(request, StartRequest)]


# Figures and goals.


def test_a_figure_is_the_median_of_its_rounds() -> None:
    measured = figures(a=10)
    measured.add("a", "rows/s", 90, cpu=7)
    measured.add("a", "rows/s", 20)

    assert (measured.find("a"), measured.find("b")) == (20, None)
    assert measured.as_dict()["a"] == {
        "unit": "rows/s",
        "values": [10, 90, 20],
        "cpuMicrosecondsPerRow": [7],
    }


def test_figures_can_be_read_back() -> None:
    written = json.loads(json.dumps(figures(a=10, b=20).as_dict()))

    assert Figures.read(written, {"c": "gone"}).as_dict() == written
    assert Figures.read(written, {"c": "gone"}).missing == {"c": "gone"}


@pytest.mark.parametrize(
    ("goal", "measured", "value", "met"),
    [
        pytest.param(RATIO, figures(a=1, b=2), 0.5, True, id="reached"),
        pytest.param(RATIO, figures(a=0.9, b=2), 0.45, False, id="too-low"),
        pytest.param(RATIO, figures(a=1), None, None, id="nothing-to-divide-by"),
        pytest.param(RATIO, figures(b=1), None, None, id="nothing-to-divide"),
        pytest.param(PEAK, figures(peak=80), 80, True, id="not-passed"),
        pytest.param(PEAK, figures(peak=81), 81, False, id="too-high"),
        pytest.param(PEAK, figures(), None, None, id="not-measured"),
    ],
)
def test_a_goal_judges(
    goal: Goal, measured: Figures, value: float | None, *, met: bool | None
) -> None:
    assert (goal.value(measured), goal.is_met(measured)) == (value, met)
    assert goal.as_dict(measured)["met"] is met


@pytest.mark.parametrize(
    ("goal", "measured", "cells"),
    [
        pytest.param(RATIO, figures(a=1, b=3), ("at least 0.50", "0.33", "no"), id="ratio"),
        pytest.param(RATIO, figures(a=64, b=1), ("at least 0.50", "64", "yes"), id="large"),
        pytest.param(PEAK, figures(peak=79.6), ("at most 80 MB", "79.6 MB", "yes"), id="unit"),
        pytest.param(PEAK, figures(), ("at most 80 MB", "not measured", ""), id="nothing"),
    ],
)
def test_a_goal_is_shown(goal: Goal, measured: Figures, cells: tuple[str, ...]) -> None:
    assert goal.cells(measured) == ("what", *cells)


def test_every_goal_names_what_is_measured() -> None:
    measured = {contender.name for contender in CONTENDERS}
    kinds = ("check", "replay", "peak")
    named = {name for goal in GOALS for name in (goal.over, goal.under) if name}

    assert {name for name in named - measured if not name.startswith(kinds)} == set()


# What is printed, written and drawn.


def test_the_tables_show_what_was_measured_and_what_was_not() -> None:
    measured = figures(**{"deslaunch-64": 12_345.0, "bare-64": 13_000.0})
    measured.missing["curl-64"] = "curl is not installed"
    shown = report.text(measured)

    assert "| full launch ÷ bare tuned loop, 64 slots " in shown
    assert "| 0.95 " in shown
    assert "| 12,345 " in shown
    assert "curl-64: not available: curl is not installed" in shown


def test_the_section_stands_between_its_marks() -> None:
    page = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    made_page = report.with_section(page, told(ledger=87_000))

    assert made_page.startswith(
        f"before\n{report.BEGIN}\n\nMeasured on 2026-01-31: 2 cores of a processor"
    )
    assert made_page.endswith(f"64 producers: 87,000 rows/s.\n\n{report.END}\nafter\n")
    assert report.with_section(made_page, told(ledger=87_000)) == made_page


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="no lines"):
        report.with_section("before\nafter\n", told())


def test_the_chart_is_drawn_to_scale() -> None:
    measured = figures(**{"deslaunch-64": 500, "naive-64": 1000, "bare-64": 250})
    root = ET.fromstring(svg(measured))
    rects = root.findall("{http://www.w3.org/2000/svg}rect")[1:]
    widths = [float(rect.attrib["width"]) for rect in rects]

    assert [bar.value for bar in bars(measured)] == [250, 500, 1000]
    assert widths[1] == pytest.approx(2 * widths[0], abs=0.2)
    assert widths[2] == pytest.approx(2 * widths[1], abs=0.2)
    assert [rect.attrib["class"] for rect in rects] == ["theirs", "ours", "theirs"]


def test_the_chart_stays_within_its_page() -> None:
    root = ET.fromstring(svg(all_figures()))
    width, height = (float(root.attrib[side]) for side in ("width", "height"))

    for part in root.iter():
        if "x" in part.attrib:
            right = float(part.attrib["x"]) + float(part.attrib.get("width", 0))
            bottom = float(part.attrib["y"]) + float(part.attrib.get("height", 0))
            assert right < width
            assert bottom < height

    assert "prefers-color-scheme: dark" in svg(all_figures())


# The rows, and what each contender makes of them.


def test_all_contenders_send_the_same(tmp_path: Path) -> None:
    ground = Ground(tmp_path, 5, NOWHERE)
    expected = [request.body.decode() for request in requests_of(ground.jsonl)]

    assert len(expected) == 5
    assert [request.body.decode() for request in requests_of(ground.csv)] == expected
    assert list(ground.bodies()) == expected
    assert [orjson.loads(sent) for sent in bodies(ground.jsonl)] == list(map(json.loads, expected))


def test_the_manifests_say_the_same(tmp_path: Path) -> None:
    ground = Ground(tmp_path, 5, NOWHERE)
    of_jsonl, of_csv = (requests_of(path) for path in (ground.jsonl, ground.csv))

    assert [(one.key, one.digest) for one in of_jsonl] == [(one.key, one.digest) for one in of_csv]


def test_each_row_is_another() -> None:
    assert len({body(row) for row in rows(1000)}) == 1000


@pytest.mark.parametrize("contender", CONTENDERS, ids=lambda contender: contender.name)
def test_a_contender_is_a_command(contender: Contender, tmp_path: Path) -> None:
    ground = Ground(tmp_path, 3, NOWHERE)

    for command in contender.commands(ground):
        assert all(isinstance(word, str) for word in command)
        assert any(word.startswith(NOWHERE) or word.endswith(".conf") for word in command)

    assert contender.rows(ground) == 3


def test_curl_reads_one_transfer_a_row(tmp_path: Path) -> None:
    ((*_, path),) = curl(64).commands(Ground(tmp_path, 3, NOWHERE))
    transfers = Path(path).read_text().split("next\n")

    assert [transfer.count("url = ") for transfer in transfers] == [1, 1, 1]
    assert transfers[0].startswith(f'url = "{NOWHERE}/api/v1/startjob"\n')
    assert f'data = "{{\\"jobId\\":\\"{JOB_ID}\\",' in transfers[0]


def test_gnu_parallel_gets_fewer_rows(tmp_path: Path) -> None:
    contender, ground = gnu_parallel(64), Ground(tmp_path, 30_000, NOWHERE)
    contender.commands(ground)

    assert contender.rows(ground) == 1000
    assert len((tmp_path / "bodies.txt").read_text().splitlines()) == 1000


def test_each_shard_has_a_ledger_of_its_own(tmp_path: Path) -> None:
    commands = shards(256).commands(Ground(tmp_path, 3, NOWHERE))
    ledgers = {command[command.index("--ledger") + 1] for command in commands}

    assert [command[-2:] for command in commands] == [("--shard", "1/2"), ("--shard", "2/2")]
    assert len(ledgers) == 2


def test_the_made_ledger_is_one_that_deslaunch_could_have_written(tmp_path: Path) -> None:
    ground = Ground(tmp_path, 200, NOWHERE)
    ledger = ground.new_ledger()
    made.main(str(ground.jsonl), str(ledger), NOWHERE, "200", "150")
    summary = summary_of(snapshot(ledger)).as_dict()
    sendings = [record for record in records_of(ledger) if record["record"] == "sending"]
    expected = requests_of(ground.jsonl)[:150]

    assert (summary["rows"], summary[RowState.STARTED], summary[RowState.PENDING]) == (200, 150, 50)
    assert [(one["key"], one["digest"]) for one in sendings] == [
        (one.key, one.digest) for one in expected
    ]
    assert [orjson.dumps(one["body"]) for one in sendings] == [one.body for one in expected]


# Processes and the server.


def test_processes_run_side_by_side() -> None:
    used = measure([(sys.executable, "-c", "b'x' * 50_000_000")] * 2, {})

    assert used.seconds > 0
    assert used.cpu > 0
    assert used.peak > 50_000_000


def test_a_process_that_fails_is_told_with_its_words() -> None:
    script = "import sys; sys.exit('no such row')"

    with pytest.raises(BenchFailed, match="ended with 1: no such row"):
        measure([(sys.executable, "-c", script)], {})


def test_the_configuration_holds_what_the_bench_rests_on() -> None:
    text = server.config(4711, (Path("/modules/lua.so"),))

    assert "load_module /modules/lua.so;" in text
    assert "listen 127.0.0.1:4711 " in text
    assert "worker_processes 1;" in text
    assert "access_log off;" in text
    assert "start_job(0.02)" in text
    assert f"return 200 '{JOBS}'" in text


@pytest.mark.skipif(server.missing() != "", reason=server.missing())
def test_the_server_counts_starts_and_names_each_run(tmp_path: Path) -> None:
    with server.serving(tmp_path / "server") as service:
        runs = [
            json.loads(post(f"{url}/api/v1/startjob", body(row)))
            for url in (service.url, service.slow_url)
            for row in rows(3)
        ]
        jobs = post(f"{service.url}/api/v1/queryjobs", "{}")
        count = service.starts()

    assert count == 6
    assert len({run["jobRunId"] for run in runs}) == 6
    assert {run["jobId"] for run in runs} == {JOB_ID}
    assert jobs == JOBS


def post(url: str, said: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    with opener.open(url, said.encode(), timeout=10) as answer:
        text: str = answer.read().decode()
        return text
