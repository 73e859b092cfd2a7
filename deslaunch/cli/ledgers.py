"""``status``, ``results`` and ``report``: what became of the rows of ledgers."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import click

from deslaunch.cli import options
from deslaunch.cli.command import command
from deslaunch.cli.given import console_of, form_of
from deslaunch.errors import ConfigurationError
from deslaunch.model import RowState, RunState, counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from deslaunch.console import Console
    from deslaunch.ledger import Snapshot
    from deslaunch.model import Format
    from deslaunch.results import Choice, Results
    from deslaunch.together import Group

_STATES: Final = tuple(map(str, RowState))
_RUNS: Final = tuple(map(str, RunState))


@command(
    "status",
    examples=(
        "  deslaunch status night.ledger.jsonl --json\n  deslaunch status night.*-of-4.ledger.jsonl"
    ),
)
@options.ledgers
@options.output
def status(ledgers: tuple[Path, ...], **given: Any) -> int:
    """Say how the batch of each LEDGER stands, and list its unknown rows.

    Several LEDGERs, the shards of a manifest for example, are put together, and keys that were
    started in more than one of them are listed.
    """
    from deslaunch.ledger import snapshot  # noqa: PLC0415  # not needed for --help
    from deslaunch.results import summary_of  # noqa: PLC0415
    from deslaunch.together import groups_of  # noqa: PLC0415

    console = console_of(given)
    found = [snapshot(path) for path in ledgers]
    groups = groups_of(found)

    for group in filter(lambda group: group.warning, groups):
        console.warn(group.warning)

    if not given["as_json"]:
        for ledger in found:
            _print_status(console, ledger, named=len(found) > 1)

    if len(found) > 1:
        _print_together(console, found, groups, as_json=given["as_json"])
    elif given["as_json"]:
        console.json(summary_of(found[0]).as_dict())

    return 0


def _print_together(
    console: Console, found: Sequence[Snapshot], groups: Sequence[Group], *, as_json: bool
) -> None:
    from deslaunch.console import shared_key_lines, summary_lines  # noqa: PLC0415
    from deslaunch.shared_keys import shared_keys  # noqa: PLC0415
    from deslaunch.together import summary_together  # noqa: PLC0415

    summary = summary_together(groups)
    shared = shared_keys([(str(ledger.path), ledger.replay.states) for ledger in found])

    if as_json:
        keys = [key.as_dict() for key in shared.kept]
        console.json({**summary.as_dict(), "sharedKeyCount": shared.count, "sharedKeys": keys})
        return

    console.data(f"{len(found):,} ledgers together")

    for line in (*summary_lines(summary), *shared_key_lines(shared)):
        console.data(line)


def _print_status(console: Console, found: Snapshot, *, named: bool) -> None:
    from deslaunch.console import summary_lines, watch_lines  # noqa: PLC0415  # not for --help
    from deslaunch.results import summary_of, unknown_rows, watched_runs  # noqa: PLC0415

    summary = summary_of(found)
    runs = watched_runs(found, summary)

    if named:
        console.data(summary.ledger)

    for line in summary_lines(summary):
        console.data(line)

    if runs is not None:
        for line in watch_lines(runs):
            console.data(line)

    console.unknown_rows(unknown_rows(found))

    if runs is not None:
        console.next_of_runs(runs)

    if not found.live:
        console.next_command(summary, is_status=True)


@command(
    "results",
    examples=(
        "  deslaunch results night.ledger.jsonl -o night.results.csv\n"
        "  deslaunch results night.ledger.jsonl --format jsonl | jq -r .jobRunId\n"
        "  deslaunch results night.*-of-4.ledger.jsonl -o night.results.csv\n"
        "  deslaunch results night.ledger.jsonl --state rejected --state failed --with-manifest\n"
        "  deslaunch results night.ledger.jsonl --run failed\n"
        "  deslaunch results night.ledger.jsonl --possible-duplicates --with-manifest\n"
        "  deslaunch results night.ledger.jsonl --split night.results"
    ),
)
@options.ledgers
@click.option("-o", "--output", type=options.FILE, help="Default: stdout.")
@click.option(
    "--state", "states", multiple=True, type=click.Choice(_STATES), help="Only rows in this state."
)
@click.option(
    "--run", "runs", multiple=True, type=click.Choice(_RUNS), help="Only rows with such a run."
)
@click.option(
    "--possible-duplicates", is_flag=True, help="Only rows that may have been started twice."
)
@click.option("--with-manifest", is_flag=True, help="Also what each row says; ours: deslaunch.*")
@click.option(
    "--split", type=options.FILE, metavar="DIR", help="Write DIR/failed.csv and so on instead."
)
@click.option("--format", type=options.FORMAT, help="Default: by the output's name, else csv.")
@click.option("--manifest", type=options.FILE, help="Where the manifest is now, if it was moved.")
@options.volume
def results(
    ledgers: tuple[Path, ...],
    output: Path | None,
    format: Literal["jsonl", "csv"] | None,  # noqa: A002  # the option's name
    manifest: Path | None,
    split: Path | None,
    **given: Any,
) -> int:
    """Write what became of every row, in manifest order.

    Several LEDGERs that are shards of one manifest are put together: each row comes once. Other
    LEDGERs come one after the other.

    --split writes started.csv, failed.csv, rejected.csv, invalid.csv, pending.csv and
    unknown.csv. They hold the rows with their keys, so that four of them are manifests of a new
    batch, as they are or mended; run refuses the rows of started.csv and unknown.csv. Rows whose
    run failed stand in run-failed.csv too: run refuses them as well, until somebody who wants
    them to run once more renames its column deslaunch.state to deslaunch.was.
    """
    from deslaunch.ledger import snapshot  # noqa: PLC0415  # not needed for --help
    from deslaunch.results import Choice, Results, write_lines  # noqa: PLC0415
    from deslaunch.together import groups_of  # noqa: PLC0415

    choice = Choice(given["states"], given["runs"], given["possible_duplicates"])

    if split is not None and (output or format or choice or given["with_manifest"]):
        raise click.UsageError("--split stands alone: each state has a CSV file of its own")

    console = console_of(given)
    snapshots = [snapshot(path) for path in ledgers]

    if output is not None:
        _check_output(output, snapshots, manifest)

    groups = groups_of(snapshots)
    found = [Results(*group.ledgers, manifest=manifest) for group in groups]
    form = form_of(output, format)

    if manifest is not None and len(found) > 1:
        raise click.UsageError("--manifest is that of one batch, and the ledgers are of several")

    for warning in [*(group.warning for group in groups), *(one.warning for one in found)]:
        if warning:
            console.warn(warning)

    if split is not None:
        _split(console, found, split)
        return 0

    lines = _result_lines(found, form, choice, with_manifest=given["with_manifest"])

    if output is None:
        console.data_bytes(lines)
    else:
        write_lines(lines, output)
        console.say(f"the results are in {output}")

    return 0


def _check_output(output: Path, ledgers: Sequence[Snapshot], manifest: Path | None) -> None:
    """Refuse to write over what the results come from."""
    if not output.exists():
        return

    said = [Path(found.replay.manifest["path"]) for found in ledgers if found.replay.manifest]
    inputs = [*(found.path for found in ledgers), *said, *([] if manifest is None else [manifest])]

    if any(path.exists() and path.samefile(output) for path in inputs):
        raise ConfigurationError(
            f"{output}: the results would replace what they are made from",
            hint="name another file with -o",
        )


def _result_lines(
    found: Sequence[Results], form: Format, choice: Choice, *, with_manifest: bool
) -> Iterator[bytes]:
    from deslaunch.results import encode_results  # noqa: PLC0415  # not needed for --help
    from deslaunch.split import encode_with_manifest, parameter_names  # noqa: PLC0415

    told = (
        (result, row)
        for results in found
        for result, row in results.with_rows()
        if choice.takes(result)
    )

    if with_manifest:
        return encode_with_manifest(told, parameter_names(found), form)

    return encode_results((result for result, _ in told), form)


def _split(console: Console, found: Sequence[Results], folder: Path) -> None:
    from deslaunch.split import parameter_names, split_results  # noqa: PLC0415

    told = chain.from_iterable(results.with_rows() for results in found)

    for name, rows in split_results(told, parameter_names(found), folder).items():
        console.say(f"{folder / name}.csv: {counted(rows, 'row')}")


@command(
    "report",
    examples=(
        "  deslaunch report night.ledger.jsonl -o report.html\n"
        "  deslaunch report night.*-of-4.ledger.jsonl -o night.report.html"
    ),
)
@options.ledgers
@click.option("-o", "--output", type=options.FILE, required=True, help="The page, an .html file.")
@click.option("--manifest", type=options.FILE, help="Where the manifest is now, if it was moved.")
@options.volume
def report(ledgers: tuple[Path, ...], output: Path, manifest: Path | None, **given: Any) -> int:
    """Write a page for a browser: counts, times, causes, what to do, and every row.

    One file that loads nothing from anywhere; several LEDGERs are put together. Needs Jinja2,
    which the extra "report" brings.
    """
    try:
        from deslaunch.report import write_report  # noqa: PLC0415  # an extra brings what it needs
    except ModuleNotFoundError as exc:
        if exc.name not in {"jinja2", "markupsafe"}:
            raise

        raise ConfigurationError(
            "a report needs Jinja2, which is not there",
            hint="install it with: pip install 'deslaunch[report]'",
        ) from exc

    write_report(ledgers, output, manifest=manifest)
    console_of(given).say(f"the report is in {output}")
    return 0
