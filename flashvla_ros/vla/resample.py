"""Pillow's antialiased bicubic resampling of 8-bit images, to the last bit, as matrix products on any device.

OpenVLA was trained on images that Pillow resized. OpenCV's filters are others: its cubic one has no antialiasing and
another coefficient, and differs by tens of grey levels where the image is shrunk. Pillow resamples along the rows,
rounds to 8 bits, then along the columns, with weights in fixed point of 22 bits (from release 13 on it takes the
columns first where that is less work, which is seldom so for a landscape image). A weight is split here into two halves
of 11 bits, so that products and sums stay exact in float32, where matrix products are fast.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flashvla_ros.core.types import FloatArray

_BITS = 22  # Pillow's fixed point for 8-bit images
_HALF = 1 << 11
_CUBIC = -0.5  # parameter of Pillow's cubic kernel; OpenCV's is -0.75
_RADIUS = 2.0
_BLOCK = 32  # output rows of one product on the CPU: small enough to skip most of the zeros in the weights


@dataclasses.dataclass(frozen=True)
class _Block:
    """Weights [2 * rows, stop - start] of some output rows: upper halves above lower halves."""

    start: int
    stop: int
    weights: Tensor


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Resample a uint8 image [H, W, 3] to [height, width, 3] as Pillow's BICUBIC does."""
    image = _resample(image.transpose(0, 1), width).transpose(0, 1)
    return _resample(image, height)


def _resample(image: Tensor, size: int) -> Tensor:
    """Resample the first axis of a uint8 tensor [L, M, 3] to `size`."""
    length = image.shape[0]
    if length == size:
        return image
    flat = image.reshape(length, -1).float()
    rows = []
    for block in _blocks(length, size, image.device):
        high, low = (block.weights @ flat[block.start : block.stop]).int().chunk(2)
        rows.append(high.mul_(_HALF).add_(low).add_(1 << (_BITS - 1)).bitwise_right_shift_(_BITS).clamp_(0, 255))
    return torch.cat(rows).to(torch.uint8).view(size, *image.shape[1:])


@functools.lru_cache(maxsize=16)
def _blocks(length: int, size: int, device: torch.device) -> tuple[_Block, ...]:
    weights, first, last = _fixed_point_weights(length, size)
    high = np.rint(weights / _HALF)
    low = weights - high * _HALF
    step = _BLOCK if device.type == "cpu" else size
    blocks = []
    for row in range(0, size, step):
        rows = slice(row, row + step)
        start, stop = int(first[rows].min()), int(last[rows].max())
        stacked = np.concatenate([high[rows, start:stop], low[rows, start:stop]]).astype(np.float32)
        blocks.append(_Block(start, stop, torch.from_numpy(stacked).to(device)))
    return tuple(blocks)


def _fixed_point_weights(length: int, size: int) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Return integer weights [size, length] and for each output its first and one past its last input."""
    scale = length / size
    stretch = max(scale, 1.0)  # antialiasing: a shrunk image is averaged over a wider window
    center = (np.arange(size) + 0.5) * scale
    first = np.maximum((center - _RADIUS * stretch + 0.5).astype(np.int64), 0)
    last = np.minimum((center + _RADIUS * stretch + 0.5).astype(np.int64), length)
    position = np.arange(length)
    weights = _cubic((position - center[:, None] + 0.5) / stretch)
    weights[(position < first[:, None]) | (position >= last[:, None])] = 0.0
    weights /= weights.sum(axis=1, keepdims=True)
    return np.trunc(weights * (1 << _BITS) + np.copysign(0.5, weights)), first, last


def _cubic(distance: FloatArray) -> FloatArray:
    """Keys' cubic convolution kernel."""
    x, a = np.abs(distance), _CUBIC
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
