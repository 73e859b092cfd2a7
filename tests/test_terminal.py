"""What a person reads: sentences, progress, questions, and streams that fail."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pty
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGTERM
from typing import TYPE_CHECKING, Any

import pytest

from deslaunch.__main__ import take_signals
from deslaunch.cli import render
from deslaunch.cli.options import Given, kept_words
from deslaunch.cli.render import Progress, cause_lines, count_cause
from deslaunch.cli.terminal import (
    Interrupts,
    Printer,
    encode_json,
    heeded_signals,
    run_work,
    signal_of,
)
from deslaunch.errors import ConfigurationError, Interrupted
from deslaunch.events import (
    Counts,
    Draining,
    Event,
    Noted,
    Plan,
    Planned,
    PlannedJob,
    ProblemGroup,
    Pulse,
    RetryPlanned,
    RowEnded,
    RunEnded,
    Stop,
    StopReason,
    Summary,
    TargetPaused,
    TargetStopped,
    TokenRenewed,
    WatchSummary,
)
from deslaunch.model import (
    Causes,
    Outcome,
    Problem,
    Result,
    RowState,
    RunStatus,
    parameters_text,
    place_word,
    printed,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from blockbuster import BlockBuster

JOB = "43f87799-62c6-4001-92f9-6b3df816a6d6"
LEDGER = "night.ledger.db"


def outcome(number: int, state: RowState = RowState.STARTED, **more: Any) -> Outcome:
    known = (number, 1, f"row-{number}", "default", JOB)
    return Outcome(*known, Result(state.value), state, **more)


def summary(ledger: str = LEDGER, **counts: Any) -> Summary:
    more = {name: counts.pop(name) for name in ("stops", "unrecorded", "targets") if name in counts}
    return Summary(Counts(**counts), ledger, **more)


class Heard:
    """A printer's streams, and what came on each."""

    def __init__(self, **options: Any) -> None:
        self._out, self._err = io.StringIO(), io.StringIO()
        self.printer = Printer(out=self._out, err=self._err, source=io.StringIO(), **options)

    @property
    def out(self) -> list[str]:
        return self._out.getvalue().splitlines()

    @property
    def err(self) -> list[str]:
        return self._err.getvalue().splitlines()


# What a batch is.


@pytest.mark.parametrize(
    ("counts", "lines"),
    [
        pytest.param({"started": 1, "attempts": 1}, ["1 row: 1 started; 1 attempt"], id="one"),
        pytest.param({}, ["0 rows: no rows; 0 attempts"], id="none"),
        pytest.param(
            {"started": 1_200, "unknown": 2, "in_flight": 3, "withdrawn": 4, "attempts": 1_300},
            [
                "1,209 rows: 1,200 started, 2 unknown, 4 withdrawn, 3 in flight; 1,300 attempts",
                "2 unknown: each may have started a run, and none is sent again",
            ],
            id="many",
        ),
        pytest.param(
            {"started": 2, "possible_duplicates": 1, "attempts": 4},
            [
                "2 rows: 2 started; 4 attempts",
                "1 possible duplicate: started, and another attempt may have started a run too",
            ],
            id="duplicate",
        ),
        pytest.param(
            {
                "started": 2,
                "attempts": 2,
                "targets": {"acme": Counts(started=1), "bistro": Counts(started=1)},
            },
            [
                "2 rows: 2 started; 2 attempts",
                "  target acme: 1 started",
                "  target bistro: 1 started",
            ],
            id="targets",
        ),
    ],
)
def test_how_a_batch_stands(counts: dict[str, Any], lines: list[str]) -> None:
    assert list(render.summary_lines(summary(**counts))) == lines


STOP = Stop(StopReason.CREDENTIALS, "the token was refused", "acme")
RESUME = f"deslaunch resume {LEDGER}"
RESULTS = f"deslaunch results {LEDGER}"
STATUS = f"deslaunch status {LEDGER} --unknown -o night.findings.csv"
GREP = """grep '"possibleDuplicate":true'"""
FIXES = "--with-manifest -o night.rejected.csv"


