"""Where the robot was last measured, and how long ago."""

from __future__ import annotations

import threading
from collections.abc import Mapping


class RobotState:
    """Positions by the name of a joint or of a part of a pose. Thread-safe; every method is told the time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._measured: dict[str, tuple[float, float]] = {}

    def update(self, now_s: float, positions: Mapping[str, float]) -> None:
        """Take in measurements; joints that are not among them keep their last one."""
        with self._lock:
            self._measured.update({name: (now_s, position) for name, position in positions.items()})

    def positions(self, now_s: float, max_age_s: float) -> dict[str, float]:
        """Return what was measured at most `max_age_s` ago."""
        with self._lock:
            return {name: value for name, (when_s, value) in self._measured.items() if now_s - when_s <= max_age_s}
