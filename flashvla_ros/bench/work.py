"""The work of each stage of one inference, counted while the model really runs: FLOPs, and bytes by what they are."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from flashvla_ros.core.types import Inference
from flashvla_ros.vla.policy import OpenVLAPolicy

aten = torch.ops.aten


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


def count_stages(policy: OpenVLAPolicy, infer: Callable[[], Inference]) -> dict[str, Work]:
    """Run one inference of `policy` and return the work of each of its stages."""
    with Ledger(policy.model.parameters()) as ledger:
        policy.on_stage = ledger.done
        try:
            infer()
        finally:
            policy.on_stage = lambda _stage: None
    return ledger.stages
