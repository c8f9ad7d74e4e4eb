"""What this device can do at best, measured in the same run: matrix products and reading memory."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import torch
from torch import Tensor

from flashvla_ros.bench.work import Work
from flashvla_ros.vla.backend import Backend

_MATRIX = {"cpu": 1536, "cuda": 8192}  # side; large enough for the device's best rate
_STREAM_BYTES = {"cpu": 1 << 29, "cuda": 1 << 31}  # larger than any cache
_ROW = 4096  # as wide as the decoder of OpenVLA-7B
_REPEATS = 1  # a round; the best of all rounds counts


@dataclasses.dataclass
class Roofline:
    """Best rates seen so far; :meth:`probe` is called in every round, so that it meets the machine's good moments too.

    Attributes:
        flops_per_s: Of a square matrix product in the type of the weights.
        copy_bytes_per_s: Read and written by a copy.
        gemv_bytes_per_s: Read by the product of a large matrix and a vector, which is what decoding does.
    """

    flops_per_s: float = 0.0
    copy_bytes_per_s: float = 0.0
    gemv_bytes_per_s: float = 0.0

    @property
    def bytes_per_s(self) -> float:
        """The better of the two ways of moving memory."""
        return max(self.copy_bytes_per_s, self.gemv_bytes_per_s)

    def least_s(self, work: Work) -> float:
        """Return the time below which no implementation can do `work` on this device: arithmetic or memory."""
        return max(work.flops / self.flops_per_s, (work.weights + work.inputs) / self.bytes_per_s)


class Prober:
    """Holds the tensors that the probes work on.

    Args:
        backend: Device and type of the weights.
        matrix: Side of the square matrices; 0: what the device needs for its best rate.
        stream_bytes: Size of the memory that is read; 0: more than any cache holds.
    """

    def __init__(self, backend: Backend, matrix: int = 0, stream_bytes: int = 0) -> None:
        self._backend = backend
        kind, dtype, device = backend.device.type, backend.dtype, backend.device
        self._side = matrix or _MATRIX[kind]
        self._square = torch.ones(self._side, self._side, dtype=dtype, device=device)
        rows = (stream_bytes or _STREAM_BYTES[kind]) // _ROW // dtype.itemsize
        self._source = torch.ones(rows, _ROW, dtype=dtype, device=device)
        self._target = torch.empty_like(self._source)
        self._vector = torch.ones(_ROW, dtype=dtype, device=device)

    @torch.inference_mode()
    def probe(self, roofline: Roofline) -> None:
        """Measure each rate and keep the best in `roofline`."""
        moved = self._source.nbytes
        flops = 2 * self._side**3 / self._best_s(lambda: self._square @ self._square)
        copied = 2 * moved / self._best_s(lambda: self._target.copy_(self._source))
        read = moved / self._best_s(lambda: self._source @ self._vector)
        roofline.flops_per_s = max(roofline.flops_per_s, flops)
        roofline.copy_bytes_per_s = max(roofline.copy_bytes_per_s, copied)
        roofline.gemv_bytes_per_s = max(roofline.gemv_bytes_per_s, read)

    def _best_s(self, call: Callable[[], Tensor]) -> float:
        best_s = float("inf")
        for _ in range(_REPEATS):
            self._backend.synchronize()
            started_s = time.perf_counter()
            call()
            self._backend.synchronize()
            best_s = min(best_s, time.perf_counter() - started_s)
        return best_s
