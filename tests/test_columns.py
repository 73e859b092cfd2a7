"""The columns against a plain list of hashes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deslaunch.columns import Columns

BITS = (1 << 64) - 1
SPREAD = 0x9E3779B97F4A7C15  # an odd number whose multiples lie far apart
hashes = (
    st.integers(0, 9) | st.integers(0, 9).map(lambda n: n << 40) | st.integers(-(1 << 63), BITS)
)


@given(st.lists(st.tuples(hashes, st.booleans()), max_size=80))
def test_every_entry_is_found_by_its_hash(added: list[tuple[int, bool]]) -> None:
    columns = Columns(least=2)
    known: list[int] = []

    for number, anyway in added:
        taken = number & BITS in known
        entry = columns.add(number) if anyway else columns.claim(number)
        assert entry == (-1 if taken and not anyway else len(known))

        if entry >= 0:
            assert columns.meta[entry] == 0
            columns.meta[entry] = columns.lag[entry] = columns.runs[entry] = BITS >> 32
            columns.sent[entry] = BITS
            known.append(number & BITS)

    assert len(columns) == len(known)

    for number in {number for number, _ in added} | {11, 12}:
        found = [entry for entry, other in enumerate(known) if other == number & BITS]
        assert sorted(columns.find(number)) == found


@pytest.mark.parametrize("room", [0, 10, 20_000])
def test_it_grows_and_forgets_nothing(room: int) -> None:
    columns = Columns()
    columns.reserve(room)

    assert [columns.claim(number * SPREAD) for number in range(20_000)] == list(range(20_000))
    assert [columns.find(number * SPREAD) for number in range(20_000)] == [
        (number,) for number in range(20_000)
    ]
    assert repr(columns) == "<Columns of 20000 entries>"


@pytest.mark.parametrize(("room", "stays"), [(20_000, True), (10, False)])
def test_an_index_with_room_need_not_grow(room: int, stays: bool) -> None:
    columns = Columns()
    columns.reserve(room)
    index = columns._index

    for number in range(20_000):
        columns.add(number * SPREAD)

    assert (columns._index is index) is stays


def test_room_is_made_within_reason_and_only_where_nothing_is() -> None:
    columns = Columns()
    columns.reserve(1 << 60)
    index = columns._index
    columns.add(1)
    columns.reserve(1 << 60)

    assert len(index) == 1 << 21
    assert columns._index is index
