"""What became of every row, told from a ledger and its manifest, in manifest order.

Nothing here locks or changes a ledger, so that a batch at work can be looked at.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson

from deslaunch import durable
from deslaunch.endings import Ending
from deslaunch.errors import ManifestError
from deslaunch.keys import NO_SUSPECTS, FirstLook, KeyRing, Repeat, row_digest
from deslaunch.ledger import records_of
from deslaunch.manifest import Manifest, ManifestOptions, sha256_of
from deslaunch.model import Row, RowState, RunState, WatchSummary
from deslaunch.shards import index_of
from deslaunch.states import NO_ANSWER

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from deslaunch.keys import Suspects
    from deslaunch.ledger import Snapshot
    from deslaunch.model import Format, Stop, Summary
    from deslaunch.replay import Replay
    from deslaunch.rows import Item
    from deslaunch.states import KeyState

COLUMNS: Final = (
    "key",
    "row",
    "target",
    "jobId",
    "state",
    "jobRunId",
    "attempts",
    "status",
    "error",
    "possibleDuplicate",
    "sentUtc",
    "answeredUtc",
    "finished",
    "success",
    "statusText",
    "finishedUtc",
    "outputFiles",
)

FAILURES: Final = 5
"""Texts of failed runs that a watch's summary shows."""

CLOCKS_APART: Final = 300.0
"""Seconds that the clocks of this machine and of DES may differ, where a run is looked for."""

Result = dict[str, Any]
"""One row's result, with the keys of ``COLUMNS``."""


def run_state_of(result: Result) -> RunState | None:
    """Return what is known of a row's run, or None where it has none."""
    if result["state"] != RowState.STARTED:
        return None

    if not result["finished"]:
        return RunState.UNFINISHED if result["finished"] is None else RunState.UNTOLD

    return RunState.SUCCEEDED if result["success"] else RunState.FAILED


@dataclass(frozen=True, slots=True)
class Choice:
    """Which rows are asked for: those that fit each of these, or all where nothing is said.

    Attributes:
        states: states, one of which a row must be in.
        runs: what must be known of its run, one of them.
        possible_duplicates: only rows that may have been started twice.
    """

    states: Collection[str] = ()
    runs: Collection[str] = ()
    possible_duplicates: bool = False

    def __bool__(self) -> bool:
        """Some rows may be left out."""
        return self != Choice()

    def takes(self, result: Result) -> bool:
        """Tell whether a row is asked for."""
        return (
            (not self.states or result["state"] in self.states)
            and (not self.runs or run_state_of(result) in self.runs)
            and (not self.possible_duplicates or result["possibleDuplicate"])
        )


