"""The simulated arm as a URDF and as poses of its links, read out of the MuJoCo model that is stepped."""

from __future__ import annotations

from typing import Any, NamedTuple
from xml.etree import ElementTree as ET

import numpy as np
from numpy.typing import NDArray

from flashvla_ros.core.rotations import euler_of
from flashvla_ros.core.types import FloatArray
from flashvla_ros.sim.simulator import mujoco

ROOT = "base_link"  # MuJoCo's world, in whose axes the arm is commanded
HAND = "hand"
# Largest speed [rad/s] and torque [N m] of Sawyer's and Panda's joints by their data sheets; the fingers' [m/s, N] are
# nominal.
_DRIVES = {
    "right_j0": (1.74, 80.0),
    "right_j1": (1.328, 80.0),
    "right_j2": (1.957, 40.0),
    "right_j3": (1.957, 40.0),
    "right_j4": (3.485, 9.0),
    "right_j5": (3.485, 9.0),
    "right_j6": (4.545, 9.0),
    **{f"robot0_joint{number}": (2.175, 87.0) for number in range(1, 5)},
    **{f"robot0_joint{number}": (2.61, 12.0) for number in range(5, 8)},
}
_FINGER = (0.1, 20.0)
_KINDS = {int(mujoco.mjtJoint.mjJNT_HINGE): "revolute", int(mujoco.mjtJoint.mjJNT_SLIDE): "prismatic"}
_THICKNESS_M = 0.06  # of the cylinder that stands for a link; the meshes are Meta-World's


class LinkPose(NamedTuple):
    """Where a link is in :data:`ROOT`: position [3] in m, orientation [4] as a unit quaternion x, y, z, w."""

    name: str
    position: FloatArray
    orientation: FloatArray


def link_poses(model: Any, data: Any) -> list[LinkPose]:
    """Return the pose of every link of the arm."""
    return [link_pose(data, model.body(index).name) for index in _links(model)]


def link_pose(data: Any, name: str) -> LinkPose:
    """Return the pose of one link."""
    body = data.body(name)
    return LinkPose(name, body.xpos.copy(), np.roll(body.xquat, -1))


def urdf(model: Any, name: str) -> str:
    """Return the arm as a URDF of this name: links with a cylinder to each child, joints with their ranges."""
    robot = ET.Element("robot", name=name)
    ET.SubElement(robot, "link", name=ROOT)
    for body in _links(model):
        link = ET.SubElement(robot, "link", name=model.body(body).name)
        for child in _links(model):
            if int(model.body_parentid[child]) == body:
                _cylinder(link, model.body_pos[child])
        _joint(robot, model, body)
    ET.indent(robot)
    return ET.tostring(robot, encoding="unicode")


def _links(model: Any) -> list[int]:
    arm = model.body_rootid[model.jnt_bodyid[0]]
    return [int(body) for body in np.flatnonzero(model.body_rootid == arm)]


def _cylinder(link: ET.Element, end: NDArray[np.float64]) -> None:
    """Add a cylinder from the link's origin to `end`."""
    length = float(np.linalg.norm(end))
    if length < _THICKNESS_M / 2:
        return
    turn = np.empty(4)
    mujoco.mju_quatZ2Vec(turn, np.asarray(end, dtype=np.float64))
    visual = ET.SubElement(link, "visual")
    ET.SubElement(visual, "origin", xyz=_text(end / 2), rpy=_text(_roll_pitch_yaw(turn)))
    ET.SubElement(ET.SubElement(visual, "geometry"), "cylinder", radius=f"{_THICKNESS_M / 2:g}", length=f"{length:.6f}")


def _joint(robot: ET.Element, model: Any, body: int) -> None:
    name, parent = model.body(body).name, int(model.body_parentid[body])
    moving = int(model.body_jntadr[body])  # -1 where the link is fixed
    kind = _KINDS[int(model.jnt_type[moving])] if moving >= 0 else "fixed"
    joint = ET.SubElement(robot, "joint", name=model.joint(moving).name if moving >= 0 else f"{name}_fixed", type=kind)
    ET.SubElement(joint, "parent", link=model.body(parent).name if parent else ROOT)
    ET.SubElement(joint, "child", link=name)
    ET.SubElement(joint, "origin", xyz=_text(model.body_pos[body]), rpy=_text(_roll_pitch_yaw(model.body_quat[body])))
    if moving >= 0:
        ET.SubElement(joint, "axis", xyz=_text(model.jnt_axis[moving]))
        lower, upper = model.jnt_range[moving]
        speed, effort = _DRIVES.get(model.joint(moving).name, _FINGER)
        ET.SubElement(
            joint, "limit", lower=f"{lower:.6g}", upper=f"{upper:.6g}", velocity=f"{speed:g}", effort=f"{effort:g}"
        )


def _roll_pitch_yaw(quaternion: NDArray[np.float64]) -> FloatArray:
    """Return the angles [3] of MuJoCo's quaternion w, x, y, z, about the fixed x, y and z axes as in a URDF."""
    return np.asarray(euler_of(tuple(np.roll(quaternion, -1))))


def _text(values: Any) -> str:
    return " ".join(f"{float(value):.9g}" for value in values)
