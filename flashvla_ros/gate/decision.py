"""Run the model, or use its last action again? A pure function of memory, observation and settings.

The trigger is FlashVLA's (arXiv 2505.21200): reuse while the last two fresh actions point the same way and the last
two fresh sets of kept visual tokens overlap. The guards around it, the correction of the overlap for chance and the
comparison of frames are this package's; docs/gate.md explains each.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from flashvla_ros.core.chunk import aligned_rows, elapsed_rows, replan_row
from flashvla_ros.core.reasons import WITHOUT_MODEL, Reason
from flashvla_ros.core.settings import GateSettings
from flashvla_ros.core.types import FloatArray
from flashvla_ros.gate.memory import FreshResult, GateInput, GateMemory
from flashvla_ros.gate.scene import SceneChange, compare


@dataclasses.dataclass(frozen=True)
class GateDecision:
    """What the gate decided at one step, why, and on what; NaN where a value is undefined.

    Attributes:
        reason: The first condition that failed, in the order of docs/gate.md; :attr:`Reason.REUSE` where none did,
            :attr:`Reason.OPEN_LOOP` where the model is not due yet.
        angle_deg: Angle between the last two fresh actions.
        overlap: φ, share of the last fresh set of kept tokens that is in the one before it.
        corrected_overlap: φ' = (φ - k/N) / (1 - k/N).
        scene_level: Greatest change of a patch that is expected since the last fresh frame, in grey levels of 255.
        scene_changed: Patches that changed by more than max(scene_floor, scene_factor * their own expected change).
        age_s: Age of the fresh result behind this step's command; 0 where the model is run on the frame in hand.
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
        """Whether the model is not run: the last fresh action is used again, or its chunk followed."""
        return self.reason in WITHOUT_MODEL

    @property
    def scene_alarm(self) -> bool:
        """Whether the scene guard would have forbidden reuse, whichever condition decided."""
        return _scene_alarm(self.scene_changed, self.settings)


