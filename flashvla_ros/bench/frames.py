"""The frames that are timed: consecutive ones of the simulated robot, recorded with the default trace."""

from __future__ import annotations

from pathlib import Path

import cv2

from flashvla_ros.bench.trace import DATA
from flashvla_ros.core.errors import FlashVLAError
from flashvla_ros.core.types import Observation

_DT_S = 0.1


def load_observations(instruction: str, folder: Path = DATA) -> list[Observation]:
    """Return the frames of `folder` in their order, 0.1 s apart.

    Raises:
        FlashVLAError: There are none.
    """
    images = [cv2.imread(str(path)) for path in sorted(folder.glob("frame_*.jpg"))]
    if not images or any(image is None for image in images):
        raise FlashVLAError(f"{folder} has no readable frame_*.jpg; install flashvla_ros again")
    return [
        Observation({"image": cv2.cvtColor(image, cv2.COLOR_BGR2RGB)}, instruction, stamp_s=index * _DT_S)
        for index, image in enumerate(images, start=1)
    ]
