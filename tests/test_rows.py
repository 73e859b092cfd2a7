"""What lines say is what their rows say, to the digit, in either form, and back again."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from types import NoneType
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from manifests import (
    JOB,
    OTHER_JOB,
    apart,
    items_of,
    only_problem,
    only_row,
    open_manifest,
    problems_of,
)

from deslaunch.errors import ConfigurationError, ManifestError
from deslaunch.manifest.readers import (
    MAX_RECORD,
    columns_of,
    csv_cells,
    csv_lines,
    header_of,
    json_object,
)
from deslaunch.manifest.rows import (
    MAX_NAME,
    RESULT_NAMES,
    UNREAD,
    RowRules,
    dump_row,
    load_row,
    row_from_object,
)
from deslaunch.model import AUTO, GOT_LIMIT, Auto, InvalidRow, JobRunParameterValue, Row

if TYPE_CHECKING:
    from deslaunch.model import Format, ParameterValue

# What rows say


def jsonl_with(members: str) -> str:
    return f'{{"jobId": "{JOB}", {members}}}'


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        pytest.param('"2026-01-31"', "2026-01-31", id="string"),
        pytest.param('""', "", id="empty string"),
        pytest.param('"a\\u00e9\\n\\"\\\\"', 'aé\n"\\', id="escapes"),
        pytest.param('"\\ud83d\\ude00"', "😀", id="surrogate pair"),
        pytest.param("123", "123", id="integer"),
        pytest.param("-0", "-0", id="M7: minus zero"),
        pytest.param("18446744073709551616", "18446744073709551616", id="over 64 bits"),
        pytest.param("9" * 5000, "9" * 5000, id="more digits than int() takes"),
        pytest.param("1.50", "1.50", id="decimal"),
        pytest.param("0.1000000000000000055511", "0.1000000000000000055511", id="long decimal"),
        pytest.param("1E400", "1E400", id="over a float"),
        pytest.param("-0.0", "-0.0", id="M7: minus zero, decimal"),
        pytest.param("true", "true", id="true"),
        pytest.param("false", "false", id="false"),
        pytest.param("null", None, id="null"),
        pytest.param('{"auto": true}', AUTO, id="auto"),
        pytest.param(
            '{"type": 2, "valueStringEncoded": "5"}', JobRunParameterValue(2, "5"), id="typed"
        ),
        pytest.param(
            '{"type": null, "valueStringEncoded": null}',
            JobRunParameterValue(None, None),
            id="typed null",
        ),
        pytest.param(
            '{"type": 4, "useAutoValue": true, "valueStringEncoded": null}',
            JobRunParameterValue(4, AUTO),
            id="typed auto",
        ),
        pytest.param(
            '{"useAutoValue": true}', JobRunParameterValue(None, AUTO), id="useAutoValue alone"
        ),
    ],
)
def test_a_json_value_is_kept_to_the_digit(written: str, expected: Any) -> None:
    row = only_row(items_of("jsonl", jsonl_with(f'"parameters": {{"a": {written}}}')))

    assert row == apart(row._replace(parameters={"a": expected}))
    assert all(type(value) in (str, Auto, NoneType) for value in row.parameters.values())


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
        pytest.param('"1,5 ""x""\r\ny"', {"a": '1,5 "x"\r\ny'}, id="quoted"),
        pytest.param('"a\rb"', {"a": "a\rb"}, id="quoted carriage return"),
    ],
)
def test_a_cell_stands_for_a_value(written: str, expected: dict[str, ParameterValue]) -> None:
    assert only_row(items_of("csv", f"jobId,a\n{JOB},{written}\n")).parameters == expected


def test_both_forms_read_all_members() -> None:
    expected = Row(1, 1, "k", "acme", JOB, {"a": "1"}, {"note": "n"})
    said = {"key": "k", "target": "acme", "jobId": JOB.upper(), "parameters": {"a": "1"}}
    table = f"a,target,jobId,key,deslaunch.note\n1,acme,{JOB.upper()},k,n\n"

    assert items_of("jsonl", json.dumps(said | {"deslaunch": {"note": "n"}})) == [expected]
    assert items_of("csv", table) == [expected._replace(line=2)]


@pytest.mark.parametrize(
    ("form", "content"),
    [pytest.param("jsonl", "{}\n", id="jsonl"), pytest.param("csv", "key,jobId\nk,\n", id="csv")],
)
@pytest.mark.parametrize(
    ("options", "target"),
    [
        pytest.param({"job_id": JOB.upper(), "target": "acme"}, "acme", id="target given"),
        pytest.param({"job_id": JOB}, "default", id="no target"),
    ],
)
def test_defaults_fill_what_a_row_leaves_out(
    form: Format, content: str, options: dict[str, str], target: str
) -> None:
    row = only_row(items_of(form, content, **options))

    assert (row.target, row.job_id, row.parameters) == (target, JOB, {})


def test_rows_win_over_defaults() -> None:
    table = f"target,jobId\nbistro,{JOB}\n"

    row = only_row(items_of("csv", table, job_id=OTHER_JOB, target="acme"))

    assert (row.target, row.job_id) == ("bistro", JOB)


@pytest.mark.parametrize(
    "options", [{"job_id": "nightly"}, {"target": ""}, {"target": "a\n"}, {"target": "a "}]
)
def test_defaults_that_can_be_none_are_refused(options: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError):
        open_manifest("csv", "", **options)


def test_a_parameter_may_be_called_like_a_reserved_column() -> None:
    table = (
        "jobId,parameters.jobId,parameters.parameters.x,parameters.deslaunch.y,DesLaunch.n,z\n"
        f"{JOB},1,2,3,kept,4\n"
    )
    row = only_row(items_of("csv", table))

    assert row.parameters == {"jobId": "1", "parameters.x": "2", "deslaunch.y": "3", "z": "4"}
    assert row.notes == {"n": "kept"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        pytest.param('"a"', {"n": "a"}, id="text"),
        pytest.param("1.50", {"n": "1.50"}, id="number"),
        pytest.param("true", {"n": "true"}, id="bool"),
        pytest.param("null", {}, id="null"),
        pytest.param('""', {}, id="empty"),
    ],
)
def test_a_note_is_a_text(value: str, text: dict[str, str]) -> None:
    line = jsonl_with(f'"deslaunch": {{"n": {value}}}')

    assert only_row(items_of("jsonl", line)).notes == text


@pytest.mark.parametrize(
    "value", ["[1]", '{"n": []}', '{"n": {}}', '{"": "x"}', '{"n": "\\u0000"}']
)
def test_what_is_no_note_is_refused(value: str) -> None:
    (item,) = items_of("jsonl", jsonl_with(f'"deslaunch": {value}'))

    assert isinstance(item, InvalidRow)
    assert [problem.column.startswith("deslaunch") for problem in item.problems] == [True]
    assert isinstance(load_row(item.says, 1, 1, "night"), InvalidRow)
    assert csv_cells(item.says, header_of((), columns_of(item.says)), None)


def test_lines_are_physical() -> None:
    table = f'\r\n\njobId,a\r\n\n{JOB},"1\r\n\n2"\n\n   \n{JOB},2\r\n{JOB},3'
    lines = f'\n{{"jobId": "{JOB}"}}\r\n \t\n\n{{"jobId": "{JOB}"}}'

    assert [(i.number, i.line) for i in items_of("csv", table)] == [(1, 5), (2, 10), (3, 11)]
    assert [(i.number, i.line) for i in items_of("jsonl", lines)] == [(1, 2), (2, 5)]


def test_a_line_of_nothing_but_delimiters_is_blank() -> None:  # M1
    rows = items_of("csv", 'a,b,c\n,,\n1,,\n"","",""\n', job_id=JOB)
    one_column = items_of("csv", 'a\n""\n  \n1\n', job_id=JOB)

    assert [(row.number, row.line) for row in rows] == [(1, 3)]
    assert [(row.number, row.line) for row in one_column] == [(1, 4)]


# What is wrong with them


@pytest.mark.parametrize(
    ("line", "column", "says"),
    [
        pytest.param("[1]", "", "one object", id="a list"),
        pytest.param('"x"', "", "one object", id="a string"),
        pytest.param("{", "", "not JSON", id="cut off"),
        pytest.param('{"key": "a', "", "Unterminated string starting at", id="open string"),
        pytest.param("{} {}", "", "Extra data (character 4);", id="two objects in a line"),
        pytest.param('  {"key" 1}\t', "", "delimiter (character 10);", id="no colon"),
        pytest.param("{}", "jobId", "--job-id", id="no job"),
        pytest.param('{"jobId": ""}', "jobId", "GUID", id="jobId empty"),
        pytest.param('{"jobId": null}', "jobId", "GUID", id="jobId null"),
        pytest.param(f'{{"jobId": "{JOB} "}}', "jobId", f"not '{JOB} ';", id="jobId and a blank"),
        pytest.param('{"jobId": 7}', "jobId", "not '7';", id="jobId a number"),
        pytest.param(jsonl_with('"key": ""'), "key", "non-empty", id="key empty"),
        pytest.param(jsonl_with('"key": 5'), "key", "string", id="key a number"),
        pytest.param(jsonl_with('"key": "a~2"'), "key", "~", id="key with ~"),
        pytest.param(jsonl_with('"key": "a\\tb"'), "key", "U+0009", id="key with a tab"),
        pytest.param(jsonl_with('"key": "\\ud800"'), "key", "U+D800", id="key with a surrogate"),
        pytest.param(jsonl_with(f'"key": "{"k" * 257}"'), "key", "256", id="key too long"),
        pytest.param(jsonl_with('"target": ""'), "target", "non-empty", id="target empty"),
        pytest.param(jsonl_with('"target": "a "'), "target", "U+0020 SPACE", id="target blank"),
        pytest.param(jsonl_with(f'"target": "{"t" * 129}"'), "target", "128", id="target too long"),
        pytest.param(jsonl_with('"parameters": null'), "parameters", "object", id="no parameters"),
        pytest.param(jsonl_with('"parameters": [1]'), "parameters", "object", id="parameters list"),
        pytest.param(jsonl_with('"params": {}'), "params", "mean parameters", id="near miss"),
        pytest.param(jsonl_with('"DBGenTo": 5'), "DBGenTo", '"parameters"', id="parameter astray"),
        pytest.param(jsonl_with('"key": "a", "key": "b"'), "key", "twice", id="key twice"),
        pytest.param(jsonl_with('"parameters": {"": 1}'), "", "non-empty", id="parameter unnamed"),
        pytest.param(jsonl_with('"parameters": {"a": 1, "a": 1}'), "a", "twice", id="name twice"),
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
def test_a_bad_object_is_told_by_line_and_column(line: str, column: str, says: str) -> None:
    good = jsonl_with('"key": "k"')
    problems = problems_of("jsonl", f"\n{good}\n{line}\n{good}")

    assert [(p.file, p.column, p.row, p.line) for p in problems] == [("night", column, 2, 3)]
    assert says in problems[0].message


@pytest.mark.parametrize(
    ("members", "key"),
    [
        pytest.param('"key": "a", "key": "b"', None, id="its key"),
        pytest.param('"key": "a", "parameters": {"key": 1, "key": 2}', "a", id="a parameter"),
        pytest.param('"parameters": {"key": 1, "key": 2}, "key": "a"', "a", id="before its key"),
        pytest.param('"key": "a", "target": "t", "target": "u"', "a", id="its target"),
    ],
)
def test_a_row_keeps_its_key_unless_that_is_given_twice(members: str, key: str | None) -> None:
    (row,) = items_of("jsonl", jsonl_with(members))

    assert isinstance(row, InvalidRow)
    assert row.key == key


@pytest.mark.parametrize(
    ("value", "says"),
    [
        pytest.param("[1]", "can't be a parameter's value", id="list"),
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
        pytest.param(
            '{"type": "2", "valueStringEncoded": "5"}', "type must be", id="type a string"
        ),
        pytest.param(
            '{"type": 2.0, "valueStringEncoded": "5"}', "type must be", id="type a decimal"
        ),
        pytest.param('{"type": true, "valueStringEncoded": "5"}', "type must be", id="type a bool"),
        pytest.param('{"type": 2, "valueStringEncoded": 5}', "quote it", id="value a number"),
        pytest.param(
            '{"valueStringEncoded": null, "useAutoValue": 1}', "true or false", id="auto no bool"
        ),
        pytest.param(
            '{"valueStringEncoded": "5", "useAutoValue": true}', "must be null", id="auto and text"
        ),
        pytest.param('{"useAutoValue": false}', "is missing", id="neither auto nor a value"),
        pytest.param("[" * 300 + "]" * 300, "", id="nested deep"),
        pytest.param("[" * 400_000 + "]" * 400_000, "nested too deep", id="nested very deep"),
    ],
)
def test_a_bad_value_is_told_and_is_bad_again_from_the_ledger(value: str, says: str) -> None:
    line = jsonl_with(f'"key": "k", "parameters": {{"a": {value}, "b": 1}}')
    (row,) = items_of("jsonl", line)

    assert isinstance(row, InvalidRow)
    assert [problem.column for problem in row.problems] in (["a"], [""])
    assert says in row.problems[0].message
    assert len(row.problems[0].got) <= GOT_LIMIT
    orjson.dumps(row.problems[0]._asdict())
    assert isinstance(load_row(row.says, 1, 1, "night"), InvalidRow)


@pytest.mark.parametrize(
    ("cells", "column", "says"),
    [
        pytest.param(f"{JOB},k,t", "", "3 cells", id="a cell too few"),
        pytest.param(f"{JOB},k,t,1,2", "", "5 cells", id="a cell too many"),
        pytest.param(f"{JOB},k,t,\\n", "a", "\\N (null)", id="no such escape"),
        pytest.param(f"{JOB},k,t,\\Nx", "a", "double it", id="more after an escape"),
        pytest.param(f"{JOB},\\N,t,1", "key", "no escape", id="key null"),
        pytest.param(f"{JOB},k,\\E,1", "target", "no escape", id="target empty"),
        pytest.param("\\N,k,t,1", "jobId", "GUID", id="jobId null"),
        pytest.param(",k,t,1", "jobId", "--job-id", id="no job"),
        pytest.param(f"{JOB},a~2,t,1", "key", "~", id="key with ~"),
        pytest.param(f'{JOB},"a\nb",t,1', "key", "U+000A", id="key with a newline"),
        pytest.param(f'{JOB},k,t,5" pipe', "", "quote the whole cell", id="bare quote"),
        pytest.param(
            f'{JOB},k,t, "5"', "", "a blank before an opening quote", id="M11: blank and quote"
        ),
        pytest.param(f'{JOB},k,t,="00123"', "", "without =", id="M11: a formula"),
        pytest.param(f"{JOB},k,t,a\0b", "", "NUL", id="nul"),
        pytest.param("jobId,key,target,a", "", "repeats the header", id="the header again"),
    ],
)
def test_a_bad_record_is_told_by_line_and_column(cells: str, column: str, says: str) -> None:
    bad, row = items_of("csv", f"jobId,key,target,a\n\n{cells}\n{JOB},k2,t,1\n")

    assert isinstance(row, Row)
    assert isinstance(bad, InvalidRow)
    assert [(p.column, p.row, p.line) for p in bad.problems] == [(column, 1, 3)]
    assert says in bad.problems[0].message
    assert isinstance(load_row(bad.says, 1, 1, "night"), InvalidRow)


@pytest.mark.parametrize("form", ["jsonl", "csv"])
@pytest.mark.parametrize(
    ("key", "name"),
    [
        pytest.param("a ", "U+0020 SPACE", id="blank behind"),
        pytest.param(" a", "U+0020 SPACE", id="blank before"),
        pytest.param("a\u00a0", "U+00A0 NO-BREAK SPACE", id="no-break space"),
        pytest.param("a\u200b", "U+200B ZERO WIDTH SPACE", id="zero width space"),
        pytest.param("\ufeffa", "U+FEFF ZERO WIDTH NO-BREAK SPACE", id="byte order mark"),
        pytest.param("a\u0085", "U+0085", id="C1 control"),
        pytest.param("a\u3164b", "U+3164 HANGUL FILLER", id="a filler"),
        pytest.param("a\ufe0f", "U+FE0F VARIATION SELECTOR-16", id="variation selector"),
    ],
)
def test_a_key_is_what_an_eye_sees_of_it(form: Format, key: str, name: str) -> None:  # M2
    content = {
        "jsonl": json.dumps({"jobId": JOB, "key": key}),
        "csv": f"jobId,key\n{JOB},{key}\n",
    }[form]
    problem = only_problem(form, content)

    assert (problem.column, problem.row) == ("key", 1)
    assert name in problem.message


def test_a_key_may_hold_a_blank_and_any_script() -> None:
    keys = ["store 17", "Größe-Ж-店", "👍"]
    items = items_of("csv", "key,jobId\n" + "".join(f"{key},{JOB}\n" for key in keys))

    assert [item.key for item in items if isinstance(item, Row)] == keys


def test_every_problem_of_a_row_is_told() -> None:
    line = (
        '{"jobid": "x", "key": "~", "target": "", '
        '"parameters": {"a": [], "b": NaN, "c": 1, "c": 2}}'
    )
    table = "key,target,jobId,a,b\n~,\\N,zz,\\x,\\y\n"

    assert sorted(p.column for p in problems_of("jsonl", f"{{}}\n{line}", job_id=JOB)) == [
        *("a", "b", "c", "jobid", "key", "target"),
    ]
    assert sorted(p.column for p in problems_of("csv", table)) == [
        *("a", "b", "jobId", "key", "target"),
    ]


def test_an_odd_character_of_a_guid_is_named() -> None:  # M14
    (problem,) = problems_of("csv", f"key,jobId\nk,{JOB.replace('-', chr(0x2013))}\n")

    assert "U+2013 EN DASH" in problem.message


@pytest.mark.parametrize("name", ["jobid", "JobID", "job_id", "job-id", "Job Id"])
def test_a_column_like_job_id_is_a_parameter_but_suspected(name: str) -> None:
    table = f"key,{name}\nk,{JOB}\n"

    assert f"should the column {name} be jobId?" in only_problem("csv", table).message
    assert only_row(items_of("csv", table, job_id=JOB)).parameters == {name: JOB}


@pytest.mark.parametrize(
    ("form", "content", "byte", "line"),
    [
        pytest.param("jsonl", b'{}\n{"key": "\xff"}\n', 10, 2, id="jsonl"),
        pytest.param("csv", b"key,a\nk,\xff\n", 3, 2, id="csv"),
        pytest.param("csv", b'key,a\nk,"1\n2\xff"\n', 2, 3, id="second line of a record"),
    ],
)
def test_bytes_that_are_no_text_are_told(
    form: Format, content: bytes, byte: int, line: int
) -> None:
    good = {"jsonl": b"{}\n", "csv": b"k,1\n"}[form]
    problem = only_problem(form, content + good, job_id=JOB)

    assert problem.line == 2
    assert f"byte {byte} of line {line} is not UTF-8" in problem.message


# What results wrote


@pytest.mark.parametrize("name", ["state", "jobRunId", "STATE", "JobRunID", "outputFiles", "key"])
def test_what_results_wrote_is_no_new_batch(name: str) -> None:
    table = f"key,jobId,deslaunch.{name},deslaunch.note\nk,{JOB},failed,n\nl,{JOB},,\n"
    lines = (jsonl_with(f'"deslaunch": {{"{name}": "x", "note": "n"}}') + "\n") * 2

    for form, content in (("csv", table), ("jsonl", lines)):
        refused = items_of(form, content)  # type: ignore[arg-type]
        problems = [problem for item in refused for problem in item.problems]  # type: ignore[union-attr]
        assert len({problem.group_key for problem in problems}) == 1
        assert "--corrections" in problems[0].message
        first, *_ = items_of(form, content, is_batch_output_allowed=True)  # type: ignore[arg-type]
        assert isinstance(first, Row)
        assert first.notes == {"note": "n"}


def test_a_program_may_not_say_what_results_write() -> None:
    item = from_object({"jobId": JOB, "deslaunch": {"State": "x", "mine": "y"}})

    assert isinstance(item, InvalidRow)
    assert [problem.column for problem in item.problems] == ["deslaunch.State"]


def test_corrections_may_name_a_repeated_row() -> None:
    row = only_row(items_of("csv", f"key,jobId\na~2,{JOB}\n", is_batch_output_allowed=True))

    assert row.key == "a~2"


# Rows of a program


def from_object(value: object) -> Row | InvalidRow:
    return row_from_object(value, 3, RowRules())


class Loud(str):
    """A str whose text is another than its characters."""

    __slots__ = ()

    def __str__(self) -> str:
        return "999"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        pytest.param(5, "5", id="int"),
        pytest.param(True, "true", id="bool"),
        pytest.param(Loud("1"), "1", id="a subclass of str"),
        pytest.param(Decimal("1.50"), "1.50", id="decimal"),
        pytest.param(Decimal("1E+3"), "1000", id="decimal with an exponent"),
        pytest.param(Decimal("1E-3"), "0.001", id="small decimal"),
        pytest.param(Decimal("-0"), "-0", id="minus zero"),
        pytest.param(datetime(2026, 1, 31, 7, tzinfo=UTC), "2026-01-31T07:00:00Z", id="utc"),
        pytest.param(
            datetime(2026, 1, 31, 7, tzinfo=timezone(timedelta(hours=10))),
            "2026-01-31T07:00:00+10:00",
            id="offset",
        ),
        pytest.param(
            datetime(2026, 1, 31, 7, 0, 0, 5),  # noqa: DTZ001  # naive on purpose
            "2026-01-31T07:00:00.000005",
            id="naive",
        ),
        pytest.param(AUTO, AUTO, id="auto"),
        pytest.param(JobRunParameterValue(4, AUTO), JobRunParameterValue(4, AUTO), id="typed auto"),
        pytest.param(
            JobRunParameterValue(None, "x"), JobRunParameterValue(None, "x"), id="typed text"
        ),
        pytest.param(None, None, id="null"),
    ],
)
def test_a_program_gives_values_of_python(value: object, text: Any) -> None:
    expected = apart(Row(3, 3, None, "default", JOB, {"a": text}))

    assert from_object({"jobId": JOB.upper(), "parameters": {"a": value}}) == expected
    assert from_object(Row(9, 9, None, "default", JOB, {"a": value})) == expected  # type: ignore[dict-item]
    assert from_object(expected) == expected


@pytest.mark.parametrize(
    ("value", "says"),
    [
        pytest.param(1.5, "float is not exact", id="float"),
        pytest.param(float("nan"), "NaN", id="nan"),
        pytest.param(Decimal("NaN"), "NaN", id="decimal nan"),
        pytest.param(Decimal("-Infinity"), "Infinity", id="decimal infinity"),
        pytest.param(Decimal("1E+999999"), "1,000 digits", id="decimal of a million digits"),
        pytest.param(10**5000, "too long", id="int that Python won't write"),
        pytest.param(b"x", "can't be a parameter's value", id="bytes"),
        pytest.param([1], "can't be a parameter's value", id="list"),
        pytest.param(JobRunParameterValue("2", "x"), "type must be", id="type is no int"),  # type: ignore[arg-type]
        pytest.param(JobRunParameterValue(2, 5), "must be a string", id="value is no str"),  # type: ignore[arg-type]
        pytest.param("a\0", "NUL", id="nul"),
        pytest.param("\udc80", "lone surrogate", id="surrogate"),
        pytest.param(JobRunParameterValue(1, "\udc80"), "lone surrogate", id="typed surrogate"),
    ],
)
def test_a_value_that_is_not_exact_is_refused(value: object, says: str) -> None:
    item = from_object({"jobId": JOB, "key": "k", "parameters": {"a": value, "b": "1"}})

    assert isinstance(item, InvalidRow)
    (problem,) = item.problems
    assert (problem.file, problem.row, problem.line, problem.column) == ("<rows>", 3, 3, "a")
    assert says in problem.message
    assert len(problem.got) <= GOT_LIMIT
    orjson.dumps(problem._asdict())
    assert item.key == "k"
    assert isinstance(load_row(item.says, 3, 3, "<rows>"), InvalidRow)


def test_a_name_of_a_program_is_its_characters() -> None:
    item = from_object(
        {"jobId": JOB, "parameters": {Loud("a"): "1"}, "deslaunch": {Loud("n"): "x"}}
    )

    assert isinstance(item, Row)
    assert load_row(dump_row(item), 3, 3, "<rows>") == item


@pytest.mark.parametrize("value", [None, 5, [1], "x"])
def test_a_programs_row_is_a_mapping(value: object) -> None:
    item = from_object(value)

    assert isinstance(item, InvalidRow)
    assert item.says == UNREAD


# Back again


names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
odd_texts = st.sampled_from(["\\N", "\\", "\\\\srv\\x", "\\E", " ", "a\rb", '"', ",;|\t", "\n"])
value_texts = odd_texts | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
key_texts = st.text(
    st.characters(categories=["L", "N", "P"], exclude_characters="~\u115f\u1160\u3164\uffa0"),
    min_size=1,
    max_size=MAX_NAME["target"],
) | st.sampled_from(["\\N", "\\", "\\\\k", "a b", "#", "="])
values: st.SearchStrategy[ParameterValue] = st.one_of(value_texts, st.none(), st.just(AUTO))
typed_values = st.builds(JobRunParameterValue, st.none() | st.integers(0, 999_999_999), values)
note_names = names.filter(lambda name: name.lower() not in RESULT_NAMES)


def rows_with(said: st.SearchStrategy[Any]) -> st.SearchStrategy[Row]:
    return st.builds(
        Row,
        st.just(1),
        st.just(1),
        st.none() | key_texts,
        key_texts,
        st.sampled_from([JOB, OTHER_JOB]),
        st.dictionaries(names, said, max_size=4),
        st.dictionaries(note_names, value_texts.filter(bool), max_size=2),
    ).map(apart)


@given(rows_with(values | typed_values))
def test_what_the_ledger_keeps_is_the_row(row: Row) -> None:
    says = dump_row(row)

    assert load_row(says, 1, 1, "night") == row
    line = orjson.dumps(json_object(says, row.key)) + b"\n"
    assert only_row(items_of("jsonl", line, is_batch_output_allowed=True)) == row


@given(st.lists(rows_with(values), min_size=1, max_size=4), st.sampled_from(",;|\t"))
def test_what_is_written_as_csv_is_read_as_the_same_rows(rows: list[Row], delimiter: str) -> None:
    told = [(dump_row(row), row.key) for row in rows]
    header = header_of((), [column for says, _ in told for column in columns_of(says)])
    cells = (csv_cells(says, header, key) for says, key in told)
    table = csv_lines([header, *cells], delimiter)
    items = items_of("csv", table, delimiter=delimiter, is_batch_output_allowed=True)

    assert [item._replace(number=1, line=1) for item in items] == rows


@given(st.lists(rows_with(values), max_size=4), st.booleans())
def test_both_forms_say_the_same(rows: list[Row], ascii_only: bool) -> None:
    told = [dump_row(row) for row in rows]
    lines = "".join(json.dumps(json.loads(says), ensure_ascii=ascii_only) + "\n" for says in told)

    items = items_of("jsonl", lines)

    assert [item._replace(number=1, line=1) for item in items] == rows


@pytest.mark.parametrize("value", ["[1]", "NaN", '{"x": 1}', '"a\\u0000"'])
def test_a_value_that_could_not_be_read_is_no_text_in_csv(value: str) -> None:
    (invalid,) = items_of("jsonl", jsonl_with(f'"key": "k", "parameters": {{"a": {value}}}'))
    assert isinstance(invalid, InvalidRow)
    header = ["key", "target", "jobId", "a"]
    table = csv_lines([header, csv_cells(invalid.says, header, "k")])
    (again,) = items_of("csv", table)

    assert isinstance(again, InvalidRow)
    assert [problem.column for problem in again.problems] == ["a"]


def test_a_key_that_is_given_twice_is_none() -> None:
    lines = [jsonl_with('"key": "a", "key": "b"'), jsonl_with('"key": "c", "x": 1, "x": 2')]
    twice, other = items_of("jsonl", "\n".join(lines))

    assert (twice.key, other.key) == (None, "c")


def test_columns_come_back_in_their_order() -> None:
    header = "deslaunch.owner,Text,jobId,parameters.key,key,Count"
    table = f"{header}\nann,\\N,{JOB},5,k,\\A\n"
    row = only_row(items_of("csv", table))
    columns = header_of(header.split(","), ())
    cells = csv_cells(dump_row(row), columns, "k")

    assert columns == ["target", *header.split(",")]
    assert cells == ["default", "ann", "\\N", JOB, "5", "k", "\\A"]


def test_the_columns_of_results_are_not_taken_for_the_manifests() -> None:
    written = ("key", "deslaunch.state", "deslaunch.mine", "Text")

    assert header_of(written, ["parameters.Text", "More", "deslaunch.mine"]) == [
        *("target", "jobId", "key", "deslaunch.mine", "Text", "More"),
    ]


def test_a_row_that_says_more_than_the_columns_hold_is_not_cut() -> None:
    says = dump_row(Row(1, 1, None, "default", JOB, {"Text": "x"}))

    with pytest.raises(ManifestError, match="Text"):
        csv_cells(says, ["key", "target", "jobId"], "k")


@pytest.mark.parametrize(
    "table",
    [
        pytest.param(f"key,jobId,a\nk,{JOB},\\x\n", id="no such escape"),
        pytest.param(f"key,jobId,a\nk,{JOB}x,1\n", id="no GUID"),
        pytest.param(f"key,jobId,a\nk,{JOB},1,2\n", id="ragged"),
        pytest.param("key,a\nk,1\n", id="no job"),
    ],
)
def test_an_invalid_row_that_is_written_again_is_invalid_until_it_is_fixed(table: str) -> None:
    (invalid,) = items_of("csv", table)
    assert isinstance(invalid, InvalidRow)
    header = ["key", "target", "jobId", "a"]
    cells = csv_lines([header, csv_cells(invalid.says, header, "k")])
    line = orjson.dumps(json_object(invalid.says, "k"))

    for form, content in (("csv", cells), ("jsonl", line)):
        (again,) = items_of(form, content, job_id=JOB, is_batch_output_allowed=True)  # type: ignore[arg-type]
        assert isinstance(again, InvalidRow)
        assert again.key == "k"


# Limits


@pytest.mark.parametrize("size", [MAX_RECORD, MAX_RECORD + 1])
def test_a_record_has_one_limit_in_both_forms(size: int) -> None:  # M4
    frame = len(jsonl_with('"parameters": {"a": ""}')) + 1
    line = jsonl_with(f'"parameters": {{"a": "{"x" * (size - frame)}"}}') + "\n"
    record = f"{JOB},{'x' * (size - len(JOB) - 2)}\n"

    assert len(line) == len(record) == size

    for form, content in (("jsonl", line), ("csv", f"jobId,a\n{record}")):
        (item,) = items_of(form, content)  # type: ignore[arg-type]
        assert isinstance(item, Row) is (size == MAX_RECORD)


def test_a_csv_may_be_longer_than_its_records() -> None:
    record = f"{JOB},{'x' * 100_000}\n"

    assert len(items_of("csv", "jobId,a\n" + record * 12)) == 12
