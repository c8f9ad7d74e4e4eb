"""A small policy for LIBERO, in one command: ``python -m training.libero --out runs``.

Demonstrations of a scripted expert, most of them from permuted states, then training: with 64 visual tokens first,
which takes a quarter of the time, then with 256. That policy drives the robot through as many episodes again, and the
expert says what it would have done there; with those frames, training ends. Whatever was stopped goes on where it was
when the same command is given again; more tasks or episodes are added to what is there.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from flashvla_ros.cli.exits import exit_code
from flashvla_ros.control.command_rules import gripper_scale
from flashvla_ros.core.policy import Request
from flashvla_ros.core.settings import ModelSettings, PruningSettings
from flashvla_ros.core.types import FloatArray, ImageArray, Observation
from flashvla_ros.sim.libero.cameras import FAST, SCENE_ROWS, SCENE_SHARE, near_camera
from flashvla_ros.sim.libero.protocol import CONTROLS, FIRST_DRAWN, PERMUTED, SUITES
from flashvla_ros.sim.libero.scene import LiberoScene
from flashvla_ros.sim.libero.world import LiberoWorld
from flashvla_ros.sim.simulator import mujoco
from flashvla_ros.sim.tasks import find_task
from flashvla_ros.vla.arch.table import load
from training.architecture import DemoSize
from training.collect import NOISE_LEVELS, Disturbance
from training.dataset import DRIVEN, episode_path, write_episode, write_meta
from training.fit import CHECKPOINT, STATE, fit
from training.libero_expert import GRIPPER_CLOSED, GRIPPER_OPEN, LiberoExpert, instruction_for, object_of
from training.trainer import FitConfig

SUITE = "libero_object"
SIZE = DemoSize(image_size=128, patch_size=8)  # 256 visual tokens, as OpenVLA has
STRIDE = 2  # steps from one frame that is kept to the next
MAX_STEPS = 320
DRIVEN_STEPS = 160  # of an episode that a policy drives: one that fails stays where it is
OFFICIAL = 15  # episodes of each task from its own states, which hardly vary; the others are permuted
NEAR_M, NEAR_WEIGHT = 0.15, 6.0  # frames with the hand this near to the object are drawn more often: two of three
WITHIN_M = 0.002  # deeper than what rests on another
OPENING_M = 0.08  # of the fingers
# OpenVLA's convention: robosuite's units for the motion, 1 for an open gripper and 0 for a closed one, not scaled.
STATISTICS = {
    SUITE: {
        "action": {
            "q01": [-1.0] * (CONTROLS - 1) + [0.0],
            "q99": [1.0] * CONTROLS,
            "mask": [True] * (CONTROLS - 1) + [False],
        }
    }
}
COARSE = FitConfig(
    steps=5500,
    batch=64,
    labels=4,
    learning_rate=1.2e-3,
    look_weight=1.0,
    shift=3,
    save_every=250,
    size=DemoSize(128, patch_size=16),
)
# What is named is found by now; what is left is to be exact, and more pictures serve that better than more labels.
FINE = dataclasses.replace(COARSE, steps=2000, batch=32, labels=1, look_weight=0.5, save_every=100, size=SIZE)
PLAIN = dataclasses.replace(FINE, learning_rate=1e-3, warmup=40)
DROPOUT = dataclasses.replace(PLAIN, steps=800, dropout_share=0.7)


@dataclasses.dataclass(frozen=True)
class LiberoPlan:
    """One episode, drawn from its number: a scene, what is to be picked there, and the noise on the way."""

    scene: str
    target: str
    seed: int
    noise: float
    memory: float
    phase: int


def plan_episode(number: int, task: int, seed: int) -> LiberoPlan:
    """Draw an episode of a task. No seed is one of an evaluation: see FIRST_DRAWN."""
    permuted = number % 2 == 1 or number >= 2 * OFFICIAL
    rng = np.random.default_rng([seed, zlib.crc32(SUITE.encode()), task, number])
    return LiberoPlan(
        scene=f"{SUITE}{PERMUTED if permuted else ''}/{task}",
        target=object_of(find_task(f"{SUITE}/{task}").instruction),
        seed=FIRST_DRAWN + int(rng.integers(FIRST_DRAWN)),
        noise=float(rng.choice(NOISE_LEVELS)),
        memory=float(rng.choice([0.0, 0.8])),
        phase=int(rng.integers(STRIDE)),
    )


Driver = Callable[[ImageArray, str], FloatArray]  # an image and an instruction to an action [7] of the robot


def driver_of(checkpoint: Path) -> Driver:
    """Return a policy as what drives the robot."""
    policy = load(ModelSettings(checkpoint=str(checkpoint)))
    dense, gripper = PruningSettings(method="none"), gripper_scale([1.0, 0.0], [GRIPPER_OPEN, GRIPPER_CLOSED])

    def drive(image: ImageArray, instruction: str) -> FloatArray:
        observation = Observation({"camera": image}, instruction, 0.0)
        action = policy.infer(Request(observation, dense)).action[0]
        return np.append(action[:-1], gripper(action[-1]))

    return drive


def record(
    world: LiberoWorld, plan: LiberoPlan, targets: list[str], objects: list[str], drive: Driver | None = None
) -> dict[str, Any]:
    """Run the expert through one episode and return its arrays, see :class:`training.dataset.Frames`.

    Where a policy drives, the frames are those that it comes to and the labels still the expert's (DAgger, Ross et al.
    2011, https://arxiv.org/abs/1011.0686): from demonstrations alone it does not learn what to do after its own errors.

    In a permuted scene any of the `targets` may be the one to pick: nothing but the instruction tells. Each picture has
    a second one, with the objects in other places around the same hand, and where the hand is empty, each is labelled
    with what the expert would do for every object in it: it needs no past to say so. A policy that ignores the
    instruction cannot fit six labels of one picture.
    """
    world.reset(plan.scene, plan.seed)
    scene, rng = world.scene, np.random.default_rng(plan.seed)
    present = [name for name in targets if name in scene.objects]
    target = str(rng.choice(present)) if PERMUTED in plan.scene else plan.target
    experts = {name: LiberoExpert(scene, name) for name in present}
    expert, disturb = experts[target], Disturbance(plan, CONTROLS - 1)  # type: ignore[arg-type]
    pictures: list[Any] = []
    frames: dict[str, list[Any]] = {}

    def keep(names: list[str]) -> None:
        state = _state(world, objects)
        for name in names:
            place, action = np.mean(scene.extent(name), axis=0), experts[name]()
            near = np.linalg.norm(scene.hand_position - place) < NEAR_M
            frame = {
                "image": np.int32(len(pictures)),
                "actions": np.append(action[:-1], action[-1] < 0).astype(np.float32),
                "auxiliary": state,
                "seen": seen_at(place, scene.model.vis.global_.fovy).astype(np.float32),
                "weight": np.float32(NEAR_WEIGHT if near else 1.0),
                "instruction": np.uint8(objects.index(name)),  # they come in the order of the instructions
            }
            for key, value in frame.items():
                frames.setdefault(key, []).append(value)
        pictures.append(world.render())

    instruction = instruction_for(target)
    for step in range(DRIVEN_STEPS if drive else MAX_STEPS):
        action = drive(world.render(), instruction) if drive else expert()
        if step % STRIDE == plan.phase:
            held = target if expert.holding else ""
            with restaged(scene, rng, held) as apart:
                if apart:
                    keep([held] if held else present)
            keep([held] if held else present)
        world.step(disturb(action))
        if expert.accomplished:
            break
    arrays = {name: np.stack(values) for name, values in frames.items()}
    done = np.zeros(len(arrays["image"]), dtype=bool)
    done[-1] = expert.accomplished  # only what ends well is an example to follow
    return arrays | {"images": np.stack(pictures), "done": done}


@contextlib.contextmanager
def restaged(scene: LiberoScene, rng: np.random.Generator, held: str = "") -> Iterator[bool]:
    """Let the objects but the one `held` swap their places for a picture; then the state is as before.

    Nothing moves meanwhile. What comes is whether no two things are within each other.
    """
    model, data, whole = scene.model, scene.data, mujoco.mjtState.mjSTATE_INTEGRATION
    before = np.empty(mujoco.mj_stateSize(model, whole))
    mujoco.mj_getState(model, data, before, whole)
    try:
        scene.permute(rng, held)
        kept = set(scene.geoms[held]) if held else set()
        yield all(contact.dist > -WITHIN_M or kept & {*contact.geom} for contact in data.contact)
    finally:
        mujoco.mj_setState(model, data, before, whole)
        mujoco.mj_forward(model, data)
        mujoco.mj_setState(model, data, before, whole)  # a forward pass warms the next one's solver


def seen_at(place: FloatArray, fovy: float) -> FloatArray:
    """Return row and column, as shares of the picture's sides, at which a fast picture shows a place [3] in m."""
    camera = near_camera()
    azimuth, elevation = np.radians([camera.azimuth, camera.elevation])
    ahead = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
    right = np.array([np.sin(azimuth), -np.cos(azimuth), 0.0])
    away = place - (camera.lookat - camera.distance * ahead)
    reach = 2 * np.tan(np.radians(fovy / 2)) * (away @ ahead)  # that the picture spans there, in m
    row = 0.5 - away @ np.cross(right, ahead) / reach
    return np.array([row * SCENE_SHARE / SCENE_ROWS, 0.5 - away @ right / reach])  # pictures are mirrored


