"""Every exception that deslaunch raises, named by what the caller may do next.

::

    DeslaunchError
    ├── ConfigurationError
    ├── CredentialsRefused
    ├── DesError
    │   ├── NotSent
    │   │   └── Misconfigured
    │   ├── Throttled
    │   ├── ServerError
    │   ├── Rejected
    │   │   ├── Unauthorized
    │   │   └── Redirected
    │   ├── OutcomeUnknown
    │   └── QueryFailed
    ├── SchemaError
    ├── ManifestError
    │   ├── InvalidManifest
    │   ├── ManifestChanged
    │   └── ManifestConflict
    ├── Declined
    ├── Interrupted
    ├── Unfinished
    └── LedgerError
        ├── LedgerExists
        ├── LedgerLocked
        ├── LedgerDamaged
        ├── LedgerForeign
        └── LedgerWriteFailed

After one start (:class:`DesError`) the question is always the same: may this row be sent
again? ``NotSent`` and ``Throttled``: yes, nothing was started. ``ServerError``: DES's contract
allows it, yet the run may exist. ``Rejected``: not before something is mended.
``OutcomeUnknown``: never, unless a person looked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deslaunch.model import ProblemGroup, RowProblem, Summary, WatchSummary


class DeslaunchError(Exception):
    """The root of all errors that deslaunch raises on purpose.

    Attributes:
        hint: what to do next, one sentence, or ``""``.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = ""
        self.advise(hint)

    def advise(self, hint: str) -> None:
        """Say what to do next, unless that was said already; a traceback shows it too."""
        if hint and not self.hint:
            self.hint = hint
            self.add_note(hint)

    def add(self, clause: str) -> None:
        """Say, behind the message, what else matters here."""
        self.args = (f"{self}; {clause}",)

    def locate(self, place: str) -> None:
        """Say, in front of the message, where it happened."""
        self.args = (f"{place}: {self}",)


class ConfigurationError(DeslaunchError):
    """A setting is missing, malformed or contradicts another. Nothing was sent: set it right."""


class CredentialsRefused(DeslaunchError):
    """DES refused the token and no newer one could be had; or the token source failed.

    Rows that were not sent stay pending: get a new token, and resume.
    """


class DesError(DeslaunchError):
    """What became of one request to DES.

    Attributes:
        status: HTTP status of the answer, or None where none was read.
        answer: what DES said, at most 4,096 characters, with every token cut out.
        retry_after: seconds that the answer asked to wait, at least 0, or None.
        job_run_id: a jobRunId that came with an answer which can't be relied on.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        status: int | None = None,
        answer: str = "",
        retry_after: float | None = None,
        job_run_id: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.answer = answer
        self.retry_after = retry_after
        self.job_run_id = job_run_id


class NotSent(DesError):
    """No byte of the request left this machine. It is safe to send it again."""


class Misconfigured(NotSent):
    """No byte left, and none will: a bad certificate, host name or URL."""


class Throttled(DesError):
    """DES (or a gateway) asked to wait: 429, 425, or 503 with Retry-After. Nothing was started."""


class ServerError(DesError):
    """DES answered 5XX. Its contract allows another try; the run may exist all the same."""


class Rejected(DesError):
    """DES said no. The same request will be refused again until something is mended."""


class Unauthorized(Rejected):
    """DES answered 401: the token is missing, invalid or expired. Nothing was started.

    Attributes:
        generation: number of the token that was refused, counted from 1 by its client.
    """

    def __init__(self, message: str, *, generation: int, answer: str = "") -> None:
        super().__init__(message, status=401, answer=answer)
        self.generation = generation


class Redirected(Rejected):
    """The base URL answered with a redirect, which is never followed: it is not DES's own."""


class OutcomeUnknown(DesError):
    """The request was sent and no usable answer came. The run may exist; do not send again."""


class QueryFailed(DesError):
    """A query, which starts nothing, got no usable answer. It is safe to ask again."""


class SchemaError(DeslaunchError):
    """A job's JobRunParameters could not be read: pass them as a schema file instead."""


class ManifestError(DeslaunchError):
    """The manifest can't be launched as it is."""


class InvalidManifest(ManifestError):
    """Rows did not validate. Nothing was sent.

    Attributes:
        problems: the first 1,000 problems in manifest order.
        count: how many problems there are in all.
        groups: the first 1,000 different problems, each with the number of its rows.
    """

    def __init__(
        self,
        message: str,
        *,
        problems: Sequence[RowProblem],
        count: int,
        groups: Sequence[ProblemGroup] = (),
        hint: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.problems = tuple(problems)
        self.count = count
        self.groups = tuple(groups)


class ManifestChanged(ManifestError):
    """The manifest's bytes changed between its validation and its launch. Resume when it rests."""


class ManifestConflict(ManifestError):
    """The manifest no longer agrees with what its ledger says was started.

    Attributes:
        changed: keys that were sent and whose row says something else now.
        gone: keys that were sent and have left the manifest.
        new: keys that the ledger does not know.
    """

    def __init__(
        self,
        message: str,
        *,
        changed: Sequence[str] = (),
        gone: Sequence[str] = (),
        new: Sequence[str] = (),
        hint: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.changed = tuple(changed)
        self.gone = tuple(gone)
        self.new = tuple(new)


class Declined(DeslaunchError):
    """Whoever was asked whether to begin said no. Nothing was sent, and no ledger was made."""


class Interrupted(DeslaunchError):
    """The launch was ended before anything was sent.

    Attributes:
        signum: the signal's number, 0 for none.
    """

    def __init__(self, message: str, *, signum: int = 0, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.signum = signum


class Unfinished(DeslaunchError):
    """A watch ended before all runs had. Watch again: only what is left is asked about.

    Attributes:
        summary: how the runs stand, and why the watch ended.
    """

    def __init__(self, message: str, *, summary: WatchSummary, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.summary = summary


class LedgerError(DeslaunchError):
    """The ledger can't be used. Nothing was sent because of it."""


class LedgerExists(LedgerError):
    """A new batch was asked for, and its ledger is there already. Resume it, or name another."""


class LedgerLocked(LedgerError):
    """Another launcher holds the ledger. Wait for that one to end."""


class LedgerDamaged(LedgerError):
    """A line in the middle of the ledger can't be read.

    Attributes:
        offset: where the bad line begins, in bytes from the ledger's start.
    """

    def __init__(self, message: str, *, offset: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.offset = offset


class LedgerForeign(LedgerError):
    """The file is no ledger, a newer kind of ledger, or another batch's. Name the right one."""


class LedgerWriteFailed(LedgerError):
    """A write or fsync of the ledger failed. It is final: nothing more is launched.

    Attributes:
        unrecorded: (key, jobRunId) of runs that DES started and that may not be on disk.
        summary: the counts of what is on disk, where a launch was under way; else None.
    """

    def __init__(
        self,
        message: str,
        *,
        unrecorded: Sequence[tuple[str, str]] = (),
        summary: Summary | None = None,
        hint: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.unrecorded = tuple(unrecorded)
        self.summary = summary
