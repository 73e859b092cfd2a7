"""A batch as one HTML page that asks nothing of any network: what became of it, and what to do.

Whatever comes from a ledger is hostile: it is made visible, and escaped, where it is put into
the page, and the page's policy lets no other script run than its own. Needs the extra
``report``, which brings Jinja2.
"""

import base64
import gzip
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, Final

import orjson
from anyio import to_thread
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from deslaunch import model
from deslaunch.ledger.reading import Reader, ResultRow, UnknownRow
from deslaunch.report import charts
from deslaunch.report.results import IN_FLIGHT, open_beside, rows_of

TABLE_ROWS: Final = 100_000
"""Rows that the table holds; of more, those that need a look come before those that started."""

ENCODED_LIMIT: Final = 4_600_000
"""Characters that the table may take, so that a page stays below 5 MB; else it holds fewer rows."""

LISTED: Final = 10
"""Unknown rows, and possible duplicates, that are shown: the commands tell of all of them."""

LISTED_EVENTS: Final = 50
"""Pauses and stops that are shown."""

_CELL_LIMIT: Final = 200
_COLUMNS: Final = (
    *(("row", "Row", "number"), ("key", "Key", "text"), ("target", "Target", "text")),
    *(("job", "Job", "text"), ("state", "State", "text"), ("run_id", "jobRunId", "text")),
    *(("attempts", "Sent", "number"), ("error", "Message", "text")),
    *(("sent", "Last sent", "time"), ("took", "Response after", "duration")),
    *(("run", "Run", "text"), ("ended", "Run ended", "time")),
)
"""The table's columns: name, heading, and what stands there; times are ms since 1970."""


async def write_report(
    ledger: Reader, output: Path, *, commands: Sequence[tuple[str, str]] = (), force: bool = False
) -> None:
    """Write the page; memory and the page's size do not grow beyond 100,000 rows.

    Args:
        ledger: of the batch; may be at work.
        output: the file, replaced as a whole (:func:`~deslaunch.report.results.open_output`).
        commands: what to do next: why, and the exact command. What resolves single rows is
            added here.
        force: another existing file is replaced.

    Raises:
        ConfigurationError: the file must not be replaced, or can't be written.
        LedgerError: the ledger can't be read.
    """
    async with open_beside(ledger, output, force=force) as stream:
        rows = PageRows()

        async for portion in rows_of(ledger, with_rows=True):
            await to_thread.run_sync(rows.take, portion)

        context = await _context(ledger, rows)
        await to_thread.run_sync(_render, {**context, "commands": commands}, rows, stream)


class PageRows:
    """What adds up over the rows, and the rows that the table holds.

    Args:
        limit: rows that the table holds at most.

    Attributes:
        jobs: rows by state, by the job's name, jobId and target.
        causes: why rows have no run, as :func:`~deslaunch.model.add_cause` groups it.
        run_failures: why runs failed, likewise.
        duplicates: the first rows that may have been started twice.
    """

    def __init__(self, limit: int = TABLE_ROWS) -> None:
        self.jobs: dict[tuple[str, str, str], Counter[str]] = {}
        self.causes: model.Causes = {}
        self.run_failures: model.Causes = {}
        self.duplicates: list[ResultRow] = []
        self._limit = limit
        self._urgent: list[tuple[Any, ...]] = []
        self._started: list[tuple[Any, ...]] = []

    def take(self, rows: Sequence[ResultRow]) -> None:
        """Take in the next rows."""
        for row in rows:
            counts = self.jobs.setdefault((row.job_name, row.job_id, row.target), Counter())
            counts["in_flight" if row.state == IN_FLIGHT else row.state] += 1
            has_failed = row.finished == 1 and not row.success

            if row.state in {"failed", "rejected", "invalid", "unknown"}:
                model.add_cause(self.causes, row.state, _said(row), row.key or f"row {row.row}")

            if has_failed:
                model.add_cause(self.run_failures, "run failed", row.status_text, row.key)

            if row.possible_duplicate and len(self.duplicates) < LISTED:
                self.duplicates.append(row)

            needs_a_look = row.state != "started" or row.possible_duplicate or has_failed
            kept = self._urgent if needs_a_look else self._started

            if len(kept) < self._limit:
                kept.append(_line(row))

    def table(self, limit: int = ENCODED_LIMIT) -> tuple[list[dict[str, Any]], str]:
        """Return the table's columns, and the same as JSON in gzip in base 64.

        A column that says nothing, or only the default target, is left out.

        Args:
            limit: characters that it may take; the started rows that do not fit are left out.
        """
        rows = self._limit

        while True:
            lines = sorted([*self._urgent, *self._started][:rows])
            columns = [
                {"name": name, "label": label, "kind": kind, "values": values}
                for (name, label, kind), *values in zip(_COLUMNS, *lines, strict=True)
                if {*values} - {None, model.DEFAULT_TARGET} or name in {"row", "state"}
            ]
            data = base64.b64encode(gzip.compress(orjson.dumps(columns), 6, mtime=0))

            if len(data) <= limit:
                return columns, data.decode()

            rows = int(len(lines) * limit / len(data) * 0.98)


