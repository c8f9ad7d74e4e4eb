"""From recorded messages to the observations that the node makes of them, one at a time."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator

from flashvla_ros.bags.reader import Bag
from flashvla_ros.bags.steps import RecordedStep, RunLog, StepFinder
from flashvla_ros.bags.storage import RawMessage
from flashvla_ros.bags.topics import Topics
from flashvla_ros.control.assembler import Assembler
from flashvla_ros.core.errors import BagError, ObservationError
from flashvla_ros.core.reasons import Reason
from flashvla_ros.core.settings import Settings, find
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
        reset: Why the memory was emptied before it, as far as steps or messages tell; None where it was not.
    """

    index: int
    observation: Observation
    time_ns: int
    recorded: RecordedStep | None = None
    reset: Reason | None = None


class Frames:
    """Streams the observations of a recording; no more than one image of each camera is held.

    Messages go to the node's own assembler, which is told the time of their recording. With the node's steps in `log`,
    exactly the observations that it answered come out, in their order. Otherwise at most ``control.rate_hz`` of them
    in a second do.

    Attributes:
        warnings: Complete after iterating: what was left out, or is odd.
        missing: Recorded steps whose images were not found, after iterating.

    Args:
        bag: The recording.
        topics: Which topic plays which part.
        settings: In force throughout.
        log: What the node did, where it was recorded.
        instruction: In force until the first recorded one, in place of ``node.instruction``.
    """

    def __init__(
        self, bag: Bag, topics: Topics, settings: Settings, log: RunLog | None = None, instruction: str = ""
    ) -> None:
        self._bag = bag
        self._topics = topics
        self._finder = StepFinder(log.steps) if log and log.steps else None
        if self._finder:  # the node has judged the silence of its cameras, by times that only it knows
            settings = settings.with_values({"control.image_timeout_s": find("control.image_timeout_s").high})
        self._frame_id = settings.command.frame_id
        rate_hz = settings.control.rate_hz
        self._interval_s = 1.0 / rate_hz - JITTER_S if rate_hz > 0.0 else 0.0
        self._cameras = {topic: camera for camera, topic in topics.images.items()}
        self._assembler = Assembler(topics.images, lambda: settings)
        if instruction:
            self._assembler.take_instruction(instruction)
        self._reset: Reason | None = None
        self._before: RecordedStep | None = None
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
            at = f"{message.time_ns / 1e9:.3f} s"
            try:
                if message.topic not in self._cameras:
                    self._note(message)
                elif (frame := self._frame(message)) is not None:
                    self._count += 1
                    yield frame
            except ObservationError as error:  # the node rejected it too
                is_image = message.topic in self._cameras
                what = f"the image at {at} cannot be used" if is_image else f"{message.topic} at {at}"
                self._odd(f"unusable {message.topic}", f"{what}: {error}")
        self._finish()

    def _note(self, message: RawMessage) -> None:
        content, now_s = self._bag.decode(message), message.time_ns * 1e-9
        if message.topic == self._topics.instruction:
            self._assembler.take_instruction(content.data)
        elif message.topic == self._topics.joint_states:
            self._assembler.take_joints(content.name, content.position, now_s)
        elif message.topic == self._topics.end_effector_pose:
            self._assembler.take_pose(pose_values(content, self._frame_id), now_s)
        elif content.data:
            self._reset = Reason.EMERGENCY_STOP

    def _frame(self, message: RawMessage) -> Frame | None:
        content, camera = self._bag.decode(message), self._cameras[message.topic]
        is_first = camera == self._assembler.cameras[0]
        stamp = content.header.stamp
        stamped = bool(stamp.sec or stamp.nanosec)
        sec, nanosec = (stamp.sec, stamp.nanosec) if stamped else divmod(message.time_ns, 10**9)
        tells = is_first or stamped  # another camera's image without a stamp says nothing of the first one's
        recorded = self._step_of(sec * 10**9 + nanosec, message.time_ns, stamped) if tells else None
        if recorded:
            self._assembler.take_instruction(recorded.instruction)
        image = decode_image(content) if hasattr(content, "encoding") else decode_compressed(content)
        self._note_size(camera, image)
        now_s, stamp_s = message.time_ns * 1e-9, sec + nanosec * 1e-9  # as the node computes them
        # What the node answered was no repetition to it: a driver had sent it again after a silence.
        stamped = stamped and recorded is None
        observation = self._assembler.take_image(camera, image, stamp_s, now_s, stamped=stamped)
        if observation is None:
            self._note_silence(now_s, is_first)
            return None
        if self._finder:
            if recorded is None:
                return None
            self._finder.take(recorded)
        elif 0.0 <= stamp_s - self._stamp_s < self._interval_s:
            return None
        if stamp_s <= self._stamp_s:
            self._odd(
                "backwards", f"time runs backwards from {self._stamp_s:.3f} s to {stamp_s:.3f} s; the gate starts again"
            )
        self._stamp_s = stamp_s
        reset, self._reset = self._reset, None
        if recorded:
            reset, self._before = recorded.reset_since(self._before), recorded
        return Frame(self._count, observation, message.time_ns, recorded, reset)

    def _step_of(self, stamp_ns: int, time_ns: int, stamped: bool) -> RecordedStep | None:
        if self._finder and not stamped:
            self._finder = None
            self._odd("unstamped", "images have no stamps, so which the node answered cannot be told; all are taken")
        return self._finder.find(stamp_ns, time_ns) if self._finder else None

    def _note_silence(self, now_s: float, is_first: bool) -> None:
        for camera, silence_s in self._assembler.silent(now_s).items() if is_first else ():
            self._odd("silent", f"camera {camera} is silent for {silence_s:.2f} s at {now_s:.3f} s")

    def _note_size(self, camera: str, image: ImageArray) -> None:
        size = image.shape[1], image.shape[0]
        before = self._sizes.setdefault(camera, size)
        if size != before:
            self._odd(
                f"size of {camera}",
                f"images of camera {camera} change from {before[0]} x {before[1]} to {size[0]} x {size[1]}",
            )
            self._sizes[camera] = size

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
        if not self._topics.instruction and not self._assembler.instruction and not self._finder:
            raise BagError(
                f"{self._bag.path} has no instruction: name its topic with --topic instruction=/TOPIC, "
                "or give one with --instruction"
            )
        reasons = "; ".join([*self.warnings, *self._bag.warnings]) or "no image comes after an instruction"
        raise BagError(f"{self._bag.path} has no observation to replay: {reasons}")
