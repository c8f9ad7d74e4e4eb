"""The model's own parts in one differentiable pass over prompts, some tokens dropped, and actions; teacher forcing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from flashvla_ros.vla.decoder import Rotary
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
    hidden = run_decoder(model, hidden, visual.shape[1], attention_mask=attention_mask, keep=keep, layer=layer)
    return model.logits(hidden[:, -action_ids.shape[1] :])


def attention_to_image(
    model: PrismaticVLM, index: int, entered: tuple[Tensor, Rotary, Tensor | None], visual: int, last: int
) -> Tensor:
    """Return the logarithms [B, last, N] of what the last rows of a decoder layer's first head give the visual tokens.

    Args:
        model: The network.
        index: Of the layer.
        entered: What the layer was called with: hidden [B, L, d], its rotary embedding and mask.
        visual: N, all of the visual tokens.
        last: Rows.
    """
    hidden, rotary, mask = entered
    queries = model.project(hidden, index, "q_proj", rotary)[:, 0, -last:]
    keys = model.project(hidden, index, "k_proj", rotary)[:, 0]
    length = hidden.shape[1]
    causal = hidden.new_ones(length, length, dtype=torch.bool).tril() if mask is None else mask[:, 0]
    scores = (queries @ keys.transpose(1, 2) / math.sqrt(keys.shape[-1])).float()
    scores = scores.masked_fill(~causal[..., -last:, :], -torch.inf)
    return scores.log_softmax(-1)[..., 1 : 1 + visual]


def run_decoder(
    model: PrismaticVLM,
    hidden: Tensor,
    count: int,
    *,
    attention_mask: Tensor | None,
    keep: Tensor | None,
    layer: int,
    full: bool = False,
) -> Tensor:
    """Run every decoder layer over [BOS, visual tokens, rest of the prompt, what follows it]; return [B, L', d].

    Args:
        model: The network.
        hidden: [B, L, d] what enters the decoder.
        count: N, the number of visual tokens.
        attention_mask: See :func:`action_logits`.
        keep: See :func:`action_logits`.
        layer: See :func:`action_logits`.
        full: Every row attends to every row.
    """
    batch, length = hidden.shape[:2]
    valid = None
    positions = torch.arange(length, device=hidden.device)[None]
    if attention_mask is not None:
        text = attention_mask.bool()
        behind = length - count - text.shape[1]
        seen = text.new_ones(batch, count), text[:, 1:], text.new_ones(batch, behind)
        valid = torch.cat([text[:, :1], *seen], dim=1)
        positions = (valid.cumsum(dim=1) - 1).clamp(min=0)
    rotary = model.rotary(hidden, positions)
    depth = len(model.layers)
    first = depth if keep is None else min(layer, depth)
    hidden = model.run_layers(hidden, range(first), rotary, mask=mask_of(valid, full=full), full=full)
    if keep is not None:
        rows = kept_rows(keep, count, length)
        hidden = take_rows(hidden, rows)
        rotary = (take_rows(rotary[0], rows), take_rows(rotary[1], rows))
        valid = None if valid is None else valid.gather(1, rows)
        hidden = model.run_layers(hidden, range(first, depth), rotary, mask=mask_of(valid, full=full), full=full)
    return hidden


def mask_of(valid: Tensor | None, *, full: bool) -> Tensor | None:
    """Return the decoder's mask [B, 1, L or 1, L] where the rows of `valid` [B, L] are real; None where all are."""
    if valid is None:
        return None
    mask = valid[:, None, None, :]
    return mask if full else mask & valid.new_ones(valid.shape[1], valid.shape[1]).tril()


def pad_prompts(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Stack prompts of several lengths: ids [B, P] padded right after BOS, and the mask [B, P] of real tokens."""
    longest = max(len(prompt) for prompt in prompts)
    gaps = [longest - len(prompt) for prompt in prompts]
    ids = [[prompt[0], *[pad_id] * gap, *prompt[1:]] for prompt, gap in zip(prompts, gaps, strict=True)]
    mask = [[True, *[False] * gap, *[True] * (len(prompt) - 1)] for prompt, gap in zip(prompts, gaps, strict=True)]
    return torch.tensor(ids), torch.tensor(mask)
