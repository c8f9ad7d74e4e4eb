"""One number for each step: how permissive the gate must be to reuse there. Smaller looks safer.

The thresholds lie on one path. At permissiveness λ, from 0 (never) to 1 (the most permissive that is allowed),

    δ(λ) = 1 - λ (1 - δ_min)     ε₁(λ) = ε_max √λ

and the k-th reuse in a row is judged at λ - AGEING (k - 1), as it is off more often. The path is nested: what is reused
at λ is reused at every greater one, so that a step has one least λ, its *need*.

Where ``calibration.score`` holds weights, the path is another: the need is the square root of the risk that a logistic
model over :data:`SIGNS` predicts, all known before the model runs. The age of a reuse is one of them. A wrong score
costs reuse, and not the bound of :mod:`.calibration`, which holds for any path. With ``calibration.learning`` the
weights move on from there, or from nothing, by every step whose outcome is seen.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np

from flashvla_ros.core.reasons import Reason
from flashvla_ros.core.settings import CalibrationSettings, GateSettings, Settings
from flashvla_ros.core.types import FloatArray
from flashvla_ros.gate.decision import FreshComparison, GateMeasurements
from flashvla_ros.gate.memory import GateMemory

AGEING = 0.3  # the risk of the second reuse in a row is 1.4 to 1.7 times the first one's
NEVER = math.inf  # the need of a step that no λ reuses
SIGNS = ("confidence", "trend", "size", "angle", "overlap", "scene", "age")
_LEAST = 1e-3  # confidence that counts as none
# Middle and spread of the signs on the demo policies, so that one rate fits them all; the constant stands behind them.
_MIDDLE: FloatArray = np.array([-3.5, 0.0, 1.1, 1.2, 0.8, 1.0, 1.1, 0.0])
_SPREAD: FloatArray = np.array([0.7, 0.05, 0.4, 1.2, 0.1, 0.4, 0.3, 1.0])
_COLD = (0.0,) * len(SIGNS) + (-1.4,)  # a reuse in five is off, whatever it looks like
_PRIOR, _MEMORY = 5.0, 0.999  # seen steps that the start is worth; how much of its weight each keeps
UNLEARNT: FloatArray = np.zeros((2, len(SIGNS) + 1))


@functools.lru_cache(maxsize=16)
def most_permissive(gate: GateSettings, allowed: CalibrationSettings) -> GateSettings:
    """Return `gate` with the thresholds of λ = 1."""
    return dataclasses.replace(
        gate,
        delta=allowed.min_delta,
        max_angle_deg=allowed.max_angle_deg,
        max_reuse=allowed.max_reuse,
    )


def thresholds(permissiveness: float, gate: GateSettings, allowed: CalibrationSettings) -> GateSettings:
    """Return `gate` with the thresholds of a first reuse at λ, and the cap on reuses that λ leaves.

    Where a learnt score judges in their place, they are those of λ = 1.
    """
    if scored(allowed):
        return most_permissive(gate, allowed)
    level = min(max(permissiveness, 0.0), 1.0)
    return dataclasses.replace(
        gate,
        delta=1.0 - level * (1.0 - allowed.min_delta),
        max_angle_deg=allowed.max_angle_deg * math.sqrt(level),
        max_reuse=cap_of(level, allowed),
    )


def cap_of(level: float, allowed: CalibrationSettings) -> int:
    """Return how many steps in a row λ may reuse at most."""
    return min(1 + int(level / AGEING), allowed.max_reuse) if level > 0.0 else 0


def need(comparison: FreshComparison, skipped: int, settings: Settings) -> float:
    """Return the least λ that reuses at a step which the most permissive thresholds would reuse."""
    return max(_overlap_need(comparison, settings), _angle_need(comparison, settings)) + AGEING * skipped


def angle_decides(comparison: FreshComparison, settings: Settings) -> bool:
    """Whether the angle asks for more permissiveness than the overlap does."""
    return _angle_need(comparison, settings) > _overlap_need(comparison, settings)


def _overlap_need(comparison: FreshComparison, settings: Settings) -> float:
    if comparison.incomparable is Reason.NO_TOKEN_SETS:  # gate.tokenless_angle_deg has let it pass without
        return 0.0
    span = 1.0 - settings.calibration.min_delta
    return max(1.0 - comparison.corrected_overlap, 0.0) / span if span > 0.0 else 0.0


def _angle_need(comparison: FreshComparison, settings: Settings) -> float:
    if comparison.either_small and settings.gate.mode == "guarded":  # a guard has compared the difference in its place
        return 0.0
    return (comparison.angle_deg / settings.calibration.max_angle_deg) ** 2


def signs(memory: GateMemory, measured: GateMeasurements) -> FloatArray:
    """Return what predicts that a reuse will be off, one number for each of :data:`SIGNS`; finite.

    They are the logarithm of the last fresh action's confidence and how it has changed, the size of its motion, α and
    φ′, the mean change of the frame since, and the age in time steps; 0 where there are no two fresh results.
    """
    last, previous, comparison = memory.last, memory.previous, measured.comparison
    if last is None or previous is None:
        return np.zeros(len(SIGNS))
    confidence, before = (_known(result.confidence, 0.0) for result in (last, previous))
    return np.array(
        [
            math.log(confidence + _LEAST),
            confidence - before,
            math.sqrt(float(np.square(last.motion).sum()) / len(last.motion)),
            math.log1p(_known(comparison.angle_deg, 180.0)),
            _known(comparison.corrected_overlap, 0.0),
            math.log1p(_known(measured.scene.mean, 255.0)),
            math.log1p(max(_known(measured.age_s / last.dt_s, 0.0), 0.0)),
        ]
    )


def scored(allowed: CalibrationSettings) -> bool:
    """Whether a score judges in the place of the thresholds."""
    return bool(allowed.score) or allowed.learning > 0.0


def predicted_risk(found: FloatArray, allowed: CalibrationSettings, learnt: FloatArray = UNLEARNT) -> float:
    """Return the probability that a reuse with these signs [S] is off.

    Args:
        found: The signs.
        allowed: Its score, of which the last weight is the constant, and whether that learns.
        learnt: [2, S + 1] see :func:`updated`.
    """
    weights = allowed.score or _COLD
    logit = float(found @ np.asarray(weights[:-1])) + weights[-1]
    if allowed.learning > 0.0:
        logit += float(learnt[0] @ _scaled(found))
    return 1.0 / (1.0 + math.exp(-min(max(logit, -60.0), 60.0)))


def updated(learnt: FloatArray, found: FloatArray, risk: float, off: bool, weight: float, rate: float) -> FloatArray:
    """Return what is learnt once a step's outcome is seen: a step of logistic regression, each weight at its own pace.

    Args:
        learnt: [2, S + 1] what is added to the weights of the scaled signs, and how much each of them has seen.
        found: Signs of the step.
        risk: That was predicted.
        off: Whether its reuse was off, or would have been.
        weight: Of the step: 1 over the chance that its outcome is seen.
        rate: ``calibration.learning``.
    """
    added, seen = learnt
    scaled = _scaled(found)
    seen = _MEMORY * seen + weight * risk * (1.0 - risk) * scaled**2
    added = added - rate * weight * (risk - off) * scaled / (_PRIOR + seen)
    return np.stack([added, seen])


def _scaled(found: FloatArray) -> FloatArray:
    scaled: FloatArray = np.clip((np.append(found, 1.0) - _MIDDLE) / _SPREAD, -4.0, 4.0)
    return scaled


def _known(value: float, otherwise: float) -> float:
    return value if math.isfinite(value) else otherwise
