"""Parameter files of several nodes: a node gets its own part, as rcl hands it out, or a refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import rclpy
import yaml
from rclpy.node import Node

from flashvla_ros.cli.parameter_files import check_files, given_files, quote_for_rcl, read_parameters
from flashvla_ros.core.errors import SettingsError

NODES = ("/flashvla", "/left/flashvla", "/left/arm/flashvla", "/left/other")
SECTIONS = (
    "/**",
    "/*",
    "/**/flashvla",
    "/*/flashvla",
    "flashvla",
    "/flashvla",
    "/left/flashvla",
    "left/flashvla",
    "/left/**",
    "/left/*",
    "/**/arm/flashvla",
    "left/*/flashvla",
)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def of_rcl(path: Path, node: str) -> dict[str, Any]:
    """What rcl hands to a node of this name."""
    context = rclpy.Context()
    rclpy.init(context=context, args=["--ros-args", "--params-file", str(path)])
    namespace, _, name = node.rpartition("/")
    made = Node(name, namespace=namespace, context=context, start_parameter_services=False)
    try:
        return {key: parameter.value for key, parameter in made._parameter_overrides.items()}
    finally:
        made.destroy_node()
        rclpy.shutdown(context=context)


def of_package(path: Path, node: str) -> dict[str, Any]:
    try:
        return read_parameters(path, node)
    except SettingsError:
        return {}


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_is_for_the_nodes_that_rcl_gives_it_to(tmp_path: Path, section: str) -> None:
    path = write(tmp_path / "a.yaml", f"{section}:\n  ros__parameters:\n    gate.delta: 0.9\n")
    for node in NODES:
        assert of_package(path, node) == of_rcl(path, node), node


def test_a_tuple_as_launch_writes_it_is_a_list_as_for_rcl(tmp_path: Path) -> None:
    values = "- -1.0\n    - -2.0\n"
    path = write(tmp_path / "a.yaml", f"/**:\n  ros__parameters:\n    limits.lower: !!python/tuple\n    {values}")
    assert of_package(path, NODES[0]) == {"limits.lower": (-1.0, -2.0)}
    assert tuple(of_rcl(path, NODES[0])["limits.lower"]) == (-1.0, -2.0)


@pytest.mark.parametrize(
    "text",
    [
        "left:\n  flashvla:\n    ros__parameters: {gate: {delta: 0.9}}\n",
        "/left:\n  flashvla:\n    ros__parameters: {gate: {delta: 0.9}}\n",
        "/**:\n  ros__parameters: {gate.delta: 0.1}\n/flashvla:\n  ros__parameters: {gate.delta: 0.9}\n",
        "/flashvla:\n  ros__parameters: {gate.delta: 0.9}\n/**:\n  ros__parameters: {gate.delta: 0.1}\n",
        "/left/flashvla:\n  ros__parameters: {gate.delta: 0.9}\n/flashvla:\n  ros__parameters: {gate.delta: 0.1}\n",
    ],
)
def test_of_several_sections_a_node_gets_what_rcl_gives_it(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "a.yaml", text)
    for node in NODES[:2]:
        assert of_package(path, node) == of_rcl(path, node), node


@pytest.mark.parametrize("text", ["", "7", "a: 1", "[a]", "a:\n  ros__parameters: 7", "a:\n  b:\n    c: 1"])
def test_another_form_is_refused(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "a.yaml", text)
    with pytest.raises(SettingsError, match=f"{path} is not a ROS parameter file"):
        read_parameters(path, "/flashvla")


def test_a_file_for_other_nodes_is_refused_with_their_names(tmp_path: Path) -> None:
    text = "/left/flashvla:\n  ros__parameters: {gate.delta: 0.9}\ncamera:\n  ros__parameters: {rate: 1}\n"
    path = write(tmp_path / "a.yaml", text)
    with pytest.raises(SettingsError, match=r"only for /left/flashvla, /camera: write /flashvla: there, or /\*\*:"):
        check_files([path], "/flashvla")
    check_files([path], "/left/flashvla")


def test_the_files_are_found_among_the_arguments() -> None:
    words = ["--ros-args", "-r", "__ns:=/left", "--params-file", "a.yaml", "-p", "b:=1", "--params-file", "c.yaml"]
    assert given_files(words) == [Path("a.yaml"), Path("c.yaml")]


@pytest.mark.parametrize("given", ["{}", "./a.yaml"])
def test_what_ros2_param_dump_writes_can_be_given_back(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["x", "y", "z", "n", "é"]
    rclpy.init(context=(context := rclpy.Context()))
    node = Node("flashvla", context=context, start_parameter_services=False)
    of_any_node = {name: parameter.value for name, parameter in node._parameters.items()}
    node.destroy_node()
    rclpy.shutdown(context=context)
    values = {"action.names": names, "gate.delta": 1e-05}
    dump = {"/flashvla": {"ros__parameters": {**of_any_node, **values}}}
    path = write(tmp_path / "a.yaml", yaml.safe_dump(dump, allow_unicode=True))
    assert "- y\n" in path.read_text()
    (folder := tmp_path / "copies").mkdir()
    monkeypatch.chdir(tmp_path)
    _, _, copy = quote_for_rcl(["--ros-args", "--params-file", given.format(path)], folder)
    assert of_rcl(Path(copy), "/flashvla") == {**of_any_node, **values}
    assert read_parameters(path, "/flashvla") == {"action.names": tuple(names), "gate.delta": 1e-05}


@pytest.mark.parametrize("text", ["[x, 'y']", "[y, false]", "[yes, n]", "y", "{y: 1}", "[1.0]", "[!!str y]"])
def test_a_file_in_which_rcl_sees_what_was_meant_is_given_as_it_is(tmp_path: Path, text: str) -> None:
    words = ["--ros-args", "--params-file", str(write(tmp_path / "a.yaml", f"/**: {{ros__parameters: {{a: {text}}}}}"))]
    assert quote_for_rcl(words, tmp_path) == words
