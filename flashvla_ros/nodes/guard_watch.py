"""The other way too: the policy node notices that its guard is gone, or holds the robot, and stops."""

from __future__ import annotations

import time

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode

from flashvla_ros.control.worker import Worker
from flashvla_ros.core.reasons import Reason
from flashvla_ros.nodes import interfaces

_SILENCE_S = 0.5  # five heartbeats
_LOOK_S = 0.05


class GuardWatch:
    """Holds a worker while no guard would pass its commands on.

    A stop of the guard's is the policy's too: it starts from rest afterwards, as the guard expects.

    Args:
        node: Hears the guard.
        required: Whether there must be one (``control.require_guard``); nothing is watched otherwise.
    """

    def __init__(self, node: LifecycleNode, required: bool) -> None:
        self._node = node
        self._required = required
        self._heard_s = -float("inf")
        self._held_by = ""
        self._worker: Worker | None = None
        if required:
            topic = interfaces.GUARD_STATUS
            self._subscription = node.create_subscription(topic.type, topic.name, self._on_status, topic.qos)
            self._timer = node.create_timer(_LOOK_S, self._look, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def stop(self) -> None:
        """Hold nobody."""
        self._worker = None

    @property
    def missing(self) -> str:
        """What keeps the robot from moving, in words; empty where nothing does."""
        topic = self._node.resolve_topic_name(interfaces.GUARD_STATUS.name)
        if not self._required:
            return ""
        if time.monotonic() - self._heard_s > _SILENCE_S:
            return f"no guard is heard on {topic} (control.require_guard)"
        return self._held_by and f"the guard holds the robot: {self._held_by}"

    def start(self, worker: Worker) -> None:
        """Hold this worker from now on."""
        self._worker = worker
        self._look()

    def close(self) -> None:
        """Hear nothing more."""
        self.stop()
        if self._required:
            self._node.destroy_timer(self._timer)
            self._node.destroy_subscription(self._subscription)

    def _on_status(self, message: DiagnosticStatus) -> None:
        self._heard_s = time.monotonic()
        self._held_by = message.message if message.level == DiagnosticStatus.ERROR else ""
        self._look()

    def _look(self) -> None:
        if self._worker is None:
            return
        missing = self.missing
        self._worker.held = bool(missing)
        if missing:
            self._worker.keep_at_rest(Reason.GUARD, missing)
