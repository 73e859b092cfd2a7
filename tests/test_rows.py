"""A row is what its object says, or every reason why it can't be one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import TYPE_CHECKING

import orjson
import pytest

from deslaunch.errors import ConfigurationError
from deslaunch.model import AUTO, GOT_LIMIT, Row, TypedValue
from deslaunch.rows import RowDefaults, row_from_object

if TYPE_CHECKING:
    from deslaunch.model import ParameterValue
    from deslaunch.rows import Item

JOB = "43f87799-62c6-4001-92f9-6b3df816a6d6"


def from_object(value: object) -> Item:
    return row_from_object(value, number=3, line=3, file="<rows>", defaults=RowDefaults())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        pytest.param(5, "5", id="int"),
        pytest.param(True, "true", id="bool"),
        pytest.param(Decimal("1.50"), "1.50", id="decimal"),
        pytest.param(Decimal("1E+3"), "1000", id="decimal with an exponent"),
        pytest.param(Decimal("1E-3"), "0.001", id="small decimal"),
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
        pytest.param(TypedValue(4, AUTO), TypedValue(4, AUTO), id="typed auto"),
        pytest.param(TypedValue(None, "x"), TypedValue(None, "x"), id="typed text"),
        pytest.param(None, None, id="null"),
    ],
)
def test_value_of_an_iterable(value: object, text: ParameterValue) -> None:
    assert from_object({"jobId": JOB, "parameters": {"a": value}}) == Row(
        3, 3, None, "default", JOB, {"a": text}
    )


@pytest.mark.parametrize(
    ("value", "says"),
    [
        pytest.param(1.5, "float is not exact", id="float"),
        pytest.param(float("nan"), "NaN", id="nan"),
        pytest.param(Decimal("NaN"), "NaN", id="decimal nan"),
        pytest.param(Decimal("-Infinity"), "Infinity", id="decimal infinity"),
        pytest.param(Decimal("1E+999999"), "1,000 digits", id="decimal of a million digits"),
        pytest.param(10**5000, "too long", id="int that Python won't write"),
        pytest.param(b"x", "no parameter value", id="bytes"),
        pytest.param([1], "no parameter value", id="list"),
        pytest.param(TypedValue("2", "x"), "type is", id="type is no int"),  # type: ignore[arg-type]
        pytest.param(TypedValue(2, 5), "is a string", id="value is no str"),  # type: ignore[arg-type]
        pytest.param("a\0", "NUL", id="nul"),
        pytest.param("\udc80", "lone surrogate", id="surrogate"),
        pytest.param(TypedValue(1, "\udc80"), "lone surrogate", id="surrogate in a typed value"),
    ],
)
def test_refused_value_of_an_iterable(value: object, says: str) -> None:
    item = from_object({"jobId": JOB, "parameters": {"a": value}})

    assert not isinstance(item, Row)
    (problem,) = item
    assert (problem.file, problem.row, problem.line, problem.column) == ("<rows>", 3, 3, "a")
    assert says in problem.message
    assert len(problem.got) <= GOT_LIMIT
    orjson.dumps(problem.as_dict())


@pytest.mark.parametrize("value", [None, 5, [1], "x"])
def test_an_iterables_row_is_a_mapping(value: object) -> None:
    assert not isinstance(from_object(value), Row)


@pytest.mark.parametrize("defaults", [{"job_id": "nightly"}, {"target": ""}, {"target": "a\n"}])
def test_bad_defaults(defaults: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError):
        RowDefaults(**defaults)