def _state(world: LiberoWorld, objects: list[str]) -> FloatArray:
    """Hand, gripper's opening, and the middle of each object, NaN for one that is not in the scene."""
    scene = world.scene
    missing = np.full(3, np.nan)
    places = [np.mean(scene.extent(name), axis=0) if name in scene.objects else missing for name in objects]
    state = np.concatenate([scene.hand_position, [scene.gap / OPENING_M], *places])
    return state.astype(np.float32)  # type: ignore[return-value]


def collect(folder: Path, tasks: list[int], episodes: int, seed: int, checkpoint: Path | None = None) -> None:
    """Add what is missing of `episodes` of each task, demonstrations or those that a checkpoint's policy drives."""
    everything = [find_task(f"{SUITE}/{number}").instruction for number in range(SUITES[SUITE].tasks)]
    targets = [object_of(everything[task]) for task in tasks]
    objects = [*map(object_of, everything), "basket_1"]
    meta = {"image_size": SIZE.image_size, "seed": seed, "objects": objects, "norm_stats": STATISTICS}
    write_meta(folder, meta | {"suite": SUITE, "instructions": everything})
    drive, name = (driver_of(checkpoint), f"{SUITE}-{DRIVEN}") if checkpoint else (None, SUITE)
    plans = {
        episode_path(folder, f"{name}-{task}", number): plan_episode(number, task, seed + bool(drive))
        for task in tasks
        for number in range(episodes)
    }
    world, solved = LiberoWorld(SIZE.image_size, FAST), 0
    bar = tqdm(total=len(plans), initial=sum(path.exists() for path in plans), unit="episode")
    try:
        for path, plan in sorted(plans.items(), key=lambda item: item[1].scene):  # another scene takes half a minute
            if path.exists():
                continue
            arrays = record(world, plan, targets, objects, drive)
            write_episode(path, **arrays)
            solved += bool(arrays["done"][-1])
            bar.update()
            bar.set_postfix(solved=solved, frames=len(arrays["done"]))
    finally:
        world.close()
        bar.close()


