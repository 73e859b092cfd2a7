"""Rows against a job's schema: what is sent, what is refused, what is doubted."""

from __future__ import annotations

from calendar import monthrange
from datetime import datetime
from decimal import Decimal
from itertools import combinations, product

import orjson
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from deslaunch import wire
from deslaunch.model import (
    AUTO,
    Job,
    JobParameter,
    ParameterValue,
    Row,
    RowProblem,
    StartRequest,
    TypedValue,
)
from deslaunch.schema import JobSchema, Schemas, WarningKind

JOB_ID = "43f87799-62c6-4001-92f9-6b3df816a6d6"
OTHER_ID = "9b3df816-0000-4000-8000-43f8779962c6"
DIGEST = "d" * 32
FILE = "night.csv"

SALES = Job(
    JOB_ID,
    "Nightly sales",
    (
        JobParameter("DBGenFrom", wire.INTEGER, required=True, supports_auto=True),
        JobParameter("DBGenTo", wire.INTEGER),
        JobParameter("TradingDate", wire.DATETIME, nullable=True),
        JobParameter("Price", wire.DECIMAL),
        JobParameter("Shop", wire.STRING),
        JobParameter("Closed", 7),
        JobParameter("Legacy", None),
    ),
)


def row(
    parameters: dict[str, ParameterValue],
    *,
    number: int = 17,
    job_id: str = JOB_ID,
    target: str = "default",
) -> Row:
    return Row(number, number + 1, None, target, job_id, parameters)


def answer(
    job: Job, parameters: dict[str, ParameterValue]
) -> StartRequest | tuple[RowProblem, ...]:
    return JobSchema(job).request(
        row(parameters, job_id=job.job_id), key="k", digest=DIGEST, file=FILE
    )


def sent(parameters: dict[str, ParameterValue], job: Job = SALES) -> StartRequest:
    request = answer(job, parameters)
    assert isinstance(request, StartRequest), request
    return request


def refused(parameters: dict[str, ParameterValue], job: Job = SALES) -> tuple[RowProblem, ...]:
    problems = answer(job, parameters)
    assert not isinstance(problems, StartRequest), problems
    return problems


def one(*, type_number: int | None, nullable: bool = False, auto: bool = False) -> Job:
    parameter = JobParameter("P", type_number, nullable=nullable, supports_auto=auto)
    return Job(JOB_ID, "Job", (parameter,))


def accepts(type_number: int, text: str) -> bool:
    return isinstance(answer(one(type_number=type_number), {"P": text}), StartRequest)


# What is sent


def test_a_valid_row_becomes_one_complete_request() -> None:
    assert sent({"DBGenFrom": "1200", "Shop": "Main"}) == StartRequest(
        key="k",
        row=17,
        line=18,
        target="default",
        job_id=JOB_ID,
        digest=DIGEST,
        body=b'{"jobId":"43f87799-62c6-4001-92f9-6b3df816a6d6","parameters":{'
        b'"DBGenFrom":{"type":2,"valueStringEncoded":"1200"},'
        b'"Shop":{"type":1,"valueStringEncoded":"Main"}}}',
        auto=False,
    )


@pytest.mark.parametrize(
    ("name", "value", "encoded"),
    [
        pytest.param(
            "DBGenTo", "+07", {"type": 2, "valueStringEncoded": "+07"}, id="text-as-it-came"
        ),
        pytest.param(
            "Price", "1.50", {"type": 3, "valueStringEncoded": "1.50"}, id="decimal-to-the-digit"
        ),
        pytest.param("TradingDate", None, {"type": 4, "valueStringEncoded": None}, id="null"),
        pytest.param(
            "DBGenFrom",
            AUTO,
            {"type": 2, "valueStringEncoded": None, "useAutoValue": True},
            id="auto",
        ),
        pytest.param("Shop", "", {"type": 1, "valueStringEncoded": ""}, id="empty-string"),
        pytest.param(
            "Shop", 'a"\\\0é😀', {"type": 1, "valueStringEncoded": 'a"\\\0é😀'}, id="escapes"
        ),
        pytest.param(
            "DBGenTo",
            TypedValue(2, "5"),
            {"type": 2, "valueStringEncoded": "5"},
            id="typed-as-the-schema",
        ),
        pytest.param(
            "DBGenTo",
            TypedValue(None, "5"),
            {"type": 2, "valueStringEncoded": "5"},
            id="typed-without-type-takes-the-schema's",
        ),
        pytest.param(
            "TradingDate",
            TypedValue(4, None),
            {"type": 4, "valueStringEncoded": None},
            id="typed-null",
        ),
        pytest.param(
            "DBGenFrom",
            TypedValue(2, AUTO),
            {"type": 2, "valueStringEncoded": None, "useAutoValue": True},
            id="typed-auto",
        ),
        pytest.param(
            "Closed", "true", {"type": 7, "valueStringEncoded": "true"}, id="unknown-type-number"
        ),
        pytest.param("Legacy", "x", {"valueStringEncoded": "x"}, id="undeclared-type-left-out"),
        pytest.param(
            "Legacy",
            TypedValue(9, "x"),
            {"type": 9, "valueStringEncoded": "x"},
            id="undeclared-type-from-the-row",
        ),
    ],
)
def test_a_value_is_encoded_with_the_schemas_type(
    name: str, value: ParameterValue, encoded: dict[str, object]
) -> None:
    request = sent({"DBGenFrom": "1", name: value})

    assert orjson.loads(request.body)["parameters"][name] == encoded
    assert request.auto is bool(encoded.get("useAutoValue"))


