"""Joint limits out of a URDF (https://wiki.ros.org/urdf/XML/joint): range and speed of every joint that moves."""

from __future__ import annotations

import dataclasses
import math
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Collection

from flashvla_ros.control.limits import UNBOUNDED
from flashvla_ros.core.errors import SettingsError
from flashvla_ros.core.files import MEGABYTE, read_text
from flashvla_ros.core.paths import user_path
from flashvla_ros.core.types import ActionSpec

_MOST_CHARACTERS = 4 * MEGABYTE  # ten times what a humanoid needs
_MOVING = ("revolute", "continuous", "prismatic")
# A document type can name files and multiply entities; a robot's description has no use for one.
_DOCUMENT_TYPE = re.compile(r"<!(DOCTYPE|ENTITY)", re.IGNORECASE)
_BY_HAND = "or leave the URDF out and set limits.joint_lower and limits.joint_upper"


@dataclasses.dataclass(frozen=True)
class JointLimits:
    """What a URDF says of one joint, infinite where it says nothing.

    Attributes:
        lower: Least position [rad or m], soft limits (``<safety_controller>``) included.
        upper: Greatest position.
        velocity: Greatest speed [rad/s or m/s].
        fault: Why an action must not move this joint; empty where it may.
        note: What the URDF leaves out and was taken for granted; empty where it is complete.
    """

    lower: float = -math.inf
    upper: float = math.inf
    velocity: float = math.inf
    fault: str = ""
    note: str = ""


def read_urdf(path: str) -> str:
    """Return the text of a URDF file.

    Raises:
        SettingsError: It cannot be read.
    """
    try:
        return read_text(user_path(path), SettingsError, _MOST_CHARACTERS)
    except SettingsError as error:
        raise SettingsError(f"limits.urdf: {error}") from error


def limits_of(text: str, source: str, spec: ActionSpec) -> tuple[dict[str, list[float]], list[str]]:
    """Return the parameters that a URDF sets for an action, by name, and what it leaves open, in sentences.

    Errors name the `source` of the text.

    Raises:
        SettingsError: It is no URDF, lacks a joint of the action, or has no usable limits for one.
    """
    known = joint_limits(text, source)
    if not spec.joints:
        raise SettingsError(
            f"{source} bounds joints, but action.names has none: {list(spec.names)}; leave limits.urdf empty and "
            f"bound the end effector with limits.workspace_lower and limits.workspace_upper"
        )
    check_names(spec, known, f"joints of {source}")
    if faults := [f"{name} {known[name].fault}" for name in spec.joints if known[name].fault]:
        raise SettingsError(f"{source} cannot bound the action's joints: {'; '.join(faults)}")
    rows = [known[name] if name in spec.joints else JointLimits() for name in spec.names]
    values = {
        "limits.joint_lower": [max(row.lower, -UNBOUNDED) for row in rows],
        "limits.joint_upper": [min(row.upper, UNBOUNDED) for row in rows],
        "limits.joint_velocity": [min(row.velocity, UNBOUNDED) for row in rows],
    }
    return values, [f"{source}: {name} {known[name].note}" for name in spec.joints if known[name].note]


def check_names(spec: ActionSpec, known: Collection[str], what: str) -> None:
    """Require the action's joints among those that are known.

    Raises:
        SettingsError: Some are not; names both lists.
    """
    missing = [name for name in spec.joints if name not in known]
    if missing:
        raise SettingsError(
            f"action.names is {list(spec.names)}, but {missing} are not among the {what}, {sorted(known)}: "
            f"name the joints as the robot does, in the order of the policy's action"
        )


def joint_limits(text: str, source: str) -> dict[str, JointLimits]:
    """Return the limits of every joint that moves, by its name.

    A joint whose limits are not usable is there with its fault: it matters only where an action moves it. Errors name
    the `source` of the text.

    Raises:
        SettingsError: It is no URDF, or two joints have one name.
    """
    if len(text) > _MOST_CHARACTERS or _DOCUMENT_TYPE.search(text):
        raise SettingsError(f"{source} is no plain URDF: it has a document type, or more than 4 million characters")
    try:
        # Blank lines in front of the XML declaration are no XML, but robot_state_publisher's parser takes them.
        root = ElementTree.fromstring(text.lstrip())  # noqa: S314  # no document type: nothing to expand or to fetch
    except ElementTree.ParseError as error:
        raise SettingsError(f"{source} is no URDF: {error}") from error
    if root.tag != "robot":
        raise SettingsError(f"{source} is no URDF: its root is <{root.tag[:40]}>, not <robot>")
    if any("xacro" in str(element.tag) for element in root.iter()):
        raise SettingsError(f"{source} is a xacro file: turn it into a URDF first (xacro {source} > robot.urdf)")
    joints = root.findall("joint")
    counts = Counter(joint.get("name", "") for joint in joints)
    if doubled := [name for name, count in counts.items() if count > 1]:
        raise SettingsError(f"{source} has several joints called {doubled[0]!r}: which limits hold is not known")
    return {joint.get("name", ""): _limits(joint) for joint in joints if joint.get("type") in _MOVING}


def _limits(joint: ElementTree.Element) -> JointLimits:
    if (mimic := joint.find("mimic")) is not None:
        return JointLimits(fault=f"only follows {mimic.get('joint')!r} (mimic): let the action name that joint")
    try:
        hard = _numbers(joint.findall("limit"), "lower", "upper", "velocity")
        soft = _numbers(joint.findall("safety_controller"), "soft_lower_limit", "soft_upper_limit")
    except ValueError as error:
        return JointLimits(fault=f"has limits that cannot be read ({error}): correct them")
    speed = hard.get("velocity", 0.0)
    if speed < 0.0:
        return JointLimits(fault=f"has a negative velocity limit, {speed:g}: correct it")
    speed, notes = speed or math.inf, [] if speed else ["has no velocity limit: limits.joint_velocity sets none"]
    if joint.get("type") == "continuous":
        return JointLimits(velocity=speed, note="; ".join(notes))
    lower, upper = hard.get("lower", 0.0), hard.get("upper", 0.0)  # the format's own defaults
    if lower == upper:
        return JointLimits(fault=f"has no range (lower and upper are {lower:g}): fill in its <limit>, {_BY_HAND}")
    if lower > upper:
        return JointLimits(fault=f"has lower {lower:g} above upper {upper:g}: exchange them")
    if absent := [side for side in ("lower", "upper") if side not in hard]:
        notes.append(f"has no {absent[0]} limit, which a URDF then takes for 0")
    if any(soft.values()):  # all 0 is what stands for "not filled in"
        lower = max(lower, soft.get("soft_lower_limit", lower))
        upper = min(upper, soft.get("soft_upper_limit", upper))
    if lower >= upper:
        return JointLimits(fault="has soft limits (safety_controller) that leave nothing of its range: correct them")
    return JointLimits(lower, upper, speed, note="; ".join(notes))


def _numbers(elements: list[ElementTree.Element], *names: str) -> dict[str, float]:
    """Return the attributes of these names that an element has, of which there may be one."""
    if len(elements) > 1:
        raise ValueError(f"there are {len(elements)} <{elements[0].tag}>")
    given = {name: float(one.attrib[name]) for one in elements for name in names if name in one.attrib}
    if wrong := [name for name, value in given.items() if math.isnan(value)]:
        raise ValueError(f"{wrong[0]} is {given[wrong[0]]}")
    return given
