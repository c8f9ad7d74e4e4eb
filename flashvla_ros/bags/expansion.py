"""What a recording unfolds to is bounded: 65 kB of zstd can hold 2 GB of zeros.

A bag that somebody else made is read through parsers that read and decompress whatever its index names, so that they
are given functions that stop: no record, chunk, message or row may be larger than any camera needs.
"""

from __future__ import annotations

import bz2
import contextlib
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import lz4.frame
from rosbags.rosbag1 import reader as rosbag1
from rosbags.rosbag2 import storage_mcap

from flashvla_ros.bags.definitions import one_line
from flashvla_ros.core.errors import BagError
from flashvla_ros.core.files import MEGABYTE, is_pointer

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MOST_BYTES = 256 * MEGABYTE  # of one chunk or message; a raw picture of 7680 x 4320 has 100
COMPRESSED = ".zstd"  # what rosbag2 appends to a compressed file's name
_ZSTD = b"\x28\xb5\x2f\xfd"
_FILE_RATIO, _FILE_BASE = 4000, 64 * MEGABYTE
_BLOCK = 1 << 20
_MOST_FRAMES = 100  # of a chunk; writers make one


class ExpansionError(BagError):
    """A part of a recording is, or unfolds to, more than :data:`MOST_BYTES`; the text says of what kind it is."""

    def __init__(self, what: str) -> None:
        super().__init__(f"a {what} of more than {MOST_BYTES // MEGABYTE} MB: it is damaged, or made to do harm")


def check_file(path: Path) -> None:
    """Refuse what is no storage file, and a database that would keep its reader busy or has too large a message.

    Raises:
        BagError: Names the file, or is an :class:`ExpansionError`.
    """
    try:
        if is_pointer(path):
            raise BagError(f"{path} is a Git LFS pointer, not the file itself: fetch it with git lfs pull")
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
    try:
        return _unfolded(zstd.ZstdDecompressor, data)
    except ExpansionError as error:
        raise BagError(f"a compressed message unfolds to more than {MOST_BYTES // MEGABYTE} MB") from error
    except (zstd.ZstdError, EOFError) as error:
        raise BagError(f"a compressed message is damaged: {one_line(error)}") from error


def _unfolded(decompressor: Callable[[], Any], data: bytes) -> bytes:
    """Decompress every frame or stream of `data`, as far as is allowed."""
    parts: list[bytes] = []
    room = MOST_BYTES
    while data:
        frame = decompressor()
        parts.append(frame.decompress(data, max_length=room + 1))
        room -= len(parts[-1])
        if room < 0 or len(parts) > _MOST_FRAMES:
            raise ExpansionError("chunk")
        if not frame.eof:
            raise EOFError("the compressed data end early")
        data = frame.unused_data
    return b"".join(parts)


def _bounded(read: Callable[[BinaryIO, int], bytes]) -> Callable[[BinaryIO, int], bytes]:
    def bounded(stream: BinaryIO, size: int) -> bytes:
        if size > MOST_BYTES and len(stream.read(MOST_BYTES + 1)) > MOST_BYTES:
            raise ExpansionError("record")
        return read(stream, size)  # which says so where the file ends before

    return bounded


def _bound_rosbags() -> None:
    unfold = {
        "zstd": lambda data, *_: _unfolded(zstd.ZstdDecompressor, data),
        "lz4": lambda data, *_: _unfolded(lz4.frame.LZ4FrameDecompressor, data),
        "bz2": lambda data, *_: _unfolded(bz2.BZ2Decompressor, data),
    }
    for known in (storage_mcap.DECOMPRESSORS, rosbag1.decompressors):
        known.update({name: unfold[name] for name in known.keys() & unfold})
    for module, name in ((storage_mcap, "read_exact"), (rosbag1, "read_bytes")):
        setattr(module, name, _bounded(getattr(module, name)))


_bound_rosbags()


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


def _check_sqlite(path: Path, database: sqlite3.Connection) -> None:
    kinds = {kind for (kind,) in database.execute("SELECT DISTINCT type FROM sqlite_master")}
    if kinds & {"view", "trigger"}:
        raise BagError(f"{path} is no bag: its database has views or triggers, which can run for ever")
    (largest,) = database.execute("SELECT max(length(data)) FROM messages").fetchone()
    if (largest or 0) > MOST_BYTES:
        raise ExpansionError("message")