def test_parameters_keep_the_rows_order() -> None:
    body = sent({"Shop": "x", "DBGenTo": "2", "DBGenFrom": "1"}).body

    assert list(orjson.loads(body)["parameters"]) == ["Shop", "DBGenTo", "DBGenFrom"]


def test_a_job_without_parameters_takes_an_empty_row() -> None:
    assert sent({}, Job(JOB_ID, "", ())).body == wire.start_job_body(JOB_ID, {})


def test_rows_of_very_many_shapes_are_all_encoded() -> None:
    names = [f"P{number}" for number in range(9)]
    job = Job(JOB_ID, "", tuple(JobParameter(name, wire.INTEGER) for name in names))
    schema = JobSchema(job)
    shapes = [shape for size in range(10) for shape in combinations(names, size)]
    assert len(shapes) == 512

    for shape in shapes:
        request = schema.request(row(dict.fromkeys(shape, "1")), key="k", digest="", file=FILE)
        assert isinstance(request, StartRequest)
        assert list(orjson.loads(request.body)["parameters"]) == list(shape)


utf8 = st.text(st.characters(exclude_categories=["Cs"]))
texts = {
    wire.STRING: utf8,
    wire.INTEGER: st.integers(-(2**63), 2**63 - 1).map(str),
    wire.DECIMAL: st.decimals(allow_nan=False, allow_infinity=False).map(lambda d: f"{d:f}"),
    wire.DATETIME: st.datetimes().map(lambda moment: f"{moment.isoformat()}Z"),
    5: utf8,
    None: utf8,
}


@st.composite
def jobs_and_values(draw: st.DrawFn) -> tuple[Job, dict[str, ParameterValue]]:
    """A job, and values of which each is valid for it: text, null, auto, bare or typed."""
    types = draw(st.dictionaries(utf8, st.sampled_from(list(texts)), max_size=6))
    parameters, values = [], {}

    for name, number in types.items():
        bare = draw(st.one_of(texts[number], st.none(), st.just(AUTO)))
        typed = st.builds(TypedValue, st.sampled_from([number, None]), st.just(bare))
        values[name] = draw(st.one_of(st.just(bare), typed))
        parameters.append(JobParameter(name, number, draw(st.booleans()), True, True))

    return Job(JOB_ID, draw(utf8), tuple(parameters)), values


@given(jobs_and_values())
def test_the_body_is_what_wire_makes_of_the_values(
    case: tuple[Job, dict[str, ParameterValue]],
) -> None:
    job, values = case
    types = {parameter.name: parameter.type for parameter in job.parameters}
    bare = {name: v.value if isinstance(v, TypedValue) else v for name, v in values.items()}
    encoded = {name: wire.parameter_value(types[name], value) for name, value in bare.items()}

    request = sent(values, job)

    assert request.body == wire.start_job_body(JOB_ID, encoded)
    assert request.auto is (AUTO in bare.values())


@given(utf8, utf8)
def test_any_name_and_any_string_reach_the_service_unchanged(name: str, text: str) -> None:
    job = Job(JOB_ID, "", (JobParameter(name, wire.STRING),))

    body = orjson.loads(sent({name: text}, job).body)

    assert body["parameters"] == {name: {"type": 1, "valueStringEncoded": text}}


def test_each_low_character_is_escaped_as_wire_escapes_it() -> None:
    schema = JobSchema(one(type_number=wire.STRING))

    for text in map(chr, range(0x180)):
        request = schema.request(row({"P": text}), key="k", digest="", file=FILE)
        assert isinstance(request, StartRequest)
        assert request.body == wire.start_job_body(JOB_ID, {"P": wire.parameter_value(1, text)})


def test_a_text_that_only_pretends_to_be_one_is_sent_as_its_characters() -> None:
    class Loud(str):
        __slots__ = ()

        def __str__(self) -> str:
            return "999"

    assert sent({"DBGenFrom": Loud("1")}) == sent({"DBGenFrom": "1"})


# Types


@pytest.mark.parametrize(
    ("type_number", "text"),
    [
        pytest.param(wire.INTEGER, "-9223372036854775808", id="least-integer"),
        pytest.param(wire.INTEGER, "9223372036854775807", id="greatest-integer"),
        pytest.param(wire.INTEGER, "+9223372036854775807", id="greatest-integer-signed"),
        pytest.param(wire.INTEGER, "-0", id="minus-zero"),
        pytest.param(wire.INTEGER, "0" * 5_000 + "7", id="more-zeros-than-int-reads"),
        pytest.param(wire.DECIMAL, "12", id="decimal-without-point"),
        pytest.param(wire.DECIMAL, "-0.10", id="decimal-with-trailing-zero"),
        pytest.param(wire.DECIMAL, "1" * 400 + "." + "2" * 400, id="long-decimal"),
        pytest.param(wire.DATETIME, "2026-01-31", id="date"),
        pytest.param(wire.DATETIME, "2024-02-29", id="leap-day"),
        pytest.param(wire.DATETIME, "0001-01-01T00:00:00Z", id="first-datetime"),
        pytest.param(wire.DATETIME, "9999-12-31T23:59:59.999999999+23:59", id="last-datetime"),
        pytest.param(wire.DATETIME, "2021-10-19T06:16:47", id="naive-datetime"),
        pytest.param(wire.DATETIME, "2021-10-19T06:16:47.1-05:30", id="fraction-and-offset"),
        pytest.param(wire.STRING, "\x7f\u2028\ufffe", id="odd-characters"),
        pytest.param(7, "1,5", id="unknown-type-number"),
    ],
)
def test_a_text_of_the_type_passes(type_number: int, text: str) -> None:
    assert accepts(type_number, text)


