"""Compressed images: what their format means, and pictures that were made to do harm."""

from __future__ import annotations

import array
import contextlib
import importlib.util
import resource
import struct
import time
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sensor_msgs.msg import CompressedImage, Image

from flashvla_ros.core.errors import ObservationError
from flashvla_ros.messages import pictures
from flashvla_ros.messages.images import decode_compressed, decode_image
from flashvla_ros.messages.pictures import MOST_PIXELS, check_size

RGB = np.zeros((48, 66, 3), np.uint8)
RGB[:, :22] = (200, 30, 20)
RGB[:, 22:44] = (20, 190, 40)
RGB[:, 44:] = (10, 60, 210)
BGR = np.ascontiguousarray(RGB[..., ::-1])
GREY = cv2.cvtColor(RGB, cv2.COLOR_RGB2GRAY)


def mosaic(pattern: str, dtype: type = np.uint8) -> np.ndarray:
    """RGB through a Bayer filter."""
    pixels = np.zeros(RGB.shape[:2], np.uint16)
    for place, colour in enumerate(pattern):
        pixels[place // 2 :: 2, place % 2 :: 2] = RGB[place // 2 :: 2, place % 2 :: 2, "rgb".index(colour)]
    return (pixels * (257 if dtype is np.uint16 else 1)).astype(dtype)


def compressed(format_: str, pixels: np.ndarray | bytes, suffix: str = ".png") -> CompressedImage:
    data = pixels if isinstance(pixels, bytes) else cv2.imencode(suffix, pixels)[1].tobytes()
    return CompressedImage(format=format_, data=array.array("B", data))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_a_mosaic_is_the_picture_that_its_raw_image_is(pattern: str, bits: int) -> None:
    pixels = mosaic(pattern, np.uint8 if bits == 8 else np.uint16)
    encoding = f"bayer_{pattern}{bits}"
    raw = Image(height=48, width=66, encoding=encoding, step=66 * bits // 8, data=array.array("B", pixels.tobytes()))
    np.testing.assert_array_equal(
        decode_compressed(compressed(f"{encoding}; png compressed ", pixels)), decode_image(raw)
    )


def test_a_mosaic_in_a_jpeg_keeps_its_colours() -> None:
    decoded = decode_compressed(compressed("bayer_rggb8; jpeg compressed ", mosaic("rggb"), ".jpg")).astype(int)
    for left in (4, 26, 48):
        assert np.abs(decoded[4:-4, left : left + 14] - RGB[4:-4, left : left + 14]).max() < 40


@pytest.mark.parametrize(
    ("format_", "pixels"),
    [
        ("", BGR),
        ("png", BGR),
        ("jpeg", BGR),
        ("rgb8; png compressed bgr8", BGR),
        ("rgb8; jpeg compressed bgr8", BGR),
        ("bgr8; png compressed bgr8", BGR),
        ("bgr8;png compressed", BGR),
        ("yuv422_yuy2; png compressed bgr8", BGR),
        ("nv12; png compressed bgr8", BGR),
        ("bayer_rggb8; png compressed bgr8", BGR),
        ("rgb16; png compressed bgr16", BGR.astype(np.uint16) * 257),
        ("rgba8; png compressed bgra8", np.dstack([BGR, np.full(BGR.shape[:2], 9, np.uint8)])),
        ("rgb8; png compressed rgb8", RGB),
        ("bgr16; png compressed rgb16", RGB.astype(np.uint16) * 257),
    ],
)
def test_colours_are_those_that_the_camera_saw(format_: str, pixels: np.ndarray) -> None:
    np.testing.assert_array_equal(decode_compressed(compressed(format_, pixels)), RGB)


@pytest.mark.parametrize(
    ("format_", "pixels"),
    [
        ("mono8; png compressed ", GREY),
        ("mono8; jpeg compressed mono8", GREY),
        ("png", GREY),
        ("mono16; png compressed ", GREY.astype(np.uint16) * 257),
        ("mono16; png compressed mono16", GREY.astype(np.uint16) * 257),
    ],
)
def test_a_grey_camera_is_grey(format_: str, pixels: np.ndarray) -> None:
    np.testing.assert_array_equal(decode_compressed(compressed(format_, pixels)), np.repeat(GREY[..., None], 3, axis=2))


DEPTH = np.full((48, 66), 900, np.uint16)


@pytest.mark.parametrize(
    ("format_", "pixels", "words"),
    [
        ("16UC1; png compressed ", DEPTH, "encoding '16UC1' is not one of rgb8"),
        ("16UC1", DEPTH, "encoding '16UC1' is not one of"),
        ("png", DEPTH, r"may be depth, and its format 'png' does not say: name its encoding there"),
        ("16UC1; compressedDepth png", bytes(12) + cv2.imencode(".png", DEPTH)[1].tobytes(), "compressedDepth"),
        ("32FC1; compressedDepth rvl", b"\0" * 99, "compressedDepth"),
        ("32FC1; tiff compressed ", DEPTH, "'32FC1'"),
        ("8UC1; png compressed ", GREY, "'8UC1'"),
        ("8UC3; jpeg compressed bgr8", BGR, "'8UC3'"),
        ("thermal; png compressed ", GREY, "'thermal'"),
        ("yuv422_yuy2; jpeg compressed mono8", GREY, r"has colour .yuv422_yuy2., but its pictures .* are grey"),
        ("bayer_rggb8; jpeg compressed mono8", GREY, r"has colour .bayer_rggb8."),
        ("rgb8; jpeg compressed bgr8", GREY, r"has colour .rgb8."),
        ("bayer_rggb8; png compressed ", GREY[:2, :2], "must be at least 3 x 3, got 2 x 2"),
        ("rgb8; png compressed bgr8", cv2.imencode(".webp", BGR)[1].tobytes(), "neither JPEG nor PNG"),
        ("h264", b"\0\0\0\1\x67", "'h264' .* neither JPEG nor PNG"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_picture_of_the_scene_is_refused(format_: str, pixels: Any, words: str) -> None:
    with pytest.raises(ObservationError, match=words) as refusal:
        decode_compressed(compressed(format_, pixels))
    assert "\n" not in str(refusal.value)


def test_the_picture_of_a_mosaic_is_not_turned_by_its_exif() -> None:
    """A turned mosaic would have another pattern; any other picture is turned as viewers turn it."""
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"
    jpeg = cv2.imencode(".jpg", mosaic("rggb"))[1].tobytes()
    turned = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]
    assert decode_compressed(compressed("bayer_rggb8; jpeg compressed ", turned)).shape == (48, 66, 3)
    assert decode_compressed(compressed("mono8; jpeg compressed ", turned)).shape == (66, 48, 3)


def claiming(data: bytes, height: int, width: int) -> bytes:
    """A JPEG or PNG whose header says another size."""
    if data.startswith(b"\x89"):
        ihdr = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
        return data[:12] + ihdr + struct.pack(">I", zlib.crc32(ihdr)) + data[33:]
    at = next(at for at in range(2, len(data)) if data[at] == 0xFF and data[at + 1] in (0xC0, 0xC2))
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


def png_bomb(side: int) -> bytes:
    """A grey PNG of a few kilobytes that is whole."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compressobj(9)
    data = b"".join(rows.compress(bytes(side + 1)) for _ in range(side)) + rows.flush()
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


JPEG, PNG = (cv2.imencode(suffix, BGR)[1].tobytes() for suffix in (".jpg", ".png"))
PROGRESSIVE = cv2.imencode(".jpg", BGR, (cv2.IMWRITE_JPEG_PROGRESSIVE, 1))[1].tobytes()
LAST_SCAN = PROGRESSIVE[PROGRESSIVE.rindex(b"\xff\xda") : -2]
COMMENT = b"\xff\xfe\0\x0b\xff\xc0\0\x0b\x08\0\1\0\1"  # with a size inside that is none
TEXT = zlib.compress(bytes(7_000_000), 9)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (claiming(JPEG, 30000, 30000), "33554432 pixels at most, got 30000 x 30000"),
        (claiming(PROGRESSIVE, 65535, 65535), "pixels at most, got 65535 x 65535"),
        (claiming(PNG, 30000, 30000), "pixels at most, got 30000 x 30000"),
        (claiming(PNG, 2**31 - 1, 2**31 - 1), "pixels at most"),
        (claiming(JPEG, 0, 66), "must have pixels, got 66 x 0"),
        (claiming(PNG, 48, 0), "must have pixels, got 0 x 48"),
        (png_bomb(8000), "pixels at most, got 8000 x 8000"),
        (claiming(PNG, 5000, 5000), "damaged"),
        # What a parser that looks for the first marker would take for the size.
        (
            JPEG[:2] + b"\xff\xfe\x00\x0b\xff\xc0\x00\x0b\x08\0\1\0\1" + claiming(JPEG, 30000, 30000)[2:],
            "30000 x 30000",
        ),
        (JPEG[:2] + b"\xff" * 50_000_000, "without a size"),
        (JPEG[:2] + b"\xff\xe0\x00\x02" * 2_000_000 + JPEG[2:], "without a size"),
        (JPEG[:-2] + b"\xff\xe0\x00\x02" * 2_000_000 + JPEG[-2:], "more than 1000 parts"),
        (PROGRESSIVE[:-2] + LAST_SCAN * 50 + b"\xff\xd9", "60 scans, of which 16 are the most"),
        (PNG[:33] + b"\0\0\0\0tEXt\0\0\0\0" * 100_000 + PNG[33:], "more than 65536 parts"),
        (PNG[:33] + (struct.pack(">I", len(TEXT) + 3) + b"zTXta\0\0" + TEXT + bytes(4)) * 900 + PNG[33:], "many texts"),
        (PNG[:33] + b"\0\0\0\x08acTL" + bytes(12) + PNG[33:], "several pictures"),
        (JPEG[:2], "neither JPEG nor PNG"),
        (JPEG[:3], "without a size"),
        (PNG[:23], "without a size"),
        (PNG[:24], "it is damaged, or of a rare kind of JPEG or PNG"),
        (PNG[:40], "damaged"),
        (b"", "0 bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bomb_is_refused_before_it_is_decoded(data: bytes, words: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started_s = time.monotonic()
    with pytest.raises(ObservationError, match=words) as refusal:
        decode_compressed(compressed("png", data))
    assert time.monotonic() - started_s < 3.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # kilobytes
    assert len(str(refusal.value)) < 400


def test_a_picture_may_have_as_many_pixels_as_are_said_and_no_more() -> None:
    check_size(MOST_PIXELS, 1)
    with pytest.raises(ObservationError, match="pixels at most"):
        check_size(MOST_PIXELS + 1, 1)


def test_the_largest_picture_is_decoded() -> None:
    assert decode_compressed(compressed("jpeg", np.zeros((4320, 7680, 3), np.uint8), ".jpg")).shape == (4320, 7680, 3)
    assert MOST_PIXELS >= 4320 * 7680


def test_a_raw_image_is_bounded_alike() -> None:
    with pytest.raises(ObservationError, match="33554432 pixels at most, got 8000 x 8000"):
        decode_image(Image(height=8000, width=8000, step=8000, encoding="mono8"))


def test_a_jpeg_with_a_marker_inside_of_its_data_is_refused() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for more in ((), (cv2.IMWRITE_JPEG_RST_INTERVAL, 2), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)):
        whole = cv2.imencode(".jpg", noise, more)[1].tobytes()
        assert decode_compressed(compressed("jpeg", whole)).shape == noise.shape
        middle = len(whole) // 2
        with pytest.raises(ObservationError, match="damaged: its compressed data has the marker 0xC0"):
            decode_compressed(compressed("jpeg", whole[:middle] + b"\xff\xc0" + whole[middle + 2 :]))


@pytest.mark.skipif(importlib.util.find_spec("simplejpeg") is None, reason="simplejpeg is not installed: make setup")
def test_a_jpeg_of_whose_data_a_part_is_missing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A camera that loses packets closes the picture all the same; stray bytes are what some leave in each."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for more in ((), (cv2.IMWRITE_JPEG_RST_INTERVAL, 2), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)):
        whole = cv2.imencode(".jpg", noise, more)[1].tobytes()
        for cut in (len(whole) // 2, len(whole) - 20):
            with pytest.raises(ObservationError, match="it is damaged: Corrupt JPEG data: premature end"):
                decode_compressed(compressed("jpeg", whole[:cut] + b"\xff\xd9"))
    whole = cv2.imencode(".jpg", noise, (cv2.IMWRITE_JPEG_RST_INTERVAL, 2))[1].tobytes()
    for stray, shown in ((b"\1\1", True), (b"\1" * 40, False)):
        data = whole.replace(b"\xff\xd0", stray + b"\xff\xd0", 1)
        with contextlib.nullcontext() if shown else pytest.raises(ObservationError, match="40 extraneous bytes"):
            assert decode_compressed(compressed("jpeg", data)).shape == noise.shape
    monkeypatch.setattr(pictures, "simplejpeg", None)
    assert (
        decode_compressed(compressed("jpeg", whole[: len(whole) // 2] + b"\xff\xd9")).shape == noise.shape
    )  # as far as it goes


@pytest.mark.parametrize("keep", [0.05, 0.3, 0.5, 0.9, 0.99])
def test_a_png_that_is_cut_or_damaged_is_refused(keep: float) -> None:
    whole = cv2.imencode(".png", np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))[1].tobytes()
    cut = int(keep * len(whole))
    for data in (whole[:cut], whole[:cut] + whole[-12:], whole[:cut] + bytes([whole[cut] ^ 1]) + whole[cut + 1 :]):
        with pytest.raises(ObservationError, match="damaged"):
            decode_compressed(compressed("png", data))


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([JPEG, PROGRESSIVE, PNG]), st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), max_size=4)
)
def test_a_damaged_picture_is_an_image_or_an_observation_error(data: bytes, changes: list[tuple[int, int]]) -> None:
    changed = bytearray(data)
    for at, value in changes:
        changed[at % len(data)] = value
    try:
        decoded = decode_compressed(compressed("", bytes(changed)))
    except ObservationError:
        return
    assert decoded.ndim == 3
    assert decoded.shape[2] == 3
    assert decoded.shape[0] * decoded.shape[1] <= MOST_PIXELS
