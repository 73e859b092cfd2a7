"""Where a launch's jobs come from, what is cached of them, and what is not believed."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from platformdirs import user_cache_path

from deslaunch.des import wire
from deslaunch.errors import (
    CredentialsRefused,
    DeslaunchError,
    NotSent,
    QueryFailed,
    SchemaError,
    Throttled,
)
from deslaunch.launch.schemas import Schemas, read_schema_file
from deslaunch.ledger.place import user_folder
from deslaunch.model import Job, JobParameter
from deslaunch.settings import Settings

JOB_ID: Final = "11111111-1111-4111-8111-111111111111"
NOW: Final = datetime(2026, 1, 31, 6, 16, 47, 123_000, tzinfo=UTC)
URL: Final = "https://des.example"
OLD: Final = [Job(JOB_ID, "Job", (JobParameter("From", wire.INTEGER, description="é"),))]
NEW: Final = [Job(JOB_ID, "Job", (JobParameter("From", wire.STRING),))]


@dataclass(slots=True)
class FakeDes:
    """Responds to QueryJobs with the same jobs each time, or error; other errors come first."""

    response: list[Job] | DeslaunchError
    home: str = URL
    asked: int = 0
    first: list[DeslaunchError] = field(default_factory=list)

    async def query_jobs(self) -> list[Job]:
        self.asked += 1

        if self.first:
            raise self.first.pop(0)

        if isinstance(self.response, DeslaunchError):
            raise self.response

        return self.response


@dataclass(slots=True)
class Place:
    """A cache folder, and what uses it."""

    path: Path
    des: FakeDes = field(default_factory=lambda: FakeDes(NEW))

    async def keep(self, age: timedelta) -> None:
        assert await keep(self.path, "default", URL, OLD, NOW - age) == []

    def schemas(
        self, *, is_offline: bool = False, file: list[Job] | None = None, **more: FakeDes
    ) -> Schemas:
        clients: dict[str, Any] = {"default": self.des, **more}
        return Schemas(clients, self.path, file, is_offline=is_offline, now=lambda: NOW)


async def keep(
    cache: Path, target: str, home: str, jobs: list[Job], fetched: datetime
) -> list[str]:
    """Keep what a target's DES responds; return the warnings."""
    clients: dict[str, Any] = {target: FakeDes(jobs, home)}
    schemas = Schemas(clients, cache, now=lambda: fetched)
    await schemas.fetch(target)
    return schemas.warnings


async def kept(cache: Path, target: str, home: str) -> tuple[list[Job], str] | None:
    """Return the jobs that are kept and what is said of their age; None where none are."""
    clients: dict[str, Any] = {target: FakeDes(NotSent("refused"), home)}
    schemas = Schemas(clients, cache, is_offline=True, now=lambda: NOW)

    with suppress(NotSent):
        await schemas.load([target])

    if target not in schemas.by_target:
        return None

    return jobs_of(schemas, target), schemas.notes[target].partition("fetched ")[2]


@pytest.fixture
def cached(tmp_path: Path) -> Place:
    return Place(tmp_path / "cache")


def jobs_of(schemas: Schemas, target: str = "default") -> list[Job]:
    return [schema.job for schema in schemas.by_target.get(target, {}).values()]


def types(schemas: Schemas, target: str = "default") -> list[int | None]:
    return [parameter.type for job in jobs_of(schemas, target) for parameter in job.parameters]


async def test_des_is_asked_once_and_its_response_kept(cached: Place) -> None:
    schemas = cached.schemas()
    await schemas.load(["default", "default"])
    await schemas.load(["default"])

    assert (cached.des.asked, types(schemas), schemas.warnings) == (1, [wire.STRING], [])
    assert schemas.notes == {}
    assert await kept(cached.path, "default", URL) == (NEW, "less than a minute ago")


@pytest.mark.parametrize(
    ("age", "asked"),
    [
        pytest.param(timedelta(0), 0, id="new"),
        pytest.param(timedelta(hours=24), 0, id="as-old-as-may-be"),
        pytest.param(timedelta(hours=24, seconds=1), 1, id="too-old"),
        pytest.param(timedelta(seconds=-1), 1, id="from-the-future"),
    ],
)
async def test_a_fresh_response_saves_a_request(cached: Place, age: timedelta, asked: int) -> None:
    await cached.keep(age)
    schemas = cached.schemas()
    await schemas.load(["default"])

    assert cached.des.asked == asked
    assert types(schemas) == ([wire.STRING] if asked else [wire.INTEGER])
    assert list(schemas.notes) == ([] if asked else ["default"])


