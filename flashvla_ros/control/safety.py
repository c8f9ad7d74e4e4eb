"""The last word before a command leaves: finite, of the declared size, inside its limits; and how to stop.

Pure functions; what was commanded before is the caller's state.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from flashvla_ros.core.errors import ActionError
from flashvla_ros.core.settings import LimitsSettings
from flashvla_ros.core.types import ActionKind, ActionSpec, FloatArray, Inference

_MOTION = (ActionKind.DELTA, ActionKind.VELOCITY)


def check_size(size: int, spec: ActionSpec) -> None:
    """Refuse a policy whose action has another number of dimensions than `spec` declares.

    Raises:
        ActionError: Names both sizes.
    """
    if size != spec.size:
        raise ActionError(
            f"the policy's action has {size} dimensions but action.names declares {spec.size} {list(spec.names)}: "
            f"set action.names and action.kinds to what the checkpoint was trained on"
        )


def check(inference: Inference, spec: ActionSpec) -> None:
    """Refuse an action that is not [T ≥ 1, D] or not finite.

    Raises:
        ActionError: Names the size or the dimensions that are wrong.
    """
    for name, values in (("action", inference.action), ("normalised action", inference.normalized)):
        if values.ndim != 2 or len(values) == 0 or values.shape[1] != spec.size:
            raise ActionError(
                f"the policy's {name} has shape {list(values.shape)}, but action.names declares {spec.size} "
                f"dimensions {list(spec.names)}: expected [T, {spec.size}]"
            )
        bad = np.flatnonzero(~np.isfinite(values).all(axis=0))
        if bad.size:
            culprits = [spec.names[index] for index in bad]
            raise ActionError(f"the policy's {name} is not finite in {culprits}: the command is withheld")


def limit(action: FloatArray, reference: FloatArray, limits: LimitsSettings) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Clamp an action to its range and to the greatest change from one time step to the next.

    The range has the last word: a reference outside it, after the range was narrowed, counts as its nearest bound.

    Args:
        action: [T, D] finite.
        reference: [D] the command in force before it; NaN where it is unknown, which allows any first step.
        limits: Bounds; an empty tuple sets none.

    Returns:
        The command [T, D], and where it differs from the action, bool [T, D].
    """
    lower = np.asarray(limits.lower) if limits.lower else np.full(action.shape[1], -np.inf)
    upper = np.asarray(limits.upper) if limits.upper else np.full(action.shape[1], np.inf)
    command = np.clip(action, lower, upper)
    if limits.max_step:
        step = np.asarray(limits.max_step)
        before = np.clip(reference, lower, upper)
        for row in command:
            known = ~np.isnan(before)
            row[known] = np.clip(row, before - step, before + step)[known]
            before = row
    return command, command != action


def resting(spec: ActionSpec, held: FloatArray | None, positions: Mapping[str, float]) -> FloatArray:
    """Return the command [D] that a robot at rest is taken to be following; NaN where nobody knows.

    Deltas and velocities are 0. An absolute dimension is where the robot reports the joint of that name, or else what
    it was last told (`held`); a gripper is what it was last told.
    """
    command = np.full(spec.size, np.nan) if held is None else held.astype(np.float64)
    for index, (name, kind) in enumerate(zip(spec.names, spec.kinds, strict=True)):
        if kind in _MOTION:
            command[index] = 0.0
        elif kind is ActionKind.ABSOLUTE and name in positions:
            command[index] = positions[name]
    return command


def stop_command(
    stop_action: str, spec: ActionSpec, held: FloatArray | None, positions: Mapping[str, float]
) -> FloatArray | None:
    """Return the command [1, D] that stops the robot, or None where silence does.

    No stop action moves the robot: zero for an absolute dimension would slam it to its origin, and a repeated delta
    or velocity would move it on. ``zero`` keeps absolute dimensions where they were measured, ``hold`` at their last
    target. A robot that was never commanded is left alone.

    Args:
        stop_action: ``zero``, ``hold`` or ``none``.
        spec: Kinds of the dimensions.
        held: [D] the last command that was published; None before the first.
        positions: Joint name to measured position, where the robot publishes it.
    """
    if stop_action == "none" or held is None:
        return None
    return resting(spec, held, positions if stop_action == "zero" else {})[np.newaxis]
