"""What may not become a command, an action that is not finite or of another size; and how to stop.

Pure functions; what was commanded before is the caller's state.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flashvla_ros.core.errors import ActionError
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
