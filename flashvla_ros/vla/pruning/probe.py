"""What the pruning methods may look at in front of the decoder layer from which on tokens are dropped."""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

from torch import Tensor

from flashvla_ros.vla.decoder import KeyValueCache, Rotary
from flashvla_ros.vla.model import PrismaticVLM
from flashvla_ros.vla.query import Query


@dataclasses.dataclass(frozen=True, eq=False)
class Projections:
    """Queries and keys of one decoder layer, computed apart from its attention.

    The layer's own attention runs as ever (SDPA, FlashAttention) and gives no weights away; a method that wants some of
    them pays for the rows that it reads, in this one layer.

    Attributes:
        model: Whose layer it is.
        index: Number of the layer.
        entering: [1, L, d] hidden state that enters it.
        rotary: Rotary embedding of these L positions.
        readers: Rows of whom the model's answer is read: the last of the prompt, or under full attention several.
    """

    model: PrismaticVLM
    index: int
    entering: Tensor
    rotary: Rotary
    readers: slice

    @functools.cached_property
    def keys(self) -> Tensor:
        """[G, L, D] keys after the rotary embedding, of G key heads."""
        return self.model.project(self.entering, self.index, "k_proj", self.rotary)[0]

    @functools.cached_property
    def last_attention(self) -> Tensor:
        """[L] the attention that the readers pay, the mean over heads and them of its softmax, in float32."""
        rotary = self.rotary[0][:, self.readers], self.rotary[1][:, self.readers]
        query = self.model.project(self.entering[:, self.readers], self.index, "q_proj", rotary)[0].float()  # [H, R, D]
        keys = self.keys.float().repeat_interleave(len(query) // len(self.keys), dim=0)
        logits = query @ keys.transpose(1, 2) * query.shape[-1] ** -0.5
        return logits.softmax(dim=-1).mean(dim=1).mean(dim=0)


@dataclasses.dataclass(frozen=True, eq=False)
class TokenStates:
    """What a method may look at. N visual tokens, P tokens of the prompt after them, L = 1 + N + P.

    At ``pruning.layer`` 0 no layer has run: attention and hidden state are the embeddings, and the projections are
    those that layer 0 is about to make of them.

    Attributes:
        embeddings: [N, d] output of the projector.
        attention: [N, d] self-attention output of decoder layer ``pruning.layer - 1``, after its output projection and
            before it is added to the residual stream.
        hidden: [N, d] hidden state after that layer.
        text: [P, d] the same of the prompt after the visual tokens.
        projections: Queries and keys of that layer.
        layer: ``pruning.layer``.
        key: Tells observations apart.
        similarity: [N] cosine of each patch with the same patch of the frame before; None where there is none.
    """

    embeddings: Tensor
    attention: Tensor
    hidden: Tensor
    text: Tensor
    projections: Projections
    layer: int
    key: int = 0
    similarity: Tensor | None = None

    @functools.cached_property
    def values(self) -> Tensor:
        """[N, G * D] values that layer ``pruning.layer``, the first to miss what is dropped, would make of all."""
        layer = self.projections.model.layers[self.layer]
        states: Tensor = layer.self_attn.v_proj(layer.input_layernorm(self.hidden))
        return states


class LayerStates(NamedTuple):
    """What a decoder layer leaves behind; at ``pruning.layer`` 0, where none has run, all three are the embeddings.

    Attributes:
        entering: [1, L, d] hidden state that enters it.
        attention: [1, L, d] its self-attention output, before it is added to the residual stream.
        hidden: [1, L, d] hidden state after it.
    """

    entering: Tensor
    attention: Tensor
    hidden: Tensor

    def first(self, length: int) -> LayerStates:
        """Return the states of the first `length` rows."""
        return LayerStates(*(tensor[:, :length] for tensor in self))


def run_before_pruning(
    model: PrismaticVLM, hidden: Tensor, query: Query, rotary: Rotary, cache: KeyValueCache | None = None
) -> tuple[Tensor, TokenStates]:
    """Run the decoder's layers before ``pruning.layer`` on the query's embedded rows [1, L, d].

    Also returns what a method may look at. None sees the draft, so that it selects what it would select without one.
    """
    layer, full = query.pruning.layer, query.layout.full
    count = hidden.shape[1] - len(query.ids) - query.layout.extra
    visual, states = hidden[:, 1 : 1 + count], LayerStates(hidden, hidden, hidden)
    if layer > 0:
        entering = model.run_layers(hidden, range(layer - 1), rotary, cache, full=full)
        hidden, attention = model.layers[layer - 1](entering, rotary, cache=cache, full=full)
        states = LayerStates(entering, attention, hidden)
    return hidden, token_states(model, visual, states.first(query.scored(count)), rotary, query)


def token_states(model: PrismaticVLM, visual: Tensor, states: LayerStates, rotary: Rotary, query: Query) -> TokenStates:
    """Return what a method may look at in front of ``pruning.layer``.

    `visual` is [1, N, d], the projector's output; `states` are of L rows, and `rotary` may have more positions.
    """
    layer, stop, length = query.pruning.layer, 1 + visual.shape[1], states.hidden.shape[1]
    cosines, sines = rotary
    return TokenStates(
        embeddings=visual[0],
        attention=states.attention[0, 1:stop],
        hidden=states.hidden[0, 1:stop],
        text=states.hidden[0, stop:],
        projections=Projections(
            model,
            max(layer - 1, 0),
            states.entering,
            (cosines[:, :length], sines[:, :length]),
            query.layout.readers(length),
        ),
        layer=layer,
        key=query.key,
        similarity=query.similarity,
    )
