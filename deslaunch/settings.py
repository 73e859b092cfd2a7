"""Every option of a launch, once: its default, range, unit, help and environment variable.

The command line's options, the checks of their ranges and the page of all options are made from
:class:`Settings`. A value comes from the first of these that has one: command line, ledger (an
earlier command line, for options that are kept), environment, default.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from typing import Any, Final, Literal, NamedTuple, Self

from deslaunch.errors import ConfigurationError
from deslaunch.model import DEFAULT_TARGET, Format, is_guid


class Option(NamedTuple):
    """One option: help, type, range, unit, and where its value may come from.

    Attributes:
        help: one sentence, for ``--help``.
        kind: type of its value: ``int``, ``float``, ``str``, ``bool``.
        low: minimum; excluded if ``above`` is set.
        high: maximum.
        above: ``low`` itself is not allowed.
        choices: the only values.
        unit: unit of a number, for messages: ``"seconds"``.
        tunes: it has an environment variable.
        kept: the ledger keeps its value for later sessions.
        usual: ``--help`` lists it; ``--help-all`` lists all others.
        name: as in :class:`Settings`.
        default: as in :class:`Settings`.
    """

    help: str
    kind: type
    low: float = 0
    high: float = math.inf
    above: bool = False
    choices: tuple[str, ...] = ()
    unit: str = ""
    tunes: bool = False
    kept: bool = False
    usual: bool = False
    name: str = ""
    default: Any = None

    @property
    def flag(self) -> str:
        """The option as it is written on a command line."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def variable(self) -> str | None:
        """The environment variable; None if it permits something or names files or rows."""
        return f"DESLAUNCH_{self.name.upper()}" if self.tunes else None

    @property
    def range(self) -> str:
        """What the option takes, in words: ``"a whole number from 1 to 1,024"``."""
        if self.choices:
            return " or ".join(choice for choice in self.choices if choice.isprintable())

        noun = "a whole number" if self.kind is int else "a number"
        whole = f"{noun} of {self.unit}" if self.unit else noun
        low, high = f"{self.low:,.10g}", f"{self.high:,.10g}"

        if self.above:
            return f"{whole} above {low}" + (f", at most {high}" if high != "inf" else "")

        return f"{whole} from {low} to {high}" if high != "inf" else f"{whole}, at least {low}"

    def check(self, value: Any) -> None:
        """Refuse a value that is out of the option's range.

        Raises:
            ConfigurationError: with the option, its range and the value.
        """
        if value is None or (self.kind in {bool, str} and not self.choices):
            return

        if not (value in self.choices if self.choices else self.fits(value)):
            raise ConfigurationError(
                f"{self.flag} takes {self.range}, got {value}",
                hint="see the options with their ranges: deslaunch help options",
            )

    def fits(self, value: float) -> bool:
        """Return True if a number is in the option's range."""
        if not math.isfinite(value) or (self.kind is int and value != int(value)):
            return False

        return (self.low < value if self.above else self.low <= value) and value <= self.high


def _option(default: Any, help: str, kind: type = str, **known: Any) -> Any:  # noqa: A002  # as click's
    return field(default=default, metadata={"option": Option(help, kind, **known)})


def _seconds(default: float | None, help: str, **known: Any) -> Any:  # noqa: A002  # as click's
    known = {"above": True, "unit": "seconds", "tunes": True, **known}
    return _option(default, help, float, **known)


def _consent(help: str, **known: Any) -> Any:  # noqa: A002  # as click's
    return _option(default=False, help=help, kind=bool, **known)


ROWS_FOR_A_SHARE: Final = 200
"""Rows that must have ended before a share of errors counts."""


