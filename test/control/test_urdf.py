"""Limits out of a URDF, and what is no URDF."""

from __future__ import annotations

import math

import pytest

from flashvla_ros.control.urdf import JointLimits, joint_limits
from flashvla_ros.core.errors import SettingsError

ARM = """<?xml version="1.0"?>
<robot name="arm">
  <joint name="shoulder" type="revolute"><limit lower="-1.5" upper="2" velocity="3.2" effort="1"/></joint>
  <joint name="wheel" type="continuous"><limit velocity="0" effort="1"/></joint>
  <joint name="lift" type="prismatic"><limit upper="0.4" velocity="0.1" effort="1"/></joint>
  <joint name="spin" type="continuous"/>
  <joint name="flange" type="fixed"/>
</robot>"""


def test_every_joint_that_moves_has_its_limits() -> None:
    assert joint_limits(ARM, "arm.urdf") == {
        "shoulder": JointLimits(-1.5, 2.0, 3.2),
        "wheel": JointLimits(-math.inf, math.inf, math.inf),
        "lift": JointLimits(0.0, 0.4, 0.1),
        "spin": JointLimits(),
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "arm.urdf is no URDF: no element found"),
        ("<robot><joint></robot>", "arm.urdf is no URDF: mismatched tag"),
        ("<sdf/>", "its root is <sdf>, not <robot>"),
        ('<robot xmlns:xacro="http://ros.org/wiki/xacro"><xacro:arm/></robot>', "is a xacro file: turn it into a URDF"),
        ('<!DOCTYPE robot [<!ENTITY a "b">]><robot/>', "it has a document type"),
        (
            '<robot><joint name="a" type="revolute"><limit lower="1" upper="0"/></joint></robot>',
            "'a' has lower 1 above",
        ),
        ('<robot><joint name="a" type="revolute"><limit lower="x"/></joint></robot>', "joint 'a' is no number"),
        ('<robot><joint name="a" type="revolute"><limit lower="nan"/></joint></robot>', "'a' has lower nan above"),
    ],
)
def test_what_is_no_urdf_is_one_line_that_names_it(text: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        joint_limits(text, "arm.urdf")
