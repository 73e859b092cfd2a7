"""From rows to starts: keys, schemas, and what the rows of one batch must not share.

Pure. The same intake serves a manifest's validation, its second reading, and the rows that a
library's caller hands over one by one: so what was validated is what is sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from deslaunch.keys import NO_SUSPECTS, KeyRing, Repeat, is_all_text, row_digest
from deslaunch.model import Row, RowProblem, StartRequest, shown

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from deslaunch.keys import FirstLook, Suspects
    from deslaunch.schema import Schemas

Problems = tuple[RowProblem, ...]


class InvalidRow(NamedTuple):
    """A row that can't be started.

    Attributes:
        key: its key, or None where it has none of its own.
        number: data row, from 1; 0 where the problem precedes all rows.
        line: physical line, from 1.
        problems: why, at least one.
        row: the row itself, or None where it could not be read.
        by_schema: a schema is among the reasons; with a fresher one the row may be valid.
    """

    key: str | None
    number: int
    line: int
    problems: Problems
    row: Row | None = None
    by_schema: bool = False


class Intake:
    """Takes in the rows of one batch, each once and in order.

    Args:
        schemas: the jobs of all targets.
        file: the manifest as it was named, for problems.
        targets: what rows may name.
        left_out: those of them whose jobs are not known. Their rows are not checked, and give
            starts without a body: such a target must have stopped before it is sent to.
        allow_duplicates: rows that say exactly the same are all started.
        allow_repeated_auto: a job's feed may be moved on by several rows of the batch.
        suspects: rows that may share their key, as a first look at the same rows found.
    """

    def __init__(
        self,
        schemas: Schemas,
        *,
        file: str,
        targets: Collection[str],
        left_out: Collection[str] = (),
        allow_duplicates: bool,
        allow_repeated_auto: bool,
        suspects: Suspects = None,
    ) -> None:
        self._schemas = schemas
        self._file = file
        self._targets = targets
        self._left_out = left_out
        self._allow_repeated_auto = allow_repeated_auto
        self._suspects = suspects
        self._ring = KeyRing(allow_duplicates=allow_duplicates, suspects=suspects)
        self._auto_lines: dict[tuple[str, str], int] = {}

    @property
    def sees_no_repeats(self) -> bool:
        """No row can be found to share its key."""
        return self._suspects == NO_SUSPECTS

    def check(self, items: Iterable[Row | Problems], look: FirstLook) -> Iterator[InvalidRow]:
        """Yield the rows that can't be started: what :meth:`take` finds, in less time.

        Only for an intake that sees no repeats.

        Args:
            items: the next rows.
            look: sees each of them too.
        """
        find = self._schemas.find

        for item in items:
            texts = None

            if isinstance(item, Row):
                schema = find(item.target, item.job_id)
                texts = None if schema is None else schema.plain_texts(item.parameters)
                look.see(item, texts)

            if texts is None:
                taken = self.take(item)

                if isinstance(taken, InvalidRow):
                    yield taken

    def take(self, item: Row | Problems) -> StartRequest | InvalidRow:
        """Return the start that a row asks for, or why there is none.

        Args:
            item: a row as it was read, or the problems for which it could not be read.
        """
        if not isinstance(item, Row):
            return InvalidRow(None, item[0].row, item[0].line, item)

        digest = row_digest(item)
        key = self._ring.claim(item, digest)

        if isinstance(key, Repeat):
            return self._repeated(item, key, digest)

        return self._checked(item, key, digest)

    def pass_by(self, item: Row | Problems) -> None:
        """Take note of a row that another launcher starts, for those that follow it.

        One of them may say the same, or use an auto value of the same job.

        Args:
            item: the next row.
        """
        if isinstance(item, Row) and not (self._ring.is_alone(item) and self._uses_no_feed(item)):
            self.take(item)

    def _uses_no_feed(self, row: Row) -> bool:
        return self._allow_repeated_auto or is_all_text(row.parameters.values())

    def again(self, invalid: InvalidRow) -> StartRequest | InvalidRow:
        """Check a row once more, after its target's schema was fetched anew."""
        if invalid.row is None or invalid.key is None:
            return invalid

        return self._checked(invalid.row, invalid.key, row_digest(invalid.row))

    def _checked(self, row: Row, key: str, digest: str) -> StartRequest | InvalidRow:
        request = self._request(row, key, digest)

        if not isinstance(request, StartRequest):
            return self._unfit(row, key, request)

        if request.auto and not self._allow_repeated_auto:
            first = self._auto_lines.setdefault((row.target, row.job_id), row.line)

            if first != row.line:
                return InvalidRow(key, row.number, row.line, (self._race(row, first),), row)

        return request

    def _request(self, row: Row, key: str, digest: str) -> StartRequest | Problems:
        if row.target in self._left_out:
            return _unchecked(row, key, digest)

        schema = self._schemas.find(row.target, row.job_id)

        if schema is None and not self._is_target(row.target):
            return (self._target_problem(row),)

        if schema is None:
            return (self._schemas.unknown_job(row, file=self._file),)

        return schema.request(row, key=key, digest=digest, file=self._file)

    def _unfit(self, row: Row, key: str | None, problems: Problems) -> InvalidRow:
        by_schema = self._is_target(row.target)
        return InvalidRow(key, row.number, row.line, problems, row, by_schema=by_schema)

    def _is_target(self, target: str) -> bool:
        return target in self._targets

    def _repeated(self, row: Row, repeat: Repeat, digest: str) -> InvalidRow:
        """Report a repeat together with whatever else is wrong with it."""
        checked = self._request(row, repeat.key, digest)
        problem = self._repeat_problem(row, repeat)

        if isinstance(checked, StartRequest):
            return InvalidRow(None, row.number, row.line, (problem,), row)

        return self._unfit(row, None, (problem, *checked))

    def _repeat_problem(self, row: Row, repeat: Repeat) -> RowProblem:
        if repeat.explicit:
            expected = "a key of its own"
            message = (
                f"key {repeat.key!r} is that of line {repeat.first_line}: give this row another"
            )
        else:
            expected = "a row that says something else"
            message = (
                f"the row says the same as line {repeat.first_line}, and would start the run "
                "twice: remove it, or pass --allow-duplicates"
            )

        column = "key" if repeat.explicit else ""
        return RowProblem(self._file, row.line, row.number, column, expected, repeat.key, message)

    def _target_problem(self, row: Row) -> RowProblem:
        known = ", ".join(sorted(self._targets))
        return RowProblem(
            self._file,
            row.line,
            row.number,
            "target",
            f"a target that is known: {known}",
            shown(row.target),
            f"there is no target {shown(row.target)!r}: leave it out, or name one of {known}",
        )

    def _race(self, row: Row, first: int) -> RowProblem:
        return RowProblem(
            self._file,
            row.line,
            row.number,
            "",
            "one auto-value row for each job",
            f"a second one, after line {first}",
            f"line {first} uses an auto value of this job too, and the two runs would race for "
            "the same data: put them into separate batches, or pass --allow-repeated-auto",
        )


def _unchecked(row: Row, key: str, digest: str) -> StartRequest:
    return StartRequest(
        key, row.number, row.line, row.target, row.job_id, digest, body=b"", auto=False
    )
