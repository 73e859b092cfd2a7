"""Every row of a batch has a key of its own, and a row says twice only what may be said twice."""

from __future__ import annotations

import hashlib
import json
import tempfile
import unicodedata
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from manifests import JOB, OTHER_JOB, SAMPLE, apart, check_manifest, open_manifest

from deslaunch.errors import InvalidManifest
from deslaunch.manifest import check as check_module
from deslaunch.manifest.check import Check
from deslaunch.manifest.rows import dump_row, row_digest
from deslaunch.manifest.schema import Schema, body_digest, compile_jobs
from deslaunch.model import (
    AUTO,
    CheckedRow,
    InvalidRow,
    Job,
    JobParameter,
    JobRunParameterValue,
    Problem,
    Row,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deslaunch.model import ParameterValue

FILE = "night"
ROW = Row(1, 2, None, "default", JOB, {"b": "x", "a": None, "c": AUTO})


def row(number: int, key: str | None = None, *, job_id: str = JOB, **said: Any) -> Row:
    return apart(Row(number, number + 1, key, "default", job_id, said or {"Text": "x"}))


def make_check(**options: Any) -> Check:
    schemas = {"default": compile_jobs([SAMPLE, Job(OTHER_JOB, "Other", SAMPLE.parameters)])}
    return Check(schemas, file=FILE, **options)


def take(*rows: Row | InvalidRow, **options: Any) -> tuple[list[Any], Check]:
    with make_check(**options) as check:
        return check.take(rows), check


def refused(taken: list[Any]) -> list[int]:
    """Return the numbers of rows that can't be started."""
    return [row.number for row in taken if isinstance(row, InvalidRow)]


# The digest


def test_the_digest_is_the_documented_recipe() -> None:
    text = f'["default","{JOB}",[["a",null],["b","x"],["c",true]]]'

    assert row_digest(ROW) == hashlib.sha256(text.encode()).hexdigest()[:32]


def test_the_digest_never_changes() -> None:
    """Ledgers hold digests: a change here would make every old row look new."""
    said = {"DBGenFrom": "1200", "TradingDate": None, "DBGenTo": AUTO, "Näme": '"\\\x01\n'}

    assert row_digest(Row(1, 1, None, "default", JOB, said)) == "9ef399650c3164c437e2c47a0df76c99"


names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
values = st.one_of(st.none(), st.just(AUTO), names)


@given(st.dictionaries(names, values, max_size=4))
def test_the_digest_can_be_recomputed_with_the_standard_library(
    said: dict[str, ParameterValue],
) -> None:
    pairs = sorted([name, True if value is AUTO else value] for name, value in said.items())
    text = json.dumps(["acme", JOB, pairs], ensure_ascii=False, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()[:32]

    assert row_digest(Row(5, 5, "k", "acme", JOB.upper(), said)) == digest


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(ROW._replace(number=7, line=9), id="another place"),
        pytest.param(ROW._replace(key="k"), id="an explicit key"),
        pytest.param(ROW._replace(notes={"n": "x"}), id="a note"),
        pytest.param(ROW._replace(job_id=JOB.upper()), id="upper case"),
        pytest.param(ROW._replace(parameters={"c": AUTO, "b": "x", "a": None}), id="order"),
        pytest.param(ROW._replace(types=(1, 2, None)), id="declared types"),
    ],
)
def test_what_is_not_said_has_no_part_in_the_digest(other: Row) -> None:
    assert row_digest(other) == row_digest(ROW)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(ROW._replace(target="acme"), id="target"),
        pytest.param(ROW._replace(job_id=OTHER_JOB), id="job"),
        pytest.param(ROW._replace(parameters={"b": "x", "a": "", "c": AUTO}), id="null, empty"),
        pytest.param(ROW._replace(parameters={"b": "x", "a": None, "c": "true"}), id="auto, text"),
        pytest.param(ROW._replace(parameters={"b": "x", "a": None}), id="left out"),
    ],
)
def test_what_is_said_has(other: Row) -> None:
    assert row_digest(other) != row_digest(ROW)


# What a checked row is


def test_a_valid_row_is_checked_whole() -> None:
    said = row(1, "k", Count="5")
    (checked,), check = take(said)
    body = (
        b'{"jobId":"%b","parameters":{"Count":{"type":2,"valueStringEncoded":"5"}}}' % JOB.encode()
    )

    assert checked == CheckedRow(said, "k", body, body_digest(body), False, dump_row(said))
    assert (check.rows, check.rows - check.invalid, check.invalid) == (1, 1, 0)


