"""Rows against a job's schema: what is sent, what is refused, what is doubted."""

from __future__ import annotations

from calendar import monthrange
from datetime import datetime
from decimal import Decimal
from itertools import product
from typing import Any

import orjson
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from manifests import apart

from deslaunch.des import wire
from deslaunch.manifest.rows import Groups, dump_row, load_row
from deslaunch.manifest.schema import Schema, body_digest, compile_jobs, unknown_job
from deslaunch.model import (
    AUTO,
    CheckedRow,
    Job,
    JobParameter,
    JobRunParameterValue,
    Problem,
    Row,
)

JOB_ID = "43f87799-62c6-4001-92f9-6b3df816a6d6"
OTHER_ID = "9b3df816-0000-4000-8000-43f8779962c6"
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
    parameters: dict[str, Any],
    *,
    number: int = 17,
    job_id: str = JOB_ID,
    target: str = "default",
) -> Row:
    return apart(Row(number, number + 1, None, target, job_id, parameters))


def sent(parameters: dict[str, Any], job: Job = SALES) -> CheckedRow:
    checked = Schema(job).check(row(parameters), Groups(FILE))
    assert isinstance(checked, CheckedRow), checked
    return checked


def refused(parameters: dict[str, Any], job: Job = SALES) -> tuple[Problem, ...]:
    problems = Schema(job).check(row(parameters), Groups(FILE))
    assert not isinstance(problems, CheckedRow), problems
    return problems


def one(type_number: int | None, *, nullable: bool = False, auto: bool = False) -> Job:
    parameter = JobParameter("P", type_number, nullable=nullable, supports_auto=auto)
    return Job(JOB_ID, "Job", (parameter,))


def accepts(type_number: int, text: str) -> bool:
    return isinstance(Schema(one(type_number)).check(row({"P": text}), Groups(FILE)), CheckedRow)


# What is sent


def test_a_valid_row_becomes_one_complete_body() -> None:
    body = (
        b'{"jobId":"43f87799-62c6-4001-92f9-6b3df816a6d6","parameters":{'
        b'"DBGenFrom":{"type":2,"valueStringEncoded":"1200"},'
        b'"Shop":{"type":1,"valueStringEncoded":"Main"}}}'
    )

    assert sent({"DBGenFrom": "1200", "Shop": "Main"})[2:] == (
        body,
        body_digest(body),
        False,
        dump_row(row({"DBGenFrom": "1200", "Shop": "Main"})),
    )
    assert (body_digest(body).hex(), len(body_digest(body))) == (
        "b80895173846f32b96ae237d2f6bfb63",
        16,
    )


@pytest.mark.parametrize(
    ("name", "value", "encoded"),
    [
        pytest.param("DBGenTo", "-07", {"type": 2, "valueStringEncoded": "-07"}, id="as it came"),
        pytest.param("DBGenTo", "-0", {"type": 2, "valueStringEncoded": "-0"}, id="minus zero"),
        pytest.param("Price", "1.50", {"type": 3, "valueStringEncoded": "1.50"}, id="decimal"),
        pytest.param("TradingDate", None, {"type": 4, "valueStringEncoded": None}, id="null"),
        pytest.param(
            "DBGenFrom",
            AUTO,
            {"type": 2, "valueStringEncoded": None, "useAutoValue": True},
            id="auto",
        ),
        pytest.param("Shop", "", {"type": 1, "valueStringEncoded": ""}, id="empty string"),
        pytest.param("Shop", 'a"\\é😀', {"type": 1, "valueStringEncoded": 'a"\\é😀'}, id="escapes"),
        pytest.param(
            "DBGenTo",
            JobRunParameterValue(2, "5"),
            {"type": 2, "valueStringEncoded": "5"},
            id="typed as the schema",
        ),
        pytest.param(
            "DBGenTo",
            JobRunParameterValue(None, "5"),
            {"type": 2, "valueStringEncoded": "5"},
            id="typed without type takes the schema's",
        ),
        pytest.param(
            "TradingDate",
            JobRunParameterValue(4, None),
            {"type": 4, "valueStringEncoded": None},
            id="typed null",
        ),
        pytest.param(
            "DBGenFrom",
            JobRunParameterValue(2, AUTO),
            {"type": 2, "valueStringEncoded": None, "useAutoValue": True},
            id="typed auto",
        ),
        pytest.param("Closed", "x", {"type": 7, "valueStringEncoded": "x"}, id="unknown type"),
        pytest.param("Legacy", "x", {"valueStringEncoded": "x"}, id="undeclared type"),
        pytest.param(
            "Legacy",
            JobRunParameterValue(9, "x"),
            {"type": 9, "valueStringEncoded": "x"},
            id="undeclared type, from the row",
        ),
    ],
)
def test_a_value_is_encoded_with_the_schemas_type(
    name: str, value: Any, encoded: dict[str, object]
) -> None:
    checked = sent({"DBGenFrom": "1", name: value})

    assert orjson.loads(checked.body)["parameters"][name] == encoded
    assert checked.auto is bool(encoded.get("useAutoValue"))


