"""What became of every row, in manifest order: CSV or JSONL, alone or beside what the row says.

Beside what the row says, a line is a line of a manifest again, with what became of it in columns
``deslaunch.…`` (in JSONL an object ``deslaunch``): such a file is edited and taken back by
``resume --corrections``. The manifest's file is never read: the ledger keeps every row.
"""

from __future__ import annotations

import re
from collections import Counter
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, Literal, NamedTuple

import orjson
from anyio import to_thread

from deslaunch.errors import ConfigurationError
from deslaunch.manifest.readers import (
    NOTE_PREFIX,
    columns_of,
    csv_cells,
    header_of,
    json_object,
)
from deslaunch.manifest.rows import RESULT_COLUMNS
from deslaunch.model import RowState, printable
from deslaunch.report.output import open_beside

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from deslaunch.ledger.reading import Reader, ResultRow
    from deslaunch.model import Format

COLUMNS: Final = RESULT_COLUMNS
"""What is told of a row: columns of CSV, names in JSONL."""

IN_FLIGHT: Final = "inFlight"
"""What the state ``sending`` is called outside the ledger while its launcher lives."""

RUN_FAILED: Final = "run-failed"

FILES: Final = (*(str(state) for state in RowState if state != RowState.SENDING), RUN_FAILED)
"""Files of ``--split``, without ``.csv``. A row in flight is among the unknown ones, and a row
whose run failed stands in two: that of its state, and ``run-failed``."""

_OWN: Final = "deslaunch"
_WORDS: Final = {None: "", 0: "false", 1: "true"}
_SPECIAL: Final = re.compile(r'[",\r\n]')
_BOOLS: Final = {None: None, 0: False, 1: True}


class Choice(NamedTuple):
    """Which rows are asked for: those that fit each of these, or all where nothing is said.

    Attributes:
        state: the rows' state, as results name it (``inFlight``, not ``sending``).
        run: what is known of their runs.
        keys: the rows' keys.
    """

    state: str | None = None
    run: Literal["failed", "succeeded", "unfinished"] | None = None
    keys: Sequence[str] | None = None


ALL: Final = Choice()


async def rows_of(
    ledger: Reader, choice: Choice = ALL, *, with_rows: bool = False
) -> AsyncIterator[list[ResultRow]]:
    """Yield rows in portions, as they are told outside the ledger: ``sending`` is ``inFlight``."""
    sending = RowState.SENDING.value
    state = sending if choice.state == IN_FLIGHT else choice.state

    async for rows in ledger.results(
        state=state, run=choice.run, keys=choice.keys, with_rows=with_rows
    ):
        yield [row if row.state != sending else row._replace(state=IN_FLIGHT) for row in rows]


async def write_results(
    ledger: Reader,
    output: Path | BinaryIO,
    *,
    form: Format = "csv",
    choice: Choice = ALL,
    with_manifest: bool = False,
    force: bool = False,
) -> int:
    """Write what became of the rows, and return how many were written.

    Memory does not grow with the rows.

    Args:
        ledger: of the batch; may be at work.
        output: a file, replaced as a whole (:func:`~deslaunch.report.output.open_output`), or a
            stream, which gets each portion as it comes.
        form: ``"csv"`` or ``"jsonl"``.
        choice: which rows.
        with_manifest: beside what the rows say.
        force: another existing file is replaced.

    Raises:
        ConfigurationError: the file must not be replaced, or can't be written.
        LedgerError: the ledger can't be read.
        ManifestError: a row says what CSV can't.
        OSError: the stream can't be written.
    """
    async with AsyncExitStack() as stack:
        if isinstance(output, Path):
            output = await stack.enter_async_context(open_beside(ledger, output, force=force))

        header = b""

        if form == "jsonl":
            encode = json_with_manifest if with_manifest else json_line
        elif with_manifest:
            names = await _columns_of(ledger, choice)
            encode, header = partial(csv_with_manifest, names), header_with_manifest(names)
        else:
            encode, header = csv_line, CSV_HEADER

        await to_thread.run_sync(output.write, header)
        count = 0

        async for rows in rows_of(ledger, choice, with_rows=with_manifest):
            await to_thread.run_sync(output.writelines, map(encode, rows))
            count += len(rows)

    return count


# Each line is made alone and goes straight into the stream's buffer: to gather the lines of a
# portion takes three times as long, and so does the csv module, which looks at every character.


def csv_line(row: ResultRow) -> bytes:
    """Return a result as a line of CSV (RFC 4180)."""
    return f"{_cells(row)}\r\n".encode()


def _cells(row: ResultRow) -> str:
    cells = ["" if value is None else str(value) for value in row[1:18]]
    cells[10], cells[13], cells[14] = _WORDS[row[11]], _WORDS[row[14]], _WORDS[row[15]]
    files = row.output_files
    # JSON, so that it is quoted without a look.
    return f"{join_cells(cells)},{'' if files is None else _quote(files)}"


