"""Teacher forcing: the model's own parts in one differentiable pass over prompts, some tokens dropped, and actions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flashvla_ros.vla.model import PrismaticVLM, kept_rows, take_rows


def action_logits(
    model: PrismaticVLM,
    visual: Tensor,
    input_ids: Tensor,
    action_ids: Tensor,
    *,
    attention_mask: Tensor | None = None,
    keep: Tensor | None = None,
    layer: int = 2,
) -> Tensor:
    """Return the logits [B, A, vocabulary] that predict action_ids [B, A], differentiable.

    Args:
        model: The network.
        visual: Visual tokens [B, N, d].
        input_ids: Prompts [B, P], BOS first, the empty token last; shorter prompts are padded right after BOS.
        action_ids: [B, A] tokens to predict.
        attention_mask: [B, P] true for the prompts' real tokens; None where none is padded.
        keep: Ascending indices [B, k] of the visual tokens that the layers from `layer` on see; None: all.
        layer: First decoder layer (from 0) without the dropped tokens, as in pruned inference.
    """
    hidden = model.embed(visual, torch.cat([input_ids, action_ids[:, :-1]], dim=1))
    batch, length = hidden.shape[:2]
    count = visual.shape[1]
    valid = None
    positions = torch.arange(length, device=hidden.device)[None]
    if attention_mask is not None:
        text = attention_mask.bool()
        seen = text.new_ones(batch, count), text[:, 1:], text.new_ones(batch, action_ids.shape[1] - 1)
        valid = torch.cat([text[:, :1], *seen], dim=1)
        positions = (valid.cumsum(dim=1) - 1).clamp(min=0)
    rotary = model.rotary(hidden, positions)
    depth = len(model.layers)
    first = depth if keep is None else min(layer, depth)
    hidden = model.run_layers(hidden, range(first), rotary, model.mask(hidden, valid))
    if keep is not None:
        rows = kept_rows(keep, count, length)
        hidden = take_rows(hidden, rows)
        rotary = (take_rows(rotary[0], rows), take_rows(rotary[1], rows))
        valid = None if valid is None else valid.gather(1, rows)
        hidden = model.run_layers(hidden, range(first, depth), rotary, model.mask(hidden, valid))
    return model.logits(hidden[:, -action_ids.shape[1] :])


def pad_prompts(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Stack prompts of several lengths: ids [B, P] padded right after BOS, and the mask [B, P] of real tokens."""
    longest = max(len(prompt) for prompt in prompts)
    gaps = [longest - len(prompt) for prompt in prompts]
    ids = [[prompt[0], *[pad_id] * gap, *prompt[1:]] for prompt, gap in zip(prompts, gaps, strict=True)]
    mask = [[True, *[False] * gap, *[True] * (len(prompt) - 1)] for prompt, gap in zip(prompts, gaps, strict=True)]
    return torch.tensor(ids), torch.tensor(mask)