def test_parameters_keep_the_rows_order() -> None:
    checked = sent({"Shop": "x", "DBGenTo": "2", "DBGenFrom": "1"})

    assert list(orjson.loads(checked.body)["parameters"]) == ["Shop", "DBGenTo", "DBGenFrom"]


utf8 = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
texts = {
    wire.STRING: utf8,
    wire.INTEGER: st.integers(-(2**63), 2**63 - 1).map(str),
    wire.DECIMAL: st.decimals(allow_nan=False, allow_infinity=False).map(lambda d: f"{d:f}"),
    wire.DATETIME: st.datetimes().map(lambda moment: f"{moment.isoformat()}Z"),
    5: utf8,
    None: utf8,
}


@st.composite
def jobs_and_values(draw: st.DrawFn) -> tuple[Job, dict[str, Any]]:
    """A job, and values of which each is valid for it: text, null, auto, bare or typed."""
    types = draw(st.dictionaries(utf8, st.sampled_from(list(texts)), max_size=6))
    parameters, values = [], {}

    for name, number in types.items():
        bare = draw(st.one_of(texts[number], st.none(), st.just(AUTO)))
        typed = st.builds(JobRunParameterValue, st.sampled_from([number, None]), st.just(bare))
        values[name] = draw(st.one_of(st.just(bare), typed))
        parameters.append(JobParameter(name, number, draw(st.booleans()), True, True))

    return Job(JOB_ID, draw(utf8), tuple(parameters)), values


@given(jobs_and_values())
def test_the_body_says_what_the_row_says_also_from_the_ledger(
    case: tuple[Job, dict[str, Any]],
) -> None:
    job, values = case
    types = {parameter.name: parameter.type for parameter in job.parameters}
    bare = {
        name: value.value if isinstance(value, JobRunParameterValue) else value
        for name, value in values.items()
    }
    _, key, body, digest, auto, says = sent(values, job)
    again = load_row(says, 17, 18, FILE)

    assert orjson.loads(body)["parameters"] == {
        name: wire.parameter_value(types[name], value) for name, value in bare.items()
    }
    assert auto is (AUTO in bare.values())
    assert isinstance(again, Row)
    assert Schema(job).check(again, Groups(FILE)) == (again, key, body, digest, auto, says)


# Types


