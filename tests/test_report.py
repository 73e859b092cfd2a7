from __future__ import annotations

import gzip
import json
import random
import re
import subprocess
import sys
from base64 import b85decode
from html.parser import HTMLParser
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import pytest
from commands import DESLAUNCH
from ledgers import (
    BEGAN,
    HOSTILE,
    JOBS,
    Clockwork,
    Night,
    hostile_ledger,
    request_of,
    run_status,
    utc_of,
)

from deslaunch import records
from deslaunch.cli import main
from deslaunch.errors import ConfigurationError, LedgerError
from deslaunch.figures import Durations, ms_of
from deslaunch.report import write_report
from deslaunch.report.axis import Axis
from deslaunch.report.charts import shares, spread
from deslaunch.report.contents import TABLE_ROWS, TableRows, contents_of
from deslaunch.report.table import ENCODED_LIMIT, Column, encoded
from deslaunch.report.text import cut, duration, percent, shown, utc_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

RUN: Final = "0d8ab4f4-6f4f-4f8e-9f4e-9a3a8d6c1f00"
LIMIT: Final = 5_000_000
VOID: Final = {"meta", "img", "br", "hr", "input", "link"}


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

        if tag not in VOID and not self.get_starttag_text().endswith("/>"):  # type: ignore[union-attr]
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not tag or tag in VOID:
            return

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


def page_of(*ledgers: Path) -> tuple[str, Page]:
    output = ledgers[0].with_suffix(".html")
    write_report(ledgers, output)
    html = output.read_text(encoding="utf-8")
    return html, Page(html)


def packed(text: str) -> bytes:
    return b85decode(text.translate(str.maketrans(",.:", "<&>")))


def unpacked(text: str) -> dict[str, list[Any]]:
    """Return the table that a page holds, as the page's script reads it."""
    data = gzip.decompress(packed(text))
    size = int.from_bytes(data[:4], "big")
    head, at = json.loads(data[4 : 4 + size]), 4 + size
    found = {}

    for column in head["columns"]:
        values, at = _values(column, data, at, head["rows"])
        found[column["name"]] = values

    return found


def _values(column: dict[str, Any], data: bytes, at: int, rows: int) -> tuple[list[Any], int]:
    if "differences" in column:
        last, values = 0, []

        for step in column["differences"]:
            last += step or 0
            values.append(None if step is None else last)

        return values, at

    if "words" in column:
        return [column["words"][number] for number in column["numbers"]], at

    if "texts" in column:
        return column["texts"], at

    end = at + 16 * rows
    return [data[n : n + 16].hex() for n in range(at, end, 16)], end


