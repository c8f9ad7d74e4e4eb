"""Measure a checkpoint in closed loop: ``python -m flashvla_ros.train.evaluate --checkpoint DIR --json FILE``.

Episodes run in lock-step in this package's own control step, over seeds counted from 0, none of which training ever
saw (collection draws its scenes from 10⁹ on). Every mode plays the same seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from flashvla_ros.bench.statistics import Rate
from flashvla_ros.control.stepper import Stepper
from flashvla_ros.core.errors import FlashVLAError
from flashvla_ros.core.fanout import add_arguments as add_fanout_arguments
from flashvla_ros.core.fanout import fan_out
from flashvla_ros.core.provenance import checkpoint_fingerprint
from flashvla_ros.core.settings import Settings
from flashvla_ros.core.types import ActionKind, ActionSpec
from flashvla_ros.sim.episode import EpisodePlan
from flashvla_ros.sim.rollout import Outcome, roll_out
from flashvla_ros.sim.tasks import find_task, scene_tasks

SUMMARY = "Measure a checkpoint in closed loop, over seeds that training never saw."

MODES: Mapping[str, Mapping[str, Any]] = {
    "dense": {"gate.mode": "off", "pruning.method": "none"},
    "ics": {"gate.mode": "off", "pruning.method": "ics"},
    "random": {"gate.mode": "off", "pruning.method": "random"},
    "guarded": {"gate.mode": "guarded"},
}
SWITCH_STEPS = (20, 100)  # a new instruction comes between these steps, drawn from the seed


@dataclasses.dataclass(frozen=True)
class Job:
    """One episode of one mode."""

    checkpoint: Path
    mode: str
    values: Mapping[str, Any]
    plan: EpisodePlan


def plan(task_name: str, seed: int, *, switch: bool) -> EpisodePlan:
    """Return the plan of an episode; with `switch` another task of the scene is begun and `task_name` comes later."""
    task = find_task(task_name)
    if not switch:
        return EpisodePlan(task, seed, task.instruction, task.max_steps)
    others = [row for row in scene_tasks(task.scene) if row is not task]
    if not others:
        raise FlashVLAError(f"{task_name} is alone in its scene, there is nothing to switch from: leave --switch out")
    step = int(np.random.default_rng(seed).integers(*SWITCH_STEPS))
    return EpisodePlan(others[0], seed, others[0].instruction, task.max_steps, task.instruction, step)


@functools.cache
def _policy(checkpoint: Path) -> Any:
    from flashvla_ros.vla.policy import OpenVLAPolicy  # in the workers only: a parent that fans out needs no torch

    return OpenVLAPolicy.load(Settings().with_values({"model.checkpoint": str(checkpoint), "model.threads": 1}).model)


@functools.cache
def _world() -> Any:
    from flashvla_ros.sim.world import World

    return World()


def run_job(job: Job) -> Outcome:
    """Run one episode in this process, whose policy and world serve all its episodes."""
    settings = Settings().with_values(job.values)
    action = settings.action
    spec = ActionSpec(action.names, tuple(ActionKind(kind) for kind in action.kinds), action.dt_s)
    return roll_out(_world(), Stepper(_policy(job.checkpoint), spec), job.plan, settings)


def summarize(mode: str, task: str, outcomes: list[Outcome]) -> dict[str, Any]:
    """Return one row of the table."""
    rate = Rate(sum(outcome.success for outcome in outcomes), len(outcomes))
    steps = sum(outcome.steps for outcome in outcomes)
    latencies = np.concatenate([outcome.latencies_s for outcome in outcomes])
    reasons: dict[str, int] = {}
    for outcome in outcomes:
        for reason, count in outcome.reasons.items():
            reasons[reason] = reasons.get(reason, 0) + count
    return {
        "mode": mode,
        "task": task,
        "episodes": rate.trials,
        "successes": rate.successes,
        "wilson_95": [round(value, 4) for value in rate.interval],
        "failed_seeds": [outcome.plan.seed for outcome in outcomes if not outcome.success],
        "steps_median": float(np.median([outcome.steps for outcome in outcomes])),
        "reuse_rate": round(sum(outcome.reused for outcome in outcomes) / steps, 4),
        "kept_ratio": round(float(np.mean([outcome.kept_ratio for outcome in outcomes])), 4),
        "latency_p50_ms": round(1e3 * float(np.quantile(latencies, 0.5)), 2),
        "latency_p95_ms": round(1e3 * float(np.quantile(latencies, 0.95)), 2),
        "reasons": dict(sorted(reasons.items())),
    }


def evaluate(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Play all episodes and return the rows of the table."""
    overrides = dict(parse_setting(text) for text in options.set)
    seeds = range(options.seed, options.seed + options.episodes)
    cells = [(mode, task) for mode in options.modes for task in options.tasks]
    jobs = [
        Job(options.checkpoint, mode, {**MODES[mode], **overrides}, plan(task, seed, switch=options.switch))
        for mode, task in cells
        for seed in seeds
    ]
    rows = []
    outcomes: list[Outcome] = []
    results = fan_out(run_job, jobs, jobs=options.jobs, ray=options.ray, ray_gpus=options.ray_gpus)
    for outcome in tqdm(results, total=len(jobs), unit="episode"):
        outcomes.append(outcome)
        if len(outcomes) == len(seeds):
            mode, task = cells[len(rows)]
            row = summarize(mode, task, outcomes) | {"switch": options.switch}
            rows.append(row)
            outcomes = []
            rate = Rate(row["successes"], row["episodes"])
            reuse, steps = row["reuse_rate"], row["steps_median"]
            tqdm.write(f"{mode:8s} {task:14s} {rate}  reuse {reuse:.0%}  median {steps:.0f} steps")
    return rows


def parse_setting(text: str) -> tuple[str, Any]:
    """Split ``name=value``, the value as JSON where it is JSON."""
    name, separator, value = text.partition("=")
    if not separator:
        raise FlashVLAError(f"--set takes name=value such as pruning.keep_ratio=0.5, got {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--tasks", nargs="+", default=["drawer-open", "drawer-close"], metavar="TASK")
    parser.add_argument("--modes", nargs="+", default=["dense"], choices=MODES, metavar="MODE", help=", ".join(MODES))
    parser.add_argument("--episodes", type=int, default=50, help="episodes of each mode and task (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="first seed (default %(default)s)")
    parser.add_argument("--switch", action="store_true", help="begin with the scene's other task, then change to TASK")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="for every mode")
    parser.add_argument("--json", type=Path, help="write the rows there")
    add_fanout_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    try:
        rows = evaluate(options)
    finally:
        if _world.cache_info().currsize:  # an OpenGL context left to the interpreter's end complains
            _world().close()
    if options.json:
        settings = Settings().with_values(dict(parse_setting(text) for text in options.set))
        meta = {
            "checkpoint": checkpoint_fingerprint(options.checkpoint),
            "seeds": [options.seed, options.seed + options.episodes - 1],
            "keep_ratio": settings.pruning.keep_ratio,
            "layer": settings.pruning.layer,
            "settings": settings.values(),
        }
        options.json.write_text(json.dumps({"meta": meta, "rows": rows}, indent=2) + "\n", encoding="utf-8")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m flashvla_ros.train.evaluate", description=SUMMARY)
    add_arguments(parser)
    try:
        return run(parser.parse_args(arguments))
    except FlashVLAError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
