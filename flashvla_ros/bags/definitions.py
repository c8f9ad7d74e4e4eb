"""Message definitions, so that a recording can be read where its types are not installed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from flashvla_ros.core.errors import BagError

SEPARATOR = "\n" + "=" * 80 + "\n"
_PRIMITIVES = {"bool", "byte", "char", "string", "wstring", "float32", "float64"}
_PRIMITIVES |= {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}


def message_definition(type_name: str) -> tuple[str, str]:
    """Return the definition of a message type, with those of every type inside it, and its RIHS01 hash.

    The text is that of the installed .msg files, comments and all, in the concatenated form that rosbag2 writes.

    Args:
        type_name: Such as ``sensor_msgs/msg/Image``.

    Raises:
        BagError: A .msg file is not installed.
    """
    texts: dict[str, str] = {}
    pending = [type_name]
    while pending:
        name = pending.pop(0)
        if name not in texts:
            texts[name] = _text(name)
            pending.extend(_nested(texts[name], package=name.split("/")[0]))
    parts = [f"MSG: {name.replace('/msg/', '/')}\n{text}" for name, text in texts.items() if name != type_name]
    definition = SEPARATOR.join([texts[type_name], *parts])
    store = get_typestore(Stores.EMPTY)
    store.register(get_types_from_msg(definition, type_name))
    return definition, store.hash_rihs01(type_name)


def _text(type_name: str) -> str:
    package, _, name = type_name.partition("/msg/")
    for prefix in _prefixes():
        path = prefix / "share" / package / "msg" / f"{name}.msg"
        if path.exists():
            return path.read_text(encoding="utf-8").strip()
    raise BagError(f"the definition of {type_name} is not installed: install the package {package}")


def _prefixes() -> Iterator[Path]:
    """Where ament looks: the sourced workspaces, then the prefix of this Python, where wheels install."""
    yield from (Path(prefix) for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if prefix)
    yield Path(sys.prefix)


def _nested(text: str, package: str) -> Iterator[str]:
    """The full names of the message types of the fields in `text`."""
    for line in text.splitlines():
        field = line.split("#")[0].split()
        name = field[0].split("[")[0].split("<")[0] if field else ""
        if name and name not in _PRIMITIVES:
            owner, _, last = name.rpartition("/")
            yield f"{owner.removesuffix('/msg') or package}/msg/{last}"