def test_a_row_without_a_key_has_its_digest() -> None:
    said = row(1)
    (checked,), _ = take(said)

    assert checked.key == row_digest(said)


def test_a_row_that_does_not_validate_keeps_what_it_says() -> None:
    said = row(1, "k", Count="x")
    (invalid,), check = take(said)

    assert isinstance(invalid, InvalidRow)
    assert invalid[:5] == (1, 2, "k", "default", JOB)
    assert [problem.column for problem in invalid.problems] == ["Count"]
    assert invalid.says == dump_row(said)
    assert (check.rows, check.rows - check.invalid, check.count) == (1, 0, 1)


def test_an_unknown_target_names_those_that_are_known() -> None:
    (invalid,), _ = take(row(1)._replace(target="acmee"), targets=["acme", "default"])
    known = "one of: acme, default"
    message = f"there is no target 'acmee'; leave it out, or use {known}"

    assert invalid.problems == (Problem(FILE, 2, 1, "target", known, "acmee", message),)


def test_rows_of_a_target_that_cannot_be_asked_are_taken_unchecked() -> None:
    plain, auto = row(1)._replace(target="acme"), row(2, Nonsense=AUTO)._replace(target="acme")
    taken, check = take(plain, auto, unchecked={"acme"})

    assert [(checked.body, checked.auto) for checked in taken] == [(b"", False), (b"", True)]
    assert check.rows - check.invalid == 2


# Repeats


def test_exact_repeats_are_refused_and_name_the_first() -> None:
    taken, check = take(row(1), row(2, Text="y"), row(3), row(4))

    assert all(isinstance(checked, CheckedRow) for checked in taken[:2])
    assert [repeat[:3] for repeat in taken[2:]] == [(3, 4, None), (4, 5, None)]
    assert [repeat.says for repeat in taken[2:]] == [dump_row(row(3))] * 2
    message = (
        "the row repeats line 2 and would start the same run again; remove it, or pass "
        "--allow-duplicates"
    )
    assert check.problems[0] == Problem(
        FILE, 4, 3, "", "a different row", row_digest(row(3)), message
    )
    assert (check.rows - check.invalid, check.invalid, check.count) == (2, 2, 2)


def test_allowed_repeats_get_keys_of_their_own() -> None:
    digest = row_digest(row(1))
    taken, check = take(row(1), row(2, Text="y"), row(3), row(4), allow_duplicates=True)
    keys = [checked.key for checked in taken]

    assert keys == [digest, row_digest(row(2, Text="y")), f"{digest}~2", f"{digest}~3"]
    assert (check.rows - check.invalid, check.count) == (4, 0)


@pytest.mark.parametrize("allow_duplicates", [True, False])
def test_an_explicit_key_is_given_once(allow_duplicates: bool) -> None:
    taken, check = take(
        row(1, "a"), row(2, "b"), row(3, "a", Text="y"), allow_duplicates=allow_duplicates
    )

    assert refused(taken) == [3]
    message = "line 2 has the key 'a' already; give this row another key"
    assert check.problems == [Problem(FILE, 4, 3, "key", "a unique key", "a", message)]


def test_an_explicit_key_may_not_take_a_digest_that_is_taken() -> None:
    digest = row_digest(row(1))
    taken, _ = take(row(1), row(2, digest, Text="y"), allow_duplicates=True)

    assert (refused(taken), taken[1].key) == ([2], None)


def test_a_row_that_is_invalid_anyway_is_no_second_invalid_row() -> None:
    taken, check = take(row(1, "a"), row(2, "a", Count="x"), row(3, "b"))

    assert (refused(taken), taken[1].key) == ([2], None)
    assert (check.rows - check.invalid, check.invalid, check.count) == (2, 1, 2)


def test_the_key_of_a_row_that_could_not_be_read_is_taken_too() -> None:
    table = f"key,jobId,Text\na,{JOB},\\x\na,{JOB},1\n"
    taken, _ = check_manifest("csv", table)

    assert (refused(taken), taken[1].key) == ([1, 2], None)


@given(st.lists(st.sampled_from([None, None, "a", "b"]), max_size=8), st.booleans())
def test_no_two_rows_have_one_key(keys: list[str | None], allow: bool) -> None:
    rows = [row(number, key) for number, key in enumerate(keys, 1)]
    at_once, check = take(*rows, allow_duplicates=allow)
    left = [checked.key for checked in at_once if isinstance(checked, CheckedRow)]

    with make_check(allow_duplicates=allow) as by_row:
        one_by_one = [taken for row in rows for taken in by_row.take([row])]

    assert len(set(left)) == len(left) == check.rows - check.invalid
    assert one_by_one == at_once
    assert (by_row.rows - by_row.invalid, by_row.problems) == (
        check.rows - check.invalid,
        check.problems,
    )