def table_in(html: str) -> dict[str, list[Any]]:
    found = re.search(r'<script type="text/plain" id="data">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    return unpacked(found[1])


@pytest.fixture
def night(tmp_path: Path) -> Path:
    path = tmp_path / "night.ledger.jsonl"
    Night(path, 40, rate=10).write()
    return path


class TestPage:
    def test_it_says_how_the_rows_stand_and_what_to_do(self, night: Path) -> None:
        _, page = page_of(night)

        assert "36 of 40 rows are started, and 1 run failed." in page.text
        assert "2 rows may have started a run: look them up, see below." in page.text
        assert f"deslaunch resolve {night} store-000007-pos --started JOBRUNID" in page.text
        assert f"deslaunch resolve {night} store-000012-pos --not-started" in page.text
        assert f"look the unknown rows up deslaunch status {night} " in page.text
        assert f"deslaunch resume {night} --retry-rejected" in page.text
        assert "KEY" not in page.text

    def test_an_unknown_row_can_be_looked_up(self, night: Path) -> None:
        _, page = page_of(night)

        assert f"Job {JOBS[1]}" in page.text
        assert "Parameters DBGenFrom=7" in page.text
        assert "from 2026-11-24 00:57:05 to 2026-11-24 01:08:05 UTC, or later" in page.text
        assert "Because the server disconnected after sending" in page.text

    def test_it_shows_causes_pauses_answers_and_runs(self, night: Path) -> None:
        _, page = page_of(night)

        assert "HTTP 400: DBGenFrom 3: a range or a TradingDate, never both" in page.text
        assert "HTTP 503, Retry-After 8 s: DES is starting up" in page.text
        assert "database is locked" in page.text
        assert "half of them within" in page.text
        assert "no rows in the range" in page.text
        assert "idle time that is cut out (6 h 59 min)" in page.text

    def test_every_element_is_closed(self, night: Path) -> None:
        assert page_of(night)[1].open == []

    def test_the_same_ledger_makes_the_same_page(self, night: Path) -> None:
        assert page_of(night)[0] == page_of(night)[0]

    def test_times_are_utc_and_can_be_shown_in_another_zone(self, night: Path) -> None:
        _, page = page_of(night)
        times = [attributes["datetime"] for attributes in page.tags("time")]

        assert len(times) > 40
        assert all(time is not None and time.endswith("Z") for time in times)

    def test_it_has_one_main_heading_and_names_each_section(self, night: Path) -> None:
        _, page = page_of(night)
        ids = {attributes.get("id") for _, attributes in page.elements}

        assert len(page.tags("h1")) == len(page.tags("main")) == 1
        assert {section["aria-labelledby"] for section in page.tags("section")} <= ids
        assert all(
            "aria-label" in svg or "aria-hidden" in svg or "viewbox" in svg
            for svg in page.tags("svg")
        )

    def test_what_was_not_sent_is_told(self, tmp_path: Path) -> None:
        path = tmp_path / "empty.ledger.jsonl"

        with Clockwork(path, 3) as writer:
            writer.session(0)

        _, page = page_of(path)

        assert "0 of 3 rows are started. " in page.text
        assert "3 rows are still to be sent." in page.text
        assert "What happened when" not in page.text

    @pytest.mark.parametrize(
        ("errors", "said"),
        [
            (["no sales", None, "no sales"], "All 3 rows are started, and 2 runs failed."),
            (["no sales", None, None], "All 3 rows are started, and 1 run failed."),
            ([None, None, None], "All 3 rows are started."),
        ],
    )
    def test_the_first_sentence_counts_the_runs_that_failed(
        self, tmp_path: Path, errors: list[str | None], said: str
    ) -> None:
        ledger = tmp_path / "night.jsonl"

        with Clockwork(ledger, 3) as writer:
            for row, error in enumerate(errors, start=1):
                key = f"k{row}"
                writer.at(row, records.sending(request_of(row, key), 1, with_body=True))
                writer.at(row, records.started(key, 1, job_run_id=f"run-{row}"))
                writer.at(9, run_status(key, f"run-{row}", 0, 1, error=error))

        _, page = page_of(ledger)

        assert f" {said} " in page.text
        command = f"see which runs failed, and why deslaunch results {ledger} --run failed"
        assert (command in page.text) is any(errors)

    def test_a_batch_of_no_rows_has_a_page(self, tmp_path: Path) -> None:
        with Clockwork(tmp_path / "none", 0) as writer:
            writer.session(0)

        assert "There are no rows." in page_of(tmp_path / "none")[1].text

    def test_ledgers_are_put_together_and_named(self, tmp_path: Path) -> None:
        paths = [tmp_path / f"shard-{number}.ledger.jsonl" for number in (1, 2)]

        for path in paths:
            Night(path, 20, rate=10).write()

        html, page = page_of(*paths)

        assert "32 of 40 rows are started, and 2 runs failed." in page.text
        assert set(table_in(html)["ledger"]) == {str(path) for path in paths}
        assert all(
            f"deslaunch resolve {path} store-000007-pos --not-started" in page.text
            for path in paths
        )


class TestNoOutsideRequests:
    def test_nothing_is_loaded_from_anywhere(self, night: Path) -> None:
        html, page = page_of(night)
        loading = {"src", "href", "xlink:href", "action", "data", "poster", "srcset", "style"}

        assert [a for _, a in page.elements if loading & set(a)] == []
        assert page.tags("link") == []
        assert set(re.findall(r"url\((.*?)\)", html)) == {"#hatch"}
        assert "@import" not in html

    def test_no_other_script_and_style_is_allowed(self, night: Path) -> None:
        _, page = page_of(night)
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
    @pytest.fixture
    def hostile(self, tmp_path: Path) -> Path:
        path = tmp_path / "hostile.ledger.jsonl"
        hostile_ledger(path)
        return path

    def test_nothing_that_a_ledger_says_becomes_markup(self, hostile: Path, night: Path) -> None:
        html, page = page_of(hostile)
        kinds = {tag for tag, _ in page_of(night)[1].elements}

        assert {tag for tag, _ in page.elements} <= kinds
        assert page.open == []
        assert [a for _, a in page.elements if any(name.startswith("on") for name in a)] == []
        assert html.count("<script") == html.count("</script") == 2

    @pytest.mark.parametrize("text", [text for text in HOSTILE if text.isprintable()])
    def test_it_is_shown_as_it_is(self, hostile: Path, text: str) -> None:
        assert " ".join(text.split()) in page_of(hostile)[1].text

    def test_what_is_invisible_is_made_visible(self, hostile: Path) -> None:
        html, page = page_of(hostile)

        assert "nul␀ escape␛[31m tab␉ line␊break" in page.text
        assert "⟨U+202E⟩gpj.exe⟨U+200F⟩" in page.text
        assert not set("\0\x1b\u202e\u200f\u200b") & set(html)
        assert not set("\0\x1b\u202e\u200f\u200b") & set("".join(table_in(html)["key"]))

    def test_a_key_that_can_not_be_typed_gets_no_command(self, hostile: Path) -> None:
        _, page = page_of(hostile)

        assert page.text.count("The key holds characters that can't be typed") == 3
        assert f"deslaunch resolve {hostile} --not-started -- -rf" in page.text

    def test_only_an_id_is_offered_as_one(self, hostile: Path) -> None:
        assert (
            f"{hostile} '<img src=x onerror=alert(2)>' --started JOBRUNID"
            in page_of(hostile)[1].text
        )


class TestTable:
    def test_it_holds_every_row(self, night: Path) -> None:
        table = table_in(page_of(night)[0])

        assert table["row"] == list(range(1, 41))
        assert table["key"] == [f"store-{number:06}-pos" for number in range(1, 41)]
        assert table["state"][2] == "rejected"
        assert table["said"][2] == "HTTP 400: DBGenFrom 3: a range or a TradingDate, never both"
        assert table["sent"][0] == ms_of(utc_of(1.5))
        assert table["run"][8] == "failed: no rows in the range"
        assert "ledger" not in table
        assert "target" not in table

    def test_the_first_rows_can_be_read_without_a_script(self, night: Path) -> None:
        _, page = page_of(night)

        assert "store-000040-pos" in page.text
        assert page.tags("noscript") == []

    def test_more_rows_than_that_need_one(self, tmp_path: Path) -> None:
        path = tmp_path / "night.ledger.jsonl"
        Night(path, 130).write()
        _, page = page_of(path)

        assert "These are the first 100 of 130 rows." in page.text
        assert "store-000100-pos" in page.text
        assert "store-000130-pos" not in page.text

    @pytest.mark.parametrize(
        "values",
        [
            pytest.param([RUN, None, RUN.upper().lower()], id="dashed ids"),
            pytest.param([RUN.replace("-", ""), "f" * 32], id="plain ids"),
        ],
    )
    def test_ids_take_sixteen_bytes(self, values: list[str | None]) -> None:
        text, rows = encoded([Column("id", "Id", "text", values)])

        assert rows == len(values)
        assert unpacked(text)["id"] == [
            "0" * 32 if value is None else value.replace("-", "") for value in values
        ]

    @pytest.mark.parametrize(
        "values",
        [
            pytest.param([RUN, RUN.replace("-", "")], id="two forms"),
            pytest.param([RUN, RUN.upper()], id="capital letters"),
            pytest.param([RUN, "0" * 8 + "-0000-0000-0000-" + "0" * 12], id="zeros"),
            pytest.param(["f" * 32, "f" * 32 + "~2"], id="a repeat"),
            pytest.param(["٣" * 32], id="other digits"),
            pytest.param([None, "a", None, "a"], id="words"),
            pytest.param([None, None], id="nothing"),
        ],
    )
    def test_all_else_is_kept_to_the_letter(self, values: list[str | None]) -> None:
        text, _ = encoded([Column("id", "Id", "text", values)])

        assert unpacked(text)["id"] == values

    def test_it_does_not_say_when_it_was_packed(self) -> None:
        text, _ = encoded([Column("n", "N", "number", [1])])

        assert packed(text)[4:8] == bytes(4)

    def test_numbers_may_be_missing(self) -> None:
        values = [None, 5, 3, None, 1_790_000_000_000]
        text, _ = encoded([Column("n", "N", "number", values)])

        assert unpacked(text)["n"] == values

    def test_no_character_of_it_means_anything_in_a_page(self) -> None:
        values = [f"{number:032x}" for number in range(5_000)]
        text, _ = encoded([Column("id", "Id", "text", values)])

        assert not set("<>&\"'/\\ \n") & set(text)

    def test_what_does_not_fit_is_left_out(self) -> None:
        values = [f"{number * 7919 % 1_000_003:06}" * 40 for number in range(1_000)]
        columns = [Column("key", "Key", "text", values)]
        whole, _ = encoded(columns)

        text, rows = encoded(columns, limit=len(whole) // 2)

        assert len(text) <= len(whole) // 2
        assert 300 < rows < 1_000
        assert unpacked(text)["key"] == values[:rows]

    @pytest.mark.parametrize(
        ("sent", "answered", "took"),
        [
            pytest.param(utc_of(1), utc_of(1.25), 250, id="answered"),
            pytest.param(utc_of(2), utc_of(1.25), None, id="only an earlier attempt was"),
            pytest.param(utc_of(2), None, None, id="not answered"),
            pytest.param(None, None, None, id="not sent"),
        ],
    )
    def test_an_answer_is_timed_by_its_own_attempt(
        self, sent: str | None, answered: str | None, took: int | None
    ) -> None:
        rows = TableRows()
        rows.take(result_of(1, "started", sentUtc=sent, answeredUtc=answered), None)

        columns = {column.name: column.values for column in rows.columns(["a"])}
        assert columns["took"] == [took]

    def test_of_too_many_rows_those_that_need_a_look_are_kept(self) -> None:
        rows = TableRows(limit=4)

        for number in range(1, 11):
            rows.take(result_of(number, "failed" if number in {2, 9} else "started"), None)

        columns = {column.name: column.values for column in rows.columns(["a"])}
        assert columns["row"] == [1, 2, 3, 9]
        assert rows.count == 10


def result_of(number: int, state: str, **more: Any) -> dict[str, Any]:
    return {
        "key": f"k{number}",
        "row": number,
        "target": "default",
        "jobId": JOBS[0],
        "state": state,
        "jobRunId": None,
        "attempts": 1,
        "status": None,
        "error": "",
        "possibleDuplicate": False,
        "sentUtc": None,
        "answeredUtc": None,
        **more,
    }


@pytest.mark.slow
class TestManyRows:
    @pytest.mark.parametrize(
        ("count", "digests"),
        [
            pytest.param(100_000, True, id="nothing repeats"),
            pytest.param(10_000, False, id="keys"),
        ],
    )
    def test_a_page_of_100_000_rows_is_below_5_mb(
        self, tmp_path: Path, *, count: int, digests: bool
    ) -> None:
        path = tmp_path / "night.ledger.jsonl"
        Night(path, count, rate=900, digests=digests).write()

        html, _ = page_of(path)

        assert len(html.encode()) < LIMIT * count // 100_000
        assert len(table_in(html)["row"]) == count

    def test_different_texts_without_end_do_not_burst_it(self) -> None:
        rows, rng = TableRows(), random.Random(5)

        for number in range(TABLE_ROWS):
            error = f"{rng.getrandbits(800):0200x}"
            rows.take(result_of(number, "failed", error=error), None)

        text, held = encoded(rows.columns(["a"]))

        assert held == TABLE_ROWS
        assert len(text) <= ENCODED_LIMIT


class TestAxis:
    def test_a_time_without_gaps_is_one_piece(self) -> None:
        axis = Axis([(0, 1_000), (1_000, 2_000), (2_500, 4_000)])

        assert [axis.at(ms) for ms in (-5, 0, 1_000, 4_000, 9_000)] == [0, 0, 25, 100, 100]
        assert axis.cuts == []

    def test_a_long_idle_time_is_cut_out(self) -> None:
        axis = Axis([(0, 60_000), (3_600_000, 3_660_000)])

        assert axis.cuts == [(60_000, 3_600_000)]
        assert axis.at(60_000) == pytest.approx(48.75)
        assert axis.at(1_000_000) == pytest.approx(48.75)
        assert axis.at(3_600_000) == pytest.approx(51.25)
        assert axis.at(3_660_000) == pytest.approx(100)

    def test_a_short_one_is_not(self) -> None:
        assert Axis([(0, 600_000), (640_000, 1_200_000)]).cuts == []

    def test_the_marks_are_round_and_apart(self) -> None:
        begin = ms_of(utc_of(0))

        for seconds in (1, 7, 65, 4_000, 90_000, 40 * 86_400):
            ticks = Axis([(begin, begin + seconds * 1000)]).ticks()
            places = [tick.at for tick in ticks]

            assert 1 <= len(ticks) <= 6
            assert all(b - a >= 19 for a, b in pairwise(places))

    def test_marks_are_apart_also_beside_a_cut(self) -> None:
        axis = Axis([(0, 100_000), (500_000_000, 500_003_000), (900_000_000, 900_100_000)])
        places = [tick.at for tick in axis.ticks()]

        assert len(axis.cuts) == 2
        assert all(b - a >= 19 for a, b in pairwise(places))

    def test_marks_say_what_the_step_needs(self) -> None:
        begin = ms_of(BEGAN.isoformat())

        assert Axis([(begin, begin + 120_000)]).ticks()[0].text == "01:02:30"
        assert Axis([(begin, begin + 7_200_000)]).ticks()[0].text == "01:30"
        assert Axis([(begin, begin + 500)]).ticks()[0].text == "01:02:03.0"


def test_a_spread_names_percentiles_and_draws_bars() -> None:
    durations = Durations()

    for ms in (0, 12, 12, 13, 1_800):
        durations.add(ms)

    found = spread(durations)

    assert found is not None
    assert found.percentiles[0] == ("half of them within", "12 ms")
    assert found.percentiles[-1] == ("the slowest", "1.8 s")
    assert found.bars[0][:4] == ("0 ms", "1 ms", 1, "20 %")
    assert round(found.bars[0][4], 3) == 33.333
    assert found.bars[6] == ("10 ms", "15 ms", 3, "60 %", 100.0)
    assert found.bars[-1][:4] == ("1.5 s", "2 s", 1, "20 %")


def test_shares_fill_the_bar_and_show_what_is_rare() -> None:
    found = shares(
        {
            **dict.fromkeys(("failed", "rejected", "invalid", "pending", "in_flight"), 0),
            "rows": 100_000,
            "started": 99_999,
            "unknown": 1,
        }
    )

    assert [(part.state, part.share) for part in found] == [
        ("started", ">99.9 %"),
        ("unknown", "<0.1 %"),
    ]
    assert sum(part.width for part in found) == pytest.approx(100)
    assert found[1].width > 0.5


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        pytest.param("plain", "plain", id="plain"),
        pytest.param("äöü 日本 עברית", "äöü 日本 עברית", id="other letters"),
        pytest.param("a\0b\x7f", "a␀b␡", id="controls"),
        pytest.param("a\u202eb\u2066", "a⟨U+202E⟩b⟨U+2066⟩", id="directions"),
        pytest.param("a\x85\u2028", "a⟨U+0085⟩⟨U+2028⟩", id="line breaks"),
        pytest.param("a\udcff", "a⟨U+DCFF⟩", id="no character"),
    ],
)
def test_all_is_visible(text: str, seen: str) -> None:
    assert shown(text) == seen


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "0 ms"),
        (999, "999 ms"),
        (1_000, "1 s"),
        (1_250, "1.2 s"),
        (59_999, "60.0 s"),
        (60_000, "1 min"),
        (3_599_000, "59 min 59 s"),
        (3_600_000, "1 h"),
        (90_061_000, "1 d 1 h"),
    ],
)
def test_a_duration_is_told_in_two_units(ms: int, text: str) -> None:
    assert duration(ms) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (0, 0, "0 %"),
        (0, 9, "0 %"),
        (1, 3, "33.3 %"),
        (9, 9, "100 %"),
        (1, 100_000, "<0.1 %"),
        (99_999, 100_000, ">99.9 %"),
    ],
)
def test_a_share_is_never_nothing_nor_all_unless_it_is(part: int, whole: int, text: str) -> None:
    assert percent(part, whole) == text


