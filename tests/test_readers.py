"""What lines say is what their rows say, to the digit, in either format."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from deslaunch.keys import row_digest
from deslaunch.model import AUTO, GOT_LIMIT, Row, RowProblem, TypedValue
from deslaunch.readers import MAX_HEADER_FAULTS, MAX_LINE, CsvReader, JsonlReader
from deslaunch.rows import MAX_TARGET, RowDefaults

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deslaunch.model import Format, ParameterValue
    from deslaunch.readers import RowReader
    from deslaunch.rows import Item

JOB = "43f87799-62c6-4001-92f9-6b3df816a6d6"
OTHER_JOB = "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee"


def read(format_: Format, content: bytes | str, **defaults: str) -> tuple[RowReader, list[Item]]:
    """Return a reader that has read all of a content, and what it gave."""
    reader = (CsvReader if format_ == "csv" else JsonlReader)("night", RowDefaults(**defaults))
    raw = content.encode() if isinstance(content, str) else content
    return reader, list(reader.items([io.BytesIO(raw).readlines()]))


def items_of(format_: Format, content: bytes | str, **defaults: str) -> list[Item]:
    _, items = read(format_, content, **defaults)
    return items


def problems_of(format_: Format, content: bytes | str, **defaults: str) -> list[RowProblem]:
    items = items_of(format_, content, **defaults)
    return [problem for item in items if not isinstance(item, Row) for problem in item]


def only_row(items: list[Item]) -> Row:
    (item,) = items
    assert isinstance(item, Row), item
    return item


# What rows say


def jsonl_parameters(parameters: str) -> Mapping[str, ParameterValue]:
    """Return the parameters of a row that is written without a needless blank."""
    line = f'{{"jobId":"{JOB}","parameters":{parameters}}}'
    return only_row(items_of("jsonl", line)).parameters


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        pytest.param('"2026-01-31"', "2026-01-31", id="string"),
        pytest.param('""', "", id="empty string"),
        pytest.param('"a\\u00e9\\n\\"\\\\"', 'aé\n"\\', id="escapes"),
        pytest.param('"\\ud83d\\ude00"', "😀", id="surrogate pair"),
        pytest.param("123", "123", id="integer"),
        pytest.param("-0", "0", id="minus zero"),
        pytest.param("18446744073709551616", "18446744073709551616", id="over 64 bits"),
        pytest.param("9" * 5000, "9" * 5000, id="more digits than int() takes"),
        pytest.param("1.50", "1.50", id="decimal"),
        pytest.param("0.1000000000000000055511", "0.1000000000000000055511", id="long decimal"),
        pytest.param("1E400", "1E400", id="over a float"),
        pytest.param("-0.0", "-0.0", id="minus zero, decimal"),
        pytest.param("true", "true", id="true"),
        pytest.param("false", "false", id="false"),
        pytest.param("null", None, id="null"),
        pytest.param('{"auto": true}', AUTO, id="auto"),
        pytest.param(
            '{"type": 2, "valueStringEncoded": "5"}', TypedValue(2, "5"), id="typed integer"
        ),
        pytest.param(
            '{"type": null, "valueStringEncoded": null}', TypedValue(None, None), id="typed null"
        ),
        pytest.param(
            '{"type": 4, "useAutoValue": true, "valueStringEncoded": null}',
            TypedValue(4, AUTO),
            id="typed auto",
        ),
        pytest.param('{"useAutoValue": true}', TypedValue(None, AUTO), id="useAutoValue alone"),
    ],
)
def test_jsonl_value(written: str, expected: ParameterValue) -> None:
    assert jsonl_parameters(f'{{"a": {written}}}') == {"a": expected}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        pytest.param("", {}, id="empty: left out"),
        pytest.param('""', {}, id="quoted empty: left out"),
        pytest.param("\\N", {"a": None}, id="null"),
        pytest.param("\\A", {"a": AUTO}, id="auto"),
        pytest.param("\\E", {"a": ""}, id="empty string"),
        pytest.param("\\\\N", {"a": "\\N"}, id="literal backslash first"),
        pytest.param("\\\\", {"a": "\\"}, id="a backslash"),
        pytest.param("a\\N", {"a": "a\\N"}, id="backslash inside"),
        pytest.param(" 5 ", {"a": " 5 "}, id="blanks are data"),
        pytest.param("1.50", {"a": "1.50"}, id="decimal"),
        pytest.param('"1,5 ""x""\r\ny"', {"a": '1,5 "x"\r\ny'}, id="quoted"),
        pytest.param('"a\rb"', {"a": "a\rb"}, id="quoted carriage return"),
    ],
)
def test_csv_cell(written: str, expected: dict[str, ParameterValue]) -> None:
    row = only_row(items_of("csv", f"jobId,a\n{JOB},{written}\n"))

    assert row.parameters == expected


def test_both_formats_read_all_fields() -> None:
    expected = Row(1, 1, "k", "acme", JOB, {"a": "1"})
    line = json.dumps(
        {"key": "k", "target": "acme", "jobId": JOB.upper(), "parameters": {"a": "1"}}
    )
    table = f"a,target,jobId,key\n1,acme,{JOB.upper()},k\n"

    assert items_of("jsonl", line) == [expected]
    assert items_of("csv", table) == [expected._replace(line=2)]


@pytest.mark.parametrize(
    ("format_", "content"),
    [pytest.param("jsonl", "{}\n", id="jsonl"), pytest.param("csv", "target,jobId\n,\n", id="csv")],
)
@pytest.mark.parametrize(
    ("defaults", "target"),
    [
        pytest.param({"job_id": JOB.upper(), "target": "acme"}, "acme", id="target given"),
        pytest.param({"job_id": JOB}, "default", id="no target"),
    ],
)
def test_defaults_fill_what_a_row_leaves_out(
    format_: Format, content: str, defaults: dict[str, str], target: str
) -> None:
    row = only_row(items_of(format_, content, **defaults))

    assert (row.key, row.target, row.job_id, row.parameters) == (None, target, JOB, {})


def test_rows_win_over_defaults() -> None:
    table = f"target,jobId\nbistro,{JOB}\n"

    row = only_row(items_of("csv", table, job_id=OTHER_JOB, target="acme"))

    assert (row.target, row.job_id) == ("bistro", JOB)


def test_csv_columns() -> None:
    table = (
        "jobId,parameters.jobId,parameters.parameters.x,parameters.deslaunch.y,deslaunch.note,"
        f"deslaunch.note,z\n{JOB},1,2,3,started,started,4\n"
    )

    row = only_row(items_of("csv", table))

    assert row.parameters == {"jobId": "1", "parameters.x": "2", "deslaunch.y": "3", "z": "4"}


def test_a_row_that_was_sent_by_any_of_its_columns_is_refused() -> None:
    table = f"jobId,deslaunch.state,deslaunch.state\n{JOB},failed,unknown\n{JOB},failed,\n"

    refused, row = items_of("csv", table)

    assert not isinstance(refused, Row)
    assert isinstance(row, Row)
    assert [problem.got for problem in refused] == ["unknown"]


def test_lines_are_physical() -> None:
    table = f'\r\n\njobId,a\r\n\n{JOB},"1\r\n\n2"\n\n   \n{JOB},2\r\n{JOB},3'
    lines = f'\n{{"jobId": "{JOB}"}}\r\n \t\n\n{{"jobId": "{JOB}"}}'

    assert [(i.number, i.line) for i in items_of("csv", table) if isinstance(i, Row)] == [
        *((1, 5), (2, 10), (3, 11)),
    ]
    assert [(i.number, i.line) for i in items_of("jsonl", lines) if isinstance(i, Row)] == [
        (1, 2),
        (2, 5),
    ]


# What is wrong with them


def jsonl_with(members: str) -> str:
    return f'{{"jobId": "{JOB}", {members}}}'


@pytest.mark.parametrize(
    ("line", "column", "says"),
    [
        pytest.param("[1]", "", "one object", id="a list"),
        pytest.param('"x"', "", "one object", id="a string"),
        pytest.param("{", "", "no JSON", id="cut off"),
        pytest.param('{"key": "a', "", "Unterminated", id="open string"),
        pytest.param("{} {}", "", "Extra data", id="two objects in a line"),
        pytest.param("{}", "jobId", "--job-id", id="no job"),
        pytest.param('{"jobId": ""}', "jobId", "GUID", id="jobId empty"),
        pytest.param('{"jobId": null}', "jobId", "GUID", id="jobId null"),
        pytest.param('{"jobId": "43f87799"}', "jobId", "GUID", id="jobId no GUID"),
        pytest.param(f'{{"jobId": "{JOB} "}}', "jobId", f"not '{JOB} ';", id="jobId and a blank"),
        pytest.param('{"jobId": 7}', "jobId", "not '7';", id="jobId a number"),
        pytest.param(jsonl_with('"key": ""'), "key", "not empty", id="key empty"),
        pytest.param(jsonl_with('"key": 5'), "key", "string", id="key a number"),
        pytest.param(jsonl_with('"key": "a~2"'), "key", "~", id="key with ~"),
        pytest.param(jsonl_with('"key": "a\\tb"'), "key", "control", id="key with a tab"),
        pytest.param(jsonl_with('"key": "a\\u0085"'), "key", "control", id="key with a C1 control"),
        pytest.param(jsonl_with('"key": "\\ud800"'), "key", "control", id="key with a surrogate"),
        pytest.param(jsonl_with(f'"key": "{"k" * 257}"'), "key", "256", id="key too long"),
        pytest.param(jsonl_with('"target": ""'), "target", "not empty", id="target empty"),
        pytest.param(jsonl_with(f'"target": "{"t" * 129}"'), "target", "128", id="target too long"),
        pytest.param(jsonl_with('"parameters": null'), "parameters", "object", id="no parameters"),
        pytest.param(jsonl_with('"parameters": [1]'), "parameters", "object", id="parameters list"),
        pytest.param(jsonl_with('"params": {}'), "params", "mean parameters", id="near miss"),
        pytest.param(jsonl_with('"DBGenTo": 5'), "DBGenTo", '"parameters"', id="parameter astray"),
        pytest.param(
            jsonl_with('"deslaunch.state": "x"'), "deslaunch.state", "no such", id="results column"
        ),
        pytest.param(
            jsonl_with('"key": "a", "key": "b"'), "key", "twice", id="key of the row twice"
        ),
        pytest.param(jsonl_with('"parameters": {"": 1}'), "", "not empty", id="parameter unnamed"),
        pytest.param(
            jsonl_with('"parameters": {"a": 1, "a": 1}'), "a", "twice", id="parameter twice"
        ),
        pytest.param(
            jsonl_with('"parameters": {"a": {"auto": true, "auto": true}}'),
            "auto",
            "twice",
            id="auto twice",
        ),
        pytest.param(
            jsonl_with('"parameters": {"\\u0000": 1}'), "\\x00", "NUL", id="nul in a name"
        ),
    ],
)
def test_jsonl_problem(line: str, column: str, says: str) -> None:
    problems = problems_of("jsonl", f"\n{line}\n" + jsonl_with('"key": "k"'))

    assert [(p.column, p.row, p.line) for p in problems] == [(column, 1, 2)]
    assert says in problems[0].message
    assert problems[0].file == "night"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        pytest.param("[1]", "no parameter value", id="list"),
        pytest.param("NaN", "NaN", id="nan"),
        pytest.param("-Infinity", "Infinity", id="infinity"),
        pytest.param('"\\u0000"', "NUL", id="nul"),
        pytest.param('"\\ud800"', "lone surrogate", id="lone surrogate"),
        pytest.param("{}", "valueStringEncoded is missing", id="empty object"),
        pytest.param('{"auto": false}', '{"auto": true}', id="auto false"),
        pytest.param('{"auto": 1}', '{"auto": true}', id="auto a number"),
        pytest.param('{"auto": true, "type": 2}', '{"auto": true}', id="auto and type"),
        pytest.param('{"value": "5"}', "valueStringEncoded", id="unknown member"),
        pytest.param('{"type": 2}', "is missing", id="no value"),
        pytest.param('{"type": "2", "valueStringEncoded": "5"}', "type is", id="type a string"),
        pytest.param('{"type": 2.0, "valueStringEncoded": "5"}', "type is", id="type a decimal"),
        pytest.param('{"type": true, "valueStringEncoded": "5"}', "type is", id="type a bool"),
        pytest.param('{"type": 2, "valueStringEncoded": 5}', "quote it", id="value a number"),
        pytest.param(
            '{"valueStringEncoded": null, "useAutoValue": 1}', "true or false", id="auto no bool"
        ),
        pytest.param(
            '{"valueStringEncoded": "5", "useAutoValue": true}', "must be null", id="auto and text"
        ),
        pytest.param('{"useAutoValue": false}', "is missing", id="neither auto nor a value"),
    ],
)
def test_jsonl_value_problem(value: str, says: str) -> None:
    (problem,) = problems_of("jsonl", jsonl_with(f'"parameters": {{"a": {value}, "b": 1}}'))

    assert (problem.column, problem.row, problem.line) == ("a", 1, 1)
    assert says in problem.message
    orjson.dumps(problem.as_dict())


@pytest.mark.parametrize(
    ("cells", "column", "says"),
    [
        pytest.param(f"{JOB},k,t", "", "3 cells", id="a cell too few"),
        pytest.param(f"{JOB},k,t,1,2", "", "5 cells", id="a cell too many"),
        pytest.param(f"{JOB},k,t,\\n", "a", "\\N (null)", id="no such escape"),
        pytest.param(f"{JOB},k,t,\\Nx", "a", "double it", id="more after an escape"),
        pytest.param(f"{JOB},\\N,t,1", "key", "no escape", id="key null"),
        pytest.param(f"{JOB},\\\\k,t,1", "key", "no escape", id="key escaped"),
        pytest.param(f"{JOB},k,\\E,1", "target", "no escape", id="target empty"),
        pytest.param("\\N,k,t,1", "jobId", "GUID", id="jobId null"),
        pytest.param(",k,t,1", "jobId", "--job-id", id="no job"),
        pytest.param(f"{JOB},a~2,t,1", "key", "~", id="key with ~"),
        pytest.param(f'{JOB},"a\nb",t,1', "key", "control", id="key with a newline"),
        pytest.param(f'{JOB},k,t,5" pipe', "", "quote the whole cell", id="bare quote"),
        pytest.param(f'{JOB},k,t, "5"', "", "quote the whole cell", id="blank before a quote"),
        pytest.param(f"{JOB},k,t,a\0b", "", "NUL", id="nul"),
    ],
)
def test_csv_problem(cells: str, column: str, says: str) -> None:
    good = f"{JOB},k2,t,1"
    items = items_of("csv", f"jobId,key,target,a\n\n{cells}\n{good}\n")

    bad, row = items
    assert isinstance(row, Row)
    assert not isinstance(bad, Row)
    assert [(p.column, p.row, p.line) for p in bad] == [(column, 1, 3)]
    assert says in bad[0].message


def test_every_problem_of_a_row_is_told() -> None:
    line = (
        '{"jobid": "x", "key": "~", "target": "", '
        '"parameters": {"a": [], "b": NaN, "c": 1, "c": 2}}'
    )
    table = "key,target,jobId,a,b\n~,\\N,zz,\\x,\\y\n"

    assert [p.column for p in problems_of("jsonl", line)] == [
        *("c", "jobid", "key", "target", "jobId", "a", "b"),
    ]
    assert sorted(p.column for p in problems_of("csv", table)) == [
        *("a", "b", "jobId", "key", "target"),
    ]


@pytest.mark.parametrize(
    ("header", "column", "says"),
    [
        pytest.param("jobId,a,a", "a", "twice", id="parameter twice"),
        pytest.param("jobId,a,parameters.a", "parameters.a", "twice", id="twice by its long name"),
        pytest.param("jobId,jobId", "jobId", "twice", id="jobId twice"),
        pytest.param("jobId,,a", "", "column 2 has no name", id="unnamed"),
        pytest.param("jobId,parameters.", "", "column 2 has no name", id="nothing but the prefix"),
        pytest.param("jobId;a", "", "';'", id="semicolons"),
        pytest.param("jobId\ta", "", "'\\t'", id="tabs"),
        pytest.param('jobId,a"b', "", "quote the whole cell", id="bare quote"),
        pytest.param("jobId,a\0", "", "NUL", id="nul"),
        pytest.param('jobId,"a', "", "never closed", id="open quote"),
        pytest.param('jobId,"a"b', "", "mend its quotes", id="text after a quote"),
        pytest.param("jobId,a\r1,2\r", "", "bare \\r", id="old Mac"),
        pytest.param("", "", "no header", id="empty file"),
        pytest.param(" \n\r\n".replace(" ", ""), "", "no header", id="blank lines only"),
    ],
)
def test_bad_header_is_a_problem_of_the_file(header: str, column: str, says: str) -> None:
    reader, items = read("csv", header)
    (item,) = items

    assert not isinstance(item, Row)
    (problem,) = item
    assert (problem.row, problem.column) == (0, column)
    assert says in problem.message
    assert (reader.number, reader.whole) == (0, False)


def test_a_header_of_commas_alone_has_no_million_problems() -> None:
    reader, items = read("csv", "key" + "," * 5_000 + "\n")

    (problems,) = items
    assert (len(problems), reader.whole) == (MAX_HEADER_FAULTS, False)


def test_every_problem_of_a_header_is_told() -> None:
    problems = problems_of("csv", f"a,,a,key,key\n1,2,3,4,{JOB}\n")

    assert [(p.column, p.row) for p in problems] == [("", 0), ("a", 0), ("key", 0)]


@pytest.mark.parametrize("name", ["jobid", "JobID", "job_id", "job-id", "Job Id"])
def test_a_column_like_jobid_is_a_parameter_but_suspected(name: str) -> None:
    table = f"{name}\n{JOB}\n"
    (problem,) = problems_of("csv", table)

    assert f"did you mean jobId by the column {name}" in problem.message
    assert only_row(items_of("csv", table, job_id=JOB)).parameters == {name: JOB}


def test_open_quote_ends_the_reading_at_its_row() -> None:
    reader, items = read("csv", f'jobId,a\n{JOB},1\n\n{JOB},"2\n{JOB},3\n')
    row, problems = items

    assert isinstance(row, Row)
    assert not isinstance(problems, Row)
    assert [(p.row, p.line) for p in problems] == [(2, 4)]
    assert "never closed" in problems[0].message
    assert (reader.number, reader.whole) == (2, False)


@pytest.mark.parametrize(
    ("format_", "content", "byte", "line"),
    [
        pytest.param("jsonl", b'\n{"key": "\xff"}\n', 10, 2, id="jsonl"),
        pytest.param("csv", b"key,a\nk,\xff\n", 3, 2, id="csv"),
        pytest.param("csv", b'key,a\nk,"1\n2\xff"\n', 2, 3, id="second line of a record"),
    ],
)
def test_undecodable_bytes(format_: Format, content: bytes, byte: int, line: int) -> None:
    good = {"jsonl": b"{}\n", "csv": b"k,1\n"}[format_]
    bad, row = items_of(format_, content + good, job_id=JOB)

    assert isinstance(row, Row)
    assert not isinstance(bad, Row)
    assert [(p.row, p.line) for p in bad] == [(1, 2)]
    assert f"byte {byte} of line {line} is not UTF-8" in bad[0].message


# Limits


def test_the_longest_line_is_read() -> None:
    frame = len(jsonl_with('"parameters": {"a": ""}')) + 1
    line = jsonl_with(f'"parameters": {{"a": "{"x" * (MAX_LINE - frame)}"}}') + "\n"

    assert len(line) == MAX_LINE
    assert only_row(items_of("jsonl", line)).number == 1
    assert len(problems_of("jsonl", " " + line)) == 1


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("[" * 300 + "]" * 300, id="deeper than orjson writes"),
        pytest.param("[" * 900 + "]" * 900, id="deeper than a repr likes"),
        pytest.param("[" * 400_000 + "]" * 400_000, id="deeper than any stack"),
        pytest.param('{"a":' * 100_000 + "1" + "}" * 100_000, id="objects"),
    ],
)
def test_deep_nesting_is_a_problem(value: str) -> None:
    (problem,) = problems_of("jsonl", jsonl_with(f'"parameters": {{"a": {value}}}'))

    assert problem.column in {"a", ""}
    assert len(problem.got) <= GOT_LIMIT


def test_a_csv_may_be_longer_than_its_records() -> None:
    table = f"jobId,a\n{JOB},{'x' * 100_000}\n" + f"{JOB},{'x' * 100_000}\n" * 11

    assert len(table) > MAX_LINE
    assert [isinstance(item, Row) for item in items_of("csv", table)] == [True] * 12


# Properties


names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
value_texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
key_texts = st.text(st.characters(exclude_categories=["C"], exclude_characters="~\\"), min_size=1)
cell_values = st.one_of(value_texts, st.none(), st.just(AUTO))


@st.composite
def said_rows(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Draw what rows say: each some of the same parameters."""
    parameters = draw(st.lists(names, unique=True, max_size=4))
    row = st.fixed_dictionaries(
        {"jobId": st.sampled_from([JOB, OTHER_JOB, JOB.upper()])},
        optional={
            "key": key_texts,
            "target": key_texts.filter(lambda text: len(text) <= MAX_TARGET),
            "parameters": st.fixed_dictionaries(
                {}, optional=dict.fromkeys(parameters, cell_values)
            ),
        },
    )
    return draw(st.lists(row, max_size=5))


