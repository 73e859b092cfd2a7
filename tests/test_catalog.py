"""Where a launch's jobs come from, what is cached of them, and what is not believed."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deslaunch.des import catalog as catalog_module
from deslaunch.des import wire
from deslaunch.des.catalog import Catalog, SchemaCache, read_schema_file
from deslaunch.errors import (
    CredentialsRefused,
    DeslaunchError,
    NotSent,
    QueryFailed,
    SchemaError,
)
from deslaunch.model import Job, JobParameter

JOB_ID: Final = "11111111-1111-4111-8111-111111111111"
NOW: Final = datetime(2026, 1, 31, 6, 16, 47, 123_000, tzinfo=UTC)
URL: Final = "https://des.example"
OLD: Final = [Job(JOB_ID, "Job", (JobParameter("From", wire.INTEGER, description="é"),))]
NEW: Final = [Job(JOB_ID, "Job", (JobParameter("From", wire.STRING),))]


@dataclass(slots=True)
class FakeDes:
    """Responds to QueryJobs with the same jobs each time, or with the same error."""

    response: list[Job] | DeslaunchError
    home: str = URL
    asked: int = 0

    async def query_jobs(self) -> list[Job]:
        self.asked += 1

        if isinstance(self.response, DeslaunchError):
            raise self.response

        return self.response


@dataclass(slots=True)
class Place:
    """A cache directory, and catalogs that use it."""

    path: Path
    des: FakeDes = field(default_factory=lambda: FakeDes(NEW))

    async def keep(self, age: timedelta) -> None:
        store = SchemaCache(self.path).store
        assert await asyncio.to_thread(store, "default", URL, OLD, NOW - age) is None

    def catalog(
        self,
        *,
        offline: bool = False,
        apart: bool = False,
        schema_file: list[Job] | None = None,
        **more: FakeDes,
    ) -> Catalog:
        clients: dict[str, Any] = {"default": self.des, **more}
        return Catalog(
            clients,
            cache=SchemaCache(self.path),
            schema_file=schema_file,
            offline=offline,
            apart=apart,
            now=lambda: NOW,
        )


@pytest.fixture
def cached(tmp_path: Path) -> Place:
    return Place(tmp_path / "cache")


def types(catalog: Catalog, target: str = "default") -> list[int | None]:
    job = catalog.jobs.get(target, {}).get(JOB_ID)
    return [] if job is None else [parameter.type for parameter in job.parameters]


async def test_des_is_asked_once_and_its_response_kept(cached: Place) -> None:
    catalog = cached.catalog()
    await catalog.load(["default", "default"])
    await catalog.load(["default"])
    kept = await asyncio.to_thread(SchemaCache(cached.path).load, "default", URL)

    assert (cached.des.asked, types(catalog), catalog.warnings) == (1, [wire.STRING], [])
    assert kept == (NEW, NOW)
    assert not catalog.is_cached("default")
    assert repr(catalog) == "<Catalog loaded=['default'] cached=[]>"


async def test_without_a_cache_des_is_asked_each_time() -> None:
    des: Any = FakeDes(NEW)

    for _ in range(2):
        catalog = Catalog({"default": des})
        await catalog.load(["default"])
        assert catalog.warnings == []

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
async def test_a_fresh_response_saves_a_request(cached: Place, age: timedelta, asked: int) -> None:
    await cached.keep(age)
    catalog = cached.catalog()
    await catalog.load(["default"])

    assert cached.des.asked == asked
    assert types(catalog) == ([wire.STRING] if asked else [wire.INTEGER])
    assert catalog.is_cached("default") == (not asked)


async def test_a_schema_file_stands_for_every_target(cached: Place) -> None:
    catalog = cached.catalog(schema_file=OLD)
    await catalog.load(["default"])

    assert (cached.des.asked, types(catalog)) == (0, [wire.INTEGER])
    assert not await catalog.renew("default")
    assert cached.des.asked == 0


async def test_a_schema_file_needs_no_des() -> None:
    catalog = Catalog({}, targets=["acme"], schema_file=OLD)
    await catalog.load(["default", "acme"])

    assert (set(catalog.targets), list(catalog.jobs)) == ({"acme"}, ["acme"])


async def test_a_target_without_a_client_is_not_loaded(cached: Place) -> None:
    catalog = cached.catalog()
    await catalog.load(["bistro"])

    assert (set(catalog.targets), len(catalog.jobs), cached.des.asked) == ({"default"}, 0, 0)


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
    checking = cached.catalog(offline=True)
    await checking.load(["default"])

    with pytest.raises(type(error)) as caught:
        await cached.catalog().load(["default"])

    assert "50 hours old" in caught.value.hint
    assert types(checking) == [wire.INTEGER]
    assert len(checking.warnings) == 1
    assert "50 hours old" in checking.warnings[0]


async def test_with_nothing_kept_a_check_must_ask(cached: Place) -> None:
    cached.des.response = NotSent("refused")

    with pytest.raises(NotSent):
        await cached.catalog(offline=True).load(["default"])


async def test_a_target_that_could_not_be_loaded_is_asked_again(cached: Place) -> None:
    cached.des.response = NotSent("refused")
    catalog = cached.catalog()

    with pytest.raises(NotSent):
        await catalog.load(["default"])

    cached.des.response = NEW
    await catalog.load(["default"])

    assert types(catalog) == [wire.STRING]


@pytest.mark.parametrize("error", ERRORS)
async def test_of_several_targets_one_that_can_not_be_asked_is_left_out(
    cached: Place, error: DeslaunchError
) -> None:
    bistro = FakeDes(error, home="https://bistro.example")
    catalog = cached.catalog(apart=True, bistro=bistro)
    await catalog.load(["bistro", "default"])
    await catalog.load(["bistro"])

    assert (catalog.left_out, list(catalog.jobs)) == ({"bistro": error}, ["default"])
    assert str(error).startswith("target bistro: ")
    assert bistro.asked == 1

    bistro.response = OLD
    assert await catalog.renew("bistro")
    assert (catalog.left_out, types(catalog, "bistro")) == ({}, [wire.INTEGER])


async def test_where_no_target_can_be_asked_the_first_error_is_raised(cached: Place) -> None:
    cached.des.response = NotSent("refused")
    bistro = FakeDes(NotSent("no such host"), home="https://bistro.example")

    with pytest.raises(NotSent, match="target bistro: no such host"):
        await cached.catalog(apart=True, bistro=bistro).load(["bistro", "default"])


async def test_where_queryjobs_itself_may_be_wrong_the_way_out_is_told(cached: Place) -> None:
    cached.des.response = QueryFailed("DES responded 204", status=204)

    with pytest.raises(QueryFailed) as caught:
        await cached.catalog().load(["default"])

    assert "--schema FILE" in caught.value.hint


@pytest.mark.parametrize(
    ("response", "changed"),
    [pytest.param(NEW, True, id="changed"), pytest.param(OLD, False, id="the-same")],
)
async def test_a_renewal_asks_whatever_is_known(
    cached: Place, response: list[Job], changed: bool
) -> None:
    await cached.keep(timedelta(hours=1))
    cached.des.response = response
    catalog = cached.catalog()
    await catalog.load(["default"])
    before = catalog.is_cached("default")
    first = await catalog.renew("default")
    second = await catalog.renew("default")

    assert (before, catalog.is_cached("default")) == (True, False)
    assert (first, second, cached.des.asked) == (changed, False, 2)


async def test_a_failed_renewal_changes_nothing(cached: Place) -> None:
    catalog = cached.catalog()
    await catalog.load(["default"])
    cached.des.response = NotSent("refused")

    with pytest.raises(NotSent):
        await catalog.renew("default")

    assert types(catalog) == [wire.STRING]


async def test_a_cache_that_can_not_be_written_is_one_warning(cached: Place) -> None:
    cached.path.write_text("a file where the directory would be")
    catalog = cached.catalog()
    await catalog.load(["default"])
    await catalog.renew("default")

    assert types(catalog) == [wire.STRING]
    assert len(catalog.warnings) == 1
    assert catalog.warnings[0].startswith("the schema of target default could not be kept in ")
    assert catalog.warnings[0].endswith(": File exists")


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
    catalog = cached.catalog()
    await catalog.load(["default"])

    assert list(catalog.notes()) == [
        f"target default: rows are checked with JobRunParameters fetched {said} ago"
    ]


# -- the user's cache -------------------------------------------------------------------------


def test_the_cache_is_the_user_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DESLAUNCH_CACHE_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    directory = SchemaCache.of_user().directory

    assert directory is not None
    assert (directory.name, directory.exists()) == ("deslaunch", False)
    assert tmp_path in directory.parents


def test_the_cache_can_be_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DESLAUNCH_CACHE_DIR", str(tmp_path))

    assert SchemaCache.of_user().directory == tmp_path


async def test_a_user_without_a_home_has_no_cache_and_is_told_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A container's user without HOME or an entry in passwd: ``~`` is no folder."""
    for name in ("HOME", "XDG_CACHE_HOME", "DESLAUNCH_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)

    monkeypatch.setattr("pwd.getpwuid", no_entry)
    monkeypatch.chdir(tmp_path)
    cache = SchemaCache.of_user()
    clients: dict[str, Any] = {"a": FakeDes(NEW), "b": FakeDes(NEW)}
    catalog = Catalog(clients, cache=cache, now=lambda: NOW)
    await catalog.load(["a", "b"])

    assert (cache.directory, os.path.exists("~")) == (None, False)  # noqa: PTH110, ASYNC240  # by its name
    assert catalog.warnings == ["this user has no home: JobRunParameters are not cached"]


def test_a_home_that_is_no_folder_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """An older platformdirs takes ``~`` for a folder here."""
    monkeypatch.delenv("DESLAUNCH_CACHE_DIR", raising=False)
    monkeypatch.setattr(catalog_module, "user_cache_path", lambda _: Path("~/.cache/deslaunch"))

    assert SchemaCache.of_user().directory is None


def no_entry(uid: int) -> object:
    raise KeyError(f"getpwuid(): uid not found: {uid}")


# -- cache files ------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path) -> SchemaCache:
    return SchemaCache(tmp_path / "deep" / "cache")


def files(cache: SchemaCache) -> list[Path]:
    assert cache.directory is not None
    return sorted(cache.directory.iterdir())


def kept(cache: SchemaCache) -> Path:
    """Store the jobs of target ``acme``; return the file."""
    assert cache.store("acme", URL, OLD, NOW) is None
    [path] = files(cache)
    return path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_stored_is_loaded(cache: SchemaCache) -> None:
    assert cache.load("acme", URL) is None
    path = kept(cache)

    assert cache.load("acme", URL) == (OLD, NOW)
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)
    assert json.loads(path.read_text("utf-8")) == {
        "cache": "deslaunch-schema/1",
        "target": "acme",
        "baseUrl": URL,
        "fetchedUtc": "2026-01-31T06:16:47.123Z",
        "jobs": wire.encode_jobs(OLD),
    }


