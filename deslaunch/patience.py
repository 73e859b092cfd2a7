"""When a run is asked about next: the longer it takes, the seldomer.

Pure: numbers in, seconds out. Each wait is longer than the one before by half, so that the end of
a run is noticed after about a third of the time that it took, whether that was a minute or a day.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from deslaunch.retry import Jitter

GROWTH: Final = 1.5
_LONGEST_GROWTH: Final = 1_000  # GROWTH to this power is still a float


@dataclass(frozen=True, slots=True)
class Patience:
    """The rule of one watch.

    Attributes:
        interval: seconds between the first two questions about a run, above 0.
        max_interval: seconds between two questions at most; what is below ``interval`` counts as
            that.
    """

    interval: float = 5.0
    max_interval: float = 300.0

    def wait(self, asked: int, rng: Jitter) -> float:
        """Return the seconds until a run is asked about again.

        A tenth of each wait is left to chance, so that runs that were started together are not
        asked about together for ever.

        Args:
            asked: how often it was asked about, at least 1.
            rng: the source of jitter.
        """
        grown: float = self.interval * GROWTH ** min(asked - 1, _LONGEST_GROWTH)
        ceiling = min(grown, max(self.interval, self.max_interval))
        return rng.uniform(0.9 * ceiling, ceiling)
