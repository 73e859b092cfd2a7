"""Keys that several ledgers started, held against sets of keys."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deslaunch import ledger, records
from deslaunch.columns import Columns
from deslaunch.console import shared_key_lines
from deslaunch.model import StartRequest
from deslaunch.replay import Replay
from deslaunch.shared_keys import SharedKey, shared_keys
from deslaunch.states import KeyStates

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from deslaunch.records import Record

UTC = "2026-11-01T02:03:04.567Z"
HASHES: dict[str, Callable[[str], int]] = {
    "all-collide": lambda _: 7,
    "some-collide": lambda text: -(len(text) % 2),
    "none-collide": hash,
}

batches = st.dictionaries(
    st.sampled_from(["a", "b", "cc", "dd", "e", "ff"]),
    st.sampled_from(["started", "resolved", "unknown", "open", "rejected"]),
)


def request_of(key: str, digest: str = "d") -> StartRequest:
    return StartRequest(key, 1, 2, "default", "job", digest, b"{}", auto=False)


def written(key: str, fate: str, run: str) -> list[Record]:
    sent = records.sending(request_of(key), 1, with_body=False)
    ends = {
        "started": records.started(key, 1, job_run_id=run),
        "resolved": records.resolved(key, job_run_id=run, note=""),  # stays an object
        "unknown": records.unknown(key, 1, cause="lost"),
        "rejected": records.rejected(key, 1, status=400, error="no"),
    }
    return [sent, ends[fate]] if fate in ends else [sent]


def states_of(batch: Mapping[str, str], name: str, hashing: str) -> KeyStates:
    """Return the states of a batch, packed as those of a file are."""
    head = records.batch(
        batch_id=name,
        manifest={"path": "m", "sha256": "a", "rows": len(batch)},
        format="csv",
        job_id=None,
        target=None,
        allow=[],
        skip_invalid=True,
        version="0",
    )
    history = [
        record for key, fate in batch.items() for record in written(key, fate, f"{name}-{key}")
    ]
    data = b"".join(records.encode(record, UTC) for record in (head, *history))

    def fetch(offset: int) -> Record:
        return records.decode(data[offset : data.index(b"\n", offset) + 1])

    states = KeyStates(fetch, hash_of=HASHES[hashing], columns=Columns(least=2))
    replay = Replay(states)

    for offset, record in ledger.read_records(io.BytesIO(data), ledger.Tail()):
        replay.apply(record, offset)

    return states


@pytest.mark.parametrize("hashing", HASHES)
@given(found=st.lists(batches, max_size=4))
def test_keys_are_shared_that_several_started(hashing: str, found: list[dict[str, str]]) -> None:
    names = [f"n{number}" for number in range(len(found))]
    ledgers = [
        (name, states_of(batch, name, hashing)) for name, batch in zip(names, found, strict=True)
    ]

    shared = shared_keys(ledgers)

    runs: dict[str, list[tuple[str, str]]] = {}

    for name, batch in zip(names, found, strict=True):
        for key, fate in batch.items():
            if fate in {"started", "resolved"}:
                runs.setdefault(key, []).append((name, f"{name}-{key}"))

    expected = {key: tuple(places) for key, places in runs.items() if len(places) > 1}
    assert {one.key: one.runs for one in shared.kept} == expected
    assert (shared.count, len(shared.kept)) == (len(expected), len(expected))
    assert all(one.same_row for one in shared.kept)


def test_of_many_some_are_kept_and_all_are_counted() -> None:
    keys = dict.fromkeys((f"k{number}" for number in range(50)), "started")
    ledgers = [(name, states_of(keys, name, "none-collide")) for name in ("a", "b", "c")]

    shared = shared_keys(ledgers, keep=30)

    assert (shared.count, len(shared.kept)) == (50, 30)
    assert shared.kept[29] == SharedKey(
        "k29", same_row=True, runs=(("a", "a-k29"), ("b", "b-k29"), ("c", "c-k29"))
    )
    lines = list(shared_key_lines(shared))
    assert lines[1] == "  key k0, the same row: a-k0 in a, b-k0 in b, c-k0 in c"
    assert (len(lines), lines[-1]) == (22, "  … and 30 more: see status with --json")
    assert list(shared_key_lines(shared_keys(ledgers[:1]))) == []
