"""Bounds of a command: its range, its step, and where it takes the robot. Pure functions."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from flashvla_ros.core.errors import ActionError
from flashvla_ros.core.settings import LimitsSettings
from flashvla_ros.core.types import POSE_NAMES, POSITION_NAMES, ActionKind, ActionSpec, FloatArray

TURN = 2.0 * math.pi
UNBOUNDED = 1e9  # a parameter must be finite: from here on limits.joint_* set no bound
_NOWHERE: Mapping[str, float] = {}


@dataclasses.dataclass(frozen=True, eq=False)
class CommandBounds:
    """What ``limits.*`` mean for each of the D dimensions of an action; infinite where nothing is bounded.

    Attributes:
        lower: [D] least value of a command.
        upper: [D] greatest value of a command.
        step: [D] greatest change between two rows.
        speed: [D] greatest change in a second, of absolute dimensions.
        place_lower: [D] least position of a delta's or velocity's dimension.
        place_upper: [D] greatest position of one.
        confined: Dimensions with such a position.
        angles: Dimensions that are the same after a whole turn.
        absolute: [D] whether a dimension says where to be.
    """

    lower: FloatArray
    upper: FloatArray
    step: FloatArray
    speed: FloatArray
    place_lower: FloatArray
    place_upper: FloatArray
    confined: tuple[int, ...]
    angles: tuple[int, ...]
    absolute: NDArray[np.bool_]

    def inside(self, values: FloatArray) -> FloatArray:
        """Return values [D] or [T, D] at the nearest point of the range; an angle is turned into it where that helps.

        NaN stays.
        """
        return np.clip(self._turned(values), self.lower, self.upper)

    def start(self, reference: FloatArray) -> FloatArray:
        """Return where steps [D] count from: the nearest bound, but for an absolute dimension where it really is."""
        return np.where(self.absolute, self._turned(reference), self.inside(reference))

    def left(self, start: FloatArray) -> NDArray[np.bool_]:
        """Return which absolute dimensions are outside their range, [D]; an unknown one is not."""
        return self.absolute & ((start < self.lower) | (start > self.upper))

    def _turned(self, values: FloatArray) -> FloatArray:
        moved = values.copy()
        for index in self.angles:
            low, high, column = self.lower[index], self.upper[index], moved[..., index]
            outside = (column < low) | (column > high)
            if outside.any():
                turned = column - TURN * np.round((column - (low + high) / 2.0) / TURN)
                fits = outside & (turned >= low) & (turned <= high)
                moved[..., index] = np.where(fits, turned, column)
        return moved

    def nearest_turn(self, target: FloatArray, before: FloatArray) -> FloatArray:
        """Return a target [D] with its angles within half a turn of `before` [D], where that is known."""
        turned = target.copy()
        for index in self.angles:
            if not math.isnan(before[index]):
                turned[index] += TURN * np.round((before[index] - target[index]) / TURN)
        return turned


@functools.lru_cache(maxsize=64)
def bounds_of(limits: LimitsSettings, spec: ActionSpec) -> CommandBounds:
    """Return what the parameters mean for an action."""
    size = spec.size

    def array(values: tuple[float, ...], otherwise: float) -> FloatArray:
        given = np.array(values, dtype=np.float64) if values else np.full(size, otherwise)
        return np.where(np.abs(given) < UNBOUNDED, given, otherwise)

    lower, upper = array(limits.lower, -np.inf), array(limits.upper, np.inf)
    place_lower, place_upper = array(limits.joint_lower, -np.inf), array(limits.joint_upper, np.inf)
    velocity, speed = array(limits.joint_velocity, np.inf), np.full(size, np.inf)
    for axis, name in enumerate(POSITION_NAMES):
        if name in spec.names:
            index = spec.names.index(name)
            if limits.workspace_lower:
                place_lower[index] = max(place_lower[index], limits.workspace_lower[axis])
            if limits.workspace_upper:
                place_upper[index] = min(place_upper[index], limits.workspace_upper[axis])
    confined = []
    for index, kind in enumerate(spec.kinds):
        if kind is ActionKind.ABSOLUTE:
            lower[index], upper[index] = max(lower[index], place_lower[index]), min(upper[index], place_upper[index])
            speed[index] = velocity[index]
        elif kind is not ActionKind.GRIPPER:
            most = velocity[index] * (spec.dt_s if kind is ActionKind.DELTA else 1.0)
            lower[index], upper[index] = max(lower[index], -most), min(upper[index], most)
            if np.isfinite(place_lower[index]) or np.isfinite(place_upper[index]):
                confined.append(index)
    return CommandBounds(
        lower,
        upper,
        array(limits.max_step, np.inf),
        speed,
        place_lower,
        place_upper,
        tuple(confined),
        tuple(spec.angles),
        np.array([kind is ActionKind.ABSOLUTE for kind in spec.kinds]),
    )


def unlimited(limits: LimitsSettings, spec: ActionSpec) -> list[str]:
    """Return the dimensions, but for grippers, of which neither the command nor where it leads to is bounded."""
    bounds = bounds_of(limits, spec)
    lower, upper = np.maximum(bounds.lower, bounds.place_lower), np.minimum(bounds.upper, bounds.place_upper)
    free = ~(np.isfinite(lower) & np.isfinite(upper))
    kinds = zip(spec.names, spec.kinds, free, strict=True)
    return [name for name, kind, is_free in kinds if is_free and kind is not ActionKind.GRIPPER]


def limit(
    action: FloatArray,
    reference: FloatArray,
    limits: LimitsSettings,
    spec: ActionSpec,
    *,
    positions: Mapping[str, float] = _NOWHERE,
    elapsed_s: float = 0.0,
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Clamp an action to its range, to the greatest change from one time step to the next, and to the robot's space.

    The range of a delta, velocity or gripper has the last word over the step: a reference outside it, after the range
    was narrowed, counts as its nearest bound. An absolute dimension whose reference is outside, because the robot is
    there, comes back no faster than its step, its speed and the action allow, and goes no further out. Where a delta
    or velocity leads is the measured position plus everything commanded since; a robot that is outside its space may
    only move back into it.

    Args:
        action: [T, D] finite.
        reference: [D] the command in force before it; NaN where it is unknown, which allows any first step.
        limits: Bounds; an empty tuple sets none.
        spec: What the dimensions mean.
        positions: Where the robot is, by the name of a dimension.
        elapsed_s: Time since the reference was commanded, for speeds; 0 where the robot rested.

    Returns:
        The command [T, D], and where it differs from the action, bool [T, D].

    Raises:
        ActionError: The robot's space is bounded, and where the robot is is unknown; or nothing finite is left.
    """
    bounds = bounds_of(limits, spec)
    command, start = bounds.inside(action), bounds.start(reference)
    if np.isfinite(bounds.step).any() or np.isfinite(bounds.speed).any() or bounds.left(start).any():
        spans_s = np.full(len(command), spec.dt_s)
        if elapsed_s > 0.0:
            spans_s[0] = min(elapsed_s, spec.dt_s)
        _keep_step(command, action, start, bounds, spans_s)
    for index in bounds.confined:
        _confine(command[:, index], index, bounds, spec, positions)
    _check(command, spec)
    return command, command != action


