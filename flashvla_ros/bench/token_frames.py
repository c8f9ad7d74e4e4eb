"""Frames of simulated episodes for the comparison of pruning methods, with what each visual token shows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from flashvla_ros.core.settings import PruningSettings
from flashvla_ros.core.types import ImageArray, Observation
from flashvla_ros.sim.episode import Episode, EpisodePlan, action_from_command
from flashvla_ros.sim.rollout import CAMERA
from flashvla_ros.sim.tasks import find_task
from flashvla_ros.sim.world import World
from flashvla_ros.vla.policy import OpenVLAPolicy

TICK_S = 0.1
WINDOW = 3  # consecutive frames: a method that compares frames needs one more than the two whose sets are compared
NOTHING = PruningSettings(method="none")


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
    """One step of an episode.

    Attributes:
        task: Name of the task.
        seed: Of the scene.
        step: Number of the step.
        observation: What the policy sees.
        robot: [N] share of each token's patch that shows the robot.
        thing: [N] share that shows the object that the task is about.
    """

    task: str
    seed: int
    step: int
    observation: Observation
    robot: NDArray[np.float64]
    thing: NDArray[np.float64]

    @property
    def image(self) -> ImageArray:
        """The camera's picture."""
        return self.observation.images[CAMERA]


def windows(
    policy: OpenVLAPolicy, tasks: Sequence[str], seeds: Sequence[int], every: int, *, expert: bool = False
) -> Iterator[list[Frame]]:
    """Run dense episodes and give :data:`WINDOW` consecutive frames out of every `every` steps.

    Args:
        policy: Drives, without pruning and without a gate; its number of tokens says how patches lie.
        tasks: Their names.
        seeds: Of the scenes.
        every: Steps between the starts of two windows.
        expert: Let Meta-World's scripted expert drive instead.
    """
    side = math.isqrt(policy.visual_tokens)
    with closing(World()) as world:
        for task in tasks:
            for seed in seeds:
                row = find_task(task)
                episode = Episode(world, EpisodePlan(row, seed, row.instruction, row.max_steps))
                window: list[Frame] = []
                while not episode.ended:
                    wanted = episode.steps % every < WINDOW
                    observation = _observe(world, episode) if wanted or not expert else None
                    if observation is not None and wanted:
                        shown = world.segmentation()
                        shares = _shares(shown == 1, side), _shares(shown == 2, side)
                        window.append(Frame(task, seed, episode.steps, observation, *shares))
                    if len(window) == WINDOW:
                        yield window
                        window = []
                    episode.step(world.expert(task) if observation is None or expert else _act(policy, observation))


def _observe(world: World, episode: Episode) -> Observation:
    return Observation({CAMERA: world.render()}, episode.instruction, stamp_s=TICK_S * episode.steps)


def _shares(mask: NDArray[np.bool_], side: int) -> NDArray[np.float64]:
    size = mask.shape[0] // side
    blocks = mask[: size * side, : size * side].reshape(side, size, side, size)
    return blocks.mean(axis=(1, 3)).ravel()


def _act(policy: OpenVLAPolicy, observation: Observation) -> NDArray[np.float64]:
    command = policy.infer(observation, NOTHING).action[0]
    return action_from_command(command[:3] / TICK_S, command[3], TICK_S)
