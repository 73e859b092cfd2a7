"""``check``, ``jobs``, ``template`` and ``targets``: what is done before a launch."""

from __future__ import annotations

from contextlib import AsyncExitStack
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal

import click

from deslaunch.cli import options
from deslaunch.cli.clients import by_target, clients_of, only, opened
from deslaunch.cli.command import command
from deslaunch.cli.given import OF_CHECK, cache_folder, chosen, console_of, form_of
from deslaunch.cli.loop import interruptible
from deslaunch.cli.stdin import on_disk
from deslaunch.errors import ConfigurationError
from deslaunch.model import DEFAULT_TARGET, counted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from deslaunch.console import Console
    from deslaunch.launcher import CheckReport
    from deslaunch.model import Job
    from deslaunch.session import Interrupt


@command(
    "check",
    examples="  deslaunch check night.csv\n  deslaunch check night.csv --schema jobs.json --json",
)
@click.argument("manifest", type=click.Path())
@options.together(options.rows, options.connection, options.schema, options.output)
def check(manifest: str, **given: Any) -> int:
    """Check every row of MANIFEST, and send nothing. "-" reads stdin."""
    from deslaunch import launcher  # noqa: PLC0415  # aiohttp is slow to import

    console = console_of(given)
    clients = clients_of(given) if given["schema"] is None else None

    async def work(interrupt: Interrupt) -> int:
        async with AsyncExitStack() as stack:
            report = await launcher.check(
                path,
                await opened(stack, clients) if clients is not None else None,
                schema=given["schema"],
                cache=cache_folder(),
                interrupt=interrupt,
                shown_as="<stdin>" if manifest == "-" else None,
                **chosen(given, OF_CHECK),
            )

        _print_report(console, report, as_json=given["as_json"])
        return report.exit_code

    with on_disk(manifest, given["format"]) as path:
        return interruptible(work)


def _print_report(console: Console, report: CheckReport, *, as_json: bool) -> None:
    for note in report.notes:
        console.say(note)

    for warning in report.warnings:
        console.warn(warning)

    if as_json:
        console.json(report.as_dict())
        return

    console.problems(report.problems, report.groups, report.problem_count)
    rows = counted(report.rows, "row")
    console.say(f"{rows}: {report.valid:,} valid, {report.invalid:,} invalid")


@command("jobs", examples="  deslaunch jobs\n  deslaunch jobs --target acme --json > jobs.json")
@click.option("--target", metavar="NAME", help="Whose jobs, where there are several targets.")
@options.together(options.connection, options.output)
def jobs(**given: Any) -> int:
    """List the organisation's jobs and their JobRunParameters.

    What --json prints is what --schema reads.
    """
    from deslaunch import wire  # noqa: PLC0415  # not needed for --help

    console = console_of(given)
    client = only(clients_of(given, needs_token=True), given["target"])

    async def work(_: Interrupt) -> int:
        async with client:
            found = await client.query_jobs()

        if given["as_json"]:
            console.json({"jobs": wire.encode_jobs(found)})
        else:
            console.jobs(found)

        return 0

    return interruptible(work)


@command(
    "template",
    examples=(
        "  deslaunch template 43f87799-62c6-4001-92f9-6b3df816a6d6 -o night.csv\n"
        "  deslaunch template 43f87799-62c6-4001-92f9-6b3df816a6d6 --format jsonl"
    ),
)
@click.argument("job_id", metavar="JOBID")
@click.option("--format", type=options.FORMAT, help="Default: by the output's name, else csv.")
@click.option("-o", "--output", type=options.FILE, help="A new file. Default: stdout.")
@click.option("--target", metavar="NAME", help="Whose job, where there are several targets.")
@click.option("--schema", type=options.FILE, help="Jobs in QueryJobs' form; DES is not asked.")
@options.together(options.connection, options.volume)
def template(
    job_id: str,
    format: Literal["jsonl", "csv"] | None,  # noqa: A002  # the option's name
    output: Path | None,
    **given: Any,
) -> int:
    """Write a manifest to begin with: one example row for the job JOBID.

    What each parameter takes is told on stderr. The row passes the check as it is; give it
    values of your own before you launch it.
    """
    from deslaunch import template as templates  # noqa: PLC0415  # not needed for --help

    console = console_of(given)
    form = form_of(output, format)
    job = _job(_jobs_of(given), job_id)
    text = templates.manifest_of(job, form, given["target"] or DEFAULT_TARGET)

    if output is None:
        console.data(text.removesuffix("\n"))
    else:
        _write_new(output, text)

    for line in templates.explanation(job, form):
        console.say(line)

    if output is not None:
        console.say(f"the manifest is in {output}; check it with: deslaunch check {output}")

    return 0


def _jobs_of(given: Mapping[str, Any]) -> list[Job]:
    """Return the jobs of the schema file, where one is given, or else those that DES names."""
    if given["schema"] is not None:
        from deslaunch.schema_cache import read_schema_file  # noqa: PLC0415  # not for --help

        return read_schema_file(given["schema"])

    client = only(clients_of(given, needs_token=True), given["target"])
    found: list[Job] = []

    async def work(_: Interrupt) -> int:
        async with client:
            found.extend(await client.query_jobs())

        return 0

    interruptible(work)
    return found


def _job(jobs: Sequence[Job], job_id: str) -> Job:
    for job in jobs:
        if job.job_id == job_id.lower():
            return job

    known = [f"{job.job_id} ({job.name})" for job in jobs]
    near = get_close_matches(job_id.lower(), [job.job_id for job in jobs], n=1)
    meant = f": did you mean {near[0]}?" if near else ""
    raise ConfigurationError(
        f"there is no job {job_id}{meant}",
        hint=f"there are {', '.join(known[:5]) or 'none'}; deslaunch jobs lists all of them",
    )


def _write_new(path: Path, text: str) -> None:
    """Write a file that is not there yet: what a person wrote is never written over.

    Raises:
        ConfigurationError: it is there, or can't be written.
    """
    from deslaunch import durable  # noqa: PLC0415  # not needed for --help

    if path.exists():
        raise ConfigurationError(f"{path} exists", hint="name a new file with -o")

    try:
        durable.write_atomically(path, text.encode())
    except OSError as exc:
        raise ConfigurationError(
            f"{path} can't be written: {exc.strerror}", hint="name another file with -o"
        ) from exc


@command("targets", examples="  deslaunch targets\n  deslaunch targets --config acme.toml --json")
@options.together(options.connection, options.output)
def targets(**given: Any) -> int:
    """Ask each target for a token and for its jobs, and say which of them work.

    It exits with 0 where all work, with 6 where a login or a token is refused, else with 5 where
    there is no usable answer, else with 2.
    """
    from deslaunch.targets import check_targets  # noqa: PLC0415  # aiohttp is slow to import

    console = console_of(given)
    clients = clients_of(given, needs_token=True)

    async def work(_: Interrupt) -> int:
        async with AsyncExitStack() as stack:
            reports = await check_targets(by_target(await opened(stack, clients)))

        code = max(report.exit_code for report in reports)

        if given["as_json"]:
            console.json({"targets": [report.as_dict() for report in reports], "exitCode": code})
        else:
            console.targets(reports)

        return code

    return interruptible(work)
