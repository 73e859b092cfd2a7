"""What a person found out about rows whose outcome is not known: read, and taken.

The file is CSV with a header line. ``key`` names the row; ``as`` is ``started``, ``not-started``
or ``unknown`` (which takes an earlier finding back), in any letter case; ``jobRunId`` goes with
``started``; ``note`` is kept. Lines without ``as`` say nothing, and other columns are for the
reader: so the file that :func:`write_unknown` makes can be filled in.
"""

import csv
import json
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


def read_findings(path: Path, *, note: str = "") -> list[Finding]:
    """Read a file of findings.

    Args:
        path: of a CSV file.
        note: for findings that have none of their own.

    Raises:
        ManifestError: the file can't be read, or a finding says too little or too much; the
            message names its line.
    """
    csv.field_size_limit(2**31 - 1)

    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, restkey="beyond the header", strict=True)

            if "key" not in (reader.fieldnames or ()):
                raise ManifestError(f"{path}:1: expected a column key, got none", hint=_FORM)

            read = (_take(fields, f"{path}:{reader.line_num}", note) for fields in reader)
            return [finding for finding in read if finding is not None]
    except OSError as exc:
        raise ManifestError(
            f"{path}: can't be read: {exc.strerror or exc}", hint="check the path and its mode"
        ) from exc
    except (UnicodeDecodeError, csv.Error) as exc:
        raise ManifestError(f"{path}: is no file of findings: {exc}", hint=_FORM) from exc


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


def _take(line: Mapping[str, Any], where: str, note: str) -> Finding | None:
    """Return the finding of one line; None where it says nothing."""
    fields = {name: text for name, text in line.items() if text}

    if "key" not in fields:
        raise ManifestError(f"{where}: a finding needs a key", hint=_FORM)

    if unknown := [name for name in fields if name not in {*_COLUMNS, *_FOR_THE_READER}]:
        raise ManifestError(f"{where}: unknown field {unknown[0]!r}", hint=_FORM)

    said, run = fields.get("as", ""), fields.get("jobRunId")

    if not said and not run:
        return None

    verdict = _VERDICTS.get(said.lower().replace("not-", "not"))

    if verdict is None or (verdict == "started") != bool(run):
        raise ManifestError(
            f"{where}: expected as=started with a jobRunId, or as=not-started or as=unknown "
            f"without one; got as={said} with {f'jobRunId={run}' if run else 'no jobRunId'}",
            hint=_FORM,
        )

    return Finding(fields["key"], verdict, run, fields.get("note", note))


def resolve(
    store: SqliteStore, findings: Sequence[Finding], now: int, *, open_state: str, early: bool
) -> Resolved:
    """Take findings, all or none, inside a transaction; see :meth:`Ledger.resolve`."""
    said = json.dumps([(*f[:3], is_guid(f.job_run_id)) for f in findings])
    known = store.fetch("look_at_findings", {"findings": said, "open": open_state})
    pairs = list(zip(findings, known, strict=True))

    if problems := [f"{f.key!r} {problem}" for f, (*_, problem) in pairs if problem]:
        more = f"; and {len(problems) - _SHOWN:,} more" if len(problems) > _SHOWN else ""
        raise ManifestError(
            f"no finding was taken: {'; '.join(problems[:_SHOWN])}{more}",
            hint=f"{printed('status', place_word(store.place))} lists the rows that are unknown",
        )

    new = [(f, row, last, until) for f, (row, last, until, is_same, _) in pairs if not is_same]
    same = len(findings) - len(new)
    too_early = tuple(
        (f.key, until) for f, *_, until in new if f.verdict == "notStarted" and until > now
    )

    if too_early and not early:
        return Resolved(0, same, too_early)

    rows = [row for _, row, *_ in new]
    store.run("lose_attempts", (as_json(rows),))  # of a launcher that is gone
    store.many("find", [(row, f.verdict, f.job_run_id) for f, row, *_ in new])
    resolutions = [(row, last, now, *f[1:3], storable(f.note)) for f, row, last, _ in new]
    store.many("keep_resolution", resolutions)
    derive_states(store, rows)
    return Resolved(len(new), same, ())
