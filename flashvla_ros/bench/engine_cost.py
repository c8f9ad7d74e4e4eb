"""What each engine and floating-point type costs on this CPU: ``python -m flashvla_ros.bench.engine_cost``.

Every combination runs the same steps in one process, in turn with the reference (eager, float32). Durations are CPU
time of the calling thread with one thread, so that what else runs on the machine does not count. ``flashvla-ros bench``
has wall-clock figures, percentiles and GPUs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flashvla_ros.bench import device, models
from flashvla_ros.core.results import write_results
from flashvla_ros.core.settings import ModelSettings, PruningSettings
from flashvla_ros.core.types import Draft, Observation
from flashvla_ros.vla.policy import OpenVLAPolicy

STAGES = ("preprocess", "vision", "prefill", "scoring", "decode")
_DENSE, _PRUNED = PruningSettings(method="none"), PruningSettings()
_STEPS = {"dense": (_DENSE, False), "pruned": (_PRUNED, False), "dense, draft accepted": (_DENSE, True)}


class _Clock:
    """CPU time of the stages of one step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last_s = time.thread_time()

    def done(self, stage: str) -> None:
        now_s = time.thread_time()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now_s - self._last_s
        self._last_s = now_s


def step(policy: OpenVLAPolicy, pruning: PruningSettings, draft: Draft | None) -> dict[str, float]:
    """Run one step; return the CPU time [s] of its stages."""
    image = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    clock = _Clock()
    policy.on_stage = clock.done
    policy.infer(Observation({"camera": image}, models.INSTRUCTION, stamp_s=1.0), pruning, draft=draft)
    return clock.seconds


def measure(policies: dict[tuple[str, str], OpenVLAPolicy], repeats: int) -> Iterator[dict[str, Any]]:
    """Yield one row for each kind of step and each policy, by engine and type; the first is what ratios are to."""
    for name, (pruning, drafted) in _STEPS.items():
        drafts = {}
        for key, policy in policies.items():
            image = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
            result = policy.infer(Observation({"camera": image}, models.INSTRUCTION, stamp_s=1.0), pruning)
            drafts[key] = Draft(result.tokens) if drafted else None
        times: dict[tuple[str, str], list[dict[str, float]]] = {key: [] for key in policies}
        for _ in range(repeats):  # in turn, so that a slow moment of the machine meets all of them
            for key, policy in policies.items():
                times[key].append(step(policy, pruning, drafts[key]))
        totals = {key: statistics.median(sum(one.values()) for one in runs) for key, runs in times.items()}
        base = next(iter(totals.values()))
        for (engine, dtype), runs in times.items():
            stages = {stage: [1e3 * one[stage] for one in runs if stage in one] for stage in STAGES}
            yield {
                "name": name,
                "engine": engine,
                "dtype": dtype,
                "p50_ms": 1e3 * totals[engine, dtype],
                "speedup": base / totals[engine, dtype],
                **{f"{stage}_ms": statistics.median(values) for stage, values in stages.items() if values},
            }


def main() -> None:
    """Print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=models.DEMO, help="demo, mid or a checkpoint folder (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=20, help="timed steps a cell (default: %(default)s)")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], help="(default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table here as well")
    options = parser.parse_args()
    policies = {}
    for dtype in options.dtypes:
        for engine in ("eager", "static"):
            settings = ModelSettings(device="cpu", dtype=dtype, engine=engine, threads=1)
            policies[engine, dtype] = models.load_subject(options.model, settings)
    meta = {
        **device.describe(policies["static", options.dtypes[0]].backend),
        **device.versions(),
        "model": options.model,
    }
    for differs in ("dtype", "engine"):
        meta.pop(differs)
    print(f"{meta['device']}, one thread, torch {torch.__version__}, {options.model}, {options.repeats} steps a cell\n")
    print(f"| step | engine | dtype | p50 [ms] | speed-up | {' | '.join(STAGES)} |\n|{'---|' * (5 + len(STAGES))}")
    rows = []
    for row in measure(policies, options.repeats):
        rows.append(row)
        stages = " | ".join(f"{row[f'{stage}_ms']:.1f}" if f"{stage}_ms" in row else "–" for stage in STAGES)
        figures = f"{row['p50_ms']:.1f} | {row['speedup']:.2f} | {stages}"
        print(f"| {row['name']} | {row['engine']} | {row['dtype']} | {figures} |", flush=True)
    if options.json:
        write_results(options.json, meta, rows)


if __name__ == "__main__":
    main()
