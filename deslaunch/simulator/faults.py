"""HTTP by hand, and fault scripts: JSON in, :class:`Script` out; what a fault makes of a response.

The package's docstring says what every key and kind means.
"""

import asyncio
import gzip
import hashlib
import math
import os
import re
import uuid
import zlib
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from email.utils import formatdate
from enum import Enum
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson

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

HEAD_LIMIT: Final = 64 * 1024
_BODY_LIMIT: Final = 16 * 1024 * 1024
_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}

Headers = tuple[tuple[str, str], ...]


# HTTP/1.1: requests out of bytes, responses into bytes.


class Request(NamedTuple):
    """One HTTP request.

    Attributes:
        method: as sent.
        path: as sent, without the query.
        headers: names in lower case; of a name given twice, the last.
        body: as sent.
        is_last: the client wants the connection closed after the response.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    is_last: bool


class Response(NamedTuple):
    """One HTTP response as it should be, before any fault.

    Attributes:
        status: 200 to 599.
        body: any bytes.
        headers: sent after the content's own, in this order.
        content_type: media type of the body.
    """

    status: int
    body: bytes
    headers: Headers = ()
    content_type: str = "application/json"

    def head(self, now: float) -> bytes:
        """Return status line and headers, with the empty line that ends them.

        Args:
            now: Unix time in seconds, for the ``Date`` header.
        """
        more = "".join([f"{name}: {value}\r\n" for name, value in self.headers])
        reason = _REASONS.get(self.status, "Unknown")
        return (
            f"HTTP/1.1 {self.status} {reason}\r\nDate: {_http_date(int(now))}\r\n"
            f"Content-Type: {self.content_type}\r\nContent-Length: {len(self.body)}\r\n{more}\r\n"
        ).encode("latin-1")

    def encode(self, now: float) -> bytes:
        """Return the whole response as it goes over the wire."""
        return self.head(now) + self.body


@lru_cache(maxsize=2)
def _http_date(second: int) -> str:
    return formatdate(second, usegmt=True)


class Refused(Exception):
    """A request is refused.

    Attributes:
        response: 400, 401, 404 or 405, with the reason as JSON.
    """

    def __init__(self, status: int, message: str, *, key: str = "message") -> None:
        super().__init__(message)
        self.response = Response(status, orjson.dumps({key: message}))


class End(Enum):
    """What becomes of a connection after the bytes of a response."""

    KEEP = "keep"
    """It serves the next request."""
    CLOSE = "close"
    """FIN."""
    RESET = "reset"
    """RST."""
    HANG = "hang"
    """Nothing more is sent; it stays open until the client hangs up."""


class Delivery(NamedTuple):
    """What one request gets.

    Attributes:
        data: the exact bytes of the response, perhaps none.
        end: what follows them.
        after: seconds between the bytes and ``more`` and ``end``; no request is served meanwhile.
        more: bytes that nobody asked for.
    """

    data: bytes
    end: End = End.KEEP
    after: float = 0.0
    more: bytes = b""


async def read_request(reader: asyncio.StreamReader) -> Request | None:
    """Return the next whole request, or None where the client has hung up before its end.

    Raises:
        Refused: 400, the bytes are no HTTP/1.1 request; a head is over 64 KiB, a body over
            16 MiB or without a Content-Length. Nothing after them can be read.
        OSError: the connection broke off.
    """
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        request, length = _parse_head(head[:-4])
        return request._replace(body=await reader.readexactly(length))
    except asyncio.IncompleteReadError:
        return None
    except asyncio.LimitOverrunError as exc:
        raise Refused(400, f"a head over {HEAD_LIMIT} bytes") from exc


@lru_cache(maxsize=256)  # one client's heads differ in little but their Content-Length
def _parse_head(data: bytes) -> tuple[Request, int]:
    """Return a request without its body, and the body's length."""
    request_line, *fields = data.decode("latin-1").split("\r\n")
    words = request_line.split(" ")

    if len(words) != 3 or words[2] not in ("HTTP/1.0", "HTTP/1.1"):  # noqa: PLR2004
        raise Refused(400, f"no request line: {shorten(request_line)}")

    headers = {}

    for line in fields:
        name, colon, value = line.partition(":")

        if not colon or not name or name != name.strip():
            raise Refused(400, f"no header: {shorten(line)}")

        headers[name.lower()] = value.strip()

    connection = headers.get("connection", "").lower()
    is_last = connection == "close" or (words[2] == "HTTP/1.0" and connection != "keep-alive")
    path = words[1].partition("?")[0]
    text = headers.get("content-length", "0")

    if "transfer-encoding" in headers:
        raise Refused(400, "a body in chunks is not taken: send its Content-Length")

    if not (text.isascii() and text.isdigit() and len(text) <= 19):  # noqa: PLR2004  # 64 bits
        raise Refused(400, f"no Content-Length: {shorten(text)}")

    if int(text) > _BODY_LIMIT:
        raise Refused(400, f"a body over {_BODY_LIMIT} bytes")

    return Request(words[0], path, headers, b"", is_last), int(text)


