"""A template is a manifest that the check accepts as it is."""

from __future__ import annotations

import csv
import io
import re
from itertools import product
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from manifests import check_manifest

from deslaunch.des.wire import decode_jobs
from deslaunch.errors import ConfigurationError
from deslaunch.manifest.template import (
    explanation,
    manifest_of,
    read_values,
    rows_of,
    write_rows,
)
from deslaunch.model import CheckedRow, Job, JobParameter

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

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
                    r"  from: an integer such as 1, or \N for null, or \A for the auto value, "
                    "which follows from the job's earlier runs; required (the first)"
                ),
                "  parameters.key: a string; optional: the job's default is used",
                "  odd: a string that DES reads as its type 99; required",
            ],
            id="csv",
        ),
        pytest.param(
            "jsonl",
            [
                (
                    '  from: an integer such as 1, or null, or {"auto": true} for the auto value, '
                    "which follows from the job's earlier runs; required (the first)"
                ),
                "  key: a string; optional: the job's default is used",
                "  odd: a string that DES reads as its type 99; required",
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
    assert list(explanation(a_job(), form))[-1] == "  this job has no parameters"


def test_several_that_are_left_out_may_exclude_each_other() -> None:
    told = "  some may exclude each other, such as a range and a date; DES then rejects the row"

    assert list(explanation(a_job(JobParameter("a", 2), JobParameter("b", 4)), "csv"))[-1] == told
    assert told not in list(explanation(a_job(JobParameter("a", 2)), "csv"))


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_job_as_queryjobs_tells_it_has_a_template(form: Format) -> None:
    body = b'{"jobs":[{"jobId":"%b","name":"N","jobRunParameters":[{"name":"A","type":2}]}]}'
    (job,) = decode_jobs(body % JOB.encode(), source="a test")

    assert only_checked(job, form).row.job_id == JOB


# Every combination of values.


def each(job: Job, *texts: str, form: Format = "csv", target: str = "default") -> list[CheckedRow]:
    """Return the rows for every combination, as the check takes them."""
    values = dict(map(read_values, texts))
    found = rows_of(job, values, target)
    text = b"".join(write_rows(found, form, names_target=target != "default")).decode()
    taken, _ = check_manifest(form, text, jobs=[job])
    assert all(isinstance(one, CheckedRow) for one in taken), taken
    return cast("list[CheckedRow]", taken)


SALES = a_job(
    JobParameter("from", 2, required=True), JobParameter("day", 4), JobParameter("shop", 1)
)


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_there_is_a_row_for_each_combination(form: Format) -> None:
    taken = each(SALES, "from=1", "day=2026-02-28..2026-03-01", "shop=a,b", form=form)

    assert [one.key for one in taken] == [
        "2026-02-28_a",
        "2026-02-28_b",
        "2026-03-01_a",
        "2026-03-01_b",
    ]
    assert said_in(taken[3]) == {"from": "1", "day": "2026-03-01", "shop": "b"}


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize(
    "shops",
    [
        pytest.param(["a~b", "c"], id="the mark of repeated rows"),
        pytest.param([" a", "c"], id="a blank at an end"),
        pytest.param(["a\u200b", "c"], id="an invisible character"),
        pytest.param(["a" * 257, "c"], id="too long"),
        pytest.param(["a" * 250, "c"], id="too long together"),
    ],
)
def test_rows_have_numbers_where_the_values_make_no_key(form: Format, shops: list[str]) -> None:
    values = f"shop={','.join(shops)}", "day=2026-01-30..2026-01-31"
    taken = each(SALES, "from=1", *values, form=form)

    assert [one.key for one in taken] == ["1", "2", "3", "4"]
    assert [said_in(one)["shop"] for one in taken] == [shop for shop in shops for _ in range(2)]


def test_values_are_read_from_ranges_and_files(tmp_path: Path) -> None:
    (tmp_path / "shops.txt").write_text("\ufeffMain, south\n\nNorth\nNorth\n")

    assert read_values("from=8..11") == ("from", ["8", "9", "10", "11"])
    assert read_values("from=-1..1") == ("from", ["-1", "0", "1"])
    assert read_values(f"shop=@{tmp_path}/shops.txt") == ("shop", ["Main, south", "North"])


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_null_and_the_auto_value_are_written_as_in_csv(form: Format) -> None:
    job = a_job(JobParameter("from", 2, True, True, True), JobParameter("day", 4))
    taken = each(job, r"from=\N", "day=2026-01-30..2026-01-31", form=form)
    assert [said_in(one)["from"] for one in taken] == [None, None]
    assert each(job, r"from=\A", form=form)[0].auto

    with pytest.raises(ConfigurationError, match="may begin with a backslash"):
        each(job, r"from=\x")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("day", "--each: expected NAME=VALUES, got 'day'"),
        ("day=", "--each: expected NAME=VALUES, got 'day='"),
        ("day=a,,b", "there is no value, or an empty one"),
        ("day=2026-02-30..2026-03-01", "a range needs two dates or two integers"),
        ("day=1..2026-03-01", "a range needs two dates or two integers"),
        ("from=9..8", "a range must ascend"),
        ("from=1..9999999", "at most 1,000,000 values"),
        ("shop=@/none", "/none can't be read"),
    ],
)
def test_what_gives_no_values_is_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(why)):
        read_values(text)


@pytest.mark.parametrize(
    ("texts", "why"),
    [
        (["day=2026-01-31"], "from is required and missing"),
        (["from=1", "day=2026-01-01,today"], "day must be a datetime, not 'today'"),
        (["from=1", "shp=a"], "did you mean shop?"),
        (["from=1..2000", "shop=@lines"], "at most 1,000,000 rows, got 4,000,000 combinations"),
    ],
)
def test_values_that_do_not_fit_are_refused(
    texts: list[str], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lines").write_text("".join(f"{n}\n" for n in range(2000)))

    with pytest.raises(ConfigurationError, match=re.escape(why)):
        each(SALES, *texts)


@given(
    st.lists(
        st.text(
            st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters="\\")
        ),
        min_size=1,
    )
)
def test_keys_differ_as_the_values_do(texts: list[str]) -> None:
    values = [text for text in dict.fromkeys(texts) if text]
    made = rows_of(SALES, {"from": ["1", "2"], "shop": values or ["x"]}, "default")

    keys = [row.key for row in made]
    assert len(set(keys)) == len(keys)
