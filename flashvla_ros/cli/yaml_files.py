"""Read YAML that somebody else wrote: within bounded time and memory, and in one line where that fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from flashvla_ros.core.errors import FlashVLAError, SettingsError
from flashvla_ros.core.files import MEGABYTE, read_text

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # without libyaml: the same, slower
_MOST_BYTES = 4 * MEGABYTE
_MOST_NODES = 200_000
_DEEPEST = 100


def read_yaml(path: Path, error: type[FlashVLAError] = SettingsError) -> Any:
    """Return the value of a file with one YAML document.

    Raises:
        FlashVLAError: Of the type `error`, one line: the file cannot be read, is no YAML, is nested too deeply, or
            has too many values once its aliases stand for what they repeat.
    """
    text = read_text(path, error, _MOST_BYTES)
    try:
        _check(text)
        return yaml.load(text, _LOADER)  # noqa: S506  # a safe loader, in C where there is one
    except (yaml.YAMLError, ValueError, OverflowError) as problem:  # a date of month 99, a number of 5000 digits
        raise error(f"{path} is not YAML that can be read: {' '.join(str(problem).split())[:200]}") from problem


def _check(text: str) -> None:
    """Walk the events, which takes no stack, before anything is built of them."""
    anchors: dict[str, int] = {}  # number of values that an alias of this name stands for
    open_nodes: list[tuple[str, int]] = []
    count = 0
    for event in yaml.parse(text, _LOADER):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in anchors:
                raise ValueError(f"the alias *{event.anchor} stands inside of what it repeats, or for nothing")
            count += anchors[event.anchor]
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            anchors[anchor] = count - before
        elif isinstance(event, yaml.NodeEvent):
            if isinstance(event, yaml.CollectionStartEvent):
                open_nodes.append((event.anchor or "", count))
            else:
                anchors[event.anchor or ""] = 1
            count += 1
        if len(open_nodes) > _DEEPEST:
            raise ValueError(f"it is nested more than {_DEEPEST} deep")
        if count > _MOST_NODES:
            raise ValueError(f"it has more than {_MOST_NODES} values")
