from __future__ import annotations

import errno
import io
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from deslaunch.console import (
    Console,
    Progress,
    WatchProgress,
    cause_lines,
    next_commands,
    parameter_cells,
    parameters_text,
    plan_lines,
    question_of,
    stop_text,
    summary_lines,
    watch_lines,
)
from deslaunch.errors import InvalidManifest, LedgerWriteFailed, ManifestConflict
from deslaunch.model import (
    Draining,
    JobParameter,
    Outcome,
    Plan,
    Planned,
    PlannedJob,
    ProblemGroup,
    Pulse,
    RetryPlanned,
    RowEnded,
    RowProblem,
    RowState,
    RunEnded,
    RunStatus,
    Stop,
    Stopped,
    StopReason,
    Summary,
    TargetPaused,
    TokenRenewed,
    WatchSummary,
)


def a_summary(**counts: Any) -> Summary:
    zero: dict[str, Any] = dict.fromkeys(
        (
            "rows",
            "started",
            "failed",
            "rejected",
            "unknown",
            "invalid",
            "pending",
            "in_flight",
            "possible_duplicates",
            "attempts",
        ),
        0,
    )
    return Summary(**(zero | {"seconds": 1.0, "ledger": "the night.jsonl"} | counts))


class Streams:
    def __init__(self, *, quiet: bool = False, verbose: bool = False, log: bool = False) -> None:
        self.out = io.StringIO()
        self.err = io.StringIO()
        self.console = Console(
            out=self.out,
            err=self.err,
            quiet=quiet,
            verbose=verbose,
            log=log,
            now=lambda: datetime(2026, 1, 31, 6, 16, 47, tzinfo=UTC),
        )

    @property
    def said(self) -> tuple[str, str]:
        return self.out.getvalue(), self.err.getvalue()


def test_data_goes_to_stdout_and_all_else_to_stderr() -> None:
    streams = Streams()

    streams.console.data("data")
    streams.console.json({"a": 1})
    streams.console.say("news")
    streams.console.warn("careful")

    assert streams.said == ('data\n{"a":1}\n', "news\nwarning: careful\n")


def test_quiet_keeps_what_must_not_be_missed() -> None:
    streams = Streams(quiet=True)

    streams.console.summary(a_summary(rows=3, started=2, unknown=1, possible_duplicates=1))

    assert streams.said == (
        "",
        (
            "1 unknown: each may have started a run, and none is sent again\n"
            "1 possible duplicate: started, and an earlier attempt was answered 5XX or not at "
            "all\n"
        ),
    )


@pytest.mark.parametrize(
    ("counts", "commands"),
    [
        pytest.param({"rows": 2, "started": 2}, [], id="all started"),
        pytest.param(
            {"rows": 2, "pending": 2},
            ["go on: deslaunch resume 'the night.jsonl' --base-url https://x"],
            id="pending",
        ),
        pytest.param(
            {
                "rows": 2,
                "pending": 2,
                "stops": (Stop(StopReason.CREDENTIALS, "refused", "default"),),
            },
            ["go on with a new token: deslaunch resume 'the night.jsonl' --base-url https://x"],
            id="credentials",
        ),
        pytest.param(
            {"rows": 2, "failed": 2},
            ["try the failed rows again: deslaunch resume 'the night.jsonl' --base-url https://x"],
            id="failed",
        ),
        pytest.param(
            {"rows": 2, "unknown": 1, "rejected": 1},
            [
                "look the unknown rows up: deslaunch status 'the night.jsonl'",
                (
                    "tell what each one did: "
                    "deslaunch resolve 'the night.jsonl' KEY --started JOBRUNID"
                ),
                "or that it did nothing: deslaunch resolve 'the night.jsonl' KEY --not-started",
                "see what is wrong with each row: deslaunch results 'the night.jsonl'",
                (
                    "send what DES refused again, once DES is mended: deslaunch resume "
                    "'the night.jsonl' --base-url https://x --retry-rejected"
                ),
            ],
            id="unknown and rejected",
        ),
    ],
)
def test_the_next_commands_can_be_copied(counts: dict[str, Any], commands: list[str]) -> None:
    assert list(next_commands(a_summary(**counts), ["--base-url", "https://x"])) == commands