@pytest.mark.parametrize(
    ("type_number", "text", "advice"),
    [
        pytest.param(wire.INTEGER, "", "digits only", id="empty"),
        pytest.param(wire.INTEGER, "9223372036854775808", "must lie between", id="over-64-bits"),
        pytest.param(wire.INTEGER, "-9223372036854775809", "must lie between", id="under-64-bits"),
        pytest.param(wire.INTEGER, "1" * 5_000, "must lie between", id="over-4300-digits"),
        pytest.param(wire.INTEGER, "12.0", "digits only", id="point"),
        pytest.param(wire.INTEGER, "1,200", "digits only", id="thousands-separator"),
        pytest.param(wire.INTEGER, "1_200", "digits only", id="python-separator"),
        pytest.param(wire.INTEGER, "1e3", "digits only", id="exponent"),
        pytest.param(wire.INTEGER, "٣", "digits only", id="arabic-digit"),
        pytest.param(wire.INTEGER, "--1", "digits only", id="two-signs"),
        pytest.param(wire.INTEGER, " 12", "remove the white space", id="leading-space"),
        pytest.param(wire.INTEGER, "12\n", "remove the white space", id="trailing-newline"),
        pytest.param(wire.INTEGER, "1\x002", "digits only", id="nul"),
        pytest.param(wire.DECIMAL, "1,5", "with a point", id="decimal-comma"),
        pytest.param(wire.DECIMAL, "1.5E3", "no exponent", id="decimal-exponent"),
        pytest.param(wire.DECIMAL, ".5", "with a point", id="no-leading-digit"),
        pytest.param(wire.DECIMAL, "5.", "with a point", id="no-trailing-digit"),
        pytest.param(wire.DECIMAL, "NaN", "with a point", id="nan"),
        pytest.param(wire.DECIMAL, "1.5\n", "remove the white space", id="decimal-newline"),
        pytest.param(wire.DATETIME, "31.01.2026", "write 2026-01-31", id="german-date"),
        pytest.param(wire.DATETIME, "01/31/2026", "write 2026-01-31", id="american-date"),
        pytest.param(wire.DATETIME, "20260131", "write 2026-01-31", id="basic-format"),
        pytest.param(wire.DATETIME, "2026-01-31 06:16:47", "T06:16:47Z", id="space-for-T"),
        pytest.param(wire.DATETIME, "2026-01-31T06:16", "T06:16:47Z", id="no-seconds"),
        pytest.param(wire.DATETIME, "2026-01-31T24:00:00", "T06:16:47Z", id="hour-24"),
        pytest.param(wire.DATETIME, "2026-01-31T06:16:60Z", "T06:16:47Z", id="leap-second"),
        pytest.param(wire.DATETIME, "2026-01-31Z", "write 2026-01-31", id="zone-on-a-date"),
        pytest.param(wire.DATETIME, "2026-01-31T06:16:47+0100", "Z", id="offset-without-colon"),
        pytest.param(wire.DATETIME, "2026-01-31T06:16:47+24:00", "Z", id="offset-of-a-day"),
        pytest.param(wire.DATETIME, "2026-01-31T06:16:47.Z", "Z", id="empty-fraction"),
        pytest.param(wire.DATETIME, "2026-01-31T06:16:47.1234567890Z", "Z", id="ten-digits"),
        pytest.param(wire.DATETIME, "2026-02-29", "no such day", id="no-leap-year"),
        pytest.param(wire.DATETIME, "2026-04-31T00:00:00Z", "no such day", id="31-april"),
        pytest.param(wire.DATETIME, "2026-13-01", "no such day", id="month-13"),
        pytest.param(wire.DATETIME, "0000-01-01", "no such day", id="year-0"),
        pytest.param(wire.STRING, "a\ud800", "surrogate", id="lone-surrogate"),
        pytest.param(7, "a\ud800", "surrogate", id="lone-surrogate-of-an-unknown-type"),
    ],
)
def test_a_text_of_another_form_is_refused_with_advice(
    type_number: int, text: str, advice: str
) -> None:
    [problem] = refused({"P": text}, one(type_number=type_number))

    assert advice in problem.message
    assert problem.message.startswith("P takes ")
    assert problem.column == "P"
    orjson.dumps(problem.as_dict())


@given(st.from_regex(r"[+-]?[0-9]{1,22}", fullmatch=True) | st.integers().map(str))
def test_an_integer_is_valid_within_64_bits(text: str) -> None:
    assert accepts(wire.INTEGER, text) is (-(2**63) <= int(text) < 2**63)


