"""One control step, gate → policy or reuse → safety: the piece that the node, a replay and an evaluation all run.

Synchronous and without a clock of its own: decisions depend on the observations' stamps alone, so that the same
observations and settings give the same commands again. Only the durations in a result are measured.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from concurrent.futures import Executor

import numpy as np
from numpy.typing import NDArray

from flashvla_ros.control import blend, safety, targets
from flashvla_ros.control.limits import limit
from flashvla_ros.control.motion import oriented, ramped, scaled, slowed
from flashvla_ros.control.prefetch import Ahead, Asked, Model
from flashvla_ros.control.step_result import StepResult
from flashvla_ros.core.chunk import elapsed_rows, handover, in_force, remainder
from flashvla_ros.core.policy import Policy, Request
from flashvla_ros.core.reasons import Reason
from flashvla_ros.core.settings import Settings
from flashvla_ros.core.types import ActionSpec, Draft, FloatArray, Inference, Observation
from flashvla_ros.gate.calibration import CalibrationState, Trial, after_step, entering, is_off, try_reuse
from flashvla_ros.gate.decision import GateDecision, GateMeasurements, judge, measure, report
from flashvla_ros.gate.memory import FreshResult, GateInput, GateMemory


@dataclasses.dataclass(frozen=True, eq=False)
class StepperState:
    """Everything that one step hands to the next, so that a step is undone by putting the old state back.

    Attributes:
        memory: The gate's memory.
        inference: The last fresh result.
        command: [T, D] the rows of the last command that the robot was told; None before the first.
        command_s: Stamp of the observation that it answered.
        resting: True from a reset to the next command: the robot is taken to be at rest.
        dry_run: The last command was not sent.
        speed_scale: Share of the policy's motion that was in it.
        plans: The chunks of this run that still say something, while ``control.blend`` asks for them.
        resets: Number of resets so far.
        step: Number of the next step.
        calibration: What the thresholds have learnt; resets and new instructions leave it.
        asked: The run of the model that was asked for ahead.
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
    asked: Asked | None = None

    def held(self, now_s: float, dt_s: float) -> FloatArray | None:
        """Return the row [D] of the last command that is in force up to `now_s`; None before the first command."""
        return None if self.command is None else in_force(self.command, now_s - self.command_s, dt_s)


