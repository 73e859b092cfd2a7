"""A report of one or more ledgers as one page: what became of the rows, and what to do now.

Needs the extra ``report``, which brings Jinja2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deslaunch import durable
from deslaunch.errors import ConfigurationError
from deslaunch.report.contents import contents_of
from deslaunch.report.page import page_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def write_report(ledgers: Sequence[Path], output: Path, *, manifest: Path | None = None) -> None:
    """Write a report; nothing is locked, and no ledger is changed.

    After return the whole page is on disk; after an error the old one is there unchanged.

    Args:
        ledgers: at least one; several are put together.
        output: the page; readable by its owner only, since it holds parameters and answers.
        manifest: where the manifest is now; default: where the last session found it.

    Raises:
        ConfigurationError: the page can't be written, or would replace a ledger.
        LedgerError: a ledger can't be read.
        ManifestError: a manifest can't be read.
    """
    _check_output(ledgers, output, manifest)
    contents = contents_of(ledgers, manifest)

    try:
        with durable.replacing(output) as stream:
            stream.writelines(piece.encode() for piece in page_of(contents))
    except OSError as exc:
        raise ConfigurationError(
            f"{output}: the report can't be written: {exc.strerror or exc}",
            hint="name another file with -o",
        ) from exc


def _check_output(ledgers: Sequence[Path], output: Path, manifest: Path | None) -> None:
    inputs = [*ledgers, *([] if manifest is None else [manifest])]

    if output.exists() and any(path.exists() and path.samefile(output) for path in inputs):
        raise ConfigurationError(
            f"{output}: the report would replace what it is made from",
            hint="name another file with -o",
        )
