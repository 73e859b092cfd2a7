"""Every sentence that a person reads: pure functions, values in, lines out.

What comes from elsewhere (names, keys, what DES says) is escaped where it is printed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from deslaunch.cli.options import place_word, printed
from deslaunch.events import ProblemGroup, StopReason
from deslaunch.model import DEFAULT_TARGET, count

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from deslaunch.events import Counts, Plan, Stop, Summary, WatchSummary
    from deslaunch.ledger.reading import LogEntry, UnknownRow
    from deslaunch.model import Job, Problem

SHOWN_PROBLEMS: Final = 100
TOLD_EACH: Final = 5
"""Rows with the same problem up to which it is told of each."""

LISTED_PROBLEMS: Final = 1_000
"""Problems that ``check --json`` lists."""

SHOWN_JOBS: Final = 10
SHOWN_CAUSES: Final = 10
SHOWN_TEXT: Final = 200
NO_ERROR: Final = "its launcher ended before a response came"


# What a batch, a session and a watch are.


_ENDED: Final = ("started", "failed", "rejected", "unknown", "invalid", "withdrawn")
_STATES: Final = (*_ENDED, "pending", "in_flight")
_RUNS: Final = ("succeeded", "failed", "untold", "unfinished")
_WORDS: Final = {"in_flight": "in flight", "unfinished": "not finished"}


def _counts_text(counted: Counts | WatchSummary, names: Iterable[str], nothing: str) -> str:
    """Return the numbers that are not 0, in one line, each with its name."""
    numbers = ((getattr(counted, name), _WORDS.get(name, name)) for name in names)
    return ", ".join(f"{number:,} {word}" for number, word in numbers if number) or nothing


def summary_lines(summary: Summary) -> Iterator[str]:
    """Yield how a batch stands, its targets where there are several."""
    counts = summary.counts
    told = _counts_text(counts, _STATES, "no rows")
    yield f"{count(counts.rows, 'row')}: {told}; {count(counts.attempts, 'attempt')}"

    if len(summary.targets) > 1:
        for name, own in summary.targets.items():
            yield f"  target {name}: {_counts_text(own, _STATES, 'no rows')}"

    yield from warning_lines(summary)


def warning_lines(summary: Summary) -> Iterator[str]:
    """Yield what must be told even where quiet was asked for."""
    if unknown := summary.counts.unknown:
        yield f"{unknown:,} unknown: each may have started a run, and none is sent again"

    if duplicates := summary.counts.possible_duplicates:
        told = "started, and another attempt may have started a run too"
        yield f"{count(duplicates, 'possible duplicate')}: {told}"


def unrecorded_lines(summary: Summary) -> Iterator[str]:
    """Yield the runs that the ledger may lack, a line each."""
    if summary.unrecorded:
        yield "DES started these runs, and the ledger may not have them (key, jobRunId):"

    for key, job_run_id in summary.unrecorded:
        yield f"{key}\t{job_run_id}"


def watch_lines(summary: WatchSummary) -> Iterator[str]:
    """Yield how the runs of a batch stand."""
    told = _counts_text(summary, _RUNS, "nothing to watch")
    yield f"{count(summary.runs, 'run')}: {told}"

    for text, runs, key in summary.failures:
        reason = one_line(text) or "DES gave no reason"
        yield f"  {count(runs, 'run')} failed: {reason} (key {key})"

    if summary.untold:
        yield f"{summary.untold:,} untold: DES refuses to tell of them; the next watch asks again"


def is_watched(summary: WatchSummary) -> bool:
    """Return True if something is known of the runs of a batch."""
    return bool(summary.succeeded or summary.failed or summary.untold)


def one_line(text: str, limit: int = SHOWN_TEXT) -> str:
    """Return a text without its line breaks, cut."""
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def stop_line(stop: Stop) -> str:
    """Return why a target, or the session, ended early."""
    whose = f"target {stop.target} stopped" if stop.target else "stopped"
    after = "" if stop.resume_after is None else f"; resume after {stop.resume_after:,.0f} s"
    return f"{whose}: {stop.message}{after}"


def duration(seconds: float) -> str:
    """Return a time as a person says it: ``45 s``, ``12 min``, ``3 h 5 min``."""
    whole = max(1, round(seconds))

    if whole < 120:  # noqa: PLR2004  # up to two minutes, seconds say more
        return f"{whole} s"

    hours, minutes = divmod(round(whole / 60), 60)
    told = [f"{hours:,} h"] if hours else []
    return " ".join([*told, f"{minutes} min"] if minutes else told)


# What to do next.

Commands = Iterator[tuple[str, str]]
"""Why, and the exact command."""


def next_commands(
    summary: Summary, repeated: Sequence[str] = (), *, is_listed: bool = False
) -> Commands:
    """Yield the commands with which a batch goes on; none where all is done.

    Args:
        summary: of the batch.
        repeated: words that ``resume`` must be given again.
        is_listed: the unknown rows have just been listed.
    """
    counts, ledger = summary.counts, place_word(summary.ledger)
    stem = summary.ledger.removesuffix(".ledger.db")
    resume = printed("resume", ledger, *repeated)

    if counts.pending:
        refused = any(stop.reason is StopReason.CREDENTIALS for stop in summary.stops)
        yield f"go on{' with a new token' if refused else ''}", resume
    elif counts.failed:
        yield "try the failed rows again", resume

    if counts.unknown:
        findings = place_word(f"{stem}.findings.csv")

        if not is_listed:
            yield "see the unknown rows", printed("status", ledger)

        listed = printed("status", ledger, "--unknown", "-o", findings)
        yield "list them, look each one up in DES and fill in", listed
        yield "then record it", printed("resolve", ledger, "--from", findings)

    if counts.possible_duplicates:
        results = printed("results", ledger, "--format", "jsonl")
        marked = f"""{results} | grep '"possibleDuplicate":true'"""
        yield "see which rows may have run twice", marked

    for state in ("rejected", "invalid"):
        if getattr(counts, state):
            fixes = place_word(f"{stem}.{state}.csv")
            results = printed("results", ledger, "--state", state, "--with-manifest", "-o", fixes)
            corrections = printed("resume", ledger, "--corrections", fixes, *repeated)
            yield f"see the {state} rows, and fix them there", results
            yield "then send them", corrections


def watch_commands(summary: WatchSummary, repeated: Sequence[str] = ()) -> Commands:
    """Yield the commands with which the runs of a batch are followed, and those of its rows."""
    ledger = place_word(summary.batch.ledger)

    if summary.unfinished or summary.untold:
        yield "go on watching", printed("watch", ledger, *repeated)

    if summary.failed:
        yield "see which runs failed", printed("results", ledger, "--run", "failed")


def command_lines(commands: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield commands with their reasons, a line each."""
    for why, command in commands:
        yield f"{why}: {command}"


