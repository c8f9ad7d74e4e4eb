"""The policy node's subscriptions: decode, hand to the assembler, post. Nothing here waits or computes."""

from __future__ import annotations

import dataclasses
import functools
import resource
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped
from rclpy.clock import Clock, ClockType
from rclpy.event_handler import QoSRequestedIncompatibleQoSInfo, SubscriptionEventCallbacks
from rclpy.lifecycle import LifecycleNode
from rclpy.node import Node
from rclpy.qos import qos_policy_name_from_kind
from rclpy.subscription import MessageInfo, Subscription
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Header, String

from flashvla_ros.control.assembler import Assembler
from flashvla_ros.control.latency import SlidingWindow
from flashvla_ros.control.watchdog import Watchdog
from flashvla_ros.control.worker import Worker
from flashvla_ros.core.errors import ObservationError
from flashvla_ros.core.settings import Settings
from flashvla_ros.core.types import Observation
from flashvla_ros.messages.images import decode_compressed, decode_image, same_picture
from flashvla_ros.messages.pose import pose_values
from flashvla_ros.nodes import interfaces
from flashvla_ros.nodes.logs import Rejections

_MOST_GROWTH = 2**24  # bytes, before topics of images that have several publishers are opened again
_LOOK_S = 1.0
_QUIET_S = 10.0


@dataclasses.dataclass(frozen=True)
class StampedObservation(Observation):
    """An observation with the header of its image: a float of seconds cannot give back the nanoseconds."""

    header: Header = dataclasses.field(default_factory=Header)


def unheard_publishers(
    node: Node, topic: interfaces.Interface, reject: Callable[[str], None]
) -> SubscriptionEventCallbacks:
    """Return the events of a subscription that tell `reject` of a publisher whose messages can never come."""

    def on_incompatible(event: QoSRequestedIncompatibleQoSInfo) -> None:
        reject(
            f"{node.resolve_topic_name(topic.name)}: a publisher offers another "
            f"{qos_policy_name_from_kind(event.last_policy_kind)} than this node asks for "
            f"({'reliable' if topic.reliable else 'best effort'}, volatile); nothing of it is heard"
        )

    return SubscriptionEventCallbacks(incompatible_qos=on_incompatible)


