"""What a command carries: which dimensions, and the joint positions that a controller is to reach."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flashvla_ros.core.errors import ActionError, SettingsError
from flashvla_ros.core.types import EULER_NAMES, POSITION_NAMES, QUATERNION_NAMES, ActionKind, ActionSpec, FloatArray

# What each type carries where the type itself says so; the others carry the dimensions of the action but the gripper.
_OWN_NAMES = {
    "TwistStamped": (POSITION_NAMES + EULER_NAMES, ActionKind.VELOCITY),
    "PoseStamped": (POSITION_NAMES + QUATERNION_NAMES, ActionKind.ABSOLUTE),
}
# The motions of a joint that each type carries as positions, which are counted from where the joint is measured.
_COUNTED = {"JointTrajectory": (ActionKind.DELTA, ActionKind.VELOCITY), "Float64MultiArray": (ActionKind.DELTA,)}


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


def told(command_type: str, command: FloatArray) -> FloatArray:
    """Return the rows of a command [T, D] that the robot is told: all of a trajectory, the first of any other."""
    return command if command_type == "JointTrajectory" else command[:1]


def started_from(command_type: str, spec: ActionSpec) -> list[str]:
    """Return the joints whose targets are counted from where they are measured."""
    kind_of = dict(zip(spec.names, spec.kinds, strict=True))
    return [name for name in spec.joints if kind_of[name] in _COUNTED.get(command_type, ())]


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


def command_spec(command_type: str, action: ActionSpec) -> ActionSpec:
    """Return what the D values of a command mean, in the units of the message: a velocity, or where to be.

    Raises:
        SettingsError: The command would carry nothing.
    """
    if command_type in _OWN_NAMES:
        names, kind = _OWN_NAMES[command_type]
        return ActionSpec(names, (kind,) * len(names), action.dt_s)
    carried = [pair for pair in zip(action.names, action.kinds, strict=True) if pair[1] is not ActionKind.GRIPPER]
    if not carried:
        raise SettingsError(f"command.type {command_type} carries joints, but action.names is {list(action.names)}")
    kinds = tuple(_sent_kind(command_type, name in action.joints, kind) for name, kind in carried)
    return ActionSpec(tuple(name for name, _ in carried), kinds, action.dt_s)


def _sent_kind(command_type: str, joint: bool, kind: ActionKind) -> ActionKind:
    """A joint's delta leaves as the position that it leads to, and so does its velocity in a trajectory."""
    if command_type == "JointTrajectory" or (joint and kind is ActionKind.DELTA):
        return ActionKind.ABSOLUTE
    return kind