async def test_a_schema_file_stands_for_every_target(cached: Place) -> None:
    schemas = cached.schemas(file=OLD)
    await schemas.load(["default"])

    assert (cached.des.asked, types(schemas)) == (0, [wire.INTEGER])
    assert await schemas.confirm("default") is None
    assert cached.des.asked == 0


async def test_a_schema_file_needs_no_des() -> None:
    schemas = Schemas({}, None, OLD, Settings(target="acme"))
    new = await schemas.load(["default", "acme"])

    assert (new, list(schemas.by_target)) == ({"acme"}, ["acme"])


async def test_a_target_without_a_client_is_not_loaded(cached: Place) -> None:
    schemas = cached.schemas()
    new = await schemas.load(["bistro"])

    assert (new, schemas.by_target, cached.des.asked) == (set(), {}, 0)


ERRORS: Final = [
    pytest.param(NotSent("refused"), id="unreachable"),
    pytest.param(CredentialsRefused("no token"), id="credentials"),
    pytest.param(SchemaError("no JSON"), id="unreadable"),
]


@pytest.mark.parametrize("error", ERRORS)
async def test_an_old_response_serves_a_check_and_never_a_launch(
    cached: Place, error: DeslaunchError
) -> None:
    await cached.keep(timedelta(hours=50))
    cached.des.response = error
    checking = cached.schemas(is_offline=True)
    await checking.load(["default"])

    with pytest.raises(type(error)) as caught:
        await cached.schemas().load(["default"])

    assert "50 hours old" in caught.value.hint
    assert types(checking) == [wire.INTEGER]
    assert len(checking.warnings) == 1
    assert "50 hours old" in checking.warnings[0]


async def test_with_nothing_kept_a_check_must_ask(cached: Place) -> None:
    cached.des.response = NotSent("refused")

    with pytest.raises(NotSent):
        await cached.schemas(is_offline=True).load(["default"])


async def test_a_target_that_could_not_be_loaded_is_asked_again(cached: Place) -> None:
    cached.des.response = NotSent("refused")
    schemas = cached.schemas()

    with pytest.raises(NotSent):
        await schemas.load(["default"])

    cached.des.response = NEW
    await schemas.load(["default"])

    assert types(schemas) == [wire.STRING]


@pytest.mark.parametrize("error", ERRORS)
async def test_of_several_targets_one_that_can_not_be_asked_is_left_out(
    cached: Place, error: DeslaunchError
) -> None:
    bistro = FakeDes(error, home="https://bistro.example")
    schemas = cached.schemas(bistro=bistro)
    await schemas.load(["bistro", "default"])
    await schemas.load(["bistro"])

    assert (schemas.left_out, list(schemas.by_target)) == ({"bistro": error}, ["default"])
    assert ["target bistro are unchecked" in warning for warning in schemas.warnings] == [True]
    assert str(error).startswith("target bistro: ")
    assert bistro.asked == 1

    bistro.response = OLD
    await schemas.fetch("bistro")
    assert (schemas.left_out, types(schemas, "bistro")) == ({}, [wire.INTEGER])


async def test_where_queryjobs_itself_may_be_wrong_the_way_out_is_told(cached: Place) -> None:
    cached.des.response = QueryFailed("DES responded 204", status=204)

    with pytest.raises(QueryFailed) as caught:
        await cached.schemas().load(["default"])

    assert "--schema FILE" in caught.value.hint


