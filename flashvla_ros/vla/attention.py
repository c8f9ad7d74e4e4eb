"""Attention by the name of its implementation: among the rows of a sequence, and of one row over a buffer."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional


class Attend(Protocol):
    """Queries are [B, H, L, D], keys and values [B, G, M, D] of G groups of heads; what comes out is [B, H, L, D]."""

    def __call__(
        self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, *, causal: bool = False
    ) -> Tensor:
        """Attend to the keys where `mask`, [B, 1, L or 1, M], is true, to all without one.

        `causal` is for L = M and no mask: each row attends to itself and those before it. One row attends to all.
        """
        ...


class StaticAttention(Attend, Protocol):
    """What can attend to a buffer of fixed size too."""

    def last(self, query: Tensor, keys: Tensor, values: Tensor, slot: Tensor) -> Tensor:
        """One row [1, H, 1, D] attends to the slots of a buffer up to `slot` [1], its own: [1, H, 1, D]."""
        ...


class SdpaAttention:
    """PyTorch's own; its causal kernel on CUDA is a flash attention too."""

    def __call__(
        self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, *, causal: bool = False
    ) -> Tensor:
        """See :class:`Attend`."""
        causal, grouped = causal and queries.shape[2] > 1, queries.shape[1] != keys.shape[1]
        return functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=causal, enable_gqa=grouped
        )

    def last(self, query: Tensor, keys: Tensor, values: Tensor, slot: Tensor) -> Tensor:
        """See :class:`StaticAttention`."""
        return self(query, keys, values, (torch.arange(keys.shape[2], device=slot.device) <= slot)[None, None, None])


class FlashAttention2:
    """The package flash-attn, for bfloat16 and float16 on CUDA."""

    def __init__(self) -> None:
        from flash_attn import flash_attn_func, flash_attn_with_kvcache  # builds only with CUDA: optional

        self._among, self._cached = flash_attn_func, flash_attn_with_kvcache

    def __call__(
        self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, *, causal: bool = False
    ) -> Tensor:
        """See :class:`Attend`; there may be no mask."""
        if mask is not None:
            raise ValueError("FlashAttention 2 takes no mask: pad with sdpa")
        rows = (tensor.transpose(1, 2) for tensor in (queries, keys, values))
        return self._among(*rows, causal=causal).transpose(1, 2)

    def last(self, query: Tensor, keys: Tensor, values: Tensor, slot: Tensor) -> Tensor:
        """See :class:`StaticAttention`."""
        query, keys, values = (tensor.transpose(1, 2) for tensor in (query, keys, values))
        return self._cached(query, keys, values, cache_seqlens=(slot + 1).int()).transpose(1, 2)


def eager(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, *, causal: bool = False) -> Tensor:
    """See :class:`Attend`; one operation after the other."""
    if (shared := queries.shape[1] // keys.shape[1]) > 1:
        keys, values = (tensor.repeat_interleave(shared, dim=1) for tensor in (keys, values))
    weights = queries @ keys.transpose(2, 3) * queries.shape[3] ** -0.5
    if causal and queries.shape[2] > 1:
        mask = weights.new_ones(weights.shape[2:], dtype=torch.bool).tril()
    if mask is not None:  # not -inf: a row of padding alone may see nothing at all
        weights = weights.masked_fill(~mask, torch.finfo(weights.dtype).min)
    return weights.softmax(dim=-1, dtype=torch.float32).to(queries.dtype) @ values


def static_attention(name: str) -> StaticAttention:
    """Return sdpa or flash_attention_2, by the names that transformers gives them."""
    return SdpaAttention() if name == "sdpa" else FlashAttention2()


def attention(name: str) -> Attend:
    """Return sdpa, flash_attention_2 or eager."""
    return eager if name == "eager" else static_attention(name)
