"""The guard as a process of its own: small, without a model, between the policy's commands and the controller.

Callbacks judge on the executor's thread; deadlines are kept on another. Both publish with the lock held, so that
nothing passes after a stop.
"""

from __future__ import annotations

import dataclasses
import gc
import math
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.duration import Duration
from rclpy.event_handler import QoSLivelinessChangedInfo, SubscriptionEventCallbacks
from rclpy.subscription import MessageInfo
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Float64, Header
from std_srvs.srv import Trigger

from flashvla_ros.control.robot_state import RobotState
from flashvla_ros.core.errors import ActionError, ObservationError
from flashvla_ros.core.reasons import Reason
from flashvla_ros.guard.realtime import lock_memory, prioritise
from flashvla_ros.guard.rules import Age, Guard, GuardState, GuardStop
from flashvla_ros.guard.settings import ROWS, GuardSettings
from flashvla_ros.messages.commands import COMMAND_TYPES, message_of, stamp_of, values_of
from flashvla_ros.messages.pose import pose_values
from flashvla_ros.nodes import interfaces
from flashvla_ros.nodes.parameters import given_at_start
from flashvla_ros.nodes.process import StoppableNode, run_node

_LOOK_S = 0.02  # between two looks at the publishers; a deadline is kept to the instant
_APART_S = 5e-3  # between two commands; of a flood the rest falls out of the queue, and other processes can go on
_HEARTBEAT_S, _DIAGNOSTICS_S = 0.1, 1.0
_SWITCH_S = 5e-4  # what one thread may keep the other from its deadline
_FLUSH = Duration(nanoseconds=200_000_000)
_PRESSES = 1000  # of a button whose state comes at a high rate: a press must not be pushed out by what follows it


