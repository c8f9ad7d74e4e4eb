"""What a recording unfolds to, looked at before anything unfolds it: 65 kB of zstd can hold 2 GB of zeros.

A bag that somebody else made is read through parsers that decompress whatever they are given, so files are walked
first: no chunk, message or row may be larger than any camera needs.
"""

from __future__ import annotations

import bz2
import contextlib
import shutil
import sqlite3
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import lz4.frame

from flashvla_ros.bags.definitions import one_line
from flashvla_ros.core.errors import BagError
from flashvla_ros.core.files import GIT_LFS, MEGABYTE

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MOST_BYTES = 256 * MEGABYTE  # of one chunk or message; a raw picture of 7680 x 4320 has 100
COMPRESSED = ".zstd"  # what rosbag2 appends to a compressed file's name
_ZSTD = b"\x28\xb5\x2f\xfd"
_MCAP = b"\x89MCAP0\r\n"
_ROS1 = b"#ROSBAG V2.0\n"
_MOST_HEADER = 1 << 16
_CHUNK, _ATTACHMENT = 0x06, 0x09
_LZ4_RATIO = 255  # the most that the format can do
_FILE_RATIO, _FILE_BASE = 4000, 64 * MEGABYTE
_BLOCK = 1 << 20
_MOST_FRAMES = 1000  # of a chunk; writers make one


def check_file(path: Path) -> None:
    """Refuse a storage file with a part that is, or unfolds to, more than :data:`MOST_BYTES`.

    What cannot be understood here is left to the reader, which says what is wrong with it.

    Raises:
        BagError: Names the file and the place.
    """
    try:
        with path.open("rb") as stream:
            if stream.read(len(GIT_LFS)) == GIT_LFS:
                raise BagError(f"{path} is a Git LFS pointer, not the file itself: fetch it with git lfs pull")
            stream.seek(0)
            if path.suffix == ".mcap":
                _check_mcap(path, stream)
            elif path.suffix == ".bag":
                _check_ros1(path, stream)
    except OSError as error:
        raise BagError(f"{path} cannot be read: {error.strerror}") from error
    if path.suffix == ".db3":
        with contextlib.suppress(sqlite3.Error):
            address = f"{path.absolute().as_uri()}?mode=ro"
            with contextlib.closing(sqlite3.connect(address, uri=True)) as database:
                _check_sqlite(path, database)


def expanded(data: bytes) -> bytes:
    """Return a message, decompressed where it was compressed by itself (``--compression-mode message``).

    Raises:
        BagError: It is damaged, or unfolds to more than :data:`MOST_BYTES`.
    """
    if not data.startswith(_ZSTD):  # a serialised message starts with 0
        return data
    size = _zstd_size(data)
    if size > MOST_BYTES:
        raise BagError(f"a compressed message unfolds to more than {MOST_BYTES // MEGABYTE} MB")
    try:
        return bytes(zstd.decompress(data))
    except zstd.ZstdError as error:
        raise BagError(f"a compressed message is damaged: {one_line(error)}") from error


@contextlib.contextmanager
def expanded_files(files: list[Path]) -> Iterator[list[Path]]:
    """Give files of which compressed ones (``.mcap.zstd``) are decompressed, into a folder of their own.

    Raises:
        BagError: One is damaged, unfolds to far more than a recording does, or there is no room for it.
    """
    with contextlib.ExitStack() as stack:
        opened = []
        for file in files:
            if file.suffix == COMPRESSED:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flashvla_bag_")))
                _expand(file, folder / file.stem)
                file = folder / file.stem
            opened.append(file)
        yield opened


def _expand(source: Path, target: Path) -> None:
    room = min(source.stat().st_size * _FILE_RATIO + _FILE_BASE, shutil.disk_usage(target.parent).free)
    try:
        with zstd.open(source, "rb") as reader, target.open("wb") as writer:
            while block := reader.read(_BLOCK):
                room -= len(block)
                if room < 0:
                    raise BagError(f"{source} unfolds to more than there is room for, or than a recording does")
                writer.write(block)
    except (zstd.ZstdError, EOFError) as error:
        raise BagError(f"{source} is damaged: {one_line(error)}") from error
    except OSError as error:
        raise BagError(f"{source} cannot be decompressed into {target.parent}: {error.strerror}") from error


