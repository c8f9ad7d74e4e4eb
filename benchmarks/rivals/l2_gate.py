"""The gate that FastCrest/reflex-vla (tether) ships as its "FlashVLA fast path": L2 between consecutive actions.

Its rule, as read in its source: after each run of the model the new chunk is compared with the one before; where
their L2 distance is below 0.05 a counter goes up by one, to at most 3, and else to 0. While the counter is above 0 a
call returns the last chunk and takes one off it. So it can only alternate, and the cap is never reached. It calls
0.05 and 3 the paper's defaults; the paper (arXiv 2505.21200) has angle and tokens, no L2, and neither number. It
looks at no image.

Not known: whether its distance is of normalised actions, as here.
"""

from __future__ import annotations

import numpy as np

from benchmarks.rivals.rule import Rule, Work
from flashvla_ros.core.policy import Request
from flashvla_ros.core.types import Inference

THRESHOLD, MOST = 0.05, 3


class L2Gate(Rule):
    """See the module."""

    def forget(self) -> None:
        """See :class:`Rule`."""
        self._counter = 0
        self._last: Inference | None = None

    def step(self, request: Request) -> tuple[Inference, Work]:
        """See :class:`Rule`."""
        last = self._last
        if last is not None and self._counter > 0:
            self._counter -= 1
            return last, Work()
        inference, work = self.dense(request)
        near = last is not None and np.linalg.norm(inference.normalized - last.normalized) < THRESHOLD
        self._counter = min(self._counter + 1, MOST) if near else 0
        self._last = inference
        return inference, work
