"""The ten most likely mistakes: the page shows what each is told, and that is what is printed."""

from __future__ import annotations

import io
import re
import shlex
import subprocess
import zipfile
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest
from commands import DESLAUNCH, POS_USAGE, TOKEN, Workplace, unprivileged, workplace
from test_readme import SHOWN_URL, pattern, section

from deslaunch.model import Job
from deslaunch.schema_cache import SchemaCache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

NOBODY: Final = "http://127.0.0.1:9"
"""Where nobody answers."""

ROWS: Final = f"key,jobId,DBGenFrom\nstore-17,{POS_USAGE},1200\nstore-18,{POS_USAGE},1300\n"


class Shown(NamedTuple):
    """A mistake as the page shows it.

    Attributes:
        command: what is typed.
        code: the exit code.
        said: the lines that are printed.
    """

    command: str
    code: int
    said: list[str]


def shown_mistakes() -> dict[str, Shown]:
    """Return the mistakes of the page by their names."""
    found = re.findall(
        r"^\*\*(.+?)\*\* \(exit (\d+)\).*?^```text\n\$ (.*?)\n(.*?)^```$",
        section("When it says no"),
        re.MULTILINE | re.DOTALL,
    )
    return {
        name: Shown(command, int(code), said.splitlines()) for name, code, command, said in found
    }


SHOWN: Final = shown_mistakes()


def no_token(place: Workplace) -> None:
    del place.environment["DES_TOKEN"]


def wrong_base_url(place: Workplace) -> None:
    place.environment["DES_BASE_URL"] += "/shop"


def http_for_https(place: Workplace) -> None:
    place.environment["DES_BASE_URL"] = "http://des.example"


def semicolons(place: Workplace) -> None:
    (place.folder / "night.csv").write_text(ROWS.replace(",", ";"))


def workbook(place: Workplace) -> None:
    content = io.BytesIO()

    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        archive.writestr("xl/workbook.xml", "<workbook/>")

    (place.folder / "night.csv").write_bytes(content.getvalue())
    (place.folder / "night.xlsx").write_bytes(content.getvalue())


def utf_16(place: Workplace) -> None:
    (place.folder / "night.csv").write_bytes(ROWS.encode("utf-16"))


def a_ledger(place: Workplace) -> None:
    assert place.run("run", "night.csv").returncode == 0


def another_jobs_rows(place: Workplace) -> None:
    (place.folder / "sales.csv").write_text("key,DBGenFrom,TradingDateFrom\ns-17,1200,2026-01-31\n")


def an_old_schema_and_no_des(place: Workplace) -> None:
    cache = SchemaCache(place.folder / "cache")
    cache.store(
        "default", NOBODY, [Job(POS_USAGE, "", ())], datetime.now(UTC) - timedelta(hours=30)
    )
    place.environment["DES_BASE_URL"] = NOBODY


def a_folder_of_others(place: Workplace) -> None:
    (place.folder / "archive").mkdir(mode=0o555)


MISTAKES: Final[dict[str, Callable[[Workplace], None]]] = {
    "No token": no_token,
    "A wrong base URL": wrong_base_url,
    "http for https": http_for_https,
    "Semicolons between the columns": semicolons,
    "An Excel file": workbook,
    "A UTF-16 file": utf_16,
    "A ledger given for a manifest": a_ledger,
    "Rows of another job": another_jobs_rows,
    "An old schema, and DES is away": an_old_schema_and_no_des,
    "No leave to write": a_folder_of_others,
}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Workplace]:
    with workplace(tmp_path) as found:
        found.environment["DES_TOKEN"] = TOKEN
        (tmp_path / "night.csv").write_text(ROWS)
        yield found


def test_the_page_shows_each_of_them() -> None:
    assert list(SHOWN) == list(MISTAKES)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_as_the_page_shows(name: str, place: Workplace) -> None:
    shown = SHOWN[name]
    url = place.environment["DES_BASE_URL"]
    MISTAKES[name](place)
    before = len(place.log)

    ended = subprocess.run(
        [*unprivileged(), DESLAUNCH, *shlex.split(shown.command)[1:]],
        cwd=place.folder,
        env=place.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
        check=False,
    )

    said = ended.stdout.replace(url, SHOWN_URL).replace(NOBODY, SHOWN_URL)
    assert ended.returncode == shown.code, said
    assert pattern(shown.said).fullmatch(said), said
    assert len(place.log) == before, "something was started"
    assert TOKEN not in said


def test_an_excel_file_that_is_called_csv_is_seen_too(place: Workplace) -> None:
    workbook(place)

    ended = place.run("check", "night.csv")

    assert ended.returncode == 2
    assert 'save it as "CSV UTF-8", with commas between the columns' in ended.stderr
