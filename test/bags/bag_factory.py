"""Bags written by rosbags' own writer, a public tool that shares no code with this package's recorder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rosbags.interfaces import Nodetype
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from flashvla_ros.bags.definitions import message_definition

STORE = get_typestore(Stores.ROS2_JAZZY)
IMAGE, COMPRESSED, STRING = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage", "std_msgs/msg/String"
GATE, EPISODE = "flashvla_ros/msg/GateStatus", "flashvla_ros/msg/EpisodeStatus"
START_NS = 1_700_000_000 * 10**9


def header(time_ns: int) -> Any:
    stamp = STORE.types["builtin_interfaces/msg/Time"](sec=time_ns // 10**9, nanosec=time_ns % 10**9)
    return STORE.types["std_msgs/msg/Header"](stamp=stamp, frame_id="camera")


def picture(index: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """A bright square that wanders over a fixed pattern, uint8 [H, W, 3]."""
    rows, columns = np.indices(size)
    image = np.stack([rows * 3 % 256, columns * 2 % 256, (rows + columns) % 256], axis=-1).astype(np.uint8)
    left = 3 * index % (size[1] - 8)
    image[size[0] // 3 : size[0] // 3 + 8, left : left + 8] = (250, 240, 30)
    return image


def raw_image(image: np.ndarray, time_ns: int) -> Any:
    height, width, _ = image.shape
    return STORE.types[IMAGE](header(time_ns), height, width, "rgb8", 0, 3 * width, image.reshape(-1))


def compressed_image(image: np.ndarray, time_ns: int) -> Any:
    _, data = cv2.imencode(".png", image[:, :, ::-1])
    return STORE.types[COMPRESSED](header(time_ns), "png", data.reshape(-1))


def text(value: str) -> Any:
    return STORE.types[STRING](data=value)


def message(kind: str, at_ns: int, **values: Any) -> Any:
    """A message of this package, with zeros and nothing in the fields that are not given."""
    if kind not in STORE.types:
        STORE.register(get_types_from_msg(message_definition(kind)[0], kind))
    fields: dict[str, Any] = {}
    for name, (node, detail) in STORE.fielddefs[kind][1]:
        if node == Nodetype.BASE:
            fields[name] = "" if detail[0] == "string" else False if detail[0] == "bool" else 0
        elif node == Nodetype.SEQUENCE:
            fields[name] = np.empty(0, dtype=detail[0][1][0])
    return STORE.types[kind](**{**fields, "header": header(at_ns), **values})


def write_bag(
    path: Path, messages: Iterable[tuple[str, str, int, Any]], storage: str = "mcap", store: Any = STORE
) -> Path:
    """Write (topic, type, time_ns, message) tuples; `storage` is mcap or sqlite3."""
    fill(Writer(path, version=9, storage_plugin=StoragePlugin[storage.upper()]), messages, store)
    return path


def fill(writer: Writer, messages: Iterable[tuple[str, str, int, Any]], store: Any = STORE) -> None:
    """Write messages with a writer that is not open yet."""
    connections: dict[str, Any] = {}
    with writer:
        for topic, kind, time_ns, message in messages:
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=store)
            writer.write(connections[topic], time_ns, store.serialize_cdr(message, kind))


def drive(
    count: int = 20,
    hz: float = 10.0,
    image_topic: str = "/image",
    compressed: bool = False,
    instruction: str | None = "open the drawer",
    size: tuple[int, int] = (48, 64),
) -> list[tuple[str, str, int, Any]]:
    """The messages of a camera at `hz` and of one instruction before it."""
    messages: list[tuple[str, str, int, Any]] = []
    if instruction is not None:
        messages.append(("/instruction", STRING, START_NS - 10**8, text(instruction)))
    make, kind = (compressed_image, COMPRESSED) if compressed else (raw_image, IMAGE)
    for index in range(count):
        time_ns = START_NS + round(index * 1e9 / hz)
        messages.append((image_topic, kind, time_ns, make(picture(index, size), time_ns)))
    return messages
