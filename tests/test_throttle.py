"""When a target's rows may start: tables of what happened, and a machine that looks for locks."""

from __future__ import annotations

from itertools import chain, count, repeat
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from deslaunch.errors import DesError, Misconfigured, NotSent, Redirected, Throttled
from deslaunch.model import Stop, StopReason
from deslaunch.throttle import Gate, Pacer, Pause, Throttle

if TYPE_CHECKING:
    from collections.abc import Iterator


def waits() -> Iterator[float]:
    return chain([1.0, 2.0, 4.0, 8.0, 16.0, 32.0], repeat(60.0))


def throttle(give_up_after: float = 900.0) -> Throttle:
    return Throttle("acme", slots=16, waits=waits, give_up_after=give_up_after)


def reopened(found: Throttle, now: float) -> bool:
    """End the pause of a target whose probe was answered, if it is due."""
    paused = found.gate is Gate.PAUSED
    found.reopen(now)
    return paused and found.gate is Gate.ALONE


def throttled(seconds: float | None = None) -> Throttled:
    return Throttled("slow down", status=429, retry_after=seconds)


def unsent() -> NotSent:
    return NotSent("refused")


def play(found: Throttle, script: str) -> list[object]:  # noqa: C901  # one line a word
    """Play a script and return what came out: ``?k`` asks, ``+k`` begins, ``-`` ends.

    ``ok`` is final, ``5xx`` an answer that is not, ``lost`` no answer; ``429@t`` and
    ``429:s@t`` (Retry-After s) are throttles, ``unsent@t`` no contact, at the time t; ``open@t``
    tries to end the pause; ``hold`` and ``release`` are a token's renewal.
    """
    out: list[object] = []

    for word in script.split():
        what, _, time = word.partition("@")
        now = float(time or 0)
        name, _, seconds = what.partition(":")

        if name[0] in "?+":
            out += [found.admits(name[1:])] if name[0] == "?" else []
            found.begin(name[1:]) if name[0] == "+" else None
        elif name == "-":
            found.end()
        elif name in {"ok", "5xx"}:
            found.answered(final=name == "ok")
        elif name == "lost":
            out.append(found.lost("reset"))
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
        if isinstance(result, Pause)
        else result.reason
        if isinstance(result, Stop)
        else result
        for result in out
    ]


T, F, N = True, False, None

