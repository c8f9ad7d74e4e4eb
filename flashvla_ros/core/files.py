"""Read small files that somebody else wrote, within bounded time and memory; one line says where that fails.

A configuration, a description or a table of results is a regular file of a few megabytes at most. A FIFO would block
for ever, /dev/zero never ends, and a bomb of nested brackets overflows a parser's stack.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from flashvla_ros.core.errors import FlashVLAError

MEGABYTE = 1_000_000
SMALL = 16 * MEGABYTE  # a file that a person, or a tool of this package, wrote
_GIT_LFS = b"version https://git-lfs"  # how a pointer begins


def read_bytes(path: Path, error: type[FlashVLAError] = FlashVLAError, most: int = SMALL) -> bytes:
    """Return the contents of a regular file.

    Args:
        path: The file; links are followed.
        error: Raised with one line where it cannot be read.
        most: Most bytes that it may have.

    Raises:
        FlashVLAError: Of the type `error`: the file is missing, not readable, not a regular file, or too large.
    """
    try:
        # A writer that is missing must not block the opening of a FIFO.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise error(f"cannot read {path}: it is a device or a pipe, not a regular file")
            content = stream.read(most + 1)
    except (OSError, ValueError) as problem:  # a name with a null character is a ValueError
        reason = problem.strerror if isinstance(problem, OSError) else problem
        raise error(f"cannot read {path}: {reason}") from problem
    if len(content) > most:
        raise error(f"cannot read {path}: it has more than {most // MEGABYTE} MB, which no such file needs")
    if content.startswith(_GIT_LFS):
        raise error(f"cannot read {path}: it is a Git LFS pointer, not the file itself: fetch it with git lfs pull")
    return content


def is_pointer(path: Path) -> bool:
    """Return whether a file is a pointer of Git LFS in place of one that was not fetched; raises OSError."""
    with path.open("rb") as stream:
        return stream.read(len(_GIT_LFS)) == _GIT_LFS


def read_text(path: Path, error: type[FlashVLAError] = FlashVLAError, most: int = SMALL) -> str:
    """Return the text of a UTF-8 file, with or without a byte order mark; raises as :func:`read_bytes` does."""
    try:
        return read_bytes(path, error, most).decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(f"cannot read {path}: it is not UTF-8 text ({problem.reason} at byte {problem.start})") from problem


def read_json(path: Path, error: type[FlashVLAError] = FlashVLAError, most: int = SMALL) -> Any:
    """Return the value in a JSON file; raises as :func:`read_bytes` does, and where it is no JSON."""
    try:
        return parse_json(read_text(path, error, most))
    except ValueError as problem:
        raise error(f"{path} is not JSON: {problem}") from problem


def write_text(path: Path, text: str) -> None:
    """Write a text file, and the folders above it; a device or a pipe takes the text as it is.

    A reader, or a crash in between, meets the old file or the new one, whole. A link stays one.

    Raises:
        FlashVLAError: It cannot be written.
    """
    try:
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")
            return
        file = Path(os.path.realpath(path))
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_name(f".{file.name}.new")
        with new.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        new.replace(file)
    except OSError as error:
        raise FlashVLAError(f"cannot write {path}: {error.strerror}") from error


def parse_json(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: It is no JSON, or nested too deeply to be read.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None
