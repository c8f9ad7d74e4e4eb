"""Llama's decoder layer over the loaded weights, with fewer and larger operations than transformers' modules.

Queries, keys and values are one matrix product, gate and up projection another; the rotary embedding turns queries and
keys together. The weights are shared with the module: they move into one tensor, and the module's own parameters become
views of it, so both compute the same function. Results differ from the module's in the last bits at most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from flashvla_ros.vla.model import OpenVLA, Rotary

# Queries [1, H, L, D], keys and values [1, G, L, D] → [1, H, L, D].
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class LeanLayer:
    """One decoder layer."""

    def __init__(self, layer: nn.Module) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._norm_1, self._norm_2 = layer.input_layernorm, layer.post_attention_layernorm
        self._qkv = fuse([attention.q_proj, attention.k_proj, attention.v_proj])
        self._out, self._down = attention.o_proj, mlp.down_proj
        self._gate_up = fuse([mlp.gate_proj, mlp.up_proj])
        self._activation = mlp.act_fn
        self._head_size = attention.head_dim
        self._groups = attention.k_proj.out_features // self._head_size

    def __call__(self, hidden: Tensor, rotary: Rotary, attend: Attend) -> tuple[Tensor, Tensor]:
        """Return the hidden state [1, L, d] after this layer, and its self-attention output [1, L, d] alone."""
        length = hidden.shape[1]
        rows = functional.linear(normed(hidden, self._norm_1), *self._qkv)
        heads = rows.view(1, length, -1, self._head_size).transpose(1, 2)
        turned, values = heads.split([heads.shape[1] - self._groups, self._groups], dim=1)
        turned = turn(turned, rotary)
        queries, keys = turned.split([turned.shape[1] - self._groups, self._groups], dim=1)
        attended = attend(queries, keys, values).transpose(1, 2).reshape(1, length, -1)
        attention = functional.linear(attended, self._out.weight, self._out.bias)
        hidden = hidden + attention
        gate, up = functional.linear(normed(hidden, self._norm_2), *self._gate_up).chunk(2, dim=-1)
        down = functional.linear(self._activation(gate).mul_(up), self._down.weight, self._down.bias)
        return hidden + down, attention


class LeanDecoder:
    """The decoder of a model, layer by layer.

    Args:
        model: Its weights are shared, not copied.
    """

    def __init__(self, model: OpenVLA) -> None:
        decoder = model.language_model.model
        self.layers = [LeanLayer(layer) for layer in decoder.layers]
        self._norm, self._head = decoder.norm, model.language_model.lm_head
        self.embedding: Tensor = decoder.embed_tokens.weight

    def choices(self, hidden: Tensor) -> Tensor:
        """Most likely token after each row of hidden [1, L, d]: [L]."""
        logits = functional.linear(normed(hidden[0], self._norm), self._head.weight, self._head.bias)
        return logits.argmax(dim=-1)


def normed(hidden: Tensor, norm: nn.Module) -> Tensor:
    """Root-mean-square norm in float32, as transformers computes it."""
    wide = hidden.float()
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True).add_(norm.variance_epsilon))
    return norm.weight * (wide * scale).to(hidden.dtype)


def turn(heads: Tensor, rotary: Rotary) -> Tensor:
    """Rotary embedding of heads [1, H, L, D] by cosines and sines [1, L, D]."""
    cosines, sines = rotary[0][:, None], rotary[1][:, None]
    first, second = heads.chunk(2, dim=-1)
    return heads * cosines + torch.cat((-second, first), dim=-1) * sines


def fuse(linears: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """Stack the weights and biases of linear layers with the same input, which then hold views of the stack."""
    weight = torch.cat([linear.weight.data for linear in linears])
    sizes = [linear.out_features for linear in linears]
    biased = linears[0].bias is not None
    bias = torch.cat([linear.bias.data for linear in linears]) if biased else None
    for linear, part in zip(linears, weight.split(sizes), strict=True):
        linear.weight.data = part
    if bias is not None:
        for linear, part in zip(linears, bias.split(sizes), strict=True):
            linear.bias.data = part
    return weight, bias
