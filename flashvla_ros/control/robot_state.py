"""Where the robot was last measured, and how long ago."""

from __future__ import annotations

import collections
import math
import threading
from collections.abc import Mapping

from flashvla_ros.core.types import EULER_NAMES, QUATERNION_NAMES

_JUMP = 0.05  # rad or m: more than an arm moves back and forth between two messages
_JUMPS, _JUMPS_S = 3, 1.0  # so many within so long are two nodes' reports, not a motion
_ROTATION = frozenset((*EULER_NAMES, *QUATERNION_NAMES))  # jumps where the same rotation is written another way


class _Measured:
    """The last measurements of one joint, and when it was back where it had been before a jump."""

    def __init__(self) -> None:
        self.when_s = self.at = self._before = float("nan")
        self._returns_s: collections.deque[float] = collections.deque(maxlen=_JUMPS)

    def add(self, now_s: float, at: float) -> None:
        jump, back = _distance(at, self.at), _distance(at, self._before)
        if jump > _JUMP and back < jump / 4.0:
            self._returns_s.append(now_s)
        self.when_s, self._before, self.at = now_s, self.at, at

    def disputed(self, now_s: float) -> bool:
        return len(self._returns_s) == _JUMPS and 0.0 <= now_s - self._returns_s[0] <= _JUMPS_S


def _distance(one: float, other: float) -> float:
    """Return how far apart two places of a joint are; NaN where one is unknown, or beyond all numbers.

    A joint without an end is at pi or at -pi, which is one place; for a slide, a whole turn is out of reach.
    """
    difference = one - other
    return abs(math.remainder(difference, math.tau)) if math.isfinite(difference) else math.nan


class RobotState:
    """Positions by the name of a joint or of a part of a pose. Thread-safe; every method is told the time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._measured: collections.defaultdict[str, _Measured] = collections.defaultdict(_Measured)

    def update(self, now_s: float, positions: Mapping[str, float]) -> None:
        """Take in measurements; joints that are not among them, or not finite, keep their last one."""
        with self._lock:
            for name, at in positions.items():
                if math.isfinite(at):
                    self._measured[name].add(now_s, at)

    def positions(self, now_s: float, max_age_s: float) -> dict[str, float]:
        """Return what was measured at most `max_age_s` ago and is not disputed."""
        with self._lock:
            left_out = self._disputed(now_s)
            return {
                name: one.at
                for name, one in self._measured.items()
                if now_s - one.when_s <= max_age_s and name not in left_out
            }

    def disputed(self, now_s: float) -> list[str]:
        """Return what jumps to and fro, as if a second node reported other positions of the same joints."""
        with self._lock:
            return self._disputed(now_s)

    def _disputed(self, now_s: float) -> list[str]:
        return [name for name, one in self._measured.items() if name not in _ROTATION and one.disputed(now_s)]
