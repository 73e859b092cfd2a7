"""The plain way of plain rows gives to the byte what the careful way gives, and is really taken."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from manifests import JOB, OTHER_JOB, open_manifest

from deslaunch.manifest import rows, schema
from deslaunch.manifest.check import Check
from deslaunch.manifest.schema import KINDS, Schema, compile_jobs
from deslaunch.model import Job, JobParameter, Row

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from deslaunch.model import Format

ODD_NAME = "50% of %s"
PARAMETERS = (
    JobParameter("Text", 1, nullable=True),
    JobParameter("Count", 2, supports_auto=True),
    JobParameter("Amount", 3),
    JobParameter("When", 4),
    JobParameter("Legacy", None),
    JobParameter("Strange", 9),
    JobParameter(ODD_NAME, 1),
    JobParameter("\ufdd0", 1),
)
JOBS = (
    Job(JOB, "Nightly", PARAMETERS),
    Job(OTHER_JOB, "Other", (JobParameter("Count", 1, required=True), JobParameter("Text", 3))),
)
NEWER = (Job(JOB, "Nightly", (JobParameter("Nope", 1), JobParameter("Text", 2), *PARAMETERS[1:])),)


class Counted(Schema):
    """Counts the rows that come the careful way."""

    careful = 0

    def _check_each(self, *args: Any) -> Any:
        self.careful += 1
        return super()._check_each(*args)


def everything(form: Format, content: str, *, quick: bool, **options: Any) -> tuple[Any, ...]:
    """Return all that is known of a manifest's rows once they are checked."""
    known = compile_jobs(JOBS)
    schemas: dict[str, Mapping[str, Schema]] = {"default": known, "acme": known}
    asked = []

    def renew(target: str) -> Mapping[str, Schema]:
        asked.append(target)
        schemas[target] = compile_jobs(NEWER)
        return schemas[target]

    with pytest.MonkeyPatch.context() as patch:
        if not quick:
            patch.setattr(rows, "plain_row", lambda *_: None)
            patch.setattr(schema, "_MOST_FORMS", 0)

        manifest = open_manifest(form, content, job_id=JOB)

        with Check(schemas, file="night", renew=renew, **options) as check:
            taken = [row for chunk in manifest.chunks() for row in check.take(chunk)]

    warnings = [*manifest.warnings, *check.warnings]
    counts = (check.rows, check.invalid, check.count, manifest.rows, manifest.is_whole)
    return taken, warnings, check.problems, [*check.groups], counts, asked


texts = st.sampled_from([
    *("x", "", " 5 ", "12", "-0", "007", "1.50", "9223372036854775808", "1" * 30, "é", "\x7f"),
    *("2026-01-31", "2026-02-29", "2024-02-29", "0000-01-01", "2026-04-31", "2026-01-31T06:16:47"),
    *("2026-01-31T06:16:47Z", "2026-01-31T06:16:47.5+14:00", "2026-01-31T06:16:47-14:30"),
    *("2026-01-31T24:00:00Z", "100% %s", "%(x)s", "\ufdd0", '"', "\\", "\\N", "\\\\srv\\x", "a,b"),
    *("null", "\u00a0", "\u2028", "\ud7ff", "5\n"),
])  # fmt: skip
odd_values = st.sampled_from([
    *("12", "0", "-0", "-5", "1.50", "1e3", "18446744073709551615", "18446744073709551616"),
    *("true", "null", "[]", "{}", '{"auto": true}', '"\\u0000"', '"\\ud800"', '"\\u0041"', '"\\/"'),
    *('"\\""', '["x"]', '{"a": "b"}', "NaN", '"x"', '"5"'),
])  # fmt: skip
types = st.sampled_from([*("1", "2", "2", "3", "4"), *("9", "0", "-2", "2.0", "true", "null")])
typed_values = st.builds(
    lambda number, text, form: form % {"number": number, "text": text},
    types,
    texts.map(json.dumps) | odd_values,
    st.sampled_from(
        [
            '{"type": %(number)s, "valueStringEncoded": %(text)s}',
            '{"type":%(number)s,"valueStringEncoded":%(text)s}',
            '{"valueStringEncoded" : %(text)s , "type":\t%(number)s}',
            '{"type": %(number)s, "valueStringEncoded": %(text)s, "useAutoValue": false}',
            '{"type": 9, "type": %(number)s, "valueStringEncoded": %(text)s}',
        ]
    ),
)
bare_values = texts.map(lambda text: json.dumps(text, ensure_ascii=False)) | odd_values
names = st.sampled_from([
    *("Text", "Count", "Amount", "When", "Text", "Count", "Amount", "When", ODD_NAME, "Legacy"),
    *("Strange", "Nope", "", "\ufdd0"),
])  # fmt: skip
keys = st.sampled_from([
    *('"k%d"', '"k%d"', '"k%d"', '"a b"', '" a"', '"a~2"', '"é"', '"caf\u0065\u0301"', '"%%s"'),
    *('"\\u0061"', "5", "null", '""', f'"{"k" * 200}"', f'"{"0" * 32}"', '"%%"', '"ab"'),
])  # fmt: skip
jobs = st.sampled_from([JOB, JOB, JOB, JOB.upper(), OTHER_JOB, "0" * 36, "nonsense"])


