"""Rows to checked rows: keys, schemas, and what the rows of one batch must not share.

The same check serves ``check``, the import of a manifest, corrections, and the rows that a
program hands over. Memory stays flat: the keys lie in a private temporary SQLite table with a
bounded cache, which ends with its connection.
"""

import sqlite3
import tempfile
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from itertools import chain
from typing import Final, Self

from deslaunch.errors import InvalidManifest, ManifestError
from deslaunch.manifest import rows
from deslaunch.manifest.schema import Schema, take, unknown_job
from deslaunch.model import AUTO, CheckedRow, InvalidRow, Problem, Row

KEPT_PROBLEMS: Final = 1_000
"""Problems, and groups of problems, that are kept."""

# Keys are told apart by Python's hash of 64 bits: of a million, two that only seem to be the same
# are met once in 30 million batches, and are refused, not started. A key that is spelled otherwise
# than an earlier one of the same look is kept as if behind a NUL, which no key holds.
_TABLE: Final = """
PRAGMA journal_mode = OFF;
PRAGMA temp_store = FILE;
PRAGMA cache_size = -2048;
CREATE TABLE keys (look INTEGER PRIMARY KEY, own INTEGER, line INTEGER, copies INTEGER DEFAULT 1);
BEGIN; -- one transaction for all rows, never committed
"""
_STORE: Final = "INSERT OR IGNORE INTO keys (look, own, line) VALUES "
_KEY: Final = "(?, ?, ?)"
_KEYS_AT_ONCE: Final = 512  # SQLite takes 32,766 values
_COUNT: Final = "UPDATE keys SET copies = copies + 1 WHERE look = ?"
_FIND: Final = "SELECT own, line, copies FROM keys WHERE look = ?"


