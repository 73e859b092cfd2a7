"""Ledgers → all that a report says, still without a page."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from deslaunch.console import next_commands, parameters_text, run_commands, summary_lines
from deslaunch.figures import Cause, Causes, Figures, ms_of
from deslaunch.ledger import records_of, snapshot
from deslaunch.model import DEFAULT_TARGET, RowState
from deslaunch.report.table import Column
from deslaunch.report.text import cut, shown
from deslaunch.results import Results, summary_of, unknown_rows, watched_runs
from deslaunch.wire import is_guid

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from deslaunch.figures import RunEnd
    from deslaunch.ledger import Snapshot
    from deslaunch.model import Summary, WatchSummary
    from deslaunch.results import Result, UnknownRow

TABLE_ROWS: Final = 100_000
"""Rows that the table holds; of more, those that need a look come before those that started."""

UNKNOWN_ROWS: Final = 100
"""Unknown rows of each ledger that are shown with what to do about them."""

_TEXT_LIMIT: Final = 200
_WORDS: Final = 3_000
_LEFT_OUT: Final = "(more different texts than a page can hold: see deslaunch results)"
_SENTENCE: Final = ": deslaunch "

COUNTS: Final = (
    *("rows", "started", "failed", "rejected", "unknown", "invalid", "pending", "in_flight"),
    *("possible_duplicates", "attempts"),
)


@dataclass(frozen=True, slots=True)
class Command:
    """What to do next: why, and the exact command."""

    why: str
    text: str


@dataclass(frozen=True, slots=True)
class Doubt:
    """An unknown row, what to look for, and the commands that tell what was found.

    Attributes:
        row: the row.
        parameters: as they were sent, in one line.
        started: the command for a row that started a run, or ``""`` where its key can't be typed.
        not_started: the command for a row that started nothing, likewise.
    """

    row: UnknownRow
    parameters: str
    started: str
    not_started: str


@dataclass(frozen=True, slots=True)
class Batch:
    """One ledger's part of a report.

    Attributes:
        name: the ledger's path, as it was given.
        quoted: the same, as a shell takes it.
        header: the ledger's first record.
        session: the record of the last launcher, or an empty one.
        last_utc: when the last record was written.
        live: a launcher is at work.
        torn: the ledger ends with a part that can't be read.
        summary: the counts.
        failed_runs: how many runs are known to have failed.
        warnings: what must be said of them.
        commands: what to do next.
        doubts: the first unknown rows.
        more_doubts: how many unknown rows are not among them.
    """

    name: str
    quoted: str
    header: dict[str, Any]
    session: dict[str, Any]
    last_utc: str | None
    live: bool
    torn: bool
    summary: Summary
    failed_runs: int
    warnings: tuple[str, ...]
    commands: tuple[Command, ...]
    doubts: tuple[Doubt, ...]
    more_doubts: int


@dataclass(frozen=True, slots=True)
class Contents:
    """What a report says.

    Attributes:
        batches: one for each ledger.
        totals: the counts of all ledgers, by the names in ``COUNTS``.
        figures: of all ledgers.
        causes: why rows have no run, as they stand now.
        attempts: how many rows were sent how often.
        columns: of the table.
        rows: how many rows there are to show; the table may hold fewer.
    """

    batches: tuple[Batch, ...]
    totals: Counter[str]
    figures: Figures
    causes: list[Cause]
    attempts: Counter[int]
    columns: list[Column]
    rows: int

    @property
    def failed_runs(self) -> int:
        """How many runs are known to have failed."""
        return sum(batch.failed_runs for batch in self.batches)


def contents_of(ledgers: Sequence[Path], manifest: Path | None = None) -> Contents:
    """Return what a report of some ledgers says.

    Args:
        ledgers: at least one; their figures are put together.
        manifest: where the manifest is now; default: where the last session found it.

    Raises:
        LedgerError: a ledger can't be read.
        ManifestError: a manifest can't be read.
    """
    gathered = _Gathered()
    batches = tuple(gathered.batch(path, manifest) for path in ledgers)
    totals = Counter(dict.fromkeys(COUNTS, 0))

    for batch in batches:
        totals.update({name: getattr(batch.summary, name) for name in COUNTS})

    return Contents(
        batches=batches,
        totals=totals,
        figures=gathered.figures,
        causes=gathered.causes.worst(),
        attempts=gathered.attempts,
        columns=gathered.rows.columns([batch.name for batch in batches]),
        rows=gathered.rows.count,
    )


class _Shown(NamedTuple):
    """A row as the table shows it, and where it came in the ledgers."""

    order: int
    row: int | None
    key: str | None
    ledger: int
    target: str | None
    job: str | None
    state: str | None
    run_id: str | None
    attempts: int
    said: str | None
    sent: int | None
    took: int | None
    run: str | None


class TableRows:
    """The rows of the table, by column.

    Args:
        limit: rows to keep at most.

    Attributes:
        count: how many rows there were to take.
    """

    def __init__(self, limit: int = TABLE_ROWS) -> None:
        self.count = 0
        self._limit = limit
        self._ledger = 0
        self._watched = False
        self._urgent: list[_Shown] = []
        self._started: list[_Shown] = []
        self._names: dict[str, str] = {}
        self._words: dict[str, str] = {}

    def take(self, result: Result, run: RunEnd | None) -> None:
        """Take in the next row."""
        self.count += 1
        self._watched = self._watched or run is not None
        smooth = result["state"] == RowState.STARTED and not result["possibleDuplicate"]
        kept = self._started if smooth else self._urgent

        if len(kept) < self._limit:
            kept.append(self._shown(result, run))

    def end_ledger(self) -> None:
        """Take it that the next row is another ledger's."""
        self._ledger += 1

    def columns(self, ledgers: Sequence[str]) -> list[Column]:
        """Return the table; a column that would say the same of every row is left out."""
        urgent = self._urgent
        rows = [*urgent, *self._started[: self._limit - len(urgent)]]
        rows.sort(key=lambda row: row.order)
        names = [shown(ledger) for ledger in ledgers]
        targets = {row.target for row in rows} - {DEFAULT_TARGET, None}
        absent = {
            "ledger": len(ledgers) == 1,
            "target": not targets,
            "run": not self._watched,
        }

        values = {name: [getattr(row, name) for row in rows] for name, _, _ in _COLUMNS}
        values["ledger"] = [names[row.ledger] for row in rows]
        return [
            Column(name, label, kind, values[name])
            for name, label, kind in _COLUMNS
            if not absent.get(name)
        ]

    def _shown(self, result: Result, run: RunEnd | None) -> _Shown:
        sent, answered = result["sentUtc"], result["answeredUtc"]
        return _Shown(
            order=self.count,
            row=result["row"] or None,
            key=_text(result["key"]),
            ledger=self._ledger,
            target=self._name(result["target"]),
            job=self._name(result["jobId"]),
            state=self._name(_state(result)),
            run_id=_text(result["jobRunId"]),
            attempts=result["attempts"],
            said=self._word(_said(result)),
            sent=None if sent is None else ms_of(sent),
            took=_took(sent, answered),
            run=None if run is None else self._word(_run_text(run)),
        )

    def _name(self, text: str | None) -> str | None:
        """Return a short text that many rows share, once in memory."""
        return None if text is None else self._names.setdefault(text, shown(text))

    def _word(self, text: str) -> str | None:
        """Return a text of any length, cut; after so many different ones the others are left out.

        It comes from outside, and 100,000 different ones would burst the page.
        """
        if not text:
            return None

        known = self._words.get(text)

        if known is None and len(self._words) >= _WORDS:
            return _LEFT_OUT

        if known is None:
            known = self._words[text] = cut(shown(text), _TEXT_LIMIT)

        return known


