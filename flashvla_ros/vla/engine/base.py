"""The one interface of all engines, the plain one, and the choice between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from flashvla_ros.vla.attention import static_attention
from flashvla_ros.vla.backend import Backend
from flashvla_ros.vla.decoding import Decoded, Draw, Prefill, decode, prefill, untimed
from flashvla_ros.vla.engine.graphs import DirectCalls, SpreadCaptures, cuda_graphs
from flashvla_ros.vla.engine.lean import LeanDecoder
from flashvla_ros.vla.engine.static import StaticEngine
from flashvla_ros.vla.model import PrismaticVLM
from flashvla_ros.vla.query import Query

_GRAPH_GRANULARITY = 16  # prompt tokens: padding costs rows, and each new bucket a few steps without graphs


class Start(Protocol):
    """The decoder after the prompt.

    Attributes:
        choices: [m] most likely token after each row that is read (:class:`..query.Layout`), where it chooses.
        certainty: [m] their probabilities, float32.
        hidden: [m, d] these rows, behind the final norm.
        visual: [1 + k, d] rows of BOS and of the visual tokens that are left, the same; None where nobody asked.
        kept: [k] ascending indices of the selected visual tokens, or None where nothing was scored.
    """

    choices: Tensor
    certainty: Tensor
    hidden: Tensor
    visual: Tensor | None
    kept: Tensor | None


class Engine(Protocol):
    """Runs the model. Results stay on the device and are valid until the next call of the same function.

    Attributes:
        warm: Whether the last inference found everything recorded.
    """

    warm: bool

    def visual_tokens(self, pixels: Tensor) -> Tensor:
        """Map the normalised images of an observation [C, 3 per tower, S, S] to visual tokens [1, N, d]."""
        ...

    def prefill(self, visual: Tensor, query: Query, *, done: Callable[[str], None] = untimed) -> Start:
        """Run the decoder over the prompt and the draft; see :func:`..decoding.prefill`."""
        ...

    def decode(self, start: Start, known: Sequence[int], draw: Draw | None = None) -> Decoded:
        """Return the tokens of the action behind the last prefill, the `known` first; see :func:`..decoding.decode`."""
        ...


class EagerEngine:
    """The reference: the plain modules, tensors made as they are needed."""

    warm = True

    def __init__(self, model: PrismaticVLM, size: int) -> None:
        self._model, self._size = model, size

    def visual_tokens(self, pixels: Tensor) -> Tensor:
        """See :class:`Engine`."""
        return self._model.visual_tokens(pixels)

    def prefill(self, visual: Tensor, query: Query, *, done: Callable[[str], None] = untimed) -> Prefill:
        """See :class:`Engine`."""
        return prefill(self._model, visual, query, self._size, done=done)

    def decode(self, start: Prefill, known: Sequence[int], draw: Draw | None = None) -> Decoded:
        """See :class:`Engine`."""
        settled = torch.tensor([known], device=start.hidden.device) if known else None
        return decode(self._model, start, self._size, settled, draw)


def make_engine(model: PrismaticVLM, size: int, backend: Backend) -> Engine:
    """Return the engine that the backend names, for actions of `size` tokens."""
    if backend.engine == "eager":
        return EagerEngine(model, size)
    attention = static_attention(backend.attention)
    decoder = LeanDecoder(model, compiled=backend.engine == "compiled")
    if backend.device.type == "cuda":
        captures = SpreadCaptures(cuda_graphs(backend.device))
        return StaticEngine(model, size, attention, captures, _GRAPH_GRANULARITY, decoder)
    return StaticEngine(model, size, attention, DirectCalls(), granularity=1, decoder=decoder)
