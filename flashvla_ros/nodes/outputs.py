"""The policy node's publishers. A command's header carries the stamp of the observation that it answers."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode, LifecyclePublisher
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Header

from flashvla_ros.control.mailbox import Mailbox
from flashvla_ros.control.step_result import StepResult
from flashvla_ros.core.settings import Settings
from flashvla_ros.core.types import ActionSpec, FloatArray
from flashvla_ros.messages.images import encode_compressed
from flashvla_ros.nodes import interfaces
from flashvla_ros.nodes.commands import make_encoder
from flashvla_ros.nodes.inputs import StampedObservation
from flashvla_ros.nodes.status import gate_status

_FLUSH = Duration(nanoseconds=200_000_000)


class Outputs:
    """Everything the node says while it is active; rclpy's lifecycle publishers are silent at other times.

    Args:
        node: Whose publishers these are.
        settings: Type and frame of the command.
        spec: What the dimensions of an action mean.

    Raises:
        SettingsError: The command's type cannot carry such an action.
    """

    def __init__(self, node: LifecycleNode, settings: Settings, spec: ActionSpec) -> None:
        self._node = node
        self._frame_id = settings.command.frame_id
        self._positions: dict[str, float] = {}  # of the last step: what a stop starts from where nothing newer is known
        command_type, self._encode = make_encoder(settings.command, spec, settings.action.gripper)

        def publisher(topic: interfaces.Interface, message_type: type[Any] | None = None) -> LifecyclePublisher[Any]:
            return node.create_lifecycle_publisher(message_type or topic.type, topic.name, topic.qos)

        self._command = publisher(interfaces.COMMAND, command_type)
        self._gripper = publisher(interfaces.GRIPPER_COMMAND)
        self._gate = publisher(interfaces.GATE)
        self._overlay_publisher = publisher(interfaces.OVERLAY)
        self._overlay = OverlayPublisher(self._overlay_publisher)

    def step(self, result: StepResult) -> float:
        """Publish the command of one step, then what the gate thought, then the picture of it.

        In a dry run no command is published. Returns the seconds from the observation's stamp to the command.
        """
        observation = result.observation
        header = observation.header if isinstance(observation, StampedObservation) else self._now()
        self._positions = observation.positions
        if not result.settings.control.dry_run:
            self._send(result.command, Header(stamp=header.stamp, frame_id=self._frame_id), self._positions)
        latency_s = self._node.get_clock().now().nanoseconds * 1e-9 - observation.stamp_s
        self._gate.publish(gate_status(result, header))
        self._overlay.post(result, header)
        return latency_s

    def stop(self, command: FloatArray, positions: Mapping[str, float]) -> None:
        """Publish the stop action [1, D] from where the robot is; no observation asked for it, so its stamp is now."""
        self._send(command, self._now(), {**self._positions, **positions})

    def flush(self) -> None:
        """Wait until every reader has the last command, though not for one that has died."""
        for publisher in (self._command, self._gripper):
            publisher.wait_for_all_acked(_FLUSH)

    def close(self) -> None:
        """Close every topic."""
        self._overlay.close()
        for publisher in (self._command, self._gripper, self._gate, self._overlay_publisher):
            self._node.destroy_lifecycle_publisher(publisher)

    def _send(self, action: FloatArray, header: Header, positions: Mapping[str, float]) -> None:
        command = self._encode(action, header, positions)
        self._command.publish(command.motion)
        if command.gripper is not None:
            self._gripper.publish(command.gripper)

    def _now(self) -> Header:
        return Header(stamp=self._node.get_clock().now().to_msg(), frame_id=self._frame_id)


class OverlayPublisher:
    """Draws the newest step on a thread of its own, and only while somebody watches.

    Drawing and JPEG cost tens of milliseconds, which no command waits for.
    """

    def __init__(self, publisher: LifecyclePublisher[CompressedImage]) -> None:
        self._publisher = publisher
        self._mailbox: Mailbox[tuple[StepResult, Header]] = Mailbox()
        self._thread = threading.Thread(target=self._run, name="flashvla-overlay", daemon=True)
        self._thread.start()

    def post(self, result: StepResult, header: Header) -> None:
        """Draw a step, if anybody watches and no newer one comes first."""
        if self._publisher.get_subscription_count():
            self._mailbox.post((result, header))

    def close(self) -> None:
        """End the thread; the publisher may be destroyed afterwards."""
        self._mailbox.close()
        self._thread.join()

    def _run(self) -> None:
        from flashvla_ros.view.overlay import draw

        while (item := self._mailbox.take()) is not None:
            result, header = item
            self._publisher.publish(encode_compressed(draw(result), header))