def test_the_summary_names_counts() -> None:
    stop = Stop(StopReason.THROTTLED, "asked to wait", "acme", resume_after=3600)

    lines = list(summary_lines(a_summary(rows=3, started=1, pending=2, attempts=4, stops=(stop,))))

    assert lines == [
        "3 rows: 1 started, 2 pending; 4 attempts",
    ]
    assert stop_text(stop) == "target acme stopped: asked to wait; resume after 3,600 s"
    assert next(summary_lines(a_summary())) == "0 rows: nothing to do; 0 attempts"
    assert stop_text(Stop(StopReason.INTERRUPTED, "interrupted")) == "stopped: interrupted"


def a_problem(line: int, column: str = "DBGenFrom") -> RowProblem:
    return RowProblem("night.csv", line, line, column, "an integer", "x", "no integer")


def test_an_invalid_manifest_lists_its_first_problems() -> None:
    streams = Streams()
    groups = [ProblemGroup(a_problem(line)) for line in range(2, 150)]

    streams.console.error(
        InvalidManifest("bad", problems=[], groups=groups, count=500, hint="mend it")
    )

    lines = streams.said[1].splitlines()
    assert lines[0] == "night.csv:2, column DBGenFrom: no integer"
    assert lines[100:] == [
        "… and 400 problems more",
        "all 500 problems one by one: deslaunch check with --json",
        "error: bad",
        "  mend it",
    ]


@pytest.mark.parametrize(
    ("groups", "count", "lines"),
    [
        pytest.param([(2, 1), (3, 1)], 2, ["2, column column-2", "3, column column-3"], id="few"),
        pytest.param(
            [(2, 2), (9, 1)],
            3,
            ["2, column column-2", "3, column column-2", "9, column column-9"],
            id="a few that are the same",
        ),
        pytest.param(
            [(2, 500), (9, 1)],
            501,
            [
                "2, column column-2 (500 rows)",
                "9, column column-9",
                "all 501 problems one by one: deslaunch check with --json",
            ],
            id="a column that no row should have",
        ),
        pytest.param(
            [(2, 1_234)],
            1_235,
            [
                "2, column column-2 (1,234 rows)",
                "… and 1 problem more",
                "the first 1,000 of 1,235 problems one by one: deslaunch check with --json",
            ],
            id="more than are kept",
        ),
    ],
)
def test_a_problem_that_many_rows_have_is_told_once(
    groups: list[tuple[int, int]], count: int, lines: list[str]
) -> None:
    streams = Streams()

    found = [ProblemGroup(a_problem(line, f"column-{line}"), rows) for line, rows in groups]
    problems = [
        a_problem(group.first.line + n, group.first.column)
        for group in found
        for n in range(group.rows)
    ]
    streams.console.problems(problems[:1_000], found, count)

    told = [line.replace("night.csv:", "") for line in streams.said[1].splitlines()]
    assert [line.removesuffix(": no integer") for line in told] == lines


def test_a_conflict_lists_its_keys() -> None:
    streams = Streams()
    gone = [f"g{n}" for n in range(22)]

    streams.console.error(ManifestConflict("conflict", changed=["c"], gone=gone, new=["n"]))

    lines = streams.said[1].splitlines()
    assert lines[:3] == ["error: conflict", "  changed: c", "  gone: g0"]
    assert lines[-2:] == ["  gone: … and 2 more", "  new: n"]


def test_unrecorded_runs_are_printed_one_a_line() -> None:
    streams = Streams(quiet=True)

    streams.console.error(LedgerWriteFailed("full", unrecorded=[("k1", "r1"), ("k2", "r2")]))

    assert streams.said[1].splitlines()[-2:] == ["k1\tr1", "k2\tr2"]


def test_parameters_read_like_a_sentence() -> None:
    assert parameters_text({}) == "-"
    assert (
        parameters_text(
            {
                "a": {"type": 2, "valueStringEncoded": "1"},
                "b": {"valueStringEncoded": None},
                "c": {"valueStringEncoded": None, "useAutoValue": True},
                "d": None,
            }
        )
        == "a=1, b=null, c=auto, d=null"
    )
    assert parameter_cells(JobParameter("x", None)) == ("x", "string", "optional", "")
    assert parameter_cells(
        JobParameter("x", 9, required=True, nullable=True, supports_auto=True, description="why")
    ) == ("x", "type 9", "required null auto", "why")