def as_jsonl(rows: list[dict[str, Any]], *, ascii_only: bool) -> str:
    return "".join(
        json.dumps(row, ensure_ascii=ascii_only, default=lambda _: {"auto": True}) + "\n"
        for row in rows
    )


def as_cell(value: ParameterValue) -> str:
    if value is None:
        return "\\N"

    if not isinstance(value, str):
        return "\\A"

    return "\\" + value if value.startswith("\\") else value or "\\E"


def as_csv(rows: list[dict[str, Any]], newline: str) -> str:
    parameters = sorted({name for row in rows for name in row.get("parameters", {})})
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator=newline, quoting=csv.QUOTE_ALL)
    writer.writerow(["key", "target", "jobId", *(f"parameters.{name}" for name in parameters)])

    for row in rows:
        said = row.get("parameters", {})
        cells = [as_cell(said[name]) if name in said else "" for name in parameters]
        writer.writerow([row.get("key", ""), row.get("target", ""), row["jobId"], *cells])

    return file.getvalue()


@given(rows=said_rows(), ascii_only=st.booleans(), newline=st.sampled_from(["\n", "\r\n"]))
def test_both_formats_say_the_same(
    rows: list[dict[str, Any]], ascii_only: bool, newline: str
) -> None:
    lines = items_of("jsonl", as_jsonl(rows, ascii_only=ascii_only))
    table = items_of("csv", as_csv(rows, newline))

    read = [item for item in lines if isinstance(item, Row)]
    assert len(read) == len(rows)
    assert [row._replace(line=0) for row in read] == [
        item._replace(line=0) for item in table if isinstance(item, Row)
    ]
    assert [row_digest(row) for row in read] == [
        row_digest(item) for item in table if isinstance(item, Row)
    ]


