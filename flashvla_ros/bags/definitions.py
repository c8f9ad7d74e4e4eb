"""Message definitions: those that go into a recording, and messages decoded by those that come with one."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rosbags.interfaces import Nodetype
from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore

from flashvla_ros.core.errors import BagError

# rclpy's serialize_message returns up to eight bytes of its buffer behind the message, and rosbags allows three. A
# script that writes a bag with it, as rosbag2_py's examples do, writes them too.
_BEHIND = (0, 4, 8)
SEPARATOR = "\n" + "=" * 80 + "\n"
_OURS = "flashvla_ros/msg/"
_LATER = "draft_tokens"  # of GateStatus: the fields from here on are missing in bags of older releases
_PRIMITIVES = {"bool", "byte", "char", "string", "wstring", "float32", "float64"}
_PRIMITIVES |= {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}


def message_definition(type_name: str) -> tuple[str, str]:
    """Return the definition of a message type, with those of every type inside it, and its RIHS01 hash.

    The text is that of the installed .msg files, comments and all, in the concatenated form that rosbag2 writes.

    Args:
        type_name: Such as ``sensor_msgs/msg/Image``.

    Raises:
        BagError: A .msg file is not installed, or cannot be parsed.
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
    try:
        store.register(get_types_from_msg(definition, type_name))
        return definition, store.hash_rihs01(type_name)
    except Exception as error:  # the parser raises whatever its grammar happens to hit
        raise BagError(f"the definition of {type_name} cannot be read: {one_line(error)}") from error


def _text(type_name: str) -> str:
    package, _, name = type_name.partition("/msg/")
    for prefix in _prefixes():
        path = prefix / "share" / package / "msg" / f"{name}.msg"
        if path.exists():
            return path.read_text(encoding="utf-8", errors="replace").strip()  # of old packages, some are Latin-1
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


class Decoder:
    """Turns serialised messages into objects with the fields of their ROS type; arrays are NumPy arrays.

    Types of ROS are those of Jazzy, and of Noetic for a ROS 1 bag. A bag's own definitions serve the types of this
    package, whose older layouts are read too: whoever made the bag wrote them, and what they say is not believed.

    Args:
        definitions: Type to format (MSG, IDL, or NONE) and text. One that cannot be parsed, such as a service's event,
            or that changes a type of ROS, matters only to who asks for its messages.
        ros1: The messages are serialised as in ROS 1.
    """

    def __init__(self, definitions: Mapping[str, tuple[str, str]], *, ros1: bool = False) -> None:
        self._ros1 = ros1
        self._store = get_typestore(Stores.ROS1_NOETIC if ros1 else Stores.ROS2_JAZZY)
        self._known = set(self._store.types)
        self._unparsable: dict[str, str] = {}
        for name, (form, text) in definitions.items():
            try:
                if form == "MSG":
                    self._store.register(get_types_from_msg(text, name))
                elif form == "IDL":
                    self._store.register(get_types_from_idl(text))
            except Exception as error:  # noqa: BLE001 - the parser raises whatever its grammar happens to hit
                self._unparsable[name] = one_line(error)

    def decode(self, data: bytes, type_name: str) -> Any:
        """Return the message.

        Raises:
            BagError: Its type is unknown or defined in another way, or its bytes are not of this type.
        """
        if why := self._unparsable.get(type_name):
            raise BagError(f"the definition of {type_name} cannot be used: {why}")
        if type_name not in self._known:
            self._check(type_name)
            self._known.add(type_name)
        read = self._store.deserialize_ros1 if self._ros1 else self._store.deserialize_cdr
        why = ""
        for behind in _BEHIND:
            try:
                return read(data[: len(data) - behind], type_name)
            except Exception as error:  # noqa: BLE001 - damaged bytes make the parsers below fail in any way
                why = why or one_line(error)
        raise BagError(f"it is not a {type_name}: {why}")

    def _check(self, name: str) -> None:
        """Refuse a type of others, and a layout of this package's own that no release has had or could have."""
        if not name.startswith(_OURS):
            raise BagError(f"{name} is not a type that is read here")
        if name not in self._store.types:
            raise BagError(f"the definition of {name} is not in the bag")
        known = dict(get_types_from_msg(message_definition(name)[0], name)[name][1])
        found = dict(self._store.fielddefs[name][1])
        wrong = [field for field, kind in found.items() if kind != known.get(field, kind if _is_plain(kind) else None)]
        wrong += [field for field in itertools.takewhile(lambda field: field != _LATER, known) if field not in found]
        if wrong:
            raise BagError(f"the definition of {name} in the bag is of no release: see its field {wrong[0]}")


def _is_plain(kind: Any) -> bool:
    """Whether a field of this kind takes no longer to decode than its bytes are long; fixed arrays are unrolled."""
    node, detail = kind
    return node == Nodetype.BASE or (node == Nodetype.SEQUENCE and detail[0][0] == Nodetype.BASE)


def one_line(error: BaseException) -> str:
    """Return the text of an error without line breaks, its kind where it has none."""
    return " ".join(str(error).split())[:300] or type(error).__name__
