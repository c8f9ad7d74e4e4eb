"""Attention over buffers of fixed size: among the rows of a prefill, and of one token over all before it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional


class StaticAttention(Protocol):
    """Both kinds; queries are [1, H, L, D], keys and values [1, G, L, D] of G groups of heads."""

    def among(self, queries: Tensor, keys: Tensor, values: Tensor, *, causal: bool) -> Tensor:
        """Each row attends to itself and those before it, or to all: [1, H, L, D]."""
        ...

    def last(self, query: Tensor, keys: Tensor, values: Tensor, slot: Tensor) -> Tensor:
        """One row [1, H, 1, D] attends to the slots of a buffer up to `slot` [1], its own: [1, H, 1, D]."""
        ...


class SdpaAttention:
    """PyTorch's own; its causal kernel on CUDA is a flash attention too."""

    def among(self, queries: Tensor, keys: Tensor, values: Tensor, *, causal: bool) -> Tensor:
        """See :class:`StaticAttention`."""
        grouped = queries.shape[1] != keys.shape[1]
        return functional.scaled_dot_product_attention(queries, keys, values, is_causal=causal, enable_gqa=grouped)

    def last(self, query: Tensor, keys: Tensor, values: Tensor, slot: Tensor) -> Tensor:
        """See :class:`StaticAttention`."""
        seen = (torch.arange(keys.shape[2], device=slot.device) <= slot)[None, None, None]
        grouped = query.shape[1] != keys.shape[1]
        return functional.scaled_dot_product_attention(query, keys, values, attn_mask=seen, enable_gqa=grouped)


class FlashAttention2:
    """The package flash-attn, for bfloat16 and float16 on CUDA."""

    def __init__(self) -> None:
        from flash_attn import flash_attn_func, flash_attn_with_kvcache  # builds only with CUDA: optional

        self._among, self._cached = flash_attn_func, flash_attn_with_kvcache

    def among(self, queries: Tensor, keys: Tensor, values: Tensor, *, causal: bool) -> Tensor:
        """See :class:`StaticAttention`."""
        rows = (tensor.transpose(1, 2) for tensor in (queries, keys, values))
        return self._among(*rows, causal=causal).transpose(1, 2)

    def last(self, query: Tensor, keys: Tensor, values: Tensor, slot: Tensor) -> Tensor:
        """See :class:`StaticAttention`."""
        query, keys, values = (tensor.transpose(1, 2) for tensor in (query, keys, values))
        return self._cached(query, keys, values, cache_seqlens=(slot + 1).int()).transpose(1, 2)
