"""Fault scripts: which requests a fault meets, and what a bad script is told."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from rawdes import SAMPLES, integer, start_body

from deslaunch import simulator
from deslaunch.simulator import (
    CSV_SALES_EXPORT,
    OTHER_JOB,
    POS_USAGE_EXPORT,
    FaultScriptError,
    JobsFileError,
    Simulator,
    load_jobs,
    load_script,
    read_script,
)
from deslaunch.simulator.faults import KINDS

if TYPE_CHECKING:
    from pathlib import Path


def numbers(
    fault: dict[str, Any], *, seed: int = 0, most: int = 10, body: bytes = b""
) -> list[int]:
    script = read_script({"seed": seed, "faults": [{"fault": "close", **fault}]})
    return [n for n in range(1, most + 1) if script.pick("startjob", n, body) is not None]


BODY = orjson.dumps(start_body(parameters={"DBGenFrom": integer("1234")}))


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        pytest.param({}, [*range(1, 11)], id="every-request"),
        pytest.param({"at": [2, 9, 400]}, [2, 9], id="at"),
        pytest.param({"every": 4}, [4, 8], id="every"),
        pytest.param({"from": 8}, [8, 9, 10], id="from"),
        pytest.param({"to": 2}, [1, 2], id="to"),
        pytest.param({"from": 3, "to": 4}, [3, 4], id="from-to"),
        pytest.param({"from": 3, "to": 3}, [3], id="from-to-one"),
        pytest.param({"from": 5, "every": 2}, [6, 8, 10], id="selectors-all-hold"),
        pytest.param({"share": 0}, [], id="no-share"),
        pytest.param({"share": 1}, [*range(1, 11)], id="whole-share"),
        pytest.param({"on": "token"}, [], id="other-endpoint"),
        pytest.param({"match": {"jobId": POS_USAGE_EXPORT.upper()}, "to": 1}, [1], id="job"),
        pytest.param({"match": {"jobId": CSV_SALES_EXPORT}}, [], id="other-job"),
        pytest.param({"match": {"text": '"1234"'}, "to": 1}, [1], id="text"),
        pytest.param({"match": {"text": '"123"'}}, [], id="other-text"),
        pytest.param({"match": {"text": "34", "jobId": OTHER_JOB}}, [], id="text-of-other-job"),
    ],
)
def test_selectors(fault: dict[str, Any], expected: list[int]) -> None:
    assert numbers(fault, body=BODY) == expected


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"[]", id="list"),
        pytest.param(b'{"jobId":1}', id="number"),
    ],
)
def test_a_body_without_a_job_matches_no_job(body: bytes) -> None:
    assert numbers({"match": {"jobId": OTHER_JOB}}, body=body) == []


def test_a_share_depends_on_nothing_but_seed_place_and_number() -> None:
    assert numbers({"share": 0.3}, seed=7, most=13) == [2, 3, 4, 5, 10, 12]


@pytest.mark.parametrize("share", [0.02, 0.05, 0.5])
def test_a_share_is_about_as_large_as_asked(share: float) -> None:
    assert len(numbers({"share": share}, most=20_000)) == pytest.approx(20_000 * share, rel=0.1)


def test_shares_of_other_seeds_and_places_are_others() -> None:
    fault = {"fault": "close", "share": 0.5}
    script = read_script({"faults": [fault | {"on": "token"}, fault]})
    second = [n for n in range(1, 101) if script.pick("startjob", n)]

    assert len({tuple(second), *(tuple(numbers(fault, seed=s, most=100)) for s in range(3))}) == 4


def test_the_first_fault_that_matches_wins() -> None:
    faults = [
        {"fault": "close", "at": [2]},
        {"fault": "reset", "every": 2},
        {"fault": "hang", "on": "token"},
    ]
    script = read_script({"faults": faults})
    picked = [script.pick("startjob", n) for n in range(1, 5)]

    assert [fault and fault.kind for fault in picked] == [None, "close", None, "reset"]


BAD_SCRIPTS = [
    pytest.param([], "", "an object", id="list"),
    pytest.param(
        {"fault": []}, "fault", "one of faults, finishAfter, latency, seed", id="misspelt"
    ),
    pytest.param({"seed": 1.5}, "seed", "a whole number", id="seed"),
    pytest.param({"latency": -1}, "latency", "a number of seconds from 0", id="latency"),
    pytest.param({"latency": True}, "latency", "a number of seconds from 0", id="latency-true"),
    pytest.param({"tokens": {}}, "tokens.expireAfter", "a whole number from 1", id="tokens"),
    pytest.param(
        {"tokens": {"expireAfter": 1, "which": "last"}},
        "tokens.which",
        "one of all, first",
        id="which",
    ),
    pytest.param({"faults": {}}, "faults", "a list of objects", id="faults"),
    pytest.param({"faults": [{}]}, "faults[0].fault", "one of close, ", id="no-kind"),
    pytest.param({"faults": [{"fault": "clsoe"}]}, "faults[0].fault", "one of close, ", id="kind"),
    pytest.param({"faults": [{"fault": []}]}, "faults[0].fault", "one of close, ", id="kind-list"),
    pytest.param(
        {"faults": [{"fault": "close"}, {"fault": "status"}]},
        "faults[1].status",
        "a status from 200 to 599",
        id="status-left-out",
    ),
    pytest.param(
        {"faults": [{"fault": "status", "status": 99}]},
        "faults[0].status",
        "a status from 200 to 599",
        id="status-99",
    ),
    pytest.param(
        {"faults": [{"fault": "close", "share": 5}]},
        "faults[0].share",
        "a number from 0 to 1",
        id="share",
    ),
    pytest.param(
        {"faults": [{"fault": "close", "at": 5}]},
        "faults[0].at",
        "a list of whole numbers from 1",
        id="at-number",
    ),
    pytest.param(
        {"faults": [{"fault": "close", "at": []}]},
        "faults[0].at",
        "a list of whole numbers from 1, not empty",
        id="at-nothing",
    ),
    pytest.param(
        {"faults": [{"fault": "close", "at": [0]}]},
        "faults[0].at",
        "a list of whole numbers from 1",
        id="at-0",
    ),
    pytest.param(
        {"faults": [{"fault": "close", "every": 0}]},
        "faults[0].every",
        "a whole number from 1",
        id="every-0",
    ),
    pytest.param(
        {"faults": [{"fault": "close", "status": 503}]},
        "faults[0].status",
        "one of at, ",
        id="other-kinds-key",
    ),
    pytest.param(
        {"faults": [{"fault": "outage", "from": 3}]},
        "faults[0].to",
        "a whole number from 1",
        id="outage-without-end",
    ),
    pytest.param(
        {"faults": [{"fault": "close", "match": {"job": "x"}}]},
        "faults[0].match.job",
        "one of jobId, text",
        id="match",
    ),
    pytest.param(
        {"faults": [{"fault": "garbage", "on": "connection"}]},
        "faults[0].fault",
        "one of close, hang, reset on a connection",
        id="connection-kind",
    ),
    pytest.param(
        {"faults": [{"fault": "close", "from": 9, "to": 8}]},
        "faults[0].to",
        "a number from 9, where the fault begins",
        id="from-after-to",
    ),
    pytest.param(
        {"faults": [{"fault": "outage", "from": 2, "to": 1}]},
        "faults[0].to",
        "a number from 2, where the fault begins",
        id="outage-that-ends-before-it-begins",
    ),
    pytest.param(
        {"faults": [{"fault": "close", "on": "start"}]},
        "faults[0].on",
        "one of connection, queryjobs, ",
        id="on",
    ),
]


@pytest.mark.parametrize(("script", "where", "expected"), BAD_SCRIPTS)
def test_a_bad_script_says_where(script: Any, where: str, expected: str) -> None:
    with pytest.raises(FaultScriptError) as caught:
        Simulator(script=script)

    assert caught.value.where == where
    assert caught.value.expected.startswith(expected)
    assert f"expected {expected}" in str(caught.value)


def test_a_file_that_is_no_json_says_so(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text('{\n"seed": }')

    with pytest.raises(FaultScriptError, match=r"bad\.json, line 2: expected JSON"):
        load_script(path)

    with pytest.raises(JobsFileError, match=r"bad\.json, line 2: expected JSON"):
        load_jobs(path)


def test_a_long_value_is_shortened_in_an_error() -> None:
    with pytest.raises(FaultScriptError) as caught:
        read_script({"seed": "x" * 1000})

    assert len(str(caught.value)) < 200


def test_the_sample_script_is_the_demo() -> None:
    script = read_script(load_script(SAMPLES / "faults.json"))
    counts = {503: 0, 500: 0}

    for number in range(1, 2001):
        fault = script.pick("startjob", number)

        if fault is not None and fault.status is not None:
            counts[fault.status] += 1

    assert (script.latency, script.expire_after, script.expire_all) == (0.02, 1200, False)
    assert counts[503] == pytest.approx(100, rel=0.25)
    assert counts[500] == pytest.approx(40, rel=0.4)


def test_the_docstring_lists_every_kind_and_every_key() -> None:
    described = simulator.__doc__ or ""
    listed = set(re.findall(r"^([a-z-]+) +\S", described, re.MULTILINE))
    keys = {key for kind in KINDS.values() for key in kind.needs | kind.takes}

    assert set(KINDS) <= listed
    assert {key for key in keys if key not in described} == set()