@st.composite
def lines(draw: st.DrawFn) -> str:
    """A few lines of JSONL, of which several have the same form."""
    made: list[str] = []

    for _ in range(draw(st.integers(1, 3))):
        columns = draw(st.lists(names, max_size=4))
        values = draw(st.sampled_from([typed_values, bare_values, texts.map(json.dumps)]))
        has_key, job = draw(st.booleans()), draw(jobs)
        more = draw(st.sampled_from([""] * 6 + ['"target": "acme", ', '"target": "x", ']))
        more += draw(st.sampled_from([""] * 8 + ['"deslaunch": {"n": "x"}, ', '"x": 1, ']))

        for _ in range(draw(st.integers(1, 4))):
            said = ", ".join(f"{json.dumps(name)}: {draw(values)}" for name in columns)
            key = f'"key": {draw(keys)}, '.replace("%d", str(len(made))) if has_key else ""
            made.append(f'{{{key}{more}"jobId": "{job}", "parameters": {{{said}}}}}')

    return "\n".join(made)


@st.composite
def tables(draw: st.DrawFn) -> str:
    reserved = st.sampled_from(["key", "jobId", "target", "deslaunch.n"])
    columns = draw(st.lists(names.filter(bool) | reserved, min_size=1, max_size=6, unique=True))
    cells = st.one_of(
        texts,
        texts,
        st.sampled_from(["", "k1", "k2", "k3", JOB, JOB.upper(), "acme", "default", "\\A", "\r"]),
        texts.map(lambda text: '"{}"'.format(text.replace('"', '""'))),
    )
    said = {"jobId": jobs, "target": st.sampled_from(["", "acme", "default", "x"])}
    rows = st.tuples(*(said.get(column, cells) for column in columns))
    return "\n".join([",".join(columns), *map(",".join, draw(st.lists(rows, max_size=8)))])


@given(st.one_of(lines().map(lambda c: ("jsonl", c)), tables().map(lambda c: ("csv", c))))
def test_both_ways_give_the_same(case: tuple[Format, str]) -> None:
    assert everything(*case, quick=True) == everything(*case, quick=False)


