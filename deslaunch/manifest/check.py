"""Rows to checked rows: keys, schemas, and what the rows of one batch must not share.

The same check serves ``check``, the import of a manifest, corrections, and the rows that a
program hands over. Memory stays flat: the digests of keys lie in a private temporary SQLite
table, which ends with its connection, and repeats are found in it at the end by GROUP BY.
"""

from __future__ import annotations

import sqlite3
import unicodedata
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from deslaunch.errors import InvalidManifest, ManifestError
from deslaunch.events import ProblemGroup
from deslaunch.manifest.rows import (
    REPEAT_MARK,
    Fault,
    RowRules,
    Warnings,
    dump_row,
    key_digest,
    row_digest,
    show,
)
from deslaunch.manifest.schema import Body, body_digest, unknown_job
from deslaunch.model import AUTO, CheckedRow, InvalidRow, JobRunParameterValue, Problem, Row

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from deslaunch.manifest.schema import Schema

KEPT_PROBLEMS: Final = 1_000
"""Problems, and groups of problems, that are kept."""

_TABLES: Final = """
PRAGMA journal_mode = OFF;
PRAGMA temp_store = FILE;
PRAGMA cache_size = -4096;
CREATE TABLE keys (number INTEGER PRIMARY KEY, line INTEGER, digest BLOB, key TEXT, bad INTEGER);
CREATE TABLE spelled (number INTEGER PRIMARY KEY, line INTEGER, digest BLOB);
CREATE TABLE repeated (digest BLOB PRIMARY KEY) WITHOUT ROWID;
"""
_REPEATED: Final = """
INSERT INTO repeated SELECT digest FROM keys GROUP BY digest HAVING count(*) > 1
"""
_REPEATS: Final = """
SELECT * FROM (
    SELECT number, line, digest, key, bad,
           row_number() OVER digests AS copy, first_value(line) OVER digests AS first
    FROM keys WHERE digest IN repeated
    WINDOW digests AS (PARTITION BY digest ORDER BY number)
)
WHERE copy > 1 ORDER BY number
"""
_SPELLED: Final = """
SELECT count(*), min(line) FROM spelled AS one
WHERE digest IN (SELECT digest FROM keys)
   OR EXISTS (SELECT 1 FROM spelled AS other
              WHERE other.digest = one.digest AND other.number < one.number)
"""


class Repeat(NamedTuple):
    """A row whose key an earlier row has.

    Attributes:
        number: data row, from 1.
        line: physical line, from 1.
        key: the row's new key, or None where the row is invalid.
        problem: why it is invalid, or None.
    """

    number: int
    line: int
    key: str | None
    problem: Problem | None


