"""Greedy decoding of action tokens for one observation: pruned prefill, then one token at a time from a cache.

The prefill may carry a draft of the action behind the prompt. Attention is causal, so the prompt's rows are what they
would be without it, and each row of the draft predicts the token after it as decoding would (:mod:`.draft`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from flashvla_ros.vla.model import PrismaticVLM, Rotary, kept_rows, likeliest, take_rows
from flashvla_ros.vla.pruning.probe import run_before_pruning
from flashvla_ros.vla.pruning.select import METHODS, all_kept, plan_prefill
from flashvla_ros.vla.query import Query


class KeyValueCache:
    """Keys and values of each layer, with room for the tokens to come; layers may hold different numbers of tokens."""

    def __init__(self, layers: int, room: int) -> None:
        self._room = room
        self._stores: list[tuple[Tensor, Tensor] | None] = [None] * layers
        self._lengths = [0] * layers

    def update(
        self, keys: Tensor, values: Tensor, layer: int, *_unused: object, **_named: object
    ) -> tuple[Tensor, Tensor]:
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


@dataclasses.dataclass(frozen=True)
class Prefill:
    """The decoder after the prompt, and after a draft where there was one.

    Attributes:
        logits: [1, max(n, 1), vocabulary] that predict the first action token, and those after each of the first n - 1
            tokens of the draft.
        cache: Keys and values of the prompt and of those tokens.
        length: Number of prompt tokens before pruning; decoding continues at this rotary position.
        kept: Ascending indices [k] of the selected visual tokens, or None where nothing was scored.
    """

    logits: Tensor
    cache: KeyValueCache
    length: int
    kept: Tensor | None

    @property
    def choices(self) -> Tensor:
        """[max(n, 1)] most likely tokens after the prompt and after each of the first n - 1 tokens of the draft."""
        return likeliest(self.logits[0])


def untimed(_stage: str) -> None:
    """Nobody asks how long a stage takes."""


def prefill(
    model: PrismaticVLM, visual: Tensor, query: Query, size: int, *, done: Callable[[str], None] = untimed
) -> Prefill:
    """Run the decoder over [BOS, visual tokens, rest of the prompt, draft].

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
    planned = plan_prefill(pruning, count, depth)
    length = count + len(query.prompt)
    hidden = model.embed(visual, torch.tensor([query.ids], device=visual.device))
    drafted = hidden.shape[1] - length  # rows behind the prompt
    rotary = model.rotary(hidden, torch.arange(hidden.shape[1], device=hidden.device)[None])
    mask = model.causal_mask(hidden)
    cache = KeyValueCache(depth, size - 1 - drafted)
    kept: Tensor | None
    if planned.chooses:
        hidden, seen = run_before_pruning(model, hidden, query, rotary, mask, cache)
        done("prefill")
        kept = METHODS[pruning.method].select(seen, planned.k, pruning)
        done("scoring")
        if pruning.drop:
            hidden, rotary = _drop(hidden, rotary, kept, count)
            mask = model.causal_mask(hidden)
    else:
        kept = all_kept(pruning, visual)
    hidden = model.run_layers(hidden, range(planned.layer, depth), rotary, mask, cache)
    return Prefill(model.logits(hidden[:, -1 - drafted :]), cache, length, kept)


def _drop(hidden: Tensor, rotary: Rotary, kept: Tensor, count: int) -> tuple[Tensor, Rotary]:
    rows = kept_rows(kept[None], count, hidden.shape[1])
    return take_rows(hidden, rows), (take_rows(rotary[0], rows), take_rows(rotary[1], rows))


def decode(model: PrismaticVLM, start: Prefill, count: int, known: Tensor | None = None) -> Tensor:
    """Return the `count` most likely tokens [count], on the model's device, each fed back to predict the next.

    As in the official code the choice is over the whole vocabulary, not over the action tokens alone. Where the logits
    say nothing the token is :data:`.model.NOTHING`, and those after it mean nothing.

    Args:
        model: The one that made `start`.
        start: Its cache grows, so it can be used once.
        count: Number of tokens.
        known: [1, m] tokens that are settled already, 1 ≤ m ≤ `count`; all but the last are those of the draft that
            `start` holds. None: nothing is, and `start` holds no draft.
    """
    if known is None:
        known = likeliest(start.logits)
    settled = known.shape[1]
    if settled == count:
        return known[0]
    start.cache.drop_last(start.logits.shape[1] - settled)
    embeddings = model.language_model.model.embed_tokens
    depth = range(len(model.layers))
    tokens = [known]
    first = start.length + settled - 1
    positions = torch.arange(first, first + count - settled, device=known.device)[None]
    cosines, sines = model.rotary(start.logits, positions)
    for step in range(count - settled):
        rotary = cosines[:, step : step + 1], sines[:, step : step + 1]
        hidden = model.run_layers(embeddings(tokens[-1][:, -1:].clamp(min=0)), depth, rotary, None, start.cache)
        tokens.append(likeliest(model.logits(hidden)))
    return torch.cat(tokens, dim=1)[0]
