"""A batch as one HTML page that asks nothing of any network: what became of it, and what to do.

Whatever comes from a ledger is hostile: it is made visible, and escaped, where it is put into
the page, and the page's policy lets no other script run than its own. Needs the extra
``report``, which brings Jinja2.
"""

from __future__ import annotations

import base64
import gzip
import re
import shlex
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from importlib import resources
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple

import orjson
from anyio import to_thread
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from deslaunch.ledger.place import as_word
from deslaunch.manifest.rows import load_row
from deslaunch.model import AUTO, DEFAULT_TARGET, JobRunParameterValue, Row, printable
from deslaunch.model import count as counted
from deslaunch.report import charts
from deslaunch.report.output import PAGE_MARK, open_beside
from deslaunch.report.results import IN_FLIGHT, rows_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from deslaunch.events import Counts
    from deslaunch.ledger.reading import Reader, ResultRow
    from deslaunch.model import ParameterValue

TABLE_ROWS: Final = 100_000
"""Rows that the table holds; of more, those that need a look come before those that started."""

ENCODED_LIMIT: Final = 4_500_000
"""Characters that the table may take, so that a page stays below 5 MB."""

STATIC_ROWS: Final = 100
"""Rows that are part of the page itself, so that it can be read without its script."""

LISTED: Final = 50
"""Unknown rows, and events, that are shown; and possible duplicates, half as many."""

CAUSES: Final = 200
"""Different causes that are told apart; all others are one more."""

_SHOWN_CAUSES: Final = 30
_SHOWN_JOBS: Final = 50
_CAUSE_LIMIT: Final = 300
_CELL_LIMIT: Final = 200
_WORDS: Final = 3_000
_LEFT_OUT: Final = "(more different texts than a page can hold: see deslaunch results)"
_OTHER: Final = "other causes"
_EXAMPLES: Final = 3
_VARYING: Final = re.compile(
    r"[0-9a-fA-F]{8}(?:-?[0-9a-fA-F]{4}){3}-?[0-9a-fA-F]{12}|(?<!HTTP )(?<![0-9])[0-9]+"
)
_GUID: Final = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_SERIES: Final = {"retry": "again", "throttled": "again", "unsent": "again"}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


async def write_report(
    ledger: Reader,
    output: Path,
    *,
    commands: Sequence[tuple[str, str]] = (),
    force: bool = False,
) -> None:
    """Write the page; memory and the page's size do not grow beyond 100,000 rows.

    Args:
        ledger: of the batch; may be at work.
        output: the file, replaced as a whole (:func:`~deslaunch.report.output.open_output`).
        commands: what to do next: why, and the exact command. What resolves single rows is
            added here.
        force: another existing file is replaced.

    Raises:
        ConfigurationError: the file must not be replaced, or can't be written.
        LedgerError: the ledger can't be read.
    """
    async with open_beside(ledger, output, force=force) as stream:
        context = await _context(ledger, commands)
        await to_thread.run_sync(_render, context, stream)


def _render(context: dict[str, Any], stream: BinaryIO) -> None:
    table: Table = context["table"]
    columns = table.columns()
    data, held = encode_table(columns)
    style, script = _file("page.css"), _file("page.js")
    pieces = (
        _environment()
        .get_template("page.html")
        .generate(
            context,
            mark=Markup(PAGE_MARK.decode()),  # noqa: S704  # a constant
            policy=_policy(style, script),
            style=style,
            script=script,
            columns=columns,
            held=held,
            static_rows=min(held, STATIC_ROWS),
            data=Markup(data),  # noqa: S704  # base 85 without <, & and >
        )
    )
    stream.writelines(piece.encode() for piece in pieces)


