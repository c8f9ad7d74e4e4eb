"""One of Meta-World's scenes in MuJoCo, headless, stepped and rendered without gymnasium's slow paths.

The environments of the tasks that share a scene are put on top of one MuJoCo model and one state. Each still judges
success and feeds its scripted expert by Meta-World's own code, so an instruction can change within an episode.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashvla_ros.core.errors import SimulationError
from flashvla_ros.core.types import FloatArray, ImageArray
from flashvla_ros.sim import description
from flashvla_ros.sim.settings import ACTION_SIZE
from flashvla_ros.sim.simulator import ALL_V3_ENVIRONMENTS, closed_with, metaworld, mujoco, plain_renderer
from flashvla_ros.sim.tasks import Task, scene_tasks

LEASH_M = 0.06  # farthest the set point may run ahead of the hand, see docs/evaluation.md
ROBOT_JOINTS = 9  # seven of the arm and two fingers come first in every scene


@dataclasses.dataclass(frozen=True)
class Camera:
    """A free camera: where it looks [m], from which side and height [deg], how far away [m]."""

    lookat: tuple[float, float, float] = (0.0, 0.7, 0.12)
    azimuth: float = 200.0
    elevation: float = -35.0
    distance: float = 1.0


@dataclasses.dataclass(frozen=True)
class WorldState:
    """What only a simulator knows: hand [3] and object [3] in m, opening of the gripper in [0, 1]."""

    hand: FloatArray
    gripper: float
    object: FloatArray

    def vector(self) -> NDArray[np.float32]:
        """[7] hand, gripper, object."""
        return np.concatenate([self.hand, [self.gripper], self.object]).astype(np.float32)


class Scene:
    """The environments of the tasks that share one MuJoCo model, and its renderer.

    Args:
        task: Any task of the scene.
        render_size: Side of the square images, in pixels.

    Attributes:
        placement: [3] where the object was put, in m.
        placement_range: Least and greatest placement [3], which a reset draws from evenly.
    """

    def __init__(self, task: Task, render_size: int) -> None:
        self._tasks = scene_tasks(task.scene)
        self._environments = {row.name: _environment(row) for row in self._tasks}
        experts: Any = metaworld.policies.ENV_POLICY_MAP  # typed as the abstract base
        self._experts = {row.name: experts[row.environment]() for row in self._tasks}
        first = self._environments[self._tasks[0].name]
        self._model, self._data = first.model, first.data
        for environment in self._environments.values():
            environment.model, environment.data = self._model, self._data
        spaces = [environment._random_reset_space for environment in self._environments.values()]
        self.placement_range = (
            np.min([space.low for space in spaces], axis=0).astype(np.float64),
            np.max([space.high for space in spaces], axis=0).astype(np.float64),
        )
        self.placement = self.placement_range[0]
        self._lights = [light.copy() for light in self._light_arrays()]
        self._body_positions = self._model.body_pos.copy()
        self._action: FloatArray = np.zeros(ACTION_SIZE)
        self._active = first
        self._renderer = plain_renderer(self._model, render_size)
        self.close = closed_with(self, self._renderer)
        self._options = mujoco.MjvOption()
        self._options.sitegroup[:] = 0  # the goal marker would give the instruction away

    def reset(self, task: Task, seed: int, progress: float) -> None:
        """Put everything at the start of a task of this scene, see :meth:`flashvla_ros.sim.world.World.reset`."""
        self._model.body_pos[:] = self._body_positions
        self.set_light(1.0)
        others = [row for row in self._tasks if row is not task]
        order = (*others, task)  # the task itself last: its start is the one that remains
        starts = self._place(np.random.default_rng(seed).uniform(*self.placement_range), order)
        self._active = self._environments[task.name]
        self._action = np.zeros(ACTION_SIZE)
        if progress and others:
            start, other = starts[task.name][ROBOT_JOINTS:], starts[others[0].name][ROBOT_JOINTS:]
            self._data.qpos[ROBOT_JOINTS:] = start + progress * (other - start)
        mujoco.mj_forward(self._model, self._data)  # some environments leave positions of before the reset

    def step(self, action: FloatArray) -> None:
        """Apply one action [4] in [-1, 1] for one control step."""
        self._action = action
        hand = self._active.get_endeff_pos()
        self._active.set_xyz_action(action[:3])
        self._data.mocap_pos[0] = np.clip(self._data.mocap_pos[0], hand - LEASH_M, hand + LEASH_M)
        self._active.do_simulation([action[3], -action[3]], self._active.frame_skip)
        mujoco.mj_forward(self._model, self._data)

    def move_object(self, offset_m: FloatArray) -> None:
        """Shove the object aside by [3] metres, at once; tasks are judged as before, and a reset undoes it."""
        bodies_of_the_world = np.flatnonzero(self._model.body_parentid == 0)
        self._model.body_pos[bodies_of_the_world[-1]] += offset_m  # the robot comes first in every scene
        mujoco.mj_forward(self._model, self._data)

    def place_object(self, placement: FloatArray) -> None:
        """Put the object to another placement [3] in m, in mid-episode and at once.

        The scene is then as if it had been reset with it: goals and experts follow the object, while every joint, of
        the robot and of the object, stays where it is.
        """
        state = self._save()
        self._place(placement, self._tasks)
        self._restore(state)

    def _save(self) -> FloatArray:
        state = np.empty(mujoco.mj_stateSize(self._model, mujoco.mjtState.mjSTATE_INTEGRATION))
        mujoco.mj_getState(self._model, self._data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
        return state

    def _restore(self, state: FloatArray) -> None:
        mujoco.mj_setState(self._model, self._data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
        mujoco.mj_forward(self._model, self._data)

    def _place(self, placement: FloatArray, order: tuple[Task, ...]) -> dict[str, FloatArray]:
        """Reset each task's environment with the object at `placement`; return their joint positions by task."""
        self.placement = placement
        starts = {}
        for row in order:
            environment = self._environments[row.name]
            environment._last_rand_vec = placement
            environment.reset()
            starts[row.name] = self._data.qpos.copy()
        return starts

    def set_light(self, factor: float) -> None:
        """Make every light this many times its own brightness, until the next reset."""
        for array, own in zip(self._light_arrays(), self._lights, strict=True):
            array[:] = own * factor

    def _light_arrays(self) -> list[Any]:
        model, headlight = self._model, self._model.vis.headlight
        return [model.light_ambient, model.light_diffuse, headlight.ambient, headlight.diffuse]

    def render(self, camera: Camera) -> ImageArray:
        """Return the camera's image, RGB uint8 [size, size, 3], at the size rendered."""
        view = mujoco.MjvCamera()
        view.type = mujoco.mjtCamera.mjCAMERA_FREE
        view.lookat[:] = camera.lookat
        view.azimuth, view.elevation, view.distance = camera.azimuth, camera.elevation, camera.distance
        self._renderer.update_scene(self._data, view, scene_option=self._options)
        return self._renderer.render()

    def success(self, task: Task) -> bool:
        """Say whether Meta-World takes a task for accomplished at this instant."""
        environment = self._of(task)
        _, info = environment.evaluate_state(environment._get_obs(), self._action)
        return bool(info["success"])

    def expert(self, task: Task) -> FloatArray:
        """Return the scripted action [4] for a task."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the experts ask for more than 1 by design and are clipped
            action = self._experts[task.name].get_action(self._of(task)._get_obs().copy())
        return np.clip(np.asarray(action, dtype=np.float64), -1.0, 1.0)

    def foresee(self, task: Task, steps: int) -> FloatArray:
        """Return what the expert would do in the next steps, [steps, 4]; the scene stays as it is."""
        state, action, actions = self._save(), self._action, []
        for _ in range(steps):
            actions.append(self.expert(task))
            self.step(actions[-1])
        self._restore(state)
        self._action = action
        return np.stack(actions)

    @property
    def state(self) -> WorldState:
        """The true positions."""
        observation = self._environments[self._tasks[0].name]._get_curr_obs_combined_no_goal()
        return WorldState(observation[:3].copy(), float(observation[3]), observation[4:7].copy())

    @property
    def joint_positions(self) -> dict[str, float]:
        """Joint name to position (rad, and m for the fingers) of the robot itself."""
        return {self._model.joint(i).name: float(self._data.qpos[i]) for i in range(ROBOT_JOINTS)}

    def urdf(self) -> str:
        """Return the arm as a URDF."""
        return description.urdf(self._model, "sawyer")

    @property
    def hand_pose(self) -> description.LinkPose:
        """Where the hand is."""
        return description.link_pose(self._data, description.HAND)

    def link_poses(self) -> list[description.LinkPose]:
        """Return where the arm's links are."""
        return description.link_poses(self._model, self._data)

    def _of(self, task: Task) -> Any:
        if task.name not in self._environments:
            raise SimulationError(f"task {task.name} does not belong to the scene {self._tasks[0].scene}")
        return self._environments[task.name]


def _environment(task: Task) -> Any:
    """Build Meta-World's environment with a placement that is given, not drawn, and its goal in the observation."""
    environment = ALL_V3_ENVIRONMENTS[task.environment]()
    environment._set_task_called = True
    environment._freeze_rand_vec = True
    environment._partially_observable = False
    return environment