def test_keys_that_only_look_alike_are_warned_of() -> None:  # M13
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    table = "key,jobId\n" + "".join(
        f"{key},{JOB}\n" for key in (composed, apart, "K", "\u212a", "\u2126", "cafe")
    )
    taken, warnings = check_manifest("csv", table)

    assert (len(taken), refused(taken)) == (6, [])
    (warning,) = warnings
    assert "key looks like an earlier one" in warning
    assert warning.startswith("night:3, column key (2 rows): ")


def test_keys_that_are_alike_in_neither_spelling_are_warned_of() -> None:  # M13
    one, other = "a\u0323\u0307", "a\u0307\u0323"
    table = "key,jobId\n" + "".join(f"{key},{JOB}\n" for key in (one, other, other, one))
    taken, warnings = check_manifest("csv", table)

    assert (len(warnings), refused(taken)) == (1, [3, 4])


# Auto rows


def races(first: str, number: int) -> Problem:
    """Return the problem of a row that moves on the feed that another one moves on."""
    message = (
        f"{first} also uses an auto value of this job, and two such runs compete for the same "
        "data; move one row to another batch, or pass --allow-repeated-auto"
    )
    got = f"a second one, after {first}"
    return Problem(FILE, number + 1, number, "", "one auto-value row per job", got, message)


def test_two_auto_rows_of_one_job_would_race() -> None:
    typed = JobRunParameterValue(2, AUTO)
    taken, check = take(row(1, "a", Count=AUTO), row(2, "b"), row(3, "c", Count=typed))

    assert [isinstance(checked, CheckedRow) for checked in taken] == [True, True, False]
    assert check.problems == [races("line 2", 3)]


@pytest.mark.parametrize(
    "second",
    [
        pytest.param(row(2, job_id=OTHER_JOB, Count=AUTO), id="another job"),
        pytest.param(row(2, Count="1"), id="no auto value"),
        pytest.param(row(2, Count=AUTO, Nope="1"), id="an invalid one"),
    ],
)
def test_rows_that_do_not_race(second: Row) -> None:
    _, check = take(row(1, Count=AUTO), second)

    assert not any("auto" in problem.message for problem in check.problems)


def test_repeated_auto_rows_may_be_allowed() -> None:
    _, check = take(row(1, "a", Count=AUTO), row(2, "b", Count=AUTO), allow_repeated_auto=True)

    assert check.rows - check.invalid == 2


def test_a_repeated_row_that_is_allowed_races_all_the_same() -> None:
    _, check = take(row(1, Count=AUTO), row(2, Count=AUTO), allow_duplicates=True)

    assert check.rows - check.invalid == 1


@pytest.mark.parametrize(
    ("key", "problems"), [("a", []), ("b", [races("the row a of the batch", 1)])]
)
def test_the_auto_row_of_the_batch_may_be_corrected_and_no_other_added(
    key: str, problems: list[Problem]
) -> None:
    _, check = take(row(1, key, Count=AUTO), known_auto={("default", JOB): "a"})

    assert check.problems == problems


# Schemas that may be old


def changed_job(**parameters: int) -> dict[str, Schema]:
    declared = tuple(JobParameter(name, number) for name, number in parameters.items())
    return compile_jobs([Job(JOB, "", declared)])


class Source:
    """Gives newer jobs, and notes who asked."""

    def __init__(self, first: Mapping[str, Schema], newer: Mapping[str, Schema] | None) -> None:
        self.schemas = {"default": first}
        self.asked: list[str] = []
        self._newer = newer

    def __call__(self, target: str) -> Mapping[str, Schema] | None:
        self.asked.append(target)

        if self._newer is not None:
            self.schemas[target] = self._newer

        return self._newer


@pytest.mark.parametrize(
    ("newer", "valid"),
    [
        pytest.param(changed_job(Text=1, New=1), 2, id="the parameter is new"),
        pytest.param(changed_job(Other=1), 0, id="another change"),
        pytest.param(compile_jobs([SAMPLE]), 1, id="the same"),
        pytest.param(None, 1, id="none to be had"),
    ],
)
def test_no_row_is_called_invalid_before_des_was_asked_anew(
    newer: Mapping[str, Schema] | None, valid: int
) -> None:
    source = Source(compile_jobs([SAMPLE]), newer)

    with Check(source.schemas, file=FILE, renew=source) as check:
        check.take([row(1, "a", New="x"), row(2, "b"), row(3, "c", New="y", Count="z")])

    assert (check.rows - check.invalid, source.asked) == (valid, ["default"])