def test_another_zone_is_kept_as_utc(cache: SchemaCache) -> None:
    cache.store("acme", URL, OLD, NOW.astimezone(timezone(timedelta(hours=10))))
    loaded = cache.load("acme", URL)

    assert loaded is not None
    assert loaded[1].isoformat() == NOW.isoformat()


def test_a_second_store_replaces_the_first(cache: SchemaCache) -> None:
    path = kept(cache)
    cache.store("acme", URL, [], NOW + timedelta(hours=1))

    assert cache.load("acme", URL) == ([], NOW + timedelta(hours=1))
    assert files(cache) == [path]


def test_targets_and_base_urls_do_not_share(cache: SchemaCache) -> None:
    kept(cache)
    cache.store("bistro", URL, [], NOW)
    cache.store("acme", "https://other.example", [], NOW)

    assert cache.load("acme", URL) == (OLD, NOW)
    assert cache.load("bistro", "https://other.example") is None


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
def test_a_targets_name_never_leaves_the_directory(cache: SchemaCache, target: str) -> None:
    assert cache.store(target, URL, OLD, NOW) is None
    [path] = files(cache)

    assert path.name.isascii()
    assert len(path.name) < 80
    assert cache.load(target, URL) == (OLD, NOW)


def test_names_that_look_alike_on_disk_are_kept_apart(cache: SchemaCache) -> None:
    for target in ("a/b", "a_b", "a b", "a\nb"):
        cache.store(target, URL, OLD, NOW)

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


