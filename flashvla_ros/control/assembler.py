"""What makes images, an instruction, joints and poses an observation: one rule for a robot, a bag and a simulation.

Callers decode messages and tell the time; nothing here knows ROS or has a clock.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from flashvla_ros.control.robot_state import RobotState
from flashvla_ros.core.errors import ObservationError
from flashvla_ros.core.settings import Settings
from flashvla_ros.core.types import ActionSpec, ImageArray, Observation

MAX_INSTRUCTION = 1000  # characters; a robot's task is a sentence, and the model reads every token of it
_NAMES_SHOWN = 12
LATE_S = 1.0  # an image this much older than the one before it comes from a clock that was set back


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


@dataclasses.dataclass(frozen=True, eq=False)
class _Newest:
    """The newest usable image of a camera, its stamp, and when it arrived."""

    image: ImageArray
    stamp_s: float
    arrived_s: float


class Assembler:
    """Makes an observation whenever the first camera's image arrives, none is silent and there is an instruction.

    Cameras that are triggered together stamp alike: then the last image of a stamp completes the observation, whatever
    the order in which they arrive, and the first camera's next image does where one of them is lost.

    What cannot be used is refused and changes nothing. One image of each camera and one position of each dimension of
    the action are held, whatever arrives. Only :meth:`positions` may be called from another thread.

    Attributes:
        cameras: Their names, in the order of an observation's images.
        instruction: The one in force, empty until there is one.

    Args:
        cameras: Names of the cameras.
        settings: Returns those in force; the names of the action are those of now.

    Raises:
        ObservationError: ``node.instruction`` is no instruction.
    """

    def __init__(self, cameras: Iterable[str], settings: Callable[[], Settings]) -> None:
        self._settings = settings
        self.cameras = tuple(cameras)
        given = settings()
        told = (name for row in given.remote.state for name in row.partition(":")[2].split())
        self._needed = frozenset((*given.action.names, *given.model.proprio, *told))
        self._unreported = frozenset(ActionSpec.of(given.action).joints)  # emptied by the first one that is
        self._newest: dict[str, _Newest] = {}
        self._together = False  # the cameras are triggered together
        self._held = False  # the first camera's image waits for the others of its stamp
        self._alone_s = math.nan  # stamp of the first camera's last image that did not get them
        self._joints, self._pose = RobotState(), RobotState()
        instruction = given.node.instruction
        self.instruction = checked_instruction(instruction) if instruction else ""

    def forget_images(self) -> None:
        """Make no observation before every camera has sent another image."""
        self._newest.clear()

    def take_instruction(self, text: str) -> bool:
        """Put an instruction in force; returns whether it is another one.

        Raises:
            ObservationError: See :func:`checked_instruction`.
        """
        before, self.instruction = self.instruction, checked_instruction(text)
        is_new = self.instruction != before
        if is_new:  # an image that was seen under another one may be sent again
            for camera, newest in self._newest.items():
                self._newest[camera] = dataclasses.replace(newest, stamp_s=-math.inf)
        return is_new

    def take_joints(self, names: Sequence[str], positions: Sequence[float], now_s: float) -> None:
        """Take in where joints are; those that no parameter names are left alone.

        Raises:
            ObservationError: The lists differ in length, or positions are not finite or contradict each other; the
                other joints count. Or none of the action's joints was ever among them.
        """
        if len(names) != len(positions):
            raise ObservationError(f"joint_states: {len(names)} names but {len(positions)} positions")
        if self._unreported.isdisjoint(names) and self._unreported:
            raise ObservationError(
                f"joint_states: {sorted(self._unreported)} are not among {sorted(names)[:_NAMES_SHOWN]}, nor were they "
                f"before: name the joints in action.names as the robot does"
            )
        self._unreported = frozenset()
        pairs = [(name, float(at)) for name, at in zip(names, positions, strict=True) if name in self._needed]
        needed = dict(pairs)
        twice = {name for name, at in pairs if math.isfinite(at) and at != needed[name]}
        for name in twice:
            del needed[name]
        finite = {name: at for name, at in needed.items() if math.isfinite(at)}
        self._joints.update(now_s, finite)
        if len(finite) < len(needed):
            raise ObservationError(f"joint_states: the positions of {sorted(set(needed) - set(finite))} are not finite")
        if twice:
            raise ObservationError(
                f"joint_states: {sorted(twice)} are there twice, in two places: start the node that reports them again"
            )

    def take_pose(self, pose: Mapping[str, float], now_s: float) -> None:
        """Take in where the end effector is, by the names of :data:`flashvla_ros.core.types.POSE_NAMES`."""
        self._pose.update(now_s, pose)

    def take_image(
        self, camera: str, image: ImageArray, stamp_s: float, now_s: float, *, stamped: bool = True
    ) -> Observation | None:
        """Take in a usable image; returns an observation where it completes one.

        Args:
            camera: Whose it is.
            image: RGB, uint8 [H, W, 3]; held, not copied.
            stamp_s: When it was taken, on the clock of stamps.
            now_s: When it arrived, on the clock of time-outs.
            stamped: The camera said so; an arrival in place of a stamp tells nothing of an image's age.

        Raises:
            ObservationError: It is as old as the image before it, or a little older. Not so after a silence of the
                camera: then it goes on from there. Or two nodes disagree on where a joint is.
        """
        before = self._newest.get(camera)
        silent = camera in self.silent(now_s)
        if stamped and before is not None and not silent and 0.0 <= before.stamp_s - stamp_s < LATE_S:
            raise ObservationError(
                f"an image stamped {stamp_s:.3f} s came after one stamped {before.stamp_s:.3f} s: "
                f"images that repeat or come late are dropped"
            )
        self._newest[camera] = _Newest(image, stamp_s, now_s)
        if not self.instruction or self.absent or self.silent(now_s) or not self._completes(camera):
            return None
        if disputed := self._joints.disputed(now_s):
            raise ObservationError(
                f"joint_states: {sorted(disputed)} jump to and fro: two nodes report them, such as a "
                f"joint_state_publisher while the robot's driver runs; stop one of the two"
            )
        joints, pose = self._measured(now_s)
        images = {name: self._newest[name].image for name in self.cameras}
        return Observation(images, self.instruction, stamp_s, joint_positions=joints, pose=pose)

    def _completes(self, camera: str) -> bool:
        stamps = {newest.stamp_s for newest in self._newest.values()}
        if len(stamps) == 1:
            self._together, self._held = True, False
            return self._alone_s not in stamps
        if camera != self.cameras[0]:
            return False
        self._held = self._together and not self._held
        if self._held:
            return False
        self._together, self._alone_s = False, self._newest[camera].stamp_s
        return True

    def image(self, camera: str) -> ImageArray | None:
        """Return the newest usable image of a camera, None before the first."""
        return self._newest[camera].image if camera in self._newest else None

    @property
    def absent(self) -> list[str]:
        """Cameras that have sent no usable image."""
        return [camera for camera in self.cameras if camera not in self._newest]

    def silent(self, now_s: float) -> dict[str, float]:
        """Return seconds by camera, of those that are silent: an old picture must not move the robot again."""
        limit_s = self._settings().control.image_timeout_s
        silences = {camera: now_s - newest.arrived_s for camera, newest in self._newest.items()}
        return {camera: silence_s for camera, silence_s in silences.items() if silence_s > limit_s}

    def positions(self, now_s: float) -> dict[str, float]:
        """Return where the robot is, by the name of a joint or of a part of its pose; what is too old is left out."""
        joints, pose = self._measured(now_s)
        return {**joints, **pose}

    def _measured(self, now_s: float) -> tuple[dict[str, float], dict[str, float]]:
        most_s = self._settings().control.state_timeout_s
        return self._joints.positions(now_s, most_s), self._pose.positions(now_s, most_s)
