"""What every test stands on: asyncio only, a loop that must not block, and no real DES."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from blockbuster import BlockBuster, BlockBusterFunction

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from stage import Workplace


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Workplace]:
    """A folder with a simulator at work beside it; see stage.py."""
    from stage import workplace  # noqa: PLC0415  # tests of one part load no simulator

    with workplace(tmp_path) as made:
        yield made


@pytest.fixture(autouse=True)
def no_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep what this machine is set up for away from the tests, and the tests from it."""
    for name in os.environ:
        if name.startswith(("DES_", "DESLAUNCH_")):
            monkeypatch.delenv(name)

    monkeypatch.setenv("DESLAUNCH_CACHE_DIR", str(tmp_path / ".user" / "cache"))
    monkeypatch.setenv("DESLAUNCH_STATE_DIR", str(tmp_path / ".user" / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / ".user" / "config"))


def _with_syncs(blockbuster: BlockBuster) -> BlockBuster:
    """Add the calls that blockbuster does not know, and that cost a disk's time."""
    for name in ("fsync", "fdatasync"):
        if hasattr(os, name):
            blockbuster.functions[f"os.{name}"] = BlockBusterFunction(None, f"os.{name}")

    return blockbuster


@pytest.fixture(autouse=True)
def no_blocking_calls() -> Iterator[BlockBuster]:
    """Fail a test whose event loop waits for a disk, a process or a name server."""
    blockbuster = _with_syncs(BlockBuster("deslaunch"))
    blockbuster.activate()
    yield blockbuster
    blockbuster.deactivate()