@pytest.mark.parametrize(
    ("type_number", "text"),
    [
        pytest.param(wire.INTEGER, "-9223372036854775808", id="least integer"),
        pytest.param(wire.INTEGER, "9223372036854775807", id="greatest integer"),
        pytest.param(wire.INTEGER, "-0", id="minus zero"),
        pytest.param(wire.INTEGER, "0" * 5_000 + "7", id="more zeros than int() reads"),
        pytest.param(wire.DECIMAL, "12", id="decimal without point"),
        pytest.param(wire.DECIMAL, "-0.10", id="decimal with trailing zero"),
        pytest.param(wire.DECIMAL, "1" * 400 + "." + "2" * 400, id="long decimal"),
        pytest.param(wire.DATETIME, "2026-01-31", id="date"),
        pytest.param(wire.DATETIME, "2024-02-29", id="leap day"),
        pytest.param(wire.DATETIME, "0001-01-01T00:00:00Z", id="first datetime"),
        pytest.param(wire.DATETIME, "9999-12-31T23:59:59.999999999+14:00", id="last datetime"),
        pytest.param(wire.DATETIME, "2021-10-19T06:16:47", id="naive datetime"),
        pytest.param(wire.DATETIME, "2021-10-19T06:16:47.1-14:00", id="fraction and offset"),
        pytest.param(wire.DATETIME, "2021-10-19T06:16:47+05:59", id="offset of 59 minutes"),
        pytest.param(wire.STRING, "\x7f\u2028\ufffe", id="odd characters"),
        pytest.param(7, "1,5", id="unknown type number"),
    ],
)
def test_a_text_of_the_type_passes(type_number: int, text: str) -> None:
    assert accepts(type_number, text)


@pytest.mark.parametrize(
    ("type_number", "text", "advice"),
    [
        pytest.param(wire.INTEGER, "", "digits only", id="empty"),
        pytest.param(wire.INTEGER, "+5", "without the +", id="M6: plus"),
        pytest.param(wire.INTEGER, f"{2**63}", "and 9223372036854775807", id="over 64 bits"),
        pytest.param(wire.INTEGER, f"{-(2**63) - 1}", "n -9223372036854775808", id="under 64 bits"),
        pytest.param(wire.INTEGER, "1" * 5_000, "must be between", id="over 4300 digits"),
        pytest.param(wire.INTEGER, "12.0", "digits only", id="point"),
        pytest.param(wire.INTEGER, "1,200", "digits only", id="thousands separator"),
        pytest.param(wire.INTEGER, "1_200", "digits only", id="Python's separator"),
        pytest.param(wire.INTEGER, "1e3", "digits only", id="exponent"),
        pytest.param(wire.INTEGER, "٣", "U+0663 ARABIC-INDIC DIGIT THREE", id="arabic digit"),
        pytest.param(wire.INTEGER, "\u22125", "U+2212 MINUS SIGN", id="M14: minus sign"),
        pytest.param(wire.INTEGER, "--1", "digits only", id="two signs"),
        pytest.param(wire.INTEGER, " 12", "remove the white space", id="leading space"),
        pytest.param(wire.INTEGER, "12\n", "remove the white space", id="trailing newline"),
        pytest.param(wire.INTEGER, "1\u00a0200", "U+00A0 NO-BREAK SPACE", id="no-break space"),
        pytest.param(wire.DECIMAL, "1,5", "with a point", id="decimal comma"),
        pytest.param(wire.DECIMAL, "+1.5", "without the +", id="M6: decimal plus"),
        pytest.param(wire.DECIMAL, "1.5E3", "without exponent", id="decimal exponent"),
        pytest.param(wire.DECIMAL, ".5", "with a point", id="no leading digit"),
        pytest.param(wire.DECIMAL, "5.", "with a point", id="no trailing digit"),
        pytest.param(wire.DECIMAL, "NaN", "with a point", id="nan"),
        pytest.param(wire.DECIMAL, "1.5\n", "remove the white space", id="decimal newline"),
        pytest.param(wire.DATETIME, "31.01.2026", "write 2026-01-31", id="german date"),
        pytest.param(wire.DATETIME, "01/31/2026", "write 2026-01-31", id="american date"),
        pytest.param(wire.DATETIME, "20260131", "write 2026-01-31", id="basic form"),
        pytest.param(wire.DATETIME, "2026\u201101\u201131", "U+2011", id="M14: hyphen"),
        pytest.param(wire.DATETIME, "2026-01-31 06:16:47", "T06:16:47Z", id="space for T"),
        pytest.param(wire.DATETIME, "2026-01-31T06:16", "T06:16:47Z", id="no seconds"),
        pytest.param(wire.DATETIME, "2026-01-31T24:00:00", "00:00 of the next day", id="M15: 24"),
        pytest.param(wire.DATETIME, "2026-01-31T06:16:60Z", "leap second", id="M15: leap second"),
        pytest.param(wire.DATETIME, "2026-01-31T06:16:47+00", "+00:00", id="M15: offset of hours"),
        pytest.param(
            wire.DATETIME, "2026-01-31T06:16:47+23:59", "-14:00 and +14:00", id="M15: offset"
        ),
        pytest.param(
            wire.DATETIME, "2026-01-31T06:16:47-14:01", "-14:00 and +14:00", id="M15: by a minute"
        ),
        pytest.param(wire.DATETIME, "2026-01-31T06:16:47+01:60", "offset", id="60 minutes"),
        pytest.param(wire.DATETIME, "2026-01-31T25:00:00", "time does not exist", id="hour 25"),
        pytest.param(wire.DATETIME, "2026-01-31T23:60:00", "time does not exist", id="minute 60"),
        pytest.param(wire.DATETIME, "2026-01-31T23:00:61", "time does not exist", id="second 61"),
        pytest.param(wire.DATETIME, "2026-01-31Z", "write 2026-01-31", id="zone on a date"),
        pytest.param(wire.DATETIME, "2026-01-31T06:16:47+0100", "write", id="offset, no colon"),
        pytest.param(wire.DATETIME, "2026-01-31T06:16:47.Z", "write", id="empty fraction"),
        pytest.param(wire.DATETIME, "2026-01-31T06:16:47.1234567890Z", "write", id="ten digits"),
        pytest.param(wire.DATETIME, "2026-02-29", "day does not exist", id="no leap year"),
        pytest.param(wire.DATETIME, "2026-04-31T00:00:00Z", "day does not exist", id="31 April"),
        pytest.param(wire.DATETIME, "2026-13-01", "day does not exist", id="month 13"),
        pytest.param(wire.DATETIME, "0000-01-01", "day does not exist", id="year 0"),
    ],
)
def test_a_text_of_another_form_is_refused_with_advice(
    type_number: int, text: str, advice: str
) -> None:
    [problem] = refused({"P": text}, one(type_number))

    assert advice in problem.message
    assert problem.message.startswith("P must be ")
    assert problem.column == "P"
    assert str(problem).isprintable()
    orjson.dumps(problem._asdict())


