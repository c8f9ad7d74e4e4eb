"""Whatever arrives, an image, an instruction or a parameter is either used or refused in the package's own words."""

from __future__ import annotations

import array

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from flashvla_ros.control.assembler import MAX_INSTRUCTION, checked_instruction
from flashvla_ros.core.errors import ObservationError, SettingsError
from flashvla_ros.core.settings import PARAMETERS, Settings
from flashvla_ros.messages.images import ENCODINGS, decode_compressed, decode_image, encode_compressed

SIDES = st.one_of(st.integers(0, 9), st.sampled_from([0, 1, 2, 3, 2**31, 2**32 - 1]))
VALUES = st.one_of(
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=9),
    st.none(),
    st.lists(st.floats(), max_size=5),
    st.lists(st.text(max_size=3), max_size=5),
    st.lists(st.integers(), max_size=5),
)


@settings(max_examples=300, deadline=None)
@given(
    encoding=st.one_of(st.sampled_from(ENCODINGS), st.text(max_size=12)),
    height=SIDES,
    width=SIDES,
    step=st.one_of(st.integers(0, 90), st.sampled_from([0, 2**31, 2**32 - 1])),
    bigendian=st.integers(0, 255),
    data=st.binary(max_size=700),
)
def test_an_image_is_a_picture_or_is_refused(encoding, height, width, step, bigendian, data):
    message = Image(height=height, width=width, step=step, encoding=encoding, is_bigendian=bigendian)
    message.data = array.array("B", data)
    try:
        picture = decode_image(message)
    except ObservationError as error:
        words = str(error)
        assert "\n" not in words and len(words) < 400
    else:
        assert (picture.shape, picture.dtype) == ((height, width, 3), np.uint8)


@settings(max_examples=200, deadline=None)
@given(cut=st.integers(0, 400), noise=st.lists(st.tuples(st.integers(0, 399), st.integers(0, 255)), max_size=6))
def test_a_compressed_image_is_a_picture_or_is_refused(cut, noise):
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    data = bytearray(encode_compressed(picture, Header()).data)[:cut]
    for index, value in noise:
        if index < len(data):
            data[index] = value
    message = CompressedImage(format="jpeg", data=array.array("B", data))
    try:
        decoded = decode_compressed(message)
    except ObservationError as error:
        words = str(error)
        assert len(words) < 400
    else:
        assert decoded.ndim == 3 and decoded.shape[2] == 3 and decoded.dtype == np.uint8


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.text(max_size=50), st.text(min_size=MAX_INSTRUCTION - 2, max_size=MAX_INSTRUCTION + 5)))
def test_an_instruction_is_kept_or_is_refused(text):
    try:
        kept = checked_instruction(text)
    except ObservationError:
        assert not text.strip() or len(text.strip()) > MAX_INSTRUCTION
    else:
        assert kept == text.strip() and 0 < len(kept) <= MAX_INSTRUCTION


@settings(max_examples=400, deadline=None)
@given(row=st.sampled_from(PARAMETERS), value=VALUES)
def test_a_parameter_takes_a_value_of_its_type_and_range_or_names_itself(row, value):
    try:
        taken = Settings().with_values({row.name: value}).values()[row.name]
    except SettingsError as error:
        words = str(error)
        assert row.name in words or row.name.partition(".")[0] in words  # a rule may bind several of a group
    else:
        assert row.parse(taken) == taken
        for element in taken if isinstance(taken, tuple) else (taken,):
            assert not isinstance(element, float) or np.isfinite(element)
            assert not row.choices or element in row.choices