@pytest.mark.parametrize(
    ("counts", "commands"),
    [
        pytest.param({"started": 5}, [], id="done"),
        pytest.param(
            {"pending": 1, "failed": 1}, [f"send the remaining rows: {RESUME}"], id="pending"
        ),
        pytest.param(
            {"pending": 1, "stops": (STOP,)},
            [f"send the remaining rows with a new token: {RESUME}"],
            id="token",
        ),
        pytest.param({"failed": 1}, [f"try the failed rows again: {RESUME}"], id="failed"),
        pytest.param(
            {"unknown": 1},
            [
                f"see the unknown rows: deslaunch status {LEDGER}",
                f"list them, look each one up in DES and fill in: {STATUS}",
                f"then record it: deslaunch resolve {LEDGER} --from night.findings.csv",
            ],
            id="unknown",
        ),
        pytest.param(
            {"started": 1, "possible_duplicates": 1},
            [
                f"see which rows may have run twice: {RESULTS} --format jsonl | {GREP}",
            ],
            id="duplicate",
        ),
        pytest.param(
            {"rejected": 1},
            [
                f"see the rejected rows, and fix them there: {RESULTS} --state rejected {FIXES}",
                f"then send them: {RESUME} --corrections night.rejected.csv",
            ],
            id="rejected",
        ),
    ],
)
def test_every_end_names_the_exact_commands(counts: dict[str, Any], commands: list[str]) -> None:
    assert list(render.command_lines(render.next_commands(summary(**counts)))) == commands


def test_printed_commands_hold_what_the_first_one_was_given() -> None:
    values = {"config": Path("/t.toml"), "allow_http": True, "base_url": "http://des"}
    words = Given(values, frozenset(values)).repeated

    ((_, command),) = render.next_commands(summary(pending=1), words)

    assert command == f"{RESUME} --config /t.toml --base-url http://des --allow-http"


@pytest.mark.parametrize("name", ["a b.toml", "no-utf-8\udcff.toml"])
def test_printed_commands_hold_what_the_ledger_keeps(name: str, tmp_path: Path) -> None:
    values = {"config": tmp_path / name, "schema": tmp_path / f"{name}.json"}
    kept = json.loads(json.dumps(Given(values, frozenset(values)).kept()))

    assert kept_words(kept) == [
        *("--config", str(tmp_path / name)),
        *("--schema", str(tmp_path / f"{name}.json")),
    ]
    assert kept_words(kept | {"host": "elsewhere"}) == ["--schema", str(tmp_path / f"{name}.json")]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("night.ledger.db", id="plain"),
        pytest.param("a b'c.db", id="quote"),
        pytest.param("-x.db", id="dash"),
        pytest.param("night\udcff.db", id="no-utf-8"),
        pytest.param("esc\x1b[31m.db", id="control"),
        pytest.param("café\u202e.db", id="direction"),
        pytest.param("$(reboot)`x`\\.db", id="expansion"),
    ],
)
def test_a_printed_name_is_the_file_that_it_names(name: str) -> None:
    line = printed("resume", place_word(name))
    argv = ["bash", "-c", f'deslaunch() {{ printf "%s\\0" "$@"; }}; {line}']

    words = subprocess.run(argv, capture_output=True, check=True).stdout.split(b"\0")

    assert line.isprintable()
    assert words[1].removeprefix(b"./") == os.fsencode(name)
    assert not words[1].startswith(b"-")


