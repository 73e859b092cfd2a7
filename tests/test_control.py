"""What a person tells a launch while it is at work, or before: pause, go on, stop, and when."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from commands import Terminal
from fakes import VirtualClock
from ledgers import Hands, begin, checked, crash, make
from ledgers import session as new_session
from sessions import Bench, keys
from stage import workplace

from deslaunch.cli.render import local_time
from deslaunch.errors import ConfigurationError
from deslaunch.events import Control, Noted, Pulse, Stop, StopReason
from deslaunch.launch import session as session_module
from deslaunch.ledger.ledger import open_ledger
from deslaunch.settings import Deadline, Settings, next_such, parse_duration

if TYPE_CHECKING:
    from pathlib import Path

    from stage import Workplace


def slow(number: int, **more: Any) -> Bench:
    """Return a session whose starts take 10 s each."""
    bench = Bench(keys("r", number), **more)
    bench.des.latency = lambda: 10.0
    return bench


# A session.


async def test_a_pause_sends_nothing_until_it_is_told_to_go() -> None:
    bench = slow(9)
    await bench.begin()
    bench.ledger.told = Control(is_paused=True)
    await bench.clock.advance(60)
    assert bench.des.keys() == ["r1"], "what was in flight came back, and nothing followed"
    assert bench.told(Pulse)[-1] == Pulse(0, 0, is_paused=True)

    bench.ledger.told = Control()
    await bench.clock.advance(2)
    assert len(bench.des.keys()) == 3
    await bench.finish()
    assert len(bench.started()) == 9
    said = [event.message for event in bench.told(Noted)]
    assert said == ["deslaunch control: paused", "deslaunch control: go on"]


async def test_slots_are_changed_within_two_seconds() -> None:
    bench = slow(40)
    bench.slots = 8
    await bench.begin()
    await bench.clock.advance(10)
    assert len(bench.ledger.open()) == 2

    bench.ledger.told = Control(concurrency=8)
    await bench.clock.advance(2)
    assert len(bench.ledger.open()) == 8

    bench.ledger.told = Control(concurrency=1)
    await bench.clock.advance(12)
    assert len(bench.ledger.open()) == 1
    bench.ledger.told = Control(concurrency=8)
    await bench.finish()


async def test_more_slots_than_the_system_allows_are_warned_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lack = "3 slots: this process may open 64 files (ulimit -n)"
    monkeypatch.setattr(session_module, "fit_slots", lambda _: (3, lack))
    bench = slow(20)
    bench.slots = 3
    await bench.begin()
    bench.ledger.told = Control(concurrency=8)
    await bench.clock.advance(12)

    assert len(bench.ledger.open()) == 3
    assert bench.told(Noted)[0] == Noted(lack, is_warning=True)
    await bench.finish()


async def test_the_rate_is_changed_and_given_back() -> None:
    bench = Bench(keys("r", 60), slots=60, rate=1000.0)
    bench.ledger.told = Control(rate=1.0)
    await bench.begin()
    await bench.clock.advance(5)
    assert 5 <= len(bench.des.keys()) <= 7

    bench.ledger.told = Control()
    await bench.clock.advance(2)
    assert len(bench.des.keys()) == 60
    await bench.finish()


async def test_a_stop_drains() -> None:
    bench = slow(9)
    await bench.begin()
    bench.ledger.told = Control(is_stopped=True)
    await bench.finish()

    assert bench.started() == {"r1"}
    assert bench.session.stops == [Stop(StopReason.CONTROL, "deslaunch control stop was run")]


async def test_a_launch_stops_after_its_time() -> None:
    bench = slow(9, stop_after="25s")
    await bench.finish()

    assert len(bench.started()) == 5, "one alone, then two at a time"
    assert [stop.reason for stop in bench.session.stops] == [StopReason.OUT_OF_TIME]
    assert [stop.message for stop in bench.session.stops] == ["--stop-after 25s was reached"]


async def test_a_launch_stops_no_earlier_than_its_time() -> None:
    bench = slow(9, stop_after="25s")
    await bench.begin()
    await bench.clock.advance(24.5)
    before = bench.stops()
    await bench.clock.advance(0.5)
    await bench.finish()

    assert (before, bench.stops()) == ([], [(StopReason.OUT_OF_TIME, None)])


async def test_a_launch_stops_at_a_time_of_day() -> None:
    begins = datetime.fromtimestamp(VirtualClock().wall())  # noqa: DTZ006  # as a person says it
    text = f"{begins + timedelta(minutes=2):%H:%M}"
    bench = slow(30, stop_at=text)
    await bench.finish()

    seconds = bench.clock.wall() - begins.timestamp()
    assert 60 <= seconds <= 132
    assert 11 <= len(bench.started()) <= 27
    assert [stop.reason for stop in bench.session.stops] == [StopReason.OUT_OF_TIME]


async def test_a_launch_whose_time_has_come_sends_nothing() -> None:
    bench = slow(9)
    passed = Deadline("--stop-at 06:00", bench.clock.wall, bench.clock.wall())
    bench.session.deadlines = (passed,)
    await bench.finish()

    assert (bench.des.keys(), len(bench.session.stops)) == ([], 1)


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0], ids=["a day back", "a day ahead"])
async def test_a_wall_clock_that_jumps_changes_no_duration(jump: float) -> None:
    bench = slow(9, stop_after="25s")
    await bench.begin()
    bench.clock.jump = jump
    await bench.finish()

    assert len(bench.started()) == 5, "as many as without the jump"


async def test_a_time_of_day_is_the_wall_clock_s() -> None:
    at = datetime.fromtimestamp(VirtualClock().wall()) + timedelta(hours=2)  # noqa: DTZ006
    bench = slow(9, stop_at=f"{at:%H:%M}")
    await bench.begin()
    bench.clock.jump = 7200.0
    await bench.finish()

    assert [stop.reason for stop in bench.session.stops] == [StopReason.OUT_OF_TIME]


def test_the_time_counts_from_the_begin_of_the_command(place: Workplace) -> None:
    place.manifest(3)

    with Terminal(place, "run", "night.jsonl", "--stop-after", "1") as terminal:
        terminal.expect("stops at ")
        terminal.expect("Start 3 runs?")
        asked = time.time()

        while time.time() < asked + 1:  # a person thinks
            place.run("--version")

        terminal.type("y\n")
        assert terminal.code == 5
        assert "--stop-after 1 was reached" in terminal.text

    assert not place.simulator.runs


async def test_a_batch_that_ends_in_time_is_not_stopped() -> None:
    bench = slow(3, stop_after="1h")
    await bench.finish()

    assert (len(bench.started()), bench.session.stops) == (3, [])


# Times.


def test_a_time_is_told_as_a_person_says_it() -> None:
    now = datetime.now()  # noqa: DTZ005  # local, as the person says it
    at, days = now.replace(hour=6, minute=0), [f"{now + timedelta(d):%Y-%m-%d}" for d in range(3)]
    told = [local_time((at + timedelta(days=day)).timestamp()) for day in range(3)]

    assert told == [f"06:00 today, {days[0]}", f"06:00 tomorrow, {days[1]}", f"06:00, {days[2]}"]


def test_the_next_such_time_is_today_or_tomorrow() -> None:
    now = datetime(2026, 11, 28, 12, 30).timestamp()  # noqa: DTZ001  # local

    assert next_such("12:31", now) - now == 60
    assert next_such("12:30", now) - now == 86_400
    assert next_such("6:00", now) - now == 17.5 * 3600


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("15m", 900), ("4h", 14_400), ("1h30m", 5400), ("1h1m1s", 3661)],
)
def test_a_duration_is_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "0", "0h", "-1", "h", "1d", "1.5h", "30m1h", "1h30", "\uff14h"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--stop-after takes a duration such as 4h"):
        Settings(stop_after=text)


@pytest.mark.parametrize("text", ["", "24:00", "6", "06:60", "6am", "-1:00"])
def test_what_is_no_time_of_day_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--stop-at takes a local time"):
        Settings(stop_at=text)


# A batch.


async def test_nobody_is_told_where_nobody_is_at_work(batch_place: str) -> None:
    async with await make(batch_place):
        pass

    async with await open_ledger(batch_place) as reader:
        with pytest.raises(ConfigurationError, match="no launcher is at work on it"):
            await reader.tell_launchers({"is_paused": True})


async def test_what_is_told_adds_up_and_ends_with_the_launcher(batch_place: str) -> None:
    hands = Hands()

    async with await make(batch_place, [checked(1)], hands) as ledger:
        await ledger.begin_session(new_session())

        async with await open_ledger(batch_place) as other:
            await other.tell_launchers({"is_paused": True})
            now = await other.tell_launchers({"concurrency": 3})
            assert now == Control(is_paused=True, concurrency=3)
            assert str(await ledger.control()) == "paused, 3 slots"
            await other.tell_launchers({"is_paused": False, "rate": 0.5})

        assert str(await ledger.control()) == "3 slots, at most 0.5 starts a second"
        log = [entry async for page in ledger.log() for entry in page]
        events = [entry.details["text"] for entry in log if entry.details.get("event") == "control"]
        assert events[0] == "paused"
        await crash(ledger)

    async with await begin(batch_place, hands) as again:
        assert await again.control() == Control()


@pytest.mark.parametrize(
    ("control", "text"),
    [
        (Control(concurrency=1, rate=1.0), "1 slot, at most 1 start a second"),
        (Control(concurrency=1024), "1,024 slots"),
        (Control(is_paused=True, rate=1234567.5), "paused, at most 1,234,567.5 starts a second"),
        (Control(), ""),
    ],
)
def test_settings_read_as_a_person_says_them(control: Control, text: str) -> None:
    assert str(control) == text


# The command.


def test_a_launch_is_paused_and_stopped_from_another_terminal(tmp_path: Path) -> None:
    with workplace(tmp_path, {"latency": 0.2}) as place:
        place.manifest(200)
        launch = place.start("run", "night.jsonl", "--concurrency", "4", "--yes")
        place.wait_for_runs(launch, 8)

        done = place.run("control", "night.ledger.db", "pause", "concurrency=8")
        assert (done.returncode, done.stderr) == (0, "set: paused, 8 slots\n")
        before = wait_until_calm(place)
        told = place.run("status", "night.ledger.db")
        assert "set by deslaunch control: paused, 8 slots" in told.stdout
        go = told.stderr.strip().removeprefix("end the pause: ")
        assert go == "deslaunch control night.ledger.db go"

        assert place.shell(go).returncode == 0
        assert place.run("status", "night.ledger.db").stderr == ""
        assert place.wait_for_runs(launch, before + 8)
        place.run("control", "night.ledger.db", "stop")
        _, err = launch.communicate(timeout=30)

        assert launch.returncode == 5
        assert "stopped: deslaunch control stop was run\n" in err
        refused = place.run("control", "night.ledger.db", "go")
        assert (refused.returncode, "no launcher is at work" in refused.stderr) == (2, True)
        [_, command] = refused.stderr.strip().split("start one: ")
        assert place.shell(f"{command} --yes").returncode == 0
        assert len(place.simulator.runs) == 200


def wait_until_calm(place: Workplace) -> int:
    """Return how many runs there are once nothing is in flight, and nothing follows."""
    for _ in range(40):
        before = len(place.simulator.runs)
        in_flight = place.json("status", "night.ledger.db")["inFlight"]

        if not in_flight and before == len(place.simulator.runs):
            return before

    raise AssertionError("it was not paused")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["halt"], "expected pause, go, stop, concurrency=N or rate=R, got 'halt'"),
        (["puase"], "got 'puase'; did you mean pause?"),
        (["pause", "go"], "expected each setting once"),
        (["concurrency=0"], "concurrency takes a whole number of slots from 1 to 1,024, got '0'"),
        (["rate=fast"], "rate takes a number of starts a second above 0, got 'fast'"),
        (["rate=0"], "rate takes a number of starts a second above 0, got '0'"),
        ([], "Missing argument 'WORD...'"),
    ],
)
def test_a_word_that_says_nothing_is_refused(place: Workplace, words: list[str], why: str) -> None:
    place.manifest(2)
    place.run("run", "night.jsonl", "--limit", "1", "--yes")
    done = place.run("control", "night.ledger.db", *words)

    assert done.returncode == 2
    assert why in done.stderr
    assert done.stderr.endswith("see: deslaunch control --help\n")
