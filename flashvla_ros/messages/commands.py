"""The four command messages as values [T, D] and back, whichever parameters made them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped, TwistStamped
from std_msgs.msg import Float64MultiArray, Header, MultiArrayDimension
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from flashvla_ros.core.errors import ActionError
from flashvla_ros.core.types import ActionSpec, FloatArray
from flashvla_ros.messages.pose import in_frame

COMMAND_TYPES: dict[str, type[Any]] = {
    kind.__name__: kind for kind in (TwistStamped, PoseStamped, JointTrajectory, Float64MultiArray)
}
_EARLY = 0.01  # of a time step, by which a row may be due at another time


def values_of(message: Any, spec: ActionSpec, frame: str = "") -> FloatArray:
    """Return the values [T, D] of a command, which may be anything but finite.

    Args:
        message: The command.
        spec: What its values mean.
        frame: That a twist or a pose must be in, ``command.frame_id``; empty: any. One without a frame is taken to be.

    Raises:
        ActionError: It has other joints or another size than `spec`, rows due at other times, or another frame.
    """
    if frame and isinstance(message, TwistStamped | PoseStamped) and not in_frame(message, frame):
        given = message.header.frame_id
        raise ActionError(f"a command cannot be judged: its frame is {given!r}, but command.frame_id is {frame!r}")
    if isinstance(message, TwistStamped):
        linear, angular = message.twist.linear, message.twist.angular
        return np.array([[linear.x, linear.y, linear.z, angular.x, angular.y, angular.z]])
    if isinstance(message, PoseStamped):
        place, turn = message.pose.position, message.pose.orientation
        return np.array([[place.x, place.y, place.z, turn.x, turn.y, turn.z, turn.w]])
    rows = [list(message.data)] if isinstance(message, Float64MultiArray) else list(_rows(message, spec))
    if not rows or any(len(row) != spec.size for row in rows):
        raise ActionError(f"the command has {[len(row) for row in rows]} values, expected {spec.size} a row")
    return np.array(rows, dtype=np.float64)


def _rows(message: JointTrajectory, spec: ActionSpec) -> Iterator[list[float]]:
    if tuple(message.joint_names) != spec.names:
        raise ActionError(f"the command is for the joints {list(message.joint_names)}, not {list(spec.names)}")
    for index, point in enumerate(message.points):
        if len(point.velocities) or len(point.accelerations) or len(point.effort):
            raise ActionError("the command has velocities, accelerations or efforts, which nothing here limits")
        due_s = point.time_from_start.sec + point.time_from_start.nanosec * 1e-9
        if abs(due_s - (index + 1) * spec.dt_s) > _EARLY * spec.dt_s:
            raise ActionError(
                f"the command's point {index + 1} is due after {due_s:g} s, but action.dt_s is {spec.dt_s:g}: at "
                f"another pace its steps are other speeds"
            )
        yield list(point.positions)


def message_of(command_type: str, values: FloatArray, spec: ActionSpec, header: Header) -> Any:
    """Return the message of a command [T, D] of finite values; all types but a trajectory carry its first row.

    A trajectory's stamp is 0, "start now": one that answers an image of the past would be over before it arrives, and
    joint_trajectory_controller refuses those. The array's layout has the names as its label.
    """
    row = [float(value) for value in values[0]]
    if command_type == "TwistStamped":
        message: Any = TwistStamped(header=header)
        for part, numbers in ((message.twist.linear, row[:3]), (message.twist.angular, row[3:])):
            part.x, part.y, part.z = numbers
        return message
    if command_type == "PoseStamped":
        message = PoseStamped(header=header)
        place, turn = message.pose.position, message.pose.orientation
        place.x, place.y, place.z, turn.x, turn.y, turn.z, turn.w = row
        return message
    if command_type == "Float64MultiArray":
        size = len(row)
        message = Float64MultiArray(data=row)
        message.layout.dim = [MultiArrayDimension(label=",".join(spec.names), size=size, stride=size)]
        return message
    message = JointTrajectory(header=Header(frame_id=header.frame_id), joint_names=list(spec.names))
    for index, point in enumerate(values):
        after = JointTrajectoryPoint(positions=point.tolist())
        # In whole nanoseconds first: 49 times 1/49 s is less than a second, by so little that it rounds to one.
        duration = after.time_from_start
        duration.sec, duration.nanosec = divmod(round((index + 1) * spec.dt_s * 1e9), 10**9)
        message.points.append(after)
    return message


def stamp_of(message: Any) -> float | None:
    """Return the stamp of the observation that a command answers [s, ROS clock]; None where it carries none."""
    if not hasattr(message, "header"):
        return None
    stamp = message.header.stamp
    return stamp.sec + stamp.nanosec * 1e-9 if stamp.sec or stamp.nanosec else None
