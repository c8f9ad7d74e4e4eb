"""Rules between parameters: what the table allows one by one and a robot could not follow together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flashvla_ros.core.errors import SettingsError

if TYPE_CHECKING:
    from flashvla_ros.core.settings import Settings

AXES = ("x", "y", "z")
_PER_DIMENSION = ("lower", "upper", "max_step", "joint_lower", "joint_upper", "joint_velocity")
_MOTION = ("delta", "velocity")
_TOPIC = re.compile(r"/?[A-Za-z_][A-Za-z0-9_]*(/[A-Za-z_][A-Za-z0-9_]*)*")


def check(settings: Settings) -> None:
    """Refuse values that contradict each other.

    Raises:
        SettingsError: Names the parameters, the dimension and the values.
    """
    _sizes(settings)
    limits, names = settings.limits, settings.action.names
    _order("limits.lower", limits.lower, "limits.upper", limits.upper, names)
    _order("limits.joint_lower", limits.joint_lower, "limits.joint_upper", limits.joint_upper, names)
    _order("limits.workspace_lower", limits.workspace_lower, "limits.workspace_upper", limits.workspace_upper, AXES)
    _standing_still(settings)
    _positions(settings)
    _deviation(settings)
    _cameras(settings.camera.names)
    if limits.urdf and limits.robot_description:
        raise SettingsError("limits.urdf and limits.robot_description both name a URDF: give one of them")


def _sizes(settings: Settings) -> None:
    names, limits = list(settings.action.names), settings.limits
    arrays = {f"limits.{field}": getattr(limits, field) for field in _PER_DIMENSION}
    for name, values in {**arrays, "control.max_deviation": settings.control.max_deviation}.items():
        if values and len(values) != len(names):
            raise SettingsError(
                f"{name} must have {len(names)} values, one for each of {names}, or none, got {len(values)}"
            )
    for field in ("workspace_lower", "workspace_upper"):
        if len(values := getattr(limits, field)) not in (0, len(AXES)):
            raise SettingsError(f"limits.{field} must have 3 values, for x, y and z, or none, got {len(values)}")
    if (limits.workspace_lower or limits.workspace_upper) and not set(AXES) & set(names):
        raise SettingsError(
            f"limits.workspace_* bounds dimensions named x, y and z, but action.names is {names}: "
            f"leave it empty, or bound joints with limits.joint_lower and limits.joint_upper"
        )


def _cameras(names: Sequence[str]) -> None:
    """A camera's name is the beginning of its topic's."""
    if len(set(names)) != len(names):
        raise SettingsError(f"camera.names must be distinct, got {list(names)}")
    for name in names:
        if not _TOPIC.fullmatch(name):
            raise SettingsError(
                f"camera.names: {name!r} cannot begin a topic's name, which has letters, digits and underscores "
                "between slashes, and no digit first"
            )


def _order(low_name: str, lower: Sequence[float], high_name: str, upper: Sequence[float], names: Sequence[str]) -> None:
    for name, low, high in zip(names, lower, upper, strict=False):
        if low > high:
            raise SettingsError(f"{low_name} exceeds {high_name} for {name}: {low:g} > {high:g}")


def _standing_still(settings: Settings) -> None:
    """A range of a delta or velocity without 0 in it could never be kept by a robot that stands still."""
    limits, action = settings.limits, settings.action
    for index, (name, kind) in enumerate(zip(action.names, action.kinds, strict=False)):
        low = limits.lower[index] if limits.lower else 0.0
        high = limits.upper[index] if limits.upper else 0.0
        if kind in _MOTION and not low <= 0.0 <= high:
            raise SettingsError(
                f"limits.lower and limits.upper of {name} leave out 0 ({low:g} to {high:g}): "
                f"a {kind} of 0 is how the robot stands still"
            )


def _positions(settings: Settings) -> None:
    """The range of an absolute command and that of its position must have something in common."""
    limits, action = settings.limits, settings.action
    for index, (name, kind) in enumerate(zip(action.names, action.kinds, strict=False)):
        if kind != "absolute":
            continue
        for group, lower, upper, place in (
            ("joint", limits.joint_lower, limits.joint_upper, index),
            ("workspace", limits.workspace_lower, limits.workspace_upper, AXES.index(name) if name in AXES else -1),
        ):
            if place < 0:
                continue
            _meet(f"limits.lower and limits.{group}_upper", limits.lower, index, upper, place, name)
            _meet(f"limits.{group}_lower and limits.upper", lower, place, limits.upper, index, name)


def _meet(what: str, lower: Sequence[float], low_at: int, upper: Sequence[float], high_at: int, name: str) -> None:
    if lower and upper and lower[low_at] > upper[high_at]:
        raise SettingsError(
            f"{what} leave nothing for {name}: at least {lower[low_at]:g} and at most {upper[high_at]:g}"
        )


def _deviation(settings: Settings) -> None:
    for name, kind, value in zip(
        settings.action.names, settings.action.kinds, settings.control.max_deviation, strict=False
    ):
        if value > 0.0 and kind != "absolute":
            raise SettingsError(
                f"control.max_deviation of {name} must be 0: only an absolute dimension can be compared with where "
                f"the robot is, and {name} is of kind {kind}"
            )
