"""The ledger's records and their codec: a contract with every tool that reads a ledger.

A ledger is JSONL. ``record`` names a line's kind, and every line ends with
``,"crc":"8 lower-case hex digits"}``: the CRC-32 of the line's bytes before that ending.

Compatibility: unknown fields are ignored. An unknown kind refuses a resume unless it says
``"optional": true``. An unknown version in the header refuses everything.

A record is built by the function of its kind, in the documented order of fields; ``encode``
adds the time and the checksum. ``membership`` is an optional kind of deslaunch's own: it says
that a key left the manifest or came back, so that counts stay a function of the ledger. So are
``watch``, with which a process begins to follow the runs, and ``runStatus``, what became of one;
none of them changes any row's state.
"""

from __future__ import annotations

from binascii import crc32
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import orjson

from deslaunch.model import DEFAULT_TARGET

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from deslaunch.model import RowProblem, RunStatus, StartRequest

Record = dict[str, Any]

VERSION: Final = "deslaunch/1"
START: Final = b'{"record":"'
HEADER_START: Final = b'{"record":"batch","ledger":"'
LINE_LIMIT: Final = 1 << 24
"""Bytes of a line, newline included; a manifest's row is at most 1 MiB."""

PROBLEM_LIMIT: Final = 1000
"""Problems of one invalid row that are kept."""

_ENDING: Final = len(',"crc":"01234567"}\n')
_CHECKSUM: Final = b',"crc":"%08x"}\n'


class BadRecord(ValueError):
    """A line is no record: torn, damaged or foreign."""


def encode(record: Record, utc: str) -> bytes:
    """Return a record's line.

    Args:
        record: as one of this module's functions built it.
        utc: RFC 3339 with milliseconds and Z; it is put into the record too.

    Raises:
        ValueError: the line would be longer than :data:`LINE_LIMIT`, so that no reader takes it.
        TypeError: a value is none of JSON's.
    """
    stamp = "createdUtc" if record["record"] == "batch" else "utc"
    record[stamp] = utc

    try:
        text = orjson.dumps(record)
    except TypeError:
        text = orjson.dumps(_in_utf8(record))  # a path, or an answer, may hold what is no UTF-8

    line = _sealed(text[:-1])

    if len(line) > LINE_LIMIT:
        raise ValueError(f"a record of {len(line)} bytes is too long for a ledger")

    return line


def _sealed(head: bytes) -> bytes:
    return b'%b,"crc":"%08x"}\n' % (head, crc32(head))


def _in_utf8(value: Any) -> Any:
    """Return ``value`` with lone surrogates, which UTF-8 can't hold, spelled out."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()

    if isinstance(value, dict):
        return {_in_utf8(name): _in_utf8(item) for name, item in value.items()}

    return [_in_utf8(item) for item in value] if isinstance(value, list | tuple) else value


def decode(line: bytes) -> Record:
    """Return the record of a line, its newline included.

    Raises:
        BadRecord: the ending, the checksum or the JSON is wrong; the message says which.
    """
    ending = line[-_ENDING:]

    if ending[:8] != b',"crc":"' or ending[-3:] != b'"}\n':
        raise BadRecord("the line does not end with its checksum")

    head = line[:-_ENDING]

    if ending != _CHECKSUM % crc32(head):
        raise BadRecord("the checksum does not match")

    try:
        record = orjson.loads(head + b"}")
    except orjson.JSONDecodeError as exc:
        raise BadRecord(f"no JSON: {exc}") from exc

    if not isinstance(record, dict) or not isinstance(record.get("record"), str):
        raise BadRecord("the line names no kind of record")

    return record


def batch(
    *,
    batch_id: str,
    manifest: Mapping[str, Any] | None,
    format: str | None,  # noqa: A002  # the field's documented name
    job_id: str | None,
    target: str | None,
    allow: Iterable[str],
    skip_invalid: bool,
    version: str,
    shard: str | None = None,
) -> Record:
    """Return the header: what stays true for the whole batch."""
    return {
        "record": "batch",
        "ledger": VERSION,
        "batchId": batch_id,
        "createdUtc": None,
        "manifest": manifest,
        "format": format,
        "jobId": job_id,
        "target": target,
        "shard": shard,
        "allow": sorted(allow),
        "skipInvalid": skip_invalid,
        "version": version,
    }


def session(
    *,
    pid: int,
    host: str,
    manifest: Mapping[str, Any] | None,
    targets: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Record:
    """Return the record of one launcher that begins to work on the batch."""
    return {
        "record": "session",
        "utc": None,
        "pid": pid,
        "host": host,
        "manifest": manifest,
        "targets": targets,
        "options": options,
    }


def sending(request: StartRequest, attempt: int, *, with_body: bool) -> Record:
    """Return the intent to send; it is on disk before the first byte leaves."""
    record: Record = {
        "record": "sending",
        "key": request.key,
        "row": request.row,
        "line": request.line,
        "jobId": request.job_id,
    }

    if request.target != DEFAULT_TARGET:
        record["target"] = request.target

    record["attempt"] = attempt
    record["digest"] = request.digest

    if with_body:
        record["body"] = orjson.Fragment(request.body)

    return record


def answered(key: str, attempt: int, *, status: int | None, error: str) -> Record:
    """Return an answer that settles the attempt and leaves the row pending."""
    return {
        "record": "answered",
        "key": key,
        "attempt": attempt,
        "status": status,
        "error": error,
    }


def unsent(key: str, attempt: int, *, error: str) -> Record:
    """Return the news that no byte of the attempt left."""
    return {"record": "unsent", "key": key, "attempt": attempt, "error": error}


def started(key: str, attempt: int, *, job_run_id: str) -> Record:
    """Return the run that DES started."""
    return {"record": "started", "key": key, "attempt": attempt, "jobRunId": job_run_id}


def rejected(key: str, attempt: int, *, status: int | None, error: str) -> Record:
    """Return DES's no."""
    return {
        "record": "rejected",
        "key": key,
        "attempt": attempt,
        "status": status,
        "error": error,
    }