class Ticks:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def ended(state: RowState, **more: Any) -> RowEnded:
    return RowEnded(Outcome("k", 7, "default", None, state, **more))


def test_progress_without_a_terminal_is_a_line_every_ten_seconds() -> None:
    streams, clock = Streams(), Ticks()

    with Progress(streams.console, clock) as progress:
        for second in range(25):
            clock.now = float(second)
            progress(ended(RowState.STARTED))

    assert streams.said[1].splitlines() == [
        "11 rows ended (11 started), 0 sent again, 1 rows/s",
        "21 rows ended (21 started), 0 sent again, 1 rows/s",
    ]


def test_progress_tells_why_a_launch_waits() -> None:
    streams = Streams()
    progress = Progress(streams.console, Ticks())

    progress(TargetPaused("acme", "HTTP 503", 8.0))
    progress(TokenRenewed("acme"))
    progress(Draining(5, 60.0))
    progress(Draining(0, 60.0))
    progress(RetryPlanned("k", "acme", 500, 1.0))
    progress(Stopped(Stop(StopReason.INTERRUPTED, "interrupted")))

    assert streams.said[1].splitlines() == [
        "target acme: all rows wait 8.0 s: HTTP 503",
        "target acme: the token was renewed",
        "waiting for the answers of 5 rows, 60 s at most;",
        "  a second interrupt gives them up as unknown",
        "stopped: interrupted",
    ]


def a_plan(**more: Any) -> Plan:
    jobs = (PlannedJob("default", "job-1", "POS usage", 15), PlannedJob("acme", "job-2", "", 5))
    said: dict[str, Any] = {
        "manifest": "night.csv",
        "ledger": "night.ledger.jsonl",
        "resumes": False,
        "rows": 20,
        "invalid": 0,
        "ready": 20,
        "jobs": jobs,
        "states": {},
        "slots": 16,
    }
    return Plan(**(said | more))


@pytest.mark.parametrize(
    ("more", "lines"),
    [
        pytest.param(
            {},
            [
                "night.csv: 20 rows to start",
                "  15 rows: POS usage (job-1)",
                "  5 rows: target acme, job-2",
                (
                    "how fast: 16 starts at a time at most; how long it takes, DES's first "
                    "answers will tell"
                ),
                "ledger: night.ledger.jsonl",
            ],
            id="new",
        ),
        pytest.param(
            {
                "rows": 100,
                "invalid": 1,
                "limit": 10,
                "rate": 0.5,
                "slots": 1,
                "states": {RowState.STARTED: 79, RowState.INVALID: 1, RowState.PENDING: 20},
                "jobs": (),
            },
            [
                "night.csv: 20 of 100 rows to start",
                "so far: 79 started, 1 invalid, 20 pending",
                "left out: 1 invalid row",
                "now: the first 10; the others stay pending",
                "how fast: 1 start at a time at most, 0.5 a second: 20 s or longer",
                "ledger: night.ledger.jsonl",
            ],
            id="resumed, limited and slow",
        ),
        pytest.param(
            {"rows": 39, "ready": 0, "jobs": (), "shard": "1/2"},
            ["night.csv, shard 1 of 2: 0 of 39 rows to start"],
            id="shard",
        ),
        pytest.param(
            {"rows": 1, "ready": 0, "jobs": ()},
            ["night.csv: 0 of 1 row to start"],
            id="nothing to do",
        ),
        pytest.param(
            {"jobs": tuple(PlannedJob("default", f"job-{n}", "", 1) for n in range(12))},
            [
                "night.csv: 20 rows to start",
                *(f"  1 row: job-{n}" for n in range(10)),
                "  … and 2 rows of 2 jobs more",
                (
                    "how fast: 16 starts at a time at most; how long it takes, DES's first "
                    "answers will tell"
                ),
                "ledger: night.ledger.jsonl",
            ],
            id="many jobs",
        ),
    ],
)
def test_a_plan_says_what_is_about_to_happen(more: dict[str, Any], lines: list[str]) -> None:
    assert list(plan_lines(a_plan(**more))) == lines


