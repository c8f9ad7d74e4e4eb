"""What a geometry_msgs/PoseStamped says of the end effector, whichever library decoded it."""

from __future__ import annotations

import math
from typing import Any

from flashvla_ros.core.errors import ObservationError
from flashvla_ros.core.rotations import named_pose, normalised


def in_frame(message: Any, frame: str) -> bool:
    """Return whether a message is in a frame, or in none; a slash in front, as ROS 1 had it, means nothing."""
    given: str = message.header.frame_id
    return given.lstrip("/") in ("", frame.lstrip("/"))


def pose_values(message: Any, frame: str) -> dict[str, float]:
    """Return a pose by the names of its dimensions, its rotation both as Euler angles and as a unit quaternion.

    Args:
        message: A PoseStamped.
        frame: The frame that it must be in, ``command.frame_id``; a message without a frame is taken to be.

    Raises:
        ObservationError: It is in another frame or not finite, or its quaternion is no rotation.
    """
    if not in_frame(message, frame):
        raise ObservationError(
            f"end_effector_pose: its frame is {message.header.frame_id!r}, but command.frame_id is {frame!r}: "
            f"publish it in that frame"
        )
    position, turn = message.pose.position, message.pose.orientation
    place = (float(position.x), float(position.y), float(position.z))
    if not all(map(math.isfinite, place)):
        raise ObservationError("end_effector_pose: the position is not finite")
    try:
        quaternion = normalised((turn.x, turn.y, turn.z, turn.w))
    except ValueError as error:
        raise ObservationError(f"end_effector_pose: {error}") from error
    return named_pose(place, quaternion)