class Waits:
    """What is waited for, without a second that passes."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.told: list[str] = []

    async def sleep(self, seconds: float) -> None:
        self.seconds.append(seconds)

    def schemas(self, cached: Place) -> Schemas:
        made = cached.schemas()
        made.sleep, made.tell = self.sleep, self.told.append
        return made


async def test_a_busy_des_is_asked_again_as_late_as_it_wishes(cached: Place) -> None:
    cached.des.first = [
        Throttled("DES asked to wait", status=429, retry_after=7.0),
        QueryFailed("DES responded 503", status=503),
        NotSent("the auth server answered 429", status=429, retry_after=9.0),
    ]
    schemas = (waits := Waits()).schemas(cached)
    await schemas.load(["default"])

    assert (types(schemas), cached.des.asked) == ([wire.STRING], 4)
    assert waits.seconds[0] >= 7
    assert 1 <= waits.seconds[1] <= 4
    assert waits.seconds[2] >= 9
    assert waits.told[0] == "DES asked to wait: asked for the jobs again in 7.0 s"


async def test_a_des_that_stays_busy_is_given_up(cached: Place) -> None:
    cached.des.response = QueryFailed("DES responded 503", status=503)
    schemas = (waits := Waits()).schemas(cached)

    with pytest.raises(QueryFailed):
        await schemas.load(["default"])

    assert 700 < sum(waits.seconds) <= 900


@pytest.mark.parametrize("error", [NotSent("refused"), QueryFailed("404", status=404)])
async def test_what_is_no_wait_is_told_at_once(cached: Place, error: DeslaunchError) -> None:
    cached.des.response = error
    schemas = (waits := Waits()).schemas(cached)

    with pytest.raises(type(error)):
        await schemas.load(["default"])

    assert (waits.seconds, cached.des.asked) == ([], 1)


async def test_a_renewal_asks_whatever_is_known(cached: Place) -> None:
    await cached.keep(timedelta(hours=1))
    schemas = cached.schemas()
    await schemas.load(["default"])
    before = list(schemas.notes), types(schemas)
    fetched = await schemas.fetch("default")
    await schemas.fetch("default")

    assert before == (["default"], [wire.INTEGER])
    assert (schemas.notes, types(schemas), cached.des.asked) == ({}, [wire.STRING], 2)
    assert list(fetched) == [JOB_ID]


async def test_a_cached_response_is_confirmed_once(cached: Place) -> None:
    await cached.keep(timedelta(hours=1))
    schemas = cached.schemas()
    await schemas.load(["default"])
    confirmed = await schemas.confirm("default"), await schemas.confirm("default")

    assert (confirmed, cached.des.asked) == ((schemas.by_target["default"], None), 1)
    assert schemas.unconfirmed is None


@pytest.mark.parametrize("error", ERRORS)
async def test_why_a_cached_response_can_not_be_confirmed_is_known(
    cached: Place, error: DeslaunchError
) -> None:
    await cached.keep(timedelta(hours=1))
    cached.des.response = error
    schemas = cached.schemas()
    await schemas.load(["default"])

    assert await schemas.confirm("default") is None
    assert (schemas.unconfirmed, types(schemas)) == (error, [wire.INTEGER])
    assert ["fetched anew" in warning for warning in schemas.warnings] == [True]


async def test_a_failed_renewal_changes_nothing(cached: Place) -> None:
    schemas = cached.schemas()
    await schemas.load(["default"])
    cached.des.response = NotSent("refused")

    with pytest.raises(NotSent):
        await schemas.fetch("default")

    assert types(schemas) == [wire.STRING]


async def test_a_cache_that_can_not_be_written_is_one_warning(cached: Place) -> None:
    cached.path.write_text("a file where the directory would be")
    schemas = cached.schemas()
    await schemas.load(["default"])
    await schemas.fetch("default")

    assert types(schemas) == [wire.STRING]
    assert len(schemas.warnings) == 1
    assert schemas.warnings[0].startswith("JobRunParameters are not cached: ")
    assert schemas.warnings[0].endswith(f"File exists: {str(cached.path)!r}")


@pytest.mark.parametrize(
    ("hours", "said"),
    [
        pytest.param(0.001, "less than a minute", id="just now"),
        pytest.param(0.01, "1 minute", id="a-minute"),
        pytest.param(0.5, "30 minutes", id="minutes"),
        pytest.param(3.2, "3 hours", id="hours"),
    ],
)
async def test_the_age_of_a_cached_response_is_told(cached: Place, hours: float, said: str) -> None:
    await cached.keep(timedelta(hours=hours))
    schemas = cached.schemas()
    await schemas.load(["default"])

    assert list(schemas.notes.values()) == [
        f"target default: rows are checked with JobRunParameters fetched {said} ago"
    ]


# -- the user's cache -------------------------------------------------------------------------


def test_the_cache_is_the_user_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DESLAUNCH_CACHE_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    directory = user_folder("DESLAUNCH_CACHE_DIR", user_cache_path)

    assert directory is not None
    assert (directory.name, directory.exists()) == ("deslaunch", False)
    assert tmp_path in directory.parents


def test_the_cache_can_be_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DESLAUNCH_CACHE_DIR", str(tmp_path))

    assert user_folder("DESLAUNCH_CACHE_DIR", user_cache_path) == tmp_path


async def test_a_user_without_a_home_has_no_cache_and_is_told_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A container's user without HOME or an entry in passwd: ``~`` is no folder."""
    for name in ("HOME", "XDG_CACHE_HOME", "DESLAUNCH_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)

    monkeypatch.setattr("pwd.getpwuid", no_entry)
    monkeypatch.chdir(tmp_path)
    cache = user_folder("DESLAUNCH_CACHE_DIR", user_cache_path)
    clients: dict[str, Any] = {"a": FakeDes(NEW), "b": FakeDes(NEW)}
    schemas = Schemas(clients, cache, now=lambda: NOW)
    await schemas.load(["a", "b"])

    assert (cache, os.path.exists("~")) == (None, False)  # noqa: PTH110, ASYNC240  # by its name
    assert schemas.warnings == ["JobRunParameters are not cached: this user has no home"]
    assert [types(schemas, target) for target in ("a", "b")] == [[wire.STRING], [wire.STRING]]


def test_a_home_that_is_no_folder_is_none() -> None:
    """An older platformdirs takes ``~`` for a folder here."""
    assert user_folder("DESLAUNCH_NO_DIR", lambda name: Path(f"~/.cache/{name}")) is None


def no_entry(uid: int) -> object:
    raise KeyError(f"getpwuid(): uid not found: {uid}")


# -- cache files ------------------------------------------------------------------------------


JUST_NOW: Final = "less than a minute ago"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "cache"


def files(cache: Path) -> list[Path]:
    return sorted(cache.iterdir())


async def cached_file(cache: Path) -> Path:
    """Keep the jobs of target ``acme``; return the file."""
    assert await keep(cache, "acme", URL, OLD, NOW) == []
    [path] = files(cache)
    return path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_what_is_stored_is_loaded(cache: Path) -> None:
    assert await kept(cache, "acme", URL) is None
    path = await cached_file(cache)

    assert await kept(cache, "acme", URL) == (OLD, JUST_NOW)
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)
    assert json.loads(path.read_bytes()) == json.loads(altered())


