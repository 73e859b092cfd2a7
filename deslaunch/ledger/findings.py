"""What a person found out about unknown or failed rows: one by one, or as a file.

The file is CSV with a header line, or JSONL. ``key`` names the row; ``as`` is ``started`` or
``not-started`` (or ``notStarted``, as in the ledger's record), in any letter case; ``jobRunId``
goes with ``started``; ``note`` is kept.
"""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from deslaunch.errors import ConfigurationError
from deslaunch.readers import separator_advice

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

# In small letters; the last spelling is the command line's.
_VERDICTS: Final = {("started", False), ("notstarted", True), ("not-started", True)}

_FIELDS: Final = frozenset({"key", "as", "jobRunId", "note"})
_FORM: Final = "a finding has key, as (started or not-started), jobRunId (if started) and note"


class Finding(NamedTuple):
    """One row that a person looked up.

    Attributes:
        key: the row's key.
        job_run_id: the run that it started, a GUID; None: it started nothing, and the next
            resume may send it.
        note: the person's words.
    """

    key: str
    job_run_id: str | None
    note: str = ""


def read_findings(path: Path, *, note: str = "") -> list[Finding]:
    """Read a file of findings.

    Args:
        path: ``.csv``, else JSONL.
        note: for findings that have none of their own.

    Raises:
        ConfigurationError: the file can't be read, or a finding says too little; the message
            names its line.
    """
    rows = _csv_rows if path.suffix == ".csv" else _jsonl_rows

    try:
        return [_finding(row, f"{path}:{line}", note) for line, row in rows(path)]
    except OSError as exc:
        raise ConfigurationError(
            f"{path}: can't be read: {exc.strerror or exc}", hint="check the path and its mode"
        ) from exc
    except (UnicodeDecodeError, csv.Error, orjson.JSONDecodeError) as exc:
        raise ConfigurationError(f"{path}: is no file of findings: {exc}", hint=_FORM) from exc


def _csv_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, strict=True)

        if advice := separator_advice(reader.fieldnames or []):
            raise ConfigurationError(f"{path}:1: {advice}", hint=_FORM)

        for row in reader:
            yield reader.line_num, {name: value for name, value in row.items() if value}


def _jsonl_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield number, orjson.loads(line)


def _finding(row: Mapping[str, Any], where: str, note: str) -> Finding:
    if not isinstance(row, dict) or not isinstance(row.get("key"), str):
        raise ConfigurationError(f"{where}: a finding needs a key", hint=_FORM)

    unknown = sorted(map(str, row.keys() - _FIELDS))

    if unknown:
        raise ConfigurationError(
            f"{where}: unknown field {unknown[0]!r}; a finding has key, as, jobRunId and note",
            hint=_FORM,
        )

    verdict, job_run_id = row.get("as"), row.get("jobRunId")

    if (str(verdict).lower(), job_run_id is None) not in _VERDICTS:
        raise ConfigurationError(
            f"{where}: expected as=started with a jobRunId, or as=not-started without one; got "
            f"as={verdict!r} and jobRunId={job_run_id!r}",
            hint=_FORM,
        )

    return Finding(row["key"], job_run_id, str(row.get("note") or note))
