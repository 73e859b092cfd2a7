"""The values of a launch: Row, Start, Outcome, and DES's jobs and runs.

``Row`` is what the manifest says, ``Start`` what is sent, ``Outcome`` the result. All
are named tuples: some are made for every row, and a frozen dataclass costs three times as much
to make.
"""

import re
import shlex
import string
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import Enum, StrEnum
from typing import Any, Final, Literal, NamedTuple, TypeGuard

DEFAULT_TARGET: Final = "default"

GUID: Final = "[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
"""What a GUID looks like in the form 8-4-4-4-12: a regular expression."""

_IS_GUID: Final = re.compile(GUID).fullmatch  # one is in every response to a start

MAX_CAUSES: Final = 200
"""Different causes that are told apart; all others are one more."""

_NUMBERS: Final = "(?<!HTTP )(?<![0-9])[0-9]+(?:[.:TZ+-][0-9]+)*"  # a date, too, is one
_VARYING: Final = re.compile(f"{GUID.replace('-[', '-?[')}|{_NUMBERS}")

GOT_LIMIT: Final = 120
"""Characters of a value that a problem quotes."""

Format = Literal["jsonl", "csv"]
"""The form of a manifest, and of results."""


class Auto(Enum):
    """The auto value: DES works the parameter out from the job's earlier runs."""

    AUTO = "auto"


AUTO: Final = Auto.AUTO


class JobRunParameterValue(NamedTuple):
    """A value whose type the caller declares, as DES's own object does.

    Attributes:
        type: JobRunParameterType, or None for DES's default, a string.
        value: the text, None for null, or ``AUTO``.
    """

    type: int | None
    value: str | Auto | None


ParameterValue = str | Auto | None
"""What a row says of one parameter: a text, null, or the auto value."""


class Row(NamedTuple):
    """One data row of a manifest, as it was read; nothing was checked against a schema.

    Attributes:
        number: data rows counted from 1.
        line: physical line where the row begins, from 1; for rows that come from no file, the
            row's number.
        key: the manifest's own key, or None.
        target: the target's name.
        job_id: GUID, lower case.
        parameters: name to what the row says of it.
        notes: name to text of what is kept with the row and never sent (``deslaunch.…``).
        types: the JobRunParameterType that the row declares of each parameter, in their order,
            or None; empty where it declares none.
    """

    number: int
    line: int
    key: str | None
    target: str
    job_id: str
    parameters: Mapping[str, ParameterValue]
    notes: Mapping[str, str] = {}
    types: tuple[int | None, ...] = ()


class CheckedRow(NamedTuple):
    """A row that can be started.

    Attributes:
        row: what the manifest says.
        key: the row's own key, or the digest of what it says.
        body: what is sent; ``b""`` where the target's jobs could not be had.
        digest: of the body, 16 bytes.
        auto: a parameter uses the auto value.
        says: what the ledger keeps of the row, for ``load_row``.
    """

    row: Row
    key: str
    body: bytes
    digest: bytes
    auto: bool
    says: str


class Problem(NamedTuple):
    """One reason why a row can't be started; its fields are those of ``check --json``.

    Attributes:
        file: the manifest as it was named, or ``"<rows>"`` for rows of a program.
        line: physical line, from 1.
        row: data row, from 1; 0 where the problem precedes all rows.
        column: column or parameter, or ``""`` where the whole row is meant.
        expected: what would have been right.
        got: what came, cut to 120 characters.
        message: one sentence that says what is wrong and what to do.
    """

    file: str
    line: int
    row: int
    column: str
    expected: str
    got: str
    message: str

    def __str__(self) -> str:
        column = f", column {self.column}" if self.column else ""
        return f"{self.file}:{self.line}{column}: {self.message}"

    @property
    def group_key(self) -> tuple[str, str]:
        """What makes the problems of several rows the same: column and message."""
        return self.column, self.message


class InvalidRow(NamedTuple):
    """A row that can't be started, or a problem of the file as a whole.

    Attributes:
        number: data row, from 1; 0 where the problem precedes all rows.
        line: physical line, from 1.
        key: its key, or None where it has none that can be read.
        target: the target's name.
        job_id: GUID, lower case, or ``""``.
        problems: why, at least one.
        says: what it says, for ``load_row``, by which it is invalid again.
    """

    number: int
    line: int
    key: str | None
    target: str
    job_id: str
    problems: tuple[Problem, ...]
    says: str = '{"jobId":"?"}'


