"""One control step, gate → policy or reuse → safety: the piece that the node, a replay and an evaluation all run.

Synchronous and without a clock of its own: decisions depend on the observations' stamps alone, so that the same
observations and settings give the same commands again. Only the durations in a result are measured.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashvla_ros.control import blend, safety, targets
from flashvla_ros.control.limits import limit
from flashvla_ros.control.motion import oriented, ramped, scaled, slowed
from flashvla_ros.core.policy import Policy, Request, TimedPolicy
from flashvla_ros.core.reasons import Reason
from flashvla_ros.core.settings import Settings
from flashvla_ros.core.types import ActionSpec, Draft, FloatArray, Inference, Observation
from flashvla_ros.gate.calibration import CalibrationState, Trial, after_step, entering, is_off, try_reuse
from flashvla_ros.gate.chunk import elapsed_rows, handover, in_force, remainder
from flashvla_ros.gate.decision import GateDecision, decide, measure
from flashvla_ros.gate.memory import FreshResult, GateInput, GateMemory

_OF_DECISION = (
    "angle_deg",
    "overlap",
    "corrected_overlap",
    "scene_level",
    "scene_changed",
    "reused_in_a_row",
    "age_s",
)
_OF_DRAFT = ("draft_tokens", "draft_accepted", "draft_near")
_OF_CALIBRATION = ("need", "permissiveness", "certified_level", "off", "calibration_state")
REPORTED = (
    *("decision", "reason", *_OF_DECISION, "kept_tokens", "action", "clamped", *_OF_DRAFT, "speed_scale"),
    *_OF_CALIBRATION,
    *("chunk_size", "chunk_row", "handover_step"),
)
_UNKNOWN = -1


@dataclasses.dataclass(frozen=True, eq=False)
class StepResult:
    """What one control step made of one observation.

    Attributes:
        observation: The observation that was answered.
        decision: What the gate decided, and why.
        inference: The fresh result behind the command; on a reused step it answered an earlier observation.
        fresh: Whether the model was run at this step.
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


@dataclasses.dataclass(frozen=True, eq=False)
class StepperState:
    """Everything that one step hands to the next, so that a step is undone by putting the old state back.

    Attributes:
        memory: The gate's memory.
        inference: The last fresh result.
        command: [T, D] the last command; None before the first.
        command_s: Stamp of the observation that it answered.
        resting: True from a reset to the next command: the robot is taken to be at rest.
        dry_run: The last command was not sent.
        speed_scale: Share of the policy's motion that was in it.
        plans: The chunks of this run that still say something, while ``control.blend`` asks for them.
        resets: Number of resets so far.
        step: Number of the next step.
        calibration: What the thresholds have learnt; resets and new instructions leave it.
    """

    memory: GateMemory = dataclasses.field(default_factory=GateMemory)
    inference: Inference | None = None
    command: FloatArray | None = None
    command_s: float = math.nan
    resting: bool = True
    dry_run: bool = False
    speed_scale: float = 0.0
    plans: blend.Plans = ()
    resets: int = 0
    step: int = 0
    calibration: CalibrationState = dataclasses.field(default_factory=CalibrationState)