class Check:
    """Checks the rows of one batch, each once and in order.

    Not safe for several threads at a time; it may be called from one after another.

    Args:
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

    Attributes:
        rows: how many were taken; a problem of the file as a whole is none.
        invalid: how many of them can't be started.
        count: how many problems there are.
        problems: the first 1,000, in manifest order.
        warnings: what may be a mistake.
        renewed: targets that :attr:`renew` gave other jobs for: rows of them that were taken
            before were checked by the older ones.
    """

    def __init__(
        self,
        schemas: Mapping[str, Mapping[str, Schema]],
        *,
        file: str,
        targets: Collection[str] = (),
        unchecked: Collection[str] = (),
        allow_duplicates: bool = False,
        allow_repeated_auto: bool = False,
        known_auto: Mapping[tuple[str, str], str] | None = None,
        renew: Callable[[str], Mapping[str, Schema] | None] | None = None,
        is_immediate: bool = False,
    ) -> None:
        self._schemas = schemas
        self._rules = RowRules(file)
        self._targets = targets
        self._unchecked = unchecked
        self._allow_duplicates = allow_duplicates
        self._allow_repeated_auto = allow_repeated_auto
        self._auto = {job: (0, 0, key) for job, key in (known_auto or {}).items()}
        self._renew = renew
        self._asked: set[str] = set()
        self._is_immediate = is_immediate
        self._groups: dict[tuple[str, str], ProblemGroup] = {}
        self._keys: list[tuple[int, int, bytes, str | None, bool]] = []
        self.rows = self.invalid = self.count = 0
        self.problems: list[Problem] = []
        self._room = KEPT_PROBLEMS
        self.warnings = Warnings(file)
        self.renewed: set[str] = set()
        self._table = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._table.executescript(_TABLES)

        if is_immediate:
            self._table.execute("CREATE INDEX digests ON keys (digest)")

        self._table.execute("BEGIN")  # one transaction for all rows, never committed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the temporary table."""
        self._table.close()

    @property
    def valid(self) -> int:
        """Rows that can be started."""
        return self.rows - self.invalid

    @property
    def groups(self) -> list[ProblemGroup]:
        """The first 1,000 different problems, each with the number of its rows."""
        return list(self._groups.values())

    def error(self, message: str, hint: str = "") -> InvalidManifest:
        """Return the error of a manifest that has problems."""
        return InvalidManifest(
            message, problems=self.problems, count=self.count, groups=self.groups, hint=hint
        )

    def take(self, rows: Iterable[Row | InvalidRow]) -> list[CheckedRow | InvalidRow]:
        """Return the rows that can be started, and why others can't, in their order."""
        taken = [
            self._take_unread(row) if isinstance(row, InvalidRow) else self._take(row)
            for row in rows
        ]
        self._store_keys()
        return taken

    def finish(self) -> Iterator[Repeat]:
        """Yield the rows whose key an earlier row has, in manifest order; to be called once."""
        self._warn_of_spellings()

        if self._is_immediate:
            return

        self._room = KEPT_PROBLEMS  # any of these may precede those that are kept
        self._execute(_REPEATED)

        for number, line, digest, key, bad, copy, first in self._execute(_REPEATS):
            if key is None and self._allow_duplicates:
                yield Repeat(number, line, f"{digest.hex()}{REPEAT_MARK}{copy}", None)
                continue

            self.invalid += not bad
            (problem,) = self._note([_repeated(key, digest, first)], number, line)
            yield Repeat(number, line, None, problem)

        self.problems.sort(key=lambda problem: problem.row)
        del self.problems[KEPT_PROBLEMS:]

    def _take_unread(self, row: InvalidRow) -> InvalidRow:
        self._keep(row.problems)
        is_row = row.number > self.rows  # else it is what ended the reading
        self.rows += is_row
        self.invalid += is_row

        if row.key is None:
            return row

        _, problems = self._take_key(row, row.key, key_digest(row.key), bad=True)
        return row._replace(key=None if problems else row.key, problems=row.problems + problems)

    def _take(self, row: Row) -> CheckedRow | InvalidRow:
        self.rows += 1
        checked = self._check(row)
        problems = () if isinstance(checked, Body) else checked
        digest = bytes.fromhex(row_digest(row)) if row.key is None else key_digest(row.key)

        if isinstance(checked, Body) and checked.auto and not self._allow_repeated_auto:
            problems = self._check_feed(row, row.key or digest.hex())

        if problems:
            self._keep(problems)

        key, repeated = self._take_key(row, row.key, digest, bad=bool(problems))
        problems += repeated
        says = dump_row(row)

        if problems or not isinstance(checked, Body):
            self.invalid += 1
            own = None if repeated else key
            return InvalidRow(row.number, row.line, own, row.target, row.job_id, problems, says)

        body, auto = checked
        return CheckedRow(row, key, row.key is not None, body, body_digest(body), auto, says)

    def _check(self, row: Row) -> Body | tuple[Problem, ...]:
        if row.target in self._unchecked:
            return Body(b"", _uses_auto(row))

        jobs = self._schemas.get(row.target)

        if jobs is None:
            known = ", ".join(sorted({*self._targets, *self._schemas, *self._unchecked}))
            message = (
                f"there is no target {show(row.target)!r}: leave it out, or name one of {known}"
            )
            fault = Fault("target", f"a target that is known: {known}", row.target, message)
            return self._rules.problems([fault], row.number, row.line)

        checked = self._check_by(jobs, row, self.warnings)

        if isinstance(checked, Body) or not (newer := self._ask_anew(row.target, jobs)):
            return checked

        return self._check_by(newer, row, None)

    def _check_by(
        self, jobs: Mapping[str, Schema], row: Row, warnings: Warnings | None
    ) -> Body | tuple[Problem, ...]:
        schema = jobs.get(row.job_id)

        if schema is None:
            return unknown_job(row, {**self._schemas, row.target: jobs}, self._rules.file)

        return schema.check(row, self._rules.file, warnings)

    def _ask_anew(self, target: str, jobs: Mapping[str, Schema]) -> Mapping[str, Schema] | None:
        """Return a target's newer jobs, before one of its rows is called invalid by older ones."""
        if self._renew is None or target in self._asked:
            return None

        self._asked.add(target)
        known = {job: schema.job for job, schema in jobs.items()}
        newer = self._renew(target)

        if newer is None or known == {job: schema.job for job, schema in newer.items()}:
            return None

        self.renewed.add(target)
        return newer

    def _check_feed(self, row: Row, key: str) -> tuple[Problem, ...]:
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
        fault = Fault(
            "", "one auto-value row for each job", f"a second one, after {other}", message
        )
        return self._rules.problems([fault], row.number, row.line)

    def _take_key(
        self, row: Row | InvalidRow, own: str | None, digest: bytes, *, bad: bool
    ) -> tuple[str, tuple[Problem, ...]]:
        """Return the row's key; where repeats are told at once, also what is wrong with it."""
        self._keys.append((row.number, row.line, digest, own, bad))

        if own is not None and not unicodedata.is_normalized("NFC", own):
            same = key_digest(unicodedata.normalize("NFC", own))
            self._execute("INSERT INTO spelled VALUES (?, ?, ?)", (row.number, row.line, same))

        key = digest.hex() if own is None else own

        if not self._is_immediate:
            return key, ()

        known = "SELECT count(*), min(line) FROM keys WHERE digest = ?"
        copies, first = self._execute(known, (digest,)).fetchone()
        self._store_keys()

        if not copies:
            return key, ()

        if own is None and self._allow_duplicates:
            return f"{key}{REPEAT_MARK}{copies + 1}", ()

        return key, self._note([_repeated(own, digest, first)], row.number, row.line)

    def _store_keys(self) -> None:
        with _sqlite_errors():
            self._table.executemany("INSERT INTO keys VALUES (?, ?, ?, ?, ?)", self._keys)

        self._keys.clear()

    def _execute(self, sql: str, parameters: tuple[object, ...] = ()) -> sqlite3.Cursor:
        with _sqlite_errors():
            return self._table.execute(sql, parameters)

    def _warn_of_spellings(self) -> None:
        times, line = self._execute(_SPELLED).fetchone()

        if times:
            message = "a key looks like another's and is spelled by other characters (NFC, NFD)"
            self.warnings.add("key", message, line, times)

    def _note(self, faults: list[Fault], number: int, line: int) -> tuple[Problem, ...]:
        problems = self._rules.problems(faults, number, line)
        self._keep(problems)
        return problems

    def _keep(self, problems: tuple[Problem, ...]) -> None:
        self.count += len(problems)
        self.problems += problems[: self._room]
        self._room = max(self._room - len(problems), 0)

        for problem in problems:
            known = self._groups.get(problem.group_key)

            if known is not None:
                self._groups[problem.group_key] = ProblemGroup(known.first, known.rows + 1)
            elif len(self._groups) < KEPT_PROBLEMS:
                self._groups[problem.group_key] = ProblemGroup(problem)


@contextmanager
def _sqlite_errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as exc:
        raise ManifestError(
            f"the temporary table of keys can't be written: {exc}",
            hint="make room in the temporary folder, or name another by TMPDIR",
        ) from exc


def _uses_auto(row: Row) -> bool:
    return any(
        (value.value if isinstance(value, JobRunParameterValue) else value) is AUTO
        for value in row.parameters.values()
    )


def _repeated(own: str | None, digest: bytes, line: int) -> Fault:
    if own is not None:
        message = f"key {show(own)!r} is that of line {line}: give this row another"
        return Fault("key", "a key of its own", own, message)

    message = (
        f"the row says the same as line {line}, and would start the run twice: remove it, or pass "
        "--allow-duplicates"
    )
    return Fault("", "a row that says something else", digest.hex(), message)
