"""HTTP requests and responses; the rules of the simulator's files; the faults.

The docstring of the package explains every key and kind.
"""

import asyncio
import gzip
import hashlib
import math
import os
import re
import uuid
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, get_args

import orjson

Json = dict[str, Any]
Script = Mapping[str, Any]
"""A fault script, checked."""
Entry = Mapping[str, Any]
"""One entry of a script's ``faults``, checked."""

ENDPOINTS: Final[Mapping[str, str]] = {
    "/api/v1/startjob": "startjob",
    "/api/v1/queryjobs": "queryjobs",
    "/api/v1/queryrunstatus": "queryrunstatus",
    "/authorisation/token": "token",
}

OTHER_JOB: Final = "00000000-0000-4000-8000-000000000000"
"""The jobId that an ``other-job`` fault names."""

HEAD_LIMIT: Final = 64 * 1024  # the default of a stream reader
_BODY_LIMIT: Final = 16 * 1024 * 1024
_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}

Headers = tuple[tuple[str, str], ...]

End = Literal["keep", "close", "reset", "hang"]
"""What follows on a connection after a response: the next request; FIN; RST; or nothing, until the
client hangs up."""


# HTTP/1.1: decoding requests, encoding responses.


class Request(NamedTuple):
    """One HTTP request.

    Attributes:
        method: as sent.
        path: as sent, without the query.
        headers: names in lower case; of repeated names the last one.
        body: as sent.
        is_last: the client asks to close the connection after the response.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    is_last: bool


def encode(
    status: int, body: bytes, now: float, headers: Headers = (), kind: str = "application/json"
) -> bytes:
    """Return the bytes of a whole response.

    Args:
        status: 200 to 599.
        body: any bytes.
        now: Unix time in seconds, for the ``Date`` header.
        headers: sent in this order after those of the content.
        kind: media type of the body.
    """
    more = "".join([f"{name}: {value}\r\n" for name, value in headers])
    head = (
        f"HTTP/1.1 {status} {_REASONS.get(status, 'Unknown')}\r\n"
        f"Date: {formatdate(now, usegmt=True)}\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    )
    return head.encode("latin-1") + body


def respond(value: Json, now: float, headers: Headers = ()) -> bytes:
    """Return a response with a JSON value and without a fault."""
    return encode(200, orjson.dumps(value), now, headers)


class Refused(Exception):
    """The service refuses a request.

    Attributes:
        status: 400, 401, 404 or 405.
        body: the reason as JSON.
    """

    def __init__(self, status: int, message: str, *, key: str = "message") -> None:
        super().__init__(message)
        self.status, self.body = status, orjson.dumps({key: message})


class Delivery(NamedTuple):
    """The response to one request.

    Attributes:
        data: its exact bytes, perhaps none.
        end: what follows on the connection.
        after: seconds between ``data`` and ``more`` and ``end``; no request is served meanwhile.
        more: extra bytes.
    """

    data: bytes
    end: End = "keep"
    after: float = 0.0
    more: bytes = b""


async def read_request(reader: asyncio.StreamReader) -> Request | None:
    """Return the next complete request, or None if the client hung up before its end.

    Raises:
        Refused: 400, the bytes are no HTTP/1.1 request, its head is over 64 KiB, or its body is
            over 16 MiB or without a Content-Length. Nothing after it can be read.
        OSError: the connection was lost.
    """
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        request, length = _parse_head(head[:-4])
        return request._replace(body=await reader.readexactly(length))
    except asyncio.IncompleteReadError:
        return None
    except asyncio.LimitOverrunError as exc:
        raise Refused(400, f"the head is over {HEAD_LIMIT} bytes long") from exc


@lru_cache(maxsize=256)  # the heads of a client differ only in their Content-Length
def _parse_head(data: bytes) -> tuple[Request, int]:
    """Return a request without its body, and the body's length."""
    request_line, *fields = data.decode("latin-1").split("\r\n")
    words = request_line.split(" ")

    if len(words) != 3 or words[2] not in ("HTTP/1.0", "HTTP/1.1"):  # noqa: PLR2004
        raise Refused(400, f"expected an HTTP/1.1 request line, got {shorten(request_line)}")

    headers = {}

    for line in fields:
        name, colon, value = line.partition(":")

        if not colon or not name or name != name.strip():
            raise Refused(400, f"expected a header, got {shorten(line)}")

        headers[name.lower()] = value.strip()

    connection = headers.get("connection", "").lower()
    is_last = connection == "close" or (words[2] == "HTTP/1.0" and connection != "keep-alive")
    path = words[1].partition("?")[0]
    text = headers.get("content-length", "0")

    if "transfer-encoding" in headers:
        raise Refused(400, "expected a body with Content-Length, got Transfer-Encoding")

    if not (text.isascii() and text.isdigit() and len(text) <= 19):  # noqa: PLR2004  # 64 bits
        raise Refused(400, f"expected a Content-Length, got {shorten(text)}")

    if int(text) > _BODY_LIMIT:
        raise Refused(400, f"the body is over {_BODY_LIMIT} bytes long")

    return Request(words[0], path, headers, b"", is_last), int(text)