json_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=5),
    st.just('"'),
)
json_values = st.one_of(
    json_scalars,
    st.just({"auto": True}),
    st.fixed_dictionaries(
        {},
        optional={
            "type": st.one_of(st.integers(1, 5), json_scalars),
            "valueStringEncoded": st.one_of(st.text(max_size=3), json_scalars),
            "useAutoValue": st.booleans(),
        },
    ),
    st.lists(json_scalars, max_size=2),
)


@st.composite
def json_lines(draw: st.DrawFn) -> str:
    """Draw lines near the border of what is a row, duplicate names among them."""
    pairs = draw(st.lists(st.tuples(st.sampled_from(["a", "b", '"', ""]), json_values), max_size=4))
    ascii_only = draw(st.booleans())
    parameters = ", ".join(
        f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=ascii_only)}" for name, value in pairs
    )
    first = draw(st.sampled_from(["", '"key": "k", ', '"key": "k", "key": "l", ', '"x": 1, ']))
    job_id = draw(st.sampled_from([JOB, JOB.upper(), "x"]))
    return f'{{{first}"jobId": "{job_id}", "parameters": {{{parameters}}}}}'


@given(line=json_lines())
def test_the_fast_path_says_what_the_exact_one_says(line: str) -> None:
    assume(not any(0xD800 <= ord(char) < 0xE000 for char in line))
    fast = JsonlReader("f", RowDefaults())._all_plain([line.encode()])
    reader = JsonlReader("f", RowDefaults())
    exact = list(reader._one_by_one([line.encode()]))

    assert fast is None or fast == exact
    assert isinstance(exact[0], Row) or fast is None


