"""Does a step take longer where the budget or the instruction has just changed? ``python -m benchmarks.changes``.

The policy runs as in a node, warmed up for the first setting. Every few steps the budget changes, then the instruction,
to one of another length. The first steps after a change are held to the median of the later ones under the same
setting; the bound is 1.5 times. Processor time decides on a CPU, where other programs may run; on a GPU the clock does.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tables import publish, table
from flashvla_ros.bench import models
from flashvla_ros.bench.command import ms
from flashvla_ros.bench.measure import describe_backend
from flashvla_ros.bench.trace import load_observations
from flashvla_ros.cli.exits import exit_code
from flashvla_ros.cli.results import meta
from flashvla_ros.core.policy import Request
from flashvla_ros.core.settings import ModelSettings, PruningSettings
from flashvla_ros.core.types import FloatArray, Observation
from flashvla_ros.vla.step import VLAPolicy

BOUND = 1.5
_NEAR = 10  # steps after a change that it may have made slow
_WORDS = ("drawer", "window", "button", "door", "lever", "block")


def changes(count: int) -> list[tuple[str, float, str]]:
    """Return what changes, the budget and the instruction, each new to the engine, in turn."""
    ratio, words, found = 0.95, "open the drawer", [("start", 0.95, "open the drawer")]
    for number in range(count):
        if number % 2:
            words = f"{words} then the {_WORDS[number // 2 % len(_WORDS)]}"
        else:
            ratio -= 0.05
        found.append(("instruction" if number % 2 else "budget", ratio, words))
    return found


def measure(policy: VLAPolicy, count: int, steps: int) -> list[dict[str, Any]]:
    """Return a row for each kind of change: its near steps as multiples of the median of the later ones."""
    frames = itertools.cycle(load_observations(models.INSTRUCTION))
    policy.warm_up(PruningSettings(keep_ratio=0.95), "open the drawer")
    near: dict[str, list[FloatArray]] = {}
    for kind, ratio, words in changes(count):
        pruning = PruningSettings(keep_ratio=ratio)
        seen = [dataclasses.replace(next(frames), instruction=words) for _ in range(steps)]
        seconds = _seconds(policy, seen, pruning)
        near.setdefault(kind, []).append(seconds[:, :_NEAR] / np.median(seconds[:, _NEAR:], axis=1, keepdims=True))
    rows = []
    for kind, ratios in near.items():
        both = np.stack(ratios)  # [changes, clock and processor, near steps]
        by_clock, by_cpu = (both[:, axis].ravel() for axis in (0, 1))
        rows.append(
            {
                "change": kind,
                "changes": len(ratios),
                "first_median": float(np.median(both[:, _deciding(policy), 0])),
                "p99_cpu": float(np.percentile(by_cpu, 99)),
                "p99": float(np.percentile(by_clock, 99)),
                "within": bool(np.percentile(both[:, _deciding(policy)], 99) <= BOUND),
            }
        )
    return rows


def _deciding(policy: VLAPolicy) -> int:
    return 1 if policy.backend.device.type == "cpu" else 0


def _seconds(policy: VLAPolicy, seen: Sequence[Observation], pruning: PruningSettings) -> FloatArray:
    """Seconds [clock and processor, steps]."""
    taken = []
    for observation in seen:
        before = time.perf_counter(), time.process_time()
        policy.infer(Request(observation, pruning))
        taken.append((time.perf_counter() - before[0], time.process_time() - before[1]))
    return np.array(taken).T


def page(results: Mapping[str, Any]) -> str:
    """Return the table, for the page of results."""
    run = results["meta"]
    lines = [
        [
            row["change"],
            str(row["changes"]),
            *(f"{row[name]:.2f}" for name in ("first_median", "p99_cpu", "p99")),
            "yes" if row["within"] else "no",
        ]
        for row in results["rows"]
    ]
    head = ["change", "times", "first step", "p99, processor time", "p99, clock", f"within {BOUND}"]
    words = f"{run['model']} on {run['device']}, engine {run['engine']}, {run['threads']} threads; a step takes "
    return f"{words}{ms(run['step_ms'])} ms.\n\n{table(head, lines)}"


def main() -> int:
    """Print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=models.DEMO, help="demo, a size or a checkpoint folder (%(default)s)")
    parser.add_argument("--device", default="auto", help="torch device (%(default)s)")
    parser.add_argument("--changes", type=int, default=18, help="of both kinds (%(default)s)")
    parser.add_argument("--steps", type=int, default=40, help="under each setting (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table here as well")
    options = parser.parse_args()

    def work() -> None:
        policy = models.load_subject(options.model, ModelSettings(device=options.device, threads=1))
        rows = measure(policy, options.changes, options.steps)
        step = _seconds(policy, load_observations(models.INSTRUCTION), PruningSettings())[_deciding(policy)]
        made = meta(
            **describe_backend(policy.backend),
            command="changes",
            model=options.model,
            step_ms=1e3 * float(np.median(step)),
        )
        publish(page, made, rows, options.json)

    return exit_code(work)


if __name__ == "__main__":
    raise SystemExit(main())