@given(st.integers(-3, 3), st.sampled_from([-(2**63), 2**63, 10**18, -(10**18), 10**19]))
def test_an_integer_is_judged_rightly_near_every_edge(step: int, edge: int) -> None:
    number = edge + step

    assert accepts(wire.INTEGER, str(number)) is (-(2**63) <= number < 2**63)


@given(st.from_regex(r"[+-]?[0-9]{1,40}(\.[0-9]{1,40})?", fullmatch=True))
def test_a_decimal_is_kept_to_the_digit(text: str) -> None:
    value = orjson.loads(sent({"P": text}, one(type_number=wire.DECIMAL)).body)["parameters"]["P"]

    assert value["valueStringEncoded"] == text
    assert Decimal(value["valueStringEncoded"]) == Decimal(text)


def digits(low: int, high: int, width: int = 2) -> st.SearchStrategy[str]:
    return st.integers(low, high).map(lambda number: f"{number:0{width}}")


dates = st.builds("{}-{}-{}".format, digits(0, 9999, 4), digits(0, 13), digits(0, 32))
times = st.builds(
    "T{}:{}:{}{}{}".format,
    digits(0, 23),
    digits(0, 60),
    digits(0, 60),
    st.from_regex(r"(\.[0-9]{1,9})?", fullmatch=True),
    st.sampled_from(["", "Z", "+00:00", "-05:30", "+23:59", "+24:00"]),
)


@pytest.mark.parametrize("year", [1900, 2000, 2024, 2026])
def test_every_day_of_a_year_is_valid_and_no_other(year: int) -> None:
    schema = JobSchema(one(type_number=wire.DATETIME))

    for month, day in product(range(14), range(33)):
        parameters: dict[str, ParameterValue] = {"P": f"{year}-{month:02}-{day:02}"}
        result = schema.request(row(parameters), key="k", digest="", file=FILE)
        exists = 1 <= month <= 12 and 1 <= day <= monthrange(year, month)[1]
        assert isinstance(result, StartRequest) is exists, parameters


@given(dates, st.just("") | times)
def test_a_datetime_is_valid_where_the_calendar_has_it(day: str, time: str) -> None:
    text = day + time

    try:
        datetime.fromisoformat(text)
    except ValueError:
        assert not accepts(wire.DATETIME, text)
    else:
        assert accepts(wire.DATETIME, text)


@given(st.datetimes(timezones=st.none() | st.timezones()))
def test_every_datetime_that_python_prints_is_valid(moment: datetime) -> None:
    offset = moment.utcoffset()
    assume(offset is None or offset.total_seconds() % 60 == 0)

    assert accepts(wire.DATETIME, moment.isoformat())
    assert accepts(wire.DATETIME, moment.date().isoformat())


@given(st.sampled_from([1, 2, 3, 4, 5]), st.text(st.characters()))
def test_any_text_is_sent_or_explained(type_number: int, text: str) -> None:
    result = answer(one(type_number=type_number), {"P": text})

    if isinstance(result, StartRequest):
        assert orjson.loads(result.body)["parameters"]["P"]["valueStringEncoded"] == text
    else:
        assert len(result) == 1
        orjson.dumps(result[0].as_dict())


# What is refused


def test_every_problem_of_a_row_is_reported() -> None:
    problems = refused({"DBGenTo": "x", "Price": None, "Shop": AUTO, "shop2": "y"})

    assert [(p.file, p.line, p.row, p.column, p.expected, p.got) for p in problems] == [
        (FILE, 18, 17, "DBGenFrom", "an integer or the auto value", "nothing"),
        (FILE, 18, 17, "DBGenTo", "an integer", "x"),
        (FILE, 18, 17, "Price", "a decimal", "null"),
        (FILE, 18, 17, "Shop", "a text", "auto value"),
        (
            FILE,
            18,
            17,
            "shop2",
            "one of DBGenFrom, DBGenTo, TradingDate, Price, Shop, Closed, Legacy",
            "shop2",
        ),
    ]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        pytest.param(
            {},
            "DBGenFrom is required and missing: give it an integer or the auto value",
            id="missing",
        ),
        pytest.param(
            {"DBGenFrom": None},
            "DBGenFrom takes no null: give it an integer or the auto value",
            id="null-where-required",
        ),
        pytest.param(
            {"DBGenFrom": "1", "DBGenTo": TypedValue(None, None)},
            "DBGenTo takes no null: give it an integer, or leave it out",
            id="null-where-optional",
        ),
        pytest.param(
            {"DBGenFrom": "1", "TradingDate": AUTO},
            "TradingDate takes no auto value: give it a datetime or null, or leave it out",
            id="auto",
        ),
        pytest.param(
            {"DBGenFrom": TypedValue(3, "1")},
            "DBGenFrom says type 3 (decimal) and the job takes type 2 (integer): "
            "leave the type out",
            id="another-type",
        ),
        pytest.param(
            {"DBGenFrom": TypedValue(8, AUTO)},
            "DBGenFrom says type 8 and the job takes type 2 (integer): leave the type out",
            id="another-type-on-an-auto-value",
        ),
        pytest.param(
            {"DBGenFrom": "1", "Closed": TypedValue(1, "x")},
            "Closed says type 1 (string) and the job takes type 7: leave the type out",
            id="another-type-than-an-unknown-one",
        ),
        pytest.param(
            {"DBGenFrom": "12x"},
            "DBGenFrom takes an integer, not '12x': write digits only, such as 1200",
            id="wrong-text",
        ),
        pytest.param(
            {"DBGenFrom": TypedValue(2, "12x")},
            "DBGenFrom takes an integer, not '12x': write digits only, such as 1200",
            id="wrong-text-in-a-typed-value",
        ),
        pytest.param(
            {"DBGenFrom": "1", "dbgento": "2"},
            "job 'Nightly sales' has no parameter 'dbgento': did you mean DBGenTo?",
            id="another-case",
        ),
        pytest.param(
            {"DBGenFrom": "1", "Trading Date ": "2026-01-31"},
            "job 'Nightly sales' has no parameter 'Trading Date ': did you mean TradingDate?",
            id="near-miss",
        ),
        pytest.param(
            {"DBGenFrom": "1", "zzz": "2"},
            "job 'Nightly sales' has no parameter 'zzz': its parameters are DBGenFrom, DBGenTo, "
            "TradingDate, Price, Shop, Closed, Legacy; a CSV's column of notes is named "
            "'deslaunch.zzz', or left out",
            id="far-miss",
        ),
    ],
)
def test_a_problem_says_what_is_wrong_and_what_to_do(
    parameters: dict[str, ParameterValue], message: str
) -> None:
    [problem] = refused(parameters)

    assert problem.message == message


