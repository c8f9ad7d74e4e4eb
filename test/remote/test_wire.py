"""The bytes are openpi's, nothing else is read, and nothing is executed."""

from __future__ import annotations

import contextlib
import json
import pickle
from pathlib import Path

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flashvla_ros.core.errors import RemoteError
from flashvla_ros.remote import wire

KEPT = json.loads((Path(__file__).parent / "data" / "openpi_wire.json").read_text())


def example() -> dict:
    """As kept in data/openpi_wire.json, whose bytes openpi_client.msgpack_numpy of the commit there made."""
    return {
        "observation/state": np.arange(8, dtype=np.float64) / 7,
        "observation/image": np.arange(48, dtype=np.uint8).reshape(4, 4, 3),
        "images": {"cam_high": np.arange(12, dtype=np.uint8).reshape(3, 2, 2)},
        "prompt": "pick up the cup – gently",
        "flag": np.bool_(True),
        "number": np.float32(0.1),
        "plain": [1, 2.5, None, True, "x", b"\x00\xff"],
        "empty": np.zeros((0, 7), dtype=np.float32),
    }


def test_the_bytes_are_those_of_openpi() -> None:
    assert wire.pack(example()).hex() == KEPT["hex"]


def test_openpis_bytes_are_read_back() -> None:
    read = wire.unpack(bytes.fromhex(KEPT["hex"]))
    assert read.keys() == example().keys()
    np.testing.assert_equal(read, example())
    assert read["number"].dtype == np.float32
    assert read["empty"].shape == (0, 7)


ARRAYS = hnp.arrays(
    st.one_of(hnp.integer_dtypes(), hnp.unsigned_integer_dtypes(), hnp.floating_dtypes(), hnp.boolean_dtypes()),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.text(max_size=5), ARRAYS, max_size=3))
def test_any_arrays_return_bit_for_bit(message: dict) -> None:
    read = wire.unpack(wire.pack(message))
    assert read.keys() == message.keys()
    for key, value in message.items():
        assert (read[key].dtype, read[key].shape, read[key].tobytes()) == (value.dtype, value.shape, value.tobytes())


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_message_or_one_error(data: bytes) -> None:
    with contextlib.suppress(RemoteError):
        wire.unpack(data)


def lying(**change: object) -> bytes:
    row = {b"__ndarray__": True, b"data": b"\0" * 8, b"dtype": "<f8", b"shape": [1]}
    return msgpack.packb({"actions": {**row, **{name.encode(): value for name, value in change.items()}}})


def scalar(dtype: str, data: object) -> bytes:
    return msgpack.packb({"actions": {b"__npgeneric__": True, b"data": data, b"dtype": dtype}})


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps([1]),
        lying(dtype="|O"),
        lying(dtype="T", data=b"A" * 16),  # NumPy's StringDType: its elements are addresses
        lying(dtype="(1,"),
        lying(dtype="<c8"),
        lying(dtype=[["a", "<f8"]]),
        lying(shape=[2**40, 2**40]),
        lying(shape=[-1]),
        lying(shape=[3]),
        lying(shape="x"),
        lying(data="text"),
        lying(dtype="|S0", data=b"", shape=[2**40]),
        lying(dtype="i1," * 20, data=b"", shape=[0]),  # a structure of a million fields cost 6 minutes and a gigabyte
        scalar("|S1", 50_000_000),  # np.bytes_(n) is n zeros
        scalar("<U1", 1),
        scalar("<f8", "1"),
        scalar("<i8", [1, 2]),
        b"",
        b"\xc1",
        b"\x91" * 2000,
    ],
)
def test_a_lying_message_is_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(RemoteError) as caught:
        wire.unpack(data)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("value", [np.bool_(True), np.int8(-3), np.float32(0.1), np.bytes_(b"ab"), np.str_("ä")])
def test_scalars_of_every_kind_return(value: np.generic) -> None:
    read = wire.unpack(scalar(value.dtype.str, value.item()))["actions"]
    assert (type(read), read) == (type(value), value)


@pytest.mark.parametrize("value", [object(), np.array([object()]), np.array([1j]), 2**70])
def test_what_has_no_form_on_the_wire_is_not_sent(value: object) -> None:
    with pytest.raises(RemoteError, match="cannot be sent"):
        wire.pack({"x": value})
