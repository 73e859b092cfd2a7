"""When a target is sent to, how much, and when it stops: tables, a machine, and sessions."""

from __future__ import annotations

import time
from itertools import count
from typing import TYPE_CHECKING, Any, Final

import pytest
from fakes import FakeRow
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from sessions import INTERRUPTED, Bench, keys
from stage import QUICK, fault

from deslaunch.errors import (
    DesError,
    Misconfigured,
    NotSent,
    OutcomeUnknown,
    Redirected,
    Rejected,
    Throttled,
)
from deslaunch.events import Stop, StopReason, TargetPaused
from deslaunch.launch.target import Gate, Health, Pacer, Throttle
from deslaunch.model import DEFAULT_TARGET, Outcome, Result, RowState
from deslaunch.settings import ErrorLimit

if TYPE_CHECKING:
    from stage import Script, Workplace


def wait(pauses: int) -> float:
    return min(2.0**pauses, 60.0)


def throttle(give_up_after: float = 900.0, slots: int = 16) -> Throttle:
    return Throttle("acme", slots=slots, wait=wait, give_up_after=give_up_after)


def reopened(found: Throttle, now: float) -> bool:
    """End the pause of a target whose probe got a response, if it is due."""
    paused = found.gate is Gate.PAUSED
    found.reopen(now)
    return paused and found.gate is Gate.ALONE


def throttled(seconds: float | None = None) -> Throttled:
    return Throttled("slow down", status=429, retry_after=seconds)


def unsent() -> NotSent:
    return NotSent("refused")


def play(found: Throttle, script: str) -> list[object]:  # noqa: C901, PLR0912  # one line a word
    """Play a script and return what came out: ``?`` asks for room, ``+`` claims, ``-`` ends.

    ``ok`` is final, ``5xx`` a response that is not, ``lost`` none; ``429@t`` and ``429:s@t``
    (Retry-After s) are throttles, ``unsent@t`` no contact, at the time t; ``due@t`` says when the
    row of a first contact is sent again; ``open@t`` tries to end the pause; ``hold`` and
    ``release`` are a token's renewal.
    """
    out: list[object] = []

    for word in script.split():
        what, _, time = word.partition("@")
        now = float(time or 0)
        name, _, seconds = what.partition(":")

        if name == "?":
            out.append(found.room(now) > 0)
        elif name == "+":
            found.in_flight += 1
        elif name == "-":
            found.in_flight -= 1
        elif name in {"ok", "5xx"}:
            found.responded(final=name == "ok")
        elif name == "due":
            found.expect(now)
        elif name == "lost":
            out.append(found.take(OutcomeUnknown("reset"), Result.UNKNOWN, now)[1])
        elif name == "429":
            out.append(found.held_back(throttled(float(seconds) if seconds else None), now))
        elif name == "unsent":
            out.append(found.held_back(unsent(), now))
        elif name == "open":
            out.append(reopened(found, now))
        elif name == "hold":
            found.hold()
        elif name == "release":
            found.release()
        else:
            raise AssertionError(word)

    return [
        result.seconds
        if isinstance(result, TargetPaused)
        else result.reason
        if isinstance(result, Stop)
        else result
        for result in out
    ]


T, F, N = True, False, None

