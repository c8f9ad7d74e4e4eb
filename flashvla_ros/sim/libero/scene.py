"""The environment of one LIBERO task: resets that repeat bit for bit, steps, and what only a simulator knows.

A hard reset compiles the scene again and takes 6 to 20 seconds, a soft one 0.2; they are equal once the gripper's last
command is forgotten and the solver starts from the scene as compiled. Fixtures (a cabinet, a stove) are in no initial
state: every reset draws their places from NumPy's global generator, which the official evaluation seeds with 0 once for
each task and never again. Episode j is therefore the (j + 1)-th reset after that, and any other order of episodes has
to wind forward to it.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from flashvla_ros.core.errors import SimulationError
from flashvla_ros.core.types import FloatArray
from flashvla_ros.sim import description
from flashvla_ros.sim.libero.library import initial_states, library, quiet, task_files
from flashvla_ros.sim.libero.protocol import CONTROLS, FIRST_DRAWN, PERMUTED, WAITING_STEPS, arm_action

_FOR_EVER = 10**9  # robosuite ends what it takes for an episode after so many steps, counted over resets of the state
_MOST_SEEDS = 2**32  # of NumPy's generator
_JITTER_M = 0.02  # of a place that is taken by another object
_CONTAINER = "basket_1"
_ROBOT = ("robot0_", "gripper0_")  # what names of its joints begin with


class LiberoScene:
    """One task's environment, without its renderer.

    Attributes:
        task: Name of the task.
        model, data: MuJoCo's own.
        objects: Names of what can be moved.
        geoms: Numbers of the geoms of each that collide.
    """

    def __init__(self, task: str) -> None:
        self.task = task
        files = task_files(task)
        self._states = initial_states(files)
        first = np.random.RandomState(0).get_state()
        with quiet(), _numpy_draws(first):
            try:
                self._environment = library().environment(
                    bddl_file_name=str(files.scene),
                    has_renderer=False,
                    has_offscreen_renderer=False,
                    use_camera_obs=False,
                    horizon=_FOR_EVER,
                )
            except FileNotFoundError as error:  # LIBERO-PRO ships scenes whose objects it does not ship
                raise SimulationError(f"the installed LIBERO lacks {error.filename}, which {task} needs") from error
        self._inner: Any = self._environment.env
        self._inner.hard_reset = False
        self._samplers = list(self._inner.object_property_initializers)  # of doors and knobs
        self._start = self._inner.sim.reset
        self._inner.sim.reset = self._start_as_compiled
        self.model, self.data = self._inner.sim.model._model, self._inner.sim.data._data
        self._places = self.model.body_pos.copy(), self.model.body_quat.copy()
        self.objects = list(self._inner.objects_dict)
        self.container = _CONTAINER if _CONTAINER in self.objects else ""
        self._draws = [first]  # before the first reset, the second, …
        self.geoms = {name: self._colliding_geoms(name) for name in self.objects}
        self._seen: Any = {}
        self.done = False

    def reset(self, seed: int) -> None:
        """Put the scene at the start of an episode and wait until everything rests.

        Args:
            seed: Number of the official initial state, which come round again after the last; from
                :data:`FIRST_DRAWN` on, and for permuted states, the seed of a start of its own.

        Raises:
            SimulationError: The seed is none of NumPy's.
        """
        if not 0 <= seed < _MOST_SEEDS:
            raise SimulationError(f"a seed is from 0 to {_MOST_SEEDS - 1}, got {seed}")
        permuted = self.task.partition("/")[0].endswith(PERMUTED)
        number = seed % len(self._states)
        if permuted or seed >= FIRST_DRAWN:
            self._inner.object_property_initializers = self._samplers
            with _numpy_draws(np.random.RandomState(seed).get_state()):
                self._environment.reset()
        else:
            self._reset_as(number)
        self._forget_gripper()
        if permuted:
            self.permute(np.random.default_rng([seed, zlib.crc32(self.task.encode())]))  # no two tasks swap alike
        elif seed < FIRST_DRAWN:
            self._environment.set_init_state(self._states[number])
        for _ in range(WAITING_STEPS):
            self._advance(np.array([0.0] * (CONTROLS - 1) + [-1.0]))
        self.done = False  # what was in its place from the start still has to be done by a step

    def step(self, action: FloatArray) -> None:
        """Apply an action [7] whose gripper is open at -1 and closed at 1."""
        self._advance(arm_action(action))

    def permute(self, rng: np.random.Generator, held: str = "") -> None:
        """Let the objects but one that is `held` swap their places: nothing but the instruction says where to go."""
        names = [name for name in self.objects if name not in (self.container, held)]
        at = [self._joint(name) for name in names]
        places = np.array([self.data.qpos[start : start + 2] for start in at])[rng.permutation(len(names))]
        for start, place in zip(at, places + rng.uniform(-_JITTER_M, _JITTER_M, places.shape), strict=True):
            self.data.qpos[start : start + 2] = place
        self._inner.sim.forward()

    def close(self) -> None:
        """Free the environment."""
        self._inner.sim.reset = self._start  # which held this scene, and so itself
        self._environment.close()

    def _advance(self, action: FloatArray) -> None:
        self._seen, _reward, self.done, _info = self._environment.step(action)

    def _reset_as(self, number: int) -> None:
        """Do the reset that comes after `number` others since the generator was seeded with 0.

        LIBERO's hard resets keep the samplers of all scenes compiled before, and each of them draws.
        """
        for before in range(min(number, len(self._draws) - 1), number + 1):
            self._inner.object_property_initializers = self._samplers * (before + 2)
            with _numpy_draws(self._draws[before]):
                self._environment.reset()
                after = np.random.get_state()
            if before == len(self._draws) - 1:
                self._draws.append(after)

    def _start_as_compiled(self) -> None:
        """Begin a reset where every one begins: LIBERO puts some objects where a fixture stands just then.

        Robosuite computes a compiled scene once before objects are placed; the solver's next start is from there.
        """
        self._start()
        self.model.body_pos[:], self.model.body_quat[:] = self._places
        self._inner.sim.forward()

    def _forget_gripper(self) -> None:
        """A soft reset leaves the gripper's last command, and the next steps would depend on it."""
        gripper = self._inner.robots[0].gripper
        gripper.current_action = np.zeros_like(gripper.current_action)

    # What only a simulator knows.

    @property
    def hand_position(self) -> FloatArray:
        """[3] in m."""
        return np.asarray(self._seen["robot0_eef_pos"], dtype=np.float64)

    @property
    def hand_rotation(self) -> FloatArray:
        """[3, 3] matrix."""
        return np.asarray(library().quaternions.quat2mat(self._seen["robot0_eef_quat"]), dtype=np.float64)

    @property
    def hand_pose(self) -> description.LinkPose:
        """As robosuite's observation has it, so checkpoints are told it: the palm's turn at the fingers' place."""
        return description.LinkPose("robot0_eef", self._seen["robot0_eef_pos"], self._seen["robot0_eef_quat"])

    @property
    def gap(self) -> float:
        """Distance between the fingers in m, 0.08 where they are open."""
        left, right = self._seen["robot0_gripper_qpos"]
        return float(left - right)

    @property
    def table_height(self) -> float:
        """How much higher objects stand than on libero_object's floor, in m."""
        return max(float(self._inner.workspace_offset[2]), 0.0)

    def extent(self, name: str, height: float | None = None) -> tuple[FloatArray, FloatArray]:
        """Return the least and greatest corner [3] of an object's colliding parts, in m; of those at a height alone."""
        geoms = self.geoms[name]
        rotations = self.data.geom_xmat[geoms].reshape(-1, 3, 3)
        centres = self.data.geom_xpos[geoms] + np.einsum("gij,gj->gi", rotations, self.model.geom_aabb[geoms][:, :3])
        halves = np.einsum("gij,gj->gi", np.abs(rotations), self.model.geom_aabb[geoms][:, 3:])
        least, greatest = centres - halves, centres + halves
        there = ... if height is None else (least[:, 2] <= height) & (height <= greatest[:, 2])
        return least[there].min(0), greatest[there].max(0)

    @property
    def joint_positions(self) -> dict[str, float]:
        """Joint name to position (rad, and m for the fingers) of the robot itself, as the observation has it."""
        names = (self.model.joint(index).name for index in range(self.model.njnt))
        measured = (*self._seen["robot0_joint_pos"], *self._seen["robot0_gripper_qpos"])
        return dict(zip((name for name in names if name.startswith(_ROBOT)), map(float, measured), strict=True))

    def urdf(self) -> str:
        """Return the arm as a URDF."""
        return description.urdf(self.model, "panda")

    def link_poses(self) -> list[description.LinkPose]:
        """Return where the arm's links are."""
        return description.link_poses(self.model, self.data)

    def state(self) -> FloatArray:
        """Everything that steps depend on: positions, velocities, and the places of fixtures."""
        return np.concatenate([self.data.qpos, self.data.qvel, self.model.body_pos.ravel()])

    def _joint(self, name: str) -> int:
        return int(self.model.jnt_qposadr[self.model.body(f"{name}_main").jntadr[0]])

    def _colliding_geoms(self, name: str) -> Any:
        root = self.model.body(f"{name}_main").id
        found = []
        for geom in range(self.model.ngeom):
            body = self.model.geom_bodyid[geom]
            while body not in (0, root):
                body = self.model.body_parentid[body]
            if body == root and (self.model.geom_contype[geom] or self.model.geom_conaffinity[geom]):
                found.append(geom)
        return np.array(found)


@contextlib.contextmanager
def _numpy_draws(state: Any) -> Iterator[None]:
    """Let NumPy's global generator draw from a state, and leave it as it was found."""
    before = np.random.get_state()
    try:
        np.random.set_state(state)
        yield
    finally:
        np.random.set_state(before)
