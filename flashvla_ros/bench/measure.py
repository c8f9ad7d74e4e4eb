"""What a step costs and what this device can do: counted work, best rates, memory, and the gate's own time.

Work is counted while the model really runs: FLOPs, and bytes by what they are. Rates are measured in the same run.
"""

from __future__ import annotations

import dataclasses
import operator
import os
import resource
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from flashvla_ros.cli.results import processor_name
from flashvla_ros.core.policy import Request
from flashvla_ros.core.settings import Settings
from flashvla_ros.core.types import ActionKind, ActionSpec, FloatArray, Inference, Observation
from flashvla_ros.gate.decision import decide
from flashvla_ros.gate.memory import FreshResult, GateInput, GateMemory
from flashvla_ros.vla.backend import Backend
from flashvla_ros.vla.step import VLAPolicy

aten = torch.ops.aten
_MATRIX = {"cpu": 1536, "cuda": 8192}  # side; large enough for the device's best rate
_STREAM_BYTES = {"cpu": 1 << 29, "cuda": 1 << 31}  # larger than any cache
_ROW = 4096  # as wide as the decoder of OpenVLA-7B


@dataclasses.dataclass(frozen=True)
class Work:
    """What a stage does, whatever the device.

    Attributes:
        flops: Floating-point operations of matrix products, convolutions and attention, two for a multiply-add.
        weights: Bytes of parameters read, once for each pass over them.
        inputs: Bytes read of what the stage did not make itself: frame, visual tokens, key-value cache.
        activations: Bytes read of what the stage made itself. A cache or a fused kernel may hold them, so they are no
            part of the least time.
    """

    flops: int = 0
    weights: int = 0
    inputs: int = 0
    activations: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(*map(operator.add, dataclasses.astuple(self), dataclasses.astuple(other)))

    def __sub__(self, other: Work) -> Work:
        return Work(*map(operator.sub, dataclasses.astuple(self), dataclasses.astuple(other)))


class Ledger:
    """Counts the work between two calls of :meth:`done` and books it under a stage; a context manager.

    Args:
        parameters: Of the model, whose bytes count as weights.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.stages: dict[str, Work] = {}
        self._flops = FlopCounterMode(display=False, custom_mapping=_EXTRA_FLOPS)
        self._traffic = _Traffic({parameter.untyped_storage().data_ptr() for parameter in parameters})
        self._before = Work()

    def __enter__(self) -> Ledger:
        self._flops.__enter__()
        self._traffic.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._traffic.__exit__(*error)
        self._flops.__exit__(*error)

    def done(self, stage: str) -> None:
        """Book what was done since the last call under `stage`; what it made is an input to the stages after it."""
        traffic = self._traffic
        now = Work(self._flops.get_total_flops(), traffic.weights, traffic.inputs, traffic.activations)
        self.stages[stage] = self.stages.get(stage, Work()) + (now - self._before)
        self._before = now
        traffic.forget()


def _attention_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    """The CPU's fused attention, which torch does not count: both products, masked or not."""
    batch, heads, length, size = query
    return 2 * batch * heads * length * key[2] * (size + value[3])


_EXTRA_FLOPS = {aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
_LOOK_UP = (aten.embedding.default, aten.index.Tensor, aten.gather.default, aten.index_select.default)


class _Traffic(TorchDispatchMode):
    """Adds up the sizes of the tensors that each operation reads."""

    def __init__(self, weights: set[int]) -> None:
        super().__init__()
        self.weights = self.inputs = self.activations = 0
        self._parameters = weights
        self._made: dict[int, Tensor] = {}  # kept alive, so that no address is used twice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self:
            decomposed = func.decompose(*args, **kwargs)
        if decomposed is not NotImplemented:
            return decomposed
        output = func(*args, **kwargs)
        if not func.is_view:
            self._read(func, args, output)
            self._remember(args, output)
        return output

    def forget(self) -> None:
        """Take all tensors that were made so far for inputs."""
        self._made.clear()

    def _read(self, func: Any, args: Sequence[Any], output: Any) -> None:
        sources = args[1:] if func is aten.copy_.default else args
        tensors = [tensor for arg in sources for tensor in _tensors(arg)]
        for tensor in tensors:
            size = tensor.nbytes
            if func in _LOOK_UP and tensor is tensors[0]:
                size = output.nbytes  # of a table only the rows that are looked up
            where = tensor.untyped_storage().data_ptr()
            if where in self._parameters:
                self.weights += size
            elif where in self._made:
                self.activations += size
            else:
                self.inputs += size

    def _remember(self, args: Sequence[Any], output: Any) -> None:
        """Note what is new; what an operation writes in place, such as the cache, stays what it was."""
        given = {tensor.untyped_storage().data_ptr() for arg in args for tensor in _tensors(arg)}
        for tensor in _tensors(output):
            where = tensor.untyped_storage().data_ptr()
            if where not in given:
                self._made[where] = tensor


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in _tensors(item)]
    return []


