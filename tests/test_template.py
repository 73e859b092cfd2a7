"""A template is a manifest that the check accepts as it is."""

from __future__ import annotations

import csv
import io
from itertools import product
from typing import TYPE_CHECKING

import pytest
from manifests import check_manifest

from deslaunch.des.wire import decode_jobs
from deslaunch.manifest.schema import explanation, manifest_of
from deslaunch.model import CheckedRow, Job, JobParameter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deslaunch.model import Format, ParameterValue

JOB = "11111111-1111-4111-8111-111111111111"
TYPES = (None, 1, 2, 3, 4, 99)
NAMES = ("key", "target", "jobId", "parameters.x", "deslaunch.x", 'a "b", c', "\\N", "ü", "null")


def a_job(*parameters: JobParameter) -> Job:
    return Job(JOB, "Nightly", parameters)


def only_checked(job: Job, form: Format) -> CheckedRow:
    (taken,), _ = check_manifest(form, manifest_of(job, form), jobs=[job])
    assert isinstance(taken, CheckedRow), taken
    return taken


def said_in(checked: CheckedRow) -> Mapping[str, ParameterValue]:
    return checked.row.parameters


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize("number", TYPES)
def test_what_is_written_passes_the_check(form: Format, number: int | None) -> None:
    traits = product([False, True], repeat=3)
    parameters = [JobParameter(f"p{n}", number, a, b, c) for n, (a, b, c) in enumerate(traits)]

    assert len(said_in(only_checked(a_job(*parameters), form))) == 4


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_parameter_may_be_called_anything(form: Format) -> None:
    job = a_job(*(JobParameter(name, 1, required=True) for name in NAMES))

    assert tuple(said_in(only_checked(job, form))) == NAMES


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_job_without_parameters_has_a_row_too(form: Format) -> None:
    assert only_checked(a_job(), form).key == "example-1"


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_target_is_named_in_the_row(form: Format) -> None:
    (taken,), _ = check_manifest(form, manifest_of(a_job(), form, "acme"))

    assert taken.target == "acme" if not isinstance(taken, CheckedRow) else False


def test_what_is_required_has_a_value() -> None:
    job = a_job(
        JobParameter("from", 2, required=True),
        JobParameter("to", 2),
        JobParameter("price", 3, required=True),
        JobParameter("key", 4, required=True),
        JobParameter("day", 4),
    )

    assert list(csv.reader(io.StringIO(manifest_of(job, "csv")))) == [
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
                    r"  from: an integer such as 1, or \N for null, or \A for what follows from "
                    "the job's earlier runs; required (the first)"
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
                    '  from: an integer such as 1, or null, or {"auto": true} for what follows '
                    "from the job's earlier runs; required (the first)"
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
def test_a_job_as_queryjobs_tells_it_has_a_template(form: Format) -> None:
    body = b'{"jobs":[{"jobId":"%b","name":"N","jobRunParameters":[{"name":"A","type":2}]}]}'
    (job,) = decode_jobs(body % JOB.encode(), source="a test")

    assert only_checked(job, form).row.job_id == JOB
