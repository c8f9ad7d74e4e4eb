"""What one control step made of one observation, and what a replay must reproduce of it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashvla_ros.core.reasons import Reason
from flashvla_ros.core.settings import Settings
from flashvla_ros.core.types import FloatArray, Inference, Observation
from flashvla_ros.gate.calibration import CalibrationState, Trial
from flashvla_ros.gate.decision import GateDecision

_OF_DECISION = ("angle_deg", "overlap", "corrected_overlap", "scene_level", "scene_changed", "reused_in_a_row", "age_s")
_OF_DRAFT = ("draft_tokens", "draft_accepted", "draft_near")
_OF_CALIBRATION = ("need", "permissiveness", "certified_level", "off", "calibration_state")
REPORTED = (
    *("decision", "reason", *_OF_DECISION, "kept_tokens", "action", "clamped", *_OF_DRAFT, "speed_scale"),
    *_OF_CALIBRATION,
    *("chunk_size", "chunk_row", "handover_step", "answer"),
)
_UNKNOWN = -1


@dataclasses.dataclass(frozen=True, eq=False)
class StepResult:
    """What one control step made of one observation.

    Attributes:
        observation: The observation that was answered.
        decision: What the gate decided, and why.
        inference: The fresh result behind the command; on a reused step it answered an earlier observation.
        fresh: Whether a result of the model begins at this step; where it was asked for ahead, ``decision.age_s`` is
            above 0.
        command: [T, D] after safety, in the units of the command.
        clamped: [T, D] where safety changed the action, after it was scaled.
        settings: The settings in force.
        step_s: Time from the observation's arrival to the command.
        resets: Number of resets before this step.
        step: Number of this step, from 0, since the stepper was made.
        speed_scale: Share of the policy's motion in the command, 0 to 1.
        calibration: What calibration knew as the step began; None where it is off.
        trial: What it made of the step.
        off: Whether a reuse was, or would have been, another action than the model's; None where that is not known.
        chunk_row: Row of the chunk that is in force at this step, from 0.
        handover: [D] change from the row that was in force to the first of a chunk that begins at this step; empty
            where none does, or the robot rested.
    """

    observation: Observation
    decision: GateDecision
    inference: Inference
    fresh: bool
    command: FloatArray
    clamped: NDArray[np.bool_]
    settings: Settings
    step_s: float
    resets: int
    step: int
    speed_scale: float = 1.0
    calibration: CalibrationState | None = None
    trial: Trial | None = None
    off: bool | None = None
    chunk_row: int = 0
    handover: FloatArray = dataclasses.field(default_factory=lambda: np.empty(0))

    @property
    def reused(self) -> bool:
        """Whether a run of the model that was due was skipped; to follow a chunk as it is meant to be is none."""
        return self.decision.reason is Reason.REUSE

    @property
    def inference_s(self) -> float:
        """Time of the model; 0 on a reused step."""
        return self.inference.elapsed_s if self.fresh else 0.0

    @property
    def reported(self) -> dict[str, Any]:
        """What a replay must reproduce of this step, by the fields of the message GateStatus: :data:`REPORTED`."""
        decision, run = self.decision, self.inference
        return {
            "decision": int(decision.reuse),
            "reason": str(decision.reason),
            **{name: getattr(decision, name) for name in _OF_DECISION},
            "kept_tokens": np.empty(0, dtype=np.int64) if run.kept is None else run.kept,
            "action": self.command.ravel(),
            "clamped": int(self.clamped.any(axis=0).sum()),
            **{name: getattr(run, name) if self.fresh else 0 for name in _OF_DRAFT},
            "chunk_size": len(run.action),
            "chunk_row": self.chunk_row,
            "handover_step": self.handover,
            "answer": run.action.ravel() if self.fresh else np.empty(0),
            "speed_scale": self.speed_scale,
            **self._calibrated,
        }

    @property
    def _calibrated(self) -> dict[str, Any]:
        state, trial = self.calibration, self.trial
        if state is None or trial is None:
            return dict(zip(_OF_CALIBRATION, (math.nan, math.nan, 0.0, _UNKNOWN, np.empty(0)), strict=True))
        return {
            "need": trial.need,
            "permissiveness": state.permissiveness,
            "certified_level": state.certified_level,
            "off": _UNKNOWN if self.off is None else int(self.off),
            "calibration_state": state.packed(),
        }
