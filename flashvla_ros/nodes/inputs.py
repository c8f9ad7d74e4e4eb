"""The policy node's subscriptions: validate, stamp, post. Nothing here waits or computes."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterable
from typing import Any

from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped
from rclpy.event_handler import QoSRequestedIncompatibleQoSInfo, SubscriptionEventCallbacks
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import qos_policy_name_from_kind
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Bool, Header, String

from flashvla_ros.control.latency import SlidingWindow
from flashvla_ros.control.robot_state import RobotState
from flashvla_ros.core.errors import ObservationError
from flashvla_ros.core.settings import Settings
from flashvla_ros.core.types import ImageArray, Observation
from flashvla_ros.messages.images import decode_compressed, decode_image, same_picture
from flashvla_ros.messages.pose import pose_values
from flashvla_ros.nodes import interfaces
from flashvla_ros.nodes.rejections import Rejections

MAX_INSTRUCTION = 1000  # characters; a robot's task is a sentence, and the model reads every token of it


@dataclasses.dataclass(frozen=True)
class StampedObservation(Observation):
    """An observation with the header of its image: a float of seconds cannot give back the nanoseconds."""

    header: Header = dataclasses.field(default_factory=Header)


@dataclasses.dataclass(frozen=True)
class Listener:
    """Who is told of what arrives, on the executor's thread."""

    image: Callable[[str, bool], None]  # camera, and whether the picture is the same as before
    observation: Callable[[StampedObservation], None]
    instruction: Callable[[str], None]
    emergency_stop: Callable[[], None]


def checked_instruction(text: str) -> str:
    """Return an instruction stripped of white space around it.

    Raises:
        ObservationError: It is empty, or longer than any instruction.
    """
    stripped = text.strip()
    if not stripped:
        raise ObservationError("an instruction must not be empty")
    if len(stripped) > MAX_INSTRUCTION:
        raise ObservationError(
            f"an instruction must have at most {MAX_INSTRUCTION} characters, got {len(stripped)}: {stripped[:40]!r}…"
        )
    return stripped


