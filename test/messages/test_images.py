"""Image messages to RGB and back: every encoding, both byte orders, padded rows, and all that must be refused."""

from __future__ import annotations

import array

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from flashvla_ros.core.errors import ObservationError
from flashvla_ros.messages import images

_ORDER = {"rgb": [0, 1, 2], "bgr": [2, 1, 0], "rgba": [0, 1, 2, 3], "bgra": [2, 1, 0, 3]}


def test_pictures_are_the_same_where_every_byte_is():
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (100, 64, 3), dtype=np.uint8)
    assert images.same_picture(picture, picture.copy())
    for row in (0, 1, 31, 99):
        noisy = picture.copy()
        noisy[row, 5, 1] ^= 1
        assert not images.same_picture(picture, noisy)
    assert not images.same_picture(picture, picture[:50])
    assert not images.same_picture(picture, picture[:1])


def make_message(pixels: np.ndarray, encoding: str, *, padding: int = 0, big_endian: bool = False) -> Image:
    """An image message of `pixels`, with `padding` bytes of rubbish behind each row."""
    height, width = pixels.shape[:2]
    rows = pixels.astype(pixels.dtype.newbyteorder(">" if big_endian else "<"))
    rows = np.frombuffer(rows.tobytes(), np.uint8).reshape(height, -1)
    padded = np.hstack([rows, np.full((height, padding), 0xA5, np.uint8)])
    message = Image(height=height, width=width, encoding=encoding, is_bigendian=int(big_endian), step=padded.shape[1])
    message.data = array.array("B", padded.tobytes())
    return message


def random_pixels(seed: int, shape: tuple[int, ...], dtype: type = np.uint8) -> np.ndarray:
    """Random pixels over the whole range of the type."""
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


@settings(deadline=None)
@given(
    st.sampled_from(["rgb", "bgr", "rgba", "bgra"]),
    st.sampled_from([8, 16]),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 7),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_colour_of_every_order_depth_padding_and_byte_order(order, bits, height, width, padding, big_endian, seed):
    dtype = np.uint8 if bits == 8 else np.uint16
    pixels = random_pixels(seed, (height, width, len(order)), dtype)
    decoded = images.decode_image(make_message(pixels, f"{order}{bits}", padding=padding, big_endian=big_endian))
    expected = pixels[..., _ORDER[order][:3]]
    if bits == 16:
        expected = np.rint(expected / 257.0).astype(np.uint8)
    np.testing.assert_array_equal(decoded, expected)


@settings(deadline=None)
@given(
    st.sampled_from([8, 16]), st.integers(1, 9), st.integers(1, 9), st.integers(0, 7), st.booleans(), st.integers(0, 99)
)
def test_grey_is_the_same_in_three_channels(bits, height, width, padding, big_endian, seed):
    pixels = random_pixels(seed, (height, width), np.uint8 if bits == 8 else np.uint16)
    decoded = images.decode_image(make_message(pixels, f"mono{bits}", padding=padding, big_endian=big_endian))
    grey = pixels if bits == 8 else np.rint(pixels / 257.0)
    np.testing.assert_array_equal(decoded, np.repeat(grey[..., None], 3, axis=2))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer_mosaic_of_one_colour_is_that_colour(pattern, bits):
    colour = {"r": 200, "g": 120, "b": 40}
    tile = np.array([colour[c] for c in pattern], np.uint16).reshape(2, 2)
    pixels = np.tile(tile, (4, 5))
    pixels = pixels.astype(np.uint8) if bits == 8 else pixels * 257
    decoded = images.decode_image(make_message(pixels, f"bayer_{pattern}{bits}", padding=3))
    assert decoded.shape == (8, 10, 3)
    np.testing.assert_array_equal(decoded, np.broadcast_to(np.array([200, 120, 40], np.uint8), (8, 10, 3)))


@pytest.mark.parametrize(
    ("encoding", "order"), [("yuv422", "uyvy"), ("uyvy", "uyvy"), ("yuyv", "yuyv"), ("yuv422_yuy2", "yuyv")]
)
def test_yuv_is_decoded(encoding, order):
    rgb = np.full((4, 6, 3), (200, 40, 90), np.uint8)
    y, u, v = cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV)[0, 0]
    pair = {"y": y, "u": u, "v": v}
    pixels = np.tile(np.array([pair[c] for c in order], np.uint8), (4, 3)).reshape(4, 6, 2)
    decoded = images.decode_image(make_message(pixels, encoding))
    assert decoded.shape == rgb.shape
    # Video range (16 to 235) against full range: close in hue, not equal.
    assert np.abs(decoded.astype(int) - rgb).max() < 40


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_round_trip_of_rgb_is_exact(height, width, seed):
    image = random_pixels(seed, (height, width, 3))
    header = Header(frame_id="camera")
    message = images.encode_image(image, header)
    assert (message.encoding, message.step, message.header) == ("rgb8", 3 * width, header)
    np.testing.assert_array_equal(images.decode_image(message), image)


