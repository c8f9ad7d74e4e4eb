"""What can go wrong in an episode: one class per perturbation, everything of it drawn from the episode's seed.

The same seed gives the same disturbance whatever policy and settings are evaluated, so that outcomes stay paired. Where
there is one instant of change, its step is known, and with it how long a policy takes to look at the world again.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from flashvla_ros.core.errors import SimulationError, unknown_name
from flashvla_ros.core.types import ImageArray
from flashvla_ros.sim.episode import EpisodePlan
from flashvla_ros.sim.libero.protocol import is_libero
from flashvla_ros.sim.tasks import Task, find_task, scene_tasks

if TYPE_CHECKING:
    from flashvla_ros.sim.scene import Camera

NONE = "none"
INSTRUCTION_SWITCH = "instruction_switch"
SWITCH_STEPS = (20, 100)  # a new instruction comes between these steps
# The object jumps between these steps: scripted experts touch it after step 68, 57, 47 and 17 at the earliest.
JUMP_STEPS: Mapping[str, tuple[int, int]] = {"drawer": (5, 50), "window": (5, 45), "button": (5, 40), "door": (5, 15)}
ANYWHERE = (NONE, "camera_noise", "frame_drops", "latency")  # of the camera and the command, whatever the scene
JUMP_M = 0.05  # shortest jump
LIGHT_STEPS = (10, 60)


class Perturbation:
    """No disturbance at all, and the hooks of those that are one.

    Attributes:
        change_step: Step whose image is the first to show the change; None where there is no such instant.
        delay_steps: Steps by which each command reaches the robot late.
    """

    change_step: int | None = None
    delay_steps: int = 0

    def __init__(self, plan: EpisodePlan) -> None:
        self.plan = plan

    def disturb(self, world: Any, step: int) -> None:
        """Change the world before the image of a step is rendered."""

    def image(self, image: ImageArray, step: int, camera: int = 0) -> ImageArray:
        """Return what the camera of a number makes of an image; `step` tells its images apart."""
        del step, camera
        return image

    def drops(self, step: int) -> bool:
        """Say whether the image of a step is lost: no control step answers it."""
        del step
        return False

    def end(self, world: Any) -> None:
        """Undo what a reset of the world does not undo."""

    def _rng(self, step: int = 0, camera: int = 0) -> np.random.Generator:
        """Return the perturbation's own stream of numbers for this episode, or for one step of it and one camera."""
        # The first camera's is that of no camera: NumPy fills entropy of less than 128 bits with zeros.
        return np.random.default_rng([self.plan.seed, zlib.crc32(self.plan.perturbation.encode()), step, camera])


class InstructionSwitch(Perturbation):
    """Another task of the scene is asked for first, and the episode's own task comes on the way; the plan has both."""

    def __init__(self, plan: EpisodePlan) -> None:
        super().__init__(plan)
        self.change_step = plan.switch_step


class ObjectJump(Perturbation):
    """The object jumps to another placement in one step while the robot approaches; the goal goes with it."""

    def __init__(self, plan: EpisodePlan) -> None:
        super().__init__(plan)
        self.change_step = int(self._rng().integers(*JUMP_STEPS[plan.task.scene]))

    def disturb(self, world: Any, step: int) -> None:
        """Draw placements as a reset does until one is far enough away."""
        if step != self.change_step:
            return
        rng, (low, high) = self._rng(step), world.scene.placement_range
        placement = world.scene.placement
        while np.linalg.norm(placement - world.scene.placement) < JUMP_M:
            placement = rng.uniform(low, high)
        world.scene.place_object(placement)


class Lighting(Perturbation):
    """Every light of the scene becomes darker or brighter in one step, and stays so."""

    def __init__(self, plan: EpisodePlan) -> None:
        super().__init__(plan)
        rng = self._rng()
        self.change_step = int(rng.integers(*LIGHT_STEPS))
        self.factor = float(rng.uniform(0.6, 0.8) if rng.random() < 0.5 else rng.uniform(1.3, 1.8))

    def disturb(self, world: Any, step: int) -> None:
        """Set the lights once."""
        if step == self.change_step:
            world.scene.set_light(self.factor)


