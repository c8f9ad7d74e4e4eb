"""The reference page and the file of defaults say what the table says, and a node reads the file."""

from __future__ import annotations

from pathlib import Path

import rclpy
import yaml
from rclpy.node import Node

from flashvla_ros.cli import reference
from flashvla_ros.core.parameter import Parameter
from flashvla_ros.core.settings import PARAMETERS, Settings
from flashvla_ros.nodes.parameters import NodeParameters

ROOT = Path(__file__).parents[2]
DEFAULTS = ROOT / "config" / "flashvla.yaml"


def test_committed_page_and_file_are_those_of_the_table() -> None:
    assert (ROOT / "docs" / "parameters.md").read_text(encoding="utf-8") == reference.markdown(), "run make docs"
    assert DEFAULTS.read_text(encoding="utf-8") == reference.yaml(), "run make docs"


def test_file_holds_every_default_with_its_type() -> None:
    groups = yaml.safe_load(DEFAULTS.read_text(encoding="utf-8"))["/**"]["ros__parameters"]
    flat = {f"{group}.{name}": value for group, rows in groups.items() for name, value in rows.items()}
    assert list(flat) == [row.name for row in PARAMETERS]
    assert Settings().with_values(flat) == Settings()
    for row in PARAMETERS:
        assert isinstance(flat[row.name], _yaml_type(row)), row.name  # rclpy refuses 1 for a double


def test_a_node_started_with_the_file_has_the_defaults() -> None:
    context = rclpy.Context()
    rclpy.init(context=context, args=["--ros-args", "--params-file", str(DEFAULTS)])
    try:
        assert NodeParameters(Node("flashvla", context=context)).settings == Settings()
    finally:
        context.try_shutdown()


def test_page_has_one_row_for_each_parameter() -> None:
    lines = reference.markdown().splitlines()
    for row in PARAMETERS:
        (line,) = [line for line in lines if line.startswith(f"| `{row.name}` |")]
        assert row.rule in line
        assert row.unit in line
        assert ("| fixed |" in line) == row.fixed


def test_page_begins_with_the_fifteen_that_matter_first() -> None:
    assert len(set(reference.FIRST)) == 15
    names = [line.split("`")[1] for line in reference.markdown().splitlines() if line.startswith("| `")]
    assert tuple(names[:15]) == reference.FIRST
    assert names[15:] == [row.name for row in PARAMETERS if row.name not in reference.FIRST]


def _yaml_type(row: Parameter) -> type:
    return {"bool": bool, "int": int, "float": float, "str": str}.get(row.kind, list)
