"""The parameter table and the settings made of it."""

import dataclasses

import numpy as np
import pytest

from flashvla_ros.core.errors import SettingsError
from flashvla_ros.core.settings import PARAMETERS, ActionSettings, Settings, find
from flashvla_ros.core.types import ActionKind, ActionSpec


def test_every_default_obeys_its_own_row():
    for row in PARAMETERS:
        assert row.parse(row.default) == row.default


def test_every_row_is_documented_and_named_once():
    assert all(row.description.endswith(".") for row in PARAMETERS)
    assert len({row.name for row in PARAMETERS}) == len(PARAMETERS)


def test_a_row_with_a_greatest_value_has_a_least_one() -> None:
    assert all(row.low is not None for row in PARAMETERS if row.high is not None)


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("gate.mode", False, "off"),  # YAML 1.1 takes a bare off for false
        ("gate.delta", 0.5, 0.5),
        ("node.instruction", True, True),  # "on" is no choice here: parse refuses it by its type
        ("limits.lower", None, ()),  # [] has no type in a ROS parameter file
        ("control.dry_run", False, False),
    ],
)
def test_values_of_yaml_get_their_type_back(name, value, read):
    assert find(name).from_yaml(value) == read


def test_values_and_with_values_are_inverse():
    settings = Settings().with_values({"gate.delta": 0.9, "limits.upper": [1, 2, 3, 4]})
    assert Settings().with_values(settings.values()) == settings
    assert settings.limits.upper == (1.0, 2.0, 3.0, 4.0)


def test_everything_of_gate_and_pruning_is_dynamic():
    read_once = {"limits.urdf", "limits.robot_description"}  # at configure; what they say becomes dynamic parameters
    groups = ("gate.", "pruning.", "limits.")
    assert {row.name for row in PARAMETERS if row.name.startswith(groups) and row.fixed} == read_once


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("gate.delta", 1.5, "gate.delta must be from 0 to 1, got 1.5"),
        ("gate.delta", float("nan"), "gate.delta must be finite"),
        ("gate.delta", True, "gate.delta must be of type float, got True"),
        ("gate.delta", "much", "gate.delta must be of type float, got 'much'"),
        ("gate.max_reuse", 1.0, "gate.max_reuse must be of type int, got 1.0"),
        ("gate.delta", 10**400, "gate.delta must be of type float, got 1000"),
        ("limits.max_step", [10**400] * 4, "limits.max_step must be of type float_array, got [1000"),
        ("gate.mode", "papr", "gate.mode must be one of off, paper, guarded, got 'papr'"),
        ("limits.max_step", [0.1, -1.0, 0.1, 0.1], "limits.max_step must be at least 0"),
        ("limits.lower", [0.0], "limits.lower must have 4 values"),
        ("control.max_deviation", [0.0], "control.max_deviation must have 4 values"),
        ("limits.workspace_lower", [0.0], "limits.workspace_lower must have 3 values, for x, y and z"),
        ("gate.dleta", 0.5, "did you mean gate.delta"),
        ("camera.names", ["front", "front"], "camera.names must be distinct, got ['front', 'front']"),
        ("camera.names", ["front", "2nd"], "camera.names: '2nd' cannot begin a topic's name"),
        ("camera.names", ["front cam"], "camera.names: 'front cam' cannot begin a topic's name"),
        ("camera.names", [""], "camera.names: '' cannot begin a topic's name"),
        ("remote.images", ["a", "a"], "remote.images must be distinct keys, at least one, got ['a', 'a']"),
        ("remote.state", ["state x y"], "remote.state has entries of the form 'KEY: NAME NAME …', got 'state x y'"),
        ("remote.state", ["state:"], "remote.state has entries of the form 'KEY: NAME NAME …', got 'state:'"),
    ],
)
def test_a_refusal_names_parameter_value_and_rule(name, value, words):
    with pytest.raises(SettingsError) as refusal:
        Settings().with_values({name: value})
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_name_that_resembles_no_parameter_is_refused_without_all_of_them():
    with pytest.raises(SettingsError) as refusal:
        Settings().with_values({"robot_ip": "10.0.0.2"})
    assert str(refusal.value) == "there is no parameter 'robot_ip'; docs/parameters.md and docs/ros2.md list them"