def count_stages(policy: VLAPolicy, request: Request) -> dict[str, Work]:
    """Run one inference of `policy` and return the work of each of its stages."""
    with Ledger(policy.model.parameters()) as ledger:
        policy.reporting(ledger.done).infer(request)
    return ledger.stages


@dataclasses.dataclass
class Roofline:
    """Best rates seen so far; a :class:`Prober` goes on looking, so that it meets the machine's good moments too.

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
        flops = 2 * self._side**3 / self._seconds(lambda: self._square @ self._square)
        copied = 2 * moved / self._seconds(lambda: self._target.copy_(self._source))
        read = moved / self._seconds(lambda: self._source @ self._vector)
        roofline.flops_per_s = max(roofline.flops_per_s, flops)
        roofline.copy_bytes_per_s = max(roofline.copy_bytes_per_s, copied)
        roofline.gemv_bytes_per_s = max(roofline.gemv_bytes_per_s, read)

    def _seconds(self, call: Callable[[], Tensor]) -> float:
        self._backend.synchronize()
        started_s = time.perf_counter()
        call()
        self._backend.synchronize()
        return time.perf_counter() - started_s


def gate_seconds(
    observations: Sequence[Observation], inference: Inference, settings: Settings, repeats: int = 300
) -> FloatArray:
    """Time the gate's look at a frame, its decision and its memory, [repeats] seconds.

    Args:
        observations: Real frames, in their order.
        inference: Result of the model that fills the memory.
        settings: The gate's thresholds, and the pruning that `inference` was made with.
        repeats: Timed decisions.
    """
    size, dt_s = inference.action.shape[1], settings.action.dt_s
    kinds = (ActionKind.DELTA,) * (size - 1) + (ActionKind.GRIPPER,)
    spec = ActionSpec(tuple(f"d{index}" for index in range(size)), kinds, dt_s)
    memory, seconds = GateMemory(), []
    for step in range(repeats + 2):
        seen = observations[step % len(observations)]
        observation = Observation(seen.images, seen.instruction, stamp_s=step * dt_s)
        started_s = time.perf_counter()
        current = GateInput.of(observation)
        if memory.previous is not None:
            decide(memory, current, settings.gate)
            seconds.append(time.perf_counter() - started_s)
        memory = memory.after_fresh(FreshResult.of(inference, current, spec, settings.pruning), settings.gate)
    return np.asarray(seconds)


def describe_backend(backend: Backend) -> dict[str, Any]:
    """Return device, cores, threads, type, attention and engine, for the ``meta`` of results."""
    cuda = backend.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(backend.device) if cuda else processor_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "dtype": backend.dtype_name,
        "attention": backend.attention,
        "engine": backend.engine,
    }


def allocated_bytes(backend: Backend) -> int:
    """Return the memory that this process holds now: on the GPU where there is one, else of the process."""
    if backend.device.type == "cuda":
        return torch.cuda.memory_allocated(backend.device)
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))


def peak_bytes(backend: Backend) -> int:
    """Return the most memory that this process has held."""
    if backend.device.type == "cuda":
        return torch.cuda.max_memory_allocated(backend.device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
