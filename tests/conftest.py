"""What every test stands on: asyncio only, and a loop that must not block."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from blockbuster import BlockBuster, BlockBusterFunction
from stage import place

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["place"]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


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
