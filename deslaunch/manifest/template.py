"""A manifest to begin with: of a job's parameters, or of every combination of values for them.

What is written passes the check; several rows with an auto value of one job need
``--allow-repeated-auto`` there. Only what a job requires has a value: DES may refuse a row that
says both of what excludes each other, and declares no such rule.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date, timedelta
from itertools import islice, product
from pathlib import Path
from typing import Final

import orjson

from deslaunch.des import wire
from deslaunch.errors import ConfigurationError
from deslaunch.manifest import readers, rows
from deslaunch.manifest.readers import column_of, csv_lines
from deslaunch.manifest.schema import KINDS, UNKNOWN_KIND, Schema
from deslaunch.model import (
    DEFAULT_TARGET,
    CheckedRow,
    Format,
    Job,
    JobParameter,
    ParameterValue,
    Row,
)

MOST_VALUES: Final = 1_000_000
"""Values of one parameter, and rows, at most."""

_AT_ONCE: Final = 512
_RANGE: Final = re.compile(r"(.+?)\.\.(.+)")
_INTEGER: Final = re.compile(r"-?[0-9]{1,18}")
_EXAMPLE: Final = "such as --each Number=1..9, --each Day=2026-01-01..2026-01-31, --each Shop=@FILE"


def manifest_of(job: Job, form: Format, target: str = DEFAULT_TARGET) -> str:
    """Return a manifest of one example row, in which every required parameter has a value.

    Args:
        job: whose parameters are the columns of CSV, in their order.
        form: of the manifest.
        target: named in the row unless it is the default one.
    """
    said = {"key": "example-1", "jobId": job.job_id}
    said |= {} if target == DEFAULT_TARGET else {"target": target}
    values = {
        parameter.name: KINDS.get(parameter.type, UNKNOWN_KIND).example
        for parameter in job.parameters
        if parameter.required
    }

    if form == "csv":
        header = [*said, *(column_of(parameter.name) for parameter in job.parameters)]
        cells = [values.get(parameter.name, "") for parameter in job.parameters]
        return csv_lines([header, [*said.values(), *cells]]).decode()

    numbers = {p.name for p in job.parameters if p.type in (wire.INTEGER, wire.DECIMAL)}
    parameters = {
        name: orjson.Fragment(value) if name in numbers else value for name, value in values.items()
    }
    return orjson.dumps({**said, "parameters": parameters}).decode() + "\n"


def explanation(job: Job, form: Format) -> Iterator[str]:
    """Yield what a person must know to fill the manifest in, which neither form has comments for.

    Args:
        job: the job.
        form: of the manifest: it says how null, the auto value and nothing are written.
    """
    yield f"job {job.job_id}{f', {job.name}' if job.name else ''}: one row starts one run"
    yield "  key: names the row in the ledger and the results; choose your own, or leave it out"

    yield from (f"  {_explained(parameter, form)}" for parameter in job.parameters)

    if not job.parameters:
        yield "  this job has no parameters"

    if sum(not parameter.required for parameter in job.parameters) > 1:
        yield "  some may exclude each other, such as a range and a date; DES then rejects the row"


def _explained(parameter: JobParameter, form: Format) -> str:
    null, auto = (r"\N for null", r"\A") if form == "csv" else ("null", '{"auto": true}')
    kind = KINDS.get(parameter.type, UNKNOWN_KIND)
    text = kind.noun if kind.noun == "a string" else f"{kind.noun} such as {kind.example}"

    if parameter.type not in (None, *KINDS):
        text = f"a string that DES reads as its type {parameter.type}"

    ways = [text, *[null] * parameter.nullable]
    ways += [
        f"{auto} for the auto value, which follows from the job's earlier runs"
    ] * parameter.supports_auto

    need = "required" if parameter.required else "optional: the job's default is used"
    told = f" ({parameter.description})" if parameter.description else ""
    name = column_of(parameter.name) if form == "csv" else parameter.name
    return f"{name}: {', or '.join(ways)}; {need}{told}"


# Every combination of values.


def read_values(text: str) -> tuple[str, list[str]]:
    """Return a parameter's name and the values that it is to have, each once, in their order.

    Args:
        text: ``NAME=a,b,c``; ``NAME=@FILE`` for the lines of a file (blank ones are skipped);
            ``NAME=2026-01-01..2026-01-31`` for days, or ``NAME=1..20`` for integers, both ends
            included.

    Raises:
        ConfigurationError: it is none of these, the file can't be read, or there is no value.
    """
    name, sign, said = text.partition("=")

    if not (name and sign and said):
        raise ConfigurationError(f"--each: expected NAME=VALUES, got {text!r}", hint=_EXAMPLE)

    if said.startswith("@"):
        values = _lines_of(Path(said[1:]))
    elif match := _RANGE.fullmatch(said):
        values = _range(text, *match.groups())
    else:
        values = said.split(",")

    values = list(dict.fromkeys(values))

    if not values or "" in values:
        message = f"--each {text}: there is no value, or an empty one"
        raise ConfigurationError(message, hint=_EXAMPLE)

    return name, values


def _lines_of(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8"
        raise ConfigurationError(
            f"{path} can't be read: {why}", hint="name a UTF-8 file with one value per line after @"
        ) from exc


def _range(text: str, first: str, last: str) -> list[str]:
    made: Callable[[int], object]

    try:
        if _INTEGER.fullmatch(first):
            begin, size = int(first), int(last) - int(first)
            made = begin.__add__
        else:
            day = date.fromisoformat(first)
            size = (date.fromisoformat(last) - day).days
            made = lambda n: day + timedelta(n)  # noqa: E731
    except ValueError as exc:
        raise ConfigurationError(
            f"--each {text}: a range needs two dates or two integers", hint=_EXAMPLE
        ) from exc

    if not 0 <= size < MOST_VALUES:
        raise ConfigurationError(
            f"--each {text}: a range must ascend and have at most {MOST_VALUES:,} values",
            hint=_EXAMPLE,
        )

    return [str(made(n)) for n in range(size + 1)]


def rows_of(job: Job, each: Mapping[str, Sequence[str]], target: str) -> Iterator[Row]:
    """Yield a row for every combination of values.

    Its key is made of those that differ, or is its number if that would be no key.

    Args:
        job: whose runs the rows start.
        each: the values of each parameter, by name; the last one changes fastest.
        target: of all rows.

    Raises:
        ConfigurationError: a value does not fit its parameter, a required one has none, or there
            would be too many rows.
    """
    number = 1

    for values in each.values():
        number *= len(values)

    if number > MOST_VALUES:
        raise ConfigurationError(
            f"--each: expected at most {MOST_VALUES:,} rows, got {number:,} combinations",
            hint="split the values over several manifests",
        )

    _check_values(job, each, target)
    varying = [name for name, values in each.items() if len(values) > 1] or list(each)
    texts = [text for name in varying for text in each[name]]
    keys = [*texts, "-".join(max(each[name], key=len) for name in varying)]
    keyed, rules = ({"key": key, "jobId": job.job_id} for key in keys), rows.RowRules()
    are_keys = all(isinstance(rows.row_from_object(one, 1, rules), Row) for one in keyed)
    marks = "-_/|,; " if are_keys else ""
    mark = next((mark for mark in marks if not any(mark in text for text in texts)), None)

    for number, values in enumerate(product(*each.values()), 1):
        chosen = dict(zip(each, values, strict=True))
        key = str(number) if mark is None else mark.join(chosen[name] for name in varying)
        yield Row(number, number, key, target, job.job_id, _said_by(chosen))


def _said_by(texts: Mapping[str, str]) -> dict[str, ParameterValue]:
    r"""Return values as a cell of CSV means them: ``\N`` is null, ``\A`` the auto value."""
    try:
        return {name: readers.read_cell(text) for name, text in texts.items()}
    except rows.Unfit as exc:
        raise ConfigurationError(f"--each: {exc.args[-1]}", hint=_EXAMPLE) from exc


def _check_values(job: Job, each: Mapping[str, Sequence[str]], target: str) -> None:
    """Refuse values that don't fit: each is looked at once, beside the first of the others."""
    schema, warnings = Schema(job), rows.Groups("--each")
    first = {name: values[0] for name, values in each.items()}
    tried = [first] + [first | {name: text} for name, texts in each.items() for text in texts[1:]]
    found: dict[str, None] = {}

    for said in tried:
        checked = schema.check(Row(1, 1, "x", target, job.job_id, _said_by(said)), warnings)

        if not isinstance(checked, CheckedRow):
            found |= dict.fromkeys(problem.message for problem in checked)

    if found:
        raise ConfigurationError("; ".join(islice(found, 5)), hint=f"fix the values, {_EXAMPLE}")


def write_rows(found: Iterable[Row], form: Format, *, names_target: bool) -> Iterator[bytes]:
    """Yield rows as a manifest, some hundred at a time.

    Args:
        found: of one job, which say the same parameters.
        form: of the manifest.
        names_target: whether a row says its target.
    """
    reserved = [name for name in rows.RESERVED if names_target or name != "target"]
    columns: list[str] = []
    left = iter(found)

    while some := list(islice(left, _AT_ONCE)):
        said = [_said(row, names_target=names_target) for row in some]

        if form == "jsonl":
            yield b"".join(orjson.dumps(one, option=orjson.OPT_APPEND_NEWLINE) for one in said)
            continue

        texts = [orjson.dumps(one).decode() for one in said]
        needed = [*reserved, *readers.columns_of(texts[0])]
        header = b"" if columns else csv_lines([columns := needed])
        pairs = zip(texts, some, strict=True)
        yield header + csv_lines(readers.csv_cells(text, columns, row.key) for text, row in pairs)


def _said(row: Row, *, names_target: bool) -> dict[str, object]:
    said: dict[str, object] = orjson.loads(rows.dump_row(row))
    return {name: value for name, value in said.items() if names_target or name != "target"}
