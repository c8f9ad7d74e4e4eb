"""Which simulated world a task belongs to."""

from __future__ import annotations

from flashvla_ros.sim.libero.protocol import is_libero
from flashvla_ros.sim.libero.world import LiberoWorld
from flashvla_ros.sim.world import World

AnyWorld = World | LiberoWorld


def make_world(task: str, image_size: int, render: str, cameras: int) -> AnyWorld:
    """Return the world of a task.

    Args:
        task: Name of the task.
        image_size: Side of the images in pixels; LIBERO's official ones have their own.
        render: How LIBERO's are rendered: ``official`` or ``fast``.
        cameras: 1, or 2: one at the hand too.
    """
    return LiberoWorld(image_size, render, cameras) if is_libero(task) else World(image_size, cameras=cameras)
