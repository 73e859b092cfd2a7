"""QueryJobs answers on disk: what is kept, for whom, for how long, and what is not believed."""

from __future__ import annotations

import json
import stat
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deslaunch import wire
from deslaunch.errors import SchemaError
from deslaunch.model import Job, JobParameter
from deslaunch.schema_cache import (
    CachedJobs,
    SchemaCache,
    default_directory,
    read_schema_file,
)

if TYPE_CHECKING:
    from pathlib import Path

URL = "https://des.example"
NOW = datetime(2026, 11, 24, 9, 30, 15, 123_000, tzinfo=UTC)
JOBS = (
    Job(
        "43f87799-62c6-4001-92f9-6b3df816a6d6",
        "Nightly sales",
        (JobParameter("DBGenFrom", 2, required=True, supports_auto=True, description="é"),),
    ),
)


@pytest.fixture
def cache(tmp_path: Path) -> SchemaCache:
    return SchemaCache(tmp_path / "deep" / "cache")


def kept(cache: SchemaCache) -> Path:
    """Store the jobs of target ``acme``; return the file."""
    assert cache.store("acme", URL, JOBS, NOW) is None
    return cache.path("acme", URL)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_stored_is_loaded(cache: SchemaCache) -> None:
    kept(cache)

    assert cache.load("acme", URL) == CachedJobs(JOBS, NOW)


def test_the_file_says_what_it_is(cache: SchemaCache) -> None:
    content = json.loads(kept(cache).read_text("utf-8"))

    assert content == {
        "cache": "deslaunch-schema/1",
        "target": "acme",
        "baseUrl": URL,
        "fetchedUtc": "2026-11-24T09:30:15.123Z",
        "jobs": wire.encode_jobs(list(JOBS)),
    }


def test_only_the_user_may_read_it(cache: SchemaCache) -> None:
    path = kept(cache)

    assert (mode(path), mode(path.parent)) == (0o600, 0o700)
    assert list(path.parent.iterdir()) == [path]


def test_another_zone_is_kept_as_utc(cache: SchemaCache) -> None:
    cache.store("acme", URL, JOBS, NOW.astimezone(timezone(timedelta(hours=10))))

    loaded = cache.load("acme", URL)
    assert loaded is not None
    assert loaded.fetched.isoformat() == NOW.isoformat()


def test_a_second_store_replaces_the_first(cache: SchemaCache) -> None:
    path = kept(cache)
    cache.store("acme", URL, [], NOW + timedelta(hours=1))

    assert cache.load("acme", URL) == CachedJobs((), NOW + timedelta(hours=1))
    assert list(path.parent.iterdir()) == [path]


def test_targets_and_base_urls_do_not_share(cache: SchemaCache) -> None:
    kept(cache)
    assert cache.load("bistro", URL) is None
    assert cache.load("acme", "https://other.example") is None

    cache.store("bistro", URL, [], NOW)
    cache.store("acme", "https://other.example", [], NOW)
    assert cache.load("acme", URL) == CachedJobs(JOBS, NOW)


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
    path = cache.path(target, URL)

    assert path.parent == cache.directory
    assert path.name.isascii()
    assert len(path.name) < 80
    assert cache.store(target, URL, JOBS, NOW) is None
    assert cache.load(target, URL) == CachedJobs(JOBS, NOW)


def test_names_that_look_alike_on_disk_are_kept_apart(tmp_path: Path) -> None:
    cache = SchemaCache(tmp_path)

    assert len({cache.path(target, URL) for target in ("a/b", "a_b", "a b", "a\nb")}) == 4


# What is not believed


def altered(**changes: object) -> bytes:
    good = {
        "cache": "deslaunch-schema/1",
        "target": "acme",
        "baseUrl": URL,
        "fetchedUtc": "2026-11-24T09:30:15.123Z",
        "jobs": wire.encode_jobs(list(JOBS)),
    }
    return orjson.dumps(good | changes)


def test_the_table_below_alters_a_good_file(cache: SchemaCache) -> None:
    kept(cache).write_bytes(altered(future="field"))

    assert cache.load("acme", URL) == CachedJobs(JOBS, NOW)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\0" * 64, id="zero-filled"),
        pytest.param(altered()[:-20], id="torn"),
        pytest.param(b"[]", id="a-list"),
        pytest.param(orjson.dumps(wire.encode_jobs(list(JOBS))), id="a-bare-list-of-jobs"),
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

    assert isinstance(cache.load("acme", URL), CachedJobs | None)


def test_nothing_stored_is_nothing_loaded(cache: SchemaCache) -> None:
    assert cache.load("acme", URL) is None


def test_a_directory_in_the_files_place_counts_as_absent(cache: SchemaCache) -> None:
    cache.path("acme", URL).mkdir(parents=True)

    assert cache.load("acme", URL) is None


def test_a_cache_that_cant_be_written_is_a_warning(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    cache = SchemaCache(blocked / "cache")

    warning = cache.store("acme", URL, JOBS, NOW)

    assert warning is not None
    assert warning.startswith("the schema of target acme could not be kept in ")
    assert warning.endswith(": Not a directory")


def test_a_failed_replacement_leaves_no_litter(cache: SchemaCache) -> None:
    cache.path("acme", URL).mkdir(parents=True)

    assert cache.store("acme", URL, JOBS, NOW) is not None
    assert list(cache.directory.iterdir()) == [cache.path("acme", URL)]


# Age


@pytest.mark.parametrize(
    ("age", "fresh"),
    [
        pytest.param(timedelta(0), True, id="just-fetched"),
        pytest.param(timedelta(hours=24), True, id="at-the-limit"),
        pytest.param(timedelta(hours=24, microseconds=1), False, id="past-the-limit"),
        pytest.param(timedelta(microseconds=-1), False, id="clock-set-back"),
        pytest.param(timedelta(days=-400), False, id="clock-set-back-a-year"),
    ],
)
def test_freshness_is_judged_by_the_clock_that_is_passed_in(age: timedelta, fresh: bool) -> None:
    cached = CachedJobs(JOBS, NOW)

    assert cached.age(NOW + age) == age
    assert cached.is_fresh(NOW + age, timedelta(hours=24)) is fresh


def test_no_age_is_allowed_but_none() -> None:
    cached = CachedJobs(JOBS, NOW)

    assert cached.is_fresh(NOW, timedelta(0))
    assert not cached.is_fresh(NOW + timedelta(milliseconds=1), timedelta(0))


def test_the_default_directory_is_the_users(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    directory = default_directory()

    assert directory.name == "deslaunch"
    assert tmp_path in directory.parents
    assert not directory.exists()


# Schema files


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"], ids=["plain", "with-bom"])
def test_a_schema_file_is_a_query_jobs_answer(tmp_path: Path, start: bytes) -> None:
    path = tmp_path / "schema.json"
    path.write_bytes(start + orjson.dumps({"jobs": wire.encode_jobs(list(JOBS))}))

    assert read_schema_file(path) == list(JOBS)


def test_a_cache_file_serves_as_a_schema_file(cache: SchemaCache) -> None:
    assert read_schema_file(kept(cache)) == list(JOBS)


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
