"""The commands that come before there is a batch.

``jobs``, ``targets`` and ``template`` are about what DES takes; ``simulate`` is a DES to try it on,
and ``help`` explains.
"""

import asyncio
import contextlib
import os
import textwrap
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from deslaunch import errors
from deslaunch.cli import options, render
from deslaunch.cli.main import HOMES, command_line
from deslaunch.cli.options import Given
from deslaunch.cli.targets import LOGIN, open_clients
from deslaunch.model import DEFAULT_TARGET, Job, place_word, printed
from deslaunch.settings import OPTIONS, Option

if TYPE_CHECKING:
    from deslaunch.des.client import DesClient

_PAGES: Final = Path(__file__).parent.parent / "help"

TOPICS: Final = (
    *("manifest", "targets", "options", "states", "exit-codes", "resume", "unknown"),
    *("corrections", "watch", "results", "json", "ledger", "postgres", "operating", "library"),
    *("simulator", "limits", "reliability", "performance", "glossary"),
)
"""What there is a page about, in the order in which it is listed."""

_TARGET: Final = options.value("--target", "Target, if there are several.", metavar="NAME")


@options.command("jobs", _TARGET, *options.CONNECTION, *options.OUTPUT)
async def jobs(given: Given) -> int:
    """List the organisation's jobs and their JobRunParameters.

    With --json, it prints what --schema of other commands reads.

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
            raise errors.ConfigurationError(
                f"there is no target {meant}", hint=f"pass --target and one of {', '.join(named)}"
            )

        return await named[meant].query_jobs()


@options.command("targets", *options.CONNECTION, *options.OUTPUT)
async def targets(given: Given) -> int:
    """Test each target: get a token and query its jobs.

    Exits with 6 if a login or token is refused, else with 5 if a response is not usable, else with
    2 if a token can't be read.

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

    rows: list[tuple[str, ...]] = [("target", "base URL", "organisation", "token", "jobs")]

    for one in told:
        token = {True: "ok", False: "no", None: None}[one["token"]]
        cells = (one["target"], one["baseUrl"], one["orgId"], token, one["jobs"])
        rows.append(tuple("-" if cell is None else str(cell) for cell in cells))

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
    except errors.DeslaunchError as exc:
        told |= {"error": str(exc), "hint": exc.hint, "exitCode": exc.exit_code}

        match exc:
            case errors.CredentialsRefused():
                told["token"] = False
            case errors.NotSent() | errors.DesError(status=None):
                told["token"] = None  # without DES's response it does not show whether it is good

    return {"target": name, "baseUrl": client.base_url, "orgId": client.org_id, **told}


@options.command(
    "template",
    click.Argument(["job"], metavar="JOBID"),
    options.value(
        "--each",
        "A row per value: NAME=a,b, NAME=1..20, NAME=2026-01-01..2026-01-31 or NAME=@FILE.",
        metavar="NAME=VALUES",
        multiple=True,
    ),
    *options.WRITTEN,
    _TARGET,
    options.JOBS,
    *options.CONNECTION,
    *options.VOLUME,
)
async def template(given: Given) -> int:
    """Write a manifest with one row for the job JOBID.

    It explains each parameter on stderr. The row passes check; replace its values before you launch
    it. --each writes a row for every combination of the values, with a key made of them.

    Examples:
        deslaunch template 43f87799-62c6-4001-92f9-6b3df816a6d6 -o night.csv
        deslaunch template JOBID --each DBGenFrom=1..20 --each TradingDateFrom=@days.txt -o all.csv
    """
    from deslaunch.launch.schemas import read_schema_file  # noqa: PLC0415  # not needed for --help
    from deslaunch.manifest import template as making  # noqa: PLC0415
    from deslaunch.report.results import open_output  # noqa: PLC0415

    printer, output = given.printer, given["output"]
    form = options.form_of(output, given["format"])

    if given["schema"] is None:
        known = await _query(given)
    else:  # which may be a pipe: a signal ends the wait for it
        known = await asyncio.to_thread(read_schema_file, given["schema"])

    job, target = _job(known, given["job"]), given["target"] or DEFAULT_TARGET
    parts: Iterable[bytes] = (making.manifest_of(job, form, target).encode(),)

    if given["each"]:
        each: dict[str, list[str]] = {}

        for text in given["each"]:
            name, values = await asyncio.to_thread(making.read_values, text)

            if name in each:
                raise click.UsageError(f"--each names {name} twice: list its values together")

            each[name] = values

        found = making.rows_of(job, each, target)
        parts = making.write_rows(found, form, names_target=target != DEFAULT_TARGET)

    opening = partial(open_output, force=given["force"], replaces_own=False)
    stream = printer.binary() if output is None else opening(output)

    with stream as opened:
        opened.writelines(parts)

    if not given["each"]:
        printer.say(*making.explanation(job, form))

    if output is not None:
        printer.say(f"{output}: check it with: {printed('check', place_word(output))}")

    return 0