@given(st.from_regex(r"-?[0-9]{1,22}", fullmatch=True) | st.integers().map(str))
def test_an_integer_is_valid_within_64_bits(text: str) -> None:
    assert accepts(wire.INTEGER, text) is (-(2**63) <= int(text) < 2**63)


@given(st.integers(-3, 3), st.sampled_from([-(2**63), 2**63, 10**18, -(10**18), 10**19]))
def test_an_integer_is_judged_rightly_near_every_edge(step: int, edge: int) -> None:
    number = edge + step

    assert accepts(wire.INTEGER, str(number)) is (-(2**63) <= number < 2**63)


@given(st.from_regex(r"-?[0-9]{1,40}(\.[0-9]{1,40})?", fullmatch=True))
def test_a_decimal_is_kept_to_the_digit(text: str) -> None:
    value = orjson.loads(sent({"P": text}, one(wire.DECIMAL)).body)["parameters"]["P"]

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
    st.sampled_from(["", "Z", "+00:00", "-05:30", "+14:00"]),
)


@pytest.mark.parametrize("year", [1900, 2000, 2024, 2026])
def test_every_day_of_a_year_is_valid_and_no_other(year: int) -> None:
    for month, day in product(range(14), range(33)):
        exists = 1 <= month <= 12 and 1 <= day <= monthrange(year, month)[1]
        assert accepts(wire.DATETIME, f"{year}-{month:02}-{day:02}") is exists, (month, day)


@given(dates, st.just("") | times)
def test_a_datetime_is_valid_where_the_calendar_has_it(day: str, time: str) -> None:
    try:
        datetime.fromisoformat(day + time)
    except ValueError:
        assert not accepts(wire.DATETIME, day + time)
    else:
        assert accepts(wire.DATETIME, day + time)