def test_a_cropped_view_is_encoded_by_its_own_pixels():
    image = random_pixels(0, (8, 8, 3))
    np.testing.assert_array_equal(images.decode_image(images.encode_image(image[2:5, 1:7], Header())), image[2:5, 1:7])


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_compressed_pictures_are_rgb(suffix, grey):
    bgr = np.zeros((16, 24, 3), np.uint8)
    bgr[...] = (90, 90, 90) if grey else (10, 60, 220)
    picture = cv2.imencode(suffix, bgr[..., 0] if grey else bgr)[1]
    message = CompressedImage(format=suffix[1:], data=array.array("B", picture.tobytes()))
    decoded = images.decode_compressed(message)
    assert decoded.shape == bgr.shape
    assert np.abs(decoded.astype(int) - bgr[..., ::-1]).max() <= 4


def test_compressed_round_trip_is_close():
    image = np.full((32, 32, 3), (220, 60, 10), np.uint8)
    header = Header(frame_id="camera")
    message = images.encode_compressed(image, header)
    assert (message.header, message.format) == (header, "rgb8; jpeg compressed bgr8")
    assert np.abs(images.decode_compressed(message).astype(int) - image).max() <= 4


def test_a_format_is_quoted_without_what_would_spoil_a_log():
    message = CompressedImage(format="jp\neg\x1b[31m" + "x" * 99, data=b"")
    with pytest.raises(ObservationError, match=r"^0 bytes of format 'jp\?eg\?\[31mx{30}' are no picture"):
        images.decode_compressed(message)


def test_a_higher_quality_is_a_larger_picture():
    image = random_pixels(0, (64, 64, 3))
    sizes = [len(images.encode_compressed(image, Header(), quality).data) for quality in (20, 85, 100)]
    assert sizes == sorted(set(sizes))
    assert len(images.encode_compressed(image, Header()).data) == sizes[1]


def test_the_smallest_mosaic_is_decoded():
    pixels = np.full((3, 3, 1), 90, np.uint8)
    np.testing.assert_array_equal(images.decode_image(make_message(pixels, "bayer_rggb8")), np.full((3, 3, 3), 90))


@pytest.mark.parametrize(
    ("encoding", "words"), [("", "''"), ("16UC1", "16UC1"), ("8UC3", "8UC3"), ("rgb\n8", "rgb"), ("x" * 9999, "xxx")]
)
def test_unknown_encodings_are_named(encoding, words):
    with pytest.raises(ObservationError) as caught:
        images.decode_image(Image(height=1, width=1, step=3, encoding=encoding, data=array.array("B", bytes(3))))
    assert words in str(caught.value)
    assert "rgb8" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(("encoding", "width"), [("bayer_rggb8", 2), ("yuyv", 3)])
def test_sizes_that_a_mosaic_cannot_have_are_refused(encoding, width):
    channels = 2 if encoding == "yuyv" else 1
    message = make_message(random_pixels(0, (4, width, channels)), encoding)
    with pytest.raises(ObservationError, match=f"{encoding} image must .* got {width} x 4"):
        images.decode_image(message)


@pytest.mark.parametrize(("height", "width"), [(0, 4), (4, 0), (0, 0)])
def test_zero_size_is_refused_with_the_size(height, width):
    with pytest.raises(ObservationError, match=f"{width} x {height}"):
        images.decode_image(Image(height=height, width=width, step=12, encoding="rgb8"))


def test_truncated_data_is_refused_with_both_sizes():
    message = make_message(random_pixels(0, (4, 5, 3)), "rgb8")
    message.data = message.data[:-1]
    with pytest.raises(ObservationError, match=r"has 60 bytes, but only 59 came: it is truncated"):
        images.decode_image(message)


def test_the_last_row_need_not_be_padded():
    pixels = random_pixels(0, (4, 5, 3))
    message = make_message(pixels, "rgb8", padding=3)
    message.data = message.data[:-3]
    np.testing.assert_array_equal(images.decode_image(message), pixels)


def test_a_step_shorter_than_a_row_is_refused():
    message = make_message(random_pixels(0, (4, 5, 3)), "rgb8")
    message.step = 14
    with pytest.raises(ObservationError, match="15 bytes, but the image's step is 14"):
        images.decode_image(message)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([*images.ENCODINGS, "16UC1", "", "rgb"]),
    st.integers(0, 12),
    st.integers(0, 12),
    st.integers(0, 80),
    st.integers(0, 255),
    st.binary(max_size=600),
)
def test_any_message_gives_an_rgb_image_or_an_observation_error(encoding, height, width, step, big_endian, data):
    message = Image(height=height, width=width, encoding=encoding, is_bigendian=big_endian, step=step)
    message.data = array.array("B", data)
    try:
        decoded = images.decode_image(message)
    except ObservationError:
        return
    assert decoded.shape == (height, width, 3)
    assert decoded.dtype == np.uint8


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=20), st.binary(max_size=200), st.integers(0, 400))
def test_any_compressed_message_gives_an_rgb_image_or_an_observation_error(format_, data, cut):
    picture = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()
    for content in (data, picture[:cut], picture[:cut] + data):
        try:
            decoded = images.decode_compressed(CompressedImage(format=format_, data=array.array("B", content)))
        except ObservationError:
            continue
        assert decoded.shape == (4, 4, 3)
