"""The thread that owns the model: takes the newest observation, runs one control step, hands on its command.

Callbacks only post. Every stop, reset, new instruction and dry run opens a new epoch; what was posted or computed in
an earlier one is never handed on, however late the model returns. Stopping takes effect before :meth:`Worker.stop`
returns.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from flashvla_ros.control import safety, targets
from flashvla_ros.control.mailbox import Mailbox
from flashvla_ros.control.step_result import StepResult
from flashvla_ros.control.stepper import Stepper, StepperState
from flashvla_ros.core.chunk import in_force
from flashvla_ros.core.reasons import LATCHED, Reason
from flashvla_ros.core.settings import Settings
from flashvla_ros.core.types import FloatArray, Observation

_PACE_SLICE_S = 0.05  # a new control.rate_hz is noticed within this time
_JOIN_S = 2.0


class State(enum.StrEnum):
    """What the robot gets from the worker."""

    WAITING = "waiting"  # no command yet
    RUNNING = "running"  # the last step's command is in force
    STOPPED = "stopped"  # the stop action is, until the next step, or a reset where the cause asks for one


@dataclasses.dataclass(frozen=True, eq=False)
class Stop:
    """The robot must stop.

    Attributes:
        cause: Why; the gate gives it as the reason of the step that follows.
        detail: The same in words, for the log and the status.
        command: [1, D] to publish now; None where nothing is to be published: the stop action is ``none``, or no
            command is in force.
        positions: Where the robot is, by the name of a dimension.
    """

    cause: Reason
    detail: str
    command: FloatArray | None
    positions: Mapping[str, float] = dataclasses.field(default_factory=dict)


class Worker:
    """Runs a stepper on a thread of its own.

    Callbacks are called with the worker's lock held, so that they never overlap: `on_step` and `on_stop` publish.

    Attributes:
        spec: What the dimensions of a command mean.
        state: What the robot gets at present.
        stopped_by: The stop in force, None where there is none.
        late: Results that were dropped because their epoch had ended.
        frozen: A camera shows the same picture again and again, says the watchdog.
        held: No guard would pass a command on.
        before_command: Stops the robot where that is due.

    Args:
        stepper: The control step; nobody else may use it while the worker lives.
        settings: Returns those in force, whose holder replaces them as a whole, and within :meth:`changing`.
        on_step: Gets every result that is to be published.
        on_stop: Gets every new stop, on whichever thread noticed it.
        on_fault: Gets every exception of a step; the robot is stopped by then.
        positions: Returns where the robot is, by the name of a dimension; without it, where it was at the newest
            observation.
        clock: Monotonic seconds.
        stamp_clock: Seconds on the clock of the observations' stamps; without it no image is too old.
    """

    def __init__(
        self,
        stepper: Stepper,
        settings: Callable[[], Settings],
        *,
        on_step: Callable[[StepResult], None],
        on_stop: Callable[[Stop], None],
        on_fault: Callable[[Exception], None],
        positions: Callable[[], Mapping[str, float]] | None = None,
        clock: Callable[[], float] = time.monotonic,
        stamp_clock: Callable[[], float] | None = None,
    ) -> None:
        self._settings = settings
        self._stepper = stepper
        self._on_step, self._on_stop, self._on_fault = on_step, on_stop, on_fault
        self.positions = positions or self._observed
        self._clock = clock
        self._stamp_clock = stamp_clock
        self.before_command: Callable[[], None] = lambda: None
        self._mailbox: Mailbox[tuple[int, Observation]] = Mailbox()
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="flashvla-worker", daemon=True)
        self._epoch = 0
        self._reset_cause: Reason | None = None  # of a reset that the thread has yet to do
        self.spec = stepper.spec
        self.state = State.WAITING
        self.stopped_by: Stop | None = None
        self._since_s: float | None = None
        self._published: tuple[FloatArray, float] | None = None  # rows of the last command or stop, and when
        self._cut: FloatArray | None = None  # the row at which a stop ended the last trajectory
        self._observation: Observation | None = None
        self.late = 0
        self.frozen = self.held = False

    @property
    def settings(self) -> Settings:
        """Those in force."""
        return self._settings()

    @property
    def running_since_s(self) -> float | None:
        """When the model that runs was asked, or the step in progress began, on the worker's clock; None: neither."""
        since_s, asked = self._since_s, self._stepper.state.asked
        if asked is None or asked.answer.done() or self.state is not State.RUNNING:
            return since_s
        return asked.since_s if since_s is None else min(since_s, asked.since_s)

    @property
    def in_force(self) -> FloatArray | None:
        """The row [D] of the last command that the robot should be following; None where none is in force."""
        with self._lock:
            return self._held() if self.state is State.RUNNING else None

    @property
    def commanded_s(self) -> float | None:
        """When the command in force was handed on, on the worker's clock; None where none is in force."""
        with self._lock:
            return self._published[1] if self._published is not None and self.state is State.RUNNING else None

    @property
    def dropped(self) -> int:
        """Observations replaced by a newer one before they were used."""
        return self._mailbox.dropped

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> bool:
        """Hand on nothing more and end the thread; False where the model still holds it after two seconds."""
        with self._lock:
            self._epoch += 1
        self._closed.set()
        self._mailbox.close()
        if self._thread.is_alive():
            self._thread.join(_JOIN_S)
        return not self._thread.is_alive() and self._stepper.model.close(_JOIN_S)

    def post(self, observation: Observation) -> None:
        """Leave an observation for the next step; ignored while frozen or held, or while only a reset ends a stop."""
        with self._lock:
            if not (self._latched or self.frozen or self.held):
                self._observation = observation
                self._mailbox.post((self._epoch, observation))

    def stop(self, cause: Reason, detail: str) -> None:
        """Stop the robot, once for as long as the cause lasts; the step in progress is disowned.

        The stop holds until a step answers an observation posted from now on, or for a latched cause until
        :meth:`reset`.
        """
        with self._lock:
            if self._latched and (cause is not Reason.EMERGENCY_STOP or self._stop_is(cause)):
                return
            self._epoch += 1
            self._reset_cause, self._since_s = cause, None
            if not self._stop_is(cause):
                positions, command = self.positions(), None
                if self.state is State.RUNNING:  # else none is in force, and the robot may have been moved since
                    held = self._held()
                    command = safety.stop_command(self.settings.control.stop_action, self.spec, held, positions)
                    self._cut = None if command is None else held
                if command is not None:
                    self._published = command, self._clock()
                self.state, self.stopped_by = State.STOPPED, Stop(cause, detail, command, positions)
                self._on_stop(self.stopped_by)

    def keep_at_rest(self, cause: Reason, detail: str) -> None:
        """Stop a robot that moves; of one that stands, only drop the step in progress, whose command would move it."""
        with self._lock:
            if self.state is State.RUNNING:
                self.stop(cause, detail)
            else:
                self.discard()

    @contextlib.contextmanager
    def changing(self, settings: Settings) -> Iterator[None]:
        """Hand on nothing while `settings` come into force; a robot that moves is stopped before a dry run begins."""
        with self._lock:
            if settings.control.dry_run and not self.settings.control.dry_run:
                self.keep_at_rest(Reason.DRY_RUN, "control.dry_run is true: commands are computed and not sent")
                self._published = None  # whatever else may command it now, a stop of ours must not
            yield

    def reset(self) -> None:
        """Forget everything seen so far and release a latched stop; a robot that moves is stopped.

        The next step takes the robot to be at rest, so it must be.
        """
        with self._lock:
            if self._latched:
                self.state, self.stopped_by = State.WAITING, None
            elif self.state is State.RUNNING:
                self.stop(Reason.RESET, "asked for on ~/reset")
            self.discard()
            self._reset_cause = Reason.RESET

    def discard(self) -> None:
        """Drop the step in progress and the observation that waits, such as after a new instruction.

        The memory stays, and the model that runs is still held to its deadline.
        """
        with self._lock:
            self._epoch += 1

    @property
    def _latched(self) -> bool:
        return self.stopped_by is not None and self.stopped_by.cause in LATCHED

    def _stop_is(self, cause: Reason) -> bool:
        return self.stopped_by is not None and self.stopped_by.cause is cause

    def _observed(self) -> Mapping[str, float]:
        return self._observation.positions if self._observation else {}

    def _held(self) -> FloatArray | None:
        if self._published is None:
            return None
        command, when_s = self._published
        return in_force(command, self._clock() - when_s, self.spec.dt_s)

    def _run(self) -> None:
        started_s = -float("inf")
        while self._wait_for_turn(started_s):
            posted = self._mailbox.take()
            if posted is not None:
                started_s = self._clock()
                self._answer(*posted)

    def _refuse_old(self, result: StepResult) -> None:
        """Stop the robot in place of a command that would answer an image which has become too old."""
        limit_s = self.settings.control.max_image_age_s
        answered_s = result.observation.stamp_s - (result.decision.age_s if result.fresh else 0.0)
        age_s = self._stamp_clock() - answered_s if self._stamp_clock and limit_s > 0.0 else 0.0
        if age_s > limit_s:
            self.stop(
                Reason.IMAGE_TIMEOUT,
                f"the image is {age_s:.2f} s old by its stamp when its command is ready (control.max_image_age_s is "
                f"{limit_s:g})",
            )

    def _wait_for_turn(self, started_s: float) -> bool:
        """Keep control.rate_hz; False once the worker is closed."""
        while not self._closed.is_set():
            rate_hz = self.settings.control.rate_hz
            remaining_s = started_s + 1.0 / rate_hz - self._clock() if rate_hz > 0.0 else 0.0
            if remaining_s <= 0.0:
                return True
            self._closed.wait(min(remaining_s, _PACE_SLICE_S))
        return False

    def _hand_on(self, epoch: int, before: StepperState, result: StepResult) -> bool:
        """Hand on a result, if its epoch still lasts; False where its settings were replaced before that."""
        with self._lock:
            if epoch == self._epoch:
                if result.settings is not self.settings:
                    return False
                self.before_command()
                self._refuse_old(result)
            if epoch != self._epoch:
                self._stepper.state = before  # as if never tried: its command was not published
                self.late += 1
                return True
            self._since_s = None
            sent = targets.told(result.settings.command.type, result.command)
            self._published = None if result.settings.control.dry_run else (sent, self._clock())
            self.state, self.stopped_by = State.RUNNING, None
            self._on_step(result)
            return True

    def _answer(self, epoch: int, observation: Observation) -> None:
        """Run one step and hand on its result, if its epoch still lasts."""
        with self._lock:
            if epoch != self._epoch:
                return
            cause, self._reset_cause = self._reset_cause, None
            self._since_s = self._clock()
        try:
            if cause is not None:
                self._stepper.reset(cause, self._cut)
            before, result = self._stepper.state, None
            while result is None or not self._hand_on(epoch, before, result):
                self._stepper.state = before
                result = self._stepper.step(observation, self.settings, tried=result)
        except Exception as error:  # noqa: BLE001 - whatever a model raises, the robot stops and the thread lives on
            with self._lock:
                if epoch == self._epoch:
                    self.stop(Reason.FAULT, f"{type(error).__name__}: {error}")
                self._on_fault(error)
        finally:
            self._since_s = None