SCRIPTS: dict[str, tuple[str, list[object], Gate]] = {
    # first contact
    "first-contact-is-alone": ("? + ? ?", [T, F, F], Gate.ALONE),
    "the-rest-follow-a-final-answer": ("+ ok - ? + ?", [T, T], Gate.OPEN),
    "the-rest-follow-before-the-slot-is-free": ("+ ok ?", [T], Gate.OPEN),
    "a-5xx-keeps-the-others-out": ("+ 5xx - ?@9 due@2 ?@1.9 ?@2", [F, F, T], Gate.ALONE),
    "a-5xx-twice-keeps-the-others-out": (
        "+ 5xx - due@2 + 5xx - ?@9 due@6 ?@5 ?@6",
        [F, F, T],
        Gate.ALONE,
    ),
    "a-5xx-then-started": ("+ 5xx - + ok - ?", [T], Gate.OPEN),
    "first-contact-lost": ("+ lost - ? ?", [StopReason.FIRST_CONTACT, F, F], Gate.STOPPED),
    "5xx-then-lost": ("+ 5xx - + lost -", [StopReason.FIRST_CONTACT], Gate.STOPPED),
    "lost-after-the-introduction": ("+ ok - + lost - ?", [N, T], Gate.OPEN),
    # pauses
    "throttled-first": ("+ 429:5@0 - ? ?", [6.0, F, F], Gate.PAUSED),
    "pause-ends": ("+ 429:5@0 - open@5 open@6 ?", [6.0, F, T, T], Gate.ALONE),
    "pause-ends-once": ("+ 429:5@0 - open@6 open@6", [6.0, T, F], Gate.ALONE),
    "a-timer-a-hair-early": ("+ 429:5@0 - open@5.9999 open@6", [6.0, F, T], Gate.ALONE),
    "no-retry-after": ("+ 429@0 - open@1 + 429@1 -", [1.0, T, 2.0], Gate.PAUSED),
    "other-rows-in-flight": (
        "+ ok - + + + 429@0 - 429@0 - open@1 ? - ? + ?",
        [1.0, N, T, F, T, F],
        Gate.ALONE,
    ),
    "a-probe-opens": ("+ ok - + 429@0 - open@1 + ok - ? + ?", [1.0, T, T, T], Gate.OPEN),
    "a-5xx-opens-after-a-pause": ("+ ok - + 429@0 - open@1 + 5xx - ?", [1.0, T, T], Gate.OPEN),
    "a-lost-probe-lets-the-next-try": (
        "+ ok - + 429@0 - open@1 + lost ? - ? + ?",
        [1.0, T, N, F, T, F],
        Gate.ALONE,
    ),
    "an-answer-in-a-pause-does-not-end-it": (
        "+ ok - + + 429:5@0 - ok - ? open@6 ?",
        [6.0, F, T, T],
        Gate.ALONE,
    ),
    "success-begins-the-waits-anew": (
        "+ ok - + 429@0 - open@1 + ok - + 429@2 - ",
        [1.0, T, 1.0],
        Gate.PAUSED,
    ),
    "an-answer-in-a-pause-does-not-begin-the-waits-anew": (
        "+ ok - + + 429@0 - ok - open@1 + 429@1 -",
        [1.0, T, 2.0],
        Gate.PAUSED,
    ),
    "pauses-in-a-row-grow": (
        "+ ok - + 429@0 - open@1 + 429@1 - open@3 + 429@3 -",
        [1.0, T, 2.0, T, 4.0],
        Gate.PAUSED,
    ),
    "prolonged": ("+ ok - + + 429:5@0 429:9@1 open@6 open@10", [6.0, 9.0, F, T], Gate.ALONE),
    "prolonged-by-nothing": ("+ ok - + + 429:5@0 429:6@0", [6.0, N], Gate.PAUSED),
    "never-shortened": (
        "+ ok - + + 429:50@0 429:5@1 open@6 open@51",
        [51.0, N, F, T],
        Gate.ALONE,
    ),
    "never-shortened-by-none": ("+ ok - + + 429:50@0 429@1 open@2", [51.0, N, F], Gate.PAUSED),
    "never-shortened-by-no-contact": (
        "+ ok - + + 429:50@0 unsent@1 open@2",
        [51.0, N, F],
        Gate.PAUSED,
    ),
    "retry-after-of-nothing": ("+ ok - + 429:0@0 open@0 open@1", [1.0, F, T], Gate.ALONE),
    # giving up
    "told-to-wait-too-long": ("+ ok - + 429:900@0", [StopReason.THROTTLED], Gate.STOPPED),
    "told-to-wait-long": ("+ ok - + 429:899@0", [900.0], Gate.PAUSED),
    "prolonged-too-long": (
        "+ ok - + + 429:5@0 429:900@1",
        [6.0, StopReason.THROTTLED],
        Gate.STOPPED,
    ),
    "paused-too-long-in-all": (
        "+ ok - + 429:500@0 - open@501 + 429:500@501",
        [501.0, T, StopReason.THROTTLED],
        Gate.STOPPED,
    ),
    "paused-long-with-a-success-between": (
        "+ ok - + 429:500@0 - open@501 + ok - + 429:500@501",
        [501.0, T, 501.0],
        Gate.PAUSED,
    ),
    "paused-long-with-a-5xx-between-at-first-contact": (
        "+ 429:500@0 - open@501 + 5xx - + 429:500@501",
        [501.0, T, 501.0],
        Gate.PAUSED,
    ),
    "unreachable-too-long": (
        "+ ok - + 429:500@0 - open@501 + 429:398@501 - open@900 + unsent@900",
        [501.0, T, 399.0, T, StopReason.UNREACHABLE],
        Gate.STOPPED,
    ),
    # never reached
    "never-reached": (
        "+ unsent@0 - open@1 + unsent@1 - open@3 + unsent@3 - ?",
        [1.0, T, 2.0, T, StopReason.UNREACHABLE, F],
        Gate.STOPPED,
    ),
    "reached-once": (
        "+ 5xx - + unsent@0 - open@1 + unsent@1 - open@3 + unsent@3 -",
        [1.0, T, 2.0, T, 4.0],
        Gate.PAUSED,
    ),
    "a-throttle-is-a-contact": (
        "+ 429@0 - open@1 + unsent@1 - open@3 + unsent@3 -",
        [1.0, T, 2.0, T, 4.0],
        Gate.PAUSED,
    ),
    # a token's renewal
    "held": ("+ ok - hold ? release ?", [F, T], Gate.OPEN),
    "held-twice": ("+ ok - hold hold release ? release ?", [F, T], Gate.OPEN),
    "released-too-often": ("+ ok - release hold ? release ?", [F, T], Gate.OPEN),
    "held-at-first-contact": (
        "+ 5xx hold - due@0 ? release ?",
        [F, T],
        Gate.ALONE,
    ),
    # after the end
    "nothing-after-a-stop": (
        "+ + lost ok 5xx lost 429@0 unsent@0 open@99 ?",
        [StopReason.FIRST_CONTACT, N, N, N, F, F],
        Gate.STOPPED,
    ),
}


