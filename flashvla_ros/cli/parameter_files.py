"""ROS parameter files: which of their sections are for a node, by the rules of rcl, and what those set."""

from __future__ import annotations

import atexit
import functools
import itertools
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flashvla_ros.cli.yaml_files import quote_words, read_yaml
from flashvla_ros.core.errors import SettingsError
from flashvla_ros.core.files import read_text
from flashvla_ros.core.settings import find

DEFAULT_NODE = "/flashvla"
_SECTION = "ros__parameters"
_NUMBERS = itertools.count()  # of the files that this process writes


def read_parameters(path: Path, node: str) -> dict[str, Any]:
    """Return the parameters that a file sets for a node, by name; a later section goes before an earlier one.

    Args:
        path: A ROS parameter file, which may be for several nodes.
        node: Full name of the node, such as ``/left/flashvla``.

    Raises:
        SettingsError: The file cannot be read, is of another form, has nothing for this node, or holds an unknown
            parameter or a bad value.
    """
    values = {name: value for name, value in given_values(path, node).items() if not _of_any_node(name)}
    return {name: find(name).parse(find(name).from_yaml(value)) for name, value in values.items()}


def given_values(path: Path, node: str) -> dict[str, Any]:
    """Return whatever a file sets for a node, by name and as YAML reads it; errors as of :func:`read_parameters`."""
    return {name: value for group in _sections_for(path, node) for name, value in _flatten(group)}


def overriding(values: Mapping[str, Any], files: Sequence[Path]) -> Path:
    """Write a parameter file that goes before others, whatever their sections are called; it ends with this process.

    For rcl a section is where its name came first, in any file or as ``-p``'s ``/**``, and a later one wins. In a
    section the last value in a group goes before one of a name with dots.
    """
    groups: dict[str, Any] = {}
    for name, value in values.items():
        *above, last = name.split(".")
        functools.reduce(lambda group, key: group.setdefault(key, {}), above, groups)[last] = value
    names = [name for file in files for name, _ in _sections(read_yaml(file), "")]
    path = _folder() / f"{next(_NUMBERS)}.yaml"
    sections = {name: {_SECTION: groups} for name in dict.fromkeys([*names, "/**"])}
    path.write_text(json.dumps(sections, ensure_ascii=False), encoding="utf-8")
    return path


@functools.cache
def _folder() -> Path:
    folder = tempfile.mkdtemp(prefix="flashvla_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def check_files(paths: Sequence[Path], node: str) -> None:
    """Refuse parameter files that set nothing for a node: its limits would be missing without a word.

    Raises:
        SettingsError: A file cannot be read, is of another form, or has nothing for this node.
    """
    for path in paths:
        _sections_for(path, node)


def given_files(arguments: Sequence[str]) -> list[Path]:
    """Return the parameter files among the arguments of a ROS process."""
    return [Path(arguments[place]) for place in _places(arguments)]


def _places(arguments: Sequence[str]) -> list[int]:
    return [place for place, flag in enumerate(arguments[:-1], start=1) if flag == "--params-file"]


def quote_for_rcl(arguments: Sequence[str], folder: Path) -> list[str]:
    """Return the arguments of a ROS process with parameter files that rcl reads as every other YAML reader does.

    Args:
        arguments: Those given; their files have been read once by :func:`read_yaml`, so that they are YAML.
        folder: Takes the copies of those files in which :func:`quote_words` changes something.
    """
    words = list(arguments)
    for place in _places(arguments):
        path = Path(arguments[place])
        text = read_text(path, SettingsError)
        if (quoted := quote_words(text)) != text:
            copy = folder / f"{place}_{path.name}"
            copy.write_text(quoted, encoding="utf-8")
            words[place] = str(copy)
    return words


def _sections_for(path: Path, node: str) -> list[Mapping[str, Any]]:
    content = read_yaml(path)
    sections = dict(_sections(content, "")) if isinstance(content, Mapping) else {}
    if not sections or not all(isinstance(section, Mapping) for section in sections.values()):
        raise SettingsError(f"{path} is not a ROS parameter file: it must hold <node>: {_SECTION}: …")
    found = [section for name, section in sections.items() if _is_for(name, node)]
    if not found:
        raise SettingsError(
            f"nothing in {path} is for the node {node}, only for {', '.join(sections)}: "
            f"write {node}: there, or /**: for every node"
        )
    return found


def _sections(group: Mapping[Any, Any], above: str) -> Iterator[tuple[str, Any]]:
    """Yield each section with the name of its node; namespaces may be written in front of it or around it."""
    for key, value in group.items():
        name = f"{above}/{str(key).removeprefix('/')}"
        if isinstance(value, Mapping) and _SECTION in value:
            yield name, value[_SECTION] or {}
        elif isinstance(value, Mapping):
            yield from _sections(value, name)
        else:
            yield name, value


def _is_for(section: str, node: str) -> bool:
    """Whether a section's name matches: ``*`` stands for one part of a node's name, ``**`` for any number."""
    parts = {"*": r"/\w+", "**": r"(/\w+)*"}
    pattern = "".join(parts.get(part, f"/{re.escape(part)}") for part in section.split("/")[1:])
    return re.fullmatch(pattern, node) is not None


def _of_any_node(name: str) -> bool:
    return name in ("use_sim_time", "start_type_description_service") or name.startswith("qos_overrides.")


def _flatten(group: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in group.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
