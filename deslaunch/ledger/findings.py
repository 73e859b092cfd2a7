"""What a person found out about rows whose outcome is not known: read, and taken.

The file is CSV with a header line, or JSONL. ``key`` names the row; ``as`` is ``started``,
``not-started`` or ``unknown`` (which takes an earlier finding back), in any letter case;
``jobRunId`` goes with ``started``; ``note`` is kept. Lines without ``as`` say nothing, and other
columns are for the reader: so the file that :func:`write_unknown` makes can be filled in.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TextIO, get_args

from deslaunch.errors import ManifestError
from deslaunch.ledger.changes import derive_states
from deslaunch.ledger.reading import UnknownRow, storable
from deslaunch.ledger.sqlite import SqliteStore, as_json
from deslaunch.model import is_guid, place_word, printed, utc

Verdict = Literal["started", "notStarted", "unknown"]

_VERDICTS: Final[dict[str, Verdict]] = {verdict.lower(): verdict for verdict in get_args(Verdict)}
_COLUMNS: Final = ("key", "as", "jobRunId", "note")
_WINDOW: Final = ("createdAfterUtc", "createdBeforeUtc")
_FOR_THE_READER: Final = ("target", "jobId", "jobName", *_WINDOW, "error", "row")
_FORM: Final = "a finding has key, as (started, not-started or unknown), jobRunId if started, note"

_SHOWN: Final = 10
"""Findings that an error quotes."""


class Finding(NamedTuple):
    """What a person found out about one row.

    Attributes:
        key: the row's key.
        verdict: ``started`` a run, ``notStarted``: the next resume may send it, or ``unknown``:
            an earlier finding is taken back.
        job_run_id: the run that it started, a GUID; None but for ``started``.
        note: the person's words.
    """

    key: str
    verdict: Verdict
    job_run_id: str | None = None
    note: str = ""


class Resolved(NamedTuple):
    """What findings did.

    Attributes:
        changed: rows with a new finding.
        same: rows of which the ledger had this finding.
        early: (key, ms since 1970 when its window is over) of rows that are said not to have
            started before that; nothing was taken where there are any, unless that was asked for.
    """

    changed: int
    same: int
    early: tuple[tuple[str, int], ...]


class _Found(NamedTuple):
    """A row that a finding is about, as ``rows_to_resolve`` gives it."""

    number: int
    state: str
    duplicate: int
    last_attempt: int
    has_run: int
    is_resolved: int | None
    until_ms: int
    finding: str
    found_run: str | None


def read_findings(path: Path, *, note: str = "") -> list[Finding]:
    """Read a file of findings.

    Args:
        path: ``.jsonl`` or ``.ndjson``, else CSV.
        note: for findings that have none of their own.

    Raises:
        ManifestError: the file can't be read, or a finding says too little or too much; the
            message names its line.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            lines = list(stream)

        if path.suffix in {".jsonl", ".ndjson"}:
            read = [(n, json.loads(line)) for n, line in enumerate(lines, 1) if line.strip()]
        else:
            read = _read_csv(path, lines)
    except OSError as exc:
        raise ManifestError(
            f"{path}: can't be read: {exc.strerror or exc}", hint="check the path and its mode"
        ) from exc
    except (UnicodeDecodeError, csv.Error, json.JSONDecodeError) as exc:
        raise ManifestError(f"{path}: is no file of findings: {exc}", hint=_FORM) from exc

    found = (_take(fields, f"{path}:{number}", note) for number, fields in read)
    return [finding for finding in found if finding is not None]


def write_unknown(stream: TextIO, rows: Iterable[UnknownRow]) -> None:
    """Write unknown rows as CSV, where to look for their runs and with the finding left empty."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow((*_COLUMNS, *_FOR_THE_READER))

    for row in rows:
        window = (utc(row.from_ms), utc(row.until_ms))
        job = (row.target, row.job_id, row.job_name)
        writer.writerow((row.key, "", "", "", *job, *window, row.error, row.says))


def write_unrecorded(stream: TextIO, runs: Iterable[tuple[str, str]]) -> None:
    """Write (key, jobRunId) of runs that are in no ledger, as CSV of findings."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows((key, "started", run, "not recorded by its launcher") for key, run in runs)


def _read_csv(path: Path, lines: list[str]) -> list[tuple[int, Any]]:
    csv.field_size_limit(2**31 - 1)
    reader = csv.DictReader(lines, strict=True)

    if "key" not in (reader.fieldnames or ()):
        raise ManifestError(f"{path}:1: expected a column key, got none", hint=_FORM)

    return [(reader.line_num, {n: v for n, v in row.items() if v}) for row in reader]


