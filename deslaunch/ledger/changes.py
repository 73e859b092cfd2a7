"""Changes of rows outside a turn: rows are added, corrected, withdrawn and resolved.

Functions that write run in the ledger's thread, inside the caller's transaction.

A file of findings, what a person found out about rows whose outcome is not known, is CSV with a
header line. ``key`` names the row; ``as`` is ``started``, ``not-started`` or ``unknown`` (which
takes an earlier finding back), in any letter case; ``jobRunId`` goes with ``started``; ``note``
is kept. Lines without ``as`` are skipped, and other columns are for people: so the file that
:func:`write_unknown` makes can be filled in.
"""

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TextIO, get_args

from deslaunch import model
from deslaunch.errors import ConfigurationError, ManifestError
from deslaunch.events import Control, Plan
from deslaunch.ledger.reading import UnknownRow
from deslaunch.ledger.store import Store, as_json, storable
from deslaunch.model import CheckedRow, InvalidRow, Job, Outcome, Problem, Result

Verdict = Literal["started", "notStarted", "unknown"]

_VERDICTS: Final[dict[str, Verdict]] = {verdict.lower(): verdict for verdict in get_args(Verdict)}
_COLUMNS: Final = ("key", "as", "jobRunId", "note")
_WINDOW: Final = ("createdAfterUtc", "createdBeforeUtc")
_FOR_THE_READER: Final = ("target", "jobId", "jobName", *_WINDOW, "error", "row")
_FORM: Final = "columns: key; as (started, not-started or unknown); jobRunId, if started; note"

_SHOWN: Final = 10
"""Findings that an error quotes."""

_FIXED: Final = frozenset({"started", "unknown", "sending"})
"""States that a correction can't change: the row has a run, or one in doubt."""

_MAY_HAVE_A_RUN: Final = frozenset({None, "unknown", "failed", "retry"})
"""Results of attempts that may have started a run: no response came, or a 5XX."""

_WEIGHED_AT_ONCE: Final = 5000
"""Findings whose rows' attempts are in memory at a time."""


class Added(NamedTuple):
    """The result of adding rows of a program.

    Attributes:
        numbers: the number in the batch of each row, in the order given.
        same: how many the batch had already, saying the same: they were skipped.
    """

    numbers: list[int]
    same: int


class Corrections(NamedTuple):
    """The effect of a file of corrections; nothing is changed if there are problems.

    Attributes:
        replaced: rows that say something else now and are pending.
        added: rows that the batch did not have.
        same: rows that say what the batch has; they stay as they are.
        problems: why nothing was applied.
        plan: what a session would send then.
    """

    replaced: int
    added: int
    same: int
    problems: tuple[Problem, ...]
    plan: Plan = Plan("", "")


class Finding(NamedTuple):
    """What a person found out about one row.

    Attributes:
        key: the row's key.
        verdict: ``started`` a run, ``notStarted``: the next resume may send it, or ``unknown``:
            an earlier finding is taken back.
        job_run_id: the run that it started, a GUID; None but for ``started``.
        note: the person's words.
    """

    key: str
    verdict: Verdict
    job_run_id: str | None = None
    note: str = ""


class Resolved(NamedTuple):
    """The result of recording findings.

    Attributes:
        changed: rows with a new finding.
        same: rows of which the ledger had this finding.
        early: (key, ms since 1970 when its window is over) of rows that are said not to have
            started before that; nothing was taken where there are any, unless that was asked for.
    """

    changed: int
    same: int
    early: tuple[tuple[str, int], ...]


class Withdrawn(NamedTuple):
    """The result of withdrawing rows, or of undoing that.

    Attributes:
        changed: rows that stand otherwise now.
        same: rows that stood so before.
    """

    changed: int
    same: int


class _Known(NamedTuple):
    """A row that the batch has."""

    number: int
    state: str
    last_attempt: int
    is_duplicate: bool = False
    form: tuple[Any, ...] = ()