# The rules of jobs files and fault scripts.


class SimulatorError(Exception):
    """A file of the simulator can't be used.

    Attributes:
        where: place of the value, like ``faults[2].share``, or ``""`` for the whole file.
    """

    def __init__(self, where: str, *, expected: str, got: object) -> None:
        super().__init__(f"{where or 'the file'}: expected {expected}, got {shorten(got)}")
        self.where = where


def load_json(path: str | os.PathLike[str]) -> Any:
    """Return the JSON of a jobs file or a fault script, which :class:`Simulator` checks.

    Raises:
        SimulatorError: the file is no JSON; the message has the line.
        OSError: the file can't be read.
    """
    try:
        return orjson.loads(Path(path).read_bytes())
    except orjson.JSONDecodeError as exc:
        raise SimulatorError(f"{path}, line {exc.lineno}", expected="JSON", got=exc.msg) from exc


def shorten(value: object) -> str:
    """Return the ``repr`` of a value, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"  # noqa: PLR2004  # a line of a terminal


_Test = Callable[[Any], bool]


def _is(kind: type) -> _Test:
    return lambda value: isinstance(value, kind)


def _number(*kinds: type, least: float = -math.inf, most: float = math.inf) -> _Test:
    """Return a test for a number in a range; true and false are none."""
    return lambda value: type(value) in kinds and least <= value <= most


def _list_of(holds: _Test, least: int = 0) -> _Test:
    return lambda value: isinstance(value, list) and len(value) >= least and all(map(holds, value))


is_whole: Final = _number(int)
_is_count: Final = _number(int, least=1)
_is_duration: Final = _number(int, float, least=0)
_is_text: Final = _is(str)


def is_guid(value: Any) -> bool:
    """Return True for a GUID in any case of letters."""
    return isinstance(value, str) and _GUID.fullmatch(value) is not None


_GUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def _is_ascii(value: Any) -> bool:
    return isinstance(value, str) and value.isascii() and not {"\r", "\n"} & {*value}


def _is_wait(value: Any) -> bool:
    return type(value) in (int, float) or _is_ascii(value)


def _are_headers(value: Any) -> bool:
    return isinstance(value, dict) and all(
        map(_is_ascii, [*value, *(text for texts in value.values() for text in _items(texts))])
    )


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _is_parameter(value: Any) -> bool:
    is_named = isinstance(value, dict) and isinstance(value.get("name"), str)
    return is_named and (value.get("type") is None or is_whole(value["type"]))


def _one_of(words: Iterable[str]) -> tuple[str, _Test]:
    """Return the rule that a value is one of these words."""
    known = sorted(words)
    return f"one of {', '.join(known)}", known.__contains__


def check_object(
    value: Any, where: str, needs: Sequence[str], takes: Sequence[str], *, is_closed: bool = True
) -> None:
    """Check that a value is an object with the right keys and values.

    Args:
        value: any JSON.
        where: its place in the file, ``""`` for the whole file.
        needs: required keys, all of :data:`RULES`.
        takes: optional keys, likewise.
        is_closed: refuse other keys.

    Raises:
        SimulatorError: for the first key that breaks a rule.
    """
    if not isinstance(value, dict):
        raise SimulatorError(where, expected="an object", got=value)

    known = {*needs, *takes}
    inside = f"{where}." if where else ""

    for key in [*needs, *value]:
        if key not in known and is_closed:
            raise SimulatorError(inside + key, expected=_one_of(known)[0], got=key)

        if key in known:
            expected, holds = RULES[key]

            if key not in value or not holds(value[key]):
                raise SimulatorError(inside + key, expected=expected, got=value.get(key))


# The faults: each turns the answer of the service into the bytes to send.


def _good(entry: Entry, answer: Json, now: float) -> bytes:
    return respond(answer, now, _headers(entry))


def _silence(_entry: Entry, _answer: Json, _now: float) -> bytes:
    return b""


def _status(entry: Entry, answer: Json, now: float) -> bytes:
    status: int = entry["status"]
    is_good = entry.get("start", False) and status < 300  # noqa: PLR2004
    body = orjson.dumps(answer if is_good else {"message": f"scripted {status}"})

    if "body" in entry:
        body = entry["body"].encode()

    wait = entry.get("retryAfter")

    if "retryAfterDate" in entry:
        wait = formatdate(now + entry["retryAfterDate"], usegmt=True)

    headers = () if wait is None else (("Retry-After", str(wait)),)
    return encode(status, b"" if status in (204, 304) else body, now, headers + _headers(entry))


def _headers(entry: Entry) -> Headers:
    named = entry.get("headers", {}).items()
    return tuple((name, text) for name, texts in named for text in _items(texts))


def _raw(entry: Entry, answer: Json, _now: float) -> bytes:
    text: str = entry["body"]

    for name, value in answer.items():
        text = text.replace(f"{{{name}}}", str(value))

    return text.encode("latin-1", "replace")


def _cut(entry: Entry, answer: Json, now: float) -> bytes:
    """Return a part of the head, or the head and a part of the body; never the whole response."""
    head, end, body = respond(answer, now).partition(b"\r\n\r\n")
    whole, part = (b"", head + end) if entry["fault"] == "cut-head" else (head + end, body)
    return whole + part[: min(entry.get("bytes", len(part) // 2), len(part) - 1)]


def _not_json(entry: Entry, _answer: Json, now: float) -> bytes:
    page = entry.get("body", "<html><body>Welcome</body></html>")
    return encode(200, page.encode(), now, kind="text/html")


def _leave_out(entry: Entry, answer: Json, now: float) -> bytes:
    keys = entry.get("keys", ["jobRunId"])
    return respond({key: value for key, value in answer.items() if key not in keys}, now)


def _gzip(entry: Entry, answer: Json, now: float) -> bytes:
    encoding = entry.get("encoding", "gzip")
    body = orjson.dumps(_pad(answer, entry.get("bytes", 0)))
    packed = zlib.compress(body) if encoding == "deflate" else gzip.compress(body, mtime=0)
    headers = () if encoding == "none" else (("Content-Encoding", encoding),)
    return encode(200, packed, now, headers)


def _huge_body(entry: Entry, answer: Json, now: float) -> bytes:
    return respond(_pad(answer, entry.get("bytes", 2 << 20)), now)


def _pad(answer: Json, size: int) -> Json:
    """Return the answer padded to ``size`` bytes, as JSON."""
    missing = size - len(orjson.dumps(answer | {"padding": ""}))
    return answer if missing < 0 else answer | {"padding": "x" * missing}


class Kind(NamedTuple):
    """One kind of fault.

    Attributes:
        make: from (entry of the script, answer of the service, Unix time) to the bytes to send.
        end: what follows on the connection.
        is_served: the request is served, and its run made.
        needs: required keys of the entry.
        takes: its optional keys, besides those of every fault.
    """

    make: Callable[[Entry, Json, float], bytes]
    end: End = "keep"
    is_served: bool = True
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()


_STATUS_KEYS: Final = "retryAfter", "retryAfterDate", "body", "headers"

KINDS: Final[Mapping[str, Kind]] = {
    "status": Kind(_status, is_served=False, needs=("status",), takes=_STATUS_KEYS),
    "close": Kind(_silence, "close", is_served=False),
    "reset": Kind(_silence, "reset", is_served=False),
    "hang": Kind(_silence, "hang", is_served=False),
    "close-after-start": Kind(_silence, "close"),
    "reset-after-start": Kind(_silence, "reset"),
    "hang-after-start": Kind(_silence, "hang"),
    "close-after-response": Kind(_good, "close"),
    "second-response": Kind(_good),
    "cut-head": Kind(_cut, "close", takes=("bytes",)),
    "cut-body": Kind(_cut, "close", takes=("bytes",)),
    "stall-body": Kind(_cut, "hang", takes=("bytes",)),
    "garbage": Kind(lambda *_: b"SMTP 220 not this service\r\n\r\n", "close"),
    "raw": Kind(_raw, needs=("body",)),
    "not-json": Kind(_not_json, takes=("body",)),
    "leave-out": Kind(_leave_out, takes=("keys",)),
    "other-job": Kind(lambda _, answer, now: respond(answer | {"jobId": OTHER_JOB}, now)),
    "other-run": Kind(_good),  # see service
    "huge-body": Kind(_huge_body, takes=("bytes",)),
    "gzip": Kind(_gzip, takes=("encoding", "bytes")),
    "bom": Kind(lambda _, answer, now: encode(200, b"\xef\xbb\xbf" + orjson.dumps(answer), now)),
    "headers": Kind(_good, needs=("headers",)),
    "latency": Kind(_good, needs=("seconds",)),
    "hold": Kind(_good),
    "fail-run": Kind(_good, takes=("error",)),  # see service
}

GOOD: Final[Entry] = {"fault": "latency"}
"""The fault of a request without one."""


# The script.


RULES: Final[Mapping[str, tuple[str, _Test]]] = {
    key: (expected, holds)
    for keys, expected, holds in (
        ("seed", "a whole number", is_whole),
        ("every from to expireAfter", "a whole number from 1", _is_count),
        ("at", "a list of whole numbers from 1, not empty", _list_of(_is_count, least=1)),
        ("bytes", "a whole number from 0", _number(int, least=0)),
        ("status", "a status from 200 to 599", _number(int, least=200, most=599)),
        ("share", "a number from 0 to 1", _number(int, float, least=0, most=1)),
        ("retryAfterDate", "seconds from -1e9 to 1e9", _number(int, float, least=-1e9, most=1e9)),
        ("latency finishAfter seconds after", "a number of seconds from 0", _is_duration),
        ("start", "true or false", _is(bool)),
        ("fault", *_one_of(KINDS)),
        ("on", *_one_of([*ENDPOINTS.values(), "connection"])),
        ("then", *_one_of(get_args(End))),
        ("encoding", *_one_of(["gzip", "deflate", "none"])),
        ("which", *_one_of(["first", "all"])),
        ("body match error", "a string", _is_text),
        ("keys", "a list of strings", _list_of(_is_text)),
        ("retryAfter", "a number of seconds or an ASCII text", _is_wait),
        ("headers", "an object of ASCII texts or lists of them", _are_headers),
        ("tokens", "an object", _is(dict)),
        ("faults", "a list of objects", _list_of(_is(dict))),
        ("jobs", "a list of jobs", _is(list)),
        ("jobId", "a GUID", is_guid),
        ("jobRunParameters", "a list of parameters: name and type number", _list_of(_is_parameter)),
        ("exclusive", "a list of lists of names", _list_of(_list_of(_is_text))),
    )
    for key in keys.split()
}
"""The rule of each key in the simulator's files: in words, and as a test."""

