"""The commands that send nothing.

``status``, ``results``, ``log``, ``resolve`` and ``report`` are about a ledger; ``jobs``,
``targets``, ``template``, ``simulate`` and ``help`` come before there is one.
"""

import asyncio
import contextlib
import io
import os
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from deslaunch import errors
from deslaunch.cli import options, render
from deslaunch.cli.database import list_batches
from deslaunch.cli.options import Given
from deslaunch.cli.targets import LOGIN, open_clients
from deslaunch.events import Summary, WatchSummary
from deslaunch.ledger.place import is_shared, parse_place
from deslaunch.model import DEFAULT_TARGET, Job, RowState, count, place_word, printed, utc

if TYPE_CHECKING:
    from deslaunch.des.client import DesClient
    from deslaunch.ledger.changes import Finding, Verdict
    from deslaunch.ledger.ledger import Ledger

SHOWN_ROWS: Final = 20
_EXIT_PENDING: Final = 5
_FOLLOW_EVERY: Final = 1.0  # seconds
_OVERLAP_MS: Final = 10_000
"""A turn is committed after what it tells of happened: so much is read again, and told once."""

_TOPICS: Final = Path(__file__).parent.parent / "help"

_RUNS: Final = ["failed", "succeeded", "unfinished"]
_STATES: Final = [*(str(state) for state in RowState if state is not RowState.SENDING), "inFlight"]


async def _open(given: Given) -> "Ledger":
    """Open the ledger, which may be at work, to read it."""
    from deslaunch.ledger.ledger import open_ledger  # noqa: PLC0415

    return await open_ledger(given["ledger"])


@options.command(
    "status",
    options.LEDGER,
    options.flag("--unknown", "Write the unknown rows as a file to fill in, for resolve --from."),
    options.file("--output -o", "With --unknown: a CSV file. Default: stdout."),
    options.FORCE,
    *options.OUTPUT,
)
async def status(given: Given) -> int:
    """Say how the batch of LEDGER stands, and what to do next.

    It says why it stopped, lists its unknown rows, and prints the commands to go on with. Of
    a database, a URL without #NAME, it lists the batches.

    Examples:
        deslaunch status night.ledger.db --json
        deslaunch status night.ledger.db --unknown -o findings.csv
        deslaunch status postgresql://user@host/exports
    """
    if given["output"] is not None and not given["unknown"]:
        raise click.UsageError("-o goes with --unknown")

    if is_shared(given["ledger"]) and not parse_place(given["ledger"]).batch:
        await list_batches(given)
        return 0

    async with await _open(given) as ledger:
        if given["unknown"]:
            await _write_unknown(given, ledger)
        elif given["as_json"]:
            given.printer.json(_as_status((await _runs_of(ledger, given)).batch))
        else:
            await _print_status(given, ledger)

    return 0


def _as_status(summary: Summary) -> dict[str, object]:
    """Return a summary whose exit code is 5 where rows are pending, whatever stopped them."""
    left = summary.counts.pending or summary.counts.in_flight
    return summary.as_dict() | ({"exitCode": _EXIT_PENDING} if left else {})


async def _runs_of(ledger: "Ledger", given: Given) -> WatchSummary:
    """Return how a batch and its runs stand; the ledger is called as it was on the command line."""
    runs = await ledger.watch_summary()
    return runs._replace(batch=runs.batch._replace(ledger=given["ledger"]))


async def _print_status(given: Given, ledger: "Ledger") -> None:
    printer, runs = given.printer, await _runs_of(ledger, given)
    summary, launchers, commands = runs.batch, await ledger.launchers(), _commands(ledger, runs)
    watched = render.watch_lines(runs) if runs.unfinished < runs.runs else ()
    printer.data(*render.summary_lines(summary), *watched)

    if launchers:
        printer.data(*map(render.launcher_line, launchers))
        commands = []
    elif summary.counts.pending:
        printer.data(*map(render.stop_line, summary.stops))

    for row in (await anext(ledger.unknown_rows(), []))[:SHOWN_ROWS]:
        printer.data(*render.unknown_lines(row))

    if (rest := summary.counts.unknown - SHOWN_ROWS) > 0:
        printer.data(f"… and {count(rest, 'unknown row')} more")

    printer.insist(*render.command_lines(commands))


