"""Replay a recording through the node's own control step, and compare every decision and action bit for bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from flashvla_ros.bags.frames import Frame, Frames
from flashvla_ros.bags.steps import RecordedStep, RunLog, equal
from flashvla_ros.control.step_result import StepResult
from flashvla_ros.control.stepper import Stepper, StepperState
from flashvla_ros.core.errors import ActionError, ObservationError
from flashvla_ros.core.provenance import Provenance
from flashvla_ros.core.reasons import Reason
from flashvla_ros.core.settings import Settings
from flashvla_ros.gate.calibration import CalibrationState, claim_of
from flashvla_ros.gate.memory import GateMemory


class SettingsInForce:
    """The settings of each recorded step, with what the user overrides.

    Attributes:
        unknown: Steps whose settings are not in the recording; those of the step before were taken.
    """

    def __init__(self, log: RunLog, overrides: Mapping[str, Any]) -> None:
        self._log = log
        self._overrides = overrides
        self._current = log.first.settings if log.first else Settings()
        self.unknown: list[RecordedStep] = []

    @property
    def first(self) -> Settings:
        """Those of the first step; the fixed parameters of every step."""
        return self._overridden(self._current)

    def at(self, frame: Frame) -> Settings:
        """Return the settings of one step."""
        if (step := frame.recorded) is not None:
            if record := self._log.records.get(step.digest):
                self._current = record.settings
            else:
                self.unknown.append(step)
        return self._overridden(self._current)

    def _overridden(self, settings: Settings) -> Settings:
        return settings.with_values(self._overrides) if self._overrides else settings


def play(
    frames: Frames, stepper: Stepper, settings_of: Callable[[Frame], Settings]
) -> Iterator[tuple[Frame, StepResult | None]]:
    """Run the control step on every frame; one without an answer, None, stops the robot, as it does in the node."""
    before: RecordedStep | None = None
    for frame in frames:
        settings = settings_of(frame)
        if frame.recorded is not None:
            _follow(stepper, frame.recorded, before, frame.reset, settings)
            before = frame.recorded
        elif frame.reset is not None:
            stepper.reset(frame.reset)
        try:
            result = stepper.step(frame.observation, settings, answered=_answered(frame.recorded))
        except (ObservationError, ActionError):
            if frame.index == 0:
                raise  # most likely every frame is of this kind
            stepper.reset(Reason.FAULT)
            yield frame, None
        else:
            yield frame, result


def _answered(step: RecordedStep | None) -> bool | None:
    """Whether an answer that was asked for ahead began at a step; None where nothing was recorded."""
    return None if step is None else not step.values["decision"] and step.values["age_s"] > 0.0


def _follow(
    stepper: Stepper, step: RecordedStep, before: RecordedStep | None, cause: Reason | None, settings: Settings
) -> None:
    """Bring the stepper to the recorded activation, resets, number and state of calibration."""
    if before is not None and step.restarted(before):
        before = None
    if cause is not None and before is None:
        stepper.state = StepperState(GateMemory(cause), resets=step.resets, calibration=stepper.state.calibration)
    if before is None or not len(before.values.get("calibration_state", ())):  # it was off, or began with a file
        known = _recorded_calibration(step, settings) or stepper.state.calibration
        stepper.state = dataclasses.replace(stepper.state, calibration=known)
    while cause is not None and stepper.state.resets < step.resets:
        stepper.reset(cause)
    stepper.state = dataclasses.replace(stepper.state, step=step.step)


def _recorded_calibration(step: RecordedStep, settings: Settings) -> CalibrationState | None:
    """What calibration knew before a recorded step; None where it was off, or of a version with another state."""
    claim = claim_of(step.instruction, settings)
    try:
        return CalibrationState.unpacked(step.values.get("calibration_state", ()), claim)
    except ValueError:
        return None


@dataclasses.dataclass(frozen=True)
class Difference:
    """The first value of a step that came out differently."""

    step: int
    field: str
    recorded: Any
    replayed: Any

    def __str__(self) -> str:
        return f"step {self.step}: {self.field} was {_short(self.recorded)} and is {_short(self.replayed)}"


@dataclasses.dataclass(eq=False)
class Comparison:
    """Compares a replay with its recording, step by step.

    Attributes:
        steps: Steps replayed.
        compared: Those that the recording has too.
        differing: Those with any difference.
        reuses: Steps that reused an action.
        recorded_reuses: Those that did in the recording.
        missing: Recorded steps whose images the recording lacks.
        first: The first difference.
    """

    steps: int = 0
    compared: int = 0
    differing: int = 0
    reuses: int = 0
    recorded_reuses: int = 0
    missing: int = 0
    first: Difference | None = None

    def add(self, recorded: RecordedStep | None, result: StepResult | None) -> None:
        """Count one step; `result` is None where it could not be answered."""
        if result is not None:
            self.steps += 1
            self.reuses += result.reused
        if recorded is None:
            return
        self.compared += 1
        self.recorded_reuses += recorded.values["reason"] == Reason.REUSE
        difference = _difference(recorded, result)
        self.differing += difference is not None
        self.first = self.first or difference

    @property
    def identical(self) -> bool:
        """Whether every recorded step was replayed and none differs."""
        return self.compared == self.steps > 0 and not self.differing and not self.missing


def _difference(recorded: RecordedStep, result: StepResult | None) -> Difference | None:
    if result is None:  # the node answered it
        return Difference(recorded.step, "reason", recorded.values["reason"], str(Reason.FAULT))
    replayed = result.reported
    found = (name for name, value in recorded.values.items() if not equal(value, replayed[name]))
    name = next(found, None)
    return Difference(recorded.step, name, recorded.values[name], replayed[name]) if name else None


def reasons_to_differ(log: RunLog, here: Provenance, changed: Mapping[str, Any]) -> list[str]:
    """Return everything known before a replay that can make it differ from its recording.

    Args:
        log: What was recorded.
        here: Weights and platform of the replay.
        changed: Parameters that the user overrides.
    """
    if log.first is None:
        return ["the bag does not hold the node's settings (~/settings), so defaults were taken"]
    then = log.first.settings.values()
    found = [f"{name} was {then[name]} and is {value} here" for name, value in changed.items() if then[name] != value]
    if log.first.checkpoint != here.checkpoint:
        found.append(f"the checkpoint was another one ({log.first.checkpoint[:12]}, here {here.checkpoint[:12]})")
    for name in sorted({*log.first.platform, *here.platform}):
        before, now = log.first.platform.get(name, "unknown"), here.platform.get(name, "unknown")
        if before != now:
            found.append(f"{name} was {before} and is {now} here")
    if log.steps and log.steps[0].step > 0:
        found.append(
            f"the recording begins at step {log.steps[0].step}, and what the gate remembered then is not in it"
        )
    return found


def _short(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return np.array2string(value, threshold=8, separator=", ", max_line_width=10**6)
    return repr(value) if isinstance(value, str) else str(value)
