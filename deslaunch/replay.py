"""What the ledger says: the state of every row as a function of its records.

Pure. The same function serves the file that is read back and the records of the session at
work, so that what a launch counts is what the next resume will find.

First match wins: *started*; *unknown* while any attempt is in doubt (sent with no later record
of it, or recorded unknown, and not since resolved as not started: a later refusal does not lift
a doubt); the last final record with no later start or resolution; *pending*.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from types import NoneType
from typing import TYPE_CHECKING, Any, Final

from deslaunch.endings import Endings
from deslaunch.errors import LedgerForeign
from deslaunch.model import RowState, Summary
from deslaunch.records import VERSION
from deslaunch.shards import Shard
from deslaunch.states import KeyStates

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from deslaunch.model import Outcome, Stop
    from deslaunch.records import Record
    from deslaunch.states import KeyState, Mention

_Types = type | tuple[type, ...]
_TEXT: Final = (str, NoneType)
_OBJECT: Final = (Mapping, NoneType)
_MANIFEST: Final[dict[str, _Types]] = {"sha256": str, "rows": int, "shardRows": int}
_ATTEMPT: Final[dict[str, _Types]] = {"key": str, "attempt": int, "utc": str}
_ANSWER: Final[dict[str, _Types]] = {**_ATTEMPT, "status": (int, NoneType), "error": str}
_REQUIRED: Final[dict[str, dict[str, _Types]]] = {
    "batch": {
        "ledger": str,
        "batchId": str,
        "createdUtc": str,
        "manifest": _OBJECT,
        "format": _TEXT,
        "jobId": _TEXT,
        "target": _TEXT,
        "allow": list,
        "skipInvalid": bool,
    },
    "session": {
        "utc": str,
        "pid": int,
        "host": str,
        "manifest": _OBJECT,
        "targets": Mapping,
        "options": Mapping,
    },
    "sending": {**_ATTEMPT, "row": int, "jobId": str, "digest": str},
    "answered": _ANSWER,
    "unsent": {**_ATTEMPT, "error": str},
    "started": {**_ATTEMPT, "jobRunId": str},
    "rejected": _ANSWER,
    "failed": _ANSWER,
    "unknown": {**_ATTEMPT, "cause": str, "status": (int, NoneType)},
    "invalid": {"key": _TEXT, "row": int, "problems": list, "utc": str},
    "resolved": {"key": str, "as": str, "jobRunId": _TEXT, "utc": str},
    "membership": {"key": str, "inManifest": bool},
    "end": {},
    "pause": {},
}
"""What the replay reads of each kind. Anything else in a record may be missing or new."""

_PLAIN: Final = {
    kind: (itemgetter(*fields), (*fields.values(),))
    for kind, fields in _REQUIRED.items()
    if kind in {"sending", "started"}
}
"""Of the kinds that most records are of: how to take all the fields, and their types."""


def check(record: Record) -> None:
    """Refuse a record from which no state can be told.

    Raises:
        ValueError: a field that its kind needs is missing or garbled; the message says which.
    """
    if not _is_plain(record):
        _check_kind(record)


def _is_plain(record: Record) -> bool:
    """Tell at a glance that a record of the commonest kinds has what it needs."""
    plain = _PLAIN.get(record["record"])

    if plain is None:
        return False

    try:
        said = plain[0](record)
    except KeyError:
        return False

    return (*map(type, said),) == plain[1] and said[-1] != ""


def _check_kind(record: Record) -> None:
    kind = record["record"]
    required = _REQUIRED.get(kind)

    if required is None:
        return

    _check_fields(record, required)

    if record.get("manifest") is not None and kind in {"batch", "session"}:
        _check_fields({"shardRows": 0, **record["manifest"]}, _MANIFEST)

    if kind == "resolved" and record["as"] not in {"started", "notStarted"}:
        raise ValueError("no usable 'as'")

    if "started" in {kind, kind == "resolved" and record["as"]} and not record["jobRunId"]:
        raise ValueError("no usable 'jobRunId'")  # else a run would count as none


def _check_fields(record: Mapping[str, Any], required: Mapping[str, _Types]) -> None:
    for name, types in required.items():
        if name not in record or not isinstance(record[name], types):
            raise ValueError(f"no usable {name!r}")


def _rows_of(manifest: Mapping[str, Any] | None) -> int:
    """Return how many of a manifest's rows are the batch's: all, or those of its shard."""
    said = manifest or {"rows": 0}
    return int(said.get("shardRows", said["rows"]))


class Replay:
    """The fold of a ledger's records.

    Args:
        states: where to keep what is said of each key, empty; by default in memory.

    Attributes:
        header: the batch's header.
        session: the last session's record, or None.
        last_utc: when the last record was written, or None.
        ended: the last session wrote its end.
        states: by key, in the order of their first record.
        unkeyed_invalid: by row, the invalid rows of the last manifest that have no key.
        endings: how runs ended that were watched, by the numbers of their keys.
        watch: the record of who watches since the last session, or None.
        unreadable: kinds that this version does not know and that are not optional.
    """

    def __init__(self, states: KeyStates | None = None) -> None:
        self.header: Record = {}
        self.session: Record | None = None
        self.last_utc: str | None = None
        self.ended = False
        self.states = KeyStates() if states is None else states
        self.unkeyed_invalid: dict[int, Record] = {}
        self.endings = Endings(self.states.fetch)
        self.watch: Record | None = None
        self.unreadable: set[str] = set()
        self._runs = 0
        self._shared: tuple[int, tuple[tuple[str, tuple[str, ...]], ...]] = (0, ())
        self._handlers: dict[str, Callable[[Record, Mention], KeyState | None]] = {
            "batch": self._on_second_header,
            "session": self._on_session,
            "sending": self._on_sending,
            "answered": self._on_settled,
            "unsent": self._on_unsent,
            "started": self._on_started,
            "rejected": self._on_final,
            "failed": self._on_final,
            "unknown": self._on_unknown,
            "invalid": self._on_invalid,
            "resolved": self._on_resolved,
            "membership": self._on_membership,
            "end": self._on_end,
            "pause": self._on_optional,
            "watch": self._on_watch,
            "runStatus": self._on_run_status,
        }

    def __repr__(self) -> str:
        return f"<Replay of {len(self.states)} keys, {len(self.unkeyed_invalid)} without a key>"

    def apply(self, record: Record, offset: int = -1) -> None:
        """Take in the next record.

        Args:
            record: with its time.
            offset: where it stands in the ledger; -1 where it can't be read back.

        Raises:
            LedgerForeign: the header is no header, or a newer version's.
            ValueError: a field is missing or garbled, or it is a second header.
        """
        if self.header:
            check(record)

        self.take(record, offset)

    def take(self, record: Record, offset: int = -1) -> None:
        """Take in the next record, which is known to pass :func:`check`.

        Args:
            record: with its time.
            offset: where it stands in the ledger; -1 where it can't be read back.

        Raises:
            LedgerForeign: the header is no header, or a newer version's.
            ValueError: it is a second header.
        """
        if not self.header:
            self._on_header(record)
            return

        handler = self._handlers.get(record["record"])

        if handler is not None:
            state = handler(record, (offset, record))

            if state is not None:
                self.states.rest(state)
        elif record.get("optional") is not True:
            self.unreadable.add(record["record"])

        self.last_utc = record.get("utc", self.last_utc)

    def get(self, key: str) -> KeyState | None:
        """Return what the records say of a key, or None where they say nothing."""
        return self.states.find(key)

    @property
    def manifest(self) -> Mapping[str, Any] | None:
        """Path, sha256 and rows of the manifest as the last session read it, or None."""
        return (self.session or self.header).get("manifest")

    @property
    def shard(self) -> Shard | None:
        """The shard that the batch is, or None for all rows."""
        said = self.header.get("shard")
        return None if said is None else Shard.parse(said)

    def outcome(self, key: str) -> Outcome:
        """Return a keyed row's outcome as the ledger stands."""
        return self.states[key].outcome()

    def summary(
        self,
        *,
        ledger: str,
        seconds: float,
        live: bool = False,
        stops: Iterable[Stop] = (),
        unrecorded: Iterable[tuple[str, str]] = (),
    ) -> Summary:
        """Return the counts of the whole batch.

        Args:
            ledger: path of the ledger.
            seconds: duration of the last session.
            live: a launcher holds the ledger, so that open attempts are in flight.
            stops: why this session ended early.
            unrecorded: (key, jobRunId) that could not be written.
        """
        counts = dict.fromkeys(RowState, 0)
        counts[RowState.INVALID] = len(self.unkeyed_invalid)
        duplicates = attempts = gone = known = 0

        for state, keys in self.states.counted():
            attempts += keys * state.sent
            known += keys * state.in_manifest

            if state.in_manifest or state.was_sent:
                counts[state.live_state if live else state.state] += keys
                duplicates += keys * state.possible_duplicate
                gone += keys * (not state.in_manifest)

        rows = self._manifest_rows(known + len(self.unkeyed_invalid)) + gone
        settled = sum(counts.values()) - counts[RowState.PENDING]
        return Summary(
            rows=rows,
            started=counts[RowState.STARTED],
            failed=counts[RowState.FAILED],
            rejected=counts[RowState.REJECTED],
            unknown=counts[RowState.UNKNOWN],
            invalid=counts[RowState.INVALID],
            pending=rows - settled,
            in_flight=counts[RowState.IN_FLIGHT],
            possible_duplicates=duplicates,
            attempts=attempts,
            seconds=seconds,
            ledger=ledger,
            stops=tuple(stops),
            unrecorded=tuple(unrecorded),
            shared_runs=self.shared_runs(),
        )

    def shared_runs(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Return each jobRunId that stands at more than one key, with the keys.

        A look at hashes tells which ids can be such; only these are read back.
        """
        if self._shared[0] != self._runs:
            self._shared = (self._runs, tuple(self._repeated_runs()))

        return self._shared[1]

    def _repeated_runs(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        keys: dict[str, list[str]] = {}

        for state in self.states.with_runs(self.states.repeated_runs()):
            keys.setdefault(str(state.job_run_id).lower(), []).append(state.key)

        yield from ((run, tuple(found)) for run, found in keys.items() if len(found) > 1)

    def keys_of_runs(self, runs: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Yield (jobRunId in lower case, key) of each key that has one of these runs."""
        sought = {run.lower() for run in runs}

        for state in self.states.with_runs({self.states.run_hash(run) for run in sought}):
            run = str(state.job_run_id).lower()

            if run in sought:
                yield run, state.key

    def _manifest_rows(self, known: int) -> int:
        """Return the batch's rows in the manifest; one of an iterable has those that were read."""
        return max(known, _rows_of(self.manifest))

    def _on_header(self, record: Record) -> None:
        if record["record"] != "batch" or record.get("ledger") != VERSION:
            found = record.get("ledger", record["record"])
            raise LedgerForeign(
                f"expected a ledger of version {VERSION}, got {found!r}",
                hint="use the version of deslaunch that wrote it, or another --ledger",
            )

        check(record)
        self.header = record
        self.states.reserve(_rows_of(record["manifest"]))

    def _on_second_header(self, _record: Record, _mention: Mention) -> None:
        raise ValueError("a second header: two ledgers in one file")

    def _on_session(self, record: Record, _mention: Mention) -> None:
        known, read = self.manifest, record["manifest"]

        if known is None or read is None or known["sha256"] != read["sha256"]:
            self.unkeyed_invalid.clear()  # the session records anew what is still invalid

        for state in self.states.objects():
            state.leave_open()

        self.session = record
        self.watch = None
        self.ended = False

    def _on_sending(self, record: Record, mention: Mention) -> None:
        self.states.begin(record, mention)

    def _on_settled(self, record: Record, mention: Mention) -> KeyState:
        state = self.states.change(record["key"])
        state.settle(record, mention)
        return state

    def _on_unsent(self, record: Record, mention: Mention) -> KeyState:
        state = self._on_settled(record, mention)
        state.unsent += 1
        return state

    def _on_started(self, record: Record, mention: Mention) -> KeyState | None:
        self._runs += 1
        return self.states.end(record, mention)

    def _on_final(self, record: Record, mention: Mention) -> KeyState:
        state = self._on_settled(record, mention)
        state.final = RowState(record["record"])
        return state

    def _on_unknown(self, record: Record, mention: Mention) -> KeyState:
        state = self._on_settled(record, mention)
        state.doubt(record)
        return state

    def _on_invalid(self, record: Record, mention: Mention) -> KeyState | None:
        if record["key"] is None:
            self.unkeyed_invalid[record["row"]] = record
            return None

        state = self.states.change(record["key"])
        state.refuse(mention)
        return state

    def _on_resolved(self, record: Record, mention: Mention) -> KeyState:
        state = self.states.change(record["key"])

        if record["as"] == "started":
            state.resolve_started(mention)
            self._runs += 1
        else:
            state.resolve_not_started()

        return state

    def _on_membership(self, record: Record, _mention: Mention) -> KeyState:
        state = self.states.change(record["key"])
        state.in_manifest = record["inManifest"]
        return state

    def _on_end(self, _record: Record, _mention: Mention) -> None:
        self.ended = True

    def _on_watch(self, record: Record, _mention: Mention) -> None:
        for state in self.states.objects():
            state.leave_open()

        self.watch = record

    def _on_run_status(self, record: Record, mention: Mention) -> None:
        """Keep how a run ended; a record of a run that is not the row's says nothing."""
        key, run = record.get("key"), record.get("jobRunId")

        if not isinstance(key, str) or not isinstance(run, str):
            return

        state = self.states.find(key)

        if state is not None and (state.job_run_id or "").lower() == run.lower():
            self.endings.put(state.number, mention[0], record)

    def _on_optional(self, _record: Record, _mention: Mention) -> None:
        """Known, and of no weight for any row's state."""