async def test_another_zone_is_kept_as_utc(cache: Path) -> None:
    await keep(cache, "acme", URL, OLD, NOW.astimezone(timezone(timedelta(hours=10))))
    [path] = files(cache)

    assert json.loads(path.read_bytes())["fetchedUtc"] == "2026-01-31T06:16:47.123Z"


async def test_a_second_store_replaces_the_first(cache: Path) -> None:
    path = await cached_file(cache)
    await keep(cache, "acme", URL, NEW, NOW - timedelta(hours=3))

    assert await kept(cache, "acme", URL) == (NEW, "3 hours ago")
    assert files(cache) == [path]


async def test_targets_and_base_urls_do_not_share(cache: Path) -> None:
    await cached_file(cache)
    await keep(cache, "bistro", URL, [], NOW)
    await keep(cache, "acme", "https://other.example", [], NOW)

    assert await kept(cache, "acme", URL) == (OLD, JUST_NOW)
    assert await kept(cache, "bistro", "https://other.example") is None


@pytest.mark.parametrize(
    "target",
    [
        pytest.param("../../etc/passwd", id="climbing"),
        pytest.param("a/b", id="slash"),
        pytest.param("..", id="dots"),
        pytest.param("", id="empty"),
        pytest.param("é\0\n ", id="odd-characters"),
        pytest.param("x" * 500, id="long"),
    ],
)
async def test_a_targets_name_never_leaves_the_directory(cache: Path, target: str) -> None:
    assert await keep(cache, target, URL, OLD, NOW) == []
    [path] = files(cache)

    assert path.name.isascii()
    assert len(path.name) < 80
    assert await kept(cache, target, URL) == (OLD, JUST_NOW)


async def test_names_that_look_alike_on_disk_are_kept_apart(cache: Path) -> None:
    for target in ("a/b", "a_b", "a b", "a\nb"):
        await keep(cache, target, URL, OLD, NOW)

    assert len(files(cache)) == 4


