"""Fault scripts: JSON in, :class:`Script` out; and what each fault makes of a response.

Pure but for :func:`load_json`. The package's docstring says what every key and kind means.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import re
import uuid
import zlib
from email.utils import formatdate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from deslaunch.simulator.http import Delivery, End, Headers, Response, shorten

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping
    from collections.abc import Set as AbstractSet

    Entry = Mapping[str, Any]
    """One entry of a script's ``faults``, checked."""

START_JOB: Final = "startjob"
QUERY_JOBS: Final = "queryjobs"
QUERY_RUN_STATUS: Final = "queryrunstatus"
TOKEN: Final = "token"  # noqa: S105  # an endpoint's name, not a secret
CONNECTION: Final = "connection"
"""No endpoint: a client that has connected, before a byte of it is read."""

ENDPOINTS: Final[Mapping[str, str]] = {
    "/api/v1/startjob": START_JOB,
    "/api/v1/queryjobs": QUERY_JOBS,
    "/api/v1/queryrunstatus": QUERY_RUN_STATUS,
    "/authorisation/token": TOKEN,
}

OTHER_JOB: Final = "00000000-0000-4000-8000-000000000000"
"""The jobId that an ``other-job`` fault names."""

NOTHING: Final = Response(200, b"{}")
"""The response to a request that was not served."""


# What may stand in a JSON file.


class SimulatorError(Exception):
    """A file of the simulator can't be used.

    Attributes:
        where: the value's place, like ``faults[2].share``.
        expected: what may stand there.
        got: what stands there.
    """

    def __init__(self, where: str, *, expected: str, got: object) -> None:
        super().__init__(f"{where}: expected {expected}, got {shorten(got)}")
        self.where = where
        self.expected = expected
        self.got = got


class Rule(NamedTuple):
    """What may stand in one place of a file, in words and as a test."""

    expected: str
    holds: Callable[[Any], bool]


def is_whole(value: Any) -> bool:
    """Return True if it is a whole number; a truth value is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_list_of(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Return a test for lists of nothing but values for which ``holds`` is true."""
    return lambda value: isinstance(value, list) and all(map(holds, value))


def one_of(words: Iterable[str]) -> Rule:
    """Return the rule that nothing but one of these words may stand here."""
    known = sorted(words)
    return Rule(f"one of {', '.join(known)}", known.__contains__)


def _is_number(value: Any) -> bool:
    return is_whole(value) or isinstance(value, float)


def _is_count(value: Any) -> bool:
    return is_whole(value) and value >= 1


def _is_ascii(value: Any) -> bool:
    return isinstance(value, str) and value.isascii() and not {"\r", "\n"} & {*value}


def _are_retry_afters(value: Any) -> bool:
    return value != [] and all(_is_number(item) or _is_ascii(item) for item in _items(value))


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
WHOLE: Final = Rule("a whole number", is_whole)
_OBJECT: Final = Rule("an object", lambda v: isinstance(v, dict))
_COUNT: Final = Rule("a whole number from 1", _is_count)
_NUMBER: Final = Rule("a number of seconds", _is_number)
_SECONDS: Final = Rule("a number of seconds from 0", lambda v: _is_number(v) and v >= 0)


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
        raise SimulatorError(where, expected="an object", got=value)

    inside = f"{where}." if where else ""

    for key in required:
        if key not in value:
            raise SimulatorError(inside + key, expected=rules[key].expected, got=None)

    for key, item in value.items():
        if key not in rules and is_closed:
            raise SimulatorError(inside + key, expected=one_of(rules).expected, got=key)

        if key in rules and not rules[key].holds(item):
            raise SimulatorError(inside + key, expected=rules[key].expected, got=item)

    return value


def load_json(path: str | os.PathLike[str]) -> Any:
    """Return a JSON file's value, which whoever uses it checks.

    Raises:
        SimulatorError: it is no JSON; names the line.
        OSError: it can't be read.
    """
    try:
        return orjson.loads(Path(path).read_bytes())
    except orjson.JSONDecodeError as exc:
        raise SimulatorError(f"{path}, line {exc.lineno}", expected="JSON", got=exc.msg) from exc


# The script.


