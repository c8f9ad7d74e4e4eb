"""openpi's messages: msgpack, with arrays as maps of data, dtype and shape. Nothing on the wire is ever executed.

The bytes are those of ``openpi_client.msgpack_numpy`` (github.com/Physical-Intelligence/openpi); test/remote holds them
to bytes which that module made.
"""

from __future__ import annotations

import math
import re
from typing import Any

import msgpack
import numpy as np

from flashvla_ros.core.errors import RemoteError

MOST_BYTES = 16 * 2**20  # of a message: four raw images of 1280 x 960, and far more than any chunk of actions
_KINDS = "biufSU"  # of dtypes: booleans, integers, floats, bytes and text; NumPy's others hold addresses or structures
_DTYPE = re.compile(f"[<>|=]?[{_KINDS}][0-9]{{1,8}}")  # one of a structure may cost NumPy minutes and gigabytes
_HELD = {"S": bytes, "U": str}  # what a scalar of that kind is made of; any other of a number
_ARRAY, _SCALAR = b"__ndarray__", b"__npgeneric__"


def pack(message: Any) -> bytes:
    """Return the bytes of a message: maps, lists, text, numbers, arrays.

    Raises:
        RemoteError: Something in it has no form on the wire.
    """
    try:
        packed: bytes = msgpack.packb(message, default=_to_map)
    except (TypeError, ValueError, OverflowError) as error:
        raise RemoteError(f"a message cannot be sent: {error}") from error
    return packed


def unpack(data: bytes) -> Any:
    """Return the message in `data`; its arrays are read-only views of it.

    Raises:
        RemoteError: The bytes are no such message.
    """
    try:
        return msgpack.unpackb(data, object_hook=_from_map)
    except Exception as error:
        raise RemoteError(f"{len(data)} bytes are no message of openpi's protocol: {error!r:.200}") from error


def _to_map(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.kind not in _KINDS:
            raise ValueError(f"an array of dtype {value.dtype}")
        if isinstance(value, np.ndarray):
            return {_ARRAY: True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
        return {_SCALAR: True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"a value of type {type(value).__name__}")


def _from_map(value: dict[Any, Any]) -> Any:
    if _ARRAY not in value and _SCALAR not in value:
        return value
    data = value[b"data"]
    if not _DTYPE.fullmatch(value[b"dtype"]):
        raise ValueError(f"an array of dtype {value[b'dtype']}")
    dtype = np.dtype(value[b"dtype"])
    if _SCALAR in value:
        if not isinstance(data, _HELD.get(dtype.kind, int | float)):  # NumPy makes as many zero bytes of a number
            raise ValueError(f"a scalar of dtype {dtype} in a {type(data).__name__}")
        return dtype.type(data)
    shape = tuple(value[b"shape"])
    if not dtype.itemsize or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"an array of shape {list(shape)} and dtype {dtype} in {len(data)} bytes")
    return np.ndarray(shape, dtype, data)
