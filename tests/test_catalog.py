"""Where a launch's jobs come from, and that no cached answer ever condemns a row."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import pytest

from deslaunch import wire
from deslaunch.catalog import Catalog
from deslaunch.config import Settings
from deslaunch.errors import (
    CredentialsRefused,
    DeslaunchError,
    Interrupted,
    ManifestError,
    NotSent,
    SchemaError,
)
from deslaunch.intake import InvalidRow
from deslaunch.manifest import Manifest, ManifestOptions
from deslaunch.model import KEPT_PROBLEMS, Job, JobParameter, StartRequest
from deslaunch.schema_cache import SchemaCache
from deslaunch.validation import CHUNK, Validation, validate

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

JOB_ID: Final = "11111111-1111-4111-8111-111111111111"
NOW: Final = datetime(2026, 1, 31, 6, 16, 47, tzinfo=UTC)
URL: Final = "https://des.example"
OLD: Final = [Job(JOB_ID, "Job", (JobParameter("From", wire.INTEGER),))]
NEW: Final = [Job(JOB_ID, "Job", (JobParameter("From", wire.STRING),))]


@dataclass(slots=True)
class FakeDes:
    """Answers QueryJobs with the same jobs each time, or with the same error."""

    answer: list[Job] | DeslaunchError
    home: str = URL
    asked: int = 0

    async def query_jobs(self) -> list[Job]:
        self.asked += 1

        if isinstance(self.answer, DeslaunchError):
            raise self.answer

        return self.answer


@dataclass(slots=True)
class Place:
    """A cache directory, and catalogs that use it."""

    path: Path
    des: FakeDes = field(default_factory=lambda: FakeDes(NEW))

    async def keep(self, age: timedelta) -> None:
        store = SchemaCache(self.path).store
        assert await asyncio.to_thread(store, "default", URL, OLD, NOW - age) is None

    def catalog(self, *, offline: bool = False, schema_file: list[Job] | None = None) -> Catalog:
        cache = SchemaCache(self.path)
        return Catalog(
            {"default": self.des},
            cache=cache,
            schema_file=schema_file,
            offline=offline,
            now=lambda: NOW,
        )


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "cache")


def types(catalog: Catalog) -> list[int | None]:
    schema = catalog.schemas.find("default", JOB_ID)
    return [] if schema is None else [parameter.type for parameter in schema.job.parameters]


async def test_des_is_asked_once_and_its_answer_kept(place: Place) -> None:
    catalog = place.catalog()
    await catalog.load(["default", "default"])
    await catalog.load(["default"])
    kept = await asyncio.to_thread(SchemaCache(place.path).load, "default", URL)

    assert (place.des.asked, types(catalog), catalog.warnings) == (1, [wire.STRING], [])
    assert kept is not None
    assert (list(kept.jobs), kept.fetched) == (NEW, NOW)
    assert repr(catalog) == "<Catalog loaded=['default'] cached=[]>"


async def test_without_a_cache_des_is_asked_each_time() -> None:
    des = FakeDes(NEW)

    for _ in range(2):
        await Catalog({"default": des}).load(["default"])

    assert des.asked == 2


@pytest.mark.parametrize(
    ("age", "asked"),
    [
        pytest.param(timedelta(0), 0, id="new"),
        pytest.param(timedelta(hours=24), 0, id="as-old-as-may-be"),
        pytest.param(timedelta(hours=24, seconds=1), 1, id="too-old"),
        pytest.param(timedelta(seconds=-1), 1, id="from-the-future"),
    ],
)
async def test_a_fresh_answer_saves_a_request(place: Place, age: timedelta, asked: int) -> None:
    await place.keep(age)
    catalog = place.catalog()
    await catalog.load(["default"])

    assert place.des.asked == asked
    assert types(catalog) == ([wire.STRING] if asked else [wire.INTEGER])


async def test_a_schema_file_stands_for_every_target(place: Place) -> None:
    catalog = place.catalog(schema_file=OLD)
    await catalog.load(["default"])

    assert (place.des.asked, types(catalog)) == (0, [wire.INTEGER])
    assert not await catalog.refresh()
    assert place.des.asked == 0


async def test_a_schema_file_needs_no_des() -> None:
    catalog = Catalog({}, targets=["acme"], schema_file=OLD)
    await catalog.load(["default", "acme"])

    assert catalog.targets == {"acme"}
    assert (catalog.needs("acme"), catalog.needs("default")) == (False, False)
    assert catalog.schemas.find("acme", JOB_ID) is not None


async def test_a_target_without_a_client_is_not_loaded(place: Place) -> None:
    catalog = place.catalog()
    await catalog.load(["bistro"])

    assert (catalog.targets, catalog.needs("bistro")) == (frozenset({"default"}), False)
    assert place.des.asked == 0


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(NotSent("refused"), id="unreachable"),
        pytest.param(CredentialsRefused("no token"), id="credentials"),
        pytest.param(SchemaError("no JSON"), id="unreadable"),
    ],
)
async def test_an_old_answer_serves_a_check_and_never_a_launch(
    place: Place, error: DeslaunchError
) -> None:
    await place.keep(timedelta(hours=50))
    place.des.answer = error
    checking = place.catalog(offline=True)
    await checking.load(["default"])

    with pytest.raises(type(error)):
        await place.catalog().load(["default"])

    assert types(checking) == [wire.INTEGER]
    assert len(checking.warnings) == 1
    assert "50 hours old" in checking.warnings[0]


async def test_with_nothing_kept_a_check_must_ask(place: Place) -> None:
    place.des.answer = NotSent("refused")

    with pytest.raises(NotSent):
        await place.catalog(offline=True).load(["default"])


async def test_a_target_that_could_not_be_loaded_is_asked_again(place: Place) -> None:
    place.des.answer = NotSent("refused")
    catalog = place.catalog()

    with pytest.raises(NotSent):
        await catalog.load(["default"])

    place.des.answer = NEW
    await catalog.load(["default"])

    assert types(catalog) == [wire.STRING]


@pytest.mark.parametrize(
    ("answer", "changed"),
    [pytest.param(NEW, True, id="changed"), pytest.param(OLD, False, id="the-same")],
)
async def test_a_refresh_asks_once_for_what_was_cached(
    place: Place, answer: list[Job], changed: bool
) -> None:
    await place.keep(timedelta(hours=1))
    place.des.answer = answer
    catalog = place.catalog()
    await catalog.load(["default"])
    first = await catalog.refresh()
    second = await catalog.refresh()

    assert (first, second, place.des.asked) == (changed, False, 1)


async def test_what_des_said_now_needs_no_refresh(place: Place) -> None:
    catalog = place.catalog()
    await catalog.load(["default"])

    assert not await catalog.refresh()
    assert place.des.asked == 1


async def test_a_cache_that_can_not_be_written_is_a_warning(place: Place) -> None:
    place.path.write_text("a file where the directory would be")
    catalog = place.catalog()
    await catalog.load(["default"])

    assert types(catalog) == [wire.STRING]
    assert len(catalog.warnings) == 1


# The first pass over a manifest.


def manifest(path: Path, values: list[str]) -> Manifest:
    file = path / "night.csv"
    file.write_text("jobId,From\n" + "".join(f"{JOB_ID},{value}\n" for value in values))
    return Manifest(file, ManifestOptions())


async def test_a_valid_manifest_costs_no_request(place: Place, tmp_path: Path) -> None:
    await place.keep(timedelta(hours=1))
    found = await validate(manifest(tmp_path, ["1", "2"]), place.catalog(), Settings())

    assert (found.rows, found.invalid, found.whole, place.des.asked) == (2, 0, True, 0)


async def test_rows_are_not_invalid_by_a_cached_schema_alone(place: Place, tmp_path: Path) -> None:
    await place.keep(timedelta(hours=1))
    seen: list[list[StartRequest | InvalidRow]] = []

    def observe() -> Callable[[StartRequest | InvalidRow], None]:
        seen.append([])
        return seen[-1].append

    file = manifest(tmp_path, ["1", "x"])
    found = await validate(file, place.catalog(), Settings(), observe=observe)

    assert (found.invalid, found.problems, found.unconfirmed) == (0, [], None)
    assert [[type(taken) for taken in reading] for reading in seen] == [
        [StartRequest, InvalidRow],
        [StartRequest, StartRequest],
    ]


async def test_rows_that_des_confirms_to_be_invalid_are(place: Place, tmp_path: Path) -> None:
    await place.keep(timedelta(hours=1))
    place.des.answer = OLD
    found = await validate(manifest(tmp_path, ["1", "x"]), place.catalog(), Settings())

    assert (found.invalid, found.problem_count, found.unconfirmed) == (1, 1, None)
    assert [(problem.line, problem.column) for problem in found.problems] == [(3, "From")]


async def test_where_des_can_not_be_asked_the_doubt_is_told(place: Place, tmp_path: Path) -> None:
    await place.keep(timedelta(hours=1))
    place.des.answer = NotSent("refused")
    found = await validate(manifest(tmp_path, ["x"]), place.catalog(), Settings())

    assert (found.invalid, found.unconfirmed) == (1, place.des.answer)


async def test_problems_no_schema_could_cure_ask_nobody(place: Place, tmp_path: Path) -> None:
    await place.keep(timedelta(hours=1))
    found = await validate(manifest(tmp_path, ["1", "1"]), place.catalog(), Settings())

    assert (found.invalid, found.by_schema, place.des.asked) == (1, False, 0)


async def test_the_first_problems_are_kept_and_all_are_counted(
    place: Place, tmp_path: Path
) -> None:
    place.des.answer = OLD
    values = [f"x{number}" for number in range(KEPT_PROBLEMS + CHUNK)]
    found = await validate(manifest(tmp_path, values), place.catalog(), Settings())

    assert (found.rows, found.invalid, found.problem_count) == (len(values),) * 3
    assert len(found.problems) == KEPT_PROBLEMS
    assert [group.rows for group in found.groups] == [1] * KEPT_PROBLEMS


async def test_problems_that_say_the_same_are_counted_together(
    place: Place, tmp_path: Path
) -> None:
    """To the last row, also where more differ than are kept."""
    place.des.answer = OLD
    values = ["x", *(f"x{number}" for number in range(KEPT_PROBLEMS)), "x"]
    found = await validate(manifest(tmp_path, values), place.catalog(), Settings())

    first = found.groups[0]
    assert (first.first, first.rows) == (found.problems[0], 2)
    assert len(found.groups) == KEPT_PROBLEMS
    assert sum(group.rows for group in found.groups) == KEPT_PROBLEMS + 1


async def test_a_manifest_that_is_not_whole_says_so(place: Place, tmp_path: Path) -> None:
    file = tmp_path / "night.csv"
    file.write_text(f'jobId,From\n{JOB_ID},1\n{JOB_ID},"2\n')
    found = await validate(Manifest(file, ManifestOptions()), place.catalog(), Settings())

    assert (found.whole, found.invalid > 0) == (False, True)


async def test_a_manifest_that_is_not_there_is_an_error(place: Place, tmp_path: Path) -> None:
    gone = Manifest(tmp_path / "gone.csv", ManifestOptions())

    with pytest.raises(ManifestError):
        await validate(gone, place.catalog(), Settings())


async def test_a_reading_can_be_ended(place: Place, tmp_path: Path) -> None:
    def poll() -> None:
        raise Interrupted("enough")

    with pytest.raises(Interrupted):
        await validate(manifest(tmp_path, ["1"]), place.catalog(), Settings(), poll=poll)


async def test_the_allowances_are_the_settings(place: Place, tmp_path: Path) -> None:
    settings = Settings(allow_duplicates=True)
    found: Validation = await validate(manifest(tmp_path, ["1", "1"]), place.catalog(), settings)

    assert found.invalid == 0


@pytest.mark.parametrize(
    ("hours", "said"),
    [
        pytest.param(0.01, "1 minute", id="just now"),
        pytest.param(0.5, "30 minutes", id="minutes"),
        pytest.param(3.2, "3 hours", id="hours"),
    ],
)
async def test_the_age_of_a_cached_answer_is_told(place: Place, hours: float, said: str) -> None:
    await place.keep(timedelta(hours=hours))
    catalog = place.catalog()
    await catalog.load(["default"])

    assert list(catalog.notes()) == [
        f"the JobRunParameters of target default were fetched {said} ago"
    ]
