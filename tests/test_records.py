"""The ledger's lines: byte for byte, and what is refused."""

from __future__ import annotations

from binascii import crc32
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deslaunch import records
from deslaunch.model import RowProblem, RunStatus, StartRequest

if TYPE_CHECKING:
    from deslaunch.records import Record

UTC = "2026-11-01T02:03:04.567Z"
PROBLEM = RowProblem("n.csv", 22, 21, "a", "an integer", "x", "wrong")
MANIFEST = {"path": "/data/night.csv", "sha256": "ab", "rows": 20000}


def request(**changes: Any) -> StartRequest:
    plain = StartRequest("k", 17, 18, "default", "j", "d", b'{"JobId":"j"}', auto=False)
    return plain._replace(**changes)


def header() -> Record:
    return records.batch(
        batch_id="b",
        manifest=MANIFEST,
        format="csv",
        job_id=None,
        target=None,
        allow=["y", "x"],
        skip_invalid=False,
        version="0.1.0",
    )


def one_of_each() -> list[tuple[Record, str]]:
    """Return a record of every kind, with its documented text but for the checksum."""
    utc = f'"utc":"{UTC}"'
    place = '"path":"/data/night.csv","sha256":"ab","rows":20000'
    return [
        (
            header(),
            (
                f'{{"record":"batch","ledger":"deslaunch/1","batchId":"b","createdUtc":"{UTC}",'
                f'"manifest":{{{place}}},"format":"csv","jobId":null,"target":null,"shard":null,'
                '"allow":["x","y"],"skipInvalid":false,"version":"0.1.0"'
            ),
        ),
        (
            records.session(
                pid=4711,
                host="h",
                manifest=MANIFEST,
                targets={"default": {"baseUrl": "https://d", "orgId": None}},
                options={},
            ),
            (
                f'{{"record":"session",{utc},"pid":4711,"host":"h","manifest":{{{place}}},'
                '"targets":{"default":{"baseUrl":"https://d","orgId":null}},"options":{}'
            ),
        ),
        (
            records.sending(request(), 1, with_body=True),
            (
                '{"record":"sending","key":"k","row":17,"line":18,"jobId":"j","attempt":1,'
                f'"digest":"d","body":{{"JobId":"j"}},{utc}'
            ),
        ),
        (
            records.sending(request(target="acme"), 2, with_body=False),
            (
                '{"record":"sending","key":"k","row":17,"line":18,"jobId":"j","target":"acme",'
                f'"attempt":2,"digest":"d",{utc}'
            ),
        ),
        (
            records.answered("k", 1, status=503, error="e"),
            f'{{"record":"answered","key":"k","attempt":1,"status":503,"error":"e",{utc}',
        ),
        (
            records.unsent("k", 2, error="e"),
            f'{{"record":"unsent","key":"k","attempt":2,"error":"e",{utc}',
        ),
        (
            records.started("k", 3, job_run_id="r"),
            f'{{"record":"started","key":"k","attempt":3,"jobRunId":"r",{utc}',
        ),
        (
            records.rejected("k", 1, status=400, error="e"),
            f'{{"record":"rejected","key":"k","attempt":1,"status":400,"error":"e",{utc}',
        ),
        (
            records.failed("k", 5, status=500, error="e"),
            f'{{"record":"failed","key":"k","attempt":5,"status":500,"error":"e",{utc}',
        ),
        (
            records.unknown("k", 1, cause="c", status=200, answer="a"),
            (
                '{"record":"unknown","key":"k","attempt":1,"cause":"c","status":200,'
                f'"jobRunId":null,"answer":"a",{utc}'
            ),
        ),
        (
            records.invalid(None, 21, 22, [PROBLEM]),
            (
                '{"record":"invalid","key":null,"row":21,"line":22,"problems":[{"file":"n.csv",'
                '"line":22,"row":21,"column":"a","expected":"an integer","got":"x",'
                f'"message":"wrong"}}],{utc}'
            ),
        ),
        (
            records.resolved("k", job_run_id=None, note="n"),
            '{"record":"resolved","key":"k","as":"notStarted","jobRunId":null,"note":"n",' + utc,
        ),
        (
            records.resolved("k", job_run_id="r", note=""),
            '{"record":"resolved","key":"k","as":"started","jobRunId":"r","note":"",' + utc,
        ),
        (
            records.pause("default", cause="c", seconds=1.23456),
            '{"record":"pause","optional":true,"target":"default","cause":"c","seconds":1.235,'
            + utc,
        ),
        (
            records.membership("k", in_manifest=False),
            f'{{"record":"membership","optional":true,"key":"k","inManifest":false,{utc}',
        ),
        (
            records.watch(pid=4711, host="h"),
            f'{{"record":"watch","optional":true,"pid":4711,"host":"h",{utc}',
        ),
        (
            records.run_status(
                "k", RunStatus("j", "r", True, False, "no sales", "c", "f", ({"name": "n"},))
            ),
            '{"record":"runStatus","optional":true,"key":"k","jobRunId":"r","finished":true,'
            '"success":false,"status":"no sales","createdUtc":"c","finishedUtc":"f",'
            '"outputFiles":[{"name":"n"}],' + utc,
        ),
        (
            records.end({"started": 1, "pending": 0}),
            f'{{"record":"end","started":1,"pending":0,{utc}',
        ),
    ]