class Fault(NamedTuple):
    """One entry of a fault script.

    Attributes:
        kind: what it does.
        place: in the list of faults, from 0.
        entry: what the script says.
        at: request numbers that it is for; none: all.
        is_served: the request is served, and its run made, before the response is spoiled.
    """

    kind: str
    place: int
    entry: Entry
    at: frozenset[int] = frozenset()
    is_served: bool = True

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
            entry.get("on", START_JOB) == on
            and entry.get("from", 1) <= number <= entry.get("to", math.inf)
            and number % entry.get("every", 1) == 0
            and (not self.at or number in self.at)
            and ("share" not in entry or _fraction(seed, self.place, number) < entry["share"])
            and match.get("text", "").encode() in body
            and ("jobId" not in match or match["jobId"].lower() == _job_id_in(body))
        )


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
        seed: seed of every ``share``.
        latency: seconds that every response waits.
        finish_after: seconds from a run's start to its end.
        clock_ahead: seconds that DES's clock is ahead of this machine's.
        expire_after: starts that a token is good for.
        expires_all: that goes for every token, not for the first one alone.
        faults: in the order in which they are tried.
    """

    seed: int
    latency: float
    finish_after: float
    clock_ahead: float
    expire_after: float
    expires_all: bool
    faults: tuple[Fault, ...]

    def pick(self, on: str, number: int, body: bytes = b"") -> Fault | None:
        """Return the fault of the request with this number, from 1, at an endpoint, or None."""
        for fault in self.faults:
            if fault.matches(self.seed, on, number, body):
                return fault

        return None


_SCRIPT_RULES: Final[Mapping[str, Rule]] = {
    "seed": WHOLE,
    "latency": _SECONDS,
    "finishAfter": _SECONDS,
    "clockAhead": _NUMBER,
    "tokens": _OBJECT,
    "faults": Rule("a list of objects", is_list_of(_OBJECT.holds)),
}
_TOKENS_RULES: Final = {"expireAfter": _COUNT, "which": one_of(["first", "all"])}

_FAULT_RULES: Final[Mapping[str, Rule]] = {
    "fault": TEXT,
    "on": one_of([*ENDPOINTS.values(), CONNECTION]),
    "at": Rule(
        "a list of whole numbers from 1, not empty", lambda v: v != [] and is_list_of(_is_count)(v)
    ),
    "every": _COUNT,
    "share": Rule("a number from 0 to 1", lambda v: _is_number(v) and 0 <= v <= 1),
    "from": _COUNT,
    "to": _COUNT,
    "match": _OBJECT,
    "seconds": _SECONDS,
    # The others are for some kinds only.
    "start": TRUTH,
    "status": Rule("a status from 200 to 599", lambda v: is_whole(v) and 200 <= v <= 599),  # noqa: PLR2004
    "retryAfter": Rule("a number of seconds, an ASCII text, or a list of them", _are_retry_afters),
    "retryAfterDate": _NUMBER,
    "headers": Rule("an object of ASCII texts or lists of them", _are_headers),
    "after": _SECONDS,
    "bytes": Rule("a whole number from 0", lambda v: is_whole(v) and v >= 0),
    "location": Rule("an ASCII text", _is_ascii),
    "body": TEXT,
    "encoding": one_of(["gzip", "deflate", "none"]),
    "keys": Rule("a list of strings", is_list_of(TEXT.holds)),
    "then": one_of(end.value for end in End),
    "error": TEXT,
}
_KEYS_OF_ALL: Final = frozenset(
    ["fault", "on", "at", "every", "share", "from", "to", "match", "seconds"]
)


def read_script(script: Any) -> Script:
    """Return what a fault script's JSON says.

    Raises:
        SimulatorError: it is malformed.
    """
    top = check_object(script, "", _SCRIPT_RULES)
    tokens = top.get("tokens", {"expireAfter": math.inf})

    if "tokens" in top:
        check_object(tokens, "tokens", _TOKENS_RULES, "expireAfter")

    return Script(
        seed=top.get("seed", 0),
        latency=top.get("latency", 0),
        finish_after=top.get("finishAfter", 0),
        clock_ahead=top.get("clockAhead", 0),
        expire_after=tokens["expireAfter"],
        expires_all=tokens.get("which") == "all",
        faults=tuple(_read_fault(i, entry) for i, entry in enumerate(top.get("faults", []))),
    )


def _read_fault(index: int, entry: dict[str, Any]) -> Fault:
    where = f"faults[{index}]"
    check_object(entry, where, {"fault": one_of(KINDS)}, "fault", is_closed=False)
    name: str = entry["fault"]
    kind = KINDS[name]
    rules = {key: _FAULT_RULES[key] for key in _KEYS_OF_ALL | kind.needs | kind.takes}
    check_object(entry, where, rules, *sorted(kind.needs))
    check_object(entry.get("match", {}), f"{where}.match", {"jobId": GUID, "text": TEXT})

    if entry.get("on") == CONNECTION and name not in _CONNECTION_KINDS:
        expected = f"{one_of(_CONNECTION_KINDS).expected} on a connection"
        raise SimulatorError(f"{where}.fault", expected=expected, got=name)

    if entry.get("from", 1) > entry.get("to", math.inf):
        expected = f"a number from {entry['from']}, where the fault begins"
        raise SimulatorError(f"{where}.to", expected=expected, got=entry["to"])

    if name == "raw" and max(entry["body"], default="") > "\xff":
        expected = "characters up to U+00FF, each of which is sent as one byte"
        raise SimulatorError(f"{where}.body", expected=expected, got=entry["body"])

    is_served = entry.get("start", kind.is_served)
    return Fault(name, index, entry, frozenset(entry.get("at", ())), is_served)


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


def _cut_head(entry: Entry, response: Response, now: float) -> bytes:
    head = response.head(now)
    return head[: min(entry.get("bytes", len(head) // 2), len(head) - 1)]


def _cut_body(entry: Entry, response: Response, now: float) -> bytes:
    length = len(response.body)
    size = min(entry.get("bytes", length // 2), length - 1)
    return response.head(now) + response.body[:size]


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
    "cut-head": Kind(_cut_head, End.CLOSE, takes={"bytes"}),
    "cut-body": Kind(_cut_body, End.CLOSE, takes={"bytes"}),
    "stall-body": Kind(_cut_body, End.HANG, takes={"bytes"}),
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


def spoil(fault: Fault, response: Response, now: float) -> Delivery:
    """Return what is sent instead of a response.

    Args:
        fault: of any kind.
        response: as it should be; of a request that was not served, any.
        now: Unix time in seconds.
    """
    kind, entry = KINDS[fault.kind], fault.entry
    made = kind.make(entry, response, now)
    data = made if isinstance(made, bytes) else made.encode(now)

    if fault.kind == "second-response":
        second = _change(response, jobRunId=str(uuid.uuid4()))
        return Delivery(data, after=entry.get("after", 0.02), more=second.encode(now))

    if not data and kind.end is End.KEEP:  # nothing at all would be silence for ever
        return Delivery(data, End.CLOSE)

    return Delivery(data, End(entry.get("then", kind.end)), after=entry.get("after", 0))