class Inputs:
    """Everything the node hears but the emergency stop.

    Attributes:
        rejections: Messages that could not be used.
        images: Usable images of the first camera, for their rate.

    Args:
        node: Whose subscriptions these are.
        settings: Returns those in force; the cameras are those of now.
        rejections: Counts what cannot be used.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        node: LifecycleNode,
        settings: Callable[[], Settings],
        rejections: Rejections,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._node = node
        self._settings = settings
        self._clock = clock
        self._control: tuple[Worker, Watchdog] | None = None
        self._since_ns = 0  # when it began, by the clock of the middleware
        self._topics = interfaces.image_topics(settings().camera)
        self._assembler = Assembler(self._topics, settings)
        self.rejections = rejections
        self.images = SlidingWindow()
        self._subscriptions = [
            self._hear(interfaces.INSTRUCTION, self._on_instruction),
            self._hear(interfaces.JOINT_STATES, self._on_joint_states),
            self._hear(interfaces.END_EFFECTOR_POSE, self._on_pose),
        ]
        self._cameras = self._hear_cameras()
        self._crowded = False  # several have published on a camera's topic since it was opened
        self._least_bytes = 0  # of this process before that; 0: not looked at
        self._timer = node.create_timer(_LOOK_S, self._bound_memory, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _hear(self, topic: interfaces.Interface, callback: Callable[[Any], None]) -> Subscription:
        events = unheard_publishers(self._node, topic, self.rejections.add)
        return self._node.create_subscription(topic.type, topic.name, callback, topic.qos, event_callbacks=events)

    def _hear_cameras(self) -> list[Subscription]:
        topics = self._topics.items()
        return [self._hear(topic, functools.partial(self._on_image, camera)) for camera, topic in topics]

    def start(self, worker: Worker, watchdog: Watchdog) -> None:
        """Hand observations to a worker from now on; images of the time before are stale."""
        self._assembler.forget_images()
        self._since_ns = time.time_ns()
        self._control = worker, watchdog

    def stop(self) -> None:
        """Drop images from now on without looking at them."""
        self._control = None

    def close(self) -> None:
        """Stop hearing anything."""
        self.stop()
        self._node.destroy_timer(self._timer)
        for subscription in (*self._subscriptions, *self._cameras):
            self._node.destroy_subscription(subscription)
        self._subscriptions, self._cameras = [], []

    @property
    def instruction(self) -> str:
        """The instruction in force, empty until there is one."""
        return self._assembler.instruction

    @property
    def missing(self) -> str:
        """What no observation can be made without, in words; empty where nothing is missing."""
        if self._control is None:
            return "not active"
        if topics := self._resolved(self._assembler.absent):
            return f"no usable image yet on {topics}"
        if topics := self._resolved(self._assembler.silent(self._clock())):
            return f"no usable image any more on {topics}"
        if not self.instruction:
            return "no instruction yet on " + self._node.resolve_topic_name(interfaces.INSTRUCTION.name)
        return ""

    def _bound_memory(self) -> None:
        """Open the topics of images again where several publishers make this process grow: a new reader holds nothing.

        Fast DDS keeps for good whatever comes after a newer message of another publisher (docs/robustness.md).
        """
        held = _resident_bytes()
        names = (self._node.resolve_topic_name(topic.name) for topic in self._topics.values())
        self._crowded = self._crowded or any(self._node.count_publishers(name) > 1 for name in names)
        if not self._crowded or not self._least_bytes:
            self._least_bytes = held
        elif held > self._least_bytes + _MOST_GROWTH:
            for subscription in self._cameras:
                self._node.destroy_subscription(subscription)
            self._cameras = self._hear_cameras()
            self._node.get_logger().warning(
                f"memory grew by {(held - self._least_bytes) >> 20} MiB while several publish on one camera's topic: "
                f"the topics of images are opened again",
                throttle_duration_sec=_QUIET_S,
            )
            self._crowded, self._least_bytes = False, 0

    def _resolved(self, cameras: Iterable[str]) -> str:
        return ", ".join(self._node.resolve_topic_name(self._topics[camera].name) for camera in cameras)

    def positions(self) -> dict[str, float]:
        """Return where the robot is, by the name of a joint or of a part of its pose; what is too old is left out."""
        return self._assembler.positions(self._clock())

    def _on_image(self, camera: str, message: Image | CompressedImage, info: MessageInfo) -> None:
        if self._control is None or 0 < info.get("received_timestamp", 0) < self._since_ns:
            return  # it may have waited while the model was loaded
        worker, watchdog = self._control
        arrived_s, header = self._clock(), message.header
        stamped = header.stamp != Time()
        if not stamped:
            header = Header(stamp=self._node.get_clock().now().to_msg(), frame_id=header.frame_id)
        before = self._assembler.image(camera)
        try:
            self._refuse_old(header.stamp)
            image = decode_image(message) if isinstance(message, Image) else decode_compressed(message)
            stamp_s = header.stamp.sec + header.stamp.nanosec * 1e-9
            observation = self._assembler.take_image(camera, image, stamp_s, arrived_s, stamped=stamped)
        except ObservationError as error:
            self.rejections.add(f"camera {camera}: {error}")
            return
        watchdog.image_arrived(camera, same=before is not None and same_picture(before, image))
        if camera == self._assembler.cameras[0]:
            self.images.add(arrived_s)
        if observation is not None:
            values = {**vars(observation), "received_s": arrived_s}
            worker.post(StampedObservation(**values, header=header))

    def _refuse_old(self, stamp: Time) -> None:
        """Refuse an image before it is decoded, such as one that waited while this process was stopped.

        One from the future is refused too: by a clock that is ahead, an old image looks new.
        """
        # By hand: rclpy's own Time raises at a stamp before 1970.
        age_s = (self._node.get_clock().now().nanoseconds - stamp.sec * 10**9 - stamp.nanosec) * 1e-9
        limit_s = self._settings().control.max_image_age_s
        if 0.0 < limit_s < abs(age_s):
            age = f"{age_s:.2f} s old" if age_s > 0.0 else f"{-age_s:.2f} s ahead of this node's clock"
            raise ObservationError(
                f"an image is {age} by its stamp (control.max_image_age_s is {limit_s:g}): let the clocks of camera "
                f"and robot agree, or set it to 0 to answer images of any age"
            )

    def _on_instruction(self, message: String) -> None:
        try:
            is_new = self._assembler.take_instruction(message.data)
        except ObservationError as error:
            self.rejections.add(str(error))
            return
        if is_new:
            self._node.get_logger().info(f"instruction: {self.instruction!r}")
            if self._control:
                worker, _ = self._control
                worker.discard()  # nothing that answers the old one is commanded any more

    def _on_joint_states(self, message: JointState) -> None:
        try:
            self._assembler.take_joints(message.name, message.position, self._clock())
        except ObservationError as error:
            self.rejections.add(str(error))

    def _on_pose(self, message: PoseStamped) -> None:
        try:
            self._assembler.take_pose(pose_values(message, self._settings().command.frame_id), self._clock())
        except ObservationError as error:
            self.rejections.add(str(error))


def _resident_bytes() -> int:
    """Return the memory that this process holds, 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    except OSError:
        return 0
