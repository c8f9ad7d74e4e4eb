"""Which command can carry which action: the node checks it at configure, the doctor before that. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from flashvla_ros.core.errors import SettingsError
from flashvla_ros.core.types import EULER_NAMES, POSE_NAMES, POSITION_NAMES, QUATERNION_NAMES, ActionKind, ActionSpec

TWIST_NAMES = (*POSITION_NAMES, *EULER_NAMES)


def check_command(command_type: str, spec: ActionSpec) -> None:
    """Refuse a command type that cannot carry the names and kinds of an action.

    Raises:
        SettingsError: Names both, and what to use instead.
    """
    grippers = [name for name, kind in zip(spec.names, spec.kinds, strict=True) if kind is ActionKind.GRIPPER]
    if len(grippers) > 1:
        raise SettingsError(
            f"gripper_command carries one value, but action.kinds declares {len(grippers)}: {grippers}; declare those "
            f"that are joints as absolute and command them with JointTrajectory or Float64MultiArray"
        )
    kinds = {name: kind for name, kind in zip(spec.names, spec.kinds, strict=True) if kind is not ActionKind.GRIPPER}
    _RULES[command_type](spec, kinds)


def rotation_names(names: list[str]) -> tuple[str, ...] | None:
    """Return the names of a pose's rotation where `names` are those of a whole pose."""
    return next((one for one in (EULER_NAMES, QUATERNION_NAMES) if set(names) == {*POSITION_NAMES, *one}), None)


def _twist(spec: ActionSpec, kinds: Mapping[str, ActionKind]) -> None:
    if wrong := [name for name in kinds if name not in TWIST_NAMES]:
        raise SettingsError(
            f"command.type TwistStamped carries {list(TWIST_NAMES)}, but action.names is {list(spec.names)}: "
            f"rename {wrong}, or use JointTrajectory or Float64MultiArray"
        )
    if absolute := [name for name, kind in kinds.items() if kind is ActionKind.ABSOLUTE]:
        raise SettingsError(
            f"command.type TwistStamped is a velocity, but action.kinds makes {absolute} absolute: "
            f"use PoseStamped or Float64MultiArray"
        )


def _pose(_spec: ActionSpec, kinds: Mapping[str, ActionKind]) -> None:
    if rotation_names(list(kinds)) is None:
        raise SettingsError(
            f"command.type PoseStamped carries {[*POSITION_NAMES, *EULER_NAMES]} or "
            f"{[*POSITION_NAMES, *QUATERNION_NAMES]}, but action.names has {list(kinds)}: name all of one of them, or "
            f"use another command.type"
        )
    if moving := [name for name, kind in kinds.items() if kind is not ActionKind.ABSOLUTE]:
        raise SettingsError(
            f"command.type PoseStamped is where to be, but action.kinds makes {moving} a motion: use TwistStamped, "
            f"or a checkpoint whose actions are absolute poses"
        )


def _trajectory(spec: ActionSpec, kinds: Mapping[str, ActionKind]) -> None:
    wrong = [name for name in kinds if name in POSE_NAMES]
    if wrong or not kinds:
        raise SettingsError(
            f"command.type JointTrajectory carries joints of the robot, but action.names is {list(spec.names)}: "
            f"{wrong} are parts of a pose; use TwistStamped or PoseStamped"
        )


def _array(_spec: ActionSpec, kinds: Mapping[str, ActionKind]) -> None:
    of_joints = {kind for name, kind in kinds.items() if name not in POSE_NAMES}
    if ActionKind.VELOCITY in of_joints and len(of_joints) > 1:
        raise SettingsError(
            f"command.type Float64MultiArray goes to one controller, of positions or of velocities, but action.kinds "
            f"of {list(kinds)} mixes {sorted(map(str, of_joints))}"
        )


_RULES = {"TwistStamped": _twist, "PoseStamped": _pose, "JointTrajectory": _trajectory, "Float64MultiArray": _array}


def gripper_scale(said: Sequence[float], sent: Sequence[float]) -> Callable[[float], float]:
    """Return what maps the action's [open, closed] to that of the topic, in proportion between them."""
    if not said or not sent:
        return lambda value: value
    (opens, closes), (open_sent, closed_sent) = said, sent
    slope = (closed_sent - open_sent) / (closes - opens)
    return lambda value: open_sent + slope * (value - opens)