@given(st.datetimes(timezones=st.none() | st.timezones()))
def test_every_datetime_that_python_prints_is_valid(moment: datetime) -> None:
    offset = moment.utcoffset()
    assume(offset is None or (offset.total_seconds() % 60 == 0 and abs(offset.days) < 2))
    assume(offset is None or abs(offset.total_seconds()) <= 14 * 3600)

    assert accepts(wire.DATETIME, moment.isoformat())


@given(st.sampled_from([1, 2, 3, 4, 5]), utf8)
def test_any_text_is_sent_or_explained(type_number: int, text: str) -> None:
    result = Schema(one(type_number)).check(row({"P": text}), Groups(FILE))

    if isinstance(result, CheckedRow):
        assert orjson.loads(result.body)["parameters"]["P"]["valueStringEncoded"] == text
    else:
        assert len(result) == 1
        orjson.dumps(result[0]._asdict())


# What is refused


def test_every_problem_of_a_row_is_reported() -> None:
    problems = refused({"DBGenTo": "x", "Price": None, "Shop": AUTO, "shop2": "y"})
    names = "one of DBGenFrom, DBGenTo, TradingDate, Price, Shop, Closed, Legacy"

    assert [(p.file, p.line, p.row, p.column, p.expected, p.got) for p in problems] == [
        (FILE, 18, 17, "DBGenFrom", "an integer or the auto value", "nothing"),
        (FILE, 18, 17, "DBGenTo", "an integer", "x"),
        (FILE, 18, 17, "Price", "a decimal", "null"),
        (FILE, 18, 17, "Shop", "a string", "auto value"),
        (FILE, 18, 17, "shop2", names, "shop2"),
    ]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        pytest.param(
            {},
            "DBGenFrom is required and missing; set it to an integer or the auto value",
            id="missing",
        ),
        pytest.param(
            {"DBGenFrom": None},
            "DBGenFrom can't be null; set it to an integer or the auto value",
            id="null where required",
        ),
        pytest.param(
            {"DBGenFrom": "1", "DBGenTo": JobRunParameterValue(None, None)},
            "DBGenTo can't be null; set it to an integer, or leave it out",
            id="null where optional",
        ),
        pytest.param(
            {"DBGenFrom": "1", "TradingDate": AUTO},
            "TradingDate can't be the auto value; set it to a datetime or null, or leave it out",
            id="auto",
        ),
        pytest.param(
            {"DBGenFrom": JobRunParameterValue(3, "1")},
            "DBGenFrom declares type 3 (decimal), but the job takes type 2 (integer); "
            "leave the type out",
            id="another type",
        ),
        pytest.param(
            {"DBGenFrom": JobRunParameterValue(8, AUTO)},
            "DBGenFrom declares type 8, but the job takes type 2 (integer); leave the type out",
            id="another type on an auto value",
        ),
        pytest.param(
            {"DBGenFrom": "1", "Closed": JobRunParameterValue(1, "x")},
            "Closed declares type 1 (string), but the job takes type 7; leave the type out",
            id="another type than an unknown one",
        ),
        pytest.param(
            {"DBGenFrom": JobRunParameterValue(2, "12x")},
            "DBGenFrom must be an integer, not '12x'; write digits only, such as 1200",
            id="wrong text in a typed value",
        ),
        pytest.param(
            {"DBGenFrom": "1", "dbgento": "2"},
            "job 'Nightly sales' has no parameter 'dbgento': did you mean DBGenTo?",
            id="another case",
        ),
        pytest.param(
            {"DBGenFrom": "1", "Trading Date ": "2026-01-31"},
            "job 'Nightly sales' has no parameter 'Trading Date ': did you mean TradingDate?",
            id="near miss",
        ),
        pytest.param(
            {"DBGenFrom": "1", "zzz": "2"},
            "job 'Nightly sales' has no parameter 'zzz': its parameters are DBGenFrom, DBGenTo, "
            "TradingDate, Price, Shop, Closed, Legacy; to keep it as a note, name the "
            "column 'deslaunch.zzz'",
            id="far miss",
        ),
    ],
)
def test_a_problem_says_what_is_wrong_and_what_to_do(
    parameters: dict[str, Any], message: str
) -> None:
    [problem] = refused(parameters)

    assert problem.message == message


