"""The values that travel through one control step: observation → inference → decision → command."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from flashvla_ros.core.errors import SettingsError
from flashvla_ros.core.settings import ActionSettings

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
ImageArray = NDArray[np.uint8]
Box = tuple[float, float, float, float]  # left, top, right, bottom on an image [pixel]; may reach beyond its edges


@dataclasses.dataclass(frozen=True)
class Observation:
    """What the policy sees at one instant.

    Attributes:
        images: Camera name to RGB image, uint8 [H, W, 3]; in the order of the ``cameras`` parameter.
        instruction: What the robot is asked to do, stripped, never empty.
        stamp_s: Time at which the images were taken, in seconds of the node's (ROS) clock. The gate's ages and
            the command's header are made of it, so a replay is exact.
        received_s: Arrival in this process, in seconds of ``time.monotonic``; latency is counted from it.
        joint_positions: Joint name to position (rad or m), where the robot publishes it.
        pose: The end effector's x, y, z [m], rx, ry, rz [rad] and qx to qw, where it is published; all or nothing.
    """

    images: Mapping[str, ImageArray]
    instruction: str
    stamp_s: float
    received_s: float = 0.0
    joint_positions: Mapping[str, float] = dataclasses.field(default_factory=dict)
    pose: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def positions(self) -> dict[str, float]:
        """Where the robot is, by the name of a dimension: its joints and its end effector."""
        return {**self.joint_positions, **self.pose}


@dataclasses.dataclass(frozen=True)
class Draft:
    """A guess of the action's tokens, for the model to check in one pass instead of decoding them one by one.

    Attributes:
        tokens: [n] ids, in order; what does not fit the policy is left out.
        accept_bins: A token this many bins from the model's own choice is accepted; 0: the model's own choice alone.
        max_near: Most tokens of one action that are accepted without being the model's own choice.
    """

    tokens: IntArray
    accept_bins: int = 0
    max_near: int = 0


@dataclasses.dataclass(frozen=True)
class Inference:
    """A fresh result of a policy: a chunk of T ≥ 1 time steps of D dimensions.

    Attributes:
        action: [T, D] in the units of the command (un-normalised).
        normalized: [T, D] in [-1, 1], as the model decoded it; the gate compares these.
        tokens: [T * D] ids of the action tokens, or empty where the policy has none.
        kept: [k] ascending indices of the visual tokens that were selected, None where nothing was scored.
        visual_tokens: N, the number of visual tokens before pruning.
        timings_s: Stage name to seconds.
        elapsed_s: Seconds from the request to the result, where somebody timed it.
        picture: uint8 [C, S, S, 3], the images as the model saw them; None unless ``pruning.method`` compares frames.
        draft_tokens: Tokens of a draft that were checked.
        draft_accepted: Those that were accepted, up to the first that was not.
        draft_near: Those accepted though the model's own choice was another bin close by.
        confidence: Probability of the least certain action token, 0 to 1; NaN where the policy does not say.
        visible_boxes: What the patches of each camera cover of its image; a camera that is left out is seen whole.
    """

    action: FloatArray
    normalized: FloatArray
    tokens: IntArray
    kept: IntArray | None
    visual_tokens: int
    timings_s: Mapping[str, float] = dataclasses.field(default_factory=dict)
    elapsed_s: float = 0.0
    picture: ImageArray | None = None
    draft_tokens: int = 0
    draft_accepted: int = 0
    draft_near: int = 0
    confidence: float = math.nan
    visible_boxes: Mapping[str, Box] = dataclasses.field(default_factory=dict)

    @classmethod
    def tokenless(
        cls, action: FloatArray, scale: FloatArray, timings_s: Mapping[str, float] | None = None
    ) -> Inference:
        """Return the result of a policy that says no more than a chunk [T, D]; `scale` [D] counts as 1."""
        return cls(action, action / scale, np.empty(0, dtype=np.int64), None, 0, timings_s or {})


class ActionKind(enum.StrEnum):
    """What repeating a value of this dimension does to the robot."""

    DELTA = "delta"  # moves on by the same amount again
    VELOCITY = "velocity"  # moves on at the same speed
    ABSOLUTE = "absolute"  # holds
    GRIPPER = "gripper"  # holds; kept out of the gate's angle


POSITION_NAMES = ("x", "y", "z")
EULER_NAMES = ("rx", "ry", "rz")
QUATERNION_NAMES = ("qx", "qy", "qz", "qw")
POSE_NAMES = POSITION_NAMES + EULER_NAMES + QUATERNION_NAMES  # any other dimension is a joint, or a gripper


@dataclasses.dataclass(frozen=True)
class ActionSpec:
    """Names and kinds of the D dimensions of an action, and the spacing of a chunk's time steps in seconds."""

    names: tuple[str, ...]
    kinds: tuple[ActionKind, ...]
    dt_s: float

    def __post_init__(self) -> None:
        if len(self.names) != len(self.kinds):
            raise SettingsError(
                f"action.names has {len(self.names)} entries {list(self.names)} but action.kinds has "
                f"{len(self.kinds)} {[str(kind) for kind in self.kinds]}: give one kind per name"
            )
        if len(set(self.names)) != len(self.names):
            raise SettingsError(f"action.names must be distinct, got {list(self.names)}")

    @classmethod
    def of(cls, action: ActionSettings) -> ActionSpec:
        """Return what the parameters ``action.*`` declare."""
        return cls(action.names, tuple(ActionKind(kind) for kind in action.kinds), action.dt_s)

    @property
    def size(self) -> int:
        """D, the number of dimensions."""
        return len(self.names)

    @property
    def joints(self) -> tuple[str, ...]:
        """Names of the dimensions that are joints: neither a gripper nor part of a pose."""
        return tuple(
            name
            for name, kind in zip(self.names, self.kinds, strict=True)
            if kind is not ActionKind.GRIPPER and name not in POSE_NAMES
        )

    @property
    def angles(self) -> list[int]:
        """Absolute Euler angles [rad] of a pose, which are the same after a whole turn; a joint called rx is none."""
        is_pose = set(POSITION_NAMES) <= set(self.names)
        return [index for index in self._absolute if is_pose and self.names[index] in EULER_NAMES]

    @property
    def quaternion(self) -> list[int]:
        """Indices of qx, qy, qz and qw where an absolute rotation is given by them, else none."""
        found = {self.names[index]: index for index in self._absolute}
        return [found[name] for name in QUATERNION_NAMES] if set(QUATERNION_NAMES) <= set(found) else []

    @property
    def _absolute(self) -> list[int]:
        return [index for index, kind in enumerate(self.kinds) if kind is ActionKind.ABSOLUTE]

    @property
    def gripper_mask(self) -> NDArray[np.bool_]:
        """[D] true where the dimension is a gripper."""
        return np.array([kind is ActionKind.GRIPPER for kind in self.kinds], dtype=bool)