def _commands(ledger: "Ledger", runs: WatchSummary) -> list[tuple[str, str]]:
    """Return what to do next, as the ledger knows how it was begun."""
    repeated = options.kept_words(ledger.batch.options)
    watched = render.watch_commands(runs, repeated) if runs.unfinished < runs.runs else ()
    return [*watched, *render.next_commands(runs.batch, repeated, is_listed=True)]


async def _write_unknown(given: Given, ledger: "Ledger") -> None:
    from deslaunch.ledger.changes import write_unknown  # noqa: PLC0415  # not needed for --help
    from deslaunch.report.results import open_beside  # noqa: PLC0415

    rows, text = [row async for portion in ledger.unknown_rows() for row in portion], io.StringIO()
    write_unknown(text, rows)
    content, printer, output = text.getvalue().encode(), given.printer, given["output"]

    if output is None:
        with printer.binary() as stream:
            stream.write(content)
    else:
        async with open_beside(ledger, output, force=given["force"]) as stream:
            stream.write(content)

        printer.say(f"{count(len(rows), 'unknown row')}: {output}")

        if rows:
            printer.say("fill in its column as: started, with the run's jobRunId, or not-started")


@options.command(
    "results",
    options.LEDGER,
    *options.WRITTEN,
    options.value("--state", "Only rows in this state.", type=click.Choice(_STATES)),
    options.value("--run", "Only rows with such a run.", type=click.Choice(_RUNS)),
    options.value("--key keys", "Only this row; repeatable.", multiple=True, metavar="KEY"),
    options.flag("--with-manifest", "Also what each row says; ours: deslaunch.*"),
    options.file("--split", "Write DIR/failed.csv and so on instead.", metavar="DIR"),
    *options.VOLUME,
)
async def results(given: Given) -> int:
    """Write what became of every row, in manifest order.

    What --with-manifest and --split write is no new batch: run refuses it. Fix rows there, and
    take them into this batch: deslaunch resume LEDGER --corrections FILE.

    Examples:
        deslaunch results night.ledger.db -o night.results.csv
        deslaunch results night.ledger.db --format jsonl | jq -r .jobRunId
        deslaunch results night.ledger.db --state rejected --with-manifest -o fix.csv
        deslaunch results night.ledger.db --run failed
        deslaunch results night.ledger.db --split night.results
    """
    from deslaunch.report import results as writing  # noqa: PLC0415  # not needed for --help

    if given["split"] is not None and (given["output"] or given["format"]):
        raise click.UsageError("--split names its files itself, all of them CSV")

    printer, output, folder = given.printer, given["output"], given["split"]
    choice = writing.Choice(given["state"], given["run"], given["keys"] or None)
    more: dict[str, Any] = {"choice": choice, "force": given["force"]}

    async with await _open(given) as ledger:
        if folder is not None:
            for name, rows in (await writing.split_results(ledger, folder, **more)).items():
                printer.say(f"{folder / name}.csv: {count(rows, 'row')}")

            return 0

        more["form"] = options.form_of(output, given["format"])
        more["with_manifest"] = given["with_manifest"]

        if output is not None:
            written = await writing.write_results(ledger, output, **more)
            printer.say(f"{count(written, 'row')}: {output}")
            return 0

        with printer.binary() as stream:
            written = await writing.write_results(ledger, stream, **more)

    if not written:
        printer.say("no row of the batch is such a row")

    return 0