_SCRIPT_KEYS: Final = "seed", "latency", "finishAfter", "tokens", "faults"
_FAULT_KEYS: Final = (
    *("on", "at", "every", "share", "from", "to", "match"),
    *("seconds", "start", "after", "then"),
)


def read_script(script: Script) -> Script:
    """Check the JSON of a fault script, and return it.

    Raises:
        SimulatorError: the script is malformed.
    """
    check_object(script, "", (), _SCRIPT_KEYS)

    if "tokens" in script:
        check_object(script["tokens"], "tokens", ["expireAfter"], ["which"])

    for i, entry in enumerate(script.get("faults", [])):
        _check_fault(entry, f"faults[{i}]")

    return script


def _check_fault(entry: Entry, where: str) -> None:
    check_object(entry, where, ["fault"], (), is_closed=False)
    name = entry["fault"]
    kind = KINDS[name]
    check_object(entry, where, ["fault", *kind.needs], [*_FAULT_KEYS, *kind.takes])
    silent = {"close", "reset", "hang"}
    first = entry.get("from", 1)
    is_silent = entry.get("on") != "connection" or name in silent
    is_bytes = name != "raw" or max(entry["body"], default="") <= "\xff"
    rules = {
        "fault": (is_silent, f"{_one_of(silent)[0]} on a connection"),
        "to": (first <= entry.get("to", first), f"a number from {first}, the fault's from"),
        "body": (is_bytes, "characters up to U+00FF, as each is sent as one byte"),
    }

    for key, (holds, expected) in rules.items():
        if not holds:
            raise SimulatorError(f"{where}.{key}", expected=expected, got=entry[key])