def test_a_question_names_the_runs_of_this_session() -> None:
    assert question_of(a_plan(rows=2_000, ready=2_000)) == "Start 2,000 runs?"
    assert question_of(a_plan(limit=1)) == "Start 1 run?"


def test_the_progress_of_a_plan_says_what_is_left() -> None:
    streams, clock = Streams(), Ticks()
    progress = Progress(streams.console, clock)
    progress(Planned(a_plan(rows=40, ready=40)))
    clock.now = 10.0

    for _ in range(10):
        progress(ended(RowState.STARTED))

    clock.now = 20.0
    progress(Pulse(in_flight=4, waiting=0, slots=16))

    assert streams.said[1].splitlines()[-2:] == [
        "1 of 40 rows ended (1 started), 0 sent again, 0 rows/s",
        "10 of 40 rows ended (10 started), 0 sent again, 1 rows/s, about 30 s left",
    ]


def test_an_error_is_told_once_and_counted() -> None:
    streams = Streams()
    progress = Progress(streams.console, Ticks())

    for number in range(2_000):
        progress(ended(RowState.REJECTED, status=400, error=f"no generation {number}"))

    streams.console.finish(a_summary(rows=2_000, rejected=2_000), progress.causes)

    assert streams.said[1].splitlines()[:3] == [
        "rejected: HTTP 400: no generation 0 (first: row 7, key k)",
        "2,000 rows rejected: HTTP 400: no generation 0 (first: row 7, key k)",
        "2,000 rows: 2,000 rejected; 0 attempts",
    ]


def test_more_causes_than_a_person_reads_are_counted_together() -> None:
    streams = Streams()
    progress = Progress(streams.console, Ticks())

    for letter in "abcdefghijkl":
        progress(ended(RowState.REJECTED, error=f"cause {letter}"))

    lines = list(cause_lines(progress.causes))
    assert (len(lines), lines[-1]) == (11, "2 rows for 2 other causes: see results")


def test_quiet_ends_with_what_must_not_be_missed() -> None:
    streams = Streams(quiet=True)
    progress = Progress(streams.console, Ticks())
    progress(Planned(a_plan()))
    progress(ended(RowState.REJECTED, error="no"))
    progress(TargetPaused("acme", "HTTP 503", 8.0))

    streams.console.finish(
        a_summary(rows=3, started=1, rejected=1, unknown=1, possible_duplicates=1), progress.causes
    )

    assert streams.said[1].splitlines()[:3] == [
        "1 unknown: each may have started a run, and none is sent again",
        "1 possible duplicate: started, and an earlier attempt was answered 5XX or not at all",
        "look the unknown rows up: deslaunch status 'the night.jsonl'",
    ]


def logged(streams: Streams) -> list[dict[str, Any]]:
    return [json.loads(line) for line in streams.said[1].splitlines()]


def test_a_log_is_one_object_a_line_with_its_time() -> None:
    streams = Streams(log=True)

    streams.console.say("news")
    streams.console.warn("careful")
    streams.console.error(LedgerWriteFailed("full", hint="free some space"), 7)

    assert streams.said[0] == ""
    assert logged(streams) == [
        {"utc": "2026-01-31T06:16:47.000Z", "event": "message", "message": "news"},
        {"utc": "2026-01-31T06:16:47.000Z", "event": "warning", "message": "careful"},
        {
            "utc": "2026-01-31T06:16:47.000Z",
            "event": "error",
            "kind": "LedgerWriteFailed",
            "message": "full",
            "hint": "free some space",
            "exitCode": 7,
        },
    ]


def test_a_log_tells_a_cause_once_and_the_counts_every_ten_seconds() -> None:
    streams, clock = Streams(log=True), Ticks()
    progress = Progress(streams.console, clock)

    for second in range(12):
        clock.now = float(second)
        progress(ended(RowState.FAILED, status=500, error="HTTP 500"))
        progress(Pulse(in_flight=1, waiting=0, slots=16))

    streams.console.finish(a_summary(rows=12, failed=12), progress.causes, ["--allow-http"])

    assert [entry["event"] for entry in logged(streams)] == ["cause", "progress", "summary"]
    assert logged(streams)[2]["causes"][0]["rows"] == 12
    assert logged(streams)[2]["next"] == [
        "try the failed rows again: deslaunch resume 'the night.jsonl' --allow-http"
    ]


