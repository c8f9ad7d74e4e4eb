"""The scene guard's eye: has the frame in hand jumped away from the frame of the last fresh result?

A frame is reduced to the mean colours of a coarse grid of patches. The robot's own motion changes some patches at
every step, so each patch carries a running rate of change, and a patch counts as changed only where it differs from
the last fresh frame by several times what that rate, there or next to it, predicts for the time that has passed.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from flashvla_ros.core.settings import GateSettings
from flashvla_ros.core.types import ImageArray

GRID = 16  # patches along each side of a frame
SAMPLES = 8  # sampled pixels along each side of a patch: the cost does not grow with the resolution
RATE_MEMORY_S = 0.3  # time constant of the running rate of change: an arm takes about this long to change its speed

Signature = NDArray[np.float32]  # [cameras, GRID, GRID, 3], grey levels of 255


def signature(images: Mapping[str, ImageArray]) -> Signature:
    """Return the mean colour of every patch of every camera.

    Args:
        images: Camera name to RGB image, uint8 [H, W, 3] of any size.
    """
    return np.stack([_patch_means(image) for image in images.values()])


def _patch_means(image: ImageArray) -> NDArray[np.float32]:
    """[GRID, GRID, 3]. Rows are summed before columns are sampled, and each sum runs over contiguous memory."""
    height, width, _ = image.shape
    rows = image.take(_sample_points(height), axis=0).reshape(GRID, SAMPLES, width * 3).sum(axis=1, dtype=np.uint16)
    columns = _sample_points(width).reshape(GRID, SAMPLES).T.ravel()
    sampled = rows.reshape(GRID, width, 3).take(columns, axis=1).reshape(GRID, SAMPLES, GRID * 3)
    means: NDArray[np.float32] = sampled.sum(axis=1, dtype=np.float32) / np.float32(SAMPLES * SAMPLES)
    return means.reshape(GRID, GRID, 3)


@functools.lru_cache(maxsize=64)
def _sample_points(length: int) -> NDArray[np.intp]:
    """Centres of GRID * SAMPLES equal intervals; pixels repeat where there are fewer of them."""
    count = GRID * SAMPLES
    return ((np.arange(count) + 0.5) * length / count).astype(np.intp)


def _difference(first: Signature, second: Signature) -> NDArray[np.float32]:
    """[cameras, GRID, GRID] largest change of a colour channel."""
    difference = np.abs(first - second)
    largest: NDArray[np.float32] = np.maximum(difference[..., 0], difference[..., 1])
    np.maximum(largest, difference[..., 2], out=largest)  # NumPy's maximum over a short axis is slow
    return largest


def _widened(rate: NDArray[np.float32]) -> NDArray[np.float32]:
    """The largest rate among a patch and its eight neighbours: what moves may enter the next patch."""
    widened = rate.copy()
    np.maximum(widened[:, 1:], rate[:, :-1], out=widened[:, 1:])
    np.maximum(widened[:, :-1], rate[:, 1:], out=widened[:, :-1])
    rows = widened.copy()
    np.maximum(widened[..., 1:], rows[..., :-1], out=widened[..., 1:])
    np.maximum(widened[..., :-1], rows[..., 1:], out=widened[..., :-1])
    return widened


@dataclasses.dataclass(frozen=True, eq=False)
class SceneMotion:
    """How fast each patch has been changing.

    Attributes:
        frame: Signature of the last observation, fresh or reused; None before the first.
        stamp_s: Its stamp.
        rate: [cameras, GRID, GRID] running rate of change in grey levels per second, None before the second.
    """

    frame: Signature | None = None
    stamp_s: float = math.nan
    rate: NDArray[np.float32] | None = None

    def after(self, frame: Signature, stamp_s: float) -> SceneMotion:
        """Return the motion with one more observation; a camera that came or went starts it again."""
        if self.frame is None or self.frame.shape != frame.shape or not stamp_s > self.stamp_s:
            return SceneMotion(frame, stamp_s)
        elapsed_s = stamp_s - self.stamp_s
        seen = _difference(frame, self.frame) / np.float32(elapsed_s)
        if self.rate is None:
            return SceneMotion(frame, stamp_s, seen)
        # Weighting by time makes the rate the same at 5 Hz and at 30 Hz, and two frames 1 ms apart harmless.
        weight = np.float32(-math.expm1(-elapsed_s / RATE_MEMORY_S))
        return SceneMotion(frame, stamp_s, self.rate + weight * (seen - self.rate))

    def expected(self, shape: tuple[int, ...], age_s: float) -> NDArray[np.float32]:
        """Return the change [cameras, GRID, GRID] in grey levels that the running rate predicts after `age_s`."""
        if self.rate is None or self.rate.shape != shape:
            return np.zeros(shape, dtype=np.float32)
        return _widened(self.rate) * np.float32(max(age_s, 0.0))


@dataclasses.dataclass(frozen=True)
class SceneChange:
    """Comparison of a frame with the last fresh one."""

    level: float = math.nan  # greatest expected change of a patch, in grey levels of 255
    changed: int = 0  # patches that changed by more than the thresholds allow
    mean: float = 255.0  # change of the mean patch, in grey levels of 255


def compare(motion: SceneMotion, fresh: Signature, frame: Signature, age_s: float, gate: GateSettings) -> SceneChange:
    """Count the patches of `frame` that jumped away from `fresh`, the frame of the last fresh result.

    A patch changed where it differs by more than max(scene_floor, scene_factor * expected), by what `motion`, up to the
    observation before this one, lets expect `age_s` later. Where the cameras are not the same, every patch changed.
    """
    if fresh.shape != frame.shape:
        return SceneChange(math.nan, frame.shape[0] * GRID * GRID)
    expected = motion.expected(frame.shape[:-1], age_s)
    difference = _difference(frame, fresh)
    changed = difference > np.maximum(gate.scene_floor, gate.scene_factor * expected)
    return SceneChange(float(expected.max()), int(np.count_nonzero(changed)), float(difference.mean()))