_COLUMNS: Final = (
    ("row", "Row", "number"),
    ("key", "Key", "text"),
    ("ledger", "Ledger", "text"),
    ("target", "Target", "text"),
    ("job", "Job", "text"),
    ("state", "State", "text"),
    ("run_id", "jobRunId", "text"),
    ("attempts", "Attempts", "number"),
    ("said", "What was said", "text"),
    ("sent", "Last sent (UTC)", "time"),
    ("took", "Answer after", "duration"),
    ("run", "Run", "text"),
)


def _text(text: str | None) -> str | None:
    return None if text is None else shown(text)


def _took(sent: str | None, answered: str | None) -> int | None:
    """Return how long the last attempt took; an answer that is older is another attempt's."""
    if sent is None or answered is None or answered < sent:
        return None

    return ms_of(answered) - ms_of(sent)


def _state(result: Result) -> str:
    return f"{result['state']}, maybe twice" if result["possibleDuplicate"] else result["state"]


def _said(result: Result) -> str:
    if result["state"] == RowState.STARTED:
        return ""

    words = (None if result["status"] is None else f"HTTP {result['status']}", result["error"])
    return ": ".join(word for word in words if word)


def _run_text(run: RunEnd) -> str:
    return f"{run.word}: {run.status}" if run.status else run.word


