from __future__ import annotations

import random
from itertools import accumulate, pairwise

import pytest

from deslaunch.patience import Patience


class Most:
    """Chance that always gives the longest wait."""

    def uniform(self, a: float, b: float) -> float:
        return b


class Least:
    def uniform(self, a: float, b: float) -> float:
        return a


def waits(patience: Patience, count: int) -> list[float]:
    return [patience.wait(asked, Most()) for asked in range(1, count + 1)]


def test_each_wait_is_longer_by_half_up_to_the_longest() -> None:
    assert waits(Patience(4, 20), 6) == [4, 6, 9, 13.5, 20, 20]


def test_a_tenth_is_left_to_chance() -> None:
    assert Patience(10).wait(1, Least()) == pytest.approx(9)
    found = {Patience(10).wait(1, random.Random(seed)) for seed in range(20)}
    assert len(found) == 20
    assert all(9 <= wait <= 10 for wait in found)


def test_a_longest_wait_below_the_first_counts_as_the_first() -> None:
    assert waits(Patience(600), 3) == [600, 600, 600]


def test_the_end_is_noticed_after_a_third_of_the_time_that_it_took() -> None:
    asked_at = list(accumulate(waits(Patience(5, 1e9), 30)))

    for last, following in pairwise(asked_at[5:]):
        assert (following - last) / following < 0.36


def test_no_number_of_questions_is_too_large() -> None:
    assert Patience(5, 300).wait(10**9, Most()) == 300
