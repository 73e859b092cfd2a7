"""The state of every row as a function of the records: tables, and a model that judges."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from deslaunch import ledger, records
from deslaunch.columns import Columns
from deslaunch.endings import Ending
from deslaunch.errors import LedgerForeign
from deslaunch.model import Outcome, RowProblem, RowState, StartRequest, Stop, StopReason
from deslaunch.replay import Replay, check
from deslaunch.states import KeyStates

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from deslaunch.records import Record
    from deslaunch.states import KeyState

UTC = "2026-11-01T02:03:04.567Z"
GUID = "00000000-0000-0000-0000-000000000001"


def header(rows: int | None = 1, sha: str = "a") -> Record:
    return records.batch(
        batch_id="b",
        manifest=None if rows is None else {"path": "m", "sha256": sha, "rows": rows},
        format="csv",
        job_id=None,
        target=None,
        allow=[],
        skip_invalid=True,
        version="0",
    )


def session(rows: int | None = 1, sha: str = "a") -> Record:
    manifest = None if rows is None else {"path": "m", "sha256": sha, "rows": rows}
    return records.session(pid=1, host="h", manifest=manifest, targets={}, options={})


def sending(
    attempt: int, key: str = "k", *, body: bool = False, digest: str = "d", row: int = 1
) -> Record:
    request = StartRequest(key, row, row + 1, "default", GUID, digest, b"{}", auto=False)
    return records.sending(request, attempt, with_body=body)


def answered(attempt: int, status: int | None, key: str = "k") -> Record:
    return records.answered(key, attempt, status=status, error="e")


def unsent(attempt: int, key: str = "k") -> Record:
    return records.unsent(key, attempt, error="e")


def started(attempt: int, run: str = "r", key: str = "k") -> Record:
    return records.started(key, attempt, job_run_id=run)


def rejected(attempt: int, key: str = "k") -> Record:
    return records.rejected(key, attempt, status=400, error="no")


def failed(attempt: int, key: str = "k", status: int = 500) -> Record:
    return records.failed(key, attempt, status=status, error="e")


def unknown(attempt: int, key: str = "k", status: int | None = None) -> Record:
    return records.unknown(key, attempt, cause="lost", status=status)


def invalid(key: str | None = "k", row: int = 1) -> Record:
    problem = RowProblem("m", row + 1, row, "a", "x", "y", "wrong")
    return records.invalid(key, row, row + 1, [problem])


def resolved(run: str | None = None, key: str = "k") -> Record:
    return records.resolved(key, job_run_id=run, note="")


def stamped(record: Record) -> Record:
    return records.decode(records.encode(record, UTC))


def replay_of(history: Iterable[Record], first: Record | None = None) -> Replay:
    replay = Replay()

    for record in (first or header(), *history):
        replay.apply(stamped(record))

    return replay


HASHES: dict[str, Callable[[str], int]] = {
    "all-collide": lambda _: 7,
    "some-collide": lambda text: -(sum(text.encode()) % 3),
    "none-collide": hash,
}


def packed_of(data: bytes, hashing: str) -> Replay:
    """Replay from tables that are tiny at first, with what is packed read back from ``data``."""

    def fetch(offset: int) -> Record:
        return records.decode(data[offset : data.index(b"\n", offset) + 1])

    replay = Replay(KeyStates(fetch, hash_of=HASHES[hashing], columns=Columns(least=2)))

    for offset, record in ledger.read_records(io.BytesIO(data), ledger.Tail()):
        replay.apply(record, offset)

    return replay


def facts(state: KeyState) -> dict[str, Any]:
    return {name: getattr(state, name) for name in FACTS}


FACTS = [
    "answered_utc",
    "attempts",
    "digest",
    "error",
    "final",
    "in_manifest",
    "job_id",
    "job_run_id",
    "key",
    "live_state",
    "number",
    "possible_duplicate",
    "row",
    "sent",
    "sent_utc",
    "state",
    "status",
    "target",
    "unsent",
    "was_sent",
]


def outcome_of(state: KeyState) -> Outcome:
    return Outcome(
        key=state.key,
        row=state.row,
        target=state.target,
        job_id=state.job_id,
        state=state.state,
        job_run_id=state.job_run_id,
        attempts=state.sent,
        status=state.status,
        error=state.error,
        possible_duplicate=state.possible_duplicate,
    )


def assert_same(packed: Replay, plain: Replay) -> None:
    told = [facts(state) for state in plain.states.in_order()]
    assert [facts(state) for state in packed.states.in_order()] == told
    assert [facts(packed.states[state["key"]]) for state in told] == told
    assert [packed.outcome(key) for key in plain.states] == [
        outcome_of(state) for state in plain.states.in_order()
    ]
    assert list(packed.states) == list(plain.states)
    gone = [state["key"] for state in told if not state["in_manifest"]]
    assert [state.key for state in packed.states.outside()] == gone
    assert packed.shared_runs() == plain.shared_runs()
    assert (summary(packed), summary(packed, live=True)) == (
        summary(plain),
        summary(plain, live=True),
    )
    assert packed.get("nobody") is None


def summary(replay: Replay, *, live: bool = False) -> dict[str, Any]:
    found = replay.summary(ledger="l", seconds=0.0, live=live).as_dict()
    states = ("started", "failed", "rejected", "unknown", "invalid", "pending", "inFlight")
    assert found["rows"] == sum(int(found[state]) for state in states)
    return found


P, S, F, R, U, I = (  # noqa: E741
    RowState.PENDING,
    RowState.STARTED,
    RowState.FAILED,
    RowState.REJECTED,
    RowState.UNKNOWN,
    RowState.INVALID,
)

HISTORIES = {
    "sent-and-killed": ([sending(1)], U, 1, False),
    "started": ([sending(1), started(1)], S, 1, False),
    "rejected": ([sending(1), rejected(1)], R, 1, False),
    "failed-at-once": ([sending(1), failed(1)], F, 1, False),
    "lost": ([sending(1), unknown(1)], U, 1, False),
    "unsent": ([sending(1), unsent(1)], P, 1, False),
    "unsent-then-started": ([sending(1), unsent(1), sending(2), started(2)], S, 2, False),
    "invalid": ([invalid()], I, 0, False),
    "invalid-then-sent": ([invalid(), sending(1)], U, 1, False),
    "invalid-then-started": ([invalid(), sending(1), started(1)], S, 1, False),
    "rejected-then-invalid": ([sending(1), rejected(1), invalid()], I, 1, False),
    "doubt-then-invalid": ([sending(1), unknown(1), invalid()], U, 1, False),
    # a 5XX is sent again and a later success is marked
    "5xx-waits": ([sending(1), answered(1, 500)], P, 1, False),
    "5xx-then-started": ([sending(1), answered(1, 500), sending(2), started(2)], S, 2, True),
    "5xx-then-rejected": ([sending(1), answered(1, 500), sending(2), rejected(2)], R, 2, False),
    "failed-then-resent": ([sending(1), failed(1), session(), sending(2)], U, 2, False),
    "failed-then-started": (
        [sending(1), failed(1), session(), sending(2), started(2)],
        S,
        2,
        True,
    ),
    "failed-then-unsent": ([sending(1), failed(1), session(), sending(2), unsent(2)], P, 2, False),
    "failed-then-throttled": (
        [sending(1), failed(1), session(), sending(2), answered(2, 429)],
        P,
        2,
        False,
    ),
    # nothing is doubted after these
    "throttled-429": ([sending(1), answered(1, 429), sending(2), started(2)], S, 2, False),
    "throttled-425": ([sending(1), answered(1, 425), sending(2), started(2)], S, 2, False),
    "refused-401": ([sending(1), answered(1, 401), sending(2), started(2)], S, 2, False),
    "redirected": ([sending(1), answered(1, 302)], P, 1, False),
    # a throttled 503 looks like any other 5XX in the records: marked, to be safe
    "throttled-503": ([sending(1), answered(1, 503), sending(2), started(2)], S, 2, True),
    # doubt is sticky
    "doubt-then-rejected": ([sending(1), unknown(1), sending(2), rejected(2)], U, 2, False),
    "doubt-then-failed": ([sending(1), unknown(1), sending(2), failed(2)], U, 2, False),
    "doubt-then-5xx": ([sending(1), unknown(1), sending(2), answered(2, 500)], U, 2, False),
    "doubt-then-unsent": ([sending(1), unknown(1), sending(2), unsent(2)], U, 2, False),
    "doubt-then-throttled": ([sending(1), unknown(1), sending(2), answered(2, 429)], U, 2, False),
    "kill-then-rejected": ([sending(1), session(), sending(2), rejected(2)], U, 2, False),
    "kill-then-unsent": ([sending(1), session(), sending(2), unsent(2)], U, 2, False),
    "killed-twice": ([sending(1), session(), sending(2), session()], U, 2, False),
    "retry-unknown-then-started": ([sending(1), unknown(1), sending(2), started(2)], S, 2, True),
    "kill-then-started": ([sending(1), session(), sending(2), started(2)], S, 2, True),
    "unknown-504": ([sending(1), unknown(1, status=504)], U, 1, False),
    "unknown-504-then-resolved": (
        [sending(1), unknown(1, status=504), resolved(), sending(2), started(2)],
        S,
        2,
        False,
    ),
    # a person's word
    "resolved-not-started": ([sending(1), unknown(1), resolved()], P, 1, False),
    "kill-resolved-not-started": ([sending(1), session(), resolved()], P, 1, False),
    "two-doubts-resolved": ([sending(1), unknown(1), sending(2), resolved()], P, 2, False),
    "resolved-then-sent": ([sending(1), unknown(1), resolved(), sending(2)], U, 2, False),
    "resolved-then-started": (
        [sending(1), unknown(1), resolved(), sending(2), started(2)],
        S,
        2,
        False,
    ),
    "resolved-then-rejected": (
        [sending(1), unknown(1), resolved(), sending(2), rejected(2)],
        R,
        2,
        False,
    ),
    "resolved-then-lost-again": (
        [sending(1), unknown(1), resolved(), sending(2), unknown(2)],
        U,
        2,
        False,
    ),
    "failed-resolved": ([sending(1), failed(1), resolved()], P, 1, False),
    "failed-resolved-then-started": (
        [sending(1), failed(1), resolved(), sending(2), started(2)],
        S,
        2,
        False,
    ),
    "5xx-resolved-then-started": (
        [sending(1), answered(1, 500), sending(2), unknown(2), resolved(), sending(3), started(3)],
        S,
        3,
        False,
    ),
    "resolved-started": ([sending(1), unknown(1), resolved("r")], S, 1, False),
    "kill-resolved-started": ([sending(1), session(), resolved("r")], S, 1, False),
    "two-doubts-resolved-started": (
        [sending(1), unknown(1), sending(2), unknown(2), resolved("r")],
        S,
        2,
        True,
    ),
    "5xx-and-doubt-resolved-started": (
        [sending(1), answered(1, 500), sending(2), unknown(2), resolved("r")],
        S,
        2,
        True,
    ),
    "one-5xx-resolved-started": ([sending(1), failed(1), resolved("r")], S, 1, False),
    "two-5xx-resolved-started": (
        [sending(1), answered(1, 500), sending(2), failed(2), resolved("r")],
        S,
        2,
        True,
    ),
    "resolved-started-without-a-record": ([resolved("r")], S, 0, False),
    "started-then-resolved-not-started": ([sending(1), started(1), resolved()], S, 1, False),
    # what weighs nothing
    "pause": ([sending(1), records.pause("default", cause="c", seconds=1)], U, 1, False),
    "end": ([sending(1), rejected(1), records.end({})], R, 1, False),
    "run-status": (
        [sending(1), started(1), {"record": "runStatus", "optional": True, "key": "k"}],
        S,
        1,
        False,
    ),
    "unknown-optional-kind": (
        [sending(1), {"record": "telepathy", "optional": True, "key": "k"}],
        U,
        1,
        False,
    ),
    "unknown-fields": (
        [{**sending(1), "as": [], "jobRunId": None}, {**rejected(1), "manifest": 7}],
        R,
        1,
        False,
    ),
}


@pytest.mark.parametrize(
    ("history", "state", "attempts", "duplicate"),
    [pytest.param(*case, id=name) for name, case in HISTORIES.items()],
)
def test_histories(history: list[Record], state: RowState, attempts: int, duplicate: bool) -> None:
    replay = replay_of(history)
    found = replay.states["k"]
    outcome = replay.outcome("k")
    assert (found.state, found.attempts, found.possible_duplicate) == (state, attempts, duplicate)
    sent = attempts - sum(record["record"] == "unsent" for record in history)
    assert (outcome.state, outcome.attempts, outcome.possible_duplicate) == (
        state,
        sent,
        duplicate,
    )
    assert (outcome.job_run_id is not None) == (state is S)
    assert not replay.unreadable
    counts = summary(replay)
    assert (counts["rows"], counts[state], counts["possibleDuplicates"]) == (1, 1, duplicate)


@pytest.mark.parametrize("name", HISTORIES)
def test_every_prefix_counts_every_row_once_and_no_send_is_forgotten(name: str) -> None:
    history = HISTORIES[name][0]

    for length in range(len(history) + 1):
        replay = replay_of(history[:length])
        counts = summary(replay)
        assert counts["rows"] == 1
        assert summary(replay, live=True)["rows"] == 1

        if length and history[length - 1]["record"] == "sending":
            assert replay.states["k"].state is U


@pytest.mark.parametrize("hashing", HASHES)
@pytest.mark.parametrize("name", HISTORIES)
def test_what_is_packed_is_told_like_what_is_not(name: str, hashing: str) -> None:
    """Three keys have the same history, each record of one followed by those of the others."""
    history = [
        {**record, "key": key} if record.get("key") == "k" else record
        for record in HISTORIES[name][0]
        for key in ("k", "l", "m")
    ]
    stamps = (f"2026-11-01T02:03:{second:02}.000Z" for second in range(60))
    lines = [records.encode(record, next(stamps)) for record in (header(3), *history)]

    for length in range(1, len(lines) + 1):
        data = b"".join(lines[:length])
        assert_same(packed_of(data, hashing), ledger.replay_of(io.BytesIO(data))[0])


@pytest.mark.parametrize("optional", [None, False, 1, "true"])
def test_an_unknown_kind_must_be_known_unless_it_says_otherwise(optional: object) -> None:
    replay = replay_of([{"record": "telepathy", "optional": optional}])
    assert replay.unreadable == {"telepathy"}
    assert replay.states == {}


def test_an_outcome_carries_what_is_known() -> None:
    replay = replay_of(
        [sending(1), answered(1, 500), sending(2), unknown(2, status=200), session()]
    )
    state = replay.states["k"]
    assert (state.row, state.job_id, state.target, state.digest) == (1, GUID, "default", "d")
    assert (state.status, state.error, state.sent_utc, state.answered_utc) == (
        200,
        "lost",
        UTC,
        UTC,
    )
    assert (replay.get("k"), replay.get("other")) == (state, None)
    assert "unknown" in repr(state)
    assert "1 keys" in repr(replay)


CUT = "no answer was recorded before the launcher ended"


@pytest.mark.parametrize(
    ("history", "told"),
    [
        pytest.param([invalid()], (None, "wrong", None), id="never-sent"),
        pytest.param([sending(1)], (None, CUT, None), id="cut-at-once"),
        pytest.param([sending(1), session(), answered(1, 503)], (503, "e", UTC), id="late"),
        pytest.param(
            [sending(1), answered(1, 503), sending(2)], (None, CUT, None), id="cut-after-a-5xx"
        ),
        pytest.param(
            [sending(1), sending(2), rejected(2)], (400, "no", UTC), id="cut-and-then-answered"
        ),
        pytest.param(
            [sending(1), answered(1, 503), sending(2), resolved(None)],
            (None, CUT, None),
            id="cut-and-resolved",
        ),
        pytest.param(
            [sending(1), answered(1, 503), sending(2), resolved(None), invalid()],
            (None, "wrong", None),
            id="cut-and-invalid-since",
        ),
        pytest.param([sending(1), unknown(1, status=None)], (None, "lost", None), id="no-answer"),
        pytest.param([sending(1), unknown(1, status=504)], (504, "lost", UTC), id="no-use"),
        pytest.param([sending(1), unsent(1)], (None, "e", None), id="unsent"),
    ],
)
def test_status_error_and_time_are_those_of_the_last_attempt(
    history: list[Record], told: tuple[int | None, str, str | None]
) -> None:
    """What an earlier attempt was answered would explain a row that it does not explain."""
    data = b"".join(records.encode(record, UTC) for record in (header(), *history))

    for replay in (replay_of(history), packed_of(data, "none-collide")):
        state, outcome = replay.states["k"], replay.outcome("k")
        assert (state.status, state.error, state.answered_utc) == told
        assert (outcome.status, outcome.error) == told[:2]


def test_the_first_known_run_stays() -> None:
    replay = replay_of(
        [sending(1), unknown(1), sending(2), started(2, "second"), resolved("first")]
    )
    assert replay.states["k"].job_run_id == "second"


# In flight, live.


@pytest.mark.parametrize(
    ("history", "state"),
    [
        pytest.param([session(), sending(1)], RowState.IN_FLIGHT, id="sent-now"),
        pytest.param([session(), sending(1), unknown(1)], U, id="lost-now"),
        pytest.param([session(), sending(1), started(1)], S, id="started"),
        pytest.param([session(), sending(1), session()], U, id="left-open-by-an-earlier-session"),
        pytest.param(
            [session(), sending(1), session(), sending(2)], RowState.IN_FLIGHT, id="sent-anew"
        ),
        pytest.param(
            [session(), sending(1), session(), sending(2), rejected(2)], U, id="answered-anew"
        ),
        pytest.param(
            [session(), sending(1), unknown(1), sending(2)], RowState.IN_FLIGHT, id="retry-unknown"
        ),
    ],
)
def test_only_what_this_session_sent_is_in_flight(history: list[Record], state: RowState) -> None:
    replay = replay_of(history)
    assert replay.states["k"].live_state is state
    assert summary(replay, live=True)[state] == 1


# Membership, and rows without a key.


@pytest.mark.parametrize(
    ("history", "counted"),
    [
        pytest.param([sending(1), rejected(1)], {"rejected": 0, "rows": 1}, id="rejected"),
        pytest.param([sending(1), failed(1)], {"failed": 0, "rows": 1}, id="failed"),
        pytest.param([invalid()], {"invalid": 0, "rows": 1}, id="invalid"),
        pytest.param([sending(1), unsent(1)], {"pending": 1, "rows": 1}, id="pending"),
        pytest.param([sending(1), unknown(1)], {"unknown": 1, "rows": 2}, id="unknown"),
        pytest.param([sending(1)], {"unknown": 1, "rows": 2}, id="killed"),
        pytest.param([sending(1), started(1)], {"started": 1, "rows": 2}, id="started"),
    ],
)
def test_a_key_that_left_the_manifest(history: list[Record], counted: dict[str, int]) -> None:
    gone = records.membership("k", in_manifest=False)
    back = records.membership("k", in_manifest=True)
    before = summary(replay_of(history))
    found = summary(replay_of([*history, session(sha="b"), gone]))
    assert {name: found[name] for name in counted} == counted
    assert summary(replay_of([*history, session(sha="b"), gone, session(), back])) == before


def test_a_gone_key_resolved_as_not_started_leaves_the_counts() -> None:
    gone = records.membership("k", in_manifest=False)
    found = summary(replay_of([sending(1), unknown(1), gone, resolved()]))
    assert (found["rows"], found["unknown"], found["pending"]) == (1, 0, 1)


@pytest.mark.parametrize(
    ("first", "later", "kept"),
    [
        pytest.param("a", "a", 2, id="same-manifest"),
        pytest.param("a", "b", 0, id="another-manifest"),
        pytest.param("a", None, 0, id="an-iterable-instead"),
        pytest.param(None, None, 0, id="an-iterable-again"),
    ],
)
def test_unkeyed_invalid_rows_belong_to_their_manifest(
    first: str | None, later: str | None, kept: int
) -> None:
    def of(sha: str | None) -> Record:
        return session(None) if sha is None else session(5, sha)

    start = header(None) if first is None else header(5, first)
    history = [of(first), invalid(None, 1), invalid(None, 2), invalid(None, 2)]
    assert summary(replay_of(history, start))["invalid"] == 2
    assert summary(replay_of([*history, of(later)], start))["invalid"] == kept


def test_a_batch_of_an_iterable_has_the_rows_that_were_read() -> None:
    history = [session(None), invalid(None, 1), sending(1, row=2), started(1), invalid("x", 3)]
    found = summary(replay_of(history, header(None)))
    assert (found["rows"], found["invalid"], found["started"], found["pending"]) == (3, 2, 1, 0)


def test_the_summary_carries_what_the_launch_adds() -> None:
    stop = Stop(StopReason.LEDGER, "m")
    found = replay_of([]).summary(ledger="l", seconds=1.5, stops=[stop], unrecorded=[("k", "r")])
    assert (found.stops, found.unrecorded, found.seconds) == ((stop,), (("k", "r"),), 1.5)


# What is refused.


@pytest.mark.parametrize(
    "first",
    [
        pytest.param({**header(), "ledger": "deslaunch/2"}, id="newer"),
        pytest.param({**header(), "ledger": None}, id="no-version"),
        pytest.param(session(), id="no-header"),
        pytest.param({"record": "telepathy", "optional": True}, id="unknown-kind-first"),
    ],
)
def test_what_is_no_header_of_this_version(first: Record) -> None:
    with pytest.raises(LedgerForeign, match="expected a ledger of version deslaunch/1"):
        Replay().apply(stamped(first))


def test_two_headers() -> None:
    with pytest.raises(ValueError, match="second header"):
        replay_of([header()])


NEEDED = {
    "batch": (header(), "batchId manifest format jobId target allow skipInvalid createdUtc"),
    "session": (session(), "pid host manifest targets options utc"),
    "sending": (sending(1), "key row jobId attempt digest utc"),
    "answered": (answered(1, 500), "key attempt status error utc"),
    "unsent": (unsent(1), "key attempt error utc"),
    "started": (started(1), "key attempt jobRunId utc"),
    "rejected": (rejected(1), "key attempt status error utc"),
    "failed": (failed(1), "key attempt status error utc"),
    "unknown": (unknown(1), "key attempt cause status utc"),
    "invalid": (invalid(), "key row problems utc"),
    "resolved": (resolved("r"), "key as jobRunId utc"),
    "membership": (records.membership("k", in_manifest=False), "key inManifest"),
}


@pytest.mark.parametrize(
    ("record", "field"),
    [
        pytest.param(record, field, id=f"{kind}-{field}")
        for kind, (record, fields) in NEEDED.items()
        for field in fields.split()
    ],
)
@pytest.mark.parametrize("garbled", [True, False])
def test_a_missing_or_garbled_field(record: Record, field: str, garbled: bool) -> None:
    replay = Replay()

    if record["record"] != "batch":
        replay.apply(stamped(header()))

    spoilt = stamped(record)
    del spoilt[field]

    if garbled:
        spoilt[field] = 7.5

    with pytest.raises(ValueError, match=f"no usable '{field}'"):
        replay.apply(spoilt)

    assert not any(state.state for state in replay.states.values())


@pytest.mark.parametrize(
    "record",
    [
        pytest.param({**started(1), "jobRunId": None}, id="started-as-nothing"),
        pytest.param({**started(1), "jobRunId": ""}, id="started-as-empty"),
        pytest.param({**resolved("r"), "jobRunId": None}, id="resolved-started-as-nothing"),
        pytest.param({**resolved(), "as": "maybe"}, id="resolved-as-anything"),
        pytest.param({**session(), "manifest": {"sha256": "a"}}, id="manifest-without-rows"),
        pytest.param({**header(), "manifest": {"rows": 1}}, id="manifest-without-digest"),
    ],
)
def test_a_record_that_could_free_a_row_by_mistake(record: Record) -> None:
    with pytest.raises(ValueError, match="no usable"):
        check(stamped(record))


# A model that judges: a dictionary per key, told by the rules in prose.


class Model:
    """What the rules say, kept the slow way: every attempt with what became of it."""

    def __init__(self) -> None:
        self.unsent = 0
        self.attempts: list[str] = []  # open, doubt, 5xx, over
        self.run = ""
        self.final: RowState | None = None
        self.present = True

    @property
    def state(self) -> RowState:
        if self.run:
            return S

        if "open" in self.attempts or "doubt" in self.attempts:
            return U

        return self.final or P


class LedgerMachine(RuleBasedStateMachine):
    """Append, crash at any byte, read again, resolve, resume, with the manifest changing."""

    def __init__(self) -> None:
        super().__init__()
        self.data = b""
        self.models: dict[str, Model] = {}
        self.unkeyed: set[int] = set()
        self.rows = 6
        self.sha = "a"

    @initialize()
    def begin(self) -> None:
        self.data = records.encode(header(6), UTC) + records.encode(session(6), UTC)

    def write(self, record: Record) -> None:
        self.data += records.encode(record, UTC)

    def model(self, key: str) -> Model:
        return self.models.setdefault(key, Model())

    keys = st.sampled_from(["k1", "k2", "k3", "k4"])

    @rule(key=keys, cut=st.integers(1, 10_000))
    def crash_while_sending(self, key: str, cut: int) -> None:
        line = records.encode(sending(len(self.model(key).attempts) + 1, key), UTC)
        torn = line[: cut % (len(line) - 1)]  # shorter than the record without its newline
        replay, tail = ledger.replay_of(io.BytesIO(self.data + torn))
        assert (tail.torn, tail.offset) == (bool(torn), len(self.data))
        self.judge(replay)

    @rule(key=keys)
    def send(self, key: str) -> None:
        model = self.model(key)

        if model.run or not model.present or model.state is U:
            return

        self.send_anyway(key)

    def send_anyway(self, key: str) -> None:
        model = self.model(key)
        model.attempts.append("open")
        model.final = None
        self.write(sending(len(model.attempts), key))

    @rule(key=keys)
    def retry_unknown(self, key: str) -> None:
        if self.model(key).state is U and self.model(key).present:
            self.send_anyway(key)

    @rule(
        key=keys,
        what=st.sampled_from(
            ["started", "rejected", "failed", "unknown", "unsent", "500", "429", "401"]
        ),
    )
    def answer(self, key: str, what: str) -> None:
        model = self.model(key)

        if not model.attempts or model.attempts[-1] != "open" or model.run:
            return

        attempt = len(model.attempts)
        over = {"failed": "5xx", "500": "5xx", "unknown": "doubt"}.get(what, "over")
        model.attempts[-1] = over

        if what == "started":
            model.run = f"run-{key}-{attempt}"
            model.attempts[-1] = "run"
            self.write(started(attempt, model.run, key))
        elif what in {"rejected", "failed"}:
            model.final = RowState(what)
            self.write((rejected if what == "rejected" else failed)(attempt, key))
        elif what == "unknown":
            self.write(unknown(attempt, key))
        elif what == "unsent":
            self.write(unsent(attempt, key))
            model.unsent += 1
        else:
            self.write(answered(attempt, int(what), key))

    @rule(key=keys)
    def resolve_not_started(self, key: str) -> None:
        model = self.model(key)

        if model.state not in {U, F}:
            return

        model.attempts = ["over" for _ in model.attempts]
        model.final = None
        self.write(resolved(None, key))

    @rule(key=keys)
    def resolve_started(self, key: str) -> None:
        model = self.model(key)

        if model.state not in {U, F}:
            return

        doubtful = [n for n, end in enumerate(model.attempts) if end in {"open", "doubt"}]
        doubtful = doubtful or [n for n, end in enumerate(model.attempts) if end == "5xx"]
        model.attempts[doubtful[-1]] = "run"
        model.run = f"run-{key}"
        self.write(resolved(model.run, key))

    @rule(key=keys)
    def find_invalid(self, key: str) -> None:
        model = self.model(key)

        if model.state in {S, U} or not model.present:
            return

        model.final = I
        self.write(invalid(key))

    @rule(row=st.integers(1, 2))
    def find_unkeyed_invalid(self, row: int) -> None:
        self.unkeyed.add(row)
        self.write(invalid(None, row))

    @rule()
    def resume(self) -> None:
        self.write(session(self.rows, self.sha))

    @rule(left=st.sets(keys), sha=st.sampled_from("abc"))
    def resume_with_another_manifest(self, left: set[str], sha: str) -> None:
        if sha == self.sha:
            return

        self.sha = sha
        self.unkeyed.clear()
        self.write(session(self.rows, sha))

        for key, model in self.models.items():
            if model.present == (key in left):
                model.present = not model.present
                self.write(records.membership(key, in_manifest=model.present))

    @rule()
    def note_something_optional(self) -> None:
        self.write({"record": "runStatus", "optional": True, "key": "k1", "state": "ok"})

    @invariant()
    def judged(self) -> None:
        if self.data:
            replay, tail = ledger.replay_of(io.BytesIO(self.data))
            assert (tail.torn, tail.offset) == (False, len(self.data))
            self.judge(replay)

            for hashing in HASHES:
                packed = packed_of(self.data, hashing)
                self.judge(packed)
                assert_same(packed, replay)

    def judge(self, replay: Replay) -> None:
        counts = dict.fromkeys(("started", "failed", "rejected", "unknown", "invalid"), 0)
        counts["invalid"] = len(self.unkeyed)
        attempts = duplicates = gone = 0

        for key, model in self.models.items():
            state = replay.get(key)
            duplicate = bool(model.run and {"open", "doubt", "5xx"} & set(model.attempts))
            attempts += len(model.attempts) - model.unsent

            if state is None:
                assert (model.state, model.attempts) == (P, [])
                continue

            found = (state.state, state.attempts, state.possible_duplicate, state.in_manifest)
            assert found == (model.state, len(model.attempts), duplicate, model.present)
            assert (state.job_run_id or "") == model.run

            if model.present or model.state in {S, U}:
                duplicates += duplicate
                gone += not model.present

                if model.state is not P:
                    counts[model.state] += 1

        found_counts = summary(replay)
        assert {name: found_counts[name] for name in counts} == counts
        assert found_counts["rows"] == self.rows + gone
        assert (found_counts["attempts"], found_counts["possibleDuplicates"]) == (
            attempts,
            duplicates,
        )


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


# One run at two rows.


def test_a_run_that_two_rows_were_given_is_known() -> None:
    runs = {"a": "R1", "b": "r2", "c": "r1", "d": "r3", "e": "r2"}
    history = [sending(1, key, row=row) for row, key in enumerate(runs, 1)]
    history += [started(1, run, key) for key, run in runs.items()]

    found = replay_of(history, header(5)).summary(ledger="l", seconds=0.0)

    assert dict(found.shared_runs) == {"r1": ("a", "c"), "r2": ("b", "e")}
    assert (found.started, found.exit_code) == (5, 0)
    assert "shared" not in " ".join(found.as_dict())


def test_a_run_that_one_row_was_given_twice_is_shared_by_nobody() -> None:
    history = [sending(1), started(1, "r"), resolved("r"), sending(1, "other"), unknown(1, "other")]

    assert list(replay_of(history).shared_runs()) == []


# How runs ended.


def ended(key: str, run: str, **said: Any) -> Record:
    return {"record": "runStatus", "optional": True, "key": key, "jobRunId": run, **said}


GOOD: dict[str, Any] = {"finished": True, "success": True}


@pytest.mark.parametrize(
    ("said", "ending"),
    [
        pytest.param([ended("k", "R", **GOOD)], Ending.SUCCEEDED, id="in-any-case"),
        pytest.param([ended("k", "r", finished=True)], Ending.FAILED, id="failed"),
        pytest.param([ended("k", "r"), ended("k", "r", **GOOD)], Ending.SUCCEEDED, id="the-last"),
        pytest.param([ended("k", "other", **GOOD)], Ending.NONE, id="another-run"),
        pytest.param([ended("gone", "r", **GOOD)], Ending.NONE, id="no-such-key"),
        pytest.param([{"record": "runStatus", "optional": True}], Ending.NONE, id="nothing-said"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_the_end_of_a_run_is_kept(said: list[Record], ending: Ending, *, packed: bool) -> None:
    history = [sending(1), started(1), sending(1, "two", row=2), *said]
    data = b"".join(_encoded(record) for record in (header(2), *history))
    replay = packed_of(data, "some-collide") if packed else replay_of(history, header(2))
    before = replay_of(history[:3], header(2))

    assert replay.endings.of(replay.states["k"].number) is ending
    assert facts(replay.states["k"]) == facts(before.states["k"])
    assert summary(replay) == summary(before)
    assert replay.unreadable == set()
    found = replay.endings.record(replay.states["k"].number)
    assert (found is None) is (ending is Ending.NONE)


def _encoded(record: Record) -> bytes:
    return records.encode(record, UTC)


def test_who_watches_is_known_until_a_launcher_comes() -> None:
    watch = {"record": "watch", "optional": True, "pid": 1, "host": "h"}

    watched = replay_of([session(), sending(1), watch])
    assert watched.watch is not None
    assert (watched.watch["pid"], watched.states["k"].live_state) == (1, U)
    assert replay_of([session(), watch, session()]).watch is None
