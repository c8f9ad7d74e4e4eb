"""How much of the policy's motion is commanded: the speed scale, its ramp, and rotations that go the short way."""

from __future__ import annotations

import numpy as np

from flashvla_ros.control.limits import bounds_of
from flashvla_ros.core.errors import ActionError
from flashvla_ros.core.settings import ControlSettings, LimitsSettings
from flashvla_ros.core.types import ActionKind, ActionSpec, FloatArray


def ramped(scale: float, resting: bool, elapsed_s: float, control: ControlSettings) -> float:
    """Return the speed scale in force, in [0, 1].

    It rises by 1 in ``control.ramp_s``, from 0 where the robot rested, and falls at once.

    Args:
        scale: In force at the step before.
        resting: The robot has not been commanded since a start, a stop or a reset.
        elapsed_s: Between the observations of the two steps. A gap longer than the camera's time-out, or a clock that
            jumps, must not end the ramp: no more than the time-out counts.
        control: ``speed_scale``, ``ramp_s``, ``image_timeout_s``.
    """
    if control.ramp_s <= 0.0:
        return control.speed_scale
    if resting:
        return 0.0
    counted_s = min(max(elapsed_s, 0.0), control.image_timeout_s)
    return min(control.speed_scale, scale + counted_s / control.ramp_s)


def slowed(reference: FloatArray, before: float, scale: float, spec: ActionSpec) -> FloatArray:
    """Return the reference [D] of the step limits after a scale has fallen from `before` to `scale`.

    Its deltas and velocities fall with the scale: a step limit must not keep a robot moving that is to be slower.
    """
    if scale >= before:
        return reference
    moving = [kind in (ActionKind.DELTA, ActionKind.VELOCITY) for kind in spec.kinds]
    return np.where(moving, reference * (scale / before), reference)


def oriented(action: FloatArray, reference: FloatArray, spec: ActionSpec) -> FloatArray:
    """Return an action [T, D] whose quaternions have length 1 and the sign that is nearer to the one before them.

    A quaternion and its negative are the same rotation, but halfway between them lies none.

    Raises:
        ActionError: A quaternion is too short to be a rotation.
    """
    columns = spec.quaternion
    if not columns:
        return action
    turned, before = action.copy(), reference[columns]
    for row in turned:
        length = float(np.linalg.norm(row[columns]))
        if length < 0.1:
            raise ActionError(f"the policy's qx, qy, qz, qw has length {length:.3g}, which is no rotation")
        row[columns] /= length
        if not np.isnan(before).any() and float(row[columns] @ before) < 0.0:
            row[columns] *= -1.0
        before = row[columns]
    return turned


def scaled(
    action: FloatArray, reference: FloatArray, scale: float, limits: LimitsSettings, spec: ActionSpec
) -> FloatArray:
    """Return an action [T, D] slowed down: at 1 it is the action itself, at 0 nothing but a gripper moves.

    Deltas and velocities are multiplied. An absolute dimension goes that share of the way from row to row, starting
    from the reference.

    Args:
        action: [T, D] finite.
        reference: [D] the command in force, or where the robot rests; NaN where it is unknown.
        scale: In [0, 1].
        limits: The reference must lie inside them, or the limits themselves would move the robot.
        spec: What the dimensions mean.

    Raises:
        ActionError: An absolute dimension has no known start, or one outside the limits.
    """
    if scale == 1.0:
        return action
    slow, absolute = action.copy(), []
    for index, kind in enumerate(spec.kinds):
        if kind is ActionKind.ABSOLUTE:
            absolute.append(index)
        elif kind is not ActionKind.GRIPPER:
            slow[:, index] *= scale
    if absolute:
        _go_part_of_the_way(slow, absolute, reference, scale, limits, spec)
    return slow


def _go_part_of_the_way(
    slow: FloatArray, absolute: list[int], reference: FloatArray, scale: float, limits: LimitsSettings, spec: ActionSpec
) -> None:
    bounds = bounds_of(limits, spec)
    unknown = [spec.names[index] for index in absolute if np.isnan(reference[index])]
    if unknown:
        raise ActionError(
            f"where {unknown} are is unknown, so they cannot be moved slowly: publish joint_states or "
            f"end_effector_pose, or set control.speed_scale to 1 and control.ramp_s to 0"
        )
    start = bounds.inside(reference)
    moved = bounds.nearest_turn(start, reference) - reference
    outside = [index for index in absolute if abs(moved[index]) > 1e-9]
    if outside:
        where = ", ".join(
            f"{spec.names[i]} at {reference[i]:g} (limits {bounds.lower[i]:g} to {bounds.upper[i]:g})" for i in outside
        )
        raise ActionError(
            f"the robot is outside its limits and would not be brought back slowly: {where}: move it inside, or "
            f"widen the limits"
        )
    before = start
    with np.errstate(over="ignore", invalid="ignore"):
        for row in slow:
            target = bounds.nearest_turn(row, before)
            row[absolute] = (before + scale * (target - before))[absolute]
            before = row