def test_null_counts_as_given_where_required() -> None:
    job = Job(JOB_ID, "", (JobParameter("P", wire.STRING, required=True, nullable=True),))

    assert sent({"P": None}, job).body == wire.start_job_body(
        JOB_ID, {"P": wire.parameter_value(wire.STRING, None)}
    )
    assert [p.column for p in refused({}, job)] == ["P"]


def test_a_job_without_parameters_names_none() -> None:
    [problem] = refused({"P": "1"}, Job(JOB_ID, "", ()))

    assert problem.message == (
        f"job {JOB_ID} has no parameter 'P': it takes none; a CSV's column of notes is named "
        "'deslaunch.P', or left out"
    )


def test_long_values_and_long_lists_are_cut() -> None:
    many = Job(JOB_ID, "J", tuple(JobParameter(f"P{n}", wire.INTEGER) for n in range(20)))
    long, unknown = refused({"P0": "x" * 5_000, "?": "1"}, many)

    assert (len(long.got), len(long.message) < 200) == (120, True)
    assert "P5, P6, P7 and 12 more; " in unknown.message


def test_a_name_that_utf8_cant_carry_is_shown_all_the_same() -> None:
    [_, problem] = refused({"a\ud800": "1"})

    assert problem.column == r"a\ud800"
    orjson.dumps(problem.as_dict())


@pytest.mark.parametrize(
    ("name", "told"),
    [
        pytest.param("DBGen\nFrom", r"DBGen\nFrom", id="line-break"),
        pytest.param("\x1b[2JDBGenFrom", r"\x1b[2JDBGenFrom", id="terminal-escape"),
        pytest.param(r"DBGen\From", r"DBGen\From", id="backslash"),
    ],
)
def test_a_name_cannot_break_the_line_that_tells_of_it(name: str, told: str) -> None:
    [_, problem] = refused({name: "1"})

    assert (problem.column, problem.got) == (told, told)
    assert str(problem).isprintable()


def test_a_problem_does_not_depend_on_the_rows_before() -> None:
    schema = JobSchema(SALES)
    results = [
        schema.request(row({"DBGenFrom": text}), key="k", digest="", file=FILE)
        for text in ["1", "x"] * 3
    ]

    assert [isinstance(result, StartRequest) for result in results] == [True, False] * 3


# Warnings


def warn(schema: JobSchema, name: str, value: ParameterValue, numbers: range) -> None:
    for number in numbers:
        parameters = {"DBGenFrom": "1", name: value}
        schema.request(row(parameters, number=number), key="k", digest="", file=FILE)


def test_ten_thousand_naive_datetimes_are_one_warning() -> None:
    schema = JobSchema(SALES)
    warn(schema, "TradingDate", "2026-01-31T06:16:47", range(5, 10_005))

    [warning] = schema.warnings
    assert (warning.job_id, warning.parameter, warning.kind) == (
        JOB_ID,
        "TradingDate",
        WarningKind.NAIVE,
    )
    assert (warning.count, warning.file, warning.line) == (10_000, FILE, 6)
    assert str(warning) == (
        "TradingDate: a datetime without a zone means what DES takes it for; add Z or an offset "
        "(10,000 values, the first in night.csv:6)"
    )


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        pytest.param(
            "Closed", "true", "type 7 is not known; values are sent unchecked", id="number"
        ),
        pytest.param(
            "Legacy", "x", "the job declares no type; values are sent unchecked", id="none"
        ),
        pytest.param(
            "Legacy",
            TypedValue(2, "x"),
            "the job declares no type; values are sent unchecked",
            id="none-but-the-row-says-one",
        ),
    ],
)
def test_an_unchecked_parameter_is_one_warning(
    name: str, value: ParameterValue, message: str
) -> None:
    schema = JobSchema(SALES)
    warn(schema, name, value, range(1, 4))

    assert [(w.parameter, w.kind, w.count) for w in schema.warnings] == [
        (name, WarningKind.UNCHECKED, 3)
    ]
    assert schema.warnings[0].message == message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("TradingDate", "2026-01-31", id="date"),
        pytest.param("TradingDate", "2024-02-29", id="leap-day"),
        pytest.param("TradingDate", "0999-01-01T00:00:00-11:00", id="old-datetime-with-offset"),
        pytest.param("TradingDate", None, id="null"),
        pytest.param("Shop", "2026-01-31T06:16:47", id="string-that-looks-like-one"),
    ],
)
def test_what_is_sure_is_not_warned_of(name: str, value: ParameterValue) -> None:
    schema = JobSchema(SALES)
    warn(schema, name, value, range(1, 4))

    assert schema.warnings == ()


