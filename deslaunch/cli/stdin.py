"""A manifest that comes from stdin, kept where it can be read twice."""

from __future__ import annotations

import shutil
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def on_disk(manifest: str, form: str | None) -> Iterator[Path]:
    """Give the manifest's path; one from stdin is kept for the time of a check.

    Stdin is read before there is an event loop: there, no signal could end the reading.
    """
    if manifest != "-":
        yield Path(manifest)
        return

    if form is None:
        raise click.UsageError("a manifest from stdin needs --format")

    with tempfile.TemporaryDirectory(prefix="deslaunch-") as folder:
        path = Path(folder, f"stdin.{form}")

        with path.open("wb") as kept:
            shutil.copyfileobj(sys.stdin.buffer, kept)

        yield path
