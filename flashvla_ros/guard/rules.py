"""What passes and what stops the robot: a pure state machine, told of commands, of the time and of its surroundings.

It is used with a lock held. Times are monotonic seconds; values are rows [T, D] in the units of the command.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping

import numpy as np

from flashvla_ros.control import safety
from flashvla_ros.control.limits import CommandBounds, bounds_of, limit
from flashvla_ros.control.motion import oriented
from flashvla_ros.core.chunk import elapsed_rows, in_force
from flashvla_ros.core.errors import ActionError
from flashvla_ros.core.reasons import Reason
from flashvla_ros.core.types import ActionKind, FloatArray
from flashvla_ros.guard.settings import GuardSettings

_SLACK = 1e-9  # of a value, for what is divided and multiplied on its way here
_UNIT = 1e-3  # by which the length of a quaternion may differ from 1
_NOWHERE: Mapping[str, float] = {}


class GuardState(enum.StrEnum):
    """What the guard does at present."""

    READY = "ready"  # no command is in force; the next good one passes
    PASSING = "passing"
    STOPPED = "stopped"  # nothing passes


@dataclasses.dataclass(frozen=True)
class Age:
    """How old a command is where it arrives; None where it does not say.

    Attributes:
        stamp_s: Since the observation that it answers.
        transit_s: Since it was published.
    """

    stamp_s: float | None = None
    transit_s: float | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class GuardStop:
    """The robot must stop, or another cause holds it.

    Attributes:
        cause: Why.
        detail: The same in words.
        values: [1, D] to publish now; None where nothing is: the stop action is ``none``, or no command is in force.
    """

    cause: Reason
    detail: str
    values: FloatArray | None


class Guard:
    """Judges one publisher's commands.

    Attributes:
        state: What it does at present.
        stopped_by: The stop in force, None where there is none.
        writers: Publishers of the command topic; more than one is one too many.
        alive: Whether the publisher says that it lives.
        passed, refused, stops: Counts.
    """

    def __init__(self, settings: GuardSettings) -> None:
        self.settings, self.spec = settings, settings.spec
        self.state = GuardState.READY
        self.stopped_by: GuardStop | None = None
        self.writers, self.alive = 1, True
        self.passed = self.refused = self.stops = 0
        self._bounds: CommandBounds = bounds_of(settings.limits, self.spec)
        matrix = settings.guard.step_matrix
        self._whitening = np.reshape(matrix, (self.spec.size, self.spec.size)) if matrix else None
        self._stepped = bool(matrix or np.isfinite([self._bounds.step, self._bounds.speed]).any())
        self._absolute = np.array([kind is ActionKind.ABSOLUTE for kind in self.spec.kinds])
        self._passed: tuple[FloatArray, float] | None = None  # the command in force, and since when
        self._held: FloatArray | None = None  # [D] the last row that the robot was told
        self._cause_s = 0.0  # when the cause of the stop was last seen
        self._known = b""  # whose command is in force

    def command(
        self,
        values: FloatArray,
        age: Age,
        now_s: float,
        positions: Mapping[str, float] = _NOWHERE,
        *,
        publisher: bytes = b"",
    ) -> tuple[bool, GuardStop | None]:
        """Judge a command [T, D] of a publisher, by its identity where the middleware says it.

        Returns whether it passes, and the stop that one which does not pass may cause.
        """
        stop = self.tick(now_s, positions)
        fault = self._strange(publisher) or self._late(age) or self._wrong(values, now_s, positions)
        if fault is None and self.state is not GuardState.STOPPED:
            self.state, self._known = GuardState.PASSING, publisher
            self._passed, self._held = (values, now_s), values[-1]
            self.passed += 1
            return True, stop
        self.refused += 1
        return False, stop if fault is None else self.stop(*fault, now_s, positions) or stop

    def gripper(
        self, value: float, age: Age, now_s: float, positions: Mapping[str, float] = _NOWHERE
    ) -> tuple[bool, GuardStop | None]:
        """Judge the value of a gripper, which passes where a command would."""
        if self.state is GuardState.STOPPED or self.writers > 1:
            return False, None
        if late := self._late(age):
            return False, self.stop(*late, now_s, positions)
        low, high = self.settings.guard.gripper or (-np.inf, np.inf)
        if np.isfinite(value) and low <= value <= high:
            return True, None
        detail = f"gripper_command is {value:g} (guard.gripper is {list(self.settings.guard.gripper) or 'any'})"
        cause = Reason.LIMITS if np.isfinite(value) else Reason.NOT_FINITE
        return False, self.stop(cause, detail, now_s, positions)

    def stop(
        self, cause: Reason, detail: str, now_s: float, positions: Mapping[str, float] = _NOWHERE
    ) -> GuardStop | None:
        """Stop the robot, once for as long as a cause lasts; an emergency stop lasts until :meth:`reset`."""
        self._cause_s = now_s
        before = self.stopped_by
        if before is not None and (cause is not Reason.EMERGENCY_STOP or before.cause is cause):
            return None
        values = None
        if self.state is GuardState.PASSING:  # else none is in force, and the robot may have been moved since
            held = self._in_force(now_s)
            values = safety.stop_command(self.settings.guard.stop_action, self.spec, held, positions)
            self._held = values[-1] if values is not None else held
        self.state, self.stopped_by, self._passed = GuardState.STOPPED, GuardStop(cause, detail, values), None
        self.stops += 1
        return self.stopped_by

    def reset(self, now_s: float) -> bool:
        """Release an emergency stop; says whether there was one."""
        if self.stopped_by is None or self.stopped_by.cause is not Reason.EMERGENCY_STOP:
            return False
        self.state, self.stopped_by, self._cause_s = GuardState.READY, None, now_s
        return True

    def tick(self, now_s: float, positions: Mapping[str, float] = _NOWHERE) -> GuardStop | None:
        """Look at the time and the publishers: stop where something is due, be ready again where its cause is over."""
        if self.writers > 1:
            detail = f"{self.writers} publishers send commands: nobody can tell which one to follow"
            return self.stop(Reason.PUBLISHER, detail, now_s, positions)
        if self._moving and not self.alive:
            return self.stop(Reason.PUBLISHER, "the publisher of commands is gone or does not run", now_s, positions)
        if now_s > self.due_s:
            limit_s = self.settings.guard.timeout_s
            silence_s = now_s - self.due_s + limit_s
            detail = f"no command for {silence_s:.3f} s (guard.timeout_s is {limit_s:g})"
            return self.stop(Reason.SILENCE, detail, now_s, positions)
        if self.stopped_by is not None and self.stopped_by.cause is not Reason.EMERGENCY_STOP:
            if not self.alive:
                self._cause_s = now_s
            elif now_s - self._cause_s >= self.settings.guard.resume_s:
                self.state, self.stopped_by = GuardState.READY, None
        return None

    @property
    def due_s(self) -> float:
        """When the robot is stopped unless another command comes; infinite while it is not moving."""
        if self._passed is None or not self._moving:
            return np.inf
        values, since_s = self._passed
        return since_s + self.settings.guard.timeout_s + (len(values) - 1) * self.spec.dt_s

    @property
    def _moving(self) -> bool:
        """Whether the command in force moves the robot: one of zero velocities may well be the last."""
        return self._passed is not None and bool(self._absolute.any() or self._passed[0].any())

    def _in_force(self, now_s: float) -> FloatArray | None:
        if self._passed is None:
            return self._held
        values, since_s = self._passed
        return in_force(values, now_s - since_s, self.spec.dt_s)

    def _strange(self, publisher: bytes) -> tuple[Reason, str] | None:
        """One publisher moves the robot; another may take its place once the robot stands."""
        if self._moving and publisher != self._known:
            return Reason.PUBLISHER, "a command comes from another publisher than the one that moves the robot"
        return None

    def _late(self, age: Age) -> tuple[Reason, str] | None:
        watch = self.settings.guard
        for words, age_s, name, limit_s in (
            ("answers an observation", age.stamp_s, "max_age_s", watch.max_age_s),
            ("was published", age.transit_s, "max_transit_s", watch.max_transit_s),
        ):
            if age_s is not None and limit_s > 0.0 and not -limit_s <= age_s <= limit_s:
                return Reason.STALE_COMMAND, f"a command {words} {age_s:.3f} s ago (guard.{name} is {limit_s:g})"
        return None

    def _wrong(self, values: FloatArray, now_s: float, positions: Mapping[str, float]) -> tuple[Reason, str] | None:
        """Return what is wrong with a command; every reference that it may have counted from is tried."""
        if values.ndim != 2 or len(values) == 0 or values.shape[1] != self.spec.size:
            return Reason.LIMITS, f"a command has shape {list(values.shape)}, expected [T, {self.spec.size}]"
        bad = np.flatnonzero(~np.isfinite(values).all(axis=0))
        if bad.size:
            return Reason.NOT_FINITE, f"a command is not finite in {[self.spec.names[index] for index in bad]}"
        if not (values - safety.resting(self.spec, None, {})).any():
            return None  # zero velocities: no limit of a step may stand in a stop's way
        wrong = ""
        for reference in self._references(now_s, positions):
            wrong = self._beyond(values, reference, positions)
            if not wrong:
                return None
        return Reason.LIMITS, wrong

    def _references(self, now_s: float, positions: Mapping[str, float]) -> list[FloatArray]:
        """Rows [D] of the command in force: of a chunk, the policy may have counted one time step more or less."""
        if self._passed is None:
            return [safety.resting(self.spec, self._held, positions)]
        values, since_s = self._passed
        if len(values) == 1:
            return [np.asarray(values[0])]
        row = min(elapsed_rows(now_s - since_s, self.spec.dt_s), len(values) - 1)
        return [np.asarray(values[index]) for index in (row, row - 1, row + 1) if 0 <= index < len(values)]

    def _beyond(self, values: FloatArray, reference: FloatArray, positions: Mapping[str, float]) -> str:
        """Say by which limit a command would be changed; empty where it would not."""
        names = self.spec.names
        unknown = [names[index] for index in np.flatnonzero(self._absolute & np.isnan(reference))]
        if self._stepped and unknown:
            return f"where {unknown} are is unknown, so no step of theirs can be limited: publish their positions"
        try:
            turned = oriented(values, reference, self.spec)
            quaternion = self.spec.quaternion
            if quaternion and np.abs(np.linalg.norm(values[:, quaternion], axis=1) - 1.0).max() > _UNIT:
                return "a command's qx, qy, qz, qw is no rotation: its length is not 1"
            inside, _ = limit(turned, reference, self.settings.limits, self.spec, positions=positions)
        except ActionError as error:
            return str(error)
        beyond = np.abs(inside - turned) > _SLACK * np.maximum(np.abs(turned), 1.0)
        if not beyond.any():
            return self._leap(turned, reference)
        row, index = np.argwhere(beyond)[0]
        before, name = reference[index] if row == 0 else values[row - 1][index], names[index]
        return (
            f"a command asks for {values[row][index]:.4g} of {name} after {before:.4g}; the guard's limits allow "
            f"{inside[row][index]:.4g}"
        )

    def _leap(self, values: FloatArray, reference: FloatArray) -> str:
        """Say by how much a step is longer than the matrix allows; empty where it is not."""
        if self._whitening is None:
            return ""
        steps = np.diff(values, axis=0, prepend=reference[np.newaxis])
        length = float(np.linalg.norm(steps @ self._whitening.T, axis=1).max())
        if length <= 1.0 + _SLACK:  # one that overflows is not a number, and longer than anything
            return ""
        return f"a command's step is {length:.4g} times what guard.step_matrix allows"