def said(*members: str) -> str:
    return "".join(f'{{{member}, "jobId": "{JOB}"}}\n' for member in members)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(said('"parameters": {"Count": -0}', '"parameters": {"Count": 0}'), id="-0"),
        pytest.param(
            said(
                '"key": "a", "parameters": {"Count": {"type": 2, "valueStringEncoded": "5"}}',
                '"key": "b", "parameters": {"Count": {"type": 2.0, "valueStringEncoded": "5"}}',
                '"key": "c", "parameters": {"Count": {"type": 3, "valueStringEncoded": "5"}}',
                '"key": "d", "parameters": {"Count": "5"}',
                '"key": "e", "parameters": {"Count": {"type": 2, "valueStringEncoded": "6"}}',
            ),
            id="types",
        ),
        pytest.param(
            said(
                '"parameters": {"Text": {"type": 1, "valueStringEncoded": "5"}}',
                '"parameters": {"Text": {"type": true, "valueStringEncoded": "6"}}',
            ),
            id="a type that is 1 to Python alone",
        ),
        pytest.param(
            said(
                '"key": null, "parameters": '
                '{"Count": {"type": 2, "valueStringEncoded": "5", "x": 1}}'
            ),
            id="as many quotes as a plain row",
        ),
        pytest.param(said('"parameters": {"Text": "x"}, "target": "a "'), id="blank in a target"),
        pytest.param(
            said(
                f'"parameters": {{"Text": "x"}}, "target": "{"t" * 129}"',
                f'"parameters": {{"Text": "x"}}, "key": "{"k" * 257}"',
            ),
            id="long names",
        ),
        pytest.param(
            said(
                '"parameters": {"Text": "x"}',
                '"parameters": {"Text": "y"}, "target": "acme"',
                '"parameters": {"Nope": "x"}',
                '"parameters": {"Text": "z"}',
                '"parameters": {"Text": "5"}',
            ),
            id="a newer schema, and another target",
        ),
        pytest.param(said('"parameters": {"\ufdd0": "x"}') * 2, id="a name that is a mark"),
    ],
)
def test_both_ways_give_the_same_of_lines_that_look_plain(content: str) -> None:
    assert everything("jsonl", content, quick=True) == everything("jsonl", content, quick=False)


def test_both_ways_warn_of_swallowed_rows() -> None:
    content = f'jobId,Text,Count\n{JOB},"x\n{JOB},y,1\n",5\n'
    quick = everything("csv", content, quick=True)

    assert quick == everything("csv", content, quick=False)
    assert len(quick[1]) == 1


@given(lines(), st.booleans())
def test_both_ways_give_the_same_where_repeats_are_allowed(content: str, auto: bool) -> None:
    options: dict[str, Any] = {"allow_repeated_auto": auto}
    options |= {"allow_duplicates": True, "unchecked": {"acme"}}
    content = f"{content}\n{content}"
    quick = everything("jsonl", content, quick=True, **options)

    assert quick == everything("jsonl", content, quick=False, **options)


@pytest.mark.parametrize("number", KINDS)
@given(data=st.data())
def test_a_plain_text_is_one_that_may_be_sent(number: int, data: st.DataObject) -> None:
    text = data.draw(st.from_regex(KINDS[number].plain, fullmatch=True))

    assert KINDS[number].judge(text) == ""
    assert "\0" not in text
    assert json.dumps(text, ensure_ascii=False) == f'"{text}"'


PLAIN = {"Text": "a", "Count": 5, "Amount": "1.50", "When": "2026-01-31T06:16:47Z"}
TYPED = {
    name: {"type": number, "valueStringEncoded": str(value)}
    for number, (name, value) in enumerate(PLAIN.items(), 1)
}


def line_with(parameters: dict[str, Any], number: int, **more: str) -> str:
    said = {**parameters, "Text": f"Größe {number}"} if parameters is PLAIN else parameters
    return json.dumps({**more, "jobId": JOB, "parameters": said}, ensure_ascii=False) + "\n"


def rows_by_the_careful_way(form: Format, content: str) -> int:
    """Return how many rows a schema has seen, all of them valid and plain when they are read."""
    counted = Counted(JOBS[0])
    manifest = open_manifest(form, content)
    read = []

    def read_carefully(
        *args: Any, of: Callable[..., Any] = rows.row_from_object, **more: Any
    ) -> Any:
        read.append(args)
        return of(*args, **more)

    with (
        pytest.MonkeyPatch.context() as patch,
        Check({"default": {JOB: counted}}, file="night", allow_duplicates=True) as check,
    ):
        patch.setattr(rows, "row_from_object", read_carefully)

        for chunk in manifest.chunks():
            check.take(chunk)

    assert (check.invalid, check.rows, read) == (0, manifest.rows, [])
    return counted.careful