class Start(NamedTuple):
    """One start whose intent is on disk.

    Attributes:
        row: data row, from 1.
        attempt: number of the attempt, from 1, counted through all sessions.
        key: unique in the batch.
        target: the target's name.
        job_id: GUID, lower case.
        body: the StartJobBody, JSON, UTF-8; checked against the digest in the ledger.
        auto: a parameter uses the auto value.
        retries: 5XX responses that the row got since it last became sendable.
        meant: when its turn began, seconds of a clock that counts suspension: the start may
            leave until shortly after, never later.
    """

    row: int
    attempt: int
    key: str
    target: str
    job_id: str
    body: bytes
    auto: bool = False
    retries: int = 0
    meant: float = 0.0


class RowState(StrEnum):
    """What the ledger says of a row."""

    PENDING = "pending"
    SENDING = "sending"
    STARTED = "started"
    FAILED = "failed"
    REJECTED = "rejected"
    UNKNOWN = "unknown"
    INVALID = "invalid"
    WITHDRAWN = "withdrawn"


class Result(StrEnum):
    """How an attempt ended, as the ledger keeps it."""

    STARTED = "started"
    REJECTED = "rejected"
    FAILED = "failed"
    """5XX, and no attempt of this session follows."""
    UNKNOWN = "unknown"
    RETRY = "retry"
    """5XX, and another attempt follows: the row is what it was before, with a time."""
    THROTTLED = "throttled"
    """DES asked to wait: the row is what it was before."""
    UNSENT = "unsent"
    """No byte left: the row is what it was before."""


END_STATES: Final = {
    result: RowState(result)
    for result in (Result.STARTED, Result.REJECTED, Result.FAILED, Result.UNKNOWN)
}
"""The state of a row, by the result after which no attempt of this session follows."""


class Outcome(NamedTuple):
    """How one attempt ended; on disk before it is reported.

    Attributes:
        row: data row, from 1.
        attempt: number of the attempt, from 1; 0 for a row that was never sent (invalid).
        key: the row's key; ``""`` for an invalid row that has none.
        target: the target's name.
        job_id: GUID of the job; ``""`` where the row names none that can be read.
        result: how the attempt ended; None for an invalid row.
        state: what the row is now. The session says what the attempt alone makes of it, here
            and in ``attempts``; the ledger, which knows the others, gives back what holds.
        job_run_id: GUID of the run, as DES spelled it, where one came.
        status: HTTP status of the response, or None.
        error: what was wrong, what DES said of it included, up to 4,096 characters; or ``""``.
        not_before: seconds from now until the row may be sent again, at least 0; None for a
            final outcome.
        attempts: POSTs that left for the row, in all sessions.
        possible_duplicate: started, and another attempt may have started a run too.
        problems: why an invalid row is invalid.
    """

    row: int
    attempt: int
    key: str
    target: str
    job_id: str
    result: Result | None
    state: RowState
    job_run_id: str | None = None
    status: int | None = None
    error: str = ""
    not_before: float | None = None
    attempts: int = 0
    possible_duplicate: bool = False
    problems: tuple[Problem, ...] = ()


class StartedRun(NamedTuple):
    """DES's response to a start: the run exists.

    Attributes:
        job_id: GUID of the job, lower case.
        job_run_id: GUID of the run, as DES spelled it: the only handle for later queries.
    """

    job_id: str
    job_run_id: str


class Sent:
    """Whether a byte of one request may have left this machine; False until it may."""

    _sent = False

    def __bool__(self) -> bool:
        return self._sent

    def set(self) -> None:
        """Note that a byte may leave from now on."""
        self._sent = True

    def clear(self) -> None:
        """Note that none has left: a connection is being made."""
        self._sent = False


class JobParameter(NamedTuple):
    """One of a job's JobRunParameters, as QueryJobs declares it.

    Attributes:
        name: the parameter's name; DES compares it exactly.
        type: JobRunParameterType, or None where DES declared none.
        required: a value, even null, must be sent.
        nullable: null is allowed.
        supports_auto: the auto value is allowed.
        description: the template's own words, or ``""``.
    """

    name: str
    type: int | None
    required: bool = False
    nullable: bool = False
    supports_auto: bool = False
    description: str = ""


class Job(NamedTuple):
    """A job of one organisation, and the parameters that its runs take.

    Attributes:
        job_id: GUID, lower case.
        name: the job's name, or ``""``.
        parameters: in the order in which DES lists them.
    """

    job_id: str
    name: str
    parameters: tuple[JobParameter, ...]