def test_the_runs_of_a_batch() -> None:
    runs = WatchSummary(1, 2, 1, 1, summary(), failures=(("no\nsales", 2, "k"), ("", 1, "m")))

    assert list(render.watch_lines(runs)) == [
        "5 runs: 1 succeeded, 2 failed, 1 untold, 1 not finished",
        "  2 runs failed: no sales (key k)",
        "  1 run failed: DES gave no reason (key m)",
        "1 untold: DES refuses to tell of them; the next watch asks again",
    ]
    repeated = ["--config", "t", "--schema", "jobs.json", "--allow-http"]
    assert [command for _, command in render.watch_commands(runs, repeated)] == [
        f"deslaunch watch {LEDGER} --config t --allow-http",  # it takes no --schema
        f"deslaunch results {LEDGER} --run failed",
        f"deslaunch resume {LEDGER} --retry-failed-runs {' '.join(repeated)}",
    ]


def test_pending_rows_hide_no_run_that_failed() -> None:
    runs = WatchSummary(1, 2, 0, 0, summary(started=3, pending=4))

    assert runs.exit_code == 5
    assert [*render.left_lines(runs)] == ["4 rows not sent yet (pending), and 2 runs failed"]
    assert [*render.left_lines(runs._replace(failed=0))] == ["4 rows not sent yet (pending)"]
    assert not [*render.left_lines(runs._replace(is_trial=True))]


def plan(**more: Any) -> Plan:
    jobs = (PlannedJob("default", JOB, "POS usage", 3), PlannedJob("acme", "j", "", 1))
    settled: dict[str, Any] = {
        "manifest": "night.csv",
        "ledger": LEDGER,
        "resumes": False,
        "rows": 4,
        "ready": 4,
        "jobs": jobs,
        "states": {RowState.PENDING: 4},
        "concurrency": 16,
    }
    return Plan(**settled | more)


@pytest.mark.parametrize(
    ("more", "lines"),
    [
        pytest.param(
            {},
            [
                "night.csv: 4 rows to start",
                f"  3 rows: POS usage ({JOB})",
                "  1 row: target acme, j",
                "pace: up to 16 concurrent starts; duration unknown until the first responses",
                f"ledger: {LEDGER}",
            ],
            id="new",
        ),
        pytest.param(
            {
                "jobs": (),
                "resumes": True,
                "ready": 2,
                "limit": 1,
                "rate": 0.5,
                "concurrency": 1,
                "corrections": (1, 0),
                "states": {RowState.STARTED: 2, RowState.PENDING: 2, RowState.FAILED: 0},
            },
            [
                "night.csv: 2 of 4 rows to start",
                "corrections: 1 row replaced, 0 added",
                "so far: 2 started, 2 pending",
                "limit: the first 1; the others stay pending",
                "pace: up to 1 concurrent start, 0.5 a second: 2 s or longer",
                f"ledger: {LEDGER}",
            ],
            id="resume",
        ),
        pytest.param(
            {
                "jobs": (),
                "resumes": True,
                "ready": 1,
                "states": {RowState.PENDING: 1, RowState.SENDING: 3},
            },
            [
                "night.csv: 1 of 4 rows to start",
                "so far: 1 pending, 3 in flight",
                "pace: up to 16 concurrent starts; duration unknown until the first responses",
                f"ledger: {LEDGER}",
            ],
            id="beside-others",
        ),
        pytest.param(
            {"jobs": (), "ready": 0, "states": {RowState.INVALID: 4}},
            ["night.csv: 0 of 4 rows to start", "skipped: 4 invalid rows"],
            id="nothing",
        ),
        pytest.param(
            {"jobs": tuple(PlannedJob("default", f"j{n}", "", 2) for n in range(12))},
            [
                "night.csv: 4 rows to start",
                *(f"  2 rows: j{n}" for n in range(10)),
                "  … and 4 rows of 2 jobs more",
                "pace: up to 16 concurrent starts; duration unknown until the first responses",
                f"ledger: {LEDGER}",
            ],
            id="many-jobs",
        ),
    ],
)
def test_a_plan_says_what_is_about_to_happen(more: dict[str, Any], lines: list[str]) -> None:
    assert list(render.plan_lines(plan(**more))) == lines


