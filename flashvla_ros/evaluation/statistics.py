"""Statistics of success rates and paired comparisons; the episode is the unit."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from scipy.stats import binomtest


@dataclasses.dataclass(frozen=True)
class Rate:
    """A share of successes with its 95 % Wilson score interval."""

    successes: int
    trials: int

    @property
    def value(self) -> float:
        """The share itself, from 0 to 1."""
        return self.successes / self.trials

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end (Wilson 1927, without continuity correction)."""
        interval = binomtest(self.successes, self.trials).proportion_ci(0.95, method="wilson")
        return float(interval.low), float(interval.high)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.successes}/{self.trials} ({100 * low:.0f}-{100 * high:.0f} %)"


def mcnemar_exact(reference: Sequence[bool], other: Sequence[bool]) -> float:
    """Two-sided exact McNemar p-value of two outcomes of the same episodes, paired by position.

    Only the episodes that one of the two won alone count; with none of them there is no evidence, p = 1.

    Raises:
        ValueError: the two sequences differ in length.
    """
    pairs = list(zip(reference, other, strict=True))
    lost = sum(first and not second for first, second in pairs)
    won = sum(second and not first for first, second in pairs)
    return float(binomtest(lost, lost + won, 0.5).pvalue) if lost + won else 1.0
