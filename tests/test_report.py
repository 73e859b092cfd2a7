"""The page about a batch: what it says, that it loads nothing, that no text becomes markup."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import re
from base64 import b64decode
from html.parser import HTMLParser
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import pytest
from batches import BEGAN, JOB, RUN, STARTED, Said, write_batch

from deslaunch.errors import ConfigurationError
from deslaunch.events import Counts
from deslaunch.ledger.changes import Finding
from deslaunch.ledger.ledger import open_ledger, take_ledger
from deslaunch.ledger.reading import Clock, ResultRow, UnknownRow
from deslaunch.manifest.rows import dump_row
from deslaunch.model import AUTO, Row, add_cause
from deslaunch.report.charts import (
    bucket_width,
    duration,
    percent,
    shares,
    spread,
    time_axis,
    time_chart,
)
from deslaunch.report.page import (
    PageRows,
    doubt_of,
    ms_of,
    write_report,
)
from deslaunch.report.results import is_own

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

VOID: Final = {"meta", "img", "br", "hr", "input", "link"}
NO_ROWS: Final = (True, False, "no rows in the range", "2026-11-24T01:05:00.000Z")
LOST: Final = (("unknown", None, "reset"),)
HOSTILE: Final = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    '"><svg onload=alert(3)>',
    "</script><script>alert(4)</script>",
    "{{ 7*7 }}{% raw %}",
    "a'b&amp;c",
    "-rf",
)
INVISIBLE: Final = ("nul\x00esc\x1b[31m", "\u202egpj.exe\u200f", "zero\u200bwidth")


class Page(HTMLParser):
    """A page as a browser takes it apart: every element with its attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

        if tag not in VOID and not (self.get_starttag_text() or "").endswith("/>"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in {"script", "style"}:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def tags(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]


def unpack(text: str) -> dict[str, list[Any]]:
    """Return the table that a page holds, as the page's script reads it."""
    columns = json.loads(gzip.decompress(b64decode(text)))
    return {column["name"]: column["values"] for column in columns}


def table_in(html: str) -> dict[str, list[Any]]:
    found = re.search(r'<script type="text/plain" id="data">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    return unpack(found[1])


async def report_of(place: Path, **options: Any) -> str:
    output = place.with_suffix(".html")

    async with await open_ledger(str(place)) as ledger:
        await write_report(ledger, output, **options)

    return output.read_text(encoding="utf-8")


def night() -> list[Said]:
    """A batch with everything that a page tells of."""
    ended = "2026-11-24T01:02:10.000Z"
    return [
        Said("store-1", attempts=STARTED, run=(True, True, None, ended)),
        Said("store-2", attempts=(("rejected", 400, "DBGenFrom 2: out of range"),)),
        Said("store-3", {"DBGenFrom": "7"}, (("unknown", None, "the server disconnected"),)),
        Said("store-4", attempts=(("retry", 500, "database is locked"), *STARTED)),
        Said("store-5", attempts=STARTED, run=NO_ROWS),
        Said("store-6", attempts=STARTED, run=(False, False, "running", None)),
        Said("store-7", problem="DBGenFrom: an integer, got many"),
        Said("store-8", attempts=(("failed", 502, "Bad <b>gateway</b>"),)),
        *(Said(f"store-{n}", attempts=STARTED) for n in range(9, 121)),
    ]


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("night") / "night.ledger.db"
    asyncio.run(write_batch(place, night(), pauses=["HTTP 503, Retry-After 8 s"]))
    commands = [("send the rest", "deslaunch resume night.ledger.db")]
    return asyncio.run(report_of(place, commands=commands))


@pytest.fixture
def page(html: str) -> Page:
    return Page(html)


@pytest.fixture(scope="module")
def hostile_html(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("hostile") / "night.ledger.db"
    rows = [Said(text, {"A": text}, (("unknown", None, text),)) for text in (*HOSTILE, *INVISIBLE)]
    rows += [
        Said("failed", attempts=STARTED, run=(True, False, text, None)) for text in HOSTILE[:1]
    ]
    asyncio.run(write_batch(place, rows, manifest="<script>alert(9)</script>", pauses=HOSTILE))
    return asyncio.run(report_of(place))


class TestPage:
    def test_it_says_how_the_rows_stand_and_what_to_do(self, page: Page) -> None:
        assert "116 of 120 rows are started, and 1 run failed." in page.text
        assert "1 row may have started a run: look it up, see below." in page.text
        assert "1 row may have been started twice, see below." in page.text
        assert "send the rest deslaunch resume night.ledger.db" in page.text
        assert f"POS usage {JOB} 120" in page.text

    def test_an_unknown_row_can_be_looked_up_and_resolved(self, page: Page) -> None:
        assert re.search(
            rf"store-3 row 3 Job POS usage {JOB} Parameters DBGenFrom=7 "
            r"Look for a run created from 2026-11-24 \S+ to 2026-11-24 \S+ UTC "
            r"Error the server disconnected If it started a run deslaunch resolve "
            r"\S+night.ledger.db store-3 --started JOBRUNID If it started nothing "
            r"deslaunch resolve \S+night.ledger.db store-3 --not-started",
            page.text,
        )

    def test_a_possible_duplicate_can_be_resolved(self, page: Page) -> None:
        run = RUN.format(4)
        assert re.search(
            rf"store-4 POS usage {JOB} {run} deslaunch resolve \S+ store-4 --not-started", page.text
        )

    def test_it_shows_causes_pauses_responses_and_runs(self, page: Page) -> None:
        assert "HTTP 400: DBGenFrom 2: out of range 1 store-2" in page.text
        assert "invalid DBGenFrom: an integer, got many 1 store-7" in page.text
        assert "HTTP 502: Bad <b>gateway</b> 1 store-8" in page.text
        assert "HTTP 500 database is locked 1 store-4" in page.text
        assert "HTTP 400 DBGenFrom 2" not in page.text  # that row is not sent again
        assert "pause default HTTP 503, Retry-After 8 s" in page.text
        assert "run failed no rows in the range 1 store-5" in page.text
        assert "50 of 100 within" in page.text
        assert "succeeded 1 failed 1 not finished 114 " in page.text
        assert "2 runs, from creation to end, as reported by DES." in page.text
        assert "Started 116, at most " in page.text
        assert "119 responses, each measured" in page.text

    def test_every_element_is_closed(self, page: Page) -> None:
        assert page.open == []

    def test_its_first_line_shows_whose_it_is(self, html: str) -> None:
        assert is_own(html.encode().splitlines()[0])

    def test_times_are_utc_and_can_be_shown_in_another_zone(self, page: Page) -> None:
        times = [attributes["datetime"] for attributes in page.tags("time")]

        assert len(times) > 90
        assert all(time is not None and time.endswith("Z") for time in times)

    def test_it_has_one_main_heading_and_names_each_section(self, page: Page) -> None:
        ids = {attributes.get("id") for _, attributes in page.elements}

        assert len(page.tags("h1")) == len(page.tags("main")) == 1
        assert {section["aria-labelledby"] for section in page.tags("section")} <= ids
        assert all(
            "aria-label" in svg or "aria-hidden" in svg or "viewbox" in svg
            for svg in page.tags("svg")
        )

    async def test_what_was_not_sent_is_told(self, tmp_path: Path) -> None:
        await write_batch(tmp_path / "a.ledger.db", [Said("a"), Said("b")])
        page = Page(await report_of(tmp_path / "a.ledger.db"))

        assert "0 of 2 rows are started. " in page.text
        assert "2 rows are still to be sent." in page.text
        assert "Timeline" not in page.text

    async def test_runs_whose_status_des_refused_are_in_the_headline(self, tmp_path: Path) -> None:
        rows = [Said("a", attempts=STARTED, run=NO_ROWS)]
        rows += [Said(key, attempts=STARTED, run="HTTP 403") for key in "bc"]
        await write_batch(tmp_path / "a.ledger.db", rows)
        page = Page(await report_of(tmp_path / "a.ledger.db"))

        verdict = "All 3 rows are started, and 1 run failed. DES refused the status of 2 runs."
        assert page.text.count(verdict) == 2  # the title, too
        assert "failed 1 status refused 2" in page.text

    @pytest.mark.parametrize("change", ["watch", "resolve", "event"])
    async def test_it_is_as_of_the_last_change(self, tmp_path: Path, change: str) -> None:
        place = tmp_path / "a.ledger.db"
        await write_batch(place, [Said("a", attempts=STARTED), Said("b", attempts=LOST)])
        later = BEGAN + 3600
        clock = Clock(wall=lambda: later, elapsed=lambda: 0.0)

        async with await take_ledger(str(place), clock=clock) as ledger:
            if change == "watch":
                await ledger.record_runs([(1, 1, "HTTP 403")])
            elif change == "resolve":
                await ledger.resolve([Finding("b", "notStarted")], early=True)
            else:
                await ledger.note("pause", "default", "HTTP 503")

        page = Page(await report_of(place))
        assert "As of 2026-11-24 02:00:00 , the last change in the ledger." in page.text

    async def test_two_targets_are_told_apart(self, tmp_path: Path) -> None:
        rows = [Said("a", attempts=STARTED), Said("b", attempts=STARTED, target="acme")]
        await write_batch(tmp_path / "a.ledger.db", rows)
        html = await report_of(tmp_path / "a.ledger.db")

        assert table_in(html)["target"] == ["default", "acme"]
        assert "By target" in Page(html).text
        assert "All 2 rows are started." in Page(html).text

    async def test_what_a_page_can_not_hold_is_told(self, tmp_path: Path) -> None:
        rng = random.Random(1)
        rows = [Said(rng.randbytes(10_000).hex(), attempts=STARTED) for _ in range(400)]
        await write_batch(tmp_path / "a.ledger.db", rows)
        html = await report_of(tmp_path / "a.ledger.db")
        held = len(table_in(html)["row"])

        assert 250 < held < 400
        assert f"The table has {held} of 400 rows: those that need attention, and as" in html
        assert re.search(
            r"To get all rows: <code \S+>deslaunch results \S+a.ledger.db</code>", html
        )

    async def test_what_is_too_much_to_list_is_counted(self, tmp_path: Path) -> None:
        again = (("retry", 500, "busy"), *STARTED)
        rows = [Said(f"{n}", attempts=LOST if n % 2 else again) for n in range(24)]
        await write_batch(tmp_path / "a.ledger.db", rows)
        page = Page(await report_of(tmp_path / "a.ledger.db"))

        assert page.text.count("Look for a run created") == 10
        assert "2 more rows of this kind: deslaunch status" in page.text
        assert "2 more rows of this kind are marked in the results" in page.text

    async def test_it_never_replaces_the_ledger(self, tmp_path: Path) -> None:
        place = tmp_path / "a.ledger.db"
        await write_batch(place, [Said("a")])

        async with await open_ledger(str(place)) as ledger:
            with pytest.raises(ConfigurationError, match="never replaced"):
                await write_report(ledger, place, force=True)


class TestNoOutsideRequests:
    def test_nothing_is_loaded_from_anywhere(self, html: str, page: Page) -> None:
        loading = {"src", "href", "xlink:href", "action", "data", "poster", "srcset", "style"}

        assert [a for _, a in page.elements if loading & set(a)] == []
        assert page.tags("link") == []
        assert set(re.findall(r"url\((.*?)\)", html)) == {"#hatch"}
        assert "@import" not in html

    def test_no_other_script_and_style_is_allowed(self, page: Page) -> None:
        (policy,) = (
            attributes["content"]
            for attributes in page.tags("meta")
            if attributes.get("http-equiv") == "Content-Security-Policy"
        )

        assert policy is not None
        assert re.fullmatch(
            r"default-src 'none'; style-src 'sha256-\S{44}'; script-src 'sha256-\S{44}'", policy
        )


class TestHostileText:
    def test_nothing_that_a_ledger_says_becomes_markup(self, hostile_html: str, page: Page) -> None:
        hostile = Page(hostile_html)

        assert {tag for tag, _ in hostile.elements} <= {tag for tag, _ in page.elements}
        assert hostile.open == []
        assert [a for _, a in hostile.elements if any(name.startswith("on") for name in a)] == []
        assert hostile_html.count("<script") == hostile_html.count("</script") == 2

    @pytest.mark.parametrize("text", HOSTILE)
    def test_it_is_shown_as_it_is(self, hostile_html: str, text: str) -> None:
        assert text in Page(hostile_html).text

    def test_what_is_invisible_is_made_visible(self, hostile_html: str) -> None:
        page = Page(hostile_html)

        assert r"nul\x00esc\x1b[31m" in page.text
        assert r"\u202egpj.exe\u200f" in page.text
        assert not set("\0\x1b\u202e\u200f\u200b") & set(hostile_html)
        assert not set("\0\x1b\u202e\u200f\u200b") & set("".join(table_in(hostile_html)["key"]))

    def test_a_key_that_can_not_be_typed_gets_no_command(self, hostile_html: str) -> None:
        text = Page(hostile_html).text

        assert text.count("The key contains characters that can't be typed") == len(INVISIBLE)
        assert re.search(r"deslaunch resolve \S+ --not-started -- -rf", text)


class TestCommands:
    @pytest.mark.parametrize(
        ("ledger", "key", "run", "started"),
        [
            pytest.param("n.db", "k", None, "n.db k --started JOBRUNID", id="no run is known"),
            pytest.param("n.db", "k", RUN.format(1), f"n.db k --started {RUN.format(1)}", id="one"),
            pytest.param("n.db", "k", "$(rm)", "n.db k --started JOBRUNID", id="no id at all"),
            pytest.param("a b.db", "c d", None, "'a b.db' 'c d' --started JOBRUNID", id="quoted"),
            pytest.param("-n.db", "-k", None, "./-n.db --started JOBRUNID -- -k", id="dashes"),
            pytest.param("n.db", "k\u200b", None, "", id="a key that can't be typed"),
        ],
    )
    def test_what_was_found_is_told_by_a_command_that_works(
        self, ledger: str, key: str, run: str | None, started: str
    ) -> None:
        row = UnknownRow(1, key, "default", JOB, "", '{"jobId":"?"}', "", run, 0, 1)

        found = doubt_of(row, ledger)

        assert found["started"] == (f"deslaunch resolve {started}" if started else "")
        assert found["not_started"] == re.sub(r"--started \S+", "--not-started", found["started"])

    def test_parameters_are_told_in_a_line(self) -> None:
        said = {"A": "1", "B": None, "C": AUTO, "D": "7"}
        row = Row(1, 2, None, "default", JOB, said, types=(None, None, None, 2))

        assert self.parameters_of(row) == "A=1, B=null, C=auto, D=7"
        assert self.parameters_of(row._replace(parameters={}, types=())) == "-"

    def parameters_of(self, row: Row) -> object:
        unknown = UnknownRow(1, "k", "default", JOB, "", dump_row(row), "", None, 0, 1)
        return doubt_of(unknown, "n.db")["parameters"]


class TestTable:
    def test_it_holds_every_row(self, html: str) -> None:
        table = table_in(html)

        assert table["row"] == list(range(1, 121))
        assert table["key"][:3] == ["store-1", "store-2", "store-3"]
        assert table["job"][0] == f"POS usage\n{JOB}"
        assert table["state"][1:4] == ["rejected", "unknown", "started, maybe twice"]
        assert table["error"][1] == "HTTP 400: DBGenFrom 2: out of range"
        assert table["run"][4:6] == ["failed: no rows in the range", "not finished: running"]
        assert table["ended"][4] == ms_of("2026-11-24T01:05:00.000Z")
        assert table["run_id"][0] == RUN.format(1)
        assert "target" not in table

    def test_the_first_hundred_rows_can_be_read_without_a_script(self, page: Page) -> None:
        assert "These are the first 100 of 120 rows." in page.text
        assert "store-100" in page.text
        assert "store-120" not in page.text

    def test_no_character_of_it_means_anything_in_a_page(self, hostile_html: str) -> None:
        data = re.search(r'id="data">(.*?)</script>', hostile_html, re.DOTALL)

        assert data is not None
        assert re.fullmatch("[A-Za-z0-9+/=]+", data[1])
        assert set(HOSTILE) < set(unpack(data[1])["key"])

    def test_what_does_not_fit_is_left_out(self) -> None:
        keys = [f"{number * 7919 % 1_000_003:06}" * 40 for number in range(1_000)]
        rows = [self.row(n, "failed" if n > 980 else "started", key=keys[n]) for n in range(1_000)]
        found = PageRows()
        found.take(rows)
        _, whole = found.table()

        columns, text = found.table(limit=len(whole) // 2)

        numbers = unpack(text)["row"]
        assert len(text) <= len(whole) // 2
        assert 300 < len(numbers) < 600
        assert numbers[-19:] == list(range(981, 1_000))
        assert unpack(text)["key"] == [keys[n] for n in numbers]
        assert unpack(text) == {column["name"]: [*column["values"]] for column in columns}

    def test_a_hundred_thousand_rows_of_random_ids_make_no_large_page(self) -> None:
        rng = random.Random(1)
        found = PageRows()

        for number in range(100_000):
            key, run = (f"{rng.getrandbits(128):032x}" for _ in range(2))
            run = "-".join((run[:8], run[8:12], run[12:16], run[16:20], run[20:]))
            answered = f"2026-11-24T01:02:03.{rng.randrange(100, 900)}Z"
            found.take([self.row(number, key=key, job_run_id=run, answered_utc=answered)])

        columns, text = found.table()

        assert len(columns[0]["values"]) > 70_000
        assert len(text) < 4_600_000

    def row(self, number: int, state: str = "started", **more: Any) -> ResultRow:
        said = (JOB, "", state, None, 1, 200, "", 0, "2026-11-24T01:02:03.000Z")
        row = ResultRow("night", f"k{number}", number, "default", *said, *[None] * 6)
        return row._replace(**more)

    def columns(self, rows: Sequence[ResultRow], limit: int = 100) -> dict[str, list[Any]]:
        found = PageRows(limit)
        found.take(rows)
        return unpack(found.table()[1])

    @pytest.mark.parametrize(
        "more",
        [
            pytest.param({"state": "failed"}, id="not started"),
            pytest.param({"possible_duplicate": 1}, id="maybe started twice"),
            pytest.param({"finished": 1, "success": 0}, id="its run failed"),
        ],
    )
    def test_rows_that_need_a_look_come_before_others(self, more: dict[str, Any]) -> None:
        rows = [self.row(1), self.row(2), self.row(3, **more), self.row(4)]

        assert self.columns(rows, 2)["row"] == [1, 3]

    @pytest.mark.parametrize(
        ("sent", "answered", "took"),
        [
            pytest.param("2026-11-24T01:02:03Z", "2026-11-24T01:02:03.250Z", 250, id="a response"),
            pytest.param("2026-11-24T01:02:04Z", "2026-11-24T01:02:03Z", None, id="clock set back"),
            pytest.param("2026-11-24T01:02:04Z", None, None, id="no response"),
            pytest.param(None, None, None, id="not sent"),
        ],
    )
    def test_a_response_is_timed(
        self, sent: str | None, answered: str | None, took: int | None
    ) -> None:
        columns = self.columns([self.row(1, sent_utc=sent, answered_utc=answered)])

        assert columns.get("took", [None]) == [took]

    @pytest.mark.parametrize(
        ("utc", "ms"),
        [
            ("1970-01-01T00:00:01.500Z", 1_500),
            ("1970-01-01T01:00:00+01:00", 0),
            ("1970-01-01T00:00:00.1234567", 123),
            ("yesterday", None),
            (None, None),
        ],
    )
    def test_times_of_any_origin(self, utc: str | None, ms: int | None) -> None:
        assert ms_of(utc) == ms


class TestCauses:
    def test_numbers_and_ids_do_not_make_another_cause(self) -> None:
        causes: dict[Any, Any] = {}

        for number in range(5):
            text = f"HTTP 500: row {number} of {RUN.format(number)}"
            add_cause(causes, "failed", text, f"k{number}")

        add_cause(causes, "failed", "HTTP 502: row 1", "k9")
        (first, second) = causes.values()

        assert (first["text"], first["count"]) == (f"HTTP 500: row 0 of {RUN.format(0)}", 5)
        assert first["examples"] == ["k0", "k1", "k2"]
        assert second["text"] == "HTTP 502: row 1"

    def test_very_many_are_one_more(self) -> None:
        causes: dict[Any, Any] = {}

        for number in range(300):
            add_cause(causes, "failed", "x" * (number + 1), "k")

        assert len(causes) == 201
        assert causes["failed", "other causes"]["count"] == 100


class TestTimeChart:
    def test_a_lane_for_each_series_that_there_is(self) -> None:
        chart = time_chart([(1_000, "started", 2), (0, "started", 4), (0, "failed", 1)], 1_000)

        assert chart is not None
        assert [lane["name"] for lane in chart["lanes"]] == ["started", "failed"]
        first = chart["lanes"][0]
        assert first["label"] == "Started"
        assert first["note"] == "6, at most 4 in 1 s"
        assert first["path"] == "M0.0 100h460.0v-100.0h-460.0zM500.0 100h460.0v-50.0h-460.0z"
        assert chart["days"] == "1 January 1970"

    def test_nothing_happened(self) -> None:
        assert time_chart([], 1_000) is None

    @pytest.mark.parametrize(
        ("minutes", "span", "width"),
        [
            pytest.param(1, 5_000, 100, id="five seconds"),
            pytest.param(60, 3_599_999, 30_000, id="an hour"),
            pytest.param(2, 864_000_000, 1_000, id="two minutes, ten days apart"),
            pytest.param(10**6, 6 * 10**10, 3 * 86_400_000, id="two years"),
        ],
    )
    def test_three_hundred_bars_hold_everything(self, minutes: int, span: int, width: int) -> None:
        assert bucket_width(minutes, span) == width

    def test_long_idle_time_is_cut_out(self) -> None:
        axis = time_axis([0, 1_000, 3_600_000], 1_000)

        assert axis["cuts"] == [(62.5, "59 min 58 s")]
        assert (axis["bar"], axis["cut"]) == (25, 25)
        assert axis["places"] == {0: 0, 1_000: 25, 3_600_000: 75}

    def test_no_mark_runs_over_the_edge(self) -> None:
        axis = time_axis([0, 24_000], 1_000)

        assert (axis["places"][24_000], len(axis["ticks"])) == (96, 1)

    def test_short_idle_time_is_shown(self) -> None:
        axis = time_axis([0, 4_000], 1_000)

        assert (axis["cuts"], axis["places"][4_000]) == ([], 80)

    @pytest.mark.parametrize(
        ("width", "texts"),
        [
            (100, ["00:00:00.0", "00:00:02.0", "00:00:04.0", "00:00:06.0", "00:00:08.0"]),
            (1_000, ["00:00:00", "00:00:20", "00:00:40", "00:01:00", "00:01:20"]),
            (60_000, ["00:00", "00:20", "00:40", "01:00", "01:20"]),
            (86_400_000, ["01 Jan", "21 Jan", "10 Feb", "02 Mar", "22 Mar"]),
        ],
    )
    def test_marks_name_the_times_of_bars(self, width: int, texts: list[str]) -> None:
        ticks = time_axis([n * width for n in range(0, 100, 5)], width)["ticks"]

        assert [text for _, text in ticks] == texts
        assert all(b - a >= 19 for (a, _), (b, _) in pairwise(ticks))


class TestNumbers:
    def test_percentiles(self) -> None:
        found = spread([(10, 50), (25, 45), (400, 4), (2_000, 1)])

        assert found is not None
        texts = [*found["percentiles"].values()]
        assert (found["total"], texts) == (100, ["10 ms", "25 ms", "25 ms", "400 ms", "2 s"])
        assert next(iter(found["percentiles"])) == "50 of 100 within"

    def test_nothing_to_spread(self) -> None:
        assert spread([]) is None

    def test_a_bar_of_all_rows_leaves_nothing_invisible(self) -> None:
        found = shares(Counts(started=99_999, in_flight=1))

        assert [(part["state"], part["rows"], part["share"]) for part in found] == [
            ("started", 99_999, ">99.9 %"),
            ("in_flight", 1, "<0.1 %"),
        ]
        assert found[1]["width"] > 0.5
        assert sum(part["width"] for part in found) == pytest.approx(100)

    @pytest.mark.parametrize(
        ("ms", "text"),
        [
            (0, "0 ms"),
            (999, "999 ms"),
            (999.7, "1 s"),
            (1_000, "1 s"),
            (1_250, "1.2 s"),
            (59_960, "1 min"),
            (60_000, "1 min"),
            (247_000, "4 min 7 s"),
            (7_200_000, "2 h"),
            (90_000_000, "1 d 1 h"),
        ],
    )
    def test_durations(self, ms: int, text: str) -> None:
        assert duration(ms) == text

    @pytest.mark.parametrize(
        ("part", "text"), [(0, "0 %"), (1, "<0.1 %"), (1_234, "12.3 %"), (9_999, ">99.9 %")]
    )
    def test_shares(self, part: int, text: str) -> None:
        assert percent(part, 10_000) == text