@pytest.mark.parametrize(
    ("script", "expected", "gate"), [pytest.param(*case, id=name) for name, case in SCRIPTS.items()]
)
def test_scripts(script: str, expected: list[object], gate: Gate) -> None:
    found = throttle()
    assert (play(found, script), found.gate) == (expected, gate)
    assert found.is_stopped is (gate is Gate.STOPPED)
    assert gate.value in repr(found)


MOVED: Final = Redirected("302", status=302)
UNTRUSTED: Final = Misconfigured("bad certificate")


@pytest.mark.parametrize(
    ("error", "script"),
    [(UNTRUSTED, "+"), (MOVED, "+"), (MOVED, "+ ok - +"), (MOVED, "+ ok - + + 429:5@0")],
)
def test_a_wrong_configuration_stops(error: DesError, script: str) -> None:
    found = throttle()
    play(found, script)
    stop = found.held_back(error, 0.0)
    assert stop == Stop(StopReason.CONFIGURATION, str(error), "acme")
    assert found.held_back(error, 0.0) is None


def test_a_first_response_that_stops_the_target_says_what_to_check() -> None:
    error = Rejected("DES responded 404: no such page", status=404)
    text = f"the first response was 404: {error}; check the base URL and the token"
    stop = Stop(StopReason.CONFIGURATION, text, "acme")
    assert throttle().take(error, Result.REJECTED, 0.0) == (Result.THROTTLED, stop)


def test_one_node_with_a_bad_certificate_pauses_a_target_that_was_reached() -> None:
    found = throttle(60.0)
    play(found, "+ ok - +")
    pause = found.held_back(UNTRUSTED, 0.0)
    assert isinstance(pause, TargetPaused)
    found.reopen(pause.seconds)
    assert found.gate is Gate.ALONE

    stop = found.held_back(UNTRUSTED, 100.0)
    assert isinstance(stop, Stop)
    assert stop.reason is StopReason.UNREACHABLE


def test_a_stop_says_when_to_resume() -> None:
    stop = throttle(60.0).held_back(throttled(3600.0), 0.0)
    assert isinstance(stop, Stop)
    assert (stop.target, stop.resume_after) == ("acme", 3601.0)
    assert "more than 60 s" in stop.message


def test_the_wait_that_an_auth_server_asks_for_is_kept_too() -> None:
    pause = throttle().held_back(NotSent("no token", retry_after=30.0), 0.0)
    assert isinstance(pause, TargetPaused)
    assert pause.seconds >= 30


def test_what_was_claimed_before_a_pause_a_hold_or_a_stop_must_not_leave() -> None:
    found = throttle()
    epochs = [found.epoch]

    for word in ("+ ok", "429@0", "open@1", "429@1", "open@3", "hold", "release", "lost"):
        play(found, word)
        epochs.append(found.epoch)

    found.stop(StopReason.CREDENTIALS, "none")
    assert [*epochs, found.epoch] == [0, 0, 1, 1, 2, 2, 3, 3, 3, 4]


@given(st.floats(0, 800), st.floats(0, 1e9))
@settings(max_examples=200, deadline=None)
def test_no_pause_ends_before_its_retry_after(seconds: float, now: float) -> None:
    found = throttle()
    pause = found.held_back(throttled(seconds), now)
    assert isinstance(pause, TargetPaused)
    assert pause.seconds >= seconds
    assert not reopened(found, now + seconds - 0.001)
    assert reopened(found, now + pause.seconds)  # a timer of just this length ends it


class ThrottleMachine(RuleBasedStateMachine):
    """Whatever happens, no two rows start alone, and no gate stays shut for ever."""

    flying = Bundle("flying")

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.found = throttle(give_up_after=300.0)
        self.names = count(1)
        self.told = 0.0
        self.holds = 0

    @rule(target=flying)
    def start(self) -> int:
        """Start a row as the session does: where there is room."""
        if not self.found.room(self.now):
            return 0

        if self.found.gate is Gate.ALONE:
            assert self.found.in_flight == 0, "a row that starts alone must be alone"

        assert not self.found.is_stopped
        assert not self.holds
        self.found.in_flight += 1
        return next(self.names)

    @rule(row=consumes(flying), final=st.booleans(), seconds=st.floats(0, 9))
    def respond(self, row: int, final: bool, seconds: float) -> None:
        if row:
            self.found.responded(final=final)
            self.found.in_flight -= 1

            if not final:
                self.found.expect(self.now + seconds)

    @rule(row=consumes(flying))
    def lose(self, row: int) -> None:
        if row:
            self.found.take(OutcomeUnknown("reset"), Result.UNKNOWN, self.now)
            self.found.in_flight -= 1

    @rule(row=consumes(flying), seconds=st.none() | st.floats(0, 100))
    def slow_down(self, row: int, seconds: float | None) -> None:
        if row:
            decided = self.found.held_back(throttled(seconds), self.now)
            self.found.in_flight -= 1

            if not isinstance(decided, Stop):
                self.told = max(self.told, self.now + (seconds or 0.0))

    @rule(row=consumes(flying))
    def not_sent(self, row: int) -> None:
        if row:
            self.found.held_back(unsent(), self.now)
            self.found.in_flight -= 1

    @rule(seconds=st.floats(0, 50))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

        if reopened(self.found, self.now):
            assert self.now >= self.told - 0.001, "a Retry-After was shortened"

    @rule()
    def renew(self) -> None:
        self.found.hold()
        self.holds += 1

    @rule()
    def renewed(self) -> None:
        if self.holds:
            self.found.release()
            self.holds -= 1

    @invariant()
    def never_dead_locked(self) -> None:
        found = self.found

        if found.is_stopped:
            assert not found.room(self.now)
        elif not self.holds and not found.in_flight and found.gate is not Gate.PAUSED:
            assert found.room(found.opens_at(self.now)) > 0, "dead-locked"


