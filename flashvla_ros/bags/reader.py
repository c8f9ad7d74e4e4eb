"""Open a recording, whoever made it: rosbag2 folders and single files, SQLite and MCAP, whole or broken off."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from flashvla_ros.bags.definitions import one_line
from flashvla_ros.bags.recovery import BrokenMcap
from flashvla_ros.bags.storage import RawMessage, RosbagsStorage, Storage
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

    def __init__(self, path: Path, storage: Storage, warnings: Iterable[str] = ()) -> None:
        self.path = path
        self.topics = {name: Topic(name, kind, storage.counts[name]) for name, kind in storage.types.items()}
        self.warnings = [*warnings, *storage.breaks]
        self._storage = storage

    def messages(self, topics: Iterable[str]) -> Iterator[RawMessage]:
        """Yield the messages of `topics` by time of recording, one at a time; damage ends them, with a warning."""
        last_ns = None
        raw = self._storage.messages(set(topics))
        while True:
            try:
                message = next(raw, None)
            except Exception as error:  # noqa: BLE001 - damaged bytes make the parsers below fail in any way
                where = "at its start" if last_ns is None else f"after {last_ns / 1e9:.3f} s"
                warning = f"{self.path} is damaged {where}: {one_line(error)}"
                if warning not in self.warnings:
                    self.warnings.append(warning)
                return
            if message is None:
                return
            last_ns = message.time_ns
            yield message

    def decode(self, message: RawMessage) -> Any:
        """Return the message as an object with the fields of its ROS type; arrays are NumPy arrays.

        Raises:
            BagError: Its bytes do not fit its type, or its type is unknown.
        """
        try:
            return self._storage.decoder.decode(message.data, message.type)
        except BagError as error:
            raise BagError(f"{self.path}: {message.topic} at {message.time_ns / 1e9:.3f} s: {error}") from error

    def close(self) -> None:
        """Close the files."""
        self._storage.close()


@contextlib.contextmanager
def open_bag(path: Path) -> Iterator[Bag]:
    """Open the recording at `path`: a rosbag2 folder, or one .mcap, .db3 or (ROS 1) .bag file.

    A folder whose metadata.yaml is missing or wrong is read file by file; MCAP files without an end are read up to
    where they break. Either is said in the bag's warnings.

    Raises:
        BagError: There is nothing to read.
    """
    bag = _open_folder(path) if path.is_dir() else _open_files(path, [path], [])
    try:
        yield bag
    finally:
        bag.close()


def _open_folder(path: Path) -> Bag:
    files = _storage_files(path)
    try:
        metadata = _metadata(path)
    except BagError as error:
        if not files:
            raise BagError(f"{path} is not a bag: it has no .mcap or .db3 file, and {error}") from error
        return _open_files(path, files, [f"{error}; reading its files directly"])
    if metadata.get("compression_mode"):
        return Bag(path, _rosbags_storage([path]))
    names = {Path(name).name for name in metadata["relative_file_paths"]}
    absent = sorted(names - {file.name for file in files})
    if len(absent) == len(names):
        raise BagError(f"{path} has none of the files that its metadata.yaml names: {', '.join(absent)}")
    warnings = [f"{path} lacks {', '.join(absent)}, which its metadata.yaml names"] if absent else []
    return _open_files(path, [file for file in files if file.name in names], warnings)


def _open_files(path: Path, files: list[Path], warnings: list[str]) -> Bag:
    try:
        return Bag(path, _rosbags_storage(files), warnings)
    except BagError:
        if not path.exists() or any(file.suffix != ".mcap" for file in files):
            raise
    broken = BrokenMcap(files)
    if not broken.types:
        raise BagError(broken.breaks[0] if broken.breaks else f"{path} has no messages")
    return Bag(path, broken, warnings)


def _rosbags_storage(paths: list[Path]) -> RosbagsStorage:
    try:
        return RosbagsStorage(paths)
    except FileNotFoundError as error:
        raise BagError(f"there is no bag {paths[0]}") from error
    except Exception as error:  # damaged bytes make the parsers below fail in any way
        raise BagError(f"{paths[0]} cannot be read: {one_line(error)}") from error


def _metadata(folder: Path) -> dict[str, Any]:
    """Return the contents of a folder's metadata.yaml as far as they are needed."""
    path = folder / "metadata.yaml"
    try:
        information = yaml.safe_load(path.read_text(encoding="utf-8"))["rosbag2_bagfile_information"]
        mode = str(information.get("compression_mode") or "").lower()
        return {
            "relative_file_paths": [str(name) for name in information["relative_file_paths"]],
            "compression_mode": "" if mode == "none" else mode,
        }
    except FileNotFoundError as error:
        raise BagError(f"{folder} has no metadata.yaml, as after a recording that was killed") from error
    except (OSError, yaml.YAMLError, TypeError, KeyError, AttributeError, UnicodeDecodeError) as error:
        raise BagError(f"{path} is not the metadata of a bag: {one_line(error)}") from error


def _storage_files(folder: Path) -> list[Path]:
    """The parts of a bag in order; rosbag2 numbers them without leading zeros."""
    files = [path for path in folder.iterdir() if path.suffix in STORAGE_SUFFIXES]
    parts = re.compile(r"(\d+)")
    return sorted(files, key=lambda path: [int(p) if p.isdigit() else p for p in parts.split(path.name)])
