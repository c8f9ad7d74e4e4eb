"""The simulated world: Meta-World's arm in the scene of a task, with its cameras; and which world a task is of."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import ArrayLike

from flashvla_ros.core.errors import SimulationError
from flashvla_ros.core.types import FloatArray, ImageArray
from flashvla_ros.sim.libero.protocol import CAMERAS, is_libero
from flashvla_ros.sim.libero.world import LiberoWorld
from flashvla_ros.sim.scene import Camera, Scene
from flashvla_ros.sim.settings import ACTION_SIZE, CAMERA, METRES_PER_UNIT, SIZE_LIMITS
from flashvla_ros.sim.tasks import find_task


def _at_the_hand(hand: FloatArray) -> Camera:
    """Looks past the fingers at what is below them, from 0.3 m."""
    x, y, z = map(float, hand)
    return Camera((x, y, z), azimuth=90.0, elevation=-60.0, distance=0.3)


class World:
    """A robot in one of Meta-World's scenes. Not thread-safe; one OpenGL context per scene used.

    Attributes:
        axes: Numbers of a command beside the gripper: x, y, z.
        unit: Metres of a command over a tick that are an action of 1.

    Args:
        image_size: Side of the square images, in pixels.
        supersample: Images are rendered this many times larger and averaged down, which keeps positions below a pixel
            visible to a policy and costs less than multisampling without a GPU.
        camera: The first one.
        cameras: 2: the hand has one too, and both are named as LIBERO's are.
    """

    axes = ACTION_SIZE - 1
    unit = METRES_PER_UNIT

    def __init__(
        self, image_size: int = 108, supersample: int = 2, camera: Camera | None = None, cameras: int = 1
    ) -> None:
        if not SIZE_LIMITS[0] <= image_size <= SIZE_LIMITS[1]:
            raise SimulationError(f"image size must be from {SIZE_LIMITS[0]} to {SIZE_LIMITS[1]}, got {image_size}")
        self._image_size = image_size
        self._render_size = image_size * supersample
        self.camera = camera or Camera()
        self._cameras = cameras
        self._scenes: dict[str, Scene] = {}
        self._scene: Scene | None = None

    def reset(self, task: str, seed: int, progress: float = 0.0) -> None:
        """Put the robot at the start of a task.

        Args:
            task: Name of the task.
            seed: The same seed gives the same start, whatever was simulated before.
            progress: How far the object already is on the way from this task's start to the start of the other
                task of its scene; 0 is Meta-World's start, 1 the other task's.
        """
        row = find_task(task)
        if row.scene not in self._scenes:
            self._scenes[row.scene] = Scene(row, self._render_size)
        self._scene = self._scenes[row.scene]
        self._scene.reset(row, seed, progress)

    def step(self, action: ArrayLike) -> None:
        """Apply one action [4] of dx, dy, dz, gripper in [-1, 1] for one control step."""
        values = np.asarray(action, dtype=np.float64)
        if values.shape != (ACTION_SIZE,) or not np.isfinite(values).all():
            raise SimulationError(f"an action must be {ACTION_SIZE} finite numbers, got {action!r}")
        self.scene.step(np.clip(values, -1.0, 1.0))

    def render(self) -> ImageArray:
        """Return the first camera's image, RGB uint8 [size, size, 3]."""
        return self._render(self.camera)

    def _render(self, camera: Camera) -> ImageArray:
        size = (self._image_size, self._image_size)
        image = cv2.resize(self.scene.render(camera), size, interpolation=cv2.INTER_AREA)
        return image.astype(np.uint8, copy=False)

    def images(self) -> dict[str, ImageArray]:
        """Return each camera's image by its name."""
        if self._cameras == 1:
            return {CAMERA: self.render()}
        hand = self._render(_at_the_hand(self.scene.state.hand))
        return dict(zip(CAMERAS, (self.render(), hand), strict=True))

    def success(self, task: str) -> bool:
        """Say whether a task of the present scene is accomplished at this instant, as Meta-World judges it."""
        return self.scene.success(find_task(task))

    def expert(self, task: str) -> FloatArray:
        """Return Meta-World's scripted action [4] in [-1, 1] for a task of the present scene."""
        return self.scene.expert(find_task(task))

    def foresee(self, task: str, steps: int) -> FloatArray:
        """Return the expert's next actions [steps, 4], as they would be if nothing disturbed them; nothing moves."""
        return self.scene.foresee(find_task(task), steps)

    @property
    def scene(self) -> Scene:
        """The present scene; :class:`SimulationError` before the first reset."""
        if self._scene is None:
            raise SimulationError("the world has no scene yet: call reset first")
        return self._scene

    def close(self) -> None:
        """Free the OpenGL contexts."""
        for scene in self._scenes.values():
            scene.close()
        self._scenes.clear()
        self._scene = None


AnyWorld = World | LiberoWorld


def make_world(task: str, image_size: int, render: str, cameras: int) -> AnyWorld:
    """Return the world of a task; `render` is how LIBERO's images are made, whose official ones have their own size."""
    return LiberoWorld(image_size, render, cameras) if is_libero(task) else World(image_size, cameras=cameras)
