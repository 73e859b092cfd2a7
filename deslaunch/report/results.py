"""What became of every row, in manifest order: CSV or JSONL, alone or beside what the row says.

Beside what the row says, a line is a line of a manifest again, with what became of it in columns
``deslaunch.…`` (in JSONL an object ``deslaunch``): such a file is edited and taken back by
``resume --corrections``. The manifest's file is never read: the ledger keeps every row.

A file is written under a temporary name beside its place, synced, and renamed. So after a crash,
or an error, the old file or the new one is there, never a mixture. An error in syncing the folder
is no failure: a share may not be able to, and these files can be made again.
"""

import contextlib
import errno
import os
import secrets
import stat
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, NamedTuple, TypedDict, Unpack

import orjson
from anyio import CancelScope, to_thread

from deslaunch.errors import ConfigurationError
from deslaunch.ledger.reading import Reader, ResultRow
from deslaunch.manifest import readers
from deslaunch.manifest.rows import RESULT_COLUMNS
from deslaunch.model import Format, RowState, printable

COLUMNS: Final = RESULT_COLUMNS
"""What is told of a row: columns of CSV, names in JSONL."""

IN_FLIGHT: Final = "inFlight"
"""What the state ``sending`` is called outside the ledger while its launcher lives."""

FILES: Final = (*(str(state) for state in RowState if state != RowState.SENDING), "run-failed")
"""Files of ``--split``, without ``.csv``. A row in flight is among the unknown ones, and a row
whose run failed stands in two: that of its state, and ``run-failed``."""

PAGE_MARK: Final = b"<!DOCTYPE html><!-- deslaunch report -->"
"""How the first line of a report begins."""

_BESIDE_LEDGER: Final = ("", "-wal", "-shm", "-journal", ".lock", ".new")
_FLAGS: Final = [COLUMNS.index(name) for name in ("possibleDuplicate", "finished", "success")]


class Choice(NamedTuple):
    """Which rows are asked for: those that fit each of these, or all where nothing is said.

    Attributes:
        states: the rows' states, as results name them (``inFlight``, not ``sending``).
        run: what is known of their runs.
        keys: the rows' keys.
    """

    states: Collection[str] | None = None
    run: Literal["failed", "succeeded", "unfinished"] | None = None
    keys: Sequence[str] | None = None


ALL: Final = Choice()


async def rows_of(
    ledger: Reader, choice: Choice = ALL, *, with_rows: bool = False
) -> AsyncIterator[list[ResultRow]]:
    """Yield rows in portions, as they are told outside the ledger: ``sending`` is ``inFlight``."""
    sending = RowState.SENDING.value
    states = choice.states and [sending if state == IN_FLIGHT else state for state in choice.states]
    asked = choice._replace(states=states)

    async for rows in ledger.results(**asked._asdict(), with_rows=with_rows):
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
        output: a file, replaced as a whole (:func:`open_output`), or a
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
    async with contextlib.AsyncExitStack() as stack:
        if isinstance(output, Path):
            output = await stack.enter_async_context(open_beside(ledger, output, force=force))

        encode: Callable[[list[ResultRow]], bytes]
        encode = partial(json_results, with_manifest=with_manifest)
        header = b""

        if form == "csv":
            names = await _columns_of(ledger, choice) if with_manifest else None
            encode, header = partial(csv_results, names), csv_header(names)

        await to_thread.run_sync(output.write, header)
        count = 0

        async for rows in rows_of(ledger, choice, with_rows=with_manifest):
            lines = await to_thread.run_sync(encode, rows)
            await to_thread.run_sync(output.write, lines)
            count += len(rows)

    return count


def csv_header(names: Sequence[str] | None = None) -> bytes:
    """Return the line above those of :func:`csv_results`."""
    notes = (f"{readers.NOTE_PREFIX}{name}" for name in COLUMNS)
    return readers.csv_lines([COLUMNS if names is None else [*names, *notes]])