def _keep_step(
    command: FloatArray, action: FloatArray, start: FloatArray, bounds: CommandBounds, spans_s: FloatArray
) -> None:
    """Shorten the rows of a command [T, D], an action's nearest points of the range, to the steps that they may take.

    They are changed in place. The first row counts from `start` [D], NaN where that is unknown; `spans_s` [T] is the
    time from the row before.
    """
    before = start
    for row, asked, span_s in zip(command, action, spans_s, strict=True):
        step = np.minimum(bounds.step, bounds.speed * span_s)
        left, known = bounds.left(before), ~np.isnan(before)
        # On its way back into the range a slowed action stops short of it.
        slow = left & (np.minimum(before, row) <= asked) & (asked <= np.maximum(before, row))
        with np.errstate(over="ignore"):
            target = np.where(left, np.where(slow, asked, row), bounds.nearest_turn(row, before))
            reached = np.clip(target, before - step, before + step)
        row[:] = np.where(left, reached, np.where(known & (reached != target), bounds.inside(reached), row))
        before = row


def _confine(
    column: FloatArray, index: int, bounds: CommandBounds, spec: ActionSpec, positions: Mapping[str, float]
) -> None:
    """Shorten the deltas or velocities [T] of one dimension so that they do not lead out of its space."""
    name = spec.names[index]
    if name not in positions:
        raise ActionError(_unknown(name, positions))
    place, span = positions[name], 1.0 if spec.kinds[index] is ActionKind.DELTA else spec.dt_s
    for row, value in enumerate(column):
        low, high = min(bounds.place_lower[index], place), max(bounds.place_upper[index], place)
        wanted = place + value * span
        reached = min(max(wanted, low), high)
        if reached != wanted:
            column[row] = (reached - place) / span
        place = reached


def _unknown(name: str, positions: Mapping[str, float]) -> str:
    if name in POSE_NAMES:
        return (
            f"limits.workspace_* bound {name}, but where the end effector is is unknown: publish its pose in "
            f"command.frame_id on end_effector_pose, at least once in control.state_timeout_s"
        )
    return (
        f"limits.joint_* bound {name!r}, but joint_states does not report it (it reports {sorted(positions)}): "
        f"the robot is not moved where its limits cannot be kept"
    )


def _check(command: FloatArray, spec: ActionSpec) -> None:
    if not np.isfinite(command).all():
        raise ActionError(
            f"the command is not finite: the policy's action {list(spec.names)} is too large to be scaled"
        )
    if spec.quaternion and np.linalg.norm(command[:, spec.quaternion], axis=1).min() < 0.1:
        raise ActionError("limits.* leave no rotation of qx, qy, qz, qw: give them a range of -1 to 1")