# What may stand in a JSON file.


def shorten(value: object) -> str:
    """Return the value as Python writes it, at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"  # noqa: PLR2004  # a line of a terminal


class SimulatorError(Exception):
    """A file of the simulator can't be used.

    Attributes:
        where: the value's place, like ``faults[2].share``.
        expected: what may stand there.
    """

    def __init__(self, where: str, *, expected: str, got: object) -> None:
        super().__init__(f"{where}: expected {expected}, got {shorten(got)}")
        self.where = where
        self.expected = expected


class Rule(NamedTuple):
    """What may stand in one place of a file, in words and as a test."""

    expected: str
    holds: Callable[[Any], bool]


def one_of(words: Iterable[str]) -> Rule:
    """Return the rule that nothing but one of these words may stand here."""
    known = sorted(words)
    return Rule(f"one of {', '.join(known)}", known.__contains__)


def is_list_of(holds: Callable[[Any], bool], least: int = 0) -> Callable[[Any], bool]:
    """Return a test for lists of nothing but values for which ``holds`` is true."""
    return lambda v: isinstance(v, list) and len(v) >= least and all(map(holds, v))


def is_whole(value: Any, least: float = -math.inf, most: float = math.inf) -> bool:
    """Return True if it is a whole number in a range; a truth value is none."""
    return type(value) is int and least <= value <= most


def _is_number(value: Any, least: float = -math.inf, most: float = math.inf) -> bool:
    return type(value) in (int, float) and least <= value <= most


def _is_count(value: Any) -> bool:
    return is_whole(value, 1)


def _is_ascii(value: Any) -> bool:
    return isinstance(value, str) and value.isascii() and not {"\r", "\n"} & {*value}


def _are_headers(value: Any) -> bool:
    return isinstance(value, dict) and all(
        map(_is_ascii, [*value, *(text for texts in value.values() for text in _items(texts))])
    )


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


_GUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)

GUID: Final = Rule("a GUID", lambda v: isinstance(v, str) and _GUID.fullmatch(v) is not None)
TEXT: Final = Rule("a string", lambda v: isinstance(v, str))
TRUTH: Final = Rule("true or false", lambda v: isinstance(v, bool))
_OBJECT: Final = Rule("an object", lambda v: isinstance(v, dict))
_COUNT: Final = Rule("a whole number from 1", _is_count)
_NUMBER: Final = Rule("a number of seconds", _is_number)
_SECONDS: Final = Rule("a number of seconds from 0", lambda v: _is_number(v, 0))


def check_object(
    value: Any, where: str, rules: Mapping[str, Rule], *required: str, is_closed: bool = True
) -> dict[str, Any]:
    """Return ``value``, an object whose values keep the rules of their keys.

    Args:
        value: any JSON.
        where: its place in the file, ``""`` for the file's own value.
        rules: what may stand at each key.
        required: keys that must be there, each with a rule.
        is_closed: keys without a rule are refused.

    Raises:
        SimulatorError: for the first key that breaks a rule.
    """
    if not isinstance(value, dict):
        raise SimulatorError(where, expected=_OBJECT.expected, got=value)

    inside = f"{where}." if where else ""

    for key, item in (dict.fromkeys(required) | value).items():
        if key in rules and (key not in value or not rules[key].holds(item)):
            raise SimulatorError(inside + key, expected=rules[key].expected, got=item)

        if key not in rules and is_closed:
            raise SimulatorError(inside + key, expected=one_of(rules).expected, got=key)

    return value


def load_json(path: str | os.PathLike[str]) -> Any:
    """Return the JSON of a jobs file or a fault script, which :class:`Simulator` checks.

    Raises:
        SimulatorError: it is no JSON; names the line.
        OSError: it can't be read.
    """
    try:
        return orjson.loads(Path(path).read_bytes())
    except orjson.JSONDecodeError as exc:
        raise SimulatorError(f"{path}, line {exc.lineno}", expected="JSON", got=exc.msg) from exc


# What a fault makes of a response: another one, or bytes.


def _good(_entry: Entry, response: Response, _now: float) -> Response:
    return response


def _silence(_entry: Entry, _response: Response, _now: float) -> bytes:
    return b""


def _status(entry: Entry, response: Response, now: float) -> Response | bytes:
    """Return the status that the script names; an outage without one is silence."""
    status: int = entry.get("status", 0)

    if not status:
        return b""

    is_good = entry.get("start", False) and status < 300  # noqa: PLR2004
    body = response.body if is_good else orjson.dumps({"message": f"scripted {status}"})

    if "body" in entry:
        body = entry["body"].encode()

    waits = _items(entry.get("retryAfter", []))

    if "retryAfterDate" in entry:
        waits = [formatdate(now + entry["retryAfterDate"], usegmt=True)]

    headers = *(("Retry-After", str(wait)) for wait in waits), *_headers(entry)
    return Response(status, b"" if status in (204, 304) else body, headers)


def _headers(entry: Entry) -> Headers:
    named = entry.get("headers", {}).items()
    return tuple((name, text) for name, texts in named for text in _items(texts))


def _redirect(entry: Entry, _response: Response, _now: float) -> Response:
    location = entry.get("location", "http://127.0.0.1:9/elsewhere")
    return Response(entry.get("status", 302), b"", (("Location", location),))


def _raw(entry: Entry, response: Response, _now: float) -> bytes:
    text: str = entry["body"]

    for name, value in orjson.loads(response.body).items():
        text = text.replace(f"{{{name}}}", str(value))

    return text.encode("latin-1", "replace")


def _cut(entry: Entry, response: Response, now: float) -> bytes:
    """Return a part of the head, or the head and a part of the body, but never all of it."""
    head, body = response.head(now), response.body
    whole, part = (b"", head) if entry["fault"] == "cut-head" else (head, body)
    return whole + part[: min(entry.get("bytes", len(part) // 2), len(part) - 1)]


def _not_json(entry: Entry, _response: Response, _now: float) -> Response:
    page = entry.get("body", "<html><body>Welcome</body></html>")
    return Response(200, page.encode(), content_type="text/html")


def _leave_out(entry: Entry, response: Response, _now: float) -> Response:
    keys = entry.get("keys", ["jobRunId"])
    kept = {key: v for key, v in orjson.loads(response.body).items() if key not in keys}
    return response._replace(body=orjson.dumps(kept))


def _gzip(entry: Entry, response: Response, _now: float) -> Response:
    encoding = entry.get("encoding", "gzip")
    body = _pad(response, entry.get("bytes", 0)).body
    packed = zlib.compress(body) if encoding == "deflate" else gzip.compress(body, mtime=0)
    headers = () if encoding == "none" else (("Content-Encoding", encoding),)
    return response._replace(body=packed, headers=headers)


def _long_header(entry: Entry, response: Response, _now: float) -> Response:
    return response._replace(headers=(("X-Long", "x" * entry.get("bytes", 9000)),))


def _change(response: Response, **values: str) -> Response:
    return response._replace(body=orjson.dumps(orjson.loads(response.body) | values))


def _pad(response: Response, size: int) -> Response:
    """Return a response with the same JSON, and padding up to so many bytes."""
    bare = len(_change(response, padding="").body)
    return response if size < bare else _change(response, padding="x" * (size - bare))


class Kind(NamedTuple):
    """One kind of fault.

    Attributes:
        make: (what the script says, the response as it should be, Unix time) to what is sent.
        end: what follows it.
        is_served: the request is served, and its run made, before the response is spoiled.
        needs: keys that the script must give.
        takes: keys that it may give, besides those of every fault.
    """

    make: Callable[[Entry, Response, float], Response | bytes]
    end: End = End.KEEP
    is_served: bool = True
    needs: AbstractSet[str] = frozenset()
    takes: AbstractSet[str] = frozenset()


_STATUS_KEYS: Final = frozenset({"retryAfter", "retryAfterDate", "body", "headers", "start"})
_OUTAGE_KEYS: Final = _STATUS_KEYS | {"status"}

KINDS: Final[Mapping[str, Kind]] = {
    "status": Kind(_status, is_served=False, needs={"status"}, takes=_STATUS_KEYS),
    "outage": Kind(_status, is_served=False, needs={"from", "to"}, takes=_OUTAGE_KEYS),
    "redirect": Kind(_redirect, is_served=False, takes={"status", "location", "start"}),
    "close": Kind(_silence, End.CLOSE, is_served=False),
    "reset": Kind(_silence, End.RESET, is_served=False),
    "hang": Kind(_silence, End.HANG, is_served=False),
    "close-after-start": Kind(_silence, End.CLOSE),
    "reset-after-start": Kind(_silence, End.RESET),
    "hang-after-start": Kind(_silence, End.HANG),
    "close-after-response": Kind(_good, End.CLOSE, takes={"after"}),
    "second-response": Kind(_good, takes={"after"}),
    "cut-head": Kind(_cut, End.CLOSE, takes={"bytes"}),
    "cut-body": Kind(_cut, End.CLOSE, takes={"bytes"}),
    "stall-body": Kind(_cut, End.HANG, takes={"bytes"}),
    "garbage": Kind(lambda *_: b"SMTP 220 not this service\r\n\r\n", End.CLOSE, takes={"start"}),
    "raw": Kind(_raw, needs={"body"}, takes={"then", "start"}),
    "not-json": Kind(_not_json, takes={"body", "start"}),
    "no-id": Kind(_leave_out),
    "leave-out": Kind(_leave_out, needs={"keys"}),
    "other-job": Kind(lambda _, r, __: _change(r, jobId=OTHER_JOB)),
    "other-run": Kind(_good),  # the service knows the runs
    "huge-body": Kind(lambda e, r, _: _pad(r, e.get("bytes", 2 << 20)), takes={"bytes"}),
    "gzip": Kind(_gzip, takes={"encoding", "bytes"}),
    "bom": Kind(lambda _, r, __: r._replace(body=b"\xef\xbb\xbf" + r.body)),
    "headers": Kind(lambda e, r, _: r._replace(headers=_headers(e)), needs={"headers"}),
    "long-header": Kind(_long_header, takes={"bytes"}),
    "latency": Kind(_good, needs={"seconds"}),
    "hold": Kind(_good),
    "fail-run": Kind(_good, takes={"error"}),
}

_CONNECTION_KINDS: Final = frozenset({"close", "reset", "hang"})


# The script.


class Fault(NamedTuple):
    """One entry of a fault script.

    Attributes:
        kind: what it does.
        place: in the list of faults, from 0.
        entry: what the script says.
    """

    kind: str
    place: int
    entry: Entry

    @property
    def is_served(self) -> bool:
        """The request is served, and its run made, before the response is spoiled."""
        return bool(self.entry.get("start", KINDS[self.kind].is_served))

    def matches(self, seed: int, on: str, number: int, body: bytes) -> bool:
        """Return True if all selectors hold for a request.

        Args:
            seed: the script's.
            on: the endpoint.
            number: of the request at this endpoint, from 1.
            body: as it was sent.
        """
        entry, match = self.entry, self.entry.get("match", {})
        return (
            entry.get("on", "startjob") == on
            and entry.get("from", 1) <= number <= entry.get("to", math.inf)
            and number % entry.get("every", 1) == 0
            and number in entry.get("at", [number])
            and ("share" not in entry or _fraction(seed, self.place, number) < entry["share"])
            and match.get("text", "").encode() in body
            and ("jobId" not in match or match["jobId"].lower() == _job_id_in(body))
        )

    def spoil(self, response: Response, now: float) -> Delivery:
        """Return what is sent instead of a response.

        Args:
            response: as it should be; of a request that was not served, any.
            now: Unix time in seconds.
        """
        kind = KINDS[self.kind]
        made = kind.make(self.entry, response, now)
        data = made if isinstance(made, bytes) else made.encode(now)

        if self.kind == "second-response":
            second = _change(response, jobRunId=str(uuid.uuid4()))
            return Delivery(data, after=self.entry.get("after", 0.02), more=second.encode(now))

        if not data and kind.end is End.KEEP:  # nothing at all would be silence for ever
            return Delivery(data, End.CLOSE)

        return Delivery(data, End(self.entry.get("then", kind.end)), self.entry.get("after", 0))


def _fraction(seed: int, place: int, number: int) -> float:
    """Return a number from 0 to below 1 that depends on nothing but the arguments."""
    digest = hashlib.blake2b(f"{seed}:{place}:{number}".encode(), digest_size=6).digest()
    return int.from_bytes(digest) / (1 << 48)


def _job_id_in(body: bytes) -> str | None:
    try:
        return str(orjson.loads(body).get("jobId")).lower()
    except (orjson.JSONDecodeError, AttributeError):
        return None


class Script(NamedTuple):
    """A fault script, checked.

    Attributes:
        settings: all that it says.
        faults: of these, in the order in which they are tried.
    """

    settings: Mapping[str, Any]
    faults: tuple[Fault, ...]

    def pick(self, on: str, number: int, body: bytes = b"") -> Fault | None:
        """Return the fault of the request with this number, from 1, at an endpoint, or None."""
        seed = self.settings.get("seed", 0)
        return next((f for f in self.faults if f.matches(seed, on, number, body)), None)


_SCRIPT_RULES: Final[Mapping[str, Rule]] = {
    "seed": Rule("a whole number", is_whole),
    "latency": _SECONDS,
    "finishAfter": _SECONDS,
    "clockAhead": _NUMBER,
    "tokens": _OBJECT,
    "faults": Rule("a list of objects", is_list_of(_OBJECT.holds)),
}
_TOKENS_RULES: Final = {"expireAfter": _COUNT, "which": one_of(["first", "all"])}

_SELECTOR_RULES: Final[Mapping[str, Rule]] = {
    "fault": one_of(KINDS),
    "on": one_of([*ENDPOINTS.values(), "connection"]),
    "at": Rule("a list of whole numbers from 1, not empty", is_list_of(_is_count, least=1)),
    "every": _COUNT,
    "share": Rule("a number from 0 to 1", lambda v: _is_number(v, 0, 1)),
    "from": _COUNT,
    "to": _COUNT,
    "match": _OBJECT,
    "seconds": _SECONDS,
}
_MATCH_RULES: Final = {"jobId": GUID, "text": TEXT}

_KIND_RULES: Final[Mapping[str, Rule]] = {
    "start": TRUTH,
    "status": Rule("a status from 200 to 599", lambda v: is_whole(v, 200, 599)),
    "retryAfter": Rule(
        "a number of seconds, an ASCII text, or a list of them",
        lambda v: v != [] and all(_is_number(item) or _is_ascii(item) for item in _items(v)),
    ),
    "retryAfterDate": _NUMBER,
    "headers": Rule("an object of ASCII texts or lists of them", _are_headers),
    "after": _SECONDS,
    "bytes": Rule("a whole number from 0", lambda v: is_whole(v, 0)),
    "location": Rule("an ASCII text", _is_ascii),
    "body": TEXT,
    "encoding": one_of(["gzip", "deflate", "none"]),
    "keys": Rule("a list of strings", is_list_of(TEXT.holds)),
    "then": one_of(end.value for end in End),
    "error": TEXT,
}
"""Keys of some kinds only: which, says :data:`KINDS`."""


def read_script(script: Any) -> Script:
    """Return what a fault script's JSON says.

    Raises:
        SimulatorError: it is malformed.
    """
    settings = check_object(script, "", _SCRIPT_RULES)

    if "tokens" in settings:
        check_object(settings["tokens"], "tokens", _TOKENS_RULES, "expireAfter")

    entries = enumerate(settings.get("faults", []))
    return Script(settings, tuple(_read_fault(i, entry) for i, entry in entries))


def _read_fault(index: int, entry: dict[str, Any]) -> Fault:
    where = f"faults[{index}]"
    check_object(entry, where, {"fault": _SELECTOR_RULES["fault"]}, "fault", is_closed=False)
    name = entry["fault"]
    kind = KINDS[name]
    own = {key: rule for key, rule in _KIND_RULES.items() if key in kind.needs | kind.takes}
    check_object(entry, where, {**_SELECTOR_RULES, **own}, *sorted(kind.needs))
    check_object(entry.get("match", {}), f"{where}.match", _MATCH_RULES)

    if entry.get("on") == "connection" and name not in _CONNECTION_KINDS:
        expected = f"{one_of(_CONNECTION_KINDS).expected} on a connection"
        raise SimulatorError(f"{where}.fault", expected=expected, got=name)

    if entry.get("from", 1) > entry.get("to", math.inf):
        expected = f"a number from {entry['from']}, where the fault begins"
        raise SimulatorError(f"{where}.to", expected=expected, got=entry["to"])

    if name == "raw" and max(entry["body"], default="") > "\xff":
        expected = "characters up to U+00FF, each of which is sent as one byte"
        raise SimulatorError(f"{where}.body", expected=expected, got=entry["body"])

    return Fault(name, index, entry)