def pick(script: Script, on: str, number: int, body: bytes = b"") -> Entry:
    """Return the first fault whose selectors all match a request, or :data:`GOOD`.

    Args:
        script: the faults.
        on: the endpoint.
        number: of the request at this endpoint, from 1.
        body: as it was sent.
    """
    seed = script.get("seed", 0)
    entries: Sequence[Entry] = script.get("faults", ())

    for place, entry in enumerate(entries):
        if (
            entry.get("on", "startjob") == on
            and entry.get("from", 1) <= number <= entry.get("to", math.inf)
            and number % entry.get("every", 1) == 0
            and number in entry.get("at", [number])
            and ("share" not in entry or _fraction(seed, place, number) < entry["share"])
            and entry.get("match", "").encode() in body
        ):
            return entry

    return GOOD


def _fraction(seed: int, place: int, number: int) -> float:
    """Return a number from 0 to below 1 that depends only on the arguments."""
    digest = hashlib.blake2b(f"{seed}:{place}:{number}".encode(), digest_size=6).digest()
    return int.from_bytes(digest) / (1 << 48)


def spoil(entry: Entry, answer: Json, now: float) -> Delivery:
    """Return the response to a request.

    Args:
        entry: its fault.
        answer: of the service; any if the request was not served.
        now: Unix time in seconds.
    """
    kind = KINDS[entry["fault"]]
    data = kind.make(entry, answer, now)
    end: End = entry.get("then", kind.end)

    if entry["fault"] == "second-response":
        second = respond(answer | {"jobRunId": str(uuid.uuid4())}, now)
        return Delivery(data, end, entry.get("after", 0.02), second)

    if not data and end == "keep":  # else the client would wait without end
        end = "close"

    return Delivery(data, end, entry.get("after", 0))
