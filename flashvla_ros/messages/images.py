"""Images between ROS messages and RGB arrays, through cv_bridge.

cv_bridge is trusted with well-formed 8-bit images only. The released wheel ignores padded rows, fails on big-endian
pixels and knows no 16-bit colour, and its errors are those of NumPy, so a message is checked and normalised first.
"""

from __future__ import annotations

import array
import re
import sys
import types
from typing import Any

import cv2
import numpy as np
from cv_bridge import CvBridge
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from flashvla_ros.core.errors import ObservationError
from flashvla_ros.core.types import ImageArray

_BRIDGE = CvBridge()

# Channels of each encoding that says what its colours are; a 16 in the name means two bytes a channel.
_CHANNELS = {
    "rgb8": 3,
    "bgr8": 3,
    "rgba8": 4,
    "bgra8": 4,
    "mono8": 1,
    "rgb16": 3,
    "bgr16": 3,
    "rgba16": 4,
    "bgra16": 4,
    "mono16": 1,
    "bayer_rggb8": 1,
    "bayer_bggr8": 1,
    "bayer_gbrg8": 1,
    "bayer_grbg8": 1,
    "bayer_rggb16": 1,
    "bayer_bggr16": 1,
    "bayer_gbrg16": 1,
    "bayer_grbg16": 1,
    "yuv422": 2,
    "uyvy": 2,
    "yuv422_yuy2": 2,
    "yuyv": 2,
}
_PROBE = 32  # every so many rows are compared first
ENCODINGS = tuple(_CHANNELS)

# Colour conversions that cv_bridge lacks, or lacks in some of its releases.
_OPENCV_CODES = {
    "bayer_grbg8": cv2.COLOR_BayerGB2RGB,
    "yuv422": cv2.COLOR_YUV2RGB_UYVY,
    "uyvy": cv2.COLOR_YUV2RGB_UYVY,
    "yuv422_yuy2": cv2.COLOR_YUV2RGB_YUY2,
    "yuyv": cv2.COLOR_YUV2RGB_YUY2,
}


def decode_image(message: Image) -> ImageArray:
    """Return the RGB image of a message, uint8 [H, W, 3].

    An unpadded rgb8 image is a view of the message's buffer; every other costs one copy.

    Raises:
        ObservationError: The encoding is not a colour or grey image, a side is zero, a row is shorter than its
            pixels, or there is less data than rows.
    """
    pixels = _pixels(message)
    encoding: str = message.encoding
    if pixels.dtype.itemsize == 2:
        # 65535 / 255 = 257, so this rounds to the nearest 8-bit level and maps white to white.
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
        encoding = encoding.replace("16", "8")
    if encoding in _OPENCV_CODES:
        return cv2.cvtColor(pixels, _OPENCV_CODES[encoding])  # type: ignore[return-value]
    tight = types.SimpleNamespace(
        height=message.height, width=message.width, encoding=encoding, is_bigendian=0, step=pixels.strides[0]
    )
    tight.data = pixels.reshape(-1)
    return np.asarray(_BRIDGE.imgmsg_to_cv2(tight, "rgb8"))


def _pixels(message: Image) -> np.ndarray[Any, Any]:
    """Check the message; return its pixels, native byte order, contiguous: [H, W] or [H, W, C]."""
    channels = _CHANNELS.get(message.encoding)
    if channels is None:
        raise ObservationError(f"image encoding {message.encoding[:40]!r} is not one of {', '.join(ENCODINGS)}")
    if message.height == 0 or message.width == 0:
        raise ObservationError(f"an image must have pixels, got {_size(message)}")
    dtype = np.dtype(np.uint16 if "16" in message.encoding else np.uint8)
    row = message.width * channels * dtype.itemsize
    if message.step < row:
        raise ObservationError(
            f"a row of {message.width} {message.encoding} pixels has {row} bytes, "
            f"but the image's step is {message.step}"
        )
    needed = message.step * (message.height - 1) + row
    if len(message.data) < needed:
        raise ObservationError(
            f"an image of {_size(message)}, {message.encoding}, step {message.step}, has {needed} bytes, "
            f"but only {len(message.data)} came: it is truncated"
        )
    if message.encoding.startswith("bayer") and min(message.height, message.width) < 3:
        raise ObservationError(f"a {message.encoding} image must be at least 3 x 3, got {_size(message)}")
    if channels == 2 and message.width % 2:
        raise ObservationError(f"a {message.encoding} image must have an even width, got {_size(message)}")
    shape = (message.height, message.width) + ((channels,) if channels > 1 else ())
    strides = (message.step, channels * dtype.itemsize) + ((dtype.itemsize,) if channels > 1 else ())
    view = np.ndarray(shape, dtype, buffer=memoryview(message.data), strides=strides)
    if dtype.itemsize == 2 and bool(message.is_bigendian) != (sys.byteorder == "big"):
        return view.byteswap()
    return np.ascontiguousarray(view)


def _size(message: Image) -> str:
    return f"{message.width} x {message.height}"


def decode_compressed(message: CompressedImage) -> ImageArray:
    """Return the RGB image of a JPEG or PNG message, uint8 [H, W, 3].

    Raises:
        ObservationError: The data is no picture that OpenCV can read.
    """
    try:
        picture = _BRIDGE.compressed_imgmsg_to_cv2(message) if len(message.data) else None
    except cv2.error as error:
        raise ObservationError(f"{_describe(message)}: {' '.join(str(error).split())}") from error
    if picture is None:
        raise ObservationError(_describe(message))
    return cv2.cvtColor(picture, cv2.COLOR_GRAY2RGB if picture.ndim == 2 else cv2.COLOR_BGR2RGB)  # type: ignore[return-value]


def _describe(message: CompressedImage) -> str:
    name = re.sub(r"[^\x20-\x7e]", "?", message.format)[:40]
    return f"{len(message.data)} bytes of format {name!r} are not a JPEG or PNG picture"


def same_picture(first: ImageArray, second: ImageArray) -> bool:
    """Return whether two images are equal in every byte; where they are not, a few rows say so nearly always."""
    if first.shape != second.shape:
        return False
    return np.array_equal(first[::_PROBE], second[::_PROBE]) and np.array_equal(first, second)


def encode_image(image: ImageArray, header: Header) -> Image:
    """Return an rgb8 message of an RGB image, uint8 [H, W, 3], with one copy of its pixels."""
    height, width, _ = image.shape
    message = Image(header=header, height=height, width=width, encoding="rgb8", step=3 * width)
    message.data = _buffer(image)
    return message


def encode_compressed(image: ImageArray, header: Header, quality: int = 85) -> CompressedImage:
    """Return a JPEG message of an RGB image, uint8 [H, W, 3]; `quality` from 1 to 100."""
    _, jpeg = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, quality))
    message = CompressedImage(header=header, format="rgb8; jpeg compressed bgr8")
    message.data = _buffer(jpeg)
    return message


def _buffer(values: np.ndarray[Any, Any]) -> array.array[int]:
    """Copy bytes into the one type that a message takes without looking at every element."""
    buffer = array.array("B")
    buffer.frombytes(memoryview(np.ascontiguousarray(values)).cast("B"))
    return buffer
