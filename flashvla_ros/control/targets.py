"""Joint positions that a controller is to reach, made of an action's rows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flashvla_ros.core.errors import ActionError
from flashvla_ros.core.types import ActionKind, ActionSpec, FloatArray


def check(command_type: str, spec: ActionSpec, positions: Mapping[str, float]) -> None:
    """Refuse a step whose command would have to start from joints that nobody has measured.

    Raises:
        ActionError: Names the joints.
    """
    unknown = [name for name in started_from(command_type, spec) if name not in positions]
    if unknown:
        raise ActionError(
            f"deltas and velocities become joint positions by adding them to the measured ones, but joint_states does "
            f"not report {unknown} (it reports {sorted(positions)}) at least once in control.state_timeout_s"
        )


def started_from(command_type: str, spec: ActionSpec) -> list[str]:
    """Return the joints whose targets are counted from where they are measured."""
    kinds: tuple[ActionKind, ...] = ()
    if command_type == "JointTrajectory":
        kinds = (ActionKind.DELTA, ActionKind.VELOCITY)
    elif command_type == "Float64MultiArray":
        kinds = (ActionKind.DELTA,)
    kind_of = dict(zip(spec.names, spec.kinds, strict=True))
    return [name for name in spec.joints if kind_of[name] in kinds]


def joint_positions(
    command: FloatArray, spec: ActionSpec, counted: list[str], positions: Mapping[str, float]
) -> FloatArray:
    """Return a command [T, D] with the `counted` dimensions as positions: the measured one plus the motion so far."""
    reached = command.copy()
    for name in counted:
        index = spec.names.index(name)
        span = 1.0 if spec.kinds[index] is ActionKind.DELTA else spec.dt_s
        reached[:, index] = positions[name] + np.cumsum(command[:, index] * span)
    return reached