@options.command(
    "log",
    options.LEDGER,
    options.flag("--follow", "Go on while the ledger grows, until a signal."),
    options.value("--key", "Only this row's.", metavar="KEY"),
    *options.VOLUME,
)
async def log(given: Given) -> int:
    """Print every attempt and event of LEDGER, a JSON line each.

    They come in the order of time.

    Examples:
        deslaunch log night.ledger.db --key store-17
        deslaunch log night.ledger.db --follow | jq -c 'select(.kind != "attempt")'
    """
    after, recent, follows = -1, dict[str, int](), given["follow"]

    try:
        while True:
            async with await _open(given) as ledger:
                async for entries in ledger.log(key=given["key"], after_ms=after):
                    for entry in entries:
                        if str(entry) not in recent:
                            recent[str(entry)] = entry.ms
                            given.printer.json(render.log_line(entry))

                    after = max(after, entries[-1].ms - _OVERLAP_MS)
                    recent = {line: ms for line, ms in recent.items() if ms > after}

            if not follows:
                return 0

            # Closed between two looks: a reader keeps a launcher from leaving one file behind.
            await asyncio.sleep(_FOLLOW_EVERY)
    except asyncio.CancelledError:
        if not follows:
            raise

        return 128 + given.interrupts.signum  # its one way to end: nothing to tell


@options.command(
    "resolve",
    options.LEDGER,
    click.Argument(["keys"], metavar="[KEY]...", nargs=-1),
    options.value("--started", "The row started this run.", metavar="JOBRUNID"),
    options.flag("--not-started", "The rows started nothing: resume may send them."),
    options.flag("--unknown", "Take an earlier finding back."),
    options.file("--from findings", "What status --unknown wrote, filled in."),
    options.value("--note", "Kept with each finding.", default=""),
    options.flag("--early", "Take --not-started although DES may list a run later than now."),
    options.YES,
    *options.OUTPUT,
)
async def resolve(given: Given) -> int:
    """Record what you found out about unknown rows of LEDGER.

    Rows that failed are taken too; all findings are recorded, or none. A finding can be changed
    as long as its row was not sent again. Before DES surely lists a row's run, --not-started asks
    on a terminal, and needs --early elsewhere.

    Examples:
        deslaunch resolve night.ledger.db KEY --not-started --note 'not in DES, 8:40'
        deslaunch resolve night.ledger.db KEY --started JOBRUNID
        deslaunch resolve night.ledger.db --from findings.csv
    """
    printer, found = given.printer, await asyncio.to_thread(_findings_of, given)

    async with await _open(given) as ledger:
        resolved = await ledger.resolve(found, early=given["early"])

        if resolved.early:
            await _agree_to_early(resolved.early, given)
            resolved = await ledger.resolve(found, early=True)

        summary = (await ledger.summary())._replace(ledger=given["ledger"])

    same = f", {resolved.same:,} known already" if resolved.same else ""
    printer.say(f"recorded: {count(resolved.changed, 'finding')}{same}")

    if given["as_json"]:
        printer.outcome_json(_as_status(summary))
    else:
        commands = render.next_commands(summary, options.kept_words(ledger.batch.options))
        printer.say(*render.summary_lines(summary), *render.command_lines(commands))

    return 0


def _findings_of(given: Given) -> Sequence["Finding"]:
    from deslaunch.ledger.changes import Finding, read_findings  # noqa: PLC0415  # not for --help

    keys, started = given["keys"], given["started"]
    chosen: list[Verdict] = [] if started is None else ["started"]
    chosen += ["notStarted"] if given["not_started"] else []
    chosen += ["unknown"] if given["unknown"] else []

    if given["findings"] is not None:
        if keys or chosen:
            raise click.UsageError("--from stands alone: the file names keys and findings")

        found = read_findings(given["findings"], note=given["note"])

        if not found:
            raise errors.ManifestError(
                f"{given['findings']}: no row says in the column as what was found",
                hint="fill in started, with the run's jobRunId, or not-started",
            )

        return found

    if not keys or len(chosen) != 1:
        raise click.UsageError(
            "name at least one KEY, and --started JOBRUNID, --not-started or --unknown"
        )

    if started is not None and len(keys) > 1:
        raise click.UsageError("--started takes one KEY: two rows never share a run")

    return [Finding(key, chosen[0], started, given["note"]) for key in keys]


