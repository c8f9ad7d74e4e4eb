"""Limits from a recording: the range, step and speed that a robot was seen to need, with a margin."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from flashvla_ros.control.limits import UNBOUNDED, limit
from flashvla_ros.core.errors import ActionError
from flashvla_ros.core.settings import LimitsSettings
from flashvla_ros.core.types import ActionKind, ActionSpec, FloatArray

_SLACK = 1e-9
_RIDGE = 1e-6  # of the mean variance: a dimension that never moved has none


@dataclasses.dataclass(frozen=True)
class Proposal:
    """What to write into a parameter file.

    Attributes:
        limits: ``limits.*``.
        step_matrix: W [D * D], row by row, for ``guard.step_matrix``; empty where it was not asked for.
        rows: Commands seen.
        refused: Those of them that the limits would not let pass.
    """

    limits: LimitsSettings
    step_matrix: tuple[float, ...]
    rows: int
    refused: int

    def values(self) -> dict[str, dict[str, Any]]:
        """Return the parameters by group, as a parameter file has them; what sets no limit is left out."""
        named = ("lower", "upper", "max_step", "joint_velocity")
        given = {name: list(getattr(self.limits, name)) for name in named if getattr(self.limits, name)}
        return {"limits": given} | ({"guard": {"step_matrix": list(self.step_matrix)}} if self.step_matrix else {})


def propose(
    runs: Sequence[FloatArray], spec: ActionSpec, quantile: float, margin: float, *, matrix: bool = False
) -> Proposal:
    """Propose limits from runs [n, D] of commands that followed each other.

    Args:
        runs: Commands in the units that the limits are to have.
        spec: What their dimensions mean.
        quantile: Share of the commands, and of the steps, that is to pass in each dimension before the margin.
        margin: Widens a range by this share of its width at both ends, a step by this share of itself.
        matrix: Propose a bound of the step's Mahalanobis distance too.
    """
    rows = np.concatenate(list(runs))
    steps = np.concatenate([_steps(run, spec) for run in runs])
    moving = np.array([kind in (ActionKind.DELTA, ActionKind.VELOCITY) for kind in spec.kinds])
    lower, upper = np.quantile(rows, (1.0 - quantile, quantile), axis=0)
    lower, upper = np.where(moving, np.minimum(lower, 0.0), lower), np.where(moving, np.maximum(upper, 0.0), upper)
    width = margin * (upper - lower)
    for index in spec.quaternion:
        lower[index], upper[index], width[index] = -1.0, 1.0, 0.0  # a rotation has no range of its own
    step = np.quantile(np.abs(steps), quantile, axis=0) * (1.0 + margin)
    absolute = np.array([kind is ActionKind.ABSOLUTE for kind in spec.kinds])
    joints = np.array([name in spec.joints for name in spec.names]) & absolute
    limits = LimitsSettings(
        lower=_rounded(lower - width, -1.0),
        upper=_rounded(upper + width, 1.0),
        max_step=_rounded(step, 1.0),
        joint_velocity=_rounded(np.where(joints, step / spec.dt_s, UNBOUNDED), 1.0) if joints.any() else (),
    )
    whitening = step_matrix(steps, quantile, margin) if matrix else np.empty((0, 0))
    refused = sum(_refused(run, limits, spec, whitening) for run in runs)
    return Proposal(limits, tuple(float(value) for value in whitening.ravel()), len(rows), refused)


def step_matrix(steps: FloatArray, quantile: float, margin: float) -> FloatArray:
    """Return W [D, D] with |W s| at most 1 for this share of the steps [n, D], before the margin."""
    whitening = whitened(steps)
    lengths = np.linalg.norm(steps @ whitening.T, axis=1)
    return whitening / max(float(np.quantile(lengths, quantile)) * (1.0 + margin), _SLACK)


def whitened(values: FloatArray) -> FloatArray:
    """Return W [D, D] with |W v| the Mahalanobis distance of v from 0, by the covariance of the values [n, D]."""
    covariance = np.atleast_2d(np.cov(values.T))
    size = len(covariance)
    covariance = covariance + (_RIDGE * max(float(np.trace(covariance)) / size, _SLACK)) * np.eye(size)
    return np.linalg.cholesky(np.linalg.inv(covariance)).T


def _steps(run: FloatArray, spec: ActionSpec) -> FloatArray:
    """Return the steps of a run; what moves starts from 0, and where the others started is unknown."""
    first = np.where([kind in (ActionKind.DELTA, ActionKind.VELOCITY) for kind in spec.kinds], 0.0, run[0])
    return np.diff(run, axis=0, prepend=first[np.newaxis])


def _refused(run: FloatArray, limits: LimitsSettings, spec: ActionSpec, whitening: FloatArray) -> int:
    steps = _steps(run, spec)
    refused = np.linalg.norm(steps @ whitening.T, axis=1) > 1.0 + _SLACK if whitening.size else np.zeros(len(run), bool)
    for index, (row, step) in enumerate(zip(run, steps, strict=True)):
        try:
            inside, _ = limit(row[np.newaxis], row - step, limits, spec)
        except ActionError:
            refused[index] = True
        else:
            refused[index] |= bool((np.abs(inside[0] - row) > _SLACK * np.maximum(np.abs(row), 1.0)).any())
    return int(refused.sum())


def _rounded(values: FloatArray, outwards: float) -> tuple[float, ...]:
    """Round to five digits: a bound that was just kept must not become narrower."""
    return tuple(float(f"{value + outwards * 1e-4 * abs(value):.5g}") for value in values)
