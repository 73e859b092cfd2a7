"""The jobs file, and what the simulator refuses of a start."""

from __future__ import annotations

from typing import Any

import pytest
from rawdes import AUTO, SAMPLES, START, ask, integer, start_body

from deslaunch.simulator import (
    CSV_SALES_EXPORT,
    DEFAULT_JOBS,
    OTHER_JOB,
    POS_USAGE_EXPORT,
    JobsFileError,
    Simulator,
    load_jobs,
)


def one(value: Any, kind: int | None = 2, **declared: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a jobs file with the one parameter P, and a start that gives it ``value``."""
    parameter = {"name": "P", "type": kind, **declared}
    job = {"jobId": CSV_SALES_EXPORT, "jobRunParameters": [parameter]}
    return {"jobs": [job]}, start_body(CSV_SALES_EXPORT, {"P": value})


def text(value: Any, **more: Any) -> dict[str, Any]:
    return {"valueStringEncoded": value, **more}


GOOD_VALUES = [
    pytest.param(*one(text("-9223372036854775808")), id="least-integer"),
    pytest.param(*one(text("9223372036854775807", type=2)), id="greatest-integer"),
    pytest.param(*one(text("1", type=None)), id="type-null"),
    pytest.param(*one(text("1", useAutoValue=False)), id="auto-false"),
    pytest.param(*one(text("1", useAutoValue=None)), id="auto-null"),
    pytest.param(*one(text("-1.50"), 3), id="decimal"),
    pytest.param(*one(text("12345678901234567890123"), 3), id="long-decimal"),
    pytest.param(*one(text("2021-10-19T06:16:47Z"), 4), id="datetime"),
    pytest.param(*one(text("2021-10-19"), 4), id="date"),
    pytest.param(*one(text("2021-10-19T06:16:47.123+02:00"), 4), id="datetime-with-offset"),
    pytest.param(*one(text(""), 1), id="empty-string"),
    pytest.param(*one(text("anything"), 5), id="unknown-type-number"),
    pytest.param(*one(text("anything"), None), id="no-declared-type"),
    pytest.param(*one(text("anything", type=9), None), id="type-not-declared"),
    pytest.param(*one(None, nullable=True), id="null"),
    pytest.param(*one(text(None), nullable=True), id="null-text"),
    pytest.param(*one({}, nullable=True), id="empty-value"),
    pytest.param(*one(AUTO, supportsAutoValue=True), id="auto"),
    pytest.param(*one({"useAutoValue": True}, supportsAutoValue=True), id="auto-without-text"),
]


@pytest.mark.parametrize(("jobs", "body"), GOOD_VALUES)
async def test_a_good_value_starts(jobs: dict[str, Any], body: dict[str, Any]) -> None:
    async with Simulator(jobs=jobs) as simulator:
        answer = await ask(simulator, START, body)

    assert (answer[0], len(simulator.runs)) == (200, 1), answer


BAD_VALUES = [
    pytest.param(*one(text("1.0")), "not of type 2", id="integer-with-point"),
    pytest.param(*one(text("9223372036854775808")), "not of type 2", id="integer-over-64-bits"),
    pytest.param(*one(text("-9223372036854775809")), "not of type 2", id="integer-under-64-bits"),
    pytest.param(*one(text("")), "not of type 2", id="empty-integer"),
    pytest.param(*one(text(" 1")), "not of type 2", id="integer-with-blank"),
    pytest.param(*one(text("1_0")), "not of type 2", id="integer-with-underscore"),
    pytest.param(*one(text("\u0661")), "not of type 2", id="integer-in-other-digits"),
    pytest.param(*one(text("1e3"), 3), "not of type 3", id="decimal-with-exponent"),
    pytest.param(*one(text("1,5"), 3), "not of type 3", id="decimal-with-comma"),
    pytest.param(*one(text(".5"), 3), "not of type 3", id="decimal-without-digit"),
    pytest.param(*one(text("31.01.2021"), 4), "not of type 4", id="no-iso-date"),
    pytest.param(*one(text("2021-02-30"), 4), "not of type 4", id="no-such-day"),
    pytest.param(*one(text("2021-10-19 06:16"), 4), "not of type 4", id="datetime-with-blank"),
    pytest.param(*one(text("1", type=3)), "is of type 2, not 3", id="other-type"),
    pytest.param(*one(text("1", type="2")), "has no type number", id="type-as-text"),
    pytest.param(*one(text("1", type=True)), "has no type number", id="type-as-truth"),
    pytest.param(*one(text(1)), "no JobRunParameterValue", id="value-as-number"),
    pytest.param(*one(text(None, useAutoValue="yes")), "no JobRunParameterValue", id="auto-text"),
    pytest.param(*one("1"), "neither an object nor null", id="bare-value"),
    pytest.param(*one(None), "can't be null", id="null"),
    pytest.param(*one(text(None)), "can't be null", id="null-text"),
    pytest.param(*one(AUTO), "has no auto value", id="auto-not-supported"),
    pytest.param(
        *one(AUTO | {"valueStringEncoded": "1"}, supportsAutoValue=True),
        "both a value and the auto value",
        id="auto-with-value",
    ),
]


@pytest.mark.parametrize(("jobs", "body", "message"), BAD_VALUES)
async def test_a_bad_value_is_refused(
    jobs: dict[str, Any], body: dict[str, Any], message: str
) -> None:
    async with Simulator(jobs=jobs) as simulator:
        status, answer = await ask(simulator, START, body)

    assert (status, simulator.runs, simulator.requests) == (400, [], 1)
    assert message in answer["message"]


DATE = {"type": 4, "valueStringEncoded": "2026-01-31"}

BAD_BODIES = [
    pytest.param(b"{", "no JSON", id="no-json"),
    pytest.param(b"", "no JSON", id="empty"),
    pytest.param([], "no JSON object", id="list"),
    pytest.param({}, "jobId is no GUID", id="no-job"),
    pytest.param(start_body("POSUsageExport"), "jobId is no GUID", id="job-by-name"),
    pytest.param(start_body(7), "jobId is no GUID", id="job-by-number"),
    pytest.param(start_body(OTHER_JOB), "no job", id="unknown-job"),
    pytest.param(start_body(parameters=[]), "parameters is no", id="list-of-parameters"),
    pytest.param(start_body(parameters={}), "'DBGenFrom' is required", id="required-left-out"),
    pytest.param({"jobId": POS_USAGE_EXPORT}, "'DBGenFrom' is required", id="parameters-left-out"),
    pytest.param(
        start_body(parameters={"DBGenFrom": integer("1"), "dbGenTo": None}),
        "unknown parameter 'dbGenTo'",
        id="unknown-parameter",
    ),
    pytest.param(
        start_body(parameters={"DBGenFrom": integer("1"), "TradingDate": DATE}),
        "either DBGenFrom or TradingDate",
        id="range-and-date",
    ),
    pytest.param(
        start_body(parameters={"DBGenFrom": AUTO, "TradingDate": DATE}),
        "either DBGenFrom or TradingDate",
        id="auto-and-date",
    ),
    pytest.param(
        start_body(CSV_SALES_EXPORT, {"DBGenTo": integer("1"), "TradingDateFrom": DATE}),
        "either DBGenTo or TradingDateFrom",
        id="half-a-range-and-half-a-period",
    ),
]


@pytest.mark.parametrize(("body", "message"), BAD_BODIES)
async def test_a_bad_body_is_refused(body: Any, message: str) -> None:
    async with Simulator() as simulator:
        status, answer = await ask(simulator, START, body)

    assert (status, simulator.runs) == (400, [])
    assert message in answer["message"]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(start_body(POS_USAGE_EXPORT.upper()), id="job-in-capitals"),
        pytest.param(start_body(parameters={"DBGenFrom": AUTO}), id="auto"),
        pytest.param(
            start_body(parameters={"DBGenFrom": None, "TradingDate": DATE}), id="null-and-date"
        ),
        pytest.param(
            start_body(
                parameters={"DBGenFrom": integer("1"), "TradingDate": integer(None) | {"type": 4}}
            ),
            id="range-and-null-date",
        ),
        pytest.param(start_body(CSV_SALES_EXPORT, {}), id="nothing-required"),
        pytest.param({"jobId": CSV_SALES_EXPORT, "parameters": None}, id="parameters-null"),
        pytest.param(
            start_body(CSV_SALES_EXPORT, {"DBGenFrom": integer("1"), "DBGenTo": integer("2")}),
            id="range",
        ),
        pytest.param(start_body(comment="ignored"), id="unknown-key"),
    ],
)
async def test_a_good_body_starts(body: Any) -> None:
    async with Simulator() as simulator:
        status, _ = await ask(simulator, START, body)

    assert (status, len(simulator.runs)) == (200, 1)


@pytest.mark.parametrize(
    ("jobs", "where"),
    [
        pytest.param([], "", id="list"),
        pytest.param({}, "jobs", id="no-jobs"),
        pytest.param({"jobs": [7]}, "jobs[0]", id="no-object"),
        pytest.param({"jobs": [{"jobId": "x", "jobRunParameters": []}]}, "jobs[0].jobId", id="id"),
        pytest.param({"jobs": [{"jobId": OTHER_JOB}]}, "jobs[0].jobRunParameters", id="no-list"),
        pytest.param(
            {"jobs": [{"jobId": OTHER_JOB, "jobRunParameters": [{"name": "P", "type": "x"}]}]},
            "jobs[0].jobRunParameters[0].type",
            id="type",
        ),
        pytest.param(
            {"jobs": [{"jobId": OTHER_JOB, "jobRunParameters": [], "exclusive": ["P"]}]},
            "jobs[0].exclusive",
            id="exclusive",
        ),
    ],
)
def test_a_bad_jobs_file_says_where(jobs: Any, where: str) -> None:
    with pytest.raises(JobsFileError) as caught:
        Simulator(jobs=jobs)

    assert caught.value.where == where


def test_the_samples_are_what_the_defaults_are() -> None:
    assert load_jobs(SAMPLES / "jobs.json") == DEFAULT_JOBS
