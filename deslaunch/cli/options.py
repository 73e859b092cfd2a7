"""The options and arguments that commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from collections.abc import Callable


def together(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return one decorator for several options, shown in the order in which they are given."""

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)

        return command

    return add


FILE: Final = click.Path(path_type=Path)
FORMAT: Final = click.Choice(["jsonl", "csv"])

ledgers = click.argument("ledgers", metavar="LEDGER...", type=FILE, nargs=-1, required=True)


def tuning(name: str, **kwargs: Any) -> Callable[[Any], Any]:
    """Return an option that has an environment variable, ``DESLAUNCH_`` and its name."""
    variable = f"DESLAUNCH_{name.removeprefix('--').replace('-', '_').upper()}"
    return click.option(name, envvar=variable, show_envvar=True, **kwargs)


volume = together(
    click.option("--quiet", is_flag=True, help="Say only what must not be missed."),
    click.option("--verbose", is_flag=True, help="Say what becomes of every row."),
)

output = together(
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout."),
    volume,
)


def _load_env_file(_: click.Context, __: click.Parameter, path: Path | None) -> Path | None:
    """Set the variables of a file that are not set; before any option looks for its own."""
    if path is not None:
        from deslaunch.env_file import read_env_file  # noqa: PLC0415  # not needed for --help

        for name, value in read_env_file(path).items():
            os.environ.setdefault(name, value)

    return path


connection = together(
    tuning(
        "--config",
        type=FILE,
        help="TOML file of targets. Default: config.toml in your "
        "configuration folder of deslaunch.",
    ),
    click.option(
        "--env-file",
        type=FILE,
        is_eager=True,
        callback=_load_env_file,
        help="Set the variables in this file (NAME=value) that are not set already.",
    ),
    click.option(
        "--base-url", metavar="URL", help="DES's base URL. Default: the variable DES_BASE_URL."
    ),
    click.option("--allow-http", is_flag=True, help="Allow http:// for hosts but loopback."),
    tuning(
        "--timeout",
        type=float,
        default=60.0,
        show_default=True,
        metavar="SECONDS",
        help="For one attempt in all.",
    ),
    tuning(
        "--connect-timeout",
        type=float,
        default=10.0,
        show_default=True,
        metavar="SECONDS",
        help="To connect.",
    ),
)

schema = together(
    click.option("--schema", type=FILE, help="Jobs in QueryJobs' form; DES is not asked."),
    tuning(
        "--schema-max-age",
        type=float,
        default=24.0,
        show_default=True,
        metavar="HOURS",
        help="Ask DES for older JobRunParameters.",
    ),
)

rows = together(
    click.option("--format", type=FORMAT, help="Where the manifest's name does not tell."),
    click.option("--job-id", metavar="GUID", help="For rows that name no job."),
    click.option("--target", metavar="NAME", help="For rows that name no target."),
    click.option("--allow-duplicates", is_flag=True, default=None, help="Start equal rows, each."),
    click.option(
        "--allow-repeated-auto",
        is_flag=True,
        default=None,
        help="Start several auto-value rows of one job.",
    ),
)

skip_invalid = click.option(
    "--skip-invalid", is_flag=True, default=None, help="Launch the valid rows all the same."
)

shard = click.option(
    "--shard", metavar="I/N", help="Start the I-th of N shares of the rows, by their keys."
)

yes = click.option("--yes", is_flag=True, help="Never ask.")

max_wait = tuning(
    "--max-wait",
    type=float,
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Cap of a computed wait.",
)

give_up_after = tuning(
    "--give-up-after",
    type=float,
    default=900.0,
    show_default=True,
    metavar="SECONDS",
    help="Stop a target that stays paused for so long.",
)

launching = together(
    tuning(
        "--concurrency",
        type=int,
        default=16,
        show_default=True,
        metavar="N",
        help="Slots: starts in flight.",
    ),
    tuning("--rate", type=float, metavar="R", help="Starts a second at most."),
    tuning(
        "--max-attempts",
        type=int,
        default=5,
        show_default=True,
        metavar="N",
        help="5XX answers that make a row failed.",
    ),
    max_wait,
    give_up_after,
    tuning(
        "--drain-timeout",
        type=float,
        metavar="SECONDS",
        help="For rows in flight after an interrupt. Default: --timeout.",
    ),
    tuning(
        "--max-errors",
        default="50%",
        show_default=True,
        metavar="N|N%",
        help="Rows without a run that stop a target; a share once 200 rows have ended.",
    ),
    click.option(
        "--retry-5xx",
        type=click.Choice(["all", "none"]),
        help="Send 504 and 524 again like any 5XX, or none at all.",
    ),
    click.option(
        "--limit", type=int, metavar="N", help="Start N rows at most; the others stay pending."
    ),
    click.option(
        "--dry-run", is_flag=True, help="Print what would be sent, a JSON line each; send nothing."
    ),
    yes,
    tuning(
        "--log-format",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        help="On stderr: sentences, or one JSON object a line.",
    ),
)

watching = together(
    tuning(
        "--interval",
        type=float,
        default=5.0,
        show_default=True,
        metavar="SECONDS",
        help="Ask about a run again after so long, then after half as long again, and so on.",
    ),
    tuning(
        "--max-interval",
        type=float,
        default=300.0,
        show_default=True,
        metavar="SECONDS",
        help="Between two questions about a run at most.",
    ),
    tuning(
        "--watch-timeout",
        type=float,
        metavar="SECONDS",
        help="End the watch after so long. Default: with the last run.",
    ),
)

watch_too = together(
    click.option("--watch", is_flag=True, help="Then follow the runs to their end."), watching
)

resuming = together(
    click.option("--retry-rejected", is_flag=True, help="Send what DES refused, unchanged."),
    click.option(
        "--retry-unknown", is_flag=True, help="Send what may have started: it may run twice."
    ),
    click.option(
        "--accept-new-rows", is_flag=True, help="New rows are no changed forms of lost ones."
    ),
)