# What a session is about to do.


def plan_lines(plan: Plan) -> Iterator[str]:
    """Yield what a session is about to do."""
    whole = f"{plan.ready:,} of {count(plan.rows, 'row')}"
    rows = count(plan.ready, "row") if plan.ready == plan.rows else whole
    yield f"{plan.manifest}: {rows} to start"

    for job in plan.jobs[:SHOWN_JOBS]:
        target = "" if job.target == DEFAULT_TARGET else f"target {job.target}, "
        yield f"  {count(job.rows, 'row')}: {target}{_job_text(job.name, job.job_id)}"

    if rest := plan.jobs[SHOWN_JOBS:]:
        rows = count(sum(job.rows for job in rest), "row")
        yield f"  … and {rows} of {count(len(rest), 'job')} more"

    if plan.corrections is not None:
        replaced, added = plan.corrections
        yield f"corrections: {count(replaced, 'row')} replaced, {added:,} added"

    if plan.resumes:
        so_far = (f"{rows:,} {state}" for state, rows in plan.states.items() if rows)
        yield f"so far: {', '.join(so_far)}"
    elif invalid := sum(rows for state, rows in plan.states.items() if state == "invalid"):
        yield f"left out: {count(invalid, 'invalid row')}"

    if plan.send < plan.ready:
        yield f"now: the first {plan.send:,}; the others stay pending"

    if plan.send:
        least = (
            f", {plan.rate:g} a second: {duration(plan.seconds)} or longer" if plan.seconds else ""
        )
        unknown = "; duration unknown until the first responses"
        yield f"pace: up to {count(plan.concurrency, 'concurrent start')}{least or unknown}"
        yield f"ledger: {plan.ledger}"


def _job_text(name: str, job_id: str) -> str:
    """Return a job's name with its GUID."""
    return f"{name} ({job_id})" if name else job_id


