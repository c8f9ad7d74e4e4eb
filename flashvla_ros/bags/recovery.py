"""Read MCAP files that end in the middle: whatever was written whole is worth having."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from mcap.records import Channel, Chunk, McapRecord, Message, Schema
from mcap.stream_reader import StreamReader, breakup_chunk

from flashvla_ros.bags.definitions import Decoder
from flashvla_ros.bags.storage import RawMessage, full_name


class BrokenMcap:
    """MCAP files read record by record from the start, without their index, up to where they break.

    A :class:`flashvla_ros.bags.storage.Storage`; `breaks` says for each file where it ends, and what was the last
    whole message.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self.types: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self.breaks: list[str] = []
        schemas: dict[str, Schema] = {}
        for path in paths:
            self._scan(path, schemas)
        forms = {"ros2msg": "MSG", "ros2idl": "IDL"}
        self.decoder = Decoder(
            {
                full_name(name): (forms.get(schema.encoding, "NONE"), schema.data.decode(errors="replace"))
                for name, schema in schemas.items()
            }
        )

    def messages(self, topics: set[str]) -> Iterator[RawMessage]:
        """Yield the readable messages of `topics` in the order in which they were written."""
        for path in self._paths:
            channels: dict[int, tuple[str, str]] = {}
            schemas: dict[int, Schema] = {}
            for record in _Records(path):
                message = _track(record, schemas, channels)
                if message is not None and message.topic in topics:
                    yield message

    def close(self) -> None:
        """Do nothing: no file is open between messages."""

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
        channels[record.id] = (record.topic, full_name(name))
    elif isinstance(record, Message) and record.channel_id in channels:
        return RawMessage(*channels[record.channel_id], record.log_time, record.data)
    return None
