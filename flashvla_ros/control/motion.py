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
    from the reference. One that starts outside its limits goes back into them, at any scale.

    Args:
        action: [T, D] finite.
        reference: [D] the command in force, or where the robot rests; NaN where it is unknown.
        scale: In [0, 1].
        limits: Where the robot may be.
        spec: What the dimensions mean.

    Raises:
        ActionError: An absolute dimension has no known start.
    """
    bounds = bounds_of(limits, spec)
    start = bounds.start(reference)
    left = bounds.left(start)
    if left.any():
        action = np.where(left, bounds.inside(action), action)
    if scale == 1.0:
        return action
    unknown = [name for name, gone in zip(spec.names, bounds.absolute & np.isnan(reference), strict=True) if gone]
    if unknown:
        raise ActionError(
            f"where {unknown} are is unknown, so they cannot be moved slowly: publish joint_states or "
            f"end_effector_pose, or set control.speed_scale to 1 and control.ramp_s to 0"
        )
    moving = np.array([kind in (ActionKind.DELTA, ActionKind.VELOCITY) for kind in spec.kinds])
    slow = np.where(moving, action * scale, action)
    before = start
    with np.errstate(over="ignore", invalid="ignore"):
        for row in slow:
            target = np.where(bounds.left(before), row, bounds.nearest_turn(row, before))
            row[:] = np.where(bounds.absolute, before + scale * (target - before), row)
            before = row
    return slow
