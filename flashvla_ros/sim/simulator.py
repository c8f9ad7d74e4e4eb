"""MuJoCo and Meta-World, imported once: headless, and with a remedy where they are missing."""

from __future__ import annotations

import atexit
import os
import weakref
from collections.abc import Callable
from typing import Any

from flashvla_ros.core.errors import SimulationError
from flashvla_ros.core.extras import remedy

os.environ["MUJOCO_GL"] = os.environ.get("MUJOCO_GL") or "egl"  # read once, when MuJoCo is imported

_REMEDY = f"the Debian packages libegl1 and libgl1-mesa-dri; MUJOCO_GL is {os.environ['MUJOCO_GL']!r}, best left unset"

try:
    import metaworld.policies
    import mujoco
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS
except (ImportError, AttributeError, RuntimeError) as error:  # without libEGL, and of a MUJOCO_GL that it does not know
    raise SimulationError(
        f"MuJoCo cannot start ({error}); install the simulation with `{remedy('sim')}` and, for headless rendering, "
        f"{_REMEDY}"
    ) from error

# Each closes itself also where it was not made.
mujoco.Renderer._gl_context = mujoco.Renderer._mjr_context = None
if hasattr(mujoco, "GLContext"):
    mujoco.GLContext._context = None

__all__ = ["ALL_V3_ENVIRONMENTS", "closed_with", "metaworld", "mujoco", "plain_renderer", "renderer"]


def renderer(model: Any, size: int) -> Any:
    """Return MuJoCo's renderer of square images.

    Raises:
        SimulationError: There is no headless OpenGL.
    """
    model.vis.global_.offwidth = model.vis.global_.offheight = size
    try:
        return mujoco.Renderer(model, size, size)
    except Exception as error:  # EGL has no error type of its own: PyOpenGL, ctypes and MuJoCo each raise theirs
        raise SimulationError(f"headless rendering failed ({error}); install {_REMEDY}") from error


def plain_renderer(model: Any, size: int) -> Any:
    """Return a renderer without multisampling, shadows and reflections, which cost a processor most."""
    model.vis.quality.offsamples = 0
    plain = renderer(model, size)
    for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
        plain.scene.flags[flag] = 0
    return plain


def closed_with(owner: object, renderer: Any) -> Callable[[], Any]:
    """Close a renderer when its owner goes, or at exit, before the clean-up that EGL registered when it was made."""
    close = weakref.finalize(owner, renderer.close)
    atexit.register(close)
    return close