@pytest.mark.parametrize(
    ("name", "meant"),
    [("Key", "key"), ("key ", "key"), ("KEY", "key"), ("JobId", "jobId"), ("Target", "target")],
)
def test_a_column_like_a_reserved_one_is_meant_as_such(name: str, meant: str) -> None:  # M9
    job = Job(JOB_ID, "", (JobParameter("Keys", 1), JobParameter("Targets", 1)))
    [problem] = refused({name: "x"}, job)

    assert f"did you mean {meant}?" in problem.message
    assert "deslaunch." not in problem.message
    assert sent({name: "x"}, Job(JOB_ID, "", (JobParameter(name, 1),)))


def test_null_counts_as_given_where_required() -> None:
    job = Job(JOB_ID, "", (JobParameter("P", wire.STRING, required=True, nullable=True),))

    assert orjson.loads(sent({"P": None}, job).body)["parameters"] == {
        "P": wire.parameter_value(wire.STRING, None)
    }
    assert [p.column for p in refused({}, job)] == ["P"]


def test_a_job_without_parameters_names_none() -> None:
    job = Job(JOB_ID, "", ())
    [problem] = refused({"P": "1"}, job)

    advice = "it has none; to keep it as a note, name the column 'deslaunch.P'"
    assert problem.message == f"job {JOB_ID} has no parameter 'P': {advice}"
    assert problem.expected == "no parameters"
    assert orjson.loads(sent({}, job).body) == {"jobId": JOB_ID, "parameters": {}}


def test_long_values_and_long_lists_are_cut() -> None:
    many = tuple(JobParameter(f"P{n}", wire.INTEGER) for n in range(20))
    long, unknown = refused({"P0": "x" * 5_000, "?": "1"}, Job(JOB_ID, "J", many))
    [few] = refused({"?": "1"}, Job(JOB_ID, "J", many[:8]))

    assert (len(long.got), len(long.message) < 200) == (120, True)
    assert "P5, P6, P7 and 12 more; " in unknown.message
    assert "P5, P6, P7; " in few.message


@pytest.mark.parametrize(
    ("name", "told"),
    [
        pytest.param("DBGen\nFrom", r"DBGen\nFrom", id="line break"),
        pytest.param("\x1b[2JDBGenFrom", r"\x1b[2JDBGenFrom", id="terminal escape"),
        pytest.param(r"DBGen\From", r"DBGen\From", id="backslash"),
    ],
)
def test_a_name_cannot_break_the_line_that_tells_of_it(name: str, told: str) -> None:  # M17
    [_, problem] = refused({name: "1"})

    assert (problem.column, problem.got) == (told, told)
    assert str(problem).isprintable()


def test_names_from_des_cannot_speak_to_a_terminal_either() -> None:  # M17
    job = Job(JOB_ID, "\x1b[2J", (JobParameter("\x1b[1mP", wire.INTEGER, required=True),))

    assert all(str(problem).isprintable() for problem in refused({"x": "1"}, job))


# Groups


def warned(name: str, value: Any, numbers: range) -> list[str]:
    warnings, schema = Groups(FILE), Schema(SALES)

    for number in numbers:
        parameters = {"DBGenFrom": "1", name: value}
        schema.check(row(parameters, number=number), warnings)

    return [str(warning) for warning in warnings]


