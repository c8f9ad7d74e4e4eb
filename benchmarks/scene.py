"""How well the scene guard tells a jump from motion: ``python -m benchmarks.scene``.

Meta-World's scripted experts move the arm. An alarm in an episode that nobody disturbs is a false one. At every sixth
step the object is also shoved aside for one frame, in a random direction: an alarm on that frame is right.
"""

from __future__ import annotations

import argparse
import collections
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from flashvla_ros.core.settings import GateSettings
from flashvla_ros.core.types import FloatArray, ImageArray
from flashvla_ros.evaluation.statistics import Rate
from flashvla_ros.gate.scene import SceneMotion, Signature, compare, signature
from flashvla_ros.sim.tasks import TASKS
from flashvla_ros.sim.world import World

AGES = (1, 2, 3)  # control steps since the last fresh frame
SHOVES_CM = (2, 3, 5, 8)
_DT_S = 0.1
_SHOVE_EVERY = 6
_STEPS_AFTER_SUCCESS = 5

Alarms = dict[str, list[bool]]


def main() -> None:
    """Print false alarms by age and catches by distance, for every task and in all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=8, help="episodes of each task (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=2000, help="seed of the first (default: %(default)s)")
    parser.add_argument("--size", type=int, default=224, help="side of an image in pixels (default: %(default)s)")
    parser.add_argument("--noise", type=float, default=0.0, help="camera noise in grey levels (default: %(default)s)")
    args = parser.parse_args()
    world, total = World(image_size=args.size), collections.defaultdict(list)
    columns = [f"false, age {age}" for age in AGES] + [f"caught, {cm} cm" for cm in SHOVES_CM]
    print(f"{args.size} x {args.size} pixels, noise {args.noise:g}, {args.episodes} episodes of each task\n")
    print(f"| task | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for task in TASKS:
        alarms: Alarms = collections.defaultdict(list)
        for seed in range(args.seed, args.seed + args.episodes):
            _count(_episode(world, task, seed), _camera(args.noise, seed), alarms)
        for column, raised in alarms.items():
            total[column] += raised
        print(_row(task, alarms, columns), flush=True)
    print(_row("all", total, columns))
    world.close()


def _episode(world: World, task: str, seed: int) -> Iterator[tuple[ImageArray, Mapping[int, ImageArray]]]:
    """Yield the picture of every step, and at some steps those with the object shoved aside by so many centimetres."""
    rng = np.random.default_rng(seed)
    world.reset(task, seed)
    succeeded = 0
    for step in range(TASKS[task].max_steps):
        shoved = {}
        if step % _SHOVE_EVERY == _SHOVE_EVERY - 1:
            angle = rng.uniform(0.0, 2.0 * np.pi)
            direction = np.array([np.cos(angle), np.sin(angle), 0.0])
            shoved = {cm: _shoved(world, cm / 100 * direction) for cm in SHOVES_CM}
        yield world.render(), shoved
        world.step(world.expert(task))
        succeeded += world.success(task)
        if succeeded > _STEPS_AFTER_SUCCESS:
            return


def _shoved(world: World, offset_m: FloatArray) -> ImageArray:
    world.move_object(offset_m)
    image = world.render()
    world.move_object(-offset_m)
    return image


def _camera(noise: float, seed: int) -> Callable[[ImageArray], Signature]:
    rng = np.random.default_rng(seed)

    def look(image: ImageArray) -> Signature:
        if noise:
            image = np.clip(image + rng.normal(0.0, noise, image.shape), 0, 255).astype(np.uint8)
        return signature({"image": image})

    return look


def _count(
    episode: Iterator[tuple[ImageArray, Mapping[int, ImageArray]]],
    look: Callable[[ImageArray], Signature],
    alarms: Alarms,
) -> None:
    """Run the guard over an episode, as if every step so far had been fresh."""
    gate, motion, frames = GateSettings(), SceneMotion(), list[Signature]()
    for image, shoved in episode:
        frame = look(image)
        for age in AGES:
            if len(frames) > max(age, 1):  # reuse needs two fresh results
                changed = compare(motion, frames[-age], frame, age * _DT_S, gate).changed
                alarms[f"false, age {age}"].append(changed >= gate.scene_patches)
        for cm, other in shoved.items():
            changed = compare(motion, frames[-1], look(other), _DT_S, gate).changed
            alarms[f"caught, {cm} cm"].append(changed >= gate.scene_patches)
        motion = motion.after(frame, len(frames) * _DT_S)
        frames.append(frame)


def _row(name: str, alarms: Alarms, columns: list[str]) -> str:
    cells = []
    for column in columns:
        rate = Rate(sum(alarms[column]), len(alarms[column]))
        low, high = rate.interval
        cells.append(f"{100 * rate.value:.1f} % of {rate.trials} ({100 * low:.1f}-{100 * high:.1f})")
    return f"| {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