class Stepper:
    """Runs control steps on one policy. Not thread-safe: whoever owns it calls it.

    Args:
        policy: The model behind its port.
        spec: What the dimensions of its action mean.
        clock: Monotonic seconds, for the durations in results.
        executor: Runs the model where ``control.prefetch`` asks for it ahead; None: a step does, as in a replay.

    Raises:
        ActionError: The policy's action has another size than `spec` declares.
    """

    def __init__(
        self,
        policy: Policy,
        spec: ActionSpec,
        *,
        clock: Callable[[], float] = time.monotonic,
        executor: Executor | None = None,
    ) -> None:
        self.spec = spec
        self.state = StepperState()
        self.model = Model(policy, spec, clock, executor)
        self._clock = clock

    def step(
        self,
        observation: Observation,
        settings: Settings,
        tried: StepResult | None = None,
        *,
        answered: bool | None = None,
    ) -> StepResult:
        """Answer one observation; on an error the state is as if the step had not been tried.

        Args:
            observation: What is to be answered.
            settings: In force for this step.
            tried: What other settings made of the same observation; the model is not run again where they ask the same
                of it.
            answered: Whether the answer that was asked for ahead is there, as a recording says; None: see.

        Raises:
            ObservationError: The policy cannot use this observation.
            ActionError: The policy's action is not finite or not of the declared size.
        """
        started_s = self._clock()
        state, current = _entering(self.state, settings), GateInput.of(observation)
        calibration, trial, measured, decision = self._decide(state, current, settings)
        ahead = Ahead.of(decision, state.memory, measured, state.asked, settings, answered)
        decision, taken, asked = ahead.decision, ahead.taken, state.asked
        inference, off = state.inference, None
        if decision.reuse and inference is not None:
            memory = state.memory.after_step_without_model(decision.reason, current)
            if ahead.ask:
                answer = self.model.ask(self._request(observation, current, settings))
                asked = Asked(current, settings.pruning, ahead.ask, answer, started_s)
        else:
            if taken is not None:
                inference = taken.answer.result()
            elif tried is not None and tried.fresh and _same_model(tried.settings, settings):
                inference = tried.inference
            else:
                inference = self.model.run(self._request(observation, current, settings))
            source, pruning = (taken.source, taken.pruning) if taken else (current, settings.pruning)
            result = FreshResult.of(inference, source, self.spec, pruning)
            memory = state.memory.after_fresh(result, settings.gate, current=current)
            off = is_off(trial, result, settings) if trial and trial.candidate else None
            asked = None
        plan = None if decision.reuse else (current.stamp_s - decision.age_s, inference.action)
        plans = blend.renewed(state.plans, plan, state.memory, current, settings, self.spec.dt_s)
        action = remainder(inference.action, decision.age_s, self.spec.dt_s)
        if len(plans) > 1:
            action = blend.blended(plans, current.stamp_s, self.spec, settings.control.blend_decay)
        command, clamped, speed_scale = self._command(action, state, observation, settings)
        held = state.held(current.stamp_s, self.spec.dt_s)
        if trial and trial.counted and not self._moves(command, held, observation):
            trial = dataclasses.replace(trial, counted=False)
        self.state = StepperState(
            memory=memory,
            inference=inference,
            command=targets.told(settings.command.type, command),
            command_s=current.stamp_s,
            resting=False,
            dry_run=settings.control.dry_run,
            speed_scale=speed_scale,
            plans=plans,
            resets=state.resets,
            step=state.step + 1,
            calibration=after_step(calibration, trial, off, settings.calibration) if trial else calibration,
            asked=asked,
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
    ) -> tuple[CalibrationState, Trial | None, GateMeasurements, GateDecision]:
        measured = measure(state.memory, current, settings.gate)
        if settings.gate.calibration == "off":
            measured = dataclasses.replace(measured, ahead=settings.control.prefetch)
            reason = judge(state.memory, measured, settings.gate)
            return state.calibration, None, measured, report(state.memory, measured, reason, settings.gate)
        calibration = entering(state.calibration, current.instruction, settings)
        trial, decision = try_reuse(state.memory, measured, calibration, settings, self.spec.dt_s)
        return calibration, trial, measured, decision

    def reset(self, cause: Reason = Reason.RESET, held: FloatArray | None = None) -> None:
        """Forget what was seen and take the robot to be at rest.

        Args:
            cause: The gate gives it as the next step's reason.
            held: [D] the row of the last command at which a stop ended it; None: it went on.
        """
        state = self.state
        self.state = dataclasses.replace(
            state,
            memory=state.memory.forgotten(cause),
            inference=None,
            command=state.command if held is None else held[np.newaxis],
            resting=True,
            plans=(),
            resets=state.resets + 1,
            asked=None,
        )

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

    def _request(self, observation: Observation, current: GateInput, settings: Settings) -> Request:
        return Request(observation, settings.pruning, self.state.inference, self._draft(current, settings))

    def _command(
        self, action: FloatArray, state: StepperState, observation: Observation, settings: Settings
    ) -> tuple[FloatArray, NDArray[np.bool_], float]:
        """Slow an action [T, D] down and keep it inside its limits; also where it was clamped, and the scale."""
        positions, elapsed_s = observation.positions, observation.stamp_s - state.command_s
        reference = state.held(observation.stamp_s, self.spec.dt_s)
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

    def _moves(self, command: FloatArray, held: FloatArray | None, observation: Observation) -> bool:
        """Whether more than a gripper is told to move: limits may hold a robot that its model would move."""
        rest = safety.resting(self.spec, held, observation.positions if held is None else {})
        return bool((command != rest)[:, ~self.spec.gripper_mask].any())


def _entering(state: StepperState, settings: Settings) -> StepperState:
    """The state as a step begins: commands of a dry run were never followed, and after one the robot is at rest."""
    if settings.control.dry_run is state.dry_run:
        return state
    return dataclasses.replace(state, command=None, resting=True)


def _same_model(one: Settings, other: Settings) -> bool:
    """Whether two settings ask the same of the model."""
    same_draft = one.decode == other.decode and one.gate.calibration == other.gate.calibration
    return one.pruning == other.pruning and same_draft
