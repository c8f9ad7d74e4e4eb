"""Llama's decoder in plain PyTorch: the reference that the engines are held to.

Names and shapes of the parameters are those of transformers' LlamaForCausalLM, and so of an official checkpoint. Tests
hold the results to transformers' own, bit for bit; importing that would take longer than loading a small model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flashvla_ros.vla.attention import Attend, attention
from flashvla_ros.vla.shapes import ACTIVATIONS, DecoderConfig

Rotary = tuple[Tensor, Tensor]  # cosines and sines, [1 or B, L, head size]

_INITIAL_STD = 0.02  # of a decoder that is trained from scratch


class KeyValueCache:
    """Keys and values of each layer, with room for the tokens to come; layers may hold different numbers of tokens."""

    def __init__(self, layers: int, room: int) -> None:
        self._room = room
        self._stores: list[tuple[Tensor, Tensor] | None] = [None] * layers
        self._lengths = [0] * layers

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Append the keys and values [1, H, L, D] of new tokens; return those of all tokens of that layer."""
        start = self._lengths[layer]
        stop = self._lengths[layer] = start + keys.shape[2]
        if (stores := self._stores[layer]) is None:
            shape = (*keys.shape[:2], stop + self._room, keys.shape[3])
            stores = self._stores[layer] = (keys.new_empty(shape), values.new_empty(shape))
        key_store, value_store = stores
        key_store[:, :, start:stop] = keys
        value_store[:, :, start:stop] = values
        if start == 0:
            return keys, values
        return key_store[:, :, :stop], value_store[:, :, :stop]

    def drop_last(self, count: int) -> None:
        """Forget the last `count` tokens of every layer."""
        self._lengths = [length - count for length in self._lengths]


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight, self.epsilon = nn.Parameter(torch.ones(size)), epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        """Norm the rows of [..., d]."""
        return normed(hidden, self.weight, self.epsilon)


def normed(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Root-mean-square norm of the rows of hidden [..., d] in float32, times a weight [d]."""
    wide = hidden.float()
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True).add_(epsilon))
    return weight * (wide * scale).to(hidden.dtype)


def turn(heads: Tensor, rotary: Rotary) -> Tensor:
    """Rotary embedding of heads [B, H, L, D] by cosines and sines [1 or B, L, D]."""
    cosines, sines = rotary[0][:, None], rotary[1][:, None]
    first, second = heads.chunk(2, dim=-1)
    return heads * cosines + torch.cat((-second, first), dim=-1) * sines


class SelfAttention(nn.Module):
    """Attention with a rotary embedding; several heads may share their keys and values."""

    def __init__(self, config: DecoderConfig, index: int, attend: Attend) -> None:
        super().__init__()
        self.index, self.head_size, self._attend = index, config.head_size, attend
        inner, shared = (heads * config.head_size for heads in (config.num_attention_heads, config.groups))
        size, biased = config.hidden_size, config.attention_bias
        self.q_proj = nn.Linear(size, inner, biased)
        self.k_proj, self.v_proj = nn.Linear(size, shared, biased), nn.Linear(size, shared, biased)
        self.o_proj = nn.Linear(inner, size, biased)

    def heads(self, name: str, hidden: Tensor) -> Tensor:
        """Map normed rows [B, L, d] to q_proj's, k_proj's or v_proj's heads [B, H or G, L, D], not yet turned."""
        rows: Tensor = getattr(self, name)(hidden)
        return rows.unflatten(-1, (-1, self.head_size)).transpose(1, 2)

    def forward(
        self, hidden: Tensor, rotary: Rotary, mask: Tensor | None, cache: KeyValueCache | None, full: bool
    ) -> Tensor:
        """Map normed rows [B, L, d] to [B, L, d]; see :class:`DecoderLayer`."""
        queries, keys, values = (self.heads(name, hidden) for name in ("q_proj", "k_proj", "v_proj"))
        queries, keys = turn(queries, rotary), turn(keys, rotary)
        if cache is not None:
            keys, values = cache.update(keys, values, self.index)
        attended = self._attend(queries, keys, values, mask, causal=mask is None and not full)
        return self.o_proj(attended.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two projections, of which one passes an activation and gates the other, and one back."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        size, inner, biased = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.activation = ACTIVATIONS[config.hidden_act]
        self.gate_proj, self.up_proj = nn.Linear(size, inner, biased), nn.Linear(size, inner, biased)
        self.down_proj = nn.Linear(inner, size, biased)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [B, L, d] to [B, L, d]."""
        return self.down_proj(self.activation(self.gate_proj(hidden)) * self.up_proj(hidden))


class DecoderLayer(nn.Module):
    """Attention, then an MLP, each behind a norm and added to its input."""

    def __init__(self, config: DecoderConfig, index: int, attend: Attend) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config, index, attend)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        hidden: Tensor,
        rotary: Rotary,
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
        *,
        full: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Run the layer.

        Args:
            hidden: [B, L, d].
            rotary: Of the L positions.
            mask: [B, 1, L or 1, L] true where a row attends; None: by `full` alone.
            cache: Takes the keys and values.
            full: Every row attends to every one, instead of to those before it.

        Returns:
            Hidden state [B, L, d] after the layer, and its self-attention output [B, L, d] before it is added.
        """
        attended = self.self_attn(self.input_layernorm(hidden), rotary, mask, cache, full)
        hidden = hidden + attended
        return hidden + self.mlp(self.post_attention_layernorm(hidden)), attended


class LlamaModel(nn.Module):
    """Embeddings, layers and final norm."""

    def __init__(self, config: DecoderConfig, implementation: str) -> None:
        super().__init__()
        attend = attention(implementation)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, index, attend) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        # Neither a parameter nor a buffer: no file holds it, and no change of type may round it.
        exponents = torch.arange(0, config.head_size, 2, device="cpu").float() / config.head_size
        self._frequencies = 1.0 / config.rope_theta**exponents

    def rotary(self, hidden: Tensor, positions: Tensor) -> Rotary:
        """Return the rotary embedding at positions [1 or B, L], in the type and on the device of `hidden`."""
        angles = positions[:, :, None].float() * self._frequencies.to(hidden.device)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(hidden.dtype), angles.sin().to(hidden.dtype)


class LanguageModel(nn.Module):
    """The decoder and the projection of its rows to logits."""

    def __init__(self, config: DecoderConfig, implementation: str) -> None:
        super().__init__()
        self.model = LlamaModel(config, implementation)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=_INITIAL_STD)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