@pytest.mark.parametrize(
    ("record", "text"),
    [pytest.param(*pair, id=f"{n}-{pair[0]['record']}") for n, pair in enumerate(one_of_each())],
)
def test_the_documented_bytes(record: Record, text: str) -> None:
    line = records.encode(record, UTC)
    assert line.decode() == f'{text},"crc":"{crc32(text.encode()):08x}"}}\n'
    assert orjson.loads(line)["crc"] == f"{crc32(text.encode()):08x}"
    assert list(records.decode(line)) == list(orjson.loads(line))[:-1]


def test_the_header_starts_as_a_newborn_is_told_by() -> None:
    line = records.encode(header(), UTC)
    assert line.startswith(records.HEADER_START)
    assert records.HEADER_START.startswith(records.START)


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
number = st.integers(1, 10**6)
status = st.none() | st.integers(100, 599)
json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
some_object = st.dictionaries(text, json, max_size=3)
problem = st.builds(RowProblem, text, number, number, text, text, text, text)
some_request = st.builds(
    StartRequest,
    text,
    number,
    number,
    text,
    text,
    text,
    some_object.map(orjson.dumps),
    st.booleans(),
)
any_record = st.one_of(
    st.builds(
        records.batch,
        batch_id=text,
        manifest=st.none() | some_object,
        format=st.none() | text,
        job_id=st.none() | text,
        target=st.none() | text,
        allow=st.lists(text, max_size=3),
        skip_invalid=st.booleans(),
        version=text,
    ),
    st.builds(
        records.session,
        pid=number,
        host=text,
        manifest=st.none() | some_object,
        targets=some_object,
        options=some_object,
    ),
    st.builds(records.sending, some_request, number, with_body=st.booleans()),
    st.builds(records.answered, text, number, status=status, error=text),
    st.builds(records.unsent, text, number, error=text),
    st.builds(records.started, text, number, job_run_id=text),
    st.builds(records.rejected, text, number, status=status, error=text),
    st.builds(records.failed, text, number, status=status, error=text),
    st.builds(
        records.unknown,
        text,
        number,
        cause=text,
        status=status,
        job_run_id=st.none() | text,
        answer=text,
    ),
    st.builds(records.invalid, st.none() | text, number, number, st.lists(problem, max_size=3)),
    st.builds(records.resolved, text, job_run_id=st.none() | text, note=text),
    st.builds(records.pause, text, cause=text, seconds=st.floats(0, 1e6)),
    st.builds(records.membership, text, in_manifest=st.booleans()),
    st.builds(records.end, st.dictionaries(st.sampled_from(["started", "failed"]), number)),
)


@given(any_record)
@settings(max_examples=300, deadline=None)
def test_round_trip(record: Record) -> None:
    line = records.encode(record, UTC)
    found = records.decode(line)

    if isinstance(record.get("body"), orjson.Fragment):
        record["body"] = found["body"]  # a fragment is JSON already

    assert (found, list(found)) == (record, list(record))
    assert (line.count(b"\n"), line[-1:]) == (1, b"\n")