class KnownAttempt(NamedTuple):
    """One attempt, as a finding about its row meets it.

    Attributes:
        number: of the row's attempts, from 1.
        result: None: it is open, or its launcher is gone.
        finding: what a person found before; with the jobRunId ``found_run``.
        repeated: 1: its run failed, and another one is wanted.
        until_ms: its run was created before this, ms since 1970.
    """

    row: int
    number: int
    result: str | None
    finding: str | None
    found_run: str | None
    job_run_id: str | None
    repeated: int | None
    until_ms: int


class Effect(NamedTuple):
    """The effect of a finding.

    Attributes:
        problem: why it can't be recorded, or ``""``.
        is_same: it is known already.
        until_ms: when the window of the last attempt that may have started a run is over.
        findings: (finding, its jobRunId, row, number) of each attempt that it is about.
    """

    problem: str = ""
    is_same: bool = True
    until_ms: int = 0
    findings: Sequence[tuple[str | None, str | None, int, int]] = ()


def refuse_repeated(store: Store, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Make outcomes unknown whose jobRunId another row has: a run belongs to one row.

    Outcomes whose turn failed may come once more.
    """
    told = [(storable(o.job_run_id).lower(), o.row) for o in outcomes if o.job_run_id]
    owners = store.owners(told) if told else {}

    if not owners and len(dict(told)) == len(told):  # as good as always
        return list(outcomes)

    checked = []

    for o in outcomes:
        run = o.job_run_id and storable(o.job_run_id).lower()
        row, key = owners.setdefault(run, (o.row, o.key)) if run else (o.row, o.key)

        if row != o.row:
            error = f"jobRunId {o.job_run_id} is that of row {row} ({key}) {o.error}".rstrip()
            o = o._replace(result=Result.UNKNOWN, not_before=None, error=error)  # noqa: PLW2901

        checked.append(o)

    return checked


def write_rows(
    store: Store, rows: Sequence[CheckedRow | InvalidRow], first: int | None = None
) -> None:
    """Write rows under their own numbers, or counted from ``first``."""
    jobs: dict[tuple[str, str], tuple[int, int]] = {}
    narrow: list[tuple[Any, ...]] = []
    wide: list[tuple[Any, ...]] = []
    unchecked: set[int] = set()

    for index, row in enumerate(rows):
        said = row.row if isinstance(row, CheckedRow) else row
        number = said.number if first is None else first + index
        job = (said.target, said.job_id)

        if job not in jobs:
            jobs[job] = _write_job(store, *job, number)

        if isinstance(row, CheckedRow):
            narrow.append((number, said.line, row.key, *jobs[job], row.auto, None))
            wide.append((number, row.digest, row.body, row.says))

            if not row.body:
                unchecked.add(jobs[job][1])
        else:
            narrow.append((number, said.line, row.key, *jobs[job], False, _describe(row)))
            wide.append((number, None, None, row.says))

    store.many("add_row", narrow)
    store.many("add_content", wide)
    store.many("forget_job", [(job,) for job in unchecked])


def write_jobs(store: Store, target: str, jobs: Iterable[Job], *, from_des: bool) -> None:
    """Write the JobRunParameters of jobs."""
    for job in jobs:
        _write_job(store, target, job.job_id)
        parameters = json.dumps([parameter._asdict() for parameter in job.parameters])
        known = (target, job.job_id, storable(job.name), parameters, from_des)
        store.run("describe_job", known)


def _write_job(store: Store, target: str, job_id: str, row: int = 1) -> tuple[int, int]:
    """Return the target's and the job's number; ``row`` is the one that may be its first."""
    store.run("add_target", (target, row - 1))
    store.run("add_job", (target, job_id))
    [(target_number, job_number)] = store.fetch("job_number", (target, job_id))
    return target_number, job_number


def derive_states(store: Store, rows: Iterable[int], simple: Iterable[int] = ()) -> int:
    """Write the states of rows whose attempts, problem or findings changed.

    Args:
        store: where.
        rows: by number.
        simple: rows that were started by their first attempt: they need none, unless they have one.

    Returns:
        How many states were written.
    """
    return store.run("derive", {"rows": as_json(list(rows)), "simple": as_json(list(simple))})


def add_rows(store: Store, rows: Sequence[CheckedRow | InvalidRow]) -> Added:
    """Add rows, numbered on; skip those of a known key that say the same.

    Raises:
        ManifestError: a row says something else than the batch's row of its key.
    """
    known = _find_by_key(store, (row.key for row in rows if row.key is not None))
    [(last,)] = store.fetch("last_row")
    numbers: list[int] = []
    new: list[CheckedRow | InvalidRow] = []

    for row in rows:
        fresh = _Known(last + len(new) + 1, "pending", 0, form=_form_of(row))
        match = fresh if row.key is None else known.setdefault(row.key, fresh)

        if match is fresh:
            new.append(row)
        elif match.form != fresh.form:
            raise ManifestError(
                f"key {row.key!r}: row {match.number} has this key with other values",
                hint="give the row another key, or the same values",
            )

        numbers.append(match.number)

    write_rows(store, new, last + 1)
    return Added(numbers, len(rows) - len(new))


def correct_rows(
    store: Store, rows: Sequence[CheckedRow], file: str, now: int, *, add: bool
) -> Corrections:
    """Replace rows by their keys, and add those of other keys: all, or none."""
    known = _find_by_key(store, (row.key for row in rows))
    pairs = [(row, known.get(row.key)) for row in rows]
    refused = (_refuse(row, match, file, add=add) for row, match in pairs)
    problems = tuple(problem for problem in refused if problem is not None)
    added = [row for row, match in pairs if match is None]
    replaced = [(row, match) for row, match in pairs if match and match.form != _form_of(row)]

    if not problems:
        made = (now, storable(file))
        said = [(row.row.target, row.row.job_id) for row, _ in replaced]
        jobs = {job: _write_job(store, *job) for job in dict.fromkeys(said)}
        kept = [(match.number, match.last_attempt) for _, match in replaced]
        narrow = [
            (m.number, *jobs[job], row.auto) for (row, m), job in zip(replaced, said, strict=True)
        ]
        wide = [(match.number, row.digest, row.body, row.says) for row, match in replaced]

        # All of each kind at once: a statement for every row would wait for the server's reply.
        store.many("keep_correction", [(*known, *made) for known in kept])
        store.many("replace_row", narrow)
        store.many("replace_content", wide)
        store.many("forget_attempts", kept)
        derive_states(store, (match.number for _, match in replaced))
        [(last,)] = store.fetch("last_row")
        write_rows(store, added, last + 1)
        store.many("keep_addition", [(last + n, *made) for n in range(1, len(added) + 1)])

    same = len(rows) - len(added) - len(replaced)
    return Corrections(len(replaced), len(added), same, problems)


def recheck_rows(store: Store, rows: Sequence[CheckedRow | InvalidRow]) -> None:
    """Write new bodies or problems of rows; rows that were sent meanwhile are skipped."""
    valid = {row.row.number: row for row in rows if isinstance(row, CheckedRow)}
    invalid = {row.number: row for row in rows if isinstance(row, InvalidRow)}
    unsent = store.fetch("still_unsent", (as_json([*valid, *invalid]),))
    kept = [(n, valid[n].digest, valid[n].body, valid[n].says) for (n,) in unsent if n in valid]
    store.many("replace_content", kept)
    wrong = [(number,) for (number,) in unsent if number in invalid]
    store.many("invalidate_row", [(number, _describe(invalid[number])) for (number,) in wrong])
    store.many("empty_content", wrong)
    derive_states(store, (number for (number,) in wrong))


def _find_by_key(store: Store, keys: Iterable[str]) -> dict[str, _Known]:
    found = store.fetch("rows_by_key", (as_json(list(keys)),))
    return {key: _Known._make([*row[:4], tuple(row[4:])]) for key, *row in found}


def _form_of(row: CheckedRow | InvalidRow) -> tuple[Any, ...]:
    """Return what differs if a row was changed: the body's digest, or ``says`` without a body."""
    if isinstance(row, InvalidRow):
        return row.target, row.job_id, None, None

    told = (None, row.digest) if row.body else (row.says, None)
    return row.row.target, row.row.job_id, *told


def _refuse(row: CheckedRow, match: _Known | None, file: str, *, add: bool) -> Problem | None:
    """Return why a corrected row can't be taken."""
    if match is None and not add:
        expected = "a key of the batch"
        message = "the batch has no row of this key: correct it, or add the row with --add-rows"
    elif match is None and row.row.key is None:
        expected = "an explicit key"
        message = "a row that is added needs an explicit key: write one"
    elif match is not None and match.state in _FIXED and match.form != _form_of(row):
        expected = "the values of the batch"
        message = (
            f"row {match.number} is {match.state}, with other values in the batch: leave it out, "
            "or give the row a new key to start another run"
        )
    else:
        return None

    return Problem(
        file, row.row.line, row.row.number, "key", expected, model.quote(row.key), message
    )


def _describe(row: InvalidRow) -> str:
    said = (f"{p.column}: {p.message}" if p.column else p.message for p in row.problems)
    return storable("; ".join(said))


# What a person wants of launchers, and of rows


def tell_launchers(store: Store, told: Mapping[str, Any], now: int) -> Control:
    """Write settings for launchers at work; see :meth:`Ledger.tell_launchers`."""
    if not any(launcher.is_sending for launcher in store.launchers()):
        raise ConfigurationError(
            f"{store.place}: no launcher is at work on it; nothing was changed",
            hint="control needs a launcher at work; start one: "
            f"{model.printed('resume', model.place_word(store.place), '--concurrency', '4')}",
        )

    [(text,)] = store.fetch("control")
    control = Control(**json.loads(text) | told)
    store.run("set_control", (json.dumps(control._asdict()),))
    said = str(control) or "as they were started"
    store.run("add_event", (None, now, "control", None, said))
    return control


def withdraw(store: Store, keys: Sequence[str] | None, now: int, *, undo: bool) -> Withdrawn:
    """Withdraw rows, or undo that; see :meth:`Ledger.withdraw`."""
    if keys is None:
        rows = [row for (row,) in store.fetch("withdrawn_rows" if undo else "pending_rows")]
        given, told = len(rows), "all that were withdrawn" if undo else "all that were pending"
    else:
        wanted = list(dict.fromkeys(storable(key, None) for key in keys))
        open_state = store.open_state()
        states = {
            key: (row, open_state if state == "sending" else state)
            for key, (row, state, *_) in _find_by_key(store, wanted).items()
        }
        refused = ((key, _why_not(states.get(key, (0, ""))[1], undo=undo)) for key in wanted)

        if problems := _list_problems(refused):
            listing = model.printed("results", model.place_word(store.place))
            hint = f"see the state of each row: {listing}"
            raise ManifestError(f"no row was changed: {problems}", hint=hint)

        rows = [row for row, state in states.values() if (state == "withdrawn") == undo]
        given, told = len(wanted), ", ".join(wanted)

    if rows:
        store.run("restore_rows" if undo else "withdraw_rows", (as_json(rows),))
        text = f"{model.count(len(rows), 'row')}: {told}"
        store.run("add_event", (None, now, "restore" if undo else "withdraw", None, storable(text)))

    if undo:
        derive_states(store, rows)

    return Withdrawn(len(rows), given - len(rows))


def _list_problems(refused: Iterable[tuple[str, str]]) -> str:
    """Return the first keys with a problem, and how many more there are; ``""`` without any."""
    problems = [f"{key!r} {problem}" for key, problem in refused if problem]
    more = f"; and {len(problems) - _SHOWN:,} more" if len(problems) > _SHOWN else ""
    return "; ".join(problems[:_SHOWN]) + more


def _why_not(state: str, *, undo: bool) -> str:
    """Return why a row in this state can't be withdrawn, or restored; ``""`` if it can."""
    if not state:
        return "is no key of the batch"

    if state in _FIXED:
        more = {"sending": ": wait for its response", "unknown": ": resolve it first"}
        return f"is {'in flight' if state == 'sending' else state}{more.get(state, '')}"

    return f"is {state}, not withdrawn" if undo and state != "withdrawn" else ""


# Findings


def weigh_finding(
    finding: Finding,
    state: str,
    attempts: Sequence[KnownAttempt],
    earlier: Sequence[tuple[int, int, str]] = (),
    *,
    is_duplicate: bool = False,
    owner: str | None = None,
) -> Effect:
    """Return what a finding changes, or why it can't be recorded.

    It stands instead of earlier ones, but for those after which the row was sent again. That of a
    run is about the last attempt in doubt.

    Args:
        finding: about a row.
        state: of the row; ``sending`` while its launcher lives.
        attempts: all of the row, in their order.
        earlier: the findings about the row: its number, the last attempt then, and the verdict.
        is_duplicate: the row's run is a possible duplicate.
        owner: key of another row that has the run.
    """
    verdict, run = finding.verdict, (finding.job_run_id or "").lower()
    recorded = [a.job_run_id or "" for a in attempts if a.result == "started" and not a.repeated]
    last_left = max((a.number for a in attempts if a.result != "unsent"), default=0)
    is_resolved = 0 < last_left <= max((last for _, last, _ in earlier), default=0)
    may_be_resolved = state in {"unknown", "failed"} or is_resolved

    if state == "sending":
        return Effect("is in flight: wait for its response")

    if verdict == "started" and recorded:
        is_same = run in map(str.lower, recorded)  # it was recorded after all
        return Effect("" if is_same else "is started: DES said so itself")

    if verdict == "started" and not model.is_guid(run):
        return Effect(f"needs a GUID as its jobRunId, got {finding.job_run_id!r}")

    if not (may_be_resolved or (is_duplicate and verdict == "notStarted")):
        return Effect(f"is {state}: only a row that is unknown or failed can be resolved")

    if owner is not None:
        return Effect(f"jobRunId {finding.job_run_id} is that of row {owner!r}")

    kept = [last for _, last, said in earlier if said != "unknown" and last < last_left]
    settled = max(kept, default=0)
    in_doubt = [a for a in attempts if a.result in _MAY_HAVE_A_RUN]
    about = [a for a in in_doubt if a.finding is None or a.number > settled]

    if verdict == "started":
        is_same = run in {(a.found_run or "").lower() for a in about}
    else:
        is_same = ({a.finding or "unknown" for a in about} or {"unknown"}) == {verdict}

    told = {"started": about[-1:], "notStarted": about, "unknown": []}[verdict]
    new = [(*(finding[1:3] if a in told else (None, None)), *a[:2]) for a in about]
    return Effect("", is_same, max((a.until_ms for a in in_doubt), default=0), new)


def resolve(store: Store, findings: Sequence[Finding], now: int, *, early: bool) -> Resolved:
    """Record findings, all or none, inside a transaction; see :meth:`Ledger.resolve`."""
    weighed = list(_weigh_all(store, findings))

    if problems := _list_problems((f.key, effect.problem) for f, _, effect in weighed):
        listing = model.printed("status", model.place_word(store.place))
        hint = f"{listing} lists the rows that are unknown"
        raise ManifestError(f"no finding was recorded: {problems}", hint=hint)

    new = [(f, row, effect) for f, row, effect in weighed if not effect.is_same]
    same = len(findings) - len(new)
    freed = ((f.key, effect.until_ms) for f, _, effect in new if f.verdict == "notStarted")
    too_early = tuple((key, until_ms) for key, until_ms in freed if until_ms > now)

    if too_early and not early:
        return Resolved(0, same, too_early)

    rows = [row.number for _, row, _ in new]
    store.run("lose_attempts", (as_json(rows),))  # of a launcher that is gone
    store.many("find", [one for *_, effect in new for one in effect.findings])
    kept = [(row.number, row.last_attempt, now, *f[1:3], storable(f.note)) for f, row, _ in new]
    store.many("keep_resolution", kept)
    derive_states(store, rows)
    in_doubt = [row.number for f, row, _ in new if f.verdict == "unknown"]
    store.run("withhold", (as_json(in_doubt),))
    return Resolved(len(new), same, ())


def _weigh_all(
    store: Store, findings: Sequence[Finding]
) -> Iterator[tuple[Finding, _Known, Effect]]:
    """Yield each finding with its row and its effect."""
    open_state = store.open_state()
    keys = [storable(f.key, None) for f in findings]
    runs = [f.job_run_id and storable(f.job_run_id, None).lower() for f in findings]
    known, times = _find_by_key(store, keys), Counter(keys)
    recorded = store.fetch("owners_of_runs", (as_json([run for run in runs if run]),))
    owners: dict[str | None, set[str]] = {}

    for run, key in (*recorded, *zip(runs, keys, strict=True)):
        owners.setdefault(run, set()).add(key)

    for begin in range(0, len(findings), _WEIGHED_AT_ONCE):
        some = slice(begin, begin + _WEIGHED_AT_ONCE)
        rows = as_json([known[key].number for key in keys[some] if key in known])
        attempts = _by_row(map(KnownAttempt._make, store.fetch("attempts_of_rows", (rows,))))
        earlier = _by_row(store.fetch("resolutions_of_rows", (rows,)))

        for f, key, run in zip(findings[some], keys[some], runs[some], strict=True):
            row = known.get(key, _Known(0, "", 0))

            if times[key] > 1:
                effect = Effect("comes twice")
            elif not row.number:
                effect = Effect("is no key of the batch")
            else:
                effect = weigh_finding(
                    f,
                    open_state if row.state == "sending" else row.state,
                    attempts[row.number],
                    earlier[row.number],
                    is_duplicate=bool(row.is_duplicate),
                    owner=min(owners[run] - {key}, default=None) if run else None,
                )

            yield f, row, effect


def _by_row(found: Iterable[Sequence[Any]]) -> dict[int, list[Any]]:
    grouped: dict[int, list[Any]] = defaultdict(list)

    for one in found:
        grouped[one[0]].append(one)

    return grouped


def read_findings(path: Path, *, note: str = "") -> list[Finding]:
    """Read a file of findings.

    Args:
        path: of a CSV file.
        note: for findings that have none of their own.

    Raises:
        ManifestError: the file can't be read, or a finding says too little or too much; the
            message names its line.
    """
    csv.field_size_limit(2**31 - 1)

    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, restkey="beyond the header", strict=True)

            if "key" not in (reader.fieldnames or ()):
                raise ManifestError(f"{path}:1: expected a column 'key', got none", hint=_FORM)

            read = (_parse_finding(fields, f"{path}:{reader.line_num}", note) for fields in reader)
            return [finding for finding in read if finding is not None]
    except OSError as exc:
        raise ManifestError(
            f"{path}: can't be read: {exc.strerror or exc}", hint="check its path and permissions"
        ) from exc
    except (UnicodeDecodeError, csv.Error) as exc:
        raise ManifestError(f"{path}: is not a file of findings: {exc}", hint=_FORM) from exc


