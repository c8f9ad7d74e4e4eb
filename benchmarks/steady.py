"""A model that costs nothing, to measure what stands around a model."""

from __future__ import annotations

import numpy as np

from flashvla_ros.core.policy import Request
from flashvla_ros.core.types import Inference


class SteadyPolicy:
    """Always gives the same answer; implements :class:`flashvla_ros.core.policy.Policy`.

    Args:
        action_size: D.
    """

    def __init__(self, action_size: int) -> None:
        self.action_size = action_size
        action = np.full((1, action_size), 0.5)
        self._answer = Inference(action, action, np.empty(0, np.int64), kept=np.arange(160), visual_tokens=256)

    def infer(self, request: Request) -> Inference:  # noqa: ARG002
        """Return 160 of OpenVLA's 256 visual tokens and a motion of half the range."""
        return self._answer
