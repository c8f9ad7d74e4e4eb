"""What does the gate cost, and does its scene guard tell a jump from motion? ``python -m benchmarks.gate``.

Cost: a reused control step without anything that belongs to a model, against the plain comparison of two frames pixel
by pixel, in the same run on the same frames. Durations are CPU time of the calling thread, so that what else runs on
the machine does not count. The step with calibration and a learnt score is repeated a million times too, to see what
it leaves in memory.

Guard: Meta-World's scripted experts move the arm. An alarm in an undisturbed episode is a false one. At every sixth
step the object is also shoved aside for one frame, in a random direction: an alarm on that frame is right.
"""

from __future__ import annotations

import argparse
import collections
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from itertools import count, cycle
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.steady import SteadyPolicy
from benchmarks.tables import publish, table
from benchmarks.usage import Usage
from flashvla_ros.cli.exits import exit_code
from flashvla_ros.cli.results import meta, processor_name
from flashvla_ros.control.stepper import Stepper
from flashvla_ros.core.settings import GateSettings, Settings
from flashvla_ros.core.types import ActionKind, ActionSpec, FloatArray, ImageArray, Observation
from flashvla_ros.evaluation.statistics import Rate
from flashvla_ros.gate.memory import GateInput
from flashvla_ros.gate.scene import SceneMotion, Signature, compare, signature
from flashvla_ros.sim.tasks import TASKS
from flashvla_ros.sim.world import World

SIZES = ((112, 112), (224, 224), (480, 640), (1080, 1920))
CAMERAS = ((224, 0.0), (112, 4.0))  # side of an image in pixels, noise in grey levels
AGES = (1, 2, 3)  # control steps since the last fresh frame
SHOVES_CM = (2, 3, 5, 8)
CALIBRATED = {
    "gate.calibration": "online",
    "calibration.risk": 0.5,  # so that λ rises within a thousand steps, and both branches count
    "calibration.score": (-0.5, 0.1, 0.2, 0.3, -1.0, 0.4, 0.3, -3.0),
}
STEPS: Mapping[str, Mapping[str, Any]] = {
    "reused step: look, decide, limit": {},
    "step with calibration and a learnt score, model not counted": CALIBRATED,
}
_DT_S = 0.1
_SHOVE_EVERY = 6
_STEPS_AFTER_SUCCESS = 5

Alarms = dict[str, list[bool]]


def cost(repeats: int) -> Iterator[dict[str, Any]]:
    """Yield percentiles of each part at each size of a frame."""
    for height, width in SIZES:
        for name, call in _calls(height, width):
            p50, p95, p99 = np.percentile(_durations_ms(call, repeats), (50, 95, 99))
            yield {"frame": f"{width} x {height}", "name": name, "p50_ms": p50, "p95_ms": p95, "p99_ms": p99}


def _calls(height: int, width: int) -> Iterator[tuple[str, Callable[[], object]]]:
    rng = np.random.default_rng(0)
    images = cycle([rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(8)])
    previous, current = next(images), next(images)
    yield "baseline: mean absolute difference of two frames", lambda: _difference(previous, current)
    yield "look at the frame", lambda: GateInput.of(Observation({"image": next(images)}, "open the drawer", 0.0))
    for name, calibration in STEPS.items():
        yield name, _step(images, calibration)


def _step(images: Iterator[ImageArray], values: Mapping[str, Any]) -> Callable[[], object]:
    names = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
    stepper = Stepper(SteadyPolicy(7), ActionSpec(names, (ActionKind.DELTA,) * 6 + (ActionKind.GRIPPER,), 0.1))
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
            **values,
        }
    )
    stamps = count(1.0, 1e-3)

    def step() -> None:
        stepper.step(Observation({"image": next(images)}, "open the drawer", next(stamps)), settings)

    step(), step()
    return step