def test_a_text_is_cut_with_an_ellipsis() -> None:
    assert (cut("abc", 3), cut("abcd", 3)) == ("abc", "ab…")


def test_a_time_is_shown_to_the_second() -> None:
    assert (utc_text("2026-11-24T01:02:03.456Z"), utc_text(None)) == ("2026-11-24 01:02:03", "")


class TestFile:
    def test_no_ledger_and_no_manifest_is_replaced(self, night: Path) -> None:
        before = night.read_bytes()

        for output, manifest in ((night, None), (night.with_suffix(".csv"),) * 2):
            with pytest.raises(ConfigurationError, match="would replace what it is made from"):
                write_report([night], output, manifest=manifest)

        assert night.read_bytes() == before

    def test_a_missing_ledger_leaves_the_old_page(self, tmp_path: Path) -> None:
        output = tmp_path / "report.html"
        output.write_text("old")

        with pytest.raises(LedgerError):
            write_report([tmp_path / "none"], output)

        assert output.read_text() == "old"

    def test_a_page_that_can_not_be_written_is_told(self, night: Path) -> None:
        with pytest.raises(ConfigurationError, match="can't be written") as caught:
            write_report([night], night.parent / "none" / "report.html")

        assert caught.value.hint == "name another file with -o"

    def test_only_its_owner_can_read_it(self, night: Path) -> None:
        page_of(night)

        assert night.with_suffix(".html").stat().st_mode & 0o777 == 0o600

    def test_the_manifest_may_have_moved(self, night: Path) -> None:
        manifest = night.with_suffix(".csv")
        moved = manifest.rename(manifest.with_name("moved.csv"))
        (batch,) = contents_of([night]).batches
        (found,) = contents_of([night], moved).batches

        assert "is not there" in batch.warnings[-1]
        assert found.warnings == batch.warnings[:-1]


