"""``check``, ``run``, ``resume``, ``start`` and ``watch``: the commands that need DES."""

import io
import json
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from deslaunch.cli import options, render
from deslaunch.cli.ending import command_of, telling_end
from deslaunch.cli.options import Given
from deslaunch.cli.targets import config_of, open_clients
from deslaunch.errors import ConfigurationError, InvalidManifest, LedgerExists, LedgerMissing
from deslaunch.events import Event, Noted, Plan, Planned, StopReason, Summary, WatchSummary
from deslaunch.model import RowState, count, place_word, printed

if TYPE_CHECKING:
    from deslaunch.launch.launcher import Batch

_WATCHED_AFTER: Final = frozenset({0, 3, 4, 5})
"""Exit codes of a launch after which ``--watch`` watches; not after a signal, for example."""

_ROWS: Final = (*options.FORM, *options.tuning("allow_duplicates", "allow_repeated_auto"))
_MANIFEST: Final = click.Argument(["manifest"], metavar="MANIFEST")


@options.command("check", _MANIFEST, *_ROWS, *options.DES, *options.OUTPUT)
async def check(given: Given) -> int:
    """Check every row of MANIFEST and send nothing. "-" reads stdin.

    Exits with 2 if a row is invalid, with 5 or 6 if it can't get the jobs from DES.

    Examples:
        deslaunch check night.csv
        deslaunch check night.csv --schema jobs.json --json
    """
    from deslaunch.launch import importing  # noqa: PLC0415  # aiohttp is slow to import

    manifest, printer, schema = given["manifest"], given.printer, given["schema"]

    def tell(event: Event) -> None:
        if isinstance(event, Noted) and not event.is_warning:  # a busy DES is waited for
            printer.say(event.message)

    async with open_clients(given, needed=schema is None, needs_token=False) as clients:
        more: dict[str, Any] = {"settings": given.settings, "schema": schema, "on_event": tell}
        report = await importing.check(manifest, clients, **more)

    printer.say(*report.notes)
    printer.warn(*report.warnings)

    if given["as_json"]:
        printer.json(report.as_dict())
    else:
        printer.insist(*render.problem_lines(report.problems, report.groups, report.count))
        rows = count(report.rows, "row")
        printer.say(f"{rows}: {report.valid:,} valid, {report.invalid:,} invalid")

    if report.unconfirmed is not None:
        printer.warn(str(report.unconfirmed))

    return report.exit_code


@options.command(
    "run",
    _MANIFEST,
    options.value(
        "--ledger",
        "A file, or postgresql://…#NAME. Default: MANIFEST with its suffix replaced by .ledger.db.",
        show_envvar=True,
        **options.PLACE,
    ),
    options.flag(
        "--resume", "Resume the batch if it exists, else start it; for cron and containers."
    ),
    options.JOIN,
    *_ROWS,
    *options.tuning("skip_invalid"),
    *options.LAUNCH,
)
async def run(given: Given) -> int:
    """Start a run for every row of MANIFEST. "-" reads stdin; --ledger is then required.

    It prints a plan and, on a terminal, asks for confirmation. After a trial (--limit
    with --watch) it exits with 0 if all runs that it started succeeded.

    Examples:
        deslaunch run night.csv
        deslaunch run night.csv --limit 10 --watch --yes && deslaunch resume night.ledger.db
    """
    from deslaunch.launch import batch  # noqa: PLC0415  # aiohttp is slow to import

    source, ledger = given["manifest"], given["ledger"]
    is_piped = source == "-" or source.startswith("/dev/")  # what <(command) expands to

    if given["join"] and not given["resume"]:
        raise click.UsageError("--join needs --resume")

    if is_piped and (ledger is None or given["format"] is None):
        raise click.UsageError("a manifest from a pipe needs --ledger LEDGER and --format")

    ledger = ledger or batch.default_ledger(source)
    opening = partial(batch.open_batch, source, ledger=ledger, resume=given["resume"])

    try:
        async with telling_end(given) as told:
            return await _launch(given, ledger, opening, told, source)
    except LedgerExists as exc:
        again = printed("resume", place_word(ledger), *given.repeated)
        exc.hint = f"resume that batch: {again}; or name another --ledger for a new batch"
        raise


