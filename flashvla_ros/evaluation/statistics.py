"""Statistics of success rates and paired comparisons; the episode is the unit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binomtest, norm


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

    def difference(self, trials: int, confidence: float = 0.95) -> tuple[float, float, float]:
        """Return the other's success rate less the reference's, and Tango's score interval of it.

        Tango, Statistics in Medicine 17 (1998), 891-908; no library that this package uses has it.

        Args:
            trials: n, pairs of episodes in all.
            confidence: Of the interval, two-sided.
        """
        won, lost, n = self.won, self.lost, trials

        def score(delta: float) -> float:
            """How many standard errors the pairs speak for a greater difference than `delta`."""
            linear = (2 * n - won + lost) * delta - won - lost
            root = math.sqrt(max(linear * linear + 8.0 * n * lost * delta * (1.0 - delta), 0.0))
            share = (root - linear) / (4.0 * n)  # of pairs that the reference wins alone, if `delta` is true
            variance = n * (2.0 * share + delta * (1.0 - delta))
            distance = won - lost - n * delta
            if variance > 0.0:
                return distance / math.sqrt(variance)
            return math.copysign(math.inf, distance) if distance else 0.0

        value, z, edge = (won - lost) / n, float(norm.ppf(0.5 + confidence / 2.0)), 1e-12
        low, high = -1.0, 1.0
        if value > -1.0 and score(edge - 1.0) > z:
            low = brentq(lambda delta: min(score(delta), 1e9) - z, edge - 1.0, min(value, 1.0 - edge))
        if value < 1.0 and score(1.0 - edge) < -z:
            high = brentq(lambda delta: max(score(delta), -1e9) + z, max(value, edge - 1.0), 1.0 - edge)
        return value, float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number (Holm 1979): none below the level is wrong, at that level."""
    order = np.argsort(p_values)
    scaled = np.asarray(p_values, dtype=np.float64)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return [float(value) for value in adjusted]


def upper_bound(events: int, trials: int, confidence: float) -> float:
    """Return the upper end of the exact one-sided interval of a share (Clopper & Pearson 1934)."""
    test = binomtest(events, trials, alternative="less")
    return float(test.proportion_ci(confidence, method="exact").high)


def most_events(trials: int, risk: float, confidence: float) -> int:
    """Return the most events in `trials` whose upper bound is within `risk`; -1 where even none is too uncertain."""
    events = -1
    while events < trials and upper_bound(events + 1, trials, confidence) <= risk:
        events += 1
    return events
