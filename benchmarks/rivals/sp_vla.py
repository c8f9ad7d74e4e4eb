"""SP-VLA's model scheduling (arXiv 2506.12723): fast motion is extrapolated by ridge regression, slow motion computed.

The rule: a buffer holds the last 6 actions. Where every translation of the last one lies in [v_min, v_max] and the
share of the buffer's actions that the model made is above τ = 0.5, the next action is the value at the next instant
of a ridge regression of each dimension on time over the buffer; else the model runs.

Not known: v_min, v_max and the ridge's weight, which are set here; whether the speed is judged by each component, as
the paper says, or by its norm, as its repository's words on planar motion suggest: both are played. Its pruning of
tokens by Canny edges and the attention of SigLIP is the other half of the method and is not played.
"""

from __future__ import annotations

import collections

import numpy as np

from benchmarks.rivals.rule import Rule, Work
from flashvla_ros.core.policy import Request
from flashvla_ros.core.types import FloatArray, Inference
from flashvla_ros.vla.step import VLAPolicy

BUFFER, SHARE, RIDGE = 6, 0.5, 1e-3
SPEEDS = 0.1, 1.0  # of normalised actions
_TRANSLATIONS = 3


class SpeedRule(Rule):
    """See the module.

    Args:
        policy: The model, warmed up.
        by_norm: Judge the speed by its norm.
    """

    def __init__(self, policy: VLAPolicy, *, by_norm: bool = False) -> None:
        super().__init__(policy)
        self._by_norm = by_norm

    def forget(self) -> None:
        """See :class:`Rule`."""
        self._actions: collections.deque[tuple[FloatArray, bool]] = collections.deque(maxlen=BUFFER)

    def step(self, request: Request) -> tuple[Inference, Work]:
        """See :class:`Rule`."""
        if self._intuitive():
            normalized = extrapolated(np.stack([action for action, _ in self._actions]))[None]
            self._actions.append((normalized[0], False))
            action, tokens = self.policy.bounds.unnormalize(normalized), np.empty(0, dtype=np.int64)
            return Inference(action, normalized, tokens, None, self.size.visual_tokens), Work()
        inference, work = self.dense(request)
        self._actions.append((inference.normalized[0], True))
        return inference, work

    def _intuitive(self) -> bool:
        if len(self._actions) < BUFFER:
            return False
        speed = np.abs(self._actions[-1][0][:_TRANSLATIONS])
        if self._by_norm:
            speed = np.linalg.norm(speed, keepdims=True)
        computed = sum(by_model for _, by_model in self._actions) / BUFFER
        return bool(((speed >= SPEEDS[0]) & (speed <= SPEEDS[1])).all()) and computed > SHARE


def extrapolated(actions: FloatArray) -> FloatArray:
    """Return the action [D] that follows actions [n, D], of a straight line through each dimension, in [-1, 1]."""
    times = np.arange(len(actions), dtype=np.float64)
    design = np.stack([times, np.ones_like(times)], axis=1)
    line = np.linalg.solve(design.T @ design + RIDGE * np.eye(2), design.T @ actions)
    return np.clip(np.array([len(actions), 1.0]) @ line, -1.0, 1.0)