TestThrottleMachine = ThrottleMachine.TestCase
TestThrottleMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


# Slots that adapt, and probes.


def opened(slots: int) -> Throttle:
    found = Throttle("acme", slots=slots, wait=lambda _: 1.0, give_up_after=900)
    found.started()
    return found


def test_a_pause_halves_the_slots_once_however_many_rows_are_told_to_wait() -> None:
    found = opened(16)

    for _ in range(16):
        found.held_back(throttled(), 0.0)

    assert found.slots == 8
    reopened(found, 1.0)
    found.held_back(throttled(), 1.0)
    assert found.slots == 4


@pytest.mark.parametrize(
    ("script", "slots"),
    [
        pytest.param("", 1, id="first contact"),
        pytest.param("+ ok -", 16, id="open"),
        pytest.param("+ ok - hold", 0, id="new token"),
        pytest.param("+ ok - hold release", 16, id="token renewed"),
        pytest.param("+ ok - + 429:5@1", 0, id="pause"),
        pytest.param("+ ok - + 429:5@1 - open@9", 1, id="after a pause"),
        pytest.param("+ ok - + 429:5@1 - open@9 + ok -", 8, id="spared"),
    ],
)
def test_open_slots_are_what_rows_may_take_now(script: str, slots: int) -> None:
    found = throttle()
    play(found, script)
    assert found.open_slots == slots


def test_slots_creep_back_with_success_up_to_what_they_were() -> None:
    found = opened(8)
    found.held_back(throttled(), 0.0)
    reopened(found, 1.0)
    grown = []

    for _ in range(40):
        found.started()
        grown.append(found.slots)

    assert grown[:5] == [4, 4, 4, 4, 5]
    assert grown[-1] == 8
    assert sorted(grown) == grown


def test_slots_never_go_below_one() -> None:
    found = opened(2)

    for now in range(5):
        found.held_back(throttled(), float(now))
        reopened(found, float(now + 1))

    found.responded()
    assert (found.slots, found.room(9.0)) == (1, 1)


def test_a_failed_probe_prolongs_the_pause_and_halves_nothing_more() -> None:
    found = opened(16)
    found.held_back(unsent(), 0.0)

    assert found.held_back(unsent(), 1.0, is_probe=True) == TargetPaused("acme", "refused", 1.0)
    assert (found.slots, found.gate) == (8, Gate.PAUSED)
    assert (found.rest(1.5), found.rest(2.0)) == (0.5, 0.0)


def test_a_target_that_was_never_reached_says_how_often_it_was_tried() -> None:
    found = throttle()
    found.held_back(unsent(), 0.0)
    found.held_back(unsent(), 1.0, is_probe=True)

    message = "could not be reached in 3 tries: refused"
    assert found.held_back(unsent(), 3.0, is_probe=True) == Stop(
        StopReason.UNREACHABLE, message, "acme"
    )
    assert found.held_back(unsent(), 3.0, is_probe=True) is None


def test_a_misconfigured_probe_says_what_is_wrong() -> None:
    found = throttle()
    found.held_back(unsent(), 0.0)
    stop = found.held_back(UNTRUSTED, 1.0, is_probe=True)
    assert stop == Stop(StopReason.CONFIGURATION, "bad certificate", "acme")


def test_an_open_target_is_not_due_and_its_probe_means_nothing() -> None:
    found = opened(4)
    found.reopen(99.0)
    assert (found.rest(99.0), found.held_back(unsent(), 99.0, is_probe=True)) == (None, None)
    assert found.gate is Gate.OPEN


def test_a_pause_that_grew_during_a_probe_is_not_shortened_by_it() -> None:
    found = opened(4)
    found.held_back(throttled(10.0), 0.0)
    found.held_back(throttled(300.0), 11.5)  # a row in flight, while the probe is on its way
    found.reopen(12.0)
    gate, pause = found.gate, found.held_back(unsent(), 12.0, is_probe=True)

    assert gate is Gate.PAUSED
    assert isinstance(pause, TargetPaused)
    assert pause.seconds == found.rest(12.0) == 299.5


def test_a_row_that_comes_back_when_the_pause_is_over_adds_nothing_to_it() -> None:
    found = opened(4)
    found.held_back(throttled(5.0), 0.0)
    assert (found.held_back(unsent(), 9.0), found.rest(9.0), found.slots) == (None, 0.0, 2)