def join_cells(cells: Sequence[str]) -> str:
    """Return cells as a record of CSV without its end."""
    line = ",".join(cells)

    if line.count(",") >= len(cells) or '"' in line or "\n" in line or "\r" in line:
        return ",".join([_quote(cell) if _SPECIAL.search(cell) else cell for cell in cells])

    return line


def _quote(cell: str) -> str:
    doubled = cell.replace('"', '""')
    return f'"{doubled}"'


CSV_HEADER: Final = f"{join_cells(COLUMNS)}\r\n".encode()


def json_line(row: ResultRow) -> bytes:
    """Return a result as a line of JSON."""
    return orjson.dumps(result_object(row), option=orjson.OPT_APPEND_NEWLINE)


def result_object(row: ResultRow) -> dict[str, object]:
    """Return a result in the documented form, for orjson."""
    found: dict[str, object] = dict(zip(COLUMNS, row[1:], strict=False))
    found["possibleDuplicate"] = _BOOLS[row[11]]
    found["finished"], found["success"] = _BOOLS[row[14]], _BOOLS[row[15]]

    if row.output_files is not None:
        found["outputFiles"] = orjson.Fragment(row.output_files)

    return found


def json_with_manifest(row: ResultRow) -> bytes:
    """Return a result beside what its row says, as a line of JSON."""
    line = json_object(row.says or "{}", row.key or None)
    line[_OWN] = {**line.get(_OWN, {}), **result_object(row)}
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


def csv_with_manifest(names: Sequence[str], row: ResultRow) -> bytes:
    """Return a result beside what its row says, as a line of CSV.

    Args:
        names: the columns of what rows say.
        row: the result, with what its row says.

    Raises:
        ManifestError: the row says what CSV can't.
    """
    said = join_cells(csv_cells(row.says or "{}", names, row.key))
    return f"{said},{_cells(row)}\r\n".encode()


def header_with_manifest(names: Sequence[str]) -> bytes:
    """Return the header line for such lines."""
    own = (f"{NOTE_PREFIX}{column}" for column in COLUMNS)
    return f"{join_cells((*names, *own))}\r\n".encode()


async def _columns_of(ledger: Reader, choice: Choice) -> list[str]:
    """Return the manifest's columns, and those of rows that say more than its header.

    The rows of JSONL, and corrected rows, may say what no header names: they are looked through.
    Every row gets its key of the ledger, so that a correction finds it.
    """
    [(is_corrected,)] = await ledger.query("report_is_corrected")
    needed: dict[str, None] = {}

    if ledger.batch.columns is None or is_corrected:
        async for rows in rows_of(ledger, choice, with_rows=True):
            for row in rows:
                needed.update(dict.fromkeys(columns_of(row.says or "{}")))

    return header_of(ledger.batch.columns or (), needed)


async def split_results(
    ledger: Reader, folder: Path, *, choice: Choice = ALL, force: bool = False
) -> dict[str, int]:
    """Write results beside what their rows say into one CSV file for each state.

    All files are written, also those of no rows, so that none of another time is left. After an
    error the old ones are there unchanged, but for a failure in the moment of replacing them.

    Args:
        ledger: of the batch; may be at work.
        folder: is made where it is not there.
        choice: which rows.
        force: other existing files of these names are replaced.

    Returns:
        How many rows each file has, by its name without ``.csv``.

    Raises:
        ConfigurationError: a file must not be replaced, or can't be written.
        LedgerError: the ledger can't be read.
        ManifestError: a row says what CSV can't.
    """
    await to_thread.run_sync(_make_folder, folder)
    names = await _columns_of(ledger, choice)
    counts = Counter(dict.fromkeys(FILES, 0))

    async with AsyncExitStack() as stack:
        files = {
            name: await stack.enter_async_context(
                open_beside(ledger, folder / f"{name}.csv", force=force)
            )
            for name in FILES
        }

        for file in files.values():
            await to_thread.run_sync(file.write, header_with_manifest(names))

        async for rows in rows_of(ledger, choice, with_rows=True):
            counts.update(await to_thread.run_sync(_write_apart, rows, names, files))

    return counts


def _write_apart(
    rows: Sequence[ResultRow], names: Sequence[str], files: Mapping[str, BinaryIO]
) -> Counter[str]:
    counts: Counter[str] = Counter()

    for row in rows:
        line = csv_with_manifest(names, row)
        own = [RowState.UNKNOWN.value if row.state == IN_FLIGHT else row.state]

        for name in [*own, RUN_FAILED] if row.finished and not row.success else own:
            files[name].write(line)
            counts[name] += 1

    return counts


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigurationError(
            f"{printable(str(folder))}: can't be made: {exc.strerror or exc}",
            hint="you need write permission for its parent; or name another folder with --split",
        ) from exc
