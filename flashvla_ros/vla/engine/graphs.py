"""A sequence of kernels, recorded once as a CUDA graph and replayed; on the CPU the function itself.

What is recorded takes no arguments and returns nothing: it reads and writes buffers that stay where they are, makes no
choice that depends on their content, and may be run more often than it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

Run = Callable[[], None]
_WARM_UPS = 3  # libraries choose kernels and allocate work space in the first runs, which must not be recorded


class Recorder(Protocol):
    """Turns a function into one that costs less to call."""

    def record(self, run: Run) -> Run:
        """Return a function that does what `run` does; `run` itself may be called meanwhile."""
        ...


class DirectCalls:
    """Records nothing: the same buffers, the same functions, on any device."""

    def record(self, run: Run) -> Run:
        """Return `run`."""
        return run


class CudaGraphs:
    """Records CUDA graphs that share one pool of memory, since no two of them run at the same time.

    Args:
        device: Whose kernels are recorded.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, run: Run) -> Run:
        """Run a few times on a stream of its own, then record; nothing is on the way on the device meanwhile."""
        with torch.cuda.device(self._device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    run()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                run()
        return graph.replay
