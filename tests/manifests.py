"""Manifests for the tests of how they are read and checked."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from deslaunch.manifest.check import Check
from deslaunch.manifest.files import Manifest
from deslaunch.manifest.schema import compile_jobs
from deslaunch.model import (
    CheckedRow,
    InvalidRow,
    Job,
    JobParameter,
    JobRunParameterValue,
    Problem,
    Row,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from deslaunch.model import Format

JOB = "43f87799-62c6-4001-92f9-6b3df816a6d6"
OTHER_JOB = "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee"
FILE = "night"

SAMPLE = Job(
    JOB,
    "Nightly sales",
    (
        JobParameter("Text", 1, nullable=True),
        JobParameter("Count", 2, supports_auto=True),
        JobParameter("Amount", 3),
        JobParameter("When", 4),
    ),
)


def open_manifest(form: Format, content: bytes | str, **options: Any) -> Manifest:
    raw = content.encode() if isinstance(content, str) else content
    return Manifest(io.BytesIO(raw), format=form, name=FILE, **options)


def items_of(form: Format, content: bytes | str, **options: Any) -> list[Row | InvalidRow]:
    manifest = open_manifest(form, content, **options)
    return [item for chunk in manifest.chunks() for item in chunk]


def apart(row: Row) -> Row:
    """Return a row with the types that its values declare apart from them, as a reader does."""
    values: Iterable[Any] = row.parameters.values()
    pairs = [v if isinstance(v, JobRunParameterValue) else (None, v) for v in values]
    types = tuple(number for number, _ in pairs)
    parameters = dict(zip(row.parameters, (value for _, value in pairs), strict=True))
    return row._replace(parameters=parameters, types=types if {*types} - {None} else ())


def problems_of(form: Format, content: bytes | str, **options: Any) -> list[Problem]:
    items = items_of(form, content, **options)
    return [problem for item in items if isinstance(item, InvalidRow) for problem in item.problems]


def only_row(items: list[Row | InvalidRow]) -> Row:
    (item,) = items
    assert isinstance(item, Row), item
    return item


def only_problem(form: Format, content: bytes | str, **options: Any) -> Problem:
    (problem,) = problems_of(form, content, **options)
    return problem


def check_manifest(
    form: Format, content: bytes | str, *, jobs: Iterable[Job] = (SAMPLE,), **options: Any
) -> tuple[list[CheckedRow | InvalidRow], list[str]]:
    """Return what became of the rows of a manifest, and the warnings."""
    manifest = open_manifest(form, content, **options)

    with Check({"default": compile_jobs(jobs)}, file=manifest.name) as check:
        taken = [row for chunk in manifest.chunks() for row in check.take(chunk)]
        return taken, [*map(str, manifest.warnings), *map(str, check.warnings)]
