"""Results beside the rows that they are of, in one file or in one for each state.

What a row says is written as the reader of CSV takes it, so that the files of rows that started
nothing are manifests themselves. What deslaunch says of it stands in columns that begin with
``deslaunch.``.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

import orjson

from deslaunch import durable
from deslaunch.errors import ManifestError
from deslaunch.model import AUTO, RowState, RunState, TypedValue
from deslaunch.readers import IGNORED, PREFIX, RESERVED
from deslaunch.results import COLUMNS, result_cell, run_state_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from deslaunch.model import Format, ParameterValue, Row
    from deslaunch.results import Result, Results

FILES: Final = tuple(str(state) for state in RowState if state is not RowState.IN_FLIGHT)
"""The states that have a file, ``<state>.csv``; a row in flight is among the unknown."""

RUN_FAILED: Final = "run-failed"
"""The file of started rows whose run failed. They stand in that of their state too."""

_NULL: Final = "\\N"
_AUTO: Final = "\\A"
_EMPTY: Final = "\\E"


def parameter_names(found: Iterable[Results]) -> list[str]:
    """Return the names of all parameters of manifests, in the order in which they come up.

    Raises:
        ManifestError: a manifest is not there, or not the one that was launched.
    """
    names: dict[str, None] = {}

    for results in found:
        for row in results.manifest_rows():
            names.update(dict.fromkeys(row.parameters))

    return list(names)


def encode_with_manifest(
    told: Iterable[tuple[Result, Row | None]], names: Sequence[str], form: Format
) -> Iterator[bytes]:
    """Yield the lines of results beside what their rows say.

    Args:
        told: results, each with its row where the manifest has one.
        names: of the parameters that are columns.
        form: ``"csv"``: with a header line; ``"jsonl"``: parameters as an object.

    Raises:
        ManifestError: a row says what CSV can't.
    """
    if form == "csv":
        yield header_line(names)

    for result, row in told:
        yield csv_line(result, row, names) if form == "csv" else _json_line(result, row)


def header_line(names: Iterable[str]) -> bytes:
    """Return the header of a CSV with the columns of a manifest and those of results."""
    parameters = (_column(name) for name in names)
    return _line([*RESERVED, *parameters, *(f"{IGNORED}{column}" for column in COLUMNS)])


def csv_line(result: Result, row: Row | None, names: Iterable[str]) -> bytes:
    """Return a row and its result as a line of CSV.

    A declared type is left out: the job's schema tells it. A key that is no more than what the
    row says is left out too, so that it stays so when the row is mended.

    Raises:
        ManifestError: its key begins with a backslash, which CSV keeps for escapes.
    """
    key = row.key if row is not None else None

    if key is not None and key.startswith("\\"):
        raise ManifestError(
            f"row {result['row']} has the key {key!r}, and no key in CSV begins with a backslash",
            hint="use results --format jsonl --with-manifest",
        )

    said = {} if row is None else row.parameters
    cells = (_cell(said[name]) if name in said else "" for name in names)
    own = (result_cell(result[column]) for column in COLUMNS)
    return _line([key, result["target"], result["jobId"], *cells, *own])


def _column(name: str) -> str:
    """Return the column of a parameter; one that would be read as another gets a prefix."""
    is_plain = name not in RESERVED and not name.startswith((PREFIX, IGNORED))
    return name if is_plain else f"{PREFIX}{name}"


def _cell(value: ParameterValue) -> str:
    """Return what the reader of CSV takes for a value."""
    if isinstance(value, TypedValue):
        value = value.value

    if value is None or value is AUTO:
        return _NULL if value is None else _AUTO

    text = str(value)
    return f"\\{text}" if text.startswith("\\") else text or _EMPTY


def _line(cells: Iterable[object]) -> bytes:
    line = io.StringIO()
    csv.writer(line).writerow(cells)
    return line.getvalue().encode()


def _json_line(result: Result, row: Row | None) -> bytes:
    said: dict[str, Any] = {} if row is None else {"parameters": _object(row.parameters)}
    said |= {} if row is None or row.key is None else {"key": row.key}
    said |= {"target": result["target"], "jobId": result["jobId"]}
    own = {f"{IGNORED}{column}": result[column] for column in COLUMNS}
    return orjson.dumps(said | own, option=orjson.OPT_APPEND_NEWLINE)


def _object(parameters: Mapping[str, ParameterValue]) -> dict[str, Any]:
    return {name: _json(value) for name, value in parameters.items()}


def _json(value: ParameterValue) -> object:
    if value is AUTO:
        return {"auto": True}

    if not isinstance(value, TypedValue):
        return value

    if value.value is AUTO:
        return {"type": value.type, "useAutoValue": True}

    return {"type": value.type, "valueStringEncoded": value.value}


def split_results(
    told: Iterable[tuple[Result, Row | None]], names: Sequence[str], folder: Path
) -> Counter[str]:
    """Write results beside what their rows say into one CSV file for each state.

    Rows whose run failed are written into one more file. All files are written, also those of no
    rows, so that none of another time is left. After an error the old ones are there unchanged,
    but for a failure in the very moment of replacing.

    Args:
        told: results, each with its row where the manifest has one.
        names: of the parameters that are columns.
        folder: is made where it is not there.

    Returns:
        How many rows each file has, by its name without ``.csv``.

    Raises:
        ManifestError: a file can't be written, or a row says what CSV can't.
    """
    rows: Counter[str] = Counter(dict.fromkeys((*FILES, RUN_FAILED), 0))

    try:
        folder.mkdir(parents=True, exist_ok=True)

        with ExitStack() as stack:
            files = {
                name: stack.enter_context(durable.replacing(folder / f"{name}.csv"))
                for name in rows
            }

            for file in files.values():
                file.write(header_line(names))

            for result, row in told:
                line = csv_line(result, row, names)

                for name in _files_of(result):
                    files[name].write(line)
                    rows[name] += 1
    except OSError as exc:
        raise ManifestError(
            f"{folder}: can't be written: {exc.strerror or exc}",
            hint="get leave to write there, or name another folder",
        ) from exc

    return rows


def _files_of(result: Result) -> Iterator[str]:
    state = result["state"]
    yield str(RowState.UNKNOWN) if state == RowState.IN_FLIGHT else state

    if run_state_of(result) is RunState.FAILED:
        yield RUN_FAILED