def _check_mcap(path: Path, stream: IO[bytes]) -> None:
    """Walk the records of an MCAP file (https://mcap.dev/spec): operation, length, content."""
    end = path.stat().st_size
    if stream.read(len(_MCAP)) != _MCAP:
        return
    while len(head := stream.read(9)) == 9:
        operation, length = struct.unpack("<BQ", head)
        position = stream.tell()
        if operation != _ATTACHMENT and min(length, end - position) > MOST_BYTES:
            raise _too_large(path, f"record at byte {position}")
        if operation == _CHUNK and _chunk_size(stream.read(min(length, end - position))) > MOST_BYTES:
            raise _too_large(path, f"chunk at byte {position}")
        if position + length > end:
            return
        stream.seek(position + length)


def _check_ros1(path: Path, stream: IO[bytes]) -> None:
    """Walk the records of a ROS 1 bag (https://wiki.ros.org/Bags/Format/2.0): header and data, each with its length."""
    end = path.stat().st_size
    if stream.read(len(_ROS1)) != _ROS1:
        return
    while len(head := stream.read(4)) == 4:
        header = stream.read(min(*struct.unpack("<I", head), _MOST_HEADER))
        (length,) = struct.unpack("<I", stream.read(4).ljust(4, b"\0"))
        position = stream.tell()
        if b"op=\x05" in header and (b"bz2" in header or b"lz4" in header):
            data = stream.read(min(length, end - position, MOST_BYTES + 1))
            decompressor = bz2.BZ2Decompressor() if b"bz2" in header else lz4.frame.LZ4FrameDecompressor()
            with contextlib.suppress(RuntimeError, EOFError, OSError):  # damaged: the reader will say so
                if len(decompressor.decompress(data, max_length=MOST_BYTES + 1)) > MOST_BYTES:
                    raise _too_large(path, f"chunk at byte {position}")
        if position + length > end:
            return
        stream.seek(position + length)


def _chunk_size(chunk: bytes) -> int:
    """Return the number of bytes that a chunk's content unfolds to, as far as it is there."""
    if len(chunk) < 32:
        return 0
    (name_length,) = struct.unpack_from("<I", chunk, 28)
    name, data = chunk[32 : 32 + name_length], chunk[40 + name_length :]
    if name == b"zstd":
        return _zstd_size(data)
    if name == b"lz4" and len(data) * _LZ4_RATIO > MOST_BYTES:
        with contextlib.suppress(RuntimeError, EOFError):  # damaged: the reader will say so
            return len(lz4.frame.LZ4FrameDecompressor().decompress(data, max_length=MOST_BYTES + 1))
    return len(data)


def _zstd_size(data: bytes) -> int:
    """Return what all frames unfold to; more than :data:`MOST_BYTES` may be any larger number."""
    total, rest = 0, memoryview(data)
    for _ in range(_MOST_FRAMES):
        if not rest or total > MOST_BYTES:
            return total
        try:
            size = zstd.get_frame_info(rest).decompressed_size
            length = zstd.get_frame_size(rest)
        except zstd.ZstdError:  # cut off or damaged
            size = None
        if size is None:  # not told in front, so it must be tried
            with contextlib.suppress(zstd.ZstdError):
                total += len(zstd.ZstdDecompressor().decompress(rest, max_length=MOST_BYTES + 1))
            return total
        total, rest = total + size, rest[length:]
    return MOST_BYTES + 1


def _check_sqlite(path: Path, database: sqlite3.Connection) -> None:
    kinds = {kind for (kind,) in database.execute("SELECT DISTINCT type FROM sqlite_master")}
    if kinds & {"view", "trigger"}:
        raise BagError(f"{path} is no bag: its database has views or triggers, which can run for ever")
    (largest,) = database.execute("SELECT max(length(data)) FROM messages").fetchone()
    if (largest or 0) > MOST_BYTES:
        raise _too_large(path, "message")


def _too_large(path: Path, what: str) -> BagError:
    return BagError(f"{path} has a {what} of more than {MOST_BYTES // MEGABYTE} MB: it is damaged, or made to do harm")
