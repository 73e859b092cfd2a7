"""The values of a launch: Row, Start, Outcome, and DES's jobs and runs.

``Row`` is what the manifest says, ``Start`` what is sent, ``Outcome`` the result. All are named
tuples: some are made for every row, and a frozen dataclass takes three times as long to make.
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
"""Regular expression of a GUID, 8-4-4-4-12."""

_IS_GUID: Final = re.compile(GUID).fullmatch  # one is in every response to a start

MAX_CAUSES: Final = 200
"""Maximum number of different causes; all others are counted as one more."""

_NUMBERS: Final = "(?<!HTTP )(?<![0-9])[0-9]+(?:[.:TZ+-][0-9]+)*"  # a date, too, is one
_VARYING: Final = re.compile(f"{GUID.replace('-[', '-?[')}|{_NUMBERS}")

GOT_LIMIT: Final = 120
"""Maximum number of characters of a value that a problem quotes."""

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
"""A parameter's value in a row: a text, None for null, or ``AUTO``."""


class Row(NamedTuple):
    """One data row of a manifest, not yet checked against a schema.

    Attributes:
        number: data rows counted from 1.
        line: physical line where the row begins, from 1; for rows that come from no file, the
            row's number.
        key: the manifest's own key, or None.
        target: the target's name.
        job_id: GUID, lower case.
        parameters: name to value.
        notes: name to text (``deslaunch.…`` columns); kept with the row, never sent.
        types: the JobRunParameterType that the row declares for each of ``parameters``, in their
            order, or None; empty if it declares none.
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
        key: the row's own key, or a digest of its content.
        body: what is sent; ``b""`` if the target's jobs could not be read.
        digest: of the body, 16 bytes.
        auto: a parameter uses the auto value.
        says: the row as the ledger stores it, for ``load_row``.
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
        row: data row, from 1; 0 for the file as a whole.
        column: column or parameter, or ``""`` for the whole row.
        expected: what was expected.
        got: what was found, cut to 120 characters.
        message: what is wrong and what to do, one sentence.
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
        """Column and message: problems that share them are shown as one."""
        return self.column, self.message


class InvalidRow(NamedTuple):
    """A row that can't be started, or a problem of the file as a whole.

    Attributes:
        number: data row, from 1; 0 for the file as a whole.
        line: physical line, from 1.
        key: its key, or None if it has none that can be read.
        target: the target's name.
        job_id: GUID, lower case, or ``""``.
        problems: at least one.
        says: the row as the ledger stores it, for ``load_row``; it is invalid there too.
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
        meant: when its intent was recorded, in seconds of a clock that includes suspension; the
            start is sent within ``connect_timeout`` + 5 s of it, or not at all.
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
    """The state of a row in the ledger."""

    PENDING = "pending"
    SENDING = "sending"
    STARTED = "started"
    FAILED = "failed"
    REJECTED = "rejected"
    UNKNOWN = "unknown"
    INVALID = "invalid"
    WITHDRAWN = "withdrawn"


class Result(StrEnum):
    """How an attempt ended."""

    STARTED = "started"
    REJECTED = "rejected"
    FAILED = "failed"
    """5XX, and no attempt of this session follows."""
    UNKNOWN = "unknown"
    RETRY = "retry"
    """5XX, and another attempt follows: the row keeps its earlier state, with a time to retry."""
    THROTTLED = "throttled"
    """DES asked to wait: the row keeps its earlier state."""
    UNSENT = "unsent"
    """No byte left: the row keeps its earlier state."""


END_STATES: Final = {
    result: RowState(result)
    for result in (Result.STARTED, Result.REJECTED, Result.FAILED, Result.UNKNOWN)
}
"""A row's state after each result that no attempt of this session follows."""


class Outcome(NamedTuple):
    """How one attempt ended; on disk before it is reported.

    Attributes:
        row: data row, from 1.
        attempt: number of the attempt, from 1; 0 for a row that was never sent (invalid).
        key: the row's key; ``""`` for an invalid row that has none.
        target: the target's name.
        job_id: GUID of the job; ``""`` if the row names none that can be read.
        result: how the attempt ended; None for an invalid row.
        state: the row's state. What the session hands to the ledger, here and in ``attempts``,
            follows from this attempt alone; what the ledger returns, from all attempts.
        job_run_id: GUID of the run, as DES spelled it, or None.
        status: HTTP status of the response, or None.
        error: what was wrong, with DES's text, up to 4,096 characters; or ``""``.
        not_before: seconds from now until the row may be sent again, at least 0; None for a
            final outcome.
        attempts: POSTs that left for the row, in all sessions.
        possible_duplicate: started, and another attempt may have started a run too.
        problems: of an invalid row.
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
        """Record that a byte may leave from now on."""
        self._sent = True

    def clear(self) -> None:
        """Record that none has left: a connection is being made."""
        self._sent = False


class JobParameter(NamedTuple):
    """One of a job's JobRunParameters, as QueryJobs declares it.

    Attributes:
        name: the parameter's name; DES compares it exactly.
        type: JobRunParameterType, or None if DES declared none.
        required: a value, even null, must be sent.
        nullable: null is allowed.
        supports_auto: the auto value is allowed.
        description: text of the template, or ``""``.
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
    """QueryJobRunStatusResponse: the status of one run.

    Attributes:
        job_id: GUID, or ``""`` if DES named none.
        job_run_id: GUID of the run.
        finished: the run has ended.
        success: the run succeeded; meaningless unless ``finished``.
        status: DES's text, such as the error of a failed run, up to 4,096 characters, or None.
        created_utc: ISO 8601, or None.
        finished_utc: ISO 8601, or None.
        output_files: the files' metadata as DES gave it.
        key: the row's key if a batch is watched, else None.
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
    r"""Return ``text`` with every character that a terminal would act on escaped.

    Control characters (C0 but the tab, DEL, C1), bidirectional marks, and bytes that are not UTF-8
    (lone surrogates of ``os.fsdecode``) become ``\x1b``, ``\u202e``.
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
    """Return a path that no command reads as an option: ``./-x``."""
    return f"./{place}" if str(place).startswith("-") else str(place)


def as_word(text: object) -> str:
    r"""Return a word for a shell; what can't be shown, or is not UTF-8, becomes ``$'\xff'``."""
    word = str(text)

    if word.isprintable():
        return shlex.quote(word)

    plain = (string.ascii_letters + string.digits + " ./_-=:,+@%").encode()
    data = word.encode("utf-8", "surrogateescape")
    safe = (chr(byte) if byte in plain else f"\\x{byte:02x}" for byte in data)
    return f"$'{''.join(safe)}'"


Causes = dict[tuple[str, str], dict[str, Any]]
"""By kind, and by text without numbers and ids: see :func:`add_cause`."""


def add_cause(
    causes: Causes, kind: str, text: str | None, key: str, times: int = 1
) -> dict[str, Any]:
    """Count a cause, grouped by its text without numbers and ids: at most 200 groups.

    Args:
        causes: by kind and such a text: ``kind``, ``text`` of the first one, at most 300
            characters, ``count``, and ``examples``, the first three keys.
        kind: what the cause led to.
        text: the cause.
        key: key of the row, or another example.
        times: how often it happened.

    Returns:
        Its group.
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


def count(number: float, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is one."""
    return f"{number:,.15g} {noun}{'s' * (number != 1)}"
