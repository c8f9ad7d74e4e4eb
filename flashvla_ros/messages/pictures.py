"""JPEG and PNG pictures from anybody: their size is read from the header before a byte of them is decoded.

700 bytes can claim to be a picture of 30000 x 30000, and 3 kB can ask for fifty passes over one. Other formats that
OpenCV reads are refused: no camera driver sends them, and each is a decoder more to attack.
"""

from __future__ import annotations

import re
import struct
from typing import Any

import cv2
import numpy as np

from flashvla_ros.core.errors import ObservationError

try:
    import simplejpeg
except ImportError:  # rosdep has no key for it; the doctor says what is missed
    simplejpeg = None

MOST_PIXELS = 2**25  # just above 7680 x 4320
_MOST_SCANS = 16  # passes over a progressive JPEG; encoders make about ten
_MOST_SEGMENTS = 1000  # in front of a JPEG's size, and behind it
_MOST_HEADER = 2**20  # bytes of them
_MOST_CHUNKS = 2**16  # of a PNG
_MOST_TEXTS = 8  # compressed texts and profiles of a PNG, each of which may unfold to 8 MB
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
# A marker is 0xFF and a byte that is neither 0 (a 0xFF in the data) nor 0xFF (filling).
_MARKER = re.compile(rb"\xff([\x01-\xfe])")
_SCAN = b"\xff\xda"
_SIZE_MARKERS = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_IN_SCAN = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")  # any but the restarts, which encoders strew over a scan
_BETWEEN_SCANS = {0xC4, *range(0xDA, 0xDE), *range(0xE0, 0xF0), 0xFE}  # tables, scans, and what applications add
_END = 0xD9
_BARE_MARKERS = {0x01, *range(0xD0, 0xD8)}  # have no length
_STRAY = re.compile(r"\b\d extraneous bytes")  # some USB cameras leave a few in every picture


def decode_picture(data: bytes, *, as_stored: bool = False) -> np.ndarray[Any, Any]:
    """Return the pixels of a JPEG or PNG: uint8 or uint16, [H, W] or [H, W, 3] in the order blue, green, red.

    Args:
        data: The file.
        as_stored: Leave the pixels where they are, whatever orientation the file's EXIF asks for.

    Raises:
        ObservationError: It is neither, is larger than :data:`MOST_PIXELS`, or is damaged.
    """
    if data.startswith(_PNG):
        height, width = _png_size(data)
    elif data.startswith(_JPEG):
        height, width, position = _jpeg_size(data)
        _check_scans(data, position)
    else:
        raise ObservationError("it is neither JPEG nor PNG (a stream of video, such as H.264, is not read)")
    check_size(height, width)
    if simplejpeg is not None and data.startswith(_JPEG):
        _check_data(data)
    flags = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH | (cv2.IMREAD_IGNORE_ORIENTATION if as_stored else 0)
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ObservationError(f"it is damaged: {' '.join(str(error).split())[:200]}") from error
    if picture is None or sorted(picture.shape[:2]) != sorted((height, width)):
        raise ObservationError("it is damaged, or of a rare kind of JPEG or PNG")
    return picture


def check_size(height: int, width: int) -> None:
    """Refuse an image that is empty, or larger than any camera's.

    Raises:
        ObservationError: Names the size.
    """
    if height == 0 or width == 0:
        raise ObservationError(f"an image must have pixels, got {width} x {height}")
    if height * width > MOST_PIXELS:
        raise ObservationError(f"an image may have {MOST_PIXELS} pixels at most, got {width} x {height}")


def _jpeg_size(data: bytes) -> tuple[int, int, int]:
    """Return height, width, and the position of the next marker."""
    if (scans := data.count(_SCAN)) > _MOST_SCANS:
        raise ObservationError(f"it has {scans} scans, of which {_MOST_SCANS} are the most: they would take too long")
    position = 2
    for _ in range(_MOST_SEGMENTS):
        found = _MARKER.search(data, position, _MOST_HEADER)
        if found is None or found[1][0] == _SCAN[1]:
            break
        position = found.end()
        if found[1][0] in _BARE_MARKERS:
            continue
        segment = data[position : position + 7]
        if found[1][0] in _SIZE_MARKERS and len(segment) == 7:
            height, width = struct.unpack_from(">HH", segment, 3)
            return height, width, position + int.from_bytes(segment[:2], "big")
        position += int.from_bytes(segment[:2], "big")
    raise ObservationError("it is a JPEG without a size in front of its data")


def _check_scans(data: bytes, position: int) -> None:
    """Refuse a JPEG whose compressed data has a marker that cannot stand there."""
    for _ in range(_MOST_SEGMENTS):
        found = _IN_SCAN.search(data, position)
        if found is None or found[1][0] == _END:
            return
        if found[1][0] not in _BETWEEN_SCANS:
            raise ObservationError(f"it is damaged: its compressed data has the marker 0x{found[1][0]:02X}")
        position = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    raise ObservationError(f"it is a JPEG of more than {_MOST_SEGMENTS} parts")


def _check_data(data: bytes) -> None:
    """Refuse a JPEG of whose data libjpeg says that it is damaged or cut; OpenCV shows the rest of it grey.

    A few stray bytes are let pass, with what libjpeg would have said after them. A picture is unpacked at an eighth of
    its size for this, which takes a tenth of the time of decoding it.
    """
    try:
        simplejpeg.decode_jpeg(data, colorspace="GRAY", min_height=1, min_width=1, strict=True)
    except ValueError as error:
        if not _STRAY.search(str(error)):
            raise ObservationError(f"it is damaged: {error}") from error


def _png_size(data: bytes) -> tuple[int, int]:
    position, texts = len(_PNG), 0
    if data[position + 4 : position + 8] != b"IHDR" or len(data) < position + 16:
        raise ObservationError("it is a PNG without a size in front of its data")
    width, height = struct.unpack_from(">II", data, position + 8)
    for _ in range(_MOST_CHUNKS):
        kind = data[position + 4 : position + 8]
        texts += kind in (b"zTXt", b"iTXt", b"iCCP")
        if kind in (b"", b"IEND"):
            return height, width
        if kind == b"acTL" or texts > _MOST_TEXTS:
            raise ObservationError("it is a PNG of several pictures, or with too many texts")
        position += 12 + int.from_bytes(data[position : position + 4], "big")
    raise ObservationError(f"it is a PNG of more than {_MOST_CHUNKS} parts")
