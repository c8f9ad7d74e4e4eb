"""Collect demonstrations: ``python -m training.collect --tasks drawer-open drawer-close --out DIR``.

Noise is added to what the robot executes while the label stays the expert's clean action at that frame, so that the
policy learns to come back from where its own errors will lead it. Where two tasks share a scene, part of the episodes
start with the object between the two tasks' starts, and part change the instruction on the way: the picture alone then
never tells what to do.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import functools
import multiprocessing
import signal
import sys
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from flashvla_ros.cli.exits import exit_code
from flashvla_ros.cli.fanout import positive
from flashvla_ros.core.types import FloatArray
from flashvla_ros.sim.tasks import TASKS, find_task, scene_tasks
from training.dataset import AUXILIARY, DatasetError, episode_path, write_episode, write_meta

FIRST_SEED = 10**9  # robots and evaluations count their seeds from 0, so no scene of theirs was ever trained on
KINDS = {"plain": 0.5, "between": 0.2, "switch": 0.3}  # shares of the episodes
NOISE_LEVELS = (0.0, 0.1, 0.2, 0.35, 0.5)  # standard deviation of the noise on a motion, in action units
ROTATION_NOISE = 0.15  # of the noise on a motion, for an arm that is told to turn too
AFTER_SUCCESS = 15  # frames kept after success: the robot stays where it is
MAX_STEPS = 320
PUSH_PROBABILITY = 0.012  # a step at which something pushes the robot aside for a while


@dataclasses.dataclass(frozen=True)
class Plan:
    """One episode, drawn from its number.

    Attributes:
        start: Task at whose start the scene is put.
        first: Task in force until `switch_step`, `task` afterwards.
        progress: Where the object starts, see :meth:`flashvla_ros.sim.world.World.reset`.
        noise: Standard deviation of the noise on the executed motion, in action units.
        memory: Share of the noise that carries over to the next step.
    """

    task: str
    kind: str
    seed: int
    start: str
    first: str
    switch_step: int
    progress: float
    noise: float
    memory: float


def plan_episode(task: str, number: int, seed: int) -> Plan:
    """Draw an episode; the same arguments give the same one."""
    rng = np.random.default_rng([seed, zlib.crc32(task.encode()), number])
    others = [row.name for row in scene_tasks(find_task(task).scene) if row.name != task]
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values()))) if others else "plain"
    first = str(rng.choice(others)) if kind == "switch" else task
    return Plan(
        task=task,
        kind=kind,
        seed=FIRST_SEED + int(rng.integers(FIRST_SEED)),
        start=str(rng.choice([task, first])),
        first=first,
        switch_step=int(rng.integers(5, 120)) if kind == "switch" else 0,
        progress=float(rng.uniform()) if kind == "between" else 0.0,
        noise=float(rng.choice(NOISE_LEVELS)),
        memory=float(rng.choice([0.0, 0.8])),
    )


class Disturbance:
    """What is added to an expert's action before it is executed: noise at every step, and now and then a push."""

    def __init__(self, plan: Plan, axes: int = 3) -> None:
        self._rng = np.random.default_rng(plan.seed)
        self._plan = plan
        self._share = np.array([1.0] * 3 + [ROTATION_NOISE] * (axes - 3))
        self._noise = np.zeros(axes)
        self._push = np.zeros(axes)
        self._push_steps = 0

    def __call__(self, action: FloatArray) -> FloatArray:
        """Return the action to execute; the gripper, its last element, is left as it is."""
        memory = self._plan.memory
        fresh = self._rng.normal(0.0, self._plan.noise, len(self._share)) * self._share
        self._noise = memory * self._noise + np.sqrt(1.0 - memory**2) * fresh
        if self._push_steps == 0 and self._plan.noise > 0.0 and self._rng.uniform() < PUSH_PROBABILITY:
            self._push[:3] = self._rng.uniform(-1.0, 1.0, 3)
            self._push_steps = int(self._rng.integers(4, 12))
        motion = action[:-1] + self._noise
        if self._push_steps > 0:
            self._push_steps -= 1
            motion = self._push
        return np.clip([*motion, action[-1]], -1.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Recording:
    """What is kept of an episode.

    Attributes:
        image_size: Side of the images in pixels.
        chunk: T, time steps of a label.
        every: Steps from one frame to the next; rendering is what collecting costs.
    """

    image_size: int = 108
    chunk: int = 1
    every: int = 1


SINGLE_ACTIONS = Recording()


def record_episode(
    world: Any, plan: Plan, instructions: list[str], recording: Recording = SINGLE_ACTIONS
) -> dict[str, Any]:
    """Run the expert through one episode and return its arrays, see :class:`training.dataset.Frames`."""
    world.reset(plan.start, plan.seed, plan.progress)
    disturb = Disturbance(plan)
    frames: dict[str, list[Any]] = {name: [] for name in ("images", "actions", "instruction", "auxiliary", "done")}
    left = AFTER_SUCCESS
    for step in range(MAX_STEPS):
        task = plan.task if step >= plan.switch_step else plan.first
        action, done = world.expert(task), world.success(task)
        left -= done and task == plan.task
        if step % recording.every == 0 or left <= 0:
            label = action if recording.chunk == 1 else world.foresee(task, recording.chunk)
            frames["images"].append(world.render())
            frames["actions"].append(label.astype(np.float32))
            frames["instruction"].append(np.uint8(instructions.index(find_task(task).instruction)))
            frames["auxiliary"].append(world.scene.state.vector())
            frames["done"].append(done)
        if left <= 0:
            break
        world.step(disturb(action))
    return {name: np.stack(values) for name, values in frames.items()}


@functools.cache
def _world(image_size: int) -> Any:
    from flashvla_ros.sim.world import World  # in the worker only: each process has its own OpenGL contexts

    return World(image_size)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which lets running episodes finish
    import cv2

    cv2.setNumThreads(1)


def _collect_one(
    folder: Path, plan: Plan, number: int, recording: Recording, instructions: list[str]
) -> tuple[str, int, bool]:
    arrays = record_episode(_world(recording.image_size), plan, instructions, recording)
    write_episode(episode_path(folder, plan.task, number), **arrays, kind=np.array(plan.kind), seed=np.array(plan.seed))
    return plan.task, len(arrays["images"]), bool(arrays["done"][-1])


def collect(folder: Path, tasks: list[str], episodes: int, seed: int, recording: Recording, workers: int) -> None:
    """Add what is missing of `episodes` demonstrations of each task to a data set, in parallel processes."""
    instructions = [find_task(task).instruction for task in tasks]
    for task in tasks:
        missing = [row.name for row in scene_tasks(find_task(task).scene) if row.name not in tasks]
        if missing:
            raise DatasetError(f"{task} shares its scene with {', '.join(missing)}: collect them together")
    meta = {
        "tasks": tasks,
        "instructions": instructions,
        "image_size": recording.image_size,
        "seed": seed,
        "auxiliary": list(AUXILIARY),
        "action": ["dx", "dy", "dz", "gripper"],
        "chunk": recording.chunk,
        "every": recording.every,
    }
    write_meta(folder, meta)
    jobs = [(task, number) for number in range(episodes) for task in tasks]
    missing_jobs = [job for job in jobs if not episode_path(folder, *job).exists()]
    context = multiprocessing.get_context("spawn")  # a forked child cannot use its parent's OpenGL
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        futures = [
            pool.submit(_collect_one, folder, plan_episode(task, number, seed), number, recording, instructions)
            for task, number in missing_jobs
        ]
        try:
            _report(concurrent.futures.as_completed(futures), len(jobs), len(jobs) - len(futures))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _report(futures: Iterable[concurrent.futures.Future[tuple[str, int, bool]]], total: int, present: int) -> None:
    """Show progress, then each task's share of successes and length of episodes."""
    lengths: dict[str, list[int]] = {}
    successes: dict[str, int] = {}
    frames = 0
    with tqdm(total=total, initial=present, unit="episode") as bar:
        for future in futures:
            task, length, success = future.result()
            frames += length
            lengths.setdefault(task, []).append(length)
            successes[task] = successes.get(task, 0) + success
            bar.update()
            bar.set_postfix(frames=frames)
    for task, values in lengths.items():
        low, median, high = np.percentile(values, [5, 50, 95])
        spread = f"{low:.0f} | {median:.0f} | {high:.0f} (5 | 50 | 95 %)"
        print(f"{task}: expert {successes[task]}/{len(values)}, frames of an episode {spread}")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m training.collect", description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS), metavar="TASK")
    parser.add_argument("--episodes", type=positive, default=120, help="episodes of each task (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="data sets of different seeds share no scene")
    parser.add_argument(
        "--image-size", type=int, default=108, help="side of the images in pixels (default %(default)s)"
    )
    parser.add_argument("--chunk", type=positive, default=1, help="time steps of a label (default %(default)s)")
    parser.add_argument(
        "--every", type=positive, default=1, help="steps from one frame to the next (default %(default)s)"
    )
    parser.add_argument("--workers", type=positive, default=2, help="parallel processes (default %(default)s)")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the data set; an unfinished one is completed"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = parse_arguments(arguments)

    def work() -> None:
        recording = Recording(options.image_size, options.chunk, options.every)
        collect(options.out, options.tasks, options.episodes, options.seed, recording, options.workers)

    return exit_code(work, interrupted="the same command goes on from here")


if __name__ == "__main__":
    sys.exit(main())
