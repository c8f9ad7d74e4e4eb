"""What the gate costs: ``python -m benchmarks.gate``.

Times a reused control step without anything that belongs to a model: the look at the frame, the decision, safety. The
baseline, in the same run on the same frames, is the plain comparison of two frames pixel by pixel. Durations are CPU
time of the calling thread, so that what else runs on the machine does not count.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from itertools import count, cycle

import numpy as np

from flashvla_ros.cli.processor import processor_name
from flashvla_ros.control.stepper import Stepper
from flashvla_ros.core.settings import PruningSettings, Settings
from flashvla_ros.core.types import ActionKind, ActionSpec, Draft, ImageArray, Inference, Observation
from flashvla_ros.gate.memory import GateInput

SIZES = ((112, 112), (224, 224), (480, 640), (1080, 1920))
_TOKENS, _KEPT = 256, 160


class _SteadyPolicy:
    """Always the same answer, at no cost."""

    action_size, visual_tokens = 7, _TOKENS

    def infer(
        self,
        observation: Observation,  # noqa: ARG002
        pruning: PruningSettings,  # noqa: ARG002
        previous: Inference | None = None,  # noqa: ARG002
        draft: Draft | None = None,  # noqa: ARG002
    ) -> Inference:
        action = np.full((1, 7), 0.5)
        return Inference(action, action, np.empty(0, np.int64), np.arange(_KEPT), _TOKENS)

    def reset(self) -> None:
        """Nothing to forget."""


def main() -> None:
    """Print a table of percentiles in milliseconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=2000, help="timed calls a cell (default: %(default)s)")
    repeats = parser.parse_args().repeats
    print(f"{processor_name()}, {os.cpu_count()} cores, NumPy {np.__version__}, {repeats} calls a cell\n")
    print("| frame | what | p50 [ms] | p95 [ms] | p99 [ms] |\n|---|---|---|---|---|")
    for height, width in SIZES:
        for name, call in _calls(height, width):
            p50, p95, p99 = np.percentile(_durations_ms(call, repeats), (50, 95, 99))
            print(f"| {width} x {height} | {name} | {p50:.3f} | {p95:.3f} | {p99:.3f} |", flush=True)


def _calls(height: int, width: int) -> Iterator[tuple[str, Callable[[], object]]]:
    rng = np.random.default_rng(0)
    images = cycle([rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(8)])
    previous, current = next(images), next(images)
    yield "baseline: mean absolute difference of two frames", lambda: _difference(previous, current)
    yield "look at the frame", lambda: GateInput.of(Observation({"image": next(images)}, "open the drawer", 0.0))
    names = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
    stepper = Stepper(_SteadyPolicy(), ActionSpec(names, (ActionKind.DELTA,) * 6 + (ActionKind.GRIPPER,), 0.1))
    settings = Settings().with_values(
        {
            "action.names": names,
            "action.kinds": ("delta",) * 6 + ("gripper",),
            "gate.max_reuse": 1000,
            "gate.max_age_s": 60.0,
            "gate.scene_patches": 0,
            "limits.lower": (-1.0,) * 7,
            "limits.upper": (1.0,) * 7,
            "limits.max_step": (0.1,) * 7,
        }
    )
    stamps = count(1.0, 1e-3)

    def step() -> None:
        stepper.step(Observation({"image": next(images)}, "open the drawer", next(stamps)), settings)

    step(), step()
    yield "reused step: look, decide, limit", step


def _difference(first: ImageArray, second: ImageArray) -> float:
    return float(np.abs(first.astype(np.int16) - second).mean())


def _durations_ms(call: Callable[[], object], repeats: int) -> list[float]:
    for _ in range(repeats // 10):
        call()
    durations = []
    for _ in range(repeats):
        started_s = time.thread_time()
        call()
        durations.append(1e3 * (time.thread_time() - started_s))
    return durations


if __name__ == "__main__":
    main()
