"""Settings: what tunes a launch, what it consents to, and where DES is.

Defaults < environment < arguments. Values are checked here, once, so that everything below may
rely on them.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final, Literal, TypedDict

from deslaunch.errors import ConfigurationError
from deslaunch.health import ErrorLimit

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
    schema_max_age: float


@dataclass(frozen=True, slots=True)
class Settings:
    """What one session is told.

    Attributes:
        concurrency: slots: starts in flight at most, 1 to 1,024.
        rate: starts a second at most, above 0; None for no limit.
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
        schema_max_age: hours that cached JobRunParameters may be used, 0 to 1,000,000.

    Raises:
        ConfigurationError: a value is out of its range.
    """

    concurrency: int = 16
    rate: float | None = None
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
    schema_max_age: float = 24.0

    def __post_init__(self) -> None:
        ErrorLimit.parse(str(self.max_errors))

        if self.job_id is not None:
            object.__setattr__(self, "job_id", self.job_id.lower())

        for name, (holds, expected) in _RANGES.items():
            value = getattr(self, name)

            if value is not None and not holds(value):
                option = f"--{name.replace('_', '-')}"
                raise ConfigurationError(f"{option} takes {expected}, got {value}")

        for name, choices in _CHOICES.items():
            value = getattr(self, name)

            if value is not None and value not in choices:
                option = f"--{name.replace('_', '-')}"
                raise ConfigurationError(f"{option} takes {' or '.join(choices)}, got {value!r}")

    @property
    def error_limit(self) -> ErrorLimit:
        """What ``max_errors`` means."""
        return ErrorLimit.parse(str(self.max_errors))

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
    {"format", "job_id", "target", "skip_invalid", "allow_duplicates", "allow_repeated_auto"}
)

_RANGES: Final[Mapping[str, tuple[Callable[[float], bool], str]]] = {
    "concurrency": (
        lambda value: value in range(1, MAX_CONCURRENCY + 1),
        f"a number from 1 to {MAX_CONCURRENCY:,}",
    ),
    "rate": (lambda value: value > 0, "starts a second, above 0"),
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
class Credentials:
    """Where the default target's tokens come from; exactly one of them, or none.

    Attributes:
        token: the token itself; its repr hides it.
        token_file: path of a file that holds it.
        token_command: argv of a command that prints it.
    """

    token: str | None = None
    token_file: str | None = None
    token_command: tuple[str, ...] | None = None

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) is not None for field in fields(self))

    def __repr__(self) -> str:
        kinds = (field.name for field in fields(self) if getattr(self, field.name) is not None)
        return f"<Credentials from {next(kinds, 'nowhere')}>"


@dataclass(frozen=True, slots=True)
class TargetSettings:
    """One target: a base URL and a token source.

    Attributes:
        base_url: DES's, or None where nothing names it.
        credentials: where its tokens come from.
    """

    base_url: str | None
    credentials: Credentials


def target_from_environment(
    environment: Mapping[str, str], *, base_url: str | None = None
) -> TargetSettings:
    """Return the target that the environment describes.

    Args:
        environment: ``DES_BASE_URL``, and one of ``DES_TOKEN``, ``DES_TOKEN_FILE`` and
            ``DES_TOKEN_COMMAND`` (split as a shell would, run without one).
        base_url: wins over the environment's.

    Raises:
        ConfigurationError: two token sources, or a command that can't be split.
    """
    named = [variable for variable in _TOKEN_VARIABLES if environment.get(variable)]

    if len(named) > 1:
        raise ConfigurationError(
            f"{' and '.join(named)} are set: one target takes one token source",
            hint=f"unset all but one of {', '.join(_TOKEN_VARIABLES)}",
        )

    command = environment.get("DES_TOKEN_COMMAND")
    credentials = Credentials(
        token=environment.get("DES_TOKEN") or None,
        token_file=environment.get("DES_TOKEN_FILE") or None,
        token_command=_split(command) if command else None,
    )
    return TargetSettings(base_url or environment.get("DES_BASE_URL") or None, credentials)


_TOKEN_VARIABLES: Final = ("DES_TOKEN", "DES_TOKEN_FILE", "DES_TOKEN_COMMAND")


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
