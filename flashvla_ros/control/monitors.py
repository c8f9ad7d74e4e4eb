"""What a run of commands says of a policy that is lost: it turns back, goes in circles, stands still, or is unsure.

Each figure needs only the commands of the last ``monitor.window_s`` and is without a unit, so that one threshold holds
for any robot. Reversals: the rate at which commands turn back (SafeContract found it to foretell failure better than
speed). Thresholds come from recordings of good runs, by split conformal prediction (Vovk et al., 2005).
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from flashvla_ros.core.settings import MonitorSettings
from flashvla_ros.core.types import POSITION_NAMES, ActionKind, ActionSpec, FloatArray

_STILL = 0.05  # of the longest motion since the start: what is shorter has no direction
_LEAST_STEPS = 4  # in a window, before it says anything


@dataclasses.dataclass(frozen=True)
class Signs:
    """What a monitor sees at one moment; NaN where it cannot tell.

    Attributes:
        reversals: Share of the motions that point against the one before, 0 to 1.
        oscillation: 1 - distance covered / length of the path: 0 is straight, 1 comes back to where it began.
        still_s: Time since the last motion [s].
        confidence: Probability that the policy gave its least certain action token, the least of the window.
    """

    reversals: float = math.nan
    oscillation: float = math.nan
    still_s: float = math.nan
    confidence: float = math.nan

    def beyond(self, settings: MonitorSettings) -> str:
        """Return which thresholds are exceeded, in words; empty where none is."""
        words = [
            f"{name} {seen:.3g} (monitor.max_{name} is {limit:g})"
            for name, seen, limit in (
                ("reversals", self.reversals, settings.max_reversals),
                ("oscillation", self.oscillation, settings.max_oscillation),
                ("still_s", self.still_s, settings.max_still_s or math.inf),
            )
            if seen > limit
        ]
        if self.confidence < settings.min_confidence:
            words.append(f"confidence {self.confidence:.3g} (monitor.min_confidence is {settings.min_confidence:g})")
        return ", ".join(words)


class SignMonitor:
    """Watches the commands of one run.

    It looks at the end effector's position where the action has one, at all joints otherwise: at one unit.
    """

    def __init__(self, spec: ActionSpec) -> None:
        places = [index for index, name in enumerate(spec.names) if name in POSITION_NAMES]
        self._watched = places or [spec.names.index(name) for name in spec.joints]
        self._absolute = np.array([spec.kinds[index] is ActionKind.ABSOLUTE for index in self._watched], dtype=bool)
        self.reset()

    def reset(self) -> None:
        """Forget everything: the robot was stopped."""
        self._seen: collections.deque[tuple[float, FloatArray, float]] = collections.deque()
        self._before: FloatArray | None = None
        self._longest, self._moved_s = 0.0, math.nan
        self.signs = Signs()

    def add(self, stamp_s: float, command: FloatArray, confidence: float, window_s: float) -> Signs:
        """Take the command [T, D] of one step; returns what the window says. A jump back of the clock empties it."""
        if self._seen and stamp_s < self._seen[-1][0]:
            self.reset()
        row = command[0, self._watched]
        before = row if self._before is None else self._before
        motion, self._before = np.where(self._absolute, row - before, row), row
        self._seen.append((stamp_s, motion, confidence))
        while stamp_s - self._seen[0][0] > window_s:
            self._seen.popleft()
        length = float(np.linalg.norm(motion))
        self._longest = max(self._longest, length)
        if length > _STILL * self._longest or math.isnan(self._moved_s):
            self._moved_s = stamp_s
        self.signs = self._signs(stamp_s)
        return self.signs

    def _signs(self, stamp_s: float) -> Signs:
        motions = np.array([motion for _, motion, _ in self._seen])
        moving = motions[np.linalg.norm(motions, axis=1) > _STILL * self._longest]
        reversals = oscillation = math.nan
        if len(moving) >= _LEAST_STEPS:
            reversals = float(((moving[1:] * moving[:-1]).sum(axis=1) < 0.0).mean())
            path = float(np.linalg.norm(moving, axis=1).sum())
            oscillation = 1.0 - float(np.linalg.norm(moving.sum(axis=0))) / path
        sure = [confidence for _, _, confidence in self._seen if not math.isnan(confidence)]
        return Signs(reversals, oscillation, stamp_s - self._moved_s, min(sure, default=math.nan))


def conformal_threshold(worst: Sequence[float], alarm_rate: float) -> float:
    """Return the threshold that a new good run exceeds with at most this probability, whatever the distribution.

    Args:
        worst: The greatest value of each run of the calibration, which is exchangeable with the new one.
        alarm_rate: Share of good runs that may be warned of.

    Returns:
        The ⌈(n + 1)(1 - alarm_rate)⌉th smallest; infinite where there are too few runs.
    """
    rank = math.ceil((len(worst) + 1) * (1.0 - alarm_rate))
    return sorted(worst)[rank - 1] if rank <= len(worst) else math.inf
