"""What a bringup hears of its processes: episodes, control steps, the policy node's state, and figures made of them."""

from __future__ import annotations

import collections
import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import String

from flashvla_ros.bringup.processes import POLICY
from flashvla_ros.core.chunk import replan_row
from flashvla_ros.core.errors import SettingsError
from flashvla_ros.core.flops import DecoderSize
from flashvla_ros.core.provenance import Provenance, settings_digest
from flashvla_ros.core.reasons import Reason
from flashvla_ros.core.settings import Settings
from flashvla_ros.msg import EpisodeStatus, GateStatus, PolicyStatus
from flashvla_ros.nodes import interfaces

_STEPS_KEPT = 500_000  # half a day at 10 Hz
_LATE_S = 0.3  # a step's status may arrive after the end of its episode


class Step(NamedTuple):
    """What is kept of one GateStatus; a demo left running for a night must not fill the memory."""

    stamp_ns: int
    reused: bool
    visual_share: float  # FLOPs spent on visual tokens, as a share of running the model and dropping nothing
    latency_s: float


@dataclasses.dataclass(frozen=True)
class Figures:
    """What a number of control steps amount to; NaN where there were none.

    Attributes:
        steps: Control steps of the policy node.
        reuse_rate: Share of them that used the last action again.
        visual_flops_ratio: Mean of the steps' visual shares.
        latency_p50_ms: Median time from an image's arrival to its command.
        latency_p95_ms: 95th percentile of the same.
    """

    steps: int
    reuse_rate: float
    visual_flops_ratio: float
    latency_p50_ms: float
    latency_p95_ms: float

    @classmethod
    def of(cls, steps: Sequence[Step]) -> Figures:
        """Sum up control steps."""
        if not steps:
            return cls(0, *[math.nan] * 4)
        p50_s, p95_s = np.percentile([step.latency_s for step in steps], (50, 95))
        reused, shares = [step.reused for step in steps], [step.visual_share for step in steps]
        return cls(len(steps), float(np.mean(reused)), float(np.mean(shares)), 1e3 * float(p50_s), 1e3 * float(p95_s))


class Monitor(Node):
    """Listens to a policy node and a simulated robot.

    Attributes:
        status: Newest state of the policy node; None until it is active.
        episode: The episode that runs; None between two of them.
        provenance: Newest settings and weights of the policy node; None until it is active.
        modes: Gate modes seen, in the order in which they came.
        steps: The newest control steps.

    Args:
        context: Where the node lives.
    """

    def __init__(self, context: Context) -> None:
        super().__init__("flashvla_bringup", context=context)
        self.status: PolicyStatus | None = None
        self.episode: EpisodeStatus | None = None
        self._started_ns = 0
        self.provenance: Provenance | None = None
        self.modes: dict[str, None] = {}
        self.steps: collections.deque[Step] = collections.deque(maxlen=_STEPS_KEPT)
        self._decoder: DecoderSize | None = None
        self._settings: dict[str, Settings] = {}
        self._executor = SingleThreadedExecutor(context=context)
        self._executor.add_node(self)
        self._ended: list[tuple[float, int, EpisodeStatus]] = []
        for topic, callback in (
            (interfaces.GATE, self._on_gate),
            (interfaces.STATUS, self._on_status),
            (interfaces.SETTINGS, self._on_settings),
        ):
            self.create_subscription(topic.type, topic.name.replace("~", POLICY), callback, topic.qos)
        events = interfaces.EPISODE
        self.create_subscription(events.type, events.name, self._on_episode, events.qos)

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[Monitor]:
        """Give a monitor that lives in a context of its own and leaves signals alone."""
        context = Context()
        rclpy.init(context=context, args=[], signal_handler_options=SignalHandlerOptions.NO)
        monitor = cls(context)
        try:
            yield monitor
        finally:
            monitor.destroy_node()
            rclpy.try_shutdown(context=context)

    def spin(self, duration_s: float) -> None:
        """Take in messages for a while."""
        end_s = time.monotonic() + duration_s
        while (remaining_s := end_s - time.monotonic()) > 0.0:
            self._executor.spin_once(timeout_sec=remaining_s)

    def finished(self, *, now: bool = False) -> list[tuple[EpisodeStatus, Figures]]:
        """Return the episodes that have ended since the last call; `now`: without waiting for late steps."""
        ready_s = time.monotonic() - (0.0 if now else _LATE_S)
        ready = [entry for entry in self._ended if entry[0] <= ready_s]
        self._ended = [entry for entry in self._ended if entry[0] > ready_s]
        return [(ended, self.figures(first_ns, _nanoseconds(ended))) for _, first_ns, ended in ready]

    def figures(self, first_ns: int = 0, last_ns: int = 2**63) -> Figures:
        """Sum up the steps that answered images of a span of time, or all of them."""
        return Figures.of([step for step in self.steps if first_ns <= step.stamp_ns <= last_ns])

    def _on_gate(self, message: GateStatus) -> None:
        self.modes[message.mode] = None
        without_model = message.decision == GateStatus.REUSE
        share = 0.0 if without_model else self._visual_share(message)
        self.steps.append(Step(_nanoseconds(message), message.reason == Reason.REUSE, share, message.step_s))

    def _visual_share(self, message: GateStatus) -> float:
        """The share of a fresh step, which speaks for all rows up to the next; NaN where no sizes are known."""
        if self._decoder is None:
            return math.nan
        settings, kept = self._settings.get(message.settings_digest), len(message.kept_tokens)
        size = len(message.action) // max(message.action_size, 1)
        rows = replan_row(size, settings.gate.replan_after if settings else 0)
        if settings is None or not settings.pruning.drop or not kept:
            return float(rows)
        return rows * self._decoder.visual_share(message.visual_tokens, kept, settings.pruning.layer)

    def _on_status(self, message: PolicyStatus) -> None:
        self.status = message

    def _on_settings(self, message: String) -> None:
        try:
            provenance = Provenance.from_json(message.data)
            decoder = provenance.platform.get("decoder")
            self._decoder = DecoderSize.parse(str(decoder)) if decoder else None
        except (SettingsError, ValueError) as error:
            self.get_logger().warning(str(error))
            return
        self.provenance, settings = provenance, provenance.settings
        self._settings[settings_digest(settings)] = settings

    def _on_episode(self, message: EpisodeStatus) -> None:
        if message.event == EpisodeStatus.ENDED and self.episode is not None:
            self._ended.append((time.monotonic(), self._started_ns, message))
            self.episode = None
            return
        if message.event == EpisodeStatus.STARTED:
            self._started_ns = _nanoseconds(message)
        self.episode = message


def _nanoseconds(message: EpisodeStatus | GateStatus) -> int:
    stamp = message.header.stamp
    return int(stamp.sec) * 10**9 + int(stamp.nanosec)