def test_a_probe_that_is_told_to_wait_has_reached_its_target() -> None:
    found = throttle()
    found.held_back(unsent(), 0.0)
    found.held_back(throttled(1.0), 1.0, is_probe=True)
    assert isinstance(found.held_back(unsent(), 3.0, is_probe=True), TargetPaused)


def test_a_pause_that_is_prolonged_says_why() -> None:
    found = opened(4)
    found.held_back(throttled(5.0), 0.0)
    longer = found.held_back(Throttled("slower", status=429, retry_after=60.0), 1.0)
    stop = found.held_back(Throttled("much slower", status=503, retry_after=901.0), 2.0)

    message = "would stay paused for more than 900 s: much slower"
    assert longer == TargetPaused("acme", "slower", 60.0)
    assert stop == Stop(StopReason.THROTTLED, message, "acme", resume_after=901.0)


# Starts a second.


@given(
    rate=st.floats(0.1, 2_000),
    gaps=st.lists(st.floats(0, 0.3) | st.floats(0, 0.01), min_size=1, max_size=200),
    now=st.floats(0, 1e6),
)
@settings(max_examples=150, deadline=None)
def test_never_more_than_the_rate_and_what_a_late_loop_makes_up_for(
    rate: float, gaps: list[float], now: float
) -> None:
    pacer, starts = Pacer(rate), []

    for gap in gaps:
        now += gap
        allowed = int(pacer.allowed(now))
        pacer.take(allowed)
        starts.append((now, allowed))

    for first in range(len(starts)):
        within = [n for at, n in starts[first:] if at - starts[first][0] <= 1.0]
        assert sum(within) <= rate * 1.05 + 1 + 1e-3


def test_turns_come_evenly_and_an_idle_time_saves_none() -> None:
    pacer = Pacer(4.0)
    found = []

    for now in (10.0, 10.1, 10.25, 10.4, 10.5, 100.0, 100.0):
        found.append(pacer.allowed(now))
        pacer.take(int(found[-1]))

    assert found == [1, 0, 1, 0, 1, 1, 0]
    assert pacer.opens_at(100.0) == 100.25


def test_a_loop_that_was_a_little_late_makes_up_for_it() -> None:
    pacer = Pacer(100.0)
    pacer.take(int(pacer.allowed(10.0)))

    assert pacer.allowed(10.04) == 4
    assert pacer.allowed(10.07) == 1, "it was idle"


def test_no_rate_is_no_wait() -> None:
    pacer = Pacer(None)
    assert (pacer.allowed(0.0), pacer.opens_at(3.0)) == (float("inf"), 3.0)


# When a target's responses are too bad.

NO_LIMIT = ErrorLimit(1_000_000_000)
ENDS: dict[str, tuple[Result, int | None, str]] = {
    "s": (Result.STARTED, 200, "job"),
    "f": (Result.FAILED, 500, "job"),
    "r": (Result.REJECTED, 400, "job"),
    "u": (Result.UNKNOWN, None, "job"),
    "3": (Result.REJECTED, 403, "job"),
    "4": (Result.REJECTED, 403, "other"),
}


def judge(rows: str, limit: ErrorLimit = NO_LIMIT) -> tuple[int, StopReason, str] | None:
    """Return after how many rows, and why, a target stops; '4' is another job than '3'."""
    health = Health(limit)

    for number, letter in enumerate(rows, start=1):
        result, status, job = ENDS[letter]
        state = RowState(str(result))
        outcome = Outcome(number, 1, f"k{number}", "acme", job, result, state, status=status)
        stop = health.ended(outcome, result)

        if stop is not None:
            return number, *stop

    return None


ERRORS, CONFIGURATION = StopReason.TOO_MANY_ERRORS, StopReason.CONFIGURATION


@pytest.mark.parametrize(
    ("rows", "stopped"),
    [
        pytest.param("s" * 500, None, id="all well"),
        pytest.param("s" + "u" * 5, (6, ERRORS), id="five unknown in a row"),
        pytest.param("s" + "u" * 4 + "s" + "u" * 4, None, id="a start between the unknown"),
        pytest.param("s" + "uruuruu", (8, ERRORS), id="a refusal between does not help"),
        pytest.param("u" * 5, (5, ERRORS), id="unknown from the first"),
        pytest.param("s" + "f" * 25, (26, ERRORS), id="25 failed in a row"),
        pytest.param("s" + "f" * 24 + "s" + "f" * 24, None, id="a start between the failed"),
        pytest.param("s" + "ufff" * 4 + "f" * 12, None, id="each kind is counted alone"),
        pytest.param("s33334", (6, CONFIGURATION), id="five 403 over two jobs"),
        pytest.param("s" + "3" * 100, None, id="403 of one job only"),
        pytest.param("s3333r3334", None, id="another refusal between the 403"),
        pytest.param("s3333s3334", None, id="a start between the 403"),
        pytest.param("s" + "3" * 9 + "4", (11, CONFIGURATION), id="a second job at last"),
        pytest.param("r" * 500, None, id="no limit"),
    ],
)
def test_rows_in_a_row(rows: str, stopped: tuple[int, StopReason] | None) -> None:
    found = judge(rows)
    assert (found and found[:2]) == stopped


