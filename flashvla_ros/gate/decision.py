"""Run the model, or use its last action again? A pure function of memory, view and settings.

The trigger is FlashVLA's (arXiv 2505.21200): reuse while the last two fresh actions point the same way and the last
two fresh sets of kept visual tokens overlap. The guards around it, the correction of the overlap for chance and the
look at the frame in hand are this package's; docs/gate.md explains each.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from flashvla_ros.core.reasons import Reason
from flashvla_ros.core.settings import GateSettings
from flashvla_ros.core.types import FloatArray
from flashvla_ros.gate.memory import FreshResult, GateMemory, View
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


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """The last two fresh results, compared.

    Attributes:
        angle_deg, overlap, corrected_overlap: As in :class:`GateDecision`.
        gripper: A gripper is about to flip.
        still: An action is too small for its angle to mean anything.
        alike: The difference of such actions is small too.
        obstacle: Why the sets of kept tokens cannot be compared; None where they can.
    """

    angle_deg: float = math.nan
    overlap: float = math.nan
    corrected_overlap: float = math.nan
    gripper: bool = False
    still: bool = False
    alike: bool = False
    obstacle: Reason | None = None

    @classmethod
    def of(cls, previous: FreshResult, last: FreshResult, settings: GateSettings) -> Pair:
        """Compare two fresh results; of the settings it depends on those of gripper and stillness alone."""
        overlap, corrected = overlap_of(previous, last)
        obstacle = None
        if previous.kept is None or last.kept is None:
            obstacle = Reason.NO_TOKEN_SETS
        elif previous.pruning != last.pruning or math.isnan(corrected):
            obstacle = Reason.PRUNING_CHANGED
        same_size = previous.motion.shape == last.motion.shape
        return cls(
            angle_deg=angle_between(previous.motion, last.motion),
            overlap=overlap,
            corrected_overlap=corrected,
            gripper=_gripper_may_flip(previous, last, settings),
            still=min(_size(previous.motion), _size(last.motion)) < settings.still_norm,
            alike=same_size and _size(last.motion - previous.motion) <= settings.still_difference,
            obstacle=obstacle,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Measures:
    """What a step is judged on: the same for every δ, ε₁ and cap.

    Attributes:
        pair: The last two fresh results, compared.
        scene: The frame in hand against that of the last fresh result.
        age_s: Age of the last fresh result.
        broken: Why the memory says nothing about this step; None where it does.
    """

    pair: Pair = Pair()
    scene: SceneChange = dataclasses.field(default_factory=SceneChange)
    age_s: float = math.nan
    broken: Reason | None = None


def decide(memory: GateMemory, view: View, settings: GateSettings) -> GateDecision:
    """Decide one step.

    Args:
        memory: What the gate remembers of the steps before.
        view: The observation in hand.
        settings: Mode and thresholds of this step.
    """
    found = measure(memory, view, settings)
    reason = judge(memory, found, settings)
    reuse = reason is Reason.REUSE
    return GateDecision(
        reason=reason,
        angle_deg=found.pair.angle_deg,
        overlap=found.pair.overlap,
        corrected_overlap=found.pair.corrected_overlap,
        scene_level=found.scene.level,
        scene_changed=found.scene.changed,
        age_s=found.age_s if reuse else 0.0,
        reused_in_a_row=memory.reused_in_a_row + 1 if reuse else 0,
        settings=settings,
    )


def measure(
    memory: GateMemory,
    view: View,
    settings: GateSettings,
    pair: Pair | None = None,
    scene: SceneChange | None = None,
) -> Measures:
    """Return what a step is judged on.

    Args:
        memory: What the gate remembers of the steps before.
        view: The observation in hand.
        settings: Those of scene, gripper, stillness and gap count.
        pair: The memory's two fresh results, where they have been compared already.
        scene: The frame in hand and that of the last fresh result, likewise.
    """
    last, previous = memory.last, memory.previous
    broken = memory.broken_by(view, settings.stale_gap_s)
    if last is None:
        return Measures(broken=broken)
    age_s = view.stamp_s - last.view.stamp_s
    if pair is None:
        pair = Pair.of(previous, last, settings) if previous else Pair()
    if scene is None:
        scene = compare(memory.motion, last.view.frame, view.frame, age_s, settings)
    return Measures(pair, scene, age_s, broken)


def judge(memory: GateMemory, found: Measures, settings: GateSettings) -> Reason:
    """Return the first condition that forbids reuse, :attr:`Reason.REUSE` where there is none."""
    if settings.mode == "off":
        return Reason.MODE_OFF
    if found.broken is not None:
        return found.broken
    if memory.previous is None:
        return Reason.TOO_FEW_FRESH
    if memory.reused_in_a_row >= settings.max_reuse:
        return Reason.MAX_REUSE
    pair = found.pair
    if settings.mode == "guarded":
        reason = _guard(memory, found, settings)
    else:
        reason = None if pair.angle_deg < settings.max_angle_deg else Reason.ANGLE
    overlap = None if pair.corrected_overlap >= settings.delta else Reason.OVERLAP
    return reason or pair.obstacle or overlap or Reason.REUSE


def _guard(memory: GateMemory, found: Measures, settings: GateSettings) -> Reason | None:
    """The first guard of mode ``guarded`` that forbids reuse."""
    fresh, pair = memory.fresh_since_reuse, found.pair
    if memory.reused_in_a_row == 0 and fresh is not None and fresh < settings.fresh_between:
        return Reason.FRESH_BETWEEN
    if found.age_s > settings.max_age_s:
        return Reason.MAX_AGE
    if pair.gripper:
        return Reason.GRIPPER
    if _scene_alarm(found.scene.changed, settings):
        return Reason.SCENE_CHANGED
    if pair.still:
        return None if pair.alike else Reason.STILL
    return None if pair.angle_deg < settings.max_angle_deg else Reason.ANGLE


def _scene_alarm(changed: int, settings: GateSettings) -> bool:
    return 0 < settings.scene_patches <= changed


def _size(motion: FloatArray) -> float:
    """Norm of an action, root mean square over its time steps, so that a threshold means the same for any T."""
    return _norm(motion) / math.sqrt(len(motion))


def _gripper_may_flip(previous: FreshResult, last: FreshResult, settings: GateSettings) -> bool:
    """True where a gripper moves, and is near its middle or not on one side of it throughout the last two actions."""
    values = np.concatenate([previous.gripper, last.gripper]) - settings.gripper_middle
    moves = np.ptp(values, axis=0) > settings.gripper_still
    near = (np.abs(values[len(previous.gripper) :]) < settings.gripper_margin).any(axis=0)
    sides = np.sign(values)
    return bool((moves & (near | (sides != sides[:1]).any(axis=0))).any())


def angle_between(first: FloatArray, second: FloatArray) -> float:
    """Return the angle in degrees between two actions taken as one vector each, over the whole chunk.

    Kahan's formula, 2 atan2(|u - v|, |u + v|) of the unit vectors, keeps its precision near 0° and 180°, where the
    arc cosine loses half of the digits. NaN where an action is exactly zero or the chunks differ in size.
    """
    norms = _norm(first), _norm(second)
    if first.shape != second.shape or not min(norms) > 0.0:
        return math.nan
    u, v = first / norms[0], second / norms[1]
    return math.degrees(2.0 * math.atan2(_norm(u - v), _norm(u + v)))


def _norm(motion: FloatArray) -> float:
    """Euclidean norm over the whole chunk; NumPy's own costs several times this on so few numbers."""
    flat = motion.ravel()
    return math.sqrt(float(flat @ flat))


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
    in_previous = np.zeros(tokens, dtype=bool)
    in_previous[previous.kept] = True
    shared = int(np.count_nonzero(in_previous[last.kept]))
    chance = k / tokens
    return shared / k, 1.0 if shared == k else (shared / k - chance) / (1.0 - chance)
