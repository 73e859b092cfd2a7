"""Which request meets which fault, and what each kind of fault makes of an answer. Pure."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import orjson

from deslaunch.simulator.endpoints import START_JOB
from deslaunch.simulator.http import Answer, Delivery, End

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from collections.abc import Set as AbstractSet

    _Spoil = Callable[["Fault", Answer, float], Delivery]

OTHER_JOB: Final = "00000000-0000-4000-8000-000000000000"
"""The jobId that an ``other-job`` fault answers."""

_HUGE_BODY: Final = 2 * 1024 * 1024
_BODILESS: Final = frozenset({204, 304})


@dataclass(frozen=True, slots=True)
class Fault:
    """One entry of a fault script; the package's docstring says what each key means."""

    kind: str
    index: int
    on: str = START_JOB
    at: frozenset[int] = frozenset()
    every: int = 1
    share: float = 1.0
    first: int = 1
    last: int = sys.maxsize
    job_id: str | None = None
    text: bytes = b""
    start: bool = False
    status: int | None = None
    retry_after: str | None = None
    retry_after_date: float | None = None
    seconds: float = 0.0
    size: int | None = None
    location: str = "http://127.0.0.1:9/elsewhere"
    body: str | None = None
    error: str = "the export failed"

    def matches(self, seed: int, number: int, body: bytes) -> bool:
        """Tell whether all selectors hold for the request with this number, from 1."""
        return (
            self.first <= number <= self.last
            and number % self.every == 0
            and (not self.at or number in self.at)
            and (self.share >= 1 or _fraction(seed, self.index, number) < self.share)
            and self.text in body
            and (self.job_id is None or self.job_id == _job_id_in(body))
        )


def _fraction(seed: int, index: int, number: int) -> float:
    """Return a number from 0 to below 1 that depends on nothing but the arguments."""
    digest = hashlib.blake2b(f"{seed}:{index}:{number}".encode(), digest_size=6).digest()
    return int.from_bytes(digest) / (1 << 48)


def _job_id_in(body: bytes) -> str | None:
    try:
        job_id = orjson.loads(body).get("jobId")
    except (orjson.JSONDecodeError, AttributeError):
        return None

    return job_id.lower() if isinstance(job_id, str) else None


@dataclass(frozen=True, slots=True)
class Script:
    """A fault script, checked.

    Attributes:
        seed: seed of every ``share``.
        latency: seconds that every answer waits.
        finish_after: seconds from a run's start to its end.
        expire_after: starts that a token is good for, or None.
        expire_all: whether that goes for every token, or for the first one alone.
        faults: in the order in which they are tried.
    """

    seed: int = 0
    latency: float = 0.0
    finish_after: float = 0.0
    expire_after: int | None = None
    expire_all: bool = False
    faults: tuple[Fault, ...] = ()

    def pick(self, on: str, number: int, body: bytes = b"") -> Fault | None:
        """Return the fault of the request with this number, from 1, at an endpoint, or None."""
        return next(
            (f for f in self.faults if f.on == on and f.matches(self.seed, number, body)), None
        )


def _answer_then(end: End) -> _Spoil:
    return lambda _fault, answer, _now: Delivery(answer.encode(), end)


def _silence_then(end: End) -> _Spoil:
    return lambda _fault, _answer, _now: Delivery(b"", end)


def _spoil_status(fault: Fault, answer: Answer, now: float) -> Delivery:
    assert fault.status is not None
    status = fault.status
    served = fault.start and status < HTTPStatus.MULTIPLE_CHOICES
    body = answer.body if served else orjson.dumps({"message": f"scripted {status}"})

    if fault.body is not None:
        body = fault.body.encode()

    if status in _BODILESS:
        body = b""

    return Delivery(Answer(status, body, _retry_after(fault, now)).encode())


def _retry_after(fault: Fault, now: float) -> tuple[tuple[str, str], ...]:
    if fault.retry_after_date is not None:
        return (("Retry-After", formatdate(now + fault.retry_after_date, usegmt=True)),)

    return (("Retry-After", fault.retry_after),) if fault.retry_after is not None else ()


def _spoil_outage(fault: Fault, answer: Answer, now: float) -> Delivery:
    if fault.status is None:
        return Delivery(b"", End.CLOSE)

    return _spoil_status(fault, answer, now)


def _spoil_redirect(fault: Fault, _answer: Answer, _now: float) -> Delivery:
    location = (("Location", fault.location),)
    return Delivery(Answer(fault.status or HTTPStatus.FOUND, b"", location).encode())


def _spoil_garbage(_fault: Fault, _answer: Answer, _now: float) -> Delivery:
    return Delivery(b"SMTP 220 not this service\r\n\r\n", End.CLOSE)


