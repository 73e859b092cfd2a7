"""``check``, ``run``, ``resume`` and ``watch``: what speaks to DES about a batch."""

import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import click

from deslaunch.cli import options, render
from deslaunch.cli.options import Given
from deslaunch.cli.targets import open_clients
from deslaunch.errors import LedgerExists, LedgerMissing
from deslaunch.events import Event, Noted, Plan, WatchSummary
from deslaunch.model import count, place_word, printed

if TYPE_CHECKING:
    from deslaunch.launch.launcher import Batch

_WATCHED_AFTER: Final = frozenset({0, 3, 4, 5})  # exit codes; not after a signal, for one

_ROWS: Final = (*options.FORM, *options.tuning("allow_duplicates", "allow_repeated_auto"))
_MANIFEST: Final = click.Argument(["manifest"], metavar="MANIFEST")


@options.command("check", _MANIFEST, *_ROWS, *options.DES, *options.OUTPUT)
async def check(given: Given) -> int:
    """Check every row of MANIFEST, and send nothing. "-" reads stdin.

    Exits with 2 where a row is invalid; with 5 or 6 where DES must be asked, and can't be.

    Examples:
        deslaunch check night.csv
        deslaunch check night.csv --schema jobs.json --json
    """
    from deslaunch.launch import batch  # noqa: PLC0415  # aiohttp is slow to import

    manifest, printer, schema = given["manifest"], given.printer, given["schema"]

    async with open_clients(given, needed=schema is None, needs_token=False) as clients:
        report = await batch.check(manifest, clients, settings=given.settings, schema=schema)

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
        "A file, or postgresql://…#NAME. Default: MANIFEST's name without its suffix + .ledger.db.",
        show_envvar=True,
        **options.PLACE,
    ),
    options.flag("--resume", "Go on where this very manifest was begun: for cron and containers."),
    options.JOIN,
    *_ROWS,
    *options.tuning("skip_invalid"),
    *options.LAUNCH,
)
async def run(given: Given) -> int:
    """Start a run for every row of MANIFEST. "-" reads stdin; --ledger is then required.

    It says what it is about to do and, on a terminal, asks before anything is sent.

    Examples:
        deslaunch run night.csv
        deslaunch run night.csv --watch
        deslaunch run night.csv --ledger /var/lib/exports/night.ledger.db --concurrency 64
        deslaunch run night.csv --dry-run --schema jobs.json | head -n 1
        deslaunch run night.csv --limit 10
        deslaunch run night.csv --yes --resume --quiet
        deslaunch run night.csv --ledger 'postgresql://user@host/exports#night' --resume --join
        generate | deslaunch run - --format jsonl --ledger night.ledger.db
    """
    from deslaunch.launch import batch  # noqa: PLC0415  # aiohttp is slow to import

    source, ledger = given["manifest"], given["ledger"]
    is_piped = source == "-" or source.startswith("/dev/")  # as the shell names <(command)

    if given["join"] and not given["resume"]:
        raise click.UsageError("--join goes with --resume")

    if is_piped and (ledger is None or given["format"] is None):
        raise click.UsageError("a manifest from a pipe needs --ledger LEDGER and --format")

    ledger = ledger or batch.default_ledger(source)
    opening = partial(batch.open_batch, source, ledger=ledger, resume=given["resume"])

    try:
        return await _launch(given, ledger, opening, source)
    except LedgerExists as exc:
        again = printed("resume", place_word(ledger), *given.repeated)
        exc.hint = f"go on with that batch: {again}; a new batch needs another --ledger"
        raise


@options.command(
    "resume",
    options.LEDGER,
    options.value("--corrections", "Take the rows of FILE into it, by key.", metavar="FILE"),
    options.flag("--add-rows", "FILE may hold rows that the batch lacks, with keys of their own."),
    options.JOIN,
    *options.FORM,
    *options.LAUNCH,
)
async def resume(given: Given) -> int:
    """Send what is left of the batch of LEDGER, never what is unknown.

    It needs the ledger and DES, no manifest and no options: what earlier command lines gave is
    kept in the ledger. It says what it is about to do and, on a terminal, asks before anything
    is sent.

    Examples:
        deslaunch resume night.ledger.db
        deslaunch resume night.ledger.db --corrections fix.csv
        deslaunch resume night.ledger.db --retry-rejected --yes
    """
    from deslaunch.launch import batch  # noqa: PLC0415  # aiohttp is slow to import

    if given["add_rows"] and given["corrections"] is None:
        raise click.UsageError("--add-rows goes with --corrections FILE")

    if given["dry_run"] and given["corrections"] is not None:
        told = "--dry-run does not show corrections: without it the plan is told, and asked about"
        raise click.UsageError(told)

    ledger, corrections = given["ledger"], given["corrections"]
    file = {"corrections": corrections, "add_rows": given["add_rows"]}
    opening = partial(batch.resume_batch, ledger, **file)
    return await _launch(given, ledger, opening)


