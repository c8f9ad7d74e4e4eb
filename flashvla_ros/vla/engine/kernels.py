"""The parts of an inference over static buffers, each a sequence of kernels that can be recorded.

What each does depends on its arguments and on shapes, never on what a tensor holds.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flashvla_ros.core.settings import PruningSettings
from flashvla_ros.vla.attention import StaticAttention
from flashvla_ros.vla.decoder import Rotary
from flashvla_ros.vla.engine.buffers import PromptBuffers
from flashvla_ros.vla.engine.lean import BufferedAttend, LeanDecoder
from flashvla_ros.vla.model import PrismaticVLM
from flashvla_ros.vla.pruning.probe import LayerStates, TokenStates, token_states
from flashvla_ros.vla.pruning.select import METHODS
from flashvla_ros.vla.query import Query


class Kernels:
    """Vision, the layers before the pruning layer, the choice of tokens, the layers after it, one decoding step.

    Attributes:
        pixels: [C, 3 per tower, S, S] images of an observation, which ``see`` reads.
        visual: [1, N, d] visual tokens, which it writes.
    """

    def __init__(self, model: PrismaticVLM, attention: StaticAttention, decoder: LeanDecoder) -> None:
        self._model, self._attention, self._decoder = model, attention, decoder
        weight, config = decoder.embedding, model.config
        side = config.towers[0].image_size
        self.pixels = weight.new_zeros(config.num_images_in_input, 3 * len(config.towers), side, side)
        self.visual = weight.new_zeros(1, config.visual_tokens, weight.shape[1])

    def see(self) -> None:
        """Map the pixels to visual tokens."""
        self.visual.copy_(self._model.visual_tokens(self.pixels))

    def before(self, buffers: PromptBuffers, layer: int) -> None:
        """Embed the sequence and run the layers before `layer`."""
        rotary = _of_the_rows(buffers)
        text, layout = self._decoder.embedding[buffers.ids], buffers.layout
        if layout.zeros:
            behind = buffers.prompt - len(layout.closing)
            text[:, behind - layout.zeros : behind] = 0.0
        entering = hidden = attention = torch.cat([text[:, :1], self.visual, buffers.extra, text[:, 1:]], dim=1)
        for index in range(layer):
            entering = hidden
            hidden, attention = self._decoder.layers[index](hidden, rotary, self._among(buffers, index))
        buffers.entering.copy_(entering)
        buffers.hidden.copy_(hidden)
        buffers.attention.copy_(attention)

    def choose(self, buffers: PromptBuffers, k: int, length: int, pruning: PruningSettings) -> None:
        """Select `k` visual tokens by what the first `length` rows hold, with a method that can be recorded."""
        seen = self.seen(buffers, length, Query((), pruning, layout=buffers.layout))
        buffers.kept[:k].copy_(METHODS[pruning.method].select(seen, k, pruning))

    def seen(self, buffers: PromptBuffers, length: int, query: Query) -> TokenStates:
        """What a pruning method may look at: `length` rows, without the draft and the padding."""
        states = LayerStates(buffers.entering, buffers.attention, buffers.hidden).first(length)
        return token_states(self._model, self.visual, states, buffers.rotary, query)

    def after(self, buffers: PromptBuffers, layer: int, stay: int, outputs: int) -> None:
        """Drop all but `stay` visual tokens, run the layers from `layer` on, choose `outputs` tokens."""
        count, device = self.visual.shape[1], buffers.kept.device
        hidden, rotary, dropped = buffers.hidden, _of_the_rows(buffers), count - stay
        if dropped:
            start = torch.zeros(1, dtype=torch.int64, device=device)
            text = torch.arange(1 + count, buffers.rows, device=device)
            rows = torch.cat([start, buffers.kept[:stay] + 1, text])
            hidden = hidden.index_select(1, rows)
            rotary = rotary[0].index_select(1, rows), rotary[1].index_select(1, rows)
        for index in range(layer, len(self._decoder.layers)):
            hidden, _ = self._decoder.layers[index](hidden, rotary, self._among(buffers, index))
        ahead = torch.arange(-1 - dropped, outputs - 1 - dropped, device=device)
        last = (buffers.length + ahead).clamp(max=hidden.shape[1] - 1)
        rows = self._decoder.normed(hidden.index_select(1, last))
        buffers.read[:outputs].copy_(rows)
        if buffers.layout.sees:
            buffers.seen[: 1 + stay].copy_(self._decoder.normed(hidden[:, : 1 + stay]))
        if buffers.layout.chooses:
            choices, sure = self._decoder.choices(rows, buffers.layout.without)
            buffers.choices[:outputs].copy_(choices)
            buffers.certainty[:outputs].copy_(sure)
            buffers.tokens[:1].copy_(choices[:1])
        buffers.place.fill_(1)

    def step(self, buffers: PromptBuffers, layer: int, stay: int) -> None:
        """Decode one token; the layers from `layer` on see `stay` visual tokens."""
        dropped = self.visual.shape[1] - stay
        position = buffers.length + buffers.place - 1
        hidden = self._decoder.embedding[buffers.tokens[buffers.place - 1]][None]
        rotary = buffers.rotary[0].index_select(1, position), buffers.rotary[1].index_select(1, position)
        for index, decoder_layer in enumerate(self._decoder.layers):
            shift = dropped if index >= layer else 0
            attend = self._appending(buffers, index, position - shift, buffers.slots - shift)
            hidden, _ = decoder_layer(hidden, rotary, attend)
        row = self._decoder.normed(hidden)
        buffers.read.index_copy_(0, buffers.place, row)
        token, sure = self._decoder.choices(row, buffers.layout.without)
        buffers.tokens.index_copy_(0, buffers.place, token)
        buffers.certainty.index_copy_(0, buffers.place, sure)
        buffers.place.add_(1)

    def _among(self, buffers: PromptBuffers, index: int) -> BufferedAttend:
        def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            if buffers.layout.full:
                return self._attention(queries, keys, values, causal=False)
            rows = keys.shape[2]
            buffers.keys[index, :, :, :rows].copy_(keys)
            buffers.values[index, :, :, :rows].copy_(values)
            return self._attention(queries, keys, values, causal=True)

        return attend

    def _appending(self, buffers: PromptBuffers, index: int, slot: Tensor, slots: int) -> BufferedAttend:
        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = buffers.keys[index, :, :, :slots], buffers.values[index, :, :, :slots]
            keys.index_copy_(2, slot, key)
            values.index_copy_(2, slot, value)
            return self._attention.last(query, keys, values, slot)

        return attend


def _of_the_rows(buffers: PromptBuffers) -> Rotary:
    """Rotary embedding of the sequence, without the places of tokens to come."""
    cosines, sines = buffers.rotary
    return cosines[:, : buffers.rows], sines[:, : buffers.rows]
