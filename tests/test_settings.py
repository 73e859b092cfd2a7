"""Settings: every option once, with its range; where its value comes from, and what is kept."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan
from typing import Any

import pytest

from deslaunch.cli.options import Given
from deslaunch.errors import ConfigurationError
from deslaunch.settings import OPTIONS, ErrorLimit, Settings

GUID = "43F87799-62c6-4001-92f9-6b3df816a6d6"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("concurrency", 1, id="one-slot"),
        pytest.param("concurrency", 1_024, id="most-slots"),
        pytest.param("rate", None, id="no-rate"),
        pytest.param("rate", 0.001, id="slow"),
        pytest.param("max_attempts", 1, id="one-attempt"),
        pytest.param("max_wait", 0.1, id="short-wait"),
        pytest.param("timeout", 86_400, id="a-day"),
        pytest.param("drain_timeout", None, id="as-long-as-an-attempt"),
        pytest.param("schema_max_age", 0, id="no-cache"),
        pytest.param("schema_max_age", 1_000_000, id="a-century"),
        pytest.param("retry_5xx", "all", id="retry-all"),
        pytest.param("retry_5xx", "none", id="retry-none"),
        pytest.param("format", "csv", id="csv"),
        pytest.param("max_errors", "0", id="no-error"),
        pytest.param("max_errors", "100%", id="all-errors"),
    ],
)
def test_what_is_in_range(name: str, value: Any) -> None:
    assert getattr(Settings(**{name: value}), name) == value


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        pytest.param("concurrency", 0, "a whole number of slots from 1 to 1,024", id="no-slots"),
        pytest.param("concurrency", 1_025, "from 1 to 1,024, got 1025", id="too-many-slots"),
        pytest.param("concurrency", 2.5, "a whole number", id="half-a-slot"),
        pytest.param("rate", 0, "a number of starts a second above 0, got 0", id="no-starts"),
        pytest.param("rate", -1.0, "above 0", id="negative-rate"),
        pytest.param("rate", nan, "above 0", id="nan-rate"),
        pytest.param("rate", inf, "above 0", id="a-rate-that-json-can-not-hold"),
        pytest.param("max_attempts", 0, "at least 1", id="no-attempts"),
        pytest.param("max_wait", 0, "a number of seconds above 0", id="no-wait"),
        pytest.param("timeout", 86_401, "above 0, at most 86,400", id="more-than-a-day"),
        pytest.param("drain_timeout", 0, "above 0", id="no-drain"),
        pytest.param("schema_max_age", -1, "from 0 to 1,000,000", id="negative-age"),
        pytest.param("limit", 0, "a whole number of rows, at least 1", id="no-rows"),
        pytest.param("retry_5xx", "some", "all or none, got some", id="unknown-retry"),
        pytest.param("format", "xml", "jsonl or csv", id="unknown-format"),
        pytest.param("delimiter", ":", ", or ; or | or tab, got :", id="unknown-delimiter"),
        pytest.param("max_errors", "101%", "up to 100%", id="too-large-a-share"),
        pytest.param("max_errors", "-1", "N or a share", id="negative-errors"),
        pytest.param("job_id", "43f8", "a GUID", id="no-guid"),
    ],
)
def test_what_is_out_of_range_is_told_with_the_range(name: str, value: Any, told: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Settings(**{name: value})

    assert str(caught.value).startswith(f"--{name.replace('_', '-')} takes ")
    assert told in str(caught.value)
    assert "deslaunch" in caught.value.hint or "%" in caught.value.hint


def test_what_is_the_same_in_other_words() -> None:
    settings = Settings(delimiter="tab", job_id=GUID, timeout=7)

    assert (settings.delimiter, settings.job_id) == ("\t", GUID.lower())
    assert (settings.drain_seconds, Settings(drain_timeout=3).drain_seconds) == (7, 3)


@pytest.mark.parametrize(
    ("text", "errors", "ended", "is_passed"),
    [
        pytest.param("5", 5, 5, False, id="as-many"),
        pytest.param("5", 6, 6, True, id="one-more"),
        pytest.param("50%", 199, 199, False, id="too-few-ended"),
        pytest.param("50%", 100, 200, False, id="half"),
        pytest.param("50%", 101, 200, True, id="more-than-half"),
        pytest.param("100%", 200, 200, False, id="all-may-fail"),
    ],
)
def test_when_errors_are_too_many(text: str, errors: int, ended: int, is_passed: bool) -> None:
    assert ErrorLimit.parse(text).is_passed(errors, ended) is is_passed


def test_each_option_says_what_it_is() -> None:
    for name, option in OPTIONS.items():
        assert option.help.endswith((".", ": --timeout.")), name
        assert option.variable == (f"DESLAUNCH_{name.upper()}" if option.tunes else None)
        assert option.tunes or not option.kept, name  # what a ledger keeps has a variable too


KEPT = {
    "concurrency": 8,
    "timeout": 5.0,
    "rate": None,
    "config": "/etc/t.toml",
    "host": "elsewhere",
}


@pytest.mark.parametrize(
    ("values", "typed", "kept", "expected"),
    [
        pytest.param({}, (), {}, {"concurrency": 16}, id="default"),
        pytest.param({"concurrency": 3}, (), {}, {"concurrency": 3}, id="environment"),
        pytest.param({"concurrency": 3}, (), KEPT, {"concurrency": 8}, id="ledger"),
        pytest.param({"concurrency": 3}, ("concurrency",), KEPT, {"concurrency": 3}, id="typed"),
        pytest.param({"rate": 2.0}, (), KEPT, {"rate": 2.0}, id="nothing-kept-of-it"),
        pytest.param({}, (), {"retry_unknown": True}, {"retry_unknown": False}, id="consent"),
        pytest.param({}, (), {"limit": 3}, {"limit": None}, id="what-ends-a-launch"),
        pytest.param({}, (), {"rows": {"target": "a"}}, {"target": "a"}, id="target-of-the-rows"),
        pytest.param(
            {"target": "b"}, ("target",), {"rows": {"target": "a"}}, {"target": "b"}, id="target"
        ),
        pytest.param(
            {"base_url": "u"}, ("base_url",), {}, {"allow_new_origin": True}, id="base-url"
        ),
    ],
)
def test_command_line_before_ledger_before_environment_before_default(
    values: dict[str, Any], typed: tuple[str, ...], kept: dict[str, Any], expected: dict[str, Any]
) -> None:
    settings = Given(values, frozenset(typed), before=kept).settings

    assert {name: getattr(settings, name) for name in expected} == expected


def test_the_ledger_keeps_what_was_typed_and_nothing_else() -> None:
    values = {"concurrency": 3, "rate": 2.0, "limit": 5, "retry_unknown": True}
    given = Given(values, frozenset(values) - {"rate"})

    assert given.kept() == {"concurrency": 3}
    quiet, given = given.printer, replace(given, before={"rate": 1.0, "concurrency": 9})
    assert given.printer is quiet  # the one whose block is removed at the end
    assert given.kept() == {"rate": 1.0, "concurrency": 3}