class Results:
    """The rows of one batch, each once.

    Iterate over it, as often as needed. Rows of the manifest that no ledger knows yet are
    pending; rows that were sent and have left the manifest come last.

    Args:
        found: the ledger, or those of some shards of one manifest. Of one shard alone, the rows
            are its own; of several, they are all rows of the manifest.
        manifest: where the manifest is now; default: where the last session found it.

    Attributes:
        warning: why the rows are the ledger's own, in its order, and pending ones may be
            missing; ``""`` where the manifest was found.
    """

    def __init__(self, *found: Snapshot, manifest: Path | None = None) -> None:
        self._ledgers = found
        self._first = found[0].replay
        self._shards = _Shards(found)
        self._manifest = self._find(manifest)
        self.warning = "" if self._manifest or self._said is None else self._missing(manifest)

    def __iter__(self) -> Iterator[Result]:
        return (result for result, _ in self.with_rows())

    def with_rows(self) -> Iterator[tuple[Result, Row | None]]:
        """Yield each result with its row, None where the manifest has none that can be read."""
        if self._manifest is None:
            return ((result, None) for result in self._of_ledger())

        return self._of_manifest(self._manifest)

    def manifest_rows(self) -> Iterator[Row]:
        """Yield the rows of the manifest that can be read.

        Raises:
            ManifestError: it is not there, or not what the last session read.
        """
        if self._manifest is None:
            raise ManifestError(
                self.warning or f"{self._ledgers[0].path}: its rows came from a program",
                hint="name the manifest with --manifest; without one there are results alone",
            )

        for item in self._manifest.first_pass():
            if isinstance(item, Row):
                yield item

    @property
    def _said(self) -> Mapping[str, Any] | None:
        return self._first.manifest

    def _find(self, given: Path | None) -> Manifest | None:
        """Return the manifest, if it is the one that the last session read."""
        if self._said is None:
            return None

        header = self._first.header
        path = given or Path(self._said["path"])
        options = ManifestOptions(
            format=header["format"], job_id=header["jobId"], target=header["target"]
        )
        return Manifest(path, options) if sha256_of(path) == self._said["sha256"] else None

    def _missing(self, given: Path | None) -> str:
        assert self._said is not None
        path = given or self._said["path"]
        return (
            f"{path} is not there, or not what the last session read: rows that were never "
            "sent are missing, and the order is the ledger's"
        )

    def _of_ledger(self) -> Iterator[Result]:
        for found in self._ledgers:
            for state in found.replay.states.in_order():
                if state.in_manifest or state.was_sent:
                    yield _keyed(found, state)

            for number, record in found.replay.unkeyed_invalid.items():
                yield _unkeyed(number, record)

    def _of_manifest(self, manifest: Manifest) -> Iterator[tuple[Result, Row | None]]:
        ring = KeyRing(
            allow_duplicates="duplicates" in self._first.header["allow"],
            suspects=self._suspects(manifest),
        )

        for item in manifest.first_pass():
            row = item if isinstance(item, Row) else None

            for result in self._of_item(item, ring):
                yield result, row

        for found in self._ledgers:
            for state in found.replay.states.outside():
                if state.was_sent:
                    yield _keyed(found, state), None

    def _suspects(self, manifest: Manifest) -> Suspects:
        """Return the rows that may share a key: none, unless the batch allowed for such."""
        headers = [found.replay.header for found in self._ledgers]

        if not any("duplicates" in said["allow"] or said["skipInvalid"] for said in headers):
            return NO_SUSPECTS

        look = FirstLook()

        for item in manifest.first_pass():
            if isinstance(item, Row):
                look.see(item)

        return look.suspects

    def _of_item(self, item: Item, ring: KeyRing) -> Iterator[Result]:
        """Yield a row's result, unless it is another shard's."""
        if isinstance(item, Row):
            yield from self._of_row(item, ring)
        elif item[0].row:
            yield from self._of_unkeyed(item[0].row)

    def _of_row(self, row: Row, ring: KeyRing) -> Iterator[Result]:
        key = ring.claim(row, row_digest(row))

        if isinstance(key, Repeat):
            yield from self._of_unkeyed(row.number, row)
            return

        found = self._shards.ledger(key, row.number)
        state = None if found is None else found.replay.get(key)

        if found is not None and state is not None:
            yield _keyed(found, state, row)
        elif found is not None or self._shards.several:
            yield _pending(key, row.number, row)

    def _of_unkeyed(self, number: int, row: Row | None = None) -> Iterator[Result]:
        """Yield a row without a key of its own: invalid, or not come to yet."""
        found = self._shards.ledger(None, number)
        record = None if found is None else found.replay.unkeyed_invalid.get(number)

        if record is not None:
            yield _unkeyed(number, record, row)
        elif found is not None or self._shards.several:
            yield _pending(None, number, row)


class _Shards:
    """Tells which of some ledgers a row belongs to.

    Attributes:
        several: there is more than one.
    """

    def __init__(self, found: Sequence[Snapshot]) -> None:
        shards = [ledger.replay.shard for ledger in found]
        self.several = len(found) > 1
        self._count = 1 if shards[0] is None else shards[0].count
        self._ledgers = {
            1 if shard is None else shard.index: ledger
            for shard, ledger in zip(shards, found, strict=True)
        }

    def ledger(self, key: str | None, number: int) -> Snapshot | None:
        """Return the ledger that tells of a row; None where it is not there."""
        index = 1 if self._count == 1 else index_of(key, number, self._count)
        return self._ledgers.get(index)


def _keyed(found: Snapshot, state: KeyState, row: Row | None = None) -> Result:
    outcome = state.outcome()
    current = state.live_state if found.live else outcome.state
    return {
        "key": outcome.key,
        "row": row.number if row else outcome.row,
        "target": row.target if row else outcome.target,
        "jobId": row.job_id if row else outcome.job_id,
        "state": str(current),
        "jobRunId": outcome.job_run_id,
        "attempts": outcome.attempts,
        "status": outcome.status,
        "error": "" if current is RowState.IN_FLIGHT else outcome.error,
        "possibleDuplicate": outcome.possible_duplicate,
        "sentUtc": state.sent_utc,
        "answeredUtc": state.answered_utc,
        **_ended(found.replay.endings.record(state.number)),
    }