def memory(steps: int) -> dict[str, Any]:
    """Return what a calibrated step holds after a tenth of `steps` and after all of them [KiB]."""
    step = _step(cycle([np.random.default_rng(0).integers(0, 256, (*SIZES[0], 3), dtype=np.uint8)]), CALIBRATED)
    held = []
    for part in (steps // 10, steps - steps // 10):
        for _ in range(part):
            step()
        held.append(Usage.of(os.getpid()).anonymous_kib)
    return {"steps": steps, "held_kib": held}


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


def alarms(episodes: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield for each camera and task how often the guard raised an alarm, by age and by distance."""
    for size, noise in CAMERAS:
        with closing(World(image_size=size)) as world:
            for task in TASKS:
                raised: Alarms = collections.defaultdict(list)
                for number in range(seed, seed + episodes):
                    _count(_episode(world, task, number), _camera(noise, number), raised)
                counts = {column: [sum(found), len(found)] for column, found in raised.items()}
                yield {"camera": f"{size} x {size}, noise {noise:g}", "task": task, "alarms": counts}


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
    world.scene.move_object(offset_m)
    image = world.render()
    world.scene.move_object(-offset_m)
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
    raised: Alarms,
) -> None:
    """Run the guard over an episode, as if every step so far had been fresh."""
    gate, motion, frames = GateSettings(), SceneMotion(), list[Signature]()
    for image, shoved in episode:
        frame = look(image)
        for age in AGES:
            if len(frames) > max(age, 1):  # reuse needs two fresh results
                changed = compare(motion, frames[-age], frame, age * _DT_S, gate).changed
                raised[f"false, age {age}"].append(changed >= gate.scene_patches)
        for cm, other in shoved.items():
            changed = compare(motion, frames[-1], look(other), _DT_S, gate).changed
            raised[f"caught, {cm} cm"].append(changed >= gate.scene_patches)
        motion = motion.after(frame, len(frames) * _DT_S)
        frames.append(frame)


def page(results: Mapping[str, Any]) -> str:
    """Return the machine, the table of cost and that of alarms over all tasks, with 95 % Wilson intervals."""
    run, rows = results["meta"], results["rows"]
    costs = [row for row in rows if "p50_ms" in row]
    lines = [[row["frame"], row["name"], *(_ms(row[f"p{p}_ms"]) for p in (50, 95, 99))] for row in costs]
    parts = [
        f"{run['device']}; NumPy {run['versions']['numpy']}; {run['repeats']} calls a cell; {run['episodes']} episodes "
        f"of each of {len(TASKS)} tasks from seed {run['seed']}. {run.get('note', '')}".rstrip(),
        table(["frame", "what", "p50 [ms]", "p95 [ms]", "p99 [ms]"], lines),
    ]
    for row in rows:
        if "steps" in row:
            first, last = (kib / 1024 for kib in row["held_kib"])
            parts.append(
                f"{row['steps']} calibrated steps: {first:.1f} MiB after a tenth of them, {last:.1f} after all."
            )
    columns = [f"false, age {age}" for age in AGES] + [f"caught, {cm} cm" for cm in SHOVES_CM]
    lines = []
    for camera in dict.fromkeys(row["camera"] for row in rows if "camera" in row):
        counts = [row["alarms"] for row in rows if row.get("camera") == camera]
        lines.append([camera, *(_rate([one[column] for one in counts]) for column in columns)])
    return "\n\n".join([*parts, table(["camera", *columns], lines)])


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _rate(counts: list[list[int]]) -> str:
    rate = Rate(*map(sum, zip(*counts, strict=True)))
    low, high = rate.interval
    return f"{100 * rate.value:.1f} % of {rate.trials} ({100 * low:.1f}-{100 * high:.1f})"


def main() -> int:
    """Measure, print tables, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1000, help="timed calls a cell (default: %(default)s)")
    parser.add_argument("--episodes", type=int, default=5, help="episodes of each task (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=1_000_000, help="calibrated steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=2000, help="seed of the first (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    args = parser.parse_args()

    def work() -> None:
        rows = [*cost(args.repeats), memory(args.steps), *alarms(args.episodes, args.seed)]
        sizes = {"repeats": args.repeats, "episodes": args.episodes, "seed": args.seed}
        made = meta(f"{processor_name()}, cores: {os.cpu_count()}", command="gate", **sizes)
        publish(page, made, rows, args.json)

    return exit_code(work)


if __name__ == "__main__":
    raise SystemExit(main())