@pytest.mark.parametrize(
    ("parameters", "taken_fast"),
    [
        pytest.param('{"a": "1", "b": 2, "c": true, "d": null}', True, id="plain"),
        pytest.param('{"a": {"auto": true}}', True, id="auto"),
        pytest.param('{"a": {"type": 2, "valueStringEncoded": "5"}}', True, id="typed"),
        pytest.param('{"a": 1.50}', False, id="decimal"),
        pytest.param('{"a": 18446744073709551616}', False, id="over 64 bits"),
        pytest.param('{"a": "1", "a": "2"}', False, id="twice"),
        pytest.param('{"a": 1, "a": 2}', False, id="twice, numbers"),
        pytest.param('{"a": "1", "\\u0061": "2"}', False, id="twice, once escaped"),
    ],
)
def test_the_fast_path_is_taken_where_it_loses_nothing(parameters: str, taken_fast: bool) -> None:
    reader = JsonlReader("f", RowDefaults(job_id=JOB))

    rows = reader._all_plain([f'{{"parameters": {parameters}}}'.encode()] * 2)

    assert (rows is not None) == taken_fast


GOOD = f'{{"jobId": "{JOB}", "parameters": {{"a": 1}}}}'


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param([f"{GOOD}, {GOOD}", GOOD], id="two rows in one line"),
        pytest.param([GOOD[:-1], '"key": "k"}', f"{GOOD}, {GOOD}"], id="a row in two lines"),
        pytest.param([GOOD[:-1], '"key": "k"}', f"{GOOD}, 0, {GOOD}"], id="and a zero"),
        pytest.param([f"{GOOD}, 0, {GOOD}", ""], id="two rows and a zero, then a blank"),
        pytest.param(['{"key": [1', "2]}", f"{GOOD}, {GOOD}"], id="an array in two lines"),
        pytest.param([f"{GOOD}, 0", GOOD], id="a zero too many"),
    ],
)
def test_lines_are_no_rows_where_only_together_they_would_be(lines: list[str]) -> None:
    items = items_of("jsonl", "\n".join([GOOD, *lines, GOOD]) + "\n")
    rows = [item for item in items if isinstance(item, Row)]

    assert [row.line for row in rows] == [
        at for at, line in enumerate([GOOD, *lines, GOOD], 1) if line == GOOD
    ]


