"""What the ledger says: the state of every row as a function of its records.

Pure. The same function serves the file that is read back and the records of the session at
work, so that what a launch counts is what the next resume will find.

First match wins: *started*; *unknown* while any attempt is in doubt (sent with no later record
of it, or recorded unknown, and not since resolved as not started: a later refusal does not lift
a doubt); the last final record with no later start or resolution; *pending*.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType
from typing import TYPE_CHECKING, Any, Final

from deslaunch.errors import LedgerForeign
from deslaunch.model import DEFAULT_TARGET, Outcome, RowState, Summary
from deslaunch.records import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from deslaunch.model import Stop
    from deslaunch.records import Record

_FIRST_SERVER_ERROR: Final = 500

_Types = type | tuple[type, ...]
_TEXT: Final = (str, NoneType)
_OBJECT: Final = (Mapping, NoneType)
_MANIFEST: Final[dict[str, _Types]] = {"sha256": str, "rows": int}
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


def check(record: Record) -> None:
    """Refuse a record from which no state can be told.

    Raises:
        ValueError: a field that its kind needs is missing or garbled; the message says which.
    """
    kind = record["record"]
    required = _REQUIRED.get(kind)

    if required is None:
        return

    _check_fields(record, required)

    if record.get("manifest") is not None and kind in {"batch", "session"}:
        _check_fields(record["manifest"], _MANIFEST)

    if kind == "resolved" and record["as"] not in {"started", "notStarted"}:
        raise ValueError("no usable 'as'")

    if "started" in {kind, kind == "resolved" and record["as"]} and not record["jobRunId"]:
        raise ValueError("no usable 'jobRunId'")  # else a run would count as none


def _check_fields(record: Mapping[str, Any], required: Mapping[str, _Types]) -> None:
    for name, types in required.items():
        if name not in record or not isinstance(record[name], types):
            raise ValueError(f"no usable {name!r}")


class KeyState:
    """What the records say of one key.

    Attributes:
        row: data row of its last record that named one.
        job_id: GUID, lower case, or None.
        target: the target's name.
        digest: digest of the row as it was last sent, or None.
        attempts: number of its last attempt, all sessions counted.
        unsent: attempts of which no byte left.
        final: the last final state that no later start or resolution undid, or None.
        job_run_id: the run, once started.
        status: HTTP status of the last answer, or None.
        error: what the last answer said, or ``""``.
        sent_utc: when the last attempt was recorded, or None.
        answered_utc: when the last outcome was recorded, or None.
        in_manifest: the key stands in the manifest of the last session.
    """

    __slots__ = (
        "_doubts",
        "_left_open",
        "_open",
        "_server_errors",
        "answered_utc",
        "attempts",
        "digest",
        "error",
        "final",
        "in_manifest",
        "job_id",
        "job_run_id",
        "row",
        "sent_utc",
        "status",
        "target",
        "unsent",
    )

    def __init__(self) -> None:
        self.row = 0
        self.job_id: str | None = None
        self.target = DEFAULT_TARGET
        self.digest: str | None = None
        self.attempts = 0
        self.unsent = 0
        self.final: RowState | None = None
        self.job_run_id: str | None = None
        self.status: int | None = None
        self.error = ""
        self.sent_utc: str | None = None
        self.answered_utc: str | None = None
        self.in_manifest = True
        self._open: tuple[int, ...] = ()
        self._doubts: tuple[int, ...] = ()
        self._server_errors = 0
        self._left_open = 0

    def __repr__(self) -> str:
        return (
            f"<KeyState {self.state} attempts={self.attempts} open={self._open} "
            f"doubts={self._doubts} run={self.job_run_id}>"
        )

    @property
    def sent(self) -> int:
        """Starts that were sent, or may have been."""
        return self.attempts - self.unsent

    @property
    def state(self) -> RowState:
        """The row's state in a batch at rest."""
        if self.job_run_id is not None:
            return RowState.STARTED

        if self._open or self._doubts:
            return RowState.UNKNOWN

        return self.final or RowState.PENDING

    @property
    def live_state(self) -> RowState:
        """The row's state while a launcher holds the ledger."""
        in_flight = self.job_run_id is None and max(self._open, default=0) > self._left_open
        return RowState.IN_FLIGHT if in_flight else self.state

    @property
    def possible_duplicate(self) -> bool:
        """Started, and an earlier attempt may have started a run as well."""
        return self.job_run_id is not None and bool(
            self._server_errors or self._open or self._doubts
        )

    @property
    def was_sent(self) -> bool:
        """A run of this key exists, or may exist."""
        return self.state in {RowState.STARTED, RowState.UNKNOWN}

    def settle(self, record: Record) -> None:
        """Close the record's attempt and keep what was answered."""
        attempt = record["attempt"]
        self._open = tuple(number for number in self._open if number != attempt)
        self.status = record.get("status")
        self.error = record.get("error") or record.get("cause") or ""
        self.answered_utc = record["utc"]

        if record["record"] != "unknown" and (self.status or 0) >= _FIRST_SERVER_ERROR:
            self._server_errors += 1

    def send(self, record: Record) -> None:
        """Open an attempt: from here until its outcome the row is in doubt."""
        self.row = record["row"]
        self.job_id = record["jobId"]
        self.target = record.get("target", DEFAULT_TARGET)
        self.digest = record["digest"]
        self.attempts = max(self.attempts, record["attempt"])
        self.final = None
        self.sent_utc = record["utc"]
        self._open = (*self._open, record["attempt"])

    def leave_open(self) -> None:
        """Take it that no answer will come: another session has begun."""
        self._left_open = self.attempts

    def doubt(self, record: Record) -> None:
        """Keep the record's attempt in doubt for good."""
        self._doubts = (*self._doubts, record["attempt"])

    def start(self, job_run_id: str) -> None:
        """Keep the first run that is known of the key."""
        self.job_run_id = self.job_run_id or job_run_id

    def resolve_started(self, job_run_id: str) -> None:
        """Take a person's word that one attempt, of those that may have, started a run."""
        if self._doubts:
            self._doubts = self._doubts[:-1]
        elif self._open:
            self._open = self._open[:-1]
        elif self._server_errors:
            self._server_errors -= 1

        self.start(job_run_id)

    def resolve_not_started(self) -> None:
        """Take a person's word that nothing was started so far."""
        self._open = self._doubts = ()
        self._server_errors = 0
        self.final = None


