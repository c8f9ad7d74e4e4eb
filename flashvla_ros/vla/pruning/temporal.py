"""How much each patch changed since the frame before: the rule by which VLA-Cache finds static tokens."""

from __future__ import annotations

import numpy as np

from flashvla_ros.core.types import FloatArray, ImageArray


def patch_cosines(picture: ImageArray, previous: ImageArray, side: int) -> FloatArray:
    """Return the cosine [side²] between the raw pixels of each patch in two frames (VLA-Cache, arXiv 2502.02175).

    From exact integer sums: a patch that is the same in both frames gives exactly 1, also a black one.

    Args:
        picture: uint8 [S, S, 3], as the model sees it before it is normalised.
        previous: The same of the frame before.
        side: Patches along each side.
    """
    first, second = _patches(picture, side), _patches(previous, side)
    dot, one, other = (first * second).sum(axis=1), (first**2).sum(axis=1), (second**2).sum(axis=1)
    product = np.sqrt(one.astype(np.float64) * other)
    cosines = np.divide(dot, product, out=np.zeros(len(dot)), where=product > 0)
    return np.where((first == second).all(axis=1), 1.0, np.minimum(cosines, 1.0))


def _patches(picture: ImageArray, side: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """[side², pixels and channels of a patch] in the order of the visual tokens."""
    size = picture.shape[0] // side
    blocks = picture[: size * side, : size * side].reshape(side, size, side, size, 3)
    return blocks.transpose(0, 2, 1, 3, 4).reshape(side * side, -1).astype(np.int64)
