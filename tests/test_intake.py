"""From rows to starts: what the rows of one batch must not share, and what a schema decides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from deslaunch import wire
from deslaunch.intake import Intake, InvalidRow
from deslaunch.keys import NO_SUSPECTS, FirstLook, row_digest
from deslaunch.model import AUTO, Job, JobParameter, Row, RowProblem, StartRequest
from deslaunch.schema import Schemas

if TYPE_CHECKING:
    from collections.abc import Collection

    from deslaunch.keys import Suspects
    from deslaunch.model import ParameterValue

JOB = "11111111-1111-4111-8111-111111111111"
OTHER_JOB = "22222222-2222-4222-8222-222222222222"
NO_JOB = "99999999-9999-4999-8999-999999999999"
PARAMETERS = (JobParameter("From", wire.INTEGER, supports_auto=True),)


def intake(
    *,
    targets: Collection[str] = ("default", "acme"),
    allow_duplicates: bool = False,
    allow_repeated_auto: bool = False,
    suspects: Suspects = None,
) -> Intake:
    schemas = Schemas()
    schemas.put("default", [Job(JOB, "Job", PARAMETERS), Job(OTHER_JOB, "Other", PARAMETERS)])
    schemas.put("acme", [Job(JOB, "Job", PARAMETERS)])
    return Intake(
        schemas,
        file="night.csv",
        targets=targets,
        allow_duplicates=allow_duplicates,
        allow_repeated_auto=allow_repeated_auto,
        suspects=suspects,
    )


def row(
    number: int,
    value: ParameterValue = "1",
    *,
    key: str | None = None,
    target: str = "default",
    job_id: str = JOB,
    **more: ParameterValue,
) -> Row:
    return Row(number, number + 1, key, target, job_id, {"From": value, **more})


def valid(taken: StartRequest | InvalidRow) -> StartRequest:
    assert isinstance(taken, StartRequest), taken
    return taken


def invalid(taken: StartRequest | InvalidRow) -> InvalidRow:
    assert isinstance(taken, InvalidRow), taken
    return taken


def test_a_valid_row_becomes_a_start() -> None:
    said = row(7, "1200")
    request = valid(intake().take(said))

    assert request == StartRequest(
        key=row_digest(said),
        row=7,
        line=8,
        target="default",
        job_id=JOB,
        digest=row_digest(said),
        body=request.body,
        auto=False,
    )
    assert b'"1200"' in request.body


def test_a_key_of_its_own_does_not_change_the_digest() -> None:
    request = valid(intake().take(row(1, key="mine")))

    assert (request.key, request.digest) == ("mine", row_digest(row(1)))


def test_what_could_not_be_read_keeps_its_problems() -> None:
    problem = RowProblem("night.csv", 9, 8, "", "one object", "[]", "a row is one object")

    assert intake().take((problem,)) == InvalidRow(None, 8, 9, (problem,))


@pytest.mark.parametrize(
    ("said", "column", "by_schema"),
    [
        pytest.param(row(2, "x"), "From", True, id="no-integer"),
        pytest.param(row(2, Nope="1"), "Nope", True, id="unknown-parameter"),
        pytest.param(row(2, job_id=NO_JOB), "jobId", True, id="unknown-job"),
        pytest.param(row(2, target="bistro"), "target", False, id="unknown-target"),
    ],
)
def test_what_is_wrong_with_one_row(said: Row, column: str, by_schema: bool) -> None:
    taken = invalid(intake().take(said))

    assert [problem.column for problem in taken.problems] == [column]
    assert (taken.key, taken.number, taken.line) == (row_digest(said), 2, 3)
    assert (taken.row, taken.by_schema) == (said, by_schema)


@pytest.mark.parametrize(
    ("first", "second", "column"),
    [
        pytest.param(row(1), row(2), "", id="says-the-same"),
        pytest.param(row(1, key="k"), row(2, "2", key="k"), "key", id="key-given-twice"),
    ],
)
def test_a_repeat_is_refused_and_points_at_the_first(first: Row, second: Row, column: str) -> None:
    batch = intake()
    valid(batch.take(first))
    taken = invalid(batch.take(second))

    assert (taken.key, taken.row, taken.by_schema) == (None, second, False)
    assert [problem.column for problem in taken.problems] == [column]
    assert "line 2" in taken.problems[0].message


def test_a_repeat_is_reported_with_whatever_else_is_wrong() -> None:
    batch = intake()
    valid(batch.take(row(1, key="k")))
    taken = invalid(batch.take(row(2, "x", key="k")))

    assert [problem.column for problem in taken.problems] == ["key", "From"]
    assert (taken.key, taken.by_schema) == (None, True)


def test_allowed_duplicates_get_keys_of_their_own() -> None:
    batch = intake(allow_duplicates=True)
    keys = [valid(batch.take(row(number))).key for number in (1, 2, 3)]
    digest = row_digest(row(1))

    assert keys == [digest, f"{digest}~2", f"{digest}~3"]


def test_no_allowance_lets_a_key_stand_twice() -> None:
    batch = intake(allow_duplicates=True)
    valid(batch.take(row(1, key="k")))

    assert invalid(batch.take(row(2, "2", key="k"))).problems[0].column == "key"


def test_two_auto_rows_of_one_job_would_race() -> None:
    batch = intake()
    first = valid(batch.take(row(1, AUTO, key="a")))
    second = invalid(batch.take(row(2, AUTO, key="b")))

    assert first.auto
    assert (second.key, second.by_schema) == ("b", False)
    assert "line 2" in second.problems[0].message


@pytest.mark.parametrize(
    "second",
    [
        pytest.param({"job_id": OTHER_JOB}, id="another-job"),
        pytest.param({"target": "acme"}, id="another-target"),
        pytest.param({"value": "5"}, id="no-auto-value"),
    ],
)
def test_auto_rows_that_do_not_race(second: dict[str, Any]) -> None:
    batch = intake()
    valid(batch.take(row(1, AUTO)))

    assert valid(batch.take(row(2, **{"value": AUTO, **second}))).row == 2


def test_repeated_auto_rows_may_be_allowed() -> None:
    batch = intake(allow_repeated_auto=True)
    valid(batch.take(row(1, AUTO, key="a")))

    assert valid(batch.take(row(2, AUTO, key="b"))).auto


def test_a_fresher_schema_frees_a_row_under_the_same_key() -> None:
    batch = intake()
    taken = invalid(batch.take(row(1, New="x")))
    still = invalid(batch.again(taken))
    fresh = (*PARAMETERS, JobParameter("New", wire.STRING))
    batch._schemas.put("default", [Job(JOB, "Job", fresh)])
    freed = valid(batch.again(taken))

    assert (still, freed.key) == (taken, row_digest(row(1, New="x")))


def test_a_freed_auto_row_is_its_jobs_first() -> None:
    batch = intake()
    taken = invalid(batch.take(row(1, AUTO, New="x")))
    fresh = (*PARAMETERS, JobParameter("New", wire.STRING))
    batch._schemas.put("default", [Job(JOB, "Job", fresh)])

    assert valid(batch.again(taken)).auto
    assert valid(batch.again(taken)).auto
    assert invalid(batch.take(row(2, AUTO))).problems[0].got == "a second one, after line 2"


def test_no_fresher_schema_frees_a_repeat() -> None:
    batch = intake()
    valid(batch.take(row(1)))
    repeat = invalid(batch.take(row(2)))

    assert batch.again(repeat) is repeat


def test_a_quick_check_finds_what_taking_finds() -> None:
    unreadable = (RowProblem("night.csv", 9, 8, "", "a row", "x", "mend it"),)
    rows: list[Row | tuple[RowProblem, ...]] = [
        row(1),
        row(2, "x"),
        row(3, None, key="k"),
        row(4, AUTO),
        row(5, AUTO),
        row(6, target="nobody"),
        row(7, job_id=NO_JOB),
        unreadable,
        row(9, "2", More="1"),
    ]
    taken = map(intake(suspects=NO_SUSPECTS).take, rows)
    look = FirstLook()

    checked = list(intake(suspects=NO_SUSPECTS).check(rows, look))

    assert checked == [one for one in taken if isinstance(one, InvalidRow)]
    assert [one.number for one in checked] == [2, 3, 5, 6, 7, 8, 9]
    assert repr(look) == "<FirstLook at 8 rows>"


def test_an_intake_tells_whether_it_would_see_a_repeat() -> None:
    told = [intake(suspects=suspects).sees_no_repeats for suspects in (None, NO_SUSPECTS)]

    assert (told, intake(suspects=frozenset({1})).sees_no_repeats) == ([False, True], False)
