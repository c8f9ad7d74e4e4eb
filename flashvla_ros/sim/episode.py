"""Episodes of the simulated robot, without ROS: what is asked, what a command does, when it is over."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from flashvla_ros.core.errors import SimulationError
from flashvla_ros.core.types import FloatArray
from flashvla_ros.sim.settings import METRES_PER_UNIT, RobotSettings
from flashvla_ros.sim.tasks import Task, find_task, task_for_instruction

if TYPE_CHECKING:
    from flashvla_ros.sim.world import AnyWorld


@dataclasses.dataclass(frozen=True)
class EpisodePlan:
    """What is asked of the robot in one episode."""

    task: Task  # at whose start the scene is put
    seed: int
    instruction: str
    max_steps: int  # control steps that an instruction may take
    switch_instruction: str = ""  # in force from `switch_step` on; empty: none
    switch_step: int = 0
    perturbation: str = "none"  # a name of :mod:`flashvla_ros.sim.perturbation`

    @classmethod
    def from_settings(cls, settings: RobotSettings, episode: int) -> EpisodePlan:
        """Return the plan of an episode, counted from 0."""
        task = find_task(settings.task)
        return cls(
            task=task,
            seed=settings.seed + episode,
            instruction=settings.instruction or task.instruction,
            max_steps=settings.max_steps or task.max_steps,
            switch_instruction=settings.switch_instruction,
            switch_step=settings.switch_step if settings.switch_instruction else 0,
        )


class Episode:
    """One episode in a world.

    Attributes:
        instruction: In force now.
        steps: Control steps so far.
        success: The instruction in force has been accomplished for as many steps as its task says.
    """

    def __init__(self, world: AnyWorld, plan: EpisodePlan) -> None:
        if plan.max_steps < 1:
            raise SimulationError(f"an episode needs at least one step, got max_steps={plan.max_steps}")
        self.plan = plan
        self.instruction = plan.instruction
        self.steps = 0
        self._world = world
        self._held = 0
        self._deadline = plan.switch_step + plan.max_steps
        world.reset(plan.task.name, plan.seed)

    @property
    def judge(self) -> Task:
        """The task that judges success of the instruction in force."""
        return task_for_instruction(self.plan.task, self.instruction)

    @property
    def success(self) -> bool:
        """See the attributes of the class."""
        return self._held >= self.judge.hold_steps

    @property
    def ended(self) -> bool:
        """Success, or no steps left; never before a new instruction that is still to come."""
        return self.steps >= self._deadline or (self.success and self.steps >= self.plan.switch_step)

    def tell(self, instruction: str) -> None:
        """Put another instruction in force, whose task judges success from now on."""
        self.instruction = instruction
        self._held = 0

    def step(self, action: FloatArray) -> bool:
        """Apply an action [D] of the world and return whether the instruction has changed with it."""
        self._world.step(action)
        self.steps += 1
        changed = self.steps == self.plan.switch_step
        if changed:
            self.tell(self.plan.switch_instruction)
        self._held = self._held + 1 if self._world.success(self.judge.name) else 0
        return changed


def action_from_command(
    velocity: ArrayLike, gripper: float, tick_s: float, unit: float = METRES_PER_UNIT
) -> FloatArray:
    """Return the action that moves the set point of the hand at `velocity` for one tick: [4], or [7] with rotation.

    As a robot's driver should, it treats a value that is not finite as no motion.

    Args:
        velocity: [3] in m/s, or [6] with a rotation.
        gripper: -1 is open, 1 is closed.
        tick_s: Length of a control step in seconds.
        unit: Of the world: what an action of 1 moves in one tick.
    """
    with np.errstate(over="ignore"):  # infinite is what it should be
        motion = np.asarray(velocity, dtype=np.float64) * tick_s / unit
    if not np.isfinite(motion).all():
        motion = np.zeros_like(motion)
    return np.clip(np.nan_to_num([*motion, gripper]), -1.0, 1.0)