def _ended(record: Mapping[str, Any] | None) -> Result:
    """Return what is known of a run's end; success means nothing before it."""
    if record is None:
        return dict.fromkeys(_OF_RUN)

    finished = record.get("finished") is True
    return {
        "finished": finished,
        "success": record.get("success") is True if finished else None,
        "statusText": record.get("status"),
        "finishedUtc": record.get("finishedUtc"),
        "outputFiles": record.get("outputFiles") if finished else None,
    }


_OF_RUN: Final = COLUMNS[-5:]


def _pending(key: str | None, number: int, row: Row | None) -> Result:
    return {
        **dict.fromkeys(COLUMNS),
        "key": key,
        "row": number,
        "target": row.target if row else None,
        "jobId": row.job_id if row else None,
        "state": str(RowState.PENDING),
        "attempts": 0,
        "error": "",
        "possibleDuplicate": False,
    }


def _unkeyed(number: int, record: Mapping[str, Any], row: Row | None = None) -> Result:
    problems = (problem["message"] for problem in record.get("problems", ()))
    return {
        **dict.fromkeys(COLUMNS),
        "row": number,
        "target": row.target if row else None,
        "jobId": row.job_id if row else None,
        "state": str(RowState.INVALID),
        "attempts": 0,
        "error": "; ".join(problems),
        "possibleDuplicate": False,
    }


def encode_results(results: Iterable[Result], form: Format) -> Iterator[bytes]:
    """Yield the lines of results as JSONL, or as CSV with a header line, UTF-8."""
    if form == "jsonl":
        for result in results:
            yield orjson.dumps(result, option=orjson.OPT_APPEND_NEWLINE)

        return

    line = io.StringIO()
    writer = csv.writer(line)
    writer.writerow(COLUMNS)

    for result in results:
        writer.writerow(result_cell(result[column]) for column in COLUMNS)
        yield line.getvalue().encode()
        line.seek(0)
        line.truncate()

    yield line.getvalue().encode()


def result_cell(value: object) -> object:
    """Return a value of a result as CSV has it."""
    if isinstance(value, list | dict):
        return orjson.dumps(value).decode()

    return str(value).lower() if isinstance(value, bool) else value


def write_lines(lines: Iterable[bytes], path: Path) -> None:
    """Write the lines of results to a file.

    After return the whole file is on disk; after an error the old one is there unchanged.

    Raises:
        ManifestError: the file can't be written, or the manifest can't be read.
    """
    try:
        with durable.replacing(path) as stream:
            stream.writelines(lines)
    except OSError as exc:
        raise ManifestError(
            f"{path}: can't be written: {exc.strerror or exc}",
            hint="get leave to write there, or name another file",
        ) from exc


def summary_of(found: Snapshot) -> Summary:
    """Return the counts of a whole batch as its ledger stands."""
    replay = found.replay
    began = (replay.session or {}).get("utc")
    return replay.summary(
        ledger=str(found.path), seconds=_between(began, replay.last_utc), live=found.live
    )


def runs_of(
    replay: Replay, batch: Summary, *, seconds: float = 0.0, stops: Iterable[Stop] = ()
) -> WatchSummary:
    """Return how the runs of a whole batch stand.

    Args:
        replay: of its ledger.
        batch: how the rows stand.
        seconds: duration of the watch.
        stops: why it ended early.
    """
    counts = replay.endings.counts()
    return WatchSummary(
        runs=batch.started,
        succeeded=counts[Ending.SUCCEEDED],
        failed=counts[Ending.FAILED],
        untold=counts[Ending.UNTOLD],
        unfinished=batch.started - sum(counts.values()),
        batch=batch,
        failures=_failures(replay) if counts[Ending.FAILED] else (),
        seconds=seconds,
        stops=tuple(stops),
    )


def watched_runs(found: Snapshot, batch: Summary) -> WatchSummary | None:
    """Return how the runs of a whole batch stand, or None where none was watched."""
    replay = found.replay
    return runs_of(replay, batch) if replay.watch or replay.endings.counts() else None


