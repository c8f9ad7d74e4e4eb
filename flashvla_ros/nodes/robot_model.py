"""What the robot says of its joints, before anything moves: their names, and their limits out of a URDF."""

from __future__ import annotations

import time

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.wait_for_message import wait_for_message

from flashvla_ros.control.urdf import check_names, limits_of, read_urdf
from flashvla_ros.core.errors import SettingsError
from flashvla_ros.core.settings import LimitsSettings
from flashvla_ros.core.types import ActionSpec
from flashvla_ros.nodes import interfaces

_DESCRIPTION_S = 5.0  # longest wait for robot_description
_JOINT_STATES_S = 1.0  # in which every joint of a robot that publishes any has been heard of


def urdf_limits(node: Node, limits: LimitsSettings, spec: ActionSpec) -> dict[str, list[float]]:
    """Return the parameters that the URDF sets, by name; none where no URDF is asked for.

    Raises:
        SettingsError: There is no URDF, or it lacks the action's joints, or usable limits of one; names them.
    """
    if not limits.urdf and not limits.robot_description:
        return {}
    if limits.robot_description:
        text, source = _description(node)
    else:
        text, source = read_urdf(limits.urdf), limits.urdf
    values, notes = limits_of(text, source, spec)
    for note in notes:
        node.get_logger().warning(note)
    return values


def check_reported(node: Node, spec: ActionSpec) -> None:
    """Check the action's joints against those that the robot reports, where somebody does.

    A robot may report its joints in several messages, so they are gathered for a while.

    Raises:
        SettingsError: Joints are reported, and not all of the action's; names both lists.
    """
    topic = interfaces.JOINT_STATES
    name = node.resolve_topic_name(topic.name)
    if not spec.joints or not node.count_publishers(name):  # which takes a name as it is, whatever it is remapped to
        return
    reported: set[str] = set()
    ear = rclpy.create_node(  # of its own, for ours is in a callback
        f"{node.get_name()}_configure",
        context=node.context,
        use_global_arguments=False,
        enable_rosout=False,
        start_parameter_services=False,
    )
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(ear)
    try:
        ear.create_subscription(topic.type, name, lambda message: reported.update(message.name), topic.qos)
        end_s = time.monotonic() + _JOINT_STATES_S
        while not reported.issuperset(spec.joints) and (remaining_s := end_s - time.monotonic()) > 0.0:
            executor.spin_once(timeout_sec=remaining_s)
    finally:
        executor.shutdown()
        ear.destroy_node()
    if reported:
        check_names(spec, reported, f"joints on {name}")


def _description(node: Node) -> tuple[str, str]:
    topic = interfaces.ROBOT_DESCRIPTION
    name = node.resolve_topic_name(topic.name)
    _, message = wait_for_message(topic.type, node, name, qos_profile=topic.qos, time_to_wait=_DESCRIPTION_S)
    if message is None:
        raise SettingsError(
            f"limits.robot_description is true, but nothing came on {name} within {_DESCRIPTION_S:g} s: start "
            f"robot_state_publisher, or give a file as limits.urdf"
        )
    return message.data, name
