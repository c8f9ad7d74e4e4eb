"""Open a recording, whoever made it: rosbag2 folders and single files, SQLite and MCAP, whole or broken off."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rosbags.highlevel import AnyReader, AnyReaderError
from rosbags.rosbag2 import ReaderError
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.store import Typestore

from flashvla_ros.bags.recovery import BrokenMcap, RawMessage
from flashvla_ros.core.errors import BagError

STORAGE_SUFFIXES = (".mcap", ".db3")


@dataclasses.dataclass(frozen=True)
class Topic:
    """What a recording says of one topic."""

    name: str
    type: str
    count: int


class Bag:
    """An open recording.

    Attributes:
        path: What was opened.
        topics: Name to :class:`Topic`.
        warnings: Sentences about what is wrong with the recording and did not keep it from being read.
    """

    def __init__(self, path: Path, source: AnyReader | BrokenMcap, warnings: Iterable[str]) -> None:
        self.path = path
        self.warnings = list(warnings)
        self._source = source
        if isinstance(source, BrokenMcap):
            self.topics = {name: Topic(name, kind, source.counts[name]) for name, kind in source.types.items()}
            self._typestore: Typestore = source.typestore
        else:
            self.topics = {
                name: Topic(name, info.msgtype or "several types", info.msgcount)
                for name, info in source.topics.items()
            }
            self._typestore = source.typestore

    def messages(self, topics: Iterable[str]) -> Iterator[RawMessage]:
        """Yield the messages of `topics` by time of recording, one at a time; damage ends them, with a warning."""
        wanted = set(topics)
        last_ns = None
        raw = self._raw_messages(wanted)
        while True:
            try:
                message = next(raw, None)
            except Exception as error:  # noqa: BLE001 - damaged bytes make the parsers below fail in any way
                where = "at its start" if last_ns is None else f"after {last_ns / 1e9:.3f} s"
                self.warnings.append(f"{self.path} is damaged {where}: {_one_line(error)}")
                return
            if message is None:
                return
            last_ns = message.time_ns
            yield message

    def _raw_messages(self, topics: set[str]) -> Iterator[RawMessage]:
        if isinstance(self._source, BrokenMcap):
            yield from self._source.messages(topics)
            return
        connections = [connection for connection in self._source.connections if connection.topic in topics]
        if connections:  # none given would mean all
            for connection, time_ns, data in self._source.messages(connections=connections):
                yield RawMessage(connection.topic, connection.msgtype, time_ns, bytes(data))

    def decode(self, message: RawMessage) -> Any:
        """Return the message as an object with the fields of its ROS type; arrays are NumPy arrays.

        Raises:
            BagError: Its bytes do not fit its type.
        """
        try:
            if isinstance(self._source, AnyReader):
                return self._source.deserialize(message.data, message.type)
            return self._typestore.deserialize_cdr(message.data, message.type)
        except Exception as error:  # as above
            raise BagError(
                f"{self.path}: the message on {message.topic} at {message.time_ns / 1e9:.3f} s "
                f"is not a {message.type}: {_one_line(error)}"
            ) from error

    def close(self) -> None:
        """Close the files."""
        if isinstance(self._source, AnyReader):
            self._source.close()


@contextlib.contextmanager
def open_bag(path: Path) -> Iterator[Bag]:
    """Open the recording at `path`: a rosbag2 folder, or one .mcap, .db3 or (ROS 1) .bag file.

    A folder whose metadata.yaml is missing or wrong is read file by file; MCAP files without an end are read up to
    where they break. Either is said in the bag's warnings.

    Raises:
        BagError: There is nothing to read.
    """
    bag = _open(path)
    try:
        yield bag
    finally:
        bag.close()


def _open(path: Path) -> Bag:
    if not path.exists():
        raise BagError(f"there is no bag {path}")
    files = _storage_files(path) if path.is_dir() else [path]
    warnings: list[str] = []
    try:
        return Bag(path, _any_reader([path]), warnings)
    except BagError as error:
        if not files:
            raise BagError(f"{path} is not a bag: it has neither metadata.yaml nor an .mcap or .db3 file") from error
        failure = error
    if path.is_dir():
        if (path / "metadata.yaml").exists():
            warnings.append(f"{failure}; reading its files without metadata.yaml")
        else:
            warnings.append(f"{path} has no metadata.yaml (a recording that was killed?); reading its files directly")
        with contextlib.suppress(BagError):
            return Bag(path, _any_reader(files), warnings)
    if any(file.suffix != ".mcap" for file in files):
        raise failure
    broken = BrokenMcap(files)
    if not broken.types:
        raise BagError(broken.breaks[0] if broken.breaks else f"{path} has no messages")
    return Bag(path, broken, [*warnings, *broken.breaks])


def _storage_files(folder: Path) -> list[Path]:
    """The parts of a bag in order; rosbag2 numbers them without leading zeros."""
    files = [path for path in folder.iterdir() if path.suffix in STORAGE_SUFFIXES]
    parts = re.compile(r"(\d+)")
    return sorted(files, key=lambda path: [int(p) if p.isdigit() else p for p in parts.split(path.name)])


def _any_reader(paths: list[Path]) -> AnyReader:
    """Open with rosbags; recordings without message definitions are read with those of ROS 2 Jazzy."""
    try:
        reader = AnyReader(paths, default_typestore=get_typestore(Stores.ROS2_JAZZY))
        reader.open()
    except (AnyReaderError, ReaderError, OSError) as error:
        raise BagError(f"{paths[0]} cannot be read: {_one_line(error)}") from error
    except Exception as error:  # damaged bytes make the parsers below fail in any way
        raise BagError(f"{paths[0]} is damaged: {_one_line(error)}") from error
    return reader


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