def question_of(plan: Plan) -> str:
    """Return what a person is asked before anything is sent."""
    return f"Start {count(plan.send, 'run')}?"


def nothing_line(plan: Plan, ledger: str) -> str:
    """Return what is told where a session has nothing to send."""
    if plan.rows:
        return f"nothing to start: no row of {ledger} is pending or failed"

    return f"nothing to start: {plan.manifest} holds no rows; no ledger was made"


# What is wrong with a manifest.


def problem_lines(
    problems: Sequence[Problem], groups: Sequence[ProblemGroup], problem_count: int
) -> Iterator[str]:
    """Yield the problems of a manifest, those that many rows have once.

    Args:
        problems: the first ones, in manifest order.
        groups: the first ones that differ, each with the number of its rows.
        problem_count: how many problems there are in all, each row's counted by itself.
    """
    # A problem that a few rows have is told of each: a person fixes them one by one.
    listed = {problem.group_key for problem in problems}
    grouped = {
        group.first.group_key: group
        for group in groups
        if group.rows > TOLD_EACH or group.first.group_key not in listed
    }
    each = [ProblemGroup(problem) for problem in problems if problem.group_key not in grouped]
    found = sorted([*each, *grouped.values()], key=lambda group: group.first.line)
    selected = found[:SHOWN_PROBLEMS]
    rest = problem_count - sum(group.rows for group in selected)
    yield from map(str, selected)

    if rest > 0:
        yield f"… and {count(rest, 'problem')} more"

    if problem_count > len(selected):
        of = f"the first {LISTED_PROBLEMS:,} of" if problem_count > LISTED_PROBLEMS else "all"
        yield f"see {of} {problem_count:,} problems one by one: deslaunch check with --json"


# Tables.


def columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield rows as lines, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()


def job_lines(jobs: Iterable[Job]) -> Iterator[str]:
    """Yield jobs, each with the parameters that its runs take: type, traits, description."""
    from deslaunch.des.wire import type_name  # noqa: PLC0415  # not needed for --help

    for job in jobs:
        yield f"{job.job_id}  {job.name}"
        cells = []

        for one in job.parameters:
            traits = "required" if one.required else "optional"
            traits += f"{' null' * one.nullable}{' auto' * one.supports_auto}"
            cells.append((one.name, type_name(one.type), traits, one.description))

        yield from (f"  {line}" for line in columns(cells))


def parameters_text(parameters: Mapping[str, Any]) -> str:
    """Return parameters as they were sent, in one line."""
    return ", ".join(f"{name}={_value_text(value)}" for name, value in parameters.items()) or "-"


def _value_text(value: Any) -> str:
    if isinstance(value, dict):
        if value.get("useAutoValue") or value.get("auto"):
            return "auto"

        value = value.get("valueStringEncoded")

    return "null" if value is None else str(value)


def unknown_lines(row: UnknownRow) -> Iterator[str]:
    """Yield what a person needs to look an unknown row up in DES's web interface."""
    target = f" target {row.target}" if row.target != DEFAULT_TARGET else ""
    parameters = json.loads(row.says).get("parameters", {})
    yield f"unknown: key {row.key} row {row.row:,}{target}"
    yield f"  job {_job_text(row.job_name, row.job_id)}"
    yield f"  parameters {parameters_text(parameters)}"
    yield f"  look for a run created from {utc(row.from_ms)} to {utc(row.until_ms)}"
    yield f"  because {one_line(row.error) or NO_ERROR}"

    if row.job_run_id:
        yield f"  a response named the jobRunId {row.job_run_id}"


def log_line(entry: LogEntry) -> dict[str, Any]:
    """Return an entry of the log in the documented form; times, which end in ``Ms``, as text."""
    told = {"utc": utc(entry.ms), "kind": entry.kind, "session": entry.session}
    told |= {"key": entry.key, "target": entry.target}

    for name, value in entry.details.items():
        if name.endswith("Ms"):
            told[f"{name[:-2]}Utc"] = None if value is None else utc(value)
        else:
            told[name] = value

    return told


def utc(ms: int) -> str:
    """Return ms since 1970 as RFC 3339, UTC."""
    return f"{datetime.fromtimestamp(ms // 1000, UTC):%Y-%m-%dT%H:%M:%S}.{ms % 1000:03d}Z"
