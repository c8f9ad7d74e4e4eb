"""Limits out of a URDF, what is left open in one, and what is no URDF."""

from __future__ import annotations

import math
import resource
import time

import pytest

from flashvla_ros.control.urdf import joint_limits, limits_of
from flashvla_ros.core.errors import SettingsError
from flashvla_ros.core.types import ActionKind, ActionSpec

ARM = """<?xml version="1.0"?>
<robot name="arm">
  <joint name="shoulder" type="revolute"><limit lower="-1.5" upper="2" velocity="3.2" effort="1"/></joint>
  <joint name="wheel" type="continuous"><limit velocity="0" effort="1"/></joint>
  <joint name="lift" type="prismatic"><limit upper="0.4" velocity="0.1" effort="1"/></joint>
  <joint name="spin" type="continuous"/>
  <joint name="flange" type="fixed"/>
</robot>"""


def spec(*names: str) -> ActionSpec:
    return ActionSpec(names, (ActionKind.ABSOLUTE,) * len(names), 0.1)


def robot(joint: str) -> str:
    """A robot with a joint called j1 and a sound one called j2."""
    return f'<robot>{joint}<joint name="j2" type="revolute"><limit lower="-1" upper="1" velocity="1"/></joint></robot>'


def test_every_joint_that_moves_has_its_limits() -> None:
    limits = joint_limits(ARM, "arm.urdf")
    assert {name: (one.lower, one.upper, one.velocity) for name, one in limits.items()} == {
        "shoulder": (-1.5, 2.0, 3.2),
        "wheel": (-math.inf, math.inf, math.inf),
        "lift": (0.0, 0.4, 0.1),
        "spin": (-math.inf, math.inf, math.inf),
    }


@pytest.mark.parametrize("before", ["\n", "\r\n\r\n  \t"])
def test_blank_lines_before_the_declaration_do_no_harm(before: str) -> None:
    """A published gripper's URDF begins with one, and robot_state_publisher reads it."""
    assert joint_limits(before + ARM, "arm.urdf") == joint_limits(ARM, "arm.urdf")


def test_they_become_parameters_in_the_order_of_the_action() -> None:
    values, notes = limits_of(ARM, "arm.urdf", spec("lift", "spin", "shoulder"))
    assert values == {
        "limits.joint_lower": [0.0, -1e9, -1.5],
        "limits.joint_upper": [0.4, 1e9, 2.0],
        "limits.joint_velocity": [0.1, 1e9, 3.2],
    }
    assert notes == [
        "arm.urdf: lift has no lower limit, which a URDF then takes for 0",
        "arm.urdf: spin has no velocity limit: limits.joint_velocity sets none",
    ]