SCRIPTS: dict[str, tuple[str, list[object], Gate]] = {
    # first contact
    "first-contact-is-alone": ("?a +a ?b ?a", [T, F, F], Gate.ALONE),
    "the-rest-follow-a-final-answer": ("+a ok - ?b +b ?c", [T, T], Gate.OPEN),
    "the-rest-follow-before-the-slot-is-free": ("+a ok ?b", [T], Gate.OPEN),
    "a-5xx-keeps-the-others-out": ("+a 5xx - ?b ?a", [F, T], Gate.ALONE),
    "a-5xx-twice-keeps-the-others-out": ("+a 5xx - +a 5xx - ?b ?a", [F, T], Gate.ALONE),
    "a-5xx-then-started": ("+a 5xx - +a ok - ?b", [T], Gate.OPEN),
    "first-contact-lost": ("+a lost - ?b ?a", [StopReason.FIRST_CONTACT, F, F], Gate.STOPPED),
    "5xx-then-lost": ("+a 5xx - +a lost -", [StopReason.FIRST_CONTACT], Gate.STOPPED),
    "lost-after-the-introduction": ("+a ok - +b lost - ?c", [N, T], Gate.OPEN),
    # pauses
    "throttled-first": ("+a 429:5@0 - ?a ?b", [6.0, F, F], Gate.PAUSED),
    "pause-ends": ("+a 429:5@0 - open@5 open@6 ?b", [6.0, F, T, T], Gate.ALONE),
    "pause-ends-once": ("+a 429:5@0 - open@6 open@6", [6.0, T, F], Gate.ALONE),
    "a-timer-a-hair-early": ("+a 429:5@0 - open@5.9999 open@6", [6.0, F, T], Gate.ALONE),
    "no-retry-after": ("+a 429@0 - open@1 +a 429@1 -", [1.0, T, 2.0], Gate.PAUSED),
    "other-rows-in-flight": (
        "+a ok - +a +b +c 429@0 - 429@0 - open@1 ?d - ?d +d ?e",
        [1.0, N, T, F, T, F],
        Gate.ALONE,
    ),
    "a-probe-opens": ("+a ok - +a 429@0 - open@1 +b ok - ?c +c ?d", [1.0, T, T, T], Gate.OPEN),
    "a-5xx-opens-after-a-pause": ("+a ok - +a 429@0 - open@1 +b 5xx - ?c", [1.0, T, T], Gate.OPEN),
    "a-lost-probe-lets-the-next-try": (
        "+a ok - +a 429@0 - open@1 +b lost ?c - ?c +c ?d",
        [1.0, T, N, F, T, F],
        Gate.ALONE,
    ),
    "an-answer-in-a-pause-does-not-end-it": (
        "+a ok - +a +b 429:5@0 - ok - ?c open@6 ?c",
        [6.0, F, T, T],
        Gate.ALONE,
    ),
    "success-begins-the-waits-anew": (
        "+a ok - +a 429@0 - open@1 +a ok - +a 429@2 - ",
        [1.0, T, 1.0],
        Gate.PAUSED,
    ),
    "pauses-in-a-row-grow": (
        "+a ok - +a 429@0 - open@1 +a 429@1 - open@3 +a 429@3 -",
        [1.0, T, 2.0, T, 4.0],
        Gate.PAUSED,
    ),
    "prolonged": ("+a ok - +a +b 429:5@0 429:9@1 open@6 open@10", [6.0, 9.0, F, T], Gate.ALONE),
    "never-shortened": (
        "+a ok - +a +b 429:50@0 429:5@1 open@6 open@51",
        [51.0, N, F, T],
        Gate.ALONE,
    ),
    "never-shortened-by-none": ("+a ok - +a +b 429:50@0 429@1 open@2", [51.0, N, F], Gate.PAUSED),
    "never-shortened-by-no-contact": (
        "+a ok - +a +b 429:50@0 unsent@1 open@2",
        [51.0, N, F],
        Gate.PAUSED,
    ),
    "retry-after-of-nothing": ("+a ok - +a 429:0@0 open@0 open@1", [1.0, F, T], Gate.ALONE),
    # giving up
    "told-to-wait-too-long": ("+a ok - +a 429:900@0", [StopReason.THROTTLED], Gate.STOPPED),
    "told-to-wait-long": ("+a ok - +a 429:899@0", [900.0], Gate.PAUSED),
    "prolonged-too-long": (
        "+a ok - +a +b 429:5@0 429:900@1",
        [6.0, StopReason.THROTTLED],
        Gate.STOPPED,
    ),
    "paused-too-long-in-all": (
        "+a ok - +a 429:500@0 - open@501 +a 429:500@501",
        [501.0, T, StopReason.THROTTLED],
        Gate.STOPPED,
    ),
    "paused-long-with-a-success-between": (
        "+a ok - +a 429:500@0 - open@501 +a ok - +a 429:500@501",
        [501.0, T, 501.0],
        Gate.PAUSED,
    ),
    "paused-long-with-a-5xx-between-at-first-contact": (
        "+a 429:500@0 - open@501 +a 5xx - +a 429:500@501",
        [501.0, T, 501.0],
        Gate.PAUSED,
    ),
    "unreachable-too-long": (
        "+a ok - +a 429:500@0 - open@501 +a 429:398@501 - open@900 +a unsent@900",
        [501.0, T, 399.0, T, StopReason.UNREACHABLE],
        Gate.STOPPED,
    ),
    # never reached
    "never-reached": (
        "+a unsent@0 - open@1 +b unsent@1 - open@3 +a unsent@3 - ?a",
        [1.0, T, 2.0, T, StopReason.UNREACHABLE, F],
        Gate.STOPPED,
    ),
    "reached-once": (
        "+a 5xx - +a unsent@0 - open@1 +a unsent@1 - open@3 +a unsent@3 -",
        [1.0, T, 2.0, T, 4.0],
        Gate.PAUSED,
    ),
    "a-throttle-is-a-contact": (
        "+a 429@0 - open@1 +a unsent@1 - open@3 +a unsent@3 -",
        [1.0, T, 2.0, T, 4.0],
        Gate.PAUSED,
    ),
    # a token's renewal
    "held": ("+a ok - hold ?a release ?a", [F, T], Gate.OPEN),
    "held-twice": ("+a ok - hold hold release ?a release ?a", [F, T], Gate.OPEN),
    "released-too-often": ("+a ok - release hold ?a release ?a", [F, T], Gate.OPEN),
    "ended-too-often": ("+a - - ?a +a ?b", [T, F], Gate.ALONE),
    "held-at-first-contact": ("+a 5xx hold - ?a ?b release ?b ?a", [F, F, F, T], Gate.ALONE),
    # after the end
    "nothing-after-a-stop": (
        "+a +b lost ok 5xx lost 429@0 unsent@0 open@99 ?c",
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
    assert found.stopped is (gate is Gate.STOPPED)
    assert gate.value in repr(found)


@pytest.mark.parametrize("error", [Misconfigured("bad certificate"), Redirected("302", status=302)])
@pytest.mark.parametrize("script", ["+a", "+a ok - +a", "+a ok - +a +b 429:5@0"])
def test_a_wrong_configuration_stops(error: DesError, script: str) -> None:
    found = throttle()
    play(found, script)
    stop = found.held_back(error, 0.0)
    assert stop == Stop(StopReason.CONFIGURATION, str(error), "acme")
    assert found.stopped
    assert found.held_back(error, 0.0) is None


def test_a_stop_says_when_to_resume() -> None:
    stop = throttle(60.0).held_back(throttled(3600.0), 0.0)
    assert isinstance(stop, Stop)
    assert (stop.target, stop.resume_after) == ("acme", 3601.0)
    assert "more than 60 s" in stop.message


def test_the_wait_that_an_auth_server_asks_for_is_kept_too() -> None:
    pause = throttle().held_back(NotSent("no token", retry_after=30.0), 0.0)

    assert isinstance(pause, Pause)
    assert pause.seconds >= 30


@given(st.floats(0, 800), st.floats(0, 1e9))
@settings(max_examples=200, deadline=None)
def test_no_pause_ends_before_its_retry_after(seconds: float, now: float) -> None:
    found = throttle()
    pause = found.held_back(throttled(seconds), now)
    assert isinstance(pause, Pause)
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
        self.rows = [f"r{n}" for n in range(6)]
        self.names = count(6)
        self.in_flight = 0
        self.alone: str | None = None
        self.told = 0.0
        self.holds = 0

    @rule(target=flying, wanted=st.integers(0, 5))
    def start(self, wanted: int) -> str:
        """Start a row as the engine does: one that is admitted, if there is one."""
        key = self.rows[wanted % len(self.rows)] if self.rows else ""

        if not key or not self.found.admits(key):
            return ""

        if self.found.gate is Gate.ALONE:
            assert self.in_flight == 0, "a row that starts alone must be alone"

        assert not self.found.stopped
        assert not self.holds
        self.rows.remove(key)
        self.found.begin(key)
        self.in_flight += 1
        return key

    def land(self, key: str, *, over: bool) -> None:
        self.found.end()
        self.in_flight -= 1
        self.rows.append(f"r{next(self.names)}" if over else key)

    @rule(key=consumes(flying), final=st.booleans())
    def answer(self, key: str, final: bool) -> None:
        if key:
            self.found.answered(final=final)
            self.land(key, over=final)

    @rule(key=consumes(flying))
    def lose(self, key: str) -> None:
        if key:
            self.found.lost("reset")
            self.land(key, over=True)

    @rule(key=consumes(flying), seconds=st.none() | st.floats(0, 100))
    def slow_down(self, key: str, seconds: float | None) -> None:
        if key:
            decided = self.found.held_back(throttled(seconds), self.now)
            self.land(key, over=False)

            if not isinstance(decided, Stop):
                self.told = max(self.told, self.now + (seconds or 0.0))

    @rule(key=consumes(flying))
    def not_sent(self, key: str) -> None:
        if key:
            self.found.held_back(unsent(), self.now)
            self.land(key, over=False)

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
        if self.found.stopped:
            assert not any(self.found.admits(key) for key in self.rows)
            return

        if not self.holds and not self.in_flight and self.found.gate is not Gate.PAUSED:
            assert any(self.found.admits(key) for key in self.rows), "dead-locked"  # all are here

    def teardown(self) -> None:
        """When all has landed and the pause is over, somebody may start."""
        for _ in range(self.holds):
            self.found.release()

        for _ in range(self.in_flight):
            self.found.end()

        self.rows += [f"r{n}" for n in range(next(self.names))]
        reopened(self.found, self.now + 1e6)
        assert self.found.stopped or any(self.found.admits(key) for key in self.rows)


TestThrottleMachine = ThrottleMachine.TestCase
TestThrottleMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


# Starts a second.


@given(
    st.floats(0.1, 500),
    st.lists(st.floats(0, 0.3) | st.just(0.0), min_size=1, max_size=200),
    st.floats(0, 1e6),
)
@settings(max_examples=150, deadline=None)
def test_never_more_than_the_rate_and_one(rate: float, gaps: list[float], now: float) -> None:
    pacer = Pacer(rate)
    turns = []

    for gap in gaps:
        now += gap
        wait = pacer.wait(now)
        assert wait >= 0
        turns.append(now + wait)

    assert turns == sorted(turns)

    for first in range(len(turns)):
        later = first + int(rate) + 1
        assert later >= len(turns) or turns[later] - turns[first] > 1 - 1e-6


def test_waits_for_one_moment_grow_evenly() -> None:
    pacer = Pacer(4.0)
    assert [pacer.wait(10.0) for _ in range(4)] == [0.0, 0.25, 0.5, 0.75]
    assert pacer.wait(100.0) == 0.0, "no debt"
    assert pacer.wait(100.0) == 0.25, "and no savings"


def test_no_rate_is_no_wait() -> None:
    pacer = Pacer(None)
    assert {pacer.wait(0.0) for _ in range(100)} == {0.0}


# Slots that adapt, and probes.


def opened(slots: int) -> Throttle:
    found = Throttle("acme", slots=slots, waits=lambda: iter([1.0] * 99), give_up_after=900)
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
        pytest.param("+a ok -", 16, id="open"),
        pytest.param("+a ok - hold", 0, id="new token"),
        pytest.param("+a ok - hold release", 16, id="token renewed"),
        pytest.param("+a ok - +b 429:5@1", 0, id="pause"),
        pytest.param("+a ok - +b 429:5@1 - open@9", 1, id="after a pause"),
        pytest.param("+a ok - +b 429:5@1 - open@9 +c ok -", 8, id="spared"),
    ],
)
def test_open_slots_are_what_rows_may_take_now(script: str, slots: int) -> None:
    found = throttle()
    play(found, script)

    assert found.open_slots == slots


