"""Raw messages out of whole recordings, through rosbags' readers of SQLite, MCAP and ROS 1 files."""

from __future__ import annotations

import contextlib
import dataclasses
import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rosbags.rosbag1 import Reader as Reader1
from rosbags.rosbag2 import Reader as Reader2

from flashvla_ros.bags.definitions import Decoder


@dataclasses.dataclass(frozen=True)
class RawMessage:
    """One message as it was recorded: topic, ROS type, time of recording, serialised bytes."""

    topic: str
    type: str
    time_ns: int
    data: bytes


class RosbagsStorage:
    """Storage files, read through their index.

    Files are read as they are, since rosbags' reader of folders drops every topic whose QoS is written differently in
    metadata.yaml and in the file, as older releases of rosbag2 did.

    Attributes:
        types: Topic to ROS type; ``several types`` where it has more than one.
        counts: Topic to number of messages.
        decoder: Made of the definitions in the recording.
        breaks: One sentence for each file that ends early.
        close: Closes the files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.types: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self.breaks: list[str] = []
        with contextlib.ExitStack() as stack:
            self._readers: list[Any] = [
                stack.enter_context(Reader1(path) if path.suffix == ".bag" else Reader2(path)) for path in paths
            ]
            connections = [connection for reader in self._readers for connection in reader.connections]
            for connection in connections:
                kind = full_name(connection.msgtype)
                known = self.types.setdefault(connection.topic, kind)
                self.types[connection.topic] = kind if known == kind else "several types"
                self.counts[connection.topic] += connection.msgcount
            definitions = {full_name(c.msgtype): (c.msgdef.format.name, c.msgdef.data) for c in connections}
            self.decoder = Decoder(definitions, ros1=any(path.suffix == ".bag" for path in paths))
            self.close = stack.pop_all().close

    def messages(self, topics: set[str]) -> Iterator[RawMessage]:
        """Yield the messages of `topics` by time of recording."""
        chosen = [(reader, [c for c in reader.connections if c.topic in topics]) for reader in self._readers]
        streams = [reader.messages(connections) for reader, connections in chosen if connections]  # none would be all
        for connection, time_ns, data in heapq.merge(*streams, key=lambda item: item[1]):
            yield RawMessage(connection.topic, full_name(connection.msgtype), time_ns, bytes(data))


def full_name(type_name: str) -> str:
    """Return ``package/msg/Name``, of which some writers leave out the middle, or what a topic without type holds."""
    if type_name in ("", "__schemaless__"):  # MCAP of the first releases of rosbag2's plug-in; rosbags' name for it
        return "message without a schema"
    parts = type_name.split("/")
    return f"{parts[0]}/msg/{parts[1]}" if len(parts) == 2 else type_name
