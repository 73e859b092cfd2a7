"""A row's digest is a recipe that others recompute; its key is its name for ever."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deslaunch.keys import NO_SUSPECTS, SEPARATOR, FirstLook, KeyRing, Repeat, hint, row_digest
from deslaunch.model import AUTO, Row, TypedValue

if TYPE_CHECKING:
    from deslaunch.model import ParameterValue

JOB = "43f87799-62c6-4001-92f9-6b3df816a6d6"

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
plain_values = st.one_of(st.none(), st.just(AUTO), texts)


def row(
    number: int = 1,
    *,
    key: str | None = None,
    target: str = "default",
    job_id: str = JOB,
    **parameters: ParameterValue,
) -> Row:
    return Row(number, number + 1, key, target, job_id, parameters)


def test_digest_is_the_documented_recipe() -> None:
    text = f'["default","{JOB}",[["a",true],["b",null],["c","1.50"]]]'
    expected = hashlib.sha256(text.encode()).hexdigest()[:32]

    assert row_digest(row(c="1.50", b=None, a=AUTO)) == expected


def test_digest_never_changes() -> None:
    """Ledgers hold digests: a change here would make every old row look new."""
    assert (
        row_digest(row(DBGenFrom="1200", TradingDate=None, DBGenTo=AUTO, Näme='"\\\x01\n'))
        == "9ef399650c3164c437e2c47a0df76c99"
    )


@given(target=texts, parameters=st.dictionaries(texts, plain_values))
def test_digest_can_be_recomputed_with_the_standard_library(
    target: str, parameters: dict[str, ParameterValue]
) -> None:
    said = sorted(
        [name, True if value is AUTO else value] for name, value in sorted(parameters.items())
    )
    text = json.dumps([target, JOB, said], ensure_ascii=False, separators=(",", ":"))

    assert (
        row_digest(Row(1, 1, None, target, JOB, parameters))
        == hashlib.sha256(text.encode()).hexdigest()[:32]
    )


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(row(7, a="1", b=None), id="another row number and line"),
        pytest.param(row(key="mine", a="1", b=None), id="an explicit key"),
        pytest.param(row(b=None, a="1"), id="another order of parameters"),
        pytest.param(row(job_id=JOB.upper(), a="1", b=None), id="jobId in upper case"),
        pytest.param(row(a=TypedValue(2, "1"), b=TypedValue(4, None)), id="declared types"),
    ],
)
def test_same_digest(other: Row) -> None:
    assert row_digest(other) == row_digest(row(a="1", b=None))


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(row(target="acme", a="1"), id="target"),
        pytest.param(row(job_id=JOB[::-1], a="1"), id="job"),
        pytest.param(row(a="2"), id="value"),
        pytest.param(row(b="1"), id="name"),
        pytest.param(row(), id="left out"),
        pytest.param(row(a=None), id="null"),
        pytest.param(row(a=AUTO), id="auto"),
        pytest.param(row(a=""), id="empty text"),
        pytest.param(row(a="1", b=""), id="one parameter more"),
    ],
)
def test_another_digest(other: Row) -> None:
    assert row_digest(other) != row_digest(row(a="1"))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        pytest.param(None, "null", id="null"),
        pytest.param(AUTO, "true", id="auto"),
        pytest.param(TypedValue(2, AUTO), "true", id="typed auto"),
    ],
)
def test_null_and_auto_are_no_texts(value: ParameterValue, text: str) -> None:
    assert row_digest(row(a=value)) != row_digest(row(a=text))


def test_a_lone_surrogate_has_no_digest() -> None:
    with pytest.raises(TypeError):
        row_digest(row(a="\ud800"))


def test_key_is_the_explicit_one_else_the_digest() -> None:
    ring = KeyRing(allow_duplicates=False)

    assert (ring.claim(row(1, key="mine"), "d1"), ring.claim(row(2), "d1")) == ("mine", "d1")
    assert repr(ring) == "<KeyRing 2 keys, 0 repeated>"


def test_a_repeat_names_the_first_line() -> None:
    ring = KeyRing(allow_duplicates=False)
    ring.claim(row(17), "d1")

    claims = [ring.claim(row(number), "d1") for number in (40, 41)]

    assert claims == [Repeat("d1", row(17).line, explicit=False)] * 2


def test_allowed_repeats_are_counted_apart() -> None:
    ring = KeyRing(allow_duplicates=True)

    claims = [
        ring.claim(row(number), digest)
        for number, digest in enumerate(["d1", "d2", "d1", "d1", "d2"], 1)
    ]

    assert claims == ["d1", "d2", "d1~2", "d1~3", "d2~2"]


@pytest.mark.parametrize("allow_duplicates", [True, False])
def test_an_explicit_key_is_given_once(allow_duplicates: bool) -> None:
    ring = KeyRing(allow_duplicates=allow_duplicates)
    ring.claim(row(3, key="mine"), "d1")

    assert ring.claim(row(9, key="mine"), "d2") == Repeat("mine", row(3).line, explicit=True)


def test_an_explicit_key_may_not_take_a_digest_that_is_taken() -> None:
    ring = KeyRing(allow_duplicates=True)
    ring.claim(row(1), "d1")

    assert ring.claim(row(2, key="d1"), "d2") == Repeat("d1", row(1).line, explicit=True)


def test_keys_do_not_depend_on_rows_that_are_different() -> None:
    """A row that is put in front must not rename the others, repeats among them."""
    before, after = KeyRing(allow_duplicates=True), KeyRing(allow_duplicates=True)
    after.claim(row(1), "new")

    assert [before.claim(row(n), "d1") for n in (1, 2)] == [
        after.claim(row(n), "d1") for n in (2, 3)
    ]


# A first look


digest_of_one = row_digest(row(a="1"))
values = st.sampled_from(["1", "2", None, AUTO, TypedValue(2, "1"), TypedValue(None, None), "True"])
rows = st.builds(
    lambda key, target, said: Row(1, 1, key, target, JOB, dict(said)),
    st.sampled_from([None, None, "k", "l", digest_of_one]),
    st.sampled_from(["default", "acme"]),
    st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), values), max_size=3),
)


@given(st.lists(rows, max_size=12), st.booleans())
def test_a_ring_that_knows_the_suspects_gives_the_same_keys(
    batch: list[Row], allow_duplicates: bool
) -> None:
    batch = [one._replace(number=at, line=at + 1) for at, one in enumerate(batch, 1)]
    look = FirstLook()

    for one in batch:
        look.see(one)

    knowing = KeyRing(allow_duplicates=allow_duplicates, suspects=look.suspects)
    exact = KeyRing(allow_duplicates=allow_duplicates)
    digests = list(map(row_digest, batch))

    assert list(map(knowing.claim, batch, digests)) == list(map(exact.claim, batch, digests))


@given(rows, rows)
@example(row(a=AUTO), row(a="True"))
@example(row(a=None), row(a="None"))
def test_rows_of_equal_keys_share_their_hint(one: Row, other: Row) -> None:
    ring = KeyRing(allow_duplicates=False)
    ring.claim(one, row_digest(one))
    same = isinstance(ring.claim(other, row_digest(other)), Repeat)
    by_digest = digest_of_one in (one.key, other.key) and one.key != other.key

    assert by_digest or (hint(one) == hint(other)) == same


@given(st.dictionaries(st.sampled_from("abc"), texts.map(lambda text: text.replace("\0", ""))))
def test_a_hint_is_the_same_where_the_texts_are_known(
    parameters: dict[str, ParameterValue],
) -> None:
    one = row()._replace(parameters=parameters)
    other = row()._replace(parameters=dict(reversed(parameters.items())))
    known = SEPARATOR.join(map(str, parameters.values()))

    assert hint(one, known) == hint(one) == hint(other)


def test_rows_of_their_own_take_no_memory_in_the_ring() -> None:
    look, batch = FirstLook(), [row(number, a=str(number)) for number in range(2_000)]

    for one in batch:
        look.see(one)

    ring = KeyRing(allow_duplicates=True, suspects=look.suspects)
    keys = [ring.claim(one, row_digest(one)) for one in batch]

    assert (look.suspects, keys) == (NO_SUSPECTS, [row_digest(one) for one in batch])
    assert (repr(look), repr(ring)) == (
        "<FirstLook at 2000 rows>",
        "<KeyRing 0 keys, 0 repeated>",
    )


def test_a_key_that_may_be_a_digest_makes_every_row_suspect() -> None:
    look = FirstLook()
    look.see(row(1, key=digest_of_one))
    before = look.suspects
    look.see(row(2, a="1"))

    assert (before, look.suspects) == (NO_SUSPECTS, None)
