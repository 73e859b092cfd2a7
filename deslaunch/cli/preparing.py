"""``jobs``, ``targets``, ``template`` and ``simulate``: before a launch."""

import asyncio
import contextlib
import os
from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final

import click

from deslaunch.cli import options, render
from deslaunch.cli.options import Given
from deslaunch.cli.targets import LOGIN, open_clients
from deslaunch.errors import ConfigurationError, CredentialsRefused, DesError, DeslaunchError
from deslaunch.model import DEFAULT_TARGET, Job, place_word, printed

if TYPE_CHECKING:
    from deslaunch.des.client import DesClient

_TARGET: Final = options.value(
    "--target", "Whose jobs, where there are several targets.", metavar="NAME"
)


@options.command("jobs", _TARGET, *options.CONNECTION, *options.OUTPUT)
async def jobs(given: Given) -> int:
    """List the organisation's jobs and their JobRunParameters.

    What --json prints is what --schema reads.

    Examples:
        deslaunch jobs
        deslaunch jobs --target acme --json > jobs.json
    """
    from deslaunch.des.wire import encode_jobs  # noqa: PLC0415  # not needed for --help

    printer, found = given.printer, await _query(given)

    if given["as_json"]:
        printer.json({"jobs": encode_jobs(found)})
    else:
        printer.data(*render.job_lines(found))

    return 0


async def _query(given: Given) -> Sequence[Job]:
    """Ask the one target that is meant for its jobs."""
    async with open_clients(given) as named:
        meant = given["target"] or (next(iter(named)) if len(named) == 1 else DEFAULT_TARGET)

        if meant not in named:
            raise ConfigurationError(
                f"there is no target {meant}", hint=f"pass --target and one of {', '.join(named)}"
            )

        return await named[meant].query_jobs()


@options.command("targets", *options.CONNECTION, *options.OUTPUT)
async def targets(given: Given) -> int:
    """Ask each target for a token and its jobs: which of them work?

    Exits with 6 where a login or a token is refused, else with 5 where there is no usable
    response, else with 2 where one can't be read.

    Examples:
        deslaunch targets
        deslaunch targets --config acme.toml --json
    """
    printer = given.printer

    async with open_clients(given) as clients:
        told = await asyncio.gather(*map(_tell_of, clients, clients.values()))

    code: int = max(one.pop("exitCode") for one in told)

    if given["as_json"]:
        printer.json({"targets": told, "exitCode": code})
        return code

    rows = [("target", "base URL", "organisation", "token", "jobs")]

    for one in told:
        token = {True: "ok", False: "no", None: "-"}[one["token"]]
        jobs = "-" if one["jobs"] is None else f"{one['jobs']:,}"
        rows.append((one["target"], one["baseUrl"] or "-", one["orgId"] or "-", token, jobs))

    printer.data(*render.columns(rows))

    for one in told:
        if one["error"] is not None:
            printer.insist(f"error: target {one['target']}: {one['error']}\n  {one['hint']}")

    return code


async def _tell_of(name: str, client: "DesClient") -> dict[str, Any]:
    """Return what ``--json`` tells of a target, and the exit code that it asks for."""
    told: dict[str, Any] = {"token": True, "jobs": None, "error": None, "hint": None, "exitCode": 0}

    try:
        told["jobs"] = len(await client.query_jobs())
    except DeslaunchError as exc:
        told |= {"error": str(exc), "hint": exc.hint, "exitCode": exc.exit_code}

        if isinstance(exc, CredentialsRefused):
            told["token"] = False
        elif isinstance(exc, DesError) and exc.status is None:
            told["token"] = None  # without a response it does not show whether DES takes it

    return {"target": name, "baseUrl": client.base_url, "orgId": client.org_id, **told}


