"""MuJoCo and Meta-World, imported once: headless, and with a remedy where they are missing."""

from __future__ import annotations

import os

from flashvla_ros.core.errors import SimulationError
from flashvla_ros.core.extras import remedy

os.environ.setdefault("MUJOCO_GL", "egl")  # read once, when MuJoCo is imported

try:
    import metaworld.policies
    import mujoco
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS
except (ImportError, AttributeError) as error:  # PyOpenGL raises AttributeError where libEGL is missing
    raise SimulationError(
        f"MuJoCo cannot start ({error}); install the simulation with `{remedy('sim')}` and, for headless rendering, "
        "the Debian packages libegl1 and libgl1-mesa-dri"
    ) from error

__all__ = ["ALL_V3_ENVIRONMENTS", "metaworld", "mujoco"]
