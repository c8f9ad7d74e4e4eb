"""What pip installs for a part of the package that not every machine needs; setup.cfg has the same as extras.

A remedy names the packages themselves: the extras are found in a clone only, and a colcon workspace has none.
"""

from __future__ import annotations

import shlex

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
    "remote": ("msgpack>=1", "websockets>=14"),
    "ray": ("ray[serve]>=2.50",),
}


def remedy(extra: str) -> str:
    """Return the command that installs an extra of setup.cfg."""
    if extra == "ros":
        return "source /opt/ros/<distribution>/setup.bash, or pip install -r requirements/ros.txt in a clone"
    if extra == "libero":  # without what its packages ask for: see the file
        return "make setup-libero, or pip install --no-deps -r requirements/libero.txt, in a clone"
    return f"pip install {shlex.join(EXTRAS[extra])}"
