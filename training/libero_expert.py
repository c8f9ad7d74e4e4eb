"""A scripted expert for LIBERO's pick-and-place tasks: ``python -m training.libero_expert --film soup.mp4``.

It decides from the state alone. Nothing of the past counts, no phase and no counter: two frames that look alike have
the same label, as a policy without memory needs it. It closes well before it is exact (1.5 cm, a few pixels of a small
picture), centres while it closes, and lifts as the fingers meet the object.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from flashvla_ros.cli.exits import exit_code
from flashvla_ros.core.errors import FlashVLAError, SimulationError
from flashvla_ros.core.types import FloatArray
from flashvla_ros.sim.libero.library import library
from flashvla_ros.sim.libero.protocol import STEP_S, render_for
from flashvla_ros.sim.libero.scene import LiberoScene
from flashvla_ros.sim.libero.world import LiberoWorld
from flashvla_ros.sim.tasks import Task, find_task

CLOSE_M = 0.015  # nearness in the plane at which the fingers close
CLOSE_HEIGHT_M = 0.015
HELD_M = 0.03  # farthest that the hand is from the grasp of what it holds
OPEN_M = 0.074  # fingers farther apart than this are open
SLACK_M = 0.003  # of fingers that touch both sides
EMPTY_M = 0.012  # fingers this much nearer than the object is wide have nothing between them
CLEARANCE_M = 0.05  # above the basket's rim on the way
DEPTH_M = 0.035  # of a grasp below an object's top
LEAST_DEPTH_M = 0.012  # of a grasp above the floor
WAITING_M = 0.045  # above the grasp, where a hand opens
FLAT_M = 0.03  # the palm comes to the floor this near, over a box no higher
PALM_M = (0.025, 0.1)  # half of it along x and y; it stops on what is higher than FINGER_M
FINGER_M = 0.055
SHIFT_M = 0.025  # farthest that a flat box is taken from its middle
TURNED_M = 0.07  # an object this wide between the fingers is taken across
SOFT = 12.0  # slope of an approach at its end [actions/m]; at 20 cm the action is 0.98
GRIPPER_OPEN, GRIPPER_CLOSED = -1.0, 1.0
BEFORE, AFTER = "pick up the ", " and place it in the basket"  # the words about an object in its instruction


class LiberoExpert:
    """Picks an object and puts it into the container.

    Args:
        scene: After a reset.
        target: Name of the object.
    """

    def __init__(self, scene: LiberoScene, target: str) -> None:
        self._scene, self._target = scene, target
        low, high = scene.extent(target)
        across, along = (high - low)[:2]
        turned = along > TURNED_M and across < along
        low, high = scene.extent(target, _grasp(low, high)[2])  # a bottle's neck is narrower
        self._width = (high - low)[0 if turned else 1]  # the fingers open along y
        angle = np.pi / 2 if turned else 0.0
        flip = [1.0, -1.0, -1.0] if scene.hand_rotation[0, 0] > 0 else [-1.0, 1.0, -1.0]  # the tool looks down
        turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        self._rotation = turn @ np.diag(flip)

    @property
    def accomplished(self) -> bool:
        """The object lies in the container, as the geometry of the two says it."""
        low, high = self._scene.extent(self._target)
        least, most = self._scene.extent(self._scene.container)
        centre = (low + high)[:2] / 2
        return bool((centre > least[:2]).all() and (centre < most[:2]).all() and low[2] < most[2] - 0.03)

    @property
    def holding(self) -> bool:
        """The object is between the fingers, and they touch it."""
        low, high = self._scene.extent(self._target)
        return self._holds(self._off(low, high))

    def _off(self, low: FloatArray, high: FloatArray) -> FloatArray:
        """Return the hand's place [3] from that of the grasp.

        The palm stops on what is higher than the fingers are long. A flat box is therefore taken off its middle, along
        x, where a neighbour stands in the palm's way.
        """
        off, shift = self._scene.hand_position - _grasp(low, high), 0.0
        for name in self._scene.objects if high[2] < FLAT_M else ():
            least, most = self._scene.extent(name)
            away, half = ((least + most - low - high) / 2)[:2], (most - least)[:2] / 2
            if most[2] > FINGER_M and abs(away[1]) < PALM_M[1] + half[1] and name != self._scene.container:
                shift -= np.sign(away[0]) * max(half[0] + PALM_M[0] - abs(away[0]), 0.0)
        off[0] -= np.clip(shift, -SHIFT_M, SHIFT_M)
        return off

    def __call__(self) -> FloatArray:
        """Return the action [7] in [-1, 1]; the gripper opens at -1."""
        scene = self._scene
        low, high = scene.extent(self._target)
        centre, off = (low + high) / 2, self._off(low, high)
        aside = float(np.hypot(*off[:2]))
        least, most = scene.extent(scene.container)
        to_container = (least + most)[:2] / 2 - centre[:2]
        far = float(np.hypot(*to_container))
        around = self._around(off)
        above = far < 0.06 and low[2] > least[2] + 0.04
        if self._holds(off) and not (above and scene.gap > self._width + 0.004):
            move, gripper = self._carry(low[2], most[2], to_container, far)
        elif above and around:
            move, gripper = np.zeros(3), GRIPPER_OPEN
        elif around and scene.gap <= self._width - EMPTY_M:
            move, gripper = np.array([0.0, 0.0, 1.0]), GRIPPER_CLOSED  # closed in vain: it opens above
        elif (around and scene.gap < OPEN_M and not above) or (aside < CLOSE_M and abs(off[2]) < CLOSE_HEIGHT_M):
            move, gripper = np.clip(-off * [10, 10, 25], -1, 1), GRIPPER_CLOSED
            move[2] += 0.4 * np.clip((self._width + 0.014 - scene.gap) / 0.008, 0, 1)
        else:
            move, gripper = self._approach(off, aside, high[2]), GRIPPER_OPEN
            if low[2] > most[2] - 0.02 and far < 0.12:
                move[2] = 0.5  # it is on the rim: away from there
        return np.clip([*move, *self._turn(), gripper], -1.0, 1.0)

    @staticmethod
    def _around(off: FloatArray) -> bool:
        return bool(np.hypot(*off[:2]) < HELD_M and abs(off[2]) < HELD_M)

    def _holds(self, off: FloatArray) -> bool:
        return self._around(off) and -EMPTY_M < self._scene.gap - self._width < SLACK_M

    def _carry(self, bottom: float, rim: float, to_container: FloatArray, far: float) -> tuple[FloatArray, float]:
        """Lift, go over the container, and let go low above its middle."""
        clear = bottom - rim
        share = np.clip((bottom - 0.03) / 0.08, 0, 1)
        if far < 0.22:
            share = min(share, np.clip((clear + 0.01) / 0.03, 0, 1))
        height = rim + (0.02 if far < 0.03 else CLEARANCE_M)
        move = np.array([*np.clip(to_container * 14, -1, 1) * share, np.clip((height - bottom) * 14, -1, 1)])
        if far < 0.025 and clear < 0.04:
            return move * 0.3, GRIPPER_OPEN
        return move, GRIPPER_CLOSED

    def _approach(self, off: FloatArray, aside: float, top: float) -> FloatArray:
        """Come from above: down as far as the hand is near in the plane, and not aside while it is low.

        Motion ends softly. Were it clipped, most labels would be ±1, and the likeliest bin of a policy that is not sure
        to 2 cm would be one of the two: it would jump to and fro.
        """
        hand = self._scene.hand_position[2]
        above = np.clip(3 * (aside - 0.008), 0.0 if self._scene.gap >= OPEN_M else WAITING_M, 0.12)
        share = np.clip((hand - top) / 0.03, 0, 1) if aside > 0.04 else 1.0
        return np.array([*np.tanh(-off[:2] * SOFT) * share, np.tanh((above - off[2]) * SOFT)])

    def _turn(self) -> FloatArray:
        """Keep the tool looking down, at the yaw that fits the object."""
        away = self._rotation @ self._scene.hand_rotation.T
        quaternions = library().quaternions
        return np.clip(quaternions.quat2axisangle(quaternions.mat2quat(away)) * 4, -1, 1)


def _grasp(low: FloatArray, high: FloatArray) -> FloatArray:
    """Return where the hand takes an object of this extent: above its middle, not too near to the floor."""
    centre = (low + high) / 2
    return np.array([*centre[:2], max(high[2] - DEPTH_M, centre[2], low[2] + LEAST_DEPTH_M)])


def object_of(instruction: str) -> str:
    """Return the object's name in the scene: ``pick up the milk and place it in the basket`` is about ``milk_1``."""
    words = instruction.removeprefix(BEFORE).removesuffix(AFTER)
    return f"{words.replace(' ', '_')}_1"


