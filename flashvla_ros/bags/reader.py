"""Open a recording, whoever made it: rosbag2 folders and single files, SQLite and MCAP, whole or broken off."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from flashvla_ros.bags.definitions import one_line
from flashvla_ros.bags.expansion import COMPRESSED, ExpansionError, check_file, expanded, expanded_files
from flashvla_ros.bags.recovery import BrokenMcap
from flashvla_ros.bags.storage import RawMessage, RosbagsStorage
from flashvla_ros.cli.yaml_files import read_yaml
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

    def __init__(self, path: Path, storage: RosbagsStorage | BrokenMcap, warnings: Iterable[str]) -> None:
        self.path = path
        self.topics = {name: Topic(name, kind, storage.counts[name]) for name, kind in storage.types.items()}
        self.warnings = [*warnings, *storage.breaks]
        self._storage = storage

    def messages(self, topics: Iterable[str]) -> Iterator[RawMessage]:
        """Yield the messages of `topics` by time of recording, one at a time; damage ends them, with a warning."""
        where = "at its start"
        try:
            for message in self._storage.messages(set(topics)):
                yield dataclasses.replace(message, data=expanded(message.data))
                where = f"after {message.time_ns / 1e9:.3f} s"
        except ExpansionError as error:
            raise BagError(f"{self.path} has {error}") from error
        except Exception as error:  # noqa: BLE001 - damaged bytes make the parsers below fail in any way
            warning = f"{self.path} is damaged {where}: {one_line(error)}"
            if warning not in self.warnings:
                self.warnings.append(warning)

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
    where they break. Either is said in the bag's warnings. Files and messages may be compressed, whatever
    metadata.yaml says of that.

    Raises:
        BagError: There is nothing to read.
    """
    try:
        files, warnings = _files_of(path)
    except FileNotFoundError as error:
        raise BagError(f"there is no bag {path}") from error
    except (OSError, ValueError) as error:  # a name with a null character is a ValueError
        raise BagError(f"{path} cannot be read: {getattr(error, 'strerror', error)}") from error
    with expanded_files(files) as whole:
        try:
            for file in whole:
                check_file(file)
            bag = _open_files(path, whole, warnings)
        except ExpansionError as error:
            raise BagError(f"{path} has {error}") from error
        try:
            yield bag
        finally:
            bag.close()


def _files_of(path: Path) -> tuple[list[Path], list[str]]:
    """Return the file at `path`, or the storage files of a folder in order, and what is wrong with its metadata."""
    mode = path.stat().st_mode
    if stat.S_ISREG(mode):
        return [path], []
    if not stat.S_ISDIR(mode):
        raise BagError(f"{path} is a device or a pipe, and no bag")
    files = _storage_files(path)
    try:
        named = _named_files(path)
    except BagError as error:
        if not files:
            raise BagError(f"{path} is not a bag: it has no .mcap or .db3 file, and {error}") from error
        return files, [f"{error}; reading its files directly"]
    # A compressed file may have been decompressed by hand, and the other way round.
    chosen = [file for file in files if _plain(file.name) in map(_plain, named)]
    there = {_plain(file.name) for file in chosen}
    absent = sorted(name for name in named if _plain(name) not in there)
    if not chosen:
        raise BagError(f"{path} has none of the files that its metadata.yaml names: {', '.join(absent)}")
    return chosen, [f"{path} lacks {', '.join(absent)}, which its metadata.yaml names"] if absent else []


def _plain(name: str) -> str:
    return name.removesuffix(COMPRESSED)


def _open_files(path: Path, files: list[Path], warnings: list[str]) -> Bag:
    try:
        return Bag(path, RosbagsStorage(files), warnings)
    except ExpansionError:
        raise
    except Exception as error:  # damaged bytes make the parsers below fail in any way
        if any(file.suffix != ".mcap" for file in files):
            raise BagError(f"{path} cannot be read: {one_line(error)}") from error
    broken = BrokenMcap(files)
    if not broken.types:
        raise BagError(broken.breaks[0] if broken.breaks else f"{path} has no messages")
    return Bag(path, broken, warnings)


def _named_files(folder: Path) -> list[str]:
    """Return the names of the files that a folder's metadata.yaml lists."""
    path = folder / "metadata.yaml"
    if not path.exists():
        raise BagError(f"{folder} has no metadata.yaml, as after a recording that was killed")
    try:
        names = read_yaml(path, BagError)["rosbag2_bagfile_information"]["relative_file_paths"]
        return [Path(name).name for name in names]
    except (TypeError, KeyError) as error:
        raise BagError(f"{path} is not the metadata of a bag: {one_line(error)}") from error


def _storage_files(folder: Path) -> list[Path]:
    """The parts of a bag in order; rosbag2 numbers them without leading zeros."""
    files = [path for path in folder.iterdir() if _plain(path.name).endswith(STORAGE_SUFFIXES) and path.is_file()]
    whole = [path for path in files if path.suffix != COMPRESSED]
    # A file that is there in both forms counts once.
    files = whole + [path for path in files if path.suffix == COMPRESSED and path.with_suffix("") not in whole]
    parts = re.compile(r"(\d+)")
    return sorted(files, key=lambda path: [int(p) if p.isdecimal() else p for p in parts.split(path.name)])