def _spoil_cut_head(fault: Fault, answer: Answer, _now: float) -> Delivery:
    head = answer.head()
    return Delivery(head[: _size(fault, len(head) // 2, most=len(head) - 1)], End.CLOSE)


def _spoil_cut_body(fault: Fault, answer: Answer, _now: float) -> Delivery:
    size = _size(fault, len(answer.body) // 2, most=len(answer.body) - 1)
    return Delivery(answer.head() + answer.body[:size], End.CLOSE)


def _spoil_stall_body(fault: Fault, answer: Answer, now: float) -> Delivery:
    return Delivery(_spoil_cut_body(fault, answer, now).data, End.HANG)


def _spoil_not_json(fault: Fault, _answer: Answer, _now: float) -> Delivery:
    page = fault.body if fault.body is not None else "<html><body>Welcome</body></html>"
    return Delivery(Answer(200, page.encode(), content_type="text/html").encode())


def _spoil_no_id(_fault: Fault, answer: Answer, _now: float) -> Delivery:
    kept = {k: v for k, v in orjson.loads(answer.body).items() if k != "jobRunId"}
    return Delivery(Answer.json(answer.status, kept).encode())


def _spoil_other_job(_fault: Fault, answer: Answer, _now: float) -> Delivery:
    other = orjson.loads(answer.body) | {"jobId": OTHER_JOB}
    return Delivery(Answer.json(answer.status, other).encode())


def _spoil_huge_body(fault: Fault, answer: Answer, _now: float) -> Delivery:
    padded = orjson.loads(answer.body) | {"padding": ""}
    bare = orjson.dumps(padded)
    padded["padding"] = "x" * (_size(fault, _HUGE_BODY) - len(bare))
    return Delivery(Answer.json(answer.status, padded).encode())


def _size(fault: Fault, default: int, *, most: int | None = None) -> int:
    size = fault.size if fault.size is not None else default
    return size if most is None else min(size, most)


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of fault.

    Attributes:
        spoil: (fault, answer as it should be, Unix time) to what is sent.
        start: whether the request is served, and its run started, before the answer is spoiled.
        needs: keys that the script must give.
        takes: keys that it may give, besides those of every fault.
    """

    spoil: _Spoil
    start: bool
    needs: AbstractSet[str] = frozenset()
    takes: AbstractSet[str] = frozenset()


_STATUS_KEYS: Final = frozenset({"retryAfter", "retryAfterDate", "body", "start"})

KINDS: Final[Mapping[str, Kind]] = {
    "status": Kind(_spoil_status, start=False, needs={"status"}, takes=_STATUS_KEYS),
    "outage": Kind(
        _spoil_outage, start=False, needs={"from", "to"}, takes=_STATUS_KEYS | {"status"}
    ),
    "redirect": Kind(_spoil_redirect, start=False, takes={"status", "location", "start"}),
    "close": Kind(_silence_then(End.CLOSE), start=False),
    "reset": Kind(_silence_then(End.RESET), start=False),
    "hang": Kind(_silence_then(End.HANG), start=False),
    "close-after-start": Kind(_silence_then(End.CLOSE), start=True),
    "reset-after-start": Kind(_silence_then(End.RESET), start=True),
    "hang-after-start": Kind(_silence_then(End.HANG), start=True),
    "close-after-answer": Kind(_answer_then(End.CLOSE), start=True),
    "cut-head": Kind(_spoil_cut_head, start=True, takes={"bytes"}),
    "cut-body": Kind(_spoil_cut_body, start=True, takes={"bytes"}),
    "stall-body": Kind(_spoil_stall_body, start=True, takes={"bytes"}),
    "garbage": Kind(_spoil_garbage, start=True, takes={"start"}),
    "not-json": Kind(_spoil_not_json, start=True, takes={"body", "start"}),
    "no-id": Kind(_spoil_no_id, start=True),
    "other-job": Kind(_spoil_other_job, start=True),
    "huge-body": Kind(_spoil_huge_body, start=True, takes={"bytes"}),
    "latency": Kind(_answer_then(End.KEEP), start=True, needs={"seconds"}),
    "hold": Kind(_answer_then(End.KEEP), start=True),
    "fail-run": Kind(_answer_then(End.KEEP), start=True, takes={"error"}),
}

CONNECTION_KINDS: Final = frozenset({"close", "reset", "hang"})


def spoil(fault: Fault, answer: Answer, now: float) -> Delivery:
    """Return what is sent in an answer's stead.

    Args:
        fault: of any kind.
        answer: as it should be; of a request that was not served, any.
        now: Unix time in seconds.
    """
    return KINDS[fault.kind].spoil(fault, answer, now)