def test_slots_never_go_below_one_and_admit_no_more_than_they_are() -> None:
    found = opened(2)

    for now in range(5):
        found.held_back(throttled(), float(now))
        reopened(found, float(now + 1))

    found.answered(final=True)
    assert (found.slots, found.admits("a")) == (1, True)
    found.begin("a")
    assert not found.admits("b")
    assert found.lets_go(alone=False)


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


def test_a_failed_probe_prolongs_the_pause_and_halves_nothing_more() -> None:
    found = opened(16)
    found.held_back(unsent(), 0.0)

    pause = found.still_down(unsent(), 1.0)

    assert pause == Pause(1.0, "refused")
    assert (found.slots, found.gate) == (8, Gate.PAUSED)
    assert (found.rest(1.5), found.rest(2.0)) == (0.5, 0.0)


def test_probes_count_as_tries_to_reach_a_target() -> None:
    found = Throttle("acme", slots=4, waits=lambda: iter([1.0] * 99), give_up_after=900)
    found.held_back(unsent(), 0.0)

    news = [found.still_down(unsent(), 1.0), found.still_down(unsent(), 2.0)]

    assert isinstance(news[0], Pause)
    assert isinstance(news[1], Stop)
    assert news[1].reason is StopReason.UNREACHABLE
    assert found.still_down(unsent(), 3.0) is None


