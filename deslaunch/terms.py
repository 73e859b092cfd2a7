"""On what terms a session begins: its settings, its clients, and the jobs it checks against.

A batch's own terms stand in its ledger's header, and a later session is held to them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from deslaunch.catalog import Catalog
from deslaunch.client import DesClient
from deslaunch.config import LaunchOptions, Settings
from deslaunch.errors import ConfigurationError, CredentialsRefused, NotSent
from deslaunch.manifest import ManifestOptions
from deslaunch.model import DEFAULT_TARGET
from deslaunch.schema_cache import SchemaCache, default_directory, read_schema_file

StrPath = str | os.PathLike[str]
Clients = DesClient | Mapping[str, DesClient]


def by_target(des: Clients, settings: Settings) -> dict[str, DesClient]:
    """Return the clients by target; one alone is that of the rows that name no target.

    Raises:
        ConfigurationError: there is none.
    """
    if isinstance(des, Mapping) and not des:
        raise ConfigurationError("there is no target", hint="give at least one client")

    if isinstance(des, Mapping):
        return dict(des)

    return {settings.target or DEFAULT_TARGET: des}


def manifest_options(settings: Settings) -> ManifestOptions:
    """Return how a manifest is to be read."""
    return ManifestOptions(format=settings.format, job_id=settings.job_id, target=settings.target)


async def load_catalog(
    clients: Mapping[str, DesClient],
    settings: Settings,
    schema: StrPath | None,
    cache: StrPath | None,
    *,
    offline: bool = False,
    apart: bool = False,
) -> Catalog:
    """Return the catalog of a session's jobs; nothing is asked for yet.

    Args:
        clients: by target.
        settings: how old a cached answer may be.
        schema: a file of jobs that stand for every target's, or None.
        cache: directory of the schema cache; None for the user's.
        offline: an old answer serves where DES can't be asked.
        apart: a target whose jobs can't be had does not keep the others from being launched.

    Raises:
        SchemaError: the schema file can't be read.
    """
    jobs = None if schema is None else await asyncio.to_thread(read_schema_file, Path(schema))
    return Catalog(
        clients,
        targets=() if clients else [settings.target or DEFAULT_TARGET],
        cache=SchemaCache(Path(cache) if cache is not None else default_directory()),
        schema_file=jobs,
        max_age=timedelta(hours=settings.schema_max_age),
        offline=offline,
        apart=apart,
    )


def settings_of(header: Mapping[str, Any], options: LaunchOptions) -> Settings:
    """Return the settings of a session whose batch was begun with others.

    Raises:
        ConfigurationError: an option differs from what the batch was begun with.
    """
    begun: dict[str, Any] = {
        "format": header["format"],
        "job_id": header["jobId"],
        "target": header["target"],
        "shard": header.get("shard"),
        "skip_invalid": header["skipInvalid"],
        "allow_duplicates": "duplicates" in header["allow"],
        "allow_repeated_auto": "repeatedAuto" in header["allow"],
    }

    for name, known in begun.items():
        asked: Any = options.get(name, known)

        if name == "job_id" and asked is not None:
            asked = asked.lower()

        if asked is not None and asked != known:
            option = f"--{name.replace('_', '-')}"
            raise ConfigurationError(
                f"{option} is {asked!r}, and the batch was begun with {known!r}",
                hint=f"leave {option} out: a resume takes it from the ledger",
            )

    return replace(Settings(**options), **begun)


async def check_origins(
    session: Mapping[str, Any] | None, clients: Mapping[str, DesClient], settings: Settings
) -> None:
    """Refuse to send the rest of a batch to another DES than before, unless that is wanted.

    An organisation may move: there, ``svc`` is where its token says.

    Args:
        session: the last session's record, or None.
        clients: by target.
        settings: whether another origin is wanted.

    Raises:
        ConfigurationError: a target's organisation or origin is not that of the last session.
        CredentialsRefused: a target's origin can't be found out, as there is no token.
        NotSent: the same, as the auth server can't be reached.
    """
    for name, client in clients.items():
        known = session["targets"].get(name, {}) if session is not None else {}

        if client.org_id is not None and known.get("orgId") is not None:
            _check_organisation(name, known["orgId"], client.org_id)
        elif known.get("baseUrl") is not None and not settings.allow_new_origin:
            _check_origin(name, known["baseUrl"], await client.locate())


def _check_organisation(target: str, known: str, now: str) -> None:
    if known != now:
        raise ConfigurationError(
            f"target {target} was organisation {known} in the last session, and is {now} now",
            hint="give the target its organisation back, or begin a new batch",
        )


def _check_origin(target: str, known: str, now: str) -> None:
    if _origin(known) != _origin(now):
        raise ConfigurationError(
            f"target {target} was at {known} in the last session, and is at {now} now: "
            "its jobs may not be the same",
            hint=f"if it moved, pass --base-url {now}",
        )


async def in_use(clients: Mapping[str, DesClient], catalog: Catalog) -> Mapping[str, DesClient]:
    """Return the clients of the targets that rows name, told where their DES is.

    One that can't find that out is no hindrance to the others: it stops when it is sent to.
    """
    named = {name: client for name, client in clients.items() if name in catalog.loaded}

    async with asyncio.TaskGroup() as group:
        for name in named.keys() - catalog.left_out.keys():
            group.create_task(_located(named[name]))

    return named or clients


async def _located(client: DesClient) -> None:
    with suppress(CredentialsRefused, NotSent):
        await client.locate()


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.lower()