def instruction_for(name: str) -> str:
    """Return the instruction about an object, see :func:`object_of`."""
    return BEFORE + name.removesuffix("_1").replace("_", " ") + AFTER


def object_in(scene: LiberoScene, instruction: str) -> str:
    """Return the object's name, or refuse, with SimulationError, a scene or an instruction that is not about one."""
    if (name := object_of(instruction)) in scene.objects and scene.container:
        return name
    raise SimulationError(
        f"{scene.task}: the expert puts an object into the basket in the words of libero_object, got {instruction!r}"
    )


def play(tasks: Sequence[str], seeds: Sequence[int], film: Path | None, size: int) -> None:
    """Play episodes of libero_object and film them; print what came of each, how long it took, how many succeed."""
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter.fourcc(*"mp4v"), 1.0 / STEP_S, (size, size)) if film else None
    if writer is not None and not writer.isOpened():
        raise FlashVLAError(f"cannot write {film}: give a file .mp4 in a folder that exists")
    world = LiberoWorld(size, render_for(size))
    solved = 0
    try:
        for task, seed in itertools.product(tasks, seeds):
            solved += _play(world, find_task(task), seed, writer)
    finally:
        world.close()
        if writer is not None:
            writer.release()
    if len(tasks) * len(seeds) > 1:
        print(f"{solved} of {len(tasks) * len(seeds)} episodes succeed")


