"""Ledgers of batches that were never launched, written through the ledger's own interface."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from manifests import apart

from deslaunch.ledger.ledger import NewBatch, NewSession, begin_import
from deslaunch.ledger.reading import Clock, TargetInfo
from deslaunch.manifest.rows import dump_row
from deslaunch.model import (
    END_STATES,
    CheckedRow,
    InvalidRow,
    Job,
    Outcome,
    Problem,
    Result,
    Row,
    RowState,
    RunStatus,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from deslaunch.ledger.ledger import Ledger
    from deslaunch.model import Start

JOB: Final = "43f87799-62c6-4001-92f9-6b3df816a6d6"
RUN: Final = "0d8ab4f4-6f4f-4f8e-9f4e-9a3a8d6c{:04x}"
BEGAN: Final = 1_795_482_000.0
"""2026-11-24 01:00 UTC; the ledger's clock begins here, and only :class:`Tick` moves it."""


class Tick:
    """A clock that goes on by a tenth of a second each time that it is looked at."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        self.seconds += 0.1
        return BEGAN + self.seconds


class Said(NamedTuple):
    """A row, and what becomes of it.

    Attributes:
        key: the row's key.
        parameters: what it says.
        attempts: result, status and error of each attempt, in order; none: it is never sent, and
            neither are the rows behind it.
        run: finished, success, status text and time of its end; or why DES refused its status.
        problem: why it is invalid, or ``""``.
        notes: that are kept with it.
        target: its target.
    """

    key: str
    parameters: Mapping[str, Any] = {"DBGenFrom": "1"}
    attempts: Sequence[tuple[str, int | None, str]] = ()
    run: tuple[bool, bool, str | None, str | None] | str | None = None
    problem: str = ""
    notes: Mapping[str, str] = {}
    target: str = "default"


STARTED: Final = (("started", None, ""),)


async def write_batch(
    place: Path | str,
    rows: Sequence[Said],
    *,
    manifest: str = "night.csv",
    columns: Sequence[str] | None = ("key", "DBGenFrom"),
    pauses: Sequence[str] = (),
) -> None:
    """Make a ledger at rest of these rows, as one session left it."""
    tick = Tick()
    clock = Clock(wall=tick, elapsed=tick)
    targets = dict.fromkeys(row.target for row in rows)

    async with await begin_import(str(place), NewBatch(manifest, {}), clock=clock) as batch:
        for target in targets:
            await batch.add_jobs(target, [Job(JOB, "POS usage", ())], from_des=True)

        await batch.add([checked_row(number, said) for number, said in enumerate(rows, 1)])
        ledger = await batch.publish(digest="ab", columns=columns)

    async with ledger:
        known = {name: TargetInfo(f"https://{name}.example", None) for name in targets}
        await ledger.begin_session(NewSession(known))

        for text in pauses:
            await ledger.note("pause", "default", text)

        await _launch(ledger, rows)
        await ledger.record_runs(
            [
                (number, len(said.attempts), _status(number, said.run))
                for number, said in enumerate(rows, 1)
                if said.run
            ]
        )
        await ledger.end_session(0, [])


def checked_row(number: int, said: Said) -> CheckedRow | InvalidRow:
    """Return a row as the check of a manifest gives it."""
    row = apart(Row(number, number + 1, said.key, said.target, JOB, said.parameters, said.notes))

    if said.problem:
        problem = Problem("night.csv", number + 1, number, "", "", "", said.problem)
        return InvalidRow(number, number + 1, said.key, said.target, JOB, (problem,), dump_row(row))

    says = dump_row(row)
    body = says.encode()  # nobody reads it
    digest = hashlib.sha256(body).digest()[:16]
    return CheckedRow(row, said.key, body, digest, False, says)


async def _launch(ledger: Ledger, rows: Sequence[Said]) -> None:
    claims = Counter(said.target for said in rows if said.attempts)
    outcomes: list[Outcome] = []

    while claims or outcomes:
        given = await ledger.exchange(outcomes, claims)
        outcomes = [_outcome(start, rows[start.row - 1]) for start in given.starts]
        claims = Counter(out.target for out in outcomes if out.not_before is not None)


def _outcome(start: Start, said: Said) -> Outcome:
    word, status, error = said.attempts[start.attempt - 1]
    result = Result(word)
    return Outcome(
        row=start.row,
        attempt=start.attempt,
        key=start.key,
        target=start.target,
        job_id=start.job_id,
        result=result,
        state=END_STATES.get(result, RowState.PENDING),
        job_run_id=RUN.format(start.row) if word == "started" else None,
        status=status,
        error=error,
        not_before=None if result in END_STATES else 0.0,
    )


def _status(number: int, run: tuple[bool, bool, str | None, str | None] | str) -> RunStatus | str:
    if isinstance(run, str):
        return run

    finished, success, text, ended = run
    created = "2026-11-24T01:00:10.000Z"
    files = ({"name": "out.csv"},) if finished else ()
    return RunStatus(JOB, RUN.format(number), finished, success, text, created, ended, files)