@options.command(
    "resume",
    options.LEDGER,
    options.value("--corrections", "Replace the rows whose keys are in FILE.", metavar="FILE"),
    options.flag("--add-rows", "Add the rows of FILE whose keys are new.", usual=False),
    options.JOIN,
    *options.tuning("retry_failed_runs"),
    *options.tuning(
        "delimiter",
        format="Format of the corrections; default: by their file extension.",
        job_id="Job of corrections that name none.",
        target="Target of corrections that name none.",
    ),
    *options.LAUNCH,
)
async def resume(given: Given) -> int:
    """Send the pending and failed rows of LEDGER.

    Unknown rows are not sent. It needs no manifest and no options: the ledger keeps the rows and
    the options of earlier command lines. It prints a plan and, on a terminal, asks for
    confirmation.

    Examples:
        deslaunch resume night.ledger.db
        deslaunch resume night.ledger.db --corrections fix.csv
    """
    from deslaunch.launch import batch  # noqa: PLC0415  # aiohttp is slow to import

    if given["add_rows"] and given["corrections"] is None:
        raise click.UsageError("--add-rows needs --corrections FILE")

    if given["dry_run"] and given["corrections"] is not None:
        raise click.UsageError("--dry-run can't show corrections: resume shows the plan and asks")

    ledger, file = given["ledger"], given["corrections"]
    opening = partial(batch.resume_batch, ledger, corrections=file, add_rows=given["add_rows"])

    async with telling_end(given) as told:
        return await _launch(given, ledger, opening, told)


@options.command(
    "start",
    click.Argument(["job"], metavar="JOBID"),
    click.Argument(["values"], metavar="[NAME=VALUE]...", nargs=-1),
    options.value(
        "--ledger",
        "Default: a new file in deslaunch's state folder.",
        metavar="LEDGER",
        callback=options.PLACE["callback"],
    ),
    *options.tuning(target="Target of the job."),
    *options.DES,
    *options.tuning("max_attempts", "max_wait", "give_up_after", "drain_timeout", "retry_5xx"),
    options.flag("--watch", "Then watch the run until it ends."),
    *options.WATCH,
    options.ON_END,
    *options.OUTPUT,
)
async def start(given: Given) -> int:
    """Start one run of the job JOBID and print its jobRunId.

    It is a batch of one row, with a ledger of its own. NAME=TEXT sets a parameter to a text,
    NAME=@FILE to the text of a file, NAME:=JSON to a JSON value (number, null), NAME:=auto to the
    auto value. A row that could not be sent is withdrawn.

    Examples:
        deslaunch start 43f87799-62c6-4001-92f9-6b3df816a6d6 DBGenFrom=1200 DBGenTo=1299
        deslaunch start 43f87799-62c6-4001-92f9-6b3df816a6d6 DBGenFrom:=auto --watch
    """
    import orjson  # noqa: PLC0415  # not needed for --help
    from anyio import to_thread  # noqa: PLC0415

    from deslaunch.launch import batch  # noqa: PLC0415  # aiohttp is slow to import
    from deslaunch.launch.witness import note_change  # noqa: PLC0415
    from deslaunch.ledger.history import History  # noqa: PLC0415
    from deslaunch.manifest.files import Manifest  # noqa: PLC0415

    values = list(map(_parse_value, given["values"]))
    row = {"key": "start", "jobId": given["job"], "parameters": dict(values)}
    names = [name for name, _ in values]

    if twice := next((name for name in names if names.count(name) > 1), None):
        raise click.UsageError(f"{twice} is given twice")

    settings = replace(given.settings, again=True)  # the same run may be started again
    form: dict[str, Any] = {"format": "jsonl", "target": settings.target}
    source = Manifest(io.BytesIO(orjson.dumps(row)), **form, name="command line")
    await to_thread.run_sync(command_of, given)
    ledger = given["ledger"] or await to_thread.run_sync(_new_place)
    progress = render.Progress(given.printer)
    more: dict[str, Any] = {"settings": settings, "schema": given["schema"]}
    more["options_kept"] = given.kept()

    def on_event(event: Event) -> None:
        if not isinstance(event, Planned):
            progress(event)

    async with (
        telling_end(given) as told,
        open_clients(given) as clients,
        _errors_of_start(ledger if given["ledger"] is None else None),
        batch.open_batch(source, clients, ledger=ledger, on_event=on_event, **more) as opened,
    ):
        given.interrupts.batch = opened
        assert opened.ledger is not None
        summary = (await opened.run(allow_partial=True))._replace(ledger=ledger)
        given.printer.end_block()
        progress.is_over = True
        [row_now] = [one async for one in opened.results()]

        if row_now.job_run_id is None:
            why = "; ".join(stop.message for stop in summary.stops) or row_now.error
            is_open = row_now.state in {RowState.UNKNOWN, RowState.SENDING}
            started = "a run may have been started" if is_open else "no run was started"
            given.printer.insist(f"{started}: {row_now.state}: {why}")

        if summary.counts.pending:
            await opened.ledger.withdraw(None)
            history, now = History.of_user(lambda _: None), await opened.summary()
            await note_change(history, opened.ledger, now, now.exit_code)
            given.printer.insist("the row was withdrawn: fix the cause, then start the run again")
        elif row_now.job_run_id is None:
            commands = render.next_commands(summary, given.repeated)
            given.printer.insist(*render.command_lines(commands))
        elif not given["as_json"]:
            given.printer.data(row_now.job_run_id)

        watches = given["watch"] and row_now.job_run_id is not None
        ended = await _watch(opened, ledger, given, summary) if watches else summary
        told.update(ended.as_dict(), jobRunId=row_now.job_run_id)

    if given["as_json"]:
        given.printer.outcome_json(told)

    return ended.exit_code