@options.command(
    "template",
    click.Argument(["job"], metavar="JOBID"),
    *options.WRITTEN,
    _TARGET,
    options.JOBS,
    *options.CONNECTION,
    *options.VOLUME,
)
async def template(given: Given) -> int:
    """Write a manifest to begin with, of one row for the job JOBID.

    What each parameter takes is told on stderr. The row passes the check as it is; give it
    values of your own before you launch it.

    Examples:
        deslaunch template 43f87799-62c6-4001-92f9-6b3df816a6d6 -o night.csv
        deslaunch template 43f87799-62c6-4001-92f9-6b3df816a6d6 --format jsonl
    """
    from deslaunch.launch.schemas import read_schema_file  # noqa: PLC0415  # not needed for --help
    from deslaunch.manifest.template import explanation, manifest_of  # noqa: PLC0415
    from deslaunch.report.results import open_output  # noqa: PLC0415

    printer, output = given.printer, given["output"]
    form = options.form_of(output, given["format"])
    known = await _query(given) if given["schema"] is None else read_schema_file(given["schema"])
    job = _job(known, given["job"])
    text = manifest_of(job, form, given["target"] or DEFAULT_TARGET)

    stream = printer.binary() if output is None else open_output(output, force=given["force"])

    with stream as opened:
        opened.write(text.encode())

    printer.say(*explanation(job, form))

    if output is not None:
        checked = printed("check", place_word(output))
        printer.say(f"{output}: check it with: {checked}")

    return 0


def _job(known: Sequence[Job], job_id: str) -> Job:
    for job in known:
        if job.job_id == job_id.lower():
            return job

    near = get_close_matches(job_id.lower(), [job.job_id for job in known], n=1)
    meant = f": did you mean {near[0]}?" if near else ""
    names = ", ".join(f"{job.job_id} ({job.name})" for job in known[:5])
    raise ConfigurationError(
        f"there is no job {job_id}{meant}",
        hint=f"there are {names or 'none'}; see all of them: deslaunch jobs",
    )


@options.command(
    "simulate",
    options.value("--host", "Address to listen on.", default="127.0.0.1", show_default=True),
    options.value("--port", "Default: a free one.", type=click.IntRange(0, 65535), default=0),
    options.file("--jobs", "Jobs in QueryJobs' form. Default: two real templates."),
    options.file("--faults", 'A fault script: {"faults": [{"fault": "hang", "at": [3]}]}.'),
    options.file("--log", "Every run is appended here before it is responded to."),
    options.flag("--oauth", "Accept only tokens of its own token endpoint."),
    options.value(
        "--token-seconds",
        "How long a token of the token endpoint is good.  [default: 28800]",
        type=click.FloatRange(0, min_open=True),
        default=28_800,
        metavar="SECONDS",
    ),
)
async def simulate(given: Given) -> int:
    """Run a local DES that starts nothing, and print its base URL.

    It accepts the tokens that DESLAUNCH_SIMULATE_TOKENS lists (default: simulated). It is an
    auth server too, which takes any login; but where DES_ORG_ID, DES_CLIENT_ID,
    DES_CLIENT_SECRET, DES_USERNAME or DES_PASSWORD is set for it, only that one.

    Examples:
        deslaunch simulate --port 8080 --log runs.jsonl
        DESLAUNCH_SIMULATE_TOKENS='one two' deslaunch simulate --faults faults.json
        DES_ORG_ID=BISTRO DES_PASSWORD=secret deslaunch simulate --oauth --token-seconds 60
    """
    from deslaunch import simulator  # noqa: PLC0415  # not needed for --help

    printer, oauth = given.printer, given["oauth"]
    tokens = os.environ.get("DESLAUNCH_SIMULATE_TOKENS", "" if oauth else "simulated").split()
    login = {name: os.environ.get(f"DES_{name.upper()}", "") for name in LOGIN}

    jobs_file, faults = given["jobs"], given["faults"]

    try:
        made = simulator.Simulator(
            jobs=simulator.load_json(jobs_file) if jobs_file else simulator.DEFAULT_JOBS,
            script=simulator.load_json(faults) if faults else None,
            log=given["log"],
            tokens=tokens,
            login={name: value for name, value in login.items() if value},
            token_seconds=given["token_seconds"],
            host=given["host"],
            port=given["port"],
        )

        async with made:
            printer.data(made.base_url)

            with contextlib.suppress(asyncio.CancelledError):  # a signal: its one way to end
                await asyncio.Event().wait()
    except (simulator.SimulatorError, OSError) as exc:
        raise ConfigurationError(
            f"the simulator can't start: {exc}", hint="see: deslaunch simulate --help"
        ) from exc

    return 0