@dataclasses.dataclass(frozen=True, eq=False)
class FreshComparison:
    """The last two fresh results, compared.

    Attributes:
        angle_deg, overlap, corrected_overlap: As in :class:`GateDecision`.
        gripper_may_flip: A gripper is about to flip.
        either_small: An action is too small for its angle to mean anything.
        difference_small: The difference of the actions is small too.
        incomparable: Why the sets of kept tokens cannot be compared; None where they can.
    """

    angle_deg: float = math.nan
    overlap: float = math.nan
    corrected_overlap: float = math.nan
    gripper_may_flip: bool = False
    either_small: bool = False
    difference_small: bool = False
    incomparable: Reason | None = None

    @classmethod
    def of(cls, previous: FreshResult, last: FreshResult, settings: GateSettings) -> FreshComparison:
        """Compare two fresh results; only the settings of gripper and stillness count."""
        overlap, corrected = overlap_of(previous, last)
        incomparable = None
        if previous.kept is None or last.kept is None:
            incomparable = Reason.NO_TOKEN_SETS
        elif previous.pruning != last.pruning or math.isnan(corrected):
            incomparable = Reason.PRUNING_CHANGED
        apart = elapsed_rows(last.source.stamp_s - previous.source.stamp_s, last.dt_s)
        before, after = aligned_rows(previous.motion, last.motion, apart)
        return cls(
            angle_deg=angle_between(before, after),
            overlap=overlap,
            corrected_overlap=corrected,
            gripper_may_flip=_gripper_may_flip(aligned_rows(previous.gripper, last.gripper, apart)[0], last, settings),
            either_small=min(_size(before), _size(after)) < settings.still_norm,
            difference_small=before.shape == after.shape and _size(after - before) <= settings.still_difference,
            incomparable=incomparable,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class GateMeasurements:
    """What a step is judged on: the same for every δ, ε₁ and cap.

    Attributes:
        comparison: The last two fresh results, compared.
        scene: The frame in hand, compared with the frame of the last fresh result.
        age_s: Age of the last fresh result.
        interrupted_by: What came between the memory and this step; None where nothing did.
        ahead: Time steps before a run of the model is due at which it is asked for (``control.prefetch``).
    """

    comparison: FreshComparison = FreshComparison()
    scene: SceneChange = dataclasses.field(default_factory=SceneChange)
    age_s: float = math.nan
    interrupted_by: Reason | None = None
    ahead: int = 0


def decide(memory: GateMemory, current: GateInput, settings: GateSettings) -> GateDecision:
    """Decide one step."""
    measured = measure(memory, current, settings)
    return report(memory, measured, judge(memory, measured, settings), settings)


def report(memory: GateMemory, measured: GateMeasurements, reason: Reason, settings: GateSettings) -> GateDecision:
    """Return a decision with what it was made on."""
    reuse = reason in WITHOUT_MODEL
    return GateDecision(
        reason=reason,
        angle_deg=measured.comparison.angle_deg,
        overlap=measured.comparison.overlap,
        corrected_overlap=measured.comparison.corrected_overlap,
        scene_level=measured.scene.level,
        scene_changed=measured.scene.changed,
        age_s=measured.age_s if reuse else 0.0,
        reused_in_a_row=memory.reused_in_a_row + (reason is Reason.REUSE) if reuse else 0,
        settings=settings,
    )


def measure(
    memory: GateMemory,
    current: GateInput,
    settings: GateSettings,
    comparison: FreshComparison | None = None,
    scene: SceneChange | None = None,
) -> GateMeasurements:
    """Return what a step is judged on; of the settings, those of scene, gripper, stillness and gap count.

    The memory's two fresh results, and the two frames, may have been compared already.
    """
    last, previous = memory.last, memory.previous
    interrupted_by = memory.interrupted_by(current, settings.stale_gap_s)
    if last is None:
        return GateMeasurements(interrupted_by=interrupted_by)
    age_s = current.stamp_s - last.source.stamp_s
    if comparison is None:
        comparison = FreshComparison.of(previous, last, settings) if previous else FreshComparison()
    if scene is None:
        scene = compare(memory.motion, last.source.frame, current.frame, age_s, settings)
    return GateMeasurements(comparison, scene, age_s, interrupted_by)


def judge(memory: GateMemory, measured: GateMeasurements, settings: GateSettings) -> Reason:
    """Return the first condition that forbids reuse, one of :data:`WITHOUT_MODEL` where there is none."""
    off = settings.mode == "off"
    if measured.interrupted_by is not None:
        return Reason.MODE_OFF if off else measured.interrupted_by
    if memory.last is not None and len(memory.last.motion) > 1:
        size, row = len(memory.last.motion), elapsed_rows(measured.age_s, memory.last.dt_s) + measured.ahead
        if row < replan_row(size, settings.replan_after):
            return _present(measured, settings) or Reason.OPEN_LOOP
        if row >= size and not off:
            return (_present(measured, settings) if measured.ahead else None) or Reason.CHUNK_END
    if off:
        return Reason.MODE_OFF
    if memory.previous is None:
        return Reason.TOO_FEW_FRESH
    if skipped_runs(memory, measured, settings) >= settings.max_reuse:
        return Reason.MAX_REUSE
    comparison = measured.comparison
    tokenless = comparison.incomparable is Reason.NO_TOKEN_SETS and settings.tokenless_angle_deg > 0.0
    most_deg = min(settings.tokenless_angle_deg, settings.max_angle_deg) if tokenless else settings.max_angle_deg
    aligned = comparison.angle_deg < most_deg
    angle = None if aligned else Reason.ANGLE
    reason = _guard(memory, measured, settings, angle) if settings.mode == "guarded" else angle
    if tokenless:
        return reason or Reason.REUSE
    overlap = None if comparison.corrected_overlap >= settings.delta else Reason.OVERLAP
    return reason or comparison.incomparable or overlap or Reason.REUSE


def skipped_runs(memory: GateMemory, measured: GateMeasurements, settings: GateSettings) -> int:
    """Runs of the model that were due since the last one and were left out: of a single action, the reused steps."""
    if memory.last is None or len(memory.last.motion) == 1:
        return memory.reused_in_a_row
    row = elapsed_rows(measured.age_s, memory.last.dt_s) + measured.ahead
    return max(row // replan_row(len(memory.last.motion), settings.replan_after) - 1, 0)


def may_follow(memory: GateMemory, measured: GateMeasurements, settings: GateSettings) -> bool:
    """Whether nothing but its length ends the last chunk, so that it may be followed while the model is run."""
    last = memory.last
    return measured.interrupted_by is None and last is not None and _present(measured, settings) is None


def _present(measured: GateMeasurements, settings: GateSettings) -> Reason | None:
    """The guard that ends a chunk before the model is due: what has happened since, whatever the plans before said."""
    if settings.mode != "guarded":
        return None
    if measured.age_s > settings.max_age_s:
        return Reason.MAX_AGE
    return Reason.SCENE_CHANGED if _scene_alarm(measured.scene.changed, settings) else None


def _guard(
    memory: GateMemory, measured: GateMeasurements, settings: GateSettings, angle: Reason | None
) -> Reason | None:
    """The first guard of mode ``guarded`` that forbids reuse; `angle` is what the angle says of actions that move."""
    fresh, comparison = memory.fresh_since_reuse, measured.comparison
    if memory.reused_in_a_row == 0 and fresh is not None and fresh < settings.fresh_between:
        return Reason.FRESH_BETWEEN
    if measured.age_s > settings.max_age_s:
        return Reason.MAX_AGE
    if comparison.gripper_may_flip:
        return Reason.GRIPPER
    if _scene_alarm(measured.scene.changed, settings):
        return Reason.SCENE_CHANGED
    if comparison.either_small:
        return None if comparison.difference_small else Reason.STILL
    return angle


def _scene_alarm(changed: int, settings: GateSettings) -> bool:
    return 0 < settings.scene_patches <= changed


def _size(motion: FloatArray) -> float:
    """Norm of an action, root mean square over its time steps, so that a threshold means the same for any T."""
    return _norm(motion) / math.sqrt(len(motion))


def _gripper_may_flip(before: FloatArray, last: FreshResult, settings: GateSettings) -> bool:
    """Whether a gripper moves, and is near its middle or changes sides in the last action and in rows before [n, G]."""
    values = np.concatenate([before, last.gripper]) - settings.gripper_middle
    moves = np.ptp(values, axis=0) > settings.gripper_still
    near = (np.abs(values[len(before) :]) < settings.gripper_margin).any(axis=0)
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
