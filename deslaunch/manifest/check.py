"""Rows to checked rows: keys, schemas, and what the rows of one batch must not share.

The same check serves ``check``, the import of a manifest, corrections, and the rows that a
program hands over. Memory stays flat: the keys lie in a private temporary SQLite
table, which ends with its connection, and repeats are found in it at the end by GROUP BY.
"""

import sqlite3
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from typing import Final, Self

from deslaunch.errors import InvalidManifest, ManifestError
from deslaunch.events import ProblemGroup
from deslaunch.manifest import rows
from deslaunch.manifest.forms import Forms
from deslaunch.manifest.schema import Body, Schema, body_digest, unknown_job
from deslaunch.model import AUTO, CheckedRow, InvalidRow, PlainRow, Problem, Row

KEPT_PROBLEMS: Final = 1_000
"""Problems, and groups of problems, that are kept."""

_TABLES: Final = """
PRAGMA journal_mode = OFF;
PRAGMA temp_store = FILE;
PRAGMA cache_size = -1024;
CREATE TABLE keys (
    number INTEGER PRIMARY KEY, line INTEGER, key TEXT, is_own INTEGER
);
CREATE TABLE invalid (number INTEGER PRIMARY KEY);
CREATE TABLE spelled (line INTEGER, key TEXT);
"""
_REPEATS: Final = """
SELECT * FROM (
    SELECT number, line, key, is_own, number IN invalid AS bad,
           row_number() OVER same AS copy, first_value(line) OVER same AS first
    FROM keys WHERE key IN (SELECT key FROM keys GROUP BY key HAVING count(*) > 1)
    WINDOW same AS (PARTITION BY key ORDER BY number)
)
WHERE copy > 1 ORDER BY number
"""
_SPELLED: Final = """
SELECT count(*), min(line) FROM (
    SELECT line, key, row_number() OVER (PARTITION BY key ORDER BY line) AS copy FROM spelled
)
WHERE copy > 1 OR key IN (SELECT key FROM keys)
"""


