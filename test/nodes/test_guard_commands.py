"""Every type of command through the real guard; of two arms with a guard each, what stops one leaves the other."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped, TwistStamped
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import JointState
from std_msgs.msg import Header

from flashvla_ros.guard.node import GuardNode
from flashvla_ros.guard.rules import GuardState
from flashvla_ros.messages.commands import message_of, values_of
from flashvla_ros.nodes import interfaces

PATIENCE_S = 60.0  # for what takes milliseconds on an idle machine
FREE = [-10.0, 10.0]
JOINTS = {"action.names": ["a", "b"], "action.kinds": ["absolute", "absolute"]}
AT = {"a": 0.2, "b": 0.3}
PLACE = [0.4, 0.1, 0.2, 0.0, 0.0, 0.0, 1.0]
# Of each type: its parameters, the range of the first dimension and of the others, a command, and where the arm stops.
CASES: dict[str, tuple[dict[str, Any], list[list[float]], list[list[float]], list[float]]] = {
    "TwistStamped": ({}, [[-0.1, 0.1]] * 6, [[0.05, 0.0, 0.0, 0.0, 0.0, 0.0]], [0.0] * 6),
    "PoseStamped": ({}, [[0.0, 1.0], *[FREE] * 6], [[0.45, *PLACE[1:]]], PLACE),
    "JointTrajectory": (JOINTS, [[-1.0, 1.0], FREE], [[0.25, 0.3], [0.3, 0.35]], list(AT.values())),
    "Float64MultiArray": (JOINTS, [[-1.0, 1.0], FREE], [[0.25, 0.3]], list(AT.values())),
}


class Arm:
    """A guard, and this process as the policy and the robot around it.

    Attributes:
        sent: The values [T, D] that have left the guard.
    """

    def __init__(self, name: str, command_type: str, context: Context) -> None:
        meaning, bounds, _, _ = CASES[command_type]
        values = {
            **meaning,
            "command.type": command_type,
            "limits.lower": [low for low, _ in bounds],
            "limits.upper": [high for _, high in bounds],
            "guard.timeout_s": PATIENCE_S,  # a loaded machine is not silent
            "guard.max_age_s": PATIENCE_S,
            "guard.max_transit_s": PATIENCE_S,
            "guard.state_timeout_s": PATIENCE_S,
            "guard.resume_s": 0.05,
        }
        overrides = [Parameter(key, value=value) for key, value in values.items()]
        self.guard = GuardNode(context=context, namespace=name, parameter_overrides=overrides)
        self.node = Node("arm", context=context, namespace=name)
        self.sent: list[np.ndarray[Any, Any]] = []
        (kind,) = (kind for kind in interfaces.COMMAND.types if kind.__name__ == command_type)
        topic, spec = interfaces.COMMAND, self.guard.settings.spec
        self.policy = self.node.create_publisher(kind, topic.name + interfaces.UNGUARDED, topic.qos)
        self.node.create_subscription(kind, topic.name, lambda message: self.sent.append(values_of(message, spec)), 10)
        self.joints = self.node.create_publisher(JointState, interfaces.JOINT_STATES.name, 1)
        self.pose = self.node.create_publisher(PoseStamped, interfaces.END_EFFECTOR_POSE.name, 1)

    def command(self, rows: list[list[float]]) -> None:
        header = Header(stamp=self.node.get_clock().now().to_msg())
        settings = self.guard.settings
        self.policy.publish(message_of(settings.command.type, np.array(rows), settings.spec, header))

    def measure(self) -> None:
        self.joints.publish(JointState(name=list(AT), position=list(AT.values())))
        self.pose.publish(message_of("PoseStamped", np.array([PLACE]), self.guard.settings.spec, Header()))

    @property
    def measured(self) -> bool:
        return set(self.guard.settings.spec.names) <= self.guard._positions().keys()

    @property
    def connected(self) -> bool:
        ends = (self.policy, self.joints, self.pose, self.guard._command)
        return all(end.get_subscription_count() for end in ends) and self.guard._guard.writers == 1

    def close(self) -> None:
        self.guard.close("the test is over")
        self.guard.destroy_node()
        self.node.destroy_node()


@pytest.mark.parametrize("command_type", CASES)
def test_a_command_passes_whole_and_a_wrong_one_stops_its_own_arm_alone(command_type):
    _, _, good, stop = CASES[command_type]
    context = Context()
    rclpy.init(context=context)
    executor = SingleThreadedExecutor(context=context)
    arms = left, right = [Arm(name, command_type, context) for name in ("left", "right")]

    def until(condition: Callable[[], Any], what: str) -> None:
        end_s = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < end_s, f"{what} did not come: {left.sent}, {right.sent}"
            executor.spin_once(timeout_sec=0.01)

    try:
        for arm in arms:
            executor.add_node(arm.guard)
            executor.add_node(arm.node)
        until(lambda: left.connected and right.connected, "both ends")
        for arm in arms:
            arm.measure()
        until(lambda: all(arm.measured for arm in arms), "where the arms are")
        for _ in range(2):  # a driver that lost its joints: the stop action below is where they were last
            left.joints.publish(JointState(name=list(AT), position=[math.nan, math.inf]))
            executor.spin_once(timeout_sec=0.05)
        for arm in arms:
            arm.command(good)
        until(lambda: left.sent and right.sent, "the commands")
        left.command([[20.0, *good[0][1:]], *good[1:]])
        until(lambda: len(left.sent) == 2, "the stop action")
        right.command(good)
        until(lambda: len(right.sent) == 2, "the other arm's command")
        until(lambda: left.guard._guard.state is GuardState.READY, "the end of the stop")
        left.command(good)
        until(lambda: len(left.sent) == 3, "the next command")
        assert (left.guard._guard.stops, right.guard._guard.stops) == (1, 0)
    finally:
        for arm in arms:
            arm.close()
        executor.shutdown()
        rclpy.try_shutdown(context=context)
    np.testing.assert_allclose(left.sent[0], good)
    np.testing.assert_allclose(left.sent[1], [stop])
    np.testing.assert_allclose(left.sent[2], good)
    np.testing.assert_allclose(right.sent[:2], [good, good])


def test_a_flood_of_commands_leaves_the_processor_to_others():
    """With real-time priority nothing else would get it; what is not taken in time falls out of the queue."""
    context = Context()
    rclpy.init(context=context)
    arm = Arm("left", "TwistStamped", context)
    try:
        settings = arm.guard.settings
        message = message_of("TwistStamped", np.array(CASES["TwistStamped"][2]), settings.spec, Header())
        started_s, began_s = time.monotonic(), time.thread_time()
        for _ in range(21):
            arm.guard._on_command(message, {})
        assert time.monotonic() - started_s >= 20 * 0.005
        assert time.thread_time() - began_s < 10 * 0.005  # it rests
    finally:
        arm.close()
        rclpy.try_shutdown(context=context)


def test_a_guard_whose_watch_has_failed_ends_and_stops_the_robot_as_it_does():
    context = Context()
    rclpy.init(context=context)
    arm = Arm("left", "TwistStamped", context)
    try:
        arm.guard.destroy_publisher(arm.guard._status)  # no heartbeat can be published any more
        arm.guard._thread.join(PATIENCE_S)
        assert "InvalidHandle" in arm.guard.failure
    finally:
        arm.close()
        rclpy.try_shutdown(context=context)


def test_whoever_else_commands_the_robot_is_seen():
    """One on the controller's topic goes past the guard, which says so; one of grippers in front of it is stopped."""
    context = Context()
    rclpy.init(context=context)
    executor = SingleThreadedExecutor(context=context)
    arm = Arm("left", "TwistStamped", context)
    executor.add_node(arm.node)
    said: list[DiagnosticStatus] = []
    arm.node.create_subscription(DiagnosticStatus, "guard/status", said.append, interfaces.GUARD_STATUS.qos)

    def until(condition: Callable[[], Any]) -> None:
        end_s = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < end_s, said
            executor.spin_once(timeout_sec=0.01)

    try:
        topic = interfaces.COMMAND
        past = arm.node.create_publisher(TwistStamped, topic.name, topic.qos)
        until(lambda: said and said[-1].level == DiagnosticStatus.WARN)
        assert said[-1].message == "/left/command has another publisher, whose commands nobody guards"
        arm.node.destroy_publisher(past)
        until(lambda: said[-1].level == DiagnosticStatus.OK)
        topic = interfaces.GRIPPER_COMMAND
        for _ in range(2):
            arm.node.create_publisher(topic.type, topic.name + interfaces.UNGUARDED, topic.qos)
        until(lambda: said[-1].level == DiagnosticStatus.ERROR)
        assert "2 publishers send commands" in said[-1].message
    finally:
        arm.close()
        executor.shutdown()
        rclpy.try_shutdown(context=context)


def test_a_command_in_another_frame_stops_the_robot():
    context = Context()
    rclpy.init(context=context)
    arm = Arm("left", "TwistStamped", context)
    try:
        for frame, state in (("base_link", GuardState.PASSING), ("tool0", GuardState.STOPPED)):
            header = Header(stamp=arm.node.get_clock().now().to_msg(), frame_id=frame)
            twist = np.array(CASES["TwistStamped"][2])
            arm.guard._on_command(message_of("TwistStamped", twist, arm.guard.settings.spec, header), {})
            assert arm.guard._guard.state is state
    finally:
        arm.close()
        rclpy.try_shutdown(context=context)
