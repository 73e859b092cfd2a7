"""What is promised holds whenever the process, the disk or the power goes.

A small version of every attack of tests/torture; ``make torture`` runs the large one.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from torture.__main__ import ATTACKS, LONG, attack
from torture.breaks import BREAKS, ROOT, Break
from torture.tally import HEAD

if TYPE_CHECKING:
    from pathlib import Path

    from blockbuster import BlockBuster

needs_strace = pytest.mark.skipif(
    shutil.which("strace") is None, reason="strace makes system calls fail"
)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("kills", id="killed-at-random"),
        pytest.param("calls", id="killed-at-writes-and-syncs", marks=needs_strace),
        pytest.param("import", id="killed-during-an-import", marks=needs_strace),
        pytest.param("order", id="a-sync-before-each-start", marks=needs_strace),
        pytest.param("power", id="a-power-cut", marks=needs_strace),
        pytest.param("wal", id="a-log-that-is-cut"),
        pytest.param("disks", id="full-and-failing-disks", marks=needs_strace),
        pytest.param("full", id="small-and-filled-disks"),
        pytest.param("deleted", id="a-deleted-ledger"),
        pytest.param("copies", id="an-older-copy"),
        pytest.param("damage", id="spoiled-bytes"),
        pytest.param("foreign", id="no-ledger"),
        pytest.param("clocks", id="clocks-that-jump"),
        pytest.param("outage", id="servers-away"),
        pytest.param("hell", id="all-at-once", marks=needs_strace),
        pytest.param("servers", id="hostile-servers"),
        pytest.param("manifests", id="hostile-manifests"),
        pytest.param("streams", id="streams-lost"),
        pytest.param("signals", id="interrupted"),
        pytest.param("statements", id="killed-at-database-requests", marks=needs_strace),
        pytest.param("shared", id="shared-by-several-launchers"),
        pytest.param("server", id="a-full-disk-at-the-server"),
    ],
)
def test_no_row_is_started_twice_and_none_is_lost(
    name: str, tmp_path: Path, request: pytest.FixtureRequest, no_blocking_calls: BlockBuster
) -> None:
    no_blocking_calls.deactivate()  # a command does one thing, and imports what it needs for it

    if name in {
        "shared",
        "server",
        "statements",
    }:  # skipped, or failed, where there is no PostgreSQL
        request.getfixturevalue("postgres")

    tally = attack(name, tmp_path, fast=True, seed=1)

    if tally.notes and not tally.cases and not tally.broken:
        pytest.skip(tally.notes[0])

    assert tally.broken == []
    assert tally.cases > 0


def test_every_attack_has_a_small_version_here() -> None:
    (mark,) = test_no_row_is_started_twice_and_none_is_lost.pytestmark  # type: ignore[attr-defined]
    assert {param.values[0] for param in mark.args[1]} == set(ATTACKS)


def test_every_attack_is_seen_to_fail_on_a_broken_build() -> None:
    assert {name for broken in BREAKS for name in broken.attacks} == set(ATTACKS)


def test_the_page_has_a_run_in_which_each_attack_held() -> None:
    page = (ROOT / "deslaunch" / "help" / "reliability.md").read_text("utf-8")
    lines = [line.strip("| ").split(" | ") for line in page.splitlines() if ": " in line]
    told = {name.split(":")[0]: cells for name, *cells in lines if len(cells) == len(HEAD) - 1}

    assert list(told) == [*ATTACKS, *LONG]
    assert {(twice, lost, verdict) for _, _, _, twice, lost, _, verdict in told.values()} == {
        ("0", "0", "held")
    }


@pytest.mark.parametrize("broken", [pytest.param(one, id=one.name) for one in BREAKS])
def test_what_is_broken_on_purpose_is_still_there(broken: Break) -> None:
    for file, words, _ in broken.edits:
        assert words in (ROOT / "deslaunch" / file).read_text("utf-8")
