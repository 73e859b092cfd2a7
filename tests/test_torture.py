"""A small version of every attack of tests/torture; ``make torture`` runs the large one."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from torture.__main__ import ATTACKS, attack

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace makes calls fail"),
]


@pytest.mark.parametrize("name", ATTACKS)
async def test_what_is_promised_holds_under(name: str, tmp_path: Path) -> None:
    tally = await attack(name, tmp_path, fast=True, seed=1)

    assert not tally.broken, tally.broken[:3]
    assert tally.cases
