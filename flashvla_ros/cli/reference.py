"""The parameter table in the forms that people read: the reference page and the file of defaults.

``flashvla-ros params`` prints both; ``make docs`` writes them to docs/ and config/, and a test keeps them equal.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import textwrap
from collections.abc import Iterable, Iterator

from flashvla_ros.core.parameter import Parameter, Value
from flashvla_ros.core.settings import PARAMETERS, Settings, find

_MARKDOWN_HEAD = """\
# Parameters of the policy node

<!-- Written by `make docs` from flashvla_ros/core/settings.py. -->

A dynamic parameter may change while the robot moves (`ros2 param set /flashvla gate.delta 0.9`) and takes effect at the
next step; a value outside the range is refused with the rule it breaks. A fixed one is set at start, by a file or an
argument, and is read-only afterwards.

## First

What a new robot or checkpoint needs, in the order of setting it up. Every other parameter has a default that works.
"""
_ADVANCED_HEAD = """## Advanced

The other parameters by group.
"""

# Shown before the groups: those that a new robot or checkpoint needs, in the order of setting it up.
FIRST = (
    "model.checkpoint",
    "model.unnorm_key",
    "camera.names",
    "action.names",
    "action.kinds",
    "action.dt_s",
    "command.type",
    "limits.lower",
    "limits.upper",
    "limits.max_step",
    "control.speed_scale",
    "control.dry_run",
    "gate.mode",
    "gate.delta",
    "pruning.keep_ratio",
)

_YAML_HEAD = """\
# Every parameter of the policy node with its default, written by `make docs` from flashvla_ros/core/settings.py.
# Copy it, keep the lines that you change, and start the node with --params-file. A double needs its point: 1.0.
/**:
  ros__parameters:
"""
_TABLE_HEAD = "| name | type | default | range | changes | what |"
_NOTE = " " * 6 + "# "


def markdown() -> str:
    """Return the reference page: a table of what matters first, and one of the rest for each group of parameters."""
    lines = [_MARKDOWN_HEAD, *_table(find(name) for name in FIRST), _ADVANCED_HEAD]
    for group, summary, rows in _groups():
        lines += [f"### {group}", "", summary, "", *_table(row for row in rows if row.name not in FIRST)]
    return "\n".join(lines)


def yaml() -> str:
    """Return the file of defaults that a ROS node reads."""
    lines = []
    for group, summary, rows in _groups():
        lines += [f"    # {summary}", f"    {group}:"]
        for row in rows:
            facts = "; ".join(filter(None, (_range(row), "fixed" if row.fixed else "dynamic")))
            lines += textwrap.wrap(f"{row.description} ({facts})", 120, initial_indent=_NOTE, subsequent_indent=_NOTE)
            lines.append(f"      {row.name.split('.')[1]}: {_yaml_value(row.default)}")
    return _YAML_HEAD + "\n".join(lines) + "\n"


def _groups() -> Iterator[tuple[str, str, list[Parameter]]]:
    for group in dataclasses.fields(Settings):
        summary = inspect.getdoc(type(group.default)) or ""
        yield group.name, summary.splitlines()[0], [row for row in PARAMETERS if row.name.startswith(f"{group.name}.")]


def _table(rows: Iterable[Parameter]) -> list[str]:
    return [_TABLE_HEAD, "|---" * 6 + "|", *(_markdown_row(row) for row in rows), ""]


def _markdown_row(row: Parameter) -> str:
    changes = "fixed" if row.fixed else "dynamic"
    cells = (f"`{row.name}`", row.kind, f"`{_yaml_value(row.default)}`", _range(row), changes, row.description)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _range(row: Parameter) -> str:
    """Return the rule with its unit; the unit alone where there is no rule."""
    return f"{row.rule} {row.unit}".strip()


def _yaml_value(value: Value) -> str:
    """Quote every string, so that YAML 1.1 does not read ``off`` as false; JSON's notation is YAML's too."""
    return json.dumps(value, ensure_ascii=False)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``flashvla-ros params``."""
    parser.add_argument("--yaml", action="store_true", help="as a parameter file with every default")


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    print(yaml() if args.yaml else markdown(), end="")
    return 0
