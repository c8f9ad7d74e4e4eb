"""Notices a robot that is not where it was told to be: it has hit something, or its controller no longer listens."""

from __future__ import annotations

import math
from collections.abc import Mapping

from flashvla_ros.control.limits import TURN
from flashvla_ros.core.settings import ControlSettings
from flashvla_ros.core.types import ActionSpec, FloatArray


class DeviationWatch:
    """Compares absolute dimensions with where the robot is; any thread may look. A deviation counts once it lasted."""

    def __init__(self, spec: ActionSpec) -> None:
        self._spec = spec
        self._since_s: dict[str, float] = {}

    def look(
        self, now_s: float, command: FloatArray | None, positions: Mapping[str, float], control: ControlSettings
    ) -> str:
        """Return what is wrong, in words; empty where nothing is, or not for long enough.

        Args:
            now_s: Monotonic seconds.
            command: [D] in force; None where the robot has no command to follow.
            positions: Where it is, by the name of a dimension.
            control: ``max_deviation`` and ``deviation_time_s``.
        """
        found = {} if command is None else self._found(command, positions, control.max_deviation)
        before_s = self._since_s  # other threads look too, and replace it
        since_s = self._since_s = {name: before_s.get(name, now_s) for name in found}
        return "; ".join(
            f"{words} for {now_s - since_s[name]:.2f} s"
            for name, words in found.items()
            if now_s - since_s[name] >= control.deviation_time_s
        )

    def _found(self, command: FloatArray, positions: Mapping[str, float], allowed: tuple[float, ...]) -> dict[str, str]:
        found = {}
        for index, (name, most) in enumerate(zip(self._spec.names, allowed, strict=False)):
            if most == 0.0:
                continue
            if name not in positions:
                found[name] = f"{name} is not reported by joint_states or end_effector_pose"
                continue
            distance = self._distance(index, float(command[index]), positions[name])
            if distance > most:
                found[name] = (
                    f"{name} is at {positions[name]:.4g} and was commanded to {float(command[index]):.4g} "
                    f"(control.max_deviation is {most:g})"
                )
        return found

    def _distance(self, index: int, commanded: float, measured: float) -> float:
        difference = commanded - measured
        if index in self._spec.angles:
            difference -= TURN * round(difference / TURN)
        elif index in self._spec.quaternion:  # q and -q are the same rotation
            return min(abs(difference), abs(commanded + measured))
        return math.fabs(difference)
