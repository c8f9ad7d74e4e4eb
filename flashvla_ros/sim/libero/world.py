"""LIBERO behind the methods that every simulated world has: reset, step, render, success, close."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from flashvla_ros.core.errors import SimulationError
from flashvla_ros.core.types import ImageArray
from flashvla_ros.sim.libero.cameras import OFFICIAL, LiberoCameras
from flashvla_ros.sim.libero.protocol import CONTROLS
from flashvla_ros.sim.libero.scene import LiberoScene


class LiberoWorld:
    """A robot in one of LIBERO's tasks. Not thread-safe; one environment, of the last task, for it needs 2 GB.

    Args:
        image_size: Side of fast pictures in pixels; official ones have 224.
        render: See :class:`flashvla_ros.sim.libero.cameras.LiberoCameras`.
        count: Cameras, 1 or 2.

    Attributes:
        axes: Numbers of a command beside the gripper: x, y, z, rx, ry, rz.
        unit: A command over a tick is an action of this many units: robosuite's own units, not metres.
    """

    axes = CONTROLS - 1
    unit = 1.0

    def __init__(self, image_size: int = 224, render: str = OFFICIAL, count: int = 1) -> None:
        self._size, self._render, self._count = image_size, render, count
        self._scene: LiberoScene | None = None
        self._cameras: LiberoCameras | None = None

    def reset(self, task: str, seed: int, progress: float = 0.0) -> None:
        """Put the robot at the start of a task, see :meth:`flashvla_ros.sim.libero.scene.LiberoScene.reset`."""
        if progress:
            raise SimulationError("LIBERO's tasks have one start each: progress must be 0")
        if self._scene is None or self._scene.task != task:
            self.close()
            self._scene = LiberoScene(task)
        self._scene.reset(seed)

    def step(self, action: ArrayLike) -> None:
        """Apply one action [7] of x, y, z, rx, ry, rz, gripper for one control step."""
        values = np.asarray(action, dtype=np.float64)
        if values.shape != (CONTROLS,) or not np.isfinite(values).all():
            raise SimulationError(f"an action must be {CONTROLS} finite numbers, got {action!r}")
        self.scene.step(values)

    def render(self) -> ImageArray:
        """Return the first camera's picture."""
        return next(iter(self.images().values()))

    def images(self) -> dict[str, ImageArray]:
        """Return each camera's picture by its name, RGB uint8 [side, side, 3]."""
        scene = self.scene
        if self._cameras is None:  # a world that shows nothing, such as a replay's, needs no OpenGL
            height = scene.table_height
            self._cameras = LiberoCameras(scene.model, scene.data, self._render, self._size, self._count, height)
        return {name: self._cameras.picture(name) for name in self._cameras.names}

    def success(self, task: str) -> bool:
        """Say whether the last step accomplished the task, as LIBERO judges it."""
        if task != self.scene.task:
            raise SimulationError(f"task {task} does not belong to the scene {self.scene.task}")
        return bool(self.scene.done)

    @property
    def scene(self) -> LiberoScene:
        """The present scene; :class:`SimulationError` before the first reset."""
        if self._scene is None:
            raise SimulationError("the world has no scene yet: call reset first")
        return self._scene

    def close(self) -> None:
        """Free the OpenGL context and the environment."""
        if self._cameras is not None:
            self._cameras.close()
        if self._scene is not None:
            self._scene.close()
        self._cameras = self._scene = None
