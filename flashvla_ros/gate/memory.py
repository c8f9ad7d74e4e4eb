"""What the gate remembers: the last two fresh results, and how often they have been used since.

A reused step adds no result. If it did, the angle would stay 0 and the overlap 1, and the gate would never run
the model again.
"""

from __future__ import annotations

import dataclasses
import math

from flashvla_ros.core.reasons import Reason
from flashvla_ros.core.settings import ActionSettings, GateSettings, PruningSettings
from flashvla_ros.core.types import ActionSpec, FloatArray, Inference, IntArray, Observation
from flashvla_ros.gate import scene


@dataclasses.dataclass(frozen=True, eq=False)
class GateInput:
    """The facts of an observation that the gate looks at.

    Attributes:
        instruction: What the robot is asked to do.
        stamp_s: The gate's clock: the stamp of the observation.
        frame: Signature of its images.
    """

    instruction: str
    stamp_s: float
    frame: scene.Signature

    @classmethod
    def of(cls, observation: Observation) -> GateInput:
        """Return what the gate looks at of an observation."""
        return cls(observation.instruction, observation.stamp_s, scene.signature(observation.images))


@dataclasses.dataclass(frozen=True, eq=False)
class FreshResult:
    """What the gate keeps of one run of the model.

    Attributes:
        source: What the model was run on.
        motion: [T, D - G] normalised action without its grippers.
        gripper: [T, G] normalised values of its grippers.
        kept: [k] indices of the selected visual tokens; None where none were selected.
        visual_tokens: N, from which they were selected.
        pruning: The settings by which they were selected.
        dt_s: Time from one row of the chunk to the next.
        confidence: Probability of its least certain action token, NaN where the policy does not say.
    """

    source: GateInput
    motion: FloatArray
    gripper: FloatArray
    kept: IntArray | None
    visual_tokens: int
    pruning: PruningSettings
    dt_s: float = ActionSettings().dt_s
    confidence: float = math.nan

    @classmethod
    def of(cls, inference: Inference, source: GateInput, spec: ActionSpec, pruning: PruningSettings) -> FreshResult:
        """Return what the gate keeps of `inference`."""
        gripper = spec.gripper_mask
        motion, grip = inference.normalized[:, ~gripper], inference.normalized[:, gripper]
        kept, confidence = inference.kept, inference.confidence
        return cls(source, motion, grip, kept, inference.visual_tokens, pruning, spec.dt_s, confidence)


@dataclasses.dataclass(frozen=True, eq=False)
class GateMemory:
    """State of the gate between two steps; never changed in place.

    Attributes:
        cause: What emptied the memory last.
        last: The last fresh result, the one that a reuse repeats.
        previous: The fresh result before it.
        seen_s: Stamp of the last observation, fresh or reused.
        reused_in_a_row: Reused steps since the last fresh one; those that merely follow a chunk are none.
        fresh_since_reuse: Fresh steps since the last reused one; None where nothing has been reused yet.
        motion: Running rate of change of the scene.
    """

    cause: Reason = Reason.START
    last: FreshResult | None = None
    previous: FreshResult | None = None
    seen_s: float = 0.0
    reused_in_a_row: int = 0
    fresh_since_reuse: int | None = None
    motion: scene.SceneMotion = dataclasses.field(default_factory=scene.SceneMotion)

    def forgotten(self, cause: Reason) -> GateMemory:
        """Return an empty memory; only the fresh steps since the last reuse still count."""
        return GateMemory(cause=cause, fresh_since_reuse=self.fresh_since_reuse)

    def interrupted_by(self, current: GateInput, stale_gap_s: float) -> Reason | None:
        """Return what came between this memory and `current`; None where nothing did.

        This holds in every mode: a memory belongs to one uninterrupted run under one instruction.
        """
        if self.last is None:
            return self.cause
        if current.instruction != self.last.source.instruction:
            return Reason.NEW_INSTRUCTION
        if not current.stamp_s > self.seen_s:  # also true of NaN
            return Reason.CLOCK_JUMP
        return Reason.STALE_GAP if current.stamp_s - self.seen_s > stale_gap_s else None

    def after_fresh(
        self,
        result: FreshResult,
        gate: GateSettings,
        motion: scene.SceneMotion | None = None,
        current: GateInput | None = None,
    ) -> GateMemory:
        """Return the memory after the model was run; an earlier run is forgotten.

        Args:
            result: What the model said.
            gate: Its ``stale_gap_s`` ends a run.
            motion: The motion of the scene after this observation, where it is known already.
            current: The observation in hand, where the model was run on an earlier one.
        """
        current = current or result.source
        past = self.forgotten(self.cause) if self.interrupted_by(current, gate.stale_gap_s) else self
        return GateMemory(
            last=result,
            previous=past.last,
            seen_s=current.stamp_s,
            fresh_since_reuse=None if past.fresh_since_reuse is None else past.fresh_since_reuse + 1,
            motion=motion or past.motion.after(current.frame, current.stamp_s),
        )

    def after_step_without_model(
        self, reason: Reason, current: GateInput, motion: scene.SceneMotion | None = None
    ) -> GateMemory:
        """Return the memory after a step that one of :data:`WITHOUT_MODEL` decided: counted, not remembered."""
        motion = motion or self.motion.after(current.frame, current.stamp_s)
        after = dataclasses.replace(self, seen_s=current.stamp_s, motion=motion)
        if reason is not Reason.REUSE:  # a row of the last chunk was followed, open loop
            return after
        return dataclasses.replace(after, reused_in_a_row=self.reused_in_a_row + 1, fresh_since_reuse=0)