def make(options: argparse.Namespace) -> None:
    """Collect and train below ``--out``."""
    torch.set_num_threads(options.threads)
    folder = options.out / "data"
    collect(folder, options.tasks, options.episodes, options.seed)
    start = None
    for name, config in (("coarse", COARSE), ("fine", FINE), ("plain", PLAIN), ("dropout", DROPOUT)):
        if name == "plain":
            collect(folder, options.tasks, options.episodes, options.seed, options.out / "fine" / CHECKPOINT)
        steps = options.steps or config.steps
        config = dataclasses.replace(config, steps=steps, precision=options.precision)
        print(f"{name}: {steps} steps, {config.precision}, {options.threads} threads")
        out = options.out / name
        print(json.dumps(fit(folder, out, config, init=start, resume=(out / STATE).exists())))
        start = out


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m training.libero", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of data, coarse, plain and dropout")
    numbers = range(SUITES[SUITE].tasks)
    parser.add_argument("--tasks", type=int, nargs="+", default=numbers, choices=numbers, help="of the suite (all)")
    parser.add_argument("--episodes", type=int, default=60, help="of each task (default %(default)s)")
    parser.add_argument("--steps", type=int, default=0, help="of each training (0: as in the recipe)")
    parser.add_argument("--seed", type=int, default=0, help="of the demonstrations (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of training (default %(default)s)")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"), help="(%(default)s)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = parse_arguments(arguments)
    return exit_code(lambda: make(options), interrupted="the same command goes on from here")


if __name__ == "__main__":
    sys.exit(main())