def altered(**changes: object) -> bytes:
    good = {
        "cache": "deslaunch-schema/1",
        "target": "acme",
        "baseUrl": URL,
        "fetchedUtc": "2026-01-31T06:16:47.123Z",
        "jobs": wire.encode_jobs(OLD),
    }
    return orjson.dumps(good | changes)


async def test_the_table_below_alters_a_good_file(cache: Path) -> None:
    (await cached_file(cache)).write_bytes(altered(future="field"))

    assert await kept(cache, "acme", URL) == (OLD, JUST_NOW)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\0" * 64, id="zero-filled"),
        pytest.param(altered()[:-20], id="torn"),
        pytest.param(b"[]", id="a-list"),
        pytest.param(orjson.dumps(wire.encode_jobs(OLD)), id="a-bare-list-of-jobs"),
        pytest.param(altered(cache="deslaunch-schema/2"), id="newer-kind"),
        pytest.param(altered(cache=None), id="no-kind"),
        pytest.param(altered(target="bistro"), id="another-target"),
        pytest.param(altered(baseUrl="https://other.example"), id="another-base-url"),
        pytest.param(altered(fetchedUtc=None), id="no-time"),
        pytest.param(altered(fetchedUtc=1_764_000_000), id="time-as-a-number"),
        pytest.param(altered(fetchedUtc="yesterday"), id="unreadable-time"),
        pytest.param(altered(fetchedUtc="2026-11-24T09:30:15"), id="naive-time"),
        pytest.param(altered(jobs=None), id="no-jobs"),
        pytest.param(altered(jobs=[{"jobId": "x"}]), id="a-job-without-guid"),
        pytest.param(altered(jobs=[7]), id="a-job-that-is-a-number"),
    ],
)
async def test_a_damaged_or_foreign_file_counts_as_absent(cache: Path, content: bytes) -> None:
    (await cached_file(cache)).write_bytes(content)

    assert await kept(cache, "acme", URL) is None


@given(st.data())
async def test_no_bytes_make_load_raise(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    cache = tmp_path_factory.getbasetemp() / "any-bytes"
    good = altered()
    place = data.draw(st.integers(0, len(good)))
    damaged = good[:place] + data.draw(st.binary(max_size=8)) + good[place + 1 :]
    (await cached_file(cache)).write_bytes(damaged)

    assert isinstance(await kept(cache, "acme", URL), tuple | None)


async def test_a_failed_replacement_leaves_no_litter(cache: Path) -> None:
    path = await cached_file(cache)
    path.unlink()
    path.mkdir()

    assert await kept(cache, "acme", URL) is None
    assert len(await keep(cache, "acme", URL, OLD, NOW)) == 1
    assert files(cache) == [path]


# -- schema files -----------------------------------------------------------------------------


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"], ids=["plain", "with-bom"])
def test_a_schema_file_is_a_query_jobs_response(tmp_path: Path, start: bytes) -> None:
    path = tmp_path / "schema.json"
    path.write_bytes(start + orjson.dumps({"jobs": wire.encode_jobs(OLD)}))

    assert read_schema_file(path) == OLD


async def test_a_cache_file_serves_as_a_schema_file(cache: Path) -> None:
    path = await cached_file(cache)

    assert await asyncio.to_thread(read_schema_file, path) == OLD


@pytest.mark.parametrize(
    ("name", "why"),
    [
        pytest.param("missing.json", "No such file or directory", id="missing"),
        pytest.param(".", "Is a directory", id="directory"),
    ],
)
def test_a_schema_file_that_cant_be_opened_is_named(tmp_path: Path, name: str, why: str) -> None:
    path = tmp_path / name

    with pytest.raises(SchemaError) as caught:
        read_schema_file(path)

    assert str(caught.value) == f"the schema file {path} can't be read: {why}"
    assert caught.value.hint == "check the path that --schema names"


def test_a_schema_file_that_cant_be_understood_shows_what_came(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_bytes(b'{"parameters": {}}')

    with pytest.raises(SchemaError, match='expected a list under "jobs", got ') as caught:
        read_schema_file(path)

    assert str(caught.value).startswith(f"the schema file {path} can't be read")
    assert "--schema FILE" in caught.value.hint