async def _agree_to_early(early: Sequence[tuple[str, int]], given: Given) -> None:
    """Ask whether to record all the same what nobody can be sure of yet.

    Raises:
        ConfigurationError: nobody can be asked.
        Declined: the reply was no.
    """
    keys = ", ".join(key for key, _ in early[:SHOWN_ROWS])
    more = " …" if len(early) > SHOWN_ROWS else ""
    until = utc(max(ms for _, ms in early))
    told = f"it is too early to say that nothing was started for {keys}{more}: DES may list a run "
    told += f"until {until}; if it does, resume starts a second one"

    printer = given.printer

    if given["yes"] or not printer.can_ask():
        raise errors.ConfigurationError(told, hint="wait until then, or pass --early")

    printer.warn(told)

    if not await printer.ask("Record all the same that nothing was started?"):
        raise errors.Declined("nothing was recorded")


@options.command(
    "report",
    options.LEDGER,
    options.file("--output -o", "The page, an .html file.", required=True),
    options.FORCE,
    *options.VOLUME,
)
async def report(given: Given) -> int:
    """Write a page for a browser: causes, times, and every row.

    One file that loads nothing from anywhere. Needs Jinja2, which the extra "report" brings.

    Examples:
        deslaunch report night.ledger.db -o night.report.html
    """
    with errors.needs_extra("report", "a report"):
        from deslaunch.report.page import write_report  # noqa: PLC0415

    async with await _open(given) as ledger:
        commands = _commands(ledger, await _runs_of(ledger, given))
        await write_report(ledger, given["output"], commands=commands, force=given["force"])

    given.printer.say(f"the report is in {given['output']}")
    return 0


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
            raise errors.ConfigurationError(
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

        if isinstance(exc, errors.CredentialsRefused):
            told["token"] = False
        elif isinstance(exc, errors.DesError) and exc.status is None:
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
    from deslaunch.manifest.schema import explanation, manifest_of  # noqa: PLC0415
    from deslaunch.report.results import open_output  # noqa: PLC0415

    printer, output = given.printer, given["output"]
    form = options.form_of(output, given["format"])

    if given["schema"] is None:
        known = await _query(given)
    else:  # which may be a pipe: a signal ends the wait for it
        known = await asyncio.to_thread(read_schema_file, given["schema"])

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
    raise errors.ConfigurationError(
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
        raise errors.ConfigurationError(
            f"the simulator can't start: {exc}", hint="see: deslaunch simulate --help"
        ) from exc

    return 0


@options.command("help", click.Argument(["topic"], metavar="[TOPIC]", required=False))
async def help(given: Given) -> int:  # noqa: A001  # named as the command is
    """Explain a TOPIC, or list what topics there are.

    What a command does and takes is told by the command itself: deslaunch COMMAND --help.

    Examples:
        deslaunch help
        deslaunch help postgres | less
    """
    topic, texts = given["topic"], await asyncio.to_thread(_read_topics)

    if topic is None:
        titles = [(name, text.partition("\n")[0][2:]) for name, text in texts.items()]
        given.printer.data(*render.columns(titles))
    elif topic in texts:
        given.printer.data(texts[topic].rstrip("\n"))
    else:
        near = get_close_matches(topic, texts, n=1)
        advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(texts)}"
        told = f"there is no topic {topic!r}; {advice} (of a command: deslaunch COMMAND --help)"
        raise click.UsageError(told, click.get_current_context())

    return 0


def _read_topics() -> dict[str, str]:
    return {file.stem: file.read_text("utf-8") for file in sorted(_TOPICS.glob("*.md"))}
