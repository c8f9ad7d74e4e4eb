"""One number for each step: how permissive the gate must be to reuse there. Smaller looks safer.

The thresholds lie on one path. At permissiveness λ, from 0 (never) to 1 (the most permissive that is allowed),

    δ(λ) = 1 - λ (1 - δ_min)     ε₁(λ) = ε_max √λ

and the k-th reuse in a row is judged at λ - AGEING (k - 1), as it is off more often. The path is nested: what is reused
at λ is reused at every greater one, so that a step has one least λ, its *need*.
"""

from __future__ import annotations

import dataclasses
import functools
import math

from flashvla_ros.core.reasons import Reason
from flashvla_ros.core.settings import CalibrationSettings, GateSettings
from flashvla_ros.gate.decision import FreshComparison

AGEING = 0.3  # the risk of the second reuse in a row is 1.4 to 1.7 times the first one's
NEVER = math.inf  # the need of a step that no λ reuses


@functools.lru_cache(maxsize=16)
def most_permissive(gate: GateSettings, allowed: CalibrationSettings) -> GateSettings:
    """Return `gate` with the thresholds of λ = 1."""
    return dataclasses.replace(
        gate,
        delta=allowed.min_delta,
        max_angle_deg=allowed.max_angle_deg,
        tokenless_angle_deg=min(gate.tokenless_angle_deg, allowed.max_angle_deg),
        max_reuse=allowed.max_reuse,
    )


def thresholds(permissiveness: float, gate: GateSettings, allowed: CalibrationSettings) -> GateSettings:
    """Return `gate` with the thresholds of a first reuse at λ, and the cap on reuses that λ leaves."""
    level = min(max(permissiveness, 0.0), 1.0)
    angle_deg = allowed.max_angle_deg * math.sqrt(level)
    return dataclasses.replace(
        gate,
        delta=1.0 - level * (1.0 - allowed.min_delta),
        max_angle_deg=angle_deg,
        tokenless_angle_deg=min(gate.tokenless_angle_deg, angle_deg),
        max_reuse=cap_of(level, allowed),
    )


def cap_of(level: float, allowed: CalibrationSettings) -> int:
    """Return how many steps in a row λ may reuse at most."""
    return min(1 + int(level / AGEING), allowed.max_reuse) if level > 0.0 else 0


def need(comparison: FreshComparison, reused_in_a_row: int, allowed: CalibrationSettings) -> float:
    """Return the least λ that reuses at a step which the most permissive thresholds would reuse.

    Args:
        comparison: The last two fresh results, compared.
        reused_in_a_row: Reused steps since the last fresh one.
        allowed: The most permissive thresholds.
    """
    return max(_overlap_need(comparison, allowed), _angle_need(comparison, allowed)) + AGEING * reused_in_a_row


def angle_decides(comparison: FreshComparison, allowed: CalibrationSettings) -> bool:
    """Whether the angle asks for more permissiveness than the overlap does."""
    return _angle_need(comparison, allowed) > _overlap_need(comparison, allowed)


def _overlap_need(comparison: FreshComparison, allowed: CalibrationSettings) -> float:
    if comparison.incomparable is Reason.NO_TOKEN_SETS:  # gate.tokenless_angle_deg has let it pass without
        return 0.0
    span = 1.0 - allowed.min_delta
    return max(1.0 - comparison.corrected_overlap, 0.0) / span if span > 0.0 else 0.0


def _angle_need(comparison: FreshComparison, allowed: CalibrationSettings) -> float:
    if comparison.either_small:  # its angle is noise, and the guard has compared the difference
        return 0.0
    return (comparison.angle_deg / allowed.max_angle_deg) ** 2