@pytest.mark.parametrize(
    ("limit", "rows", "stopped"),
    [
        pytest.param("0", "sr", (2, ERRORS), id="none allowed"),
        pytest.param("2", "rsrsr", (5, ERRORS), id="a number"),
        pytest.param("2", "rsrs", None, id="as many as allowed"),
        pytest.param("50%", "sr" * 250, None, id="half is allowed"),
        pytest.param("50%", "r" * 199, None, id="too few for a share"),
        pytest.param("50%", "r" * 200, (200, ERRORS), id="more than half"),
        pytest.param("50%", "rs" * 100 + "r", (201, ERRORS), id="just more than half"),
        pytest.param("100%", "r" * 300, None, id="all may fail"),
        pytest.param("0%", "s" * 250 + "r", (251, ERRORS), id="none of many"),
    ],
)
def test_the_limit(limit: str, rows: str, stopped: tuple[int, StopReason] | None) -> None:
    found = judge(rows, ErrorLimit.parse(limit))
    assert (found and found[:2]) == stopped


@pytest.mark.parametrize(
    ("rows", "limit", "message"),
    [
        pytest.param(
            "uuuuu",
            NO_LIMIT,
            "5 rows became unknown, with none started in between",
            id="unknown",
        ),
        pytest.param(
            "f" * 25,
            NO_LIMIT,
            "25 rows became failed, with none started in between",
            id="failed",
        ),
        pytest.param(
            "s33334",
            NO_LIMIT,
            "the last 5 rows, of several jobs, got 403 (forbidden)",
            id="403",
        ),
        pytest.param(
            "rf",
            ErrorLimit.parse("1"),
            "2 of 2 rows ended without a run; --max-errors is 1",
            id="limit",
        ),
    ],
)
def test_the_stop_says_what_went_wrong(rows: str, limit: ErrorLimit, message: str) -> None:
    found = judge(rows, limit)
    assert found is not None
    assert found[2] == message


# Pauses in a session.


@pytest.mark.parametrize(
    ("verdict", "result", "pause"),
    [
        pytest.param("429 for 30", "throttled", 31.0, id="retry-after"),
        pytest.param("429", "throttled", 1.0, id="throttled"),
        pytest.param("unsent", "unsent", 1.0, id="unsent"),
    ],
)
async def test_what_pauses_a_target(verdict: str, result: str, pause: float) -> None:
    bench = Bench(["a"], script={"a": [verdict]})
    await bench.finish()

    assert bench.ledger.results("a") == [result, "started"]
    assert [event.seconds for event in bench.told(TargetPaused)] == [pause]
    assert bench.times()[-1] == pytest.approx(pause, abs=0.01)
    assert ("pause", DEFAULT_TARGET) in bench.ledger.notes


async def test_no_row_of_a_paused_target_is_sent_before_the_pause_ends() -> None:
    bench = Bench(["first", *keys("r", 12)], slots=4, script={"r1": ["429 for 30"]})
    bench.des.latency = lambda: 0.5
    await bench.finish()

    assert [at for at in bench.times() if 1.0 < at < 31.5] == []
    assert bench.started() == {"first", *keys("r", 12)}


async def test_a_pause_is_prolonged_and_never_shortened() -> None:
    bench = Bench(["first", "a", "b", "c"], slots=3)
    bench.des.held = True
    await bench.begin()
    await bench.answer("first")
    await bench.answer("a", "429 for 30")
    await bench.answer("b", "429 for 90")
    await bench.answer("c", "429")
    bench.des.held = False
    await bench.finish()

    assert bench.times()[4] == 90.0
    assert len(bench.des.probes) == 1


async def test_after_a_pause_one_row_goes_alone() -> None:
    bench = Bench(["first", *keys("r", 6)], slots=3, script={"r1": ["429", "429"]})
    await bench.begin()
    bench.des.held = True
    await bench.clock.advance(1.5)
    alone = sorted(bench.des.waiting)
    await bench.clock.advance(5.0)

    assert len(alone) == 1
    assert sorted(bench.des.waiting) == alone

    bench.des.held = False
    await bench.answer(*alone)
    await bench.finish()

    assert bench.started() == {"first", *keys("r", 6)}


async def test_a_row_that_was_claimed_meanwhile_is_not_sent_into_a_pause() -> None:
    bench = Bench(["first", "a", "b", "c"], slots=2)
    bench.des.held = True
    await bench.begin()
    await bench.answer("first")
    bench.ledger.held = True
    await bench.answer("b")
    await bench.answer("a", "429 for 30")
    bench.ledger.release()
    bench.des.held = False
    await bench.finish()

    assert bench.ledger.results("c") == ["unsent", "started"]
    assert bench.times("c") == [31.0]


async def test_a_target_that_is_told_to_wait_too_long_stops() -> None:
    bench = Bench(["a", "b"], script={"a": ["429 for 5000"]}, give_up_after=900.0)
    await bench.finish()

    assert bench.stops() == [(StopReason.THROTTLED, DEFAULT_TARGET)]
    assert bench.session.stops[0].resume_after == 5_001.0
    assert bench.states("a", "b") == [RowState.PENDING] * 2


