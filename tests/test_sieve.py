"""The sieve against a plain set."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deslaunch.sieve import Sieve

BITS = (1 << 64) - 1
near = st.integers(0, 30)  # so that many come twice, and many begin at the same slot
hashes = near | near.map(lambda number: number << 20) | st.integers(-(1 << 63), BITS)


@given(st.lists(hashes), st.sampled_from([0, 1, 5_000]))
def test_it_tells_what_came_before(added: list[int], room: int) -> None:
    sieve = Sieve(room)
    known: set[int] = set()
    again = set()

    for number in added:
        unsigned = number & BITS or 1
        assert sieve.add(number) is (unsigned in known)
        again |= {unsigned} & known
        known.add(unsigned)

    assert (sieve.suspects, len(sieve)) == (again, len(known))


@pytest.mark.parametrize("room", [0, 20_000])
@pytest.mark.parametrize("step", [1, 1 << 8, 0x9E3779B97F4A7C15])
def test_it_grows_and_forgets_nothing(room: int, step: int) -> None:
    sieve = Sieve(room)

    assert not any(sieve.add(number * step) for number in range(1, 20_001))
    assert all(sieve.add(number * step) for number in range(1, 20_001))
    assert repr(sieve) == "<Sieve of 20000 hashes, 20000 suspects>"


def test_zero_is_a_hash_like_any_other() -> None:
    sieve = Sieve()

    assert (sieve.add(0), sieve.add(0)) == (False, True)
    assert sieve.suspects == {1}


@pytest.mark.parametrize("room", [1_000, 100_000, 1_000_000])
def test_a_sieve_with_room_need_not_grow(room: int) -> None:
    sieve = Sieve(room)
    slots = sieve._slots

    for number in range(min(room, 100_000)):
        sieve.add(number)

    assert sieve._slots is slots
    assert sys.getsizeof(slots) <= 22 * room + 9_000


@given(st.lists(hashes), st.integers(1, 9))
def test_many_at_once_are_what_they_are_one_by_one(added: list[int], size: int) -> None:
    one_by_one, together = Sieve(), Sieve()

    for number in added:
        one_by_one.add(number)

    for at in range(0, len(added), size):
        together.add_all(added[at : at + size])

    assert (together.suspects, len(together)) == (one_by_one.suspects, len(one_by_one))


def test_it_grows_while_many_are_added() -> None:
    sieve = Sieve()
    sieve.add_all(range(1, 20_001))
    sieve.add_all(range(1, 20_001))

    assert repr(sieve) == "<Sieve of 20000 hashes, 20000 suspects>"
