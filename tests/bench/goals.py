"""What the figures should be, and whether they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .figures import Figures

MILLION: Final = 1_000_000
YARDSTICK: Final = "bare-64"
"""The figure that tells how fast a machine is at all."""

YARDSTICK_THEN: Final = 15_900
"""What it was, rows/s, where the goals were set: those without a ratio hold for that machine."""


@dataclass(frozen=True)
class Goal:
    """One figure, or the ratio of two, and its limit.

    Attributes:
        what: for people.
        over: name of the figure.
        under: name of the figure that it is divided by; "" for none.
        limit: what it should reach, or not pass.
        at_most: the limit is an upper one.
        unit: of the limit; "" for a ratio.
    """

    what: str
    over: str
    under: str
    limit: float
    at_most: bool = False
    unit: str = ""

    def value(self, figures: Figures) -> float | None:
        """Return what was measured; None where it was not."""
        return figures.ratio(self.over, self.under) if self.under else figures.find(self.over)

    def is_met(self, figures: Figures) -> bool | None:
        """Tell whether the goal is met; None where nothing was measured."""
        value = self.value(figures)

        if value is None:
            return None

        return value <= self.limit if self.at_most else value >= self.limit

    def cells(self, figures: Figures) -> tuple[str, str, str, str]:
        """Return what, goal, measured and verdict."""
        value, met = self.value(figures), self.is_met(figures)
        least_or_most = "at most" if self.at_most else "at least"
        return (
            self.what,
            f"{least_or_most} {_shown(self.limit, self.unit)}",
            "not measured" if value is None else _shown(value, self.unit),
            {True: "yes", False: "no", None: ""}[met],
        )

    def as_dict(self, figures: Figures) -> dict[str, Any]:
        value = self.value(figures)
        return {
            "what": self.what,
            "goal": self.limit,
            "atMost": self.at_most,
            "unit": self.unit,
            "value": value if value is None else round(value, 3),
            "met": self.is_met(figures),
        }


def _shown(value: float, unit: str) -> str:
    if unit == "rows/s":
        return f"{value:,.0f} rows/s"

    if unit:
        return f"{value:.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"

    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def _peak(kind: str, limit: float) -> Goal:
    what = f"peak memory, 1 M rows: {kind}"
    return Goal(what, f"peak-{kind}-{MILLION}", "", limit, at_most=True, unit="MB")


GOALS: Final = (
    Goal("full launch ÷ bare tuned loop, 64 slots", "deslaunch-64", "bare-64", 0.85),
    Goal("full launch ÷ bare tuned loop, 256 slots", "deslaunch-256", "bare-256", 0.90),
    Goal("full launch ÷ naive aiohttp loop, 64 slots", "deslaunch-64", "naive-64", 1.25),
    Goal(
        "full launch ÷ bare tuned loop, 64 slots, 20 ms latency",
        "deslaunch-64-20ms",
        "bare-64-20ms",
        0.97,
    ),
    Goal("full launch ÷ GNU parallel + curl, 64 slots", "deslaunch-64", "parallel-64", 55),
    Goal("two shards ÷ one process, 256 slots", "shards-256", "deslaunch-256", 1.7),
    Goal("two shards, 256 slots ÷ one curl --parallel", "shards-256", "curl-64", 0.9),
    Goal("check, JSONL", "check-jsonl", "", 200_000, unit="rows/s"),
    Goal("check, CSV", "check-csv", "", 150_000, unit="rows/s"),
    Goal("replay of a 1 M-row ledger", f"replay-{MILLION}", "", 8, at_most=True, unit="s"),
    _peak("check", 80),
    _peak("run", 120),
    _peak("resume", 200),
    _peak("results", 200),
)
