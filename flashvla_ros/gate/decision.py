"""Run the model, or use its last action again? A pure function of memory, view and settings.

The trigger is FlashVLA's (arXiv 2505.21200): reuse while the last two fresh actions point the same way and the last
two fresh sets of kept visual tokens overlap. The guards around it, the correction of the overlap for chance and the
look at the frame in hand are this package's; docs/gate.md explains each.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from flashvla_ros.core.settings import GateSettings
from flashvla_ros.core.types import FloatArray
from flashvla_ros.gate.memory import FreshResult, GateMemory, View
from flashvla_ros.gate.reasons import Reason
from flashvla_ros.gate.scene import SceneChange, compare


@dataclasses.dataclass(frozen=True)
class GateDecision:
    """What the gate decided at one step, why, and on what; NaN where a value is undefined.

    Attributes:
        reason: The first condition that failed, in the order of docs/gate.md; :attr:`Reason.REUSE` where none did.
        angle_deg: Angle between the last two fresh actions.
        overlap: φ, share of the last fresh set of kept tokens that is in the one before it.
        corrected_overlap: φ' = (φ - k/N) / (1 - k/N).
        scene_level: Greatest change of a patch that the robot's own motion explains, in grey levels of 255.
        scene_changed: Patches that changed by more.
        age_s: Age of the fresh result behind this step's command; 0 where the model is run.
        reused_in_a_row: Reused steps in a row, with this one.
        settings: The thresholds in force.
    """

    reason: Reason
    angle_deg: float
    overlap: float
    corrected_overlap: float
    scene_level: float
    scene_changed: int
    age_s: float
    reused_in_a_row: int
    settings: GateSettings

    @property
    def reuse(self) -> bool:
        """Whether the last fresh action is used again."""
        return self.reason is Reason.REUSE

    @property
    def scene_alarm(self) -> bool:
        """Whether the scene guard would have forbidden reuse, whichever condition decided."""
        return _scene_alarm(self.scene_changed, self.settings)


@dataclasses.dataclass(frozen=True)
class Measures:
    """What a step is decided on, before any threshold but those of the scene; fields as in :class:`GateDecision`."""

    angle_deg: float
    overlap: float
    corrected_overlap: float
    scene: SceneChange
    age_s: float


def decide(memory: GateMemory, view: View, settings: GateSettings) -> GateDecision:
    """Decide one step.

    Args:
        memory: What the gate remembers of the steps before.
        view: The observation in hand.
        settings: Mode and thresholds of this step.
    """
    found = measure(memory, view, settings)
    reason = judge(memory, view, found, settings)
    reuse = reason is Reason.REUSE
    return GateDecision(
        reason=reason,
        angle_deg=found.angle_deg,
        overlap=found.overlap,
        corrected_overlap=found.corrected_overlap,
        scene_level=found.scene.level,
        scene_changed=found.scene.changed,
        age_s=found.age_s if reuse else 0.0,
        reused_in_a_row=memory.reused_in_a_row + 1 if reuse else 0,
        settings=settings,
    )


def measure(memory: GateMemory, view: View, settings: GateSettings) -> Measures:
    """Return what there is to judge; of the settings it depends on those of the scene guard alone."""
    last, previous = memory.last, memory.previous
    if last is None:
        return Measures(math.nan, math.nan, math.nan, SceneChange(), math.nan)
    angle_deg = overlap = corrected = math.nan
    if previous is not None:
        angle_deg, (overlap, corrected) = angle_between(previous.motion, last.motion), overlap_of(previous, last)
    age_s = view.stamp_s - last.view.stamp_s
    change = compare(memory.motion, last.view.frame, view.frame, age_s, settings)
    return Measures(angle_deg, overlap, corrected, change, age_s)


def judge(memory: GateMemory, view: View, found: Measures, settings: GateSettings) -> Reason:
    """Return the first condition that forbids reuse, :attr:`Reason.REUSE` where there is none."""
    if settings.mode == "off":
        return Reason.MODE_OFF
    broken = memory.broken_by(view, settings.stale_gap_s)
    if broken is not None:
        return broken
    last, previous = memory.last, memory.previous
    if last is None or previous is None:
        return Reason.TOO_FEW_FRESH
    if memory.reused_in_a_row >= settings.max_reuse:
        return Reason.MAX_REUSE
    if settings.mode == "guarded":
        reason = _guard(memory, previous, last, found, settings)
    else:
        reason = None if found.angle_deg < settings.max_angle_deg else Reason.ANGLE
    return reason or _token_failure(previous, last, found, settings) or Reason.REUSE


def _guard(
    memory: GateMemory, previous: FreshResult, last: FreshResult, found: Measures, settings: GateSettings
) -> Reason | None:
    """The first guard of mode ``guarded`` that forbids reuse."""
    fresh = memory.fresh_since_reuse
    if memory.reused_in_a_row == 0 and fresh is not None and fresh < settings.fresh_between:
        return Reason.FRESH_BETWEEN
    if found.age_s > settings.max_age_s:
        return Reason.MAX_AGE
    if _gripper_may_flip(previous, last, settings):
        return Reason.GRIPPER
    if _scene_alarm(found.scene.changed, settings):
        return Reason.SCENE_CHANGED
    if min(_size(previous.motion), _size(last.motion)) < settings.still_norm:
        moved = previous.motion.shape != last.motion.shape or not (
            _size(last.motion - previous.motion) <= settings.still_difference
        )
        return Reason.STILL if moved else None
    return None if found.angle_deg < settings.max_angle_deg else Reason.ANGLE


def _scene_alarm(changed: int, settings: GateSettings) -> bool:
    return 0 < settings.scene_patches <= changed


def _token_failure(previous: FreshResult, last: FreshResult, found: Measures, settings: GateSettings) -> Reason | None:
    """What the sets of kept tokens say against reuse."""
    if previous.kept is None or last.kept is None:
        return Reason.NO_TOKEN_SETS
    if previous.pruning != last.pruning or math.isnan(found.corrected_overlap):
        return Reason.PRUNING_CHANGED
    return None if found.corrected_overlap >= settings.delta else Reason.OVERLAP


def _size(motion: FloatArray) -> float:
    """Norm of an action, root mean square over its time steps, so that a threshold means the same for any T."""
    return float(np.linalg.norm(motion)) / math.sqrt(len(motion))


def _gripper_may_flip(previous: FreshResult, last: FreshResult, settings: GateSettings) -> bool:
    """True where a gripper is near its middle, or is not on one side of it throughout the last two fresh actions."""
    grip = last.gripper - settings.gripper_middle
    before = previous.gripper - settings.gripper_middle
    near = np.abs(grip) < settings.gripper_margin
    sides = np.sign(np.concatenate([before, grip]))
    return bool(near.any() or (sides != sides[:1]).any())


def angle_between(first: FloatArray, second: FloatArray) -> float:
    """Return the angle in degrees between two actions taken as one vector each, over the whole chunk.

    Kahan's formula, 2 atan2(|u - v|, |u + v|) of the unit vectors, keeps its precision near 0° and 180°, where the
    arc cosine loses half of the digits. NaN where an action is exactly zero or the chunks differ in size.
    """
    norms = float(np.linalg.norm(first)), float(np.linalg.norm(second))
    if first.shape != second.shape or not min(norms) > 0.0:
        return math.nan
    u, v = first.ravel() / norms[0], second.ravel() / norms[1]
    return math.degrees(2.0 * math.atan2(float(np.linalg.norm(u - v)), float(np.linalg.norm(u + v))))


def overlap_of(previous: FreshResult, last: FreshResult) -> tuple[float, float]:
    """Return φ = |I₂ ∩ I₁| / |I₁| and φ' = (φ - k/N) / (1 - k/N) of the kept tokens of two fresh results.

    φ' is 0 where the sets agree as much as chance would make them, and 1 where they are identical; so it is 1 where
    both hold all N tokens. NaN where there is nothing to compare: no sets, or sets of another k or N.
    """
    if previous.kept is None or last.kept is None:
        return math.nan, math.nan
    k, tokens = len(last.kept), last.visual_tokens
    if k == 0 or len(previous.kept) != k or previous.visual_tokens != tokens:
        return math.nan, math.nan
    shared = np.intersect1d(previous.kept, last.kept, assume_unique=True).size
    chance = k / tokens
    return shared / k, 1.0 if shared == k else (shared / k - chance) / (1.0 - chance)