@asynccontextmanager
async def _errors_of_start(new_place: str | None) -> AsyncIterator[None]:
    """Rewrite errors about manifests and batches: ``start`` has no rows and no ``--resume``.

    Where no ledger was made at ``new_place``, its lock is removed: nobody else knows the name.
    """
    from anyio import to_thread  # noqa: PLC0415  # not needed for --help

    try:
        yield
    except InvalidManifest as exc:
        problems = "; ".join(problem.message for problem in exc.problems)
        hint = "see the jobs and their parameters: deslaunch jobs"
        raise ConfigurationError(f"no run was started: {problems}", hint=hint) from exc
    except LedgerExists as exc:
        exc.hint = "each run needs a ledger of its own: omit --ledger, or name a new file"
        raise
    finally:
        if new_place is not None and not await to_thread.run_sync(Path(new_place).exists):
            await to_thread.run_sync(partial(Path(f"{new_place}.lock").unlink, missing_ok=True))


def _parse_value(argument: str) -> tuple[str, Any]:
    """Return a parameter's name, and its value as in a row of JSONL.

    Raises:
        UsageError: the argument is not ``NAME=TEXT``, ``NAME=@FILE`` or ``NAME:=JSON``.
        ConfigurationError: the file can't be read.
    """
    import orjson  # noqa: PLC0415  # not needed for --help

    name, sign, text = argument.partition("=")
    is_json = name.endswith(":")
    name = name.removesuffix(":")

    if not (name and sign):
        expected = "NAME=TEXT, NAME=@FILE or NAME:=JSON"
        raise click.UsageError(f"expected {expected}, got {argument!r}")

    if is_json and text == "auto":
        return name, {"auto": True}

    if is_json:
        try:
            json.loads(text)
        except ValueError:
            raise click.UsageError(f"{argument}: expected JSON or auto after :=") from None

        return name, orjson.Fragment(text)

    if not text.startswith("@"):
        return name, text

    try:
        return name, Path(text[1:]).read_text("utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8"
        hint = f"""check the file; for a text that begins with @ write {name}:='"@…"'"""
        raise ConfigurationError(f"{argument}: {text[1:]} can't be read: {why}", hint=hint) from exc


def _new_place() -> str:
    """Return the path of a new ledger for ``start``, in the state folder.

    Raises:
        ConfigurationError: there is no state folder, or it can't be written.
    """
    from platformdirs import user_state_path  # noqa: PLC0415  # not needed for --help

    from deslaunch.ledger.place import user_folder  # noqa: PLC0415

    folder = user_folder("DESLAUNCH_STATE_DIR", user_state_path)
    hint = "pass --ledger, or set DESLAUNCH_STATE_DIR to a folder"

    if folder is None:
        raise ConfigurationError("no state folder: the user has no home folder", hint=hint)

    try:
        (folder / "starts").mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigurationError(f"{folder}: can't be written: {exc.strerror}", hint=hint) from exc

    name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}.ledger.db"
    return str(folder / "starts" / name)