def _play(world: LiberoWorld, task: Task, seed: int, writer: cv2.VideoWriter | None) -> bool:
    started = time.monotonic(), time.process_time()
    world.reset(task.name, seed)
    ready = time.monotonic()
    expert, steps = LiberoExpert(world.scene, object_in(world.scene, task.instruction)), 0
    while not (success := world.success(task.name)) and steps < task.max_steps:
        if writer is not None:
            writer.write(cv2.cvtColor(world.render(), cv2.COLOR_RGB2BGR))
        world.step(expert())
        steps += 1
    wall, processor = time.monotonic() - started[0], time.process_time() - started[1]
    print(
        f"{task.name}, {task.instruction!r}, start {seed}: {'success' if success else 'failure'} in {steps} steps; "
        f"{ready - started[0]:.0f} s to the start, {wall:.0f} s in all, {processor:.0f} s of a processor",
        flush=True,
    )
    return success


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m training.libero_expert", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--task", nargs="+", default=["libero_object/0"], help="of libero_object or a variation (libero_object/0)"
    )
    parser.add_argument("--seed", nargs="+", type=int, default=[0], help="numbers of the initial states (0)")
    parser.add_argument("--film", type=Path, metavar="F.mp4", help="write a film there")
    parser.add_argument("--size", type=int, default=224, help="of its pictures; 224: the official ones (%(default)s)")
    options = parser.parse_args(arguments)
    return exit_code(lambda: play(options.task, options.seed, options.film, options.size), interrupted="stopped")


if __name__ == "__main__":
    sys.exit(main())
