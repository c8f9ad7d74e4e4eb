"""Record the default trace of ``flashvla-ros bench``: ``python -m benchmarks.trace``.

Runs the demo policy in closed loop on every task, lock-step, in ``eval``'s modes ``guarded`` and ``paper``, and writes
every decision to ``trace.csv`` and some of the frames that the policy saw in the first episode beside it.
"""

from __future__ import annotations

import argparse
import csv
import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from flashvla_ros.bench.trace import DATA, INFER, REUSE
from flashvla_ros.cli.exits import exit_code
from flashvla_ros.control.step_result import StepResult
from flashvla_ros.control.stepper import Stepper
from flashvla_ros.core.settings import Settings
from flashvla_ros.core.types import ActionSpec, ImageArray, IntArray
from flashvla_ros.evaluation.modes import BUILT_IN
from flashvla_ros.sim.episode import EpisodePlan
from flashvla_ros.sim.rollout import roll_out
from flashvla_ros.sim.tasks import TASKS, find_task
from flashvla_ros.sim.world import World
from flashvla_ros.vla.arch.openvla.policy import OpenVLAPolicy

MODES = ("guarded", "paper")
COLUMNS = ("mode", "task", "seed", "step", "decision", "reason", "agreeing", "tokens")
_FRAMES, _FRAME_PIXELS = 8, 224


def main() -> int:
    """Write trace and frames."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=DATA, metavar="DIR", help="folder (default: the package's own)")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), metavar="TASK", help="(default: all)")
    parser.add_argument("--episodes", type=int, default=1, help="of each task and mode (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first (default: %(default)s)")
    args = parser.parse_args()
    return exit_code(lambda: record(args.out, args.tasks, range(args.seed, args.seed + args.episodes)))


def record(out: Path, tasks: Sequence[str], seeds: Sequence[int]) -> None:
    """Run an episode of each mode, task and seed; write the trace and the frames."""
    base = Settings()
    policy = OpenVLAPolicy.load(base.model)
    steps: list[tuple[Any, ...]] = []
    with closing(World(_FRAME_PIXELS)) as world:
        for mode, task, seed in itertools.product(MODES, tasks, seeds):
            results = _episode(world, policy, task, seed, base.with_values(BUILT_IN[mode]))
            if not steps:
                _write_frames(out, [next(iter(result.observation.images.values())) for result in results])
            steps += _steps(mode, task, seed, results)
            reused = sum(not result.fresh for result in results)
            print(f"{mode} {task} {seed}: {len(results)} steps, {reused} reused", flush=True)
    _write(out / "trace.csv", steps)


def _episode(world: World, policy: OpenVLAPolicy, task: str, seed: int, settings: Settings) -> list[StepResult]:
    row = find_task(task)
    results: list[StepResult] = []
    plan = EpisodePlan(row, seed, row.instruction, row.max_steps)
    roll_out(world, Stepper(policy, ActionSpec.of(settings.action)), plan, settings, on_step=results.append)
    return results


def _steps(mode: str, task: str, seed: int, results: list[StepResult]) -> Iterator[tuple[Any, ...]]:
    """Yield the row of each control step."""
    before: IntArray | None = None
    for index, result in enumerate(results):
        agreeing = None
        tokens = result.inference.tokens
        if result.fresh:
            agreeing = None if before is None else _common(before, tokens)
            before = tokens
        decision = INFER if result.fresh else REUSE
        yield mode, task, seed, index, decision, str(result.decision.reason), agreeing, tokens.size


def _write(path: Path, steps: Iterable[tuple[Any, ...]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([COLUMNS, *steps])  # None is an empty cell


def _common(first: IntArray, second: IntArray) -> int:
    """Length of the common beginning."""
    different = np.flatnonzero(first != second)
    return int(different[0]) if len(different) else len(first)


def _write_frames(folder: Path, images: list[ImageArray]) -> None:
    """Write consecutive frames from the middle of an episode, where the arm moves."""
    folder.mkdir(parents=True, exist_ok=True)
    start = max((len(images) - _FRAMES) // 2, 0)
    for index, image in enumerate(images[start : start + _FRAMES]):
        picture = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(folder / f"frame_{index}.jpg"), picture, (cv2.IMWRITE_JPEG_QUALITY, 90))


if __name__ == "__main__":
    raise SystemExit(main())
