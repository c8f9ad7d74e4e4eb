"""The control that a simulated benchmark needs: one episode's actions played again, without looking.

Where starts hardly vary, as in LIBERO's official states, a replay succeeds about as often as a policy, and success
there says little of vision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flashvla_ros.core.policy import Request
from flashvla_ros.core.types import FloatArray, ImageArray, Inference

OPEN_LOOP = "open_loop"


class TapePolicy:
    """Answers with the actions of another episode, found by the time in the episode; after the last it stands still.

    Args:
        actions: [steps, D] in the policy's units; the gripper is the last.
        dt_s: Length of a step.
    """

    def __init__(self, actions: Sequence[FloatArray], dt_s: float) -> None:
        end = np.zeros_like(actions[-1])
        end[-1] = actions[-1][-1]
        self._actions, self._dt_s = [*actions, end], dt_s

    @property
    def action_size(self) -> int:
        """D, the number of action dimensions."""
        return len(self._actions[0])

    def infer(self, request: Request) -> Inference:
        """Look up the action of the observation's time."""
        step = round(request.observation.stamp_s / self._dt_s)
        action = self._actions[min(step, len(self._actions) - 1)][None]
        return Inference(action, action, np.zeros(0, dtype=np.int64), None, 0)


class UnseenWorld:
    """A simulated world that shows its start for ever: pictures are a third of the time of an episode of LIBERO."""

    def __init__(self, world: Any) -> None:
        self._world = world
        self._images: Mapping[str, ImageArray] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._world, name)

    def reset(self, task: str, seed: int) -> None:
        """Start an episode and take its first images."""
        self._world.reset(task, seed)
        self._images = self._world.images()

    def images(self) -> Mapping[str, ImageArray]:
        """Return the first images."""
        return self._images