def failed(key: str, attempt: int, *, status: int | None, error: str) -> Record:
    """Return the 5XX that used up the session's last attempt."""
    return {
        "record": "failed",
        "key": key,
        "attempt": attempt,
        "status": status,
        "error": error,
    }


def unknown(
    key: str,
    attempt: int,
    *,
    cause: str,
    status: int | None = None,
    job_run_id: str | None = None,
    answer: str = "",
) -> Record:
    """Return the doubt: the request left, and no usable answer came."""
    return {
        "record": "unknown",
        "key": key,
        "attempt": attempt,
        "cause": cause,
        "status": status,
        "jobRunId": job_run_id,
        "answer": answer,
    }


def invalid(key: str | None, row: int, line: int, problems: Iterable[RowProblem]) -> Record:
    """Return a row that did not validate and was not sent, with its first 1,000 problems."""
    return {
        "record": "invalid",
        "key": key,
        "row": row,
        "line": line,
        "problems": [problem.as_dict() for problem in islice(problems, PROBLEM_LIMIT)],
    }


def resolved(key: str, *, job_run_id: str | None, note: str) -> Record:
    """Return a person's finding: started as ``job_run_id``, or (None) not started."""
    return {
        "record": "resolved",
        "key": key,
        "as": "notStarted" if job_run_id is None else "started",
        "jobRunId": job_run_id,
        "note": note,
    }


def pause(target: str, *, cause: str, seconds: float) -> Record:
    """Return the news that all rows of a target wait. Optional."""
    return {
        "record": "pause",
        "optional": True,
        "target": target,
        "cause": cause,
        "seconds": round(seconds, 3),
    }


def membership(key: str, *, in_manifest: bool) -> Record:
    """Return the news that a key left the manifest, or came back. Optional."""
    return {"record": "membership", "optional": True, "key": key, "inManifest": in_manifest}


def watch(*, pid: int, host: str) -> Record:
    """Return the record of a process that begins to follow the batch's runs. Optional."""
    return {"record": "watch", "optional": True, "pid": pid, "host": host}


def run_status(key: str, status: RunStatus) -> Record:
    """Return how a run ended, or, where it has not finished, why DES does not tell. Optional."""
    return {
        "record": "runStatus",
        "optional": True,
        "key": key,
        "jobRunId": status.job_run_id,
        "finished": status.finished,
        "success": status.success,
        "status": status.status,
        "createdUtc": status.created_utc,
        "finishedUtc": status.finished_utc,
        "outputFiles": list(status.output_files),
    }


def end(counts: Mapping[str, int]) -> Record:
    """Return the counts with which a session ended."""
    return {"record": "end", **counts}
