"""The settings that ``flashvla-ros bench`` compares, as one table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from fnmatch import fnmatch

from flashvla_ros.core.errors import FlashVLAError
from flashvla_ros.core.parameter import Value
from flashvla_ros.core.settings import find

PLAIN, PLAIN_PASS = "plain generate", "plain eager engine"
DENSE = "dense"
EAGER = "dense, eager engine"
KEPT = (0.625, 0.5, 0.25)  # 160, 128 and 64 of OpenVLA's 256 visual tokens
LAYERS = (0, 2)
PAPER: Mapping[str, Value] = {"pruning.method": "ics", "pruning.keep_ratio": 0.625, "pruning.layer": 2}


@dataclasses.dataclass(frozen=True)
class Configuration:
    """One row of the table: its name, and the parameters that make it."""

    name: str
    values: Mapping[str, Value]
    draft: int | None = None  # share of a draft's tokens that the model confirms, 0 or 1; None: no draft


def table(visual_tokens: int, *, drafts: bool = True) -> list[Configuration]:
    """Return every configuration, for a model of that many visual tokens, which may be one that takes drafts."""
    dense = Configuration(DENSE, {"pruning.method": "none"})
    rows = [dense]
    for layer in LAYERS:
        for ratio in KEPT:
            values: dict[str, Value] = {"pruning.method": "ics", "pruning.keep_ratio": ratio, "pruning.layer": layer}
            rows.append(Configuration(_name("ics", ratio, layer, visual_tokens), values))
    paper = next(row for row in rows if row.name == paper_name(visual_tokens))
    for row in (dense, paper) if drafts else ():
        rows += [Configuration(draft_name(row.name, share), row.values, share) for share in (1, 0)]
    for method in find("pruning.method").choices:
        if method not in ("none", "ics"):
            rows.append(Configuration(_name(method, 0.625, 2, visual_tokens), {**PAPER, "pruning.method": method}))
    return rows


def _name(method: str, ratio: float, layer: int, visual_tokens: int) -> str:
    return f"{method} k={round(ratio * visual_tokens)} layer {layer}"


def paper_name(visual_tokens: int) -> str:
    """Return the name of the paper's setting, 62.5 % of the tokens from layer 2 on."""
    return _name("ics", 0.625, 2, visual_tokens)


def draft_name(name: str, share: int) -> str:
    """Return the name of configuration `name` with a draft that is accepted or refused as a whole."""
    return f"{name}, draft {'accepted' if share else 'refused'}"


def select(rows: list[Configuration], patterns: list[str]) -> list[Configuration]:
    """Return the rows whose name matches one of `patterns`, shell's kind; all where there is none.

    Raises:
        FlashVLAError: A pattern matches nothing.
    """
    for pattern in patterns:
        if not any(fnmatch(row.name, pattern) for row in rows):
            raise FlashVLAError(f"--only {pattern!r} matches none of: {'; '.join(row.name for row in rows)}")
    return [row for row in rows if not patterns or any(fnmatch(row.name, pattern) for pattern in patterns)]
