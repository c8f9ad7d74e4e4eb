"""A sequence of kernels, captured once as a CUDA graph and replayed; on the CPU the function itself.

What is recorded takes no arguments and returns nothing: it reads and writes buffers that stay where they are, and makes
no choice that depends on their content.

A capture with its warm-up would stop a robot for a moment at each new budget or instruction. So the first calls of a
run go to the function itself, which costs the launches of its kernels and is the warm-up that libraries need. Then it
is captured, which runs nothing on the device, and no inference captures more than one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Run = Callable[[], None]
_DIRECT = 3  # libraries choose kernels and allocate work space in the first runs, which must not be captured


class DirectCalls:
    """Captures nothing: the same buffers, the same functions, on any device.

    Attributes:
        warm: Whether nothing that was called since :meth:`begin` is still to be captured.
    """

    warm = True

    def begin(self) -> None:
        """Say that an inference begins."""

    def record(self, run: Run) -> Run:
        """Return a function that does what `run` does."""
        return run


class SpreadCaptures(DirectCalls):
    """Captures each run after a few calls of it, at most one in an inference.

    Args:
        capture: Returns what does the same as a run for less, and runs nothing itself.
    """

    def __init__(self, capture: Callable[[Run], Run]) -> None:
        self._capture = capture
        self._free = True  # nothing was captured in this inference
        self.warm = True

    def begin(self) -> None:
        """See :class:`DirectCalls`."""
        self._free = self.warm = True

    def record(self, run: Run) -> Run:
        """See :class:`DirectCalls`."""
        calls, captured = 0, None

        def call() -> None:
            nonlocal calls, captured
            if captured is None and calls >= _DIRECT and self._free:
                captured, self._free = self._capture(run), False
            if captured is not None:
                captured()
                return
            calls, self.warm = calls + 1, False
            run()

        return call


def cuda_graphs(device: torch.device) -> Callable[[Run], Run]:
    """Return what captures a run that has been called before; the graphs share memory, as no two run at one time."""
    pool = torch.cuda.graph_pool_handle()

    def capture(run: Run) -> Run:
        with torch.cuda.device(device):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):  # waits for the device first
                run()
        return graph.replay

    return capture
