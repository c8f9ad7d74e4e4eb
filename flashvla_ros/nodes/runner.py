"""One activation of the policy node: the worker and its watchdog between the node's inputs and outputs."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping

from rclpy.impl.rcutils_logger import RcutilsLogger

from flashvla_ros.control.monitors import SignMonitor
from flashvla_ros.control.step_result import StepResult
from flashvla_ros.control.stepper import Stepper
from flashvla_ros.control.tally import Tally
from flashvla_ros.control.watchdog import Watchdog
from flashvla_ros.control.worker import Stop, Worker
from flashvla_ros.core.errors import FlashVLAError
from flashvla_ros.core.reasons import Reason
from flashvla_ros.core.settings import Settings
from flashvla_ros.gate.calibration import CalibrationState
from flashvla_ros.nodes.logs import Rejections
from flashvla_ros.nodes.outputs import Outputs


class Runner:
    """Lives from activate to deactivate; its counts stay readable afterwards.

    Attributes:
        worker: The thread that owns the model.
        watchdog: What stops the robot when a camera or the model falls silent.
        tally: Counts and latencies of the steps.
        stops: Times the robot was stopped.
        monitor: Watches the commands for signs of a policy that is lost.
        alarm: Which of its thresholds are exceeded, in words; empty where none is.
        positions: Returns where the robot is.
    """

    def __init__(
        self,
        stepper: Stepper,
        settings: Callable[[], Settings],
        outputs: Outputs,
        logger: RcutilsLogger,
        positions: Callable[[], Mapping[str, float]],
        *,
        stamp_clock: Callable[[], float],
    ) -> None:
        self._outputs = outputs
        self._logger = logger
        self._stepper = stepper
        self._faults = Rejections(lambda line: logger.error(line))
        self.worker = Worker(
            stepper,
            settings,
            on_step=self._on_step,
            on_stop=self._on_stop,
            on_fault=self._on_fault,
            positions=positions,
            stamp_clock=stamp_clock,
        )
        self.watchdog = Watchdog(self.worker)
        self.tally = Tally()
        self.monitor = SignMonitor(stepper.spec)
        self.alarm = ""
        self.stops = 0
        self._moving = False

    def start(self) -> None:
        """Start answering observations."""
        self.worker.start()
        self.watchdog.start()

    def close(self, why: str) -> bool:
        """Stop the robot and the threads; False where the model still holds its thread."""
        self.worker.stop(Reason.DEACTIVATED, why)
        self.watchdog.close()
        self._outputs.flush()
        return self.worker.close()

    @property
    def calibration(self) -> CalibrationState:
        """What the thresholds have learnt so far."""
        return self._stepper.state.calibration

    @property
    def stop_reason(self) -> str:
        """Why the robot is stopped, empty where it is not."""
        stop = self.worker.stopped_by
        return f"{stop.cause}: {stop.detail}" if stop else ""

    def _on_step(self, result: StepResult) -> None:
        stamp_latency_s = self._outputs.step(result)
        self.tally.add(result, time.monotonic(), stamp_latency_s)
        if not self._moving:
            self._moving = True
            what = "dry run, no command is sent" if result.settings.control.dry_run else "moving"
            self._logger.info(f"{what}: {result.observation.instruction!r}")
        self._watch(result)

    def _watch(self, result: StepResult) -> None:
        settings, before = result.settings.monitor, self.alarm
        stamp_s, confidence = result.observation.stamp_s, result.inference.confidence
        signs = self.monitor.add(stamp_s, result.command, confidence, settings.window_s)
        self.alarm = signs.beyond(settings)
        if self.alarm and settings.stop:
            self.worker.stop(Reason.MONITOR, self.alarm)
        elif self.alarm and not before:
            self._logger.warning(f"the policy may be lost: {self.alarm}")

    def _on_stop(self, stop: Stop) -> None:
        self.stops += 1
        self._moving = False
        self.monitor.reset()
        if stop.command is not None:
            self._outputs.stop(stop.command, stop.positions)
        line = f"stopped, {stop.cause}: {stop.detail}"
        if stop.cause in (Reason.DEACTIVATED, Reason.DRY_RUN, Reason.RESET):
            self._logger.info(line)
        else:  # two calls: rclpy ties a severity to the line that logs
            self._logger.error(line)

    def _on_fault(self, error: Exception) -> None:
        """The stop itself is logged with the error's text; where that is a programming error, say where it happened."""
        if not isinstance(error, FlashVLAError):
            self._faults.add("".join(traceback.format_exception(error)).rstrip())
