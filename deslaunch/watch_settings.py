"""Settings: what tunes a watch. Values are checked here, once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypedDict

from deslaunch.config import MAX_CONCURRENCY
from deslaunch.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class WatchOptions(TypedDict, total=False):
    """The keyword arguments of ``watch``.

    They have the names and defaults of the command line's options; :class:`WatchSettings` says
    what each means.
    """

    concurrency: int
    rate: float | None
    interval: float
    max_interval: float
    watch_timeout: float | None
    max_wait: float
    give_up_after: float
    allow_new_origin: bool


@dataclass(frozen=True, slots=True)
class WatchSettings:
    """What one watch is told.

    Attributes:
        concurrency: slots: questions in flight at most, 1 to 1,024.
        rate: questions a second at most, above 0; None for no limit.
        interval: seconds between the first two questions about a run, above 0.
        max_interval: seconds between two questions at most, above 0; what is below ``interval``
            counts as that.
        watch_timeout: seconds after which the watch ends, above 0; None: with the last run.
        max_wait: cap of a target's computed pause, seconds, above 0.
        give_up_after: seconds that a target may stay paused, above 0.
        allow_new_origin: ask another base URL than the one that started the runs.

    Raises:
        ConfigurationError: a value is out of its range.
    """

    concurrency: int = 16
    rate: float | None = None
    interval: float = 5.0
    max_interval: float = 300.0
    watch_timeout: float | None = None
    max_wait: float = 60.0
    give_up_after: float = 900.0
    allow_new_origin: bool = False

    def __post_init__(self) -> None:
        for name, (holds, expected) in _RANGES.items():
            value = getattr(self, name)

            if value is not None and not holds(value):
                option = f"--{name.replace('_', '-')}"
                raise ConfigurationError(
                    f"{option} takes {expected}, got {value}",
                    hint="'deslaunch watch --help' tells what each option takes",
                )


_SECONDS: Final[tuple[Callable[[float], bool], str]] = (
    lambda value: value > 0,
    "seconds, above 0",
)

_RANGES: Final[Mapping[str, tuple[Callable[[float], bool], str]]] = {
    "concurrency": (
        lambda value: value in range(1, MAX_CONCURRENCY + 1),
        f"a number from 1 to {MAX_CONCURRENCY:,}",
    ),
    "rate": (lambda value: value > 0, "questions a second, above 0"),
    "interval": _SECONDS,
    "max_interval": _SECONDS,
    "watch_timeout": _SECONDS,
    "max_wait": _SECONDS,
    "give_up_after": _SECONDS,
}