def test_a_doubt_about_a_row_that_is_checked_anew_counts_once() -> None:
    source = Source(compile_jobs([SAMPLE]), changed_job(When=4, New=1))

    with Check(source.schemas, file=FILE, renew=source) as check:
        check.take([row(1, When="2026-01-31T06:16:47", New="x")])

    assert [warned.rows for warned in check.warnings] == [1]


def test_no_job_is_called_unknown_before_des_was_asked_anew() -> None:
    source = Source({}, compile_jobs([SAMPLE]))

    with Check(source.schemas, file=FILE, renew=source) as check:
        check.take([row(1, "a"), row(2, "b")])

    assert (check.rows - check.invalid, source.asked) == (2, ["default"])


# What is told


def test_a_problem_of_many_rows_is_told_once() -> None:
    table = "key,jobId,Nope\n" + "".join(f"k{number},{JOB},x\n" for number in range(2_000))
    manifest = open_manifest("csv", table)

    with make_check() as check:
        for chunk in manifest.chunks():
            check.take(chunk)

    error = check.error("no rows", "see above")
    assert (check.count, len(check.problems), check.invalid) == (2_000, 1_000, 2_000)
    assert [(group.first.line, group.rows) for group in check.groups] == [(2, 2_000)]
    assert isinstance(error, InvalidManifest)
    assert (str(error), error.hint, check.error("no rows").hint) == ("no rows", "see above", "")
    assert (error.count, len(error.problems), len(error.groups)) == (2_000, 1_000, 1)


def test_only_so_many_different_problems_are_kept() -> None:
    names = (f"n{number}" for number in range(1, 1_101))
    _, check = take(*(row(n, name, **{name: "x"}) for n, name in enumerate(names, 1)))

    assert (check.count, len([*check.groups])) == (1_100, 1_000)


def test_the_first_problems_are_in_manifest_order() -> None:
    _, check = take(row(1), row(2), row(3, "x", Count="x"), row(4))

    assert [problem.row for problem in check.problems] == [2, 3, 4]


def test_a_repeat_is_told_however_many_problems_come_after_it() -> None:
    bad = [row(number, f"k{number}", Count="x") for number in range(3, 1_200)]
    _, check = take(row(1), row(2), *bad)

    assert (check.problems[0].row, len(check.problems)) == (2, 1_000)


def test_a_row_whose_key_is_taken_has_none() -> None:
    bad = InvalidRow(3, 4, "a", "default", JOB, ())
    taken, _ = take(row(1, "a"), row(2, "a", Text="y"), bad)

    assert [checked.key for checked in taken] == ["a", None, None]
    assert all(checked.problems for checked in taken[1:])


def test_what_ended_the_reading_is_no_row() -> None:
    manifest = open_manifest("csv", f'jobId,Text\n{JOB},1\n{JOB},"2\n')

    with make_check() as check:
        for chunk in manifest.chunks():
            check.take(chunk)

    assert (check.rows, check.invalid, check.count) == (2, 1, 1)

    with make_check() as check:
        check.take([item for chunk in open_manifest("csv", "a,a\n").chunks() for item in chunk])

    assert (check.rows, check.invalid, check.count) == (0, 0, 1)


def test_warnings_of_the_schema_are_counted_over_the_batch() -> None:
    rows = [row(number, When="2026-01-31T06:16:47", Text=str(number)) for number in (1, 2, 3)]
    _, check = take(*rows)

    assert [(warned.first.column, warned.rows) for warned in check.warnings] == [("When", 3)]


def test_keys_are_in_a_file_but_where_no_folder_can_be_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def find_none() -> str:
        raise FileNotFoundError

    usual = check_module._has_temporary_folder()
    monkeypatch.setattr(tempfile, "gettempdir", find_none)
    taken, _ = take(row(1), row(2), row(3, Text="y"))

    assert (usual, check_module._has_temporary_folder()) == (True, False)
    assert refused(taken) == [2]


def test_memory_does_not_grow_with_the_rows() -> None:
    """The table is a file, and its cache has a limit."""
    with make_check() as check:
        check.take(row(number, f"k{number}") for number in range(1, 1_000))
        (cache,) = check._table.execute("PRAGMA cache_size").fetchone()
        (store,) = check._table.execute("PRAGMA temp_store").fetchone()
        ((_, _, path),) = check._table.execute("PRAGMA database_list").fetchall()

    assert (cache, store, path) == (-2048, 1, "")
    assert check_module.KEPT_PROBLEMS == 1_000