def test_ten_thousand_naive_datetimes_are_one_warning() -> None:
    (warning,) = warned("TradingDate", "2026-01-31T06:16:47", range(5, 10_005))

    assert warning == (
        "night.csv:6, column TradingDate (10,000 rows): the datetime has no time zone, so "
        "DES chooses one; add Z or an offset"
    )


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        pytest.param("Closed", "x", "type 7 is unknown; values are sent unchecked", id="number"),
        pytest.param(
            "Legacy", "x", "the job declares no type; values are sent unchecked", id="none"
        ),
        pytest.param(
            "Legacy",
            JobRunParameterValue(2, "x"),
            "the job declares no type; values are sent unchecked",
            id="none, but the row says one",
        ),
        pytest.param(
            "TradingDate", "2026-01-31T06:16:47.1234", "the datetime has no time zone", id="naive"
        ),
    ],
)
def test_a_doubtful_parameter_is_one_warning(name: str, value: Any, message: str) -> None:
    (warning,) = warned(name, value, range(1, 4))

    assert warning.startswith(f"night.csv:2, column {name} (3 rows): {message}")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("TradingDate", "2026-01-31", id="date"),
        pytest.param("TradingDate", "0999-01-01T00:00:00-11:00", id="offset"),
        pytest.param("TradingDate", "2026-01-31T00:00:00.5Z", id="utc"),
        pytest.param("TradingDate", None, id="null"),
        pytest.param("Shop", "2026-01-31T06:16:47", id="string that looks like one"),
    ],
)
def test_what_is_sure_is_not_warned_of(name: str, value: Any) -> None:
    assert warned(name, value, range(1, 4)) == []


# Jobs


@pytest.mark.parametrize(
    ("job_id", "target", "advice"),
    [
        pytest.param(
            JOB_ID[:-1] + "7", "default", f"did you mean {JOB_ID}?", id="a digit mistyped"
        ),
        pytest.param(
            "111" + JOB_ID[3:], "default", f"did you mean {JOB_ID}?", id="three digits mistyped"
        ),
        pytest.param(
            OTHER_ID, "default", "target acme has it; name that target in the row", id="elsewhere"
        ),
        pytest.param(
            "0" * 8 + JOB_ID[8:],
            "default",
            f"its jobs are {JOB_ID} (Nightly sales)",
            id="unlike any",
        ),
        pytest.param(
            JOB_ID[:-1] + "7",
            "empty",
            "it has no jobs; check that its token is for the right organisation",
            id="no jobs",
        ),
    ],
)
def test_an_unknown_job_is_explained(job_id: str, target: str, advice: str) -> None:
    targets = {
        "default": compile_jobs([SALES]),
        "acme": compile_jobs([Job(OTHER_ID, "Other", ())]),
        "empty": compile_jobs([]),
    }
    jobs = {"default": f"{JOB_ID} (Nightly sales)", "empty": ""}[target]
    expected = f"a job of target {target}: {jobs}"
    message = f"target {target} has no job {job_id}: {advice}"

    assert unknown_job(row({}, job_id=job_id, target=target), targets, FILE) == (
        Problem(FILE, 18, 17, "jobId", expected, job_id, message),
    )


def test_a_parameter_of_another_job_tells_of_a_wrong_job() -> None:
    stock = Job("0" * 35 + "1", "Stock", (JobParameter("DBGenFrm", wire.INTEGER),))
    told = []

    for jobs in ([SALES, stock], [SALES]):
        found = compile_jobs(jobs)[JOB_ID].check(
            row({"DBGenFrom": "1", "DBGenFrm": "2"}), Groups(FILE)
        )
        assert not isinstance(found, CheckedRow)
        told.append(found[0].message.partition("'DBGenFrm': ")[2])

    assert told == [
        "'Stock' has it; check the row's jobId or --job-id",
        "did you mean DBGenFrom?",
    ]


def test_a_stored_row_is_checked_by_a_job_that_changed() -> None:
    says = dump_row(row({"DBGenFrom": "1"}))
    changed = Job(JOB_ID, "", (JobParameter("DBGenFrom", wire.DATETIME),))
    again = load_row(says, 17, 18, FILE)

    assert isinstance(again, Row)
    assert isinstance(Schema(SALES).check(again, Groups(FILE)), CheckedRow)
    assert not isinstance(Schema(changed).check(again, Groups(FILE)), CheckedRow)