class Replay:
    """The fold of a ledger's records.

    Attributes:
        header: the batch's header.
        session: the last session's record, or None.
        last_utc: when the last record was written, or None.
        ended: the last session wrote its end.
        states: by key, in the order of their first record.
        unkeyed_invalid: by row, the invalid rows of the last manifest that have no key.
        unreadable: kinds that this version does not know and that are not optional.
    """

    def __init__(self) -> None:
        self.header: Record = {}
        self.session: Record | None = None
        self.last_utc: str | None = None
        self.ended = False
        self.states: dict[str, KeyState] = {}
        self.unkeyed_invalid: dict[int, Record] = {}
        self.unreadable: set[str] = set()
        self._open: set[str] = set()
        self._handlers: dict[str, Callable[[Record], None]] = {
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
        }

    def __repr__(self) -> str:
        return f"<Replay of {len(self.states)} keys, {len(self.unkeyed_invalid)} without a key>"

    def apply(self, record: Record) -> None:
        """Take in the next record.

        Args:
            record: with its time.

        Raises:
            LedgerForeign: the header is no header, or a newer version's.
            ValueError: a field is missing or garbled, or it is a second header.
        """
        if not self.header:
            self._on_header(record)
            return

        check(record)
        handler = self._handlers.get(record["record"])

        if handler is not None:
            handler(record)
        elif record.get("optional") is not True:
            self.unreadable.add(record["record"])

        self.last_utc = record.get("utc", self.last_utc)

    def get(self, key: str) -> KeyState | None:
        """Return what the records say of a key, or None where they say nothing."""
        return self.states.get(key)

    @property
    def manifest(self) -> Mapping[str, Any] | None:
        """Path, sha256 and rows of the manifest as the last session read it, or None."""
        return (self.session or self.header).get("manifest")

    def outcome(self, key: str) -> Outcome:
        """Return a keyed row's outcome as the ledger stands."""
        state = self.states[key]
        return Outcome(
            key=key,
            row=state.row,
            target=state.target,
            job_id=state.job_id,
            state=state.state,
            job_run_id=state.job_run_id,
            attempts=state.sent,
            status=state.status,
            error=state.error,
            possible_duplicate=state.possible_duplicate,
        )

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

        for state in self.states.values():
            attempts += state.sent
            known += state.in_manifest

            if state.in_manifest or state.was_sent:
                counts[state.live_state if live else state.state] += 1
                duplicates += state.possible_duplicate
                gone += not state.in_manifest

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
            shared_runs=tuple(self.shared_runs()),
        )

    def shared_runs(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Yield each jobRunId that stands at more than one key, with the keys.

        A look at hashes tells which ids can be such; for a million rows the ids themselves
        would take far more memory.
        """
        hashes: set[int] = set()
        keys: dict[str, list[str]] = {}

        for state in self.states.values():
            if state.job_run_id is not None:
                run = state.job_run_id.lower()
                known = len(hashes)
                hashes.add(hash(run))

                if len(hashes) == known:
                    keys[run] = []

        if not keys:
            return

        for key, state in self.states.items():
            found = keys.get((state.job_run_id or "").lower())

            if found is not None:
                found.append(key)

        yield from ((run, tuple(found)) for run, found in keys.items() if len(found) > 1)

    def _manifest_rows(self, known: int) -> int:
        """Return the rows of the manifest; a batch of an iterable has those that were read."""
        return known if self.manifest is None else max(known, self.manifest["rows"])

    def _on_header(self, record: Record) -> None:
        if record["record"] != "batch" or record.get("ledger") != VERSION:
            found = record.get("ledger", record["record"])
            raise LedgerForeign(
                f"expected a ledger of version {VERSION}, got {found!r}",
                hint="use the version of deslaunch that wrote it, or another --ledger",
            )

        check(record)
        self.header = record

    def _on_second_header(self, _record: Record) -> None:
        raise ValueError("a second header: two ledgers in one file")

    def _on_session(self, record: Record) -> None:
        known, read = self.manifest, record["manifest"]

        if known is None or read is None or known["sha256"] != read["sha256"]:
            self.unkeyed_invalid.clear()  # the session records anew what is still invalid

        for key in self._open:
            self.states[key].leave_open()

        self._open.clear()
        self.session = record
        self.ended = False

    def _on_sending(self, record: Record) -> None:
        self._state(record["key"]).send(record)
        self._open.add(record["key"])

    def _on_settled(self, record: Record) -> None:
        self._settled(record)

    def _on_unsent(self, record: Record) -> None:
        state = self._state(record["key"])
        state.settle(record)
        state.unsent += 1

    def _on_started(self, record: Record) -> None:
        self._settled(record).start(record["jobRunId"])

    def _on_final(self, record: Record) -> None:
        self._settled(record).final = RowState(record["record"])

    def _on_unknown(self, record: Record) -> None:
        self._settled(record).doubt(record)

    def _settled(self, record: Record) -> KeyState:
        state = self._state(record["key"])
        state.settle(record)
        self._open.discard(record["key"])
        return state

    def _on_invalid(self, record: Record) -> None:
        if record["key"] is None:
            self.unkeyed_invalid[record["row"]] = record
            return

        state = self._state(record["key"])
        state.row = record["row"]
        state.final = RowState.INVALID
        state.error = "; ".join(str(problem["message"]) for problem in record["problems"])

    def _on_resolved(self, record: Record) -> None:
        state = self._state(record["key"])

        if record["as"] == "started":
            state.resolve_started(record["jobRunId"])
        else:
            state.resolve_not_started()

    def _on_membership(self, record: Record) -> None:
        self._state(record["key"]).in_manifest = record["inManifest"]

    def _on_end(self, _record: Record) -> None:
        self.ended = True

    def _on_optional(self, _record: Record) -> None:
        """Known, and of no weight for any row's state."""

    def _state(self, key: str) -> KeyState:
        state = self.states.get(key)

        if state is None:
            state = self.states[key] = KeyState()

        return state
