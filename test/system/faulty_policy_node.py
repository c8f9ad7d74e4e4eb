"""The real policy node around a policy that misbehaves as a file says: ``faulty_policy_node.py FILE --ros-args …``.

The file holds one word, read at every inference: ``raise``, ``nan``, ``slow``, ``hang`` or ``oom``, which leaves the
process no memory; anything else is no fault.
"""

from __future__ import annotations

import contextlib
import dataclasses
import resource
import sys
import time
from pathlib import Path

import numpy as np

from flashvla_ros.core.policy import Request
from flashvla_ros.core.settings import Settings
from flashvla_ros.core.types import Inference
from flashvla_ros.nodes.policy_node import PolicyNode
from flashvla_ros.nodes.process import run_node
from flashvla_ros.vla.loading import LoadedPolicy, PolicyFactory

sys.path.append(str(Path(__file__).parents[1]))

from fakes import ScriptedPolicy

HANG_S, SLOW_S = 10.0, 2.0
_ROOM = 32 * 2**20
_TAKEN: list[bytearray] = []


def exhaust_memory() -> None:
    """Take all the memory that the process may have, in pieces down to those of a message, and keep it."""
    used = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _ROOM, used + _ROOM))
    for size in (2**20, 2**16, 2**12):
        with contextlib.suppress(MemoryError):
            while True:
                _TAKEN.append(bytearray(size))
    raise MemoryError


def faulty_policy(file: Path) -> ScriptedPolicy:
    """Moves along x, unless told otherwise."""

    def answer(_: Request, scripted: Inference) -> Inference:
        fault = file.read_text(encoding="utf-8")
        if fault == "hang":
            time.sleep(HANG_S)
        if fault == "slow":
            time.sleep(SLOW_S)
        if fault == "oom":
            exhaust_memory()
        if fault == "raise":
            raise RuntimeError("the model is out of order")
        return dataclasses.replace(scripted, action=scripted.action * np.nan) if fault == "nan" else scripted

    return ScriptedPolicy(answer=answer)


def main() -> int:
    fault, *arguments = sys.argv[1:]

    def load(_settings: Settings) -> LoadedPolicy:
        return LoadedPolicy(faulty_policy(Path(fault)))

    return run_node(lambda: PolicyNode(PolicyFactory(load)), arguments)


if __name__ == "__main__":
    sys.exit(main())
