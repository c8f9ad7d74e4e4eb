"""Read MCAP files that end in the middle: whatever was written whole is worth having."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from mcap.exceptions import RecordLengthLimitExceeded
from mcap.records import Channel, Chunk, Message, Schema
from mcap.stream_reader import StreamReader, breakup_chunk
from rosbags.rosbag2.storage_mcap import DECOMPRESSORS

from flashvla_ros.bags.definitions import Decoder
from flashvla_ros.bags.expansion import MOST_BYTES, ExpansionError
from flashvla_ros.bags.storage import RawMessage, full_name

_FORMS = {"ros2msg": "MSG", "ros2idl": "IDL"}  # by a schema's encoding


class BrokenMcap:
    """MCAP files read record by record from the start, without their index, up to where they break.

    The same to a reader as :class:`flashvla_ros.bags.storage.RosbagsStorage`; `breaks` says for each file where it
    ends, and what was the last whole message.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self.types: dict[str, str] = {}
        self.breaks: list[str] = []
        self._definitions: dict[str, tuple[str, str]] = {}
        self.counts = Counter(message.topic for path in paths for message in self._walk(path))
        self.decoder = Decoder(self._definitions)

    def messages(self, topics: set[str]) -> Iterator[RawMessage]:
        """Yield the readable messages of `topics` in the order in which they were written."""
        for path in self._paths:
            yield from (message for message in self._walk(path) if message.topic in topics)

    def close(self) -> None:
        """Do nothing: no file is open between messages."""

    def _walk(self, path: Path) -> Iterator[RawMessage]:
        """Yield the messages of a file; note types and definitions on the way, and where it breaks off."""
        channels: dict[int, tuple[str, str]] = {}
        names: dict[int, str] = {}
        end = "before any message"
        with path.open("rb") as stream:
            records = StreamReader(stream, emit_chunks=True, record_size_limit=MOST_BYTES).records
            while True:
                offset = stream.tell()
                try:
                    record = next(records, None)
                    parts = breakup_chunk(_plain(record), validate_crc=True) if isinstance(record, Chunk) else [record]
                except ExpansionError:
                    raise
                except Exception as error:
                    if isinstance(error, RecordLengthLimitExceeded) and path.stat().st_size - offset > MOST_BYTES:
                        raise ExpansionError("record") from error
                    why = str(error) or "the file ends inside a record"
                    self.breaks.append(f"{path} breaks off at byte {offset} ({why}); {end}")
                    return
                if record is None:
                    return
                for part in parts:
                    if isinstance(part, Schema):
                        names[part.id] = full_name(part.name)
                        text = part.data.decode(errors="replace")
                        self._definitions[names[part.id]] = _FORMS.get(part.encoding, "NONE"), text
                    elif isinstance(part, Channel):
                        channels[part.id] = part.topic, names.get(part.schema_id, full_name(""))
                        self.types[part.topic] = channels[part.id][1]
                    elif isinstance(part, Message) and part.channel_id in channels:
                        end = f"the last whole message is of {part.log_time / 1e9:.3f} s"
                        yield RawMessage(*channels[part.channel_id], part.log_time, part.data)


def _plain(chunk: Chunk) -> Chunk:
    """Decompress a chunk as far as is allowed, which mcap does without a bound."""
    data = DECOMPRESSORS[chunk.compression](chunk.data, chunk.uncompressed_size)
    return dataclasses.replace(chunk, compression="", data=data)