@dataclass(eq=False, repr=False)
class Check:
    """Checks the rows of one batch, each once and in order.

    Not safe for several threads at a time; it may be called from one after another.

    Attributes:
        schemas: by target and jobId. A target's jobs must be there before its first row.
        file: the manifest as it was named, printable.
        targets: the names that rows may have; default: those of ``schemas`` and ``unchecked``.
        unchecked: targets whose jobs can't be had: their rows are taken without a body.
        allow_duplicates: rows that say exactly the same are all started.
        allow_repeated_auto: a job's feed may be moved on by several rows of the batch.
        known_auto: key of the auto row that the batch has already, by target and jobId.
        renew: called once a target before its schema finds a row invalid; puts newer jobs into
            ``schemas`` and returns them, or None. It may block.
        rows: how many were taken; a problem of the file as a whole is none.
        invalid: how many of them can't be started.
        count: how many problems there are.
        problems: the first 1,000, in manifest order.
        groups: the first 1,000 different ones, each with the number of its rows.
        warnings: what may be a mistake.
    """

    schemas: Mapping[str, Mapping[str, Schema]]
    _: KW_ONLY
    file: str
    targets: Collection[str] = ()
    unchecked: Collection[str] = ()
    allow_duplicates: bool = False
    allow_repeated_auto: bool = False
    known_auto: Mapping[tuple[str, str], str] = field(default_factory=dict)
    renew: Callable[[str], Mapping[str, Schema] | None] | None = None

    def __post_init__(self) -> None:
        self.rows = self.invalid = self.count = 0
        self.problems: list[Problem] = []
        self.warnings = rows.Groups(self.file)
        self._asked: set[str] = set()
        self._auto = {job: (0, key) for job, key in self.known_auto.items()}
        self.groups = rows.Groups(self.file, KEPT_PROBLEMS)
        where = "" if _has_temporary_folder() else ":memory:"
        self._table = sqlite3.connect(where, isolation_level=None, check_same_thread=False)
        self._table.executescript(_TABLE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._table.close()  # and with it the temporary file

    def error(self, message: str, hint: str = "") -> InvalidManifest:
        """Return the error of a manifest that has problems."""
        return InvalidManifest(
            message, problems=self.problems, count=self.count, groups=[*self.groups], hint=hint
        )

    def take(self, items: Iterable[Row | InvalidRow]) -> list[CheckedRow | InvalidRow]:
        """Return the rows that can be started, and why others can't, in their order.

        A row whose key an earlier one has is invalid, and has no key then; or where it repeats
        what that one says, and may, the key tells which repetition it is.
        """
        items = list(items)
        taken = [item if isinstance(item, InvalidRow) else self._check(item) for item in items]

        try:
            if self._has_repeats(items, taken):
                taken = list(map(self._judge_repeat, items, taken))
        except sqlite3.Error as exc:
            raise ManifestError(
                f"the temporary table of keys can't be written: {exc}",
                hint="free space in the temporary folder, or set TMPDIR to another folder",
            ) from exc

        for item, row in zip(items, taken, strict=True):
            is_row = item.number > self.rows  # else it is what ended the reading
            self.rows += is_row

            if isinstance(row, InvalidRow):
                self.invalid += is_row
                self.count += len(row.problems)
                self.problems += row.problems[: KEPT_PROBLEMS - len(self.problems)]

                for problem in row.problems:
                    self.groups.add(problem)

        return taken

    def _check(self, row: Row) -> CheckedRow | InvalidRow:
        checked = self._fill(row)

        if isinstance(checked, CheckedRow) and checked.auto and not self.allow_repeated_auto:
            checked = self._check_feed(row, checked.key) or checked

        if isinstance(checked, CheckedRow):
            return checked

        key = rows.row_digest(row) if row.key is None else row.key
        place = row.number, row.line, key, row.target, row.job_id
        return InvalidRow(*place, checked, rows.dump_row(row))

    def _fill(self, row: Row) -> CheckedRow | tuple[Problem, ...]:
        """Return a row with what is sent for it, or why it can't be."""
        if row.target in self.unchecked:
            return take(row, b"", rows.dump_row(row), auto=AUTO in row.parameters.values())

        checked = self._check_by_schema(row, self.warnings)

        if isinstance(checked, CheckedRow) or self.renew is None:
            return checked

        if row.target in self.schemas and row.target not in self._asked:
            self._asked.add(row.target)

            if self.renew(row.target) is not None:
                return self._check_by_schema(row, rows.Groups(self.file))  # warned of already

        return checked

    def _check_by_schema(self, row: Row, warnings: rows.Groups) -> CheckedRow | tuple[Problem, ...]:
        if schema := self.schemas.get(row.target, {}).get(row.job_id):
            return schema.check(row, warnings)

        if row.target in self.schemas:
            return unknown_job(row, self.schemas, self.file)

        known = ", ".join(sorted({*self.targets, *self.schemas, *self.unchecked}))
        message = (
            f"there is no target {rows.show(row.target)!r}; leave it out, or use one of: {known}"
        )
        fault = rows.Fault("target", f"one of: {known}", row.target, message)
        return rows.problems_of([fault], self.file, row.number, row.line)

    def _check_feed(self, row: Row, key: str) -> tuple[Problem, ...]:
        """Return the problem of a second row that moves a job's feed on."""
        line, known = self._auto.setdefault((row.target, row.job_id), (row.line, key))

        if line == row.line or (not line and known == key):  # it is that row itself
            return ()

        first = f"line {line}" if line else f"the row {known} of the batch"
        message = (
            f"{first} also uses an auto value of this job, and two such runs compete for the same "
            "data; move one row to another batch, or pass --allow-repeated-auto"
        )
        got = f"a second one, after {first}"
        fault = rows.Fault("", "one auto-value row per job", got, message)
        return rows.problems_of([fault], self.file, row.number, row.line)

    def _has_repeats(
        self, items: list[Row | InvalidRow], taken: list[CheckedRow | InvalidRow]
    ) -> bool:
        """Store the keys of rows; return True if one is, or looks like, an earlier row's."""
        keys = [
            (*_hashes(row.key), item.line)
            for item, row in zip(items, taken, strict=True)
            if row.key is not None
        ]

        before = self._table.total_changes

        for start in range(0, len(keys), _KEYS_AT_ONCE):  # one by one costs half as much again
            some = keys[start : start + _KEYS_AT_ONCE]
            statement = _STORE + ", ".join([_KEY] * len(some))
            self._table.execute(statement, [*chain.from_iterable(some)])

        return self._table.total_changes - before < len(keys)

    def _judge_repeat(
        self, item: Row | InvalidRow, row: CheckedRow | InvalidRow
    ) -> CheckedRow | InvalidRow:
        """Return a row as it is, or, where an earlier one has its key, what becomes of it."""
        key = row.key

        if key is None:
            return row

        look, own = _hashes(key)
        known, first, copies = self._table.execute(_FIND, (look,)).fetchone()

        if known != own:
            message = (
                "the key looks like an earlier one but has different characters (Unicode NFC, NFD)"
            )
            self.warnings.warn("key", message, item.line)
            look = hash(f"\0{key}")
            self._table.execute(_STORE + _KEY, (look, own, item.line))
            known, first, copies = self._table.execute(_FIND, (look,)).fetchone()

        if first == item.line:
            return row

        self._table.execute(_COUNT, (look,))

        if item.key is not None:
            message = (
                f"line {first} has the key {rows.show(key)!r} already; give this row another key"
            )
            fault = rows.Fault("key", "a unique key", key, message)
        elif self.allow_duplicates:
            return row._replace(key=f"{key}{rows.REPEAT_MARK}{copies + 1}")
        else:
            message = (
                f"the row repeats line {first} and would start the same run again; remove it, or "
                "pass --allow-duplicates"
            )
            fault = rows.Fault("", "a different row", key, message)

        problems = rows.problems_of([fault], self.file, item.number, item.line)
        others = row.problems if isinstance(row, InvalidRow) else ()
        place = item.number, item.line, None, item.target, item.job_id
        return InvalidRow(*place, others + problems, row.says)


def _hashes(key: str) -> tuple[int, int | None]:
    """Return the hash of what an eye sees of a key, and where it is spelled otherwise, its own."""
    look = key if key.isascii() else unicodedata.normalize("NFC", key)
    return hash(look), None if look == key else hash(key)


def _has_temporary_folder() -> bool:
    """Return False where nothing can be written, as in a container: keys are then in memory."""
    try:
        return bool(tempfile.gettempdir())
    except FileNotFoundError:
        return False