def _failures(replay: Replay) -> tuple[tuple[str, int, str], ...]:
    found: dict[str, tuple[int, str]] = {}

    for state in replay.states.in_order():
        if replay.endings.of(state.number) is Ending.FAILED:
            record = replay.endings.record(state.number) or {}
            text = str(record.get("status") or "")
            runs, key = found.get(text, (0, record["key"]))
            found[text] = runs + 1, key

    commonest = sorted(found.items(), key=lambda item: -item[1][0])[:FAILURES]
    return tuple((text, runs, key) for text, (runs, key) in commonest)


def _between(began: str | None, ended: str | None) -> float:
    if began is None or ended is None:
        return 0.0

    return (datetime.fromisoformat(ended) - datetime.fromisoformat(began)).total_seconds()


@dataclass(frozen=True, slots=True)
class UnknownRow:
    """What a person needs to look an unknown row up in the DES web interface.

    Attributes:
        key: the row's key.
        row: data row, from 1.
        target: the target's name.
        job_id: the job's GUID.
        parameters: as they were sent.
        from_utc: begin of the time in which to look for its run, RFC 3339: when it was sent,
            and some minutes earlier, since two clocks are compared.
        to_utc: end of that time: when the attempt's time was over or the loss of its answer was
            noticed, and some minutes later. What a gateway held back may run later still.
        cause: why the outcome is unknown.
        job_run_id: a jobRunId that came with an answer which could not be relied on, or None.
    """

    key: str
    row: int
    target: str
    job_id: str
    parameters: Mapping[str, Any]
    from_utc: str
    to_utc: str
    cause: str
    job_run_id: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the row with the names that the ledger gives its fields."""
        return {
            "key": self.key,
            "row": self.row,
            "target": self.target,
            "jobId": self.job_id,
            "parameters": dict(self.parameters),
            "fromUtc": self.from_utc,
            "toUtc": self.to_utc,
            "cause": self.cause,
            "jobRunId": self.job_run_id,
        }


def unknown_rows(found: Snapshot) -> Iterator[UnknownRow]:
    """Yield the unknown rows of a batch, in the order in which they were first sent.

    Raises:
        LedgerError: the ledger can't be read any more.
    """
    traces = {
        state.key: _Trace(state.key, state.target)
        for state in found.replay.states.in_order()
        if (state.live_state if found.live else state.state) is RowState.UNKNOWN
    }

    if not traces:
        return

    for record in records_of(found.path):
        trace = traces.get(record.get("key", ""))

        if trace is not None:
            trace.take(record)

    options = (found.replay.session or {}).get("options", {})
    yield from (trace.row(options.get("timeout", 0)) for trace in traces.values())


class _Trace:
    """What the records say of one row's doubts."""

    def __init__(self, key: str, target: str) -> None:
        self._key = key
        self._target = target
        self._sent: Mapping[str, Any] = {}
        self._parameters: Mapping[str, Any] = {}
        self._open: dict[int, Mapping[str, Any]] = {}
        self._doubts: list[tuple[Mapping[str, Any], Mapping[str, Any]]] = []

    def take(self, record: Mapping[str, Any]) -> None:
        """Take in the row's next record."""
        kind = record["record"]

        if kind == "sending":
            self._sent = self._open[record["attempt"]] = record
            self._parameters = record.get("body", {}).get("parameters", self._parameters)
        elif kind == "resolved":
            self._open.clear()
            self._doubts.clear()
        elif "attempt" in record:
            sent = self._open.pop(record["attempt"], self._sent)

            if kind == "unknown":
                self._doubts.append((sent, record))

    def row(self, timeout: float) -> UnknownRow:
        """Return the row with one window around all its doubts."""
        doubts = [*self._doubts, *((sent, {}) for sent in self._open.values())]
        doubts.sort(key=lambda doubt: doubt[0]["attempt"])
        first, (last, ending) = doubts[0], doubts[-1]
        return UnknownRow(
            key=self._key,
            row=self._sent["row"],
            target=self._target,
            job_id=self._sent["jobId"],
            parameters=self._parameters,
            from_utc=_moved(first[0]["utc"], -CLOCKS_APART),
            to_utc=max(
                _moved(last["utc"], timeout + CLOCKS_APART),
                _moved(ending.get("utc", last["utc"]), CLOCKS_APART),
            ),
            cause=first[1].get("cause") or NO_ANSWER,
            job_run_id=first[1].get("jobRunId"),
        )


def _moved(utc: str, seconds: float) -> str:
    time = datetime.fromisoformat(utc) + timedelta(seconds=seconds)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
