"""Pictures are resized as openpi's client resizes them, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest

from flashvla_ros.remote.pad import resize_with_pad

Image = pytest.importorskip("PIL.Image", reason="Pillow, the reference, is not installed")


@pytest.mark.parametrize("shape", [(48, 64), (225, 223), (31, 33), (20, 64), (224, 224)])
@pytest.mark.parametrize("size", [224, 40])
def test_a_picture_is_pillows(shape: tuple[int, int], size: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    ratio = max(shape) / size
    height, width = int(shape[0] / ratio), int(shape[1] / ratio)
    resized = np.asarray(Image.fromarray(image).resize((width, height), Image.BILINEAR))
    padded = np.zeros((size, size, 3), np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    padded[top : top + height, left : left + width] = resized
    np.testing.assert_array_equal(resize_with_pad(image, size), padded)


def test_a_sliver_keeps_a_row() -> None:
    assert resize_with_pad(np.full((1, 500, 3), 9, np.uint8), 100).max() == 9
