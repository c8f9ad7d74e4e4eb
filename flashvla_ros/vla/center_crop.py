"""The crop around the centre that checkpoints trained with image augmentation expect, as TensorFlow computes it.

OpenVLA's fine-tuning with image augmentation shows the model random crops of 90 % of an image's area, scaled back up
with ``tf.image.crop_and_resize``; its LIBERO evaluation therefore shows it the crop around the centre. That function
puts the corners of the output on the corners of the crop, interpolates linearly between four pixels in float32, and
does not antialias; the conversion back to 8 bits cuts off instead of rounding. Both are repeated here step by step, so
that the pixels are the same ones.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor


def center_crop(square: Tensor, area: float) -> Tensor:
    """Cut a uint8 image [S, S, 3] to `area`, a share of its own around its centre, and scale that back to [S, S, 3].

    Each side is cut to sqrt(area) of its length.
    """
    before, after, weight = _taps(square.shape[0], area, square.device)
    pixels = square.float() * (1.0 / 255.0)
    rows, below = pixels[before], pixels[after]
    across = weight[:, None]
    upper = rows[:, before] + (rows[:, after] - rows[:, before]) * across
    lower = below[:, before] + (below[:, after] - below[:, before]) * across
    scaled = upper + (lower - upper) * weight[:, None, None]
    return (scaled.clamp_(0.0, 1.0) * 255.5).to(torch.uint8)


@functools.lru_cache(maxsize=4)
def _taps(size: int, area: float, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each output the pixel before it, the one after it, and the weight of the latter, in float32."""
    one = np.float32(1)
    side = np.sqrt(np.float32(area))
    start = (one - side) / np.float32(2)
    stop = start + side
    step = (stop - start) * np.float32(size - 1) / np.float32(max(size - 1, 1))
    position = start * np.float32(size - 1) + np.arange(size, dtype=np.float32) * step
    before = np.floor(position)
    first, second = (torch.from_numpy(edge.astype(np.int64)).to(device) for edge in (before, np.ceil(position)))
    return first, second, torch.from_numpy(position - before).to(device)
