"""What a run has done so far: counts since the start, rates and latencies over the last seconds."""

from __future__ import annotations

import collections

import numpy as np

from flashvla_ros.control.latency import SlidingWindow
from flashvla_ros.control.step_result import StepResult
from flashvla_ros.core.reasons import Reason
from flashvla_ros.core.settings import GateSettings
from flashvla_ros.gate.calibration import CalibrationState


class Tally:
    """Sums up step results. Filled by one thread, read by any.

    Attributes:
        steps: Steps in all.
        inferred: Steps that ran the model.
        reused: Steps that used the last fresh action again where the model was due.
        clamped: Steps whose command safety had to clamp.
        scene_alarms: Steps at which the scene guard forbade reuse, whichever condition decided.
        clamped_by: Steps at which each dimension was clamped, by its index.
        speed_scale: Share of the policy's motion in the last command; 0 before the first.
        reasons: Steps by the condition that decided.
        latency: Seconds from an observation's arrival to its command.
        stamp_latency: Seconds from an observation's stamp to its command, on the node's clock.
        inference: Seconds of the model, fresh steps only.
        network: Seconds of a remote inference that were not its model's; empty where the policy runs here.
        reuse: 1 for a reused step, 0 for any other.
        offered: Tokens offered as a draft, steps with a draft only.
        accepted: Those of them that were accepted.
        thresholds: Those in force at the last step.
        calibration: What calibration knew as the last step began; None where it is off.
    """

    def __init__(self, span_s: float = 10.0) -> None:
        self.steps = self.inferred = self.reused = self.clamped = self.scene_alarms = 0
        self.clamped_by: collections.Counter[int] = collections.Counter()
        self.speed_scale = 0.0
        self.thresholds = GateSettings()
        self.calibration: CalibrationState | None = None
        self.reasons: collections.Counter[Reason] = collections.Counter()
        self.latency = SlidingWindow(span_s)
        self.stamp_latency = SlidingWindow(span_s)
        self.inference = SlidingWindow(span_s)
        self.network = SlidingWindow(span_s)
        self.reuse = SlidingWindow(span_s)
        self.offered = SlidingWindow(span_s)
        self.accepted = SlidingWindow(span_s)

    def add(self, result: StepResult, now_s: float, stamp_latency_s: float) -> None:
        """Count one step at `now_s`, in seconds of the monotonic clock; `stamp_latency_s` from its stamp to now."""
        self.steps += 1
        self.inferred += result.fresh
        self.reused += result.reused
        self.clamped += bool(result.clamped.any())
        self.clamped_by.update(map(int, np.flatnonzero(result.clamped.any(axis=0))))
        self.speed_scale = result.speed_scale
        self.thresholds, self.calibration = result.decision.settings, result.calibration
        self.scene_alarms += result.decision.scene_alarm
        self.reasons[result.decision.reason] += 1
        self.latency.add(now_s, result.step_s)
        self.stamp_latency.add(now_s, stamp_latency_s)
        self.reuse.add(now_s, float(result.reused))
        if result.fresh:
            self.inference.add(now_s, result.inference_s)
            if (network_s := result.inference.timings_s.get("network")) is not None:
                self.network.add(now_s, network_s)
        if result.fresh and result.inference.draft_tokens:
            self.offered.add(now_s, result.inference.draft_tokens)
            self.accepted.add(now_s, result.inference.draft_accepted)

    def draft_acceptance(self, now_s: float) -> float:
        """Return the share of offered draft tokens that was accepted, over the window; NaN where none was offered."""
        return self.accepted.mean(now_s) / self.offered.mean(now_s)