def problem(line: int, message: str = "is wrong", column: str = "a") -> Problem:
    return Problem("m.csv", line, line - 1, column, "", "", message)


@pytest.mark.parametrize(
    ("problems", "groups", "count", "lines"),
    [
        pytest.param(
            [problem(2), problem(3)],
            [ProblemGroup(problem(2), 2)],
            2,
            ["m.csv:2, column a: is wrong", "m.csv:3, column a: is wrong"],
            id="of-a-few-each",
        ),
        pytest.param(
            [problem(n) for n in range(2, 22)] + [problem(4, "is odd")],
            [ProblemGroup(problem(2), 20), ProblemGroup(problem(4, "is odd"))],
            21,
            [
                "m.csv:2, column a (20 rows): is wrong",
                "m.csv:4, column a: is odd",
                "see the first 21 problems one by one: deslaunch check with --json",
            ],
            id="of-many-once",
        ),
        pytest.param(
            [problem(n) for n in range(2, 1_002)],
            [ProblemGroup(problem(2), 2_000), ProblemGroup(problem(1_500, "is late"))],
            2_003,
            [
                "m.csv:2, column a (2,000 rows): is wrong",
                "m.csv:1500, column a: is late",
                "… and 2 problems more",
                "see the first 1,000 problems one by one: deslaunch check with --json",
            ],
            id="beyond-what-is-listed",
        ),
    ],
)
def test_a_problem_that_many_rows_have_is_told_once(
    problems: list[Problem], groups: list[ProblemGroup], count: int, lines: list[str]
) -> None:
    assert list(render.problem_lines(problems, groups, count)) == lines


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        pytest.param(0.2, "1 s", id="soon"),
        pytest.param(30.7, "31 s", id="seconds"),
        pytest.param(300, "5 min", id="minutes"),
        pytest.param(7_200, "2 h", id="hours"),
        pytest.param(11_100, "3 h 5 min", id="hours-and-minutes"),
    ],
)
def test_a_duration_reads_as_a_person_says_it(seconds: float, told: str) -> None:
    assert render.duration(seconds) == told


def test_parameters_read_like_a_sentence() -> None:
    sent = {"A": {"type": 2, "valueStringEncoded": "5"}, "B": {"useAutoValue": True}, "C": None}

    assert parameters_text(sent | {"D": "x", "E": {"auto": True}}) == (
        "A=5, B=auto, C=null, D=x, E=auto"
    )
    assert parameters_text({}) == "-"


# Causes, and what a session adds up to.


def test_errors_that_differ_in_numbers_and_ids_are_one_cause() -> None:
    causes: Causes = {}
    texts = ["no run 17 of 2026-01-31", f"no run 18 of 2026-02-01T10:00:00Z {JOB}"]
    rejected = [outcome(n, RowState.REJECTED, status=400, error=t) for n, t in enumerate(texts, 1)]

    first = count_cause(causes, rejected[0])

    assert str(first) == "rejected: HTTP 400: no run 17 of 2026-01-31 (first: row 1, key row-1)"
    again = outcome(3, RowState.REJECTED, status=400, error="no run 19 of 3")
    assert count_cause(causes, again) is None
    assert count_cause(causes, rejected[1]) is not None  # it says more
    assert count_cause(causes, outcome(4)) is None
    lines = [line.split(":")[0] for line in cause_lines(causes)]
    assert lines == ["2 rows rejected", "1 row rejected"]


