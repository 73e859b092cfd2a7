"""Start thousands of DES job runs from one manifest, and know what became of every row.

::

    async with deslaunch.DesClient(base_url, token=deslaunch.EnvToken()) as des:
        summary = await deslaunch.launch("night.csv", des)

Names are imported when they are first used. Every exception is in :mod:`deslaunch.errors`, every
event in :mod:`deslaunch.events`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from deslaunch import errors, events
    from deslaunch.des.client import DesClient
    from deslaunch.des.tokens import CommandToken, EnvToken, FileToken, OAuthToken
    from deslaunch.errors import (
        CredentialsRefused,
        DesError,
        DeslaunchError,
        InvalidManifest,
        LedgerExists,
        NotSent,
        OutcomeUnknown,
        Rejected,
        ServerError,
        Stopped,
        Throttled,
    )
    from deslaunch.events import Plan, Summary
    from deslaunch.launch.batch import launch, open_batch, resume_batch
    from deslaunch.launch.importing import check
    from deslaunch.launch.launcher import Batch
    from deslaunch.ledger.ledger import open_ledger
    from deslaunch.manifest.files import Manifest
    from deslaunch.model import AUTO, JobRunParameterValue, Outcome, Row, RowState, RunStatus
    from deslaunch.settings import Settings

__version__: Final = "0.2.0"

__all__ = ["AUTO", "Batch", "CommandToken", "CredentialsRefused", "DesClient", "DesError"]
__all__ += ["DeslaunchError", "EnvToken", "FileToken", "InvalidManifest", "JobRunParameterValue"]
__all__ += ["LedgerExists", "Manifest", "NotSent", "OAuthToken", "Outcome", "OutcomeUnknown"]
__all__ += ["Plan", "Rejected", "Row", "RowState", "RunStatus", "ServerError", "Settings"]
__all__ += ["Stopped", "Summary", "Throttled", "check", "errors", "events", "launch", "open_batch"]
__all__ += ["open_ledger", "resume_batch"]

_MODULES: Final = (
    "model errors events settings des.client des.tokens manifest.files launch.batch "
    "launch.importing"
)
"""Where the names are, the quickest to import first."""


def __getattr__(name: str) -> Any:
    if name in {"errors", "events"}:
        return import_module(f"deslaunch.{name}")

    if name in __all__:
        for module in _MODULES.split():
            found = getattr(import_module(f"deslaunch.{module}"), name, None)

            if found is not None:
                globals()[name] = found
                return found

    raise AttributeError(f"module 'deslaunch' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