Repeat = tuple[int, str] | InvalidRow
"""A row whose key an earlier row has: its number and new key, or why it can't be started."""


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
        is_immediate: :meth:`take` tells repeats at once, and :meth:`finish` none.
        rows: how many were taken; a problem of the file as a whole is none.
        invalid: how many of them can't be started.
        count: how many problems there are.
        problems: the first 1,000, in manifest order.
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
    is_immediate: bool = False

    def __post_init__(self) -> None:
        self.rows = self.invalid = self.count = 0
        self.problems: list[Problem] = []
        self.warnings = rows.Groups(self.file)
        self._asked: set[str] = set()
        self._auto = {job: (0, 0, key) for job, key in self.known_auto.items()}
        self._groups = rows.Groups(self.file, KEPT_PROBLEMS)
        self._limit = KEPT_PROBLEMS
        self._forms = Forms()
        self._keys: list[tuple[int, int, str, bool]] = []
        self._table = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._table.executescript(_TABLES)

        if self.is_immediate:
            self._table.execute("CREATE INDEX by_key ON keys (key)")

        self._table.execute("BEGIN")  # one transaction for all rows, never committed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._table.close()  # and with it the temporary file

    @property
    def valid(self) -> int:
        """Rows that can be started."""
        return self.rows - self.invalid

    @property
    def groups(self) -> list[ProblemGroup]:
        """The first 1,000 different problems, each with the number of its rows."""
        return list(self._groups)

    def error(self, message: str, hint: str = "") -> InvalidManifest:
        """Return the error of a manifest that has problems."""
        return InvalidManifest(
            message, problems=self.problems, count=self.count, groups=self.groups, hint=hint
        )

    def take(self, items: Iterable[PlainRow | Row | InvalidRow]) -> list[CheckedRow | InvalidRow]:
        """Return the rows that can be started, and why others can't, in their order."""
        with _sqlite_errors():
            taken = [
                self._take_unread(row) if isinstance(row, InvalidRow) else self._take(row)
                for row in items
            ]
            self._store_keys()

        return taken

    def finish(self) -> Iterator[Repeat]:
        """Yield the rows that repeat a key, in manifest order; to be called once."""
        with _sqlite_errors():
            times, line = self._table.execute(_SPELLED).fetchone()

            if times:
                message = "a key looks like another's and is spelled by other characters (NFC, NFD)"
                self.warnings.warn("key", message, line, times)

            if self.is_immediate:
                return

            self._limit += KEPT_PROBLEMS  # any of these may precede those that are kept

            for number, line, said, is_own, bad, copy, first in self._table.execute(_REPEATS):
                key, problems = self._judge_repeat(number, line, said, copy, first, is_own=is_own)
                self.invalid += key is None and not bad
                refused = InvalidRow(number, line, None, "", "", problems)
                yield refused if key is None else (number, key)

        self.problems.sort(key=lambda problem: problem.row)
        del self.problems[KEPT_PROBLEMS:]

    def _take_unread(self, row: InvalidRow) -> InvalidRow:
        self._keep(row.problems)
        is_row = row.number > self.rows  # else it is what ended the reading
        self.rows += is_row
        self.invalid += is_row

        if row.key is None:
            return row

        key, problems = self._take_key(row, row.key, is_bad=True)
        return row._replace(key=key, problems=row.problems + problems)

    def _take(self, row: PlainRow | Row) -> CheckedRow | InvalidRow:
        self.rows += 1
        checked, says = self._check_plain(row) if isinstance(row, PlainRow) else self._check(row)
        said = rows.row_digest(row) if row.key is None else row.key

        if isinstance(checked, Body) and checked.auto and not self.allow_repeated_auto:
            checked = self._check_feed(row, said) or checked

        if not isinstance(checked, Body):
            self._keep(checked)

        key, problems = self._take_key(row, said, is_bad=not isinstance(checked, Body))

        if isinstance(checked, Body):
            if key is not None:
                body, auto = checked
                has_own_key = row.key is not None
                return CheckedRow(row, key, has_own_key, body, body_digest(body), auto, says)
        else:
            problems = checked + problems

        self.invalid += 1
        return InvalidRow(row.number, row.line, key, row.target, row.job_id, problems, says)

    def _check_plain(self, row: PlainRow) -> tuple[Body | tuple[Problem, ...], str]:
        if row.target in self.unchecked:
            return self._check(row.row())

        schema = self.schemas.get(row.target, {}).get(row.job_id)

        if schema is not None and (found := self._forms.check(row, schema)):
            return found

        checked, says = self._check(row.row())

        if isinstance(checked, Body):  # maybe by a newer schema
            self._forms.learn(row, self.schemas[row.target][row.job_id])

        return checked, says

    def _check(self, row: Row) -> tuple[Body | tuple[Problem, ...], str]:
        """Return what is sent for a row, or why it can't be, and what is kept of it."""
        says = rows.dump_row(row)

        if row.target in self.unchecked:
            return Body(b"", AUTO in map(rows.plain_value, row.parameters.values())), says

        checked = self._check_by_schema(row, self.warnings)
        is_known = row.target in self.schemas and row.target not in self._asked

        if self.renew and is_known and not isinstance(checked, Body):
            self._asked.add(row.target)

            if self.renew(row.target) is not None:
                checked = self._check_by_schema(row, None)

        return checked, says

    def _check_by_schema(
        self, row: Row, warnings: rows.Groups | None
    ) -> Body | tuple[Problem, ...]:
        if row.target not in self.schemas:
            known = ", ".join(sorted({*self.targets, *self.schemas, *self.unchecked}))
            message = (
                f"there is no target {rows.show(row.target)!r}: drop it, or name one of: {known}"
            )
            fault = rows.Fault("target", f"a target that is known: {known}", row.target, message)
            return rows.problems_of([fault], self.file, row.number, row.line)

        schema = self.schemas[row.target].get(row.job_id)

        if schema is None:
            return unknown_job(row, self.schemas, self.file)

        return schema.check(row, self.file, warnings)

    def _check_feed(self, row: PlainRow | Row, key: str) -> tuple[Problem, ...]:
        """Return the problem of a second row that moves a job's feed on."""
        number, line, known = self._auto.setdefault(
            (row.target, row.job_id), (row.number, row.line, key)
        )

        if number == row.number or (not number and known == key):
            return ()

        other = f"line {line}" if number else f"the row {known} of the batch"
        message = (
            f"{other} uses an auto value of this job too, and the two runs would race for the same "
            "data: put them into separate batches, or pass --allow-repeated-auto"
        )
        got = f"a second one, after {other}"
        fault = rows.Fault("", "one auto-value row for each job", got, message)
        return rows.problems_of([fault], self.file, row.number, row.line)

    def _take_key(
        self, row: PlainRow | Row | InvalidRow, key: str, *, is_bad: bool
    ) -> tuple[str | None, tuple[Problem, ...]]:
        """Return the row's key; where repeats are told at once, maybe why it has none."""
        is_own = row.key is not None
        self._keys.append((row.number, row.line, key, is_own))

        if is_bad:
            self._table.execute("INSERT INTO invalid VALUES (?)", (row.number,))

        if not unicodedata.is_normalized("NFC", key):
            spelled = unicodedata.normalize("NFC", key)
            self._table.execute("INSERT INTO spelled VALUES (?, ?)", (row.line, spelled))

        if self.is_immediate:
            known = "SELECT count(*), min(line) FROM keys WHERE key = ?"
            copies, first = self._table.execute(known, (key,)).fetchone()
            self._store_keys()

            if copies:
                where = row.number, row.line, key, copies + 1, first
                return self._judge_repeat(*where, is_own=is_own)

        return key, ()

    def _judge_repeat(
        self, number: int, line: int, key: str, copy: int, first: int, *, is_own: bool
    ) -> tuple[str | None, tuple[Problem, ...]]:
        """Return the key of a row that says what an earlier one does, or why it has none."""
        if is_own:
            message = f"key {rows.show(key)!r} is that of line {first}: give this row another"
            fault = rows.Fault("key", "a key of its own", key, message)
        elif self.allow_duplicates:
            return f"{key}{rows.REPEAT_MARK}{copy}", ()
        else:
            message = (
                f"the row says the same as line {first}, and would start the run twice: remove it, "
                "or pass --allow-duplicates"
            )
            fault = rows.Fault("", "a row that says something else", key, message)

        problems = rows.problems_of([fault], self.file, number, line)
        self._keep(problems)
        return None, problems

    def _store_keys(self) -> None:
        self._table.executemany("INSERT INTO keys VALUES (?, ?, ?, ?)", self._keys)
        self._keys.clear()

    def _keep(self, problems: tuple[Problem, ...]) -> None:
        self.count += len(problems)
        self.problems += problems[: max(self._limit - len(self.problems), 0)]

        for problem in problems:
            self._groups.add(problem)


@contextmanager
def _sqlite_errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as exc:
        raise ManifestError(
            f"the temporary table of keys can't be written: {exc}",
            hint="make room in the temporary folder, or name another by TMPDIR",
        ) from exc
