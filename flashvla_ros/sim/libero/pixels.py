"""The picture that OpenVLA's LIBERO evaluation shows its model, pixel for pixel, without TensorFlow.

The official code turns the simulator's picture by 180°, encodes it as JPEG, decodes it again, and shrinks it with
``tf.image.resize(…, "lanczos3", antialias=True)``, because the training data went the same way. TensorFlow decodes
JPEG with libjpeg's fast integer transform, which neither OpenCV nor Pillow does: up to 12 grey levels lie between them.
"""

from __future__ import annotations

import functools

import cv2
import numpy as np
from numpy.typing import NDArray

from flashvla_ros.core.errors import SimulationError
from flashvla_ros.core.extras import remedy
from flashvla_ros.core.types import ImageArray
from flashvla_ros.sim.libero.protocol import SIDE

_QUALITY = 95  # TensorFlow's default
_LOBES = 3.0


def official_picture(image: ImageArray) -> ImageArray:
    """Return what the model sees, uint8 [224, 224, 3], of an RGB picture [H, W, 3] that is turned already."""
    decoded = through_jpeg(image).astype(np.float32)
    rows, columns = _lanczos(image.shape[0], SIDE), _lanczos(image.shape[1], SIDE)
    shrunk = np.einsum("oj,ijc->ioc", columns, np.einsum("oi,ijc->ojc", rows, decoded, optimize=True), optimize=True)
    return np.clip(np.rint(shrunk), 0, 255).astype(np.uint8)


def through_jpeg(image: ImageArray) -> ImageArray:
    """Encode an RGB picture as TensorFlow does (quality 95, 4:2:0) and decode it with the fast transform.

    Raises:
        SimulationError: simplejpeg, which has that transform, is not installed.
    """
    try:
        import simplejpeg
    except ImportError as error:
        raise SimulationError(f"LIBERO's pictures need simplejpeg: {remedy('libero')}") from error
    coded = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1]
    return np.asarray(simplejpeg.decode_jpeg(coded.tobytes(), colorspace="RGB", fastdct=True))


@functools.lru_cache(maxsize=4)
def _lanczos(length: int, size: int) -> NDArray[np.float32]:
    """Weights [size, length] of TensorFlow's ScaleAndTranslate with a Lanczos kernel of three lobes, in float32."""
    one = np.float32(1)
    step = one / (np.float32(size) / np.float32(length))
    stretch = max(step, one)  # antialiasing: a shrunk picture is averaged over a wider window
    centre = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * step
    reach = np.float32(_LOBES) * stretch
    first = np.maximum(np.ceil(centre - reach - np.float32(0.5)), 0)[:, None]
    last = np.minimum(np.floor(centre + reach - np.float32(0.5)), length - 1)[:, None]
    pixel = np.arange(length, dtype=np.float32)
    x = np.abs((pixel + np.float32(0.5) - centre[:, None]) / stretch)
    pi, lobes = np.float32(np.pi), np.float32(_LOBES)
    safe = np.maximum(x, np.float32(1e-3))
    weights = np.where(x <= 1e-3, one, lobes * np.sin(pi * safe) * np.sin(pi * safe / lobes) / (pi * pi * safe * safe))
    weights = np.where((x > lobes) | (pixel < first) | (pixel > last), np.float32(0), weights).astype(np.float32)
    return weights / weights.sum(axis=1, keepdims=True, dtype=np.float32)