class CameraNoise(Perturbation):
    """Gaussian noise of 4 to 12 grey levels on every pixel of every image."""

    def __init__(self, plan: EpisodePlan) -> None:
        super().__init__(plan)
        self.sigma = float(self._rng().uniform(4.0, 12.0))

    def image(self, image: ImageArray, step: int, camera: int = 0) -> ImageArray:
        """Add noise that is this camera's and this step's own."""
        noise = self._rng(step, camera).normal(0.0, self.sigma, image.shape)
        return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)


class CameraShake(Perturbation):
    """The camera's mount vibrates: at each step it is off by a few millimetres and tenths of a degree."""

    def __init__(self, plan: EpisodePlan) -> None:
        super().__init__(plan)
        self._steady: Camera | None = None

    def disturb(self, world: Any, step: int) -> None:
        """Move the camera from where it belongs."""
        camera = self._steady = self._steady or world.camera
        x, y, z, azimuth, elevation, distance = self._rng(step).normal(0.0, [3e-3, 3e-3, 3e-3, 0.4, 0.4, 3e-3])
        lookat = (camera.lookat[0] + x, camera.lookat[1] + y, camera.lookat[2] + z)
        world.camera = dataclasses.replace(
            camera,
            lookat=lookat,
            azimuth=camera.azimuth + azimuth,
            elevation=camera.elevation + elevation,
            distance=camera.distance + distance,
        )

    def end(self, world: Any) -> None:
        """Put the camera back."""
        world.camera = self._steady or world.camera


class FrameDrops(Perturbation):
    """About a fifth of the images is lost, one to four in a row; the last command stays in force."""

    def __init__(self, plan: EpisodePlan) -> None:
        super().__init__(plan)
        rng, length = self._rng(), plan.switch_step + plan.max_steps
        self._lost = np.zeros(length + 4, dtype=bool)
        for step in range(1, length):
            if rng.random() < 0.1:
                self._lost[step : step + int(rng.integers(1, 5))] = True

    def drops(self, step: int) -> bool:
        """Look the step up."""
        return bool(self._lost[step])


class Latency(Perturbation):
    """Every command of the episode reaches the robot one or two steps late; until the first one it stands still."""

    def __init__(self, plan: EpisodePlan) -> None:
        super().__init__(plan)
        self.delay_steps = int(self._rng().integers(1, 3))


PERTURBATIONS: Mapping[str, type[Perturbation]] = {
    NONE: Perturbation,
    "object_jump": ObjectJump,
    INSTRUCTION_SWITCH: InstructionSwitch,
    "camera_noise": CameraNoise,
    "lighting": Lighting,
    "camera_shake": CameraShake,
    "frame_drops": FrameDrops,
    "latency": Latency,
}


def can_perturb(task: Task, perturbation: str) -> bool:
    """Say whether a perturbation makes sense for a task: an instruction can only change where the scene has others.

    LIBERO's scenes are disturbed by suites of their own, such as ``libero_object_swap``; here only what is not in them.
    An unknown name raises :class:`SimulationError` with those that are close to it.
    """
    if perturbation not in PERTURBATIONS:
        raise SimulationError(unknown_name("perturbation", perturbation, PERTURBATIONS))
    if is_libero(task.name):
        return perturbation in ANYWHERE
    return perturbation != INSTRUCTION_SWITCH or len(scene_tasks(task.scene)) > 1


def plan_episode(task_name: str, seed: int, perturbation: str = NONE) -> EpisodePlan:
    """Return the plan of an episode that ends with a task.

    Raises:
        SimulationError: A name is unknown, or the perturbation makes no sense for the task.
    """
    task = find_task(task_name)
    if not can_perturb(task, perturbation):
        if perturbation == INSTRUCTION_SWITCH:
            raise SimulationError(f"{task_name} is alone in its scene, so its instruction cannot change: leave it out")
        raise SimulationError(f"{perturbation} makes no sense for {task_name}: it can have {', '.join(ANYWHERE)}")
    if perturbation != INSTRUCTION_SWITCH:
        return EpisodePlan(task, seed, task.instruction, task.max_steps, perturbation=perturbation)
    first = next(row for row in scene_tasks(task.scene) if row is not task)
    step = int(np.random.default_rng(seed).integers(*SWITCH_STEPS))
    return EpisodePlan(first, seed, first.instruction, task.max_steps, task.instruction, step, perturbation)
