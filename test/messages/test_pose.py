"""A measured pose by the names of an action's dimensions, and the poses that are refused."""

from __future__ import annotations

import math

import pytest
from geometry_msgs.msg import PoseStamped

from flashvla_ros.core.errors import ObservationError
from flashvla_ros.core.rotations import quaternion_of
from flashvla_ros.messages.pose import pose_values

ANGLES = (0.4, -0.5, 2.0)


def pose(frame: str = "base", place: tuple = (0.1, -0.2, 0.3), turn: tuple = quaternion_of(*ANGLES)) -> PoseStamped:
    message = PoseStamped()
    message.header.frame_id = frame
    position, orientation = message.pose.position, message.pose.orientation
    position.x, position.y, position.z = place
    orientation.x, orientation.y, orientation.z, orientation.w = turn
    return message


@pytest.mark.parametrize("frame", ["base", "/base", ""])
def test_a_pose_has_the_names_of_its_dimensions(frame: str) -> None:
    values = pose_values(pose(frame), "base")
    assert pose_values(pose(frame), "/base") == values
    assert list(values) == ["x", "y", "z", "rx", "ry", "rz", "qx", "qy", "qz", "qw"]
    assert list(values.values()) == pytest.approx([0.1, -0.2, 0.3, *ANGLES, *quaternion_of(*ANGLES)])


def test_a_quaternion_of_another_length_is_normalised() -> None:
    values = pose_values(pose(turn=tuple(3.0 * value for value in quaternion_of(*ANGLES))), "base")
    assert list(values.values()) == pytest.approx([0.1, -0.2, 0.3, *ANGLES, *quaternion_of(*ANGLES)])


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (pose("Xbase"), "its frame is 'Xbase', but command.frame_id is 'base': publish it in that frame"),
        (pose("camera"), "its frame is 'camera', but command.frame_id is 'base': publish it in that frame"),
        (pose(place=(0.0, math.nan, 0.0)), "the position is not finite"),
        (pose(place=(0.0, 0.0, math.inf)), "the position is not finite"),
        (pose(turn=(0.0,) * 4), "a quaternion of length 0 is no rotation"),
        (pose(turn=(math.nan, 0.0, 0.0, 1.0)), "a quaternion of length nan is no rotation"),
    ],
)
def test_a_pose_that_cannot_be_used_says_why(message: PoseStamped, words: str) -> None:
    with pytest.raises(ObservationError) as refusal:
        pose_values(message, "base")
    assert str(refusal.value) == f"end_effector_pose: {words}"
