"""The names of the endpoints, as fault scripts use them, and their paths."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

START_JOB: Final = "startjob"
QUERY_JOBS: Final = "queryjobs"
QUERY_RUN_STATUS: Final = "queryrunstatus"
TOKEN: Final = "token"  # noqa: S105  # an endpoint's name, not a secret
CONNECTION: Final = "connection"
"""No endpoint: a client that has connected, before a byte of it is read."""

ENDPOINTS: Final[Mapping[str, str]] = {
    "/api/v1/startjob": START_JOB,
    "/api/v1/queryjobs": QUERY_JOBS,
    "/api/v1/queryrunstatus": QUERY_RUN_STATUS,
    "/authorisation/token": TOKEN,
}
