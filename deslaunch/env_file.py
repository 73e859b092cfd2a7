r"""A file of environment variables: strict, so that no secret is cut or changed in silence.

A line is blank, a comment that begins with ``#``, or ``NAME=value``, with ``export`` before it
or not. A value in single quotes is taken as it is; in double quotes, ``\"`` and ``\\`` stand
for what they escape; without quotes it goes to the line's end and may hold neither quotes nor
backslashes nor a ``#`` behind a blank, since readers of such files differ on them. Nothing is
expanded, and a ``$`` is one.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from deslaunch.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

_LINE: Final = re.compile(
    r"""\s*(?:export\s+)?(?P<name>[A-Za-z_]\w*)=
    (?:(?:'(?P<single>[^']*)'|"(?P<double>(?:[^"\\]|\\["\\])*)")(?:\s+\#.*|\s*)
      |(?P<bare>(?!\s|\#)(?:(?!\s\#)[^'"\\])*|)
    )""",
    re.VERBOSE | re.ASCII,
)
_COMMENT: Final = re.compile(r"\s*(?:#.*)?")


def read_env_file(path: Path) -> dict[str, str]:
    """Return the variables of a file; the last of two of one name wins.

    Raises:
        ConfigurationError: the file can't be read, or a line of it is none of the above; the
            message names the line and shows nothing of it.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as exc:
        raise ConfigurationError(
            f"the file of variables {path} can't be read: {exc.strerror}",
            hint="check what --env-file names",
        ) from exc
    except UnicodeDecodeError:  # not chained: it holds the whole file
        raise ConfigurationError(
            f"the file of variables {path} is not in UTF-8", hint="save it as UTF-8"
        ) from None

    found: dict[str, str] = {}

    for number, line in enumerate(text.split("\n"), 1):
        if _COMMENT.fullmatch(line) is None:
            name, value = _variable(line.rstrip("\r"), f"{path}:{number}")
            found[name] = value

    return found


def _variable(line: str, place: str) -> tuple[str, str]:
    match = _LINE.fullmatch(line)

    if match is None or "\0" in line:
        raise ConfigurationError(
            f"{place}: expected NAME=value, with quotes around a value that holds quotes, "
            "backslashes or ' #'",
            hint="put the value in single quotes, and nothing but a comment behind them",
        )

    if match["double"] is not None:
        return match["name"], re.sub(r"\\(.)", r"\1", match["double"])

    return match["name"], match["single"] or (match["bare"] or "").rstrip()
