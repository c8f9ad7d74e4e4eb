"""What stands around a policy node, each as a process that a test may kill: ``peer.py camera`` or ``peer.py robot``."""

from __future__ import annotations

import contextlib
import itertools
import sys

import numpy as np
import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from sensor_msgs.msg import JointState
from std_msgs.msg import Header

from flashvla_ros.messages.images import encode_image
from flashvla_ros.nodes import interfaces

PERIOD_S = 0.2


def camera(node: Node) -> None:
    """Reliable, with noise, five images a second."""
    images = node.create_publisher(interfaces.IMAGE.type, "image", 1)
    rng = np.random.default_rng()

    def shoot() -> None:
        header = Header(stamp=node.get_clock().now().to_msg())
        images.publish(encode_image(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8), header))

    node.create_timer(PERIOD_S, shoot)


def robot(node: Node) -> None:
    """Reads commands, tells its joints; the number of commands goes to standard output."""
    joints = node.create_publisher(JointState, "joint_states", interfaces.JOINT_STATES.qos)
    count = itertools.count(1)
    command, gripper = interfaces.COMMAND, interfaces.GRIPPER_COMMAND
    node.create_subscription(command.type, command.name, lambda _: print(next(count), flush=True), command.qos)
    node.create_subscription(gripper.type, gripper.name, lambda _: None, gripper.qos)
    node.create_timer(0.05, lambda: joints.publish(JointState(name=["x"], position=[0.0])))


def main() -> None:
    rclpy.init()
    node = Node(sys.argv[1])
    {"camera": camera, "robot": robot}[sys.argv[1]](node)
    with contextlib.suppress(KeyboardInterrupt, ExternalShutdownException):
        rclpy.spin(node)


if __name__ == "__main__":
    main()
