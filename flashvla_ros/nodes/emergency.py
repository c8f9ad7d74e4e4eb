"""The emergency stop's own node, executor and thread, from the process's first moment to its last.

The policy node's executor decodes images and loads models; a stop must not wait for either, and must not be pushed out
of its queue by what was sent meanwhile.
"""

from __future__ import annotations

import contextlib
import threading
import traceback
from collections.abc import Callable

from rclpy.context import Context
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import HistoryPolicy
from std_msgs.msg import Bool

from flashvla_ros.nodes import interfaces

_JOIN_S = 5.0


class EmergencyStop:
    """Latches every ``true`` on the topic, in every lifecycle state.

    Attributes:
        pressed: A stop was asked for since the last release.

    Args:
        node: Whose topic it is; it is heard on a second node, ``<name>_emergency_stop``, of the same enclave.
        on_press: Is called on this object's thread at every press that finds none latched.
        events: Of the subscription.
    """

    def __init__(self, node: Node, on_press: Callable[[], None], events: SubscriptionEventCallbacks) -> None:
        self.pressed = False
        self._on_press, self._logger = on_press, node.get_logger()
        topic = interfaces.EMERGENCY_STOP
        qos = topic.qos
        qos.history = HistoryPolicy.KEEP_ALL
        # A participant of its own: a flood of large images fills the other's queues, and a press that finds no room
        # there comes with Fast DDS' next heartbeat, up to 3 s late.
        self._context = Context()
        self._context.init(["--ros-args", "--enclave", _enclave(node)], domain_id=node.context.get_domain_id())
        self._node = Node(
            f"{node.get_name()}_emergency_stop",
            context=self._context,
            namespace=node.get_namespace(),
            use_global_arguments=False,  # a remapped node name would be given to this node too
            enable_rosout=False,
            start_parameter_services=False,
        )
        name = node.resolve_topic_name(topic.name)
        self._node.create_subscription(topic.type, name, self._on_message, qos, event_callbacks=events)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._spin, name="flashvla-emergency-stop", daemon=True)
        self._thread.start()

    def release(self) -> bool:
        """Unlatch; returns whether a stop was latched."""
        released, self.pressed = self.pressed, False
        return released

    def close(self) -> None:
        """Stop hearing."""
        self._executor.shutdown()
        self._thread.join(_JOIN_S)
        self._node.destroy_node()
        self._context.try_shutdown()

    def _on_message(self, message: Bool) -> None:
        if message.data and not self.pressed:
            self.pressed = True
            try:
                self._on_press()
            except Exception:  # noqa: BLE001  # whatever it was, the next press must be heard
                self._logger.error(traceback.format_exc().rstrip())

    def _spin(self) -> None:
        with contextlib.suppress(ExternalShutdownException):
            self._executor.spin()


def _enclave(node: Node) -> str:
    itself = node.get_name(), node.get_namespace()
    named = node.get_node_names_and_namespaces_with_enclaves()
    return next((enclave for *name, enclave in named if tuple(name) == itself), "/")
