"""The table's rows as compact text that a page can hold and its script can read. Pure.

The rows are kept by column, as what repeats least: words once and their numbers, numbers as
differences, ids as 16 bytes. All that is compressed by gzip and written in base 85, with ``,.:``
for ``<&>``, so that it may stand in a page as it is.
"""

from __future__ import annotations

import base64
import gzip
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

if TYPE_CHECKING:
    from collections.abc import Sequence

ENCODED_LIMIT: Final = 4_500_000
"""Characters that the rows may take, so that a page stays below 5 MB."""

_ID: Final = re.compile(r"[0-9a-f]{32}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_DASHED: Final = 36
_ID_SIZE: Final = 16
_ZERO: Final = bytes(_ID_SIZE)
_PIECE: Final = 4 << 14  # whole groups of four bytes
_TO_SAFE: Final = bytes.maketrans(b"<&>", b",.:")


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the table.

    Attributes:
        name: what tells it from the others.
        label: its heading.
        kind: ``text``, ``number``, or ``time`` (milliseconds since 1970).
        values: one for each row; None where there is nothing to say.
    """

    name: str
    label: str
    kind: str
    values: Sequence[Any]


def encoded(columns: Sequence[Column], *, limit: int = ENCODED_LIMIT) -> tuple[str, int]:
    """Return as many of the first rows as fit, as text, and how many these are.

    Args:
        columns: at least one.
        limit: characters that the text may have.
    """
    rows = len(columns[0].values)

    while True:
        text = _text(columns, rows)

        if len(text) <= limit or not rows:
            return text, rows

        rows = int(rows * limit / len(text) * 0.98)


def _text(columns: Sequence[Column], rows: int) -> str:
    said, ids = [], []

    for column in columns:
        packed, blob = _packed(column, column.values[:rows])
        said.append({"name": column.name, "label": column.label, "kind": column.kind, **packed})
        ids.append(blob)

    head = orjson.dumps({"rows": rows, "columns": said})
    data = b"".join((len(head).to_bytes(4, "big"), head, *ids))
    return _base85(gzip.compress(data, 9, mtime=0))


def _base85(data: bytes) -> str:
    """Return data in base 85, piece by piece: the encoder takes many times a piece's memory."""
    pieces = (base64.b85encode(data[at : at + _PIECE]) for at in range(0, len(data), _PIECE))
    return b"".join(pieces).translate(_TO_SAFE).decode()


def _packed(column: Column, values: Sequence[Any]) -> tuple[dict[str, Any], bytes]:
    if column.kind != "text":
        return {"differences": _differences(values)}, b""

    form = _form_of_ids(values)

    if form:
        return {"ids": form}, b"".join(_id(value) for value in values)

    words = {value: number for number, value in enumerate(dict.fromkeys(values))}

    if len(words) * 2 > len(values):
        return {"texts": list(values)}, b""

    return {"words": list(words), "numbers": [words[value] for value in values]}, b""


def _differences(values: Sequence[int | None]) -> list[int | None]:
    """Return each value less the one before; what is missing stays so."""
    found: list[int | None] = []
    last = 0

    for value in values:
        found.append(None if value is None else value - last)
        last = last if value is None else value

    return found


def _form_of_ids(values: Sequence[str | None]) -> str:
    """Return how all ids are written, ``dashed`` or ``plain``, or ``""``: they are no ids."""
    lengths = {len(value) for value in values if value is not None}

    if len(lengths) != 1 or not all(value is None or _is_id(value) for value in values):
        return ""

    return "dashed" if lengths == {_DASHED} else "plain"


def _is_id(value: str) -> bool:
    """Tell whether 16 bytes hold a text; those of zeros stand for a missing one."""
    return _ID.fullmatch(value) is not None and _id(value) != _ZERO


def _id(value: str | None) -> bytes:
    return _ZERO if value is None else bytes.fromhex(value.replace("-", ""))
