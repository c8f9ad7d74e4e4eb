"""The policy node: a lifecycle node that wires topics and parameters to a policy, and no more.

configure reads parameters and opens topics; activate loads the model and warms it up before it returns; deactivate
stops the robot and keeps the model; cleanup frees it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from std_srvs.srv import Trigger

from flashvla_ros.control.limits import unlimited
from flashvla_ros.control.monitors import Signs
from flashvla_ros.control.stepper import Stepper, StepperState
from flashvla_ros.control.tally import Tally
from flashvla_ros.control.worker import State
from flashvla_ros.core.certificate import certification
from flashvla_ros.core.provenance import Provenance
from flashvla_ros.core.reasons import Reason
from flashvla_ros.core.settings import Settings
from flashvla_ros.core.types import ActionSpec
from flashvla_ros.gate.calibration import CalibrationState
from flashvla_ros.nodes import interfaces
from flashvla_ros.nodes.calibrating import Calibrating, check_thresholds, last_thresholds
from flashvla_ros.nodes.emergency import EmergencyStop
from flashvla_ros.nodes.guard_watch import GuardWatch
from flashvla_ros.nodes.inputs import Inputs, unheard_publishers
from flashvla_ros.nodes.logs import Rejections, reported
from flashvla_ros.nodes.outputs import Outputs
from flashvla_ros.nodes.parameters import NodeParameters
from flashvla_ros.nodes.process import StoppableNode, leave, run_node
from flashvla_ros.nodes.robot_model import check_reported, urdf_limits
from flashvla_ros.nodes.runner import Runner
from flashvla_ros.nodes.status import Health, Reporter
from flashvla_ros.remote.loading import FROM_SETTINGS
from flashvla_ros.vla.loading import EngineState, LoadedPolicy, PolicyFactory


class PolicyNode(StoppableNode, LifecycleNode):
    """The node ``flashvla``; it fails where it cannot start by itself (``node.autostart``).

    Attributes:
        transition_error: Why the last transition failed.
    """

    def __init__(self, factory: PolicyFactory = FROM_SETTINGS, **options: Any) -> None:
        """Declare the parameters; `options` are those of :class:`rclpy.lifecycle.LifecycleNode`.

        Raises:
            SettingsError: A parameter given at start is unknown, of the wrong type or breaks a rule.
        """
        super().__init__("flashvla", **options)
        self.transition_error = ""
        self._factory = factory
        self._loaded: LoadedPolicy | None = None
        self._runner: Runner | None = None
        self._table = NodeParameters(self, check=self._check_settings, changing=self._changing, along=self._along)
        self._certificate = ""  # what certifies the settings in force, or why nothing does
        self._unlimited: list[str] = []  # what was last said to have no limits
        self._rejections = Rejections(lambda line: self.get_logger().warning(line))
        # Outlives every transition; only ~/reset ends it.
        self._emergency = EmergencyStop(
            self, self._on_emergency_stop, unheard_publishers(self, interfaces.EMERGENCY_STOP, self._rejections.add)
        )
        self._topics = contextlib.ExitStack()
        if self.settings.node.autostart:
            self._autostart = self.create_timer(0.0, self._start, clock=Clock(clock_type=ClockType.STEADY_TIME))

    @property
    def settings(self) -> Settings:
        """The parameters in force."""
        return self._table.settings

    # Lifecycle.

    @reported
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Check what can be checked without the model, and open the topics."""
        self._release()  # what an attempt that failed half-way has left
        self._factory.precheck(self.settings)
        self._spec = ActionSpec.of(self.settings.action)
        self._table.put(urdf_limits(self, self.settings.limits, self._spec))
        check_reported(self, self._spec)
        opened = self._topics.enter_context
        self._outputs = opened(closing(Outputs(self, self.settings, self._spec)))
        self._inputs = opened(closing(Inputs(self, lambda: self.settings, self._rejections)))
        self._guard = opened(closing(GuardWatch(self, self.settings.control.require_guard)))
        self._calibrating = opened(closing(Calibrating(self, self._learnt)))
        self._reporter = opened(closing(Reporter(self, self._facts)))
        self._topics.callback(self.destroy_service, self.create_service(Trigger, interfaces.RESET, self._on_reset))
        return super().on_configure(state)

    @reported
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model unless it is there, warm it up, and start answering images."""
        settings, logger = self.settings, self.get_logger()
        started_s = time.monotonic()
        self.loading = True
        try:
            if self._loaded is None:
                logger.info(f"loading {settings.model.remote or settings.model.checkpoint or 'the demo policy'}")
                self._loaded = self._factory.load(settings)
            self._loaded.check(settings)
            stepper = Stepper(self._loaded.policy, self._spec, executor=ThreadPoolExecutor(1, "flashvla-prefetch"))
            learnt = self._calibrating.take_up(settings.calibration, self._loaded.checkpoint or settings.model.remote)
            stepper.state = StepperState(calibration=learnt)
        finally:
            self.loading = False
        super().on_activate(state)
        self._warn_unlimited(settings)
        self._publish_settings(self._loaded)
        self._runner = Runner(
            stepper, lambda: self.settings, self._outputs, logger, self._inputs.positions, stamp_clock=self._stamp_s
        )
        self._runner.start()
        if self._emergency.pressed:
            self._stop_for_emergency(self._runner)
        self._guard.start(self._runner.worker)
        self._inputs.start(self._runner.worker, self._runner.watchdog)
        images = (self.resolve_topic_name(topic.name) for topic in interfaces.image_topics(settings.camera).values())
        logger.info(f"active after {time.monotonic() - started_s:.1f} s; it answers images on {', '.join(images)}")
        return TransitionCallbackReturn.SUCCESS

    @reported
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop the robot; the model stays."""
        self._halt("deactivated")
        return super().on_deactivate(state)

    @reported
    def on_cleanup(self, _state: LifecycleState) -> TransitionCallbackReturn:
        """Close the topics and free the model."""
        self._release()
        return TransitionCallbackReturn.SUCCESS

    @reported
    def on_shutdown(self, _state: LifecycleState) -> TransitionCallbackReturn:
        """Stop the robot and let go of everything, from any state."""
        self.close("shut down")
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, _state: LifecycleState) -> TransitionCallbackReturn:
        """After a programming error in a transition: back to unconfigured."""
        self.close("error in a transition")
        return TransitionCallbackReturn.SUCCESS

    def close(self, why: str) -> None:
        """Stop the robot and let go of everything; may be called at any time, and again."""
        self._halt(why)
        self._release()

    def _halt(self, why: str) -> None:
        if self._runner is None:
            return
        self._inputs.stop()
        self._guard.stop()
        if not self._runner.close(why):
            self.get_logger().error("the model still runs; it is given up, and the next activation loads it again")
            self._loaded = None

    def _release(self) -> None:
        self._topics.close()
        self._runner = self._loaded = None

    def _start(self) -> None:
        self.destroy_timer(self._autostart)
        for trigger in (self.trigger_configure, self.trigger_activate):
            if trigger() is not TransitionCallbackReturn.SUCCESS:
                self.failure = self.transition_error or "the node could not be activated"
                return

    def destroy_node(self) -> None:
        """Give every handle back; an emergency stop is heard until here."""
        if hasattr(self, "_emergency"):  # a parameter that was refused at start left the node half made
            self._emergency.close()
        super().destroy_node()

    # What arrives.

    def _on_emergency_stop(self) -> None:
        """On the emergency stop's own thread."""
        if runner := self._runner:
            self._stop_for_emergency(runner)
        else:
            self.get_logger().error("emergency stop: the robot will not move until ~/reset is called")

    def _stop_for_emergency(self, runner: Runner) -> None:
        topic = self.resolve_topic_name(interfaces.EMERGENCY_STOP.name)
        runner.worker.stop(Reason.EMERGENCY_STOP, f"asked for on {topic}; holds until ~/reset is called")

    def _stamp_s(self) -> float:
        seconds, nanoseconds = self.get_clock().now().seconds_nanoseconds()
        return float(seconds) + nanoseconds * 1e-9

    def _on_reset(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        released = self._emergency.release()
        if self._runner:
            self._runner.worker.reset()
            if self._emergency.pressed:  # since its release, which the worker's reset has then forgotten
                self._stop_for_emergency(self._runner)
        response.success = True
        response.message = "emergency stop released, memory emptied" if released else "memory emptied"
        return response

    def _learnt(self) -> CalibrationState | None:
        return self._runner.calibration if self._runner else None

    def _along(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        return last_thresholds(self.settings, self._learnt(), values)

    def _check_settings(self, settings: Settings) -> None:
        check_thresholds(self.settings, settings)
        if self._loaded:
            self._loaded.check(settings)

    @contextlib.contextmanager
    def _changing(self, settings: Settings) -> Iterator[None]:
        with self._runner.worker.changing(settings) if self._runner else contextlib.nullcontext():
            yield
        if self._loaded:
            self._publish_settings(self._loaded)
        if self._runner:
            self._warn_unlimited(settings)

    def _warn_unlimited(self, settings: Settings) -> None:
        """Say which dimensions nothing bounds, once: a file that was not read, or for another node, shows there."""
        before, self._unlimited = self._unlimited, unlimited(settings.limits, self._spec)
        if self._unlimited and self._unlimited != before:
            self.get_logger().warning(
                f"NO LIMITS: nothing bounds {', '.join(self._unlimited)}, whatever the policy says is commanded; set "
                f"limits.lower and limits.upper, or give a URDF"
            )

    # What the node says of itself.

    def _publish_settings(self, loaded: LoadedPolicy) -> None:
        self._reporter.settings(Provenance(self.settings, loaded.checkpoint, loaded.platform))
        dtype = loaded.platform.get("dtype", self.settings.model.dtype)
        _, certificate = certification(self.settings.with_values({"model.dtype": dtype}), loaded.checkpoint)
        if certificate != self._certificate:
            self._certificate = certificate
            self.get_logger().info(certificate)

    def _facts(self) -> tuple[Health, Tally]:
        inputs, runner = self._inputs, self._runner
        halted = "emergency_stop" if self._emergency.pressed else ""
        said = {
            "state": runner.worker.state if runner else State.STOPPED if halted else State.WAITING,
            "stop_reason": runner.stop_reason if runner else halted,
            "instruction": inputs.instruction,
            "dropped": runner.worker.dropped if runner else 0,
            "rejected": inputs.rejections.count,
            "stops": runner.stops if runner else 0,
            "image_rate_hz": inputs.images.rate_hz(time.monotonic()),
            "dry_run": self.settings.control.dry_run,
            "certificate": self._certificate,
        }
        health = Health(
            said,
            missing=inputs.missing or self._guard.missing,
            crowded=self._crowded(),
            latency_budget_s=self.settings.control.latency_budget_s,
            names=self._spec.names,
            signs=runner.monitor.signs if runner else Signs(),
            alarm=runner.alarm if runner else "",
            engine=self._loaded.engine() if self._loaded else EngineState(),
        )
        return health, runner.tally if runner else Tally()

    def _crowded(self) -> tuple[str, ...]:
        """Topics with more publishers than one; two cameras in turn, or two drivers, are seldom meant."""
        images = interfaces.image_topics(self.settings.camera).values()
        names = [self.resolve_topic_name(topic.name) for topic in (*images, interfaces.COMMAND)]
        return tuple(name for name in names if self.count_publishers(name) > 1)


def main(arguments: list[str] | None = None) -> int:
    """Run the policy node as a process."""
    return run_node(PolicyNode, arguments)


if __name__ == "__main__":
    leave(main())
