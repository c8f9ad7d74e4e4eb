"""What happened, as messages: one GateStatus per step, PolicyStatus and diagnostics once a second."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode
from std_msgs.msg import Header, String

from flashvla_ros.control.latency import SlidingWindow
from flashvla_ros.control.monitors import Signs
from flashvla_ros.control.step_result import StepResult
from flashvla_ros.control.tally import Tally
from flashvla_ros.core.provenance import Provenance, settings_digest
from flashvla_ros.gate.calibration import CalibrationState
from flashvla_ros.msg import GateStatus, PolicyStatus
from flashvla_ros.nodes import interfaces
from flashvla_ros.vla.loading import EngineState

_PERIOD_S = 1.0
_THRESHOLDS = ("calibration", "delta", "max_angle_deg", "max_reuse")
_ARRAYS = ("kept_tokens", "action", "calibration_state", "handover_step", "answer")


def gate_status(result: StepResult, header: Header) -> GateStatus:
    """Return the message of one control step."""
    gate, reported = result.decision.settings, result.reported
    reported |= {name: reported[name].tolist() for name in _ARRAYS}
    return GateStatus(
        header=header,
        step=result.step,
        epoch=result.resets,
        instruction=result.observation.instruction,
        mode=gate.mode,
        pruning_method=result.settings.pruning.method,
        visual_tokens=result.inference.visual_tokens,
        action_size=result.command.shape[1],
        inference_s=result.inference_s,
        step_s=result.step_s,
        settings_digest=settings_digest(result.settings),
        dry_run=result.settings.control.dry_run,
        **{name: getattr(gate, name) for name in _THRESHOLDS},
        **reported,
    )


@dataclasses.dataclass(frozen=True)
class Health:
    """What the node knows of itself, apart from the counts of its steps.

    Attributes:
        said: Fields of PolicyStatus, by their names.
        missing: What it waits for, empty where nothing is missing.
        crowded: Topics of images and commands that have more than one publisher.
        latency_budget_s: Time from an image's stamp to its command that is not to be exceeded; 0: any.
        names: Names of the action's dimensions.
        signs: What the monitors see.
        alarm: Which of their thresholds are exceeded, in words; empty where none is.
        engine: What runs the model.
    """

    said: Mapping[str, Any]
    missing: str
    crowded: tuple[str, ...]
    latency_budget_s: float
    names: tuple[str, ...]
    signs: Signs
    alarm: str
    engine: EngineState


def policy_status(health: Health, tally: Tally, header: Header, now_s: float) -> PolicyStatus:
    """Return the message of one moment; `now_s` is on the monotonic clock, as the samples of `tally` are."""
    return PolicyStatus(
        header=header,
        **health.said,
        **{name: getattr(tally, name) for name in ("steps", "inferred", "reused", "clamped", "speed_scale")},
        step_rate_hz=tally.latency.rate_hz(now_s),
        reuse_rate=tally.reuse.mean(now_s),
        **_percentiles("latency", tally.latency, now_s),
        **_percentiles("inference", tally.inference, now_s),
        draft_acceptance=tally.draft_acceptance(now_s),
        **_calibrated(tally),
        engine=f"{health.engine.name}: {health.engine.fault}" if health.engine.fault else health.engine.name,
    )


def _percentiles(name: str, samples: SlidingWindow, now_s: float) -> dict[str, float]:
    return dict(zip((f"{name}_{part}_s" for part in ("p50", "p95", "p99")), samples.percentiles(now_s), strict=True))


def _calibrated(tally: Tally) -> dict[str, Any]:
    """The fields of calibration, and the thresholds in force at the last step."""
    gate, state = tally.thresholds, tally.calibration
    values = {name: getattr(gate, name) for name in _THRESHOLDS}
    if state is None:  # nothing is counted, so the shares are NaN
        state = CalibrationState(permissiveness=math.nan)
    values |= {name: getattr(state, name) for name in ("permissiveness", "certified_level", "audits")}
    for name in ("off_per_step", "off_per_reuse"):
        values.update(zip((name, f"{name}_low", f"{name}_high"), getattr(state, name), strict=True))
    return values


def diagnostics(health: Health, tally: Tally, status: PolicyStatus, name: str, now_s: float) -> DiagnosticArray:
    """Return the same as a monitor of /diagnostics reads it: a level, one line, and every figure by name.

    It adds the latency from an image's stamp, the network's share of a remote inference (the model's is the rest), and
    how often each dimension was clamped.
    """
    figures = {field: getattr(status, field) for field in status.get_fields_and_field_types() if field != "header"}
    figures |= _percentiles("stamp_latency", tally.stamp_latency, now_s)
    figures |= _percentiles("network", tally.network, now_s)
    figures |= {f"clamped.{name}": tally.clamped_by[index] for index, name in enumerate(health.names)}
    figures |= {f"monitor.{name}": value for name, value in dataclasses.asdict(health.signs).items()}
    values = [KeyValue(key=key, value=_word(value)) for key, value in figures.items()]
    level, message = _verdict(health, status, figures["stamp_latency_p95_s"])
    summary = DiagnosticStatus(level=level, name=name, message=message, hardware_id=name, values=values)
    return DiagnosticArray(header=status.header, status=[summary])


def _verdict(health: Health, status: PolicyStatus, stamp_latency_p95_s: float) -> tuple[bytes, str]:
    if status.state == "stopped":
        return DiagnosticStatus.ERROR, f"stopped: {status.stop_reason}"
    if status.state == "waiting":
        return DiagnosticStatus.WARN, f"waiting: {health.missing or 'for the next step'}"
    if health.engine.fault:
        return DiagnosticStatus.WARN, f"slow, engine {status.engine}"
    if health.crowded:
        return DiagnosticStatus.WARN, f"more than one publisher on {', '.join(health.crowded)}"
    if health.alarm:
        return DiagnosticStatus.WARN, f"the policy may be lost: {health.alarm}"
    budget_s = health.latency_budget_s
    if 0.0 < budget_s < stamp_latency_p95_s:
        return (
            DiagnosticStatus.WARN,
            f"slow: {stamp_latency_p95_s:.3g} s from an image's stamp to its command (95th percentile), "
            f"control.latency_budget_s is {budget_s:g}",
        )
    if status.dry_run:
        return DiagnosticStatus.OK, "dry run: no command is sent"
    return DiagnosticStatus.OK, "running" if status.speed_scale == 1.0 else f"running at {status.speed_scale:.0%} speed"


def _word(value: float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class Reporter:
    """Speaks from configure to cleanup, also while the node is inactive: a silent node looks like a dead one.

    Args:
        node: Whose publishers these are.
        facts: Returns what there is to say.
    """

    def __init__(self, node: LifecycleNode, facts: Callable[[], tuple[Health, Tally]]) -> None:
        self._node = node
        self._facts = facts
        self._status, self._diagnostics, self._settings = (
            node.create_publisher(topic.type, topic.name, topic.qos)
            for topic in (interfaces.STATUS, interfaces.DIAGNOSTICS, interfaces.SETTINGS)
        )
        # On simulated time, which may stand still, a status would not come when it is needed most.
        self._timer = node.create_timer(_PERIOD_S, self.report, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def report(self) -> None:
        """Publish the state of this moment."""
        health, tally = self._facts()
        header, now_s = Header(stamp=self._node.get_clock().now().to_msg()), time.monotonic()
        status = policy_status(health, tally, header, now_s)
        self._status.publish(status)
        name = self._node.get_fully_qualified_name()
        self._diagnostics.publish(diagnostics(health, tally, status, name, now_s))

    def settings(self, provenance: Provenance) -> None:
        """Publish every parameter in force, and the weights, for whoever records."""
        self._settings.publish(String(data=provenance.to_json()))

    def close(self) -> None:
        """Close the topics."""
        self._node.destroy_timer(self._timer)
        for publisher in (self._status, self._diagnostics, self._settings):
            self._node.destroy_publisher(publisher)
