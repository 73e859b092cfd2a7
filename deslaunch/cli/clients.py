"""The clients that file, environment and options describe."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click
from click.core import ParameterSource

from deslaunch.errors import ConfigurationError
from deslaunch.model import DEFAULT_TARGET

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AsyncExitStack

    from deslaunch.client import DesClient
    from deslaunch.config import TargetSettings
    from deslaunch.targets import Connection
    from deslaunch.terms import Clients


def clients_of(given: Mapping[str, Any], *, needs_token: bool = False) -> Clients:
    """Return the clients that file, environment and options describe, not yet open.

    Where there is no file, the one client is that of the rows that name no target, however
    ``--target`` calls it.

    Raises:
        ConfigurationError: no base URL, two token sources, or none where one is needed.
    """
    from deslaunch.config import merged_targets, target_from_environment  # noqa: PLC0415
    from deslaunch.targets import client_of  # noqa: PLC0415  # aiohttp is slow to import

    of_file = _config_of(given)
    base_url = given["base_url"]
    connection = _connection_of(given)

    if of_file:
        merged = merged_targets(of_file, os.environ, base_url=base_url, target=given.get("target"))
        return {name: client_of(target, connection) for name, target in merged.items()}

    found = target_from_environment(os.environ, base_url=base_url)
    client = client_of(found, connection)

    if needs_token and not found.credentials:
        raise ConfigurationError(
            "there is no token, and so nothing was sent",
            hint="set DES_TOKEN, DES_TOKEN_FILE or DES_TOKEN_COMMAND, or DES_ORG_ID and the rest "
            "of a login; or name targets in a file (--config)",
        )

    return client


def _config_of(given: Mapping[str, Any]) -> dict[str, TargetSettings]:
    """Return the targets of the file that is named, or else of the user's, if there is one."""
    from deslaunch.config_file import default_config, read_config  # noqa: PLC0415  # not for --help

    path = given["config"] or default_config()
    exists = os.path.exists(path)  # noqa: PTH110  # Path's raises where a home is not ours
    return read_config(path) if given["config"] is not None or exists else {}


def _connection_of(given: Mapping[str, Any]) -> Connection:
    """Return how to connect; a time-out that nobody gave leaves a target's own alone."""
    from deslaunch.targets import Connection  # noqa: PLC0415  # aiohttp is slow to import

    return Connection(
        timeout=_unless_default("timeout", given),
        connect_timeout=_unless_default("connect_timeout", given),
        allow_http=given["allow_http"],
        proxy=proxy_of,
    )


def _unless_default(name: str, given: Mapping[str, Any]) -> Any:
    source = click.get_current_context().get_parameter_source(name)
    return None if source is ParameterSource.DEFAULT else given[name]


def by_target(clients: Clients, name: str | None = None) -> Mapping[str, DesClient]:
    """Return clients by target; the one that has no name takes the one that it is given."""
    from deslaunch.client import DesClient  # noqa: PLC0415  # aiohttp is slow to import

    return {name or DEFAULT_TARGET: clients} if isinstance(clients, DesClient) else clients


async def opened(stack: AsyncExitStack, clients: Clients) -> Clients:
    """Open one client, or each of several, until the stack is left."""
    for client in by_target(clients).values():
        await stack.enter_async_context(client)

    return clients


def proxy_of(base_url: str) -> str | None:
    """Return the proxy that HTTPS_PROXY, HTTP_PROXY and NO_PROXY name for a URL, or None.

    None for this machine's own addresses: what is sent to them in the clear must not leave it.
    """
    from urllib.request import getproxies_environment, proxy_bypass  # noqa: PLC0415  # slow too

    from deslaunch.urls import is_loopback  # noqa: PLC0415  # not needed for --help

    parts = urlsplit(base_url)
    host = parts.hostname or ""
    proxies = getproxies_environment()
    direct = is_loopback(host) or proxy_bypass(host, proxies)
    return None if direct else proxies.get(parts.scheme)


def only(clients: Clients, name: str | None) -> DesClient:
    """Return the client that is asked for; the only one, or the default, where none is named."""
    named = by_target(clients, name)
    chosen = next(iter(named)) if name is None and len(named) == 1 else name or DEFAULT_TARGET

    if chosen not in named:
        raise ConfigurationError(
            f"there is no target {chosen}", hint=f"pass --target and one of {', '.join(named)}"
        )

    return named[chosen]