async def test_a_target_that_stays_paused_is_given_up() -> None:
    bench = Bench(["a", "b"], slots=1, script={"a": ["429"] * 99}, give_up_after=100.0)
    await bench.finish()

    assert bench.stops() == [(StopReason.THROTTLED, DEFAULT_TARGET)]
    assert bench.des.now() <= 101.0


async def test_a_target_that_was_never_reached_is_given_up_after_three_tries() -> None:
    bench = Bench(["a", "b"], script={"a": ["unsent"] * 9, "b": ["unsent"] * 9})
    await bench.finish()

    assert bench.stops() == [(StopReason.UNREACHABLE, DEFAULT_TARGET)]
    assert bench.ledger.results("a") == ["unsent"] * 3
    assert bench.des.keys() == []


async def test_a_paused_target_is_probed_before_any_row_is_sent() -> None:
    bench = Bench(["a", "b", "c"], slots=3, script={"b": ["429"]}, max_wait=8.0)
    bench.des.probe_script = {DEFAULT_TARGET: ["unsent", "500"]}
    await bench.finish()
    probes = [at for _, at in bench.des.probes]

    assert len(probes) == 3
    assert not [at for at in bench.times() if probes[0] <= at < probes[-1]]
    assert bench.started() == {"a", "b", "c"}
    assert len(bench.told(TargetPaused)) == 3


async def test_a_pause_that_is_prolonged_has_one_probe() -> None:
    script = {"a": ["429"], "b": ["429 for 30"], "c": ["429"]}
    bench = Bench(["first", "a", "b", "c"], slots=3, script=script)
    bench.des.latency = lambda: 1.0
    await bench.finish()

    assert bench.des.probes == [(DEFAULT_TARGET, 32.0)]


async def test_a_fault_of_a_probe_ends_the_session() -> None:
    bench = Bench(["a", "b"], script={"b": ["429"]})
    bench.des.probe_script = {DEFAULT_TARGET: ["bug"]}

    with pytest.raises(RuntimeError, match="a bug"):
        await bench.finish()

    assert bench.states("a", "b") == [RowState.STARTED, RowState.PENDING]


async def test_a_timer_that_rings_early_does_not_lose_the_end_of_a_pause() -> None:
    """uvloop's clock and timers know milliseconds only, and may ring before their time."""
    bench = Bench(["a", "b", "c"], slots=1, script={"b": ["429", "429 for 30"]}, early=0.0004)
    await bench.finish()

    assert bench.started() == {"a", "b", "c"}
    assert len(bench.des.probes) == 2


async def test_starts_keep_to_the_rate() -> None:
    bench = Bench(keys("r", 6), slots=4, rate=2.0)
    await bench.finish()

    assert bench.times() == pytest.approx([0.0, 0.5, 1.0, 1.5, 2.0, 2.5], abs=0.01)


# First contact.


async def test_a_target_gets_one_start_alone() -> None:
    bench = Bench(["a", "b", "c"], slots=3)
    bench.des.held = True
    await bench.begin()
    alone = bench.des.keys()
    await bench.answer("a")
    after = bench.des.keys()
    bench.des.held = False
    await bench.answer("b")
    await bench.answer("c")
    await bench.finish()

    assert (alone, after) == (["a"], ["a", "b", "c"])


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(["400"], id="rejected"),
        pytest.param(["500"] * 5, id="failed"),
        pytest.param(["503", "started"], id="started-in-the-end"),
        pytest.param(["429", "401", "503", "unsent", "started"], id="one-of-each"),
    ],
)
async def test_others_follow_once_the_first_row_has_ended(script: list[str]) -> None:
    tries = len([verdict for verdict in script if verdict != "unsent"])
    bench = Bench(["a", "b", "c"], slots=3, script={"a": list(script)})
    await bench.finish()

    assert bench.des.keys()[:tries] == ["a"] * tries
    assert bench.states("b", "c") == [RowState.STARTED] * 2


async def test_a_first_start_without_a_usable_response_stops_the_target() -> None:
    bench = Bench(["a", "b"], script={"a": ["lost"]})
    await bench.finish()

    assert bench.stops() == [(StopReason.FIRST_CONTACT, DEFAULT_TARGET)]
    assert "the first start got no usable response: no response" in bench.session.stops[0].message
    assert bench.states("a", "b") == [RowState.UNKNOWN, RowState.PENDING]
    assert bench.des.keys() == ["a"]


@pytest.mark.parametrize("status", [403, 404, 405, 407, 415, 421, 426])
async def test_a_refusal_that_is_the_targets_stops_it_and_its_row_is_pending(status: int) -> None:
    refused = Rejected(f"DES responded {status}", status=status)
    bench = Bench(["a", "b"], script={"a": [refused]})
    await bench.finish()

    assert bench.stops() == [(CONFIGURATION, DEFAULT_TARGET)]
    assert str(status) in bench.session.stops[0].message
    assert bench.states("a", "b") == [RowState.PENDING] * 2
    assert bench.ledger.results("a") == ["throttled"]
    assert bench.ended() == []


