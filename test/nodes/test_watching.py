"""The Foxglove layout and the RViz configuration name what the node has: topics, types, fields, quality of service."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from flashvla_ros.core.paths import share_path
from flashvla_ros.nodes import interfaces
from flashvla_ros.nodes.interfaces import Interface

TOPICS = {
    ("/" + topic.name if topic.name[0] not in "/~" else topic.name.replace("~", "/flashvla")): topic
    for topic in (*interfaces.INPUTS, *interfaces.OUTPUTS, interfaces.ROBOT_DESCRIPTION)
}
LAYOUT = json.loads(share_path("config", "foxglove.json").read_text(encoding="utf-8"))
PANELS: dict[str, dict[str, Any]] = LAYOUT["configById"]
# What Lichtblick 1.28.1 (github.com/lichtblick-suite/lichtblick, packages/suite-base/src/panels) knows: each type of
# panel with the keys of its configuration. A key that it does not know is passed over without a word.
_LINES = {"value", "enabled", "color", "label", "timestampMethod"}
LICHTBLICK: dict[str, dict[str, set[str]]] = {
    "3D": {"": {"followTf", "followMode", "scene", "topics", "layers", "cameraState"}},
    "Image": {"": {"imageMode"}, "imageMode": {"imageTopic", "calibrationTopic", "synchronize", "rotation"}},
    "Plot": {"": {"paths", "isSynced", "xAxisVal", "showLegend", "minYValue", "maxYValue"}, "paths": _LINES},
    "StateTransitions": {"": {"paths", "isSynced", "showPoints"}, "paths": _LINES},
    "DiagnosticStatusPanel": {
        "": {"topicToRender", "selectedHardwareId", "selectedName", "numericPrecision", "secondsUntilStale"}
    },
    "Parameters": {"": {"title"}},
    "Publish": {"": {"topicName", "datatype", "buttonText", "buttonTooltip", "buttonColor", "advancedView", "value"}},
    "CallService": {
        "": {"serviceName", "requestPayload", "layout", "buttonText", "buttonTooltip", "buttonColor"},
    },
}
NEEDED = {  # that have no default there
    "Plot": {"paths"},
    "StateTransitions": {"paths"},
    "Publish": {"topicName", "datatype", "value"},
    "CallService": {"serviceName"},
}
PATH_NEEDS = {"value", "timestampMethod"}
VALUES = {
    "timestampMethod": {"receiveTime", "headerStamp"},
    "xAxisVal": {"timestamp", "index", "custom", "currentCustom"},
}
TITLES = {"foxglovePanelTitle", "lichtblickPanelTitle"}  # one for each program
RVIZ = yaml.safe_load(share_path("config", "flashvla.rviz").read_text(encoding="utf-8"))
DISPLAYS = {display["Name"]: display for display in RVIZ["Visualization Manager"]["Displays"]}
RVIZ_TYPES = {
    "rviz_default_plugins/Image": ("sensor_msgs/Image", "sensor_msgs/CompressedImage"),
    "rviz_default_plugins/Pose": ("geometry_msgs/PoseStamped",),
    "rviz_default_plugins/RobotModel": ("std_msgs/String",),
}


def parts(config: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """A panel's configuration and what is nested in it, each with its key."""
    yield "", config
    for key, value in config.items():
        for inner in value if isinstance(value, list) else [value] if key == "imageMode" else []:
            yield key, inner


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_is_configured_as_lichtblick_reads_it(panel):
    kind, config = panel.partition("!")[0], PANELS[panel]
    known = LICHTBLICK[kind]
    for name, part in parts(config):
        assert set(part) <= known[name] | (TITLES if not name else set()), name
        for key, values in VALUES.items():
            assert part.get(key) in {None, *values}
        if name == "paths":
            assert set(part) >= PATH_NEEDS
    assert set(config) >= NEEDED.get(kind, set())
    assert len({config.get(title) for title in TITLES}) == 1


def test_the_layout_has_the_parts_that_lichtblick_reads():
    assert set(LAYOUT) == {"configById", "layout", "globalVariables", "playbackConfig", "userNodes"}