@options.command(
    "watch",
    options.LEDGER,
    *options.CONNECTION,
    *options.tuning(
        *("max_wait", "give_up_after", "drain_timeout"),
        concurrency="Maximum concurrent queries.",
        rate="Maximum queries per second; a launch's --rate does not apply.",
    ),
    *options.USUAL_WATCH,
    options.ON_END,
    *options.OUTPUT,
)
async def watch(given: Given) -> int:
    """Watch the runs of LEDGER until they end.

    The ledger records how they ended. A watch that ended early can be started again: it queries
    only runs with no recorded end.

    Examples:
        deslaunch watch night.ledger.db
        deslaunch watch night.ledger.db --interval 60 --watch-timeout 14400
    """
    from anyio import to_thread  # noqa: PLC0415  # not needed for --help

    from deslaunch.launch import batch  # noqa: PLC0415  # aiohttp is slow to import

    ledger, interrupts = given["ledger"], given.interrupts

    async with telling_end(given) as told:
        kept = await _kept_of(ledger)
        kept.pop("rate", None)  # it limits starts, not queries
        given.before.update(kept)
        await to_thread.run_sync(command_of, given)

        async with (
            open_clients(given) as clients,
            batch.watch_batch(ledger, clients, settings=given.settings) as interrupts.batch,
        ):
            summary = await _watch(interrupts.batch, ledger, given)

        told.update(summary.as_dict())

    if given["as_json"]:
        given.printer.outcome_json(summary.as_dict())

    return summary.exit_code


async def _kept_of(ledger: str) -> dict[str, Any]:
    """Return the options of earlier command lines that the ledger keeps."""
    from deslaunch.ledger.ledger import open_ledger  # noqa: PLC0415

    async with await open_ledger(ledger) as opened:
        return dict(opened.batch.options)


async def _launch(
    given: Given,
    ledger: str,
    opening: Callable[..., AbstractAsyncContextManager["Batch"]],
    told: dict[str, Any],
    manifest: str | None = None,
) -> int:
    """Launch a batch, and print the plan, progress, the summary and the next commands.

    Args:
        given: of ``run`` or ``resume``.
        ledger: as it was named.
        opening: opens or creates the batch.
        told: is filled with what ``--json`` prints.
        manifest: of ``run``; None for ``resume``.
    """
    if manifest is None or given["resume"]:
        try:
            given.before.update(await _kept_of(ledger))
        except LedgerMissing:
            if manifest is None:
                raise

    if given["dry_run"]:
        return await _preview(given, None if given.before else manifest, ledger)

    import asyncio  # noqa: PLC0415  # not needed for --help

    printer = given.printer
    has_rows = "-" in {manifest, given["corrections"]}
    asks = not given["yes"] and printer.can_ask(has_rows=has_rows)

    async def confirm(plan: Plan) -> bool:
        return not (asks and plan.send) or await printer.ask(f"Start {count(plan.send, 'run')}?")

    progress = render.Progress(printer)
    more: dict[str, Any] = {"settings": given.settings, "schema": given["schema"]}
    more |= {"options_kept": given.kept(), "on_event": progress, "confirm": confirm}
    more |= {"join": given["join"], "job_limits": (await asyncio.to_thread(config_of, given)).jobs}
    await asyncio.to_thread(command_of, given)

    async with open_clients(given) as clients, opening(clients, **more) as batch:
        given.interrupts.batch = batch

        if batch.plan is not None and not batch.plan.send:
            # Also with --quiet: a night that starts nothing would look like a full one.
            none = f"{'stdin' if manifest == '-' else manifest} holds no rows; no ledger was made"
            left = f"no row of {ledger} is pending or failed"
            printer.insist(f"nothing to start: {left if batch.plan.rows else none}")

        summary = await batch.run(allow_partial=True)

        if batch.ledger is None or summary.ledger == batch.ledger.place:  # else the rescued copy
            summary = summary._replace(ledger=ledger)

        printer.end_block()
        progress.is_over = True
        watches = given["watch"] and batch.ledger and summary.exit_code in _WATCHED_AFTER
        printer.say(*render.cause_lines(progress.causes))
        _print_summary(given, summary, is_watched=bool(watches))
        ended = await _watch(batch, ledger, given, summary) if watches else summary
        told.update(ended.as_dict())

    if given["as_json"]:
        printer.outcome_json(ended.as_dict())

    return ended.exit_code


