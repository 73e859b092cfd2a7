"""How the report says things: hostile text made visible, times and durations in words. Pure."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime
from typing import Final

_PICTURES: Final = 0x2400
_FIRST_PRINTABLE: Final = 0x20
_DELETE: Final = 0x7F
_UNSEEN: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})

_SECOND: Final = 1_000
_MINUTE: Final = 60 * _SECOND
_HOUR: Final = 60 * _MINUTE
_DAY: Final = 24 * _HOUR


def shown(text: str) -> str:
    """Return text with everything visible that would be invisible, or turn the text round.

    NUL becomes its picture ``␀``, a right-to-left override ``⟨U+202E⟩``.
    """
    if text.isascii() and text.isprintable():
        return text

    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    code = ord(character)

    if code < _FIRST_PRINTABLE:
        return chr(_PICTURES + code)

    if code == _DELETE:
        return "\N{SYMBOL FOR DELETE}"

    unseen = unicodedata.category(character) in _UNSEEN
    return f"⟨U+{code:04X}⟩" if unseen else character


def cut(text: str, limit: int) -> str:
    """Return the first ``limit`` characters of a text; an ellipsis tells of the others."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def duration(ms: float) -> str:
    """Return a duration in at most two units: ``23 ms``, ``1.2 s``, ``4 min 7 s``."""
    if ms < _SECOND:
        return f"{ms:.0f} ms"

    if ms < _MINUTE:
        return f"{ms / _SECOND:.1f} s" if ms % _SECOND else f"{ms / _SECOND:.0f} s"

    return _in_two_units(ms)


def _in_two_units(ms: float) -> str:
    for unit, name, part, part_name in (
        (_DAY, "d", _HOUR, "h"),
        (_HOUR, "h", _MINUTE, "min"),
        (_MINUTE, "min", _SECOND, "s"),
    ):
        if ms >= unit:
            whole, rest = int(ms // unit), int(ms % unit // part)
            return f"{whole:,} {name} {rest} {part_name}" if rest else f"{whole:,} {name}"

    raise AssertionError("shorter than a minute")


def time_of(ms: int) -> datetime:
    """Return the time that lies ``ms`` milliseconds after 1970 began, in UTC."""
    return datetime.fromtimestamp(ms // 1000, UTC).replace(microsecond=ms % 1000 * 1000)


def utc_text(utc: str | None) -> str:
    """Return a time of the ledger as a person reads it, to the second: UTC goes unsaid."""
    return "" if utc is None else utc[:19].replace("T", " ")


def percent(part: float, whole: float) -> str:
    """Return a share; what is there is never shown as nothing, nor what lacks as all."""
    if not whole or not part:
        return "0 %"

    share = 100 * part / whole

    if share < 0.1:  # noqa: PLR2004  # a tenth is the last digit that is shown
        return "<0.1 %"

    if part < whole and share > 99.9:  # noqa: PLR2004  # likewise
        return ">99.9 %"

    return f"{share:.1f} %".replace(".0 %", " %")
