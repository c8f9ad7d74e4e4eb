"""Rules between parameters: what the table allows one by one and a robot could not follow together.

Every function raises SettingsError, which names the parameters, the dimension and the values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from flashvla_ros.core.errors import SettingsError

AXES = ("x", "y", "z")
_MOTION = ("delta", "velocity")


@dataclasses.dataclass(frozen=True)
class Range:
    """A least and a greatest value for each dimension or axis, with the names of their parameters; empty: none."""

    lower_name: str
    lower: Sequence[float]
    upper_name: str
    upper: Sequence[float]

    @classmethod
    def of(cls, limits: object, lower: str, upper: str) -> Range:
        """Return the bounds that two fields of the group ``limits`` hold."""
        return cls(f"limits.{lower}", getattr(limits, lower), f"limits.{upper}", getattr(limits, upper))


def one_value_each(arrays: Mapping[str, Sequence[float]], names: Sequence[str]) -> None:
    """Require one value for each dimension of the action, or none."""
    for parameter, values in arrays.items():
        if values and len(values) != len(names):
            raise SettingsError(
                f"{parameter} must have {len(names)} values, one for each of {list(names)}, or none, got {len(values)}"
            )


def in_order(bounds: Range, names: Sequence[str]) -> None:
    """Require that no least value exceeds the greatest of its dimension."""
    for name, low, high in zip(names, bounds.lower, bounds.upper, strict=False):
        if low > high:
            raise SettingsError(f"{bounds.lower_name} exceeds {bounds.upper_name} for {name}: {low:g} > {high:g}")


def workspace_has_axes(workspace: Range, names: Sequence[str]) -> None:
    """Require that a workspace bounds a dimension of the action."""
    if (workspace.lower or workspace.upper) and not set(AXES) & set(names):
        raise SettingsError(
            f"limits.workspace_* bounds dimensions named x, y and z, but action.names is {list(names)}: "
            f"leave it empty, or bound joints with limits.joint_lower and limits.joint_upper"
        )


def can_stand_still(command: Range, names: Sequence[str], kinds: Sequence[str]) -> None:
    """Require 0 within the bounds of a delta or velocity: a robot that stands still could not keep others."""
    for index, (name, kind) in enumerate(zip(names, kinds, strict=False)):
        low = command.lower[index] if command.lower else 0.0
        high = command.upper[index] if command.upper else 0.0
        if kind in _MOTION and not low <= 0.0 <= high:
            raise SettingsError(
                f"limits.lower and limits.upper of {name} leave out 0 ({low:g} to {high:g}): "
                f"a {kind} of 0 is how the robot stands still"
            )


def positions_meet(command: Range, joint: Range, workspace: Range, names: Sequence[str], kinds: Sequence[str]) -> None:
    """Require that the range of an absolute command and the range of its position have something in common."""
    for index, (name, kind) in enumerate(zip(names, kinds, strict=False)):
        if kind != "absolute":
            continue
        _meet(command, joint, index, index, name)
        if name in AXES:
            _meet(command, workspace, index, AXES.index(name), name)


def _meet(command: Range, position: Range, index: int, place: int, name: str) -> None:
    for low, low_at, high, high_at in ((command, index, position, place), (position, place, command, index)):
        if low.lower and high.upper and low.lower[low_at] > high.upper[high_at]:
            raise SettingsError(
                f"{low.lower_name} and {high.upper_name} leave nothing for {name}: "
                f"at least {low.lower[low_at]:g} and at most {high.upper[high_at]:g}"
            )


def deviation_is_absolute(max_deviation: Sequence[float], names: Sequence[str], kinds: Sequence[str]) -> None:
    """Require that a watched dimension is one that can be compared with where the robot is."""
    for name, kind, value in zip(names, kinds, max_deviation, strict=False):
        if value > 0.0 and kind != "absolute":
            raise SettingsError(
                f"control.max_deviation of {name} must be 0: only an absolute dimension can be compared with where "
                f"the robot is, and {name} is of kind {kind}"
            )


def not_both(sources: Mapping[str, object], what: str) -> None:
    """Require that at most one of two parameters names the same thing."""
    if all(sources.values()):
        raise SettingsError(f"{' and '.join(sources)} both name {what}: give one of them")


def gripper_is_declared(action: Sequence[float], command: Sequence[float]) -> None:
    """Require what the policy's values mean before others are sent in their place."""
    if command and not action:
        raise SettingsError(
            "command.gripper needs action.gripper: set it to the values that open and close the gripper"
        )


def prefetch_is_uncalibrated(prefetch: int, calibration: str) -> None:
    """Refuse to judge a reuse by an answer to another frame."""
    if prefetch and calibration != "off":
        raise SettingsError(
            f"control.prefetch is {prefetch} and gate.calibration {calibration}: an answer to an earlier frame does "
            f"not say whether a reuse was off; set one of them to 0 or off"
        )


def slowest_step_is_answered(max_image_age_s: float, inference_timeout_s: float) -> None:
    """Require that an image may be as old as a step may take: a model that takes long would never move the robot."""
    if 0.0 < max_image_age_s <= inference_timeout_s:
        raise SettingsError(
            f"control.max_image_age_s ({max_image_age_s:g}) must be above control.inference_timeout_s "
            f"({inference_timeout_s:g}), or 0 to answer images of any age: else a step that takes its time is computed "
            f"and never commanded"
        )