def test_the_table_below_alters_a_good_file(cache: SchemaCache) -> None:
    kept(cache).write_bytes(altered(future="field"))

    assert cache.load("acme", URL) == (OLD, NOW)


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
def test_a_damaged_or_foreign_file_counts_as_absent(cache: SchemaCache, content: bytes) -> None:
    kept(cache).write_bytes(content)

    assert cache.load("acme", URL) is None


@given(st.data())
def test_no_bytes_make_load_raise(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    cache = SchemaCache(tmp_path_factory.getbasetemp() / "any-bytes")
    good = altered()
    place = data.draw(st.integers(0, len(good)))
    kept(cache).write_bytes(good[:place] + data.draw(st.binary(max_size=8)) + good[place + 1 :])

    assert isinstance(cache.load("acme", URL), tuple | None)


def test_a_failed_replacement_leaves_no_litter(cache: SchemaCache) -> None:
    path = kept(cache)
    path.unlink()
    path.mkdir()

    assert cache.load("acme", URL) is None
    assert cache.store("acme", URL, OLD, NOW) is not None
    assert files(cache) == [path]


# -- schema files -----------------------------------------------------------------------------


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"], ids=["plain", "with-bom"])
def test_a_schema_file_is_a_query_jobs_response(tmp_path: Path, start: bytes) -> None:
    path = tmp_path / "schema.json"
    path.write_bytes(start + orjson.dumps({"jobs": wire.encode_jobs(OLD)}))

    assert read_schema_file(path) == OLD


def test_a_cache_file_serves_as_a_schema_file(cache: SchemaCache) -> None:
    assert read_schema_file(kept(cache)) == OLD


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
    assert caught.value.hint == "see whether --schema names the right file"


def test_a_schema_file_that_cant_be_understood_shows_what_came(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_bytes(b'{"parameters": {}}')

    with pytest.raises(SchemaError, match='no list under "jobs"; it begins: ') as caught:
        read_schema_file(path)

    assert str(caught.value).startswith(f"the schema file {path} can't be read")
    assert "--schema FILE" in caught.value.hint