def csv_results(names: Sequence[str] | None, rows: Collection[ResultRow]) -> bytes:
    """Return results as lines of CSV (RFC 4180).

    Args:
        names: columns of what the row says, beside which it is put; None to leave that out.
        rows: the results, with what their rows say where there are such columns.

    Raises:
        ManifestError: a row says what CSV can't.
    """
    lines = (_values(row, {None: None, 0: "false", 1: "true"}) for row in rows)

    if names is not None:
        said = (readers.csv_cells(row.says or "{}", names, row.key) for row in rows)
        lines = (cells + values for cells, values in zip(said, lines, strict=True))

    return readers.csv_lines(lines)


def json_results(rows: Collection[ResultRow], *, with_manifest: bool = False) -> bytes:
    """Return results as lines of JSON, alone or beside what their rows say."""
    return b"".join(_json_result(row, with_manifest=with_manifest) for row in rows)


def as_result(row: ResultRow) -> dict[str, Any]:
    """Return a row as a line of ``results --format jsonl`` has it."""
    values = dict(zip(COLUMNS, _values(row, {None: None, 0: False, 1: True}), strict=True))
    return values | {"outputFiles": row.output_files and orjson.loads(row.output_files)}


def _json_result(row: ResultRow, *, with_manifest: bool) -> bytes:
    found = as_result(row)

    if with_manifest:
        said = readers.json_object(row.says or "{}", row.key or None)
        found = {**said, "deslaunch": {**said.get("deslaunch", {}), **found}}

    return orjson.dumps(found, option=orjson.OPT_APPEND_NEWLINE)


def _values(row: ResultRow, flags: Mapping[int | None, object]) -> list[Any]:
    """Return what is told of a row, with each flag as ``flags`` has it."""
    values: list[Any] = list(row[1 : len(COLUMNS) + 1])

    for place in _FLAGS:
        values[place] = flags[values[place]]

    return values


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
                needed.update(dict.fromkeys(readers.columns_of(row.says or "{}")))

    return readers.header_of(ledger.batch.columns or (), needed)


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
    try:
        await to_thread.run_sync(partial(folder.mkdir, parents=True, exist_ok=True))
    except OSError as exc:
        raise _unusable(folder, "written", exc) from exc

    names = await _columns_of(ledger, choice)
    counts = Counter(dict.fromkeys(FILES, 0))

    async with contextlib.AsyncExitStack() as stack:
        files = {}

        for name in FILES:
            opening = open_beside(ledger, folder / f"{name}.csv", force=force)
            files[name] = await stack.enter_async_context(opening)
            await to_thread.run_sync(files[name].write, csv_header(names))

        async for rows in rows_of(ledger, choice, with_rows=True):
            apart = defaultdict(list)

            for row in rows:
                apart["unknown" if row.state == IN_FLIGHT else row.state].append(row)

                if row.finished and not row.success:
                    apart["run-failed"].append(row)

            for name, some in apart.items():
                lines = await to_thread.run_sync(csv_results, names, some)
                await to_thread.run_sync(files[name].write, lines)
                counts[name] += len(some)

    return counts


# Output files.


class Allowed(TypedDict, total=False):
    """What an output file may replace.

    Attributes:
        ledger: this batch's, never replaced; nor is any other ledger.
        manifest: this batch's, never replaced; ``"-"`` and names of no file are no matter.
        force: another file may be replaced, whatever it is; default: False.
        replaces_own: so may a file whose first line shows that it is results or a report;
            default: True.
    """

    ledger: str | None
    manifest: str | None
    force: bool
    replaces_own: bool


def check_output(output: Path, **allowed: Unpack[Allowed]) -> None:
    """Refuse an output file that would replace what it must not.

    Args:
        output: the file; a symbolic link stands for what it leads to.
        **allowed: see :class:`Allowed`.

    Raises:
        ConfigurationError: it is a ledger (or belongs to one), this batch's manifest, or a
            folder; or it is another file that is not empty and must not be replaced; or its name
            ends in ``.gz``.
    """
    # By inode and name first: to open and close a ledger that this process has open would drop
    # the locks that SQLite holds on it.
    ledger, manifest = allowed.get("ledger"), allowed.get("manifest")
    replaces_own, force = allowed.get("replaces_own", True), allowed.get("force", False)
    beside = [] if ledger is None else [f"{ledger}{suffix}" for suffix in _BESIDE_LEDGER]
    first, hint = b"", "name another file with -o"

    if output.suffix == ".gz":
        why, hint = "output is not compressed", "name a file without .gz"
    elif any(_is_same(output, file) for file in beside):
        why = "this file belongs to the batch's ledger, which is never replaced"
    elif manifest is not None and _is_same(output, manifest):
        why = "this is the batch's manifest, which is never replaced"
    elif output.is_dir():
        why = "this is a folder"
    elif output.is_file() and (first := _first_line(output)).startswith(b"SQLite format 3\0"):
        why = "this is a SQLite database, which is never replaced"
    elif first and not force and not (replaces_own and is_own(first)):
        why = f"this file exists{' and was not written by deslaunch' * replaces_own}"
        hint = f"{hint}, or add --force to replace this one"
    else:
        return

    raise ConfigurationError(f"{printable(str(output))}: {why}", hint=hint)


