"""What a step costs beside the model: the gate's decision, and publishing the command."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence

import numpy as np

from flashvla_ros.core.settings import Settings
from flashvla_ros.core.types import ActionKind, ActionSpec, FloatArray, Inference, Observation
from flashvla_ros.gate.decision import decide
from flashvla_ros.gate.memory import FreshResult, GateInput, GateMemory

_PUBLISH_TIMEOUT_S = 120.0


def spec_of_size(size: int, dt_s: float = 0.1) -> ActionSpec:
    """Return an action of `size` dimensions whose last one is a gripper."""
    kinds = (ActionKind.DELTA,) * (size - 1) + (ActionKind.GRIPPER,)
    return ActionSpec(tuple(f"d{index}" for index in range(size)), kinds, dt_s)


def gate_seconds(
    observations: Sequence[Observation], inference: Inference, settings: Settings, repeats: int = 300
) -> FloatArray:
    """Time the gate's look at a frame, its decision and its memory, [repeats] seconds.

    Args:
        observations: Real frames, in their order.
        inference: Result of the model that fills the memory.
        settings: The gate's thresholds, and the pruning that `inference` was made with.
        repeats: Timed decisions.
    """
    spec, dt_s = spec_of_size(inference.action.shape[1]), settings.action.dt_s
    memory, seconds = GateMemory(), []
    for step in range(repeats + 2):
        seen = observations[step % len(observations)]
        observation = Observation(seen.images, seen.instruction, stamp_s=step * dt_s)
        started_s = time.perf_counter()
        current = GateInput.of(observation)
        if memory.previous is not None:
            decide(memory, current, settings.gate)
            seconds.append(time.perf_counter() - started_s)
        memory = memory.after_fresh(FreshResult.of(inference, current, spec, settings.pruning), settings.gate)
    return np.asarray(seconds)


def publish_seconds() -> tuple[FloatArray | None, str]:
    """Time the node's own publishing of a step, in a process that has ROS, to a reader in another process.

    Returns:
        Seconds of each step and an empty word; or None and why nothing was measured.
    """
    command = [sys.executable, "-m", "benchmarks.publishing"]
    try:
        child = subprocess.run(  # noqa: S603  # our own module, no shell
            command, capture_output=True, text=True, timeout=_PUBLISH_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return None, f"no reader answered within {_PUBLISH_TIMEOUT_S:g} s"
    if child.returncode:
        return None, (child.stderr.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
    return np.asarray(json.loads(child.stdout.splitlines()[-1])["seconds"]), ""
