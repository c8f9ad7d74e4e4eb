"""Between an Observation and the map that a policy server reads: keys, pictures, state; and back again."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np

from flashvla_ros.core.errors import ObservationError, RemoteError
from flashvla_ros.core.remote_settings import RemoteSettings
from flashvla_ros.core.rotations import with_rotation_vector
from flashvla_ros.core.types import FloatArray, Observation
from flashvla_ros.remote.pad import resize_with_pad

STAMP = "stamp_s"  # sent to servers that return it: which observation is answered


@dataclasses.dataclass(frozen=True)
class ObservationMap:
    """How a server names what a robot sees.

    Attributes:
        settings: The parameters ``remote.*``.
        cameras: Names of the cameras, in the order of ``remote.images``; a single camera's name does not matter.
    """

    settings: RemoteSettings
    cameras: tuple[str, ...]

    def to_wire(self, observation: Observation) -> dict[str, Any]:
        """Return the map for one observation.

        Raises:
            ObservationError: It lacks a camera, a joint or the pose that the server is to be told.
        """
        message: dict[str, Any] = {}
        for key, image in zip(self.settings.images, self._pictures(observation), strict=True):
            _put(message, key, image)
        positions = with_rotation_vector(observation.positions)
        for row in self.settings.state:
            key, _, names = row.partition(":")
            missing = [name for name in names.split() if name not in positions]
            if missing:
                raise ObservationError(
                    f"remote.state needs {', '.join(missing)}, which joint_states and end_effector_pose do not have"
                )
            _put(message, key.strip(), np.array([positions[name] for name in names.split()], dtype=np.float64))
        _put(message, self.settings.prompt, observation.instruction)
        return message

    def from_wire(self, message: Any, stamp_s: float, received_s: float) -> Observation:
        """Return the observation in a client's map; its stamp is the client's own where it sends one.

        Raises:
            RemoteError: The map lacks a picture or the instruction, or one of them is of another form.
        """
        if not isinstance(message, Mapping):
            raise RemoteError(f"an observation is a map, got {type(message).__name__}")
        images = {
            camera: _picture(_get(message, key), key)
            for camera, key in zip(self.cameras, self.settings.images, strict=True)
        }
        prompt, stamp = _get(message, self.settings.prompt), message.get(STAMP, stamp_s)
        if not isinstance(prompt, str) or not prompt.strip():
            raise RemoteError(f"{self.settings.prompt} must be an instruction in words, got {form(prompt)}")
        if not isinstance(stamp, float) or not math.isfinite(stamp):
            raise RemoteError(f"{STAMP} must be a finite number of seconds, got {form(stamp)}")
        positions: dict[str, float] = {}
        for row in self.settings.state:
            key, _, names = row.partition(":")
            given = _get(message, key.strip())
            values = given.ravel() if isinstance(given, np.ndarray) else given if isinstance(given, list) else [given]
            fits = len(values) == len(names.split())
            if not fits or not all(isinstance(value, Real) and math.isfinite(value) for value in values):
                raise RemoteError(f"{key.strip()} must be {len(names.split())} finite numbers: {names.strip()}")
            positions.update(zip(names.split(), map(float, values), strict=True))
        return Observation(images, prompt.strip(), stamp, received_s, joint_positions=positions)

    def example(self) -> Observation:
        """Return an observation of black pictures and a robot at its origin, to see whether a server takes it."""
        names = [name for row in self.settings.state for name in row.partition(":")[2].split()]
        size = self.settings.image_size or 224
        image = np.zeros((size, size, 3), dtype=np.uint8)
        pose = {"qx": 0.0, "qy": 0.0, "qz": 0.0, "qw": 1.0}
        images = dict.fromkeys(self.cameras or ("image",), image)
        return Observation(images, "do nothing", 0.0, joint_positions=dict.fromkeys(names, 0.0), pose=pose)

    def _pictures(self, observation: Observation) -> list[Any]:
        keys = self.settings.images
        images = [observation.images[name] for name in self.cameras or observation.images if name in observation.images]
        if len(images) != len(keys):
            raise ObservationError(
                f"remote.images names {len(keys)} pictures {list(keys)} but there are {len(images)} cameras: set "
                f"camera.names"
            )
        if self.settings.image_size:
            images = [resize_with_pad(image, self.settings.image_size) for image in images]
        return [image.transpose(2, 0, 1) for image in images] if self.settings.channels_first else images


def chunk_of(answer: Any, settings: RemoteSettings, size: int) -> FloatArray:
    """Return the chunk [T, D] in an answer.

    Raises:
        RemoteError: There is none, or it has another size or type, or a value that is not finite.
    """
    if not isinstance(answer, Mapping):
        raise RemoteError(f"an answer is a map, got {type(answer).__name__}")
    chunk = _get(answer, settings.actions)
    if not isinstance(chunk, np.ndarray) or chunk.dtype.kind not in "iuf":
        raise RemoteError(f"{settings.actions} must be an array of numbers, got {form(chunk)}")
    if chunk.ndim != 2 or not len(chunk) or chunk.shape[1] != size:
        raise RemoteError(
            f"{settings.actions} has shape {list(chunk.shape)}, but action.names declares {size} dimensions"
        )
    chunk = chunk[: settings.rows or None].astype(np.float64)
    if not np.isfinite(chunk).all():
        raise RemoteError(f"{settings.actions} is not finite")
    return chunk


def _put(message: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for part in path:
        message = message.setdefault(part, {})
    message[last] = value


def _get(message: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(message, Mapping) or part not in message:
            names = ", ".join(map(repr, message)) if isinstance(message, Mapping) else type(message).__name__
            raise RemoteError(f"there is no {key!r} in the message, only {names:.200}")
        message = message[part]
    return message


def _picture(value: Any, key: str) -> Any:
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3 and value.size:
        if value.shape[2] == 3:
            return value
        if value.shape[0] == 3:
            return np.ascontiguousarray(value.transpose(1, 2, 0))
    raise RemoteError(f"{key} must be a uint8 picture [H, W, 3], got {form(value)}")


def form(value: Any) -> str:
    """Return what a value is, in one line."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return " ".join(f"{value!r:.100}".split())
