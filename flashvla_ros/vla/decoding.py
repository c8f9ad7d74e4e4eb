"""Greedy decoding of action tokens for one observation: pruned prefill, then one token at a time from a cache.

The prefill may carry a draft of the action behind the prompt. Attention is causal, so the prompt's rows are what they
would be without it, and each row of the draft predicts the token after it as decoding would (:mod:`.draft`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from flashvla_ros.vla.decoder import KeyValueCache
from flashvla_ros.vla.model import PrismaticVLM, certainty, kept_rows, likeliest, take_rows
from flashvla_ros.vla.pruning.probe import run_before_pruning
from flashvla_ros.vla.pruning.select import METHODS, all_kept, plan_prefill
from flashvla_ros.vla.query import Query


@dataclasses.dataclass(frozen=True)
class Prefill:
    """The decoder after the prompt, and after a draft where there was one.

    Attributes:
        model: Made it.
        hidden: [m, d] rows that are read (:class:`.query.Layout`), behind the final norm.
        visual: [1 + k, d] rows of BOS and of the visual tokens that are left, the same; None where nobody asked.
        cache: Keys and values of the prompt and of the draft but its last; None where nothing can be decoded.
        length: Number of prompt tokens before pruning; decoding continues at this rotary position.
        kept: Ascending indices [k] of the selected visual tokens, or None where nothing was scored.
        without: See :class:`.query.Layout`.
    """

    model: PrismaticVLM
    hidden: Tensor
    visual: Tensor | None
    cache: KeyValueCache | None
    length: int
    kept: Tensor | None
    without: int = -1

    @functools.cached_property
    def logits(self) -> Tensor:
        """[1, m, vocabulary] that predict the token after each row that is read."""
        return self.model.language_model.lm_head(self.hidden[None])

    @functools.cached_property
    def choices(self) -> Tensor:
        """[m] most likely tokens."""
        return likeliest(self.logits[0], self.without)

    @property
    def certainty(self) -> Tensor:
        """[m] their probabilities, float32."""
        return certainty(self.logits[0], self.choices)


Draw = Callable[[Tensor], int]


class Decoded(NamedTuple):
    """Tokens [count], the rows [count, d] behind the final norm that each was chosen at, and their probabilities.

    Of a token that was drawn or that a draft settled, it is the probability of the model's own choice in its place.
    """

    tokens: Tensor
    hidden: Tensor
    certainty: Tensor


def untimed(_stage: str) -> None:
    """Nobody asks how long a stage takes."""


def prefill(
    model: PrismaticVLM, visual: Tensor, query: Query, size: int, *, done: Callable[[str], None] = untimed
) -> Prefill:
    """Run the decoder over a sequence as ``query.layout`` says.

    Args:
        model: In evaluation mode.
        visual: [1, N, d].
        query: What is asked for; of a draft at most `size` tokens.
        size: Number of tokens that the cache has room to decode.
        done: Called as a part of the prefill ends, so that ``scoring`` is timed apart from ``prefill`` before it.

    Raises:
        SettingsError: ``pruning.layer`` is not a layer of this decoder.
    """
    depth, count, pruning = len(model.layers), visual.shape[1], query.pruning
    k, layer = plan_prefill(pruning, count, depth)
    length, layout = query.length(count), query.layout
    extra = None if query.extra is None else query.extra[None].to(visual.dtype)
    hidden = model.embed(visual, torch.tensor([query.ids], device=visual.device), extra)
    hidden[:, length : length + layout.zeros] = 0.0
    behind = hidden.shape[1] - length  # rows behind the prompt
    rotary = model.rotary(hidden, torch.arange(hidden.shape[1], device=hidden.device)[None])
    cache = None if layout.full else KeyValueCache(depth, max(size - 1 - behind, 0))
    kept: Tensor | None
    if k < count:
        hidden, seen = run_before_pruning(model, hidden, query, rotary, cache)
        done("prefill")
        kept = METHODS[pruning.method].select(seen, k, pruning)
        done("scoring")
        if pruning.drop:
            rows = kept_rows(kept[None], count, hidden.shape[1])
            hidden, rotary = take_rows(hidden, rows), (take_rows(rotary[0], rows), take_rows(rotary[1], rows))
    else:
        kept = all_kept(pruning, visual)
    hidden = model.run_layers(hidden, range(layer, depth), rotary, cache, full=layout.full)[0]
    first, norm = len(hidden) - behind - 1, model.language_model.model.norm
    stay = len(hidden) - behind - length + count  # visual tokens that are left
    seen_rows = norm(hidden[: 1 + stay]) if layout.sees else None
    start = Prefill(model, norm(hidden[first : first + query.reads]), seen_rows, cache, length, kept, layout.without)
    if layout.chooses:
        _ = start.logits  # work of the prefill, not of who looks first
    return start


def decode(
    model: PrismaticVLM, start: Prefill, count: int, known: Tensor | None = None, draw: Draw | None = None
) -> Decoded:
    """Return the `count` most likely tokens, on the model's device, each fed back to predict the next.

    As in the official code the choice is over the whole vocabulary, not over the action tokens alone. Where the logits
    say nothing the token is :data:`.model.NOTHING`, and those after it mean nothing.

    Args:
        model: The one that made `start`.
        start: Its cache grows, so it can be used once.
        count: Number of tokens.
        known: [1, m] tokens that are settled already, 1 ≤ m ≤ `count`; all but the last are those of the draft that
            `start` holds. None: nothing is, and `start` holds no draft.
        draw: Draws each other token from its logits [vocabulary] in the place of the most likely one.
    """
    if known is None:
        known = start.choices[None]
    settled = known.shape[1]
    rows, sure = [start.hidden[:settled]], [start.certainty[:settled]]
    if settled == count:
        return Decoded(known[0], rows[0], sure[0])
    cache = start.cache
    assert cache is not None, "nothing is decoded behind full attention"  # noqa: S101  # of the code, not of input
    cache.drop_last(len(start.hidden) - settled)
    embeddings = model.language_model.model.embed_tokens
    depth = range(len(model.layers))
    tokens = [known]
    first = start.length + settled - 1
    positions = torch.arange(first, first + count - settled, device=known.device)[None]
    cosines, sines = model.rotary(start.hidden, positions)
    for step in range(count - settled):
        rotary = cosines[:, step : step + 1], sines[:, step : step + 1]
        hidden = model.run_layers(embeddings(tokens[-1][:, -1:].clamp(min=0)), depth, rotary, cache)
        rows.append(model.language_model.model.norm(hidden)[0])
        logits = model.language_model.lm_head(rows[-1])[None]
        choice = likeliest(logits, start.without)
        sure.append(certainty(logits, choice)[0])
        tokens.append(choice if draw is None else choice.new_tensor([[draw(logits[0, 0])]]))
    return Decoded(torch.cat(tokens, dim=1)[0], torch.cat(rows), torch.cat(sure))
