"""End-effector commands: a velocity for MoveIt Servo, a pose for a controller that follows one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from geometry_msgs.msg import Point, PoseStamped, Quaternion, TwistStamped
from std_msgs.msg import Header

from flashvla_ros.control.command_rules import rotation_names
from flashvla_ros.core.rotations import normalised, quaternion_of
from flashvla_ros.core.types import EULER_NAMES, POSITION_NAMES, ActionKind, ActionSpec, FloatArray

# Dimension of an action to part and axis of a twist. The demo's and OpenVLA's end-effector actions use these names.
_TWIST_FIELDS = {
    **{name: ("linear", axis) for name, axis in zip(POSITION_NAMES, "xyz", strict=True)},
    **{name: ("angular", axis) for name, axis in zip(EULER_NAMES, "xyz", strict=True)},
}


def twist_encoder(
    spec: ActionSpec, motion: list[int]
) -> Callable[[FloatArray, Header, Mapping[str, float]], TwistStamped]:
    """The first time step as a velocity: a delta is divided by the time that it covers."""
    fields = [
        (index, *_TWIST_FIELDS[spec.names[index]], 1.0 / spec.dt_s if spec.kinds[index] is ActionKind.DELTA else 1.0)
        for index in motion
    ]

    def encode(action: FloatArray, header: Header, _positions: Mapping[str, float]) -> TwistStamped:
        message = TwistStamped(header=header)
        for index, part, axis, per_second in fields:
            setattr(getattr(message.twist, part), axis, float(action[0, index]) * per_second)
        return message

    return encode


def pose_encoder(
    spec: ActionSpec, motion: list[int]
) -> Callable[[FloatArray, Header, Mapping[str, float]], PoseStamped]:
    """The first time step as a pose: where to be, never how far to go."""
    rotation = rotation_names([spec.names[index] for index in motion]) or EULER_NAMES
    place = [spec.names.index(name) for name in POSITION_NAMES]
    turn = [spec.names.index(name) for name in rotation]

    def encode(action: FloatArray, header: Header, _positions: Mapping[str, float]) -> PoseStamped:
        x, y, z = (float(action[0, index]) for index in place)
        given = [float(action[0, index]) for index in turn]
        quaternion = quaternion_of(*given) if len(given) == len(EULER_NAMES) else normalised(given)
        message = PoseStamped(header=header)
        message.pose.position = Point(x=x, y=y, z=z)
        message.pose.orientation = Quaternion(**dict(zip("xyzw", quaternion, strict=True)))
        return message

    return encode
