"""What an architecture tells of itself to the code that knows none by name, and what the robot tells to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from flashvla_ros.core.errors import CheckpointError, ObservationError
from flashvla_ros.core.rotations import with_rotation_vector
from flashvla_ros.core.settings import ModelSettings
from flashvla_ros.core.types import Observation
from flashvla_ros.vla.checkpoint import Progress, load_config
from flashvla_ros.vla.config import OpenVLAConfig
from flashvla_ros.vla.parts import read_part
from flashvla_ros.vla.query import CAUSAL, Layout
from flashvla_ros.vla.statistics import Bounds
from flashvla_ros.vla.step import VLAPolicy


@dataclasses.dataclass(frozen=True)
class Outline:
    """What a checkpoint is, as far as its files and the parameters tell before weights are read.

    Attributes:
        config: Of the shared network, with the number of images that the parameters say.
        bounds: Of its actions.
        chunk_size: T, the time steps of an action.
        decoded: Tokens that are decoded one after the other, so that as many passes over the weights are made.
        layout: Of the sequence.
        parts: What stands beside the network: its name to what it is.
        beside: Parameters of these parts.
    """

    config: OpenVLAConfig
    bounds: Bounds
    chunk_size: int = 1
    decoded: int = 1
    layout: Layout = CAUSAL
    parts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    beside: int = 0

    @property
    def rows(self) -> int:
        """Rows of the sequence besides visual tokens and prompt."""
        return self.layout.rows + self.decoded


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One way to make actions of the shared network.

    Attributes:
        title: Its name, for people.
        recognises: Whether the files of a folder are of this architecture alone.
        outline: Reads all but weights.
        load: Returns its policy.
    """

    title: str
    recognises: Callable[[Path], bool]
    outline: Callable[[Path, ModelSettings], Outline]
    load: Callable[[ModelSettings, Progress | None], VLAPolicy]


def read_config(folder: Path, settings: ModelSettings, images: int = 0) -> OpenVLAConfig:
    """Read a folder's configuration; ``model.images`` goes before it, and it before the number of a preset."""
    config = load_config(folder)
    count = settings.images or (images if config.num_images_in_input == 1 else 0)
    return dataclasses.replace(config, num_images_in_input=count) if count else config


def state_bounds(path: Path, tensor: str, outline: Outline, settings: ModelSettings) -> tuple[tuple[str, ...], Bounds]:
    """Return the names of the robot's state and their bounds, held against the columns of a part's tensor.

    Raises:
        CheckpointError: ``model.proprio`` or the statistics have another number of values.
    """
    weight = read_part(path).get(tensor)
    size = weight.shape[-1] if weight is not None and weight.ndim else 0
    statistics, action = outline.config.norm_stats, outline.bounds
    bounds = Bounds.from_statistics(
        statistics, settings.unnorm_key, of="proprio", kind=action.kind, epsilon=action.epsilon
    )
    names = settings.proprio or tuple(outline.config.oft.get("proprio", ()))
    if len(names) != size or bounds.size != size:
        raise CheckpointError(
            f"{path} reads {size} values of the robot's state, model.proprio names {len(names)} and the statistics "
            f"have {bounds.size}: set model.proprio to their names in the order of training, such as x, y, z, ax, ay, "
            f"az and the joints of the gripper"
        )
    return names, bounds


def measured(observation: Observation, names: Sequence[str], bounds: Bounds) -> Tensor:
    """Return where the robot is, [P] by names in order, normalised; ``ax, ay, az`` is its rotation as axis times angle.

    Raises:
        ObservationError: Names what the robot has not published.
    """
    positions = with_rotation_vector(observation.positions)
    if missing := [name for name in names if name not in positions]:
        raise ObservationError(
            f"this checkpoint is told where the robot is, and nothing says what {', '.join(missing)} is: "
            f"name it in model.proprio, and publish joint_states or end_effector_pose"
        )
    return torch.from_numpy(bounds.normalize([positions[name] for name in names]))