class Inputs:
    """Everything the node hears.

    An observation is made whenever the first camera's image arrives and no other camera is silent.

    Attributes:
        instruction: The instruction in force, empty until there is one.
        listening: False while the node is not active: images are dropped without being looked at.
        rejections: Messages that could not be used.
        images: Usable images of the first camera, for their rate.

    Args:
        node: Whose subscriptions these are.
        settings: Returns those in force; the cameras are those of now.
        listener: Who is told.
    """

    def __init__(self, node: LifecycleNode, settings: Callable[[], Settings], listener: Listener) -> None:
        self._node = node
        self._settings = settings
        self._listener = listener
        self._images: dict[str, ImageArray] = {}
        self._received_s: dict[str, float] = {}
        self._joints, self._pose = RobotState(), RobotState()
        given = settings().node.instruction
        self.instruction = checked_instruction(given) if given else ""
        self.listening = False
        logger = node.get_logger()
        self.rejections = Rejections(lambda line: logger.warning(line))
        self.images = SlidingWindow()
        self._topics = interfaces.image_topics(settings().camera)
        self._first = next(iter(self._topics))
        subscriptions = [
            (interfaces.EMERGENCY_STOP, self._on_emergency_stop),
            (interfaces.INSTRUCTION, self._on_instruction),
            (interfaces.JOINT_STATES, self._on_joint_states),
            (interfaces.END_EFFECTOR_POSE, self._on_pose),
            *((topic, functools.partial(self._on_image, camera)) for camera, topic in self._topics.items()),
        ]
        self._subscriptions = [
            node.create_subscription(topic.type, topic.name, callback, topic.qos, event_callbacks=self._events(topic))
            for topic, callback in subscriptions
        ]

    def start(self) -> None:
        """Listen to images from now on; those of the time before are stale."""
        self._images.clear()
        self._received_s.clear()
        self.listening = True

    def close(self) -> None:
        """Stop hearing anything."""
        self.listening = False
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions = []

    @property
    def missing(self) -> str:
        """What no observation can be made without, in words; empty where nothing is missing."""
        if topics := self._resolved(camera for camera in self._topics if camera not in self._images):
            return f"no usable image yet on {topics}"
        if topics := self._resolved(self._silent(time.monotonic())):
            return f"no usable image any more on {topics}"
        if not self.instruction:
            return "no instruction yet on " + self._node.resolve_topic_name(interfaces.INSTRUCTION.name)
        return ""

    def _resolved(self, cameras: Iterable[str]) -> str:
        return ", ".join(self._node.resolve_topic_name(self._topics[camera].name) for camera in cameras)

    def _silent(self, now_s: float) -> list[str]:
        """Cameras for which the watchdog stops the robot: an old picture of theirs must not move it again."""
        limit_s = self._settings().control.image_timeout_s
        return [camera for camera, received_s in self._received_s.items() if now_s - received_s > limit_s]

    def positions(self) -> dict[str, float]:
        """Return where the robot is, by the name of a joint or of a part of its pose; what is too old is left out."""
        joints, pose = self._positions()
        return {**joints, **pose}

    def _positions(self) -> tuple[dict[str, float], dict[str, float]]:
        now_s, most_s = time.monotonic(), self._settings().control.state_timeout_s
        return self._joints.positions(now_s, most_s), self._pose.positions(now_s, most_s)

    def _events(self, topic: interfaces.Interface) -> SubscriptionEventCallbacks:
        """Reject a publisher whose messages can never come: an emergency stop that nobody hears must not go unseen."""

        def on_incompatible(event: QoSRequestedIncompatibleQoSInfo) -> None:
            self.rejections.add(
                f"{self._node.resolve_topic_name(topic.name)}: a publisher offers another "
                f"{qos_policy_name_from_kind(event.last_policy_kind)} than this node asks for "
                f"({'reliable' if topic.reliable else 'best effort'}, volatile); nothing of it is heard"
            )

        return SubscriptionEventCallbacks(incompatible_qos=on_incompatible)

    def _on_image(self, camera: str, message: Image | CompressedImage) -> None:
        if not self.listening:
            return
        received_s = time.monotonic()
        try:
            decode: Callable[[Any], ImageArray] = decode_image if isinstance(message, Image) else decode_compressed
            image = decode(message)
        except ObservationError as error:
            self.rejections.add(f"camera {camera}: {error}")
            return
        before, self._images[camera], self._received_s[camera] = self._images.get(camera), image, received_s
        self._listener.image(camera, before is not None and same_picture(before, image))
        if camera == self._first:
            self.images.add(received_s)
            if not self.missing:
                self._listener.observation(self._observe(message.header, received_s))

    def _observe(self, header: Header, received_s: float) -> StampedObservation:
        if header.stamp == Time():  # a driver that does not stamp
            header = Header(stamp=self._node.get_clock().now().to_msg(), frame_id=header.frame_id)
        joints, pose = self._positions()
        return StampedObservation(
            images={camera: self._images[camera] for camera in self._topics},
            instruction=self.instruction,
            stamp_s=header.stamp.sec + header.stamp.nanosec * 1e-9,
            received_s=received_s,
            joint_positions=joints,
            pose=pose,
            header=header,
        )

    def _on_instruction(self, message: String) -> None:
        try:
            instruction = checked_instruction(message.data)
        except ObservationError as error:
            self.rejections.add(str(error))
            return
        if instruction != self.instruction:
            self.instruction = instruction
            self._listener.instruction(instruction)

    def _on_joint_states(self, message: JointState) -> None:
        if len(message.name) != len(message.position):
            self.rejections.add(f"joint_states: {len(message.name)} names but {len(message.position)} positions")
            return
        if not all(map(math.isfinite, message.position)):
            self.rejections.add("joint_states: a position is not finite")
            return
        self._joints.update(time.monotonic(), dict(zip(message.name, message.position, strict=True)))

    def _on_pose(self, message: PoseStamped) -> None:
        try:
            self._pose.update(time.monotonic(), pose_values(message, self._settings().command.frame_id))
        except ObservationError as error:
            self.rejections.add(str(error))

    def _on_emergency_stop(self, message: Bool) -> None:
        if message.data:
            self._listener.emergency_stop()
