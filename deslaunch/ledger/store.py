"""What a ledger asks of the database that it is in, and how the place of a ledger is written.

A place is a path, or a libpq URL and ``#batch``; ``#batch`` alone takes the URL from the variable
``DESLAUNCH_LEDGER``. A store speaks in named statements: those of ``queries.sql`` serve every
database, but for the ones that another needs in a form of its own.
"""

import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple, Self
from urllib.parse import unquote

from deslaunch import errors

VARIABLE: Final = "DESLAUNCH_LEDGER"

TELL_AFTER: Final = 5.0
"""Seconds after which a wait for the database is told."""

TEXT_LIMIT: Final = 4096
"""Characters that are kept of what DES or a person said."""

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


class Launcher(NamedTuple):
    """Who is at work on a batch.

    Attributes:
        pid: process; 0 where neither its lock nor the ledger tells.
        host: ``""`` where the ledger does not tell.
        since_ms: ms since 1970, or None.
        in_flight: its rows in flight; None where the ledger does not keep that by launcher.
    """

    pid: int
    host: str
    since_ms: int | None
    in_flight: int | None = None


class TryAgain(errors.LedgerWriteFailed):
    """A transaction must be run again from its begin, once :meth:`Store.recover` returned."""


class Store(ABC):
    """One connection to the database of a batch; made and used in one thread.

    Attributes:
        is_shared: several launchers may be at work on the batch.
        place: where the batch is, as it is printed: without symbolic links, or a password.
        batch_name: how the batch is called.
        warning: about where it lies, or ``""``; a launcher's only.
        is_launcher: it holds the lock that a launcher needs.
        session: number of the session that is at work, 0 before it begins.
        give_up_after: seconds that a transaction waits for the database.
        on_wait: called with a sentence, once a wait, after ``TELL_AFTER``.
    """

    is_shared: ClassVar[bool] = False
    statements: ClassVar[dict[str, str]]

    place: str
    batch_name: str
    warning: str = ""
    is_launcher: bool = False
    session: int = 0
    give_up_after: float = 30.0

    def __init__(self, place: str, batch_name: str) -> None:
        self.place = place
        self.batch_name = batch_name
        self.on_wait: Callable[[str], object] = lambda _text: None

    @classmethod
    @abstractmethod
    def create(cls, place: str) -> Self:
        """Begin a new batch, in a transaction that :meth:`publish` ends."""

    @classmethod
    @abstractmethod
    def take(cls, place: str, *, joins: bool, launches: bool) -> Self:
        """Open a batch for writing, until :meth:`close`.

        Args:
            place: of the batch.
            joins: beside other launchers.
            launches: to send rows; else it only records what becomes of runs.
        """

    @classmethod
    @abstractmethod
    def read(cls, place: str) -> Self:
        """Open a batch for reading, at any time."""

    @abstractmethod
    def publish(self) -> None:
        """Make a new batch durable, whole, and go on as its launcher."""

    # Statements.

    @abstractmethod
    def fetch(self, query: str, parameters: Any = ()) -> list[Any]:
        """Return all rows of a named query."""

    @abstractmethod
    def run(self, query: str, parameters: Any = ()) -> int:
        """Run a named query; return how many rows it changed."""

    @abstractmethod
    def many(self, query: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run a named query once for each row of parameters."""

    def load(self, query: str, parameters: Any = ()) -> Any:
        """Return the JSON value that a named query gives."""
        import orjson  # noqa: PLC0415  # not needed for --help

        [(text,)] = self.fetch(query, parameters)
        return orjson.loads(text)

    @abstractmethod
    def transaction(self, *, is_kept: bool = True) -> AbstractContextManager[None]:
        """Begin, and commit at the end of the block; what raises rolls back.

        Where it is not kept, it is rolled back too: the block was a look at what would be.

        Raises:
            TryAgain: it may or may not be durable; recover, and run all of it again.
            LedgerWriteFailed: it may or may not be durable.
        """

    def recover(self, error: TryAgain) -> None:
        """Make the store fit for the next transaction, after one that ended with ``error``.

        Raises:
            LedgerWriteFailed: transactions have been failing for ``give_up_after`` seconds.
        """
        raise NotImplementedError

    def give_up(self, *, at_once: bool = False) -> None:  # noqa: ARG002
        """Wait for the database no longer; may be called from any thread.

        Args:
            at_once: try to reach it once more at most; else once for each transaction.
        """
        self.give_up_after = 0.0

    @contextmanager
    def writing(self) -> Iterator["Store"]:
        """Give a store that may write, also beside launchers."""
        yield self

    def end_turn(self, in_flight: int) -> None:
        """Note, in a turn's transaction, how many rows are in flight once it is durable."""
        raise NotImplementedError

    @abstractmethod
    def owners(self, told: Sequence[tuple[str, int]]) -> dict[str, tuple[int, str]]:
        """Return whose runs are told now of another row: by jobRunId, that row and its key.

        Args:
            told: jobRunIds in lower case, each with the row that it is told of.
        """

    # Sessions.

    def is_alone(self) -> bool:
        """Return True if no other launcher's session is at work."""
        return True

    @abstractmethod
    def begin_session(self, told: Sequence[Any]) -> None:
        """Write a new session, of which ``told`` is known, and set ``session``."""

    def own_sessions(self) -> Sequence[int]:
        """Return the numbers under which this launcher wrote intents."""
        return [self.session]

    def lose_sessions(self, now: int, *, at_once: bool = True) -> Sequence[int]:  # noqa: ARG002
        """Note, in a transaction, which sessions are dead whose end was not noted; return them.

        Args:
            now: ms since 1970.
            at_once: believe it when first seen; else when seen again some time later.
        """
        return []

    @abstractmethod
    def launchers(self) -> list[Launcher]:
        """Return who else is at work."""

    # The database itself.

    def wall(self) -> float:
        """Return the database's own time, seconds since 1970; where it has none, this machine's."""
        return time.time()

    @staticmethod
    def path_value(path: str) -> str | bytes:
        """Return a path, which may be no UTF-8, as the database keeps it."""
        return os.fsencode(path)

    def is_in_place(self) -> bool:
        """Return True if the place still names the database that was opened."""
        return True

    def rescue(self) -> str:
        """Copy what there is to another place; return that."""
        raise errors.LedgerError(f"{self.place}: can't be copied from here")

    @abstractmethod
    def close(self) -> str:
        """Close; return ``""``, or a sentence about what stays."""


def load_statements(name: str) -> dict[str, str]:
    """Return the statements of a file of this package by their names, without comments."""
    text = re.sub("(?m)--(?! name: ).*", "", (Path(__file__).parent / name).read_text("utf-8"))
    named = re.split(r"(?m)^-- name: (\w+)\n", text)
    return dict(zip(named[1::2], named[2::2], strict=True))


def as_json(value: Any) -> str:
    """Return JSON as statements take it; texts must be such as ``storable`` gives them."""
    import orjson  # noqa: PLC0415  # not needed for --help

    return orjson.dumps(value).decode()


def storable(text: str) -> str:
    """Return a text that a database takes: no lone surrogates or NULs, at most 4,096 characters."""
    text = text[:TEXT_LIMIT].replace("\0", "\\0")
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


# Places.


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
    """Refuse a place that is neither a path nor a URL as it must be; it is not repeated.

    Raises:
        ConfigurationError: a password could stand in it, where nobody would look for one.
    """
    url = place.partition("#")[0]

    if not (_PARTS.fullmatch(url) if _URL.match(place) else _MISTYPED.match(place) is None):
        raise errors.ConfigurationError(
            f"the ledger, by LEDGER or {VARIABLE}, is neither a path nor a URL that libpq takes: "
            "expected postgresql://user@host:port/database#NAME",
            hint="in a name or password write @ : / ? # % as %40 %3A %2F %3F %23 %25; "
            "a path with such signs: ./PATH",
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
            f"{place}: names a batch, and no database: {VARIABLE} is not set to a URL",
            hint=f"set {VARIABLE} to postgresql://user@host/database, or write URL{place}",
        )

    refuse_mistyped(url or known)

    for name in (batch, *(() if url else [known_batch])):
        if name and not _NAME.fullmatch(name):
            # With "#" in a password, its end would stand here.
            told = "what follows the URL's first #" if re.search("[@:/?]", name) else repr(name)
            raise errors.ConfigurationError(
                f"{told} is no name of a batch: expected 1 to 100 letters, digits, '.', '_' or '-'",
                hint="write it behind the URL: postgresql://user@host/database#night; # in a "
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
        raise errors.ConfigurationError(
            f"{found.database}: names a database, and no batch of it",
            hint="add #NAME; its batches: deslaunch status with the URL alone",
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
    """Return a URL without what is secret."""
    found = _PARTS.fullmatch(url)

    if found is None:  # a batch's name alone
        return url

    user = "" if found["user"] is None else f"{found['user']}@"
    said = (found["query"] or "").split("&")
    query = "&".join(one for one in said if not _SECRET.search(unquote(one.partition("=")[0])))
    return f"{url.partition('//')[0]}//{user}{found['rest']}{f'?{query}' if query else ''}"


def name_of(place: str) -> str:
    """Return what files about a batch are named after: ``night`` for ``night.ledger.db``."""
    return place.partition("#")[2] if is_shared(place) else place.removesuffix(".ledger.db")
