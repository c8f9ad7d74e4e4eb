"""The real policy node around a policy that misbehaves as a file says: ``faulty_policy_node.py FILE --ros-args …``.

The file holds one word, read at every inference: ``raise``, ``nan``, ``slow`` or ``hang``; anything else is no fault.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from flashvla_ros.core.settings import PruningSettings, Settings
from flashvla_ros.core.types import Draft, Inference, Observation
from flashvla_ros.nodes.policy_node import PolicyNode
from flashvla_ros.nodes.process import run_node
from flashvla_ros.vla.loading import LoadedPolicy, PolicyFactory

HANG_S, SLOW_S = 10.0, 2.0


class FaultyPolicy:
    """Moves along x, unless told otherwise."""

    action_size, visual_tokens = 4, 64

    def __init__(self, fault: Path) -> None:
        self._fault = fault

    def infer(
        self,
        observation: Observation,
        pruning: PruningSettings,
        previous: Inference | None = None,
        draft: Draft | None = None,
    ) -> Inference:
        fault = self._fault.read_text(encoding="utf-8")
        if fault == "hang":
            time.sleep(HANG_S)
        if fault == "slow":
            time.sleep(SLOW_S)
        if fault == "raise":
            raise RuntimeError("the model is out of order")
        normalized = np.array([[0.5, 0.0, 0.0, 1.0]])
        action = normalized * [[np.nan if fault == "nan" else 0.01, 0.01, 0.01, 1.0]]
        return Inference(action, normalized, np.zeros(4, np.int64), np.arange(40), self.visual_tokens)

    def reset(self) -> None: ...


def main() -> int:
    fault, *arguments = sys.argv[1:]

    def load(_settings: Settings) -> LoadedPolicy:
        return LoadedPolicy(FaultyPolicy(Path(fault)))

    return run_node(lambda: PolicyNode(PolicyFactory(load)), arguments)


if __name__ == "__main__":
    sys.exit(main())