def test_more_causes_than_a_person_reads_are_counted_together() -> None:
    causes: Causes = {}

    for number in range(250):
        name = chr(ord("a") + number % 26) * (1 + number // 26)
        count_cause(causes, outcome(number, RowState.REJECTED, error=name))

    lines = list(cause_lines(causes))

    assert lines[0] == "50 rows rejected: other causes (first: row 200, key row-200)"
    assert (len(lines), lines[-1]) == (11, "191 rows for 191 other causes: see results")


class Session:
    """What a session tells of itself, at the times that a test says."""

    def __init__(self) -> None:
        self.now = 0.0
        self.progress = Progress(Heard().printer, clock=lambda: self.now)

    def tell(self, now: float, *told: Event) -> None:
        self.now = now

        for event in told:
            self.progress(event)

    def end(self, now: float, rows: int) -> None:
        """End rows, and a second."""
        self.tell(now, *(RowEnded(outcome(number + 1)) for number in range(rows)), Pulse(4, 16))


def test_the_rate_is_that_of_the_last_half_minute() -> None:
    session = Session()
    session.tell(100.0, Planned(plan(rows=1_300, ready=1_300)))  # a person thought about it
    session.end(101.0, 100)
    early = session.progress.rate

    for second in range(102, 162):
        session.end(float(second), 10)

    assert (early, session.progress.rate) == (100.0, 10.0)
    assert session.progress.seconds_left(161.0) == 60.0
    assert Session().progress.seconds_left(1.0) is None


def test_how_a_session_is_getting_on() -> None:
    session = Session()
    session.tell(0.0, Planned(plan(rows=8, ready=8)))
    session.end(1.0, 3)
    session.tell(
        1.0,
        RowEnded(outcome(9, RowState.UNKNOWN)),
        RetryPlanned(outcome(5, RowState.FAILED), 2.0),
        TargetPaused("acme", "HTTP 429", 30.0),
    )

    lines = [
        "4 of 8 rows ended, 50%",
        "3 started, 1 unknown, 1 retried",
        "4 in flight, 16 slots now, 3 rows/s, about 30 s left",
    ]
    progress = session.progress
    assert [*progress.lines(2.0)] == [*lines, "target acme: all rows wait 29 s more: HTTP 429"]
    assert [*progress.lines(31.1)][:2] == lines[:2]
    assert len([*progress.lines(31.1)]) == 3  # the pause is over


@pytest.mark.parametrize(
    ("rows", "seconds", "told"),
    [(1, 10, "0.1"), (1, 3, "0.33"), (1, 2, "0.5"), (32, 10, "3.2"), (996, 100, "10")],
)
def test_a_low_rate_is_told_too(rows: int, seconds: int, told: str) -> None:
    session = Session()
    session.tell(0.0, Planned(plan(rows=999, ready=999)))
    session.end(float(seconds), rows)

    *_, pace = session.progress.lines(float(seconds))
    assert f", {told} rows/s, " in pace


def test_the_time_that_a_drain_has_left_is_told() -> None:
    session = Session()
    session.tell(1.0, Pulse(4, 0, drain=12.0))

    *_, told = session.progress.lines(1.0)
    assert told.endswith("0 rows/s, 12 s left for those in flight")


def test_a_pause_that_a_person_wanted_is_told_as_one() -> None:
    session = Session()
    session.tell(0.0, Planned(plan(rows=9, ready=9)))
    session.end(1.0, 4)
    session.tell(2.0, Pulse(1, 0, is_paused=True))

    *_, told = session.progress.lines(2.0)
    assert told == "1 in flight, paused by deslaunch control, 2 rows/s"


EVENTS: list[Event] = [
    Planned(plan(warnings=("night.csv has changed",))),
    Noted("JobRunParameters are 3 h old"),
    TokenRenewed("acme"),
    RowEnded(outcome(1)),
    RowEnded(outcome(2, RowState.REJECTED, status=400, error="no")),
    RetryPlanned(outcome(3, RowState.FAILED, status=503), 1.5),
    TargetPaused("acme", "HTTP 429", 30.0),
    Draining(2, 60.0),
    Draining(0, 60.0),
    RunEnded(RunStatus(JOB, "run-1", finished=True, success=False, status="no\nsales", key="k")),
    TargetStopped(Stop(StopReason.THROTTLED, "too long", "acme", resume_after=90.0)),
]
STOPPED = "target acme stopped: too long; resume after 90 s"


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        pytest.param({"quiet": True}, ["warning: night.csv has changed", STOPPED], id="quiet"),
        pytest.param(
            {},
            [
                *render.plan_lines(plan()),
                "warning: night.csv has changed",
                "JobRunParameters are 3 h old",
                "target acme: the token was renewed",
                "rejected: HTTP 400: no (first: row 2, key row-2)",
                "target acme: all rows wait 30.0 s: HTTP 429",
                "waiting up to 60 s for the responses to 2 starts;",
                "  a second signal ends the wait and leaves them unknown",
                STOPPED,
            ],
            id="plain",
        ),
        pytest.param(
            {"verbose": True},
            [
                *render.plan_lines(plan()),
                "warning: night.csv has changed",
                "JobRunParameters are 3 h old",
                "target acme: the token was renewed",
                "row 1 key row-1: started ",
                "row 2 key row-2: rejected no",
                "row 3 key row-3: HTTP 503, retry in 1.5 s",
                "target acme: all rows wait 30.0 s: HTTP 429",
                "waiting up to 60 s for the responses to 2 starts;",
                "  a second signal ends the wait and leaves them unknown",
                "key k: run run-1 failed: no sales",
                STOPPED,
            ],
            id="verbose",
        ),
    ],
)
def test_what_is_told_while_it_goes_on(options: dict[str, bool], lines: list[str]) -> None:
    heard = Heard(**options)
    progress = Progress(heard.printer, clock=lambda: 0.0)

    for event in EVENTS:
        progress(event)

    assert heard.err == lines
    assert heard.out == []


