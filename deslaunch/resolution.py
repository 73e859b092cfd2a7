"""What a person found out, checked against the ledger and recorded in it."""

from __future__ import annotations

import asyncio
import shlex
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from deslaunch import records
from deslaunch.errors import ConfigurationError
from deslaunch.ledger import Ledger, snapshot
from deslaunch.model import RowState
from deslaunch.results import unknown_rows
from deslaunch.session import held
from deslaunch.wire import is_guid

if TYPE_CHECKING:
    from collections.abc import Iterable

    from deslaunch.findings import Finding
    from deslaunch.model import Summary
    from deslaunch.results import UnknownRow
    from deslaunch.terms import StrPath


async def premature(
    ledger: StrPath, findings: Iterable[Finding], now: datetime
) -> list[UnknownRow]:
    """Return the rows that are said to have started nothing before anybody can be sure of it.

    A run that is not in DES now may be there a moment later, until the end of the time in which
    to look for it: ``to_utc``. Nothing is locked, and nothing recorded.

    Args:
        ledger: the batch's ledger.
        findings: what is about to be recorded.
        now: the time, with its zone.

    Raises:
        LedgerError: the ledger can't be read.
    """
    keys = {finding.key for finding in findings if finding.job_run_id is None}

    rows = await asyncio.to_thread(_unknown_among, Path(ledger), keys) if keys else []
    return [row for row in rows if datetime.fromisoformat(row.to_utc) > now]


def _unknown_among(ledger: Path, keys: set[str]) -> list[UnknownRow]:
    return [row for row in unknown_rows(snapshot(ledger)) if row.key in keys]


async def resolve(ledger: StrPath, findings: Iterable[Finding]) -> Summary:
    """Record what a person found out about rows that are unknown or failed.

    Args:
        ledger: the batch's ledger.
        findings: one for each row.

    Returns:
        The counts of the whole batch.

    Raises:
        ConfigurationError: a key is not in the ledger or neither unknown nor failed, or
            named twice, or a jobRunId is no GUID; then nothing was recorded.
        LedgerError: the ledger can't be used.
    """
    found = list(findings)
    [(key, times)] = Counter(finding.key for finding in found).most_common(1) or [("", 0)]

    if times > 1:
        raise ConfigurationError(
            f"the row with key {key!r} is named twice", hint="leave one of the findings out"
        )

    async with held(Ledger.open(Path(ledger))) as journal:
        for finding in found:
            _check_finding(journal, finding)

        _check_runs(journal, found)
        await asyncio.gather(
            *(
                journal.append(
                    records.resolved(finding.key, job_run_id=finding.job_run_id, note=finding.note)
                )
                for finding in found
                if not _is_known(journal, finding)
            )
        )
        return journal.replay.summary(ledger=str(ledger), seconds=0.0)


def _check_finding(journal: Ledger, finding: Finding) -> None:
    state = journal.replay.get(finding.key)

    if state is None:
        raise ConfigurationError(
            f"{journal.path} has no row with key {finding.key!r}",
            hint=f"the keys of unknown rows: deslaunch status {shlex.quote(str(journal.path))}",
        )

    if state.state not in {RowState.UNKNOWN, RowState.FAILED} and not _is_known(journal, finding):
        raise ConfigurationError(
            f"the row with key {finding.key!r} is {state.state}; only unknown and failed rows "
            "are resolved",
            hint=f"which ones are: deslaunch status {shlex.quote(str(journal.path))}",
        )

    if finding.job_run_id is not None and not is_guid(finding.job_run_id):
        raise ConfigurationError(
            f"a jobRunId is a GUID, got {finding.job_run_id!r} for key {finding.key!r}",
            hint="copy it from DES",
        )


def _check_runs(journal: Ledger, findings: Iterable[Finding]) -> None:
    """Refuse a run that would stand at two rows: one of them would never be started."""
    found = [finding for finding in findings if finding.job_run_id is not None]
    owners = dict(journal.replay.keys_of_runs(str(finding.job_run_id) for finding in found))

    for finding in found:
        run = (finding.job_run_id or "").lower()
        owner = owners.setdefault(run, finding.key) if run else finding.key

        if owner != finding.key:
            raise ConfigurationError(
                f"the run {finding.job_run_id} is that of the row with key {owner!r}; it can't be "
                f"that of {finding.key!r} as well",
                hint="look both rows up in DES again",
            )


def _is_known(journal: Ledger, finding: Finding) -> bool:
    """Tell whether the ledger says already what was found, so that it may be told again."""
    state = journal.replay.get(finding.key)

    if state is None:
        return False

    if finding.job_run_id is None:
        return state.state is RowState.PENDING

    return finding.job_run_id == state.job_run_id
