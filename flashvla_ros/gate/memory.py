"""What the gate remembers: the last two fresh results, and how often they have been used since.

A reused step adds no result. Were it to, the angle would be 0 and the overlap 1 for ever after, and the gate would
never run the model again.
"""

from __future__ import annotations

import dataclasses

from flashvla_ros.core.reasons import Reason
from flashvla_ros.core.settings import GateSettings, PruningSettings
from flashvla_ros.core.types import ActionSpec, FloatArray, Inference, IntArray, Observation
from flashvla_ros.gate import scene


@dataclasses.dataclass(frozen=True, eq=False)
class View:
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
    def of(cls, observation: Observation) -> View:
        """Return the view of an observation."""
        return cls(observation.instruction, observation.stamp_s, scene.signature(observation.images))


@dataclasses.dataclass(frozen=True, eq=False)
class FreshResult:
    """What the gate keeps of one run of the model.

    Attributes:
        view: What the model was run on.
        motion: [T, D - G] normalised action without its grippers.
        gripper: [T, G] normalised values of its grippers.
        kept: [k] indices of the selected visual tokens; None where none were selected.
        visual_tokens: N, from which they were selected.
        pruning: The settings by which they were selected.
    """

    view: View
    motion: FloatArray
    gripper: FloatArray
    kept: IntArray | None
    visual_tokens: int
    pruning: PruningSettings

    @classmethod
    def of(cls, inference: Inference, view: View, spec: ActionSpec, pruning: PruningSettings) -> FreshResult:
        """Return what the gate keeps of `inference`."""
        gripper = spec.gripper_mask
        motion, grip = inference.normalized[:, ~gripper], inference.normalized[:, gripper]
        return cls(view, motion, grip, inference.kept, inference.visual_tokens, pruning)


@dataclasses.dataclass(frozen=True, eq=False)
class GateMemory:
    """State of the gate between two steps; never changed in place.

    Attributes:
        cause: What emptied the memory last.
        last: The last fresh result, the one that a reuse repeats.
        previous: The fresh result before it.
        seen_s: Stamp of the last observation, fresh or reused.
        reused_in_a_row: Reused steps since the last fresh one.
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

    def broken_by(self, view: View, stale_gap_s: float) -> Reason | None:
        """Return why this memory says nothing about `view`, or None where it does.

        This holds in every mode: a memory is that of one uninterrupted run under one instruction.
        """
        if self.last is None:
            return self.cause
        if view.instruction != self.last.view.instruction:
            return Reason.NEW_INSTRUCTION
        if not view.stamp_s > self.seen_s:  # also true of NaN
            return Reason.CLOCK_JUMP
        return Reason.STALE_GAP if view.stamp_s - self.seen_s > stale_gap_s else None

    def after_fresh(
        self, result: FreshResult, gate: GateSettings, motion: scene.SceneMotion | None = None
    ) -> GateMemory:
        """Return the memory after the model was run; an earlier run is forgotten.

        Args:
            result: What the model said.
            gate: Its ``stale_gap_s`` ends a run.
            motion: That of the scene after this view, where it is known already.
        """
        view = result.view
        past = self.forgotten(self.cause) if self.broken_by(view, gate.stale_gap_s) else self
        return GateMemory(
            last=result,
            previous=past.last,
            seen_s=view.stamp_s,
            fresh_since_reuse=None if past.fresh_since_reuse is None else past.fresh_since_reuse + 1,
            motion=motion or past.motion.after(view.frame, view.stamp_s),
        )

    def after_reuse(self, view: View, motion: scene.SceneMotion | None = None) -> GateMemory:
        """Return the memory after the last fresh action was used again: counted, not remembered."""
        return dataclasses.replace(
            self,
            seen_s=view.stamp_s,
            reused_in_a_row=self.reused_in_a_row + 1,
            fresh_since_reuse=0,
            motion=motion or self.motion.after(view.frame, view.stamp_s),
        )
