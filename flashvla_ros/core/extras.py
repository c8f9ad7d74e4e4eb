"""What pip installs for a part of the package that not every machine needs; setup.cfg has the same as extras.

A remedy names the packages themselves: the extras are found in a clone only, and a colcon workspace has none.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from flashvla_ros.core.errors import FlashVLAError

EXTRAS = {
    "sim": ("metaworld==3.1.1", "mujoco==3.3.0", "gymnasium>=1.1,<2", "packaging", "imageio"),
    "bags": (
        'backports.zstd>=1; python_version < "3.14"',
        "lz4>=4",
        "mcap>=1.2",
        "rosbags>=0.11,<0.12",
        "matplotlib>=3.8",
    ),
    "export": ("av>=14", "pyarrow>=17"),
    "camera": ("simplejpeg>=1.9",),
    "rerun": ("rerun-sdk>=0.41,<0.42",),
    "remote": ("msgpack>=1", "websockets>=15"),
    "ray": ("ray[serve]>=2.50",),
}
# What a model needs is no extra, but a robot's machine may lack it: rosdep has no key for these.
_MODEL = ("torch>=2.11", "transformers>=5.10.1,<6", "tokenizers>=0.22.2", "safetensors>=0.4.3")
_MODULES = {
    "ros": ("rclpy", "cv_bridge"),
    "sim": ("mujoco", "metaworld"),
    "bags": ("rosbags", "mcap", "matplotlib"),
    "export": ("av", "pyarrow"),
    "rerun": ("rerun",),
    "remote": ("websockets", "msgpack"),
    "model": ("torch", "transformers", "tokenizers", "safetensors"),
}
_EXTRA_OF_MODULE = {module: extra for extra, modules in _MODULES.items() for module in modules}


def remedy(extra: str) -> str:
    """Return the command that installs an extra of setup.cfg."""
    if extra == "ros":
        return "source /opt/ros/<distribution>/setup.bash, or pip install -r requirements/ros.txt in a clone"
    if extra == "libero":  # without what its packages ask for: see the file
        return "make setup-libero, or pip install --no-deps -r requirements/libero.txt, in a clone"
    return f"pip install {shlex.join(_MODEL if extra == 'model' else EXTRAS[extra])}"


def refusal(error: Exception, what: str) -> str:
    """Return the one line that says what the user can mend where `what`, a command or a node, was stopped.

    It is empty for a fault of this package.
    """
    if isinstance(error, FlashVLAError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        extra = _EXTRA_OF_MODULE.get((error.name or "").partition(".")[0])
        return f"{what} needs {error.name}, which is not installed: {remedy(extra)}" if extra else ""
    if isinstance(error, ImportError) and error.path:  # there, but a library behind it is not: ROS was not sourced
        module = next((part for part in Path(error.path).parts if part in _EXTRA_OF_MODULE), "")
        why = str(error).partition("\n")[0]
        return f"{what} cannot load {module} ({why}): {remedy(_EXTRA_OF_MODULE[module])}" if module else ""
    return ""