def test_without_a_terminal_progress_is_a_line_every_ten_seconds() -> None:
    now = iter(range(0, 100, 4))
    heard = Heard()
    progress = Progress(heard.printer, "run", 3, clock=lambda: float(next(now)))

    for _ in range(5):
        progress(Pulse(1, 16))

    assert heard.err == ["0 of 3 runs ended, 0%, 1 in flight, 16 slots now, 0 runs/s"]


# Streams.


def test_data_goes_to_stdout_and_all_else_to_stderr() -> None:
    heard = Heard()

    heard.printer.data("data")
    heard.printer.json({"a": 1})
    heard.printer.say("said")
    heard.printer.warn("warned")

    assert (heard.out, heard.err) == (["data", '{"a":1}'], ["said", "warning: warned"])


def test_what_a_terminal_would_act_on_comes_as_an_escape() -> None:
    heard = Heard()

    heard.printer.insist("a\x1b[31m\udcffb\nnext \u202e line")
    heard.printer.data("x\x07")

    assert heard.err == [r"a\x1b[31m\xffb", r"next \u202e line"]
    assert heard.out == [r"x\x07"]


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        pytest.param("utf-8", r'{"a":"é\\xff","b":[1,null,"\u001b"]}', id="utf-8"),
        pytest.param("ascii", r'{"a":"\u00e9\\xff","b":[1,null,"\u001b"]}', id="ascii"),
        pytest.param("latin-1", r'{"a":"\u00e9\\xff","b":[1,null,"\u001b"]}', id="latin-1"),
        pytest.param(None, r'{"a":"é\\xff","b":[1,null,"\u001b"]}', id="none"),
    ],
)
def test_json_is_ascii_where_it_must_be(encoding: str | None, text: str) -> None:
    told = encode_json({"a": "é\udcff", "b": (1, None, "\x1b")}, encoding=encoding)

    assert told == text
    assert json.loads(told)["a"] == "é\\xff"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_stream_that_is_not_utf_8_takes_every_text(encoding: str) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    printer = Printer(out=out, err=out)

    printer.insist("Café … → \udcff")

    assert rb"\u2026 \u2192 \xff" in out.buffer.getvalue()


