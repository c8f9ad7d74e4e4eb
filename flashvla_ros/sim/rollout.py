"""Closed-loop episodes in one process: the simulated robot, the control step, no ROS.

The control step is the node's own (:class:`flashvla_ros.control.stepper.Stepper`), and time is the simulation's. In
lock-step the robot waits for each command, so the same plan, policy and settings give the same episode again, step for
step. Free-running, it does not: see :func:`roll_out`.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from flashvla_ros.control.assembler import Assembler
from flashvla_ros.control.command_rules import gripper_scale
from flashvla_ros.control.step_result import StepResult
from flashvla_ros.control.stepper import Stepper
from flashvla_ros.core.rotations import named_pose
from flashvla_ros.core.settings import Settings
from flashvla_ros.core.types import FloatArray, Observation
from flashvla_ros.sim.episode import Episode, EpisodePlan, action_from_command
from flashvla_ros.sim.perturbation import PERTURBATIONS, Perturbation
from flashvla_ros.sim.settings import RobotSettings

if TYPE_CHECKING:
    from flashvla_ros.sim.world import AnyWorld


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How an episode went.

    Attributes:
        plan: What was asked.
        success: The last instruction was accomplished.
        steps: Steps of the robot in all.
        reused: Control steps that used the last action again where the model was due.
        clamped: Control steps in which safety changed the action.
        kept_ratio: Visual tokens that the layers behind the pruned one saw, as a share, over fresh steps; 1 where
            nothing was dropped.
        reasons: How often the gate gave each of its reasons.
        latencies_s: [control steps] from the observation to its command. There are as many control steps as steps of
            the robot, but for images that were lost, or replaced by a newer one while the model was busy.
        change_step: Step whose image was the first to show the change; None where none came.
        reaction_steps: Steps from the change to the first image that the model was run on; where it was not run
            before the end, the steps up to there. None where no change came.
    """

    plan: EpisodePlan
    success: bool
    steps: int
    reused: int
    clamped: int
    kept_ratio: float
    reasons: Mapping[str, int]
    latencies_s: tuple[float, ...]
    change_step: int | None = None
    reaction_steps: int | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class _Answer:
    """A control step, the step of the robot whose image it answers, and when its command arrives, in steps."""

    result: StepResult
    step: int
    due: float


def roll_out(
    world: AnyWorld,
    stepper: Stepper,
    plan: EpisodePlan,
    settings: Settings,
    on_step: Callable[[StepResult], None] | None = None,
    *,
    free_running: bool = False,
) -> Outcome:
    """Run one episode to its end.

    Free-running, the simulation goes on while the model thinks, by the time that the control step really took: the
    robot steps every ``action.dt_s`` with the last command that has arrived, and stands still where that is older than
    the robot node allows. The model takes the newest image as soon as it is free. Rendering is the camera's work and
    costs no time.

    World and stepper are reset first, and the settings hold throughout. `on_step` sees every control step.
    """
    tick_s = settings.action.dt_s
    episode, perturbation = Episode(world, plan), PERTURBATIONS[plan.perturbation](plan)
    stepper.reset()
    robot = _Robot(world, settings)
    assembler: Assembler | None = None
    answers: list[_Answer] = []
    free_at = 0.0  # when the model can take the next image, in steps

    def look(step: int) -> Observation | None:
        nonlocal assembler
        if perturbation.drops(step):
            return None
        images, now_s, scene = world.images(), step * tick_s, world.scene
        if assembler is None:
            assembler = Assembler(images, lambda: settings)
        assembler.take_instruction(episode.instruction)
        joints, hand = scene.joint_positions, scene.hand_pose
        assembler.take_joints(list(joints), list(joints.values()), now_s)
        assembler.take_pose(named_pose(hand.position, hand.orientation), now_s)
        for number, camera in reversed([*enumerate(assembler.cameras)]):  # the first one's image completes it
            image = perturbation.image(images[camera], step, number)
            observation = assembler.take_image(camera, image, now_s, now_s)
        return observation

    try:
        while not episode.ended:
            step = episode.steps
            perturbation.disturb(world, step)
            observation = look(step) if free_at < step + 1 else None
            if observation is not None:
                result = stepper.step(observation, settings)
                ready = max(free_at, step) + result.step_s / tick_s if free_running else float(step)
                free_at = ready if free_running else 0.0
                robot.receive(result.command[0], ready + perturbation.delay_steps)
                seen = dataclasses.replace(result.observation, images={})
                answers.append(_Answer(dataclasses.replace(result, observation=seen), step, ready))
                if on_step is not None:
                    on_step(result)
            episode.step(robot.action(step + 1))
    finally:
        perturbation.end(world)
    return _outcome(episode, answers, settings, perturbation, free_running=free_running)


class _Robot:
    """Follows the last command that has arrived, and stands still where that is too old, as the robot node does."""

    def __init__(self, world: AnyWorld, settings: Settings) -> None:
        self._tick_s = tick_s = settings.action.dt_s
        self._axes, self._unit = world.axes, world.unit
        self._gripper = gripper_scale(settings.action.gripper, settings.command.gripper)
        self._patience = RobotSettings().command_timeout_s / tick_s
        self._coming: collections.deque[tuple[float, FloatArray]] = collections.deque()
        self._arrived, self._gripped = 0.0, -1.0
        self._motion: FloatArray = np.zeros(self._axes)

    def receive(self, command: FloatArray, due: float) -> None:
        """Take a command [D] that arrives at `due`, in steps."""
        self._coming.append((due, command))

    def action(self, now: float) -> FloatArray:
        """Return the action of the world up to `now`, the end of this step."""
        while self._coming and self._coming[0][0] < now:
            self._arrived, command = self._coming.popleft()
            self._motion, self._gripped = command[: self._axes], self._gripper(float(command[-1]))
        still = now - 1 - self._arrived > self._patience
        velocity = np.zeros(self._axes) if still else self._motion / self._tick_s
        return action_from_command(velocity, self._gripped, self._tick_s, self._unit)


def _outcome(
    episode: Episode, answers: list[_Answer], settings: Settings, perturbation: Perturbation, *, free_running: bool
) -> Outcome:
    results = [answer.result for answer in answers]
    fresh = [result.inference for result in results if result.fresh]
    drop, tick_s = settings.pruning.drop, settings.action.dt_s
    kept = [len(run.kept) / run.visual_tokens if drop and run.kept is not None else 1.0 for run in fresh]
    changed = perturbation.change_step
    if changed is not None and changed >= episode.steps:
        changed = None
    looked = [answer.step for answer in answers if changed is not None and answer.result.fresh]
    return Outcome(
        plan=episode.plan,
        success=episode.success,
        steps=episode.steps,
        reused=sum(result.reused for result in results),
        clamped=sum(bool(result.clamped.any()) for result in results),
        kept_ratio=float(np.mean(kept)),
        reasons=dict(collections.Counter(str(result.decision.reason) for result in results)),
        latencies_s=tuple(
            (answer.due - answer.step) * tick_s if free_running else answer.result.step_s for answer in answers
        ),
        change_step=changed,
        reaction_steps=None
        if changed is None
        else next((step for step in looked if step >= changed), episode.steps) - changed,
    )
