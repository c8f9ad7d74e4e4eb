"""Actions as ROS messages: which dimension goes where, checked once before anything moves.

A message for the motion, of the type that the parameters ask for, and one for the gripper.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from std_msgs.msg import Float64, Header

from flashvla_ros.control.command_rules import TWIST_NAMES, check_command, gripper_scale, rotation_names
from flashvla_ros.control.targets import command_spec, joint_positions, started_from
from flashvla_ros.core.rotations import normalised, quaternion_of
from flashvla_ros.core.settings import CommandSettings
from flashvla_ros.core.types import EULER_NAMES, POSITION_NAMES, ActionKind, ActionSpec, FloatArray
from flashvla_ros.messages.commands import COMMAND_TYPES, message_of

Positions = Mapping[str, float]
Values = Callable[[FloatArray, Positions], FloatArray]  # of an action [T, D], and where the robot is: of the message


class Command(NamedTuple):
    """The messages of one control step; `gripper` is None where the action has no gripper."""

    motion: Any
    gripper: Float64 | None


Encoder = Callable[[FloatArray, Header, Positions], Command]


def _twist(spec: ActionSpec, motion: list[int]) -> Values:
    """The first time step as a velocity: a delta is divided by the time that it covers."""
    fields = [TWIST_NAMES.index(spec.names[index]) for index in motion]
    per_second = [1.0 / spec.dt_s if spec.kinds[index] is ActionKind.DELTA else 1.0 for index in motion]

    def values(action: FloatArray, _positions: Positions) -> FloatArray:
        twist = np.zeros((1, len(TWIST_NAMES)))
        twist[0, fields] = action[0, motion] * per_second
        return twist

    return values


def _pose(spec: ActionSpec, motion: list[int]) -> Values:
    """The first time step as a pose: where to be, never how far to go."""
    rotation = rotation_names([spec.names[index] for index in motion]) or EULER_NAMES
    place = [spec.names.index(name) for name in POSITION_NAMES]
    turn = [spec.names.index(name) for name in rotation]

    def values(action: FloatArray, _positions: Positions) -> FloatArray:
        given = action[0, turn].tolist()
        quaternion = quaternion_of(*given) if rotation == EULER_NAMES else normalised(given)
        return np.array([[*action[0, place], *quaternion]])

    return values


def _joints(command_type: str, spec: ActionSpec, motion: list[int]) -> Values:
    """Every time step, its dimensions in the order of action.names; what a controller of positions is to reach.

    A forward_command_controller hands every value to the joint in its place as it is, so a joint's delta becomes the
    position that it leads to. End-effector dimensions go in the policy's own units.
    """
    counted = started_from(command_type, spec)
    return lambda action, positions: joint_positions(action, spec, counted, positions)[:, motion]


def make_encoder(
    settings: CommandSettings, spec: ActionSpec, gripper_ends: Sequence[float] = ()
) -> tuple[type[Any], Encoder]:
    """Return the type of the command topic and what turns an action [T, D] into its messages.

    The dimension of kind ``gripper`` leaves on its own topic; all others make the command. The encoder is also told
    where the robot is, by the name of a dimension, because some commands count from there.

    Args:
        settings: Type of the command, and what gripper_command says.
        spec: The action's dimensions.
        gripper_ends: What the action says to open and to close the gripper: ``action.gripper``.

    Raises:
        SettingsError: The message type cannot carry an action of these names and kinds; names both.
    """
    check_command(settings.type, spec)
    gripper = next((index for index, kind in enumerate(spec.kinds) if kind is ActionKind.GRIPPER), None)
    scale = gripper_scale(gripper_ends, settings.gripper)
    motion, sent = [index for index in range(spec.size) if index != gripper], command_spec(settings.type, spec)
    if settings.type == "TwistStamped":
        values = _twist(spec, motion)
    elif settings.type == "PoseStamped":
        values = _pose(spec, motion)
    else:
        values = _joints(settings.type, spec, motion)

    def encoder(action: FloatArray, header: Header, positions: Positions) -> Command:
        closing = None if gripper is None else Float64(data=scale(float(action[0, gripper])))
        return Command(message_of(settings.type, values(action, positions), sent, header), closing)

    return COMMAND_TYPES[settings.type], encoder