async def _context(ledger: Reader, commands: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return what the template shows."""
    counts, targets = await ledger.counts()
    runs = await ledger.run_counts()
    found = _Gathered()

    async for rows in rows_of(ledger, with_rows=True):
        await to_thread.run_sync(found.take, rows)

    return {
        "ledger": as_word(ledger.place),
        "launcher": await ledger.launcher(),
        "verdict": _verdict(counts, runs.failed),
        "counts": counts,
        "targets": targets,
        "shares": charts.shares(counts),
        "jobs": sorted(found.jobs.items(), key=lambda job: -job[1].total()),
        "shown_jobs": _SHOWN_JOBS,
        "commands": commands,
        "unknown": await _unknown(ledger),
        "duplicates": [doubt_of(row, ledger.place) for row in found.duplicates],
        "causes": found.causes.worst(),
        "shown_causes": _SHOWN_CAUSES,
        "runs": found.was_watched and runs,
        "run_failures": found.run_failures.worst(),
        "table": found.table,
        "about": await _about(ledger),
        **await _over_time(ledger),
    }


async def _unknown(ledger: Reader) -> list[Doubt]:
    async for rows in ledger.unknown_rows():
        return [doubt_of(row, ledger.place) for row in rows[:LISTED]]

    return []


async def _about(ledger: Reader) -> list[tuple[str, str]]:
    """Return what the report was made from, name by name."""
    batch, sessions = ledger.batch, await ledger.sessions()
    manifest = "rows of a program" if batch.manifest == "<rows>" else batch.manifest
    found = [
        ("Manifest", f"{manifest}, {counted(batch.rows, 'row')}"),
        ("Imported", f"{_utc(_iso(batch.imported_ms))} UTC"),
    ]

    if sessions:
        last, times = sessions[-1], counted(len(sessions), "time")
        found.append(("Launched", f"{times}, last by process {last.pid} on {last.host}"))
        found.extend((f"Target {name}", url) for name, url in last.targets.items())

    return found


async def _over_time(ledger: Reader) -> dict[str, Any]:
    """Return what the attempts add up to; the ledger counts them."""
    ((first, last, minutes),) = await ledger.query("report_span")
    chart = None

    if first is not None:
        width = charts.bucket_width(minutes, last - first)
        counts = await ledger.query("report_timeline", {"width": width})
        series = ((begin, _SERIES.get(result, result), number) for begin, result, number in counts)
        chart = charts.time_chart(series, width)

    again = Causes()

    for result, status, error, number, key in await ledger.query("report_again"):
        kind = "not sent" if result == "unsent" else f"HTTP {status}"
        again.add(kind, error or "no reason was given", key, number)

    events = await ledger.query("report_events")
    return {
        "chart": chart,
        "last_utc": None if last is None else _iso(last),
        "again": again.worst(),
        "events": [(_iso(ms), kind, target, text) for ms, kind, target, text in events[:LISTED]],
        "more_events": len(events) > LISTED,
        "responses": charts.spread(await ledger.query("report_responses")),
        "run_times": charts.spread(await ledger.query("report_run_times")),
    }


@dataclass(slots=True)
class Cause:
    """One thing that went wrong.

    Attributes:
        kind: what it led to.
        text: what was said the first time, at most 300 characters.
        count: how often it happened.
        examples: keys of the first rows that it happened to.
    """

    kind: str
    text: str
    count: int = 0
    examples: list[str] = field(default_factory=list)


class Causes:
    """What went wrong, grouped by text without its numbers and ids: at most 200 groups."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, str], Cause] = {}

    def add(self, kind: str, text: str, key: str, count: int = 1) -> None:
        """Count cases of ``text``, the first of which happened to the row ``key``."""
        cut = text[:_CAUSE_LIMIT]
        name = (kind, _VARYING.sub("#", cut))

        if name not in self._groups and len(self._groups) >= CAUSES:
            cut, name = _OTHER, (kind, _OTHER)

        cause = self._groups.setdefault(name, Cause(kind, cut))
        cause.count += count

        if len(cause.examples) < _EXAMPLES:
            cause.examples.append(key)

    def worst(self) -> list[Cause]:
        """Return the groups, the most frequent first."""
        return sorted(self._groups.values(), key=lambda cause: -cause.count)


class _Gathered:
    """What adds up over the rows."""

    def __init__(self) -> None:
        self.jobs: dict[tuple[str, str, str], Counter[str]] = {}
        self.causes = Causes()
        self.was_watched = False
        self.run_failures = Causes()
        self.duplicates: list[ResultRow] = []
        self.table = Table()

    def take(self, rows: Sequence[ResultRow]) -> None:
        for row in rows:
            self._take(row)

    def _take(self, row: ResultRow) -> None:
        counts = self.jobs.setdefault((row.job_name, row.job_id, row.target), Counter())
        counts[_STATE_NAMES.get(row.state, row.state)] += 1
        self.table.take(row)

        if row.state in _NEED_A_CAUSE:
            key = row.key or f"row {row.row}"
            self.causes.add(row.state, _said(row) or "no reason was given", key)

        if row.possible_duplicate and len(self.duplicates) < LISTED // 2:
            self.duplicates.append(row)

        run = _run_word(row)
        self.was_watched = self.was_watched or bool(run)

        if run == "failed":
            text = row.status_text or "DES gave no reason"
            self.run_failures.add("run failed", text, row.key or "")


_STATE_NAMES: Final = {IN_FLIGHT: "in_flight"}
_NEED_A_CAUSE: Final = frozenset({"failed", "rejected", "invalid", "unknown"})


def _run_word(row: ResultRow) -> str:
    """Return how a row's run is getting on, or ``""`` where it was never asked about."""
    if row.finished is None:
        return ""

    return "not finished" if not row.finished else "succeeded" if row.success else "failed"


def _said(row: ResultRow) -> str:
    """Return why a row has no run."""
    if row.state == "started":
        return ""

    status = None if row.status is None else f"HTTP {row.status}"
    return ": ".join(word for word in (status, row.error) if word)


class Column(NamedTuple):
    """One column of the table.

    Attributes:
        name: what tells it from the others.
        label: its heading.
        kind: ``text``, ``number``, ``duration`` or ``time`` (milliseconds since 1970).
        values: one for each row; None where there is nothing to say.
    """

    name: str
    label: str
    kind: str
    values: Sequence[Any]


_COLUMNS: Final = (
    ("row", "Row", "number"),
    ("key", "Key", "text"),
    ("target", "Target", "text"),
    ("job", "Job", "text"),
    ("state", "State", "text"),
    ("run_id", "jobRunId", "text"),
    ("attempts", "Sent", "number"),
    ("said", "What was said", "text"),
    ("sent", "Last sent", "time"),
    ("took", "Response after", "duration"),
    ("run", "Run", "text"),
    ("ended", "Run ended", "time"),
)


class Table:
    """The rows of the table.

    Args:
        limit: rows to keep at most.
    """

    def __init__(self, limit: int = TABLE_ROWS) -> None:
        self._limit = limit
        self._urgent: list[tuple[Any, ...]] = []
        self._started: list[tuple[Any, ...]] = []
        self._words: dict[str, str] = {}

    def take(self, row: ResultRow) -> None:
        """Take in the next row."""
        needs_a_look = (
            row.state != "started" or row.possible_duplicate or _run_word(row) == "failed"
        )
        kept = self._urgent if needs_a_look else self._started

        if len(kept) < self._limit:
            kept.append(self._line(row))

    def columns(self) -> list[Column]:
        """Return the table; a column that says nothing, or only the default target, is left out."""
        room = self._limit - len(self._urgent)
        lines = sorted([*self._urgent, *self._started[:room]])
        values = list(zip(*lines, strict=True)) or [() for _ in _COLUMNS]
        return [
            Column(*column, found)
            for column, found in zip(_COLUMNS, values, strict=True)
            if set(found) - {None, DEFAULT_TARGET} or column[0] in {"row", "state"}
        ]

    def _line(self, row: ResultRow) -> tuple[Any, ...]:
        sent, answered = ms_of(row.sent_utc), ms_of(row.answered_utc)
        is_timed = sent is not None and answered is not None and answered >= sent
        run, twice = _run_word(row), ", maybe twice" if row.possible_duplicate else ""
        return (
            row.row,
            printable(row.key) or None,
            self._word(row.target),
            self._word(f"{row.job_name}\n{row.job_id}" if row.job_name else row.job_id),
            self._word(f"{row.state}{twice}"),
            None if row.job_run_id is None else printable(row.job_run_id),
            row.attempts,
            self._word(_said(row)),
            sent,
            answered - sent if is_timed else None,  # type: ignore[operator]  # both are numbers
            self._word(f"{run}: {row.status_text}" if run and row.status_text else run),
            ms_of(row.finished_utc),
        )

    def _word(self, text: str | None) -> str | None:
        """Return a text that rows share, cut; after 3,000 different ones others are left out.

        Such texts come from outside, and 100,000 different ones would burst the page.
        """
        if not text:
            return None

        known = self._words.get(text)

        if known is None and len(self._words) >= _WORDS:
            return _LEFT_OUT

        if known is None:
            shown = "\n".join(printable(line) for line in text.split("\n", 1))
            known = self._words[text] = _cut(shown, _CELL_LIMIT)

        return known


def ms_of(utc: str | None) -> int | None:
    """Return the milliseconds since 1970 of a time, None where it can't be read."""
    if utc is None:
        return None

    with suppress(ValueError):
        time = datetime.fromisoformat(utc)
        return ((time if time.tzinfo else time.replace(tzinfo=UTC)) - _EPOCH) // _MILLISECOND

    return None


_MILLISECOND: Final = timedelta(milliseconds=1)


# The table as text that stands in the page. It is kept by column, as what repeats least: words
# once and their numbers, numbers as differences, ids as 16 bytes; then gzip, then base 85 with
# ",.:" for "<&>". 100,000 keys and jobRunIds fit into a page of 5 MB in no plainer form.

_ID: Final = re.compile(r"[0-9a-f]{32}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NO_ID: Final = bytes(16)
_PIECE: Final = 4 << 14  # whole groups of four bytes; the encoder takes many times its memory
_TO_SAFE: Final = bytes.maketrans(b"<&>", b",.:")


def encode_table(columns: Sequence[Column], *, limit: int = ENCODED_LIMIT) -> tuple[str, int]:
    """Return as many of the first rows as fit into ``limit`` characters, and how many they are."""
    rows = len(columns[0].values)

    while True:
        blobs: list[bytes] = []
        packed = [
            {"name": name, "label": label, "kind": kind, **_pack(kind, values[:rows], blobs)}
            for name, label, kind, values in columns
        ]
        head = orjson.dumps({"rows": rows, "columns": packed})
        data = b"".join((len(head).to_bytes(4, "big"), head, *blobs))
        data = gzip.compress(data, 9, mtime=0)
        pieces = (base64.b85encode(data[at : at + _PIECE]) for at in range(0, len(data), _PIECE))
        text = b"".join(pieces).translate(_TO_SAFE).decode()

        if len(text) <= limit or not rows:
            return text, rows

        rows = int(rows * limit / len(text) * 0.98)


def _pack(kind: str, values: Sequence[Any], blobs: list[bytes]) -> dict[str, Any]:
    if kind != "text":
        steps: list[int | None] = []
        last = 0

        for value in values:
            steps.append(None if value is None else value - last)
            last = last if value is None else value

        return {"differences": steps}

    words = {value: number for number, value in enumerate(dict.fromkeys(values))}
    lengths = {len(word) for word in words if word is not None}

    if len(lengths) == 1 and all(word is None or _is_id(word) for word in words):
        blobs.append(b"".join(_id_bytes(value) for value in values))
        return {"dash": "" if lengths == {32} else "-"}

    if len(words) * 2 > len(values):
        return {"texts": values}

    return {"words": list(words), "numbers": [words[value] for value in values]}


def _id_bytes(value: str | None) -> bytes:
    return _NO_ID if value is None else bytes.fromhex(value.replace("-", ""))


def _is_id(word: str) -> bool:
    return _ID.fullmatch(word) is not None and _id_bytes(word) != _NO_ID


# What the template is given beside the numbers.


class Doubt(NamedTuple):
    """A row that a person should look up, what to look for, and how to tell what was found.

    Attributes:
        row: the row.
        parameters: as the row says them, in one line.
        started: the command for a row that started a run, or ``""`` where its key can't be typed.
        not_started: the command for a row that started nothing (more), likewise.
    """

    row: Any
    parameters: str
    started: str
    not_started: str


def doubt_of(row: Any, ledger: str) -> Doubt:
    """Return an unknown row, or a possible duplicate, with the commands for what was found."""
    is_typed = row.key.isprintable()
    run = row.job_run_id if _GUID.fullmatch(row.job_run_id or "") else "JOBRUNID"
    said = load_row(row.says, row.row, 0, "")
    return Doubt(
        row,
        parameters_text(said.parameters) if isinstance(said, Row) else row.says,
        _resolve(ledger, row.key, "--started", run) if is_typed else "",
        _resolve(ledger, row.key, "--not-started") if is_typed else "",
    )


def _resolve(ledger: str, key: str, *finding: str) -> str:
    # Behind "--" nothing is taken for an option.
    words = [*finding, "--", key] if key.startswith("-") else [key, *finding]
    return f"deslaunch resolve {as_word(ledger)} {shlex.join(words)}"


def parameters_text(parameters: Mapping[str, ParameterValue]) -> str:
    """Return what a row says of its parameters in one line."""
    return ", ".join(f"{name}={_value(value)}" for name, value in parameters.items()) or "none"


def _value(value: ParameterValue) -> str:
    if isinstance(value, JobRunParameterValue):
        value = value.value

    return "null" if value is None else "auto" if value is AUTO else value


def _verdict(counts: Counts, failed_runs: int) -> str:
    """Return in one sentence how the rows stand, and how many of their runs failed."""
    if counts.started == counts.rows:
        rows = (
            "The one row is started"
            if counts.rows == 1
            else f"All {counts.rows:,} rows are started"
        )
    else:
        verb = "is" if counts.started == 1 else "are"
        rows = f"{counts.started:,} of {counted(counts.rows, 'row')} {verb} started"

    return f"{rows}, and {counted(failed_runs, 'run')} failed." if failed_runs else f"{rows}."


def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("deslaunch.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "cell": _cell,
        "counted": counted,
        "cut": lambda text: _cut(text, _CAUSE_LIMIT),
        "duration": charts.duration,
        "iso": _iso,
        "number": "{:,}".format,
        "place": "{:.2f}".format,
        "utc": _utc,
    }
    return made


def _visible(value: Any) -> Any:
    """Make hostile text visible, wherever the template puts it; markup is the template's own."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _cell(value: Any, kind: str) -> str:
    if kind == "time":
        return _utc(_iso(value))

    if kind == "duration":
        return charts.duration(value)

    return f"{value:,}" if kind == "number" else str(value)


def _iso(ms: int) -> str:
    return charts.time_of(ms).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _utc(utc: str) -> str:
    return utc[:19].replace("T", " ")


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _file(name: str) -> Markup:
    text = resources.files("deslaunch.report").joinpath(name).read_text(encoding="utf-8")
    return Markup(text)  # noqa: S704  # the package's own file


def _policy(style: str, script: str) -> str:
    """Return a policy that forbids all but this page's own style and script."""
    style_hash, script_hash = (
        base64.b64encode(sha256(text.encode()).digest()).decode() for text in (style, script)
    )
    return f"default-src 'none'; style-src 'sha256-{style_hash}'; script-src 'sha256-{script_hash}'"
