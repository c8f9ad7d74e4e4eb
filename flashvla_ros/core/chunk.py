"""Where in a chunk a step is, and which rows of two chunks speak of the same instants. Pure functions."""

from __future__ import annotations

import numpy as np

from flashvla_ros.core.types import FloatArray


def elapsed_rows(elapsed_s: float, dt_s: float) -> int:
    """Time steps of a chunk that have passed; a clock that jumped back counts as none."""
    return round(elapsed_s / dt_s) if elapsed_s > 0.0 else 0


def replan_row(size: int, replan_after: int) -> int:
    """Row of a chunk [size, D] at which the model is due again: ``gate.replan_after``, or the chunk's end."""
    return min(replan_after or size, size)


def aligned_rows(previous: FloatArray, last: FloatArray, apart: int) -> tuple[FloatArray, FloatArray]:
    """Return the rows of two chunks that speak of the same instants, both [n, D].

    Where there are none, as always with single actions, these are the last row of the one and the first of the other:
    what was done last, and what comes next.

    Args:
        previous: [T, D].
        last: [T', D].
        apart: Time steps from the one plan to the other.
    """
    common = min(len(previous) - apart, len(last))
    if common < 1:
        return previous[-1:], last[:1]
    return previous[apart : apart + common], last[:common]


def in_force(command: FloatArray, elapsed_s: float, dt_s: float) -> FloatArray:
    """Return the row [D] of a command [T, D] that a robot has followed up to `elapsed_s` after it was given."""
    row: FloatArray = command[min(max(elapsed_rows(elapsed_s, dt_s) - 1, 0), len(command) - 1)]
    return row


def remainder(action: FloatArray, age_s: float, dt_s: float) -> FloatArray:
    """Return the chunk [T, D] as it stands `age_s` after its observation: passed rows drop out, the last one repeats.

    With T = 1 this is the action itself. With more it goes on where the robot is in its plan, where a repeated chunk
    of absolute poses would send it back to the first.
    """
    passed = min(elapsed_rows(age_s, dt_s), len(action) - 1)
    return np.concatenate([action[passed:], np.repeat(action[-1:], passed, axis=0)]) if passed else action


def handover(command: FloatArray, held: FloatArray | None) -> FloatArray:
    """Return the change [D] from the row in force to the first of a chunk [T, D]; empty where there is none to tell."""
    if held is None or len(command) == 1:
        return np.empty(0)
    change: FloatArray = np.abs(command[0] - held)
    return change
