"""VLA-Cache (arXiv 2502.02175), whole: static tokens are not computed again, their keys and values are the last step's.

The rule, as read in the released code for OpenVLA: a patch is static where the cosine of its pixels with those of the
frame before is at least 0.996, the 120 most alike of 256 at most. Less the 100 patches that the text attended to most
in layer 15 at the step before, these may be reused. At layers 2, 6, 9 and 11 of 32 a first part of them leaves the
rows that are computed, in the order of their places; the part is 1 less the mean entropy of that layer's attention at
the step before, scaled to [0, 1] over the layers, its rises damped by 0.55; a part smaller than the last is left out.
Every row that is computed attends to all slots before it, those of reused tokens too. Numbers and layers are scaled
here.

Not known: nothing of the rule. Its own pictures are cut into patches of 14 pixels of the camera's frame, which are
the tokens' patches there; here they are the tokens' patches of the square that the model sees.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.rivals.rule import Rule, Work
from flashvla_ros.core.policy import Request
from flashvla_ros.core.settings import PruningSettings
from flashvla_ros.core.types import Inference
from flashvla_ros.vla.attention import SdpaAttention
from flashvla_ros.vla.decoding import untimed
from flashvla_ros.vla.engine.buffers import PromptBuffers
from flashvla_ros.vla.engine.graphs import DirectCalls
from flashvla_ros.vla.engine.lean import LeanDecoder
from flashvla_ros.vla.engine.static import StaticEngine, StaticStart
from flashvla_ros.vla.query import Query
from flashvla_ros.vla.step import VLAPolicy

ALIKE, STATIC, RELEVANT, DAMPING = 0.996, 120 / 256, 100 / 256, 0.55
_PLACES, _WATCHED = (2 / 32, 6 / 32, 9 / 32, 11 / 32), 15 / 32
_COMPARING = PruningSettings(method="temporal", keep_ratio=1.0)  # drops nothing, and tells how alike patches are


class CachedTokens(Rule):
    """See the module."""

    def __init__(self, policy: VLAPolicy) -> None:
        super().__init__(policy)
        self.engine = ReusingEngine(policy.model, policy.decoded)
        self.policy = copy.copy(policy)
        self.policy.engine = self.engine

    def forget(self) -> None:
        """See :class:`Rule`."""
        self.engine.forget()
        self._instruction = ""

    def step(self, request: Request) -> tuple[Inference, Work]:
        """See :class:`Rule`."""
        if request.observation.instruction != self._instruction:
            self.engine.forget()
            self._instruction = request.observation.instruction
        inference = self.policy.infer(dataclasses.replace(request, pruning=_COMPARING, draft=None))
        return dataclasses.replace(inference, kept=None), self.computed(request, self.engine.computed)


class ReusingEngine(StaticEngine):
    """Runs the prefill over the rows that changed, above the buffers that the step before has filled.

    Attributes:
        computed: Visual tokens that each layer computed.
    """

    def __init__(self, model: Any, size: int) -> None:
        self._decoder = LeanDecoder(model)
        super().__init__(model, size, SdpaAttention(), DirectCalls(), 1, self._decoder)
        self._depth = len(model.layers)
        self._places = {max(round(place * self._depth), 1) for place in _PLACES}
        self._watched = round(_WATCHED * self._depth)
        self.forget()

    def forget(self) -> None:
        """Compute everything at the next step."""
        self._relevance: Tensor | None = None
        self._parts: list[float] = []

    def prefill(self, visual: Tensor, query: Query, *, done: Callable[[str], None] = untimed) -> StaticStart:  # noqa: ARG002
        """See :class:`flashvla_ros.vla.engine.base.Engine`."""
        count, decoder = visual.shape[1], self._decoder
        runs = self._runs_for(len(query.ids), query.layout)
        buffers = runs.buffers
        buffers.input([query.length(count), *query.ids])
        text = decoder.embedding[buffers.ids]
        hidden = torch.cat([text[:, :1], visual, text[:, 1:]], dim=1)
        rows, reusable, left_out = torch.arange(buffers.rows), self._reusable(query.similarity, count), 0
        self.computed, entropies = [], []
        for index in range(self._depth):
            part = max(1, int(self._parts[index] * len(reusable))) if index in self._places and len(reusable) else 0
            if part > left_out:
                stay = ~torch.isin(rows, reusable[:part] + 1)
                rows, hidden, left_out = rows[stay], hidden[:, stay], part
            self.computed.append(count - left_out)
            rotary = buffers.rotary[0][:, rows], buffers.rotary[1][:, rows]
            hidden, _ = decoder.layers[index](hidden, rotary, self._attend(buffers, index, rows, entropies))
        last = decoder.normed(hidden[:, -1:])
        choices, sure = decoder.choices(last, query.layout.without)
        for buffer, values in ((buffers.read, last), (buffers.certainty, sure), (buffers.tokens, choices)):
            buffer[:1].copy_(values)
        buffers.place.fill_(1)
        self._parts = parts_of(torch.stack(entropies))
        step = runs.of(self._kernels.step, 0, count)
        return StaticStart(choices, sure, last, None, None, buffers, step)

    def _reusable(self, similarity: Tensor | None, count: int) -> Tensor:
        """Indices of the visual tokens that are static and not relevant to the task, ascending."""
        if similarity is None or self._relevance is None:
            return torch.empty(0, dtype=torch.int64)
        static = similarity.argsort(descending=True, stable=True)[: round(STATIC * count)]
        static = static[similarity[static] >= ALIKE]
        relevant = self._relevance.argsort(descending=True, stable=True)[: round(RELEVANT * count)]
        return static[~torch.isin(static, relevant)].sort().values

    def _attend(
        self, buffers: PromptBuffers, index: int, rows: Tensor, entropies: list[Tensor]
    ) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        count = self.model.config.visual_tokens

        def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            groups = queries.shape[1] // keys.shape[1]
            every = []
            for store, new in ((buffers.keys, keys), (buffers.values, values)):
                store[index].index_copy_(2, rows, new)
                every.append(store[index, :, :, : buffers.rows].repeat_interleave(groups, dim=1))
            hidden_from = torch.arange(buffers.rows) > rows[:, None]
            logits = queries @ every[0].transpose(2, 3) * queries.shape[-1] ** -0.5
            weights = logits.masked_fill(hidden_from, -torch.inf).softmax(dim=-1)  # its entropy is needed: no SDPA
            mean = weights[0].mean(dim=0)
            entropies.append(-(mean * (mean + 1e-10).log()).sum(dim=-1).mean())
            if index == self._watched:
                self._relevance = mean[rows > count, 1 : 1 + count].mean(dim=0)
            return weights @ every[1]

        return attend


def parts_of(entropies: Tensor) -> list[float]:
    """Return the part of the reusable tokens that each layer may reuse, of the mean entropies [layers]."""
    spread = entropies - entropies.min()
    parts = (1.0 - spread / (spread.max() + 1e-10)).tolist()
    for index in range(1, len(parts)):
        rise = parts[index] - parts[index - 1]
        parts[index] = parts[index - 1] + rise * (DAMPING if rise > 0 else 1.0)
    return parts
