"""Settings: what tunes a launch, what it consents to, and where DES is.

Defaults < configuration file < environment < arguments. Values are checked here, once, so that
everything below may rely on them.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypedDict

from deslaunch.errors import ConfigurationError, CredentialsRefused
from deslaunch.health import ErrorLimit
from deslaunch.model import DEFAULT_TARGET
from deslaunch.shards import Shard
from deslaunch.wire import AUTH_URL

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from deslaunch.model import Format

MAX_CONCURRENCY: Final = 1_024
MAX_HOURS: Final = 1_000_000  # more than a century; a timedelta overflows at 24 billion


class LaunchOptions(TypedDict, total=False):
    """The keyword arguments of ``launch``, ``resume`` and ``open_batch``.

    They have the names and defaults of the command line's options; :class:`Settings` says what
    each means.
    """

    concurrency: int
    rate: float | None
    limit: int | None
    max_attempts: int
    max_wait: float
    give_up_after: float
    drain_timeout: float | None
    max_errors: int | str
    retry_5xx: Literal["all", "none"] | None
    retry_rejected: bool
    retry_unknown: bool
    accept_new_rows: bool
    skip_invalid: bool
    allow_duplicates: bool
    allow_repeated_auto: bool
    allow_new_origin: bool
    format: Format | None
    job_id: str | None
    target: str | None
    shard: str | None
    schema_max_age: float


@dataclass(frozen=True, slots=True)
class Settings:
    """What one session is told.

    Attributes:
        concurrency: slots: starts in flight at most, 1 to 1,024.
        rate: starts a second at most, above 0; None for no limit.
        limit: rows that the session starts at most, at least 1; None for all. The others stay
            pending.
        max_attempts: 5XX answers that a row may get in one session, at least 1.
        max_wait: cap of a computed wait, seconds, above 0.
        give_up_after: seconds that a target may stay paused, above 0.
        drain_timeout: seconds that rows in flight get once the launch is told to end, above
            0; None for the time that one attempt gets.
        max_errors: rows of a target that may end without a run before it stops: a number, or a
            share such as ``"50%"`` once 200 rows have ended.
        retry_5xx: ``"all"``: 504 and 524 are sent again like other 5XX; ``"none"``: every 5XX
            makes its row unknown; None: 504 and 524 do.
        retry_rejected: send again what DES refused, unchanged.
        retry_unknown: send again what may have been started: it may run twice.
        accept_new_rows: new rows are no changed forms of rows that are gone.
        skip_invalid: launch the valid rows although others are not.
        allow_duplicates: start rows that say exactly the same, each.
        allow_repeated_auto: start several auto-value rows of one job.
        allow_new_origin: send the rest of a batch to another base URL than before.
        format: the manifest's, where its name does not tell.
        job_id: GUID for rows that name no job.
        target: target for rows that name none.
        shard: ``"I/N"``: start only the rows whose key belongs to the I-th of N shards; None
            for all.
        schema_max_age: hours that cached JobRunParameters may be used, 0 to 1,000,000.

    Raises:
        ConfigurationError: a value is out of its range.
    """

    concurrency: int = 16
    rate: float | None = None
    limit: int | None = None
    max_attempts: int = 5
    max_wait: float = 60.0
    give_up_after: float = 900.0
    drain_timeout: float | None = None
    max_errors: int | str = "50%"
    retry_5xx: Literal["all", "none"] | None = None
    retry_rejected: bool = False
    retry_unknown: bool = False
    accept_new_rows: bool = False
    skip_invalid: bool = False
    allow_duplicates: bool = False
    allow_repeated_auto: bool = False
    allow_new_origin: bool = False
    format: Format | None = None
    job_id: str | None = None
    target: str | None = None
    shard: str | None = None
    schema_max_age: float = 24.0

    def __post_init__(self) -> None:
        ErrorLimit.parse(str(self.max_errors))

        if self.shard is not None:
            Shard.parse(self.shard)

        if self.job_id is not None:
            object.__setattr__(self, "job_id", self.job_id.lower())

        for name, (holds, expected) in _RANGES.items():
            value = getattr(self, name)

            if value is not None and not holds(value):
                option = f"--{name.replace('_', '-')}"
                raise ConfigurationError(
                    f"{option} takes {expected}, got {value}", hint=_OF_OPTIONS
                )

        for name, choices in _CHOICES.items():
            value = getattr(self, name)

            if value is not None and value not in choices:
                option = f"--{name.replace('_', '-')}"
                taken = " or ".join(choices)
                raise ConfigurationError(f"{option} takes {taken}, got {value!r}", hint=_OF_OPTIONS)

    @property
    def error_limit(self) -> ErrorLimit:
        """What ``max_errors`` means."""
        return ErrorLimit.parse(str(self.max_errors))

    @property
    def of_shard(self) -> Shard | None:
        """What ``shard`` means."""
        return None if self.shard is None else Shard.parse(self.shard)

    @property
    def allow(self) -> list[str]:
        """The allowances that belong to a batch for good, as its header names them."""
        allowed = {"duplicates": self.allow_duplicates, "repeatedAuto": self.allow_repeated_auto}
        return [name for name, consent in allowed.items() if consent]

    def tuning(self) -> dict[str, object]:
        """Return what a session's record says of its options."""
        return {
            _camel(field.name): getattr(self, field.name)
            for field in fields(self)
            if field.name not in _OF_THE_BATCH
        }


