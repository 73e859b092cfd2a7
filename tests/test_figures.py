from __future__ import annotations

import math
import random
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from ledgers import Clockwork, request_of, run_status, utc_of

from deslaunch import records
from deslaunch.figures import (
    BUCKETS,
    CAUSES,
    EXAMPLES,
    OTHER,
    SPANS,
    WIDTHS,
    Causes,
    Durations,
    Figures,
    RunEnd,
    Spans,
    Timeline,
    ms_of,
    run_end,
)
from deslaunch.ledger import records_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RUN = "0d8ab4f4-6f4f-4f8e-9f4e-9a3a8d6c1f00"
OTHER_RUN = "FD8ab4f4-6f4f-4f8e-9f4e-9a3a8d6c1f11"
ZERO = ms_of(utc_of(0))


@pytest.mark.parametrize(
    ("utc", "ms"),
    [
        pytest.param("1970-01-01T00:00:01.250Z", 1250, id="z"),
        pytest.param("1970-01-01T01:00:00+01:00", 0, id="offset"),
        pytest.param("1970-01-01T00:00:00", 0, id="naive is UTC"),
    ],
)
def test_a_time_is_a_number_of_milliseconds(utc: str, ms: int) -> None:
    assert ms_of(utc) == ms


class TestTimeline:
    def test_few_events_keep_narrow_buckets(self) -> None:
        timeline = Timeline()
        timeline.add(50, "started")
        timeline.add(99, "failed")
        timeline.add(100, "started")

        assert [(begin, dict(counts)) for begin, counts in timeline.counts()] == [
            (0, {"started": 1, "failed": 1}),
            (100, {"started": 1}),
        ]
        assert timeline.width == WIDTHS[0]

    def test_each_width_is_a_multiple_of_the_one_before(self) -> None:
        assert [wide % narrow for narrow, wide in pairwise(WIDTHS)] == [0] * (len(WIDTHS) - 1)

    @pytest.mark.parametrize("seconds", [60, 3_600, 864_000, 400 * 86_400])
    def test_buckets_stay_few_and_lose_nothing(self, seconds: int) -> None:
        timeline = Timeline()
        events = 5_000

        for number in range(events):
            timeline.add(number * seconds * 1000 // events, "started")

        assert len(timeline.buckets) <= BUCKETS
        assert timeline.total("started") == events
        assert sum(counts["started"] for _, counts in timeline.counts()) == events

    def test_idle_time_costs_no_buckets(self) -> None:
        timeline = Timeline()

        for number in range(100):
            timeline.add(number * 100, "started")
            timeline.add(number * 100 + 86_400_000, "started")

        assert timeline.width == 100

    def test_the_order_of_events_does_not_matter(self) -> None:
        times = [number * 77 for number in range(2_000)]
        forward, shuffled = Timeline(), Timeline()

        for ms in times:
            forward.add(ms, "started")

        for ms in random.Random(1).sample(times, len(times)):
            shuffled.add(ms, "started")

        assert list(forward.counts()) == list(shuffled.counts())


class TestDurations:
    def test_it_is_exact_below_a_tenth_of_a_second(self) -> None:
        durations = Durations()

        for ms in range(1, 100):
            durations.add(ms)

        shares = (0.01, 0.5, 0.9, 0.99, 1)
        assert [durations.percentile(share) for share in shares] == [1, 50, 90, 99, 99]

    def test_it_is_one_percent_off_at_most_above(self) -> None:
        rng = random.Random(3)
        times = sorted(int(rng.lognormvariate(7, 2)) for _ in range(20_000))
        durations = Durations()

        for ms in times:
            durations.add(ms)

        for share in (0.001, 0.25, 0.5, 0.9, 0.95, 0.99, 0.999, 1):
            exact = times[math.ceil(share * len(times)) - 1]
            assert durations.percentile(share) == pytest.approx(exact, rel=0.01)

    def test_memory_does_not_grow_with_what_is_counted(self) -> None:
        durations = Durations()

        for ms in range(0, 10_000_000, 97):
            durations.add(ms)

        assert len(list(durations.values())) < 700

    def test_the_longest_is_exact(self) -> None:
        durations = Durations()
        durations.add(100)
        durations.add(123_456)

        assert (durations.percentile(1), durations.percentile(0.51)) == (123_456, 123_456)
        assert durations.percentile(0.5) == pytest.approx(100, rel=0.01)

    def test_a_clock_that_was_set_back_counts_as_nothing(self) -> None:
        durations = Durations()
        durations.add(-5)

        assert (durations.count, durations.percentile(0.5)) == (1, 0)

    def test_of_nothing_there_is_nothing(self) -> None:
        assert Durations().percentile(0.5) == 0


class TestCauses:
    def test_numbers_and_ids_do_not_tell_causes_apart(self) -> None:
        causes = Causes()
        causes.add("failed", f"row 17 of {RUN}: locked", "a")
        causes.add("failed", f"row 4 of {OTHER_RUN}: locked", "b")
        causes.add("rejected", f"row 4 of {RUN}: locked", "c")

        assert [(one.kind, one.text, one.count) for one in causes.worst()] == [
            ("failed", f"row 17 of {RUN}: locked", 2),
            ("rejected", f"row 4 of {RUN}: locked", 1),
        ]

    def test_the_status_of_an_answer_tells_causes_apart(self) -> None:
        causes = Causes()
        causes.add("failed", "HTTP 500: row 1")
        causes.add("failed", "HTTP 502: row 2")
        causes.add("failed", "HTTP 502: row 3")

        assert [(one.text, one.count) for one in causes.worst()] == [
            ("HTTP 502: row 2", 2),
            ("HTTP 500: row 1", 1),
        ]

    def test_the_most_frequent_comes_first_with_some_examples(self) -> None:
        causes = Causes()
        causes.add("failed", "rare", "x")

        for number in range(10):
            causes.add("failed", f"often {number}", f"k{number}", seconds=0.5)

        often, rare = causes.worst()
        assert (often.text, often.count, often.seconds) == ("often 0", 10, 5.0)
        assert often.examples == ["k0", "k1", "k2"]
        assert len(often.examples) == EXAMPLES
        assert rare.count == 1

    def test_too_many_different_causes_are_put_together(self) -> None:
        causes = Causes()

        for number in range(CAUSES + 50):
            causes.add("failed", "x" * number)

        assert len(causes) == CAUSES + 1
        assert (causes.worst()[0].text, causes.worst()[0].count) == (OTHER, 50)

    def test_a_long_text_is_cut(self) -> None:
        causes = Causes()
        causes.add("failed", "x" * 5_000)

        assert len(causes.worst()[0].text) == 300


class TestSpans:
    def test_what_touches_lengthens(self) -> None:
        spans = Spans()
        spans.add(0, 10, "a")
        spans.add(10, 20, "a")
        spans.add(15, 30, "b")
        spans.add(40, 50, "b")

        assert spans.kept == [(0, 20, "a"), (15, 30, "b"), (40, 50, "b")]

    def test_only_so_many_are_kept(self) -> None:
        spans = Spans()

        for number in range(SPANS + 7):
            spans.add(number * 10, number * 10 + 1, "a")

        assert (len(spans.kept), spans.left_out) == (SPANS, 7)


def read(path: Path, write: Callable[[Clockwork], None]) -> tuple[Figures, dict[str, RunEnd]]:
    with Clockwork(path, 9) as writer:
        writer.session(0)
        write(writer)

    figures = Figures()
    return figures, figures.read(records_of(path))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "night.ledger.jsonl"


class TestFigures:
    def test_an_attempt_counts_when_its_outcome_came(self, path: Path) -> None:
        def write(writer: Clockwork) -> None:
            writer.at(1, records.sending(request_of(1, "a"), 1, with_body=True))
            writer.at(1.02, records.answered("a", 1, status=503, error="busy"))
            writer.at(2, records.sending(request_of(1, "a"), 2, with_body=False))
            writer.at(2.05, records.started("a", 2, job_run_id=RUN))
            writer.at(3, records.sending(request_of(2, "b"), 1, with_body=True))
            writer.at(3.01, records.unsent("b", 1, error="connection refused"))
            writer.at(4, records.sending(request_of(2, "b"), 2, with_body=False))
            writer.at(4.07, records.rejected("b", 2, status=400, error="no"))
            writer.at(5, records.sending(request_of(3, "c"), 1, with_body=True))
            writer.at(65, records.unknown("c", 1, cause="no answer within 60 s"))
            writer.at(66, records.sending(request_of(4, "d"), 1, with_body=True))
            writer.at(66.09, records.failed("d", 1, status=500, error="no"))

        figures, _ = read(path, write)

        assert [(ms - ZERO, dict(counts)) for ms, counts in figures.timeline.counts()] == [
            (1_000, {"again": 1}),
            (2_000, {"started": 1}),
            (3_000, {"again": 1}),
            (4_000, {"rejected": 1}),
            (65_000, {"unknown": 1}),
            (66_000, {"failed": 1}),
        ]
        assert list(figures.answers.values()) == [(20, 1), (50, 1), (70, 1), (90, 1)]
        assert [(one.kind, one.text, one.examples) for one in figures.again.worst()] == [
            ("HTTP 503", "busy", ["a"]),
            ("not sent", "connection refused", ["b"]),
        ]

    def test_pauses_end_with_their_launcher(self, path: Path) -> None:
        def write(writer: Clockwork) -> None:
            writer.at(1, records.pause("acme", cause="HTTP 503", seconds=8))
            writer.at(9, records.pause("acme", cause="HTTP 503", seconds=900))
            writer.at(12, records.end({}))
            writer.session(1000)
            writer.at(1001, records.pause("acme", cause="HTTP 429", seconds=2))
            writer.at(1010, records.end({}))

        figures, _ = read(path, write)

        assert [(s.begin - ZERO, s.end - ZERO, s.label) for s in figures.pauses.kept] == [
            (1_000, 12_000, "acme"),
            (1_001_000, 1_003_000, "acme"),
        ]
        assert [(s.begin - ZERO, s.end - ZERO) for s in figures.launches.kept] == [
            (0, 12_000),
            (1_000_000, 1_010_000),
        ]
        assert [(one.kind, one.count, one.seconds) for one in figures.paused.worst()] == [
            ("acme", 2, 908.0),
            ("acme", 1, 2.0),
        ]

    def test_a_launcher_that_was_killed_worked_until_its_last_record(self, path: Path) -> None:
        def write(writer: Clockwork) -> None:
            writer.at(7, records.sending(request_of(1, "a"), 1, with_body=True))

        figures, _ = read(path, write)

        assert [(s.begin - ZERO, s.end - ZERO) for s in figures.launches.kept] == [(0, 7_000)]
        assert figures.timeline.buckets == {}

    def test_no_answer_comes_to_what_an_earlier_launcher_sent(self, path: Path) -> None:
        def write(writer: Clockwork) -> None:
            writer.at(1, records.sending(request_of(1, "a"), 1, with_body=True))
            writer.session(100)
            writer.at(101, records.rejected("a", 1, status=400, error="no"))

        figures, _ = read(path, write)

        assert (figures.timeline.total("rejected"), figures.answers.count) == (1, 0)

    def test_watched_runs_count_as_they_were_last_seen(self, path: Path) -> None:
        def write(writer: Clockwork) -> None:
            writer.at(1, {**run_status("a", RUN, 0, 1), "finished": False})
            writer.at(2, run_status("a", RUN, 0, 90))
            writer.at(3, run_status("b", RUN, 0, 30, error="no rows"))
            writer.at(4, {**run_status("c", RUN, 0, 1), "finished": False})

        figures, runs = read(path, write)

        assert figures.runs == {"succeeded": 1, "failed": 1, "not finished": 1}
        assert (figures.run_times.count, figures.run_times.longest) == (2, 90_000)
        assert [(c.text, c.examples) for c in figures.run_failures.worst()] == [("no rows", ["b"])]
        assert runs["a"] == RunEnd(finished=True, success=True, status="", ms=90_000)

    def test_ledgers_are_put_together(self, tmp_path: Path) -> None:
        figures = Figures()

        for name in ("one", "two"):
            with Clockwork(tmp_path / name, 1) as writer:
                writer.session(0)
                writer.at(1, records.sending(request_of(1, "a"), 1, with_body=True))
                writer.at(1.03, records.started("a", 1, job_run_id=RUN))

            figures.read(records_of(tmp_path / name))

        assert figures.timeline.total("started") == figures.answers.count == 2


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"finishedUtc": None}, id="null"),
        pytest.param({"createdUtc": "yesterday"}, id="no time"),
        pytest.param({"createdUtc": 7}, id="a number"),
    ],
)
def test_a_run_whose_times_are_not_known_has_no_duration(changed: dict[str, Any]) -> None:
    assert run_end({**run_status("a", RUN, 0, 1), **changed}).ms is None


def test_what_a_status_leaves_out_is_not_known() -> None:
    record = {"record": "runStatus", "optional": True, "key": "a", "jobRunId": RUN}

    assert run_end(record) == RunEnd(finished=False, success=False, status="", ms=None)