@st.composite
def csv_texts(draw: st.DrawFn) -> str:
    """Draw CSV whose rows are mostly plain, with what needs care here and there."""
    cells = st.sampled_from([JOB, "1", "x y", "", " ", "é", '"q"', '"a,b"', '"a\nb"', "\\N", "\\q"])
    rows = draw(st.lists(st.lists(cells, min_size=1, max_size=3), max_size=6))
    newline = draw(st.sampled_from(["\n", "\r\n"]))
    end = draw(st.sampled_from(["", newline, newline * 2, '"', "\r"]))
    return newline.join(["jobId,a,b", *map(",".join, rows)]) + end


@given(text=csv_texts(), size=st.integers(1, 5))
def test_plain_csv_says_what_the_csv_module_says(text: str, size: int) -> None:
    lines = io.BytesIO(text.encode()).readlines()
    blocks = [lines[at : at + size] for at in range(0, len(lines), size)]
    careful = CsvReader("f", RowDefaults())
    careful._all_plain = lambda columns: None  # type: ignore[method-assign]
    reader = CsvReader("f", RowDefaults())

    assert list(reader.items(blocks)) == list(careful.items([lines]))
    assert (reader.number, reader.whole) == (careful.number, careful.whole)


def test_plain_lines_after_quoted_ones_are_read_plainly_again() -> None:
    plain: list[int] = []

    class Counting(CsvReader):
        def _numbered(self, records: list[str], columns: Any) -> list[Row] | None:
            plain.append(len(records))
            return super()._numbered(records, columns)

    head, row = b"jobId,a\n", f"{JOB},1\n".encode()
    quoted = f'{JOB},"1\n2"\n'.encode().splitlines(keepends=True)
    rows = list(Counting("f", RowDefaults()).items([[head, row], quoted[:1], quoted[1:], [row]]))

    assert plain == [1, 1]
    assert [isinstance(item, Row) and item.line for item in rows] == [2, 3, 5]


@pytest.mark.parametrize("format_", ["csv", "jsonl"])
def test_a_field_of_any_length_is_judged_alike_beside_short_ones(format_: Format) -> None:
    long = "a" * 140_000
    content = (
        f"jobId,a\n{JOB},1\n{JOB},{long}\n"
        if format_ == "csv"
        else "".join(f'{{"jobId":"{JOB}","parameters":{{"a":"{text}"}}}}\n' for text in (1, long))
    )

    first, second = items_of(format_, content)

    assert isinstance(first, Row)
    assert isinstance(second, Row) == (format_ == "jsonl")