@dataclass(slots=True)
class _Gathered:
    """What adds up over the ledgers."""

    figures: Figures = field(default_factory=Figures)
    causes: Causes = field(default_factory=Causes)
    attempts: Counter[int] = field(default_factory=Counter)
    rows: TableRows = field(default_factory=TableRows)

    def batch(self, path: Path, manifest: Path | None) -> Batch:
        """Take in one ledger."""
        found = snapshot(path)
        runs = self.figures.read(records_of(path))
        results = Results(found, manifest=manifest)

        for result in results:
            self._take(result, runs.get(result["key"] or ""))

        self.rows.end_ledger()
        summary = summary_of(found)
        watched = watched_runs(found, summary)
        doubts = self._doubts(found)
        return Batch(
            name=str(path),
            quoted=shlex.quote(str(path)),
            header=found.replay.header,
            session=found.replay.session or {},
            last_utc=found.replay.last_utc,
            live=found.live,
            torn=found.torn,
            summary=summary,
            failed_runs=watched.failed if watched else 0,
            warnings=tuple(_warnings(summary, results.warning)),
            commands=() if found.live else tuple(_commands(summary, watched)),
            doubts=doubts,
            more_doubts=summary.unknown - len(doubts),
        )

    def _take(self, result: Result, run: RunEnd | None) -> None:
        self.attempts[result["attempts"]] += 1
        self.rows.take(result, run)
        state = result["state"]

        if state in {RowState.FAILED, RowState.REJECTED, RowState.INVALID}:
            status = "" if result["status"] is None else f"HTTP {result['status']}: "
            text = f"{status}{result['error'] or 'no reason was given'}"
            self.causes.add(state, text, result["key"] or f"row {result['row']}")

    def _doubts(self, found: Snapshot) -> tuple[Doubt, ...]:
        rows = self._counted(unknown_rows(found))
        doubts = tuple(doubt_of(row, str(found.path)) for row in islice(rows, UNKNOWN_ROWS))

        for _ in rows:
            pass

        return doubts

    def _counted(self, rows: Iterable[UnknownRow]) -> Iterable[UnknownRow]:
        for row in rows:
            self.causes.add(RowState.UNKNOWN, row.cause, row.key)
            yield row


def doubt_of(row: UnknownRow, ledger: str) -> Doubt:
    """Return an unknown row with the commands that tell what became of it."""
    run = row.job_run_id if row.job_run_id and is_guid(row.job_run_id) else "JOBRUNID"
    typed = row.key.isprintable()
    return Doubt(
        row=row,
        parameters=parameters_text(row.parameters),
        started=_resolve(ledger, row.key, "--started", run) if typed else "",
        not_started=_resolve(ledger, row.key, "--not-started") if typed else "",
    )


def _resolve(ledger: str, key: str, *finding: str) -> str:
    of_option = key.startswith("-")  # behind "--" nothing is taken for an option
    words = [*finding, "--", key] if of_option else [key, *finding]
    return shlex.join(["deslaunch", "resolve", ledger, *words])


def _warnings(summary: Summary, warning: str) -> Iterable[str]:
    yield from islice(summary_lines(summary), 1, None)

    if warning:
        yield warning


def _commands(summary: Summary, watched: WatchSummary | None) -> Iterable[Command]:
    of_runs = run_commands(watched) if watched else ()

    for line in (*of_runs, *next_commands(summary)):
        why, _, rest = line.partition(_SENTENCE)

        if not rest.startswith("resolve "):  # each unknown row has its own, with its key
            yield Command(why, f"deslaunch {rest}")
