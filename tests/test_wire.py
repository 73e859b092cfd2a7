"""DES's JSON: what is sent, and how little it takes to read what comes."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deslaunch.des import wire
from deslaunch.errors import SchemaError
from deslaunch.model import AUTO, Job, JobParameter, RunStatus, StartedRun, is_guid

if TYPE_CHECKING:
    from deslaunch.model import Auto

JOB_ID = "43f87799-62c6-4001-92f9-6b3df816a6d6"
RUN_ID = "9B3DF816-0000-4000-8000-43F8779962C6"
NOW = datetime(2026, 10, 21, 7, 28, tzinfo=UTC)


def test_the_vendors_example_body_comes_out() -> None:
    """The StartJobBody that the vendor documents, but for its bare null, which means the same."""
    body = wire.start_job_body(
        JOB_ID,
        {
            "integerParameter": wire.parameter_value(wire.INTEGER, "123456"),
            "dateParameter": wire.parameter_value(wire.DATETIME, "2021-10-19T06:16:47Z"),
            "nullDecimal": wire.parameter_value(wire.DECIMAL, None),
        },
    )

    assert orjson.loads(body) == {
        "jobId": JOB_ID,
        "parameters": {
            "integerParameter": {"type": 2, "valueStringEncoded": "123456"},
            "dateParameter": {"type": 4, "valueStringEncoded": "2021-10-19T06:16:47Z"},
            "nullDecimal": {"type": 3, "valueStringEncoded": None},
        },
    }


@pytest.mark.parametrize(
    ("number", "value", "encoded"),
    [
        pytest.param(2, "5", {"type": 2, "valueStringEncoded": "5"}, id="typed"),
        pytest.param(None, "5", {"valueStringEncoded": "5"}, id="untyped-is-a-string"),
        pytest.param(0, "5", {"type": 0, "valueStringEncoded": "5"}, id="type-zero-is-a-type"),
        pytest.param(2, None, {"type": 2, "valueStringEncoded": None}, id="null"),
        pytest.param(
            2,
            AUTO,
            {"type": 2, "valueStringEncoded": None, "useAutoValue": True},
            id="auto-must-have-null",
        ),
    ],
)
def test_a_parameter_value(
    number: int | None, value: str | Auto | None, encoded: dict[str, Any]
) -> None:
    assert wire.parameter_value(number, value) == encoded


def test_a_run_is_asked_for_by_its_id() -> None:
    assert wire.run_status_body(RUN_ID) == b'{"jobRunId":"%s"}' % RUN_ID.encode()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(JOB_ID, True, id="lower-case"),
        pytest.param(RUN_ID, True, id="upper-case"),
        pytest.param("", False, id="empty"),
        pytest.param(None, False, id="none"),
        pytest.param(7, False, id="number"),
        pytest.param(JOB_ID + "\n", False, id="trailing-newline"),
        pytest.param(JOB_ID[:-1], False, id="short"),
        pytest.param(JOB_ID.replace("-", ""), False, id="no-hyphens"),
        pytest.param(f"{{{JOB_ID}}}", False, id="braces"),
        pytest.param(JOB_ID.replace("4", "g"), False, id="no-hex"),
        pytest.param(JOB_ID.replace("4", "٤"), False, id="arabic-digit"),
    ],
)
def test_a_guid_has_one_form(text: object, expected: bool) -> None:
    assert is_guid(text) is expected


# Responses to a start


def started(**changes: object) -> bytes:
    return orjson.dumps({"jobId": JOB_ID, "jobRunId": RUN_ID} | changes)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(started(), StartedRun(JOB_ID, RUN_ID), id="documented"),
        pytest.param(b"\xef\xbb\xbf" + started(), StartedRun(JOB_ID, RUN_ID), id="bom"),
        pytest.param(started(more=1), StartedRun(JOB_ID, RUN_ID), id="unknown-key"),
        pytest.param(
            started(jobId=JOB_ID.upper()), StartedRun(JOB_ID, RUN_ID), id="job-id-in-upper-case"
        ),
        pytest.param(b" " + started() + b"\r\n", StartedRun(JOB_ID, RUN_ID), id="white-space"),
        pytest.param(started(jobRunId=None), None, id="null-run-id"),
        pytest.param(started(jobRunId="7"), None, id="run-id-without-form"),
        pytest.param(started(jobRunId=[RUN_ID]), None, id="run-id-in-a-list"),
        pytest.param(started(jobId=None), None, id="null-job-id"),
        pytest.param(b"[" + started() + b"]", None, id="list"),
        pytest.param(started()[:-1], None, id="cut-by-a-byte"),
        pytest.param(started() + started(), None, id="two-answers"),
        pytest.param(b"", None, id="empty"),
        pytest.param(b"<html>502</html>", None, id="html"),
        pytest.param(b"\xff\xfe", None, id="no-utf8"),
        pytest.param(b"null", None, id="null"),
    ],
)
def test_a_start_is_believed_only_with_both_ids(body: bytes, expected: StartedRun | None) -> None:
    assert wire.decode_started(body) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(started(), RUN_ID, id="whole"),
        pytest.param(started(jobId="another"), RUN_ID, id="another-job"),
        pytest.param(started()[:-1], RUN_ID, id="cut-behind-the-id"),
        pytest.param(b'\xff{ "jobrunid" : "%s"' % RUN_ID.encode(), RUN_ID, id="no-json"),
        pytest.param(started()[:-3], None, id="cut-within-the-id"),
        pytest.param(started(jobRunId="7"), None, id="no-guid"),
        pytest.param(b"", None, id="empty"),
    ],
)
def test_a_run_id_is_saved_from_an_unusable_response(body: bytes, expected: str | None) -> None:
    assert wire.job_run_ids_in(body) == ([] if expected is None else [expected])


# Responses about a run


def status(**changes: object) -> bytes:
    answer = {"jobId": JOB_ID, "jobRunId": RUN_ID, "finished": True, "success": True}
    return orjson.dumps(answer | changes)


def test_a_runs_status_is_read_whole() -> None:
    body = status(
        jobId=JOB_ID.upper(),
        status="x" * 5_000,
        createdUtc="2026-10-21T07:28:00Z",
        finishedUtc=None,
        outputFiles=[{"name": "sales.csv"}],
        triggeringAuthServerUserName="somebody",
    )

    assert wire.decode_run_status(body) == RunStatus(
        job_id=JOB_ID,
        job_run_id=RUN_ID,
        finished=True,
        success=True,
        status="x" * 4_096,
        created_utc="2026-10-21T07:28:00Z",
        finished_utc=None,
        output_files=({"name": "sales.csv"},),
    )


def test_the_output_files_are_kept_to_a_sane_length() -> None:
    files = [{"name": "x" * 10_000} for _ in range(10)]
    found = wire.decode_run_status(status(outputFiles=files))

    assert found is not None
    assert found.output_files == tuple(files[:6])


def test_a_file_that_cant_be_written_down_is_left_out() -> None:
    deep = b"[" * 400 + b"]" * 400
    body = status(outputFiles=[]).replace(b'"outputFiles":[]', b'"outputFiles":[1,%b,2]' % deep)
    found = wire.decode_run_status(body)

    assert found is not None
    assert found.output_files == (1, 2)


@pytest.mark.parametrize(
    ("changes", "job_id", "success"),
    [
        pytest.param({"success": "yes"}, JOB_ID, False, id="success-is-no-boolean"),
        pytest.param({"success": None}, JOB_ID, False, id="success-is-null"),
        pytest.param({"jobId": None}, "", True, id="no-job-id"),
        pytest.param({"jobId": {"a": 1}}, "", True, id="job-id-is-an-object"),
        pytest.param({"outputFiles": {}, "status": 7}, JOB_ID, True, id="other-shapes"),
    ],
)
def test_a_runs_status_makes_do_without_the_rest(
    changes: dict[str, object], job_id: str, success: bool
) -> None:
    assert wire.decode_run_status(status(**changes)) == RunStatus(job_id, RUN_ID, True, success)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(status(finished=None), id="finished-is-null"),
        pytest.param(status(finished="true"), id="finished-is-a-text"),
        pytest.param(status(jobRunId=7), id="run-id-is-a-number"),
        pytest.param(b"[]", id="list"),
        pytest.param(b"no json", id="no-json"),
    ],
)
def test_a_runs_status_needs_its_id_and_whether_it_ended(body: bytes) -> None:
    assert wire.decode_run_status(body) is None


# QueryJobs


def job_answer(**changes: object) -> dict[str, object]:
    parameter = {"name": "P", "type": 2, "required": True}
    return {"jobId": JOB_ID, "name": "Sales", "jobRunParameters": [parameter]} | changes


def decoded(answer: object) -> list[Job]:
    return wire.decode_jobs(orjson.dumps(answer), source="the answer")


def decoded_parameter(**spec: object) -> JobParameter:
    [job] = decoded({"jobs": [job_answer(jobRunParameters=[{"name": "P", **spec}])]})
    [parameter] = job.parameters
    return parameter


EXPECTED = [Job(JOB_ID, "Sales", (JobParameter("P", 2, required=True),))]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param({"jobs": [job_answer()]}, id="as-assumed"),
        pytest.param([job_answer()], id="a-bare-list"),
        pytest.param({"Items": [job_answer()], "total": 1}, id="another-name-for-the-list"),
        pytest.param({"jobs": [job_answer(jobId=JOB_ID.upper())]}, id="guid-in-upper-case"),
        pytest.param(
            {"jobs": [job_answer(jobRunParameters={"P": {"type": 2, "required": True}})]},
            id="an-object-keyed-by-name",
        ),
        pytest.param(
            {
                "JOBS": [
                    {
                        "JobID": JOB_ID,
                        "NAME": "Sales",
                        "JobRunParameters": [{"Name": "P", "Type": 2, "Required": True}],
                    }
                ]
            },
            id="other-case",
        ),
        pytest.param(
            {"jobs": [job_answer(enabled=True, owner={"id": 7})], "next": None}, id="unknown-keys"
        ),
    ],
)
def test_jobs_are_read_in_every_likely_form(answer: object) -> None:
    assert decoded(answer) == EXPECTED


@pytest.mark.parametrize(
    "parameters",
    [
        pytest.param(None, id="null"),
        pytest.param([], id="empty-list"),
        pytest.param({}, id="empty-object"),
    ],
)
def test_a_job_may_take_no_parameters(parameters: object) -> None:
    assert decoded([job_answer(jobRunParameters=parameters)]) == [Job(JOB_ID, "Sales", ())]


@pytest.mark.parametrize("spelling", ["nullable", "supportsNull", "isNullable", "ALLOWNULL"])
@pytest.mark.parametrize("value", [True, False])
def test_nullable_in_every_likely_spelling(spelling: str, value: bool) -> None:
    assert decoded_parameter(**{spelling: value}) == JobParameter("P", None, nullable=value)


@pytest.mark.parametrize("spelling", ["supportsAutoValue", "supportsAuto", "AllowAutoValue"])
def test_the_auto_value_in_every_likely_spelling(spelling: str) -> None:
    assert decoded_parameter(**{spelling: True}) == JobParameter("P", None, supports_auto=True)


@pytest.mark.parametrize(
    ("declared", "number"),
    [
        pytest.param(2, 2, id="number"),
        pytest.param(99, 99, id="unknown-number"),
        pytest.param(0, 0, id="zero"),
        pytest.param("String", wire.STRING, id="named-string"),
        pytest.param("INTEGER", wire.INTEGER, id="named-integer"),
        pytest.param("DateTime", wire.DATETIME, id="named-datetime"),
        pytest.param("colour", None, id="unknown-name"),
        pytest.param(None, None, id="null"),
        pytest.param(True, None, id="boolean"),
        pytest.param(2.0, None, id="float"),
        pytest.param({}, None, id="object"),
    ],
)
def test_a_type_may_be_numbered_or_named(declared: object, number: int | None) -> None:
    assert decoded_parameter(type=declared).type == number


@pytest.mark.parametrize("odd", [1, "true", None, []])
def test_a_flag_that_is_no_boolean_is_not_set(odd: object) -> None:
    assert decoded_parameter(required=odd, nullable=odd) == JobParameter("P", None)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        pytest.param(b"", "expected JSON", id="empty"),
        pytest.param(b"<html>", "expected JSON", id="html"),
        pytest.param(b"7", 'expected a list under "jobs", got ', id="number"),
        pytest.param(b"{}", 'expected a list under "jobs", got ', id="empty-object"),
        pytest.param(b'{"jobs":{}}', 'expected a list under "jobs", got ', id="jobs-as-an-object"),
        pytest.param(b"[7]", "a job with a GUID as jobId", id="a-job-that-is-a-number"),
        pytest.param(b'[{"jobId":"7"}]', "a job with a GUID", id="a-job-without-guid"),
        pytest.param(
            orjson.dumps([job_answer(jobRunParameters="P")]),
            "parameters as a list or an object",
            id="parameters-as-a-text",
        ),
        pytest.param(
            orjson.dumps([job_answer(jobRunParameters=["P"])]),
            "expected a parameter with a name",
            id="a-parameter-that-is-a-text",
        ),
        pytest.param(
            orjson.dumps([job_answer(jobRunParameters=[{"name": ""}])]),
            "expected a parameter with a name",
            id="a-parameter-with-an-empty-name",
        ),
        pytest.param(b"[" * 5_000, "expected JSON", id="deeper-than-the-parser-goes"),
        pytest.param(
            b"[" * 500 + b"]" * 500, "a job with a GUID", id="deeper-than-the-encoder-goes"
        ),
    ],
)
def test_a_shape_that_cant_be_read_is_shown_with_the_way_out(body: bytes, why: str) -> None:
    with pytest.raises(SchemaError) as caught:
        wire.decode_jobs(body, source="QueryJobs' answer")

    assert str(caught.value).startswith("QueryJobs' answer can't be read: ")
    assert why in str(caught.value)
    assert len(str(caught.value)) < 500
    assert "--schema FILE" in caught.value.hint


@pytest.mark.parametrize("depth", [300, 900, 1_015])
def test_a_name_that_is_no_text_is_left_empty_however_deep(depth: int) -> None:
    nested = b"[" * depth + b"]" * depth
    body = b'[{"jobId":"%s","name":%s}]' % (JOB_ID.encode(), nested)

    assert wire.decode_jobs(body, source="s") == [Job(JOB_ID, "", ())]


utf8 = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
likely_keys = st.sampled_from(
    ["jobs", "jobId", "name", "jobRunParameters", "parameters", "type", "required", "Nullable"]
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | utf8,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(likely_keys | utf8, inner),
    max_leaves=20,
)
parameters = st.builds(
    JobParameter,
    name=utf8.filter(bool),
    type=st.none() | st.integers(-(2**31), 2**31),
    required=st.booleans(),
    nullable=st.booleans(),
    supports_auto=st.booleans(),
    description=utf8,
)
jobs = st.builds(
    Job,
    job_id=st.uuids().map(str),
    name=utf8,
    parameters=st.lists(parameters, max_size=4).map(tuple),
)


@given(st.lists(jobs, max_size=4))
def test_encoded_jobs_are_read_back(some: list[Job]) -> None:
    body = orjson.dumps({"jobs": wire.encode_jobs(some)})

    assert wire.decode_jobs(body, source="s") == some


def tried(body: bytes) -> list[Job] | SchemaError:
    try:
        return wire.decode_jobs(body, source="s")
    except SchemaError as exc:
        return exc


@given(st.binary(max_size=60) | json_values.map(orjson.dumps))
def test_no_bytes_raise_anything_but_a_schema_error(body: bytes) -> None:
    assert isinstance(tried(body), list | SchemaError)


@given(json_values)
def test_no_job_raises_anything_but_a_schema_error(value: object) -> None:
    body = orjson.dumps([job_answer(name=value, jobRunParameters=value)])

    assert isinstance(tried(body), list | SchemaError)


@given(
    st.binary(max_size=60)
    | json_values.map(orjson.dumps)
    | json_values.map(lambda v: status(status=v, jobId=v))
)
def test_no_answer_makes_a_reader_raise(body: bytes) -> None:
    assert isinstance(wire.decode_started(body), StartedRun | None)
    assert isinstance(wire.decode_run_status(body), RunStatus | None)
    assert isinstance(wire.job_run_ids_in(body), list)
    assert len(wire.error_text(wire.text_of(body))) <= 500


# Retry-After


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        pytest.param(None, None, id="absent"),
        pytest.param("0", 0.0, id="at-once"),
        pytest.param("120", 120.0, id="seconds"),
        pytest.param(" 30\t", 30.0, id="white-space"),
        pytest.param("0000000000120", 120.0, id="leading-zeros"),
        pytest.param("9" * 400, 1e9, id="more-than-a-float-holds"),
        pytest.param("Wed, 21 Oct 2026 07:28:30 GMT", 30.0, id="http-date"),
        pytest.param("Wednesday, 21-Oct-26 07:28:30 GMT", 30.0, id="rfc-850-date"),
        pytest.param("Wed Oct 21 07:28:30 2026", 30.0, id="asctime-date"),
        pytest.param("Wed, 21 Oct 2026 09:28:30 +0200", 30.0, id="date-with-offset"),
        pytest.param("Wed, 21 Oct 2026 07:28:30 -0000", 30.0, id="date-of-no-zone-is-utc"),
        pytest.param("Wed, 21 Oct 2015 07:28:00 GMT", 0.0, id="past-date"),
        pytest.param("", None, id="empty"),
        pytest.param("soon", None, id="word"),
        pytest.param("-5", None, id="negative"),
        pytest.param("4, 4", 4.0, id="the-same-twice"),
        pytest.param("4, 9, soon", 9.0, id="the-longest-of-several"),
        pytest.param("1.5", 2.0, id="a-fraction-is-rounded-up"),
        pytest.param("²", None, id="superscript-digit"),
        pytest.param("٣", None, id="arabic-digit"),
        pytest.param("Wed, 31 Feb 2026 07:28:00 GMT", None, id="no-such-day"),
        pytest.param("Wed, 21 Oct 99999999999 07:28:00 GMT", None, id="year-beyond-everything"),
    ],
)
def test_retry_after_is_seconds_or_a_date(header: str | None, seconds: float | None) -> None:
    assert wire.retry_after([] if header is None else [header], now=NOW) == seconds


def test_of_two_headers_the_longest_wait_counts() -> None:
    headers = ["4", "Wed, 21 Oct 2026 07:28:30 GMT", "soon"]

    assert wire.retry_after(headers, now=NOW) == 30.0
    assert wire.retry_after([], now=NOW) is None


@given(st.integers(0, 10**9))
def test_retry_after_is_never_shortened(seconds: int) -> None:
    assert wire.retry_after([str(seconds)], now=NOW) == seconds


@given(st.integers(-(10**9), 10**9), st.integers(-23, 23))
def test_a_date_is_counted_from_now_in_any_zone(seconds: int, hours: int) -> None:
    now = NOW.astimezone(timezone(timedelta(hours=hours)))
    header = format_datetime(NOW + timedelta(seconds=seconds), usegmt=True)

    assert wire.retry_after([header], now=now) == max(0, seconds)


@given(
    st.text(max_size=40)
    | st.from_regex(
        r"\w{3}, \d{1,12} (Jan|Feb) \d{1,12} \d{1,12}:\d\d:\d\d [+-]?\w{1,12}", fullmatch=True
    )
)
def test_no_header_makes_retry_after_raise(header: str) -> None:
    seconds = wire.retry_after([header], now=NOW)

    assert seconds is None or seconds >= 0


# Kept text


@pytest.mark.parametrize(
    ("body", "text"),
    [
        pytest.param(b"plain", "plain", id="ascii"),
        pytest.param("é😀\n".encode(), "é😀\n", id="utf-8"),
        pytest.param("a😀".encode()[:-1], "a", id="cut-within-a-character"),
        pytest.param(b"a\xffb", "aÿb", id="an-8-bit-page"),
        pytest.param(b"\x00\x01", "\x00\x01", id="control-characters-are-text"),
        pytest.param(b"\x1f\x8b\x08\x00", "base64:H4sIAA==", id="gzip"),
    ],
)
def test_no_byte_of_a_response_is_lost(body: bytes, text: str) -> None:
    assert wire.text_of(body) == text


@given(st.binary(max_size=60))
def test_what_is_no_text_can_be_had_back(body: bytes) -> None:
    text = wire.text_of(body)

    if text.startswith("base64:"):
        assert base64.b64decode(text.removeprefix("base64:")) == body
    else:
        assert text in {body.decode("utf-8", "ignore"), body.decode("latin-1")}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        pytest.param('{"message":"bad\\n value"}', "bad value", id="message"),
        pytest.param('{"Error":"bad"}', "bad", id="another-key-and-case"),
        pytest.param('{"error":{"code":7}}', '{"error":{"code":7}}', id="nested-is-shown-whole"),
        pytest.param('{"code":7}', '{"code":7}', id="unknown-fields"),
        pytest.param("<html>\n<b>502</b>", "<html> <b>502</b>", id="html"),
        pytest.param(
            "\n<!DOCTYPE html><HTML><Title>502\nBad Gateway</Title><p>nginx",
            "a web page, '502 Bad Gateway'",
            id="page",
        ),
        pytest.param("<p><title> </title>", "<p><title> </title>", id="page-without-a-title"),
        pytest.param("", "", id="empty"),
        pytest.param("x" * 900, "x" * 500, id="long"),
    ],
)
def test_an_error_is_one_readable_line(body: str, text: str) -> None:
    assert wire.error_text(body) == text


@pytest.mark.parametrize(
    ("header", "read"),
    [
        pytest.param(
            "Tue, 24 Nov 2026 10:00:00 GMT", datetime(2026, 11, 24, 10, tzinfo=UTC), id="GMT"
        ),
        pytest.param(
            "Tue, 24 Nov 2026 10:00:00", datetime(2026, 11, 24, 10, tzinfo=UTC), id="naive"
        ),
        pytest.param("soon", None, id="no date"),
        pytest.param("", None, id="empty"),
        pytest.param(None, None, id="none"),
    ],
)
def test_http_date(header: str | None, read: datetime | None) -> None:
    assert wire.http_date(header) == read


@pytest.mark.parametrize(
    ("body", "grant"),
    [
        pytest.param({"access_token": "a"}, {"access_token": "a"}, id="least"),
        pytest.param(
            {
                "access_token": "a",
                "refresh_token": "r",
                "expires_in": 28800,
                "svc": "https://d",
                "org_id": "B",
                "token_type": "Bearer",
            },
            {
                "access_token": "a",
                "refresh_token": "r",
                "svc": "https://d",
                "org_id": "B",
                "token_type": "Bearer",
            },
            id="all",
        ),
        pytest.param(
            {"access_token": "a", "refresh_token": "", "expires_in": 28800, "svc": 7},
            {"access_token": "a"},
            id="odd-fields-are-left-out",
        ),
        pytest.param({"error": "invalid_grant"}, {"error": "invalid_grant"}, id="refused"),
        pytest.param({"access_token": ""}, {}, id="empty"),
        pytest.param({"access_token": 5}, {}, id="number"),
        pytest.param([], {}, id="list"),
    ],
)
def test_what_is_usable_of_a_grant_is_read(body: object, grant: dict[str, str]) -> None:
    assert wire.decode_grant(orjson.dumps(body)) == grant
