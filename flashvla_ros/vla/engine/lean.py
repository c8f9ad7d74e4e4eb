"""Llama's decoder layer over the loaded weights, with fewer and larger operations than :mod:`..decoder`.

Queries, keys and values are one matrix product, gate and up projection another; the rotary embedding turns queries and
keys together. What stands before and after attention are two pure functions, which torch.compile takes once for all
layers. The weights are shared with the module: they move into one tensor, and the module's own parameters become
views of it, so both compute the same function. Results differ from the module's in the last bits at most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from flashvla_ros.vla.decoder import Rotary, normed, turn
from flashvla_ros.vla.model import PrismaticVLM, certainty, likeliest

# Queries [1, H, L, D], keys and values [1, G, L, D] → [1, H, L, D].
BufferedAttend = Callable[[Tensor, Tensor, Tensor], Tensor]
Linear = tuple[Tensor, Tensor | None]  # weight and bias
Norm = tuple[Tensor, float]  # weight and epsilon
MOST_INPUTS = 1024  # of a layer whose weights are laid out by columns; at 4096 nothing is gained


class LeanLayer:
    """One decoder layer.

    Args:
        layer: Its weights are shared, not copied.
        before: :func:`before_attention`, or that compiled.
        after: :func:`after_attention`, or that compiled.
        activation: Of the MLP; one object for all layers, or each would be compiled apart.
    """

    def __init__(
        self,
        layer: nn.Module,
        before: Callable[..., Any],
        after: Callable[..., Any],
        activation: Callable[[Tensor], Tensor],
    ) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._before, self._after, self._activation = before, after, activation
        self._norms = tuple(_parts(norm) for norm in (layer.input_layernorm, layer.post_attention_layernorm))
        self._qkv = fuse([attention.q_proj, attention.k_proj, attention.v_proj])
        self._out, self._down = ((linear.weight, linear.bias) for linear in (attention.o_proj, mlp.down_proj))
        self._gate_up = fuse([mlp.gate_proj, mlp.up_proj])
        self._head_size = attention.head_size
        self._groups = attention.k_proj.out_features // self._head_size

    def __call__(self, hidden: Tensor, rotary: Rotary, attend: BufferedAttend) -> tuple[Tensor, Tensor]:
        """Return the hidden state [1, L, d] after this layer, and its self-attention output [1, L, d] alone."""
        first, second = self._norms
        heads = self._before(hidden, rotary, first, self._qkv, self._head_size, self._groups)
        return self._after(
            hidden, attend(*heads), second, self._out, self._gate_up, self._down, activation=self._activation
        )


def before_attention(
    hidden: Tensor, rotary: Rotary, norm: Norm, qkv: Linear, head_size: int, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return turned queries [1, H, L, D], turned keys and values [1, G, L, D] of hidden [1, L, d]."""
    rows = functional.linear(normed(hidden, *norm), *qkv)
    heads = rows.view(1, hidden.shape[1], -1, head_size).transpose(1, 2)
    turned, values = heads.split([heads.shape[1] - groups, groups], dim=1)
    turned = turn(turned, rotary)
    queries, keys = turned.split([turned.shape[1] - groups, groups], dim=1)
    return queries, keys, values


def after_attention(
    hidden: Tensor,
    attended: Tensor,
    norm: Norm,
    out: Linear,
    gate_up: Linear,
    down: Linear,
    *,
    activation: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Return the hidden state [1, L, d] after the layer, and its self-attention output [1, L, d] alone."""
    attention = functional.linear(attended.transpose(1, 2).reshape(1, hidden.shape[1], -1), *out)
    hidden = hidden + attention
    gate, up = functional.linear(normed(hidden, *norm), *gate_up).chunk(2, dim=-1)
    return hidden + functional.linear(activation(gate).mul_(up), *down), attention


class LeanDecoder:
    """The decoder of a model, layer by layer.

    Args:
        model: Its weights are shared, not copied.
        compiled: Compile what stands before and after attention, once for all layers.
    """

    def __init__(self, model: PrismaticVLM, *, compiled: bool = False) -> None:
        decoder = model.language_model.model
        before, after = before_attention, after_attention
        if compiled:
            before, after = torch.compile(before), torch.compile(after)
        activation = decoder.layers[0].mlp.activation
        self.layers = [LeanLayer(layer, before, after, activation) for layer in decoder.layers]
        self._norm, self._head = _parts(decoder.norm), model.language_model.lm_head
        if self._head.weight is not decoder.embed_tokens.weight:  # whose rows are looked up
            self._head.weight.data = laid_out(self._head.weight.data)
        self.embedding: Tensor = decoder.embed_tokens.weight

    def normed(self, hidden: Tensor) -> Tensor:
        """Rows of hidden [1, L, d] behind the final norm: [L, d]."""
        return normed(hidden[0], *self._norm)

    def choices(self, rows: Tensor, without: int) -> tuple[Tensor, Tensor]:
        """Most likely token after each of rows [L, d] and its probability: [L] each; see :func:`.model.likeliest`."""
        logits = functional.linear(rows, self._head.weight, self._head.bias)
        tokens = likeliest(logits, without)
        return tokens, certainty(logits, tokens)


def _parts(norm: nn.Module) -> Norm:
    return norm.weight, norm.epsilon


def fuse(linears: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """Stack the weights and biases of linear layers with the same input, which then hold views of the stack."""
    weight = laid_out(torch.cat([linear.weight.data for linear in linears]))
    sizes = [linear.out_features for linear in linears]
    biased = linears[0].bias is not None
    bias = torch.cat([linear.bias.data for linear in linears]) if biased else None
    for linear, part in zip(linears, weight.split(sizes), strict=True):
        linear.weight.data = part
    if bias is not None:
        for linear, part in zip(linears, bias.split(sizes), strict=True):
            linear.bias.data = part
    return weight, bias


def laid_out(weight: Tensor) -> Tensor:
    """Return a weight [out, in] in the order in which a CPU multiplies one row with it fastest.

    MKL reads wide float32 weights with short rows about twice as fast by columns. The product with many rows is as fast
    either way, and the same bit for bit. Weights of other types are far slower by columns.
    """
    wide = weight.shape[1] < weight.shape[0] and weight.shape[1] <= MOST_INPUTS
    if wide and weight.device.type == "cpu" and weight.dtype is torch.float32 and torch.backends.mkl.is_available():
        return weight.t().contiguous().t()
    return weight
