"""Every exception that deslaunch raises; their names say what the caller may do next.

::

    DeslaunchError
    ├── ConfigurationError            2
    ├── SchemaError                   2
    ├── ManifestError                 2
    │   └── InvalidManifest           2
    ├── Declined                      2
    ├── DesError                      5
    │   ├── NotSent                   5
    │   │   ├── Misconfigured         5
    │   │   └── TooLate               5
    │   ├── Throttled                 5
    │   ├── ServerError               5
    │   ├── Rejected                  5
    │   │   ├── Unauthorized          6
    │   │   └── Redirected            5
    │   ├── OutcomeUnknown            5
    │   └── QueryFailed               5
    ├── LedgerError                   7
    │   ├── LedgerExists              7
    │   ├── LedgerMissing             7
    │   ├── LedgerForeign             7
    │   ├── LedgerDamaged             7
    │   ├── LedgerOutdated            7
    │   ├── UnfinishedBatch           7
    │   ├── LedgerLocked              8
    │   └── LedgerWriteFailed         7
    └── Stopped                       5
        ├── CredentialsRefused        6
        ├── Interrupted             130
        ├── Unfinished                5
        └── LedgerWriteFailed         7

The number is the exit code of a command that ends with it. After one start (:class:`DesError`)
the question is always the same: may this row be sent again? ``NotSent`` and ``Throttled``: yes,
nothing was started. ``ServerError``: DES's contract allows it, yet the run may exist.
``Rejected``: not before something is fixed. ``OutcomeUnknown``: never, unless a person looked.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import KW_ONLY, InitVar, dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from deslaunch.events import ProblemGroup, Stop, Summary, WatchSummary
    from deslaunch.model import Problem


@dataclass(eq=False, repr=False)  # as any exception: its repr is its class and its message
class DeslaunchError(Exception):
    """The root of all errors that deslaunch raises on purpose.

    Attributes:
        exit_code: what a command that ends with it exits with.
        hint: what to do next, one sentence, or ``""``; a traceback shows it too.
    """

    exit_code: ClassVar[int] = 1
    message: InitVar[str]
    _: KW_ONLY
    hint: str = ""

    def __post_init__(self, message: str) -> None:
        super().__init__(message)

        if self.hint:
            self.add_note(self.hint)

    def advise(self, hint: str) -> None:
        """Set the hint, unless there is one."""
        if hint and not self.hint:
            self.hint = hint
            self.add_note(hint)

    def locate(self, place: str) -> None:
        """Put the place in front of the message."""
        self.args = (f"{place}: {self}",)


class ConfigurationError(DeslaunchError):
    """A setting is missing, malformed or contradicts another. Nothing was sent: fix it."""

    exit_code = 2


class SchemaError(DeslaunchError):
    """A job's JobRunParameters could not be read: pass them as a schema file instead."""

    exit_code = 2


class ManifestError(DeslaunchError):
    """The manifest, or a file of corrections or findings, can't be taken as it is."""

    exit_code = 2


@dataclass(eq=False, repr=False, kw_only=True)
class InvalidManifest(ManifestError):
    """Rows did not validate. Nothing was sent.

    Attributes:
        problems: the first 1,000 problems in manifest order.
        count: how many problems there are in all.
        groups: the first 1,000 different problems, each with the number of its rows.
    """

    problems: Sequence[Problem]
    count: int
    groups: Sequence[ProblemGroup] = ()


class Declined(DeslaunchError):
    """``confirm``, or the user, said no. Nothing was sent or changed, and no ledger was made."""

    exit_code = 2


@dataclass(eq=False, repr=False, kw_only=True)
class DesError(DeslaunchError):
    """A request to DES failed, or its outcome is unknown.

    Attributes:
        status: HTTP status of the response, or None if none was read.
        response: what DES said, at most 4,096 characters, with every token cut out.
        retry_after: seconds to wait, as the response asked, at least 0; or None.
        job_run_id: a jobRunId in a response that can't be trusted, or None.
    """

    exit_code = 5
    status: int | None = None
    response: str = ""
    retry_after: float | None = None
    job_run_id: str | None = None


class NotSent(DesError):
    """No byte of the request left this machine. It is safe to send it again.

    ``status`` and ``retry_after`` are the auth server's if it gave no token.
    """


