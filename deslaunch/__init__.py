"""Start thousands of DES job runs from one manifest, and know what became of every row.

::

    async with deslaunch.DesClient(base_url, token=deslaunch.EnvToken()) as des:
        summary = await deslaunch.launch("night.csv", des, ledger="night.ledger.jsonl")

Names are imported when they are first used: the command line answers ``--help`` without
loading the HTTP client.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from deslaunch._version import VERSION as __version__  # noqa: N811  # the field's own name for it

if TYPE_CHECKING:
    from deslaunch.batch import Batch, open_batch
    from deslaunch.client import DesClient
    from deslaunch.config import LaunchOptions
    from deslaunch.errors import (
        ConfigurationError,
        CredentialsRefused,
        Declined,
        DesError,
        DeslaunchError,
        Interrupted,
        InvalidManifest,
        LedgerDamaged,
        LedgerError,
        LedgerExists,
        LedgerForeign,
        LedgerLocked,
        LedgerWriteFailed,
        ManifestChanged,
        ManifestConflict,
        ManifestError,
        Misconfigured,
        NotSent,
        OutcomeUnknown,
        QueryFailed,
        Redirected,
        Rejected,
        SchemaError,
        ServerError,
        Throttled,
        Unauthorized,
        Unfinished,
    )
    from deslaunch.findings import Finding
    from deslaunch.launcher import CheckReport, check, launch, preview, preview_resume, resume
    from deslaunch.ledger import Snapshot, snapshot
    from deslaunch.model import (
        AUTO,
        Draining,
        Event,
        Job,
        JobParameter,
        Noted,
        Outcome,
        Plan,
        Planned,
        PlannedJob,
        Pulse,
        RetryPlanned,
        Row,
        RowEnded,
        RowProblem,
        RowState,
        RunEnded,
        RunStatus,
        StartedRun,
        Stop,
        Stopped,
        StopReason,
        Summary,
        TargetPaused,
        TokenRenewed,
        TypedValue,
        WatchSummary,
    )
    from deslaunch.oauth import OAuthToken
    from deslaunch.resolution import resolve
    from deslaunch.results import Results, UnknownRow, unknown_rows
    from deslaunch.session import Interrupt
    from deslaunch.tokens import CommandToken, EnvToken, FileToken, StaticToken, TokenSource
    from deslaunch.watch_settings import WatchOptions
    from deslaunch.watching import watch

_HOMES = {
    "batch": ("Batch", "open_batch"),
    "client": ("DesClient",),
    "config": ("LaunchOptions",),
    "errors": (
        "ConfigurationError",
        "CredentialsRefused",
        "Declined",
        "DesError",
        "DeslaunchError",
        "Interrupted",
        "InvalidManifest",
        "LedgerDamaged",
        "LedgerError",
        "LedgerExists",
        "LedgerForeign",
        "LedgerLocked",
        "LedgerWriteFailed",
        "ManifestChanged",
        "ManifestConflict",
        "ManifestError",
        "Misconfigured",
        "NotSent",
        "OutcomeUnknown",
        "QueryFailed",
        "Redirected",
        "Rejected",
        "SchemaError",
        "ServerError",
        "Throttled",
        "Unauthorized",
        "Unfinished",
    ),
    "findings": ("Finding",),
    "launcher": ("CheckReport", "check", "launch", "preview", "preview_resume", "resume"),
    "ledger": ("Snapshot", "snapshot"),
    "model": (
        "AUTO",
        "Draining",
        "Event",
        "Job",
        "JobParameter",
        "Noted",
        "Outcome",
        "Plan",
        "Planned",
        "PlannedJob",
        "Pulse",
        "RetryPlanned",
        "Row",
        "RowEnded",
        "RowProblem",
        "RowState",
        "RunEnded",
        "RunStatus",
        "StartedRun",
        "Stop",
        "StopReason",
        "Stopped",
        "Summary",
        "TargetPaused",
        "TokenRenewed",
        "TypedValue",
        "WatchSummary",
    ),
    "oauth": ("OAuthToken",),
    "resolution": ("resolve",),
    "results": ("Results", "UnknownRow", "unknown_rows"),
    "session": ("Interrupt",),
    "tokens": ("CommandToken", "EnvToken", "FileToken", "StaticToken", "TokenSource"),
    "watch_settings": ("WatchOptions",),
    "watching": ("watch",),
}

_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)

    if home is None:
        raise AttributeError(f"module 'deslaunch' has no attribute {name!r}")

    return getattr(import_module(f"deslaunch.{home}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


__all__ = [
    "AUTO",
    "Batch",
    "CheckReport",
    "CommandToken",
    "ConfigurationError",
    "CredentialsRefused",
    "Declined",
    "DesClient",
    "DesError",
    "DeslaunchError",
    "Draining",
    "EnvToken",
    "Event",
    "FileToken",
    "Finding",
    "Interrupt",
    "Interrupted",
    "InvalidManifest",
    "Job",
    "JobParameter",
    "LaunchOptions",
    "LedgerDamaged",
    "LedgerError",
    "LedgerExists",
    "LedgerForeign",
    "LedgerLocked",
    "LedgerWriteFailed",
    "ManifestChanged",
    "ManifestConflict",
    "ManifestError",
    "Misconfigured",
    "NotSent",
    "Noted",
    "OAuthToken",
    "Outcome",
    "OutcomeUnknown",
    "Plan",
    "Planned",
    "PlannedJob",
    "Pulse",
    "QueryFailed",
    "Redirected",
    "Rejected",
    "Results",
    "RetryPlanned",
    "Row",
    "RowEnded",
    "RowProblem",
    "RowState",
    "RunEnded",
    "RunStatus",
    "SchemaError",
    "ServerError",
    "Snapshot",
    "StartedRun",
    "StaticToken",
    "Stop",
    "StopReason",
    "Stopped",
    "Summary",
    "TargetPaused",
    "Throttled",
    "TokenRenewed",
    "TokenSource",
    "TypedValue",
    "Unauthorized",
    "Unfinished",
    "UnknownRow",
    "WatchOptions",
    "WatchSummary",
    "__version__",
    "check",
    "launch",
    "open_batch",
    "preview",
    "preview_resume",
    "resolve",
    "resume",
    "snapshot",
    "unknown_rows",
    "watch",
]
