"""Percentiles and rates over a true sliding window: a sample counts for its time and is then forgotten."""

from __future__ import annotations

import collections
import math
import threading
from collections.abc import Sequence

import numpy as np

_CAPACITY = 20_000  # samples: 10 s at 1 kHz and more; bounds memory, not the window


class SlidingWindow:
    """Timed samples of the last `span_s` seconds. Thread-safe; every method is told the time."""

    def __init__(self, span_s: float = 10.0) -> None:
        self.span_s = span_s
        self._lock = threading.Lock()
        self._samples: collections.deque[tuple[float, float]] = collections.deque(maxlen=_CAPACITY)
        self._first_s = math.nan

    def add(self, now_s: float, value: float = 1.0) -> None:
        """Add a sample; one that is only counted needs no value."""
        with self._lock:
            if math.isnan(self._first_s):
                self._first_s = now_s
            self._samples.append((now_s, value))

    def percentiles(self, now_s: float, percents: Sequence[float] = (50, 95, 99)) -> tuple[float, ...]:
        """Return percentiles of the values, interpolated linearly; NaN each where the window is empty."""
        values = self._values(now_s)
        if not values:
            return (math.nan,) * len(percents)
        return tuple(float(value) for value in np.percentile(values, percents))

    def mean(self, now_s: float) -> float:
        """Return the mean of the values; NaN where the window is empty."""
        values = self._values(now_s)
        return math.fsum(values) / len(values) if values else math.nan

    def rate_hz(self, now_s: float) -> float:
        """Return samples per second; over the time since the first one until the window has filled once."""
        count = len(self._values(now_s))
        elapsed_s = now_s - self._first_s
        if elapsed_s >= self.span_s:
            return count / self.span_s
        return (count - 1) / elapsed_s if count > 1 and elapsed_s > 0.0 else 0.0

    def _values(self, now_s: float) -> list[float]:
        with self._lock:
            while self._samples and self._samples[0][0] <= now_s - self.span_s:
                self._samples.popleft()
            return [value for _, value in self._samples]
