"""Closed-loop episodes in one process and in lock-step: the simulated robot, the control step, no ROS.

The control step is the node's own (:class:`flashvla_ros.control.stepper.Stepper`), and time is the simulation's, so the
same plan, policy and settings give the same episode again, step for step.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from flashvla_ros.control.stepper import Stepper, StepResult
from flashvla_ros.core.settings import Settings
from flashvla_ros.core.types import Observation
from flashvla_ros.sim.episode import Episode, EpisodePlan, action_from_command
from flashvla_ros.sim.world import World

CAMERA = "image"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How an episode went.

    Attributes:
        plan: What was asked.
        success: The last instruction was accomplished.
        steps: Control steps in all.
        reused: Control steps that used the last action again.
        clamped: Control steps in which safety changed the action.
        kept_ratio: Visual tokens that the layers behind the pruned one saw, as a share, over fresh steps; 1 where
            nothing was dropped.
        reasons: How often the gate gave each of its reasons.
        latencies_s: [steps] from the observation to its command.
    """

    plan: EpisodePlan
    success: bool
    steps: int
    reused: int
    clamped: int
    kept_ratio: float
    reasons: Mapping[str, int]
    latencies_s: tuple[float, ...]


def roll_out(
    world: World,
    stepper: Stepper,
    plan: EpisodePlan,
    settings: Settings,
    on_step: Callable[[StepResult], None] | None = None,
) -> Outcome:
    """Run one episode to its end.

    Args:
        world: Is reset to the plan's start.
        stepper: Is reset too; its policy sees no difference from a robot on the bench.
        plan: What is asked.
        settings: In force throughout; ``action.dt_s`` is the length of a control step.
        on_step: Sees every control step, such as a recorder of videos.
    """
    tick_s = settings.action.dt_s
    episode = Episode(world, plan)
    stepper.reset()
    results: list[StepResult] = []
    while not episode.ended:
        observation = Observation({CAMERA: world.render()}, episode.instruction, stamp_s=episode.steps * tick_s)
        result = stepper.step(observation, settings)
        command = result.command[0]
        episode.step(action_from_command(command[:3] / tick_s, command[3], tick_s))
        results.append(dataclasses.replace(result, observation=dataclasses.replace(observation, images={})))
        if on_step is not None:
            on_step(result)
    return _outcome(plan, episode, results, settings)


def _outcome(plan: EpisodePlan, episode: Episode, results: list[StepResult], settings: Settings) -> Outcome:
    fresh = [result.inference for result in results if result.fresh]
    drop = settings.pruning.drop
    kept = [len(run.kept) / run.visual_tokens if drop and run.kept is not None else 1.0 for run in fresh]
    return Outcome(
        plan=plan,
        success=episode.success,
        steps=episode.steps,
        reused=len(results) - len(fresh),
        clamped=sum(bool(result.clamped.any()) for result in results),
        kept_ratio=float(np.mean(kept)),
        reasons=dict(collections.Counter(str(result.decision.reason) for result in results)),
        latencies_s=tuple(result.step_s for result in results),
    )