class TestCommand:
    def test_it_writes_the_page(self, night: Path, capsys: pytest.CaptureFixture[str]) -> None:
        output = night.with_name("report.html")

        code = main(["report", str(night), "-o", str(output)])

        assert (code, output.read_text()[:15]) == (0, "<!DOCTYPE html>")
        assert capsys.readouterr() == ("", f"the report is in {output}\n")

    def test_a_missing_ledger_is_told(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        code = main(["report", str(tmp_path / "none"), "-o", str(tmp_path / "report.html")])

        assert code == 7
        assert "there is no such ledger" in capsys.readouterr().err

    @pytest.mark.parametrize("arguments", [["-o", "report.html"], ["night.ledger.jsonl"]])
    def test_it_needs_a_ledger_and_an_output(self, arguments: Sequence[str]) -> None:
        assert main(["report", *arguments]) == 2

    def test_without_its_extra_it_says_how_to_install_it(self, night: Path) -> None:
        program = (
            "import sys; sys.modules['jinja2'] = None; from deslaunch.cli import main; "
            f"sys.exit(main(['report', {str(night)!r}, '-o', 'report.html']))"
        )
        ended = subprocess.run(
            [sys.executable, "-c", program],
            cwd=night.parent,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

        assert (ended.returncode, ended.stderr) == (
            2,
            (
                "error: a report needs Jinja2, which is not there\n"
                "  install it with: pip install 'deslaunch[report]'\n"
            ),
        )

    def test_help_has_examples(self) -> None:
        ended = subprocess.run(
            [DESLAUNCH, "report", "--help"], capture_output=True, text=True, timeout=60, check=True
        )

        assert "  deslaunch report night.ledger.jsonl -o report.html\n" in ended.stdout


def test_a_live_batch_says_so_and_offers_no_command(tmp_path: Path) -> None:
    path = tmp_path / "night.ledger.jsonl"

    with Clockwork(path, 2) as writer:
        writer.session(0)
        writer.at(1, records.sending(request_of(1, "a"), 1, with_body=True))

    import fcntl  # noqa: PLC0415

    with path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        _, page = page_of(path)

    assert "A launch was going on when this was written." in page.text
    assert "Wait until it has ended" in page.text
    assert "deslaunch resume" not in page.text