def _print_summary(given: Given, summary: Summary, *, is_watched: bool) -> None:
    """Print how a launch ended, and the next commands unless its runs are watched now."""
    printer, repeated = given.printer, given.repeated
    printer.insist(*(render.warning_lines if printer.quiet else render.summary_lines)(summary))
    printer.insist(*render.unrecorded_lines(summary))

    if is_watched:
        return

    printer.insist(*render.command_lines(render.next_commands(summary, repeated)))

    if summary.started_now and not summary.left:
        printer.say(f"follow the runs: {render.watch_command(summary.ledger, repeated)}")


async def _preview(given: Given, manifest: str | None, ledger: str) -> int:
    """Print the requests that a launch of a manifest, or else a ledger, would send.

    DES is needed only for a manifest without ``--schema``.
    """
    from deslaunch.launch import batch  # noqa: PLC0415  # aiohttp is slow to import

    printer, schema = given.printer, given["schema"]
    more: dict[str, Any] = {"ledger": ledger, "settings": given.settings, "schema": schema}

    def on_event(event: Event) -> None:
        if isinstance(event, Noted):  # the JSON lines replace the plan
            (printer.warn if event.is_warning else printer.say)(event.message)

    async with open_clients(given, needed=manifest is not None and schema is None) as clients:
        async for start in batch.preview(manifest, clients, on_event=on_event, **more):
            line = {"key": start.key, "row": start.row, "target": start.target}
            printer.json({**line, "jobId": start.job_id, "body": json.loads(start.body)})

    printer.say("nothing was sent: this is a dry run")
    return 0


async def _watch(
    batch: "Batch", ledger: str, given: Given, launched: Summary | None = None
) -> WatchSummary:
    """Watch a batch's runs, and print progress, how they ended and the next commands.

    Args:
        batch: its ledger is open.
        ledger: as it was named.
        given: what is to be said, and how often.
        launched: how the launch before it ended: stopped by a limit alone it was a trial.
    """
    assert batch.ledger is not None
    printer, repeated = given.printer, given.repeated
    [(*_, untold, unfinished)] = await batch.ledger.query("count_runs")

    progress = render.Progress(printer, "run", unfinished + untold)
    summary = await batch.watch(progress).run(allow_partial=True)
    printer.end_block()
    stops, started = (launched.stops, launched.started_now) if launched else ((), 0)
    rows = summary.batch._replace(ledger=ledger, started_now=started)
    is_trial = {stop.reason for stop in stops} == {StopReason.LIMIT}
    summary = summary._replace(batch=rows, is_trial=is_trial)
    printer.say(*render.watch_lines(summary))
    printer.insist(*render.left_lines(summary))
    printer.insist(*render.command_lines(render.watch_commands(summary, repeated)))
    printer.insist(*render.command_lines(render.next_commands(summary.batch, repeated)))
    return summary