def test_a_misconfigured_probe_stops_the_target() -> None:
    found = opened(4)
    found.held_back(unsent(), 0.0)

    stop = found.still_down(Misconfigured("bad certificate"), 1.0)

    assert isinstance(stop, Stop)
    assert stop.reason is StopReason.CONFIGURATION


def test_an_open_target_is_not_due_and_its_probe_means_nothing() -> None:
    found = opened(4)
    found.reopen(99.0)

    assert (found.rest(99.0), found.still_down(unsent(), 99.0)) == (None, None)
    assert found.gate is Gate.OPEN


def test_a_pause_that_grew_during_a_probe_is_not_shortened_by_it() -> None:
    found = opened(4)
    found.held_back(throttled(10.0), 0.0)
    found.held_back(throttled(300.0), 11.5)  # a row in flight, while the probe is on its way

    found.reopen(12.0)
    assert found.gate is Gate.PAUSED
    pause = found.still_down(unsent(), 12.0)

    assert isinstance(pause, Pause)
    assert pause.seconds == found.rest(12.0) == 299.5


# What mutation testing asked for.


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        pytest.param(
            "+a ok - +a +b 429@0 - ok - open@1 +c 429@1",
            [1.0, T, 2.0],
            id="an-answer-in-a-pause-does-not-begin-the-waits-anew",
        ),
        pytest.param("+a ok - +a +b 429:5@0 429:5@1", [6.0, N], id="prolonged-by-nothing"),
    ],
)
def test_waits_in_a_pause(script: str, expected: list[object]) -> None:
    assert play(throttle(), script) == expected