def _first_line(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.readline(1 << 20)
    except OSError as exc:
        raise _unusable(file, "read", exc) from exc


def _is_same(output: Path, file: str) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return output.resolve() == Path(file).resolve() or output.samefile(file)

    return False


def is_own(first_line: bytes) -> bool:
    """Return True if a file's first line shows that it is results or a report."""
    line = first_line.rstrip(b"\r\n")
    return (
        line.startswith((PAGE_MARK, b"key,row,target,jobId,jobName,"))
        or (line.startswith(b"{") and b'"possibleDuplicate":' in line)
        or (b"deslaunch.key," in line and line.endswith(b",deslaunch.outputFiles"))
    )


@contextlib.asynccontextmanager
async def open_beside(
    reader: Reader, output: Path, **allowed: Unpack[Allowed]
) -> AsyncIterator[BinaryIO]:
    """Write a batch's output file as :func:`open_output` does, without blocking the event loop."""
    allowed |= {"ledger": reader.place, "manifest": reader.batch.manifest}
    opening = open_output(output, **allowed)
    stream = await to_thread.run_sync(opening.__enter__)

    try:
        yield stream
    except BaseException as exc:
        with CancelScope(shield=True):
            await to_thread.run_sync(opening.__exit__, type(exc), exc, exc.__traceback__)

        raise

    await to_thread.run_sync(opening.__exit__, None, None, None)


@contextlib.contextmanager
def open_output(
    output: Path, *, sync: Callable[[int], None] = os.fsync, **allowed: Unpack[Allowed]
) -> Iterator[BinaryIO]:
    """Write a file that takes its place as a whole when the block ends.

    An existing file keeps its mode; a new one has what the umask leaves of 0666. A device or a
    pipe is written to as it is. After the block the file is on disk; after a crash, or an error
    in the block, the old file is there unchanged.

    Args:
        output: the file.
        sync: brings a descriptor's file to disk.
        **allowed: see :class:`Allowed`.

    Raises:
        ConfigurationError: the file must not be replaced (:func:`check_output`), or can't be
            written: no permission, no folder, a full disk.
    """
    check_output(output, **allowed)

    try:
        is_stream = output.exists() and not output.is_file()

        with output.open("wb") if is_stream else _replacing(output.resolve(), sync) as stream:
            yield stream
    except BrokenPipeError:
        raise
    except OSError as exc:
        raise _unusable(output, "written", exc) from exc


@contextlib.contextmanager
def _replacing(place: Path, sync: Callable[[int], None]) -> Iterator[BinaryIO]:
    # The whole name and more might be longer than the file system takes.
    new = place.with_name(f".{place.name[:32]}.{secrets.token_hex(4)}.new")

    try:
        with new.open("xb", buffering=1 << 20) as stream:
            with contextlib.suppress(FileNotFoundError):
                os.fchmod(stream.fileno(), stat.S_IMODE(place.stat().st_mode))

            yield stream
            stream.flush()

            try:
                sync(stream.fileno())
            except OSError as exc:
                if exc.errno not in {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS}:
                    raise

        new.replace(place)
    except BaseException:
        new.unlink(missing_ok=True)
        raise

    with contextlib.suppress(OSError):
        folder = os.open(place.parent, os.O_RDONLY | os.O_DIRECTORY)

        try:
            sync(folder)
        finally:
            os.close(folder)


def _unusable(place: Path, done: str, exc: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"{printable(str(place))} can't be {done}: {exc.strerror or exc}",
        hint="check the permissions of the file and its folder, or name another file",
    )
