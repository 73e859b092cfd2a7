"""The command line itself: its commands by name, and the page that lists them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from importlib import import_module
from typing import Final, cast

import click

from deslaunch._version import VERSION
from deslaunch.cli.exits import EXIT_CODES

HOMES: Final = {
    "check": "preparing",
    "completion": "completion",
    "jobs": "preparing",
    "report": "ledgers",
    "resolve": "resolving",
    "results": "ledgers",
    "resume": "launching",
    "run": "launching",
    "simulate": "simulating",
    "status": "ledgers",
    "targets": "preparing",
    "template": "preparing",
    "watch": "watching",
}
"""The module of this package that has each command, under its name."""


class _Commands(Mapping[str, click.Command]):
    """Commands by name; what one needs is imported when it is looked up, and no sooner."""

    def __getitem__(self, name: str) -> click.Command:
        return cast("click.Command", getattr(import_module(f"{__package__}.{HOMES[name]}"), name))

    def __iter__(self) -> Iterator[str]:
        return iter(HOMES)

    def __len__(self) -> int:
        return len(HOMES)


@click.group(
    commands=cast("MutableMapping[str, click.Command]", _Commands()),  # none is ever added
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EXIT_CODES,
)
@click.version_option(VERSION, prog_name="deslaunch")
def command_line() -> None:
    """Start thousands of DES job runs from one manifest, and know what became of every row.

    The base URL comes from DES_BASE_URL; the token from DES_TOKEN, DES_TOKEN_FILE or
    DES_TOKEN_COMMAND, never from the command line. With DES_ORG_ID, DES_CLIENT_ID,
    DES_CLIENT_SECRET, DES_USERNAME and DES_PASSWORD set instead, the auth server gives tokens
    and tells the base URL. For many organisations, name targets in a file: see --config.
    """