class GuardNode(StoppableNode):
    """The node ``guard``; it fails where it keeps no deadline any more."""

    def __init__(self, **options: Any) -> None:
        """Read the parameters, hear the emergency stop first of all; `options` are those of :class:`rclpy.node.Node`.

        Raises:
            SettingsError: A parameter is unknown, of the wrong type or breaks a rule.
        """
        super().__init__("guard", **options)
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self.settings = settings = GuardSettings.of(given_at_start(self, ROWS))
        self._guard = Guard(settings)
        self._robot = RobotState()
        self._not_alive = 0
        self._report_at = self._diagnose_at = self._next_s = 0.0
        self._reported: GuardState | None = None
        command_type = COMMAND_TYPES[settings.command.type]
        self._command, self._gripper, self._status, self._diagnostics = (
            self.create_publisher(kind, topic.name.replace("guard/", "~/"), topic.qos)
            for kind, topic in (
                (command_type, interfaces.COMMAND),
                (interfaces.GRIPPER_COMMAND.type, interfaces.GRIPPER_COMMAND),
                (interfaces.GUARD_STATUS.type, interfaces.GUARD_STATUS),
                (interfaces.DIAGNOSTICS.type, interfaces.DIAGNOSTICS),
            )
        )
        button = dataclasses.replace(interfaces.EMERGENCY_STOP, depth=_PRESSES)
        self.create_subscription(Bool, button.name, self._on_emergency_stop, button.qos)
        self.create_service(Trigger, interfaces.RESET, self._on_reset)
        joints, pose, gripper = interfaces.JOINT_STATES, interfaces.END_EFFECTOR_POSE, interfaces.GRIPPER_COMMAND
        self.create_subscription(joints.type, joints.name, self._on_joint_states, joints.qos)
        self.create_subscription(pose.type, pose.name, self._on_pose, pose.qos)
        self._grippers = self.create_subscription(
            gripper.type, gripper.name + interfaces.UNGUARDED, self._on_gripper, gripper.qos
        )
        self._commands = self.create_subscription(
            command_type,
            interfaces.COMMAND.name + interfaces.UNGUARDED,
            self._on_command,
            interfaces.COMMAND.qos,
            event_callbacks=SubscriptionEventCallbacks(liveliness=self._on_liveliness),
        )
        self._thread = threading.Thread(target=self._watch, name="guard-deadline", daemon=True)
        self._thread.start()

    def close(self, why: str) -> None:
        """Stop the robot where it moves, and end."""
        with self._lock:
            if self._guard.due_s < math.inf:  # it moves
                self._enact(self._guard.stop(Reason.DEACTIVATED, why, time.monotonic(), self._positions()))
            self._closed.set()
        self._command.wait_for_all_acked(_FLUSH)
        self._thread.join()

    # What arrives, on the executor's thread.

    def _pace(self) -> None:
        time.sleep(max(self._next_s - time.monotonic(), 0.0))
        self._next_s = time.monotonic() + _APART_S

    def _on_command(self, message: Any, info: MessageInfo) -> None:
        self._pace()
        now_s, positions = time.monotonic(), self._positions()
        age = Age(self._age_s(stamp_of(message)), _transit_s(info))
        with self._lock:
            self._look_around()
            try:
                values = values_of(message, self._guard.spec, self.settings.command.frame_id)
            except ActionError as error:
                self._enact(self._guard.stop(Reason.LIMITS, str(error), now_s, positions))
                return
            passes, stop = self._guard.command(values, age, now_s, positions, publisher=_identity(info))
            if passes and not self._closed.is_set():
                self._command.publish(message)
            self._enact(stop)

    def _on_gripper(self, message: Float64, info: MessageInfo) -> None:
        self._pace()
        now_s, positions, age = time.monotonic(), self._positions(), Age(transit_s=_transit_s(info))
        with self._lock:
            passes, stop = self._guard.gripper(message.data, age, now_s, positions)
            if passes and not self._closed.is_set():
                self._gripper.publish(message)
            self._enact(stop)

    def _on_emergency_stop(self, message: Bool) -> None:
        if message.data:
            with self._lock:
                topic, reset = self.resolve_topic_name(interfaces.EMERGENCY_STOP.name), f"{self.get_name()}/reset"
                detail = f"asked for on {topic}; holds until {self.resolve_service_name(reset)}"
                now_s, positions = time.monotonic(), self._positions()
                self._enact(self._guard.stop(Reason.EMERGENCY_STOP, detail, now_s, positions))

    def _on_reset(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        with self._lock:
            released = self._guard.reset(time.monotonic())
            self._report_at = 0.0
        response.success = True
        response.message = "emergency stop released" if released else "there was no emergency stop"
        return response

    def _on_liveliness(self, event: QoSLivelinessChangedInfo) -> None:
        with self._lock:
            self._guard.alive, self._not_alive = event.alive_count > 0, event.not_alive_count
            self._look_around()
            self._enact(self._guard.tick(time.monotonic(), self._positions()))

    def _on_joint_states(self, message: JointState) -> None:
        wanted = zip(message.name, message.position, strict=False)
        self._robot.update(time.monotonic(), {name: at for name, at in wanted if name in self._guard.spec.names})

    def _on_pose(self, message: Any) -> None:
        try:
            self._robot.update(time.monotonic(), pose_values(message, self.settings.command.frame_id))
        except ObservationError as error:
            self.get_logger().warning(str(error), throttle_duration_sec=5.0)

    # Deadlines, on a thread of their own.

    def _watch(self) -> None:
        wait_s = 0.0
        try:
            while not self._closed.wait(wait_s):
                with self._lock:
                    now_s = time.monotonic()
                    self._look_around()
                    self._enact(self._guard.tick(now_s, self._positions()))
                    self._report(now_s)
                    wait_s = min(max(self._guard.due_s - time.monotonic(), 0.0) + 1e-4, _LOOK_S)
        except Exception as error:  # noqa: BLE001  # whatever it is, a guard that keeps no deadline must not go on
            self.failure = f"no deadline is kept any more: {error!r}"
            self.get_logger().error(self.failure)

    def _look_around(self) -> None:
        """Count who publishes commands; one that is known not to run may be of a process that was killed."""
        topics = self._commands.topic_name, self._grippers.topic_name
        self._guard.writers = max(map(self.count_publishers, topics)) - self._not_alive

    def _enact(self, stop: GuardStop | None) -> None:
        if stop is None:
            return
        if stop.values is not None:
            header = Header(stamp=self.get_clock().now().to_msg(), frame_id=self.settings.command.frame_id)
            self._command.publish(message_of(self.settings.command.type, stop.values, self._guard.spec, header))
        line = f"stopped, {stop.cause}: {stop.detail}"
        if stop.cause is Reason.DEACTIVATED:
            self.get_logger().info(line)
        else:  # two calls: rclpy ties a severity to the line that logs
            self.get_logger().error(line)
        self._report_at = 0.0

    def _report(self, now_s: float) -> None:
        """Publish a heartbeat, at once where something has changed, and more seldom the diagnostics."""
        state = self._guard.state
        if now_s < self._report_at and state is self._reported:
            return
        self._report_at, self._reported = now_s + _HEARTBEAT_S, state
        guard, stop = self._guard, self._guard.stopped_by
        figures = {
            "state": state,
            "cause": stop.cause if stop else "",
            **{name: getattr(guard, name) for name in ("passed", "refused", "stops", "writers", "alive")},
        }
        topic, level, message = self._command.topic_name, DiagnosticStatus.OK, str(state)
        if stop:
            level, message = DiagnosticStatus.ERROR, f"stopped, {stop.cause}: {stop.detail}"
        elif self.count_publishers(topic) > 1:
            level, message = DiagnosticStatus.WARN, f"{topic} has another publisher, whose commands nobody guards"
        status = DiagnosticStatus(
            level=level,
            name=self.get_fully_qualified_name(),
            message=message,
            values=[KeyValue(key=key, value=str(value)) for key, value in figures.items()],
        )
        self._status.publish(status)
        if now_s >= self._diagnose_at:
            self._diagnose_at = now_s + _DIAGNOSTICS_S
            header = Header(stamp=self.get_clock().now().to_msg())
            self._diagnostics.publish(DiagnosticArray(header=header, status=[status]))

    def _positions(self) -> dict[str, float]:
        return self._robot.positions(time.monotonic(), self.settings.guard.state_timeout_s)

    def _age_s(self, stamp_s: float | None) -> float | None:
        return None if stamp_s is None else self.get_clock().now().nanoseconds * 1e-9 - stamp_s


def _transit_s(info: MessageInfo) -> float | None:
    """Return the time since a message was published, by the system's clock; None where the middleware does not say."""
    return time.time() - info["source_timestamp"] * 1e-9 if info.get("source_timestamp") else None


def _identity(info: Mapping[str, Any]) -> bytes:
    """Return who published a message; empty where the middleware does not say."""
    found: bytes = info.get("publisher_gid", {}).get("data", b"")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run the guard as a process."""

    def make() -> GuardNode:
        sys.setswitchinterval(_SWITCH_S)
        node = GuardNode()
        gc.freeze()  # what start has made is never looked through again
        priority = node.settings.guard.priority
        for refusal in (prioritise(priority) if priority else "", lock_memory()):
            if refusal:
                node.get_logger().info(refusal)
        node.get_logger().info(f"guards {node.resolve_topic_name(interfaces.COMMAND.name)}")
        return node

    return run_node(make, arguments)


if __name__ == "__main__":
    sys.exit(main())
