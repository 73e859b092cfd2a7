"""The simulator's HTTP: however the bytes are split, the same requests come out."""

from __future__ import annotations

from itertools import pairwise

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rawdes import START, encode, integer, raw, start_body

from deslaunch.simulator import BadRequest, Request, RequestParser, Simulator

CHUNKED = b"POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
STREAM = (
    encode(close=False)
    + CHUNKED
    + b"3\r\nabc\r\nA;x=1\r\n0123456789\r\n0\r\n\r\n"
    + b"GET /e?q=1 HTTP/1.0\r\nX:  y \r\n\r\n"
    + CHUNKED
    + b"0\r\nTrailer: 1\r\n\r\n"
    + encode(body=b"")
)


def parse(pieces: list[bytes]) -> tuple[list[Request], str | None]:
    parser = RequestParser()
    requests = []

    try:
        for piece in pieces:
            parser.feed(piece)

            while (request := parser.next_request()) is not None:
                requests.append(request)
    except BadRequest as exc:
        return requests, str(exc)

    return requests, None


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(places)]


def test_parser_reads_every_kind_of_body() -> None:
    requests, error = parse([STREAM])

    assert error is None
    assert [(r.method, r.path, r.body, r.closing) for r in requests] == [
        ("POST", START, orjson.dumps(start_body()), False),
        ("POST", "/c", b"abc0123456789", False),
        ("GET", "/e", b"", True),
        ("POST", "/c", b"", False),
        ("POST", START, b"", True),
    ]
    assert requests[2].headers == {"x": "y"}


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_parser_does_not_care_where_the_bytes_are_split(cuts: list[int]) -> None:
    assert parse(split(STREAM, cuts)) == parse([STREAM])


def test_parser_takes_single_bytes() -> None:
    assert parse([bytes([byte]) for byte in STREAM]) == parse([STREAM])


BAD = [
    pytest.param(b"nonsense\r\n\r\n", "no request line", id="no-request-line"),
    pytest.param(b"POST / HTTP/2\r\n\r\n", "no request line", id="other-version"),
    pytest.param(b"POST / HTTP/1.1\r\nnoColon\r\n\r\n", "no header", id="no-colon"),
    pytest.param(b"POST / HTTP/1.1\r\n A: b\r\n\r\n", "no header", id="folded-header"),
    pytest.param(
        b"POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\nx", "no Content-Length", id="signed-length"
    ),
    pytest.param(
        b"POST / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", "a body over", id="long-body"
    ),
    pytest.param(CHUNKED + b"x\r\n", "no chunk size", id="no-chunk-size"),
    pytest.param(CHUNKED + b"7fffffff\r\n", "no chunk size, or one over", id="long-chunk"),
    pytest.param(CHUNKED + b"1\r\nabc\r\n", "a chunk longer", id="chunk-longer-than-told"),
    pytest.param(b"POST / HTTP/1.1\r\nA: " + b"x" * 70_000, "a head over", id="endless-head"),
    pytest.param(
        b"POST / HTTP/1.1\r\nA: " + b"x" * 70_000 + b"\r\n\r\n", "a head over", id="long-head"
    ),
]


@pytest.mark.parametrize(("data", "error"), BAD)
def test_parser_refuses(data: bytes, error: str) -> None:
    _, whole = parse([encode(), data])
    _, pieces = parse(split(encode() + data, list(range(0, len(data), 13))))

    assert whole is not None
    assert whole.startswith(error)
    assert pieces == whole


def test_parser_takes_a_head_of_exactly_64_kib() -> None:
    line = b"GET / HTTP/1.1\r\nA: "
    data = line + b"x" * (65536 - len(line)) + b"\r\n\r\n"

    for cut in range(5):
        requests, error = parse([data[: len(data) - cut], data[len(data) - cut :]])
        assert (len(requests), error) == (1, None)

    assert parse([data.replace(b"x", b"xx", 1)]) == ([], "a head over 65536 bytes")


def test_parser_limits_a_body_of_many_chunks() -> None:
    chunk = b"%x\r\n" % (9 << 20) + b"x" * (9 << 20) + b"\r\n"

    assert parse([CHUNKED + chunk + chunk]) == ([], "a body over 16777216 bytes")


async def test_bad_bytes_are_answered_and_the_connection_is_closed() -> None:
    async with Simulator() as simulator:
        answer = await raw(simulator, b"nonsense\r\n\r\n" + encode())

    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert simulator.requests == 0


async def test_pipelined_requests_are_answered_in_their_order() -> None:
    first = encode(body=start_body(parameters={"DBGenFrom": integer("1")}), close=False)
    second = encode(body=start_body(parameters={"DBGenFrom": integer("2")}))

    async with Simulator() as simulator:
        answers = await raw(simulator, first + second)

    ids = [run.job_run_id.encode() for run in simulator.runs]
    assert len(ids) == 2
    assert 0 < answers.index(ids[0]) < answers.index(ids[1])