def test_a_second_reading_counts_from_nothing() -> None:
    schema = JobSchema(SALES)
    warn(schema, "Closed", "true", range(1, 4))
    schema.forget_warnings()
    assert not schema.warnings

    warn(schema, "Closed", "true", range(1, 2))
    assert [str(warning) for warning in schema.warnings] == [
        "Closed: type 7 is not known; values are sent unchecked (1 value in night.csv:2)"
    ]


# Schemas


def unknown(schemas: Schemas, job_id: str, target: str = "default") -> RowProblem:
    return schemas.unknown_job(row({}, job_id=job_id, target=target), file=FILE)


def test_a_job_is_found_in_its_own_target_only() -> None:
    schemas = Schemas()
    schemas.put("acme", [SALES])

    found = schemas.find("acme", JOB_ID)
    assert found is not None
    assert found.job == SALES
    assert (schemas.find("acme", OTHER_ID), schemas.find("default", JOB_ID)) == (None, None)
    assert repr(schemas) == "<Schemas jobs={'acme': 1}>"
    assert repr(found).startswith(f"<JobSchema {JOB_ID} 'Nightly sales' parameters=['DBGenFrom'")


def test_put_tells_what_changed_and_keeps_what_did_not() -> None:
    schemas = Schemas()
    other = Job(OTHER_ID, "Other", ())
    assert schemas.put("default", [SALES, other]) == {JOB_ID, OTHER_ID}
    kept = schemas.find("default", JOB_ID)

    assert schemas.put("default", [SALES, other]) == frozenset()
    assert schemas.put("default", [SALES, Job(OTHER_ID, "Renamed", ())]) == {OTHER_ID}
    assert schemas.put("default", [SALES]) == {OTHER_ID}
    assert schemas.find("default", OTHER_ID) is None
    assert schemas.find("default", JOB_ID) is kept


@pytest.mark.parametrize(
    ("job_id", "target", "advice"),
    [
        pytest.param(
            JOB_ID[:-1] + "7", "default", f"did you mean {JOB_ID}?", id="one-digit-mistyped"
        ),
        pytest.param(
            OTHER_ID, "default", "target acme has it; name that target in the row", id="elsewhere"
        ),
        pytest.param(
            "0" * 8 + JOB_ID[8:],
            "default",
            f"its jobs are {JOB_ID} (Nightly sales)",
            id="unlike-any",
        ),
        pytest.param(
            JOB_ID[:-1] + "7",
            "empty",
            "it has no jobs at all; see whether its token is for the right organisation",
            id="no-jobs",
        ),
    ],
)
def test_an_unknown_job_is_explained(job_id: str, target: str, advice: str) -> None:
    schemas = Schemas()
    schemas.put("default", [SALES])
    schemas.put("acme", [Job(OTHER_ID, "Other", ())])
    schemas.put("empty", [])

    problem = unknown(schemas, job_id, target)

    assert problem.message == f"target {target} has no job {job_id}: {advice}"
    assert (problem.column, problem.line, problem.got) == ("jobId", 18, job_id)


def test_a_parameter_of_another_job_tells_of_a_wrong_job() -> None:
    schemas = Schemas()
    stock = Job("0" * 35 + "1", "Stock", (JobParameter("DBGenFrm", wire.INTEGER),))
    schemas.put("default", [SALES, stock])
    told = []

    for jobs in ([SALES, stock], [SALES]):
        schemas.put("default", jobs)
        schema = schemas.find("default", JOB_ID)
        assert schema is not None
        found = schema.request(
            row({"DBGenFrom": "1", "DBGenFrm": "2"}), key="k", digest=DIGEST, file=FILE
        )
        assert not isinstance(found, StartRequest)
        told.append(found[0].message.partition(": ")[2])

    assert told == [
        "'Stock' has it; is the row's jobId (or --job-id) the right one?",
        "did you mean DBGenFrom?",
    ]


def test_an_unknown_job_is_looked_for_again_after_a_fetch() -> None:
    schemas = Schemas()
    schemas.put("default", [])
    assert "no jobs at all" in unknown(schemas, OTHER_ID).message

    schemas.put("default", [SALES])
    assert "its jobs are" in unknown(schemas, OTHER_ID).message