@pytest.mark.parametrize(
    ("joint", "words"),
    [
        ('<joint name="j1" type="revolute"><limit lower="0" upper="0" velocity="0"/></joint>', "no range .*are 0"),
        (
            '<joint name="j1" type="revolute"><limit effort="12" velocity="2.1"/></joint>',
            "no range .*fill in its <limit>",
        ),
        ('<joint name="j1" type="prismatic"/>', "j1 has no range .*limits.joint_lower and limits.joint_upper"),
        ('<joint name="j1" type="revolute"><limit lower="0.5" upper="0.5"/></joint>', "no range .*are 0.5"),
        ('<joint name="j1" type="revolute"><limit lower="1" upper="0"/></joint>', "j1 has lower 1 above upper 0"),
        ('<joint name="j1" type="revolute"><limit lower="1"/></joint>', "j1 has lower 1 above upper 0"),
        ('<joint name="j1" type="revolute"><limit lower="x" upper="1"/></joint>', "j1 has limits that cannot be read"),
        ('<joint name="j1" type="revolute"><limit lower="nan" upper="1"/></joint>', "cannot be read .lower is nan"),
        ('<joint name="j1" type="continuous"><limit velocity="nan"/></joint>', "cannot be read .velocity is nan"),
        ('<joint name="j1" type="continuous"><limit velocity="-1"/></joint>', "j1 has a negative velocity limit, -1"),
        (
            '<joint name="j1" type="revolute"><limit lower="0" upper="1"/>'
            '<safety_controller soft_lower_limit="2" soft_upper_limit="3"/></joint>',
            "soft limits .safety_controller. that leave nothing of its range",
        ),
        (
            '<joint name="j1" type="revolute"><limit lower="-9" upper="9"/><limit lower="-1" upper="1"/></joint>',
            "j1 has limits that cannot be read .there are 2 <limit>.: correct them",
        ),
        (
            '<joint name="j1" type="revolute"><limit lower="0" upper="1"/><mimic joint="j2"/></joint>',
            "j1 only follows 'j2' .mimic.: let the action name that joint",
        ),
    ],
)
def test_limits_that_cannot_hold_are_refused_where_the_action_moves_the_joint(joint: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as refusal:
        limits_of(robot(joint), "arm.urdf", spec("j1", "j2"))
    assert "arm.urdf" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert limits_of(robot(joint), "arm.urdf", spec("j2"))[0]["limits.joint_upper"] == [1.0]


@pytest.mark.parametrize(
    ("soft", "expected"),
    [
        ('soft_lower_limit="-0.9" soft_upper_limit="0.8"', (-0.9, 0.8)),
        ('soft_lower_limit="-9" soft_upper_limit="9"', (-1.0, 1.0)),
        ('soft_lower_limit="-0.5"', (-0.5, 1.0)),
        ('soft_lower_limit="0" soft_upper_limit="0.5"', (0.0, 0.5)),
        ('soft_lower_limit="0" soft_upper_limit="0"', (-1.0, 1.0)),
        ('k_velocity="10"', (-1.0, 1.0)),
    ],
)
def test_soft_limits_narrow_the_range(soft: str, expected: tuple[float, float]) -> None:
    joint = f'<joint name="j1" type="revolute"><limit lower="-1" upper="1"/><safety_controller {soft}/></joint>'
    limits = joint_limits(robot(joint), "arm.urdf")["j1"]
    assert (limits.lower, limits.upper) == expected


@pytest.mark.parametrize("source", ["arm.urdf", "/robot_description"])
def test_a_joint_that_is_there_twice_is_refused(source: str) -> None:
    joint = '<joint name="j1" type="revolute"><limit lower="-{0}" upper="{0}" velocity="1"/></joint>'
    with pytest.raises(SettingsError, match=f"{source} has several joints called 'j1'"):
        joint_limits(robot(joint.format(1) + joint.format(100)), source)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "arm.urdf is no URDF: no element found"),
        ("<robot><joint></robot>", "arm.urdf is no URDF: mismatched tag"),
        ("<sdf/>", "its root is <sdf>, not <robot>"),
        ('<robot xmlns:xacro="http://ros.org/wiki/xacro"><xacro:arm/></robot>', "is a xacro file: turn it into a URDF"),
        ('<!DOCTYPE robot [<!ENTITY a "b">]><robot/>', "it has a document type"),
        (
            "<!DOCTYPE robot [<!ENTITY a0 'lol'>"
            + "".join(f"<!ENTITY a{i} '{f'&a{i - 1};' * 10}'>" for i in range(1, 10))
            + "]><robot>&a9;</robot>",
            "it has a document type",
        ),
        ("<robot>" + "<joint/>" * 600_000 + "</robot>", "more than 4 million characters"),
        ("<robot>" + "<a>" * 1_300_000, "no element found|unclosed"),
        ("<robot>" + "<a>" * 500_000 + "</a>" * 500_000 + "</robot>", "more than 4 million|joints"),
        ("<robot " + " ".join(f'a{i}="1"' for i in range(300_000)) + "></robo>", "mismatched tag"),
    ],
)
def test_what_is_no_urdf_is_one_line_that_names_it_and_comes_soon(text: str, words: str) -> None:
    before, started_s = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(SettingsError, match=words) as refusal:
        limits_of(text, "arm.urdf", spec("j1"))
    assert time.monotonic() - started_s < 10.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 700_000  # kilobytes
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 400
