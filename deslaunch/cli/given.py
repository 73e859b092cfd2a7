"""What was given on the command line, made into what the library takes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from deslaunch.config import LaunchOptions
    from deslaunch.console import Console
    from deslaunch.model import Format
    from deslaunch.watch_settings import WatchOptions

OF_CHECK: Final = (
    "format",
    "job_id",
    "target",
    "allow_duplicates",
    "allow_repeated_auto",
    "schema_max_age",
)
OF_WATCH: Final = (
    "concurrency",
    "rate",
    "interval",
    "max_interval",
    "watch_timeout",
    "max_wait",
    "give_up_after",
)
OF_LAUNCH: Final = (
    *OF_CHECK,
    "shard",
    "skip_invalid",
    "concurrency",
    "rate",
    "limit",
    "max_attempts",
    "max_wait",
    "give_up_after",
    "drain_timeout",
    "max_errors",
    "retry_5xx",
    "retry_rejected",
    "retry_unknown",
    "accept_new_rows",
)


def watch_options(given: Mapping[str, Any]) -> WatchOptions:
    """Return the options of a watch that are the library's; what was not given is left out."""
    chosen: Any = {name: given[name] for name in OF_WATCH if given[name] is not None}
    return cast("WatchOptions", chosen | {"allow_new_origin": given["base_url"] is not None})


def chosen(given: Mapping[str, Any], names: Sequence[str]) -> LaunchOptions:
    """Return the options that are the library's; what was not given is left out."""
    chosen: Any = {name: given[name] for name in names if given[name] is not None}

    if given["base_url"] is not None:
        chosen["allow_new_origin"] = True  # the user names where the batch goes on

    return cast("LaunchOptions", chosen)


def repeated(given: Mapping[str, Any]) -> list[str]:
    """Return the options that a resume must be given again: the ledger does not keep them."""
    words = []

    for name in ("config", "env_file", "base_url", "schema"):
        if given.get(name) is not None:
            words += [f"--{name.replace('_', '-')}", str(given[name])]

    flags = ("--allow-http" if given["allow_http"] else "", "--watch" if given.get("watch") else "")
    return [*words, *filter(None, flags)]


def form_of(output: Path | None, given: Format | None) -> Format:
    """Return the format that is asked for, else that of the output's name, else CSV."""
    return given or ("jsonl" if output and output.suffix in {".jsonl", ".ndjson"} else "csv")


def console_of(given: Mapping[str, Any]) -> Console:
    """Return the console that speaks as loudly, and in the form, that was asked for."""
    from deslaunch.console import Console  # noqa: PLC0415  # not needed for --help

    return Console(
        quiet=given.get("quiet", False),
        verbose=given.get("verbose", False),
        log=given.get("log_format") == "json",
    )


def cache_folder() -> str | None:
    """Return the folder of the schema cache that the environment names, if it names one."""
    return os.environ.get("DESLAUNCH_CACHE_DIR") or None
