r"""The identity of a row: the digest of what it says, and its key in the batch.

Pure. The digest's recipe is a contract: others recompute it to find a row in a ledger.

1. Take the array ``[target, jobId, parameters]``: ``jobId`` in lower case, ``parameters`` an
   array of ``[name, value]`` sorted by name, by code point. A value is its text as a string,
   ``null``, or ``true`` for the auto value. A declared type is left out, and so is all that a
   schema adds.
2. Write it as JSON in UTF-8 without white space. Only ``"``, ``\`` and the characters below
   U+0020 are escaped: ``\b \t \n \f \r``, the others as ``\u00`` and two lower-case hex
   digits.
3. Take the SHA-256, of it the first 128 bits, as 32 lower-case hex digits.

In Python, ``text = json.dumps(array, ensure_ascii=False, separators=(",", ":"))``, then
``hashlib.sha256(text.encode()).hexdigest()[:32]``.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Final, NamedTuple

import orjson

from deslaunch.model import AUTO, TypedValue

if TYPE_CHECKING:
    from deslaunch.model import ParameterValue, Row

DIGEST_LENGTH: Final = 32
"""Hex digits of a row's digest."""

REPEAT_MARK: Final = "~"
"""Stands between a repeated digest and its count; no explicit key may hold it."""


def row_digest(row: Row) -> str:
    """Return the digest of what a row says, 32 lower-case hex digits.

    Args:
        row: its number, line and explicit key have no part in the digest.

    Raises:
        TypeError: a text holds a lone surrogate; no row of a manifest does.
    """
    said = [[name, _said(value)] for name, value in sorted(row.parameters.items())]
    text = orjson.dumps([row.target, row.job_id.lower(), said])
    return sha256(text).hexdigest()[:DIGEST_LENGTH]


def _said(value: ParameterValue) -> str | bool | None:
    if isinstance(value, TypedValue):
        value = value.value

    return True if value is AUTO else value


class Repeat(NamedTuple):
    """A row whose key is taken, and that may not be started under another.

    Attributes:
        key: the key that both rows have.
        first_line: physical line of the row that took the key first.
        explicit: the manifest names the key itself, so allowing duplicates does not help.
    """

    key: str
    first_line: int
    explicit: bool


class KeyRing:
    """Gives each row of one batch a key of its own, in manifest order.

    Holds one entry a row in memory.

    Args:
        allow_duplicates: rows that say exactly the same are all started.
    """

    def __init__(self, *, allow_duplicates: bool) -> None:
        self._allow_duplicates = allow_duplicates
        self._first_lines: dict[str, int] = {}
        self._counts: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<KeyRing {len(self._first_lines)} keys, {len(self._counts)} repeated>"

    def claim(self, row: Row, digest: str) -> str | Repeat:
        """Return the row's key, or the repeat that it is.

        Args:
            row: each row of the batch once.
            digest: the row's digest.

        Returns:
            The explicit key; else the digest, followed by ``~2``, ``~3`` for the second and
            third row of the same digest where duplicates are allowed. A ``Repeat`` where they
            are not, and wherever an explicit key is taken already.
        """
        key = digest if row.key is None else row.key

        if key not in self._first_lines:
            self._first_lines[key] = row.line
            return key

        if row.key is not None or not self._allow_duplicates:
            return Repeat(key, self._first_lines[key], explicit=row.key is not None)

        self._counts[key] = self._counts.get(key, 1) + 1
        return f"{key}{REPEAT_MARK}{self._counts[key]}"