def test_a_body_is_kept_to_the_byte() -> None:
    body = '{"a":1.50,"ü":"😀","n":12345678901234567890123}'.encode()
    assert body in records.encode(records.sending(request(body=body), 1, with_body=True), UTC)


@pytest.mark.parametrize("record", [pair[0] for pair in one_of_each()])
def test_every_flipped_bit_is_refused(record: Record) -> None:
    line = records.encode(record, UTC)

    for position in range(len(line) * 8):
        spoilt = bytearray(line)
        spoilt[position // 8] ^= 1 << position % 8

        with pytest.raises(records.BadRecord):
            records.decode(bytes(spoilt))


@pytest.mark.parametrize("record", [pair[0] for pair in one_of_each()])
def test_every_truncation_is_refused(record: Record) -> None:
    line = records.encode(record, UTC)

    for length in range(len(line)):
        for rest in (line[:length], line[:length] + b"\n", line[len(line) - length :]):
            if rest != line:
                with pytest.raises(records.BadRecord):
                    records.decode(rest)


def sealed(head: bytes) -> bytes:
    return head + b',"crc":"%08x"}\n' % crc32(head)


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\n", id="blank"),
        pytest.param(b"\0" * 4096, id="zeros"),
        pytest.param(b'{"record":"end"}\n', id="no-checksum"),
        pytest.param(sealed(b'{"record":"end"').replace(b"}\n", b"}\r\n"), id="crlf"),
        pytest.param(b" " + sealed(b'{"record":"end"'), id="leading-space"),
        pytest.param(sealed(b'{"record":"end"').upper(), id="upper-case"),
        pytest.param(sealed(b'{"record":"end"') + b"\n", id="trailing-newline"),
        pytest.param(sealed(b""), id="ending-alone"),
        pytest.param(sealed(b'{"record":'), id="no-json"),
        pytest.param(sealed(b'["record"'), id="no-object"),
        pytest.param(sealed(b'{"kind":"end"'), id="no-kind"),
        pytest.param(sealed(b'{"record":1'), id="kind-no-text"),
        pytest.param(sealed(b'{"record":null'), id="kind-null"),
        pytest.param(sealed(b'{"record":"\xff"'), id="no-utf-8"),
        pytest.param(
            sealed(b'{"record":"end"').replace(b'"crc":"', b'"crc": "'), id="other-spacing"
        ),
    ],
)
def test_bad_lines(line: bytes) -> None:
    with pytest.raises(records.BadRecord):
        records.decode(line)


def test_unknown_fields_and_kinds_are_the_readers_matter() -> None:
    line = sealed(b'{"record":"telepathy","optional":true,"new":{"a":[1]}')
    assert records.decode(line) == {"record": "telepathy", "optional": True, "new": {"a": [1]}}


def test_what_is_no_utf_8_is_spelled_out() -> None:
    manifest = {"path": "/data/n\udcfcght.csv", "sha256": "ab", "rows": 1}
    record = records.session(pid=1, host="h", manifest=manifest, targets={}, options={"\ud800": 1})
    found = records.decode(records.encode(record, UTC))
    assert found["manifest"]["path"] == "/data/n\\udcfcght.csv"
    assert found["options"] == {"\\ud800": 1}


def test_what_is_no_json_is_an_error_of_type() -> None:
    with pytest.raises(TypeError):
        records.encode(records.end({"started": object()}), UTC)  # type: ignore[dict-item]


def test_a_line_that_no_reader_takes_is_not_written() -> None:
    room = records.LINE_LIMIT - len(records.encode(records.unsent("k", 1, error=""), UTC))
    assert len(records.encode(records.unsent("k", 1, error="x" * room), UTC)) == records.LINE_LIMIT

    with pytest.raises(ValueError, match="too long"):
        records.encode(records.unsent("k", 1, error="x" * (room + 1)), UTC)


def test_of_countless_problems_the_first_are_kept() -> None:
    record = records.invalid("k", 1, 1, [PROBLEM] * 200_000)
    assert len(record["problems"]) == records.PROBLEM_LIMIT
    records.encode(record, UTC)