async def test_a_later_refusal_is_the_rows() -> None:
    bench = Bench(["first", "a", "b"], script={"a": ["404"], "b": ["403"]})
    await bench.finish()

    assert bench.stops() == []
    assert bench.states("a", "b") == [RowState.REJECTED] * 2


async def test_five_403_over_several_jobs_stop_the_target_and_their_rows_are_pending() -> None:
    rows = [FakeRow(0, key, job_id=f"job {key}") for key in keys("r", 20)]
    bench = Bench(rows, slots=3, script={key: ["403"] for key in keys("r", 20)[1:]})
    bench.des.latency = lambda: 1.0
    await bench.finish()

    assert bench.stops() == [(CONFIGURATION, DEFAULT_TARGET)]
    assert bench.state("r1") is RowState.STARTED
    assert {bench.state(key) for key in keys("r", 20)[1:]} == {RowState.PENDING}
    assert len(bench.des.keys()) < 12
    last = bench.ledger.last("r2")
    assert (last.result, last.state, last.not_before) == ("throttled", RowState.PENDING, 0.0)
    text = "the last 5 rows, of several jobs, got 403 (forbidden)"
    assert bench.session.stops[0].message == text


@pytest.mark.parametrize(
    ("verdict", "ended"), [pytest.param("lost", 5, id="unknown"), pytest.param("500", 25, id="5xx")]
)
async def test_bad_ends_in_a_row_stop_the_target(verdict: str, ended: int) -> None:
    rows = keys("r", 40)
    script: dict[str, list[Any]] = {key: [verdict] for key in rows[1:]}
    bench = Bench(rows, slots=1, script=script, max_attempts=1)
    await bench.finish()

    assert bench.stops() == [(ERRORS, DEFAULT_TARGET)]
    assert bench.des.keys() == rows[: 1 + ended]
    assert bench.ledger.results(rows[1 + ended]) == ["unsent"]


@pytest.mark.parametrize("drains", [False, True])
async def test_bad_ends_stop_a_target_once_and_none_that_ends_anyway(drains: bool) -> None:
    rows = keys("r", 8)
    bench = Bench(["first", *rows], slots=8, script={key: ["lost"] for key in rows})
    bench.des.latency = lambda: 1.0
    await bench.begin()
    await bench.clock.advance(1.5)

    if drains:
        bench.session.drain(INTERRUPTED)

    await bench.finish()
    stop = (StopReason.INTERRUPTED, None) if drains else (ERRORS, DEFAULT_TARGET)
    assert bench.stops() == [stop]


async def test_a_response_that_comes_while_a_stop_is_recorded_is_kept() -> None:
    rows = [FakeRow(0, key, job_id=f"job {key}") for key in ["first", *keys("r", 6)]]
    bench = Bench(rows, slots=6, script={key: ["403"] for key in keys("r", 5)})
    bench.ledger.sync = 0.5
    seconds = iter([0.0, *[1.0] * 5, 1.4])
    bench.des.latency = lambda: next(seconds)
    await bench.finish()

    assert bench.stops() == [(CONFIGURATION, DEFAULT_TARGET)]
    assert bench.started() == {"first", "r6"}


async def test_one_target_is_stopped_by_its_errors_and_the_other_goes_on() -> None:
    rows = [f"{target}/{number}" for number in range(1, 11) for target in ("acme", "bistro")]
    script: dict[str, list[Any]] = {f"acme/{number}": ["lost"] for number in range(2, 11)}
    bench = Bench(rows, slots=2, script=script, targets=["acme", "bistro"])
    await bench.finish()

    assert bench.stops() == [(ERRORS, "acme")]
    assert bench.started() == {"acme/1", *keys("bistro/", 10)}


# Whole launches.


@pytest.mark.parametrize(
    ("script", "seconds"),
    [
        pytest.param(
            fault("status", 1, on="queryjobs", status=429, retryAfter=2), 2, id="429 to QueryJobs"
        ),
        pytest.param(fault("status", 1, on="queryjobs", status=503), 0, id="503 to QueryJobs"),
        pytest.param(fault("status", 1, status=502, retryAfter=2), 2, id="502 to the first start"),
        pytest.param(fault("status", 5, status=502, retryAfter=2), 2, id="502 to a later start"),
        pytest.param(fault("status", 5, status=429, retryAfter=2), 2, id="429 to a start"),
    ],
)
def test_no_wait_is_shorter_than_des_asks(script: Script, seconds: int, place: Workplace) -> None:
    place.simulator.use(script)
    place.manifest(8)
    began = time.monotonic()
    done = place.run("run", "night.jsonl", *QUICK)

    assert (done.returncode, len(place.simulator.runs)) == (0, 8), done.stderr
    assert time.monotonic() - began >= seconds


@pytest.mark.parametrize("status", [403, 404])
def test_what_is_no_place_for_starts_gets_one(status: int, place: Workplace) -> None:
    place.simulator.use(fault("status", status=status))
    place.manifest(8)
    done = place.run("run", "night.jsonl")

    assert (done.returncode, place.simulator.requests) == (5, 1)
    assert f"the first response was {status}" in done.stderr
    assert "8 rows: 8 pending; 1 attempt" in done.stderr