def _take(fields: Any, where: str, note: str) -> Finding | None:
    """Return the finding of one line; None where it says nothing."""
    if not isinstance(fields, dict) or not isinstance(fields.get("key"), str):
        raise ManifestError(f"{where}: a finding needs a key", hint=_FORM)

    if unknown := [name for name in fields if name not in {*_COLUMNS, *_FOR_THE_READER}]:
        raise ManifestError(f"{where}: unknown field {unknown[0]!r}", hint=_FORM)

    said, run = fields.get("as"), fields.get("jobRunId")

    if said in {None, ""} and not run:
        return None

    verdict = _VERDICTS.get(str(said).lower().replace("not-", "not"))

    if verdict is None or (verdict == "started") != bool(run):
        raise ManifestError(
            f"{where}: expected as=started with a jobRunId, or as=not-started or as=unknown "
            f"without one; got as={said or ''} with {f'jobRunId={run}' if run else 'no jobRunId'}",
            hint=_FORM,
        )

    run = str(run) if run else None
    return Finding(fields["key"], verdict, run, str(fields.get("note") or note))


def resolve(
    store: SqliteStore, findings: Sequence[Finding], now: int, *, is_at_work: bool, early: bool
) -> Resolved:
    """Take findings, all or none, inside a transaction; see :meth:`Ledger.resolve`."""
    keys = json.dumps([finding.key for finding in findings])
    rows = {key: _Found._make(row) for key, *row in store.fetch("rows_to_resolve", (keys,))}
    _check(store, findings, rows, is_at_work=is_at_work)
    new = [
        (rows[finding.key], finding)
        for finding in findings
        if rows[finding.key][-2:] != (finding.verdict, _lower(finding.job_run_id))
    ]
    same = len(findings) - len(new)
    too_early = tuple(
        (finding.key, row.until_ms)
        for row, finding in new
        if finding.verdict == "notStarted" and row.until_ms > now
    )

    if too_early and not early:
        return Resolved(0, same, too_early)

    numbers = [row.number for row, _ in new]
    store.run("lose_attempts", (as_json(numbers),))  # of a launcher that is gone
    store.many("find", [(row.number, f.verdict, f.job_run_id) for row, f in new])
    resolutions = [
        (row.number, row.last_attempt, now, f.verdict, f.job_run_id, storable(f.note))
        for row, f in new
    ]
    store.many("keep_resolution", resolutions)
    derive_states(store, numbers)
    return Resolved(len(new), same, ())


def _check(
    store: SqliteStore, findings: Sequence[Finding], rows: Mapping[str, _Found], *, is_at_work: bool
) -> None:
    runs = json.dumps([_lower(finding.job_run_id) for finding in findings])
    owners: dict[str | None, str] = dict(store.fetch("rows_of_runs", (runs,)))
    keys = Counter(finding.key for finding in findings)
    problems: list[str] = []

    for finding in findings:
        key, run = finding.key, _lower(finding.job_run_id)
        problem = _refuse(finding, rows.get(key), is_at_work=is_at_work)

        if keys[key] > 1:
            problem = "comes twice"
        elif problem is None and run and owners.setdefault(run, key) != key:
            problem = f"jobRunId {finding.job_run_id} is that of row {owners[run]!r}"

        if problem is not None:
            problems.append(f"{key!r} {problem}")

    if problems:
        more = f"; and {len(problems) - _SHOWN:,} more" if len(problems) > _SHOWN else ""
        raise ManifestError(
            f"no finding was taken: {'; '.join(problems[:_SHOWN])}{more}",
            hint=f"{printed('status', place_word(store.place))} lists the rows that are unknown",
        )


def _refuse(finding: Finding, row: _Found | None, *, is_at_work: bool) -> str | None:
    """Return why a finding can't be taken."""
    if row is None:
        return "is no key of the batch"

    if row.state == "sending" and is_at_work:
        return "is in flight: wait for its response"

    if finding.verdict == "started" and row.has_run:
        return "is started: DES said so itself"

    if finding.job_run_id is not None and not is_guid(finding.job_run_id):
        return f"needs a GUID as its jobRunId, got {finding.job_run_id!r}"

    is_spare = row.duplicate and finding.verdict == "notStarted"  # attempts beside its run

    if row.state in {"unknown", "failed", "sending"} or row.is_resolved or is_spare:
        return None

    return f"is {row.state}: only a row that is unknown or failed can be resolved"


def _lower(run: str | None) -> str | None:
    return run and run.lower()