def test_warnings_of_all_jobs_are_put_together() -> None:
    schemas = Schemas()
    schemas.put("default", [SALES])
    schemas.put("acme", [Job(OTHER_ID, "Other", SALES.parameters)])

    for target, job_id in [("default", JOB_ID), ("acme", OTHER_ID)]:
        schema = schemas.find(target, job_id)
        assert schema is not None
        warn(schema, "Closed", "true", range(1, 3))

    assert [(w.job_id, w.count) for w in schemas.warnings] == [(JOB_ID, 2), (OTHER_ID, 2)]
    schemas.forget_warnings()
    assert schemas.warnings == ()


# What mutation testing asked for: each sentence, whole.


@pytest.mark.parametrize(
    ("type_number", "text", "message"),
    [
        pytest.param(
            wire.INTEGER,
            "9223372036854775808",
            "P takes an integer, not '9223372036854775808': "
            "it must lie between -9223372036854775808 and 9223372036854775807",
            id="integer-over-64-bits",
        ),
        pytest.param(
            wire.INTEGER,
            " 1",
            "P takes an integer, not ' 1': remove the white space around it",
            id="white-space-around-a-good-text",
        ),
        pytest.param(
            wire.INTEGER,
            " x",
            "P takes an integer, not ' x': write digits only, such as 1200",
            id="white-space-around-a-bad-text",
        ),
        pytest.param(
            wire.DECIMAL,
            "1,5",
            "P takes a decimal, not '1,5': write digits with a point, such as 12.50, "
            "no exponent and no thousands separators",
            id="decimal",
        ),
        pytest.param(
            wire.DATETIME,
            "31.1.2026",
            "P takes a datetime, not '31.1.2026': write 2026-01-31 or 2026-01-31T06:16:47Z",
            id="datetime",
        ),
        pytest.param(
            wire.DATETIME,
            "2026-02-30",
            "P takes a datetime, not '2026-02-30': there is no such day in the calendar",
            id="no-such-day",
        ),
        pytest.param(
            wire.STRING,
            "\ud800 ",
            r"P takes a text, not '\ud800 ': half of a surrogate pair can't be sent",
            id="half-a-pair",
        ),
        pytest.param(
            wire.INTEGER,
            "x" * 40,
            f"P takes an integer, not '{'x' * 40}': write digits only, such as 1200",
            id="as-long-as-is-quoted",
        ),
        pytest.param(
            wire.INTEGER,
            "x" * 41,
            f"P takes an integer, not '{'x' * 39}…': write digits only, such as 1200",
            id="longer-than-is-quoted",
        ),
    ],
)
def test_the_whole_message_of_a_wrong_text(type_number: int, text: str, message: str) -> None:
    [problem] = refused({"P": text}, one(type_number=type_number))

    assert problem.message == message


def test_an_empty_text_is_shown_as_one() -> None:
    [problem] = refused({"P": ""}, one(type_number=wire.INTEGER))

    assert (problem.expected, problem.got) == ("an integer", '""')


@pytest.mark.parametrize(
    ("nullable", "auto", "expected"),
    [
        pytest.param(False, False, "an integer", id="text"),
        pytest.param(True, False, "an integer or null", id="null"),
        pytest.param(False, True, "an integer or the auto value", id="auto"),
        pytest.param(True, True, "an integer, null or the auto value", id="all"),
    ],
)
def test_what_is_expected_names_every_form(nullable: bool, auto: bool, expected: str) -> None:
    [problem] = refused({"P": "x"}, one(type_number=wire.INTEGER, nullable=nullable, auto=auto))

    assert problem.expected == expected


def test_a_job_without_parameters_expects_none() -> None:
    [problem] = refused({"P": "1"}, Job(JOB_ID, "", ()))

    assert (problem.expected, problem.got) == ("no parameters", "P")


def test_eight_names_are_listed_whole_and_the_ninth_is_counted() -> None:
    eight, nine = (
        Job(JOB_ID, "J", tuple(JobParameter(f"P{n}", wire.INTEGER) for n in range(number)))
        for number in (8, 9)
    )
    names = "P0, P1, P2, P3, P4, P5, P6, P7"

    assert refused({"?": "1"}, eight)[0].expected == f"one of {names}"
    assert refused({"?": "1"}, nine)[0].expected == f"one of {names} and 1 more"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        pytest.param(
            "TradingDate",
            "2026-01-31T06:16:47",
            "a datetime without a zone means what DES takes it for; add Z or an offset",
            id="naive",
        ),
        pytest.param(
            "Legacy", "x", "the job declares no type; values are sent unchecked", id="no-type"
        ),
        pytest.param(
            "Closed", "x", "type 7 is not known; values are sent unchecked", id="unknown-type"
        ),
    ],
)
def test_the_whole_message_of_a_warning(name: str, value: str, message: str) -> None:
    schema = JobSchema(SALES)

    for number in (17, 18):
        parameters: dict[str, ParameterValue] = {"DBGenFrom": "1", name: value}
        schema.request(row(parameters, number=number), key="k", digest="", file=f"{number}.csv")

    [warning] = schema.warnings
    assert (warning.job_id, warning.parameter, warning.message) == (JOB_ID, name, message)
    assert (warning.count, warning.file, warning.line) == (2, "17.csv", 18)
    assert str(warning) == f"{name}: {message} (2 values, the first in 17.csv:18)"