def _job(known: Sequence[Job], job_id: str) -> Job:
    for job in known:
        if job.job_id == job_id.lower():
            return job

    near = get_close_matches(job_id.lower(), [job.job_id for job in known], n=1)
    meant = f": did you mean {near[0]}?" if near else ""
    names = ", ".join(f"{job.job_id} ({job.name})" for job in known[:5])
    raise errors.ConfigurationError(
        f"there is no job {job_id}{meant}",
        hint=f"there are {names or 'none'}; see all of them: deslaunch jobs",
    )


@options.command(
    "simulate",
    options.value("--host", "Address to listen on.", default="127.0.0.1", show_default=True),
    options.value("--port", "Default: a free port.", type=click.IntRange(0, 65535), default=0),
    options.file("--jobs", "Jobs as jobs --json prints them. Default: two real templates."),
    options.file("--faults", 'A fault script: {"faults": [{"fault": "hang", "at": [3]}]}.'),
    options.file("--log", "Append every run to this file before its response is sent."),
    options.flag("--oauth", "Accept only tokens of its own token endpoint."),
    options.value(
        "--token-seconds",
        "Lifetime of a token of the token endpoint.  [default: 28800]",
        type=click.FloatRange(0, min_open=True),
        default=28_800,
        metavar="SECONDS",
    ),
)
async def simulate(given: Given) -> int:
    """Run a local DES that starts nothing, and print its base URL.

    It accepts the tokens in DESLAUNCH_SIMULATE_TOKENS (default: simulated). It is an auth server
    too, and accepts any login, or only the one set in DES_ORG_ID, DES_CLIENT_ID,
    DES_CLIENT_SECRET, DES_USERNAME and DES_PASSWORD.

    Examples:
        deslaunch simulate --port 8080 --log runs.jsonl
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
        raise errors.ConfigurationError(
            f"the simulator can't start: {exc}", hint="see: deslaunch simulate --help"
        ) from exc

    return 0


@options.command("help", click.Argument(["topic"], metavar="[TOPIC]", required=False))
async def help(given: Given) -> int:  # noqa: A001  # named as the command is
    """Explain a TOPIC, or list the topics.

    The name of a command shows its --help. Pages are Markdown, formatted on a terminal.

    Examples:
        deslaunch help
        deslaunch help options | less
    """
    topic, pages = given["topic"], await asyncio.to_thread(_read_pages)

    if topic is None:
        given.printer.data(*render.columns([(it, pages[it].split("\n")[0][2:]) for it in pages]))
    elif topic in pages:
        entries = map(_describe, OPTIONS.values()) if topic == "options" else ()
        given.printer.page(pages[topic] + "".join(entries))
    elif topic in HOMES:
        command_line.main([topic, "--help"], "deslaunch", standalone_mode=False)
    else:
        meant = [f"did you mean {it}?" for it in get_close_matches(topic, [*pages, *HOMES], n=1)]
        told = "; ".join([f"there is no topic {topic!r}", *meant])
        raise errors.ConfigurationError(told, hint="see the topics: deslaunch help")

    return 0


def _read_pages() -> dict[str, str]:
    pages = {file.stem: file.read_text("utf-8") for file in _PAGES.glob("*.md")}
    return {topic: pages[topic] for topic in TOPICS if topic in pages}


def _describe(option: Option) -> str:
    """Return an option's entry on the page of all options."""
    is_number, default = option.kind in {int, float}, options.shown_default(option)
    text = f"- `{option.flag}`: {option.help}"
    text += f" Takes {option.range}." if is_number or option.choices else ""
    text += f" Default: `{default}`." if default else ""
    text += f" Variable: `{option.variable}`." if option.variable else ""
    text += " Kept in the ledger." if option.kept else ""
    return textwrap.fill(text, 100, subsequent_indent="  ", break_on_hyphens=False) + "\n"