class Full(io.StringIO):
    """A stream on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


class Closed(io.StringIO):
    """A pipe that nobody reads."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize("stream", [Full, Closed])
def test_a_stderr_that_fails_ends_nothing(stream: Callable[[], io.StringIO]) -> None:
    printer = Printer(out=io.StringIO(), err=stream())

    printer.insist("one")
    Progress(printer)(Noted("two"))


def test_a_stdout_that_fails_is_told() -> None:
    err = io.StringIO()

    with pytest.raises(ConfigurationError, match="stdout can't be written: No space left"):
        Printer(out=Full(), err=err).data("x")

    with pytest.raises(BrokenPipeError):
        Printer(out=Closed(), err=err).json({})


@pytest.mark.parametrize("stream", [Full, Closed])
def test_what_is_on_disk_already_is_no_failure(stream: Callable[[], io.StringIO]) -> None:
    err = io.StringIO()

    Printer(out=stream(), err=err).outcome_json({"rows": 1})

    assert err.getvalue().startswith("warning: the JSON object was not printed: ")


def test_streams_that_are_closed_take_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdout", "stderr", "stdin"):
        shut = io.StringIO()
        shut.close()
        monkeypatch.setattr(f"sys.{name}", shut)

    printer = Printer()

    printer.insist("nobody hears it")
    assert not printer.has_block
    assert not printer.can_ask()


# A terminal, and a person at it.


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, Any]]:
    """Give the keyboard's end of a terminal, and a stream at the other."""
    monkeypatch.setenv("TERM", "xterm")
    keyboard, screen = pty.openpty()

    with os.fdopen(screen, "r+b", buffering=0) as raw:
        yield keyboard, io.TextIOWrapper(raw, encoding="utf-8", write_through=True)

    os.close(keyboard)


def read_to(keyboard: int, end: str) -> str:
    """Return what the terminal shows, as it comes, up to some text."""
    shown = ""

    while end not in shown:
        shown += os.read(keyboard, 1_000).decode()

    return shown


@pytest.mark.parametrize(
    ("typed", "is_yes"),
    [
        pytest.param("y\n", True, id="y"),
        pytest.param(" YES \n", True, id="yes"),
        pytest.param("n\n", False, id="no"),
        pytest.param("\n", False, id="nothing"),
        pytest.param("yess\n", False, id="slip"),
        pytest.param("\x04", False, id="end"),
    ],
)
def test_only_a_yes_is_one(
    typed: str, is_yes: bool, terminal: tuple[int, Any], no_blocking_calls: BlockBuster
) -> None:
    no_blocking_calls.deactivate()  # what is typed is there by the time that it is read
    keyboard, stream = terminal
    printer = Printer(out=stream, err=stream, source=stream, quiet=True)

    async def work() -> int:
        question = asyncio.ensure_future(printer.ask("Start 3 runs?"))
        await asyncio.sleep(0)
        os.write(keyboard, typed.encode())
        return int(await question)

    assert printer.can_ask()
    assert run_work(work(), Interrupts()) == is_yes
    assert "Start 3 runs? [y/N] " in read_to(keyboard, "N] ")


