"""VLA-Pruner (arXiv 2511.16449): tokens that the prompt attends to or that acting attends to, then the unlike ones.

The rule: at decoder layer 3 of 32 two scores rank the visual tokens: the attention that all rows of the prefill pay
in the layer before, and the attention that the action's tokens paid in layer 15 over the last 3 steps, weighted 0.8
to the power of their age. Of the union of both top k, k stay, chosen by DivPrune's rule on the projector's output.
The first 3 steps are not pruned. The layers are scaled to the depth of the decoder here, and k is half of the tokens.

The released code weights the newest step least; here it counts most, as the paper says. Not known: what a token that
was dropped before layer 15 counts in the history; here 0, as it is paid no attention.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
from collections.abc import Callable
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor

from benchmarks.rivals.rule import DENSE, Rule, Work
from flashvla_ros.core.policy import Request
from flashvla_ros.core.settings import PruningSettings
from flashvla_ros.core.types import Inference
from flashvla_ros.vla.attention import SdpaAttention
from flashvla_ros.vla.engine.buffers import PromptBuffers
from flashvla_ros.vla.engine.graphs import DirectCalls
from flashvla_ros.vla.engine.kernels import Kernels
from flashvla_ros.vla.engine.lean import LeanDecoder
from flashvla_ros.vla.engine.static import StaticEngine
from flashvla_ros.vla.pruning.diversity import farthest_from_each_other
from flashvla_ros.vla.pruning.probe import TokenStates
from flashvla_ros.vla.pruning.select import METHODS, Method, kept_count, top_k
from flashvla_ros.vla.step import VLAPolicy

NAME = "vla_pruner"
WINDOW, DECAY, KEPT = 3, 0.8, 0.5
_LAYER, _WATCHED = 3 / 32, 15 / 32


class UnionPruner(Rule):
    """See the module.

    Args:
        policy: The model, warmed up; it keeps its own engine.
        kept: Share of the visual tokens that stay.
    """

    def __init__(self, policy: VLAPolicy, *, kept: float = KEPT) -> None:
        super().__init__(policy)
        depth = len(policy.model.layers)
        layer = max(round(_LAYER * depth), 1)
        self._pruning = PruningSettings(method=NAME, keep_ratio=kept, layer=layer)
        decoder = LeanDecoder(policy.model)
        engine = StaticEngine(policy.model, policy.decoded, SdpaAttention(), DirectCalls(), 1, decoder)
        self._kernels = WatchedKernels(policy.model, decoder, max(round(_WATCHED * depth), layer))
        engine._kernels = self._kernels
        self.policy = copy.copy(policy)
        self.policy.engine = engine

    def forget(self) -> None:
        """See :class:`Rule`."""
        self._history: collections.deque[Tensor] = collections.deque(maxlen=WINDOW)

    def step(self, request: Request) -> tuple[Inference, Work]:
        """See :class:`Rule`."""
        count, pruning = self.size.visual_tokens, self._pruning
        full = len(self._history) < WINDOW
        self._kernels.queries.clear()
        own = {NAME: Method(self._select, "VLA-Pruner", "", "", recordable=False)}
        with mock.patch.dict(cast(dict[str, Method], METHODS), own):  # not among the package's own for longer
            inference = self.policy.infer(dataclasses.replace(request, pruning=DENSE if full else pruning, draft=None))
        kept = torch.arange(count) if full else torch.from_numpy(inference.kept)
        self._history.append(torch.zeros(count).index_copy(0, kept, self._kernels.paid(len(kept))))
        if full:
            return inference, Work(1.0, 1.0)
        return inference, self.pruned(request, kept_count(pruning.keep_ratio, count), pruning.layer)

    def _select(self, seen: TokenStates, k: int, _settings: PruningSettings) -> Tensor:
        acting = sum(DECAY**age * paid for age, paid in enumerate(reversed(self._history)))
        union = torch.cat([top_k(prompt_attention(seen), k), top_k(cast(Tensor, acting), k)]).unique()
        return union[farthest_from_each_other(seen.embeddings[union], k)].sort().values


def prompt_attention(seen: TokenStates) -> Tensor:
    """Attention that visual tokens are paid in the layer before, the mean over heads and rows: [N]."""
    probe = seen.projections
    queries = probe.model.project(probe.entering, probe.index, "q_proj", probe.rotary)[0]
    keys = probe.keys.repeat_interleave(len(queries) // len(probe.keys), dim=0)
    logits = queries @ keys.transpose(1, 2) * queries.shape[-1] ** -0.5
    logits = logits.masked_fill(torch.ones_like(logits[0], dtype=torch.bool).triu(1), -torch.inf)
    return logits.softmax(dim=-1).mean(dim=(0, 1))[1 : 1 + len(seen.embeddings)]


class WatchedKernels(Kernels):
    """Notes with which queries the decoded tokens look at one layer.

    Args:
        model: In evaluation mode.
        decoder: Layers of `model`.
        layer: Which one, behind the pruning layer.

    Attributes:
        queries: [H, D] of each decoded token since it was emptied, with its slot.
    """

    def __init__(self, model: Any, decoder: LeanDecoder, layer: int) -> None:
        super().__init__(model, SdpaAttention(), decoder)
        self._layer = layer
        self._buffers: PromptBuffers | None = None
        self.queries: list[tuple[Tensor, int]] = []

    def _appending(
        self, buffers: PromptBuffers, index: int, slot: Tensor, slots: int
    ) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        attend = super()._appending(buffers, index, slot, slots)
        if index != self._layer:
            return attend
        self._buffers = buffers

        def watching(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            self.queries.append((query[0, :, 0], int(slot)))
            return attend(query, key, value)

        return watching

    def paid(self, stay: int) -> Tensor:
        """Attention that the `stay` visual tokens there were paid, the mean over heads and decoded tokens: [stay]."""
        assert self._buffers is not None, "nothing was decoded"  # noqa: S101  # of the code, not of input
        keys, paid = self._buffers.keys[self._layer, 0], []
        for query, slot in self.queries:
            seen = keys[:, : slot + 1].repeat_interleave(len(query) // len(keys), dim=0)  # [H, slots, D]
            weights = (seen @ query[:, :, None] * query.shape[-1] ** -0.5).softmax(dim=1)
            paid.append(weights[:, 1 : 1 + stay, 0].mean(dim=0))
        return torch.stack(paid).mean(dim=0).float()
