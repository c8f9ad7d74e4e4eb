"""What the node says of itself: ~/status and /diagnostics once a second, ~/settings on change."""

from __future__ import annotations

import time
from collections.abc import Callable

from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode
from std_msgs.msg import Header, String

from flashvla_ros.control.tally import Tally
from flashvla_ros.core.provenance import Provenance
from flashvla_ros.nodes import interfaces
from flashvla_ros.nodes.status import Health, diagnostics, policy_status

_PERIOD_S = 1.0


class Reporter:
    """Speaks from configure to cleanup, also while the node is inactive: a silent node looks like a dead one.

    Args:
        node: Whose publishers these are.
        facts: Returns what there is to say.
    """

    def __init__(self, node: LifecycleNode, facts: Callable[[], tuple[Health, Tally]]) -> None:
        self._node = node
        self._facts = facts
        self._status, self._diagnostics, self._settings = (
            node.create_publisher(topic.type, topic.name, topic.qos)
            for topic in (interfaces.STATUS, interfaces.DIAGNOSTICS, interfaces.SETTINGS)
        )
        # On simulated time, which may stand still, a status would not come when it is needed most.
        self._timer = node.create_timer(_PERIOD_S, self.report, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def report(self) -> None:
        """Publish the state of this moment."""
        health, tally = self._facts()
        header, now_s = Header(stamp=self._node.get_clock().now().to_msg()), time.monotonic()
        status = policy_status(health, tally, header, now_s)
        self._status.publish(status)
        name = self._node.get_fully_qualified_name()
        self._diagnostics.publish(diagnostics(health, tally, status, name, now_s))

    def settings(self, provenance: Provenance) -> None:
        """Publish every parameter in force, and the weights, for whoever records."""
        self._settings.publish(String(data=provenance.to_json()))

    def close(self) -> None:
        """Close the topics."""
        self._node.destroy_timer(self._timer)
        for publisher in (self._status, self._diagnostics, self._settings):
            self._node.destroy_publisher(publisher)
