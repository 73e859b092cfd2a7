"""Targets made of settings, and whether each of them works."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deslaunch.client import DesClient
from deslaunch.errors import ConfigurationError, CredentialsRefused, DesError, DeslaunchError
from deslaunch.oauth import OAuthToken
from deslaunch.tokens import CommandToken, EnvToken, FileToken

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from deslaunch.config import Credentials, Login, TargetSettings
    from deslaunch.tokens import TokenSource


@dataclass(frozen=True, slots=True)
class TargetReport:
    """What was found of one target.

    Attributes:
        target: its name.
        base_url: where its DES is, or None where no token told.
        org_id: its organisation, where that is known.
        token: whether DES took the token; False where there is none, None where DES did not
            get so far as to tell.
        jobs: how many jobs its DES has, or None where QueryJobs did not work.
        error: why it does not work, or None.
    """

    target: str
    base_url: str | None
    org_id: str | None
    token: bool | None
    jobs: int | None
    error: DeslaunchError | None = None

    @property
    def exit_code(self) -> int:
        """0 all is well, 6 refused, 5 no usable answer, 2 an answer that can't be read."""
        match self.error:
            case None:
                return 0
            case CredentialsRefused():
                return 6
            case DesError():
                return 5
            case _:
                return 2

    def as_dict(self) -> dict[str, Any]:
        """Return the report in the documented form of ``targets --json``."""
        return {
            "target": self.target,
            "baseUrl": self.base_url,
            "orgId": self.org_id,
            "token": self.token,
            "jobs": self.jobs,
            "error": None if self.error is None else str(self.error),
            "hint": None if self.error is None else self.error.hint,
        }


async def check_targets(clients: Mapping[str, DesClient]) -> list[TargetReport]:
    """Ask each target for a token and for its jobs, all at the same time; nothing is started.

    Args:
        clients: open ones, by target.
    """
    return list(await asyncio.gather(*(_check(name, des) for name, des in clients.items())))


async def _check(name: str, des: DesClient) -> TargetReport:
    try:
        jobs = await des.query_jobs()
    except DeslaunchError as exc:
        return TargetReport(name, des.base_url, des.org_id, _takes_token(exc), None, exc)

    return TargetReport(name, des.base_url, des.org_id, token=True, jobs=len(jobs))


def _takes_token(error: DeslaunchError) -> bool | None:
    """Tell from what became of a query whether DES takes the token; None: it does not show."""
    match error:
        case CredentialsRefused():
            return False
        case DesError(status=None):
            return None
        case _:
            return True


# Clients.


@dataclass(frozen=True, slots=True)
class Connection:
    """How all targets are connected to, unless one says it otherwise.

    Attributes:
        timeout: seconds for one attempt in all, above 0; None for a target's own, or 60.
        connect_timeout: seconds to connect, above 0; None for a target's own, or 10.
        allow_http: ``http://`` may be used for other hosts than loopback.
        proxy: gives the proxy for a URL, or None.
    """

    timeout: float | None = None
    connect_timeout: float | None = None
    allow_http: bool = False
    proxy: Callable[[str], str | None] | None = None


def client_of(settings: TargetSettings, connection: Connection) -> DesClient:
    """Return the client of one target, not yet open.

    Args:
        settings: of the target.
        connection: wins over the target's own time-outs.

    Raises:
        ConfigurationError: there is no base URL, or one that can't be used.
    """
    if not settings.is_whole:
        raise ConfigurationError(
            "there is no base URL of DES",
            hint="set DES_BASE_URL, pass --base-url URL, or name targets in a file for --config",
        )

    allow_http = connection.allow_http or settings.allow_http
    return DesClient(
        settings.base_url,
        token=_source(settings.credentials, connection, allow_http=allow_http),
        timeout=connection.timeout or settings.timeout or 60,
        connect_timeout=connection.connect_timeout or settings.connect_timeout or 10,
        allow_http=allow_http,
        proxy=connection.proxy,
        concurrency=settings.concurrency,
    )


def _source(credentials: Credentials, connection: Connection, *, allow_http: bool) -> TokenSource:
    if credentials.login is not None:
        return _oauth(credentials.login, connection.proxy, allow_http=allow_http)

    if credentials.token_file is not None:
        return FileToken(credentials.token_file)

    if credentials.token_command is not None:
        return CommandToken(credentials.token_command)

    return EnvToken(credentials.token_env or "DES_TOKEN")


def _oauth(
    login: Login, proxy: Callable[[str], str | None] | None, *, allow_http: bool
) -> OAuthToken:
    return OAuthToken(
        org_id=login.org_id,
        client_id=login.client_id,
        client_secret=login.client_secret.read,
        username=login.username.read,
        password=login.password.read,
        auth_url=login.auth_url,
        allow_http=allow_http,
        proxy=proxy(login.auth_url) if proxy is not None else None,
    )