def test_the_robot_is_shown_by_its_description_and_its_hand():
    shown = PANELS["3D!robot"]["topics"]
    assert [name_of(TOPICS[topic].type) for topic in shown] == ["std_msgs/String", "geometry_msgs/PoseStamped"]
    assert all(settings == {"visible": True} for settings in shown.values())


def leaves(layout: Any) -> Iterator[str]:
    if isinstance(layout, str):
        yield layout
    else:
        assert layout["direction"] in ("row", "column")
        assert 0 < layout["splitPercentage"] < 100
        yield from leaves(layout["first"])
        yield from leaves(layout["second"])


def name_of(message_type: type[Any]) -> str:
    return f"{message_type.__module__.split('.')[0]}/{message_type.__name__}"


def type_at(path: str) -> str:
    """The type of a field such as ``/command.twist.linear.x`` in the default type of its topic."""
    topic, *fields = path.split(".")
    message_type: Any = TOPICS[topic].type
    for index, field in enumerate(fields):
        found: str = message_type.get_fields_and_field_types()[field]
        if index == len(fields) - 1:
            return found
        package, _, name = found.partition("/")
        message_type = getattr(importlib.import_module(f"{package}.msg"), name)
    raise AssertionError(f"{path} names no field")


def test_every_panel_of_the_layout_is_shown_once():
    assert sorted(leaves(LAYOUT["layout"])) == sorted(PANELS)


@pytest.mark.parametrize("panel", [name for name in PANELS if name.startswith(("Plot!", "StateTransitions!"))])
def test_a_series_is_a_field_that_exists_and_can_be_drawn(panel):
    for series in PANELS[panel]["paths"]:
        drawable = {"double", "float", "uint8", "uint32", "uint64", "boolean"}
        if panel.startswith("StateTransitions!"):
            drawable.add("string")
        assert type_at(series["value"]) in drawable, series
        if series["timestampMethod"] == "headerStamp":
            topic = series["value"].partition(".")[0]
            assert "header" in TOPICS[topic].type.get_fields_and_field_types()


def test_the_gates_plots_have_values_and_thresholds():
    drawn = {series["value"] for name, panel in PANELS.items() for series in panel.get("paths", ())}
    fields = ("angle_deg", "max_angle_deg", "corrected_overlap", "delta", "reason", "decision", "step_s")
    assert {f"/flashvla/gate.{field}" for field in fields} <= drawn


def test_the_other_panels_name_topics_and_services_of_their_types():
    for name, kinds in (("overlay", {"sensor_msgs/CompressedImage"}), ("camera", {"sensor_msgs/Image"})):
        assert name_of(TOPICS[PANELS[f"Image!{name}"]["imageMode"]["imageTopic"]].type) in kinds
    assert name_of(TOPICS[PANELS["DiagnosticStatusPanel!node"]["topicToRender"]].type) == (
        "diagnostic_msgs/DiagnosticArray"
    )
    stop = PANELS["Publish!stop"]
    assert stop["datatype"] == "std_msgs/msg/Bool" == name_of(TOPICS[stop["topicName"]].type).replace("/", "/msg/")
    assert json.loads(stop["value"]) == {"data": True}
    for panel, node in (("reset", "/flashvla"), ("guard", "/guard")):
        assert PANELS[f"CallService!{panel}"]["serviceName"] == interfaces.RESET.replace("~", node)


@pytest.mark.parametrize("name", [name for name, display in DISPLAYS.items() if display["Class"] in RVIZ_TYPES])
def test_a_display_reads_a_topic_of_its_type_with_a_quality_of_service_that_connects(name):
    display = DISPLAYS[name]
    asked = display.get("Topic") or display["Description Topic"]
    topic: Interface = TOPICS["/" + asked["Value"]]  # relative: a namespace given to RViz moves it
    assert {name_of(kind) for kind in topic.types} & set(RVIZ_TYPES[display["Class"]])
    if not topic.reliable:
        assert asked["Reliability Policy"] == "Best Effort"
    if topic.latched:
        assert asked["Durability Policy"] == "Transient Local"


def test_rviz_shows_the_overlay_the_camera_and_the_robot():
    assert len([display for display in DISPLAYS.values() if display["Class"] in RVIZ_TYPES]) == 4
    assert len(DISPLAYS) == len(RVIZ["Visualization Manager"]["Displays"])
