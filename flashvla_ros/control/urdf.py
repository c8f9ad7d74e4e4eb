"""Joint limits out of a URDF (https://wiki.ros.org/urdf/XML/joint): range and speed of every joint that moves."""

from __future__ import annotations

import dataclasses
import math
import re
import xml.etree.ElementTree as ElementTree

from flashvla_ros.core.errors import SettingsError

_MOST_CHARACTERS = 16_000_000
_MOVING = ("revolute", "continuous", "prismatic")
# A document type can name files and multiply entities; a robot's description has no use for one.
_DOCUMENT_TYPE = re.compile(r"<!(DOCTYPE|ENTITY)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class JointLimits:
    """What a URDF says of one joint, infinite where it says nothing.

    Attributes:
        lower: Least position [rad or m].
        upper: Greatest position.
        velocity: Greatest speed [rad/s or m/s].
    """

    lower: float = -math.inf
    upper: float = math.inf
    velocity: float = math.inf


def joint_limits(text: str, source: str) -> dict[str, JointLimits]:
    """Return the limits of every joint that moves, by its name.

    Args:
        text: A URDF.
        source: Where it comes from, for the error.

    Raises:
        SettingsError: It is no URDF, or a limit is no number.
    """
    if len(text) > _MOST_CHARACTERS or _DOCUMENT_TYPE.search(text):
        raise SettingsError(f"{source} is no plain URDF: it has a document type, or more than 16 million characters")
    try:
        root = ElementTree.fromstring(text)  # noqa: S314  # no document type: nothing to expand or to fetch
    except ElementTree.ParseError as error:
        raise SettingsError(f"{source} is no URDF: {error}") from error
    if root.tag != "robot":
        raise SettingsError(f"{source} is no URDF: its root is <{root.tag}>, not <robot>")
    if any("xacro" in str(element.tag) for element in root.iter()):
        raise SettingsError(f"{source} is a xacro file: turn it into a URDF first (xacro {source} > robot.urdf)")
    joints = [joint for joint in root.findall("joint") if joint.get("type") in _MOVING]
    return {joint.get("name", ""): _limits(joint, source) for joint in joints}


def _limits(joint: ElementTree.Element, source: str) -> JointLimits:
    limit = joint.find("limit")
    given = {} if limit is None else limit.attrib
    try:
        lower, upper, velocity = (float(given.get(key, 0.0)) for key in ("lower", "upper", "velocity"))
    except ValueError as error:
        raise SettingsError(f"{source}: a limit of joint {joint.get('name')!r} is no number: {error}") from error
    speed = velocity if velocity > 0.0 else math.inf  # 0 is what drawing programs write for "not known"
    if joint.get("type") == "continuous" or limit is None:
        return JointLimits(velocity=speed)
    if not lower <= upper:
        raise SettingsError(f"{source}: joint {joint.get('name')!r} has lower {lower:g} above upper {upper:g}")
    return JointLimits(lower, upper, speed)
