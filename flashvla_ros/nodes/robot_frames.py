"""What RViz shows of the simulated robot: its description, its links' frames and the pose of its hand."""

from __future__ import annotations

from typing import Any

from builtin_interfaces.msg import Time
from geometry_msgs.msg import Point, Pose, PoseStamped, Quaternion, Transform, TransformStamped, Vector3
from rclpy.node import Node
from std_msgs.msg import Header, String

from flashvla_ros.nodes import interfaces
from flashvla_ros.sim.description import ROOT, LinkPose
from flashvla_ros.sim.world import AnyWorld

try:
    from tf2_msgs.msg import TFMessage
except ModuleNotFoundError:  # a ROS 2 installation has it, the wheels do not
    TFMessage = None


class RobotFrames:
    """Publishes the robot's shape and place.

    Args:
        node: Owns the publishers.
    """

    def __init__(self, node: Node) -> None:
        description, pose = interfaces.ROBOT_DESCRIPTION, interfaces.END_EFFECTOR_POSE
        self._description = node.create_publisher(String, description.name, description.qos)
        self._hand = node.create_publisher(PoseStamped, pose.name, pose.qos)
        self._frames = node.create_publisher(TFMessage, "/tf", 10) if TFMessage is not None else None
        self._described = False

    def publish(self, world: AnyWorld, stamp: Time) -> None:
        """Publish where the arm is now; its description once."""
        if not self._described:
            self._description.publish(String(data=world.scene.urdf()))
            self._described = True
        header = Header(stamp=stamp, frame_id=ROOT)
        poses = world.scene.link_poses()
        hand = world.scene.hand_pose
        pose = Pose(position=Point(**_axes(hand.position)), orientation=_quaternion(hand))
        self._hand.publish(PoseStamped(header=header, pose=pose))
        if self._frames is not None:
            self._frames.publish(TFMessage(transforms=[_transform(header, link) for link in poses]))


def _transform(header: Header, link: LinkPose) -> TransformStamped:
    turn = Transform(translation=Vector3(**_axes(link.position)), rotation=_quaternion(link))
    return TransformStamped(header=header, child_frame_id=link.name, transform=turn)


def _quaternion(link: LinkPose) -> Quaternion:
    return Quaternion(**_axes(link.orientation[:3]), w=float(link.orientation[3]))


def _axes(values: Any) -> dict[str, float]:
    return dict(zip("xyz", map(float, values), strict=True))
