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
from numpy.typing import NDArray
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from flashvla_ros.core.errors import ObservationError
from flashvla_ros.core.types import ImageArray
from flashvla_ros.messages.pictures import check_size, decode_picture

_BRIDGE = CvBridge()

# Channels of each encoding that says what its colours are; a 16 in the name means two bytes a channel.
_CHANNELS = {
    **dict.fromkeys(("rgb8", "bgr8", "rgb16", "bgr16"), 3),
    **dict.fromkeys(("rgba8", "bgra8", "rgba16", "bgra16"), 4),
    **dict.fromkeys(("mono8", "mono16"), 1),
    **dict.fromkeys((f"bayer_{order}{bits}" for bits in (8, 16) for order in ("rggb", "bggr", "gbrg", "grbg")), 1),
    **dict.fromkeys(("yuv422", "uyvy", "yuv422_yuy2", "yuyv"), 2),
}
_PROBE = 32  # every so many rows are compared first
ENCODINGS = tuple(_CHANNELS)
# Colour that arrives as a picture, whose raw form this package does not read.
_PICTURES_ONLY = ("nv12", "nv21", "nv24")
_MEASUREMENT = re.compile(r"\d+[USF]C\d+")  # 16UC1, 32FC1, …: numbers, no colours

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
    return _rgb(_eight_bit(_pixels(message)), message.encoding.replace("16", "8"))


def _eight_bit(pixels: np.ndarray[Any, Any]) -> ImageArray:
    """Return pixels of 8 or 16 bits with 8: the nearest level, and white stays white, since 65535 / 255 = 257."""
    if pixels.dtype.itemsize == 1:
        return pixels
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _rgb(pixels: ImageArray, encoding: str) -> ImageArray:
    """Return contiguous pixels [H, W] or [H, W, C] of an 8-bit encoding as RGB [H, W, 3]."""
    if encoding in _OPENCV_CODES:
        return cv2.cvtColor(pixels, _OPENCV_CODES[encoding])  # type: ignore[return-value]
    height, width = pixels.shape[:2]
    tight = types.SimpleNamespace(
        height=height, width=width, encoding=encoding, is_bigendian=0, step=pixels.strides[0], data=pixels.reshape(-1)
    )
    return np.asarray(_BRIDGE.imgmsg_to_cv2(tight, "rgb8"))


def _pixels(message: Image) -> np.ndarray[Any, Any]:
    """Check the message; return its pixels, native byte order, contiguous: [H, W] or [H, W, C]."""
    channels = _CHANNELS.get(message.encoding)
    if channels is None:
        raise _unknown_encoding(message.encoding)
    check_size(message.height, message.width)
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
    _check_mosaic(message.encoding, message.height, message.width)
    if channels == 2 and message.width % 2:
        raise ObservationError(f"a {message.encoding} image must have an even width, got {_size(message)}")
    shape = (message.height, message.width) + ((channels,) if channels > 1 else ())
    strides = (message.step, channels * dtype.itemsize) + ((dtype.itemsize,) if channels > 1 else ())
    picture: NDArray[Any] = np.ndarray(shape, dtype, buffer=memoryview(message.data), strides=strides)
    if dtype.itemsize == 2 and bool(message.is_bigendian) != (sys.byteorder == "big"):
        return picture.byteswap()
    return np.ascontiguousarray(picture)


def _check_mosaic(encoding: str, height: int, width: int) -> None:
    if encoding.startswith("bayer") and min(height, width) < 3:
        raise ObservationError(f"a {encoding} image must be at least 3 x 3, got {width} x {height}")


def _unknown_encoding(encoding: str) -> ObservationError:
    return ObservationError(f"image encoding {encoding[:40]!r} is not one of {', '.join(ENCODINGS)}")


def _size(message: Image) -> str:
    return f"{message.width} x {message.height}"


def decode_compressed(message: CompressedImage) -> ImageArray:
    """Return the RGB image of a JPEG or PNG message, uint8 [H, W, 3].

    Its `format` is "ENCODING; CODEC compressed STORED", as compressed_image_transport writes it: the raw image's
    encoding, jpeg or png, and the order of the colours in the picture. It means what the encoding of a raw image
    means. Without it a picture is what any viewer shows.

    Raises:
        ObservationError: The data is no JPEG or PNG, is too large or damaged, or is no colour or grey image.
    """
    encoding, stored = _meaning(message.format)
    if encoding and encoding not in (*_CHANNELS, *_PICTURES_ONLY):
        raise _unknown_encoding(encoding)
    mosaic = encoding.startswith("bayer") and not stored
    try:
        pixels = decode_picture(bytes(memoryview(message.data)), as_stored=mosaic)
    except ObservationError as error:
        what = f"{len(message.data)} bytes of format {_printable(message.format)!r}"
        raise ObservationError(f"{what} are no picture that can be used: {error}") from error
    grey = pixels.ndim == 2
    if grey and mosaic:
        _check_mosaic(encoding, *pixels.shape)
        return _rgb(_eight_bit(pixels), encoding.replace("16", "8"))
    if grey and encoding and not encoding.startswith("mono"):
        raise ObservationError(
            f"the camera has colour ({encoding}), but its pictures of format {_printable(message.format)!r} are grey: "
            f"let its driver publish rgb8 or bgr8, or read the raw topic"
        )
    if grey and not encoding and pixels.dtype == np.uint16:
        raise ObservationError(
            f"a grey picture of 16 bits may be depth, and its format {_printable(message.format)!r} does not say: "
            f"name its encoding there (mono16; png compressed)"
        )
    if grey:
        return cv2.cvtColor(_eight_bit(pixels), cv2.COLOR_GRAY2RGB)  # type: ignore[return-value]
    if stored.startswith("rgb"):  # the encoder took red for blue, and so does the decoder
        return _eight_bit(pixels)
    return cv2.cvtColor(_eight_bit(pixels), cv2.COLOR_BGR2RGB)  # type: ignore[return-value]


def _meaning(format_: str) -> tuple[str, str]:
    """Return the raw image's encoding and the stored picture's, each empty where the format does not say."""
    encoding, separator, codec = (part.strip() for part in format_.partition(";"))
    if "depth" in format_.lower():
        raise _unknown_encoding(format_)
    if not separator:
        named = encoding in _CHANNELS or _MEASUREMENT.fullmatch(encoding)
        return (encoding if named else ""), ""
    return encoding, codec.partition("compressed")[2].strip()


def _printable(text: str) -> str:
    return re.sub(r"[^\x20-\x7e]", "?", text)[:40]


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
    buffer.frombytes(np.ascontiguousarray(values).data.cast("B"))
    return buffer