class RunStatus(NamedTuple):
    """QueryJobRunStatusResponse: how one run is getting on.

    Attributes:
        job_id: GUID, or ``""`` where DES named none.
        job_run_id: GUID of the run.
        finished: the run has ended.
        success: it ended well; means nothing unless ``finished``.
        status: DES's text, the error of a failed run, up to 4,096 characters, or None.
        created_utc: ISO 8601, or None.
        finished_utc: ISO 8601, or None.
        output_files: the files' metadata as DES gave it.
        key: the row's key, where a batch is watched; else None.
    """

    job_id: str
    job_run_id: str
    finished: bool
    success: bool
    status: str | None = None
    created_utc: str | None = None
    finished_utc: str | None = None
    output_files: tuple[object, ...] = ()
    key: str | None = None


def quote(text: str) -> str:
    """Return a text as a problem's ``got``: cut to 120 characters."""
    return text if len(text) <= GOT_LIMIT else f"{text[: GOT_LIMIT - 1]}…"


def printable(text: str) -> str:
    r"""Return ``text`` with every character that a terminal would act on as an escape.

    Control characters (C0 but the tab, DEL, C1), the marks that turn the direction of text, and
    bytes that are no UTF-8 (lone surrogates of ``os.fsdecode``) come as ``\x1b``, ``\u202e``.
    """
    if text.isprintable():
        return text

    return "".join(c if c == "\t" or c.isprintable() or c == "\u3000" else _escape(c) for c in text)


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte that os.fsdecode could not decode
        return f"\\x{ord(character) - 0xDC00:02x}"

    return character.encode("unicode_escape").decode()


def is_guid(text: object) -> TypeGuard[str]:
    """Return True if ``text`` is a GUID in the form 8-4-4-4-12, in either case."""
    return isinstance(text, str) and _IS_GUID(text) is not None


def utc(ms: int) -> str:
    """Return ms since 1970 as RFC 3339, UTC."""
    return f"{datetime.fromtimestamp(ms // 1000, UTC):%Y-%m-%dT%H:%M:%S}.{ms % 1000:03d}Z"


def printed(command: str, *words: object) -> str:
    """Return a command of deslaunch, quoted for a shell."""
    return " ".join(["deslaunch", command, *(as_word(word) for word in words)])


def place_word(place: object) -> str:
    """Return a path as a word that is never taken for an option: ``./-x``."""
    return f"./{place}" if str(place).startswith("-") else str(place)


def as_word(text: object) -> str:
    r"""Return a word for a shell; what can't be shown, or is no UTF-8, comes as ``$'\xff'``."""
    word = str(text)

    if word.isprintable():
        return shlex.quote(word)

    plain = (string.ascii_letters + string.digits + " ./_-=:,+@%").encode()
    data = word.encode("utf-8", "surrogateescape")
    safe = (chr(byte) if byte in plain else f"\\x{byte:02x}" for byte in data)
    return f"$'{''.join(safe)}'"


Causes = dict[tuple[str, str], dict[str, Any]]
"""By kind, and by text without its numbers and ids: see :func:`add_cause`."""


def add_cause(
    causes: Causes, kind: str, text: str | None, key: str, times: int = 1
) -> dict[str, Any]:
    """Count what went wrong, grouped by text without its numbers and ids: at most 200 groups.

    Args:
        causes: by kind and such a text: ``kind``, ``text`` as it was first, at most 300
            characters, ``count`` and ``examples``, the first rows.
        kind: what it led to.
        text: what was said.
        key: of the first row that it happened to, or what else tells which one it is.
        times: how often it happened.

    Returns:
        The group that it is counted in.
    """
    cut = (text or "no reason was given")[:300]
    name = (kind, _VARYING.sub("#", cut))

    if name not in causes and len(causes) >= MAX_CAUSES:
        cut = "other causes"
        name = (kind, cut)

    cause = causes.setdefault(name, {"kind": kind, "text": cut, "count": 0, "examples": []})
    cause["count"] += times
    cause["examples"] = [*cause["examples"], key][:3]
    return cause


def parameters_text(parameters: Mapping[str, Any]) -> str:
    """Return parameters as they were sent, in one line."""
    words = []

    for name, value in parameters.items():
        if isinstance(value, dict):
            is_auto = value.get("useAutoValue") or value.get("auto")
            value = "auto" if is_auto else value.get("valueStringEncoded")  # noqa: PLW2901

        words.append(f"{name}={'null' if value is None else value}")

    return ", ".join(words) or "-"


def count(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is one."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
