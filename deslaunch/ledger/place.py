"""Places of ledgers: a path, or a libpq URL and ``#batch``; and the user's folders.

``#batch`` alone takes the URL from the variable ``DESLAUNCH_LEDGER``.
"""

import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import unquote

from deslaunch import errors
from deslaunch.model import printed

VARIABLE: Final = "DESLAUNCH_LEDGER"

_URL: Final = re.compile(r"postgres(ql)?://")
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,100}")

# As libpq reads it: what is before the first "@" is the user's, unless "/" comes first.
_HOST: Final = r"(?:\[[^]]*\]|[^]/@?:,[]*)(?::\d*)?"
_PARTS: Final = re.compile(
    r"postgres(?:ql)?://(?:(?P<user>[^/@:]*)(?P<password>:[^/@]*)?@)?"
    rf"(?P<rest>{_HOST}(?:,{_HOST})*(?:/[^@?]*)?)(?:\?(?P<query>.*))?"
)
_SECRET: Final = re.compile(r"password|secret|scram_.*_key", re.IGNORECASE)
_MISTYPED: Final = re.compile(
    r"[a-z][a-z0-9+.-]*:/|postgres(ql)?\b.*@|.*:.*@.*#|.*password\s*=", re.IGNORECASE
)


class SharedPlace(NamedTuple):
    """A batch in a database that several machines reach.

    Attributes:
        url: for libpq; it may hold a password.
        batch: the batch's name; ``""`` where none was named.
        shown: the place as it is printed: a word that works on a command line, where the
            variable is set if it begins with ``#``.
    """

    url: str
    batch: str
    shown: str

    @property
    def database(self) -> str:
        """The database as it is printed."""
        return self.shown.partition("#")[0] or VARIABLE


def is_shared(place: str) -> bool:
    """Return True if a place is a batch in a database, not a path."""
    return place.startswith("#") or _URL.match(place) is not None


def refuse_mistyped(place: str) -> None:
    """Refuse a malformed place; the error does not repeat it, since it may hold a password.

    Raises:
        ConfigurationError: a password could stand in it, where nobody would look for one.
    """
    url = place.partition("#")[0]

    if not (_PARTS.fullmatch(url) if _URL.match(place) else _MISTYPED.match(place) is None):
        raise errors.ConfigurationError(
            f"the ledger (LEDGER or {VARIABLE}) is neither a path nor a URL that libpq accepts: "
            "expected postgresql://user@host:port/database#NAME",
            hint="in a name or password write @ : / ? # % as %40 %3A %2F %3F %23 %25; "
            "write a path with these characters as ./PATH",
        )


def parse_place(place: str) -> SharedPlace:
    """Return what a URL with ``#batch``, or ``#batch`` alone, means.

    Raises:
        ConfigurationError: there is no URL, or the batch's name is none.
    """
    url, _, batch = place.partition("#")
    known, _, known_batch = os.environ.get(VARIABLE, "").partition("#")

    if not url and not _URL.match(known):
        raise errors.ConfigurationError(
            f"{place}: names a batch without a database: {VARIABLE} is not set to a URL",
            hint=f"set {VARIABLE} to postgresql://user@host/database, or write URL{place}",
        )

    refuse_mistyped(url or known)

    for name in (batch, *(() if url else [known_batch])):
        if name and not _NAME.fullmatch(name):
            # With "#" in a password, its end would stand here.
            told = "what follows the URL's first #" if re.search("[@:/?]", name) else repr(name)
            raise errors.ConfigurationError(
                f"{told} is not a batch name: expected 1 to 100 letters, digits, '.', '_' or '-'",
                hint="write it after the URL: postgresql://user@host/database#night; # in a "
                "password as %23",
            )

    hides = not url or (url == known and has_password(url))
    return SharedPlace(url or known, batch, f"#{batch}" if hides else f"{_bare(url)}#{batch}")


def parse_batch(place: str) -> SharedPlace:
    """Return what :func:`parse_place` does, of a place that must name a batch.

    Raises:
        ConfigurationError: as there; or it names none.
    """
    found = parse_place(place)

    if not found.batch:
        url = found.shown.partition("#")[0]
        raise errors.ConfigurationError(
            f"{found.database}: names a database without a batch",
            hint=f"add #NAME; see its batches: {printed('status', *filter(None, [url]))}",
        )

    return found


def has_password(url: str) -> bool:
    """Return True if a URL holds a password, or another secret.

    Raises:
        ConfigurationError: it is no URL; a password could stand anywhere in it.
    """
    refuse_mistyped(url)
    url = url.partition("#")[0].removesuffix("?")
    return _bare(url) != url


def _bare(url: str) -> str:
    """Return a URL without its secrets."""
    found = _PARTS.fullmatch(url)

    if found is None:  # a batch's name alone
        return url

    user = "" if found["user"] is None else f"{found['user']}@"
    said = (found["query"] or "").split("&")
    query = "&".join(one for one in said if not _SECRET.search(unquote(one.partition("=")[0])))
    return f"{url.partition('//')[0]}//{user}{found['rest']}{f'?{query}' if query else ''}"


def noted_place(place: str) -> str:
    """Return a place in a form that does not depend on the environment, without a password."""
    if not is_shared(place):
        return place

    found = parse_place(place)
    return f"{_bare(found.url)}#{found.batch}"


def usable_place(noted: str) -> str:
    """Return a place of :func:`noted_place` in the form that uses the variable's password."""
    known = os.environ.get(VARIABLE, "").partition("#")[0]
    url, _, batch = noted.partition("#")
    return f"#{batch}" if is_shared(noted) and known and _bare(known) == url else noted


def name_of(place: str) -> str:
    """Return the stem for names of files about a batch: ``night`` for ``night.ledger.db``."""
    return place.partition("#")[2] if is_shared(place) else place.removesuffix(".ledger.db")


def user_folder(variable: str, default: Callable[[str], Path]) -> Path | None:
    """Return a folder of the user's: the one that a variable names, or the system's place for it.

    Returns:
        None where the user has no home.
    """
    if named := os.environ.get(variable):
        return Path(named)

    with suppress(RuntimeError, KeyError):  # platformdirs asks for a home that is not there
        path = default("deslaunch")
        return path if path.is_absolute() else None

    return None
