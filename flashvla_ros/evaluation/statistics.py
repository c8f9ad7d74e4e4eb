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


@dataclasses.dataclass(frozen=True)
class Paired:
    """Two outcomes of the same episodes: how many the reference won alone (`lost`), and how many the other (`won`)."""

    lost: int
    won: int

    @classmethod
    def of(cls, reference: Sequence[bool], other: Sequence[bool]) -> Paired:
        """Compare successes, paired by position; ValueError where the two sequences differ in length."""
        pairs = list(zip(reference, other, strict=True))
        return cls(sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs))

    @property
    def mcnemar_p(self) -> float:
        """Two-sided exact McNemar p-value; 1 where neither won an episode alone, as nothing speaks for either."""
        lost, won = self.lost, self.won
        return float(binomtest(lost, lost + won, 0.5).pvalue) if lost + won else 1.0
