"""The mean of what several chunks say of the same instants: temporal ensembling, in UniVLA's closed form.

a(t) = Σ wᵢ c_{t-i}[i] / Σ wᵢ with wᵢ = exp(-decay · i): the chunk planned i time steps ago says row i of this instant,
and the newest counts most (arXiv 2505.06111; equal to the buffer of its code).
"""

from __future__ import annotations

import numpy as np

from flashvla_ros.control.limits import TURN
from flashvla_ros.core.chunk import elapsed_rows
from flashvla_ros.core.settings import Settings
from flashvla_ros.core.types import ActionSpec, FloatArray
from flashvla_ros.gate.memory import GateInput, GateMemory

Plan = tuple[float, FloatArray]  # stamp of an observation, and the chunk [T, D] that answered it
Plans = tuple[Plan, ...]  # oldest first


def lasting(plans: Plans, now_s: float, dt_s: float) -> Plans:
    """Return the plans that say anything of `now_s` or later."""
    return tuple(plan for plan in plans if elapsed_rows(now_s - plan[0], dt_s) < len(plan[1]))


def renewed(
    plans: Plans, plan: Plan | None, memory: GateMemory, current: GateInput, settings: Settings, dt_s: float
) -> Plans:
    """Return the plans to blend at a step, with the `plan` that begins, where one does; none unless asked for.

    `plans` and `memory` are of the step before; plans of another run are forgotten with the memory.
    """
    if settings.control.blend == "none":
        return ()
    interrupted = memory.interrupted_by(current, settings.gate.stale_gap_s) is not None
    left = () if interrupted else lasting(plans, current.stamp_s, dt_s)
    return left if plan is None else (*left, plan)


def blended(plans: Plans, now_s: float, spec: ActionSpec, decay: float) -> FloatArray:
    """Return the chunk [T, D] from `now_s` on as long as the newest plan lasts, and then its last row.

    Args:
        plans: At least one, and the newest one says something of `now_s`.
        now_s: Stamp of the observation in hand.
        spec: Angles and quaternions are brought to the newest plan's turn and sign first.
        decay: Of the weight, for each time step of age.
    """
    passed = [elapsed_rows(now_s - stamp_s, spec.dt_s) for stamp_s, _ in plans]
    newest = plans[-1][1][passed[-1] :]
    weights = np.zeros((len(newest), len(plans)))
    said = np.zeros((len(newest), len(plans), spec.size))
    for index, (gone, (_, chunk)) in enumerate(zip(passed, plans, strict=True)):
        rows = _turned(chunk[gone : gone + len(newest)], newest, spec)
        said[: len(rows), index] = rows
        weights[: len(rows), index] = np.exp(-decay * (gone - passed[-1]))
    weights /= weights.sum(axis=1, keepdims=True)
    mean: FloatArray = (said * weights[:, :, None]).sum(axis=1)
    return np.concatenate([mean, np.repeat(mean[-1:], passed[-1], axis=0)])


def _turned(rows: FloatArray, newest: FloatArray, spec: ActionSpec) -> FloatArray:
    """Rows [n, D] with their rotations as near as they can be written to those of the newest plan [m ≥ n, D]."""
    if not spec.angles and not spec.quaternion:
        return rows
    rows, newest = rows.copy(), newest[: len(rows)]
    rows[:, spec.angles] += TURN * np.round((newest[:, spec.angles] - rows[:, spec.angles]) / TURN)
    if columns := spec.quaternion:
        away = (rows[:, columns] * newest[:, columns]).sum(axis=1) < 0.0
        rows[np.ix_(away, columns)] *= -1.0
    return rows
