"""From recorded messages to the observations that the node makes of them, one at a time."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from flashvla_ros.bags.reader import Bag
from flashvla_ros.bags.steps import RecordedStep, RunLog, StepFinder
from flashvla_ros.bags.storage import RawMessage
from flashvla_ros.bags.topics import Topics
from flashvla_ros.control.robot_state import RobotState
from flashvla_ros.core.errors import BagError, ObservationError
from flashvla_ros.core.reasons import Reason
from flashvla_ros.core.types import ImageArray, Observation
from flashvla_ros.messages.images import decode_compressed, decode_image
from flashvla_ros.messages.pose import pose_values

JITTER_S = 0.005  # a camera's period may be this much shorter than that of control.rate_hz


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
    """One observation out of a recording.

    Attributes:
        index: Its number, from 0.
        observation: As the node makes it.
        time_ns: When its image was recorded.
        recorded: The step that answered it, None in a recording without the node's decisions.
        reset: Why the memory was emptied before it, as far as messages tell; None where it was not.
    """

    index: int
    observation: Observation
    time_ns: int
    recorded: RecordedStep | None = None
    reset: Reason | None = None


class Frames:
    """Streams the observations of a recording; no more than one image of each camera is held.

    With the node's steps in `log`, exactly the observations that it answered come out, in their order. Otherwise
    every image of the first camera makes one, at most `rate_hz` of them in a second, and none while another camera is
    silent for more than `image_timeout_s`. Where the robot is counts for `state_timeout_s`, and a pose only in the
    frame `frame_id`, as in the node.

    Attributes:
        warnings: Complete after iterating: what was left out, or is odd.
        missing: Recorded steps whose images were not found, after iterating.
    """

    def __init__(
        self,
        bag: Bag,
        topics: Topics,
        log: RunLog | None = None,
        *,
        instruction: str = "",
        rate_hz: float = 0.0,
        image_timeout_s: float = float("inf"),
        state_timeout_s: float = 1.0,
        frame_id: str = "base_link",
    ) -> None:
        self._bag = bag
        self._topics = topics
        self._finder = StepFinder(log.steps) if log and log.steps else None
        self._interval_s = 1.0 / rate_hz - JITTER_S if rate_hz > 0.0 else 0.0
        self._image_timeout_s = image_timeout_s
        self._instruction = instruction
        self._cameras = {topic: camera for camera, topic in topics.images.items()}
        self._first = next(iter(topics.images))
        self._latest: dict[str, RawMessage] = {}
        self._joints, self._pose = RobotState(), RobotState()
        self._state_timeout_s, self._frame_id = state_timeout_s, frame_id
        self._reset: Reason | None = None
        self._sizes: dict[str, tuple[int, int]] = {}
        self._stamp_s = -float("inf")
        self._count = 0
        self._oddities: dict[str, str] = {}
        self._repeats: Counter[str] = Counter()

    @property
    def warnings(self) -> list[str]:
        """One sentence for each kind of oddity, with the first of its kind."""
        counts = self._repeats
        return [
            text + (f" (and {counts[kind] - 1} more)" if counts[kind] > 1 else "")
            for kind, text in self._oddities.items()
        ]

    @property
    def missing(self) -> list[RecordedStep]:
        """Recorded steps whose images were not found."""
        return self._finder.missing if self._finder else []

    def __iter__(self) -> Iterator[Frame]:
        topics = self._topics
        others = filter(
            None, (topics.instruction, topics.joint_states, topics.end_effector_pose, topics.emergency_stop)
        )
        for message in self._bag.messages([*topics.images.values(), *others]):
            if message.topic not in self._cameras:
                self._note(message)
                continue
            self._latest[self._cameras[message.topic]] = message
            if self._cameras[message.topic] == self._first:
                frame = self._frame(message)
                if frame is not None:
                    self._count += 1
                    yield frame
        self._finish()

    def _note(self, message: RawMessage) -> None:
        content = self._bag.decode(message)
        if message.topic == self._topics.instruction:
            self._instruction = content.data.strip() or self._instruction
        elif message.topic == self._topics.joint_states:
            positions = dict(zip(content.name, map(float, content.position), strict=False))
            self._joints.update(message.time_ns * 1e-9, positions)
        elif message.topic == self._topics.end_effector_pose:
            with suppress(ObservationError):  # the node rejected it too
                self._pose.update(message.time_ns * 1e-9, pose_values(content, self._frame_id))
        elif content.data:
            self._reset = Reason.EMERGENCY_STOP

    def _frame(self, message: RawMessage) -> Frame | None:
        content = self._bag.decode(message)
        sec, nanosec = self._stamp(content, message)
        stamp_s = sec + nanosec * 1e-9  # as the node computes it
        recorded = None
        if self._finder:
            recorded = self._finder.find(sec * 10**9 + nanosec, message.time_ns)
            if recorded is None:
                return None
        elif 0.0 <= stamp_s - self._stamp_s < self._interval_s or self._is_silent(message.time_ns):
            return None
        instruction = recorded.instruction if recorded else self._instruction
        if len(self._latest) < len(self._cameras) or not instruction:
            return None
        try:
            images = {camera: self._pixels(camera, content) for camera in self._topics.images}
        except ObservationError as error:
            self._odd("unusable", f"the image at {message.time_ns / 1e9:.3f} s cannot be used: {error}")
            return None
        if stamp_s <= self._stamp_s:
            self._odd(
                "backwards", f"time runs backwards from {self._stamp_s:.3f} s to {stamp_s:.3f} s; the gate starts anew"
            )
        self._stamp_s = stamp_s
        reset, self._reset = self._reset, None
        joints, pose = (
            state.positions(message.time_ns * 1e-9, self._state_timeout_s) for state in (self._joints, self._pose)
        )
        observation = Observation(images, instruction, stamp_s, joint_positions=joints, pose=pose)
        return Frame(self._count, observation, message.time_ns, recorded, reset)

    def _is_silent(self, now_ns: int) -> bool:
        for camera, newest in self._latest.items():
            silence_s = (now_ns - newest.time_ns) * 1e-9
            if silence_s > self._image_timeout_s:
                self._odd("silent", f"camera {camera} is silent for {silence_s:.2f} s at {now_ns / 1e9:.3f} s")
                return True
        return False

    def _stamp(self, content: Any, message: RawMessage) -> tuple[int, int]:
        """Seconds and nanoseconds of an image, those of its recording where the driver does not stamp."""
        stamp = content.header.stamp
        if stamp.sec or stamp.nanosec:
            return stamp.sec, stamp.nanosec
        if self._finder:
            self._finder = None
            self._odd("unstamped", "images have no stamps, so which the node answered cannot be told; all are taken")
        return divmod(message.time_ns, 10**9)

    def _pixels(self, camera: str, first: Any) -> ImageArray:
        content = first if camera == self._first else self._bag.decode(self._latest[camera])
        image = decode_image(content) if hasattr(content, "encoding") else decode_compressed(content)
        size = image.shape[1], image.shape[0]
        before = self._sizes.setdefault(camera, size)
        if size != before:
            self._odd(
                f"size of {camera}",
                f"images of camera {camera} change from {before[0]} x {before[1]} to {size[0]} x {size[1]}",
            )
            self._sizes[camera] = size
        return image

    def _odd(self, kind: str, text: str) -> None:
        self._oddities.setdefault(kind, text)
        self._repeats[kind] += 1

    def _finish(self) -> None:
        if self._finder:
            self._finder.finish()
        for step in self.missing:
            self._odd(
                "missing", f"the image of step {step.step} at stamp {step.stamp_ns / 1e9:.3f} s is not in the bag"
            )
        if self._count:
            return
        if not self._topics.instruction and not self._instruction and not self._finder:
            raise BagError(
                f"{self._bag.path} has no instruction: name its topic with --topic instruction=/TOPIC, "
                "or give one with --instruction"
            )
        reasons = "; ".join([*self.warnings, *self._bag.warnings]) or "no image comes after an instruction"
        raise BagError(f"{self._bag.path} has no observation to replay: {reasons}")
