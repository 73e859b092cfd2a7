"""A job that bears less than the others gets less, and keeps no other row waiting."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from ledgers import Hands, checked, crash, make, outcome, states
from ledgers import session as new_session
from stage import POS_USAGE, row, workplace

from deslaunch.cli.targets import read_config
from deslaunch.errors import ConfigurationError, Throttled
from deslaunch.events import StopReason
from deslaunch.launch.target import Lanes, Throttle
from deslaunch.ledger.ledger import JobLane, take_ledger
from deslaunch.model import Start
from deslaunch.settings import JobLimit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from deslaunch.ledger.ledger import Ledger, NewSession

SLOW = "22222222-2222-4222-8222-222222222222"
LANE = JobLane("default", SLOW)
SALES = "8d0c3c7e-5b0f-4d5e-9a51-0f6a2f1c9e04"


def limited() -> NewSession:
    return new_session()._replace(limited=[SLOW])


@pytest.fixture
async def ledger(batch_place: str) -> AsyncIterator[Ledger]:
    """Rows 1 to 4 of the job that is limited, rows 5 to 8 of another."""
    rows = [checked(n, **({"job": SLOW} if n < 5 else {})) for n in range(1, 9)]

    async with await make(batch_place, rows, Hands()) as made:
        yield made


async def claim(ledger: Ledger, **claims: int) -> tuple[list[int], dict[Any, float | None]]:
    """Claim rows of the job that is limited, and of all others; return their numbers."""
    wanted: dict[Any, int] = {}

    for name, count in claims.items():
        wanted[LANE if name == "slow" else "default"] = count

    turn = await ledger.exchange([], wanted)
    return [start.row for start in turn.starts], turn.due


# How many rows may be claimed.


def lanes(limit: JobLimit, *, slots: int = 8) -> tuple[Lanes, Throttle]:
    """Return the lanes of one target, which is open, and of the job that is limited."""
    throttle = Throttle("default", slots=slots, wait=lambda _: 1.0, give_up_after=900)
    throttle.started()
    made = Lanes({"default": throttle}, {SLOW: limit})
    made.set_due({"default": 0.0, LANE: 0.0}, 0.0)
    return made, throttle


def start(job_id: str = SLOW) -> Start:
    return Start(1, 1, "a", "default", job_id, b"")


def test_lanes_take_turns_at_the_free_slots() -> None:
    made, _ = lanes(JobLimit(concurrency=3))

    assert made.claims(8, 0.0) == {"default": 8}
    assert made.claims(8, 0.0) == {LANE: 3, "default": 5}
    assert made.claims(8, 0.0) == {"default": 8}
    assert made.claims(2, 0.0) == {LANE: 2}
    assert made.claims(0, 0.0) == {}


def test_a_limited_job_gets_no_more_than_its_slots_and_all_of_them_back() -> None:
    made, throttle = lanes(JobLimit(concurrency=2))
    made.set_due({"default": None}, 0.0)
    made.take(start())
    assert (made.claims(8, 0.0), throttle.in_flight) == ({LANE: 1}, 1)

    made.take(start())
    assert (made.claims(8, 0.0), made.next_time(0.0, 0.0)) == ({}, math.inf)
    made.give_back(start())
    assert (made.claims(8, 0.0), throttle.in_flight) == ({LANE: 1}, 1)
    made.give_back(start())
    assert (made.claims(8, 0.0), throttle.in_flight) == ({LANE: 2}, 0)


def test_time_alone_frees_no_slot() -> None:
    made, _ = lanes(JobLimit(concurrency=1), slots=2)
    made.set_due({"default": None, LANE: 7.0}, 0.0)
    assert (made.next_time(0.0, 0.0), made.next_time(7.0, 0.0)) == (7.0, math.inf)
    made.take(start())
    assert made.next_time(0.0, 0.0) == math.inf, "the job has no slot left"

    made.set_due({"default": 7.0, LANE: None}, 0.0)
    assert made.next_time(0.0, 0.0) == 7.0
    made.take(start(SALES))
    assert made.next_time(0.0, 0.0) == math.inf, "the target has no slot left"


def test_rows_of_other_jobs_take_no_slot_of_a_limited_one() -> None:
    made, throttle = lanes(JobLimit(concurrency=1), slots=2)
    made.take(start(SALES))

    assert throttle.in_flight == 1
    assert made.claims(8, 0.0) == {"default": 1}
    assert made.claims(8, 0.0) == {LANE: 1}, "the target has one slot left"


def test_the_rate_of_a_job_holds_its_rows_alone() -> None:
    made, _ = lanes(JobLimit(rate=2.0))
    made.set_due({"default": 7.0}, 0.0)
    assert made.claims(8, 0.0) == {LANE: 1}
    made.take(start())

    assert (made.claims(8, 0.1), made.next_time(0.1, 0.0)) == ({}, 0.5)
    assert made.claims(8, 0.5) == {LANE: 1}
    made.take(start())
    assert made.next_time(0.5, 3.0) == 3.0, "the whole launch has a rate too"
    assert made.claims(8, 7.0) == {"default": 6}, "two of its eight slots are taken"


def test_rows_that_are_added_are_due_at_once_in_every_lane() -> None:
    made, throttle = lanes(JobLimit(concurrency=1))
    made.set_due({"elsewhere": 0.0, "default": None, LANE: None}, 0.0)
    assert (made.claims(8, 5.0), made.has_rows()) == ({}, False)

    made.add_rows("default", 5.0)
    assert made.has_rows()
    assert made.claims(8, 5.0) == {"default": 8}
    assert made.claims(8, 5.0) == {LANE: 1, "default": 7}
    throttle.stop(StopReason.CONTROL, "stopped")
    assert not made.has_rows()


def test_a_number_of_slots_holds_at_once_but_while_des_is_spared() -> None:
    _, throttle = lanes(JobLimit())
    throttle.resize(16)
    assert throttle.slots == 16

    throttle.held_back(Throttled("wait", retry_after=1.0), 0.0)
    throttle.resize(32)
    assert throttle.slots == 8, "half of those before, until starts succeed"
    throttle.resize(4)
    assert throttle.slots == 4


# What the ledger claims.


async def test_its_rows_are_claimed_by_themselves(ledger: Ledger) -> None:
    assert await ledger.begin_session(limited()) == {"default": 0.0, LANE: 0.0}

    assert await claim(ledger, others=2) == ([5, 6], {"default": 0.0})
    assert await claim(ledger, slow=1) == ([1], {LANE: 0.0})
    assert (await claim(ledger, slow=2, others=9))[0] == [2, 3, 7, 8]
    assert await claim(ledger, slow=9, others=9) == ([4], {"default": None, LANE: None})


async def test_no_row_is_passed_over_after_a_kill(ledger: Ledger, batch_place: str) -> None:
    await ledger.begin_session(limited())
    await claim(ledger, others=9)
    await crash(ledger)

    async with await take_ledger(batch_place) as again:
        assert await again.begin_session(new_session()) == {"default": 0.0}
        assert (await claim(again, others=9))[0] == [1, 2, 3, 4]
        assert set((await states(again)).values()) == {"unknown", "sending"}


async def test_what_is_to_be_sent_again_is_claimed_from_its_own(ledger: Ledger) -> None:
    await ledger.begin_session(limited())
    starts = (await ledger.exchange([], {LANE: 1, "default": 1})).starts
    turn = await ledger.exchange([outcome(start, "retry") for start in starts], {})
    assert turn.due == {"default": 0.0, LANE: 0.0}

    assert (await claim(ledger, others=1))[0] == [5]
    assert (await claim(ledger, slow=1))[0] == [1]


async def test_it_waits_for_its_own_rows_alone_and_others_for_theirs(ledger: Ledger) -> None:
    await ledger.begin_session(limited())
    slow = await ledger.exchange([], {LANE: 9})
    others = await ledger.exchange([], {"default": 9})
    assert (len(slow.starts), slow.due, others.due) == (4, {LANE: None}, {"default": None})

    waits = {1: 5.0, 5: 9.0}
    came = [
        outcome(start, "retry", not_before=waits[start.row])
        if start.row in waits
        else outcome(start, "started")
        for start in (*slow.starts, *others.starts)
    ]
    assert (await ledger.exchange(came, {})).due == {LANE: 5.0, "default": 9.0}


# A launch.


@pytest.mark.parametrize("rate", [None, 5])
def test_a_limited_job_is_sent_as_it_bears_while_others_go_on(
    tmp_path: Path, rate: int | None
) -> None:
    with workplace(tmp_path, {"latency": 0.1}) as place:
        place.write(
            [row(n) for n in range(1, 11)]
            + [row(n, jobId=SALES, parameters={"DBGenFrom": n}) for n in range(11, 41)]
        )
        limit = "concurrency = 1" if rate is None else f"rate = {rate}"
        (place.folder / "limits.toml").write_text(f'[jobs."{POS_USAGE}"]\n{limit}\n')
        words = ("--config", "limits.toml", "--concurrency", "8", "--yes")
        done = place.run("run", "night.jsonl", *words)
        assert done.returncode == 0, done.stderr

        lines = place.judge().lines
        slow = sorted((one["sentUtc"], one["answeredUtc"]) for one in lines[:10])
        others = sorted((one["sentUtc"], one["answeredUtc"]) for one in lines[10:])
        assert max(end for _, end in others) <= slow[-1][0], "they did not wait for it"

        if rate is None:
            assert all(ended <= begun for (_, ended), (begun, _) in pairwise(slow))
        else:
            assert len(slow) == len({begun for begun, _ in slow})

        assert any(ended > begun for (_, ended), (begun, _) in pairwise(others))
        assert len(place.simulator.runs) == 40


def test_a_configuration_file_names_limits(tmp_path: Path) -> None:
    path = tmp_path / "limits.toml"
    path.write_text(f'[jobs."{SLOW}"]\nconcurrency = 2\nrate = 0.5\n[jobs."{SALES}"]\nrate = 1\n')

    assert read_config(path).jobs == {SLOW: JobLimit(2, 0.5), SALES: JobLimit(None, 1)}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[jobs.sales]\nrate = 1", "[jobs] sales: expected a job's GUID; see them: deslaunch jobs"),
        (f'[jobs."{SLOW}"]\nrate = 0', "rate: expected a number of starts a second above 0, got 0"),
        (f'[jobs."{SLOW}"]\nconcurrency = 0', "expected a whole number of slots from 1 to 1,024"),
        (f'[jobs."{SLOW}"]\nslots = 2', "slots: is not a key of this table"),
    ],
)
def test_a_limit_that_is_none_is_told(text: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "limits.toml"
    path.write_text(text)

    with pytest.raises(ConfigurationError) as told:
        read_config(path)

    assert why in str(told.value)