@pytest.mark.parametrize(
    ("script", "alone", "others"),
    [
        pytest.param("+a", T, F, id="alone"),
        pytest.param("+a ok", T, T, id="open"),
        pytest.param("+a 429@0", F, F, id="paused"),
        pytest.param("+a lost", F, F, id="stopped"),
        pytest.param("+a hold", F, F, id="alone-and-held"),
        pytest.param("+a ok hold", F, F, id="open-and-held"),
        pytest.param("+a ok hold release", T, T, id="open-and-released"),
    ],
)
def test_a_row_that_was_admitted_is_let_go(script: str, alone: bool, others: bool) -> None:
    found = throttle()
    play(found, script)

    assert (found.lets_go(alone=True), found.lets_go(alone=False)) == (alone, others)


def test_a_lost_first_contact_says_what_was_lost() -> None:
    message = "the first start got no usable answer: reset"
    assert throttle().lost("reset") == Stop(StopReason.FIRST_CONTACT, message, "acme")


def test_a_target_that_was_never_reached_says_how_often_it_was_tried() -> None:
    found = throttle()
    found.held_back(unsent(), 0.0)
    found.still_down(unsent(), 1.0)

    message = "could not be reached in 3 tries: refused"
    assert found.still_down(unsent(), 3.0) == Stop(StopReason.UNREACHABLE, message, "acme")


def test_a_misconfigured_probe_says_what_is_wrong() -> None:
    found = opened(4)
    found.held_back(unsent(), 0.0)

    stop = found.still_down(Misconfigured("bad certificate"), 1.0)

    assert stop == Stop(StopReason.CONFIGURATION, "bad certificate", "acme")


def test_a_pause_that_is_prolonged_says_why() -> None:
    found = opened(4)
    found.held_back(throttled(5.0), 0.0)
    longer = found.held_back(Throttled("slower", status=429, retry_after=60.0), 1.0)
    stop = found.held_back(Throttled("much slower", status=503, retry_after=901.0), 2.0)

    message = "would stay paused for more than 900 s: much slower"
    assert longer == Pause(60.0, "slower")
    assert stop == Stop(StopReason.THROTTLED, message, "acme", resume_after=901.0)


@pytest.mark.parametrize("gate", list(Gate))
def test_a_gates_value_is_its_name(gate: Gate) -> None:
    assert gate.value == gate.name.lower()
