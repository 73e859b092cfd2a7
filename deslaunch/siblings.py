"""Ledgers that lie beside a manifest and in which it was begun as another batch.

A row is never sent twice within a batch, nor by shards that belong together. A whole batch beside
shards, or shards of different counts, know nothing of each other: each would start the same rows.
"""

from __future__ import annotations

import glob
import re
import shlex
from typing import TYPE_CHECKING, Final

from deslaunch import records
from deslaunch.errors import LedgerExists
from deslaunch.manifest import sha256_of
from deslaunch.shards import Shard

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PART: Final = re.compile(r"(\.[0-9]+-of-[0-9]+)?\.ledger\.jsonl")
_HEADER_LIMIT: Final = 1 << 16


def check_siblings(manifest: Path, stem: str, shard: Shard | None) -> None:
    """Refuse to begin a batch whose rows another ledger of the manifest may have started.

    Args:
        manifest: its path.
        stem: what the names of its ledgers begin with.
        shard: the shard that is to begin; None for all rows.

    Raises:
        LedgerExists: this very manifest was begun in another ledger beside it, and not as a shard
            of the same count.
    """
    sha256: str | None = None

    for path in _candidates(manifest, stem):
        header = _header_of(path)
        said = header.get("manifest") or {}
        sha256 = sha256 or sha256_of(manifest)

        if said.get("sha256") == sha256 and not _belong_together(header.get("shard"), shard):
            raise LedgerExists(
                f"{path}: this manifest was begun there, {_as_what(header.get('shard'))}; to "
                "begin it here too would start its rows twice, so that nothing was sent",
                hint=f"go on with: deslaunch resume {shlex.quote(str(path))}; if all rows are to "
                "be started once more, name a new --ledger",
            )


def _candidates(manifest: Path, stem: str) -> Iterator[Path]:
    for path in sorted(manifest.parent.glob(f"{glob.escape(stem)}*.ledger.jsonl")):
        if _PART.fullmatch(path.name.removeprefix(stem)):
            yield path


def _header_of(path: Path) -> records.Record:
    """Return a ledger's header; an empty record where it has no readable one."""
    try:
        with path.open("rb") as stream:
            return records.decode(stream.readline(_HEADER_LIMIT))
    except (OSError, records.BadRecord):
        return {}


def _belong_together(text: object, shard: Shard | None) -> bool:
    known = Shard.parse(text) if isinstance(text, str) else None
    return known is not None and shard is not None and known.count == shard.count


def _as_what(text: object) -> str:
    return f"as shard {text}" if isinstance(text, str) else "all of its rows"