_OF_THE_BATCH: Final = frozenset(
    {
        "format",
        "job_id",
        "target",
        "shard",
        "skip_invalid",
        "allow_duplicates",
        "allow_repeated_auto",
    }
)

_OF_OPTIONS: Final = "'deslaunch run --help' tells what each option takes"

_RANGES: Final[Mapping[str, tuple[Callable[[float], bool], str]]] = {
    "concurrency": (
        lambda value: value in range(1, MAX_CONCURRENCY + 1),
        f"a number from 1 to {MAX_CONCURRENCY:,}",
    ),
    "rate": (lambda value: value > 0, "starts a second, above 0"),
    "limit": (lambda value: value >= 1, "a number of at least 1"),
    "max_attempts": (lambda value: value >= 1, "a number of at least 1"),
    "max_wait": (lambda value: value > 0, "seconds, above 0"),
    "give_up_after": (lambda value: value > 0, "seconds, above 0"),
    "drain_timeout": (lambda value: value > 0, "seconds, above 0"),
    "schema_max_age": (lambda value: 0 <= value <= MAX_HOURS, f"hours, 0 to {MAX_HOURS:,}"),
}

_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "retry_5xx": ("all", "none"),
    "format": ("jsonl", "csv"),
}


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


@dataclass(frozen=True, slots=True)
class Secret:
    """Where a text is that must not be shown: in a variable, or else in a file.

    Attributes:
        variable: name of an environment variable.
        file: path of a file that holds the text, surrounding white space apart.
    """

    variable: str | None = None
    file: str | None = None

    def read(self) -> str:
        """Return the text as it is now.

        Raises:
            CredentialsRefused: it is not there.
        """
        if self.variable is not None:
            text, place = os.environ.get(self.variable), f"variable {self.variable}"
        else:
            text, place = _content(self.file or ""), f"file {self.file}"

        if not text:
            raise CredentialsRefused(
                f"the {place} holds nothing", hint="put there what the auth server asks for"
            )

        return text


def _content(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError as exc:
        raise CredentialsRefused(
            f"the file {path} can't be read: {exc.strerror}",
            hint="check the file's path and permissions",
        ) from exc
    except UnicodeDecodeError:  # not chained: it holds the text
        raise CredentialsRefused(
            f"the file {path} is not in UTF-8", hint="save it as UTF-8"
        ) from None


@dataclass(frozen=True, slots=True)
class Login:
    """What the auth server asks for before it gives a token.

    Attributes:
        org_id: the organisation.
        client_id: of the program that asks.
        client_secret: its secret.
        username: who asks.
        password: theirs.
        auth_url: the auth server's base URL.
    """

    org_id: str
    client_id: str
    client_secret: Secret
    username: Secret
    password: Secret
    auth_url: str = AUTH_URL


@dataclass(frozen=True, slots=True)
class Credentials:
    """Where a target's tokens come from; exactly one of them, or none.

    Attributes:
        token_env: name of a variable that holds the token.
        token_file: path of a file that holds it.
        token_command: argv of a command that prints it.
        login: what the auth server gives it for.
    """

    token_env: str | None = None
    token_file: str | None = None
    token_command: tuple[str, ...] | None = None
    login: Login | None = None

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) is not None for field in fields(self))

    def __repr__(self) -> str:
        kinds = (field.name for field in fields(self) if getattr(self, field.name) is not None)
        return f"<Credentials from {next(kinds, 'nowhere')}>"