def write_unknown(stream: TextIO, rows: Iterable[UnknownRow]) -> None:
    """Write unknown rows as CSV, where to look for their runs and with the finding left empty."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow((*_COLUMNS, *_FOR_THE_READER))

    for row in rows:
        window = (model.utc(row.from_ms), model.utc(row.until_ms))
        job = (row.target, row.job_id, row.job_name)
        writer.writerow((row.key, "", "", "", *job, *window, row.error, row.says))


def write_unrecorded(stream: TextIO, runs: Iterable[tuple[str, str]]) -> None:
    """Write (key, jobRunId) of runs that are in no ledger, as CSV of findings."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows((key, "started", run, "not recorded by its launcher") for key, run in runs)


def _parse_finding(line: Mapping[str, Any], where: str, note: str) -> Finding | None:
    """Return the finding of one line; None if its ``as`` is empty."""
    fields = {name: text for name, text in line.items() if text}

    if "key" not in fields:
        raise ManifestError(f"{where}: a finding needs a key", hint=_FORM)

    if unknown := [name for name in fields if name not in {*_COLUMNS, *_FOR_THE_READER}]:
        raise ManifestError(f"{where}: unknown column {unknown[0]!r}", hint=_FORM)

    said, run = fields.get("as", ""), fields.get("jobRunId")

    if not said and not run:
        return None

    verdict = _VERDICTS.get(said.lower().replace("not-", "not"))

    if verdict is None or (verdict == "started") != bool(run):
        raise ManifestError(
            f"{where}: expected as=started with a jobRunId, or as=not-started or as=unknown "
            f"without one; got as={said} with {f'jobRunId={run}' if run else 'no jobRunId'}",
            hint=_FORM,
        )

    return Finding(fields["key"], verdict, run, fields.get("note", note))