def _line(row: ResultRow) -> tuple[Any, ...]:
    """Return a row of the table."""
    sent, answered = ms_of(row.sent_utc), ms_of(row.answered_utc)
    took = None if sent is None or answered is None else answered - sent
    twice = ", maybe twice" if row.possible_duplicate else ""
    run = "succeeded" if row.success else "failed" if row.finished else "not finished"
    run = f"{run}: {row.status_text}" if row.status_text else run
    return (
        row.row,
        model.printable(row.key) or None,
        _shown(row.target),
        _shown(f"{row.job_name}\n{row.job_id}" if row.job_name else row.job_id),
        _shown(f"{row.state}{twice}"),
        model.printable(row.job_run_id or "") or None,
        row.attempts,
        _shown(_said(row)),
        sent,
        took if took is None or took >= 0 else None,  # a clock was set back
        None if row.finished is None else _shown(run),
        ms_of(row.finished_utc),
    )


def _said(row: ResultRow) -> str:
    """Return why a row has no run."""
    if row.state == "started":
        return ""

    status = None if row.status is None else f"HTTP {row.status}"
    return ": ".join(word for word in (status, row.error) if word)


@lru_cache(maxsize=4096)  # rows share what was said, and its memory
def _shown(text: str) -> str | None:
    """Return a text as a cell shows it, made visible and cut; a line that follows is a title."""
    shown = "\n".join(map(model.printable, text.split("\n", 1)))
    return (shown if len(shown) <= _CELL_LIMIT else f"{shown[: _CELL_LIMIT - 1]}…") or None


def ms_of(utc: str | None) -> int | None:
    """Return the milliseconds since 1970 of a time, None where it can't be read."""
    try:
        time = datetime.fromisoformat(utc or "")
        return round((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError):
        return None


def doubt_of(row: Any, ledger: str) -> dict[str, Any]:
    """Return what a person needs to look a row up, and to tell what was found.

    Args:
        row: an unknown row, or a possible duplicate, with what the row says.
        ledger: its place.

    Returns:
        the ``row``; its ``parameters`` in one line; the commands for a row that ``started`` a run,
        and for one that did ``not_started`` any (more): ``""`` where its key can't be typed.
    """
    run = row.job_run_id if model.is_guid(row.job_run_id) else "JOBRUNID"
    parameters = orjson.loads(row.says).get("parameters", {})
    found = {"row": row, "parameters": model.parameters_text(parameters)}

    for name, finding in (("started", ["--started", run]), ("not_started", ["--not-started"])):
        # Behind "--" nothing is taken for an option.
        words = [*finding, "--", row.key] if row.key.startswith("-") else [row.key, *finding]
        command = model.printed("resolve", model.place_word(ledger), *words)
        found[name] = command if row.key.isprintable() else ""

    return found


def _render(context: Mapping[str, Any], rows: PageRows, stream: BinaryIO) -> None:
    columns, data = rows.table()
    environment = Environment(
        loader=PackageLoader("deslaunch.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "counted": model.count,
        "duration": charts.duration,
        "iso": model.utc,
        "number": "{:,}".format,
        "place": "{:.2f}".format,
        "sha256": lambda text: base64.b64encode(sha256(text.encode()).digest()).decode(),
    }
    pieces = environment.get_template("page.html").generate(context, columns=columns, data=data)
    stream.writelines(piece.encode() for piece in pieces)


def _visible(value: Any) -> Any:
    """Make hostile text visible, wherever the template puts it; markup is the template's own."""
    is_markup = not isinstance(value, str) or isinstance(value, Markup)
    return value if is_markup else model.printable(value)


async def _context(ledger: Reader, rows: PageRows) -> dict[str, Any]:
    """Return what the template shows, but for the table; the ledger adds up what attempts say."""
    runs = await ledger.watch_summary()
    unknown: list[UnknownRow] = await anext(ledger.unknown_rows(), [])
    [(first, last, minutes)] = await ledger.query("report_span")
    [(last_change,)] = await ledger.query("report_last_change")
    width = 0 if first is None else charts.bucket_width(minutes, last - first)
    again: model.Causes = {}

    for kind, text, number, key in await ledger.query("report_again"):
        model.add_cause(again, kind, text, key, number)

    return {
        "ledger": model.as_word(model.place_word(ledger.place)),
        "batch": ledger.batch,
        "sessions": await ledger.sessions(),
        "launchers": await ledger.launchers(),
        "last_change": last_change,
        "shares": charts.shares(runs.batch.counts),
        "jobs": sorted(rows.jobs.items(), key=lambda job: -job[1].total()),
        "unknown": [doubt_of(row, ledger.place) for row in unknown[:LISTED]],
        "duplicates": [doubt_of(row, ledger.place) for row in rows.duplicates],
        "rows": rows,
        "again": again,
        "runs": runs,
        "run_times": charts.spread(await ledger.query("report_run_times")),
        "responses": charts.spread(await ledger.query("report_responses")),
        "chart": charts.time_chart(await ledger.query("report_timeline", {"width": width}), width),
        "events": await ledger.query("report_events", {"limit": LISTED_EVENTS + 1}),
        "listed_events": LISTED_EVENTS,
    }