def test_a_refused_value_changes_nothing():
    settings = Settings()
    before = settings.values()
    with pytest.raises(SettingsError):
        settings.with_values({"gate.delta": 0.1, "gate.max_reuse": -1})
    assert settings.values() == before


def test_crossed_limits_are_refused_by_dimension():
    with pytest.raises(SettingsError, match=r"limits.lower exceeds limits.upper for y: 1 > 0"):
        Settings().with_values({"limits.lower": [0, 1, 0, 0], "limits.upper": [0, 0, 0, 0]})


def test_a_step_that_takes_as_long_as_it_may_is_commanded():
    """Else a slow model is computed for ever and never moves the robot."""
    control = Settings().control
    assert control.max_image_age_s > control.inference_timeout_s
    words = r"control.max_image_age_s \(2.5\) must be above control.inference_timeout_s \(5\), or 0"
    with pytest.raises(SettingsError, match=words):
        Settings().with_values({"control.inference_timeout_s": 5.0})
    for age_s in (6.0, 0.0):
        Settings().with_values({"control.inference_timeout_s": 5.0, "control.max_image_age_s": age_s})


def test_a_camera_may_have_a_namespace():
    names = ("left_arm/wrist", "/ceiling", "Front2")
    assert Settings().with_values({"camera.names": names}).camera.names == names


def test_arrays_come_in_as_any_sequence():
    assert find("limits.lower").parse(np.array([1.0, 2.0])) == (1.0, 2.0)


def test_settings_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().gate.delta = 0.1  # type: ignore[misc]


@pytest.mark.parametrize("which", ["", "joint_", "workspace_"])
def test_crossed_ranges_name_both_parameters_and_the_dimension(which):
    low, high = f"limits.{which}lower", f"limits.{which}upper"
    size = 3 if which == "workspace_" else 4
    low_values, high_values = [-1.0] * size, [1.0] * size
    low_values[1] = 2.0
    with pytest.raises(SettingsError) as refusal:
        Settings().with_values({low: low_values, high: high_values})
    assert str(refusal.value) == f"{low} exceeds {high} for y: 2 > 1"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("limits.lower", ["a"], "limits.lower must be of type float_array, got ['a']"),
        ("limits.lower", [True], "limits.lower must be of type float_array, got [True]"),
        ("camera.names", [1.0], "camera.names must be of type str_array, got [1.0]"),
        ("camera.names", "front", "camera.names must be of type str_array, got 'front'"),
        ("gate.mode", 3, "gate.mode must be of type str, got 3"),
        ("gate.max_reuse", True, "gate.max_reuse must be of type int, got True"),
        ("control.dry_run", 1, "control.dry_run must be of type bool, got 1"),
        ("gate.delta", [0.5], "gate.delta must be of type float, got [0.5]"),
    ],
)
def test_a_value_of_another_type_is_refused(name, value, words):
    with pytest.raises(SettingsError) as refusal:
        find(name).parse(value)
    assert str(refusal.value) == words


def test_the_declared_action_is_what_the_parameters_say():
    names, kinds = ("elbow", "hand"), ("velocity", "gripper")
    spec = ActionSpec.of(ActionSettings(names=names, kinds=kinds, dt_s=0.25))
    assert spec == ActionSpec(names, (ActionKind.VELOCITY, ActionKind.GRIPPER), 0.25)
    with pytest.raises(SettingsError, match=r"action.names has 1 entries \['elbow'\] but action.kinds has 2 \['delta'"):
        ActionSpec(("elbow",), (ActionKind.DELTA, ActionKind.GRIPPER), 0.1)
    with pytest.raises(SettingsError, match=r"action.names must be distinct, got \['elbow', 'elbow'\]"):
        ActionSpec(("elbow", "elbow"), (ActionKind.DELTA, ActionKind.DELTA), 0.1)
