"""The first pass over a manifest: every row is checked before anything is sent."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from deslaunch.errors import CredentialsRefused, DesError, ManifestChanged, SchemaError
from deslaunch.intake import Intake, InvalidRow
from deslaunch.keys import NO_SUSPECTS, FirstLook
from deslaunch.model import KEPT_PROBLEMS, ProblemGroup, Row
from deslaunch.shards import Share

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from deslaunch.catalog import Catalog
    from deslaunch.config import Settings
    from deslaunch.keys import Suspects
    from deslaunch.manifest import Fingerprint, Manifest
    from deslaunch.model import RowProblem, StartRequest
    from deslaunch.rows import Item

    Observer = Callable[[StartRequest | InvalidRow], None]

CHUNK: Final = 256
"""Rows that are in memory at a time."""

_CHUNKS_A_VISIT: Final = 16
"""Chunks that are checked in one visit to a worker thread, before an interrupt is looked for."""

_READINGS: Final = 4
"""A file at rest takes two."""

_JOB: Final = attrgetter("target", "job_id")


@dataclass(slots=True)
class Validation:
    """What the first pass found.

    Attributes:
        fingerprint: of the file as it was read.
        rows: data rows.
        valid: rows that can be started.
        problems: the first 1,000 problems in manifest order.
        problem_count: how many there are in all.
        groups: the first 1,000 different problems, each with the number of its rows.
        suspects: the rows that may share their key with another.
        share: the rows that are this launcher's, where the batch is a shard; else None.
        jobs: rows that can be started, by target and jobId; empty where that was not asked for.
        by_schema: a schema is among the reasons.
        unconfirmed: why a fresher schema could not be had, where a cached one found rows
            invalid; else None.
    """

    fingerprint: Fingerprint
    suspects: Suspects
    share: Share | None = None
    rows: int = 0
    valid: int = 0
    problems: list[RowProblem] = field(default_factory=list)
    problem_count: int = 0
    groups: list[ProblemGroup] = field(default_factory=list)
    jobs: Counter[tuple[str, str]] = field(default_factory=Counter)
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


def make_intake(
    catalog: Catalog, settings: Settings, *, file: str, suspects: Suspects = None
) -> Intake:
    """Return an intake with a batch's allowances.

    Args:
        catalog: the jobs.
        settings: the allowances.
        file: how problems name the file.
        suspects: the rows that may share their key; None where nothing is known of that.
    """
    return Intake(
        catalog.schemas,
        file=file,
        targets=catalog.targets,
        left_out=catalog.left_out,
        allow_duplicates=settings.allow_duplicates,
        allow_repeated_auto=settings.allow_repeated_auto,
        suspects=suspects,
    )


async def validate(
    manifest: Manifest,
    catalog: Catalog,
    settings: Settings,
    *,
    observe: Callable[[], Observer] | None = None,
    poll: Callable[[], None] = lambda: None,
    count_jobs: bool = False,
) -> Validation:
    """Check every row of a manifest.

    Rows that a cached schema finds invalid are checked again by DES's own answer.

    Args:
        manifest: the file.
        catalog: the jobs.
        settings: the batch's allowances.
        observe: called before each reading; what it returns is called with every row that is
            this launcher's.
        poll: called now and then; may raise to end the reading.
        count_jobs: also count the valid rows by target and job.

    Raises:
        DesError: DES could not be asked for a target's jobs.
        CredentialsRefused: no token that DES accepts.
        SchemaError: DES's answer can't be read.
        ManifestError: the file can't be read.
    """
    read = partial(_read, manifest, catalog, settings, observe, poll, count_jobs)
    found = await read()

    if not found.by_schema:
        return found

    try:
        changed = await catalog.refresh()
    except (DesError, CredentialsRefused, SchemaError) as exc:
        found.unconfirmed = exc
        return found

    return await read(found.suspects) if changed else found


async def _read(
    manifest: Manifest,
    catalog: Catalog,
    settings: Settings,
    observe: Callable[[], Observer] | None,
    poll: Callable[[], None],
    count_jobs: bool,  # noqa: FBT001  # handed on as it came
    suspects: Suspects = NO_SUSPECTS,
) -> Validation:
    """Read a manifest, and once more where rows turned out to share a key, or may.

    Raises:
        ManifestChanged: it turned out otherwise each time.
    """
    for _ in range(_READINGS):
        intake = make_intake(catalog, settings, file=manifest.name, suspects=suspects)
        see = observe() if observe is not None else None
        share = None if settings.of_shard is None else Share(settings.of_shard)
        found = await _Pass(
            manifest, catalog, intake, share, see, poll, count_jobs=count_jobs
        ).run()

        if found.suspects == suspects:
            return found

        suspects = found.suspects

    raise ManifestChanged(
        f"{manifest.path} changes while it is validated", hint="launch it once it is at rest"
    )


class _Pass:
    def __init__(
        self,
        manifest: Manifest,
        catalog: Catalog,
        intake: Intake,
        share: Share | None,
        see: Observer | None,
        poll: Callable[[], None],
        *,
        count_jobs: bool,
    ) -> None:
        self._manifest = manifest
        self._catalog = catalog
        self._poll = poll
        self._see = see
        self._share = share
        self._intake = intake
        self._look = FirstLook()
        self._count_jobs = count_jobs
        self._jobs: Counter[tuple[str, str]] = Counter()
        self._valid = self._problem_count = 0
        self._problems: list[RowProblem] = []
        self._groups: dict[tuple[str, str], tuple[RowProblem, int]] = {}
        self._by_schema = False
        self._ended = False

    async def run(self) -> Validation:
        self._catalog.schemas.forget_warnings()
        items = self._manifest.first_pass()

        while not self._ended:
            chunk = await asyncio.to_thread(self._go_on, items)
            self._poll()

            if chunk:
                await self._catalog.load(targets_of(chunk))
                await asyncio.to_thread(self._take_all, chunk)

        return self._validation()

    def _go_on(self, items: Iterator[Item]) -> list[Item]:
        """Check rows for a while; return the next ones if their targets must be loaded first."""
        for _ in range(_CHUNKS_A_VISIT):
            chunk = read_chunk(items)

            if not chunk:
                self._ended = True
            elif any(map(self._catalog.needs, targets_of(chunk))):
                return chunk

            self._take_all(chunk)

        return []

    def _take_all(self, chunk: Sequence[Item]) -> None:
        if self._see is None and self._intake.sees_no_repeats:
            invalid = list(self._intake.check(chunk, self._look))

            if self._share is not None:
                self._share.take_all(chunk)
        else:
            invalid = list(self._shown(chunk, self._see))

        self._valid += len(chunk) - len(invalid)

        if self._count_jobs:
            rows = (item for item in chunk if isinstance(item, Row))
            self._jobs.update(map(_JOB, filter(self._is_in_share, rows)))
            bad = (row.row for row in invalid if row.row is not None)
            self._jobs.subtract(map(_JOB, filter(self._is_in_share, bad)))

        for row in invalid:
            self._note(row)

    def _shown(self, chunk: Sequence[Item], see: Observer | None) -> Iterator[InvalidRow]:
        """Let an observer see this launcher's rows; yield the invalid ones of all."""
        for item in chunk:
            taken = self._intake.take(item)

            if isinstance(item, Row):
                self._look.see(item)

            if self._is_own(taken) and see is not None:
                see(taken)

            if isinstance(taken, InvalidRow):
                yield taken

    def _is_own(self, taken: StartRequest | InvalidRow) -> bool:
        return self._share is None or self._share.take(taken.key, number_of(taken))

    def _is_in_share(self, row: Row) -> bool:
        return self._share is None or row.number in self._share

    def _note(self, row: InvalidRow) -> None:
        self._problem_count += len(row.problems)
        self._problems += row.problems[: KEPT_PROBLEMS - len(self._problems)]
        self._by_schema = self._by_schema or row.by_schema

        for problem in row.problems:
            self._group(problem)

    def _group(self, problem: RowProblem) -> None:
        first, rows = self._groups.get(problem.said, (problem, 0))

        if rows or len(self._groups) < KEPT_PROBLEMS:
            self._groups[problem.said] = first, rows + 1

    def _validation(self) -> Validation:
        fingerprint = self._manifest.fingerprint
        return Validation(
            fingerprint=fingerprint,
            suspects=self._look.suspects,
            share=self._share,
            rows=fingerprint.rows,
            valid=self._valid,
            problems=self._problems,
            problem_count=self._problem_count,
            groups=[ProblemGroup(first, rows) for first, rows in self._groups.values()],
            jobs=self._jobs,
            by_schema=self._by_schema,
        )


def number_of(taken: StartRequest | InvalidRow) -> int:
    """Return the number of a data row."""
    return taken.number if isinstance(taken, InvalidRow) else taken.row


def read_chunk(items: Iterator[Item], size: int = CHUNK) -> list[Item]:
    """Return the next items; none at the end."""
    return list(islice(items, size))


def targets_of(chunk: Sequence[Item]) -> set[str]:
    """Return the targets that rows name."""
    return {item.target for item in chunk if isinstance(item, Row)}
