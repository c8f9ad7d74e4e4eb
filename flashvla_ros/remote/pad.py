"""A picture on a square, as openpi's ``resize_with_pad``: Pillow's bilinear filter to the last bit, black around it.

π0 and its kin were trained on pictures resized so. Pillow weighs in fixed point of 22 bits and rounds to 8 bits between
columns and rows (from release 13 on it takes the rows first of some tall pictures, a last bit apart). OpenCV's bilinear
filter does not average where a picture shrinks.
"""

from __future__ import annotations

import functools

import numpy as np
from scipy.sparse import csr_array

from flashvla_ros.core.types import ImageArray

_BITS = 22


def resize_with_pad(image: ImageArray, size: int) -> ImageArray:
    """Return a uint8 picture [H, W, 3] as [size, size, 3], its shape kept; one of this size is returned itself."""
    height, width = image.shape[:2]
    if height == width == size:
        return image
    ratio = max(width, height) / size
    inner_height, inner_width = max(int(height / ratio), 1), max(int(width / ratio), 1)
    columns = _resample(image.transpose(1, 0, 2), inner_width).transpose(1, 0, 2)
    padded = np.zeros((size, size, 3), dtype=np.uint8)
    top, left = (size - inner_height) // 2, (size - inner_width) // 2
    padded[top : top + inner_height, left : left + inner_width] = _resample(columns, inner_height)
    return padded


def _resample(image: ImageArray, size: int) -> ImageArray:
    """Resample the first axis of a picture [L, M, 3] to `size`."""
    if len(image) == size:
        return image
    sums = _weights(len(image), size) @ image.reshape(len(image), -1).astype(np.int32)
    sums += 1 << (_BITS - 1)
    sums >>= _BITS
    return np.clip(sums, 0, 255, out=sums).astype(np.uint8).reshape(size, *image.shape[1:])


@functools.lru_cache(maxsize=16)
def _weights(length: int, size: int) -> csr_array:
    """Return what each input of an axis adds to each output, in fixed point, as a sparse matrix [size, length]."""
    reach = max(length / size, 1.0)
    centres = (np.arange(size)[:, None] + 0.5) * length / size
    places = np.arange(length)
    inside = (places >= (centres - reach + 0.5).astype(int)) & (places < (centres + reach + 0.5).astype(int))
    shares = np.maximum(1.0 - np.abs((places - centres + 0.5) / reach), 0.0) * inside
    return csr_array(np.floor(shares / shares.sum(axis=1, keepdims=True) * (1 << _BITS) + 0.5).astype(np.int32))
