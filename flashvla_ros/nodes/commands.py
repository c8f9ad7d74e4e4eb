"""Actions as ROS messages: which dimension goes where, checked once before anything moves.

A message for the motion, of the type that the parameters ask for, and one for the gripper.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from geometry_msgs.msg import Point, PoseStamped, Quaternion, TwistStamped
from rclpy.duration import Duration
from std_msgs.msg import Float64, Float64MultiArray, Header, MultiArrayDimension
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from flashvla_ros.control.command_rules import check_command, gripper_scale, rotation_names
from flashvla_ros.control.targets import joint_positions, started_from
from flashvla_ros.core.rotations import normalised, quaternion_of
from flashvla_ros.core.settings import CommandSettings
from flashvla_ros.core.types import EULER_NAMES, POSITION_NAMES, ActionKind, ActionSpec, FloatArray

Positions = Mapping[str, float]
MotionEncoder = Callable[[FloatArray, Header, Positions], Any]  # of an action [T, D], and where the robot is

# Dimension of an action to part and axis of a twist. The demo's and OpenVLA's end-effector actions use these names.
_TWIST_FIELDS = {
    **{name: ("linear", axis) for name, axis in zip(POSITION_NAMES, "xyz", strict=True)},
    **{name: ("angular", axis) for name, axis in zip(EULER_NAMES, "xyz", strict=True)},
}


@dataclasses.dataclass(frozen=True)
class Command:
    """The messages of one control step; `gripper` is None where the action has no gripper."""

    motion: Any
    gripper: Float64 | None


Encoder = Callable[[FloatArray, Header, Positions], Command]


def _twist(spec: ActionSpec, motion: list[int]) -> MotionEncoder:
    """The first time step as a velocity: a delta is divided by the time that it covers."""
    fields = [
        (index, *_TWIST_FIELDS[spec.names[index]], 1.0 / spec.dt_s if spec.kinds[index] is ActionKind.DELTA else 1.0)
        for index in motion
    ]

    def encode(action: FloatArray, header: Header, _positions: Positions) -> TwistStamped:
        message = TwistStamped(header=header)
        for index, part, axis, per_second in fields:
            setattr(getattr(message.twist, part), axis, float(action[0, index]) * per_second)
        return message

    return encode


def _pose(spec: ActionSpec, motion: list[int]) -> MotionEncoder:
    """The first time step as a pose: where to be, never how far to go."""
    rotation = rotation_names([spec.names[index] for index in motion]) or EULER_NAMES
    place = [spec.names.index(name) for name in POSITION_NAMES]
    turn = [spec.names.index(name) for name in rotation]

    def encode(action: FloatArray, header: Header, _positions: Positions) -> PoseStamped:
        x, y, z = (float(action[0, index]) for index in place)
        given = [float(action[0, index]) for index in turn]
        quaternion = quaternion_of(*given) if len(given) == len(EULER_NAMES) else normalised(given)
        message = PoseStamped(header=header)
        message.pose.position = Point(x=x, y=y, z=z)
        message.pose.orientation = Quaternion(**dict(zip("xyzw", quaternion, strict=True)))
        return message

    return encode


def _trajectory(spec: ActionSpec, motion: list[int]) -> MotionEncoder:
    """The whole chunk as positions, one point for each time step, the first of them one step after it arrives.

    The stamp is 0, "start now": a trajectory that answers an image of the past would be over before it arrives, and
    joint_trajectory_controller refuses those.
    """
    names = [spec.names[index] for index in motion]
    counted = started_from("JointTrajectory", spec)

    def encode(action: FloatArray, header: Header, positions: Positions) -> JointTrajectory:
        message = JointTrajectory(header=Header(frame_id=header.frame_id), joint_names=names)
        for row, values in enumerate(joint_positions(action, spec, counted, positions)[:, motion]):
            after = Duration(nanoseconds=round((row + 1) * spec.dt_s * 1e9))
            message.points.append(JointTrajectoryPoint(positions=values.tolist(), time_from_start=after.to_msg()))
        return message

    return encode


def _array(spec: ActionSpec, motion: list[int]) -> MotionEncoder:
    """The first time step, a value for each dimension in the order of action.names; the layout's label has the names.

    A forward_command_controller hands every value to the joint in its place as it is, so a joint's delta becomes the
    position that it leads to. End-effector dimensions go in the policy's own units.
    """
    names, counted = ",".join(spec.names[index] for index in motion), started_from("Float64MultiArray", spec)

    def encode(action: FloatArray, _header: Header, positions: Positions) -> Float64MultiArray:
        values: FloatArray = np.asarray(joint_positions(action[:1], spec, counted, positions)[0, motion])
        message = Float64MultiArray(data=values.tolist())
        message.layout.dim = [MultiArrayDimension(label=names, size=values.size, stride=values.size)]
        return message

    return encode


# Message type, and what makes one of the motion; given the indices of the dimensions that move.
COMMANDS: dict[str, tuple[type[Any], Callable[[ActionSpec, list[int]], MotionEncoder]]] = {
    "TwistStamped": (TwistStamped, _twist),
    "PoseStamped": (PoseStamped, _pose),
    "JointTrajectory": (JointTrajectory, _trajectory),
    "Float64MultiArray": (Float64MultiArray, _array),
}


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
    message_type, encoder_of = COMMANDS[settings.type]
    encode = encoder_of(spec, [index for index in range(spec.size) if index != gripper])

    def encoder(action: FloatArray, header: Header, positions: Positions) -> Command:
        closing = None if gripper is None else Float64(data=scale(float(action[0, gripper])))
        return Command(encode(action, header, positions), closing)

    return message_type, encoder