def test_nobody_is_asked_in_the_background(
    terminal: tuple[int, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, stream = terminal
    monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp() + 1)

    with pytest.raises(ConfigurationError, match="background") as caught:
        Printer(out=stream, err=stream, source=stream).can_ask()

    assert "--yes" in caught.value.hint


@pytest.mark.parametrize(
    ("options", "kind", "has_block"),
    [
        pytest.param({}, "xterm", True, id="terminal"),
        pytest.param({}, "dumb", False, id="dumb"),
        pytest.param({"quiet": True}, "xterm", False, id="quiet"),
        pytest.param({"verbose": True}, "xterm", False, id="verbose"),
    ],
)
def test_who_sees_a_block(
    options: dict[str, Any],
    kind: str,
    has_block: bool,
    terminal: tuple[int, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", kind)

    assert Printer(out=terminal[1], err=terminal[1], **options).has_block is has_block


@pytest.mark.parametrize("no_color", [pytest.param("", id="colours"), pytest.param("1", id="none")])
def test_a_block_is_redrawn_and_what_is_told_stands_above(
    no_color: str, terminal: tuple[int, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    keyboard, stream = terminal
    monkeypatch.setenv("NO_COLOR", no_color)
    printer = Printer(out=stream, err=stream)

    printer.show("1 of 2 rows\n1 started [b]\x1b[2J[/b]", 1, 2)
    printer.insist("told \x1b[2J above")
    printer.show("2 of 2 rows\n2 started", 2, 2)
    printer.end_block()
    printer.insist("the end")
    shown = read_to(keyboard, "the end")

    assert "told \\x1b[2J above" in shown
    assert shown.rindex("2 started") > shown.index("above")
    assert r"1 started [b]\x1b[2J[/b]" in shown  # what comes from elsewhere changes nothing
    assert ("\x1b[36m" in shown) is (not no_color)


def test_a_terminal_that_has_gone_ends_nothing(terminal: tuple[int, Any]) -> None:
    keyboard, stream = terminal
    printer = Printer(out=stream, err=stream)
    printer.show("1 of 2 rows", 1, 2)
    os.close(os.dup(keyboard))
    os.dup2(os.open(os.devnull, os.O_RDONLY), keyboard)  # the window was closed

    printer.show("2 of 2 rows", 2, 2)
    printer.insist("nobody sees it")
    printer.end_block()


# Signals.


class Batch:
    def __init__(self) -> None:
        self.told: list[Any] = []

    def drain(self, signum: int = 0) -> None:
        self.told.append(signum)

    def abandon(self) -> None:
        self.told.append("abandon")


def test_the_first_signal_drains_and_the_second_abandons() -> None:
    batch, interrupts = Batch(), Interrupts()

    async def work() -> int:
        interrupts.batch = batch  # type: ignore[assignment]  # all that a signal does to one
        interrupts(15)
        interrupts(2)
        return 7

    assert run_work(work(), interrupts) == 7
    assert batch.told == [15, "abandon"]


def test_a_signal_before_there_is_a_batch_ends_the_command() -> None:
    interrupts = Interrupts()

    async def work() -> int:
        interrupts(15)
        await asyncio.sleep(60)
        return 0

    with pytest.raises(Interrupted) as caught:
        run_work(work(), interrupts)

    assert caught.value.signum == 15


@pytest.fixture
def handlers() -> Iterator[None]:
    """Give the signals back to whoever had them."""
    before = {number: signal.getsignal(number) for number in (SIGINT, SIGTERM, SIGHUP)}
    yield

    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_signals_are_taken_before_there_is_a_loop() -> None:
    signal.signal(SIGHUP, signal.SIG_IGN)
    take_signals()

    with pytest.raises(KeyboardInterrupt) as caught:
        os.kill(os.getpid(), SIGTERM)

    os.kill(os.getpid(), SIGHUP)  # nohup had it ignored
    assert (signal_of(caught.value), signal_of(None)) == (SIGTERM, SIGINT)
    assert heeded_signals() == [SIGINT, SIGTERM]


@pytest.mark.parametrize("module", ["deslaunch.cli.terminal", "click"])
def test_a_signal_during_the_imports_has_its_exit_code(module: str) -> None:
    code = (
        "import os, signal, sys, threading\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == '{module}':\n"
        "            sys.meta_path.remove(self)\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from deslaunch.__main__ import run\n"
        "run()\n"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 143


def test_shell_words_are_read_back() -> None:
    words = ["a b", "c'd", "$e"]

    assert shlex.split(printed("resume", *words)) == ["deslaunch", "resume", *words]
