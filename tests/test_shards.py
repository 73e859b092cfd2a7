"""Shards: each row of a manifest is exactly one's, whatever machine asks."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from commands import POS_USAGE, Workplace, workplace
from hypothesis import given
from hypothesis import strategies as st
from stage import JOB, Place, counts, invalid_row, quick, row, rows, runs_of, service

from deslaunch import batch, launcher
from deslaunch.errors import (
    ConfigurationError,
    InvalidManifest,
    LedgerExists,
    ManifestConflict,
)
from deslaunch.keys import row_digest, shard_of
from deslaunch.ledger import peek, snapshot
from deslaunch.model import Row
from deslaunch.results import summary_of
from deslaunch.shards import Shard, Share

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from stage import Said

    from deslaunch.config import LaunchOptions
    from deslaunch.simulator import Simulator

keys = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


# Which shard a key belongs to.


def test_the_shard_of_a_key_never_changes() -> None:
    """Shards of one batch may be run by several versions: none may give a row to two of them."""
    assert [shard_of("night-17", count) for count in (1, 2, 3, 7, 99_999)] == [1, 2, 1, 5, 84_859]
    assert shard_of("größe\n", 1_000) == 965


@given(key=keys, count=st.integers(1, 99_999))
def test_every_key_is_in_exactly_one_shard_by_the_documented_recipe(key: str, count: int) -> None:
    digest = hashlib.sha256(key.encode()).hexdigest()
    shard = int(digest[:16], 16) % count + 1

    assert 1 <= shard <= count
    assert Shard(shard, count).holds(key, 1)
    assert not Shard(shard % count + 1, count).holds(key, 1) or count == 1


@given(number=st.integers(1, 10**9), count=st.integers(1, 50))
def test_every_row_without_a_key_is_in_exactly_one_shard(number: int, count: int) -> None:
    shards = [Shard(index, count) for index in range(1, count + 1)]

    assert sum(shard.holds(None, number) for shard in shards) == 1


@pytest.mark.parametrize("count", [2, 3, 7, 64])
@pytest.mark.parametrize(
    "named", [pytest.param(True, id="keys"), pytest.param(False, id="digests")]
)
def test_keys_are_spread_evenly(count: int, named: bool) -> None:
    share = 500
    said = (Row(n, n, None, "default", JOB, {"DBGenFrom": str(n)}) for n in range(share * count))
    found = Counter(
        shard_of(f"night-{row.number}" if named else row_digest(row), count) for row in said
    )

    assert found.keys() == set(range(1, count + 1))
    assert max(abs(number - share) for number in found.values()) < 5 * share**0.5


@pytest.mark.parametrize(
    ("text", "shard"),
    [
        pytest.param("1/1", Shard(1, 1), id="all in one"),
        pytest.param("2/7", Shard(2, 7), id="one of several"),
        pytest.param("99999/99999", Shard(99_999, 99_999), id="most"),
    ],
)
def test_shard(text: str, shard: Shard) -> None:
    assert Shard.parse(text) == shard
    assert str(shard) == text


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("0/4", id="counted from 0"),
        pytest.param("5/4", id="over the count"),
        pytest.param("2", id="no count"),
        pytest.param("2/", id="empty count"),
        pytest.param("2/4\n", id="trailing newline"),
        pytest.param("02/4", id="leading zero: a resume compares the text"),
        pytest.param("-1/4", id="negative"),
        pytest.param("1/100000", id="too many"),
        pytest.param("²/4", id="no ASCII digit"),
        pytest.param("", id="empty"),
    ],
)
def test_no_shard(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--shard takes I/N"):
        Shard.parse(text)


def test_a_share_tells_its_rows_by_their_number() -> None:
    share = Share(Shard(2, 2))
    taken = [share.take(key, number) for number, key in enumerate(("a", "b", "c", None, None), 1)]

    assert taken == [shard_of(key, 2) == 2 for key in "abc"] + [False, True]
    assert [number in share for number in range(1, 6)] == taken
    assert len(share) == sum(taken)
    assert repr(share) == f"<Share 2/2: {sum(taken)} of 5 rows>"


# Launches of shards, in one process.


async def all_shards(
    place: Place, count: int, options: LaunchOptions, *, resumed: bool = False
) -> tuple[dict[str | int, str], list[int], Simulator]:
    """Launch each shard; return the states in all ledgers, and the rows that each one counts.

    A row without a key stands under its number. A row in two ledgers fails.
    """
    states: dict[str | int, str] = {}
    sizes = []

    async with service(place) as (simulator, des):
        for index in range(1, count + 1):
            shard = Shard(index, count)
            own: LaunchOptions = {**options, "shard": str(shard)}
            summary = await place.launch(des, **own)
            ledger = launcher.default_ledger(place.manifest, shard)

            if resumed:
                place.manifest.write_text(place.manifest.read_text() + "\n")
                summary = await launcher.resume(ledger, des, cache=place.cache, **quick({}))

            found = await asyncio.to_thread(snapshot, ledger)
            told: dict[str | int, str] = {
                key: str(state.state) for key, state in found.replay.states.items()
            }
            told |= dict.fromkeys(found.replay.unkeyed_invalid, "invalid")
            assert not told.keys() & states.keys()
            assert sum(counts(summary).values()) == summary.rows == len(told)
            assert summary_of(found).rows == summary.rows
            states |= told
            sizes.append(summary.rows)

    return states, sizes, simulator


def mixed_rows() -> list[Said]:
    """Return rows with keys and without, repeats, auto values and rows that are invalid."""
    unkeyed = [{"jobId": JOB, "parameters": {"DBGenFrom": 100 + n}} for n in range(12)]
    auto = {"jobId": JOB, "parameters": {"DBGenFrom": {"auto": True}}}
    bad = [invalid_row(200 + n) for n in range(4)]
    return [*rows(12), *unkeyed, *unkeyed, auto, {**auto, "key": "again"}, *bad, row(1), row(2)]


@pytest.mark.parametrize(
    "resumed", [pytest.param(False, id="run"), pytest.param(True, id="resume")]
)
@pytest.mark.parametrize("duplicates", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
async def test_shards_together_do_what_one_batch_does(
    place: Place, tmp_path: Path, count: int, duplicates: bool, resumed: bool
) -> None:
    place.write([*mixed_rows(), {"no": "row"}])
    options: LaunchOptions = {"skip_invalid": True, "allow_duplicates": duplicates}
    whole = Place(tmp_path / "whole")
    whole.folder.mkdir()
    whole.write([*mixed_rows(), {"no": "row"}])

    states, sizes, simulator = await all_shards(place, count, options, resumed=resumed)

    async with service(whole) as (judge, des):
        await whole.launch(des, **options)

    found = await asyncio.to_thread(snapshot, whole.ledger)
    told: dict[str | int, str] = {
        key: str(state.state) for key, state in found.replay.states.items()
    }
    assert states == told | dict.fromkeys(found.replay.unkeyed_invalid, "invalid")
    assert sum(sizes) == len(mixed_rows()) + 1
    assert bodies(simulator) == bodies(judge)


def bodies(simulator: Simulator) -> Counter[str]:
    return Counter(json.dumps(run.parameters, sort_keys=True) for run in simulator.runs)


async def test_a_bad_manifest_stops_every_shard(place: Place) -> None:
    place.write([*rows(8), invalid_row(9)])

    async with service(place) as (simulator, des):
        for index in (1, 2):
            with pytest.raises(InvalidManifest, match="1 of 9 rows"):
                await place.launch(des, shard=f"{index}/2")

    assert simulator.requests == 0


async def test_the_ledger_of_a_shard_tells_whose_it_is(place: Place) -> None:
    place.write(rows(9))

    async with service(place) as (_, des):
        summary = await place.launch(des, shard="2/3")

    assert summary.ledger == str(place.folder / "night.2-of-3.ledger.jsonl")
    found = await asyncio.to_thread(snapshot, launcher.default_ledger(place.manifest, Shard(2, 3)))
    own = [one["key"] for one in rows(9) if shard_of(one["key"], 3) == 2]
    assert found.replay.header["shard"] == "2/3"
    assert list(found.replay.states) == own
    said = found.replay.manifest
    assert said is not None
    assert (said["rows"], said["shardRows"]) == (9, len(own))


@pytest.mark.parametrize(
    ("begun", "then"),
    [
        pytest.param(None, "1/2", id="a shard of what is begun whole"),
        pytest.param("1/2", None, id="all of what is begun as a shard"),
        pytest.param("1/2", "1/3", id="a shard of another count"),
    ],
)
async def test_rows_are_not_begun_twice_beside_each_other(
    place: Place, begun: str | None, then: str | None
) -> None:
    place.write(rows(9))

    async with service(place) as (simulator, des):
        before = await place.launch(des, shard=begun)
        starts = simulator.requests

        with pytest.raises(LedgerExists, match="this manifest was begun there") as refused:
            await place.launch(des, shard=then)

        with pytest.raises(LedgerExists, match="this manifest was begun there"):
            await anext(launcher.preview(place.manifest, des, cache=place.cache, **sharded(then)))

        assert (simulator.requests, refused.value.hint[:45]) == (
            starts,
            f"go on with: deslaunch resume {before.ledger}"[:45],
        )
        assert not await asyncio.to_thread(_is_begun, place, then)


def sharded(shard: str | None) -> LaunchOptions:
    return {} if shard is None else {"shard": shard}


def _is_begun(place: Place, shard: str | None) -> bool:
    return launcher.default_ledger(
        place.manifest, None if shard is None else Shard.parse(shard)
    ).exists()


async def test_other_ledgers_beside_a_manifest_do_not_keep_it_from_being_begun(
    place: Place,
) -> None:
    place.write(rows(3))

    async with service(place) as (simulator, des):
        await place.launch(des, shard="1/2")
        place.folder.joinpath("night.9-of-9.ledger.jsonl").write_bytes(b"no ledger\n")
        place.folder.joinpath("night.old.ledger.jsonl").write_bytes(b"\0")
        await place.launch(des, shard="2/2")
        place.write(rows(4))
        await place.launch(des)

    assert runs_of(simulator) == Counter([1, 1, 2, 2, 3, 3, 4])


async def test_a_resume_takes_the_shard_from_the_ledger_and_no_other(place: Place) -> None:
    place.write(rows(20))
    ledger = launcher.default_ledger(place.manifest, Shard(1, 2))

    async with service(place) as (simulator, des):
        begun = await place.launch(des, shard="1/2")
        place.write([*rows(20), *map(row, range(21, 41))])  # new rows belong to both shards

        with pytest.raises(ConfigurationError, match=r"--shard is '2/2'.* begun with '1/2'"):
            await launcher.resume(ledger, des, cache=place.cache, shard="2/2")

        with pytest.raises(ManifestConflict, match="another shard started") as refused:
            await launcher.resume(ledger, des, cache=place.cache, **quick({}))

        accepted = quick({"accept_new_rows": True})
        summary = await launcher.resume(ledger, des, cache=place.cache, **accepted)

    own = [number for number in range(1, 41) if shard_of(f"r{number}", 2) == 1]
    assert refused.value.new == tuple(f"r{number}" for number in own if number > 20)
    assert runs_of(simulator) == Counter(own)
    assert summary.started == summary.rows == len(own) > begun.rows


async def test_rows_that_left_a_shard_do_not_keep_it_from_going_on(place: Place) -> None:
    place.write(rows(20))
    ledger = launcher.default_ledger(place.manifest, Shard(1, 2))
    own = [number for number in range(1, 21) if shard_of(f"r{number}", 2) == 1]
    others = [number for number in range(21, 41) if shard_of(f"r{number}", 2) == 2]

    async with service(place) as (simulator, des):
        await place.launch(des, shard="1/2")
        place.write(map(row, [*own[1:], *others]))  # what is new is another shard's
        summary = await launcher.resume(ledger, des, cache=place.cache, **quick({}))

    assert runs_of(simulator) == Counter(own)
    assert summary.rows == len(own)


async def test_a_batch_of_all_rows_is_no_shard(place: Place) -> None:
    place.write(rows(4))

    async with service(place) as (_, des):
        await place.launch(des)

        with pytest.raises(ConfigurationError, match="--shard"):
            await place.resume(des, shard="1/1")

    found = await asyncio.to_thread(peek, place.ledger)
    assert found is not None
    assert found.replay.header["shard"] is None
    assert "shardRows" not in found.replay.header["manifest"]


async def test_a_shard_that_has_no_row_is_a_batch_of_no_rows(place: Place) -> None:
    place.write(rows(1))
    other = 3 - shard_of("r1", 2)

    async with service(place) as (simulator, des):
        summary = await place.launch(des, shard=f"{other}/2")

    assert (summary.rows, summary.exit_code, simulator.requests) == (0, 0, 0)


async def test_a_program_may_hand_all_its_rows_to_every_shard(place: Place) -> None:
    said = [*rows(20), invalid_row(21), {"no": "row"}, {"no": "row"}]
    kept: Counter[str | None] = Counter()

    async with service(place) as (simulator, des):
        for index in (1, 2):
            opened = batch.open_batch(
                said, des, ledger=place.folder / f"{index}", cache=place.cache, shard=f"{index}/2"
            )

            async with opened as at_work:
                kept.update([outcome.key async for outcome in at_work])

    assert kept == Counter([*(one["key"] for one in said[:21]), None, None])
    assert runs_of(simulator) == Counter(range(1, 21))


# Processes side by side, on one manifest; the simulator's log is the judge.


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Workplace]:
    with workplace(tmp_path) as found:
        yield found


def half_named(place: Workplace, count: int) -> None:
    """Write rows of which every other one names its key; row n asks for DBGenFrom n."""
    said: list[Said] = [
        {"jobId": POS_USAGE, "parameters": {"DBGenFrom": n}, **({"key": f"k{n}"} if n % 2 else {})}
        for n in range(1, count + 1)
    ]
    (place.folder / "night.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in said))


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_side_by_side_start_each_row_exactly_once(desk: Workplace, count: int) -> None:
    half_named(desk, 210)
    shards = [f"{index}/{count}" for index in range(1, count + 1)]

    started = [desk.start("run", "night.jsonl", "--shard", shard, "--json") for shard in shards]
    ended = [(process.communicate(timeout=60), process.returncode) for process in started]

    assert [code for _, code in ended] == [0] * count, ended
    assert sorted(desk.logged_rows) == list(range(1, 211))
    summaries = [json.loads(out) for (out, _), _ in ended]
    assert sum(summary["started"] for summary in summaries) == 210
    assert len({summary["ledger"] for summary in summaries}) == count
    resumed = [desk.run("resume", summary["ledger"]) for summary in summaries]
    assert [done.returncode for done in resumed] == [0] * count
    assert len(desk.log) == 210
