"""What the records say of each key, most of it left in the ledger and read back when asked for.

Pure: how a record is read back is passed in. A key that is at rest takes 40 bytes: where its
last two records are, and a word of counts. Only keys with an attempt that is open or in doubt,
and the few that two records do not tell of, are held as objects.

Two keys may have the same 64-bit hash. So a key counts as found only where its record names it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from deslaunch.columns import Columns
from deslaunch.model import DEFAULT_TARGET, Outcome, RowState
from deslaunch.sieve import Sieve

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from deslaunch.records import Record

Fetch = Callable[[int], "Record"]
"""Reads the record at an offset of the ledger back."""

Mention = tuple[int, "Record | None"]
"""A record: its offset in the ledger (-1 where it can't be read back), and itself if at hand."""

NO_ANSWER: Final = "no answer was recorded before the launcher ended"
"""Said of an attempt that was cut: sent, or about to be, and nothing else is known of it."""

_FIRST_SERVER_ERROR: Final = 500
_WORD: Final = (1 << 32) - 1

_STATES: Final = (
    None,  # held as an object
    RowState.PENDING,
    RowState.STARTED,
    RowState.FAILED,
    RowState.REJECTED,
    RowState.INVALID,
)
_CODES: Final = {state: code for code, state in enumerate(_STATES)}
_FINALS: Final = frozenset({RowState.FAILED, RowState.REJECTED, RowState.INVALID})
_MOST_ATTEMPTS: Final = 1023
_MOST_ERRORS: Final = 255
_STATE: Final = 7
_IN_MANIFEST: Final = 1 << 3
_STARTED_AT_ONCE: Final = _CODES[RowState.STARTED] | _IN_MANIFEST | 1 << 4


class KeyState:
    """What the records say of one key.

    Attributes:
        number: of the key, in the order in which keys came up.
        attempts: number of its last attempt, all sessions counted.
        unsent: attempts of which no byte left.
        final: the last final state that no later start or resolution undid, or None.
        in_manifest: the key stands in the manifest of the last session.
    """

    __slots__ = (
        "_doubts",
        "_explained",
        "_fetch",
        "_key",
        "_left_open",
        "_open",
        "_placed",
        "_run",
        "_sent",
        "_server_errors",
        "_told",
        "attempts",
        "final",
        "in_manifest",
        "number",
        "unsent",
    )

    def __init__(self, number: int, key: str | None, fetch: Fetch | None) -> None:
        self.number = number
        self.attempts = 0
        self.unsent = 0
        self.final: RowState | None = None
        self.in_manifest = True
        self._key = key
        self._fetch = fetch
        self._open: tuple[int, ...] = ()
        self._doubts: tuple[int, ...] = ()
        self._server_errors = 0
        self._left_open = 0
        self._sent: Mention | None = None  # the last attempt
        self._told: Mention | None = None  # the last outcome
        self._placed: Mention | None = None  # what named its row last
        self._explained: Mention | None = None  # what named an error last
        self._run: Mention | None = None  # what named its run first

    def __repr__(self) -> str:
        return (
            f"<KeyState {self.state} attempts={self.attempts} open={self._open} "
            f"doubts={self._doubts} run={self.job_run_id}>"
        )

    # What it tells.

    @property
    def key(self) -> str:
        """The key."""
        if self._key is None:
            self._key = str(self._said(self._told or self._placed)["key"])

        return self._key

    @property
    def row(self) -> int:
        """Data row of its last record that named one; 0 if none did."""
        return int(self._said(self._placed).get("row", 0))

    @property
    def job_id(self) -> str | None:
        """GUID of the job, lower case, or None."""
        return self._said(self._sent).get("jobId")

    @property
    def target(self) -> str:
        """The target's name."""
        return str(self._said(self._sent).get("target", DEFAULT_TARGET))

    @property
    def digest(self) -> str | None:
        """Digest of the row as it was last sent, or None."""
        return self._said(self._sent).get("digest")

    @property
    def sent_utc(self) -> str | None:
        """When the last attempt was recorded, or None."""
        return self._said(self._sent).get("utc")

    @property
    def status(self) -> int | None:
        """HTTP status of the answer to the last attempt, or None."""
        told = self._said(self._told)
        return None if self._is_cut(told) else told.get("status")

    @property
    def answered_utc(self) -> str | None:
        """When the answer to the last attempt was recorded, or None where none came."""
        told = self._said(self._told)
        return None if self._is_cut(told) or not _has_answer(told) else told.get("utc")

    @property
    def error(self) -> str:
        """What went wrong with the last attempt, or with a later validation, or ``""``."""
        return self._error(self._said(self._told), self._said(self._explained))

    @property
    def job_run_id(self) -> str | None:
        """The run, once started."""
        return self._said(self._run).get("jobRunId")

    @property
    def sent(self) -> int:
        """Starts that were sent, or may have been."""
        return self.attempts - self.unsent

    @property
    def state(self) -> RowState:
        """The row's state in a batch at rest."""
        if self._run is not None:
            return RowState.STARTED

        if self._open or self._doubts:
            return RowState.UNKNOWN

        return self.final or RowState.PENDING

    @property
    def live_state(self) -> RowState:
        """The row's state while a launcher holds the ledger."""
        in_flight = self._run is None and max(self._open, default=0) > self._left_open
        return RowState.IN_FLIGHT if in_flight else self.state

    @property
    def possible_duplicate(self) -> bool:
        """Started, and an earlier attempt may have started a run as well."""
        return self._run is not None and bool(self._server_errors or self._open or self._doubts)

    @property
    def was_sent(self) -> bool:
        """A run of this key exists, or may exist."""
        return self._run is not None or bool(self._open or self._doubts)

    def outcome(self) -> Outcome:
        """Return the row's outcome, with each record read at most once."""
        sent, told = self._said(self._sent), self._said(self._told)
        placed = sent if self._placed is self._sent else self._said(self._placed)
        explained = told if self._explained is self._told else self._said(self._explained)
        run = told if self._run is self._told else self._said(self._run)
        return Outcome(
            key=self.key,
            row=placed.get("row", 0),
            target=sent.get("target", DEFAULT_TARGET),
            job_id=sent.get("jobId"),
            state=self.state,
            job_run_id=run.get("jobRunId"),
            attempts=self.sent,
            status=None if self._is_cut(told) else told.get("status"),
            error=self._error(told, explained),
            possible_duplicate=self.possible_duplicate,
        )

    def _is_cut(self, told: Mapping[str, Any]) -> bool:
        """Tell whether the last outcome is that of an earlier attempt than the last."""
        return bool(told.get("attempt", 0) < self.attempts)

    def _error(self, told: Mapping[str, Any], explained: Mapping[str, Any]) -> str:
        if self._explained is self._told and self._is_cut(told):
            return NO_ANSWER

        return _error_of(explained)

    def _said(self, mention: Mention | None) -> Mapping[str, Any]:
        if mention is None:
            return {}

        offset, record = mention

        if record is None:
            assert self._fetch is not None
            record = self._fetch(offset)

        return record

    # What changes it.

    def settle(self, record: Record, mention: Mention) -> None:
        """Close the record's attempt and keep what was answered."""
        attempt = record["attempt"]
        self._open = tuple(number for number in self._open if number != attempt)
        self._told = self._explained = mention

        if record["record"] != "unknown" and (record.get("status") or 0) >= _FIRST_SERVER_ERROR:
            self._server_errors += 1

    def send(self, record: Record, mention: Mention) -> None:
        """Open an attempt: from here until its outcome the row is in doubt."""
        attempt = record["attempt"]
        self._open = (*self._open, attempt)
        self._sent = self._placed = mention
        self.attempts = max(self.attempts, attempt)
        self.final = None

    def leave_open(self) -> None:
        """Take it that no answer will come: another session has begun."""
        if self._open:
            self._left_open = self.attempts

    def doubt(self, record: Record) -> None:
        """Keep the record's attempt in doubt for good."""
        self._doubts = (*self._doubts, record["attempt"])

    def start(self, mention: Mention) -> None:
        """Keep the first run that is known of the key."""
        self._run = self._run or mention

    def refuse(self, mention: Mention) -> None:
        """Keep why the row did not validate."""
        self._placed = self._explained = mention
        self.final = RowState.INVALID

    def resolve_started(self, mention: Mention) -> None:
        """Take a person's word that one attempt, of those that may have, started a run."""
        if self._doubts:
            self._doubts = self._doubts[:-1]
        elif self._open:
            self._open = self._open[:-1]
        elif self._server_errors:
            self._server_errors -= 1

        self.start(mention)

    def resolve_not_started(self) -> None:
        """Take a person's word that nothing was started so far."""
        self._open = self._doubts = ()
        self._server_errors = 0
        self.final = None

    # Its packed form.

    def place(self) -> tuple[int, int] | None:
        """Return the offsets of the two records that tell all of it; None if they do not.

        A row that was never sent is told of by one record, whose offset stands twice.
        """
        if self._open or self._doubts or self._left_open or self._placed is None:
            return None

        told = self._placed if self._sent is self._told is self._run is None else self._told
        sent = self._sent or told

        if told is None or self._placed is not sent or self._explained is not told:
            return None

        run_is_told = self._run is None or (self._run is told and self.final is None)
        return (sent[0], told[0]) if run_is_told and self._fits() else None

    def _fits(self) -> bool:
        attempts = max(self.attempts, self.unsent)
        return attempts <= _MOST_ATTEMPTS and self._server_errors <= _MOST_ERRORS

    def word(self) -> int:
        """Return what is counted of it as a word of 32 bits, not 0."""
        return (
            _CODES[self.state]
            | _IN_MANIFEST * self.in_manifest
            | self.attempts << 4
            | self.unsent << 14
            | self._server_errors << 24
        )

    @classmethod
    def of(cls, word: int, number: int, place: tuple[int, int], fetch: Fetch | None) -> KeyState:
        """Return what was packed; what its records say is read when it is asked for."""
        found = cls(number, None, fetch)
        state = _STATES[word & _STATE]
        found.in_manifest = bool(word & _IN_MANIFEST)
        found.attempts = word >> 4 & _MOST_ATTEMPTS
        found.unsent = word >> 14 & _MOST_ATTEMPTS
        found._server_errors = word >> 24
        found.final = state if state in _FINALS else None
        found._placed = found._explained = sent = (place[0], None)

        if place[0] != place[1]:
            found._sent = sent
            found._told = found._explained = (place[1], None)

        if state is RowState.STARTED:
            found._run = found._told

        return found

    def lighten(self) -> None:
        """Let go of records that can be read back."""
        light: dict[int, Mention] = {}

        for name in ("_sent", "_told", "_placed", "_explained", "_run"):
            mention = getattr(self, name)

            if mention is not None and mention[0] >= 0:
                setattr(self, name, light.setdefault(mention[0], (mention[0], None)))


def _has_answer(told: Mapping[str, Any]) -> bool:
    """Tell whether DES, or what stands before it, said anything that ended an attempt."""
    kind = told.get("record")
    return kind != "unsent" and (kind != "unknown" or told["status"] is not None)


def _error_of(said: Mapping[str, Any]) -> str:
    if "problems" in said:
        return "; ".join(str(problem["message"]) for problem in said["problems"])

    return said.get("error") or said.get("cause") or ""


class KeyStates(Mapping[str, KeyState]):
    """The keys of a ledger, in the order in which they came up.

    Args:
        fetch: reads a record back; None keeps every key as an object.
        hash_of: 64-bit hash of a text.
        columns: where keys at rest are kept, empty.
    """

    def __init__(
        self,
        fetch: Fetch | None = None,
        *,
        hash_of: Callable[[str], int] = hash,
        columns: Columns | None = None,
    ) -> None:
        self._fetch = fetch
        self._hash_of = hash_of
        self._columns = Columns() if columns is None else columns
        self._objects: dict[str, KeyState] = {}
        self._begun: dict[str, tuple[int, int, Record]] = {}  # sent once, and nothing else

    def __repr__(self) -> str:
        return f"<KeyStates of {len(self)} keys, {len(self._objects)} of them objects>"

    def __len__(self) -> int:
        return len(self._columns)

    def __iter__(self) -> Iterator[str]:
        return (state.key for state in self.in_order())

    def __getitem__(self, key: str) -> KeyState:
        found = self.find(key)

        if found is None:
            raise KeyError(key)

        return found

    @property
    def fetch(self) -> Fetch | None:
        """What reads a record back; None where every key is an object."""
        return self._fetch

    def find(self, key: str) -> KeyState | None:
        """Return what the records say of a key, or None where they say nothing."""
        found = self._object(key)
        return self._packed(key, self._hash_of(key)) if found is None else found

    def in_order(self) -> Iterator[KeyState]:
        """Yield all of them; nothing is read back until a field of a record is asked for."""
        objects = {state.number: state for state in self.objects()}

        for number in range(len(self)):
            yield self._unpacked(number) if self._columns.meta[number] else objects[number]

    def outside(self) -> Iterator[KeyState]:
        """Yield, in order, those that are not in the manifest of the last session."""
        objects = {state.number: state for state in self.objects()}

        for number, word in enumerate(islice(self._columns.meta, len(self))):
            if not word and not objects[number].in_manifest:
                yield objects[number]
            elif word and not word & _IN_MANIFEST:
                yield self._unpacked(number)

    def objects(self) -> Iterable[KeyState]:
        """Return those that are held as objects, all with an open attempt among them."""
        for key in list(self._begun):
            self._object(key)

        return self._objects.values()

    def started(self) -> Iterator[tuple[int, int]]:
        """Yield number and hash of each started key, in order; nothing is read back."""
        objects = {state.number: state for state in self.objects()}

        for number, hash_ in enumerate(self._columns.hashes):
            word = self._columns.meta[number]
            state = _STATES[word & _STATE] if word else objects[number].state

            if state is RowState.STARTED:
                yield number, hash_

    def packed(self, number: int) -> KeyState:
        """Return a key that is not held as an object, by its number."""
        return self._unpacked(number)

    def counted(self) -> Iterator[tuple[KeyState, int]]:
        """Yield a state for each that differs in what is counted, and how many keys are in it."""
        for state in self.objects():
            yield state, 1

        for word, keys in Counter(self._columns.meta).items():
            if word:
                yield KeyState.of(word, -1, (-1, -2), None), keys

    def repeated_runs(self) -> set[int]:
        """Return the hashes of the runs that stand, or may stand, at more than one key."""
        sieve = Sieve(len(self), bits=32)

        sieve.add_all(filter(None, self._columns.runs))

        for state in self.objects():
            if state.job_run_id is not None:
                sieve.add(self.run_hash(state.job_run_id))

        return sieve.suspects

    def with_runs(self, hashes: Container[int]) -> Iterator[KeyState]:
        """Yield, in order, the started ones whose run has one of these hashes."""
        objects = {state.number: state for state in self.objects()}

        for number, found in enumerate(self._columns.runs):
            if found:
                if found in hashes:
                    yield self._unpacked(number)
            elif number in objects:
                run = objects[number].job_run_id

                if run is not None and self.run_hash(run) in hashes:
                    yield objects[number]

    def run_hash(self, run: str) -> int:
        """Return the hash, 32 bits and not 0, of a jobRunId in any case of its letters."""
        return self._hash_of(run.lower()) & _WORD or 1

    # What changes them.

    def reserve(self, keys: int) -> None:
        """Make room for so many keys, within reason."""
        self._columns.reserve(keys)

    def begin(self, record: Record, mention: Mention) -> None:
        """Take in that a key is sent."""
        key = record["key"]

        if self._fetch is not None and key not in self._objects and key not in self._begun:
            number = self._columns.claim(self._hash_of(key))

            if number >= 0:
                self._begun[key] = number, mention[0], record
                return

        self.change(key).send(record, mention)

    def end(self, record: Record, mention: Mention) -> KeyState | None:
        """Take in that a key is started; return it where it can't be packed at once."""
        begun = self._begun.pop(record["key"], None)

        if begun is not None:
            number, sent, sending = begun
            lag = mention[0] - sent

            if sending["attempt"] == record["attempt"] == 1 and lag <= _WORD:
                columns = self._columns
                columns.sent[number] = sent
                columns.lag[number] = lag
                columns.meta[number] = _STARTED_AT_ONCE
                columns.runs[number] = self.run_hash(record["jobRunId"])
                return None

            self._begun[record["key"]] = begun

        state = self.change(record["key"])
        state.settle(record, mention)
        state.start(mention)
        return state

    def change(self, key: str) -> KeyState:
        """Return a key's object, so that a record may change it."""
        state = self._object(key)

        if state is None:
            state = self._objects[key] = self._new_object(key)

        return state

    def _object(self, key: str) -> KeyState | None:
        begun = self._begun.pop(key, None)

        if begun is not None:
            number, offset, record = begun
            state = self._objects[key] = KeyState(number, key, self._fetch)
            state.send(record, (offset, record))

        return self._objects.get(key)

    def _new_object(self, key: str) -> KeyState:
        hash_ = self._hash_of(key)
        state = self._packed(key, hash_)

        if state is None:
            return KeyState(self._columns.add(hash_), key, self._fetch)

        self._columns.meta[state.number] = self._columns.runs[state.number] = 0
        return state

    def rest(self, state: KeyState) -> None:
        """Pack a key if it is at rest."""
        if self._fetch is None:
            return

        place = state.place()

        if place is None or not 0 <= place[0] <= place[1] <= place[0] + _WORD:
            state.lighten()
            return

        columns, number, run = self._columns, state.number, state.job_run_id
        columns.sent[number] = place[0]
        columns.lag[number] = place[1] - place[0]
        columns.meta[number] = state.word()
        columns.runs[number] = 0 if run is None else self.run_hash(run)
        del self._objects[state.key]

    def _packed(self, key: str, hash_: int) -> KeyState | None:
        for number in self._columns.find(hash_):
            if self._columns.meta[number]:
                state = self._unpacked(number)

                if state.key == key:
                    return state

        return None

    def _unpacked(self, number: int) -> KeyState:
        columns = self._columns
        sent = columns.sent[number]
        place = (sent, sent + columns.lag[number])
        return KeyState.of(columns.meta[number], number, place, self._fetch)
