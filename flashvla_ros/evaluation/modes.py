"""A mode is a name for complete settings of pruning and gate, so that a table's rows say what was run."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flashvla_ros.cli.overrides import parse_overrides
from flashvla_ros.cli.yaml_files import read_yaml
from flashvla_ros.core.errors import SettingsError, unknown_name
from flashvla_ros.core.settings import Settings, find
from flashvla_ros.evaluation.open_loop import OPEN_LOOP

LIKE = "like"  # key of a mode in a file: start from that mode's values
# FlashVLA's operating point (arXiv 2505.21200): 160 of 256 tokens from layer 2 on, by their scores over all ranks.
_PUBLISHED = {
    "pruning.method": "ics",
    "pruning.keep_ratio": 0.625,
    "pruning.layer": 2,
    "pruning.rank": 0,
    "pruning.drop": True,
}
BUILT_IN: Mapping[str, Mapping[str, Any]] = {
    "dense": {"gate.mode": "off", "pruning.method": "none"},
    "prune": {"gate.mode": "off", **_PUBLISHED},
    "paper": {"gate.mode": "paper", "gate.max_reuse": 1, **_PUBLISHED},
    "guarded": {},
    "gate": {"pruning.drop": False},
    OPEN_LOOP: {"gate.mode": "off", "pruning.method": "none"},
}
_SEPARATOR = re.compile(r",(?=[a-z_]+\.[a-z_]+=)")


@dataclasses.dataclass(frozen=True)
class Mode:
    """A row's name and the parameters in which it differs from the shipped defaults."""

    name: str
    values: Mapping[str, Any]

    def settings(self, overrides: Mapping[str, Any]) -> Settings:
        """Return complete settings; what holds for every mode comes first."""
        return Settings().with_values({**overrides, **self.values})


def choose_modes(names: Iterable[str], file: Path) -> list[Mode]:
    """Return the modes that are asked for.

    Args:
        names: Of built-in modes and of those in `file`; ``budget-*`` for all that match; or a name with values of
            parameters to change, ``prune:pruning.keep_ratio=0.25,pruning.layer=3``.
        file: YAML that defines more modes.

    Raises:
        SettingsError: A name is unknown, or the file cannot be used.
    """
    known = {**BUILT_IN, **read_modes(file)}
    chosen: dict[str, Mode] = {}
    for text in names:
        base, _, changes = text.partition(":")
        matches = fnmatch.filter(known, base)
        if not matches:
            raise SettingsError(unknown_name("mode", base, known))
        changed = parse_overrides(_SEPARATOR.split(changes)) if changes else {}
        for name in matches:
            label = f"{name}:{changes}" if changes else name
            chosen[label] = Mode(label, {**_values(name, known, file), **changed})
    return list(chosen.values())


def read_modes(file: Path) -> dict[str, Mapping[str, Any]]:
    """Read a file of modes: ``modes: {name: {like: other, parameter: value}}``.

    Raises:
        SettingsError: It cannot be read or is of another form.
    """
    content = read_yaml(file)
    modes = content.get("modes") if isinstance(content, Mapping) else None
    if not isinstance(modes, Mapping) or not all(isinstance(values, Mapping) for values in modes.values()):
        raise SettingsError(f"{file} defines no modes: it must hold modes: {{name: {{parameter: value}}}}")
    return {str(name): values for name, values in modes.items()}


def _values(name: str, known: Mapping[str, Mapping[str, Any]], file: Path, depth: int = 0) -> dict[str, Any]:
    """Return a mode's values, checked, over the values of the mode that it is like."""
    own = dict(known[name])
    values = {}
    if LIKE in own:
        if (base := str(own.pop(LIKE))) not in known or depth > len(known):
            raise SettingsError(f"mode {name} of {file} is like {base!r}, which is no other mode")
        values = _values(base, known, file, depth + 1)
    for parameter, value in own.items():
        row = find(str(parameter))
        values[parameter] = row.parse(row.from_yaml(value))
    return values
