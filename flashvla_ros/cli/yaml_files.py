"""Read YAML that somebody else wrote: within bounded time and memory, and in one line where that fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from flashvla_ros.core.errors import FlashVLAError, SettingsError
from flashvla_ros.core.files import MEGABYTE, read_text


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # without libyaml: the same, slower
    """Reads what ``ros2 launch`` writes for a node, too: the tag of a tuple, which is a list for rcl."""


_Loader.add_constructor("tag:yaml.org,2002:python/tuple", yaml.SafeLoader.construct_yaml_seq)
_LOADER: type[Any] = _Loader
_MOST_BYTES = 4 * MEGABYTE
_MOST_NODES = 200_000
_DEEPEST = 100
_BOOLEANS = ("true", "false", "yes", "no", "on", "off")


def read_yaml(path: Path, error: type[FlashVLAError] = SettingsError) -> Any:
    """Return the value of a file with one YAML document.

    Raises:
        FlashVLAError: Of the type `error`, one line: the file cannot be read, is no YAML, is nested too deeply, or
            has too many values once its aliases stand for what they repeat.
    """
    text = read_text(path, error, _MOST_BYTES)
    try:
        _check(text)
        return _LOADER(text).get_single_data()
    except (yaml.YAMLError, ValueError, OverflowError) as problem:  # a date of month 99, a number of 5000 digits
        raise error(f"{path} is not YAML that can be read: {' '.join(str(problem).split())[:200]}") from problem


def quote_words(text: str) -> str:
    """Return YAML text in which a bare ``y`` or ``n`` in a list is quoted, unless the list holds booleans.

    ``ros2 param dump`` writes them bare, because they are words for PyYAML; for rcl they are booleans.
    """
    open_lists: list[list[yaml.ScalarEvent] | None] = []
    words: list[yaml.ScalarEvent] = []
    for event in yaml.parse(text, _LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            open_lists.append([] if isinstance(event, yaml.SequenceStartEvent) else None)
        elif isinstance(event, yaml.CollectionEndEvent):
            bare = [scalar for scalar in open_lists.pop() or () if not scalar.style and scalar.tag is None]
            if not any(scalar.value.lower() in _BOOLEANS for scalar in bare):
                words += [scalar for scalar in bare if scalar.value.lower() in ("y", "n")]
        elif isinstance(event, yaml.ScalarEvent) and open_lists and open_lists[-1] is not None:
            open_lists[-1].append(event)
    for word in sorted(words, key=lambda scalar: scalar.start_mark.index, reverse=True):
        text = f'{text[: word.start_mark.index]}"{word.value}"{text[word.end_mark.index :]}'
    return text


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