@pytest.mark.parametrize(
    ("form", "content"),
    [
        pytest.param(
            "jsonl",
            "".join(line_with(PLAIN, n, key=f"store-{n}") for n in range(1000)),
            id="bare values",
        ),
        pytest.param("jsonl", "".join(line_with(TYPED, n) for n in range(1000)), id="typed values"),
        pytest.param(
            "csv",
            "key,jobId,Count,When\n" + "".join(f"k{n},{JOB},{n},2026-01-31\n" for n in range(1000)),
            id="csv",
        ),
        pytest.param(
            "csv",
            "key,jobId,Text\n" + "".join(f'"k{n}",{JOB},"a, {n}"\n' for n in range(1000)),
            id="quoted csv",
        ),
    ],
)
def test_one_row_of_a_form_goes_the_careful_way(form: Format, content: str) -> None:
    assert rows_by_the_careful_way(form, content) == 1


def test_an_odd_row_sends_no_other_the_careful_way() -> None:
    plain = [line_with({"Count": n}, n, key=f"k{n}") for n in range(100)]
    plain[50] = plain[50].replace("50}", '"9223372036854775807"}')

    assert rows_by_the_careful_way("jsonl", "".join(plain)) == 2


def test_each_form_is_learnt_once_however_they_are_mixed() -> None:
    said: list[dict[str, Any]] = [
        {"Count": 1},
        {"Text": "x"},
        {"Count": 2, "Text": "y"},
        {"Text": "z", "Count": 3},
    ]
    content = "".join(line_with(said[n % 4], n, key=f"k{n}") for n in range(400))

    assert rows_by_the_careful_way("jsonl", content) == 4


ALIKE = {
    "key first": '{"key": "%(key)s", "parameters": {"Text": "%(text)s", "Count": %(number)s}}'
    "%(end)s\n",
    "key last": '{"parameters":{"Text":"%(text)s","Count":%(number)s},"key":"%(key)s"}%(end)s\n',
    "typed": '{"key":"%(key)s","parameters":{"Count":{"type":2,"valueStringEncoded":"%(number)s"},'
    '"Text":{"valueStringEncoded":"%(text)s","type":1}}}%(end)s\n',
}


@pytest.mark.parametrize("layout", ALIKE.values(), ids=ALIKE)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("number", text) for text in ("-5", "0", "-0", "007", "+1", "1.0", "1e3", "", " 1")),
        *(("number", text) for text in ("9" * 18, "9" * 19, "18446744073709551616", "null")),
        *(
            ("text", text)
            for text in ("", "é", "\x7f", "\u2028", "\\n", "\\ud800", "\\", "\t", "\0")
        ),
        *(("text", text) for text in ('", "x": "', '"', "]", "}", "100% %s", "k1")),
        *(
            ("key", text)
            for text in ("a b", " a", "a~2", "é", "", "k" * 200, "\\u0061", "k1", "%s")
        ),
        *(("end", text) for text in (" ", "\t ", "\x0b", "\x1c", "\u00a0", "}", " x", ", 1", "\\")),
    ],
)
def test_a_line_that_is_only_nearly_like_the_one_before(layout: str, name: str, value: str) -> None:
    usual = {"key": "k1", "text": "x", "number": "1", "end": ""}
    second = usual | {"key": "k2"} | {name: value}
    content = layout % usual + layout % second + layout % (usual | {"key": "k3"})

    quick, careful = (everything("jsonl", content, quick=quick) for quick in (True, False))
    assert quick == careful


@pytest.mark.parametrize("parameter", ["Legacy", "Strange"])
def test_a_text_that_is_warned_of_has_no_form(parameter: str) -> None:
    content = "".join(line_with({parameter: str(n)}, n) for n in range(10))
    (warning,) = everything("jsonl", content, quick=True)[1]

    assert (warning.rows, rows_by_the_careful_way("jsonl", content)) == (10, 10)


def test_a_file_with_a_form_for_every_row_is_not_kept_in_memory() -> None:
    names = [f"n{number}" for number in range(1_200)]
    counted = Counted(Job(JOB, "", tuple(JobParameter(name, 1) for name in names)))

    for name in names * 2:
        counted.check(Row(1, 1, None, "default", JOB, {name: "x"}), rows.Groups("night"))

    assert counted.careful == 1_200 + 200
