"""The first pass over a manifest: every row is checked before anything is sent."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Final

from deslaunch.errors import CredentialsRefused, DesError, SchemaError
from deslaunch.intake import Intake, InvalidRow
from deslaunch.model import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from deslaunch.catalog import Catalog
    from deslaunch.config import Settings
    from deslaunch.manifest import Fingerprint, Manifest
    from deslaunch.model import RowProblem, StartRequest
    from deslaunch.rows import Item

KEPT_PROBLEMS: Final = 1_000
CHUNK: Final = 256
"""Rows that are read and checked in one visit to a worker thread."""


@dataclass(slots=True)
class Validation:
    """What the first pass found.

    Attributes:
        fingerprint: of the file as it was read.
        rows: data rows.
        valid: rows that can be started.
        problems: the first 1,000 problems in manifest order.
        problem_count: how many there are in all.
        by_schema: a schema is among the reasons.
        unconfirmed: why a fresher schema could not be had, where a cached one found rows
            invalid; else None.
    """

    fingerprint: Fingerprint
    rows: int = 0
    valid: int = 0
    problems: list[RowProblem] = field(default_factory=list)
    problem_count: int = 0
    by_schema: bool = False
    unconfirmed: Exception | None = None

    @property
    def invalid(self) -> int:
        """Rows that can't be started."""
        return self.rows - self.valid

    @property
    def whole(self) -> bool:
        """The file could be read to its end."""
        return self.fingerprint.whole


def make_intake(catalog: Catalog, settings: Settings, *, file: str) -> Intake:
    """Return an intake with a batch's allowances."""
    return Intake(
        catalog.schemas,
        file=file,
        targets=catalog.targets,
        allow_duplicates=settings.allow_duplicates,
        allow_repeated_auto=settings.allow_repeated_auto,
    )


async def validate(
    manifest: Manifest,
    catalog: Catalog,
    settings: Settings,
    *,
    observe: Callable[[], Callable[[StartRequest | InvalidRow], None]] | None = None,
    poll: Callable[[], None] = lambda: None,
) -> Validation:
    """Check every row of a manifest.

    Rows that a cached schema finds invalid are checked again by DES's own answer.

    Args:
        manifest: the file.
        catalog: the jobs.
        settings: the batch's allowances.
        observe: called before each reading; what it returns is called with every row.
        poll: called now and then; may raise to end the reading.

    Raises:
        DesError: DES could not be asked for a target's jobs.
        CredentialsRefused: no token that DES accepts.
        SchemaError: DES's answer can't be read.
        ManifestError: the file can't be read.
    """
    first = _Pass(manifest, catalog, settings, observe, poll)
    found = await first.run()

    if not found.by_schema:
        return found

    try:
        changed = await catalog.refresh()
    except (DesError, CredentialsRefused, SchemaError) as exc:
        found.unconfirmed = exc
        return found

    return await _Pass(manifest, catalog, settings, observe, poll).run() if changed else found


class _Pass:
    def __init__(
        self,
        manifest: Manifest,
        catalog: Catalog,
        settings: Settings,
        observe: Callable[[], Callable[[StartRequest | InvalidRow], None]] | None,
        poll: Callable[[], None],
    ) -> None:
        self._manifest = manifest
        self._catalog = catalog
        self._poll = poll
        self._see = observe() if observe is not None else None
        self._intake = make_intake(catalog, settings, file=manifest.name)
        self._valid = self._problem_count = 0
        self._problems: list[RowProblem] = []
        self._by_schema = False

    async def run(self) -> Validation:
        self._catalog.schemas.forget_warnings()
        items = self._manifest.first_pass()

        while chunk := await asyncio.to_thread(read_chunk, items):
            self._poll()
            await self._catalog.load(targets_of(chunk))
            await asyncio.to_thread(self._take_all, chunk)

        self._poll()
        return self._validation()

    def _take_all(self, chunk: Sequence[Item]) -> None:
        for item in chunk:
            taken = self._intake.take(item)

            if isinstance(taken, InvalidRow):
                self._note(taken)
            else:
                self._valid += 1

            if self._see is not None:
                self._see(taken)

    def _note(self, row: InvalidRow) -> None:
        self._problem_count += len(row.problems)
        self._problems += row.problems[: KEPT_PROBLEMS - len(self._problems)]
        self._by_schema = self._by_schema or row.by_schema

    def _validation(self) -> Validation:
        fingerprint = self._manifest.fingerprint
        return Validation(
            fingerprint=fingerprint,
            rows=fingerprint.rows,
            valid=self._valid,
            problems=self._problems,
            problem_count=self._problem_count,
            by_schema=self._by_schema,
        )


def read_chunk(items: Iterator[Item], size: int = CHUNK) -> list[Item]:
    """Return the next items; none at the end."""
    return list(islice(items, size))


def targets_of(chunk: Sequence[Item]) -> set[str]:
    """Return the targets that rows name."""
    return {item.target for item in chunk if isinstance(item, Row)}
