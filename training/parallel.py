"""OpenVLA-OFT's one pass (arXiv 2502.19645) over prompts and placeholders, differentiable, some visual tokens dropped.

The sequence is [BOS, visual tokens, prompt, T·D zero rows, </s>], and every row attends to every row. The T·D rows that
begin with the prompt's last one are the chunk's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flashvla_ros.vla.model import PrismaticVLM
from training.forcing import run_decoder

_END = 2  # </s>, which closes the sequence


def chunk_rows(
    model: PrismaticVLM,
    visual: Tensor,
    input_ids: Tensor,
    count: int,
    *,
    attention_mask: Tensor | None = None,
    keep: Tensor | None = None,
    layer: int = 2,
) -> Tensor:
    """Return a chunk's rows [B, count, d] of the last layer, after the final norm, differentiable.

    Args:
        model: The network.
        visual: Visual tokens [B, N, d].
        input_ids: Prompts [B, P], BOS first, the empty token last; shorter prompts are padded right after BOS.
        count: T·D.
        attention_mask: [B, P] true for the prompts' real tokens; None where none is padded.
        keep: Ascending indices [B, k] of the visual tokens that the layers from `layer` on see; None: all.
        layer: First decoder layer (from 0) without the dropped tokens, as in pruned inference.
    """
    batch, tokens = visual.shape[:2]
    hidden = model.embed(visual, torch.cat([input_ids, input_ids.new_full((batch, 1), _END)], dim=1))
    hidden = torch.cat([hidden[:, :-1], hidden.new_zeros(batch, count, hidden.shape[2]), hidden[:, -1:]], dim=1)
    hidden = run_decoder(model, hidden, tokens, attention_mask=attention_mask, keep=keep, layer=layer, full=True)
    normed: Tensor = model.language_model.model.norm(hidden[:, -count - 2 : -2])
    return normed
