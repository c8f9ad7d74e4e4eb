"""The documents' pictures: two steps of the demo policy on the simulated robot, one that infers and the reuse after it.

``python -m benchmarks.picture docs/images`` writes infer.png, reuse.png, and overlay.png with both.
"""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np

from flashvla_ros.control.step_result import StepResult
from flashvla_ros.control.stepper import Stepper
from flashvla_ros.core.settings import Settings
from flashvla_ros.core.types import ActionKind, ActionSpec, ImageArray
from flashvla_ros.view.overlay import draw

_RENDERED = 448  # pixels; the policy's own preprocessing makes them fewer
_GAP = 12
_LEVELS = 0xF0  # of each colour channel: a rendered scene shows no difference, and the files are half as large


def main() -> None:
    """Run one episode and write the picture of the pair of steps nearest to its middle."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--task", default="drawer-open", help="%(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the scene (%(default)s)")
    args = parser.parse_args()
    results = episode(args.task, args.seed)
    reused = [index for index in range(1, len(results)) if not results[index].fresh and results[index - 1].fresh]
    if not reused:
        raise SystemExit("no step of this episode reused an action: try another seed")
    chosen = min(reused, key=lambda index: abs(index - len(results) // 2))
    infer, reuse = (draw(result) for result in results[chosen - 1 : chosen + 1])
    args.out.mkdir(parents=True, exist_ok=True)
    for name, picture in (("infer", infer), ("reuse", reuse), ("overlay", side_by_side([infer, reuse]))):
        write(args.out / f"{name}.png", picture)
    print(f"{args.out}: steps {chosen - 1} and {chosen} of {len(results)}")


def write(path: Path, picture: ImageArray) -> None:
    """Write a PNG file, as small as it may be and look the same."""
    smaller = cv2.cvtColor(picture & _LEVELS | 0x08, cv2.COLOR_RGB2BGR)
    cv2.imwrite(str(path), smaller, (cv2.IMWRITE_PNG_COMPRESSION, 9))


def episode(task: str, seed: int) -> list[StepResult]:
    """Run one episode with the default settings and return its steps, images and all."""
    from flashvla_ros.sim.episode import EpisodePlan
    from flashvla_ros.sim.rollout import roll_out
    from flashvla_ros.sim.settings import RobotSettings
    from flashvla_ros.sim.world import World
    from flashvla_ros.vla.loading import load_policy

    settings = Settings()
    action = settings.action
    spec = ActionSpec(action.names, tuple(ActionKind(kind) for kind in action.kinds), action.dt_s)
    results: list[StepResult] = []
    plan = EpisodePlan.from_settings(RobotSettings(task=task, seed=seed), episode=0)
    with closing(World(_RENDERED)) as world:
        roll_out(world, Stepper(load_policy(settings).policy, spec), plan, settings, on_step=results.append)
    return results


def side_by_side(pictures: list[ImageArray]) -> ImageArray:
    """Join pictures of one height with a white gap."""
    gap = np.full((pictures[0].shape[0], _GAP, 3), 255, dtype=np.uint8)
    return np.hstack([part for picture in pictures for part in (gap, picture)][1:])


if __name__ == "__main__":
    main()
