"""Joint commands: a trajectory for joint_trajectory_controller, one array for a forward_command_controller."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from rclpy.duration import Duration
from std_msgs.msg import Float64MultiArray, Header, MultiArrayDimension
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from flashvla_ros.control.targets import joint_positions, started_from
from flashvla_ros.core.types import ActionSpec, FloatArray


def trajectory_encoder(
    spec: ActionSpec, motion: list[int]
) -> Callable[[FloatArray, Header, Mapping[str, float]], JointTrajectory]:
    """The whole chunk as positions, one point for each time step, the first of them one step after it arrives.

    The stamp is 0, "start now": a trajectory that answers an image of the past would be over before it arrives, and
    joint_trajectory_controller refuses those.
    """
    names = [spec.names[index] for index in motion]
    counted = started_from("JointTrajectory", spec)

    def encode(action: FloatArray, header: Header, positions: Mapping[str, float]) -> JointTrajectory:
        message = JointTrajectory(header=Header(frame_id=header.frame_id), joint_names=names)
        for row, values in enumerate(joint_positions(action, spec, counted, positions)[:, motion]):
            after = Duration(nanoseconds=round((row + 1) * spec.dt_s * 1e9))
            message.points.append(JointTrajectoryPoint(positions=values.tolist(), time_from_start=after.to_msg()))
        return message

    return encode


def array_encoder(
    spec: ActionSpec, motion: list[int]
) -> Callable[[FloatArray, Header, Mapping[str, float]], Float64MultiArray]:
    """The first time step, a value for each dimension in the order of action.names; the layout's label has the names.

    A forward_command_controller hands every value to the joint in its place as it is, so a joint's delta becomes the
    position that it leads to. End-effector dimensions go in the policy's own units.
    """
    names, counted = ",".join(spec.names[index] for index in motion), started_from("Float64MultiArray", spec)

    def encode(action: FloatArray, _header: Header, positions: Mapping[str, float]) -> Float64MultiArray:
        values: FloatArray = np.asarray(joint_positions(action[:1], spec, counted, positions)[0, motion])
        message = Float64MultiArray(data=values.tolist())
        message.layout.dim = [MultiArrayDimension(label=names, size=values.size, stride=values.size)]
        return message

    return encode