@pytest.mark.parametrize(
    ("job_id", "target", "message"),
    [
        pytest.param(
            f"{JOB_ID[:-3]}000",
            "default",
            f"target default has no job {JOB_ID[:-3]}000: did you mean {JOB_ID}?",
            id="three-slips",
        ),
        pytest.param(
            f"{JOB_ID[:-4]}0000",
            "default",
            f"target default has no job {JOB_ID[:-4]}0000: its jobs are {JOB_ID} (Nightly sales)",
            id="four-slips",
        ),
        pytest.param(
            JOB_ID,
            "acme",
            f"target acme has no job {JOB_ID}: target default has it; name that target in the row",
            id="another-target",
        ),
        pytest.param(
            OTHER_ID,
            "acme",
            f"target acme has no job {OTHER_ID}: it has no jobs at all; "
            "see whether its token is for the right organisation",
            id="no-jobs",
        ),
    ],
)
def test_the_whole_message_of_an_unknown_job(job_id: str, target: str, message: str) -> None:
    schemas = Schemas()
    schemas.put("default", [SALES])
    schemas.put("acme", [])

    problem = schemas.unknown_job(row({}, job_id=job_id, target=target), file=FILE)

    jobs = f"{JOB_ID} (Nightly sales)" if target == "default" else ""
    assert problem == RowProblem(
        file=FILE,
        line=18,
        row=17,
        column="jobId",
        expected=f"a job of target {target}: {jobs}",
        got=job_id,
        message=message,
    )


def test_a_careful_request_is_as_complete_as_a_plain_one() -> None:
    assert sent({"DBGenFrom": AUTO, "DBGenTo": "0"}) == StartRequest(
        key="k",
        row=17,
        line=18,
        target="default",
        job_id=JOB_ID,
        digest=DIGEST,
        body=b'{"jobId":"43f87799-62c6-4001-92f9-6b3df816a6d6","parameters":{'
        b'"DBGenFrom":{"type":2,"valueStringEncoded":null,"useAutoValue":true},'
        b'"DBGenTo":{"type":2,"valueStringEncoded":"0"}}}',
        auto=True,
    )


@pytest.mark.parametrize(
    "parameters",
    [
        pytest.param({"DBGenFrom": "1"}, id="texts"),
        pytest.param({"DBGenFrom": TypedValue(2, "1"), "Price": "1.50"}, id="typed"),
        pytest.param({"DBGenFrom": TypedValue(None, "1")}, id="typed-without-type"),
        pytest.param({"DBGenFrom": "-1", "Shop": "Café 7"}, id="string"),
        pytest.param({"DBGenFrom": "1", "TradingDate": "2026-02-28"}, id="a-day-of-any-month"),
        pytest.param({"DBGenFrom": "1", "TradingDate": "2026-04-30"}, id="a-thirtieth"),
        pytest.param({"DBGenFrom": "1", "TradingDate": "2026-12-31"}, id="a-thirty-first"),
        pytest.param({"DBGenFrom": "1", "TradingDate": "2026-01-31T06:16:47Z"}, id="a-time"),
    ],
)
def test_plain_values_take_the_plain_path_every_time(
    parameters: dict[str, ParameterValue],
) -> None:
    schema, body = JobSchema(SALES), sent(parameters).body

    assert [schema._plain_body(parameters) for _ in range(3)] == [body] * 3


@pytest.mark.parametrize(
    "parameters",
    [
        pytest.param({"DBGenFrom": AUTO}, id="auto"),
        pytest.param({"DBGenFrom": TypedValue(3, "1")}, id="another-type"),
        pytest.param({"DBGenTo": "1"}, id="required-missing"),
        pytest.param({"DBGenFrom": "1", "Legacy": "x"}, id="no-type"),
        pytest.param({"DBGenFrom": "1", "?": "x"}, id="unknown-name"),
    ],
)
def test_what_needs_care_is_declined(parameters: dict[str, ParameterValue]) -> None:
    assert JobSchema(SALES)._plain_body(parameters) is None


def test_a_job_of_a_target_that_is_not_known_is_explained() -> None:
    problem = Schemas().unknown_job(row({}, target="acme"), file=FILE)

    assert problem.message == (
        f"target acme has no job {JOB_ID}: it has no jobs at all; "
        "see whether its token is for the right organisation"
    )


def test_what_another_type_is_held_against() -> None:
    [problem] = refused({"DBGenFrom": TypedValue(3, "1")})

    assert (problem.expected, problem.got) == ("type 2 (integer)", "type 3 (decimal)")


def test_a_value_of_an_unknown_type_is_a_text() -> None:
    [problem] = refused({"DBGenFrom": "1", "Closed": None})

    assert problem.expected == "a text"


def test_each_unknown_job_has_its_own_problem() -> None:
    schemas = Schemas()
    schemas.put("default", [SALES])
    schemas.put("acme", [SALES])
    places = [("default", OTHER_ID), ("acme", OTHER_ID), ("acme", f"{OTHER_ID[:-1]}0")]

    assert [unknown(schemas, job_id, target).message for target, job_id in places] == [
        f"target {target} has no job {job_id}: its jobs are {JOB_ID} (Nightly sales)"
        for target, job_id in places
    ]


def test_a_kinds_value_is_its_name() -> None:
    assert [kind.value for kind in WarningKind] == ["naive", "unchecked"]
