"""Which answers are sent again, and how long a row waits."""

from __future__ import annotations

import random
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deslaunch.errors import (
    DesError,
    Misconfigured,
    NotSent,
    OutcomeUnknown,
    QueryFailed,
    Redirected,
    Rejected,
    ServerError,
    Throttled,
)
from deslaunch.retry import Decision, Retry5xx, RetryPolicy, target_waits, waits

ALL, DEFAULT, NONE = Retry5xx.ALL, Retry5xx.DEFAULT, Retry5xx.NONE
RETRY, FAILED, REJECTED, UNKNOWN = (
    Decision.RETRY,
    Decision.FAILED,
    Decision.REJECTED,
    Decision.UNKNOWN,
)

# error, then the decision under ALL, DEFAULT, NONE
TABLE = {
    "500": (ServerError("m", status=500), RETRY, RETRY, UNKNOWN),
    "502": (ServerError("m", status=502), RETRY, RETRY, UNKNOWN),
    "bare-503": (ServerError("m", status=503), RETRY, RETRY, UNKNOWN),
    "599": (ServerError("m", status=599), RETRY, RETRY, UNKNOWN),
    "500-with-retry-after": (
        ServerError("m", status=500, retry_after=9.0),
        RETRY,
        RETRY,
        UNKNOWN,
    ),
    "504-as-unknown": (OutcomeUnknown("m", status=504), RETRY, UNKNOWN, UNKNOWN),
    "524-as-unknown": (OutcomeUnknown("m", status=524), RETRY, UNKNOWN, UNKNOWN),
    "504-as-server-error": (ServerError("m", status=504), RETRY, UNKNOWN, UNKNOWN),
    "524-as-server-error": (ServerError("m", status=524), RETRY, UNKNOWN, UNKNOWN),
    "408": (OutcomeUnknown("m", status=408), UNKNOWN, UNKNOWN, UNKNOWN),
    "bad-200": (OutcomeUnknown("m", status=200), UNKNOWN, UNKNOWN, UNKNOWN),
    "300": (OutcomeUnknown("m", status=300), UNKNOWN, UNKNOWN, UNKNOWN),
    "no-answer": (OutcomeUnknown("m"), UNKNOWN, UNKNOWN, UNKNOWN),
    "400": (Rejected("m", status=400), REJECTED, REJECTED, REJECTED),
    "403": (Rejected("m", status=403), REJECTED, REJECTED, REJECTED),
    "rejected-504": (Rejected("m", status=504), REJECTED, REJECTED, REJECTED),
}


@pytest.mark.parametrize("answers", [1, 4, 5, 6, 10**9])
@pytest.mark.parametrize("auto", [True, False])
@pytest.mark.parametrize(("policy", "column"), [(ALL, 1), (DEFAULT, 2), (NONE, 3)])
@pytest.mark.parametrize("row", TABLE.values(), ids=list(TABLE))
def test_decisions(
    row: tuple[DesError, Decision, Decision, Decision],
    policy: Retry5xx,
    column: int,
    auto: bool,
    answers: int,
) -> None:
    expected = row[column]

    if expected is RETRY and auto:
        expected = UNKNOWN
    elif expected is RETRY and answers >= 5:
        expected = FAILED

    found = RetryPolicy(retry_5xx=policy).decide(row[0], answers=answers, auto=auto)
    assert found is expected


def test_what_is_done_where_nothing_is_said() -> None:
    assert RetryPolicy() == RetryPolicy(max_attempts=5, max_wait=60.0, retry_5xx=DEFAULT)


@pytest.mark.parametrize("member", [*Retry5xx, *Decision])
def test_a_value_is_its_name(member: Retry5xx | Decision) -> None:
    assert member.value == member.name.lower()


@pytest.mark.parametrize("attempts", [1, 2, 7])
def test_the_last_attempt_fails(attempts: int) -> None:
    policy = RetryPolicy(max_attempts=attempts)
    error = ServerError("m", status=500)
    decided = [policy.decide(error, answers=n, auto=False) for n in range(1, attempts + 2)]
    assert decided == [RETRY] * (attempts - 1) + [FAILED, FAILED]


@pytest.mark.parametrize(
    "error",
    [
        NotSent("m"),
        Misconfigured("m"),
        Throttled("m", status=429),
        Throttled("m", status=503, retry_after=1.0),
        Throttled("m", status=504, retry_after=1.0),
        QueryFailed("m", status=500),
        QueryFailed("m", status=504),
        Redirected("m", status=302),
        DesError("m", status=500),
    ],
    ids=repr,
)
@pytest.mark.parametrize("policy", list(Retry5xx))
@pytest.mark.parametrize("auto", [True, False])
def test_what_is_the_targets_matter_is_never_retried_as_a_rows(
    error: DesError, policy: Retry5xx, auto: bool
) -> None:
    decided = RetryPolicy(retry_5xx=policy).decide(error, answers=1, auto=auto)
    assert decided in {UNKNOWN, REJECTED}


class Edge:
    """Jitter at an end of its range."""

    def __init__(self, *, upper: bool) -> None:
        self.upper = upper

    def uniform(self, a: float, b: float) -> float:
        assert 0 <= a <= b
        return b if self.upper else a


def test_the_longest_waits_double_up_to_their_cap() -> None:
    top, bottom = Edge(upper=True), Edge(upper=False)
    assert list(islice(waits(60.0, top), 9)) == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert list(islice(waits(60.0, bottom), 9)) == [0.0] * 9
    assert list(islice(target_waits(60.0, top), 9)) == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert list(islice(target_waits(60.0, bottom), 8)) == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert list(islice(waits(0.25, top), 3)) == [0.25] * 3


@given(st.integers(0, 2**32), st.floats(0.001, 1e6))
@settings(max_examples=100, deadline=None)
def test_waits_lie_within_their_bounds(seed: int, max_wait: float) -> None:
    some = list(islice(waits(max_wait, random.Random(seed)), 30))
    pauses = list(islice(target_waits(max_wait, random.Random(seed)), 30))

    for n, (wait, pause) in enumerate(zip(some, pauses, strict=True)):
        ceiling = min(2.0**n, max_wait)
        assert 0 <= wait <= ceiling
        assert ceiling / 2 <= pause <= ceiling


@pytest.mark.parametrize("max_wait", [60.0, 1e300, float("inf")])
def test_countless_waits_do_not_overflow(max_wait: float) -> None:
    for make in (waits, target_waits):
        last = list(islice(make(max_wait, random.Random(1)), 5000))[-1]
        assert 0 <= last <= max_wait


def test_rows_that_failed_together_do_not_come_back_together() -> None:
    rng = random.Random(7)
    assert len({next(waits(60.0, rng)) for _ in range(100)}) == 100