@options.command(
    "watch",
    options.LEDGER,
    *options.CONNECTION,
    *options.tuning("concurrency", "rate", "max_wait", "give_up_after", "drain_timeout"),
    *options.WATCH,
    *options.OUTPUT,
)
async def watch(given: Given) -> int:
    """Follow the runs of LEDGER to their end, and record it.

    Ended early, it goes on where it was: a run whose end is recorded is not asked about again.

    Examples:
        deslaunch watch night.ledger.db
        deslaunch watch night.ledger.db --interval 60 --watch-timeout 14400
    """
    from deslaunch.launch import batch  # noqa: PLC0415  # aiohttp is slow to import

    ledger, interrupts = given["ledger"], given.interrupts
    given = replace(given, before=await _kept_of(ledger))

    async with (
        open_clients(given) as clients,
        batch.watch_batch(ledger, clients, settings=given.settings) as interrupts.batch,
    ):
        summary = await _watch(interrupts.batch, ledger, given)

    if given["as_json"]:
        given.printer.outcome_json(summary.as_dict())

    return summary.exit_code


async def _kept_of(ledger: str) -> dict[str, Any]:
    """Return what the ledger keeps of earlier command lines."""
    from deslaunch.ledger.ledger import open_ledger  # noqa: PLC0415

    async with await open_ledger(ledger) as found:
        return dict(found.batch.options)


async def _launch(
    given: Given,
    ledger: str,
    opening: Callable[..., AbstractAsyncContextManager["Batch"]],
    manifest: str | None = None,
) -> int:
    """Launch, and tell the plan, what goes on, the summary and the next commands.

    Args:
        given: by ``run`` or ``resume``.
        ledger: the batch's.
        opening: opens the batch, or makes it, once clients and all else is known.
        manifest: that of ``run``.
    """
    if manifest is None or given["resume"]:
        try:
            given = replace(given, before=await _kept_of(ledger))
        except LedgerMissing:
            if manifest is None:
                raise

    if given["dry_run"]:
        return await _preview(given, None if given.before else manifest, ledger)

    printer, repeated = given.printer, given.repeated
    asks = not given["yes"] and printer.can_ask()

    async def confirm(plan: Plan) -> bool:
        return not (asks and plan.send) or await printer.ask(f"Start {count(plan.send, 'run')}?")

    progress = render.Progress(printer)
    more: dict[str, Any] = {"settings": given.settings, "schema": given["schema"]}
    more |= {"options_kept": given.kept(), "on_event": progress, "confirm": confirm}
    more |= {"join": given["join"]}

    async with open_clients(given) as clients, opening(clients, **more) as batch:
        given.interrupts.batch = batch

        if batch.plan is not None and not batch.plan.send:
            # Even the quiet are told that a night starts nothing: it looks like a full one else.
            none = f"{batch.plan.manifest} holds no rows; no ledger was made"
            left = f"no row of {ledger} is pending or failed"
            printer.insist(f"nothing to start: {left if batch.plan.rows else none}")

        summary = await batch.run(allow_partial=True)

        if batch.ledger is None or summary.ledger == batch.ledger.place:  # else a rescued one
            summary = summary._replace(ledger=ledger)

        printer.end_block()
        watches = given["watch"] and batch.ledger and summary.exit_code in _WATCHED_AFTER
        printer.say(*render.cause_lines(progress.causes))
        printer.insist(*(render.warning_lines if printer.quiet else render.summary_lines)(summary))
        printer.insist(*render.unrecorded_lines(summary))

        if not watches:
            printer.insist(*render.command_lines(render.next_commands(summary, repeated)))

        ended = await _watch(batch, ledger, given) if watches else summary

    if given["as_json"]:
        printer.outcome_json(ended.as_dict())

    return ended.exit_code


async def _preview(given: Given, manifest: str | None, ledger: str) -> int:
    """Print what would be sent, a line each: of a manifest, or else of a ledger.

    Where a schema is given, and for a ledger, DES is not needed.
    """
    from deslaunch.launch import batch  # noqa: PLC0415  # aiohttp is slow to import

    printer, schema = given.printer, given["schema"]
    more: dict[str, Any] = {"ledger": ledger, "settings": given.settings, "schema": schema}

    def tell(event: Event) -> None:
        if isinstance(event, Noted):  # the plan is the JSON lines
            (printer.warn if event.is_warning else printer.say)(event.message)

    async with open_clients(given, needed=manifest is not None and schema is None) as clients:
        async for start in batch.preview(manifest, clients, on_event=tell, **more):
            told = {"key": start.key, "row": start.row, "target": start.target}
            printer.json({**told, "jobId": start.job_id, "body": json.loads(start.body)})

    printer.say("nothing was sent: this is a dry run")
    return 0


async def _watch(batch: "Batch", ledger: str, given: Given) -> WatchSummary:
    """Follow a batch's runs, tell how they get on, how they ended, and what to do next."""
    assert batch.ledger is not None
    printer, repeated = given.printer, given.repeated
    [(*_, untold, unfinished)] = await batch.ledger.query("count_runs")

    progress = render.Progress(printer, "run", unfinished + untold)
    summary = await batch.watch(progress).run(allow_partial=True)
    printer.end_block()
    summary = summary._replace(batch=summary.batch._replace(ledger=ledger))
    printer.say(*render.watch_lines(summary))
    printer.insist(*render.command_lines(render.watch_commands(summary, repeated)))
    printer.insist(*render.command_lines(render.next_commands(summary.batch, repeated)))
    return summary
