"""Several ledgers looked at together: which are the shards of one manifest, and their counts."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from deslaunch.errors import ConfigurationError, LedgerForeign
from deslaunch.model import Summary
from deslaunch.results import summary_of
from deslaunch.shards import Shard

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from deslaunch.ledger import Snapshot

SHOWN_SHARDS: Final = 20
"""Missing shards that a warning names."""

_SUMMED: Final = (
    *("rows", "started", "failed", "rejected", "unknown", "invalid", "pending", "in_flight"),
    *("possible_duplicates", "attempts"),
)


@dataclass(frozen=True, slots=True)
class Group:
    """One ledger, or those of some shards of one manifest.

    Attributes:
        ledgers: at least one, in the order in which they were named.
        missing: the other shards, where more than one is there.
        missing_rows: how many rows of the manifest are theirs.
    """

    ledgers: tuple[Snapshot, ...]
    missing: tuple[Shard, ...] = ()
    missing_rows: int = 0

    @property
    def warning(self) -> str:
        """What must be said of missing shards, or ``""``."""
        if not self.missing:
            return ""

        here, are = len(self.ledgers), "is" if len(self.missing) == 1 else "are"
        names = ", ".join(map(str, self.missing[:SHOWN_SHARDS]))
        more = " …" if len(self.missing) > SHOWN_SHARDS else ""
        count = here + len(self.missing)
        return f"{here:,} of {count:,} shards are here: {names}{more} {are} missing"


def groups_of(ledgers: Sequence[Snapshot]) -> list[Group]:
    """Return what belongs together: all shards, and each other ledger by itself.

    Args:
        ledgers: at least one.

    Raises:
        ConfigurationError: a batch is named twice.
        LedgerForeign: two shards are not of one batch, or are the same shard.
    """
    _check_batches(ledgers)
    shards = tuple(ledger for ledger in ledgers if ledger.replay.shard is not None)
    _check_shards(shards)
    groups = [Group((ledger,)) for ledger in ledgers if ledger.replay.shard is None]
    return [*groups, _group(shards)] if shards else groups


def _check_batches(ledgers: Iterable[Snapshot]) -> None:
    seen: dict[str, Snapshot] = {}

    for ledger in ledgers:
        first = seen.setdefault(ledger.replay.header["batchId"], ledger)

        if first is not ledger:
            raise ConfigurationError(
                f"{first.path} and {ledger.path} are the same batch", hint="name each batch once"
            )


def _check_shards(ledgers: Sequence[Snapshot]) -> None:
    seen: dict[Shard | None, Snapshot] = {}

    for ledger in ledgers:
        _check_terms(ledgers[0], ledger)
        first = seen.setdefault(ledger.replay.shard, ledger)

        if first is not ledger:
            raise LedgerForeign(
                f"{first.path} and {ledger.path} are both shard {ledger.replay.shard}: its rows "
                "may have been started twice",
                hint="look at them one by one",
            )


def _check_terms(one: Snapshot, other: Snapshot) -> None:
    terms = _terms(other)

    for name, said in _terms(one).items():
        if said != terms[name]:
            raise LedgerForeign(
                f"{one.path} and {other.path} are no shards of one batch: their {name} differs, "
                f"{said!r} and {terms[name]!r}",
                hint="look at them one by one; or, if the manifest changed, resume them all",
            )


def _terms(ledger: Snapshot) -> dict[str, Any]:
    """Return what the shards of one batch have in common."""
    replay = ledger.replay
    assert replay.shard is not None
    return {
        "number of shards": replay.shard.count,
        "manifest (SHA-256)": (replay.manifest or {}).get("sha256"),
        "format": replay.header["format"],
        "--job-id": replay.header["jobId"],
        "--target": replay.header["target"],
        "allowances": sorted(replay.header["allow"]),
    }


def _group(ledgers: tuple[Snapshot, ...]) -> Group:
    here = {shard for ledger in ledgers if (shard := ledger.replay.shard)}
    count = next(iter(here)).count

    if len(here) == 1:
        return Group(ledgers)

    missing = (shard for index in range(1, count + 1) if (shard := Shard(index, count)) not in here)
    said = [ledger.replay.manifest or {} for ledger in ledgers]
    left = said[0].get("rows", 0) - sum(one.get("shardRows", 0) for one in said)
    return Group(ledgers, tuple(missing), left if len(here) < count else 0)


def summary_together(groups: Iterable[Group]) -> Summary:
    """Return the counts of some ledgers as one.

    The rows of missing shards are pending. ``seconds`` is the longest of the last sessions,
    ``ledger`` names all of them as a shell takes them.
    """
    groups = list(groups)
    parts = [summary_of(ledger) for group in groups for ledger in group.ledgers]
    counts = {name: sum(getattr(part, name) for part in parts) for name in _SUMMED}
    missing = sum(group.missing_rows for group in groups)
    counts["rows"] += missing
    counts["pending"] += missing
    return Summary(
        **counts,
        seconds=max(part.seconds for part in parts),
        ledger=shlex.join(part.ledger for part in parts),
        shared_runs=tuple(shared for part in parts for shared in part.shared_runs),
    )