def test_a_quiet_log_keeps_stops_and_the_summary() -> None:
    streams = Streams(log=True, quiet=True)
    progress = Progress(streams.console, Ticks())

    progress(ended(RowState.FAILED, error="no"))
    progress(TargetPaused("acme", "HTTP 503", 8.0))
    progress(Stopped(Stop(StopReason.INTERRUPTED, "interrupted")))
    streams.console.finish(a_summary(), progress.causes)

    assert [entry["event"] for entry in logged(streams)] == ["stop", "summary"]


def test_a_verbose_log_tells_of_every_row() -> None:
    streams = Streams(log=True, verbose=True)
    progress = Progress(streams.console, Ticks())

    progress(ended(RowState.STARTED, job_run_id="r"))
    progress(RetryPlanned("k", "default", 500, 1.0))

    assert [entry["event"] for entry in logged(streams)] == ["row", "retry"]


def test_verbose_tells_of_every_row() -> None:
    streams = Streams(verbose=True)
    progress = Progress(streams.console, Ticks())

    progress(ended(RowState.STARTED, job_run_id="r"))
    progress(ended(RowState.REJECTED, error="no"))
    progress(RetryPlanned("k", "default", 500, 1.0))

    assert streams.said[1].splitlines() == [
        "row 7 key k: started r",
        "row 7 key k: rejected no",
        "row k: HTTP 500, again in 1.0 s",
    ]


def test_a_console_writes_where_the_process_does(capfd: pytest.CaptureFixture[str]) -> None:
    Console().data_bytes([b"a\n", b"b\n"])
    Console().say("news")

    assert capfd.readouterr() == ("a\nb\n", "news\n")
    assert not Console(err=sys.stderr).is_terminal


@pytest.mark.parametrize(
    ("shared", "said"),
    [
        pytest.param((), [], id="none"),
        pytest.param(
            (("r", ("a", "b")),), ["1 jobRunId stands at more than one row: a, b"], id="one"
        ),
        pytest.param(
            (("r", ("a", "b")), ("s", ("c", "d"))),
            ["2 jobRunIds stand at more than one row: a, b, c, d"],
            id="two",
        ),
    ],
)
@pytest.mark.parametrize("quiet", [False, True])
def test_runs_that_rows_share_are_told(shared: Any, said: list[str], quiet: bool) -> None:
    streams = Streams(quiet=quiet)

    streams.console.summary(a_summary(rows=4, started=4, shared_runs=shared))

    assert [line for line in streams.said[1].splitlines() if "jobRunId" in line] == said


def test_many_rows_that_share_a_run_are_cut_short() -> None:
    keys = tuple(f"key-{number}" for number in range(30))

    (line,) = list(summary_lines(a_summary(shared_runs=(("r", keys),))))[1:]

    assert line.endswith("key-18, key-19 …")


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("kind", "options", "is_block"),
    [
        pytest.param("xterm", {}, True, id="terminal"),
        pytest.param("dumb", {}, False, id="dumb"),
        pytest.param("unknown", {}, False, id="unknown"),
        pytest.param("xterm", {"quiet": True}, False, id="quiet"),
        pytest.param("xterm", {"verbose": True}, False, id="verbose"),
        pytest.param("xterm", {"log": True}, False, id="log"),
    ],
)
def test_a_block_is_for_a_terminal_that_can_redraw(
    monkeypatch: pytest.MonkeyPatch, kind: str, options: dict[str, Any], is_block: bool
) -> None:
    monkeypatch.setenv("TERM", kind)

    assert Console(err=_Terminal(), **options).has_block is is_block
    assert not Console(err=io.StringIO()).has_block


def test_a_question_needs_a_terminal_at_both_ends() -> None:
    seen, unseen = _Terminal(), io.StringIO()

    assert [
        Console(err=err, source=source).can_ask
        for err in (seen, unseen)
        for source in (seen, unseen)
    ] == [True, False, False, False]


