from __future__ import annotations

import csv
import io
import json
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
from stage import Place, counts, service

from deslaunch import launcher
from deslaunch.model import Job, JobParameter
from deslaunch.simulator import DEFAULT_JOBS
from deslaunch.template import explanation, manifest_of
from deslaunch.wire import decode_jobs, encode_jobs

if TYPE_CHECKING:
    from pathlib import Path

    from deslaunch.model import Format

JOB = "11111111-1111-4111-8111-111111111111"
TYPES = (None, 1, 2, 3, 4, 99)
NAMES = ("key", "target", "jobId", "parameters.x", "deslaunch.x", 'a "b", c', "\\N", "ü", "null")


def a_job(*parameters: JobParameter) -> Job:
    return Job(JOB, "Nightly", parameters)


async def report_of(folder: Path, job: Job, form: Format, target: str = "default") -> Any:
    manifest, schema = folder / f"made.{form}", folder / "jobs.json"
    manifest.write_text(manifest_of(job, form, target), encoding="utf-8")
    schema.write_text(json.dumps({"jobs": encode_jobs([job])}))
    return await launcher.check(manifest, schema=schema, target=target, cache=folder)


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize("number", TYPES)
async def test_what_is_written_passes_the_check(
    tmp_path: Path, form: Format, number: int | None
) -> None:
    traits = product([False, True], repeat=3)
    job = a_job(
        *(
            JobParameter(f"p{n}", number, required, nullable, auto)
            for n, (required, nullable, auto) in enumerate(traits)
        )
    )

    report = await report_of(tmp_path, job, form)

    assert (report.rows, report.valid, report.problems) == (1, 1, ())


@pytest.mark.parametrize("form", ["csv", "jsonl"])
async def test_a_parameter_may_be_called_anything(tmp_path: Path, form: Format) -> None:
    job = a_job(*(JobParameter(name, 1, required=True) for name in NAMES))

    report = await report_of(tmp_path, job, form)

    assert (report.valid, report.problems) == (1, ())


@pytest.mark.parametrize("form", ["csv", "jsonl"])
async def test_a_job_without_parameters_has_a_row_too(tmp_path: Path, form: Format) -> None:
    report = await report_of(tmp_path, a_job(), form)

    assert (report.rows, report.valid) == (1, 1)


@pytest.mark.parametrize("form", ["csv", "jsonl"])
async def test_a_target_is_named_in_the_row(tmp_path: Path, form: Format) -> None:
    assert "acme" in manifest_of(a_job(), form, "acme")
    assert (await report_of(tmp_path, a_job(), form, "acme")).valid == 1


def test_what_is_required_has_a_value() -> None:
    job = a_job(
        JobParameter("from", 2, required=True),
        JobParameter("to", 2),
        JobParameter("price", 3, required=True),
        JobParameter("key", 4, required=True),
        JobParameter("day", 4),
    )

    rows = list(csv.reader(io.StringIO(manifest_of(job, "csv"))))

    assert rows == [
        ["key", "jobId", "from", "to", "price", "parameters.key", "day"],
        ["example-1", JOB, "1", "", "1.50", "2026-01-31T00:00:00Z", ""],
    ]
    assert manifest_of(job, "jsonl") == (
        f'{{"key":"example-1","jobId":"{JOB}","parameters":{{"from":1,"price":1.50,'
        '"key":"2026-01-31T00:00:00Z"}}\n'
    )


@pytest.mark.parametrize(
    ("form", "lines"),
    [
        pytest.param(
            "csv",
            [
                (
                    r"  from: a whole number, or \N for null, or \A for what follows from the "
                    "job's earlier runs; required (the first)"
                ),
                "  parameters.key: a text; left out: the job's default is used",
                "  odd: a text that DES reads as its type 99; required",
            ],
            id="csv",
        ),
        pytest.param(
            "jsonl",
            [
                (
                    '  from: a whole number, or null, or {"auto": true} for what follows from '
                    "the job's earlier runs; required (the first)"
                ),
                "  key: a text; left out: the job's default is used",
                "  odd: a text that DES reads as its type 99; required",
            ],
            id="jsonl",
        ),
    ],
)
def test_what_has_no_place_in_a_manifest_is_explained(form: Format, lines: list[str]) -> None:
    job = a_job(
        JobParameter("from", 2, True, True, True, "the first"),
        JobParameter("key", None),
        JobParameter("odd", 99, required=True),
    )

    said = list(explanation(job, form))

    assert said[0] == f"job {JOB}, Nightly: one row starts one run"
    assert said[2:] == lines
    assert list(explanation(a_job(), form))[-1] == "  this job takes no parameters"


def test_several_that_are_left_out_may_exclude_each_other() -> None:
    told = "  some may exclude each other, as a range and a date do: DES then refuses the row"

    assert list(explanation(a_job(JobParameter("a", 2), JobParameter("b", 4)), "csv"))[-1] == told
    assert told not in list(explanation(a_job(JobParameter("a", 2)), "csv"))


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize("said", DEFAULT_JOBS["jobs"], ids=lambda said: said["template"])
async def test_the_service_takes_the_example_row(
    place: Place, said: dict[str, Any], form: Format
) -> None:
    """Its rules are not declared: a range or a date, never both."""
    (job,) = decode_jobs(json.dumps({"jobs": [said]}).encode(), source="the simulator")
    manifest = place.folder / f"made.{form}"
    manifest.write_text(manifest_of(job, form))

    async with service(place) as (simulator, des):
        summary = await launcher.launch(manifest, des, cache=place.cache)

    assert (counts(summary), len(simulator.runs)) == ({"started": 1}, 1)