class Misconfigured(NotSent):
    """No byte left, and none will: a bad certificate, host name or URL."""


class TooLate(NotSent):
    """Too much time passed after the start was recorded. Nothing was sent."""


class Throttled(DesError):
    """DES (or a gateway) asked to wait: 429, 425, or 503 with Retry-After. Nothing was started."""


class ServerError(DesError):
    """DES responded 5XX. Its contract allows another attempt, but the run may exist."""


class Rejected(DesError):
    """DES refused the request, and will refuse the same one again until something is fixed."""


@dataclass(eq=False, repr=False, kw_only=True)
class Unauthorized(Rejected):
    """DES responded 401: the token is missing, invalid or expired. Nothing was started.

    Attributes:
        generation: number of the token that was refused, counted from 1 by its client, which
            sets it.
    """

    exit_code = 6
    generation: int = 0


class Redirected(Rejected):
    """DES's base URL is wrong: it redirects elsewhere. Redirects are not followed."""


class OutcomeUnknown(DesError):
    """The request was sent and no usable response came. The run may exist; do not send again."""


class QueryFailed(DesError):
    """A query got no usable response. It starts nothing: it is safe to repeat it."""


class LedgerError(DeslaunchError):
    """The ledger can't be used. Nothing is sent without it."""

    exit_code = 7


class LedgerExists(LedgerError):
    """The ledger of a new batch exists already. Resume it, or name another."""


class LedgerMissing(LedgerError):
    """There is no ledger at this place."""


class LedgerForeign(LedgerError):
    """It is not a ledger, has another schema version, or is another batch's. Name the right one."""


class LedgerDamaged(LedgerError):
    """The database can't be read, or a row's request body is not the one that was checked."""


class LedgerOutdated(LedgerError):
    """The ledger is an older copy: more of its batch was sent since. Use the newer one."""


class UnfinishedBatch(LedgerError):
    """An earlier batch of the same rows is unfinished. Resume that one."""


class LedgerLocked(LedgerError):
    """Another launcher is at work on the ledger. Wait for that one to end."""

    exit_code = 8


@dataclass(eq=False, repr=False, kw_only=True)
class Stopped(DeslaunchError):
    """A launch ended before all rows had. Rows that were not sent are pending: resume.

    Attributes:
        summary: the counts of the whole batch; None if no launch had begun.
    """

    exit_code = 5
    summary: Summary | None = None

    @property
    def stops(self) -> Sequence[Stop]:
        """Why each target, or the whole launch, stopped."""
        return self.summary.stops if self.summary else ()


class CredentialsRefused(Stopped):
    """DES refused the token and no newer one could be had; or the token source failed.

    Rows that were not sent stay pending: get a new token, and resume.
    """

    exit_code = 6


@dataclass(eq=False, repr=False, kw_only=True)
class Interrupted(Stopped):
    """A signal ended the launch, after a drain.

    Attributes:
        signum: the signal's number, 0 for none.
    """

    exit_code = 130
    signum: int = 0


@dataclass(eq=False, repr=False, kw_only=True)
class Unfinished(Stopped):
    """A watch ended before all runs had. Watch again: it queries only unfinished runs.

    Attributes:
        runs: the counts of the runs.
    """

    runs: WatchSummary

    @property
    def stops(self) -> Sequence[Stop]:
        """Why the watch of each target ended."""
        return self.runs.stops


class LedgerWriteFailed(Stopped, LedgerError):
    """A write or sync of the ledger failed. Nothing more is launched."""

    exit_code = 7

    @property
    def unrecorded(self) -> Sequence[tuple[str, str]]:
        """(key, jobRunId) of runs that DES started and that may not be in the ledger."""
        return self.summary.unrecorded if self.summary else ()


@contextmanager
def needs_extra(extra: str, what: str) -> Iterator[None]:
    """Import modules of an extra in the block.

    Raises:
        ConfigurationError: the extra is not installed.
    """
    try:
        yield
    except ImportError as exc:
        raise ConfigurationError(
            f"{what} needs {(exc.name or extra).partition('.')[0]}, which is not installed",
            hint=f"install it with: pip install 'deslaunch[{extra}]'",
        ) from exc