class Stepper:
    """Runs control steps on one policy. Not thread-safe: whoever owns it calls it.

    Args:
        policy: The model behind its port.
        spec: What the dimensions of its action mean.
        clock: Monotonic seconds, for the durations in results.

    Raises:
        ActionError: The policy's action has another size than `spec` declares.
    """

    def __init__(self, policy: Policy, spec: ActionSpec, *, clock: Callable[[], float] = time.monotonic) -> None:
        safety.check_size(policy.action_size, spec)
        self.spec = spec
        self.state = StepperState()
        self._policy = TimedPolicy(policy, clock)
        self._clock = clock

    def step(self, observation: Observation, settings: Settings, tried: StepResult | None = None) -> StepResult:
        """Answer one observation; on an error the state is as if the step had not been tried.

        Args:
            observation: What is to be answered.
            settings: In force for this step.
            tried: What other settings made of the same observation; the model is not run again where they ask the same
                of it.

        Raises:
            ObservationError: The policy cannot use this observation.
            ActionError: The policy's action is not finite or not of the declared size.
        """
        started_s = self._clock()
        state, current = _entering(self.state, settings), GateInput.of(observation)
        calibration, trial, decision = self._decide(state, current, settings)
        inference, off = state.inference, None
        if decision.reuse and inference is not None:
            memory = state.memory.after_step_without_model(decision.reason, current)
        else:
            if tried is not None and tried.fresh and _same_model(tried.settings, settings):
                inference = tried.inference
            else:
                inference = self._infer(observation, settings, self._draft(current, settings))
            result = FreshResult.of(inference, current, self.spec, settings.pruning)
            memory = state.memory.after_fresh(result, settings.gate)
            off = is_off(trial, result, settings) if trial and trial.candidate else None
        chunk = None if decision.reuse else inference.action
        plans = blend.renewed(state.plans, chunk, state.memory, current, settings, self.spec.dt_s)
        action = remainder(inference.action, decision.age_s, self.spec.dt_s)
        if len(plans) > 1:
            action = blend.blended(plans, current.stamp_s, self.spec, settings.control.blend_decay)
        command, clamped, speed_scale = self._command(action, state, observation, settings)
        held = self._held(state, observation.stamp_s)
        self.state = StepperState(
            memory=memory,
            inference=inference,
            command=command,
            command_s=current.stamp_s,
            resting=False,
            dry_run=settings.control.dry_run,
            speed_scale=speed_scale,
            plans=plans,
            resets=state.resets,
            step=state.step + 1,
            calibration=after_step(calibration, trial, off, settings.calibration) if trial else calibration,
        )
        return StepResult(
            observation=observation,
            decision=decision,
            inference=inference,
            fresh=not decision.reuse,
            command=command,
            clamped=clamped,
            settings=settings,
            step_s=self._clock() - (observation.received_s or started_s),
            resets=state.resets,
            step=state.step,
            speed_scale=speed_scale,
            calibration=calibration if trial else None,
            trial=trial,
            off=off,
            chunk_row=min(elapsed_rows(decision.age_s, self.spec.dt_s), len(inference.action) - 1),
            handover=np.empty(0) if decision.reuse or state.resting else handover(command, held),
        )

    def _decide(
        self, state: StepperState, current: GateInput, settings: Settings
    ) -> tuple[CalibrationState, Trial | None, GateDecision]:
        if settings.gate.calibration == "off":
            return state.calibration, None, decide(state.memory, current, settings.gate)
        calibration = entering(state.calibration, current.instruction, settings)
        measured = measure(state.memory, current, settings.gate)
        return calibration, *try_reuse(state.memory, measured, calibration, settings, self.spec.dt_s)

    def reset(self, cause: Reason = Reason.RESET) -> None:
        """Forget what was seen and take the robot to be at rest; the gate gives `cause` as the next step's reason."""
        state = self.state
        self.state = dataclasses.replace(
            state, memory=state.memory.forgotten(cause), inference=None, resting=True, plans=(), resets=state.resets + 1
        )

    def held(self, now_s: float) -> FloatArray | None:
        """Return the row [D] of the last command that is in force up to `now_s`; None before the first command."""
        return self._held(self.state, now_s)

    def _held(self, state: StepperState, now_s: float) -> FloatArray | None:
        return None if state.command is None else in_force(state.command, now_s - state.command_s, self.spec.dt_s)

    def _draft(self, current: GateInput, settings: Settings) -> Draft | None:
        """Offer the last fresh action's tokens, unless another run or another instruction asked for them.

        The draft is part of this state, not of the policy's: a step that is undone leaves none behind.
        """
        decode, inference = settings.decode, self.state.inference
        if decode.mode != "draft" or inference is None or not len(inference.tokens):
            return None
        if self.state.memory.interrupted_by(current, settings.gate.stale_gap_s) is not None:
            return None
        if settings.gate.calibration == "online":  # a near miss would hide that a reuse is off
            return Draft(inference.tokens)
        return Draft(inference.tokens, decode.accept_bins, decode.max_near)

    def _infer(self, observation: Observation, settings: Settings, draft: Draft | None) -> Inference:
        inference = self._policy.infer(Request(observation, settings.pruning, self.state.inference, draft))
        safety.check(inference, self.spec)
        return inference

    def _command(
        self, action: FloatArray, state: StepperState, observation: Observation, settings: Settings
    ) -> tuple[FloatArray, NDArray[np.bool_], float]:
        """Slow an action [T, D] down and keep it inside its limits; also where it was clamped, and the scale."""
        positions, elapsed_s = observation.positions, observation.stamp_s - state.command_s
        reference = self._held(state, observation.stamp_s)
        if reference is None or state.resting:
            reference, elapsed_s = safety.resting(self.spec, reference, positions), 0.0
        speed_scale = ramped(state.speed_scale, state.resting, elapsed_s, settings.control)
        reference = slowed(reference, state.speed_scale, speed_scale, self.spec)
        wanted = oriented(action, reference, self.spec)
        wanted = scaled(wanted, reference, speed_scale, settings.limits, self.spec)
        command, clamped = limit(
            wanted, reference, settings.limits, self.spec, positions=positions, elapsed_s=elapsed_s
        )
        targets.check(settings.command.type, self.spec, positions)
        return command, clamped, speed_scale


def _entering(state: StepperState, settings: Settings) -> StepperState:
    """The state as a step begins: commands of a dry run were never followed, and after one the robot is at rest."""
    if settings.control.dry_run is state.dry_run:
        return state
    return dataclasses.replace(state, command=None, resting=True)


def _same_model(one: Settings, other: Settings) -> bool:
    """Whether two settings ask the same of the model."""
    same_draft = one.decode == other.decode and one.gate.calibration == other.gate.calibration
    return one.pruning == other.pruning and same_draft
