"""Read MCAP files that end in the middle: whatever was written whole is worth having."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from mcap.records import Channel, Chunk, McapRecord, Message, Schema
from mcap.stream_reader import StreamReader, breakup_chunk
from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from flashvla_ros.core.errors import BagError


@dataclasses.dataclass(frozen=True)
class RawMessage:
    """One message as it was recorded: topic, ROS type, time of recording, CDR bytes."""

    topic: str
    type: str
    time_ns: int
    data: bytes


class BrokenMcap:
    """MCAP files read record by record from the start, without their index, up to where they break.

    Attributes:
        types: Topic to ROS type.
        counts: Topic to number of readable messages.
        typestore: Deserialiser made of the schemas in the files.
        breaks: One sentence for each file that ends early: where, and what was the last whole message.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self.types: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self.breaks: list[str] = []
        schemas: dict[str, Schema] = {}
        for path in paths:
            self._scan(path, schemas)
        self.typestore = _typestore(schemas)

    def messages(self, topics: set[str]) -> Iterator[RawMessage]:
        """Yield the readable messages of `topics` in the order in which they were written."""
        for path in self._paths:
            channels: dict[int, tuple[str, str]] = {}
            schemas: dict[int, Schema] = {}
            for record in _Records(path):
                message = _track(record, schemas, channels)
                if message is not None and message.topic in topics:
                    yield message

    def _scan(self, path: Path, seen: dict[str, Schema]) -> None:
        channels: dict[int, tuple[str, str]] = {}
        schemas: dict[int, Schema] = {}
        last_ns = None
        records = _Records(path)
        for record in records:
            message = _track(record, schemas, channels)
            if message is not None:
                self.counts[message.topic] += 1
                last_ns = message.time_ns
        self.types.update(channels.values())
        seen.update({schema.name: schema for schema in schemas.values()})
        if records.reason:
            end = "before any message" if last_ns is None else f"the last whole message is of {last_ns / 1e9:.3f} s"
            self.breaks.append(f"{path} breaks off at byte {records.offset} ({records.reason}); {end}")


class _Records:
    """The records of a file, chunks taken apart; stops at the first one that cannot be read and says why."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.offset = 0
        self.reason = ""

    def __iter__(self) -> Iterator[McapRecord]:
        with self._path.open("rb") as stream:
            records = StreamReader(stream, emit_chunks=True, record_size_limit=None).records
            while True:
                self.offset = stream.tell()
                try:
                    record = next(records, None)
                    parts = breakup_chunk(record, validate_crc=True) if isinstance(record, Chunk) else [record]
                except Exception as error:  # noqa: BLE001 - parsers and decompressors share no base class
                    self.reason = str(error) or "the file ends inside a record"
                    return
                if record is None:
                    return
                yield from (part for part in parts if part is not None)


def _track(record: McapRecord, schemas: dict[int, Schema], channels: dict[int, tuple[str, str]]) -> RawMessage | None:
    """Note schemas and channels; return the message where `record` is one of a known channel."""
    if isinstance(record, Schema):
        schemas[record.id] = record
    elif isinstance(record, Channel):
        name = schemas[record.schema_id].name if record.schema_id in schemas else ""
        channels[record.id] = (record.topic, name)
    elif isinstance(record, Message) and record.channel_id in channels:
        return RawMessage(*channels[record.channel_id], record.log_time, record.data)
    return None


def _typestore(schemas: dict[str, Schema]) -> Typestore:
    store = get_typestore(Stores.EMPTY)
    for name, schema in schemas.items():
        text = schema.data.decode()
        try:
            store.register(get_types_from_msg(text, name) if schema.encoding == "ros2msg" else get_types_from_idl(text))
        except Exception as error:  # rosbags' parser raises what its grammar happens to hit
            raise BagError(f"the definition of {name} in the bag cannot be parsed: {error}") from error
    return store