class ErrorLimit(NamedTuple):
    """How many rows of a target may end without a run before it stops.

    Attributes:
        number: rows, at least 0; or percent of the rows that ended, 0 to 100, once 200 have.
        is_share: ``number`` is percent.
    """

    number: int
    is_share: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the limit for ``N`` or ``N%``.

        Raises:
            ConfigurationError: it is neither, or the share is over 100 %.
        """
        match = re.fullmatch(r"([0-9]{1,9})(%?)", text, re.ASCII)

        if match is None or (match[2] and int(match[1]) > 100):  # noqa: PLR2004  # per cent
            raise ConfigurationError(
                f"--max-errors takes N or a share up to 100%, got {text!r}",
                hint="write a number of rows, such as 50, or a share, such as 5%",
            )

        return cls(int(match[1]), match[2] == "%")

    def __str__(self) -> str:
        return f"{self.number:,}{'%' * self.is_share}"

    def is_passed(self, errors: int, ended: int) -> bool:
        """Return True if ``errors`` of ``ended`` rows are too many."""
        if self.is_share:
            return ended >= ROWS_FOR_A_SHARE and 100 * errors > self.number * ended

        return errors > self.number


def next_such(text: str, now: float) -> float:
    """Return the next time at which this machine's local clock shows ``HH:MM``.

    Args:
        text: ``HH:MM``, 00:00 to 23:59.
        now: seconds since 1970.

    Returns:
        Seconds since 1970, above ``now`` and at most a day (of 23 to 25 hours) later.

    Raises:
        ConfigurationError: it is not such a time.
    """
    match = re.fullmatch(r"([01]?[0-9]|2[0-3]):([0-5][0-9])", text, re.ASCII)

    if match is None:
        raise ConfigurationError(
            f"--stop-at takes a local time from 00:00 to 23:59, got {text!r}",
            hint="write --stop-at 06:00",
        )

    at = datetime.fromtimestamp(now).replace(  # noqa: DTZ006  # local, as the person says it
        hour=int(match[1]), minute=int(match[2]), second=0, microsecond=0
    )
    times = ((at + timedelta(days=days)).timestamp() for days in range(3))
    return next(time for time in times if time > now)


def parse_duration(text: str) -> float:
    """Return the seconds that a text such as ``4h``, ``1h30m`` or ``90`` means.

    Raises:
        ConfigurationError: it is not a duration above 0.
    """
    whole = f"{text}s" if text.isdecimal() else text
    match = re.fullmatch(r"(?:([0-9]{1,6})h)?(?:([0-9]{1,6})m)?(?:([0-9]{1,9})s)?", whole)
    hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0)

    if found := 3600.0 * hours + 60 * minutes + seconds:
        return found

    raise ConfigurationError(
        f"--stop-after takes a duration such as 4h, 90m, 1h30m or 90 (seconds), got {text!r}",
        hint="write whole hours, minutes and seconds, in this order, without spaces",
    )


class JobLimit(NamedTuple):
    """The limits of one job, in all targets.

    Attributes:
        concurrency: maximum number of its starts in flight, 1 to 1,024; None: no own limit.
        rate: maximum number of its starts a second, above 0; None: no own limit.
    """

    concurrency: int | None = None
    rate: float | None = None


class Deadline(NamedTuple):
    """When a launch stops sending.

    Attributes:
        option: the option that sets it, as on the command line.
        clock: returns seconds.
        at: seconds of ``clock``.
    """

    option: str
    clock: Callable[[], float]
    at: float

    def left(self) -> float:
        """Return the seconds until then, 0 or less once it has passed."""
        return self.at - self.clock()


_KEPT: Final[Any] = {"tunes": True, "kept": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The options of one session; each field's help, range and unit are below.

    Raises:
        ConfigurationError: a value is out of its range.
    """

    concurrency: int = _option(
        16,
        "Maximum concurrent starts (slots).",
        int,
        low=1,
        high=1024,
        unit="slots",
        usual=True,
        **_KEPT,
    )
    rate: float | None = _seconds(
        None,
        "Maximum starts per second; default: limited only by the slots.",
        unit="starts a second",
        kept=True,
        usual=True,
    )
    timeout: float = _seconds(60.0, "Seconds for one whole attempt.", high=86_400, kept=True)
    connect_timeout: float = _seconds(
        10.0, "Seconds for DNS lookup, connection and TLS handshake.", high=86_400, kept=True
    )
    max_attempts: int = _option(
        5, "Attempts with 5XX per session before a row fails.", int, low=1, unit="attempts", **_KEPT
    )
    max_wait: float = _seconds(
        60.0, "Longest computed wait before a retry; Retry-After is never shortened.", kept=True
    )
    give_up_after: float = _seconds(
        900.0, "Seconds that a target may stay paused before it is stopped.", kept=True
    )
    drain_timeout: float | None = _seconds(
        None,
        "Seconds to wait for starts in flight when a launch ends; default: --timeout.",
        kept=True,
    )
    max_errors: str = _option(
        "50%",
        "Stop a target when more than N rows, or N% of at least 200, end without a run.",
        **_KEPT,
    )
    retry_5xx: Literal["all", "none"] | None = _option(
        None,
        "all: retry 504 and 524 too, although a run may exist; none: a 5XX makes the row unknown.",
        choices=("all", "none"),
        **_KEPT,
    )
    schema_max_age: float = _seconds(
        24.0, "Hours that cached JobRunParameters are used.", above=False, high=1e6, unit="hours"
    )
    limit: int | None = _option(
        None,
        "Start at most this many rows; the others stay pending (exit 5).",
        int,
        low=1,
        unit="rows",
        usual=True,
    )
    stop_at: str | None = _option(
        None, "Stop sending at this local time, then wait for responses (exit 5).", usual=True
    )
    stop_after: str | None = _option(
        None, "Stop sending after this long (4h, 90m, 1h30m), then wait for responses (exit 5)."
    )
    retry_rejected: bool = _consent("Send rejected rows again, unchanged.", usual=True)
    retry_unknown: bool = _consent("Send unknown rows again: if one has a run, it gets a second.")
    retry_failed_runs: bool = _consent(
        "Start another run for each row whose run is recorded as failed.", usual=True
    )
    accept_copy: bool = _consent(
        "Resume an older copy of a ledger, or a batch that was given up; runs that it starts are "
        "marked as possible duplicates."
    )
    again: bool = _consent("Start a batch although an earlier one of this manifest is unfinished.")
    skip_invalid: bool = _consent("Start the valid rows; record the others as invalid.", usual=True)
    allow_duplicates: bool = _consent("Allow identical rows without keys: each starts a run.")
    allow_repeated_auto: bool = _consent("Allow several rows with an auto value of the same job.")
    allow_new_origin: bool = False  # on a command line --base-url says so
    format: Format | None = _option(  # noqa: RUF009  # a field, as the others
        None,
        "Format of the manifest; default: by its file extension.",
        choices=("jsonl", "csv"),
        usual=True,
    )
    delimiter: str = _option(
        ",", "Cell delimiter of a CSV manifest: , ; | or tab.", choices=(*",;|", "tab", "\t")
    )
    job_id: str | None = _option(None, "Job of rows that name none.", usual=True)
    target: str = _option(DEFAULT_TARGET, "Target of rows that name none.", usual=True)
    interval: float = _seconds(
        5.0, "Seconds before a run is queried again; each later wait is 1.5 times as long."
    )
    max_interval: float = _seconds(
        300.0, "Longest wait between two queries of a run; never shorter than --interval."
    )
    watch_timeout: float | None = _seconds(
        None, "Seconds after which watching stops; default: when the last run ends."
    )

    def __post_init__(self) -> None:
        for option in OPTIONS.values():
            option.check(getattr(self, option.name))

        ErrorLimit.parse(self.max_errors)

        if self.stop_at is not None:
            next_such(self.stop_at, 0.0)

        if self.stop_after is not None:
            parse_duration(self.stop_after)

        if self.delimiter == "tab":
            object.__setattr__(self, "delimiter", "\t")

        if self.job_id is not None:
            if not is_guid(self.job_id):
                raise ConfigurationError(
                    f"--job-id takes a GUID, got {self.job_id!r}",
                    hint="see the jobs with their GUIDs: deslaunch jobs",
                )

            object.__setattr__(self, "job_id", self.job_id.lower())

    @property
    def error_limit(self) -> ErrorLimit:
        """``max_errors``, parsed."""
        return ErrorLimit.parse(self.max_errors)

    def deadlines(
        self, wall: Callable[[], float], elapsed: Callable[[], float]
    ) -> tuple[Deadline, ...]:
        """Return when a launch that begins now must stop sending.

        Args:
            wall: returns seconds since 1970, for ``stop_at``.
            elapsed: returns seconds of a monotonic clock, for ``stop_after``.
        """
        found = []

        if self.stop_at is not None:
            at = next_such(self.stop_at, wall())
            found.append(Deadline(f"--stop-at {self.stop_at}", wall, at))

        if self.stop_after is not None:
            at = elapsed() + parse_duration(self.stop_after)
            found.append(Deadline(f"--stop-after {self.stop_after}", elapsed, at))

        return tuple(found)

    @property
    def drain_seconds(self) -> float:
        """Maximum duration of a drain, in seconds."""
        return self.timeout if self.drain_timeout is None else self.drain_timeout

    def kept(self) -> dict[str, Any]:
        """Return the values that a ledger keeps for later sessions, by name."""
        kept = (option.name for option in OPTIONS.values() if option.kept)
        return {name: getattr(self, name) for name in kept}


OPTIONS: Final[Mapping[str, Option]] = {
    one.name: one.metadata["option"]._replace(name=one.name, default=one.default)
    for one in fields(Settings)
    if one.metadata
}
"""All options by name, in the order in which they are listed."""