@dataclass(frozen=True, slots=True)
class TargetSettings:
    """One target: a base URL and a token source, and what only it is told.

    Attributes:
        base_url: DES's, or None where nothing names it, or each token does.
        credentials: where its tokens come from.
        concurrency: its starts in flight at most, 1 to 1,024; None for as many as the launch.
        timeout: seconds for one attempt in all, above 0; None for what the launch is told.
        connect_timeout: seconds to connect, above 0; None for what the launch is told.
        allow_http: ``http://`` may be used for other hosts than loopback.
    """

    base_url: str | None
    credentials: Credentials
    concurrency: int | None = None
    timeout: float | None = None
    connect_timeout: float | None = None
    allow_http: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether it is known where its DES is."""
        return self.base_url is not None or self.credentials.login is not None


def merged_targets(
    of_file: Mapping[str, TargetSettings],
    environment: Mapping[str, str],
    *,
    base_url: str | None = None,
    target: str | None = None,
) -> dict[str, TargetSettings]:
    """Return the targets of a configuration file, with what environment and arguments say.

    Args:
        of_file: by name.
        environment: what it says of a target is said of the default one, and wins.
        base_url: an argument; that of ``target``, or of the default one; it wins over all.
        target: the target of the rows that name none, or None for the default one.

    Raises:
        ConfigurationError: the environment contradicts itself, or ``base_url`` is of no target.
    """
    name = target or DEFAULT_TARGET
    own = base_url if name == DEFAULT_TARGET else None
    found = target_from_environment(environment, base_url=own)
    known = of_file.get(DEFAULT_TARGET, found)
    default = replace(
        known,
        base_url=found.base_url or known.base_url,
        credentials=found.credentials or known.credentials,
    )
    merged = {**of_file, **({DEFAULT_TARGET: default} if default.is_whole else {})}

    if base_url is not None and name not in merged:
        raise ConfigurationError(
            f"--base-url is that of target {name}, and there is none",
            hint=f"pass --target and one of {', '.join(merged)}",
        )

    if base_url is not None:
        merged[name] = replace(merged[name], base_url=base_url)

    return merged


def target_from_environment(
    environment: Mapping[str, str], *, base_url: str | None = None
) -> TargetSettings:
    """Return the target that the environment describes.

    Args:
        environment: ``DES_BASE_URL``, and one of ``DES_TOKEN``, ``DES_TOKEN_FILE``,
            ``DES_TOKEN_COMMAND`` (split as a shell would, run without one) and the OAuth2 login:
            ``DES_ORG_ID``, ``DES_CLIENT_ID``, ``DES_CLIENT_SECRET``, ``DES_USERNAME`` and
            ``DES_PASSWORD``, with ``DES_AUTH_URL`` where it is not the public auth server.
        base_url: wins over the environment's.

    Raises:
        ConfigurationError: two token sources, a command that can't be split, or half a login.
    """
    login = [variable for variable in _LOGIN_VARIABLES if environment.get(variable)]
    named = [variable for variable in _TOKEN_VARIABLES if environment.get(variable)]

    if len(named) + bool(login) > 1:
        raise ConfigurationError(
            f"{' and '.join([*named, *login])} are set: one target takes one token source",
            hint=f"unset all but one of {', '.join(_TOKEN_VARIABLES)} and the login",
        )

    command = environment.get("DES_TOKEN_COMMAND")
    credentials = Credentials(
        token_env="DES_TOKEN" if environment.get("DES_TOKEN") else None,
        token_file=environment.get("DES_TOKEN_FILE") or None,
        token_command=_split(command) if command else None,
        login=_login(environment) if login else None,
    )
    return TargetSettings(base_url or environment.get("DES_BASE_URL") or None, credentials)


_TOKEN_VARIABLES: Final = ("DES_TOKEN", "DES_TOKEN_FILE", "DES_TOKEN_COMMAND")
_LOGIN_VARIABLES: Final = (
    "DES_ORG_ID",
    "DES_CLIENT_ID",
    "DES_CLIENT_SECRET",
    "DES_USERNAME",
    "DES_PASSWORD",
)


def _login(environment: Mapping[str, str]) -> Login:
    missing = [variable for variable in _LOGIN_VARIABLES if not environment.get(variable)]

    if missing:
        raise ConfigurationError(
            f"the login at the auth server lacks {', '.join(missing)}",
            hint="set them all, or none and DES_TOKEN, DES_TOKEN_FILE or DES_TOKEN_COMMAND",
        )

    return Login(
        org_id=environment["DES_ORG_ID"],
        client_id=environment["DES_CLIENT_ID"],
        client_secret=Secret(variable="DES_CLIENT_SECRET"),
        username=Secret(variable="DES_USERNAME"),
        password=Secret(variable="DES_PASSWORD"),
        auth_url=environment.get("DES_AUTH_URL") or AUTH_URL,
    )


def _split(command: str) -> tuple[str, ...]:
    try:
        words = tuple(shlex.split(command))
    except ValueError as exc:
        raise ConfigurationError(
            f"DES_TOKEN_COMMAND can't be split into words: {exc}", hint="check its quotes"
        ) from exc

    if not words:
        raise ConfigurationError("DES_TOKEN_COMMAND names no command", hint="set it, or unset it")

    return words
