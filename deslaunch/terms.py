"""On what terms a session begins: its settings, its clients, and the jobs it checks against.

A batch's own terms stand in its ledger's header, and a later session is held to them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from deslaunch.catalog import Catalog
from deslaunch.client import DesClient
from deslaunch.config import LaunchOptions, Settings
from deslaunch.errors import ConfigurationError
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
) -> Catalog:
    """Return the catalog of a session's jobs; nothing is asked for yet.

    Args:
        clients: by target.
        settings: how old a cached answer may be.
        schema: a file of jobs that stand for every target's, or None.
        cache: directory of the schema cache; None for the user's.
        offline: an old answer serves where DES can't be asked.

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


def check_origins(
    session: Mapping[str, Any] | None, clients: Mapping[str, DesClient], settings: Settings
) -> None:
    """Refuse to send the rest of a batch to another DES than before, unless that is wanted.

    Raises:
        ConfigurationError: a target's origin is not that of the last session.
    """
    if session is None or settings.allow_new_origin:
        return

    for name, client in clients.items():
        known = session["targets"].get(name, {}).get("baseUrl")

        if known is not None and _origin(known) != _origin(client.base_url):
            raise ConfigurationError(
                f"target {name} was at {known} in the last session, and is at "
                f"{client.base_url} now: its jobs may not be the same",
                hint=f"if it moved, pass --base-url {client.base_url}",
            )


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.lower()