class _GoneTerminal(io.StringIO):
    """What writing to a terminal is like once its window was closed."""

    def __init__(self, number: int, file: int) -> None:
        super().__init__()
        self._number = number
        self._file = file

    def write(self, text: str) -> int:
        raise OSError(self._number, "gone")

    def fileno(self) -> int:
        return self._file


def test_a_terminal_that_has_gone_ends_nothing(tmp_path: Path) -> None:
    with (tmp_path / "terminal").open("wb") as file:
        console = Console(err=_GoneTerminal(errno.EIO, file.fileno()))

        console.insist("careful")

        assert os.fstat(file.fileno()).st_rdev == Path(os.devnull).stat().st_rdev


def test_any_other_failure_of_a_stream_is_told(tmp_path: Path) -> None:
    console = Console(err=_GoneTerminal(errno.ENOSPC, -1))

    with pytest.raises(OSError, match="gone"):
        console.insist("careful")


# A watch.


def run_ended(*, finished: bool = True, success: bool = True, text: str | None = None) -> RunEnded:
    return RunEnded(RunStatus("j", "r", finished, success, text, key="k"))


def a_watch(**counts: Any) -> WatchSummary:
    zero = dict.fromkeys(("succeeded", "failed", "untold", "unfinished"), 0)
    runs = sum(value for name, value in counts.items() if name in zero)
    return WatchSummary(runs, **(zero | {"batch": a_summary()} | counts))


def test_a_watch_tells_how_it_stands_every_ten_seconds_although_nothing_happens() -> None:
    streams, clock = Streams(), Ticks()

    with WatchProgress(streams.console, clock) as progress:
        for second in range(25):
            clock.now = float(second)
            progress.tick()

            if second in {3, 4, 5}:
                progress(run_ended(finished=second > 3, success=second > 4))

    assert streams.said[1].splitlines() == [
        "3 runs ended (1 failed, 1 succeeded, 1 untold), watched for 10 s",
        "3 runs ended (1 failed, 1 succeeded, 1 untold), watched for 20 s",
    ]


def test_a_watch_tells_why_it_waits() -> None:
    streams = Streams()
    progress = WatchProgress(streams.console, Ticks())

    progress(TargetPaused("acme", "HTTP 503", 8.0))
    progress(Stopped(Stop(StopReason.INTERRUPTED, "interrupted")))

    assert streams.said[1].splitlines() == [
        "target acme: all runs wait 8.0 s: HTTP 503",
        "stopped: interrupted",
    ]


def test_a_verbose_watch_tells_of_every_run() -> None:
    streams = Streams(verbose=True)
    progress = WatchProgress(streams.console, Ticks())

    progress(run_ended())
    progress(run_ended(success=False, text="no\n sales" + "x" * 300))

    assert streams.said[1].splitlines() == [
        "key k: run r succeeded",
        f"key k: run r failed: no sales{'x' * 191}…",
    ]


@pytest.mark.parametrize(
    ("summary", "lines"),
    [
        pytest.param(a_watch(), ["0 runs: nothing to watch"], id="none"),
        pytest.param(
            a_watch(
                succeeded=1000,
                failed=3,
                unfinished=2,
                failures=(("no\nsales", 2, "a"), ("", 1, "b")),
            ),
            [
                "1,005 runs: 1,000 succeeded, 3 failed, 2 not finished",
                "  2 runs failed: no sales (key a)",
                "  1 run failed: DES gave no reason (key b)",
            ],
            id="failed",
        ),
        pytest.param(
            a_watch(untold=1),
            [
                "1 run: 1 untold",
                "1 untold: DES refuses to tell of them; the next watch asks again",
            ],
            id="untold",
        ),
    ],
)
def test_what_a_watch_found(summary: WatchSummary, lines: list[str]) -> None:
    assert list(watch_lines(summary)) == lines


def test_a_watch_names_the_next_commands() -> None:
    streams = Streams()
    found = a_watch(unfinished=1, failed=1, batch=a_summary(pending=1))

    streams.console.next_of_watch(found, ["--base-url", "https://d", "--watch"])

    assert streams.said[1].splitlines() == [
        "go on watching: deslaunch watch 'the night.jsonl' --base-url https://d",
        "see which runs failed, and why: deslaunch results 'the night.jsonl' --run failed",
        "go on: deslaunch resume 'the night.jsonl' --base-url https://d --watch",
    ]
