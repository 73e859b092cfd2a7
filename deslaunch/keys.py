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

The shard of a key is a contract too, so that any version and any machine gives each row to the
same one of N shards: the first 64 bits of the SHA-256 of the key in UTF-8, as a big-endian
number, modulo N, plus 1. A key with ``~2`` is hashed as it stands.
"""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, Final, NamedTuple

import orjson

from deslaunch.model import AUTO, TypedValue
from deslaunch.sieve import Sieve

if TYPE_CHECKING:
    from collections.abc import Iterable

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
    text = orjson.dumps([row.target, row.job_id.lower(), sorted(_said_by(row))])
    return sha256(text).hexdigest()[:DIGEST_LENGTH]


def shard_of(key: str, count: int) -> int:
    """Return the number of the shard, 1 to ``count``, that a key belongs to.

    Args:
        key: a row's key, or its digest where it names none.
        count: how many shards there are, at least 1.
    """
    return int.from_bytes(sha256(key.encode()).digest()[:8], "big") % count + 1


def _said_by(row: Row) -> Iterable[tuple[str, str | bool | None]]:
    """Return each parameter's name with its text, None for null or True for auto."""
    parameters = row.parameters

    if is_all_text(parameters.values()):
        return parameters.items()  # type: ignore[return-value]  # it was just looked at

    return [(name, _said(value)) for name, value in parameters.items()]


def is_all_text(values: Iterable[ParameterValue]) -> bool:
    """Tell whether no value is null, automatic or typed."""
    try:
        "".join(values)  # type: ignore[arg-type]  # the quickest way to ask
    except TypeError:
        return False

    return True


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


Suspects = frozenset[int] | None
"""Hints of the rows that may share a key with another; None where any row may."""

NO_SUSPECTS: Final[frozenset[int]] = frozenset()

SEPARATOR: Final = "\0"
"""Stands between texts that are joined: no text of a row holds it."""

_HINTS: Final = 512
"""Hints that are sifted together, in less time."""

_HINT_BITS: Final = (1 << 64) - 1
_DIGEST: Final = re.compile("[0-9a-f]{32}")


def hint(row: Row, texts: str | None = None) -> int:
    """Return a number that rows of equal keys have in common, 1 to 2^64 - 1.

    Two rows without a key of their own share it where they say the same, two rows with one where
    it is the same. It costs a fifth of a digest; it means nothing in another process.

    Args:
        row: the row.
        texts: its values joined by :data:`SEPARATOR`, where all are known to be texts.
    """
    if row.key is not None:
        return hash(row.key) & _HINT_BITS or 1

    names = tuple(row.parameters)

    if texts is None or not _are_sorted(names):
        names, texts = _in_order(row)

    return hash((row.target, row.job_id, names, texts)) & _HINT_BITS or 1


@lru_cache(maxsize=1024)  # a manifest has many rows and few sets of columns
def _are_sorted(names: tuple[str, ...]) -> bool:
    return list(names) == sorted(names)


def _in_order(row: Row) -> tuple[tuple[str, ...], str]:
    """Return names and texts in the order of the names; what is no text, as no text can be."""
    said = sorted(_said_by(row))
    texts = (value if isinstance(value, str) else f"{SEPARATOR}{value}" for _, value in said)
    return tuple(name for name, _ in said), SEPARATOR.join(texts)


class FirstLook:
    """Finds out which rows of a batch may share a key, in 16 bytes a row."""

    def __init__(self) -> None:
        self._sieve = Sieve()
        self._hints: list[int] = []
        self._unkeyed = self._keyed_by_digest = False

    def __repr__(self) -> str:
        return f"<FirstLook at {len(self._sieve) + len(self._hints)} rows>"

    def see(self, row: Row, texts: str | None = None) -> None:
        """Look at a row, each of the batch once; ``texts`` as for :func:`hint`."""
        if row.key is None:
            self._unkeyed = True
        elif _DIGEST.fullmatch(row.key):
            self._keyed_by_digest = True

        self._hints.append(hint(row, texts))

        if len(self._hints) >= _HINTS:
            self._sift()

    def _sift(self) -> None:
        self._sieve.add_all(self._hints)
        self._hints.clear()

    @property
    def suspects(self) -> Suspects:
        """What :class:`KeyRing` needs to know of these rows.

        An explicit key may be another row's digest; no hint tells that.
        """
        if self._unkeyed and self._keyed_by_digest:
            return None

        self._sift()
        return frozenset(self._sieve.suspects)


class KeyRing:
    """Gives each row of one batch a key of its own, in manifest order.

    Holds one entry in memory for each row that may share its key.

    Args:
        allow_duplicates: rows that say exactly the same are all started.
        suspects: what a first look at the same rows found.
    """

    def __init__(self, *, allow_duplicates: bool, suspects: Suspects = None) -> None:
        self._allow_duplicates = allow_duplicates
        self._suspects = suspects
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

        if self.is_alone(row):
            return key

        if key not in self._first_lines:
            self._first_lines[key] = row.line
            return key

        if row.key is not None or not self._allow_duplicates:
            return Repeat(key, self._first_lines[key], explicit=row.key is not None)

        self._counts[key] = self._counts.get(key, 1) + 1
        return f"{key}{REPEAT_MARK}{self._counts[key]}"

    def is_alone(self, row: Row) -> bool:
        """Tell whether a row surely shares its key with no other."""
        suspects = self._suspects
        return suspects is not None and (not suspects or hint(row) not in suspects)
