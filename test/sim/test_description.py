"""The arm's URDF: the same kinematics as the model that is stepped, by an independent forward calculation."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from flashvla_ros.control.urdf import joint_limits
from flashvla_ros.core.errors import SimulationError

try:
    from flashvla_ros.sim.description import ROOT
    from flashvla_ros.sim.world import World
except SimulationError as error:
    pytest.skip(str(error), allow_module_level=True)


def numbers(element: ET.Element, name: str) -> np.ndarray:
    return np.array([float(word) for word in element.attrib[name].split()])


def forward(robot: ET.Element, positions: dict[str, float]) -> dict[str, tuple[np.ndarray, Rotation]]:
    """Every link's place by the URDF alone."""
    placed = {ROOT: (np.zeros(3), Rotation.identity())}
    for joint in robot.iter("joint"):  # parents come first
        place, turn = placed[joint.find("parent").attrib["link"]]
        origin = joint.find("origin")
        place = place + turn.apply(numbers(origin, "xyz"))
        turn = turn * Rotation.from_euler("xyz", numbers(origin, "rpy"))
        if joint.attrib["type"] != "fixed":
            axis, position = numbers(joint.find("axis"), "xyz"), positions[joint.attrib["name"]]
            if joint.attrib["type"] == "revolute":
                turn = turn * Rotation.from_rotvec(axis * position)
            else:
                place = place + turn.apply(axis * position)
        placed[joint.find("child").attrib["link"]] = (place, turn)
    return placed


def test_the_urdf_puts_every_link_where_mujoco_has_it():
    world = World(32)
    world.reset("drawer-open", 0)
    for _ in range(5):
        world.step([0.5, -0.8, -0.6, 1.0])
        placed = forward(ET.fromstring(world.scene.urdf()), world.scene.joint_positions)  # noqa: S314  # our own
        poses = world.scene.link_poses()
        assert {"base", "right_l6", "hand", "leftclaw"} <= {link.name for link in poses}
        for link in poses:
            place, turn = placed[link.name]
            np.testing.assert_allclose(place, link.position, atol=1e-6)
            assert (turn.inv() * Rotation.from_quat(link.orientation)).magnitude() < 1e-6
    world.close()


def test_its_limits_are_read_by_the_nodes_own_reader():
    world = World(32)
    world.reset("drawer-open", 0)
    limits = joint_limits(world.scene.urdf(), "the arm")
    world.close()
    assert limits["right_j1"].lower == pytest.approx(-3.8) and limits["right_j1"].upper == pytest.approx(-0.5)
    assert limits["right_j1"].velocity == pytest.approx(1.328)
